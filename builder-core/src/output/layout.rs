//! OCI layout as a directory (image-spec, image-layout.md).
//!
//! ```text
//! <dest>/blobs/sha256/<hex>   blobs, each renamed to its name when it is whole
//! <dest>/oci-layout           written before the index
//! <dest>/index.json           replaced at the end, so that names only point to what is there
//! ```
//!
//! # Limitations
//! Blobs that an older image of the same name left behind stay. Two writers at one time may lose the other's name, but never
//! leave a name that points to nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use super::{Blobs, Export, OutputError, Part};
use crate::cancel::Cancel;
use crate::event::{Event, Observer, Transfer};
use crate::oci::{BlobDigest, Descriptor, Hasher, ImageIndex, MediaType, canonical_json};

/// Content of `oci-layout`.
pub(super) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// One read of a blob that is copied, in bytes.
const COPY_BYTES: usize = 256 * 1024;

/// Largest `index.json` that is read, in bytes.
const INDEX_LIMIT: u64 = 16 << 20;

/// Key of the tag in an index entry (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Key of the full name, as containerd writes it.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// Key of the time (image-spec, annotations.md).
const CREATED: &str = "org.opencontainers.image.created";

/// Writes an image into the OCI layout directory `dest`, which is made if it is missing. Names of other images in it stay.
///
/// # Errors
/// [`OutputError`]; `index.json` is as it was then.
pub fn oci_directory(
    export: &Export<'_>,
    blobs: &dyn Blobs,
    dest: &Path,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    let ours = entries(export)?;
    let mut index = read_index(dest)?;
    let name = |entry: &Descriptor| entry.annotations.get(IMAGE_NAME).or(entry.annotations.get(REF_NAME)).cloned();
    index.manifests.retain(|old| ours.iter().all(|new| name(old) != name(new)));
    index.manifests.extend(ours);
    write_layout(export, &index, blobs, dest, cancel, observer)
}

/// Writes an image into the OCI layout directory `dest`, which is made if it is missing, and makes it the only one there. It
/// gets no name. Files that are no part of a layout stay.
///
/// # Errors
/// [`OutputError`]; `index.json` is as it was then.
pub fn only_oci_directory(
    export: &Export<'_>,
    blobs: &dyn Blobs,
    dest: &Path,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    let root = export.root().ok_or(OutputError::NoImage)?;
    write_layout(export, &empty_index(vec![root]), blobs, dest, cancel, observer)
}

/// Writes what an image is made of below `dest`, and `index` when all of it is there.
fn write_layout(
    export: &Export<'_>,
    index: &ImageIndex,
    blobs: &dyn Blobs,
    dest: &Path,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    let directory = dest.join("blobs/sha256");
    fs::create_dir_all(&directory).map_err(OutputError::io("create", &directory))?;
    for part in export.parts() {
        write_part(&part, blobs, &directory, cancel, observer)?;
    }
    replace(&dest.join("oci-layout"), LAYOUT)?;
    replace(&dest.join("index.json"), &index_json(index))?;
    exported(observer, &dest.display().to_string(), export);
    Ok(())
}

/// Says that an image is complete at `target`.
pub(super) fn exported(observer: &dyn Observer, target: &str, export: &Export<'_>) {
    observer.event(Event::Exported { target, digest: export.root().map(|root| root.digest) });
}

/// What `index.json` says about an export: one entry a name, or one without a name (checklist X-02).
pub(super) fn entries(export: &Export<'_>) -> Result<Vec<Descriptor>, OutputError> {
    let mut root = export.root().ok_or(OutputError::NoImage)?;
    if let Some(created) = export.created {
        root.annotations.insert(CREATED.to_owned(), created.to_owned());
    }
    if export.names.is_empty() {
        return Ok(vec![root]);
    }
    let named = export.names.iter().map(|name| {
        let mut entry = root.clone();
        entry.annotations.insert(IMAGE_NAME.to_owned(), name.to_string());
        if let Some(tag) = name.tag() {
            entry.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        }
        entry
    });
    Ok(named.collect())
}

/// An index of these entries, as the bytes of `index.json`.
pub(super) fn index_of(manifests: Vec<Descriptor>) -> Vec<u8> {
    index_json(&empty_index(manifests))
}

