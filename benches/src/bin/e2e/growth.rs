//! How time and memory grow with what is built: `make bench-growth`.
//!
//! Each series builds the same thing at 1, 10 and 100 times its size, cold and pushed, and takes the median of three runs. The
//! line of a series that grows in proportion has slope 1 in the plot; below that it is better than linear. Constant costs make the
//! first step flat, so the last step (from 10 to 100) is what is judged.
//!
//! `BENCH_ROWS` chooses series as it does rows. `BENCH_LARGEST` is the largest size (default 100; 10000 makes ten million files of a
//! context, which take as much disk as the kernel gives them). `BENCH_SVG`: where the plot goes (default `docs/growth.svg`).

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::measure::{Job, Run, remove_state};
use crate::peers::{Peer, Way, peers};
use crate::plot::{self, Panel, Point};
use crate::registry::Registry;
use crate::{Result, env, images};

/// How many times the size.
const SIZES: [usize; 5] = [1, 10, 100, 1_000, 10_000];

/// Timed runs of each size.
const RUNS: usize = 3;

/// A Dockerfile, in which `REGISTRY` stands for the registry, and the files of its context.
type Recipe = (String, BTreeMap<String, Vec<u8>>);

/// One thing that grows.
struct Series {
    name: &'static str,
    /// What one unit is, for the axis.
    unit: &'static str,
    /// Units at the smallest size.
    first: usize,
    /// So many units of it.
    make: fn(usize) -> Recipe,
}

fn series() -> Vec<Series> {
    vec![
        Series { name: "files of a context", unit: "files", first: 1_000, make: context_files },
        Series { name: "files of a RUN", unit: "files", first: 1_000, make: run_files },
        Series { name: "layers", unit: "RUNs", first: 4, make: layers },
        Series { name: "bytes of a layer", unit: "MiB", first: 16, make: bytes },
        Series { name: "stages", unit: "stages", first: 10, make: stages },
    ]
}

fn small_file(number: usize) -> (String, Vec<u8>) {
    (format!("d{}/f{number}", number / 500), format!("{number}\n").repeat(20).into_bytes())
}

fn context_files(count: usize) -> Recipe {
    ("FROM REGISTRY/base:small\nCOPY . /src\n".to_owned(), (0..count).map(small_file).collect())
}

fn run_files(count: usize) -> Recipe {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in (0..count).map(small_file) {
        images::append(&mut tar, &name, tar::EntryType::Regular, &bytes, 0o644).expect("a vector takes everything");
    }
    let tar = tar.into_inner().expect("a vector takes everything");
    let dockerfile = "FROM REGISTRY/base:small\nRUN --mount=type=bind,source=files.tar,target=/files.tar mkdir /files && \
                      tar -xf /files.tar -C /files\n";
    (dockerfile.to_owned(), BTreeMap::from([("files.tar".to_owned(), tar)]))
}

fn layers(count: usize) -> Recipe {
    let runs: String = (0..count).map(|number| format!("RUN echo {number} > /n{number}\n")).collect();
    (format!("FROM REGISTRY/base:small\n{runs}"), BTreeMap::new())
}

fn bytes(mebibytes: usize) -> Recipe {
    let dockerfile = format!("FROM REGISTRY/base:small\nRUN head -c {}m /dev/urandom > /random\n", mebibytes);
    (dockerfile, BTreeMap::new())
}

fn stages(count: usize) -> Recipe {
    let mut dockerfile = String::new();
    for number in 0..count {
        dockerfile += &format!("FROM REGISTRY/base:small AS s{number}\nCOPY file /f{number}\n");
    }
    dockerfile += "FROM REGISTRY/base:small\n";
    for number in 0..count {
        dockerfile += &format!("COPY --from=s{number} /f{number} /all/\n");
    }
    (dockerfile, BTreeMap::from([("file".to_owned(), b"content\n".to_vec())]))
}

