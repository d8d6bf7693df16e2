//! The reader behind all expansions.

use std::collections::BTreeSet;

use super::pattern::{self, InvalidEscape, ReplaceError};
use super::{ExpandError, ExpandErrorKind as Kind, Lookup, MAX_EXPANDED_BYTES, MAX_NESTING};

/// What is kept and what is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Quotes and escapes are removed, unset variables are empty.
    Word,
    /// Quotes are text, escapes are removed, unset variables are empty.
    HeredocBody,
    /// Everything stays as written.
    RawLine,
    /// Quotes and escapes are removed, variables stay as written.
    HeredocName,
    /// Quotes stay, escapes are removed, variables stay as written.
    HeredocNameQuoted,
}

impl Mode {
    /// Whether quotes mean anything.
    fn reads_quotes(self) -> bool {
        self != Self::HeredocBody
    }

    /// Whether quotes appear in the result.
    fn keeps_quotes(self) -> bool {
        matches!(self, Self::RawLine | Self::HeredocNameQuoted)
    }

    /// Whether unset variables appear in the result as they were written.
    fn keeps_unset(self) -> bool {
        matches!(self, Self::RawLine | Self::HeredocName | Self::HeredocNameQuoted)
    }
}

/// Why reading stopped, and at which `$` or quote.
struct Failure {
    offset: usize,
    kind: Kind,
}

type Step<T> = Result<T, Failure>;

/// Reads one word.
pub(super) struct Lexer<'a> {
    text: &'a str,
    position: usize,
    escape: char,
    mode: Mode,
    env: &'a dyn Lookup,
    /// Whether escapes appear in the result: inside patterns, whose escapes are read later.
    raw_escapes: bool,
    depth: usize,
    used: BTreeSet<String>,
    unset: BTreeSet<String>,
}

/// The result cut at unquoted blanks.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    word: String,
}

