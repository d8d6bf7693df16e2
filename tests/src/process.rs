//! Running programs to their end, with a limit.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a running program is asked whether it has ended.
const POLL: Duration = Duration::from_millis(4);

/// A program that ended.
#[derive(Debug)]
pub struct Ended {
    /// How; `None` if it was killed because its time was over.
    pub status: Option<ExitStatus>,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: Vec<u8>,
}

impl Ended {
    /// Whether it ended with status 0.
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The status as people read it.
    pub fn how(&self) -> String {
        self.status.map_or_else(|| "no end within its time".to_owned(), |status| status.to_string())
    }

    /// Stderr, then stdout, as text.
    pub fn text(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stderr), String::from_utf8_lossy(&self.stdout))
    }

    /// Stdout as text without blanks at its ends.
    pub fn result(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// The last `count` lines that hold something.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let text = self.text();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
    }
}

/// Runs `command` in a process group of its own, without stdin, and kills the group after `limit`.
///
/// # Errors
/// If it cannot be started.
pub fn run(command: &mut Command, limit: Duration) -> io::Result<Ended> {
    run_with(command, Stdio::null(), limit)
}

/// Like [`run`], with these bytes as stdin.
///
/// # Errors
/// If it cannot be started.
pub fn run_reading(command: &mut Command, input: &[u8], limit: Duration) -> io::Result<Ended> {
    let mut file = tempfile::tempfile()?;
    io::Write::write_all(&mut file, input)?;
    file.rewind()?;
    run_with(command, file.into(), limit)
}

fn run_with(command: &mut Command, stdin: Stdio, limit: Duration) -> io::Result<Ended> {
    // Files, not pipes: a process that is left behind with the descriptor open cannot hang the test.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(stdin)
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .process_group(0)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", command.get_program().display())))?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if started.elapsed() > limit {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
                _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            child.wait()?;
            break None;
        }
        std::thread::sleep(POLL);
    };
    Ok(Ended { status, stdout: everything(&mut stdout)?, stderr: everything(&mut stderr)? })
}

fn everything(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Runs `command` and gives its stdout as text; anything but status 0 is an error that holds the output.
///
/// # Errors
/// If it cannot be started, takes longer than `limit` or fails.
pub fn output(command: &mut Command, limit: Duration) -> Result<String, String> {
    let shown = format!("{command:?}");
    let ended = run(command, limit).map_err(|error| error.to_string())?;
    if ended.success() { Ok(ended.result()) } else { Err(format!("{shown}: {}\n{}", ended.how(), ended.text())) }
}

/// Where `program` lies in `PATH`, with the directories of system administration added (a user's `PATH` lacks them).
pub fn find(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(Path::new(program.as_ref())))
        .find(|candidate| candidate.is_file())
}
