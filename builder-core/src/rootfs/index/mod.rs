//! What the layers of a tree hold, known without unpacking them.
//!
//! A layer's index is written while its tar streams by, for whatever reason it does: it is unpacked, it is sealed, or it is
//! read for its index alone. It lists the entries of the tar in their order, with all that a header says, and with the
//! content of the small files in which names of users are looked up; where trees are plain directories also with hashes of what files
//! hold, since a step overwrites the only copy there. [`Indexes`] keeps it under the work dir by the layer's
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
//! - An [`IndexTree`] is in memory, about 250 bytes a file: [`Bounds`] keep it small.

mod bulk;
mod content;
mod extract;
mod format;
mod kept;
mod made;
mod node;
mod replay;
mod step;
#[cfg(test)]
mod tests;
mod trees;
mod walk;

pub use bulk::{Bulk, BulkFile, BulkFiles};
pub use content::{Content, Passing};
pub use extract::{Places, Visit};
pub use format::{IndexEntry, IndexReader, IndexWriter};
pub use kept::{Indexes, Recorder};
pub use made::{MadeFile, Opened};
pub use node::{IndexNode, IndexTree};
pub use replay::ReplayError;
pub use step::{IndexStep, Unsuited};

/// How much of trees may be in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Entries of all layers of the trees that are held; a tree with more is unpacked.
    pub entries: u64,
    /// Regular files that a step may make in a tree in memory one by one; one with more is done in a directory.
    pub files_of_step: usize,
    /// Files that a COPY finds below a directory from which on those in new places are brought in bulk ([`Bulk`]). The tree
    /// behind such a step is read from the index of its layer, which is not worth while for a few.
    pub bulk_from: usize,
}

impl Bounds {
    /// Memory that a file of a tree takes, in bytes: its node, its name, and its place among the names of its directory.
    const ENTRY_BYTES: u64 = 250;

    /// Memory that a file of a step takes until its layer is written, in bytes: the same, where its content is, and what
    /// is known of its identity.
    const FILE_OF_STEP_BYTES: u64 = 750;

    /// What fits into so much memory, in bytes: of trees, and of steps.
    pub fn of_memory(trees: u64, steps: u64) -> Self {
        let files = usize::try_from(steps / Self::FILE_OF_STEP_BYTES).unwrap_or(usize::MAX);
        Self { entries: trees / Self::ENTRY_BYTES, files_of_step: files, bulk_from: 1000 }
    }
}

impl Default for Bounds {
    /// What a builder takes that is not told how much memory there is.
    fn default() -> Self {
        Self::of_memory(64 << 20, 24 << 20)
    }
}

/// Largest user file whose content an index keeps, in bytes. Images have files of one or two thousand.
pub const KEPT_CONTENT_BYTES: u64 = 64 * 1024;
