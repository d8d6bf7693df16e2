//! Small grammars of flag values.

use std::collections::BTreeMap;
use std::time::Duration;

use builder_core::plan::Ulimit;

use super::error::UsageError;

/// `name=value`; the value is empty without `=`.
pub(super) fn name_value(flag: &'static str, text: &str) -> Result<(String, String), UsageError> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() {
        return Err(UsageError::value(flag, text, "the name before `=` is missing"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Many `name=value`; the last of a name counts.
pub(super) fn name_values(flag: &'static str, texts: &[String]) -> Result<BTreeMap<String, String>, UsageError> {
    texts.iter().map(|text| name_value(flag, text)).collect()
}

/// `1024`, `64k`, `128MB`, `1.5g`: multiples of 1024, as Docker reads sizes.
pub(super) fn bytes(flag: &'static str, text: &str) -> Result<u64, UsageError> {
    let wrong = || UsageError::value(flag, text, "it is a number with an optional k, m, g or t");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let factor = match lower[digits.len()..].trim() {
        "" | "b" => 1_u64,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(wrong);
    }
    match digits.parse::<f64>() {
        // Exact for every size below 8 PiB.
        Ok(number) if number.is_finite() && number >= 0.0 && number * (factor as f64) < 9e15 => {
            Ok((number * factor as f64) as u64)
        }
        _ => Err(wrong()),
    }
}

/// `336h`, `1h30m`, `2d`, `0`: numbers with units of d, h, m, s or ms.
pub(super) fn duration(flag: &'static str, text: &str) -> Result<Duration, UsageError> {
    let wrong = || UsageError::value(flag, text, "it is a number with a unit, such as 6h, 30m or 14d");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, behind) = rest.split_at(digits);
        let unit = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        let seconds = match unit {
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return Err(wrong()),
        };
        let part = number.parse::<f64>().map_err(|_| wrong())? * seconds;
        let part = Duration::try_from_secs_f64(part).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = behind;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// Names that setrlimit(2) knows, as Docker writes them.
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// `nofile=1024[:2048]`
fn ulimit(text: &str) -> Result<Ulimit, UsageError> {
    let flag = "--ulimit";
    let (name, limits) = name_value(flag, text)?;
    if !ULIMITS.contains(&name.as_str()) {
        return Err(UsageError::value(flag, text, format!("`{name}` is no limit; there are {}", ULIMITS.join(", "))));
    }
    let number = |text: &str| match text.parse::<i64>() {
        Ok(number) if number >= -1 => Ok(number),
        _ => Err(UsageError::value(flag, text, "a limit is a number, or -1 for none")),
    };
    let (soft, hard) = limits.split_once(':').unwrap_or((&limits, &limits));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(UsageError::value(flag, text, "the soft limit is above the hard one"));
    }
    Ok(Ulimit { name, soft, hard })
}

/// All of them; the last of a name counts.
pub(super) fn ulimits(texts: &[String]) -> Result<Vec<Ulimit>, UsageError> {
    let mut limits: BTreeMap<String, Ulimit> = BTreeMap::new();
    for text in texts {
        let limit = ulimit(text)?;
        limits.insert(limit.name.clone(), limit);
    }
    Ok(limits.into_values().collect())
}

/// `name:address` or `name=address`; an IPv6 address may stand in brackets.
pub(super) fn host(text: &str) -> Result<(String, String), UsageError> {
    let flag = "--add-host";
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .ok_or_else(|| UsageError::value(flag, text, "it is NAME:ADDRESS or NAME=ADDRESS"))?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    // A RUN shares the builder's network, where its machine is the loopback.
    let address = if address == "host-gateway" { "127.0.0.1" } else { address };
    if name.is_empty() || address.parse::<std::net::IpAddr>().is_err() {
        return Err(UsageError::value(flag, text, format!("`{address}` is not an IP address")));
    }
    Ok((name.to_owned(), address.to_owned()))
}

/// One record of comma-separated fields (RFC 4180): a field may be quoted, `""` in it is a quote. As Docker reads the values
/// of --output and --secret.
pub(super) fn csv(flag: &'static str, text: &str) -> Result<Vec<String>, UsageError> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let field = fields.last_mut().unwrap_or_else(|| unreachable!("there is always a field"));
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    if quoted { Err(UsageError::value(flag, text, "a quote is not closed")) } else { Ok(fields) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("64k", Some(65_536)),
            ("128MB", Some(128 << 20)),
            ("1.5g", Some(3 << 29)),
            ("2 GiB", Some(2 << 30)),
            ("10x", None),
            ("", None),
            ("-1", None),
            ("k", None),
            ("99999999999999999999", None),
            ("18446744073709551615k", None),
        ] {
            assert_eq!(bytes("--shm-size", text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("336h", Some(336 * 3600)),
            ("1h30m", Some(5400)),
            ("14d", Some(14 * 86_400)),
            ("0", Some(0)),
            ("0h", Some(0)),
            ("1.5m", Some(90)),
            ("14", None),
            ("", None),
            ("h", None),
            ("-1h", None),
            ("1y", None),
            ("999999999999999999999h", None),
        ] {
            assert_eq!(duration("--cache-ttl", text).ok(), expected.map(Duration::from_secs), "{text:?}");
        }
    }

    #[test]
    fn limits() {
        let limit = |name: &str, soft, hard| Some(Ulimit { name: name.to_owned(), soft, hard });
        for (text, expected) in [
            ("nofile=1024:2048", limit("nofile", 1024, 2048)),
            ("nproc=5", limit("nproc", 5, 5)),
            ("core=0:-1", limit("core", 0, -1)),
            ("nofile=2:1", None),
            ("nofile=-1:1", None),
            ("files=1", None),
            ("nofile", None),
            ("nofile=x", None),
        ] {
            assert_eq!(ulimit(text).ok(), expected, "{text:?}");
        }
        let twice = ["nofile=1:2", "core=0", "nofile=3:4"].map(str::to_owned);
        assert_eq!(ulimits(&twice).ok(), limit("core", 0, 0).zip(limit("nofile", 3, 4)).map(|(a, b)| vec![a, b]));
    }

    #[test]
    fn hosts() {
        for (text, expected) in [
            ("a:10.0.0.1", Some(("a", "10.0.0.1"))),
            ("a=10.0.0.1", Some(("a", "10.0.0.1"))),
            ("a:::1", Some(("a", "::1"))),
            ("a=[::1]", Some(("a", "::1"))),
            ("host.docker.internal:host-gateway", Some(("host.docker.internal", "127.0.0.1"))),
            ("a", None),
            (":10.0.0.1", None),
            ("a:b", None),
        ] {
            let expected = expected.map(|(name, address)| (name.to_owned(), address.to_owned()));
            assert_eq!(host(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn fields() {
        for (text, expected) in [
            ("a=1,b=2", Some(vec!["a=1", "b=2"])),
            ("a=1,\"b=2,3\",c", Some(vec!["a=1", "b=2,3", "c"])),
            ("\"a=\"\"x\"\"\"", Some(vec!["a=\"x\""])),
            ("", Some(vec![""])),
            ("a,\"b", None),
        ] {
            let expected = expected.map(|fields| fields.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(csv("--output", text).ok(), expected, "{text:?}");
        }
    }
}
