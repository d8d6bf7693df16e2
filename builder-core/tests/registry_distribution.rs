//! The same client against Debian's `docker-registry`: plain, with a login, over TLS.

#![allow(clippy::print_stderr, reason = "a test that cannot run says so")]

mod common;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Read;

use builder_core::cancel::Cancel;
use builder_core::http::{ClientOptions, HostOptions, HttpError};
use builder_core::oci::{BlobDigest, Descriptor, MediaType, Reference, Sha256};
use builder_core::registry::{
    BlobToPush, CredentialOptions, Pushed, Registry, RegistryError, RegistryMap, RegistryOptions,
};
use builder_core::source::{Keep, SourceError};
use common::{Bench, quick, registry_error};
use fixtures::distribution::{Distribution, PASSWORD, Setup, USER, tls};
use fixtures::image::{self, Image, noise};
use serde_json::json;

/// A running registry, or a line that says why the test cannot run.
fn start(setup: Setup) -> Option<Distribution> {
    let started = Distribution::with(setup).expect("docker-registry starts");
    if started.is_none() {
        eprintln!("skipped: docker-registry is not installed");
    }
    started
}

fn push_blob(
    registry: &Registry,
    to: &Reference,
    bytes: &[u8],
    from: Option<&Reference>,
) -> Result<Pushed, RegistryError> {
    let descriptor = Descriptor::new(MediaType::OciLayerGzip, BlobDigest(Sha256::of(bytes)), bytes.len() as u64);
    let open = |offset: u64| {
        let rest = &bytes[usize::try_from(offset).expect("small")..];
        Ok(Box::new(rest) as Box<dyn Read>)
    };
    let blob = BlobToPush { mount_from: from, ..BlobToPush::new(&descriptor, &open) };
    registry.push_blob(to, &blob, &Cancel::default())
}

fn push_image(registry: &Registry, to: &Reference, image: &Image) -> Result<BlobDigest, RegistryError> {
    for layer in &image.layers {
        push_blob(registry, to, &layer.blob, None)?;
    }
    push_blob(registry, to, &image.config, None)?;
    registry.push_manifest(to, &image.manifest, &MediaType::OciManifest, &Cancel::default())
}

fn pull(bench: &Bench, name: &str) -> Result<Vec<Vec<u8>>, SourceError> {
    let cancel = Cancel::default();
    let platform = "linux/amd64".parse().expect("a platform");
    let image = bench.sources.resolve(name, &platform, &cancel)?;
    let mut blobs = Vec::new();
    for layer in &image.layers {
        let mut bytes = Vec::new();
        let mut stream = bench.sources.open_blob(&image, &layer.blob, Keep::InStore, &cancel)?;
        stream.read_to_end(&mut bytes).expect("the layer comes whole");
        blobs.push(bytes);
    }
    bench.assert_whole();
    Ok(blobs)
}

fn big_image() -> Image {
    let layers = vec![image::layer(&[("a", &noise(5 << 20))]), image::layer(&[("b", b"small")])];
    Image::new("linux/amd64", layers, json!({"Cmd": ["sh"]}))
}

#[track_caller]
fn round_trip(bench: &Bench, host: &str) {
    let image = big_image();
    let to: Reference = format!("{host}/library/base:1").parse().expect("a reference");
    let digest = push_image(bench.sources.registry(), &to, &image).expect("pushed");
    assert_eq!(digest.to_string(), image.digest());
    let blobs = pull(bench, &to.to_string()).expect("pulled");
    assert!(blobs == image.layers.iter().map(|layer| layer.blob.clone()).collect::<Vec<_>>());
}

#[test]
fn images_go_there_and_back() {
    let Some(server) = start(Setup::default()) else { return };
    round_trip(&Bench::new(), server.host());
    let chunked = RegistryOptions { upload_chunk_bytes: Some(700_000), ..RegistryOptions::default() };
    let bench = Bench::with(CredentialOptions::default(), chunked);
    let registry = bench.sources.registry();
    let to: Reference = format!("{}/chunked:1", server.host()).parse().expect("a reference");
    let bytes = noise(3_000_001);
    assert_eq!(push_blob(registry, &to, &bytes, None).expect("pushed"), Pushed::Uploaded);
    assert_eq!(push_blob(registry, &to, &bytes, None).expect("there"), Pushed::Existed);
    let other: Reference = format!("{}/other:1", server.host()).parse().expect("a reference");
    assert_eq!(push_blob(registry, &other, &bytes, Some(&to)).expect("mounted"), Pushed::Mounted);
    assert_eq!(push_blob(registry, &other, b"", None).expect("pushed"), Pushed::Uploaded);
    registry.check_push(&other, &Cancel::default()).expect("allowed");
    let digest = registry.manifest_digest(&other, &Cancel::default()).expect("asked");
    assert_eq!(digest, None);
}

