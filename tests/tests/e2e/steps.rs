//! Results of steps in registries and layouts: what a machine with an empty work directory is spared.

use fixtures::distribution::Logged;

use super::*;

pub const TRIALS: &[Row] = &[
    ("steps::an-empty-machine-downloads-nothing", empty_machine),
    ("steps::only-what-depends-on-a-change-runs", one_change),
    ("steps::times-of-files-do-not-matter", times),
    ("steps::a-stage-that-gave-the-same-files", same_files),
    ("steps::expired-records-are-made-anew", expired),
    ("steps::layouts-are-places-too", layout),
    ("steps::min-puts-what-the-image-has", smallest),
    ("steps::a-place-that-fails-is-told", unreachable),
    ("steps::another-result-below-is-a-miss", mixed),
];

/// Two stages, all kinds of steps.
const DOCKERFILE: &str = "FROM BASE AS build\nCOPY source /source\nRUN cat /source > /made\n\
                          FROM BASE\nWORKDIR /app\nCOPY other .\nRUN echo ran > /ran\nCOPY --from=build /made /made\n\
                          RUN cat /made /app/other > /both\n";

fn prepared(place: &Place) -> Result<Project<'_>, String> {
    let project = place.project(DOCKERFILE)?;
    project.write("source", "s")?;
    project.write("other", "o")?;
    Ok(project)
}

/// A registry of its own, whose log nobody else writes, with the base in it.
fn registry(place: &Place) -> Result<Distribution, String> {
    let registry = Distribution::start().map_err(|error| error.to_string())?.ok_or("docker-registry is gone")?;
    let (from, to) = (format!("docker://{}", place.base()), format!("docker://{}/base:latest", registry.host()));
    place.skopeo(&["copy", "--src-tls-verify=false", "--dest-tls-verify=false", &from, &to])?;
    Ok(registry)
}

/// Builds `dockerfile` of `project` with bases from `registry`, on a machine that has nothing yet.
fn elsewhere(project: &Project<'_>, registry: &Distribution, arguments: &[&str]) -> Result<Ended, String> {
    let work = project.path("work");
    if work.exists() {
        fs::remove_dir_all(&work).map_err(|error| error.to_string())?;
    }
    let file = project.path("context/Dockerfile");
    let text = fs::read_to_string(&file).map_err(|error| error.to_string())?;
    let host = project.place.registry.host();
    fs::write(&file, text.replace(host, registry.host())).map_err(|error| error.to_string())?;
    expect(project.build(arguments)?, 0, &[])
}

fn cache(registry: &Distribution) -> (String, String) {
    let name = format!("type=registry,ref={}/cache", registry.host());
    (format!("--cache-from={name}"), format!("--cache-to={name},mode=max"))
}

/// The steps that ran, by what the log says.
fn ran(ended: &Ended) -> Vec<String> {
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    let numbers: Vec<&str> =
        text.lines().filter(|line| line.contains(" DONE ")).filter_map(|l| l.split(' ').next()).collect();
    let title = |number: &&str| {
        text.lines().find_map(|line| line.strip_prefix(&format!("{number} [")).and_then(|rest| rest.split_once("] ")))
    };
    numbers.iter().filter_map(title).map(|(_, title)| title.to_owned()).collect()
}

/// Requests that fetched a blob.
fn blobs(requests: &[Logged]) -> Vec<&Logged> {
    requests.iter().filter(|request| request.method == "GET" && request.path.contains("/blobs/sha256:")).collect()
}

