//! Containers that are confined like pods: rows E4 to E6 of the table in `docs/sandbox.md`.
//!
//! The image is a directory with one file, `slipway-static`: nothing else is needed, no shell, no library. A volume is mounted
//! at the same path inside as outside, so that both sides name its files alike.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{self, Ended};
use crate::{slipway, user};

/// How long podman may take for what needs no time.
const LIMIT: Duration = Duration::from_secs(120);

/// A user id that no passwd file knows, as OpenShift gives them out.
const ARBITRARY: &str = "1000123:1000123";

/// Where slipway is inside.
pub const SLIPWAY: &str = "/slipway";

/// Where static busybox is inside, if [`Pod::start`] was asked for it.
pub const BUSYBOX: &str = "/busybox";

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A pod with Kubernetes' defaults: root, default capabilities, no seccomp profile.
    E4,
    /// RuntimeDefault: root, default capabilities, the runtime's seccomp profile.
    E5,
    /// "restricted": an arbitrary user, no capabilities, no new privileges, the runtime's seccomp profile, a read-only root,
    /// 16 MiB at /tmp.
    E6,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::E4, Self::E5, Self::E6];

    /// `E4`
    pub fn name(self) -> &'static str {
        match self {
            Self::E4 => "E4",
            Self::E5 => "E5",
            Self::E6 => "E6",
        }
    }
}

/// What makes a container worse than its row.
#[derive(Debug, Clone, Copy, Default)]
pub struct Worse {
    /// System calls that its seccomp profile refuses, with these error numbers.
    pub refused: &'static [(&'static str, i32)],
    /// Options of the volume's mount, such as `noexec`.
    pub volume: &'static str,
    /// A further group of its user.
    pub group: Option<u32>,
}

/// A container that waits for commands; ended when dropped.
#[derive(Debug)]
pub struct Pod {
    id: String,
    kind: Kind,
    /// The volume, at the same path inside and outside.
    pub volume: PathBuf,
    /// What its process 1 waits for.
    waiting: PathBuf,
    settings: PathBuf,
    _image: TempDir,
}

/// Why there is no container.
pub type Refused = String;

