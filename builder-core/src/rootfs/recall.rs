//! What files were before they changed, read from the layers they came from.
//!
//! In directory mode a step overwrites the only copy of a file. Where metadata cannot tell whether anything became
//! different, the layers below can: they are kept, or can be had again. Of those that are kept as they were unpacked the files
//! themselves are read.
//!
//! # Limitations
//! A whole layer is inflated for one file, the uppermost first, until all are found; but not one whose index is kept and says what they
//! hold, or that it has none of them. Of large files in layers that were made here, an index does not say it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::archive::{TarEntry, TarError, TarKind, TarReader};
use super::attributes::capability;
use super::fetch::{Stop, describe, open};
use super::frames::Windows;
use super::index::{IndexEntry, Indexes};
use super::inflate::decompress;
use super::resolve::clean;
use super::unpack::UnpackError;
use super::workdir::Lease;
use super::{FileKind, LayerRef, LayerSource, Listing, Rootfs, TreeError};
use crate::cancel::Cancel;

/// One read from a tar, in bytes.
const BUFFER_BYTES: usize = 256 * 1024;

/// The layers of a tree, the lowest first, and where their bytes are.
#[derive(Clone, Copy)]
pub struct Recall<'a> {
    /// All layers of the tree before the step.
    pub layers: &'a [LayerRef],
    /// Their blobs.
    pub source: &'a dyn LayerSource,
    /// Ends the reading.
    pub cancel: &'a Cancel,
}

/// What a layer says about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recalled {
    /// A regular file.
    File {
        /// Of all its bytes, holes as zeros.
        data: blake3::Hash,
        /// Value of `security.capability`.
        capability: Option<Vec<u8>>,
    },
    /// A symbolic link with this text.
    Symlink(PathBuf),
}

impl Recall<'_> {
    /// Finds what `wanted` (paths without a leading `/` that are files or links of `before`) were, the lowest layers from `unchanged`
    /// if there is that. What cannot be told for sure is missing in the answer. Layers of which `indexes` say all that they have to say
    /// are not read.
    ///
    /// # Errors
    /// If a layer or a file cannot be read.
    pub fn files(
        &self,
        wanted: BTreeSet<PathBuf>,
        before: &Listing,
        unchanged: Option<&Unchanged>,
        indexes: Option<&Indexes>,
    ) -> Result<BTreeMap<PathBuf, Recalled>, TreeError> {
        let mut search = Search { before, names: BTreeSet::new(), open: BTreeMap::new(), found: BTreeMap::new() };
        for path in wanted {
            search.want(path.clone(), path);
        }
        let stop = Stop::new(self.cancel);
        let packed = unchanged.map_or(0, |unchanged| unchanged.layers);
        for layer in self.layers[packed..].iter().rev() {
            // Once more for what the layer has only as another name of a file that was not looked for.
            while !search.open.is_empty() {
                let again = match search.index(layer, indexes) {
                    Some(again) => again,
                    None => open(self.source, layer)
                        .and_then(|blob| search.layer(blob, &stop).map_err(|error| describe(error, layer, &stop)))?,
                };
                if !again {
                    break;
                }
            }
        }
        if let Some(unchanged) = unchanged {
            for (path, wanted) in std::mem::take(&mut search.open) {
                let was = unchanged.file(&path, self.cancel);
                let was = was.map_err(|source| TreeError::Io { action: "read", path: path.clone(), source })?;
                search.found.extend(was.iter().flat_map(|was| wanted.iter().map(|path| (path.clone(), was.clone()))));
            }
        }
        Ok(search.found)
    }
}

/// The unpacked form of the lowest layers of a tree, which stays as it is as long as this lives.
#[derive(Debug)]
pub struct Unchanged {
    /// How many layers those are.
    pub(super) layers: usize,
    pub(super) rootfs: Rootfs,
    pub(super) _lease: Lease,
}

impl Unchanged {
    /// What it has at a path that leads through no link; `None` if that is neither a file nor a link.
    fn file(&self, path: &Path, cancel: &Cancel) -> io::Result<Option<Recalled>> {
        let around = Path::new("/").join(path.parent().unwrap_or(Path::new("")));
        match self.rootfs.resolve(&around, true) {
            Ok(there) if there == around => {}
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(error);
            }
            Ok(_) | Err(_) => return Ok(None),
        }
        let kind = match self.rootfs.lstat(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?.kind,
        };
        match kind {
            FileKind::Symlink => Ok(Some(Recalled::Symlink(self.rootfs.read_link(path)?))),
            FileKind::File => {
                let go_on = || match cancel.is_cancelled() {
                    true => Err(io::ErrorKind::Interrupted.into()),
                    false => Ok(()),
                };
                let data = hash_all(&mut self.rootfs.open_file(path)?, &go_on)?;
                Ok(Some(Recalled::File { data, capability: capability(self.rootfs.xattrs(path)?) }))
            }
            _ => Ok(None),
        }
    }
}

