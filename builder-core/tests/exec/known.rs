//! COPY, ADD and WORKDIR with a directory and without one: the same layers, and less to do.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use builder_core::exec::{BuildRequest, Directories};
use builder_core::rootfs::TreeMode;
use fixtures::image::{Entry, tree_layer};
use fixtures::registry::FakeRegistry;

use crate::bench::{Bench, Built};
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "copies_give_the_same_layers", items: "C-02 C-06 C-20 C-30", run: copies },
    Case { name: "archives_give_the_same_layers", items: "C-55 C-57", run: archives },
    Case { name: "refusals_are_the_same", items: "C-06 C-33 I-17", run: refusals },
    Case { name: "an_image_of_copies_unpacks_nothing", items: "X-14", run: nothing_unpacked },
    Case { name: "a_known_base_is_not_read", items: "X-14", run: not_read },
    Case { name: "a_name_in_a_large_user_file_is_looked_up", items: "C-30", run: large_user_file },
    Case { name: "a_file_that_changes_meanwhile_is_an_error", items: "C-10", run: changed },
    Case { name: "a_known_base_goes_from_registry_to_registry", items: "X-01 X-14", run: passed_on },
    Case { name: "cached_steps_are_known_too", items: "X-14", run: after_cached },
    Case { name: "copies_from_an_image_take_what_they_name", items: "C-25", run: from_image },
];

/// 2001-09-09T01:46:40Z
const EPOCH: &str = "1000000000";

/// A build whose layers have no time of today.
fn build(bench: &Bench, dockerfile: &str, name: &str, change: impl FnOnce(&mut BuildRequest)) -> Built {
    bench.build(dockerfile, |request| {
        request.plan.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), EPOCH.to_owned());
        request.outputs = vec![bench.output(&format!("type=oci,dest={name},tar=false,rewrite-timestamp=true"))];
        request.work_dir = bench.path(&format!("work-{name}"));
        change(request);
    })
}

/// Layers of each way of doing it; the first is that with directories everywhere.
#[track_caller]
fn check_same(bench: &Bench, dockerfile: &str) {
    let ways = [
        ("always", Directories::Always, None),
        ("auto", Directories::WhenNeeded, None),
        ("auto-directory", Directories::WhenNeeded, Some(TreeMode::Directory)),
    ];
    let mut first = None;
    for (name, directories, mode) in ways {
        let built = build(bench, dockerfile, name, |request| {
            request.directories = directories;
            request.tree_mode = mode;
        });
        let layout = bench.layout(name);
        let layers: Vec<_> = built.ok().images[0].layers[1..].iter().map(|l| layout.entries(&l.blob)).collect();
        let shown = (layers, built.digest());
        match &first {
            None => first = Some(shown),
            Some(first) => assert_eq!(*first, shown, "{name}: {dockerfile}"),
        }
    }
}

fn context(bench: &Bench) {
    for (name, content) in [("a", "a"), ("d/x", "x"), ("d/e/y", "yy"), ("d/e/z", ""), ("etc/passwd", "own:x:9:9::/:\n")]
    {
        bench.file(name, content);
    }
    let path = |name: &str| bench.path("context").join(name);
    symlink("../a", path("d/link")).expect("a link");
    fs::hard_link(path("a"), path("d/hard")).expect("a link");
    fs::hard_link(path("d/x"), path("d/e/x")).expect("a link");
    fs::set_permissions(path("d/e"), fs::Permissions::from_mode(0o2750)).expect("a mode");
}