#[test]
fn it_stands_in_for_docker_hub() {
    let Some(server) = start(Setup::default()) else { return };
    let to: Reference = format!("{}/library/base:1", server.host()).parse().expect("a reference");
    let image = Image::small("x");
    let targets = vec![server.host().parse().expect("a target")];
    let maps = vec![RegistryMap { registry: "index.docker.io".to_owned(), targets, fallback: false }];
    let bench = Bench::with(CredentialOptions::default(), RegistryOptions { maps, ..RegistryOptions::default() });
    push_image(bench.sources.registry(), &to, &image).expect("pushed");
    assert_eq!(pull(&bench, "base:1").expect("pulled"), [image.layers[0].blob.clone()]);
    assert_eq!(pull(&bench, "docker-image://base:1").expect("pulled").len(), 1);
    let error = pull(&bench, "no-such-base").expect_err("not there");
    assert!(error.is_not_found(), "{error:?}");
}

#[test]
fn an_upload_that_was_interrupted_goes_on() {
    let Some(server) = start(Setup::default()) else { return };
    let bench = Bench::new();
    let bytes = noise(3_000_000);
    let descriptor = Descriptor::new(MediaType::OciLayerGzip, BlobDigest(Sha256::of(&bytes)), bytes.len() as u64);
    let to: Reference = format!("{}/cut:1", server.host()).parse().expect("a reference");
    // A source that breaks is an error of the source; nothing is visible, and the next attempt succeeds.
    let open = |_: u64| {
        let broken = (&bytes[..1_000_000]).chain(Broken);
        Ok(Box::new(broken) as Box<dyn Read>)
    };
    let blob = BlobToPush::new(&descriptor, &open);
    let error = bench.sources.registry().push_blob(&to, &blob, &Cancel::default()).expect_err("broken");
    assert!(matches!(error, RegistryError::Source { .. }), "{error:?}");
    let exists = bench.sources.registry().blob_exists(&to, descriptor.digest, &Cancel::default());
    assert!(!exists.expect("asked"));
    assert_eq!(push_blob(bench.sources.registry(), &to, &bytes, None).expect("pushed"), Pushed::Uploaded);
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _buf: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::Other.into())
    }
}

#[test]
fn logins_come_from_config_json() {
    let Some(server) = start(Setup { login: true, ..Setup::default() }) else { return };
    let config = |password: &str| CredentialOptions {
        inline: Some(json!({"auths": {server.host(): {"username": USER, "password": password}}}).to_string()),
        ..CredentialOptions::default()
    };
    round_trip(&Bench::with(config(PASSWORD), RegistryOptions::default()), server.host());
    let name = format!("{}/library/base:1", server.host());
    for (credentials, known) in [(config("wrong"), true), (CredentialOptions::default(), false)] {
        let error = pull(&Bench::with(credentials, RegistryOptions::default()), &name).expect_err("refused");
        match registry_error(&error) {
            RegistryError::Unauthorized { identity, .. } => assert_eq!(identity.is_some(), known),
            other => panic!("{other:?}"),
        }
    }
}

fn with_tls(host: &str, options: HostOptions) -> Bench {
    let hosts = BTreeMap::from([(host.to_owned(), options)]);
    Bench::build(ClientOptions { hosts, ..quick() }, CredentialOptions::default(), RegistryOptions::default())
}

#[track_caller]
fn assert_tls_error(bench: &Bench, host: &str, needle: &str) {
    let error = pull(bench, &format!("{host}/library/base:1")).expect_err("no trust");
    match registry_error(&error) {
        RegistryError::Http { source: source @ HttpError::Tls { .. }, .. } => {
            let text = source.source().map(ToString::to_string).unwrap_or_default();
            assert!(text.contains(needle), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn certificates_are_verified_unless_told_otherwise() {
    let Some(server) = start(Setup { tls: true, ..Setup::default() }) else { return };
    let host = server.host();
    // Loopback is spoken to in the clear first; this one refuses that.
    assert_tls_error(&Bench::new(), host, "UnknownIssuer");
    let trusting = HostOptions { ca_files: vec![tls("ca.pem")], ..HostOptions::default() };
    round_trip(&with_tls(host, trusting.clone()), host);
    let careless = HostOptions { skip_tls_verify: true, ..HostOptions::default() };
    round_trip(&with_tls(host, careless), host);
    // Trust in one host is not trust in another.
    assert_tls_error(&with_tls("127.0.0.1:1", trusting), host, "UnknownIssuer");
    let everywhere = ClientOptions { ca_files: vec![tls("ca.pem")], ..quick() };
    round_trip(&Bench::build(everywhere, CredentialOptions::default(), RegistryOptions::default()), host);
}

#[test]
fn client_certificates_are_shown() {
    let Some(server) = start(Setup { tls: true, client_certificate: true, ..Setup::default() }) else { return };
    let host = server.host();
    let with = HostOptions {
        ca_files: vec![tls("ca.pem")],
        client_certificate: Some((tls("client.pem"), tls("client.key"))),
        ..HostOptions::default()
    };
    round_trip(&with_tls(host, with.clone()), host);
    let without = HostOptions { client_certificate: None, ..with };
    pull(&with_tls(host, without), &format!("{host}/library/base:1")).expect_err("no certificate");
}
