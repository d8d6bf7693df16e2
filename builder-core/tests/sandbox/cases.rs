//! What every environment must do.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use builder_core::cancel::Cancel;
use builder_core::hint::Hint;
use builder_core::rootfs::Rootfs;
use builder_core::sandbox::{ExitStatus, IdMapping, MountSource, RunSpec, RunUser, SandboxError, SandboxMount, users};

use crate::inside::{Context, Tree, command, shell, tree_of};

/// One behaviour.
pub struct Case {
    /// Name in test names.
    pub name: &'static str,
    /// Panics if it is not so.
    pub run: fn(&Context),
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// All of them.
        pub const CASES: &[Case] = &[$(Case { name: stringify!($name), run: $name }),*];
    };
}

cases![
    unavailable,
    exit_codes,
    signals,
    streams,
    a_thousand_lines_in_order,
    output_without_line_end,
    standard_input_is_empty,
    process_one,
    orphans_do_not_hang,
    daemons_are_ended,
    environment_is_the_given_one,
    arguments_are_verbatim,
    umask,
    hostname,
    hosts_and_resolv_conf,
    files_of_etc_leave_no_trace,
    dangling_resolv_conf,
    scratch_keeps_standard_directories,
    devices_work,
    other_devices_do_not_open,
    proc_is_ours,
    read_only_parts,
    builder_is_out_of_reach,
    old_root_is_gone,
    capabilities,
    system_calls_are_filtered,
    working_directory,
    users_and_groups,
    ids_that_do_not_exist,
    setuid_programs,
    device_nodes,
    missing_program,
    unusable_programs,
    programs_are_found_in_path,
    no_network,
    limits,
    shared_memory,
    mounts_of_the_host,
    mounts_of_descriptors,
    mounts_in_mounts,
    tmpfs_mounts,
    files_in_memory,
    mounts_leave_no_trace,
    targets_stay_inside,
    cancelling,
    no_descriptors_leak,
    parallel_runs,
    overlays,
    insecure,
];

