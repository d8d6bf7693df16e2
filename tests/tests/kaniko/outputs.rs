//! What comes out: images, files that wrappers read, formats, compression.

use super::*;

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

pub const ROWS: &[Row] = &[
    Row {
        name: "outputs::no-push",
        arguments: &["--no-push", "--digest-file", "digest"],
        says: &["Skipping push to container registry due to --no-push flag"],
        check: not_pushed,
        ..ROW
    },
    Row {
        name: "outputs::no-push-by-variable",
        arguments: &["--digest-file=digest"],
        environment: &[("KANIKO_NO_PUSH", "T")],
        check: not_pushed,
        ..ROW
    },
    Row {
        name: "outputs::the-variable-wins",
        arguments: &["--no-push=true"],
        environment: &[("KANIKO_NO_PUSH", "0")],
        check: pushed,
        ..ROW
    },
    Row {
        name: "outputs::digest-and-name-files",
        arguments: &[
            "--destination=REGISTRY/second/name",
            "--digest-file=deep/er/digest",
            "--image-name-with-digest-file",
            "names",
            "--image-name-tag-with-digest-file=tags",
        ],
        check: digest_files,
        ..ROW
    },
    Row {
        name: "outputs::digest-and-name-files-by-https",
        arguments: &["--digest-file=PUTS/digest", "--image-name-with-digest-file=PUTS/names"],
        environment: &[("SSL_CERT_FILE", "CA_FILE")],
        puts: true,
        check: put,
        ..ROW
    },
    Row {
        name: "outputs::a-server-that-refuses-the-digest",
        arguments: &["--no-push", "--digest-file=PUTS/refused"],
        environment: &[("SSL_CERT_FILE", "CA_FILE")],
        puts: true,
        code: 1,
        says: &["writing --digest-file: ", "PUTS/refused", "403"],
        ..ROW
    },
    Row {
        name: "outputs::a-server-that-nobody-vouches-for",
        arguments: &["--no-push", "--digest-file=PUTS/digest"],
        puts: true,
        code: 1,
        says: &["writing --digest-file: ", "certificate"],
        check: |case, _| that("nothing is sent", case.puts.as_ref().is_some_and(|puts| puts.taken("digest").is_err())),
        ..ROW
    },
    Row {
        name: "outputs::files-are-written-before-the-push",
        arguments: &["--skip-push-permission-check", "--digest-file=digest"],
        prepare: |case| {
            case.registry.fault(fixtures::registry::Fault::always(
                "PUT",
                "/manifests/",
                fixtures::registry::Effect::status(400),
            ));
            Ok(())
        },
        code: 1,
        says: &["error pushing image: "],
        check: |case, _| same("length", case.read("digest")?.len(), 71),
        ..ROW
    },
    Row {
        name: "outputs::builder-output",
        environment: &[("BUILDER_OUTPUT", "DIR/output")],
        check: builder_output,
        ..ROW
    },
    Row {
        name: "outputs::builder-output-only-after-a-push",
        arguments: &["--no-push"],
        environment: &[("BUILDER_OUTPUT", "DIR/output")],
        check: |case, _| that("there is no file", !case.path("output/images").exists()),
        ..ROW
    },
    Row {
        name: "outputs::report-as",
        arguments: &["--report-as", "REGISTRY=pull.example:30500/x", "--image-name-tag-with-digest-file=tags"],
        check: |case, _| {
            same("name", case.read("tags")?, format!("pull.example:30500/x/out:1@{}\n", case.digest("out:1")?))
        },
        ..ROW
    },
    Row {
        name: "outputs::report-as-by-variable",
        arguments: &["--image-name-with-digest-file=names"],
        environment: &[("SLIPWAY_REPORT_AS", "REGISTRY=pull.example")],
        check: |case, _| same("name", case.read("names")?, format!("pull.example/out@{}\n", case.digest("out:1")?)),
        ..ROW
    },
    Row {
        name: "outputs::tar-path",
        arguments: &["--no-push", "--tar-path", "image.tar"],
        check: |case, _| docker_tar(case, &case.filled("REGISTRY/out:1")),
        ..ROW
    },
    Row {
        name: "outputs::tarPath",
        arguments: &["--no-push", "--tarPath=image.tar"],
        check: |case, _| docker_tar(case, &case.filled("REGISTRY/out:1")),
        ..ROW
    },
    Row {
        name: "outputs::tar-without-destination",
        bare: true,
        arguments: &["--context=context", "--no-push", "--tar-path=image.tar"],
        check: |case, _| docker_tar(case, "docker.io/unset-repo/unset-image-name:latest"),
        ..ROW
    },
    Row {
        name: "outputs::oci-layout-path",
        arguments: &["--oci-layout-path=layout"],
        prepare: |case| {
            case.write("layout/index.json", r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad","size":1}]}"#).and_then(|()| case.write("layout/mine", ""))
        },
        check: layout,
        ..ROW
    },
    Row {
        name: "outputs::format-of-the-base",
        check: |case, _| same("type", case.manifest("out:1")?["mediaType"].as_str(), Some(image::MANIFEST)),
        ..ROW
    },
    Row {
        name: "outputs::format-of-scratch",
        dockerfile: "FROM scratch\nCOPY one /\n",
        check: |case, _| same("type", case.manifest("out:1")?["mediaType"].as_str(), Some(DOCKER)),
        ..ROW
    },
    Row {
        name: "outputs::image-format-docker",
        arguments: &["--image-format=docker"],
        check: |case, _| same("type", case.manifest("out:1")?["mediaType"].as_str(), Some(DOCKER)),
        ..ROW
    },
    Row {
        name: "outputs::image-format-oci",
        arguments: &["--image-format", "oci"],
        dockerfile: "FROM scratch\nCOPY one /\n",
        check: |case, _| same("type", case.manifest("out:1")?["mediaType"].as_str(), Some(image::MANIFEST)),
        ..ROW
    },
    Row {
        name: "outputs::compression-zstd",
        arguments: &["--compression=zstd", "--compression-level", "5"],
        check: |case, _| layer_types(case, "zstd"),
        ..ROW
    },
    Row {
        name: "outputs::compression-zstd-of-docker",
        arguments: &["--compression=zstd"],
        dockerfile: "FROM scratch\nCOPY one /\n",
        says: &["layers are compressed with gzip"],
        check: |case, _| layer_types(case, "gzip"),
        ..ROW
    },
    Row {
        name: "outputs::compression-gzip",
        arguments: &["--compression", "gzip", "--compression-level=9", "--compressed-caching=false"],
        check: |case, _| layer_types(case, "gzip"),
        ..ROW
    },
    Row {
        name: "outputs::single-snapshot",
        arguments: &["--single-snapshot"],
        check: |case, _| {
            let files = case.files("out:1")?;
            same("layers", files.len(), 2)?;
            same("files", files[1].clone(), vec!["one".to_owned(), "two".to_owned()])?;
            let config = case.config("out:1")?;
            let full = |item: &&Value| item["empty_layer"] != Value::Bool(true);
            let items: Vec<&str> = config["history"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(full)
                .filter_map(|item| item["created_by"].as_str())
                .collect();
            same("history", items.last().is_some_and(|last| last.starts_with("COPY two /two")), true)
        },
        ..ROW
    },
    Row {
        name: "outputs::reproducible",
        arguments: &["--reproducible", "--destination=REGISTRY/again:1"],
        check: reproducible,
        ..ROW
    },
];

fn not_pushed(case: &Case, _: &Ended) -> Result<(), String> {
    that("nothing is pushed", case.registry.manifest("out", "1").is_none())?;
    that("nothing is begun", !case.registry.lines().iter().any(|line| line.starts_with("POST")))?;
    same("length of the digest", case.read("digest")?.len(), 71)
}

fn digest_files(case: &Case, _: &Ended) -> Result<(), String> {
    let (digest, host) = (case.digest("out:1")?, case.registry.host());
    same("digest", case.read("deep/er/digest")?, digest.clone())?;
    same("names", case.read("names")?, format!("{host}/out@{digest}\n{host}/second/name@{digest}\n"))?;
    same("tags", case.read("tags")?, format!("{host}/out:1@{digest}\n{host}/second/name:latest@{digest}\n"))?;
    same("the second destination", case.digest("second/name:latest")?, digest)
}

/// The same bytes as in files, without a login (Kaniko's `Content-Type`).
fn put(case: &Case, _: &Ended) -> Result<(), String> {
    let taken =
        |name| case.puts.as_ref().ok_or("there is no server")?.taken(name).map_err(|error| format!("{name}: {error}"));
    let (digest, host) = (case.digest("out:1")?, case.registry.host());
    let headers = "Content-Type: text/plain\nAuthorization: None".to_owned();
    same("digest", taken("digest")?, (digest.clone(), headers.clone()))?;
    same("names", taken("names")?, (format!("{host}/out@{digest}\n"), headers))
}

fn builder_output(case: &Case, _: &Ended) -> Result<(), String> {
    let expected = format!("{{\"name\":\"{}\",\"digest\":\"{}\"}}\n", case.name("out:1"), case.digest("out:1")?);
    same("images", case.read("output/images")?, expected)
}

/// The tar is as `docker load` of any version reads it.
fn docker_tar(case: &Case, name: &str) -> Result<(), String> {
    let tar = fs::read(case.path("image.tar")).map_err(|error| error.to_string())?;
    let names = names(&tar)?;
    same("the last entry", names.last().map(String::as_str), Some("manifest.json"))?;
    let mut archive = tar::Archive::new(&tar[..]);
    let mut documents = std::collections::BTreeMap::new();
    for entry in archive.entries().map_err(|error| error.to_string())? {
        let mut entry = entry.map_err(|error| error.to_string())?;
        same("mtime", entry.header().mtime().map_err(|error| error.to_string())?, 0)?;
        let name = entry.path().map_err(|error| error.to_string())?.display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        documents.insert(name, bytes);
    }
    let manifest: Value = serde_json::from_slice(&documents["manifest.json"]).map_err(|error| error.to_string())?;
    same("names", &manifest[0]["RepoTags"], &json!([name]))?;
    let config = manifest[0]["Config"].as_str().unwrap_or_default();
    same("config", image::digest(documents.get(config).ok_or("the config is missing")?).as_str(), config)?;
    let layers = manifest[0]["Layers"].as_array().cloned().unwrap_or_default();
    same("layers", layers.len(), 3)?;
    for layer in layers {
        let layer = layer.as_str().unwrap_or_default();
        let bytes = documents.get(layer).ok_or("a layer is missing")?;
        same("layer", format!("{}.tar.gz", &image::digest(bytes)["sha256:".len()..]).as_str(), layer)?;
    }
    Ok(())
}

fn layout(case: &Case, _: &Ended) -> Result<(), String> {
    let index: Value = serde_json::from_str(&case.read("layout/index.json")?).map_err(|error| error.to_string())?;
    same("manifests", index["manifests"].as_array().map(Vec::len), Some(1))?;
    same("digest", index["manifests"][0]["digest"].as_str(), Some(case.digest("out:1")?.as_str()))?;
    same("annotations", &index["manifests"][0]["annotations"], &Value::Null)?;
    same("oci-layout", case.read("layout/oci-layout")?, r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned())?;
    that("what was there stays", case.path("layout/mine").exists())
}

fn layer_types(case: &Case, word: &str) -> Result<(), String> {
    let manifest = case.manifest("out:1")?;
    let last = manifest["layers"].as_array().and_then(|layers| layers.last()).cloned().unwrap_or_default();
    that(&format!("{last} is {word}"), last["mediaType"].as_str().is_some_and(|kind| kind.ends_with(word)))?;
    case.files("out:1").map(drop)
}

/// A second build of the same with other times gives the same digest.
fn reproducible(case: &Case, _: &Ended) -> Result<(), String> {
    let first = case.digest("again:1")?;
    for name in ["one", "two", "Dockerfile"] {
        let path = case.path("context").join(name);
        let file = fs::File::options().write(true).open(&path).map_err(|error| error.to_string())?;
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
        file.set_times(fs::FileTimes::new().set_modified(time)).map_err(|error| error.to_string())?;
    }
    let arguments = ["-c", "context", "-d", "REGISTRY/later:1", "--reproducible", "--kaniko-dir=other"];
    let arguments = arguments.map(|argument| case.filled(argument));
    let ended = case.run("executor", &arguments, &[])?;
    that(&ended.text(), ended.success())?;
    same("digest", case.digest("later:1")?, first)?;
    let config = case.config("later:1")?;
    same("created", config["created"].as_str(), Some("1970-01-01T00:00:00Z"))
}
