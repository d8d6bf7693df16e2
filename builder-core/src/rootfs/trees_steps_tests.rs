//! Trees over time: steps, restarts, killed processes, recorded owners.
#![expect(clippy::print_stderr, reason = "what cannot run says so")]

use std::path::PathBuf;

use super::tests::{assert_nothing_left, both, check, checkout};
use super::*;
use crate::oci::Sha256;
use crate::rootfs::test_layers::*;
use crate::rootfs::{Attributes, FileKind, NewFile};

fn put(rootfs: &Rootfs, path: &str, data: &str) {
    rootfs.create(Path::new(path), NewFile::File(&mut data.as_bytes()), &Attributes::default()).unwrap();
}

#[test]
fn steps_stack_and_can_be_given_up() {
    let base = [vec![dir("a"), file("a/f", "1"), file("b", "b")]];
    both(|trees, dir| {
        let (blobs, refs) = Blobs::layers(&base);
        let mut tree = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
        let first = DiffId(Sha256::of(b"first"));
        let step = tree.begin().unwrap();
        put(step.rootfs(), "a/new", "2");
        step.rootfs().remove(Path::new("b")).unwrap();
        match trees.mode() {
            TreeMode::Overlay => {
                let upper = step.upper().unwrap();
                assert_eq!(describe(upper), ["a/", "a/new=2", "b c0,0"]);
                assert_eq!(describe(step.lower().unwrap().unwrap()), ["a/", "a/f=1", "b=b"]);
                assert!(!step.is_opaque(Path::new("a")).unwrap());
                step.rootfs().remove(Path::new("a")).unwrap();
                step.rootfs().create(Path::new("a"), NewFile::Directory, &Attributes::default()).unwrap();
                assert!(step.is_opaque(Path::new("a")).unwrap());
                assert!(step.before().is_none());
            }
            TreeMode::Directory => {
                assert!(step.upper().is_none() && step.lower().unwrap().is_none());
                assert_eq!(step.before().unwrap().len(), 3);
                step.rootfs().remove(Path::new("a")).unwrap();
                step.rootfs().create(Path::new("a"), NewFile::Directory, &Attributes::default()).unwrap();
                assert_eq!(step.scan().unwrap().len(), 1);
            }
        }
        step.commit(first).unwrap();
        assert_eq!(describe(&tree.rootfs().unwrap()), ["a/"]);
        assert_eq!(tree.chain(), ChainId::of([refs[0].diff_id, first]));
        // Another checkout of the base is not affected, now or later.
        let mut other = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
        assert_eq!(describe(&other.rootfs().unwrap()), ["a/", "a/f=1", "b=b"]);
        let step = other.begin().unwrap();
        put(step.rootfs(), "lost", "x");
        drop(step);
        match trees.mode() {
            TreeMode::Overlay => assert_eq!(describe(&other.rootfs().unwrap()), ["a/", "a/f=1", "b=b"]),
            TreeMode::Directory => {
                assert!(matches!(other.rootfs(), Err(TreeError::Discarded)));
                assert!(matches!(other.begin().unwrap_err(), TreeError::Discarded));
            }
        }
        drop(other);
        let third = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
        assert_eq!(describe(&third.rootfs().unwrap()), ["a/", "a/f=1", "b=b"]);
        drop((tree, third));
        assert_nothing_left(dir);
    });
}

/// A source that has nothing.
struct Nothing;

impl LayerSource for Nothing {
    fn open(&self, _: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
        Err("must not be asked".into())
    }
}

#[test]
fn finished_trees_are_found_after_a_restart_and_unfinished_ones_removed() {
    both(|trees, dir| {
        let (blobs, refs) = Blobs::layers(&[vec![file("a", "a").owner(5, 6)], vec![file("b", "b")]]);
        drop(trees.checkout(&refs, &blobs, &Cancel::default()).unwrap());
        // What a killed process leaves, and what a living one works on.
        let dead = dir.join("trees/tmp/dead/layer/deep");
        std::fs::create_dir_all(&dead).unwrap();
        let mut living = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
        let step = living.begin().unwrap();
        put(step.rootfs(), "kept", "k");
        let again = Trees::open(dir, Some(trees.mode()), Ownership::Real).unwrap();
        assert!(!dead.exists());
        assert_eq!(describe(step.rootfs()), ["a=a", "b=b", "kept=k"]);
        step.commit(DiffId(Sha256::of(b"kept"))).unwrap();
        let chain = [refs.clone(), vec![LayerRef { diff_id: DiffId(Sha256::of(b"kept")), ..refs[0].clone() }]].concat();
        drop(living);
        let found = again.checkout(&chain, &Nothing, &Cancel::default()).unwrap();
        assert_eq!(describe(&found.rootfs().unwrap()), ["a=a", "b=b", "kept=k"]);
    });
}

