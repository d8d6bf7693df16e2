//! Signals that come between a call and its being received.
//!
//! A call that waits for the supervisor is ended by the kernel when its thread gets a signal (`ERESTARTSYS`) and made again, but a
//! handler without `SA_RESTART` makes `EINTR` of it: from stat(2) and the like, which never say so, and which no program expects it
//! of. Every signal stops here first, so such a call can be made to begin anew whatever the handler wants.

use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::super::sys::ptrace::{self, Registers};
use super::filter;
use super::tasks::Task;

/// The supervisor's own: ends the call, and lets the kernel begin it anew or say `EINTR` as the signal's handler wants it
/// (`ERESTARTSYS`, which no program sees).
pub const RESTART: i32 = 512;

/// Delivers a signal to a thread that is stopped by it. `Some` if it stops once more, at the first instruction of its handler,
/// for [`at_handler`].
///
/// # Errors
/// `ESRCH` if it was killed.
pub fn deliver(task: &Task, signal: i32) -> Result<Option<Registers>, Errno> {
    let registers = Registers::of(task.thread)?;
    // Opening a named pipe is what a signal may end.
    let given_up = filter::is_answered(registers.number()) && !task.given_up.swap(false, Ordering::Relaxed);
    if given_up {
        machine::deliver(task.thread, signal, registers)
    } else {
        ptrace::go(task.thread, signal).map(|()| None)
    }
}

pub use machine::at_handler;

/// The kernel looks at what the call returned after the tracer did.
#[cfg(target_arch = "x86_64")]
mod machine {
    use super::{Errno, RESTART, Registers, ptrace};

    /// As [`RESTART`], and whatever the handler wants: `ERESTARTNOINTR`.
    const ALWAYS: i64 = 513;

    pub fn deliver(thread: i32, signal: i32, mut registers: Registers) -> Result<Option<Registers>, Errno> {
        if registers.result() == -i64::from(RESTART) {
            registers.set_result(-ALWAYS);
            registers.set(thread)?;
        }
        ptrace::go(thread, signal).map(|()| None)
    }

    /// No thread stops there.
    pub fn at_handler(thread: i32, _: &Registers) -> Result<(), Errno> {
        ptrace::go(thread, 0)
    }
}

/// The kernel has looked already, and the thread stands before its call as if it had not been made; what the handler wants comes
/// with the frame on the stack that it returns to.
#[cfg(target_arch = "aarch64")]
mod machine {
    use std::mem::offset_of;

    use super::super::super::signals::Signals;
    use super::super::super::sys::memory;
    use super::{Errno, Registers, ptrace};

    /// The instruction that makes a call.
    const CALL: [u8; 4] = 0xd400_0001_u32.to_le_bytes();

    /// Bytes of a `siginfo_t`, which the frame begins with; a `ucontext_t` follows.
    const INFO_BYTES: u64 = 128;

    pub fn deliver(thread: i32, signal: i32, registers: Registers) -> Result<Option<Registers>, Errno> {
        let mut instruction = [0; CALL.len()];
        let calls =
            memory::read_exact(thread, registers.instruction(), &mut instruction).is_ok() && instruction == CALL;
        // Only a handler is stopped at; who has none is not asked.
        if calls && Signals::of(thread).is_some_and(|signals| signals.handles(signal)) {
            ptrace::go_one_step(thread, signal)?;
            return Ok(Some(registers));
        }
        ptrace::go(thread, signal).map(|()| None)
    }

    /// Lets a thread handle a signal; if the call that it came in was to say `EINTR` behind the handler, it is made again.
    pub fn at_handler(thread: i32, before: &Registers) -> Result<(), Errno> {
        let again = || -> Result<(), Errno> {
            let frame = Registers::of(thread)?.stack() + INFO_BYTES;
            let first = frame + offset_of!(libc::ucontext_t, uc_mcontext.regs) as u64;
            let instruction = frame + offset_of!(libc::ucontext_t, uc_mcontext.pc) as u64;
            let interrupted = -i64::from(libc::EINTR);
            if memory::read_word(thread, first)?.cast_signed() == interrupted
                && memory::read_word(thread, instruction)? == before.instruction() + CALL.len() as u64
            {
                memory::write(thread, first, &before.argument(0).to_ne_bytes())?;
                memory::write(thread, instruction, &before.instruction().to_ne_bytes())?;
            }
            Ok(())
        };
        // What it says where a stack cannot be written is what it said before.
        _ = again();
        ptrace::go(thread, 0)
    }
}
