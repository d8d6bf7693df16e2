//! What may happen to a build from outside: kills at any moment, disks that fill, files that change, registries that lie. Each
//! ends in the right result or in an error that names what and where; nothing that is not whole is left or pushed.

use std::sync::atomic::{AtomicBool, Ordering};

use fixtures::registry::{Auth, Effect, FakeRegistry, Fault};
use tests::listing::Listing;

use super::faults::left_of;
use super::*;

pub const TRIALS: &[Row] = &[
    ("hazards::killed-at-any-moment", killed),
    ("hazards::killed-in-an-upload", killed_in_an_upload),
    ("hazards::a-small-disk", small_disk),
    ("hazards::work-dir-on-overlay", on_overlay),
    ("hazards::a-file-that-changes", changing_file),
    ("hazards::names-that-are-not-utf8", odd_names),
    ("hazards::a-registry-that-lies", lies),
    ("hazards::a-registry-that-stumbles", stumbles),
    ("hazards::tokens-end-in-mid-build", tokens),
    ("hazards::credentials-stay-home", redirected),
];

/// How often the build is killed. Moments are spread evenly over the time that it takes.
const KILLS: u32 = 12;

fn killed(place: &Place) -> Outcome {
    let dockerfile = "FROM BASE AS a\nRUN dd if=/dev/urandom of=/a bs=1M count=4\nFROM BASE\nRUN echo 1 > /one\n\
                      COPY large /large\nCOPY --from=a /a /a\nRUN cat /large /a > /both\n";
    let large = image::noise(4 << 20);
    let reference = place.project(dockerfile)?;
    reference.write("large", &large)?;
    let name = place.name("killed");
    let started = Instant::now();
    reference.built(&["-t", &place.name("killed-not"), "--push"])?;
    let whole = started.elapsed();

    let project = place.project(dockerfile)?;
    project.write("large", &large)?;
    for number in 0..KILLS {
        let mut child = project.command(&["-t", &name, "--push"]).stdin(std::process::Stdio::null()).spawn_quietly()?;
        std::thread::sleep(whole * number / KILLS);
        child.kill().map_err(|error| error.to_string())?;
        let ended = child.wait().map_err(|error| error.to_string())?;
        wait("the end of the killed build's processes", || left_of(&project).is_empty())?;
        if ended.success() {
            continue;
        }
        // The name is there with all that belongs to it, or not at all.
        let copy = format!("oci:{}:x", project.path(format!("copy-{number}")).display());
        let arguments = ["copy", "--src-tls-verify=false", &format!("docker://{name}"), &copy];
        if let Err(error) = place.skopeo(&arguments)
            && !error.contains("manifest unknown")
            && !error.contains("name unknown")
        {
            return Err(format!("kill {number}: {error}"));
        }
    }
    let digest = project.built(&["-t", &name, "--push"])?;
    let again = expect(project.build(&["-t", &name, "--push"])?, 0, &[])?;
    same("digest of the next build", again.result(), digest)?;
    same("files of the killed builds", leftovers(&project)?, Vec::<PathBuf>::new())?;
    let verify = Command::new(&place.binary).args(["inspect", "--verify", &name]).output();
    let verify = verify.map_err(|error| error.to_string())?;
    same("what inspect --verify finds", verify.status.code(), Some(0))?;
    project.built(&["-o", "type=local,dest=tree"])?;
    same("a file of a RUN", fs::read(project.path("tree/one")).ok().as_deref(), Some(&b"1\n"[..]))?;
    let read = |name: &str| fs::read(project.path("tree").join(name)).map_err(|error| error.to_string());
    same("a file of all steps", read("both")? == [large, read("a")?].concat(), true)?;
    Ok(None)
}

