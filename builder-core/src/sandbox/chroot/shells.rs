//! Shells whose jobs end while a call waits to be received.
//!
//! A call that waits for the supervisor is ended by the kernel when its thread gets a signal, and made again unless a handler lacks
//! `SA_RESTART`: then stat(2), chdir(2) and the like say `EINTR`, which they never do elsewhere. Most programs ask for
//! `SA_RESTART`, or try again. Shells but bash do neither, and get `SIGCHLD` at any moment: `sleep 1 & cd /src` would fail now
//! and then. Nothing that they wait with is made again by the kernel, so their handler for it gets the flag.
//!
//! # Limitations
//! Other signals, and handlers of other programs, may still make a call say `EINTR`: to lift that, every signal would have to stop
//! its process.

use super::super::callers::AsUser;
use super::super::callers::Identity;
use super::super::sys::bpf::{Action, Rule, When};
use super::super::sys::notify::Notification;
use super::serve::{Answer, CONTINUE, Server};

/// Last names of the programs that are meant. They ask again for what they read (`read`), or wait in sigsuspend(2).
const SHELLS: [&[u8]; 9] = [b"sh", b"dash", b"ash", b"busybox", b"ksh", b"mksh", b"posh", b"yash", b"zsh"];

/// Greatest value in place of a handler that is none: `SIG_IGN`.
const NO_HANDLER: u64 = 1;

/// Bytes of the kernel's `struct sigaction` up to the end of its flags, which begin in the middle.
const BYTES: usize = 16;

/// Calls that set what happens by `SIGCHLD`.
pub fn rules() -> [Rule; 1] {
    [Rule::when(libc::SYS_rt_sigaction, When::IsAndIsNot((0, libc::SIGCHLD as u32), (1, 0)), Action::Notify)]
}

impl Server<'_> {
    /// rt_sigaction(2) for `SIGCHLD`, before the kernel performs it.
    pub fn handle_children(&self, call: &Notification, action: u64) -> Answer {
        // What cannot be read or written stays as it is.
        if let Ok(bytes) = self.read(call.thread, action, BYTES)
            && let Some(flags) = restarting(&bytes)
            && is_shell(call.thread)
        {
            _ = self.write(call.thread, action + (BYTES / 2) as u64, &flags.to_ne_bytes());
        }
        CONTINUE
    }
}

/// The flags with `SA_RESTART`, of an action whose handler lacks it.
fn restarting(action: &[u8]) -> Option<u64> {
    let (handler, flags) = action.split_first_chunk::<8>()?;
    let (handler, flags) = (u64::from_ne_bytes(*handler), u64::from_ne_bytes(*flags.first_chunk()?));
    let restart = libc::SA_RESTART as u64;
    (handler > NO_HANDLER && flags & restart == 0).then_some(flags | restart)
}

fn is_shell(thread: i32) -> bool {
    let program = || rustix::fs::readlink(format!("/proc/{thread}/exe"), Vec::new());
    let program = program().or_else(|errno| {
        let _user = AsUser::new(Identity::of(thread).ok_or(errno)?)?;
        program()
    });
    let last = |path: &[u8]| SHELLS.contains(&path.rsplit(|&byte| byte == b'/').next().unwrap_or_default());
    program.is_ok_and(|path| last(path.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_without_restart_get_it() {
        let action = |handler: u64, flags: u64| [handler.to_ne_bytes(), flags.to_ne_bytes()].concat();
        let restart = libc::SA_RESTART as u64;
        assert_eq!(restarting(&action(0x40_0000, 4)), Some(4 | restart));
        assert_eq!(restarting(&action(0x40_0000, restart)), None);
        assert_eq!(restarting(&action(0, 0)), None);
        assert_eq!(restarting(&action(1, 0)), None);
        assert_eq!(restarting(&[0; 12]), None);
    }
}
