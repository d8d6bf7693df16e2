//! Attempts to get out of a RUN, each one small program of `fixtures/escapes`: all fail, in all tiers and environments.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tests::pods::{BUSYBOX, Kind, Pod, SLIPWAY, Worse, static_binary};
use tests::process::{self, Ended};
use tests::slipway;

pub const TESTS: &[(&str, crate::Test)] = &[
    ("escapes::namespaces", || here("namespaces")),
    ("escapes::chroot", || here("chroot")),
    ("escapes::traced", || here("traced")),
    ("escapes::E4", || inside(Kind::E4, Worse::default())),
    ("escapes::E5", || inside(Kind::E5, Worse::default())),
    ("escapes::E6", || inside(Kind::E6, Worse::default())),
    ("escapes::E4_without_landlock", || inside(Kind::E4, WITHOUT_LANDLOCK)),
    ("escapes::E5_without_landlock", || inside(Kind::E5, WITHOUT_LANDLOCK)),
];

/// As Linux before 6.12 for signals: only the tier itself keeps them in.
const WITHOUT_LANDLOCK: Worse = Worse { refused: &[("landlock_create_ruleset", 38)], volume: "", group: None };

/// How long all attempts may take together, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(300);

/// What nobody inside may see: content of a file beside the work dir, and of the builder's environment.
const WORD: &str = "must-not-be-seen";

/// Asks for the version of Landlock that the kernel has: landlock_create_ruleset(2).
const LANDLOCK: &str = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))";

/// A socket outside that has a name but no file, and that name, where the kernel can keep it from a RUN: Landlock's version 6.
fn abstract_socket() -> Result<Option<(UnixListener, String)>, String> {
    static SOCKETS: AtomicUsize = AtomicUsize::new(0);
    let version = process::output(Command::new("python3").args(["-c", LANDLOCK]), LIMIT)?;
    if version.trim().parse::<i32>().unwrap_or(-1) < 6 {
        return Ok(None);
    }
    let name = format!("slipway-escapes-{}-{}", std::process::id(), SOCKETS.fetch_add(1, Ordering::Relaxed));
    let bound = SocketAddr::from_abstract_name(&name).and_then(|address| UnixListener::bind_addr(&address));
    bound.map(|listener| Some((listener, name))).map_err(|error| error.to_string())
}

/// A process outside with the user id of the builder; killed when dropped.
struct Neighbour(Child);

