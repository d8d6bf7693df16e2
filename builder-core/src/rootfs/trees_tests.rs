//! What layers mean as a tree, in both modes and as an index.
#![expect(clippy::type_complexity, clippy::print_stderr, reason = "tables; what cannot run says so")]
use proptest::prelude::*;

use super::*;
use crate::disk::Disk;
use crate::hint::Hint;
use crate::oci::Sha256;
use crate::rootfs::merge::Merge;
use crate::rootfs::test_layers::*;

/// Runs a check in both modes; overlay is passed over aloud where it does not work.
pub(super) fn both(check: impl Fn(&Trees, &Path)) {
    for mode in [TreeMode::Directory, TreeMode::Overlay] {
        let dir = tempfile::tempdir().unwrap();
        match Trees::open(dir.path(), Some(mode), Ownership::Real) {
            Ok(trees) => check(&trees, dir.path()),
            Err(TreeError::NoOverlay { reason, .. }) => eprintln!("skipped: overlay mode: {reason}"),
            Err(error) => panic!("{error}"),
        }
    }
}

pub(super) fn checkout(trees: &Trees, layers: &[Vec<Entry>]) -> Result<WorkTree, TreeError> {
    let (blobs, refs) = Blobs::layers(layers);
    trees.checkout(&refs, &blobs, &Cancel::default())
}

/// Both modes show exactly this.
#[track_caller]
pub(super) fn check(layers: &[Vec<Entry>], expected: &[&str]) {
    both(|trees, _| {
        let tree = checkout(trees, layers).unwrap_or_else(|error| panic!("{:?}: {error}", trees.mode()));
        let rootfs = tree.rootfs().unwrap();
        assert_eq!(describe(&rootfs), expected, "in {:?} mode", trees.mode());
        let (blobs, refs) = Blobs::layers(layers);
        let index = trees.index(&refs, &blobs, &Cancel::default()).unwrap().expect("what unpacks can be replayed");
        assert_eq!(describe_index_fully(&index), describe_as_index(&rootfs), "the index and {:?} mode", trees.mode());
    });
}

/// Both modes refuse, with these words.
#[track_caller]
fn check_refused(layers: &[Vec<Entry>], words: &str) {
    both(|trees, dir| {
        let error = checkout(trees, layers).unwrap_err().to_string();
        assert!(error.contains(words), "{:?} mode: {error}", trees.mode());
        assert_nothing_left(dir);
        let (blobs, refs) = Blobs::layers(layers);
        let index = trees.index(&refs, &blobs, &Cancel::default());
        assert!(index.as_ref().map_or(true, Option::is_none), "the index is none: {index:?}");
    });
}

#[track_caller]
pub(super) fn assert_nothing_left(dir: &Path) {
    assert_eq!(std::fs::read_dir(dir.join("trees/tmp")).unwrap().count(), 0, "temporary directories are left");
}

#[test]
fn an_empty_stack_is_an_empty_tree() {
    check(&[], &[]);
    check(&[vec![]], &[]);
}

