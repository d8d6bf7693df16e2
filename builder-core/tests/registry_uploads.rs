//! Uploads into registries that cut, refuse, forget and limit: what ends well is there whole, what fails is a typed error and
//! not there at all.

mod common;

use std::cell::Cell;
use std::io::{self, Read};

use builder_core::cancel::Cancel;
use builder_core::hint::Hint as _;
use builder_core::http::{ClientOptions, HttpError, Method, Request, Timeouts};
use builder_core::oci::{BlobDigest, Descriptor, MediaType, Reference, Sha256};
use builder_core::registry::{BlobToPush, CredentialOptions, Pushed, RegistryError, RegistryOptions, Sessions};
use common::Bench;
use fixtures::image::{self, Image, noise};
use fixtures::registry::{Auth, Effect, FakeRegistry, Fault};

fn target(registry: &FakeRegistry, repository: &str) -> Reference {
    format!("{}/{repository}:1", registry.host()).parse().expect("a reference")
}

fn in_pieces_of(bytes: u64) -> Bench {
    let options = RegistryOptions { upload_chunk_bytes: Some(bytes), ..RegistryOptions::default() };
    Bench::with(CredentialOptions::default(), options)
}

/// Pushes `bytes` and says how; the registry must have them then, whole, or not at all.
#[track_caller]
fn push(bench: &Bench, registry: &FakeRegistry, bytes: &[u8]) -> Result<Pushed, RegistryError> {
    push_keeping(bench, registry, bytes, None, &Cell::default())
}

/// The same with uploads that are kept; `resumed` is where it went on.
#[track_caller]
fn push_keeping(
    bench: &Bench,
    registry: &FakeRegistry,
    bytes: &[u8],
    sessions: Option<&Sessions>,
    resumed: &Cell<Option<u64>>,
) -> Result<Pushed, RegistryError> {
    let digest = BlobDigest(Sha256::of(bytes));
    let descriptor = Descriptor::new(MediaType::OciLayerGzip, digest, bytes.len() as u64);
    let open = |offset: u64| {
        let rest = &bytes[usize::try_from(offset).expect("small")..];
        Ok(Box::new(rest) as Box<dyn Read>)
    };
    let resumed = |from| resumed.set(Some(from));
    let blob = BlobToPush { sessions, resumed: &resumed, ..BlobToPush::new(&descriptor, &open) };
    let result = bench.sources.registry().push_blob(&target(registry, "a"), &blob, &Cancel::default());
    let there = registry.blob("a", &digest.to_string());
    match result {
        Ok(_) => assert!(there.as_deref() == Some(bytes), "the registry has other bytes"),
        Err(_) => assert_eq!(there, None),
    }
    result
}

fn count(registry: &FakeRegistry, method: &str) -> usize {
    registry.log().iter().filter(|logged| logged.method == method).count()
}

#[test]
fn blobs_are_uploaded_once_in_any_size() {
    let registry = FakeRegistry::start();
    let bench = Bench::new();
    for length in [0, 1, 2, 100_000, 3_000_000] {
        let bytes = noise(length);
        assert_eq!(push(&bench, &registry, &bytes).expect("pushed"), Pushed::Uploaded, "{length}");
        assert_eq!(push(&bench, &registry, &bytes).expect("there"), Pushed::Existed, "{length}");
    }
    assert_eq!(count(&registry, "PATCH"), 0);
    for (length, pieces) in [(999, 0), (1000, 0), (1001, 2), (5500, 6)] {
        let registry = FakeRegistry::start();
        assert_eq!(push(&in_pieces_of(1000), &registry, &noise(length)).expect("pushed"), Pushed::Uploaded);
        assert_eq!(count(&registry, "PATCH"), pieces, "{length}");
    }
}

