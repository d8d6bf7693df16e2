//! `warmer`, and `executor` with what it left.

use super::*;

pub const ROWS: &[Row] = &[
    Row {
        name: "warmed::image",
        bare: true,
        program: "warmer",
        arguments: &["--image", "BASE", "--cache-dir", "warm"],
        says: &["Retrieving image manifest BASE"],
        check: layout,
        ..ROW
    },
    Row {
        name: "warmed::shorthands",
        bare: true,
        program: "warmer",
        arguments: &["-i=BASE", "-cwarm", "-f"],
        check: layout,
        ..ROW
    },
    Row {
        name: "warmed::dockerfile",
        bare: true,
        program: "warmer",
        arguments: &[
            "-d",
            "context/Dockerfile",
            "--cache-dir=warm",
            "--build-arg",
            "WHICH=REGISTRY/base",
            "--dockerfile=context/Dockerfile",
        ],
        dockerfile: "ARG WHICH=nowhere.invalid/x\nFROM $WHICH AS a\nFROM a AS b\nFROM REGISTRY/base\n",
        prepare: |case| {
            case.write(
                "context/Dockerfile",
                case.filled("ARG WHICH=nowhere.invalid/x\nFROM $WHICH AS a\nFROM a AS b\nFROM REGISTRY/base\n"),
            )
        },
        check: layout,
        ..ROW
    },
    Row {
        name: "warmed::once",
        bare: true,
        program: "warmer",
        arguments: &["--image=BASE", "--cache-dir=warm", "--cache-ttl=1h"],
        prepare: warm,
        says: &["Image already in cache: BASE"],
        check: |case, _| {
            that(
                "no more than the config is fetched",
                case.registry.lines().iter().filter(|line| line.contains("/blobs/")).count() < 2,
            )
        },
        ..ROW
    },
    Row {
        name: "warmed::force",
        bare: true,
        program: "warmer",
        arguments: &["--image=BASE", "--cache-dir=warm", "--force"],
        prepare: warm,
        says: &["Wrote BASE to cache"],
        check: layout,
        ..ROW
    },
    Row {
        name: "warmed::expired-is-fetched-again",
        bare: true,
        program: "warmer",
        arguments: &["--image=BASE", "--cache-dir=warm", "--cache-ttl=0h"],
        prepare: warm,
        says: &["Wrote BASE to cache"],
        check: layout,
        ..ROW
    },
    Row {
        name: "warmed::one-failure-only-warns",
        bare: true,
        program: "warmer",
        arguments: &["--image=REGISTRY/none", "--image=BASE", "--cache-dir=warm"],
        says: &["Error while trying to warm image: REGISTRY/none"],
        check: layout,
        ..ROW
    },
    Row {
        name: "warmed::all-failures-fail",
        bare: true,
        program: "warmer",
        arguments: &["--image=REGISTRY/none", "--cache-dir=warm", "--customPlatform=linux/amd64", "ignored"],
        code: 1,
        check: |_, ended| that("it is said on standard output", ended.result().starts_with("Failed warming cache: ")),
        ..ROW
    },
    Row {
        name: "warmed::nothing-to-do",
        bare: true,
        program: "warmer",
        arguments: &["--cache-dir=warm"],
        code: 1,
        says: &["Error: you must select at least one image"],
        ..ROW
    },
    Row {
        name: "warmed::executor-takes-layers-from-it",
        arguments: &["--cache", "--cache-dir=warm", "--no-push-cache"],
        dockerfile: "FROM BASE\nRUN echo x > /x\n",
        prepare: warm,
        check: |case, _| {
            that(
                "no blob of the base is fetched",
                !case.registry.lines().iter().any(|line| line.starts_with("GET") && line.contains("/base/blobs/")),
            )
        },
        ..ROW
    },
    Row {
        name: "warmed::executor-takes-a-pinned-image-from-it",
        arguments: &["--cache", "--cache-dir=warm", "--no-push-cache"],
        prepare: |case| {
            warm(case)?;
            let dockerfile = format!("FROM {}@{}\nRUN echo x > /x\n", case.name("base"), case.digest("base:latest")?);
            case.write("context/Dockerfile", dockerfile)
        },
        check: |case, _| {
            that(
                "the base is not asked for",
                !case.registry.lines().iter().any(|line| line.starts_with("GET") && line.contains("/base/")),
            )
        },
        ..ROW
    },
    Row {
        name: "warmed::executor-does-not-take-what-is-too-old",
        arguments: &["--cache", "--cache-dir=warm", "--cache-ttl=0h", "--no-push-cache"],
        dockerfile: "FROM BASE\nRUN echo x > /x\n",
        prepare: warm,
        check: |case, _| {
            that(
                "the base is fetched",
                case.registry.lines().iter().any(|line| line.starts_with("GET") && line.contains("/base/blobs/")),
            )
        },
        ..ROW
    },
];

fn warm(case: &Case) -> Result<(), String> {
    let arguments = ["--image=BASE", "--cache-dir=warm"].map(|argument| case.filled(argument));
    let ended = case.run("warmer", &arguments, &[])?;
    case.registry.clear_log();
    that(&ended.text(), ended.success())
}

/// One whole layout and nothing else.
fn layout(case: &Case, _: &Ended) -> Result<(), String> {
    let entries = fs::read_dir(case.path("warm")).map_err(|error| error.to_string())?;
    let entries: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    same("entries", &entries[..], &[case.digest("base:latest")?][..])?;
    let entry = format!("warm/{}", entries[0]);
    let index: Value =
        serde_json::from_str(&case.read(&format!("{entry}/index.json"))?).map_err(|error| error.to_string())?;
    same("digest", index["manifests"][0]["digest"].as_str(), Some(entries[0].as_str()))?;
    let manifest = case.manifest("base:latest")?;
    let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
    for blob in layers.iter().chain([&manifest["config"]]) {
        let digest = blob["digest"].as_str().unwrap_or_default();
        let path = case.path(&entry).join("blobs/sha256").join(&digest["sha256:".len()..]);
        let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        same("blob", image::digest(&bytes).as_str(), digest)?;
    }
    Ok(())
}