/// What processes that are gone left in the work directory's places for unfinished things.
fn leftovers(project: &Project<'_>) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for dir in ["work/tmp", "work/trees/tmp"] {
        for entry in fs::read_dir(project.path(dir)).map_err(|error| format!("{dir}: {error}"))?.flatten() {
            if entry.path().is_dir() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Starting without a word on the terminal.
trait SpawnQuietly {
    fn spawn_quietly(&mut self) -> Result<std::process::Child, String>;
}

impl SpawnQuietly for Command {
    fn spawn_quietly(&mut self) -> Result<std::process::Child, String> {
        let null = std::process::Stdio::null;
        self.stdout(null()).stderr(null()).spawn().map_err(|error| error.to_string())
    }
}

/// A file system in a file, unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// The inner error says why this machine does not allow it.
    fn new(path: &Path, arguments: &[&OsStr]) -> Result<Result<Self, String>, String> {
        fs::create_dir_all(path).map_err(|error| error.to_string())?;
        if !user::is_root() {
            return Ok(Err("only root can mount".to_owned()));
        }
        Ok(process::output(Command::new("mount").args(arguments).arg(path), LIMIT).map(|_| Self(path.to_owned())))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a RUN's processes may still hold it for a moment.
        _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn small_disk(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nRUN dd if=/dev/urandom of=/large bs=1M count=8\nCOPY large /copied\n")?;
    let disk = project.path("disk");
    let file = fs::File::create(&disk).map_err(|error| error.to_string())?;
    file.set_len(32 << 20).map_err(|error| error.to_string())?;
    let Some(make) = process::find("mkfs.ext4") else { return Ok(Some("mkfs.ext4 is not installed".to_owned())) };
    process::output(Command::new(make).arg("-q").arg(&disk), LIMIT)?;
    let options = ["-o", "loop"].map(OsStr::new);
    let _work = match Mounted::new(&project.path("work"), &[options[0], options[1], disk.as_os_str()])? {
        Ok(mounted) => mounted,
        Err(reason) => return Ok(Some(reason)),
    };
    let name = place.name("small-disk");
    project.write("large", image::noise(16 << 20))?;
    expect(project.build(&["-t", &name, "--push"])?, 5, &["No space left", "work directory"])?;
    if place.skopeo(&["inspect", "--tls-verify=false", &format!("docker://{name}")]).is_ok() {
        return Err("a build that failed has pushed its name".to_owned());
    }
    // What it left does not stand in the way of one that has room.
    project.write("large", image::noise(1 << 20))?;
    project.write("Dockerfile", format!("FROM {}\nCOPY large /copied\nRUN test -s /copied\n", place.base()))?;
    project.built(&["-t", &name, "--push"])?;
    Ok(None)
}

fn on_overlay(place: &Place) -> Outcome {
    let dockerfile = "FROM BASE\nRUN echo 1 > /one && mkdir /d && ln -s one /d/link && rm /bin/touch\nCOPY file /file\n\
                      RUN cat /file > /d/two && rm /one\n";
    let project = place.project(dockerfile)?;
    project.write("file", "text")?;
    let beside = project.path("beside");
    let layers = ["lower", "upper", "inner"].map(|name| beside.join(name));
    for layer in &layers {
        fs::create_dir_all(layer).map_err(|error| error.to_string())?;
    }
    let [lower, upper, inner] = layers.map(|layer| layer.display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={inner}");
    let arguments = ["-t", "overlay", "overlay", "-o", &options].map(OsStr::new);
    let work = match Mounted::new(&project.path("work"), &arguments)? {
        Ok(mounted) => mounted,
        Err(reason) => return Ok(Some(reason)),
    };
    let told =
        process::output(Command::new(&place.binary).args(["info", "--work-dir"]).arg(project.path("work")), LIMIT)?;
    same("info tells why", told.contains("plain directories") && told.contains("overlayfs itself"), true)?;
    project.built(&["-o", "type=local,dest=tree"])?;
    let again = expect(project.build(&[])?, 0, &[])?;
    same("cached steps", again.text().lines().filter(|line| line.ends_with("CACHED")).count(), 3)?;
    drop(work);
    let other = place.project(dockerfile)?;
    other.write("file", "text")?;
    other.built(&["-o", "type=local,dest=tree"])?;
    let listing = |project: &Project<'_>| {
        Listing::of(&project.path("tree")).map(Listing::timeless).map_err(|error| error.to_string())
    };
    listing(&project)?.same(&listing(&other)?)?;
    Ok(None)
}

fn changing_file(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nCOPY . /all/\n")?;
    project.write("changing", image::noise(32 << 20))?;
    let path = project.path("context/changing");
    let stop = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = fs::File::options().append(true).open(&path);
            while let (Ok(mut file), false) = (file.as_ref(), stop.load(Ordering::Relaxed)) {
                _ = std::io::Write::write_all(&mut file, b"more");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let ended = project.build(&["-o", "type=oci,dest=image.tar"]);
        stop.store(true, Ordering::Relaxed);
        ended
    })?;
    expect(ended, 3, &["/changing` changed while it was read", ".dockerignore"])?;
    if project.path("image.tar").exists() {
        return Err("a build that failed left its output".to_owned());
    }
    project.built(&["-o", "type=local,dest=tree"])?;
    let read = |path: PathBuf| fs::read(path).map_err(|error| error.to_string());
    same("the copy is the file", read(project.path("tree/all/changing"))? == read(path)?, true)?;
    Ok(None)
}

/// Names that are not UTF-8 of files, directories and link targets; in layers, in the export and in what others read.
fn odd_names(place: &Place) -> Outcome {
    let project = place.project(
        "FROM BASE AS a\nCOPY in /in/\nRUN cp -r /in /made && rm -r /in\nFROM BASE\nCOPY --from=a /made /out/\n",
    )?;
    let dir = Path::new("in").join(odd_name());
    project.write(dir.join(odd_name()), "odd")?;
    std::os::unix::fs::symlink(odd_name(), project.path("context").join(&dir).join("link"))
        .map_err(|error| error.to_string())?;
    let name = place.name("odd-names");
    project.built(&["-t", &name, "--push", "-o", "type=local,dest=tree"])?;
    let out = project.path("tree/out").join(odd_name());
    same("content", fs::read(out.join(odd_name())).ok().as_deref(), Some(&b"odd"[..]))?;
    same("link", fs::read_link(out.join("link")).ok().as_deref(), Some(Path::new(odd_name())))?;
    let again = expect(project.build(&["-t", &name, "--push"])?, 0, &[])?;
    same("cached steps", again.text().lines().filter(|line| line.ends_with("CACHED")).count(), 3)?;
    let missing = place.project("FROM BASE\nCOPY in/none /in/\n")?;
    missing.write(Path::new("in").join(odd_name()), "odd")?;
    expect(missing.build(&[])?, 3, &["in/none"])?;
    Ok(None)
}

/// A registry of this process with a base of `bytes` bytes under `base:1`.
fn fake(registry: &FakeRegistry, bytes: usize) -> Image {
    let noise = image::noise(bytes);
    let layer = image::tree_layer(&[Entry::Directory("etc"), Entry::File("etc/large", &noise)]);
    let image = Image::new("linux/amd64", vec![layer], json!({}));
    registry.put_image("base", "1", &image);
    image
}

/// A build onto the base of `registry`, pushed there.
fn onto<'a>(place: &'a Place, registry: &FakeRegistry) -> Result<Project<'a>, String> {
    let project = place.project("")?;
    project.write("Dockerfile", format!("FROM {}/base:1\nCOPY file /file\n", registry.host()))?;
    project.write("file", "file")?;
    Ok(project)
}

