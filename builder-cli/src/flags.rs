//! The command line, defined once: `--help`, `docs/flags.md`, the manual page and the completions all come from here.
//!
//! Values are texts as given; [`crate::request`] reads them.

#![allow(rustdoc::broken_intra_doc_links, reason = "the comments are help texts; brackets mean optional parts there")]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

pub mod docker;

/// Builds OCI images from Dockerfiles, without a daemon and without privileges.
#[derive(Debug, Parser)]
#[command(name = "slipway", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads a command line, the program's name first. A variable that is set to nothing counts as not set: pipelines
    /// pass on what they may not have.
    ///
    /// # Errors
    /// What is wrong with it, or a request for help.
    pub fn read(line: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let mut command = without_empty_variables(Self::command());
        let matches = command.try_get_matches_from_mut(line)?;
        Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

fn without_empty_variables(command: clap::Command) -> clap::Command {
    command.mut_args(without_empty_variable).mut_subcommands(without_empty_variables)
}

fn without_empty_variable(argument: clap::Arg) -> clap::Arg {
    // clap looked when the definition was made; what it does not know is then not read either.
    match argument.get_env().map(std::env::var_os) {
        Some(Some(value)) if value.is_empty() => argument.env(None::<&str>),
        _ => argument,
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image and write or push it; prints its digest
    Build(Box<BuildFlags>),
    /// Show an image of a registry or an OCI layout as JSON
    Inspect(InspectFlags),
    /// What is kept in the work directory
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Show what this machine allows, and why not more
    Info(InfoFlags),
    /// Print the version
    Version,
    /// Print a script that completes this command line in a shell
    Completions(CompletionsFlags),
    /// Write the manual pages
    Man(ManFlags),
    /// Kaniko's executor: builds and pushes with Kaniko's flags, see docs/kaniko.md
    #[command(disable_help_flag = true)]
    Executor(KanikoFlags),
    /// Kaniko's warmer: fetches base images into a directory
    #[command(disable_help_flag = true)]
    Warmer(KanikoFlags),
}

/// Flags of the drop-in, which are read by Kaniko's rules.
#[derive(Debug, Args)]
pub struct KanikoFlags {
    /// Kaniko's flags
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    pub flags: Vec<OsString>,
}

/// `slipway cache`
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List what is kept, with sizes
    Ls(CacheLsFlags),
    /// Remove what no running build uses
    Prune(CachePruneFlags),
}

/// `slipway cache ls`
#[derive(Debug, Args)]
pub struct CacheLsFlags {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where state is
    #[command(flatten)]
    pub state: StateFlags,
}

/// `slipway cache prune`
#[derive(Debug, Args)]
pub struct CachePruneFlags {
    /// Remove the directories of cache mounts too
    #[arg(long)]
    pub mounts: bool,
    /// Where state is
    #[command(flatten)]
    pub state: StateFlags,
}

/// `slipway info`
#[derive(Debug, Args)]
pub struct InfoFlags {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where state is
    #[command(flatten)]
    pub state: StateFlags,
}

/// `slipway completions`
#[derive(Debug, Args)]
pub struct CompletionsFlags {
    /// Whose script: for bash, `source <(slipway completions bash)`
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// `slipway man`
#[derive(Debug, Args)]
pub struct ManFlags {
    /// Where slipway.1 and a page for each command go, such as /usr/local/share/man/man1; made if missing
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// `slipway inspect`
#[derive(Debug, Args)]
pub struct InspectFlags {
    /// A reference, or the path of an OCI layout (directory)
    #[arg(value_name = "REF|LAYOUT")]
    pub image: String,
    /// Read every blob and check every invariant; exit code 3 if one is violated
    #[arg(long)]
    pub verify: bool,
    /// Which image of an index, as os/arch[/variant]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// How registries are reached
    #[command(flatten)]
    pub registries: RegistryFlags,
    /// Where state is
    #[command(flatten)]
    pub state: StateFlags,
}

/// `--unpack`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Unpack {
    /// if a RUN or an output needs the files anyway
    #[default]
    Auto,
    /// always
    Always,
}

/// Where state is kept and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "State and limits")]
pub struct StateFlags {
    /// Where everything is kept: blobs, trees, step cache. The only place that is written, beside the outputs
    /// [default: /var/lib/slipway as root, else $XDG_DATA_HOME/slipway or ~/.local/share/slipway]
    #[arg(long, value_name = "DIR", env = "SLIPWAY_DIR")]
    pub work_dir: Option<PathBuf>,
    /// How root filesystems are kept: stacked by overlayfs, or as one directory each
    #[arg(long, value_enum, default_value_t, env = "SLIPWAY_TREES")]
    pub trees: Trees,
    /// How commands are confined
    #[arg(long, value_enum, default_value_t, env = "SLIPWAY_SANDBOX")]
    pub sandbox: Sandbox,
}

/// `--trees`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Trees {
    /// overlayfs where it works
    #[default]
    Auto,
    /// overlayfs, or an error
    Overlay,
    /// plain directories
    Directory,
}

/// `--sandbox`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Sandbox {
    /// the strongest that works
    #[default]
    Auto,
    /// user and mount namespaces, or an error
    Namespaces,
    /// chroot without mounts as root with default capabilities, or an error
    Chroot,
    /// every call supervised, without any privilege, or an error
    Traced,
}

