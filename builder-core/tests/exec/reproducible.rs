//! Equal input, equal bytes.

use std::num::NonZeroUsize;

use builder_core::exec::{BuildRequest, NoCache};
use builder_core::rootfs::TreeMode;

use crate::bench::{Bench, Built};
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "the_same_on_two_work_dirs", items: "X-11 X-12", run: two_work_dirs },
    Case { name: "times_are_clamped_in_new_layers_alone", items: "X-12", run: clamped },
    Case { name: "an_epoch_alone_leaves_times_in_layers", items: "X-12", run: not_clamped },
    Case { name: "kept_layers_do_not_bring_their_times", items: "X-12", run: kept },
    Case { name: "an_output_has_the_last_word", items: "X-13", run: overridden },
    Case { name: "threads_do_not_show", items: "X-14", run: threads },
    Case { name: "a_tree_from_its_layers_has_the_same_hard_links", items: "C-26 T-04 X-14", run: hard_links },
];

/// 2001-09-09T01:46:40Z
const EPOCH: &str = "1000000000";

const DOCKERFILE: &str = "FROM base:1\nARG SOURCE_DATE_EPOCH\nWORKDIR /w\nCOPY f .\nRUN echo $SOURCE_DATE_EPOCH > made && \
                          mkdir d && echo more > d/x\nRUN rm f\nENV A=1\n";

fn build(bench: &Bench, output: &str, change: impl FnOnce(&mut BuildRequest)) -> Built {
    bench.file("f", "content");
    bench.build(DOCKERFILE, |request| {
        request.plan.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), EPOCH.to_owned());
        request.outputs = vec![bench.output(&format!("type=oci,dest=out,tar=false{output}"))];
        change(request);
    })
}

/// Names of one file that the layers tell otherwise than a tree in which the commands ran, and empty ones.
const LINKS: &str = "FROM base:1 AS made\nARG SOURCE_DATE_EPOCH\n\
    RUN mkdir /d /e && echo one >/d/a && ln /d/a /d/b && ln /d/a /d/z && : >/d/x && ln /d/x /d/y && echo two >/e/l && \
        ln /e/l /e/k && echo 3 >/e/3 && cp -p /e/3 /e/4 && mkfifo /d/f && ln /d/f /d/g\n\
    RUN ln /e/3 /e/5 && ln /d/a /d/c && ln /d/a /d/e && chmod 600 /d/z && chmod 644 /d/z && rm /e/k && mv /e/l /e/m\n\
    RUN mkdir /n && mv /d /n/d && ln /n/d/c /n/d/h\n\
    RUN rm /e/4 && ln /e/3 /e/4 && echo seen >/seen && stat -c '%n %h' /e/* /n/d/* >>/seen\n\
    FROM base:1\nCOPY --from=made /n /n\nCOPY --from=made /n/d/a /n/d/b /n/d/x /n/d/y /both/\nCOPY --from=made /e /e\n\
    RUN cp -a /n /again && stat -c '%n %h' /n/d/* /e/*\n";

fn hard_links(bench: &Bench) -> Outcome {
    for mode in [None, Some(TreeMode::Directory)] {
        let build = |work: &str, target: Option<&str>| {
            bench.build(LINKS, |request| {
                request.plan.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), EPOCH.to_owned());
                request.plan.target = target.map(str::to_owned);
                request.outputs = vec![bench.output(&format!("type=oci,dest=out,tar=false{REWRITE}"))];
                request.work_dir = bench.path(&format!("{work}-{mode:?}"));
                request.tree_mode = mode;
            })
        };
        let live = build("live", None);
        build("killed", Some("made")).ok();
        // What a killed builder leaves of a tree in use.
        std::fs::remove_dir_all(bench.path(&format!("killed-{mode:?}/trees"))).expect("the trees");
        let made_again = build("killed", None);
        assert_eq!(made_again.step("RUN mkdir /n && mv /d /n/d && ln /n/d/c /n/d/h"), "CACHED");
        assert_eq!(live.output, made_again.output, "{mode:?}");
        assert_eq!(live.digest(), made_again.digest(), "{mode:?}");
    }
    Outcome::Passed
}

const REWRITE: &str = ",rewrite-timestamp=true";

fn two_work_dirs(bench: &Bench) -> Outcome {
    let first = build(bench, REWRITE, |_| {});
    let second = build(bench, REWRITE, |request| request.work_dir = bench.path("another"));
    assert!(second.steps.values().all(|state| state == "not built here before"), "{:?}", second.steps);
    assert_eq!(first.digest(), second.digest());
    assert_eq!(first.config()["created"], "2001-09-09T01:46:40Z");
    let config = first.config();
    let history = config["history"].as_array().expect("a list");
    let new = history.iter().filter(|item| item["created_by"] != "fixture");
    assert!(
        new.clone().count() == 6 && new.clone().all(|item| item["created"] == "2001-09-09T01:46:40Z"),
        "{history:?}"
    );
    Outcome::Passed
}

/// All times in the layers above the base.
fn times(bench: &Bench, built: &Built) -> Vec<(String, u64)> {
    let layout = bench.layout("out");
    built.ok().images[0].layers[1..].iter().flat_map(|layer| layout.entries(&layer.blob)).collect()
}

fn clamped(bench: &Bench) -> Outcome {
    let built = build(bench, REWRITE, |_| {});
    let times = times(bench, &built);
    assert!(times.len() > 5 && times.iter().all(|(_, time)| *time <= 1_000_000_000), "{times:?}");
    assert_eq!(bench.layout("out").entries(&built.ok().images[0].layers[0].blob)[0], ("bin".to_owned(), 0));
    Outcome::Passed
}

fn not_clamped(bench: &Bench) -> Outcome {
    let built = build(bench, "", |_| {});
    let times = times(bench, &built);
    let time = |name: &str| times.iter().find(|(path, _)| path == name).map(|(_, time)| *time);
    assert!(time("w/made") > Some(1_000_000_000), "{times:?}");
    assert_eq!(time("w/").or(time("w")), Some(1_000_000_000), "WORKDIR takes the epoch (I-17): {times:?}");
    assert_eq!(built.config()["created"], "2001-09-09T01:46:40Z");
    Outcome::Passed
}

fn kept(bench: &Bench) -> Outcome {
    let first = build(bench, "", |_| {});
    let second = build(bench, REWRITE, |_| {});
    assert_ne!(first.digest(), second.digest());
    let times = times(bench, &second);
    assert!(times.iter().all(|(_, time)| *time <= 1_000_000_000), "{times:?}");
    let alone = build(bench, REWRITE, |request| request.work_dir = bench.path("another"));
    assert_eq!(second.digest(), alone.digest());
    assert_eq!(build(bench, "", |_| {}).digest(), first.digest(), "and the other way round");
    Outcome::Passed
}

fn overridden(bench: &Bench) -> Outcome {
    let built = build(bench, ",source-date-epoch=1", |_| {});
    assert_eq!(built.config()["created"], "1970-01-01T00:00:01Z");
    let built = build(bench, ",source-date-epoch=", |_| {});
    assert_ne!(built.config()["created"], "2001-09-09T01:46:40Z");
    Outcome::Passed
}

fn threads(bench: &Bench) -> Outcome {
    let first = build(bench, REWRITE, |_| {});
    let second = build(bench, REWRITE, |request| {
        request.no_cache = NoCache::All;
        request.limits.cpu_threads = NonZeroUsize::MIN;
        request.limits.steps = NonZeroUsize::MIN;
    });
    assert_eq!(first.digest(), second.digest());
    Outcome::Passed
}
