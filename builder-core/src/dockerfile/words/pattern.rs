//! The patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*`, `?` and escapes (checklist W-04 to W-06).
//!
//! BuildKit turns them into regular expressions, so the rules of Go's `regexp` hold: of several matches at the leftmost
//! place the one that the first `*` prefers wins, and no wildcard matches a line feed. They are matched here by keeping
//! all alternatives at once in order of preference, so the work is bounded by text length times pattern length.

/// A pattern ready to match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
    /// Whether `*` takes as much as it can.
    greedy: bool,
    /// Whether a match must begin where the text begins.
    anchored: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// Exactly this character.
    Literal(char),
    /// `?`
    AnyOne,
    /// `*`; never twice in a row.
    AnyMany,
}

/// An escape that patterns do not know: the character after the backslash, U+FFFD at the end of the pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InvalidEscape(pub char);

/// One way in which the pattern may still match.
#[derive(Debug, Clone, Copy)]
struct Thread {
    /// Index of the token that must match next; the number of tokens means "has matched".
    at: usize,
    /// Where in the text this try began.
    start: usize,
}

impl Pattern {
    /// Reads a pattern.
    pub(super) fn new(text: &str, greedy: bool, anchored: bool) -> Result<Self, InvalidEscape> {
        let mut tokens = Vec::new();
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            let token = match character {
                '*' if tokens.last() == Some(&Token::AnyMany) => continue,
                '*' => Token::AnyMany,
                '?' => Token::AnyOne,
                '\\' => match characters.peek() {
                    // `}` and `/` have to be escaped inside `${}`; the escape is not part of the pattern.
                    Some('}' | '/') => continue,
                    Some('*' | '?' | '\\') => Token::Literal(characters.next().expect("because it was peeked at")),
                    Some(other) => return Err(InvalidEscape(*other)),
                    None => return Err(InvalidEscape(char::REPLACEMENT_CHARACTER)),
                },
                other => Token::Literal(other),
            };
            tokens.push(token);
        }
        Ok(Self { tokens, greedy, anchored })
    }

    /// The preferred match that begins at `from` or later: its first index and the index behind its last character.
    pub(super) fn find(&self, text: &[char], from: usize) -> Option<(usize, usize)> {
        let mut threads: Vec<Thread> = Vec::new();
        let mut next: Vec<Thread> = Vec::new();
        let mut seen = vec![usize::MAX; self.tokens.len() + 1];
        let mut found = None;
        let mut position = from;
        loop {
            // A new try is the least preferred one, and none is needed once something has matched.
            if found.is_none() && (position == from || !self.anchored) {
                self.add(&mut threads, &mut seen, position, Thread { at: 0, start: position });
            }
            if threads.is_empty() {
                return found;
            }
            let character = text.get(position).copied();
            for thread in threads.drain(..) {
                let Some(token) = self.tokens.get(thread.at) else {
                    found = Some((thread.start, position));
                    break; // the others are less preferred
                };
                let Some(character) = character else { continue };
                match token {
                    Token::Literal(wanted) if *wanted != character => {}
                    Token::AnyOne | Token::AnyMany if character == '\n' => {}
                    Token::AnyMany => self.add(&mut next, &mut seen, position + 1, thread),
                    Token::Literal(_) | Token::AnyOne => {
                        self.add(&mut next, &mut seen, position + 1, Thread { at: thread.at + 1, ..thread });
                    }
                }
            }
            std::mem::swap(&mut threads, &mut next);
            if character.is_none() {
                return found;
            }
            position += 1;
        }
    }

    /// Adds a thread, and where it stands before a `*` the one that skips it, in the order of preference.
    fn add(&self, threads: &mut Vec<Thread>, seen: &mut [usize], position: usize, thread: Thread) {
        let mut push = |at: usize| {
            if seen[at] != position {
                seen[at] = position;
                threads.push(Thread { at, ..thread });
            }
        };
        match self.tokens.get(thread.at) {
            Some(Token::AnyMany) if self.greedy => {
                push(thread.at);
                push(thread.at + 1);
            }
            Some(Token::AnyMany) => {
                push(thread.at + 1);
                push(thread.at);
            }
            _ => push(thread.at),
        }
    }
}

