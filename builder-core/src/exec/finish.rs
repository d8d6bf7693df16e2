//! From finished stages to written outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::cache::StepCache;
use super::elsewhere::Elsewhere;
use super::known::Known;
use super::meter::{self, Meter};
use super::passing::Passing;
use super::prepare::{PlatformPlan, Prepared};
use super::released::Released;
use super::report::{Recorder, Report};
use super::request::BuildRequest;
use super::shared::{BlobAccess, Places, Shared, Slot, StageResult};
use super::uploads::Uploads;
use super::{BuildError, maintain, single, stages};
use crate::cancel::Cancel;
use crate::event::{Event, Observer};
use crate::http;
use crate::image::{self, Assembly, Image, ImageLayer, MediaTypes, NewLayer};
use crate::layer::{LayerOptions, SealedLayer};
use crate::oci::{BlobDigest, ChainId, Descriptor, Platform, Reference};
use crate::output::{
    self, AnnotationLevel, Blobs, Export, Exporter, FilesOptions, Index, OutputError, PlatformFiles, Target,
};
use crate::plan::{Action, Base, Plan};
use crate::registry::{Credentials, Registry, Sessions};
use crate::rootfs::index::Bounds;
use crate::rootfs::{Rootfs, TreeError, TreeMode, Trees, Volume};
use crate::sandbox::{IdMapping, SandboxError, Tier};
use crate::source::Origin;

/// What a build made.
#[derive(Debug)]
pub struct BuildResult {
    /// One image a platform.
    pub images: Vec<Image>,
    /// What the names point to: the manifest, or the index above several.
    pub root: Descriptor,
    /// Numbers, as `--report` writes them.
    pub report: Report,
}

