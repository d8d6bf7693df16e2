//! A panic on one thread of a build, of an observer here, ends the build: nobody waits for what does not come.

use std::panic::{AssertUnwindSafe, catch_unwind};

use builder_core::rootfs::TreeMode;

use crate::bench::Bench;
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "while_another_stage_waits", items: "", run: another_stage },
    Case { name: "while_a_command_writes", items: "", run: much_output },
];

/// The second stage waits for the first, and both for their observer.
fn another_stage(bench: &Bench) -> Outcome {
    panics(
        bench,
        "FROM base:1 AS first\nRUN echo panic\nFROM base:1\nCOPY --from=first /bin/sh /first\nRUN echo after\n",
    )
}

/// More than a pipe holds.
fn much_output(bench: &Bench) -> Outcome {
    panics(bench, "FROM base:1\nRUN echo panic; i=0; while [ $i -lt 20000 ]; do echo line; i=$((i+1)); done\n")
}

#[track_caller]
fn panics(bench: &Bench, dockerfile: &str) -> Outcome {
    for mode in [None, Some(TreeMode::Directory)] {
        let build = || {
            let change = |request: &mut builder_core::exec::BuildRequest| request.tree_mode = mode;
            bench.build_watched(dockerfile, change, |line| assert_ne!(line, "panic", "as this case wants it"))
        };
        let ended = catch_unwind(AssertUnwindSafe(build));
        assert!(ended.is_err(), "{mode:?}: {:?}", ended.map(|built| built.summary()));
    }
    // The work dir is as good as before.
    bench.build("FROM base:1\nRUN echo again\n", |_| {}).ok();
    Outcome::Passed
}
