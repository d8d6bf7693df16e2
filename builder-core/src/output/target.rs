//! `--output`: what is written where, as a value.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::hint::Hint;
use crate::layer::Compression;
use crate::oci::{Platform, Reference};

/// One `--output`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Which form, and where it goes.
    pub exporter: Exporter,
    /// `name=`: more names for the image, besides those of `--tag`.
    pub names: Vec<Reference>,
    /// Compression of new layers; `None` if not asked for.
    pub compression: Option<Compression>,
    /// Bring base layers to that compression as well.
    pub force_compression: bool,
    /// `oci-mediatypes=`; `None` if not asked for.
    pub oci_media_types: Option<bool>,
    /// `annotation…=`, in the order given.
    pub annotations: Vec<Annotation>,
    /// Clamp the times in new layers to the source date epoch.
    pub rewrite_timestamp: bool,
    /// `source-date-epoch=`: overrides that of the build; `Some(None)` switches it off (checklist X-13).
    pub source_date_epoch: Option<Option<i64>>,
}

/// Which form an output has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exporter {
    /// Pushed to a registry (`type=registry`, `type=image,push=true`).
    Registry {
        /// Under no tag, only its digest.
        by_digest: bool,
        /// Plain HTTP or unverified TLS is fine for these names.
        insecure: bool,
    },
    /// OCI layout as a tar (`type=oci`).
    OciArchive(Destination),
    /// OCI layout as a directory (`type=oci,tar=false`).
    OciDirectory(PathBuf),
    /// `docker load` format, which is an OCI layout as well (`type=docker`).
    DockerArchive(Destination),
    /// OCI layout as a directory that holds this image alone, without a name, whatever was there.
    OnlyOciDirectory(PathBuf),
    /// The form that `docker save` had before it was an OCI layout: `sha256:<hex>` is the config, `<hex>.tar.gz` a layer.
    DockerSave {
        /// Where to.
        to: Destination,
        /// The names in it, as they are to be read.
        names: Vec<String>,
    },
    /// The files of the root filesystem as a tar (`type=tar`).
    Tar {
        /// Where to.
        to: Destination,
        /// One directory a platform; `None`: only if there are several.
        platform_split: Option<bool>,
    },
    /// The files of the root filesystem in a directory (`type=local`).
    Local {
        /// Where to.
        directory: PathBuf,
        /// One directory a platform; `None`: only if there are several.
        platform_split: Option<bool>,
        /// Remove what is there and not in the result (`mode=delete`).
        delete: bool,
    },
    /// Nothing is written; the result stays in the work dir (`type=cacheonly`).
    CacheOnly,
}

/// A file, or standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// `-`
    Stdout,
    /// A file; replaced only when the new one is whole.
    File(PathBuf),
}

impl Destination {
    /// `-`, or the path as people read it.
    pub fn name(&self) -> Cow<'_, str> {
        match self {
            Self::Stdout => Cow::Borrowed("-"),
            Self::File(path) => Cow::Owned(path.display().to_string()),
        }
    }
}

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

/// A text that is no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid output `{text}`: {kind}")]
pub struct TargetError {
    /// The whole text.
    pub text: String,
    /// What is wrong with it.
    pub kind: TargetErrorKind,
}

