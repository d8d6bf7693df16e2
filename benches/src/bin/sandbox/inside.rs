//! The copy of this program that runs one command in one tier.

use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use builder_core::cancel::Cancel;
use builder_core::event::Stream;
use builder_core::rootfs::{Owners, Rootfs};
use builder_core::sandbox::{self, ExitStatus, IdMapping, RunSpec, Tier, Wish};

use crate::Result;
use crate::ways::{cpu_seconds, shell};

/// Runs `script` in `tree`: prints the seconds that it took, those of processors, and its output. With `way!` it runs outside of any tree, but with the
/// ids that trees have.
pub fn main(way: &str, tree: &Path, script: &str) -> Result<()> {
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
    let recorded = matches!(environment.ids, IdMapping::Single | IdMapping::Played);
    let records = tree.with_file_name("owners.json");
    let mut rootfs = Rootfs::open(tree)?;
    let owners = Arc::new(Owners::load(&records)?);
    if recorded {
        rootfs = rootfs.recording(Arc::clone(&owners));
    }
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
    let (started, before) = (Instant::now(), cpu_seconds(true)?);
    let status = sandbox::run(&environment, &rootfs, &spec, &output, &Cancel::default())?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds(true)? - before);
    if recorded {
        owners.save(&records)?;
    }
    let lines = lines.into_inner()?;
    if status != ExitStatus::Code(0) {
        let tail: Vec<_> = lines.iter().rev().take(12).map(|(_, line)| line.as_str()).collect();
        return Err(format!("{status:?}: {}", tail.into_iter().rev().collect::<Vec<_>>().join("\n")).into());
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{seconds} {cpu}")?;
    for (_, line) in lines.iter().filter(|(stream, _)| *stream == Stream::Stdout) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}
