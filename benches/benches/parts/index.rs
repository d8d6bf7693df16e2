//! What a layer holds, without unpacking it: read from its tar, and replayed from the kept index.

use benches::{Data, FromStore};
use builder_core::cancel::Cancel;
use builder_core::layer::Compression;
use builder_core::rootfs::{LayerRef, Ownership, TreeMode, Trees};
use criterion::{BatchSize, Criterion, Throughput};

/// Files of the layer, in hundreds.
const DIRECTORIES: u64 = 1000;

pub fn measure(criterion: &mut Criterion) {
    let data = Data::new(|tree| benches::many_files(tree, DIRECTORIES, |file| format!("content of {file}")));
    let layer = data.write(Compression::DEFAULT, 2);
    let layers = [LayerRef { diff_id: layer.diff_id, blob: layer.blob.clone() }];
    let source = FromStore(&data.store);
    let open =
        |work: &tempfile::TempDir| Trees::open(work.path(), Some(TreeMode::Directory), Ownership::Real).expect("trees");
    let cancel = Cancel::default();
    let mut group = super::group(criterion, "index");
    group.throughput(Throughput::Elements(layer.entries));
    group.bench_function("of a layer of 100,000 files", |bencher| {
        bencher.iter_batched(
            || tempfile::tempdir_in(data.dir.path()).expect("a temporary directory"),
            |work| {
                let tree = open(&work).index(&layers, &source, &cancel).expect("read").expect("not too large");
                assert!(tree.entries() >= DIRECTORIES * 100);
                work
            },
            BatchSize::PerIteration,
        );
    });
    let work = tempfile::tempdir_in(data.dir.path()).expect("a temporary directory");
    let trees = open(&work);
    trees.index(&layers, &source, &cancel).expect("read");
    group.bench_function("of 100,000 files, kept", |bencher| {
        bencher.iter(|| trees.index(&layers, &source, &cancel).expect("read").map(|tree| tree.entries()));
    });
    group.finish();
}
