//! Real builds in every environment of `docs/sandbox.md`, E1 to E6: the layers are those of E1.
//!
//! One trial per workload of `fixtures/workloads` and environment. Base images, packages and wheels are fetched once for each `target`
//! directory; without a network the trials are skipped.
//!
//! | Variable | Meaning |
//! |---|---|
//! | `WORKLOADS_KEEP` | a directory for inputs, work directories and results, which then stay |

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

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
    for workload in Workload::ALL {
        for environment in Environment::ALL {
            let bench = Arc::clone(&bench);
            let name = format!("{}::{}", workload.name(), environment.name());
            trials.push(Trial::ignorable_test(name, move || match bench.trial(workload, environment)? {
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
    /// Inputs, by workload; the inner error says what is missing.
    inputs: Mutex<BTreeMap<&'static str, Result<(), String>>>,
    /// What E1 gives, made by whichever trial needs it first.
    expected: BTreeMap<&'static str, OnceLock<Built>>,
}

impl Bench {
    fn new() -> Result<Self, String> {
        let expected = Workload::ALL.into_iter().map(|workload| (workload.name(), OnceLock::new())).collect();
        Ok(Self { place: Place::new()?, inputs: Mutex::default(), expected })
    }

    fn trial(&self, workload: Workload, environment: Environment) -> Result<Result<(), String>, Failed> {
        if let Err(reason) = environment.possible().and_then(|()| Environment::E1.possible()) {
            return Ok(Err(reason));
        }
        let expected = self.expected[workload.name()].get_or_init(|| self.built(workload, Environment::E1));
        let expected = match expected {
            Ok(Ok(layers)) => layers,
            Ok(Err(reason)) => return Ok(Err(reason.clone())),
            Err(error) => return Err(format!("E1: {error}").into()),
        };
        if environment == Environment::E1 {
            facts::check(workload, expected)?;
            return Ok(Ok(()));
        }
        match self.built(workload, environment)? {
            Ok(layers) => {
                let varies = Varies::read(&workload.fixture("varies.txt"))?;
                expected.same(&layers, &varies)?;
                Ok(Ok(()))
            }
            Err(reason) => Ok(Err(reason)),
        }
    }

    fn built(&self, workload: Workload, environment: Environment) -> Built {
        let inputs = self.place.inputs(workload);
        {
            let mut made = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
            if !made.contains_key(workload.name()) {
                let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
                made.insert(workload.name(), workload.prepare(cache, &inputs)?);
            }
            if let Some(Err(reason)) = made.get(workload.name()) {
                return Ok(Err(reason.clone()));
            }
        }
        self.place.build(workload, environment).map(Ok)
    }
}
