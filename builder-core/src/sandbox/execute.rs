//! From a prepared program to the exit status: start, stream, wait, cancel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::sys::{self, Child, Program, Watcher};
use super::{ExitStatus, RunSpec, SandboxError, output, setup};
use crate::cancel::Cancel;
use crate::event::Stream;

/// How long `run` waits between two looks at [`Cancel`].
pub const CANCEL_INTERVAL: Duration = Duration::from_millis(50);

/// The program and what the parent keeps of its pipes.
pub struct Prepared {
    /// What the child does.
    pub program: Program,
    /// `CLONE_NEW…`, without the control group namespace, which is tried.
    pub flags: i32,
    /// Reading end of standard output.
    pub stdout: OwnedFd,
    /// Reading end of standard error.
    pub stderr: OwnedFd,
    /// Reading end of [`Program::report`].
    pub report: OwnedFd,
}

/// Runs `prepared` to its end. Nothing of it is left when this returns, whatever it returns.
///
/// # Errors
/// [`SandboxError`]
pub fn execute(
    prepared: Prepared,
    spec: &RunSpec,
    output: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    let Prepared { program, flags, stdout, stderr, report } = prepared;
    let started = match sys::start(&program, flags | libc::CLONE_NEWCGROUP) {
        // A kernel without control groups.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => sys::start(&program, flags),
        started => started,
    };
    let child = setup("start a process in new namespaces", started)?;
    let what: Vec<String> = program.steps.iter().map(|step| step.what.clone()).collect();
    // The parent's ends of the pipes: as long as they are open, none of them ends.
    drop(program);

    let (ended, alive) = setup("make a pipe", sys::pipe()).inspect_err(|_| child.end())?;
    let watcher = setup("watch the command", Watcher::new(child.pidfd.as_fd())).inspect_err(|_| child.end())?;
    let status = std::thread::scope(|scope| {
        for (pipe, stream) in [(&stdout, Stream::Stdout), (&stderr, Stream::Stderr)] {
            let ended = &ended;
            scope.spawn(move || output::stream(pipe, ended, |line| output(stream, line)));
        }
        let status = wait(&child, cancel);
        drop(alive);
        status
    });
    drop(watcher);
    if cancel.is_cancelled() {
        return Err(SandboxError::Cancelled);
    }
    let status = setup("wait for the command", status)?;
    match read_report(&report) {
        None => Ok(status),
        Some((Program::EXEC, source)) => {
            Err(SandboxError::Exec { program: spec.argv.first().cloned().unwrap_or_default(), source })
        }
        Some((step, source)) => {
            let what = usize::try_from(step).ok().and_then(|step| what.into_iter().nth(step));
            Err(SandboxError::Setup { what: what.unwrap_or_else(|| "set the sandbox up".into()), source })
        }
    }
}

/// Waits for the end of process 1; kills it if the build is cancelled.
fn wait(child: &Child, cancel: &Cancel) -> io::Result<ExitStatus> {
    let interval = Timespec { tv_sec: 0, tv_nsec: CANCEL_INTERVAL.subsec_nanos().into() };
    let mut killed = false;
    loop {
        let mut fds = [PollFd::new(&child.pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, (!killed).then_some(&interval)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return child.wait(),
            Err(errno) => {
                child.end();
                return Err(errno.into());
            }
        }
        if cancel.is_cancelled() {
            child.kill();
            killed = true;
        }
    }
}

/// What a child said before it ended: number of the step, and why. The child must be gone.
pub fn read_report(report: &OwnedFd) -> Option<(u32, io::Error)> {
    let mut bytes = [0; 8];
    // The child is gone, so there is either a whole report or none; a stranger's copy of the other end must not hang us.
    rustix::fs::fcntl_setfl(report, rustix::fs::OFlags::NONBLOCK).ok()?;
    if rustix::io::read(report, &mut bytes[..]) != Ok(8) {
        return None;
    }
    let [step, errno] = [0, 4].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
    Some((step, io::Error::from_raw_os_error(errno.cast_signed())))
}
