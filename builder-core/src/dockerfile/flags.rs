//! Second pass: flags and words of a joined line (checklist P-16, P-19, P-20, P-24, P-26).

use std::ops::Range;

use super::error::{CsvProblem, ParseErrorKind};
use crate::hint::suggest;

/// Blanks between words where quotes do not count.
const WORD_BLANKS: [char; 5] = ['\t', '\u{b}', '\u{c}', '\r', ' '];

/// A part of a joined line that knows where it stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub text: &'a str,
    /// Offset in the joined line.
    pub offset: usize,
}

impl<'a> Part<'a> {
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.text.len()
    }

    /// Cuts, by offsets within this part.
    pub fn slice(&self, range: Range<usize>) -> Self {
        Self { text: &self.text[range.clone()], offset: self.offset + range.start }
    }

    pub fn trim(&self) -> Self {
        let start = self.text.len() - self.text.trim_start().len();
        let text = self.text.trim();
        Self { text, offset: self.offset + start }
    }

    /// The first word and what follows the blanks behind it; `None` for the latter if there are no blanks.
    pub fn split_first_word(&self) -> (Self, Option<Self>) {
        let Some(end) = self.text.find(WORD_BLANKS) else { return (*self, None) };
        let rest = self.text[end..].trim_start_matches(WORD_BLANKS);
        (self.slice(0..end), Some(self.slice(self.text.len() - rest.len()..self.text.len())))
    }

    /// Words between blanks; quotes mean nothing.
    pub fn plain_words(&self) -> Vec<Part<'a>> {
        let mut words = Vec::new();
        let mut rest = Some(*self);
        while let Some(part) = rest.filter(|part| !part.text.is_empty()) {
            let (word, behind) = part.split_first_word();
            words.push(word);
            rest = behind;
        }
        words
    }

    /// Words between blanks, where quotes group and the escape protects; both stay in the words.
    pub fn quoted_words(&self, escape: char) -> Vec<Part<'a>> {
        let mut words = Vec::new();
        let mut characters = self.text.char_indices();
        'words: while let Some((start, first)) = characters.next() {
            if first.is_whitespace() {
                continue;
            }
            let mut quote = None;
            let mut current = Some((start, first));
            while let Some((index, character)) = current {
                match quote {
                    None if character.is_whitespace() => {
                        words.push(self.slice(start..index));
                        continue 'words;
                    }
                    None if character == '\'' || character == '"' => quote = Some(character),
                    Some(open) if character == open => quote = None,
                    // Nothing escapes within single quotes.
                    None | Some('"') if character == escape && characters.next().is_none() => {
                        // An escape at the very end is dropped.
                        if index > start {
                            words.push(self.slice(start..index));
                        }
                        return words;
                    }
                    _ => {}
                }
                current = characters.next();
            }
            words.push(self.slice(start..self.text.len()));
        }
        words
    }
}

/// A leading `--word`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawFlag {
    /// Without quotes and escapes.
    pub text: String,
    /// Where it stands in the joined line.
    pub range: Range<usize>,
    /// Where its value stands: behind the first `=`.
    value_range: Range<usize>,
}

/// Takes the flags from the beginning of an instruction's rest. Within flags a backslash escapes, whatever the escape
/// directive says, as in BuildKit.
pub(super) fn take_flags(rest: Part<'_>) -> (Vec<RawFlag>, Part<'_>) {
    let mut flags = Vec::new();
    let mut position = 0;
    loop {
        position += rest.text[position..].len() - rest.text[position..].trim_start().len();
        let begin = position;
        if !rest.text[begin..].starts_with("--") {
            return (flags, rest.slice(begin..rest.text.len()).trim());
        }
        let mut text = String::new();
        let mut value_start = None;
        let mut quote = None;
        let mut end = rest.text.len();
        let mut characters = rest.text[begin..].char_indices();
        while let Some((index, character)) = characters.next() {
            match quote {
                None if character.is_whitespace() => {
                    end = begin + index;
                    break;
                }
                None if character == '\'' || character == '"' => quote = Some(character),
                Some(open) if character == open => quote = None,
                _ if character == '\\' => text.extend(characters.next().map(|(_, escaped)| escaped)),
                _ => {
                    if character == '=' && value_start.is_none() {
                        value_start = Some(begin + index + 1);
                    }
                    text.push(character);
                }
            }
        }
        position = end;
        if text == "--" {
            return (flags, rest.slice(position..rest.text.len()).trim());
        }
        let at = |from: usize| rest.offset + from..rest.offset + end;
        flags.push(RawFlag { text, range: at(begin), value_range: at(value_start.unwrap_or(end)) });
    }
}

