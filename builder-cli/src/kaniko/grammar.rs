//! Kaniko's argument grammar, which is that of Go's pflag and cobra: what each token means, and the words of each refusal.
//!
//! Values stay texts that were checked once, here; [`super::values`] reads them. A flag that is given again replaces the value
//! of a single-valued flag and adds to a list.

use std::collections::BTreeMap;

use builder_core::hint::go_quote;

use super::values;

/// One flag: the parser, `--help` and `docs/kaniko.md` come from here.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    /// Without dashes.
    pub name: &'static str,
    /// One letter.
    pub short: Option<char>,
    /// Other spellings that Kaniko has, or had.
    pub aliases: &'static [Alias],
    /// Variables that speak for it, with how.
    pub env: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// What it is without being given, as text.
    pub default: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
    /// What it does here compared with Kaniko.
    pub effect: Effect,
    /// Left out of `--help`.
    pub hidden: bool,
}

/// Another spelling of a flag.
#[derive(Debug, Clone, Copy)]
pub struct Alias {
    /// Without dashes.
    pub name: &'static str,
    /// Whether the log says which spelling to use now.
    pub warns: bool,
}

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A boolean: alone it is true, a value needs `=`.
    Bool,
    /// A whole number.
    Number,
    /// Go's durations.
    Duration,
    /// Texts; each occurrence is one.
    List,
    /// Texts; each occurrence is one or more, separated by commas.
    Commas,
    /// `key=value`; the last of a key counts.
    Pairs,
    /// `key=value[;key=value…]`; the values of a key add up.
    MultiMap,
    /// One of `--git`'s `key=value`.
    Git,
}

/// What a flag does here, compared with Kaniko.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The same.
    Same,
    /// The same, and more or more reliably: how.
    Better(&'static str),
    /// Accepted without effect: why.
    Meaningless(&'static str),
    /// Kaniko does not have it: why we do.
    Ours(&'static str),
}

/// A command line that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// No such flag.
    #[error("unknown flag: --{name}{}", suggested(suggestion))]
    UnknownFlag {
        /// As given, without dashes.
        name: String,
        /// A flag that may have been meant.
        suggestion: Option<&'static str>,
    },
    /// No such letter.
    #[error("unknown shorthand flag: {letter:?} in -{group}")]
    UnknownLetter {
        /// The letter.
        letter: char,
        /// The letters it stands in.
        group: String,
    },
    /// The value is missing.
    #[error("flag needs an argument: {flag}")]
    NoValue {
        /// `--name`, or `'n' in -n`.
        flag: String,
    },
    /// A token such as `--=x`.
    #[error("bad flag syntax: {token}")]
    BadSyntax {
        /// As given.
        token: String,
    },
    /// A value of the wrong form.
    #[error("invalid argument {} for {} flag: {reason}", go_quote(value), go_quote(flag))]
    BadValue {
        /// As given.
        value: String,
        /// `-n, --name` or `--name`.
        flag: String,
        /// What is wrong.
        reason: String,
    },
}

fn suggested(suggestion: &Option<&'static str>) -> String {
    suggestion.map_or_else(String::new, |name| format!(" (did you mean --{name}?)"))
}

/// What a command line says.
#[derive(Debug, Clone, Default)]
pub struct Parsed {
    values: BTreeMap<&'static str, Vec<String>>,
    /// What is no flag, in order; empty texts are left out, since wrappers pass them.
    pub positionals: Vec<String>,
    /// Old spellings that were used, with the present one.
    pub deprecated: Vec<(&'static str, &'static str)>,
    /// Whether help was asked for.
    pub help: bool,
}

/// Reads `tokens` by `table`.
///
/// # Errors
/// [`GrammarError`], for the first token that is wrong.
pub fn parse(table: &[&'static Definition], tokens: &[String]) -> Result<Parsed, GrammarError> {
    let mut parsed = Parsed::default();
    let mut rest = tokens.iter();
    while let Some(token) = rest.next() {
        if token == "--" {
            parsed.positionals.extend(rest.by_ref().filter(|token| !token.is_empty()).cloned());
        } else if let Some(long) = token.strip_prefix("--") {
            long_flag(table, token, long, &mut rest, &mut parsed)?;
        } else if let Some(group) = token.strip_prefix('-').filter(|group| !group.is_empty()) {
            short_flags(table, group, &mut rest, &mut parsed)?;
        } else if !token.is_empty() {
            parsed.positionals.push(token.clone());
        }
        if parsed.help {
            break;
        }
    }
    Ok(parsed)
}

/// The first word that is no flag and no flag's value, and the tokens without it.
pub fn subcommand<'t>(table: &[&'static Definition], tokens: &'t [String]) -> Option<(&'t str, Vec<String>)> {
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        let takes_next = |definition: Option<&'static Definition>| definition.is_some_and(|d| d.kind != Kind::Bool);
        let skip = match token.strip_prefix("--") {
            Some("") => return None,
            Some(long) => usize::from(!long.contains('=') && takes_next(find(table, long))),
            None => match token.strip_prefix('-').map(|group| group.chars().collect::<Vec<_>>()) {
                // `-f x`, but neither `-fx` nor `-f=x`.
                Some(group) if group.len() == 1 => {
                    let short = table.iter().find(|definition| definition.short == group.first().copied());
                    usize::from(takes_next(short.copied()))
                }
                Some(_) => 0,
                None if token.is_empty() => 0,
                None => {
                    let rest = tokens.iter().enumerate().filter(|(other, _)| *other != index);
                    return Some((token, rest.map(|(_, token)| token.clone()).collect()));
                }
            },
        };
        index += 1 + skip;
    }
    None
}

