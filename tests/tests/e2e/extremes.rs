//! Inputs of sizes that nobody plans for, and a file system that is full.

use super::faults::Mount;
use super::*;

pub const TRIALS: &[Row] = &[
    ("extremes::a-base-of-a-hundred-layers", many_layers),
    ("extremes::a-thousand-stages", many_stages),
    ("extremes::a-full-file-system", full_file_system),
    ("extremes::a-copy-shares-its-blocks", shared_blocks),
];

/// Layers of the base: more than one mount takes, on any kernel.
const LAYERS: usize = 150;

fn many_layers(place: &Place) -> Outcome {
    let names: Vec<String> = (0..LAYERS).map(|number| format!("layers/n{number}")).collect();
    let busybox = process::find("busybox").ok_or("busybox is not installed")?;
    let mut layers = vec![busybox_layer(&fs::read(busybox).map_err(|error| error.to_string())?)];
    for (number, name) in names.iter().enumerate() {
        let text = number.to_string();
        let mut entries = vec![Entry::Directory("layers"), Entry::File(name, text.as_bytes())];
        // Each hides what the one before it says.
        entries.push(Entry::File("layers/last", text.as_bytes()));
        layers.push(image::tree_layer(&entries));
    }
    let layout = place.shared.path().join("many-layers");
    let made = Image::new(platform(), layers, json!({"Env": ["PATH=/bin"]}));
    image::write_layout(&layout, &[("latest", &made)]).map_err(|error| error.to_string())?;
    let many = format!("--build-context=many=oci-layout://{}", layout.display());
    let project = place.project(
        "FROM many\nCOPY f /layers/f\nRUN cat /layers/n0 /layers/last /layers/f > /read && rm /layers/n1\nRUN ls /layers > /list\n",
    )?;
    project.write("f", "file")?;
    for trees in ["auto", "directory"] {
        let out = format!("type=local,dest={trees}");
        project.built(&["--trees", trees, "--no-cache", &many, "-o", &out])?;
        let read = |name: &str| fs::read_to_string(project.path(trees).join(name)).map_err(|error| error.to_string());
        same("what a RUN reads", read("read")?, format!("0{}file", LAYERS - 1))?;
        same("names", read("list")?.lines().count(), LAYERS + 1)?;
    }
    // Pushed and taken as a base again, from its registry.
    let name = place.name("many-layers");
    project.built(&[&many, "-t", &name, "--push"])?;
    let again = place.project(&format!("FROM {name}\nRUN cat /layers/last > /again\n"))?;
    again.built(&["-o", "type=local,dest=tree"])?;
    let last = fs::read_to_string(again.path("tree/again")).map_err(|error| error.to_string())?;
    same("the last layer", last, (LAYERS - 1).to_string())?;
    Ok(None)
}

/// Stages of one Dockerfile.
const STAGES: usize = 1000;

/// Anonymous memory that all of them may take: what a small build takes, and a few KiB for each.
const STAGES_BYTES: u64 = 56 << 20;

fn many_stages(place: &Place) -> Outcome {
    let mut dockerfile = String::new();
    for number in 0..STAGES {
        // A chain of bases, and copies across.
        let base = if number == 0 { "BASE".to_owned() } else { format!("s{}", number / 2) };
        dockerfile += &format!("FROM {base} AS s{number}\nCOPY f /f{number}\n");
    }
    dockerfile += "FROM BASE\n";
    for number in (0..STAGES).step_by(100) {
        dockerfile += &format!("COPY --from=s{number} /f{number} /f{}\n", number / 2);
    }
    let project = place.project(&dockerfile)?;
    project.write("f", "content")?;
    project.built(&["-o", "type=local,dest=tree"])?;
    for number in (0..STAGES).step_by(100) {
        let path = project.path(format!("tree/f{}", number / 2));
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        same("a copied file", text.as_str(), "content")?;
    }
    // The second half stands on the first, so all of them are needed; none is done again.
    let mut all = dockerfile;
    for number in STAGES / 2..STAGES {
        all += &format!("COPY --from=s{number} /f{number} /all/\n");
    }
    project.write("Dockerfile", all.replace("BASE", &place.base()))?;
    project.built(&["-o", "type=oci,dest=image.tar", "--report", "report.json"])?;
    let peak = resources::number(&read_json(&project.path("report.json"))?, "peak_anonymous_bytes")?;
    if peak > STAGES_BYTES {
        return Err(format!("{STAGES} stages take {peak} bytes of memory"));
    }
    Ok(None)
}

/// A file system of its own in a file, with a file in it that takes the space until it is removed.
pub struct Volume {
    _mount: Mount,
    ballast: PathBuf,
}

impl Volume {
    /// An ext4. The inner error says why there is none.
    pub fn make(image: &Path, at: &Path, mebibytes: u64) -> Result<Result<Self, String>, String> {
        Self::formatted(image, at, mebibytes, &["mkfs.ext4", "-q", "-F", "-m", "0"])
    }

