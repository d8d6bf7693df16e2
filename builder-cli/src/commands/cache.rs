//! `slipway cache ls` and `slipway cache prune`

use std::process::ExitCode;

use builder_core::exec::{Inventory, inventory, prune};
use builder_core::hint::{self, Hint as _};
use builder_core::sandbox;
use serde_json::json;

use super::result;
use crate::diagnostics;
use crate::exit::Exit;
use crate::flags::CacheCommand;
use crate::request::{self, Ambient};

/// Lists or removes what is kept.
pub fn run(command: &CacheCommand, ambient: &Ambient) -> ExitCode {
    let flags = match command {
        CacheCommand::Ls(flags) => &flags.state,
        CacheCommand::Prune(flags) => &flags.state,
    };
    let state = match request::state(flags, ambient) {
        Ok(state) => state,
        Err(error) => {
            diagnostics::plain(&hint::chain(&error), error.hint().as_deref());
            return Exit::Usage.into();
        }
    };
    // Files of other ids can be seen and removed only where those ids exist.
    if let Err(error) = sandbox::enter_as(&state.wish) {
        diagnostics::plain(&format!("cannot set up namespaces: {error}"), None);
        return Exit::Sandbox.into();
    }
    let outcome = match command {
        CacheCommand::Ls(flags) => inventory(&state.work_dir).map(|found| list(&found, flags.json)),
        CacheCommand::Prune(flags) => {
            prune(&state.work_dir, flags.mounts).map(|freed| result(&format!("{freed} bytes freed\n")))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            diagnostics::plain(&hint::chain(&error), error.hint().as_deref());
            Exit::Disk.into()
        }
    }
}

fn list(found: &Inventory, as_json: bool) {
    if as_json {
        result(&format!("{:#}\n", json!(found)));
        return;
    }
    for (name, count, bytes) in [
        ("blobs", found.blobs.count, found.blobs.bytes),
        ("trees", found.trees.count, found.trees.bytes),
        ("steps", found.steps.count, found.steps.bytes),
    ] {
        result(&format!("{name:<8} {count:>8}  {bytes:>15} bytes\n"));
    }
    for mount in &found.mounts {
        result(&format!("mount    {:>8}  {:>15} bytes  {}\n", "", mount.bytes, mount.id.id));
    }
}
