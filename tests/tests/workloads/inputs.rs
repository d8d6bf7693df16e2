//! What the workloads are built from.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::debian::{Base, Mirror, once};
use tests::{process, slipway};

/// How long wheels may take to come.
const LIMIT: Duration = Duration::from_secs(600);

/// A directory of `fixtures/workloads`.
#[derive(Debug, Clone)]
pub struct Workload {
    directory: PathBuf,
    /// The directory's.
    pub name: String,
}

impl Workload {
    /// Those of `WORKLOADS_FROM`, else the project's.
    pub fn all() -> Result<Vec<Self>, String> {
        let from = std::env::var_os("WORKLOADS_FROM");
        let from = from.map_or_else(|| slipway::project().join("fixtures/workloads"), PathBuf::from);
        let entries = fs::read_dir(&from).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut found: Vec<_> = entries
            .map_err(|error| format!("{}: {error}", from.display()))?
            .into_iter()
            .map(|entry| Self { directory: entry.path(), name: entry.file_name().to_string_lossy().into_owned() })
            .filter(|workload| workload.fixture("Dockerfile").is_file())
            .collect();
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// A file of the directory.
    pub fn fixture(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The lines of a file of the directory, if it is there.
    pub fn lines(&self, name: &str) -> Result<Option<Vec<String>>, String> {
        match fs::read_to_string(self.fixture(name)) {
            Ok(text) => {
                let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
                Ok(Some(lines.map(str::to_owned).collect()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{}: {error}", self.fixture(name).display())),
        }
    }

    /// The contexts by name, beside the main one.
    pub fn contexts(&self) -> impl Iterator<Item = &'static str> {
        let named = [("packages.txt", "repository"), ("wheels.txt", "wheels")];
        named.into_iter().filter(|(list, _)| self.fixture(list).is_file()).map(|(_, name)| name)
    }

    /// Lays everything out in `directory`: `context`, `base` (an OCI layout) and the named contexts. The inner error says what
    /// is missing on this machine.
    pub fn prepare(&self, cache: &Path, directory: &Path) -> Result<Result<(), String>, String> {
        let mirror = match Mirror::find() {
            Ok(mirror) => mirror,
            Err(reason) => return Ok(Err(reason)),
        };
        // Its files may be those of the cache: they must never be written over.
        _ = fs::remove_dir_all(directory);
        if let Err(error) = self.lay_out(&mirror, cache, directory) {
            // Not the product's fault where there is no network.
            return mirror.reach().map_or_else(|reason| Ok(Err(reason)), |()| Err(error));
        }
        Ok(Ok(()))
    }

    fn lay_out(&self, mirror: &Mirror, cache: &Path, directory: &Path) -> Result<(), String> {
        let base = match self.lines("base.txt")? {
            None => mirror.base(cache, "minimal", &[], &[])?,
            Some(lines) => {
                let (excluded, packages): (Vec<&str>, Vec<&str>) =
                    lines.iter().map(String::as_str).partition(|line| line.starts_with('/'));
                mirror.base(cache, &format!("{}-{}", self.name, short_digest(&lines)), &packages, &excluded)?
            }
        };
        link(&self.directory, &directory.join("context"))?;
        link(&base.layout, &directory.join("base"))?;
        for (list, name) in [("packages.txt", "repository"), ("wheels.txt", "wheels")] {
            let Some(lines) = self.lines(list)? else { continue };
            let made = match name {
                "repository" => {
                    let packages: Vec<&str> = lines.iter().map(String::as_str).collect();
                    mirror.repository(cache, &short_digest(&lines), &base, &packages)?
                }
                _ => wheels(cache, &base, &lines)?,
            };
            link(&made, &directory.join(name))?;
            fs::write(directory.join(name).join(list), lines.join("\n")).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// Tells lists apart.
fn short_digest(lines: &[String]) -> String {
    fixtures::image::digest(lines.join("\n").as_bytes())["sha256:".len()..][..12].to_owned()
}

/// The wheels for the Python of `base`.
fn wheels(cache: &Path, base: &Base, names: &[String]) -> Result<PathBuf, String> {
    let version = base.version("python3")?.ok_or("the base lacks python3")?;
    let version = version.split('.').take(2).collect::<Vec<_>>().join(".");
    let kept = cache.join(format!("wheels-{version}-{}-{}", std::env::consts::ARCH, short_digest(names)));
    once(&kept, |directory| {
        let environment = tempfile::tempdir().map_err(|error| error.to_string())?;
        process::output(Command::new("python3").args(["-m", "venv"]).arg(environment.path()), LIMIT)?;
        let mut command = Command::new(environment.path().join("bin/pip"));
        command.args(["download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
        command.args(["--implementation", "cp", "--python-version", &version]);
        command.arg(format!("--platform=manylinux2014_{}", std::env::consts::ARCH));
        process::output(command.arg("--dest").arg(directory).args(names), LIMIT).map(drop)
    })?;
    Ok(kept)
}

/// Makes `target` a copy of `source` whose files may share their content, and which everybody may read.
fn link(source: &Path, target: &Path) -> Result<(), String> {
    let named = |error: std::io::Error| format!("{}: {error}", source.display());
    fs::create_dir_all(target).map_err(named)?;
    for entry in fs::read_dir(source).map_err(named)? {
        let entry = entry.map_err(named)?;
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        if entry.file_type().map_err(named)?.is_dir() {
            link(&from, &to)?;
        } else if from.starts_with(slipway::project()) || fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).map_err(named)?;
        }
    }
    Ok(())
}