/// What is wrong with an output.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetErrorKind {
    /// The text is empty.
    Empty,
    /// A quote is not closed, or text follows one.
    Quotes,
    /// There is no `type=`.
    NoType,
    /// There is no such type.
    UnknownType(String),
    /// This type has no such key.
    UnknownKey {
        /// The key.
        key: String,
        /// The type.
        exporter: &'static str,
    },
    /// A key appears twice.
    Repeated(&'static str),
    /// A key needs a value.
    NoValue(&'static str),
    /// A value is not one of those that the key takes.
    BadValue {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// `dest=` is missing.
    NoDestination(&'static str),
    /// A directory cannot be written to standard output.
    DirectoryToStdout(&'static str),
    /// `type=image` without `push=true`.
    NowhereToKeep,
    /// Known elsewhere, and deliberately not here.
    Unsupported {
        /// `key=value`
        what: String,
        /// Why.
        reason: &'static str,
    },
    /// A name with a tag cannot be pushed by digest (checklist X-01).
    TaggedByDigest(String),
    /// Two keys exclude each other.
    Conflict(&'static str, &'static str),
    /// `annotation…` is malformed.
    BadAnnotation(String),
}

impl fmt::Display for TargetErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::Quotes => f.write_str("a quote is not closed or stands within a value"),
            Self::NoType => f.write_str("type=… is missing"),
            Self::UnknownType(given) => write!(f, "there is no type `{given}`"),
            Self::UnknownKey { key, exporter } => write!(f, "type={exporter} has no key `{key}`"),
            Self::Repeated(key) => write!(f, "`{key}` is given twice"),
            Self::NoValue(key) => write!(f, "`{key}` needs a value"),
            Self::BadValue { key, value, expected } => write!(f, "{key}={value} is not {expected}"),
            Self::NoDestination(exporter) => write!(f, "type={exporter} needs dest=…"),
            Self::DirectoryToStdout(exporter) => write!(f, "type={exporter} cannot go to standard output"),
            Self::NowhereToKeep => f.write_str("there is no daemon that would keep the image"),
            Self::Unsupported { what, reason } => write!(f, "{what} is not supported: {reason}"),
            Self::TaggedByDigest(name) => write!(f, "can't push tagged ref {name} by digest"),
            Self::Conflict(a, b) => write!(f, "{a} conflicts with {b}"),
            Self::BadAnnotation(text) => {
                write!(
                    f,
                    "`{text}` is not annotation[-manifest|-index|-manifest-descriptor|-index-descriptor][[platform]].KEY"
                )
            }
        }
    }
}

impl Hint for TargetError {
    fn hint(&self) -> Option<String> {
        let near =
            |given: &str, known: &[&'static str]| nearest(given, known).map(|found| format!("did you mean `{found}`?"));
        match &self.kind {
            TargetErrorKind::UnknownType(given) => {
                near(given, TYPES).or_else(|| Some(format!("the types are {}", TYPES.join(", "))))
            }
            TargetErrorKind::UnknownKey { key, exporter } => near(key, &keys_of(exporter)),
            TargetErrorKind::NoType | TargetErrorKind::Empty => {
                Some("write a directory, `-`, or type=registry|oci|docker|tar|local,dest=…".to_owned())
            }
            TargetErrorKind::NowhereToKeep => {
                Some("add push=true, or write type=oci,dest=FILE or type=docker,dest=FILE".to_owned())
            }
            TargetErrorKind::NoDestination(_) => Some("dest=- is standard output".to_owned()),
            _ => None,
        }
    }
}

const TYPES: &[&str] = &["registry", "image", "oci", "docker", "tar", "local", "cacheonly"];
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

fn keys_of(exporter: &str) -> Vec<&'static str> {
    match exporter {
        "registry" | "image" => [IMAGE_KEYS, REGISTRY_KEYS].concat(),
        "oci" | "docker" => [IMAGE_KEYS, ARCHIVE_KEYS].concat(),
        "tar" => TAR_KEYS.to_vec(),
        "local" => LOCAL_KEYS.to_vec(),
        _ => Vec::new(),
    }
}

impl Target {
    /// Every `type=` with its keys, as the reader knows them; documentation is tested with it.
    pub fn words() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
        TYPES.iter().map(|exporter| (*exporter, keys_of(exporter)))
    }

    /// An output without options.
    pub fn new(exporter: Exporter) -> Self {
        Self {
            exporter,
            names: Vec::new(),
            compression: None,
            force_compression: false,
            oci_media_types: None,
            annotations: Vec::new(),
            rewrite_timestamp: false,
            source_date_epoch: None,
        }
    }

    /// What `--push` stands for.
    pub fn push() -> Self {
        Self::new(Exporter::Registry { by_digest: false, insecure: false })
    }

    /// Reads `DIR`, `-`, or `type=…,key=value,…` in one line of CSV. Relative paths are taken from `cwd`.
    ///
    /// # Errors
    /// [`TargetError`], with a hint where a word is nearly right.
    pub fn parse(text: &str, cwd: &Path) -> Result<Self, TargetError> {
        parse(text, cwd).map_err(|kind| TargetError { text: text.to_owned(), kind })
    }

    /// Whether it takes standard output for itself, so that no digest can be printed there.
    pub fn is_stdout(&self) -> bool {
        matches!(
            &self.exporter,
            Exporter::OciArchive(Destination::Stdout)
                | Exporter::DockerArchive(Destination::Stdout)
                | Exporter::Tar { to: Destination::Stdout, .. }
        )
    }

    /// Whether the image has Docker's media types.
    pub fn wants_docker_media_types(&self) -> bool {
        self.oci_media_types == Some(false)
    }

    /// The directory in which this writes files; `None` for registries, standard output, and what writes nothing.
    pub fn directory(&self) -> Option<PathBuf> {
        match &self.exporter {
            Exporter::OciArchive(Destination::File(path))
            | Exporter::DockerArchive(Destination::File(path))
            | Exporter::Tar { to: Destination::File(path), .. } => path.parent().map(Path::to_owned),
            Exporter::OciDirectory(directory) | Exporter::Local { directory, .. } => Some(directory.clone()),
            _ => None,
        }
    }

    /// Whether this needs the files of the result, not an image.
    pub fn is_files(&self) -> bool {
        matches!(self.exporter, Exporter::Tar { .. } | Exporter::Local { .. })
    }
}

