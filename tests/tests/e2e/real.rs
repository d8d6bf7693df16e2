//! Dockerfiles as people write them: the idioms of official images and of language guides, built over a small base. What is
//! asserted is what BuildKit makes of them.

use std::collections::BTreeMap;

use super::*;

pub const TRIALS: &[Row] = &[
    ("real::an-official-image", official),
    ("real::a-service-in-stages", service),
    ("real::heredocs-and-shells", heredocs),
    ("real::a-base-with-triggers", triggers),
    ("real::arguments-in-from", arguments),
];

/// Builds and gives the image's configuration; its files are in `tree`.
fn image_of(project: &Project<'_>, arguments: &[&str]) -> Result<Value, String> {
    for old in ["layout", "tree"] {
        _ = fs::remove_dir_all(project.path(old));
    }
    project.built(&[arguments, &["-o", "type=oci,tar=false,dest=layout"]].concat())?;
    project.built(&[arguments, &["-o", "type=local,dest=tree"]].concat())?;
    let blob = |digest: &Value| {
        let hex = digest.as_str().unwrap_or_default().trim_start_matches("sha256:").to_owned();
        read_json(&project.path("layout/blobs/sha256").join(hex))
    };
    let index = read_json(&project.path("layout/index.json"))?;
    blob(&blob(&index["manifests"][0]["digest"])?["config"]["digest"])
}

fn text(project: &Project<'_>, path: &str) -> Result<String, String> {
    fs::read_to_string(project.path("tree").join(path)).map_err(|error| format!("{path}: {error}"))
}

/// What of the history the Dockerfile made, without the words that all commands share.
fn history(image: &Value) -> Vec<&str> {
    let items = image["history"].as_array().into_iter().flatten();
    items
        .filter(|item| item["comment"] == "buildkit.dockerfile.v0")
        .filter_map(|item| item["created_by"].as_str())
        .collect()
}

fn official(place: &Place) -> Outcome {
    let project = place.project(
        "FROM BASE\n\
         \n\
         # explicitly set user/group IDs\n\
         RUN set -eux; \\\n\
         \tmkdir -p /etc /var/lib; \\\n\
         # a comment in the middle, as they have it\n\
         \techo 'db:x:999:999::/var/lib/db:/bin/sh' >> /etc/passwd; \\\n\
         \n\
         \techo 'db:x:999:' >> /etc/group; \\\n\
         \tmkdir /var/lib/db; \\\n\
         \tchown db:db /var/lib/db; chmod 1777 /var/lib/db\n\
         \n\
         ENV DB_MAJOR 16\n\
         ENV PATH $PATH:/usr/lib/db/$DB_MAJOR/bin\n\
         ENV DB_VERSION 16.3-1~deb12 LANG=en\n\
         ENV DATA /var/lib/db/data\n\
         VOLUME /var/lib/db/data\n\
         WORKDIR $DATA\n\
         COPY docker-entrypoint.sh [m]issing* /usr/local/bin/\n\
         ENTRYPOINT [\"docker-entrypoint.sh\"]\n\
         STOPSIGNAL SIGINT\n\
         EXPOSE 5432\n\
         CMD [\"db\", \"-c\", \"$DATA\"]\n",
    )?;
    project.write("docker-entrypoint.sh", "#!/bin/sh\nexec \"$@\"\n")?;
    fs::set_permissions(project.path("context/docker-entrypoint.sh"), Permissions::from_mode(0o755))
        .map_err(|error| error.to_string())?;
    let image = image_of(&project, &[])?;
    let config = &image["config"];
    let expected = json!({
        "Env": [
            "PATH=/bin:/usr/lib/db/16/bin", "DB_MAJOR=16", "DB_VERSION=16.3-1~deb12 LANG=en", "DATA=/var/lib/db/data",
        ],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["db", "-c", "$DATA"],
        "Volumes": {"/var/lib/db/data": {}},
        "WorkingDir": "/var/lib/db/data",
        "ExposedPorts": {"5432/tcp": {}},
        "StopSignal": "SIGINT",
    });
    for (key, value) in expected.as_object().into_iter().flatten() {
        same(key, &config[key], value)?;
    }
    let items = history(&image);
    same("steps", items.len(), 12)?;
    same("the comment and the blank line are gone", items[0].contains('#') && items[0].contains("comment"), false)?;
    same("ENTRYPOINT", items[8], "ENTRYPOINT [\"docker-entrypoint.sh\"]")?;
    same("COPY", items[7], "COPY docker-entrypoint.sh [m]issing* /usr/local/bin/ # buildkit")?;
    same("CMD", items[11], "CMD [\"db\" \"-c\" \"$DATA\"]")?;
    let mode = |path: &str| {
        let metadata = fs::metadata(project.path("tree").join(path)).map_err(|error| error.to_string());
        metadata.map(|metadata| metadata.permissions().mode() & 0o7777)
    };
    same("mode of the program", mode("usr/local/bin/docker-entrypoint.sh")?, 0o755)?;
    same("mode of the data", mode("var/lib/db")?, 0o1777)?;
    Ok(None)
}

