//! Build contexts that are no directory of the user: archives on a stream or behind a URL, git repositories.

use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::archive::{self, ArchiveError};
use super::git::Reference;
use super::remote::{Remote, RemoteError, shown, subdirectory};
use super::repository::Repository;
use crate::cancel::Cancel;
use crate::cloud::{Bucket, CloudEnvironment};
use crate::git::{self, Commit, GitError, GitRequest};
use crate::http::{Client, ClientOptions};
use crate::rootfs::{Attributes, FileKind, Owners, Rootfs, TarKind};

/// So many bytes of a stream decide whether it is an archive: a whole block of any compression fits.
const PREFIX_BYTES: u64 = 1 << 20;

/// Longest Dockerfile that is taken from a stream, in bytes.
const DOCKERFILE_BYTES: u64 = 16 << 20;

/// What came in place of a directory (checklist D-10, D-11).
#[derive(Debug)]
pub enum FetchedContext {
    /// Files.
    Tree(FetchedTree),
    /// Text that is the Dockerfile itself; there are no files.
    Dockerfile {
        /// The text, which need not be UTF-8 everywhere.
        text: Vec<u8>,
        /// When the server says it was changed, in seconds since 1970.
        last_modified: Option<i64>,
    },
}

impl FetchedContext {
    fn modified(mut self, time: Option<i64>) -> Self {
        match &mut self {
            Self::Tree(tree) => tree.last_modified = time,
            Self::Dockerfile { last_modified, .. } => *last_modified = time,
        }
        self
    }

    /// The time that `SOURCE_DATE_EPOCH=context` means (checklist X-11), in seconds since 1970: of the commit, what the
    /// server says, or of the newest regular file of an archive.
    ///
    /// # Errors
    /// If the files cannot be looked at.
    pub fn time(&self) -> io::Result<Option<i64>> {
        match self {
            Self::Dockerfile { last_modified, .. } => Ok(*last_modified),
            Self::Tree(tree) => match (&tree.commit, tree.last_modified) {
                (Some(commit), _) => Ok(Some(commit.time)),
                (None, Some(time)) => Ok(Some(time)),
                (None, None) => {
                    let listing = tree.open()?.list().map_err(|error| error.source)?;
                    let mut newest = None;
                    for listed in listing.iter() {
                        let metadata = listed.map_err(|error| error.source)?.metadata;
                        if metadata.kind == FileKind::File {
                            newest = newest.max(Some(metadata.mtime.0));
                        }
                    }
                    Ok(newest)
                }
            },
        }
    }
}

/// Files in a directory of ours, removed with this value.
#[derive(Debug)]
pub struct FetchedTree {
    path: PathBuf,
    owners: Option<Arc<Owners>>,
    commit: Option<Commit>,
    last_modified: Option<i64>,
    _temp: TempDir,
}

impl FetchedTree {
    /// The root of the context.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Owners, modes and devices of the files as the archive names them, if it was one: without privileges none of these can be
    /// made real, and nobody needs them on this disk.
    pub fn owners(&self) -> Option<&Arc<Owners>> {
        self.owners.as_ref()
    }

    fn open(&self) -> io::Result<Rootfs> {
        let tree = Rootfs::open(&self.path)?;
        Ok(match &self.owners {
            Some(owners) => tree.recording(Arc::clone(owners)),
            None => tree,
        })
    }

    /// The commit that was fetched, if the context is a git repository.
    pub fn commit(&self) -> Option<&Commit> {
        self.commit.as_ref()
    }
}

