//! `executor` and `warmer` as their callers know them: each flag with what it does and writes, from tables.
//!
//! The registry is the fake one of `fixtures`, whose log tells what was asked. Needs no network. At the end it is checked
//! that no flag of `--help` was left out of the tables.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fixtures::distribution::{self, Distribution, Setup};
use fixtures::image::{self, Entry, Image};
use fixtures::put::PutServer;
use fixtures::registry::{Auth, FakeRegistry};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};
use tests::process::{self, Ended};
use tests::slipway;

mod cached;
mod callers;
mod contexts;
mod flags;
mod outputs;
mod refused;
mod registries;
mod shown;
mod troubles;
mod warmed;

/// How long one program may take, on a machine that is busy with others.
const LIMIT: Duration = Duration::from_secs(120);

/// What most rows build.
const DOCKERFILE: &str = "FROM BASE AS first\nARG A=default\nENV GOT=$A\nLABEL from=dockerfile\nCOPY one /one\n\
                          FROM first AS second\nCOPY two /two\n";

/// One command line and what comes of it.
#[derive(Clone)]
struct Row {
    name: &'static str,
    /// `REGISTRY`, `DIR` and `BASE` are replaced.
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    dockerfile: &'static str,
    /// Whether context and destination are left to `arguments`.
    bare: bool,
    /// The registry wants user `tester` with password `secret`.
    login: bool,
    /// A second registry, `SECURE`, of this kind; `CA`, `CERT` and `KEY` are files for it.
    secure: Option<Setup>,
    /// There is an https server, `PUTS`, that takes files; its certificate is signed by `CA_FILE`.
    puts: bool,
    /// Not `executor`.
    program: &'static str,
    code: i32,
    /// What standard error says.
    says: &'static [&'static str],
    prepare: fn(&Case) -> Result<(), String>,
    check: fn(&Case, &Ended) -> Result<(), String>,
}

const ROW: Row = Row {
    name: "",
    arguments: &[],
    environment: &[],
    dockerfile: DOCKERFILE,
    bare: false,
    login: false,
    secure: None,
    puts: false,
    program: "executor",
    code: 0,
    says: &[],
    prepare: |_| Ok(()),
    check: |_, _| Ok(()),
};

