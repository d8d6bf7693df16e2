//! Programs that link the library and know nothing of the binary: `builder-core/examples`.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fixtures::registry::FakeRegistry;
use tests::process::{self, Ended};

/// Where cargo puts examples: beside the directory of this test.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let example = profile.join("examples").join(name);
    assert!(example.is_file(), "{} is not there: run `cargo build --workspace --examples` first", example.display());
    example
}

fn run(name: &str, arguments: &[&OsStr]) -> Ended {
    let mut command = Command::new(example(name));
    process::run(command.args(arguments), Duration::from_secs(120)).expect("the example runs")
}

fn build(context: &Path, work_dir: &Path, archive: &Path) -> Ended {
    run("build", &[context.as_os_str(), work_dir.as_os_str(), archive.as_os_str()])
}

/// A context of files.
fn context(place: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let context = place.join(name);
    fs::create_dir(&context).expect("made");
    for (name, content) in files {
        fs::write(context.join(name), content).expect("written");
    }
    context
}

#[test]
fn a_program_builds_with_the_library_alone() {
    let place = tempfile::tempdir().expect("a directory");
    let dockerfile = "FROM scratch\nWORKDIR /srv\nCOPY motd .\nENV A=b\n";
    let context = context(place.path(), "context", &[("Dockerfile", dockerfile), ("motd", "hello\n")]);
    let (work_dir, archive) = (place.path().join("work"), place.path().join("image.tar"));

    let first = build(&context, &work_dir, &archive);
    assert!(first.success(), "{}", first.how());
    let digest = first.result();
    assert!(digest.starts_with("sha256:"), "{digest}");
    let mut index = Command::new("tar");
    index.args(["-xOf".as_ref(), archive.as_os_str(), "index.json".as_ref()]);
    let index = process::output(&mut index, Duration::from_secs(60)).expect("tar reads it");
    assert!(index.contains(digest.trim()), "{index}");

    fs::remove_file(context.join("motd")).expect("removed");
    let failed = build(&context, &work_dir, &archive);
    assert!(!failed.success());
    assert!(failed.text().contains("motd"), "{}", failed.text());
}

#[test]
fn a_program_plans_and_touches_nothing() {
    let place = tempfile::tempdir().expect("a directory");
    let text =
        "ARG BASE=registry.invalid/a:1\nFROM $BASE AS one\nRUN make $BASE\nFROM scratch\nCOPY --from=one /x /y\n";
    let file = context(place.path(), "context", &[("Dockerfile", text)]).join("Dockerfile");
    let ended = run("plan", &[file.as_os_str(), "BASE=registry.invalid/b:2".as_ref()]);
    assert!(ended.success(), "{}", ended.how());
    let plan: serde_json::Value = serde_json::from_str(&ended.result()).expect("JSON");
    let titles: Vec<&str> = plan["stages"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|stage| stage["steps"].as_array().into_iter().flatten())
        .filter_map(|step| step["title"].as_str())
        .collect();
    assert_eq!(titles, ["[one 2/2] RUN make $BASE", "[stage-1 1/1] COPY --from=one /x /y"]);
    assert_eq!(plan["images"][0]["name"], "registry.invalid/b:2");

    fs::write(&file, "FROM a\nRUUN x\n").expect("written");
    let failed = run("plan", &[file.as_os_str()]);
    assert!(!failed.success() && failed.text().contains("did you mean RUN?"), "{}", failed.text());
}

#[test]
fn a_program_pushes_a_directory_as_a_layer() {
    let place = tempfile::tempdir().expect("a directory");
    let files = context(place.path(), "files", &[("motd", "hello\n"), ("other", "")]);
    let registry = FakeRegistry::start();
    let name = format!("{}/files:1", registry.host());
    let work_dir = place.path().join("work");
    let ended = run("layer", &[files.as_os_str(), work_dir.as_os_str(), name.as_ref()]);
    assert!(ended.success(), "{}", ended.how());
    let digest = ended.result().trim().rsplit_once('@').expect("NAME@DIGEST").1.to_owned();
    let (_, manifest) = registry.manifest("files", "1").expect("it was pushed");
    assert_eq!(registry.manifest("files", &digest).map(|(_, manifest)| manifest), Some(manifest.clone()));
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(1));
    let layer = manifest["layers"][0]["digest"].as_str().expect("a digest");
    let blob = registry.blob("files", layer).expect("it was pushed");
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&blob[..]));
    let entries = tar.entries().expect("a tar").map(|entry| {
        let entry = entry.expect("an entry");
        (entry.path().expect("a path").display().to_string(), entry.header().uid().expect("an owner"))
    });
    assert_eq!(entries.collect::<Vec<_>>(), [("motd".to_owned(), 0), ("other".to_owned(), 0)]);
}

#[test]
fn a_program_builds_several_at_once_and_one_failure_ends_all() {
    let place = tempfile::tempdir().expect("a directory");
    let good = context(place.path(), "good", &[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "f")]);
    let also = context(place.path(), "also", &[("Dockerfile", "FROM scratch\nCOPY f /g\n"), ("f", "f")]);
    let bad = context(place.path(), "bad", &[("Dockerfile", "FROM scratch\nCOPY nothing /\n")]);
    let work_dir = place.path().join("work");
    let pair = |context: &Path| format!("{}={}", context.display(), context.with_extension("tar").display());
    let (good, also, bad) = (pair(&good), pair(&also), pair(&bad));
    let built = run("several", &[work_dir.as_os_str(), good.as_ref(), also.as_ref()]);
    assert!(built.success(), "{}", built.how());
    assert_eq!(built.result().lines().filter(|line| line.contains(": sha256:")).count(), 2, "{}", built.result());
    let failed = run("several", &[work_dir.as_os_str(), bad.as_ref(), also.as_ref()]);
    assert!(!failed.success() && failed.text().contains("/nothing"), "{}", failed.text());
}
