//! Stages on one base: it is unpacked once, no stage sees what another one did, and the image is the same however trees are kept.

use super::extremes::Volume;
use super::*;

pub const TRIALS: &[Row] = &[
    ("sharing::blocks-of-a-base", blocks),
    ("sharing::stages-on-a-stage", on_a_stage),
    ("sharing::killed-in-the-middle", killed),
    ("sharing::borrowed-files", borrowed),
    ("sharing::borrowed-files-side-by-side", borrowed_side_by_side),
    ("sharing::files-of-a-layer-that-is-packed", packed_meanwhile),
    ("sharing::bases-are-kept-in-one-form", one_form),
    ("sharing::covered-files-are-not-compared", covered),
];

/// Bytes of the base's largest file, which no compressor makes smaller.
const LARGE_BYTES: u64 = 24 << 20;

/// Arguments with which equal builds give equal digests on any work directory.
const REPRODUCIBLE: [&str; 4] =
    ["--build-arg", "SOURCE_DATE_EPOCH=1700000000", "-o", "type=oci,dest=image.tar,rewrite-timestamp=true"];

/// What a stage does to files of the base: each in another way. No two names of what is copied from it are one file: a layer has
/// but the new one of two names (as BuildKit's), so a tree made of layers again is another one.
const CHANGES: [&str; 5] = [
    "echo more >> /data/appended && sha256sum /data/* > /sums",
    "cat /data/appended > /data/copy && cp /large /data/again && rm /large",
    "chmod 600 /data/mode && touch -d @1000000000 /data/time && ln /data/linked /second",
    "echo other > /data/overwritten && mv /data/moved /data/renamed && ln -f /data/copy /linked",
    "dd if=/dev/zero of=/large bs=1 seek=5 count=9 conv=notrunc && sed -i s/data/DATA/ /data/edited",
];

/// A layout with a base: programs of the machine's busybox, and files to be changed.
fn base(place: &Place, name: &str) -> Result<String, String> {
    let busybox = process::find("busybox").ok_or("busybox is not installed")?;
    let busybox = fs::read(busybox).map_err(|error| error.to_string())?;
    let links: Vec<String> =
        ["sha256sum", "mv", "ln", "chmod", "sed", "truncate", "chown"].map(|applet| format!("bin/{applet}")).into();
    let names: Vec<String> = ["appended", "copy", "mode", "time", "linked", "overwritten", "moved", "edited"]
        .map(|name| format!("data/{name}"))
        .into();
    let large = image::noise(usize::try_from(LARGE_BYTES).expect("fits"));
    let mut entries = vec![Entry::Directory("data"), Entry::File("large", &large)];
    entries.extend(names.iter().map(|name| Entry::File(name, b"data of the base\n")));
    entries.extend(links.iter().map(|link| Entry::Symlink(link, "busybox")));
    let ways = ways()?;
    let names: Vec<String> = ways.iter().flat_map(|ways| &ways.files).map(|name| format!("data/{name}")).collect();
    entries.extend(names.iter().map(|name| Entry::File(name, b"data of the base\n")));
    if let Some(ways) = &ways {
        entries.extend([Entry::Program("bin/change", &ways.program), Entry::File("data/source", b"source")]);
    }
    let layers = vec![busybox_layer(&busybox), image::tree_layer(&entries)];
    let layout = place.shared.path().join(format!("shared-{name}"));
    let built = Image::new(platform(), layers, json!({"Env": ["PATH=/bin"]}));
    image::write_layout(&layout, &[("latest", &built)]).map_err(|error| error.to_string())?;
    Ok(format!("--build-context=shared=oci-layout://{}", layout.display()))
}

/// `fixtures/borrow/change.c`, which changes files in every way that there is.
struct Ways {
    program: Vec<u8>,
    /// The files that it needs.
    files: Vec<String>,
}

