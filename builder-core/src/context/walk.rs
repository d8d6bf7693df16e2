//! Everything below one directory that is visible and selected, found by several threads.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::files::{Files, FilesError, Found, io_error};
use super::ignore::{Matched, Patterns};
use crate::cancel::Cancel;
use crate::rootfs::{FileKind, Guide, ListError, Metadata, is_below};
use crate::spool::{self, Fields, Paths, Spool, SpoolReader};

/// Which files below a source directory are taken. Patterns are relative to that directory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// Only what matches, with all below it (`--parents`).
    pub(crate) include: Option<Patterns>,
    /// Not what matches (`--exclude`).
    pub(crate) exclude: Patterns,
}

/// One file below a source directory.
#[derive(Debug, Clone)]
pub(crate) struct TreeEntry {
    /// Relative to the source directory.
    pub(crate) path: PathBuf,
    pub(crate) found: Found,
    /// Text of a symbolic link.
    pub(crate) link: Option<PathBuf>,
    /// False for a directory that is only here because something below it is.
    pub(crate) selected: bool,
}

/// Files below a source directory, in order, whose number memory does not feel.
#[derive(Debug, Default)]
pub(crate) struct TreeEntries {
    spool: Spool,
    paths: Paths,
    record: Vec<u8>,
    count: usize,
    linked: bool,
}

/// Added to the code of a kind.
const SELECTED: u8 = 0x40;

impl TreeEntries {
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a regular file among them has several names, here or elsewhere.
    pub(crate) fn linked(&self) -> bool {
        self.linked
    }

    fn push(&mut self, entry: &TreeEntry) -> Result<(), FilesError> {
        let out = &mut self.record;
        out.clear();
        self.paths.write(out, entry.path.as_os_str().as_bytes());
        let Found { metadata, ctime } = &entry.found;
        out.push(metadata.kind.code() | if entry.selected { SELECTED } else { 0 });
        metadata.write(out);
        spool::signed(out, ctime.0);
        spool::number(out, ctime.1.into());
        if metadata.kind == FileKind::Symlink {
            spool::bytes(out, entry.link.as_ref().map_or(b"", |link| link.as_os_str().as_bytes()));
        }
        self.linked |= metadata.kind == FileKind::File && metadata.links > 1;
        self.count += 1;
        self.spool.append(out).map_err(|source| io_error("list", &entry.path, source))
    }

    /// All of them in order. After an error there are no more.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<TreeEntry, FilesError>> {
        let (mut input, mut paths) = (self.spool.read_from(0), Paths::default());
        let mut left = self.count;
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let entry = TreeEntry::read(&mut input, &mut paths);
            Some(entry.map_err(|source| {
                left = 0;
                io_error("list", Path::new(""), source)
            }))
        })
    }
}

impl TreeEntry {
    fn read(input: &mut SpoolReader<'_>, paths: &mut Paths) -> io::Result<Self> {
        let path = PathBuf::from(OsStr::from_bytes(paths.read(input)?));
        let code = input.byte()?;
        let kind = FileKind::from_code(code & !SELECTED).ok_or(io::ErrorKind::InvalidData)?;
        let metadata = Metadata::read(kind, input)?;
        let ctime = (input.signed()?, input.small()?);
        let link = match kind {
            FileKind::Symlink => Some(PathBuf::from(OsString::from_vec(input.sized()?))),
            _ => None,
        };
        Ok(Self { path, found: Found { metadata, ctime }, link, selected: code & SELECTED != 0 })
    }
}

/// What the patterns said about a directory.
struct State {
    ignore: Matched,
    include: Matched,
    exclude: Matched,
    /// Hidden itself or below something hidden: whether it exists depends on what is below.
    hidden: bool,
}

/// Leads to what patterns do not rule out.
struct ByPatterns<'a> {
    files: &'a Files,
    source: &'a Path,
    selection: &'a Selection,
}

impl Guide for ByPatterns<'_> {
    type Directory = State;

    fn enter(&self, around: &State, path: &Path) -> (State, bool) {
        let relative = path.strip_prefix(self.source).unwrap_or(path).as_os_str().as_bytes();
        let (selection, patterns) = (self.selection, &self.files.patterns);
        let ignore = patterns.below(&around.ignore, path.as_os_str().as_bytes());
        let state = State {
            hidden: around.hidden || ignore.yes,
            ignore,
            include: match &selection.include {
                Some(patterns) => patterns.below(&around.include, relative),
                None => around.include.clone(),
            },
            exclude: selection.exclude.below(&around.exclude, relative),
        };
        let may_hold = self.files.may_hold(&state, selection);
        (state, may_hold)
    }

    /// Hidden on purpose, perhaps because of this.
    fn may_be_closed(&self, directory: &State) -> bool {
        directory.hidden
    }
}

