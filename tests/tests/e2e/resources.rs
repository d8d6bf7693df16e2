//! What a build takes, what it may take, and what is left when it is ended: disk, memory, kills at any moment, several at once.

use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use super::faults::{Mount, left_of};
use super::*;

pub const TRIALS: &[Row] = &[
    ("resources::report-and-trace", report),
    ("resources::files-are-read-once", read_once),
    ("resources::disk-budget", disk_budget),
    ("resources::disk-budget-of-own-writes", budget_of_own_writes),
    ("resources::old-trees-make-room", old_trees_make_room),
    ("resources::memory-budget", memory_budget),
    ("resources::memory-of-the-control-group", control_group),
    ("resources::disk-full-at-any-byte", full_at_any_byte),
    ("resources::killed-at-any-moment", killed_at_any_moment),
    ("resources::builds-side-by-side", side_by_side),
    ("resources::pieces-for-a-proxy", pieces),
];

/// Arguments with which equal builds give equal digests on any work directory.
const REPRODUCIBLE: [&str; 4] =
    ["--build-arg", "SOURCE_DATE_EPOCH=1700000000", "-o", "type=oci,dest=image.tar,rewrite-timestamp=true"];

pub fn number(value: &Value, name: &str) -> Result<u64, String> {
    value[name].as_u64().ok_or_else(|| format!("no number `{name}` in {value}"))
}

fn report(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nRUN dd if=/dev/urandom of=/large bs=1M count=40\nCOPY f /f\n")?;
    project.write("f", "content")?;
    let name = place.name("reported");
    let arguments = ["-t", &name, "--push", "--report", "report.json", "--report-trace", "trace.json"];
    expect(project.build(&arguments)?, 0, &["built in ", " under the work directory, 0 B elsewhere"])?;
    let report = read_json(&project.path("report.json"))?;
    const LARGE: u64 = 40 << 20;
    for (name, least) in [
        ("bytes_compressed", LARGE),
        ("bytes_pushed", LARGE),
        ("bytes_pulled", 1),
        ("bytes_read", LARGE),
        ("bytes_written", LARGE),
        ("peak_disk_bytes", LARGE),
        ("peak_anonymous_bytes", 1 << 20),
    ] {
        if number(&report, name)? < least {
            return Err(format!("{name} is less than {least} in {report}"));
        }
    }
    same("bytes elsewhere", number(&report, "peak_disk_elsewhere_bytes")?, 0)?;
    let step = &report["steps"][0];
    for name in ["bytes_compressed", "bytes_written", "bytes_pushed"] {
        if number(step, name)? < LARGE {
            return Err(format!("{name} of the first step: {step}"));
        }
    }
    for phase in ["tree", "run", "changes", "layer"] {
        step["phases"][phase].as_f64().ok_or_else(|| format!("no phase {phase}: {step}"))?;
    }
    let trace = read_json(&project.path("trace.json"))?;
    let events = trace["traceEvents"].as_array().ok_or("no events")?;
    for kind in ["step", "phase", "pull", "push"] {
        let of_kind = events.iter().filter(|event| event["ph"] == "X" && event["cat"] == kind);
        if !of_kind.clone().all(|event| event["dur"].is_u64()) || of_kind.count() == 0 {
            return Err(format!("spans of kind {kind}: {trace}"));
        }
    }
    Ok(None)
}

