//! The text of `--output` → [`Target`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::annotation::annotation;
use super::words::{TYPES, keys_of};
use super::{Destination, Exporter, Target, TargetErrorKind};
use crate::layer::Compression;
use crate::oci::Reference;

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
            None | Some("") if matches!(self.exporter, "oci" | "tar") => Ok(Destination::Stdout),
            None | Some("") => Err(TargetErrorKind::NoDestination(self.exporter)),
            Some("-") => Ok(Destination::Stdout),
            Some(path) => Ok(Destination::File(cwd.join(path))),
        }
    }

    fn directory(&mut self, cwd: &Path) -> Result<PathBuf, TargetErrorKind> {
        match self.text("dest")?.as_deref() {
            None | Some("") => Err(TargetErrorKind::NoDestination(self.exporter)),
            Some("-") => Err(TargetErrorKind::DirectoryToStdout(self.exporter)),
            Some(path) => Ok(cwd.join(path)),
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

/// Reads an output; relative paths are taken from `cwd`. With `pushed`, images go to their registry without being told to.
pub(super) fn parse(text: &str, cwd: &Path, pushed: bool) -> Result<Target, TargetErrorKind> {
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
        "registry" | "image" => registry(&mut fields, &names_text, pushed)?,
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

fn registry(fields: &mut Fields, names: &str, pushed: bool) -> Result<Exporter, TargetErrorKind> {
    let push = fields.boolean("push")?;
    let push = if pushed { Some(true) } else { push };
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
            let bad = |expected| TargetErrorKind::BadValue { key: "name", value: name.to_owned(), expected };
            let name: Reference = name.parse().map_err(|_| bad("an image reference"))?;
            // Nobody knows the digest of what is not built yet.
            if name.digest().is_some() { Err(bad("a name without a digest")) } else { Ok(name) }
        })
        .collect()
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
