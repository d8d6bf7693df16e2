//! Images and files written in every form, and read by others.

mod common;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use builder_core::cancel::Cancel;
use builder_core::event::Silent;
use builder_core::image::{Image, ImageLayer};
use builder_core::layer::{self, Compression, LayerInput, LayerOptions};
use builder_core::limits::Limits;
use builder_core::oci::{
    BlobDigest, Descriptor, ImageIndex, ImageManifest, MediaType, Platform, Reference, Sha256, canonical_json,
};
use builder_core::output::{self, Blobs, Destination, Export, FilesOptions, Index, OutputError, PlatformFiles, Pusher};
use builder_core::rootfs::Rootfs;
use builder_core::snapshot;
use builder_core::store::Store;
use common::{Bench, causes};
use fixtures::registry::{Effect, FakeRegistry, Fault};
use serde_json::json;
use tempfile::TempDir;

/// A tree and an image of it.
struct Fixture {
    dir: TempDir,
    store: Store,
    image: Image,
}

const SCRIPT: &str = "mkdir -p bin etc/empty; echo hello > etc/motd; ln etc/motd etc/second; ln -s motd etc/link; \
    printf '#!/bin/sh\\n' > bin/run; chmod 755 bin/run; mkdir -m 1777 tmp; mkfifo -m 600 pipe; \
    touch -d '2020-01-02 03:04:05' etc/motd bin/run; touch -d '2021-01-01 00:00:00' etc tmp";

fn shell(directory: &Path, script: &str) {
    let status = Command::new("sh").args(["-euc", script]).current_dir(directory).status().expect("sh can be run");
    assert!(status.success(), "{script}");
}

fn descriptor(media_type: MediaType, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, BlobDigest(Sha256::of(bytes)), bytes.len() as u64)
}

fn platform(text: &str) -> Platform {
    text.parse().expect("a platform")
}

fn image_of(layers: Vec<ImageLayer>, text: &str) -> Image {
    let platform = platform(text);
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let config = canonical_json(&json!({
        "architecture": platform.architecture, "os": platform.os, "config": {"Cmd": ["/bin/run"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": [{"created_by": text}],
    }))
    .expect("plain JSON");
    let config_descriptor = descriptor(MediaType::OciConfig, &config);
    let manifest = canonical_json(&ImageManifest {
        schema_version: 2,
        media_type: Some(MediaType::OciManifest),
        artifact_type: None,
        config: config_descriptor.clone(),
        layers: layers.iter().map(|layer| layer.blob.clone()).collect(),
        annotations: Default::default(),
    })
    .expect("plain JSON");
    let digest = BlobDigest(Sha256::of(&manifest));
    Image { config, config_descriptor, manifest, manifest_type: MediaType::OciManifest, digest, layers, platform }
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).expect("a directory");
        shell(&tree, SCRIPT);
        let store = Store::open(&dir.path().join("work")).expect("a store");
        let image = image_of(vec![write_layer(&tree, &store, Compression::DEFAULT)], "linux/amd64");
        Self { dir, store, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tree(&self) -> Rootfs {
        Rootfs::open(&self.path("tree")).expect("a directory")
    }

    fn export<'a>(&'a self, names: &'a [Reference]) -> Export<'a> {
        Export {
            images: std::slice::from_ref(&self.image),
            index: None,
            names,
            created: Some("2020-01-01T00:00:00Z"),
            annotations: &[],
        }
    }
}

fn write_layer(tree: &Path, store: &Store, compression: Compression) -> ImageLayer {
    let rootfs = Rootfs::open(tree).expect("a directory");
    let changes = snapshot::everything(&rootfs.list().expect("readable"), None).expect("listed");
    let options = LayerOptions { compression, docker_media_types: false, clamp_mtime: None };
    let (limits, cancel) = (Limits::default(), Cancel::default());
    let sealed =
        layer::write(LayerInput::new(&changes, &rootfs), store, &options, &limits, &cancel, &|_| ()).expect("written");
    ImageLayer { diff_id: sealed.diff_id, blob: sealed.blob }
}

fn names(names: &[&str]) -> Vec<Reference> {
    names.iter().map(|name| name.parse().expect("a reference")).collect()
}

/// Runs a command; `None` if it is not installed.
#[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
fn run(command: &str, args: &[&str]) -> Option<String> {
    match Command::new(command).args(args).output() {
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command} {args:?}: {error}");
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Err(error) => {
            eprintln!("skipped: {command} cannot be run: {error}");
            None
        }
    }
}

/// `skopeo inspect` must see our layer.
#[track_caller]
fn inspect(image: &str, expected: &Image) {
    inspect_layers(image, expected.layers.iter().map(|layer| layer.blob.digest.to_string()).collect());
}

#[track_caller]
fn inspect_layers(image: &str, layers: Vec<String>) {
    if let Some(out) = run("skopeo", &["inspect", "--tls-verify=false", image]) {
        let seen: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(seen["Layers"], json!(layers), "{image}");
    }
}

fn layout_index(dest: &Path) -> ImageIndex {
    serde_json::from_slice(&fs::read(dest.join("index.json")).expect("an index")).expect("an index")
}

/// Blobs of which one is not what its digest says.
struct Damaged<'a>(&'a Store);

