//! A command without a pid namespace: below a keeper, which ends everything with it, and with its calls answered by this
//! process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::command::Ends;
use super::execute::CANCEL_INTERVAL;
use super::sys::notify::{Listener, Notification};
use super::sys::{self, Kept, Program};
use super::{ExitStatus, RunSpec, SandboxError, serving, setup};
use crate::cancel::Cancel;
use crate::event::Stream;

/// How long a child may take to install its filter, on a machine that is busy.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The program and what the parent keeps of its pipes.
pub struct Prepared {
    /// What the child does; it installs a filter with a listener.
    pub program: Program,
    /// This process's ends of its pipes.
    pub ends: Ends,
    /// Over which the listener comes.
    pub socket: OwnedFd,
}

impl Prepared {
    /// Starts it in new namespaces (`CLONE_NEW…`, but no pid namespace), with what its keeper holds until the end ([`Kept`]).
    ///
    /// # Errors
    /// [`SandboxError::Setup`]
    pub fn start(self, flags: i32, held: &[OwnedFd], cancel: &Cancel) -> Result<Started, SandboxError> {
        let Self { program, ends, socket } = self;
        let started = match Kept::start(&program, flags, held) {
            // A kernel without control groups.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Kept::start(&program, flags & !libc::CLONE_NEWCGROUP, held)
            }
            started => started,
        };
        let kept = setup("start a process", started)?;
        let what = program.names();
        // Our copies of the pipes' other ends: as long as they are open, none of them ends.
        drop(program);
        let listener = listener(&socket, &kept, cancel);
        if listener.is_err() {
            kept.end();
        }
        Ok(Started { kept, listener, ends, what, socket })
    }
}

/// One that waits for its calls to be answered before it executes anything; or it has ended, and tells why.
pub struct Started {
    kept: Kept,
    listener: io::Result<Option<Listener>>,
    ends: Ends,
    what: Vec<String>,
    socket: OwnedFd,
}

impl Started {
    /// The number of its keeper.
    pub fn keeper(&self) -> i32 {
        self.kept.keeper.pid
    }

    /// Its own number.
    pub fn command(&self) -> i32 {
        self.kept.command
    }

    /// Where its calls come from; `None` if it has ended already.
    pub fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref().ok().and_then(Option::as_ref)
    }
    /// Lets it go on, gives its calls to `answer`, and waits until nothing is left of it.
    ///
    /// # Errors
    /// [`SandboxError`]
    pub fn perform(
        &self,
        spec: &RunSpec,
        answer: Option<impl Fn(Notification) + Copy + Send>,
        output: &(dyn Fn(Stream, &[u8]) + Sync),
        cancel: &Cancel,
    ) -> Result<ExitStatus, SandboxError> {
        let (stop, going) = setup("make a pipe", sys::pipe()).inspect_err(|_| self.kept.end())?;
        let (ended, alive) = setup("make a pipe", sys::pipe()).inspect_err(|_| self.kept.end())?;
        let status = std::thread::scope(|scope| {
            self.ends.stream(scope, &ended, output);
            if let (Some(listener), Some(answer)) = (self.listener(), answer) {
                serving::spawn(scope, listener, &stop, true, answer);
                // It waits for this before it executes anything.
                _ = rustix::io::write(&self.socket, &[0]);
            }
            let status = wait(&self.kept, cancel);
            drop(going);
            drop(alive);
            status
        });
        if cancel.is_cancelled() {
            return Err(SandboxError::Cancelled);
        }
        if let Err(error) = &self.listener {
            let source = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            return setup("supervise the command", Err(source));
        }
        let status = setup("wait for the command", status)?;
        self.ends.reported(&self.what, spec)?;
        Ok(status)
    }
}

/// The listener of the command's filter; `None` if the command ended instead.
fn listener(socket: &OwnedFd, kept: &Kept, cancel: &Cancel) -> io::Result<Option<Listener>> {
    let started = Instant::now();
    let interval = Timespec { tv_sec: 0, tv_nsec: CANCEL_INTERVAL.subsec_nanos().into() };
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(&kept.keeper.pidfd, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&interval)))?;
        if !fds[0].revents().is_empty() {
            return Ok(sys::receive_descriptor(socket.as_fd())?.map(Listener::new));
        }
        if !fds[1].revents().is_empty() || cancel.is_cancelled() {
            return Ok(None);
        }
        if started.elapsed() > START_LIMIT {
            return Err(Errno::TIMEDOUT.into());
        }
    }
}

/// Waits until nothing is left of the command; ends it if the build is cancelled.
fn wait(kept: &Kept, cancel: &Cancel) -> io::Result<ExitStatus> {
    let interval = Timespec { tv_sec: 0, tv_nsec: CANCEL_INTERVAL.subsec_nanos().into() };
    loop {
        let mut fds = [PollFd::new(&kept.keeper.pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&interval)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return kept.wait(),
            Err(errno) => {
                kept.end();
                return Err(errno.into());
            }
        }
        if cancel.is_cancelled() {
            kept.end();
        }
    }
}
