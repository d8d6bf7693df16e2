//! The JSON arrays of the exec forms (checklist P-22).
//!
//! Read by hand, and without recursion: what counts as JSON must be exactly what Go's `encoding/json` takes (lone
//! surrogates become U+FFFD, nesting up to 10,000), and each element keeps its place in the text.

use std::ops::Range;

/// Nesting that Go's decoder takes.
const MAX_DEPTH: usize = 10_000;

/// A text and the place of its literal.
type Literal = (String, Range<usize>);

/// What the text of an instruction is, seen as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JsonArray {
    /// Not a JSON array: shell or word form.
    No,
    /// An array with other elements than texts; the place of the first of them.
    NotStrings(Range<usize>),
    /// The texts and the places of their literals.
    Strings(Vec<Literal>),
}

/// Reads `text`, which may have blanks around the array and nothing else.
pub(super) fn array(text: &str) -> JsonArray {
    let start = text.len() - text.trim_start().len();
    if !text[start..].starts_with('[') {
        return JsonArray::No;
    }
    let mut reader = Reader { bytes: text.as_bytes(), text, position: start };
    match reader.array() {
        Some(Elements { other: Some(range), .. }) => JsonArray::NotStrings(range),
        Some(Elements { strings, other: None }) => JsonArray::Strings(strings),
        None => JsonArray::No,
    }
}

/// The value of `key` in a JSON object, if it is a text; for `# syntax=` in JSON (checklist P-06).
pub(super) fn string_in_object(text: &str, key: &str) -> Option<Literal> {
    let mut reader = Reader { bytes: text.as_bytes(), text, position: 0 };
    reader.skip_blanks();
    if reader.peek() != Some(b'{') {
        return None;
    }
    let object = reader.document()?;
    // Of repeated keys the last one counts.
    object.members.into_iter().rev().find(|(name, _)| name == key).and_then(|(_, value)| value)
}

/// The elements of the outermost array.
struct Elements {
    strings: Vec<Literal>,
    other: Option<Range<usize>>,
}

