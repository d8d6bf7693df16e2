//! What is the same for a command in every tier: limits, capabilities, pipes, the program to execute, and what its process
//! reports when it could not get that far.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread::Scope;

use rustix::process::Gid;
use rustix::thread::CapabilitySet;

use super::sys::{self, Arguments, Op, Program, Step};
use super::{RunSpec, SandboxError, SandboxMount, mounts, output, setup};
use crate::event::Stream;

/// Search path if the environment has none, as the kernel's own shells have it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a RUN may do as root: Docker's default capabilities (checklist R-11).
pub const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

/// This process's ends of a command's pipes.
pub struct Ends {
    stdout: OwnedFd,
    stderr: OwnedFd,
    report: OwnedFd,
}

/// The command's ends, arranged by [`Op::Standard`] and written to by [`Program::report`].
pub struct Inner {
    input: OwnedFd,
    output: OwnedFd,
    error: OwnedFd,
    report: OwnedFd,
}

/// Pipes for the output and the report of a command; its input is empty.
///
/// # Errors
/// `EMFILE`
pub fn pipes() -> Result<(Ends, Inner), SandboxError> {
    let pipe = || setup("make a pipe", sys::pipe());
    let ((stdout, output), (stderr, error), (report, reporter)) = (pipe()?, pipe()?, pipe()?);
    let input = setup("open /dev/null", mounts::open_null().and_then(sys::above_stdio))?;
    Ok((Ends { stdout, stderr, report }, Inner { input, output, error, report: reporter }))
}

impl Ends {
    /// Gives each line of both streams to `output`, in two threads, until no process holds the other end, or once `ended` has
    /// an event and the pipes are empty.
    pub fn stream<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        ended: &'scope OwnedFd,
        output: &'scope (dyn Fn(Stream, &[u8]) + Sync),
    ) {
        for (pipe, stream) in [(&self.stdout, Stream::Stdout), (&self.stderr, Stream::Stderr)] {
            scope.spawn(move || output::stream(pipe, ended, |line| output(stream, line)));
        }
    }

    /// What the command's process said before it ended, if it was not executed; `what` are [`Program::names`]. The process
    /// must be gone.
    ///
    /// # Errors
    /// [`SandboxError::Exec`], [`SandboxError::Setup`].
    pub fn reported(&self, what: &[String], spec: &RunSpec) -> Result<(), SandboxError> {
        match read_report(&self.report) {
            None => Ok(()),
            Some((Program::EXEC, source)) => Err(SandboxError::Exec { program: name(spec), source }),
            Some((step, source)) => {
                let what = usize::try_from(step).ok().and_then(|step| what.get(step));
                Err(SandboxError::Setup { what: what.map_or("set the sandbox up", String::as_str).to_owned(), source })
            }
        }
    }
}

/// What a child said before it ended: number of the step, and why. The child must be gone.
pub fn read_report(report: &OwnedFd) -> Option<(u32, io::Error)> {
    let mut bytes = [0; 8];
    // The child is gone, so there is either a whole report or none; a stranger's copy of the other end must not hang us.
    rustix::fs::fcntl_setfl(report, rustix::fs::OFlags::NONBLOCK).ok()?;
    if rustix::io::read(report, &mut bytes[..]) != Ok(8) {
        return None;
    }
    let [step, errno] = [0, 4].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
    Some((step, io::Error::from_raw_os_error(errno.cast_signed())))
}

/// Steps of a child in the making.
#[derive(Default)]
pub struct Steps(Vec<Step>);

impl Steps {
    /// Adds a step; `what` completes "cannot …".
    pub fn push(&mut self, what: impl Into<String>, op: Op) {
        self.0.push(Step { what: what.into(), op });
    }

    /// The limits of a command: setrlimit(2).
    ///
    /// # Errors
    /// [`SandboxError::UnknownLimit`]
    pub fn limits(&mut self, spec: &RunSpec) -> Result<(), SandboxError> {
        for (name, soft, hard) in &spec.ulimits {
            let resource = limit(name).ok_or_else(|| SandboxError::UnknownLimit { name: name.clone() })?;
            // -1 is "none", which is all ones for the kernel too.
            let op = Op::Limit { resource, soft: soft.cast_unsigned(), hard: hard.cast_unsigned() };
            self.push(format!("set the limit {name} to {soft}:{hard}"), op);
        }
        Ok(())
    }

    /// Descriptors 0, 1 and 2, the pipes owned by `uid`; gives where the child reports.
    pub fn standard(&mut self, inner: Inner, uid: u32) -> OwnedFd {
        let Inner { input, output, error, report } = inner;
        self.push("arrange the output", Op::Standard { input, output, error, uid });
        report
    }

    /// Docker's filter, where it is written for this machine.
    pub fn filter(&mut self) {
        if let Some(filter) = sys::seccomp::filter() {
            self.push("install the system call filter", Op::Filter(filter));
        }
    }

    /// Enters the working directory: before the user changes, and after it for the `last_try`.
    ///
    /// # Errors
    /// For a path with a NUL byte.
    pub fn enter(&mut self, cwd: &Path, last_try: bool) -> Result<(), SandboxError> {
        let path = cstring(cwd)?;
        let what = format!("enter the working directory `{}`", cwd.display());
        self.push(what, Op::WorkingDirectory { path, last_try });
        Ok(())
    }

