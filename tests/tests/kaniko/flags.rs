//! What is built: Dockerfile, arguments, labels, secrets; what has no effect any more; where state is kept.

use super::*;

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
        name: "flags::empty-arguments",
        arguments: &["", "--cache-dir", "", "--digest-file=", ""],
        check: pushed,
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
];

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
