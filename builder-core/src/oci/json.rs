//! The one way in which JSON that gets hashed is written.

use serde::Serialize;

use super::Sha256;

/// Serialises with object keys sorted and no white space, so equal values give equal digests.
///
/// # Errors
/// Only what `value`'s own `Serialize` reports, such as a map whose keys are not strings.
pub fn canonical_json(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    // Sorted only while no crate enables serde_json's `preserve_order`; the test below fails the day one does.
    serde_json::to_vec(&serde_json::to_value(value)?)
}

/// Hash of [`canonical_json`] of plain data: all its keys are strings, so nothing can go wrong.
pub(crate) fn json_hash(value: &impl Serialize) -> Sha256 {
    Sha256::of(&canonical_json(value).expect("plain data, whose keys are strings"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_are_sorted() {
        let value: serde_json::Value = serde_json::from_str(r#"{"b":1,"a":{"d":1,"c":[2]}}"#).expect("valid JSON");
        assert_eq!(super::canonical_json(&value).expect("plain value"), br#"{"a":{"c":[2],"d":1},"b":1}"#);
    }
}
