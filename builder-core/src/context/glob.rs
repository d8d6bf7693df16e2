//! One matching engine for `.dockerignore` patterns and for wildcards of COPY: a bit-parallel automaton.
//!
//! A pattern becomes a list of [`Token`]s; token `i` is state `i`, and the state after the last one accepts. All states
//! that can be active are kept as bits and advance together, so the time is (length of path) × (states / 64) for any
//! pattern: there is nothing to backtrack into.

use std::sync::Arc;

/// A set of characters, as in `[a-z]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CharSet {
    pub(crate) negated: bool,
    /// Inclusive ranges.
    pub(crate) ranges: Vec<(u32, u32)>,
}

impl CharSet {
    /// Every character but the slash.
    pub(crate) fn not_slash() -> Self {
        Self { negated: true, ranges: vec![('/' as u32, '/' as u32)] }
    }

    /// Every character but the newline: what `.` means in Go's regular expressions.
    pub(crate) fn not_newline() -> Self {
        Self { negated: true, ranges: vec![('\n' as u32, '\n' as u32)] }
    }

    fn contains(&self, rune: u32) -> bool {
        self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&rune)) != self.negated
    }
}

/// One piece of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// Exactly this character.
    Char(char),
    /// One character of the set.
    One(CharSet),
    /// Any number of characters of the set.
    Many(CharSet),
    /// Nothing, or anything that ends in a slash: `(.*/)?`.
    Directories,
    /// Matches nothing at all.
    Never,
}

/// One state of the automaton.
#[derive(Debug, Clone)]
enum State {
    Char(u32),
    One(CharSet),
    Many(CharSet),
    /// Entry of [`Token::Directories`]: goes on to the loop behind it, or past the loop.
    Enter,
    /// Loop of [`Token::Directories`]: eats all but newlines; a slash also leads out.
    Loop,
    Never,
}

impl State {
    /// Whether `rune` leads to the next state.
    fn advances(&self, rune: u32) -> bool {
        match self {
            Self::Char(c) => *c == rune,
            Self::One(set) => set.contains(rune),
            Self::Loop => rune == '/' as u32,
            Self::Many(_) | Self::Enter | Self::Never => false,
        }
    }

    /// Whether `rune` leads to the same state again.
    fn stays(&self, rune: u32) -> bool {
        match self {
            Self::Many(set) => set.contains(rune),
            Self::Loop => rune != '\n' as u32,
            Self::Char(_) | Self::One(_) | Self::Enter | Self::Never => false,
        }
    }
}

/// Masks of the states that react to one character, `words` words each.
#[derive(Debug, Clone)]
struct Masks {
    advance: Vec<u64>,
    stay: Vec<u64>,
}

/// A compiled pattern that has to match a whole path.
#[derive(Debug, Clone)]
pub(crate) struct Glob {
    states: Arc<[State]>,
    /// Words of 64 bits that hold all states and the accepting one.
    words: usize,
    /// Per ASCII character.
    ascii: Arc<[Masks]>,
    /// States that may be left without eating anything: to the next one, and to the one after it.
    skip_one: Vec<u64>,
    skip_two: Vec<u64>,
    /// Bytes that every match ends with; a cheap test that refuses most paths.
    tail: Vec<u8>,
}

impl Glob {
    pub(crate) fn new(tokens: &[Token]) -> Self {
        let mut states = Vec::with_capacity(tokens.len() + 1);
        for token in tokens {
            match token {
                Token::Char(c) => states.push(State::Char(u32::from(*c))),
                Token::One(set) => states.push(State::One(set.clone())),
                Token::Many(set) => states.push(State::Many(set.clone())),
                Token::Directories => states.extend([State::Enter, State::Loop]),
                Token::Never => states.push(State::Never),
            }
        }
        let words = states.len() / 64 + 1;
        let ascii = (0..128).map(|rune| masks(&states, words, rune)).collect();
        let mut skip_one = vec![0; words];
        let mut skip_two = vec![0; words];
        for (i, state) in states.iter().enumerate() {
            match state {
                State::Many(_) => set_bit(&mut skip_one, i),
                State::Enter => {
                    set_bit(&mut skip_one, i);
                    set_bit(&mut skip_two, i);
                }
                _ => {}
            }
        }
        // U+FFFD also stands for bytes that are not UTF-8, so it says nothing about the bytes of a path.
        let tail: String = tokens
            .iter()
            .rev()
            .map_while(|token| match token {
                Token::Char(c) if *c != char::REPLACEMENT_CHARACTER => Some(*c),
                _ => None,
            })
            .collect();
        let tail = tail.chars().rev().collect::<String>().into_bytes();
        Self { states: states.into(), words, ascii, skip_one, skip_two, tail }
    }

