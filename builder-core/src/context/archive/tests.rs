use std::io::Write;

use super::*;
use crate::cancel::Cancel;
use crate::rootfs::Rootfs;

/// An archive written word by word: `d/`, `f=text`, `l->text`, `h==f`, `@mode#uid:gid` before the content.
pub(crate) fn tar(words: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for word in words.split_whitespace() {
        let end = word.find(['@', '#', '=']).unwrap_or(word.len()).min(word.find("->").unwrap_or(word.len()));
        let (name, mut rest) = word.split_at(end);
        let mut attribute = |sign: char| {
            let text = rest.strip_prefix(sign)?;
            let end = text.find(['#', '=', '-']).unwrap_or(text.len());
            rest = &text[end..];
            Some(text[..end].to_owned())
        };
        let mode = attribute('@').unwrap_or(if name.ends_with('/') { "755".into() } else { "644".into() });
        let owner = attribute('#').unwrap_or("0:0".into());
        let (uid, gid) = owner.split_once(':').expect("uid:gid");
        let (kind, link, data) = if let Some(link) = rest.strip_prefix("==") {
            (b'1', link, "")
        } else if let Some(link) = rest.strip_prefix("->") {
            (b'2', link, "")
        } else if name.ends_with('/') {
            (b'5', "", "")
        } else {
            (b'0', "", rest.strip_prefix('=').unwrap_or(""))
        };
        out.extend(header(name, kind, link, data.len(), &mode, uid, gid));
        out.extend(data.as_bytes());
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn header(name: &str, kind: u8, link: &str, size: usize, mode: &str, uid: &str, gid: &str) -> [u8; 512] {
    let mut block = [0_u8; 512];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:0>7}"));
    put(108, &format!("{:07o}", uid.parse::<u32>().expect("uid")));
    put(116, &format!("{:07o}", gid.parse::<u32>().expect("gid")));
    put(124, &format!("{size:011o}"));
    put(136, "07346545000"); // 1000000000
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    block[156] = kind;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("write");
    file.rewind().expect("rewind");
    file
}

/// Unpacks into `/x` of a tree that holds `present`, and shows what is there then.
fn unpacked(bytes: &[u8], present: &str, owner: Option<(u32, u32)>) -> Result<String, ArchiveError> {
    let target = tempfile::tempdir().expect("a temporary directory");
    crate::context::testing::build(target.path(), present);
    let rootfs = Rootfs::open(target.path()).expect("open");
    let archive = detect(file_of(bytes))?.expect("an archive");
    unpack(archive, &rootfs, Path::new("/x"), owner, &Cancel::default())?;
    Ok(crate::context::testing::show(target.path()))
}

#[track_caller]
fn check(words: &str, present: &str, expected: &str) {
    let shown = unpacked(&tar(words), present, None).expect(words);
    assert_eq!(shown, expected.split_whitespace().collect::<Vec<_>>().join(" "), "{words}");
}

#[track_caller]
fn check_error(words: &str, present: &str, expected: &str) {
    let error = unpacked(&tar(words), present, None).expect_err(words).to_string();
    assert!(error.contains(expected), "{words}: {error}");
}

#[test]
fn entries_keep_what_they_say() {
    check(
        "top/@750#11:12 top/f@640#13:14=file top/s@4755=x top/h@640#13:14==top/f top/l->f",
        "",
        "x/ x/top/@750#11:12 x/top/f@640#13:14=file x/top/h==x/top/f x/top/l->f x/top/s@4755=x",
    );
    check("f=first f@600=second", "", "x/ x/f@600=second");
    check("d/.wh.a= d/n=n", "x/d/a=a", "x/ x/d/ x/d/.wh.a= x/d/a=a x/d/n=n");
    check("no/dir/entry#3:4=e", "", "x/ x/no/ x/no/dir/ x/no/dir/entry#3:4=e");
    let owned = unpacked(&tar("d/e#3:4=e f/#5:5"), "", Some((7, 8))).expect("unpacked");
    assert_eq!(owned, "x/#7:8 x/d/ x/d/e#7:8=e x/f/#7:8", "directories that are not listed are nobody's");
}

#[test]
fn names_stay_inside() {
    check("../../escape=out", "", "x/ x/escape=out");
    check("/abs=a a/../up=u ./dot=d ./@711#9:9", "", "x/ x/abs=a x/dot=d x/up=u");
    check("out->/../../.. out/f=f", "", "x/ x/f=f x/out->/../../..");
    check(
        "etc/ out->/etc out/w=w up->../../../etc up/a=a",
        "",
        "x/ x/etc/ x/etc/a=a x/etc/w=w x/out->/etc x/up->../../../etc",
    );
    check("l->../../outside h==../../../l", "outside=secret", "outside=secret x/ x/h->../../outside x/l==x/h");
    check_error("h==../../outside", "outside=secret", "link /outside /h: no such file or directory");
    check_error("out->/etc out/written=n", "", "open /out/written: no such file or directory");
    check_error("f=f f/x=x", "", "open /f/x: not a directory");
    check_error("a->b b->a a/x=x", "", "too many levels of symbolic links");
    check_error("..@644=x", "", "an entry would replace the destination");
}

#[test]
fn archives_over_what_is_there() {
    check("keep/@700#5:6 keep/f=new", "x/keep/f=old x/keep/g=g", "x/ x/keep/@700#5:6 x/keep/f=new x/keep/g=g");
    check("f/ f/in=i", "x/f=file", "x/ x/f/ x/f/in=i");
    check("d=file", "x/d/deep/f=f", "x/ x/d=file");
    check("d/@700 d/e/@711 d=file", "", "x/ x/d=file");
    check("d/@700 d->e e/ d/f=f", "", "x/ x/d->e x/e/ x/e/f=f");
    check("l=file", "x/l->t x/t=t", "x/ x/l=file x/t=t");
    check("l/ l/in=i", "x/l->t x/t/", "x/ x/l/ x/l/in=i x/t/");
    check("l/in=i", "x/l->t x/t/", "x/ x/l->t x/t/ x/t/in=i");
    check_error("f=f", "x=file", "mkdir /x: not a directory");
}

#[test]
fn times_of_directories_survive_their_content() {
    let target = tempfile::tempdir().expect("a temporary directory");
    let rootfs = Rootfs::open(target.path()).expect("open");
    let archive = detect(file_of(&tar("d/ d/e/ d/e/f=f"))).expect("readable").expect("an archive");
    unpack(archive, &rootfs, Path::new("/"), None, &Cancel::default()).expect("unpacked");
    for path in ["/d", "/d/e", "/d/e/f"] {
        assert_eq!(rootfs.lstat(path.as_ref()).expect(path).mtime, (1_000_000_000, 0), "{path}");
    }
}

pub(crate) fn compressed(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("gzip");
    let mut bzip = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip.write_all(bytes).expect("bzip2");
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(bytes).expect("xz");
    vec![
        ("gzip", gzip.finish().expect("gzip")),
        ("bzip2", bzip.finish().expect("bzip2")),
        ("xz", xz.finish().expect("xz")),
        ("zstd", zstd::encode_all(bytes, 1).expect("zstd")),
    ]
}

#[test]
fn archives_are_known_by_content() {
    let bytes = tar("f=text");
    for (name, bytes) in compressed(&bytes) {
        assert_eq!(unpacked(&bytes, "", None).expect(name), "x/ x/f=text", "{name}");
    }
    let zeros = [0; 1024];
    let mut bad_checksum = bytes.clone();
    bad_checksum[0] ^= 1;
    let no_archives: [(&str, &[u8]); 6] = [
        ("nothing", b""),
        ("text", b"no archive"),
        ("an empty tar", &zeros),
        ("a wrong checksum", &bad_checksum),
        ("a piece of a header", &bytes[..511]),
        ("zip", b"PK\x03\x04 and so on"),
    ];
    for (name, bytes) in no_archives {
        assert!(detect(file_of(bytes)).expect(name).is_none(), "{name}");
    }
    for (name, bytes) in compressed(b"compressed but no tar\n") {
        assert!(detect(file_of(&bytes)).expect(name).is_none(), "{name}");
        assert!(detect(file_of(&bytes[..8])).expect(name).is_none(), "a piece of {name}");
    }
}

#[test]
fn a_cut_is_an_error() {
    let text = "0123456789".repeat(5000);
    let bytes = tar(&format!("f={text} g=g"));
    assert!(matches!(unpacked(&bytes[..515], "", None), Err(ArchiveError::Truncated)));
    assert!(matches!(unpacked(&bytes[..10_000], "", None), Err(ArchiveError::Truncated)));
    let random: Vec<u8> = (0..40_000_u32).flat_map(|n| Sha(n).bytes()).collect();
    let mut bytes = header("r", b'0', "", random.len(), "644", "0", "0").to_vec();
    bytes.extend(&random);
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    for (name, bytes) in compressed(&bytes) {
        let error = unpacked(&bytes[..bytes.len() / 2], "", None).expect_err(name);
        assert!(matches!(error, ArchiveError::Truncated | ArchiveError::Read(_)), "{name}: {error:?}");
    }
}

/// Bytes that do not compress.
struct Sha(u32);

impl Sha {
    fn bytes(&self) -> [u8; 32] {
        *crate::oci::Sha256::of(&self.0.to_le_bytes()).as_bytes()
    }
}

#[test]
fn a_bomb_ends_with_the_build() {
    // 1 GiB of zeros in a megabyte; cancelled, it must not be unpacked to its end.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&header("bomb", b'0', "", 1 << 30, "644", "0", "0")).expect("gzip");
    let zeros = vec![0; 1 << 20];
    for _ in 0..64 {
        gzip.write_all(&zeros).expect("gzip");
    }
    let bytes = gzip.finish().expect("gzip");
    let target = tempfile::tempdir().expect("a temporary directory");
    let rootfs = Rootfs::open(target.path()).expect("open");
    let archive = detect(file_of(&bytes)).expect("readable").expect("an archive");
    let cancel = Cancel::default();
    cancel.cancel();
    let ended = unpack(archive, &rootfs, Path::new("/"), None, &cancel);
    assert!(matches!(ended, Err(ArchiveError::Cancelled)));
}
