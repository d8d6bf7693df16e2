//! Real builds in every environment of `docs/sandbox.md`, E1 to E6: the layers are those of E1.
//!
//! One trial per workload of `fixtures/workloads` and environment. Base images, packages and wheels are fetched once for each `target`
//! directory; without a network the trials are skipped.
//!
//! | Variable | Meaning |
//! |---|---|
//! | `WORKLOADS_FROM` | a directory of workloads to build instead of `fixtures/workloads` |
//! | `WORKLOADS_KEEP` | a directory for inputs, work directories and results, which then stay |

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tests::environment::Environment;
use tests::layers::{Layers, Varies};

mod facts;
mod inputs;
mod place;

use inputs::Workload;
use place::Place;

/// What one build gives; the inner error is a reason to skip the trial.
type Built = Result<Result<Layers, String>, String>;

#[expect(clippy::print_stderr, reason = "a test harness reports to the terminal")]
fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let bench = match Bench::new() {
        Ok(bench) => Arc::new(bench),
        Err(error) => {
            eprintln!("cannot prepare: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut trials = Vec::new();
    for (number, workload) in bench.workloads.iter().enumerate() {
        for environment in Environment::ALL {
            let name = format!("{}::{}", workload.name, environment.name());
            let bench = Arc::clone(&bench);
            trials.push(Trial::ignorable_test(name, move || match bench.trial(number, environment)? {
                Ok(()) => Ok(Completion::Completed),
                Err(reason) => Ok(Completion::ignored_with(format!("skipped: {reason}"))),
            }));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What the trials share.
struct Bench {
    place: Place,
    workloads: Vec<Workload>,
    /// Of each workload.
    shared: Vec<Shared>,
}

/// What the trials of one workload share.
#[derive(Default)]
struct Shared {
    /// Whether the inputs could be made; the inner error says what is missing.
    inputs: OnceLock<Result<Result<(), String>, String>>,
    /// What E1 gives, made by whichever trial needs it first.
    expected: OnceLock<Built>,
}

impl Bench {
    fn new() -> Result<Self, String> {
        let workloads = Workload::all()?;
        let shared = workloads.iter().map(|_| Shared::default()).collect();
        Ok(Self { place: Place::new()?, workloads, shared })
    }

    fn trial(&self, number: usize, environment: Environment) -> Result<Result<(), String>, Failed> {
        if let Err(reason) = environment.possible().and_then(|()| Environment::E1.possible()) {
            return Ok(Err(reason));
        }
        let workload = &self.workloads[number];
        let expected = self.shared[number].expected.get_or_init(|| self.built(number, Environment::E1));
        let expected = match expected {
            Ok(Ok(layers)) => layers,
            Ok(Err(reason)) => return Ok(Err(reason.clone())),
            Err(error) => return Err(format!("E1: {error}").into()),
        };
        if environment == Environment::E1 {
            facts::check(workload, expected)?;
            return Ok(Ok(()));
        }
        match self.built(number, environment)? {
            Ok(layers) => {
                let varies = Varies::read(&workload.fixture("varies.txt"))?;
                expected.same(&layers, &varies)?;
                Ok(Ok(()))
            }
            Err(reason) => Ok(Err(reason)),
        }
    }

    fn built(&self, number: usize, environment: Environment) -> Built {
        let workload = &self.workloads[number];
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let inputs = &self.shared[number].inputs;
        match inputs.get_or_init(|| workload.prepare(cache, &self.place.inputs(workload))) {
            Ok(Ok(())) => self.place.build(workload, environment).map(Ok),
            Ok(Err(reason)) => Ok(Err(reason.clone())),
            Err(error) => Err(error.clone()),
        }
    }
}
