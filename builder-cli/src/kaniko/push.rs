//! `executor push`: pushes an image that was saved, a tar of `docker save` or an OCI layout.

use std::process::ExitCode;
use std::sync::Arc;

use builder_core::cancel::Cancel;
use builder_core::hint::Hint as _;
use builder_core::http;
use builder_core::limits::Limits;
use builder_core::oci::Reference;
use builder_core::output::{Export, Pusher, Saved};
use builder_core::registry::{Credentials, Registry};
use builder_core::store::Store;

use super::executor::{Failure, check_permission, logger, usage_error};
use super::files::Files;
use super::grammar::{self, Parsed};
use super::lines::Lines;
use super::log::Logger;
use super::names::{Destination, ReportAs};
use super::refusal::Refusal;
use super::{complain, flags, registries, say, settings, usage};
use crate::commands;
use crate::diagnostics;
use crate::request::{self, Ambient};

const ABOUT: &str = "push pushes an image that was saved: a tar of `docker save`, or an OCI layout.";
const USAGE: &str = "executor push PATH";

/// What is pushed where.
struct Work {
    path: String,
    destinations: Vec<Destination>,
    report_as: ReportAs,
    files: Files,
    check: bool,
    reached: registries::Reached,
}

/// Runs it; `tokens` are the arguments but the word `push`.
pub fn run(tokens: &[String], ambient: &Ambient) -> ExitCode {
    let table = flags::push();
    let refuse = |refusal: &Refusal| usage_error(refusal, USAGE, &[], &table);
    let parsed = match grammar::parse(&table, tokens) {
        Ok(parsed) => parsed,
        Err(error) => return refuse(&error.into()),
    };
    if parsed.help {
        commands::result(&usage::help(ABOUT, USAGE, &[], &table));
        return ExitCode::SUCCESS;
    }
    let (logger, work) = match logger(&parsed).and_then(|logger| Ok((Arc::new(logger), read(&parsed, ambient)?))) {
        Ok(read) => read,
        Err(refusal) => return refuse(&refusal),
    };
    let cancel = Cancel::default();
    if let Err(error) = commands::build::listen_for_signals(&cancel) {
        return complain(&format!("cannot listen for signals: {error}"));
    }
    match push(&work, &logger, ambient, &cancel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&format!("{}\n", failure.text));
            ExitCode::from(failure.code)
        }
    }
}

fn read(parsed: &Parsed, ambient: &Ambient) -> Result<Work, Refusal> {
    let [path] = &parsed.positionals[..] else {
        return Err(Refusal::Words { program: USAGE, wanted: 1, given: parsed.positionals.len() });
    };
    let report_as = settings::report_as(parsed, ambient)?;
    let texts = parsed.list(&flags::DESTINATION).iter();
    let destinations = texts.map(|text| Destination::parse(text, &report_as)).collect::<Result<Vec<_>, _>>()?;
    if destinations.is_empty() {
        return Err(Refusal::NothingToPushTo);
    }
    let registry_flags = settings::slipway_flags(ambient, None)?.registries;
    Ok(Work {
        path: path.clone(),
        destinations,
        report_as,
        files: settings::files(parsed, ambient)?,
        check: !parsed.is(&flags::SKIP_PUSH_PERMISSION_CHECK),
        reached: registries::read(parsed, request::registries(&registry_flags, ambient)?, ambient)?,
    })
}

fn push(work: &Work, logger: &Arc<Logger>, ambient: &Ambient, cancel: &Cancel) -> Result<(), Failure> {
    let path = ambient.cwd.join(&work.path);
    let limits = Limits::default();
    let store = || Store::open(std::path::Path::new(&settings::work_dir("", ambient)));
    let saved = Saved::open(&path, &store, &limits, cancel).map_err(|error| {
        let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
        Failure::new(format!("error loading image: {}{hint}", diagnostics::chain(&error)))
    })?;
    let client = work.reached.push.client.clone().unwrap_or_else(|| work.reached.registry_client.clone());
    let options = work.reached.push.registry.clone().unwrap_or_else(|| work.reached.pull.registry.clone());
    let credentials = Credentials::new(work.reached.pull.credentials.clone());
    let registry = Registry::new(http::Client::new(client), credentials, options);
    if work.check {
        let names: Vec<(String, Reference)> =
            work.destinations.iter().map(|known| (known.typed.clone(), known.reference.clone())).collect();
        check_permission(&registry, &names, cancel)?;
    }
    let names: Vec<Reference> = work.destinations.iter().map(|destination| destination.reference.clone()).collect();
    let images = [saved.image.clone()];
    let export = Export { images: &images, index: None, names: &names, created: None, annotations: &[] };
    let plain = http::Client::new(work.reached.pull.client.clone());
    work.files
        .write(&saved.image.digest.to_string(), &work.destinations, &work.report_as, &plain, cancel)
        .map_err(|error| Failure::new(format!("error pushing image: {error}")))?;
    for destination in &work.destinations {
        logger.info(&format!("Pushing image to {}", destination.typed));
    }
    let lines = Lines::new(Arc::clone(logger), None);
    let pusher = Pusher::new(&registry, &saved, limits, &lines).with(work.reached.push.options);
    pusher.publish(&export, false, cancel).map_err(|error| {
        let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
        Failure::new(format!("error pushing image: {}{hint}", diagnostics::chain(&error)))
    })?;
    Ok(())
}
