//! Path resolution in a tree in memory, as `resolve` does it on disk.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::node::IndexNode;
use crate::rootfs::FileKind;
use crate::rootfs::resolve::{MAX_LINKS, ends_as_directory, join, push_components, split};

/// Where a walk ended.
pub(super) struct Walked<'t> {
    /// Plain names that lead to what was found, from the root; those that do not exist are taken literally.
    pub(super) names: Vec<OsString>,
    /// What is there.
    pub(super) node: Option<&'t IndexNode>,
}

impl Walked<'_> {
    pub(super) fn path(&self) -> PathBuf {
        join(&self.names)
    }
}

/// Follows a path from the root, the last component only if `follow_last` or if a directory is asked for.
pub(super) fn walk<'t>(root: &'t IndexNode, path: &Path, follow_last: bool) -> io::Result<Walked<'t>> {
    // The directories on the way, without the root, which stays open so to speak.
    let mut stack: Vec<&'t IndexNode> = Vec::new();
    let mut names: Vec<OsString> = Vec::new();
    let mut pending: Vec<OsString> = Vec::new();
    push_components(&mut pending, path.as_os_str());
    let mut directory_wanted = ends_as_directory(path.as_os_str());
    let mut links = 0;
    while let Some(name) = pending.pop() {
        if name == ".." {
            names.pop();
            stack.pop();
            continue;
        }
        let last = pending.is_empty();
        let dir = stack.last().copied().unwrap_or(root);
        let Some(node) = dir.child(&name) else {
            names.push(name);
            for name in pending.into_iter().rev() {
                if name == ".." {
                    names.pop();
                } else {
                    names.push(name);
                }
            }
            return Ok(Walked { names, node: None });
        };
        match node.metadata.kind {
            FileKind::Symlink if !last || follow_last || directory_wanted => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let text = node.link().unwrap_or_default();
                if text.is_empty() {
                    return Err(Errno::NOENT.into());
                }
                if text.as_bytes().starts_with(b"/") {
                    names.clear();
                    stack.clear();
                }
                if last {
                    directory_wanted |= ends_as_directory(text);
                }
                push_components(&mut pending, text);
            }
            FileKind::Directory if !last => {
                names.push(name);
                stack.push(node);
            }
            kind if !last || (directory_wanted && kind != FileKind::Directory) => {
                return Err(Errno::NOTDIR.into());
            }
            _ => {
                names.push(name);
                return Ok(Walked { names, node: Some(node) });
            }
        }
    }
    Ok(Walked { names, node: Some(stack.last().copied().unwrap_or(root)) })
}

/// What a path itself stands for, its parents followed.
pub(super) fn find<'t>(root: &'t IndexNode, path: &Path, follow_last: bool) -> io::Result<&'t IndexNode> {
    if let Some(node) = find_plain(root, path, follow_last) {
        return Ok(node);
    }
    walk(root, path, follow_last)?.node.ok_or_else(|| Errno::NOENT.into())
}

/// What a path stands for that holds neither links nor `..`, as nearly all do; `None` says nothing.
fn find_plain<'t>(root: &'t IndexNode, path: &Path, follow_last: bool) -> Option<&'t IndexNode> {
    let mut node = root;
    let mut names = path.as_os_str().as_bytes().split(|byte| *byte == b'/').peekable();
    while let Some(name) = names.next() {
        if name.is_empty() && names.peek().is_some() {
            continue;
        }
        if matches!(name, b"" | b"." | b"..") {
            return None;
        }
        node = node.child(OsStr::from_bytes(name))?;
        if node.metadata.kind == FileKind::Symlink && (follow_last || names.peek().is_some()) {
            return None;
        }
    }
    Some(node)
}

/// The plain names of the directory in which `path` is an entry, and its name there; `None` for the root itself.
pub(super) fn parent(root: &IndexNode, path: &Path) -> io::Result<Option<(Vec<OsString>, OsString)>> {
    let (parent, name) = split(path);
    let Some(name) = name else { return Ok(None) };
    if name == ".." {
        let mut names = walk(root, path, true)?.names;
        return match names.pop() {
            None => Ok(None),
            Some(name) => Ok(Some((directory(root, &join(&names))?, name))),
        };
    }
    Ok(Some((directory(root, parent)?, name.to_owned())))
}

/// The plain names of a directory, links followed.
fn directory(root: &IndexNode, path: &Path) -> io::Result<Vec<OsString>> {
    if find_plain(root, path, true).is_some_and(IndexNode::is_directory) {
        return Ok(super::node::names(path).map(OsStr::to_owned).collect());
    }
    let walked = walk(root, path, true)?;
    match walked.node {
        Some(node) if node.is_directory() => Ok(walked.names),
        Some(_) => Err(Errno::NOTDIR.into()),
        None => Err(Errno::NOENT.into()),
    }
}

/// Names as borrowed ones.
pub(super) fn borrowed(names: &[OsString]) -> impl Iterator<Item = &OsStr> {
    names.iter().map(OsString::as_os_str)
}
