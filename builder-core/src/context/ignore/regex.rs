//! moby's translation of a pattern into a regular expression, and the part of Go's grammar that it can produce.

use std::iter::Peekable;
use std::str::Chars;

use crate::context::glob::{BadPattern, CharSet, Token};

/// How moby matches a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Byte for byte.
    Exact,
    /// Without the `**` at its end, as a prefix.
    Prefix,
    /// Without the `**` at its beginning, as a suffix.
    Suffix,
    /// By its expression.
    Expression,
}

/// The kind of `pattern` and its expression, without `^` and `$`.
pub(super) fn translate(pattern: &str) -> (Kind, String) {
    let mut kind = Kind::Exact;
    let mut expression = String::new();
    let mut chars = pattern.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                // `**/` is the same as `**`.
                _ = chars.next_if_eq(&'/');
                if chars.peek().is_some() {
                    expression.push_str("(.*/)?");
                    kind = Kind::Expression;
                } else if kind == Kind::Exact {
                    kind = Kind::Prefix;
                } else {
                    expression.push_str(".*");
                    kind = Kind::Expression;
                }
                if first {
                    kind = Kind::Suffix;
                }
            }
            '*' => {
                expression.push_str("[^/]*");
                kind = Kind::Expression;
            }
            '?' => {
                expression.push_str("[^/]");
                kind = Kind::Expression;
            }
            '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => expression.extend(['\\', c]),
            '\\' => {
                expression.push('\\');
                if let Some(escaped) = chars.next() {
                    expression.push(escaped);
                    kind = Kind::Expression;
                }
            }
            '[' | ']' => {
                expression.push(c);
                kind = Kind::Expression;
            }
            c => expression.push(c),
        }
        first = false;
    }
    (kind, expression)
}

/// Reads an expression made by [`translate`] as Go's regexp/syntax would.
pub(super) fn parse(expression: &str) -> Result<Vec<Token>, BadPattern> {
    let mut tokens = Vec::new();
    let mut rest = expression;
    loop {
        if let Some(after) = rest.strip_prefix("(.*/)?") {
            tokens.push(Token::Directories);
            rest = after;
            continue;
        }
        if let Some(after) = rest.strip_prefix(".*") {
            tokens.push(Token::Many(CharSet::not_newline()));
            rest = after;
            continue;
        }
        let mut chars = rest.chars().peekable();
        let Some(c) = chars.next() else {
            return Ok(tokens);
        };
        match c {
            '[' => {
                let set = class(&mut chars)?;
                // Inside a class `*` and `?` were translated too, so a quantifier can follow the class that they ended.
                tokens.push(if chars.next_if_eq(&'*').is_some() { Token::Many(set) } else { Token::One(set) });
            }
            '\\' => tokens.push(match escape(&mut chars)? {
                Escape::Char(c) => Token::Char(c),
                Escape::Set(set) => Token::One(set),
                Escape::Unsupported => Token::Never,
            }),
            // An anchor in the middle: text begins only once.
            '^' => {
                if !tokens.is_empty() {
                    tokens.push(Token::Never);
                }
            }
            c => tokens.push(Token::Char(c)),
        }
        rest = &rest[rest.len() - chars.map(char::len_utf8).sum::<usize>()..];
    }
}

enum Escape {
    Char(char),
    Set(CharSet),
    Unsupported,
}

