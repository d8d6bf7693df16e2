//! A small harness for measurements of builder-core's parts.
//!
//! Each result names the bytes or entries that were processed, so that it reads as a rate. The best of several runs is
//! shown beside the median: on a machine that others use too, the best is nearest to what the code costs.
//!
//! `cargo bench -p benches [-- WORD]` runs those whose name holds the word. `SLIPWAY_BENCH_TREE` names the directory whose
//! files are used as data (default `/usr/share`), `SLIPWAY_BENCH_MIB` how much of it (default 256).

use std::time::{Duration, Instant};

/// Runs of each measurement.
const RUNS: usize = 5;

/// What one run processes.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// Bytes, shown as MB/s.
    Bytes(u64),
    /// Entries, shown as thousands a second.
    Entries(u64),
}

/// Measures and prints.
#[derive(Debug, Default)]
pub struct Harness {
    only: Option<String>,
}

impl Harness {
    /// Takes the word to look for from the command line.
    pub fn from_arguments() -> Self {
        Self { only: std::env::args().skip(1).find(|argument| !argument.starts_with('-')) }
    }

    /// Whether any measurement with this beginning of a name is wanted; spares preparing its data.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name.contains(only) || only.starts_with(name))
    }

    /// Runs `run` several times. What it returns is shown behind the rate, such as a ratio.
    #[expect(clippy::print_stdout, reason = "printing is what it is for")]
    pub fn measure(&self, name: &str, work: Work, mut run: impl FnMut() -> String) {
        if !self.wants(name) {
            return;
        }
        let mut note = String::new();
        let mut times: Vec<Duration> = (0..RUNS)
            .map(|_| {
                let start = Instant::now();
                note = run();
                start.elapsed()
            })
            .collect();
        times.sort();
        let rate = |time: Duration| match work {
            Work::Bytes(bytes) => format!("{:8.1} MB/s", bytes as f64 / time.as_secs_f64() / 1e6),
            Work::Entries(entries) => format!("{:8.1} k/s ", entries as f64 / time.as_secs_f64() / 1e3),
        };
        let (best, median) = (times[0], times[RUNS / 2]);
        println!("{name:40} {} (median {}) {:8.1} ms  {note}", rate(best), rate(median), best.as_secs_f64() * 1e3);
    }
}
