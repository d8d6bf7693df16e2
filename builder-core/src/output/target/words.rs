//! The words of `--output`: every type and its keys.

/// Every `type=`.
pub(super) const TYPES: &[&str] = &["registry", "image", "oci", "docker", "tar", "local", "cacheonly"];
const IMAGE_KEYS: &[&str] = &[
    "name",
    "compression",
    "compression-level",
    "force-compression",
    "oci-mediatypes",
    "rewrite-timestamp",
    "source-date-epoch",
    "annotation",
];
const REGISTRY_KEYS: &[&str] = &["push", "push-by-digest", "registry.insecure", "unpack", "store"];
const ARCHIVE_KEYS: &[&str] = &["dest", "tar"];
const TAR_KEYS: &[&str] = &["dest", "platform-split", "source-date-epoch"];
const LOCAL_KEYS: &[&str] = &["dest", "platform-split", "source-date-epoch", "mode"];

/// The keys of a type.
pub(super) fn keys_of(exporter: &str) -> Vec<&'static str> {
    match exporter {
        "registry" | "image" => [IMAGE_KEYS, REGISTRY_KEYS].concat(),
        "oci" | "docker" => [IMAGE_KEYS, ARCHIVE_KEYS].concat(),
        "tar" => TAR_KEYS.to_vec(),
        "local" => LOCAL_KEYS.to_vec(),
        _ => Vec::new(),
    }
}
