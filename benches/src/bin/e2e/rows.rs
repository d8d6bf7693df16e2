//! What is built: each row stands for one complaint about other builders.

use std::collections::BTreeMap;

use crate::peers::Way;
use crate::probes::Work;

/// One build to measure.
pub struct Row {
    /// For the table.
    pub name: &'static str,
    /// `REGISTRY` stands for the registry.
    pub dockerfile: String,
    /// Files of the context.
    pub context: BTreeMap<String, Vec<u8>>,
    /// What was there before.
    pub before: Before,
    /// How it is built.
    pub way: Way,
    /// Whether the registry is far away.
    pub far: bool,
    /// What has to be done at least, for what the hardware allows.
    pub work: Work,
}

/// What a timed run finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Nothing: an empty state, a registry with the bases alone.
    Nothing,
    /// The same build.
    Same,
    /// The same build with other text in the file `changed` of the context.
    Changed,
    /// Nothing here, but every step's result in a repository, which another machine put there.
    RemoteCache,
}

/// MiB of program-like files in `base:large` at scale 1.
pub const LARGE_MIB: f64 = 800.0;
/// Small files in `base:many` at scale 1.
pub const MANY_FILES: f64 = 100_000.0;
/// Layers of `base:layers`.
pub const BASE_LAYERS: usize = 30;
/// MiB of each of them but the first.
pub const BASE_LAYER_MIB: f64 = 8.0;
/// MiB that the row of installed packages unpacks at scale 1.
const PACKAGES_MIB: f64 = 500.0;
/// MiB of random bytes at scale 1.
const RANDOM_MIB: f64 = 1024.0;
/// Files of the context of many files at scale 1.
const CONTEXT_FILES: f64 = 50_000.0;

/// All rows, for file counts and bytes multiplied by `scale`.
pub fn rows(scale: f64) -> Vec<Row> {
    let count = |number: f64| (number * scale).max(1.0) as usize;
    let bytes = |mebibytes: f64| (mebibytes * scale * 1_048_576.0).max(1.0) as u64;
    let one = || BTreeMap::from([("changed".to_owned(), b"hello\n".to_vec())]);
    let row = |name, dockerfile: String, work| Row {
        name,
        dockerfile,
        context: one(),
        before: Before::Nothing,
        way: Way::Usual,
        far: false,
        work,
    };
    let onto_large = || "FROM REGISTRY/base:large\nCOPY changed /file\n".to_owned();
    let trivial_runs: String = (0..10).map(|number| format!("RUN echo {number} > /n{number}\n")).collect();
    let on_many = format!("FROM REGISTRY/base:many\n{trivial_runs}");
    let random = format!("FROM REGISTRY/base:small\nRUN head -c {} /dev/urandom > /random\n", bytes(RANDOM_MIB));
    let packages = "FROM REGISTRY/base:large\nRUN --mount=type=bind,source=packages.tar,target=/packages.tar mkdir \
                    /packages && tar -xf /packages.tar -C /packages\n";
    let packages_context = || BTreeMap::from([("packages.tar".to_owned(), packages_tar(count(PACKAGES_MIB)))]);
    let large = Work { inflated: bytes(LARGE_MIB), ..Work::default() };
    let many = Work { files: count(MANY_FILES) as u64, ..Work::default() };
    let unpacked = Work { inflated: bytes(LARGE_MIB + PACKAGES_MIB), packed: bytes(PACKAGES_MIB), ..Work::default() };
    let noise = Work {
        stored: bytes(RANDOM_MIB),
        alone: Some(format!("head -c {} /dev/urandom > random", bytes(RANDOM_MIB))),
        ..Work::default()
    };
    let source_files: BTreeMap<String, Vec<u8>> = (0..count(CONTEXT_FILES))
        .map(|number| (format!("d{}/f{number}", number % 250), format!("{number}\n").repeat(20).into_bytes()))
        .chain(one())
        .collect();
    let sources = || "FROM REGISTRY/base:small\nCOPY . /src\n".to_owned();
    let source_work = Work { packed: 130 * count(CONTEXT_FILES) as u64, ..Work::default() };
    let layers: String = (0..40).map(|number| format!("COPY changed /copied/{number}\n")).collect();
    let stages = "FROM REGISTRY/base:small AS a\nRUN sleep 3; echo a > /a\nFROM REGISTRY/base:small AS b\nRUN sleep 3; \
                  echo b > /b\nFROM REGISTRY/base:small AS unused\nRUN sleep 30\nFROM REGISTRY/base:small\nCOPY \
                  --from=a /a /\nCOPY --from=b /b /\n";
    let deep = Work { inflated: bytes(BASE_LAYER_MIB) * BASE_LAYERS as u64, ..Work::default() };
    vec![
        Row { context: packages_context(), ..row("packages over a large base", packages.to_owned(), unpacked.clone()) },
        row("one file onto a large base", onto_large(), large.clone()),
        Row { before: Before::Changed, ..row("another file onto it, the base known", onto_large(), Work::default()) },
        row("ten trivial RUNs over 100,000 files", on_many.clone(), many),
        row("one RUN writing 1 GiB of random bytes", random, noise),
        row(
            "two independent stages and an unused one",
            stages.to_owned(),
            Work { alone: Some("sleep 3".to_owned()), ..Work::default() },
        ),
        Row {
            before: Before::RemoteCache,
            way: Way::CacheFrom,
            context: packages_context(),
            ..row("packages again, an empty machine, cached in a registry", packages.to_owned(), Work::default())
        },
        Row { before: Before::Same, ..row("the same again, nothing changed", on_many, Work::default()) },
        Row { context: source_files.clone(), ..row("a context of 50,000 files", sources(), source_work.clone()) },
        Row {
            context: source_files,
            before: Before::Changed,
            ..row("the same, one file changed", sources(), source_work)
        },
        row("forty small layers", format!("FROM REGISTRY/base:small\n{layers}"), Work::default()),
        row("a base of thirty layers, one RUN", "FROM REGISTRY/base:layers\nRUN echo 1 > /one\n".to_owned(), deep),
        Row {
            way: Way::Zstd,
            context: packages_context(),
            ..row("packages over a large base, zstd", packages.to_owned(), unpacked.clone())
        },
        Row {
            far: true,
            context: packages_context(),
            ..row("packages over a large base, slow registry", packages.to_owned(), unpacked)
        },
    ]
}

/// A tar of `mebibytes` files of 1 MiB.
fn packages_tar(mebibytes: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::with_capacity((mebibytes + 1) << 20));
    for number in 0..mebibytes {
        let bytes = crate::images::program_like(1_000_000 + number as u64, 1 << 20);
        crate::images::append(&mut tar, &format!("lib/p{number}.so"), tar::EntryType::Regular, &bytes, 0o644)
            .expect("a vector takes everything");
    }
    tar.into_inner().expect("a vector takes everything")
}
