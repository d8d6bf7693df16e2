//! A step's changes become a layer, and the layer becomes the same tree again: in both modes, with the same bytes.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use builder_core::cancel::Cancel;
use builder_core::layer::{self, Compression, LayerInput, LayerOptions, SealedLayer};
use builder_core::limits::Limits;
use builder_core::rootfs::{Attributes, FileKind, LayerRef, LayerSource, NewFile, Ownership, Rootfs, TreeMode, Trees};
use builder_core::snapshot::{self, Change, Changes};
use builder_core::store::Store;
use proptest::prelude::*;

/// Later than every time that a test sets, so that times of directories, which are those of the test, are equal.
const CLAMP: i64 = 1_000_000;

/// One operation on a tree; a time that nobody else has makes each a real change.
#[derive(Debug, Clone)]
enum Operation {
    File { path: PathBuf, length: usize },
    Directory { path: PathBuf },
    Symlink { path: PathBuf, target: PathBuf },
    Fifo { path: PathBuf },
    HardLink { from: PathBuf, path: PathBuf },
    Chmod { path: PathBuf, mode: u32 },
    Chown { path: PathBuf, owner: u32 },
    Remove { path: PathBuf },
}

fn any_path() -> impl Strategy<Value = PathBuf> {
    let name = prop_oneof![
        6 => proptest::sample::select(vec!["a", "b", "c", "a-b", "a.b"]).prop_map(str::to_owned),
        1 => Just("long".repeat(30)),
        1 => Just("é".to_owned()),
    ];
    proptest::collection::vec(name, 1..4).prop_map(|names| names.join("/").into())
}

fn any_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        5 => (any_path(), 0_usize..5000).prop_map(|(path, length)| Operation::File { path, length }),
        3 => any_path().prop_map(|path| Operation::Directory { path }),
        2 => (any_path(), any_path()).prop_map(|(path, target)| Operation::Symlink { path, target }),
        1 => any_path().prop_map(|path| Operation::Fifo { path }),
        2 => (any_path(), any_path()).prop_map(|(from, path)| Operation::HardLink { from, path }),
        2 => (any_path(), 0..=0o7777_u32).prop_map(|(path, mode)| Operation::Chmod { path, mode }),
        1 => (any_path(), 0..5_u32).prop_map(|(path, owner)| Operation::Chown { path, owner }),
        4 => any_path().prop_map(|path| Operation::Remove { path }),
    ]
}

/// Does what can be done; an operation on what is not there does nothing.
fn apply(rootfs: &Rootfs, operations: &[Operation], time: &mut i64) {
    for operation in operations {
        *time += 1;
        let attributes = |mode| Attributes { mode: Some(mode), mtime: Some((*time, 0)), ..Attributes::default() };
        let create = |path: &Path, file: NewFile<'_>, attributes: &Attributes| {
            let parent = path.parent().unwrap_or(Path::new(""));
            let walkable = Attributes { mode: Some(0o755), ..Attributes::default() };
            if is_plain(rootfs, parent) && rootfs.create_dir_all(parent, &walkable).is_ok() {
                rootfs.create(path, file, attributes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
        };
        match operation {
            Operation::File { path, length } => {
                let content = format!("{time} ").repeat(*length / 4);
                create(path, NewFile::File(&mut content.as_bytes()), &attributes(0o644));
            }
            Operation::Directory { path } => create(path, NewFile::Directory, &attributes(0o755)),
            Operation::Symlink { path, target } => {
                let attributes = Attributes { mode: None, ..attributes(0) };
                create(path, NewFile::Symlink(target), &attributes);
            }
            Operation::Fifo { path } => create(path, NewFile::Fifo, &attributes(0o600)),
            Operation::HardLink { from, path } => {
                let parent = path.parent().unwrap_or(Path::new(""));
                let is_file = rootfs.lstat(from).is_ok_and(|found| found.kind == FileKind::File);
                if is_file && from != path && is_plain(rootfs, parent) && rootfs.lstat(path).is_err() {
                    // The parent may be missing.
                    _ = rootfs.hard_link(from, path);
                }
            }
            // Changing one of several hard links is another thing in each mode.
            Operation::Chmod { path, mode } if is_single(rootfs, path) => {
                rootfs.set_attributes(path, &attributes(*mode)).expect("it exists");
            }
            Operation::Chown { path, owner } if is_single(rootfs, path) => {
                let owner = Some((*owner, owner + 1));
                let attributes = Attributes { owner, mtime: Some((*time, 0)), ..Attributes::default() };
                rootfs.set_attributes(path, &attributes).expect("it exists");
            }
            Operation::Chmod { .. } | Operation::Chown { .. } => {}
            Operation::Remove { path } => {
                if is_plain(rootfs, path.parent().unwrap_or(Path::new(""))) {
                    rootfs.remove(path).expect("removed");
                }
            }
        }
    }
}

/// Whether no component is a symbolic link or anything else that is not a directory.
fn is_plain(rootfs: &Rootfs, path: &Path) -> bool {
    path.ancestors()
        .filter(|ancestor| !ancestor.as_os_str().is_empty())
        .all(|ancestor| rootfs.lstat(ancestor).map_or(true, |found| found.kind == FileKind::Directory))
}

fn is_single(rootfs: &Rootfs, path: &Path) -> bool {
    is_plain(rootfs, path.parent().unwrap_or(Path::new("")))
        && rootfs.lstat(path).is_ok_and(|found| {
            found.kind == FileKind::Directory || (found.kind != FileKind::Symlink && found.links == 1)
        })
}

/// What can be compared between trees: kind, mode, owner, time but of directories, link text or content.
type Shown = BTreeMap<PathBuf, (FileKind, u32, (u32, u32), i64, Vec<u8>)>;

fn shown(rootfs: &Rootfs) -> Shown {
    let listing = rootfs.list().expect("readable");
    let rows = listing.iter().map(|listed| {
        let listed = listed.expect("readable");
        let metadata = &listed.metadata;
        let (time, content) = match metadata.kind {
            FileKind::File => {
                let mut content = Vec::new();
                let mut file = rootfs.open_file(&listed.path).expect("a file");
                file.read_to_end(&mut content).expect("readable");
                (metadata.mtime.0, content)
            }
            FileKind::Symlink => {
                let text = rootfs.read_link(&listed.path).expect("a link");
                (metadata.mtime.0, text.into_os_string().into_encoded_bytes())
            }
            FileKind::Directory => (0, Vec::new()),
            _ => (metadata.mtime.0, Vec::new()),
        };
        let row = (metadata.kind, metadata.mode, (metadata.uid, metadata.gid), time, content);
        (listed.path, row)
    });
    rows.collect()
}

struct FromStore(Store);

impl LayerSource for FromStore {
    fn open(&self, layer: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Box::new(self.0.blob(layer.blob.digest)?))
    }
}

