//! Inputs that are made to take for ever, or all there is: each is bounded, and an error names its line.

use super::*;

pub const TRIALS: &[Row] = &[
    ("bounds::a-bomb [C-55]", bomb),
    ("bounds::an-archive-with-devices [C-55]", devices),
    ("bounds::patterns-that-would-backtrack [C-07 D-04]", patterns),
    ("bounds::a-context-of-a-million-files [D-04 D-08]", million),
];

/// What a bomb becomes, in bytes, of 20 KiB.
const BOMB_BYTES: u64 = 512 << 20;

/// What the work directory may take: far less than the bomb.
const BUDGET_BYTES: u64 = 64 << 20;

/// What may be needed of memory while it goes off, in bytes: constant, and that in an unoptimised build.
const BOMB_MEMORY_BYTES: u64 = 150 << 20;

fn header(path: &str, kind: tar::EntryType, size: u64) -> Result<tar::Header, String> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).map_err(|error| error.to_string())?;
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_mtime(1_500_000_000);
    header.set_cksum();
    Ok(header)
}

fn bomb(place: &Place) -> Outcome {
    let project = place.project("FROM scratch\n\nADD bomb.tar.zst /\n")?;
    let mut packed = zstd::Encoder::new(Vec::new(), 1).map_err(|error| error.to_string())?;
    let mut put = |bytes: &[u8]| std::io::Write::write_all(&mut packed, bytes).map_err(|error| error.to_string());
    put(header("zeros", tar::EntryType::Regular, BOMB_BYTES)?.as_bytes())?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..BOMB_BYTES >> 20 {
        put(&zeros)?;
    }
    put(&[0; 1024])?;
    let packed = packed.finish().map_err(|error| error.to_string())?;
    same("a small file", packed.len() < 1 << 20, true)?;
    project.write("bomb.tar.zst", &packed)?;
    let budget = BUDGET_BYTES.to_string();
    let report = project.path("report.json");
    let refused = project.build(&["--max-disk", &budget, "--report", &report.display().to_string()])?;
    if refused.success() {
        // Where nothing has to lie on the disk, the layer alone is made, and that is as small as the archive.
        let report = read_json(&report)?;
        let used = report["peak_disk_bytes"].as_u64().ok_or("no peak in the report")?;
        same("less than the budget on the disk", used <= BUDGET_BYTES, true)?;
    } else {
        expect(refused, 5, &["are in use under the work directory", "   3 | >>> ADD", "--max-disk"])?;
    }
    // With room enough the result is right, in the memory that any file needs.
    project.built(&["-o", "type=oci,tar=false,dest=layout", "--report", &report.display().to_string()])?;
    let memory = read_json(&report)?["peak_anonymous_bytes"].as_u64().ok_or("no peak in the report")?;
    same("little memory", memory < BOMB_MEMORY_BYTES, true).map_err(|error| format!("{error}: {memory} bytes"))?;
    Ok(None)
}

fn devices(place: &Place) -> Outcome {
    let project = place.project("FROM scratch\nADD nodes.tar /\n")?;
    let mut archive = tar::Builder::new(Vec::new());
    for (path, kind, major, minor) in [
        ("disk", tar::EntryType::Block, 8, 0),
        ("null", tar::EntryType::Char, 1, 3),
        ("pipe", tar::EntryType::Fifo, 0, 0),
    ] {
        let mut header = header(path, kind, 0)?;
        header
            .set_device_major(major)
            .and_then(|()| header.set_device_minor(minor))
            .map_err(|error| error.to_string())?;
        header.set_cksum();
        archive.append(&header, std::io::empty()).map_err(|error| error.to_string())?;
    }
    project.write("nodes.tar", archive.into_inner().map_err(|error| error.to_string())?)?;
    project.built(&["-o", "type=tar,dest=tree.tar"])?;
    let tree = fs::File::open(project.path("tree.tar")).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for entry in tar::Archive::new(tree).entries().map_err(|error| error.to_string())? {
        let entry = entry.map_err(|error| error.to_string())?;
        let header = entry.header();
        let number = |number: std::io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
        let path = entry.path().map_err(|error| error.to_string())?.display().to_string();
        let numbers = (number(header.device_major()), number(header.device_minor()));
        found.push((path, header.entry_type(), numbers));
    }
    // They are in the image as in the archive; nothing of this machine was opened for it.
    let expected = [
        ("disk".to_owned(), tar::EntryType::Block, (8, 0)),
        ("null".to_owned(), tar::EntryType::Char, (1, 3)),
        ("pipe".to_owned(), tar::EntryType::Fifo, (0, 0)),
    ];
    same("nodes", found, expected.to_vec())?;
    Ok(None)
}

