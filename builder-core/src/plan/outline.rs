//! Phase one: global arguments, stages, target; which images are needed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::epoch::{self, EPOCH_ARG};
use super::error::{PlanError, PlanErrorKind};
use super::graph::{self, Origins, Redirect};
use super::types::{ImageRequest, PlanOptions};
use crate::dockerfile::lint::{self, Rule, messages};
use crate::dockerfile::words::{self, Expanded};
use crate::dockerfile::{Dockerfile, Finding, From, Instruction, InstructionKind, LineRange, Span};
use crate::hint::suggest::nearest;
use crate::oci::{Platform, Reference};

/// Build arguments that reach RUN without an ARG, in any case (checklist A-15).
pub(super) const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];

/// What is known before any base image is.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    /// All stages in file order.
    pub stages: Vec<StageOutline>,
    /// Position of the stage that is built.
    pub target: usize,
    /// Positions of the stages that it needs, itself included, as far as can be told without base images.
    pub reachable: BTreeSet<usize>,
    /// Images that the reachable stages name, sorted, each once.
    pub images: Vec<ImageRequest>,
    /// `--build-context` names that the reachable stages use for files.
    pub contexts: BTreeSet<String>,
    /// Platform that is built for.
    pub platform: Platform,
    /// Whether a platform was asked for.
    pub platform_asked: bool,
    /// Seconds since 1970, if an epoch is in force.
    pub source_date_epoch: Option<i64>,
    /// Predefined and global ARGs with a value, for FROM and for ARG in stages.
    pub(super) globals: Vec<(String, String)>,
    /// `--build-arg`, with the epoch in its final form.
    pub(super) build_args: BTreeMap<String, String>,
    /// What images behind `--from` mean, in order: they count as stages behind the real ones.
    pub(super) implicit: Vec<Origin>,
    /// Lines of the first COPY that names an image.
    pub(super) image_lines: BTreeMap<ImageRequest, LineRange>,
    /// Findings so far, unfiltered.
    pub(super) findings: Vec<Finding>,
    pub(super) checks: lint::Config,
}

/// A stage as it stands in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct StageOutline {
    /// Position in the file, counted from 0.
    pub position: usize,
    /// Lower-cased name after AS.
    pub name: Option<String>,
    /// Lines of its FROM.
    pub lines: LineRange,
    /// Where its FROM stands.
    pub span: Span,
    /// Base of FROM, expanded.
    pub base_name: String,
    /// What the base is.
    pub base: StageBase,
    /// `--platform` of FROM.
    pub platform: Option<Platform>,
    /// A `--build-context` of this name takes the stage's place: no instruction of it counts.
    pub replaced: bool,
    /// Its instructions behind FROM, as indices into [`Dockerfile::instructions`].
    pub instructions: Range<usize>,
    /// What `--from` of its instructions means, by instruction.
    pub(super) origins: BTreeMap<usize, Origins>,
}

/// What a stage starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageBase {
    /// `FROM scratch`
    Scratch,
    /// An earlier stage.
    Stage(usize),
    /// An image.
    Image(ImageRequest),
    /// Files of a named context.
    Context(String),
}

/// What a `--from` means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A stage, by position.
    Stage(usize),
    /// An image.
    Image(ImageRequest),
    /// A named context.
    Context(String),
    /// Nothing.
    Scratch,
}

impl Outline {
    /// The last stage of that name; case does not count.
    pub fn stage_named(&self, name: &str) -> Option<usize> {
        let name = name.to_lowercase();
        self.stages.iter().rposition(|stage| stage.name.as_deref() == Some(&name))
    }

    /// The stage or image behind a number (checklist S-02).
    pub(super) fn numbered(&self, index: i64) -> Option<Origin> {
        let index = usize::try_from(index).ok()?;
        match index.checked_sub(self.stages.len()) {
            None => Some(Origin::Stage(index)),
            Some(behind) => self.implicit.get(behind).cloned(),
        }
    }

    /// The first FROM that names an image, else the first COPY, for saying where an image was not found. `None` for images
    /// of mounts, as in BuildKit, and of `ONBUILD` triggers.
    pub fn lines_of(&self, request: &ImageRequest) -> Option<LineRange> {
        let is_base = |stage: &&StageOutline| matches!(&stage.base, StageBase::Image(base) if base == request);
        let base = self.stages.iter().find(is_base).map(|stage| stage.lines);
        base.or_else(|| self.image_lines.get(request).copied())
    }