#[test]
fn entries_of_every_kind() {
    check(
        &[vec![
            dir("d/"),
            file("d/f", "data"),
            symlink("d/s", "../x"),
            hard_link("h", "d/f"),
            char_device("null", (1, 3)),
            fifo("p"),
            Entry { kind: 0, ..file("old", "v7") },
            Entry { kind: 0, ..dir("old dir/") },
            Entry { kind: b'7', ..file("contiguous", "c") },
            Entry { kind: b'g', ..file("global", "30 comment=this is passed over\n") },
        ]],
        &["contiguous=c", "d/", "d/f=data", "d/s->../x", "h=data", "null c1,3", "old=v7", "old dir/", "p p0,0"],
    );
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let base = || vec![dir("a"), file("a/1", "1"), dir("a/b"), file("a/b/2", "2"), file("c", "c"), symlink("l", "a")];
    check(&[base(), vec![file(".wh.c", "")]], &["a/", "a/1=1", "a/b/", "a/b/2=2", "l->a"]);
    check(&[base(), vec![file(".wh.a", "")]], &["c=c", "l->a"]);
    check(&[base(), vec![file(".wh.l", ""), file("a/.wh.b", "")]], &["a/", "a/1=1", "c=c"]);
    // Through a link of a lower layer.
    check(&[base(), vec![file("l/.wh.b", "")]], &["a/", "a/1=1", "c=c", "l->a"]);
    // Opaque, before and after what the layer itself brings.
    let opaque = || file("a/.wh..wh..opq", "");
    check(&[base(), vec![dir("a"), opaque(), file("a/n", "n")]], &["a/", "a/n=n", "c=c", "l->a"]);
    check(&[base(), vec![dir("a"), file("a/n", "n"), opaque()]], &["a/", "a/n=n", "c=c", "l->a"]);
    check(&[base(), vec![file("a/b/n", "n"), opaque()]], &["a/", "a/b/", "a/b/n=n", "c=c", "l->a"]);
    check(&[base(), vec![file(".wh..wh..opq", ""), file("a/n", "n")]], &["a/", "a/n=n"]);
    // A whiteout beside what replaces it, in both orders.
    check(&[base(), vec![file(".wh.a", ""), file("a/n", "n")]], &["a/", "a/n=n", "c=c", "l->a"]);
    check(&[base(), vec![file("a/n", "n"), file(".wh.a", "")]], &["a/", "a/n=n", "c=c", "l->a"]);
    check(&[base(), vec![file("c", "new"), file(".wh.c", "")]], &["a/", "a/1=1", "a/b/", "a/b/2=2", "c=new", "l->a"]);
    // Of nothing, also below what only this layer has.
    check(
        &[base(), vec![file(".wh.x", ""), file("n/.wh.x", "")]],
        &["a/", "a/1=1", "a/b/", "a/b/2=2", "c=c", "l->a", "n/"],
    );
    // Gone, back, and gone again.
    check(
        &[base(), vec![file(".wh.a", "")], vec![dir("a"), file("a/1", "again")], vec![file("a/.wh.1", "")]],
        &["a/", "c=c", "l->a"],
    );
    // State of aufs is passed over.
    check(
        &[vec![file(".wh..wh.aufs", ""), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file("f", "f")]],
        &["f=f"],
    );
}

#[test]
fn whiteouts_that_name_no_entry_are_refused() {
    for name in [".wh.", "a/.wh.", ".wh..", ".wh...", "a/b/.wh..."] {
        check_refused(&[vec![dir("a"), file(name, "")]], "a whiteout of nothing");
    }
}

#[test]
fn types_replace_each_other() {
    check(&[vec![dir("a"), file("a/f", "f")], vec![file("a", "file")]], &["a=file"]);
    check(&[vec![file("a", "file")], vec![dir("a"), file("a/f", "f")]], &["a/", "a/f=f"]);
    check(&[vec![file("a", "file")], vec![file("a/f", "f")]], &["a/", "a/f=f"]);
    check(&[vec![dir("t"), symlink("a", "t")], vec![dir("a"), file("a/f", "f")]], &["a/", "a/f=f", "t/"]);
    check(&[vec![dir("a"), dir("b"), file("a/f", "f")], vec![symlink("a", "b")]], &["a->b", "b/"]);
    // Within one layer too: the last entry counts.
    check(&[vec![file("a", "1"), file("a", "2")]], &["a=2"]);
    check(&[vec![file("a", "1"), hard_link("b", "a"), file("a", "2")]], &["a=2", "b=1"]);
    check(&[vec![dir("a"), file("a/f", "f"), file("a", "2"), dir("a"), file("a/g", "g")]], &["a/", "a/g=g"]);
    check(
        &[vec![dir("a"), dir("b"), symlink("c", "a"), file("c/1", "1"), symlink("c", "b"), file("c/2", "2")]],
        &["a/", "a/1=1", "b/", "b/2=2", "c->b"],
    );
    // A layer of three.
    check(
        &[vec![dir("a"), file("a/f", "f")], vec![file("a", "file")], vec![dir("a"), file("a/g", "g")]],
        &["a/", "a/g=g"],
    );
}

