//! What a command line of `executor` asks for: Kaniko's flags and variables → the request that `slipway build` would make too,
//! and what happens beside it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use builder_core::cache::{CacheOptions, CachePlace, CacheRepository, CacheTarget};
use builder_core::cloud::{Bucket, CloudEnvironment};
use builder_core::context::{GitOptions, Repository};
use builder_core::dockerfile::decode;
use builder_core::exec::{BuildRequest, ContextSource, DockerfileSource, Fetched, NoCache};
use builder_core::http::{self, ClientOptions, Url};
use builder_core::layer::Compression;
use builder_core::oci::{Platform, Reference};
use builder_core::output::{Annotation, AnnotationLevel, Destination as To, Exporter, Target};
use builder_core::sandbox::Environment;
use builder_core::snapshot::Ignored;
use builder_core::source::Warmed;

use super::files::{Files, Place};
use super::flags;
use super::grammar::Parsed;
use super::names::{Destination, ReportAs};
use super::refusal::Refusal;
use super::registries;
use super::values;
use crate::flags::{BuildFlags, Cli, Command};
use crate::request::{self, Ambient};

/// Where Kaniko's image has its files, and where state is kept below if nothing else is said.
pub const KANIKO_DIR: &str = "/kaniko";

/// What `executor` is asked for.
#[derive(Debug)]
pub struct Task {
    /// The build.
    pub request: BuildRequest,
    /// Stages that are built besides, before the image, and go nowhere.
    pub other_targets: Vec<String>,
    /// Names that are pushed to.
    pub destinations: Vec<Destination>,
    /// How names are written out.
    pub report_as: ReportAs,
    /// What wrappers read.
    pub files: Files,
    /// `$BUILDER_OUTPUT`
    pub builder_output: Option<PathBuf>,
    /// Whether the destinations are pushed to.
    pub push: bool,
    /// What must be allowed to be pushed to, found out before the build: as given, and as a name.
    pub permissions: Vec<(String, Reference)>,
    /// Print the plan.
    pub plan: bool,
    /// Do nothing else.
    pub dry_run: bool,
}

