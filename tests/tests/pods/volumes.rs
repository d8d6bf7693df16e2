//! Work directories on volumes that cannot keep everything: images are those of a disk that can.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::environment::Environment::{self, E1, E2, E3};
use tests::layers::{Layers, Varies};
use tests::pods::{Kind, Pod, SLIPWAY, Worse};
use tests::{process, slipway};

pub const TESTS: &[(&str, crate::Test)] = &[
    ("volumes::tmpfs", || everywhere("tmpfs", &[E1, E2, E3, E4, E5, E6])),
    ("volumes::without_attributes", || everywhere("ramfs", &[E1, E2, E3, E4, E5, E6])),
    ("volumes::overlay", || everywhere("overlay", &[E1, E2, E3, E4, E5, E6])),
    ("volumes::root_squash", || everywhere("squash", &[E1, E4, E5])),
    ("volumes::fixed_group", fixed_group),
];

const E4: Environment = Environment::Pod(Kind::E4);
const E5: Environment = Environment::Pod(Kind::E5);
const E6: Environment = Environment::Pod(Kind::E6);

const LIMIT: Duration = Duration::from_secs(300);

/// The group of a volume, as `fsGroup` of a pod gives it.
const GROUP: u32 = 5555;

fn text(error: std::io::Error) -> String {
    error.to_string()
}

/// A mount that goes with this.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, at: &Path) -> Result<Self, String> {
        fs::create_dir_all(at).map_err(text)?;
        let mut command = Command::new("mount");
        match kind {
            "overlay" => {
                // Its layers lie on a tmpfs of their own, as an overlay cannot be the upper layer of another one.
                let layers = at.with_extension("layers");
                let below = Self::new("tmpfs", &layers)?;
                for name in ["lower", "upper", "work"] {
                    fs::create_dir(layers.join(name)).map_err(text)?;
                }
                let path = |name: &str| layers.join(name).display().to_string();
                let options = format!("lowerdir={},upperdir={},workdir={}", path("lower"), path("upper"), path("work"));
                process::output(command.args(["-t", kind, "-o", &options, kind]).arg(at), LIMIT)?;
                // Detached at once: the overlay holds it.
                drop(below);
            }
            "squash" => {
                let script = slipway::project().join("fixtures/volumes/squash.py");
                process::output(Command::new("python3").arg(script).arg(at), LIMIT)?;
            }
            _ => drop(process::output(command.args(["-t", kind, kind]).arg(at), LIMIT)?),
        }
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// What is built, laid out in `directory`.
fn context(directory: &Path) -> Result<PathBuf, String> {
    let context = directory.join("context");
    fs::create_dir_all(&context).map_err(text)?;
    fs::copy("/bin/busybox", context.join("busybox")).map_err(text)?;
    fs::copy(slipway::project().join("fixtures/volumes/Dockerfile"), context.join("Dockerfile")).map_err(text)?;
    for (name, mode) in [("busybox", 0o755), ("Dockerfile", 0o644)] {
        fs::set_permissions(context.join(name), Permissions::from_mode(mode)).map_err(text)?;
    }
    fs::write(context.join("file"), "copied\n").map_err(text)?;
    Ok(context)
}

/// What `slipway build` is called with; the work dir and the results are in `own`.
fn arguments(context: &Path, own: &Path, target: &str) -> Vec<String> {
    let path = |name: &str| own.join(name).display().to_string();
    let output = format!("type=oci,tar=false,dest={}", path(&format!("result{target}")));
    let fixed = ["build", "--progress", "plain", "--output", &output, "--work-dir"];
    let mut arguments: Vec<String> = fixed.into_iter().map(str::to_owned).collect();
    arguments.push(path("work"));
    if !target.is_empty() {
        arguments.extend(["--target".to_owned(), target.to_owned()]);
    }
    arguments.push(context.display().to_string());
    arguments
}

/// Both images of the Dockerfile, built by `slipway`; the second one from what is left of the first.
fn built(slipway: &dyn Fn() -> Command, context: &Path, own: &Path) -> Result<[Layers; 2], String> {
    let one = |target: &str| {
        let mut command = slipway();
        let ended = process::run(command.args(arguments(context, own, target)), LIMIT).map_err(text)?;
        if !ended.success() {
            return Err(format!("{}\n{}", ended.how(), ended.text()));
        }
        // Everything is new.
        Layers::read(&own.join(format!("result{target}")), 0, 0)
    };
    Ok([one("made")?, one("")?])
}

/// As root on the disk of this machine.
fn expected(context: &Path, directory: &Path) -> Result<[Layers; 2], String> {
    let own = directory.join("expected");
    fs::create_dir_all(&own).map_err(text)?;
    let binary = slipway::binary()?;
    built(&|| Command::new(&binary), context, &own)
}

fn compare(expected: &[Layers; 2], found: &[Layers; 2]) -> Result<(), String> {
    expected.iter().zip(found).try_for_each(|(expected, found)| expected.same(found, &Varies::default()))
}

fn everywhere(kind: &str, environments: &[Environment]) -> Result<(), String> {
    let directory = crate::volume()?;
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).map_err(text)?;
    let context = context(directory.path())?;
    let expected = expected(&context, directory.path())?;
    let mut failures = Vec::new();
    for environment in environments {
        let name = environment.name();
        let at = directory.path().join(name);
        let volume = Mounted::new(kind, &at)?;
        let own = at.join("own");
        let ended = fs::create_dir(&own).map_err(text).and_then(|()| {
            let inside = at.join("context");
            process::output(
                Command::new("cp").arg("-r").arg("--preserve=mode,timestamps").arg(&context).arg(&inside),
                LIMIT,
            )?;
            let mut slipway = environment.slipway(&at, &own)?;
            let program = &mut slipway.command;
            let arguments: Vec<_> = program.get_args().map(std::ffi::OsStr::to_owned).collect();
            let environment: Vec<_> =
                program.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
            let again = || {
                let mut command = Command::new(program.get_program());
                command.args(&arguments).envs(environment.iter().cloned());
                command
            };
            compare(&expected, &built(&again, &inside, &own)?)
        });
        drop(volume);
        failures.extend(ended.err().map(|error| format!("{kind} in {name}: {error}")));
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n\n")) }
}

/// A volume of a group that the user of a restricted pod is in: `fsGroup`.
fn fixed_group() -> Result<(), String> {
    let directory = crate::volume()?;
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).map_err(text)?;
    let context = context(directory.path())?;
    let expected = expected(&context, directory.path())?;
    let volume = directory.path().join("volume");
    fs::create_dir(&volume).map_err(text)?;
    let inside = volume.join("context");
    process::output(Command::new("cp").arg("-r").arg("--preserve=mode,timestamps").arg(&context).arg(&inside), LIMIT)?;
    let pod = Pod::start_worse(Kind::E6, &volume, false, Worse { group: Some(GROUP), ..Worse::default() })?;
    chown(&volume, Some(0), Some(GROUP)).map_err(text)?;
    fs::set_permissions(&volume, Permissions::from_mode(0o2775)).map_err(text)?;
    compare(&expected, &built(&|| pod.command(SLIPWAY, &[]), &inside, &volume)?)
}
