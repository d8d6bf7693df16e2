//! Layers → directory trees, and safe operations within one tree; paths never escape its root.
//!
//! Architecture invariant: who runs in a tree, and what a change becomes in a layer, is not known here.

mod attributes;
mod entries;
mod listing;
mod remove;
mod resolve;
mod sparse;
mod stat;
mod tree;
mod trees;
mod users;

pub use entries::DirectoryEntry;
pub use listing::{ListError, Listed, Listing, path_order};
pub use resolve::clean;
pub use tree::*;
pub use trees::*;
pub use users::*;