fn unavailable(context: &Context) {
    if context.environment.ids != IdMapping::None {
        return;
    }
    assert!(!context.environment.refused.is_empty());
    let path = context.empty_directory();
    let rootfs = Rootfs::open(&path).expect("open");
    let error = context.try_run(&rootfs, &command(&["/bin/true"])).expect_err("nothing runs here");
    assert!(matches!(error, SandboxError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("sysctl user.max_user_namespaces is 0"), "{error}");
}

#[track_caller]
fn ends(context: &Context, script: &str, expected: ExitStatus) {
    let tree = context.tree();
    let outcome = context.try_run(&tree.rootfs, &shell(script)).expect(script);
    assert_eq!(outcome.status, expected, "{script}: {outcome:?}");
}

fn exit_codes(context: &Context) {
    ends(context, "true", ExitStatus::Code(0));
    ends(context, "false", ExitStatus::Code(1));
    ends(context, "exit 37", ExitStatus::Code(37));
    ends(context, "sh -c 'kill -9 $$'; exit $?", ExitStatus::Code(137));
    ends(context, "no-such-program", ExitStatus::Code(127));
}

fn signals(context: &Context) {
    // Process 1 gets no signal from inside its namespace, unless it is a fault.
    ends(context, "kill -9 $$; kill -TERM $$; exit 5", ExitStatus::Code(5));
    let tree = context.tree();
    let outcome = context.try_run(&tree.rootfs, &command(&["/bin/sh", "-c", "trap 'exit 6' USR1; kill -USR1 $$"]));
    assert_eq!(outcome.expect("runs").status, ExitStatus::Code(6));
    // Nothing is blocked or ignored that was so in the builder (Rust ignores SIGPIPE).
    let lines = context.succeed(&tree, &command(&["/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]));
    assert!(lines.iter().all(|line| line.ends_with("0000000000000000")), "{lines:?}");
}

fn streams(context: &Context) {
    let tree = context.tree();
    let outcome = context.try_run(&tree.rootfs, &shell("echo out; echo err >&2; echo > /dev/stdout"));
    let outcome = outcome.expect("runs");
    assert_eq!((&outcome.stdout[..2], &outcome.stderr[..]), (&["out".into(), String::new()][..], &["err".into()][..]));
}

fn a_thousand_lines_in_order(context: &Context) {
    let tree = context.tree();
    let lines = context.sh(&tree, "seq 1 1000");
    assert_eq!(lines, (1..=1000).map(|n| n.to_string()).collect::<Vec<_>>());
}

fn output_without_line_end(context: &Context) {
    let tree = context.tree();
    assert_eq!(context.sh(&tree, "printf 'a\\nb'"), ["a", "b"]);
    let long = context.sh(&tree, "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end");
    assert_eq!(long.concat().len(), 100_003);
    assert_eq!(long.last().map(String::as_str), Some("end"));
}

fn standard_input_is_empty(context: &Context) {
    let tree = context.tree();
    assert_eq!(context.sh(&tree, "cat; wc -c < /dev/stdin; test -t 0 || echo no terminal"), ["0", "no terminal"]);
}

fn process_one(context: &Context) {
    let tree = context.tree();
    assert_eq!(context.sh(&tree, "echo $$; kill -9 $$; echo survived"), ["1", "survived"]);
}

fn orphans_do_not_hang(context: &Context) {
    let tree = context.tree();
    assert_eq!(context.sh(&tree, "sleep 3600 & (sleep 3600 &) ; echo done"), ["done"]);
}

fn daemons_are_ended(context: &Context) {
    let tree = context.tree();
    let script = "setsid sh -c 'while :; do echo x > /tmp/tick; done' > /dev/null 2>&1 & \
                  while ! test -e /tmp/tick; do :; done";
    context.sh(&tree, script);
    fs::remove_file(tree.path.join("tmp/tick")).expect("it has run");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!tree.path.join("tmp/tick").exists(), "it goes on");
}

fn environment_is_the_given_one(context: &Context) {
    let tree = context.tree();
    let mut lines = context.succeed(&tree, &command(&["/bin/env"]));
    lines.sort();
    assert_eq!(lines, ["GREETING=hello  there", "PATH=/usr/bin:/bin"]);
}

fn arguments_are_verbatim(context: &Context) {
    let tree = context.tree();
    let script = "for a; do echo \"[$a]\"; done";
    let lines = context.succeed(&tree, &command(&["/bin/sh", "-c", script, "sh", "", " ", "$HOME", "*", "é"]));
    assert_eq!(lines, ["[]", "[ ]", "[$HOME]", "[*]", "[é]"]);
}

fn umask(context: &Context) {
    let tree = context.tree();
    assert_eq!(context.sh(&tree, "umask; touch /f; mkdir /d; stat -c %a /f /d"), ["0022", "644", "755"]);
}

fn hostname(context: &Context) {
    let tree = context.tree();
    assert_eq!(context.sh(&tree, "hostname"), ["buildkitsandbox"]);
    let spec = RunSpec { hostname: "other".into(), ..shell("hostname; grep -w other /etc/hosts") };
    assert_eq!(context.succeed(&tree, &spec), ["other", "127.0.0.1\tlocalhost other"]);
}

fn hosts_and_resolv_conf(context: &Context) {
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

/// Everything in a directory: path, mode, mtime.
fn listing(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![path.to_owned()];
    while let Some(directory) = todo.pop() {
        let metadata = fs::symlink_metadata(&directory).expect("stat");
        let shown = directory.strip_prefix(path).expect("below").display().to_string();
        found.push(format!("{shown} {:o} {}.{}", metadata.mode(), metadata.mtime(), metadata.mtime_nsec()));
        if metadata.is_dir() {
            todo.extend(fs::read_dir(directory).expect("list").map(|entry| entry.expect("entry").path()));
        }
    }
    found.sort();
    found
}

fn files_of_etc_leave_no_trace(context: &Context) {
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

fn dangling_resolv_conf(context: &Context) {
    let tree = context.tree();
    symlink("../run/systemd/resolve/stub-resolv.conf", tree.path.join("etc/resolv.conf")).expect("link");
    assert!(!context.sh(&tree, "cat /etc/resolv.conf").is_empty());
    assert!(!tree.path.join("run").exists());
    assert!(tree.path.join("etc/resolv.conf").is_symlink());
}

fn bind(path: &Path, target: &str) -> SandboxMount {
    SandboxMount { target: target.into(), readonly: true, source: MountSource::Host(path.to_owned()) }
}

fn scratch_keeps_standard_directories(context: &Context) {
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

fn devices_work(context: &Context) {
    let tree = context.tree();
    let script = "echo x > /dev/null && head -c 3 /dev/zero | wc -c && head -c 3 /dev/urandom | wc -c \
                  && head -c 2 /dev/random | wc -c && ! echo x 2>/dev/null > /dev/full && readlink /dev/fd && readlink /dev/stdin \
                  && ls -d /dev/pts/ptmx /dev/shm && echo x > /dev/shm/f && echo from fd | cat /dev/fd/0";
    let expected = ["3", "3", "2", "/proc/self/fd", "/proc/self/fd/0", "/dev/pts/ptmx", "/dev/shm", "from fd"];
    assert_eq!(context.sh(&tree, script), expected);
    context.sh(&tree, "echo > /dev/x; test ! -e /dev/shm/f");
    assert_eq!(fs::read_dir(tree.path.join("dev")).expect("list").count(), 0);
}

fn other_devices_do_not_open(context: &Context) {
    let tree = context.tree();
    // The same numbers as /dev/null, which is harmless; made in a place where devices must not work.
    let script = "for d in /tmp /dev /dev/shm; do if mknod $d/node c 1 3 2>/dev/null; then \
                  if (echo x > $d/node) 2>/dev/null; then echo opened $d; fi; fi; done";
    assert!(context.sh(&tree, script).is_empty());
}

fn proc_is_ours(context: &Context) {
    let tree = context.tree();
    if fresh_proc(context) {
        assert_eq!(
            context.sh(&tree, "tr '\\0' ' ' < /proc/1/cmdline; echo; ls -d /proc/[0-9]* | wc -l"),
            ["/bin/sh -c tr '\\0' ' ' < /proc/1/cmdline; echo; ls -d /proc/[0-9]* | wc -l ", "3"]
        );
    } else {
        context.sh(&tree, "test -e /proc/self/status && test -e /proc/meminfo");
    }
}

/// Whether the kernel lets us mount a /proc of our own: process 1 is then the only number of process 1.
fn fresh_proc(context: &Context) -> bool {
    let tree = context.tree();
    context.succeed(&tree, &command(&["/bin/readlink", "/proc/self"])) == ["1"]
}

fn read_only_parts(context: &Context) {
    let tree = context.tree();
    let script = "touch /sys/x 2>/dev/null || echo sys; (echo 1 > /proc/sys/kernel/domainname) 2>/dev/null || echo procsys; \
                  mkdir /sys/fs/cgroup/x 2>/dev/null || echo cgroup; test ! -s /proc/kcore && echo kcore; \
                  test -z \"$(ls /sys/firmware 2>/dev/null)\" && echo firmware";
    assert_eq!(context.sh(&tree, script), ["sys", "procsys", "cgroup", "kcore", "firmware"]);
}

fn builder_is_out_of_reach(context: &Context) {
    let tree = context.tree();
    let script = "cat /proc/*/environ /proc/*/task/*/environ 2>/dev/null | tr '\\0' '\\n' | grep BUILDER; \
                  ls -d /proc/*/root/etc/shadow /proc/*/cwd/builder-core 2>/dev/null; ls /proc/self/fd | wc -l";
    // 0, 1, 2 and the one that ls itself has open.
    assert_eq!(context.sh(&tree, script), ["4"]);
}

fn old_root_is_gone(context: &Context) {
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
    }
}

fn capabilities(context: &Context) {
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

fn system_calls_are_filtered(context: &Context) {
    let tree = context.tree();
    let script = "unshare -U true 2>/dev/null || echo user; mount -t tmpfs none /tmp 2>/dev/null || echo mount; \
                  chroot / true && echo chroot";
    assert_eq!(context.sh(&tree, script), ["user", "mount", "chroot"]);
}

fn working_directory(context: &Context) {
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

fn users_and_groups(context: &Context) {
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

fn ids_that_do_not_exist(context: &Context) {
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

fn setuid_programs(context: &Context) {
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

fn device_nodes(context: &Context) {
    let tree = context.tree();
    let made = context.try_run(&tree.rootfs, &shell("mkfifo /pipe && mknod /null c 1 3")).expect("runs");
    let expected = if context.environment.ids == IdMapping::Root { 0 } else { 1 };
    assert_eq!(made.status, ExitStatus::Code(expected), "{made:?}");
    assert!(tree.path.join("pipe").exists());
}

#[track_caller]
fn refuses(context: &Context, tree: &Tree, argv: &[&str], errno: i32) {
    match context.try_run(&tree.rootfs, &command(argv)) {
        Err(SandboxError::Exec { program, source }) => {
            assert_eq!((program.to_str(), source.raw_os_error()), (Some(argv[0]), Some(errno)), "{argv:?}");
        }
        other => panic!("{argv:?}: {other:?}"),
    }
}

const ENOENT: i32 = 2;
const ENOEXEC: i32 = 8;
const EACCES: i32 = 13;

fn missing_program(context: &Context) {
    let tree = context.tree();
    refuses(context, &tree, &["/no/such/program"], ENOENT);
    refuses(context, &tree, &["nosuchprogram"], ENOENT);
    let error = context.try_run(&tree.rootfs, &command(&[])).expect_err("no argv");
    assert!(matches!(error, SandboxError::Exec { .. }), "{error:?}");
}

fn unusable_programs(context: &Context) {
    let tree = context.tree();
    let write = |name: &str, content: &[u8], mode| {
        fs::write(tree.path.join(name), content).expect("write");
        fs::set_permissions(tree.path.join(name), fs::Permissions::from_mode(mode)).expect("chmod");
    };
    write("plain", b"not executable", 0o644);
    write("text", b"no interpreter line", 0o755);
    write("orphan", b"#!/no/such/interpreter\n", 0o755);
    write("script", b"#!/bin/sh\necho script \"$@\"\n", 0o755);
    refuses(context, &tree, &["/plain"], EACCES);
    refuses(context, &tree, &["/tmp"], EACCES);
    refuses(context, &tree, &["/text"], ENOEXEC);
    refuses(context, &tree, &["/orphan"], ENOENT);
    assert_eq!(context.succeed(&tree, &command(&["/script", "a"])), ["script a"]);
}

fn programs_are_found_in_path(context: &Context) {
    let tree = context.tree();
    fs::create_dir_all(tree.path.join("usr/bin")).expect("mkdir");
    // In the first directory of PATH, but not executable: the next one is taken.
    fs::write(tree.path.join("usr/bin/echo"), "").expect("write");
    assert_eq!(context.succeed(&tree, &command(&["echo", "found"])), ["found"]);
    fs::write(tree.path.join("usr/bin/onlyhere"), "").expect("write");
    refuses(context, &tree, &["onlyhere"], EACCES);
}

fn no_network(context: &Context) {
    let tree = context.tree();
    let script = "ls /sys/class/net; ip -o addr show up | grep -c 'inet 127.0.0.1/8'";
    let spec = RunSpec { no_network: true, ..shell(script) };
    let outcome = context.try_run(&tree.rootfs, &spec).expect("runs");
    assert_eq!(outcome.stdout.last().map(String::as_str), Some("1"), "{outcome:?}");
    assert_eq!(outcome.stdout.first().map(String::as_str), Some("lo"), "{outcome:?}");
}

fn limits(context: &Context) {
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

fn shared_memory(context: &Context) {
    let tree = context.tree();
    let script = "df -k /dev/shm | tail -1 | awk '{print $2}'; stat -c %a /dev/shm";
    assert_eq!(context.sh(&tree, script), ["65536", "1777"]);
    let spec = RunSpec { shm_size: Some(1 << 20), ..shell(script) };
    assert_eq!(context.succeed(&tree, &spec), ["1024", "1777"]);
}

fn mounts_of_the_host(context: &Context) {
    let (tree, source) = (context.tree(), context.empty_directory());
    fs::write(source.join("f"), "content").expect("write");
    let script =
        "cat /a/b/f /file; echo; echo x 2>/dev/null > /a/b/new || echo read-only; rm /a/b/f 2>/dev/null || echo kept";
    let mounts = vec![bind(&source, "/a/b"), bind(&source.join("f"), "/file")];
    let lines = context.succeed(&tree, &RunSpec { mounts, ..shell(script) });
    assert_eq!(lines, ["contentcontent", "read-only", "kept"]);
    let writable = SandboxMount { readonly: false, ..bind(&source, "/w") };
    context.succeed(&tree, &RunSpec { mounts: vec![writable], ..shell("echo new > /w/new") });
    assert_eq!(fs::read(source.join("new")).expect("read"), b"new\n");
    let error =
        context.try_run(&tree.rootfs, &RunSpec { mounts: vec![bind(Path::new("/no/such"), "/x")], ..shell("true") });
    assert!(matches!(&error, Err(SandboxError::Setup { what, .. }) if what.contains("/no/such")), "{error:?}");
    assert!(!tree.path.join("x").exists());

    let listener = std::os::unix::net::UnixListener::bind(source.join("agent")).expect("socket");
    let agent = SandboxMount { readonly: false, ..bind(&source.join("agent"), "/run/agent.0") };
    context.succeed(&tree, &RunSpec { mounts: vec![agent], ..shell("test -S /run/agent.0") });
    drop(listener);
    assert!(!tree.path.join("run").exists());
}

fn mounts_of_descriptors(context: &Context) {
    let (tree, source) = (context.tree(), context.empty_directory());
    fs::write(source.join("f"), "content").expect("write");
    let open = |path: &Path| {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        Arc::new(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).expect("open"))
    };
    let mount = |descriptor, target: &str| SandboxMount {
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

fn mounts_in_mounts(context: &Context) {
    let (tree, a, b) = (context.tree(), context.empty_directory(), context.empty_directory());
    fs::create_dir(a.join("b")).expect("mkdir");
    fs::write(a.join("1"), "").expect("write");
    fs::write(b.join("2"), "").expect("write");
    let tmpfs =
        |target: &str| SandboxMount { target: target.into(), readonly: false, source: MountSource::Tmpfs(None) };
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

fn tmpfs_mounts(context: &Context) {
    let tree = context.tree();
    fs::create_dir(tree.path.join("d")).expect("mkdir");
    fs::write(tree.path.join("d/f"), "").expect("write");
    fs::set_permissions(tree.path.join("d"), fs::Permissions::from_mode(0o750)).expect("chmod");
    let tmpfs =
        |target: &str, size| SandboxMount { target: target.into(), readonly: false, source: MountSource::Tmpfs(size) };
    let spec = RunSpec {
        mounts: vec![tmpfs("/d", None), tmpfs("/new", Some(1 << 20))],
        ..shell(
            "ls /d | wc -l; stat -c '%a %u:%g' /d /new; echo > /d/x; \
             dd if=/dev/zero of=/new/f bs=64k count=32 2>/dev/null || echo full; stat -c %s /new/f",
        )
    };
    assert_eq!(context.succeed(&tree, &spec), ["0", "750 0:0", "1777 0:0", "full", "1048576"]);
    assert!(tree.path.join("d/f").exists() && !tree.path.join("d/x").exists() && !tree.path.join("new").exists());
}

fn files_in_memory(context: &Context) {
    let tree = context.tree();
    let secret = |target: &str, mode, uid| SandboxMount {
        target: target.into(),
        readonly: true,
        source: MountSource::Bytes { content: Arc::new(b"sesame".to_vec()), mode, uid, gid: 0 },
    };
    assert!(!format!("{:?}", secret("/x", 0o400, 0)).contains("sesame"));
    let mounts = vec![secret("/run/secrets/tok", 0o400, 0), secret("/x/y", 0o644, 0)];
    let script = "cat /run/secrets/tok; echo; stat -c '%a %u:%g' /run/secrets/tok /x/y; \
                  echo x 2>/dev/null > /x/y || echo read-only; cp /x/y /copy";
    let lines = context.succeed(&tree, &RunSpec { mounts, ..shell(script) });
    assert_eq!(lines, ["sesame", "400 0:0", "644 0:0", "read-only"]);
    assert!(!tree.path.join("run").exists() && !tree.path.join("x").exists());
    // Scripts of heredocs: below /dev, executed.
    let script =
        MountSource::Bytes { content: Arc::new(b"#!/bin/sh\necho $0\n".to_vec()), mode: 0o755, uid: 0, gid: 0 };
    let mounts = vec![SandboxMount { target: "/dev/pipes/EOF".into(), readonly: true, source: script }];
    assert_eq!(context.succeed(&tree, &RunSpec { mounts, ..command(&["/dev/pipes/EOF"]) }), ["/dev/pipes/EOF"]);
    context.needs_ids();
    let user = RunUser { uid: 1000, gid: 1000, groups: vec![1000], home: "/".into() };
    let mounts = vec![secret("/a", 0o400, 0), secret("/b", 0o400, 1000)];
    let spec = RunSpec { mounts, user, ..shell("cat /a 2>/dev/null || echo denied; cat /b") };
    assert_eq!(context.succeed(&tree, &spec), ["denied", "sesame"]);
}

fn mounts_leave_no_trace(context: &Context) {
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

fn targets_stay_inside(context: &Context) {
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

fn cancelling(context: &Context) {
    let tree = context.tree();
    let cancel = Cancel::default();
    let spec = shell(
        "trap '' TERM INT; (trap '' TERM; while :; do echo x > /tmp/tick; done) & echo started; wait; sleep 3600",
    );
    let result = context.try_run_until(&tree.rootfs, &spec, &cancel, &|line| {
        if line == "started" {
            cancel.cancel();
        }
    });
    assert!(matches!(result, Err(SandboxError::Cancelled)), "{result:?}");
    _ = fs::remove_file(tree.path.join("tmp/tick"));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!tree.path.join("tmp/tick").exists(), "a process survived");
    let result = context.try_run(&tree.rootfs, &shell("true"));
    assert!(result.is_ok());
    let result = context.try_run_until(&tree.rootfs, &shell("true"), &cancel, &|_| {});
    assert!(matches!(result, Err(SandboxError::Cancelled)), "cancelled before it began");
}

fn no_descriptors_leak(context: &Context) {
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

fn parallel_runs(context: &Context) {
    let trees: Vec<_> = (0..4).map(|_| context.tree()).collect();
    let environment = &context.environment;
    std::thread::scope(|scope| {
        let runs: Vec<_> = trees
            .iter()
            .enumerate()
            .map(|(number, tree)| {
                scope.spawn(move || {
                    for round in 0..3 {
                        let spec = shell(&format!("echo {number} > /n; cat /n > /m{round}; exit {number}"));
                        let status = builder_core::sandbox::run(
                            environment,
                            &tree.rootfs,
                            &spec,
                            &|_, _| {},
                            &Cancel::default(),
                        );
                        assert_eq!(status.expect("runs"), ExitStatus::Code(i32::try_from(number).expect("small")));
                    }
                })
            })
            .collect();
        for run in runs {
            run.join().expect("no panic");
        }
    });
    for (number, tree) in trees.iter().enumerate() {
        assert_eq!(fs::read_to_string(tree.path.join("m2")).expect("read"), format!("{number}\n"));
    }
}

fn overlays(context: &Context) {
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

fn insecure(context: &Context) {
    let tree = context.tree();
    let spec = RunSpec {
        insecure: true,
        ..shell("mount -t tmpfs none /tmp && echo x > /tmp/f && grep ^Seccomp: /proc/self/status")
    };
    let lines = context.succeed(&tree, &spec);
    assert_eq!(lines, ["Seccomp:\t0"]);
    let name = std::ffi::OsStr::from_bytes(b"f");
    assert!(!tree.path.join("tmp").join(name).exists());
}
