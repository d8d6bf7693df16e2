//! Debian base images and package repositories, made once and kept in a cache directory; needs a mirror the first time.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fixtures::image::{self, Image};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::process;

/// How long `mmdebstrap` or a download may take, on a machine that is busy with others.
const LONG: Duration = Duration::from_secs(900);

/// How long what needs no time may take.
const SHORT: Duration = Duration::from_secs(60);

/// The list of installed packages, as it lies in a base and, under this name, in the layout beside the image.
const STATUS: &str = "dpkg-status";

/// The mirror and the release that this machine's apt has its main packages from.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Without a slash at the end.
    pub uri: String,
    /// Such as `bookworm`.
    pub release: String,
}

/// A base image.
#[derive(Debug, Clone)]
pub struct Base {
    /// An OCI layout with the tag `latest`.
    pub layout: PathBuf,
}

impl Mirror {
    /// Finds it; an image without certificates must be able to use it.
    ///
    /// # Errors
    /// What is missing.
    pub fn find() -> Result<Self, String> {
        for program in ["mmdebstrap", "apt-get", "dpkg-deb"] {
            process::find(program).ok_or_else(|| format!("{program} is not installed"))?;
        }
        let format = "$(REPO_URI) $(CODENAME) $(COMPONENT) $(LABEL)";
        let mut command = Command::new("apt-get");
        command.args(["indextargets", "--format", format, "Identifier: Packages"]);
        let targets = process::output(&mut command, SHORT).unwrap_or_default();
        let found = targets.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [uri, release, "main", "Debian"] if uri.starts_with("http://") => {
                Some(Self { uri: uri.trim_end_matches('/').to_owned(), release: (*release).to_owned() })
            }
            _ => None,
        });
        found.ok_or_else(|| "apt of this machine has no Debian mirror over plain HTTP".to_owned())
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// What apt says.
    pub fn reach(&self) -> Result<(), String> {
        let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut command = Command::new("/usr/lib/apt/apt-helper");
        command.args(["download-file", &format!("{}/dists/{}/InRelease", self.uri, self.release)]);
        process::output(command.arg(scratch.path().join("release")), SHORT)
            .map(drop)
            .map_err(|error| format!("the Debian mirror {} is out of reach: {error}", self.uri))
    }

    /// A minimal system with further `packages`, without the files that match `excluded` (dpkg's path-exclude); kept as `name`.
    ///
    /// # Errors
    /// What `mmdebstrap` or the disk says.
    pub fn base(&self, cache: &Path, name: &str, packages: &[&str], excluded: &[&str]) -> Result<Base, String> {
        let layout = cache.join(format!("debian-{}-{}-{name}", self.release, std::env::consts::ARCH));
        once(&layout, |beside| {
            let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
            let tar = scratch.path().join("base.tar");
            let mut command = Command::new("mmdebstrap");
            command.args(["--variant=minbase", "--quiet"]);
            command.args(apt_settings().iter().map(|line| format!("--aptopt={}", line.trim_end_matches(';'))));
            command.args(excluded.iter().map(|pattern| format!("--dpkgopt=path-exclude={pattern}")));
            if !packages.is_empty() {
                command.arg(format!("--include={}", packages.join(",")));
            }
            command.arg(&self.release).arg(&tar).arg(&self.uri);
            process::output(&mut command, LONG)?;
            let tar = fs::read(&tar).map_err(|error| error.to_string())?;
            let status = member(&tar, "./var/lib/dpkg/status")?;
            let layer = image::Layer {
                diff_id: image::digest(&tar),
                blob: image::gzip(&tar),
                media_type: image::LAYER_GZIP.to_owned(),
            };
            let architecture = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
            let config =
                json!({"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["bash"]});
            let image = Image::new(architecture, vec![layer], config);
            image::write_layout(beside, &[("latest", &image)]).map_err(|error| error.to_string())?;
            fs::write(beside.join(STATUS), status).map_err(|error| error.to_string())
        })?;
        Ok(Base { layout })
    }

    /// A directory with `packages` and all that they need beyond `base`, as a repository of apt (`Packages`); kept as `name`.
    ///
    /// # Errors
    /// What apt or the disk says.
    pub fn repository(&self, cache: &Path, name: &str, base: &Base, packages: &[&str]) -> Result<PathBuf, String> {
        let kept = cache.join(format!("packages-{}-{}-{name}", self.release, std::env::consts::ARCH));
        once(&kept, |directory| {
            let text = |error: std::io::Error| error.to_string();
            let scratch = tempfile::tempdir().map_err(text)?;
            for directory in ["lists/partial", "cache/archives/partial", "sources.d"] {
                fs::create_dir_all(scratch.path().join(directory)).map_err(text)?;
            }
            let sources = scratch.path().join("sources.list");
            let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
            let signed = if keyring.exists() { format!("[signed-by={}] ", keyring.display()) } else { String::new() };
            fs::write(&sources, format!("deb {signed}{} {} main\n", self.uri, self.release)).map_err(text)?;
            let path = |name: &str| scratch.path().join(name).display().to_string();
            let apt = |arguments: &[&str]| {
                let mut command = Command::new("apt-get");
                command.args(["--yes", "--quiet", "--no-install-recommends", "--download-only"]);
                for (key, value) in [
                    ("Dir::Etc::SourceList", path("sources.list")),
                    ("Dir::Etc::SourceParts", path("sources.d")),
                    ("Dir::State::Lists", path("lists")),
                    ("Dir::State::Status", base.layout.join(STATUS).display().to_string()),
                    ("Dir::Cache", path("cache")),
                    ("APT::Sandbox::User", "root".to_owned()),
                    ("APT::Keep-Downloaded-Packages", "true".to_owned()),
                    ("Debug::NoLocking", "true".to_owned()),
                ] {
                    command.arg("-o").arg(format!("{key}={value}"));
                }
                process::output(command.args(arguments), LONG)
            };
            apt(&["update"])?;
            apt(&[&["install"], packages].concat())?;
            let mut index = String::new();
            let mut found = fs::read_dir(scratch.path().join("cache/archives"))
                .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>())
                .map_err(text)?;
            found.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
            found.sort();
            for package in found {
                let name = package.file_name().and_then(|name| name.to_str()).ok_or("a package's name is UTF-8")?;
                let bytes = fs::read(&package).map_err(text)?;
                let fields = process::output(Command::new("dpkg-deb").arg("--field").arg(&package), SHORT)?;
                // deb822, as apt-ftparchive(1) writes it.
                let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(index, "{fields}\nFilename: ./{name}\nSize: {}\nSHA256: {digest}\n", bytes.len())
                    .map_err(|error| error.to_string())?;
                fs::write(directory.join(name), bytes).map_err(text)?;
            }
            fs::write(directory.join("Packages"), index).map_err(text)
        })?;
        Ok(kept)
    }
}

