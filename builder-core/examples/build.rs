//! Builds a directory into an OCI archive: the smallest program that links the library.
//!
//! ```text
//! cargo run -p builder-core --example build -- CONTEXT WORK_DIR IMAGE.tar
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use builder_core::cancel::Cancel;
use builder_core::event::{Event, Observer};
use builder_core::exec::{self, BuildRequest};
use builder_core::hint::Hint as _;
use builder_core::output::{Destination, Exporter, Target};
use builder_core::sandbox::{self, Environment};

/// Prints what begins and what commands print.
struct Terminal;

impl Observer for Terminal {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::StepStarted { title, .. } => eprintln!("{title}"),
            Event::Output { line, .. } => eprintln!("  {}", String::from_utf8_lossy(line)),
            _ => {}
        }
    }
}

fn main() -> ExitCode {
    // While the process has one thread: a command's namespaces can only be entered then.
    let environment = match sandbox::enter() {
        Ok(environment) => environment,
        Err(error) => return fail(&error, None),
    };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [context, work_dir, archive] = &arguments[..] else {
        eprintln!("usage: build CONTEXT WORK_DIR IMAGE.tar");
        return ExitCode::FAILURE;
    };
    build(context, work_dir, archive, environment)
}

fn build(context: &str, work_dir: &str, archive: &str, environment: Environment) -> ExitCode {
    let mut request = BuildRequest::new(context, work_dir, environment);
    request.outputs.push(Target::new(Exporter::OciArchive(Destination::File(archive.into()))));
    match exec::build(&request, Arc::new(Terminal), &Cancel::default()) {
        Ok(result) => {
            println!("{}", result.root.digest);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let hint = error.hint();
            fail(&error, hint)
        }
    }
}

fn fail(error: &dyn Error, hint: Option<String>) -> ExitCode {
    let mut cause = Some(error);
    while let Some(error) = cause {
        eprintln!("{error}");
        cause = error.source();
    }
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}
