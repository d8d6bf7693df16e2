//! Trees of stages in both modes: what a step changed, who shares what, and what an ended build leaves behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use builder_core::cancel::Cancel;
use builder_core::event::{Event, Observer, Transfer};
use builder_core::exec::{self, BuildRequest};
use builder_core::rootfs::TreeMode;
use fixtures::image::{Entry, tree_layer};

use crate::bench::{Bench, Built, told};
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "what_is_as_before_is_in_no_layer", items: "T-08", run: identical },
    Case { name: "changed_content_under_an_old_time_is", items: "T-08", run: forged },
    Case { name: "the_root_directory_keeps_its_owner_not_its_mode", items: "T-01", run: root },
    Case { name: "a_stage_is_base_and_source_of_many", items: "F-08 C-25", run: shared },
    Case { name: "a_step_after_cached_ones_sees_them", items: "X-14", run: after_cached },
    Case { name: "a_failed_step_leaves_nothing", items: "X-14", run: failed },
    Case { name: "bases_are_fetched_while_another_stage_works", items: "F-08", run: fetched_ahead },
    Case { name: "a_large_layer_is_packed_meanwhile", items: "X-14", run: large },
    Case { name: "a_step_changes_files_of_a_layer_that_is_packed", items: "X-14", run: changed_meanwhile },
    Case { name: "behind_a_large_layer_made_again_the_cache_is_asked", items: "X-12 X-14", run: large_again },
    Case { name: "what_fails_on_top_of_a_large_layer", items: "X-14", run: large_then_failed },
    Case { name: "two_builds_at_once", items: "X-14", run: at_once },
];

/// In overlay mode if that can be had here, and in directory mode, each in a work dir of its own.
fn both(bench: &Bench, check: impl Fn(&dyn Fn(&str) -> Built)) {
    for mode in [None, Some(TreeMode::Directory)] {
        let work_dir = bench.path(if mode.is_none() { "work" } else { "work-directory" });
        let change = |request: &mut BuildRequest| {
            request.tree_mode = mode;
            request.work_dir.clone_from(&work_dir);
        };
        check(&|dockerfile| bench.build(dockerfile, change));
    }
}

/// Entries of each layer above the base.
#[track_caller]
fn entries(bench: &Bench, dockerfile: &str) -> Vec<Vec<Vec<String>>> {
    let modes = [(None, "o"), (Some(TreeMode::Directory), "d")];
    let of_mode = |(mode, name): (Option<TreeMode>, &str)| {
        let built = bench.build(dockerfile, |request| {
            request.tree_mode = mode;
            request.work_dir = bench.path(&format!("work-{name}"));
            request.outputs.push(bench.output(&format!("type=oci,tar=false,dest={name}")));
        });
        let layout = bench.layout(name);
        let layers = &built.ok().images[0].layers[1..];
        layers.iter().map(|layer| layout.entries(&layer.blob).into_iter().map(|(path, _)| path).collect()).collect()
    };
    modes.into_iter().map(of_mode).collect()
}

#[track_caller]
fn check_entries(bench: &Bench, dockerfile: &str, expected: &[&[&str]]) {
    for layers in entries(bench, dockerfile) {
        assert_eq!(layers, expected, "{dockerfile}");
    }
}

fn identical(bench: &Bench) -> Outcome {
    bench.file("a", "same");
    let dockerfile = "FROM base:1\nCOPY a /x/\nCOPY a /x/\n\
        RUN chmod 600 /x/a && chmod 644 /x/a\n\
        RUN cp -p /etc/passwd /tmp/p && rm /etc/passwd && mv /tmp/p /etc/passwd && touch /new\n";
    check_entries(bench, dockerfile, &[&["x/", "x/a"], &[], &[], &["new"]]);
    Outcome::Passed
}