/// Builds a plan and writes its outputs.
pub(super) fn build_prepared(
    request: &BuildRequest,
    prepared: Prepared,
    recorder: &Arc<Recorder>,
    cancel: &Cancel,
) -> Result<BuildResult, BuildError> {
    let started = Instant::now();
    let io_before = request.environment.counters.read();
    let observer: Arc<dyn Observer> = Arc::clone(recorder) as Arc<dyn Observer>;
    request.check_annotations(&prepared.plans.iter().map(|planned| &planned.plan.platform).collect::<Vec<_>>())?;
    if request.docker_media_types() && request.all_annotations().next().is_some() {
        observer.event(Event::Notice { message: "annotations are left out: manifests of Docker's types have none" });
    }
    let (mut trees, _) = maintain::open_trees(&request.work_dir, request.tree_mode, &request.environment)?;
    let limits = &request.limits;
    trees.set_streams(limits.connections);
    trees.set_window_bytes(limits.tree_bytes(), limits.window_bytes());
    trees.set_known_bounds(Bounds::of_memory(limits.tree_bytes(), limits.step_bytes()));
    trees.account(prepared.reach.disk.clone());
    if prepared.plans.iter().any(|planned| has_commands(&planned.plan)) {
        commands_can_run(request, &trees, &*observer)?;
    }
    let cache = StepCache::open(&request.work_dir)
        .map_err(|source| BuildError::WorkDir { path: request.work_dir.clone(), source })?;
    let steps = |plan: &Plan| plan.stages.iter().map(|stage| stage.steps.len()).sum::<usize>();
    observer.event(Event::Planned {
        steps: prepared.plans.iter().map(|planned| steps(&planned.plan)).sum(),
        stages: prepared.plans.iter().map(|planned| planned.plan.stages.len()).sum(),
    });
    if let Some((free, _)) = meter::free_space(&request.work_dir)
        && let Some(message) = meter::hardly_enough(free, packed_bases(request, &prepared))
    {
        observer.event(Event::Notice { message: &message });
    }
    let outputs = request.outputs.iter().filter_map(|output| output.directory()).collect();
    let disk = (request.limits.disk_bytes, prepared.reach.disk.clone());
    let meter = Meter::new(&request.work_dir, disk, outputs, &cache, recorder, started).making_room_in(&trees);
    let released = Released::new(request, &cache, &prepared.store, &meter);
    let (passing, passes) = Passing::new(base_blobs(request, &prepared), registries(request));
    let blobs = BlobAccess::new(
        &prepared.store,
        &prepared.sources,
        Arc::clone(&observer),
        cancel.clone(),
        prepared.plans.iter().flat_map(|planned| planned.images.values()),
        &released,
        (keeps_bases(request), passing),
    );

    let own = request.outputs.iter().map(|output| push_registry(request, &prepared, output));
    let own: Vec<Option<Registry>> = own.collect();
    let registries: Vec<Option<&Registry>> = request
        .outputs
        .iter()
        .zip(&own)
        .map(|(output, own)| match output.exporter {
            Exporter::Registry { .. } => Some(own.as_ref().unwrap_or_else(|| prepared.sources.registry())),
            _ => None,
        })
        .collect();
    let sessions = Sessions::new(request.work_dir.join("uploads"));
    // A blob that is not here is not sent from here.
    sessions.forget_unless(|digest| prepared.store.size(digest).is_some());
    let uploads = Uploads::new(request, &registries, &blobs, (&released, passes), &sessions, &*observer);
    let elsewhere = Elsewhere::new(request, prepared.sources.registry(), Arc::clone(&observer));
    let stop = cancel.child();
    let build = || {
        let mut images = Vec::new();
        let mut roots = Vec::new();
        let mut first_step = 0;
        for planned in &prepared.plans {
            let shared = shared(
                request,
                &prepared,
                planned,
                &*observer,
                &stop,
                &trees,
                &cache,
                &blobs,
                (&uploads, &elsewhere),
                first_step,
            );
            first_step += steps(&planned.plan);
            let target = stages::build_all(&shared)?;
            elsewhere.is_result(target.made.keys().map(|(stage, index)| shared.step_id(*stage, *index)));
            images.push(assemble(&shared, planned, &target)?);
            if request.outputs.iter().any(Target::is_files) {
                // The tree stays as long as the result it is opened from.
                let rootfs = target.tree.rootfs(&shared)?;
                roots.push((planned.plan.platform.clone(), rootfs, target));
            }
        }
        uploads.end();
        let written = write_outputs(request, &prepared, &blobs, &uploads, &images, &roots, &observer, &stop)?;
        Ok((images, written))
    };
    let with_records = || elsewhere.with_uploads(&blobs, &uploads, &stop, build);
    let ended = meter.during(&stop, || uploads.during(&stop, with_records));
    let mut report = recorder.report();
    report.seconds = started.elapsed().as_secs_f64();
    report.peak_memory_bytes = super::report::peak_memory();
    let peaks = meter.peaks();
    report.peak_anonymous_bytes = peaks.anonymous;
    report.peak_disk_bytes = peaks.disk;
    report.peak_disk_elsewhere_bytes = peaks.elsewhere;
    let io = request.environment.counters.read();
    (report.bytes_read, report.bytes_written) = (io.0.saturating_sub(io_before.0), io.1.saturating_sub(io_before.1));
    for files in std::iter::once(&prepared.context).chain(prepared.named_contexts.values()) {
        let counts = files.hash_counts();
        report.context_files_read += counts.read;
        report.context_bytes_read += counts.bytes;
        report.context_files_known += counts.known;
    }
    report.timeline.samples = meter.samples().into();
    recorder.keep(&report);
    let (images, written) = ended.map_err(|error| match error {
        error if released.forgot() => BuildError::LayerGone { source: Box::new(error) },
        error => at_its_step(error, &prepared.plans),
    })?;
    if let Some(error) = elsewhere.failure() {
        return Err(error.into());
    }

    let repositories = uploads.repositories();
    for layer in images.iter().flat_map(|image| &image.layers) {
        match blobs.origins.contains_key(&layer.blob.digest) {
            false => released.arrived_at_last(&layer.blob, &repositories),
            true => released.base_arrived(&layer.blob),
        }
    }

    report.digest = written.digest.to_string();
    report.manifests =
        images.iter().map(|image| (image.platform.to_string(), image.digest.to_string())).collect::<BTreeMap<_, _>>();
    observer.event(Event::Done { totals: report.totals() });
    Ok(BuildResult { images, root: written, report })
}

