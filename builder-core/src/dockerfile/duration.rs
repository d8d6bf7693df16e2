//! Durations of `HEALTHCHECK` in Go's syntax, such as `1m30s` (checklist P-29).

use super::error::DurationProblem;

/// Reads a duration: optional sign, then numbers with units, or a bare `0`. The result is in nanoseconds.
pub(super) fn parse(text: &str) -> Result<i64, DurationProblem> {
    let invalid = || DurationProblem::Invalid { value: text.to_owned() };
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if unsigned == "0" {
        return Ok(0);
    }
    if unsigned.is_empty() {
        return Err(invalid());
    }
    // The most negative value has no positive partner, so the sum is kept unsigned.
    let limit: u64 = if negative { 1 << 63 } else { (1 << 63) - 1 };
    let mut total: u64 = 0;
    let mut rest = unsigned;
    while !rest.is_empty() {
        let (whole, behind) = digits(rest);
        let (fraction, behind) = match behind.strip_prefix('.') {
            Some(behind) => digits(behind),
            None => ("", behind),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let length = behind.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(length);
        let nanoseconds: u64 = match unit {
            "" => return Err(DurationProblem::MissingUnit { value: text.to_owned() }),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(DurationProblem::UnknownUnit { unit: unit.to_owned(), value: text.to_owned() }),
        };
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        let amount = whole.checked_mul(nanoseconds).ok_or_else(invalid)?;
        total = total
            .checked_add(amount)
            .and_then(|sum| sum.checked_add(fraction_of(fraction, nanoseconds)))
            .filter(|sum| *sum <= limit)
            .ok_or_else(invalid)?;
        rest = behind;
    }
    Ok(if negative { 0_i64.wrapping_sub_unsigned(total) } else { i64::try_from(total).map_err(|_| invalid())? })
}

/// Leading digits and what follows.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// The part `0.digits` of a unit, rounded down. Digits beyond what matters for an hour are ignored.
fn fraction_of(digits: &str, nanoseconds: u64) -> u64 {
    let mut numerator: u128 = 0;
    let mut denominator: u128 = 1;
    for digit in digits.bytes().take(20) {
        numerator = numerator * 10 + u128::from(digit - b'0');
        denominator *= 10;
    }
    u64::try_from(numerator * u128::from(nanoseconds) / denominator).expect("because it is less than one unit")
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[track_caller]
    fn check(text: &str, expected: Result<i64, &str>) {
        assert_eq!(parse(text).map_err(|problem| problem.to_string()), expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn reads_durations() {
        check("0", Ok(0));
        check("5s", Ok(5_000_000_000));
        check("1m30s", Ok(90_000_000_000));
        check("1.5h", Ok(5_400_000_000_000));
        check(".5ms", Ok(500_000));
        check("1.s", Ok(1_000_000_000));
        check("-1us", Ok(-1_000));
        check("+1µs2ns", Ok(1_002));
        check("9223372036854775807ns", Ok(i64::MAX));
        check("-9223372036854775808ns", Ok(i64::MIN));
        check("0.99999999999999999999999999999s", Ok(999_999_999));
    }

    #[test]
    fn words_problems_as_go_does() {
        check("", Err("invalid duration \"\""));
        check("-", Err("invalid duration \"-\""));
        check("x", Err("invalid duration \"x\""));
        check(".s", Err("invalid duration \".s\""));
        check("5", Err("missing unit in duration \"5\""));
        check("5 s", Err("unknown unit \" s\" in duration \"5 s\""));
        check("5d", Err("unknown unit \"d\" in duration \"5d\""));
        check("9223372036854775808ns", Err("invalid duration \"9223372036854775808ns\""));
        check("99999999999999999999999h", Err("invalid duration \"99999999999999999999999h\""));
    }
}