#[test]
fn symlinked_parents_lead_on_inside() {
    let base = || vec![dir("usr"), dir("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib")];
    check(
        &[base(), vec![file("lib/foo", "1"), file("abs/bar", "2")]],
        &["abs->/usr/lib", "lib->usr/lib", "usr/", "usr/lib/", "usr/lib/bar=2", "usr/lib/foo=1"],
    );
    check(
        &[base(), vec![file("lib/x/y", "1"), file("usr/lib/x/z", "2")]],
        &["abs->/usr/lib", "lib->usr/lib", "usr/", "usr/lib/", "usr/lib/x/", "usr/lib/x/y=1", "usr/lib/x/z=2"],
    );
    // A link made in this layer to a directory of a lower one, and the reverse.
    check(
        &[vec![dir("d"), file("d/1", "1")], vec![symlink("l", "d"), file("l/2", "2")]],
        &["d/", "d/1=1", "d/2=2", "l->d"],
    );
    // Links to nowhere make what they name.
    check(
        &[vec![symlink("l", "deep/down")], vec![file("l/f", "f")]],
        &["deep/", "deep/down/", "deep/down/f=f", "l->deep/down"],
    );
    // Links of links.
    check(
        &[vec![dir("d"), symlink("m", "d"), symlink("l", "m")], vec![file("l/f", "f")]],
        &["d/", "d/f=f", "l->m", "m->d"],
    );
    check_refused(&[vec![symlink("l", "m"), symlink("m", "l")], vec![file("l/f", "f")]], "leads to something");
}

#[test]
fn hard_links_reach_lower_layers() {
    let layers = [
        vec![dir("d"), file("d/f", "data").owner(7, 8).mode(0o640), symlink("l", "d"), symlink("s", "nowhere")],
        vec![
            Entry { mode: 0o640, uid: 7, gid: 8, ..hard_link("h", "d/f") },
            Entry { mode: 0o640, uid: 7, gid: 8, ..hard_link("i", "/l/../l/f") },
            hard_link("t", "s"),
        ],
    ];
    check(&layers, &["d/", "d/f=data", "h=data", "i=data", "l->d", "s->nowhere", "t->nowhere"]);
    both(|trees, _| {
        let rootfs = checkout(trees, &layers).unwrap().rootfs().unwrap();
        let found: Vec<_> = ["d/f", "h", "i"].map(|path| rootfs.lstat(Path::new(path)).unwrap()).to_vec();
        assert!(found.iter().all(|file| file.inode == found[0].inode && file.links == 3), "{found:?}");
        assert_eq!((found[0].mode, found[0].uid, found[0].gid), (0o640, 7, 8));
    });
    // To a later name of the same layer, to itself, over a directory.
    check(
        &[vec![file("a", "a")], vec![hard_link("b", "a"), hard_link("c", "b"), file("b", "b")]],
        &["a=a", "b=b", "c=a"],
    );
    check(&[vec![file("a", "a"), hard_link("a", "a")]], &["a=a"]);
    check(&[vec![file("a", "a"), dir("b"), file("b/x", "x")], vec![hard_link("b", "a")]], &["a=a", "b=a"]);
    check_refused(&[vec![hard_link("h", "missing")]], "which is not there");
    check_refused(&[vec![file("a", "a")], vec![file(".wh.a", ""), hard_link("h", "a")]], "which is not there");
    check_refused(&[vec![dir("d"), hard_link("h", "d")]], "to the directory");
    check_refused(&[vec![hard_link("h", "/")]], "to the directory");
}

