//! Texts and paths as Go writes them, because BuildKit's history and paths are Go's.

use crate::dockerfile::Quoted;

/// `path.Clean` of an absolute path: no `.`, `..` or empty components, no slash at the end except for `/` itself.
/// A relative path is taken from the root.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `path.Clean`, relative paths included: what is left of `a/../b` is `b`, of nothing `.`.
pub(super) fn clean_relative(path: &str) -> String {
    if path.starts_with('/') {
        return clean(path);
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

/// `path` as seen from the absolute directory `base`, cleaned.
pub(super) fn join(base: &str, path: &str) -> String {
    if path.starts_with('/') { clean(path) } else { clean(&format!("{base}/{path}")) }
}

/// The last component, as `path.Base`: `/` for a path of slashes, `.` for an empty one.
pub(super) fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match (path, trimmed) {
        ("", _) => ".",
        (_, "") => "/",
        _ => trimmed.rsplit('/').next().unwrap_or(trimmed),
    }
}

/// `%v` of a list: `[a b]`.
pub(super) fn plain_list(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// `%q` of a list: `["a" "b"]`.
pub(super) fn quoted_list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| Quoted(item).to_string()).collect();
    format!("[{}]", quoted.join(" "))
}

/// `time.Duration.String`: `1m30s`, `1.5s`, `2h0m0s`, `100ms`, `0s`.
pub(super) fn duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    let fraction = |value: u64, unit: u64, name: &str| {
        let rest = format!("{:0width$}", value % unit, width = unit.ilog10() as usize);
        let rest = rest.trim_end_matches('0');
        let dot = if rest.is_empty() { "" } else { "." };
        format!("{}{dot}{rest}{name}", value / unit)
    };
    const SECOND: u64 = 1_000_000_000;
    let text = match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => fraction(total, 1_000, "µs"),
        1_000_000..SECOND => fraction(total, 1_000_000, "ms"),
        _ => {
            let (hours, minutes) = (total / SECOND / 3600, total / SECOND / 60 % 60);
            let seconds = fraction(total % (60 * SECOND), SECOND, "s");
            match (hours, minutes) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        for (path, expected) in
            [("", "/"), ("/", "/"), ("a", "/a"), ("/a/../b/", "/b"), ("/../x//y/.", "/x/y"), ("//", "/")]
        {
            assert_eq!(clean(path), expected, "{path:?}");
        }
        for (path, expected) in [("", "."), ("a/../b", "b"), ("../a", "../a"), ("a/../..", ".."), ("/c/", "/c")] {
            assert_eq!(clean_relative(path), expected, "{path:?}");
        }
        for (path, expected) in [("", "."), ("/", "/"), ("/a/b/", "b"), ("x", "x")] {
            assert_eq!(base_name(path), expected, "{path:?}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (nanoseconds, expected) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (1_000_000, "1ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (90_500_000_000, "1m30.5s"),
            (7_200_000_000_000, "2h0m0s"),
            (3_661_000_000_000, "1h1m1s"),
            (59_999_999_999, "59.999999999s"),
        ] {
            assert_eq!(duration(nanoseconds), expected);
        }
    }

    #[test]
    fn lists_are_gos() {
        assert_eq!(plain_list(&["a".to_owned(), "b c".to_owned()]), "[a b c]");
        assert_eq!(quoted_list(&["a".to_owned(), "b \"c".to_owned()]), r#"["a" "b \"c"]"#);
        assert_eq!(quoted_list(&[]), "[]");
    }
}
