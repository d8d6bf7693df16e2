//! Secrets reach the command and nothing else.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use builder_core::exec::{BuildRequest, NoCache, SecretValue};

use crate::bench::{Bench, visit_files};
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "a_secret_leaves_no_trace", items: "M-16 M-17 M-20 R-17", run: no_trace },
    Case { name: "a_secret_leaves_no_trace_after_a_failure", items: "M-20 R-12", run: failure },
    Case { name: "another_value_is_no_miss", items: "R-17", run: not_in_key },
    Case { name: "a_secret_that_was_not_given", items: "M-18", run: missing },
    Case { name: "owner_and_mode_of_the_file", items: "M-17", run: attributes },
];

/// 40 bytes that appear nowhere else.
const VALUE: &str = "s3cr3t-Jx7Qw2Zk9Lm4Vb6Np1Rt8Yc5Hd0Gf-end";
/// The same, for the environment.
const OTHER: &str = "s3cr3t-Ae1Bd3Cf5Dg7Eh9Fi2Gj4Hk6Il8Jm-end";

const DOCKERFILE: &str = "FROM base:1\nRUN --mount=type=secret,id=file,required --mount=type=secret,id=variable,env=TOKEN \
                          echo lengths $(wc -c < /run/secrets/file) ${#TOKEN}; echo ok > /made\n";

fn give(request: &mut BuildRequest) {
    for (id, value) in [("file", VALUE), ("variable", OTHER)] {
        request.secrets.insert(id.to_owned(), SecretValue::new(value.as_bytes().to_vec()));
    }
}

/// Files below the work dir with either value; the context and the machine hold none anyway.
fn traces(bench: &Bench) -> Vec<PathBuf> {
    [VALUE, OTHER].iter().flat_map(|value| bench.files_with(value.as_bytes())).collect()
}

fn no_trace(bench: &Bench) -> Outcome {
    let meanwhile: Arc<Mutex<Vec<PathBuf>>> = Arc::default();
    let (directory, found) = (bench.directory.path().to_owned(), Arc::clone(&meanwhile));
    let built = bench.build_watched(
        DOCKERFILE,
        |request| {
            give(request);
            request.outputs = vec![bench.output("type=oci,dest=out.tar")];
        },
        move |_| {
            // The command runs now; the disk must not hold what it sees.
            let mut found = found.lock().expect("no panic");
            for value in [VALUE, OTHER] {
                found.extend(visit_files(&directory, value.as_bytes()));
            }
        },
    );
    assert_eq!(built.output, ["lengths 40 40"]);
    assert_eq!(*meanwhile.lock().expect("no panic"), Vec::<PathBuf>::new());
    assert_eq!(traces(bench), Vec::<PathBuf>::new());
    let result = built.ok();
    let texts = format!("{:?} {:?} {:?} {}", built.steps, result.report, built.warnings, built.config());
    assert!(!texts.contains(VALUE) && !texts.contains(OTHER));
    // Nor do the mounts show in the image.
    assert!(!built.config().to_string().contains("type=secret"), "{}", built.config());
    let layer = &result.images[0].layers[1].blob.digest;
    let blob = std::fs::read(bench.path("work/blobs/sha256").join(layer.to_string().trim_start_matches("sha256:")));
    if let Ok(blob) = blob {
        let tar = crate::bench::inflated(&blob);
        let mut archive = tar::Archive::new(tar.as_slice());
        let paths: Vec<_> = archive
            .entries()
            .expect("a tar")
            .map(|entry| entry.expect("an entry").path().expect("a path").into_owned())
            .collect();
        assert_eq!(paths, [PathBuf::from("made")]);
    }
    Outcome::Passed
}

fn failure(bench: &Bench) -> Outcome {
    let built = bench.build(&DOCKERFILE.replace("echo ok > /made", "exit 3"), give);
    let error = built.error();
    assert!(error.contains("exit code: 3") && !error.contains(VALUE) && !error.contains(OTHER), "{error}");
    let debug = format!("{:?}", built.result);
    assert!(!debug.contains(VALUE) && !debug.contains(OTHER));
    assert_eq!(traces(bench), Vec::<PathBuf>::new());
    Outcome::Passed
}

fn not_in_key(bench: &Bench) -> Outcome {
    bench.build(DOCKERFILE, give).ok();
    let again = bench.build(DOCKERFILE, |request| {
        give(request);
        request.secrets.insert("file".to_owned(), SecretValue::new(b"changed".to_vec()));
    });
    assert!(again.steps.values().all(|state| state == "CACHED"), "{:?}", again.steps);
    Outcome::Passed
}

fn missing(bench: &Bench) -> Outcome {
    let error = bench.build(DOCKERFILE, |_| {}).error();
    assert!(error.ends_with("secret file: not found"), "{error}");
    let built = bench.build(
        "FROM base:1\nRUN --mount=type=secret,id=no --mount=type=secret,id=nor,env=T test ! -e /run/secrets/no && \
         echo \"${T-unset}.\"\n",
        |request| request.no_cache = NoCache::All,
    );
    assert_eq!(built.output, ["."], "{}", built.summary());
    Outcome::Passed
}

fn attributes(bench: &Bench) -> Outcome {
    let built = bench.build(
        "FROM base:1\nRUN --mount=type=secret,id=file --mount=type=secret,id=file,target=/etc/x,uid=7,gid=8,mode=0644 \
         stat -c '%a %u:%g' /run/secrets/file /etc/x; (echo > /etc/x) 2>/dev/null || echo read-only\n",
        give,
    );
    assert_eq!(built.output, ["400 0:0", "644 7:8", "read-only"], "{}", built.summary());
    Outcome::Passed
}
