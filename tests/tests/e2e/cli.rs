//! What flags of the command line put into an image or on a screen.

use super::*;

pub const TRIALS: &[Row] = &[
    ("cli::annotations-of-every-level [X-09]", annotations),
    ("cli::check-as-text-and-json [L-00 L-19]", check),
    ("cli::arguments-that-nothing-reads [A-12]", unconsumed),
    ("cli::completions-and-manual-pages", packaging),
    ("cli::what-docker-and-scripts-say", as_docker),
    ("cli::comments-in-latin-1", latin),
    ("cli::targets-and-what-they-take [S-10]", calls),
    ("cli::sources-that-are-mistyped [C-09]", mistyped),
];

fn annotations(place: &Place) -> Outcome {
    let project = place.project("FROM scratch\nCOPY Dockerfile /\n")?;
    let document = |digest: &Value| {
        let hex = digest.as_str().unwrap_or_default().trim_start_matches("sha256:").to_owned();
        read_json(&project.path("out/blobs/sha256").join(hex))
    };
    let platform = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
    let limited = format!("manifest[{platform}]:p=5");
    let flags = ["a=1", "index,manifest-descriptor:b=2", "index-descriptor:c=3", "manifest:urn:d=4", &limited];
    let mut arguments = vec!["-o", "type=oci,dest=out,tar=false,annotation.a=own"];
    arguments.extend(["--build-arg", "BUILDKIT_MULTI_PLATFORM=1"]);
    arguments.extend(flags.iter().flat_map(|flag| ["--annotation", flag]));
    project.built(&arguments)?;
    let layout = read_json(&project.path("out/index.json"))?;
    let entry = &layout["manifests"][0];
    same("index descriptor", entry["annotations"]["c"].as_str(), Some("3"))?;
    let index = document(&entry["digest"])?;
    same("index", &index["annotations"], &json!({"b": "2"}))?;
    same("manifest descriptor", &index["manifests"][0]["annotations"], &json!({"b": "2"}))?;
    let manifest = document(&index["manifests"][0]["digest"])?;
    // As BuildKit: --annotation counts before what an output says itself.
    same("manifest", &manifest["annotations"], &json!({"a": "1", "urn:d": "4", "p": "5"}))?;
    for (flag, code, words) in [
        ("index:a=1", 3, "index annotations not supported for single platform export"),
        ("manifest[linux/s390x]:a=1", 3, "invalid annotation: no platform linux/s390x found in source"),
        ("idnex:a=1", 2, "unknown annotation type `idnex`"),
        ("a", 2, "expected key=value"),
    ] {
        expect(project.build(&["--annotation", flag, "-o", "type=oci,dest=x"])?, code, &[words])?;
    }
    Ok(None)
}

fn check(place: &Place) -> Outcome {
    let project = place.project("FROM scratch AS Up\nMAINTAINER me\nENV KEY_ID 1\nCOPY a /\nCOPY --from=9 a /\n")?;
    let json = expect(project.build(&["--check", "--progress", "json"])?, 3, &["invalid stage index 9"])?;
    let found: Value = serde_json::from_str(&json.result()).map_err(|error| format!("{error}: {}", json.text()))?;
    let warnings = found["warnings"].as_array().map(Vec::as_slice).unwrap_or_default();
    let told: Vec<_> = warnings
        .iter()
        .map(|warning| {
            let line = &warning["location"]["ranges"][0]["start"]["line"];
            (warning["ruleName"].as_str().unwrap_or_default(), line.as_u64().unwrap_or_default())
        })
        .collect();
    // Rules that need expansion would come after what a build stops at.
    same("rules and lines", told, vec![("StageNameCasing", 1), ("MaintainerDeprecated", 2)])?;
    same("descriptions", warnings.iter().all(|warning| warning["description"].is_string()), true)?;
    let error = &found["buildError"];
    same("what a build stops at", error["message"].as_str(), Some("invalid stage index 9"))?;
    project.write("Dockerfile", "FROM scratch AS Up\nCOPY a /\n")?;
    let text = expect(project.build(&["--check"])?, 1, &[])?.result();
    for words in
        ["Check complete, 1 warning found.", "WARNING: StageNameCasing (line 1)", "   1 | >>> FROM scratch AS Up"]
    {
        same(words, text.contains(words), true).map_err(|error| format!("{error}\n{text}"))?;
    }
    project.write("Dockerfile", "FROM scratch\nCOPY a /\n")?;
    let clean = expect(project.build(&["--check"])?, 0, &[])?.result();
    same("nothing found", clean.as_str(), "Check complete, no warnings found.")?;
    Ok(None)
}