impl Blobs for Damaged<'_> {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        let mut bytes = Vec::new();
        Blobs::open(self.0, descriptor)?.read_to_end(&mut bytes)?;
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        Ok(Box::new(io::Cursor::new(bytes)))
    }
}

#[test]
fn a_layout_directory_is_read_by_others_and_keeps_other_names() {
    let f = Fixture::new();
    let dest = f.path("layout");
    let write = |names: &[Reference], blobs: &dyn Blobs| {
        output::oci_directory(&f.export(names), blobs, &dest, &Cancel::default(), &Silent)
    };
    let two = names(&["h:5000/a/b:1", "c:2"]);
    write(&two, &f.store).expect("written");
    assert_eq!(fs::read(dest.join("oci-layout")).expect("a file"), br#"{"imageLayoutVersion":"1.0.0"}"#);
    let entries = layout_index(&dest).manifests;
    let annotations: Vec<Vec<(&str, &str)>> =
        entries.iter().map(|e| e.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()).collect();
    let expected = |name, tag| {
        vec![
            ("io.containerd.image.name", name),
            ("org.opencontainers.image.created", "2020-01-01T00:00:00Z"),
            ("org.opencontainers.image.ref.name", tag),
        ]
    };
    assert_eq!(annotations, [expected("h:5000/a/b:1", "1"), expected("docker.io/library/c:2", "2")]);
    assert!(entries.iter().all(|entry| entry.digest == f.image.digest));
    inspect(&format!("oci:{}:1", dest.display()), &f.image);

    write(&names(&["c:2", "d:3"]), &f.store).expect("written again");
    assert_eq!(layout_index(&dest).manifests.len(), 3);
    write(&[], &f.store).expect("written without a name");
    write(&[], &f.store).expect("written without a name again");
    assert_eq!(layout_index(&dest).manifests.len(), 4);

    let unpacked = f.path("unpacked");
    let image = format!("{}:2", dest.display());
    if run("umoci", &["unpack", "--rootless", "--image", &image, &unpacked.display().to_string()]).is_some() {
        let tree = unpacked.join("rootfs");
        assert_eq!(fs::read_to_string(tree.join("etc/second")).expect("a file"), "hello\n");
        assert_eq!(fs::read_link(tree.join("etc/link")).expect("a link"), Path::new("motd"));
    }
    let left: Vec<_> = fs::read_dir(dest.join("blobs/sha256")).expect("there").collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_failed_layout_shows_nothing_new() {
    let f = Fixture::new();
    let dest = f.path("layout");
    let write =
        |blobs: &dyn Blobs, cancel: &Cancel| output::oci_directory(&f.export(&[]), blobs, &dest, cancel, &Silent);
    let error = write(&Damaged(&f.store), &Cancel::default()).expect_err("the blob is damaged");
    assert!(matches!(error, OutputError::WrongDigest { .. }), "{}", causes(&error));
    assert!(!dest.join("index.json").exists());
    let cancelled = Cancel::default();
    cancelled.cancel();
    assert!(matches!(write(&f.store, &cancelled), Err(OutputError::Cancelled)));
    assert_eq!(fs::read_dir(dest.join("blobs/sha256")).expect("there").count(), 0);
    write(&f.store, &Cancel::default()).expect("the directory is usable");

    let other = f.path("other");
    fs::create_dir(&other).expect("a directory");
    fs::write(other.join("mine"), "x").expect("a file");
    let error = output::oci_directory(&f.export(&[]), &f.store, &other, &Cancel::default(), &Silent);
    assert!(matches!(error, Err(OutputError::NotALayout { .. })));
    let nothing = Export { images: &[], ..f.export(&[]) };
    let error = output::oci_directory(&nothing, &f.store, &dest, &Cancel::default(), &Silent);
    assert!(matches!(error, Err(OutputError::NoImage)));
}

#[test]
fn archives_are_read_by_others() {
    let f = Fixture::new();
    let names = names(&["h:5000/a/b:1", "c:2"]);
    let export = f.export(&names);
    let cancel = Cancel::default();
    for docker in [false, true] {
        let write = |blobs: &dyn Blobs, dest: &Destination, stdout: &mut Vec<u8>| {
            let write = if docker { output::docker_archive } else { output::oci_archive };
            write(&export, blobs, dest, stdout, &cancel, &Silent)
        };
        let path = f.path("new/archive.tar");
        let dest = Destination::File(path.clone());
        let mut stdout = Vec::new();
        write(&f.store, &dest, &mut stdout).expect("written");
        assert!(stdout.is_empty());
        let first = fs::read(&path).expect("a file");
        write(&f.store, &Destination::Stdout, &mut stdout).expect("written");
        assert!(stdout == first, "the same bytes wherever they go");
        let listing: Vec<String> = tar::Archive::new(first.as_slice())
            .entries()
            .expect("a tar")
            .map(|entry| entry.expect("an entry").path().expect("a name").display().to_string())
            .collect();
        assert_eq!(listing.contains(&"manifest.json".to_owned()), docker);
        assert!(listing.is_sorted() && listing.contains(&"index.json".to_owned()), "{listing:?}");
        if docker {
            // Of these archives skopeo tells the digests of the tars.
            let diff_ids = f.image.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
            inspect_layers(&format!("docker-archive:{}:h:5000/a/b:1", path.display()), diff_ids);
        } else {
            inspect(&format!("oci-archive:{}:2", path.display()), &f.image);
        }
        let error = write(&Damaged(&f.store), &dest, &mut stdout).expect_err("the blob is damaged");
        assert!(matches!(error, OutputError::WrongDigest { .. }), "{}", causes(&error));
        assert!(fs::read(&path).expect("a file") == first, "the old file stays");
        assert_eq!(fs::read_dir(f.path("new")).expect("there").count(), 1, "nothing is left");
    }
}

#[test]
fn several_platforms_need_an_index() {
    let f = Fixture::new();
    let images = [f.image.clone(), image_of(f.image.layers.clone(), "linux/arm64")];
    let index = index(&images);
    let export = Export { images: &images, index: Some(&index), names: &[], created: None, annotations: &[] };
    let dest = f.path("layout");
    output::oci_directory(&export, &f.store, &dest, &Cancel::default(), &Silent).expect("written");
    let entries = layout_index(&dest).manifests;
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].media_type, MediaType::OciIndex);
    assert_eq!(fs::read_dir(dest.join("blobs/sha256")).expect("there").count(), 1 + 2 + 2 + 1);
    if let Some(out) = run("skopeo", &["inspect", "--raw", &format!("oci:{}", dest.display())]) {
        assert_eq!(out.trim_end().as_bytes(), index.bytes);
    }
    let error =
        output::docker_archive(&export, &f.store, &Destination::Stdout, &mut Vec::new(), &Cancel::default(), &Silent);
    let error = error.expect_err("no room for an index");
    assert_eq!(error.to_string(), "docker exporter does not currently support exporting manifest lists");
}

