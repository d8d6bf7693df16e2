#![expect(clippy::type_complexity, reason = "tables")]

use proptest::prelude::*;

use super::*;
use crate::rootfs::pax::pax_time;
use crate::rootfs::test_layers::{self, dir, file, hard_link, records, seal, symlink, tar};

/// All entries with the data of each.
fn read(archive: &[u8]) -> Result<Vec<(TarEntry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(archive);
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        reader.read_to_end(&mut data)?;
        found.push((entry, data));
    }
    reader.finish()?;
    Ok(found)
}

#[track_caller]
fn check_problem(archive: &[u8], expected: TarProblem) {
    match read(archive) {
        Err(TarError::Malformed { problem, .. }) => assert_eq!(problem, expected),
        other => panic!("{other:?}, expected {expected:?}"),
    }
}

/// An archive whose first header is changed, and its checksum made right again.
fn patched(entry: &test_layers::Entry, patches: &[(usize, &[u8])]) -> Vec<u8> {
    let mut archive = tar(std::slice::from_ref(entry));
    let header: &mut [u8; 512] = archive.first_chunk_mut().unwrap();
    for (offset, bytes) in patches {
        header[*offset..*offset + bytes.len()].copy_from_slice(bytes);
    }
    seal(header);
    archive
}

fn extended(kind: u8, data: Vec<u8>) -> test_layers::Entry {
    test_layers::Entry { kind, data, ..file("extended", "") }
}

fn pax(records_of: &[(&str, &str)]) -> test_layers::Entry {
    let pairs = records_of.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec()));
    extended(b'x', records(&pairs.collect::<Vec<_>>()))
}