fn unconsumed(place: &Place) -> Outcome {
    let project = place.project("ARG VERSION=1\nFROM scratch\nARG VERSION\nLABEL v=$VERSION\n")?;
    let arguments = ["--build-arg", "VERSION=2", "--build-arg", "VERSIN=3", "--build-arg", "http_proxy=http://h:1"];
    expect(project.build(&arguments)?, 0, &["One or more build-args [VERSIN] were not consumed"])?;
    let fine = project.build(&arguments[..2])?;
    same("silence", fine.text().contains("not consumed"), false)?;
    Ok(None)
}

fn as_docker(place: &Place) -> Outcome {
    let project = place.project("FROM scratch\nCOPY Dockerfile /\n")?;
    let mut command = project.command(&["--progress=quiet", "--push=false", "--pull=true", "-t", "h:5000/x"]);
    // Pipelines pass on variables that they may not have.
    for name in ["BUILDKIT_PROGRESS", "SLIPWAY_JOBS", "SLIPWAY_MAX_DISK", "SLIPWAY_KEEP_LAYERS", "SLIPWAY_DIR"] {
        command.env(name, "");
    }
    let quiet = expect(process::run(&mut command, LIMIT).map_err(|error| error.to_string())?, 0, &[])?;
    same("standard error", String::from_utf8_lossy(&quiet.stderr).as_ref(), "")?;
    for (flag, words) in [
        ("--load", "type=docker,dest=-"),
        ("--memory=1g", "--max-memory"),
        ("--ssh=default", "or name a private key: `--ssh default=FILE`"),
        ("--digest-file=x", "`slipway executor` takes them all"),
    ] {
        let mut command = project.command(&[flag]);
        let ended = process::run(command.env_remove("SSH_AUTH_SOCK"), LIMIT).map_err(|error| error.to_string())?;
        expect(ended, 2, &["hint: ", words])?;
    }
    Ok(None)
}

fn latin(place: &Place) -> Outcome {
    let project = place.project("")?;
    project.write("Dockerfile", b"# Andr\xe9\nFROM scratch\nCOPY Dockerfile \\\n # \xe9t\xe9\n /\n")?;
    project.built(&[])?;
    project.write("Dockerfile", b"# Andr\xe9\nFROM scratch\nLABEL by=Andr\xe9\n")?;
    expect(project.build(&[])?, 3, &["is not UTF-8: line 3, byte 14"])?;
    Ok(None)
}

