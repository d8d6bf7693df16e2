//! A tree from indexes against the same tree on disk. That it is the same for every stack of layers is tested with the
//! trees themselves.

use std::path::Path;

use crate::cancel::Cancel;
use crate::rootfs::test_layers::*;
use crate::rootfs::{FileKind, Ownership, TreeMode, Trees};

fn trees(dir: &Path) -> Trees {
    Trees::open(dir, Some(TreeMode::Directory), Ownership::Real).unwrap()
}

#[test]
fn an_index_is_made_once_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let layers = [vec![dir_("etc"), file("etc/passwd", "root:x:0:0::/:\n"), file("f", "data")]];
    let (blobs, refs) = Blobs::layers(&layers);
    let tree = trees(dir.path()).index(&refs, &blobs, &Cancel::default()).unwrap().unwrap();
    let passwd = tree.get(Path::new("/etc/passwd")).unwrap();
    assert_eq!(passwd.content(), Some(&b"root:x:0:0::/:\n"[..]));
    assert_eq!(tree.get(Path::new("f")).unwrap().content(), None);
    assert_eq!(tree.get(Path::new("f")).unwrap().origin(), Some((0, 2)));
    // Nothing is left to read the layers from.
    let again = trees(dir.path()).index(&refs, &Blobs::default(), &Cancel::default()).unwrap().unwrap();
    assert_eq!(describe_index_fully(&again), describe_index_fully(&tree));
    assert!(std::fs::read_dir(dir.path().join("trees/plain")).unwrap().next().is_none());
}

#[test]
fn a_damaged_index_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (blobs, refs) = Blobs::layers(&[vec![file("f", "data")]]);
    let place = dir.path().join("trees/indexes").join(refs[0].diff_id.to_hex());
    let whole = {
        trees(dir.path()).index(&refs, &blobs, &Cancel::default()).unwrap().unwrap();
        std::fs::read(&place).unwrap()
    };
    for damaged in [&whole[..whole.len() / 2], &whole[..0], b"slipway index 0\n"] {
        std::fs::write(&place, damaged).unwrap();
        assert!(trees(dir.path()).index(&refs, &blobs, &Cancel::default()).unwrap().is_none());
        assert!(trees(dir.path()).index(&refs, &blobs, &Cancel::default()).unwrap().is_some());
        assert_eq!(std::fs::read(&place).unwrap(), whole);
    }
}

#[test]
fn unpacking_makes_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let (blobs, refs) = Blobs::layers(&[vec![dir_("d"), file("d/f", "data")], vec![symlink("l", "d")]]);
    let trees = trees(dir.path());
    drop(trees.checkout(&refs, &blobs, &Cancel::default()).unwrap());
    let tree = trees.index(&refs, &Blobs::default(), &Cancel::default()).unwrap().unwrap();
    assert_eq!(tree.get(Path::new("l")).unwrap().metadata.kind, FileKind::Symlink);
    assert_eq!(tree.entries(), 3);
}

fn dir_(name: &str) -> Entry {
    super::super::test_layers::dir(name)
}
