//! What the layers of a tree hold, known without unpacking them.
//!
//! A layer's index is written while its tar streams by, for whatever reason it does: it is unpacked, it is sealed, or it is
//! read for its index alone. It lists the entries of the tar in their order, with all that a header says, and with the
//! content of the small files in which names of users are looked up. [`Indexes`] keeps it under the work dir by the layer's
//! diff_id. Replayed one onto the other the indexes of a stack give an [`IndexTree`]: the tree that unpacking the same layers
//! would give, in memory (`replay` follows `unpack` rule by rule, and the tests of `trees` run on both). A tree shares with its
//! copies what neither changed, so a step keeps the tree before it for nothing, and comparing the two costs what it
//! changed. [`IndexStep`] is such a step: COPY, ADD and WORKDIR change it as they change a [`super::Rootfs`].
//!
//! ```text
//! <work>/trees/indexes/<diff_id>   a magic line, then one zstd frame of entries with a checksum; see `format`
//! ```
//!
//! # Limitations
//! - Of extended attributes only `security.capability` is kept: a layer that is written has no others.
//! - An [`IndexTree`] is in memory, about 250 bytes a file: [`MAX_ENTRIES`] bounds it.

mod content;
mod extract;
mod format;
mod kept;
mod node;
mod replay;
mod step;
#[cfg(test)]
mod tests;
mod trees;
mod walk;

pub use content::Content;
pub use extract::{Places, Visit};
pub use format::{IndexEntry, IndexReader, IndexWriter};
pub use kept::{Indexes, Recorder};
pub use node::{IndexNode, IndexTree};
pub use replay::ReplayError;
pub use step::{IndexStep, Opened, Unsuited};

/// Entries of all layers of a tree that is held in memory; one with more is unpacked. At about 250 bytes each this stays
/// within the memory that a build may have.
pub const MAX_ENTRIES: u64 = 300_000;

/// Regular files that a step may make in a tree in memory; one with more is done in a directory. Each takes about a
/// kilobyte until its layer is written.
pub const MAX_FILES_OF_STEP: usize = 75_000;

/// Largest user file whose content an index keeps, in bytes. Images have files of one or two thousand.
pub const KEPT_CONTENT_BYTES: u64 = 64 * 1024;