/// The budget knows a step by its title alone; where its instruction stands should be told too.
fn at_its_step(error: BuildError, plans: &[PlatformPlan]) -> BuildError {
    let BuildError::DiskBudget { step: Some(title), .. } = &error else { return error };
    let stages = plans.iter().flat_map(|planned| &planned.plan.stages);
    let found = stages.flat_map(|stage| stage.steps.iter().map(move |step| (step, stage)));
    match found.into_iter().find(|(step, _)| step.title == *title) {
        Some((step, stage)) => error.at(step, stage),
        None => error,
    }
}

fn has_commands(plan: &Plan) -> bool {
    plan.stages.iter().flat_map(|stage| &stage.steps).any(|step| matches!(step.action, Action::Run(_)))
}

/// Before the first step, so that nobody waits for an hour to learn it.
fn commands_can_run(request: &BuildRequest, trees: &Trees, observer: &dyn Observer) -> Result<(), BuildError> {
    let environment = &request.environment;
    environment.available()?;
    let work_dir = &request.work_dir;
    let failed = |source| TreeError::Io { action: "try out the volume of", path: work_dir.clone(), source };
    let fitness = Volume::fitness(work_dir).map_err(failed)?;
    if let Some(lacks) = fitness.lacks {
        let file_system = Volume::probe(work_dir).map(|volume| volume.file_system).unwrap_or_default();
        return Err(TreeError::Unfit { path: work_dir.clone(), file_system, lacks }.into());
    }
    if !fitness.pipes
        && let Ok(Volume { file_system, .. }) = Volume::probe(work_dir)
    {
        let message = format!(
            "the volume of the work directory ({file_system}) holds no named pipes and sockets: a RUN that makes one will fail; put \
             --work-dir on ext4, xfs, btrfs or tmpfs if one does"
        );
        observer.event(Event::Notice { message: &message });
    }
    let elsewhere = environment.tier != Some(Tier::Namespaces) || environment.ids == IdMapping::Root;
    // As root the sandbox's own mount allows it; in a user namespace the flag is locked. overlayfs has flags of its own.
    if !elsewhere && trees.mode() == TreeMode::Directory && Volume::probe(work_dir).is_ok_and(|volume| volume.no_exec) {
        return Err(SandboxError::NoExec { work_dir: work_dir.clone() }.into());
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "this is where everything meets; each has a type of its own")]
fn shared<'a>(
    request: &'a BuildRequest,
    prepared: &'a Prepared,
    planned: &'a PlatformPlan,
    observer: &'a dyn Observer,
    cancel: &Cancel,
    trees: &'a Trees,
    cache: &'a StepCache,
    blobs: &'a BlobAccess<'a>,
    (uploads, elsewhere): (&'a Uploads<'a>, &'a Elsewhere<'a>),
    first_step: usize,
) -> Shared<'a> {
    let mut next = first_step;
    let first_steps = planned
        .plan
        .stages
        .iter()
        .map(|stage| {
            let first = next;
            next += stage.steps.len();
            first
        })
        .collect();
    Shared {
        request,
        plan: &planned.plan,
        observer,
        cancel: cancel.child(),
        store: &prepared.store,
        trees,
        cache,
        elsewhere,
        forecast: OnceLock::new(),
        twins: OnceLock::new(),
        images: &planned.images,
        blobs,
        context: &prepared.context,
        named_contexts: &prepared.named_contexts,
        remote: super::inputs::remote(request, &prepared.reach),
        stages: planned.plan.stages.iter().map(|_| Slot::default()).collect(),
        at_work: planned.plan.stages.iter().map(|_| AtomicBool::new(false)).collect(),
        expected: Mutex::default(),
        image_trees: Mutex::default(),
        places: Places::new(request.limits.steps.get()),
        seals: Places::new(request.limits.layers_at_once().get()),
        known: Known::default(),
        begun: Mutex::default(),
        first_step: first_steps,
        uploads,
    }
}

