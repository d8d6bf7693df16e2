//! Flags and surroundings → what a build is asked for. One function, [`build`], and nothing after it reads the
//! environment, the current directory or the terminal.

mod ambient;
mod error;
mod inputs;
mod registries;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

pub use ambient::Ambient;
pub use error::UsageError;
pub use inputs::{fetched_dockerfile, web_url};
pub use registries::{Registries, credentials};

use builder_core::exec::{BuildRequest, Directories, NoCache, SecretValue};
use builder_core::limits::Limits;
use builder_core::oci::{Platform, Reference};
use builder_core::output::{Exporter, Target};
use builder_core::plan::{NetworkMode, PlanOptions, RunDefaults};
use builder_core::registry::RegistryOptions;
use builder_core::rootfs::TreeMode;
use builder_core::sandbox::{Environment, Tier, Wish};

use crate::flags::{BuildFlags, Progress, RegistryFlags, Sandbox, StateFlags, Trees, Unpack};
use values::{bytes, host, name_values, ulimits};

/// What `slipway build` is asked for: the build itself, and what the command does beside it.
#[derive(Debug)]
pub struct Build {
    /// For the library.
    pub request: BuildRequest,
    /// What happens with it.
    pub mode: BuildMode,
    /// What is found is told as JSON, not as text.
    pub json: bool,
    /// Findings of a check do not make it fail.
    pub ignore_findings: bool,
    /// Where the digest of the config goes.
    pub iidfile: Option<PathBuf>,
    /// Where docker's metadata goes.
    pub metadata_file: Option<PathBuf>,
    /// Where the report goes.
    pub report: Option<PathBuf>,
    /// Where the trace goes.
    pub report_trace: Option<PathBuf>,
    /// How progress is shown.
    pub shown: Shown,
}

/// `--call`, `--check`, `--plan` or none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildMode {
    /// Build.
    Build,
    /// Lint only.
    Check,
    /// Plan only.
    Plan,
    /// Tell what the target can be given.
    Outline,
    /// Tell which targets there are.
    Targets,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Not at all.
    Quiet,
    /// Live; whether with colours.
    Tty {
        /// Colours.
        colour: bool,
    },
    /// Lines.
    Plain,
    /// JSON lines.
    Json,
}

/// Where state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The work directory.
    pub work_dir: PathBuf,
    /// How trees are kept; `None` probes.
    pub tree_mode: Option<TreeMode>,
    /// How commands shall be confined.
    pub wish: Wish,
}

