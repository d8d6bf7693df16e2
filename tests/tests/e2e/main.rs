//! The built binary with real parts around it: Debian's `docker-registry`, skopeo, signals, full disks, another user.
//!
//! Needs no network but for [`debian`]: the base is a busybox of this machine. A trial whose parts are missing is ignored
//! and says which.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fixtures::distribution::{Distribution, Setup};
use fixtures::image::{self, Entry, Image, Layer};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};
use tests::process::{self, Ended};
use tests::{slipway, trials, user};

mod amounts;
mod base;
mod bounds;
mod cache;
mod cli;
mod contexts;
mod debian;
mod extremes;
mod faults;
mod hazards;
mod real;
mod resources;
mod sharing;
mod sources;
mod ssh;
mod steps;

/// How long one program may take, on a machine that is busy with others.
const LIMIT: Duration = Duration::from_secs(120);

/// How a trial ends: `Err` is a failure; `Ok(Some(reason))` a trial that cannot run here.
type Outcome = Result<Option<String>, String>;

#[expect(clippy::print_stdout, reason = "a test harness reports to the terminal")]
fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // Modes of the files that are built from must not depend on who calls.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let place = match trials::prepared(Place::new()) {
        Ok(place) => place,
        Err(status) => return status,
    };
    let suites = [
        amounts::TRIALS,
        base::TRIALS,
        bounds::TRIALS,
        cache::TRIALS,
        contexts::TRIALS,
        debian::TRIALS,
        extremes::TRIALS,
        faults::TRIALS,
        hazards::TRIALS,
        real::TRIALS,
        resources::TRIALS,
        sharing::TRIALS,
        cli::TRIALS,
        sources::TRIALS,
        ssh::TRIALS,
        steps::TRIALS,
    ];
    let table = suites.into_iter().flatten();
    let trials = table
        .map(|&(name, trial)| {
            let place = Arc::clone(&place);
            Trial::ignorable_test(name, move || match trial(&place) {
                Ok(None) => Ok(Completion::Completed),
                Ok(Some(reason)) => Ok(Completion::ignored_with(format!("skipped: {reason}"))),
                Err(error) => Err(Failed::from(error)),
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        let (passed, failed, skipped) = (conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored);
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
    conclusion.exit_code()
}

/// A row of the table of trials.
type Row = (&'static str, fn(&Place) -> Outcome);

/// What the trials share: the binary and a registry with the base.
struct Place {
    binary: PathBuf,
    registry: Distribution,
    /// Readable by everybody, for what another user runs.
    shared: tempfile::TempDir,
    /// The images of [`debian`], made by whichever of its trials comes first.
    debian: debian::Shared,
}

impl Place {
    /// The inner error says which part is missing.
    fn new() -> Result<Result<Self, String>, String> {
        let text = |error: std::io::Error| error.to_string();
        let Some(busybox) = process::find("busybox") else { return Ok(Err("busybox is not installed".to_owned())) };
        if process::find("skopeo").is_none() {
            return Ok(Err("skopeo is not installed".to_owned()));
        }
        let built = slipway::binary()?;
        let Some(registry) = Distribution::start().map_err(text)? else {
            return Ok(Err("docker-registry is not installed".to_owned()));
        };
        let shared = tempfile::Builder::new().prefix("slipway-e2e-").tempdir().map_err(text)?;
        fs::set_permissions(shared.path(), Permissions::from_mode(0o755)).map_err(text)?;
        let binary = shared.path().join("slipway");
        fs::copy(built, &binary).map_err(text)?;
        let place = Self { binary, registry, shared, debian: debian::Shared::default() };
        let layout = place.shared.path().join("base");
        image::write_layout(&layout, &[("latest", &busybox_image(&fs::read(busybox).map_err(text)?))]).map_err(text)?;
        place.skopeo(&[
            "copy",
            "--dest-tls-verify=false",
            &format!("oci:{}:latest", layout.display()),
            &format!("docker://{}", place.base()),
        ])?;
        Ok(Ok(place))
    }

    fn base(&self) -> String {
        self.name("base")
    }

    /// The reference of `repository` in the registry.
    fn name(&self, repository: &str) -> String {
        format!("{}/{repository}:latest", self.registry.host())
    }

    fn skopeo(&self, arguments: &[&str]) -> Result<String, String> {
        process::output(Command::new("skopeo").args(arguments), LIMIT)
    }

    /// An empty place for one build, with a Dockerfile whose `BASE` is the base.
    fn project(&self, dockerfile: &str) -> Result<Project<'_>, String> {
        let dir =
            tempfile::Builder::new().prefix("build-").tempdir_in(self.shared.path()).map_err(|e| e.to_string())?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).map_err(|e| e.to_string())?;
        let project = Project { place: self, dir };
        project.write("Dockerfile", dockerfile.replace("BASE", &self.base()))?;
        Ok(project)
    }
}

/// busybox with every applet that the Dockerfiles use.
fn busybox_image(busybox: &[u8]) -> Image {
    let config = json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]});
    Image::new(platform(), vec![busybox_layer(busybox)], config)
}