fn index(images: &[Image]) -> Index {
    let manifests = images
        .iter()
        .map(|image| {
            let mut entry = descriptor(MediaType::OciManifest, &image.manifest);
            entry.platform = Some(image.platform.clone());
            entry
        })
        .collect();
    let media_type = Some(MediaType::OciIndex);
    let index = ImageIndex { schema_version: 2, media_type, manifests, annotations: Default::default() };
    let bytes = canonical_json(&index).expect("plain JSON");
    Index { bytes, media_type: MediaType::OciIndex, annotations: Vec::new() }
}

/// Requests that change something, shortened to what matters for their order.
fn writes(registry: &FakeRegistry) -> Vec<String> {
    let log = registry.log();
    let kind = |path: &str| if path.contains("/manifests/") { path.to_owned() } else { "blob".to_owned() };
    log.iter().filter(|request| request.method == "PUT").map(|request| kind(&request.path)).collect()
}

#[test]
fn a_push_sets_names_last_and_sends_nothing_twice() {
    let f = Fixture::new();
    let registry = FakeRegistry::start();
    let bench = Bench::new();
    let host = registry.host();
    let names = names(&[&format!("{host}/a/b:1"), &format!("{host}/a/b:2"), &format!("{host}/c:1")]);
    let push = || {
        let pusher = Pusher::new(bench.sources.registry(), &f.store, Limits::default(), &Silent);
        pusher.publish(&f.export(&names), false, &Cancel::default())
    };
    let published = push().unwrap_or_else(|error| panic!("{}", causes(&error)));
    assert_eq!(published, names.iter().map(|name| (name.clone(), f.image.digest)).collect::<Vec<_>>());
    assert_eq!(
        writes(&registry),
        ["blob", "blob", "/v2/a/b/manifests/1", "/v2/a/b/manifests/2", "/v2/c/manifests/1"],
        "the second repository mounts"
    );
    for (repository, tag) in [("a/b", "1"), ("a/b", "2"), ("c", "1")] {
        assert_eq!(registry.manifest(repository, tag).expect("pushed").1, f.image.manifest);
    }
    registry.clear_log();
    push().expect("pushed again");
    assert!(writes(&registry).iter().all(|line| line != "blob"), "{:?}", registry.lines());
}

