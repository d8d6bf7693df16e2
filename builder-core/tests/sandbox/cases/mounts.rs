//! What is mounted, and what is left of it.

use super::*;
use crate::inside::{Context, Tree, command, shell, tree_of};
use builder_core::cancel::Cancel;
use builder_core::rootfs::Rootfs;
use builder_core::sandbox::{ExitStatus, MountSource, RunSpec, RunUser, SandboxError, SandboxMount};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

pub(super) fn hosts_and_resolv_conf(context: &Context) {
    let tree = context.tree();
    let spec = RunSpec { extra_hosts: vec![("db".into(), "10.1.2.3".into())], ..shell("cat /etc/hosts") };
    let expected =
        ["127.0.0.1\tlocalhost buildkitsandbox", "::1\tlocalhost ip6-localhost ip6-loopback", "10.1.2.3\tdb"];
    assert_eq!(context.succeed(&tree, &spec), expected);
    assert!(!context.sh(&tree, "grep nameserver /etc/resolv.conf").is_empty());
    ends(context, "echo x >> /etc/hosts", ExitStatus::Code(1));
    ends(context, "echo x >> /etc/resolv.conf", ExitStatus::Code(1));
    ends(context, "rm -f /etc/hosts", ExitStatus::Code(1));
}

pub(super) fn files_of_etc_leave_no_trace(context: &Context) {
    let tree = context.tree();
    context.sh(&tree, "true"); // /dev, /proc and /sys stay from here on
    let before = listing(&tree.path);
    context.sh(&tree, "test -f /etc/hosts && test -f /etc/resolv.conf");
    assert_eq!(listing(&tree.path), before);
    fs::write(tree.path.join("etc/hosts"), "mine\n").expect("write");
    let before = listing(&tree.path);
    context.sh(&tree, "grep -q buildkitsandbox /etc/hosts");
    assert_eq!(listing(&tree.path), before);
    assert_eq!(fs::read(tree.path.join("etc/hosts")).expect("read"), b"mine\n");
    // What the command makes beside them is kept.
    context.sh(&tree, "echo x > /etc/new");
    assert!(tree.path.join("etc/new").exists());
}

pub(super) fn dangling_resolv_conf(context: &Context) {
    let tree = context.tree();
    symlink("../run/systemd/resolve/stub-resolv.conf", tree.path.join("etc/resolv.conf")).expect("link");
    assert!(!context.sh(&tree, "cat /etc/resolv.conf").is_empty());
    assert!(!tree.path.join("run").exists());
    assert!(tree.path.join("etc/resolv.conf").is_symlink());
}

pub(super) fn scratch_keeps_standard_directories(context: &Context) {
    let tree = context.tree();
    let path = context.empty_directory();
    let scratch = Tree { rootfs: Rootfs::open(&path).expect("open"), path };
    let script = "ls / > /seen.txt; ls /etc >> /seen.txt; stat -c %a /dev /proc /sys > /modes";
    let spec = RunSpec { mounts: vec![bind(&tree.path.join("bin"), "/bin")], ..shell(script) };
    context.succeed(&scratch, &spec);
    let seen = fs::read_to_string(scratch.path.join("seen.txt")).expect("read");
    assert_eq!(seen, "bin\ndev\netc\nproc\nseen.txt\nsys\nhosts\nresolv.conf\n");
    let mut left: Vec<_> = fs::read_dir(&scratch.path).expect("list").map(|e| e.expect("entry").file_name()).collect();
    left.sort();
    assert_eq!(left, ["dev", "modes", "proc", "seen.txt", "sys"]);
    for name in ["dev", "proc", "sys"] {
        let metadata = fs::metadata(scratch.path.join(name)).expect("stat");
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o755, 0, 0), "{name}");
        assert_eq!(fs::read_dir(scratch.path.join(name)).expect("list").count(), 0, "{name}");
    }
    let spec = RunSpec { mounts: vec![bind(&tree.path.join("bin"), "/bin")], ..shell("echo x > /etc/kept") };
    context.succeed(&scratch, &spec);
    assert!(scratch.path.join("etc/kept").exists());
    assert!(!scratch.path.join("etc/hosts").exists());
}

