//! Pushes a directory as an image of one layer, without a Dockerfile: the parts of the library that write layers, configs and manifests,
//! called one by one. Files belong to root; their modes and times are kept.
//!
//! ```text
//! cargo run -p builder-core --example layer -- DIRECTORY WORK_DIR REGISTRY/NAME:TAG
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use builder_core::cancel::Cancel;
use builder_core::event::{Event, Observer};
use builder_core::hint;
use builder_core::http::{Client, ClientOptions};
use builder_core::image::{self, Assembly, MediaTypes, NewLayer};
use builder_core::layer::{self, Compression, LayerInput, LayerOptions};
use builder_core::limits::Limits;
use builder_core::oci::{ImageConfig, Platform};
use builder_core::output::{Export, Pusher};
use builder_core::plan::{PlannedHistory, StageId};
use builder_core::registry::{CredentialOptions, Credentials, Registry, RegistryOptions};
use builder_core::rootfs::Rootfs;
use builder_core::snapshot::{self, Change, Changes};
use builder_core::store::Store;

/// Draws its own progress.
struct Bars;

impl Observer for Bars {
    fn event(&self, event: Event<'_>) {
        if let Event::Progress { id, done, total: Some(total), .. } = event {
            let filled = usize::try_from(done * 20 / total.max(1)).unwrap_or_default();
            eprintln!("[{:20}] {id}", "#".repeat(filled));
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, work_dir, name] = &arguments[..] else {
        eprintln!("usage: layer DIRECTORY WORK_DIR REGISTRY/NAME:TAG");
        return ExitCode::FAILURE;
    };
    match push(Path::new(directory), Path::new(work_dir), name) {
        Ok(digest) => {
            println!("{digest}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", hint::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn push(directory: &Path, work_dir: &Path, name: &str) -> Result<String, Box<dyn Error>> {
    let (cancel, limits) = (Cancel::default(), Limits::default());
    let store = Store::open(work_dir)?;

    // Every file of the tree is new to an image that has no other layer.
    let tree = Rootfs::open(directory)?;
    let listing = tree.list()?;
    let mut changes = Changes::new(tree.lists_in());
    for change in snapshot::everything(&listing, tree.lists_in())?.iter() {
        let mut change = change?;
        if let Change::Entry { metadata, .. } = &mut change {
            (metadata.uid, metadata.gid) = (0, 0);
        }
        changes.push(&change)?;
    }
    let options = LayerOptions { compression: Compression::default(), docker_media_types: false, clamp_mtime: None };
    let layer = layer::write(LayerInput::new(&changes, &tree), &store, &options, &limits, &cancel, &|_| {})?;

    // One step of one stage made it.
    let made = (StageId(0), 0);
    let description = format!("files of {}", directory.display());
    let history = [PlannedHistory::New { created_by: description.clone(), step: Some(made) }];
    let image = image::assemble(&Assembly {
        config: &ImageConfig::scratch(&Platform::host()),
        history: &history,
        base_layers: &[],
        new_layers: &BTreeMap::from([(made, NewLayer { layer, created: SystemTime::now(), description })]),
        source_date_epoch: None,
        media_types: MediaTypes::Oci,
        annotations: &BTreeMap::new(),
    })?;

    let credentials = Credentials::new(CredentialOptions::default());
    let registry = Registry::new(Client::new(ClientOptions::default()), credentials, RegistryOptions::default());
    let names = [name.parse()?];
    let export = Export { images: &[image], index: None, names: &names, created: None, annotations: &[] };
    let pushed = Pusher::new(&registry, &store, limits, &Bars).publish(&export, false, &cancel)?;
    Ok(pushed.iter().map(|(name, digest)| format!("{name}@{digest}")).collect())
}