/// What podman must be told on machines whose init has no control groups and low limits.
const SETTINGS: &str = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
                        [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n";

impl Pod {
    /// Whether containers can be had here at all.
    ///
    /// # Errors
    /// Why not.
    pub fn possible() -> Result<(), Refused> {
        if !user::is_root() {
            return Err("starting containers with another seccomp profile needs root".to_owned());
        }
        for program in ["podman", "runc"] {
            process::find(program).ok_or_else(|| format!("`{program}` is not installed; scripts/setup installs it"))?;
        }
        static_binary().map(drop)
    }

    /// Starts one. `volume` is a directory of this machine whose files the container's user may change; `busybox` puts
    /// a shell beside slipway, for tests that look around.
    ///
    /// # Errors
    /// What podman says.
    pub fn start(kind: Kind, volume: &Path, busybox: bool) -> Result<Self, String> {
        Self::start_worse(kind, volume, busybox, Worse::default())
    }

    /// The same with something missing.
    ///
    /// # Errors
    /// What podman says.
    pub fn start_worse(kind: Kind, volume: &Path, busybox: bool, worse: Worse) -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        let image = tempfile::Builder::new().prefix("slipway-pod-").tempdir().map_err(text)?;
        let settings = image.path().join("containers.conf");
        fs::write(&settings, SETTINGS).map_err(text)?;
        let root = image.path().join("root");
        for directory in ["", "dev", "proc", "sys", "tmp", "etc"] {
            fs::create_dir_all(root.join(directory)).map_err(text)?;
            fs::set_permissions(root.join(directory), Permissions::from_mode(0o755)).map_err(text)?;
        }
        fs::set_permissions(image.path(), Permissions::from_mode(0o755)).map_err(text)?;
        let binary = root.join(SLIPWAY.trim_start_matches('/'));
        fs::copy(static_binary()?, &binary).map_err(text)?;
        fs::set_permissions(&binary, Permissions::from_mode(0o755)).map_err(text)?;
        if busybox {
            let copy = root.join(BUSYBOX.trim_start_matches('/'));
            fs::copy("/bin/busybox", copy)
                .map_err(|error| format!("/bin/busybox (package busybox-static): {error}"))?;
        }
        fs::set_permissions(volume, Permissions::from_mode(0o777)).map_err(text)?;
        let profile = image.path().join("seccomp.json");
        let rules = if kind == Kind::E4 { profile_of(worse.refused) } else { profile_without(worse.refused)? };
        fs::write(&profile, rules).map_err(text)?;
        let confined = format!("seccomp={}", profile.display());

        let mut command = podman(&settings);
        command.args(["run", "--detach", "--rm", "--runtime", "runc", "--network", "host"]);
        let options = if worse.volume.is_empty() { String::new() } else { format!(":{}", worse.volume) };
        command.arg("--volume").arg(format!("{0}:{0}{options}", volume.display()));
        command.args(worse.group.map(|group| format!("--group-add={group}")));
        match kind {
            Kind::E4 if worse.refused.is_empty() => command.args(["--security-opt", "seccomp=unconfined"]),
            Kind::E4 | Kind::E5 => command.args(["--security-opt", &confined]),
            Kind::E6 => command
                .args(["--security-opt", &confined, "--security-opt", "no-new-privileges", "--cap-drop", "all"])
                .args(["--user", ARBITRARY, "--read-only", "--read-only-tmpfs=false"])
                .args(["--tmpfs", "/tmp:size=16m,mode=1777"]),
        };
        // Something has to be process 1. A build whose Dockerfile never comes is as good as any program that waits. Pods that
        // share a volume wait for one each: the first that ends takes its own away.
        let waiting = volume.join(image.path().file_name().ok_or("a temporary directory without a name")?);
        rustix::fs::mkfifoat(rustix::fs::CWD, &waiting, rustix::fs::Mode::from_raw_mode(0o666))
            .map_err(|errno| errno.to_string())?;
        command.arg("--rootfs").arg(&root).args([SLIPWAY, "build", "--check", "--file"]).arg(&waiting).arg(volume);
        let id = process::output(&mut command, LIMIT)?;
        Ok(Self { id, kind, volume: volume.to_owned(), waiting, settings, _image: image })
    }

    /// Makes everything below `directory` belong to the container's user.
    ///
    /// # Errors
    /// What chown(1) says.
    pub fn give(&self, directory: &Path) -> Result<(), String> {
        if self.kind != Kind::E6 {
            return Ok(());
        }
        process::output(Command::new("chown").args(["-hR", ARBITRARY]).arg(directory), LIMIT).map(drop)
    }

    /// A command that runs `program` inside, with this environment.
    pub fn command(&self, program: &str, environment: &[(&str, &str)]) -> Command {
        // Not podman's own exec, which takes four times as long.
        let mut command = Command::new(process::find("runc").unwrap_or_else(|| "runc".into()));
        command.args(["exec", "--cwd"]).arg(&self.volume);
        for (name, value) in environment {
            command.arg("--env").arg(format!("{name}={value}"));
        }
        command.args([&self.id, program]);
        command
    }

    /// Runs `program` inside.
    ///
    /// # Errors
    /// If the container cannot be reached.
    pub fn run(&self, program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Ended, String> {
        process::run(self.command(program, environment).args(arguments), LIMIT).map_err(|error| error.to_string())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        _ = podman(&self.settings).args(["rm", "--force", "--time", "0", &self.id]).output();
        _ = fs::remove_file(&self.waiting);
    }
}

/// The profile that container runtimes apply by default, with some calls refused.
fn profile_without(refused: &[(&str, i32)]) -> Result<String, String> {
    let path = slipway::project().join("fixtures/pods/seccomp-runtime-default.json");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut profile: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let rules = profile["syscalls"].as_array_mut().ok_or("the profile has no list of calls")?;
    for rule in rules.iter_mut() {
        if let Some(names) = rule["names"].as_array_mut() {
            names.retain(|name| !refused.iter().any(|(refused, _)| name == refused));
        }
    }
    rules.retain(|rule| rule["names"].as_array().is_some_and(|names| !names.is_empty()));
    rules.extend(refusals(refused));
    Ok(profile.to_string())
}

/// A profile that refuses some calls and nothing else.
fn profile_of(refused: &[(&str, i32)]) -> String {
    // Calls of others than these would be killed.
    let all = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
    let machine = if cfg!(target_arch = "aarch64") { &all[3..] } else { &all[..3] };
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": machine, "syscalls": refusals(refused)}).to_string()
}

fn refusals(refused: &[(&str, i32)]) -> Vec<Value> {
    let refusal = |(name, errno): &(&str, i32)| json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno});
    refused.iter().map(refusal).collect()
}

fn podman(settings: &Path) -> Command {
    let mut command = Command::new("podman");
    command.env("CONTAINERS_CONF", settings);
    command
}

/// `target/<profile>/slipway-static`, made by `scripts/static`; `SLIPWAY_STATIC` names another.
///
/// # Errors
/// Where it was looked for.
pub fn static_binary() -> Result<PathBuf, String> {
    let path = match std::env::var_os("SLIPWAY_STATIC") {
        Some(path) => PathBuf::from(path),
        None => slipway::binary()?.with_file_name("slipway-static"),
    };
    if path.is_file() { Ok(path) } else { Err(format!("{} is not there: scripts/static makes it", path.display())) }
}
