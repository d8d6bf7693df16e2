//! Expansion of variables in raw words, given an environment (checklist section W).
//!
//! A word is read once from left to right; what it yields depends on the [`Lookup`] alone. Operands such as the `w` of
//! `${v:-w}` are words of their own, so reading descends into them, at most [`MAX_NESTING`] deep.
//!
//! # Limitations
//! Letters and digits of names are those of Rust's Unicode tables: a few signs such as `²` and combining vowels count
//! here but not in Go. Bytes that are not UTF-8 do not occur: a Dockerfile that holds them is refused when it is read.

mod error;
mod lexer;
mod pattern;

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

pub use error::{ExpandError, ExpandErrorKind};
use lexer::{Lexer, Mode};

/// How deep operands may nest, as in `${a:-${b:-${c}}}`. Nobody writes ten; each level costs stack.
pub const MAX_NESTING: usize = 128;

/// The longest result of one expansion, in bytes. Without it a few lines of `ENV a=$a$a` ask for terabytes. The kernel
/// refuses environment entries above 128 KiB, so nothing that could run comes near.
pub const MAX_EXPANDED_BYTES: usize = 16 * 1024 * 1024;

/// Where values of variables come from.
pub trait Lookup {
    /// The value of `name`; `None` if it is unset, which differs from empty.
    fn value(&self, name: &str) -> Option<&str>;
}

impl<L: Lookup + ?Sized> Lookup for &L {
    fn value(&self, name: &str) -> Option<&str> {
        (**self).value(name)
    }
}

impl<K: Borrow<str> + Ord, V: AsRef<str>> Lookup for BTreeMap<K, V> {
    fn value(&self, name: &str) -> Option<&str> {
        self.get(name).map(AsRef::as_ref)
    }
}

/// Of several entries of one name the last one counts.
impl<K: AsRef<str>, V: AsRef<str>> Lookup for [(K, V)] {
    fn value(&self, name: &str) -> Option<&str> {
        self.iter().rev().find(|(key, _)| key.as_ref() == name).map(|(_, value)| value.as_ref())
    }
}

/// Of several entries of one name the last one counts.
impl<K: AsRef<str>, V: AsRef<str>, const N: usize> Lookup for [(K, V); N] {
    fn value(&self, name: &str) -> Option<&str> {
        self.as_slice().value(name)
    }
}

/// Of several entries of one name the last one counts.
impl<K: AsRef<str>, V: AsRef<str>> Lookup for Vec<(K, V)> {
    fn value(&self, name: &str) -> Option<&str> {
        self.as_slice().value(name)
    }
}

/// An expanded word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expanded {
    /// The text, without quotes and escapes.
    pub text: String,
    /// Names that were read and had a value.
    pub used: BTreeSet<String>,
    /// Names that were read and had none, a default for them or not (lint rule UndefinedVar).
    pub unset: BTreeSet<String>,
}

/// A word that expanded into several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExpandedWords {
    /// The words, none of them empty.
    pub words: Vec<String>,
    /// Names that were read and had a value.
    pub used: BTreeSet<String>,
    /// Names that were read and had none.
    pub unset: BTreeSet<String>,
}

/// Expands a word; the result is one word, blanks in values or not.
///
/// `escape` is the Dockerfile's escape character.
///
/// # Errors
/// When quotes or braces are not closed, a modifier or pattern is wrong, a required variable (`${v:?}`) is missing, or
/// one of this module's limits is passed.
pub fn expand(raw: &str, escape: char, env: &(impl Lookup + ?Sized)) -> Result<Expanded, ExpandError> {
    let mut lexer = Lexer::new(raw, escape, Mode::Word, &env);
    let (text, _) = lexer.run()?;
    let (used, unset) = lexer.into_names();
    Ok(Expanded { text, used, unset })
}

/// Expands a word of `EXPOSE`: unquoted blanks in the expanded text separate words (W-10).
///
/// # Errors
/// As [`expand`].
pub fn expand_words(raw: &str, escape: char, env: &(impl Lookup + ?Sized)) -> Result<ExpandedWords, ExpandError> {
    let mut lexer = Lexer::new(raw, escape, Mode::Word, &env);
    let (_, words) = lexer.run()?;
    let (used, unset) = lexer.into_names();
    Ok(ExpandedWords { words, used, unset })
}

/// Expands the body of an unquoted heredoc of `COPY` or `ADD`: quotes are text, and the escape is a backslash whatever
/// the Dockerfile says (H-11).
///
/// # Errors
/// As [`expand`].
pub fn expand_heredoc(body: &str, env: &(impl Lookup + ?Sized)) -> Result<Expanded, ExpandError> {
    let mut lexer = Lexer::new(body, '\\', Mode::HeredocBody, &env);
    let (text, _) = lexer.run()?;
    let (used, unset) = lexer.into_names();
    Ok(Expanded { text, used, unset })
}

/// Fills in the variables of a whole instruction line that have a value; quotes, escapes and everything else stay as
/// written. For showing a `RUN`, whose shell expands for itself.
///
/// # Errors
/// As [`expand`]; a shell's own syntax often is none here.
pub fn expand_line(line: &str, escape: char, env: &(impl Lookup + ?Sized)) -> Result<String, ExpandError> {
    Lexer::new(line, escape, Mode::RawLine, &env).run().map(|(text, _)| text)
}

/// An environment without variables.
struct Nothing;

impl Lookup for Nothing {
    fn value(&self, _: &str) -> Option<&str> {
        None
    }
}

/// Splits an instruction line into words as BuildKit does to look for heredocs: quotes, escapes and variables stay as
/// written, and blanks behind `<<` do not end a word (H-02). `None` if the line cannot be read that way, for example
/// because of an apostrophe in a RUN; such a line holds no heredocs.
pub(super) fn split_raw(line: &str) -> Option<Vec<String>> {
    let mut lexer = Lexer::new(line, '\\', Mode::RawLine, &Nothing);
    lexer.run().ok().map(|(_, words)| words)
}

/// Reads the name of a heredoc: with quotes removed, and as with quotes kept; each as words.
pub(super) fn heredoc_name(raw: &str) -> Option<(Vec<String>, Vec<String>)> {
    let words = |mode| Lexer::new(raw, '\\', mode, &Nothing).run().ok().map(|(_, words)| words);
    Some((words(Mode::HeredocName)?, words(Mode::HeredocNameQuoted)?))
}

#[cfg(test)]
mod tests;
