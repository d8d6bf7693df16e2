//! `slipway inspect`

use std::io::{self, Read};
use std::process::ExitCode;

use builder_core::cancel::Cancel;
use builder_core::hint::{self, Hint as _};
use builder_core::http;
use builder_core::image::{Image, validate};
use builder_core::oci::{Descriptor, Platform};
use builder_core::registry::{Credentials, Registry};
use builder_core::source::{Keep, ResolvedImage, SourceError, Sources};
use builder_core::store::Store;
use serde_json::{Value, json};

use super::result;
use crate::diagnostics;
use crate::exit::Exit;
use crate::flags::InspectFlags;
use crate::request::{self, Ambient, Registries};

/// Shows an image, and checks it if asked to.
pub fn run(flags: &InspectFlags, ambient: &Ambient) -> ExitCode {
    let read = || -> Result<_, request::UsageError> {
        let platforms: Vec<String> = flags.platform.iter().cloned().collect();
        let platform = request::platforms(&platforms)?.into_iter().next().unwrap_or_else(Platform::host);
        Ok((platform, request::registries(&flags.registries, ambient)?, request::state(&flags.state, ambient)?))
    };
    let (platform, registries, state) = match read() {
        Ok(read) => read,
        Err(error) => {
            diagnostics::plain(&hint::chain(&error), error.hint().as_deref());
            return Exit::Usage.into();
        }
    };
    let store = match Store::open(&state.work_dir) {
        Ok(store) => store,
        Err(error) => {
            diagnostics::plain(&hint::chain(&error), error.hint().as_deref());
            return Exit::Disk.into();
        }
    };
    let name = match ambient.cwd.join(&flags.image) {
        path if path.join("oci-layout").is_file() => format!("oci-layout://{}", path.display()),
        _ => flags.image.clone(),
    };
    match inspect(&name, &platform, registries, store, flags.verify) {
        Ok((value, violations)) => {
            result(&format!("{value:#}\n"));
            for violation in &violations {
                diagnostics::plain(violation, None);
            }
            if violations.is_empty() { ExitCode::SUCCESS } else { Exit::Input.into() }
        }
        Err(error) => {
            diagnostics::plain(&hint::chain(&error), error.hint().as_deref());
            Exit::Registry.into()
        }
    }
}

fn inspect(
    name: &str,
    platform: &Platform,
    registries: Registries,
    store: Store,
    verify: bool,
) -> Result<(Value, Vec<String>), SourceError> {
    let client = http::Client::new(registries.client);
    let registry = Registry::new(client, Credentials::new(registries.credentials), registries.registry);
    let sources = Sources::new(registry, store.clone());
    let cancel = Cancel::default();
    let found = sources.resolve(name, platform, &cancel)?;
    let mut violations = Vec::new();
    if verify {
        violations = verified(&sources, &store, &found, &cancel);
    }
    let config: Value = json!(found.config.raw());
    let value = json!({
        "name": found.reference,
        "digest": found.digest,
        "manifestDigest": found.manifest_digest,
        "platform": found.config.platform().to_string(),
        "manifest": found.manifest,
        "config": config,
        "verified": verify && violations.is_empty(),
    });
    Ok((value, violations))
}

/// Every invariant, every blob read.
fn verified(sources: &Sources, store: &Store, found: &ResolvedImage, cancel: &Cancel) -> Vec<String> {
    let media_type = found.manifest.media_type.clone().unwrap_or(builder_core::oci::MediaType::OciManifest);
    // Resolving leaves the manifest's exact bytes in the store.
    let mut manifest = Vec::new();
    let read = store.blob(found.manifest_digest).map_err(io::Error::other);
    if let Err(error) = read.and_then(|mut file| file.read_to_end(&mut manifest)) {
        return vec![hint::chain(&error)];
    }
    let image = match Image::from_bytes(media_type, manifest, found.config_bytes.clone()) {
        Ok(image) => image,
        Err(error) => return vec![hint::chain(&error)],
    };
    let read = |descriptor: &Descriptor| -> io::Result<Box<dyn Read>> {
        let blob = sources.open_blob(found, descriptor, Keep::Nothing, cancel).map_err(io::Error::other)?;
        Ok(blob)
    };
    validate(&image, Some(&read)).iter().map(ToString::to_string).collect()
}
