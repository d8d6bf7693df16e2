//! Phase two: stages → steps, configs and history.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::copy::Ignored;
use super::error::{PlanError, PlanErrorKind};
use super::graph;
use super::outline::{self, Origin, Outline, Place, StageBase, needs};
use super::parameters::{Parameters, parameters};
use super::stage::{Command, Shared, StageBuilder, State};
use super::types::{
    Base, BaseImage, Bases, DroppedStage, ImageRequest, Lowered, Plan, PlanOptions, PlannedHistory, Stage, StageId,
};
use crate::dockerfile::lint::{self, Rule, messages};
use crate::dockerfile::{Dockerfile, Finding, Instruction, InstructionKind, parse_trigger};
use crate::oci::{ImageConfig, Platform};

/// Makes the plan, or says which images it needs first: `ONBUILD` triggers of a base may name more.
///
/// # Errors
/// [`PlanError`]: what BuildKit calls conversion errors, with the lines of the instruction.
pub fn lower(
    dockerfile: &Dockerfile,
    outline: &Outline,
    bases: &Bases,
    options: &PlanOptions,
) -> Result<Lowered, PlanError> {
    let mut lowering = Lowering::new(dockerfile, outline, bases, options, false);
    match lowering.run() {
        Ok(lowered) => Ok(lowered),
        Err(error) => Err(lowering.with_findings(error)),
    }
}

/// What `slipway build --check` tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Findings in file order.
    pub findings: Vec<Finding>,
    /// What a build would stop at, the violation of `error=true` excepted.
    pub error: Option<PlanError>,
}

/// Applies all lint rules to all stages, the unused ones too (checklist L-00). Base images that are not in `bases` are
/// taken for empty ones, so nothing has to be fetched; variables are not called undefined where such a base may set them.
pub fn check(dockerfile: &Dockerfile, options: &PlanOptions, bases: &Bases) -> Checked {
    let outline = match super::outline(dockerfile, options) {
        Ok(outline) => outline,
        Err(mut error) => return Checked { findings: std::mem::take(&mut error.findings), error: Some(error) },
    };
    let mut lowering = Lowering::new(dockerfile, &outline, bases, options, true);
    match lowering.run() {
        Ok(Lowered::Plan(plan)) => Checked { findings: plan.findings, error: None },
        Ok(Lowered::Needs(_)) => Checked { findings: lowering.filtered(), error: None },
        Err(error) => {
            let mut error = lowering.with_findings(error);
            let findings = std::mem::take(&mut error.findings);
            Checked { findings, error: Some(error).filter(|error| !matches!(*error.kind, PlanErrorKind::Lint(_))) }
        }
    }
}

/// Trigger instructions of a stage, before its own.
struct Trigger {
    instruction: Instruction,
    origins: graph::Origins,
}

struct Lowering<'a> {
    dockerfile: &'a Dockerfile,
    bases: &'a Bases,
    checks: lint::Config,
    shared: Shared<'a>,
    /// Triggers by stage.
    triggers: BTreeMap<usize, Vec<Trigger>>,
    /// All stages are read and missing images taken for empty ones.
    checking: bool,
    done: BTreeMap<usize, StageId>,
    states: BTreeMap<usize, State>,
    stages: Vec<Stage>,
}

impl<'a> Lowering<'a> {
    fn new(
        dockerfile: &'a Dockerfile,
        outline: &Outline,
        bases: &'a Bases,
        options: &'a PlanOptions,
        checking: bool,
    ) -> Self {
        let outline = outline.clone();
        Self {
            dockerfile,
            bases,
            checks: outline.checks.clone(),
            shared: Shared {
                options,
                ignored: options.ignore_file.as_deref().and_then(Ignored::new),
                findings: outline.findings.clone(),
                late: None,
                outline,
            },
            triggers: BTreeMap::new(),
            checking,
            done: BTreeMap::new(),
            states: BTreeMap::new(),
            stages: Vec::new(),
        }
    }

    /// The findings that count.
    fn filtered(&mut self) -> Vec<Finding> {
        self.checks.filter(self.dockerfile, std::mem::take(&mut self.shared.findings))
    }

    fn with_findings(&mut self, mut error: PlanError) -> PlanError {
        if error.findings.is_empty() {
            error.findings = self.filtered();
        }
        error
    }