#[test]
fn finished_trees_make_room_oldest_first() {
    let dir = tempfile::tempdir().unwrap();
    let trees = Trees::open(dir.path(), Some(TreeMode::Directory), Ownership::Real).unwrap();
    assert!(!trees.make_room());
    let made = |content| Blobs::layers(&[vec![file("f", content)]]);
    let (older, newer, used) = (made("older"), made("newer"), made("used"));
    for (blobs, refs) in [&older, &newer] {
        drop(trees.checkout(refs, blobs, &Cancel::default()).unwrap());
        // Two names of one instant would have no order.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let in_use = trees.checkout(&used.1, &used.0, &Cancel::default()).unwrap();
    assert!(trees.make_room());
    assert!((trees.has(&newer.1), trees.has(&older.1)) == (true, false));
    assert!(trees.make_room() && !trees.make_room());
    assert_eq!(describe(&in_use.rootfs().unwrap()), ["f=used"]);
    // What is gone can be made again.
    let again = trees.checkout(&older.1, &older.0, &Cancel::default()).unwrap();
    assert_eq!(describe(&again.rootfs().unwrap()), ["f=older"]);
    drop((in_use, again));
    assert_nothing_left(dir.path());
}

#[test]
fn stages_with_one_base_may_start_together() {
    both(|trees, dir| {
        let layers: Vec<_> = (0..6).map(|n| vec![file(&format!("f{n}"), "x"), file(".wh.f0", "")]).collect();
        let (blobs, refs) = Blobs::layers(&layers);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let tree = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
                    assert_eq!(describe(&tree.rootfs().unwrap()), ["f1=x", "f2=x", "f3=x", "f4=x", "f5=x"]);
                });
            }
        });
        assert_nothing_left(dir);
    });
}

#[test]
fn stacks_may_be_higher_than_a_mount() {
    let layers: Vec<_> =
        (0..510).map(|n| vec![file(&format!("f{n}"), ""), file(&format!(".wh.f{}", n.max(3) - 3), "")]).collect();
    check(&layers, &["f507=", "f508=", "f509="]);
}

#[test]
fn a_mount_has_far_fewer_directories_than_a_stack_has_small_layers() {
    const STEPS: usize = 300;
    let shown = std::cell::RefCell::new(Vec::new());
    both(|trees, dir| {
        let (blobs, refs) = Blobs::layers(&[vec![super::super::test_layers::dir("a"), file("a/f", "1"), fifo("p")]]);
        let mut tree = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
        for number in 0..STEPS {
            let step = tree.begin().unwrap();
            let rootfs = step.rootfs();
            // Names that come, go and change their kind, in directories that do.
            let (name, old) = (format!("a/n{}", number % 40), format!("a/n{}", (number + 13) % 40));
            _ = rootfs.remove(Path::new(&old));
            let attributes = Attributes { mode: Some(0o750), mtime: Some((number as i64, 0)), ..Attributes::default() };
            match number % 4 {
                0 => rootfs.create(Path::new(&name), NewFile::Directory, &attributes).unwrap(),
                1 => {
                    rootfs.create(Path::new(&name), NewFile::File(&mut &b"x"[..]), &attributes).unwrap();
                    rootfs.hard_link(Path::new(&name), Path::new(&format!("{name}-link"))).unwrap();
                }
                2 => rootfs.create(Path::new(&name), NewFile::Symlink(Path::new("f")), &attributes).unwrap(),
                _ => {
                    _ = rootfs.remove(Path::new(&name));
                    rootfs.create_dir_all(Path::new(&format!("{name}/below/{number}")), &attributes).unwrap();
                    if number % 60 == 59 {
                        rootfs.remove(Path::new("a")).unwrap();
                        rootfs.create(Path::new("a"), NewFile::Directory, &attributes).unwrap();
                    }
                }
            }
            let set = Attributes { mtime: Some((7, 0)), ..Attributes::default() };
            rootfs.set_attributes(Path::new("a"), &set).unwrap();
            let diff_id = DiffId(Sha256::of(format!("step {number}").as_bytes()));
            if trees.mode() == TreeMode::Directory {
                step.scan().unwrap();
            }
            step.commit(diff_id).unwrap();
        }
        if let State::Overlay(OverlayTree { stacks, chains, .. }) = &tree.state {
            assert_eq!(chains.len(), STEPS + 1);
            let directories = stacks.lower(chains).unwrap();
            assert!(directories.len() < 40, "{} directories", directories.len());
            assert!(directories.iter().any(|place| place.to_string_lossy().ends_with("-256")));
        }
        shown.borrow_mut().push(describe(&tree.rootfs().unwrap()));
        drop(tree);
        assert_nothing_left(dir);
    });
    if let [a, b] = &shown.into_inner()[..] {
        assert_eq!(a, b);
    }
}

