//! Registries that lie, stop in the middle, refuse and redirect: each fault ends in the right result or in a typed error, and
//! the store shows nothing that is not whole.

mod common;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::time::Duration;

use builder_core::cancel::Cancel;
use builder_core::http::{self, ClientOptions, HttpError, ProxyOptions, Request, Url};
use builder_core::oci::{BlobDigest, Platform, Sha256};
use builder_core::registry::{Credential, CredentialOptions, RegistryError, RegistryOptions};
use builder_core::source::{Keep, ResolvedImage, SourceError};
use common::{Bench, causes, registry_error};
use fixtures::image::{self, Image, noise};
use fixtures::registry::{Auth, Effect, FakeRegistry, Fault};
use serde_json::json;

const PLATFORM: &str = "linux/amd64";

fn platform() -> Platform {
    PLATFORM.parse().expect("a platform")
}

fn pull(bench: &Bench, name: &str) -> Result<(ResolvedImage, Vec<Vec<u8>>), SourceError> {
    let cancel = Cancel::default();
    let image = bench.sources.resolve(name, &platform(), &cancel)?;
    let mut blobs = Vec::new();
    for layer in &image.layers {
        let mut bytes = Vec::new();
        let mut stream = bench.sources.open_blob(&image, &layer.blob, Keep::InStore, &cancel)?;
        stream.read_to_end(&mut bytes).map_err(|error| match error.downcast::<RegistryError>() {
            Ok(error) => SourceError::Registry(error),
            Err(error) => panic!("an untyped error: {error}"),
        })?;
        blobs.push(bytes);
    }
    Ok(((*image).clone(), blobs))
}

/// Puts an image whose layer has about `bytes` bytes, sets a fault, and pulls.
fn pull_with(fault: &Fault, bytes: usize) -> (FakeRegistry, Bench, Image, Result<Vec<Vec<u8>>, SourceError>) {
    let registry = FakeRegistry::start();
    let image = Image::new(PLATFORM, vec![image::layer(&[("f", &noise(bytes))])], json!({}));
    registry.put_image("a/b", "1", &image);
    registry.fault(fault.clone());
    let bench = Bench::new();
    let pulled = pull(&bench, &format!("{}/a/b:1", registry.host())).map(|(_, blobs)| blobs);
    bench.assert_whole();
    (registry, bench, image, pulled)
}

/// The image must come whole in spite of the fault.
#[track_caller]
fn check_heals(fault: Fault) -> FakeRegistry {
    let (registry, _, image, pulled) = pull_with(&fault, 3 << 20);
    let blobs = pulled.unwrap_or_else(|error| panic!("{fault:?}: {}", causes(&error)));
    assert!(blobs == [image.layers[0].blob.clone()], "{fault:?} changed the layer");
    registry
}

/// The pull must fail with an error that `is_right` accepts, and leave no layer.
#[track_caller]
fn check_fails(fault: Fault, is_right: impl Fn(&RegistryError) -> bool) -> FakeRegistry {
    let (registry, bench, image, pulled) = pull_with(&fault, 100_000);
    let error = pulled.expect_err("the fault must be seen");
    assert!(is_right(registry_error(&error)), "{fault:?}: {error:?}");
    assert!(!bench.has(&image.layers[0].blob), "{fault:?} left a layer in the store");
    registry
}

#[test]
fn temporary_answers_are_tried_again() {
    for code in [429, 503, 500, 502] {
        check_heals(Fault::once("GET", "/manifests/1", Effect::retry_after(code, 0)));
        check_heals(Fault::once("GET", "/blobs/", Effect::status(code)).times(2));
    }
    check_heals(Fault::once("GET", "/manifests/1", Effect::Hangup));
    check_heals(Fault::once("GET", "/blobs/", Effect::Hangup).after(1));
}

