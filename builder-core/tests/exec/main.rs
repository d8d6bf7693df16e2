//! Whole builds through [`builder_core::exec`], for what the recorded answers of BuildKit in `fixtures/conformance` do not
//! cover: platforms, outputs, reproducibility, the step cache, secrets, cache mounts under concurrency, ssh agents, checks.
//! Each case names the items of the conformance checklist that it proves.
//!
//! The process enters its namespaces before it has a second thread, which the usual test runner does not allow.

mod bench;
mod cache;
mod checks;
mod clouds;
mod given;
mod known;
mod mounts;
mod outputs;
mod panics;
mod platforms;
mod reproducible;
mod secrets;
mod single;
mod ssh;
mod trees;
mod uploads;

use bench::Bench;
use builder_core::sandbox::{self, Environment, IdMapping};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// One build, or a few that belong together.
struct Case {
    /// What it shows.
    name: &'static str,
    /// Items of the checklist.
    items: &'static str,
    run: fn(&Bench) -> Outcome,
}

/// How a case ended, if it did not panic.
enum Outcome {
    Passed,
    /// It cannot run here.
    Skipped(String),
}

fn main() {
    let arguments = Arguments::from_args();
    let environment = sandbox::enter().expect("namespaces can be entered");
    let groups: [(&str, &[Case]); 15] = [
        ("cache", cache::CASES),
        ("checks", checks::CASES),
        ("clouds", clouds::CASES),
        ("given", given::CASES),
        ("known", known::CASES),
        ("mounts", mounts::CASES),
        ("outputs", outputs::CASES),
        ("panics", panics::CASES),
        ("platforms", platforms::CASES),
        ("reproducible", reproducible::CASES),
        ("secrets", secrets::CASES),
        ("single", single::CASES),
        ("ssh", ssh::CASES),
        ("trees", trees::CASES),
        ("uploads", uploads::CASES),
    ];
    let mut trials = Vec::new();
    for (group, cases) in groups {
        for case in cases {
            let environment = environment.clone();
            let name = format!("{group}::{} [{}]", case.name, case.items);
            trials.push(Trial::ignorable_test(name, move || judge(case, &environment)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn judge(case: &Case, environment: &Environment) -> Result<Completion, Failed> {
    if environment.ids == IdMapping::None {
        return Ok(Completion::ignored_with(format!("skipped: no RUN here: {:?}", environment.refused)));
    }
    let bench = match Bench::new(environment) {
        Ok(bench) => bench,
        Err(reason) => return Ok(Completion::ignored_with(format!("skipped: {reason}"))),
    };
    match (case.run)(&bench) {
        Outcome::Passed => Ok(Completion::Completed),
        Outcome::Skipped(reason) => Ok(Completion::ignored_with(format!("skipped: {reason}"))),
    }
}
