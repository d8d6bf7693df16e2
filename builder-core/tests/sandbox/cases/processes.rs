//! How commands begin, talk and end.

use super::*;
use crate::inside::{Context, command, shell};
use builder_core::cancel::Cancel;
use builder_core::rootfs::Rootfs;
use builder_core::sandbox::{ExitStatus, IdMapping, RunSpec, SandboxError, Tier};
use std::fs;
use std::os::unix::fs::PermissionsExt;

pub(super) fn unavailable(context: &Context) {
    if context.environment.ids != IdMapping::None {
        return;
    }
    assert!(!context.environment.refused.is_empty());
    let path = context.empty_directory();
    let rootfs = Rootfs::open(&path).expect("open");
    let error = context.try_run(&rootfs, &command(&["/bin/true"])).expect_err("nothing runs here");
    assert!(matches!(error, SandboxError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("sysctl user.max_user_namespaces=15000 (it is 0)"), "{error}");
}

pub(super) fn choice(context: &Context) {
    let (found, expected) = &context.choice;
    assert_eq!((found.tier, found.ids), *expected, "{:?}", found.refused);
    // Whoever gets something weaker than namespaces learns why, and what would help.
    let told = found.refused.iter().any(|refusal| refusal.tier == Tier::Namespaces && !refusal.remedies.is_empty());
    assert!(told || found.tier == Some(Tier::Namespaces), "{:?}", found.refused);
}

pub(super) fn exit_codes(context: &Context) {
    ends(context, "true", ExitStatus::Code(0));
    ends(context, "false", ExitStatus::Code(1));
    ends(context, "exit 37", ExitStatus::Code(37));
    ends(context, "sh -c 'kill -9 $$'; exit $?", ExitStatus::Code(137));
    ends(context, "no-such-program", ExitStatus::Code(127));
}

pub(super) fn signals(context: &Context) {
    // Process 1 gets no signal from inside its namespace, unless it is a fault; and who stands in for it gets none by kill(2).
    ends(context, "kill -9 $$; kill -TERM $$; kill -HUP 0; kill -TERM -$$; kill -USR1 -1; exit 5", ExitStatus::Code(5));
    ends(context, "trap 'exit 7' TERM; kill -9 0; kill 0; exit 5", ExitStatus::Code(7));
    // The others of its group get it.
    ends(context, "sleep 1000 & kill -TERM 0; wait $!; exit $?", ExitStatus::Code(143));
    ends(context, "sleep 1000 & kill -TERM -1; wait $!; exit $?", ExitStatus::Code(143));
    let tree = context.tree();
    let outcome = context.try_run(&tree.rootfs, &command(&["/bin/sh", "-c", "trap 'exit 6' USR1; kill -USR1 $$"]));
    assert_eq!(outcome.expect("runs").status, ExitStatus::Code(6));
    // Nothing is blocked or ignored that was so in the builder (Rust ignores SIGPIPE).
    let lines = context.succeed(&tree, &command(&["/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]));
    assert!(lines.iter().all(|line| line.ends_with("0000000000000000")), "{lines:?}");
}

pub(super) fn named_pipes(context: &Context) {
    let tree = context.tree();
    // Whichever end comes first, it waits for the other, and neither sees the other go before it has done its work.
    let script = "i=0; while test $i -lt 25; do i=$((i+1)); \
                  (echo first > /p) & read -r line < /p && wait $! && test $line = first || exit 1; \
                  cat /p > /out & echo second > /p && wait $! && read -r line < /out && test $line = second || exit 2; \
                  cat < /p > /out & : > /p && wait $! && test ! -s /out || exit 3; done";
    context.sh(&tree, &format!("mkfifo /p && {script}"));
    // One that was there before.
    context.sh(&tree, script);
    let through = "mkfifo /q /r; seq 3 > /q & cat /q > /r & cat /r; test -p /q && rm /q /r";
    assert_eq!(context.sh(&tree, through), ["1", "2", "3"]);
    // A signal ends who waits, for either end.
    let ended = "for end in 'cat /p' 'echo x > /p'; do sh -c \"$end\" & kill $!; wait $!; echo $?; done";
    assert_eq!(context.sh(&tree, ended), ["143", "143"]);
}

pub(super) fn jobs_that_end_meanwhile(context: &Context) {
    let tree = context.tree();
    // The end of each job is a signal to the shell, at some moment of what it does next.
    let script = "i=0; while test $i -lt 150; do i=$((i+1)); : & cd /tmp || exit 1; \
                  : & test -e /bin/busybox || exit 2; : & read -r _ < /etc/passwd || exit 3; done; wait";
    context.sh(&tree, script);
}

pub(super) fn streams(context: &Context) {
    let tree = context.tree();
    let outcome = context.try_run(&tree.rootfs, &shell("echo out; echo err >&2; echo > /dev/stdout"));
    let outcome = outcome.expect("runs");
    assert_eq!((&outcome.stdout[..2], &outcome.stderr[..]), (&["out".into(), String::new()][..], &["err".into()][..]));
}

pub(super) fn a_thousand_lines_in_order(context: &Context) {
    let tree = context.tree();
    let lines = context.sh(&tree, "seq 1 1000");
    assert_eq!(lines, (1..=1000).map(|n| n.to_string()).collect::<Vec<_>>());
}

pub(super) fn output_without_line_end(context: &Context) {
    let tree = context.tree();
    assert_eq!(context.sh(&tree, "printf 'a\\nb'"), ["a", "b"]);
    let long = context.sh(&tree, "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end");
    assert_eq!(long.concat().len(), 100_003);
    assert_eq!(long.last().map(String::as_str), Some("end"));
}

pub(super) fn standard_input_is_empty(context: &Context) {
    let tree = context.tree();
    assert_eq!(context.sh(&tree, "cat; wc -c < /dev/stdin; test -t 0 || echo no terminal"), ["0", "no terminal"]);
}

pub(super) fn process_one(context: &Context) {
    let tree = context.tree();
    assert_eq!(context.sh(&tree, "echo $$; kill -9 $$; echo survived"), ["1", "survived"]);
}

pub(super) fn orphans_do_not_hang(context: &Context) {
    let tree = context.tree();
    assert_eq!(context.sh(&tree, "sleep 3600 & (sleep 3600 &) ; echo done"), ["done"]);
}

pub(super) fn daemons_are_ended(context: &Context) {
    let tree = context.tree();
    let script = "setsid sh -c 'while :; do echo x > /tmp/tick; done' > /dev/null 2>&1 & \
                  while ! test -e /tmp/tick; do :; done";
    context.sh(&tree, script);
    fs::remove_file(tree.path.join("tmp/tick")).expect("it has run");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!tree.path.join("tmp/tick").exists(), "it goes on");
}

/// Numbers in files, in /proc and in calls are the same: how services are started, looked at and stopped.
pub(super) fn daemons_by_number(context: &Context) {
    let tree = context.tree();
    let script = "read -r name < /proc/$$/comm && test $name = sh || exit 1; \
                  busybox start-stop-daemon -S -b -m -p /tmp/d.pid -x /bin/sleep -- 4321 || exit 2; \
                  until test -s /tmp/d.pid; do sleep 0.02; done; read -r n < /tmp/d.pid; \
                  until test \"$(tr '\\0' ' ' < /proc/$n/cmdline)\" = '/bin/sleep 4321 '; do kill -0 $n || exit 3; sleep 0.02; done; \
                  busybox ps -o pid,args | grep -qE \"^ *$n .*sleep 4321\" || exit 4; \
                  test $(busybox readlink /proc/$n/exe) = /bin/busybox || exit 5; test -d /proc/$n/cwd/etc || exit 6; \
                  busybox start-stop-daemon -K -t -q -p /tmp/d.pid || exit 7; \
                  busybox start-stop-daemon -K -q -p /tmp/d.pid || exit 8; \
                  while kill -0 $n 2>/dev/null; do sleep 0.02; done; \
                  busybox start-stop-daemon -K -t -q -p /tmp/d.pid && exit 9; \
                  sleep 5432 & kill -STOP $! && until grep -q '^State:.[tT]' /proc/$!/status; do sleep 0.02; done; \
                  kill -9 $!; wait $!; echo $?";
    assert_eq!(context.sh(&tree, script), ["137"]);
}

pub(super) fn environment_is_the_given_one(context: &Context) {
    let tree = context.tree();
    let mut lines = context.succeed(&tree, &command(&["/bin/env"]));
    lines.sort();
    assert_eq!(lines, ["GREETING=hello  there", "PATH=/usr/bin:/bin"]);
}

pub(super) fn arguments_are_verbatim(context: &Context) {
    let tree = context.tree();
    let script = "for a; do echo \"[$a]\"; done";
    let lines = context.succeed(&tree, &command(&["/bin/sh", "-c", script, "sh", "", " ", "$HOME", "*", "é"]));
    assert_eq!(lines, ["[]", "[ ]", "[$HOME]", "[*]", "[é]"]);
}

pub(super) fn umask(context: &Context) {
    let tree = context.tree();
    assert_eq!(context.sh(&tree, "umask; touch /f; mkdir /d; stat -c %a /f /d"), ["0022", "644", "755"]);
}

pub(super) fn hostname(context: &Context) {
    let tree = context.tree();
    assert_eq!(context.sh(&tree, "hostname"), ["buildkitsandbox"]);
    let spec = RunSpec { hostname: "other".into(), ..shell("hostname; grep -w other /etc/hosts") };
    assert_eq!(context.succeed(&tree, &spec), ["other", "127.0.0.1\tlocalhost other"]);
}

pub(super) fn missing_program(context: &Context) {
    let tree = context.tree();
    refuses(context, &tree, &["/no/such/program"], ENOENT);
    refuses(context, &tree, &["nosuchprogram"], ENOENT);
    let error = context.try_run(&tree.rootfs, &command(&[])).expect_err("no argv");
    assert!(matches!(error, SandboxError::Exec { .. }), "{error:?}");
}

pub(super) fn unusable_programs(context: &Context) {
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

pub(super) fn programs_are_found_in_path(context: &Context) {
    let tree = context.tree();
    fs::create_dir_all(tree.path.join("usr/bin")).expect("mkdir");
    // In the first directory of PATH, but not executable: the next one is taken.
    fs::write(tree.path.join("usr/bin/echo"), "").expect("write");
    assert_eq!(context.succeed(&tree, &command(&["echo", "found"])), ["found"]);
    fs::write(tree.path.join("usr/bin/onlyhere"), "").expect("write");
    refuses(context, &tree, &["onlyhere"], EACCES);
}

pub(super) fn cancelling(context: &Context) {
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

pub(super) fn parallel_runs(context: &Context) {
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
