//! Attempts to get out of a RUN, each one small program of `fixtures/escapes`: all fail, in all tiers and environments.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tests::pods::{Kind, Pod, SLIPWAY, static_binary};
use tests::process::{self, Ended};
use tests::slipway;

pub const TESTS: &[(&str, crate::Test)] = &[
    ("escapes::namespaces", || here("namespaces")),
    ("escapes::chroot", || here("chroot")),
    ("escapes::traced", || here("traced")),
    ("escapes::E4", || inside(Kind::E4)),
    ("escapes::E5", || inside(Kind::E5)),
    ("escapes::E6", || inside(Kind::E6)),
];

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

/// A context with all attempts, and what they are after: a file, and a socket that lives as long as this.
fn prepare(directory: &Path) -> Result<(Vec<String>, Option<UnixListener>), String> {
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
    let (socket, name) = abstract_socket()?.unzip();
    let named = name.map(|name| format!(" ABSTRACT={name}")).unwrap_or_default();
    let dockerfile = format!(
        "FROM scratch\nCOPY escapes /escapes\nENV CANARY={}{named}\nRUN [\"/escapes/run-all\"]\n",
        canary.display()
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

/// The tier on this machine itself, where no container is around it that would help: as root, and where that is what the tier
/// is for as a user with nothing.
fn here(tier: &str) -> Result<(), String> {
    let directory = directory()?;
    let (names, _socket) = prepare(directory.path())?;
    let mut command = Command::new(slipway::binary()?);
    if tier == "traced" {
        let copy = directory.path().join("slipway");
        fs::copy(static_binary()?, &copy).map_err(|error| error.to_string())?;
        let mut give = Command::new("chown");
        process::output(give.args(["-hR", "1000123:1000123"]).arg(directory.path()), LIMIT)?;
        command = Command::new("setpriv");
        command.args(["--reuid=1000123", "--regid=1000123", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]);
        command.args(["--inh-caps=-all", "--"]).arg(copy);
    }
    command.args(arguments(directory.path(), tier)).env("BUILDER_SECRET", WORD);
    let ended = process::run(&mut command, LIMIT).map_err(|error| error.to_string())?;
    judge(directory.path(), &names, &ended)
}

fn inside(kind: Kind) -> Result<(), String> {
    let directory = directory()?;
    let (names, _socket) = prepare(directory.path())?;
    let pod = Pod::start(kind, directory.path(), false)?;
    let mut command = pod.command(SLIPWAY, &[("BUILDER_SECRET", WORD)]);
    command.args(arguments(directory.path(), "auto"));
    let ended = process::run(&mut command, LIMIT).map_err(|error| error.to_string())?;
    judge(directory.path(), &names, &ended)
}
