//! Builds every case of the corpus with slipway and compares with BuildKit's recorded answer.
//!
//! One trial per case and mode, named `MODE::CASE`, so `cargo test -p tests --test conformance -- copy-` runs some.
//! `fixtures/conformance/status.txt` lists what does not pass yet: a listed case that passes fails its trial, as does an
//! unlisted one that does not.
//!
//! | Variable | Meaning |
//! |---|---|
//! | `CONFORMANCE_MODES` | comma-separated: `root-overlay`, `root-directory`, `user-overlay`, `user-directory`, `single-auto`, `user-traced`, `root-traced`; `E4`, `E5`, `E6` for containers confined like pods |
//! | `CONFORMANCE_RESULTS` | file for the results as JSON, with all differences |
//! | `CONFORMANCE_PYTHON` | `1`: ask the corpus' own comparer too, and fail where it disagrees |
//! | `CONFORMANCE_BUILDER` | another builder's command line, in the words of `run.py`; the list is then not consulted |
//! | `CONFORMANCE_KEEP` | a directory for inputs, results and outputs of the builder, which then stay |

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::json;
use tests::conformance::{Case, Comparer, Expect, FileServer, Golden, Level, Mode, Prepared, Status, all_cases};
use tests::pods::{Kind, Pod, SLIPWAY};
use tests::registry::Registry;
use tests::{process, slipway, user};

/// How long one build may take, on a machine that is busy with others.
const LIMIT: Duration = Duration::from_secs(180);

/// How many lines of a failing builder's output are shown.
const TAIL: usize = 12;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a test harness reports to the terminal")]
fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let modes = match modes() {
        Ok(modes) => modes,
        Err(error) => {
            eprintln!("CONFORMANCE_MODES: {error}");
            return ExitCode::FAILURE;
        }
    };
    if user::is_root() && modes[0].user != "root" && modes[0].trees != "pod" {
        let name = if modes[0].user == "single" { user::single_id_user() } else { user::test_user() };
        let Some(name) = name else {
            println!("skipped: a user for tests is missing; scripts/setup makes it");
            return ExitCode::SUCCESS;
        };
        return match user::run_again_as(&name) {
            Ok(status) if status.success() => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("cannot run as {name}: {error}");
                ExitCode::FAILURE
            }
        };
    }
    // Modes of copied files must not depend on who calls.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let (in_pods, mut modes): (Vec<Mode>, Vec<Mode>) = modes.into_iter().partition(|mode| mode.trees == "pod");
    match Pod::possible() {
        Ok(()) => modes.extend(in_pods),
        Err(reason) if !in_pods.is_empty() => println!("skipped: builds in containers: {reason}"),
        Err(_) => {}
    }
    let (bench, trials) = match prepare(&modes, arguments.list) {
        Ok(ready) => ready,
        Err(error) => {
            eprintln!("cannot prepare: {error}");
            return ExitCode::FAILURE;
        }
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!("{}", bench.summary(&modes));
        let (passed, failed, skipped) = (conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored);
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
    conclusion.exit_code()
}

fn modes() -> Result<Vec<Mode>, String> {
    let default = if user::is_root() { "root-overlay" } else { "user-overlay" };
    let text = std::env::var("CONFORMANCE_MODES").unwrap_or_else(|_| default.to_owned());
    let modes: Vec<Mode> = text.split(',').map(|mode| mode.trim().parse()).collect::<Result<_, _>>()?;
    let who = |mode: &Mode| if mode.trees == "pod" { "root".to_owned() } else { mode.user.clone() };
    if modes.iter().any(|mode| who(mode) != who(&modes[0])) {
        return Err("modes of root and of a user need a call each".to_owned());
    }
    if !user::is_root() && who(&modes[0]) == "root" {
        return Err("only root can run the modes of root".to_owned());
    }
    Ok(modes)
}

/// Everything that the trials share.
struct Bench {
    corpus: PathBuf,
    work: PathBuf,
    builder: Builder,
    comparer: Comparer,
    bases: PathBuf,
    status: Option<Status>,
    server: FileServer,
    /// The recorded URLs hold the case's name, so two modes must not serve the same case at once.
    serving: Mutex<()>,
    python: bool,
    keep: bool,
    results: Mutex<BTreeMap<String, Outcomes>>,
    registry: Registry,
    pods: BTreeMap<String, Pod>,
    _temporary: Option<tempfile::TempDir>,
}

/// What each case reached, and what differs.
type Outcomes = BTreeMap<String, (Level, Vec<String>)>;

