//! Files that wrappers read: digests and names, written before the push.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use builder_core::cancel::Cancel;
use builder_core::http::{self, HttpError, Method, Request, Url};
use serde_json::json;

use super::names::{Destination, ReportAs};

/// Where a file goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A path.
    File(PathBuf),
    /// An https URL that takes it by PUT.
    Url(Url),
}

impl Place {
    /// Reads a value; empty means nowhere. Relative paths are taken from `cwd`.
    ///
    /// # Errors
    /// The reason, if it begins like a URL and is none.
    pub fn parse(text: &str, cwd: &Path) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        if text.starts_with("https://") {
            return Url::parse(text).map(|url| Some(Self::Url(url))).map_err(|error| error.to_string());
        }
        Ok(Some(Self::File(cwd.join(text))))
    }
}

/// All files of one image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// `--digest-file`
    pub digest: Option<Place>,
    /// `--image-name-with-digest-file`
    pub names: Option<Place>,
    /// `--image-name-tag-with-digest-file`
    pub tags: Option<Place>,
}

/// A file that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// On disk.
    #[error("writing {flag} `{}`: {source}", path.display())]
    File {
        /// Which flag asks for it.
        flag: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// At a server.
    #[error("writing {flag}: {source}")]
    Put {
        /// Which flag asks for it.
        flag: &'static str,
        /// Why.
        source: HttpError,
    },
}

impl Files {
    /// Writes all of them.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn write(
        &self,
        digest: &str,
        destinations: &[Destination],
        report_as: &ReportAs,
        client: &http::Client,
        cancel: &Cancel,
    ) -> Result<(), FileError> {
        let mut names = String::new();
        let mut tags = String::new();
        for destination in destinations {
            let repository = destination.repository(report_as);
            let tag = destination.reference.tag().unwrap_or("latest");
            names.push_str(&format!("{repository}@{digest}\n"));
            tags.push_str(&format!("{repository}:{tag}@{digest}\n"));
        }
        for (flag, place, text) in [
            ("--digest-file", &self.digest, digest),
            ("--image-name-with-digest-file", &self.names, &names),
            ("--image-name-tag-with-digest-file", &self.tags, &tags),
        ] {
            match place {
                Some(Place::File(path)) => write(path, text.as_bytes()).map_err(|source| FileError::File {
                    flag,
                    path: path.clone(),
                    source,
                })?,
                Some(Place::Url(url)) => {
                    put(url, text, client, cancel).map_err(|source| FileError::Put { flag, source })?
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// Replaces the content of a file, in place: it may be a pipe, or the mount of a termination message.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.write_all(bytes)
}

fn put(url: &Url, text: &str, client: &http::Client, cancel: &Cancel) -> Result<(), HttpError> {
    let request = Request::new(Method::Put, url.clone()).bytes("text/plain", text.as_bytes().to_vec());
    client.send(request, cancel)?.error_for_status().map(drop)
}

/// Adds what was pushed to `$BUILDER_OUTPUT/images`, as Cloud Build reads it.
///
/// # Errors
/// If the file cannot be written.
pub fn builder_output(directory: &Path, digest: &str, destinations: &[Destination]) -> Result<(), FileError> {
    let path = directory.join("images");
    let text: String = destinations
        .iter()
        // In the order in which Kaniko writes the keys.
        .map(|destination| format!("{{\"name\":{},\"digest\":{}}}\n", json!(destination.shown), json!(digest)))
        .collect();
    write(&path, text.as_bytes()).map_err(|source| FileError::File { flag: "$BUILDER_OUTPUT", path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn files_hold_exactly_what_wrappers_expect() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = |name: &str| Place::parse(name, dir.path()).expect("a place");
        let files = Files { digest: place("new/deep/digest"), names: place("names"), tags: place("tags") };
        fs::write(dir.path().join("names"), "something longer that was there before, and has to go away ………………………………")
            .expect("a file");
        let destinations: Vec<Destination> = ["x:1", "localhost:5000/a/b"]
            .iter()
            .map(|text| Destination::parse(text, &ReportAs::default()).expect("a destination"))
            .collect();
        let client = http::Client::new(http::ClientOptions::default());
        files
            .write(DIGEST, &destinations, &ReportAs::default(), &client, &Cancel::default())
            .expect("the files can be written");
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("a file");
        assert_eq!(read("new/deep/digest"), DIGEST);
        assert_eq!(DIGEST.len(), 71);
        assert_eq!(read("names"), format!("index.docker.io/library/x@{DIGEST}\nlocalhost:5000/a/b@{DIGEST}\n"));
        assert_eq!(read("tags"), format!("index.docker.io/library/x:1@{DIGEST}\nlocalhost:5000/a/b:latest@{DIGEST}\n"));
        let mode = |name: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            fs::metadata(dir.path().join(name)).expect("metadata").permissions().mode() & 0o777
        };
        assert_eq!(mode("new/deep"), 0o700);
        builder_output(dir.path(), DIGEST, &destinations).expect("the file can be written");
        assert_eq!(
            read("images"),
            format!(
                "{{\"name\":\"x:1\",\"digest\":\"{DIGEST}\"}}\n{{\"name\":\"localhost:5000/a/b\",\"digest\":\"{DIGEST}\"}}\n"
            )
        );
    }

    #[test]
    fn places_are_paths_or_https_urls() {
        let here = Path::new("/here");
        assert_eq!(Place::parse("", here), Ok(None));
        assert_eq!(Place::parse("a", here), Ok(Some(Place::File("/here/a".into()))));
        assert_eq!(Place::parse("/dev/termination-log", here), Ok(Some(Place::File("/dev/termination-log".into()))));
        assert_eq!(Place::parse("http://x/", here), Ok(Some(Place::File("/here/http://x/".into()))));
        assert!(matches!(Place::parse("https://x/y", here), Ok(Some(Place::Url(_)))));
        assert!(Place::parse("https://", here).is_err());
    }
}
