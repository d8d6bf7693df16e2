//! How the copy of this program is started in each environment of the design's table.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use builder_core::sandbox::{IdMapping, Tier};

use crate::{Answer, Answers, INSIDE};

/// A way to start the copy.
#[derive(Debug)]
pub struct Environment {
    /// Name in test names.
    pub name: &'static str,
    /// The tier that is wished for.
    pub tier: Tier,
    /// What `enter` must find.
    pub ids: IdMapping,
    /// What is taken if no tier is wished for.
    pub choice: (Option<Tier>, IdMapping),
    /// Shell commands, run as root in a mount namespace of their own, that end with `exec … "$@"`. `$dir` is a directory
    /// for files of theirs.
    start: &'static str,
    /// Whether parts of /proc are hidden.
    pub masked_proc: bool,
    /// A program it needs that may be missing; if starting fails, it may be for reasons of the machine.
    needs: Option<&'static str>,
}

/// Identity of a user that owns nothing on this machine.
const USER: &str = "exec setpriv --reuid=61234 --regid=61234 --clear-groups --bounding-set=+all";

/// Ids of that user in /etc/subuid; newuidmap(1) wants a name for it too.
const SUBIDS: &str = "(cat /etc/passwd; echo somebody:x:61234:61234::/:/bin/sh) > $dir/passwd; \
                      mount --bind $dir/passwd /etc/passwd; echo 61234:100000:65536 > $dir/subuid; mount --bind $dir/subuid /etc/subuid; \
                      mount --bind $dir/subuid /etc/subgid; ";

/// What a container runtime leaves to root.
const POD: &str = "exec setpriv --bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,\
                   +net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";

/// All of them.
pub const ENVIRONMENTS: &[Environment] = &[
    Environment {
        name: "root",
        tier: Tier::Namespaces,
        ids: IdMapping::Root,
        choice: (Some(Tier::Namespaces), IdMapping::Root),
        start: "exec \"$@\"",
        masked_proc: false,
        needs: None,
    },
    Environment {
        name: "root_in_pod",
        tier: Tier::Namespaces,
        ids: IdMapping::Identity,
        choice: (Some(Tier::Namespaces), IdMapping::Identity),
        start: "POD \"$@\"",
        masked_proc: false,
        needs: None,
    },
    Environment {
        name: "root_in_pod_with_masked_proc",
        tier: Tier::Namespaces,
        ids: IdMapping::Identity,
        choice: (Some(Tier::Namespaces), IdMapping::Identity),
        start: "mount -t tmpfs none /proc/scsi 2>/dev/null || mount -t tmpfs none /proc/acpi 2>/dev/null || mount -t tmpfs none /proc/tty; \
                mount --bind /dev/null /proc/timer_list; POD \"$@\"",
        masked_proc: true,
        needs: None,
    },
    Environment {
        name: "chroot_in_pod",
        tier: Tier::Chroot,
        ids: IdMapping::Root,
        choice: (Some(Tier::Namespaces), IdMapping::Identity),
        start: "POD \"$@\"",
        masked_proc: false,
        needs: None,
    },
    Environment {
        name: "user_with_subids",
        tier: Tier::Namespaces,
        ids: IdMapping::Subordinate,
        choice: (Some(Tier::Namespaces), IdMapping::Subordinate),
        start: "SUBIDS USER \"$@\"",
        masked_proc: false,
        needs: None,
    },
    Environment {
        name: "user_without_subids",
        tier: Tier::Namespaces,
        ids: IdMapping::Single,
        choice: (Some(Tier::Traced), IdMapping::Played),
        start: ": > $dir/none; mount --bind $dir/none /etc/subuid; USER \"$@\"",
        masked_proc: false,
        needs: None,
    },
    Environment {
        name: "traced_user",
        tier: Tier::Traced,
        ids: IdMapping::Played,
        choice: (Some(Tier::Traced), IdMapping::Played),
        start: "exec setpriv --reuid=1000777 --regid=1000777 --clear-groups --no-new-privs --bounding-set=-all \
                --inh-caps=-all \"$@\"",
        masked_proc: false,
        needs: None,
    },
    Environment {
        name: "user_without_namespaces",
        tier: Tier::Namespaces,
        ids: IdMapping::None,
        choice: (Some(Tier::Traced), IdMapping::Played),
        start: "exec unshare -U --map-root-user sh -c 'echo 0 > /proc/sys/user/max_user_namespaces; \
                exec setpriv --bounding-set=-all \"$@\"' -- \"$@\"",
        masked_proc: false,
        needs: None,
    },
    Environment {
        name: "traced_without_namespaces",
        tier: Tier::Traced,
        ids: IdMapping::Played,
        choice: (Some(Tier::Traced), IdMapping::Played),
        start: "exec unshare -U --map-root-user sh -c 'echo 0 > /proc/sys/user/max_user_namespaces; \
                exec setpriv --no-new-privs --bounding-set=-all \"$@\"' -- \"$@\"",
        masked_proc: false,
        needs: None,
    },
    Environment {
        name: "container",
        tier: Tier::Namespaces,
        ids: IdMapping::Identity,
        choice: (Some(Tier::Namespaces), IdMapping::Identity),
        start: "mkdir $dir/root; cd $dir/root; mkdir usr etc proc dev sys tmp run; for l in bin sbin lib lib64; do \
                ln -s usr/$l $l; done; exec podman --cgroup-manager=cgroupfs run --rm --runtime runc --network host \
                --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --security-opt seccomp=unconfined -e BUILDER_SECRET \
                -v /usr:/usr:ro -v $dir:$dir:bind --rootfs $dir/root \"$@\"",
        masked_proc: true,
        needs: Some("/usr/bin/podman"),
    },
];