/// Whether the registry has what was to be pushed.
fn pushed(registry: &FakeRegistry) -> bool {
    registry.manifest("app", "1").is_some()
}

fn lies(place: &Place) -> Outcome {
    let other = image::layer(&[("f", b"other")]).blob;
    let mut endless = Vec::new();
    for _ in 0..64 {
        endless.extend(image::gzip(&vec![0; 16 << 20]));
    }
    // No bytes can hold their own digest, so a registry that plays this answers the inner name with the outer index.
    let itself = image::index(&[("", b"{}")]);
    let itself = String::from_utf8_lossy(&itself).replace(image::MANIFEST, image::INDEX).into_bytes();
    for (fault, code, texts) in [
        (Fault::always("GET", "/blobs/", Effect::Body(other)).after(1), 4, &["sha256:"][..]),
        (Fault::always("GET", "/blobs/", Effect::CutBody(10_000)).after(1), 4, &["sha256:"]),
        (Fault::always("GET", "/blobs/", Effect::Body(endless)).after(1), 4, &["sha256:"]),
        (Fault::always("GET", "/manifests/", Effect::Spaces { count: 100 << 20, announced: true }), 4, &["base"]),
        (Fault::always("GET", "/manifests/", Effect::Spaces { count: 100 << 20, announced: false }), 4, &["base"]),
        (Fault::always("GET", "/manifests/sha256:", Effect::Body(itself.clone())), 4, &["sha256:"]),
        (Fault::always("PUT", "/manifests/", Effect::status(500)), 4, &["app"]),
        (Fault::always("PUT", "/uploads/", Effect::Hangup), 4, &["app"]),
    ] {
        let registry = FakeRegistry::start();
        fake(&registry, 200_000);
        if fault.path == "/manifests/sha256:" {
            registry.put_manifest("base", "1", image::INDEX, &itself);
        }
        registry.fault(fault.clone());
        let project = onto(place, &registry)?;
        let target = format!("{}/app:1", registry.host());
        // Something has to be read of the base, so that its layer comes here.
        project.write("Dockerfile", format!("FROM {}/base:1\nCOPY file /file\nRUN [\"/none\"]\n", registry.host()))?;
        if fault.method == "PUT" {
            project.write("Dockerfile", format!("FROM {}/base:1\nCOPY file /file\n", registry.host()))?;
        }
        let ended = project.build(&["-t", &target, "--push", "-o", "type=oci,dest=image.tar"])?;
        expect(ended, code, texts).map_err(|error| format!("{fault:?}: {error}"))?;
        // What cannot be pushed is whole nevertheless.
        if pushed(&registry) || (fault.method == "GET" && project.path("image.tar").exists()) {
            return Err(format!("{fault:?}: a build that failed left its result"));
        }
    }
    Ok(None)
}

