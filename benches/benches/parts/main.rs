//! The parts of a build, each alone: `cargo bench -p benches [-- WORD]` measures those whose name holds the word.
//!
//! One program, so that it is linked once. Preparing data takes longer than measuring, so each part asks whether it is wanted.

mod context;
mod index;
mod parse;
mod pipeline;
mod snapshot;
mod unpack;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};

/// Prepares and measures one part.
type Part = fn(&mut Criterion);

fn main() {
    let parts: [(&str, Part); 6] = [
        ("parse", parse::measure),
        ("pipeline", pipeline::measure),
        ("unpack", unpack::measure),
        ("index", index::measure),
        ("snapshot", snapshot::measure),
        ("context", context::measure),
    ];
    let word = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let mut criterion = Criterion::default().configure_from_args();
    for (name, measure) in parts {
        if word.as_deref().is_none_or(|word| word.starts_with(name) || name.contains(word)) {
            measure(&mut criterion);
        }
    }
    criterion.final_summary();
}

/// A group for runs that take tenths of a second: few samples of one run each.
fn group<'c>(criterion: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(2));
    group
}
