//! `executor`: builds and pushes.

use std::process::ExitCode;
use std::sync::Arc;

use builder_core::cancel::Cancel;
use builder_core::event::Observer;
use builder_core::exec::{self, BeforeOutputs, BuildError, DockerfileSource, ErrorClass, NoCache};
use builder_core::http;
use builder_core::oci::{Descriptor, Reference};
use builder_core::output::{Exporter, Target};
use builder_core::registry::{Credentials, Registry, RegistryError};
use builder_core::sandbox;

use super::front::{Failure, Front, told};
use super::grammar;
use super::lines::{Lines, Shown};
use super::log::Logger;
use super::refusal::Refusal;
use super::settings::{self, Task};
use super::{complain, completion, feature, flags, say, variables};
use crate::commands;
use crate::request::{self, Ambient};

const ABOUT: &str = "executor builds an image from a Dockerfile and pushes it, as Kaniko's executor does.";

/// What `executor` has besides building.
const COMMANDS: [(&str, &str); 4] = [
    ("completion", "Print a script that completes this command line in a shell"),
    ("login", "Keep user and password of a registry"),
    ("push", "Push an image that was saved"),
    ("version", "Print the version"),
];

/// Runs the program; `tokens` are its arguments.
pub fn run(tokens: &[String], ambient: &Ambient) -> ExitCode {
    let table = flags::executor();
    if let Some((command, rest)) = grammar::subcommand(&table, tokens) {
        match command {
            "push" => return super::push::run(&rest, ambient),
            "login" => return super::login::run(&rest, ambient),
            _ => {}
        }
    }
    let front = Front { about: ABOUT, usage: "executor", commands: &COMMANDS, table };
    let parsed = match front.parse(tokens) {
        Ok(parsed) => parsed,
        Err(ended) => return ended,
    };
    match parsed.positionals.first().map(String::as_str) {
        None => {}
        Some("version") => {
            // As Kaniko words it, blanks included.
            commands::result(&format!("Kaniko version :  {}\n", version()));
            return ExitCode::SUCCESS;
        }
        Some("completion") => {
            let shell = parsed.positionals.get(1).map(String::as_str).unwrap_or_default();
            return match completion::script(shell, &front.table, &COMMANDS) {
                Some(script) => {
                    commands::result(&script);
                    ExitCode::SUCCESS
                }
                None => complain(&format!("Error: `executor completion` takes one of {}", completion::shells())),
            };
        }
        Some("help") => {
            return match parsed.positionals.get(1).map(String::as_str) {
                Some("push") => super::push::run(&["--help".to_owned()], ambient),
                Some("login") => super::login::run(&["--help".to_owned()], ambient),
                _ => front.help(),
            };
        }
        Some(word) => {
            let refusal = Refusal::UnknownCommand { word: word.to_owned(), program: "executor" };
            say(&format!("Error: {refusal}\nRun 'executor --help' for usage.\n"));
            return ExitCode::from(1);
        }
    }
    let logger = match front.logger(&parsed) {
        Ok(logger) => logger,
        Err(ended) => return ended,
    };
    feature::banner(&ambient.environment, &logger);
    variables::tell(ambient, &logger);
    for (old, new) in &parsed.deprecated {
        logger.warn(&format!("Flag --{old} is deprecated. Use: --{new}"));
    }
    for definition in &front.table {
        if let grammar::Effect::Meaningless(why) = definition.effect
            && parsed.given(definition.name)
        {
            logger.debug(&format!("--{} has no effect: {why}", definition.name));
        }
    }
    for name in super::registries::unknown_helpers(&parsed) {
        logger.warn(&format!("unknown credential helper {name} is skipped"));
    }
    // Namespaces can be entered by a process with one thread only.
    let environment = match sandbox::enter() {
        Ok(environment) => environment,
        Err(error) => return complain(&format!("error building image: cannot set up namespaces: {error}")),
    };
    let task = match settings::read(&parsed, ambient, environment) {
        Ok(task) => task,
        Err(refusal) => return front.refuse(&refusal),
    };
    let cancel = Cancel::default();
    if let Err(error) = commands::build::listen_for_signals(&cancel) {
        return complain(&format!("error building image: cannot listen for signals: {error}"));
    }
    request::size_process(&task.request.limits);
    match build(task, &logger, &cancel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.end(),
    }
}

/// The version of this program, which is not Kaniko's.
fn version() -> &'static str {
    concat!("slipway-", env!("CARGO_PKG_VERSION"))
}