fn stumbles(place: &Place) -> Outcome {
    for fault in [
        Fault::once("GET", "/manifests/", Effect::retry_after(429, 1)),
        Fault::once("GET", "/blobs/", Effect::retry_after(503, 0)).times(2),
        Fault::once("GET", "/blobs/", Effect::CutBody(100_000)).after(1).times(2),
        Fault::once("POST", "/uploads/", Effect::Hangup),
        Fault::once("", "/uploads/", Effect::CutUpload(20)).after(1),
        Fault::once("PUT", "/manifests/", Effect::retry_after(503, 0)),
    ] {
        let registry = FakeRegistry::start();
        let base = fake(&registry, 200_000);
        registry.fault(fault.clone());
        let project = onto(place, &registry)?;
        let target = format!("{}/app:1", registry.host());
        let told = |error: String| format!("{fault:?}: {error}");
        project.built(&["-t", &target, "--push", "-o", "type=oci,dest=layout,tar=false"]).map_err(told)?;
        let (_, manifest) = registry.manifest("app", "1").ok_or_else(|| told("nothing was pushed".to_owned()))?;
        let manifest: Value = serde_json::from_slice(&manifest).map_err(|error| error.to_string())?;
        for layer in manifest["layers"].as_array().into_iter().flatten() {
            let digest = layer["digest"].as_str().unwrap_or_default();
            let there = registry.blob("app", digest).ok_or_else(|| told(format!("{digest} is missing")))?;
            same("a pushed blob", image::digest(&there).as_str(), digest).map_err(told)?;
        }
        same(
            "the base's layer",
            manifest["layers"][0]["digest"].as_str(),
            Some(&*image::digest(&base.layers[0].blob)),
        )?;
    }
    Ok(None)
}