/// Key and value pairs of one output, taken out one by one.
struct Fields {
    exporter: &'static str,
    values: BTreeMap<&'static str, Option<String>>,
}

impl Fields {
    fn text(&mut self, key: &'static str) -> Result<Option<String>, TargetErrorKind> {
        match self.values.remove(key) {
            None => Ok(None),
            Some(Some(value)) => Ok(Some(value)),
            Some(None) => Err(TargetErrorKind::NoValue(key)),
        }
    }

    /// A bare key is true; otherwise what Go's `strconv.ParseBool` takes.
    fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, TargetErrorKind> {
        match self.values.remove(key) {
            None => Ok(None),
            Some(None) => Ok(Some(true)),
            Some(Some(value)) => match value.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
                _ => Err(TargetErrorKind::BadValue { key, value, expected: "true or false" }),
            },
        }
    }

    fn destination(&mut self, cwd: &Path) -> Result<Destination, TargetErrorKind> {
        match self.text("dest")?.as_deref() {
            None | Some("") => Err(TargetErrorKind::NoDestination(self.exporter)),
            Some("-") => Ok(Destination::Stdout),
            Some(path) => Ok(Destination::File(cwd.join(path))),
        }
    }

    fn directory(&mut self, cwd: &Path) -> Result<PathBuf, TargetErrorKind> {
        match self.destination(cwd)? {
            Destination::File(path) => Ok(path),
            Destination::Stdout => Err(TargetErrorKind::DirectoryToStdout(self.exporter)),
        }
    }

    fn compression(&mut self) -> Result<Option<Compression>, TargetErrorKind> {
        let kind = self.text("compression")?;
        let level = self.text("compression-level")?;
        let number = |low: u32, high: u32, expected| match &level {
            None => Ok(None),
            Some(text) => match text.parse::<u32>() {
                Ok(level) if (low..=high).contains(&level) => Ok(Some(level)),
                _ => Err(TargetErrorKind::BadValue { key: "compression-level", value: text.clone(), expected }),
            },
        };
        match kind.as_deref() {
            None if level.is_none() => Ok(None),
            None | Some("gzip") => {
                let level = number(0, 9, "a level of gzip, 0 to 9")?;
                Ok(Some(level.map_or(Compression::DEFAULT, |level| Compression::Gzip { level })))
            }
            Some("zstd") => {
                let level = number(1, 22, "a level of zstd, 1 to 22")?.and_then(|level| i32::try_from(level).ok());
                Ok(Some(level.map_or(Compression::DEFAULT_ZSTD, |level| Compression::Zstd { level })))
            }
            Some("uncompressed") => Ok(Some(Compression::None)),
            Some("estargz") => Err(TargetErrorKind::Unsupported {
                what: "compression=estargz".to_owned(),
                reason: "layers are made in one pass, and that format needs an index of the finished layer",
            }),
            Some(other) => Err(TargetErrorKind::BadValue {
                key: "compression",
                value: other.to_owned(),
                expected: "gzip, zstd or uncompressed",
            }),
        }
    }
}

