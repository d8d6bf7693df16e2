//! Runs real commands in a busybox tree, in every environment that can be had on this machine.
//!
//! Entering a user namespace needs a process with one thread, which a test runner is not. So this program is two: without
//! arguments of its own it is the runner, which starts itself once per environment (as another user, with fewer
//! capabilities, …) with `--inside`; that copy enters, performs every case and prints one line for each.

#![allow(clippy::print_stdout, reason = "the copy reports to the runner through its standard output")]

mod cases;
mod environments;
mod inside;
mod killed;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use environments::{ENVIRONMENTS, Environment};

/// First argument of the copy.
const INSIDE: &str = "--inside";

/// First argument of a copy that is going to be killed.
const VICTIM: &str = "--victim";

/// The copy's answers, by case; or why it could not be started.
type Answers = Result<BTreeMap<String, Answer>, String>;

/// How one case ended.
#[derive(Debug, Clone)]
enum Answer {
    Passed,
    Skipped(String),
    Failed(String),
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(INSIDE) => {
            let name = arguments.next().expect("the name of an environment follows");
            return inside::main(&name, &arguments.collect::<Vec<_>>());
        }
        Some(VICTIM) => return killed::victim(&arguments.collect::<Vec<_>>()),
        _ => {}
    }
    let mut trials = killed::trials();
    for environment in ENVIRONMENTS {
        let answers = Arc::new(OnceLock::new());
        for case in cases::wanted() {
            let answers = Arc::clone(&answers);
            let name = format!("{}::{}", environment.name, case.name);
            trials.push(Trial::ignorable_test(name, move || judge(environment, &answers, case.name)));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn judge(environment: &Environment, answers: &OnceLock<Answers>, case: &str) -> Result<Completion, Failed> {
    let answers = match answers.get_or_init(|| environment.answers()) {
        Ok(answers) => answers,
        Err(reason) => return Ok(skipped(reason)),
    };
    match answers.get(case) {
        Some(Answer::Passed) => Ok(Completion::Completed),
        Some(Answer::Skipped(reason)) => Ok(skipped(reason)),
        Some(Answer::Failed(message)) => Err(message.into()),
        None => Err(format!("the copy ended before it: {answers:?}").into()),
    }
}

fn skipped(reason: &str) -> Completion {
    Completion::ignored_with(format!("skipped: {reason}"))
}
