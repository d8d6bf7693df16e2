//! Who a command is, and what it cannot do.

use super::*;
use crate::inside::{Context, command, shell};
use builder_core::hint::Hint;
use builder_core::rootfs::{FileKind, Rootfs};
use builder_core::sandbox::{
    ExitStatus, IdMapping, Processes, RunSpec, RunUser, SandboxError, SandboxMount, Tier, users,
};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

pub(super) fn other_devices_do_not_open(context: &Context) {
    let tree = context.tree();
    // The same numbers as /dev/null, which is harmless; made in a place where devices must not work.
    let script = "for d in /tmp /dev /dev/shm; do if mknod $d/node c 1 3 2>/dev/null; then \
                  if (echo x > $d/node) 2>/dev/null; then echo opened $d; fi; fi; done";
    assert!(context.sh(&tree, script).is_empty());
}

pub(super) fn proc_is_ours(context: &Context) {
    let tree = context.tree();
    // Where a container's runtime has hidden a part of /proc, the kernel lets nobody inside see it in another way: what is shown
    // is the outer one then, and the command has the number that it has there.
    let expected = if context.masked_proc { Processes::Guarded } else { Processes::Own };
    assert_eq!(context.environment.processes, expected);
    if expected == Processes::Own {
        let script = "tr '\\0' ' ' < /proc/1/cmdline; echo; ls -d /proc/[0-9]*";
        let lines = context.sh(&tree, script);
        assert_eq!(lines[0], format!("/bin/sh -c {script} "));
        // The shell itself and `ls`.
        assert!(lines.len() <= 3, "other processes: {lines:?}");
    } else {
        context.sh(&tree, "test -e /proc/self/status && test -e /proc/meminfo && test -e /proc/$PPID/stat");
    }
}

pub(super) fn read_only_parts(context: &Context) {
    let tree = context.tree();
    let script = "touch /sys/x 2>/dev/null || echo sys; (echo 1 > /proc/sys/kernel/domainname) 2>/dev/null || echo procsys; \
                  mkdir /sys/fs/cgroup/x 2>/dev/null || echo cgroup; test ! -s /proc/kcore && echo kcore; \
                  test -z \"$(ls /sys/firmware 2>/dev/null)\" && echo firmware";
    assert_eq!(context.sh(&tree, script), ["sys", "procsys", "cgroup", "kcore", "firmware"]);
}

/// find(1), du(1) and ls(1) complain of names that lead to nothing.
pub(super) fn what_is_listed_is_there(context: &Context) {
    let tree = context.tree();
    // Processes may end meanwhile.
    let script = "for name in $(ls -A /proc); do case $name in [0-9]*) continue;; esac; \
                  test -e /proc/$name || test -L /proc/$name || echo $name; done; \
                  for name in $(ls -A /sys); do test -e /sys/$name || echo $name; done; \
                  ls -A /sys/firmware; ls -d /proc/self/status; cd /proc/self/.. && pwd";
    assert_eq!(context.sh(&tree, script), ["/proc/self/status", "/proc"]);
}

/// cp(1) compares the two, and skips a file that is another one.
pub(super) fn files_are_what_is_opened(context: &Context) {
    let tree = context.tree();
    let script = "for file in mounts status maps; do \
                  sh -c \"exec stat -L -c %d:%i /proc/self/fd/3 /proc/self/$file 3</proc/self/$file\" | busybox uniq | wc -l; \
                  done; exec 3</proc/sys/kernel/hostname; cat /proc/self/fd/3";
    assert_eq!(context.sh(&tree, script), ["1", "1", "1", "buildkitsandbox"]);
}

pub(super) fn builder_is_out_of_reach(context: &Context) {
    let tree = context.tree();
    let script = "cat /proc/*/environ /proc/*/task/*/environ 2>/dev/null | tr '\\0' '\\n' | grep BUILDER; \
                  ls -d /proc/*/root/etc/shadow /proc/*/cwd/builder-core 2>/dev/null; ls /proc/self/fd | wc -l";
    // 0, 1, 2 and the one that ls itself has open.
    assert_eq!(context.sh(&tree, script), ["4"]);
}