    /// Whether the whole of `path` matches.
    pub(crate) fn matches(&self, path: &[u8]) -> bool {
        path.ends_with(&self.tail) && self.with_states(path, |states| has_bit(states, self.states.len()))
    }

    /// Whether something below the directory `path` could match.
    pub(crate) fn may_match_below(&self, path: &[u8]) -> bool {
        self.with_states(path, |states| {
            let mut next = vec![0; self.words];
            self.step('/' as u32, states, &mut next);
            next.iter().any(|word| *word != 0)
        })
    }

    /// Whether all states fit one word, so that [`Glob::advance`] can be used.
    pub(crate) fn is_small(&self) -> bool {
        self.words == 1
    }

    /// States before the first character.
    pub(crate) fn start(&self) -> u64 {
        let mut states = [1];
        self.close(&mut states);
        states[0]
    }

    /// States after some more characters; 0 when nothing can match any more.
    pub(crate) fn advance(&self, state: u64, text: &[u8]) -> u64 {
        let (mut current, mut next) = ([state], [0]);
        let mut rest = text;
        while current[0] != 0 {
            let Some((rune, length)) = decode(rest) else { break };
            rest = &rest[length..];
            self.step(rune, &current, &mut next);
            current = next;
        }
        current[0]
    }

    /// Whether a text that ends in this state matches.
    pub(crate) fn accepts(&self, state: u64) -> bool {
        state >> self.states.len() & 1 == 1
    }

    /// Whether a path ends as every match does.
    pub(crate) fn may_end(&self, path: &[u8]) -> bool {
        path.ends_with(&self.tail)
    }

    fn with_states<T>(&self, path: &[u8], then: impl FnOnce(&[u64]) -> T) -> T {
        // Nearly all patterns have fewer than 64 states: no allocation for them.
        let (mut current_one, mut next_one) = ([0; 1], [0; 1]);
        let (mut current_many, mut next_many);
        let (mut current, mut next): (&mut [u64], &mut [u64]) = if self.words == 1 {
            (&mut current_one, &mut next_one)
        } else {
            current_many = vec![0; self.words];
            next_many = vec![0; self.words];
            (&mut current_many, &mut next_many)
        };
        current[0] = 1;
        self.close(current);
        let mut rest = path;
        while let Some((rune, length)) = decode(rest) {
            rest = &rest[length..];
            self.step(rune, current, next);
            std::mem::swap(&mut current, &mut next);
            if current.iter().all(|word| *word == 0) {
                break;
            }
        }
        then(current)
    }

    /// One character: `current` becomes `next`.
    fn step(&self, rune: u32, current: &[u64], next: &mut [u64]) {
        let computed;
        let masks = match self.ascii.get(rune as usize) {
            Some(masks) => masks,
            None => {
                computed = masks(&self.states, self.words, rune);
                &computed
            }
        };
        let mut carry = 0;
        for i in 0..self.words {
            let advancing = current[i] & masks.advance[i];
            next[i] = advancing << 1 | carry | current[i] & masks.stay[i];
            carry = advancing >> 63;
        }
        self.close(next);
    }

    /// Adds the states that can be reached without eating anything.
    fn close(&self, states: &mut [u64]) {
        loop {
            let mut changed = false;
            let (mut carry_one, mut carry_two) = (0, 0);
            for ((word, skip_one), skip_two) in states.iter_mut().zip(&self.skip_one).zip(&self.skip_two) {
                let before = *word;
                let one = before & skip_one;
                let two = before & skip_two;
                *word |= one << 1 | carry_one | two << 2 | carry_two;
                carry_one = one >> 63;
                carry_two = two >> 62;
                changed |= *word != before;
            }
            if !changed {
                return;
            }
        }
    }
}

