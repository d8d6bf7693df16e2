//! Files → tar → compressor → two hashes → blob.

use benches::Data;
use builder_core::layer::Compression;
use builder_core::limits::Limits;
use criterion::{Criterion, Throughput};

/// Bytes that do not compress.
const NOISE_BYTES: usize = 128 << 20;

pub fn measure(criterion: &mut Criterion) {
    let data = Data::of_the_machine();
    let noise = Data::new(|tree| std::fs::write(tree.join("noise"), benches::noise(NOISE_BYTES)).expect("a file"));
    let all = Limits::default().cpu_threads.get();
    let gzip = |level| Compression::Gzip { level };
    let zstd = |level| Compression::Zstd { level };
    let cases = [
        ("plain", &data, Compression::None, all),
        ("gzip-1", &data, gzip(1), all),
        ("gzip-4", &data, gzip(4), all),
        ("gzip-4", &data, gzip(4), 1),
        ("gzip-6", &data, gzip(6), all),
        ("zstd-1", &data, zstd(1), all),
        ("zstd-3", &data, zstd(3), all),
        ("zstd-3", &data, zstd(3), 1),
        ("noise, gzip-4", &noise, gzip(4), all),
        ("noise, zstd-3", &noise, zstd(3), all),
    ];
    let mut group = super::group(criterion, "pipeline");
    for (name, data, compression, threads) in cases {
        let bytes = data.write(Compression::None, 1).uncompressed_bytes;
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(format!("{name}, {threads} threads"), |bencher| {
            bencher.iter(|| data.write(compression, threads).blob.size);
        });
    }
    group.finish();
}