/// Reads the flags of `slipway build`; `environment` is what this process may do.
///
/// # Errors
/// [`UsageError`]
pub fn build(flags: &BuildFlags, ambient: &Ambient, environment: Environment) -> Result<Build, UsageError> {
    refuse_what_comes_later(flags)?;
    let context = inputs::context(&flags.context, ambient)?;
    inputs::one_reads_standard_input(flags)?;
    let tags: Vec<Reference> = flags.tag.iter().map(|name| tag(name)).collect::<Result<_, _>>()?;
    let state = state(&flags.state, ambient)?;
    let mut registries = registries(&flags.registries, ambient)?;
    let sub_path = flags.context_sub_path.as_deref();
    let dockerfile = inputs::dockerfile(flags.file.as_deref(), &context, sub_path, &registries.client, ambient)?;
    let cache = inputs::cache(flags, &mut registries, ambient)?;
    let secrets = inputs::secrets(&flags.secret, ambient)?;
    let secrets = secrets
        .into_iter()
        .map(|(id, source)| Ok((id, SecretValue::new(source.read(ambient)?))))
        .collect::<Result<BTreeMap<_, _>, UsageError>>()?;
    let request = BuildRequest {
        outputs: outputs(flags, ambient, &tags)?,
        plan: plan_options(flags, ambient)?,
        dockerfile,
        context,
        context_sub_path: flags.context_sub_path.clone(),
        git: inputs::git(&flags.git)?,
        platforms: platforms(&flags.platform)?,
        tags,
        tree_mode: state.tree_mode,
        directories: match flags.unpack {
            Unpack::Auto => Directories::WhenNeeded,
            Unpack::Always => Directories::Always,
        },
        client: registries.client,
        registry: RegistryOptions { upload_chunk_bytes: max_chunk(flags)?, ..registries.registry },
        credentials: registries.credentials,
        limits: limits(flags)?,
        keep_layers: flags.keep_layers,
        no_cache: match (flags.no_cache, flags.no_cache_filter.as_slice()) {
            (true, _) => NoCache::All,
            (false, []) => NoCache::Off,
            (false, stages) => NoCache::Stages(stages.to_vec()),
        },
        cache,
        secrets,
        ssh: inputs::ssh(&flags.ssh, ambient)?,
        annotations: inputs::annotations(&flags.annotation)?,
        ..BuildRequest::new(&ambient.cwd, state.work_dir, environment)
    };
    let call = call(flags)?;
    let shown = shown(flags, ambient);
    Ok(Build {
        request,
        mode: call.mode,
        json: call.json.unwrap_or(shown == Shown::Json),
        ignore_findings: call.ignore_findings,
        iidfile: flags.iidfile.as_ref().map(|path| ambient.cwd.join(path)),
        metadata_file: flags.metadata_file.as_ref().map(|path| ambient.cwd.join(path)),
        report: flags.report.as_ref().map(|path| ambient.cwd.join(path)),
        report_trace: flags.report_trace.as_ref().map(|path| ambient.cwd.join(path)),
        shown,
    })
}

/// What is done instead of a build, and how it is told; `json` is `None` where `--progress` decides.
struct Call {
    mode: BuildMode,
    json: Option<bool>,
    ignore_findings: bool,
}

/// Reads `--call`, in docker's form, with `--check` and `--plan`, which exclude it.
fn call(flags: &BuildFlags) -> Result<Call, UsageError> {
    let mode = match (flags.check, flags.plan) {
        (true, _) => BuildMode::Check,
        (_, true) => BuildMode::Plan,
        _ => BuildMode::Build,
    };
    let mut call = Call { mode, json: None, ignore_findings: false };
    let Some(text) = &flags.call else { return Ok(call) };
    let invalid = |reason: &str| UsageError::value("--call", text, reason);
    let mut method = None;
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("format", "json")) => call.json = Some(true),
            Some(("format", "text" | "")) => call.json = Some(false),
            Some(("format", _)) => return Err(invalid("the formats are text and json")),
            Some(("ignorestatus", value)) => {
                call.ignore_findings = value.parse().map_err(|_| invalid("ignorestatus is true or false"))?;
            }
            Some(_) => return Err(invalid("the keys are format and ignorestatus")),
            None if method.is_some() => return Err(invalid("it names more than one method")),
            None => {
                method = Some(match field {
                    "build" | "" => BuildMode::Build,
                    "check" | "lint" => BuildMode::Check,
                    "outline" => BuildMode::Outline,
                    "targets" => BuildMode::Targets,
                    _ => return Err(invalid("the methods are build, check, outline and targets")),
                });
            }
        }
    }
    call.mode = method.unwrap_or(mode);
    Ok(call)
}

fn tag(text: &str) -> Result<Reference, UsageError> {
    let reference: Reference = text.parse().map_err(|error| UsageError::value("--tag", text, error))?;
    if reference.digest().is_some() {
        return Err(UsageError::value("--tag", text, "a result is named by a tag, not by a digest"));
    }
    Ok(reference)
}