    /// A stage name, or a well-known image, near the name of an image that was not found (checklist F-11).
    pub fn suggest_image(&self, name: &str) -> Option<String> {
        const COMMON: [&str; 12] = [
            "alpine", "busybox", "debian", "ubuntu", "fedora", "golang", "node", "python", "rust", "nginx", "redis",
            "scratch",
        ];
        nearest(name, self.stage_names().chain(COMMON)).map(str::to_owned)
    }

    /// A stage name near the name of an image, whatever there was of that.
    pub fn suggest_stage(&self, name: &str) -> Option<String> {
        nearest(name, self.stage_names()).map(str::to_owned)
    }

    fn stage_names(&self) -> impl Iterator<Item = &str> {
        self.stages.iter().filter_map(|stage| stage.name.as_deref())
    }
}

impl StageOutline {
    /// Its name, or `stage-<position>`.
    pub fn title(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("stage-{}", self.position))
    }
}

/// Reads global arguments and stages, finds the target and what it needs.
///
/// # Errors
/// [`PlanError`]: global arguments and FROMs that do not expand, an unknown target, cycles, names that are no references.
pub fn outline(dockerfile: &Dockerfile, options: &PlanOptions) -> Result<Outline, PlanError> {
    let argument = options.build_args.get("BUILDKIT_DOCKERFILE_CHECK").map(String::as_str);
    let checks = lint::Config::of(dockerfile, argument).map_err(|error| PlanError::new(error.into()))?;
    let mut findings = dockerfile.findings.clone();
    build(dockerfile, options, &checks, &mut findings).map_err(|mut error| {
        error.findings = checks.filter(dockerfile, std::mem::take(&mut findings));
        error
    })
}

fn build(
    dockerfile: &Dockerfile,
    options: &PlanOptions,
    checks: &lint::Config,
    findings: &mut Vec<Finding>,
) -> Result<Outline, PlanError> {
    frontend(dockerfile, options)?;
    // BuildKit refuses the first, too; a result without the attestations that were asked for would be a lie.
    let refused = options.build_args.iter().find(|(name, value)| {
        *name == "BUILDKIT_DISABLE_FILEOP"
            || name.starts_with("BUILDKIT_ATTEST_") && !matches!(value.as_str(), "" | "false")
    });
    if let Some((name, _)) = refused {
        return Err(PlanError::new(PlanErrorKind::BuildArg { name: name.clone() }));
    }
    let froms: Vec<(usize, &From)> = dockerfile
        .instructions
        .iter()
        .enumerate()
        .filter_map(|(index, instruction)| match &instruction.kind {
            InstructionKind::From(from) => Some((index, from)),
            _ => None,
        })
        .collect();
    let last_name = froms.last().and_then(|(_, from)| from.name.as_ref().map(|name| name.name.clone()));
    let target_name = options.target.clone().filter(|target| !target.is_empty());
    let build_platform = options.build_platform.clone().unwrap_or_else(Platform::host);
    let platform = options.platform.clone().unwrap_or_else(|| build_platform.clone());
    let target_stage = target_name.clone().or(last_name);
    let mut build_args = build_args(options);
    let mut globals = predefined(&build_platform, &platform, target_stage.as_deref(), &build_args);
    let mut defaults = predefined(&build_platform, &platform, target_stage.as_deref(), &BTreeMap::new());
    let mut declared = BTreeSet::new();
    let first_from = froms.first().map_or(dockerfile.instructions.len(), |(index, _)| *index);
    for instruction in &dockerfile.instructions[..first_from] {
        global_args(dockerfile, instruction, &build_args, &mut globals, &mut defaults, &mut declared)?;
    }
    let source_date_epoch = epoch::settle(dockerfile, options, &mut build_args, &mut globals)?;
    let mut outline = Outline {
        stages: Vec::new(),
        target: 0,
        reachable: BTreeSet::new(),
        images: Vec::new(),
        contexts: BTreeSet::new(),
        platform,
        platform_asked: options.platform.is_some(),
        source_date_epoch,
        globals,
        build_args,
        implicit: Vec::new(),
        image_lines: BTreeMap::new(),
        findings: Vec::new(),
        checks: checks.clone(),
    };
    default_bases(dockerfile, &froms, &defaults, findings);
    let mut bad_names = Vec::new();
    for (position, (index, from)) in froms.iter().enumerate() {
        let end = froms.get(position + 1).map_or(dockerfile.instructions.len(), |(next, _)| *next);
        let place = Place::of(dockerfile, *index);
        let mut reader = FromReader { dockerfile, outline: &outline, declared: &declared, findings };
        let (base_name, platform) = reader.expand(from, &place)?;
        let (stage, bad) = stage(position, from, base_name, platform, index + 1..end, &place, &outline, options)?;
        bad_names.extend(bad);
        outline.stages.push(stage);
    }
    outline.target = match &target_name {
        None => outline.stages.len().saturating_sub(1),
        Some(target) => outline.stage_named(target).ok_or_else(|| {
            let lower = target.to_lowercase();
            let suggestion = nearest(&lower, outline.stage_names()).map(str::to_owned);
            PlanError::new(PlanErrorKind::UnknownTarget { target: target.clone(), suggestion })
        })?,
    };
    if outline.stages.is_empty() {
        // The parser refuses such a text already.
        return Err(PlanError::new(PlanErrorKind::UnknownTarget { target: String::new(), suggestion: None }));
    }
    link(dockerfile, &mut outline, options, &mut bad_names)?;
    if let Some(bad) = bad_names.into_iter().next() {
        return Err(match bad.place {
            Some((lines, span)) => PlanError::at(bad.kind, lines, &span),
            None => PlanError::new(bad.kind),
        });
    }
    outline.reachable = graph::reachable(&outline, outline.target, &BTreeMap::new());
    (outline.images, outline.contexts) = needs(&outline, &outline.reachable);
    outline.findings = std::mem::take(findings);
    Ok(outline)
}