impl Words {
    /// Text whose blanks separate.
    fn push_splitting(&mut self, text: &str) {
        for character in text.chars() {
            if !character.is_whitespace() {
                self.word.push(character);
            } else if !self.word.is_empty() {
                self.done.push(std::mem::take(&mut self.word));
            }
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.done.push(self.word);
        }
        self.done
    }
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str, escape: char, mode: Mode, env: &'a dyn Lookup) -> Self {
        Self {
            text,
            position: 0,
            escape,
            mode,
            env,
            raw_escapes: mode == Mode::RawLine,
            depth: 0,
            used: BTreeSet::new(),
            unset: BTreeSet::new(),
        }
    }

    /// Reads everything: the result as one text, and cut into words.
    pub(super) fn run(&mut self) -> Result<(String, Vec<String>), ExpandError> {
        let mut words = Words::default();
        match self.top(&mut words) {
            Ok(text) => Ok((text, words.finish())),
            Err(Failure { offset, kind }) => Err(ExpandError { word: self.text.to_owned(), offset, kind }),
        }
    }

    /// The names that were read: those with and those without a value.
    pub(super) fn into_names(self) -> (BTreeSet<String>, BTreeSet<String>) {
        (self.used, self.unset)
    }

    fn peek(&self) -> Option<char> {
        self.text[self.position..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.position += character.len_utf8();
        Some(character)
    }

    fn at_end(&self) -> bool {
        self.position == self.text.len()
    }

    fn fail<T>(&self, offset: usize, kind: Kind) -> Step<T> {
        Err(Failure { offset, kind })
    }

    /// Fails if a result has become too long.
    fn check_length(&self, offset: usize, text: &str) -> Step<()> {
        if text.len() > MAX_EXPANDED_BYTES { self.fail(offset, Kind::TooLong) } else { Ok(()) }
    }

    /// Reads up to the end.
    fn top(&mut self, words: &mut Words) -> Step<String> {
        let mut result = String::new();
        while let Some(character) = self.peek() {
            let offset = self.position;
            match character {
                '$' => {
                    let value = self.dollar()?;
                    words.push_splitting(&value);
                    result.push_str(&value);
                }
                '\'' | '"' if self.mode.reads_quotes() => {
                    let quoted = if character == '\'' { self.single_quoted()? } else { self.double_quoted()? };
                    words.word.push_str(&quoted);
                    result.push_str(&quoted);
                }
                '<' => {
                    let mark = self.heredoc_mark();
                    words.word.push_str(mark);
                    result.push_str(mark);
                }
                _ if character == self.escape => {
                    self.next();
                    if self.raw_escapes {
                        words.word.push(character);
                        result.push(character);
                    }
                    let Some(escaped) = self.next() else { break };
                    words.word.push(escaped);
                    result.push(escaped);
                }
                _ => {
                    self.next();
                    if character.is_whitespace() {
                        words.push_splitting(" ");
                    } else {
                        words.word.push(character);
                    }
                    result.push(character);
                }
            }
            self.check_length(offset, &result)?;
        }
        Ok(result)
    }

    /// `<` or `<<` with the blanks behind it, which belong to a heredoc's word.
    fn heredoc_mark(&mut self) -> &'a str {
        let rest = &self.text[self.position..];
        let length = match rest.strip_prefix("<<") {
            Some(behind) => rest.len() - behind.trim_start_matches([' ', '\t']).len(),
            None => 1,
        };
        self.position += length;
        &rest[..length]
    }

    /// Reads an operand up to `stop`, which is consumed.
    fn operand(&mut self, offset: usize, stop: char, raw_escapes: bool) -> Step<String> {
        if self.depth == MAX_NESTING {
            return self.fail(offset, Kind::TooDeep);
        }
        self.depth += 1;
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let mut result = String::new();
        while let Some(character) = self.peek() {
            match character {
                _ if character == stop => {
                    self.next();
                    self.raw_escapes = outer;
                    self.depth -= 1;
                    return Ok(result);
                }
                '$' => result.push_str(&self.dollar()?),
                '\'' if self.mode.reads_quotes() => result.push_str(&self.single_quoted()?),
                '"' if self.mode.reads_quotes() => result.push_str(&self.double_quoted()?),
                _ if character == self.escape => {
                    self.next();
                    if raw_escapes {
                        result.push(character);
                    }
                    let Some(escaped) = self.next() else { break };
                    result.push(escaped);
                }
                _ => {
                    self.next();
                    result.push(character);
                }
            }
            self.check_length(offset, &result)?;
        }
        self.fail(offset, Kind::MissingBrace)
    }

    /// Like [`Self::operand`]; whatever is wrong at the end of the word is `missing`, as in BuildKit.
    fn operand_or(&mut self, offset: usize, stop: char, raw_escapes: bool, missing: Kind) -> Step<String> {
        self.operand(offset, stop, raw_escapes).or_else(|failure| match failure.kind {
            Kind::TooDeep | Kind::TooLong => Err(failure),
            _ if self.at_end() => self.fail(offset, missing),
            _ => Err(failure),
        })
    }

    fn single_quoted(&mut self) -> Step<String> {
        let offset = self.position;
        self.next();
        let rest = &self.text[self.position..];
        let Some(length) = rest.find('\'') else {
            self.position = self.text.len();
            return self.fail(offset, Kind::UnmatchedSingleQuote);
        };
        self.position += length + 1;
        let quoted = if self.mode.keeps_quotes() { &self.text[offset..self.position] } else { &rest[..length] };
        Ok(quoted.to_owned())
    }

    fn double_quoted(&mut self) -> Step<String> {
        let offset = self.position;
        self.next();
        let mut result = String::new();
        if self.mode.keeps_quotes() {
            result.push('"');
        }
        while let Some(character) = self.peek() {
            match character {
                '"' => {
                    self.next();
                    if self.mode.keeps_quotes() {
                        result.push('"');
                    }
                    return Ok(result);
                }
                '$' => {
                    result.push_str(&self.dollar()?);
                    self.check_length(offset, &result)?;
                }
                _ if character == self.escape => {
                    self.next();
                    if self.raw_escapes {
                        result.push(character);
                    }
                    match self.peek() {
                        None => break,
                        Some(escaped) if escaped == '"' || escaped == '$' || escaped == self.escape => {
                            self.next();
                            result.push(escaped);
                        }
                        Some(_) => result.push(character),
                    }
                }
                _ => {
                    self.next();
                    result.push(character);
                }
            }
        }
        self.fail(offset, Kind::UnmatchedDoubleQuote)
    }

    /// `$name`, `${…}`, or a dollar that means itself.
    fn dollar(&mut self) -> Step<String> {
        let offset = self.position;
        self.next();
        if self.peek() == Some('{') {
            self.next();
            return self.braced(offset);
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        Ok(match self.value(name) {
            Some(value) => value.to_owned(),
            None if self.mode.keeps_unset() => format!("${name}"),
            None => String::new(),
        })
    }

    /// What stands between `${` and `}`, both included.
    fn braced(&mut self, offset: usize) -> Step<String> {
        match self.peek() {
            None => return self.fail(offset, Kind::MissingBrace),
            Some('{' | '}' | ':') => return self.fail(offset, Kind::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        // BuildKit prints the end of the word as this character.
        let mut operator = self.next().unwrap_or(char::REPLACEMENT_CHARACTER);
        let mut modifier = String::from(operator);
        let empty_is_unset = operator == ':';
        if operator == '}' {
            return Ok(match self.value(name) {
                Some(value) => value.to_owned(),
                None if self.mode.keeps_unset() => format!("${{{name}}}"),
                None => String::new(),
            });
        }
        if operator == '/' {
            return self.replacement(offset, name);
        }
        if empty_is_unset {
            operator = self.next().unwrap_or(char::REPLACEMENT_CHARACTER);
            modifier.push(operator);
        }
        let is_pattern = matches!(operator, '#' | '%');
        // BuildKit reads the operand of any operator behind a colon, so a missing brace is told first there.
        let is_known = matches!(operator, '+' | '-' | '?') || (is_pattern && !empty_is_unset);
        if !is_known && (!empty_is_unset || is_pattern) {
            return self.fail(offset, Kind::UnsupportedModifier { modifier });
        }
        let operand = self.operand_or(offset, '}', is_pattern, Kind::MissingBrace)?;
        let Some(value) = self.value(name).filter(|value| !(empty_is_unset && value.is_empty())) else {
            let is_set = self.env.value(name).is_some();
            if self.mode.keeps_unset() && !is_set {
                return Ok(format!("${{{name}{modifier}{operand}}}"));
            }
            return match operator {
                '-' => Ok(operand),
                '+' => Ok(String::new()),
                '?' => {
                    let message = match (operand.as_str(), is_set) {
                        ("", false) => "is not allowed to be unset".to_owned(),
                        ("", true) => "is not allowed to be empty".to_owned(),
                        _ => operand,
                    };
                    self.fail(offset, Kind::Required { name: name.to_owned(), message })
                }
                '#' | '%' => self.stripped(offset, operator, operand, ""),
                _ => self.fail(offset, Kind::UnsupportedModifier { modifier }),
            };
        };
        match operator {
            '-' | '?' => Ok(value.to_owned()),
            '+' => Ok(operand),
            '#' | '%' => self.stripped(offset, operator, operand, value),
            _ => self.fail(offset, Kind::UnsupportedModifier { modifier }),
        }
    }

    /// `${v#p}`, `${v##p}`, `${v%p}` and `${v%%p}`.
    fn stripped(&self, offset: usize, operator: char, pattern: String, value: &str) -> Step<String> {
        // The doubled operator is looked for after expansion, as in BuildKit.
        let (pattern, longest) = match pattern.strip_prefix(operator) {
            Some(rest) => (rest.to_owned(), true),
            None => (pattern, false),
        };
        let result = if operator == '%' {
            pattern::strip_suffix(&pattern, value, longest)
        } else {
            pattern::strip_prefix(&pattern, value, longest).map_err(|error| (error, pattern))
        };
        result.or_else(|(InvalidEscape(escaped), pattern)| self.fail(offset, Kind::InvalidPattern { pattern, escaped }))
    }

    /// `${v/p/r}` and `${v//p/r}`, read up to and with the first slash.
    fn replacement(&mut self, offset: usize, name: &'a str) -> Step<String> {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let pattern = self.operand_or(offset, '/', true, Kind::MissingSlash)?;
        let replacement = self.operand_or(offset, '}', true, Kind::MissingBrace)?;
        let value = match self.value(name) {
            Some(value) => value,
            None if self.mode.keeps_unset() => return Ok(format!("${{{name}/{pattern}/{replacement}}}")),
            None => "",
        };
        let result = if all {
            pattern::replace_all(&pattern, value, &replacement, MAX_EXPANDED_BYTES)
        } else {
            pattern::replace_first(&pattern, value, &replacement).map_err(ReplaceError::Pattern)
        };
        result.or_else(|error| match error {
            ReplaceError::Pattern(InvalidEscape(escaped)) => {
                self.fail(offset, Kind::InvalidPattern { pattern, escaped })
            }
            ReplaceError::TooLong => self.fail(offset, Kind::TooLong),
        })
    }

    /// Reads a name: letters, digits and underscores; or digits alone; or one special character. May be empty.
    fn name(&mut self) -> &'a str {
        let rest = &self.text[self.position..];
        let length = match rest.chars().next() {
            Some(first) if first.is_numeric() => rest.find(|c: char| !c.is_numeric()).unwrap_or(rest.len()),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => 1,
            _ => rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len()),
        };
        self.position += length;
        &rest[..length]
    }

    /// Looks a name up and remembers that it was read.
    fn value(&mut self, name: &str) -> Option<&'a str> {
        let env: &'a dyn Lookup = self.env;
        let value = env.value(name);
        let names = if value.is_some() { &mut self.used } else { &mut self.unset };
        if !names.contains(name) {
            names.insert(name.to_owned());
        }
        value
    }
}