/// How registries are reached.
#[derive(Debug, Args)]
#[command(next_help_heading = "Registries")]
pub struct RegistryFlags {
    /// Ask another registry instead: FROM=HOST[:PORT][/PREFIX]; http:// before HOST allows plain HTTP
    #[arg(long, value_name = "FROM=TO", env = "SLIPWAY_REGISTRY_MAP", value_delimiter = ';')]
    pub registry_map: Vec<String>,
    /// Ask a mirror of docker.io (or of FROM) first: [FROM=]HOST[:PORT][/PREFIX]
    #[arg(long, value_name = "[FROM=]TO", env = "SLIPWAY_REGISTRY_MIRROR", value_delimiter = ';')]
    pub registry_mirror: Vec<String>,
    /// Allow plain HTTP and unverified TLS for a registry; loopback needs no flag for plain HTTP
    #[arg(long, value_name = "HOST[:PORT]", env = "SLIPWAY_INSECURE_REGISTRY", value_delimiter = ',')]
    pub insecure_registry: Vec<String>,
    /// Trust the certificates of a PEM file too, for all hosts or one: [HOST=]FILE
    #[arg(long, value_name = "[HOST=]FILE", env = "SLIPWAY_REGISTRY_CA", value_delimiter = ';')]
    pub registry_ca: Vec<String>,
    /// Show a client certificate to a host: HOST=CERT,KEY (PEM files)
    #[arg(long, value_name = "HOST=CERT,KEY")]
    pub registry_client_cert: Vec<String>,
}

