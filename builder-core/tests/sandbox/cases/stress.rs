//! Much at once, far down, very long, and killed in the middle: `fixtures/stress` in the tiers that supervise, and as root.

use std::fs;

use builder_core::sandbox::{ExitStatus, IdMapping, Tier};

use crate::inside::{Context, Skip, command};

fn stress(context: &Context, kind: &str, times: &str) {
    if context.environment.tier == Some(Tier::Namespaces) && context.environment.ids != IdMapping::Root {
        std::panic::panic_any(Skip("the kernel alone does it here as for root".into()));
    }
    let program = context.directory.with_file_name("stress");
    if !program.exists() {
        std::panic::panic_any(Skip("no gcc to compile it with".into()));
    }
    let tree = context.tree();
    fs::copy(program, tree.path.join("stress")).expect("copy");
    let outcome = context.try_run(&tree.rootfs, &command(&["/stress", kind, times])).expect("runs");
    assert_eq!(outcome.status, ExitStatus::Code(0), "{outcome:?}");
}

pub(super) fn threads(context: &Context) {
    stress(context, "threads", "50");
}

pub(super) fn processes(context: &Context) {
    stress(context, "processes", "1000");
}

/// `STRESS_FILES` says how many. What goes on natively in a chroot is fast enough for all of them each time.
pub(super) fn files(context: &Context) {
    let usual = if context.environment.tier == Some(Tier::Chroot) { "200000" } else { "10000" };
    let files = std::env::var("STRESS_FILES").unwrap_or_else(|_| usual.to_owned());
    stress(context, "files", &files);
}

pub(super) fn deep(context: &Context) {
    stress(context, "deep", "600");
}

pub(super) fn longest(context: &Context) {
    stress(context, "longest", "0");
}

pub(super) fn killed(context: &Context) {
    stress(context, "killed", "100");
}

pub(super) fn users(context: &Context) {
    context.needs_ids();
    stress(context, "users", "20");
}
