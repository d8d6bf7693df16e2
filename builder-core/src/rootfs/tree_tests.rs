#![expect(clippy::type_complexity, reason = "tables")]
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::rootfs::clean;
use crate::rootfs::resolve::Resolver;

/// A directory with a tree in it and things beside the tree that nobody may reach.
struct Yard {
    dir: tempfile::TempDir,
}

impl Yard {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn rootfs(&self, resolver: Resolver) -> Rootfs {
        let fd = rustix::fs::open(self.root(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        Rootfs {
            root: Root::with_resolver(fd, resolver),
            pretence: Pretence::Nothing,
            disk: crate::disk::Disk::default(),
            lists: None,
            touched: None,
            _attached: None,
        }
    }

    #[track_caller]
    fn untouched_outside(&self) {
        assert_eq!(std::fs::read(self.dir.path().join("secret")).unwrap(), b"outside");
        assert_eq!(std::fs::read_dir(self.dir.path().join("outside")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(self.dir.path()).unwrap().count(), 3);
    }
}

/// Runs the same check with both ways of resolving.
fn both(check: impl Fn(&Yard, &Rootfs)) {
    for resolver in [Resolver::Kernel, Resolver::Walk] {
        let yard = Yard::new();
        let rootfs = yard.rootfs(resolver);
        check(&yard, &rootfs);
        yard.untouched_outside();
    }
}

fn file(bytes: &[u8]) -> Box<dyn Read + '_> {
    Box::new(bytes)
}

#[track_caller]
fn put(rootfs: &Rootfs, path: &str, bytes: &[u8]) {
    rootfs.create(Path::new(path), NewFile::File(&mut file(bytes)), &Attributes::default()).unwrap();
}

#[track_caller]
fn link(rootfs: &Rootfs, path: &str, text: &str) {
    rootfs.create(Path::new(path), NewFile::Symlink(Path::new(text)), &Attributes::default()).unwrap();
}

#[track_caller]
fn mkdir(rootfs: &Rootfs, path: &str) {
    rootfs.create_dir_all(Path::new(path), &Attributes::default()).unwrap();
}

#[track_caller]
fn read(rootfs: &Rootfs, path: &str) -> Vec<u8> {
    rootfs.read_small(Path::new(path), 1000).unwrap()
}

#[test]
fn paths_resolve_within_the_root() {
    let cases: &[(&str, Result<&str, Option<Errno>>)] = &[
        ("", Ok("/")),
        ("/", Ok("/")),
        ("..", Ok("/")),
        ("/../../..", Ok("/")),
        ("d/e/../f", Ok("/d/f")),
        ("d/e/./f//", Ok("/d/e/f")),
        ("up/secret", Ok("/secret")),
        ("absolute", Ok("/d/e")),
        ("relative/f", Ok("/d/e/f")),
        ("absolute/../x", Ok("/d/x")),
        ("far/etc", Ok("/etc")),
        ("missing/a/../b", Ok("/missing/b")),
        ("missing/../../..", Ok("/")),
        ("dangling", Ok("/nowhere/at/all")),
        ("dangling/below", Ok("/nowhere/at/all/below")),
        ("loop", Err(Some(Errno::LOOP))),
        ("loop/x", Err(Some(Errno::LOOP))),
        ("file/x", Err(Some(Errno::NOTDIR))),
        ("file/", Err(Some(Errno::NOTDIR))),
        ("d/e\0", Err(None)),
    ];
    both(|_, rootfs| {
        mkdir(rootfs, "d/e");
        put(rootfs, "file", b"");
        link(rootfs, "up", "../../../../");
        link(rootfs, "absolute", "/d/e");
        link(rootfs, "relative", "d/../d/e/.");
        link(rootfs, "far", "/../../..");
        link(rootfs, "dangling", "/nowhere/at/all");
        link(rootfs, "loop", "pool");
        link(rootfs, "pool", "/loop");
        for (path, expected) in cases {
            let actual = rootfs.resolve(Path::new(path), true);
            match (&actual, expected) {
                (Ok(actual), Ok(expected)) => assert_eq!(actual, Path::new(expected), "{path:?}"),
                (Err(_), Err(None)) => {}
                (Err(error), Err(Some(errno))) => {
                    assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{path:?}");
                }
                _ => panic!("{path:?}: {actual:?}, expected {expected:?}"),
            }
            // Opening agrees with the text, where something is there.
            if let Ok(expected) = expected {
                match (rootfs.stat(Path::new(path)), rootfs.lstat(Path::new(expected))) {
                    (Ok(a), Ok(b)) => assert_eq!(a, b, "{path:?}"),
                    (Err(a), Err(b)) => assert_eq!(a.kind(), b.kind(), "{path:?}"),
                    // `missing/../x` is only text.
                    (Err(_), Ok(_)) if path.starts_with("missing") => {}
                    other => panic!("{path:?}: {other:?}"),
                }
            }
        }
        assert_eq!(rootfs.resolve(Path::new("d/../absolute"), false).unwrap(), Path::new("/absolute"));
    });
}

#[test]
fn clean_is_lexical() {
    for (path, expected) in
        [("", "/"), (".", "/"), ("..", "/"), ("a//b/./c/", "/a/b/c"), ("/a/../../b", "/b"), ("a/b/..", "/a")]
    {
        assert_eq!(clean(OsStr::new(path)), Path::new(expected), "{path:?}");
    }
}

#[test]
fn nothing_reaches_outside() {
    both(|yard, rootfs| {
        let outside = yard.dir.path().join("outside");
        link(rootfs, "out", outside.to_str().unwrap());
        link(rootfs, "dots", "../outside");
        link(rootfs, "secret", "../secret");
        for path in ["out/file", "dots/file", "../outside/file", "/../../outside/file"] {
            let result = rootfs.create(Path::new(path), NewFile::File(&mut file(b"escaped")), &Attributes::default());
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::NotFound, "{path}");
        }
        // A link in the way of a file is replaced, not followed.
        put(rootfs, "secret", b"inside");
        assert_eq!(read(rootfs, "secret"), b"inside");
        link(rootfs, "secret", "../secret");
        rootfs.set_attributes(Path::new("secret"), &Attributes { mode: Some(0o777), ..Attributes::default() }).unwrap();
        // Overwriting follows the link, and lands inside.
        use std::io::Write;
        assert!(rootfs.overwrite(Path::new("secret")).is_err(), "it leads to itself here");
        link(rootfs, "hidden", "../hidden file");
        rootfs.overwrite(Path::new("hidden")).unwrap().write_all(b"mine").unwrap();
        rootfs.overwrite(Path::new("/../hidden")).unwrap().write_all(b"me").unwrap();
        assert_eq!(read(rootfs, "hidden file"), b"me");
        assert_eq!(rootfs.lstat(Path::new("hidden")).unwrap().kind, FileKind::Symlink);
        assert!(rootfs.hard_link(Path::new("../../secret"), Path::new("got")).is_ok(), "the tree's own link");
        assert_eq!(rootfs.lstat(Path::new("got")).unwrap().kind, FileKind::Symlink);
        rootfs.create_dir_all(Path::new("dots/below"), &Attributes::default()).unwrap();
        assert_eq!(rootfs.lstat(Path::new("outside/below")).unwrap().kind, FileKind::Directory);
        rootfs.remove(Path::new("dots")).unwrap();
        rootfs.remove(Path::new("../../outside")).unwrap();
        rootfs.remove(Path::new("..")).unwrap();
        assert!(rootfs.read_dir(Path::new("/")).unwrap().is_empty());
    });
}

#[test]
fn magic_links_are_not_jumped_through() {
    for resolver in [Resolver::Kernel, Resolver::Walk] {
        let fd = rustix::fs::open("/proc/self", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let rootfs = Rootfs {
            root: Root::with_resolver(fd, resolver),
            pretence: Pretence::Nothing,
            disk: crate::disk::Disk::default(),
            lists: None,
            touched: None,
            _attached: None,
        };
        for path in ["root/etc", "cwd/Cargo.toml", "fd/0/x"] {
            assert!(rootfs.stat(Path::new(path)).is_err(), "{path} by {resolver:?}");
        }
    }
}

#[test]
fn every_kind_is_made_with_its_attributes() {
    both(|_, rootfs| {
        let attributes = Attributes {
            owner: Some((12, 34)),
            mode: Some(0o4751),
            mtime: Some((-5, 123_456_789)),
            xattrs: Vec::new(),
        };
        let cases: [(&str, NewFile<'_>, FileKind, u64, (u32, u32)); 6] = [
            ("file", NewFile::File(&mut file(b"abc")), FileKind::File, 3, (0, 0)),
            ("dir", NewFile::Directory, FileKind::Directory, 0, (0, 0)),
            ("link", NewFile::Symlink(Path::new("/x/y")), FileKind::Symlink, 4, (0, 0)),
            ("fifo", NewFile::Fifo, FileKind::Fifo, 0, (0, 0)),
            ("char", NewFile::CharDevice(1, 3), FileKind::CharDevice, 0, (1, 3)),
            ("block", NewFile::BlockDevice(259, 100_000), FileKind::BlockDevice, 0, (259, 100_000)),
        ];
        for (name, new, kind, size, device) in cases {
            // In the place of a directory that is not empty, where that is possible.
            if kind != FileKind::Directory {
                mkdir(rootfs, &format!("{name}/full"));
            }
            rootfs.create(Path::new(name), new, &attributes).unwrap();
            let metadata = rootfs.lstat(Path::new(name)).unwrap();
            assert_eq!((metadata.kind, metadata.size, metadata.device), (kind, size, device), "{name}");
            assert_eq!((metadata.uid, metadata.gid, metadata.mtime), (12, 34, (-5, 123_456_789)), "{name}");
            if kind != FileKind::Symlink {
                assert_eq!(metadata.mode, 0o4751, "{name}");
            }
        }
        assert_eq!(rootfs.read_link(Path::new("link")).unwrap(), Path::new("/x/y"));
        assert_eq!(rootfs.read_link(Path::new("file")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        for name in ["dir", "link", "fifo", "char", "block"] {
            assert_eq!(rootfs.open_file(Path::new(name)).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        let kinds = rootfs.read_dir(Path::new("/")).unwrap();
        let names: Vec<_> = kinds.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(names, ["block", "char", "dir", "fifo", "file", "link"]);
        assert_eq!(kinds[3].1, FileKind::Fifo);
    });
}

#[test]
fn new_files_have_defaults_that_no_umask_changes() {
    both(|yard, rootfs| {
        mkdir(rootfs, "setgid");
        let attributes = Attributes { owner: Some((5, 6)), mode: Some(0o2777), ..Attributes::default() };
        rootfs.set_attributes(Path::new("setgid"), &attributes).unwrap();
        put(rootfs, "setgid/file", b"");
        mkdir(rootfs, "setgid/dir");
        for (path, mode) in [("setgid/file", 0o644), ("setgid/dir", 0o755)] {
            let metadata = std::fs::metadata(yard.root().join(path)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{path}");
            assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "{path}");
        }
        // A directory in the place of a directory is kept, and changed only where asked.
        rootfs.create(Path::new("setgid"), NewFile::Directory, &Attributes::default()).unwrap();
        assert_eq!(rootfs.lstat(Path::new("setgid")).unwrap().mode, 0o2777);
        assert_eq!(rootfs.read_dir(Path::new("setgid")).unwrap().len(), 2);
    });
}

/// `cap_net_raw=ep`, with the newline byte that trips readers which split PAX records at line ends.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\x0a\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[test]
fn capabilities_survive_a_change_of_owner() {
    both(|_, rootfs| {
        let attributes = Attributes {
            owner: Some((1, 1)),
            mode: Some(0o6755),
            mtime: None,
            xattrs: vec![
                ("security.capability".into(), CAPABILITY.to_vec()),
                ("user.note".into(), b"x".to_vec()),
                ("trusted.overlay.opaque".into(), b"y".to_vec()),
                ("user.overlay.opaque".into(), b"y".to_vec()),
            ],
        };
        rootfs.create(Path::new("f"), NewFile::File(&mut file(b"")), &attributes).unwrap();
        let expected = vec![("security.capability".into(), CAPABILITY.to_vec()), ("user.note".into(), b"x".to_vec())];
        assert_eq!(rootfs.xattrs(Path::new("f")).unwrap(), expected);
        assert_eq!(rootfs.lstat(Path::new("f")).unwrap().mode, 0o6755);
        assert_eq!(rootfs.xattr(Path::new("f"), OsStr::new("user.note")).unwrap(), Some(b"x".to_vec()));
        assert_eq!(rootfs.xattr(Path::new("f"), OsStr::new("user.none")).unwrap(), None);
        // Of links and devices too, without touching what they stand for.
        link(rootfs, "l", "f");
        rootfs.create(Path::new("null"), NewFile::CharDevice(1, 3), &Attributes::default()).unwrap();
        for path in ["l", "null"] {
            let attributes =
                Attributes { xattrs: vec![("trusted.note".into(), b"t".to_vec())], ..Attributes::default() };
            rootfs.set_attributes(Path::new(path), &attributes).unwrap();
            assert_eq!(rootfs.xattrs(Path::new(path)).unwrap(), attributes.xattrs, "{path}");
        }
        assert_eq!(rootfs.xattrs(Path::new("f")).unwrap(), expected);
    });
}

#[test]
fn holes_stay_holes() {
    both(|yard, rootfs| {
        let size = 16 << 20;
        let mut data = vec![0_u8; size];
        data[5 << 20] = 1;
        put(rootfs, "sparse", &data);
        let metadata = std::fs::metadata(yard.root().join("sparse")).unwrap();
        assert_eq!(metadata.len(), size as u64);
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        assert_eq!(std::fs::read(yard.root().join("sparse")).unwrap(), data);
    });
}

#[test]
fn a_failing_read_leaves_no_file() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
    both(|_, rootfs| {
        let result = rootfs.create(Path::new("f"), NewFile::File(&mut Broken), &Attributes::default());
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(rootfs.lstat(Path::new("f")).unwrap_err().kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn hard_links_replace_and_share() {
    both(|_, rootfs| {
        put(rootfs, "a", b"1");
        mkdir(rootfs, "b/c");
        rootfs.hard_link(Path::new("a"), Path::new("b")).unwrap();
        rootfs.hard_link(Path::new("a"), Path::new("b")).unwrap();
        let (a, b) = (rootfs.lstat(Path::new("a")).unwrap(), rootfs.lstat(Path::new("b")).unwrap());
        assert_eq!((a.inode, a.links), (b.inode, 2));
        mkdir(rootfs, "d");
        let error = rootfs.hard_link(Path::new("d"), Path::new("e")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let error = rootfs.hard_link(Path::new("none"), Path::new("a")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(read(rootfs, "a"), b"1");
    });
}

#[test]
fn names_are_bytes_and_may_be_deep() {
    both(|_, rootfs| {
        let name = OsStr::from_bytes(b"\xff\xfe\n");
        rootfs.create(Path::new(name), NewFile::Directory, &Attributes::default()).unwrap();
        assert_eq!(rootfs.read_dir(Path::new("/")).unwrap()[0].0, name);
        // Far longer than PATH_MAX in all.
        let mut path = PathBuf::new();
        for _ in 0..60 {
            path.push("x".repeat(200));
        }
        rootfs.create_dir_all(&path, &Attributes::default()).unwrap();
        assert_eq!(rootfs.lstat(&path).unwrap().kind, FileKind::Directory);
        assert_eq!(rootfs.list().unwrap().len(), 61);
        rootfs.remove(path.components().next().unwrap().as_os_str().as_ref()).unwrap();
        assert_eq!(rootfs.read_dir(Path::new("/")).unwrap().len(), 1);
        let long = "y".repeat(256);
        let error = rootfs.create(Path::new(&long), NewFile::Directory, &Attributes::default()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
    });
}

#[test]
fn create_dir_all_names_what_it_made() {
    both(|_, rootfs| {
        mkdir(rootfs, "usr/lib");
        link(rootfs, "lib", "usr/lib");
        put(rootfs, "file", b"");
        let attributes = Attributes { mode: Some(0o700), ..Attributes::default() };
        let made = rootfs.create_dir_all(Path::new("lib/a/b"), &attributes).unwrap();
        assert_eq!(made, [Path::new("/usr/lib/a"), Path::new("/usr/lib/a/b")]);
        assert_eq!(rootfs.lstat(Path::new("usr/lib/a")).unwrap().mode, 0o700);
        assert!(rootfs.create_dir_all(Path::new("lib/a/b"), &attributes).unwrap().is_empty());
        let error = rootfs.create_dir_all(Path::new("file/x"), &attributes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    });
}

#[test]
fn small_files_only() {
    both(|_, rootfs| {
        put(rootfs, "passwd", b"root");
        link(rootfs, "etc", "passwd");
        mkdir(rootfs, "dir");
        assert_eq!(rootfs.read_small(Path::new("etc"), 4).unwrap(), b"root");
        for (path, limit, kind) in [
            ("etc", 3, io::ErrorKind::InvalidData),
            ("dir", 100, io::ErrorKind::InvalidData),
            ("none", 100, io::ErrorKind::NotFound),
        ] {
            assert_eq!(rootfs.read_small(Path::new(path), limit).unwrap_err().kind(), kind, "{path}");
        }
    });
}
