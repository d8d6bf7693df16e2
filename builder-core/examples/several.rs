//! Builds several contexts at once in one process, over one work directory; the first failure ends the others.
//!
//! ```text
//! cargo run -p builder-core --example several -- WORK_DIR CONTEXT=IMAGE.tar…
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

use std::process::ExitCode;
use std::sync::Arc;

use builder_core::cancel::Cancel;
use builder_core::event::{Event, Observer};
use builder_core::exec::{self, BuildRequest, ErrorClass};
use builder_core::hint;
use builder_core::output::{Destination, Exporter, Target};
use builder_core::sandbox;

/// Says whose line it is.
struct Named(String);

impl Observer for Named {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::StepStarted { title, .. } => eprintln!("{}: {title}", self.0),
            Event::Output { line, .. } => eprintln!("{}:   {}", self.0, String::from_utf8_lossy(line)),
            Event::StepCancelled { .. } => eprintln!("{}: cancelled", self.0),
            _ => {}
        }
    }
}

fn main() -> ExitCode {
    // While the process has one thread, once for all builds.
    let environment = match sandbox::enter() {
        Ok(environment) => environment,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut arguments = std::env::args().skip(1);
    let work_dir = arguments.next();
    let pairs: Option<Vec<(String, String)>> =
        arguments.map(|text| text.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned()))).collect();
    let (Some(work_dir), Some(pairs)) = (work_dir, pairs) else {
        eprintln!("usage: several WORK_DIR CONTEXT=IMAGE.tar…");
        return ExitCode::FAILURE;
    };
    // One for all: whoever fails ends the rest, whatever they are doing.
    let cancel = Cancel::default();
    let build = |context: &str, archive: &str| {
        let mut request = BuildRequest::new(context, &work_dir, environment.clone());
        request.outputs.push(Target::new(Exporter::OciArchive(Destination::File(archive.into()))));
        let built = exec::build(&request, Arc::new(Named(context.to_owned())), &cancel);
        built.inspect_err(|_| cancel.cancel())
    };
    let ended: Vec<_> = std::thread::scope(|scope| {
        let builds: Vec<_> = pairs.iter().map(|(context, archive)| scope.spawn(|| build(context, archive))).collect();
        builds.into_iter().map(|build| build.join().expect("no build panics")).collect()
    });
    let mut code = ExitCode::SUCCESS;
    for ((context, _), ended) in pairs.iter().zip(ended) {
        match ended {
            Ok(result) => println!("{context}: {}", result.root.digest),
            Err(error) => {
                code = ExitCode::FAILURE;
                if error.class() != ErrorClass::Cancelled {
                    eprintln!("{context}: {}", hint::chain(&error));
                }
            }
        }
    }
    code
}
