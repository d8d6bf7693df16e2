//! What is built, what comes out, what is shown.

use super::*;

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

pub const ROWS: &[Row] = &[
    Row {
        name: "flags::nothing-but-context-and-destination",
        says: &["Pushing image to REGISTRY/out:1", "Pushed REGISTRY/out@sha256:"],
        check: pushed,
        ..ROW
    },
    Row {
        name: "flags::shorthands",
        bare: true,
        arguments: &["-cDIR/context", "-fDockerfile", "-d=REGISTRY/out:1", "-v", "error"],
        check: pushed,
        ..ROW
    },
    Row {
        name: "flags::dir-scheme",
        bare: true,
        arguments: &["--context=dir://context", "--destination=REGISTRY/out:1"],
        check: pushed,
        ..ROW
    },
    Row {
        name: "flags::dockerfile-from-context",
        arguments: &["--dockerfile=other/file"],
        prepare: other_dockerfile,
        check: |case, _| labelled(case, "from", "other"),
        ..ROW
    },
    Row {
        name: "flags::dockerfile-from-cwd-first",
        arguments: &["--dockerfile", "file"],
        prepare: |case| {
            other_dockerfile(case)?;
            case.write("file", "FROM scratch\nCOPY one /one\nLABEL from=cwd\n")
        },
        check: |case, _| labelled(case, "from", "cwd"),
        ..ROW
    },
    Row {
        name: "flags::dockerfile-of-a-url",
        arguments: &["--dockerfile", "http://REGISTRY/v2/base/blobs/FETCHED"],
        prepare: |_| Ok(()),
        code: 1,
        says: &["error resolving dockerfile path: http://REGISTRY/v2/base/blobs/FETCHED"],
        ..ROW
    },
    Row {
        name: "flags::context-sub-path",
        bare: true,
        arguments: &["--context", "DIR", "--context-sub-path", "context/sub", "--destination=REGISTRY/out:1"],
        prepare: |case| {
            case.write("context/sub/Dockerfile", "FROM scratch\nCOPY here /\n")
                .and_then(|()| case.write("context/sub/here", "x"))
        },
        check: |case, _| same("files", case.files("out:1")?, vec![vec!["here".to_owned()]]),
        ..ROW
    },
    Row {
        name: "flags::dockerignore-beside-the-dockerfile",
        prepare: |case| {
            case.write("context/Dockerfile.dockerignore", "two\n")?;
            case.write("context/Dockerfile", "FROM scratch\nCOPY . /\n")
        },
        check: |case, _| that("two is ignored", !case.files("out:1")?.concat().contains(&"two".to_owned())),
        ..ROW
    },
    Row {
        name: "flags::build-arg",
        arguments: &["--build-arg", "A=x=y"],
        check: |case, _| environment(case, "GOT=x=y"),
        ..ROW
    },
    Row {
        name: "flags::build-arg-of-the-environment",
        arguments: &["--build-arg=A"],
        environment: &[("A", "outer")],
        check: |case, _| environment(case, "GOT=outer"),
        ..ROW
    },
    Row {
        name: "flags::build-arg-that-is-not-set-is-empty",
        arguments: &["--build-arg", "A"],
        check: |case, _| environment(case, "GOT="),
        ..ROW
    },
    Row {
        name: "flags::target",
        arguments: &["--target=FIRST"],
        check: |case, _| that("one stage", !case.files("out:1")?.concat().contains(&"two".to_owned())),
        ..ROW
    },
    Row {
        name: "flags::several-targets-push-the-first",
        arguments: &["--target", "first,second"],
        check: |case, _| that("the first stage", !case.files("out:1")?.concat().contains(&"two".to_owned())),
        ..ROW
    },
    Row {
        name: "flags::custom-platform",
        arguments: &["--custom-platform=linux/arm/v6:1.2"],
        dockerfile: "FROM scratch\nARG TARGETVARIANT\nENV GOT=$TARGETVARIANT\n",
        check: platform,
        ..ROW
    },
    Row {
        name: "flags::customPlatform",
        arguments: &["--customPlatform=linux/arm/v6:1.2"],
        dockerfile: "FROM scratch\nARG TARGETVARIANT\nENV GOT=$TARGETVARIANT\n",
        says: &["Flag --customPlatform is deprecated. Use: --custom-platform"],
        check: platform,
        ..ROW
    },
    Row {
        name: "flags::label",
        arguments: &["--label", "from=line", "--label=a=b=c"],
        check: |case, _| {
            labelled(case, "from", "line")?;
            labelled(case, "a", "b=c")
        },
        ..ROW
    },
    Row {
        name: "flags::annotation",
        arguments: &["--annotation", "a=b", "--annotation=a=c"],
        check: |case, _| same("annotation", case.manifest("out:1")?["annotations"]["a"].as_str(), Some("c")),
        ..ROW
    },
    Row {
        name: "flags::secret",
        arguments: &[
            "--secret",
            "id=file,src=DIR/secret",
            "--secret=id=var,env=VARIABLE",
            "--secret",
            "id=typed,type=env,src=VARIABLE",
        ],
        environment: &[("VARIABLE", "v")],
        dockerfile: "FROM BASE\nRUN --mount=type=secret,id=file --mount=type=secret,id=var --mount=type=secret,id=typed cat /run/secrets/file /run/secrets/var /run/secrets/typed > /got && test \"$(cat /got)\" = svv\n",
        prepare: |case| case.write("secret", "s"),
        check: pushed,
        ..ROW
    },
    Row {
        name: "flags::git",
        arguments: &[
            "--git",
            "branch=main",
            "--git=single-branch=true",
            "--git=depth=1",
            "--git=recurse-submodules=false",
            "--git=unknown=x",
        ],
        check: pushed,
        ..ROW
    },
    Row {
        name: "flags::no-push",
        arguments: &["--no-push", "--digest-file", "digest"],
        says: &["Skipping push to container registry due to --no-push flag"],
        check: not_pushed,
        ..ROW
    },
    Row {
        name: "flags::no-push-by-variable",
        arguments: &["--digest-file=digest"],
        environment: &[("KANIKO_NO_PUSH", "T")],
        check: not_pushed,
        ..ROW
    },
    Row {
        name: "flags::the-variable-wins",
        arguments: &["--no-push=true"],
        environment: &[("KANIKO_NO_PUSH", "0")],
        check: pushed,
        ..ROW
    },
    Row {
        name: "flags::digest-and-name-files",
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
        name: "flags::files-are-written-before-the-push",
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
        name: "flags::builder-output",
        environment: &[("BUILDER_OUTPUT", "DIR/output")],
        check: builder_output,
        ..ROW
    },
    Row {
        name: "flags::builder-output-only-after-a-push",
        arguments: &["--no-push"],
        environment: &[("BUILDER_OUTPUT", "DIR/output")],
        check: |case, _| that("there is no file", !case.path("output/images").exists()),
        ..ROW
    },
    Row {
        name: "flags::report-as",
        arguments: &["--report-as", "REGISTRY=pull.example:30500/x", "--image-name-tag-with-digest-file=tags"],
        check: |case, _| {
            same("name", case.read("tags")?, format!("pull.example:30500/x/out:1@{}\n", case.digest("out:1")?))
        },
        ..ROW
    },
    Row {
        name: "flags::report-as-by-variable",
        arguments: &["--image-name-with-digest-file=names"],
        environment: &[("SLIPWAY_REPORT_AS", "REGISTRY=pull.example")],
        check: |case, _| same("name", case.read("names")?, format!("pull.example/out@{}\n", case.digest("out:1")?)),
        ..ROW
    },
    Row {
        name: "flags::tar-path",
        arguments: &["--no-push", "--tar-path", "image.tar"],
        check: |case, _| docker_tar(case, &case.filled("REGISTRY/out:1")),
        ..ROW
    },
    Row {
        name: "flags::tarPath",
        arguments: &["--no-push", "--tarPath=image.tar"],
        check: |case, _| docker_tar(case, &case.filled("REGISTRY/out:1")),
        ..ROW
    },
    Row {
        name: "flags::tar-without-destination",
        bare: true,
        arguments: &["--context=context", "--no-push", "--tar-path=image.tar"],
        check: |case, _| docker_tar(case, "docker.io/unset-repo/unset-image-name:latest"),
        ..ROW
    },
    Row {
        name: "flags::oci-layout-path",
        arguments: &["--oci-layout-path=layout"],
        prepare: |case| {
            case.write("layout/index.json", r#"{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad","size":1}]}"#).and_then(|()| case.write("layout/mine", ""))
        },
        check: layout,
        ..ROW
    },
    Row {
        name: "flags::format-of-the-base",
        check: |case, _| same("type", case.manifest("out:1")?["mediaType"].as_str(), Some(image::MANIFEST)),
        ..ROW
    },
    Row {
        name: "flags::format-of-scratch",
        dockerfile: "FROM scratch\nCOPY one /\n",
        check: |case, _| same("type", case.manifest("out:1")?["mediaType"].as_str(), Some(DOCKER)),
        ..ROW
    },
    Row {
        name: "flags::image-format-docker",
        arguments: &["--image-format=docker"],
        check: |case, _| same("type", case.manifest("out:1")?["mediaType"].as_str(), Some(DOCKER)),
        ..ROW
    },
    Row {
        name: "flags::image-format-oci",
        arguments: &["--image-format", "oci"],
        dockerfile: "FROM scratch\nCOPY one /\n",
        check: |case, _| same("type", case.manifest("out:1")?["mediaType"].as_str(), Some(image::MANIFEST)),
        ..ROW
    },
    Row {
        name: "flags::compression-zstd",
        arguments: &["--compression=zstd", "--compression-level", "5"],
        check: |case, _| layer_types(case, "zstd"),
        ..ROW
    },
    Row {
        name: "flags::compression-zstd-of-docker",
        arguments: &["--compression=zstd"],
        dockerfile: "FROM scratch\nCOPY one /\n",
        says: &["layers are compressed with gzip"],
        check: |case, _| layer_types(case, "gzip"),
        ..ROW
    },
    Row {
        name: "flags::compression-gzip",
        arguments: &["--compression", "gzip", "--compression-level=9", "--compressed-caching=false"],
        check: |case, _| layer_types(case, "gzip"),
        ..ROW
    },
    Row {
        name: "flags::reproducible",
        arguments: &["--reproducible", "--destination=REGISTRY/again:1"],
        check: reproducible,
        ..ROW
    },
    Row {
        name: "flags::what-has-no-effect",
        arguments: &[
            "--force",
            "--cleanup",
            "--pre-cleanup",
            "--preserve-context",
            "--materialize",
            "--snapshot-mode=redo",
            "--use-new-run",
            "--force-build-metadata",
            "--skip-unused-stages",
            "--ignore-var-run=false",
            "--compressed-caching",
        ],
        check: pushed,
        ..ROW
    },
    Row {
        name: "flags::old-spellings",
        arguments: &["--snapshotMode=time", "--whitelist-var-run"],
        says: &["Flag --snapshotMode is deprecated. Use: --snapshot-mode"],
        check: pushed,
        ..ROW
    },
    Row {
        name: "flags::kaniko-dir",
        arguments: &["--kaniko-dir=elsewhere"],
        check: |case, _| {
            that(
                "state is there and nowhere else",
                case.path("elsewhere/slipway").is_dir() && !case.path("kaniko").exists(),
            )
        },
        ..ROW
    },
    Row {
        name: "flags::kaniko-dir-by-variable",
        check: |case, _| that("state is there", case.path("kaniko/slipway").is_dir()),
        ..ROW
    },
    Row {
        name: "flags::dryrun",
        arguments: &["--dryrun"],
        check: |case, ended| {
            that("the plan is shown", ended.result().contains("COPY one /one"))?;
            that(
                "nothing is pushed",
                case.registry.manifest("out", "1").is_none()
                    && !case.registry.lines().iter().any(|line| line.starts_with("POST")),
            )
        },
        ..ROW
    },
    Row {
        name: "flags::print-plan",
        environment: &[("KANIKO_PRINT_PLAN", "true")],
        check: |case, ended| {
            that("the plan is shown", ended.result().contains("COPY one /one"))?;
            pushed(case, ended)
        },
        ..ROW
    },
    Row {
        name: "flags::verbosity",
        arguments: &["--verbosity=ERROR"],
        check: |_, ended| same("standard error", plain(&ended.stderr), String::new()),
        ..ROW
    },
    Row {
        name: "flags::log-format-text",
        arguments: &["--log-format=text"],
        check: |_, ended| {
            all_lines(ended, |line| line.starts_with("time=\"20") && line.contains("Z\" level=info msg="))
        },
        ..ROW
    },
    Row {
        name: "flags::log-format-json",
        arguments: &["--log-format", "json"],
        check: |_, ended| {
            all_lines(ended, |line| line.starts_with("{\"level\":\"info\",\"msg\":\"") && line.ends_with("Z\"}"))
        },
        ..ROW
    },
    Row {
        name: "flags::log-format-color",
        check: |_, ended| all_lines(ended, |line| line.starts_with("\u{1b}[36mINFO\u{1b}[0m[0") && line.ends_with(' ')),
        ..ROW
    },
    Row {
        name: "flags::log-timestamp",
        arguments: &["--log-timestamp"],
        check: |_, ended| {
            all_lines(ended, |line| line.starts_with("\u{1b}[36mINFO\u{1b}[0m[20") && line.contains("Z] "))
        },
        ..ROW
    },
    Row {
        name: "flags::output-of-commands",
        dockerfile: "FROM BASE\nRUN echo out; echo err >&2\n",
        arguments: &["--log-format=json"],
        check: |_, ended| {
            same("standard output", ended.result(), "out".to_owned())?;
            that("standard error is raw", plain(&ended.stderr).lines().any(|line| line == "err"))
        },
        ..ROW
    },
    Row {
        name: "flags::features",
        environment: &[
            ("FF_KANIKO_COPY_AS_ROOT", "true"),
            ("FF_KANIKO_OCI_WARMER", "false"),
            ("FF_KANIKO_NONSENSE", "1"),
        ],
        says: &[
            "feature flag FF_KANIKO_COPY_AS_ROOT is active",
            "feature flag FF_KANIKO_OCI_WARMER cannot be switched off",
            "unknown feature flag FF_KANIKO_NONSENSE",
        ],
        check: pushed,
        ..ROW
    },
    Row {
        name: "flags::empty-arguments",
        arguments: &["", "--cache-dir", "", "--digest-file=", ""],
        check: pushed,
        ..ROW
    },
    Row {
        name: "flags::exit-code-of-a-run",
        dockerfile: "FROM BASE\nRUN exit 42\n",
        code: 42,
        says: &["error building image: ", "context/Dockerfile:2: "],
        ..ROW
    },
    Row {
        name: "flags::exit-code-of-a-missing-program",
        dockerfile: "FROM BASE\nRUN [\"/nowhere\"]\n",
        code: 1,
        ..ROW
    },
    Row {
        name: "flags::version",
        bare: true,
        arguments: &["version"],
        check: |_, ended| that("two blanks", String::from_utf8_lossy(&ended.stdout).starts_with("Kaniko version :  ")),
        ..ROW
    },
    Row {
        name: "flags::help",
        bare: true,
        arguments: &["--help"],
        check: |_, ended| that("usage", ended.result().contains("\nUsage:\n  executor [flags]")),
        ..ROW
    },
    Row {
        name: "flags::bucket",
        bare: true,
        arguments: &["--bucket=name", "--destination=REGISTRY/out:1"],
        code: 1,
        environment: &[("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")],
        says: &["gs://name/context.tar.gz"],
        ..ROW
    },
    Row {
        name: "flags::ignore-path",
        arguments: &["--ignore-path", "/out/*.log", "--ignore-path=/dev/x"],
        dockerfile: "FROM BASE\nRUN mkdir -p /out /var/run/x && echo 1 > /out/a.log && echo 2 > /out/b && echo 3 > /var/run/x/y\n",
        check: |case, _| {
            let names = case.files("out:1")?.concat();
            that(
                &format!("{names:?}"),
                names.contains(&"out/b".to_owned())
                    && !names.iter().any(|name| name.ends_with(".log") || name.starts_with("var/run")),
            )
        },
        ..ROW
    },
    Row {
        name: "flags::ignore-var-run-off",
        arguments: &["--ignore-var-run=false"],
        dockerfile: "FROM BASE\nRUN mkdir -p /var/run/x && echo 3 > /var/run/x/y\n",
        check: |case, _| that("it is there", case.files("out:1")?.concat().contains(&"var/run/x/y".to_owned())),
        ..ROW
    },
    Row {
        name: "flags::cache",
        arguments: &["--cache", "--cache-copy-layers", "--no-push-cache=false"],
        says: &[
            "Checking for cached layer REGISTRY/out/cache...",
            "No cached layer found for cmd COPY one /one",
            "Pushing layer REGISTRY/out/cache:",
        ],
        check: |case, _| {
            again_from_cache(case, &["--cache", "--cache-copy-layers"], "Using caching version of cmd: COPY one /one")
        },
        ..ROW
    },
    Row {
        name: "flags::cache-repo",
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
        name: "flags::cache-repo-of-a-layout",
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
        name: "flags::cache-copy-layers-is-off",
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
        name: "flags::cache-run-layers",
        arguments: &["--cache"],
        dockerfile: "FROM BASE\nRUN echo 1 > /x\n",
        says: &["Pushing layer REGISTRY/out/cache:"],
        check: |case, _| again_from_cache(case, &["--cache"], "Using caching version of cmd: RUN echo 1 > /x"),
        ..ROW
    },
    Row {
        name: "flags::cache-run-layers-off",
        arguments: &["--cache", "--cache-run-layers=false"],
        dockerfile: "FROM BASE\nRUN echo 1 > /x\n",
        check: |_, ended| that("nothing is put", !plain(&ended.stderr).contains("Pushing layer")),
        ..ROW
    },
    Row {
        name: "flags::no-push-cache",
        arguments: &["--cache", "--no-push-cache"],
        dockerfile: "FROM BASE\nRUN echo 1 > /x\n",
        check: |_, ended| that("nothing is put", !plain(&ended.stderr).contains("Pushing layer")),
        ..ROW
    },
    Row {
        name: "flags::a-cache-that-refuses-is-a-warning",
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
        name: "flags::the-cache-is-checked-when-nothing-is-pushed",
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
    Row {
        name: "flags::context-in-a-tar",
        bare: true,
        arguments: &["--context=tar://DIR/context.tar.gz", "--destination=REGISTRY/out:1"],
        prepare: |case| pack(case, "context"),
        check: pushed,
        ..ROW
    },
    Row {
        name: "flags::part-of-a-tar",
        bare: true,
        arguments: &["--context=tar://context.tar.gz", "--context-sub-path=context", "--destination=REGISTRY/out:1"],
        prepare: |case| pack(case, "."),
        check: pushed,
        ..ROW
    },
    Row {
        name: "flags::tar-from-nowhere",
        bare: true,
        arguments: &["--context=tar://stdin", "--destination=REGISTRY/out:1"],
        code: 1,
        says: &["error resolving source context: ", "docker run -i"],
        ..ROW
    },
    Row {
        name: "flags::tar-that-is-cut",
        bare: true,
        arguments: &["--context=tar://context.tar.gz", "--destination=REGISTRY/out:1"],
        prepare: |case| {
            pack(case, "context")?;
            let path = case.path("context.tar.gz");
            let bytes = fs::read(&path).map_err(|error| error.to_string())?;
            fs::write(path, &bytes[..bytes.len() / 2]).map_err(|error| error.to_string())
        },
        code: 1,
        says: &["error building image: "],
        ..ROW
    },
    Row {
        name: "flags::git-without-path",
        bare: true,
        arguments: &["--context=git://github.com", "--destination=REGISTRY/out:1", "--git=branch=a,depth=1"],
        code: 1,
        says: &["it has no host and path"],
        ..ROW
    },
    Row {
        name: "flags::git-that-is-not-there",
        bare: true,
        arguments: &[
            "--context=git://127.0.0.1:1/a/b.git#refs/heads/main",
            "--destination=REGISTRY/out:1",
            "--image-download-retry=0",
        ],
        environment: &[("GIT_PULL_METHOD", "http")],
        code: 1,
        says: &["error building image: ", "127.0.0.1:1"],
        ..ROW
    },
    Row {
        name: "flags::bucket-of-amazon",
        bare: true,
        arguments: &["--context=s3://bucket/context.tar.gz", "--destination=REGISTRY/out:1"],
        environment: &[
            ("S3_ENDPOINT", "http://127.0.0.1:1"),
            ("S3_FORCE_PATH_STYLE", "true"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
            ("AWS_REGION", "us-east-1"),
        ],
        code: 1,
        says: &["s3://bucket/context.tar.gz"],
        ..ROW
    },
];

fn pushed(case: &Case, _: &Ended) -> Result<(), String> {
    case.manifest("out:1").map(drop)
}

fn not_pushed(case: &Case, _: &Ended) -> Result<(), String> {
    that("nothing is pushed", case.registry.manifest("out", "1").is_none())?;
    that("nothing is begun", !case.registry.lines().iter().any(|line| line.starts_with("POST")))?;
    same("length of the digest", case.read("digest")?.len(), 71)
}

fn other_dockerfile(case: &Case) -> Result<(), String> {
    case.write("context/other/file", "FROM scratch\nCOPY one /one\nLABEL from=other\n")
}

fn labelled(case: &Case, name: &str, value: &str) -> Result<(), String> {
    same("label", case.config("out:1")?["config"]["Labels"][name].as_str(), Some(value))
}

fn environment(case: &Case, item: &str) -> Result<(), String> {
    let config = case.config("out:1")?;
    let all = config["config"]["Env"].as_array().cloned().unwrap_or_default();
    that(&format!("{item} in {all:?}"), all.contains(&json!(item)))
}

fn platform(case: &Case, _: &Ended) -> Result<(), String> {
    let config = case.config("out:1")?;
    let found = ["os", "architecture", "variant", "os.version"].map(|key| config[key].as_str().unwrap_or_default());
    same("platform", found, ["linux", "arm", "v6", "1.2"])?;
    environment(case, "GOT=v6")
}

fn digest_files(case: &Case, _: &Ended) -> Result<(), String> {
    let (digest, host) = (case.digest("out:1")?, case.registry.host());
    same("digest", case.read("deep/er/digest")?, digest.clone())?;
    same("names", case.read("names")?, format!("{host}/out@{digest}\n{host}/second/name@{digest}\n"))?;
    same("tags", case.read("tags")?, format!("{host}/out:1@{digest}\n{host}/second/name:latest@{digest}\n"))?;
    same("the second destination", case.digest("second/name:latest")?, digest)
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

fn all_lines(ended: &Ended, matches: impl Fn(&str) -> bool) -> Result<(), String> {
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    that("there is a log", text.lines().count() > 3)?;
    match text.lines().find(|line| !matches(line)) {
        Some(line) => Err(format!("an odd line: {line:?}")),
        None => Ok(()),
    }
}

/// A second build in an empty work directory takes its steps from the cache.
fn again_from_cache(case: &Case, arguments: &[&str], says: &str) -> Result<(), String> {
    case.registry.clear_log();
    let fixed =
        ["--context=context", "--destination=REGISTRY/out:1", "--kaniko-dir=empty", "--skip-push-permission-check"];
    let arguments: Vec<String> = fixed.iter().chain(arguments).map(|argument| case.filled(argument)).collect();
    let first = case.manifest("out:1")?["layers"].clone();
    let ended = case.run("executor", &arguments, &[])?;
    that(&ended.text(), ended.success() && plain(&ended.stderr).contains(says))?;
    let lines = case.registry.lines();
    that(
        &format!("no layer of the base is fetched: {lines:#?}"),
        lines.iter().filter(|line| line.starts_with("GET") && line.contains("/base/blobs/")).count() < 2,
    )?;
    same("layers", case.manifest("out:1")?["layers"].clone(), first)
}

/// Packs a directory as `context.tar.gz`.
fn pack(case: &Case, directory: &str) -> Result<(), String> {
    let mut command = Command::new("tar");
    command.args(["-czf", "context.tar.gz", "--exclude=context.tar.gz", "--exclude=executor", "--exclude=warmer"]);
    command.args(if directory == "." { ["-C", ".", "context"] } else { ["-C", directory, "."] });
    process::output(command.current_dir(case.dir.path()), LIMIT).map(drop)
}
