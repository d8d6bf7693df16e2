//! A builder that is killed takes its commands with it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use builder_core::cancel::Cancel;
use builder_core::rootfs::Rootfs;
use builder_core::sandbox;
use libtest_mimic::{Completion, Failed, Trial};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};

use crate::inside::{command, make_tree};
use crate::{VICTIM, skipped};

/// How long the dead may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Both ways in which the kernel learns that a sandbox is orphaned.
pub fn trials() -> Vec<Trial> {
    [("killed_builder", "plain"), ("killed_builder_of_setuid_program", "setuid")]
        .into_iter()
        .map(|(name, kind)| Trial::ignorable_test(name, move || kill(kind)))
        .collect()
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