/// Where no step was done that differs in the content of files alone, files of a context are read once: no key decides whether they are
/// needed.
fn read_once(place: &Place) -> Outcome {
    const LARGE: usize = 48 << 20;
    const SMALL: usize = 300;
    // What the programs of the RUN, the base and the builder itself read.
    const OTHER: u64 = 12 << 20;
    let noise = image::noise(LARGE);
    // With a command behind it the copy in the tree is read, too.
    for (what, last, times) in [("a layer of files", "WORKDIR /end", 1), ("a tree", "RUN echo ran > /ran", 2)] {
        let project = place.project(&format!("FROM BASE\nCOPY . /all/\n{last}\n"))?;
        project.write("large", &noise)?;
        for number in 0..SMALL {
            project.write(format!("d{}/file-{number}", number % 7), &noise[number * 1000..][..number * 100])?;
        }
        let hole = fs::File::create(project.path("context/hole")).map_err(|error| error.to_string())?;
        hole.set_len(200 << 20).map_err(|error| error.to_string())?;
        project.write("hidden/empty", "")?;
        let arguments = ["-o", "type=cacheonly", "--report", "report.json"];
        project.built(&arguments)?;
        let report = read_json(&project.path("report.json"))?;
        let read = number(&report, "bytes_read")?;
        if read > times * LARGE as u64 + OTHER {
            return Err(format!("{what}: {read} bytes were read of files of {LARGE}"));
        }
        same("files whose content was read", number(&report, "context_files_read")?, SMALL as u64 + 4)?;
        same("and known", number(&report, "context_files_known")?, 0)?;
        // The key that was made afterwards is the one that is asked for now.
        expect(project.build(&arguments)?, 0, &["COPY . /all/\n#0 CACHED"])?;
        same("layers compressed", number(&read_json(&project.path("report.json"))?, "bytes_compressed")?, 0)?;
        // Only what changed makes a difference.
        project.write("d1/file-1", "other")?;
        let ended = expect(project.build(&arguments)?, 0, &["/d1/file-1"])?;
        if ended.text().contains("file-2") {
            return Err(format!("one file was changed: {}", ended.text()));
        }
        // No step was done with files of these sizes, which is known before any is read; what changed is told nevertheless.
        project.write("large", noise.iter().rev().copied().collect::<Vec<u8>>())?;
        project.write("d1/file-1", "longer than other")?;
        expect(project.build(&arguments)?, 0, &["not cached: file /d1/file-1 changed, and 1 more"])?;
        let read = number(&read_json(&project.path("report.json"))?, "bytes_read")?;
        if read > times * LARGE as u64 + OTHER {
            return Err(format!("{what}, with another size: {read} bytes were read of files of {LARGE}"));
        }
        expect(project.build(&arguments)?, 0, &["COPY . /all/\n#0 CACHED"])?;
    }
    Ok(None)
}

fn disk_budget(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nRUN dd if=/dev/zero of=/large bs=1M count=60; sleep 20\n")?;
    let error = ["RUN dd if=/dev/zero", "bytes are in use under the work directory, more than the 41943040"];
    expect(project.build(&["--max-disk", "40m", "--report", "report.json"])?, 5, &error)?;
    wait("the end of the RUN", || left_of(&project).is_empty())?;
    // What was done is told all the same.
    let report = read_json(&project.path("report.json"))?;
    same("state of the step", report["steps"][0]["state"].as_str(), Some("cancelled"))?;
    let told = report["error"].as_str().ok_or("no error in the report")?;
    if !told.contains("more than the 41943040") || number(&report, "bytes_pulled")? == 0 {
        return Err(format!("the report of a build that failed: {report}"));
    }
    // Nothing is lost, and what the failed step wrote is gone.
    project.write("Dockerfile", format!("FROM {}\nRUN echo small > /small\n", place.base()))?;
    project.built(&["--max-disk", "40m"])?;
    Ok(None)
}

