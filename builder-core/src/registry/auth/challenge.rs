//! `WWW-Authenticate` (RFC 9110, 11.6.1; distribution, auth/token.md).

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from elsewhere.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// Name of the registry there.
        service: Option<String>,
        /// What this request needs.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenge to answer: Bearer before Basic, as every client does.
    pub(in crate::registry) fn choose<'h>(headers: impl Iterator<Item = &'h str>) -> Option<Self> {
        let all: Vec<Self> = headers.flat_map(parse).collect();
        all.iter().find(|challenge| matches!(challenge, Self::Bearer { .. })).or(all.first()).cloned()
    }
}

/// All challenges of one header that we know.
fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    for (scheme, parameters) in split(header) {
        let get = |name: &str| {
            parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            found.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
        }
    }
    found
}

type Parameters = Vec<(String, String)>;

/// Schemes with their parameters. A word that no `=` follows begins a new scheme.
fn split(header: &str) -> Vec<(String, Parameters)> {
    let mut schemes: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            match rest.chars().next() {
                None => return schemes,
                Some(stray) => rest = &rest[stray.len_utf8()..],
            }
            continue;
        }
        match after.trim_start().strip_prefix('=') {
            Some(after) => {
                let (value, after) = value(after.trim_start());
                if let Some((_, parameters)) = schemes.last_mut() {
                    parameters.push((word.to_owned(), value));
                }
                rest = after;
            }
            None => {
                schemes.push((word.to_owned(), Vec::new()));
                rest = after;
            }
        }
    }
}

/// A token or quoted string at the start of `text`, and what follows it.
fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([' ', '\t', ',']).unwrap_or(text.len()));
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            plain => value.push(plain),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[&str], expected: Option<Challenge>) {
        assert_eq!(Challenge::choose(headers.iter().copied()), expected, "{headers:?}");
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) })
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_a_server_sends_breaks_the_reader(header in r#"([A-Za-z]{0,6}|[ ,="\\\t\u{e9}]){0,40}"#) {
            _ = Challenge::choose([header.as_str()].into_iter());
        }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        check(
            &[r#"Bearer realm="https://auth/token",service="reg",scope="repository:a/b:pull,push""#],
            bearer("https://auth/token", Some("reg"), Some("repository:a/b:pull,push")),
        );
        check(&[r#"Basic realm="x""#], Some(Challenge::Basic));
        check(&["basic"], Some(Challenge::Basic));
        check(&[r#"Basic realm="x", Bearer realm="r" "#], bearer("r", None, None));
        check(&["Basic realm=x", "BEARER realm = r , service= s"], bearer("r", Some("s"), None));
        check(&[r#"Bearer realm="a\"b\\c,d""#], bearer(r#"a"b\c,d"#, None, None));
        check(&[r#"Bearer service="no realm""#], None);
        check(&["Negotiate", ""], None);
        check(&[r#"Bearer realm="cut"#], bearer("cut", None, None));
        check(&["=,=,\"", "= =x"], None);
    }
}
