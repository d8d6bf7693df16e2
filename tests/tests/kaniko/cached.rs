//! The cache of steps.

use super::*;

pub const ROWS: &[Row] = &[
    Row {
        name: "cached::cache",
        arguments: &["--cache", "--cache-copy-layers", "--no-push-cache=false"],
        says: &[
            "Checking for cached layer REGISTRY/out/cache:",
            "No cached layer found for cmd COPY one /one",
            "Pushing layer REGISTRY/out/cache:",
        ],
        check: |case, _| {
            again_from_cache(case, &["--cache", "--cache-copy-layers"], "Using caching version of cmd: COPY one /one")
        },
        ..ROW
    },
    Row {
        name: "cached::cache-repo",
        arguments: &["--cache=true", "--cache-repo", "REGISTRY/steps", "--cache-copy-layers=true", "--cache-ttl=1h"],
        says: &["Pushing layer REGISTRY/steps:"],
        check: |case, _| {
            again_from_cache(
                case,
                &["--cache", "--cache-copy-layers", "--cache-repo=REGISTRY/steps"],
                "Using caching version of cmd: COPY one /one",
            )
        },
        ..ROW
    },
    Row {
        name: "cached::cache-repo-of-a-layout",
        arguments: &["--cache", "--cache-repo=oci:DIR/steps", "--cache-copy-layers"],
        check: |case, _| {
            again_from_cache(
                case,
                &["--cache", "--cache-copy-layers", "--cache-repo=oci:DIR/steps"],
                "Using caching version of cmd: COPY one /one",
            )
        },
        ..ROW
    },
    Row {
        name: "cached::cache-copy-layers-is-off",
        arguments: &["--cache"],
        check: |case, ended| {
            that(
                "nothing is put",
                !plain(&ended.stderr).contains("Pushing layer")
                    && !case.registry.lines().iter().any(|line| line.starts_with("PUT") && line.contains("/cache/")),
            )
        },
        ..ROW
    },
    Row {
        name: "cached::cache-run-layers",
        arguments: &["--cache"],
        dockerfile: "FROM BASE\nRUN echo 1 > /x\n",
        says: &["Pushing layer REGISTRY/out/cache:"],
        check: |case, _| again_from_cache(case, &["--cache"], "Using caching version of cmd: RUN echo 1 > /x"),
        ..ROW
    },
    Row {
        name: "cached::single-snapshot",
        arguments: &["--cache", "--cache-copy-layers", "--single-snapshot"],
        dockerfile: "FROM BASE\nRUN echo 1 > /x\nCOPY one /one\nRUN rm /x /bin/touch\n",
        check: |case, _| {
            let expected = ["bin/", "bin/.wh.touch", "dev/", "one", "proc/", "sys/"].map(str::to_owned).to_vec();
            same("files", case.files("out:1")?[1..].to_vec(), vec![expected])?;
            again_from_cache(
                case,
                &["--cache", "--cache-copy-layers", "--single-snapshot"],
                "Using caching version of cmd: RUN rm /x /bin/touch",
            )
        },
        ..ROW
    },
    Row {
        name: "cached::a-changed-file-runs-what-depends-on-it",
        arguments: &["--cache", "--cache-copy-layers"],
        dockerfile: LONG,
        check: |case, _| {
            case.write("context/two", "changed")?;
            let ended = elsewhere(case, &["--cache", "--cache-copy-layers"])?;
            listed(&ended, CACHED, &["RUN echo 1 > /x", "COPY one /one", "RUN cat /one > /y"])?;
            listed(&ended, MISSED, &["COPY two /two", "RUN cat /two > /z"])
        },
        ..ROW
    },
    Row {
        name: "cached::a-changed-argument-runs-what-uses-it",
        arguments: &["--cache", "--cache-copy-layers", "--build-arg=DATE=monday"],
        dockerfile: "FROM BASE\nRUN echo 1 > /x\nARG DATE\nCOPY one /one\nENV WHEN=$DATE\nRUN echo $WHEN > /when\nCOPY two /two\n",
        check: |case, _| {
            let ended = elsewhere(case, &["--cache", "--cache-copy-layers", "--build-arg=DATE=tuesday"])?;
            listed(&ended, CACHED, &["RUN echo 1 > /x", "COPY one /one"])?;
            listed(&ended, MISSED, &["RUN echo tuesday > /when", "COPY two /two"])
        },
        ..ROW
    },
    Row {
        name: "cached::a-date-that-is-used-last",
        arguments: &["--cache", "--cache-copy-layers", "--build-arg=DATE=monday"],
        dockerfile: "FROM BASE\nRUN echo 1 > /x\nCOPY one /one\nARG DATE\nLABEL date=$DATE\n",
        check: |case, _| {
            let ended = elsewhere(case, &["--cache", "--cache-copy-layers", "--build-arg=DATE=tuesday"])?;
            listed(&ended, MISSED, &[])?;
            that(
                "nothing is unpacked",
                plain(&ended.stderr).contains("Skipping unpacking as no commands require it."),
            )?;
            same("label", case.config("out:1")?["config"]["Labels"]["date"].as_str(), Some("tuesday"))
        },
        ..ROW
    },
    Row {
        name: "cached::all-of-it-costs-a-request-a-step",
        arguments: &["--cache", "--cache-copy-layers"],
        dockerfile: LONG,
        check: |case, _| {
            case.registry.clear_log();
            let ended = elsewhere(case, &["--cache", "--cache-copy-layers"])?;
            listed(&ended, MISSED, &[])?;
            let lines = case.registry.lines();
            let count = |method: &str, path: &str| {
                let matches = |line: &&String| line.starts_with(method) && line.contains(path);
                lines.iter().filter(matches).count()
            };
            // The base's manifest and config, a record a step, and nothing is fetched beside.
            same(&format!("requests {lines:#?}"), count("GET", "/base/manifests/"), 1)?;
            same("configs", count("GET", "/base/blobs/"), 1)?;
            same("records", count("GET", "/out/cache/manifests/"), 5)?;
            same("blobs", count("GET", "/blobs/"), 1)?;
            // Each layer and the config are asked for once; all are there.
            same("questions", count("HEAD", "/out/blobs/"), 7)?;
            same("uploads", count("PATCH", "") + count("PUT", "/blobs/"), 0)?;
            same("pushed", count("PUT", "/manifests/"), 1)
        },
        ..ROW
    },
    Row {
        name: "cached::cache-run-layers-off",
        arguments: &["--cache", "--cache-run-layers=false"],
        dockerfile: "FROM BASE\nRUN echo 1 > /x\n",
        check: |_, ended| that("nothing is put", !plain(&ended.stderr).contains("Pushing layer")),
        ..ROW
    },
    Row {
        name: "cached::no-push-cache",
        arguments: &["--cache", "--no-push-cache"],
        dockerfile: "FROM BASE\nRUN echo 1 > /x\n",
        check: |_, ended| that("nothing is put", !plain(&ended.stderr).contains("Pushing layer")),
        ..ROW
    },
    Row {
        name: "cached::a-cache-that-refuses-is-a-warning",
        arguments: &["--cache"],
        dockerfile: "FROM BASE\nRUN echo 1 > /x\n",
        prepare: |case| {
            case.registry.fault(fixtures::registry::Fault::always(
                "",
                "/out/cache/",
                fixtures::registry::Effect::status(403),
            ));
            Ok(())
        },
        says: &["WARN"],
        check: pushed,
        ..ROW
    },
    Row {
        name: "cached::the-cache-is-checked-when-nothing-is-pushed",
        bare: true,
        arguments: &["-c=context", "--no-push", "--cache", "--cache-repo=REGISTRY/cache"],
        prepare: |case| {
            case.registry.fault(fixtures::registry::Fault::always(
                "POST",
                "/cache/blobs/uploads/",
                fixtures::registry::Effect::status(403),
            ));
            Ok(())
        },
        code: 1,
        says: &["error checking push permissions: ", "REGISTRY/cache"],
        ..ROW
    },
];