fn parse(text: &str, cwd: &Path) -> Result<Target, TargetErrorKind> {
    let fields = csv(text)?;
    match fields.as_slice() {
        [] => return Err(TargetErrorKind::Empty),
        [only] if only.is_empty() => return Err(TargetErrorKind::Empty),
        [only] if only == "-" => {
            return Ok(Target::new(Exporter::Tar { to: Destination::Stdout, platform_split: None }));
        }
        // As buildx: one word that does not begin with `type=` is a directory, whatever is in it.
        [only] if !only.starts_with("type=") => {
            let directory = cwd.join(only);
            return Ok(Target::new(Exporter::Local { directory, platform_split: None, delete: false }));
        }
        _ => {}
    }

    let pairs = || {
        fields.iter().map(|field| match field.split_once('=') {
            Some((key, value)) => (key.trim(), Some(value)),
            None => (field.trim(), None),
        })
    };
    let given = pairs().find(|(key, _)| key.eq_ignore_ascii_case("type")).ok_or(TargetErrorKind::NoType)?;
    let given = given.1.ok_or(TargetErrorKind::NoValue("type"))?;
    let exporter =
        *TYPES.iter().find(|known| **known == given).ok_or_else(|| TargetErrorKind::UnknownType(given.to_owned()))?;
    let known = keys_of(exporter);

    let mut annotations = Vec::new();
    let mut values = BTreeMap::new();
    for (key, value) in pairs() {
        if known.contains(&"annotation") && key.starts_with("annotation") {
            annotations.push(annotation(key, value)?);
            continue;
        }
        let lower = key.to_ascii_lowercase();
        let Some(name) = known.iter().chain(&["type"]).find(|known| **known == lower) else {
            return Err(match lower.as_str() {
                "name-canonical" | "dangling-name-prefix" | "prefer-nondist-layers" if exporter != "local" => {
                    TargetErrorKind::Unsupported {
                        what: key.to_owned(),
                        reason: "it concerns an image store, and there is none",
                    }
                }
                _ => TargetErrorKind::UnknownKey { key: key.to_owned(), exporter },
            });
        };
        if values.insert(*name, value.map(str::to_owned)).is_some() {
            return Err(TargetErrorKind::Repeated(name));
        }
    }
    values.remove("type");
    let mut fields = Fields { exporter, values };

    let mut target = Target::new(Exporter::CacheOnly);
    target.annotations = annotations;
    let names_text = fields.text("name")?.unwrap_or_default();
    target.names = names(&names_text)?;
    target.compression = fields.compression()?;
    target.force_compression = fields.boolean("force-compression")?.unwrap_or(false);
    target.oci_media_types = fields.boolean("oci-mediatypes")?;
    target.rewrite_timestamp = fields.boolean("rewrite-timestamp")?.unwrap_or(false);
    target.source_date_epoch = match fields.text("source-date-epoch")? {
        None => None,
        Some(text) if text.is_empty() => Some(None),
        Some(text) => match text.parse() {
            Ok(seconds) => Some(Some(seconds)),
            Err(_) => {
                let expected = "a number of seconds";
                return Err(TargetErrorKind::BadValue { key: "source-date-epoch", value: text, expected });
            }
        },
    };
    target.exporter = match exporter {
        "registry" | "image" => registry(&mut fields, &names_text)?,
        "oci" if target.oci_media_types == Some(false) => {
            return Err(TargetErrorKind::Conflict("type=oci", "oci-mediatypes=false"));
        }
        "oci" if fields.boolean("tar")? == Some(false) => Exporter::OciDirectory(fields.directory(cwd)?),
        "oci" => Exporter::OciArchive(fields.destination(cwd)?),
        "docker" if fields.boolean("tar")? == Some(false) => {
            return Err(TargetErrorKind::Unsupported {
                what: "tar=false".to_owned(),
                reason: "`docker load` reads a tar; type=oci,tar=false writes a directory",
            });
        }
        "docker" => Exporter::DockerArchive(fields.destination(cwd)?),
        "tar" => Exporter::Tar { to: fields.destination(cwd)?, platform_split: fields.boolean("platform-split")? },
        "local" => Exporter::Local {
            directory: fields.directory(cwd)?,
            platform_split: fields.boolean("platform-split")?,
            delete: match fields.text("mode")?.as_deref() {
                None | Some("copy") => false,
                Some("delete") => true,
                Some(other) => {
                    return Err(TargetErrorKind::BadValue {
                        key: "mode",
                        value: other.to_owned(),
                        expected: "copy or delete",
                    });
                }
            },
        },
        _ => Exporter::CacheOnly,
    };
    Ok(target)
}