#[test]
fn a_push_of_an_index_sets_manifests_by_digest_first() {
    let f = Fixture::new();
    let registry = FakeRegistry::start();
    let bench = Bench::new();
    let images = [f.image.clone(), image_of(f.image.layers.clone(), "linux/arm64")];
    let index = index(&images);
    let names = names(&[&format!("{}/a:1", registry.host())]);
    let export = Export { images: &images, index: Some(&index), names: &names, created: None, annotations: &[] };
    let pusher = Pusher::new(bench.sources.registry(), &f.store, Limits::default(), &Silent);
    let published = pusher.publish(&export, false, &Cancel::default()).expect("pushed");
    assert_eq!(published[0].1, BlobDigest(Sha256::of(&index.bytes)));
    let writes = writes(&registry);
    let expected = images.iter().map(|image| format!("/v2/a/manifests/{}", image.digest));
    assert_eq!(writes[3..5], expected.collect::<Vec<_>>());
    assert_eq!(writes[5], "/v2/a/manifests/1");

    let by_digest = Pusher::new(bench.sources.registry(), &f.store, Limits::default(), &Silent);
    let published = by_digest.publish(&export, true, &Cancel::default()).expect("pushed");
    assert_eq!(published[0].0.to_string(), format!("{}/a@{}", registry.host(), published[0].1));
}

#[test]
fn a_failed_push_sets_no_name() {
    let f = Fixture::new();
    let layer = &f.image.layers[0].blob;
    let faults = [
        Fault::always("POST", "/blobs/uploads/", Effect::status(403)),
        Fault::always("PUT", "/blobs/uploads/", Effect::status(400)),
    ];
    for fault in faults {
        let registry = FakeRegistry::start();
        registry.fault(fault.clone());
        let bench = Bench::new();
        let names = names(&[&format!("{}/a:1", registry.host())]);
        let pusher = Pusher::new(bench.sources.registry(), &f.store, Limits::default(), &Silent);
        let error = pusher.publish(&f.export(&names), false, &Cancel::default()).expect_err("refused");
        assert!(matches!(error, OutputError::Registry { .. }), "{fault:?}: {}", causes(&error));
        assert!(registry.manifest("a", "1").is_none());
    }
    let registry = FakeRegistry::start();
    let bench = Bench::new();
    let names = names(&[&format!("{}/a:1", registry.host())]);
    let damaged = Damaged(&f.store);
    let pusher = Pusher::new(bench.sources.registry(), &damaged, Limits::default(), &Silent);
    pusher.publish(&f.export(&names), false, &Cancel::default()).expect_err("the blob is damaged");
    assert!(registry.manifest("a", "1").is_none());
    assert!(registry.blob("a", &layer.digest.to_string()).is_none());
    let error = pusher.publish(&f.export(&[]), false, &Cancel::default()).expect_err("no name");
    assert!(matches!(error, OutputError::NoName));
}

/// Blobs that are known to be in another repository, and nowhere else.
struct Elsewhere(Reference);

impl Blobs for Elsewhere {
    fn open(&self, _descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        Err(io::Error::other("it should have been mounted"))
    }

    fn origin(&self, _descriptor: &Descriptor) -> Option<Reference> {
        Some(self.0.clone())
    }
}