#[test]
fn odd_answers_are_understood() {
    let header = |name: &str, value: &str| Effect::Header { name: name.to_owned(), value: value.to_owned() };
    let encoded = header("Content-Encoding", "gzip");
    for effect in
        [Effect::Gzip, Effect::Chunked, encoded, header("Docker-Content-Digest", ""), header("Content-Type", "")]
    {
        check_heals(Fault::always("GET", "/manifests/1", effect));
    }
    for effect in [Effect::Chunked, header("Content-Type", "text/html"), header("Accept-Ranges", "none")] {
        check_heals(Fault::always("GET", "/blobs/", effect));
    }
    let registry = FakeRegistry::start();
    let name = format!("{}/a/b:1", registry.host()).parse().expect("a reference");
    let image = Image::new(PLATFORM, vec![image::layer(&[("f", b"")])], json!({}));
    let digest = registry.put_image("a/b", "1", &image);
    for code in [405, 501] {
        registry.clear_faults();
        registry.fault(Fault::always("HEAD", "", Effect::status(code)));
        let found = Bench::new().sources.registry().manifest_digest(&name, &Cancel::default());
        assert_eq!(found.expect("GET serves").expect("it is there").to_string(), digest, "{code}");
    }
}

#[test]
fn answers_that_stay_bad_become_errors() {
    let refused = |code: u16, tries: u32| move |error: &RegistryError| matches!(error, RegistryError::Refused { status, attempts, .. } if (*status, *attempts) == (code, tries));
    check_fails(Fault::always("GET", "/manifests/1", Effect::status(503)), refused(503, 4));
    let registry = check_fails(Fault::always("GET", "/manifests/1", Effect::retry_after(429, 0)), refused(429, 4));
    assert_eq!(registry.lines().len(), 4);
    // A pause that nobody would wait for makes the answer final.
    let long = Effect::retry_after(429, 86_400);
    let registry = check_fails(Fault::always("GET", "/manifests/1", long), refused(429, 1));
    assert_eq!(registry.lines().len(), 1);
    check_fails(Fault::always("GET", "/blobs/", Effect::Hangup), |error| {
        matches!(error, RegistryError::Http { source: HttpError::Unreachable { attempts: 4, .. }, .. })
    });
}

#[test]
fn cut_bodies_are_resumed() {
    let cut = |after| Fault::once("GET", "/blobs/", Effect::CutBody(after)).after(1);
    for after in [0, 1, 70_000, 3 << 20] {
        let registry = check_heals(cut(after));
        let ranges = registry.log().iter().filter(|logged| logged.header("range").is_some()).count();
        assert_eq!(ranges, usize::from(after > 0), "{after}");
    }
    check_heals(cut(500_000).times(3));
    check_heals(Fault::once("GET", "/manifests/1", Effect::CutBody(20)));
    check_heals(Fault::once("GET", "/blobs/", Effect::Chunked).times(5));
}

#[test]
fn a_body_that_is_always_cut_is_an_error() {
    check_fails(Fault::always("GET", "/blobs/", Effect::CutBody(10)).after(1), |error| {
        matches!(error, RegistryError::Http { source: HttpError::Truncated { .. }, .. })
    });
    check_fails(Fault::always("GET", "/manifests/1", Effect::CutBody(10)), |error| {
        let RegistryError::Http { source, .. } = error else { return false };
        matches!(source, HttpError::Truncated { expected: Some(_), received: 10, .. })
    });
}

#[test]
fn wrong_bytes_are_errors_that_name_both_digests() {
    let length = image::layer(&[("f", &noise(100_000))]).blob.len();
    let other = vec![b'x'; length];
    let came = BlobDigest(Sha256::of(&other));
    check_fails(Fault::always("GET", "/blobs/", Effect::Body(other)).after(1), |error| {
        let RegistryError::WrongDigest { what: "blob", actual, bytes, .. } = error else { return false };
        *actual == came && *bytes == length as u64
    });
    for wrong in [length - 1, length + 1] {
        check_fails(
            Fault::always("GET", "/blobs/", Effect::Body(vec![b'x'; wrong])).after(1),
            |error| matches!(error, RegistryError::WrongSize { actual, .. } if *actual == wrong as u64),
        );
    }
    let endless = Effect::Spaces { count: 1 << 30, announced: false };
    let registry = check_fails(Fault::always("GET", "/blobs/", endless).after(1), |error| {
        matches!(error, RegistryError::WrongSize { .. })
    });
    common::eventually(|| registry.log().iter().all(|logged| logged.sent > 0));
    assert!(registry.log().iter().all(|logged| logged.sent < 1 << 29), "the whole body was read");
}

