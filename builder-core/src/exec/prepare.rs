//! Before the first step: context and Dockerfile are read, bases resolved, plans made.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::BuildError;
use super::cache::StepCache;
use super::given::StandardInput;
use super::inputs::{self, InputError, Inputs, Reach};
use super::maintain::{self, InUse};
use super::request::{BuildRequest, ContextSource};
use super::space::Space;
use crate::cancel::Cancel;
use crate::context::{FetchedContext, Files};
use crate::disk::Disk;
use crate::dockerfile::{self, Dockerfile, Finding};
use crate::event::{Event, Observer};
use crate::http;
use crate::oci::{MediaType, Platform};
use crate::plan::{
    self, Base, BaseImage, Bases, Checked, EpochSource, FileSource, ImageRequest, Lowered, Outline, Plan, PlanOptions,
};
use crate::registry::{Credentials, Registry};
use crate::source::{ResolvedImage, SourceError, Sources};
use crate::store::Store;

/// Build arguments that steer something of BuildKit which is not here, and what the user is told.
const ARGUMENTS_WITHOUT_EFFECT: [(&str, &str); 2] = [
    (
        "BUILDKIT_INLINE_CACHE",
        "BUILDKIT_INLINE_CACHE: the image carries no cache records; the work directory keeps the steps",
    ),
    (
        "BUILDKIT_BUILD_NAME",
        "BUILDKIT_BUILD_NAME: builds have no names here; the report and the digest tell them apart",
    ),
];

/// A build that is planned and not begun.
#[derive(Debug)]
pub struct Prepared {
    /// The Dockerfile.
    pub dockerfile: Dockerfile,
    /// A plan for each platform.
    pub plans: Vec<PlatformPlan>,
    pub(super) reach: Reach,
    pub(super) store: Store,
    pub(super) sources: Sources,
    pub(super) context: Files,
    pub(super) named_contexts: BTreeMap<String, Files>,
    /// Keeps `slipway cache prune` away.
    _in_use: InUse,
    /// Keeps fetched contexts on disk while the build needs them.
    pub(super) _fetched: Vec<Arc<FetchedContext>>,
}

impl Prepared {
    /// Type of the manifest that the (first) result is built on; `None` if it begins from scratch or a context.
    pub(super) fn base_media_type(&self) -> Option<&MediaType> {
        let planned = self.plans.first()?;
        let mut stage = planned.plan.stages.get(planned.plan.target.0)?;
        loop {
            match &stage.base {
                Base::Stage(id) => stage = planned.plan.stages.get(id.0)?,
                Base::Image(request) => {
                    // What says nothing is OCI's: Docker's manifests always say so.
                    return planned.images.get(request)?.manifest.media_type.as_ref().or(Some(&MediaType::OciManifest));
                }
                Base::Scratch | Base::Context(_) => return None,
            }
        }
    }
}

/// The plan for one platform and the images it stands on.
#[derive(Debug)]
pub struct PlatformPlan {
    /// The plan.
    pub plan: Plan,
    pub(super) images: BTreeMap<ImageRequest, Arc<ResolvedImage>>,
}

/// Reads, resolves and plans; nothing is built, and of images only manifests and configs are fetched.
///
/// # Errors
/// [`BuildError`] for everything that can be known before the first step.
pub fn prepare(request: &BuildRequest, observer: &dyn Observer, cancel: &Cancel) -> Result<Prepared, BuildError> {
    prepare_with(request, &Arc::default(), observer, cancel)
}