impl Base {
    /// The version of an installed package, if it is installed.
    ///
    /// # Errors
    /// If the list cannot be read.
    pub fn version(&self, package: &str) -> Result<Option<String>, String> {
        let status = fs::read_to_string(self.layout.join(STATUS)).map_err(|error| error.to_string())?;
        let mut paragraphs = status.split("\n\n");
        let paragraph = paragraphs.find(|text| text.lines().any(|line| line == format!("Package: {package}")));
        let version = paragraph.and_then(|text| text.lines().find_map(|line| line.strip_prefix("Version: ")));
        Ok(version.map(str::to_owned))
    }
}

/// Makes `directory` by `fill` unless it is there: complete under its name or not at all, whoever else does the same.
///
/// # Errors
/// What `fill` or the disk says.
pub fn once(directory: &Path, fill: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), String> {
    if directory.exists() {
        return Ok(());
    }
    let parent = directory.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(|error| error.to_string())?;
    let beside = tempfile::tempdir_in(parent).map_err(|error| error.to_string())?;
    fill(beside.path())?;
    let made = beside.keep();
    if let Err(error) = fs::rename(&made, directory) {
        _ = fs::remove_dir_all(&made);
        if !directory.exists() {
            return Err(format!("{}: {error}", directory.display()));
        }
    }
    Ok(())
}

/// How this machine's apt reaches its mirror: proxies, time outs, and what it does about dates; lines of an apt.conf.
pub fn apt_settings() -> Vec<String> {
    let dump = process::output(Command::new("apt-config").arg("dump"), SHORT).unwrap_or_default();
    let wanted = |line: &&str| {
        let name = line.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
        let name = name.strip_prefix("acquire::").unwrap_or_default();
        name.contains("proxy") || name.starts_with("check-") || name == "retries" || name.ends_with("::timeout")
    };
    // Programs that find a proxy are not in the image.
    dump.lines()
        .filter(wanted)
        .filter(|line| !line.to_ascii_lowercase().contains("detect"))
        .map(str::to_owned)
        .collect()
}

/// The content of one file of a tar.
fn member(tar: &[u8], name: &str) -> Result<Vec<u8>, String> {
    let text = |error: std::io::Error| error.to_string();
    for entry in tar::Archive::new(tar).entries().map_err(text)? {
        let mut entry = entry.map_err(text)?;
        if *entry.path_bytes() == *name.as_bytes() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(text)?;
            return Ok(content);
        }
    }
    Err(format!("the base lacks {name}"))
}