/// `None` without a compiler.
fn ways() -> Result<Option<Ways>, String> {
    let text = |error: std::io::Error| error.to_string();
    let source = slipway::project().join("fixtures/borrow/change.c");
    let code = fs::read_to_string(&source).map_err(text)?;
    let named = code.split("file(\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()));
    let files = named.chain(["not-writable".to_owned()]).collect();
    let Some(compiler) = process::find("gcc") else { return Ok(None) };
    let dir = tempfile::tempdir().map_err(text)?;
    let program = dir.path().join("change");
    let mut compile = Command::new(compiler);
    compile.args(["-static", "-pthread", "-O1", "-w", "-o"]).arg(&program).arg(source);
    process::output(&mut compile, LIMIT)?;
    Ok(Some(Ways { program: fs::read(program).map_err(text)?, files }))
}

/// `count` stages that change the base side by side, and one that gathers what they made of it.
fn stages(count: usize) -> String {
    let mut dockerfile = String::new();
    for number in 0..count {
        dockerfile += &format!("FROM shared AS s{number}\nRUN {}\n", CHANGES[number % CHANGES.len()]);
    }
    dockerfile += "FROM shared\nRUN sha256sum /data/* > /sums\n";
    for number in 0..count {
        dockerfile += &format!("COPY --from=s{number} /data /of/{number}/\n");
    }
    dockerfile
}

/// The digest that a build of it has with trees of another kind.
fn expected(place: &Place, dockerfile: &str, base: &str) -> Result<String, String> {
    let project = place.project(dockerfile)?;
    project.built(&[&REPRODUCIBLE[..], &[base]].concat())
}

/// Bytes that are used on a volume.
fn used(at: &Path) -> Result<u64, String> {
    let found = rustix::fs::statvfs(at).map_err(|error| error.to_string())?;
    Ok((found.f_blocks - found.f_bfree) * found.f_frsize)
}

/// On a file system that shares blocks the trees of all stages take the place of one, in any work directory.
fn blocks(place: &Place) -> Outcome {
    let base = base(place, "blocks")?;
    for count in [3, 5] {
        // Not the change that writes a large file anew.
        let dockerfile = stages(count).replace("cp /large /data/again", "true");
        let project = place.project(&dockerfile)?;
        let work = project.path("work");
        let mkfs = ["mkfs.xfs", "-q", "-m", "reflink=1"];
        let _volume = match Volume::formatted(&project.path("volume"), &work, 400, &mkfs)? {
            Ok(volume) => volume,
            Err(reason) => return Ok(Some(reason)),
        };
        let before = used(&work)?;
        let arguments = [&REPRODUCIBLE[..], &["--trees", "directory", &base]].concat();
        same("digest", project.built(&arguments)?, expected(place, &dockerfile, &base)?)?;
        rustix::fs::syncfs(fs::File::open(&work).map_err(|error| error.to_string())?).map_err(|e| e.to_string())?;
        let taken = used(&work)? - before;
        // Once as the blob, once unpacked, once in the layer of the last change, and what the programs, small files and the file
        // system itself take. Without sharing there are as many trees as stages and one more.
        if taken > 4 * LARGE_BYTES {
            return Err(format!("{count} stages: {taken} bytes for a base of {LARGE_BYTES}"));
        }
    }
    Ok(None)
}

/// Stages that go on from one that ran commands get copies of its tree.
fn on_a_stage(place: &Place) -> Outcome {
    let base = base(place, "on_a_stage")?;
    let mut dockerfile =
        "FROM shared AS common\nRUN echo common > /data/common && echo common >> /data/appended\n".to_owned();
    dockerfile += &stages(3).replace("FROM shared", "FROM common");
    let project = place.project(&dockerfile)?;
    let arguments = [&REPRODUCIBLE[..], &["--trees", "directory", &base]].concat();
    same("digest", project.built(&arguments)?, expected(place, &dockerfile, &base)?)?;
    Ok(None)
}

/// Whoever is killed while trees are copied leaves nothing that the next build would take for one.
fn killed(place: &Place) -> Outcome {
    let base = base(place, "killed")?;
    let dockerfile = stages(3);
    let project = place.project(&dockerfile)?;
    let arguments = [&REPRODUCIBLE[..], &["--trees", "directory", &base]].concat();
    let whole = expected(place, &dockerfile, &base)?;
    for milliseconds in (0..1500).step_by(150) {
        let mut command = project.command(&arguments);
        // The group of the process is killed when its time is over.
        process::run(&mut command, Duration::from_millis(milliseconds)).map_err(|error| error.to_string())?;
    }
    same("digest", project.built(&arguments)?, whole)?;
    let left = fs::read_dir(project.path("work/trees/tmp")).map_err(|error| error.to_string())?.count();
    same("unfinished trees", left, 0)?;
    Ok(None)
}

/// The user of the tier `traced`, if this machine has one and a compiler.
fn traced_user() -> Result<Result<String, String>, String> {
    if ways()?.is_none() {
        return Ok(Err("gcc is not installed".to_owned()));
    }
    let user = user::single_id_user().filter(|_| user::is_root());
    Ok(user.ok_or_else(|| "needs root, and the user slipway-plain, whom scripts/setup makes".to_owned()))
}

/// Stages that change everything, beside one that must not see it.
fn stages_of_ways(count: usize) -> String {
    let mut dockerfile = String::new();
    for number in 0..count {
        dockerfile += &format!(
            "FROM shared AS w{number}\nRUN change && sha256sum /data/* > /sums\nRUN echo {number} >> /data/append\n"
        );
    }
    dockerfile += &stages(2).replace("AS s", "AS t").replace("--from=s", "--from=t");
    for number in 0..count {
        dockerfile +=
            &format!("COPY --from=w{number} /data /ways/{number}/data/\nCOPY --from=w{number} /sums /ways/{number}/\n");
    }
    dockerfile
}

/// Space that a directory takes, hard links once.
fn space(at: &Path) -> Result<u64, String> {
    let said = process::output(Command::new("du").args(["-s", "--block-size=1"]).arg(at), LIMIT)?;
    said.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).ok_or(said)
}