#[test]
fn registries_answer_in_ways_of_their_own() {
    let header = |name: &str, value: &str| Effect::Header { name: name.to_owned(), value: value.to_owned() };
    let cases = [
        ("PATCH", header("Range", "")),
        ("PATCH", header("Range", "junk")),
        ("PATCH", header("Range", "0-0")),
        ("PATCH", header("Location", "")),
        ("POST", header("Range", "")),
        ("POST", header("Docker-Upload-UUID", "")),
        ("PUT", header("Location", "")),
        ("HEAD", Effect::status(405)),
        ("HEAD", Effect::status(501)),
    ];
    for (method, effect) in cases {
        for piece in [1_000, 100_000] {
            let registry = FakeRegistry::start();
            registry.fault(Fault::always(method, "/blobs/", effect.clone()));
            let pushed = push(&in_pieces_of(piece), &registry, &noise(2_500));
            assert_eq!(pushed.expect("pushed"), Pushed::Uploaded, "{method} {effect:?}");
        }
    }
}

#[test]
fn uploads_that_are_cut_go_on_where_they_were() {
    for after in [0, 1, 2, 65_536, 2_999_999] {
        let registry = FakeRegistry::start();
        registry.fault(Fault::once("PUT", "/uploads/", Effect::CutUpload(after)));
        assert_eq!(push(&Bench::new(), &registry, &noise(3_000_000)).expect("pushed"), Pushed::Uploaded, "{after}");
        if after >= 2 {
            assert_eq!(count(&registry, "PATCH"), 1, "{after}: {:?}", registry.lines());
            assert_eq!(count(&registry, "POST"), 1, "{after}: {:?}", registry.lines());
        }
    }
    // Several cuts, in the pieces as well, and a session that is lost.
    let registry = FakeRegistry::start();
    registry.fault(Fault::once("PUT", "/uploads/", Effect::CutUpload(1_000_000)));
    registry.fault(Fault::once("PATCH", "/uploads/", Effect::CutUpload(500_000)));
    registry.fault(Fault::once("GET", "/uploads/", Effect::status(404)).after(1));
    push(&Bench::new(), &registry, &noise(3_000_000)).expect("pushed");
}

/// What the next process finds, and what it makes of it: the registry's word counts, and any surprise begins the upload anew.
#[test]
fn uploads_go_on_in_the_next_process() {
    let bytes = noise(3_000_000);
    for (what, fault, expected, begun) in [
        ("it is there", None, Some(2_000_000), 0),
        ("it is gone", Some(Effect::status(404)), None, 1),
        ("it has failed", Some(Effect::status(500)), None, 1),
        ("nobody answers", Some(Effect::Hangup), None, 1),
        ("no range", Some(Effect::Header { name: "Range".to_owned(), value: String::new() }), None, 1),
        ("too much", Some(Effect::Header { name: "Range".to_owned(), value: "0-3000000".to_owned() }), None, 1),
        // The registry refuses pieces elsewhere, and is asked again.
        ("another range", Some(Effect::Header { name: "Range".to_owned(), value: "0-99".to_owned() }), Some(100), 0),
    ] {
        let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().expect("a directory"));
        let sessions = Sessions::new(directory.path().join("uploads"));
        // All attempts of the first process end in the second piece.
        registry.fault(Fault::once("PATCH", "/uploads/", Effect::Hangup).after(2).times(u32::MAX));
        let resumed = Cell::default();
        let error = push_keeping(&in_pieces_of(1_000_000), &registry, &bytes, Some(&sessions), &resumed);
        assert!(matches!(error, Err(RegistryError::Upload { sent: 2_000_000, .. })), "{what}: {error:?}");
        assert_eq!(resumed.get(), None, "{what}");
        registry.clear_log();
        registry.clear_faults();
        if let Some(effect) = fault {
            registry.fault(Fault::once("GET", "/uploads/", effect));
        }
        let pushed = push_keeping(&Bench::new(), &registry, &bytes, Some(&sessions), &resumed);
        assert_eq!(pushed.expect("pushed"), Pushed::Uploaded, "{what}");
        assert_eq!((resumed.get(), count(&registry, "POST")), (expected, begun), "{what}: {:?}", registry.lines());
        let left = std::fs::read_dir(directory.path().join("uploads")).expect("listed").count();
        assert_eq!(left, 0, "{what}");
    }
}

