//! `--cache-from` and `--cache-to`: the texts of `docker buildx`, as far as they mean something here.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::hint::Hint;
use crate::oci::{Reference, Sha256};

/// Longest prefix of a tag: with `-` and a key it fits the 128 characters of a tag (distribution-spec, "Pulling manifests").
const PREFIX_CHARACTERS: usize = 63;

/// Where records are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum CachePlace {
    /// Tags of a repository.
    Registry(CacheRepository),
    /// An OCI layout directory.
    Layout(PathBuf),
}

/// A repository whose tags are records.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CacheRepository {
    repository: Reference,
    prefix: Option<String>,
}

/// A place that records are put into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheTarget {
    /// Where.
    pub place: CachePlace,
    /// All steps (`mode=max`), or only those whose layers the image has (`mode=min`).
    pub all_steps: bool,
    /// Whether the build fails if they cannot be put there (`ignore-error=false`); else it is told and goes on.
    pub required: bool,
}

/// A text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid cache `{text}`: {reason}")]
pub struct CacheParseError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Hint for CacheParseError {
    fn hint(&self) -> Option<String> {
        Some("write type=registry,ref=HOST/REPOSITORY, or type=local with src=DIR or dest=DIR".to_owned())
    }
}

impl CacheRepository {
    /// Reads `registry/repository[:prefix]`. With a prefix, several caches (or images) can share a repository.
    ///
    /// # Errors
    /// [`CacheParseError`]
    pub fn parse(text: &str) -> Result<Self, CacheParseError> {
        let failed = |reason: String| CacheParseError { text: text.to_owned(), reason };
        let repository: Reference =
            text.parse().map_err(|error: crate::oci::ReferenceParseError| failed(error.reason.to_owned()))?;
        if repository.digest().is_some() {
            return Err(failed("a cache is a repository, not a digest".to_owned()));
        }
        // A reference without a tag has the tag `latest`; here it means that tags are keys and nothing else.
        let tagged = text.rsplit('/').next().is_some_and(|last| last.contains(':'));
        let prefix = repository.tag().filter(|_| tagged).map(str::to_owned);
        if prefix.as_ref().is_some_and(|prefix| prefix.len() > PREFIX_CHARACTERS) {
            return Err(failed(format!("its tag is longer than {PREFIX_CHARACTERS} characters")));
        }
        Ok(Self { repository, prefix })
    }

    /// Host and port of the registry.
    pub fn registry(&self) -> &str {
        self.repository.registry()
    }

    /// The name of one record.
    pub fn name(&self, key: Sha256) -> Reference {
        let tag = self.tag(key);
        format!("{}/{}:{tag}", self.repository.registry(), self.repository.repository())
            .parse()
            .expect("a repository and a tag of at most 128 characters make a reference")
    }

    /// The repository itself, as something that blobs are pushed to and mounted from.
    pub fn reference(&self) -> &Reference {
        &self.repository
    }

    fn tag(&self, key: Sha256) -> String {
        match &self.prefix {
            Some(prefix) => format!("{prefix}-{}", key.to_hex()),
            None => key.to_hex(),
        }
    }
}

impl fmt::Display for CachePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(CacheRepository { repository, prefix }) => {
                write!(f, "{}/{}", repository.registry(), repository.repository())?;
                prefix.as_ref().map_or(Ok(()), |prefix| write!(f, ":{prefix}"))
            }
            Self::Layout(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The keys of one text.
struct Fields<'a> {
    text: &'a str,
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, CacheParseError> {
        let mut fields: Vec<(&str, &str)> = Vec::new();
        for field in text.split(',') {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            if fields.iter().any(|(known, _)| *known == key) {
                return Err(CacheParseError { text: text.to_owned(), reason: format!("`{key}` is given twice") });
            }
            fields.push((key, value));
        }
        Ok(Self { text, fields })
    }

    fn failed(&self, reason: impl Into<String>) -> CacheParseError {
        CacheParseError { text: self.text.to_owned(), reason: reason.into() }
    }

    fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.fields.iter().position(|(known, _)| *known == key)?;
        Some(self.fields.remove(at).1).filter(|value| !value.is_empty())
    }

    fn boolean(&mut self, key: &str) -> Result<Option<bool>, CacheParseError> {
        match self.take(key) {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(other) => Err(self.failed(format!("{key}={other} is neither true nor false"))),
        }
    }

    /// `type` and where it is; `directory` is the key that names a layout.
    fn place(&mut self, directory: &str, cwd: &Path) -> Result<CachePlace, CacheParseError> {
        match self.take("type") {
            Some("registry") => {
                let name = self.take("ref").ok_or_else(|| self.failed("ref=HOST/REPOSITORY is missing"))?;
                CacheRepository::parse(name).map(CachePlace::Registry).map_err(|error| self.failed(error.reason))
            }
            Some("local" | "oci") => {
                let name = self.take(directory).or_else(|| self.take("path"));
                let name = name.ok_or_else(|| self.failed(format!("{directory}=DIRECTORY is missing")))?;
                Ok(CachePlace::Layout(cwd.join(name)))
            }
            Some(other) => Err(self.failed(format!("type={other} is not supported; there are registry and local"))),
            None => Err(self.failed("type= is missing")),
        }
    }

    fn end(self) -> Result<(), CacheParseError> {
        match self.fields.first() {
            None => Ok(()),
            Some((key, _)) => Err(self.failed(format!("there is no key `{key}`"))),
        }
    }
}