/// In the tier `traced` stages have the files of the base in common until they change them.
fn borrowed(place: &Place) -> Outcome {
    let user = match traced_user()? {
        Ok(user) => user,
        Err(reason) => return Ok(Some(reason)),
    };
    let base = base(place, "borrowed")?;
    let arguments = [&REPRODUCIBLE[..], &["--sandbox", "traced", &base]].concat();
    for count in [2, 5] {
        let dockerfile = stages_of_ways(count);
        let project = place.project(&dockerfile)?;
        let build = |what: &str| -> Result<String, String> {
            let ended = process::run(&mut project.command_as(&user, &arguments), LIMIT);
            let ended = expect(ended.map_err(|error| error.to_string())?, 0, &[]);
            Ok(ended.map_err(|error| format!("{what}: {error}"))?.result())
        };
        same("digest", build("first")?, expected(place, &dockerfile, &base)?)?;
        let trees = project.path("work/trees");
        let volume = process::output(Command::new("stat").args(["-f", "-c", "%T"]).arg(&trees), LIMIT)?;
        if fs::read_dir(trees.join("bases")).map_err(|error| error.to_string())?.count() == 0 {
            return Ok(Some(format!("a {volume} shares blocks, or has no birth times")));
        }
        // One base, and the copy of its largest file that one stage makes and the last one copies.
        let taken = space(&trees)?;
        if taken > 3 * LARGE_BYTES + LARGE_BYTES / 2 {
            let files = process::output(Command::new("find").arg(&trees).args(["-size", "+1000k", "-ls"]), LIMIT)?;
            return Err(format!("{count} stages: {taken} bytes for a base of {LARGE_BYTES}\n{files}"));
        }
        // The base is as it was: what stands on it anew is right.
        let changed = dockerfile.replace("RUN change", "RUN true && change");
        project.write("Dockerfile", &changed)?;
        let again = place.project(&changed)?.built(&[&REPRODUCIBLE[..], &[&base]].concat())?;
        same("digest of a changed build", build("changed")?, again)?;
    }
    Ok(None)
}

