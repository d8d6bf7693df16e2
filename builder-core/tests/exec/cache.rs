//! The step cache: what hits, what misses and why.

use std::fs::{self, FileTimes};
use std::time::{Duration, SystemTime};

use builder_core::exec::{BuildRequest, NoCache};
use fixtures::image::Image;
use serde_json::json;

use crate::bench::{Bench, Built};
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "a_second_build_runs_nothing", items: "X-14 C-10 R-17", run: second },
    Case { name: "known_files_are_not_read", items: "C-10 D-08", run: known },
    Case { name: "misses_say_why", items: "C-10 A-16 R-17", run: reasons },
    Case { name: "an_unused_file_does_not_matter", items: "C-10", run: unused },
    Case { name: "no_cache_for_all", items: "R-17", run: no_cache },
    Case { name: "no_cache_for_a_stage", items: "R-17", run: no_cache_stage },
    Case { name: "equal_steps_of_stages_run_once", items: "R-17", run: twins },
    Case { name: "a_linked_copy_survives_another_base", items: "C-40", run: linked },
    Case { name: "a_damaged_cache_is_a_miss", items: "X-14", run: damaged },
    Case { name: "proxies_are_not_part_of_a_key", items: "A-15 R-17", run: proxies },
];

const DOCKERFILE: &str = "FROM base:1 AS one\nARG V=1\nENV E=$V\nCOPY src /src\nRUN cat /src/a > /made\n\
                          FROM base:1\nCOPY --from=one /made /made\nRUN cat /made\n";

fn sources(bench: &Bench) {
    bench.file("src/a", "a");
    bench.file("src/b", "b");
    bench.file("other", "o");
}

fn build(bench: &Bench, change: impl FnOnce(&mut BuildRequest)) -> Built {
    bench.build(DOCKERFILE, change)
}

fn second(bench: &Bench) -> Outcome {
    sources(bench);
    let first = build(bench, |_| {});
    assert_eq!(first.steps.len(), 4, "{:?}", first.steps);
    assert!(first.steps.values().all(|state| state == "not built here before"), "{:?}", first.steps);
    // A later time and another directory mode of the same files change nothing.
    let file = fs::File::options().write(true).open(bench.path("context/src/a")).expect("a file");
    file.set_times(FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(5000))).expect("a time");
    let again = build(bench, |request| request.limits.steps = std::num::NonZeroUsize::MIN);
    assert!(again.steps.values().all(|state| state == "CACHED"), "{:?}", again.steps);
    assert!(again.output.is_empty());
    assert_eq!(first.digest(), again.digest());
    Outcome::Passed
}

fn reasons(bench: &Bench) -> Outcome {
    sources(bench);
    build(bench, |_| {}).ok();
    bench.file("src/a", "A");
    let changed = build(bench, |_| {});
    assert_eq!(changed.step("COPY src /src"), "file /src/a changed");
    assert_eq!(changed.step("RUN cat /src/a > /made"), "parent step changed");
    assert_eq!(changed.step("COPY --from=one /made /made"), "file /made changed");
    bench.file("src/c", "");
    assert_eq!(build(bench, |_| {}).step("COPY src /src"), "file /src/c was added");

    let argument = |request: &mut BuildRequest| {
        request.plan.build_args.insert("V".to_owned(), "2".to_owned());
    };
    let changed = build(bench, argument);
    assert_eq!(changed.step("COPY src /src"), "CACHED");
    assert_eq!(changed.step("RUN cat /src/a > /made"), "ARG V changed from 1 to 2");
    assert_eq!(changed.step("COPY --from=one /made /made"), "CACHED", "the same file came out");

    let other = bench.build(&DOCKERFILE.replace("RUN cat /made\n", "RUN cat /made /made\n"), |_| {});
    assert_eq!(other.step("COPY src /src"), "CACHED");
    let named = |dockerfile: &str| {
        let path = bench.path("Dockerfile");
        fs::write(&path, dockerfile).expect("a file");
        bench.build("", |request| request.dockerfile = builder_core::exec::DockerfileSource::File(path))
    };
    named("FROM base:1\nRUN true\n").ok();
    assert_eq!(named("FROM base:1\nRUN true 2\n").step("RUN true 2"), "instruction changed");
    named("FROM base:1\nCOPY other /\n").ok();
    bench.registry.put_image("library/base", "1", &small("other"));
    let changed = named("FROM base:1\nCOPY other /\n");
    let reason = changed.step("COPY other /");
    assert!(reason.starts_with("base image changed from docker.io/library/base:1@sha256:"), "{reason}");
    Outcome::Passed
}

fn small(text: &str) -> Image {
    Image::new("linux/amd64", vec![fixtures::image::layer(&[("file", text.as_bytes())])], json!({}))
}

fn unused(bench: &Bench) -> Outcome {
    sources(bench);
    build(bench, |_| {}).ok();
    bench.file("other", "changed");
    bench.file("new", "n");
    assert!(build(bench, |_| {}).steps.values().all(|state| state == "CACHED"));
    Outcome::Passed
}

fn no_cache(bench: &Bench) -> Outcome {
    sources(bench);
    build(bench, |_| {}).ok();
    let again = build(bench, |request| request.no_cache = NoCache::All);
    assert!(again.steps.values().all(|state| state == "done"), "{:?}", again.steps);
    assert_eq!(again.output, ["a"]);
    Outcome::Passed
}

