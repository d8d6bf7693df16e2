//! What is written: compression, media types, annotations, files.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use builder_core::exec::NoCache;
use builder_core::output::Target;
use fixtures::registry::{Effect, FakeRegistry, Fault, Logged};
use serde_json::{Value, json};

use crate::bench::{Bench, Built};
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "compression_of_new_layers", items: "X-07", run: compression },
    Case { name: "force_compression_takes_the_base_too", items: "X-07", run: force },
    Case { name: "a_cached_layer_is_brought_to_another_form", items: "X-07", run: cached_form },
    Case { name: "outputs_of_different_forms", items: "X-06 X-07", run: several },
    Case { name: "docker_media_types", items: "X-06", run: docker },
    Case { name: "annotations_of_one_image", items: "X-09", run: annotations },
    Case { name: "annotations_of_an_index", items: "X-09", run: index_annotations },
    Case { name: "annotations_that_have_no_place", items: "X-09", run: homeless_annotations },
    Case { name: "files_in_a_directory", items: "X-03 X-04", run: local },
    Case { name: "files_of_two_platforms", items: "X-04", run: local_split },
    Case { name: "files_in_a_tar", items: "X-05", run: tar },
    Case { name: "pushed_under_each_name", items: "X-01", run: pushed },
    Case { name: "layers_leave_before_the_build_ends", items: "X-01", run: early },
    Case { name: "pushed_layers_leave_the_work_dir", items: "X-01", run: released },
    Case { name: "a_layer_that_left_and_is_gone_is_made_again", items: "X-01 X-14", run: gone },
    Case { name: "a_layer_whose_place_is_forgotten_meanwhile_is_made_again", items: "X-01 X-14", run: forgotten },
    Case { name: "a_refusing_registry_ends_the_build_early", items: "X-01", run: refused },
];

const DOCKERFILE: &str = "FROM base:1\nCOPY f /f\n";

fn build(bench: &Bench, options: &str) -> Built {
    bench.file("f", "content");
    bench.build(DOCKERFILE, |request| {
        request.outputs = vec![bench.output(&format!("type=oci,dest=out,tar=false{options}"))];
        request.no_cache = NoCache::All;
    })
}

