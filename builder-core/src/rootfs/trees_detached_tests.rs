//! What a step left, while later steps change the tree.

use std::io::Write as _;

use super::tests::assert_nothing_left;
use super::*;
use crate::oci::Sha256;
use crate::rootfs::plain::Sharing;
use crate::rootfs::test_layers::*;
use crate::rootfs::{Attributes, Held, NewFile};
use crate::snapshot::{self, Change, Changes};

/// Made by a first step, beside a directory of the base.
fn first_step(rootfs: &Rootfs) {
    let plain = Attributes::default();
    let put = |path: &str, data: &str, attributes: &Attributes| {
        rootfs.create(Path::new(path), NewFile::File(&mut data.as_bytes()), attributes).unwrap();
    };
    put("big", &"0123456789".repeat(10_000), &plain);
    put("d/appended", "first", &Attributes { mode: Some(0o4750), owner: Some((3, 4)), ..plain.clone() });
    put("d/removed", "first", &plain);
    put("d/moved", "first", &plain);
    put("d/untouched", "first", &plain);
    put("empty", "", &plain);
    let value = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    put("able", "first", &Attributes { xattrs: vec![("security.capability".into(), value)], ..plain.clone() });
    put("one", "first", &plain);
    rootfs.hard_link(Path::new("one"), Path::new("two")).unwrap();
    rootfs.create(Path::new("link"), NewFile::Symlink(Path::new("d/appended")), &plain).unwrap();
    rootfs.create(Path::new("pipe"), NewFile::Fifo, &plain).unwrap();
}