/// `${v#p}` and `${v##p}`: the value without its shortest or longest beginning that matches.
pub(super) fn strip_prefix(pattern: &str, value: &str, longest: bool) -> Result<String, InvalidEscape> {
    let pattern = Pattern::new(pattern, longest, true)?;
    let characters: Vec<char> = value.chars().collect();
    let end = pattern.find(&characters, 0).map_or(0, |(_, end)| end);
    Ok(characters[end..].iter().collect())
}

/// `${v%p}` and `${v%%p}`: both sides are reversed, then it is a beginning that is stripped.
///
/// On an error the reversed pattern is returned too, since BuildKit's message shows that one.
pub(super) fn strip_suffix(pattern: &str, value: &str, longest: bool) -> Result<String, (InvalidEscape, String)> {
    let reversed = reverse(pattern);
    let pattern = match Pattern::new(&reversed, longest, true) {
        Ok(pattern) => pattern,
        Err(error) => return Err((error, reversed)),
    };
    let mut characters: Vec<char> = value.chars().rev().collect();
    let end = pattern.find(&characters, 0).map_or(0, |(_, end)| end);
    characters.drain(..end);
    characters.reverse();
    Ok(characters.into_iter().collect())
}

/// Reverses a pattern but keeps each escape before the character it escapes: `a\*c` becomes `c\*a`.
fn reverse(pattern: &str) -> String {
    let characters: Vec<char> = pattern.chars().collect();
    let mut reversed = Vec::with_capacity(characters.len());
    let mut index = 0;
    while let Some(character) = characters.get(index) {
        if let ('\\', Some(escaped)) = (character, characters.get(index + 1)) {
            reversed.extend([*escaped, '\\']); // reversed as a whole below
            index += 2;
        } else {
            reversed.push(*character);
            index += 1;
        }
    }
    reversed.into_iter().rev().collect()
}

/// `${v/p/r}`: replaces the first match; `replacement` is literal.
pub(super) fn replace_first(pattern: &str, value: &str, replacement: &str) -> Result<String, InvalidEscape> {
    let pattern = Pattern::new(pattern, true, false)?;
    let characters: Vec<char> = value.chars().collect();
    let Some((start, end)) = pattern.find(&characters, 0) else {
        return Ok(value.to_owned());
    };
    let mut replaced: String = characters[..start].iter().collect();
    replaced.push_str(replacement);
    replaced.extend(&characters[end..]);
    Ok(replaced)
}

/// What [`replace_all`] can fail with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReplaceError {
    /// The pattern is wrong.
    Pattern(InvalidEscape),
    /// The result would be longer than the limit.
    TooLong,
}

/// `${v//p/r}`: replaces every match; `template` is a template of Go's `regexp` (checklist W-05), in which `$0` and
/// `${0}` stand for the match, `$$` for a dollar, and any other name for nothing. `limit` is in bytes.
pub(super) fn replace_all(pattern: &str, value: &str, template: &str, limit: usize) -> Result<String, ReplaceError> {
    let pattern = Pattern::new(pattern, true, false).map_err(ReplaceError::Pattern)?;
    let template = Template::new(template);
    let characters: Vec<char> = value.chars().collect();
    let mut replaced = String::new();
    let mut copied = 0; // up to here the text is in `replaced`
    let mut search = 0;
    while search <= characters.len() {
        let Some((start, end)) = pattern.find(&characters, search) else { break };
        replaced.extend(&characters[copied..start]);
        // An empty match right behind another match does not count, as in Go.
        if end > copied || start == 0 {
            template.write(&characters[start..end], &mut replaced);
        }
        if replaced.len() > limit {
            return Err(ReplaceError::TooLong);
        }
        copied = end;
        search = end.max(search + 1);
    }
    replaced.extend(&characters[copied..]);
    Ok(replaced)
}

/// The replacement of `${v//p/r}`.
struct Template {
    /// Literal pieces; the match stands between each two.
    pieces: Vec<String>,
}

