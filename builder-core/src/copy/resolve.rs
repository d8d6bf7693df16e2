//! Which files a COPY or ADD takes, and what they hash to.

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::CopyError;
use super::remote::{self, GitTree, RemoteFile};
use crate::cancel::Cancel;
use crate::context::glob::{Glob, has_wildcards, wildcard};
use crate::context::{FileHash, Files, Found, Patterns, Remote, Selection, TreeEntries, clean};
use crate::oci::{Hasher, Sha256};
use crate::plan::{CopyAction, CopySource};
use crate::rootfs::{FileKind, Metadata};

/// Up to so many files of one source are items of their own; of larger trees only what lies directly in the source.
const ITEMS_PER_SOURCE: usize = 500;

/// Files that are hashed at one time: enough for all threads, and no second list of a million paths.
const FILES_AT_ONCE: usize = 8192;

/// Sources of one COPY or ADD, resolved: what was matched.
#[derive(Debug)]
pub struct ResolvedCopy {
    /// As many as the action has, in its order.
    pub(super) sources: Vec<Source>,
}

/// A hash over everything of the sources that reaches the result (checklist C-10): the content part of the step's cache key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentHash {
    /// Over names, modes, owners, sizes, link texts, devices, capabilities and data; mtimes excluded.
    pub whole: Sha256,
    /// Path and hash of each file (of large trees: of what lies directly in the source), for saying which file changed.
    pub items: Vec<(String, Sha256)>,
}

/// What became of one source.
#[derive(Debug)]
pub(super) enum Source {
    /// Files, each copied on its own.
    Matches(Vec<Match>),
    /// The action holds the content.
    Heredoc,
    /// What a URL holds.
    Url(Box<RemoteFile>),
    /// What a commit holds.
    Git(Box<GitTree>),
}

/// One file or directory that a source means.
#[derive(Debug)]
pub(super) struct Match {
    /// Path under which it was found; its last component names the file in the target.
    pub(super) named: PathBuf,
    /// The same without links.
    pub(super) path: PathBuf,
    pub(super) found: Found,
    /// What is below, if it is a directory.
    pub(super) entries: TreeEntries,
    /// Chosen by the patterns of `--parents`.
    pub(super) parents: bool,
    /// What all files get instead of their own times.
    pub(super) mtime: Option<(i64, u32)>,
}

impl ResolvedCopy {
    /// Hashes what was matched in `files` for `action`; several threads; reads only what is not known.
    ///
    /// # Errors
    /// [`CopyError`], also for a file that is not what it was when it was matched.
    pub fn content_hash(&self, action: &CopyAction, files: &Files, cancel: &Cancel) -> Result<ContentHash, CopyError> {
        let (whole, items) = summarize::<CopyError>(action, &self.sources, &|some| Ok(files.hash(some, cancel)?))?;
        Ok(ContentHash { whole, items })
    }

    /// The same if no file has to be read for it.
    ///
    /// # Errors
    /// [`CopyError`]
    pub fn known_hash(&self, action: &CopyAction, files: &Files) -> Result<Option<ContentHash>, CopyError> {
        let count = Cell::new(0);
        let found = summarize(action, &self.sources, &|some| {
            count.set(count.get() + some.len() as u64);
            files.known_hashes(some).ok_or(Stopped::Unread)
        });
        match found {
            Ok((whole, items)) => {
                files.count_known(count.get());
                Ok(Some(ContentHash { whole, items }))
            }
            Err(Stopped::Unread) => Ok(None),
            Err(Stopped::Failed(error)) => Err(error),
        }
    }

    /// The same without what is in files, of which none is read: where two of these differ, so do the hashes of the content.
    ///
    /// # Errors
    /// [`CopyError`]
    pub fn outline(&self, action: &CopyAction) -> Result<Sha256, CopyError> {
        let unread = FileHash::unread();
        Ok(summarize::<CopyError>(action, &self.sources, &|some| Ok(vec![unread.clone(); some.len()]))?.0)
    }
}

/// Matches the sources of `action` in `files`. Files are looked at and not read.
///
/// # Errors
/// [`CopyError`]; [`CopyError::NoRemote`] for URLs and git sources, which need [`resolve_with_remote`].
pub fn resolve(action: &CopyAction, files: &Files, cancel: &Cancel) -> Result<ResolvedCopy, CopyError> {
    resolve_all(action, files, None, cancel)
}