/// What the builder writes itself is counted before: nothing is ever more than it may be but the buffers of its threads.
fn budget_of_own_writes(place: &Place) -> Outcome {
    const BUDGET: u64 = 40 << 20;
    let budget = BUDGET.to_string();
    let noise = image::noise(60 << 20);
    let large = image::tree_layer(&[Entry::Directory("lib"), Entry::File("lib/noise", &noise)]);
    let layout = place.shared.path().join("large");
    image::write_layout(&layout, &[("latest", &Image::new("linux/amd64", vec![large], json!({})))])
        .map_err(|error| error.to_string())?;
    let large = format!("--build-context=large=oci-layout://{}", layout.display());
    let arguments = ["--max-disk", &budget, "--report", "report.json", "--unpack", "always", &large];
    for (what, dockerfile, step) in [
        ("a layer", "FROM BASE\nCOPY noise /noise\n", "COPY noise /noise"),
        ("a base", "FROM large\nWORKDIR /new\n", "WORKDIR /new"),
    ] {
        let project = place.project(dockerfile)?;
        project.write("noise", &noise)?;
        expect(project.build(&arguments)?, 5, &[step, "more than the 41943040"]).map_err(|e| format!("{what}: {e}"))?;
        let report = read_json(&project.path("report.json"))?;
        let peak = number(&report, "peak_disk_bytes")?;
        if peak > BUDGET + (4 << 20) {
            return Err(format!("{what}: {peak} bytes with --max-disk {BUDGET}"));
        }
        // Nothing is lost by it.
        project.write("Dockerfile", format!("FROM {}\nRUN echo small > /small\n", place.base()))?;
        project.built(&["--max-disk", &budget])?;
    }
    let project = place.project("")?;
    project.write("noise", &noise)?;
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(project.path("context.tar")).arg("-C").arg(project.path("context")).arg(".");
    process::output(&mut tar, LIMIT)?;
    let mut command = Command::new(&place.binary);
    command.args(["build", "--max-disk", &budget, "--work-dir"]).arg(project.path("work")).arg("-");
    let input = fs::read(project.path("context.tar")).map_err(|error| error.to_string())?;
    let ended = process::run_reading(&mut command, &input, LIMIT).map_err(|error| error.to_string())?;
    expect(ended, 5, &["fetching the context", "more than the 41943040"])?;
    Ok(None)
}

/// Trees of earlier builds go before a build is refused what it needs.
fn old_trees_make_room(place: &Place) -> Outcome {
    let project = place.project("")?;
    let arguments = ["--max-disk", "100m", "--trees", "directory"];
    for content in ["first", "second", "third"] {
        let run = format!("RUN dd if=/dev/zero of=/large bs=1M count=50 && echo {content} > /content");
        project.write("Dockerfile", format!("FROM {}\n{run}\n", place.base()))?;
        project.built(&arguments)?;
        // Whatever went, what is done stays done.
        expect(project.build(&arguments)?, 0, &["CACHED"])?;
    }
    Ok(None)
}

fn memory_budget(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nCOPY large /large\nRUN cp /large /again\n")?;
    project.write("large", image::noise(80 << 20))?;
    let name = place.name("in-little-memory");
    for (number_of_jobs, budget) in [("16", 64_u64 << 20), ("2", 150 << 20)] {
        let limit = budget.to_string();
        let arguments = ["-t", &name, "--push", "--no-cache", "--jobs", number_of_jobs, "--report", "report.json"];
        project.built(&[&arguments[..], &["--max-memory", &limit]].concat())?;
        let peak = number(&read_json(&project.path("report.json"))?, "peak_anonymous_bytes")?;
        if peak > budget {
            return Err(format!("{peak} bytes with --max-memory {budget}"));
        }
    }
    expect(project.build(&["--max-memory", "1m"])?, 2, &["--max-memory", "at least"])?;
    Ok(None)
}

/// A control group with a limit for memory, page cache included; removed when dropped.
struct Group(PathBuf);

impl Group {
    /// The inner error says why there is none.
    fn with_memory(bytes: u64) -> Result<Self, String> {
        let name = format!("slipway-test-{}", std::process::id());
        let trees = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        let mut refused = String::new();
        for (root, file) in trees {
            let path = Path::new(root).join(&name);
            match fs::create_dir(&path).and_then(|()| fs::write(path.join(file), bytes.to_string())) {
                Ok(()) => return Ok(Self(path)),
                Err(error) => {
                    _ = fs::remove_dir(&path);
                    refused = format!("no control group with a memory limit can be made: {}: {error}", path.display());
                }
            }
        }
        Err(refused)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        _ = fs::remove_dir(&self.0);
    }
}