fn calls(place: &Place) -> Outcome {
    let project = place.project(
        "# VERSION is built in\nARG VERSION=1\nARG UNUSED\nFROM scratch AS Tools\nARG FAST\n\
                                 RUN --mount=type=secret,id=token,required true\n# image has all\nFROM \
                                 scratch AS image\nARG VERSION\nCOPY --from=tools / /\nFROM scratch\n",
    )?;
    let called = |call: &str, target: &str| {
        project.build(&["--call", call, "--target", target]).and_then(|ended| expect(ended, 0, &[]))
    };
    let expected = "TARGET    DESCRIPTION\ntools     \nimage     has all\n(default)";
    same("targets", called("targets", "")?.result().trim_end(), expected)?;
    let expected = "TARGET:      image\nDESCRIPTION: has all\n\nBUILD ARG   VALUE   DESCRIPTION\n\
                    VERSION     1       is built in\nFAST                \n\nSECRET   REQUIRED\ntoken    true";
    same("outline", called("outline", "image")?.result().trim_end(), expected)?;
    let json: Value = serde_json::from_str(&called("targets,format=json", "")?.result()).map_err(|e| e.to_string())?;
    same("a target", &json["targets"][1]["base"], &json!("scratch"))?;
    let json: Value =
        serde_json::from_str(&called("outline,format=json", "image")?.result()).map_err(|e| e.to_string())?;
    let line = |item: &Value| item["location"]["ranges"][0]["start"]["line"].clone();
    same("lines", [&json["args"][0], &json["args"][1], &json["secrets"][0]].map(line), [2, 5, 6].map(|n| json!(n)))?;
    expect(project.build(&["--call=outline", "--target=imag"])?, 3, &["could not be found (did you mean image?)"])?;
    expect(project.build(&["--call=check"])?, 1, &[])?;
    expect(project.build(&["--call=check,ignorestatus=true"])?, 0, &[])?;
    expect(project.build(&["--call=guess"])?, 2, &["the methods are build, check, outline and targets"])?;
    Ok(None)
}

fn mistyped(place: &Place) -> Outcome {
    let project = place.project("")?;
    project.write("requirements.txt", "r")?;
    project.write("secret.key", "k")?;
    project.write(".dockerignore", "# keys\n*.key\n")?;
    for (line, words) in [
        ("COPY requirement.txt /", "hint: did you mean `requirements.txt`?"),
        ("COPY secret.key /", "hint: line 2 (`*.key`) of the ignore file excludes it"),
        ("COPY ../other /", "hint: `..` does not lead out of the context"),
        ("COPY src/*.py /", "lstat /src: no such file or directory"),
    ] {
        project.write("Dockerfile", format!("FROM scratch\n{line}\n"))?;
        expect(project.build(&[])?, 3, &[words])?;
    }
    // Of a stage, unpacked as far as it is needed or not.
    let stage = "FROM scratch AS build\nWORKDIR /work/dir\nCOPY requirements.txt app\nFROM scratch\nCOPY --from=build";
    for (rest, words) in [
        ("app /", "begin at `/`, not at the stage's WORKDIR: write `/work/dir/app`"),
        ("/work/dir/apk /", "did you mean `work/dir/app`?"),
        ("other /", "\"/other\": not found"),
    ] {
        project.write("Dockerfile", format!("{stage} {rest}\n"))?;
        expect(project.build(&[])?, 3, &[words])?;
    }
    expect(
        project.build(&["-f", &project.path("context/Dockerfiel").display().to_string()])?,
        3,
        &["did you mean `Dockerfile`?"],
    )?;
    let mut command = Command::new(&place.binary);
    command.args(["build", "--work-dir"]).args([project.path("work"), project.path("contxt")]);
    let ended = process::run(&mut command, LIMIT).map_err(|error| error.to_string())?;
    expect(
        ended,
        3,
        &["unable to prepare context", "No such file or directory", "hint: the last argument is the context"],
    )?;
    Ok(None)
}

fn packaging(place: &Place) -> Outcome {
    let script = process::output(Command::new(&place.binary).args(["completions", "bash"]), LIMIT)?;
    process::output(Command::new("bash").args(["-n", "-c", &script]), LIMIT)?;
    same("completes", script.contains("--build-context"), true)?;
    let pages = place.shared.path().join("man/man1");
    process::output(Command::new(&place.binary).arg("man").arg(&pages), LIMIT)?;
    let page = fs::read_to_string(pages.join("slipway-build.1")).map_err(|error| error.to_string())?;
    same("a page", page.starts_with(".ie") || page.contains(".TH slipway-build 1"), true)?;
    Ok(None)
}