enum Builder {
    Slipway { binary: PathBuf },
    Template(Vec<String>),
}

fn prepare(modes: &[Mode], list: bool) -> Result<(Arc<Bench>, Vec<Trial>), String> {
    let text = |error: io::Error| error.to_string();
    let corpus = slipway::project().join("fixtures/conformance").canonicalize().map_err(text)?;
    let cases = all_cases(&corpus).map_err(text)?;
    let status = Status::read(&corpus.join("status.txt")).map_err(text)?;
    if let Some(name) = status.names().find(|name| !cases.iter().any(|case| case.name == *name)) {
        return Err(format!("status.txt: there is no case `{name}`"));
    }
    let keep = std::env::var_os("CONFORMANCE_KEEP").map(PathBuf::from);
    let temporary = match keep {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("conformance-").tempdir().map_err(text)?),
    };
    let work = keep.clone().or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned())).unwrap_or_default();
    let bases = work.join("bases");
    let registry = Registry::start(&work.join("registry"))
        .map_err(text)?
        .ok_or("`docker-registry` is not installed; scripts/setup installs it")?;
    if !list {
        for (script, argument) in [("make-bases.sh", None), ("push-bases.sh", Some(registry.address()))] {
            let mut command = Command::new("sh");
            command.arg(corpus.join(script)).arg(&bases).args(argument);
            process::output(&mut command, LIMIT)?;
        }
    }
    let builder = match std::env::var("CONFORMANCE_BUILDER") {
        Ok(template) => Builder::Template(template.split_whitespace().map(str::to_owned).collect()),
        Err(_) => Builder::Slipway { binary: slipway::binary()? },
    };
    let mut pods = BTreeMap::new();
    for kind in Kind::ALL.into_iter().filter(|kind| !list && modes.iter().any(|mode| mode.user == kind.name())) {
        pods.insert(kind.name().to_owned(), Pod::start(kind, &work, false)?);
    }
    let bench = Arc::new(Bench {
        status: matches!(builder, Builder::Slipway { .. }).then_some(status),
        comparer: if list { Comparer::default() } else { Comparer::new(&bases).map_err(|e| e.to_string())? },
        server: FileServer::start().map_err(|error| format!("the cases' HTTP server: {error}"))?,
        serving: Mutex::default(),
        python: std::env::var_os("CONFORMANCE_PYTHON").is_some(),
        keep: keep.is_some(),
        results: Mutex::default(),
        registry,
        pods,
        _temporary: temporary,
        corpus,
        work,
        bases,
        builder,
    });
    let mut trials = Vec::new();
    for mode in modes {
        for case in &cases {
            let (bench, mode, case) = (Arc::clone(&bench), mode.clone(), case.clone());
            trials.push(Trial::ignorable_test(format!("{mode}::{}", case.name), move || bench.trial(&mode, &case)));
        }
    }
    Ok((bench, trials))
}

impl Bench {
    fn trial(&self, mode: &Mode, case: &Case) -> Result<Completion, Failed> {
        let work = self.work.join(mode.to_string()).join(&case.name);
        let outcome = self.reached(mode, case, &work);
        if !self.keep {
            // What a RUN left under another id is removed with the whole work directory, if at all.
            _ = fs::remove_dir_all(&work);
        }
        let (level, differences) = outcome?;
        self.results
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(mode.to_string())
            .or_default()
            .insert(case.name.clone(), (level, differences.clone()));
        let (expected, reason) = match &self.status {
            Some(status) => status.expected(&case.name, mode),
            None => (Level::Everything, ""),
        };
        if level < expected {
            return Err(differences.join("\n").into());
        }
        if level > expected {
            return Err(format!("status.txt expects less than it does now; take out or change: {reason}").into());
        }
        match level {
            Level::Everything => Ok(Completion::Completed),
            // The outcome is the same, and what differs is meant to.
            Level::Image if reason.starts_with("deliberate: ") => Ok(Completion::Completed),
            Level::Image | Level::Nothing => Ok(Completion::ignored_with(format!("not yet: {reason}"))),
        }
    }

