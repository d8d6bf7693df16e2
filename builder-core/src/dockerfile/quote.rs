//! Text in the form in which BuildKit's messages quote it: a Go string literal.

use std::fmt;

/// Displays a text as a Go string literal (`strconv.Quote`): control characters and invisible ones escaped.
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for character in self.0.chars() {
            match character {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\u{7}' => f.write_str("\\a")?,
                '\u{8}' => f.write_str("\\b")?,
                '\u{c}' => f.write_str("\\f")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                '\u{b}' => f.write_str("\\v")?,
                ' ' => f.write_str(" ")?,
                c if (c as u32) < 0x20 || c == '\u{7f}' => write!(f, "\\x{:02x}", c as u32)?,
                c if !is_printable(c) && (c as u32) < 0x10000 => write!(f, "\\u{:04x}", c as u32)?,
                c if !is_printable(c) => write!(f, "\\U{:08x}", c as u32)?,
                c => write!(f, "{c}")?,
            }
        }
        f.write_str("\"")
    }
}

/// Whether the character shows as itself. `char::escape_debug` knows Unicode's unprintable ranges; blanks other than
/// U+0020 are unprintable for Go.
fn is_printable(c: char) -> bool {
    c.is_ascii_graphic()
        || (!c.is_whitespace() && {
            let mut escaped = c.escape_debug();
            // Combining marks are escaped by Rust as `\u{…}` only at the beginning of a text; Go prints them.
            escaped.next() != Some('\\') || is_combining(c)
        })
}

/// Combining marks that `escape_debug` would escape although Go prints them: the common blocks.
fn is_combining(c: char) -> bool {
    matches!(c as u32, 0x300..=0x36f | 0x483..=0x487 | 0x591..=0x5bd | 0x64b..=0x65f | 0x900..=0x903 | 0x93a..=0x94f
        | 0xe31..=0xe3a | 0x1ab0..=0x1aff | 0x1dc0..=0x1dff | 0x20d0..=0x20f0 | 0xfe00..=0xfe0f | 0xfe20..=0xfe2f)
}

#[cfg(test)]
mod tests {
    use super::Quoted;

    #[track_caller]
    fn check(text: &str, quoted: &str) {
        assert_eq!(Quoted(text).to_string(), quoted);
    }

    #[test]
    fn quotes_as_go_does() {
        check("", r#""""#);
        check("a b", r#""a b""#);
        check("a\"b\\c", r#""a\"b\\c""#);
        check("\t\n\r\u{7}\u{8}\u{b}\u{c}", r#""\t\n\r\a\b\v\f""#);
        check("\u{0}\u{1f}\u{7f}", r#""\x00\x1f\x7f""#);
        check("é日😀", "\"é日😀\"");
        check("\u{a0}\u{200b}\u{feff}", r#""\u00a0\u200b\ufeff""#);
        check("\u{e0001}", r#""\U000e0001""#);
        check("e\u{301}", "\"e\u{301}\"");
    }
}
