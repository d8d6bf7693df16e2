//! [`crate::image::Image`] → registry, OCI layout, OCI or docker archive, directory or tar of files; blobs before config before manifest.