fn control_group(place: &Place) -> Outcome {
    // More than twice the limit, by a RUN, through the pipeline and into an archive. `make bench-memory` takes a layer of
    // 8 GiB and a limit of 256 MiB.
    let number = |name: &str, usual: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (layer, limit) = (number("SLIPWAY_TEST_LAYER_MIB", 300), number("SLIPWAY_TEST_LIMIT_MIB", 128));
    let group = match Group::with_memory(limit << 20) {
        Ok(group) => group,
        Err(reason) => return Ok(Some(reason)),
    };
    let run = format!("RUN dd if=/dev/urandom of=/large bs=1M count={layer}");
    let project = place.project(&format!("FROM BASE\n{run}\nRUN echo after > /after\n"))?;
    // What does not fit on the disk twice goes nowhere.
    let output = if layer > 1024 { "type=cacheonly" } else { "type=oci,dest=image.tar" };
    let build = project.command(&["-o", output]);
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg("echo $$ > \"$0\"/cgroup.procs && exec \"$@\"").arg(&group.0);
    command.arg(build.get_program()).args(build.get_args()).current_dir(project.dir.path());
    let ended = process::run(&mut command, LIMIT.max(Duration::from_secs(layer))).map_err(|error| error.to_string())?;
    expect(ended, 0, &["built in "])?;
    Ok(None)
}

fn full_at_any_byte(place: &Place) -> Outcome {
    let dockerfile =
        "FROM BASE\nCOPY f /f\nRUN dd if=/dev/zero of=/zero bs=1M count=3 && cp /f /g\nRUN cat /f /g > /both\n";
    let project = place.project(dockerfile)?;
    project.write("f", image::noise(2 << 20))?;
    let work = match Mount::tmpfs(&project.path("work"), "size=512m")? {
        Ok(mount) => mount,
        Err(reason) => return Ok(Some(reason)),
    };
    let expected = project.built(&REPRODUCIBLE)?;
    drop(work);
    // Each size ends another write: of a blob, a tree, a record, a file of the RUN.
    for kibibytes in [64, 300, 1500, 3000, 4500, 6000, 8000, 10_000, 12_500, 15_000, 18_000, 22_000] {
        _ = fs::remove_file(project.path("image.tar"));
        let work = Mount::tmpfs(&project.path("work"), &format!("size={kibibytes}k"))??;
        let ended = project.build(&REPRODUCIBLE)?;
        match ended.status.and_then(|status| status.code()) {
            Some(0) => {}
            // The builder's write, or one of the RUN's own.
            Some(5 | 1) if ended.text().contains("No space left") => {
                if project.path("image.tar").exists() {
                    return Err(format!("an output beside a failure with {kibibytes}k"));
                }
            }
            _ => return Err(format!("{} with {kibibytes}k: {}", ended.how(), ended.text())),
        }
        work.again("size=512m")?;
        same("digest after a full disk", project.built(&REPRODUCIBLE)?, expected.clone())?;
    }
    Ok(None)
}

/// A child in a process group of its own, killed when dropped.
struct Running(std::process::Child);

