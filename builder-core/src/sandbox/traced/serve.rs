//! The threads that answer calls.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::{io, thread};

use rustix::fs::{Mode, OFlags};

use super::super::serving;
use super::super::sys::notify::Reply;
use super::super::sys::pipe;
use super::tasks::lock;
use super::view::reopen;
use super::world::World;

/// Answers the calls of all threads of a RUN while `trace` traces them; what that returns.
///
/// # Errors
/// `EMFILE`
pub fn serve<T>(world: &World, complain: &(dyn Fn(&str) + Sync), trace: impl FnOnce() -> T) -> io::Result<T> {
    let (ended, alive) = pipe()?;
    Ok(thread::scope(|scope| {
        let wait = move |id: u64, pipe: OwnedFd, flags: OFlags| {
            let pipe = Arc::new(pipe);
            lock(&world.blocked).push(Arc::clone(&pipe));
            scope.spawn(move || open_pipe(world, id, &pipe, flags));
        };
        // The tracer waits for every one of them.
        serving::spawn(scope, &world.listener, &ended, true, move |call| {
            world.answer(call, &|line| complain(line), &wait)
        });
        let result = trace();
        drop(alive);
        // A thread that comes to wait only now finds the pipe's inode open for both ends as well.
        while lock(&world.blocked).iter().any(|pipe| Arc::strong_count(pipe) > 1) {
            world.let_go();
            thread::yield_now();
        }
        result
    }))
}

/// Opens a named pipe, however long the other end takes.
fn open_pipe(world: &World, id: u64, pipe: &Arc<OwnedFd>, flags: OFlags) {
    let cloexec = flags.contains(OFlags::CLOEXEC);
    let opened =
        reopen(pipe.as_fd(), flags.difference(OFlags::NOFOLLOW | OFlags::CREATE | OFlags::TRUNC), Mode::empty());
    lock(&world.blocked).retain(|known| !Arc::ptr_eq(known, pipe));
    match opened {
        Ok(fd) => {
            if let Err(errno) = world.listener.reply_with(id, fd.as_fd(), cloexec) {
                world.listener.reply(id, Reply::Error(errno));
            }
        }
        Err(errno) => _ = world.listener.reply(id, Reply::Error(errno)),
    }
}
