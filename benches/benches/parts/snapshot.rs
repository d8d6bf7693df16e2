//! What a step changed in a tree of 100,000 files.

use std::fs;
use std::path::{Path, PathBuf};

use benches::FromStore;
use builder_core::cancel::Cancel;
use builder_core::layer::{self, Compression, LayerInput, LayerOptions};
use builder_core::limits::Limits;
use builder_core::rootfs::{Attributes, NewFile, Ownership, Rootfs, TreeMode, Trees};
use builder_core::snapshot;
use builder_core::store::Store;
use criterion::{Criterion, Throughput};

/// Files of the tree, in hundreds.
const DIRECTORIES: u64 = 1000;

pub fn measure(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    benches::many_files(dir.path(), DIRECTORIES, |_| "content".to_owned());
    let tree = Rootfs::open(dir.path()).expect("a directory");
    let mut group = super::group(criterion, "snapshot");
    group.throughput(Throughput::Elements(DIRECTORIES * 100));
    group.bench_function("list", |bencher| bencher.iter(|| tree.list().expect("readable").len()));
    let listing = tree.list().expect("readable");
    group.bench_function("everything", |bencher| {
        bencher.iter(|| snapshot::everything(&listing, None).expect("listed").len());
    });
    group.finish();
    fs::remove_dir_all(dir.path()).expect("removed");
    for mode in [TreeMode::Directory, TreeMode::Overlay] {
        step(criterion, mode);
    }
}

/// A step that changes one file of many: its snapshot, its layer, and the tree behind it.
fn step(criterion: &mut Criterion, mode: TreeMode) {
    let work = tempfile::tempdir().expect("a temporary directory");
    let Ok(trees) = Trees::open(work.path(), Some(mode), Ownership::Real) else { return };
    let store = Store::open(work.path()).expect("a store");
    let cancel = Cancel::default();
    let mut tree = trees.checkout(&[], &FromStore(&store), &cancel).expect("an empty tree");
    let options = LayerOptions { compression: Compression::DEFAULT, docker_media_types: false, clamp_mtime: None };
    let mut commit = |write: &dyn Fn(&Rootfs)| {
        let step = tree.begin().expect("a step");
        write(step.rootfs());
        let changes = snapshot::changes(&step, None).expect("readable");
        let input = LayerInput::new(&changes, step.rootfs());
        let layer = layer::write(input, &store, &options, &Limits::default(), &cancel, &|_| ()).expect("written");
        step.commit(layer.diff_id).expect("committed");
        changes.len()
    };
    commit(&|rootfs| {
        for directory in 0..DIRECTORIES {
            let path = PathBuf::from(format!("{}/{directory}", directory % 10));
            rootfs.create_dir_all(&path, &Attributes::default()).expect("a directory");
            for file in 0..100 {
                let content = NewFile::File(&mut &b"content"[..]);
                rootfs.create(&path.join(format!("file-{file}")), content, &Attributes::default()).expect("a file");
            }
        }
    });
    let mut count = 0;
    let mut group = super::group(criterion, "snapshot");
    group.throughput(Throughput::Elements(DIRECTORIES * 100));
    group.bench_function(format!("one of many, {mode:?}"), |bencher| {
        bencher.iter(|| {
            count += 1;
            let text = format!("change {count}");
            let changed = commit(&|rootfs| {
                let content = NewFile::File(&mut text.as_bytes());
                rootfs.create(Path::new("1/1/file-1"), content, &Attributes::default()).expect("a file");
            });
            assert_eq!(changed, 3, "the file and the two directories around it");
        });
    });
    group.finish();
}