impl Running {
    fn start(mut command: Command) -> Result<Self, String> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        command.spawn().map(Self).map_err(|error| error.to_string())
    }

    /// SIGKILL to the builder alone, as an out-of-memory killer does it.
    fn kill(mut self) -> Result<(), String> {
        self.0.kill().and_then(|()| self.0.wait()).map(drop).map_err(|error| error.to_string())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Kills in all, over both ways to keep trees.
const KILLS: u32 = 50;

/// Kills of one build before it may end.
const KILLS_OF_ONE: u32 = 5;

fn killed_at_any_moment(place: &Place) -> Outcome {
    let dockerfile = "FROM BASE AS made\nARG ROUND\nRUN echo $ROUND > /round && dd if=/dev/zero of=/zero bs=1M count=34\n\
                      RUN cp /zero /one\nFROM BASE\nCOPY f /f\nRUN cat /f /f > /twice\nCOPY --from=made /round /one /\n";
    let project = place.project(dockerfile)?;
    project.write("f", image::noise(1 << 20))?;
    fn arguments<'a>(trees: &'a str, round: &'a str) -> Vec<&'a str> {
        [&REPRODUCIBLE[..], &["--trees", trees, "--build-arg", round]].concat()
    }
    // Any sequence does; a failure names the moment.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(std::process::id());
    let mut kills = 0;
    for round in 0..KILLS / KILLS_OF_ONE {
        let trees = if round % 2 == 0 { "auto" } else { "directory" };
        let round = format!("ROUND={round}");
        let whole = place.project("")?;
        fs::remove_dir_all(whole.path("context")).map_err(|error| error.to_string())?;
        std::os::unix::fs::symlink(project.path("context"), whole.path("context")).map_err(|e| e.to_string())?;
        let started = Instant::now();
        let expected = whole.built(&arguments(trees, &round))?;
        let whole_time = started.elapsed();
        for _ in 0..KILLS_OF_ONE {
            let child = Running::start(project.command(&arguments(trees, &round)))?;
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let part = (random % 1000) as u32;
            std::thread::sleep(whole_time * part / 1000);
            child.kill()?;
            kills += 1;
        }
        let ended = expect(project.build(&arguments(trees, &round))?, 0, &[])?;
        same(&format!("digest after kills, {trees}, {round}"), ended.result(), expected)?;
        let again = expect(project.build(&arguments(trees, &round))?, 0, &[])?;
        same("steps that are done again", again.text().matches(" DONE ").count(), 0)?;
        // What the killed ones left is gone.
        for directory in ["work/tmp", "work/trees/tmp"] {
            let left = fs::read_dir(project.path(directory)).into_iter().flatten().flatten();
            let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name != "lock").collect();
            same(directory, left.len(), 0)?;
        }
    }
    same("kills", kills, KILLS)?;
    wait("the end of every process", || left_of(&project).is_empty())?;
    Ok(None)
}

fn side_by_side(place: &Place) -> Outcome {
    let dockerfile = "FROM BASE\nRUN dd if=/dev/zero of=/large bs=1M count=36\nRUN cp /large /copy\nCOPY f /f\n";
    let project = place.project(dockerfile)?;
    project.write("f", "content")?;
    let archive = |number: u32| format!("type=oci,dest=image{number}.tar,rewrite-timestamp=true");
    let arguments = |number| {
        let mut arguments: Vec<String> = REPRODUCIBLE[..3].iter().map(|text| (*text).to_owned()).collect();
        arguments.push(archive(number));
        arguments
    };
    let command = |number| project.command(&arguments(number).iter().map(String::as_str).collect::<Vec<_>>());
    // One of them is killed while the others run.
    let doomed = Running::start(command(0))?;
    let others = (1..4).map(|number| Running::start(command(number))).collect::<Result<Vec<_>, _>>()?;
    std::thread::sleep(Duration::from_millis(300));
    doomed.kill()?;
    let mut digests = std::collections::BTreeSet::new();
    for (number, mut other) in others.into_iter().enumerate() {
        let status = other.0.wait().map_err(|error| error.to_string())?;
        same(&format!("exit code of build {number}"), status.code(), Some(0))?;
        digests.insert(project.built(&[&REPRODUCIBLE[..3], &[&archive(9)]].concat())?);
    }
    same("digests", digests.len(), 1)?;
    Ok(None)
}

fn pieces(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nCOPY f /f\n")?;
    project.write("f", image::noise(5 << 20))?;
    let name = place.name("in-pieces");
    project.built(&["-t", &name, "--push", "--max-chunk", "1m"])?;
    let digest =
        place.skopeo(&["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &format!("docker://{name}")])?;
    let again = place.name("in-one-piece");
    same("digest", project.built(&["-t", &again, "--push"])?, digest.trim().to_owned())?;
    Ok(None)
}