/// Like [`resolve`], with a way to reach URLs and git repositories.
///
/// # Errors
/// [`CopyError`]
pub fn resolve_with_remote(
    action: &CopyAction,
    files: &Files,
    remote: &Remote,
    cancel: &Cancel,
) -> Result<ResolvedCopy, CopyError> {
    resolve_all(action, files, Some(remote), cancel)
}

fn resolve_all(
    action: &CopyAction,
    files: &Files,
    remote: Option<&Remote>,
    cancel: &Cancel,
) -> Result<ResolvedCopy, CopyError> {
    let reach = |url: &str| remote.ok_or_else(|| CopyError::NoRemote { url: crate::context::shown_url(url) });
    let mut sources = Vec::with_capacity(action.sources.len());
    for source in &action.sources {
        sources.push(match source {
            CopySource::Path(path) if action.parents => Source::Matches(with_parents(action, path, files, cancel)?),
            CopySource::Path(path) => Source::Matches(plain(action, path, files, cancel)?),
            CopySource::Heredoc { .. } => Source::Heredoc,
            CopySource::Url(url) => Source::Url(Box::new(remote::file(action, url, reach(url)?, cancel)?)),
            CopySource::Git(url) => Source::Git(Box::new(remote::tree(action, url, reach(url)?, cancel)?)),
        });
    }
    Ok(ResolvedCopy { sources })
}

pub(super) fn excludes(action: &CopyAction) -> Result<Patterns, CopyError> {
    Patterns::new(action.excludes.iter().map(String::as_str)).map_err(|source| CopyError::Exclude {
        pattern: source.line.checked_sub(1).and_then(|i| action.excludes.get(i)).cloned().unwrap_or_default(),
        source,
    })
}

/// A source without `--parents`.
fn plain(action: &CopyAction, source: &str, files: &Files, cancel: &Cancel) -> Result<Vec<Match>, CopyError> {
    let selection = Selection { include: None, exclude: excludes(action)? };
    let mut matches = Vec::new();
    for named in expand(source, files)? {
        let followed = files.follow(&named)?;
        let found = followed.found.ok_or_else(|| missing(source, &named, files))?;
        let is_directory = found.metadata.kind == FileKind::Directory;
        let entries =
            if is_directory { files.walk(&followed.path, &selection, cancel)? } else { TreeEntries::default() };
        matches.push(Match { named, path: followed.path, found, entries, parents: false, mtime: None });
    }
    Ok(matches)
}

/// A source with `--parents`: patterns below a pivot (checklist C-43 to C-45).
fn with_parents(action: &CopyAction, source: &str, files: &Files, cancel: &Cancel) -> Result<Vec<Match>, CopyError> {
    let (pivot, pattern) = source.split_once("/./").unwrap_or(("", source));
    let pattern = rooted(pattern);
    if pattern.is_empty() {
        return Err(CopyError::Missing { path: "/".into(), clue: None });
    }
    let include =
        Patterns::new([&*pattern]).map_err(|error| CopyError::Exclude { pattern: source.to_owned(), source: error })?;
    let mut selection = Selection { include: Some(include), exclude: excludes(action)? };
    let mut matches = Vec::new();
    for named in expand(pivot, files)? {
        let followed = files.follow(&named)?;
        let directory = followed.found.filter(|found| found.metadata.kind == FileKind::Directory);
        let found = directory.ok_or_else(|| missing(source, &named, files))?;
        let entries = files.walk(&followed.path, &selection, cancel)?;
        if entries.is_empty() && !has_wildcards(&pattern) {
            // Excluded is not missing.
            selection.exclude = Patterns::default();
            if files.walk(&followed.path, &selection, cancel)?.is_empty() {
                return Err(missing(source, &named.join(&pattern), files));
            }
        }
        matches.push(Match { named, path: followed.path, found, entries, parents: true, mtime: None });
    }
    Ok(matches)
}

/// A source as a clean path without a leading `/`: `..` stays inside, an empty one is the root (checklist C-01).
fn rooted(source: &str) -> String {
    clean(&format!("/{source}")).split_off(1)
}