impl Remote {
    /// Takes an archive in any compression, or else a Dockerfile, from a stream such as standard input. `name` says in
    /// errors where it comes from.
    ///
    /// # Errors
    /// [`RemoteError`]
    pub fn stream_context(
        &self,
        mut stream: impl Read + Send + 'static,
        name: &str,
        cancel: &Cancel,
    ) -> Result<FetchedContext, RemoteError> {
        let broken = |source| RemoteError::Stream { name: name.to_owned(), source };
        let mut prefix = Vec::new();
        (&mut stream).take(PREFIX_BYTES).read_to_end(&mut prefix).map_err(broken)?;
        if !archive::is_prefix_of_archive(&prefix) {
            let mut text = prefix;
            stream.take(DOCKERFILE_BYTES + 1).read_to_end(&mut text).map_err(broken)?;
            if text.len() as u64 > DOCKERFILE_BYTES || !is_text(&text) {
                return Err(RemoteError::NotAContext { name: name.to_owned() });
            }
            return Ok(FetchedContext::Dockerfile { text, last_modified: None });
        }
        let temp = self.temporary_directory()?;
        let path = temp.path().join("tree");
        std::fs::create_dir(&path).map_err(|source| self.io("create a directory in", source))?;
        let tree = Rootfs::open(&path).map_err(|source| self.io("open a directory in", source))?;
        let owners = Arc::new(Owners::default());
        let tree = tree.within(self.disk.clone()).recording(Arc::clone(&owners));
        let failed = |source| match source {
            ArchiveError::Cancelled => RemoteError::Cancelled,
            source => RemoteError::Archive { name: name.to_owned(), source },
        };
        let whole = archive::open(Cursor::new(prefix).chain(stream)).map_err(|error| failed(error.into()))?;
        archive::unpack_context(whole, &tree, self.owner, cancel).map_err(failed)?;
        let tree = FetchedTree { path, owners: Some(owners), commit: None, last_modified: None, _temp: temp };
        Ok(FetchedContext::Tree(tree))
    }

    /// Takes an archive, or else a Dockerfile, from an http(s) URL.
    ///
    /// # Errors
    /// [`RemoteError`]
    pub fn url_context(&self, url: &str, cancel: &Cancel) -> Result<FetchedContext, RemoteError> {
        let download = self.fetch(url, None, cancel)?;
        let file = self.open(url, &download, cancel)?;
        Ok(self.stream_context(file, &shown(url), cancel)?.modified(download.last_modified))
    }

    /// When a URL was last changed, in seconds since 1970: what the server says, else of an archive the time of its newest
    /// regular file (checklist X-11).
    ///
    /// # Errors
    /// [`RemoteError`]
    pub fn time_of_url(&self, url: &str, checksum: Option<&str>, cancel: &Cancel) -> Result<Option<i64>, RemoteError> {
        let checksum = match checksum {
            Some(text) => Some(text.parse().map_err(|_| RemoteError::BadChecksum { text: text.to_owned() })?),
            None => None,
        };
        let download = self.fetch(url, checksum, cancel)?;
        if download.last_modified.is_some() {
            return Ok(download.last_modified);
        }
        let failed = |source| RemoteError::Archive { name: shown(url), source };
        let Some(mut archive) = archive::detect(self.open(url, &download, cancel)?).map_err(failed)? else {
            return Ok(None);
        };
        let mut newest = None;
        while let Some(entry) = archive.next_entry().map_err(|error| failed(error.into()))? {
            if cancel.is_cancelled() {
                return Err(RemoteError::Cancelled);
            }
            if entry.kind == TarKind::File {
                newest = newest.max(Some(entry.mtime.0));
            }
        }
        Ok(newest)
    }

    /// The time of the commit that a git source names, in seconds since 1970.
    ///
    /// # Errors
    /// [`RemoteError`]
    pub fn time_of_commit(&self, text: &str, checksum: Option<&str>, cancel: &Cancel) -> Result<i64, RemoteError> {
        let reference = Reference::parse(text)?;
        let mut reference = reference.ok_or_else(|| RemoteError::NotAUrl { text: shown(text) })?;
        if self.git.options.branch.is_some() {
            reference.reference.clone_from(&self.git.options.branch);
        }
        if self.git.options.recurse_submodules {
            reference.submodules = Some(true);
        }
        Ok(self.checkout(&reference, false, checksum, cancel)?.commit.time)
    }

