//! What a Dockerfile can be asked for and what that takes: BuildKit's subrequests `targets` and `outline` (checklist S-10).

use std::collections::{BTreeMap, BTreeSet};

use super::outline::Outline;
use super::types::{Action, Base, FileSource, MountKind, Plan, Stage, StageId};
use crate::dockerfile::words;
use crate::dockerfile::{Dockerfile, Instruction, InstructionKind, LineRange};

/// A stage that `--target` can name, or the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildTarget {
    /// Lower-cased name after AS.
    pub name: Option<String>,
    /// What the comment above its FROM says behind the name.
    pub description: Option<String>,
    /// Base of FROM as written.
    pub base: String,
    /// `--platform` of FROM as written.
    pub platform: Option<String>,
    /// It is what a build without `--target` makes.
    pub default: bool,
    /// Lines of its FROM.
    pub lines: LineRange,
}

/// What the target and the stages that it needs can be given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    /// Name of the target, if it has one.
    pub target: Option<String>,
    /// What the comment above its FROM says behind the name.
    pub description: Option<String>,
    /// Build arguments by line, each name once; predefined ones are left out.
    pub arguments: Vec<Argument>,
    /// Secrets of RUNs by line, each identity once.
    pub secrets: Vec<Asked>,
    /// Ssh agents of RUNs by line, each identity once.
    pub ssh: Vec<Asked>,
}

/// An ARG that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Its value, of the command line or the default; `None` if it has neither.
    pub value: Option<String>,
    /// What the comment above it says behind the name.
    pub description: Option<String>,
    /// Lines of its ARG.
    pub lines: LineRange,
}

/// An ARG of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) argument: Argument,
    /// It takes the value of the global ARG, which is the one that counts.
    pub(super) global: bool,
}

/// A secret or ssh agent that a RUN asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its identity: what `--secret id=` or `--ssh` names.
    pub id: String,
    /// The RUN fails without it.
    pub required: bool,
    /// Lines of the RUN.
    pub lines: LineRange,
}

/// The stages of a Dockerfile.
pub fn targets(dockerfile: &Dockerfile) -> Vec<BuildTarget> {
    let mut targets: Vec<BuildTarget> = dockerfile
        .instructions
        .iter()
        .filter_map(|instruction| {
            let InstructionKind::From(from) = &instruction.kind else { return None };
            let name = from.name.as_ref().map(|name| name.name.clone());
            Some(BuildTarget {
                description: name.as_deref().and_then(|name| description(instruction, name)),
                name,
                base: from.base.raw.clone(),
                platform: from.platform.as_ref().map(|platform| platform.raw.clone()),
                default: false,
                lines: dockerfile.source.lines(&instruction.span),
            })
        })
        .collect();
    if let Some(last) = targets.last_mut() {
        last.default = true;
    }
    targets
}

/// The first comment that begins with the name, without it (checklist P-13).
pub(super) fn description(instruction: &Instruction, name: &str) -> Option<String> {
    let mut comments = instruction.comments.iter();
    comments.find_map(|comment| comment.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned)
}

/// Collects what a plan takes. `outline` and `dockerfile` are what it was made from.
pub(super) fn parameters(dockerfile: &Dockerfile, outline: &Outline, plan: &Plan) -> Parameters {
    let globals = globals(dockerfile, outline);
    let mut found = Parameters::default();
    // The target first, then what it begins with, then what its instructions use, and so on: who names a thing first
    // says what it is.
    let mut seen = BTreeSet::new();
    let mut pending = vec![plan.target];
    while let Some(id) = pending.pop() {
        let Some(stage) = plan.stages.get(id.0).filter(|_| seen.insert(id)) else { continue };
        let from = from_of(dockerfile, outline, stage);
        if id == plan.target {
            found.target.clone_from(&outline.stages[stage.position].name);
            found.description = found.target.as_deref().zip(from).and_then(|(name, from)| description(from, name));
        }
        let read = from.map(|from| words_of(from, dockerfile, outline)).unwrap_or_default();
        add(&mut found.arguments, arguments_of(stage, read, &globals), |argument| &argument.name);
        add(&mut found.secrets, asked(stage, secret), |asked| &asked.id);
        add(&mut found.ssh, asked(stage, ssh), |asked| &asked.id);
        let files = stage.steps.iter().flat_map(|step| step.action.file_sources()).filter_map(FileSource::stage);
        let mut uses: Vec<StageId> = files.collect();
        uses.reverse();
        pending.extend(uses);
        if let Base::Stage(base) = stage.base {
            pending.push(base);
        }
    }
    found.arguments.sort_by_key(|argument| argument.lines.first);
    found.secrets.sort_by_key(|asked| asked.lines.first);
    found.ssh.sort_by_key(|asked| asked.lines.first);
    found
}

