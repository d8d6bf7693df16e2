//! What the tests of the built binary share: the conformance corpus with its comparer, a real registry, and finding and
//! running `slipway` itself.
//!
//! Nothing here links `builder-core`: what these tests know of an image they read from its bytes, so that a mistake in
//! slipway's own reader cannot hide one in its writer.

pub mod conformance;
pub mod debian;
pub mod environment;
pub mod layers;
pub mod listing;
pub mod machine;
pub mod pods;
pub mod process;
pub mod registry;
pub mod slipway;
pub mod trials;
pub mod user;