#[test]
fn uploads_follow_redirects_without_credentials() {
    let elsewhere = FakeRegistry::start();
    let registry = FakeRegistry::with_auth(Auth::basic("me", "hunter2"));
    let bench = Bench::with_login(&registry, "me", "hunter2");
    let bytes = noise(100_000);
    let digest = BlobDigest(Sha256::of(&bytes));
    let begin = format!("http://{}/v2/a/blobs/uploads/", elsewhere.host()).parse().expect("a URL");
    let begun = bench.sources.registry().client().send(Request::new(Method::Post, begin), &Cancel::default());
    let place = begun.expect("begun").header("Location").expect("a place").to_owned();
    elsewhere.clear_log();
    let to = format!("http://{}{place}&digest={digest}", elsewhere.host());
    registry.fault(Fault::once("PUT", "/uploads/", Effect::Redirect(to)));
    let descriptor = Descriptor::new(MediaType::OciLayerGzip, digest, bytes.len() as u64);
    let open = |offset: u64| Ok(Box::new(&bytes[usize::try_from(offset).expect("small")..]) as Box<dyn Read>);
    let blob = BlobToPush::new(&descriptor, &open);
    let pushed = bench.sources.registry().push_blob(&target(&registry, "a"), &blob, &Cancel::default());
    assert_eq!(pushed.expect("pushed"), Pushed::Uploaded, "{:?}", registry.lines());
    assert!(elsewhere.blob("a", &digest.to_string()).as_deref() == Some(&bytes[..]));
    let followed = elsewhere.log();
    assert_eq!(followed.iter().map(|logged| logged.header("authorization")).collect::<Vec<_>>(), [None]);
    // Round and round is an error.
    let registry = FakeRegistry::start();
    registry.fault(Fault::always("PUT", "/uploads/", Effect::Redirect("?again".to_owned())));
    assert!(matches!(push(&Bench::new(), &registry, &bytes), Err(RegistryError::Upload { .. })));
}

#[test]
fn temporary_answers_are_tried_again() {
    for code in [429, 500, 503] {
        let registry = FakeRegistry::start();
        registry.fault(Fault::once("POST", "/uploads/", Effect::retry_after(code, 0)).times(2));
        registry.fault(Fault::once("PUT", "/uploads/", Effect::retry_after(code, 0)).times(2));
        push(&Bench::new(), &registry, &noise(100_000)).unwrap_or_else(|error| panic!("{code}: {error:?}"));
    }
}

#[test]
fn uploads_that_always_fail_end_with_an_error() {
    let registry = FakeRegistry::start();
    registry.fault(Fault::always("PUT", "/uploads/", Effect::status(503)));
    match push(&Bench::new(), &registry, &noise(100_000)) {
        Err(RegistryError::Upload { attempts: 4, source, .. }) => {
            assert!(matches!(*source, RegistryError::Refused { status: 503, .. }), "{source:?}");
        }
        other => panic!("{other:?}"),
    }
    let registry = FakeRegistry::start();
    registry.fault(Fault::always("PUT", "/uploads/", Effect::CutUpload(10)));
    registry.fault(Fault::always("PATCH", "/uploads/", Effect::CutUpload(10)));
    assert!(matches!(push(&Bench::new(), &registry, &noise(100_000)), Err(RegistryError::Upload { .. })));
}

