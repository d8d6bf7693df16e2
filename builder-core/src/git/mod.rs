//! One commit of a git repository as a directory: `ADD` of git sources, git contexts.
//!
//! A shallow fetch into a bare repository below a temporary directory, then the files are written from the objects: no
//! `git` program, no hooks, no configuration of the user or the system, no filters and no line-end conversion, as in
//! BuildKit (checklist C-60). `http(s)` goes through [`crate::http`]; `git://` and local paths are spoken by gix itself;
//! `ssh://` needs an `ssh` program, with the user's configuration of it.
//!
//! # Limitations
//! - A blob is in memory once while its file is written, and gix keeps the index of the fetched pack in memory: a
//!   repository with single files of gigabytes needs as much.
//! - SHA-256 repositories are refused with [`GitError::Fetch`].
//!
//! Architecture invariant: neither Dockerfiles nor contexts are known here.

mod error;
mod fetch;
mod ssh;
mod transport;
mod write;

pub use error::GitError;
pub use ssh::SshAccess;

pub(crate) use ssh::is_ssh;

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::cancel::Cancel;
use crate::disk::Disk;
use crate::http;

/// What to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitRequest {
    /// URL of the repository; `user@host:path` is ssh.
    pub url: String,
    /// Branch, tag, full reference or commit; `None` is the remote's `HEAD`.
    pub reference: Option<String>,
    /// Instead of what the reference names, this commit of its history.
    pub commit: Option<String>,
    /// How many commits of the history are fetched; `None` for all, with the tags on them.
    pub depth: Option<NonZeroU32>,
    /// Also leave a `.git` directory, shallow and detached at the commit.
    pub keep_git_dir: bool,
    /// Fetch submodules too, each at the commit that the tree names.
    pub submodules: bool,
    /// Value of the `Authorization` header for the repository's host (http and https only).
    pub authorization: Option<http::Secret>,
    /// How `ssh` is called (ssh only).
    pub ssh: SshAccess,
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Hexadecimal id of the commit.
    pub id: String,
    /// Committer's time in seconds since 1970.
    pub time: i64,
}

/// Whether the text is the whole id of a commit.
pub(crate) fn is_full_id(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Submodules within submodules; deeper ones are an error, since a repository may contain itself.
const SUBMODULE_DEPTH: usize = 10;

/// Fetches a commit and writes its files into `directory`, which must exist and be empty: directories 0755, files 0644 or
/// 0755, symbolic links as they are, all with the times at which they are written. What is fetched and written counts on
/// `disk`.
///
/// # Errors
/// [`GitError`]
pub fn checkout(
    request: &GitRequest,
    directory: &Path,
    client: &http::Client,
    disk: &Disk,
    cancel: &Cancel,
) -> Result<Commit, GitError> {
    checkout_at(request, directory, client, disk, cancel, 0)
}

fn checkout_at(
    request: &GitRequest,
    directory: &Path,
    client: &http::Client,
    disk: &Disk,
    cancel: &Cancel,
    depth: usize,
) -> Result<Commit, GitError> {
    if depth > SUBMODULE_DEPTH {
        return Err(GitError::SubmodulesTooDeep { url: fetch::redacted(&request.url), limit: SUBMODULE_DEPTH });
    }
    let io = |action: &'static str| {
        let path = directory.to_owned();
        move |source| GitError::Io { action, path, source }
    };
    // Objects of a checkout without `.git` go away with this directory.
    let temp = match request.keep_git_dir {
        true => None,
        false => {
            let parent = directory.parent().unwrap_or(Path::new("."));
            Some(tempfile::tempdir_in(parent).map_err(io("create a directory beside"))?)
        }
    };
    let git_dir = temp.as_ref().map_or_else(|| directory.join(".git"), |temp| temp.path().to_owned());
    let interrupt = AtomicBool::new(false);
    let (repository, commit) =
        watching((&git_dir, disk), cancel, &interrupt, || fetch::fetch(request, &git_dir, client, cancel, &interrupt))?;
    let tree = write::Tree::of(&repository, &commit.id, &request.url)?;
    let gitlinks = tree.write(directory, disk, cancel)?;
    if request.keep_git_dir {
        fetch::write_head_and_index(&repository, &commit.id, &request.url)?;
    }
    if request.submodules && !gitlinks.is_empty() {
        let urls = tree.submodule_urls()?;
        for link in gitlinks {
            let Some(url) = urls.get(&link.path) else {
                return Err(GitError::SubmoduleWithoutUrl { path: link.path });
            };
            let inner = GitRequest {
                url: fetch::relative_url(&request.url, url),
                reference: Some(link.commit),
                commit: None,
                depth: request.depth,
                keep_git_dir: false,
                submodules: true,
                authorization: same_host(&request.url, url).then(|| request.authorization.clone()).flatten(),
                ssh: request.ssh.clone(),
            };
            checkout_at(&inner, &directory.join(&link.path), client, disk, cancel, depth + 1)?;
        }
    }
    Ok(commit)
}

/// Whether a token for `parent` may be sent to `url`: relative, or the same scheme, host and port.
fn same_host(parent: &str, url: &str) -> bool {
    if url.starts_with("./") || url.starts_with("../") {
        return true;
    }
    match (url::Url::parse(parent), url::Url::parse(url)) {
        (Ok(a), Ok(b)) => a.origin() == b.origin(),
        _ => false,
    }
}

/// How often the size of what is fetched is looked at: gix writes it, and does not say how much.
const LOOK: std::time::Duration = std::time::Duration::from_millis(50);

/// Runs `work`, which writes below a directory, while another thread counts that and passes cancellation on to gix, which looks at a
/// flag of its own.
fn watching<T>(
    (directory, disk): (&Path, &Disk),
    cancel: &Cancel,
    interrupt: &AtomicBool,
    work: impl FnOnce() -> Result<T, GitError>,
) -> Result<T, GitError> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut counted = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let size = bytes_below(directory);
                if cancel.is_cancelled() || disk.take(size.saturating_sub(counted)).is_err() {
                    interrupt.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                counted = counted.max(size);
                std::thread::park_timeout(LOOK);
            }
        });
        let result = work();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        if cancel.is_cancelled() { Err(GitError::Cancelled) } else { result }
    })
}

/// Bytes of all files below a directory; what vanishes meanwhile has none.
fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

#[cfg(test)]
mod tests;