/// The paths that a source means: itself, or what its wildcards match, in order (checklist C-07, C-08).
fn expand(written: &str, files: &Files) -> Result<Vec<PathBuf>, CopyError> {
    let source = rooted(written);
    let components: Vec<&str> = source.split('/').collect();
    let Some(first) = components.iter().position(|component| has_wildcards(component)) else {
        return Ok(vec![source.into()]);
    };
    let (literal, pattern) = (components[..first].join("/"), components[first..].join("/"));
    let bad = |error| CopyError::Pattern { pattern: source.clone(), source: error };
    let glob = Glob::new(&wildcard(&pattern).map_err(bad)?);
    let base = files.follow(Path::new(&literal))?;
    let Some(found) = base.found else {
        let clue = files.clue(written, Path::new(&literal));
        return Err(CopyError::NoDirectory { path: Path::new("/").join(base.path), clue });
    };
    let mut matched = Vec::new();
    if found.metadata.kind != FileKind::Directory {
        return Ok(matched);
    }
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        if !path.as_os_str().is_empty() && glob.matches(path.as_os_str().as_bytes()) {
            matched.push(base.path.join(&path));
            continue;
        }
        // The stack holds what still has to be looked at; of files only those that match were put on it.
        let mut below: Vec<PathBuf> = Vec::new();
        for (name, found) in files.list(&base.path.join(&path))? {
            let next = path.join(name);
            let bytes = next.as_os_str().as_bytes();
            let is_directory = found.metadata.kind == FileKind::Directory;
            if glob.matches(bytes) || is_directory && glob.may_match_below(bytes) {
                below.push(next);
            }
        }
        pending.extend(below.into_iter().rev());
    }
    Ok(matched)
}

fn missing(written: &str, path: &Path, files: &Files) -> CopyError {
    CopyError::Missing { path: Path::new("/").join(path), clue: files.clue(written, path) }
}

/// Hashes of regular files, in their order.
type HashesOf<'a, E> = dyn Fn(&[(PathBuf, Found)]) -> Result<Vec<FileHash>, E> + 'a;

/// Why there is no hash over everything.
enum Stopped {
    /// A file would have to be read.
    Unread,
    Failed(CopyError),
}

impl From<CopyError> for Stopped {
    fn from(error: CopyError) -> Self {
        Self::Failed(error)
    }
}

/// Hashes all matches; the whole and the items.
fn summarize<E: From<CopyError>>(
    action: &CopyAction,
    sources: &[Source],
    hashes: &HashesOf<'_, E>,
) -> Result<(Sha256, Vec<(String, Sha256)>), E> {
    // What is a file itself first, all together; what is below directories in its turn.
    let single = sources.iter().flat_map(matches_of).filter(|found| found.found.metadata.kind == FileKind::File);
    let single: Vec<_> = single.map(|found| (found.path.clone(), found.found)).collect();
    let mut single = hashes(&single)?.into_iter();
    let mut whole = Hasher::default();
    let mut items = Vec::new();
    for (source, written) in sources.iter().zip(&action.sources) {
        match source {
            Source::Url(file) => items.push(file.add_to(&mut whole)),
            Source::Git(tree) => items.push(tree.add_to(&mut whole)),
            Source::Heredoc | Source::Matches(_) => {}
        }
        if let (Source::Heredoc, CopySource::Heredoc { name, body }) = (source, written) {
            let hash = Sha256::of(body.as_bytes());
            field(&mut whole, b"heredoc");
            field(&mut whole, name.as_bytes());
            field(&mut whole, hash.as_bytes());
            items.push((format!("<<{name}"), hash));
        }
        for found in matches_of(source) {
            field(&mut whole, b"match");
            field(&mut whole, found.named.as_os_str().as_bytes());
            let mut item = Items::new(found, &mut whole);
            if found.found.metadata.kind != FileKind::Directory {
                let hash = if found.found.metadata.kind == FileKind::File { single.next() } else { None };
                item.add(Path::new(""), &found.found.metadata, true, None, hash.as_ref());
            }
            let mut entries = found.entries.iter();
            loop {
                let entries = entries.by_ref().take(FILES_AT_ONCE).collect::<Result<Vec<_>, _>>();
                let entries = entries.map_err(CopyError::from)?;
                if entries.is_empty() {
                    break;
                }
                let regular = entries.iter().filter(|entry| entry.found.metadata.kind == FileKind::File);
                let regular: Vec<_> = regular.map(|entry| (found.path.join(&entry.path), entry.found)).collect();
                let mut hashes = hashes(&regular)?.into_iter();
                for entry in &entries {
                    let hash = if entry.found.metadata.kind == FileKind::File { hashes.next() } else { None };
                    let link = entry.link.as_deref().map(Path::as_os_str);
                    item.add(&entry.path, &entry.found.metadata, entry.selected, link, hash.as_ref());
                }
            }
            item.finish(&mut items);
        }
    }
    Ok((whole.finish(), items))
}