/// There is one frontend (checklist P-05): any image called `dockerfile`, or `dockerfile-upstream`, wherever it is mirrored,
/// means the language that is read here.
fn frontend(dockerfile: &Dockerfile, options: &PlanOptions) -> Result<(), PlanError> {
    let argument = options.build_args.get("BUILDKIT_SYNTAX").filter(|value| !value.is_empty());
    let directive = dockerfile.directives.syntax.as_ref();
    let Some(value) = argument.or(directive.map(|syntax| &syntax.node)) else { return Ok(()) };
    let reference = value.split_whitespace().next().unwrap_or_default();
    let name = reference.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    if matches!(name.split(':').next(), Some("dockerfile" | "dockerfile-upstream" | "dockerfile.v0")) {
        return Ok(());
    }
    let kind = PlanErrorKind::Frontend { reference: reference.to_owned() };
    Err(match directive.filter(|_| argument.is_none()) {
        Some(syntax) => PlanError::at(kind, dockerfile.source.lines(&syntax.span), &syntax.span),
        None => PlanError::new(kind),
    })
}

/// Lines and span of an instruction.
pub(super) struct Place {
    pub(super) lines: LineRange,
    pub(super) span: Span,
}

impl Place {
    pub(super) fn of(dockerfile: &Dockerfile, index: usize) -> Self {
        let span = dockerfile.instructions[index].span.clone();
        Self { lines: dockerfile.source.lines(&span), span }
    }

    pub(super) fn error(&self, kind: PlanErrorKind) -> PlanError {
        PlanError::at(kind, self.lines, &self.span)
    }
}

/// The arguments that exist without ARG (checklist ).
fn predefined(
    build: &Platform,
    target: &Platform,
    stage: Option<&str>,
    build_args: &BTreeMap<String, String>,
) -> Vec<(String, String)> {
    let mut args = Vec::new();
    for (prefix, platform) in [("BUILD", build), ("TARGET", target)] {
        args.push((format!("{prefix}PLATFORM"), full_name(platform)));
        args.push((format!("{prefix}OS"), platform.os.clone()));
        args.push((format!("{prefix}OSVERSION"), platform.os_version.clone()));
        args.push((format!("{prefix}ARCH"), platform.architecture.clone()));
        args.push((format!("{prefix}VARIANT"), platform.variant.clone()));
    }
    args.push(("TARGETSTAGE".to_owned(), stage.unwrap_or("default").to_owned()));
    for (name, value) in &mut args {
        if let Some(given) = build_args.get(name) {
            value.clone_from(given);
        }
    }
    args
}

