//! `COPY`, `ADD` and `WORKDIR` into a root filesystem: wildcards, ownership, mode, archives, URLs.
//!
//! [`resolve`] finds the sources and changes nothing; [`ResolvedCopy::content_hash`] is the content part of the step's cache key.
//! [`apply`] writes them into the target. For `--link` the caller gives `apply` an empty target and lays the result over
//! the stage as a layer of its own, unless `--chmod` is there too (checklist C-40, C-41): see [`links`]. Links of the
//! stage are then not seen, a missing parent directory is made anew with mode 0755, and names in `--chown` are errors
//! (C-33).
//!
//! Architecture invariant: layers and images are not known here.

mod apply;
mod bulk;
mod error;
mod mode;
mod owner;
mod remote;
mod resolve;
mod target;

pub use apply::{apply, workdir};
pub use error::CopyError;
use error::{attributes_error, io_error};
pub use mode::{ModeChange, ModeError, Operation};
pub use resolve::{ContentHash, ResolvedCopy, resolve, resolve_with_remote};

use crate::plan::CopyAction;

/// Whether `action` is to be applied to an empty tree whose layer is then put on top of the stage.
pub fn links(action: &CopyAction) -> bool {
    action.link && action.chmod.is_none()
}

#[cfg(test)]
mod git_tests;
#[cfg(test)]
mod remote_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
