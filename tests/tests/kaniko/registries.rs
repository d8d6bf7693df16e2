//! How registries are reached, and what happens when they refuse.

use std::os::unix::fs::PermissionsExt as _;

use fixtures::registry::{Effect, Fault};

use super::*;

/// What Artifact Registry says about a tag that may not change.
const IMMUTABLE: &str = "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"The repository has enabled tag immutability. Cannot move tag 1\"}]}";

const LOGIN: &str = "{\"auths\":{\"REGISTRY\":{\"auth\":\"dGVzdGVyOnNlY3JldA==\"}}}";

const HELPER: &str = "#!/bin/sh\ncase $1 in\nstore) cat > DIR/stored ;;\nget) sed s/x/x/ > DIR/asked\n  \
                      echo '{\"Username\":\"tester\",\"Secret\":\"secret\"}' ;;\nesac\n";

pub const ROWS: &[Row] = &[
    Row {
        name: "registries::permission-is-checked-before-the-build",
        prepare: deny,
        code: 1,
        says: &["error checking push permissions: ", "checking push permission for \"REGISTRY/out:1\""],
        check: |case, ended| {
            that("nothing was built", !plain(&ended.stderr).contains("COPY"))?;
            that("nothing was pulled", !case.registry.lines().iter().any(|line| line.contains("/base/blobs/")))
        },
        ..ROW
    },
    Row {
        name: "registries::each-repository-is-checked-once",
        arguments: &["--destination=REGISTRY/out:2", "--destination=REGISTRY/other:1"],
        check: |case, _| {
            let begun = case.registry.log().iter().filter(|request| request.method == "DELETE").count();
            same("uploads given up", begun, 2)
        },
        ..ROW
    },
    Row {
        name: "registries::no-check-with-skip-push-permission-check",
        arguments: &["--skip-push-permission-check"],
        check: |case, _| {
            that("nothing is given up", !case.registry.lines().iter().any(|line| line.starts_with("DELETE")))
        },
        ..ROW
    },
    Row {
        name: "registries::map",
        arguments: &["--registry-map", "a.example=REGISTRY;b.example=REGISTRY/deep"],
        dockerfile: "FROM a.example/base AS one\nFROM b.example/base\nCOPY --from=one /bin/busybox /copy\n",
        prepare: deep,
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::map-by-variable",
        environment: &[("KANIKO_REGISTRY_MAP", "a.example=REGISTRY")],
        dockerfile: "FROM a.example/base\nCOPY one /\n",
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::map-of-docker.io",
        arguments: &["--registry-map=docker.io=REGISTRY/hub"],
        dockerfile: "FROM busy\nCOPY one /\n",
        prepare: hub,
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::map-of-index.docker.io",
        arguments: &["--registry-map=index.docker.io=http://REGISTRY/hub"],
        dockerfile: "FROM docker.io/busy\nCOPY one /\n",
        prepare: hub,
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::map-is-not-for-pushes",
        arguments: &["--registry-map=REGISTRY=nowhere.invalid", "--image-download-retry=0"],
        dockerfile: "FROM scratch\nCOPY one /\n",
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::mirror",
        arguments: &["--registry-mirror", "REGISTRY/hub"],
        dockerfile: "FROM busy\nCOPY one /\n",
        prepare: hub,
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::mirror-by-variable",
        environment: &[("KANIKO_REGISTRY_MIRROR", "REGISTRY/hub")],
        dockerfile: "FROM busy\nCOPY one /\n",
        prepare: hub,
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::next-mirror-when-one-lacks-it",
        arguments: &["--registry-mirror=REGISTRY/none", "--registry-mirror=REGISTRY/hub"],
        dockerfile: "FROM busy\nCOPY one /\n",
        prepare: hub,
        check: pushed,
        ..ROW
    },
    Row { name: "registries::fallback", arguments: &["--registry-map=REGISTRY=REGISTRY/none"], check: pushed, ..ROW },
    Row {
        name: "registries::no-fallback",
        arguments: &["--registry-map=REGISTRY=REGISTRY/none", "--skip-default-registry-fallback"],
        code: 1,
        says: &["not found"],
        ..ROW
    },
    Row {
        name: "registries::push-retry",
        arguments: &["--push-retry=1"],
        prepare: |case| fault(case, Fault::once("PUT", "/out/manifests/", Effect::status(404))),
        says: &["Retrying operation after 1s"],
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::no-push-retry",
        prepare: |case| fault(case, Fault::once("PUT", "/out/manifests/", Effect::status(404))),
        code: 1,
        says: &["error pushing image: "],
        ..ROW
    },
    Row {
        name: "registries::limits-that-end",
        prepare: |case| fault(case, Fault::once("GET", "/base/manifests/", Effect::retry_after(429, 1))),
        says: &["WARN", "Retrying operation after 1s due to "],
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::image-download-retry",
        arguments: &["--image-download-retry", "5", "--image-fs-extract-retry=2"],
        prepare: |case| fault(case, Fault::always("GET", "/base/manifests/", Effect::status(503)).times(5)),
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::immutable-tag",
        arguments: &["--push-ignore-immutable-tag-errors"],
        prepare: immutable,
        says: &["stays as it is"],
        ..ROW
    },
    Row {
        name: "registries::immutable-tag-without-the-flag",
        prepare: immutable,
        code: 1,
        says: &["tag immutability"],
        ..ROW
    },
    Row {
        name: "registries::several-destinations",
        arguments: &["--destination=REGISTRY/out:2", "-dREGISTRY/a/b"],
        check: |case, _| {
            same("2", case.digest("out:2")?, case.digest("out:1")?)?;
            same("b", case.digest("a/b:latest")?, case.digest("out:1")?)
        },
        ..ROW
    },
    Row {
        name: "registries::upstream-client-type",
        environment: &[("UPSTREAM_CLIENT_TYPE", "UpstreamClient(skaffold-v2.1)")],
        check: |case, _| {
            let log = case.registry.log();
            let agents: BTreeSet<_> = log
                .iter()
                .filter(|request| request.path.contains("/out/"))
                .filter_map(|request| request.header("user-agent"))
                .collect();
            that(
                &format!("{agents:?}"),
                agents.len() == 1 && agents.iter().all(|agent| agent.ends_with(",UpstreamClient(skaffold-v2.1)")),
            )
        },
        ..ROW
    },
    Row {
        name: "registries::insecure-flags",
        arguments: &["--insecure", "--insecure-pull", "--insecure-registry=REGISTRY"],
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::credentials-of-config.json",
        login: true,
        prepare: |case| case.write("docker/config.json", case.filled(LOGIN)),
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::credentials-by-variable",
        login: true,
        environment: &[("DOCKER_AUTH_CONFIG", LOGIN)],
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::credential-helpers",
        login: true,
        arguments: &["--credential-helpers=", "--credential-helpers=nobody"],
        says: &["unknown credential helper nobody is skipped"],
        environment: &[("DOCKER_AUTH_CONFIG", LOGIN)],
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::no-credentials",
        login: true,
        code: 1,
        says: &["error checking push permissions: ", "REGISTRY"],
        ..ROW
    },
    Row {
        name: "registries::tls",
        secure: Some(TLS),
        bare: true,
        arguments: &["-c=context", "-d=SECURE/out:1", "--registry-certificate", "SECURE=CA"],
        check: in_secure,
        ..ROW
    },
    Row {
        name: "registries::tls-without-its-certificate",
        secure: Some(TLS),
        bare: true,
        arguments: &["-c=context", "-d=SECURE/out:1"],
        code: 1,
        says: &["error checking push permissions: "],
        ..ROW
    },
    Row {
        name: "registries::skip-tls-verify",
        secure: Some(TLS),
        bare: true,
        arguments: &["-c=context", "-d=SECURE/out:1", "--skip-tls-verify"],
        check: in_secure,
        ..ROW
    },
    Row {
        name: "registries::skip-tls-verify-registry",
        secure: Some(TLS),
        bare: true,
        arguments: &["-c=context", "-d=SECURE/out:1", "--skip-tls-verify-registry=SECURE"],
        check: in_secure,
        ..ROW
    },
    Row {
        name: "registries::skip-tls-verify-pull-is-not-for-pushes",
        secure: Some(TLS),
        bare: true,
        arguments: &["-c=context", "-d=SECURE/out:1", "--skip-tls-verify-pull"],
        code: 1,
        says: &["error checking push permissions: "],
        ..ROW
    },
    Row {
        name: "registries::skip-tls-verify-pull",
        secure: Some(TLS),
        bare: true,
        arguments: &["-c=context", "-d=REGISTRY/out:1", "--skip-tls-verify-pull"],
        dockerfile: "FROM SECURE/nothing\n",
        code: 1,
        says: &["SECURE/nothing:latest: not found"],
        ..ROW
    },
    Row {
        name: "registries::client-certificate",
        secure: Some(Setup { client_certificate: true, ..TLS }),
        bare: true,
        arguments: &[
            "-c=context",
            "-d=SECURE/out:1",
            "--registry-certificate=SECURE=CA",
            "--registry-client-cert",
            "SECURE=CERT,KEY",
        ],
        check: in_secure,
        ..ROW
    },
    Row {
        name: "registries::login-then-push",
        login: true,
        bare: true,
        arguments: &["login", "--username=tester", "--password", "secret", "REGISTRY"],
        says: &["docker/config.json"],
        check: |case, _| {
            let arguments = ["-c=context", "-d=REGISTRY/out:1"].map(|argument| case.filled(argument));
            let ended = case.run("executor", &arguments, &[])?;
            that(&ended.text(), ended.success())?;
            case.manifest("out:1").map(drop)
        },
        ..ROW
    },
    Row {
        name: "registries::login-with-a-helper",
        bare: true,
        arguments: &["login", "registry.example", "-u", "tester", "-psecret"],
        environment: &[("PATH", "DIR/bin:/usr/bin:/bin")],
        prepare: |case| {
            helper(case)?;
            case.write("docker/config.json", "{\"credsStore\":\"test\"}")
        },
        check: |case, _| {
            let stored: Value = serde_json::from_str(&case.read("stored")?).map_err(|error| error.to_string())?;
            same("stored", stored, json!({"ServerURL": "registry.example", "Username": "tester", "Secret": "secret"}))
        },
        ..ROW
    },
    Row {
        name: "registries::credentials-of-a-helper",
        login: true,
        environment: &[("PATH", "DIR/bin:/usr/bin:/bin")],
        prepare: |case| {
            helper(case)?;
            case.write(
                "docker/config.json",
                case.filled("{\"credHelpers\":{\"REGISTRY\":\"test\",\"other.example\":\"missing\"}}"),
            )
        },
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::credentials-of-podman",
        login: true,
        environment: &[("XDG_CONFIG_HOME", "DIR/settings")],
        prepare: |case| {
            let text = case.filled("{\"auths\":{\"REGISTRY\":{\"username\":\"tester\",\"password\":\"secret\"}}}");
            case.write("settings/containers/auth.json", text)
        },
        check: pushed,
        ..ROW
    },
    Row {
        name: "registries::login-needs-one-password",
        bare: true,
        arguments: &["login", "registry.example", "-u=tester", "--password=x", "--password-stdin"],
        code: 1,
        says: &["Error: --password and --password-stdin are mutually exclusive", "Usage:"],
        ..ROW
    },
    Row {
        name: "registries::push-of-a-tar",
        bare: true,
        arguments: &["push", "DIR/image.tar", "-d", "REGISTRY/saved:1", "--digest-file=digest"],
        prepare: |case| save(case, "--tar-path=image.tar"),
        check: saved,
        ..ROW
    },
    Row {
        name: "registries::push-of-a-layout",
        bare: true,
        arguments: &[
            "push",
            "layout",
            "--destination=REGISTRY/saved:1",
            "--digest-file=digest",
            "--skip-push-permission-check",
        ],
        prepare: |case| save(case, "--oci-layout-path=layout"),
        check: saved,
        ..ROW
    },
    Row {
        name: "registries::push-of-nothing",
        bare: true,
        arguments: &["push", "context", "-d=REGISTRY/saved:1"],
        code: 1,
        says: &["error loading image: ", "neither an image as `docker save` writes it nor an OCI layout"],
        ..ROW
    },
    Row {
        name: "registries::push-to-nowhere",
        bare: true,
        arguments: &["push", "context"],
        code: 1,
        says: &["Error: you must provide --destination"],
        ..ROW
    },
];