impl CachePlace {
    /// Reads `--cache-from`: `type=registry,ref=REPOSITORY[:PREFIX]`, `type=local,src=DIR`, or a plain repository. The
    /// second value is whether `registry.insecure=true` was said.
    ///
    /// # Errors
    /// [`CacheParseError`]
    pub fn parse(text: &str, cwd: &Path) -> Result<(Self, bool), CacheParseError> {
        if !text.contains('=') {
            return Ok((Self::Registry(CacheRepository::parse(text)?), false));
        }
        let mut fields = Fields::read(text)?;
        let place = fields.place("src", cwd)?;
        let insecure = fields.boolean("registry.insecure")?.unwrap_or(false);
        fields.end()?;
        Ok((place, insecure))
    }
}

impl CacheTarget {
    /// All steps into `place`; failures are told and ignored.
    pub fn new(place: CachePlace) -> Self {
        Self { place, all_steps: true, required: false }
    }

    /// Reads `--cache-to`: `type=registry,ref=REPOSITORY[:PREFIX][,mode=min|max]`, `type=local,dest=DIR[,mode=…]`, both
    /// with `ignore-error=true|false`. The second value is whether `registry.insecure=true` was said.
    ///
    /// # Errors
    /// [`CacheParseError`]
    pub fn parse(text: &str, cwd: &Path) -> Result<(Self, bool), CacheParseError> {
        let mut fields = Fields::read(text)?;
        let place = if text.contains('=') {
            fields.place("dest", cwd)?
        } else {
            return Ok((
                Self { all_steps: false, ..Self::new(CachePlace::Registry(CacheRepository::parse(text)?)) },
                false,
            ));
        };
        let insecure = fields.boolean("registry.insecure")?.unwrap_or(false);
        let all_steps = match fields.take("mode") {
            None | Some("min") => false,
            Some("max") => true,
            Some(other) => return Err(fields.failed(format!("mode={other} is neither min nor max"))),
        };
        let required = !fields.boolean("ignore-error")?.unwrap_or(true);
        // What buildx writes into the one document of its own form; records here are always so.
        for (key, always) in [("image-manifest", true), ("oci-mediatypes", true)] {
            if fields.boolean(key)?.is_some_and(|wanted| wanted != always) {
                return Err(fields.failed(format!("records are image manifests of OCI's types: {key}={always}")));
            }
        }
        fields.end()?;
        Ok((Self { place, all_steps, required }, insecure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Result<(String, bool), String> {
        let read = CachePlace::parse(text, Path::new("/w")).map_err(|error| error.reason)?;
        Ok((read.0.to_string(), read.1))
    }

    fn to(text: &str) -> Result<(String, bool, bool), String> {
        let (target, _) = CacheTarget::parse(text, Path::new("/w")).map_err(|error| error.reason)?;
        Ok((target.place.to_string(), target.all_steps, target.required))
    }

    #[test]
    fn places_are_read() {
        let plain = |text: &str| Ok((text.to_owned(), false));
        assert_eq!(from("type=registry,ref=r.io/a/cache"), plain("r.io/a/cache"));
        assert_eq!(from("ref=r.io/a:cache,type=registry"), plain("r.io/a:cache"));
        assert_eq!(from("localhost:5000/a"), plain("localhost:5000/a"));
        assert_eq!(from("type=local,src=x"), plain("/w/x"));
        assert_eq!(from("type=registry,ref=r.io/a,registry.insecure=true"), Ok(("r.io/a".to_owned(), true)));
        assert_eq!(to("type=registry,ref=r.io/a,mode=max"), Ok(("r.io/a".to_owned(), true, false)));
        assert_eq!(to("type=local,dest=/x,ignore-error=false"), Ok(("/x".to_owned(), false, true)));
        assert_eq!(to("r.io/a"), Ok(("r.io/a".to_owned(), false, false)));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, reason) in [
            ("type=gha", "type=gha is not supported; there are registry and local"),
            ("type=registry", "ref=HOST/REPOSITORY is missing"),
            ("ref=x", "type= is missing"),
            ("type=local", "src=DIRECTORY is missing"),
            ("type=registry,ref=x,ref=y", "`ref` is given twice"),
            ("type=registry,ref=x,color=y", "there is no key `color`"),
            ("type=registry,ref=X", "repository name must be lowercase"),
        ] {
            assert_eq!(from(text), Err(reason.to_owned()), "{text}");
        }
        assert_eq!(to("type=registry,ref=x,mode=all"), Err("mode=all is neither min nor max".to_owned()));
    }

    #[test]
    fn tags_are_keys() {
        let key = Sha256::of(b"");
        let named = |text: &str| CacheRepository::parse(text).expect(text).name(key).to_string();
        assert_eq!(named("r.io:5/a"), format!("r.io:5/a:{}", key.to_hex()));
        assert_eq!(named("r.io:5/a:main"), format!("r.io:5/a:main-{}", key.to_hex()));
        assert!(CacheRepository::parse(&format!("a:{}", "x".repeat(64))).is_err());
    }
}
