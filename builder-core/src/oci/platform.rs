//! Platforms as image indexes and `--platform` name them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system and processor of an image (image-spec, image-index.md, `platform`), always normalised:
/// `x86_64` is `amd64`, `aarch64` is `arm64`, arm64 `v8` and amd64 `v1` have no variant, arm has `v7` by default.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux` in nearly every image.
    pub os: String,
    /// Go's name of the processor: `amd64`, `arm64`, `arm`, …
    pub architecture: String,
    /// Such as `v7`; empty if there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// Windows build number; empty elsewhere.
    #[serde(default, rename = "os.version", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
}

/// A text that does not name a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a platform of the form os/architecture[/variant]")]
pub struct PlatformParseError {
    /// What was given.
    pub text: String,
}

impl Platform {
    /// Builds a normalised platform.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v),
            ("i386", _) => ("386", ""),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
            ("aarch64" | "arm64", v) => ("arm64", v),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (a, v) => (a, v),
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.to_owned(), os_version: String::new() }
    }

    /// The platform that this program was compiled for.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", ""),
            "arm" => ("arm", "v7"),
            "x86" => ("386", ""),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Self::new("linux", architecture, variant)
    }
}

impl FromStr for Platform {
    type Err = PlatformParseError;

    /// Reads `os/architecture[/variant]`; one word alone is an operating system or an architecture, completed from
    /// the host's platform, as containerd does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || PlatformParseError { text: text.to_owned() };
        let well_formed =
            |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-()".contains(&b));
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| well_formed(part)) {
            return Err(error());
        }
        let os_and_version = |part: &str| match part.split_once('(') {
            Some((os, rest)) => (os.to_owned(), rest.trim_end_matches(')').to_owned()),
            None => (part.to_owned(), String::new()),
        };
        let host = Self::host();
        let mut platform = match parts.as_slice() {
            [one] => {
                let (os, _) = os_and_version(one);
                match os.to_ascii_lowercase().as_str() {
                    "linux" | "windows" | "darwin" | "macos" | "freebsd" | "netbsd" | "openbsd" | "solaris"
                    | "wasi" => Self::new(&os, &host.architecture, &host.variant),
                    "386" | "amd64" | "x86_64" | "x86-64" | "i386" | "arm" | "armhf" | "armel" | "arm64"
                    | "aarch64" | "loong64" | "mips" | "mips64" | "mips64le" | "mipsle" | "ppc64" | "ppc64le"
                    | "riscv64" | "s390x" | "wasm" => Self::new("linux", one, ""),
                    _ => return Err(error()),
                }
            }
            [os, architecture] => Self::new(&os_and_version(os).0, architecture, ""),
            [os, architecture, variant] => Self::new(&os_and_version(os).0, architecture, variant),
            _ => return Err(error()),
        };
        platform.os_version = os_and_version(parts[0]).1;
        Ok(platform)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_normalised() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("LINUX/aarch64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("arm64", "linux/arm64"),
            ("windows(10.0.1)/amd64", "windows/amd64"),
        ] {
            assert_eq!(text.parse::<Platform>().map(|p| p.to_string()), Ok(expected.to_owned()));
        }
        for bad in ["", "/", "linux/", "a/b/c/d", "nosuch", "linux/am d"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
