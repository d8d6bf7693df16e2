//! Parse, inflate and unpack, snapshot, and the layer pipeline. The whole binary against other builders is measured by
//! a script of its own, because that needs their programs and a registry.

use std::fs;
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use benches::{Harness, Work};
use builder_core::cancel::Cancel;
use builder_core::context::{Files, Patterns};
use builder_core::copy;
use builder_core::dockerfile;
use builder_core::layer::{self, Compression, LayerInput, LayerOptions};
use builder_core::limits::Limits;
use builder_core::plan::{CopyAction, CopySource, FileSource};
use builder_core::rootfs::{LayerRef, LayerSource, Ownership, Rootfs, TreeMode, Trees};
use builder_core::snapshot::{self, Changes};
use builder_core::store::Store;

/// Files of the tree for snapshots.
const SNAPSHOT_FILES: u64 = 100_000;

fn main() {
    let harness = Harness::from_arguments();
    parse(&harness);
    if harness.wants("layer") || harness.wants("unpack") {
        layers(&harness);
    }
    if harness.wants("snapshot") {
        snapshots(&harness);
    }
    if harness.wants("context") {
        contexts(&harness);
    }
}

/// Files of the context.
const CONTEXT_FILES: u64 = 100_000;

/// Files that its ignore file hides, besides.
const HIDDEN_FILES: u64 = 10_000;

/// What COPY does before it writes: the ignore file, the list of what is left, and the hash of all of it; with nothing known,
/// and with everything known from before.
fn contexts(harness: &Harness) {
    let context = tempfile::tempdir().expect("a temporary directory");
    let fill = |top: &str, count: u64| {
        for directory in 0..count / 100 {
            let path = context.path().join(format!("{top}/{}/module-{directory}", directory % 10));
            fs::create_dir_all(&path).expect("a directory");
            for file in 0..100 {
                let text = format!("export const value = {file};\n").repeat(1 + file % 40);
                fs::write(path.join(format!("file-{file}.js")), text).expect("a file");
            }
        }
    };
    fill("src", CONTEXT_FILES);
    fill("node_modules", HIDDEN_FILES);
    let ignored =
        "# as projects write it\n**/.git\nnode_modules\n**/*.log\n*.md\n!README.md\ntmp/**\n**/__pycache__\n.env*\n";
    let patterns = Patterns::parse(ignored).expect("patterns");
    let action = CopyAction::plain(FileSource::Context, vec![CopySource::Path(".".to_owned())], "/src/");
    let hash = |cache: &Path| {
        let files = Files::directory(context.path(), patterns.clone()).expect("a directory").with_hash_cache(cache);
        let resolved = copy::resolve(&action, &files, &Cancel::default()).expect("hashed");
        files.save_hashes().expect("saved");
        let counts = files.hash_counts();
        assert_eq!(counts.read + counts.known, CONTEXT_FILES);
        format!(
            "{} read, {} MB, {} known, {}",
            counts.read,
            counts.bytes / 1_000_000,
            counts.known,
            &resolved.content_hash().to_hex()[..8]
        )
    };
    harness.measure("context/100,000 files, first", Work::Entries(CONTEXT_FILES), || {
        hash(tempfile::tempdir().expect("a temporary directory").path())
    });
    let cache = tempfile::tempdir().expect("a temporary directory");
    hash(cache.path());
    harness.measure("context/100,000 files, again", Work::Entries(CONTEXT_FILES), || hash(cache.path()));
}

fn parse(harness: &Harness) {
    let stage = "FROM busybox:1 AS s0\nARG A=1 B=${A:-x}\nENV C=\"$B y\" D='z'\nRUN --mount=type=cache,target=/c set -e; \\\n    \
        # a comment\n    make -j4 && \\\n    make install\nCOPY --chown=1:2 [\"a b\", \"/c/\"]\nRUN <<EOF\necho a\necho b\nEOF\n\
        LABEL a=b c=\"d e\"\nEXPOSE 80 443/tcp\nHEALTHCHECK --interval=1m CMD [\"true\"]\nCMD [\"/bin/sh\", \"-c\", \"true\"]\n";
    let text: String = (0..500).map(|number| stage.replace("s0", &format!("s{number}"))).collect();
    harness.measure("parse", Work::Bytes(text.len() as u64), || {
        let parsed = dockerfile::parse(&text).expect("a valid Dockerfile");
        format!("{} instructions", parsed.instructions.len())
    });
}