pub(super) fn devices_work(context: &Context) {
    let tree = context.tree();
    let script = "echo x > /dev/null && head -c 3 /dev/zero | wc -c && head -c 3 /dev/urandom | wc -c \
                  && head -c 2 /dev/random | wc -c && ! echo x 2>/dev/null > /dev/full && readlink /dev/fd && readlink /dev/stdin \
                  && ls -d /dev/pts/ptmx /dev/shm && echo x > /dev/shm/f && echo from fd | cat /dev/fd/0";
    let expected = ["3", "3", "2", "/proc/self/fd", "/proc/self/fd/0", "/dev/pts/ptmx", "/dev/shm", "from fd"];
    assert_eq!(context.sh(&tree, script), expected);
    context.sh(&tree, "echo > /dev/x; test ! -e /dev/shm/f");
    assert_eq!(fs::read_dir(tree.path.join("dev")).expect("list").count(), 0);
}

pub(super) fn shared_memory(context: &Context) {
    let tree = context.tree();
    let script = "df -k /dev/shm | tail -1 | awk '{print $2}'; stat -c %a /dev/shm";
    assert_eq!(context.sh(&tree, script), ["65536", "1777"]);
    let spec = RunSpec { shm_size: Some(1 << 20), ..shell(script) };
    assert_eq!(context.succeed(&tree, &spec), ["1024", "1777"]);
}

pub(super) fn mounts_of_the_host(context: &Context) {
    let (tree, source) = (context.tree(), context.empty_directory());
    fs::write(source.join("f"), "content").expect("write");
    let script =
        "cat /a/b/f /file; echo; echo x 2>/dev/null > /a/b/new || echo read-only; rm /a/b/f 2>/dev/null || echo kept";
    let mounts = vec![bind(&source, "/a/b"), bind(&source.join("f"), "/file")];
    let lines = context.succeed(&tree, &RunSpec { mounts, ..shell(script) });
    assert_eq!(lines, ["contentcontent", "read-only", "kept"]);
    let writable = SandboxMount { owners: None, readonly: false, ..bind(&source, "/w") };
    context.succeed(&tree, &RunSpec { mounts: vec![writable], ..shell("echo new > /w/new") });
    assert_eq!(fs::read(source.join("new")).expect("read"), b"new\n");
    let error =
        context.try_run(&tree.rootfs, &RunSpec { mounts: vec![bind(Path::new("/no/such"), "/x")], ..shell("true") });
    assert!(matches!(&error, Err(SandboxError::Setup { what, .. }) if what.contains("/no/such")), "{error:?}");
    assert!(!tree.path.join("x").exists());

    let listener = std::os::unix::net::UnixListener::bind(source.join("agent")).expect("socket");
    let agent = SandboxMount { owners: None, readonly: false, ..bind(&source.join("agent"), "/run/agent.0") };
    context.succeed(&tree, &RunSpec { mounts: vec![agent], ..shell("test -S /run/agent.0") });
    drop(listener);
    assert!(!tree.path.join("run").exists());
}

pub(super) fn mounts_of_descriptors(context: &Context) {
    let (tree, source) = (context.tree(), context.empty_directory());
    fs::write(source.join("f"), "content").expect("write");
    let open = |path: &Path| {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        Arc::new(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).expect("open"))
    };
    let mount = |descriptor, target: &str| SandboxMount {
        owners: None,
        target: target.into(),
        readonly: true,
        source: MountSource::Descriptor(descriptor),
    };
    let mounts = vec![mount(open(&source), "/d"), mount(open(&source.join("f")), "/etc/passwd")];
    let spec = RunSpec { mounts, ..shell("cat /d/f /etc/passwd; echo x 2>/dev/null > /d/f || echo read-only") };
    assert_eq!(context.succeed(&tree, &spec), ["contentcontentread-only"]);
    assert_eq!(context.succeed(&tree, &shell("wc -l < /etc/passwd")), ["2"]);

    // Twice, and from a mount that was never attached.
    let (overlay, _) = context.overlay(&tree.path);
    let overlay = Arc::new(overlay);
    for _ in 0..2 {
        let mounts = vec![mount(Arc::clone(&overlay), "/o")];
        assert_eq!(context.succeed(&tree, &RunSpec { mounts, ..shell("wc -l < /o/etc/passwd") }), ["2"]);
    }
}