/// Where, as whom if it can be, and how something is built.
type Way<'a> = (&'a Project<'a>, Result<Option<&'a str>, &'a String>, &'a [&'a str]);

/// Steps that change, in every way, files of the large layer that is packed meanwhile. The images are those of overlayfs.
fn packed_meanwhile(place: &Place) -> Outcome {
    let traced = traced_user()?;
    let base = base(place, "packed")?;
    // Files of the step's own, with the names and the content of the base's; more than 32 MiB with the large one.
    let change = if ways()?.is_some() { "change" } else { "busybox chmod 600 /data/mode" };
    let dockerfile = format!(
        "FROM shared\nRUN busybox cp -a /data /d && busybox rm -r /data && busybox mv /d /data && busybox cp /large /more && echo one >> /large\n\
         RUN {change} && echo two >> /large && busybox rm /more && sha256sum /data/* > /sums\n\
         RUN echo three >> /data/append && mv /large /moved && echo > /more\nRUN sha256sum /data/* /moved > /sums\n"
    );
    let wanted = expected(place, &dockerfile, &base)?;
    let xfs = place.project(&dockerfile)?;
    let mkfs = ["mkfs.xfs", "-q", "-m", "reflink=1"];
    let volume = match user::is_root() {
        true => Volume::formatted(&xfs.path("volume"), &xfs.path("work"), 400, &mkfs)?,
        false => Err("needs root".to_owned()),
    };
    let plain = place.project(&dockerfile)?;
    let seen = place.project(&dockerfile)?;
    let mut lacks = None;
    let ways: [Way<'_>; 3] = [
        (&plain, Ok(None), &["--trees", "directory"]),
        (&xfs, volume.as_ref().map(|_| None), &["--trees", "directory"]),
        (&seen, traced.as_ref().map(|user| Some(&**user)), &["--sandbox", "traced"]),
    ];
    for (project, user, way) in ways {
        let user = match user {
            Ok(user) => user,
            Err(reason) => {
                lacks = Some(reason.clone());
                continue;
            }
        };
        let arguments = [&REPRODUCIBLE[..], way, &["--progress", "json", &base]].concat();
        let run = |limit: Duration| {
            let mut command = match user {
                Some(user) => project.command_as(user, &arguments),
                None => project.command(&arguments),
            };
            process::run(&mut command, limit).map_err(|error| error.to_string())
        };
        // Killed at any moment, it leaves nothing that the next one would take for something else.
        for milliseconds in (300..1600).step_by(600) {
            run(Duration::from_millis(milliseconds))?;
        }
        let ended = run(LIMIT)?;
        same("digest", expect(ended, 0, &[])?.result(), wanted.clone()).map_err(|error| format!("{way:?}: {error}"))?;
        // Nothing is left of it, and all steps are done.
        let left = fs::read_dir(project.path("work/trees/tmp")).map_err(|error| error.to_string())?.count();
        same("unfinished trees", left, 0)?;
        let again = expect(run(LIMIT)?, 0, &[])?;
        if again.text().contains("\"cached\":false") {
            return Err(format!("{way:?}: a step was done again\n{}", again.text()));
        }
    }
    drop(volume);
    Ok(lacks)
}

/// Two builds on one volume at once, one of them killed now and then, have the same base.
fn borrowed_side_by_side(place: &Place) -> Outcome {
    let user = match traced_user()? {
        Ok(user) => user,
        Err(reason) => return Ok(Some(reason)),
    };
    let base = base(place, "beside")?;
    let arguments = [&REPRODUCIBLE[..3], &["type=cacheonly", "--sandbox", "traced", &base]].concat();
    let dockerfile = stages_of_ways(2);
    let project = place.project(&dockerfile)?;
    let changed = place.project(&dockerfile.replace("RUN change", "RUN true && change"))?;
    let on_the_same = |of: &Project<'_>, limit: Duration| {
        let mut command = user::command(&user, &place.binary);
        command.args(["build", "--progress", "plain", "--work-dir"]).arg(project.path("work")).args(&arguments);
        command.arg(of.path("context")).current_dir(project.dir.path());
        process::run(&mut command, limit).map_err(|error| error.to_string())
    };
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| on_the_same(&changed, LIMIT));
        for milliseconds in (50..900).step_by(170) {
            on_the_same(&project, Duration::from_millis(milliseconds))?;
        }
        expect(on_the_same(&project, LIMIT)?, 0, &[])?;
        expect(beside.join().map_err(|_| "panic")??, 0, &[])?;
        Ok::<(), String>(())
    })?;
    let last = [&REPRODUCIBLE[..], &["--sandbox", "traced", &base]].concat();
    let ended = process::run(&mut project.command_as(&user, &last), LIMIT).map_err(|error| error.to_string())?;
    same("digest", expect(ended, 0, &[])?.result(), expected(place, &dockerfile, &base)?)?;
    Ok(None)
}

