//! What a caller asks of a build.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::BuildError;
use super::given::TarContext;
use super::ssh::SshAgent;
use crate::cache::CacheOptions;
use crate::cloud::Bucket;
use crate::context::{GitOptions, Repository};
use crate::event::{Event, Observer};
use crate::http::{self, ClientOptions, RetryNotice};
use crate::layer::Compression;
use crate::limits::Limits;
use crate::oci::{Descriptor, MediaType, Platform, Reference};
use crate::output::{Annotation, AnnotationLevel, Exporter, PushOptions, Target};
use crate::plan::{Plan, PlanOptions};
use crate::registry::{CredentialOptions, RegistryOptions};
use crate::rootfs::TreeMode;
use crate::sandbox::Environment;
use crate::snapshot::Ignored;
use crate::source::Warmed;

/// Everything that decides a build. Time, environment variables and the current directory enter here and nowhere else.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Where the Dockerfile is.
    pub dockerfile: DockerfileSource,
    /// Where COPY and ADD read from.
    pub context: ContextSource,
    /// The part of the context that is meant, relative to its top.
    pub context_sub_path: Option<PathBuf>,
    /// How a context that has to be fetched is understood.
    pub fetched: Fetched,
    /// How git contexts are fetched.
    pub git: GitOptions,
    /// Arguments, target, labels, named contexts. `ignore_file` and `platform` are filled in by [`super::build`].
    pub plan: PlanOptions,
    /// Platforms to build; none means that of the builder or of the base.
    pub platforms: Vec<Platform>,
    /// Names for the image.
    pub tags: Vec<Reference>,
    /// What is written; nothing means that the image stays in the work dir.
    pub outputs: Vec<Target>,
    /// All state: one directory, shared by any number of builds at one time.
    pub work_dir: PathBuf,
    /// How trees are kept; `None` probes.
    pub tree_mode: Option<TreeMode>,
    /// When COPY, ADD and WORKDIR work in a directory.
    pub directories: Directories,
    /// What [`crate::sandbox::enter`] found.
    pub environment: Environment,
    /// Certificates, proxies, time-outs.
    pub client: ClientOptions,
    /// The same for registries; `None`: as for everything else.
    pub registry_client: Option<ClientOptions>,
    /// Mirrors, maps, registries without TLS.
    pub registry: RegistryOptions,
    /// Where credentials for registries are.
    pub credentials: CredentialOptions,
    /// Paths whose changes do not get into layers.
    pub ignored: Ignored,
    /// Images that were fetched beforehand.
    pub warmed: Option<Warmed>,
    /// How much may be done at once.
    pub limits: Limits,
    /// Keep the blobs of layers and bases in the work dir although every destination has them.
    pub keep_layers: bool,
    /// One layer for all that the build adds to the base, instead of one a step.
    pub single_layer: bool,
    /// Which steps must not come from the cache.
    pub no_cache: NoCache,
    /// Results of steps in other places.
    pub cache: CacheOptions,
    /// Compression of new layers, unless an output asks for another.
    pub compression: Compression,
    /// `--secret`, by id.
    pub secrets: BTreeMap<String, SecretValue>,
    /// `--ssh`, by id.
    pub ssh: BTreeMap<String, SshAgent>,
    /// `--annotation`, for all outputs; an output's own of the same key comes before it.
    pub annotations: Vec<Annotation>,
    /// An output that does not say which media types it wants gets those of the base image, Docker's where there is none;
    /// otherwise OCI's.
    pub inherit_media_types: bool,
    /// How results are pushed, as far as that differs from how images are pulled.
    pub push: PushSettings,
    /// Told what will be written before anything is.
    pub before_outputs: Option<BeforeOutputs>,
    /// The clock; `SystemTime::now` outside tests.
    pub now: fn() -> SystemTime,
}

/// How results are pushed, as far as that differs from how images are pulled.
#[derive(Debug, Clone, Default)]
pub struct PushSettings {
    /// Certificates, proxies, time-outs; `None`: those of registries that are pulled from.
    pub client: Option<ClientOptions>,
    /// Registries without TLS; `None`: those of pulls. Maps have no meaning for pushes.
    pub registry: Option<RegistryOptions>,
    /// What happens when a registry refuses.
    pub options: PushOptions,
}

/// Called once with the descriptor of the image or index when it is whole, before the first output is written. An error
/// ends the build.
#[derive(Clone)]
pub struct BeforeOutputs(pub Arc<BeforeOutputsCallback>);

type BeforeOutputsCallback = dyn Fn(&Descriptor) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + Send + Sync;

impl fmt::Debug for BeforeOutputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BeforeOutputs")
    }
}

/// Where the Dockerfile is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerfileSource {
    /// A file of the host, with the name as the user gave it for messages.
    File(PathBuf),
    /// A file inside the context, relative; needed where the context is an archive or a URL.
    InContext(PathBuf),
    /// Text that is already here (standard input, a library's caller).
    Text(String),
}