    /// Takes an archive from an object store.
    ///
    /// # Errors
    /// [`RemoteError`]
    pub fn bucket_context(
        &self,
        bucket: &Bucket,
        environment: &CloudEnvironment,
        cancel: &Cancel,
    ) -> Result<FetchedContext, RemoteError> {
        let reader = bucket.open(environment, &self.client, cancel)?;
        self.stream_context(reader, &bucket.to_string(), cancel)
    }

    /// Takes the files of a repository's commit, with `.git`.
    ///
    /// # Errors
    /// [`RemoteError`]
    pub fn repository_context(&self, context: &Repository, cancel: &Cancel) -> Result<FetchedTree, RemoteError> {
        let client = match context.skip_tls_verify {
            true => Client::new(ClientOptions { skip_tls_verify: true, ..self.client.options().clone() }),
            false => self.client.clone(),
        };
        let ssh = self.ssh_access(&context.url)?;
        let request = |reference: Option<&String>, commit: Option<&String>, depth| GitRequest {
            url: context.url.clone(),
            reference: reference.cloned(),
            commit: commit.cloned(),
            depth,
            keep_git_dir: context.keep_git_dir,
            submodules: context.submodules,
            authorization: context.authorization.clone(),
            ssh: ssh.clone(),
        };
        let fetch = |request: &GitRequest| -> Result<FetchedTree, RemoteError> {
            let temp = self.temporary_directory()?;
            let path = temp.path().join("tree");
            std::fs::create_dir(&path).map_err(|source| self.io("create a directory in", source))?;
            let commit = git::checkout(request, &path, &client, &self.disk, cancel).map_err(|error| match error {
                GitError::Cancelled => RemoteError::Cancelled,
                error => error.into(),
            })?;
            Ok(FetchedTree { path, owners: None, commit: Some(commit), last_modified: None, _temp: temp })
        };
        let Some(commit) = &context.commit else {
            return fetch(&request(context.reference.as_ref(), None, context.depth));
        };
        match fetch(&request(Some(commit), None, context.depth)) {
            // Servers need not give a commit that no reference names; then it is looked for in the history of one.
            Err(RemoteError::Git(error)) => {
                tracing::debug!(%error, "the commit alone cannot be had");
                fetch(&request(context.reference.as_ref(), Some(commit), None))
            }
            fetched => fetched,
        }
    }

    /// Takes the files of a commit. `github.com/owner/repository` is git here (checklist C-58). With `dated` the files have
    /// the time of the commit, unless the query says otherwise (checklist D-10).
    ///
    /// # Errors
    /// [`RemoteError`]
    pub fn git_context(
        &self,
        text: &str,
        keep_git_dir: bool,
        dated: bool,
        cancel: &Cancel,
    ) -> Result<FetchedContext, RemoteError> {
        let reference = Reference::parse_context(text)?;
        let reference = reference.ok_or_else(|| RemoteError::NotAUrl { text: shown(text) })?;
        let keep = reference.keep_git_dir.unwrap_or(keep_git_dir);
        let checkout = self.checkout(&reference, keep, None, cancel)?;
        let root = checkout.temp.path().join("tree");
        // The check that the subdirectory is one.
        let files = subdirectory(&root, checkout.subdir.as_deref(), &checkout.url)?;
        let path = files.host_path().unwrap_or(root);
        if reference.commit_time.unwrap_or(dated) {
            date(&path, checkout.commit.time).map_err(|source| self.io("set the times of files in", source))?;
        }
        let commit = Some(checkout.commit);
        Ok(FetchedContext::Tree(FetchedTree { path, owners: None, commit, last_modified: None, _temp: checkout.temp }))
    }
}