/// Every trick known from tar CVEs ends inside, or in a typed error.
#[test]
fn nothing_escapes() {
    let escapes: &[&[Entry]] = &[
        &[file("/absolute", "x"), file("//twice", "x")],
        &[file("../up", "x"), file("a/../../../up2", "x"), file("a/..", "x")],
        &[symlink("l", "/"), file("l/etc", "x")],
        &[symlink("l", "../../../../../.."), file("l/tmp/x", "x")],
        &[symlink("a", "b"), symlink("b", ".."), file("a/x", "x")],
        &[dir("d"), symlink("d/l", "../.."), symlink("m", "d/l/.."), file("m/x", "x"), dir("m/y")],
        &[symlink("l", "/etc"), hard_link("h", "l/../../secret")].map(|entry| entry.clone()),
    ];
    both(|trees, dir| {
        let secret = dir.parent().unwrap().join(format!("secret-{}", std::process::id()));
        std::fs::write(&secret, "outside").unwrap();
        let outside: Vec<_> = std::fs::read_dir("/").unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let mut own = vec![symlink("out", secret.parent().unwrap().to_str().unwrap())];
        let name = secret.file_name().unwrap().to_str().unwrap();
        own.push(file(&format!("out/{name}"), "overwritten"));
        own.push(symlink("direct", secret.to_str().unwrap()));
        own.push(file("direct", "overwritten"));
        own.push(symlink("chmod", secret.to_str().unwrap()).mode(0o777).owner(5, 5));
        for entries in escapes.iter().map(|entries| entries.to_vec()).chain([own]) {
            match checkout(trees, std::slice::from_ref(&entries)) {
                Ok(tree) => drop(tree.rootfs().unwrap()),
                Err(TreeError::BadEntry { .. }) => {}
                Err(error) => panic!("{entries:?}: {error}"),
            }
        }
        let hard = [vec![hard_link("h", secret.to_str().unwrap())], vec![hard_link("h", "../../../etc/passwd")]];
        for entries in hard {
            assert!(matches!(checkout(trees, &[entries]), Err(TreeError::BadEntry { .. })));
        }
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "outside");
        let metadata = std::fs::metadata(&secret).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&metadata), 0);
        let now: Vec<_> = std::fs::read_dir("/").unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(now, outside);
        std::fs::remove_file(&secret).unwrap();
    });
    check(
        &[vec![file("../up", "1"), file("/a/../b", "2"), file("..", "ignored"), file("./.", "ignored")]],
        &["b=2", "up=1"],
    );
    // Overlayfs's own marks from a layer have no effect.
    check(
        &[
            vec![dir("a"), file("a/f", "f"), file("b", "b")],
            vec![
                dir("a").pax("SCHILY.xattr.trusted.overlay.opaque", b"y").pax("SCHILY.xattr.user.overlay.opaque", b"y"),
                file("b", "").pax("SCHILY.xattr.trusted.overlay.whiteout", b""),
                file("b", "new").pax("SCHILY.xattr.trusted.overlay.redirect", b"/a/f"),
            ],
        ],
        &["a/", "a/f=f", "b=new"],
    );
    // A device 0:0 is what overlayfs takes for a whiteout, wherever it comes from.
    check(&[vec![file("a", "a")], vec![char_device("a", (0, 0))]], &[]);
}

#[test]
fn the_root_itself_is_not_changed_by_entries() {
    check(&[vec![dir("./").mode(0o700).owner(5, 5), dir("/"), file("f", "f")]], &["f=f"]);
    both(|trees, _| {
        let rootfs = checkout(trees, &[vec![dir("./").mode(0o700).owner(5, 5)]]).unwrap().rootfs().unwrap();
        let root = rootfs.lstat(Path::new("/")).unwrap();
        assert_eq!((root.mode, root.uid, root.gid), (0o755, 0, 0));
    });
}

#[test]
fn metadata_is_kept() {
    const CAPABILITY: &[u8] = b"\x01\0\0\x02\x0a\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let long = format!("{}/{}", "n".repeat(200), "m".repeat(255));
    let layers = [vec![
        dir("d").mode(0o1777).owner(1000, 65_534).mtime(5),
        file("d/su", "x").mode(0o6755).owner(12, 34).pax("mtime", b"1234567890.123456789"),
        file("cap", "x").owner(3_000_000, 4_000_000_000).pax("SCHILY.xattr.security.capability", CAPABILITY),
        file("before", "x").pax("mtime", b"-1.25"),
        file("user", "x").pax("SCHILY.xattr.user.note", b"a=b\nc").pax("SCHILY.xattr.user.empty", b""),
        file(&long, "long"),
        symlink("s", &"t".repeat(300)).owner(9, 9).mtime(77),
        file("ids", "").pax("uid", b"70000").pax("gid", b"80000"),
    ]];
    both(|trees, _| {
        let rootfs = checkout(trees, &layers).unwrap().rootfs().unwrap();
        let stat = |path: &str| rootfs.lstat(Path::new(path)).unwrap();
        let d = stat("d");
        assert_eq!((d.mode, d.uid, d.gid, d.mtime), (0o1777, 1000, 65_534, (5, 0)));
        let su = stat("d/su");
        assert_eq!((su.mode, su.uid, su.gid, su.mtime), (0o6755, 12, 34, (1_234_567_890, 123_456_789)));
        let cap = stat("cap");
        assert_eq!((cap.uid, cap.gid), (3_000_000, 4_000_000_000));
        assert_eq!(rootfs.xattrs(Path::new("cap")).unwrap(), [("security.capability".into(), CAPABILITY.to_vec())]);
        assert_eq!(stat("before").mtime, (-2, 750_000_000));
        assert_eq!(
            rootfs.xattrs(Path::new("user")).unwrap(),
            [("user.empty".into(), b"".to_vec()), ("user.note".into(), b"a=b\nc".to_vec())]
        );
        assert_eq!(stat(&long).size, 4);
        let parent = stat(&"n".repeat(200));
        assert_eq!((parent.mode, parent.uid, parent.mtime), (0o755, 0, (0, 0)));
        assert_eq!((stat("s").uid, stat("s").mtime, stat("s").size), (9, (77, 0), 300));
        assert_eq!((stat("ids").uid, stat("ids").gid), (70_000, 80_000));
    });
}

