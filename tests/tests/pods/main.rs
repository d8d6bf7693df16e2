//! slipway as the only file in containers that are confined like pods, and in this machine's other environments.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tests::pods::Pod;

mod escapes;
mod hostile;
mod killed;
mod table;
mod volumes;

/// What every test is.
type Test = fn() -> Result<(), String>;

/// What a test gives: `Err` of the outer result is a reason to skip it.
type Outcome = Result<Result<(), String>, String>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let tests = table::TESTS.iter().chain(hostile::TESTS).chain(volumes::TESTS).chain(escapes::TESTS);
    for (name, test) in tests.chain(killed::TESTS) {
        trials.push(Trial::ignorable_test(*name, move || judge(test)));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn judge(test: &Test) -> Result<Completion, Failed> {
    match outcome(test) {
        Ok(Ok(())) => Ok(Completion::Completed),
        Ok(Err(failure)) => Err(failure.into()),
        Err(reason) => Ok(Completion::ignored_with(format!("skipped: {reason}"))),
    }
}

fn outcome(test: &Test) -> Outcome {
    Pod::possible()?;
    Ok(test())
}

/// A directory for a container.
fn volume() -> Result<tempfile::TempDir, String> {
    tempfile::Builder::new().prefix("slipway-volume-").tempdir_in("/var/tmp").map_err(|error| error.to_string())
}
