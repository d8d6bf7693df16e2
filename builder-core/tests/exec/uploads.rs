//! When and how often bytes travel: layers while they are written, bases while they are read.

use fixtures::image::{Entry, Image, noise, tree_layer};
use fixtures::registry::{Effect, FakeRegistry, Fault};
use serde_json::json;

use crate::bench::{Bench, Built};
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "a_large_layer_leaves_while_it_is_written", items: "X-01", run: while_written },
    Case { name: "an_unknown_base_goes_on_while_it_is_read", items: "X-01 X-14", run: while_read },
    Case { name: "a_base_that_cannot_be_passed_on_comes_again", items: "X-01 X-14", run: comes_again },
    Case { name: "a_base_of_another_stage_stays_at_home", items: "X-01 X-14", run: other_stage },
    Case { name: "a_refusal_in_mid_build_is_met_as_agreed", items: "X-01", run: refusals },
];

fn count(registry: &FakeRegistry, method: &str, path: &str) -> usize {
    registry.log().iter().filter(|logged| logged.method == method && logged.path.contains(path)).count()
}

fn push(bench: &Bench, to: &FakeRegistry, dockerfile: &str) -> Built {
    bench.build(dockerfile, |request| {
        request.outputs = vec![bench.output(&format!("type=registry,name={}/made/image:1", to.host()))];
    })
}

/// Whether every layer of what was pushed is there.
#[track_caller]
fn check_whole(built: &Built, to: &FakeRegistry) {
    for layer in &built.ok().images[0].layers {
        let there = to.blob("made/image", &layer.blob.digest.to_string()).expect("a layer that is there");
        assert_eq!(there.len() as u64, layer.blob.size);
    }
    assert!(to.manifest("made/image", "1").is_some());
}

fn while_written(bench: &Bench) -> Outcome {
    let to = FakeRegistry::start();
    let built = push(bench, &to, "FROM base:1\nRUN head -c 40000000 /dev/urandom > /noise\nRUN echo small > /small\n");
    check_whole(&built, &to);
    let large = &built.ok().images[0].layers[1].blob;
    assert!(large.size > 40_000_000);
    assert!(count(&to, "PATCH", "/uploads/") > 0, "{:?}", to.lines());
    // One upload for each layer and the config, and none of them in vain.
    assert_eq!((count(&to, "POST", "/uploads/"), count(&to, "DELETE", "/uploads/")), (4, 0), "{:?}", to.lines());
    assert!(built.ok().report.bytes_pushed > 40_000_000);
    // Nothing is kept, and nothing is sent by the next build.
    let kept = bench.path("work/blobs/sha256").join(large.digest.to_hex());
    assert!(!kept.exists());
    Outcome::Passed
}

/// `large:1`: the base and a layer of this many bytes.
fn large_base(bench: &Bench, bytes: usize) {
    let noise = noise(bytes);
    bench.put_on_base("large", tree_layer(&[Entry::Directory("lib"), Entry::File("lib/large", &noise)]));
}

fn while_read(bench: &Bench) -> Outcome {
    bench.build("FROM base:1\nRUN true\n", |_| {}).ok();
    if std::fs::read_dir(bench.path("work/trees/layers")).map_or(0, Iterator::count) == 0 {
        return Outcome::Skipped("without overlayfs trees are made from blobs, which are kept".to_owned());
    }
    large_base(bench, 5_000_000);
    for (name, dockerfile) in
        [("copy", "FROM large:1\nCOPY a /lib/\n"), ("run", "FROM large:1\nRUN test -e /lib/large && echo 1 > /one\n")]
    {
        bench.file("a", "a");
        bench.registry.clear_log();
        let to = FakeRegistry::start();
        let built = bench.build(dockerfile, |request| {
            request.outputs = vec![bench.output(&format!("type=registry,name={}/made/image:1", to.host()))];
            request.work_dir = bench.path(&format!("work-{name}"));
        });
        check_whole(&built, &to);
        for layer in &built.ok().images[0].layers[..2] {
            let digest = layer.blob.digest.to_string();
            assert_eq!(count(&bench.registry, "GET", &digest), 1, "{name}: {:?}", bench.registry.lines());
            let kept = bench.path(&format!("work-{name}/blobs/sha256")).join(layer.blob.digest.to_hex());
            assert!(!kept.exists(), "{name}: written to disk");
        }
        assert_eq!(count(&to, "POST", "/uploads/"), 4, "{name}: {:?}", to.lines());
    }
    Outcome::Passed
}

fn comes_again(bench: &Bench) -> Outcome {
    large_base(bench, 5_000_000);
    bench.file("a", "a");
    let to = FakeRegistry::start();
    to.fault(Fault::once("PUT", "/uploads/", Effect::CutUpload(1_000_000)).after(1));
    let built = push(bench, &to, "FROM large:1\nCOPY a /lib/\n");
    check_whole(&built, &to);
    Outcome::Passed
}

fn other_stage(bench: &Bench) -> Outcome {
    let to = FakeRegistry::start();
    let noise = noise(100_000);
    let tools = tree_layer(&[Entry::Directory("tools"), Entry::File("tools/t", &noise)]);
    let digest = fixtures::image::digest(&tools.blob);
    bench.registry.put_image("library/tools", "1", &Image::new("linux/amd64", vec![tools], json!({})));
    let built = push(bench, &to, "FROM tools:1 AS tools\nFROM base:1\nCOPY --from=tools /tools/t /t\n");
    check_whole(&built, &to);
    assert_eq!(to.blob("made/image", &digest), None);
    Outcome::Passed
}

fn refusals(bench: &Bench) -> Outcome {
    let dockerfile = "FROM base:1\nRUN echo 1 > /one\nRUN sleep 20 && echo ended\n";
    let refused = |retries: u32, times: u32, dockerfile: &str| {
        let to = FakeRegistry::start();
        to.fault(Fault::once("POST", "/uploads/", Effect::status(403)).times(times));
        let built = bench.build(dockerfile, |request| {
            request.outputs = vec![bench.output(&format!("type=registry,name={}/made/image:1", to.host()))];
            request.push.options.retries = retries;
            request.work_dir = bench.path(&format!("work-{retries}-{times}"));
        });
        (built, to)
    };
    // Without retries the build ends at once; with them, when they are used up.
    for retries in [0, 1] {
        let (built, _) = refused(retries, u32::MAX, dockerfile);
        assert!(built.error().contains("denies access"), "{}", built.error());
        assert!(!built.output.iter().any(|line| line == "ended"), "{:?}", built.output);
    }
    let (built, to) = refused(2, 2, "FROM base:1\nRUN echo 1 > /one\nRUN sleep 3\n");
    check_whole(&built, &to);
    Outcome::Passed
}