/// Builds as `user`, if that is somebody else, and gives the bytes that were pulled.
fn pulled(project: &Project<'_>, user: Option<&str>, arguments: &[&str]) -> Result<u64, String> {
    let report = project.path("report.json").display().to_string();
    let arguments = [arguments, &["--report", &report]].concat();
    let mut command = match user {
        Some(user) => project.command_as(user, &arguments),
        None => project.command(&arguments),
    };
    expect(process::run(&mut command, LIMIT).map_err(|error| error.to_string())?, 0, &[])?;
    read_json(Path::new(&report))?["bytes_pulled"].as_u64().ok_or_else(|| "no bytes pulled in the report".to_owned())
}

/// Without overlayfs the blobs of a base go from its registry to another one and into the tree, and are not kept. Where trees can
/// have something in common with the base, later builds need them no more.
fn one_form(place: &Place) -> Outcome {
    let Some(other) = Distribution::start().map_err(|error| error.to_string())? else {
        return Ok(Some("docker-registry is not installed".to_owned()));
    };
    let traced = user::single_id_user().filter(|_| user::is_root());
    let mut lacks = None;
    for tier in [None, traced.as_deref()] {
        // To set a mode that a file has already makes it one to be compared with what the base has.
        let dockerfile = "FROM BASE\nRUN busybox chmod 755 /bin/busybox && echo a > /a\n";
        let project = place.project(dockerfile)?;
        let name = format!("{}/kept/{}:1", other.host(), if tier.is_some() { "traced" } else { "directory" });
        let ways: &[&str] = if tier.is_some() { &["--sandbox", "traced"] } else { &["--trees", "directory"] };
        let arguments = [&["-t", &name, "--push"], ways].concat();
        let entries = |of: &str| -> Result<usize, String> {
            match fs::read_dir(project.path("work").join(of)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
                found => Ok(found.map_err(|error| error.to_string())?.count()),
            }
        };
        let first = pulled(&project, tier, &arguments)?;
        if first < 100_000 {
            return Err(format!("{first} bytes are no base"));
        }
        let large = |entry: fs::DirEntry| entry.metadata().is_ok_and(|of| of.len() > 100_000).then(|| entry.path());
        let blobs = fs::read_dir(project.path("work/blobs/sha256")).map_err(|error| error.to_string())?;
        same("blobs beside the tree", blobs.flatten().filter_map(large).next(), None)?;
        project.write("Dockerfile", dockerfile.replace("BASE", &place.base()).replace("echo a", "echo b"))?;
        let again = pulled(&project, tier, &arguments)?;
        match (tier, entries("trees/bases")?) {
            (Some(_), 0) => lacks = Some("no file system with birth times"),
            (_, 0) => {}
            (_, bases) => {
                same("bases", bases, 1)?;
                if again > 100_000 {
                    return Err(format!("{again} bytes were pulled for a base that is here"));
                }
            }
        }
        place.skopeo(&["inspect", "--tls-verify=false", &format!("docker://{name}")])?;
    }
    if traced.is_none() {
        lacks = Some("no user slipway-plain, whom scripts/setup makes");
    }
    Ok(lacks.map(str::to_owned))
}

/// Where nothing can be mounted, files of an image that a command must not see are moved aside. That changes them for nobody, so
/// no layer is read to find out what they were, least of all one that has been pushed and is not here any more.
fn covered(place: &Place) -> Outcome {
    if !user::is_root() {
        return Ok(Some("needs root".to_owned()));
    }
    let Some(other) = Distribution::start().map_err(|error| error.to_string())? else {
        return Ok(Some("docker-registry is not installed".to_owned()));
    };
    let noise = "RUN busybox dd if=/dev/urandom of=/noise bs=65536 count=64\n";
    let build = |name: &str, more: &str| {
        let dockerfile =
            format!("FROM {}\nCOPY hosts /etc/hosts\nCOPY hosts /etc/resolv.conf\n{noise}{more}", place.base());
        let project = place.project(&dockerfile)?;
        project.write("hosts", "127.0.0.1 from-the-image\n")?;
        let image = format!("{}/covered/{name}:1", other.host());
        pulled(&project, None, &["-t", &image, "--push", "--sandbox", "chroot"])
    };
    let more = "RUN ! busybox grep image /etc/hosts\nRUN busybox true\nRUN busybox touch /end\n";
    same("bytes pulled with three steps more", build("more", more)?, build("less", "")?)?;
    Ok(None)
}