#[test]
fn a_registry_that_falls_silent_is_given_up() {
    let stall = std::time::Duration::from_millis(150);
    for (method, path, effect) in [
        ("HEAD", "/blobs/", Effect::Silence),
        ("POST", "/uploads/", Effect::Silence),
        ("PATCH", "/uploads/", Effect::Silence),
    ] {
        let registry = FakeRegistry::start();
        registry.fault(Fault::always(method, path, effect));
        let options = RegistryOptions { upload_chunk_bytes: Some(100_000), ..RegistryOptions::default() };
        let timeouts = Timeouts { stall, after_upload: stall, ..Timeouts::default() };
        let client = ClientOptions { timeouts, ..common::quick() };
        let bench = Bench::build(client, CredentialOptions::default(), options);
        let error = push(&bench, &registry, &noise(3_000_000)).expect_err("nobody answers");
        let stalled =
            |error: &RegistryError| matches!(error, RegistryError::Http { source: HttpError::Stalled { .. }, .. });
        let is_silence = match &error {
            RegistryError::Upload { source, .. } => stalled(source),
            other => stalled(other),
        };
        assert!(is_silence, "{method}: {error:?}");
        assert_eq!(count(&registry, method), 4, "{method}: {:?}", registry.lines());
    }
    // Once is forgiven.
    let registry = FakeRegistry::start();
    registry.fault(Fault::once("PUT", "/uploads/", Effect::Silence));
    let timeouts = Timeouts { stall, after_upload: stall, ..Timeouts::default() };
    let client = ClientOptions { timeouts, ..common::quick() };
    let bench = Bench::build(client, CredentialOptions::default(), RegistryOptions::default());
    push(&bench, &registry, &noise(300_000)).expect("pushed");
}

#[test]
fn a_proxy_that_ends_connections_gets_small_pieces() {
    // nginx with its own limit, and without the patience to say 413.
    let registry = FakeRegistry::start();
    registry.fault(Fault::always("", "/uploads/", Effect::HangUpOnLargerThan(1 << 20)));
    push(&Bench::new(), &registry, &noise(18 << 20)).expect("pushed");
}

#[test]
fn an_answer_that_was_lost_is_noticed() {
    // The blob is complete, but we are told 502 and the session is gone: it is there the next time we look.
    let registry = FakeRegistry::start();
    let bytes = noise(1000);
    registry.put_blob("a", &bytes);
    registry.fault(Fault::once("HEAD", "/blobs/", Effect::status(404)));
    registry.fault(Fault::once("PUT", "/uploads/", Effect::status(502)));
    registry.fault(Fault::always("GET", "/uploads/", Effect::status(404)));
    assert_eq!(push(&Bench::new(), &registry, &bytes).expect("there"), Pushed::Uploaded);
    assert_eq!(count(&registry, "PUT"), 1);
}

#[test]
fn registries_that_refuse_large_pieces_get_small_ones() {
    let refuse = || Fault::always("", "/uploads/", Effect::RefuseLargerThan(200_000));
    let registry = FakeRegistry::start();
    registry.fault(refuse());
    push(&Bench::new(), &registry, &noise(3_000_000)).expect("pushed");

    let registry = FakeRegistry::start();
    registry.min_chunk(1_000_000);
    registry.fault(refuse());
    let error = push(&Bench::new(), &registry, &noise(3_000_000)).expect_err("cannot be satisfied");
    assert!(matches!(error, RegistryError::Refused { status: 413, .. }), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("client_max_body_size")), "{:?}", error.hint());

    let registry = FakeRegistry::start();
    registry.min_chunk(50_000);
    push(&in_pieces_of(1000), &registry, &noise(120_000)).expect("pushed");
    let pieces: Vec<_> =
        registry.log().iter().filter_map(|logged| logged.header("content-range").map(str::to_owned)).collect();
    assert_eq!(pieces, ["0-49999", "50000-99999", "100000-119999"]);
}