/// Directories on the way to what is looked at, of which it is not known yet whether they are there for the build: hidden
/// ones exist if something below is visible, ones that are not selected if something below is selected.
#[derive(Default)]
struct Doubtful(Vec<TreeEntry>);

impl Doubtful {
    /// Forgets those that `path` is not below.
    fn leave(&mut self, path: &Path) {
        while self.0.last().is_some_and(|directory| !is_below(path, &directory.path)) {
            self.0.pop();
        }
    }

    /// Something below all of them is visible, and `taken` too or not: keeps those that exist by that.
    fn settle(&mut self, taken: bool, kept: &mut TreeEntries) -> Result<(), FilesError> {
        // Of those that are left only hidden ones are selected, and they are hidden no longer. What is above is there too.
        let there = match taken {
            true => self.0.len(),
            false => self.0.iter().rposition(|directory| directory.selected).map_or(0, |last| last + 1),
        };
        self.0.drain(..there).try_for_each(|directory| kept.push(&directory))
    }
}

impl Files {
    /// Lists what is below `directory` (plain, visible) depth first in byte order.
    pub(crate) fn walk(
        &self,
        directory: &Path,
        selection: &Selection,
        cancel: &Cancel,
    ) -> Result<TreeEntries, FilesError> {
        let Some(tree) = &self.tree else { return Ok(TreeEntries::default()) };
        let ignore = self.patterns.matched(directory.as_os_str().as_bytes());
        // The directory itself is there, or nobody would ask; but what is hidden in it stays so.
        let root = State {
            hidden: ignore.yes,
            ignore,
            include: selection.include.as_ref().map_or_else(|| Patterns::default().root(), Patterns::root),
            exclude: selection.exclude.root(),
        };
        let guide = ByPatterns { files: self, source: directory, selection };
        let mut kept = TreeEntries { spool: Spool::new(tree.lists_in()), ..TreeEntries::default() };
        let mut doubtful = Doubtful::default();
        tree.guided(directory, root, &guide, &mut |(full, metadata, ctime, around, own)| {
            if cancel.is_cancelled() {
                return Err(FilesError::Cancelled);
            }
            let path = full.strip_prefix(directory).unwrap_or(full).to_owned();
            doubtful.leave(&path);
            let found = self.found(metadata, ctime);
            if let Some(own) = own {
                let selected = (selection.include.is_none() || own.include.yes) && !own.exclude.yes;
                let entry = TreeEntry { path, found, link: None, selected };
                if own.ignore.yes {
                    doubtful.0.push(entry);
                } else if selected {
                    doubtful.settle(true, &mut kept)?;
                    kept.push(&entry)?;
                } else {
                    doubtful.settle(false, &mut kept)?;
                    doubtful.0.push(entry);
                }
                return Ok(());
            }
            if self.patterns.matches_file(&around.ignore, full.as_os_str().as_bytes()) {
                return Ok(());
            }
            let relative = path.as_os_str().as_bytes();
            let include =
                selection.include.as_ref().is_none_or(|patterns| patterns.matches_file(&around.include, relative));
            let selected = include && !selection.exclude.matches_file(&around.exclude, relative);
            // A file that is not selected still proves that a hidden directory above it exists.
            if !selected && !around.hidden {
                return Ok(());
            }
            doubtful.settle(selected, &mut kept)?;
            if selected {
                let link = match found.metadata.kind {
                    FileKind::Symlink => Some(self.read_link(full)?),
                    _ => None,
                };
                kept.push(&TreeEntry { path, found, link, selected })?;
            }
            Ok(())
        })?;
        Ok(kept)
    }

    /// Whether a directory has to be listed.
    fn may_hold(&self, state: &State, selection: &Selection) -> bool {
        if state.ignore.yes {
            // What is below decides whether it exists.
            return self.patterns.may_change_below(&state.ignore);
        }
        let include = &selection.include;
        let included =
            include.as_ref().is_none_or(|patterns| state.include.yes || patterns.may_change_below(&state.include));
        included && (!state.exclude.yes || selection.exclude.may_change_below(&state.exclude))
    }
}

impl From<ListError> for FilesError {
    fn from(error: ListError) -> Self {
        io_error("list", &error.path, error.source)
    }
}
