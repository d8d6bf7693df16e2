//! How callers spell their command lines.

use super::*;

/// Everything that Skaffold's cluster builder may say, in its order and spelling.
const SKAFFOLD: &[&str] = &[
    "--destination",
    "REGISTRY/out:1",
    "--dockerfile",
    "Dockerfile",
    "--context",
    "dir://DIR/context",
    "--build-arg",
    "A=from skaffold",
    "--build-arg",
    "B",
    "--target",
    "second",
    "--cleanup",
    "--destination",
    "REGISTRY/more:1",
    "--digest-file",
    "DIR/termination-log",
    "--force",
    "--image-fs-extract-retry",
    "3",
    "--image-name-with-digest-file",
    "DIR/names",
    "--insecure",
    "--insecure-pull",
    "--log-format",
    "text",
    "--log-timestamp",
    "--oci-layout-path",
    "DIR/layout",
    "--registry-mirror",
    "REGISTRY",
    "--reproducible",
    "--single-snapshot",
    "--skip-tls-verify",
    "--skip-tls-verify-registry",
    "REGISTRY",
    "--skip-tls-verify-pull",
    "--skip-unused-stages",
    "--snapshot-mode",
    "redo",
    "--push-retry",
    "2",
    "--tarPath",
    "DIR/image.tar",
    "--use-new-run",
    "--verbosity",
    "info",
    "--whitelist-var-run",
    "--insecure-registry",
    "REGISTRY",
    "--skip-tls-verify-registry",
    "other.example",
    "--registry-certificate",
    "other.example=DIR/ca.pem",
    "--label",
    "a=b",
];

pub const ROWS: &[Row] = &[
    Row {
        name: "callers::skaffold",
        bare: true,
        arguments: SKAFFOLD,
        environment: &[("UPSTREAM_CLIENT_TYPE", "UpstreamClient(skaffold-v2.1.0)")],
        prepare: |case| {
            let ca = fs::read(fixtures::distribution::tls("ca.pem")).map_err(|error| error.to_string())?;
            case.write("ca.pem", ca)?;
            case.write("termination-log", "")
        },
        check: skaffold,
        ..ROW
    },
    Row {
        name: "callers::skaffold-with-a-cache",
        bare: true,
        arguments: &[
            "--destination",
            "REGISTRY/out:1",
            "--dockerfile",
            "Dockerfile",
            "--context",
            "dir://DIR/context",
            "--cache",
            "--cache-repo",
            "REGISTRY/cache",
            "--cache-dir",
            "DIR/warm",
            "--cache-ttl",
            "24h",
            "--cache-copy-layers",
            "--cache-run-layers=false",
            "--digest-file",
            "DIR/log",
        ],
        check: |case, _| same("digest", case.read("log")?, case.digest("out:1")?),
        ..ROW
    },
    Row {
        name: "callers::gcloud",
        bare: true,
        arguments: &[
            "--destination",
            "REGISTRY/out:1",
            "--cache",
            "--cache-ttl",
            "6h",
            "--cache-dir",
            "",
            "--context",
            "context",
        ],
        check: |case, _| case.manifest("out:1").map(drop),
        ..ROW
    },
    Row {
        name: "callers::gcloud-without-cache",
        bare: true,
        arguments: &[
            "--destination",
            "REGISTRY/out:1",
            "--cache",
            "--cache-ttl",
            "0h",
            "--cache-dir",
            "",
            "--context",
            "context",
            "--no-push-cache",
        ],
        check: |case, _| case.manifest("out:1").map(drop),
        ..ROW
    },
    Row {
        name: "callers::tekton",
        bare: true,
        arguments: &[
            "",
            "--dockerfile=./Dockerfile",
            "--context=DIR/context/./",
            "--destination=REGISTRY/out:1",
            "--digest-file=DIR/results/IMAGE_DIGEST",
        ],
        check: |case, _| same("digest", case.read("results/IMAGE_DIGEST")?, case.digest("out:1")?),
        ..ROW
    },
    Row {
        name: "callers::gitlab",
        bare: true,
        arguments: &[
            "--context",
            "DIR/context",
            "--dockerfile",
            "DIR/context/Dockerfile",
            "--destination",
            "REGISTRY/out:1",
            "--cache=true",
            "--cache-repo",
            "REGISTRY/cache",
            "--cache-copy-layers",
            "--cache-dir",
            "DIR/none",
        ],
        check: |case, _| case.manifest("out:1").map(drop),
        ..ROW
    },
];

fn skaffold(case: &Case, ended: &Ended) -> Result<(), String> {
    let digest = case.digest("out:1")?;
    same("the termination message", case.read("termination-log")?, digest.clone())?;
    same("the second destination", case.digest("more:1")?, digest)?;
    let config = case.config("out:1")?;
    that("the build-arg", config["config"]["Env"].to_string().contains("GOT=from skaffold"))?;
    let manifest = case.manifest("out:1")?;
    same("layers, of which one is the base's", manifest["layers"].as_array().map(Vec::len), Some(2))?;
    that("the log", plain(&ended.stderr).lines().all(|line| line.starts_with("time=\"")))
}