/// Changes it in the ways that a later step has.
fn second_step(rootfs: &Rootfs) {
    rootfs.overwrite(Path::new("big")).unwrap().write_all(b"second").unwrap();
    rootfs.overwrite(Path::new("d/appended")).unwrap().write_all(b"second").unwrap();
    rootfs.overwrite(Path::new("two")).unwrap().write_all(b"second").unwrap();
    rootfs.overwrite(Path::new("empty")).unwrap().write_all(b"second").unwrap();
    rootfs.remove(Path::new("d/removed")).unwrap();
    rootfs.set_attributes(Path::new("able"), &Attributes { owner: Some((5, 6)), ..Attributes::default() }).unwrap();
    rootfs.create(Path::new("link"), NewFile::Symlink(Path::new("elsewhere")), &Attributes::default()).unwrap();
    let moved = rootfs.open_place(Path::new("d"), rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    rustix::fs::renameat(&moved, "moved", &moved, "there").unwrap();
}

fn held(changes: &Changes) -> impl Iterator<Item = io::Result<Held>> {
    changes.iter().filter_map(|change| match change.unwrap() {
        Change::Entry { path, metadata, link_to } => Some(Ok(Held { path, metadata, link_to })),
        Change::Removed { .. } => None,
    })
}

fn paths(changes: &Changes) -> Vec<String> {
    changes.iter().map(|change| change.unwrap().path().display().to_string()).collect()
}

/// What a layer of `changes` has, packed from `tree`.
fn packed(changes: &Changes, tree: &Rootfs) -> Vec<u8> {
    let mut tar = crate::layer::tar::TarWriter::new(
        crate::layer::tar::WriteSink::new(Vec::new()),
        crate::layer::tar::Times::Keep,
    );
    changes.iter().for_each(|change| tar.change(&change.unwrap(), tree).unwrap());
    tar.finish().unwrap().finish().unwrap()
}

#[test]
fn a_layer_is_what_its_step_left_whatever_comes_after_it() {
    let base = [vec![dir("d"), file("d/base", "b"), file("lent", "l")]];
    for (ownership, sharing) in [
        (Ownership::Recorded, Sharing::Names),
        (Ownership::Recorded, Sharing::Nothing),
        (Ownership::Real, Sharing::Blocks),
        (Ownership::Real, Sharing::Nothing),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let trees = Trees::open(dir.path(), Some(TreeMode::Directory), ownership).unwrap();
        let Kind::Directory(plains) = &trees.kind else { panic!("directories were asked for") };
        plains.share(sharing);
        let (blobs, refs) = Blobs::layers(&base);
        let expected = trees.expect(&refs);
        let Ok(mut tree) = trees.checkout_as(expected, &refs, &blobs, &Cancel::default()) else {
            // Owners cannot be made real here.
            assert_eq!(ownership, Ownership::Real);
            continue;
        };
        let mut step = tree.begin().unwrap();
        step.prepare_command(&Cancel::default()).unwrap();
        first_step(step.rootfs());
        // A base's own file is changed by nobody, wherever it is.
        let root = step.rootfs().root_fd();
        rustix::fs::renameat(root, "lent", root, "renamed").unwrap();
        let first = snapshot::changes(&step, None).unwrap();
        let expected = packed(&first, step.rootfs());
        let inode = |rootfs: &Rootfs, path: &str| rootfs.lstat(Path::new(path)).unwrap().inode;
        let was = inode(step.rootfs(), "big");
        let detached = step.detach(held(&first), &Cancel::default()).unwrap();
        assert_eq!(inode(detached.rootfs(), "big") == was, sharing == Sharing::Names, "{sharing:?}");
        assert_eq!(packed(&first, detached.rootfs()), expected, "{ownership:?} {sharing:?}");
        assert!(tree.chain() == ChainId::of([refs[0].diff_id]), "it has no name yet");

        let mut step = tree.begin().unwrap();
        step.prepare_command(&Cancel::default()).unwrap();
        assert_eq!(step.before().unwrap().difference(&step.scan().unwrap()).unwrap(), None, "{sharing:?}");
        second_step(step.rootfs());
        let second = snapshot::changes(&step, None).unwrap();
        let changed = ["able", "big", "d", "d/appended", "d/moved", "d/removed", "d/there", "empty", "link", "two"];
        assert_eq!(paths(&second), changed, "{ownership:?} {sharing:?}");
        assert_eq!(packed(&first, detached.rootfs()), expected, "{ownership:?} {sharing:?}");
        let expected_second = packed(&second, step.rootfs());
        // A second layer is made beside the first one.
        let above = step.detach(held(&second), &Cancel::default()).unwrap();
        let first_named = detached.packed();
        assert_eq!(packed(&second, above.rootfs()), expected_second, "{ownership:?} {sharing:?}");

        // Nothing was changed by anybody's going, neither while the other one is there nor later.
        let mut step = tree.begin().unwrap();
        step.prepare_command(&Cancel::default()).unwrap();
        assert_eq!(paths(&snapshot::changes(&step, None).unwrap()), [""; 0], "{sharing:?}");
        let third = step.detach(std::iter::empty(), &Cancel::default()).unwrap().packed();
        let second_named = above.packed();
        let step = tree.begin().unwrap();
        assert_eq!(step.before().unwrap().difference(&step.rootfs().list().unwrap()).unwrap(), None, "{sharing:?}");
        // What was given back is the tree's own again.
        let inode_now = inode(step.rootfs(), "d/untouched");
        step.rootfs().overwrite(Path::new("d/untouched")).unwrap().write_all(b"fourth").unwrap();
        assert_eq!(inode(step.rootfs(), "d/untouched"), inode_now, "{sharing:?}");
        let fourth = snapshot::changes(&step, None).unwrap();
        assert_eq!(paths(&fourth), ["d", "d/untouched"], "{sharing:?}");

        let mut chain = tree_chain(&refs);
        for (named, text) in [(first_named, "first"), (second_named, "second"), (third, "third")] {
            chain = ChainId::extend(Some(chain), DiffId(Sha256::of(text.as_bytes())));
            named.name(chain).unwrap();
        }
        step.commit(DiffId(Sha256::of(b"fourth"))).unwrap();
        chain = ChainId::extend(Some(chain), DiffId(Sha256::of(b"fourth")));
        assert_eq!(tree.chain(), Some(chain));
        drop(tree);
        assert!(plains.has(chain), "{sharing:?}");
        assert_nothing_left(dir.path());
    }
}

fn tree_chain(refs: &[LayerRef]) -> ChainId {
    ChainId::of(refs.iter().map(|layer| layer.diff_id)).expect("there are layers")
}

/// A tree with a step whose layer came to nothing is nobody's.
#[test]
fn a_tree_without_a_name_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let trees = Trees::open(dir.path(), Some(TreeMode::Directory), Ownership::Recorded).unwrap();
    let (blobs, refs) = Blobs::layers(&[vec![file("f", "f")]]);
    let mut tree = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
    let step = tree.begin().unwrap();
    step.rootfs().create(Path::new("new"), NewFile::File(&mut &b"new"[..]), &Attributes::default()).unwrap();
    let changes = snapshot::changes(&step, None).unwrap();
    let detached = step.detach(held(&changes), &Cancel::default()).unwrap();
    let step = tree.begin().unwrap();
    assert!(matches!(step.commit(DiffId(Sha256::of(b"above"))), Err(TreeError::Discarded)));
    drop(tree);
    // Whoever packs it can still do so.
    assert_eq!(detached.rootfs().read_small(Path::new("new"), 9).unwrap(), b"new");
    drop(detached);
    assert!(!trees.has(&refs));
    assert_nothing_left(dir.path());
}

#[test]
fn what_would_take_much_room_is_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let trees = Trees::open(dir.path(), Some(TreeMode::Directory), Ownership::Recorded).unwrap();
    trees.account(crate::disk::Disk::limited(16 << 20, 0));
    let Kind::Directory(plains) = &trees.kind else { panic!("directories were asked for") };
    plains.share(Sharing::Nothing);
    let mut tree = trees.checkout(&[], &Blobs::default(), &Cancel::default()).unwrap();
    let step = tree.begin().unwrap();
    let of = |bytes| crate::rootfs::Holding { files: 1, bytes, linked_bytes: 0 };
    assert!(step.can_detach(of(1 << 20), true));
    assert!(!step.can_detach(of((1 << 20) + 1), true), "a sixteenth of what may be taken");
    assert!(!step.can_detach(of(1 << 20), false), "no command follows");
}
