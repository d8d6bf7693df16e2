//! What the machine can do: rates of the parts that no builder can do without, measured in the same run.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::Result;
use crate::images::program_like;

/// Bytes that each probe handles.
const PROBE_BYTES: usize = 128 << 20;

/// Files that the probe for files makes.
const PROBE_FILES: u32 = 10_000;

/// How often each probe is done; the best counts, being nearest to what the hardware allows.
const TRIES: usize = 3;

/// The least that a row's result takes, in uncompressed bytes.
#[derive(Debug, Clone, Default)]
pub struct Work {
    /// Inflated, hashed and written to disk.
    pub inflated: u64,
    /// Compressed and hashed.
    pub packed: u64,
    /// Hashed twice and written to disk as they are.
    pub stored: u64,
    /// Files made.
    pub files: u64,
    /// What the RUN does, as a command for `sh -c` in an empty directory, so that it can be timed alone.
    pub alone: Option<String>,
}

/// Rates of one processor, in bytes (files) a second.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    inflate: f64,
    compress: f64,
    hash: f64,
    write: f64,
    files: f64,
    processors: f64,
}

impl Rates {
    /// Measures in `temp`, with the compressed layer `gzip`.
    pub fn measure(temp: &Path, gzip: &[u8]) -> Result<Self> {
        let data: Vec<u8> = (0..PROBE_BYTES >> 20).flat_map(|seed| program_like(seed as u64, 1 << 20)).collect();
        let inflate = best(|| {
            let mut inflated = 0;
            let mut buffer = vec![0; 1 << 20];
            let mut reader = flate2::read::GzDecoder::new(gzip);
            while inflated < PROBE_BYTES {
                match reader.read(&mut buffer)? {
                    0 => break,
                    count => inflated += count,
                }
            }
            Ok(inflated as f64)
        })?;
        let compress = best(|| {
            let mut encoder = flate2::write::GzEncoder::new(std::io::sink(), flate2::Compression::new(3));
            encoder.write_all(&data[..PROBE_BYTES / 4])?;
            encoder.finish()?;
            Ok((PROBE_BYTES / 4) as f64)
        })?;
        let hash = best(|| {
            std::hint::black_box(Sha256::digest(&data));
            Ok(data.len() as f64)
        })?;
        let path = temp.join("probe");
        let write = best(|| {
            File::create(&path)?.write_all(&data)?;
            Ok(data.len() as f64)
        })?;
        fs::remove_file(&path)?;
        let files = best(|| {
            fs::create_dir_all(&path)?;
            for number in 0..PROBE_FILES {
                fs::write(path.join(number.to_string()), b"content")?;
            }
            Ok(f64::from(PROBE_FILES))
        })?;
        fs::remove_dir_all(&path)?;
        let processors = std::thread::available_parallelism()?.get() as f64;
        Ok(Self { inflate, compress, hash, write, files, processors })
    }

    /// Seconds that `work` takes at least: the work of all parts spread over all processors, and its RUN.
    pub fn allow(&self, work: &Work, temp: &Path) -> Result<f64> {
        let [inflated, packed, stored, files] =
            [work.inflated, work.packed, work.stored, work.files].map(|number| number as f64);
        let processors = inflated * (1.0 / self.inflate + 1.0 / self.hash + 1.0 / self.write)
            + packed * (1.0 / self.compress + 1.0 / self.hash)
            + stored * (2.0 / self.hash + 1.0 / self.write)
            + files / self.files;
        let alone = work.alone.as_deref().map_or(Ok(0.0), |line| alone(line, temp))?;
        Ok(processors / self.processors + alone)
    }

    /// For the results.
    pub fn to_json(self) -> serde_json::Value {
        json!({
            "inflate_bytes_per_second": self.inflate, "gzip3_bytes_per_second": self.compress,
            "sha256_bytes_per_second": self.hash, "write_bytes_per_second": self.write,
            "files_per_second": self.files, "processors": self.processors,
        })
    }
}

impl std::fmt::Display for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mega = |rate: f64| rate / 1e6;
        write!(
            f,
            "{} processors; each: inflate {:.0} MB/s, gzip -3 {:.0} MB/s, sha256 {:.0} MB/s, write {:.0} MB/s, {:.0} files/s",
            self.processors,
            mega(self.inflate),
            mega(self.compress),
            mega(self.hash),
            mega(self.write),
            self.files
        )
    }
}

/// The best rate of several tries; `work` says how much it did.
fn best(mut work: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut best = 0.0_f64;
    for _ in 0..TRIES {
        let started = Instant::now();
        let done = work()?;
        best = best.max(done / started.elapsed().max(Duration::from_nanos(1)).as_secs_f64());
    }
    Ok(best)
}

fn alone(line: &str, temp: &Path) -> Result<f64> {
    let place = tempfile::tempdir_in(temp)?;
    let started = Instant::now();
    let status = Command::new("sh").arg("-c").arg(line).current_dir(place.path()).stdin(Stdio::null()).status()?;
    if !status.success() {
        return Err(format!("{line}: {status}").into());
    }
    Ok(started.elapsed().as_secs_f64())
}
