//! The files of the result, without an image around them: `type=local` and `type=tar`.
//!
//! # Limitations
//! In a directory, owners are those of whoever runs the build (checklist X-04: the files are for them, not for a container), and
//! extended attributes are left out. Devices that may not be made are left out with a notice.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::archive::to_destination;
use super::{Destination, OutputError};
use crate::cancel::Cancel;
use crate::event::{Event, Observer};
use crate::layer::LayerError;
use crate::layer::entry::{Entry, EntryKind};
use crate::layer::tar::{TarWriter, Times, WriteSink};
use crate::oci::Platform;
use crate::rootfs::{Attributes, FileKind, Listing, Metadata, NewFile, Rootfs};
use crate::snapshot::{Change, Changes, everything};

/// The result for one platform.
#[derive(Debug)]
pub struct PlatformFiles<'a> {
    /// Which.
    pub platform: &'a Platform,
    /// Its files.
    pub rootfs: &'a Rootfs,
}

/// How files are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct FilesOptions {
    /// One directory a platform; `None`: only if there are several.
    pub platform_split: Option<bool>,
    /// Time for all files, seconds since 1970 (checklist X-12).
    pub epoch: Option<i64>,
    /// In a directory, remove what is not in the result.
    pub delete: bool,
}

/// What of one platform is written, and below which directory.
struct Part<'a> {
    files: &'a PlatformFiles<'a>,
    prefix: PathBuf,
    listing: Listing,
    changes: Changes,
}

