//! Which library compresses layers how well and how fast, beside gzip(1), pigz(1) and Go's compress/gzip, which BuildKit uses.
//!
//! ```text
//! codecs [NAME=DIRECTORY…]     default: text=/usr/share programs=/usr/lib
//! ```
//!
//! Of each directory as many files as `SLIPWAY_BENCH_MIB` says (96) become one tar; noise is measured besides. Libraries compress
//! the tar from memory in blocks of [`BLOCK_BYTES`], as a layer is compressed, and the result is thrown away. The rows *layer*
//! are the whole line instead: files → tar → diff_id → blocks → digest → file; one of them is BuildKit's way of doing it, in Go.
//! Commands read the tar from a file and write into a pipe that is only counted. Of three runs the best counts. What is not installed is left out, with a word.

use std::error::Error;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use benches::Data;
use builder_core::layer::Compression;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a layer is cut into.
const BLOCK_BYTES: usize = 1 << 20;

/// Bytes that do not compress.
const NOISE_BYTES: usize = 128 << 20;

/// Runs of each measurement; the best counts.
const RUNS: usize = 3;

/// Threads of the second column.
const THREADS: usize = 2;

/// A library at a level.
#[derive(Debug, Clone, Copy)]
enum Codec {
    Libdeflate(i32),
    ZlibRs(u32),
    Zstd(i32),
}

/// Compresses a block and says how long the result is.
type Compress = Box<dyn FnMut(&[u8]) -> u64>;

/// Compressed bytes and seconds.
#[derive(Debug, Clone, Copy)]
struct Measured {
    bytes: u64,
    seconds: f64,
}

fn main() -> Result<()> {
    let mut trees: Vec<(String, PathBuf)> = std::env::args()
        .skip(1)
        .map(|argument| match argument.split_once('=') {
            Some((name, directory)) => Ok((name.to_owned(), directory.into())),
            None => Err(format!("`{argument}` is not NAME=DIRECTORY")),
        })
        .collect::<std::result::Result<_, _>>()?;
    if trees.is_empty() {
        trees = [("text", "/usr/share"), ("programs", "/usr/lib")].map(|(n, d)| (n.to_owned(), d.into())).to_vec();
    }
    let tools = tempfile::tempdir()?;
    let (commands, go) = commands(tools.path());
    let mebibytes = std::env::var("SLIPWAY_BENCH_MIB").map_or(Ok(96), |text| text.parse::<u64>())?;
    for (name, directory) in trees {
        let data = Data::new(|tree| benches::copy(&directory, tree, &mut (mebibytes << 20)));
        table(&format!("{name} ({})", directory.display()), &data, &commands, go.as_deref())?;
    }
    table(
        "noise",
        &Data::new(|tree| {
            std::fs::write(tree.join("noise"), benches::noise(NOISE_BYTES)).expect("a file");
        }),
        &commands,
        go.as_deref(),
    )
}

/// Prints what all of them make of `data`.
#[expect(clippy::print_stdout, reason = "the tables are what it is for")]
fn table(name: &str, data: &Data, commands: &[(&str, Vec<String>)], go: Option<&str>) -> Result<()> {
    let plain = data.write(Compression::None, 1);
    let path = data.store.path(plain.blob.digest);
    let mut tar = Vec::new();
    File::open(&path)?.read_to_end(&mut tar)?;
    let size = tar.len() as f64;
    println!("\n{name}: {:.1} MB, {} entries\n", size / 1e6, plain.entries);
    println!("| Compressor | size | beside `gzip -6` | MB/s, one thread | {THREADS} threads |\n|---|---|---|---|---|");
    let mut reference = None;
    let mut row = |name: &str, one: Option<Measured>, several: Option<Measured>| {
        let Some(bytes) = one.or(several).map(|measured| measured.bytes as f64) else { return };
        let reference = *reference.get_or_insert(bytes);
        let rate = |measured: Option<Measured>| {
            measured.map_or("–".to_owned(), |m| format!("{:.0}", size / m.seconds / 1e6))
        };
        let (ratio, beside) = (bytes / size, (bytes / reference - 1.0) * 100.0);
        println!("| {name} | {ratio:.4} | {beside:+.1} % | {} | {} |", rate(one), rate(several));
    };
    for (name, command) in commands {
        let measured = best(|| run(command, &path))?;
        if name.starts_with("pigz") { row(name, None, Some(measured)) } else { row(name, Some(measured), None) }
    }
    let codecs = [1, 3, 4, 5, 6].map(Codec::Libdeflate).into_iter();
    let codecs = codecs.chain([1, 3, 6].map(Codec::ZlibRs)).chain([1, 3, 6].map(Codec::Zstd));
    for codec in codecs {
        let measure = |threads| best(|| in_blocks(&tar, codec, threads));
        row(&codec.name(), Some(measure(1)?), Some(measure(THREADS)?));
    }
    drop(tar);
    if let Some(go) = go {
        let blob = data.dir.path().join("go.tar.gz");
        let words = [go, &data.dir.path().join("tree").to_string_lossy(), &blob.to_string_lossy()].map(str::to_owned);
        let measured = best(|| Ok(Measured { seconds: run(&words, &path)?.seconds, bytes: blob.metadata()?.len() }))?;
        row("layer, Go", None, Some(measured));
    }
    let layers = [Compression::None, Compression::DEFAULT, Compression::DEFAULT_ZSTD];
    for compression in layers {
        let measure = |threads| {
            best(|| {
                let start = Instant::now();
                let layer = data.write(compression, threads);
                Ok(Measured { bytes: layer.blob.size, seconds: start.elapsed().as_secs_f64() })
            })
        };
        row(&format!("layer, {}", label(compression)), Some(measure(1)?), Some(measure(THREADS)?));
    }
    Ok(())
}

