//! Calls that a thread of the command is made to make: what nobody else can do for it. It is stopped by ptrace(2) at the return
//! of the call that it has been answered, makes them, and goes on as if nothing had been.

use rustix::io::Errno;

use super::super::sys::notify::{Listener, Notification, Reply};
use super::super::sys::ptrace::{self, Registers, Stop};

/// A thread that is stopped.
#[derive(Debug)]
pub struct Held {
    thread: i32,
    mask: u64,
    registers: Registers,
}

impl Held {
    /// Answers a call and stops its thread before it sees the result. The calling thread must have the thread's ids. `None` if
    /// the call has been answered, or its thread is gone, and it goes on by itself.
    ///
    /// # Errors
    /// If it cannot be traced; the call waits for an answer then. `ENOSYS` if it never can.
    pub fn at_return(listener: &Listener, call: &Notification, reply: Reply) -> Result<Option<Self>, Errno> {
        let thread = call.thread;
        ptrace::seize_alone(thread)?;
        let interrupted = ptrace::interrupt(thread);
        // Before Linux 5.19 the interruption has ended the call, which is made once more: it has no answer yet then.
        let answered = interrupted.is_ok() && listener.reply(call.id, reply);
        if interrupted.is_err() {
            return Ok(None);
        }
        let stopped = wait(thread, |stop| matches!(stop, Stop::Trap | Stop::Group(_)), ptrace::go)?;
        if !stopped {
            return Ok(None);
        }
        if !answered {
            ptrace::detach(thread)?;
            return Err(Errno::NOSYS);
        }
        let prepare = || -> Result<Self, Errno> {
            let registers = Registers::of(thread)?;
            let mask = ptrace::signal_mask(thread)?;
            // Signals come when it goes on.
            ptrace::set_signal_mask(thread, u64::MAX)?;
            Ok(Self { thread, mask, registers })
        };
        match prepare() {
            Ok(held) => Ok(Some(held)),
            Err(_) => {
                _ = ptrace::detach(thread);
                Ok(None)
            }
        }
    }

    /// Makes it make a call; what that returns.
    ///
    /// # Errors
    /// `ESRCH` if it was killed.
    pub fn call(&mut self, number: libc::c_long, arguments: &[u64]) -> Result<i64, Errno> {
        let mut registers = self.registers;
        registers.again(number);
        for (at, argument) in arguments.iter().enumerate() {
            registers.set_argument(at, *argument);
        }
        registers.set(self.thread)?;
        // Its entry, and its return.
        for _ in 0..2 {
            ptrace::go_to_call(self.thread)?;
            // Other stops change nothing; a stop of the whole process that comes just here is lost.
            if !wait(self.thread, |stop| stop == Stop::Call, |thread, _| ptrace::go_to_call(thread))? {
                return Err(Errno::SRCH);
            }
        }
        Ok(Registers::of(self.thread)?.result())
    }

    /// What the call that was answered returns instead.
    pub fn set_result(&mut self, value: i64) {
        self.registers.set_result(value);
    }

    /// Lets it go on.
    pub fn release(self) {
        // It may have been killed.
        _ = self.registers.set(self.thread);
        _ = ptrace::set_signal_mask(self.thread, self.mask);
        _ = ptrace::detach(self.thread);
    }
}

/// Waits until a thread is at a stop that is `wanted`, and lets it `go` on with its signal from others; `false` if it has ended.
fn wait(thread: i32, wanted: impl Fn(Stop) -> bool, go: impl Fn(i32, i32) -> Result<(), Errno>) -> Result<bool, Errno> {
    loop {
        match ptrace::wait_for(thread) {
            Ok(Stop::Ended(_)) | Err(Errno::CHILD) => return Ok(false),
            Ok(stop) if wanted(stop) => return Ok(true),
            Ok(Stop::Signal(signal)) => go(thread, signal)?,
            Ok(_) => go(thread, 0)?,
            Err(errno) => return Err(errno),
        }
    }
}
