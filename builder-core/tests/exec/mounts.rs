//! Cache mounts, alone and between builds that run at one time.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use builder_core::cancel::Cancel;
use builder_core::event::Silent;
use builder_core::exec::{self, BuildError, NoCache};

use crate::bench::{Bench, Built};
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "a_cache_stays_and_is_in_no_layer", items: "M-10 M-14 R-19", run: stays },
    Case { name: "shared_is_used_at_one_time", items: "M-11", run: shared },
    Case { name: "locked_is_used_in_turn", items: "M-11", run: locked },
    Case { name: "private_is_never_seen_by_another", items: "M-11", run: private },
    Case { name: "whoever_waits_for_a_lock_can_be_cancelled", items: "M-11", run: cancelled },
    Case { name: "owner_and_mode_make_another_cache", items: "M-12 B-08", run: identity },
    Case { name: "a_namespace_of_caches", items: "M-10 A-17", run: namespace },
    Case { name: "a_cache_can_begin_with_files", items: "M-10", run: from },
    Case { name: "writes_to_binds_are_dropped", items: "M-08 B-07 R-19", run: binds },
];

fn fresh(bench: &Bench, dockerfile: &str) -> Built {
    bench.build(dockerfile, |request| request.no_cache = NoCache::All)
}

/// Both at one time over one work dir.
fn both(bench: &Bench, one: &str, other: &str) -> (Built, Built) {
    thread::scope(|scope| {
        let other = scope.spawn(|| fresh(bench, other));
        let one = fresh(bench, one);
        (one, other.join().expect("no panic"))
    })
}

/// A shell loop that ends when a file exists; it gives up after a minute.
fn wait_for(path: &str) -> String {
    format!("i=0; until test -e {path}; do i=$((i+1)); test $i -lt 600 || exit 99; sleep 0.1; done")
}

fn stays(bench: &Bench) -> Outcome {
    let add = "FROM base:1\nRUN --mount=type=cache,target=/c echo kept-in-cache > /c/f\n";
    let built = fresh(bench, add);
    assert_eq!(built.ok().images[0].layers.len(), 2);
    let read = fresh(bench, "FROM base:1\nRUN --mount=type=cache,target=/c cat /c/f\nRUN test ! -e /c\n");
    assert_eq!(read.output, ["kept-in-cache"], "{}", read.summary());
    let found = bench.files_with(b"kept-in-cache\n");
    assert!(!found.is_empty() && found.iter().all(|path| path.starts_with(bench.path("work/mounts"))), "{found:?}");
    // A cached step is not repeated because its cache is empty.
    bench.build(add, |_| {}).ok();
    std::fs::remove_dir_all(bench.path("work/mounts")).expect("the caches");
    let again = bench.build(add, |_| {});
    assert!(again.steps.values().all(|state| state == "CACHED"), "{:?}", again.steps);
    Outcome::Passed
}

fn shared(bench: &Bench) -> Outcome {
    let side = |own: &str, other: &str| {
        format!("FROM base:1\nRUN --mount=type=cache,target=/c touch /c/{own}; {}\n", wait_for(&format!("/c/{other}")))
    };
    let (a, b) = both(bench, &side("a", "b"), &side("b", "a"));
    a.ok();
    b.ok();
    Outcome::Passed
}

fn locked(bench: &Bench) -> Outcome {
    // Whoever finds the other one inside fails.
    let side = |name: &str| {
        format!(
            "FROM base:1\nRUN --mount=type=cache,target=/c,sharing=locked : {name}; mkdir /c/busy || exit 9; sleep 0.5; \
             rm -r /c/busy; touch /c/{name}\n"
        )
    };
    let (a, b) = both(bench, &side("a"), &side("b"));
    a.ok();
    b.ok();
    let seen = fresh(bench, "FROM base:1\nRUN --mount=type=cache,target=/c ls /c\n");
    assert_eq!(seen.output, ["a", "b"]);
    Outcome::Passed
}

fn private(bench: &Bench) -> Outcome {
    let mounts = "--mount=type=cache,target=/c,sharing=private --mount=type=cache,target=/s";
    let first = format!("FROM base:1\nRUN {mounts} touch /c/mark /s/ready; {}\n", wait_for("/s/done"));
    let second = format!(
        "FROM base:1\nRUN {mounts} {}; test ! -e /c/mark && echo unseen; touch /s/done\n",
        // Both are mounted before the first one is ready; this one gets whatever is free.
        wait_for("/s/ready")
    );
    // The first one holds its directory before the second one begins.
    let (a, b) = thread::scope(|scope| {
        let a = scope.spawn(|| fresh(bench, &first));
        let probe = fresh(bench, &format!("FROM base:1\nRUN --mount=type=cache,target=/s {}\n", wait_for("/s/ready")));
        probe.ok();
        let b = fresh(bench, &second);
        (a.join().expect("no panic"), b)
    });
    a.ok();
    assert_eq!(b.output, ["unseen"], "{}", b.summary());
    let later = fresh(bench, "FROM base:1\nRUN --mount=type=cache,target=/c,sharing=private ls /c\n");
    assert_eq!(later.output, ["mark"], "the first directory is free again");
    Outcome::Passed
}

