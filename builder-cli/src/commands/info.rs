//! `slipway info`

use std::process::ExitCode;

use builder_core::exec::{WorkDir, probe_work_dir};
use builder_core::hint::{self, Hint as _};
use builder_core::rootfs::{Ownership, TreeMode};
use builder_core::sandbox::{self, Environment, IdRanges, Machine, Tier};
use serde_json::{Value, json};

use super::result;
use crate::diagnostics;
use crate::exit::Exit;
use crate::flags::InfoFlags;
use crate::request::{self, Ambient};
use crate::ui::bytes;

/// Shows what this machine allows.
pub fn run(flags: &InfoFlags, ambient: &Ambient) -> ExitCode {
    let state = match request::state(&flags.state, ambient) {
        Ok(state) => state,
        Err(error) => {
            diagnostics::plain(&hint::chain(&error), error.hint().as_deref());
            return Exit::Usage.into();
        }
    };
    // Before anything is entered, as inside all would look different.
    let machine = Machine::look();
    let survey = sandbox::survey(Some(&state.work_dir));
    let environment = match sandbox::enter_as(&state.wish) {
        Ok(environment) => environment,
        Err(error) => {
            diagnostics::plain(&format!("cannot set up namespaces: {error}"), None);
            return Exit::Sandbox.into();
        }
    };
    let work_dir = probe_work_dir(&state.work_dir, state.tree_mode, &environment).map_err(|error| hint::chain(&error));
    let facts = facts(&environment, &machine, &state.work_dir.display().to_string(), &work_dir);
    if flags.json {
        let text = document(&environment, &survey, &machine, &state.work_dir.display().to_string(), &work_dir, &facts);
        result(&format!("{text:#}\n"));
        return ExitCode::SUCCESS;
    }
    for (name, value) in &facts {
        result(&format!("{name:<16} {value}\n"));
    }
    for (tier, tried) in &survey {
        let verdict = if tried.tier.is_some() { "possible" } else { "not possible" };
        let chosen = if environment.tier == Some(*tier) { ", used" } else { "" };
        result(&format!("{:<16} {verdict}{chosen}\n", format!("tier {tier}")));
        for refusal in &tried.refused {
            result(&format!("{:<16} {}: {}\n", "", refusal.attempt, refusal.reason));
            for remedy in &refusal.remedies {
                result(&format!("{:<18} would help: {remedy}\n", ""));
            }
        }
    }
    ExitCode::SUCCESS
}

/// Name and value, most important first.
fn facts(
    environment: &Environment,
    machine: &Machine,
    path: &str,
    work_dir: &Result<WorkDir, String>,
) -> Vec<(&'static str, String)> {
    let mut facts = environment.facts();
    facts.push(("user id map", ranges(&environment.uids)));
    facts.push(("group id map", ranges(&environment.gids)));
    facts.push(("work directory", path.to_owned()));
    match work_dir {
        Err(error) => facts.push(("trees", error.clone())),
        Ok(found) => {
            facts.push(("trees", trees(found)));
            facts.push(("file system", file_system(found)));
            facts.push(("reflinks", yes_or_no(found.volume.reflink).to_owned()));
            facts.push(("user attributes", yes_or_no(found.volume.user_xattrs).to_owned()));
            let files = found.volume.free_files.map_or(String::new(), |files| format!(", {files} files"));
            facts.push(("disk free", format!("{}{files}", bytes(found.volume.free_bytes))));
        }
    }
    facts.push(("memory limit", machine.memory.map_or("none".to_owned(), bytes)));
    facts.push(("process limit", machine.processes.map_or("none".to_owned(), |limit| limit.to_string())));
    let open = |limit: Option<u64>| limit.map_or("none".to_owned(), |limit| limit.to_string());
    facts.push(("open files", format!("{} (at most {})", open(machine.descriptors.0), open(machine.descriptors.1))));
    facts.push(("processors", machine.processors.to_string()));
    facts.push(("seccomp filter", yes_or_no(machine.seccomp_filter).to_owned()));
    facts.push(("no_new_privs", yes_or_no(machine.no_new_privileges).to_owned()));
    facts.push((
        "landlock",
        if machine.landlock == 0 { "none".into() } else { format!("version {}", machine.landlock) },
    ));
    facts.push(("ptrace_scope", machine.ptrace_scope.map_or("no Yama".to_owned(), |scope| scope.to_string())));
    facts
}

