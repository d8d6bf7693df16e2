//! A kernel without what it usually has: Landlock, control groups of version 2, overlayfs, user namespaces.

use tests::machine::Kernel;

use crate::builds::{all_refused, prepare_escapes};
use crate::inside::{LIMIT, UNAVAILABLE, all, machine, same, says, small, step, text};

/// A name, the shell commands that take it away, and who builds then: user and sandbox.
type Taken = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// What is taken away. Each goes on from where the one before has left the machine.
const TAKEN: &[Taken] = &[
    // By the kernel's command line.
    ("landlock", "", &[("root", "auto"), ("root", "chroot"), ("subids", "auto"), ("plain", "auto")]),
    ("groups", LIMITED, &[("root", "auto"), ("plain", "auto")]),
    (
        "overlay",
        "modprobe -r overlay; echo 'install overlay /bin/false' >/etc/modprobe.d/overlay.conf",
        &[("root", "auto"), ("subids", "auto")],
    ),
    (
        "user-namespaces",
        "echo 0 >/proc/sys/user/max_user_namespaces",
        &[("root", "auto"), ("subids", "auto"), ("plain", "auto")],
    ),
];

/// Control groups of version 1: a group `build` for 300 processes and 512 MiB.
const LIMITED: &str = "mount -t tmpfs groups /sys/fs/cgroup && cd /sys/fs/cgroup && mkdir pids memory && \
                       mount -t cgroup -o pids pids pids && mount -t cgroup -o memory memory memory && \
                       mkdir pids/build memory/build && echo 300 >pids/build/pids.max && \
                       echo 536870912 >memory/build/memory.limit_in_bytes";

/// Goes into that group.
const ENTER: &str = "for kind in pids memory; do echo $$ >/sys/fs/cgroup/$kind/build/cgroup.procs; done 2>/dev/null;";

/// The same image whatever is missing; where a limit or a setting is in the way it is named.
pub fn one_after_the_other(kernel: Kernel) -> Result<(), String> {
    let mut machine = machine(kernel)?;
    small(&machine)?;
    let attempts = prepare_escapes(&machine)?;
    // Neither Landlock nor Yama.
    machine.parameters("lsm=capability groups=v1");
    let mut builds = Vec::new();
    for (name, how, ways) in TAKEN {
        machine.step(name, how).map_err(text)?;
        for (user, sandbox) in *ways {
            let build = format!("{name}-{user}-{sandbox}");
            let script = format!("{ENTER} CONTEXT=/job/small build {user} {sandbox} /var/tmp/{build} 2>&1");
            machine.step(&build, &script).map_err(text)?;
            builds.push(build);
        }
        let info = format!("{ENTER} slipway info; setpriv --reuid=plain --regid=plain --init-groups slipway info");
        machine.step(&format!("{name}-info"), &info).map_err(text)?;
        if *name == "landlock" {
            // What Landlock would have held is held by what lies above it.
            for (user, sandbox) in [("root", "chroot"), ("root", "traced"), ("plain", "auto")] {
                let build = format!("CONTEXT=/job/escapes build {user} {sandbox} /var/tmp/out-{user}-{sandbox} 2>&1");
                machine.step(&format!("escapes-{user}-{sandbox}"), &build).map_err(text)?;
            }
        }
        if *name == "groups" {
            // The shell becomes the builder, and nothing else can be started.
            let alone = "echo 1 >/sys/fs/cgroup/pids/build/pids.max; exec slipway build --work-dir /var/tmp/alone /job/small 2>&1";
            machine.step("alone", &format!("{ENTER} {alone}")).map_err(text)?;
            machine.step("more", "echo 300 >/sys/fs/cgroup/pids/build/pids.max").map_err(text)?;
        }
    }
    let steps = machine.run(LIMIT)?;
    let done = |name: &str| step(&steps, name);
    let info = |name: &str, words: &[&str]| says(done(&format!("{name}-info"))?, 0, words);
    let mut checks = vec![
        same(builds.iter().map(|name| done(name)).collect::<Result<Vec<_>, _>>()?),
        info("landlock", &["landlock         none", "ptrace_scope     no Yama"]),
        info("groups", &["process limit    300", "memory limit     512.0 MiB"]),
        info("overlay", &["plain directories", "overlay"]),
        info("user-namespaces", &["sysctl user.max_user_namespaces=15000 (it is 0)", "tier namespaces  not possible"]),
        says(done("alone")?, UNAVAILABLE, &["a larger limit of processes (the pod's pid limit"]),
    ];
    for (name, _, _) in TAKEN {
        checks.push(says(done(name)?, 0, &[]));
    }
    for way in ["root-chroot", "root-traced", "plain-auto"] {
        checks.push(all_refused(done(&format!("escapes-{way}"))?, &attempts));
    }
    all(checks)
}