    /// What the command makes of the file.
    pub fn formatted(image: &Path, at: &Path, mebibytes: u64, mkfs: &[&str]) -> Result<Result<Self, String>, String> {
        let file = fs::File::create(image).map_err(|error| error.to_string())?;
        file.set_len(mebibytes << 20).map_err(|error| error.to_string())?;
        let (name, arguments) = mkfs.split_first().expect("a command");
        let Some(program) = process::find(name) else { return Ok(Err(format!("{name} is not installed"))) };
        process::output(Command::new(program).args(arguments).arg(image), LIMIT)?;
        let mount = match Mount::image(image, at)? {
            Ok(mount) => mount,
            Err(reason) => return Ok(Err(reason)),
        };
        Ok(Ok(Self { _mount: mount, ballast: at.join("ballast") }))
    }

    /// Leaves about so many KiB.
    fn fill(&self, at: &Path, kibibytes: u64) -> Result<(), String> {
        self.empty();
        let found = rustix::fs::statvfs(at).map_err(|error| error.to_string())?;
        let file = fs::File::create(&self.ballast).map_err(|error| error.to_string())?;
        // The blocks that say where the blocks are count, too.
        const LIST_BYTES: u64 = 128 << 10;
        let bytes = (found.f_bavail * found.f_frsize).saturating_sub((kibibytes << 10) + LIST_BYTES);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).map_err(|error| error.to_string())
    }

    fn empty(&self) {
        _ = fs::remove_file(&self.ballast);
    }
}

/// As on a tmpfs ([`super::resources`]), on a file system with overlayfs, delayed allocation and a journal, and pushed.
fn full_file_system(place: &Place) -> Outcome {
    let dockerfile =
        "FROM BASE\nCOPY f /f\nRUN cp /f /g && echo $(cat /f /g | cat > /h; ls /) > /i\nRUN rm /g && cp /f /j\n";
    let project = place.project(dockerfile)?;
    project.write("f", image::noise(3 << 20))?;
    let work = project.path("work");
    let volume = match Volume::make(&project.path("volume"), &work, 96)? {
        Ok(volume) => volume,
        Err(reason) => return Ok(Some(reason)),
    };
    let name = place.name("full");
    let arguments = ["--build-arg", "SOURCE_DATE_EPOCH=1700000000", "-o"];
    let output = format!("type=registry,name={name},rewrite-timestamp=true");
    let arguments = [&arguments[..], &[&output]].concat();
    let clean = || {
        for entry in fs::read_dir(&work).into_iter().flatten().flatten() {
            if entry.file_name() != "lost+found" && entry.file_name() != "ballast" {
                _ = fs::remove_dir_all(entry.path());
            }
        }
    };
    let expected = project.built(&arguments)?;
    let mut failures = 0;
    // Steps of a prime number of blocks: each ends another write.
    for kibibytes in (0..24_000).step_by(1732) {
        clean();
        volume.fill(&work, kibibytes)?;
        let ended = project.build(&arguments)?;
        match ended.status.and_then(|status| status.code()) {
            Some(0) => {}
            Some(5 | 1) if ended.text().contains("No space left") => failures += 1,
            _ => return Err(format!("{} with {kibibytes}k: {}", ended.how(), ended.text())),
        }
        volume.empty();
        same("digest after a full disk", project.built(&arguments)?, expected.clone())?;
    }
    if failures < 5 {
        return Err(format!("only {failures} builds failed: the sizes do not fit the build"));
    }
    Ok(None)
}

/// Bytes of the file that is copied.
const SHARED_BYTES: u64 = 32 << 20;

/// In directory mode a `COPY --from` gives a second tree what a first one has: on a file system that can, the disk keeps it once.
fn shared_blocks(place: &Place) -> Outcome {
    let project = place.project(&format!(
        "FROM BASE AS made\nRUN head -c {SHARED_BYTES} /dev/urandom > /big && sha256sum < /big > /sum\nFROM BASE\nRUN echo x > \
         /x\nCOPY --from=made /big /sum /copied/\nRUN sha256sum < /copied/big | cmp - /copied/sum\n"
    ))?;
    let work = project.path("work");
    let mkfs = ["mkfs.xfs", "-q", "-m", "reflink=1"];
    let _volume = match Volume::formatted(&project.path("volume"), &work, 400, &mkfs)? {
        Ok(volume) => volume,
        Err(reason) => return Ok(Some(reason)),
    };
    let Some(filefrag) = process::find("filefrag") else { return Ok(Some("filefrag is not installed".to_owned())) };
    project.built(&["--trees", "directory", "-o", "type=oci,dest=image.tar"])?;
    let size = format!("{SHARED_BYTES}c");
    let mut find = Command::new("find");
    find.arg(work.join("trees")).args(["-type", "f", "-size", &size, "-exec"]).arg(filefrag).args(["-v", "{}", ";"]);
    let found = process::output(&mut find, LIMIT)?;
    let shared = found.lines().filter(|line| line.contains("shared")).count();
    let last = found.lines().filter(|line| line.contains("last,")).count();
    if last != 2 || shared < 2 {
        return Err(format!("two trees with one file were expected:\n{found}"));
    }
    Ok(None)
}
