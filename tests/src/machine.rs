//! Virtual machines with another kernel or another processor than this one; `scripts/machines` makes what they need.
//!
//! A machine boots a Debian kernel, performs steps (shell scripts) one after the other as root, and ends. It sees four
//! disks: a Debian root file system of which it changes a copy; a tar with the files of the run; an empty one for file systems
//! of its own; and one on which it leaves a tar with what the steps said. `fixtures/machines` has both programs that run inside.
//!
//! How far it is stands on stderr, a line for each step that ended.
//!
//! # Limitations
//! There is no network but the machine's own loopback.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

use crate::{process, slipway};

/// Memory of a machine, in MiB.
const MEMORY_MIB: u32 = 2048;

/// Bytes of the disk for file systems of the steps' own; it is sparse.
const SPARE_BYTES: u64 = 4 << 30;

/// Bytes of the disk for results; it is sparse.
const RESULTS_BYTES: u64 = 256 << 20;

/// A kernel that machines can have: `target/machines/<version>-<architecture>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// `6.1`
    pub version: &'static str,
    /// As uname(1) prints it.
    pub architecture: &'static str,
}

/// A machine that has not been started.
#[derive(Debug)]
pub struct Machine {
    kernel: Kernel,
    parameters: String,
    job: TempDir,
    steps: Vec<String>,
    shared: Option<PathBuf>,
}

/// What a step said, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Its name.
    pub name: String,
    /// Exit code.
    pub status: i32,
    /// Stdout and stderr.
    pub output: String,
}

impl Kernel {
    /// `6.1-x86_64`
    pub fn name(self) -> String {
        format!("{}-{}", self.version, self.architecture)
    }

    /// Whether a machine can have it.
    ///
    /// # Errors
    /// What is missing.
    pub fn possible(self) -> Result<(), String> {
        let (machines, qemu) = (machines(), self.qemu());
        if !machines.join(self.name()).join("initramfs").is_file() || !self.programs().join("slipway").is_file() {
            return Err(format!("{} is not complete; `make test-machines` makes it", machines.display()));
        }
        process::find(&qemu)
            .map(drop)
            .ok_or_else(|| format!("{qemu} is not installed; `make test-machines` installs it"))
    }

    /// Where the static programs for this architecture are: `slipway`, `sandbox`, `stress`, `busybox`, `escapes/…`.
    pub fn programs(self) -> PathBuf {
        machines().join(format!("programs-{}", self.architecture))
    }

    fn qemu(self) -> String {
        format!("qemu-system-{}", self.architecture)
    }

    /// Whether this machine's processor can run it, so that nothing is emulated. `MACHINES_ACCEL=tcg` says that it cannot.
    pub fn accelerated(self) -> bool {
        if std::env::var("MACHINES_ACCEL").is_ok_and(|wish| wish != "kvm")
            || self.architecture != std::env::consts::ARCH
        {
            return false;
        }
        // Without these /dev/kvm takes kernels made for it only.
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let virtual_machines = flags.split_ascii_whitespace().any(|flag| ["vmx", "svm"].contains(&flag));
        (virtual_machines || self.architecture != "x86_64")
            && File::options().read(true).write(true).open("/dev/kvm").is_ok()
    }
}

fn machines() -> PathBuf {
    let given = std::env::var_os("SLIPWAY_MACHINES").map(PathBuf::from);
    given.unwrap_or_else(|| slipway::project().join("target/machines"))
}

impl Machine {
    /// One that has the static programs of its architecture in `/job/bin`.
    ///
    /// # Errors
    /// If they cannot be copied.
    pub fn new(kernel: Kernel) -> io::Result<Self> {
        let job = tempfile::Builder::new().prefix("slipway-machine-").tempdir_in("/var/tmp")?;
        let machine = Self { kernel, parameters: String::new(), job, steps: Vec::new(), shared: None };
        fs::create_dir_all(machine.tree().join("steps"))?;
        machine.add(&kernel.programs(), "bin")?;
        machine.add(&slipway::project().join("fixtures/machines/init"), "init")?;
        Ok(machine)
    }

    /// Adds to the kernel's command line.
    pub fn parameters(&mut self, parameters: &str) {
        self.parameters = format!("{} {parameters}", self.parameters);
    }

    /// A directory of this machine that the machine sees as 9p file system `shared`.
    pub fn share(&mut self, directory: &Path) {
        self.shared = Some(directory.to_owned());
    }

