//! Builds OCI images from Dockerfiles without a daemon and without privileges.

pub mod cancel;
pub mod context;
pub mod copy;
pub mod dockerfile;
pub mod event;
pub mod exec;
pub mod hint;
pub mod http;
pub mod image;
pub mod layer;
pub mod limits;
pub mod oci;
pub mod output;
pub mod plan;
pub mod registry;
pub mod rootfs;
pub mod sandbox;
pub mod snapshot;
pub mod source;
pub mod store;