fn copies(bench: &Bench) -> Outcome {
    context(bench);
    bench.put_on_base(
        "linked",
        tree_layer(&[
            Entry::Directory("real"),
            Entry::Symlink("dir", "/real"),
            Entry::Symlink("far", "dir/below"),
            Entry::Symlink("loose", "/nowhere/yet"),
            Entry::File("real/f", b"f"),
        ]),
    );
    for dockerfile in [
        "FROM base:1\nCOPY a /\nCOPY a /xx/\nCOPY a /y\nCOPY d /d\nCOPY d /d\nCOPY d /\nCOPY . /all/\nCOPY a /all/\n",
        "FROM base:1\nCOPY --chown=user:users a d/x /w/\nCOPY --chown=user --chmod=640 d /w/\nCOPY --chown=3 d /w\n",
        "FROM base:1\nCOPY --chmod=u+s,g=rx d /m/\nCOPY --chmod=0711 d/e /m/\n",
        "FROM base:1\nCOPY etc /etc\nCOPY --chown=own a /a\nUSER own\nWORKDIR /home/own\nWORKDIR sub/deep\nCOPY a .\n",
        "FROM base:1\nWORKDIR /w\nCOPY <<A <<B /h/\none\nA\ntwo\nB\nCOPY <<C /h/A\nthree\nC\n",
        "FROM linked:1\nCOPY a /dir/\nCOPY a /dir\nCOPY d /dir\nCOPY a /far/\nCOPY d /loose/\nCOPY a /loose\nWORKDIR /far/w\n",
        "FROM linked:1\nCOPY a /dir/f\nCOPY a /real/f\nCOPY d/link /real/f\nCOPY a /real/f\n",
        "FROM base:1\nCOPY --link a /x/\nCOPY --link --chown=5:6 d /x/\nCOPY a /x/b\n",
        "FROM base:1\nCOPY --parents d/./e/y d/x /p/\nCOPY --exclude=e d /q\n",
        "FROM base:1\nCOPY --from=base:1 /etc/passwd /etc/passwd\nCOPY --from=base:1 /etc /etc\n\
         COPY --chown=user --from=base:1 /etc/group /etc/group\n",
        "FROM linked:1\nCOPY --from=linked:1 / /\nCOPY --from=linked:1 /real /x\n",
        "FROM scratch\nCOPY d /\nWORKDIR /w\nCOPY --chown=7:8 a b\n",
        "FROM base:1\nCOPY a /a\nRUN echo b >> /a\nCOPY a /a\nCOPY d /d\n",
        "FROM base:1 AS one\nCOPY d /d\nFROM one AS two\nCOPY a /d/\nFROM base:1\nCOPY --from=two /d /e\nCOPY --from=one /d/x /\n",
        "FROM base:1 AS one\nCOPY d /d\nFROM one\nRUN cat /d/x && rm /d/e/y\nCOPY d /d\n",
    ] {
        check_same(bench, dockerfile);
    }
    Outcome::Passed
}

fn archives(bench: &Bench) -> Outcome {
    context(bench);
    let tar = |name: &str, arguments: &[&str]| {
        let status = std::process::Command::new("tar")
            .args(["--sort=name", "--mtime=@1", "--sparse", "-C"])
            .arg(bench.path("context"))
            .arg("-cf")
            .arg(bench.path("context").join(name))
            .args(arguments)
            .status();
        assert!(status.expect("tar runs").success());
    };
    let holes = fs::File::create(bench.path("context").join("holes")).expect("a file");
    holes.set_len(3 << 20).expect("a hole");
    std::os::unix::fs::FileExt::write_at(&holes, b"data", 1 << 20).expect("written");
    bench.file("large", &"0123456789abcdef".repeat(100_000));
    tar("t.tar", &["d", "a", "holes", "large"]);
    tar("t.tgz", &["-z", "d/e", "d/link"]);
    for dockerfile in [
        "FROM base:1\nADD t.tar /t/\nADD t.tar t.tgz /t\nADD --chown=user t.tgz /u/\n",
        "FROM base:1\nADD t.tgz /bin/\nCOPY t.tgz /t/\nADD --unpack=false t.tgz /t/x\n",
        "FROM base:1\nADD t.tar /\nRUN cat /d/e/y && ls -l /d\nADD t.tar /\n",
    ] {
        check_same(bench, dockerfile);
    }
    Outcome::Passed
}