/// Makes config and manifest of the target.
fn assemble(shared: &Shared<'_>, planned: &PlatformPlan, target: &StageResult) -> Result<Image, BuildError> {
    let request = shared.request;
    let plan = &planned.plan;
    let below = target.tree.layers.len() - target.made.len();
    let force = request.outputs.iter().any(|output| output.force_compression);
    let mut base_layers = Vec::new();
    for layer in &target.tree.layers[..below] {
        let layer = ImageLayer { diff_id: layer.diff_id, blob: layer.blob.clone() };
        base_layers.push(if force { in_form(shared, layer)? } else { layer });
    }
    let (made, history) = if request.single_layer {
        let made = single::squash(shared, target)?;
        let history = single::history(&plan.stages[plan.target.0].history, &made);
        (made, history)
    } else {
        (target.made.clone(), plan.stages[plan.target.0].history.clone())
    };
    let mut new_layers = BTreeMap::new();
    for (place, made) in &made {
        // A kept layer may have been compressed for another output.
        let layer = ImageLayer { diff_id: made.sealed.diff_id, blob: made.sealed.blob.clone() };
        let layer = SealedLayer { blob: in_form(shared, layer)?.blob, ..made.sealed.clone() };
        let (seconds, nanoseconds) = made.created;
        let created = UNIX_EPOCH + Duration::new(seconds.try_into().unwrap_or(0), nanoseconds);
        new_layers.insert(*place, NewLayer { layer, created, description: made.title.clone() });
    }
    let annotations = wanted_annotations(request, AnnotationLevel::Manifest, &plan.platform);
    let stage = &plan.stages[plan.target.0];
    Ok(image::assemble(&Assembly {
        config: &stage.config,
        history: &history,
        base_layers: &base_layers,
        new_layers: &new_layers,
        source_date_epoch: request.epoch(plan),
        media_types: media_types(request),
        annotations: &annotations,
    })?)
}

fn media_types(request: &BuildRequest) -> MediaTypes {
    if request.docker_media_types() { MediaTypes::Docker } else { MediaTypes::Oci }
}

/// Annotations for one platform; of two with one key the last one counts.
fn wanted_annotations(request: &BuildRequest, level: AnnotationLevel, platform: &Platform) -> BTreeMap<String, String> {
    request
        .all_annotations()
        .filter(|annotation| annotation.level == level)
        .filter(|annotation| annotation.platform.as_ref().is_none_or(|wanted| wanted == platform))
        .map(|annotation| (annotation.key.clone(), annotation.value.clone()))
        .collect()
}

/// The layer in the compression that the outputs ask for.
fn in_form(shared: &Shared<'_>, layer: ImageLayer) -> Result<ImageLayer, BuildError> {
    let request = shared.request;
    let compression = request.layer_compression();
    if !output::needs_recompression(&layer.blob, compression) {
        return Ok(layer);
    }
    let options = LayerOptions { compression, docker_media_types: request.docker_media_types(), clamp_mtime: None };
    let (blobs, store, limits) = (shared.blobs, shared.store, &request.limits);
    Ok(output::recompress(&layer, blobs, store, &options, limits, &shared.cancel, &|_| {})?)
}

/// The tree of a result, and the result that keeps it.
type ResultRoot = (crate::oci::Platform, Rootfs, Arc<StageResult>);

