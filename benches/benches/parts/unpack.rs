//! A compressed layer → files in a directory.

use benches::{Data, FromStore};
use builder_core::cancel::Cancel;
use builder_core::layer::Compression;
use builder_core::limits::Limits;
use builder_core::rootfs::{LayerRef, Ownership, TreeMode, Trees};
use criterion::{BatchSize, Criterion, Throughput};

pub fn measure(criterion: &mut Criterion) {
    let data = Data::of_the_machine();
    let mut group = super::group(criterion, "unpack");
    for (name, compression) in [("gzip", Compression::DEFAULT), ("zstd", Compression::DEFAULT_ZSTD)] {
        let layer = data.write(compression, Limits::default().cpu_threads.get());
        let layers = [LayerRef { diff_id: layer.diff_id, blob: layer.blob }];
        group.throughput(Throughput::Bytes(layer.uncompressed_bytes));
        group.bench_function(name, |bencher| {
            // Removing what was unpacked is not part of it.
            bencher.iter_batched(
                || tempfile::tempdir_in(data.dir.path()).expect("a temporary directory"),
                |work| {
                    let trees = Trees::open(work.path(), Some(TreeMode::Directory), Ownership::Real).expect("trees");
                    drop(trees.checkout(&layers, &FromStore(&data.store), &Cancel::default()).expect("unpacked"));
                    work
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}
