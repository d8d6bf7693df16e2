//! Cache keys: what decides the result of a step, as far as the plan knows it, and one line that says what differs.
//!
//! A [`StateKey`] names a root filesystem by how it came about: a base, then steps. The key of a step is the hash of its
//! parent's key, its definition (this module) and the digests of the files it reads (the executor's business).
//!
//! What counts: for RUN the arguments, environment, directory, user, mounts and options (checklist R-17); for COPY and ADD
//! the expanded words and flags (C-10), so an ARG counts there only where it is used. What does not: proxies
//! contents of secrets and caches, addresses of extra hosts, titles, history texts, positions in the file.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::types::{Action, CopyAction, CopySource, FileSource, Mount, MountKind, RunAction, Step};
use crate::dockerfile::lint::sounds_secret;
use crate::oci::{ChainId, Platform, Sha256, json_hash};

/// Changes when the meaning of keys changes, so that old results are not taken for new ones.
const KEY_VERSION: u32 = 1;

/// Names a root filesystem by how it came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateKey(pub Sha256);

impl StateKey {
    /// An empty root filesystem.
    pub fn scratch() -> Self {
        Self(json_hash(&json!({ "version": KEY_VERSION, "base": "scratch" })))
    }

    /// The layers of a base image; an image without layers is the same as scratch.
    pub fn image(layers: Option<ChainId>) -> Self {
        match layers {
            Some(chain) => Self(json_hash(&json!({ "version": KEY_VERSION, "base": chain.to_string() }))),
            None => Self::scratch(),
        }
    }

    /// Files of a named context, by the hash of their content.
    pub fn files(content: Sha256) -> Self {
        Self(json_hash(&json!({ "version": KEY_VERSION, "files": content.to_string() })))
    }

    /// The state after a step.
    pub fn after(self, step: &Components) -> Self {
        self.after_key(step.key())
    }

    /// The state after a step of which only the key is known.
    pub fn after_key(self, step: Sha256) -> Self {
        Self(json_hash(&json!({ "parent": self.0.to_string(), "step": step.to_string() })))
    }
}

/// What the key of one step consists of, by name, so that a miss can be explained. Small enough to be kept with each
/// result.
///
/// Values of variables whose names sound like secrets are kept as digests only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Components {
    /// What is done, without environment and inputs.
    pub instruction: String,
    /// Everything else that the plan says about the step.
    settings: String,
    /// Key of the state before; `None` for `COPY --link`, whose layer does not depend on it (checklist C-40).
    pub parent: Option<String>,
    /// Reference of the base image, for the step right after FROM. Not part of the key: the parent is.
    pub base: Option<String>,
    /// ARGs in scope of a RUN.
    pub args: BTreeMap<String, String>,
    /// Other variables of a RUN.
    pub env: BTreeMap<String, String>,
    /// Digests of what is read: files by path, stages and images by name.
    pub inputs: BTreeMap<String, String>,
}

impl Components {
    /// Puts the parts together. `inputs` are digests of what the step reads: for COPY each source, for RUN each bind
    /// mount and each initial content of a cache.
    pub fn new(step: &Step, platform: &Platform, parent: StateKey, inputs: &BTreeMap<String, Sha256>) -> Self {
        let (instruction, settings) = definition(&step.action, platform);
        let (mut args, mut env) = (BTreeMap::new(), BTreeMap::new());
        if let Action::Run(run) = &step.action {
            for (name, value) in &run.env {
                let shown = if sounds_secret(name) { Sha256::of(value.as_bytes()).to_string() } else { value.clone() };
                let group = if run.args.contains_key(name) { &mut args } else { &mut env };
                group.insert(name.clone(), shown);
            }
        }
        let independent = matches!(&step.action, Action::Copy(copy) if copy.link);
        Self {
            instruction,
            settings: json_hash(&settings).to_string(),
            parent: (!independent).then(|| parent.0.to_string()),
            base: None,
            args,
            env,
            inputs: inputs.iter().map(|(name, digest)| (name.clone(), digest.to_string())).collect(),
        }
    }

    /// Says which base image the parent is.
    #[must_use]
    pub fn on_base(mut self, pinned: Option<String>) -> Self {
        self.base = pinned;
        self
    }

    /// Says to which time the step's files are clamped (`rewrite-timestamp`): layers with other times are other layers.
    #[must_use]
    pub fn clamped_to(mut self, seconds: Option<i64>) -> Self {
        if let Some(seconds) = seconds {
            self.settings = json_hash(&json!({ "settings": self.settings, "clamped": seconds })).to_string();
        }
        self
    }

