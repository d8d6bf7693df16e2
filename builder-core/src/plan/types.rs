//! What a plan is made of. All texts are expanded.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::parameters::{Declared, Parameters};
use crate::dockerfile::{Finding, LineRange};
use crate::oci::{ImageConfig, Platform};

/// What the caller decides about a plan.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--target`.
    pub target: Option<String>,
    /// `--platform`; `None` means the build platform, and then a base image may imply another one (F-09).
    pub platform: Option<Platform>,
    /// Where RUNs execute unless said otherwise; `None` means [`Platform::host`].
    pub build_platform: Option<Platform>,
    /// `--label`, applied last to the target.
    pub labels: BTreeMap<String, String>,
    /// `--build-context`.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// Defaults of every RUN.
    pub run: RunDefaults,
    /// `SOURCE_DATE_EPOCH` of the command line; a build-arg or global ARG of that name counts too.
    pub source_date_epoch: Option<i64>,
    /// The time of what [`super::epoch_source`] says that `SOURCE_DATE_EPOCH` names, in seconds since 1970; `Some(None)` if it
    /// has none. Until it is looked up it counts as having none.
    pub epoch_of_source: Option<Option<i64>>,
    /// Several platforms are built in this call: titles carry the platform.
    pub multi_platform: bool,
    /// Contents of the ignore file, for the lint rule CopyIgnoredFile; `None` if there is none.
    pub ignore_file: Option<String>,
}

/// What applies to every RUN (checklist ).
#[derive(Debug, Clone, Default)]
pub struct RunDefaults {
    /// `--network`.
    pub network: NetworkMode,
    /// `--add-host`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// `--shm-size` in bytes.
    pub shm_size: Option<u64>,
    /// `--ulimit`: name, soft and hard limit.
    pub ulimits: Vec<Ulimit>,
    /// Host name inside; `buildkitsandbox` if not given.
    pub hostname: Option<String>,
    /// Entitlements: `network.host`, `security.insecure`.
    pub allow: Vec<String>,
}

/// `name=soft[:hard]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ulimit {
    /// Such as `nofile`.
    pub name: String,
    /// Soft limit; -1 for none.
    pub soft: i64,
    /// Hard limit; -1 for none.
    pub hard: i64,
}

/// `--build-context name=value`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum NamedContext {
    /// A directory.
    Directory(PathBuf),
    /// `docker-image://reference`.
    Image(String),
    /// `oci-layout://path[:tag][@digest]`.
    OciLayout(String),
    /// A git URL.
    Git(String),
    /// An http(s) URL.
    Url(String),
    /// `-`: a tar on standard input, compressed or not.
    Stdin,
}

/// Network of a RUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum NetworkMode {
    /// What the builder has.
    #[default]
    Default,
    /// The builder's own network, explicitly.
    Host,
    /// Loopback only.
    None,
}

/// Security mode of a RUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum SecurityMode {
    /// The usual confinement.
    #[default]
    Sandbox,
    /// All capabilities.
    Insecure,
}

/// An image that a plan needs, by name and platform.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ImageRequest {
    /// As in the Dockerfile after expansion, or as a named context redirects it (`docker-image://…`, `oci-layout://…`).
    pub name: String,
    /// The platform to choose from an index.
    pub platform: Platform,
}

/// What is known of a base image once it is resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseImage {
    /// Its config.
    pub config: ImageConfig,
    /// Normalised reference with the digest that was found, for cache keys and `--plan`.
    pub pinned: String,
}

/// Base images by request.
pub type Bases = BTreeMap<ImageRequest, BaseImage>;

/// Index into [`Plan::stages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct StageId(pub usize);

/// Everything that will be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The stages that the target needs, each after those it uses.
    pub stages: Vec<Stage>,
    /// The stage whose result is the image.
    pub target: StageId,
    /// Lint findings in file order.
    pub findings: Vec<Finding>,
    /// Platform of the resulting image.
    pub platform: Platform,
    /// Seconds since 1970, if a `SOURCE_DATE_EPOCH` is in force.
    pub source_date_epoch: Option<i64>,
    /// The images that are used, with the references that were found for them.
    pub pinned: BTreeMap<ImageRequest, String>,
    /// Stages that the target does not need.
    pub dropped: Vec<DroppedStage>,
    /// `--build-arg` names that nothing reads.
    pub unconsumed: Vec<String>,
    /// What the target can be given.
    pub parameters: Parameters,
}

