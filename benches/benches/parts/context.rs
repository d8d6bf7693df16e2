//! What COPY does before it writes: the ignore file, the list of what is left, and the hash of all of it; with nothing known, and
//! with everything known from before.

use std::fs;
use std::path::Path;

use builder_core::cancel::Cancel;
use builder_core::context::{Files, Patterns};
use builder_core::copy;
use builder_core::plan::{CopyAction, CopySource, FileSource};
use criterion::{BatchSize, Criterion, Throughput};

/// Files of the context, in hundreds.
const DIRECTORIES: u64 = 1000;

/// What its ignore file hides besides, in hundreds.
const HIDDEN: u64 = 100;

pub fn measure(criterion: &mut Criterion) {
    let context = tempfile::tempdir().expect("a temporary directory");
    let text = |file: u64| format!("export const value = {file};\n").repeat(1 + (file % 40) as usize);
    for (top, directories) in [("src", DIRECTORIES), ("node_modules", HIDDEN)] {
        let top = context.path().join(top);
        fs::create_dir(&top).expect("a directory");
        benches::many_files(&top, directories, text);
    }
    let ignored =
        "# as projects write it\n**/.git\nnode_modules\n**/*.log\n*.md\n!README.md\ntmp/**\n**/__pycache__\n.env*\n";
    let patterns = Patterns::parse(ignored).expect("patterns");
    let action = CopyAction::plain(FileSource::Context, vec![CopySource::Path(".".to_owned())], "/src/");
    let hash = |cache: &Path| {
        let files = Files::directory(context.path(), patterns.clone()).expect("a directory").with_hash_cache(cache);
        let resolved = copy::resolve(&action, &files, &Cancel::default()).expect("found");
        let hash = resolved.content_hash(&action, &files, &Cancel::default()).expect("hashed");
        files.save_hashes().expect("saved");
        let counts = files.hash_counts();
        assert_eq!(counts.read + counts.known, DIRECTORIES * 100);
        hash
    };
    let mut group = super::group(criterion, "context");
    group.throughput(Throughput::Elements(DIRECTORIES * 100));
    let empty = || tempfile::tempdir().expect("a temporary directory");
    group.bench_function("100,000 files, first", |bencher| {
        bencher.iter_batched(empty, |cache| (hash(cache.path()), cache), BatchSize::PerIteration);
    });
    let cache = empty();
    hash(cache.path());
    group.bench_function("100,000 files, again", |bencher| bencher.iter(|| hash(cache.path())));
    group.finish();
}