    /// Puts a copy of a file or directory at `/job/<name>`.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn add(&self, from: &Path, name: &str) -> io::Result<()> {
        let to = self.tree().join(name);
        fs::create_dir_all(to.parent().unwrap_or(&to))?;
        let copied = Command::new("cp").args(["-rT", "--preserve=mode,timestamps"]).arg(from).arg(to).status()?;
        if copied.success() { Ok(()) } else { Err(io::Error::other(format!("cp of {}: {copied}", from.display()))) }
    }

    /// Where the files are that will be in `/job`.
    pub fn tree(&self) -> PathBuf {
        self.job.path().join("job")
    }

    /// Adds a step: a shell script that is performed as root after those before it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn step(&mut self, name: &str, script: &str) -> io::Result<()> {
        // The number keeps their order.
        fs::write(self.tree().join(format!("steps/{:03}-{name}", self.steps.len())), script)?;
        self.steps.push(name.to_owned());
        Ok(())
    }

    /// Boots, waits for the end, and gives what each step said.
    ///
    /// # Errors
    /// If the machine did not come to its end within `limit`; with what its console said.
    pub fn run(self, limit: Duration) -> Result<Vec<Done>, String> {
        let text = |error: io::Error| error.to_string();
        let path = |name: &str| self.job.path().join(name);
        let mut tar = Command::new("tar");
        tar.args(["--owner=0", "--group=0", "-cf"]).arg(path("job.tar")).arg("-C").arg(self.tree()).arg(".");
        process::output(&mut tar, limit)?;
        for (name, bytes) in [("spare", SPARE_BYTES), ("results", RESULTS_BYTES)] {
            File::create(path(name)).and_then(|file| file.set_len(bytes)).map_err(text)?;
        }
        let console = path("console");
        File::create(&console).map_err(text)?;
        let (over, end) = mpsc::channel();
        let ended = std::thread::scope(|scope| {
            let (console, name) = (&console, self.kernel.name());
            scope.spawn(move || follow(console, &name, &end));
            let ended = process::run(&mut self.command(), limit);
            drop(over);
            ended
        });
        let ended = ended.map_err(text)?;
        let console = format!("{}{}", fs::read_to_string(&console).unwrap_or_default(), ended.text());
        let mut results = tar::Archive::new(File::open(path("results")).map_err(text)?);
        let mut found = std::collections::BTreeMap::new();
        for entry in results.entries().map_err(text)? {
            let Ok(mut entry) = entry else { break };
            let name = entry.path().map_err(text)?.display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(text)?;
            found.insert(name, String::from_utf8_lossy(&bytes).into_owned());
        }
        let done = |(number, name): (usize, &String)| {
            let file = format!("./{number:03}-{name}");
            let status = found.get(&format!("{file}.status")).and_then(|status| status.trim().parse().ok());
            let status = status.ok_or_else(|| {
                let tail: Vec<&str> = console.lines().rev().take(40).collect();
                let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
                format!("the machine's step {name} did not end ({}); its console:\n{tail}", ended.how())
            })?;
            let output = found.get(&format!("{file}.out")).cloned().unwrap_or_default();
            Ok(Done { name: name.clone(), status, output })
        };
        self.steps.iter().enumerate().map(done).collect()
    }

    fn command(&self) -> Command {
        let kernel = machines().join(self.kernel.name());
        let mut command = Command::new(process::find(self.kernel.qemu()).unwrap_or_default());
        let (machine, processor, console) = match self.kernel.architecture {
            "aarch64" => ("virt", "max,pauth-impdef=on", "ttyAMA0"),
            _ => ("q35", "max", "ttyS0"),
        };
        if self.kernel.accelerated() {
            command.args(["-accel", "kvm", "-machine", machine, "-cpu", "host"]);
        } else {
            command.args(["-accel", "tcg,thread=multi", "-machine", machine, "-cpu", processor]);
        }
        command.args(["-smp", "2", "-m", &MEMORY_MIB.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.arg("-serial").arg(format!("file:{}", self.job.path().join("console").display()));
        command.arg("-kernel").arg(kernel.join("vmlinuz")).arg("-initrd").arg(kernel.join("initramfs"));
        // What processors of their own do against Spectre is slow where they are emulated, and nothing that is tested.
        let parameters = format!("console={console} quiet panic=-1 mitigations=off{}", self.parameters);
        command.args(["-append", &parameters]);
        let mut disk = |name: &str, file: &Path, options: &str| {
            let drive = format!("if=none,id={name},format=raw,file={}{options}", file.display());
            command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive={name},serial={name}")]);
        };
        disk("root", &machines().join(format!("{}.ext4", self.kernel.architecture)), ",snapshot=on");
        disk("job", &self.job.path().join("job.tar"), ",readonly=on");
        disk("spare", &self.job.path().join("spare"), ",cache=unsafe,discard=unmap");
        disk("results", &self.job.path().join("results"), ",cache=unsafe");
        if let Some(directory) = &self.shared {
            let share = format!("local,path={},mount_tag=shared,security_model=none", directory.display());
            command.args(["-virtfs", &share]);
        }
        // Where the copy of the root disk goes.
        command.env("TMPDIR", self.job.path());
        command
    }
}

/// What a machine's console says to those who watch.
const SAID: &str = "machine: ";

/// Shows what a machine's console says of its steps, until the other end of `end` is dropped.
#[expect(clippy::print_stderr, reason = "whoever waits for minutes wants to see for what")]
fn follow(console: &Path, name: &str, end: &mpsc::Receiver<()>) {
    let Ok(mut console) = File::open(console) else { return };
    let (mut shown, mut text) = (0, String::new());
    loop {
        let over = end.recv_timeout(Duration::from_secs(1)) != Err(mpsc::RecvTimeoutError::Timeout);
        text.clear();
        let read = console.seek(SeekFrom::Start(shown)).and_then(|_| console.read_to_string(&mut text));
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        // A character of which one half is there is whole the next time.
        if read.is_ok() {
            for said in text[..whole].lines().filter_map(|line| line.split_once(SAID)) {
                eprintln!("{name}: {}", said.1.trim_end());
            }
            shown += whole as u64;
        }
        if over {
            return;
        }
    }
}