impl Neighbour {
    /// By this command, to which a shell script is added.
    fn start(mut command: Command, directory: &Path) -> Result<Self, String> {
        let number = directory.join("neighbour");
        let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 3600", number.display());
        let neighbour = Self(command.arg(script).spawn().map_err(|error| error.to_string())?);
        let begun = Instant::now();
        while !number.exists() {
            if begun.elapsed() > LIMIT {
                return Err("the process outside has not begun".to_owned());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(neighbour)
    }

    fn lives(&mut self) -> Result<(), String> {
        match self.0.try_wait() {
            Ok(None) => Ok(()),
            ended => Err(format!("the process outside has ended: {ended:?}")),
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// A context with all attempts, and what they are after: a file, the process that has begun, and, where the kernel can keep it from a
/// RUN (`scoped`), a socket that lives as long as this.
fn prepare(directory: &Path, scoped: bool) -> Result<(Vec<String>, Option<UnixListener>), String> {
    let text = |error: std::io::Error| error.to_string();
    let gcc = process::find("gcc").ok_or("gcc is not installed; scripts/setup installs it")?;
    let sources = slipway::project().join("fixtures/escapes");
    let programs = directory.join("context/escapes");
    fs::create_dir_all(&programs).map_err(text)?;
    let mut names = Vec::new();
    for source in fs::read_dir(&sources).map_err(text)? {
        let source = source.map_err(text)?.path();
        let Some(name) = source.file_stem().and_then(|name| name.to_str()) else { continue };
        if source.extension().is_some_and(|extension| extension == "c") {
            let mut command = Command::new(&gcc);
            command.args(["-static", "-O1", "-w", "-o"]).arg(programs.join(name)).arg(&source);
            process::output(&mut command, LIMIT)?;
            names.push(name.to_owned());
        }
    }
    names.retain(|name| name != "run-all");
    let canary = directory.join("canary");
    fs::write(&canary, WORD).map_err(text)?;
    let (socket, name) = if scoped { abstract_socket()?.unzip() } else { (None, None) };
    let named = name.map(|name| format!(" ABSTRACT={name}")).unwrap_or_default();
    let neighbour = fs::read_to_string(directory.join("neighbour")).map_err(text)?;
    let dockerfile = format!(
        "FROM scratch\nCOPY escapes /escapes\nENV CANARY={} NEIGHBOUR={}{named}\nRUN [\"/escapes/run-all\"]\n",
        canary.display(),
        neighbour.trim()
    );
    fs::write(directory.join("context/Dockerfile"), dockerfile).map_err(text)?;
    Ok((names, socket))
}

fn arguments(directory: &Path, tier: &str) -> Vec<String> {
    let path = |name: &str| directory.join(name).display().to_string();
    let output = format!("type=oci,dest={}", path("out.tar"));
    let fixed = ["build", "--no-cache", "--progress", "plain", "--sandbox", tier, "--output", &output, "--work-dir"];
    fixed.into_iter().map(str::to_owned).chain([path("work"), path("context")]).collect()
}

fn judge(directory: &Path, names: &[String], ended: &Ended) -> Result<(), String> {
    let text = ended.text();
    let refused = |name: &String| text.lines().any(|line| line.ends_with(&format!("refused {name}")));
    let escaped: Vec<_> = names.iter().filter(|name| !refused(name)).collect();
    if !ended.success() || !escaped.is_empty() {
        return Err(format!("{}; not refused: {escaped:?}\n{text}", ended.how()));
    }
    let canary = fs::read_to_string(directory.join("canary")).map_err(|error| error.to_string())?;
    if canary == WORD { Ok(()) } else { Err(format!("the file outside now holds {canary:?}")) }
}

fn directory() -> Result<tempfile::TempDir, String> {
    tempfile::Builder::new().prefix("slipway-escapes-").tempdir_in("/var/tmp").map_err(|error| error.to_string())
}

/// Who a user with nothing is.
const PLAIN: [&str; 7] = [
    "--reuid=1000123",
    "--regid=1000123",
    "--clear-groups",
    "--no-new-privs",
    "--bounding-set=-all",
    "--inh-caps=-all",
    "--",
];

/// The tier on this machine itself, where no container is around it that would help: as root, and where that is what the tier
/// is for as a user with nothing.
fn here(tier: &str) -> Result<(), String> {
    let directory = directory()?;
    let plain = tier == "traced";
    let as_user = |program: &Path| {
        let mut command = Command::new(if plain { "setpriv" } else { "env" });
        command.args(PLAIN.iter().filter(|_| plain)).arg(program);
        command
    };
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).map_err(|error| error.to_string())?;
    let mut shell = as_user(Path::new("sh"));
    shell.arg("-c");
    let mut neighbour = Neighbour::start(shell, directory.path())?;
    let (names, _socket) = prepare(directory.path(), true)?;
    let mut program = slipway::binary()?;
    if plain {
        program = directory.path().join("slipway");
        fs::copy(static_binary()?, &program).map_err(|error| error.to_string())?;
        let mut give = Command::new("chown");
        process::output(give.args(["-hR", "1000123:1000123"]).arg(directory.path()), LIMIT)?;
    }
    let mut command = as_user(&program);
    command.args(arguments(directory.path(), tier)).env("BUILDER_SECRET", WORD);
    let ended = process::run(&mut command, LIMIT).map_err(|error| error.to_string())?;
    judge(directory.path(), &names, &ended)?;
    neighbour.lives()
}

fn inside(kind: Kind, worse: Worse) -> Result<(), String> {
    let directory = directory()?;
    let pod = Pod::start_worse(kind, directory.path(), true, worse)?;
    let mut shell = pod.command(BUSYBOX, &[]);
    shell.args(["sh", "-c"]);
    let mut neighbour = Neighbour::start(shell, directory.path())?;
    let (names, _socket) = prepare(directory.path(), worse.refused.is_empty())?;
    let mut command = pod.command(SLIPWAY, &[("BUILDER_SECRET", WORD)]);
    command.args(arguments(directory.path(), "auto"));
    let ended = process::run(&mut command, LIMIT).map_err(|error| error.to_string())?;
    judge(directory.path(), &names, &ended)?;
    neighbour.lives()
}
