//! A text that is no output: what is wrong with it, and what may have been meant.

use std::fmt;

use super::words::{TYPES, keys_of};
use crate::hint::Hint;

/// A text that is no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid output `{text}`: {kind}")]
pub struct TargetError {
    /// The whole text.
    pub text: String,
    /// What is wrong with it.
    pub kind: TargetErrorKind,
}

/// What is wrong with an output.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetErrorKind {
    /// The text is empty.
    Empty,
    /// A quote is not closed, or text follows one.
    Quotes,
    /// There is no `type=`.
    NoType,
    /// There is no such type.
    UnknownType(String),
    /// This type has no such key.
    UnknownKey {
        /// The key.
        key: String,
        /// The type.
        exporter: &'static str,
    },
    /// A key appears twice.
    Repeated(&'static str),
    /// A key needs a value.
    NoValue(&'static str),
    /// A value is not one of those that the key takes.
    BadValue {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// `dest=` is missing.
    NoDestination(&'static str),
    /// A directory cannot be written to standard output.
    DirectoryToStdout(&'static str),
    /// `type=image` without `push=true`.
    NowhereToKeep,
    /// Known elsewhere, and deliberately not here.
    Unsupported {
        /// `key=value`
        what: String,
        /// Why.
        reason: &'static str,
    },
    /// A name with a tag cannot be pushed by digest (checklist X-01).
    TaggedByDigest(String),
    /// Two keys exclude each other.
    Conflict(&'static str, &'static str),
    /// `annotation…` is malformed.
    BadAnnotation(String),
}

impl fmt::Display for TargetErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::Quotes => f.write_str("a quote is not closed or stands within a value"),
            Self::NoType => f.write_str("type=… is missing"),
            Self::UnknownType(given) => write!(f, "there is no type `{given}`"),
            Self::UnknownKey { key, exporter } => write!(f, "type={exporter} has no key `{key}`"),
            Self::Repeated(key) => write!(f, "`{key}` is given twice"),
            Self::NoValue(key) => write!(f, "`{key}` needs a value"),
            Self::BadValue { key, value, expected } => write!(f, "{key}={value} is not {expected}"),
            Self::NoDestination(exporter) => write!(f, "type={exporter} needs dest=…"),
            Self::DirectoryToStdout(exporter) => write!(f, "type={exporter} cannot go to standard output"),
            Self::NowhereToKeep => f.write_str("there is no daemon that would keep the image"),
            Self::Unsupported { what, reason } => write!(f, "{what} is not supported: {reason}"),
            Self::TaggedByDigest(name) => write!(f, "can't push tagged ref {name} by digest"),
            Self::Conflict(a, b) => write!(f, "{a} conflicts with {b}"),
            Self::BadAnnotation(text) => {
                write!(
                    f,
                    "`{text}` is not annotation[-manifest|-index|-manifest-descriptor|-index-descriptor][[platform]].KEY"
                )
            }
        }
    }
}

impl Hint for TargetError {
    fn hint(&self) -> Option<String> {
        let near =
            |given: &str, known: &[&'static str]| nearest(given, known).map(|found| format!("did you mean `{found}`?"));
        match &self.kind {
            TargetErrorKind::UnknownType(given) => {
                near(given, TYPES).or_else(|| Some(format!("the types are {}", TYPES.join(", "))))
            }
            TargetErrorKind::UnknownKey { key, exporter } => near(key, &keys_of(exporter)),
            TargetErrorKind::NoType | TargetErrorKind::Empty => {
                Some("write a directory, `-`, or type=registry|oci|docker|tar|local,dest=…".to_owned())
            }
            TargetErrorKind::NowhereToKeep => {
                Some("add push=true, or write type=oci,dest=FILE or type=docker,dest=FILE".to_owned())
            }
            TargetErrorKind::NoDestination("docker") => Some("dest=- is standard output".to_owned()),
            _ => None,
        }
    }
}

/// The known word that takes the fewest changes, if those are few.
fn nearest(given: &str, known: &[&'static str]) -> Option<&'static str> {
    let distance = |known: &str| {
        let known: Vec<char> = known.chars().collect();
        let mut row: Vec<usize> = (0..=known.len()).collect();
        for (i, a) in given.to_ascii_lowercase().chars().enumerate() {
            let mut diagonal = std::mem::replace(&mut row[0], i + 1);
            for (j, b) in known.iter().enumerate() {
                let changed = diagonal + usize::from(a != *b);
                diagonal = row[j + 1];
                row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
            }
        }
        row[known.len()]
    };
    known
        .iter()
        .map(|known| (distance(known), *known))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, known)| known)
}