fn label(compression: Compression) -> String {
    match compression {
        Compression::None => "plain".to_owned(),
        Compression::Gzip { level } => format!("gzip {level} (libdeflate)"),
        Compression::Zstd { level } => format!("zstd {level}"),
    }
}

/// The fastest of some runs.
fn best(mut run: impl FnMut() -> Result<Measured>) -> Result<Measured> {
    let mut best = run()?;
    for _ in 1..RUNS {
        let next = run()?;
        if next.seconds < best.seconds {
            best = next;
        }
    }
    Ok(best)
}

/// The commands that are installed; gzip comes first, being what the others are compared with. And the program in Go.
#[expect(clippy::print_stderr, reason = "says what it leaves out")]
fn commands(tools: &Path) -> (Vec<(&'static str, Vec<String>)>, Option<String>) {
    let words = |command: &str| command.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut commands = vec![("gzip(1) -6", words("gzip -6")), ("pigz(1) -6", words(&format!("pigz -6 -p {THREADS}")))];
    commands.retain(|(name, command)| {
        let works = Command::new(&command[0]).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        let works = works.is_ok_and(|status| status.success());
        if !works {
            eprintln!("codecs: without {name}, which is not installed");
        }
        works
    });
    let (source, program) = (tools.join("deflate.go"), tools.join("deflate"));
    let built = std::fs::write(&source, include_str!("deflate.go")).and_then(|()| {
        Command::new("go")
            .arg("build")
            .arg("-o")
            .arg(&program)
            .arg(&source)
            .env("GOCACHE", tools.join("cache"))
            .status()
    });
    if built.is_ok_and(|status| status.success()) {
        let program = program.to_string_lossy().into_owned();
        commands.push(("Go compress/gzip, default level", vec![program.clone()]));
        return (commands, Some(program));
    }
    eprintln!("codecs: without Go's compress/gzip, for lack of a working `go` (Debian: golang-go)");
    (commands, None)
}

/// One run of a command over the file.
fn run(command: &[String], path: &Path) -> Result<Measured> {
    let start = Instant::now();
    let mut child =
        Command::new(&command[0]).args(&command[1..]).stdin(File::open(path)?).stdout(Stdio::piped()).spawn()?;
    let mut output = child.stdout.take().expect("it is piped");
    let (mut bytes, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        match output.read(&mut buffer)? {
            0 => break,
            count => bytes += count as u64,
        }
    }
    if !child.wait()?.success() {
        return Err(format!("`{}` failed", command.join(" ")).into());
    }
    Ok(Measured { bytes, seconds: start.elapsed().as_secs_f64() })
}

/// One run of a library over all blocks, each compressed alone.
fn in_blocks(tar: &[u8], codec: Codec, threads: usize) -> Result<Measured> {
    let blocks: Vec<&[u8]> = tar.chunks(BLOCK_BYTES).collect();
    let (next, bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut compress = codec.compressor();
                while let Some(block) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    bytes.fetch_add(compress(block), Ordering::Relaxed);
                }
            });
        }
    });
    Ok(Measured { bytes: bytes.into_inner(), seconds: start.elapsed().as_secs_f64() })
}

impl Codec {
    fn name(self) -> String {
        match self {
            Self::Libdeflate(level) => format!("libdeflate {level}"),
            Self::ZlibRs(level) => format!("zlib-rs {level}"),
            Self::Zstd(level) => format!("zstd {level}"),
        }
    }

    /// With what a thread needs for it.
    fn compressor(self) -> Compress {
        match self {
            Self::Libdeflate(level) => {
                let level = libdeflater::CompressionLvl::new(level).expect("a level from 0 to 12");
                let mut compressor = libdeflater::Compressor::new(level);
                let mut output = vec![0; compressor.deflate_compress_bound(BLOCK_BYTES)];
                Box::new(move |block| compressor.deflate_compress(block, &mut output).expect("there is room") as u64)
            }
            Self::ZlibRs(level) => Box::new(move |block| {
                let mut encoder = flate2::write::DeflateEncoder::new(Counted(0), flate2::Compression::new(level));
                encoder.write_all(block).and_then(|()| encoder.flush()).expect("in memory");
                encoder.finish().expect("in memory").0
            }),
            Self::Zstd(level) => {
                let mut compressor = zstd::bulk::Compressor::new(level).expect("a level that there is");
                let mut output = vec![0; zstd::zstd_safe::compress_bound(BLOCK_BYTES)];
                Box::new(move |block| {
                    compressor.compress_to_buffer(block, &mut output[..]).expect("there is room") as u64
                })
            }
        }
    }
}

/// Counts what is written.
struct Counted(u64);

impl std::io::Write for Counted {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0 += buf.len() as u64;
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