/// Reads a command line; `environment` is what this process may do.
///
/// # Errors
/// [`Refusal`]
pub fn read(parsed: &Parsed, ambient: &Ambient, environment: Environment) -> Result<Task, Refusal> {
    let mut cache_repository = None;
    let push = !no_push(parsed, ambient)?;
    let report_as = report_as(parsed, ambient)?;
    let destinations = parsed
        .list(&flags::DESTINATION)
        .iter()
        .map(|text| Destination::parse(text, &report_as))
        .collect::<Result<Vec<_>, _>>()?;
    if push && destinations.is_empty() {
        return Err(Refusal::NoDestination);
    }
    let cache = parsed.is(&flags::CACHE);
    let no_push_cache = parsed.is(&flags::NO_PUSH_CACHE);
    if cache && !push && parsed.text(&flags::CACHE_REPO).is_empty() && !no_push_cache {
        return Err(Refusal::NoCacheRepo);
    }
    for flag in [&flags::IMAGE_NAME_WITH_DIGEST_FILE, &flags::IMAGE_NAME_TAG_WITH_DIGEST_FILE] {
        if destinations.is_empty() && !parsed.text(flag).is_empty() {
            return Err(Refusal::NoName(flag.name));
        }
    }
    check_formats(parsed)?;

    let mut flags = build_flags(parsed, ambient)?;
    let platform = platform(parsed.text(&flags::CUSTOM_PLATFORM))?;
    flags.context = ".".to_owned();
    let mut targets = parsed.commas(&flags::TARGET);
    let other_targets = if targets.len() > 1 { targets.split_off(1) } else { Vec::new() };
    flags.target = targets.into_iter().next();

    let mut request = request::build(&flags, ambient, environment)?.request;
    let reached = registries::read(
        parsed,
        request::Registries { registry: request.registry, client: request.client, credentials: request.credentials },
        ambient,
    )?;
    request.client = reached.pull.client;
    request.registry = reached.pull.registry;
    request.credentials = reached.pull.credentials;
    request.registry_client = Some(reached.registry_client);
    request.push = reached.push;
    let inputs = inputs(parsed, ambient, &request.credentials.environment)?;
    request.context = inputs.context;
    request.context_sub_path = inputs.sub_path;
    request.git = inputs.git;
    request.fetched = Fetched::LikeDirectory;
    request.dockerfile = match inputs.dockerfile {
        Dockerfile::At(source) => source,
        Dockerfile::Remote(url) => DockerfileSource::Text(fetch(&url, &request.client)?),
    };
    request.platforms = platform.into_iter().collect();
    request.tags = destinations.iter().map(|destination| destination.reference.clone()).collect();
    request.inherit_media_types = true;
    request.single_layer = parsed.is(&flags::SINGLE_SNAPSHOT);
    request.compression = compression(parsed)?;
    let annotation = |(key, value)| Annotation { level: AnnotationLevel::Manifest, platform: None, key, value };
    request.annotations = parsed.pairs(&flags::ANNOTATION).into_iter().map(annotation).collect();
    request.outputs = outputs(parsed, ambient, push, &destinations);
    if (parsed.given("cache") && !cache) || is_zero(parsed) {
        request.no_cache = NoCache::All;
    }
    let cache_dir = parsed.text(&flags::CACHE_DIR);
    if cache && !cache_dir.is_empty() {
        request.warmed = Some(Warmed {
            directory: ambient.cwd.join(cache_dir),
            ttl: values::duration(parsed.text(&flags::CACHE_TTL)).unwrap_or_default(),
            now: SystemTime::now(),
        });
    }
    if cache {
        let (options, repository) = cache_options(parsed, &destinations)?;
        if let Some(repository) = repository.as_ref().filter(|_| parsed.is(&flags::INSECURE)) {
            request.registry.insecure.insert(repository.registry().to_owned());
        }
        request.cache = options;
        cache_repository = repository;
    }
    request.ignored = Ignored::new(
        parsed
            .list(&flags::IGNORE_PATH)
            .iter()
            .map(String::as_str)
            .chain(parsed.is(&flags::IGNORE_VAR_RUN).then_some("/var/run")),
    );
    let check = !parsed.is(&flags::SKIP_PUSH_PERMISSION_CHECK);
    let permissions = match cache_repository {
        _ if !check => Vec::new(),
        _ if push => {
            destinations.iter().map(|destination| (destination.typed.clone(), destination.reference.clone())).collect()
        }
        Some(repository) if !no_push_cache => {
            vec![(super::names::repository(repository.reference()), repository.reference().clone())]
        }
        _ => Vec::new(),
    };
    Ok(Task {
        other_targets,
        report_as,
        files: files(parsed, ambient)?,
        builder_output: ambient.var("BUILDER_OUTPUT").map(|dir| ambient.cwd.join(dir)),
        push,
        permissions,
        plan: parsed.is(&flags::DRYRUN) || variable(ambient, "KANIKO_PRINT_PLAN")?.unwrap_or(false),
        dry_run: parsed.is(&flags::DRYRUN),
        destinations,
        request,
    })
}

/// `--report-as` and its variable.
///
/// # Errors
/// If one is malformed.
pub fn report_as(parsed: &Parsed, ambient: &Ambient) -> Result<ReportAs, Refusal> {
    let of_variable: Vec<String> = ambient.text("SLIPWAY_REPORT_AS").map(str::to_owned).into_iter().collect();
    ReportAs::parse(&[parsed.list(&flags::REPORT_AS), &of_variable].concat())
}

