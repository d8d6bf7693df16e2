//! One layer for all that a build adds.

use std::collections::BTreeMap;
use std::io::Read as _;

use builder_core::exec::BuildRequest;
use builder_core::rootfs::TreeMode;
use serde_json::Value;

use crate::bench::{Bench, Built, inflated};
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "what_steps_undo_is_in_no_layer", items: "T-01 T-05 T-08", run: undone },
    Case { name: "it_is_the_same_where_all_steps_are_cached", items: "X-14", run: cached },
    Case { name: "stages_below_are_part_of_it", items: "F-08", run: stages },
    Case { name: "one_step_and_none", items: "I-01", run: few },
];

/// Changes a base and then some of its own changes.
const STEPS: &str = "FROM base:1\n\
    RUN mkdir -p /d/sub /gone && echo 1 > /d/one && echo 2 > /d/sub/two && echo x > /gone/x && cp /d/one /d/keep\n\
    COPY f /d/copied\n\
    RUN rm -r /gone /d/sub && mkdir /d/sub && echo 3 > /d/sub/three && rm /bin/touch && rm -r /tmp && echo e > /tmp\n\
    WORKDIR /w\n\
    RUN echo again > /d/one\n\
    CMD [\"x\"]\n";

const EXPECTED: &[&str] =
    &["bin/", "bin/.wh.touch", "d/", "d/copied", "d/keep", "d/one", "d/sub/", "d/sub/three", "tmp", "w/"];

fn single<'b>(bench: &'b Bench, mode: Option<TreeMode>, work: &str) -> impl FnOnce(&mut BuildRequest) + use<'b> {
    let work_dir = bench.path(work);
    move |request| {
        request.tree_mode = mode;
        request.work_dir = work_dir;
        request.single_layer = true;
        request.outputs = vec![bench.output("type=oci,tar=false,dest=out")];
    }
}

/// Names and content of the only layer above the base.
#[track_caller]
fn only_layer(bench: &Bench, built: &Built) -> BTreeMap<String, String> {
    let [_, layer] = &built.ok().images[0].layers[..] else { panic!("{} layers", built.ok().images[0].layers.len()) };
    let tar = inflated(&bench.layout("out").blob(&layer.blob.digest.to_string()));
    let mut archive = tar::Archive::new(&tar[..]);
    let entries = archive.entries().expect("a tar");
    entries
        .map(|entry| {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").display().to_string();
            let mut content = String::new();
            entry.read_to_string(&mut content).expect("text");
            (name, content)
        })
        .collect()
}

#[track_caller]
fn check(bench: &Bench, built: &Built) {
    let layer = only_layer(bench, built);
    let names: Vec<&str> = layer.keys().map(String::as_str).collect();
    assert_eq!(names, EXPECTED);
    for (name, content) in
        [("d/one", "again\n"), ("d/keep", "1\n"), ("d/sub/three", "3\n"), ("d/copied", "f"), ("tmp", "e\n")]
    {
        assert_eq!(layer[name], content, "{name}");
    }
    let config = built.config();
    let history = config["history"].as_array().expect("a history");
    let full: Vec<&str> = history
        .iter()
        .filter(|item| item["empty_layer"] != Value::Bool(true))
        .filter_map(|item| item["created_by"].as_str())
        .collect();
    assert_eq!(full.len(), config["rootfs"]["diff_ids"].as_array().map_or(0, Vec::len), "{history:#?}");
    assert!(full.last().is_some_and(|last| last.contains("echo again")), "{full:?}");
    let ours = history.iter().filter(|item| item["comment"] == "buildkit.dockerfile.v0");
    assert_eq!(ours.count(), 6, "{history:#?}");
}

fn modes() -> [Option<TreeMode>; 2] {
    [None, Some(TreeMode::Directory)]
}

fn undone(bench: &Bench) -> Outcome {
    bench.file("f", "f");
    for (mode, work) in modes().into_iter().zip(["o", "d"]) {
        let built = bench.build(STEPS, single(bench, mode, work));
        check(bench, &built);
        // Kept as one, and made of the same steps.
        let again = bench.build(STEPS, single(bench, mode, work));
        assert_eq!(again.digest(), built.digest());
        assert!(again.steps.values().all(|state| state == "CACHED"), "{:?}", again.steps);
    }
    Outcome::Passed
}

fn cached(bench: &Bench) -> Outcome {
    bench.file("f", "f");
    for (mode, work) in modes().into_iter().zip(["o", "d"]) {
        let many = bench.build(STEPS, |request| {
            request.tree_mode = mode;
            request.work_dir = bench.path(work);
        });
        assert_eq!(many.ok().images[0].layers.len(), 6);
        let built = bench.build(STEPS, single(bench, mode, work));
        assert!(built.steps.values().all(|state| state == "CACHED"), "{:?}", built.steps);
        check(bench, &built);
    }
    Outcome::Passed
}

fn stages(bench: &Bench) -> Outcome {
    let text = "FROM base:1 AS a\nRUN echo a > /a\nFROM a AS b\nRUN echo b > /b\nFROM b\nRUN rm /a\n";
    let built = bench.build(text, single(bench, None, "work"));
    assert_eq!(only_layer(bench, &built).into_keys().collect::<Vec<_>>(), ["b"]);
    Outcome::Passed
}

fn few(bench: &Bench) -> Outcome {
    let one = bench.build("FROM base:1\nRUN echo a > /a\nENV A=1\n", single(bench, None, "work"));
    assert_eq!(only_layer(bench, &one).into_keys().collect::<Vec<_>>(), ["a"]);
    let none = bench.build("FROM base:1\nENV A=1\n", single(bench, None, "work"));
    assert_eq!(none.ok().images[0].layers.len(), 1);
    Outcome::Passed
}