/// Writes the files as one tar (checklist X-05).
///
/// # Errors
/// [`OutputError`]; a file that was there is as it was then.
pub fn tar(
    files: &[PlatformFiles<'_>],
    dest: &Destination,
    stdout: &mut (dyn Write + Send),
    options: &FilesOptions,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    let parts = parts(files, options)?;
    let times = options.epoch.map_or(Times::Keep, Times::Set);
    to_destination(dest, stdout, &mut |out| {
        let mut tar = TarWriter::new(WriteSink::new(out), times);
        for part in &parts {
            if !part.prefix.as_os_str().is_empty() {
                let name = part.prefix.as_os_str().as_encoded_bytes();
                let mtime = times.apply(0);
                let kind = EntryKind::Directory;
                tar.header(&Entry { name, kind, mode: 0o755, uid: 0, gid: 0, mtime, capability: None })?;
            }
            for change in &part.changes {
                if cancel.is_cancelled() {
                    return Err(OutputError::Cancelled);
                }
                let change = change.map_err(LayerError::Changes)?;
                tar.change_below(&part.prefix, &change, part.files.rootfs)?;
            }
        }
        tar.finish()?.finish()?;
        Ok(())
    })?;
    observer.event(Event::Exported { target: dest.name().as_ref(), digest: None });
    Ok(())
}

/// Writes the files into the directory `dest`, which is made if it is missing (checklist X-04).
///
/// # Errors
/// [`OutputError`]; what was written until then stays.
pub fn directory(
    files: &[PlatformFiles<'_>],
    dest: &Path,
    options: &FilesOptions,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    let parts = parts(files, options)?;
    std::fs::create_dir_all(dest).map_err(OutputError::io("create", dest))?;
    let target = Rootfs::open(dest).map_err(OutputError::io("open", dest))?;
    if options.delete {
        delete_stale(&parts, &target, dest)?;
    }
    let mut left_out = 0_u64;
    let mut directories = Vec::new();
    for part in &parts {
        if !part.prefix.as_os_str().is_empty() {
            let attributes = Attributes { mode: Some(0o755), ..Attributes::default() };
            create(&target, dest, &part.prefix, NewFile::Directory, &attributes)?;
        }
        for change in &part.changes {
            if cancel.is_cancelled() {
                return Err(OutputError::Cancelled);
            }
            let change = change.map_err(LayerError::Changes)?;
            if let Change::Entry { path, metadata, .. } = &change
                && metadata.kind == FileKind::Directory
            {
                directories.push((part.prefix.join(path), *metadata));
            }
            write_one(part, &change, &target, dest, options, &mut left_out)?;
        }
    }
    // Times and modes of directories last: writing into them needs the one and changes the other.
    for (path, metadata) in directories.iter().rev() {
        let attributes = attributes(metadata, options);
        target.set_attributes(path, &attributes).map_err(OutputError::io("write", dest.join(path)))?;
    }
    if left_out > 0 {
        let message =
            format!("{left_out} devices were left out of {}: making them is not allowed here", dest.display());
        observer.event(Event::Notice { message: &message });
    }
    observer.event(Event::Exported { target: &dest.display().to_string(), digest: None });
    Ok(())
}

/// Lists every platform's files, leaving out what an earlier one has as well where they are not split.
fn parts<'a>(files: &'a [PlatformFiles<'a>], options: &FilesOptions) -> Result<Vec<Part<'a>>, OutputError> {
    let split = options.platform_split.unwrap_or(files.len() > 1);
    let mut parts: Vec<Part<'a>> = Vec::with_capacity(files.len());
    for files in files {
        let prefix = if split { files.platform.to_string().replace('/', "_").into() } else { PathBuf::new() };
        let listing = files.rootfs.list()?;
        let mut changes = everything(&listing, files.rootfs.lists_in())?;
        if !split && !parts.is_empty() {
            let mut new = Changes::new(files.rootfs.lists_in());
            for change in &changes {
                let change = change.map_err(LayerError::Changes)?;
                if !is_there(&change, &parts, files)? {
                    new.push(&change).map_err(LayerError::Changes)?;
                }
            }
            changes = new;
        }
        parts.push(Part { files, prefix, listing, changes });
    }
    Ok(parts)
}

/// Whether an earlier platform has the same entry; an error if it has another one of that name.
fn is_there(change: &Change, earlier: &[Part<'_>], files: &PlatformFiles<'_>) -> Result<bool, OutputError> {
    let Change::Entry { path, metadata, .. } = change else { return Ok(false) };
    for part in earlier {
        let Some(there) = part.listing.get(path)? else { continue };
        let same = same_file(part.files.rootfs, files.rootfs, path, &there.metadata, metadata);
        if same.map_err(OutputError::io("compare", path))? {
            return Ok(true);
        }
        return Err(OutputError::PlatformsDiffer {
            path: path.clone(),
            first: part.files.platform.to_string(),
            second: files.platform.to_string(),
        });
    }
    Ok(false)
}

fn same_file(a: &Rootfs, b: &Rootfs, path: &Path, at_a: &Metadata, at_b: &Metadata) -> io::Result<bool> {
    if at_a.kind != at_b.kind || at_a.size != at_b.size || at_a.device != at_b.device {
        return Ok(false);
    }
    match at_a.kind {
        FileKind::File => {
            let mut left = io::BufReader::new(a.open_file(path)?).bytes();
            let mut right = io::BufReader::new(b.open_file(path)?).bytes();
            loop {
                match (left.next().transpose()?, right.next().transpose()?) {
                    (None, None) => return Ok(true),
                    (one, other) if one != other => return Ok(false),
                    _ => {}
                }
            }
        }
        FileKind::Symlink => Ok(a.read_link(path)? == b.read_link(path)?),
        _ => Ok(true),
    }
}

fn attributes(metadata: &Metadata, options: &FilesOptions) -> Attributes {
    let mtime = options.epoch.map_or(metadata.mtime, |epoch| (epoch, 0));
    Attributes { owner: None, mode: Some(metadata.mode), mtime: Some(mtime), xattrs: Vec::new() }
}

fn create(
    target: &Rootfs,
    dest: &Path,
    path: &Path,
    file: NewFile<'_>,
    attributes: &Attributes,
) -> Result<(), OutputError> {
    target.create(path, file, attributes).map_err(OutputError::io("write", dest.join(path)))
}

fn write_one(
    part: &Part<'_>,
    change: &Change,
    target: &Rootfs,
    dest: &Path,
    options: &FilesOptions,
    left_out: &mut u64,
) -> Result<(), OutputError> {
    let Change::Entry { path, metadata, link_to } = change else { return Ok(()) };
    let to = part.prefix.join(path);
    if let Some(first) = link_to {
        let linked = target.hard_link(&part.prefix.join(first), &to);
        return linked.map_err(OutputError::io("link", dest.join(&to)));
    }
    let read_error = |source| OutputError::Layer(LayerError::Read { path: path.clone(), source });
    let attributes = attributes(metadata, options);
    match metadata.kind {
        FileKind::Directory => {
            // Its own mode comes at the end.
            let open = Attributes { mode: Some(metadata.mode | 0o700), ..attributes };
            create(target, dest, &to, NewFile::Directory, &open)
        }
        FileKind::File => {
            let mut content = part.files.rootfs.open_file(path).map_err(read_error)?;
            create(target, dest, &to, NewFile::File(&mut content), &attributes)
        }
        FileKind::Symlink => {
            let text = part.files.rootfs.read_link(path).map_err(read_error)?;
            create(target, dest, &to, NewFile::Symlink(&text), &Attributes { mode: None, ..attributes })
        }
        FileKind::Fifo => create(target, dest, &to, NewFile::Fifo, &attributes),
        FileKind::CharDevice | FileKind::BlockDevice => {
            let (major, minor) = metadata.device;
            let device = match metadata.kind {
                FileKind::CharDevice => NewFile::CharDevice(major, minor),
                _ => NewFile::BlockDevice(major, minor),
            };
            match target.create(&to, device, &attributes) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    *left_out += 1;
                    Ok(())
                }
                other => other.map_err(OutputError::io("write", dest.join(&to))),
            }
        }
        FileKind::Socket => Ok(()),
    }
}

/// Removes what is in `target` and in no part, topmost names only.
fn delete_stale(parts: &[Part<'_>], target: &Rootfs, dest: &Path) -> Result<(), OutputError> {
    let mut wanted = BTreeSet::new();
    for part in parts {
        wanted.insert(part.prefix.clone());
        for change in &part.changes {
            wanted.insert(part.prefix.join(change.map_err(LayerError::Changes)?.path()));
        }
    }
    let there = target.list()?;
    let mut removed: Option<PathBuf> = None;
    for found in there.iter() {
        let found = found?;
        let below_removed = removed.as_ref().is_some_and(|removed| found.path.starts_with(removed));
        if !below_removed && !wanted.contains(&found.path) {
            target.remove(&found.path).map_err(OutputError::io("remove", dest.join(&found.path)))?;
            removed = Some(found.path);
        }
    }
    Ok(())
}
