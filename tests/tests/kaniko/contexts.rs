//! Where contexts come from.

use super::*;

pub const ROWS: &[Row] = &[
    Row {
        name: "contexts::dir-scheme",
        bare: true,
        arguments: &["--context=dir://context", "--destination=REGISTRY/out:1"],
        check: pushed,
        ..ROW
    },
    Row {
        name: "contexts::context-sub-path",
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
        name: "contexts::git",
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
        name: "contexts::bucket",
        bare: true,
        arguments: &["--bucket=name", "--destination=REGISTRY/out:1"],
        code: 1,
        environment: &[("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")],
        says: &["gs://name/context.tar.gz"],
        ..ROW
    },
    Row {
        name: "contexts::context-in-a-tar",
        bare: true,
        arguments: &["--context=tar://DIR/context.tar.gz", "--destination=REGISTRY/out:1"],
        prepare: |case| pack(case, "context"),
        check: pushed,
        ..ROW
    },
    Row {
        name: "contexts::part-of-a-tar",
        bare: true,
        arguments: &["--context=tar://context.tar.gz", "--context-sub-path=context", "--destination=REGISTRY/out:1"],
        prepare: |case| pack(case, "."),
        check: pushed,
        ..ROW
    },
    Row {
        name: "contexts::ignore-file-in-a-tar",
        bare: true,
        arguments: &["--context=tar://context.tar.gz", "--destination=REGISTRY/out:1"],
        prepare: |case| {
            case.write("context/Dockerfile", "FROM scratch\nCOPY . /\n")?;
            case.write("context/.dockerignore", "two\nDockerfile\n.dockerignore\n")?;
            pack(case, "context")
        },
        check: |case, _| same("files", case.files("out:1")?, vec![vec!["one".to_owned()]]),
        ..ROW
    },
    Row {
        name: "contexts::tar-that-is-none",
        bare: true,
        arguments: &["--context=tar://context/one", "--destination=REGISTRY/out:1"],
        code: 1,
        says: &["error building image: ", "context/one` is no archive"],
        ..ROW
    },
    Row {
        name: "contexts::tar-with-a-link-that-leads-out",
        bare: true,
        arguments: &["--context=tar://c.tar", "--destination=REGISTRY/out:1"],
        prepare: |case| {
            let entries = [("link", tar::EntryType::Symlink, "../../../.."), ("link/x", tar::EntryType::Regular, "x")];
            troubles::archive(case, &entries)
        },
        check: |case, _| {
            // What a chroot would make of it, and nothing else.
            let expected = ["Dockerfile", "link", "x"].map(str::to_owned).to_vec();
            same("files", case.files("out:1")?, vec![expected])
        },
        ..ROW
    },
    Row {
        name: "contexts::tar-from-nowhere",
        bare: true,
        arguments: &["--context=tar://stdin", "--destination=REGISTRY/out:1"],
        code: 1,
        says: &["error resolving source context: ", "docker run -i"],
        ..ROW
    },
    Row {
        name: "contexts::tar-that-is-cut",
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
        name: "contexts::git-without-path",
        bare: true,
        arguments: &["--context=git://github.com", "--destination=REGISTRY/out:1", "--git=branch=a,depth=1"],
        code: 1,
        says: &["it has no host and path"],
        ..ROW
    },
    Row {
        name: "contexts::git-that-is-not-there",
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
        name: "contexts::bucket-of-amazon",
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

/// Packs a directory as `context.tar.gz`.
fn pack(case: &Case, directory: &str) -> Result<(), String> {
    let mut command = Command::new("tar");
    command.args(["-czf", "context.tar.gz", "--exclude=context.tar.gz", "--exclude=executor", "--exclude=warmer"]);
    command.args(if directory == "." { ["-C", ".", "context"] } else { ["-C", directory, "."] });
    process::output(command.current_dir(case.dir.path()), LIMIT).map(drop)
}