/// Adds what has a new name.
fn add<T>(list: &mut Vec<T>, more: Vec<T>, name: impl Fn(&T) -> &String) {
    for item in more {
        if !list.iter().any(|known| name(known) == name(&item)) {
            list.push(item);
        }
    }
}

/// An ARG in front of the first FROM.
struct Global {
    argument: Argument,
    /// What its default reads.
    reads: BTreeSet<String>,
}

fn globals(dockerfile: &Dockerfile, outline: &Outline) -> BTreeMap<String, Global> {
    let mut globals: BTreeMap<String, Global> = BTreeMap::new();
    let is_from = |instruction: &&Instruction| matches!(instruction.kind, InstructionKind::From(_));
    for instruction in dockerfile.instructions.iter().take_while(|instruction| !is_from(instruction)) {
        let InstructionKind::Arg(pairs) = &instruction.kind else { continue };
        for pair in pairs {
            let default = pair.default.as_deref().filter(|_| !outline.build_args.contains_key(&pair.name));
            let mut reads = default.map(|raw| names_in(raw, dockerfile, outline)).unwrap_or_default();
            reads.retain(|name| globals.contains_key(name));
            let value = outline.globals.iter().find(|(name, _)| *name == pair.name);
            let argument = Argument {
                name: pair.name.clone(),
                value: value.map(|(_, value)| value.clone()),
                description: description(instruction, &pair.name),
                lines: dockerfile.source.lines(&instruction.span),
            };
            globals.insert(pair.name.clone(), Global { argument, reads });
        }
    }
    globals
}

/// Names of variables with a value in a word that global arguments expand.
fn names_in(raw: &str, dockerfile: &Dockerfile, outline: &Outline) -> BTreeSet<String> {
    // What does not expand has been an error before there was a plan.
    words::expand(raw, dockerfile.directives.escape, &outline.globals).map(|word| word.used).unwrap_or_default()
}

/// The names that a FROM reads.
fn words_of(from: &Instruction, dockerfile: &Dockerfile, outline: &Outline) -> BTreeSet<String> {
    let InstructionKind::From(from) = &from.kind else { return BTreeSet::new() };
    let words = [Some(&from.base), from.platform.as_ref()];
    words.into_iter().flatten().flat_map(|word| names_in(&word.raw, dockerfile, outline)).collect()
}

fn from_of<'a>(dockerfile: &'a Dockerfile, outline: &Outline, stage: &Stage) -> Option<&'a Instruction> {
    let span = &outline.stages[stage.position].span;
    dockerfile.instructions.iter().find(|instruction| instruction.span == *span)
}

/// The arguments of one stage: its own, and the global ones that it or its FROM reads, by way of others too.
fn arguments_of(stage: &Stage, read: BTreeSet<String>, globals: &BTreeMap<String, Global>) -> Vec<Argument> {
    let own: BTreeMap<&str, &Argument> = stage
        .arguments
        .iter()
        .filter(|declared| !declared.global)
        .map(|declared| (&*declared.argument.name, &declared.argument))
        .collect();
    let mut names = read;
    let mut pending: Vec<String> = names.iter().cloned().collect();
    for declared in &stage.arguments {
        if names.insert(declared.argument.name.clone()) {
            pending.push(declared.argument.name.clone());
        }
    }
    let mut arguments = Vec::new();
    while let Some(name) = pending.pop() {
        match (own.get(name.as_str()), globals.get(&name)) {
            (Some(argument), _) => arguments.push((*argument).clone()),
            (None, Some(global)) => {
                arguments.push(global.argument.clone());
                pending.extend(global.reads.iter().filter(|name| names.insert((*name).clone())).cloned());
            }
            // Predefined ones.
            (None, None) => {}
        }
    }
    arguments
}

fn secret(kind: &MountKind) -> Option<(&str, bool)> {
    match kind {
        MountKind::Secret { id, required, .. } => Some((id, *required)),
        _ => None,
    }
}

fn ssh(kind: &MountKind) -> Option<(&str, bool)> {
    match kind {
        MountKind::Ssh { id, required, .. } => Some((id, *required)),
        _ => None,
    }
}