fn masks(states: &[State], words: usize, rune: u32) -> Masks {
    let mut masks = Masks { advance: vec![0; words], stay: vec![0; words] };
    for (i, state) in states.iter().enumerate() {
        if state.advances(rune) {
            set_bit(&mut masks.advance, i);
        }
        if state.stays(rune) {
            set_bit(&mut masks.stay, i);
        }
    }
    masks
}

fn set_bit(words: &mut [u64], bit: usize) {
    words[bit / 64] |= 1 << (bit % 64);
}

fn has_bit(words: &[u64], bit: usize) -> bool {
    words[bit / 64] >> (bit % 64) & 1 == 1
}

/// The first character of `bytes` and its length; a byte that is not UTF-8 is one U+FFFD, as in Go.
fn decode(bytes: &[u8]) -> Option<(u32, usize)> {
    let first = *bytes.first()?;
    let length = match first {
        0..0x80 => return Some((u32::from(first), 1)),
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 0,
    };
    let decoded = bytes.get(..length).and_then(|bytes| str::from_utf8(bytes).ok()).and_then(|text| text.chars().next());
    Some(decoded.map_or((u32::from(char::REPLACEMENT_CHARACTER), 1), |c| (u32::from(c), length)))
}

/// A pattern that `filepath.Match` of Go calls malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct BadPattern;

/// Reads a pattern of Go's `filepath.Match` (checklist C-07): `*`, `?`, classes, backslash escapes.
///
/// Classes match a slash if it is in them, as in Go.
///
/// # Errors
/// [`BadPattern`] for classes that do not end, are empty or have a broken range, and for a backslash at the end.
pub(crate) fn wildcard(pattern: &str) -> Result<Vec<Token>, BadPattern> {
    let mut tokens = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' => {
                if !matches!(tokens.last(), Some(Token::Many(_))) {
                    tokens.push(Token::Many(CharSet::not_slash()));
                }
            }
            '?' => tokens.push(Token::One(CharSet::not_slash())),
            '\\' => tokens.push(Token::Char(chars.next().ok_or(BadPattern)?)),
            '[' => {
                let negated = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                while ranges.is_empty() || chars.next_if_eq(&']').is_none() {
                    let low = class_char(&mut chars)?;
                    let high = if chars.next_if_eq(&'-').is_some() { class_char(&mut chars)? } else { low };
                    ranges.push((u32::from(low), u32::from(high)));
                    if chars.peek().is_none() {
                        return Err(BadPattern);
                    }
                }
                tokens.push(Token::One(CharSet { negated, ranges }));
            }
            c => tokens.push(Token::Char(c)),
        }
    }
    Ok(tokens)
}

