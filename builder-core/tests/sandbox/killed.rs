//! A builder that is killed takes its commands with it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use builder_core::cancel::Cancel;
use builder_core::rootfs::Rootfs;
use builder_core::sandbox::{self, ExitStatus, MountSource, SandboxMount, Tier, Whereabouts, Wish};
use libtest_mimic::{Completion, Failed, Trial};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};

use crate::inside::{command, make_tree};
use crate::{VICTIM, skipped};

/// How long the dead may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Moments at which a builder is killed, in milliseconds after its start: from its own set-up to the middle of the command.
const MOMENTS: [u64; 8] = [5, 15, 30, 50, 80, 130, 250, 500];

/// Name of a variable that only commands of these trials have.
const MARK: &str = "SLIPWAY_KILLED";

/// A user that has nothing.
const PLAIN: [&str; 6] = [
    "--reuid=1000778",
    "--regid=1000778",
    "--clear-groups",
    "--no-new-privs",
    "--bounding-set=-all",
    "--inh-caps=-all",
];

/// Both ways in which the kernel learns that a sandbox is orphaned; and each tier at any moment.
pub fn trials() -> Vec<Trial> {
    let once = [("killed_builder", "plain"), ("killed_builder_of_setuid_program", "setuid")];
    let mut trials: Vec<_> =
        once.into_iter().map(|(name, kind)| Trial::ignorable_test(name, move || kill(kind))).collect();
    let tiers = [("namespaces", Tier::Namespaces), ("chroot", Tier::Chroot), ("traced", Tier::Traced)];
    trials.extend(tiers.map(|(name, tier)| {
        Trial::ignorable_test(format!("killed_at_any_moment_{name}"), move || kill_at_any_moment(name, tier))
    }));
    trials
}

/// Kills builders at several moments: no process of the RUN lives on, and the next RUN in the same tree works.
fn kill_at_any_moment(name: &str, tier: Tier) -> Result<Completion, Failed> {
    if !rustix::process::geteuid().is_root() {
        return Ok(skipped("needs root"));
    }
    if !Path::new("/bin/busybox").exists() {
        return Ok(skipped("no /bin/busybox (package busybox-static)"));
    }
    let directory = tempfile::Builder::new().prefix("slipway-killed-").tempdir()?;
    let program = directory.path().join("sandbox-test");
    fs::copy(std::env::current_exe()?, &program)?;
    let place = directory.path().join("place");
    fs::create_dir(&place)?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    if tier == Tier::Traced {
        std::os::unix::fs::chown(&place, Some(1_000_778), Some(1_000_778))?;
    }
    let start = |kind: &str| {
        let mut command = Command::new(if tier == Tier::Traced { "setpriv" } else { "env" });
        command.args(PLAIN.iter().filter(|_| tier == Tier::Traced)).arg(&program);
        command.args([VICTIM, kind, name]).arg(&place).stdin(Stdio::null()).spawn()
    };
    let ends = |kind: &str| -> Result<(), Failed> {
        let status = start(kind)?.wait()?;
        if status.success() { Ok(()) } else { Err(format!("{kind}: {status}").into()) }
    };
    ends("short")?;
    fs::write(place.join("cache/kept"), "kept")?;
    for moment in MOMENTS {
        let mut victim = start("busy")?;
        std::thread::sleep(Duration::from_millis(moment));
        victim.kill()?;
        victim.wait()?;
        if !wait_for(|| marked(&place).is_empty()) {
            return Err(format!("killed after {moment} ms, and these live on: {:?}", marked(&place)).into());
        }
        // A directory of somebody else's that was in the tree is found again, with its content, as soon as the keeper of the
        // command is gone too: it outlives the builder, and may do so before the command has a process.
        let cache = place.join("cache");
        let mut whereabouts = Whereabouts::Away;
        wait_for(|| {
            whereabouts = sandbox::bring_home(&cache).expect("looked");
            whereabouts != Whereabouts::Away
        });
        if whereabouts != Whereabouts::Home || fs::read(cache.join("kept")).ok().as_deref() != Some(b"kept") {
            return Err(format!("killed after {moment} ms, and the cache is {whereabouts:?}, not at home").into());
        }
        ends("short")?;
    }
    Ok(Completion::Completed)
}

/// Processes of commands of these trials: this mark is in their environment.
fn marked(place: &Path) -> Vec<String> {
    let mark = format!("{MARK}={}", place.display());
    let processes = fs::read_dir("/proc").expect("list").flatten();
    let environ = |path: &Path| fs::read(path.join("environ")).unwrap_or_default();
    let is_marked = |path: &Path| environ(path).split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes());
    processes.map(|entry| entry.path()).filter(|path| is_marked(path)).map(|path| path.display().to_string()).collect()
}