/// Hash of all that is read; `go_on` is asked before each read.
pub(crate) fn hash_all(from: &mut impl Read, go_on: &dyn Fn() -> io::Result<()>) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        go_on()?;
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize()),
            Ok(count) => _ = hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The search on its way down the layers.
struct Search<'a> {
    before: &'a Listing,
    /// Last components of all paths that are looked for.
    names: BTreeSet<OsString>,
    /// Path in the layers → paths whose file it is: itself, or links to it.
    open: BTreeMap<PathBuf, Vec<PathBuf>>,
    found: BTreeMap<PathBuf, Recalled>,
}

impl Search<'_> {
    fn want(&mut self, path: PathBuf, for_path: PathBuf) {
        self.names.extend(path.file_name().map(OsStr::to_owned));
        self.open.entry(path).or_default().push(for_path);
    }

    /// What [`Self::layer`] does, from a layer's index; `None` if that is not known, or does not say enough.
    fn index(&mut self, layer: &LayerRef, indexes: Option<&Indexes>) -> Option<bool> {
        let mut index = indexes?.open(layer.diff_id).ok()??;
        let mut here = BTreeMap::new();
        while let Some(entry) = index.next_entry().ok()? {
            let path = relative(&entry.name);
            if self.is_about(&path).ok()? {
                here.insert(path, Entry::noted(entry));
            }
        }
        let known = here.into_iter().map(|(path, entry)| Some((path, entry?)));
        let known = known.collect::<Option<BTreeMap<_, _>>>()?;
        Some(self.take(known))
    }

    /// Whether an entry with this path is what is looked for. One that was unpacked to where a link leads may be in the place of any
    /// file with that name, which nobody looks for then.
    fn is_about(&mut self, path: &Path) -> Result<bool, UnpackError> {
        let Some(name) = path.file_name().filter(|name| self.names.contains(*name)) else { return Ok(false) };
        if self.open.contains_key(path) {
            return Ok(true);
        }
        if self.is_below_link(path)? {
            self.open.retain(|path, _| path.file_name() != Some(name));
        }
        Ok(false)
    }

    /// Reads a layer. `true` if it must be read again, because it led to another name.
    fn layer(&mut self, blob: Box<dyn Read + Send>, stop: &Stop<'_>) -> Result<bool, UnpackError> {
        let inflated = decompress(blob, &Windows::default()).map_err(read_error)?;
        let mut tar = TarReader::new(BufReader::with_capacity(BUFFER_BYTES, inflated));
        // The last entry of a name counts.
        let mut here: BTreeMap<PathBuf, Entry> = BTreeMap::new();
        while let Some(entry) = tar.next_entry().map_err(UnpackError::Tar)? {
            if stop.is_stopped() {
                return Err(UnpackError::Cancelled);
            }
            let path = relative(&entry.name);
            if self.is_about(&path)? {
                here.insert(path, Entry::read(entry, &mut tar)?);
            }
        }
        // To its end, where a blob that was not what it should be is found out.
        tar.finish().map_err(read_error)?;
        Ok(self.take(here))
    }

    /// Takes what a layer has. `true` if it must be looked at again, because it led to another name.
    fn take(&mut self, here: BTreeMap<PathBuf, Entry>) -> bool {
        let mut again = false;
        for (path, entry) in here {
            let Some(wanted) = self.open.remove(&path) else { continue };
            match entry {
                Entry::Known(known) => {
                    self.found.extend(wanted.into_iter().map(|path| (path, known.clone())));
                }
                Entry::Link(target) if target != path => {
                    again = true;
                    for path in wanted {
                        self.want(target.clone(), path);
                    }
                }
                Entry::Link(_) | Entry::Other => {}
            }
        }
        again
    }

    fn is_below_link(&self, path: &Path) -> Result<bool, UnpackError> {
        for ancestor in path.ancestors().skip(1) {
            let found = self.before.get(ancestor).map_err(|error| read_error(error.source))?;
            if found.is_some_and(|found| found.metadata.kind == FileKind::Symlink) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What an entry says.
enum Entry {
    Known(Recalled),
    /// Another name of this path.
    Link(PathBuf),
    Other,
}

impl Entry {
    fn read(entry: TarEntry, data: &mut impl Read) -> Result<Self, UnpackError> {
        Ok(match entry.kind {
            TarKind::Symlink => Self::Known(Recalled::Symlink(entry.link.into())),
            TarKind::HardLink => Self::Link(relative(&entry.link)),
            // Written by other builders only; nothing is lost by not comparing it.
            TarKind::File if entry.sparse.is_some() => Self::Other,
            TarKind::File => {
                // Whoever reads the layer is told to stop.
                let data = hash_all(data, &|| Ok(())).map_err(read_error)?;
                Self::Known(Recalled::File { data, capability: capability(entry.xattrs) })
            }
            _ => Self::Other,
        })
    }

    /// The same of an index, if it says that.
    fn noted(entry: IndexEntry) -> Option<Self> {
        match entry.kind {
            TarKind::Symlink => Some(Self::Known(Recalled::Symlink(entry.link.into()))),
            TarKind::HardLink => Some(Self::Link(relative(&entry.link))),
            TarKind::File => entry.hash.map(|data| Self::Known(Recalled::File { data, capability: entry.capability })),
            _ => Some(Self::Other),
        }
    }
}

fn read_error(error: io::Error) -> UnpackError {
    UnpackError::Tar(TarError::Read(error))
}

fn relative(name: &OsStr) -> PathBuf {
    let plain = clean(name);
    plain.strip_prefix("/").map(Path::to_owned).unwrap_or(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::test_layers::{Blobs, Entry, dir, file, hard_link, symlink};
    use crate::rootfs::{Ownership, TreeMode, Trees};

    fn check(layers: &[Vec<Entry>], path: &str, expected: Option<&str>) {
        let (blobs, refs) = Blobs::layers(layers);
        let work = tempfile::tempdir().unwrap();
        let trees = Trees::open(work.path(), Some(TreeMode::Directory), Ownership::Real).unwrap();
        let cancel = Cancel::default();
        let tree = trees.checkout(&refs, &blobs, &cancel).unwrap();
        let before = tree.rootfs().unwrap().list().unwrap();
        let recall = Recall { layers: &refs, source: &blobs, cancel: &cancel };
        let found = recall.files(BTreeSet::from([PathBuf::from(path)]), &before, None, None).unwrap();
        let indexes = trees.indexes();
        let (nowhere, _) = Blobs::layers(&[]);
        let recall = Recall { source: &nowhere, ..recall };
        let indexed = recall.files(BTreeSet::from([PathBuf::from(path)]), &before, None, Some(&indexes)).unwrap();
        assert_eq!(indexed, found, "{path}");
        let expected = expected.map(|text| match text.strip_prefix("->") {
            Some(target) => Recalled::Symlink(target.into()),
            None => Recalled::File { data: blake3::hash(text.as_bytes()), capability: None },
        });
        assert_eq!(found.into_values().next(), expected, "{path}");
    }

    #[test]
    fn the_uppermost_layer_counts() {
        let layers =
            [vec![dir("a"), file("a/f", "old"), file("a/g", "g")], vec![file("a/f", "1"), file("./a/f", "new")]];
        check(&layers, "a/f", Some("new"));
        check(&layers, "a/g", Some("g"));
        check(&[vec![symlink("l", "x")]], "l", Some("->x"));
    }

    #[test]
    fn links_lead_to_the_file_they_name() {
        check(&[vec![file("f", "data"), hard_link("g", "f"), hard_link("h", "g")]], "h", Some("data"));
        check(&[vec![file("f", "data")], vec![hard_link("g", "f")]], "g", Some("data"));
        check(&[vec![file("f", "data"), hard_link("g", "f"), file("f", "later")]], "f", Some("later"));
    }

    #[test]
    fn layers_whose_index_tells_enough_are_not_read() {
        let base = vec![file("a", "was"), file("b", "b")];
        let (blobs, refs) = Blobs::layers(&[base.clone(), vec![dir("etc"), file("etc/a", "other")]]);
        let work = tempfile::tempdir().unwrap();
        let trees = Trees::open(work.path(), Some(TreeMode::Directory), Ownership::Real).unwrap();
        let cancel = Cancel::default();
        let tree = trees.checkout(&refs, &blobs, &cancel).unwrap();
        let before = tree.rootfs().unwrap().list().unwrap();
        // The upper layer can be had no more.
        let (left, _) = Blobs::layers(&[base]);
        let recall = Recall { layers: &refs, source: &left, cancel: &cancel };
        let (wanted, indexes) = (BTreeSet::from([PathBuf::from("a")]), trees.indexes());
        let files = |indexes| recall.files(wanted.clone(), &before, None, indexes);
        let was = Recalled::File { data: blake3::hash(b"was"), capability: None };
        assert_eq!(files(Some(&indexes)).unwrap().into_values().collect::<Vec<_>>(), [was]);
        assert!(files(None).is_err());
        indexes.forget(refs[1].diff_id);
        assert!(files(Some(&indexes)).is_err());
    }

    #[test]
    fn what_came_through_a_link_is_not_told() {
        let base = || vec![dir("usr"), file("usr/f", "old"), symlink("u", "usr")];
        check(&[base(), vec![file("u/f", "new")]], "usr/f", None);
        check(&[base(), vec![file("usr/g", "new")]], "usr/f", Some("old"));
    }
}
