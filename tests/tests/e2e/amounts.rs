//! Very many files and very large ones: memory does not feel them, and the disk takes what it may.

use super::extremes::Volume;
use super::*;

pub const TRIALS: &[Row] = &[
    ("amounts::files-in-little-memory", many_files),
    ("amounts::an-archive-on-both-sides-of-the-bound", both_sides),
    ("amounts::hard-links", hard_links),
    ("amounts::a-terabyte-of-nothing", sparse),
    ("amounts::a-budget-on-a-small-volume", small_volume),
];

/// The memory that a builder can be given and has to do with, in bytes.
const LITTLE: u64 = 64 << 20;

/// What a builder takes that is given no limit, in bytes.
const USUAL: u64 = 150 << 20;

/// Equal builds give equal digests.
const REPRODUCIBLE: [&str; 6] = [
    "--no-cache",
    "--build-arg",
    "SOURCE_DATE_EPOCH=1700000000",
    "-o",
    "type=oci,dest=image.tar,rewrite-timestamp=true",
    "--report",
];

/// Builds, and gives the digest if the memory at its peak was no more than `most`.
fn within(project: &Project<'_>, most: u64, arguments: &[&str]) -> Result<String, String> {
    let report = project.path("report.json").display().to_string();
    let digest = project.built(&[&REPRODUCIBLE[..], &[&report], arguments].concat())?;
    let peak = read_json(Path::new(&report))?["peak_anonymous_bytes"].as_u64().ok_or("no peak in the report")?;
    if peak > most {
        return Err(format!("{peak} bytes of memory with {arguments:?}, more than {most}"));
    }
    Ok(digest)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// Files of a context that nobody may hold one by one.
const FILES: usize = 100_000;

fn many_files(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nCOPY many /many\nCOPY many/d1 /again\n")?;
    for directory in 0..FILES / 1000 {
        let directory = project.path(format!("context/many/d{directory}"));
        fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
        for file in 0..1000 {
            write(&directory.join(format!("file-{file}")), b"")?;
        }
    }
    let little = LITTLE.to_string();
    let expected = within(&project, LITTLE, &["--max-memory", &little])?;
    let in_directory = within(&project, USUAL, &["--unpack", "always"])?;
    same("digest of a build in a directory", in_directory, expected)?;
    Ok(None)
}

/// Files of an archive: more than a step may know one by one in little memory, and fewer than it may otherwise.
const IN_ARCHIVE: usize = 20_000;

fn both_sides(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nADD tree.tar /tree/\n")?;
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..IN_ARCHIVE {
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        header.set_mode(0o640);
        header.set_mtime(1_500_000_000);
        let path = format!("d{}/f{number}", number % 50);
        archive.append_data(&mut header, path, &b"x"[..]).map_err(|error| error.to_string())?;
    }
    project.write("tree.tar", archive.into_inner().map_err(|error| error.to_string())?)?;
    let expected = within(&project, USUAL, &[])?;
    for (most, arguments) in [(LITTLE, ["--max-memory", "64m"]), (USUAL, ["--unpack", "always"])] {
        same(&format!("digest with {arguments:?}"), within(&project, most, &arguments)?, expected.clone())?;
    }
    Ok(None)
}

/// Names of as many files, two each, far from each other.
const PAIRS: usize = 15_000;

fn hard_links(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nCOPY linked /linked\n")?;
    for directory in ["one", "two"] {
        fs::create_dir_all(project.path("context/linked").join(directory)).map_err(|error| error.to_string())?;
    }
    for number in 0..PAIRS {
        let first = project.path(format!("context/linked/one/{number}"));
        write(&first, b"x")?;
        let second = project.path(format!("context/linked/two/{number}"));
        fs::hard_link(first, second).map_err(|error| error.to_string())?;
    }
    let expected = within(&project, LITTLE, &["--max-memory", "64m"])?;
    same("digest of a build in a directory", within(&project, USUAL, &["--unpack", "always"])?, expected)?;
    project.built(&["-o", "type=tar,dest=tree.tar"])?;
    let tree = fs::File::open(project.path("tree.tar")).map_err(|error| error.to_string())?;
    let mut links = 0;
    for entry in tar::Archive::new(tree).entries().map_err(|error| error.to_string())? {
        links += usize::from(entry.map_err(|error| error.to_string())?.header().entry_type().is_hard_link());
    }
    same("second names", links, PAIRS)?;
    Ok(None)
}

fn sparse(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nCOPY f /f\nCOPY large /large\n")?;
    project.write("f", "small")?;
    let large = fs::File::create(project.path("context/large")).map_err(|error| error.to_string())?;
    if let Err(error) = large.set_len(1 << 40) {
        return Ok(Some(format!("no file of a terabyte can be made here: {error}")));
    }
    // It is told of before anybody waits for it; what its layer takes counts, and ends the build.
    let told = ["`/large` alone has 1099511627776", "COPY large /large", "more than the 5242880"];
    let report = project.path("report.json").display().to_string();
    expect(project.build(&["--max-disk", "5m", "--max-memory", "64m", "--report", &report])?, 5, &told)?;
    let peak = read_json(Path::new(&report))?["peak_anonymous_bytes"].as_u64().ok_or("no peak in the report")?;
    if peak > LITTLE {
        return Err(format!("{peak} bytes of memory"));
    }
    // Nothing is lost.
    project.write(".dockerignore", "large\n")?;
    project.write("Dockerfile", format!("FROM {}\nCOPY f /f\nRUN cat /f\n", place.base()))?;
    project.built(&[])?;
    Ok(None)
}

/// The budget counts what a RUN writes, before the volume is full.
fn small_volume(place: &Place) -> Outcome {
    let project = place.project("FROM BASE\nRUN dd if=/dev/zero of=/large bs=1M count=400; sleep 20\n")?;
    let work = project.path("work");
    let _volume = match Volume::make(&project.path("volume"), &work, 192)? {
        Ok(volume) => volume,
        Err(reason) => return Ok(Some(reason)),
    };
    let error = ["RUN dd if=/dev/zero", "bytes are in use under the work directory, more than the 50331648"];
    expect(project.build(&["--max-disk", "48m"])?, 5, &error)?;
    // A command that fails because of it, or ends before anybody has looked, makes no difference.
    for end in ["exit 3", "true"] {
        let dockerfile = format!("FROM {}\nRUN dd if=/dev/zero of=/large bs=1M count=60; {end}\n", place.base());
        project.write("Dockerfile", dockerfile)?;
        expect(project.build(&["--max-disk", "48m"])?, 5, &error)?;
    }
    // More than the volume has is told at once.
    project.write("Dockerfile", format!("FROM {}\nRUN echo small > /small\n", place.base()))?;
    let told = ["are free on its volume"];
    expect(project.build(&["--max-disk", "1g"])?, 0, &told)?;
    Ok(None)
}
