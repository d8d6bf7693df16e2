//! Several platforms, and steps that run on another one than the builder's.

use std::fs;

use builder_core::oci::{MediaType, Platform};
use serde_json::Value;

use crate::bench::{Bench, Built};
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "two_platforms_make_an_index", items: "X-08 F-10 S-09", run: two },
    Case { name: "one_platform_makes_a_manifest", items: "X-08", run: one },
    Case { name: "an_index_on_request", items: "X-08 A-17", run: index_on_request },
    Case { name: "the_build_platform_makes_files_for_another", items: "F-10 A-01 A-04", run: cross },
    Case { name: "a_program_for_another_machine_is_a_clear_error", items: "F-10 R-12", run: foreign },
    Case { name: "a_base_for_another_platform_is_told", items: "F-09 L-14", run: wrong_base },
    Case { name: "a_platform_that_an_index_lacks", items: "F-04", run: missing },
];

fn platforms(names: &[&str]) -> Vec<Platform> {
    names.iter().map(|name| name.parse().expect("a platform")).collect()
}

/// What is built needs no program of its own platform.
const COPIES: &str = "FROM multi:1\nARG TARGETPLATFORM\nCOPY f /f\nLABEL for=$TARGETPLATFORM\n";

fn build(bench: &Bench, names: &[&str]) -> Built {
    bench.file("f", "content");
    bench.build(COPIES, |request| {
        request.platforms = platforms(names);
        request.outputs = vec![bench.output("type=oci,dest=out,tar=false")];
    })
}

fn two(bench: &Bench) -> Outcome {
    let built = build(bench, &["linux/arm64", "linux/amd64"]);
    let result = built.ok();
    assert_eq!(result.root.media_type, MediaType::OciIndex);
    let layout = bench.layout("out");
    let index = layout.root();
    let manifests = index["manifests"].as_array().expect("a list");
    let architecture = |entry: &Value| entry["platform"]["architecture"].as_str().map(str::to_owned);
    // In the order asked for.
    assert_eq!(manifests.iter().filter_map(architecture).collect::<Vec<_>>(), ["arm64", "amd64"]);
    for (entry, image) in manifests.iter().zip(&result.images) {
        assert_eq!(entry["digest"], image.digest.to_string());
        let config: Value = serde_json::from_slice(&image.config).expect("JSON");
        let name = entry["platform"]["architecture"].as_str().expect("a name");
        assert_eq!(config["architecture"], name);
        assert_eq!(config["config"]["Labels"]["for"], format!("linux/{name}"));
    }
    assert_eq!(result.images[0].layers.last(), result.images[1].layers.last(), "equal files are one layer");
    for name in ["arm64", "amd64"] {
        assert_eq!(built.step(&format!("[linux/{name} 2/2] COPY f /f")), "not built here before");
    }
    Outcome::Passed
}

fn one(bench: &Bench) -> Outcome {
    let built = build(bench, &["linux/arm64"]);
    assert_eq!(built.ok().root.media_type, MediaType::OciManifest);
    assert_eq!(built.config()["architecture"], "arm64");
    assert_eq!(bench.layout("out").root(), built.manifest());
    Outcome::Passed
}

fn index_on_request(bench: &Bench) -> Outcome {
    bench.file("f", "content");
    let built = bench.build(COPIES, |request| {
        request.plan.build_args.insert("BUILDKIT_MULTI_PLATFORM".to_owned(), "1".to_owned());
        request.outputs = vec![bench.output("type=oci,dest=out,tar=false")];
    });
    assert_eq!(built.ok().root.media_type, MediaType::OciIndex);
    assert_eq!(bench.layout("out").root()["manifests"].as_array().map(Vec::len), Some(1));
    Outcome::Passed
}

fn cross(bench: &Bench) -> Outcome {
    let dockerfile = "FROM --platform=$BUILDPLATFORM multi:1 AS build\nARG TARGETARCH BUILDARCH\n\
                      RUN echo $BUILDARCH makes $TARGETARCH > /made\nFROM multi:1\nCOPY --from=build /made /made\n";
    let built = bench.build(dockerfile, |request| {
        request.platforms = platforms(&["linux/arm64"]);
        request.plan.build_platform = Some("linux/amd64".parse().expect("a platform"));
        request.outputs = vec![bench.output("type=local,dest=files")];
    });
    assert_eq!(built.config()["architecture"], "arm64", "{}", built.summary());
    let made = fs::read_to_string(bench.path("files/made")).expect("the file that was made");
    assert_eq!(made, "amd64 makes arm64\n");
    Outcome::Passed
}

fn foreign(bench: &Bench) -> Outcome {
    let handlers = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    if handlers.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("aarch64")) {
        return Outcome::Skipped("this machine runs programs for arm64".to_owned());
    }
    let built = bench.build("FROM multi:1\nRUN echo never\n", |request| {
        request.platforms = platforms(&["linux/arm64"]);
    });
    let error = built.error();
    assert!(error.contains("exec /bin/sh: exec format error") || error.contains("Exec format error"), "{error}");
    let hint = built.hint();
    assert!(hint.contains("linux/arm64") && hint.contains("binfmt_misc"), "{hint}");
    assert_eq!(built.result.as_ref().err().and_then(|error| error.lines()).map(|lines| lines.first), Some(2));
    Outcome::Passed
}

fn wrong_base(bench: &Bench) -> Outcome {
    let built = bench.build("FROM base:1\nENV A=1\n", |request| request.platforms = platforms(&["linux/arm64"]));
    assert_eq!(built.config()["architecture"], "arm64");
    let warning = "InvalidBaseImagePlatform: Base image base:1 was pulled with platform \"linux/amd64\", expected \
                   \"linux/arm64\" for current build (line 1)";
    assert_eq!(built.warnings, [warning]);
    Outcome::Passed
}

fn missing(bench: &Bench) -> Outcome {
    let error = bench.build("FROM multi:1\n", |request| request.platforms = platforms(&["linux/s390x"])).error();
    assert!(error.contains("linux/s390x") && error.contains("multi:1"), "{error}");
    Outcome::Passed
}
