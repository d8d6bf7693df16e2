//! The conformance corpus: its cases, their preparation, and the comparison of an image with BuildKit's recorded answer.
//!
//! A port of the corpus' own Python scripts (`fixtures/conformance`), which say what "equal" means; with
//! `CONFORMANCE_PYTHON=1` the harness asks both about every image and fails where they disagree.
//!
//! # Limitations
//! Differences of file contents are shown by their first differing line, not as a diff.

mod case;
mod compare;
mod http;
mod image;
mod json;
mod prepare;
mod status;
mod tree;

pub use case::{Case, Expect, Golden, NamedValue, SecretValue, all_cases};
pub use compare::{Comparer, Differences};
pub use http::FileServer;
pub use image::{Image, ImageError};
pub use prepare::Prepared;
pub use status::{Level, Mode, Status};
pub use tree::{Entry, layer_entries, matches};