fn empty_index(manifests: Vec<Descriptor>) -> ImageIndex {
    ImageIndex { schema_version: 2, media_type: Some(MediaType::OciIndex), manifests, annotations: BTreeMap::new() }
}

fn index_json(index: &ImageIndex) -> Vec<u8> {
    canonical_json(index).expect("all keys are strings")
}

/// The index that is there; an empty one if the directory is missing or empty.
fn read_index(dest: &Path) -> Result<ImageIndex, OutputError> {
    let path = dest.join("index.json");
    let refuse = |reason| OutputError::NotALayout { path: dest.to_owned(), reason };
    match fs::File::open(&path) {
        Ok(file) => {
            let mut json = Vec::new();
            file.take(INDEX_LIMIT).read_to_end(&mut json).map_err(OutputError::io("read", &path))?;
            serde_json::from_slice(&json).map_err(|_| refuse("its index.json cannot be read"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut found = match fs::read_dir(dest) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(empty_index(Vec::new())),
                Err(error) => return Err(OutputError::io("read", dest)(error)),
            };
            // What an earlier attempt left is fine, anything else belongs to somebody.
            let foreign = found.any(|item| {
                item.is_ok_and(|item| {
                    let name = item.file_name();
                    name != "blobs" && name != "oci-layout" && !name.as_encoded_bytes().starts_with(b".tmp")
                })
            });
            if foreign { Err(refuse("it holds other files")) } else { Ok(empty_index(Vec::new())) }
        }
        Err(error) => Err(OutputError::io("read", &path)(error)),
    }
}

fn write_part(
    part: &Part<'_>,
    blobs: &dyn Blobs,
    directory: &Path,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    let descriptor = part.descriptor();
    let path = directory.join(descriptor.digest.to_hex());
    if fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() == descriptor.size) {
        observer.event(Event::Exists { transfer: Transfer::Push, id: &descriptor.digest.to_string() });
        return Ok(());
    }
    let mut temp = tempfile::NamedTempFile::new_in(directory).map_err(OutputError::io("create", &path))?;
    match part {
        Part::Bytes(_, bytes) => temp.write_all(bytes).map_err(OutputError::io("write", &path))?,
        Part::Blob(descriptor) => {
            let mut write = |bytes: &[u8]| temp.write_all(bytes).map_err(OutputError::io("write", &path));
            copy_blob(descriptor, blobs, &mut write, cancel, observer)?;
        }
    }
    publish(temp, &path)
}

/// Passes the bytes of a blob on, and fails before the end if they are not those of its digest.
pub(super) fn copy_blob(
    descriptor: &Descriptor,
    blobs: &dyn Blobs,
    write: &mut dyn FnMut(&[u8]) -> Result<(), OutputError>,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    let failed = |source| OutputError::Blob { digest: descriptor.digest, source };
    let id = descriptor.digest.to_string();
    let mut from = blobs.open(descriptor).map_err(failed)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut hasher = Hasher::default();
    let mut done = 0;
    loop {
        if cancel.is_cancelled() {
            return Err(OutputError::Cancelled);
        }
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        hasher.update(&buffer[..read]);
        done += read as u64;
        if done > descriptor.size {
            break;
        }
        write(&buffer[..read])?;
        observer.event(Event::Progress { transfer: Transfer::Push, id: &id, done, total: Some(descriptor.size) });
    }
    let actual = BlobDigest(hasher.finish());
    if actual != descriptor.digest || done != descriptor.size {
        return Err(OutputError::WrongDigest { expected: descriptor.digest, actual, bytes: done });
    }
    Ok(())
}

/// Gives a finished temporary file its name, readable by others as files usually are.
pub(super) fn publish(temp: tempfile::NamedTempFile, path: &Path) -> Result<(), OutputError> {
    use std::os::unix::fs::PermissionsExt;

    let file = temp.as_file();
    file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(OutputError::io("write", path))?;
    file.sync_all().map_err(OutputError::io("write", path))?;
    temp.persist(path).map_err(|error| OutputError::io("rename to", path)(error.error))?;
    Ok(())
}

/// Writes a small file under another name and renames it.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), OutputError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut temp = tempfile::NamedTempFile::new_in(directory).map_err(OutputError::io("create", path))?;
    temp.write_all(bytes).map_err(OutputError::io("write", path))?;
    publish(temp, path)
}
