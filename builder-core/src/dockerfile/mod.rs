//! Dockerfile text → spanned, typed instructions; word expansion given an environment; findings.
//!
//! Three passes, as in BuildKit: physical lines and heredocs ([`lines`]), words and flags ([`flags`]), typed
//! instructions ([`instruction`]). Word expansion ([`words`]) happens later, in `plan`, where the environment is known.
//!
//! Architecture invariant: this module knows neither images nor files, and what a stage means is `plan`'s business.

pub mod instruction;
mod source;

pub use instruction::*;
pub use source::{LineRange, Source, Span, Spanned};
