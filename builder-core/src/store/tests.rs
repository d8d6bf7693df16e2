use std::io::{Read as _, Write as _};
use std::time::Duration;

use super::*;
use crate::oci::MediaType;

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .expect("directory is there")
        .map(|entry| entry.expect("entry can be read").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn open() -> (TempDir, Store) {
    let work = TempDir::new().expect("a temporary directory");
    let store = Store::open(work.path()).expect("a new store");
    (work, store)
}

#[test]
fn what_is_written_is_found_by_its_digest() {
    let (_work, store) = open();
    let mut writer = store.writer().expect("a file");
    writer.write_all(b"ab").and_then(|()| writer.write_all(b"c")).expect("written");
    let abc = BlobDigest(Sha256::of(b"abc"));
    assert_eq!(store.size(abc), None, "visible before it was published");
    assert_eq!(writer.publish(Some(abc)).expect("published"), (abc, 3));
    let mut text = String::new();
    store.blob(abc).expect("opens").read_to_string(&mut text).expect("reads");
    assert_eq!(text, "abc");
    assert!(store.contains(&Descriptor::new(MediaType::OciLayer, abc, 3)));
    assert!(!store.contains(&Descriptor::new(MediaType::OciLayer, abc, 4)));
    assert_eq!(store.put(b"abc").expect("is there"), abc);
    assert_eq!(store.list().expect("lists"), [(abc, 3)]);
    store.remove(abc).and_then(|()| store.remove(abc)).expect("removed twice");
    assert!(matches!(store.blob(abc), Err(StoreError::Missing { .. })));
}

#[test]
fn a_wrong_or_dropped_blob_leaves_nothing() {
    let (work, store) = open();
    let promised = BlobDigest(Sha256::of(b"abc"));
    let mut writer = store.writer().expect("a file");
    writer.write_all(b"abd").expect("written");
    match writer.publish(Some(promised)) {
        Err(StoreError::WrongDigest { expected, bytes: 3, .. }) => assert_eq!(expected, promised),
        other => panic!("{other:?}"),
    }
    let mut writer = store.writer().expect("a file");
    writer.write_all(&vec![7; 3 * SPILL_BUFFER_BYTES]).expect("written");
    assert_eq!(names(&store.temp_dir()).len(), 1);
    drop(writer);
    assert!(names(&store.temp_dir()).is_empty());
    assert!(names(&work.path().join("blobs/sha256")).is_empty());
}

#[test]
fn leftovers_of_the_dead_go_and_those_of_the_living_stay() {
    let (work, store) = open();
    let dead = work.path().join("tmp/dead");
    fs::create_dir_all(dead.join("deep")).expect("made");
    let writer = store.writer().expect("a file");
    let second = Store::open(work.path()).expect("a second user");
    assert!(!dead.exists());
    assert_eq!(names(&store.temp_dir()).len(), 1, "the first user's file was removed");
    assert_ne!(store.temp_dir(), second.temp_dir());
    writer.publish(None).expect("published");
    drop(second);
    drop(store);
    assert_eq!(names(&work.path().join("tmp")), ["lock"]);
}

#[test]
fn an_empty_blob_is_whole_only_if_it_should_be_empty() {
    let (_work, store) = open();
    let torn = BlobDigest(Sha256::of(b"was not synced"));
    fs::write(store.path(torn), b"").expect("written");
    assert_eq!(store.size(torn), None);
    assert_eq!(store.put(b"was not synced").map(|d| store.size(d)).expect("written again"), Some(14));
    let empty = store.put(b"").expect("written");
    assert_eq!(store.size(empty), Some(0));
}

#[test]
fn a_full_disk_keeps_its_kind_through_io_error() {
    let full = io::Error::from(io::ErrorKind::StorageFull);
    let error: io::Error = StoreError::io("write", Path::new("/x"), full).into();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(
        matches!(StoreError::from_write(error, Path::new("/y")), StoreError::NoSpace { path, .. } if path == Path::new("/x"))
    );
}

#[test]
fn a_blob_can_be_read_while_it_is_written() {
    let work = tempfile::tempdir().expect("a directory");
    let store = Store::open(work.path()).expect("a store");
    let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let read = |growing: &Growing, offset: usize, count: usize| {
        let mut found = vec![0; count];
        growing.read_from(offset as u64).read_exact(&mut found).expect("what was announced");
        assert!(found == bytes[offset..offset + count]);
    };
    let mut writer = store.writer().expect("a writer");
    let growing = writer.follow().expect("followed");
    let moment = Duration::from_millis(1);
    assert_eq!(growing.wait(1, moment), Growth::Bytes(0));
    writer.write_all(&bytes[..3_000_000]).expect("written");
    let Growth::Bytes(so_far) = growing.wait(2_000_000, moment) else { panic!("it is not whole yet") };
    assert!((2_000_000..=3_000_000).contains(&so_far), "{so_far}");
    read(&growing, 5, usize::try_from(so_far).expect("small") - 5);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| growing.wait(u64::MAX, Duration::from_secs(60)));
        writer.write_all(&bytes[3_000_000..]).expect("written");
        let (digest, _) = writer.publish(None).expect("published");
        assert_eq!(waiting.join().expect("no panic"), Growth::Whole(4_000_000));
        store.remove(digest).expect("removed");
    });
    // What is removed stays for those who read it.
    read(&growing, 0, 4_000_000);

    let mut writer = store.writer().expect("a writer");
    let growing = writer.follow().expect("followed");
    drop(writer);
    assert_eq!(growing.wait(1, moment), Growth::Lost);
}