pub(super) fn mounts_in_mounts(context: &Context) {
    let (tree, a, b) = (context.tree(), context.empty_directory(), context.empty_directory());
    fs::create_dir(a.join("b")).expect("mkdir");
    fs::write(a.join("1"), "").expect("write");
    fs::write(b.join("2"), "").expect("write");
    let tmpfs = |target: &str| SandboxMount {
        owners: None,
        target: target.into(),
        readonly: false,
        source: MountSource::Tmpfs(None),
    };
    // Not in order: parents come first all the same.
    let mounts = vec![
        bind(&b, "/m/a/b"),
        tmpfs("/m/t/deep/er"),
        bind(&a, "/m/a"),
        tmpfs("/m/t"),
        bind(&b.join("2"), "/m/t/x/y"),
    ];
    let script = "echo > /m/t/f; echo > /m/t/deep/er/g; find /m -type f | sort";
    let lines = context.succeed(&tree, &RunSpec { mounts, ..shell(script) });
    assert_eq!(lines, ["/m/a/1", "/m/a/b/2", "/m/t/deep/er/g", "/m/t/f", "/m/t/x/y"]);
    assert!(!tree.path.join("m").exists());
    // A missing place in a read-only mount cannot be made.
    let mounts = vec![bind(&a, "/m"), bind(&b, "/m/none")];
    let error = context.try_run(&tree.rootfs, &RunSpec { mounts, ..shell("true") });
    assert!(matches!(&error, Err(SandboxError::Setup { what, .. }) if what.contains("/m/none")), "{error:?}");
    let spec = RunSpec { mounts: vec![tmpfs("/dev/shm"), tmpfs("/dev/x")], ..shell("echo > /dev/x/f") };
    context.succeed(&tree, &spec);
}

pub(super) fn tmpfs_mounts(context: &Context) {
    let tree = context.tree();
    fs::create_dir(tree.path.join("d")).expect("mkdir");
    fs::write(tree.path.join("d/f"), "").expect("write");
    fs::set_permissions(tree.path.join("d"), fs::Permissions::from_mode(0o750)).expect("chmod");
    let tmpfs = |target: &str, size| SandboxMount {
        owners: None,
        target: target.into(),
        readonly: false,
        source: MountSource::Tmpfs(size),
    };
    let spec = RunSpec {
        mounts: vec![tmpfs("/d", None), tmpfs("/new", Some(1 << 20))],
        ..shell(
            "ls /d | wc -l; stat -c '%a %u:%g' /d /new; echo > /d/x; \
             dd if=/dev/zero of=/new/f bs=64k count=32 2>/dev/null || echo full; stat -c %s /new/f",
        )
    };
    assert_eq!(context.succeed(&tree, &spec), ["0", "750 0:0", "1777 0:0", "full", "1048576"]);
    assert!(tree.path.join("d/f").exists() && !tree.path.join("d/x").exists() && !tree.path.join("new").exists());
    // What is hidden in /proc is so nevertheless.
    let spec =
        RunSpec { mounts: vec![tmpfs("/dev", None)], ..shell("ls /dev | wc -l; head -c 1 /proc/keys 2>&1 | wc -c") };
    assert_eq!(context.succeed(&tree, &spec), ["0", "0"]);
}

pub(super) fn files_in_memory(context: &Context) {
    let tree = context.tree();
    let secret = |target: &str, mode, uid| SandboxMount {
        owners: None,
        target: target.into(),
        readonly: true,
        source: MountSource::Bytes { content: Arc::new(b"sesame".to_vec()), mode, uid, gid: 0, secret: true },
    };
    assert!(!format!("{:?}", secret("/x", 0o400, 0)).contains("sesame"));
    let mounts = vec![secret("/run/secrets/tok", 0o400, 0), secret("/x/y", 0o644, 0)];
    let script = "cat /run/secrets/tok; echo; stat -c '%a %u:%g' /run/secrets/tok /x/y; \
                  echo x 2>/dev/null > /x/y || echo read-only; cp /x/y /copy";
    let lines = context.succeed(&tree, &RunSpec { mounts, ..shell(script) });
    assert_eq!(lines, ["sesame", "400 0:0", "644 0:0", "read-only"]);
    assert!(!tree.path.join("run").exists() && !tree.path.join("x").exists());
    // Scripts of heredocs: below /dev, executed.
    let script = MountSource::Bytes {
        content: Arc::new(b"#!/bin/sh\necho $0\n".to_vec()),
        mode: 0o755,
        uid: 0,
        gid: 0,
        secret: false,
    };
    let mounts = vec![SandboxMount { owners: None, target: "/dev/pipes/EOF".into(), readonly: true, source: script }];
    assert_eq!(context.succeed(&tree, &RunSpec { mounts, ..command(&["/dev/pipes/EOF"]) }), ["/dev/pipes/EOF"]);
    context.needs_ids();
    let user = RunUser { uid: 1000, gid: 1000, groups: vec![1000], home: "/".into() };
    let mounts = vec![secret("/a", 0o400, 0), secret("/b", 0o400, 1000)];
    let spec = RunSpec { mounts, user, ..shell("cat /a 2>/dev/null || echo denied; cat /b") };
    assert_eq!(context.succeed(&tree, &spec), ["denied", "sesame"]);
}