/// Several steps that depend on two files.
const LONG: &str = "FROM BASE\nRUN echo 1 > /x\nCOPY one /one\nRUN cat /one > /y\nCOPY two /two\nRUN cat /two > /z\n";

const CACHED: &str = "Using caching version of cmd: ";
const MISSED: &str = "No cached layer found for cmd ";

/// Fails unless these stand behind `says` in the log, and no others.
fn listed(ended: &Ended, says: &str, expected: &[&str]) -> Result<(), String> {
    let log = plain(&ended.stderr);
    let found: Vec<&str> = log.lines().filter_map(|line| Some(line.split_once(says)?.1.trim())).collect();
    same(says, found, expected.to_vec())
}

/// A second build, on a machine that knows nothing.
fn elsewhere(case: &Case, arguments: &[&str]) -> Result<Ended, String> {
    let fixed =
        ["--context=context", "--destination=REGISTRY/out:1", "--kaniko-dir=empty", "--skip-push-permission-check"];
    let arguments: Vec<String> = fixed.iter().chain(arguments).map(|argument| case.filled(argument)).collect();
    let ended = case.run("executor", &arguments, &[])?;
    that(&ended.text(), ended.success())?;
    Ok(ended)
}

/// A second build in an empty work directory takes its steps from the cache.
fn again_from_cache(case: &Case, arguments: &[&str], says: &str) -> Result<(), String> {
    case.registry.clear_log();
    let first = case.manifest("out:1")?["layers"].clone();
    let ended = elsewhere(case, arguments)?;
    that(&ended.text(), plain(&ended.stderr).contains(says))?;
    let lines = case.registry.lines();
    that(
        &format!("no layer of the base is fetched: {lines:#?}"),
        lines.iter().filter(|line| line.starts_with("GET") && line.contains("/base/blobs/")).count() < 2,
    )?;
    same("layers", case.manifest("out:1")?["layers"].clone(), first)
}