/// `slipway build`. Of a flag that takes one value and is given twice, the last counts, as with docker: scripts append to
/// what they were given.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub struct BuildFlags {
    /// Where COPY and ADD read from: a directory, `-` (a tar on standard input), a git or http(s) URL, an archive as
    /// tar://FILE, s3://BUCKET/KEY, gs://BUCKET/OBJECT or the URL of an Azure blob
    #[arg(default_value = ".")]
    pub context: String,

    /// Use this directory of the context as the context
    #[arg(long, value_name = "DIR")]
    pub context_sub_path: Option<PathBuf>,
    /// How a git context is fetched: branch=NAME, depth=N, recurse-submodules=true, insecure-skip-tls=true
    #[arg(long, value_name = "KEY=VALUE")]
    pub git: Vec<String>,
    /// The Dockerfile, or its http(s) URL; `-` reads standard input [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<String>,
    /// Set a build argument; without a value it is taken from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub build_arg: Vec<String>,
    /// Build this stage
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Set a label of the image
    #[arg(long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
    /// Set an annotation of the manifest, or of what is named before a colon: manifest, manifest-descriptor, index,
    /// index-descriptor, each for one platform if that follows in brackets, several with commas between them
    #[arg(long, value_name = "[LEVEL[[PLATFORM]],…:]NAME=VALUE")]
    pub annotation: Vec<String>,
    /// Build for these platforms, as os/arch[/variant]; several make an index
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',', env = "DOCKER_DEFAULT_PLATFORM")]
    pub platform: Vec<String>,
    /// Another context, or what replaces an image: a directory, docker-image://REF, oci-layout://PATH, a URL
    #[arg(long, value_name = "NAME=VALUE")]
    pub build_context: Vec<String>,

    /// Name the image; also where --push sends it
    #[arg(short, long, value_name = "REF", help_heading = "Result")]
    pub tag: Vec<String>,
    /// Push the image to the registries of its names
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", hide_default_value = true, hide_possible_values = true,
        value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Result")]
    pub push: bool,
    /// Write the result: type=registry|oci|docker|tar|local[,dest=PATH][,compression=gzip|zstd|uncompressed]
    /// [,compression-level=N][,name=REF]…; a plain PATH is type=local, `-` is a tar on standard output
    #[arg(short, long, value_name = "SPEC", help_heading = "Result")]
    pub output: Vec<String>,
    /// Write the digest of the image's config to a file
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    pub iidfile: Option<PathBuf>,
    /// Write digests and names to a file, as `docker buildx` does
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    pub metadata_file: Option<PathBuf>,
    /// Write what the build did to a file: digests, steps, cache, bytes, peaks (JSON)
    #[arg(long, value_name = "FILE", env = "SLIPWAY_REPORT", help_heading = "Result")]
    pub report: Option<PathBuf>,
    /// Write what the build did when to a file, for chrome://tracing, Perfetto or speedscope (Chrome's trace event JSON)
    #[arg(long, value_name = "FILE", env = "SLIPWAY_REPORT_TRACE", help_heading = "Result")]
    pub report_trace: Option<PathBuf>,
    /// Provenance attestations (only `false` is supported)
    #[arg(long, value_name = "SPEC", help_heading = "Result")]
    pub provenance: Option<String>,
    /// SBOM attestations (only `false` is supported)
    #[arg(long, value_name = "SPEC", help_heading = "Result")]
    pub sbom: Option<String>,

    /// Do every step anew
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", hide_default_value = true, hide_possible_values = true,
        value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Cache")]
    pub no_cache: bool,
    /// Do the steps of these stages anew
    #[arg(long, value_name = "STAGE", value_delimiter = ',', help_heading = "Cache")]
    pub no_cache_filter: Vec<String>,
    /// Ask the registry for base images even if they are known (always done)
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", hide_default_value = true, hide_possible_values = true,
        value_parser = clap::builder::BoolishValueParser::new(), help_heading = "Cache")]
    pub pull: bool,
    /// Take results of steps from a place that other machines fill too: type=registry,ref=REPOSITORY[:PREFIX],
    /// type=local,src=DIR (an OCI layout), or a plain REPOSITORY
    #[arg(long, value_name = "SPEC", help_heading = "Cache")]
    pub cache_from: Vec<String>,
    /// Put results of steps there: type=registry,ref=REPOSITORY[:PREFIX] or type=local,dest=DIR, with
    /// [,mode=min|max][,ignore-error=true|false]; max puts those of all stages
    #[arg(long, value_name = "SPEC", help_heading = "Cache")]
    pub cache_to: Vec<String>,
    /// Do steps anew whose results are older, such as 6h or 336h
    #[arg(long, value_name = "DURATION", help_heading = "Cache")]
    pub cache_ttl: Option<String>,
    /// Whether results of COPY and ADD go to other places and come from there
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", help_heading = "Cache")]
    pub cache_copy_layers: bool,
    /// Whether results of RUN and WORKDIR do
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", help_heading = "Cache")]
    pub cache_run_layers: bool,

    /// Give a secret to RUN --mount=type=secret: id=NAME[,src=FILE|,env=VARIABLE]
    #[arg(long, value_name = "SPEC", help_heading = "RUN")]
    pub secret: Vec<String>,
    /// Give an ssh agent to RUN --mount=type=ssh: default or NAME[=SOCKET|=KEY[,KEY…]]
    #[arg(long, value_name = "SPEC", help_heading = "RUN")]
    pub ssh: Vec<String>,
    /// Add a line to /etc/hosts: NAME:ADDRESS or NAME=ADDRESS; the address host-gateway is this machine
    #[arg(long, value_name = "NAME:IP", help_heading = "RUN")]
    pub add_host: Vec<String>,
    /// Network of RUN
    #[arg(long, value_name = "MODE", value_parser = ["default", "host", "none"], help_heading = "RUN")]
    pub network: Option<String>,
    /// Size of /dev/shm, such as 128m [default: 64m]
    #[arg(long, value_name = "BYTES", help_heading = "RUN")]
    pub shm_size: Option<String>,
    /// Resource limit, such as nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = "RUN")]
    pub ulimit: Vec<String>,
    /// Allow what a Dockerfile may ask for only then: network.host, security.insecure
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',', help_heading = "RUN")]
    pub allow: Vec<String>,

    /// How progress is shown on standard error
    #[arg(long, value_enum, default_value_t, env = "BUILDKIT_PROGRESS", help_heading = "What is shown")]
    pub progress: Progress,
    /// Show nothing but errors
    #[arg(short, long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", hide_default_value = true, hide_possible_values = true,
        value_parser = clap::builder::BoolishValueParser::new(), help_heading = "What is shown")]
    pub quiet: bool,
    /// Check the Dockerfile and build nothing
    #[arg(long, conflicts_with = "plan", help_heading = "What is shown")]
    pub check: bool,
    /// What to do with the Dockerfile: build it, check it, list its targets, or outline what the target takes (build
    /// arguments, secrets, ssh): build|check|targets|outline[,format=text|json][,ignorestatus=true|false]
    #[arg(long, value_name = "METHOD", conflicts_with_all = ["plan", "check"], help_heading = "What is shown")]
    pub call: Option<String>,
    /// Show what would be done and do nothing of it
    #[arg(long, help_heading = "What is shown")]
    pub plan: bool,

    /// Keep compressed layers under the work directory when every registry has them; they are removed else, and fetched
    /// again where they are needed
    #[arg(long, env = "SLIPWAY_KEEP_LAYERS", help_heading = "State and limits")]
    pub keep_layers: bool,
    /// End the build when more than this is in use under the work directory, such as 10g; what earlier builds left counts
    #[arg(long, value_name = "BYTES", env = "SLIPWAY_MAX_DISK", help_heading = "State and limits")]
    pub max_disk: Option<String>,
    /// Use fewer threads and connections so that the builder's own memory stays below this, such as 64m; commands of RUN
    /// do not count [default: sized for 128m]
    #[arg(long, value_name = "BYTES", env = "SLIPWAY_MAX_MEMORY", help_heading = "State and limits")]
    pub max_memory: Option<String>,
    /// How many steps, threads and transfers run at one time [default: as the machine has processors]
    #[arg(short, long, value_name = "N", env = "SLIPWAY_JOBS", help_heading = "State and limits")]
    pub jobs: Option<std::num::NonZeroUsize>,
    /// Where state is
    #[command(flatten)]
    pub state: StateFlags,
    /// Send no body larger than this to a registry, such as 90m, where something on the way refuses large ones; without it
    /// a blob goes in one piece until a registry refuses that
    #[arg(long, value_name = "BYTES", env = "SLIPWAY_MAX_CHUNK", help_heading = "Registries")]
    pub max_chunk: Option<String>,
    /// When COPY, ADD and WORKDIR unpack the layers below them; the image is the same
    #[arg(long, value_enum, default_value_t, env = "SLIPWAY_UNPACK", help_heading = "State and limits")]
    pub unpack: Unpack,
    /// How registries are reached
    #[command(flatten)]
    pub registries: RegistryFlags,
}