    /// Says which paths are left out of the step's layer, if any.
    #[must_use]
    pub fn ignoring(mut self, patterns: impl Iterator<Item = String>) -> Self {
        let patterns: Vec<String> = patterns.collect();
        if !patterns.is_empty() {
            self.settings = json_hash(&json!({ "settings": self.settings, "ignored": patterns })).to_string();
        }
        self
    }

    /// The key under which the step's result is kept.
    pub fn key(&self) -> Sha256 {
        json_hash(&json!({
            "version": KEY_VERSION,
            "instruction": self.instruction,
            "settings": self.settings,
            "parent": self.parent,
            "inputs": self.inputs,
        }))
    }

    /// Whether nothing but what lies below the step differs from `old`.
    pub fn differs_below_alone(&self, old: &Self) -> bool {
        let here = Self { parent: old.parent.clone(), ..self.clone() };
        here.key() == old.key()
    }

    /// One line that says why this step cannot use the result that was kept for `old`.
    pub fn difference(&self, old: &Self) -> String {
        if self.instruction != old.instruction {
            return "instruction changed".to_owned();
        }
        if self.parent != old.parent
            && self.base != old.base
            && let (Some(new), Some(old)) = (&self.base, &old.base)
        {
            return format!("base image changed from {old} to {new}");
        }
        if let Some(text) = variable("ARG", &self.args, &old.args).or_else(|| variable("ENV", &self.env, &old.env)) {
            return text;
        }
        if let Some(text) = changed_input(&self.inputs, &old.inputs) {
            return text;
        }
        if self.parent != old.parent {
            return "parent step changed".to_owned();
        }
        if self.settings != old.settings {
            return "options of the step changed".to_owned();
        }
        "its result is no longer kept".to_owned()
    }
}

/// Says which variable differs.
fn variable(kind: &str, new: &BTreeMap<String, String>, old: &BTreeMap<String, String>) -> Option<String> {
    let names: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    let name = names.into_iter().find(|name| new.get(*name) != old.get(*name))?;
    Some(match (old.get(name), new.get(name)) {
        _ if sounds_secret(name) => format!("{kind} {name} changed"),
        (Some(old), Some(new)) => format!("{kind} {name} changed from {} to {}", shown(old), shown(new)),
        (None, _) => format!("{kind} {name} was added"),
        (_, None) => format!("{kind} {name} was removed"),
    })
}

/// A value on one line.
fn shown(value: &str) -> String {
    const LONGEST: usize = 60;
    let line = value.lines().next().unwrap_or_default();
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.len() < value.len() => format!("{line}…"),
        None if line.is_empty() => "\"\"".to_owned(),
        None => line.to_owned(),
    }
}

/// Name, or end of the name, of a digest over everything that is read from one place. It counts in the key, and is told
/// only where none of the files beside it differs.
pub const WHOLE: &str = "sources";

/// Says which file differs, and how many more.
fn changed_input(new: &BTreeMap<String, String>, old: &BTreeMap<String, String>) -> Option<String> {
    let names: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    let changed = names.into_iter().filter(|name| new.get(*name) != old.get(*name));
    let (wholes, files): (Vec<_>, Vec<_>) = changed.partition(|name| name.ends_with(WHOLE));
    let mut changed = files.into_iter();
    let Some(first) = changed.next() else {
        return (!wholes.is_empty()).then(|| "files that it reads changed".to_owned());
    };
    let what = match (old.contains_key(first), new.contains_key(first)) {
        (true, true) => "changed",
        (false, _) => "was added",
        (_, false) => "was removed",
    };
    Some(match changed.count() {
        0 => format!("file {first} {what}"),
        more => format!("file {first} {what}, and {more} more"),
    })
}

/// What is done, as a line, and everything that decides the result, as a document.
fn definition(action: &Action, platform: &Platform) -> (String, Value) {
    match action {
        Action::Run(run) => (format!("RUN {}", run.argv.join(" ")), run_definition(run, platform)),
        Action::Copy(copy) => copy_definition(copy),
        Action::Workdir(workdir) => (
            format!("WORKDIR {}", workdir.path),
            json!({ "workdir": workdir.path, "user": workdir.user, "epoch": workdir.source_date_epoch }),
        ),
    }
}

fn run_definition(run: &RunAction, platform: &Platform) -> Value {
    json!({
        "run": run.argv,
        "env": run.env,
        "cwd": run.cwd,
        "user": run.user,
        "script": run.script,
        "mounts": run.mounts.iter().map(mount_definition).collect::<Vec<_>>(),
        "network": run.network,
        "security": run.security,
        "devices": run.devices,
        "hostname": run.hostname,
        "hosts": run.extra_hosts.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "shm": run.shm_size,
        "ulimits": run.ulimits,
        "platform": platform,
    })
}

