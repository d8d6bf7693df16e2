//! The distribution protocol over [`crate::http`]; blobs as streams.
