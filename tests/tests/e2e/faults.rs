//! What goes wrong, and with which code it ends.

use std::io;
use std::process::{Child, Stdio};

use super::*;

pub const TRIALS: &[Row] = &[
    ("exit::of-the-run", run_code),
    ("exit::input", input),
    ("exit::registry", registry),
    ("exit::login", login),
    ("exit::usage", usage),
    ("exit::interrupted", interrupted),
    ("exit::read-only-work-dir", read_only),
    ("exit::full-disk", full),
    ("exit::unreadable-file", unreadable),
];

fn run_code(place: &Place) -> Outcome {
    for code in [1, 7, 200] {
        let project = place.project(&format!("FROM BASE\nRUN echo said; exit {code}\n"))?;
        expect(project.build(&[])?, code, &["said", "RUN echo said", ">>>"])?;
    }
    // More than the kernel takes as one argument, which only a file may have.
    let long = format!(": {}\n", "x".repeat(990)).repeat(200);
    let project = place.project(&format!("FROM BASE\nRUN <<E\n{long}E\n"))?;
    expect(project.build(&[])?, 126, &["Argument list too long", "begins with `#!/bin/sh`"])?;
    project.write("Dockerfile", format!("FROM {}\nRUN <<E\n#!/bin/sh\n{long}E\n", place.base()))?;
    project.built(&[])?;
    Ok(None)
}

fn input(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nCOPY absent /\n")?;
    expect(project.build(&[])?, 3, &["absent", ">>>"])?;
    project.remove("Dockerfile")?;
    expect(project.build(&[])?, 3, &["Dockerfile"])?;
    fs::remove_dir(project.path("context")).map_err(|error| error.to_string())?;
    expect(project.build(&[])?, 3, &["context"])?;
    let project = place.project("FROM BASE\nCOPPY a /\n")?;
    expect(project.build(&[])?, 3, &["COPPY"])?;
    Ok(None)
}

fn registry(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\n")?;
    project.write("Dockerfile", format!("FROM {}\n", place.name("unknown")))?;
    expect(project.build(&[])?, 4, &["unknown", "not found"])?;
    // Port 9 is that of `discard`, where nothing listens.
    project.write("Dockerfile", "FROM 127.0.0.1:9/down\n")?;
    expect(project.build(&[])?, 4, &["127.0.0.1:9"])?;
    Ok(None)
}

fn login(place: &Place) -> Outcome {
    let Some(closed) = closed_registry()? else { return Ok(Some("docker-registry is not installed".to_owned())) };
    let project = place.project("FROM BASE\nRUN echo a > /a\n")?;
    let name = format!("{}/pushed:latest", closed.host());
    let log_in = |auth: &str| {
        let config = json!({"auths": {closed.host(): {"auth": auth}}}).to_string();
        fs::create_dir_all(project.path("docker")).and_then(|()| fs::write(project.path("docker/config.json"), config))
    };
    expect(project.build(&["-t", &name, "--push"])?, 4, &[closed.host()])?;
    // tester:wrong, then tester:secret
    log_in("dGVzdGVyOndyb25n").map_err(|error| error.to_string())?;
    let ended = expect(project.build(&["-t", &name, "--push"])?, 4, &[closed.host()])?;
    if ended.text().contains("wrong") || ended.text().contains("dGVzdGVyOndyb25n") {
        return Err(format!("the password is shown: {}", ended.text()));
    }
    log_in("dGVzdGVyOnNlY3JldA==").map_err(|error| error.to_string())?;
    project.built(&["-t", &name, "--push"])?;
    Ok(None)
}

fn usage(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\n")?;
    expect(project.build(&["--no-cahce"])?, 2, &["--no-cache"])?;
    expect(project.build(&["--push"])?, 2, &["--push"])?;
    expect(project.build(&["-o", "type=nonsense"])?, 2, &["nonsense"])?;
    Ok(None)
}