fn registry(fields: &mut Fields, names: &str) -> Result<Exporter, TargetErrorKind> {
    let push = fields.boolean("push")?;
    let by_digest = fields.boolean("push-by-digest")?.unwrap_or(false);
    for key in ["unpack", "store"] {
        if fields.boolean(key)? == Some(true) {
            return Err(TargetErrorKind::Unsupported {
                what: format!("{key}=true"),
                reason: "there is no image store",
            });
        }
    }
    match (fields.exporter, push) {
        ("image", None | Some(false)) if !by_digest => return Err(TargetErrorKind::NowhereToKeep),
        ("registry", Some(false)) => return Err(TargetErrorKind::Conflict("type=registry", "push=false")),
        _ => {}
    }
    let is_tagged = |name: &&str| name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if by_digest && let Some(name) = names.split(',').find(is_tagged) {
        return Err(TargetErrorKind::TaggedByDigest(name.to_owned()));
    }
    Ok(Exporter::Registry { by_digest, insecure: fields.boolean("registry.insecure")?.unwrap_or(false) })
}

/// `name=a,b` within quotes, or one name.
fn names(text: &str) -> Result<Vec<Reference>, TargetErrorKind> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            name.parse().map_err(|_| TargetErrorKind::BadValue {
                key: "name",
                value: name.to_owned(),
                expected: "an image reference",
            })
        })
        .collect()
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

fn annotation(key: &str, value: Option<&str>) -> Result<Annotation, TargetErrorKind> {
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

/// Splits one line of CSV (RFC 4180): a field in double quotes may hold commas, and quotes written twice.
fn csv(text: &str) -> Result<Vec<String>, TargetErrorKind> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let (field, more) = rest.split_once(',').map_or((rest, None), |(field, more)| (field, Some(more)));
            if field.contains('"') {
                return Err(TargetErrorKind::Quotes);
            }
            fields.push(field.to_owned());
            match more {
                Some(more) => rest = more,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        loop {
            let (part, more) = quoted.split_once('"').ok_or(TargetErrorKind::Quotes)?;
            field.push_str(part);
            match more.strip_prefix('"') {
                Some(more) => {
                    field.push('"');
                    quoted = more;
                }
                None => {
                    quoted = more;
                    break;
                }
            }
        }
        fields.push(field);
        match quoted.strip_prefix(',') {
            Some(more) => rest = more,
            None if quoted.is_empty() => return Ok(fields),
            None => return Err(TargetErrorKind::Quotes),
        }
    }
}

