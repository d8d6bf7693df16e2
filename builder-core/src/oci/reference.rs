//! Image references: `[registry/]repository[:tag][@digest]`, normalised as Docker does.

use std::fmt;
use std::str::FromStr;

use super::BlobDigest;

/// A normalised image reference: `busybox` is `docker.io/library/busybox:latest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<BlobDigest>,
}

/// A text that is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid reference format: `{text}`: {reason}")]
pub struct ReferenceParseError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Docker Hub as it appears in references.
const DEFAULT_REGISTRY: &str = "docker.io";

impl Reference {
    /// Host, and port if one was given: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path within the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` when neither tag nor digest was given, `None` when only a digest was.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference pins one.
    pub fn digest(&self) -> Option<BlobDigest> {
        self.digest
    }

    /// What a registry's manifest URL ends in: the digest if there is one, else the tag.
    pub fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same repository and tag at another digest.
    pub fn with_digest(&self, digest: BlobDigest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The same name in another registry and below an optional path there, as mirrors and maps need it.
    pub fn relocated(&self, registry: &str, prefix: &str) -> Self {
        let prefix = prefix.trim_matches('/');
        let repository =
            if prefix.is_empty() { self.repository.clone() } else { format!("{prefix}/{}", self.repository) };
        Self { registry: registry.to_owned(), repository, ..self.clone() }
    }

    /// The short form that people write: without `docker.io/library/`, and without registry for Docker Hub.
    pub fn familiar(&self) -> String {
        let mut text = String::new();
        if self.registry == DEFAULT_REGISTRY {
            text.push_str(self.repository.strip_prefix("library/").unwrap_or(&self.repository));
        } else {
            text.push_str(&format!("{}/{}", self.registry, self.repository));
        }
        if let Some(tag) = &self.tag {
            text.push_str(&format!(":{tag}"));
        }
        if let Some(digest) = &self.digest {
            text.push_str(&format!("@{digest}"));
        }
        text
    }
}

impl FromStr for Reference {
    type Err = ReferenceParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |reason| ReferenceParseError { text: text.to_owned(), reason };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|_| error("the digest is not sha256:<64 hexadecimal digits>"))?))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            let ok = tag.len() <= 128
                && tag
                    .bytes()
                    .enumerate()
                    .all(|(i, b)| b.is_ascii_alphanumeric() || b == b'_' || (i > 0 && (b == b'.' || b == b'-')))
                && !tag.is_empty();
            if !ok {
                return Err(error("a tag has 1 to 128 of A-Z a-z 0-9 _ . - and does not begin with . or -"));
            }
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, path))
                if host.contains('.')
                    || host.contains(':')
                    || host == "localhost"
                    || host.to_ascii_lowercase() != host =>
            {
                let host = if host == "index.docker.io" { DEFAULT_REGISTRY } else { host };
                (host.to_owned(), path.to_owned())
            }
            _ => (DEFAULT_REGISTRY.to_owned(), name.to_owned()),
        };
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository
        };
        if name.is_empty() || repository.split('/').any(|part| !is_path_component(part)) {
            return Err(if repository.bytes().any(|b| b.is_ascii_uppercase()) {
                error("repository name must be lowercase")
            } else {
                error("a repository is lower-case words of a-z 0-9 joined by . _ __ - or /")
            });
        }
        let host_ok = registry.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b));
        if !host_ok || registry.is_empty() {
            return Err(error("the registry is not a host name"));
        }
        if repository.len() > 255 {
            return Err(error("repository name must not be more than 255 characters"));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { registry, repository, tag, digest })
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` of distribution's reference grammar.
fn is_path_component(part: &str) -> bool {
    let bytes = part.as_bytes();
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if bytes.is_empty() || !alnum(bytes[0]) || !alnum(bytes[bytes.len() - 1]) {
        return false;
    }
    let mut separators = String::new();
    for &byte in bytes {
        if alnum(byte) {
            let ok = matches!(separators.as_str(), "" | "." | "_" | "__") || separators.bytes().all(|b| b == b'-');
            if !ok {
                return false;
            }
            separators.clear();
        } else if b"._-".contains(&byte) {
            separators.push(char::from(byte));
        } else {
            return false;
        }
    }
    true
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_normalised() {
        let digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for (text, expected, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("docker.io/a/b:1", "docker.io/a/b:1", "a/b:1"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
            ("gcr.io/a/b__c--d.e:V1", "gcr.io/a/b__c--d.e:V1", "gcr.io/a/b__c--d.e:V1"),
            (&format!("a@{digest}"), &format!("docker.io/library/a@{digest}"), &format!("a@{digest}")),
            (&format!("a:t@{digest}"), &format!("docker.io/library/a:t@{digest}"), &format!("a:t@{digest}")),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), expected);
            assert_eq!(reference.familiar(), familiar);
        }
        for bad in ["", ":x", "a:", "Base", "a//b", "a/", "/a", "a@sha256:1", "a:-x", "a b", "a___b", "x.y/A"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