/// What a row runs in.
struct Case {
    dir: tempfile::TempDir,
    registry: FakeRegistry,
    secure: Option<Distribution>,
    puts: Option<PutServer>,
    /// Whether `secure` wants a certificate of its clients.
    client_certificate: bool,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a test harness reports to the terminal")]
fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let binary = match slipway::binary() {
        Ok(binary) => binary,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let Some(busybox) = process::find("busybox") else {
        println!("skipped: busybox is not installed");
        return ExitCode::SUCCESS;
    };
    let base = match fs::read(&busybox) {
        Ok(bytes) => Arc::new(busybox_image(&bytes)),
        Err(error) => {
            eprintln!("{}: {error}", busybox.display());
            return ExitCode::FAILURE;
        }
    };
    let used: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let tables = [
        flags::ROWS,
        contexts::ROWS,
        outputs::ROWS,
        cached::ROWS,
        shown::ROWS,
        registries::ROWS,
        refused::ROWS,
        troubles::ROWS,
        callers::ROWS,
        warmed::ROWS,
    ];
    let whole = arguments.filter.is_none() && !arguments.list;
    let mut trials: Vec<Trial> = Vec::new();
    for row in tables.into_iter().flatten() {
        let (binary, base, used) = (binary.clone(), Arc::clone(&base), Arc::clone(&used));
        trials.push(Trial::ignorable_test(row.name, move || match run(row, &binary, &base, &used) {
            Ok(None) => Ok(Completion::Completed),
            Ok(Some(reason)) => Ok(Completion::ignored_with(format!("skipped: {reason}"))),
            Err(error) => Err(Failed::from(error)),
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut code = conclusion.exit_code();
    if whole && let Err(error) = all_flags_are_used(&binary, &used) {
        eprintln!("{error}");
        code = ExitCode::FAILURE;
    }
    if !arguments.list {
        let (passed, failed, skipped) = (conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored);
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
    code
}

/// How a row ends: `Err` is a failure; `Ok(Some(reason))` a row that cannot run here.
type Outcome = Result<Option<String>, String>;

/// Runs one row.
fn run(row: &Row, binary: &Path, base: &Image, used: &Mutex<BTreeSet<String>>) -> Outcome {
    let dir = tempfile::Builder::new().prefix("slipway-kaniko-").tempdir().map_err(|error| error.to_string())?;
    let auth = if row.login { Auth::tokens("tester", "secret") } else { Auth::None };
    let registry = FakeRegistry::with_auth(auth);
    registry.put_image("base", "latest", base);
    let secure = match row.secure {
        None => None,
        Some(setup) => match Distribution::with(setup).map_err(|error| error.to_string())? {
            None => return Ok(Some("docker-registry is not installed".to_owned())),
            running => running,
        },
    };
    let puts = match row.puts {
        false => None,
        true => match PutServer::start().map_err(|error| error.to_string())? {
            None => return Ok(Some("python3 is not installed".to_owned())),
            running => running,
        },
    };
    let client_certificate = row.secure.is_some_and(|setup| setup.client_certificate);
    let case = Case { dir, registry, secure, puts, client_certificate };
    case.write("context/Dockerfile", case.filled(row.dockerfile))?;
    case.write("context/one", "1")?;
    case.write("context/two", "2")?;
    std::os::unix::fs::symlink(binary, case.path("executor")).map_err(|error| error.to_string())?;
    std::os::unix::fs::symlink(binary, case.path("warmer")).map_err(|error| error.to_string())?;
    (row.prepare)(&case)?;
    let mut arguments = Vec::new();
    if !row.bare {
        arguments.extend(["--context".to_owned(), "DIR/context".to_owned()]);
        arguments.extend(["--destination".to_owned(), "REGISTRY/out:1".to_owned()]);
    }
    arguments.extend(row.arguments.iter().map(|argument| (*argument).to_owned()));
    let arguments: Vec<String> = arguments.iter().map(|argument| case.filled(argument)).collect();
    {
        let mut used = used.lock().map_err(|error| error.to_string())?;
        let names = row.arguments.iter().filter_map(|argument| argument.strip_prefix("--"));
        let names = names.map(|name| name.split('=').next().unwrap_or(name));
        used.extend(names.map(|name| format!("{} {name}", program_of(row))));
    }
    let ended = case.run(row.program, &arguments, row.environment)?;
    let shown = || format!("{} {}\n{}", row.program, arguments.join(" "), ended.text());
    if ended.status.and_then(|status| status.code()) != Some(row.code) {
        return Err(format!("{}, expected exit code {}\n{}", ended.how(), row.code, shown()));
    }
    let stderr = plain(&ended.stderr);
    for text in row.says {
        let text = case.filled(text);
        if !stderr.contains(&text) {
            return Err(format!("standard error lacks {text:?}\n{}", shown()));
        }
    }
    (row.check)(&case, &ended).map_err(|error| format!("{error}\n{}", shown()))?;
    Ok(None)
}

/// `executor`, `executor push`, `executor login` or `warmer`.
fn program_of(row: &Row) -> String {
    match row.arguments.iter().find(|argument| matches!(**argument, "push" | "login")) {
        Some(command) if row.program == "executor" => format!("executor {command}"),
        _ => row.program.to_owned(),
    }
}

/// Fails for flags that `--help` shows and that no row gives.
fn all_flags_are_used(binary: &Path, used: &Mutex<BTreeSet<String>>) -> Result<(), String> {
    let used = used.lock().map_err(|error| error.to_string())?;
    let mut missing = Vec::new();
    for program in ["executor", "executor push", "executor login", "warmer"] {
        let mut command = Command::new(binary);
        command.args(program.split(' ')).arg("--help");
        let help = process::output(&mut command, LIMIT)?;
        let names = help.lines().filter(|line| line.starts_with("  -") || line.starts_with("      --"));
        for line in names {
            let name = line.split_whitespace().find_map(|word| word.strip_prefix("--")).unwrap_or_default();
            let common = matches!(name, "help" | "verbosity" | "log-format" | "log-timestamp");
            let there = used.contains(&format!("{program} {name}"))
                || common && used.contains(&format!("executor {name}"))
                // The flags about pulling are read in one place for all.
                || program != "executor" && !common && used.contains(&format!("executor {name}"));
            if !there && name != "help" {
                missing.push(format!("{program} --{name}"));
            }
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("no row gives these flags: {}", missing.join(", "))) }
}

/// busybox with every applet that the Dockerfiles use.
fn busybox_image(busybox: &[u8]) -> Image {
    let applets = ["sh", "cat", "cp", "echo", "sleep", "ls", "rm", "mkdir", "touch", "test", "kill"];
    let links: Vec<String> = applets.iter().map(|applet| format!("bin/{applet}")).collect();
    let mut entries = vec![Entry::Directory("bin"), Entry::Directory("tmp"), Entry::Directory("etc")];
    entries.push(Entry::File("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n"));
    entries.push(Entry::File("etc/group", b"root:x:0:\n"));
    entries.push(Entry::Program("bin/busybox", busybox));
    entries.extend(links.iter().map(|link| Entry::Symlink(link, "busybox")));
    let architecture = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
    Image::new(architecture, vec![image::tree_layer(&entries)], json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]}))
}

/// Text without colours.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::new();
    let mut rest = text.as_ref();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    plain + rest
}

impl Case {
    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The name of a repository in the registry, or of a tag in it.
    fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.registry.host())
    }