fn patterns(place: &Place) -> Outcome {
    // With backtracking each of them takes longer than anybody waits.
    let evil = |unit: &str| format!("{}b", unit.repeat(60));
    let name = "a".repeat(200);
    let project = place.project(&format!(
        "FROM scratch\nARG V={name}\nENV W=${{V##{stars}}} X=${{V//{stars}/x}}\nCOPY {stars}* /\nCOPY --exclude={deep} kept /kept/\n\
         COPY --parents {deep} kept/f /p/\n",
        stars = evil("a*"),
        deep = evil("**/a*/"),
    ))?;
    project.write(&name, "")?;
    fs::create_dir_all(project.path("context/kept")).map_err(|error| error.to_string())?;
    project.write("kept/f", "f")?;
    let lines = ["a*", "**/a", "*?", "[a-z]*", "!a*", "!**/a*"].map(evil);
    project.write(".dockerignore", format!("{}\n", lines.join("\n")))?;
    project.built(&["-o", "type=local,dest=tree"])?;
    same("copied", [project.path("tree/kept/f"), project.path("tree/p/kept/f")].map(|path| path.exists()), [true; 2])?;
    Ok(None)
}

/// Files of the large context.
const FILES: usize = 1_000_000;

/// Directories that they are in.
const DIRECTORIES: usize = 1000;

fn million(place: &Place) -> Outcome {
    let project = place.project("FROM scratch\nCOPY kept /\n")?;
    let context = project.path("context");
    let free = rustix::fs::statvfs(&context).map_err(|error| error.to_string())?;
    if free.f_files != 0 && free.f_favail < 10_000 {
        return Ok(Some("too few inodes for a context of a million names".to_owned()));
    }
    project.write(".dockerignore", "**/*7\n")?;
    // Names of one file: links cost next to nothing, and a file has at most 65,000 of them (ext4).
    for directory in 0..DIRECTORIES {
        let directory = context.join(if directory == 0 { "kept".to_owned() } else { format!("d{directory}") });
        fs::create_dir(&directory).map_err(|error| error.to_string())?;
        let first = directory.join("0");
        fs::write(&first, "x").map_err(|error| error.to_string())?;
        for file in 1..FILES / DIRECTORIES {
            fs::hard_link(&first, directory.join(file.to_string())).map_err(|error| error.to_string())?;
        }
    }
    let report = project.path("report.json");
    project.built(&["-o", "type=local,dest=tree", "--report", &report.display().to_string()])?;
    let count = fs::read_dir(project.path("tree")).map_err(|error| error.to_string())?.count();
    same("files that are not ignored", count, FILES / DIRECTORIES * 9 / 10)?;
    // Only what the step uses is read.
    let read = read_json(&report)?["context_files_read"].as_u64().ok_or("no count in the report")?;
    same("files that are read", read <= (FILES / DIRECTORIES) as u64, true)?;
    let memory = read_json(&report)?["peak_anonymous_bytes"].as_u64().ok_or("no peak in the report")?;
    same("a kilobyte of memory a file", memory < FILES as u64 * 1024, true)
        .map_err(|error| format!("{error}: {memory}"))?;
    Ok(None)
}
