//! Trees that begin alike, in directory mode: unpacked once, copied for all but the last.
#![expect(clippy::print_stderr, reason = "what cannot run says so")]

use std::sync::atomic::{AtomicUsize, Ordering};

use super::tests::assert_nothing_left;
use super::*;
use crate::disk::Disk;
use crate::oci::Sha256;
use crate::rootfs::plain::Sharing;
use crate::rootfs::test_layers::*;
use crate::rootfs::{Attributes, NewFile, Unchanged};

/// A source that counts what is asked of it.
struct Counted(Blobs, AtomicUsize);

impl LayerSource for Counted {
    fn open(&self, layer: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.open(layer)
    }
}

/// Layers with everything that a tree can hold.
fn base() -> [Vec<Entry>; 2] {
    [
        vec![
            dir("d").mode(0o1751).owner(3, 4).mtime(77),
            file("d/f", "setuid").mode(0o4711).owner(1000, 100).mtime(1_000_000_007),
            hard_link("d/h", "d/f"),
            dir("d/e").mode(0o500).mtime(5),
            hard_link("d/e/far", "d/f"),
            file("d/e/read-only", "r").mode(0o400),
            symlink("link", "d/f").owner(7, 8).mtime(9),
            hard_link("link-too", "link"),
            fifo("pipe").mode(0o622),
            char_device("null", (1, 3)).owner(5, 6),
            file("empty", ""),
            file("note", "n").pax("SCHILY.xattr.user.note", b"v\0w").mode(0o640),
            file("able", "a")
                .pax("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            file("with\nline and \u{ff}", "odd"),
            dir("group").mode(0o2775).owner(0, 50),
            file("group/g", "g").owner(0, 50),
        ],
        vec![file("d/g", "second"), file(".wh.empty", ""), file("big", &"0123456789".repeat(30_000))],
    ]
}

fn in_each_way(check: impl Fn(&Trees, &Path)) {
    for ownership in [Ownership::Real, Ownership::RealFiles, Ownership::Recorded] {
        let dir = tempfile::tempdir().unwrap();
        let trees = Trees::open(dir.path(), Some(TreeMode::Directory), ownership).unwrap();
        check(&trees, dir.path());
    }
}

/// Whether this machine lets us have the owners of the layers.
fn can_unpack(trees: &Trees, source: &dyn LayerSource, refs: &[LayerRef]) -> bool {
    match trees.checkout(refs, source, &Cancel::default()) {
        Ok(_) => true,
        Err(error @ TreeError::UnmappedId { .. }) => {
            eprintln!("skipped: {error}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_copy_is_what_its_layers_say() {
    in_each_way(|trees, _| {
        let (blobs, refs) = Blobs::layers(&base());
        if !can_unpack(trees, &blobs, &refs) {
            return;
        }
        let fresh = tempfile::tempdir().unwrap();
        let other = Trees::open(fresh.path(), Some(TreeMode::Directory), trees.ownership).unwrap();
        let unpacked = other.checkout(&refs, &blobs, &Cancel::default()).unwrap();
        let expected = describe_fully(&unpacked.rootfs().unwrap());
        let more = trees.expect(&refs);
        let copied = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
        assert_eq!(describe_fully(&copied.rootfs().unwrap()), expected);
        let again = trees.copy(&copied, &[], &blobs, &Cancel::default()).unwrap().expect("a directory");
        assert_eq!(describe_fully(&again.rootfs().unwrap()), expected);
        assert_eq!(again.chain(), copied.chain());
        drop((copied, again, more));
        // It is found again, and what is recorded of it.
        let found = trees.checkout(&refs, &Blobs::default(), &Cancel::default()).unwrap();
        assert_eq!(describe_fully(&found.rootfs().unwrap()), expected);
    });
}

fn change(tree: &mut WorkTree, number: usize) {
    let step = tree.begin().unwrap();
    let rootfs = step.rootfs();
    let name = format!("of-{number}");
    rootfs.create(Path::new(&name), NewFile::File(&mut name.as_bytes()), &Attributes::default()).unwrap();
    std::io::Write::write_all(&mut rootfs.overwrite(Path::new("note")).unwrap(), name.as_bytes()).unwrap();
    let mode = Attributes { mode: Some(0o600), owner: Some((0, 0)), ..Attributes::default() };
    rootfs.set_attributes(Path::new("d/f"), &mode).unwrap();
    rootfs.remove(Path::new("link")).unwrap();
    step.scan().unwrap();
    step.commit(DiffId(Sha256::of(name.as_bytes()))).unwrap();
}

#[test]
fn stages_with_one_base_unpack_it_once_and_do_not_see_each_other() {
    in_each_way(|trees, work| {
        let (blobs, refs) = Blobs::layers(&base());
        if !can_unpack(trees, &blobs, &refs) {
            return;
        }
        assert!(trees.make_room());
        let source = Counted(blobs, AtomicUsize::new(0));
        let fresh = {
            let tree = trees.checkout(&refs, &source, &Cancel::default()).unwrap();
            describe_fully(&tree.rootfs().unwrap())
        };
        assert!(trees.make_room());
        source.1.store(0, Ordering::SeqCst);
        const STAGES: usize = 5;
        let expected: Vec<_> = (0..STAGES).map(|_| trees.expect(&refs)).collect();
        let all_are_there = std::sync::Barrier::new(STAGES);
        std::thread::scope(|scope| {
            for (number, own) in expected.into_iter().enumerate() {
                let (refs, source, fresh, all_are_there) = (&refs, &source, &fresh, &all_are_there);
                scope.spawn(move || {
                    let mut tree = trees.checkout_as(own, refs, source, &Cancel::default()).unwrap();
                    assert_eq!(&describe_fully(&tree.rootfs().unwrap()), fresh);
                    all_are_there.wait();
                    change(&mut tree, number);
                    all_are_there.wait();
                    let rootfs = tree.rootfs().unwrap();
                    assert_eq!(rootfs.read_small(Path::new("note"), 100).unwrap(), format!("of-{number}").as_bytes());
                    assert!(
                        (0..STAGES).all(|other| {
                            (other == number) == rootfs.lstat(Path::new(&format!("of-{other}"))).is_ok()
                        })
                    );
                });
            }
        });
        assert_eq!(source.1.load(Ordering::SeqCst), refs.len(), "the base is unpacked once");
        // The last one took what the others copied.
        assert_eq!(std::fs::read_dir(work.join("trees/plain")).unwrap().count(), STAGES);
        assert_nothing_left(work);
    });
}

#[test]
fn one_user_takes_the_tree_and_several_leave_it() {
    let dir = tempfile::tempdir().unwrap();
    let trees = Trees::open(dir.path(), Some(TreeMode::Directory), Ownership::Recorded).unwrap();
    let (blobs, refs) = Blobs::layers(&base());
    let kept = || std::fs::read_dir(dir.path().join("trees/plain")).unwrap().count();
    let alone = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
    assert_eq!(kept(), 0);
    drop(alone);
    assert_eq!(kept(), 1);
    let other = trees.expect(&refs);
    let one = trees.checkout(&refs, &Blobs::default(), &Cancel::default()).unwrap();
    assert_eq!(kept(), 1);
    // What somebody will begin with is also the beginning of a higher stack.
    let (more, above) = Blobs::layers(&[vec![file("above", "a")]]);
    let higher = [refs.clone(), above].concat();
    let two = trees.checkout(&higher, &more, &Cancel::default()).unwrap();
    assert_eq!(two.rootfs().unwrap().read_small(Path::new("above"), 9).unwrap(), b"a");
    assert_eq!(kept(), 1);
    drop(other);
    let three = trees.checkout(&refs, &Blobs::default(), &Cancel::default()).unwrap();
    assert_eq!(kept(), 0);
    drop((one, two, three));
    assert_nothing_left(dir.path());
}

#[test]
fn what_is_copied_is_neither_taken_nor_removed() {
    let dir = tempfile::tempdir().unwrap();
    let trees = Trees::open(dir.path(), Some(TreeMode::Directory), Ownership::Recorded).unwrap();
    let (blobs, refs) = Blobs::layers(&base());
    let tree = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
    let chain = tree.chain().unwrap();
    drop(tree);
    // As another process does while it copies.
    let other = TreesDir::open(dir.path()).unwrap();
    let place = other.plain(chain);
    let lease = other.lend(&place).unwrap().expect("it is there");
    assert!(!trees.make_room());
    let copied = trees.checkout(&refs, &Blobs::default(), &Cancel::default()).unwrap();
    assert!(place.exists());
    drop(lease);
    let taken = trees.checkout(&refs, &Blobs::default(), &Cancel::default()).unwrap();
    assert!(!place.exists());
    assert_eq!(describe_fully(&taken.rootfs().unwrap()), describe_fully(&copied.rootfs().unwrap()));
    assert!(other.lend(&place).unwrap().is_none());
}

#[test]
fn a_copy_that_ends_early_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let trees = Trees::open(dir.path(), Some(TreeMode::Directory), Ownership::Recorded).unwrap();
    let (blobs, refs) = Blobs::layers(&base());
    drop(trees.checkout(&refs, &blobs, &Cancel::default()).unwrap());
    let other = trees.expect(&refs);
    let cancel = Cancel::default();
    cancel.cancel();
    assert!(matches!(trees.checkout(&refs, &Blobs::default(), &cancel), Err(TreeError::Cancelled)));
    assert_nothing_left(dir.path());
    // Of what is on the disk something cannot be copied: a path is named, and the tree is as it was.
    trees.account(Disk::limited(1000, 0));
    let error = trees.checkout(&refs, &Blobs::default(), &Cancel::default()).unwrap_err();
    assert!(matches!(error, TreeError::Io { action: "copy", .. }), "{error:?}");
    assert_nothing_left(dir.path());
    drop(other);
    let found = trees.checkout(&refs, &Blobs::default(), &Cancel::default()).unwrap();
    assert_eq!(found.rootfs().unwrap().lstat(Path::new("big")).unwrap().size, 300_000);
}

#[test]
fn deep_and_wide_trees_are_copied() {
    let work = tempfile::tempdir().unwrap();
    let trees = Trees::open(work.path(), Some(TreeMode::Directory), Ownership::Recorded).unwrap();
    let deep: Vec<String> =
        (1..40).map(|levels| vec!["a-name-of-more-than-100-bytes".repeat(4); levels].join("/")).collect();
    let mut entries: Vec<Entry> = deep.iter().map(|path| dir(path).mtime(3)).collect();
    entries.push(file(&format!("{}/end", deep[deep.len() - 1]), "deep"));
    entries.extend((0..3000).map(|number| file(&format!("wide/{number}"), "w").mtime(number)));
    let (blobs, refs) = Blobs::layers(&[entries]);
    drop(trees.checkout(&refs, &blobs, &Cancel::default()).unwrap());
    let _other = trees.expect(&refs);
    let copied = trees.checkout(&refs, &Blobs::default(), &Cancel::default()).unwrap();
    let rootfs = copied.rootfs().unwrap();
    let end = Path::new(&deep[deep.len() - 1]).join("end");
    assert_eq!(rootfs.read_small(&end, 9).unwrap(), b"deep");
    assert_eq!(rootfs.read_dir(Path::new("wide")).unwrap().len(), 3000);
    assert_eq!(rootfs.lstat(Path::new("wide/77")).unwrap().mtime, (77, 0));
}

/// Content, metadata and inode of everything below a directory, as the disk has it.
fn on_disk(top: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = Vec::new();
    let mut pending = vec![top.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let mut line = format!("{} {:o} {} ", path.display(), metadata.mode(), metadata.ino());
        line += &format!("{}.{} ", metadata.mtime(), metadata.mtime_nsec());
        if metadata.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if metadata.is_file() {
            // What cannot be read without privileges cannot be compared without them.
            line += &std::fs::read(&path).map_or_else(|error| error.to_string(), |bytes| Sha256::of(&bytes).to_hex());
        }
        found.push(line);
    }
    found.sort();
    found
}

#[test]
fn files_of_a_base_are_borrowed_until_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let trees = Trees::open(dir.path(), Some(TreeMode::Directory), Ownership::Recorded).unwrap();
    trees.share_bases(true);
    let (blobs, refs) = Blobs::layers(&base());
    let unpacked = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
    let expected = describe_fully(&unpacked.rootfs().unwrap());
    drop(unpacked);
    let count = |kind: &str| std::fs::read_dir(dir.path().join("trees").join(kind)).unwrap().count();
    assert_eq!((count("plain"), count("bases"), count("linked")), (1, 0, 0));

    let mut others = vec![trees.expect(&refs), trees.expect(&refs)];
    let mut one = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
    if count("bases") == 0 {
        eprintln!("skipped: the file system shares blocks");
        return;
    }
    assert_eq!((count("plain"), count("bases"), count("linked")), (0, 1, 0));
    let before = on_disk(&dir.path().join("trees/bases"));
    assert_eq!(describe_fully(&one.rootfs().unwrap()), expected);
    let mut two = trees.checkout_as(others.remove(0), &refs, &Blobs::default(), &Cancel::default()).unwrap();
    let three = trees.copy(&one, &[], &blobs, &Cancel::default()).unwrap().expect("a directory");
    let size = |tree: &WorkTree, path: &str| {
        let State::Directory(plain) = &tree.state else { panic!("a directory") };
        let rootfs = plain.rootfs().unwrap();
        let metadata = rootfs.lstat(Path::new(path)).unwrap();
        assert_eq!(metadata.links, if path == "d/f" { 3 } else { 1 }, "{path}");
        metadata.inode
    };
    for path in ["big", "note", "able", "d/e/read-only"] {
        assert_eq!(size(&one, path), size(&two, path), "{path}");
        assert_eq!(size(&one, path), size(&three, path), "{path}");
    }
    assert_ne!(size(&one, "d/f"), size(&two, "d/f"));

    // Every way in which the builder changes files.
    let step = one.begin().unwrap();
    let rootfs = step.rootfs();
    let around = rootfs.lstat(Path::new("d")).unwrap();
    std::io::Write::write_all(&mut rootfs.overwrite(Path::new("big")).unwrap(), b"other").unwrap();
    let attributes = Attributes { mtime: Some((1, 2)), mode: Some(0o4777), ..Attributes::default() };
    rootfs.set_attributes(Path::new("note"), &attributes).unwrap();
    rootfs.hard_link(Path::new("d/e/read-only"), Path::new("second")).unwrap();
    rootfs.set_attributes(Path::new("d/g"), &Attributes { owner: Some((8, 9)), ..Attributes::default() }).unwrap();
    rootfs.create(Path::new("able"), NewFile::File(&mut &b"new"[..]), &Attributes::default()).unwrap();
    assert_eq!(rootfs.lstat(Path::new("d")).unwrap().mtime, around.mtime);
    let names = |path: &str| rootfs.lstat(Path::new(path)).unwrap().links;
    assert_eq!((names("second"), names("note"), names("d/e/read-only")), (2, 1, 2));
    assert_eq!(rootfs.lstat(Path::new("d/e/read-only")).unwrap().mode, 0o400);
    assert_eq!(rootfs.lstat(Path::new("note")).unwrap().mode, 0o4777);
    assert_eq!(rootfs.xattrs(Path::new("note")).unwrap(), [("user.note".into(), b"v\0w".to_vec())]);
    step.scan().unwrap();
    step.commit(DiffId(Sha256::of(b"changed"))).unwrap();
    assert_eq!(describe_fully(&two.rootfs().unwrap()), expected);
    assert_eq!(describe_fully(&three.rootfs().unwrap()), expected);
    // That others come and go is no change of a tree.
    let step = two.begin().unwrap();
    drop((one, three));
    assert_eq!(step.before().unwrap().difference(&step.scan().unwrap()).unwrap(), None);
    drop(step);
    drop(two);
    assert_eq!(count("linked"), 2, "one was changed, one is as its layers say, one was given up");
    assert_eq!(on_disk(&dir.path().join("trees/bases")), before);

    // What borrows is found by whoever may borrow, and by nobody else.
    let chain = [refs.clone(), vec![LayerRef { diff_id: DiffId(Sha256::of(b"changed")), ..refs[0].clone() }]].concat();
    let plain = Trees::open(dir.path(), Some(TreeMode::Directory), Ownership::Recorded).unwrap();
    assert!(!plain.has(&chain) && trees.has(&chain));
    assert!(plain.checkout(&chain, &blobs, &Cancel::default()).is_err());
    let again = trees.checkout(&chain, &Blobs::default(), &Cancel::default()).unwrap();
    assert_eq!(again.rootfs().unwrap().read_small(Path::new("big"), 9).unwrap(), b"other");
    assert_eq!(again.rootfs().unwrap().lstat(Path::new("second")).unwrap().links, 2);
    drop((again, others));
    // The base is room, too.
    while trees.make_room() {}
    assert_eq!((count("plain"), count("bases"), count("linked")), (0, 0, 0));
    assert_nothing_left(dir.path());
}

#[test]
fn what_a_stage_begins_with_is_kept_where_copies_are_cheap() {
    for sharing in [Sharing::Blocks, Sharing::Names] {
        let dir = tempfile::tempdir().unwrap();
        let trees = Trees::open(dir.path(), Some(TreeMode::Directory), Ownership::Recorded).unwrap();
        let Kind::Directory(plains) = &trees.kind else { panic!("directories were asked for") };
        // A file system that does not share blocks copies them.
        plains.share(sharing);
        let (blobs, base_refs) = Blobs::layers(&base());
        let (more, above) = Blobs::layers(&[vec![file("d/g", "third"), file("above", "a")]]);
        let source = Counted(blobs, AtomicUsize::new(0));
        let begin = |refs: &[LayerRef], source: &dyn LayerSource| {
            trees.checkout_as(trees.expect(&base_refs), refs, source, &Cancel::default()).unwrap()
        };
        let count = |kind: &str| std::fs::read_dir(dir.path().join("trees").join(kind)).unwrap().count();

        let mut tree = begin(&base_refs, &source);
        assert_eq!((count("bases"), source.1.load(Ordering::SeqCst)), (1, base_refs.len()), "{sharing:?}");
        change(&mut tree, 1);
        drop(tree);
        // Whoever needs it again finds it, though the tree itself went on.
        let refs = [base_refs.clone(), above].concat();
        let mut tree = begin(&refs, &more);
        assert!(trees.has(&base_refs), "{sharing:?}");
        let step = tree.begin().unwrap();
        let read = |path: &str| step.rootfs().read_small(Path::new(path), 9).unwrap();
        assert_eq!((read("note"), read("d/g"), read("above")), (b"n".to_vec(), b"third".to_vec(), b"a".to_vec()));

        // What files were is told without a layer of the base.
        let unchanged = step.unchanged(&refs).unwrap().expect("it is kept");
        let wanted = ["note", "d/g", "able", "link", "d/h", "with\nline and ", "d"].map(std::path::PathBuf::from);
        let recall = |unchanged: Option<&Unchanged>, source: &dyn LayerSource| {
            let recall = crate::rootfs::Recall { layers: &refs, source, cancel: &Cancel::default() };
            recall.files(wanted.clone().into(), step.before().unwrap(), unchanged, None).unwrap()
        };
        let (all, all_refs) =
            Blobs::layers(&[base().to_vec(), vec![vec![file("d/g", "third"), file("above", "a")]]].concat());
        assert_eq!(all_refs, refs);
        let told = recall(Some(&unchanged), &more);
        assert_eq!(told, recall(None, &all), "{sharing:?}");
        assert_eq!(told.len(), 5, "{told:?}");
        drop((unchanged, step));
        drop(tree);

        // It makes room as everything does, and then the layers are read again.
        while trees.make_room() {}
        assert_eq!(count("bases"), 0);
        source.1.store(0, Ordering::SeqCst);
        drop(begin(&base_refs, &source));
        assert_eq!(source.1.load(Ordering::SeqCst), base_refs.len());
        assert_nothing_left(dir.path());
    }
}