fn build(mut task: Task, logger: &Arc<Logger>, cancel: &Cancel) -> Result<(), Failure> {
    let shown =
        Shown { misses: !task.request.cache.from.is_empty(), no_lookups: task.request.no_cache == NoCache::All };
    let lines = Arc::new(Lines::new(Arc::clone(logger), shown));
    let observer: Arc<dyn Observer> = lines.clone();
    let failed = |error: &BuildError, dockerfile: &DockerfileSource| Failure {
        text: described(error, dockerfile),
        code: exit_code(error),
    };
    if task.plan {
        let prepared = exec::prepare(&task.request, &*observer, cancel)
            .map_err(|error| failed(&error, &task.request.dockerfile))?;
        for planned in &prepared.plans {
            commands::result(&planned.plan.render());
        }
    }
    if task.dry_run {
        return Ok(());
    }
    if !task.permissions.is_empty() {
        let request = &task.request;
        let client = request.push.client.clone().unwrap_or_else(|| request.client.clone());
        let options = request.push.registry.clone().unwrap_or_else(|| request.registry.clone());
        let credentials = Credentials::new(request.credentials.clone());
        let registry = Registry::new(http::Client::new(client), credentials, options);
        check_permission(&registry, &task.permissions, cancel)?;
    }
    for target in &task.other_targets {
        let mut request = task.request.clone();
        request.plan.target = Some(target.clone());
        request.outputs = vec![Target::new(Exporter::CacheOnly)];
        exec::build(&request, Arc::clone(&observer), cancel).map_err(|error| failed(&error, &request.dockerfile))?;
    }
    task.request.before_outputs = Some(before_outputs(&task, logger, &lines, cancel));
    let made =
        exec::build(&task.request, observer, cancel).map_err(|error| failed(&error, &task.request.dockerfile))?;
    if task.push {
        if let Some(directory) = &task.builder_output {
            let digest = made.root.digest.to_string();
            super::files::builder_output(directory, &digest, &task.destinations)
                .map_err(|error| Failure::new(format!("error pushing image: {error}")))?;
        }
    } else {
        logger.info("Skipping push to container registry due to --no-push flag");
    }
    Ok(())
}

/// Writes the files that wrappers read when the digest is known and nothing is pushed yet.
fn before_outputs(task: &Task, logger: &Arc<Logger>, lines: &Arc<Lines>, cancel: &Cancel) -> BeforeOutputs {
    let lines = Arc::clone(lines);
    let (files, destinations, report_as) = (task.files.clone(), task.destinations.clone(), task.report_as.clone());
    let (client, logger, cancel, push) =
        (http::Client::new(task.request.client.clone()), Arc::clone(logger), cancel.clone(), task.push);
    BeforeOutputs(Arc::new(move |root: &Descriptor| {
        lines.steps_are_done();
        files.write(&root.digest.to_string(), &destinations, &report_as, &client, &cancel)?;
        if push {
            for destination in &destinations {
                logger.info(&format!("Pushing image to {}", destination.typed));
            }
        }
        Ok(())
    }))
}

/// Finds out whether pushing is allowed before anything is built.
///
/// # Errors
/// In Kaniko's words, with what the registry says.
pub fn check_permission(registry: &Registry, names: &[(String, Reference)], cancel: &Cancel) -> Result<(), Failure> {
    let mut checked: Vec<(&str, &str)> = Vec::new();
    for (typed, reference) in names {
        let place = (reference.registry(), reference.repository());
        if checked.contains(&place) {
            continue;
        }
        checked.push(place);
        registry.check_push(reference, cancel).map_err(|error| match error {
            RegistryError::Cancelled => cancelled(),
            error => Failure::new(format!(
                "error checking push permissions: make sure you entered the correct tag name, and that you are \
                 authenticated correctly, and try again: checking push permission for \"{}\": {}",
                typed,
                told(&error)
            )),
        })?;
    }
    Ok(())
}

fn cancelled() -> Failure {
    Failure {
        text: "error building image: cancelled".to_owned(),
        code: commands::build::exit_for(&BuildError::Cancelled).code(),
    }
}

/// A failed build in one line.
fn described(error: &BuildError, dockerfile: &DockerfileSource) -> String {
    let start = match error {
        BuildError::Output(_) | BuildError::BeforeOutputs { .. } => "error pushing image: ",
        _ => "error building image: ",
    };
    let place = match (error.lines(), dockerfile) {
        (Some(lines), DockerfileSource::File(path) | DockerfileSource::InContext(path)) => {
            format!("{}:{}: ", path.display(), lines.first)
        }
        (Some(lines), DockerfileSource::Text(_)) => format!("Dockerfile:{}: ", lines.first),
        (None, _) => String::new(),
    };
    format!("{start}{place}{}", told(error))
}

/// A RUN's own code, 255 if a signal ended it, 1 for everything else; a signal to us is passed on as shells do.
fn exit_code(error: &BuildError) -> u8 {
    match error {
        BuildError::Step { source, .. } => exit_code(source),
        BuildError::Exit { signal: Some(_), .. } => u8::MAX,
        BuildError::Exit { code, .. } => u8::try_from(*code).ok().filter(|code| *code != 0).unwrap_or(1),
        error if error.class() == ErrorClass::Cancelled => commands::build::exit_for(error).code(),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_kaniko() {
        let ended = |code, signal| BuildError::Exit { argv: Vec::new(), code, signal };
        for (error, code) in [
            (ended(42, None), 42),
            (ended(137, None), 137),
            (ended(137, Some(9)), 255),
            (ended(256, None), 1),
            (BuildError::NoIndex, 1),
            (BuildError::Cancelled, 130),
        ] {
            assert_eq!(exit_code(&error), code, "{error}");
        }
    }
}
