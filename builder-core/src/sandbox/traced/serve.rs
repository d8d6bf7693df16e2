//! The threads that answer calls.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{io, thread};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::sys::notify::{Notification, Reply};
use super::super::sys::pipe;
use super::tasks::lock;
use super::view::reopen;
use super::world::World;

/// Threads that help when calls come faster than one thread answers them. On the processor of who calls a thread answers
/// fastest, so they help only then.
const HELPERS: usize = 3;

/// Answers the calls of all threads of a RUN while `trace` traces them; what that returns.
///
/// # Errors
/// `EMFILE`
pub fn serve<T>(world: &World, complain: &(dyn Fn(&str) + Sync), trace: impl FnOnce() -> T) -> io::Result<T> {
    let (ended, alive) = pipe()?;
    let (sender, receiver) = crossbeam_channel::bounded::<Notification>(HELPERS);
    let idle = AtomicUsize::new(0);
    Ok(thread::scope(|scope| {
        let wait = |id: u64, pipe: OwnedFd, flags: OFlags| {
            let pipe = Arc::new(pipe);
            lock(&world.blocked).push(Arc::clone(&pipe));
            scope.spawn(move || open_pipe(world, id, &pipe, flags));
        };
        let answer = move |call: Notification| world.answer(call, &|line| complain(line), &wait);
        for _ in 0..HELPERS {
            let (receiver, answer, idle) = (receiver.clone(), answer, &idle);
            scope.spawn(move || {
                idle.fetch_add(1, Ordering::Relaxed);
                while let Ok(call) = receiver.recv() {
                    idle.fetch_sub(1, Ordering::Relaxed);
                    answer(call);
                    idle.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        drop(receiver);
        let (ended, idle) = (&ended, &idle);
        scope.spawn(move || {
            while pending(world, ended, true) {
                let Ok(received) = world.listener.receive() else { break };
                let Some(call) = received else { continue };
                if idle.load(Ordering::Relaxed) > 0 && pending(world, ended, false) {
                    if let Err(back) = sender.try_send(call) {
                        answer(back.into_inner());
                    }
                } else {
                    answer(call);
                }
            }
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

/// Whether there is a call to receive; with `block`, waits for one, and `false` means that there will be none.
fn pending(world: &World, ended: &OwnedFd, block: bool) -> bool {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(world.listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
        ];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut fds, if block { None } else { Some(&now) }) {
            Err(Errno::INTR) => {}
            _ => return fds[0].revents().contains(PollFlags::IN),
        }
    }
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
