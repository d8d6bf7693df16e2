//! Everything below one directory that is visible and selected, found by several threads.

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
    /// The ignore file hides it, unless something below is visible.
    hidden: bool,
}

/// What the patterns said about a directory.
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

impl Files {
    /// Lists what is below `directory` (plain, visible) depth first in byte order.
    pub(crate) fn walk(
        &self,
        directory: &Path,
        selection: &Selection,
        cancel: &Cancel,
    ) -> Result<Vec<TreeEntry>, FilesError> {
        let ignore = self.patterns.matched(directory.as_os_str().as_bytes());
        // The directory itself is there, or nobody would ask; but what is hidden in it stays so.
        let root = State {
            hidden: ignore.yes,
            ignore,
            include: selection.include.as_ref().map_or_else(|| Patterns::default().root(), Patterns::root),
            exclude: selection.exclude.root(),
        };
        let mut pending = vec![Pending { path: PathBuf::new(), state: root }];
        let mut found = Vec::new();
        // Level by level, not recursively: a tree may be deeper than a stack.
        while !pending.is_empty() {
            if cancel.is_cancelled() {
                return Err(FilesError::Cancelled);
            }
            let listed: Vec<(Vec<TreeEntry>, Vec<Pending>)> =
                pending.par_iter().map(|next| self.level(directory, next, selection)).collect::<Result<_, _>>()?;
            pending = Vec::new();
            for (entries, below) in listed {
                found.extend(entries);
                pending.extend(below);
            }
        }
        found.par_sort_unstable_by(|a, b| path_order(&a.path, &b.path));
        prune(&mut found);
        Ok(found)
    }

    fn level(
        &self,
        source: &Path,
        directory: &Pending,
        selection: &Selection,
    ) -> Result<(Vec<TreeEntry>, Vec<Pending>), FilesError> {
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
            let in_context = full.join(&name);
            if entry.metadata.kind == FileKind::Directory {
                let next = self.enter(&in_context, &path, state, selection);
                let include = selection.include.is_none() || next.include.yes;
                let (selected, hidden) = (include && !next.exclude.yes, next.ignore.yes);
                if self.may_hold(&next, selection) {
                    below.push(Pending { path: path.clone(), state: next });
                }
                found.push(TreeEntry { path, found: entry, link: None, selected, hidden });
                continue;
            }
            if self.patterns.matches_file(&state.ignore, in_context.as_os_str().as_bytes()) {
                continue;
            }
            let relative = path.as_os_str().as_bytes();
            let include =
                selection.include.as_ref().is_none_or(|patterns| patterns.matches_file(&state.include, relative));
            let selected = include && !selection.exclude.matches_file(&state.exclude, relative);
            // A file that is not selected still proves that a hidden directory above it exists.
            if !selected && !state.hidden {
                continue;
            }
            let link = match entry.metadata.kind {
                FileKind::Symlink => Some(self.read_link(&in_context)?),
                _ => None,
            };
            found.push(TreeEntry { path, found: entry, link, selected, hidden: false });
        }
        Ok((found, below))
    }

    fn enter(&self, in_context: &Path, path: &Path, parent: &State, selection: &Selection) -> State {
        let relative = path.as_os_str().as_bytes();
        let ignore = self.patterns.below(&parent.ignore, in_context.as_os_str().as_bytes());
        State {
            hidden: parent.hidden || ignore.yes,
            ignore,
            include: match &selection.include {
                Some(patterns) => patterns.below(&parent.include, relative),
                None => parent.include.clone(),
            },
            exclude: selection.exclude.below(&parent.exclude, relative),
        }
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

/// Drops hidden directories without anything visible below, and directories that are not selected and have nothing
/// selected below. `found` is sorted, so what is below a directory directly follows it.
fn prune(found: &mut Vec<TreeEntry>) {
    let mut keep = vec![false; found.len()];
    let (mut next_visible, mut next_kept): (Option<&Path>, Option<&Path>) = (None, None);
    for (entry, keep) in found.iter().zip(&mut keep).rev() {
        if entry.hidden && !next_visible.is_some_and(|next| is_below(next, &entry.path)) {
            continue;
        }
        next_visible = Some(&entry.path);
        if entry.selected || next_kept.is_some_and(|next| is_below(next, &entry.path)) {
            next_kept = Some(&entry.path);
            *keep = true;
        }
    }
    let mut keep = keep.into_iter();
    found.retain(|_| keep.next().unwrap_or(true));
}

fn is_below(path: &Path, directory: &Path) -> bool {
    let rest = path.as_os_str().as_bytes().strip_prefix(directory.as_os_str().as_bytes());
    rest.is_some_and(|rest| rest.starts_with(b"/"))
}