#[test]
fn implied_parents_keep_what_is_below() {
    let layers = [
        vec![dir("a").mode(0o2750).owner(3, 4).mtime(10).pax("SCHILY.xattr.user.k", b"v"), dir("a/b").mtime(20)],
        vec![file("a/b/new", "x"), file("a/.wh.none", "")],
        vec![dir("a").mode(0o700).mtime(30)],
    ];
    both(|trees, _| {
        let two = checkout(trees, &layers[..2]).unwrap().rootfs().unwrap();
        let a = two.lstat(Path::new("a")).unwrap();
        assert_eq!((a.mode, a.uid, a.gid, a.mtime), (0o2750, 3, 4, (10, 0)));
        assert_eq!(two.xattrs(Path::new("a")).unwrap(), [("user.k".into(), b"v".to_vec())]);
        assert_eq!(two.lstat(Path::new("a/b")).unwrap().mtime, (20, 0));
        let new = two.lstat(Path::new("a/b/new")).unwrap();
        assert_eq!((new.uid, new.gid), (0, 0));
        let three = checkout(trees, &layers).unwrap().rootfs().unwrap();
        let a = three.lstat(Path::new("a")).unwrap();
        assert_eq!((a.mode, a.uid, a.mtime), (0o700, 0, (30, 0)));
        assert!(three.xattrs(Path::new("a")).unwrap().is_empty());
    });
}