pub(super) fn old_root_is_gone(context: &Context) {
    let tree = context.tree();
    fs::write(tree.path.join("marker"), "").expect("write");
    // Every way up leads to the same directory, also for who may chroot.
    let script = "cd /etc/..; ls marker; ls /../marker /bin/../../marker; mkdir /c; chroot /c /../bin/true 2>/dev/null || echo none; \
                  awk '$5 == \"/\"' /proc/self/mountinfo | wc -l";
    assert_eq!(context.sh(&tree, script), ["marker", "/../marker", "/bin/../../marker", "none", "1"]);
    if context.environment.ids == IdMapping::Root {
        // Only what the sandbox mounts: 1 root, 10 of /dev, /proc with its parts, /sys with its parts, 2 of /etc.
        let mounts = context.sh(&tree, "cut -d' ' -f5 /proc/self/mountinfo");
        let known = ["/dev", "/proc", "/sys", "/etc/hosts", "/etc/resolv.conf"];
        let strange: Vec<_> =
            mounts.iter().filter(|path| *path != "/" && !known.iter().any(|known| path.starts_with(known))).collect();
        assert!(strange.is_empty(), "{strange:?}");
        if context.environment.tier == Some(Tier::Namespaces) {
            // Named as container runtimes name them: scripts look for `^proc `.
            let named = context.sh(&tree, "cut -d' ' -f1-2 /proc/mounts | grep -E ' /(proc|dev/pts|dev/shm)$' | sort");
            assert_eq!(named, ["devpts /dev/pts", "proc /proc", "shm /dev/shm"]);
        }
    }
}

pub(super) fn capabilities(context: &Context) {
    let tree = context.tree();
    let script = "grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t '";
    assert_eq!(
        context.sh(&tree, script),
        [
            "CapInh:0000000000000000",
            "CapPrm:00000000a80425fb",
            "CapEff:00000000a80425fb",
            "CapBnd:00000000a80425fb",
            "CapAmb:0000000000000000",
            "NoNewPrivs:0",
            "Seccomp:2",
        ]
    );
    context.needs_ids();
    let spec =
        RunSpec { user: RunUser { uid: 1000, gid: 1000, groups: vec![1000], home: "/".into() }, ..shell(script) };
    let lines = context.succeed(&tree, &spec);
    assert_eq!(lines[1..4], ["CapPrm:0000000000000000", "CapEff:0000000000000000", "CapBnd:00000000a80425fb"]);
}

pub(super) fn system_calls_are_filtered(context: &Context) {
    let tree = context.tree();
    let script = "unshare -U true 2>/dev/null || echo user; mount -t tmpfs none /tmp 2>/dev/null || echo mount; \
                  chroot / true && echo chroot";
    assert_eq!(context.sh(&tree, script), ["user", "mount", "chroot"]);
}

pub(super) fn working_directory(context: &Context) {
    let tree = context.tree();
    let spec = RunSpec { cwd: "/new/work".into(), ..shell("pwd; touch here") };
    assert_eq!(context.succeed(&tree, &spec), ["/new/work"]);
    assert!(tree.path.join("new/work/here").exists());
    let metadata = fs::metadata(tree.path.join("new")).expect("stat");
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o755, 0));

    symlink("/tmp", tree.path.join("link")).expect("link");
    assert_eq!(context.succeed(&tree, &RunSpec { cwd: "/link/sub".into(), ..shell("pwd -P") }), ["/tmp/sub"]);

    fs::write(tree.path.join("file"), "").expect("write");
    let error =
        context.try_run(&tree.rootfs, &RunSpec { cwd: "/file".into(), ..shell("true") }).expect_err("no directory");
    assert!(matches!(&error, SandboxError::Setup { what, .. } if what.contains("/file")), "{error:?}");

    context.needs_ids();
    let user = RunUser { uid: 1000, gid: 50, groups: vec![50], home: "/".into() };
    let spec = RunSpec { cwd: "/var/of/app".into(), user, ..shell("touch mine; stat -c '%u:%g %a' /var/of . mine") };
    assert_eq!(context.succeed(&tree, &spec), ["1000:50 755", "1000:50 755", "1000:50 644"]);
}