/// Flags that have a place already and an implementation later: an error, so that nobody relies on what does not happen.
fn refuse_what_comes_later(flags: &BuildFlags) -> Result<(), UsageError> {
    let given = [
        (flags.provenance.as_deref().is_some_and(|value| value != "false"), "--provenance other than `false`"),
        (flags.sbom.as_deref().is_some_and(|value| value != "false"), "--sbom other than `false`"),
    ];
    match given.iter().find(|(given, _)| *given) {
        Some((_, flag)) => Err(UsageError::not_yet(*flag)),
        None => Ok(()),
    }
}

/// Reads `--work-dir`, `--trees` and `--sandbox`.
///
/// # Errors
/// If no work directory is named and there is no home.
pub fn state(flags: &StateFlags, ambient: &Ambient) -> Result<State, UsageError> {
    let work_dir = match &flags.work_dir {
        Some(dir) if dir.as_os_str().is_empty() => {
            return Err(UsageError::value("--work-dir", "", "the name of a directory is missing"));
        }
        Some(dir) => ambient.cwd.join(dir),
        None => ambient.default_work_dir()?,
    };
    let tier = match flags.sandbox {
        Sandbox::Auto => None,
        Sandbox::Namespaces => Some(Tier::Namespaces),
        Sandbox::Chroot => Some(Tier::Chroot),
        Sandbox::Traced => Some(Tier::Traced),
    };
    Ok(State {
        wish: Wish { tier, work_dir: Some(work_dir.clone()) },
        work_dir,
        tree_mode: match flags.trees {
            Trees::Auto => None,
            Trees::Overlay => Some(TreeMode::Overlay),
            Trees::Directory => Some(TreeMode::Directory),
        },
    })
}

/// Reads everything about registries.
///
/// # Errors
/// If a map is malformed or a certificate cannot be read.
pub fn registries(flags: &RegistryFlags, ambient: &Ambient) -> Result<Registries, UsageError> {
    registries::read(flags, ambient)
}

