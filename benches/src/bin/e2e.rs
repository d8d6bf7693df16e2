//! End-to-end builds against every builder installed: `make bench-e2e`, or `cargo run --release -p benches --bin e2e`.
//!
//! Each row builds one Dockerfile cold (or warm, where the row says so) and pushes to a registry that this program starts
//! (Debian's `docker-registry`). The builders take turns, so that a machine whose speed drifts hurts all of them alike; the
//! table shows medians, the ratio to slipway, and the peak of the builder's own anonymous memory: `Pss_Anon` of all
//! processes that run its program, from `/proc/PID/smaps_rollup`, sampled. What a RUN starts is not counted.
//!
//! Environment:
//! - `SLIPWAY_BIN`: the binary, else `target/release/slipway`.
//! - `BENCH_PEERS`: further builders, one a line, `name=command template`; `{context} {dockerfile} {tag} {state}` are filled
//!   in. buildah is added by itself where it is installed.
//! - `BENCH_RUNS`: runs of each (default 3). `BENCH_ROWS`: only rows whose name contains this text.
//! - `BENCH_SCALE`: multiplies file counts and bytes (default 1.0).

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest as _, Sha256};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One build to measure.
struct Row {
    name: &'static str,
    dockerfile: String,
    /// Files of the context.
    context: BTreeMap<String, Vec<u8>>,
    /// Whether the state of the run before is kept, so that the builder's cache answers.
    warm: bool,
}

/// A builder.
struct Peer {
    name: String,
    template: String,
    /// File name of its program, whose processes' memory is counted.
    program: String,
}

fn main() -> Result<()> {
    let temp = tempfile::Builder::new().prefix("slipway-e2e-").tempdir()?;
    let registry = Registry::start(temp.path())?;
    let scale: f64 = env("BENCH_SCALE").and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let runs: usize = env("BENCH_RUNS").and_then(|text| text.parse().ok()).unwrap_or(3);
    let only = env("BENCH_ROWS").unwrap_or_default();
    bases(temp.path(), registry.port, scale)?;
    let peers = peers()?;
    let mut results = Vec::new();
    for row in rows(scale).into_iter().filter(|row| row.name.contains(&only)) {
        let measured = measure(&row, &peers, temp.path(), registry.port, runs)?;
        print_row(row.name, &peers, &measured);
        results.push(json!({ "row": row.name, "results": measured.iter().map(|(peer, runs)| json!({
            "builder": peer,
            "seconds": runs.iter().map(|run| run.seconds).collect::<Vec<_>>(),
            "cpu_seconds": runs.iter().map(|run| run.cpu_seconds).collect::<Vec<_>>(),
            "peak_anonymous_bytes": runs.iter().map(|run| run.peak_bytes).collect::<Vec<_>>(),
            "failed": runs.iter().any(|run| !run.ok),
        })).collect::<Vec<_>>() }));
    }
    let file = PathBuf::from(env("BENCH_JSON").unwrap_or_else(|| "target/e2e.json".to_owned()));
    fs::write(&file, serde_json::to_vec_pretty(&results)?)?;
    writeln!(std::io::stderr(), "written to {}", file.display())?;
    Ok(())
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// One run's figures.
#[derive(Clone, Copy)]
struct Run {
    seconds: f64,
    /// Processor time of the builder and all it started, which other work on the machine disturbs less.
    cpu_seconds: f64,
    peak_bytes: u64,
    ok: bool,
}

fn measure(row: &Row, peers: &[Peer], temp: &Path, port: u16, runs: usize) -> Result<BTreeMap<String, Vec<Run>>> {
    let context = temp.join("context");
    let _ = fs::remove_dir_all(&context);
    fs::create_dir_all(&context)?;
    for (name, bytes) in &row.context {
        let path = context.join(name);
        fs::create_dir_all(path.parent().expect("a file below the context"))?;
        fs::write(path, bytes)?;
    }
    let dockerfile = temp.join("Dockerfile");
    fs::write(&dockerfile, row.dockerfile.replace("REGISTRY", &format!("localhost:{port}")))?;
    let mut measured: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for number in 0..runs + usize::from(row.warm) {
        for peer in peers {
            let state = temp.join("state").join(&peer.name);
            if !row.warm || number == 0 {
                remove_state(&state);
            }
            fs::create_dir_all(&state)?;
            let tag = format!("localhost:{port}/out/{}:{number}", peer.name);
            let run = run_once(peer, &context, &dockerfile, &tag, &state)?;
            if !row.warm || number > 0 {
                measured.entry(peer.name.clone()).or_default().push(run);
            }
        }
    }
    for peer in peers {
        remove_state(&temp.join("state").join(&peer.name));
    }
    Ok(measured)
}

/// Builders leave directories without write permission and, some of them, mounts.
fn remove_state(state: &Path) {
    let _ = Command::new("sh")
        .arg("-c")
        .arg("for m in $(grep -o \"$0[^ ]*\" /proc/mounts); do umount -l \"$m\"; done 2>/dev/null; rm -rf \"$0\"")
        .arg(state)
        .status();
}

fn run_once(peer: &Peer, context: &Path, dockerfile: &Path, tag: &str, state: &Path) -> Result<Run> {
    let line = peer
        .template
        .replace("{context}", &context.display().to_string())
        .replace("{dockerfile}", &dockerfile.display().to_string())
        .replace("{tag}", tag)
        .replace("{state}", &state.display().to_string());
    let log = fs::File::create(state.with_extension("log"))?;
    let (started, cpu_before) = (Instant::now(), children_cpu_seconds()?);
    let mut child =
        Command::new("sh").arg("-c").arg(line).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
    let root = child.id();
    let peak = AtomicU64::new(0);
    let ended = AtomicBool::new(false);
    let (status, seconds) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous_bytes(root, &peer.program), Ordering::Relaxed);
                std::thread::sleep(SAMPLE_INTERVAL);
            }
        });
        let status = child.wait();
        let seconds = started.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        (status, seconds)
    });
    let ok = status?.success();
    let cpu_seconds = children_cpu_seconds()? - cpu_before;
    if !ok {
        let log = fs::read_to_string(state.with_extension("log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(8).collect();
        for text in tail.iter().rev() {
            writeln!(std::io::stderr(), "    {text}")?;
        }
    }
    Ok(Run { seconds, cpu_seconds, peak_bytes: peak.load(Ordering::Relaxed), ok })
}

/// Processor time of all children that were waited for, and theirs (proc(5), `cutime` and `cstime`; 100 ticks a second).
fn children_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/self/stat has no name")?;
    let ticks = |at: usize| fields.split_whitespace().nth(at).and_then(|field| field.parse::<u64>().ok());
    let (user, system) = ticks(13).zip(ticks(14)).ok_or("/proc/self/stat is too short")?;
    Ok((user + system) as f64 / 100.0)
}