fn media_types(built: &Built) -> Vec<String> {
    let manifest = built.manifest();
    let layers = manifest["layers"].as_array().expect("a list");
    layers.iter().map(|layer| layer["mediaType"].as_str().expect("a type").to_owned()).collect()
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

fn compression(bench: &Bench) -> Outcome {
    let mut diff_ids = Vec::new();
    for (options, expected, head) in [
        ("", GZIP, &[0x1f, 0x8b][..]),
        (",compression=gzip,compression-level=9", GZIP, &[0x1f, 0x8b]),
        (",compression=zstd", ZSTD, &[0x28, 0xb5, 0x2f, 0xfd]),
        (",compression=uncompressed", PLAIN, b"f\0"),
    ] {
        let built = build(bench, options);
        assert_eq!(media_types(&built), [GZIP, expected], "{options}");
        let blob = bench.layout("out").blob(&built.ok().images[0].layers[1].blob.digest.to_string());
        assert!(blob.starts_with(head), "{options}");
        diff_ids.push(built.config()["rootfs"]["diff_ids"].clone());
    }
    assert!(diff_ids.windows(2).all(|pair| pair[0] == pair[1]), "{diff_ids:?}");
    Outcome::Passed
}

fn force(bench: &Bench) -> Outcome {
    for (options, expected) in [(",compression=zstd", ZSTD), (",compression=uncompressed", PLAIN)] {
        let built = build(bench, &format!("{options},force-compression=true"));
        assert_eq!(media_types(&built), [expected, expected], "{options}");
        let layout = bench.layout("out");
        for layer in &built.ok().images[0].layers {
            assert!(!layout.entries(&layer.blob).is_empty());
        }
    }
    Outcome::Passed
}

fn cached_form(bench: &Bench) -> Outcome {
    bench.file("f", "content");
    let first = bench.build(DOCKERFILE, |_| {});
    let second = bench.build(DOCKERFILE, |request| {
        request.outputs = vec![bench.output("type=oci,dest=out,tar=false,compression=zstd")];
    });
    assert_eq!(second.step("COPY f /f"), "CACHED");
    assert_eq!(
        (media_types(&first), media_types(&second)),
        (vec![GZIP.into(), GZIP.into()], vec![GZIP.into(), ZSTD.into()])
    );
    Outcome::Passed
}

/// Each output gets what it asks for, whatever stands beside it.
fn several(bench: &Bench) -> Outcome {
    bench.file("f", "content");
    let error = bench
        .build(DOCKERFILE, |request| {
            request.outputs = ["type=oci,dest=a,tar=false,compression=zstd", "type=docker,dest=b,oci-mediatypes=false"]
                .map(|text| bench.output(text))
                .to_vec();
        })
        .error();
    assert_eq!(error, "outputs cannot differ in compression: all are made from one image");
    assert!(!bench.path("a").exists() && !bench.path("b").exists());
    let both = bench.build(DOCKERFILE, |request| {
        request.outputs =
            ["type=oci,dest=a,tar=false,compression=zstd", "type=local,dest=b"].map(|text| bench.output(text)).to_vec();
    });
    assert_eq!(media_types(&both), [GZIP, ZSTD]);
    assert_eq!(fs::read(bench.path("b/f")).expect("a file"), b"content");
    Outcome::Passed
}

fn docker(bench: &Bench) -> Outcome {
    bench.file("f", "content");
    let built = bench.build(DOCKERFILE, |request| {
        request.outputs = vec![bench.output("type=image,push=true,oci-mediatypes=false")];
        request.tags = vec![format!("{}/pushed:1", bench.registry.host()).parse().expect("a reference")];
    });
    let (media_type, bytes) = bench.registry.manifest("pushed", "1").unwrap_or_else(|| panic!("{}", built.summary()));
    assert_eq!(media_type, "application/vnd.docker.distribution.manifest.v2+json");
    let manifest: Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.docker.container.image.v1+json");
    assert_eq!(media_types(&built), ["application/vnd.docker.image.rootfs.diff.tar.gzip"; 2]);
    Outcome::Passed
}

fn annotations(bench: &Bench) -> Outcome {
    let built = build(
        bench,
        ",annotation.a=plain,annotation-manifest.b=c=d,annotation[linux/amd64].e=f,annotation-manifest-descriptor.g=h",
    );
    assert_eq!(built.manifest()["annotations"], json!({"a": "plain", "b": "c=d", "e": "f"}));
    let index = bench.layout("out").index();
    assert_eq!(index["manifests"][0]["annotations"]["g"], "h", "{index}");
    Outcome::Passed
}

fn two_platforms(bench: &Bench, options: &str) -> Built {
    bench.file("f", "content");
    bench.build("FROM multi:1\nCOPY f /f\n", |request| {
        request.platforms = ["linux/amd64", "linux/arm64"].map(|name| name.parse().expect("a platform")).to_vec();
        request.outputs = vec![bench.output(&format!("type=oci,dest=out,tar=false{options}"))];
    })
}

fn index_annotations(bench: &Bench) -> Outcome {
    let built = two_platforms(
        bench,
        ",annotation.a=each,annotation[linux/arm64].b=arm,annotation-index.c=index,annotation-index-descriptor.d=entry,\
         annotation-manifest-descriptor[linux/amd64].e=amd",
    );
    let annotations =
        |bytes: &[u8]| -> Value { serde_json::from_slice::<Value>(bytes).expect("JSON")["annotations"].clone() };
    let images = &built.ok().images;
    assert_eq!(annotations(&images[0].manifest), json!({"a": "each"}));
    assert_eq!(annotations(&images[1].manifest), json!({"a": "each", "b": "arm"}));
    let layout = bench.layout("out");
    assert_eq!(layout.root()["annotations"], json!({"c": "index"}));
    assert_eq!(layout.root()["manifests"][0]["annotations"], json!({"e": "amd"}));
    assert_eq!(layout.root()["manifests"][1]["annotations"], Value::Null);
    assert_eq!(layout.index()["manifests"][0]["annotations"]["d"], "entry");
    Outcome::Passed
}

fn homeless_annotations(bench: &Bench) -> Outcome {
    for (options, message) in [
        (",annotation-index.a=b", "index annotations not supported for single platform export"),
        (",annotation-index-descriptor.a=b", "index annotations not supported for single platform export"),
        (",annotation[linux/s390x].a=b", "invalid annotation: no platform linux/s390x found in source"),
    ] {
        assert_eq!(build(bench, options).error(), message, "{options}");
    }
    let docker = |text: &str| {
        bench
            .build(DOCKERFILE, |request| {
                request.outputs = vec![bench.output(&format!("type=docker,dest=d,oci-mediatypes=false{text}"))];
            })
            .result
            .map(|result| {
                serde_json::from_slice::<Value>(&result.images[0].manifest).expect("JSON")["annotations"].clone()
            })
            .map_err(|error| error.to_string())
    };
    let message = "cannot export annotations with \"oci-mediatypes=false\"";
    assert_eq!(docker(",annotation-manifest-descriptor.a=b"), Err(message.to_owned()));
    assert_eq!(docker(",annotation.a=b"), Ok(Value::Null), "Docker's manifests have none");
    Outcome::Passed
}

const FILES: &str = "FROM scratch\nCOPY --chmod=0640 f /d/f\n";

fn local(bench: &Bench) -> Outcome {
    bench.file("f", "content");
    fs::create_dir_all(bench.path("files/d")).expect("a directory");
    fs::write(bench.path("files/stale"), "stays").expect("a file");
    bench.build(FILES, |request| request.outputs = vec![bench.output("files")]).ok();
    assert_eq!(fs::read(bench.path("files/d/f")).expect("a file"), b"content");
    assert!(bench.path("files/stale").exists());
    bench.build(FILES, |request| request.outputs = vec![bench.output("type=local,dest=files,mode=delete")]).ok();
    assert!(bench.path("files/d/f").exists() && !bench.path("files/stale").exists());
    Outcome::Passed
}

fn local_split(bench: &Bench) -> Outcome {
    bench.file("f", "content");
    bench
        .build(FILES, |request| {
            request.platforms = ["linux/amd64", "linux/arm64"].map(|name| name.parse().expect("a platform")).to_vec();
            request.outputs = vec![bench.output("type=local,dest=files")];
        })
        .ok();
    for name in ["linux_amd64", "linux_arm64"] {
        assert_eq!(fs::read(bench.path("files").join(name).join("d/f")).expect("a file"), b"content");
    }
    Outcome::Passed
}

fn tar(bench: &Bench) -> Outcome {
    bench.file("f", "content");
    bench
        .build(FILES, |request| {
            request.plan.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), "1000000000".to_owned());
            request.outputs = vec![bench.output("type=tar,dest=files.tar")];
        })
        .ok();
    let bytes = fs::read(bench.path("files.tar")).expect("a tar");
    let mut archive = tar::Archive::new(bytes.as_slice());
    let entries: Vec<_> = archive
        .entries()
        .expect("a tar")
        .map(|entry| {
            let entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
            (path, entry.header().mode().expect("a mode") & 0o777, entry.header().mtime().expect("a time"))
        })
        .filter(|(path, ..)| !path.is_empty())
        .collect();
    assert_eq!(entries, [("d".to_owned(), 0o640, 1_000_000_000), ("d/f".to_owned(), 0o640, 1_000_000_000)]);
    Outcome::Passed
}