const TLS: Setup = Setup { login: false, tls: true, client_certificate: false };

fn pushed(case: &Case, _: &Ended) -> Result<(), String> {
    case.manifest("out:1").map(drop)
}

fn fault(case: &Case, fault: Fault) -> Result<(), String> {
    case.registry.fault(fault);
    Ok(())
}

fn deny(case: &Case) -> Result<(), String> {
    fault(case, Fault::always("POST", "/out/blobs/uploads/", Effect::status(403)))
}

fn immutable(case: &Case) -> Result<(), String> {
    let effect = Effect::Status { code: 400, headers: Vec::new(), body: IMMUTABLE.to_owned() };
    fault(case, Fault::always("PUT", "/out/manifests/", effect))
}

/// The base once more under other names.
fn again(case: &Case, repository: &str) -> Result<(), String> {
    let manifest = case.manifest("base:latest")?;
    let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
    for blob in layers.iter().chain([&manifest["config"]]) {
        let digest = blob["digest"].as_str().unwrap_or_default();
        let bytes = case.registry.blob("base", digest).ok_or("the base has its blobs")?;
        case.registry.put_blob(repository, &bytes);
    }
    let (media_type, bytes) = case.registry.manifest("base", "latest").ok_or("the base is there")?;
    case.registry.put_manifest(repository, "latest", &media_type, &bytes);
    Ok(())
}