/// Where COPY and ADD read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextSource {
    /// A directory of the host.
    Directory(PathBuf),
    /// A tar, compressed or not, on standard input.
    Stdin,
    /// A tar, compressed or not, of the library's caller.
    Tar(TarContext),
    /// A tar, compressed or not, in a file.
    Archive(PathBuf),
    /// A tar, compressed or not, in an object store.
    Bucket(Bucket),
    /// A commit of a repository, with `.git`.
    Repository(Repository),
    /// A git URL.
    Git(String),
    /// An http(s) URL of an archive or a Dockerfile.
    Url(String),
    /// No files at all.
    Empty,
}

impl fmt::Display for ContextSource {
    /// Where it comes from, for messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) | Self::Archive(path) => write!(f, "`{}`", path.display()),
            Self::Stdin => f.write_str("standard input"),
            Self::Tar(tar) => f.write_str(tar.name()),
            Self::Bucket(bucket) => bucket.fmt(f),
            Self::Repository(_) => f.write_str("a repository"),
            Self::Git(url) | Self::Url(url) => match http::Url::parse(url) {
                Ok(url) => f.write_str(&http::redacted(&url)),
                Err(_) => f.write_str("a URL"),
            },
            Self::Empty => f.write_str("nothing"),
        }
    }
}

/// How a context that has to be fetched is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fetched {
    /// As BuildKit does: its author chose what is in it, so no ignore file counts, and a text is a Dockerfile (checklist D-02).
    #[default]
    AsItIs,
    /// As Kaniko does, like a directory of the host: its ignore file counts, and what is no archive is an error.
    LikeDirectory,
}

impl BuildRequest {
    /// Has requests that are tried again told to `observer`, unless the caller is told.
    pub(super) fn tell_retries(&mut self, observer: &Arc<dyn Observer>) {
        let others = [&mut self.registry_client, &mut self.push.client].into_iter().flatten();
        for client in others.chain([&mut self.client]).filter(|client| client.on_retry.is_none()) {
            let observer = Arc::clone(observer);
            client.on_retry = Some(RetryNotice(Arc::new(move |url, attempt, delay| {
                observer.event(Event::Retry { what: url, attempt, delay });
            })));
        }
    }