fn service(place: &Place) -> Outcome {
    let project = place.project(
        "# syntax=docker/dockerfile:1.7-labs\n\
         ARG STAGE_IMAGE=BASE\n\
         FROM --platform=$BUILDPLATFORM ${STAGE_IMAGE} AS deps\n\
         WORKDIR /src\n\
         RUN --mount=type=cache,target=/cache,sharing=locked \\\n\
         \x20   --mount=type=bind,source=app.sum,target=app.sum \\\n\
         \x20   --mount=type=bind,source=app.mod,target=app.mod,readonly \\\n\
         \x20   cat app.mod app.sum > /cache/downloaded && cat /cache/downloaded > /deps\n\
         FROM deps AS build\n\
         ARG TARGETOS TARGETARCH\n\
         ARG VERSION=dev\n\
         RUN --mount=type=bind,target=. --mount=type=cache,target=/cache \\\n\
         \x20   test -f /cache/downloaded && cat cmd/*/main.src /deps > /bin/server && echo $TARGETOS/$TARGETARCH $VERSION >> /bin/server\n\
         FROM scratch AS files\n\
         COPY --parents --exclude=**/*.md assets/./**/* /www/\n\
         FROM ${STAGE_IMAGE} AS final\n\
         LABEL org.opencontainers.image.title=\"A service\" \\\n\
         \x20     org.opencontainers.image.version=$VERSION\n\
         ARG UID=10001\n\
         COPY --link --chmod=755 --from=build /bin/server /bin/\n\
         COPY --link --from=files --chown=$UID:0 /www /www\n\
         USER ${UID}\n\
         WORKDIR /home/app\n\
         HEALTHCHECK --interval=30s --timeout=3s --start-period=5s \\\n\
         \x20 CMD wget -q --spider http://localhost/ || exit 1\n\
         EXPOSE 8080/tcp 9229\n\
         ENTRYPOINT [ \"/bin/server\" ]\n",
    )?;
    for (path, content) in [
        ("app.mod", "mod\n"),
        ("app.sum", "sum\n"),
        ("cmd/app/main.src", "main\n"),
        ("assets/index.html", "page\n"),
        ("assets/css/site.css", "style\n"),
        ("assets/css/notes.md", "note\n"),
    ] {
        if let Some(parent) = project.path("context").join(path).parent() {
            fs::create_dir_all(parent).map_err(|error| error.to_string())?;
        }
        project.write(path, content)?;
    }
    let image = image_of(&project, &["--build-arg", "VERSION=1.2"])?;
    let architecture = image["architecture"].as_str().unwrap_or_default().to_owned();
    same("program", text(&project, "bin/server")?, format!("main\nmod\nsum\nlinux/{architecture} 1.2\n"))?;
    same("page", text(&project, "www/index.html")?.as_str(), "page\n")?;
    same("style", text(&project, "www/css/site.css")?.as_str(), "style\n")?;
    for absent in ["www/css/notes.md", "deps", "cache", "src", "www/assets"] {
        same(absent, project.path("tree").join(absent).exists(), false)?;
    }
    let config = &image["config"];
    same("user", &config["User"], &json!("10001"))?;
    // VERSION is an argument of another stage.
    let labels: BTreeMap<String, String> =
        serde_json::from_value(config["Labels"].clone()).map_err(|error| error.to_string())?;
    same("title", labels["org.opencontainers.image.title"].as_str(), "A service")?;
    same("version", labels["org.opencontainers.image.version"].as_str(), "")?;
    let health = json!({
        "Test": ["CMD-SHELL", "wget -q --spider http://localhost/ || exit 1"],
        "Interval": 30_000_000_000_u64, "Timeout": 3_000_000_000_u64, "StartPeriod": 5_000_000_000_u64,
    });
    same("health", &config["Healthcheck"], &health)?;
    same("ports", &config["ExposedPorts"], &json!({"8080/tcp": {}, "9229/tcp": {}}))?;
    // All of it once more, from the cache; and with another argument only what it touches.
    let again = expect(project.build(&["--build-arg", "VERSION=1.2"])?, 0, &["CACHED"])?.text();
    same("nothing is done again", again.contains("not cached"), false).map_err(|error| format!("{error}\n{again}"))?;
    Ok(None)
}