#[expect(clippy::too_many_arguments, reason = "as above, at the other end")]
fn write_outputs(
    request: &BuildRequest,
    prepared: &Prepared,
    blobs: &BlobAccess<'_>,
    uploads: &Uploads<'_>,
    images: &[Image],
    roots: &[ResultRoot],
    observer: &Arc<dyn Observer>,
    cancel: &Cancel,
) -> Result<Descriptor, BuildError> {
    let index = if request.wants_index() {
        let host = Platform::host();
        let on_index = wanted_annotations(request, AnnotationLevel::Index, &host);
        let descriptors = images
            .iter()
            .map(|image| {
                let wanted = wanted_annotations(request, AnnotationLevel::ManifestDescriptor, &image.platform);
                (image.platform.clone(), wanted)
            })
            .filter(|(_, wanted)| !wanted.is_empty())
            .collect();
        let images: Vec<&Image> = images.iter().collect();
        let index = image::index(&images, media_types(request), &on_index, &descriptors)?;
        let annotations = wanted_annotations(request, AnnotationLevel::IndexDescriptor, &host).into_iter().collect();
        Some(Index { bytes: index.bytes, media_type: index.media_type, annotations })
    } else {
        None
    };
    let of_entry: Vec<(String, String)> = match images {
        [image] if index.is_none() => {
            wanted_annotations(request, AnnotationLevel::ManifestDescriptor, &image.platform).into_iter().collect()
        }
        _ => Vec::new(),
    };
    let created = images.first().and_then(|image| {
        let config = image.parsed_config().ok()?;
        config.raw().get("created")?.as_str().map(str::to_owned)
    });
    let export = |names: &[Reference]| -> Result<Descriptor, BuildError> {
        let export =
            Export { images, index: index.as_ref(), names, created: created.as_deref(), annotations: &of_entry };
        export.root().ok_or(BuildError::Output(OutputError::NoImage))
    };
    let root = export(&[])?;
    if let Some(told) = &request.before_outputs {
        told.0(&root).map_err(|source| BuildError::BeforeOutputs { source })?;
    }
    for (number, target) in request.outputs.iter().enumerate() {
        let names: Vec<Reference> = request.tags.iter().chain(&target.names).cloned().collect();
        let export = Export {
            images,
            index: index.as_ref(),
            names: &names,
            created: created.as_deref(),
            annotations: &of_entry,
        };
        let files: Vec<PlatformFiles<'_>> =
            roots.iter().map(|(platform, rootfs, _)| PlatformFiles { platform, rootfs }).collect();
        let epoch = target.source_date_epoch.unwrap_or(prepared.plans.first().and_then(|p| p.plan.source_date_epoch));
        let mut stdout = io::stdout();
        match &target.exporter {
            Exporter::Registry { by_digest, .. } => {
                let pusher = uploads.pusher(number).expect("every registry output has one");
                pusher.publish(&export, *by_digest, cancel)?;
            }
            Exporter::DockerSave { to, names } => {
                output::docker_save(&export, names, blobs, to, &mut stdout, cancel, &**observer)?;
            }
            Exporter::OnlyOciDirectory(to) => output::only_oci_directory(&export, blobs, to, cancel, &**observer)?,
            Exporter::OciArchive(to) => output::oci_archive(&export, blobs, to, &mut stdout, cancel, &**observer)?,
            Exporter::DockerArchive(to) => {
                output::docker_archive(&export, blobs, to, &mut stdout, cancel, &**observer)?
            }
            Exporter::OciDirectory(to) => output::oci_directory(&export, blobs, to, cancel, &**observer)?,
            Exporter::Tar { to, platform_split } => {
                let options = FilesOptions { platform_split: *platform_split, epoch, delete: false };
                output::tar(&files, to, &mut stdout, &options, cancel, &**observer)?;
            }
            Exporter::Local { directory, platform_split, delete } => {
                let options = FilesOptions { platform_split: *platform_split, epoch, delete: *delete };
                output::directory(&files, directory, &options, cancel, &**observer)?;
            }
            Exporter::CacheOnly => {}
        }
    }
    Ok(root)
}