pub(super) fn users_and_groups(context: &Context) {
    let tree = context.tree();
    let script = "echo $(id -u):$(id -g) $(id -G)";
    let root = RunSpec { user: users::lookup(&tree.rootfs, "").expect("root"), ..shell(script) };
    let lines = context.succeed(&tree, &root);
    if context.environment.ids == IdMapping::Single {
        assert!(lines[0].starts_with("0:0 0"), "{lines:?}");
    } else {
        assert_eq!(lines, ["0:0 0"]);
    }
    context.needs_ids();
    for (user, expected) in
        [("app", "1000:1000 1000 50"), ("1000", "1000:1000 1000 50"), ("app:extra", "1000:50 50"), ("7", "7:0 0")]
    {
        let spec = RunSpec { user: users::lookup(&tree.rootfs, user).expect(user), ..shell(script) };
        assert_eq!(context.succeed(&tree, &spec), [expected], "{user}");
    }
    let app = RunSpec { user: users::lookup(&tree.rootfs, "app").expect("app"), ..shell("echo x > /root/denied") };
    assert_eq!(context.try_run(&tree.rootfs, &app).expect("runs").status, ExitStatus::Code(1));
    // It may use its own output by name, which belongs to somebody else otherwise.
    let app = RunSpec { argv: shell("echo named > /dev/stdout; echo x > /tmp/mine").argv, ..app };
    assert_eq!(context.succeed(&tree, &app), ["named"]);
    assert_eq!(fs::metadata(tree.path.join("tmp/mine")).expect("stat").uid(), 1000);
    context.sh(&tree, "chown 1000:50 /etc/group && stat -c %u:%g /etc/group");
}

pub(super) fn ids_that_do_not_exist(context: &Context) {
    let tree = context.tree();
    let user = |uid| RunUser { uid, gid: 0, groups: vec![0], home: "/".into() };
    match context.environment.ids {
        IdMapping::Single => {
            let error =
                context.try_run(&tree.rootfs, &RunSpec { user: user(1000), ..shell("true") }).expect_err("no id");
            assert!(matches!(error, SandboxError::NoSuchId { id: 1000 }), "{error:?}");
            assert!(error.hint().is_some_and(|hint| hint.contains("/etc/subuid")), "{error:?}");
            assert!(context.environment.failed_run_hint().is_some_and(|hint| hint.contains("add-subuids")));
            ends(context, "chown 1000 /tmp", ExitStatus::Code(1));
            // Supplementary groups cannot be had, and must not stand in the way: Alpine's root has ten.
            let user = RunUser { groups: vec![0, 10, 20], ..user(0) };
            context.succeed(&tree, &RunSpec { user, ..shell("true") });
        }
        IdMapping::Subordinate => {
            let error =
                context.try_run(&tree.rootfs, &RunSpec { user: user(99_999), ..shell("true") }).expect_err("no id");
            assert!(matches!(error, SandboxError::NoSuchId { id: 99_999 }), "{error:?}");
        }
        _ => {
            let outcome = context.try_run(&tree.rootfs, &RunSpec { user: user(4_000_000_000), ..shell("id -u") });
            assert_eq!(outcome.expect("runs").stdout, ["4000000000"]);
        }
    }
}