/// What follows a backslash.
fn escape(chars: &mut Peekable<Chars<'_>>) -> Result<Escape, BadPattern> {
    let set = |negated, ranges: &[(char, char)]| {
        let ranges = ranges.iter().map(|(low, high)| (u32::from(*low), u32::from(*high))).collect();
        Escape::Set(CharSet { negated, ranges })
    };
    Ok(match chars.next().ok_or(BadPattern)? {
        c @ ('d' | 'D') => set(c == 'D', &[('0', '9')]),
        c @ ('w' | 'W') => set(c == 'W', &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')]),
        c @ ('s' | 'S') => set(c == 'S', &[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')]),
        'a' => Escape::Char('\x07'),
        'f' => Escape::Char('\x0c'),
        'n' => Escape::Char('\n'),
        'r' => Escape::Char('\r'),
        't' => Escape::Char('\t'),
        'v' => Escape::Char('\x0b'),
        'A' | 'b' | 'B' | 'z' | 'Q' | 'p' | 'P' => Escape::Unsupported,
        '0' => octal('0', chars)?,
        // A back-reference, unless more octal digits follow.
        first @ '1'..='7' if chars.peek().is_some_and(|c| c.is_digit(8)) => octal(first, chars)?,
        'x' => {
            let braced = chars.next_if_eq(&'{').is_some();
            let mut digits = String::new();
            while digits.len() < if braced { 8 } else { 2 } {
                match chars.next_if(char::is_ascii_hexdigit) {
                    Some(digit) => digits.push(digit),
                    None => break,
                }
            }
            if braced && chars.next_if_eq(&'}').is_none() || !braced && digits.len() != 2 {
                return Err(BadPattern);
            }
            let value = u32::from_str_radix(&digits, 16).map_err(|_| BadPattern)?;
            Escape::Char(char::from_u32(value).ok_or(BadPattern)?)
        }
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => Escape::Char(c),
        _ => return Err(BadPattern),
    })
}

fn octal(first: char, chars: &mut Peekable<Chars<'_>>) -> Result<Escape, BadPattern> {
    let mut value = first.to_digit(8).ok_or(BadPattern)?;
    for _ in 0..2 {
        match chars.next_if(|c| c.is_digit(8)).and_then(|c| c.to_digit(8)) {
            Some(digit) => value = value * 8 + digit,
            None => break,
        }
    }
    Ok(Escape::Char(char::from_u32(value).ok_or(BadPattern)?))
}

/// What follows `[`, the closing bracket included.
fn class(chars: &mut Peekable<Chars<'_>>) -> Result<CharSet, BadPattern> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    let mut first = true;
    loop {
        if !first && chars.next_if_eq(&']').is_some() {
            return Ok(CharSet { negated, ranges });
        }
        first = false;
        if let Some(named) = named_class(chars)? {
            ranges.extend(named);
            continue;
        }
        let low = match class_char(chars)? {
            Escape::Char(c) => c,
            Escape::Set(set) => {
                ranges.extend(positive(&set));
                continue;
            }
            Escape::Unsupported => return Err(BadPattern),
        };
        let mut ahead = chars.clone();
        let is_range = ahead.next() == Some('-') && ahead.peek().is_some_and(|c| *c != ']');
        let high = if is_range {
            *chars = ahead;
            match class_char(chars)? {
                Escape::Char(c) if c >= low => c,
                _ => return Err(BadPattern),
            }
        } else {
            low
        };
        ranges.push((u32::from(low), u32::from(high)));
    }
}

fn class_char(chars: &mut Peekable<Chars<'_>>) -> Result<Escape, BadPattern> {
    match chars.next().ok_or(BadPattern)? {
        '\\' => escape(chars),
        c => Ok(Escape::Char(c)),
    }
}

/// The ranges of a set, turned inside out if it is negated.
fn positive(set: &CharSet) -> Vec<(u32, u32)> {
    if !set.negated {
        return set.ranges.clone();
    }
    let mut ranges = Vec::new();
    let mut from = 0;
    for (low, high) in &set.ranges {
        if *low > from {
            ranges.push((from, low - 1));
        }
        from = high + 1;
    }
    ranges.push((from, u32::from(char::MAX)));
    ranges
}

/// `[:alpha:]` and its like, if one comes next.
fn named_class(chars: &mut Peekable<Chars<'_>>) -> Result<Option<Vec<(u32, u32)>>, BadPattern> {
    let rest: String = chars.clone().collect();
    let Some(inner) = rest.strip_prefix("[:") else { return Ok(None) };
    let Some(end) = inner.find(":]") else { return Ok(None) };
    let name = &inner[..end];
    let (negated, plain) = match name.strip_prefix('^') {
        Some(plain) => (true, plain),
        None => (false, name),
    };
    let ranges: &[(char, char)] = match plain {
        "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
        "alpha" => &[('A', 'Z'), ('a', 'z')],
        "ascii" => &[('\0', '\x7f')],
        "blank" => &[('\t', '\t'), (' ', ' ')],
        "cntrl" => &[('\0', '\x1f'), ('\x7f', '\x7f')],
        "digit" => &[('0', '9')],
        "graph" => &[('!', '~')],
        "lower" => &[('a', 'z')],
        "print" => &[(' ', '~')],
        "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
        "space" => &[('\t', '\r'), (' ', ' ')],
        "upper" => &[('A', 'Z')],
        "word" => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
        "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
        _ => return Err(BadPattern),
    };
    for _ in 0.."[::]".len() + name.chars().count() {
        chars.next();
    }
    let ranges = ranges.iter().map(|(low, high)| (u32::from(*low), u32::from(*high))).collect();
    Ok(Some(positive(&CharSet { negated, ranges })))
}
