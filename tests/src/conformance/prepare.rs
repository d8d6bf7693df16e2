//! Laying a case out in a work directory, the same way for every builder.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::case::{Case, NamedValue, SecretValue};
use crate::process;

/// How long a case's `setup.sh` may take.
const SETUP: Duration = Duration::from_secs(60);

/// One case laid out: `context/`, `df/Dockerfile`, `named/NAME/`, `secrets/ID`, `http/`, and room for `out`.
#[derive(Debug)]
pub struct Prepared {
    /// The directory that holds everything.
    pub work: PathBuf,
    /// The main context.
    pub context: PathBuf,
    /// The Dockerfile.
    pub dockerfile: PathBuf,
    /// What the HTTP server serves for this case.
    pub http: PathBuf,
    /// Where the builder leaves its result.
    pub out: PathBuf,
    /// `src=FILE` or `env=NAME` by id.
    pub secrets: BTreeMap<String, String>,
    /// Directory or reference by name.
    pub named: BTreeMap<String, String>,
}

impl Prepared {
    /// Copies and completes the trees of `case` below `work`, which must not exist. The process' umask must be 022.
    ///
    /// # Errors
    /// If a file cannot be copied or the case's script fails.
    pub fn new(corpus: &Path, case: &Case, work: &Path) -> io::Result<Self> {
        let started = now().as_secs().cast_signed() - 2;
        let context = work.join("context");
        let dockerfile_dir = if case.dockerfile_in_context { context.clone() } else { work.join("df") };
        let mut prepared = Self {
            dockerfile: dockerfile_dir.join(&case.dockerfile_name),
            http: work.join("http"),
            out: work.join("out"),
            work: work.to_owned(),
            context,
            secrets: BTreeMap::new(),
            named: BTreeMap::new(),
        };
        fs::create_dir_all(work)?;
        if !case.context.is_empty() {
            copy_tree(&corpus.join("contexts").join(&case.context), &prepared.context)?;
        }
        copy_tree(&case.path.join("context"), &prepared.context)?;
        fs::create_dir_all(&dockerfile_dir)?;
        for file in fs::read_dir(&case.path)? {
            let file = file?;
            if file.file_name() == "Dockerfile" {
                fs::copy(file.path(), &prepared.dockerfile)?;
            } else if file.path().extension() == Some(OsStr::new("dockerignore")) {
                fs::copy(file.path(), dockerfile_dir.join(file.file_name()))?;
            }
        }
        copy_tree(&case.path.join("http"), &prepared.http)?;
        prepared.inputs(case)?;
        let tops = [&prepared.context, &prepared.http, &work.join("named")];
        for top in tops {
            normalise(top)?;
        }
        prepared.setup(corpus, case)?;
        // See the corpus' README: the part below the second differs each time, and is below one half.
        let nanoseconds = i64::from(now().subsec_nanos() % 499_999_999) + 1;
        for top in tops {
            settle(top, started, case.stamp(), nanoseconds)?;
        }
        Ok(prepared)
    }

    /// Named contexts and secrets.
    fn inputs(&mut self, case: &Case) -> io::Result<()> {
        for (name, value) in &case.named_contexts {
            let value = match value {
                NamedValue::Directory(dir) => {
                    let target = self.work.join("named").join(dir);
                    copy_tree(&case.path.join(dir), &target)?;
                    target.to_string_lossy().into_owned()
                }
                NamedValue::Image(reference) => reference.clone(),
            };
            self.named.insert(name.clone(), value);
        }
        let secrets = self.work.join("secrets");
        fs::create_dir_all(&secrets)?;
        for (id, value) in &case.secrets {
            let source = match value {
                SecretValue::Env { env } => format!("env={env}"),
                SecretValue::Text(text) => {
                    fs::write(secrets.join(id), text)?;
                    format!("src={}", secrets.join(id).display())
                }
            };
            self.secrets.insert(id.clone(), source);
        }
        Ok(())
    }

    fn setup(&self, corpus: &Path, case: &Case) -> io::Result<()> {
        let script = case.path.join("setup.sh");
        if !script.exists() {
            return Ok(());
        }
        let mut command = Command::new("sh");
        command
            .arg("-eu")
            .arg(script)
            .current_dir(&self.context)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("CONF_LIB", corpus.join("lib"))
            .env("CONF_DOCKERFILE", &self.dockerfile)
            .env("CONF_HTTP", &self.http)
            .env("CONF_NAMED", self.work.join("named"))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        process::output(&mut command, SETUP).map_err(io::Error::other)?;
        Ok(())
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Copies what is below `source`, if it is there, into `target`, which is made in any case.
fn copy_tree(source: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let entries = match fs::read_dir(source) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let (from, to, kind) = (entry.path(), target.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            copy_tree(&from, &to)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else {
            fs::copy(&from, &to)?;
        }
    }
    Ok(())
}

/// Everything below `top`, contents before their directory, and `top` itself last.
fn walk(top: &Path, visit: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    match fs::symlink_metadata(top) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(info) if info.is_dir() => {
            // A directory that cannot be listed is taken as it is, as in the reference.
            for entry in fs::read_dir(top).into_iter().flatten() {
                walk(&entry?.path(), visit)?;
            }
        }
        Ok(_) => {}
    }
    visit(top)
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    utimensat(CWD, path, &Timestamps { last_access: time, last_modification: time }, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// git keeps no modes but the execute bit: gives every file a fixed one, and the present as its time.
fn normalise(top: &Path) -> io::Result<()> {
    let present = now().as_secs().cast_signed();
    walk(top, &mut |path| {
        let info = fs::symlink_metadata(path)?;
        if !info.is_symlink() {
            let mode = if info.is_dir() || info.mode() & 0o100 != 0 { 0o755 } else { 0o644 };
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        set_time(path, present, 0)
    })
}

/// Fixed times, except where the script set an old one itself.
fn settle(top: &Path, started: i64, stamp: i64, nanoseconds: i64) -> io::Result<()> {
    walk(top, &mut |path| {
        let seconds = fs::symlink_metadata(path)?.mtime();
        set_time(path, if seconds >= started { stamp } else { seconds }, nanoseconds)
    })
}