/// A fault in a joined line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    pub kind: ParseErrorKind,
    /// Where in the joined line.
    pub range: Range<usize>,
    pub suggestion: Option<String>,
}

impl Fault {
    pub fn new(kind: ParseErrorKind, range: Range<usize>) -> Self {
        Self { kind, range, suggestion: None }
    }
}

/// What values a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlagType {
    /// Nothing, `true` or `false`.
    Boolean,
    /// One value.
    Text,
    /// A value each time it is given.
    Texts,
}

/// The flags of one instruction, checked against what it knows.
#[derive(Debug, Default)]
pub(super) struct Flags {
    values: Vec<(&'static str, String, Range<usize>)>,
}

impl Flags {
    /// Checks the flags of an instruction.
    pub fn check(raw: &[RawFlag], known: &[(&'static str, FlagType)]) -> Result<Self, Fault> {
        let mut flags = Self::default();
        for RawFlag { text, range, value_range } in raw {
            let (flag, value) = match text.split_once('=') {
                Some((flag, value)) => (flag, Some(value)),
                None => (text.as_str(), None),
            };
            let fault = |kind| Fault::new(kind, range.clone());
            let owned = || flag.to_owned();
            let name = flag.strip_prefix("--").unwrap_or(flag);
            let Some((known_name, flag_type)) = known.iter().find(|(known, _)| *known == name) else {
                let suggestion = suggest::nearest(name, known.iter().map(|(known, _)| *known)).map(str::to_owned);
                return Err(Fault { suggestion, ..fault(ParseErrorKind::UnknownFlag { flag: owned() }) });
            };
            if *flag_type != FlagType::Texts && flags.get(known_name).is_some() {
                return Err(fault(ParseErrorKind::FlagRepeated { flag: owned() }));
            }
            let value = match (flag_type, value) {
                (FlagType::Boolean, None) => "true".to_owned(),
                (FlagType::Boolean, Some("")) | (FlagType::Text | FlagType::Texts, None) => {
                    return Err(fault(ParseErrorKind::FlagWithoutValue { flag: owned() }));
                }
                (FlagType::Boolean, Some(value)) => match value.to_lowercase() {
                    lower if lower == "true" || lower == "false" => lower,
                    _ => {
                        let value = value.to_owned();
                        return Err(fault(ParseErrorKind::FlagNotBoolean { flag: owned(), value }));
                    }
                },
                (FlagType::Text | FlagType::Texts, Some(value)) => value.to_owned(),
            };
            flags.values.push((known_name, value, value_range.clone()));
        }
        Ok(flags)
    }

    /// The value of a flag, if it was given.
    pub fn get(&self, name: &str) -> Option<(&str, &Range<usize>)> {
        self.all(name).next()
    }

    /// All values of a flag.
    pub fn all(&self, name: &str) -> impl Iterator<Item = (&str, &Range<usize>)> + use<'_> {
        // The name is one of the known ones if there are values, so it can be borrowed from them.
        let name = self.values.iter().map(|(known, ..)| *known).find(|known| *known == name);
        self.values
            .iter()
            .filter(move |(known, ..)| Some(*known) == name)
            .map(|(_, value, range)| (value.as_str(), range))
    }

    /// The value of a boolean flag, if it was given.
    pub fn boolean(&self, name: &str) -> Option<bool> {
        self.get(name).map(|(value, _)| value == "true")
    }
}

/// Splits a line of comma-separated values, such as that of `--mount`, as Go's `encoding/csv` does.
///
/// # Errors
/// When there is nothing, or a quote stands where none may.
pub fn csv_fields(line: &str) -> Result<Vec<String>, CsvProblem> {
    if line.is_empty() {
        return Err(CsvProblem::Empty);
    }
    let mut fields = Vec::new();
    let mut position = 0;
    loop {
        let rest = &line[position..];
        if !rest.starts_with('"') {
            let length = rest.find(',').unwrap_or(rest.len());
            if let Some(quote) = rest[..length].find('"') {
                return Err(CsvProblem::BareQuote { column: position + quote + 1 });
            }
            fields.push(rest[..length].to_owned());
            position += length;
        } else {
            let mut field = String::new();
            position += 1;
            loop {
                let Some(length) = line[position..].find('"') else {
                    return Err(CsvProblem::Quote { column: line.len() + 1 });
                };
                field.push_str(&line[position..position + length]);
                position += length + 1;
                if line[position..].starts_with('"') {
                    field.push('"');
                    position += 1;
                } else {
                    break;
                }
            }
            if position < line.len() && !line[position..].starts_with(',') {
                return Err(CsvProblem::Quote { column: position });
            }
            fields.push(field);
        }
        if position == line.len() {
            return Ok(fields);
        }
        position += 1; // the comma
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str) -> Part<'_> {
        Part { text, offset: 0 }
    }

