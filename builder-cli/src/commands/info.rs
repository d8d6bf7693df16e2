//! `slipway info`

use std::process::ExitCode;

use builder_core::exec::probe_work_dir;
use builder_core::hint::Hint as _;
use builder_core::sandbox;
use serde_json::json;

use super::result;
use crate::diagnostics;
use crate::exit::Exit;
use crate::flags::InfoFlags;
use crate::request::{self, Ambient};

/// Shows what this machine allows.
pub fn run(flags: &InfoFlags, ambient: &Ambient) -> ExitCode {
    let state = match request::state(&flags.state, ambient) {
        Ok(state) => state,
        Err(error) => {
            diagnostics::plain(&diagnostics::chain(&error), error.hint().as_deref());
            return Exit::Usage.into();
        }
    };
    let environment = match sandbox::enter() {
        Ok(environment) => environment,
        Err(error) => {
            diagnostics::plain(&format!("cannot set up namespaces: {error}"), None);
            return Exit::Sandbox.into();
        }
    };
    let mut facts = environment.facts();
    facts.push(("work directory", state.work_dir.display().to_string()));
    let trees = match probe_work_dir(&state.work_dir, state.tree_mode, &environment) {
        Ok(trees) => trees,
        Err(error) => diagnostics::chain(&error),
    };
    facts.push(("trees", trees));
    if flags.json {
        let map: serde_json::Map<String, serde_json::Value> =
            facts.iter().map(|(name, value)| (name.replace(' ', "_"), json!(value))).collect();
        let text = json!({ "version": 1, "facts": map, "refused": environment.refused });
        result(&format!("{text:#}\n"));
    } else {
        for (name, value) in &facts {
            result(&format!("{name:<16} {value}\n"));
        }
        for reason in &environment.refused {
            result(&format!("{:<16} {reason}\n", "not possible"));
        }
    }
    ExitCode::SUCCESS
}
