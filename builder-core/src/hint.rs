//! Errors in words for people: what can be done about one, its causes, texts within it.

use std::error::Error;

pub mod suggest;

/// Advice that belongs to an error; rendered under it by the binary.
pub trait Hint {
    /// One sentence that names what can be changed; `None` if nothing useful is known.
    fn hint(&self) -> Option<String>;
}

/// All messages of an error and its causes, outermost first, none twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    text
}

/// A text in quotes as Go's `%q` (`strconv.Quote`) shows it, which is how BuildKit and Kaniko word commands and values.
pub fn go_quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c if is_printable(c) => quoted.push(c),
            c if (c as u32) < 0x1_0000 => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    quoted.push('"');
    quoted
}

/// Go's `unicode.IsPrint`: everything but controls, formats, private and unassigned characters, and blanks other than
/// U+0020. These are what `str::escape_debug` escapes, which escapes a combining character at the start only.
fn is_printable(c: char) -> bool {
    c.is_ascii_graphic() || c == ' ' || ['a', c].iter().collect::<String>().escape_debug().count() == 2
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[test]
    fn texts_are_quoted_as_go_does() {
        for (text, expected) in [
            ("", r#""""#),
            (r#"/bin/sh -c echo "a" \ 'b'"#, r#""/bin/sh -c echo \"a\" \\ 'b'""#),
            ("\u{7}\u{8}\t\n\u{b}\u{c}\r", r#""\a\b\t\n\v\f\r""#),
            ("\u{0}\u{1}\u{1b}\u{7f}", r#""\x00\x01\x1b\x7f""#),
            ("ä☺e\u{301}\u{1f600}", "\"ä☺e\u{301}\u{1f600}\""),
            ("\u{85}\u{a0}\u{ad}\u{2028}\u{200b}\u{feff}", r#""\u0085\u00a0\u00ad\u2028\u200b\ufeff""#),
            ("\u{e000}\u{e0001}\u{10ffff}", r#""\ue000\U000e0001\U0010ffff""#),
            ("\u{fffd}", "\"\u{fffd}\""),
        ] {
            assert_eq!(go_quote(text), expected, "{text:?}");
        }
    }

    #[derive(Debug)]
    struct Told(&'static str, Option<Box<Told>>);

    impl fmt::Display for Told {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Told {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|inner| inner as &(dyn Error + 'static))
        }
    }

    #[test]
    fn causes_are_told_once() {
        let inner = Told("no such file", None);
        let middle = Told("cannot read x: no such file", Some(Box::new(inner)));
        let outer = Told("context", Some(Box::new(middle)));
        assert_eq!(chain(&outer), "context: cannot read x: no such file");
    }
}
