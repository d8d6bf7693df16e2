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
    let image = only_image(export)?;
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

/// Writes an image in the form that `docker save` had before Docker 25, as go-containerregistry writes it: the config as
/// `sha256:<hex>`, each layer as `<hex>.tar.gz`, `manifest.json` last. `names` stand in it as they are.
///
/// # Errors
/// As [`docker_archive`].
pub fn docker_save(
    export: &Export<'_>,
    names: &[String],
    blobs: &dyn Blobs,
    dest: &Destination,
    stdout: &mut (dyn Write + Send),
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    let image = only_image(export)?;
    let layer_name = |digest: crate::oci::BlobDigest| format!("{}.tar.gz", digest.to_hex());
    let manifest = [DockerImage {
        config: image.config_descriptor.digest.to_string(),
        repo_tags: names.to_vec(),
        layers: image.layers.iter().map(|layer| layer_name(layer.blob.digest)).collect(),
    }];
    let manifest = canonical_json(&manifest).expect("all keys are strings");
    to_destination(dest, stdout, &mut |out| {
        let mut tar = TarWriter::new(WriteSink::new(out), Times::Keep);
        let config = image.config_descriptor.digest.to_string();
        tar.bytes(&file(config.as_bytes(), image.config.len() as u64), &image.config)?;
        let mut written = std::collections::BTreeSet::new();
        for layer in &image.layers {
            let descriptor = &layer.blob;
            if !written.insert(descriptor.digest) {
                continue;
            }
            tar.header(&file(layer_name(descriptor.digest).as_bytes(), descriptor.size))?;
            let mut write = |bytes: &[u8]| Ok(tar.sink().write(bytes)?);
            copy_blob(descriptor, blobs, &mut write, cancel, observer)?;
            tar.sink().zeros(padding(descriptor.size) as u64)?;
        }
        tar.bytes(&file(b"manifest.json", manifest.len() as u64), &manifest)?;
        tar.finish()?.finish()?;
        Ok(())
    })?;
    exported(observer, dest.name().as_ref(), export);
    Ok(())
}

/// The image of an export that has no more than one.
fn only_image<'a>(export: &Export<'a>) -> Result<&'a crate::image::Image, OutputError> {
    match (export.images, export.index) {
        ([], _) => Err(OutputError::NoImage),
        ([image], None) => Ok(image),
        _ => Err(OutputError::ManifestList),
    }
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
