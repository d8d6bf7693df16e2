//! One file a command: each calls the library and writes its result.

pub mod build;
pub mod cache;
pub mod call;
pub mod completions;
pub mod info;
pub mod inspect;
pub mod man;
pub mod version;

use std::io::Write as _;

/// Writes a result to standard output. A reader that went away is no error of ours.
pub fn result(text: &str) {
    let mut out = std::io::stdout().lock();
    _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