fn refusals(bench: &Bench) -> Outcome {
    context(bench);
    for dockerfile in [
        "FROM base:1\nCOPY d /etc/passwd\n",
        "FROM base:1\nCOPY a /etc/passwd/\n",
        "FROM base:1\nCOPY a /x\nCOPY d/x /x/y\n",
        "FROM base:1\nWORKDIR /etc/passwd\n",
        "FROM base:1\nCOPY d /x\nCOPY etc /x/passwd\nCOPY a d/e /x/\nCOPY d/e/y /x/e\nCOPY a /x/passwd\nCOPY . /x/a/b\n",
        "FROM scratch\nCOPY --chown=user a /\n",
        "FROM base:1\nCOPY a /bin/sh/x\n",
    ] {
        let errors = [Directories::Always, Directories::WhenNeeded].map(|directories| {
            build(bench, dockerfile, "refused", |request| {
                request.directories = directories;
                request.work_dir = bench.path(&format!("refused-{directories:?}"));
            })
            .error()
        });
        assert_eq!(errors[0], errors[1], "{dockerfile}");
    }
    Outcome::Passed
}

/// Names of what the work dir of a build has unpacked.
fn unpacked(bench: &Bench, name: &str) -> Vec<String> {
    let trees = bench.path(&format!("work-{name}/trees"));
    let names = ["layers", "plain", "flat", "tmp"].iter().flat_map(|kind| {
        fs::read_dir(trees.join(kind))
            .into_iter()
            .flatten()
            .map(move |entry| format!("{kind}/{}", entry.expect("an entry").file_name().to_string_lossy()))
    });
    names.collect()
}

fn nothing_unpacked(bench: &Bench) -> Outcome {
    context(bench);
    for mode in [None, Some(TreeMode::Directory)] {
        let name = if mode.is_none() { "o" } else { "d" };
        let dockerfile = "FROM base:1\nWORKDIR /w\nCOPY --chown=user . .\nCOPY --link a /a\nENV A=1\n";
        build(bench, dockerfile, name, |request| request.tree_mode = mode).ok();
        assert_eq!(unpacked(bench, name), [""; 0]);
    }
    Outcome::Passed
}

/// Reads of layers of the base, that is of large blobs.
fn blob_reads(bench: &Bench) -> Vec<String> {
    let lines = bench.registry.lines();
    lines.into_iter().filter(|line| line.starts_with("GET") && line.contains("/base/blobs/")).collect()
}

fn not_read(bench: &Bench) -> Outcome {
    context(bench);
    let push = |request: &mut BuildRequest, tag: &str| {
        let name = format!("{}/made/image:{tag}", bench.registry.host());
        request.outputs = vec![bench.output(&format!("type=registry,name={name}"))];
        request.work_dir = bench.path("work");
    };
    bench.build("FROM base:1\nCOPY a /a\n", |request| push(request, "1")).ok();
    bench.registry.clear_log();
    bench.file("a", "another");
    let built = bench.build("FROM base:1\nCOPY a /a\nCOPY --chown=user d /d\n", |request| push(request, "2"));
    assert_ne!(built.step("COPY a /a"), "CACHED");
    assert_eq!(blob_reads(bench), [""; 0], "the layer of the base is neither read nor sent");
    let posted = bench.registry.lines().into_iter().filter(|line| line.starts_with("PUT") && line.contains("/blobs/"));
    assert_eq!(posted.count(), 3, "two layers and a config: {:?}", bench.registry.lines());
    Outcome::Passed
}

fn large_user_file(bench: &Bench) -> Outcome {
    context(bench);
    let lines: String = (0..5000).map(|id| format!("user{id}:x:{id}:{id}::/:/bin/sh\n")).collect();
    bench.put_on_base("users", tree_layer(&[Entry::Directory("etc"), Entry::File("etc/passwd", lines.as_bytes())]));
    check_same(bench, "FROM users:1\nCOPY --chown=user4321 a /a\nCOPY --chown=user7 d /d\n");
    Outcome::Passed
}