fn empty_machine(place: &Place) -> Outcome {
    let (project, registry) = (prepared(place)?, registry(place)?);
    let (from, to) = cache(&registry);
    let image = format!("{}/app:1", registry.host());
    let arguments = ["-t", &image, "--push", from.as_str(), to.as_str()];
    let begun = registry.requests().map_err(|error| error.to_string())?.len();
    let first = elsewhere(&project, &registry, &arguments)?;
    let before = registry.requests().map_err(|error| error.to_string())?;
    let sent = before[begun..]
        .iter()
        .filter(|request| request.method == "PUT" && request.path.contains("/blobs/uploads/"))
        .count();
    same("blobs sent: layers and configs of seven records, the image's config", sent, 7 + 7 + 1)?;

    let image = format!("{}/again:1", registry.host());
    let second = elsewhere(&project, &registry, &["-t", &image, "--push", &from, &to])?;
    same("digest", second.result(), first.result())?;
    same("steps that ran", ran(&second), Vec::<String>::new())?;
    let requests = registry.requests().map_err(|error| error.to_string())?.split_off(before.len());
    // The base's config, and nothing else.
    let fetched = blobs(&requests);
    same("blobs that were fetched", fetched.len(), 1)?;
    same("blobs of the base's repository", fetched.iter().all(|request| request.path.starts_with("/v2/base/")), true)?;
    let lookups = requests.iter().filter(|request| request.path.starts_with("/v2/cache/manifests/"));
    same("one lookup a step of the target", lookups.clone().count(), 5)?;
    same("and all were found", lookups.filter(|request| request.status != 200).count(), 0)?;
    let sent = requests.iter().filter(|request| request.method == "PUT" && request.path.contains("/blobs/uploads/"));
    same("blobs that were sent: the config", sent.count(), 1)?;
    Ok(None)
}

fn one_change(place: &Place) -> Outcome {
    let (project, registry) = (prepared(place)?, registry(place)?);
    let (from, to) = cache(&registry);
    elsewhere(&project, &registry, &[&from, &to])?;
    project.write("other", "changed")?;
    let changed = elsewhere(&project, &registry, &[&from, &to])?;
    // The layers below are in the cache; what lies on the changed one is made anew.
    let expected =
        ["COPY other .", "RUN echo ran > /ran", "COPY --from=build /made /made", "RUN cat /made /app/other > /both"];
    same("steps that ran", ran(&changed), expected.map(str::to_owned).to_vec())?;
    let again = elsewhere(&project, &registry, &[&from, &to])?;
    same("steps that ran after that", ran(&again), Vec::new())?;
    same("digest", again.result(), changed.result())?;
    Ok(None)
}

/// As Kaniko: results of COPY are not kept by default, and a clone of a repository gives all files new times.
fn times(place: &Place) -> Outcome {
    let (project, registry) = (prepared(place)?, registry(place)?);
    let (from, to) = cache(&registry);
    elsewhere(&project, &registry, &[&from, &to, "--cache-copy-layers=false"])?;
    std::thread::sleep(Duration::from_millis(20));
    project.write("source", "s")?;
    project.write("other", "o")?;
    let again = elsewhere(&project, &registry, &[&from, &to, "--cache-copy-layers=false"])?;
    let copies = ["COPY other .", "COPY --from=build /made /made", "COPY source /source"];
    let mut done = ran(&again);
    done.sort();
    let mut copies = copies.map(str::to_owned).to_vec();
    copies.sort();
    same("steps that ran", done, copies)?;
    Ok(None)
}

fn same_files(place: &Place) -> Outcome {
    let (project, registry) = (prepared(place)?, registry(place)?);
    let (from, to) = cache(&registry);
    let first = elsewhere(&project, &registry, &[&from, &to])?;
    // Another way to the same file: its time is that of the build, and no part of what COPY is known by.
    let dockerfile = fs::read_to_string(project.path("context/Dockerfile")).map_err(|error| error.to_string())?;
    project.write("Dockerfile", dockerfile.replace("RUN cat /source", "RUN cat  /source"))?;
    let again = elsewhere(&project, &registry, &[&from, &to])?;
    same("steps that ran", ran(&again), vec!["RUN cat  /source > /made".to_owned()])?;
    same("digest", again.result(), first.result())?;
    let third = elsewhere(&project, &registry, &[&from, &to])?;
    same("steps that ran at last", ran(&third), Vec::new())?;
    Ok(None)
}

fn expired(place: &Place) -> Outcome {
    let (project, registry) = (prepared(place)?, registry(place)?);
    let (from, to) = cache(&registry);
    elsewhere(&project, &registry, &[&from, &to])?;
    same("steps with an hour", ran(&elsewhere(&project, &registry, &[&from, "--cache-ttl=1h"])?).len(), 0)?;
    same("steps with nothing", ran(&elsewhere(&project, &registry, &[&from, "--cache-ttl=0h"])?).len(), 7)?;
    // On the machine that has all of it, too.
    same("steps at home", ran(&expect(project.build(&["--cache-ttl=0h"])?, 0, &[])?).len(), 7)?;
    Ok(None)
}

