//! OCI layout and docker archive as one tar.
//!
//! Entries are sorted by name, with fixed owner, mode and time, so that equal images give equal archives.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::layout::{self, copy_blob, exported, publish};
use super::{Blobs, Destination, Export, OutputError, Part};
use crate::cancel::Cancel;
use crate::event::Observer;
use crate::layer::LayerError;
use crate::layer::entry::{Entry, EntryKind, padding};
use crate::layer::tar::{Sink, TarWriter, Times, WriteSink};
use crate::oci::canonical_json;

/// One image in a docker archive's `manifest.json` (Docker image specification v1.2, "Combined Image JSON").
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Writes an image as the tar of an OCI layout (checklist X-02).
///
/// # Errors
/// [`OutputError`]; a file that was there is as it was then.
pub fn oci_archive(
    export: &Export<'_>,
    blobs: &dyn Blobs,
    dest: &Destination,
    stdout: &mut (dyn Write + Send),
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    to_destination(dest, stdout, &mut |out| write(export, None, blobs, out, cancel, observer))?;
    exported(observer, dest.name().as_ref(), export);
    Ok(())
}

/// Writes an image as `docker load` reads it (checklist X-03), which is the tar of an OCI layout as well.
///
/// # Errors
/// [`OutputError::ManifestList`] for several platforms; a file that was there is as it was after any error.
pub fn docker_archive(
    export: &Export<'_>,
    blobs: &dyn Blobs,
    dest: &Destination,
    stdout: &mut (dyn Write + Send),
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    let image = match (export.images, export.index) {
        ([], _) => return Err(OutputError::NoImage),
        ([image], None) => image,
        _ => return Err(OutputError::ManifestList),
    };
    let blob_path = |digest: crate::oci::BlobDigest| format!("blobs/sha256/{}", digest.to_hex());
    let manifest = [DockerImage {
        config: blob_path(image.config_descriptor.digest),
        repo_tags: export.names.iter().map(|name| name.familiar()).collect(),
        layers: image.layers.iter().map(|layer| blob_path(layer.blob.digest)).collect(),
    }];
    let manifest = canonical_json(&manifest).expect("all keys are strings");
    to_destination(dest, stdout, &mut |out| write(export, Some(&manifest), blobs, out, cancel, observer))?;
    exported(observer, dest.name().as_ref(), export);
    Ok(())
}

/// Lets `produce` write into a file that gets its name at the end, or to standard output.
pub(super) fn to_destination(
    dest: &Destination,
    stdout: &mut (dyn Write + Send),
    produce: &mut dyn FnMut(&mut (dyn Write + Send)) -> Result<(), OutputError>,
) -> Result<(), OutputError> {
    match dest {
        Destination::Stdout => {
            produce(stdout).map_err(|error| match error {
                OutputError::Layer(LayerError::Write(source)) => OutputError::Stdout(source),
                other => other,
            })?;
            stdout.flush().map_err(OutputError::Stdout)
        }
        Destination::File(path) => {
            let write_error = |error| match error {
                OutputError::Layer(LayerError::Write(source)) => OutputError::io("write", path)(source),
                other => other,
            };
            // A pipe or device is written to, not replaced.
            if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
                let mut file =
                    std::fs::OpenOptions::new().write(true).open(path).map_err(OutputError::io("open", path))?;
                return produce(&mut file).map_err(write_error);
            }
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            std::fs::create_dir_all(directory).map_err(OutputError::io("create", directory))?;
            let mut temp = tempfile::NamedTempFile::new_in(directory).map_err(OutputError::io("create", path))?;
            produce(temp.as_file_mut()).map_err(write_error)?;
            publish(temp, path)
        }
    }
}

fn write(
    export: &Export<'_>,
    docker_manifest: Option<&[u8]>,
    blobs: &dyn Blobs,
    out: &mut (dyn Write + Send),
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    let index = layout::index_of(layout::entries(export)?);
    let mut parts = export.parts();
    parts.sort_by_key(|part| part.descriptor().digest);
    let mut tar = TarWriter::new(WriteSink::new(out), Times::Keep);
    for name in ["blobs/", "blobs/sha256/"] {
        tar.header(&entry(name.as_bytes(), EntryKind::Directory))?;
    }
    for part in parts {
        let descriptor = part.descriptor();
        let name = format!("blobs/sha256/{}", descriptor.digest.to_hex());
        match part {
            Part::Bytes(_, bytes) => tar.bytes(&file(name.as_bytes(), bytes.len() as u64), bytes)?,
            Part::Blob(ref descriptor) => {
                tar.header(&file(name.as_bytes(), descriptor.size))?;
                let mut write = |bytes: &[u8]| Ok(tar.sink().write(bytes)?);
                copy_blob(descriptor, blobs, &mut write, cancel, observer)?;
                tar.sink().zeros(padding(descriptor.size) as u64)?;
            }
        }
    }
    let documents = [
        (&b"index.json"[..], Some(&index[..])),
        (b"manifest.json", docker_manifest),
        (b"oci-layout", Some(layout::LAYOUT)),
    ];
    for (name, bytes) in documents {
        if let Some(bytes) = bytes {
            tar.bytes(&file(name, bytes.len() as u64), bytes)?;
        }
    }
    tar.finish()?.finish()?;
    Ok(())
}

fn file(name: &[u8], size: u64) -> Entry<'_> {
    entry(name, EntryKind::File(size))
}

fn entry<'a>(name: &'a [u8], kind: EntryKind<'a>) -> Entry<'a> {
    let mode = if kind == EntryKind::Directory { 0o755 } else { 0o644 };
    Entry { name, kind, mode, uid: 0, gid: 0, mtime: 0, capability: None }
}