    /// Builds one case; how much of it agrees, and what does not.
    fn reached(&self, mode: &Mode, case: &Case, work: &Path) -> Result<(Level, Vec<String>), String> {
        let golden = case.golden(&self.corpus).map_err(|error| error.to_string())?;
        _ = fs::remove_dir_all(work);
        let prepared = Prepared::new(&self.corpus, case, work).map_err(|error| format!("preparation: {error}"))?;
        let _turn = case.http.then(|| self.serving.lock().unwrap_or_else(PoisonError::into_inner));
        if case.http {
            self.server.add(&case.name, &prepared.http);
        }
        let mut command = match self.pods.get(&mode.user) {
            Some(pod) => {
                pod.give(work)?;
                let environment: Vec<_> =
                    case.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                let mut command = pod.command(SLIPWAY, &environment);
                command.args(self.arguments(mode, case, &prepared));
                command
            }
            None => self.command(mode, case, &prepared),
        };
        command.envs(&case.env);
        let ended = process::run(&mut command, LIMIT).map_err(|error| error.to_string())?;
        let output = ended.text();
        if self.keep {
            fs::write(work.join("output"), &output).map_err(|error| error.to_string())?;
        }
        let code = ended.status.and_then(|status| status.code());
        // 101 is a panic: whatever the case asks for, that is not it.
        let sound = matches!(code, Some(code) if code != 101);
        let not_yet = output.contains("not supported yet");
        match golden {
            Golden::Failure { lines, stderr_tail } => {
                debug_assert_eq!(case.expect, Expect::Error, "{}", case.name);
                if ended.success() {
                    return Ok((Level::Nothing, vec![format!("the build succeeded, it should say: {stderr_tail}")]));
                }
                if !sound || not_yet {
                    return Ok((Level::Nothing, failure(&ended)));
                }
                let mut missing: Vec<String> = case
                    .error_contains
                    .iter()
                    .filter(|fragment| !output.contains(*fragment))
                    .map(|fragment| format!("error text lacks {fragment:?}"))
                    .collect();
                let marked = marked_lines(&output);
                // The order says nothing, and where BuildKit points nowhere pointing somewhere is no difference.
                let same = |lines: &[usize]| lines.iter().copied().collect::<BTreeSet<_>>();
                if !lines.is_empty() && same(&marked) != same(&lines) && self.status.is_some() {
                    missing.push(format!("marks lines {marked:?} of the Dockerfile, not {lines:?}"));
                }
                if missing.is_empty() {
                    return Ok((Level::Everything, missing));
                }
                missing.extend(failure(&ended));
                Ok((Level::Image, missing))
            }
            Golden::Image(_) if !ended.success() => Ok((Level::Nothing, failure(&ended))),
            Golden::Image(golden) => {
                let differences = match self.comparer.compare(&prepared.out, &golden, &case.mtime) {
                    Ok(differences) => differences,
                    Err(error) => return Ok((Level::Nothing, vec![format!("cannot read the result: {error}")])),
                };
                if self.python {
                    self.ask_python(case, &prepared.out, differences.image.is_empty(), &[])?;
                    let all = [&differences.image, &differences.layers, &differences.history];
                    let same = all.iter().all(|part| part.is_empty());
                    self.ask_python(case, &prepared.out, same, &["--layers", "--history"])?;
                }
                let level = match &differences {
                    d if !d.image.is_empty() => Level::Nothing,
                    d if d.layers.is_empty() && d.history.is_empty() => Level::Everything,
                    _ => Level::Image,
                };
                Ok((level, [differences.image, differences.layers, differences.history].concat()))
            }
        }
    }

    /// Fails if the corpus' own comparer does not say the same.
    fn ask_python(&self, case: &Case, result: &Path, same: bool, options: &[&str]) -> Result<(), String> {
        let mut command = Command::new("python3");
        command
            .arg(self.corpus.join("compare.py"))
            .arg(result)
            .arg(self.corpus.join("golden").join(&case.name).with_extension("json"))
            .arg("--base-layout")
            .arg(&self.bases)
            .args(options);
        let ended = process::run(&mut command, LIMIT).map_err(|error| error.to_string())?;
        if ended.success() == same {
            return Ok(());
        }
        let ours = if same { "no difference" } else { "differences" };
        Err(format!("this comparer finds {ours}, compare.py {options:?} says:\n{}", ended.text()))
    }

    fn command(&self, mode: &Mode, case: &Case, prepared: &Prepared) -> Command {
        match &self.builder {
            Builder::Slipway { binary } => {
                let mut command = Command::new(binary);
                let traced = mode.trees == "traced";
                command.args(self.arguments(mode, case, prepared));
                if mode.trees != "auto" {
                    command
                        .env("SLIPWAY_TREES", if traced { "directory" } else { &mode.trees })
                        .env("SLIPWAY_SANDBOX", if traced { "traced" } else { "namespaces" });
                }
                command
            }
            Builder::Template(words) => template(words, case, prepared, self.registry.address()),
        }
    }