/// Whether a build argument means something without an ARG of that name.
pub(super) fn is_builtin(name: &str) -> bool {
    let host = Platform::host();
    name == EPOCH_ARG
        || name.starts_with("BUILDKIT_")
        || PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy))
        || predefined(&host, &host, None, &BTreeMap::new()).iter().any(|(known, _)| known == name)
}

/// `os[(version)]/architecture[/variant]`, containerd's `FormatAll`.
pub(super) fn full_name(platform: &Platform) -> String {
    if platform.os_version.is_empty() {
        return platform.to_string();
    }
    let plain = platform.to_string();
    let rest = plain.strip_prefix(platform.os.as_str()).unwrap_or_default();
    format!("{}({}){rest}", platform.os, platform.os_version)
}

/// `--build-arg`, with the epoch of the command line as one.
fn build_args(options: &PlanOptions) -> BTreeMap<String, String> {
    let mut build_args = options.build_args.clone();
    if let Some(epoch) = options.source_date_epoch {
        build_args.entry(EPOCH_ARG.to_owned()).or_insert_with(|| epoch.to_string());
    }
    build_args
}

/// Variables in the order in which they were set.
pub(super) type Variables = Vec<(String, String)>;

/// Build arguments and global ones before the epoch is settled. `TARGETSTAGE` is the
/// target or empty.
pub(super) fn globals_of(
    dockerfile: &Dockerfile,
    options: &PlanOptions,
) -> Result<(BTreeMap<String, String>, Variables), PlanError> {
    let build_args = build_args(options);
    let build_platform = options.build_platform.clone().unwrap_or_else(Platform::host);
    let platform = options.platform.clone().unwrap_or_else(|| build_platform.clone());
    let mut globals = predefined(&build_platform, &platform, options.target.as_deref(), &build_args);
    let (mut defaults, mut declared) = (Vec::new(), BTreeSet::new());
    let is_from = |instruction: &&Instruction| matches!(instruction.kind, InstructionKind::From(_));
    for instruction in dockerfile.instructions.iter().take_while(|instruction| !is_from(instruction)) {
        global_args(dockerfile, instruction, &build_args, &mut globals, &mut defaults, &mut declared)?;
    }
    Ok((build_args, globals))
}

/// One ARG in front of the first FROM.
fn global_args(
    dockerfile: &Dockerfile,
    instruction: &Instruction,
    build_args: &BTreeMap<String, String>,
    globals: &mut Vec<(String, String)>,
    defaults: &mut Vec<(String, String)>,
    declared: &mut BTreeSet<String>,
) -> Result<(), PlanError> {
    let InstructionKind::Arg(pairs) = &instruction.kind else { return Ok(()) };
    let escape = dockerfile.directives.escape;
    for pair in pairs {
        declared.insert(pair.name.clone());
        let value = match (build_args.get(&pair.name), &pair.default) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(default)) => {
                let expanded = words::expand(default, escape, &*globals).map_err(|error| {
                    PlanError::at(error.into(), dockerfile.source.lines(&instruction.span), &pair.span)
                })?;
                Some(expanded.text)
            }
            (None, None) => None,
        };
        if let Some(value) = value {
            set(globals, &pair.name, value);
        }
        let default = pair.default.as_ref().and_then(|raw| words::expand(raw, escape, &*defaults).ok());
        if let Some(default) = default {
            set(defaults, &pair.name, default.text);
        }
    }
    Ok(())
}

/// Adds a variable, or replaces it and moves it to the end, as BuildKit's environment lists do.
pub(super) fn set(env: &mut Vec<(String, String)>, name: &str, value: String) {
    env.retain(|(key, _)| key != name);
    env.push((name.to_owned(), value));
}

