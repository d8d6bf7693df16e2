//! Runs a fuzz target over mutated inputs on any compiler; see README.md.

use std::collections::HashSet;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use std::{env, fs};

use slipway_fuzz::{TARGETS, Target};

/// Inputs grow no longer than this, in bytes.
const LONGEST_INPUT: usize = 8 * 1024;

/// Inputs that are kept besides the seeds.
const MOST_KEPT: usize = 20_000;

/// One input may take this long; the targets promise linear time.
const SLOWEST: Duration = Duration::from_secs(5);

const USAGE: &str = "usage: mutate TARGET [--seconds N] [--seed N] [--trace FILE] [--input FILE] [--write-seeds DIR]";

struct Options {
    target: &'static Target,
    seconds: u64,
    seed: u64,
    trace: Option<PathBuf>,
    input: Option<PathBuf>,
    write_seeds: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let mut arguments = env::args().skip(1);
    let name = arguments.next().ok_or(USAGE)?;
    let target = TARGETS.iter().find(|target| target.name == name).ok_or_else(|| {
        let known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        format!("no target {name}; there are {}", known.join(", "))
    })?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |time| time.as_secs());
    let mut options = Options { target, seconds: 60, seed: now, trace: None, input: None, write_seeds: None };
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or(USAGE)?;
        let number = || value.parse().map_err(|error| format!("{flag} {value}: {error}"));
        match flag.as_str() {
            "--seconds" => options.seconds = number()?,
            "--seed" => options.seed = number()?,
            "--trace" => options.trace = Some(value.into()),
            "--input" => options.input = Some(value.into()),
            "--write-seeds" => options.write_seeds = Some(value.into()),
            _ => return Err(USAGE.to_owned()),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let target = options.target;
    if let Some(path) = &options.input {
        let input = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        (target.run)(&input);
        return Ok(());
    }
    let mut pool = (target.seeds)();
    if let Some(directory) = &options.write_seeds {
        return write_seeds(directory, &pool).map_err(|error| format!("{}: {error}", directory.display()));
    }
    pool.push(Vec::new());
    println!("{}: {} seeds, seed {}, {} s", target.name, pool.len(), options.seed, options.seconds);
    let mut random = Random(options.seed.wrapping_mul(2).wrapping_add(1));
    let mut behaviours = HashSet::new();
    for seed in &pool {
        behaviours.insert(try_one(options, seed)?);
    }
    let most = pool.len() + MOST_KEPT;
    let begin = Instant::now();
    let mut count: u64 = 0;
    while begin.elapsed() < Duration::from_secs(options.seconds) {
        let input = mutated(&pool, target.dictionary, &mut random);
        count += 1;
        if behaviours.insert(try_one(options, &input)?) && pool.len() < most {
            pool.push(input);
        }
    }
    println!("{}: {count} inputs, {} behaviours, no failure", target.name, behaviours.len());
    Ok(())
}

fn write_seeds(directory: &Path, seeds: &[Vec<u8>]) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    for (index, seed) in seeds.iter().enumerate() {
        fs::write(directory.join(format!("seed-{index}")), seed)?;
    }
    Ok(())
}

/// Runs one input; a panic or a slow run is a failure, and the input is kept.
fn try_one(options: &Options, input: &[u8]) -> Result<u64, String> {
    if let Some(trace) = &options.trace {
        fs::write(trace, input).map_err(|error| format!("{}: {error}", trace.display()))?;
    }
    let begin = Instant::now();
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (options.target.run)(input)));
    let what = match outcome {
        Ok(behaviour) if begin.elapsed() < SLOWEST => return Ok(behaviour),
        Ok(_) => "took too long",
        Err(_) => "failed",
    };
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts").join(options.target.name);
    let path = directory.join(format!("failure-{}", options.seed));
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(&path, input))
        .map_err(|error| format!("{}: {error}", path.display()))?;
    Err(format!("{}: seed {}: an input {what}; it is in {}", options.target.name, options.seed, path.display()))
}

/// A new input: one of the pool with a few changes.
fn mutated(pool: &[Vec<u8>], dictionary: &[&str], random: &mut Random) -> Vec<u8> {
    let mut input = pool[random.below(pool.len())].clone();
    for _ in 0..1 + random.below(4) {
        let position = random.below(input.len() + 1);
        let end = position + random.below((input.len() - position).min(64) + 1);
        match random.below(8) {
            0 | 1 => {
                let piece = dictionary[random.below(dictionary.len())].bytes();
                input.splice(position..position, piece);
            }
            2 => {
                let piece = dictionary[random.below(dictionary.len())].bytes();
                input.splice(position..end, piece);
            }
            3 => {
                input.drain(position..end);
            }
            4 => {
                let piece = input[position..end].to_vec();
                for _ in 0..1 + random.below(8) {
                    input.splice(position..position, piece.iter().copied());
                }
            }
            5 => {
                let other = &pool[random.below(pool.len())];
                let from = random.below(other.len() + 1);
                let piece = other[from..(from + random.below(128)).min(other.len())].to_vec();
                input.splice(position..position, piece);
            }
            6 => {
                let other = &pool[random.below(pool.len())];
                input.truncate(position);
                input.extend_from_slice(&other[random.below(other.len() + 1)..]);
            }
            _ => {
                if let Some(byte) = input.get_mut(position) {
                    *byte = random.next().to_le_bytes()[0];
                }
            }
        }
        input.truncate(LONGEST_INPUT);
    }
    input
}

/// Marsaglia's xorshift with 64 bits: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
