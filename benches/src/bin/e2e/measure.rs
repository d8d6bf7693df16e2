//! One run of one builder: time, processors, memory, disk.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Result;

/// How often memory is looked at. Each look costs a fraction of a millisecond of one processor.
const MEMORY_INTERVAL: Duration = Duration::from_millis(20);

/// How often the disk is looked at, in runs whose time does not count.
const DISK_INTERVAL: Duration = Duration::from_millis(200);

/// Lines of a failed builder's output that are shown.
const TAIL: usize = 12;

/// One run's figures.
#[derive(Debug, Clone, Copy, Default)]
pub struct Run {
    /// Wall time.
    pub seconds: f64,
    /// Processor time of the builder and all it started, which other work on the machine disturbs less.
    pub cpu_seconds: f64,
    /// Most anonymous memory of the builder that was seen.
    pub peak_bytes: u64,
    /// Most disk space of the builder's state that was seen; 0 where it was not looked at.
    pub peak_disk_bytes: u64,
    /// Whether it ended with status 0.
    pub ok: bool,
}

/// What is run.
pub struct Job<'a> {
    /// A command line for `sh -c`.
    pub line: String,
    /// File names of the builder's programs, whose processes' memory is counted.
    pub programs: &'a [String],
    /// What must run beside it.
    pub daemon: Option<Daemon>,
    /// The builder's state.
    pub state: &'a Path,
    /// Whether the size of `state` is followed, which costs time.
    pub follow_disk: bool,
}

/// The daemon of a builder that has one. Its start and its end are not timed; what it takes meanwhile counts.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// A command line for `sh -c` that runs until it gets SIGTERM.
    pub line: String,
    /// One that fails until the daemon can be used.
    pub ready: String,
}

/// How long a daemon may take to start.
const DAEMON_START: Duration = Duration::from_secs(60);

/// A daemon that runs. Ended when dropped.
struct Running(Child);

/// A command line that gets nothing to read, and whose output nobody reads.
fn shell(line: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

impl Daemon {
    fn start(&self, log: &Path) -> Result<Running> {
        let log = fs::File::create(log)?;
        let child = shell(&self.line).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut running = Running(child);
        let started = Instant::now();
        loop {
            let ready = shell(&self.ready).stderr(Stdio::null()).status()?;
            if ready.success() {
                return Ok(running);
            }
            if running.0.try_wait()?.is_some() || started.elapsed() > DAEMON_START {
                return Err(format!("the daemon does not start: {}", self.line).into());
            }
            std::thread::sleep(MEMORY_INTERVAL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // That it has ended by itself shows in the build.
        _ = Command::new("kill").arg(self.0.id().to_string()).stderr(Stdio::null()).status();
        _ = self.0.wait();
    }
}

impl Job<'_> {
    /// Runs it to its end.
    pub fn run(&self) -> Result<Run> {
        let log_path = self.state.with_extension("log");
        let log = fs::File::create(&log_path)?;
        let daemon = match &self.daemon {
            Some(daemon) => Some(daemon.start(&self.state.with_extension("daemon.log"))?),
            None => None,
        };
        let daemon_pid = daemon.as_ref().map(|daemon| daemon.0.id());
        let daemon_cpu = || daemon_pid.map_or(0.0, tree_cpu_seconds);
        let (started, cpu_before) = (Instant::now(), children_cpu_seconds()? + daemon_cpu());
        let mut child = shell(&self.line).stderr(log).spawn()?;
        let roots: Vec<u32> = std::iter::once(child.id()).chain(daemon_pid).collect();
        let (peak, peak_disk) = (AtomicU64::new(0), AtomicU64::new(0));
        let ended = AtomicBool::new(false);
        let (ok, seconds) = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    peak.fetch_max(anonymous_bytes(&roots, self.programs), Ordering::Relaxed);
                    std::thread::sleep(MEMORY_INTERVAL);
                }
            });
            if self.follow_disk {
                scope.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        peak_disk.fetch_max(disk_bytes(self.state), Ordering::Relaxed);
                        std::thread::sleep(DISK_INTERVAL);
                    }
                });
            }
            let status = child.wait();
            let seconds = started.elapsed().as_secs_f64();
            ended.store(true, Ordering::Relaxed);
            status.map(|status| (status.success(), seconds))
        })?;
        let cpu_seconds = children_cpu_seconds()? + daemon_cpu() - cpu_before;
        if !ok {
            let text = fs::read_to_string(&log_path)?;
            let tail: Vec<_> = text.lines().rev().take(TAIL).collect();
            for line in tail.iter().rev() {
                writeln!(std::io::stderr(), "    {line}")?;
            }
        }
        let [peak_bytes, peak_disk_bytes] = [peak, peak_disk].map(AtomicU64::into_inner);
        Ok(Run { seconds, cpu_seconds, peak_bytes, peak_disk_bytes, ok })
    }
}

/// Processor time of all children that were waited for, and theirs (proc(5), `cutime` and `cstime`; 100 ticks a second).
fn children_cpu_seconds() -> Result<f64> {
    Ok(ticks("self", &[13, 14]).ok_or("/proc/self/stat cannot be read")? as f64 / 100.0)
}

/// Processor time of a process, its descendants, and those of them that were waited for (`utime` to `cstime`).
fn tree_cpu_seconds(root: u32) -> f64 {
    let all: u64 = tree(&[root]).into_iter().filter_map(|pid| ticks(&pid.to_string(), &[11, 12, 13, 14])).sum();
    all as f64 / 100.0
}

/// The sum of fields of /proc/PID/stat, counted from the one behind the name.
fn ticks(pid: &str, fields: &[usize]) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind) = stat.rsplit_once(')')?;
    let values: Vec<&str> = behind.split_whitespace().collect();
    fields.iter().map(|at| values.get(*at)?.parse::<u64>().ok()).sum()
}

/// Anonymous memory of those processes below `roots` that run one of `programs`; pages that they share count once.
fn anonymous_bytes(roots: &[u32], programs: &[String]) -> u64 {
    let ours = |pid: &u32| {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        exe.file_name().is_some_and(|name| programs.iter().any(|program| name == program.as_str()))
    };
    tree(roots).into_iter().filter(ours).filter_map(pss_anon).sum()
}

/// Processes and their descendants.
fn tree(roots: &[u32]) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = roots.to_vec();
    while let Some(pid) = open.pop() {
        open.extend(children(pid));
        found.push(pid);
    }
    found
}

/// Children of a process, by all of its threads.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn pss_anon(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss_Anon:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Space of everything below `top`, files with several names once; what vanishes meanwhile is not there.
fn disk_bytes(top: &Path) -> u64 {
    let mut total = 0;
    let mut linked = std::collections::BTreeSet::new();
    let mut pending: Vec<PathBuf> = vec![top.to_owned()];
    let device = fs::metadata(top).map(|meta| meta.dev()).unwrap_or(0);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            // Mounts of a builder show what lies elsewhere in its state.
            if meta.dev() != device || (meta.nlink() > 1 && meta.is_file() && !linked.insert(meta.ino())) {
                continue;
            }
            total += meta.blocks() * 512;
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    total
}

/// Builders leave directories without write permission and, some of them, mounts.
pub fn remove_state(state: &Path) {
    let _ = Command::new("sh")
        .arg("-c")
        .arg("for m in $(grep -o \"$0[^ ]*\" /proc/mounts); do umount -l \"$m\"; done 2>/dev/null; rm -rf \"$0\"")
        .arg(state)
        .status();
}