#[test]
fn base_blobs_of_the_same_registry_are_mounted() {
    let f = Fixture::new();
    let registry = FakeRegistry::start();
    let mut bytes = Vec::new();
    Blobs::open(&f.store, &f.image.layers[0].blob).expect("there").read_to_end(&mut bytes).expect("readable");
    registry.put_blob("base", &bytes);
    let bench = Bench::new();
    let blobs = Elsewhere(format!("{}/base:1", registry.host()).parse().expect("a reference"));
    let names = names(&[&format!("{}/a:1", registry.host())]);
    let pusher = Pusher::new(bench.sources.registry(), &blobs, Limits::default(), &Silent);
    pusher.blob(&names[0], &f.image.layers[0].blob, &Cancel::default()).expect("mounted early");
    registry.clear_log();
    pusher.publish(&f.export(&names), false, &Cancel::default()).unwrap_or_else(|error| panic!("{}", causes(&error)));
    assert_eq!(writes(&registry), ["blob", "/v2/a/manifests/1"], "only the config is sent");
}

#[test]
#[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
fn a_real_registry_takes_it() {
    let Some(registry) = fixtures::distribution::Distribution::start().expect("it starts") else {
        eprintln!("skipped: docker-registry is not installed");
        return;
    };
    let f = Fixture::new();
    let bench = Bench::new();
    let names = names(&[&format!("{}/a/b:1", registry.host()), &format!("{}/c:2", registry.host())]);
    let pusher = Pusher::new(bench.sources.registry(), &f.store, Limits::default(), &Silent);
    pusher.publish(&f.export(&names), false, &Cancel::default()).unwrap_or_else(|error| panic!("{}", causes(&error)));
    for name in &names {
        inspect(&format!("docker://{name}"), &f.image);
    }
}

#[test]
fn layers_change_their_form_and_keep_their_content() {
    let f = Fixture::new();
    let mut layer = f.image.layers[0].clone();
    assert!(!output::needs_recompression(&layer.blob, Compression::Gzip { level: 9 }));
    for compression in [Compression::DEFAULT_ZSTD, Compression::None, Compression::Gzip { level: 1 }] {
        assert!(output::needs_recompression(&layer.blob, compression));
        let options = LayerOptions { compression, docker_media_types: false, clamp_mtime: None };
        let (limits, cancel) = (Limits::default(), Cancel::default());
        let next = output::recompress(&layer, &f.store, &f.store, &options, &limits, &cancel, &|_| ()).expect("read");
        assert_eq!((next.diff_id, &next.blob.media_type), (layer.diff_id, &compression.media_type(false)));
        layer = next;
    }
    let wrong = ImageLayer { diff_id: builder_core::oci::DiffId(Sha256::of(b"x")), ..layer };
    let options = LayerOptions { compression: Compression::None, docker_media_types: false, clamp_mtime: None };
    let result =
        output::recompress(&wrong, &f.store, &f.store, &options, &Limits::default(), &Cancel::default(), &|_| ());
    assert!(matches!(result, Err(OutputError::WrongDiffId { .. })));
}

/// Path, permissions, time of everything below a directory, without directories' times.
fn listed(path: &Path) -> Vec<(String, u32, (i64, u32), u64)> {
    let listing = Rootfs::open(path).expect("a directory").list().expect("readable");
    let row = |l: builder_core::rootfs::Listed| {
        (l.path.display().to_string(), l.metadata.mode, l.metadata.mtime, l.metadata.size)
    };
    listing.iter().map(|listed| row(listed.expect("readable"))).collect()
}

#[test]
fn a_directory_gets_the_files() {
    let f = Fixture::new();
    let (tree, amd64) = (f.tree(), platform("linux/amd64"));
    let files = [PlatformFiles { platform: &amd64, rootfs: &tree }];
    let dest = f.path("out");
    let write = |options: FilesOptions| output::directory(&files, &dest, &options, &Cancel::default(), &Silent);
    write(FilesOptions::default()).unwrap_or_else(|error| panic!("{}", causes(&error)));
    assert_eq!(listed(&dest), listed(&f.path("tree")));
    fs::write(dest.join("etc/stale"), "x").expect("a file");
    fs::create_dir_all(dest.join("old/dir")).expect("a directory");
    write(FilesOptions::default()).expect("written again");
    assert!(dest.join("etc/stale").exists() && dest.join("old/dir").exists());
    write(FilesOptions { delete: true, ..FilesOptions::default() }).expect("written with delete");
    assert_eq!(listed(&dest), listed(&f.path("tree")));
    write(FilesOptions { epoch: Some(7), ..FilesOptions::default() }).expect("written at a time");
    assert!(listed(&dest).iter().all(|row| row.2 == (7, 0)), "{:?}", listed(&dest));
    write(FilesOptions { platform_split: Some(true), ..FilesOptions::default() }).expect("written split");
    assert!(dest.join("linux_amd64/etc/motd").exists());
}