#[test]
fn a_refused_overlay_says_why() {
    let dir = tempfile::tempdir().unwrap();
    // An overlay on an overlay is refused by the kernel.
    let under = Trees::open(dir.path(), None, Ownership::Real).unwrap();
    if under.mode() != TreeMode::Overlay {
        eprintln!("skipped: {}", under.overlay_refused().unwrap_or_default());
        return;
    }
    let mut tree = checkout(&under, &[]).unwrap();
    let step = tree.begin().unwrap();
    // In a namespace a path can name it, for as long as this takes.
    let place = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(step.rootfs().root_fd(), "", rustix::fs::CWD, place.path(), flags).unwrap();
    let opened = Trees::open(&place.path().join("work"), None, Ownership::Real);
    let forced = Trees::open(&place.path().join("work"), Some(TreeMode::Overlay), Ownership::Real);
    rustix::mount::unmount(place.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    let opened = opened.unwrap();
    assert_eq!(opened.mode(), TreeMode::Directory);
    assert!(opened.overlay_refused().unwrap().contains("overlayfs itself"), "{:?}", opened.overlay_refused());
    assert!(matches!(forced, Err(TreeError::NoOverlay { .. })));
    drop(step);
    let recorded = Trees::open(dir.path(), None, Ownership::Recorded).unwrap();
    assert_eq!(recorded.mode(), TreeMode::Directory);
    assert!(recorded.overlay_refused().unwrap().contains("recorded"));
}

#[test]
fn recorded_owners_look_real() {
    const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let layers = [
        vec![
            dir("d").owner(1, 2).mode(0o2755),
            file("d/f", "f").owner(1000, 100).mode(0o4755).pax("SCHILY.xattr.security.capability", CAPABILITY),
            hard_link("h", "d/f").owner(1000, 100).mode(0o4755),
            char_device("null", (1, 3)).owner(0, 5).mode(0o666),
            symlink("s", "x").owner(9, 9),
            file("plain", "p").pax("SCHILY.xattr.user.note", b"n"),
        ],
        vec![file("d/g", "g").owner(7, 7), file("over", "1").owner(8, 8), file("over", "2")],
    ];
    let dir = tempfile::tempdir().unwrap();
    let (blobs, refs) = Blobs::layers(&layers);
    let real = tempfile::tempdir().unwrap();
    let real_trees = Trees::open(real.path(), Some(TreeMode::Directory), Ownership::Real).unwrap();
    let real_tree = real_trees.checkout(&refs, &blobs, &Cancel::default());
    let expected = match real_tree {
        Ok(tree) => Some(describe_fully(&tree.rootfs().unwrap())),
        Err(error @ TreeError::UnmappedId { .. }) => {
            eprintln!("skipped: no real owners to compare with: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    };
    let same = |rootfs: &Rootfs| {
        let found = describe_fully(rootfs);
        assert_eq!(&found, expected.as_ref().unwrap_or(&found));
    };

    let trees = Trees::open(dir.path(), None, Ownership::Recorded).unwrap();
    let mut tree = trees.checkout(&refs, &blobs, &Cancel::default()).unwrap();
    let rootfs = tree.rootfs().unwrap();
    same(&rootfs);
    assert_eq!(rootfs.read_dir(Path::new("/")).unwrap()[2], ("null".into(), FileKind::CharDevice));
    assert!(rootfs.open_file(Path::new("null")).is_err());
    // Kept over a restart.
    drop((rootfs, tree));
    tree = trees.checkout(&refs, &Nothing, &Cancel::default()).unwrap();
    same(&tree.rootfs().unwrap());
    // Renames by a RUN keep it; a new file in the place of an old one has none; what is gone is forgotten.
    let step = tree.begin().unwrap();
    let raw =
        std::fs::read_dir(dir.path().join("trees/tmp")).unwrap().next().unwrap().unwrap().path().join("tree/root");
    std::fs::rename(raw.join("d/f"), raw.join("moved")).unwrap();
    std::fs::remove_file(raw.join("d/g")).unwrap();
    std::fs::write(raw.join("d/g"), "new").unwrap();
    let stat = |path: &str| step.rootfs().lstat(Path::new(path)).unwrap();
    assert_eq!((stat("moved").uid, stat("moved").gid, stat("moved").mode), (1000, 100, 0o4755));
    assert_eq!((stat("d/g").uid, stat("d/g").gid), (0, 0));
    put(step.rootfs(), "made", "m");
    step.rootfs()
        .set_attributes(Path::new("made"), &Attributes { owner: Some((42, 43)), ..Attributes::default() })
        .unwrap();
    assert_eq!((stat("made").uid, stat("made").gid), (42, 43));
    assert_eq!(step.scan().unwrap().get(Path::new("made")).unwrap().unwrap().metadata.gid, 43);
    std::fs::remove_file(raw.join("s")).unwrap();
    step.scan().unwrap();
    step.commit(DiffId(Sha256::of(b"step"))).unwrap();
    let State::Directory(plain) = &tree.state else { panic!("recorded trees are directories") };
    let saved = dir.path().join("owners");
    std::fs::create_dir(&saved).unwrap();
    plain.owners().unwrap().save(&saved.join("owners.json")).unwrap();
    let text = std::fs::read_to_string(saved.join("owners.json")).unwrap();
    // d, d/f with h, null, made; over (8:8 → 0:0), d/g and s are gone.
    assert_eq!(text.lines().count(), 4, "{text}");
}

#[test]
fn a_recorded_capability_does_not_survive_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let trees = Trees::open(dir.path(), None, Ownership::Recorded).unwrap();
    let capability = |name: &str| file(name, "data").pax("SCHILY.xattr.security.capability", b"\x01\0\0\x02");
    let mut tree = checkout(&trees, &[vec![capability("kept"), capability("written")]]).unwrap();
    let step = tree.begin().unwrap();
    std::io::Write::write_all(&mut step.rootfs().overwrite(Path::new("written")).unwrap(), b"DATA").unwrap();
    step.scan().unwrap();
    let has = |name: &str| !step.rootfs().xattrs(Path::new(name)).unwrap().is_empty();
    assert!(has("kept") && !has("written"));
}

/// A checkout that gets half a layer and then waits to be killed.
#[test]
#[ignore = "started and killed by a_killed_process_leaves_a_usable_directory"]
#[allow(clippy::disallowed_methods, reason = "the other process says where to work")]
fn victim() {
    struct Endless(usize);
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                std::thread::sleep(std::time::Duration::from_secs(60));
            }
            let layer = tar(&[file("half", &"x".repeat(4 << 20))]);
            let count = buffer.len().min(self.0);
            let start = (2 << 20) - self.0;
            buffer[..count].copy_from_slice(&layer[start..start + count]);
            self.0 -= count;
            Ok(count)
        }
    }
    struct Source(Blobs, DiffId);
    impl LayerSource for Source {
        fn open(&self, layer: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
            if layer.diff_id == self.1 { self.0.open(layer) } else { Ok(Box::new(Endless(2 << 20))) }
        }
    }
    let dir = std::path::PathBuf::from(std::env::var_os("SLIPWAY_TEST_DIR").unwrap());
    let mode = if std::env::var_os("SLIPWAY_TEST_OVERLAY").is_some() { TreeMode::Overlay } else { TreeMode::Directory };
    let trees = Trees::open(&dir, Some(mode), Ownership::Real).unwrap();
    let (blobs, refs) = Blobs::layers(&[vec![file("whole", "w")], vec![file("half", "never")]]);
    let whole = refs[0].diff_id;
    trees.checkout(&refs, &Source(blobs, whole), &Cancel::default()).unwrap();
}