/// How often memory is looked at. Each look costs a fraction of a millisecond of one processor.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

/// Anonymous memory of those descendants of `root` that run `program`; pages that they share count once.
fn anonymous_bytes(root: u32, program: &str) -> u64 {
    let mut total = 0;
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        open.extend(children(pid));
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        if exe.file_name().is_some_and(|name| name == program) {
            total += pss_anon(pid).unwrap_or(0);
        }
    }
    total
}

/// Children of a process, by all of its threads.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

fn pss_anon(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss_Anon:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn median(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print_row(name: &str, peers: &[Peer], measured: &BTreeMap<String, Vec<Run>>) {
    let ours = measured.get("slipway").map_or(f64::NAN, |runs| median(runs, |run| run.seconds));
    let mut out = std::io::stderr();
    let _ = writeln!(out, "{name}");
    for peer in peers {
        let Some(runs) = measured.get(&peer.name) else { continue };
        let peak = runs.iter().map(|run| run.peak_bytes).max().unwrap_or(0);
        let failed = if runs.iter().all(|run| run.ok) { "" } else { "  FAILED" };
        let _ = writeln!(
            out,
            "  {:<12} {:>8.2} s  {:>6.2} x  {:>8.2} s of processors  {:>6} MiB{failed}",
            peer.name,
            median(runs, |run| run.seconds),
            median(runs, |run| run.seconds) / ours,
            median(runs, |run| run.cpu_seconds),
            peak >> 20
        );
    }
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().ok_or_else(|| format!("{} names no program", path.display()))?;
    Ok(name.to_string_lossy().into_owned())
}

/// The builders: slipway, buildah where installed, and those of `BENCH_PEERS`.
fn peers() -> Result<Vec<Peer>> {
    let slipway = env("SLIPWAY_BIN").unwrap_or_else(|| "target/release/slipway".to_owned());
    let slipway = fs::canonicalize(&slipway).map_err(|error| format!("{slipway}: {error}; set SLIPWAY_BIN"))?;
    let mut peers = vec![Peer {
        name: "slipway".to_owned(),
        program: file_name(&slipway)?,
        template: format!(
            "exec {} build --progress plain --work-dir {{state}} -f {{dockerfile}} -t {{tag}} --push {{context}}",
            slipway.display()
        ),
    }];
    let buildah = Command::new("buildah").arg("--version").output().is_ok_and(|output| output.status.success());
    if buildah {
        // One process does both, as slipway does; layers are kept so that the warm rows mean the same.
        peers.push(Peer {
            name: "buildah".to_owned(),
            program: "buildah".to_owned(),
            template: "buildah --root {state}/root --runroot {state}/run build --isolation chroot --layers \
                       --tls-verify=false -f {dockerfile} -t {tag} {context} && buildah --root {state}/root --runroot \
                       {state}/run push --tls-verify=false {tag}"
                .to_owned(),
        });
    }
    for line in env("BENCH_PEERS").unwrap_or_default().lines().filter(|line| !line.trim().is_empty()) {
        let (name, template) = line.split_once('=').ok_or("BENCH_PEERS: name=command template")?;
        let (name, template) = (name.trim().to_owned(), template.trim().to_owned());
        let program = template.split_whitespace().find(|word| *word != "exec").ok_or("BENCH_PEERS: no command")?;
        peers.push(Peer { name, program: file_name(Path::new(program))?, template });
    }
    Ok(peers)
}

/// The rows: small enough for a laptop, each standing for one complaint about other builders.
fn rows(scale: f64) -> Vec<Row> {
    let count = |number: f64| (number * scale).max(1.0) as usize;
    let one = |name: &str| BTreeMap::from([(name.to_owned(), b"hello\n".to_vec())]);
    let many: BTreeMap<String, Vec<u8>> = (0..count(20_000.0))
        .map(|number| (format!("d{}/f{number}", number % 100), format!("{number}\n").repeat(20).into_bytes()))
        .collect();
    let trivial_runs: String = (0..10).map(|number| format!("RUN echo {number} > /n{number}\n")).collect();
    let layers: String = (0..40).map(|number| format!("COPY file /copied/{number}\n")).collect();
    vec![
        Row {
            name: "one file onto a large base",
            dockerfile: "FROM REGISTRY/base:large\nCOPY file /file\n".to_owned(),
            context: one("file"),
            warm: false,
        },
        Row {
            name: "ten trivial RUNs over many files",
            dockerfile: format!("FROM REGISTRY/base:many\n{trivial_runs}"),
            context: one("file"),
            warm: false,
        },
        Row {
            name: "one RUN writing random bytes",
            dockerfile: format!(
                "FROM REGISTRY/base:small\nRUN head -c {} /dev/urandom > /random\n",
                count(512.0 * 1024.0 * 1024.0)
            ),
            context: one("file"),
            warm: false,
        },
        Row {
            name: "a context of many files",
            dockerfile: "FROM REGISTRY/base:small\nCOPY . /src\n".to_owned(),
            context: many,
            warm: false,
        },
        Row {
            name: "forty small layers",
            dockerfile: format!("FROM REGISTRY/base:small\n{layers}"),
            context: one("file"),
            warm: false,
        },
        Row {
            name: "two independent stages and an unused one",
            dockerfile: "FROM REGISTRY/base:small AS a\nRUN sleep 3; echo a > /a\nFROM REGISTRY/base:small AS b\nRUN \
                         sleep 3; echo b > /b\nFROM REGISTRY/base:small AS unused\nRUN sleep 30\nFROM \
                         REGISTRY/base:small\nCOPY --from=a /a /\nCOPY --from=b /b /\n"
                .to_owned(),
            context: one("file"),
            warm: false,
        },
        Row {
            name: "the same again, nothing changed",
            dockerfile: format!("FROM REGISTRY/base:many\n{trivial_runs}COPY file /file\n"),
            context: one("file"),
            warm: true,
        },
    ]
}

/// Debian's registry on a free port; ends with this value.
struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    fn start(temp: &Path) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = temp.join("registry.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \
                 '127.0.0.1:{port}'}}\n",
                temp.join("registry").display()
            ),
        )?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("docker-registry: {error}; Debian's package of that name has it"))?;
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(Self { child, port });
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        Err("docker-registry does not answer".into())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that compress about as well as programs do: words of a small dictionary and noise in turn.
fn program_like(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 64);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if state >> 62 == 0 {
            bytes.extend_from_slice(&state.to_le_bytes());
        } else {
            let word = (state >> 40) % 509;
            bytes.extend_from_slice(format!("symbol_{word}_entry\0").as_bytes());
        }
    }
    bytes.truncate(length);
    bytes
}