#[test]
fn numbers_in_headers() {
    let cases: &[(&[u8; 12], Option<(i64, u32)>)] = &[
        (b"00000000017\0", Some((15, 0))),
        (b"         17 ", Some((15, 0))),
        (b"\0\0\0\0\0\0\0\0\x00017", Some((15, 0))),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0", Some((0, 0))),
        (b"777777777777", Some((0o777_777_777_777, 0))),
        (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some((256, 0))),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some((-2, 0))),
        (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
        (b"00000000019\0", None),
        (b"-0000000001\0", None),
    ];
    for (field, expected) in cases {
        let found = read(&patched(&file("f", ""), &[(136, *field)]));
        match expected {
            Some(mtime) => assert_eq!(found.unwrap()[0].0.mtime, *mtime, "{}", field.escape_ascii()),
            None => assert!(found.is_err(), "{}", field.escape_ascii()),
        }
    }
    check_problem(&patched(&file("f", ""), &[(108, b"\x80\0\0\x01\0\0\0\0")]), TarProblem::Number("uid"));
    check_problem(&patched(&file("f", ""), &[(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")]), {
        TarProblem::Number("size")
    });
}

#[test]
fn names_of_every_format() {
    let long = "d/".repeat(200);
    let mut gnu = Vec::new();
    extended(b'L', format!("{long}\0ignored").into_bytes()).write(&mut gnu);
    extended(b'K', b"target\0".to_vec()).write(&mut gnu);
    symlink("short", "other").write(&mut gnu);
    let found = read(&gnu).unwrap();
    assert_eq!((found[0].0.name.to_str().unwrap(), found[0].0.link.to_str().unwrap()), (&*long, "target"));
    // POSIX splits names; GNU has times where POSIX has the prefix; star has times behind it.
    let name = |patches: &[(usize, &[u8])]| read(&patched(&file("name", ""), patches)).unwrap()[0].0.name.clone();
    assert_eq!(name(&[(345, b"some/prefix")]), "some/prefix/name");
    assert_eq!(name(&[(257, b"ustar  \0"), (345, b"12345670")]), "name");
    assert_eq!(name(&[(345, b"prefix"), (476, b"12345670"), (508, b"tar\0")]), "prefix/name");
    assert_eq!(name(&[(257, b"\0\0\0\0\0\0\0\0"), (345, b"junk")]), "name");
    let full = [b'n'; 100];
    assert_eq!(name(&[(0, &full)]).len(), 100);
    // PAX wins over the header, GNU over PAX, the last record over those before it; an empty one takes it back.
    let mut archive = Vec::new();
    pax(&[("path", "one"), ("path", "two"), ("linkpath", "gone"), ("linkpath", "")]).write(&mut archive);
    hard_link("header", "kept").write(&mut archive);
    let found = read(&archive).unwrap();
    assert_eq!((found[0].0.name.to_str(), found[0].0.link.to_str()), (Some("two"), Some("kept")));
}

#[test]
fn a_slash_makes_a_directory_of_an_old_file_only() {
    for (kind, expected) in [(b'0', TarKind::File), (0, TarKind::Directory)] {
        let mut archive = Vec::new();
        test_layers::Entry { kind, ..file("d/", "text") }.write(&mut archive);
        file("next", "").write(&mut archive);
        let found = read(&archive).unwrap();
        assert_eq!((found[0].0.kind, found[1].0.name.to_str()), (expected, Some("next")));
    }
}

#[test]
fn pax_records() {
    let entry = file("f", "")
        .pax("uid", b"123456789")
        .pax("mtime", b"1.5")
        .pax("SCHILY.xattr.user.a", b"with\nline ends\n and = signs")
        .pax("SCHILY.xattr.user.a.b", b"")
        .pax("SCHILY.xattr.user.a", b"the last")
        .pax("comment", b"passed over");
    let found = &read(&tar(&[entry])).unwrap()[0].0;
    assert_eq!((found.uid, found.mtime), (123_456_789, (1, 500_000_000)));
    assert_eq!(found.xattrs, [("user.a.b".into(), b"".to_vec()), ("user.a".into(), b"the last".to_vec())]);
    for (time, expected) in [
        ("0", Some((0, 0))),
        ("-1", Some((-1, 0))),
        ("-0.25", Some((-1, 750_000_000))),
        ("-1.000000001", Some((-2, 999_999_999))),
        ("5.1234567899", Some((5, 123_456_789))),
        ("5.", Some((5, 0))),
        ("5.x", None),
        ("x", None),
        (".5", None),
        ("99999999999999999999", None),
    ] {
        assert_eq!(pax_time(time.as_bytes()), expected, "{time}");
    }
    let bad: &[&[u8]] = &[
        b"no length\n",
        b"99 a=b\n",
        b"6 a=b\nrest",
        b"6 abc\n",
        b"6 a=bc",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"18446744073709551615 a=b\n",
        b"12 size=-12\n",
        b"10 uid=x1\n",
        b"19 SCHILY.xattr.=x\n",
    ];
    for record in bad {
        let mut archive = Vec::new();
        extended(b'x', record.to_vec()).write(&mut archive);
        file("f", "").write(&mut archive);
        check_problem(&archive, TarProblem::Pax);
    }
    let mut archive = Vec::new();
    pax(&[("path", "a\0b")]).write(&mut archive);
    file("f", "").write(&mut archive);
    check_problem(&archive, TarProblem::Nul);
}

#[test]
fn sizes_that_lie() {
    // More than there is.
    assert!(matches!(read(&patched(&file("f", "abc"), &[(124, b"77777777777\0")])), Err(TarError::Read(_))));
    // PAX says it better than the header.
    let found = read(&tar(&[file("f", "abcdef").pax("size", b"3"), file("g", "next")])).unwrap();
    assert_eq!((found[0].1.as_slice(), found[1].1.as_slice()), (&b"abc"[..], &b"next"[..]));
    // What is no file has no data, whatever the header says.
    for entry in [dir("d"), symlink("s", "x"), hard_link("h", "x")] {
        let mut archive = patched(&entry, &[(124, b"00000001000\0")]);
        archive.truncate(512);
        file("next", "data").write(&mut archive);
        let found = read(&archive).unwrap();
        assert_eq!((found[0].0.size, found[1].1.as_slice()), (0, &b"data"[..]));
    }
    // Long names and records are bounded.
    for kind in [b'x', b'L', b'K'] {
        let archive = patched(&extended(kind, Vec::new()), &[(124, b"77777777777\0")]);
        check_problem(&archive, TarProblem::SpecialTooLong);
    }
}

#[test]
fn ends_of_archives() {
    assert!(read(b"").unwrap().is_empty());
    assert!(read(&[0; 1024]).unwrap().is_empty());
    let mut archive = Vec::new();
    file("f", "x").write(&mut archive);
    assert_eq!(read(&archive).unwrap().len(), 1, "no end mark");
    archive.extend([0; 512]);
    file("behind", "x").write(&mut archive);
    assert_eq!(read(&archive).unwrap().len(), 1, "what follows the end mark");
    assert!(matches!(read(&archive[..700]), Err(TarError::Read(_))));
    assert!(matches!(read(&archive[..100]), Err(TarError::Read(_))));
    let mut archive = Vec::new();
    pax(&[("path", "x")]).write(&mut archive);
    check_problem(&archive, TarProblem::Dangling);
    let mut archive = tar(&[file("f", "x")]);
    archive[0] ^= 1;
    check_problem(&archive, TarProblem::Checksum);
    for kind in [b'V', b'M', b'D', b'?'] {
        check_problem(&tar(&[extended(kind, Vec::new())]), TarProblem::Kind(kind));
    }
}

/// The same file of 3 MiB with two pieces, in the four forms of GNU tar.
#[test]
fn sparse_files_of_every_form() {
    let map = [(512_u64, 3_u64), (2 << 20, 600)];
    let size = 3_u64 << 20;
    let mut data = b"abc".to_vec();
    data.extend([b'z'; 600]);
    let numbers = |separator: &str| {
        map.iter()
            .flat_map(|(offset, length)| [offset.to_string(), length.to_string()])
            .collect::<Vec<_>>()
            .join(separator)
    };
    let size_text = size.to_string();
    let mut forms = Vec::new();

    let mut old = test_layers::Entry { kind: b'S', ..file("f", "") };
    // In the archive each piece begins at a block.
    old.data = data.clone();
    let mut fields = Vec::new();
    for (offset, length) in map {
        fields.extend(format!("{offset:011o}\0{length:011o}\0").into_bytes());
    }
    let real_size = format!("{size:011o}\0");
    forms.push(patched(&old, &[(257, b"ustar  \0"), (386, &fields), (483, real_size.as_bytes())]));

    // The old form with its map in a block of its own.
    let mut archive = patched(&old, &[(257, b"ustar  \0"), (482, b"\x01"), (483, real_size.as_bytes())]);
    let mut block = fields.clone();
    block.resize(512, 0);
    archive.splice(512..512, block);
    forms.push(archive);

    let mut one = file("GNUSparseFile/f", "")
        .pax("GNU.sparse.major", b"1")
        .pax("GNU.sparse.minor", b"0")
        .pax("GNU.sparse.name", b"f")
        .pax("GNU.sparse.realsize", size_text.as_bytes());
    let mut head = format!("{}\n{}\n", map.len(), numbers("\n")).into_bytes();
    head.resize(512, 0);
    one.data = [head, data.clone()].concat();
    forms.push(tar(&[one]));

    let mut zero_one =
        file("f", "").pax("GNU.sparse.map", numbers(",").as_bytes()).pax("GNU.sparse.size", size_text.as_bytes());
    zero_one.data = data.clone();
    forms.push(tar(&[zero_one]));

    let mut zero = file("f", "").pax("GNU.sparse.size", size_text.as_bytes());
    for (offset, length) in map {
        zero = zero
            .pax("GNU.sparse.offset", offset.to_string().as_bytes())
            .pax("GNU.sparse.numbytes", length.to_string().as_bytes());
    }
    zero.data = data.clone();
    forms.push(tar(&[zero]));

    for (number, archive) in forms.iter().enumerate() {
        let found = read(archive).unwrap_or_else(|error| panic!("form {number}: {error}"));
        let (entry, read) = &found[0];
        assert_eq!((entry.name.to_str(), entry.size), (Some("f"), size), "form {number}");
        assert_eq!(entry.sparse.as_deref(), Some(&map[..]), "form {number}");
        assert_eq!(*read, data, "form {number}");
    }

    for bad in ["10,5,3,1", "0,604", "0,1", "3145727,603", "1", "x", "18446744073709551615,603"] {
        let mut entry =
            file("f", "").pax("GNU.sparse.map", bad.as_bytes()).pax("GNU.sparse.size", size_text.as_bytes());
        entry.data = data.clone();
        check_problem(&tar(&[entry]), TarProblem::Sparse);
    }
}

proptest! {
    /// Whatever the bytes, an answer and no panic; what is read is no longer than what is there.
    #[test]
    fn any_bytes_are_an_archive_or_an_error(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        cut in any::<prop::sample::Index>(),
        reseal in any::<bool>(),
    ) {
        let mut archive = tar(&[
            file("a", "data").pax("SCHILY.xattr.user.x", b"y"),
            extended(b'L', b"long\0".to_vec()),
            dir("d"),
            symlink("s", "t"),
            file("GNUSparseFile/f", "1\n0\n3\nabc").pax("GNU.sparse.major", b"1").pax("GNU.sparse.realsize", b"9"),
        ]);
        for (at, byte) in flips {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        if reseal {
            for block in archive.as_chunks_mut::<512>().0 {
                if &block[257..262] == b"ustar" {
                    seal(block);
                }
            }
        }
        archive.truncate(cut.index(archive.len() + 1).max(archive.len() / 2));
        if let Ok(found) = read(&archive) {
            prop_assert!(found.iter().map(|(_, data)| data.len()).sum::<usize>() <= archive.len());
        }
    }
}