/// Whether bytes look like lines of some text, in whatever encoding that holds ASCII.
fn is_text(bytes: &[u8]) -> bool {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    bytes.is_empty()
        || !bytes.contains(&0) && lines.any(|line| str::from_utf8(line).is_ok_and(|line| !line.trim().is_empty()))
}

/// Gives all files of a tree one time, in seconds since 1970.
fn date(tree: &Path, seconds: i64) -> io::Result<()> {
    let rootfs = Rootfs::open(tree)?;
    let attributes = Attributes { mtime: Some((seconds, 0)), ..Attributes::default() };
    let listing = rootfs.list().map_err(|error| error.source)?;
    let paths = listing.iter().map(|listed| Ok(listed.map_err(|error| error.source)?.path));
    paths.chain([Ok("/".into())]).try_for_each(|path: io::Result<PathBuf>| rootfs.set_attributes(&path?, &attributes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::context::archive::tests::{compressed, tar};
    use crate::context::testing::show;

    #[test]
    fn contexts_from_streams() {
        let work = tempfile::tempdir().expect("a temporary directory");
        let client = Client::new(ClientOptions::default());
        let remote = Remote::new(client, work.path(), work.path(), Arc::new(|_: &str| None));
        let cancel = Cancel::default();
        match remote.stream_context("FROM scratch\n".as_bytes(), "text", &cancel).expect("text") {
            FetchedContext::Dockerfile { text, .. } => assert_eq!(text, b"FROM scratch\n"),
            FetchedContext::Tree(_) => panic!("it is no archive"),
        }
        for (text, expected) in
            [(&b"# caf\xe9\nFROM scratch\n"[..], true), (b"FROM\0scratch\n", false), (b" \n\xe9", false)]
        {
            assert_eq!(remote.stream_context(text, "text", &cancel).is_ok(), expected, "{text:?}");
        }
        let tar = tar("Dockerfile=FROM d/f@600#7:8=f d/../up=u l->/etc");
        for (name, bytes) in compressed(&tar).into_iter().chain([("plain", tar.clone())]) {
            let FetchedContext::Tree(tree) = remote.stream_context(io::Cursor::new(bytes), name, &cancel).expect(name)
            else {
                panic!("{name} is an archive");
            };
            assert_eq!(show(tree.path()), "Dockerfile=FROM d/ d/f@600=f l->/etc up=u", "{name}");
            let owner = |file: &str| tree.open().and_then(|tree| tree.lstat(Path::new(file))).expect(file);
            assert_eq!((owner("d/f").uid, owner("d/f").gid, owner("Dockerfile").uid), (7, 8, 0), "{name}");
            let path = tree.path().to_owned();
            drop(tree);
            assert!(!path.exists());
        }
        let like_directory = remote.clone().with_root_as_owner();
        let FetchedContext::Tree(tree) =
            like_directory.stream_context(io::Cursor::new(tar.clone()), "plain", &cancel).expect("an archive")
        else {
            panic!("it is an archive");
        };
        assert_eq!(tree.open().and_then(|tree| tree.lstat(Path::new("d/f"))).expect("a file").uid, 0);
        let error =
            remote.stream_context(io::Cursor::new(vec![0xff; 100]), "standard input", &cancel).expect_err("binary");
        assert_eq!(error.to_string(), "standard input is neither an archive nor a Dockerfile");
        let outside = crate::context::archive::tests::tar("Dockerfile=FROM d/../../up=u");
        let error = remote.stream_context(io::Cursor::new(outside), "standard input", &cancel).expect_err("climbs out");
        assert!(crate::hint::chain(&error).ends_with("`d/../../up` lies outside of the archive"), "{error:?}");
        let cut = tar[..600].to_vec();
        let error = remote.stream_context(io::Cursor::new(cut), "standard input", &cancel).expect_err("cut");
        assert!(crate::hint::chain(&error).contains("unexpected EOF"), "{error:?}");
    }
}