fn document(
    environment: &Environment,
    survey: &[(Tier, Environment)],
    machine: &Machine,
    path: &str,
    work_dir: &Result<WorkDir, String>,
    facts: &[(&'static str, String)],
) -> Value {
    let texts: serde_json::Map<String, Value> =
        facts.iter().map(|(name, value)| (name.replace(' ', "_"), json!(value))).collect();
    let tiers: Vec<Value> = survey
        .iter()
        .map(|(tier, tried)| {
            let refused: Vec<Value> = tried
                .refused
                .iter()
                .map(|one| json!({ "attempt": one.attempt, "reason": one.reason, "remedies": one.remedies }))
                .collect();
            json!({ "tier": tier.name(), "possible": tried.tier.is_some(), "refused": refused })
        })
        .collect();
    let map = |ranges: &IdRanges| -> Vec<Value> {
        let one = |range: &sandbox::IdRange| json!({ "inside": range.inside, "outside": range.outside, "count": range.count });
        ranges.0.iter().map(one).collect()
    };
    let work = match work_dir {
        Err(error) => json!({ "path": path, "error": error }),
        Ok(found) => json!({
            "path": path,
            "file_system": found.volume.file_system,
            "noexec": found.volume.no_exec,
            "nosuid": found.volume.no_suid,
            "nodev": found.volume.no_dev,
            "overlay": found.trees == TreeMode::Overlay,
            "overlay_refused": found.overlay_refused,
            "reflink": found.volume.reflink,
            "user_xattrs": found.volume.user_xattrs,
            "pipes": found.volume.pipes,
            "real_owners": found.ownership != Ownership::Recorded,
            "free_bytes": found.volume.free_bytes,
            "free_files": found.volume.free_files,
        }),
    };
    let refused: Vec<String> = environment.refused.iter().map(ToString::to_string).collect();
    json!({
        "version": 1,
        "tier": environment.tier.map(Tier::name),
        "tiers": tiers,
        "kernel": machine.kernel,
        "machine": machine.machine,
        "ids": { "kind": format!("{:?}", environment.ids).to_lowercase(), "uids": map(&environment.uids), "gids": map(&environment.gids) },
        "work_dir": work,
        "limits": {
            "memory_bytes": machine.memory,
            "processes": machine.processes,
            "processors": machine.processors,
            "open_files": machine.descriptors.0,
            "open_files_at_most": machine.descriptors.1,
        },
        "confinement": {
            "capabilities": format!("{:016x}", machine.capabilities),
            "seccomp_filter": machine.seccomp_filter,
            "no_new_privs": machine.no_new_privileges,
            "landlock": machine.landlock,
            "ptrace_scope": machine.ptrace_scope,
        },
        "facts": texts,
        "refused": refused,
    })
}

fn trees(found: &WorkDir) -> String {
    let kept = match (found.trees, &found.overlay_refused) {
        (TreeMode::Overlay, _) => "overlayfs: steps cost what they change".to_owned(),
        (TreeMode::Directory, None) => "plain directories".to_owned(),
        (TreeMode::Directory, Some(reason)) => format!("plain directories; overlayfs is not possible: {reason}"),
    };
    match found.ownership {
        Ownership::Real => kept,
        Ownership::RealFiles => format!("{kept}; files stand for devices"),
        Ownership::Recorded => format!("{kept}; owners are recorded beside them"),
    }
}

fn file_system(found: &WorkDir) -> String {
    let volume = &found.volume;
    let flags = [(volume.no_exec, "noexec"), (volume.no_suid, "nosuid"), (volume.no_dev, "nodev")];
    let set: Vec<_> = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    if set.is_empty() { volume.file_system.clone() } else { format!("{} ({})", volume.file_system, set.join(", ")) }
}

fn ranges(ids: &IdRanges) -> String {
    let range = |range: &sandbox::IdRange| {
        format!("{}-{} from {}", range.inside, u64::from(range.inside) + u64::from(range.count) - 1, range.outside)
    };
    ids.0.iter().map(range).collect::<Vec<_>>().join(", ")
}

fn yes_or_no(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}