/// The known word that takes the fewest changes, if those are few.
fn nearest(given: &str, known: &[&'static str]) -> Option<&'static str> {
    let distance = |known: &str| {
        let known: Vec<char> = known.chars().collect();
        let mut row: Vec<usize> = (0..=known.len()).collect();
        for (i, a) in given.to_ascii_lowercase().chars().enumerate() {
            let mut diagonal = std::mem::replace(&mut row[0], i + 1);
            for (j, b) in known.iter().enumerate() {
                let changed = diagonal + usize::from(a != *b);
                diagonal = row[j + 1];
                row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
            }
        }
        row[known.len()]
    };
    known
        .iter()
        .map(|known| (distance(known), *known))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Target, TargetError> {
        Target::parse(text, Path::new("/here"))
    }

    #[track_caller]
    fn check(text: &str, expected: Exporter) {
        assert_eq!(read(text).map(|target| target.exporter), Ok(expected), "{text}");
    }

    #[track_caller]
    fn check_error(text: &str, message: &str, hint: &str) {
        let error = read(text).expect_err(text);
        assert_eq!(error.kind.to_string(), message, "{text}");
        assert_eq!(error.hint().unwrap_or_default(), hint, "{text}");
    }

    fn local(directory: &str) -> Exporter {
        Exporter::Local { directory: directory.into(), platform_split: None, delete: false }
    }

    fn file(path: &str) -> Destination {
        Destination::File(path.into())
    }

    #[test]
    fn outputs_are_read() {
        check("out", local("/here/out"));
        check("/abs/a=b", local("/abs/a=b"));
        check("-", Exporter::Tar { to: Destination::Stdout, platform_split: None });
        check("type=local,dest=/x", local("/x"));
        check(
            "type=local,dest=x,mode=delete,platform-split=true",
            Exporter::Local { directory: "/here/x".into(), platform_split: Some(true), delete: true },
        );
        check("type=tar,dest=-", Exporter::Tar { to: Destination::Stdout, platform_split: None });
        check("type=oci,dest=a.tar", Exporter::OciArchive(file("/here/a.tar")));
        check("dest=a,type=oci,tar=false", Exporter::OciDirectory("/here/a".into()));
        check("type=docker,\"dest=a,b \"\"c\"\"\"", Exporter::DockerArchive(file("/here/a,b \"c\"")));
        check("type=registry", Exporter::Registry { by_digest: false, insecure: false });
        check("type=image,push", Exporter::Registry { by_digest: false, insecure: false });
        check(
            "type=image,push=1,push-by-digest=true,registry.insecure=true",
            Exporter::Registry { by_digest: true, insecure: true },
        );
        check("type=cacheonly", Exporter::CacheOnly);
        assert!(read("-").expect("valid").is_stdout());
        assert!(!read("type=oci,dest=x").expect("valid").is_stdout());
    }

    #[test]
    fn options_are_read() {
        let target = read(
            "type=image,push=true,\"name=h:5000/a:1,b\",compression=zstd,compression-level=7,force-compression,\
             oci-mediatypes=false,rewrite-timestamp=true,source-date-epoch=12,annotation.a=b=c,\
             annotation-index-descriptor[linux/arm64].k=v",
        )
        .expect("valid");
        assert_eq!(target.names, ["h:5000/a:1".parse().expect("valid"), "b".parse().expect("valid")]);
        assert_eq!(target.compression, Some(Compression::Zstd { level: 7 }));
        assert!(target.force_compression && target.rewrite_timestamp && target.wants_docker_media_types());
        assert_eq!(target.source_date_epoch, Some(Some(12)));
        let [first, second] = target.annotations.as_slice() else { panic!("{:?}", target.annotations) };
        assert_eq!(
            (first.level, &first.platform, first.key.as_str(), first.value.as_str()),
            (AnnotationLevel::Manifest, &None, "a", "b=c")
        );
        assert_eq!(second.level, AnnotationLevel::IndexDescriptor);
        assert_eq!(second.platform.as_ref().map(ToString::to_string), Some("linux/arm64".to_owned()));
        for (text, expected) in [
            ("", None),
            (",compression=gzip", Some(Compression::DEFAULT)),
            (",compression-level=9", Some(Compression::Gzip { level: 9 })),
            (",compression=uncompressed", Some(Compression::None)),
            (",compression=zstd", Some(Compression::DEFAULT_ZSTD)),
        ] {
            assert_eq!(read(&format!("type=registry{text}")).expect("valid").compression, expected, "{text}");
        }
        assert_eq!(read("type=tar,dest=x,source-date-epoch=").expect("valid").source_date_epoch, Some(None));
    }

    #[test]
    fn mistakes_are_named() {
        let write = "write a directory, `-`, or type=registry|oci|docker|tar|local,dest=…";
        check_error("", "it is empty", write);
        check_error("dest=x,push=true", "type=… is missing", write);
        check_error("type=ocy,dest=x", "there is no type `ocy`", "did you mean `oci`?");
        let all = "the types are registry, image, oci, docker, tar, local, cacheonly";
        check_error("type=kubernetes", "there is no type `kubernetes`", all);
        check_error("type=oci,dst=x", "type=oci has no key `dst`", "did you mean `dest`?");
        check_error("type=local,dest=x,push=true", "type=local has no key `push`", "");
        check_error("type=oci", "type=oci needs dest=…", "dest=- is standard output");
        check_error("type=oci,dest=-,tar=false", "type=oci cannot go to standard output", "");
        check_error("type=local,dest=-", "type=local cannot go to standard output", "");
        check_error(
            "type=image,name=x",
            "there is no daemon that would keep the image",
            "add push=true, or write type=oci,dest=FILE or type=docker,dest=FILE",
        );
        check_error("type=registry,push=false", "type=registry conflicts with push=false", "");
        let tagged = "can't push tagged ref h:5000/a:1 by digest";
        check_error("type=registry,push-by-digest,name=h:5000/a:1", tagged, "");
        check_error("type=registry,push=maybe", "push=maybe is not true or false", "");
        check_error("type=registry,name=A", "name=A is not an image reference", "");
        check_error("type=registry,compression=xz", "compression=xz is not gzip, zstd or uncompressed", "");
        check_error("type=registry,compression-level=10", "compression-level=10 is not a level of gzip, 0 to 9", "");
        check_error("type=oci,dest=a,dest=b", "`dest` is given twice", "");
        check_error("type=oci,\"dest=a", "a quote is not closed or stands within a value", "");
        assert!(matches!(
            read("type=registry,annotation-indx.a=b").expect_err("wrong").kind,
            TargetErrorKind::BadAnnotation(_)
        ));
        assert!(matches!(
            read("type=registry,compression=estargz").expect_err("wrong").kind,
            TargetErrorKind::Unsupported { .. }
        ));
    }
}