    fn run(&mut self) -> Result<Lowered, PlanError> {
        let reachable = match self.reachable()? {
            Ok(reachable) => reachable,
            Err(missing) => return Ok(Lowered::Needs(missing)),
        };
        let unconsumed = self.unconsumed();
        for position in &reachable {
            self.stage(*position)?;
        }
        let target = self.done[&self.shared.outline.target];
        self.finish_target(target);
        let findings = self.filtered();
        if let Some(violation) = self.checks.violation(&findings) {
            let mut error = PlanError::new(violation.into());
            error.findings = findings;
            return Err(error);
        }
        // What only a build refuses, such as what nobody has allowed, is no fault of the text.
        if let Some(mut late) = self.shared.late.take().filter(|_| !self.checking) {
            late.findings = findings;
            return Err(late);
        }
        let (images, _) = needs(&self.shared.outline, &reachable);
        let pinned = images
            .into_iter()
            .filter_map(|request| Some((request.clone(), self.bases.get(&request)?.pinned.clone())))
            .collect();
        let outline = &self.shared.outline;
        let dropped = outline.stages.iter().filter(|stage| !reachable.contains(&stage.position));
        let dropped = dropped.map(|stage| DroppedStage { name: stage.title(), lines: stage.lines }).collect();
        let mut plan = Plan {
            platform: self.stages[target.0].config.platform(),
            stages: std::mem::take(&mut self.stages),
            target,
            findings,
            source_date_epoch: outline.source_date_epoch,
            pinned,
            dropped,
            unconsumed,
            parameters: Parameters::default(),
        };
        plan.parameters = parameters(self.dockerfile, &self.shared.outline, &plan);
        Ok(Lowered::Plan(Box::new(plan)))
    }

    /// Build arguments that no ARG declares, in the file or in a trigger, and that steer nothing themselves (checklist
    ///
    fn unconsumed(&self) -> Vec<String> {
        let triggers = self.triggers.values().flatten().map(|trigger| &trigger.instruction);
        let instructions = self.dockerfile.instructions.iter();
        let declared: BTreeSet<&str> = instructions
            .chain(triggers)
            .filter_map(|instruction| match &instruction.kind {
                InstructionKind::Arg(pairs) => Some(pairs.iter().map(|pair| pair.name.as_str())),
                _ => None,
            })
            .flatten()
            .collect();
        let names = self.shared.options.build_args.keys();
        names.filter(|name| !declared.contains(name.as_str()) && !outline::is_builtin(name)).cloned().collect()
    }

    /// The stages to read, triggers counted in; or the images without which that cannot be told.
    fn reachable(&mut self) -> Result<Result<BTreeSet<usize>, Vec<ImageRequest>>, PlanError> {
        loop {
            let extra = self
                .triggers
                .iter()
                .map(|(position, triggers)| {
                    let origins = triggers.iter().flat_map(|trigger| &trigger.origins).flatten();
                    let stage = |origin: &Origin| match origin {
                        Origin::Stage(stage) => Some(*stage),
                        _ => None,
                    };
                    (*position, origins.filter_map(stage).collect())
                })
                .collect();
            let reachable = match self.checking {
                true => (0..self.shared.outline.stages.len()).collect(),
                false => graph::reachable(&self.shared.outline, self.shared.outline.target, &extra),
            };
            let mut missing = BTreeSet::new();
            if !self.checking {
                let (images, _) = needs(&self.shared.outline, &reachable);
                missing.extend(images);
                let origins = self.triggers.values().flatten().flat_map(|trigger| &trigger.origins).flatten();
                missing.extend(origins.filter_map(|origin| match origin {
                    Origin::Image(request) => Some(request.clone()),
                    _ => None,
                }));
                missing.retain(|request| !self.bases.contains_key(request));
            }
            let new: Vec<usize> =
                reachable.iter().copied().filter(|position| !self.triggers.contains_key(position)).collect();
            if new.is_empty() {
                return Ok(if missing.is_empty() { Ok(reachable) } else { Err(missing.into_iter().collect()) });
            }
            for position in new {
                let triggers = self.read_triggers(position)?;
                self.triggers.insert(position, triggers);
            }
        }
    }

    /// The triggers that run in a stage: those of its base image, or of the stage it begins with (checklist I-21).
    fn read_triggers(&mut self, position: usize) -> Result<Vec<Trigger>, PlanError> {
        let stage = &self.shared.outline.stages[position];
        let texts: Vec<String> = match &stage.base {
            _ if stage.replaced => Vec::new(),
            StageBase::Image(request) => {
                self.bases.get(request).map(|base| base.config.list("OnBuild")).unwrap_or_default()
            }
            StageBase::Stage(base) => self.shared.outline.stages[*base]
                .instructions
                .clone()
                .filter_map(|index| match &self.dockerfile.instructions[index].kind {
                    InstructionKind::Onbuild(onbuild) => Some(onbuild.trigger.clone()),
                    _ => None,
                })
                .collect(),
            StageBase::Scratch | StageBase::Context(_) => Vec::new(),
        };
        let (lines, span) = (stage.lines, stage.span.clone());
        let mut triggers = Vec::with_capacity(texts.len());
        for text in texts {
            let instruction =
                parse_trigger(&text).map_err(|errors| PlanError::at(PlanErrorKind::Trigger(errors), lines, &span))?;
            let place = (lines, span.clone());
            let (origins, bad) =
                graph::origins_of(&instruction, &mut self.shared.outline, self.shared.options, '\\', place)
                    .map_err(|error| PlanError::at(*error.kind, lines, &span))?;
            if let Some(bad) = bad {
                return Err(PlanError::at(bad.kind, lines, &span));
            }
            triggers.push(Trigger { instruction, origins });
        }
        Ok(triggers)
    }