fn changed(bench: &Bench) -> Outcome {
    context(bench);
    // Large enough to be read for a while, and another file each time anybody looks.
    let path = bench.path("context").join("zz");
    bench.file("zz", &"x".repeat(100_000_000));
    let stop = AtomicBool::new(false);
    let built = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = fs::File::options().append(true).open(&path).expect("the file");
            while !stop.load(Ordering::Relaxed) {
                (&file).write_all(b"more").expect("written");
                std::thread::yield_now();
            }
        });
        let built = build(bench, "FROM base:1\nCOPY zz /\n", "changed", |request| {
            request.directories = Directories::WhenNeeded;
        });
        stop.store(true, Ordering::Relaxed);
        built
    });
    let error = built.error();
    assert!(error.contains("`/zz` changed while it was read"), "{error}");
    Outcome::Passed
}

fn after_cached(bench: &Bench) -> Outcome {
    context(bench);
    let first = "FROM base:1\nRUN mkdir /w && echo made > /w/f && ln /w/f /w/g && chmod 4755 /w/f\nCOPY d /d\n";
    build(bench, first, "c", |_| {}).ok();
    let dockerfile = format!("{first}COPY --chown=user a /w/f\nCOPY d /w/d\n");
    let kept = build(bench, &dockerfile, "c", |_| {});
    assert_eq!(kept.step("COPY d /d"), "CACHED");
    assert!(kept.step("COPY d /w/d") == "not built here before", "{:?}", kept.steps);
    let layout = bench.layout("c");
    let layers = &kept.ok().images[0].layers;
    let names: Vec<_> = layout.entries(&layers[layers.len() - 2].blob).into_iter().map(|(path, _)| path).collect();
    assert_eq!(names, ["w/", "w/f"]);
    check_same(bench, &dockerfile);
    Outcome::Passed
}

fn from_image(bench: &Bench) -> Outcome {
    bench.put_on_base(
        "tools",
        tree_layer(&[
            Entry::Directory("opt"),
            Entry::Directory("opt/v2"),
            Entry::Symlink("opt/current", "v2"),
            Entry::Program("opt/v2/tool", b"#!/bin/sh"),
            Entry::Symlink("opt/v2/alias", "/opt/current/tool"),
            Entry::Symlink("tool", "opt/current/alias"),
        ]),
    );
    let dockerfile = "FROM scratch\nCOPY --from=tools:1 /opt/current /a\nCOPY --from=tools:1 /tool /etc/passwd /b/\n\
                      COPY --from=tools:1 opt/../tool /c\n";
    build(bench, dockerfile, "partial", |_| {}).ok();
    let trees = bench.path("work-partial/trees");
    let kept = fs::read_dir(trees.join("layers")).expect("a directory").map(|entry| entry.expect("an entry").path());
    let kept = kept.chain(fs::read_dir(trees.join("plain")).expect("a directory").map(|entry| entry.expect("").path()));
    for tree in kept {
        assert!(!tree.join("bin").exists() && !tree.join("root/bin").exists(), "{} has all", tree.display());
    }
    check_same(bench, dockerfile);
    check_same(bench, &dockerfile.replace("/opt/current ", "/opt/*/tool "));
    let error = build(bench, "FROM scratch\nCOPY --from=tools:1 /nothing /\n", "none", |_| {}).error();
    assert!(error.contains("\"/nothing\": not found"), "{error}");
    Outcome::Passed
}

fn passed_on(bench: &Bench) -> Outcome {
    context(bench);
    bench.build("FROM base:1\nCOPY a /a\n", |request| request.outputs = vec![bench.output("type=cacheonly")]).ok();
    let other = FakeRegistry::start();
    let built = bench.build("FROM base:1\nCOPY d /d\n", |request| {
        request.outputs = vec![bench.output(&format!("type=registry,name={}/made/image:1", other.host()))];
    });
    let base = built.ok().images[0].layers[0].blob.digest;
    assert!(other.blob("made/image", &base.to_string()).is_some(), "it arrived");
    let kept = bench.path("work/blobs/sha256").join(base.to_string().trim_start_matches("sha256:"));
    assert!(!kept.exists() && bench.path("work/blobs").exists(), "it was written to disk");
    Outcome::Passed
}