fn forged(bench: &Bench) -> Outcome {
    bench.file("a", "same");
    let dockerfile = "FROM base:1\nCOPY a /x/\n\
        RUN touch -r /x/a /tmp/t && printf SAME > /x/a && touch -r /tmp/t /x/a && rm /tmp/t\n";
    check_entries(bench, dockerfile, &[&["x/", "x/a"], &["x/", "x/a"]]);
    Outcome::Passed
}

fn root(bench: &Bench) -> Outcome {
    both(bench, |build| {
        let built = build("FROM base:1\nRUN chmod 1777 /\nRUN echo mode $(stat -c %a /)\n");
        built.ok();
        assert!(built.output.contains(&"mode 755".to_owned()), "{:?}", built.output);
    });
    Outcome::Passed
}

fn shared(bench: &Bench) -> Outcome {
    bench.file("a", "context");
    both(bench, |build| {
        let built = build(
            "FROM base:1 AS base\nRUN mkdir /b && echo base > /b/f\n\
             FROM base AS one\nRUN echo one >> /b/f && rm /etc/passwd\n\
             FROM base AS two\nCOPY --from=base /b/f /copied\nCOPY --from=one /b /one\n\
             RUN --mount=from=one,target=/m,rw echo x > /m/new && test ! -e /b/new && cat /b/f /copied /one/f > /all\n\
             FROM two\nCOPY a /a\nRUN echo $(cat /all /a) && test -e /etc/passwd\nCOPY --from=two /all /again\n\
             RUN echo again $(cat /again)\n",
        );
        built.ok();
        assert_eq!(built.output, ["base base base one context", "again base base base one"]);
    });
    Outcome::Passed
}

fn after_cached(bench: &Bench) -> Outcome {
    both(bench, |build| {
        build("FROM base:1\nRUN echo 1 > /one\nRUN echo 2 > /two\n").ok();
        let built = build("FROM base:1\nRUN echo 1 > /one\nRUN echo 2 > /two\nRUN echo $(cat /one /two)\n");
        assert_eq!(built.step("RUN echo 2 > /two"), "CACHED");
        assert_eq!(built.output, ["1 2"]);
        // From the middle of what was there: nothing of the other branch is seen.
        let built = build("FROM base:1\nRUN echo 1 > /one\nRUN test ! -e /two && echo none\n");
        assert_eq!(built.output, ["none"]);
    });
    Outcome::Passed
}

fn failed(bench: &Bench) -> Outcome {
    both(bench, |build| {
        let error = build("FROM base:1\nRUN echo 1 > /one\nRUN echo 2 >> /one && false\n").error();
        assert!(error.contains("echo 2 >> /one && false\" did not complete successfully: exit code: 1"), "{error}");
        assert!(!error.contains("exit code: 12"), "{error}");
        let built = build("FROM base:1\nRUN echo 1 > /one\nRUN echo 3 >> /one && echo $(cat /one)\n");
        assert_eq!(built.step("RUN echo 1 > /one"), "CACHED");
        assert_eq!(built.output, ["1 3"]);
    });
    Outcome::Passed
}

fn at_once(bench: &Bench) -> Outcome {
    let dockerfile = "FROM base:1\nRUN echo 1 >> /one; sleep 0.2\nRUN echo 2 >> /one; sleep 0.2; echo $(cat /one)\n";
    for mode in [None, Some(TreeMode::Directory)] {
        let build = || {
            bench.build(dockerfile, |request| {
                request.tree_mode = mode;
                request.no_cache = builder_core::exec::NoCache::All;
            })
        };
        std::thread::scope(|scope| {
            let builds: Vec<_> = (0..3).map(|_| scope.spawn(build)).collect();
            for built in builds {
                let built = built.join().expect("no panic");
                built.ok();
                assert_eq!(built.output, ["1 2"]);
            }
        });
    }
    Outcome::Passed
}

/// More than the size from which on a layer is packed while the next step runs.
const LARGE: &str = "RUN head -c 40000000 /dev/zero > /big && mkdir /d && echo one > /d/f\n";

