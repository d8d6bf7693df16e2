//! `ADD` of http(s) URLs and git sources (checklist C-50 to C-60).

use std::fs::File;
use std::path::PathBuf;

use super::CopyError;
use super::resolve::{Match, excludes, field};
use crate::cancel::Cancel;
use crate::context::git::{Reference, percent_decoded};
use crate::context::{Checkout, Download, Files, FilesError, Remote, RemoteError, Selection, shown_url};
use crate::http::Url;
use crate::oci::{Hasher, Sha256};
use crate::plan::CopyAction;
use crate::rootfs::FileKind;

/// Name of a file whose URL has none.
const UNNAMED: &str = "__unnamed__";

/// A file behind a URL.
#[derive(Debug)]
pub(super) struct RemoteFile {
    url: String,
    /// Its name in the target.
    pub(super) name: String,
    download: Download,
    remote: Remote,
}

/// Asks for a URL.
pub(super) fn file(action: &CopyAction, url: &str, remote: &Remote, cancel: &Cancel) -> Result<RemoteFile, CopyError> {
    let checksum = match &action.checksum {
        Some(text) => Some(text.parse::<Sha256>().map_err(|_| RemoteError::BadChecksum { text: text.clone() })?),
        None => None,
    };
    let download = remote.fetch(url, checksum, cancel)?;
    Ok(RemoteFile { url: url.to_owned(), name: file_name(url), download, remote: remote.clone() })
}

/// The last element of the path (checklist C-51).
fn file_name(url: &str) -> String {
    let path = Url::parse(url).map(|url| percent_decoded(url.path())).unwrap_or_default();
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("" | "." | "..") => UNNAMED.to_owned(),
        Some(name) => name.to_owned(),
    }
}

impl RemoteFile {
    /// Adds what reaches the result, and gives the item that says what changed.
    pub(super) fn add_to(&self, whole: &mut Hasher) -> (String, Sha256) {
        field(whole, b"url");
        field(whole, self.name.as_bytes());
        field(whole, self.download.digest.as_bytes());
        field(whole, &self.mtime().to_le_bytes());
        (shown_url(&self.url), self.download.digest)
    }

    /// The bytes at their beginning.
    pub(super) fn open(&self, cancel: &Cancel) -> Result<File, CopyError> {
        let file = self.remote.open(&self.url, &self.download, cancel)?;
        tracing::debug!(url = shown_url(&self.url), bytes = self.download.bytes, "adding a download");
        Ok(file)
    }

    /// Last-Modified, else the beginning of time.
    pub(super) fn mtime(&self) -> i64 {
        self.download.last_modified.unwrap_or(0)
    }
}

/// The files of a commit.
#[derive(Debug)]
pub(super) struct GitTree {
    pub(super) files: Files,
    pub(super) content: Match,
    key: Sha256,
    /// Holds the files.
    checkout: Checkout,
}

/// Fetches the commit of a git source.
pub(super) fn tree(action: &CopyAction, url: &str, remote: &Remote, cancel: &Cancel) -> Result<GitTree, CopyError> {
    let reference = Reference::parse(url).map_err(RemoteError::from)?;
    let reference = reference.ok_or_else(|| RemoteError::NotAUrl { text: shown_url(url) })?;
    let keep_git_dir = match (action.keep_git_dir, reference.keep_git_dir) {
        (Some(flag), Some(query)) if flag != query => return Err(RemoteError::KeepGitDir.into()),
        (flag, query) => flag.or(query).unwrap_or(false),
    };
    let checkout = remote.checkout(&reference, keep_git_dir, action.checksum.as_deref(), cancel)?;
    let files = checkout.files()?;
    let root = files.lookup("".as_ref())?.filter(|found| found.metadata.kind == FileKind::Directory);
    let found = root.ok_or_else(|| FilesError::Changed { path: PathBuf::from("/") })?;
    let selection = Selection { include: None, exclude: excludes(action)? };
    let entries = files.walk("".as_ref(), &selection, cancel)?;
    let mut key = Hasher::default();
    field(&mut key, checkout.commit.id.as_bytes());
    field(&mut key, reference.subdir.as_deref().unwrap_or_default().as_bytes());
    field(&mut key, &[u8::from(keep_git_dir), u8::from(reference.submodules.unwrap_or(true))]);
    let commit_time = reference.commit_time.unwrap_or(false);
    if commit_time {
        field(&mut key, b"commit time");
    }
    let mtime = commit_time.then_some((checkout.commit.time, 0));
    let content = Match { named: PathBuf::new(), path: PathBuf::new(), found, entries, parents: false, mtime };
    Ok(GitTree { files, content, key: key.finish(), checkout })
}

impl GitTree {
    /// Adds what decides about the result, and gives the item that says what changed.
    pub(super) fn add_to(&self, whole: &mut Hasher) -> (String, Sha256) {
        field(whole, b"git");
        field(whole, self.key.as_bytes());
        (format!("{} at {}", self.checkout.url, self.checkout.commit.id), self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_path() {
        for (url, name) in [
            ("http://h/a/data.txt?q=1", "data.txt"),
            ("http://h/a%20b", "a b"),
            ("http://h/x/", "x"),
            ("http://h", UNNAMED),
            ("http://h/?q=a/b", UNNAMED),
        ] {
            assert_eq!(file_name(url), name, "{url}");
        }
    }
}
