//! Data for measurements of builder-core's parts, and the parts that several of them call.
//!
//! The parts alone are measured by `cargo bench -p benches` (criterion; `benches/parts`), the compressors beside others by the
//! program `codecs`, whole builds beside other builders by `e2e`, and RUNs by `sandbox`.
//!
//! `SLIPWAY_BENCH_TREE` names the directory whose files are used as data (default `/usr/share`), `SLIPWAY_BENCH_MIB` how much of
//! it (default 96).

use std::fs;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use builder_core::cancel::Cancel;
use builder_core::layer::{self, Compression, LayerInput, LayerOptions, SealedLayer};
use builder_core::limits::Limits;
use builder_core::rootfs::{LayerRef, LayerSource, Rootfs};
use builder_core::snapshot::{self, Changes};
use builder_core::store::Store;

/// A work dir with a store, and a tree of files that are all new.
pub struct Data {
    /// Everything is here.
    pub dir: tempfile::TempDir,
    /// For what is written.
    pub store: Store,
    /// The files.
    pub tree: Rootfs,
    /// All of them.
    pub changes: Changes,
}

impl Data {
    /// The files that `fill` writes into the directory it is given.
    pub fn new(fill: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).expect("a directory");
        fill(&tree);
        let store = Store::open(dir.path()).expect("a store");
        let tree = Rootfs::open(&tree).expect("a directory");
        let changes = snapshot::everything(&tree.list().expect("readable"), None).expect("listed");
        Self { dir, store, tree, changes }
    }

    /// Files of the machine, as the environment says.
    pub fn of_the_machine() -> Self {
        let from = std::env::var_os("SLIPWAY_BENCH_TREE").map_or_else(|| PathBuf::from("/usr/share"), PathBuf::from);
        let mebibytes = std::env::var("SLIPWAY_BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(96_u64);
        Self::new(|tree| copy(&from, tree, &mut (mebibytes << 20)))
    }

    /// Writes all of it as a layer, with so many threads.
    pub fn write(&self, compression: Compression, threads: usize) -> SealedLayer {
        let options = LayerOptions { compression, docker_media_types: false, clamp_mtime: None };
        let cpu_threads = NonZeroUsize::new(threads).expect("not zero");
        let limits = Limits { cpu_threads, ..Limits::default() };
        let input = LayerInput::new(&self.changes, &self.tree);
        layer::write(input, &self.store, &options, &limits, &Cancel::default(), &|_| ()).expect("written")
    }
}

/// Copies regular files until enough bytes are there.
pub fn copy(from: &Path, to: &Path, left: &mut u64) {
    let Ok(found) = fs::read_dir(from) else { return };
    let mut found: Vec<_> = found.flatten().collect();
    found.sort_by_key(fs::DirEntry::file_name);
    for item in found {
        let (Ok(kind), target) = (item.file_type(), to.join(item.file_name())) else { continue };
        if *left == 0 {
            return;
        } else if kind.is_dir() && fs::create_dir(&target).is_ok() {
            copy(&item.path(), &target, left);
        } else if kind.is_file()
            && let Ok(bytes) = fs::copy(item.path(), &target)
        {
            *left = left.saturating_sub(bytes);
        }
    }
}

/// Bytes that do not compress; always the same.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let words = (0..bytes.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(bytes).collect()
}

/// `directories` with a hundred files each, which `content` gives by number.
pub fn many_files(top: &Path, directories: u64, content: impl Fn(u64) -> String) {
    for directory in 0..directories {
        let path = top.join(format!("{}/module-{directory}", directory % 10));
        fs::create_dir_all(&path).expect("a directory");
        for file in 0..100 {
            fs::write(path.join(format!("file-{file}.js")), content(file)).expect("a file");
        }
    }
}

/// Layers that are in a store.
#[derive(Debug)]
pub struct FromStore<'a>(pub &'a Store);

impl LayerSource for FromStore<'_> {
    fn open(&self, layer: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Box::new(self.0.blob(layer.blob.digest)?))
    }
}
