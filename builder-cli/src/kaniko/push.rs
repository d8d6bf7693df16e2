//! `executor push`: pushes an image that was saved, a tar of `docker save` or an OCI layout.

use std::process::ExitCode;
use std::sync::Arc;

use builder_core::cancel::Cancel;
use builder_core::http;
use builder_core::limits::Limits;
use builder_core::oci::Reference;
use builder_core::output::{Export, Pusher, Saved};
use builder_core::registry::{Credentials, Registry};
use builder_core::store::Store;

use super::executor::check_permission;
use super::files::Files;
use super::front::{Failure, Front, told};
use super::grammar::Parsed;
use super::lines::{Lines, Shown};
use super::log::Logger;
use super::names::{Destination, ReportAs};
use super::refusal::Refusal;
use super::{complain, flags, registries, settings};
use crate::commands;
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
    let front = Front { about: ABOUT, usage: USAGE, commands: &[], table: flags::push() };
    let (logger, work) = match front.read(tokens, |parsed| read(parsed, ambient)) {
        Ok(read) => read,
        Err(ended) => return ended,
    };
    let cancel = Cancel::default();
    if let Err(error) = commands::build::listen_for_signals(&cancel) {
        return complain(&format!("cannot listen for signals: {error}"));
    }
    match push(&work, &logger, ambient, &cancel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.end(),
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
    let saved = Saved::open(&path, &store, &limits, cancel)
        .map_err(|error| Failure::new(format!("error loading image: {}", told(&error))))?;
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
    let lines = Lines::new(Arc::clone(logger), Shown::default());
    let pusher = Pusher::new(&registry, &saved, limits, &lines).with(work.reached.push.options);
    let pushed = pusher.publish(&export, false, cancel);
    pushed.map(drop).map_err(|error| Failure::new(format!("error pushing image: {}", told(&error))))
}
