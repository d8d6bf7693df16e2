//! The threads that answer the calls of a supervised command.

use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Scope;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::sys::notify::{Listener, Notification, Reply};

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
///
/// # Panics
/// The scope does, at its end, if `answer` did: until then all calls fail, so that nobody waits for an answer.
pub fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    listener: &'scope Listener,
    ended: &'scope OwnedFd,
    all_end: bool,
    answer: impl Fn(Notification) + Copy + Send + 'scope,
) {
    let (sender, receiver) = crossbeam_channel::bounded::<Notification>(HELPERS);
    let (idle, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(Answers::default()));
    let answer = move |answers: &Answers, call: Notification| {
        let id = call.id;
        answers.give(|| answer(call), || _ = listener.reply(id, Reply::Error(Errno::IO)));
    };
    for _ in 0..HELPERS {
        let (receiver, idle, answers) = (receiver.clone(), Arc::clone(&idle), Arc::clone(&answers));
        scope.spawn(move || {
            idle.fetch_add(1, Ordering::Relaxed);
            while let Ok(call) = receiver.recv() {
                idle.fetch_sub(1, Ordering::Relaxed);
                answer(&answers, call);
                idle.fetch_add(1, Ordering::Relaxed);
            }
            answers.tell();
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
                    answer(&answers, back.into_inner());
                }
            } else {
                answer(&answers, call);
            }
        }
        answers.tell();
    });
}

/// Whether calls are still answered: not after a panic, which is kept until it can be told.
#[derive(Default)]
struct Answers {
    broken: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Answers {
    /// Does one of both; `refuse` too where `answer` panics.
    fn give(&self, answer: impl FnOnce(), refuse: impl FnOnce()) {
        if self.broken.load(Ordering::Relaxed) {
            return refuse();
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(answer)) {
            self.broken.store(true, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            refuse();
        }
    }

    /// Goes on with the panic.
    fn tell(&self) {
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn after_a_panic_all_calls_are_refused_and_it_is_told_once() {
        let answers = Answers::default();
        let said = RefCell::new(Vec::new());
        let say = |word: &'static str| said.borrow_mut().push(word);
        answers.tell();
        answers.give(|| say("one"), || say("not one"));
        answers.give(|| panic!("of the second"), || say("not two"));
        answers.give(|| say("three"), || say("not three"));
        assert_eq!(*said.borrow(), ["one", "not two", "not three"]);
        let told = catch_unwind(AssertUnwindSafe(|| answers.tell())).expect_err("the panic");
        assert_eq!(told.downcast_ref(), Some(&"of the second"));
        answers.tell();
    }
}