pub(super) fn setuid_programs(context: &Context) {
    context.needs_ids();
    let tree = context.tree();
    // `su` of busybox says so when it does not have root's rights at its start. Not from the shell, which would not exec it.
    fs::remove_file(tree.path.join("bin/su")).expect("remove the link");
    fs::copy(tree.path.join("bin/busybox"), tree.path.join("bin/su")).expect("copy");
    let complains = |mode| {
        fs::set_permissions(tree.path.join("bin/su"), fs::Permissions::from_mode(mode)).expect("chmod");
        let user = RunUser { uid: 1000, gid: 1000, groups: vec![1000], home: "/".into() };
        let outcome =
            context.try_run(&tree.rootfs, &RunSpec { user, ..command(&["/bin/su", "-c", "true"]) }).expect("runs");
        assert_eq!(outcome.status, ExitStatus::Code(1), "no password is given: {outcome:?}");
        outcome.stderr.iter().any(|line| line.contains("must be suid"))
    };
    assert!(complains(0o755));
    assert!(!complains(0o4755));
}

pub(super) fn device_nodes(context: &Context) {
    let tree = context.tree();
    let made = context.try_run(&tree.rootfs, &shell("mkfifo /pipe && mknod /null c 1 3")).expect("runs");
    let may = matches!(context.environment.ids, IdMapping::Root | IdMapping::Played);
    let expected = if may { 0 } else { 1 };
    assert_eq!(made.status, ExitStatus::Code(expected), "{made:?}");
    assert!(tree.path.join("pipe").exists());
    if context.environment.ids == IdMapping::None {
        return;
    }

    // Where files stand for devices they are recorded beside the tree, and nowhere else.
    let tree = context.tree();
    let rootfs = Rootfs::open(&tree.path).expect("open").recording(Arc::default());
    let elsewhere = context.empty_directory();
    let mounts = vec![SandboxMount { readonly: false, ..bind(&elsewhere, "/elsewhere") }];
    let script = "umask 027; mkdir /dir && mknod /dir/null c 1 3 && mknod -m 604 /sda b 8 1 && mv /dir/null /moved && ln /sda /hard; \
                  touch /plain; mknod /elsewhere/null c 1 3";
    let made = context.try_run(&rootfs, &RunSpec { mounts, ..shell(script) }).expect("runs");
    if context.environment.tier == Some(Tier::Namespaces) && context.environment.ids != IdMapping::Root {
        assert_eq!(made.status, ExitStatus::Code(1), "in another mount: {made:?}");
    }
    let seen =
        |path: &str| rootfs.lstat(Path::new(path)).map(|found| (found.kind, found.device, found.mode)).expect(path);
    assert_eq!(seen("/moved"), (FileKind::CharDevice, (1, 3), 0o640));
    assert_eq!(seen("/sda"), (FileKind::BlockDevice, (8, 1), 0o604));
    assert_eq!(seen("/hard").1, (8, 1));
    assert_eq!(seen("/plain").0, FileKind::File);
}

pub(super) fn set_ids_of_written_files(context: &Context) {
    let tree = context.tree();
    let script = "umask 0; echo a > f; exec 3>> f; chmod $1 f; stat -c %a f; echo b >&3; stat -c %a f; chmod $1 f; \
                  echo c >> f; stat -c %a f; chmod $1 f; : > f; stat -c %a f";
    let run = |user: u32, mode: &str| {
        let user = RunUser { uid: user, gid: user, groups: vec![user], home: "/".into() };
        let argv = ["/bin/sh", "-ec", &format!("cd $(mktemp -d); {script}"), "sh", mode];
        context.succeed(&tree, &RunSpec { user, ..command(&argv) })
    };
    // Root's CAP_FSETID keeps them, which the kernel knows in the first user namespace alone.
    let kept = matches!(context.environment.ids, IdMapping::Root | IdMapping::Played);
    for (mode, lost) in [("4755", "755"), ("6755", "755"), ("2745", "2745")] {
        let left = if kept { mode } else { lost };
        assert_eq!(run(0, mode), [mode, left, left, left], "root");
    }
    context.needs_ids();
    for (mode, lost) in [("4755", "755"), ("6755", "755")] {
        assert_eq!(run(1000, mode), [mode, lost, lost, lost], "a user");
    }
}