    /// The build of `Dockerfile` in the directory `context`, with what [`crate::sandbox::enter`] found and the defaults of
    /// `slipway build`: no output but the work dir, no names, no credentials. Fields are changed as needed.
    ///
    /// ```no_run
    /// use std::sync::Arc;
    ///
    /// use builder_core::cancel::Cancel;
    /// use builder_core::event::Silent;
    /// use builder_core::exec::{self, BuildRequest};
    /// use builder_core::output::{Exporter, Target};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let environment = builder_core::sandbox::enter()?; // first thing in main
    /// let mut request = BuildRequest::new("/workspace", "/volume/slipway", environment);
    /// request.tags = vec!["registry.example/app:1".parse()?];
    /// request.outputs = vec![Target::new(Exporter::Registry { by_digest: false, insecure: false })];
    /// let result = exec::build(&request, Arc::new(Silent), &Cancel::default())?;
    /// println!("{}", result.root.digest);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(context: impl Into<PathBuf>, work_dir: impl Into<PathBuf>, environment: Environment) -> Self {
        let context = context.into();
        Self {
            dockerfile: DockerfileSource::File(context.join("Dockerfile")),
            context: ContextSource::Directory(context),
            context_sub_path: None,
            fetched: Fetched::AsItIs,
            git: GitOptions::default(),
            plan: PlanOptions::default(),
            platforms: Vec::new(),
            tags: Vec::new(),
            outputs: Vec::new(),
            work_dir: work_dir.into(),
            tree_mode: None,
            directories: Directories::default(),
            environment,
            client: ClientOptions::default(),
            registry_client: None,
            registry: RegistryOptions::default(),
            credentials: CredentialOptions::default(),
            ignored: Ignored::default(),
            warmed: None,
            limits: Limits::default(),
            keep_layers: false,
            single_layer: false,
            no_cache: NoCache::Off,
            cache: CacheOptions::default(),
            compression: Compression::default(),
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            annotations: Vec::new(),
            inherit_media_types: false,
            push: PushSettings::default(),
            before_outputs: None,
            now: SystemTime::now,
        }
    }

    /// Compression of new layers: what an output asks for, else the request's own.
    pub(super) fn layer_compression(&self) -> Compression {
        self.outputs.iter().find_map(|target| target.compression).unwrap_or(self.compression)
    }

    /// Refuses outputs that one image cannot serve: what an output asks for is never silently another one's wish.
    pub(super) fn check_outputs(&self) -> Result<(), BuildError> {
        self.outputs.iter().try_for_each(Target::check_place)?;
        let mut images =
            self.outputs.iter().filter(|output| !output.is_files() && output.exporter != Exporter::CacheOnly);
        let Some(first) = images.next() else { return Ok(()) };
        for other in images {
            let form = |output: &Target| output.compression.unwrap_or(self.compression);
            let differs = [
                ("compression", form(other) != form(first)),
                ("force-compression", other.force_compression != first.force_compression),
                ("oci-mediatypes", other.wants_docker_media_types() != first.wants_docker_media_types()),
                ("rewrite-timestamp", other.rewrite_timestamp != first.rewrite_timestamp),
                ("source-date-epoch", other.source_date_epoch != first.source_date_epoch),
                ("annotations", other.annotations != first.annotations),
            ];
            if let Some((option, _)) = differs.into_iter().find(|(_, differs)| *differs) {
                return Err(BuildError::OutputsDiffer { option });
            }
        }
        Ok(())
    }

    /// Whether an index is written: for several platforms, or on request (checklist X-08).
    pub(super) fn wants_index(&self) -> bool {
        let asked = self.plan.build_args.get("BUILDKIT_MULTI_PLATFORM");
        self.platforms.len() > 1
            || asked.is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }

    /// Those of the outputs and then those of the build, which count before them.
    pub(super) fn all_annotations(&self) -> impl Iterator<Item = &Annotation> {
        self.outputs.iter().flat_map(|output| &output.annotations).chain(&self.annotations)
    }

    /// Refuses annotations that have no place (checklist X-09), before anything is built.
    pub(super) fn check_annotations(&self, platforms: &[&Platform]) -> Result<(), BuildError> {
        for annotation in self.all_annotations() {
            let of_index = matches!(annotation.level, AnnotationLevel::Index | AnnotationLevel::IndexDescriptor);
            if self.docker_media_types() && annotation.level != AnnotationLevel::Manifest {
                return Err(crate::image::IndexError::DockerAnnotations.into());
            }
            if of_index && !self.wants_index() {
                return Err(BuildError::NoIndex);
            }
            let wanted = annotation.platform.as_ref();
            if let Some(platform) = wanted.filter(|wanted| !of_index && !platforms.contains(wanted)) {
                return Err(BuildError::AnnotationPlatform { platform: Box::new(platform.clone()) });
            }
        }
        Ok(())
    }

    /// The same request with outputs that say which media types they want: those of `base`, the manifest's type of the image
    /// that the result is built on. Docker's types have no zstd, so there the default compression takes its place.
    pub(super) fn with_media_types_of(&self, base: Option<&MediaType>, observer: &dyn Observer) -> Self {
        let mut request = self.clone();
        if request.outputs.is_empty() {
            request.outputs.push(Target::new(Exporter::CacheOnly));
        }
        let oci = base == Some(&MediaType::OciManifest);
        for output in &mut request.outputs {
            output.oci_media_types.get_or_insert(oci);
        }
        if request.docker_media_types() && matches!(request.layer_compression(), Compression::Zstd { .. }) {
            observer.event(Event::Notice {
                message: "layers are compressed with gzip: the image has Docker's media types, which know no zstd",
            });
            request.compression = Compression::default();
            for output in &mut request.outputs {
                output.compression = None;
            }
        }
        request
    }

    /// Whether an output wants Docker's media types instead of OCI's.
    pub(super) fn docker_media_types(&self) -> bool {
        self.outputs.iter().any(Target::wants_docker_media_types)
    }

    /// The time to which mtimes in layers are clamped, if an output asks for it and an epoch is in force.
    pub(super) fn clamp_mtime(&self, plan: &Plan) -> Option<i64> {
        let target = self.outputs.iter().find(|target| target.rewrite_timestamp)?;
        target.source_date_epoch.unwrap_or(plan.source_date_epoch)
    }

    /// The epoch of the image's own times.
    pub(super) fn epoch(&self, plan: &Plan) -> Option<i64> {
        self.outputs.iter().find_map(|target| target.source_date_epoch).unwrap_or(plan.source_date_epoch)
    }
}

/// Which steps must not come from the cache.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NoCache {
    /// All may.
    #[default]
    Off,
    /// None may.
    All,
    /// None of these stages' steps may; names compare case-insensitively.
    Stages(Vec<String>),
}

impl NoCache {
    /// Whether the steps of stage `name` must be done anew.
    pub fn applies_to(&self, name: &str) -> bool {
        match self {
            Self::Off => false,
            Self::All => true,
            Self::Stages(names) => names.iter().any(|n| n.eq_ignore_ascii_case(name)),
        }
    }
}

/// Bytes of a secret. Cannot be printed.
#[derive(Clone)]
pub struct SecretValue(Arc<Vec<u8>>);

impl SecretValue {
    /// Takes the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(bytes))
    }

    /// The bytes, for the sandbox.
    pub(super) fn bytes(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.0)
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// When COPY, ADD and WORKDIR work in a directory that holds the layers below them, and when on what is known of these
/// layers. The result is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Directories {
    /// When a RUN or an output needs the directory as well.
    #[default]
    WhenNeeded,
    /// Always.
    Always,
}