fn no_cache_stage(bench: &Bench) -> Outcome {
    sources(bench);
    build(bench, |_| {}).ok();
    let again = build(bench, |request| request.no_cache = NoCache::Stages(vec!["ONE".to_owned()]));
    assert_eq!(again.step("COPY src /src"), "done");
    assert_eq!(again.step("RUN cat /src/a > /made"), "done");
    assert_eq!(again.step("COPY --from=one /made /made"), "CACHED", "its files are the same");
    assert_eq!(again.step("RUN cat /made"), "CACHED");
    Outcome::Passed
}

fn twins(bench: &Bench) -> Outcome {
    sources(bench);
    let id = "COPY src /src\nRUN cat /proc/sys/kernel/random/uuid > /id\n";
    let on = "WORKDIR /new\nRUN cat /proc/sys/kernel/random/uuid > /on\n";
    let dockerfile = format!(
        "FROM base:1 AS one\n{id}RUN cat /id > /one\n\
         FROM base:1 AS two\n{id}RUN cat /id > /two\n\
         FROM two AS three\n{on}\nFROM two AS four\nENV E=1\n{on}\nFROM two AS five\n{on}\n\
         FROM base:1\nCOPY --from=one /id /one /1/\nCOPY --from=two /id /two /2/\nRUN cat /1/* /2/*\n\
         COPY --from=three /on /3\nCOPY --from=four /on /4\nCOPY --from=five /on /5\nRUN cat /3 /4 /5\n"
    );
    let mut before = Vec::new();
    for no_cache in [NoCache::Off, NoCache::All, NoCache::Stages(vec!["two".to_owned()])] {
        let of_two = matches!(no_cache, NoCache::Stages(_));
        let built = bench.build(&dockerfile, |request| request.no_cache = no_cache);
        built.ok();
        if of_two {
            // It alone begins anew, and so is no twin of the first stage.
            assert_eq!(built.output[..2], before[..2]);
            assert_ne!(built.output[2], before[2]);
            continue;
        }
        let [a, b, c, d, three, four, five] = &built.output[..] else { panic!("{:?}", built.output) };
        assert!(a == b && b == c && c == d, "{:?}", built.output);
        assert!(three == five && three != four, "{:?}", built.output);
        assert!(!before.contains(a), "an earlier build's");
        before = built.output;
    }
    Outcome::Passed
}

fn linked(bench: &Bench) -> Outcome {
    sources(bench);
    let dockerfile = "FROM small:1\nCOPY --link src /src\nCOPY other /other\n";
    bench.registry.put_image("library/small", "1", &small("one"));
    let first = bench.build(dockerfile, |_| {});
    bench.registry.put_image("library/small", "1", &small("two"));
    let second = bench.build(dockerfile, |_| {});
    assert_eq!(second.step("COPY --link src /src"), "CACHED");
    assert_ne!(second.step("COPY other /other"), "CACHED");
    let layer = |built: &Built| built.ok().images[0].layers[1].diff_id;
    assert_eq!(layer(&first), layer(&second));
    assert_ne!(first.digest(), second.digest());
    Outcome::Passed
}

fn damaged(bench: &Bench) -> Outcome {
    sources(bench);
    let first = build(bench, |_| {});
    for entry in fs::read_dir(bench.path("work/cache/steps")).expect("the cache").flatten() {
        fs::write(entry.path(), "{\"layer\":").expect("a file");
    }
    let second = build(bench, |request| request.no_cache = NoCache::Off);
    assert!(second.steps.values().all(|state| state != "CACHED"), "{:?}", second.steps);
    assert_eq!(first.config()["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(3));
    Outcome::Passed
}

fn proxies(bench: &Bench) -> Outcome {
    let dockerfile = "FROM base:1\nRUN echo proxy=$http_proxy\n";
    let with = |value: &str| {
        bench.build(dockerfile, |request| {
            request.plan.build_args.insert("HTTP_PROXY".to_owned(), value.to_owned());
        })
    };
    let first = with("http://user:hidden-in-proxy@h:1");
    assert_eq!(first.output, ["proxy=http://user:hidden-in-proxy@h:1"]);
    assert_eq!(with("http://other:2").step("RUN echo proxy=$http_proxy"), "CACHED");
    assert!(!first.config().to_string().contains("hidden-in-proxy"));
    assert_eq!(bench.files_with(b"hidden-in-proxy"), Vec::<std::path::PathBuf>::new());
    Outcome::Passed
}

fn known(bench: &Bench) -> Outcome {
    sources(bench);
    bench.file("ignored", "i");
    bench.file(".dockerignore", "ignored\n");
    // A file that changed in this moment could change again unseen, so it is read again.
    std::thread::sleep(Duration::from_millis(60));
    let counts = |dockerfile: &str| {
        let built = bench.build(dockerfile, |_| {});
        let report = built.ok().report.clone();
        (report.context_files_read, report.context_bytes_read, report.context_files_known)
    };
    assert_eq!(counts("FROM base:1\nCOPY src /src\n"), (2, 2, 0), "only what a step uses");
    assert_eq!(counts("FROM base:1\nCOPY src /src\n"), (0, 0, 2));
    // No step had so many files: all are read for the layer, and hashed meanwhile.
    assert_eq!(counts("FROM base:1\nCOPY . /all\n"), (4, 11, 0));
    // One that had the same but for their content may be found by its key.
    std::thread::sleep(Duration::from_millis(60));
    bench.file("src/b", "B");
    let (read, bytes, known) = counts("FROM base:1\nCOPY . /all\n");
    assert_eq!((read, bytes, known), (1, 1, 3));
    Outcome::Passed
}
