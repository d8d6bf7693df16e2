//! The whole line from changes to blob, read back by others.

use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use proptest::prelude::*;

use super::entry::{Entry, EntryKind};
use super::*;
use crate::rootfs::index::Opened;
use crate::rootfs::{FileKind, Metadata};

/// A tree that is a directory of the test.
pub(super) struct Plain(PathBuf);

impl Tree for Plain {
    fn file<'a>(&'a self, path: &Path) -> io::Result<Box<dyn TreeFile + 'a>> {
        Ok(Box::new(PlainFile(self.0.join(path))))
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        fs::read_link(self.0.join(path))
    }

    fn capability(&self, _path: &Path) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

struct PlainFile(PathBuf);

impl TreeFile for PlainFile {
    fn open(&self) -> io::Result<Opened> {
        File::open(&self.0).map(Opened::File)
    }

    fn capability(&self, _file: Option<&File>) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
}

pub(super) struct Fixture {
    work: tempfile::TempDir,
    store: Store,
    pub(super) tree: Plain,
}

pub(super) fn fixture() -> Fixture {
    let work = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(work.path()).expect("a store");
    let tree = Plain(work.path().join("tree"));
    fs::create_dir(&tree.0).expect("a directory");
    Fixture { work, store, tree }
}

impl Fixture {
    pub(super) fn file(&self, name: &str, content: &[u8]) -> Change {
        fs::write(self.tree.0.join(name), content).expect("a file");
        self.listed(name)
    }

    fn listed(&self, name: &str) -> Change {
        let real = fs::symlink_metadata(self.tree.0.join(name)).expect("it exists");
        entry(name, FileKind::File, real.len())
    }

    fn write(&self, changes: &[Change], compression: Compression, threads: usize) -> Result<SealedLayer, LayerError> {
        self.write_blocks(changes, compression, threads, pipeline::BLOCK_BYTES, &Cancel::default())
    }

    fn write_blocks(
        &self,
        changes: &[Change],
        compression: Compression,
        threads: usize,
        block_bytes: usize,
        cancel: &Cancel,
    ) -> Result<SealedLayer, LayerError> {
        let options = LayerOptions { compression, docker_media_types: false, clamp_mtime: None };
        let threads = NonZeroUsize::new(threads).expect("not zero");
        let settings = pipeline::Settings { compression, threads, block_bytes, cancel, progress: &|_| () };
        write_tree(LayerInput::of(changes, &self.tree), self.store.writer()?, &options, &settings)
    }

    fn blob(&self, layer: &SealedLayer) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.store.blob(layer.blob.digest).expect("published").read_to_end(&mut bytes).expect("readable");
        assert_eq!(bytes.len() as u64, layer.blob.size);
        bytes
    }

    /// The tar of a layer, decoded by another library, its hash checked.
    fn tar(&self, layer: &SealedLayer) -> Vec<u8> {
        let blob = self.blob(layer);
        let mut tar = Vec::new();
        match layer.blob.media_type {
            MediaType::OciLayerGzip => {
                // Not the multi-member decoder: the stream has to be a single member.
                let mut decoder = flate2::bufread::GzDecoder::new(blob.as_slice());
                decoder.read_to_end(&mut tar).expect("valid gzip");
                assert!(decoder.into_inner().is_empty(), "one member");
            }
            MediaType::OciLayerZstd => {
                zstd::stream::copy_decode(blob.as_slice(), &mut tar).expect("valid zstd");
            }
            _ => tar = blob,
        }
        assert_eq!(DiffId(crate::oci::Sha256::of(&tar)), layer.diff_id);
        assert_eq!(tar.len() as u64, layer.uncompressed_bytes);
        tar
    }
}

fn metadata(kind: FileKind, size: u64) -> Metadata {
    Metadata {
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        device: (0, 0),
        size,
        mtime: (1_700_000_000, 999),
        inode: 0,
        links: 1,
    }
}