/// What phase two yields.
#[derive(Debug, Clone, PartialEq)]
pub enum Lowered {
    /// The plan.
    Plan(Box<Plan>),
    /// Images that must be resolved first; then [`super::lower`] is called again.
    Needs(Vec<ImageRequest>),
}

/// A stage that is not built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedStage {
    /// Name, or `stage-<position>`.
    pub name: String,
    /// Lines of its FROM.
    pub lines: LineRange,
}

/// One stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Position in [`Plan::stages`].
    pub id: StageId,
    /// Position in the Dockerfile, counted from 0.
    pub position: usize,
    /// Name, or `stage-<position>`.
    pub name: String,
    /// Lines of its FROM.
    pub lines: LineRange,
    /// What it starts from.
    pub base: Base,
    /// Platform of its base and of its RUNs.
    pub platform: Platform,
    /// What changes the root filesystem, in order; each makes one layer.
    pub steps: Vec<Step>,
    /// The final config, without `history`, `rootfs` and `created`.
    pub config: ImageConfig,
    /// The final history: items of the base, then new ones.
    pub history: Vec<PlannedHistory>,
    /// `[1/3] FROM docker.io/library/busybox:1@sha256:…`, if the base is an image or context.
    pub from_title: Option<String>,
    /// The base image's reference with the digest that was found, if the base is an image (an empty one too, which makes
    /// [`Base::Scratch`]).
    pub pinned: Option<String>,
    /// The ARGs of its instructions, triggers included.
    pub(super) arguments: Vec<Declared>,
}

/// What a stage starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// An image.
    Image(ImageRequest),
    /// The result of another stage.
    Stage(StageId),
    /// The files of a named context (a directory, git or URL).
    Context(String),
}

/// One item of the history to be.
#[derive(Debug, Clone, PartialEq)]
pub enum PlannedHistory {
    /// An item of the base image, unchanged.
    Inherited(crate::oci::HistoryEntry),
    /// A new item; `created` is filled in when the image is assembled.
    New {
        /// BuildKit's text.
        created_by: String,
        /// The stage and index into [`Stage::steps`] of the step whose layer it describes; `None` for an empty layer.
        step: Option<(StageId, usize)>,
    },
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// `[build 2/5] RUN make`
    pub title: String,
    /// Lines of the instruction (of FROM for a trigger).
    pub lines: LineRange,
    /// What to do.
    pub action: Action,
    /// Its text in the history.
    pub created_by: String,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// `RUN`
    Run(RunAction),
    /// `COPY` or `ADD`
    Copy(CopyAction),
    /// The directory of a `WORKDIR`
    Workdir(WorkdirAction),
}

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum FileSource {
    /// The main build context.
    Context,
    /// A named context with files.
    NamedContext(String),
    /// Another stage.
    Stage(StageId),
    /// An image's root filesystem.
    Image(ImageRequest),
    /// Nothing: an empty tree.
    Scratch,
}

/// `RUN`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunAction {
    /// Program and arguments, the shell included.
    pub argv: Vec<String>,
    /// Environment in order, without proxies and secrets.
    pub env: Vec<(String, String)>,
    /// Proxy variables; not part of the cache key.
    #[serde(skip)]
    pub proxy_env: Vec<(String, String)>,
    /// Absolute working directory.
    pub cwd: String,
    /// `USER` as in the config; empty for root.
    pub user: String,
    /// `RUN <<EOF` with `#!`: name and body of `/dev/pipes/<name>`.
    pub script: Option<(String, String)>,
    /// Mounts in order.
    pub mounts: Vec<Mount>,
    /// Network.
    pub network: NetworkMode,
    /// Security.
    pub security: SecurityMode,
    /// `--device` names with whether they are required.
    pub devices: Vec<(String, bool)>,
    /// Host name inside; `None` for the default.
    pub hostname: Option<String>,
    /// Names and addresses for /etc/hosts; only names count for the key.
    pub extra_hosts: Vec<(String, String)>,
    /// Size of /dev/shm in bytes.
    pub shm_size: Option<u64>,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// ARG values in scope, for saying what changed.
    #[serde(skip)]
    pub args: BTreeMap<String, String>,
}