fn pushed(bench: &Bench) -> Outcome {
    bench.file("f", "content");
    let host = bench.registry.host();
    let built = bench.build(DOCKERFILE, |request| {
        request.tags = vec![format!("{host}/app:1").parse().expect("a reference")];
        request.outputs = vec![bench.output(&format!("type=registry,\"name={host}/app:2,{host}/other:1\""))];
    });
    for (repository, tag) in [("app", "1"), ("app", "2"), ("other", "1")] {
        let (_, bytes) = bench.registry.manifest(repository, tag).unwrap_or_else(|| panic!("{repository}:{tag}"));
        assert_eq!(bytes, built.ok().images[0].manifest);
    }
    Outcome::Passed
}

/// Waits until the registry answered a request that `wanted` describes; a minute is more than any machine needs.
fn registry_saw(registry: &fixtures::registry::FakeRegistry, wanted: impl Fn(&Logged) -> bool) -> bool {
    let seen = || registry.log().iter().any(&wanted);
    (0..600).any(|_| {
        seen() || {
            std::thread::sleep(Duration::from_millis(100));
            false
        }
    })
}

fn early(bench: &Bench) -> Outcome {
    let registry = FakeRegistry::start();
    let name = format!("{}/early:1", registry.host());
    let registry = Arc::new(registry);
    let (watched, uploaded) = (Arc::clone(&registry), Arc::new(AtomicBool::new(false)));
    let noted = Arc::clone(&uploaded);
    let built = bench.build_watched(
        "FROM base:1\nRUN echo content > /first\nRUN echo waiting && echo content > /second\n",
        |request| {
            request.outputs = vec![Target::push()];
            request.tags = vec![name.parse().expect("a name")];
        },
        // While the second step runs the first one's layer arrives.
        move |line| {
            if line == "waiting" {
                noted
                    .store(registry_saw(&watched, |request| request.method == "PUT" && request.status == 201), Relaxed);
            }
        },
    );
    let built = built.ok();
    assert!(uploaded.load(Relaxed), "{:?}", registry.log());
    // Once each: two new layers, the base's and the config.
    let puts = registry.log().into_iter().filter(|request| request.method == "PUT" && request.path.contains("/blobs/"));
    assert_eq!(puts.count(), built.images[0].layers.len() + 1);
    Outcome::Passed
}

fn refused(bench: &Bench) -> Outcome {
    let registry = FakeRegistry::start();
    let host = registry.host();
    registry.fault(Fault::always("HEAD", "/v2/closed/", Effect::status(403)));
    let built = bench.build("FROM base:1\nRUN echo content > /first\nRUN sleep 3600\n", |request| {
        request.outputs = vec![Target::push()];
        request.tags = vec![format!("{host}/closed:1").parse().expect("a name")];
    });
    let error = built.result.expect_err("nobody may push there");
    assert!(error.to_string().starts_with("cannot push "), "{error}");
    Outcome::Passed
}

