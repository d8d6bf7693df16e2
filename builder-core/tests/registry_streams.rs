//! Blobs that are pushed while they are written: every way in which a registry or the writer can disturb that ends in a whole blob,
//! or in none and the word that it must go the usual way.

mod common;

use std::io::{self, Read};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use builder_core::cancel::Cancel;
use builder_core::event::{Event, Observer, Silent};
use builder_core::limits::Limits;
use builder_core::oci::{BlobDigest, Descriptor, MediaType, Reference, Sha256};
use builder_core::output::{Blobs as _, GrowingLayer, Pusher};
use builder_core::registry::{CredentialOptions, GrowingBlob, Grown, Pushed, RegistryError, RegistryOptions, Streamed};
use builder_core::store::{Growing, Store};
use common::Bench;
use fixtures::image::noise;
use fixtures::registry::{Auth, Effect, FakeRegistry, Fault};
use std::io::Write as _;

const MIB: usize = 1 << 20;

fn target(registry: &FakeRegistry, repository: &str) -> Reference {
    format!("{}/{repository}:1", registry.host()).parse().expect("a reference")
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::OciLayerGzip, BlobDigest(Sha256::of(bytes)), bytes.len() as u64)
}

/// A blob that grows by so many bytes whenever somebody waits for more.
struct Slowly<'a> {
    bytes: &'a [u8],
    by: usize,
    /// Where it ends without being whole.
    lost_at: usize,
    there: Mutex<usize>,
}

impl GrowingBlob for Slowly<'_> {
    fn wait(&self, at_least: u64) -> Grown {
        let mut there = self.there.lock().expect("no panic");
        while (*there as u64) < at_least {
            if *there >= self.lost_at {
                return Grown::Lost;
            }
            if *there == self.bytes.len() {
                let Descriptor { digest, size, .. } = descriptor(self.bytes);
                return Grown::Whole { digest, size };
            }
            *there = (*there + self.by).min(self.bytes.len());
        }
        Grown::Bytes(*there as u64)
    }

    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        let there = *self.there.lock().expect("no panic");
        Ok(Box::new(&self.bytes[usize::try_from(offset).expect("small")..there]))
    }

    fn progress(&self, sent: u64) {
        assert!(sent <= self.bytes.len() as u64);
    }
}

fn stream_with(
    bench: &Bench,
    registry: &FakeRegistry,
    bytes: &[u8],
    lost_at: usize,
) -> Result<Streamed, RegistryError> {
    let blob = Slowly { bytes, by: 3 * MIB, lost_at, there: Mutex::new(0) };
    let result = bench.sources.registry().push_growing(&target(registry, "a"), &blob, &Cancel::default());
    let there = registry.blob("a", &descriptor(bytes).digest.to_string());
    match result {
        Ok(Streamed::There(_)) => assert!(there.as_deref() == Some(bytes), "the registry has other bytes"),
        _ => assert!(there.is_none()),
    }
    result
}

fn stream(registry: &FakeRegistry, bytes: &[u8]) -> Result<Streamed, RegistryError> {
    stream_with(&Bench::new(), registry, bytes, usize::MAX)
}

fn count(registry: &FakeRegistry, method: &str, path: &str) -> usize {
    registry.log().iter().filter(|logged| logged.method == method && logged.path.contains(path)).count()
}

#[test]
fn a_blob_leaves_in_pieces_while_it_grows() {
    for (length, pieces) in [(0, 0), (1, 0), (3 * MIB, 0), (8 * MIB, 1), (20 * MIB + 5, 2)] {
        let registry = FakeRegistry::start();
        let bytes = noise(length);
        assert_eq!(stream(&registry, &bytes).expect("pushed"), Streamed::There(Pushed::Uploaded), "{length}");
        // The rest comes with the digest.
        assert_eq!(count(&registry, "PATCH", "/uploads/"), pieces, "{length}");
        assert_eq!(count(&registry, "PUT", "/uploads/"), 1, "{length}");
    }
}

