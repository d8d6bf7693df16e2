//! End-to-end builds against every builder installed: `make bench-e2e`, or `cargo run --release -p benches --bin e2e`.
//!
//! Each row builds one Dockerfile and pushes to a registry that this program starts (Debian's `docker-registry`). The builders
//! take turns, so that a machine whose speed drifts hurts all of them alike. Every run of a cold row begins with an empty
//! state and a registry that has the bases alone; a first round is not timed but watched: in it the size of the builder's
//! state is followed. The table shows medians, the ratio to slipway, processor time, the peak of the builder's own anonymous
//! memory (`Pss_Anon` of all processes that run its program, from `/proc/PID/smaps_rollup`, sampled; what a RUN starts is not
//! counted), the peak of its state on disk, and beside the row's name the time that the hardware allows: an estimate from
//! rates that probes measure at the beginning ([`probes`]).
//!
//! With the argument `growth` it measures how slipway's own time and memory grow instead ([`growth`]).
//!
//! Environment:
//! - `SLIPWAY_BIN`: the binary, else `target/release/slipway`.
//! - `BENCH_PEERS`: further builders, one a line, `name=command template`; `{context} {dockerfile} {tag} {state}` are filled
//!   in. `name.zstd=`, `name.cache-to=` and `name.cache-from=` (with `{cache}`, a repository) say how it does those; a builder
//!   without them has no entry in such rows. buildah is added by itself where it is installed. Kaniko and BuildKit, say:
//!   `kaniko=chroot-kaniko --context {context} --dockerfile {dockerfile} --destination {tag} --insecure`,
//!   `buildkit=buildctl-daemonless --root {state} …`. For a builder with a daemon `name.daemon=` is what runs beside each build
//!   and ends with SIGTERM, `name.ready=` fails until that can be used, and `name.programs=` are the names of programs whose
//!   memory counts; neither start nor end is timed. `scripts/peer-buildkit` makes these lines for a BuildKit from Debian.
//! - `BENCH_TIERS`: tiers of the sandbox (`chroot,traced`) in which slipway is measured as well, which is what it does in pods that refuse it
//!   namespaces and mounts.
//! - `BENCH_ONLY`: names of builders, with commas between; others are left out.
//! - `BENCH_RUNS`: timed runs of each (default 3). `BENCH_ROWS`: only rows whose name contains one of these texts (with `|` between).
//! - `BENCH_SCALE`: multiplies file counts and bytes (default 1.0).
//! - `BENCH_DIR`: where everything lies meanwhile (default: below the temporary directory). `BENCH_JSON`: where the results go
//!   (default `target/e2e.json`).

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fixtures::slow::{Line, SlowProxy};
use serde_json::json;

mod growth;
mod images;
mod measure;
mod peers;
mod plot;
mod probes;
mod registry;
mod rows;

use measure::{Job, Run, remove_state};
use peers::{Peer, Way};
use registry::Registry;
use rows::{Before, Row};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The slow registry: 50 ms for a round trip, 100 MB/s.
const FAR: Line = Line { delay: Duration::from_millis(25), rate: 100_000_000 };

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        None => rows_against_peers(),
        Some("growth") => growth::main(),
        Some(other) => Err(format!("{other}: the only word is `growth`").into()),
    }
}