const TWO_STAGES: &str = "FROM base:1 AS made\nRUN echo made > /made\nFROM base:1\nCOPY f /f\nRUN echo ran > /ran\n\
                          COPY --from=made /made /made\n";

/// Digests of layers in the store of the work dir.
fn stored(bench: &Bench, layers: &[builder_core::image::ImageLayer]) -> usize {
    let there = |layer: &&builder_core::image::ImageLayer| {
        bench.path("work/blobs/sha256").join(layer.blob.digest.to_hex()).exists()
    };
    layers.iter().filter(there).count()
}

fn released(bench: &Bench) -> Outcome {
    bench.file("f", "content");
    let registry = FakeRegistry::start();
    let build = |dockerfile: &str, repository: &str, keep| {
        bench.build(dockerfile, |request| {
            request.outputs = vec![Target::push()];
            request.tags = vec![format!("{}/{repository}:1", registry.host()).parse().expect("a name")];
            request.keep_layers = keep;
        })
    };
    let first = build(TWO_STAGES, "a", false);
    let layers = &first.ok().images[0].layers;
    assert_eq!(stored(bench, &layers[1..]), 0);
    let again = build(TWO_STAGES, "a", false);
    assert!(again.steps.values().all(|state| state == "CACHED"), "{:?}", again.steps);
    assert_eq!(first.digest(), again.digest());
    // Another repository gets them from the first one.
    let log = registry.log().len();
    assert_eq!(build(TWO_STAGES, "b", false).digest(), first.digest());
    let requests = registry.log();
    let mounted = |request: &&Logged| request.query.iter().any(|(key, _)| key == "mount") && request.status == 201;
    assert!(requests[log..].iter().filter(mounted).count() >= 3, "{:?}", &requests[log..]);
    // A step more stands on the tree that is here; an archive fetches what it needs.
    let more = build(&format!("{TWO_STAGES}RUN cat /made /ran > /both\n"), "a", false);
    assert_eq!(more.steps.values().filter(|state| *state == "CACHED").count(), 4, "{:?}", more.steps);
    let archive = bench.build(TWO_STAGES, |request| {
        request.outputs = vec![bench.output("type=oci,dest=out,tar=false")];
    });
    assert_eq!(archive.digest(), first.digest());
    bench.build(TWO_STAGES, |request| {
        request.outputs = vec![Target::push()];
        request.no_cache = NoCache::All;
        request.keep_layers = true;
        request.tags = vec![format!("{}/kept:1", registry.host()).parse().expect("a name")];
    });
    let kept = build(TWO_STAGES, "a", true);
    assert_eq!(stored(bench, &kept.ok().images[0].layers[1..]), 3);
    Outcome::Passed
}

/// Another build on the volume finds that a registry lost a layer, while this one counts on it.
fn forgotten(bench: &Bench) -> Outcome {
    bench.file("f", "content");
    let registry = FakeRegistry::start();
    let first = bench.build(TWO_STAGES, |request| {
        request.outputs = vec![Target::push()];
        request.tags = vec![format!("{}/a:1", registry.host()).parse().expect("a name")];
    });
    let lost = first.ok().images[0].layers[2].blob.digest.to_string();
    let record = bench.path("work/cache/places").join(format!("{}.json", lost.trim_start_matches("sha256:")));
    assert!(record.exists(), "{}", record.display());
    let archive = bench.build_watched(
        &format!("{TWO_STAGES}RUN echo meanwhile\n"),
        |request| request.outputs = vec![bench.output("type=oci,dest=out,tar=false")],
        move |line| {
            if line == "meanwhile" && record.exists() {
                fs::remove_file(&record).expect("a record");
            }
        },
    );
    archive.ok();
    assert_eq!(archive.step("RUN echo ran > /ran"), "its result was pruned");
    Outcome::Passed
}

fn gone(bench: &Bench) -> Outcome {
    bench.file("f", "content");
    let registry = FakeRegistry::start();
    let first = bench.build(TWO_STAGES, |request| {
        request.outputs = vec![Target::push()];
        request.tags = vec![format!("{}/a:1", registry.host()).parse().expect("a name")];
    });
    let lost = first.ok().images[0].layers[2].blob.digest;
    registry.fault(Fault::always("", &format!("/v2/a/blobs/{lost}"), Effect::status(404)));
    let archive = bench.build(TWO_STAGES, |request| {
        request.outputs = vec![bench.output("type=oci,dest=out,tar=false")];
    });
    archive.ok();
    assert_eq!(archive.step("RUN echo ran > /ran"), "its result was pruned");
    assert_eq!(archive.step("COPY f /f"), "CACHED");
    Outcome::Passed
}