/// While they are mounted, in all ways in which a command may look at them.
pub(super) fn secrets_are_on_no_disk(context: &Context) {
    context.needs_ids();
    let tree = context.tree();
    let content = Arc::new(b"sesame-on-no-disk".to_vec());
    let secret = |target: &str| SandboxMount {
        owners: None,
        target: target.into(),
        readonly: true,
        source: MountSource::Bytes { content: Arc::clone(&content), mode: 0o440, uid: 0, gid: 50, secret: true },
    };
    symlink("../run", tree.path.join("var/run")).expect("link");
    let script = "cd /run/secrets && wc -c < tok && cat ./tok && cat /var/run/secrets//tok | wc -c && \
                  stat -c '%s %a %u:%g %F' tok && ls && test -r tok && ! test -x tok && exec 3< tok && \
                  cat /proc/self/fd/3 | wc -c && readlink /proc/self/fd/3 && ! rm -f tok 2>/dev/null; test -e tok; \
                  chmod 777 tok 2>/dev/null; stat -c %a tok; echo; echo ready; sleep 0.3";
    let mounts = vec![secret("/run/secrets/tok"), secret("/etc/passwd")];
    let (top, found) = (context.directory.clone(), std::sync::Mutex::new(Vec::new()));
    let look = |line: &str| {
        if line == "ready" {
            let mut todo = vec![top.clone()];
            while let Some(path) = todo.pop() {
                if path.is_symlink() {
                    continue;
                }
                if path.is_dir() {
                    todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
                } else if path.is_file()
                    && fs::read(&path).is_ok_and(|bytes| bytes.windows(content.len()).any(|part| *part == **content))
                {
                    found.lock().expect("no panic").push(path);
                }
            }
        }
    };
    let spec = RunSpec { mounts, ..shell(script) };
    let outcome = context.try_run_until(&tree.rootfs, &spec, &Cancel::default(), &look).expect("runs");
    assert_eq!(outcome.status, ExitStatus::Code(0), "{outcome:?}");
    let expected =
        ["17", "sesame-on-no-disk17", "17 440 0:50 regular file", "tok", "17", "/run/secrets/tok", "440", "", "ready"];
    assert_eq!(outcome.stdout, expected, "{outcome:?}");
    assert_eq!(found.into_inner().expect("no panic"), Vec::<std::path::PathBuf>::new());
}

/// One cache at two places of a command: both show the same.
pub(super) fn one_directory_twice(context: &Context) {
    let (tree, source) = (context.tree(), context.empty_directory());
    let cache = |target: &str| SandboxMount { readonly: false, ..bind(&source, target) };
    let script = "echo both > /c/f && cat /d/f && mkdir /d/x && ls /c && rm /c/f && ls /d";
    let mounts = vec![cache("/c"), cache("/d")];
    assert_eq!(context.succeed(&tree, &RunSpec { mounts, ..shell(script) }), ["both", "f", "x", "x"]);
    assert!(source.join("x").exists());
    assert!(!tree.path.join("c").exists() && !tree.path.join("d").exists());
}

