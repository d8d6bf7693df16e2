//! Tracing of processes: ptrace(2). All calls for one tracee come from the thread that seized it.

use std::io;
use std::ptr;

use rustix::io::Errno;

/// Registers of a stopped thread.
#[derive(Debug, Clone, Copy)]
pub struct Registers(libc::user_regs_struct);

/// What [`wait`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It has ended.
    Ended(super::ExitStatus),
    /// A signal is about to be delivered.
    Signal(i32),
    /// `SECCOMP_RET_TRACE`.
    Seccomp,
    /// Entry to or return from a call, after [`go_to_call`].
    Call,
    /// execve(2) has worked.
    Exec,
    /// fork, vfork or clone: [`message`] is the new thread.
    Fork,
    /// Stopped by a signal as a whole, which [`listen`] leaves it in: the signal.
    Group(i32),
    /// First stop of a new thread, or after an interruption.
    Trap,
}

// linux/ptrace.h; libc has them as different types for different C libraries.
const SEIZE: Request = 0x4206 as Request;
const INTERRUPT: Request = 0x4207 as Request;
const DETACH: Request = 17 as Request;
const GET_MASK: Request = 0x420a as Request;
const SET_MASK: Request = 0x420b as Request;
const LISTEN: Request = 0x4208 as Request;
const CONT: Request = 7 as Request;
#[cfg(target_arch = "aarch64")]
const SINGLE_STEP: Request = 9 as Request;
const SYSCALL: Request = 24 as Request;
/// `PTRACE_GETSIGINFO`
const GET_INFO: Request = 0x4202 as Request;
const GET_MESSAGE: Request = 0x4201 as Request;
const GET_SET: Request = 0x4204 as Request;
const SET_SET: Request = 0x4205 as Request;

/// `NT_PRSTATUS`: general registers.
const GENERAL: usize = 1;
/// `NT_ARM_SYSTEM_CALL`: number of the call, which is not a register on aarch64.
#[cfg(target_arch = "aarch64")]
const SYSTEM_CALL: usize = 0x404;

/// `PTRACE_O_TRACESYSGOOD | TRACEFORK | TRACEVFORK | TRACECLONE | TRACEEXEC | TRACESECCOMP | EXITKILL`
const OPTIONS: usize = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 7 | 1 << 20;

/// `PTRACE_O_TRACESYSGOOD`
const ALONE: usize = 1;

#[cfg(target_env = "musl")]
type Request = libc::c_int;
#[cfg(not(target_env = "musl"))]
type Request = libc::c_uint;

fn ptrace(request: Request, thread: i32, address: usize, data: usize) -> Result<(), Errno> {
    // SAFETY: the callers pass numbers, or addresses of memory that is valid for what the request does with it.
    let result = unsafe {
        libc::ptrace(request, thread, ptr::with_exposed_provenance_mut::<libc::c_void>(address), data as libc::c_long)
    };
    if result == -1 { Err(super::last_errno()) } else { Ok(()) }
}

/// Becomes the tracer of a process and of all that it makes from now on. They are killed when this thread ends.
///
/// # Errors
/// `EPERM` where tracing is forbidden (Yama, a seccomp filter) or there is a tracer already.
pub fn seize(process: i32) -> Result<(), Errno> {
    ptrace(SEIZE, process, 0, OPTIONS)
}

/// Becomes the tracer of one thread, and not of what it makes. It goes on by itself when this thread ends.
///
/// # Errors
/// As [`seize`].
pub fn seize_alone(thread: i32) -> Result<(), Errno> {
    ptrace(SEIZE, thread, 0, ALONE)
}

/// Stops a thread that was seized as soon as it is about to return to its program.
///
/// # Errors
/// `ESRCH` if it was killed.
pub fn interrupt(thread: i32) -> Result<(), Errno> {
    ptrace(INTERRUPT, thread, 0, 0)
}

/// Lets a stopped thread go on without a tracer.
///
/// # Errors
/// `ESRCH` if it was killed.
pub fn detach(thread: i32) -> Result<(), Errno> {
    ptrace(DETACH, thread, 0, 0)
}

/// Which signals a stopped thread blocks: bit 0 is signal 1.
///
/// # Errors
/// `ESRCH` if it was killed.
pub fn signal_mask(thread: i32) -> Result<u64, Errno> {
    let mut mask = 0_u64;
    ptrace(GET_MASK, thread, size_of::<u64>(), (&raw mut mask).expose_provenance())?;
    Ok(mask)
}

/// Sets that.
///
/// # Errors
/// `ESRCH` if it was killed.
pub fn set_signal_mask(thread: i32, mask: u64) -> Result<(), Errno> {
    ptrace(SET_MASK, thread, size_of::<u64>(), (&raw const mask).expose_provenance())
}

/// Lets a stopped thread go on, with this signal unless 0.
///
/// # Errors
/// `ESRCH` if it was killed.
pub fn go(thread: i32, signal: i32) -> Result<(), Errno> {
    ptrace(CONT, thread, 0, signal as usize)
}