#[test]
fn bad_blobs_are_typed_errors() {
    let good = tar(&[file("f", &"data".repeat(100_000))]);
    type Fault = (&'static str, fn(&[u8]) -> Vec<u8>, fn(&TreeError) -> bool);
    let faults: &[Fault] = &[
        ("truncated gzip", |tar| gzip(tar)[..300].to_vec(), |e| matches!(e, TreeError::Damaged { .. })),
        (
            "broken gzip",
            |tar| {
                let mut blob = gzip(tar);
                let last = blob.len() - 5;
                blob[last] ^= 1;
                blob
            },
            |e| matches!(e, TreeError::Damaged { .. }),
        ),
        (
            "gzip with garbage behind",
            |tar| [gzip(tar), b"garbage".to_vec()].concat(),
            |e| matches!(e, TreeError::Damaged { .. }),
        ),
        (
            "truncated zstd",
            |tar| zstd::encode_all(tar, 1).unwrap()[..60].to_vec(),
            |e| matches!(e, TreeError::Damaged { .. }),
        ),
        ("truncated tar", |tar| tar[..tar.len() / 2].to_vec(), |e| matches!(e, TreeError::Damaged { .. })),
        ("another tar", |_| tar(&[file("g", "other")]), |e| matches!(e, TreeError::WrongDiffId { .. })),
        ("more padding", |tar| [tar, &[0; 512][..]].concat(), |e| matches!(e, TreeError::WrongDiffId { .. })),
        ("no tar at all", |_| b"<html>".repeat(200), |e| matches!(e, TreeError::BadEntry { .. })),
    ];
    both(|trees, dir| {
        for (name, fault, expected) in faults {
            let mut blobs = Blobs::default();
            let layer = blobs.add(&good, fault);
            let error = trees.checkout(&[layer], &blobs, &Cancel::default()).unwrap_err();
            assert!(expected(&error), "{name} in {:?} mode: {error:?}", trees.mode());
            assert_nothing_left(dir);
        }
    });
}

#[test]
fn compression_is_found_by_its_magic() {
    let tar = tar(&[file("f", &"some text ".repeat(50_000))]);
    let forms: &[fn(&[u8]) -> Vec<u8>] = &[
        <[u8]>::to_vec,
        gzip,
        |tar| [gzip(&tar[..1000]), gzip(b""), gzip(&tar[1000..])].concat(),
        |tar| zstd::encode_all(tar, 3).unwrap(),
        |tar| {
            // A skippable frame first, then two frames.
            let (a, b) = tar.split_at(5000);
            [
                b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(),
                zstd::encode_all(a, 1).unwrap(),
                zstd::encode_all(b, 1).unwrap(),
            ]
            .concat()
        },
    ];
    for form in forms {
        both(|trees, _| {
            let mut blobs = Blobs::default();
            let layer = blobs.add(&tar, form);
            let tree = trees.checkout(&[layer], &blobs, &Cancel::default()).unwrap();
            assert_eq!(tree.rootfs().unwrap().lstat(Path::new("f")).unwrap().size, 500_000);
        });
    }
}

#[test]
fn a_layer_that_inflates_without_end_is_bounded() {
    for mode in [TreeMode::Directory, TreeMode::Overlay] {
        let dir = tempfile::tempdir().unwrap();
        let Ok(mut trees) = Trees::open(dir.path(), Some(mode), Ownership::Real) else {
            eprintln!("skipped: {mode:?} does not work here");
            continue;
        };
        trees.set_layer_limit(Some(1 << 20));
        let mut blobs = Blobs::default();
        let layer = blobs.add(&tar(&[file("bomb", &"\0".repeat(50 << 20))]), gzip);
        let error = trees.checkout(&[layer], &blobs, &Cancel::default()).unwrap_err();
        assert!(matches!(error, TreeError::TooLarge { limit: 1_048_576, .. }), "{error:?}");
        assert_nothing_left(dir.path());
    }
}

#[test]
fn a_failing_source_is_the_cause() {
    struct Broken(bool);
    impl LayerSource for Broken {
        fn open(&self, _: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
            if self.0 {
                return Err("no route to host".into());
            }
            struct Late(usize);
            impl Read for Late {
                fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                    self.0 += 1;
                    if self.0 > 3 {
                        return Err(io::Error::other("wrong digest at the end"));
                    }
                    buffer.fill(0);
                    Ok(buffer.len())
                }
            }
            Ok(Box::new(Late(0)))
        }
    }
    both(|trees, dir| {
        for (early, words) in [(true, "no route to host"), (false, "wrong digest at the end")] {
            let (_, refs) = Blobs::layers(&[vec![file("a", "")], vec![file("b", "")], vec![file("c", "")]]);
            match trees.checkout(&refs, &Broken(early), &Cancel::default()).unwrap_err() {
                TreeError::Fetch { source, .. } => assert_eq!(source.to_string(), words),
                other => panic!("{other:?}"),
            }
            assert_nothing_left(dir);
        }
    });
}

#[test]
fn cancelling_ends_a_checkout() {
    both(|trees, dir| {
        let (blobs, refs) = Blobs::layers(&[vec![file("a", "")]]);
        let cancel = Cancel::default();
        cancel.cancel();
        assert!(matches!(trees.checkout(&refs, &blobs, &cancel), Err(TreeError::Cancelled)));
        assert_nothing_left(dir);
    });
}

#[test]
fn unknown_ids_name_the_remedy() {
    let error = TreeError::UnmappedId { layer: DiffId(Sha256::of(b"")), entry: "f".into(), uid: 70_000, gid: 1 };
    assert!(error.hint().unwrap().contains("/etc/subuid"));
    assert!(error.to_string().contains("70000:1"));
}

/// Layers with few names, so that they hit each other. Parents come from links, files, directories and nothing.
fn stack() -> impl Strategy<Value = Vec<Vec<Entry>>> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"));
    let entry = (path.clone(), path, 0..12_u8, 0..4_u32).prop_map(|(path, other, kind, id)| {
        let (parent, name) = path.rsplit_once('/').map_or(("", &*path), |(parent, name)| (parent, name));
        let beside = |name: &str| if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
        let entry = match kind {
            0..4 => dir(&path).mode(0o750 + id),
            4..7 => file(&path, &other),
            7 => symlink(&path, &format!("/{}", &other[..1])),
            8 => hard_link(&path, &other),
            9 | 10 => return file(&beside(&format!(".wh.{name}")), ""),
            _ => return file(&beside(".wh..wh..opq"), ""),
        };
        entry.owner(id, id).mtime(1000 + u64::from(id))
    });
    prop::collection::vec(prop::collection::vec(entry, 0..6), 1..5)
}

