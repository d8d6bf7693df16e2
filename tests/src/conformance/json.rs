//! JSON as Python writes it, with lone surrogates for bytes that are not UTF-8.

/// First character of the private range that stands for bytes 0x80 to 0xff which are not UTF-8: byte `b` becomes
/// `U+10FC00 + b`, which is the surrogate pair of `\udbff` and Python's own `\udc00 + b`.
const BYTE_BASE: u32 = 0x10_FC00;

/// Makes lone low surrogates (`\udcff`, Python's `surrogateescape`) valid JSON by completing them to a pair.
pub(super) fn complete_surrogates(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut after_high = false;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let unit = (escape.as_bytes().get(1) == Some(&b'u'))
            .then(|| escape.get(2..6).and_then(|hex| u16::from_str_radix(hex, 16).ok()))
            .flatten();
        let length = match (unit, escape.chars().nth(1)) {
            (Some(_), _) => 6,
            (None, Some(escaped)) => 1 + escaped.len_utf8(),
            (None, None) => 1,
        };
        let low = unit.is_some_and(|unit| (0xdc00..0xe000).contains(&unit));
        if low && !(after_high && before.is_empty()) {
            out.push_str("\\udbff");
        }
        after_high = unit.is_some_and(|unit| (0xd800..0xdc00).contains(&unit));
        out.push_str(&escape[..length]);
        rest = &escape[length..];
    }
    out.push_str(rest);
    out
}

/// Bytes of a name as text; see [`BYTE_BASE`].
pub(super) fn decode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().filter_map(|byte| char::from_u32(BYTE_BASE + u32::from(*byte))));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_surrogates_become_the_same_as_decoded_bytes() {
        for (json, bytes) in [
            (r#""\udcff""#, b"\xff".as_slice()),
            (r#""a\udc80\udc81b""#, b"a\x80\x81b"),
            (r#""\ud83d\ude00""#, "😀".as_bytes()),
            (r#""\ud83d\ude00\udcfe""#, b"\xf0\x9f\x98\x80\xfe"),
            (r#""\\udcff""#, br"\udcff"),
            (r#""\"\\""#, br#""\"#),
            (r#""é\n""#, "é\n".as_bytes()),
        ] {
            let text: String = serde_json::from_str(&complete_surrogates(json)).expect(json);
            assert_eq!(text, decode(bytes), "{json}");
        }
    }
}
