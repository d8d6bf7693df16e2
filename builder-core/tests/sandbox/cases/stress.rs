//! Much at once, far down, very long, and killed in the middle: `fixtures/stress` in the tiers that supervise, and as root.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use builder_core::rootfs::{FileKind, Listing, Rootfs, Touched};
use builder_core::sandbox::{ExitStatus, IdMapping, Processes, Tier};

use crate::inside::{Context, Outcome, Skip, Tree, command, shell};

/// How much of `usual` is done: `STRESS_PERCENT` says how many hundredths, where a processor is emulated.
fn scaled(usual: u64) -> u64 {
    let percent = std::env::var("STRESS_PERCENT").map_or(100, |percent| percent.parse().expect("a number"));
    (usual * percent).div_ceil(100)
}

fn stress(context: &Context, kind: &str, times: u64) {
    let outcome = ended(context, kind, times);
    assert_eq!(outcome.status, ExitStatus::Code(0), "{outcome:?}");
}

fn ended(context: &Context, kind: &str, times: u64) -> Outcome {
    let environment = &context.environment;
    // Where calls that name processes are answered, these make many of them.
    let answered = environment.processes == Processes::Guarded && ["processes", "killed"].contains(&kind);
    if environment.tier == Some(Tier::Namespaces) && environment.ids != IdMapping::Root && !answered {
        std::panic::panic_any(Skip("the kernel alone does it here as for root".into()));
    }
    let program = context.directory.with_file_name("stress");
    if !program.exists() {
        std::panic::panic_any(Skip("no gcc to compile it with".into()));
    }
    let tree = context.tree();
    fs::copy(program, tree.path.join("stress")).expect("copy");
    context.try_run(&tree.rootfs, &command(&["/stress", kind, &times.to_string()])).expect("runs")
}

pub(super) fn threads(context: &Context) {
    stress(context, "threads", scaled(50));
}

pub(super) fn processes(context: &Context) {
    stress(context, "processes", scaled(1000));
}

/// `STRESS_FILES` says how many.
pub(super) fn files(context: &Context) {
    let files = std::env::var("STRESS_FILES").map(|files| files.parse().expect("a number"));
    stress(context, "files", files.unwrap_or(scaled(200_000)));
}

pub(super) fn deep(context: &Context) {
    stress(context, "deep", 600);
}

pub(super) fn longest(context: &Context) {
    stress(context, "longest", 0);
}

pub(super) fn killed(context: &Context) {
    stress(context, "killed", scaled(100));
}

pub(super) fn users(context: &Context) {
    context.needs_ids();
    stress(context, "users", scaled(20));
}

pub(super) fn peers(context: &Context) {
    context.needs_ids();
    stress(context, "peers", 1);
}

/// What `lists` ends with on a file system without them.
const NO_LISTS: i32 = 77;

pub(super) fn access_lists(context: &Context) {
    context.needs_ids();
    let outcome = ended(context, "lists", 1);
    if outcome.status == ExitStatus::Code(NO_LISTS) && context.environment.tier != Some(Tier::Traced) {
        std::panic::panic_any(Skip("the file system has no access lists".into()));
    }
    assert_eq!(outcome.status, ExitStatus::Code(0), "{outcome:?}");
}

pub(super) fn capabilities_of_files(context: &Context) {
    context.needs_ids();
    stress(context, "capable", 1);
}

pub(super) fn programs_behind_descriptors(context: &Context) {
    // A program in memory is what `traced` cannot execute.
    let ways = if context.environment.tier == Some(Tier::Traced) { 3 } else { 4 };
    stress(context, "behind", ways);
}

pub(super) fn roots(context: &Context) {
    context.needs_ids();
    if context.environment.tier != Some(Tier::Chroot) {
        return stress(context, "roots", 1);
    }
    let tree = context.tree();
    let outcome = context.try_run(&tree.rootfs, &shell("chroot / true && chroot /tmp true")).expect("runs");
    let told = outcome.stderr.iter().any(|line| line.contains("--sandbox=traced"));
    assert!(outcome.status != ExitStatus::Code(0) && told, "{outcome:?}");
}

pub(super) fn written_programs(context: &Context) {
    stress(context, "written", scaled(100));
}

pub(super) fn interrupted(context: &Context) {
    if context.environment.tier == Some(Tier::Chroot) {
        let reason = "a signal ends a call that the supervisor has not received, and its handler decides whether it is made again";
        std::panic::panic_any(Skip(reason.into()));
    }
    stress(context, "interrupted", scaled(2000));
}

/// After each command it is checked that what it was told to have touched covers all that changed.
pub(super) fn changes(context: &Context) {
    for seed in 1..=scaled(60) {
        let tree = tree_for_changes(context);
        // What was made by the command itself counts as one path.
        for path in ["a/a/a", "a/b", "b/c/d", "c/a/e", "d/e"] {
            fs::create_dir_all(tree.path.join("tree").join(path)).expect("create");
        }
        for path in ["a/c", "a/a/a/b", "b/c/d/a", "b/c/d/e", "c/d", "d/e/a", "e"] {
            fs::write(tree.path.join("tree").join(path), path).expect("write");
        }
        changed_by(context, &tree, &["/stress", "changes", &seed.to_string()]);
    }
}

/// What is only recorded beside the tree is a change, too: the file has another time than before, and nothing else has.
pub(super) fn a_capability_alone(context: &Context) {
    let tree = tree_for_changes(context);
    let (before, after) = changed_by(context, &tree, &["/stress", "capability", "1"]);
    // Places for mounts may stay, and directories had such for a while.
    let pairs = before.iter().map(|one| one.expect("read")).map(|one| (after.get(&one.path).expect("read"), one));
    let files = pairs.filter(|(_, one)| one.metadata.kind != FileKind::Directory);
    let changed: Vec<_> = files.filter(|(now, one)| now.as_ref() != Some(one)).collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(changed[0].1.path, Path::new("bin/busybox"));
    assert_ne!(changed[0].0.as_ref().map(|now| now.ctime), Some(changed[0].1.ctime));
}

/// A tree with `/stress`, where changes are told.
fn tree_for_changes(context: &Context) -> Tree {
    if context.environment.tier != Some(Tier::Traced) {
        std::panic::panic_any(Skip("only `traced` tells what changes".into()));
    }
    let program = context.directory.with_file_name("stress");
    if !program.exists() {
        std::panic::panic_any(Skip("no gcc to compile it with".into()));
    }
    let tree = context.tree();
    fs::copy(&program, tree.path.join("stress")).expect("copy");
    tree
}

/// What was there before a command, and what is by what it was told to have touched.
fn changed_by(context: &Context, tree: &Tree, argv: &[&str]) -> (Listing, Listing) {
    let touched = Arc::new(Touched::default());
    let rootfs = Rootfs::open(&tree.path).expect("open").recording(Arc::default()).telling(Arc::clone(&touched));
    let before = rootfs.list().expect("list");
    let outcome = context.try_run(&rootfs, &command(argv)).expect("runs");
    assert_eq!(outcome.status, ExitStatus::Code(0), "{outcome:?}");
    let after = rootfs.list_again(&before, &touched).expect("list").expect("everything was told");
    (before, after)
}
