//! The copy of this program that runs one command in one tier.

use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use benches::FromStore;
use builder_core::cancel::Cancel;
use builder_core::event::Stream;
use builder_core::layer::{self, Compression, LayerInput, LayerOptions};
use builder_core::limits::Limits;
use builder_core::rootfs::{LayerRef, Owners, Ownership, Rootfs, TreeMode, Trees};
use builder_core::sandbox::{self, Environment, ExitStatus, IdMapping, RunSpec, Tier, Wish};
use builder_core::snapshot;
use builder_core::store::Store;

use crate::Result;
use crate::ways::{cpu_seconds, shell};

/// Runs `script` in `tree`: prints the seconds that it took, those of processors, and its output. With `way!` it runs outside of any tree, but with the
/// ids that trees have. With an archive it runs as a step of a build that begins with that.
pub fn main(way: &str, tree: &Path, script: &str, archive: Option<&Path>) -> Result<()> {
    let (way, outside) = way.strip_suffix('!').map_or((way, false), |way| (way, true));
    let tier = match way {
        "chroot" => Tier::Chroot,
        "traced" => Tier::Traced,
        _ => Tier::Namespaces,
    };
    let environment = sandbox::enter_as(&Wish { tier: Some(tier), work_dir: None })?;
    environment.available()?;
    if outside {
        return shell(script).map(drop);
    }
    let lines = match archive {
        Some(archive) => step(&environment, tree, archive, script)?,
        None => command(&environment, tree, script)?,
    };
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Whether only one id exists, so that others are recorded.
fn is_recorded(environment: &Environment) -> bool {
    matches!(environment.ids, IdMapping::Single | IdMapping::Played)
}

/// Times the command alone, in the tree `tree`: seconds and those of processors, then its output.
fn command(environment: &Environment, tree: &Path, script: &str) -> Result<Vec<String>> {
    let recorded = is_recorded(environment);
    let records = tree.with_file_name("owners.json");
    let mut rootfs = Rootfs::open(tree)?;
    let owners = Arc::new(Owners::load(&records)?);
    if recorded {
        rootfs = rootfs.recording(Arc::clone(&owners));
    }
    let (started, before) = (Instant::now(), cpu_seconds(true)?);
    let mut lines = run(environment, &rootfs, script)?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds(true)? - before);
    if recorded {
        owners.save(&records)?;
    }
    lines.insert(0, format!("{seconds} {cpu}"));
    Ok(lines)
}

/// Times a whole step in a tree made of `archive`, in a work directory beside `tree`: the look at the tree before, the command, what it changed, and the
/// layer of that.
fn step(environment: &Environment, tree: &Path, archive: &Path, script: &str) -> Result<Vec<String>> {
    let beside = tree.parent().ok_or("the tree has no parent")?;
    let work = tempfile::tempdir_in(beside)?;
    let ownership = if is_recorded(environment) { Ownership::Recorded } else { Ownership::Real };
    // As builds do: these tiers mount nothing.
    let mode = matches!(environment.tier, Some(Tier::Chroot | Tier::Traced)).then_some(TreeMode::Directory);
    let trees = Trees::open(work.path(), mode, ownership)?;
    let store = Store::open(work.path())?;
    let (limits, cancel) = (Limits::default(), Cancel::default());
    let options = |compression| LayerOptions { compression, docker_media_types: false, clamp_mtime: None };
    let plain = options(Compression::None);
    let mut tar = std::fs::File::open(archive)?;
    let base = layer::recompress(&mut tar, &store, &plain, &limits, &cancel, &|_| ())?;
    let layers = [LayerRef { diff_id: base.diff_id, blob: base.blob }];
    let mut tree = trees.checkout(&layers, &FromStore(&store), &cancel)?;

    let (started, before) = (Instant::now(), cpu_seconds(true)?);
    let mut step = tree.begin()?;
    step.prepare_command(&cancel)?;
    run(environment, step.rootfs(), script)?;
    let ran = started.elapsed().as_secs_f64();
    let changes = snapshot::changes(&step, None)?;
    let listed = started.elapsed().as_secs_f64();
    let input = LayerInput::new(&changes, step.rootfs());
    let layer = layer::write(input, &store, &options(Compression::DEFAULT), &limits, &cancel, &|_| ())?;
    step.commit(layer.diff_id)?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds(true)? - before);
    let parts = [("the command", ran), ("what it changed", listed - ran), ("the layer of that", seconds - listed)];
    let mut lines = vec![format!("{seconds} {cpu}")];
    lines.extend(parts.map(|(part, seconds)| format!("{part}\t{:.0}", seconds * 1e9)));
    Ok(lines)
}

/// Runs `script`: the lines that it printed.
fn run(environment: &Environment, rootfs: &Rootfs, script: &str) -> Result<Vec<String>> {
    let env = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("LC_ALL", "C"),
        ("DEBIAN_FRONTEND", "noninteractive"),
    ];
    let spec = RunSpec::as_root(
        ["/bin/sh", "-c", script].map(Into::into).to_vec(),
        env.map(|(name, value)| (name.into(), value.into())).to_vec(),
        "bench",
    );
    let lines = Mutex::new(Vec::new());
    let output = |stream: Stream, line: &[u8]| {
        let text = String::from_utf8_lossy(line).into_owned();
        lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((stream, text));
    };
    let status = sandbox::run(environment, rootfs, &spec, &output, &Cancel::default())?;
    let lines = lines.into_inner()?;
    if status != ExitStatus::Code(0) {
        let tail: Vec<_> = lines.iter().rev().take(12).map(|(_, line)| line.as_str()).collect();
        return Err(format!("{status:?}: {}", tail.into_iter().rev().collect::<Vec<_>>().join("\n")).into());
    }
    Ok(lines.into_iter().filter(|(stream, _)| *stream == Stream::Stdout).map(|(_, line)| line).collect())
}
