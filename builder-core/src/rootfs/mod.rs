//! Layers → directory trees, and safe operations within one tree; paths never escape its root.
//!
//! Architecture invariant: who runs in a tree, and what a change becomes in a layer, is not known here.

mod applied;
mod archive;
mod attributes;
mod borrowed;
mod descend;
mod duplicate;
mod entries;
mod fetch;
mod fixup;
mod frames;
mod frozen;
mod hide;
mod holds;
pub mod index;
mod inflate;
mod links;
mod listing;
mod merge;
mod ordered;
mod overlay;
mod owners;
mod pax;
mod plain;
mod pretend;
mod recall;
mod remove;
mod resolve;
mod sparse;
mod stack;
mod stat;
#[cfg(test)]
mod test_layers;
mod touched;
mod tree;
mod tree_error;
mod trees;
mod unpack;
mod users;
mod view;
mod volume;
mod wanted;
mod workdir;

pub use archive::{TarEntry, TarError, TarKind, TarProblem, TarReader};
pub(crate) use attributes::{CAPABILITY, capability};
pub use entries::DirectoryEntry;
pub use frozen::{Held, Holding};
pub use listing::{ListError, Listed, Listing, is_below, path_order};
pub(crate) use ordered::Guide;
pub use owners::{Bytes as FileBytes, Facts, Key as InodeKey, Owners};
pub(crate) use recall::hash_all;
pub use recall::{Recall, Recalled, Unchanged};
pub use resolve::clean;
pub use sparse::{Original, Seen, Tee};
pub use touched::Touched;
pub use tree::*;
pub use tree_error::TreeError;
pub use trees::*;
pub use users::*;
pub use view::View;
pub(crate) use volume::lock_file;
pub use volume::{Fitness, Volume};
pub use wanted::Expected;
