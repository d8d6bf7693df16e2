use std::sync::Arc;

use super::*;
use crate::rootfs::{FileKind, Metadata};

fn file(path: &str, size: u64) -> (PathBuf, Found) {
    let metadata = Metadata {
        kind: FileKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        device: (0, 0),
        size,
        mtime: (-5, 7),
        inode: size + 9,
        links: 1,
    };
    (path.into(), Found { metadata, ctime: (3, 4) })
}

fn hash(text: &str) -> FileHash {
    FileHash { data: blake3::hash(text.as_bytes()), capability: text.ends_with('7').then(|| text.as_bytes().to_vec()) }
}

fn keep(kept: &mut Kept, files: &[(PathBuf, Found)]) {
    let hashes: Vec<_> = files.iter().map(|(path, _)| Some(hash(&path.display().to_string()))).collect();
    kept.keep(files, &hashes, |_| true).unwrap();
}

#[track_caller]
fn check(kept: &mut Kept, files: &[(PathBuf, Found)]) {
    for ((path, _), known) in files.iter().zip(kept.known(files).unwrap()) {
        assert_eq!(known, Some(hash(&path.display().to_string())), "{}", path.display());
    }
}

#[test]
fn what_is_kept_in_any_order_is_found_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let place: Place = Some(Arc::from(dir.path()));
    let path = dir.path().join("kept");
    let mut kept = Kept::open(&path, place.clone());
    let all: Vec<_> = (0..3000).map(|number| file(&format!("d{}/f-{number}", number % 7), number)).collect();
    for files in all.chunks(37).rev() {
        keep(&mut kept, files);
        check(&mut kept, files);
    }
    assert!(kept.runs.len() <= MAX_RUNS);
    check(&mut kept, &all);
    kept.save(&path).unwrap();
    let mut again = Kept::open(&path, place.clone());
    check(&mut again, &all[5..2900]);
    check(&mut again, &[all[2999].clone(), all[0].clone(), all[0].clone()]);
    let changed = [file("d0/f-0", 77), file("e/none", 0)];
    assert_eq!(again.known(&changed).unwrap(), [None, None]);
    // What was read again replaces what was there.
    keep(&mut again, &changed);
    check(&mut again, &changed);
    again.save(&path).unwrap();
    let mut third = Kept::open(&path, place);
    check(&mut third, &changed);
    assert_eq!(third.known(&all[..2]).unwrap(), [None, Some(hash("d1/f-1"))]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_nobody_asks_for_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kept");
    let (old, used) = ([file("old", 1)], [file("used", 1)]);
    let mut first = Kept::open(&path, None);
    keep(&mut first, &old);
    keep(&mut first, &used);
    first.save(&path).unwrap();
    for round in 0..=u64::from(MAX_AGE) {
        let mut kept = Kept::open(&path, None);
        check(&mut kept, &used);
        keep(&mut kept, &[file("other", round)]);
        kept.save(&path).unwrap();
    }
    let mut kept = Kept::open(&path, None);
    assert_eq!(kept.known(&old).unwrap(), [None]);
    check(&mut kept, &used);
}

#[test]
fn damage_counts_as_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kept");
    let files = [file("a", 1), file("b", 2)];
    let mut kept = Kept::open(&path, None);
    keep(&mut kept, &files);
    kept.save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    check(&mut Kept::open(&path, None), &files);
    for cut in 0..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert_eq!(Kept::open(&path, None).known(&files).unwrap(), [None, None], "{cut}");
        let mut bytes = whole.clone();
        bytes[cut] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Kept::open(&path, None).known(&files).unwrap(), [None, None], "{cut}");
    }
}
