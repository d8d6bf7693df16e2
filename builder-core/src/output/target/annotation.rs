//! Annotations, as outputs and `--annotation` name them.

use super::TargetErrorKind;
use crate::hint::Hint;
use crate::oci::Platform;

/// `annotation[-LEVEL][[PLATFORM]].KEY=VALUE` (checklist X-09).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// What it is attached to.
    pub level: AnnotationLevel,
    /// Only for this platform.
    pub platform: Option<Platform>,
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
}

/// What an annotation is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AnnotationLevel {
    /// The manifest itself.
    Manifest,
    /// The manifest's descriptor in an index.
    ManifestDescriptor,
    /// The index itself.
    Index,
    /// The index's descriptor in a layout.
    IndexDescriptor,
}

impl AnnotationLevel {
    /// Every level by the name that command lines have for it.
    const NAMES: [(&'static str, Self); 4] = [
        ("manifest", Self::Manifest),
        ("manifest-descriptor", Self::ManifestDescriptor),
        ("index", Self::Index),
        ("index-descriptor", Self::IndexDescriptor),
    ];
}

impl Annotation {
    /// Reads `[LEVEL[[PLATFORM]][,LEVEL…]:]KEY=VALUE`, as `docker buildx build --annotation` does: one annotation for each
    /// level, and for the manifest if none is named.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Vec<Self>, AnnotationError> {
        let error = |kind| AnnotationError { text: text.to_owned(), kind };
        let (name, value) = text.split_once('=').ok_or_else(|| error(AnnotationErrorKind::NoValue))?;
        let (levels, key) = name.split_once(':').unwrap_or(("manifest", name));
        if key.is_empty() {
            return Err(error(AnnotationErrorKind::NoKey));
        }
        levels
            .split(',')
            .map(|level| {
                let unknown = || error(AnnotationErrorKind::UnknownLevel(level.to_owned()));
                let (name, platform) = match level.split_once('[') {
                    None => (level, None),
                    Some((name, rest)) => {
                        let platform = rest.strip_suffix(']').ok_or_else(unknown)?;
                        let parsed = platform.parse();
                        let parsed =
                            parsed.map_err(|_| error(AnnotationErrorKind::BadPlatform(platform.to_owned())))?;
                        (name, Some(parsed))
                    }
                };
                let known = AnnotationLevel::NAMES.iter().find(|(known, _)| *known == name);
                let (_, level) = known.ok_or_else(unknown)?;
                Ok(Self { level: *level, platform, key: key.to_owned(), value: value.to_owned() })
            })
            .collect()
    }
}

/// A text that is no annotation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid annotation `{text}`: {kind}")]
pub struct AnnotationError {
    /// The whole text.
    pub text: String,
    /// What is wrong with it.
    pub kind: AnnotationErrorKind,
}

/// What is wrong with an annotation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnotationErrorKind {
    /// There is no `=`.
    #[error("expected key=value")]
    NoValue,
    /// Nothing stands before the `=`.
    #[error("the key is empty")]
    NoKey,
    /// What stands before the colon is no level.
    #[error("unknown annotation type `{0}`")]
    UnknownLevel(String),
    /// What stands in brackets is no platform.
    #[error("`{0}` is not a platform")]
    BadPlatform(String),
}

impl Hint for AnnotationError {
    fn hint(&self) -> Option<String> {
        match &self.kind {
            AnnotationErrorKind::UnknownLevel(_) => Some(format!(
                "before the colon stands what is annotated: {}; a key with a colon is written `manifest:KEY=VALUE`",
                AnnotationLevel::NAMES.map(|(name, _)| name).join(", ")
            )),
            AnnotationErrorKind::BadPlatform(_) => Some("write os/arch or os/arch/variant".to_owned()),
            AnnotationErrorKind::NoValue | AnnotationErrorKind::NoKey => None,
        }
    }
}

/// Reads one key of an output.
pub(super) fn annotation(key: &str, value: Option<&str>) -> Result<Annotation, TargetErrorKind> {
    let bad = || TargetErrorKind::BadAnnotation(key.to_owned());
    let rest = key.strip_prefix("annotation").ok_or_else(bad)?;
    let levels = [
        ("-manifest-descriptor", AnnotationLevel::ManifestDescriptor),
        ("-index-descriptor", AnnotationLevel::IndexDescriptor),
        ("-manifest", AnnotationLevel::Manifest),
        ("-index", AnnotationLevel::Index),
        ("", AnnotationLevel::Manifest),
    ];
    let (rest, level) =
        levels.iter().find_map(|(text, level)| rest.strip_prefix(text).map(|rest| (rest, *level))).ok_or_else(bad)?;
    let (rest, platform) = match rest.strip_prefix('[') {
        None => (rest, None),
        Some(rest) => {
            let (platform, rest) = rest.split_once(']').ok_or_else(bad)?;
            (rest, Some(platform.parse().map_err(|_| bad())?))
        }
    };
    let name = rest.strip_prefix('.').filter(|name| !name.is_empty()).ok_or_else(bad)?;
    let value = value.ok_or_else(bad)?;
    Ok(Annotation { level, platform, key: name.to_owned(), value: value.to_owned() })
}