/// Lets a stopped thread go on to the next entry to or return from a call.
///
/// # Errors
/// `ESRCH` if it was killed.
pub fn go_to_call(thread: i32) -> Result<(), Errno> {
    ptrace(SYSCALL, thread, 0, 0)
}

/// Lets a stopped thread go on with this signal, and stops it by `SIGTRAP` at the first instruction of the signal's handler.
///
/// # Errors
/// `ESRCH` if it was killed.
#[cfg(target_arch = "aarch64")]
pub fn go_one_step(thread: i32, signal: i32) -> Result<(), Errno> {
    ptrace(SINGLE_STEP, thread, 0, signal as usize)
}

/// Leaves a thread stopped as it is until it gets SIGCONT.
///
/// # Errors
/// `ESRCH` if it was killed.
pub fn listen(thread: i32) -> Result<(), Errno> {
    ptrace(LISTEN, thread, 0, 0)
}

/// What an event is about: the new thread's id, the former id of one that called exec, the filter's number.
///
/// # Errors
/// `ESRCH` if it was killed.
pub fn message(thread: i32) -> Result<u64, Errno> {
    let mut message: libc::c_ulong = 0;
    ptrace(GET_MESSAGE, thread, 0, (&raw mut message).expose_provenance())?;
    Ok(message as u64)
}

/// The call for which a thread, stopped before it gets SIGSYS, was sent that by a filter; `None` if it comes from elsewhere.
///
/// # Errors
/// `ESRCH` if it was killed.
pub fn trapped_call(thread: i32) -> Result<Option<i32>, Errno> {
    /// `siginfo_t` with the fields of `_sigsys`, asm-generic/siginfo.h.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        signal: i32,
        errno: i32,
        code: i32,
        address: u64,
        number: i32,
        architecture: u32,
        rest: [u64; 12],
    }
    const _: () = assert!(size_of::<Info>() == size_of::<libc::siginfo_t>(), "the kernel writes all of it");
    /// `SYS_SECCOMP`
    const BY_FILTER: i32 = 1;
    let mut info = Info::default();
    ptrace(GET_INFO, thread, 0, (&raw mut info).expose_provenance())?;
    let native = info.architecture == super::bpf::NATIVE;
    Ok((info.signal == libc::SIGSYS && info.code == BY_FILTER && native).then_some(info.number))
}

/// Waits for the next event of a tracee of this thread. With `block` unset, `None` if there is none.
///
/// # Errors
/// `ECHILD` if there is no tracee.
pub fn wait(block: bool) -> Result<Option<(i32, Stop)>, Errno> {
    let mut status = 0;
    let flags = libc::__WALL | libc::__WNOTHREAD | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: the number is valid for writing.
        let thread = unsafe { libc::waitpid(-1, &raw mut status, flags) };
        match thread {
            -1 => match super::last_errno() {
                Errno::INTR => {}
                errno => return Err(errno),
            },
            0 => return Ok(None),
            _ => return Ok(Some((thread, decode(status)))),
        }
    }
}

/// Waits for the next event of one tracee of this thread.
///
/// # Errors
/// `ECHILD` if it is none.
pub fn wait_for(thread: i32) -> Result<Stop, Errno> {
    let mut status = 0;
    loop {
        // SAFETY: the number is valid for writing.
        match unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL | libc::__WNOTHREAD) } {
            -1 => match super::last_errno() {
                Errno::INTR => {}
                errno => return Err(errno),
            },
            _ => return Ok(decode(status)),
        }
    }
}

fn decode(status: i32) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Ended(super::ExitStatus::Code(libc::WEXITSTATUS(status)));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Ended(super::ExitStatus::Signal(libc::WTERMSIG(status)));
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => Stop::Fork,
        libc::PTRACE_EVENT_EXEC => Stop::Exec,
        libc::PTRACE_EVENT_SECCOMP => Stop::Seccomp,
        // PTRACE_EVENT_STOP
        128 if matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) => Stop::Group(signal),
        128 => Stop::Trap,
        _ if signal == libc::SIGTRAP | 0x80 => Stop::Call,
        _ => Stop::Signal(signal),
    }
}

impl Registers {
    /// Of a stopped thread.
    ///
    /// # Errors
    /// `ESRCH` if it was killed.
    pub fn of(thread: i32) -> Result<Self, Errno> {
        // SAFETY: an all-zero value of that plain C struct is valid.
        let mut registers = Self(unsafe { std::mem::zeroed() });
        let mut place =
            libc::iovec { iov_base: (&raw mut registers.0).cast(), iov_len: size_of::<libc::user_regs_struct>() };
        ptrace(GET_SET, thread, GENERAL, (&raw mut place).expose_provenance())?;
        Ok(registers)
    }