#[test]
fn a_link_in_the_destination_leads_nowhere_outside() {
    let f = Fixture::new();
    let (tree, amd64) = (f.tree(), platform("linux/amd64"));
    let files = [PlatformFiles { platform: &amd64, rootfs: &tree }];
    let (dest, outside) = (f.path("out"), f.path("outside"));
    fs::create_dir(&dest).expect("a directory");
    fs::create_dir(&outside).expect("a directory");
    std::os::unix::fs::symlink(&outside, dest.join("etc")).expect("a link");
    output::directory(&files, &dest, &FilesOptions::default(), &Cancel::default(), &Silent).expect("written");
    assert_eq!(fs::read_dir(&outside).expect("there").count(), 0);
    assert!(dest.join("etc").symlink_metadata().expect("there").is_dir());
}

#[test]
fn several_platforms_are_split_or_merged() {
    let f = Fixture::new();
    let other = f.path("other");
    fs::create_dir(&other).expect("a directory");
    shell(&other, "mkdir etc; echo hello > etc/motd; echo arm > etc/arm");
    let (tree, second) = (f.tree(), Rootfs::open(&other).expect("a directory"));
    let (amd64, arm) = (platform("linux/amd64"), platform("linux/arm/v7"));
    let files = [PlatformFiles { platform: &amd64, rootfs: &tree }, PlatformFiles { platform: &arm, rootfs: &second }];
    let write = |name: &str, platform_split| {
        let options = FilesOptions { platform_split, ..FilesOptions::default() };
        output::directory(&files, &f.path(name), &options, &Cancel::default(), &Silent)
    };
    write("split", None).expect("written");
    assert!(f.path("split/linux_amd64/bin/run").exists() && f.path("split/linux_arm_v7/etc/arm").exists());
    write("merged", Some(false)).unwrap_or_else(|error| panic!("{}", causes(&error)));
    assert!(f.path("merged/bin/run").exists() && f.path("merged/etc/arm").exists());
    let mut stdout = Vec::new();
    let options = FilesOptions::default();
    output::tar(&files, &Destination::Stdout, &mut stdout, &options, &Cancel::default(), &Silent).expect("written");
    let mut archive = tar::Archive::new(stdout.as_slice());
    let names: Vec<_> = archive
        .entries()
        .expect("a tar")
        .map(|entry| entry.expect("an entry").path().expect("a name").display().to_string())
        .collect();
    assert_eq!(names.first().map(String::as_str), Some("linux_amd64/"));
    assert!(names.contains(&"linux_arm_v7/etc/arm".to_owned()), "{names:?}");

    fs::write(other.join("etc/motd"), "HELLO\n").expect("a file");
    let error = write("conflict", Some(false)).expect_err("they differ");
    assert_eq!(
        error.to_string(),
        "cannot overwrite etc/motd from linux/arm/v7 with linux/amd64 when split option is disabled"
    );
}

#[test]
fn a_tar_gets_the_files() {
    let f = Fixture::new();
    let (tree, amd64) = (f.tree(), platform("linux/amd64"));
    let files = [PlatformFiles { platform: &amd64, rootfs: &tree }];
    let path = f.path("files.tar");
    let dest = Destination::File(path.clone());
    output::tar(&files, &dest, &mut Vec::new(), &FilesOptions::default(), &Cancel::default(), &Silent)
        .expect("written");
    let out = f.path("out");
    fs::create_dir(&out).expect("a directory");
    if run("tar", &["-xpf", &path.display().to_string(), "-C", &out.display().to_string()]).is_some() {
        let whole = |rows: Vec<(String, u32, (i64, u32), u64)>| -> Vec<_> {
            rows.into_iter().map(|row| (row.0, row.1, row.2.0, row.3)).collect()
        };
        assert_eq!(whole(listed(&out)), whole(listed(&f.path("tree"))));
    }
    let options = FilesOptions { epoch: Some(5), ..FilesOptions::default() };
    output::tar(&files, &dest, &mut Vec::new(), &options, &Cancel::default(), &Silent).expect("written");
    let bytes = fs::read(&path).expect("a file");
    for entry in tar::Archive::new(bytes.as_slice()).entries().expect("a tar") {
        assert_eq!(entry.expect("an entry").header().mtime().expect("octal"), 5);
    }
}
