//! Objects to files.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use gix::bstr::ByteSlice as _;
use gix::objs::tree::EntryKind;

use super::GitError;
use super::fetch::redacted;
use crate::cancel::Cancel;
use crate::disk::Disk;
use crate::hint::chain;

/// The tree of one commit.
pub(super) struct Tree<'a> {
    repository: &'a gix::Repository,
    id: gix::ObjectId,
    url: String,
}

/// A submodule: where, and which commit of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gitlink {
    /// Path from the top of the tree.
    pub(super) path: String,
    /// Hexadecimal commit.
    pub(super) commit: String,
}

impl<'a> Tree<'a> {
    pub(super) fn of(repository: &'a gix::Repository, commit: &str, url: &str) -> Result<Self, GitError> {
        let url = redacted(url);
        let bad = |error: &dyn std::error::Error| GitError::Object { url: url.clone(), reason: chain(error) };
        let commit = gix::ObjectId::from_hex(commit.as_bytes()).map_err(|error| bad(&error))?;
        let commit = repository.find_object(commit).map_err(|error| bad(&error))?;
        let id = commit.peel_to_tree().map_err(|error| bad(&error))?.id;
        Ok(Self { repository, id, url })
    }

    fn bad(&self, error: &dyn std::error::Error) -> GitError {
        GitError::Object { url: self.url.clone(), reason: chain(error) }
    }

    /// Writes everything below `directory` and returns the submodules, whose directories are made and left empty.
    ///
    /// Every file and directory is created, never opened, so a tree that names a link and a directory alike cannot
    /// write through the link.
    pub(super) fn write(&self, directory: &Path, disk: &Disk, cancel: &Cancel) -> Result<Vec<Gitlink>, GitError> {
        let mut gitlinks = Vec::new();
        let mut pending = vec![(self.id, PathBuf::new())];
        while let Some((id, path)) = pending.pop() {
            let tree = self.repository.find_tree(id).map_err(|error| self.bad(&error))?;
            for entry in tree.iter() {
                if cancel.is_cancelled() {
                    return Err(GitError::Cancelled);
                }
                let entry = entry.map_err(|error| self.bad(&error))?;
                let name = entry.filename();
                if !is_file_name(name) {
                    return Err(GitError::BadName { url: self.url.clone(), name: name.to_str_lossy().into_owned() });
                }
                let inner = path.join(std::ffi::OsStr::from_bytes(name));
                let target = directory.join(&inner);
                let failed = |source: io::Error| GitError::Io { action: "write", path: target.clone(), source };
                let kind = entry.mode().kind();
                match kind {
                    EntryKind::Tree => {
                        create_dir(&target).map_err(failed)?;
                        pending.push((entry.oid().to_owned(), inner));
                    }
                    EntryKind::Commit => {
                        create_dir(&target).map_err(failed)?;
                        gitlinks.push(Gitlink {
                            path: inner.to_string_lossy().into_owned(),
                            commit: entry.oid().to_hex().to_string(),
                        });
                    }
                    EntryKind::Link => {
                        let text = self.repository.find_blob(entry.oid()).map_err(|error| self.bad(&error))?;
                        std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&text.data), &target).map_err(failed)?;
                    }
                    EntryKind::Blob | EntryKind::BlobExecutable => {
                        let blob = self.repository.find_blob(entry.oid()).map_err(|error| self.bad(&error))?;
                        let mode = if kind == EntryKind::BlobExecutable { 0o755 } else { 0o644 };
                        disk.take(blob.data.len() as u64).map_err(failed)?;
                        let mut file = fs::OpenOptions::new()
                            .write(true)
                            .create_new(true)
                            .mode(mode)
                            .open(&target)
                            .map_err(failed)?;
                        file.write_all(&blob.data).map_err(failed)?;
                        // The umask of the caller is not part of the commit.
                        let exact = std::os::unix::fs::PermissionsExt::from_mode(mode);
                        file.set_permissions(exact).map_err(failed)?;
                    }
                }
            }
        }
        gitlinks.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(gitlinks)
    }

    /// The URLs in `.gitmodules`, by path.
    pub(super) fn submodule_urls(&self) -> Result<BTreeMap<String, String>, GitError> {
        let tree = self.repository.find_tree(self.id).map_err(|error| self.bad(&error))?;
        let Some(entry) = tree.iter().filter_map(Result::ok).find(|entry| entry.filename() == ".gitmodules") else {
            return Ok(BTreeMap::new());
        };
        let blob = self.repository.find_blob(entry.oid()).map_err(|error| self.bad(&error))?;
        Ok(parse_gitmodules(&blob.data.to_str_lossy()))
    }
}

fn create_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(path)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
}

/// Whether git itself would write such a name: one component, and not the repository's own directory in any case.
fn is_file_name(name: &[u8]) -> bool {
    let reserved = matches!(name, b"" | b"." | b"..") || name.eq_ignore_ascii_case(b".git");
    !reserved && !name.contains(&b'/') && !name.contains(&0)
}

/// `path` and `url` of each `[submodule …]` section (gitmodules(5)); other keys do not matter here.
fn parse_gitmodules(text: &str) -> BTreeMap<String, String> {
    let mut urls = BTreeMap::new();
    let (mut path, mut url) = (None, None);
    let unquoted = |value: &str| value.trim().trim_matches('"').to_owned();
    for line in text.lines().chain(["[end]"]) {
        let line = line.trim();
        if line.starts_with('[') {
            if let (Some(path), Some(url)) = (path.take(), url.take()) {
                urls.insert(path, url);
            }
            (path, url) = (None, None);
        } else if let Some((key, value)) = line.split_once('=') {
            match key.trim() {
                "path" => path = Some(unquoted(value)),
                "url" => url = Some(unquoted(value)),
                _ => {}
            }
        }
    }
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_file_may_have_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b".git", b".GIT", b"a\0"] {
            assert!(!is_file_name(bad), "{bad:?}");
        }
        for good in [&b"a"[..], b".gitignore", b"...", b"\xff"] {
            assert!(is_file_name(good), "{good:?}");
        }
    }

    #[test]
    fn gitmodules_give_urls_by_path() {
        let urls =
            parse_gitmodules("[submodule \"a\"]\n\tpath = lib/a\n\turl = ../a.git\n[submodule \"b\"]\n\turl=x\n");
        assert_eq!(urls, BTreeMap::from([("lib/a".to_owned(), "../a.git".to_owned())]));
    }
}
