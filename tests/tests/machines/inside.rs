//! What is done inside of machines.

use std::time::Duration;

use tests::machine::{Done, Kernel, Machine};
use tests::slipway;

/// How long one machine may take: an emulated processor beside others needs minutes for what takes seconds.
pub const LIMIT: Duration = Duration::from_secs(3600);

/// Exit code of a build that cannot run commands here.
pub const UNAVAILABLE: i32 = 6;

/// A machine with a context to build in `/job/context`, and `build` of `fixtures/machines` to do it with.
pub fn machine(kernel: Kernel) -> Result<Machine, String> {
    let fixtures = slipway::project().join("fixtures/machines");
    let machine = Machine::new(kernel).map_err(text)?;
    machine.add(&fixtures.join("build"), "bin/build").map_err(text)?;
    machine.add(&fixtures.join("context"), "context").map_err(text)?;
    for name in ["busybox", "stress"] {
        machine.add(&kernel.programs().join(name), &format!("context/{name}")).map_err(text)?;
    }
    Ok(machine)
}

/// `fixtures/volumes` in `/job/small`: little to do, and everything that is not the same everywhere.
pub fn small(machine: &Machine) -> Result<(), String> {
    let dockerfile = slipway::project().join("fixtures/volumes/Dockerfile");
    let programs = machine.tree().join("bin");
    machine.add(&dockerfile, "small/Dockerfile").map_err(text)?;
    machine.add(&programs.join("busybox"), "small/busybox").map_err(text)?;
    std::fs::write(machine.tree().join("small/file"), "copied\n").map_err(text)
}

pub fn text(error: std::io::Error) -> String {
    error.to_string()
}

/// The step of this name.
pub fn step<'a>(steps: &'a [Done], name: &str) -> Result<&'a Done, String> {
    steps.iter().find(|step| step.name == name).ok_or_else(|| format!("there was no step {name}"))
}

/// That a step ended with this code and said all of these words.
pub fn says(done: &Done, status: i32, words: &[&str]) -> Result<(), String> {
    let Done { name, output, .. } = done;
    if done.status != status {
        return Err(format!("{name}: exit code {}, expected {status}\n{output}", done.status));
    }
    match words.iter().find(|word| !output.contains(**word)) {
        Some(word) => Err(format!("{name}: no {word:?} in\n{output}")),
        None => Ok(()),
    }
}

/// What went wrong in any of these.
pub fn all(checks: impl IntoIterator<Item = Result<(), String>>) -> Result<(), String> {
    let failures: Vec<String> = checks.into_iter().filter_map(Result::err).collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n\n")) }
}

/// The digest that a build ends with.
pub fn digest(done: &Done) -> Result<&str, String> {
    says(done, 0, &[])?;
    let last = done.output.lines().last().unwrap_or_default();
    if last.starts_with("sha256:") { Ok(last) } else { Err(format!("{}: no digest in\n{}", done.name, done.output)) }
}

/// That all of these builds gave the same image.
pub fn same<'a>(builds: impl IntoIterator<Item = &'a Done>) -> Result<(), String> {
    let mut digests = Vec::new();
    let mut failures = Vec::new();
    for build in builds {
        match digest(build) {
            Ok(digest) => digests.push((digest, build.name.as_str())),
            Err(error) => failures.push(error),
        }
    }
    if digests.iter().any(|(digest, _)| *digest != digests[0].0) {
        failures.push(format!("different images: {digests:#?}"));
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n\n")) }
}