#[test]
fn manifests_are_checked_against_header_and_name() {
    let header = |value: &str| {
        let effect = Effect::Header { name: "Docker-Content-Digest".to_owned(), value: value.to_owned() };
        Fault::always("GET", "/manifests/1", effect)
    };
    let wrong = format!("sha256:{}", "0".repeat(64));
    check_fails(
        header(&wrong),
        |error| matches!(error, RegistryError::WrongDigestHeader { announced, .. } if *announced == wrong),
    );
    check_heals(header(""));

    let registry = FakeRegistry::start();
    let digest = registry.put_image("a", "1", &Image::small("x"));
    registry.fault(Fault::always("GET", "/manifests/", Effect::Body(Image::small("y").manifest)));
    let error = pull(&Bench::new(), &format!("{}/a@{digest}", registry.host())).expect_err("pinned to other bytes");
    match registry_error(&error) {
        RegistryError::WrongDigest { what: "manifest", expected, .. } => assert_eq!(expected.to_string(), digest),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_manifest_of_100_mib_is_refused_unread() {
    for announced in [true, false] {
        let spaces = Effect::Spaces { count: 100 << 20, announced };
        let registry = check_fails(Fault::always("GET", "/manifests/1", spaces), |error| {
            matches!(error, RegistryError::TooLarge { what: "manifest", limit: 4_194_304, .. })
        });
        common::eventually(|| registry.log().iter().all(|logged| logged.sent > 0));
        assert!(registry.log().iter().all(|logged| logged.sent < 50 << 20), "the whole body was read");
    }
    // A config whose descriptor announces too much is not even asked for.
    let registry = FakeRegistry::start();
    let mut document: serde_json::Value = serde_json::from_slice(&Image::small("x").manifest).expect("JSON");
    document["config"]["size"] = (100_u64 << 20).into();
    registry.put_manifest("a", "1", image::MANIFEST, document.to_string().as_bytes());
    let error = pull(&Bench::new(), &format!("{}/a:1", registry.host())).expect_err("too large");
    assert!(matches!(registry_error(&error), RegistryError::TooLarge { what: "config", .. }), "{error:?}");
    assert_eq!(registry.lines().len(), 1);
}

/// An index of one index.
fn index_of_index(platform: &str, inner: &[u8]) -> Vec<u8> {
    let mut document: serde_json::Value =
        serde_json::from_slice(&image::index(&[(platform, inner)])).expect("an index is JSON");
    document["manifests"][0]["mediaType"] = image::INDEX.into();
    document.to_string().into_bytes()
}

#[test]
fn indexes_that_list_themselves_or_nest_end() {
    let registry = FakeRegistry::start();
    let image = Image::small("x");
    registry.put_image("a", "", &image);
    let index = index_of_index(PLATFORM, &image.manifest);
    registry.put_manifest("a", "self", image::INDEX, &index);
    // No bytes can hold their own digest, so a registry that plays this must lie.
    registry.fault(Fault::always("GET", "/manifests/sha256:", Effect::Body(index)));
    let error = pull(&Bench::new(), &format!("{}/a:self", registry.host())).expect_err("a lie");
    assert!(matches!(registry_error(&error), RegistryError::WrongDigest { .. }), "{error:?}");

    let registry = FakeRegistry::start();
    let image = Image::small("x");
    registry.put_image("a", "", &image);
    let mut bytes = image::index(&[("", &image.manifest)]);
    for level in 0..6 {
        registry.put_manifest("a", &level.to_string(), image::INDEX, &bytes);
        bytes = index_of_index("", &bytes);
    }
    let bench = Bench::new();
    pull(&bench, &format!("{}/a:1", registry.host())).expect("two levels are fine");
    let error = pull(&bench, &format!("{}/a:5", registry.host())).expect_err("too deep");
    assert!(matches!(error, SourceError::NestedIndex { .. }), "{error:?}");
}

#[test]
fn the_platform_chooses_and_its_absence_is_told() {
    let registry = FakeRegistry::start();
    let images = ["linux/arm64", "linux/amd64"].map(|platform| {
        let image = Image::new(platform, vec![image::layer(&[("f", platform.as_bytes())])], json!({}));
        registry.put_image("a", "", &image);
        (platform, image)
    });
    let index = image::index(&images.each_ref().map(|(platform, image)| (*platform, image.manifest.as_slice())));
    let top = registry.put_manifest("a", "1", image::INDEX, &index);
    let bench = Bench::new();
    let name = format!("{}/a:1", registry.host());
    let (found, _) = pull(&bench, &name).expect("amd64 is there");
    assert_eq!(found.digest.to_string(), top);
    assert_eq!(found.manifest_digest.to_string(), images[1].1.digest());
    assert_eq!(found.config.platform(), platform());
    let other = "linux/s390x".parse().expect("a platform");
    let error = bench.sources.resolve(&name, &other, &Cancel::default()).expect_err("not there");
    let SourceError::NoPlatform { available, .. } = &error else { panic!("{error:?}") };
    assert_eq!(available.iter().map(ToString::to_string).collect::<Vec<_>>(), ["linux/amd64", "linux/arm64"]);
    assert_eq!(registry.lines().iter().filter(|line| line.ends_with("/manifests/1")).count(), 1);
}

#[test]
fn credentials_do_not_follow_redirects() {
    let elsewhere = FakeRegistry::start();
    let registry = FakeRegistry::with_auth(Auth::basic("me", "hunter2"));
    let image = Image::small("x");
    let digest = image::digest(&image.layers[0].blob);
    registry.put_image("a", "1", &image);
    elsewhere.put_blob("a", &image.layers[0].blob);
    let to = format!("http://{}/v2/a/blobs/{digest}?X-Signature=s", elsewhere.host());
    registry.fault(Fault::always("GET", &digest, Effect::Redirect(to)));
    let bench = Bench::with_login(&registry, "me", "hunter2");
    let (_, blobs) = pull(&bench, &format!("{}/a:1", registry.host())).expect("it follows");
    assert_eq!(blobs, [image.layers[0].blob.clone()]);
    let asked: Vec<_> = registry.log().into_iter().filter(|logged| logged.path.contains(&digest)).collect();
    assert!(asked.iter().all(|logged| logged.header("authorization").is_some()), "the registry itself gets them");
    let followed = elsewhere.log();
    assert_eq!(followed.len(), 1);
    assert_eq!(followed[0].header("authorization"), None);
}

#[test]
fn redirects_in_a_loop_are_an_error() {
    let registry = FakeRegistry::start();
    let image = Image::small("x");
    registry.put_image("a", "1", &image);
    let digest = image::digest(&image.config);
    let to = format!("http://{}/v2/a/blobs/{digest}", registry.host());
    registry.fault(Fault::always("GET", &digest, Effect::Redirect(to)));
    let error = pull(&Bench::new(), &format!("{}/a:1", registry.host())).expect_err("a loop");
    let RegistryError::Http { source, .. } = registry_error(&error) else { panic!("{error:?}") };
    assert!(matches!(source, HttpError::RedirectLoop { .. }), "{error:?}");
}

#[test]
fn a_layer_that_inflates_without_end_leaves_nothing() {
    let layer = image::inflating_layer(16);
    let registry = FakeRegistry::start();
    let bomb = Image::new(PLATFORM, vec![layer], json!({}));
    registry.put_image("a", "1", &bomb);
    let bench = Bench::new();
    let cancel = Cancel::default();
    let name = format!("{}/a:1", registry.host());
    let image = bench.sources.resolve(&name, &platform(), &cancel).expect("it resolves");
    let stream = bench.sources.open_blob(&image, &image.layers[0].blob, Keep::InStore, &cancel).expect("it opens");
    // A reader with a budget stops, and what was kept so far is gone.
    let mut budget = flate2::read::MultiGzDecoder::new(stream).take(256 << 20);
    let inflated = std::io::copy(&mut budget, &mut std::io::sink()).expect("it inflates");
    assert_eq!(inflated, 256 << 20);
    drop(budget);
    bench.assert_whole();
    assert!(!bench.has(&bomb.layers[0].blob));
}

#[test]
fn tokens_are_scoped_and_renewed_in_mid_build() {
    let auth = |uses, expires_in| Auth::Bearer { login: None, identity_token: None, uses, expires_in };
    let layers = (0..5).map(|n| image::layer(&[("f", format!("{n}").as_bytes())])).collect();
    let image = Image::new(PLATFORM, layers, json!({}));
    // Manifest, config and five layers: with two requests a token that is four tokens. One that says it is over at once is
    // not used for a second request.
    for (auth, expected) in [(auth(2, 300), 4), (auth(9, 0), 7), (auth(9, 300), 1)] {
        let registry = FakeRegistry::with_auth(auth.clone());
        registry.put_image("a/b", "1", &image);
        let (_, blobs) = pull(&Bench::new(), &format!("{}/a/b:1", registry.host())).expect("pulled");
        assert_eq!(blobs.len(), 5);
        let tokens: Vec<_> = registry.log().into_iter().filter(|logged| logged.path == "/token").collect();
        assert_eq!(tokens.len(), expected, "{auth:?}");
        for token in tokens {
            let has = |key: &str, value: &str| token.query.contains(&(key.to_owned(), value.to_owned()));
            assert!(has("scope", "repository:a/b:pull") && has("service", "fixture"), "{token:?}");
        }
    }
}

#[test]
fn wrong_and_missing_credentials_are_told_apart() {
    for auth in [Auth::basic("me", "hunter2"), Auth::tokens("me", "hunter2")] {
        let registry = FakeRegistry::with_auth(auth.clone());
        registry.put_image("a", "1", &Image::small("x"));
        let name = format!("{}/a:1", registry.host());
        pull(&Bench::with_login(&registry, "me", "hunter2"), &name).expect("the right login");
        let error = pull(&Bench::new(), &name).expect_err("no login");
        let is_right = matches!(registry_error(&error), RegistryError::Unauthorized { identity: None, .. });
        assert!(is_right, "{auth:?}: {error:?}");
        let error = pull(&Bench::with_login(&registry, "me", "wrong-password"), &name).expect_err("a wrong login");
        match registry_error(&error) {
            RegistryError::Unauthorized { identity: Some(identity), .. } => assert!(identity.contains("`me`")),
            other => panic!("{auth:?}: {other:?}"),
        }
        assert!(!format!("{error:?} {}", causes(&error)).contains("wrong-password"));
    }
}

#[test]
fn identity_tokens_are_exchanged() {
    let auth = Auth::Bearer {
        login: Some(("nobody".to_owned(), "x".to_owned())),
        identity_token: Some("refresh me".to_owned()),
        uses: 100,
        expires_in: 300,
    };
    let registry = FakeRegistry::with_auth(auth);
    registry.put_image("a", "1", &Image::small("x"));
    let given = vec![(registry.host(), Credential::IdentityToken(http::Secret::new("refresh me")))];
    let bench = Bench::with(CredentialOptions { given, ..CredentialOptions::default() }, RegistryOptions::default());
    pull(&bench, &format!("{}/a:1", registry.host())).expect("pulled");
    assert!(registry.lines().contains(&"POST /token".to_owned()));
}

#[test]
fn unknown_images_say_so_as_buildkit_does() {
    let registry = FakeRegistry::start();
    let bench = Bench::mapped_to(&registry);
    let error = pull(&bench, "conformance-no-such-image:1").expect_err("it is not there");
    assert!(error.is_not_found());
    let text = "failed to resolve source metadata for docker.io/library/conformance-no-such-image:1: \
                docker.io/library/conformance-no-such-image:1: not found";
    assert_eq!(causes(&error), text);
    assert_eq!(registry.lines(), ["GET /v2/library/conformance-no-such-image/manifests/1"]);
}

#[test]
fn a_map_replaces_and_a_mirror_precedes() {
    let own = FakeRegistry::start();
    let mirror = FakeRegistry::start();
    own.put_image("a", "own", &Image::small("x"));
    mirror.put_image("cache/a", "mirrored", &Image::small("y"));
    let target = format!("{}/cache", mirror.host());
    let bench = Bench::with_map(&own.host(), &target, true);
    pull(&bench, &format!("{}/a:mirrored", own.host())).expect("from the mirror");
    assert!(own.log().is_empty(), "blobs come from where the manifest was found");
    pull(&bench, &format!("{}/a:own", own.host())).expect("from its own registry");
    let bench = Bench::with_map(&own.host(), &target, false);
    own.clear_log();
    let error = pull(&bench, &format!("{}/a:own", own.host())).expect_err("no fallback");
    assert!(error.is_not_found());
    assert!(own.log().is_empty());
}

#[test]
fn names_are_resolved_once_and_pinned_ones_from_the_store() {
    let registry = FakeRegistry::start();
    let digest = registry.put_image("a", "1", &Image::small("x"));
    let bench = Bench::new();
    let name = format!("{}/a:1", registry.host());
    let (first, _) = pull(&bench, &name).expect("pulled");
    assert_eq!(first.pinned, format!("{name}@{digest}"));
    registry.put_image("a", "1", &Image::small("y"));
    let (second, _) = pull(&bench, &name).expect("pulled");
    assert_eq!(first, second);
    registry.clear_log();
    // Another build over the same store: the pinned name needs nobody.
    pull(&bench.again(), &first.pinned).expect("all of it is here");
    assert!(registry.log().is_empty(), "{:?}", registry.lines());
}

#[test]
fn threads_that_ask_at_once_share_one_answer() {
    let registry = FakeRegistry::with_auth(Auth::anonymous_tokens());
    registry.put_image("a", "1", &Image::small("x"));
    let bench = Bench::new();
    let name = format!("{}/a:1", registry.host());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| pull(&bench, &name).expect("pulled"));
        }
    });
    let count = |needle: &str| registry.lines().iter().filter(|line| line.contains(needle)).count();
    assert_eq!((count("/manifests/"), count("/token")), (1, 1));
}