/// Lint rule InvalidDefaultArgInFrom: bases that only work with build arguments (checklist L-17).
fn default_bases(
    dockerfile: &Dockerfile,
    froms: &[(usize, &From)],
    defaults: &Vec<(String, String)>,
    findings: &mut Vec<Finding>,
) {
    for (index, from) in froms {
        let Ok(name) = words::expand(&from.base.raw, dockerfile.directives.escape, defaults) else { continue };
        if name.text.parse::<Reference>().is_err() {
            let message = messages::invalid_default_arg_in_from(&from.base.raw);
            findings.push(Rule::InvalidDefaultArgInFrom.finding(message, dockerfile.instructions[*index].span.clone()));
        }
    }
}

/// Expands the words of a FROM with global arguments and applies the rules about them.
struct FromReader<'a> {
    dockerfile: &'a Dockerfile,
    outline: &'a Outline,
    declared: &'a BTreeSet<String>,
    findings: &'a mut Vec<Finding>,
}

impl FromReader<'_> {
    fn expand(&mut self, from: &From, place: &Place) -> Result<(String, Option<Platform>), PlanError> {
        let base = self.word(&from.base.raw, place, &from.base.span)?;
        if base.text.is_empty() {
            let kind = PlanErrorKind::BlankBase { raw: from.base.raw.clone() };
            return Err(PlanError::at(kind, place.lines, &from.base.span));
        }
        let Some(flag) = from.platform.as_ref().filter(|word| !word.raw.is_empty()) else {
            return Ok((base.text, None));
        };
        let value = self.word(&flag.raw, place, &flag.span)?;
        let name = from.name.as_ref().map(|name| name.name.as_str()).unwrap_or_default();
        self.platform_rules(&flag.raw, &value, name, place);
        if value.text.is_empty() {
            let names = self.outline.globals.iter().map(|(name, _)| name.as_str());
            let suggestion = value.unset.iter().find_map(|unset| nearest(unset, names.clone())).map(str::to_owned);
            let kind = PlanErrorKind::EmptyPlatform { raw: flag.raw.clone(), suggestion };
            return Err(PlanError::at(kind, place.lines, &flag.span));
        }
        let platform = value.text.parse().map_err(|source| {
            PlanError::at(PlanErrorKind::Platform { raw: flag.raw.clone(), source }, place.lines, &flag.span)
        })?;
        Ok((base.text, Some(platform)))
    }

    /// One word; names that are no global argument are found by UndefinedArgInFrom.
    fn word(&mut self, raw: &str, place: &Place, span: &Span) -> Result<Expanded, PlanError> {
        let expanded = words::expand(raw, self.dockerfile.directives.escape, &self.outline.globals)
            .map_err(|error| PlanError::at(error.into(), place.lines, span))?;
        for name in expanded.unset.iter().filter(|name| !self.declared.contains(*name)) {
            let known = self.outline.globals.iter().map(|(name, _)| name.as_str());
            let known = known.chain(self.declared.iter().map(String::as_str));
            let message = messages::undefined_arg_in_from(name, nearest(name, known));
            self.find(Rule::UndefinedArgInFrom, message, place);
        }
        Ok(expanded)
    }

    fn platform_rules(&mut self, raw: &str, value: &Expanded, stage: &str, place: &Place) {
        let target = self.outline.globals.iter().find(|(name, _)| name == "TARGETPLATFORM");
        let only_target = value.used.len() == 1 && value.used.contains("TARGETPLATFORM") && value.unset.is_empty();
        if only_target && target.is_some_and(|(_, target)| *target == value.text) {
            self.find(Rule::RedundantTargetPlatform, messages::redundant_target_platform(raw), place);
        }
        if value.used.is_empty()
            && value.unset.is_empty()
            && let Ok(platform) = value.text.parse::<Platform>()
            && !stage.contains(&platform.os)
            && !stage.contains(&platform.architecture)
        {
            let message = messages::from_platform_flag_const_disallowed(&value.text);
            self.find(Rule::FromPlatformFlagConstDisallowed, message, place);
        }
    }

    fn find(&mut self, rule: Rule, message: String, place: &Place) {
        self.findings.push(rule.finding(message, place.span.clone()));
    }
}