/// What a registry has of a layer when the build is killed is not sent again by the next build: neither of a layer that was sent as a
/// whole, nor of one that left while it was written.
fn killed_in_an_upload(place: &Place) -> Outcome {
    for (bytes, arguments, stalls_at) in [(6 << 20, &[][..], 4_000_000), (20_000_000, &["--max-chunk", "1m"], 1000)] {
        let registry = FakeRegistry::start();
        fake(&registry, 200_000);
        registry.fault(Fault::once("PUT", "/uploads/", Effect::StallUpload(stalls_at)));
        let project = onto(place, &registry)?;
        project.write("file", image::noise(bytes))?;
        let target = format!("{}/app:1", registry.host());
        let arguments = [&["-t", &target, "--push", "--report", "report.json"], arguments].concat();
        let mut child = project.command(&arguments).stdin(std::process::Stdio::null()).spawn_quietly()?;
        // The layer's step is done then; else the next build would make the layer again, and send that.
        let done = || fs::read_dir(project.path("work/cache/steps")).is_ok_and(|mut steps| steps.next().is_some());
        let stalled = || registry.log().iter().any(|logged| logged.method == "PUT" && logged.status != 0) && done();
        let waited = wait("the upload", stalled);
        child.kill().and_then(|()| child.wait()).map_err(|error| error.to_string())?;
        waited?;
        let kept =
            || fs::read_dir(project.path("work/uploads")).map(Iterator::count).map_err(|error| error.to_string());
        same("uploads that are kept", kept()?, 1)?;
        registry.clear_log();
        let ended = expect(project.build(&arguments)?, 0, &["are there from an earlier build"])?;
        let log = registry.log();
        // Of the layer's upload; the config has one of its own.
        let begun = log.iter().filter(|logged| logged.method == "POST" && logged.path.ends_with("/uploads/")).count();
        same("uploads that begin", begun, 1)?;
        let sent = log.iter().filter(|logged| matches!(logged.method.as_str(), "PUT" | "PATCH"));
        let sent = sent.filter(|logged| logged.path.contains("/uploads/"));
        let sent: u64 = sent.filter_map(|logged| logged.header("content-length")?.parse::<u64>().ok()).sum();
        let reported = read_json(&project.path("report.json"))?["bytes_pushed"].as_u64();
        same("bytes that the report tells", reported, Some(sent))?;
        if sent > 3 << 20 {
            return Err(format!("{sent} bytes were sent by the second build: {}", ended.text()));
        }
        same("uploads that are kept at the end", kept()?, 0)?;
        same("pushed", pushed(&registry), true)?;
    }
    Ok(None)
}

/// Every token is good for a few requests only, as if it had expired by the next.
fn tokens(place: &Place) -> Outcome {
    let login = Some(("tester".to_owned(), "secret".to_owned()));
    let auth = Auth::Bearer { login, identity_token: None, uses: 3, expires_in: 300 };
    let registry = FakeRegistry::with_auth(auth);
    fake(&registry, 3 << 20);
    let project = onto(place, &registry)?;
    log_in(&project, &registry)?;
    project.built(&["-t", &format!("{}/app:1", registry.host()), "--push"])?;
    same("pushed", pushed(&registry), true)?;
    Ok(None)
}

/// `docker/config.json` with `tester:secret`.
fn log_in(project: &Project<'_>, registry: &FakeRegistry) -> Result<(), String> {
    let config = json!({"auths": {registry.host(): {"auth": "dGVzdGVyOnNlY3JldA=="}}}).to_string();
    let write =
        fs::create_dir_all(project.path("docker")).and_then(|()| fs::write(project.path("docker/config.json"), config));
    write.map_err(|error| error.to_string())
}

fn redirected(place: &Place) -> Outcome {
    let (registry, elsewhere) = (FakeRegistry::with_auth(Auth::basic("tester", "secret")), FakeRegistry::start());
    let base = fake(&registry, 100_000);
    fake(&elsewhere, 100_000);
    let digest = image::digest(&base.layers[0].blob);
    let to = format!("http://{}/v2/base/blobs/{digest}", elsewhere.host());
    registry.fault(Fault::always("GET", &digest, Effect::Redirect(to)));
    let project = onto(place, &registry)?;
    log_in(&project, &registry)?;
    project.built(&["-o", "type=local,dest=tree"])?;
    same("content", fs::read(project.path("tree/etc/large")).map(|bytes| bytes.len()).ok(), Some(100_000))?;
    let log = elsewhere.log();
    same("requests elsewhere", log.len(), 1)?;
    same("credentials elsewhere", log.iter().find_map(|logged| logged.header("authorization")), None)?;
    Ok(None)
}