/// A build whose RUN has begun.
pub fn started(project: &Project<'_>) -> Result<Child, String> {
    let stderr = fs::File::create(project.path("stderr")).map_err(|error| error.to_string())?;
    let mut command = project.command(&[]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn();
    let child = child.map_err(|error| error.to_string())?;
    wait("the RUN's start", || !left_of(project).is_empty() && sleeps(project))?;
    Ok(child)
}

/// Whether a `sleep` runs in a tree of the work directory.
fn sleeps(project: &Project<'_>) -> bool {
    left_of(project)
        .iter()
        .any(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep\x001000")))
}

/// Processes of builds in this work directory: the builder by its arguments, its RUNs by their mounts.
pub fn left_of(project: &Project<'_>) -> Vec<u32> {
    let dir = project.dir.path().as_os_str().as_bytes().to_owned();
    let has = |path: String| {
        fs::read(path).is_ok_and(|bytes| bytes.windows(dir.len()).any(|window| window == dir.as_slice()))
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| *pid != std::process::id())
        .filter(|pid| has(format!("/proc/{pid}/cmdline")) || has(format!("/proc/{pid}/mountinfo")))
        .collect()
}

fn interrupted(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nRUN sleep 1000\n")?;
    let mut child = started(&project)?;
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).ok_or("no pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::INT).map_err(|error| error.to_string())?;
    let mut status = None;
    wait("the end after SIGINT", || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    })?;
    same("exit code", status.and_then(|status| status.code()), Some(130))?;
    wait("the end of every process", || left_of(&project).is_empty())?;
    Ok(None)
}

fn read_only(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nRUN echo a > /a\n")?;
    let work = match Mount::tmpfs(&project.path("work"), "ro")? {
        Ok(mount) => mount,
        Err(reason) => return Ok(Some(reason)),
    };
    expect(project.build(&[])?, 5, &["work", "ead-only"])?;
    drop(work);
    Ok(None)
}

fn full(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nRUN dd if=/dev/urandom of=/large bs=1M count=6\nCOPY large /copied\n")?;
    project.write("large", image::noise(16 << 20))?;
    let work = match Mount::tmpfs(&project.path("work"), "size=24m")? {
        Ok(mount) => mount,
        Err(reason) => return Ok(Some(reason)),
    };
    expect(project.build(&["-o", "type=oci,dest=image.tar"])?, 5, &["No space left"])?;
    if project.path("image.tar").exists() {
        return Err("a build that failed left its output".to_owned());
    }
    work.again("size=512m")?;
    project.built(&["-o", "type=oci,dest=image.tar"])?;
    // It is not always the work directory that is full.
    let _out = Mount::tmpfs(&project.path("out"), "size=2m")?;
    let ended = expect(project.build(&["-o", "type=oci,dest=out/image.tar"])?, 5, &["No space left", "another place"])?;
    same("blame of the work directory", ended.text().contains("--work-dir"), false)?;
    same("what is left", fs::read_dir(project.path("out")).map(Iterator::count).ok(), Some(0))?;
    Ok(None)
}

fn unreadable(place: &Place) -> Outcome {
    let Some(name) = user::test_user().filter(|_| user::is_root()) else {
        return Ok(Some("needs root and the user of scripts/setup".to_owned()));
    };
    let project = place.project("FROM BASE\nCOPY closed /\n")?;
    project.write("closed", "")?;
    fs::set_permissions(project.path("context/closed"), Permissions::from_mode(0o000))
        .map_err(|error| error.to_string())?;
    let mut command = project.command_as(&name, &[]);
    let ended = process::run(&mut command, LIMIT).map_err(|error: io::Error| error.to_string())?;
    expect(ended, 3, &["closed", "ermission denied"])?;
    Ok(None)
}

/// A file system, unmounted when dropped.
pub struct Mount(PathBuf);

impl Mount {
    /// The inner error says why this machine does not allow it.
    pub fn tmpfs(path: &Path, options: &str) -> Result<Result<Self, String>, String> {
        Self::with(&["-t", "tmpfs", "-o", options, "tmpfs"], path)
    }

    /// A file system in a file.
    pub fn image(image: &Path, path: &Path) -> Result<Result<Self, String>, String> {
        Self::with(&["-o", "loop", &image.display().to_string()], path)
    }

    fn with(arguments: &[&str], path: &Path) -> Result<Result<Self, String>, String> {
        fs::create_dir_all(path).map_err(|error| error.to_string())?;
        if !user::is_root() {
            return Ok(Err("only root can mount".to_owned()));
        }
        let mut command = Command::new("mount");
        command.args(arguments).arg(path);
        Ok(process::output(&mut command, LIMIT).map(|_| Self(path.to_owned())))
    }

    pub fn again(&self, options: &str) -> Result<(), String> {
        let mut command = Command::new("mount");
        command.args(["-o", &format!("remount,{options}")]).arg(&self.0);
        process::output(&mut command, LIMIT).map(drop)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a RUN's processes may still hold it for a moment.
        _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