/// A registry client with the settings of pushes, that also speaks plain HTTP for an output that asks for it; `None` if
/// that of pulls does.
fn push_registry(request: &BuildRequest, prepared: &Prepared, output: &Target) -> Option<Registry> {
    let own = request.push.client.is_some() || request.push.registry.is_some();
    let Exporter::Registry { insecure, .. } = output.exporter else { return None };
    (own || insecure).then(|| {
        let mut options = request.push.registry.as_ref().unwrap_or(&request.registry).clone();
        options.insecure_all |= insecure;
        let client = match &request.push.client {
            Some(client) => http::Client::new(client.clone()),
            None => prepared.sources.registry().client().clone(),
        };
        Registry::new(client, Credentials::new(request.credentials.clone()), options)
    })
}

/// Bytes of the blobs of all base layers that commands stand on and that no tree here holds.
fn packed_bases(request: &BuildRequest, prepared: &Prepared) -> u64 {
    let mut missing = BTreeMap::new();
    for planned in &prepared.plans {
        let with_commands = planned.plan.stages.iter().filter(|stage| {
            let is_command = |step: &crate::plan::Step| matches!(step.action, crate::plan::Action::Run(_));
            stage.steps.iter().any(is_command)
        });
        for stage in with_commands {
            let crate::plan::Base::Image(base) = &stage.base else { continue };
            let layers = planned.images.get(base).map_or(&[][..], |image| &image.layers);
            let mut chain = None;
            for layer in layers {
                let this = ChainId::extend(chain, layer.diff_id);
                let trees = request.work_dir.join("trees");
                if !["layers", "plain", "linked", "bases"]
                    .iter()
                    .any(|kind| trees.join(kind).join(this.to_hex()).exists())
                {
                    missing.insert(layer.blob.digest, layer.blob.size);
                }
                chain = Some(this);
            }
        }
    }
    missing.values().sum()
}

/// Whether blobs of bases stay in the store.
fn keeps_bases(request: &BuildRequest) -> bool {
    let to_files = |output: &Target| {
        !matches!(output.exporter, Exporter::Registry { .. } | Exporter::CacheOnly) && !output.is_files()
    };
    // An archive needs them each time.
    request.keep_layers || request.outputs.iter().any(to_files)
}

/// Registries that the image goes to.
fn registries(request: &BuildRequest) -> BTreeSet<String> {
    let outputs = request.outputs.iter().filter(|output| matches!(output.exporter, Exporter::Registry { .. }));
    let names = outputs.flat_map(|output| request.tags.iter().chain(&output.names));
    names.map(|name| name.registry().to_owned()).collect()
}

/// Base layers of the images, as far as they keep their form.
fn base_blobs(request: &BuildRequest, prepared: &Prepared) -> BTreeSet<BlobDigest> {
    let force = request.outputs.iter().any(|output| output.force_compression);
    let changes = |blob: &Descriptor| force && output::needs_recompression(blob, request.layer_compression());
    let mut blobs = BTreeSet::new();
    for PlatformPlan { plan, images, .. } in &prepared.plans {
        for stage in plan.stages.iter().filter(|stage| plan.in_image(stage.id)) {
            let Base::Image(base) = &stage.base else { continue };
            let layers = images.get(base).map_or(&[][..], |image| &image.layers);
            let kept = layers.iter().filter(|layer| layer.blob.urls.is_empty() && !changes(&layer.blob));
            blobs.extend(kept.map(|layer| layer.blob.digest));
        }
    }
    blobs
}

impl Blobs for BlobAccess<'_> {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        let stream = self.open_blob(descriptor).map_err(io::Error::other)?;
        Ok(stream)
    }

    fn origin(&self, descriptor: &Descriptor) -> Option<Reference> {
        let base = self.origins.get(&descriptor.digest).map(|image| image.origin.clone());
        let pushed = self.released.places(descriptor.digest).into_iter().next();
        let found = base.into_iter().chain(self.elsewhere(descriptor.digest)).find_map(|origin| match origin {
            Origin::Registry(locations) => locations.first().cloned(),
            Origin::Layout(_) => None,
        });
        found.or(pushed)
    }
}