/// Reads platforms.
///
/// # Errors
/// If one is malformed.
pub fn platforms(texts: &[String]) -> Result<Vec<Platform>, UsageError> {
    let mut platforms: Vec<Platform> = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        let platform = match text.as_str() {
            "local" => Platform::host(),
            text => text.parse().map_err(|error| UsageError::value("--platform", text, error))?,
        };
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// Gives the process's pool of threads as many as `limits` says, and its heap as many arenas as are used at a time.
pub fn size_process(limits: &Limits) {
    builder_core::sandbox::bound_heap(limits.cpu_threads.saturating_add(1));
    // Fails if the pool is there already, which no command that builds allows to happen; its size changes no result.
    _ = rayon::ThreadPoolBuilder::new().num_threads(limits.cpu_threads.get()).build_global();
}

fn limits(flags: &BuildFlags) -> Result<Limits, UsageError> {
    let mut limits = Limits::default();
    if let Some(jobs) = flags.jobs {
        limits = Limits { cpu_threads: jobs, connections: jobs, steps: jobs, ..limits };
    }
    limits.disk_bytes = flags.max_disk.as_deref().map(|text| bytes("--max-disk", text)).transpose()?;
    if let Some(text) = flags.max_memory.as_deref() {
        let memory = bytes("--max-memory", text)?;
        if memory < Limits::LEAST_MEMORY_BYTES {
            let least = Limits::LEAST_MEMORY_BYTES >> 20;
            return Err(UsageError::value("--max-memory", text, format!("a build needs at least {least}m")));
        }
        limits.memory_bytes = Some(memory);
    }
    Ok(limits.fitted())
}

/// Smallest body that uploads may be cut into, in bytes: registries refuse smaller pieces.
const LEAST_CHUNK_BYTES: u64 = 64 << 10;

fn max_chunk(flags: &BuildFlags) -> Result<Option<u64>, UsageError> {
    let Some(text) = flags.max_chunk.as_deref() else { return Ok(None) };
    match bytes("--max-chunk", text)? {
        size if size < LEAST_CHUNK_BYTES => {
            Err(UsageError::value("--max-chunk", text, "registries take no pieces smaller than 64k"))
        }
        size => Ok(Some(size)),
    }
}

fn plan_options(flags: &BuildFlags, ambient: &Ambient) -> Result<PlanOptions, UsageError> {
    let mut build_args = BTreeMap::new();
    for text in &flags.build_arg {
        match text.split_once('=') {
            Some(("", _)) => return Err(UsageError::value("--build-arg", text, "the name before `=` is missing")),
            Some((name, value)) => _ = build_args.insert(name.to_owned(), value.to_owned()),
            // As docker: a name that the environment does not have is no argument at all; an empty value is one.
            None => _ = ambient.given(text).map(|value| build_args.insert(text.clone(), value.to_owned())),
        }
    }
    if let Some(epoch) = ambient.text("SOURCE_DATE_EPOCH") {
        build_args.entry("SOURCE_DATE_EPOCH".to_owned()).or_insert_with(|| epoch.to_owned());
    }
    Ok(PlanOptions {
        build_args,
        target: flags.target.clone(),
        labels: name_values("--label", &flags.label)?,
        named_contexts: inputs::named_contexts(&flags.build_context, ambient)?,
        run: RunDefaults {
            network: match flags.network.as_deref() {
                Some("host") => NetworkMode::Host,
                Some("none") => NetworkMode::None,
                _ => NetworkMode::Default,
            },
            extra_hosts: flags.add_host.iter().map(|text| host(text)).collect::<Result<_, _>>()?,
            // As docker: 0 is what there is without the flag.
            shm_size: flags
                .shm_size
                .as_deref()
                .map(|text| bytes("--shm-size", text))
                .transpose()?
                .filter(|size| *size > 0),
            ulimits: ulimits(&flags.ulimit)?,
            allow: allowed(&flags.allow)?,
            ..RunDefaults::default()
        },
        ..PlanOptions::default()
    })
}

fn allowed(texts: &[String]) -> Result<Vec<String>, UsageError> {
    let known = ["network.host", "security.insecure"];
    match texts.iter().find(|text| !known.contains(&text.as_str())) {
        Some(text) => Err(UsageError::value("--allow", text, format!("there are {}", known.join(" and ")))),
        None => Ok(texts.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect()),
    }
}

fn outputs(flags: &BuildFlags, ambient: &Ambient, tags: &[Reference]) -> Result<Vec<Target>, UsageError> {
    let read = if flags.push { Target::parse_beside_push } else { Target::parse };
    let mut outputs: Vec<Target> =
        flags.output.iter().map(|text| read(text, &ambient.cwd)).collect::<Result<_, _>>()?;
    let is_registry = |output: &Target| matches!(output.exporter, Exporter::Registry { .. });
    if flags.push && !outputs.iter().any(is_registry) {
        outputs.push(Target::push());
    }
    for output in &outputs {
        if is_registry(output) && output.names.is_empty() && tags.is_empty() {
            let what = if flags.push { "--push" } else { "--output type=registry" };
            return Err(UsageError::Needs { what, needed: "a name: --tag REF" });
        }
    }
    if outputs.iter().filter(|output| output.is_stdout()).count() > 1 {
        return Err(UsageError::Conflict { one: "an --output to standard output", other: "another one" });
    }
    if ambient.terminal_out && outputs.iter().any(Target::is_stdout) {
        return Err(UsageError::Needs {
            what: "--output",
            needed: "dest=FILE, or a pipe: an archive is not written to a terminal",
        });
    }
    Ok(outputs)
}

fn shown(flags: &BuildFlags, ambient: &Ambient) -> Shown {
    let tty = Shown::Tty { colour: ambient.colour() };
    match flags.progress {
        _ if flags.quiet => Shown::Quiet,
        Progress::Quiet => Shown::Quiet,
        Progress::Plain => Shown::Plain,
        Progress::Json => Shown::Json,
        Progress::Tty => tty,
        Progress::Auto if ambient.terminal && ambient.text("TERM") != Some("dumb") => tty,
        Progress::Auto => Shown::Plain,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser as _;

    use super::*;
    use crate::flags::{Cli, Command};

    fn ambient(variables: &[(&str, &str)]) -> Ambient {
        let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
        Ambient { environment: variables.collect(), cwd: std::env::temp_dir(), ..Ambient::default() }
    }

    fn read(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Build, UsageError> {
        let line = ["slipway", "build", "--work-dir=w"].iter().chain(arguments).copied();
        let Command::Build(flags) = Cli::try_parse_from(line).expect("a command line").command else {
            panic!("this is a build");
        };
        build(&flags, &ambient(variables), builder_core::sandbox::probe())
    }

    #[test]
    fn what_comes_later_is_an_error() {
        for arguments in [["--provenance=mode=max"].as_slice(), &["--sbom=true"]] {
            let error = read(arguments, &[]).expect_err("not there yet");
            assert!(error.to_string().starts_with("not supported yet: "), "{arguments:?}: {error}");
        }
        read(&["--provenance=false", "--sbom=false", "--pull"], &[]).expect("saying no to it is fine");
    }

    #[test]
    fn limits_are_read() {
        let limits = |arguments: &[&str]| read(arguments, &[]).map(|build| build.request.limits);
        assert_eq!(limits(&["--max-disk=10g"]).expect("fine").disk_bytes, Some(10 << 30));
        let small = limits(&["--max-memory=64m", "--jobs=100"]).expect("fine");
        assert_eq!((small.memory_bytes, small.cpu_threads.get(), small.steps.get()), (Some(64 << 20), 4, 100));
        let chunk = |text| read(&[text], &[]).map(|build| build.request.registry.upload_chunk_bytes);
        assert_eq!(chunk("--max-chunk=90m").expect("fine"), Some(90 << 20));
        assert!(chunk("--max-chunk=1k").is_err() && limits(&["--max-memory=1m"]).is_err());
    }

    #[test]
    fn calls_are_read_as_docker_reads_them() {
        let called =
            |text: &str| read(&["--call", text], &[]).map(|build| (build.mode, build.json, build.ignore_findings));
        for (text, expected) in [
            ("build", (BuildMode::Build, false, false)),
            ("check,format=json", (BuildMode::Check, true, false)),
            ("lint,ignorestatus=true", (BuildMode::Check, false, true)),
            ("format=json,outline", (BuildMode::Outline, true, false)),
            ("targets,format=text", (BuildMode::Targets, false, false)),
        ] {
            assert_eq!(called(text).expect(text), expected, "{text}");
        }
        for (text, reason) in [
            ("outlin", "the methods are"),
            ("outline,targets", "more than one"),
            ("outline,format=yaml", "the formats are"),
            ("check,ignorestatus=perhaps", "true or false"),
            ("check,x=y", "the keys are"),
        ] {
            let error = called(text).expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let json = read(&["--check", "--progress=json"], &[]).expect("fine").json;
        assert!(json && !read(&["--call=check,format=text", "--progress=json"], &[]).expect("fine").json);
    }

    #[test]
    fn a_push_needs_a_name() {
        assert!(matches!(read(&["--push"], &[]), Err(UsageError::Needs { what: "--push", .. })));
        assert!(matches!(read(&["-otype=registry"], &[]), Err(UsageError::Needs { .. })));
        let build = read(&["--push", "-t", "h:5000/x:1"], &[]).expect("named");
        assert_eq!(build.request.outputs.len(), 1);
        let build = read(&["--push", "-t", "h:5000/x:1", "-otype=registry"], &[]).expect("named");
        assert_eq!(build.request.outputs.len(), 1, "--push and type=registry are the same");
        let build = read(&["--push", "-t", "h:5000/x:1", "-otype=image,compression=zstd"], &[]).expect("named");
        assert_eq!(build.request.outputs.len(), 1, "--push is about the image that an output describes");
        assert!(read(&["-t", "h:5000/x:1", "-otype=image,compression=zstd"], &[]).is_err(), "there is no image store");
    }

    #[test]
    fn arguments_may_come_from_the_environment() {
        let build = read(&["--build-arg=A", "--build-arg=B", "--build-arg=C=", "--build-arg=D=1=2"], &[("A", "a")])
            .expect("fine");
        let expected = [("A", "a"), ("C", ""), ("D", "1=2")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(build.request.plan.build_args, BTreeMap::from(expected));
        let build = read(&["--build-arg=A"], &[("A", "")]).expect("fine");
        assert_eq!(build.request.plan.build_args.get("A").map(String::as_str), Some(""), "set, to nothing");
    }

    #[test]
    fn no_size_of_shared_memory_is_the_usual_one() {
        let size = |text: &str| read(&[text], &[]).expect("fine").request.plan.run.shm_size;
        assert_eq!((size("--shm-size=0"), size("--shm-size=1m")), (None, Some(1 << 20)));
    }

    #[test]
    fn archives_are_not_written_to_a_terminal() {
        let Command::Build(flags) =
            Cli::try_parse_from(["slipway", "build", "--work-dir=w", "-otype=tar"]).expect("a command line").command
        else {
            panic!("this is a build");
        };
        let built = |terminal_out| {
            let ambient = Ambient { terminal_out, ..ambient(&[]) };
            build(&flags, &ambient, builder_core::sandbox::probe())
        };
        assert!(built(false).expect("a pipe").request.outputs[0].is_stdout());
        assert!(matches!(built(true), Err(UsageError::Needs { what: "--output", .. })));
    }

    #[test]
    fn the_epoch_comes_from_the_environment_or_an_argument() {
        let epoch = |arguments: &[&str], variables: &[(&str, &str)]| {
            let build = read(arguments, variables).expect("fine");
            build.request.plan.build_args.get("SOURCE_DATE_EPOCH").cloned()
        };
        assert_eq!(epoch(&[], &[]), None);
        assert_eq!(epoch(&[], &[("SOURCE_DATE_EPOCH", "7")]).as_deref(), Some("7"));
        assert_eq!(epoch(&["--build-arg=SOURCE_DATE_EPOCH=8"], &[("SOURCE_DATE_EPOCH", "7")]).as_deref(), Some("8"));
        assert_eq!(epoch(&["--build-arg=SOURCE_DATE_EPOCH=context"], &[]).as_deref(), Some("context"));
    }

    #[test]
    fn standard_input_is_read_once() {
        for arguments in [
            ["-f-", "-"].as_slice(),
            &["--build-context=a=-", "--build-context=b=-"],
            &["--build-context=a=-", "-"],
            &["--build-context=a=-", "-f-"],
        ] {
            let error = read(arguments, &[]).expect_err("two want it");
            assert!(matches!(error, UsageError::Conflict { .. }), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn progress_follows_the_terminal() {
        let shown = |arguments: &[&str], terminal, variables: &[(&str, &str)]| {
            let Command::Build(flags) =
                Cli::try_parse_from(["slipway", "build"].iter().chain(arguments)).expect("a command line").command
            else {
                panic!("this is a build");
            };
            shown(&flags, &Ambient { terminal, ..ambient(variables) })
        };
        assert_eq!(shown(&[], false, &[]), Shown::Plain);
        assert_eq!(shown(&[], true, &[]), Shown::Tty { colour: true });
        assert_eq!(shown(&[], true, &[("NO_COLOR", "1")]), Shown::Tty { colour: false });
        assert_eq!(shown(&[], true, &[("TERM", "dumb")]), Shown::Plain);
        assert_eq!(shown(&["--progress=json"], true, &[]), Shown::Json);
        assert_eq!(shown(&["-q"], true, &[]), Shown::Quiet);
    }
}