/// `--cache` and what goes with it; the repository, if it is one of a registry.
fn cache_options(
    parsed: &Parsed,
    destinations: &[Destination],
) -> Result<(CacheOptions, Option<CacheRepository>), Refusal> {
    let flag = "--cache-repo";
    let given = parsed.text(&flags::CACHE_REPO);
    let place = match (given.strip_prefix("oci:"), destinations.first()) {
        // As Kaniko, which is in `/` when it looks.
        (Some(path), _) => CachePlace::Layout(Path::new("/").join(path)),
        (None, _) if !given.is_empty() => {
            CachePlace::Registry(CacheRepository::parse(given).map_err(|error| Refusal::value(flag, given, error))?)
        }
        (None, Some(first)) => {
            let name = format!("{}/{}/cache", first.reference.registry(), first.reference.repository());
            CachePlace::Registry(CacheRepository::parse(&name).map_err(|error| Refusal::value(flag, &name, error))?)
        }
        // With --no-push-cache there need not be any.
        (None, None) => return Ok((CacheOptions::default(), None)),
    };
    let repository = match &place {
        CachePlace::Registry(repository) => Some(repository.clone()),
        CachePlace::Layout(_) => None,
    };
    let to = if parsed.is(&flags::NO_PUSH_CACHE) { Vec::new() } else { vec![CacheTarget::new(place.clone())] };
    let options = CacheOptions {
        from: vec![place],
        to,
        ttl: values::duration(parsed.text(&flags::CACHE_TTL)).ok(),
        copy_layers: parsed.is(&flags::CACHE_COPY_LAYERS),
        run_layers: parsed.is(&flags::CACHE_RUN_LAYERS),
    };
    Ok((options, repository))
}

/// A boolean variable of the environment.
fn variable(ambient: &Ambient, name: &'static str) -> Result<Option<bool>, Refusal> {
    let Some(value) = ambient.text(name) else { return Ok(None) };
    let read = values::boolean(value);
    read.map(Some).map_err(|reason| Refusal::Variable { name, value: value.to_owned(), reason })
}

fn no_push(parsed: &Parsed, ambient: &Ambient) -> Result<bool, Refusal> {
    Ok(variable(ambient, "KANIKO_NO_PUSH")?.unwrap_or_else(|| parsed.is(&flags::NO_PUSH)))
}

/// Whether `--cache-ttl` says that nothing that is kept counts.
fn is_zero(parsed: &Parsed) -> bool {
    parsed.given("cache-ttl") && values::duration(parsed.text(&flags::CACHE_TTL)).is_ok_and(|ttl| ttl.is_zero())
}

fn check_formats(parsed: &Parsed) -> Result<(), Refusal> {
    let (format, compression) = (parsed.text(&flags::IMAGE_FORMAT), parsed.text(&flags::COMPRESSION));
    let tar = !parsed.text(&flags::TAR_PATH).is_empty();
    for (refused, one, other, reason) in [
        (tar && format == "oci", "--tar-path", "--image-format=oci", "the tar is of Docker's form"),
        (
            tar && compression == "zstd",
            "--tar-path",
            "--compression=zstd",
            "layers in the tar are compressed with gzip",
        ),
        (
            format == "docker" && compression == "zstd",
            "--image-format=docker",
            "--compression=zstd",
            "Docker's media types know no zstd",
        ),
    ] {
        if refused {
            return Err(Refusal::Conflict { one, other, reason });
        }
    }
    Ok(())
}

/// The flags of `slipway build` that say the same. What only variables say (`SLIPWAY_…`) is in them too.
fn build_flags(parsed: &Parsed, ambient: &Ambient) -> Result<BuildFlags, Refusal> {
    let mut flags = slipway_flags(ambient, Some(work_dir(parsed.text(&flags::KANIKO_DIR), ambient)))?;
    flags.build_arg = parsed
        .list(&flags::BUILD_ARG)
        .iter()
        .map(|text| match text.split_once('=') {
            Some(_) => text.clone(),
            None => format!("{text}={}", ambient.text(text).unwrap_or_default()),
        })
        .collect();
    for text in parsed.list(&flags::LABEL) {
        if !text.contains('=') {
            return Err(Refusal::value("--label", text, "labels must be of the form key=value"));
        }
    }
    flags.label = parsed.list(&flags::LABEL).to_vec();
    flags.secret = secrets(parsed)?;
    Ok(flags)
}