/// The same, and what standard input held is kept in `stdin`, or already there.
pub(super) fn prepare_with(
    request: &BuildRequest,
    stdin: &Arc<StandardInput>,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<Prepared, BuildError> {
    request.check_outputs()?;
    let unusable = |source| BuildError::WorkDir { path: request.work_dir.clone(), source };
    if request.work_dir.as_os_str().is_empty() {
        // It would mean the current directory, which nobody wants filled with blobs.
        return Err(unusable(std::io::Error::new(std::io::ErrorKind::InvalidInput, "its name is empty")));
    }
    let in_use = maintain::hold(&request.work_dir).map_err(unusable)?;
    let disk = disk(request)?;
    let store = Store::open_within(&request.work_dir, disk.clone())?;
    let client = http::Client::new(request.client.clone());
    let reach =
        Reach { client: client.clone(), disk: disk.clone(), store: Some(store.clone()), stdin: Arc::clone(stdin) };
    let credentials = Credentials::new(request.credentials.clone());
    let of_registries = match &request.registry_client {
        Some(options) => http::Client::new(options.clone()),
        None => client,
    };
    let sources = Sources::new(Registry::new(of_registries, credentials, request.registry.clone()), store.clone())
        .with_warmed(request.warmed.clone());
    let mut opened = inputs::open(request, &reach, cancel).map_err(|error| over_budget(request, &disk, error))?;
    let dockerfile = parse(&opened, observer)?;

    for (argument, told) in ARGUMENTS_WITHOUT_EFFECT {
        if request.plan.build_args.contains_key(argument) {
            observer.event(Event::Notice { message: told });
        }
    }

    let mut named_contexts = BTreeMap::new();
    let epoch = epoch_of_source(request, &dockerfile, &mut opened, &mut named_contexts, &reach, cancel)?;
    let mut plans = Vec::new();
    for platform in platforms(request) {
        let options = PlanOptions { epoch_of_source: epoch, ..options(request, &opened, platform) };
        plans.push(plan_platform(&dockerfile, &options, &sources, observer, cancel)?);
    }
    if let Some(planned) = plans.first() {
        warn(&dockerfile, &planned.plan.findings, observer);
        if !planned.plan.unconsumed.is_empty() {
            let names = planned.plan.unconsumed.join(", ");
            observer.event(Event::Notice { message: &format!("One or more build-args [{names}] were not consumed") });
        }
    }
    for planned in &plans {
        let bases = planned.plan.stages.iter().filter_map(|stage| match &stage.base {
            Base::Context(name) => Some(name),
            _ => None,
        });
        let sources = planned.plan.file_sources().filter_map(|from| match from {
            FileSource::NamedContext(name) => Some(name),
            _ => None,
        });
        for name in bases.chain(sources) {
            if !named_contexts.contains_key(name) {
                let (files, _) = inputs::open_named(request, name, &mut opened, &reach, cancel)?;
                named_contexts.insert(name.clone(), files);
            }
        }
    }
    let Inputs { files, fetched, .. } = opened;
    Ok(Prepared {
        dockerfile,
        plans,
        reach,
        store,
        sources,
        context: files,
        named_contexts,
        _in_use: in_use,
        _fetched: fetched,
    })
}

/// Looks up the time of what `SOURCE_DATE_EPOCH` names; `None` if it names nothing. A named context that is opened for it
/// stays open.
fn epoch_of_source(
    request: &BuildRequest,
    dockerfile: &Dockerfile,
    opened: &mut Inputs,
    named_contexts: &mut BTreeMap<String, Files>,
    reach: &Reach,
    cancel: &Cancel,
) -> Result<Option<Option<i64>>, BuildError> {
    let options = options(request, opened, request.platforms.first().cloned());
    let Some(source) = plan::epoch_source(dockerfile, &options).map_err(BuildError::Plan)? else { return Ok(None) };
    let remote = inputs::remote(request, reach);
    Ok(Some(match source {
        EpochSource::Context => opened.time()?,
        EpochSource::Named(name) => {
            let (files, time) = inputs::open_named(request, &name, opened, reach, cancel)?;
            named_contexts.insert(name, files);
            time
        }
        EpochSource::Url { url, checksum } => {
            remote.time_of_url(&url, checksum.as_deref(), cancel).map_err(InputError::from)?
        }
        EpochSource::Git { url, checksum } => {
            Some(remote.time_of_commit(&url, checksum.as_deref(), cancel).map_err(InputError::from)?)
        }
    }))
}

/// Applies all lint rules to all stages; nothing is fetched but the context.
///
/// # Errors
/// [`BuildError`] if context or Dockerfile cannot be read or parsed; what a build would stop at later is in the result.
pub fn check(
    request: &BuildRequest,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<(Dockerfile, Checked), BuildError> {
    let (opened, dockerfile) = read(request, observer, cancel)?;
    let platform = platforms(request).into_iter().next().flatten();
    let checked = plan::check(&dockerfile, &options(request, &opened, platform), &Bases::new());
    Ok((dockerfile, checked))
}

/// Reads the Dockerfile and nothing else; nothing is fetched but the context, if that holds it.
///
/// # Errors
/// [`BuildError`] if context or Dockerfile cannot be read or parsed.
pub fn dockerfile(request: &BuildRequest, observer: &dyn Observer, cancel: &Cancel) -> Result<Dockerfile, BuildError> {
    Ok(read(request, observer, cancel)?.1)
}

fn read(request: &BuildRequest, observer: &dyn Observer, cancel: &Cancel) -> Result<(Inputs, Dockerfile), BuildError> {
    let store = match request.context {
        ContextSource::Directory(_) | ContextSource::Empty => None,
        _ => Some(Store::open(&request.work_dir)?),
    };
    let client = http::Client::new(request.client.clone());
    let reach = Reach { client, disk: Disk::default(), store, stdin: Arc::default() };
    let opened = inputs::open(request, &reach, cancel)?;
    let dockerfile = parse(&opened, observer)?;
    Ok((opened, dockerfile))
}

/// What may be written below the work dir, beside what is there.
fn disk(request: &BuildRequest) -> Result<Disk, BuildError> {
    let Some(budget) = request.limits.disk_bytes else { return Ok(Disk::default()) };
    let cache = StepCache::open(&request.work_dir)
        .map_err(|source| BuildError::WorkDir { path: request.work_dir.clone(), source })?;
    Ok(Disk::limited(budget, Space::new(&request.work_dir, &cache).measure()))
}

/// The error of a context that is larger than the budget.
fn over_budget(request: &BuildRequest, disk: &Disk, error: BuildError) -> BuildError {
    match (disk.refused(), request.limits.disk_bytes) {
        (Some(refused), Some(budget)) => {
            let step = Some("fetching the context".to_owned());
            let used = refused.used.saturating_add(refused.wanted);
            BuildError::DiskBudget { budget, used, step, grown: refused.grown }
        }
        _ => error,
    }
}

fn platforms(request: &BuildRequest) -> Vec<Option<Platform>> {
    match request.platforms.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    }
}

fn options(request: &BuildRequest, opened: &Inputs, platform: Option<Platform>) -> PlanOptions {
    PlanOptions {
        platform,
        multi_platform: request.platforms.len() > 1,
        ignore_file: opened.ignore_file.clone(),
        ..request.plan.clone()
    }
}

fn parse(opened: &Inputs, observer: &dyn Observer) -> Result<Dockerfile, BuildError> {
    dockerfile::parse(&opened.dockerfile).map_err(|errors| {
        warn(errors.partial(), errors.findings(), observer);
        BuildError::Parse(errors)
    })
}

fn warn(dockerfile: &Dockerfile, findings: &[Finding], observer: &dyn Observer) {
    for finding in findings {
        observer.event(Event::Warning { finding, line: dockerfile.source.lines(&finding.span).first });
    }
}

fn plan_platform(
    dockerfile: &Dockerfile,
    options: &PlanOptions,
    sources: &Sources,
    observer: &dyn Observer,
    cancel: &Cancel,
) -> Result<PlatformPlan, BuildError> {
    let failed = |error: plan::PlanError| {
        warn(dockerfile, &error.findings, observer);
        BuildError::Plan(error)
    };
    let outline = plan::outline(dockerfile, options).map_err(failed)?;
    let mut images = BTreeMap::new();
    let mut bases = Bases::new();
    let mut needed = outline.images.clone();
    loop {
        for (wanted, image) in resolve_all(&needed, &outline, sources, cancel)? {
            observer.event(Event::BaseResolved { reference: &image.reference, digest: image.digest });
            bases.insert(wanted.clone(), BaseImage { config: image.config.clone(), pinned: image.pinned.clone() });
            images.insert(wanted, image);
        }
        match plan::lower(dockerfile, &outline, &bases, options).map_err(failed)? {
            Lowered::Plan(plan) => return Ok(PlatformPlan { plan: *plan, images }),
            Lowered::Needs(more) => needed = more,
        }
    }
}

/// Resolves images side by side: each is a few small requests that mostly wait.
fn resolve_all(
    needed: &[ImageRequest],
    outline: &Outline,
    sources: &Sources,
    cancel: &Cancel,
) -> Result<Vec<(ImageRequest, Arc<ResolvedImage>)>, BuildError> {
    let results: Vec<Result<Arc<ResolvedImage>, SourceError>> = std::thread::scope(|scope| {
        let workers: Vec<_> = needed
            .iter()
            .map(|request| scope.spawn(|| sources.resolve(&request.name, &request.platform, cancel)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    needed
        .iter()
        .zip(results)
        .map(|(request, result)| match result {
            Ok(image) => Ok((request.clone(), image)),
            Err(_) if cancel.is_cancelled() => Err(BuildError::Cancelled),
            Err(source) => Err(BuildError::Base {
                name: request.name.clone(),
                lines: outline.lines_of(request),
                suggestion: match source.is_not_found() {
                    true => outline.suggest_image(&request.name),
                    // Nobody could be asked, so it may be an image.
                    false => outline.suggest_stage(&request.name),
                },
                source,
            }),
        })
        .collect()
}