    /// What slipway is called with.
    fn arguments(&self, mode: &Mode, case: &Case, prepared: &Prepared) -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["build", "--no-cache", "--progress", "plain", "--work-dir"].map(Into::into).into();
        arguments.push(self.work.join(format!("state-{mode}")).into());
        arguments.extend(["--registry-map".into(), format!("docker.io={}", self.registry.address()).into()]);
        arguments.extend(["--output".into(), format!("type=oci,tar=false,dest={}", prepared.out.display()).into()]);
        arguments.extend(["--file".into(), prepared.dockerfile.clone().into()]);
        arguments.extend(lists(case, prepared).into_values().flatten().map(Into::into));
        arguments.push(prepared.context.clone().into());
        arguments
    }

    /// How many cases agree, by mode; writes the results file if one is asked for.
    fn summary(&self, modes: &[Mode]) -> String {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = std::env::var_os("CONFORMANCE_RESULTS") {
            let shown: BTreeMap<_, BTreeMap<_, _>> = results
                .iter()
                .map(|(mode, cases)| {
                    let cases = cases.iter().map(|(name, (level, differences))| {
                        (name, json!({ "level": format!("{level:?}"), "differences": differences }))
                    });
                    (mode, cases.collect())
                })
                .collect();
            let text = serde_json::to_string_pretty(&shown).unwrap_or_default();
            if let Err(error) = fs::write(&path, text) {
                return format!("cannot write {}: {error}", path.display());
            }
        }
        let line = |mode: &Mode| {
            let count = |least: Level| {
                let cases = results.get(&mode.to_string());
                cases.map_or(0, |cases| cases.values().filter(|(level, _)| *level >= least).count())
            };
            let all = results.get(&mode.to_string()).map_or(0, BTreeMap::len);
            format!(
                "conformance {mode}: of {all} cases {} agree in config, final tree or outcome, {} of them in layers, history and \
                 error text too",
                count(Level::Image),
                count(Level::Everything)
            )
        };
        modes.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

fn failure(ended: &process::Ended) -> Vec<String> {
    let mut lines = vec![format!("the builder ended with {}:", ended.how())];
    lines.extend(ended.tail(TAIL).into_iter().map(|line| format!("    {line}")));
    lines
}

/// The Dockerfile lines that the excerpt of an error marks: `   3 | >>> RUN false`.
fn marked_lines(output: &str) -> Vec<usize> {
    output
        .lines()
        .filter_map(|line| {
            let (number, rest) = line.split_once(" | ")?;
            rest.starts_with(">>>").then(|| number.trim().parse().ok()).flatten()
        })
        .collect()
}

/// The parts of a command line that are there any number of times, by `run.py`'s name for them.
fn lists(case: &Case, prepared: &Prepared) -> BTreeMap<&'static str, Vec<String>> {
    let pairs = |flag: &str, pairs: &BTreeMap<String, String>| -> Vec<String> {
        pairs.iter().flat_map(|(key, value)| [flag.to_owned(), format!("{key}={value}")]).collect()
    };
    let one = |flag: &str, value: &str| -> Vec<String> {
        if value.is_empty() { Vec::new() } else { vec![flag.to_owned(), value.to_owned()] }
    };
    let secrets = prepared.secrets.iter().flat_map(|(id, from)| ["--secret".to_owned(), format!("id={id},{from}")]);
    BTreeMap::from([
        ("{build_args}", pairs("--build-arg", &case.build_args)),
        ("{labels}", pairs("--label", &case.labels)),
        ("{named_contexts}", pairs("--build-context", &prepared.named)),
        ("{secrets}", secrets.collect()),
        ("{target}", one("--target", &case.target)),
        ("{platform}", one("--platform", &case.platform)),
    ])
}

fn template(words: &[String], case: &Case, prepared: &Prepared, registry: &str) -> Command {
    let lists = lists(case, prepared);
    let mut line: Vec<String> = Vec::new();
    for word in words {
        match lists.get(word.as_str()) {
            Some(list) => line.extend(list.iter().cloned()),
            None => line.push(
                [
                    ("{context}", &prepared.context),
                    ("{dockerfile}", &prepared.dockerfile),
                    ("{out}", &prepared.out),
                    ("{work}", &prepared.work),
                ]
                .iter()
                .fold(word.clone(), |word, (name, path)| word.replace(name, &path.to_string_lossy()))
                .replace("{registry}", registry),
            ),
        }
    }
    let mut command = Command::new(line.first().map_or("", String::as_str));
    command.args(line.iter().skip(1));
    command
}
