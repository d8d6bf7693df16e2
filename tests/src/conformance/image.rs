//! Reading what a builder left: an OCI layout directory, an OCI layout tar or a docker-archive tar.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Why a result cannot be read.
#[derive(Debug)]
pub struct ImageError(pub String);

impl From<io::Error> for ImageError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<serde_json::Error> for ImageError {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

impl std::fmt::Display for ImageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image: its config and the names of its layer blobs, lowest first.
#[derive(Debug)]
pub struct Image {
    /// The config document.
    pub config: Value,
    /// `rootfs.diff_ids` of the config.
    pub diff_ids: Vec<String>,
    layers: Vec<String>,
    files: Files,
}

#[derive(Debug)]
enum Files {
    Directory(PathBuf),
    Archive(BTreeMap<String, Vec<u8>>),
}

impl Files {
    fn open(path: &Path) -> Result<Self, ImageError> {
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let file = fs::File::open(path).map_err(|error| ImageError(format!("{}: {error}", path.display())))?;
        let (mut files, mut links) = (BTreeMap::new(), Vec::new());
        for entry in tar::Archive::new(file).entries()? {
            let mut entry = entry?;
            let name = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
            if let (true, Some(target)) = (entry.header().entry_type().is_symlink(), entry.link_name()?) {
                // docker archives link a layer to an equal one: `../<id>/layer.tar`
                links.push((name, target.to_string_lossy().trim_start_matches("../").to_owned()));
                continue;
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(name, bytes);
        }
        for (name, target) in links {
            if let Some(bytes) = files.get(&target).cloned() {
                files.insert(name, bytes);
            }
        }
        Ok(Self::Archive(files))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        match self {
            Self::Archive(files) => Ok(files.get(name).cloned()),
            Self::Directory(path) => match fs::read(path.join(name)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error.into()),
            },
        }
    }

    fn need(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        self.read(name)?.ok_or_else(|| ImageError(format!("the result lacks {name}")))
    }

    fn json(&self, name: &str) -> Result<Value, ImageError> {
        Ok(serde_json::from_slice(&self.need(name)?)?)
    }
}

impl Image {
    /// Opens a result; of an index, the image for `architecture` or else the first.
    ///
    /// # Errors
    /// If it is neither a layout nor an archive, or lacks a part.
    pub fn open(path: &Path, architecture: &str) -> Result<Self, ImageError> {
        let files = Files::open(path)?;
        if files.read("index.json")?.is_some() {
            return Self::from_layout(files, architecture);
        }
        if files.read("manifest.json")?.is_some() {
            let manifest = files.json("manifest.json")?;
            let config = files.json(text(&manifest[0]["Config"]))?;
            let layers = list(&manifest[0]["Layers"]).iter().map(|name| text(name).to_owned()).collect();
            return Ok(Self::new(config, layers, files));
        }
        Err(ImageError(format!("{}: neither index.json nor manifest.json inside", path.display())))
    }

    fn from_layout(files: Files, architecture: &str) -> Result<Self, ImageError> {
        let blob = |digest: &Value| format!("blobs/{}", text(digest).replace(':', "/"));
        let mut queue: std::collections::VecDeque<Value> =
            list(&files.json("index.json")?["manifests"]).iter().cloned().collect();
        let mut candidates = Vec::new();
        while let Some(entry) = queue.pop_front() {
            let value = files.json(&blob(&entry["digest"]))?;
            if value.get("manifests").is_some() {
                queue.extend(list(&value["manifests"]).iter().cloned());
            } else if entry["platform"]["os"] != "unknown" && value["artifactType"].is_null() {
                candidates.push((entry, value));
            }
        }
        let wanted = candidates.iter().position(|(entry, _)| entry["platform"]["architecture"] == architecture);
        let (_, manifest) = candidates
            .get(wanted.unwrap_or(0))
            .ok_or_else(|| ImageError("no image manifest in the layout".to_owned()))?;
        let config = files.json(&blob(&manifest["config"]["digest"]))?;
        let layers = list(&manifest["layers"]).iter().map(|layer| blob(&layer["digest"])).collect();
        Ok(Self::new(config, layers, files))
    }

    fn new(config: Value, layers: Vec<String>, files: Files) -> Self {
        let diff_ids = list(&config["rootfs"]["diff_ids"]).iter().map(|id| text(id).to_owned()).collect();
        Self { config, diff_ids, layers, files }
    }

    /// How many layer blobs there are.
    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// The tar of layer `number`, counted from 0 at the bottom.
    ///
    /// # Errors
    /// If the blob is missing or does not unpack.
    pub fn layer(&self, number: usize) -> Result<Vec<u8>, ImageError> {
        let name = self.layers.get(number).ok_or_else(|| ImageError(format!("there is no layer {number}")))?;
        let blob = self.files.need(name)?;
        let mut tar = Vec::new();
        match blob.as_slice() {
            [0x1f, 0x8b, ..] => _ = flate2::read::MultiGzDecoder::new(blob.as_slice()).read_to_end(&mut tar)?,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::stream::copy_decode(blob.as_slice(), &mut tar)?,
            _ => tar = blob,
        }
        Ok(tar)
    }
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