#[test]
fn pieces_are_as_large_as_everybody_wants() {
    let pieces = |registry: &FakeRegistry| {
        let log = registry.log();
        log.iter().filter_map(|logged| logged.header("content-range").map(str::to_owned)).collect::<Vec<_>>()
    };
    let bytes = noise(13 * MIB);
    let registry = FakeRegistry::start();
    registry.min_chunk(10 * MIB as u64);
    stream(&registry, &bytes).expect("pushed");
    assert_eq!(pieces(&registry), [format!("0-{}", 12 * MIB - 1)]);

    let registry = FakeRegistry::start();
    let options = RegistryOptions { upload_chunk_bytes: Some(5 * MIB as u64), ..RegistryOptions::default() };
    let bench = Bench::with(CredentialOptions::default(), options);
    stream_with(&bench, &registry, &bytes, usize::MAX).expect("pushed");
    let ranges = [(0, 5), (5, 10)].map(|(from, to)| format!("{}-{}", from * MIB, to * MIB - 1));
    assert_eq!(pieces(&registry), ranges);

    // A proxy that refuses what is large gets less.
    let registry = FakeRegistry::start();
    registry.fault(Fault::always("", "/uploads/", Effect::RefuseLargerThan(2 * MIB as u64)));
    assert_eq!(stream(&registry, &bytes).expect("pushed"), Streamed::There(Pushed::Uploaded));
}

#[test]
fn a_registry_that_takes_no_pieces_is_left_alone() {
    for code in [400, 404, 405, 416] {
        let registry = FakeRegistry::start();
        registry.fault(Fault::always("PATCH", "/uploads/", Effect::status(code)));
        assert_eq!(stream(&registry, &noise(9 * MIB)).expect("an answer"), Streamed::Refused, "{code}");
        assert_eq!((count(&registry, "PATCH", "/"), count(&registry, "DELETE", "/uploads/")), (1, 1), "{code}");
    }
    let registry = FakeRegistry::start();
    registry.fault(Fault::always("POST", "/uploads/", Effect::status(403)));
    assert!(matches!(stream(&registry, &noise(9 * MIB)), Err(RegistryError::Denied { .. })));
}

#[test]
fn what_is_cut_goes_on_where_it_was() {
    let bytes = noise(30 * MIB);
    for fault in [
        Fault::once("PATCH", "/uploads/", Effect::CutUpload(2_000_000)),
        Fault::once("PATCH", "/uploads/", Effect::CutUpload(2_000_000)).after(1),
        Fault::once("PATCH", "/uploads/", Effect::retry_after(503, 0)).times(2),
        Fault::once("PUT", "/uploads/", Effect::CutUpload(5)),
        Fault::once("PUT", "/uploads/", Effect::status(400)),
        Fault::once("PUT", "/uploads/", Effect::Hangup),
    ] {
        let registry = FakeRegistry::start();
        registry.fault(fault.clone());
        assert_eq!(stream(&registry, &bytes).expect("pushed"), Streamed::There(Pushed::Uploaded), "{fault:?}");
        assert_eq!(count(&registry, "POST", "/uploads/"), 1, "{fault:?}");
    }
    // A session that is gone begins anew: all bytes can still be read.
    let registry = FakeRegistry::start();
    registry.fault(Fault::once("PATCH", "/uploads/", Effect::CutUpload(100)).after(1));
    registry.fault(Fault::once("GET", "/uploads/", Effect::status(404)));
    assert_eq!(stream(&registry, &bytes).expect("pushed"), Streamed::There(Pushed::Uploaded));
    assert_eq!(count(&registry, "POST", "/uploads/"), 2);
}

#[test]
fn tokens_that_end_on_the_way_are_renewed() {
    let auth = Auth::Bearer { login: None, identity_token: None, uses: 1, expires_in: 300 };
    let registry = FakeRegistry::with_auth(auth);
    assert_eq!(stream(&registry, &noise(40 * MIB)).expect("pushed"), Streamed::There(Pushed::Uploaded));
    assert!(count(&registry, "GET", "/token") > 3);
}

#[test]
fn what_is_there_or_never_comes_is_given_up() {
    let bytes = noise(20 * MIB);
    let registry = FakeRegistry::start();
    registry.put_blob("a", &bytes);
    assert_eq!(stream(&registry, &bytes).expect("pushed"), Streamed::There(Pushed::Existed));
    let ended = (count(&registry, "PUT", "/uploads/"), count(&registry, "DELETE", "/uploads/"));
    assert_eq!(ended, (0, 1));

    let registry = FakeRegistry::start();
    let ended = stream_with(&Bench::new(), &registry, &bytes, 12 * MIB).expect("no fault of the registry");
    assert_eq!((ended, count(&registry, "DELETE", "/uploads/")), (Streamed::Lost, 1));
}