/// Measures all series, prints a table and draws the plot.
pub fn main() -> Result<()> {
    let temp = match env("BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let temp = temp.path();
    let pristine = temp.join("pristine");
    {
        let registry = Registry::start(&pristine)?;
        // Only the small base is used.
        images::push(temp, registry.port, 0.001)?;
    }
    let slipway = peers()?.into_iter().find(|peer| peer.name == "slipway").ok_or("BENCH_ONLY leaves slipway out")?;
    let only = env("BENCH_ROWS").unwrap_or_default();
    let largest: usize = env("BENCH_LARGEST").and_then(|text| text.parse().ok()).unwrap_or(100);
    let mut out = std::io::stderr();
    let mut panels = Vec::new();
    let mut results = Vec::new();
    for series in series() {
        if !only.split('|').any(|text| series.name.contains(text)) {
            continue;
        }
        let mut points: Vec<Point> = Vec::new();
        for size in SIZES.into_iter().filter(|size| *size <= largest) {
            let units = series.first * size;
            let (dockerfile, context) = (series.make)(units);
            let directory = temp.join("context");
            write_context(&directory, &context)?;
            drop(context);
            let mut runs = Vec::with_capacity(RUNS);
            for number in 0..RUNS {
                runs.push(Place { temp, pristine: &pristine, slipway: &slipway }.run(&dockerfile, number)?);
            }
            if runs.iter().any(|run| !run.ok) {
                return Err(format!("{units} {} of {} cannot be built", series.unit, series.name).into());
            }
            let mut seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
            seconds.sort_by(f64::total_cmp);
            let point = Point {
                units,
                seconds: seconds[RUNS / 2],
                mebibytes: runs.iter().map(|run| run.peak_bytes).max().unwrap_or(0) as f64 / 1_048_576.0,
            };
            writeln!(
                out,
                "{:<20} {:>9} {:<6} {:>8.2} s ({:.2} to {:.2}) {:>6.0} MiB",
                series.name,
                units,
                series.unit,
                point.seconds,
                seconds[0],
                seconds[RUNS - 1],
                point.mebibytes
            )?;
            points.push(point);
        }
        if let [.., before, last] = points.as_slice() {
            writeln!(
                out,
                "{:<20} {:>9} times in the last step",
                series.name,
                format!("{:.1}", last.seconds / before.seconds)
            )?;
        }
        results.push(json!({ "series": series.name, "unit": series.unit, "points": points.iter().map(|point| json!({
            "units": point.units, "seconds": point.seconds, "peak_anonymous_mebibytes": point.mebibytes,
        })).collect::<Vec<_>>() }));
        panels.push(Panel { title: series.name, unit: series.unit, points });
    }
    let svg = PathBuf::from(env("BENCH_SVG").unwrap_or_else(|| "docs/growth.svg".to_owned()));
    fs::write(&svg, plot::svg(&panels))?;
    let file = PathBuf::from(env("BENCH_JSON").unwrap_or_else(|| "target/growth.json".to_owned()));
    fs::write(&file, serde_json::to_vec_pretty(&results)?)?;
    writeln!(out, "written to {} and {}", svg.display(), file.display())?;
    Ok(())
}

fn write_context(directory: &Path, context: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory)?;
    for (name, bytes) in context {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().ok_or("a file beside the context")?)?;
        fs::write(path, bytes)?;
    }
    Ok(())
}

/// Where one build happens.
struct Place<'a> {
    temp: &'a Path,
    pristine: &'a Path,
    slipway: &'a Peer,
}

impl Place<'_> {
    /// From nothing: an empty work directory, a registry with the bases alone.
    fn run(&self, dockerfile: &str, number: usize) -> Result<Run> {
        let registry = Registry::with(self.pristine, &self.temp.join("registries"))?;
        let host = format!("localhost:{}", registry.port);
        let (state, file) = (self.temp.join("state"), self.temp.join("Dockerfile"));
        remove_state(&state);
        fs::create_dir_all(&state)?;
        fs::write(&file, dockerfile.replace("REGISTRY", &host))?;
        let template = self.slipway.template(Way::Usual).ok_or("slipway has no usual way")?;
        let line = template
            .replace("{context}", &self.temp.join("context").display().to_string())
            .replace("{dockerfile}", &file.display().to_string())
            .replace("{tag}", &format!("{host}/out:{number}"))
            .replace("{state}", &state.display().to_string());
        let run = Job { line, programs: &self.slipway.programs, daemon: None, state: &state, follow_disk: false }.run();
        registry.remove();
        remove_state(&state);
        run
    }
}