fn hub(case: &Case) -> Result<(), String> {
    again(case, "hub/library/busy")
}

fn deep(case: &Case) -> Result<(), String> {
    again(case, "deep/base")
}

fn helper(case: &Case) -> Result<(), String> {
    let path = "bin/docker-credential-test";
    case.write(path, case.filled(HELPER))?;
    fs::set_permissions(case.path(path), fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())
}

fn in_secure(case: &Case, _: &Ended) -> Result<(), String> {
    let secure = case.secure.as_ref().ok_or("there is a second registry")?;
    let mut command = Command::new("skopeo");
    command.args(["inspect", "--raw", "--tls-verify=false"]);
    command.arg(format!("docker://{}/out:1", secure.host()));
    if process::find("skopeo").is_none() || case.client_certificate {
        return Ok(());
    }
    process::output(&mut command, LIMIT).map(drop)
}

/// Builds without pushing, into a file or directory.
fn save(case: &Case, output: &str) -> Result<(), String> {
    let arguments = ["-c", "context", "-d", "REGISTRY/out:1", "--no-push", "--digest-file=built", output];
    let arguments = arguments.map(|argument| case.filled(argument));
    let ended = case.run("executor", &arguments, &[])?;
    that(&ended.text(), ended.success())
}

fn saved(case: &Case, _: &Ended) -> Result<(), String> {
    same("digest", case.read("digest")?, case.digest("saved:1")?)?;
    let files = case.files("saved:1")?;
    that(&format!("{files:?}"), files.len() == 3 && files[2] == ["two"])
}