fn layout(place: &Place) -> Outcome {
    let (project, registry) = (prepared(place)?, registry(place)?);
    let (from, to) = ("--cache-from=type=local,src=steps", "--cache-to=type=local,dest=steps,mode=max");
    let first = elsewhere(&project, &registry, &[from, to])?;
    let again = elsewhere(&project, &registry, &[from, to])?;
    same("steps that ran", ran(&again), Vec::new())?;
    same("digest", again.result(), first.result())?;
    let index = read_json(&project.path("steps/index.json"))?;
    let manifests = index["manifests"].as_array().cloned().unwrap_or_default();
    same("records: seven steps, two of them under two keys", manifests.len(), 9)?;
    let key = manifests[0]["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap_or_default().to_owned();
    place.skopeo(&["inspect", &format!("oci:{}:{key}", project.path("steps").display())])?;
    // The layers come from there when somebody wants them.
    project.write("other", "changed")?;
    same("steps after a change", ran(&elsewhere(&project, &registry, &[from, to])?).len(), 4)?;
    Ok(None)
}

fn smallest(place: &Place) -> Outcome {
    let (project, registry) = (prepared(place)?, registry(place)?);
    let name = format!("type=registry,ref={}/small:main", registry.host());
    let (from, to) = (format!("--cache-from={name}"), format!("--cache-to={name}"));
    elsewhere(&project, &registry, &[&from, &to])?;
    let listed = place.skopeo(&["list-tags", "--tls-verify=false", &format!("docker://{}/small", registry.host())])?;
    let tags: Value = serde_json::from_str(&listed).map_err(|error| error.to_string())?;
    let tags: Vec<&str> = tags["Tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    same("records: five steps, two of them under two keys", tags.len(), 7)?;
    same("tags with the prefix", tags.iter().all(|tag| tag.starts_with("main-")), true)?;
    // The other stage has no records and is not missed.
    same("steps that ran", ran(&elsewhere(&project, &registry, &[&from])?), Vec::new())?;
    Ok(None)
}

fn unreachable(place: &Place) -> Outcome {
    let (project, registry) = (prepared(place)?, registry(place)?);
    let gone = "type=registry,ref=127.0.0.1:1/cache";
    let (from, to) = (format!("--cache-from={gone}"), format!("--cache-to={gone}"));
    let ended = elsewhere(&project, &registry, &[&from, &to])?;
    let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
    same("notes of it", stderr.lines().filter(|line| line.contains("note: cache 127.0.0.1:1/cache")).count(), 1)?;
    let required = format!("{to},ignore-error=false");
    expect(project.build(&[&required])?, 4, &["cannot write cache 127.0.0.1:1/cache"])?;
    let Some(closed) = closed_registry()? else { return Ok(Some("docker-registry is not installed".to_owned())) };
    let name = format!("type=registry,ref={}/cache", closed.host());
    let ended = elsewhere(&project, &registry, &[&format!("--cache-from={name}"), &format!("--cache-to={name}")])?;
    expect(ended, 0, &["is not asked any more"])?;
    Ok(None)
}

/// Two machines do one RUN differently; what a third takes belongs together.
fn mixed(place: &Place) -> Outcome {
    let dockerfile = "FROM BASE\nRUN head -c 8 /dev/urandom > /random\nRUN cp /random /copy\n";
    let (project, registry) = (place.project(dockerfile)?, registry(place)?);
    let (from, to) = cache(&registry);
    elsewhere(&project, &registry, &[&to])?;
    // The second machine gets as far as the first step.
    let text = fs::read_to_string(project.path("context/Dockerfile")).map_err(|error| error.to_string())?;
    project.write("Dockerfile", text.replace("RUN cp /random /copy\n", ""))?;
    elsewhere(&project, &registry, &[&to])?;
    project.write("Dockerfile", &text)?;
    let third = elsewhere(&project, &registry, &[&from, "-o", "files"])?;
    same("steps that ran", ran(&third), vec!["RUN cp /random /copy".to_owned()])?;
    let read = |name: &str| fs::read(project.path("files").join(name)).map_err(|error| error.to_string());
    same("the copy", read("copy")?, read("random")?)?;
    Ok(None)
}