/// `--progress`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Progress {
    /// live on a terminal, else plain
    #[default]
    Auto,
    /// live
    Tty,
    /// one line for each thing that happens
    Plain,
    /// one JSON object a line, see docs/progress.md
    #[value(alias = "rawjson")]
    Json,
    /// nothing but errors, as --quiet
    Quiet,
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_mistyped_flag_is_suggested() {
        let error = Cli::try_parse_from(["slipway", "build", "--no-cahce"]).expect_err("there is no such flag");
        assert!(error.to_string().contains("--no-cache"), "{error}");
    }

    #[test]
    fn the_last_of_two_values_counts_and_lists_grow() {
        let line =
            ["slipway", "build", "--progress=plain", "--target=a", "-ta", "--push", "--target=b", "-tb", "--push"];
        let line = line.into_iter().chain(["--progress=json"]);
        let Command::Build(flags) = Cli::try_parse_from(line).expect("fine").command else { panic!("a build") };
        assert_eq!((flags.target.as_deref(), flags.progress), (Some("b"), Progress::Json));
        assert_eq!(flags.tag, ["a", "b"]);
    }

    #[test]
    fn booleans_may_have_a_value() {
        let line = ["slipway", "build", "--push", "--push=false", "--pull=1", "--no-cache=true", "-q", "ctx"];
        let Command::Build(flags) = Cli::try_parse_from(line).expect("fine").command else { panic!("a build") };
        assert_eq!((flags.push, flags.pull, flags.no_cache, flags.quiet), (false, true, true, true));
        assert_eq!(flags.context, "ctx", "a value needs its `=`");
    }

    /// `docs/flags.md` as it should be.
    fn reference() -> String {
        let mut text =
            "# Flags\n\nGenerated from the definition in `builder-cli/src/flags.rs`; a test fails when it is stale \
                        (`UPDATE_DOCS=1 cargo test -p builder-cli` writes it).\n"
                .to_owned();
        let mut pending = vec![(String::from("slipway"), Cli::command())];
        while let Some((name, command)) = pending.pop() {
            let mut arguments: Vec<_> = command.get_arguments().filter(|argument| !argument.is_hide_set()).collect();
            arguments.retain(|argument| !matches!(argument.get_id().as_str(), "help" | "version"));
            if !arguments.is_empty() {
                _ = writeln!(text, "\n## {name}\n");
                if let Some(about) = command.get_about() {
                    _ = writeln!(text, "{about}.\n");
                }
                text.push_str("| Flag | Meaning | Environment |\n|---|---|---|\n");
                for argument in arguments {
                    let value = argument.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
                    let takes = argument.get_action().takes_values();
                    let flag = match (argument.get_short(), argument.get_long()) {
                        (Some(short), Some(long)) => format!("`-{short}`, `--{long}`"),
                        (None, Some(long)) => format!("`--{long}`"),
                        _ => String::new(),
                    };
                    let shown = match (flag.is_empty(), takes) {
                        (true, _) => format!("`{value}`"),
                        (false, true) if argument.is_require_equals_set() => {
                            format!("{}[={value}]`", flag.trim_end_matches('`'))
                        }
                        (false, true) => format!("{flag} `{value}`"),
                        (false, false) => flag,
                    };
                    let choices: Vec<String> = argument
                        .get_possible_values()
                        .iter()
                        .filter(|_| takes && !argument.is_hide_possible_values_set())
                        .map(|choice| format!("`{}`", choice.get_name()))
                        .collect();
                    let mut meaning = argument.get_help().map(ToString::to_string).unwrap_or_default();
                    if !choices.is_empty() {
                        _ = write!(meaning, ": {}", choices.join(", "));
                    }
                    let environment = argument.get_env().map(|name| format!("`{}`", name.to_string_lossy()));
                    let meaning = meaning.replace('|', "\\|").replace('\n', " ");
                    _ = writeln!(
                        text,
                        "| {} | {meaning} | {} |",
                        shown.replace('|', "\\|"),
                        environment.unwrap_or_default()
                    );
                }
            }
            let mut inner: Vec<_> = command.get_subcommands().cloned().collect();
            inner.reverse();
            pending.extend(inner.into_iter().map(|command| (format!("{name} {}", command.get_name()), command)));
        }
        text
    }

    #[test]
    fn the_reference_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/flags.md");
        let expected = reference();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &expected).expect("docs/flags.md can be written");
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == expected, "docs/flags.md is stale: UPDATE_DOCS=1 cargo test -p builder-cli");
    }
}