fn rows_against_peers() -> Result<()> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("slipway-e2e-");
    let temp = match env("BENCH_DIR") {
        Some(dir) => builder.tempdir_in(dir)?,
        None => builder.tempdir()?,
    };
    let temp = temp.path();
    let scale: f64 = env("BENCH_SCALE").and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let runs: usize = env("BENCH_RUNS").and_then(|text| text.parse().ok()).unwrap_or(3);
    let only = env("BENCH_ROWS").unwrap_or_default();
    let pristine = temp.join("pristine");
    let gzip = {
        let registry = Registry::start(&pristine)?;
        images::push(temp, registry.port, scale)?
    };
    let rates = probes::Rates::measure(temp, &gzip)?;
    drop(gzip);
    let mut out = std::io::stderr();
    writeln!(out, "scale {scale}, {runs} timed runs; {rates}")?;
    let peers = peers::peers()?;
    let mut results = Vec::new();
    let wanted = |row: &Row| only.split('|').any(|text| row.name.contains(text));
    for row in rows::rows(scale).into_iter().filter(wanted) {
        let allowed = rates.allow(&row.work, temp)?;
        let measured = Bench { row: &row, peers: &peers, temp, pristine: &pristine }.measure(runs)?;
        print_row(&row, allowed, &peers, &measured)?;
        let list = |runs: &[Run], of: fn(&Run) -> f64| runs.iter().map(of).collect::<Vec<_>>();
        results.push(
            json!({ "row": row.name, "hardware_seconds": allowed, "results": measured.iter().map(|(peer, runs)| json!({
            "builder": peer,
            "seconds": list(&runs.timed, |run| run.seconds),
            "cpu_seconds": list(&runs.timed, |run| run.cpu_seconds),
            "peak_anonymous_bytes": runs.peak(|run| run.peak_bytes),
            "peak_disk_bytes": runs.peak(|run| run.peak_disk_bytes),
            "failed": runs.failed(),
        })).collect::<Vec<_>>() }),
        );
    }
    let file = PathBuf::from(env("BENCH_JSON").unwrap_or_else(|| "target/e2e.json".to_owned()));
    let whole = json!({ "scale": scale, "rates": rates.to_json(), "rows": results });
    fs::write(&file, serde_json::to_vec_pretty(&whole)?)?;
    writeln!(out, "written to {}", file.display())?;
    Ok(())
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// All runs of one builder in one row.
#[derive(Default)]
struct Runs {
    /// Whose time does not count.
    watched: Option<Run>,
    timed: Vec<Run>,
}

impl Runs {
    fn all(&self) -> impl Iterator<Item = &Run> {
        self.watched.iter().chain(&self.timed)
    }

    fn peak(&self, of: fn(&Run) -> u64) -> u64 {
        self.all().map(of).max().unwrap_or(0)
    }

    fn failed(&self) -> bool {
        self.all().any(|run| !run.ok)
    }

    fn median(&self, of: fn(&Run) -> f64) -> f64 {
        let mut values: Vec<f64> = self.timed.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// One row for all builders.
struct Bench<'a> {
    row: &'a Row,
    peers: &'a [Peer],
    temp: &'a Path,
    pristine: &'a Path,
}

/// A registry and, for rows that want it far away, what makes it so.
struct Server {
    registry: Registry,
    proxy: Option<SlowProxy>,
}

impl Server {
    fn port(&self) -> u16 {
        self.proxy.as_ref().map_or(self.registry.port, SlowProxy::port)
    }
}

impl Bench<'_> {
    fn measure(&self, runs: usize) -> Result<BTreeMap<String, Runs>> {
        let context = self.temp.join("context");
        let _ = fs::remove_dir_all(&context);
        for (name, bytes) in &self.row.context {
            let path = context.join(name);
            fs::create_dir_all(path.parent().ok_or("a file beside the context")?)?;
            fs::write(path, bytes)?;
        }
        let peers: Vec<&Peer> = self.peers.iter().filter(|peer| peer.template(self.row.way).is_some()).collect();
        let mut measured: BTreeMap<String, Runs> = BTreeMap::new();
        // Rows that go on from something keep one registry for each builder.
        let mut servers: BTreeMap<&str, Server> = BTreeMap::new();
        for number in 0..=runs {
            for peer in &peers {
                let (first, state) = (number == 0, self.state(peer));
                let keeps_server = self.row.before != Before::Nothing;
                let keeps_state = matches!(self.row.before, Before::Same | Before::Changed);
                if first || !keeps_state {
                    remove_state(&state);
                    fs::create_dir_all(&state)?;
                }
                let server = match servers.remove(&*peer.name) {
                    Some(server) => server,
                    None => self.server(peer)?,
                };
                if !first && self.row.before == Before::Changed {
                    fs::write(context.join("changed"), format!("{} {number}\n", peer.name))?;
                }
                let way = if first && self.row.before == Before::RemoteCache { Way::CacheTo } else { self.row.way };
                let tag = if keeps_server { 0 } else { number };
                let run = self.run(peer, way, &server, tag, first && !keeps_server)?;
                let runs = measured.entry(peer.name.clone()).or_default();
                // What was there before is no part of a row that goes on from it.
                match (first, keeps_server) {
                    (true, false) => runs.watched = Some(run),
                    (true, true) if !run.ok => runs.watched = Some(run),
                    (true, true) => {}
                    (false, _) => runs.timed.push(run),
                }
                if keeps_server {
                    servers.insert(&peer.name, server);
                } else {
                    server.registry.remove();
                }
            }
        }
        for server in servers.into_values() {
            server.registry.remove();
        }
        peers.iter().for_each(|peer| remove_state(&self.state(peer)));
        Ok(measured)
    }