    /// Gives them to a stopped thread.
    ///
    /// # Errors
    /// `ESRCH` if it was killed.
    pub fn set(&self, thread: i32) -> Result<(), Errno> {
        let base = (&raw const self.0).cast_mut().cast();
        let place = libc::iovec { iov_base: base, iov_len: size_of::<libc::user_regs_struct>() };
        ptrace(SET_SET, thread, GENERAL, (&raw const place).expose_provenance())
    }

    /// Makes the call that the thread, stopped at its entry, is about to make another one; -1 for none. After [`Self::set`].
    ///
    /// # Errors
    /// `ESRCH` if it was killed.
    #[cfg(target_arch = "aarch64")]
    pub fn set_entering(&self, thread: i32, number: i64) -> Result<(), Errno> {
        let number = number as libc::c_int;
        let place = libc::iovec { iov_base: (&raw const number).cast_mut().cast(), iov_len: size_of::<libc::c_int>() };
        ptrace(SET_SET, thread, SYSTEM_CALL, (&raw const place).expose_provenance())
    }

    /// Makes the call that the thread, stopped at its entry, is about to make another one; -1 for none. After [`Self::set`].
    ///
    /// # Errors
    /// `ESRCH` if it was killed.
    #[cfg(target_arch = "x86_64")]
    pub fn set_entering(&self, thread: i32, number: i64) -> Result<(), Errno> {
        let mut changed = *self;
        changed.0.orig_rax = number.cast_unsigned();
        changed.set(thread)
    }
}

#[cfg(target_arch = "x86_64")]
impl Registers {
    /// Bytes of the instruction that makes a call.
    const CALL_BYTES: u64 = 2;

    /// A register that calls leave alone and that `loader` keeps a result in: r12.
    pub fn kept(&self) -> u64 {
        self.0.r12
    }

    /// Number of the call that was entered.
    pub fn number(&self) -> i64 {
        self.0.orig_rax.cast_signed()
    }

    /// Argument 0 to 5.
    pub fn argument(&self, at: usize) -> u64 {
        let regs = &self.0;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9][at]
    }

    /// Sets argument 0 to 5.
    pub fn set_argument(&mut self, at: usize, value: u64) {
        let regs = &mut self.0;
        *[&mut regs.rdi, &mut regs.rsi, &mut regs.rdx, &mut regs.r10, &mut regs.r8, &mut regs.r9][at] = value;
    }

    /// What the call has returned.
    pub fn result(&self) -> i64 {
        self.0.rax.cast_signed()
    }

    /// Sets what the call returns.
    pub fn set_result(&mut self, value: i64) {
        self.0.rax = value.cast_unsigned();
    }

    /// Where the program goes on.
    pub fn instruction(&self) -> u64 {
        self.0.rip
    }

    /// Sets where the program goes on. A call that was interrupted there is not restarted.
    pub fn set_instruction(&mut self, address: u64) {
        self.0.rip = address;
        self.0.orig_rax = u64::MAX;
    }

    /// Top of the stack.
    pub fn stack(&self) -> u64 {
        self.0.rsp
    }

    /// At the return from a call: makes the program make the call `number` next, at the same place.
    pub fn again(&mut self, number: i64) {
        self.0.rip -= Self::CALL_BYTES;
        self.0.rax = number.cast_unsigned();
        self.0.orig_rax = u64::MAX;
    }
}

#[cfg(target_arch = "aarch64")]
impl Registers {
    /// Bytes of the instruction that makes a call.
    const CALL_BYTES: u64 = 4;

    /// A register that calls leave alone and that `loader` keeps a result in: x19.
    pub fn kept(&self) -> u64 {
        self.0.regs[19]
    }

    /// Number of the call that was entered.
    pub fn number(&self) -> i64 {
        self.0.regs[8].cast_signed()
    }

    /// Argument 0 to 5.
    pub fn argument(&self, at: usize) -> u64 {
        self.0.regs[..6][at]
    }

    /// Sets argument 0 to 5.
    pub fn set_argument(&mut self, at: usize, value: u64) {
        self.0.regs[..6][at] = value;
    }

    /// What the call has returned.
    pub fn result(&self) -> i64 {
        self.0.regs[0].cast_signed()
    }

    /// Sets what the call returns.
    pub fn set_result(&mut self, value: i64) {
        self.0.regs[0] = value.cast_unsigned();
    }

    /// Where the program goes on.
    pub fn instruction(&self) -> u64 {
        self.0.pc
    }

    /// Sets where the program goes on.
    pub fn set_instruction(&mut self, address: u64) {
        self.0.pc = address;
    }

    /// Top of the stack.
    pub fn stack(&self) -> u64 {
        self.0.sp
    }

    /// At the return from a call: makes the program make the call `number` next, at the same place.
    pub fn again(&mut self, number: i64) {
        self.0.pc -= Self::CALL_BYTES;
        self.0.regs[8] = number.cast_unsigned();
    }
}

/// Sends a signal to one thread of a process: tgkill(2).
///
/// # Errors
/// `ESRCH` if it is gone.
pub fn kill_thread(process: i32, thread: i32, signal: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