    #[test]
    fn plain_words_ignore_quotes() {
        let check = |text, expected: &[&str]| {
            assert_eq!(part(text).plain_words().iter().map(|word| word.text).collect::<Vec<_>>(), expected, "{text:?}");
        };
        check("a  b\tc\u{b}\u{c}\rd", &["a", "b", "c", "d"]);
        check("\"a b\"", &["\"a", "b\""]);
        check("", &[]);
        check("a\u{a0}b", &["a\u{a0}b"]);
    }

    #[test]
    fn quoted_words_keep_quotes() {
        let check = |text, expected: &[&str]| {
            assert_eq!(
                part(text).quoted_words('\\').iter().map(|word| word.text).collect::<Vec<_>>(),
                expected,
                "{text:?}"
            );
        };
        check("A=\"b c\" D='e f'  G=h", &["A=\"b c\"", "D='e f'", "G=h"]);
        check("A=b\\ c\\  d", &["A=b\\ c\\ ", "d"]);
        check("A=\"b\\\" c\" d", &["A=\"b\\\" c\"", "d"]);
        check("A='b\\' c", &["A='b\\'", "c"]);
        check("A=\"b c", &["A=\"b c"]);
        check("A=b\\", &["A=b"]);
        check("A=\"b\\", &["A=\"b"]);
        check("\\", &[]);
        check("a \\", &["a"]);
        check("  ", &[]);
    }

    #[test]
    fn flags_lead() {
        let check = |text, expected: &[&str], rest: &str| {
            let (flags, behind) = take_flags(part(text));
            assert_eq!(flags.iter().map(|flag| flag.text.as_str()).collect::<Vec<_>>(), expected, "{text:?}");
            assert_eq!(behind.text, rest, "{text:?}");
            assert_eq!(&text[behind.range()], rest, "{text:?}");
        };
        check("--a --b=c d --e", &["--a", "--b=c"], "d --e");
        check("-- --a", &[], "--a");
        check("--", &[], "");
        check("--a", &["--a"], "");
        check("--a=\"b c\" d", &["--a=b c"], "d");
        check("--ch\"own=5:6\" d", &["--chown=5:6"], "d");
        check("--a=b\\ c d", &["--a=b c"], "d");
        check("--a=\"b\\\"c\" d", &["--a=b\"c"], "d");
        check("--a=\"b c", &["--a=b c"], "");
        check("\"--a\" b", &[], "\"--a\" b");
        check("-a b ", &[], "-a b");
        check("--ä=ö x", &["--ä=ö"], "x");
    }

    #[test]
    fn flags_are_checked() {
        let known = [("link", FlagType::Boolean), ("chown", FlagType::Text), ("exclude", FlagType::Texts)];
        let check = |text, expected: &str| {
            let (flags, _) = take_flags(part(text));
            let fault = Flags::check(&flags, &known).expect_err(text);
            let suggestion = fault.suggestion.map(|name| format!(" ({name}?)")).unwrap_or_default();
            assert_eq!(format!("{}{suggestion}", fault.kind), expected, "{text:?}");
        };
        check("--chwn=1", "unknown flag: --chwn (chown?)");
        check("--bogus=1", "unknown flag: --bogus");
        check("--Link", "unknown flag: --Link (link?)");
        check("--chown=1 --chown=2", "duplicate flag specified: --chown");
        check("--chown", "missing a value on flag: --chown");
        check("--link=", "missing a value on flag: --link");
        check("--link=yes", "expecting boolean value for flag --link, not: yes");
        let (flags, _) = take_flags(part("--link=TRUE --exclude=a --chown= --exclude=b"));
        let flags = Flags::check(&flags, &known).expect("because all are known");
        assert_eq!(flags.boolean("link"), Some(true));
        assert_eq!(flags.get("chown").map(|(value, _)| value), Some(""));
        assert_eq!(flags.all("exclude").map(|(value, _)| value).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn csv() {
        assert_eq!(csv_fields("a=b,,\"c,\"\"d\""), Ok(vec!["a=b".to_owned(), String::new(), "c,\"d".to_owned()]));
        assert_eq!(csv_fields(""), Err(CsvProblem::Empty));
        assert_eq!(csv_fields(","), Ok(vec![String::new(); 2]));
        assert_eq!(csv_fields("a,"), Ok(vec!["a".to_owned(), String::new()]));
        assert_eq!(csv_fields("a\"b"), Err(CsvProblem::BareQuote { column: 2 }));
        assert_eq!(csv_fields("\"a"), Err(CsvProblem::Quote { column: 3 }));
        assert_eq!(csv_fields("\"a\"b"), Err(CsvProblem::Quote { column: 3 }));
    }
}