/// A work dir with a store and a tree of files copied into it.
struct Data {
    dir: tempfile::TempDir,
    store: Store,
    tree: Rootfs,
    changes: Changes,
}

fn data() -> Data {
    let from = std::env::var_os("SLIPWAY_BENCH_TREE").map_or_else(|| PathBuf::from("/usr/share"), PathBuf::from);
    let mebibytes = std::env::var("SLIPWAY_BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(256_u64);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).expect("a directory");
    let mut left = mebibytes << 20;
    copy(&from, &tree, &mut left);
    let store = Store::open(dir.path()).expect("a store");
    let tree = Rootfs::open(&tree).expect("a directory");
    let changes = snapshot::everything(&tree.list().expect("readable"), None).expect("listed");
    Data { dir, store, tree, changes }
}

/// Copies regular files until enough bytes are there.
fn copy(from: &Path, to: &Path, left: &mut u64) {
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

struct FromStore<'a>(&'a Store);

impl LayerSource for FromStore<'_> {
    fn open(&self, layer: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Box::new(self.0.blob(layer.blob.digest)?))
    }
}

fn layers(harness: &Harness) {
    let data = data();
    let write = |compression, threads: usize| {
        let options = LayerOptions { compression, docker_media_types: false, clamp_mtime: None };
        let cpu_threads = NonZeroUsize::new(threads).expect("not zero");
        let limits = Limits { cpu_threads, ..Limits::default() };
        let cancel = Cancel::default();
        layer::write(LayerInput::new(&data.changes, &data.tree), &data.store, &options, &limits, &cancel, &|_| ())
            .expect("written")
    };
    let plain = write(Compression::None, 1);
    let bytes = plain.uncompressed_bytes;
    let all = Limits::default().cpu_threads.get();
    let gzip = |level| Compression::Gzip { level };
    let zstd = |level| Compression::Zstd { level };
    let cases = [
        ("layer/plain".to_owned(), Compression::None, all),
        (format!("layer/gzip-1 threads={all}"), gzip(1), all),
        (format!("layer/gzip-3 threads={all}"), gzip(3), all),
        (format!("layer/gzip-4 threads={all}"), gzip(4), all),
        ("layer/gzip-4 threads=1".to_owned(), gzip(4), 1),
        (format!("layer/gzip-5 threads={all}"), gzip(5), all),
        (format!("layer/gzip-6 threads={all}"), gzip(6), all),
        (format!("layer/zstd-1 threads={all}"), zstd(1), all),
        (format!("layer/zstd-3 threads={all}"), zstd(3), all),
    ];
    for (name, compression, threads) in cases {
        harness.measure(&name, Work::Bytes(bytes), || {
            let layer = write(compression, threads);
            format!("ratio {:.4}, {} entries", layer.blob.size as f64 / bytes as f64, layer.entries)
        });
    }
    noise(harness, &data);
    unpack(harness, &data, bytes);
}