/// Pushes `base:small` (busybox), `base:large` (and a few hundred MiB of files) and `base:many` (and 100,000 small files).
fn bases(temp: &Path, port: u16, scale: f64) -> Result<()> {
    let busybox = fs::read("/bin/busybox").map_err(|error| format!("/bin/busybox: {error}; install busybox-static"))?;
    let applets = Command::new("/bin/busybox").arg("--list").output()?;
    let applets = String::from_utf8(applets.stdout)?;
    let small = move |tar: &mut tar::Builder<Vec<u8>>| -> Result<()> {
        for directory in ["bin", "etc", "tmp", "root"] {
            append(tar, directory, tar::EntryType::Directory, &[], 0o755)?;
        }
        append(tar, "bin/busybox", tar::EntryType::Regular, &busybox, 0o755)?;
        append(tar, "etc/passwd", tar::EntryType::Regular, b"root:x:0:0:root:/root:/bin/sh\n", 0o644)?;
        append(tar, "etc/group", tar::EntryType::Regular, b"root:x:0:\n", 0o644)?;
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            header.set_mode(0o777);
            tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
        }
        Ok(())
    };
    let large = |tar: &mut tar::Builder<Vec<u8>>| -> Result<()> {
        append(tar, "lib", tar::EntryType::Directory, &[], 0o755)?;
        for number in 0..(300.0 * scale).max(1.0) as u64 {
            append(tar, &format!("lib/l{number}.so"), tar::EntryType::Regular, &program_like(number, 1 << 20), 0o644)?;
        }
        Ok(())
    };
    let many = |tar: &mut tar::Builder<Vec<u8>>| -> Result<()> {
        append(tar, "many", tar::EntryType::Directory, &[], 0o755)?;
        for number in 0..(100_000.0 * scale).max(1.0) as u64 {
            if number % 500 == 0 {
                append(tar, &format!("many/d{}", number / 500), tar::EntryType::Directory, &[], 0o755)?;
            }
            let text = format!("file {number}\n");
            append(tar, &format!("many/d{}/f{number}", number / 500), tar::EntryType::Regular, text.as_bytes(), 0o644)?;
        }
        Ok(())
    };
    type Fill<'a> = &'a dyn Fn(&mut tar::Builder<Vec<u8>>) -> Result<()>;
    let images: [(&str, Vec<Fill<'_>>); 3] =
        [("small", vec![&small]), ("large", vec![&small, &large]), ("many", vec![&small, &many])];
    for (tag, fills) in images {
        let layout = temp.join("layout");
        let _ = fs::remove_dir_all(&layout);
        fs::create_dir_all(layout.join("blobs/sha256"))?;
        let mut diff_ids = Vec::new();
        let mut layers = Vec::new();
        // buildah counts on an entry for each layer.
        let history: Vec<_> = fills.iter().map(|_| json!({ "created_by": "bench" })).collect();
        for fill in fills {
            let mut builder = tar::Builder::new(Vec::new());
            fill(&mut builder)?;
            let tar = builder.into_inner()?;
            diff_ids.push(format!("sha256:{}", hex(&tar)));
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            gzip.write_all(&tar)?;
            layers.push(blob(&layout, &gzip.finish()?, "application/vnd.oci.image.layer.v1.tar+gzip")?);
        }
        let config = json!({ "architecture": "amd64", "os": "linux", "config": { "Cmd": ["sh"] },
            "history": history, "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config = blob(&layout, &serde_json::to_vec(&config)?, "application/vnd.oci.image.config.v1+json")?;
        let manifest = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers });
        let manifest = blob(&layout, &serde_json::to_vec(&manifest)?, "application/vnd.oci.image.manifest.v1+json")?;
        fs::write(
            layout.join("index.json"),
            serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [manifest] }))?,
        )?;
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let status = Command::new("skopeo")
            .args(["copy", "-q", "--dest-tls-verify=false", &format!("oci:{}", layout.display())])
            .arg(format!("docker://localhost:{port}/base:{tag}"))
            .status()
            .map_err(|error| format!("skopeo: {error}"))?;
        if !status.success() {
            return Err(format!("skopeo cannot push base:{tag}").into());
        }
    }
    Ok(())
}

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    header.set_mtime(1_600_000_000);
    tar.append_data(&mut header, name, bytes)?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn blob(layout: &Path, bytes: &[u8], media_type: &str) -> Result<serde_json::Value> {
    let digest = hex(bytes);
    fs::write(layout.join("blobs/sha256").join(&digest), bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
}