    fn state(&self, peer: &Peer) -> PathBuf {
        self.temp.join("state").join(&peer.name)
    }

    fn server(&self, peer: &Peer) -> Result<Server> {
        let registry = Registry::with(self.pristine, &self.temp.join("registries").join(&peer.name))?;
        let proxy = self.row.far.then(|| SlowProxy::start(registry.port, FAR)).transpose()?;
        Ok(Server { registry, proxy })
    }

    fn run(&self, peer: &Peer, way: Way, server: &Server, tag: usize, follow_disk: bool) -> Result<Run> {
        let host = format!("localhost:{}", server.port());
        let dockerfile = self.temp.join("Dockerfile");
        fs::write(&dockerfile, self.row.dockerfile.replace("REGISTRY", &host))?;
        let state = self.state(peer);
        let template = peer.template(way).ok_or_else(|| format!("{} has no template for this row", peer.name))?;
        let line = template
            .replace("{context}", &self.temp.join("context").display().to_string())
            .replace("{dockerfile}", &dockerfile.display().to_string())
            .replace("{tag}", &format!("{host}/out/{}:{tag}", peer.name))
            .replace("{cache}", &format!("{host}/cache/{}", peer.name))
            .replace("{state}", &state.display().to_string());
        let daemon = peer.daemon(&state);
        Job { line, programs: &peer.programs, daemon, state: &state, follow_disk }.run()
    }
}

fn print_row(row: &Row, allowed: f64, peers: &[Peer], measured: &BTreeMap<String, Runs>) -> Result<()> {
    let ours = measured.get("slipway").map_or(f64::NAN, |runs| runs.median(|run| run.seconds));
    let mut out = std::io::stderr();
    writeln!(out, "{} (hardware: {allowed:.2} s)", row.name)?;
    for peer in peers {
        let Some(runs) = measured.get(&peer.name) else {
            writeln!(out, "  {:<12} cannot", peer.name)?;
            continue;
        };
        let seconds = runs.median(|run| run.seconds);
        let spread = runs
            .timed
            .iter()
            .map(|run| run.seconds)
            .fold((f64::MAX, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        writeln!(
            out,
            "  {:<12} {seconds:>8.2} s ({:.2} to {:.2})  {:>6.2} x  {:>8.2} s of processors  {:>6} MiB  {:>6} MiB of disk{}",
            peer.name,
            spread.0,
            spread.1,
            seconds / ours,
            runs.median(|run| run.cpu_seconds),
            runs.peak(|run| run.peak_bytes) >> 20,
            runs.peak(|run| run.peak_disk_bytes) >> 20,
            if runs.failed() { "  FAILED" } else { "" },
        )?;
    }
    Ok(())
}