#[test]
fn scopes_that_only_the_challenge_knows_are_asked_for() {
    let registry = FakeRegistry::with_auth(Auth::anonymous_tokens());
    registry.put_image("a", "1", &Image::small("x"));
    let challenge =
        format!("Bearer realm=\"http://{}/token\",service=\"s\",scope=\"repository:remote/a:pull\"", registry.host());
    let effect =
        Effect::Status { code: 401, headers: vec![("WWW-Authenticate".to_owned(), challenge)], body: String::new() };
    registry.fault(Fault::once("GET", "/manifests/", effect));
    pull(&Bench::new(), &format!("{}/a:1", registry.host())).expect("pulled");
    let asked: Vec<_> =
        registry.log().into_iter().filter(|logged| logged.path == "/token").flat_map(|l| l.query).collect();
    for scope in ["repository:a:pull", "repository:remote/a:pull"] {
        assert!(asked.contains(&("scope".to_owned(), scope.to_owned())), "{asked:?}");
    }
}

#[test]
fn proxies_are_used_except_where_they_must_not() {
    let registry = FakeRegistry::start();
    registry.put_image("a", "1", &Image::small("x"));
    let proxy = format!("http://user:hunter2@{}", registry.host());
    let bench = |no_proxy: &str| {
        let proxies =
            ProxyOptions { http: Some(proxy.clone()), https: Some(proxy.clone()), no_proxy: no_proxy.to_owned() };
        let client = ClientOptions { proxies, ..common::quick() };
        let insecure = BTreeSet::from(["registry.invalid".to_owned()]);
        let options = RegistryOptions { insecure, ..RegistryOptions::default() };
        Bench::build(client, CredentialOptions::default(), options)
    };
    pull(&bench(""), "registry.invalid/a:1").expect("through the proxy, in the clear after TLS failed");
    let through = registry.log();
    assert!(through.iter().any(|logged| logged.method == "CONNECT"), "{:?}", registry.lines());
    let plain = through.iter().filter(|logged| logged.method == "GET");
    assert!(plain.clone().count() > 0);
    for logged in plain {
        assert_eq!(logged.header("host"), Some("registry.invalid"));
        assert!(logged.header("proxy-authorization").is_some());
    }
    registry.clear_log();
    for no_proxy in ["registry.invalid", ".invalid", "*"] {
        let error = pull(&bench(no_proxy), "registry.invalid/a:1").expect_err("nobody has that name");
        assert!(!format!("{error:?}").contains("hunter2"));
        assert!(registry.log().is_empty(), "{no_proxy}: {:?}", registry.lines());
    }
    pull(&bench(""), &format!("{}/a:1", registry.host())).expect("loopback is asked directly");
    assert!(registry.log().iter().all(|logged| logged.header("proxy-authorization").is_none()));
}