pub(super) fn mounts_leave_no_trace(context: &Context) {
    let (tree, source) = (context.tree(), context.empty_directory());
    context.sh(&tree, "mkdir -p /home/app");
    let before = listing(&tree.path);
    let mounts = || vec![bind(&source, "/a/b/c"), bind(&source, "/home/app/work"), bind(&source, "/bin")];
    let spec = RunSpec { mounts: mounts(), ..command(&["/bin/true"]) };
    let result = context.try_run(&tree.rootfs, &spec);
    assert!(matches!(result, Err(SandboxError::Exec { .. })), "/bin is covered");
    assert_eq!(listing(&tree.path), before, "after a failure");
    let spec = RunSpec { mounts: mounts()[..2].to_vec(), ..shell("true") };
    context.succeed(&tree, &spec);
    assert_eq!(listing(&tree.path), before, "after a success");
    let spec = RunSpec { mounts: mounts()[..2].to_vec(), ..shell("echo kept > /a/b/sibling; mkdir /a/dir") };
    context.succeed(&tree, &spec);
    let left: Vec<_> =
        listing(&tree.path.join("a")).iter().map(|line| line.split(' ').next().unwrap_or("").to_owned()).collect();
    assert_eq!(left, ["", "b", "b/sibling", "dir"]);
}

pub(super) fn targets_stay_inside(context: &Context) {
    let (tree, source) = (context.tree(), context.empty_directory());
    fs::write(source.join("f"), "").expect("write");
    symlink("/", tree.path.join("up")).expect("link");
    symlink("../../../../../../../tmp/inside", tree.path.join("far")).expect("link");
    symlink("/proc/self/fd/3", tree.path.join("magic")).expect("link");
    let mounts = vec![bind(&source, "/far/../x"), bind(&source, "/up/up/y"), bind(&source, "/../../z")];
    let lines = context.succeed(&tree, &RunSpec { mounts, ..shell("ls -d /tmp/x/f /y/f /z/f") });
    assert_eq!(lines, ["/tmp/x/f", "/y/f", "/z/f"]);
    for target in ["/magic", "/proc/self/root", "/proc/1/cwd/x"] {
        let mounts = vec![bind(&source, target)];
        let result = context.try_run(&tree.rootfs, &RunSpec { mounts, ..shell("true") });
        assert!(matches!(result, Err(SandboxError::Setup { .. })), "{target}: {result:?}");
    }
}

/// What lies above where a link leads, met in a path for the first time.
pub(super) fn up_behind_a_link(context: &Context) {
    let tree = context.tree();
    fs::create_dir_all(tree.path.join("a/b/c")).expect("directories");
    for (text, name) in [("a/b/c", "link"), ("/link", "again"), ("loop", "a/loop")] {
        symlink(text, tree.path.join(name)).expect("link");
    }
    fs::write(tree.path.join("a/b/f"), "found\n").expect("a file");
    assert_eq!(context.sh(&tree, "cat /again/../f; cat /a/loop/../f 2>/dev/null || echo no"), ["found", "no"]);
    assert_eq!(context.sh(&tree, "cd /a && cat ../link/../f && ls /link/../.."), ["found", "b", "loop"]);
    assert_eq!(
        context.sh(&tree, "echo x > /link/../new && mv /again/../new /link/../moved; ls /a/b"),
        ["c", "f", "moved"]
    );
}

pub(super) fn overlays(context: &Context) {
    let tree = context.tree();
    context.sh(&tree, "true"); // the lower layer has /dev, /proc and /sys
    let (overlay, upper) = context.overlay(&tree.path);
    let rootfs = tree_of(&overlay);
    let spec = shell("echo x > /new; rm /etc/group; ls /etc");
    let outcome = context.try_run(&rootfs, &spec).expect("runs");
    assert_eq!(outcome.stdout, ["hosts", "passwd", "resolv.conf"], "{outcome:?}");
    assert!(!tree.path.join("new").exists() && tree.path.join("etc/group").exists());
    let mut changed: Vec<_> =
        listing(&upper).iter().map(|line| line.split(' ').next().unwrap_or("").to_owned()).collect();
    changed.sort();
    assert_eq!(changed, ["", "etc", "etc/group", "new"]);
    // The tree stays readable through the descriptor.
    assert_eq!(rootfs.read_small(Path::new("/new"), 10).expect("read"), b"x\n");
    assert_eq!(context.try_run(&rootfs, &shell("cat /new")).expect("runs again").stdout, ["x"]);
}