    fn filled(&self, text: &str) -> String {
        let file = |name| distribution::tls(name).display().to_string();
        let secure = self.secure.as_ref().map(Distribution::host).unwrap_or_default();
        text.replace("REGISTRY", &self.registry.host())
            .replace("SECURE=CERT,KEY", &format!("{secure}={},{}", file("client.pem"), file("client.key")))
            .replace("SECURE=CA", &format!("{secure}={}", file("ca.pem")))
            .replace("SECURE", secure)
            .replace("PUTS", &self.puts.as_ref().map(PutServer::url).unwrap_or_default())
            .replace("CA_FILE", &file("ca.pem"))
            .replace("DIR", &self.dir.path().display().to_string())
            .replace("BASE", &self.name("base"))
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<(), String> {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(|error| error.to_string())?;
        fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn read(&self, name: &str) -> Result<String, String> {
        fs::read_to_string(self.path(name)).map_err(|error| format!("{name}: {error}"))
    }

    /// Runs `program` in the case's directory with a work directory there.
    fn run(&self, program: &str, arguments: &[String], environment: &[(&str, &str)]) -> Result<Ended, String> {
        let mut command = Command::new(self.path(program));
        command.args(arguments).current_dir(self.dir.path()).env("KANIKO_DIR", self.path("kaniko"));
        // Whoever runs the tests may be logged in somewhere.
        command.env("DOCKER_CONFIG", self.path("docker")).env_remove("REGISTRY_AUTH_FILE");
        for (name, value) in environment {
            command.env(name, self.filled(value));
        }
        process::run(&mut command, LIMIT).map_err(|error| error.to_string())
    }

    /// Manifest under a name such as `out:1`.
    fn manifest(&self, name: &str) -> Result<Value, String> {
        let (repository, tag) = name.split_once(':').ok_or("a name has a tag")?;
        let (_, bytes) = self.registry.manifest(repository, tag).ok_or_else(|| format!("{name} was not pushed"))?;
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())
    }

    fn digest(&self, name: &str) -> Result<String, String> {
        let (repository, tag) = name.split_once(':').ok_or("a name has a tag")?;
        let (_, bytes) = self.registry.manifest(repository, tag).ok_or_else(|| format!("{name} was not pushed"))?;
        Ok(image::digest(&bytes))
    }

    /// Config under a name such as `out:1`.
    fn config(&self, name: &str) -> Result<Value, String> {
        let manifest = self.manifest(name)?;
        let digest = manifest["config"]["digest"].as_str().ok_or("the manifest names no config")?;
        let repository = name.split(':').next().unwrap_or(name);
        let bytes = self.registry.blob(repository, digest).ok_or("the config was not pushed")?;
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())
    }

    /// Names in the layers of an image, one list a layer.
    fn files(&self, name: &str) -> Result<Vec<Vec<String>>, String> {
        let manifest = self.manifest(name)?;
        let repository = name.split(':').next().unwrap_or(name);
        let layers = manifest["layers"].as_array().ok_or("the manifest has no layers")?;
        layers
            .iter()
            .map(|layer| {
                let digest = layer["digest"].as_str().ok_or("a layer has no digest")?;
                let blob = self.registry.blob(repository, digest).ok_or_else(|| format!("{digest} was not pushed"))?;
                let mut tar = Vec::new();
                if layer["mediaType"].as_str().is_some_and(|kind| kind.contains("zstd")) {
                    tar = zstd::decode_all(&blob[..]).map_err(|error| error.to_string())?;
                } else {
                    flate2::read::MultiGzDecoder::new(&blob[..])
                        .read_to_end(&mut tar)
                        .map_err(|error| error.to_string())?;
                }
                names(&tar)
            })
            .collect()
    }
}

/// Names of a tar's entries.
fn names(tar: &[u8]) -> Result<Vec<String>, String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().map_err(|error| error.to_string())?;
    entries
        .map(|entry| Ok(entry?.path()?.display().to_string()))
        .collect::<std::io::Result<_>>()
        .map_err(|error| error.to_string())
}

/// Fails with both values unless they are equal.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, actual: T, expected: T) -> Result<(), String> {
    if actual == expected { Ok(()) } else { Err(format!("{what}: {actual:?}, expected {expected:?}")) }
}

/// Fails unless `condition` holds.
fn that(what: &str, condition: bool) -> Result<(), String> {
    if condition { Ok(()) } else { Err(format!("not so: {what}")) }
}

fn pushed(case: &Case, _: &Ended) -> Result<(), String> {
    case.manifest("out:1").map(drop)
}