/// The flags of `slipway build` when none is given: what its variables say.
///
/// # Errors
/// If a variable cannot be read.
pub fn slipway_flags(ambient: &Ambient, work_dir: Option<OsString>) -> Result<BuildFlags, Refusal> {
    // BUILDKIT_PROGRESS has no meaning here, nor has DOCKER_DEFAULT_PLATFORM.
    let mut arguments: Vec<OsString> = vec!["slipway".into(), "build".into(), "--progress=plain".into()];
    arguments.extend(work_dir.into_iter().flat_map(|dir| ["--work-dir".into(), dir]));
    let cli = Cli::read(arguments).map_err(|error| Refusal::Variables(error.to_string()))?;
    let Command::Build(mut flags) = cli.command else { unreachable!("`build` is what was parsed") };
    flags.platform.clear();
    // Relative to where we were started, as everything else.
    flags.state.work_dir = flags.state.work_dir.map(|dir| ambient.cwd.join(dir));
    Ok(*flags)
}

/// `--secret`, which Kaniko reads more strictly than docker.
fn secrets(parsed: &Parsed) -> Result<Vec<String>, Refusal> {
    let texts = parsed.list(&flags::SECRET);
    let mut ids: Vec<&str> = Vec::new();
    for text in texts {
        let fields = text.split(',').filter_map(|field| field.split_once('='));
        let id = fields.filter(|(name, _)| *name == "id").map(|(_, id)| id).next_back().unwrap_or_default();
        if !id.is_empty() && ids.contains(&id) {
            return Err(Refusal::value("--secret", text, format!("there is another secret with the id `{id}`")));
        }
        ids.push(id);
        let of =
            |wanted: &str| text.split(',').any(|field| field.split_once('=').is_some_and(|(name, _)| name == wanted));
        if of("env") && text.split(',').any(|field| field == "type=file") {
            return Err(Refusal::value("--secret", text, "type=file and env= exclude each other"));
        }
    }
    Ok(texts.to_vec())
}

/// Where everything is kept: `SLIPWAY_DIR`, or a directory of its own below that of Kaniko.
pub fn work_dir(kaniko_dir: &str, ambient: &Ambient) -> OsString {
    if let Some(dir) = ambient.var("SLIPWAY_DIR") {
        return dir.to_owned();
    }
    let given = Some(kaniko_dir).filter(|dir| !dir.is_empty());
    let dir = given.or(ambient.text("KANIKO_DIR")).unwrap_or(KANIKO_DIR);
    ambient.cwd.join(dir).join("slipway").into_os_string()
}

/// Reads `os[/arch[/variant]][:osversion]`; nothing is the machine's own.
///
/// # Errors
/// If it is none.
pub fn platform(text: &str) -> Result<Option<Platform>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let (name, version) = text.split_once(':').unwrap_or((text, ""));
    let mut platform: Platform = name.parse().map_err(Refusal::Platform)?;
    if !version.is_empty() {
        platform.os_version = version.to_owned();
    }
    Ok(Some(platform))
}

fn compression(parsed: &Parsed) -> Result<Compression, Refusal> {
    let level = parsed.number(&flags::COMPRESSION_LEVEL);
    let out_of_range =
        |most: i64| Refusal::value("--compression-level", &level.to_string(), format!("the highest level is {most}"));
    let level_up_to = |most: i64| match level {
        ..=0 => Ok(None),
        level if level <= most => Ok(Some(level)),
        _ => Err(out_of_range(most)),
    };
    Ok(match parsed.text(&flags::COMPRESSION) {
        "zstd" => Compression::Zstd {
            level: level_up_to(22)?.map_or(Ok(3), |level| i32::try_from(level.min(19))).unwrap_or(3),
        },
        _ => match level_up_to(9)?.and_then(|level| u32::try_from(level).ok()) {
            Some(level) => Compression::Gzip { level },
            None => Compression::default(),
        },
    })
}