fn large(bench: &Bench) -> Outcome {
    let dockerfile = format!(
        "FROM base:1 AS first\n{LARGE}RUN test -s /big && echo two >> /d/f && head -c 34000000 /dev/zero > /more\n\
         RUN rm /big && mv /more /moved && rm -r /d && mkdir /d && echo $(ls /d)\n\
         FROM first\nRUN echo three > /d/f && test ! -e /big && test -s /moved\n"
    );
    let expected: &[&[&str]] = &[
        &["big", "d/", "d/f"],
        &["d/", "d/f", "more"],
        &[".wh.big", "d/", "d/.wh.f", ".wh.more", "moved"],
        &["d/", "d/f"],
    ];
    for layers in entries(bench, &dockerfile) {
        let sorted = |mut names: Vec<String>| {
            names.sort_by_key(|name| name.replace(".wh.", ""));
            names
        };
        let layers: Vec<Vec<String>> = layers.into_iter().map(sorted).collect();
        assert_eq!(layers, expected);
    }
    // The same work dirs know all of it now.
    for (mode, name) in [(None, "o"), (Some(TreeMode::Directory), "d")] {
        let again = bench.build(&dockerfile, |request| {
            request.tree_mode = mode;
            request.work_dir = bench.path(&format!("work-{name}"));
        });
        again.ok();
        assert!(again.steps.values().all(|state| state == "CACHED"), "{:?}", again.steps);
    }
    Outcome::Passed
}

/// Holds the layer of a step back until a later step has said that it changed its files.
#[derive(Default)]
struct Gate {
    changed: Mutex<bool>,
    told: Condvar,
}

/// More than any machine needs.
const PATIENCE: Duration = Duration::from_secs(120);

impl Observer for Gate {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Output { line: b"changed", .. } => {
                *self.changed.lock().expect("no panic") = true;
                self.told.notify_all();
            }
            Event::Progress { transfer: Transfer::Compress, id, .. } if id.starts_with("RUN head") => {
                let changed = self.changed.lock().expect("no panic");
                let ended = self.told.wait_timeout_while(changed, PATIENCE, |changed| !*changed).expect("no panic");
                assert!(!ended.1.timed_out(), "the next step waits for the layer");
            }
            _ => {}
        }
    }
}

fn changed_meanwhile(bench: &Bench) -> Outcome {
    let made = "RUN head -c 40000000 /dev/zero > /big && mkdir /d && cd /d && echo one > f && echo one > g && cp -l f h \
                && head -c 4000 /dev/zero > z && chmod 4711 g\n";
    let dockerfile = format!(
        "FROM base:1 AS first\n{made}RUN cd /d && echo two > f && echo two >> h && rm g z && mkdir z && echo two > /big && echo changed\n\
         FROM base:1\nCOPY --from=first / /all\nRUN cd /all && cat big d/f d/h && ls d && stat -c %a d/z\n"
    );
    for mode in [None, Some(TreeMode::Directory)] {
        let mut request = bench.request(&dockerfile);
        request.tree_mode = mode;
        request.work_dir = bench.path(&format!("gate-{}", mode.is_some()));
        request.outputs = vec![bench.output("type=cacheonly")];
        let built = exec::build(&request, Arc::new(Gate::default()), &Cancel::default());
        built.unwrap_or_else(|error| panic!("{mode:?}: {}", told(&error)));
        // Nothing is done again, whoever asks, and a tree of the layers is what the first step left.
        let dockerfile = format!(
            "{}RUN cat /d/f /d/g /d/h && stat -c '%a %s' /d/g /d/z /big\n",
            dockerfile.split_once("RUN cd").expect("it has one").0
        );
        let built = bench.build(&dockerfile, |request| {
            request.tree_mode = mode;
            request.work_dir = bench.path(&format!("gate-{}", mode.is_some()));
            request.outputs = vec![bench.output("type=cacheonly")];
        });
        built.ok();
        assert_eq!(built.step(made.trim_end()), "CACHED", "{mode:?}: {:?}", built.steps);
        assert_eq!(built.output, ["one", "one", "one", "4711 4", "644 4000", "644 40000000"], "{mode:?}");
    }
    Outcome::Passed
}