#[test]
fn a_registry_that_is_down_is_named() {
    let host = FakeRegistry::start().host();
    let error = pull(&Bench::new(), &format!("{host}/a:1")).expect_err("nobody listens");
    match registry_error(&error) {
        RegistryError::Http { registry, source: HttpError::Unreachable { attempts: 4, .. } } => {
            assert_eq!(*registry, host);
        }
        other => panic!("{other:?}"),
    }
    assert!(causes(&error).contains("onnection refused"), "{}", causes(&error));
}

#[test]
fn silence_ends_by_limit_or_by_cancel() {
    let registry = FakeRegistry::start();
    registry.put_image("a", "1", &Image::small("x"));
    registry.fault(Fault::always("GET", "/manifests/", Effect::Silence));
    let name = format!("{}/a:1", registry.host());
    let error = pull(&Bench::with_stall(Duration::from_millis(200)), &name).expect_err("silence");
    let RegistryError::Http { source, .. } = registry_error(&error) else { panic!("{error:?}") };
    assert!(matches!(source, HttpError::Stalled { .. }), "{error:?}");

    let bench = Bench::new();
    let cancel = Cancel::default();
    registry.clear_log();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            common::eventually(|| registry.lines().len() == 1);
            cancel.cancel();
        });
        let error = bench.sources.resolve(&name, &platform(), &cancel).expect_err("cancelled");
        assert!(matches!(error, SourceError::Cancelled), "{error:?}");
    });
}

#[test]
fn slow_bodies_are_not_silence() {
    let registry = FakeRegistry::start();
    registry.put_image("a", "1", &Image::new(PLATFORM, vec![image::layer(&[("f", &noise(100_000))])], json!({})));
    let slow = Effect::Slow { piece: 1000, pause: Duration::from_millis(25) };
    registry.fault(Fault::always("GET", "/blobs/", slow).after(1));
    // In all it takes longer than the limit on silence.
    let bench = Bench::with_stall(Duration::from_secs(2));
    pull(&bench, &format!("{}/a:1", registry.host())).expect("pulled");
}

#[test]
fn bodies_are_limited_for_everybody() {
    let registry = FakeRegistry::start();
    registry.fault(Fault::always("GET", "/file", Effect::Spaces { count: 1 << 20, announced: false }));
    let client = http::Client::new(common::quick());
    let get = |limit| {
        let url = Url::parse(&format!("http://{}/file", registry.host())).expect("a URL");
        client.send(Request::get(url), &Cancel::default()).expect("an answer").into_bytes(limit)
    };
    assert_eq!(get(1 << 20).expect("just enough").len(), 1 << 20);
    assert!(matches!(get((1 << 20) - 1), Err(HttpError::TooLarge { .. })));
}