fn outputs(parsed: &Parsed, ambient: &Ambient, push: bool, destinations: &[Destination]) -> Vec<Target> {
    let mut exporters = Vec::new();
    let layout = parsed.text(&flags::OCI_LAYOUT_PATH);
    if !layout.is_empty() {
        exporters.push(Exporter::OnlyOciDirectory(ambient.cwd.join(layout)));
    }
    let tar = parsed.text(&flags::TAR_PATH);
    if !tar.is_empty() {
        let names = match destinations {
            [] => vec!["docker.io/unset-repo/unset-image-name:latest".to_owned()],
            some => some.iter().map(Destination::tagged).collect(),
        };
        exporters.push(Exporter::DockerSave { to: To::File(ambient.cwd.join(tar)), names });
    }
    if push {
        exporters.push(Exporter::Registry { by_digest: false, insecure: false });
    }
    if exporters.is_empty() {
        exporters.push(Exporter::CacheOnly);
    }
    let reproducible = parsed.is(&flags::REPRODUCIBLE);
    exporters
        .into_iter()
        .map(|exporter| Target {
            oci_media_types: match parsed.text(&flags::IMAGE_FORMAT) {
                "oci" => Some(true),
                "docker" => Some(false),
                // Docker's archives are of Docker's form.
                _ if !tar.is_empty() => Some(false),
                _ => None,
            },
            rewrite_timestamp: reproducible,
            source_date_epoch: reproducible.then_some(Some(0)),
            ..Target::new(exporter)
        })
        .collect()
}

/// What wrappers read.
///
/// # Errors
/// If a URL is none.
pub fn files(parsed: &Parsed, ambient: &Ambient) -> Result<Files, Refusal> {
    let place = |flag: &'static str, text: &str| {
        Place::parse(text, &ambient.cwd).map_err(|reason| Refusal::value(flag, text, reason))
    };
    Ok(Files {
        digest: place("--digest-file", parsed.text(&flags::DIGEST_FILE))?,
        names: place("--image-name-with-digest-file", parsed.text(&flags::IMAGE_NAME_WITH_DIGEST_FILE))?,
        tags: place("--image-name-tag-with-digest-file", parsed.text(&flags::IMAGE_NAME_TAG_WITH_DIGEST_FILE))?,
    })
}

/// Where the Dockerfile is.
#[derive(Debug)]
enum Dockerfile {
    /// Somewhere that the library reads.
    At(DockerfileSource),
    /// At a server.
    Remote(Url),
}

/// Where the build reads from.
#[derive(Debug)]
struct Inputs {
    context: ContextSource,
    /// Not for directories, which are joined already.
    sub_path: Option<PathBuf>,
    git: GitOptions,
    dockerfile: Dockerfile,
}