/// What a writer of layers lists: parents before what is in them, each name once. Not in it: entries whose result depends
/// on their order, because one reaches through a link what another one replaces. A layer unpacked alone cannot know.
fn well_formed(layers: Vec<Vec<Entry>>) -> Vec<Vec<Entry>> {
    let below = |name: &[u8], top: &[u8]| name.strip_prefix(top).is_some_and(|rest| rest.starts_with(b"/"));
    let links: Vec<Entry> = layers.iter().flatten().filter(|entry| entry.kind == b'2').cloned().collect();
    let well_formed = |mut entries: Vec<Entry>| {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries.dedup_by(|a, b| a.name == b.name);
        let own: Vec<_> =
            entries.iter().filter(|entry| matches!(entry.kind, b'1' | b'2')).map(|entry| entry.name.clone()).collect();
        entries.retain(|entry| !own.iter().any(|link| below(&entry.name, link) || below(&entry.link, link)));
        if entries.iter().any(|entry| links.iter().any(|link| below(&entry.name, &link.name))) {
            entries.retain(|entry| {
                let hidden = String::from_utf8(entry.name.clone()).unwrap().replace(".wh.", "").into_bytes();
                let leads_there = |link: &Entry| {
                    let target = &link.link[1..];
                    hidden == target || below(target, &hidden) || below(&hidden, target)
                };
                !links.iter().any(leads_there)
            });
        }
        entries
    };
    layers.into_iter().map(well_formed).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn both_modes_show_the_same(layers in stack().prop_map(well_formed)) {
        let shown = std::cell::RefCell::new(Vec::new());
        both(|trees, dir| {
            let (blobs, refs) = Blobs::layers(&layers);
            let result = checkout(trees, &layers).map(|tree| {
                let rootfs = tree.rootfs().unwrap();
                let index = trees.index(&refs, &blobs, &Cancel::default()).unwrap();
                assert_eq!(index.as_ref().map(describe_index_fully), Some(describe_as_index(&rootfs)));
                describe_fully(&rootfs)
            });
            if result.is_err() {
                assert_nothing_left(dir);
            }
            // Which of several bad layers is met first is not told.
            shown.borrow_mut().push(result.map_err(|error| matches!(error, TreeError::BadEntry { .. })));
        });
        let shown = shown.into_inner();
        if let [a, b] = &shown[..] {
            prop_assert_eq!(a, b);
        }
    }
    #[test]
    fn layers_merged_into_one_directory_show_the_same(layers in stack().prop_map(well_formed)) {
        let dir = tempfile::tempdir().unwrap();
        let trees = match Trees::open(dir.path(), Some(TreeMode::Overlay), Ownership::Real) {
            Ok(trees) => trees,
            Err(error) => {
                eprintln!("skipped: {error}");
                return Ok(());
            }
        };
        let Ok(tree) = checkout(&trees, &layers) else { return Ok(()) };
        let State::Overlay(OverlayTree { stacks, chains, .. }) = &tree.state else { panic!("overlay was asked for") };
        let expected = describe_fully(&tree.rootfs().unwrap());
        let places: Vec<PathBuf> = chains.iter().map(|chain| stacks.dir.layer(*chain)).collect();
        let cancel = Cancel::default();
        let (stop, disk) = (Stop::new(&cancel), Disk::default());
        for from in 0..places.len() {
            for to in from + 1..=places.len() {
                let sources: Vec<Rootfs> = places[from..to].iter().map(|place| Rootfs::open(place).unwrap()).collect();
                let merge = Merge { sources: &sources, marks: stacks.marks, disk: &disk, stop: &stop };
                let mut merged = merge.read().unwrap().expect("this is little");
                let below = stacks.view(&chains[..from]).unwrap();
                merged.drop_idle_whiteouts((from > 0).then_some(&below)).unwrap();
                let one = tempfile::tempdir_in(dir.path()).unwrap();
                merge.write(&merged, &Rootfs::open(one.path()).unwrap()).unwrap();
                let mut lower: Vec<PathBuf> = places[to..].iter().rev().cloned().collect();
                lower.push(one.path().to_owned());
                lower.extend(places[..from].iter().rev().cloned());
                let shown = describe_fully(&stacks.mount(lower, None).unwrap());
                prop_assert_eq!(&shown, &expected, "layers {} to {}", from, to);
            }
        }
    }
}