fn cancelled(bench: &Bench) -> Outcome {
    let holder = format!(
        "FROM base:1\nRUN --mount=type=cache,target=/c,sharing=locked --mount=type=cache,target=/s touch /s/held; {}\n",
        wait_for("/s/let-go")
    );
    let waiter = "FROM base:1\nRUN --mount=type=cache,target=/c,sharing=locked touch /c/never\n";
    thread::scope(|scope| {
        let holder = scope.spawn(|| fresh(bench, &holder));
        fresh(bench, &format!("FROM base:1\nRUN --mount=type=cache,target=/s {}\n", wait_for("/s/held"))).ok();
        let cancel = Cancel::default();
        let theirs = cancel.clone();
        let waiting = scope.spawn(move || exec::build(&bench.request(waiter), Arc::new(Silent), &theirs));
        thread::sleep(Duration::from_millis(500));
        assert!(!waiting.is_finished(), "it waits");
        cancel.cancel();
        let result = waiting.join().expect("no panic");
        fresh(bench, "FROM base:1\nRUN --mount=type=cache,target=/s touch /s/let-go\n").ok();
        holder.join().expect("no panic").ok();
        assert!(matches!(result, Err(BuildError::Cancelled)), "{result:?}");
    });
    Outcome::Passed
}

fn identity(bench: &Bench) -> Outcome {
    let with = |options: &str| {
        let built = fresh(
            bench,
            &format!(
                "FROM base:1\nRUN --mount=type=cache,id=i,target=/c{options} stat -c '%a %u:%g' /c; ls /c; touch /c/f\n"
            ),
        );
        assert!(built.result.is_ok(), "{}", built.summary());
        built.output
    };
    assert_eq!(with(""), ["755 0:0"]);
    assert_eq!(with(",uid=7,gid=8,mode=0700"), ["700 7:8"]);
    assert_eq!(with(",mode=0755"), ["755 0:0"], "spelled out is another one (M-12)");
    assert_eq!(with(""), ["755 0:0", "f"]);
    Outcome::Passed
}

fn namespace(bench: &Bench) -> Outcome {
    let dockerfile = "FROM base:1\nRUN --mount=type=cache,target=/c ls /c; touch /c/f\n";
    let within = |name: Option<&str>| {
        bench
            .build(dockerfile, |request| {
                request.no_cache = NoCache::All;
                let name = name.map(|name| ("BUILDKIT_CACHE_MOUNT_NS".to_owned(), name.to_owned()));
                request.plan.build_args.extend(name);
            })
            .output
    };
    for name in [None, Some("a"), Some("b")] {
        assert_eq!(within(name), Vec::<String>::new(), "{name:?}");
    }
    for name in [None, Some("a"), Some("b")] {
        assert_eq!(within(name), ["f"], "{name:?}");
    }
    Outcome::Passed
}

fn from(bench: &Bench) -> Outcome {
    let dockerfile = "FROM base:1 AS seed\nRUN mkdir /d && echo seed > /d/f\nFROM base:1\n\
                      RUN --mount=type=cache,target=/c,from=seed,source=/d cat /c/f; echo more >> /c/f\n";
    assert_eq!(fresh(bench, dockerfile).output, ["seed"]);
    assert_eq!(fresh(bench, dockerfile).output, ["seed", "more"]);
    Outcome::Passed
}

fn binds(bench: &Bench) -> Outcome {
    bench.file("f", "context");
    let built = fresh(
        bench,
        "FROM base:1 AS s\nRUN echo stage > /f\nFROM base:1\n\
         RUN --mount=target=/m,rw --mount=target=/s,from=s,rw echo x > /m/f; echo x > /s/f; cat /m/f /s/f\n\
         RUN --mount=target=/m --mount=target=/s,from=s cat /m/f; cat /s/f; (echo > /m/f) 2>/dev/null || echo read-only\n",
    );
    assert_eq!(built.output, ["x", "x", "contextstage", "read-only"].map(str::to_owned), "{}", built.summary());
    assert_eq!(std::fs::read_to_string(bench.path("context/f")).expect("a file"), "context");
    let layer = built.ok().images[0].layers[1].blob.digest.to_string();
    let blob = std::fs::read(bench.path("work/blobs/sha256").join(layer.trim_start_matches("sha256:")));
    if let Ok(blob) = blob {
        let tar = crate::bench::inflated(&blob);
        let paths: Vec<PathBuf> = tar::Archive::new(tar.as_slice())
            .entries()
            .expect("a tar")
            .map(|entry| entry.expect("an entry").path().expect("a path").into_owned())
            .collect();
        assert_eq!(paths, Vec::<PathBuf>::new());
    }
    Outcome::Passed
}
