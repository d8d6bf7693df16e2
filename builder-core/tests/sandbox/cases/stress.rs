//! Much at once, far down, very long, and killed in the middle: `fixtures/stress` in the tiers that supervise, and as root.

use std::fs;
use std::sync::Arc;

use builder_core::rootfs::{Rootfs, Touched};
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

/// After each command it is checked that what it was told to have touched covers all that changed.
pub(super) fn changes(context: &Context) {
    if context.environment.tier != Some(Tier::Traced) {
        std::panic::panic_any(Skip("only `traced` tells what changes".into()));
    }
    let program = context.directory.with_file_name("stress");
    if !program.exists() {
        std::panic::panic_any(Skip("no gcc to compile it with".into()));
    }
    for seed in 1..=60 {
        let tree = context.tree();
        fs::copy(&program, tree.path.join("stress")).expect("copy");
        // What was made by the command itself counts as one path.
        for path in ["a/a/a", "a/b", "b/c/d", "c/a/e", "d/e"] {
            fs::create_dir_all(tree.path.join("tree").join(path)).expect("create");
        }
        for path in ["a/c", "a/a/a/b", "b/c/d/a", "b/c/d/e", "c/d", "d/e/a", "e"] {
            fs::write(tree.path.join("tree").join(path), path).expect("write");
        }
        let touched = Arc::new(Touched::default());
        let rootfs = Rootfs::open(&tree.path).expect("open").recording(Arc::default()).telling(Arc::clone(&touched));
        let before = rootfs.list().expect("list");
        let outcome = context.try_run(&rootfs, &command(&["/stress", "changes", &seed.to_string()])).expect("runs");
        assert_eq!(outcome.status, ExitStatus::Code(0), "{outcome:?}");
        assert!(rootfs.list_again(&before, &touched).expect("list").is_some(), "everything was told");
    }
}