/// A layer that is written by a test.
struct Written {
    _work: tempfile::TempDir,
    store: Store,
    bytes: Vec<u8>,
}

impl Written {
    fn new() -> Self {
        let work = tempfile::tempdir().expect("a directory");
        let store = Store::open(work.path()).expect("a store");
        Self { _work: work, store, bytes: noise(20 * MIB) }
    }

    /// Writes it in halves; `between` comes when the first is there, `sealed` when all is.
    fn write(&self, between: impl FnOnce(&Growing), sealed: impl FnOnce(&Descriptor)) {
        let mut blob = self.store.writer().expect("a blob");
        let growing = blob.follow().expect("followed");
        blob.write_all(&self.bytes[..12 * MIB]).expect("written");
        between(&growing);
        blob.write_all(&self.bytes[12 * MIB..]).expect("written");
        blob.publish(None).expect("published");
        sealed(&descriptor(&self.bytes));
    }
}

/// Says once that something has happened.
#[derive(Default)]
struct Signal(Mutex<bool>, Condvar);

impl Signal {
    fn give(&self) {
        *self.0.lock().expect("no panic") = true;
        self.1.notify_all();
    }

    fn wait(&self) {
        let guard = self.0.lock().expect("no panic");
        drop(self.1.wait_timeout_while(guard, Duration::from_secs(60), |given| !*given));
    }
}

/// Follows a layer into `registry` while another thread asks for the same blob as soon as it is known.
fn follow(registry: &FakeRegistry, observer: &dyn Observer) {
    let (written, bench, cancel) = (Written::new(), Bench::new(), Cancel::default());
    let pusher = Pusher::new(bench.sources.registry(), &written.store, Limits::default(), observer);
    let to = target(registry, "a");
    let (begun, known) = (Signal::default(), Signal::default());
    let layer = Mutex::new(None);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            begun.wait();
            let layer: std::sync::Arc<GrowingLayer> = layer.lock().expect("no panic").clone().expect("a layer");
            pusher.follow(&to, &layer, &cancel);
        });
        scope.spawn(|| {
            known.wait();
            pusher.blob(&to, &descriptor(&written.bytes), &cancel).expect("there in the end");
        });
        written.write(
            |growing| {
                *layer.lock().expect("no panic") = Some(std::sync::Arc::new(GrowingLayer::new(growing.clone())));
                begun.give();
                while count(registry, "PATCH", "/uploads/") == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            },
            |descriptor| {
                let layer = layer.lock().expect("no panic").clone().expect("a layer");
                pusher.sealed(&layer, descriptor);
                known.give();
            },
        );
    });
    let digest = descriptor(&written.bytes).digest.to_string();
    assert!(registry.blob("a", &digest).as_ref() == Some(&written.bytes));
    assert!(written.store.open(&descriptor(&written.bytes)).is_ok());
}

#[test]
fn a_layer_that_is_followed_is_sent_once() {
    /// Kinds of what is told of one push, in order, each once in a row.
    #[derive(Default)]
    struct Told(Mutex<Vec<&'static str>>);
    impl Observer for Told {
        fn event(&self, event: Event<'_>) {
            let kind = match event {
                Event::Followed { .. } => "followed",
                Event::Progress { .. } => "progress",
                _ => "another",
            };
            let mut told = self.0.lock().expect("no panic");
            if told.last() != Some(&kind) {
                told.push(kind);
            }
        }
    }

    let (registry, told) = (FakeRegistry::start(), Told::default());
    follow(&registry, &told);
    assert_eq!(*told.0.lock().expect("no panic"), ["followed", "progress"]);
    let sent = (count(&registry, "POST", "/uploads/"), count(&registry, "PUT", "/uploads/"));
    assert_eq!(sent, (1, 1), "{:?}", registry.lines());
}

#[test]
fn a_layer_whose_stream_fails_goes_the_usual_way() {
    let registry = FakeRegistry::start();
    registry.fault(Fault::always("PATCH", "/uploads/", Effect::status(405)));
    follow(&registry, &Silent);
    // With its digest, and so in one piece.
    assert_eq!((count(&registry, "POST", "/uploads/"), count(&registry, "PUT", "/uploads/")), (2, 1));
}