struct Work {
    dir: tempfile::TempDir,
    store: Store,
    trees: Trees,
}

impl Work {
    /// `None` where overlays cannot be mounted.
    #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
    fn new(mode: TreeMode) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(dir.path()).expect("a store");
        match Trees::open(dir.path(), Some(mode), Ownership::Real) {
            Ok(trees) => Some(Self { dir, store, trees }),
            Err(error) if mode == TreeMode::Overlay => {
                eprintln!("skipped: no overlay can be mounted here: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn seal(&self, changes: &Changes, rootfs: &Rootfs) -> SealedLayer {
        let options =
            LayerOptions { compression: Compression::DEFAULT, docker_media_types: false, clamp_mtime: Some(CLAMP) };
        let (limits, cancel) = (Limits::default(), Cancel::default());
        layer::write(LayerInput::new(changes, rootfs), &self.store, &options, &limits, &cancel, &|_| ())
            .expect("written")
    }

    /// Does each list of operations as a step of its own. Returns the layers, their changes, and the tree at the end.
    fn build(&self, steps: &[Vec<Operation>]) -> (Vec<SealedLayer>, Vec<Vec<Change>>, Shown) {
        let source = FromStore(self.store.clone());
        let mut tree = self.trees.checkout(&[], &source, &Cancel::default()).expect("an empty tree");
        let mut time = 1;
        let (mut layers, mut all) = (Vec::new(), Vec::new());
        for operations in steps {
            let step = tree.begin().expect("a step");
            apply(step.rootfs(), operations, &mut time);
            let changes = snapshot::changes(&step, None).expect("readable");
            let layer = self.seal(&changes, step.rootfs());
            step.commit(layer.diff_id).expect("committed");
            layers.push(layer);
            all.push(changes.iter().map(|change| change.expect("readable")).collect());
        }
        let rootfs = tree.rootfs().expect("a tree");
        (layers, all, shown(&rootfs))
    }

    /// The tree that these layers are, unpacked anew.
    fn unpack(&self, layers: &[SealedLayer]) -> Shown {
        let fresh = self.dir.path().join("fresh");
        std::fs::create_dir(&fresh).expect("a directory");
        let trees = Trees::open(&fresh, Some(self.trees.mode()), Ownership::Real).expect("as before");
        let layers: Vec<_> =
            layers.iter().map(|layer| LayerRef { diff_id: layer.diff_id, blob: layer.blob.clone() }).collect();
        let source = FromStore(self.store.clone());
        let tree = trees.checkout(&layers, &source, &Cancel::default()).expect("unpacked");
        shown(&tree.rootfs().expect("a tree"))
    }
}

fn paths(changes: &[Change]) -> Vec<String> {
    let mark = |change: &Change| match change {
        Change::Removed { .. } => "-",
        Change::Entry { link_to: Some(_), .. } => "=",
        Change::Entry { .. } => "",
    };
    changes.iter().map(|change| format!("{}{}", mark(change), change.path().display())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn layers_are_the_tree_they_were_made_of(
        steps in proptest::collection::vec(proptest::collection::vec(any_operation(), 0..25), 1..4)
    ) {
        let directory = Work::new(TreeMode::Directory).expect("it needs nothing");
        let (layers, changes, built) = directory.build(&steps);
        prop_assert_eq!(&directory.unpack(&layers), &built);
        if let Some(overlay) = Work::new(TreeMode::Overlay) {
            let (overlay_layers, overlay_changes, overlay_built) = overlay.build(&steps);
            prop_assert_eq!(&overlay.unpack(&overlay_layers), &overlay_built);
            prop_assert_eq!(&overlay_built, &built);
            // A link that came and went changes the change time of the other name, which only overlay mode can tell
            // from a change of content: directory mode lists such files, and the directories above them, as well.
            let steps = overlay_changes.iter().zip(&changes).zip(overlay_layers.iter().zip(&layers));
            for ((in_overlay, in_directory), (overlay_layer, layer)) in steps {
                let (in_overlay, in_directory) = (paths(in_overlay), paths(in_directory));
                prop_assert!(in_overlay.iter().all(|path| in_directory.contains(path)), "{:?} {:?}", in_overlay, in_directory);
                let more: Vec<_> = in_directory.iter().filter(|path| !in_overlay.contains(path)).collect();
                prop_assert!(!more.iter().any(|path| path.starts_with('-')), "{:?}", more);
                if more.is_empty() {
                    prop_assert_eq!(overlay_layer, layer);
                }
            }
        }
    }
}
