//! What processes do about signals.

/// What is known of a thread's signals; bit 0 is signal 1.
pub struct Signals {
    pending: u64,
    blocked: u64,
    ignored: u64,
    handled: u64,
}

impl Signals {
    /// `None` if it is gone.
    pub fn of(thread: i32) -> Option<Self> {
        std::fs::read_to_string(format!("/proc/{thread}/status")).ok().map(|status| Self::from_status(&status))
    }

    /// Of what proc_pid_status(5) describes.
    fn from_status(status: &str) -> Self {
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":"));
            line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
        };
        let pending = set("SigPnd") | set("ShdPnd");
        Self { pending, blocked: set("SigBlk"), ignored: set("SigIgn"), handled: set("SigCgt") }
    }

    /// Whether the process has a handler of its own for a signal.
    pub fn handles(&self, signal: i32) -> bool {
        (1..=64).contains(&signal) && self.handled & 1 << (signal - 1) != 0
    }

    /// Whether one waits that ends a call: a call that is answered sees none by itself.
    pub fn interrupt(&self) -> bool {
        // Nothing happens by these unless there is a handler.
        let quiet = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];
        let quiet = quiet.iter().fold(0, |all, signal| all | 1 << (signal - 1));
        self.pending & !self.blocked & !self.ignored & !(quiet & !self.handled) != 0
    }
}

/// Whether a signal that is sent to the command of a RUN from within does nothing, as it would to process 1 of a pid namespace that
/// has no handler for it (pid_namespaces(7)): `kill 0` and `pkill -f` meet the shell that they are in.
pub fn spares(command: i32, signal: i32) -> bool {
    signal != 0 && Signals::of(command).is_some_and(|signals| !signals.handles(signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_end_a_call() {
        let check = |pending: u64, blocked: u64, ignored: u64, caught: u64, expected| {
            let status = format!(
                "Name:\tcat\nSigQ:\t1/2\nSigPnd:\t{:016x}\nShdPnd:\t{pending:016x}\nSigBlk:\t{blocked:016x}\n\
                 SigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n",
                0
            );
            assert_eq!(Signals::from_status(&status).interrupt(), expected, "{status}");
        };
        let (terminate, child) = (1 << (libc::SIGTERM - 1), 1 << (libc::SIGCHLD - 1));
        check(0, 0, 0, 0, false);
        check(terminate, 0, 0, 0, true);
        check(terminate, terminate, 0, 0, false);
        check(terminate, 0, terminate, 0, false);
        check(child, 0, 0, 0, false);
        check(child, 0, 0, child, true);
        assert!(!Signals::from_status("").interrupt());
    }

    #[test]
    fn commands_are_spared() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        assert!(spares(own, libc::SIGKILL) && spares(own, libc::SIGTERM));
        assert!(!spares(own, 0), "a question");
        // That of the standard library, for stack overflows.
        assert!(!spares(own, libc::SIGSEGV));
    }

    #[test]
    fn signals_with_a_handler() {
        let signals = Signals::from_status("Name:\tcat\nSigCgt:\t8000000000000001\n");
        assert_eq!(
            [-1, 0, 1, 2, 63, 64, 65].map(|signal| signals.handles(signal)),
            [false, false, true, false, false, true, false]
        );
    }
}