/// Of a cache neither identity nor sharing counts, so a RUN is not repeated when they change (checklist R-17, M-14).
fn mount_definition(mount: &Mount) -> Value {
    let what = match &mount.kind {
        MountKind::Bind { from, source } => json!({ "bind": source, "from": source_kind(from) }),
        MountKind::Cache { from, source, mode, uid, gid, id: _, sharing: _ } => json!({
            "cache": source, "from": from.as_ref().map(source_kind), "mode": mode, "uid": uid, "gid": gid,
        }),
        MountKind::Tmpfs { size } => json!({ "tmpfs": size }),
        MountKind::Secret { id, file, env, required, mode, uid, gid } => json!({
            "secret": id, "file": file, "env": env, "required": required, "mode": mode, "uid": uid, "gid": gid,
        }),
        MountKind::Ssh { id, required, mode, uid, gid } => {
            json!({ "ssh": id, "required": required, "mode": mode, "uid": uid, "gid": gid })
        }
    };
    json!({ "target": mount.target, "readonly": mount.readonly, "what": what })
}

/// Stages count by what they hold, not by number or name: that is an input.
fn source_kind(source: &FileSource) -> Value {
    match source {
        FileSource::Context => json!("context"),
        FileSource::NamedContext(_) => json!("named"),
        FileSource::Stage(_) => json!("stage"),
        FileSource::Image(_) => json!("image"),
        FileSource::Scratch => json!("scratch"),
    }
}

