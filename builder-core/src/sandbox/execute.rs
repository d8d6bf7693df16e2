//! From a prepared program to the exit status, in a pid namespace of its own: start, stream, wait, cancel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::command::Ends;
use super::nodes::{Mounts, Nodes};
use super::sys::{self, Child, Program, Watcher};
use super::{ExitStatus, RunSpec, SandboxError, setup};
use crate::cancel::Cancel;
use crate::event::Stream;
use crate::rootfs::Rootfs;

/// How long `run` waits between two looks at [`Cancel`].
pub const CANCEL_INTERVAL: Duration = Duration::from_millis(50);

/// The program and what the parent keeps of its pipes.
pub struct Prepared {
    /// What the child does.
    pub program: Program,
    /// `CLONE_NEW…`, without the control group namespace, which is tried.
    pub flags: i32,
    /// This process's ends of its pipes.
    pub ends: Ends,
    /// Over which the listener for calls that make device nodes comes, if the kernel refuses them.
    pub nodes: Option<OwnedFd>,
}

/// Runs `prepared` to its end. Nothing of it is left when this returns, whatever it returns.
///
/// # Errors
/// [`SandboxError`]
pub fn execute(
    prepared: Prepared,
    rootfs: &Rootfs,
    spec: &RunSpec,
    output: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    let Prepared { program, flags, ends, nodes } = prepared;
    let started = match sys::start(&program, flags | libc::CLONE_NEWCGROUP) {
        // A kernel without control groups.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => sys::start(&program, flags),
        started => started,
    };
    let child = setup("start a process in new namespaces", started)?;
    let what = program.names();
    // The parent's ends of the pipes: as long as they are open, none of them ends.
    drop(program);

    let (ended, alive) = setup("make a pipe", sys::pipe()).inspect_err(|_| child.end())?;
    let watcher = setup("watch the command", Watcher::new(child.pidfd.as_fd())).inspect_err(|_| child.end())?;
    let server = setup("open /proc", Nodes::new(rootfs, Mounts::Own)).inspect_err(|_| child.end())?;
    let status = std::thread::scope(|scope| {
        ends.stream(scope, &ended, output);
        if let Some(socket) = nodes {
            let (server, ended) = (&server, &ended);
            scope.spawn(move || server.serve(&socket, ended));
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
    ends.reported(&what, spec)?;
    Ok(status)
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