pub(super) fn no_network(context: &Context) {
    let tree = context.tree();
    let script = "ls /sys/class/net; ip -o addr show up | grep -c 'inet 127.0.0.1/8'";
    let spec = RunSpec { no_network: true, ..shell(script) };
    if !context.environment.own_network {
        let error = context.try_run(&tree.rootfs, &spec).expect_err("no network of its own");
        assert!(matches!(error, SandboxError::NoNetworkNamespace), "{error:?}");
        return;
    }
    let outcome = context.try_run(&tree.rootfs, &spec).expect("runs");
    assert_eq!(outcome.stdout.last().map(String::as_str), Some("1"), "{outcome:?}");
    assert_eq!(outcome.stdout.first().map(String::as_str), Some("lo"), "{outcome:?}");
}

pub(super) fn limits(context: &Context) {
    let tree = context.tree();
    let spec = RunSpec {
        ulimits: vec![("nofile".into(), 64, 128), ("core".into(), 0, 0)],
        ..shell("ulimit -Sn; ulimit -Hn; ulimit -c")
    };
    assert_eq!(context.succeed(&tree, &spec), ["64", "128", "0"]);
    let spec = RunSpec { ulimits: vec![("bogus".into(), 1, 1)], ..shell("true") };
    let error = context.try_run(&tree.rootfs, &spec).expect_err("no such limit");
    assert!(matches!(&error, SandboxError::UnknownLimit { name } if name == "bogus"), "{error:?}");
    let spec = RunSpec { ulimits: vec![("nofile".into(), 2, 1)], ..shell("true") };
    let error = context.try_run(&tree.rootfs, &spec).expect_err("soft above hard");
    assert!(matches!(&error, SandboxError::Setup { what, .. } if what.contains("nofile to 2:1")), "{error:?}");
}

pub(super) fn no_descriptors_leak(context: &Context) {
    let tree = context.tree();
    context.sh(&tree, "true");
    let open = || fs::read_dir("/proc/self/fd").expect("list").count();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("read").lines().count();
    let before = (open(), mounts());
    for _ in 0..3 {
        context.sh(&tree, "true");
        refuses(context, &tree, &["/no/such/program"], ENOENT);
    }
    assert_eq!((open(), mounts()), before);
}

pub(super) fn insecure(context: &Context) {
    let tree = context.tree();
    let spec = RunSpec {
        insecure: true,
        ..shell("mount -t tmpfs none /tmp && echo x > /tmp/f && grep ^Seccomp: /proc/self/status")
    };
    let lines = context.succeed(&tree, &spec);
    // Where device nodes can only be played, calls that make them go to the builder by a filter.
    let filters = if context.environment.ids == IdMapping::Root { 0 } else { 2 };
    assert_eq!(lines, [format!("Seccomp:\t{filters}")]);
    assert!(!tree.path.join("tmp/f").exists());
}

/// Programs that hold a file change it by `/proc/self/fd/3`.
pub(super) fn files_behind_descriptors(context: &Context) {
    let tree = context.tree();
    let script = "exec 3>/tmp/f; chmod 640 /proc/self/fd/3 && touch -d @100 /dev/fd/3 && stat -c '%a %Y' /tmp/f \
                  && ! chmod 600 /sys/kernel 2>/dev/null";
    assert_eq!(context.sh(&tree, script), ["640 100"]);
    // Pipes have owners too.
    context.sh(&tree, "chmod 622 /dev/stdout && chmod 622 /proc/self/fd/2");
    context.needs_ids();
    let script = "exec 3>/tmp/f; chown 5:6 /proc/self/fd/3 && stat -c %u:%g /tmp/f";
    assert_eq!(context.sh(&tree, script), ["5:6"]);
    let user = RunUser { uid: 1000, gid: 1000, groups: vec![50], home: "/".into() };
    let script = "exec 3</etc/passwd; chmod 600 /proc/self/fd/3 2>/dev/null || echo refused; exec 3>/tmp/g; \
                  chmod 600 /proc/self/fd/3; chgrp 50 /proc/self/fd/3 2>/dev/null; stat -c '%a %u' /tmp/g";
    assert_eq!(context.succeed(&tree, &RunSpec { user, ..shell(script) }), ["refused", "600 1000"]);
}

