//! Small grammars of Kaniko's values, which are Go's: booleans, numbers, durations, pairs.

use std::time::Duration;

use builder_core::hint::go_quote;

use super::grammar::Kind;

/// Checks a value by the kind of its flag. The error is the reason, worded as Go words it.
pub fn check(kind: Kind, value: &str) -> Result<(), String> {
    match kind {
        Kind::Text | Kind::List | Kind::Commas => Ok(()),
        Kind::Choice(words) => {
            if words.contains(&value) {
                return Ok(());
            }
            let words: Vec<&str> = words.iter().copied().filter(|word| !word.is_empty()).collect();
            Err(format!("it is one of {}", words.join(", ")))
        }
        Kind::Bool => boolean(value).map(drop),
        Kind::Number => number(value).map(drop),
        Kind::Duration => duration(value).map(drop),
        Kind::Pairs => match value.split_once('=') {
            Some(_) => Ok(()),
            None => Err(format!("invalid argument value. expect key=value, got {value}")),
        },
        Kind::MultiMap => multi_map(value).map(drop),
        Kind::Git => git(value),
    }
}

/// What Go's `strconv.ParseBool` takes.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {}: invalid syntax", go_quote(text))),
    }
}

/// A number of 64 bits; `0x` and its relatives are refused, since nobody means them.
fn number(text: &str) -> Result<i64, String> {
    let failed = |why| format!("strconv.ParseInt: parsing {}: {why}", go_quote(text));
    text.parse().map_err(|error: std::num::ParseIntError| match error.kind() {
        std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => failed("value out of range"),
        _ => failed("invalid syntax"),
    })
}

/// Go's `time.ParseDuration`: `[+-](decimal unit)+` or `0`. A negative one is returned as zero with `Err` left for
/// what cannot be read: nothing here can last less than no time.
pub fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {}", go_quote(text));
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanoseconds = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let value: f64 = match &rest[..digits] {
            "" | "." => return Err(invalid()),
            number => number.parse().map_err(|_| invalid())?,
        };
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let factor = match &rest[..letters] {
            "" => return Err(format!("time: missing unit in duration {}", go_quote(text))),
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            unit => return Err(format!("time: unknown unit {} in duration {}", go_quote(unit), go_quote(text))),
        };
        nanoseconds += value * factor;
        rest = &rest[letters..];
    }
    // As Go, whose durations are 64 bits of nanoseconds.
    if nanoseconds > i64::MAX as f64 {
        return Err(invalid());
    }
    Ok(if negative { Duration::ZERO } else { Duration::from_nanos(nanoseconds as u64) })
}

/// `k=v[;k=v…]`; an empty text is nothing.
pub fn multi_map(text: &str) -> Result<Vec<(String, String)>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(';')
        .map(|piece| match piece.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(format!("invalid argument value. expect key=value, got {piece}")),
        })
        .collect()
}

/// One of `--git`'s options; names that Kaniko does not know are ignored, as Kaniko does.
fn git(text: &str) -> Result<(), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("invalid argument value. expect key=value, got {text}"))?;
    match key {
        "single-branch" | "recurse-submodules" | "insecure-skip-tls" => boolean(value).map(drop),
        "depth" => number(value).map(drop),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, expected) in [
            ("0", Ok(0)),
            ("0h", Ok(0)),
            ("336h", Ok(336 * 3_600_000)),
            ("1h30m", Ok(5_400_000)),
            ("1.5s", Ok(1_500)),
            (".5s", Ok(500)),
            ("+10ms", Ok(10)),
            ("1m1s", Ok(61_000)),
            ("2000us", Ok(2)),
            ("2000µs", Ok(2)),
            ("-5s", Ok(0)),
            ("14", Err(r#"time: missing unit in duration "14""#)),
            ("14d", Err(r#"time: unknown unit "d" in duration "14d""#)),
            ("", Err(r#"time: invalid duration """#)),
            ("-", Err(r#"time: invalid duration "-""#)),
            ("h", Err(r#"time: invalid duration "h""#)),
            ("1.2.3s", Err(r#"time: invalid duration "1.2.3s""#)),
            ("9999999h", Err(r#"time: invalid duration "9999999h""#)),
        ] {
            let found = duration(text).map(|duration| duration.as_millis());
            assert_eq!(found.as_ref().map_err(String::as_str), expected.as_ref().map_err(|text| *text), "{text:?}");
        }
    }

    #[test]
    fn maps_accumulate_and_pieces_need_an_equals_sign() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(multi_map(""), Ok(vec![]));
        assert_eq!(multi_map("a=b;a=c=d;e="), Ok(vec![pair("a", "b"), pair("a", "c=d"), pair("e", "")]));
        assert!(multi_map("a=b;c").is_err() && multi_map("a=b;").is_err());
    }

    #[test]
    fn git_options_are_checked() {
        for (text, good) in [
            ("branch=a,depth=1", true),
            ("depth=1", true),
            ("depth=x", false),
            ("single-branch=true", true),
            ("single-branch=x", false),
            ("nonsense=1", true),
            ("branch", false),
        ] {
            assert_eq!(check(Kind::Git, text).is_ok(), good, "{text}");
        }
    }
}