fn long_flag<'t>(
    table: &[&'static Definition],
    token: &str,
    long: &str,
    rest: &mut impl Iterator<Item = &'t String>,
    parsed: &mut Parsed,
) -> Result<(), GrammarError> {
    if long.starts_with('-') || long.starts_with('=') {
        return Err(GrammarError::BadSyntax { token: token.to_owned() });
    }
    let (name, inline) = match long.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (long, None),
    };
    if name == "help" {
        parsed.help = true;
        return Ok(());
    }
    let definition = find(table, name)
        .ok_or_else(|| GrammarError::UnknownFlag { name: name.to_owned(), suggestion: nearest(table, name) })?;
    if let Some(alias) = definition.aliases.iter().find(|alias| alias.name == name && alias.warns) {
        parsed.deprecated.push((alias.name, definition.name));
    }
    let value = match inline {
        Some(value) => value,
        None if definition.kind == Kind::Bool => "true".to_owned(),
        None => match rest.next() {
            Some(value) => value.clone(),
            None => return Err(GrammarError::NoValue { flag: format!("--{name}") }),
        },
    };
    parsed.set(definition, value)
}

fn short_flags<'t>(
    table: &[&'static Definition],
    group: &str,
    rest: &mut impl Iterator<Item = &'t String>,
    parsed: &mut Parsed,
) -> Result<(), GrammarError> {
    let mut letters = group.chars();
    while let Some(letter) = letters.next() {
        if letter == 'h' && !table.iter().any(|definition| definition.short == Some('h')) {
            parsed.help = true;
            return Ok(());
        }
        let definition = *table
            .iter()
            .find(|definition| definition.short == Some(letter))
            .ok_or_else(|| GrammarError::UnknownLetter { letter, group: group.to_owned() })?;
        let left = letters.as_str();
        let value = if let Some(value) = left.strip_prefix('=') {
            value.to_owned()
        } else if definition.kind == Kind::Bool {
            parsed.set(definition, "true".to_owned())?;
            continue;
        } else if left.is_empty() {
            match rest.next() {
                Some(value) => value.clone(),
                None => return Err(GrammarError::NoValue { flag: format!("{letter:?} in -{group}") }),
            }
        } else {
            left.to_owned()
        };
        return parsed.set(definition, value);
    }
    Ok(())
}