/// What the RUNs of a stage mount of one kind.
fn asked(stage: &Stage, of_kind: impl Fn(&MountKind) -> Option<(&str, bool)>) -> Vec<Asked> {
    let mut all = Vec::new();
    for step in &stage.steps {
        let Action::Run(run) = &step.action else { continue };
        let mounts = run.mounts.iter().filter_map(|mount| of_kind(&mount.kind));
        all.extend(mounts.map(|(id, required)| Asked { id: id.to_owned(), required, lines: step.lines }));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::parse;
    use crate::plan::{Bases, Lowered, PlanOptions, lower, outline};

    fn of(text: &str, target: &str, build_args: &[(&str, &str)]) -> Parameters {
        let dockerfile = parse(text).expect(text);
        let build_args = build_args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let target = Some(target.to_owned()).filter(|target| !target.is_empty());
        let options = PlanOptions { build_args: build_args.collect(), target, ..PlanOptions::default() };
        let outline = outline(&dockerfile, &options).expect(text);
        match lower(&dockerfile, &outline, &Bases::new(), &options).expect(text) {
            Lowered::Plan(plan) => plan.parameters,
            Lowered::Needs(images) => panic!("{images:?}"),
        }
    }

    fn arguments(found: &Parameters) -> Vec<String> {
        let shown = |argument: &Argument| {
            let Argument { name, value, description, lines } = argument;
            let value = value.as_deref().map(|value| format!("={value}")).unwrap_or_default();
            let description = description.as_deref().map(|text| format!(" ({text})")).unwrap_or_default();
            format!("{}:{name}{value}{description}", lines.first)
        };
        found.arguments.iter().map(shown).collect()
    }

    #[test]
    fn arguments_are_those_that_the_target_reads() {
        let text = "ARG inherited=ra\nARG inherited2=tch\nARG unused=abc${inherited2}\n# sfx is a suffix\nARG \
                    sfx=\"sc${inherited}tch\"\n\nFROM ${sfx} AS first\n# this is not about FOO\nARG FOO=123\n\
                    # BAR is a number\nARG BAR=456\nRUN true\n\nFROM ${unused} AS second\nARG BAZ\n\n\
                    FROM scratch AS third\nARG ABC=a TARGETARCH\n\n# target makes it\nFROM third AS target\n\
                    ARG inherited2\nCOPY --from=first /etc/passwd /\n\nFROM second\n";
        let found = of(text, "TARGET", &[("BAR", "678")]);
        let expected = [
            "1:inherited=ra",
            "2:inherited2=tch",
            "5:sfx=scratch (is a suffix)",
            "9:FOO=123",
            "11:BAR=678 (is a number)",
            "18:ABC=a",
        ];
        assert_eq!(arguments(&found), expected);
        assert_eq!((found.target.as_deref(), found.description.as_deref()), (Some("target"), Some("makes it")));
    }

    #[test]
    fn the_nearest_definition_counts() {
        let text = "ARG A=1\nARG B=$A$B\nFROM scratch AS x\nARG A=2\nARG C\nFROM x\nARG A=3 B\n";
        assert_eq!(arguments(&of(text, "", &[])), ["2:B=1", "5:C", "7:A=3"]);
        assert_eq!(arguments(&of(text, "x", &[("C", "c")])), ["4:A=2", "5:C=c"]);
        assert_eq!(of("FROM scratch\n", "", &[]), Parameters::default());
    }

    #[test]
    fn secrets_and_agents_are_told_once() {
        let text = "FROM scratch AS first\nRUN --mount=type=secret,target=/etc/passwd,required=true \
                    --mount=type=ssh true\n\nFROM scratch AS second\nRUN --mount=type=secret,id=unused true\n\n\
                    FROM scratch AS third\nARG BAR\nRUN --mount=type=secret,id=second${BAR} true\n\nFROM third AS \
                    target\nCOPY --from=first /foo /\nRUN --mount=type=ssh,id=ssh3,required --mount=type=ssh true\n\
                    FROM second\n";
        let found = of(text, "target", &[("BAR", "678")]);
        let shown = |asked: &[Asked]| {
            asked.iter().map(|a| format!("{}:{} {}", a.lines.first, a.id, a.required)).collect::<Vec<_>>()
        };
        assert_eq!(shown(&found.secrets), ["2:passwd true", "9:second678 false"]);
        assert_eq!(shown(&found.ssh), ["13:ssh3 true", "13:default false"]);
    }

    #[test]
    fn targets_are_listed_as_written() {
        let text = "ARG V=1\n# Build compiles\n# build compiles all\nFROM --platform=$BUILDPLATFORM go:$V AS Build\n\
                    FROM build\n";
        let targets = targets(&parse(text).expect(text));
        let [build, last] = targets.as_slice() else { panic!("{targets:?}") };
        assert_eq!((build.name.as_deref(), build.description.as_deref()), (Some("build"), Some("compiles all")));
        assert_eq!((&*build.base, build.platform.as_deref()), ("go:$V", Some("$BUILDPLATFORM")));
        assert_eq!((build.default, last.default, last.name.as_deref()), (false, true, None));
        assert_eq!(last.lines, LineRange { first: 5, last: 5 });
    }
}
