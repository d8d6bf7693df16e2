//! Name + platform → resolved base image, from a registry, a layout directory or `scratch`.
