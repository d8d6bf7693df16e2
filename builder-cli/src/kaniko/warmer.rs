//! `warmer`: fetches base images into a directory that `executor --cache-dir` looks into.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use builder_core::cancel::Cancel;
use builder_core::dockerfile;
use builder_core::hint;
use builder_core::http;
use builder_core::oci::Platform;
use builder_core::plan::{self, PlanOptions, StageBase};
use builder_core::registry::{Credentials, Registry};
use builder_core::source::{Sources, Warmed, Warmth};
use builder_core::store::Store;

use super::front::{Front, told};
use super::grammar::Parsed;
use super::log::Logger;
use super::refusal::Refusal;
use super::{complain, flags, registries, settings, values};
use crate::commands;
use crate::request::{self, Ambient};

const ABOUT: &str =
    "warmer fetches base images into a directory, where executor finds them with --cache and --cache-dir.";

/// Runs the program; `tokens` are its arguments.
pub fn run(tokens: &[String], ambient: &Ambient) -> ExitCode {
    let front = Front { about: ABOUT, usage: "warmer", commands: &[], table: flags::warmer() };
    let (logger, work) = match front.read(tokens, |parsed| read(parsed, ambient)) {
        Ok(read) => read,
        Err(ended) => return ended,
    };
    let cancel = Cancel::default();
    if let Err(error) = commands::build::listen_for_signals(&cancel) {
        return complain(&format!("cannot listen for signals: {error}"));
    }
    match warm(&work, &logger, &cancel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            // Where Kaniko says it.
            commands::result(&format!("Failed warming cache: {text}\n"));
            ExitCode::from(1)
        }
    }
}

/// What is to be fetched, and how.
struct Work {
    images: Vec<String>,
    platform: Platform,
    force: bool,
    warmed: Warmed,
    reached: registries::Reached,
}

fn read(parsed: &Parsed, ambient: &Ambient) -> Result<Work, Refusal> {
    let registry_flags = settings::slipway_flags(ambient, None)?.registries;
    let reached = registries::read(parsed, request::registries(&registry_flags, ambient)?, ambient)?;
    let platform = settings::platform(parsed.text(&flags::WARMER_PLATFORM))?.unwrap_or_else(Platform::host);
    let mut images: Vec<String> = parsed.list(&flags::WARMER_IMAGE).to_vec();
    let dockerfile = parsed.text(&flags::WARMER_DOCKERFILE);
    if !dockerfile.is_empty() {
        let text = settings::dockerfile_text(dockerfile, ambient, &reached.pull.client)?;
        images.extend(bases(&text, parsed, &platform)?);
    }
    if images.is_empty() {
        return Err(Refusal::NothingToWarm);
    }
    let mut seen = std::collections::BTreeSet::new();
    images.retain(|image| seen.insert(image.clone()));
    let warmed = Warmed {
        directory: ambient.cwd.join(parsed.text(&flags::WARMER_CACHE_DIR)),
        ttl: values::duration(parsed.text(&flags::WARMER_CACHE_TTL)).unwrap_or_default(),
        now: SystemTime::now(),
    };
    Ok(Work { images, platform, force: parsed.is(&flags::WARMER_FORCE), warmed, reached })
}

/// The images that a Dockerfile's stages begin with, all of them.
fn bases(text: &str, parsed: &Parsed, platform: &Platform) -> Result<Vec<String>, Refusal> {
    let failed = |reason: String| Refusal::value("--dockerfile", parsed.text(&flags::WARMER_DOCKERFILE), reason);
    let dockerfile = dockerfile::parse(text).map_err(|errors| failed(errors.to_string()))?;
    let build_args = parsed.pairs(&flags::WARMER_BUILD_ARG);
    let options = PlanOptions { build_args, platform: Some(platform.clone()), ..PlanOptions::default() };
    let outline = plan::outline(&dockerfile, &options).map_err(|error| failed(hint::chain(&error)))?;
    let images = outline.stages.iter().filter_map(|stage| match &stage.base {
        StageBase::Image(request) => Some(request.name.clone()),
        _ => None,
    });
    Ok(images.collect())
}

fn warm(work: &Work, logger: &Logger, cancel: &Cancel) -> Result<(), String> {
    let directory = &work.warmed.directory;
    let writing =
        |error: std::io::Error| format!("cannot write the cache directory `{}`: {error}", directory.display());
    fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(writing)?;
    // Manifests go through a store; it goes when all is done.
    let scratch = tempfile(directory).map_err(writing)?;
    let store = Store::open(scratch.path()).map_err(|error| hint::chain(&error))?;
    let registries = &work.reached;
    let client = http::Client::new(registries.registry_client.clone());
    let credentials = Credentials::new(registries.pull.credentials.clone());
    let sources = Sources::new(Registry::new(client, credentials, registries.pull.registry.clone()), store);
    let mut failures = Vec::new();
    for image in &work.images {
        logger.info(&format!("Retrieving image manifest {image}"));
        match work.warmed.fetch(&sources, image, &work.platform, work.force, cancel) {
            Ok(Warmth::Was(digest)) => logger.info(&format!("Image already in cache: {image} ({digest})")),
            Ok(Warmth::Fetched(digest)) => logger.info(&format!("Wrote {image} to cache: {digest}")),
            Err(error) => {
                let text = told(&error);
                logger.warn(&format!("Error while trying to warm image: {image}: {text}"));
                failures.push(format!("{image}: {text}"));
            }
        }
        if cancel.is_cancelled() {
            return Err("cancelled".to_owned());
        }
    }
    if failures.len() == work.images.len() { Err(failures.join("; ")) } else { Ok(()) }
}

/// A directory beside the entries, which is removed when it is dropped.
fn tempfile(directory: &Path) -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix(".warming-").tempdir_in(directory)
}