/// Context and Dockerfile.
fn inputs(parsed: &Parsed, ambient: &Ambient, environment: &CloudEnvironment) -> Result<Inputs, Refusal> {
    let mut text = parsed.text(&flags::CONTEXT).to_owned();
    let bucket = parsed.text(&flags::BUCKET);
    if !bucket.is_empty() && (!parsed.given("context") || text.is_empty()) {
        text = if bucket.contains("://") { bucket.to_owned() } else { format!("gs://{bucket}") };
    }
    let sub_path = Some(parsed.text(&flags::CONTEXT_SUB_PATH)).filter(|path| !path.is_empty());
    let git = git_options(parsed)?;
    let refused = |error: &dyn std::error::Error| Refusal::ContextText(error.to_string());
    let (context, sub_path) = match text.split_once("://") {
        None => (directory(&ambient.cwd.join(&text), sub_path)?, None),
        Some(("dir", path)) => (directory(&ambient.cwd.join(path), sub_path)?, None),
        Some((scheme, path)) => {
            let context = match scheme {
                "tar" if path == "stdin" => stdin()?,
                "tar" => ContextSource::Archive(ambient.cwd.join(path)),
                "git" => {
                    let repository = Repository::parse(&text, &git, environment).map_err(|error| refused(&error))?;
                    ContextSource::Repository(repository)
                }
                "gs" | "s3" | "https" => match Bucket::parse(&text) {
                    Some(bucket) => ContextSource::Bucket(bucket.map_err(|error| refused(&error))?),
                    None => ContextSource::Url(text.clone()),
                },
                _ => return Err(Refusal::ContextPrefix(text)),
            };
            (context, sub_path.map(PathBuf::from))
        }
    };
    let name = parsed.text(&flags::DOCKERFILE);
    if name.starts_with("http://") || name.starts_with("https://") {
        let url = Url::parse(name).map_err(|error| Refusal::value("--dockerfile", name, error))?;
        return Ok(Inputs { context, sub_path, git, dockerfile: Dockerfile::Remote(url) });
    }
    let here = ambient.cwd.join(name);
    let dockerfile = match &context {
        _ if here.is_file() => DockerfileSource::File(here),
        ContextSource::Directory(top) => {
            let there = top.join(name);
            if !there.is_file() {
                let mut tried = vec![here.display().to_string(), there.display().to_string()];
                tried.dedup();
                return Err(Refusal::NoDockerfile(tried));
            }
            DockerfileSource::File(there)
        }
        _ => DockerfileSource::InContext(name.into()),
    };
    Ok(Inputs { context, sub_path, git, dockerfile: Dockerfile::At(dockerfile) })
}

/// `--git`. Commas between options are understood, as long as each part is one.
fn git_options(parsed: &Parsed) -> Result<GitOptions, Refusal> {
    const KEYS: [&str; 5] = ["branch=", "single-branch=", "depth=", "recurse-submodules=", "insecure-skip-tls="];
    let mut options = GitOptions::default();
    for text in parsed.list(&flags::GIT) {
        let parts: Vec<&str> = text.split(',').collect();
        let known = parts.iter().all(|part| KEYS.iter().any(|key| part.starts_with(key)));
        for part in if known { parts } else { vec![text.as_str()] } {
            options.set(part).map_err(|error| Refusal::value("--git", text, error))?;
        }
    }
    Ok(options)
}

/// Standard input as a context, unless nothing can come from there.
fn stdin() -> Result<ContextSource, Refusal> {
    use std::os::unix::fs::FileTypeExt as _;
    match fs::metadata("/proc/self/fd/0") {
        Ok(found) if !found.file_type().is_char_device() => Ok(ContextSource::Stdin),
        _ => Err(Refusal::NoStdin),
    }
}

/// A directory of this machine, which must be there.
fn directory(path: &Path, sub_path: Option<&str>) -> Result<ContextSource, Refusal> {
    let path = sub_path.map_or_else(|| path.to_owned(), |sub| path.join(sub.trim_start_matches('/')));
    match fs::read_dir(&path) {
        Ok(_) => Ok(ContextSource::Directory(path)),
        Err(source) => Err(Refusal::Context { path: path.display().to_string(), source }),
    }
}

/// A Dockerfile at a path or URL.
///
/// # Errors
/// If it cannot be read.
pub fn dockerfile_text(name: &str, ambient: &Ambient, client: &ClientOptions) -> Result<String, Refusal> {
    if let Some(url) = request::web_url(name) {
        return fetch(&url, client);
    }
    let path = ambient.cwd.join(name);
    let bytes = fs::read(&path).map_err(|error| Refusal::value("--dockerfile", name, error))?;
    decode(bytes).map_err(|error| Refusal::value("--dockerfile", name, error))
}

fn fetch(url: &Url, client: &ClientOptions) -> Result<String, Refusal> {
    let bytes = request::fetched_dockerfile(url, client)
        .map_err(|source| Refusal::FetchDockerfile { url: http::redacted(url), source })?;
    decode(bytes).map_err(|error| Refusal::value("--dockerfile", &http::redacted(url), error))
}