    /// Reads one stage.
    fn stage(&mut self, position: usize) -> Result<(), PlanError> {
        let outline = self.shared.outline.stages[position].clone();
        let (base, pinned, state) = self.begin(position)?;
        let triggers = self.triggers.remove(&position).unwrap_or_default();
        let layered = |kind: &InstructionKind| {
            matches!(
                kind,
                InstructionKind::Run(_)
                    | InstructionKind::Copy(_)
                    | InstructionKind::Add(_)
                    | InstructionKind::Workdir(_)
            )
        };
        let own = &self.dockerfile.instructions[outline.instructions.clone()];
        let from_image = matches!(outline.base, StageBase::Image(_) | StageBase::Context(_));
        let step_total = usize::from(from_image) + own.iter().filter(|i| layered(&i.kind)).count() + triggers.len();
        let alone = self.shared.outline.stages.len() + self.shared.outline.implicit.len() == 1;
        let id = StageId(self.stages.len());
        let mut builder = StageBuilder {
            shared: &mut self.shared,
            state,
            id,
            label: if alone { String::new() } else { outline.title() },
            name: if alone { String::new() } else { outline.title() },
            steps: Vec::new(),
            arguments: Vec::new(),
            step_number: 0,
            step_total,
            done: &self.done,
            cmd: None,
            entrypoint: None,
            healthcheck: None,
        };
        let from_title = from_image.then(|| {
            let name = pinned.as_deref().unwrap_or(&outline.base_name);
            format!("{}FROM {name}", builder.title_prefix())
        });
        // As BuildKit, whose history shows it: files that are the base count among the steps, but take no number.
        if matches!(outline.base, StageBase::Context(_)) {
            builder.step_number = 0;
        }
        builder.begin();
        for trigger in triggers {
            let command = Command {
                instruction: &trigger.instruction,
                place: Place { lines: outline.lines, span: outline.span.clone() },
                origins: trigger.origins,
                trigger: true,
                escape: '\\',
            };
            dispatch(&mut builder, &command)?;
        }
        for index in outline.instructions.clone() {
            let command = Command {
                instruction: &self.dockerfile.instructions[index],
                place: Place::of(self.dockerfile, index),
                origins: outline.origins.get(&index).cloned().unwrap_or_default(),
                trigger: false,
                escape: self.dockerfile.directives.escape,
            };
            dispatch(&mut builder, &command)?;
        }
        let StageBuilder { state, steps, arguments, .. } = builder;
        let stage = Stage {
            id,
            position,
            name: outline.title(),
            lines: outline.lines,
            base,
            platform: state.platform.clone(),
            steps,
            config: state.config.clone(),
            history: state.history.clone(),
            from_title,
            pinned,
            arguments,
        };
        self.stages.push(stage);
        self.done.insert(position, id);
        self.states.insert(position, state);
        Ok(())
    }