/// A mount of a RUN (section M).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Absolute cleaned target; for secrets and ssh without a file: empty.
    pub target: String,
    /// Whether writing is refused.
    pub readonly: bool,
    /// What is mounted.
    pub kind: MountKind,
}

/// Sharing of a cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum Sharing {
    /// Concurrent users see one directory.
    #[default]
    Shared,
    /// A concurrent user gets a new directory.
    Private,
    /// A concurrent user waits.
    Locked,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum MountKind {
    /// Files; writes are discarded.
    Bind {
        /// Where from.
        from: FileSource,
        /// Path within it.
        source: String,
    },
    /// A directory that stays.
    Cache {
        /// Identity, namespace included.
        id: String,
        /// Concurrent use.
        sharing: Sharing,
        /// Initial content.
        from: Option<FileSource>,
        /// Path within the initial content; `/` if none.
        source: String,
        /// Mode of the directory when created.
        mode: Option<u32>,
        /// Owner when created.
        uid: Option<u32>,
        /// Group when created.
        gid: Option<u32>,
    },
    /// A fresh tmpfs.
    Tmpfs {
        /// Bytes; `None` for the kernel's default.
        size: Option<u64>,
    },
    /// A secret file and/or variable.
    Secret {
        /// Identity.
        id: String,
        /// Whether the file is mounted at `target`.
        file: bool,
        /// Variable to set.
        env: Option<String>,
        /// Whether its absence is an error.
        required: bool,
        /// Mode of the file.
        mode: u32,
        /// Owner of the file.
        uid: u32,
        /// Group of the file.
        gid: u32,
    },
    /// A forwarded ssh agent socket at `target`.
    Ssh {
        /// Identity.
        id: String,
        /// Whether its absence is an error.
        required: bool,
        /// Mode of the socket.
        mode: u32,
        /// Owner of the socket.
        uid: u32,
        /// Group of the socket.
        gid: u32,
    },
}

/// `COPY` or `ADD`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CopyAction {
    /// `ADD`, so archives unpack.
    pub add: bool,
    /// Where path sources come from.
    pub from: FileSource,
    /// Sources in order: paths first, heredocs last (H-10).
    pub sources: Vec<CopySource>,
    /// Absolute destination, joined with WORKDIR and NOT cleaned at the end: a trailing `/` or `/.` means directory.
    pub destination: String,
    /// `--chown`, expanded, not looked up; empty is absent.
    pub chown: Option<String>,
    /// `--chmod`, expanded and checked.
    pub chmod: Option<Chmod>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude` patterns.
    pub excludes: Vec<String>,
    /// `--checksum`, expanded.
    pub checksum: Option<String>,
    /// `--keep-git-dir`.
    pub keep_git_dir: Option<bool>,
    /// `--unpack`.
    pub unpack: Option<bool>,
}

impl CopyAction {
    /// `COPY` without flags.
    pub fn plain(from: FileSource, sources: Vec<CopySource>, destination: impl Into<String>) -> Self {
        Self {
            add: false,
            from,
            sources,
            destination: destination.into(),
            chown: None,
            chmod: None,
            link: false,
            parents: false,
            excludes: Vec::new(),
            checksum: None,
            keep_git_dir: None,
            unpack: None,
        }
    }
}

/// `--chmod`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Chmod {
    /// 0 to 07777.
    Octal(u32),
    /// chmod(1)'s grammar, checked.
    Symbolic(String),
}

/// A source of COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum CopySource {
    /// A path or wildcard.
    Path(String),
    /// A file with given content.
    Heredoc {
        /// File name.
        name: String,
        /// Its bytes, expanded.
        body: String,
    },
    /// ADD of an http(s) URL.
    Url(String),
    /// ADD of a git reference.
    Git(String),
}

/// The directory that WORKDIR makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkdirAction {
    /// Absolute and cleaned.
    pub path: String,
    /// `USER` at this point, who will own what is created.
    pub user: String,
    /// Time of what is created, if an epoch is in force.
    pub source_date_epoch: Option<i64>,
}
