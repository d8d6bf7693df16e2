//! Dockerfile text → spanned, typed instructions; word expansion given an environment; findings.
//!
//! Three passes, as in BuildKit: physical lines and heredocs (`lines`, `directives`, `heredoc`), words and flags
//! (`flags`, `json`, `syntax`), typed instructions (`typed` → [`instruction`]). Word expansion ([`words`]) happens
//! later, in `plan`, where the environment is known. [`lint`] holds the rules and their sentences.
//!
//! # Limitations
//! The text must be UTF-8, comments aside ([`decode`]). Errors of directives and of lines that are too long tell their own line, where BuildKit
//! tells the one before; [`ParseError::lines_in_buildkit`] gives that.
//!
//! Architecture invariant: this module knows neither images nor files (but for [`read`]), and what a stage means is
//! `plan`'s business.

pub mod instruction;
pub mod lint;
pub mod words;

mod decode;
mod directives;
mod duration;
mod error;
mod flags;
mod heredoc;
mod json;
mod lines;
mod parse;
mod quote;
mod source;
mod syntax;
mod typed;

pub use decode::{NotUtf8, decode};
pub use error::{
    CsvProblem, DurationProblem, ErrorClass, MAX_LINE_BYTES, ParseError, ParseErrorKind, ParseErrors, ReadError,
};
pub use flags::csv_fields;
pub use instruction::*;
pub use parse::{parse, parse_trigger, read};
pub use quote::Quoted;
pub use source::{LineRange, Source, Span, Spanned};
pub use typed::{directives as directive_names, instructions as instruction_names};