impl Environment {
    /// Starts the copy and reads its answers.
    pub fn answers(&self) -> Answers {
        if !rustix::process::geteuid().is_root() {
            return Err("starting the environments needs root".to_owned());
        }
        if !Path::new("/bin/busybox").exists() {
            return Err("no /bin/busybox (package busybox-static)".to_owned());
        }
        if let Some(program) = self.needs.filter(|program| !Path::new(program).exists()) {
            return Err(format!("no {program}"));
        }
        let directory = tempfile::Builder::new().prefix("slipway-sandbox-").tempdir().map_err(|e| e.to_string())?;
        let open = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
        open(directory.path(), 0o777).map_err(|e| e.to_string())?;
        // The program itself may lie where others may not go.
        let program = directory.path().join("sandbox-test");
        std::env::current_exe().and_then(|exe| std::fs::copy(exe, &program)).map_err(|e| e.to_string())?;
        open(&program, 0o755).map_err(|e| e.to_string())?;
        stress(&directory.path().join("stress"))?;

        let script = self.start.replace("SUBIDS", SUBIDS).replace("USER", USER).replace("POD", POD);
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-euc", &format!("dir=$1; shift; {script}"), "sh"])
            .arg(directory.path())
            .arg(&program)
            .args([INSIDE, self.name])
            .arg(directory.path())
            .env("BUILDER_SECRET", "must not be seen")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("unshare(1): {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if self.needs.is_some() && output.stdout.is_empty() && !output.status.success() {
            return Err(format!("{}: {said}", output.status));
        }
        let mut answers = parse(&String::from_utf8_lossy(&output.stdout));
        if answers.is_empty() || !output.status.success() {
            answers.insert("enters".into(), Answer::Failed(format!("{}: {said}", output.status)));
        }
        Ok(answers)
    }
}

/// Makes `fixtures/stress`, or takes the program that `STRESS_PROGRAM` names. Without a compiler the cases that need it are skipped.
fn stress(program: &Path) -> Result<(), String> {
    if let Some(made) = std::env::var_os("STRESS_PROGRAM") {
        return std::fs::copy(made, program).map(drop).map_err(|error| format!("STRESS_PROGRAM: {error}"));
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/stress/stress.c");
    let mut compiler = Command::new("gcc");
    compiler.args(["-static", "-pthread", "-O1", "-w", "-o"]).arg(program).arg(source);
    match compiler.output() {
        Ok(output) if !output.status.success() => Err(format!("gcc: {}", String::from_utf8_lossy(&output.stderr))),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// One line an answer: `ok NAME`, `skipped NAME REASON`, `FAILED NAME MESSAGE` with newlines as `\n`.
fn parse(text: &str) -> BTreeMap<String, Answer> {
    let answer = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (kind, name, rest) = (words.next()?, words.next()?, words.next().unwrap_or_default().replace("\\n", "\n"));
        let answer = match kind {
            "ok" => Answer::Passed,
            "skipped" => Answer::Skipped(rest),
            "FAILED" => Answer::Failed(rest),
            _ => return None,
        };
        Some((name.to_owned(), answer))
    };
    text.lines().filter_map(answer).collect()
}
