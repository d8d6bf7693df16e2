//! The parser directives `syntax`, `escape` and `check` (checklist P-01 to P-06).
//!
//! They are read twice, as in BuildKit: [`DirectiveReader`] follows the lines and knows `escape`; [`detect`] looks for
//! `syntax` and `check` in the whole text and is more tolerant (a `#!` line is skipped; `syntax` may also stand in `//`
//! comments or in a JSON object).

use super::error::ParseErrorKind;
use super::json;
use super::lines::BYTE_ORDER_MARK;
use super::source::{Span, Spanned};

/// Blanks as regular expressions know them.
const BLANKS: [char; 5] = [' ', '\t', '\n', '\r', '\u{c}'];

/// The directives that exist.
pub(super) const KEYS: [&str; 3] = ["syntax", "escape", "check"];

/// A directive: its key, and its value with the place of the value in the text behind the comment sign.
struct Found<'a> {
    key: &'static str,
    value: &'a str,
    offset: usize,
}

/// Reads `key=value` of one of the [`KEYS`] behind a comment sign.
fn directive(text: &str) -> Option<Found<'_>> {
    let equals = text.find('=')?;
    let key = text[..equals].trim_start().trim_end_matches(BLANKS);
    let key = KEYS.into_iter().find(|known| known.eq_ignore_ascii_case(key))?;
    let behind = &text[equals + 1..];
    // A value needs one character, so of nothing but blanks the last one is it.
    let (last_blank, _) = behind.char_indices().next_back()?;
    let begin = behind.find(|c| !BLANKS.contains(&c)).unwrap_or(last_blank);
    let end = behind.trim_end_matches(BLANKS).len();
    let value = if begin < end { &behind[begin..end] } else { &behind[begin..] };
    Some(Found { key, value, offset: equals + 1 + begin })
}

/// What a comment line is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum DirectiveLine {
    /// An ordinary comment.
    None,
    /// A directive.
    Known,
    /// A directive that is not allowed.
    Wrong(ParseErrorKind),
}

/// Follows the lines from the top until the first that is not a directive.
#[derive(Debug)]
pub(super) struct DirectiveReader {
    seen: Vec<&'static str>,
    escape: char,
    done: bool,
}

impl Default for DirectiveReader {
    fn default() -> Self {
        Self { seen: Vec::new(), escape: '\\', done: false }
    }
}

impl DirectiveReader {
    pub fn escape(&self) -> char {
        self.escape
    }

    /// From here on, look-alikes are comments.
    pub fn end(&mut self) {
        self.done = true;
    }

    /// Takes a line that begins with `#`.
    pub fn line(&mut self, line: &str) -> DirectiveLine {
        if self.done {
            return DirectiveLine::None;
        }
        let Some(found) = line.strip_prefix('#').and_then(directive) else {
            self.done = true;
            return DirectiveLine::None;
        };
        if self.seen.contains(&found.key) {
            return DirectiveLine::Wrong(ParseErrorKind::DirectiveRepeated { key: found.key });
        }
        self.seen.push(found.key);
        if found.key == "escape" {
            match found.value {
                "\\" => self.escape = '\\',
                "`" => self.escape = '`',
                other => return DirectiveLine::Wrong(ParseErrorKind::InvalidEscape { value: other.to_owned() }),
            }
        }
        DirectiveLine::Known
    }
}

/// The values of `syntax` and `check`.
pub(super) struct Detected {
    pub syntax: Option<Spanned<String>>,
    pub check: Option<Spanned<String>>,
}

/// Looks for `syntax` and `check` in the text of a file.
pub(super) fn detect(text: &str) -> Detected {
    let mut start = if text.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    if text[start..].starts_with("#!") {
        start = text[start..].find('\n').map_or(text.len(), |end| start + end + 1);
    }
    let syntax = in_comments(text, start, "#", "syntax")
        .or_else(|| in_comments(text, start, "//", "syntax"))
        .or_else(|| in_json(text, start, "syntax"));
    Detected { syntax, check: in_comments(text, start, "#", "check") }
}

/// Looks among the directives at the head of the text; a repeated one ends them.
fn in_comments(text: &str, start: usize, sign: &str, key: &str) -> Option<Spanned<String>> {
    let mut seen: Vec<&str> = Vec::new();
    let mut line_start = start;
    for line in text[start..].split_inclusive('\n') {
        let behind_sign = line.trim_end_matches('\n').strip_prefix(sign)?;
        let found = directive(behind_sign)?;
        if seen.contains(&found.key) {
            return None;
        }
        if found.key == key {
            let begin = line_start + sign.len() + found.offset;
            return Some(Spanned { node: found.value.to_owned(), span: Span(begin..begin + found.value.len()) });
        }
        seen.push(found.key);
        line_start += line.len();
    }
    None
}

fn in_json(text: &str, start: usize, key: &str) -> Option<Spanned<String>> {
    let (node, range) = json::string_in_object(&text[start..], key)?;
    Some(Spanned { node, span: Span(start + range.start..start + range.end) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, syntax: Option<&str>, check: Option<&str>) {
        let detected = detect(text);
        for (found, expected) in [(detected.syntax, syntax), (detected.check, check)] {
            assert_eq!(found.as_ref().map(|found| found.node.as_str()), expected, "{text:?}");
            if let Some(Spanned { node, span }) = found {
                assert!(text[span.0.clone()].trim_matches('"') == node, "{text:?}: {span:?}");
            }
        }
    }

    #[test]
    fn finds_syntax_and_check() {
        check("# syntax=a/b:1 --x\nFROM x", Some("a/b:1 --x"), None);
        check("#   SyNtAx  =  a/b  \r\n# check=skip=all\n", Some("a/b"), Some("skip=all"));
        check("\u{feff}# syntax=a\n", Some("a"), None);
        check("#!/bin/x\n# syntax=a\n# check=b", Some("a"), Some("b"));
        check("#!/bin/x\n\n# syntax=a\n", None, None);
        check("// syntax=a\n// check=b\n", Some("a"), None);
        check("{\"syntax\": \"a\"}\n", Some("a"), None);
        check("# comment\n# syntax=a", None, None);
        check("# other=x\n# syntax=a", None, None);
        check("\n# syntax=a", None, None);
        check(" # syntax=a", None, None);
        check("# syntax=", None, None);
        check("# escape=`\n# escape=`\n# check=a", None, None);
        check("", None, None);
    }

    #[test]
    fn reader_stops_for_good() {
        let mut reader = DirectiveReader::default();
        assert_eq!(reader.line("#  eScApE = ` "), DirectiveLine::Known);
        assert_eq!(reader.escape(), '`');
        assert_eq!(reader.line("# Check=x"), DirectiveLine::Known);
        assert!(matches!(
            reader.line("# escape=\\"),
            DirectiveLine::Wrong(ParseErrorKind::DirectiveRepeated { key: "escape" })
        ));
        assert_eq!(reader.line("# note"), DirectiveLine::None);
        assert_eq!(reader.line("# syntax=x"), DirectiveLine::None);
    }

    #[test]
    fn escape_takes_two_values() {
        let wrong = |line: &str| DirectiveReader::default().line(line);
        assert_eq!(wrong("# escape=x"), DirectiveLine::Wrong(ParseErrorKind::InvalidEscape { value: "x".to_owned() }));
        assert_eq!(wrong("# escape=  "), DirectiveLine::Wrong(ParseErrorKind::InvalidEscape { value: " ".to_owned() }));
        assert_eq!(wrong("# escape="), DirectiveLine::None);
    }
}