fn large_again(bench: &Bench) -> Outcome {
    let build = |comment: &str| {
        let dockerfile = format!(
            "FROM base:1\nRUN : {comment}; head -c 40000000 /dev/zero > /large\nRUN wc -c < /large > /count\nRUN cat /count\n"
        );
        let path = bench.path("Dockerfile");
        std::fs::write(&path, &dockerfile).expect("a Dockerfile");
        bench.build("", |request| {
            // What was made is remembered by the file's name.
            request.dockerfile = builder_core::exec::DockerfileSource::File(path);
            request.plan.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), "1000000000".to_owned());
            request.outputs = vec![bench.output("type=oci,dest=again,tar=false,rewrite-timestamp=true")];
        })
    };
    let first = build("one");
    assert_eq!(first.output, ["40000000"]);
    let second = build("two");
    // The large one was made again, and came out the same.
    assert_eq!(second.step("RUN wc -c < /large > /count"), "CACHED", "{:?}", second.steps);
    assert_eq!(second.step("RUN cat /count"), "CACHED", "{:?}", second.steps);
    let layers = |built: &crate::bench::Built| built.ok().images[0].layers.clone();
    assert_eq!(layers(&first), layers(&second));
    Outcome::Passed
}

fn large_then_failed(bench: &Bench) -> Outcome {
    both(bench, |build| {
        let error = build(&format!("FROM base:1\n{LARGE}RUN false\n")).error();
        assert!(error.contains("-c false\" did not complete successfully: exit code: 1"), "{error}");
        let built = build(&format!("FROM base:1\n{LARGE}RUN echo $(cat /d/f)\n"));
        assert_eq!(built.step(LARGE.trim_end()), "CACHED");
        assert_eq!(built.output, ["one"]);
    });
    Outcome::Passed
}

fn fetched_ahead(bench: &Bench) -> Outcome {
    let layer = tree_layer(&[Entry::File("other", b"other")]);
    let path = format!("/v2/library/other/blobs/{}", fixtures::image::digest(&layer.blob));
    bench.put_on_base("other", layer);
    let registry = Arc::clone(&bench.registry);
    let seen = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&seen);
    let dockerfile = "FROM base:1 AS made\nRUN echo waiting && echo made > /made\n\
                      FROM other:1\nCOPY --from=made /made /made\nRUN cat /made /other\n";
    let built = bench.build_watched(
        dockerfile,
        |_| {},
        move |line| {
            // A minute is more than any machine needs.
            let fetched = || registry.log().iter().any(|request| request.method == "GET" && request.path == path);
            if line == "waiting" {
                noted.store((0..600).any(|_| fetched() || pause()), Ordering::SeqCst);
            }
        },
    );
    built.ok();
    if bench.path("work/trees/layers").read_dir().is_ok_and(|mut layers| layers.next().is_some()) {
        assert!(seen.load(Ordering::SeqCst), "{:?}", bench.registry.lines());
    }
    // With everything known, nothing is fetched for it.
    bench.registry.clear_log();
    std::fs::remove_dir_all(bench.path("work/trees")).expect("trees that nobody uses");
    let again = bench.build(dockerfile, |_| {});
    assert!(again.steps.values().all(|state| state == "CACHED"), "{:?}", again.steps);
    assert!(!bench.registry.lines().iter().any(|line| line.contains("/blobs/")), "{:?}", bench.registry.lines());
    Outcome::Passed
}

fn pause() -> bool {
    std::thread::sleep(std::time::Duration::from_millis(100));
    false
}
