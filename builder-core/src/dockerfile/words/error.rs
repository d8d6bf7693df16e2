//! What expansion can fail with.

use super::{MAX_EXPANDED_BYTES, MAX_NESTING};
use crate::dockerfile::quote::Quoted;
use crate::hint::Hint;

/// A word that cannot be expanded. Displays as BuildKit words it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {}: {kind}", Quoted(word))]
pub struct ExpandError {
    /// The whole raw word.
    pub word: String,
    /// Byte offset in `word` of the `$` or quote that is at fault.
    pub offset: usize,
    /// What is wrong.
    pub kind: ExpandErrorKind,
}

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExpandErrorKind {
    /// `${}`, `${:` or `${{`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// `${` or an operand without its brace.
    #[error("syntax error: missing '}}'")]
    MissingBrace,
    /// `${v/p` without the second slash.
    #[error("syntax error: missing '/' in ${{}}")]
    MissingSlash,
    /// Not one of the operators of section W.
    #[error("unsupported modifier ({modifier}) in substitution")]
    UnsupportedModifier {
        /// What stands behind the name; U+FFFD for the end of the word.
        modifier: String,
    },
    /// A pattern with an escape other than of `*`, `?`, backslash, `}` and `/`.
    #[error("invalid pattern ({pattern}) in substitution: invalid escape '\\{escaped}'")]
    InvalidPattern {
        /// The pattern; reversed for `%` and `%%`, as in BuildKit.
        pattern: String,
        /// The character behind the backslash.
        escaped: char,
    },
    /// A single quote without its partner.
    #[error("unexpected end of statement while looking for matching single-quote")]
    UnmatchedSingleQuote,
    /// A double quote without its partner.
    #[error("unexpected end of statement while looking for matching double-quote")]
    UnmatchedDoubleQuote,
    /// `${v?m}` or `${v:?m}` of a variable that is missing.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The text behind `?`, or BuildKit's wording for none.
        message: String,
    },
    /// Operands nest too deep.
    #[error("substitutions nest deeper than {MAX_NESTING} levels")]
    TooDeep,
    /// The result is too long.
    #[error("expands to more than {MAX_EXPANDED_BYTES} bytes")]
    TooLong,
}

impl Hint for ExpandError {
    fn hint(&self) -> Option<String> {
        match &self.kind {
            ExpandErrorKind::UnsupportedModifier { modifier } if modifier.starts_with('=') || modifier == ":=" => {
                Some("variables cannot be assigned here; `:-` gives a default".to_owned())
            }
            ExpandErrorKind::UnsupportedModifier { modifier } if modifier.starts_with('\u{fffd}') => {
                Some("a closing `}` is missing".to_owned())
            }
            ExpandErrorKind::MissingSlash => Some("write `${name/pattern/replacement}`".to_owned()),
            ExpandErrorKind::UnmatchedSingleQuote | ExpandErrorKind::UnmatchedDoubleQuote => {
                Some("close the quote, or write an escape before it; paths with blanks need the JSON form".to_owned())
            }
            ExpandErrorKind::Required { name, .. } => Some(format!("give it with `--build-arg {name}=…` or `ENV`")),
            _ => None,
        }
    }
}