/// What a path leads to, and where a process is, may be another the next moment.
pub(super) fn ways_change(context: &Context) {
    let tree = context.tree();
    let script = "mkdir -p /tmp/w/x/y /tmp/w/d /tmp/w/m; cd /tmp/w; test -e x/meminfo || test -e d/comm || echo none; \
                  busybox mv /tmp/w/x z && busybox ln -s /proc /tmp/w/x && read a b < x/meminfo && echo $a; \
                  busybox rmdir d && busybox ln -s /proc/self /tmp/w/d && read a < /tmp/w/d/comm && echo $a; \
                  cd /proc; read a b < meminfo; echo $a; cd /tmp/w/z; test -e meminfo || echo none; \
                  cd ../x; read a b < meminfo; echo $a; cd -P ..; test -e meminfo || echo none; \
                  cd /tmp/w/m; test -e f || busybox mv /tmp/w/m /tmp/w/n; echo hi > f; cd /; cat tmp/w/n/./f";
    assert_eq!(context.sh(&tree, script), ["none", "MemTotal:", "sh", "MemTotal:", "none", "MemTotal:", "none", "hi"]);
}

/// Programs that hold a directory make, move and remove names in it by `/proc/self/fd/3/name`, and go there.
pub(super) fn names_behind_descriptors(context: &Context) {
    let tree = context.tree();
    let script = "mkdir /tmp/d; exec 3</tmp/d; umask 027; mkdir /proc/self/fd/3/x && echo hi > /proc/self/fd/3/x/f \
                  && busybox mv /proc/self/fd/3/x/f /dev/fd/3/g && busybox ln -s g /proc/self/fd/3/l \
                  && busybox ln /proc/self/fd/3/g /tmp/hard && mkfifo /proc/self/fd/3/p && touch /proc/self/fd/3/t \
                  && cat /proc/self/root/tmp/d/l && stat -c '%a %F' /tmp/d/x /tmp/d/p && ls /tmp/d \
                  && rm /proc/self/fd/3/p /proc/self/fd/3/t && busybox rmdir /proc/self/fd/3/x && ls /proc/self/fd/3/ \
                  && cd /proc/self/fd/3 && pwd -P && cat g && cat /proc/self/cwd/l /tmp/hard && cd -P /proc/self/fd/3/.. && pwd -P \
                  && cd /proc/self/root/tmp/d && pwd -P && cd -P /proc/self/cwd/.. && pwd -P \
                  && cp /bin/busybox /proc/self/fd/3/echo && /proc/self/fd/3/echo done";
    let expected = [
        "hi",
        "750 directory",
        "640 fifo",
        "g",
        "l",
        "p",
        "t",
        "x",
        "g",
        "l",
        "/tmp/d",
        "hi",
        "hi",
        "hi",
        "/tmp",
        "/tmp/d",
        "/tmp",
        "done",
    ];
    assert_eq!(context.sh(&tree, script), expected);
    for path in ["/proc/x", "/proc/self/x", "/sys/x"] {
        ends(context, &format!("mkdir {path} 2>/dev/null"), ExitStatus::Code(1));
    }
    context.needs_ids();
    let user = RunUser { uid: 1000, gid: 1000, groups: vec![1000], home: "/".into() };
    let script = "exec 3</etc; mkdir /proc/self/fd/3/x 2>/dev/null || echo refused; exec 3</tmp; mkdir /proc/self/fd/3/y \
                  && stat -c '%u:%g' /tmp/y; cd /proc/self/root/root 2>/dev/null || echo refused; cd /proc && cat self/comm";
    let expected = ["refused", "1000:1000", "refused", "cat"];
    assert_eq!(context.succeed(&tree, &RunSpec { user, ..shell(script) }), expected);
}
