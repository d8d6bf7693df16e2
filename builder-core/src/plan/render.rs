//! A plan for people, and as JSON, for `--plan`.

use std::fmt::Write as _;

use serde::Serialize;
use serde::ser::{SerializeMap, SerializeStruct, Serializer};

use super::types::{
    Action, Base, CopyAction, CopySource, FileSource, Mount, MountKind, NetworkMode, Plan, PlannedHistory, RunAction,
    SecurityMode, Stage, Step,
};

impl Plan {
    /// The plan as text: one block for each stage, one line for each step, then what is dropped.
    pub fn render(&self) -> String {
        let mut text = format!("platform {}\n", self.platform);
        if let Some(epoch) = self.source_date_epoch {
            line(&mut text, 0, format_args!("times {epoch} (SOURCE_DATE_EPOCH)"));
        }
        for stage in &self.stages {
            text.push('\n');
            self.render_stage(&mut text, stage);
        }
        if !self.dropped.is_empty() {
            text.push('\n');
        }
        for stage in &self.dropped {
            line(&mut text, 0, format_args!("not built: {} (line {})", stage.name, stage.lines.first));
        }
        text
    }

    fn render_stage(&self, text: &mut String, stage: &Stage) {
        let target = if stage.id == self.target { ", the target" } else { "" };
        line(text, 0, format_args!("stage {} (line {}){target}", stage.name, stage.lines.first));
        let base = self.base_name(stage);
        let platform = if stage.platform == self.platform { String::new() } else { format!(" on {}", stage.platform) };
        line(text, 1, format_args!("from {base}{platform}"));
        for step in &stage.steps {
            self.render_step(text, step);
        }
        let empty = stage.history.iter().filter(|item| matches!(item, PlannedHistory::New { step: None, .. })).count();
        line(text, 1, format_args!("{} layers, {empty} changes of the configuration only", stage.steps.len()));
    }

    fn base_name(&self, stage: &Stage) -> String {
        match (&stage.base, &stage.pinned) {
            (Base::Scratch, None) => "scratch".to_owned(),
            (Base::Scratch, Some(pinned)) => format!("{pinned} (no layers)"),
            (Base::Image(_), Some(pinned)) => pinned.clone(),
            (Base::Image(request), None) => request.name.clone(),
            (Base::Stage(id), _) => format!("stage {}", self.stages[id.0].name),
            (Base::Context(name), _) => format!("context {name}"),
        }
    }

    fn source_name(&self, source: &FileSource) -> String {
        match source {
            FileSource::Context => "the context".to_owned(),
            FileSource::NamedContext(name) => format!("context {name}"),
            FileSource::Stage(id) => format!("stage {}", self.stages[id.0].name),
            FileSource::Image(request) => self.pinned.get(request).unwrap_or(&request.name).clone(),
            FileSource::Scratch => "scratch".to_owned(),
        }
    }

    fn render_step(&self, text: &mut String, step: &Step) {
        let lines = match (step.lines.first, step.lines.last) {
            (first, last) if first == last => format!("line {first}"),
            (first, last) => format!("lines {first}-{last}"),
        };
        line(text, 1, format_args!("{} ({lines})", one_line(&step.title)));
        match &step.action {
            Action::Run(run) => self.render_run(text, run),
            Action::Copy(copy) => self.render_copy(text, copy),
            Action::Workdir(workdir) => {
                let owner = if workdir.user.is_empty() { "root" } else { &workdir.user };
                line(text, 2, format_args!("makes {} for {owner} if it is missing", workdir.path));
            }
        }
    }

    fn render_run(&self, text: &mut String, run: &RunAction) {
        let user = if run.user.is_empty() { "root" } else { &run.user };
        line(text, 2, format_args!("in {} as {user}", run.cwd));
        for mount in &run.mounts {
            line(text, 2, format_args!("mount {}", self.mount_text(mount)));
        }
        match run.network {
            NetworkMode::Default => {}
            NetworkMode::Host => line(text, 2, format_args!("network host")),
            NetworkMode::None => line(text, 2, format_args!("network none")),
        }
        if run.security == SecurityMode::Insecure {
            line(text, 2, format_args!("security insecure"));
        }
    }

