//! What the workloads are built from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::debian::{Base, Mirror, once};
use tests::{process, slipway};

/// How long wheels may take to come.
const LIMIT: Duration = Duration::from_secs(600);

/// The virtualenv's packages; each has compiled parts.
const WHEELS: [&str; 3] = ["numpy<3", "lxml", "cffi"];

/// What a base for compilers needs.
const TOOLCHAINS: [&str; 5] = ["gcc", "libc6-dev", "make", "python3-venv", "golang-go"];

/// What nobody misses of it: half of its size.
const EXCLUDED: [&str; 14] = [
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/bin/*-lto-dump*",
    "/usr/lib/go-*/pkg/linux_*/cmd/*",
    "/usr/lib/go-*/pkg/tool/*/pprof",
    "/usr/lib/go-*/pkg/tool/*/trace",
    "/usr/lib/go-*/pkg/tool/*/cover",
    "/usr/lib/go-*/pkg/tool/*/objdump",
    "/usr/lib/go-*/pkg/tool/*/dist",
    "/usr/share/go-*/test/*",
    "/usr/share/go-*/src/cmd/vendor/*",
    "/usr/share/go-*/src/*/testdata/*",
    "/usr/share/go-*/src/*_test.go",
];

/// A directory of `fixtures/workloads`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Debian packages whose scripts do what only root may.
    Packages,
    /// A virtualenv from wheels, make with several jobs, a Go program.
    Toolchains,
}

impl Workload {
    pub const ALL: [Self; 2] = [Self::Packages, Self::Toolchains];

    /// Of the directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::Packages => "packages",
            Self::Toolchains => "toolchains",
        }
    }

    /// A file of the directory.
    pub fn fixture(self, name: &str) -> PathBuf {
        slipway::project().join("fixtures/workloads").join(self.name()).join(name)
    }

    /// The contexts by name, beside the main one.
    pub fn contexts(self) -> &'static [&'static str] {
        match self {
            Self::Packages => &["repository"],
            Self::Toolchains => &["wheels"],
        }
    }

    /// Lays everything out in `directory`: `context`, `base` (an OCI layout) and the named contexts. The inner error says what
    /// is missing on this machine.
    pub fn prepare(self, cache: &Path, directory: &Path) -> Result<Result<(), String>, String> {
        let mirror = match Mirror::find() {
            Ok(mirror) => mirror,
            Err(reason) => return Ok(Err(reason)),
        };
        // Its files may be those of the cache: they must never be written over.
        _ = fs::remove_dir_all(directory);
        let made = match self {
            Self::Packages => packages(&mirror, cache, directory),
            Self::Toolchains => toolchains(&mirror, cache, directory),
        };
        if let Err(error) = made {
            // Not the product's fault where there is no network.
            return mirror.reach().map_or_else(|reason| Ok(Err(reason)), |()| Err(error));
        }
        let context = directory.join("context");
        link(&slipway::project().join("fixtures/workloads").join(self.name()), &context)?;
        Ok(Ok(()))
    }
}

fn packages(mirror: &Mirror, cache: &Path, directory: &Path) -> Result<(), String> {
    let base = mirror.base(cache, "minimal", &[], &[])?;
    let list = fs::read_to_string(Workload::Packages.fixture("packages.txt")).map_err(|error| error.to_string())?;
    let names: Vec<&str> = list.lines().collect();
    let digest = fixtures::image::digest(list.as_bytes());
    let repository = mirror.repository(cache, &digest["sha256:".len()..][..12], &base, &names)?;
    link(&base.layout, &directory.join("base"))?;
    link(&repository, &directory.join("repository"))?;
    fs::write(directory.join("repository/packages.txt"), list).map_err(|error| error.to_string())
}

fn toolchains(mirror: &Mirror, cache: &Path, directory: &Path) -> Result<(), String> {
    let base = mirror.base(cache, "toolchains", &TOOLCHAINS, &EXCLUDED)?;
    let wheels = wheels(cache, &base)?;
    link(&base.layout, &directory.join("base"))?;
    link(&wheels, &directory.join("wheels"))?;
    fs::write(directory.join("wheels/wheels.txt"), WHEELS.join("\n")).map_err(|error| error.to_string())
}

/// The wheels for the Python of `base`.
fn wheels(cache: &Path, base: &Base) -> Result<PathBuf, String> {
    let version = base.version("python3")?.ok_or("the base lacks python3")?;
    let version = version.split('.').take(2).collect::<Vec<_>>().join(".");
    let kept = cache.join(format!("wheels-{version}-{}", std::env::consts::ARCH));
    once(&kept, |directory| {
        let environment = tempfile::tempdir().map_err(|error| error.to_string())?;
        process::output(Command::new("python3").args(["-m", "venv"]).arg(environment.path()), LIMIT)?;
        let mut command = Command::new(environment.path().join("bin/pip"));
        command.args(["download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]);
        command.args(["--implementation", "cp", "--python-version", &version]);
        command.arg(format!("--platform=manylinux2014_{}", std::env::consts::ARCH));
        process::output(command.arg("--dest").arg(directory).args(WHEELS), LIMIT).map(drop)
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