/// What does not compress is detected and stored.
fn noise(harness: &Harness, data: &Data) {
    const NAME: &str = "layer/gzip-4 of noise";
    if !harness.wants(NAME) {
        return;
    }
    let path = data.dir.path().join("noise");
    fs::create_dir(&path).expect("a directory");
    let mut state = 88_172_645_463_325_252_u64;
    let bytes: Vec<u8> = (0..(128 << 20) / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect();
    fs::write(path.join("noise"), &bytes).expect("a file");
    let tree = Rootfs::open(&path).expect("a directory");
    let changes = snapshot::everything(&tree.list().expect("readable"), None).expect("listed");
    harness.measure(NAME, Work::Bytes(bytes.len() as u64), || {
        let options = LayerOptions { compression: Compression::DEFAULT, docker_media_types: false, clamp_mtime: None };
        let (limits, cancel) = (Limits::default(), Cancel::default());
        let layer = layer::write(LayerInput::new(&changes, &tree), &data.store, &options, &limits, &cancel, &|_| ())
            .expect("written");
        format!("ratio {:.4}", layer.blob.size as f64 / bytes.len() as f64)
    });
}

fn unpack(harness: &Harness, data: &Data, bytes: u64) {
    for (name, compression) in [("gzip", Compression::DEFAULT), ("zstd", Compression::DEFAULT_ZSTD)] {
        let options = LayerOptions { compression, docker_media_types: false, clamp_mtime: None };
        let (limits, cancel) = (Limits::default(), Cancel::default());
        let written =
            layer::write(LayerInput::new(&data.changes, &data.tree), &data.store, &options, &limits, &cancel, &|_| ());
        let layer = written.expect("written");
        let layers = [LayerRef { diff_id: layer.diff_id, blob: layer.blob }];
        harness.measure(&format!("unpack/{name}"), Work::Bytes(bytes), || {
            let work = tempfile::tempdir_in(data.dir.path()).expect("a temporary directory");
            let trees = Trees::open(work.path(), Some(TreeMode::Directory), Ownership::Real).expect("trees");
            trees.checkout(&layers, &FromStore(&data.store), &cancel).expect("unpacked");
            format!("{} entries", layer.entries)
        });
    }
}

fn snapshots(harness: &Harness) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for directory in 0..SNAPSHOT_FILES / 100 {
        let path = dir.path().join(format!("{}/{directory}", directory % 10));
        fs::create_dir_all(&path).expect("a directory");
        for file in 0..100 {
            fs::write(path.join(format!("file-{file}")), b"content").expect("a file");
        }
    }
    let tree = Rootfs::open(dir.path()).expect("a directory");
    harness.measure("snapshot/list", Work::Entries(SNAPSHOT_FILES), || {
        format!("{} listed", tree.list().expect("readable").len())
    });
    let listing = tree.list().expect("readable");
    harness.measure("snapshot/everything", Work::Entries(SNAPSHOT_FILES), || {
        format!("{} changes", snapshot::everything(&listing, None).expect("listed").len())
    });
    steps(harness);
}

/// A step that changes one file of many, in each mode.
fn steps(harness: &Harness) {
    use builder_core::rootfs::{Attributes, NewFile};

    for mode in [TreeMode::Directory, TreeMode::Overlay] {
        let work = tempfile::tempdir().expect("a temporary directory");
        let Ok(trees) = Trees::open(work.path(), Some(mode), Ownership::Real) else { continue };
        let store = Store::open(work.path()).expect("a store");
        let source = FromStore(&store);
        let cancel = Cancel::default();
        let mut tree = trees.checkout(&[], &source, &cancel).expect("an empty tree");
        let fill = tree.begin().expect("a step");
        for directory in 0..SNAPSHOT_FILES / 100 {
            let path = PathBuf::from(format!("{}/{directory}", directory % 10));
            fill.rootfs().create_dir_all(&path, &Attributes::default()).expect("a directory");
            for file in 0..100 {
                let path = path.join(format!("file-{file}"));
                let content = NewFile::File(&mut &b"content"[..]);
                fill.rootfs().create(&path, content, &Attributes::default()).expect("a file");
            }
        }
        let options = LayerOptions { compression: Compression::DEFAULT, docker_media_types: false, clamp_mtime: None };
        let changes = snapshot::changes(&fill, None).expect("readable");
        let limits = Limits::default();
        let layer = layer::write(LayerInput::new(&changes, fill.rootfs()), &store, &options, &limits, &cancel, &|_| ())
            .expect("written");
        fill.commit(layer.diff_id).expect("committed");
        let mut count = 0;
        harness.measure(&format!("snapshot/one of many, {mode:?}"), Work::Entries(SNAPSHOT_FILES), || {
            count += 1;
            let step = tree.begin().expect("a step");
            let content = format!("change {count}");
            step.rootfs()
                .create(Path::new("1/1/file-1"), NewFile::File(&mut content.as_bytes()), &Attributes::default())
                .expect("a file");
            let changes = snapshot::changes(&step, None).expect("readable");
            let layer =
                layer::write(LayerInput::new(&changes, step.rootfs()), &store, &options, &limits, &cancel, &|_| ())
                    .expect("written");
            step.commit(layer.diff_id).expect("committed");
            format!("{} changes", changes.len())
        });
    }
}