fn entry(name: &str, kind: FileKind, size: u64) -> Change {
    Change::Entry { path: name.into(), metadata: metadata(kind, size), link_to: None }
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

const ALL: [Compression; 3] = [Compression::None, Compression::Gzip { level: 4 }, Compression::Zstd { level: 3 }];

#[test]
fn an_empty_diff_is_1024_zeros() {
    let f = fixture();
    for compression in ALL {
        let layer = f.write(&[], compression, 2).expect("written");
        assert_eq!(
            layer.diff_id.to_string(),
            "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
        );
        assert_eq!(f.tar(&layer), [0; 1024]);
        assert_eq!((layer.entries, layer.uncompressed_bytes), (0, 1024));
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    let f = fixture();
    let text: Vec<u8> = (0..400_000).flat_map(|i| format!("{} line\n", i % 977).into_bytes()).collect();
    let changes = [f.file("a", &text), f.file("b", &noise(2_500_000, 7)), f.file("c", b"small"), f.file("d", b"")];
    for compression in ALL {
        let one = f.write(&changes, compression, 1).expect("written");
        for threads in [2, 3, 8] {
            assert_eq!(f.write(&changes, compression, threads).expect("written"), one, "{compression:?} {threads}");
        }
        let tar = f.tar(&one);
        assert!(tar[512..].starts_with(&text));
        for block_bytes in [512, 4096, 70_000] {
            let small = f.write_blocks(&changes, compression, 4, block_bytes, &Cancel::default()).expect("written");
            assert_eq!(f.tar(&small), tar, "{compression:?} in blocks of {block_bytes}");
        }
    }
}

#[test]
fn commands_accept_the_streams() {
    let f = fixture();
    let changes = [f.file("text", &b"abcdefgh\n".repeat(300_000)), f.file("noise", &noise(1_500_000, 3))];
    for (compression, command) in [(ALL[1], "gzip"), (ALL[2], "zstd")] {
        let layer = f.write(&changes, compression, 2).expect("written");
        match Command::new(command).args(["-t", "-c"]).stdin(f.store.blob(layer.blob.digest).expect("there")).output() {
            Ok(output) => assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln_skipped(command, &error),
        }
    }
}

#[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
fn eprintln_skipped(command: &str, error: &io::Error) {
    eprintln!("skipped: {command} cannot be run: {error}");
}

#[test]
fn a_file_that_changes_is_noticed() {
    let f = fixture();
    for (listed, real) in [(10, 9), (10, 0), (9, 10), (0, 1), (512, 513), (3_000_000, 2_999_999), (70_000, 4_000_000)] {
        fs::write(f.tree.0.join("f"), noise(real, 1)).expect("a file");
        for compression in ALL {
            let result = f.write(&[entry("f", FileKind::File, listed as u64)], compression, 2);
            match result {
                Err(LayerError::Changed { path, expected, actual }) => {
                    assert_eq!((path, expected, actual), ("f".into(), listed as u64, real as u64));
                }
                other => panic!("{listed} listed, {real} there: {other:?}"),
            }
        }
    }
    assert!(matches!(f.write(&[entry("missing", FileKind::File, 1)], ALL[1], 2), Err(LayerError::Read { .. })));
    let left: Vec<_> = walk(f.work.path()).into_iter().filter(|path| !path.starts_with(&f.tree.0)).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(directory).expect("a directory") {
        let path = item.expect("readable").path();
        if path.is_dir() {
            found.extend(walk(&path))
        } else if path.metadata().expect("there").len() > 0 {
            found.push(path)
        }
    }
    found
}

#[test]
fn holes_are_zeros() {
    let f = fixture();
    let file = File::create(f.tree.0.join("sparse")).expect("a file");
    for (size, data) in [
        (3_000_000_u64, vec![]),
        (3_000_001, vec![0]),
        (5 << 20, vec![1 << 20, (5 << 20) - 3]),
        (4 << 20, vec![0, 3 << 20]),
    ] {
        file.set_len(0).expect("truncated");
        file.set_len(size).expect("extended");
        let mut expected = vec![0; size as usize];
        for position in data {
            file.write_all_at(b"end", position).expect("written");
            expected[position as usize..position as usize + 3].copy_from_slice(b"end");
        }
        let layer = f.write(&[f.listed("sparse")], ALL[1], 2).expect("written");
        assert!(f.tar(&layer)[512..][..size as usize] == expected, "{size}");
        for wrong in [size - 1, size + 1, size + 600_000] {
            let result = f.write(&[entry("sparse", FileKind::File, wrong)], ALL[1], 2);
            assert!(matches!(result, Err(LayerError::Changed { .. })), "{wrong}: {result:?}");
        }
    }
}

#[test]
fn cancelling_ends_it() {
    let f = fixture();
    let changes = [f.file("f", &noise(3_000_000, 5))];
    let cancel = Cancel::default();
    cancel.cancel();
    assert!(matches!(f.write_blocks(&changes, ALL[1], 2, 4096, &cancel), Err(LayerError::Cancelled)));

    let cancel = Cancel::default();
    let seen = Mutex::new(0);
    let progress = |done| {
        *seen.lock().expect("no panic") = done;
        if done > 1_000_000 {
            cancel.cancel();
        }
    };
    let options = LayerOptions { compression: ALL[2], docker_media_types: false, clamp_mtime: None };
    let settings = pipeline::Settings {
        compression: ALL[2],
        threads: NonZeroUsize::MIN,
        block_bytes: 4096,
        cancel: &cancel,
        progress: &progress,
    };
    let result = write_tree(LayerInput::of(&changes, &f.tree), f.store.writer().expect("a blob"), &options, &settings);
    assert!(matches!(result, Err(LayerError::Cancelled)), "{result:?}");
    assert!(*seen.lock().expect("no panic") < 1_100_000);
    assert_eq!(f.store.list().expect("readable"), []);
}

#[test]
fn an_existing_tar_is_recompressed() {
    let f = fixture();
    let layer = f.write(&[f.file("f", &noise(3_000_000, 5))], ALL[0], 2).expect("written");
    let options = LayerOptions { compression: ALL[2], docker_media_types: false, clamp_mtime: None };
    let mut tar = f.store.blob(layer.blob.digest).expect("there");
    let again = recompress(&mut tar, &f.store, &options, &Limits::default(), &Cancel::default(), &|_| ());
    let again = again.expect("written");
    assert_eq!((again.diff_id, again.uncompressed_bytes), (layer.diff_id, layer.uncompressed_bytes));
    f.tar(&again);
}

/// The bytes of a header as Go writes it: fields by offset.
#[test]
fn headers_are_those_of_go() {
    let entry = Entry {
        name: b"dir/file",
        kind: EntryKind::File(5),
        mode: 0o4755,
        uid: 1000,
        gid: 50,
        mtime: 1_700_000_000,
        capability: None,
    };
    let mut block = Vec::new();
    entry.encode(&mut block);
    assert_eq!(block.len(), 512);
    for (offset, field) in [
        (0, &b"dir/file\0"[..]),
        (100, b"0004755\0"),
        (108, b"0001750\0"),
        (116, b"0000062\0"),
        (124, b"00000000005\0"),
        (136, b"14524770400\0"),
        (148, b"010716\0 0"),
        (257, b"ustar\x0000\0"),
        (329, b"0000000\x000000000\0"),
    ] {
        assert_eq!(&block[offset..offset + field.len()], field, "at {offset}");
    }

    // A name with a slash in the right place is split, another one needs a record; so does a value without room.
    let long = [b"d/".repeat(60), b"x".repeat(90)].concat();
    let check = |entry: Entry<'_>, blocks: usize, records: &str| {
        let mut out = Vec::new();
        entry.encode(&mut out);
        assert_eq!(out.len(), blocks * 512, "{:?}", entry.kind);
        if blocks > 1 {
            assert_eq!(out[156], b'x');
            let end = out[512..].iter().position(|byte| *byte == 0).unwrap_or(512);
            assert_eq!(String::from_utf8_lossy(&out[512..512 + end]), records);
        }
        out
    };
    let split = check(Entry { name: &long, ..entry.clone() }, 1, "");
    assert!(split[345..].starts_with(&b"d/".repeat(60)[..119]) && split.starts_with(&b"x".repeat(90)));
    let one_name = b"n".repeat(101);
    let text = format!("111 path={}\n", "n".repeat(101));
    check(Entry { name: &one_name, ..entry.clone() }, 3, &text);
    check(Entry { name: b"\xff\xc3\xa9", ..entry.clone() }, 3, "12 path=\u{fffd}é\n");
    check(Entry { uid: 3_000_000, ..entry.clone() }, 3, "15 uid=3000000\n");
    check(Entry { mtime: -1, ..entry.clone() }, 3, "12 mtime=-1\n");
    check(Entry { kind: EntryKind::File(1 << 33), ..entry.clone() }, 3, "19 size=8589934592\n");
    let records = format!("36 SCHILY.xattr.security.capability=x\n{}", "");
    assert_eq!(records.len(), 38);
    check(Entry { capability: Some(b"x"), ..entry.clone() }, 3, &records.replace("36 ", "38 "));
}

/// Reads a tar with the `tar` crate: name, kind, link, mode, owner, time, content.
#[expect(clippy::type_complexity, reason = "one place, compared as a whole")]
fn read_back(tar: &[u8]) -> Vec<(Vec<u8>, u8, Option<Vec<u8>>, u32, u64, u64, Vec<u8>)> {
    let mut archive = ::tar::Archive::new(tar);
    let entries = archive.entries().expect("a tar");
    entries
        .map(|entry| {
            let mut entry = entry.expect("a good entry");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            let header = entry.header();
            (
                entry.path_bytes().into_owned(),
                header.entry_type().as_byte(),
                entry.link_name_bytes().map(|link| link.into_owned()),
                header.mode().expect("octal"),
                header.uid().expect("octal"),
                header.mtime().expect("octal"),
                content,
            )
        })
        .collect()
}

#[test]
fn all_kinds_are_read_back_by_others() {
    let f = fixture();
    let long = "l".repeat(150);
    let deep = format!("{}/{}", "p".repeat(90), "q".repeat(90));
    fs::create_dir_all(f.tree.0.join("p".repeat(90))).expect("a directory");
    symlink("target\u{e9}", f.tree.0.join("link")).expect("a link");
    symlink(&long, f.tree.0.join("long-link")).expect("a link");
    let odd = PathBuf::from(std::ffi::OsString::from_vec(b"odd\xff name ".to_vec()));
    fs::write(f.tree.0.join(&odd), b"odd").expect("a file");
    let with = |name: &Path, kind, device| Change::Entry {
        path: name.to_owned(),
        metadata: Metadata { device, ..metadata(kind, 0) },
        link_to: None,
    };
    let changes = [
        with(Path::new("blk"), FileKind::BlockDevice, (7, 300)),
        with(Path::new("chr"), FileKind::CharDevice, (1, 3)),
        with(Path::new("dir"), FileKind::Directory, (0, 0)),
        Change::Removed { path: "dir/gone".into() },
        with(Path::new("fifo"), FileKind::Fifo, (0, 0)),
        f.file("file", b"content"),
        Change::Entry { path: "hard".into(), metadata: metadata(FileKind::File, 7), link_to: Some("file".into()) },
        with(Path::new("link"), FileKind::Symlink, (0, 0)),
        with(Path::new("long-link"), FileKind::Symlink, (0, 0)),
        f.file(&long, b"long"),
        Change::Entry { path: odd.clone(), metadata: metadata(FileKind::File, 3), link_to: None },
        f.file(&deep, b"deep"),
        with(Path::new("socket"), FileKind::Socket, (0, 0)),
        Change::Removed { path: "top".into() },
    ];
    let layer = f.write(&changes, ALL[0], 2).expect("written");
    assert_eq!(layer.entries, 13);
    let tar = f.tar(&layer);
    let seen: Vec<_> = read_back(&tar).into_iter().map(|e| (e.0, e.1, e.2, e.6)).collect();
    let some = |text: &[u8]| Some(text.to_vec());
    let expected = [
        (b"blk".to_vec(), b'4', None, vec![]),
        (b"chr".to_vec(), b'3', None, vec![]),
        (b"dir/".to_vec(), b'5', None, vec![]),
        (b"dir/.wh.gone".to_vec(), b'0', None, vec![]),
        (b"fifo".to_vec(), b'6', None, vec![]),
        (b"file".to_vec(), b'0', None, b"content".to_vec()),
        (b"hard".to_vec(), b'1', some(b"file"), vec![]),
        (b"link".to_vec(), b'2', some("target\u{e9}".as_bytes()), vec![]),
        (b"long-link".to_vec(), b'2', some(long.as_bytes()), vec![]),
        (long.clone().into_bytes(), b'0', None, b"long".to_vec()),
        (odd.as_os_str().as_bytes().to_vec(), b'0', None, b"odd".to_vec()),
        (deep.clone().into_bytes(), b'0', None, b"deep".to_vec()),
        (b".wh.top".to_vec(), b'0', None, vec![]),
    ];
    assert_eq!(seen, expected);

    let line_end = PathBuf::from(std::ffi::OsString::from_vec(b"new\nline\xff".to_vec()));
    let changes = [&changes[..], &[with(&line_end, FileKind::Directory, (0, 0))]].concat();
    let layer = f.write(&changes, ALL[0], 2).expect("written");
    let python = "import sys,tarfile\nfor m in tarfile.open(fileobj=sys.stdin.buffer, mode='r|', errors='surrogateescape'):\n  sys.stdout.buffer.write(m.name.encode('utf8','surrogateescape')+b'\\0')";
    let names: Vec<u8> = expected
        .iter()
        .map(|e| e.0.strip_suffix(b"/").unwrap_or(&e.0))
        .chain([line_end.as_os_str().as_bytes()])
        .flat_map(|name| [name, b"\0"].concat())
        .collect();
    for (command, args, exact) in
        [("python3", vec!["-c", python], true), ("tar", vec!["-t", "--null", "-f", "-"], false)]
    {
        let input = f.store.blob(layer.blob.digest).expect("there");
        match Command::new(command).args(args).stdin(input).output() {
            Ok(output) => {
                assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
                assert!(!exact || output.stdout == names, "{command}: {:?}", output.stdout.escape_ascii().to_string());
            }
            Err(error) => eprintln_skipped(command, &error),
        }
    }
}

#[test]
fn times_are_clamped() {
    let f = fixture();
    let changes = [f.file("f", b"x"), Change::Removed { path: "gone".into() }];
    for (clamp, time) in [(None, 1_700_000_000), (Some(5), 5), (Some(1_800_000_000), 1_700_000_000)] {
        let options = LayerOptions { compression: ALL[0], docker_media_types: true, clamp_mtime: clamp };
        let cancel = Cancel::default();
        let settings = settings(&options, &Limits::default(), &cancel, &|_| ());
        let layer =
            write_tree(LayerInput::of(&changes, &f.tree), f.store.writer().expect("a blob"), &options, &settings)
                .expect("written");
        assert_eq!(layer.blob.media_type, MediaType::DockerLayer);
        let times: Vec<_> = read_back(&f.blob(&layer)).into_iter().map(|e| e.5).collect();
        assert_eq!(times, [time, 0]);
    }
}

#[test]
fn a_disk_error_is_told() {
    let f = fixture();
    // The store's temporary directory goes away under it.
    let big = f.file("f", &noise(5_000_000, 5));
    fs::remove_dir_all(f.store.temp_dir()).expect("removed");
    assert!(matches!(f.write(&[big], ALL[1], 2), Err(LayerError::Store(_))));
}

/// Not with line ends, at which the `tar` crate wrongly cuts PAX records; Python reads those in the test above.
fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => b'a'..=b'z', 1 => any::<u8>().prop_map(|b| if matches!(b, 0 | b'/' | b'\n') { b'_' } else { b })];
    let part = proptest::collection::vec(byte, 1..120)
        .prop_map(|part| if matches!(part.as_slice(), b"." | b"..") { b"dot".to_vec() } else { part });
    proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join(&b'/'))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn any_entry_is_read_back(
        name in any_name(),
        link in any_name(),
        kind in 0..7_u8,
        mode in 0..=0o7777_u32,
        uid in prop_oneof![0..70_000_u32, any::<u32>()],
        mtime in 0..(1_i64 << 33),
        content in proptest::collection::vec(any::<u8>(), 0..1500),
    ) {
        let entry_kind = match kind {
            0 => EntryKind::File(content.len() as u64),
            1 => EntryKind::HardLink(&link),
            2 => EntryKind::Symlink(&link),
            3 => EntryKind::CharDevice(1, 2),
            4 => EntryKind::BlockDevice(3, 4),
            5 => EntryKind::Directory,
            _ => EntryKind::Fifo,
        };
        let mut sink = tar::WriteSink::new(Vec::new());
        let mut writer = tar::TarWriter::new(&mut sink, tar::Times::Keep);
        let entry = Entry { name: &name, kind: entry_kind, mode, uid, gid: uid, mtime, capability: None };
        if kind == 0 { writer.bytes(&entry, &content) } else { writer.header(&entry) }.expect("in memory");
        writer.finish().expect("in memory");
        let tar = sink.finish().expect("in memory");
        prop_assert_eq!(tar.len() % 512, 0);
        let seen = read_back(&tar);
        prop_assert_eq!(seen.len(), 1);
        let (seen_name, flag, seen_link, seen_mode, seen_uid, seen_mtime, seen_content) = &seen[0];
        let expected_name = if kind == 5 { [&name[..], b"/"].concat() } else { name.clone() };
        prop_assert_eq!(seen_name, &expected_name);
        prop_assert_eq!(*flag, b'0' + kind);
        prop_assert_eq!(seen_link, &matches!(kind, 1 | 2).then(|| link.clone()));
        prop_assert_eq!(*seen_mode, mode);
        // The crate reads the owner from the record only for its own use; what has room is in the header.
        if uid < 1 << 21 {
            prop_assert_eq!(*seen_uid, u64::from(uid));
        }
        prop_assert_eq!(*seen_mtime, mtime as u64);
        prop_assert_eq!(seen_content, if kind == 0 { &content } else { const { &Vec::new() } });
    }
}