impl Template {
    fn new(text: &str) -> Self {
        let mut pieces = vec![String::new()];
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            let piece = pieces.last_mut().expect("because it begins with one and only grows");
            piece.push_str(before);
            rest = after;
            if let Some(after) = rest.strip_prefix('$') {
                piece.push('$');
                rest = after;
                continue;
            }
            let (braced, named) = match rest.strip_prefix('{') {
                Some(named) => (true, named),
                None => (false, rest),
            };
            let length = named.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(named.len());
            let (name, behind) = named.split_at(length);
            let behind = if braced { behind.strip_prefix('}') } else { Some(behind) };
            match behind {
                Some(behind) if !name.is_empty() => {
                    rest = behind;
                    if name == "0" {
                        pieces.push(String::new());
                    }
                }
                _ => piece.push('$'), // not a name: the dollar is text
            }
        }
        pieces.last_mut().expect("because it begins with one and only grows").push_str(rest);
        Self { pieces }
    }

    fn write(&self, matched: &[char], into: &mut String) {
        for (index, piece) in self.pieces.iter().enumerate() {
            if index > 0 {
                into.extend(matched);
            }
            into.push_str(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(operator: &str, value: &str, pattern: &str, expected: &str) {
        let result = match operator {
            "#" => strip_prefix(pattern, value, false),
            "##" => strip_prefix(pattern, value, true),
            "%" => strip_suffix(pattern, value, false).map_err(|(error, _)| error),
            "%%" => strip_suffix(pattern, value, true).map_err(|(error, _)| error),
            other => panic!("no operator {other}"),
        };
        assert_eq!(result.as_deref(), Ok(expected), "{value}{operator}{pattern}");
    }

    #[test]
    fn strips_shortest_and_longest() {
        check("#", "foo.bar.baz", "*.", "bar.baz");
        check("##", "foo.bar.baz", "*.", "baz");
        check("%", "foo.bar.baz", ".*", "foo.bar");
        check("%%", "foo.bar.baz", ".*", "foo");
        check("#", "abc", "", "abc");
        check("#", "abc", "*", "abc");
        check("##", "abc", "*", "");
        check("##", "abc", "?", "bc");
        check("#", "abc", "x", "abc");
        check("%", "a*c", "\\*c", "a");
        check("%", "aäc", "?c", "a");
        check("#", "[ab]x", "[ab]", "x");
        check("##", "a\nb", "*", "\nb");
        check("##", "aXbXc", "a*X*X", "c");
    }

    #[test]
    fn escapes_of_other_characters_are_errors() {
        assert_eq!(strip_prefix("\\a", "x", false), Err(InvalidEscape('a')));
        assert_eq!(strip_prefix("a\\", "x", false), Err(InvalidEscape('\u{fffd}')));
        assert_eq!(strip_suffix("b\\a", "x", false), Err((InvalidEscape('a'), "\\ab".to_owned())));
    }

    #[test]
    fn replaces() {
        assert_eq!(replace_first("b", "abcb", "$0"), Ok("a$0cb".to_owned()));
        for (value, pattern, template, expected) in [
            ("abcb", "b", "[$0]", "a[b]c[b]"),
            ("abc", "", "-", "-a-b-c-"),
            ("abc", "*", "all", "all"),
            ("", "*", "x", "x"),
            ("a\nb", "*", "<$0>", "<a>\n<b>"),
            ("abc", "b", "${0}$$", "ab$c"),
            ("abc", "b", "$1x", "ac"),
            ("abc", "b", "${", "a${c"),
            ("abc", "b", "$00", "ac"),
            ("abc", "b", "$ $", "a$ $c"),
            ("foo.bar.baz", "b?", "Q", "foo.Qr.Qz"),
        ] {
            assert_eq!(replace_all(pattern, value, template, 1000), Ok(expected.to_owned()), "{value}//{pattern}");
        }
        assert_eq!(replace_all("", "abc", "0123456789", 20), Err(ReplaceError::TooLong));
    }

    #[test]
    fn many_stars_do_not_explode() {
        let value = "a".repeat(2_000);
        let pattern = "*a".repeat(30) + "b";
        assert_eq!(strip_prefix(&pattern, &value, false), Ok(value.clone()));
        assert_eq!(replace_first(&pattern, &value, ""), Ok(value));
    }
}
