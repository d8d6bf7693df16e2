//! The builders that are compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::measure::Daemon;
use crate::{Result, env};

/// A builder: command templates for `sh -c` with `{context} {dockerfile} {tag} {state} {cache}` to be filled in.
pub struct Peer {
    /// For the table.
    pub name: String,
    /// File names of its programs, whose processes' memory is counted.
    pub programs: Vec<String>,
    /// By [`Way`].
    templates: BTreeMap<Way, String>,
    /// A command that runs beside it, with `{state}`, if it has a daemon, and one that fails until that can be used.
    daemon: Option<String>,
    ready: Option<String>,
}

/// What is asked of a builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Build and push as it does by itself.
    Usual,
    /// With layers in zstd.
    Zstd,
    /// And put the results of steps into the repository `{cache}`.
    CacheTo,
    /// With results of steps from the repository `{cache}`.
    CacheFrom,
}

impl Way {
    /// Its word in `BENCH_PEERS`.
    fn word(word: &str) -> Option<Self> {
        match word {
            "" => Some(Self::Usual),
            "zstd" => Some(Self::Zstd),
            "cache-to" => Some(Self::CacheTo),
            "cache-from" => Some(Self::CacheFrom),
            _ => None,
        }
    }
}

impl Peer {
    fn new(name: &str, program: &str, templates: BTreeMap<Way, String>) -> Self {
        Self { name: name.to_owned(), programs: vec![program.to_owned()], templates, daemon: None, ready: None }
    }

    /// Its command for `way`; `None` if it cannot do that.
    pub fn template(&self, way: Way) -> Option<&str> {
        self.templates.get(&way).map(String::as_str)
    }

    /// What must run beside it.
    pub fn daemon(&self, state: &Path) -> Option<Daemon> {
        let fill = |template: &str| template.replace("{state}", &state.display().to_string());
        let line = fill(self.daemon.as_ref()?);
        Some(Daemon { line, ready: self.ready.as_deref().map_or_else(|| "true".to_owned(), fill) })
    }
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().ok_or_else(|| format!("{} names no program", path.display()))?;
    Ok(name.to_string_lossy().into_owned())
}

/// The program that a command line starts.
fn program(template: &str) -> Result<String> {
    let word = template.split_whitespace().find(|word| *word != "exec").ok_or("BENCH_PEERS: no command")?;
    file_name(Path::new(word))
}

/// slipway, buildah where it is installed, those of `BENCH_PEERS`, and slipway in the tiers of `BENCH_TIERS`.
pub fn peers() -> Result<Vec<Peer>> {
    let mut peers = vec![slipway("slipway", "")?];
    for tier in env("BENCH_TIERS").unwrap_or_default().split(',').filter(|tier| !tier.is_empty()) {
        peers.push(slipway(tier, &format!("--sandbox {tier}"))?);
    }
    if Command::new("buildah").arg("--version").output().is_ok_and(|output| output.status.success()) {
        peers.push(buildah());
    }
    for line in env("BENCH_PEERS").unwrap_or_default().lines().filter(|line| !line.trim().is_empty()) {
        let (name, template) = line.split_once('=').ok_or("BENCH_PEERS: name=command template")?;
        let (name, template) = (name.trim(), template.trim().to_owned());
        let (name, word) = name.split_once('.').unwrap_or((name, ""));
        let at = match peers.iter().position(|peer| peer.name == name) {
            Some(at) => at,
            None => {
                peers.push(Peer::new(name, &program(&template)?, BTreeMap::new()));
                peers.len() - 1
            }
        };
        let peer = &mut peers[at];
        match (word, Way::word(word)) {
            (_, Some(way)) => _ = peer.templates.insert(way, template),
            ("daemon", _) => peer.daemon = Some(template),
            ("ready", _) => peer.ready = Some(template),
            ("programs", _) => peer.programs = template.split_whitespace().map(str::to_owned).collect(),
            (word, None) => {
                let words = "zstd, cache-to, cache-from, daemon, ready, programs";
                return Err(format!("BENCH_PEERS: {word} is none of {words}").into());
            }
        }
    }
    if let Some(only) = env("BENCH_ONLY") {
        peers.retain(|peer| only.split(',').any(|name| name == peer.name));
    }
    Ok(peers)
}

/// The same in a row of its own, with `more` arguments.
fn slipway(name: &str, more: &str) -> Result<Peer> {
    let path = env("SLIPWAY_BIN").unwrap_or_else(|| "target/release/slipway".to_owned());
    let path = fs::canonicalize(&path).map_err(|error| format!("{path}: {error}; set SLIPWAY_BIN"))?;
    let build = |options: &str| {
        format!(
            "exec {} build --progress plain {more} --work-dir {{state}} -f {{dockerfile}} {options} {{context}}",
            path.display()
        )
    };
    let templates = BTreeMap::from([
        (Way::Usual, build("-t {tag} --push")),
        (Way::Zstd, build("-o type=registry,name={tag},compression=zstd")),
        (Way::CacheTo, build("-t {tag} --push --cache-to type=registry,ref={cache},mode=max")),
        (Way::CacheFrom, build("-t {tag} --push --cache-from type=registry,ref={cache}")),
    ]);
    Ok(Peer::new(name, &file_name(&path)?, templates))
}

/// One line does both, as slipway's does; layers are kept so that the warm rows mean the same.
fn buildah() -> Peer {
    let line = |build: &str, push: &str| {
        let place = "--root {state}/root --runroot {state}/run";
        format!(
            "buildah {place} build --isolation chroot --layers --tls-verify=false {build} -f {{dockerfile}} -t {{tag}} \
             {{context}} && buildah {place} push --tls-verify=false {push} {{tag}}"
        )
    };
    let templates = BTreeMap::from([
        (Way::Usual, line("", "")),
        (Way::Zstd, line("", "--compression-format zstd")),
        (Way::CacheTo, line("--cache-to {cache}", "")),
        (Way::CacheFrom, line("--cache-from {cache}", "")),
    ]);
    Peer::new("buildah", "buildah", templates)
}