/// Runs a command in one tier: one that makes processes and daemons for ever, or a short one.
fn victim_in_tier(kind: &str, tier: &str, place: &Path) {
    let tier = match tier {
        "chroot" => Tier::Chroot,
        "traced" => Tier::Traced,
        _ => Tier::Namespaces,
    };
    let environment = sandbox::enter_as(&Wish { tier: Some(tier), work_dir: None }).expect("enter");
    // The tree has a parent of its own: two of the tiers put things beside it.
    let tree = place.join("root");
    if !tree.exists() {
        fs::create_dir(&tree).expect("create");
        make_tree(&tree);
        fs::create_dir(place.join("cache")).expect("create");
    }
    let script = match kind {
        "busy" => {
            "while true; do setsid sleep 600 & (mkdir -p /tmp/a/b; touch /tmp/a/b/c; ls -l /proc/self) & sleep 0.02; done"
        }
        _ => "touch /tmp/short && test -e /dev/null && test -r /proc/self/status && rm /tmp/short",
    };
    let mut spec = command(&["/bin/sh", "-c", script]);
    spec.env.push((MARK.into(), place.into()));
    let source = MountSource::Host(place.join("cache"));
    spec.mounts.push(SandboxMount { target: "/root/.cache/x".into(), readonly: false, owners: None, source });
    let rootfs = Rootfs::open(&tree).expect("open");
    let rootfs = if tier == Tier::Traced { rootfs.recording(Arc::default()) } else { rootfs };
    let end = sandbox::run(&environment, &rootfs, &spec, &|_, _| {}, &Cancel::default()).expect("runs");
    assert_eq!(end, ExitStatus::Code(0));
}

fn kill(kind: &str) -> Result<Completion, Failed> {
    if !rustix::process::geteuid().is_root() {
        return Ok(skipped("needs root"));
    }
    if !Path::new("/bin/busybox").exists() {
        return Ok(skipped("no /bin/busybox (package busybox-static)"));
    }
    let directory = tempfile::tempdir()?;
    let mut victim = Command::new(std::env::current_exe()?)
        .args([VICTIM, kind])
        .arg(directory.path())
        .stdin(Stdio::null())
        .spawn()?;
    // The command holds the other end of this pipe as long as one of its processes lives.
    let (pipe, ready) = (directory.path().join("tmp/pipe"), directory.path().join("tmp/ready"));
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut reader = None;
    let started = wait_for(|| {
        reader = reader.take().or_else(|| rustix::fs::open(&pipe, flags, Mode::empty()).ok());
        ready.exists()
    });
    victim.kill()?;
    victim.wait()?;
    let Some(reader) = reader.filter(|_| started) else { return Err("the command did not start".into()) };
    let mut fds = [PollFd::new(&reader, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&PATIENCE.try_into()?))?;
    let gone = fds[0].revents().contains(PollFlags::HUP);
    if gone { Ok(Completion::Completed) } else { Err("the command lives on".into()) }
}

fn wait_for(mut condition: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Runs a command that never ends.
pub fn victim(arguments: &[String]) {
    if let [kind, tier, place] = arguments {
        return victim_in_tier(kind, tier, Path::new(place));
    }
    let [kind, directory] = arguments else { panic!("kind and directory follow") };
    let directory = Path::new(directory);
    let environment = sandbox::enter().expect("enter");
    make_tree(directory);
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("chmod");
    let script = "mkfifo -m 666 /tmp/pipe; exec > /tmp/pipe; touch /tmp/ready; sleep 3600 & sleep 3600; exit";
    let mut spec = command(&["/bin/sh", "-c", script]);
    if kind == "setuid" {
        // Executed with more rights than before, process 1 no longer dies with its parent: prctl(2).
        let shell = directory.join("bin/busybox-setuid");
        fs::copy("/bin/busybox", &shell).expect("copy");
        fs::set_permissions(&shell, fs::Permissions::from_mode(0o4755)).expect("chmod");
        spec.argv = ["/bin/busybox-setuid", "sh", "-c", script].map(OsString::from).to_vec();
        spec.user = sandbox::RunUser { uid: 1000, gid: 1000, groups: vec![1000], home: "/".into() };
    }
    let rootfs = Rootfs::open(directory).expect("open");
    let end = sandbox::run(&environment, &rootfs, &spec, &|_, _| {}, &Cancel::default());
    panic!("it ended: {end:?}");
}
