//! Layers → directory trees, and safe operations within one tree; paths never escape its root.
//!
//! Architecture invariant: who runs in a tree, and what a change becomes in a layer, is not known here.

mod tree;
mod trees;
mod users;

pub use tree::*;
pub use trees::*;
pub use users::*;