fn find(table: &[&'static Definition], name: &str) -> Option<&'static Definition> {
    table
        .iter()
        .find(|definition| definition.name == name || definition.aliases.iter().any(|alias| alias.name == name))
        .copied()
}

/// The flag whose name needs the fewest changes to become `name`, if those are few.
fn nearest(table: &[&'static Definition], name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase().replace('_', "-");
    let candidates = table.iter().filter(|definition| !definition.hidden);
    let (distance, found) = candidates
        .map(|definition| (distance(&lower, definition.name), definition.name))
        .min_by_key(|found| found.0)?;
    let contained = || {
        let mut holding = table.iter().filter(|definition| !definition.hidden && definition.name.contains(&*lower));
        holding.next().filter(|_| lower.len() > 3).map(|definition| definition.name)
    };
    if distance <= 1 + name.len() / 4 { Some(found) } else { contained() }
}

/// Insertions, removals and replacements (Levenshtein) that lead from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

impl Definition {
    /// As pflag names it in errors.
    fn shown(&self) -> String {
        match self.short {
            Some(short) => format!("-{short}, --{}", self.name),
            None => format!("--{}", self.name),
        }
    }

    fn is_single(&self) -> bool {
        matches!(self.kind, Kind::Text | Kind::Choice(_) | Kind::Bool | Kind::Number | Kind::Duration)
    }
}

impl Parsed {
    fn set(&mut self, definition: &'static Definition, value: String) -> Result<(), GrammarError> {
        values::check(definition.kind, &value).map_err(|reason| GrammarError::BadValue {
            value: value.clone(),
            flag: definition.shown(),
            reason,
        })?;
        let values = self.values.entry(definition.name).or_default();
        if definition.is_single() {
            values.clear();
        }
        values.push(value);
        Ok(())
    }

    /// Whether the flag was given at all.
    pub fn given(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The value of a flag, or its default.
    pub fn text<'a>(&'a self, definition: &'a Definition) -> &'a str {
        match self.values.get(definition.name).and_then(|values| values.last()) {
            Some(value) => value,
            None => definition.default,
        }
    }

    /// The value of a boolean flag.
    pub fn is(&self, definition: &Definition) -> bool {
        values::boolean(self.text(definition)).unwrap_or(false)
    }

    /// The value of a number.
    pub fn number(&self, definition: &Definition) -> i64 {
        self.text(definition).parse().unwrap_or(0)
    }

    /// All values, as given.
    pub fn list(&self, definition: &Definition) -> &[String] {
        self.values.get(definition.name).map(Vec::as_slice).unwrap_or_default()
    }

    /// Values of a flag whose occurrences may hold several, separated by commas.
    pub fn commas(&self, definition: &Definition) -> Vec<String> {
        let all = self.list(definition).iter().flat_map(|text| text.split(','));
        all.filter(|text| !text.is_empty()).map(str::to_owned).collect()
    }

    /// `key=value`, the last of each key.
    pub fn pairs(&self, definition: &Definition) -> BTreeMap<String, String> {
        let pairs = self.list(definition).iter().filter_map(|text| text.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn definition(name: &'static str, short: Option<char>, kind: Kind) -> Definition {
        Definition {
            name,
            short,
            aliases: &[],
            env: "",
            kind,
            default: "",
            help: "",
            effect: Effect::Same,
            hidden: false,
        }
    }

    static DOCKERFILE: Definition = definition("dockerfile", Some('f'), Kind::Text);
    static DESTINATION: Definition = definition("destination", Some('d'), Kind::List);
    static CACHE: Definition = definition("cache", None, Kind::Bool);
    static FORCE: Definition = definition("force", Some('F'), Kind::Bool);
    static RETRY: Definition = definition("push-retry", None, Kind::Number);
    static TTL: Definition = definition("cache-ttl", None, Kind::Duration);
    static FORMAT: Definition = definition("compression", None, Kind::Choice(&["gzip", "zstd"]));
    static TAR: Definition =
        Definition { aliases: &[Alias { name: "tarPath", warns: true }], ..definition("tar-path", None, Kind::Text) };
    static TABLE: [&Definition; 8] = [&DOCKERFILE, &DESTINATION, &CACHE, &FORCE, &RETRY, &TTL, &FORMAT, &TAR];

    fn read(tokens: &[&str]) -> Result<Parsed, String> {
        let tokens: Vec<String> = tokens.iter().map(|token| (*token).to_owned()).collect();
        parse(&TABLE, &tokens).map_err(|error| error.to_string())
    }

    #[test]
    fn values_come_in_all_forms() {
        for tokens in [
            &["--dockerfile", "a"][..],
            &["--dockerfile=a"],
            &["-f", "a"],
            &["-fa"],
            &["-f=a"],
            &["-F", "--dockerfile=b", "-fa"],
            &["-Ffa"],
            &["-Ff", "a"],
        ] {
            assert_eq!(read(tokens).expect("a command line").text(&DOCKERFILE), "a", "{tokens:?}");
        }
    }

    #[test]
    fn empty_values_are_values() {
        for tokens in [&["--dockerfile", ""][..], &["--dockerfile="], &["-f", ""], &["-f="]] {
            let parsed = read(tokens).expect("a command line");
            assert!(parsed.given("dockerfile") && parsed.text(&DOCKERFILE).is_empty(), "{tokens:?}");
        }
    }

    #[test]
    fn booleans_take_values_only_with_an_equals_sign() {
        for (tokens, expected, positionals) in [
            (&["--cache"][..], true, &[][..]),
            (&["--cache=true"], true, &[]),
            (&["--cache=F"], false, &[]),
            (&["--cache", "--cache=0"], false, &[]),
            (&["--cache", "true"], true, &["true"]),
            (&["", "--cache", ""], true, &[]),
            (&["--", "--cache", "-"], false, &["--cache", "-"]),
        ] {
            let parsed = read(tokens).expect("a command line");
            assert_eq!(parsed.is(&CACHE), expected, "{tokens:?}");
            assert_eq!(parsed.positionals, positionals, "{tokens:?}");
        }
    }

    #[test]
    fn lists_take_each_occurrence_whole() {
        let parsed = read(&["-d", "a,b", "--destination=c", "-dd"]).expect("a command line");
        assert_eq!(parsed.list(&DESTINATION), ["a,b", "c", "d"]);
    }

    #[test]
    fn old_spellings_are_noted() {
        let parsed = read(&["--tarPath", "x"]).expect("a command line");
        assert_eq!((parsed.text(&TAR), &parsed.deprecated[..]), ("x", &[("tarPath", "tar-path")][..]));
    }

    #[test]
    fn refusals_are_worded_as_pflag_words_them() {
        for (tokens, expected) in [
            (&["--destinaton=x"][..], "unknown flag: --destinaton (did you mean --destination?)"),
            (&["--qqqqqqqqq"], "unknown flag: --qqqqqqqqq"),
            (&["--retry"], "unknown flag: --retry (did you mean --push-retry?)"),
            (&["-x"], "unknown shorthand flag: 'x' in -x"),
            (&["-Fx"], "unknown shorthand flag: 'x' in -Fx"),
            (&["--dockerfile"], "flag needs an argument: --dockerfile"),
            (&["-f"], "flag needs an argument: 'f' in -f"),
            (&["--=x"], "bad flag syntax: --=x"),
            (&["---x"], "bad flag syntax: ---x"),
            (
                &["--cache=maybe"],
                r#"invalid argument "maybe" for "--cache" flag: strconv.ParseBool: parsing "maybe": invalid syntax"#,
            ),
            (
                &["--push-retry", "x"],
                r#"invalid argument "x" for "--push-retry" flag: strconv.ParseInt: parsing "x": invalid syntax"#,
            ),
            (
                &["--cache-ttl", "14d"],
                r#"invalid argument "14d" for "--cache-ttl" flag: time: unknown unit "d" in duration "14d""#,
            ),
            (&["--compression=xz"], r#"invalid argument "xz" for "--compression" flag: it is one of gzip, zstd"#),
        ] {
            assert_eq!(read(tokens).err().as_deref(), Some(expected), "{tokens:?}");
        }
    }

    #[test]
    fn subcommands_stand_before_or_behind_flags() {
        let found = |tokens: &[&str]| {
            let tokens: Vec<String> = tokens.iter().map(|token| (*token).to_owned()).collect();
            subcommand(&TABLE, &tokens).map(|(word, rest)| (word.to_owned(), rest.join(" ")))
        };
        let some = |word: &str, rest: &str| Some((word.to_owned(), rest.to_owned()));
        for (tokens, expected) in [
            (&["push", "a", "-d", "b"][..], some("push", "a -d b")),
            (&["--cache", "push", "a"], some("push", "--cache a")),
            (&["-f", "push", "login"], some("login", "-f push")),
            (&["-fx", "login"], some("login", "-fx")),
            (&["--dockerfile", "push"], None),
            (&["--dockerfile=push", "--unknown", "x"], some("x", "--dockerfile=push --unknown")),
            (&["", "--", "push"], None),
        ] {
            assert_eq!(found(tokens), expected, "{tokens:?}");
        }
    }

    #[test]
    fn help_ends_the_reading() {
        for tokens in [&["--help"][..], &["-h"], &["-Fh", "--nonsense"]] {
            assert!(read(tokens).expect("a command line").help, "{tokens:?}");
        }
    }
}