/// The members of the outermost object; `None` for values that are not texts.
#[derive(Default)]
struct Document {
    strings: Vec<Literal>,
    other: Option<Range<usize>>,
    members: Vec<(String, Option<Literal>)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Container {
    Array,
    Object,
}

#[derive(Clone, Copy, PartialEq)]
enum Expect {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    CommaOrEnd,
}

struct Reader<'a> {
    bytes: &'a [u8],
    text: &'a str,
    position: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.position).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        if self.peek() == Some(byte) {
            self.position += 1;
            return Some(());
        }
        None
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.position += 1;
        }
    }

    fn array(&mut self) -> Option<Elements> {
        let Document { strings, other, .. } = self.document()?;
        Some(Elements { strings, other })
    }

    /// Reads one array or object and the blanks behind it, up to the end of the text.
    fn document(&mut self) -> Option<Document> {
        let mut document = Document::default();
        let mut open: Vec<Container> = Vec::new();
        let mut expect = Expect::Value;
        loop {
            self.skip_blanks();
            let begin = self.position;
            let byte = self.peek()?;
            match (expect, byte) {
                (Expect::ValueOrEnd | Expect::CommaOrEnd, b']') if open.last() == Some(&Container::Array) => {
                    self.position += 1;
                    open.pop();
                    expect = Expect::CommaOrEnd;
                }
                (Expect::KeyOrEnd | Expect::CommaOrEnd, b'}') if open.last() == Some(&Container::Object) => {
                    self.position += 1;
                    open.pop();
                    expect = Expect::CommaOrEnd;
                }
                (Expect::CommaOrEnd, b',') => {
                    self.position += 1;
                    expect = if open.last()? == &Container::Array { Expect::Value } else { Expect::Key };
                }
                (Expect::Key | Expect::KeyOrEnd, b'"') => {
                    let key = self.string()?;
                    self.skip_blanks();
                    self.take(b':')?;
                    if open.len() == 1 {
                        document.members.push((key, None));
                    }
                    expect = Expect::Value;
                }
                (Expect::Value | Expect::ValueOrEnd, b'[' | b'{') => {
                    self.position += 1;
                    if open.len() == MAX_DEPTH {
                        return None;
                    }
                    if open.len() == 1 {
                        document.other.get_or_insert(begin..begin + 1);
                    }
                    open.push(if byte == b'[' { Container::Array } else { Container::Object });
                    expect = if byte == b'[' { Expect::ValueOrEnd } else { Expect::KeyOrEnd };
                }
                (Expect::Value | Expect::ValueOrEnd, b'"') => {
                    let string = self.string()?;
                    if open.len() == 1 {
                        let place = begin..self.position;
                        match document.members.last_mut() {
                            Some((_, value)) => *value = Some((string, place)),
                            None => document.strings.push((string, place)),
                        }
                    }
                    expect = Expect::CommaOrEnd;
                }
                (Expect::Value | Expect::ValueOrEnd, _) => {
                    self.literal()?;
                    if open.len() == 1 {
                        document.other.get_or_insert(begin..self.position);
                    }
                    expect = Expect::CommaOrEnd;
                }
                _ => return None,
            }
            if open.is_empty() {
                self.skip_blanks();
                return (self.position == self.bytes.len()).then_some(document);
            }
        }
    }

    /// `true`, `false`, `null` or a number that a float can hold.
    fn literal(&mut self) -> Option<()> {
        for word in ["true", "false", "null"] {
            if self.text[self.position..].starts_with(word) {
                self.position += word.len();
                return Some(());
            }
        }
        let begin = self.position;
        let _ = self.take(b'-');
        if self.take(b'0').is_none() {
            self.digits()?;
        }
        if self.take(b'.').is_some() {
            self.digits()?;
        }
        if self.take(b'e').or_else(|| self.take(b'E')).is_some() {
            let _ = self.take(b'+').or_else(|| self.take(b'-'));
            self.digits()?;
        }
        let number: f64 = self.text[begin..self.position].parse().ok()?;
        number.is_finite().then_some(())
    }

    /// One digit or more.
    fn digits(&mut self) -> Option<()> {
        let begin = self.position;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.position += 1;
        }
        (self.position > begin).then_some(())
    }

    /// A text in quotes, decoded.
    fn string(&mut self) -> Option<String> {
        self.take(b'"')?;
        let mut decoded = String::new();
        loop {
            let plain = self.bytes[self.position..].iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f))?;
            decoded.push_str(&self.text[self.position..self.position + plain]);
            self.position += plain;
            if self.take(b'"').is_some() {
                return Some(decoded);
            }
            self.take(b'\\')?; // else a raw control character
            let escaped = self.peek()?;
            self.position += 1;
            decoded.push(match escaped {
                b'"' | b'\\' | b'/' => char::from(escaped),
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                b'u' => self.unicode_escape()?,
                _ => return None,
            });
        }
    }

    /// Behind `\u`: four digits, and the second half of a surrogate pair if there is one.
    fn unicode_escape(&mut self) -> Option<char> {
        let first = self.four_digits()?;
        if let Some(character) = char::from_u32(first) {
            return Some(character);
        }
        let behind_first = self.position;
        if (0xd800..0xdc00).contains(&first) && self.take(b'\\').is_some() && self.take(b'u').is_some() {
            match self.four_digits() {
                Some(second @ 0xdc00..0xe000) => {
                    return char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00));
                }
                _ => self.position = behind_first, // something else, which is read for itself
            }
        } else {
            self.position = behind_first;
        }
        Some(char::REPLACEMENT_CHARACTER)
    }

    fn four_digits(&mut self) -> Option<u32> {
        let digits = self.bytes.get(self.position..self.position + 4)?;
        let mut value = 0;
        for digit in digits {
            value = value * 16 + char::from(*digit).to_digit(16)?;
        }
        self.position += 4;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, strings: &[&str]) {
        match array(text) {
            JsonArray::Strings(found) => {
                assert_eq!(found.iter().map(|(string, _)| string.as_str()).collect::<Vec<_>>(), strings, "{text}");
                for (_, range) in found {
                    let literal = &text[range];
                    assert!(literal.starts_with('"') && literal.ends_with('"'), "{literal}");
                }
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn reads_arrays_of_strings() {
        check("[]", &[]);
        check("  [ ] ", &[]);
        check(r#"["a"]"#, &["a"]);
        check("[ \"a\" ,\t\"b c\"\n]", &["a", "b c"]);
        check(r#"["\"\\\/\b\f\n\r\t"]"#, &["\"\\/\u{8}\u{c}\n\r\t"]);
        check(r#"["\u0041\u00e9\ud83d\ude00"]"#, &["Aé😀"]);
        check(
            r#"["\ud83dx", "\ude00", "\ud83d\u0041", "\ud83d\ud83d\ude00"]"#,
            &["\u{fffd}x", "\u{fffd}", "\u{fffd}A", "\u{fffd}😀"],
        );
        check("[\"日本\"]", &["日本"]);
    }

    #[test]
    fn other_elements_are_told() {
        for (text, range) in [
            (r#"["a", 1]"#, 6..7),
            ("[null]", 1..5),
            (r#"[["a"]]"#, 1..2),
            (r#"[{"a": [1, true, -0.5e+3]}, "b"]"#, 1..2),
            ("[1e5]", 1..4),
        ] {
            assert_eq!(array(text), JsonArray::NotStrings(range), "{text}");
        }
    }

    #[test]
    fn anything_else_is_not_json() {
        for text in [
            "",
            "a",
            "[",
            "[\"a\"",
            "[\"a\",]",
            "[,]",
            "['a']",
            "[\"a\"] x",
            "[\"a\" \"b\"]",
            "[01]",
            "[1.]",
            "[-]",
            "[1e999]",
            "[tru]",
            "[\"\\x\"]",
            "[\"\\u12\"]",
            "[\"a\tb\"]",
            "{\"a\": 1}",
            "[{\"a\"}]",
            "[{]}",
            "[\"a\"]]",
        ] {
            assert_eq!(array(text), JsonArray::No, "{text}");
        }
        let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(array(&deep(MAX_DEPTH)), JsonArray::NotStrings(1..2));
        assert_eq!(array(&deep(MAX_DEPTH + 1)), JsonArray::No);
        assert_eq!(array(&"[".repeat(1_000_000)), JsonArray::No);
    }

    #[test]
    fn objects() {
        let value = |text| string_in_object(text, "syntax").map(|(value, _)| value);
        assert_eq!(value(r#" {"a": {"syntax": "no"}, "syntax": "x/y"} "#).as_deref(), Some("x/y"));
        assert_eq!(value(r#"{"syntax": "a", "syntax": 1}"#), None);
        assert_eq!(value(r#"["syntax"]"#), None);
        assert_eq!(value(r#"{"syntax": "a"} x"#), None);
    }
}