fn class_char(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, BadPattern> {
    match chars.next() {
        None | Some('-' | ']') => Err(BadPattern),
        Some('\\') => chars.next().ok_or(BadPattern),
        Some(c) => Ok(c),
    }
}

/// Whether `path` holds an unescaped `*`, `?` or `[`.
pub(crate) fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => _ = chars.next(),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(pattern: &str, path: &str, expected: Result<bool, BadPattern>) {
        let actual = wildcard(pattern).map(|tokens| Glob::new(&tokens).matches(path.as_bytes()));
        assert_eq!(actual, expected, "{pattern:?} on {path:?}");
    }

    #[test]
    fn go_filepath_match() {
        for (pattern, path, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("a[^x]b", "a/b", true),
            ("[\\]a]", "]", true),
            ("[\\-x]", "-", true),
            ("[x\\-]", "z", false),
            ("*x", "xxx", true),
            ("[[]x", "[x", true),
            ("[!a]", "!", true),
            ("**/x", "a/x", true),
            ("**/x", "a/b/x", false),
            (".*", ".env", true),
            ("*", "", true),
            ("", "", true),
            ("?", "", false),
            ("[z-a]", "b", false),
        ] {
            check(pattern, path, Ok(expected));
        }
        for pattern in ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "a\\", "[a\\"] {
            check(pattern, "a", Err(BadPattern));
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_one_character() {
        let glob = |pattern: &str| Glob::new(&wildcard(pattern).expect("well formed"));
        assert!(glob("bad?").matches(b"bad\xff"));
        assert!(glob("bad[^a]").matches(b"bad\xff"));
        assert!(!glob("bad??").matches(b"bad\xff"));
        assert!(glob("*\u{fc}?").matches(b"\xff\xc3\xbc\xe2"));
    }

    #[test]
    fn directories_that_cannot_hold_a_match_are_known() {
        let glob = Glob::new(&wildcard("d*/s?b/*.txt").expect("well formed"));
        for (directory, expected) in
            [("d1", true), ("e", false), ("d1/sub", true), ("d1/soob", false), ("d1/sub/x", false)]
        {
            assert_eq!(glob.may_match_below(directory.as_bytes()), expected, "{directory}");
        }
    }

    #[test]
    fn patterns_of_any_length_and_shape_end_soon() {
        let glob = Glob::new(&wildcard(&"*a".repeat(500)).expect("well formed"));
        assert!(!glob.matches(&[b'a'; 499]));
        assert!(glob.matches(&[b'a'; 4000]));
        let mut path = vec![b'a'; 4000];
        path.push(b'b');
        assert!(!glob.matches(&path));
        let glob = Glob::new(&wildcard(&format!("{}*", "x".repeat(200))).expect("well formed"));
        assert!(glob.matches(&[b'x'; 201]));
        assert!(!glob.matches(&[b'x'; 199]));
    }

    /// The definition, tried out naively.
    fn naive(tokens: &[Token], path: &[char]) -> bool {
        let Some((token, rest)) = tokens.split_first() else {
            return path.is_empty();
        };
        match token {
            Token::Char(c) => path.first() == Some(c) && naive(rest, &path[1..]),
            Token::One(set) => path.first().is_some_and(|c| set.contains(u32::from(*c))) && naive(rest, &path[1..]),
            Token::Many(set) => (0..=path.len())
                .take_while(|n| *n == 0 || set.contains(u32::from(path[n - 1])))
                .any(|n| naive(rest, &path[n..])),
            Token::Directories => {
                naive(rest, path)
                    || (1..=path.len())
                        .filter(|n| path[n - 1] == '/' && !path[..*n].contains(&'\n'))
                        .any(|n| naive(rest, &path[n..]))
            }
            Token::Never => false,
        }
    }

    fn token() -> impl Strategy<Value = Token> {
        prop_oneof![
            4 => prop::sample::select(vec!['a', 'b', '/', 'é']).prop_map(Token::Char),
            1 => Just(Token::One(CharSet::not_slash())),
            1 => Just(Token::One(CharSet { negated: false, ranges: vec![('a' as u32, 'b' as u32)] })),
            1 => Just(Token::Many(CharSet::not_slash())),
            1 => Just(Token::Many(CharSet::not_newline())),
            1 => Just(Token::Directories),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            tokens in prop::collection::vec(token(), 0..7),
            path in "[ab/é\n]{0,8}",
            padding in prop::sample::select(vec![0, 60, 130]),
        ) {
            // The padding moves the interesting states across word boundaries.
            let padded: Vec<Token> = std::iter::repeat_n(Token::Char('p'), padding).chain(tokens.iter().cloned()).collect();
            let glob = Glob::new(&padded);
            let text = format!("{}{path}", "p".repeat(padding));
            let chars: Vec<char> = path.chars().collect();
            prop_assert_eq!(glob.matches(text.as_bytes()), naive(&tokens, &chars));
            for (i, _) in path.match_indices('/') {
                if naive(&tokens, &chars) {
                    let below = format!("{}{}", "p".repeat(padding), &path[..i]);
                    prop_assert!(glob.may_match_below(below.as_bytes()));
                }
            }
        }
    }
}
