//! A program that links the library and knows nothing of the binary: `builder-core/examples/build.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::process::{self, Ended};

/// Where cargo puts examples: beside the directory of this test.
fn example() -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let example = profile.join("examples/build");
    assert!(example.is_file(), "{} is not there: run `cargo build --workspace --examples` first", example.display());
    example
}

fn build(context: &Path, work_dir: &Path, archive: &Path) -> Ended {
    let mut command = Command::new(example());
    process::run(command.args([context, work_dir, archive]), Duration::from_secs(120)).expect("the example runs")
}

#[test]
fn a_program_builds_with_the_library_alone() {
    let place = tempfile::tempdir().expect("a directory");
    let context = place.path().join("context");
    fs::create_dir(&context).expect("made");
    fs::write(context.join("Dockerfile"), "FROM scratch\nWORKDIR /srv\nCOPY motd .\nENV A=b\n").expect("written");
    fs::write(context.join("motd"), "hello\n").expect("written");
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
