//! What the sandbox costs: `make bench-sandbox`, or `cargo run --release -p benches --bin sandbox`, as root.
//!
//! One Debian root filesystem (made by mmdebstrap, kept in `target`) is unpacked once for each way of running a command in it:
//! a plain chroot(1) with /proc and /dev bound, Debian's proot, and every tier of the sandbox as the user that it is made for.
//! Then each workload runs in each of them in turn, so that a machine whose speed drifts hurts all alike:
//!
//! - `apt`: apt-get installs [`root::PACKAGES`] and what they need from a repository of files in the tree, maintainer
//!   scripts and all; once, as the tree is another one afterwards;
//! - `gcc`: sixty small programs are compiled and linked, one after the other;
//! - `files`: a tar of 100,000 files is extracted, then the files are deleted;
//! - `step`: a RUN that extracts the same tar as a step of a build, from the look at the tree before it to its layer; in the
//!   tiers alone, with overlayfs where they can use it;
//! - `cpu`: a loop without system calls;
//! - `calls`: single system calls, by class (`calls.c`).
//!
//! Wall time of the command alone, the best of `BENCH_RUNS` (default 3), beside the ratio to plain chroot; below it processor time,
//! the supervisor's included, which other work on the machine disturbs less. But for `step` the tree lies in a
//! plain directory in every tier, so overlayfs is no part of it, nor is listing the changes afterwards.
//!
//! Environment: `BENCH_RUNS`; `BENCH_ONLY`, names of ways with commas between; `BENCH_ROWS`, names of workloads; `BENCH_DIR`, where
//! the trees lie meanwhile; `BENCH_JSON` (default `target/sandbox-cost.json`).

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;

mod inside;
mod root;
mod ways;

use ways::{WAYS, Way};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A workload: its name, the shell script that prepares it, the one that is timed, whether it can run again, and whether it
/// is a whole step.
struct Row {
    name: &'static str,
    before: &'static str,
    timed: &'static str,
    repeatable: bool,
    step: bool,
}

const ROWS: [Row; 6] = [
    Row { name: "calls", before: "", timed: "/bench/calls", repeatable: false, step: false },
    Row { name: "cpu", before: "", timed: "/bench/calls cpu", repeatable: true, step: false },
    Row {
        name: "gcc",
        before: "",
        timed: "for i in $(seq 60); do gcc -O1 -o /tmp/hello /bench/hello.c || exit 1; done",
        repeatable: true,
        step: false,
    },
    Row {
        name: "files",
        before: "mkdir -p /tmp/files",
        timed: "tar -xf /bench/files.tar -C /tmp/files && rm -rf /tmp/files/*",
        repeatable: true,
        step: false,
    },
    Row {
        name: "step",
        before: "",
        timed: "mkdir /files && tar -xf /bench/files.tar -C /files",
        repeatable: true,
        step: true,
    },
    Row { name: "apt", before: "", timed: root::INSTALL, repeatable: false, step: false },
];

/// Wall times in seconds by workload and way; of `calls`, nanoseconds by class and way.
type Times = BTreeMap<String, BTreeMap<&'static str, Vec<f64>>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [inside, way, tree, script, archive @ ..] = arguments.as_slice()
        && inside == ways::INSIDE
    {
        return inside::main(way, Path::new(tree), script, archive.first().map(Path::new));
    }
    let runs: usize = env("BENCH_RUNS").and_then(|text| text.parse().ok()).unwrap_or(3);
    let wanted = |variable: &str, name: &str| env(variable).is_none_or(|list| list.split(',').any(|one| one == name));
    let root = root::archive()?;
    let temp = match env("BENCH_DIR") {
        Some(dir) => tempfile::Builder::new().prefix("slipway-cost-").tempdir_in(dir)?,
        None => tempfile::Builder::new().prefix("slipway-cost-").tempdir()?,
    };
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755))?;
    let program = temp.path().join("bench");
    fs::copy(std::env::current_exe()?, &program)?;
    let mut out = std::io::stderr();

    let mut places: Vec<(&Way, PathBuf)> = Vec::new();
    for way in WAYS.iter().filter(|way| wanted("BENCH_ONLY", way.name)) {
        if let Some(reason) = way.missing() {
            writeln!(out, "skipped {}: {reason}", way.name)?;
            continue;
        }
        let place = temp.path().join(way.name);
        match way.unpack(&program, &place, &root) {
            Ok(()) => places.push((way, place)),
            Err(error) => writeln!(out, "skipped {}: {error}", way.name)?,
        }
    }
    let mut times = Times::new();
    for row in ROWS.iter().filter(|row| wanted("BENCH_ROWS", row.name)) {
        for _ in 0..if row.repeatable { runs } else { 1 } {
            for (way, place) in places.iter().filter(|(way, _)| !row.step || way.is_tier()) {
                if !row.before.is_empty() {
                    way.run(&program, place, row.before, None)?;
                }
                let ran = way.run(&program, place, row.timed, row.step.then_some(root.as_path()));
                let (seconds, cpu, output) = match ran {
                    Err(error) if way.may_fail() => {
                        writeln!(out, "{} {}: fails: {error}", row.name, way.name)?;
                        continue;
                    }
                    ran => ran?,
                };
                times.entry(row.name.to_owned()).or_default().entry(way.name).or_default().push(seconds);
                times.entry(format!("{}, processors", row.name)).or_default().entry(way.name).or_default().push(cpu);
                for (class, nanoseconds) in output.lines().filter_map(|line| line.split_once('\t')) {
                    let kind = if row.step { "step" } else { "call" };
                    let class = times.entry(format!("{kind}: {class}")).or_default().entry(way.name).or_default();
                    class.push(nanoseconds.parse()?);
                }
                writeln!(out, "{} {}: {seconds:.2} s, {cpu:.2} s of processors", row.name, way.name)?;
            }
        }
    }
    times.retain(|row, _| !row.starts_with("calls"));
    let names: Vec<&str> = places.iter().map(|(way, _)| way.name).collect();
    std::io::stdout().write_all(table(&times, &names).as_bytes())?;
    let file = PathBuf::from(env("BENCH_JSON").unwrap_or_else(|| "target/sandbox-cost.json".to_owned()));
    let whole = json!({ "runs": runs, "packages": root::PACKAGES, "ways": names, "times": times });
    fs::write(&file, serde_json::to_vec_pretty(&whole)?)?;
    writeln!(out, "written to {}", file.display())?;
    for (way, place) in places {
        way.remove(&program, &place)?;
    }
    Ok(())
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// A table in Markdown: the best of each, and its ratio to the first way.
fn table(times: &Times, ways: &[&str]) -> String {
    let mut text = format!("| | {} |\n|---|{}\n", ways.join(" | "), "---|".repeat(ways.len()));
    let best = |runs: &Vec<f64>| runs.iter().copied().fold(f64::INFINITY, f64::min);
    for (row, by_way) in times {
        let base = by_way.get("plain").map(best);
        text += &format!("| {row} |");
        for way in ways {
            let Some(value) = by_way.get(way).map(best) else {
                text += " – |";
                continue;
            };
            let shown = match row.split_once(": ") {
                Some(("call", _)) => format!("{:.2} µs", value / 1e3),
                Some(_) => format!("{:.2} s", value / 1e9),
                None => format!("{value:.2} s"),
            };
            text += &match base.filter(|_| *way != "plain") {
                Some(base) => format!(" {shown} ({:.2}×) |", value / base),
                None => format!(" {shown} |"),
            };
        }
        text.push('\n');
    }
    text
}