#[test]
#[allow(clippy::disallowed_methods, reason = "only a process of its own can be killed")]
fn a_killed_process_leaves_a_usable_directory() {
    both(|trees, _| {
        let dir = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "rootfs::trees::steps_tests::victim", "--ignored"])
            .env("SLIPWAY_TEST_DIR", dir.path());
        if trees.mode() == TreeMode::Overlay {
            command.env("SLIPWAY_TEST_OVERLAY", "1");
        }
        let mut child =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        // Until half a layer, or of half the layers the tree, lies there.
        let tmp = dir.path().join("trees/tmp");
        let half = || {
            let Ok(entries) = std::fs::read_dir(&tmp) else { return false };
            entries
                .flatten()
                .any(|entry| ["layer/half", "tree/root/whole"].iter().any(|path| entry.path().join(path).exists()))
        };
        while !half() {
            assert!(child.try_wait().unwrap().is_none(), "the process ended by itself");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let again = Trees::open(dir.path(), Some(trees.mode()), Ownership::Real).unwrap();
        assert_nothing_left(dir.path());
        let (blobs, refs) = Blobs::layers(&[vec![file("whole", "w")], vec![file("half", "now all")]]);
        let tree = again.checkout(&refs, &blobs, &Cancel::default()).unwrap();
        assert_eq!(describe(&tree.rootfs().unwrap()), ["half=now all", "whole=w"]);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()), "something is left mounted");
    });
}