fn copy_definition(copy: &CopyAction) -> (String, Value) {
    let CopyAction {
        add,
        from,
        sources,
        destination,
        chown,
        chmod,
        link,
        parents,
        excludes,
        checksum,
        keep_git_dir,
        unpack,
    } = copy;
    let settings = json!({
        "add": add,
        "from": source_kind(from),
        "sources": sources,
        "destination": destination,
        "chown": chown,
        "chmod": chmod,
        "link": link,
        "parents": parents,
        "excludes": excludes,
        "checksum": checksum,
        "keep_git_dir": keep_git_dir,
        "unpack": unpack,
    });
    let words = sources.iter().map(|source| match source {
        CopySource::Path(path) | CopySource::Url(path) | CopySource::Git(path) => path.clone(),
        // The body is what the user wrote, too; its digest keeps the line short.
        CopySource::Heredoc { name, body } => format!("<<{name}={}", Sha256::of(body.as_bytes()).to_hex()),
    });
    let name = if *add { "ADD" } else { "COPY" };
    (format!("{name} {} {destination}", words.collect::<Vec<_>>().join(" ")), settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::LineRange;
    use crate::plan::{NetworkMode, SecurityMode, Sharing};

    fn step(action: Action) -> Step {
        Step { title: String::new(), lines: LineRange { first: 1, last: 1 }, action, created_by: String::new() }
    }

    fn run() -> RunAction {
        RunAction {
            argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), "make".to_owned()],
            env: [("A", "1"), ("E", "2"), ("API_TOKEN", "t")].map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
            proxy_env: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
            script: None,
            mounts: Vec::new(),
            network: NetworkMode::Default,
            security: SecurityMode::Sandbox,
            devices: Vec::new(),
            hostname: None,
            extra_hosts: Vec::new(),
            shm_size: None,
            ulimits: Vec::new(),
            args: [("A", "1"), ("API_TOKEN", "t")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        }
    }

    fn cache(id: &str, sharing: Sharing, uid: Option<u32>) -> Mount {
        let kind = MountKind::Cache {
            id: id.to_owned(),
            sharing,
            from: None,
            source: "/".to_owned(),
            mode: None,
            uid,
            gid: None,
        };
        Mount { target: "/c".to_owned(), readonly: false, kind }
    }

    fn copy() -> CopyAction {
        CopyAction::plain(FileSource::Context, vec![CopySource::Path("src".to_owned())], "/d/")
    }

    fn inputs(files: &[(&str, &str)]) -> BTreeMap<String, Sha256> {
        files.iter().map(|(name, content)| ((*name).to_owned(), Sha256::of(content.as_bytes()))).collect()
    }

    fn components(action: Action, files: &[(&str, &str)]) -> Components {
        Components::new(&step(action), &Platform::new("linux", "amd64", ""), StateKey::scratch(), &inputs(files))
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut RunAction), expected: Option<&str>) {
        let old = components(Action::Run(run()), &[]);
        let mut changed = run();
        change(&mut changed);
        let new = components(Action::Run(changed), &[]);
        match expected {
            None => assert_eq!(new.key(), old.key()),
            Some(text) => {
                assert_ne!(new.key(), old.key());
                assert_eq!(new.difference(&old), text);
            }
        }
    }

    #[test]
    fn what_counts_for_a_run() {
        check(|run| run.argv[2] = "make all".to_owned(), Some("instruction changed"));
        check(|run| run.cwd = "/w".to_owned(), Some("options of the step changed"));
        check(|run| run.env[1].1 = "3".to_owned(), Some("ENV E changed from 2 to 3"));
        check(
            |run| {
                run.env[0].1 = "9\n9".to_owned();
                run.args.insert("A".to_owned(), "9\n9".to_owned());
            },
            Some("ARG A changed from 1 to 9…"),
        );
        check(|run| _ = run.env.remove(1), Some("ENV E was removed"));
        check(|run| run.env[2].1 = "other".to_owned(), Some("ARG API_TOKEN changed"));
        check(|run| run.mounts.push(cache("/c", Sharing::Shared, None)), Some("options of the step changed"));
        check(|run| run.proxy_env.push(("HTTP_PROXY".to_owned(), "x".to_owned())), None);
    }

    #[test]
    fn a_secret_value_is_not_kept() {
        let text = serde_json::to_string(&components(Action::Run(run()), &[])).expect("plain values");
        assert!(!text.contains("\"t\""), "{text}");
    }

    #[test]
    fn identity_of_caches_and_addresses_do_not_count() {
        let with = |mount, address: &str| {
            let hosts = vec![("h".to_owned(), address.to_owned())];
            components(Action::Run(RunAction { mounts: vec![mount], extra_hosts: hosts, ..run() }), &[]).key()
        };
        let key = with(cache("/c", Sharing::Shared, None), "1.1.1.1");
        assert_eq!(with(cache("other", Sharing::Locked, None), "2.2.2.2"), key);
        assert_ne!(with(cache("/c", Sharing::Shared, Some(1)), "1.1.1.1"), key);
    }

    #[test]
    fn files_are_named() {
        let new = |files: &[(&str, &str)]| components(Action::Copy(copy()), files);
        let old = new(&[("src/a", "1"), ("src/b", "1")]);
        assert_eq!(new(&[("src/a", "2"), ("src/b", "1")]).difference(&old), "file src/a changed");
        assert_eq!(new(&[("src/a", "2")]).difference(&old), "file src/a changed, and 1 more");
        assert_eq!(new(&[("src/a", "1"), ("src/b", "1"), ("src/c", "")]).difference(&old), "file src/c was added");
        assert_eq!(new(&[("src/a", "1"), ("src/b", "1")]).difference(&old), "its result is no longer kept");
        let old = new(&[("src/a", "1"), (WHOLE, "1")]);
        assert_eq!(new(&[("src/a", "2"), (WHOLE, "2")]).difference(&old), "file src/a changed");
        assert_eq!(new(&[("src/a", "1"), (WHOLE, "2")]).difference(&old), "files that it reads changed");
    }

    #[test]
    fn a_linked_copy_does_not_depend_on_its_parent() {
        let key = |link, parent| {
            let action = Action::Copy(CopyAction { link, ..copy() });
            let platform = Platform::new("linux", "amd64", "");
            let components = Components::new(&step(action), &platform, parent, &inputs(&[]));
            (components.key(), parent.after(&components))
        };
        let other = StateKey::files(Sha256::of(b"x"));
        assert_ne!(key(false, StateKey::scratch()).0, key(false, other).0);
        assert_eq!(key(true, StateKey::scratch()).0, key(true, other).0);
        assert_ne!(key(true, StateKey::scratch()).1, key(true, other).1);
    }

    #[test]
    fn the_base_comes_before_the_parent() {
        let on = |parent, pinned: &str| {
            let platform = Platform::new("linux", "amd64", "");
            Components::new(&step(Action::Copy(copy())), &platform, parent, &inputs(&[]))
                .on_base(Some(pinned.to_owned()))
        };
        let (a, b) = (on(StateKey::scratch(), "a"), on(StateKey::files(Sha256::of(b"x")), "b"));
        assert_eq!(b.difference(&a), "base image changed from a to b");
        assert_eq!(on(StateKey::scratch(), "b").key(), a.key());
    }

    #[test]
    fn a_clamped_layer_is_another_one() {
        let key = |seconds| components(Action::Run(run()), &[]).clamped_to(seconds).key();
        assert_eq!(key(None), components(Action::Run(run()), &[]).key());
        assert_ne!(key(Some(1)), key(None));
        assert_ne!(key(Some(1)), key(Some(2)));
    }

    #[test]
    fn components_survive_json() {
        let components = components(Action::Run(run()), &[("f", "1")]);
        let text = serde_json::to_vec(&components).expect("plain values");
        assert_eq!(serde_json::from_slice::<Components>(&text).expect("just written"), components);
    }
}
