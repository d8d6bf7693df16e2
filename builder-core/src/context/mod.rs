//! Build context: `.dockerignore`, walk, content hash.
//!
//! [`Files`] is what COPY and ADD read: a directory of the host, seen through its ignore file, or the root filesystem of
//! a stage. Paths are resolved inside it, and what the ignore file hides does not exist. Hashes of file contents are
//! kept under the work dir, so that a second build reads no file that it knows:
//!
//! ```text
//! <hash directory>/<sha256 of the context's path>   one record per file, see `hashes`
//! ```
//!
//! Architecture invariant: stages are not known here, and nothing here changes a file that it did not make.

mod archive;
mod clue;
mod fetched;
mod files;
pub mod git;
pub(crate) mod glob;
mod hashes;
mod ignore;
mod remote;
mod repository;
mod walk;

pub use archive::ArchiveError;
pub(crate) use archive::{detect, make_directories, unpack};
pub use clue::Clue;
pub use fetched::{FetchedContext, FetchedTree};
pub(crate) use files::Found;
pub use files::{Files, FilesError, HashCounts};
pub use glob::BadPattern;
pub(crate) use hashes::FileHash;
pub(crate) use ignore::clean;
pub use ignore::{IgnoreError, IgnoreFile, IgnoreFileError, Patterns, find_ignore_file};
pub(crate) use remote::{Checkout, Download, shown as shown_url};
pub use remote::{Remote, RemoteError, SecretLookup, SshAgentSocket};
pub(crate) use repository::login as git_login;
pub use repository::{GitOptions, GitOptionsError, Repository, RepositoryError};
pub(crate) use walk::{Selection, TreeEntries, TreeEntry};

#[cfg(test)]
pub(crate) mod testing;