fn heredocs(place: &Place) -> Outcome {
    let project = place.project(
        "FROM BASE\n\
         SHELL [\"/bin/sh\", \"-euc\"]\n\
         ARG VERSION=\"1.0\" DATE\n\
         COPY <<EOF /etc/app.conf\n\
         version = ${VERSION}\n\
         date = ${DATE:-unknown}\n\
         literal = \\$HOME\n\
         EOF\n\
         COPY --chmod=755 <<'EOF' /bin/start\n\
         #!/bin/sh\n\
         exec \"$@\"\n\
         EOF\n\
         RUN <<-EOT\n\
         \tcat /etc/app.conf > /one\n\
         \tfalse || start echo two >> /one\n\
         \tEOT\n\
         RUN <<EOF cat > /three && cat <<FOO | tr a-z A-Z >> /three\n\
         $VERSION\n\
         EOF\n\
         second\n\
         FOO\n\
         RUN <<EOF\n\
         #!/bin/sh\n\
         echo \"$0\" > /four\n\
         EOF\n\
         COPY <<a.txt <<b.txt /five/\n\
         A\n\
         a.txt\n\
         B\n\
         b.txt\n",
    )?;
    let image = image_of(&project, &[])?;
    same("one", text(&project, "one")?.as_str(), "version = 1.0\ndate = unknown\nliteral = $HOME\ntwo\n")?;
    same("three", text(&project, "three")?.as_str(), "1.0\nSECOND\n")?;
    same("four", text(&project, "four")?.as_str(), "/dev/pipes/EOF\n")?;
    same("five", (text(&project, "five/a.txt")?, text(&project, "five/b.txt")?), ("A\n".to_owned(), "B\n".to_owned()))?;
    let items = history(&image);
    same("COPY", items[2], "COPY <<EOF /etc/app.conf # buildkit")?;
    same("pipes", project.path("tree/dev/pipes").exists(), false)?;
    Ok(None)
}

fn triggers(place: &Place) -> Outcome {
    let project = place.project(
        "FROM BASE AS parent\n\
         ONBUILD ARG MODE=production\n\
         ONBUILD ENV MODE $MODE\n\
         ONBUILD COPY package*.json /app/\n\
         ONBUILD RUN cat /app/package.json > /installed && echo $MODE >> /installed\n\
         ONBUILD COPY . /app\n\
         FROM parent\n\
         CMD [\"sh\"]\n",
    )?;
    project.write("package.json", "{}\n")?;
    project.write("package-lock.json", "{}\n")?;
    let image = image_of(&project, &["--build-arg", "MODE=test"])?;
    same("installed", text(&project, "installed")?.as_str(), "{}\ntest\n")?;
    same("environment", &image["config"]["Env"], &json!(["PATH=/bin", "MODE=test"]))?;
    same("triggers are used up", &image["config"]["OnBuild"], &Value::Null)?;
    same("the second copy", project.path("tree/app/Dockerfile").exists(), true)?;
    Ok(None)
}

fn arguments(place: &Place) -> Outcome {
    let base = place.base();
    let (repository, tag) = base.rsplit_once(':').ok_or("a tag")?;
    let project = place.project(
        "ARG IMAGE=nowhere\n\
         ARG TAG=none\n\
         ARG FULL=${IMAGE}:${TAG}\n\
         FROM ${FULL} AS base\n\
         ARG TARGETPLATFORM COMMIT=none\n\
         ARG SUFFIX=${COMMIT:+-dirty}\n\
         RUN echo \"$TARGETPLATFORM $COMMIT$SUFFIX\" > /info\n\
         FROM base AS test-amd64\n\
         FROM base AS test-arm64\n\
         FROM nowhere/at:all AS unused\n\
         RUN exit 1\n\
         FROM test-${TARGETARCH} AS test\n\
         RUN cat /info > /tested\n\
         FROM scratch AS artifact\n\
         COPY --from=test /tested /\n",
    )?;
    let arguments = [
        "--build-arg",
        &format!("IMAGE={repository}"),
        "--build-arg",
        &format!("TAG={tag}"),
        "--build-arg",
        "COMMIT=abc",
    ];
    let image = image_of(&project, &arguments)?;
    let platform = format!("linux/{}", image["architecture"].as_str().unwrap_or_default());
    same("tested", text(&project, "tested")?, format!("{platform} abc-dirty\n"))?;
    same("layers", image["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(1))?;
    let unknown = project.build(&["--target", "artifcat"])?;
    expect(unknown, 3, &["target stage \"artifcat\" could not be found"])?;
    Ok(None)
}