/// Writing through one name of a file of a lower layer leaves its other names alone, in both modes.
#[test]
fn hard_links_of_lower_layers_are_apart_for_a_command() {
    use std::io::Write as _;
    both(|trees, _| {
        let layers =
            [vec![dir("d"), file("d/one", "data"), hard_link("d/two", "d/one"), hard_link("d/three", "d/one")]];
        let mut tree = checkout(trees, &layers).unwrap();
        let read = |rootfs: &Rootfs, path: &str| rootfs.read_small(Path::new(path), 9).unwrap();
        for (name, others) in [("d/one", ["d/two", "d/three"]), ("d/two", ["d/three", "d/three"])] {
            let mut step = tree.begin().unwrap();
            step.prepare_command(&Cancel::default()).unwrap();
            step.rootfs().overwrite(Path::new(name)).unwrap().write_all(b"new!").unwrap();
            for other in others {
                assert_eq!(read(step.rootfs(), other), b"data", "{:?} mode", trees.mode());
            }
            let changes = crate::snapshot::changes(&step, None).unwrap();
            let paths: Vec<_> = changes.iter().map(|change| change.unwrap().path().to_owned()).collect();
            assert_eq!(paths, ["d", name].map(PathBuf::from), "{:?} mode", trees.mode());
            step.commit(DiffId(Sha256::of(name.as_bytes()))).unwrap();
        }
        let rootfs = tree.rootfs().unwrap();
        assert_eq!(describe(&rootfs), ["d/", "d/one=new!", "d/three=data", "d/two=new!"]);
    });
    // Untouched ones are one file for whoever reads the tree, and for a later step.
    both(|trees, _| {
        let layers = [vec![file("one", "data"), hard_link("two", "one"), file("x", "x")]];
        let mut tree = checkout(trees, &layers).unwrap();
        for _ in 0..2 {
            let mut step = tree.begin().unwrap();
            step.prepare_command(&Cancel::default()).unwrap();
            step.rootfs().remove(Path::new("x")).unwrap();
            step.scan().unwrap();
            step.commit(DiffId(Sha256::of(b"x"))).unwrap();
            let rootfs = tree.rootfs().unwrap();
            assert_eq!(rootfs.lstat(Path::new("two")).unwrap().links, 2, "{:?} mode", trees.mode());
        }
    });
}

#[test]
fn a_recorded_group_is_inherited_from_a_directory_with_setgid() {
    let dir_ = tempfile::tempdir().unwrap();
    let trees = Trees::open(dir_.path(), None, Ownership::Recorded).unwrap();
    let layers = [vec![dir("shared").mode(0o2775).owner(7, 8), dir("own").owner(7, 8), file("shared/old", "o")]];
    let mut tree = checkout(&trees, &layers).unwrap();
    let mut step = tree.begin().unwrap();
    step.prepare_command(&Cancel::default()).unwrap();
    // What a command makes, the kernel's own inheritance of the bit included.
    let root = step.rootfs();
    let bit = Attributes { mode: Some(0o2755), ..Attributes::default() };
    root.create(Path::new("shared/sub"), NewFile::Directory, &bit).unwrap();
    for path in ["shared/new", "shared/sub/deep", "own/new"] {
        root.create(Path::new(path), NewFile::File(&mut &b""[..]), &Attributes::default()).unwrap();
    }
    let found = step.scan().unwrap();
    let groups: Vec<_> =
        found.iter().map(Result::unwrap).map(|file| format!("{} {}", file.path.display(), file.metadata.gid)).collect();
    assert_eq!(
        groups,
        ["own 8", "own/new 0", "shared 8", "shared/new 8", "shared/old 0", "shared/sub 8", "shared/sub/deep 8"]
    );
    assert_eq!(step.rootfs().lstat(Path::new("shared/sub/deep")).unwrap().gid, 8);
}