/// The platform of this machine.
fn platform() -> &'static str {
    if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" }
}

fn busybox_layer(busybox: &[u8]) -> Layer {
    let applets = ["sh", "head", "cat", "cp", "echo", "sleep", "dd", "ls", "rm", "mkdir", "touch", "test", "sync"];
    let links: Vec<String> = applets.iter().map(|applet| format!("bin/{applet}")).collect();
    let mut entries = vec![Entry::Directory("bin"), Entry::Directory("tmp"), Entry::Directory("etc")];
    entries.push(Entry::File("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n"));
    entries.push(Entry::File("etc/group", b"root:x:0:\n"));
    entries.push(Entry::Program("bin/busybox", busybox));
    entries.extend(links.iter().map(|link| Entry::Symlink(link, "busybox")));
    image::tree_layer(&entries)
}

/// A context with its own work directory.
struct Project<'a> {
    place: &'a Place,
    dir: tempfile::TempDir,
}

impl Project<'_> {
    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file of the context.
    fn write(&self, name: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<(), String> {
        let path = self.path("context").join(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(|e| e.to_string())?;
        fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn remove(&self, name: &str) -> Result<(), String> {
        fs::remove_file(self.path("context").join(name)).map_err(|e| e.to_string())
    }

    /// `slipway build` with `arguments` and the context, not yet started.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.place.binary);
        self.complete(&mut command, arguments);
        command
    }

    /// The same as another user.
    fn command_as(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = user::command(name, &self.place.binary);
        self.complete(&mut command, arguments);
        command
    }

    fn complete(&self, command: &mut Command, arguments: &[&str]) {
        command
            .args(["build", "--progress", "plain", "--work-dir"])
            .arg(self.path("work"))
            .args(arguments)
            .arg(self.path("context"))
            // Whoever runs the tests may be logged in somewhere.
            .env("DOCKER_CONFIG", self.path("docker"))
            .env_remove("REGISTRY_AUTH_FILE")
            .current_dir(self.dir.path());
    }

    fn build(&self, arguments: &[&str]) -> Result<Ended, String> {
        process::run(&mut self.command(arguments), LIMIT).map_err(|error| error.to_string())
    }

    /// Builds and gives what is on stdout.
    fn built(&self, arguments: &[&str]) -> Result<String, String> {
        Ok(expect(self.build(arguments)?, 0, &[])?.result())
    }
}

/// The one check of every trial: exit code, and texts that stderr has.
fn expect(ended: Ended, code: i32, texts: &[&str]) -> Result<Ended, String> {
    if ended.status.and_then(|status| status.code()) != Some(code) {
        return Err(format!("{}, expected exit code {code}\n{}", ended.how(), ended.text()));
    }
    let stderr = String::from_utf8_lossy(&ended.stderr);
    match texts.iter().find(|text| !stderr.contains(**text)) {
        Some(text) => Err(format!("stderr lacks {text:?}:\n{stderr}")),
        None => Ok(ended),
    }
}

/// Fails with both values unless they are equal.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, actual: T, expected: T) -> Result<(), String> {
    if actual == expected { Ok(()) } else { Err(format!("{what}: {actual:?}, expected {expected:?}")) }
}

fn read_json(path: &Path) -> Result<Value, String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// Waits until `done`, for at most [`LIMIT`].
fn wait(what: &str, mut done: impl FnMut() -> bool) -> Result<(), String> {
    let started = Instant::now();
    while !done() {
        if started.elapsed() > LIMIT {
            return Err(format!("{what} does not happen"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A name that is not UTF-8.
fn odd_name() -> &'static OsStr {
    OsStr::from_bytes(b"odd-\xff\xfe")
}

/// A registry that wants a login.
fn closed_registry() -> Result<Option<Distribution>, String> {
    Distribution::with(Setup { login: true, ..Setup::default() }).map_err(|error| error.to_string())
}