fn matches_of(source: &Source) -> &[Match] {
    match source {
        Source::Matches(matches) => matches,
        Source::Heredoc | Source::Url(_) | Source::Git(_) => &[],
    }
}

/// Hashes of what one match holds.
struct Items<'a> {
    found: &'a Match,
    whole: &'a mut Hasher,
    /// One item per file, or per entry of the source directory.
    single: bool,
    /// The item at work.
    current: Option<(PathBuf, Hasher)>,
    /// Those that are done, as long as they are few.
    items: Vec<(PathBuf, Sha256)>,
    /// How many are done, and a hash of them all.
    count: usize,
    all: Hasher,
}

impl<'a> Items<'a> {
    fn new(found: &'a Match, whole: &'a mut Hasher) -> Self {
        let single = found.entries.len() <= ITEMS_PER_SOURCE;
        Self { found, whole, single, current: None, items: Vec::new(), count: 0, all: Hasher::default() }
    }

    fn add(&mut self, path: &Path, metadata: &Metadata, selected: bool, link: Option<&OsStr>, data: Option<&FileHash>) {
        let key = match path.components().next() {
            Some(first) if !self.single => Path::new(first.as_os_str()),
            _ => path,
        };
        // Entries come depth first, so those of one item follow each other.
        if self.current.as_ref().is_none_or(|(last, _)| last != key) {
            self.next(Some((key.to_owned(), Hasher::default())));
        }
        if let Some((_, hasher)) = &mut self.current {
            field(hasher, path.as_os_str().as_bytes());
            hash_file(hasher, metadata, selected, link, data);
        }
    }

    /// Ends the item at work.
    fn next(&mut self, next: Option<(PathBuf, Hasher)>) {
        let Some((path, hasher)) = std::mem::replace(&mut self.current, next) else { return };
        let hash = hasher.finish();
        field(self.whole, hash.as_bytes());
        field(&mut self.all, hash.as_bytes());
        self.count += 1;
        if !self.is_merged() {
            self.items.push((path, hash));
        }
    }

    /// A directory with very many files and no directories: one item must do.
    fn is_merged(&self) -> bool {
        !self.single && self.count > 2 * ITEMS_PER_SOURCE
    }

    fn finish(mut self, items: &mut Vec<(String, Sha256)>) {
        self.next(None);
        let named = Path::new("/").join(&self.found.named);
        if self.is_merged() {
            items.push((named.display().to_string(), self.all.finish()));
            return;
        }
        for (path, hash) in self.items {
            let shown = if path.as_os_str().is_empty() { named.clone() } else { named.join(path) };
            items.push((shown.display().to_string(), hash));
        }
    }
}

/// One field of a hash; the length keeps neighbours apart.
pub(super) fn field(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn hash_file(hasher: &mut Hasher, metadata: &Metadata, selected: bool, link: Option<&OsStr>, data: Option<&FileHash>) {
    let kind = match metadata.kind {
        FileKind::File => b'f',
        FileKind::Directory => b'd',
        FileKind::Symlink => b'l',
        FileKind::Fifo => b'p',
        FileKind::CharDevice => b'c',
        FileKind::BlockDevice => b'b',
        FileKind::Socket => b's',
    };
    hasher.update(&[kind, u8::from(selected)]);
    // The mode of a link is the same everywhere, whatever a file system says.
    let mode = if metadata.kind == FileKind::Symlink { 0o777 } else { metadata.mode };
    for number in [mode, metadata.uid, metadata.gid, metadata.device.0, metadata.device.1] {
        hasher.update(&number.to_le_bytes());
    }
    field(hasher, link.map_or(b"", OsStr::as_bytes));
    if let Some(FileHash { data, capability }) = data {
        field(hasher, &metadata.size.to_le_bytes());
        field(hasher, data.as_bytes());
        field(hasher, capability.as_deref().unwrap_or_default());
    }
}