    /// What a stage starts with.
    fn begin(&mut self, position: usize) -> Result<(Base, Option<String>, State), PlanError> {
        let outline = &self.shared.outline;
        let stage = &outline.stages[position];
        let platform = stage.platform.clone().unwrap_or_else(|| outline.platform.clone());
        let fresh = |config: ImageConfig, platform: &Platform| State {
            config,
            history: Vec::new(),
            env: Vec::new(),
            args: Vec::new(),
            platform: platform.clone(),
            workdir_set: false,
            unknown_base: false,
        };
        let empty = |platform: &Platform| fresh(ImageConfig::scratch(&outline.platform), platform);
        Ok(match &stage.base {
            StageBase::Scratch => (Base::Scratch, None, empty(&platform)),
            StageBase::Context(key) => (Base::Context(key.clone()), None, empty(&platform)),
            StageBase::Stage(base) => {
                let parent = self.states.get(base).zip(self.done.get(base));
                let Some((state, id)) = parent else {
                    // Only a trigger can make a stage needed after it was passed over.
                    let kind =
                        PlanErrorKind::CopyFromLaterStage { from: outline.stages[*base].title(), stage: stage.title() };
                    return Err(PlanError::at(kind, stage.lines, &stage.span));
                };
                let mut state = state.clone();
                state.config.set("OnBuild", Value::Null);
                (Base::Stage(*id), None, state)
            }
            StageBase::Image(request) => match self.bases.get(request) {
                None => {
                    let state = State { unknown_base: true, ..empty(&platform) };
                    (Base::Image(request.clone()), None, state)
                }
                Some(base) => {
                    let message = wrong_platform(&stage.base_name, base, &platform);
                    let span = stage.span.clone();
                    let mut state = fresh(base.config.for_derived_image(), &platform);
                    let found = base.config.platform();
                    if found.os.is_empty() || found.architecture.is_empty() {
                        state.config.set_platform(&platform);
                    }
                    state.config.set("OnBuild", Value::Null);
                    let history = base.config.history();
                    let layers =
                        !base.config.diff_ids().is_empty() || history.iter().any(|item| !item.is_empty_layer());
                    state.history = history.into_iter().map(PlannedHistory::Inherited).collect();
                    if let Some(message) = message {
                        self.shared.findings.push(Rule::InvalidBaseImagePlatform.finding(message, span));
                    }
                    let pinned = Some(base.pinned.clone());
                    // An image without layers is treated as scratch; its config stays (checklist F-03).
                    (if layers { Base::Image(request.clone()) } else { Base::Scratch }, pinned, state)
                }
            },
        })
    }

    /// Labels of the command line and the platform that was asked for (checklist I-18, F-09, I-23).
    fn finish_target(&mut self, target: StageId) {
        let outline = &self.shared.outline;
        let config = &mut self.stages[target.0].config;
        for (key, value) in &self.shared.options.labels {
            config.insert("Labels", key, value.as_str().into());
        }
        let mut platform = config.platform();
        if outline.platform_asked {
            let asked = &outline.platform;
            let same = platform.os == asked.os && platform.architecture == asked.architecture;
            if !same || !asked.variant.is_empty() {
                platform.variant.clone_from(&asked.variant);
            }
            if !same || !asked.os_version.is_empty() {
                platform.os_version.clone_from(&asked.os_version);
            }
            platform.os.clone_from(&asked.os);
            platform.architecture.clone_from(&asked.architecture);
        }
        config.set_platform(&platform);
    }
}

/// Lint rule InvalidBaseImagePlatform (checklist L-14).
fn wrong_platform(name: &str, base: &BaseImage, expected: &Platform) -> Option<String> {
    let actual = base.config.platform();
    let known = !actual.os.is_empty() && !actual.architecture.is_empty();
    let differs = actual.os != expected.os || actual.architecture != expected.architecture;
    (known && differs).then(|| {
        messages::invalid_base_image_platform(
            name,
            &super::outline::full_name(expected),
            &super::outline::full_name(&actual),
        )
    })
}

/// One instruction.
fn dispatch(builder: &mut StageBuilder<'_, '_>, command: &Command<'_>) -> Result<(), PlanError> {
    match &command.instruction.kind {
        // Triggers cannot hold it, and a stage ends before the next one.
        InstructionKind::From(_) => Ok(()),
        InstructionKind::Arg(pairs) => builder.arg(command, pairs),
        InstructionKind::Env(pairs) => builder.env(command, pairs),
        InstructionKind::Label(pairs) => builder.label(command, pairs),
        InstructionKind::Run(run) => builder.run(command, run),
        InstructionKind::Cmd(line) => {
            builder.cmd(command, line);
            Ok(())
        }
        InstructionKind::Entrypoint(line) => {
            builder.entrypoint(command, line);
            Ok(())
        }
        InstructionKind::Copy(copy) => builder.copy(command, copy, false),
        InstructionKind::Add(copy) => builder.copy(command, copy, true),
        InstructionKind::Workdir(word) => builder.change_directory(command, word),
        InstructionKind::User(word) => builder.user(command, word),
        InstructionKind::Expose(words) => builder.expose(command, words),
        InstructionKind::Volume(words) => builder.volume(command, words),
        InstructionKind::StopSignal(word) => builder.stop_signal(command, word),
        InstructionKind::Healthcheck(check) => {
            builder.healthcheck(command, check);
            Ok(())
        }
        InstructionKind::Shell(shell) => {
            builder.shell(shell);
            Ok(())
        }
        InstructionKind::Onbuild(onbuild) => {
            builder.onbuild(&onbuild.trigger);
            Ok(())
        }
        InstructionKind::Maintainer(word) => {
            builder.maintainer(word);
            Ok(())
        }
    }
}
