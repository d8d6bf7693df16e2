//! The threads that answer the calls of a supervised command.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Scope;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::sys::notify::{Listener, Notification};

/// Threads that help when calls come faster than one thread answers them. On the processor of who calls a thread answers
/// fastest, so they help only then.
const HELPERS: usize = 3;

/// Calls behind which no other one waited, after which it is looked for that only now and then: each look is a system call.
const QUIET: u32 = 32;

/// How often it is looked then: every so many calls.
const LOOK: u32 = 8;

/// Answers calls in threads of `scope` until none can come any more or `ended` has an event (its other end was closed).
///
/// One thread receives, so that nobody waits for a call that another one got: before Linux 6.11 that would be for ever. Where
/// `all_end`, no process that could call is left when `ended` has its event: newer kernels tell whoever receives, which need not
/// ask for events first.
pub fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    listener: &'scope Listener,
    ended: &'scope OwnedFd,
    all_end: bool,
    answer: impl Fn(Notification) + Copy + Send + 'scope,
) {
    let (sender, receiver) = crossbeam_channel::bounded::<Notification>(HELPERS);
    let idle = Arc::new(AtomicUsize::new(0));
    for _ in 0..HELPERS {
        let (receiver, idle) = (receiver.clone(), Arc::clone(&idle));
        scope.spawn(move || {
            idle.fetch_add(1, Ordering::Relaxed);
            while let Ok(call) = receiver.recv() {
                idle.fetch_sub(1, Ordering::Relaxed);
                answer(call);
                idle.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    scope.spawn(move || {
        let mut quiet = 0_u32;
        // Nobody there any more, or a call that was given up: poll(2) tells which.
        let mut asks = true;
        while !asks || pending(listener, ended, true) {
            let Ok(received) = listener.receive() else { break };
            asks = !(all_end && tells_of_end()) || received.is_none();
            let Some(call) = received else { continue };
            quiet = quiet.saturating_add(1);
            let looks = quiet < QUIET || quiet.is_multiple_of(LOOK);
            if looks && idle.load(Ordering::Relaxed) > 0 && pending(listener, ended, false) {
                quiet = 0;
                if let Err(back) = sender.try_send(call) {
                    answer(back.into_inner());
                }
            } else {
                answer(call);
            }
        }
    });
}

/// Whether receiving ends with the last process under a filter: since Linux 6.11.
fn tells_of_end() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let name = rustix::system::uname();
        let mut numbers = name.release().to_str().unwrap_or_default().split(['.', '-']).map(str::parse::<u32>);
        matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 11))
    })
}

/// Whether there is a call to receive; with `block`, waits for one, and `false` means that there will be none.
fn pending(listener: &Listener, ended: &OwnedFd, block: bool) -> bool {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
        ];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::event::poll(&mut fds, if block { None } else { Some(&now) }) {
            Err(Errno::INTR) => {}
            _ => return fds[0].revents().contains(PollFlags::IN),
        }
    }
}