/// Puts a stage together: what its base is, or what takes its place.
#[expect(clippy::too_many_arguments, reason = "the parts of one FROM, used once")]
fn stage(
    position: usize,
    from: &From,
    base_name: String,
    platform: Option<Platform>,
    instructions: Range<usize>,
    place: &Place,
    outline: &Outline,
    options: &PlanOptions,
) -> Result<(StageOutline, Option<graph::BadName>), PlanError> {
    let wanted = platform.clone().unwrap_or_else(|| outline.platform.clone());
    let name = from.name.as_ref().map(|name| name.name.clone());
    let replacement = match &name {
        Some(name) => graph::replacement(name, &wanted, options).map_err(|kind| place.error(kind))?,
        None => Redirect::None,
    };
    let mut bad = None;
    // Stage names are looked up as written: `FROM Base` does not find a stage, whose name is `base` (F-06).
    let earlier = outline.stages.iter().rposition(|stage| stage.name.as_deref() == Some(&base_name));
    let (base, replaced) = match (replacement, earlier) {
        (Redirect::Files(key), _) => (StageBase::Context(key), true),
        (Redirect::Image(image), _) if image == "scratch" => (StageBase::Scratch, true),
        (Redirect::Image(image), _) => (StageBase::Image(ImageRequest { name: image, platform: wanted }), true),
        (Redirect::None, Some(stage)) => (StageBase::Stage(stage), false),
        (Redirect::None, None) => {
            let base = match graph::image_origin(&base_name, &wanted, options) {
                Ok(Origin::Image(request)) => StageBase::Image(request),
                Ok(Origin::Context(key)) => StageBase::Context(key),
                Ok(Origin::Scratch) => StageBase::Scratch,
                Ok(Origin::Stage(stage)) => StageBase::Stage(stage),
                Err(kind) => {
                    bad = Some(graph::BadName { kind, place: Some((place.lines, place.span.clone())) });
                    StageBase::Scratch
                }
            };
            (base, false)
        }
    };
    let stage = StageOutline {
        position,
        name,
        lines: place.lines,
        span: place.span.clone(),
        base_name,
        base,
        platform,
        replaced,
        instructions: if replaced { instructions.end..instructions.end } else { instructions },
        origins: BTreeMap::new(),
    };
    Ok((stage, bad))
}

/// Finds out what each `--from` means, and refuses cycles.
fn link(
    dockerfile: &Dockerfile,
    outline: &mut Outline,
    options: &PlanOptions,
    bad_names: &mut Vec<graph::BadName>,
) -> Result<(), PlanError> {
    let mut uses: Vec<BTreeMap<usize, usize>> = vec![BTreeMap::new(); outline.stages.len()];
    for (position, uses) in uses.iter_mut().enumerate() {
        for index in outline.stages[position].instructions.clone() {
            let place = Place::of(dockerfile, index);
            let instruction = &dockerfile.instructions[index];
            let escape = dockerfile.directives.escape;
            let (origins, bad) = graph::origins_of(instruction, outline, options, escape, (place.lines, place.span))?;
            bad_names.extend(bad);
            for origin in origins.iter().flatten() {
                if let Origin::Stage(stage) = origin {
                    uses.insert(*stage, index);
                }
            }
            if !origins.is_empty() {
                outline.stages[position].origins.insert(index, origins);
            }
        }
    }
    let Some((stage, instructions)) = graph::find_cycle(&uses) else { return Ok(()) };
    let mut error = PlanError::new(PlanErrorKind::Cycle { stage: outline.stages[stage].title() });
    error.lines = instructions.iter().map(|index| Place::of(dockerfile, *index).lines).collect();
    error.span = instructions.first().map(|index| Place::of(dockerfile, *index).span);
    Err(error)
}

/// Images and file contexts that stages name.
pub(super) fn needs(outline: &Outline, stages: &BTreeSet<usize>) -> (Vec<ImageRequest>, BTreeSet<String>) {
    let mut images = BTreeSet::new();
    let mut contexts = BTreeSet::new();
    for stage in stages.iter().map(|position| &outline.stages[*position]) {
        match &stage.base {
            StageBase::Image(request) => _ = images.insert(request.clone()),
            StageBase::Context(key) => _ = contexts.insert(key.clone()),
            StageBase::Scratch | StageBase::Stage(_) => {}
        }
        for origin in stage.origins.values().flatten().flatten() {
            match origin {
                Origin::Image(request) => _ = images.insert(request.clone()),
                Origin::Context(key) => _ = contexts.insert(key.clone()),
                Origin::Stage(_) | Origin::Scratch => {}
            }
        }
    }
    (images.into_iter().collect(), contexts)
}
