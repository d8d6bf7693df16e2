//! `force-compression`: layers of the base in the form that new layers have.

use std::io::{BufReader, Read};

use super::{Blobs, OutputError};
use crate::cancel::Cancel;
use crate::image::ImageLayer;
use crate::layer::{self, Compression, LayerOptions};
use crate::limits::Limits;
use crate::oci::{Descriptor, MediaType};
use crate::store::Store;

/// Bytes of a blob that are read at a time.
const READ_BYTES: usize = 128 * 1024;

/// Whether a blob is in another form than `compression`, whatever the level (as BuildKit, checklist X-07).
pub fn needs_recompression(blob: &Descriptor, compression: Compression) -> bool {
    match blob.media_type {
        MediaType::OciLayer | MediaType::DockerLayer => compression != Compression::None,
        MediaType::OciLayerGzip | MediaType::DockerLayerGzip => !matches!(compression, Compression::Gzip { .. }),
        MediaType::OciLayerZstd | MediaType::DockerLayerZstd => !matches!(compression, Compression::Zstd { .. }),
        // Foreign layers and what is unknown stay as they are.
        _ => false,
    }
}

/// Reads a layer from wherever it is and writes it to `store` in the form of `options`. `progress` gets the bytes of tar
/// done so far.
///
/// # Errors
/// [`OutputError::WrongDiffId`] if it is not the layer that the config names, [`OutputError::Blob`] if it cannot be read.
pub fn recompress(
    source: &ImageLayer,
    blobs: &dyn Blobs,
    store: &Store,
    options: &LayerOptions,
    limits: &Limits,
    cancel: &Cancel,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<ImageLayer, OutputError> {
    let failed = |error| OutputError::Blob { digest: source.blob.digest, source: error };
    let blob = BufReader::with_capacity(READ_BYTES, blobs.open(&source.blob).map_err(failed)?);
    let mut tar: Box<dyn Read + '_> = match source.blob.media_type {
        MediaType::OciLayerGzip | MediaType::DockerLayerGzip => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        MediaType::OciLayerZstd | MediaType::DockerLayerZstd => {
            Box::new(zstd::stream::read::Decoder::with_buffer(blob).map_err(failed)?)
        }
        _ => Box::new(blob),
    };
    let sealed =
        layer::recompress(&mut tar, store, options, limits, cancel, progress).map_err(|error| match error {
            layer::LayerError::Read { source, .. } => failed(source),
            layer::LayerError::Cancelled => OutputError::Cancelled,
            other => OutputError::Layer(other),
        })?;
    if sealed.diff_id != source.diff_id {
        return Err(OutputError::WrongDiffId { expected: source.diff_id, actual: sealed.diff_id });
    }
    Ok(ImageLayer { diff_id: sealed.diff_id, blob: sealed.blob })
}