    /// Becomes the command's user, as root with these capabilities; without groups where the namespace has none.
    pub fn become_user(&mut self, spec: &RunSpec, with_groups: bool, capabilities: CapabilitySet) {
        let (uid, gid) = (spec.user.uid, spec.user.gid);
        let groups = with_groups.then(|| {
            let unique: BTreeSet<u32> = spec.user.groups.iter().copied().collect();
            unique.into_iter().map(Gid::from_raw).collect()
        });
        self.push(format!("become user {uid}:{gid}"), Op::Become { uid, gid, groups, capabilities });
    }

    /// The whole: these steps, then the command.
    ///
    /// # Errors
    /// [`SandboxError::Exec`] for what cannot be the name, an argument or a variable of any program.
    pub fn program(self, spec: &RunSpec, report: OwnedFd) -> Result<Program, SandboxError> {
        let program = name(spec);
        let bad = |source| SandboxError::Exec { program: program.clone(), source };
        let mut program = Program {
            steps: self.0,
            candidates: candidates(&program, &spec.env).map_err(bad)?,
            argv: Arguments::new(&spec.argv).map_err(bad)?,
            env: Arguments::new(spec.env.iter().map(pair)).map_err(bad)?,
            report,
        };
        program.close_others();
        Ok(program)
    }
}

/// Mounts of a command in the order in which they are made.
pub fn mounts_in_order(spec: &RunSpec) -> Vec<&SandboxMount> {
    let mut sorted: Vec<_> = spec.mounts.iter().collect();
    sorted.sort_by(|a, b| a.target.cmp(&b.target));
    sorted
}

/// A path for the kernel.
///
/// # Errors
/// For a path with a NUL byte.
pub fn cstring(path: impl AsRef<Path>) -> Result<CString, SandboxError> {
    let path = path.as_ref();
    setup(format!("use the path `{}`", path.display()), CString::new(path.as_os_str().as_bytes()))
}

/// argv\[0\]
fn name(spec: &RunSpec) -> OsString {
    spec.argv.first().cloned().unwrap_or_default()
}

/// A variable as execve(2) takes it.
fn pair((key, value): &(OsString, OsString)) -> OsString {
    let mut pair = key.clone();
    pair.push("=");
    pair.push(value);
    pair
}

/// Paths to try for the program `name`, in order.
///
/// # Errors
/// `NotFound` for an empty name, `InvalidInput` for a NUL byte in it.
fn candidates(name: &OsStr, env: &[(OsString, OsString)]) -> io::Result<Vec<CString>> {
    let name = name.as_bytes();
    if name.is_empty() {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    if name.contains(&b'/') {
        return Ok(vec![CString::new(name)?]);
    }
    // Of a variable that is there twice the last one counts, as for a shell.
    let path = env.iter().rev().find(|(key, _)| key == "PATH").map(|(_, value)| value.as_bytes());
    let path = path.unwrap_or(DEFAULT_PATH.as_bytes());
    let join = |directory: &[u8]| {
        let directory = if directory.is_empty() { &b"."[..] } else { directory };
        CString::new([directory, name].join(&b'/'))
    };
    Ok(path.split(|&byte| byte == b':').map(join).collect::<Result<_, _>>()?)
}

/// `RLIMIT_…` by the name that `--ulimit` uses. setrlimit(2)
#[allow(clippy::unnecessary_cast, reason = "the constants are signed with musl")]
fn limit(name: &str) -> Option<u32> {
    Some(match name {
        "core" => libc::RLIMIT_CORE,
        "cpu" => libc::RLIMIT_CPU,
        "data" => libc::RLIMIT_DATA,
        "fsize" => libc::RLIMIT_FSIZE,
        "locks" => libc::RLIMIT_LOCKS,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "msgqueue" => libc::RLIMIT_MSGQUEUE,
        "nice" => libc::RLIMIT_NICE,
        "nofile" => libc::RLIMIT_NOFILE,
        "nproc" => libc::RLIMIT_NPROC,
        "rss" => libc::RLIMIT_RSS,
        "rtprio" => libc::RLIMIT_RTPRIO,
        "rttime" => libc::RLIMIT_RTTIME,
        "sigpending" => libc::RLIMIT_SIGPENDING,
        "stack" => libc::RLIMIT_STACK,
        _ => return None,
    } as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, path: Option<&str>, expected: &[&str]) {
        let env: Vec<_> = path.into_iter().map(|path| ("PATH".into(), path.into())).collect();
        let found = candidates(OsStr::new(name), &env).expect("no NUL");
        assert_eq!(found.iter().map(|path| path.to_str().expect("UTF-8")).collect::<Vec<_>>(), expected, "{name:?}");
    }

    #[test]
    fn programs_are_looked_up() {
        check("/bin/sh", Some("/x"), &["/bin/sh"]);
        check("./x", Some("/x"), &["./x"]);
        check("sh", Some("/a:/b"), &["/a/sh", "/b/sh"]);
        check("sh", Some(":/b:"), &["./sh", "/b/sh", "./sh"]);
        check(
            "sh",
            None,
            &["/usr/local/sbin/sh", "/usr/local/bin/sh", "/usr/sbin/sh", "/usr/bin/sh", "/sbin/sh", "/bin/sh"],
        );
        assert!(candidates(OsStr::new(""), &[]).is_err());
    }

    #[test]
    fn capabilities_are_dockers() {
        assert_eq!(CAPABILITIES.bits(), 0xa804_25fb);
    }
}
