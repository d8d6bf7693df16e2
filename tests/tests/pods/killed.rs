//! A builder that is killed in a container like E5, where mounts of a RUN are put into its tree.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::pods::{Kind, Pod, SLIPWAY};
use tests::process;

pub const TESTS: &[(&str, crate::Test)] = &[("killed::no_secret_stays_and_no_cache_is_lost", killed_with_mounts)];

const LIMIT: Duration = Duration::from_secs(120);

/// A secret.
const WORD: &str = "sesame-that-is-on-no-disk";

/// The first build is killed while its RUN has a secret and a cache; the second one looks what is left.
fn killed_with_mounts() -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let volume = crate::volume()?;
    let context = volume.path().join("context");
    fs::create_dir(&context).map_err(text)?;
    fs::copy("/bin/busybox", context.join("busybox")).map_err(text)?;
    let write = |name: &str, mounts: &str, script: &str| {
        let run = format!(
            "FROM scratch\nCOPY busybox /bin/busybox\nRUN {mounts} [\"/bin/busybox\", \"sh\", \"-c\", \"{script}\"]\n"
        );
        fs::write(context.join(name), run).map_err(text)
    };
    let cache = "--mount=type=cache,id=kept,target=/c";
    write(
        "first",
        &format!("{cache} --mount=type=secret,id=word,required=true"),
        "wc -c < /run/secrets/word; echo before > /c/file; echo ready; sleep 600",
    )?;
    write("second", cache, "cat /c/file")?;
    let pod = Pod::start(Kind::E5, volume.path(), false)?;
    let build = |file: &str| {
        let mut command = pod.command(SLIPWAY, &[("WORD", WORD)]);
        let fixed =
            ["build", "--no-cache", "--progress", "plain", "--sandbox", "chroot", "--secret", "id=word,env=WORD"];
        command.args(fixed).arg("--work-dir").arg(volume.path().join("work"));
        command.arg("--output").arg(format!("type=oci,dest={}", volume.path().join("out.tar").display()));
        command.arg("--file").arg(context.join(file)).arg(&context);
        command
    };
    let mut first = build("first").stderr(Stdio::piped()).stdin(Stdio::null()).spawn().map_err(text)?;
    let mut said = Vec::new();
    for line in BufReader::new(first.stderr.take().ok_or("no output")?).lines() {
        said.push(line.map_err(text)?);
        if said.last().is_some_and(|line| line.ends_with("ready")) {
            break;
        }
    }
    let builder = builder(&context.join("first"))?;
    let seen = said.iter().any(|line| line.ends_with(&WORD.len().to_string()));
    process::output(Command::new("kill").args(["-KILL", &builder]), LIMIT)?;
    _ = first.wait();
    if !seen {
        return Err(format!("the secret was not there: {said:#?}"));
    }
    let found = holding(volume.path(), WORD.as_bytes())?;
    if !found.is_empty() {
        return Err(format!("the secret is in {found:?}"));
    }
    let ended = process::run(&mut build("second"), LIMIT).map_err(text)?;
    if ended.success() && ended.text().lines().any(|line| line.ends_with("before")) {
        return Ok(());
    }
    Err(format!("{}; the cache is lost:\n{}", ended.how(), ended.text()))
}

/// The process that builds this Dockerfile. Its keeper is a copy of it, and a child.
fn builder(dockerfile: &Path) -> Result<String, String> {
    let name = dockerfile.display().to_string();
    let entries = fs::read_dir("/proc").map_err(|error| error.to_string())?;
    let mut found: Vec<(String, String)> = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let arguments = fs::read(path.join("cmdline")).unwrap_or_default();
        if !arguments.starts_with(SLIPWAY.as_bytes())
            || !arguments.split(|&byte| byte == 0).any(|one| one == name.as_bytes())
        {
            continue;
        }
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap_or_default().trim().to_owned();
        found.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), parent));
    }
    let first = found.iter().find(|(_, parent)| !found.iter().any(|(id, _)| id == parent));
    first.map(|(id, _)| id.clone()).ok_or_else(|| format!("nobody builds {name}"))
}

/// Files of the volume that hold a word.
fn holding(volume: &Path, word: &[u8]) -> Result<Vec<PathBuf>, String> {
    let (mut found, mut todo) = (Vec::new(), vec![volume.to_owned()]);
    while let Some(path) = todo.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).map_err(|error| error.to_string())?;
            todo.extend(entries.flatten().map(|entry| entry.path()));
        } else if metadata.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            if bytes.windows(word.len()).any(|part| part == word) {
                found.push(path);
            }
        }
    }
    Ok(found)
}