    fn mount_text(&self, mount: &Mount) -> String {
        let access = if mount.readonly { "read-only" } else { "writable" };
        match &mount.kind {
            MountKind::Bind { from, source } => {
                format!("{} at {}, {access}: {source} of {}", "bind", mount.target, self.source_name(from))
            }
            MountKind::Cache { id, from, .. } => {
                let from = from.as_ref().map(|from| format!(", begun from {}", self.source_name(from)));
                format!("cache {id} at {}, {access}{}", mount.target, from.unwrap_or_default())
            }
            MountKind::Tmpfs { size } => {
                let size = size.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
                format!("tmpfs at {}{size}", mount.target)
            }
            MountKind::Secret { id, env, required, .. } => {
                let env = env.as_ref().map(|name| format!(" as ${name}")).unwrap_or_default();
                let file = if mount.target.is_empty() { String::new() } else { format!(" at {}", mount.target) };
                let required = if *required { ", required" } else { "" };
                format!("secret {id}{file}{env}{required}")
            }
            MountKind::Ssh { id, required, .. } => {
                let required = if *required { ", required" } else { "" };
                format!("ssh {id} at {}{required}", mount.target)
            }
        }
    }

    fn render_copy(&self, text: &mut String, copy: &CopyAction) {
        let sources: Vec<String> = copy
            .sources
            .iter()
            .map(|source| match source {
                CopySource::Path(path) if path.is_empty() => "/".to_owned(),
                CopySource::Path(path) => path.clone(),
                CopySource::Heredoc { name, body } => format!("<<{name} ({} bytes)", body.len()),
                CopySource::Url(url) => without_credentials(url),
                CopySource::Git(url) => without_credentials(url),
            })
            .collect();
        let remote = copy.sources.iter().all(|source| !matches!(source, CopySource::Path(_)));
        let from = if remote { String::new() } else { format!(" of {}", self.source_name(&copy.from)) };
        line(text, 2, format_args!("{}{from} to {}", sources.join(", "), copy.destination));
    }
}

/// A URL without user and password.
fn without_credentials(url: &str) -> String {
    match url.split_once("://").and_then(|(scheme, rest)| {
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (_, host) = authority.rsplit_once('@')?;
        Some(format!("{scheme}://{host}/{path}"))
    }) {
        Some(plain) => plain,
        None => url.to_owned(),
    }
}

/// The first line of a text, marked if there are more.
fn one_line(text: &str) -> String {
    match text.split_once('\n') {
        Some((first, _)) => format!("{first} …"),
        None => text.to_owned(),
    }
}

fn line(text: &mut String, depth: usize, content: std::fmt::Arguments<'_>) {
    // Writing to a `String` does not fail.
    _ = writeln!(text, "{:width$}{content}", "", width = depth * 2);
}

/// Version of the JSON form.
const SCHEMA_VERSION: u32 = 1;

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut plan = serializer.serialize_struct("Plan", 7)?;
        plan.serialize_field("schema", &SCHEMA_VERSION)?;
        plan.serialize_field("platform", &self.platform.to_string())?;
        plan.serialize_field("source_date_epoch", &self.source_date_epoch)?;
        plan.serialize_field("target", &self.stages[self.target.0].name)?;
        let pinned: Vec<_> = self
            .pinned
            .iter()
            .map(|(request, pinned)| {
                serde_json::json!({ "name": request.name, "platform": request.platform.to_string(), "pinned": pinned })
            })
            .collect();
        plan.serialize_field("images", &pinned)?;
        let stages: Vec<StageView<'_>> = self.stages.iter().map(|stage| StageView { plan: self, stage }).collect();
        plan.serialize_field("stages", &stages)?;
        let dropped: Vec<_> = self
            .dropped
            .iter()
            .map(|stage| serde_json::json!({ "name": stage.name, "line": stage.lines.first }))
            .collect();
        plan.serialize_field("dropped", &dropped)?;
        plan.end()
    }
}

struct StageView<'a> {
    plan: &'a Plan,
    stage: &'a Stage,
}

impl Serialize for StageView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { plan, stage } = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &stage.name)?;
        map.serialize_entry("line", &stage.lines.first)?;
        map.serialize_entry("base", &plan.base_name(stage))?;
        map.serialize_entry("platform", &stage.platform.to_string())?;
        let steps: Vec<StepView<'_>> = stage.steps.iter().map(StepView).collect();
        map.serialize_entry("steps", &steps)?;
        map.serialize_entry("config", stage.config.raw())?;
        let history: Vec<&str> = stage
            .history
            .iter()
            .map(|item| match item {
                PlannedHistory::Inherited(entry) => entry.created_by(),
                PlannedHistory::New { created_by, .. } => created_by,
            })
            .collect();
        map.serialize_entry("history", &history)?;
        map.end()
    }
}

struct StepView<'a>(&'a Step);

impl Serialize for StepView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(step) = self;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("title", &step.title)?;
        map.serialize_entry("first_line", &step.lines.first)?;
        map.serialize_entry("last_line", &step.lines.last)?;
        match &step.action {
            Action::Run(run) => map.serialize_entry("run", run)?,
            Action::Copy(copy) => map.serialize_entry(if copy.add { "add" } else { "copy" }, copy)?,
            Action::Workdir(workdir) => map.serialize_entry("workdir", workdir)?,
        }
        map.end()
    }
}
