//! Opening named pipes: an end waits for the other one (fifo(7)).
//!
//! Each pipe has a thread until it is open, which looks again and again: an open(2) that waits in the kernel could only be ended by opening the other
//! end, which whoever else waits would see come and go. An end that is open here counts for the other one, so it is opened once and given away, and closed here
//! before its caller goes on.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use super::super::signals::Signals;
use super::super::sys::notify::Reply;
use super::super::sys::pipe;
use super::interrupted::RESTART;
use super::view::reopen;
use super::world::World;

/// Time between two looks, at first and at last: who waits for long loses no more by a late look than programs that take turns.
const LOOKS: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(10));

/// A named pipe that is being opened without `O_NONBLOCK`.
#[derive(Debug)]
pub enum Pipe {
    /// Open for reading, in a way that does not wait.
    Reading(OwnedFd),
    /// To be opened for writing, here with `O_PATH`: nobody reads it yet.
    Writing(OwnedFd),
    /// Open for writing, and somebody reads it.
    Met(OwnedFd),
}

/// Gives `pipe` to the call `id` of `thread`, with `flags`, when the other end is there.
pub fn give(world: &World, (id, thread): (u64, i32), pipe: Pipe, flags: OFlags) {
    let listener = &world.listener;
    match meet(world, (id, thread), pipe, flags) {
        Ok(Some(open)) => {
            if let Err(errno) = listener.hand(id, open, flags.contains(OFlags::CLOEXEC)) {
                listener.reply(id, Reply::Error(errno));
            }
        }
        // Nobody waits any more.
        Ok(None) => {}
        Err(errno) => _ = listener.reply(id, Reply::Error(errno)),
    }
}

fn meet(world: &World, (id, thread): (u64, i32), mut pipe: Pipe, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
    let flags = flags.difference(OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC);
    let (mut pause, mut waited) = (LOOKS.0, false);
    loop {
        // Asked before the pipe is looked at: the signal may be that the other end has come, done its work, and ended.
        let interrupted = waited && Signals::of(thread).is_some_and(|signals| signals.interrupt());
        if let Pipe::Writing(path) = &pipe {
            match reopen(path.as_fd(), flags | OFlags::NONBLOCK, Mode::empty()) {
                Ok(open) => pipe = Pipe::Met(open),
                Err(Errno::NXIO) => {}
                Err(errno) => return Err(errno),
            }
        }
        let open = match pipe {
            Pipe::Met(open) => open,
            Pipe::Reading(open) if is_met(&open) => open,
            waits => {
                if !world.listener.is_waiting(id) {
                    return Ok(None);
                }
                if interrupted {
                    if let Some(task) = world.tasks.get(thread) {
                        task.given_up.store(true, Ordering::Relaxed);
                    }
                    return Err(Errno::from_raw_os_error(RESTART));
                }
                match &waits {
                    Pipe::Reading(open) => {
                        let mut looked = [PollFd::new(open, PollFlags::IN)];
                        _ = poll(&mut looked, Timespec::try_from(pause).ok().as_ref());
                    }
                    _ => sleep(pause),
                }
                (pause, waited) = (LOOKS.1.min(pause * 2), true);
                pipe = waits;
                continue;
            }
        };
        rustix::fs::fcntl_setfl(&open, flags.difference(OFlags::NOCTTY))?;
        return Ok(Some(open));
    }
}

/// Whether somebody has opened a pipe for writing since it was opened for reading.
fn is_met(open: &OwnedFd) -> bool {
    let mut looked = [PollFd::new(open, PollFlags::IN)];
    // Something was written, or who could have is gone again.
    if poll(&mut looked, Some(&Timespec::default())).is_ok_and(|found| found > 0) {
        return true;
    }
    // This takes nothing away; without writers it ends at once, with them it would have to wait.
    let Ok((_other, end)) = pipe() else { return false };
    rustix::pipe::tee(open, &end, 1, SpliceFlags::NONBLOCK) == Err(Errno::AGAIN)
}
