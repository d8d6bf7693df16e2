//! Everything below one directory that is visible and selected, found by several threads.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::files::{Files, FilesError, Found, shown};
use super::ignore::{Matched, Patterns};
use crate::cancel::Cancel;
use crate::rootfs::{FileKind, path_order};

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

/// What the patterns said about a directory.
#[derive(Debug, Clone, Default)]
struct State {
    ignore: Matched,
    include: Matched,
    exclude: Matched,
    /// Hidden itself or below something hidden: whether it exists depends on what is below.
    hidden: bool,
}

/// A directory still to be listed, relative to the source directory.
struct Pending {
    path: PathBuf,
    state: State,
}

/// An entry before it is known what is below it.
struct Candidate {
    entry: TreeEntry,
    hidden: bool,
}

impl Files {
    /// Lists what is below `directory` (plain, visible) depth first in byte order.
    pub(crate) fn walk(
        &self,
        directory: &Path,
        selection: &Selection,
        cancel: &Cancel,
    ) -> Result<Vec<TreeEntry>, FilesError> {
        let ignore = self.patterns.matched(directory.as_os_str().as_bytes());
        let hidden = ignore.yes;
        // The directory itself is there, or nobody would ask; but what is hidden in it stays so.
        let root = State { ignore, hidden, ..State::default() };
        let mut pending = vec![Pending { path: PathBuf::new(), state: root }];
        let mut candidates = Vec::new();
        // Level by level, not recursively: a tree may be deeper than a stack.
        while !pending.is_empty() {
            if cancel.is_cancelled() {
                return Err(FilesError::Cancelled);
            }
            let listed: Vec<(Vec<Candidate>, Vec<Pending>)> =
                pending.par_iter().map(|next| self.level(directory, next, selection)).collect::<Result<_, _>>()?;
            pending = Vec::new();
            for (found, below) in listed {
                candidates.extend(found);
                pending.extend(below);
            }
        }
        candidates.par_sort_unstable_by(|a, b| path_order(&a.entry.path, &b.entry.path));
        Ok(keep(candidates))
    }

    fn level(
        &self,
        source: &Path,
        directory: &Pending,
        selection: &Selection,
    ) -> Result<(Vec<Candidate>, Vec<Pending>), FilesError> {
        let Pending { path: parent, state } = directory;
        let full = source.join(parent);
        let entries = match self.entries(&full) {
            Ok(entries) => entries,
            Err(FilesError::Io { source, .. }) if state.hidden && source.kind() == io::ErrorKind::PermissionDenied => {
                return Ok((Vec::new(), Vec::new()));
            }
            Err(FilesError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(FilesError::Changed { path: shown(&full) });
            }
            Err(error) => return Err(error),
        };
        let mut found = Vec::with_capacity(entries.len());
        let mut below = Vec::new();
        for (name, entry) in entries {
            let path = parent.join(&name);
            let state = self.state(&full, &name, &path, state, selection);
            let include = selection.include.is_none() || state.include.yes;
            let selected = include && !state.exclude.yes;
            let hidden = state.ignore.yes;
            if entry.metadata.kind == FileKind::Directory {
                if self.may_hold(&full.join(&name), &path, &state, selection) {
                    below.push(Pending { path: path.clone(), state });
                }
            } else if hidden || !selected && !state.hidden {
                // A file that is not selected still proves that a hidden directory above it exists.
                continue;
            }
            let link = match entry.metadata.kind {
                FileKind::Symlink => Some(self.read_link(&full.join(&name))?),
                _ => None,
            };
            found.push(Candidate { entry: TreeEntry { path, found: entry, link, selected }, hidden });
        }
        Ok((found, below))
    }

    fn state(&self, directory: &Path, name: &OsStr, path: &Path, parent: &State, selection: &Selection) -> State {
        let relative = path.as_os_str().as_bytes();
        let ignore = if self.patterns.is_empty() {
            Matched::default()
        } else {
            self.patterns.below(&parent.ignore, directory.join(name).as_os_str().as_bytes())
        };
        State {
            hidden: parent.hidden || ignore.yes,
            ignore,
            include: selection.include.as_ref().map(|p| p.below(&parent.include, relative)).unwrap_or_default(),
            exclude: if selection.exclude.is_empty() {
                Matched::default()
            } else {
                selection.exclude.below(&parent.exclude, relative)
            },
        }
    }

    /// Whether a directory has to be listed.
    fn may_hold(&self, full: &Path, path: &Path, state: &State, selection: &Selection) -> bool {
        let (full, path) = (full.as_os_str().as_bytes(), path.as_os_str().as_bytes());
        if state.ignore.yes && !self.patterns.may_change_below(&state.ignore, full) {
            return false;
        }
        let include = selection
            .include
            .as_ref()
            .is_none_or(|patterns| state.include.yes || patterns.may_change_below(&state.include, path));
        let exclude = !state.exclude.yes || selection.exclude.may_change_below(&state.exclude, path);
        state.ignore.yes || include && exclude
    }
}

/// Drops hidden directories without anything visible below, and directories that are not selected and have nothing
/// selected below. `candidates` are sorted, so what is below a directory directly follows it.
fn keep(candidates: Vec<Candidate>) -> Vec<TreeEntry> {
    let mut keep = vec![false; candidates.len()];
    let (mut next_visible, mut next_kept): (Option<&Path>, Option<&Path>) = (None, None);
    for (Candidate { entry, hidden }, keep) in candidates.iter().zip(&mut keep).rev() {
        if *hidden && !next_visible.is_some_and(|next| is_below(next, &entry.path)) {
            continue;
        }
        next_visible = Some(&entry.path);
        if entry.selected || next_kept.is_some_and(|next| is_below(next, &entry.path)) {
            next_kept = Some(&entry.path);
            *keep = true;
        }
    }
    candidates.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(candidate, _)| candidate.entry).collect()
}

fn is_below(path: &Path, directory: &Path) -> bool {
    let rest = path.as_os_str().as_bytes().strip_prefix(directory.as_os_str().as_bytes());
    rest.is_some_and(|rest| rest.starts_with(b"/"))
}