#[test]
fn a_token_that_ends_during_an_upload_is_renewed() {
    let auth = Auth::Bearer { login: None, identity_token: None, uses: 2, expires_in: 300 };
    let registry = FakeRegistry::with_auth(auth);
    push(&in_pieces_of(10_000), &registry, &noise(100_000)).expect("pushed");
    let scopes: Vec<_> = registry.log().into_iter().filter(|l| l.path == "/token").flat_map(|l| l.query).collect();
    assert!(scopes.contains(&("scope".to_owned(), "repository:a:pull,push".to_owned())), "{scopes:?}");
}

#[test]
fn no_rights_to_push_are_an_error_at_once() {
    let registry = FakeRegistry::with_auth(Auth::basic("me", "p"));
    let error = push(&Bench::new(), &registry, &noise(10)).expect_err("no login");
    assert!(matches!(error, RegistryError::Unauthorized { identity: None, .. }), "{error:?}");
    let registry = FakeRegistry::start();
    registry.fault(Fault::always("POST", "/uploads/", Effect::status(403)));
    let error = push(&Bench::new(), &registry, &noise(10)).expect_err("forbidden");
    assert!(matches!(error, RegistryError::Denied { .. }), "{error:?}");
    assert_eq!(count(&registry, "POST"), 1);
}

#[test]
fn blobs_of_a_neighbour_are_mounted() {
    let registry = FakeRegistry::with_auth(Auth::tokens("me", "p"));
    let bytes = noise(1000);
    let digest = BlobDigest(Sha256::of(&bytes));
    registry.put_blob("base", &bytes);
    let bench = Bench::with_login(&registry, "me", "p");
    let descriptor = Descriptor::new(MediaType::OciLayerGzip, digest, 1000);
    let open = |_: u64| -> io::Result<Box<dyn Read>> { Err(io::ErrorKind::NotFound.into()) };
    let from = target(&registry, "base");
    let blob = BlobToPush { mount_from: Some(&from), ..BlobToPush::new(&descriptor, &open) };
    let client = bench.sources.registry();
    let cancel = Cancel::default();
    assert_eq!(client.push_blob(&target(&registry, "a"), &blob, &cancel).expect("mounted"), Pushed::Mounted);
    assert!(registry.blob("a", &digest.to_string()).is_some());
    // Not there: it must be sent, and what cannot be read is an error about the source.
    let empty = target(&registry, "empty");
    let blob = BlobToPush { mount_from: Some(&empty), ..blob };
    match client.push_blob(&target(&registry, "b"), &blob, &cancel) {
        Err(RegistryError::Source { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::NotFound),
        other => panic!("{other:?}"),
    }
}

#[test]
fn manifests_get_their_tags_only_when_all_is_there() {
    let registry = FakeRegistry::start();
    let bench = Bench::new();
    let client = bench.sources.registry();
    let cancel = Cancel::default();
    let image = Image::small("x");
    let to = target(&registry, "a");
    let error = client.push_manifest(&to, &image.manifest, &MediaType::OciManifest, &cancel).expect_err("no blobs");
    assert!(matches!(&error, RegistryError::Refused { code, .. } if code == "MANIFEST_BLOB_UNKNOWN"), "{error:?}");
    push(&bench, &registry, &image.config).expect("pushed");
    push(&bench, &registry, &image.layers[0].blob).expect("pushed");
    registry.fault(Fault::once("PUT", "/manifests/", Effect::retry_after(429, 0)));
    let digest = client.push_manifest(&to, &image.manifest, &MediaType::OciManifest, &cancel).expect("pushed");
    assert_eq!(digest.to_string(), image.digest());
    let (media_type, bytes) = registry.manifest("a", "1").expect("tagged");
    assert_eq!((media_type.as_str(), bytes), (image::MANIFEST, image.manifest.clone()));
    assert_eq!(client.manifest_digest(&to, &cancel).expect("asked"), Some(digest));
    assert_eq!(client.manifest_digest(&target(&registry, "b"), &cancel).expect("asked"), None);
    client.check_push(&to, &cancel).expect("allowed");
}
