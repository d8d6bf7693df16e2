//! What the cases share: a registry with base images, a context, a work dir, and what a build told.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, FileTimes};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use builder_core::cancel::Cancel;
use builder_core::event::{Event, Observer};
use builder_core::exec::{self, BuildError, BuildRequest, BuildResult, DockerfileSource};
use builder_core::hint::Hint;
use builder_core::oci::Descriptor;
use builder_core::output::Target;
use builder_core::registry::{RegistryMap, RegistryOptions};
use builder_core::sandbox::Environment;
use fixtures::image::{Entry, Image, Layer, index, tree_layer};
use fixtures::registry::FakeRegistry;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where Debian's busybox-static puts the one program of the base images.
const BUSYBOX: &str = "/bin/busybox";

/// What RUNs use of it.
const APPLETS: &str =
    "cat chmod cp date echo env false grep head id ls mkdir mv nc printf rm sh sleep sort stat test touch true wc";

/// One machine: a registry, a context and a work dir.
pub struct Bench {
    pub directory: TempDir,
    pub registry: Arc<FakeRegistry>,
    environment: Environment,
}

/// What a build told and gave.
#[derive(Debug)]
pub struct Built {
    pub result: Result<BuildResult, BuildError>,
    /// Lines of RUNs.
    pub output: Vec<String>,
    /// By title: `CACHED`, `done`, or the reason of the miss.
    pub steps: BTreeMap<String, String>,
    /// `Rule: message (line N)`
    pub warnings: Vec<String>,
}

/// Notes events; what it does on each line of output is the case's business.
pub struct Notes {
    seen: Mutex<Seen>,
    on_output: Box<dyn Fn(&str) + Send + Sync>,
}

#[derive(Default)]
struct Seen {
    titles: BTreeMap<usize, String>,
    steps: BTreeMap<String, String>,
    output: Vec<String>,
    warnings: Vec<String>,
}

impl Observer for Notes {
    fn event(&self, event: Event<'_>) {
        let mut seen = self.seen.lock().expect("no panic while noting");
        match event {
            Event::StepStarted { step, title } => _ = seen.titles.insert(step.0, title.to_owned()),
            Event::CacheMiss { step, reason } => {
                let title = seen.titles[&step.0].clone();
                seen.steps.insert(title, reason.to_owned());
            }
            Event::StepFinished { step, cached, .. } => {
                let title = seen.titles[&step.0].clone();
                let text = if cached { "CACHED" } else { "done" };
                seen.steps.entry(title).or_insert_with(|| text.to_owned());
            }
            Event::Output { line, .. } => {
                let line = String::from_utf8_lossy(line).into_owned();
                seen.output.push(line.clone());
                drop(seen);
                (self.on_output)(&line);
            }
            Event::Warning { finding, line } => {
                seen.warnings.push(format!("{}: {} (line {line})", finding.rule, finding.message));
            }
            _ => {}
        }
    }
}

/// The layer of the base images, made once.
fn base_layer() -> &'static Result<Layer, String> {
    static LAYER: OnceLock<Result<Layer, String>> = OnceLock::new();
    LAYER.get_or_init(|| {
        let busybox = fs::read(BUSYBOX).map_err(|error| format!("{BUSYBOX} (busybox-static): {error}"))?;
        let links: Vec<String> = APPLETS.split_whitespace().map(|name| format!("bin/{name}")).collect();
        let mut entries = vec![Entry::Directory("bin"), Entry::Program("bin/busybox", &busybox)];
        entries.extend(links.iter().map(|path| Entry::Symlink(path, "busybox")));
        entries.extend(["dev", "etc", "proc", "sys", "tmp"].map(Entry::Directory));
        entries.push(Entry::File("etc/passwd", b"root:x:0:0::/root:/bin/sh\nuser:x:7:8::/:/bin/sh\n"));
        entries.push(Entry::File("etc/group", b"root:x:0:\nusers:x:8:\n"));
        Ok(tree_layer(&entries))
    })
}

impl Bench {
    /// A registry with `base:1` (busybox, amd64 alone) and `multi:1` (linux/amd64 and linux/arm64; the latter's programs
    /// are no programs at all).
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn new(environment: &Environment) -> Result<Self, String> {
        let layer = base_layer().clone()?;
        let registry = Arc::new(FakeRegistry::start());
        let config = json!({"Env": ["PATH=/bin"], "Cmd": ["sh"]});
        let base = Image::new("linux/amd64", vec![layer], config.clone());
        registry.put_image("library/base", "1", &base);
        let foreign = tree_layer(&[Entry::Directory("bin"), Entry::Program("bin/sh", FOREIGN_PROGRAM)]);
        let foreign = Image::new("linux/arm64", vec![foreign], config);
        registry.put_image("library/multi", "", &base);
        registry.put_image("library/multi", "", &foreign);
        let both = index(&[("linux/amd64", &base.manifest), ("linux/arm64", &foreign.manifest)]);
        registry.put_manifest("library/multi", "1", fixtures::image::INDEX, &both);
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        fs::create_dir(directory.path().join("context")).map_err(|error| error.to_string())?;
        Ok(Self { directory, registry, environment: environment.clone() })
    }

    /// Puts `name:1` into the registry: `base:1` with a layer more.
    pub fn put_on_base(&self, name: &str, layer: Layer) {
        let base = base_layer().clone().expect("there is a base");
        let config = json!({"Env": ["PATH=/bin:/usr/bin"]});
        self.registry.put_image(&format!("library/{name}"), "1", &Image::new("linux/amd64", vec![base, layer], config));
    }

    /// A path beside context and work dir.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file of the context. All times are in one second, so layers of equal files are equal; the fraction differs
    /// at each writing, so a changed file is seen.
    pub fn file(&self, name: &str, content: &str) {
        let path = self.path("context").join(name);
        fs::create_dir_all(path.parent().expect("below the context")).expect("a directory");
        fs::write(&path, content).expect("a file of the context");
        static WRITTEN: AtomicU32 = AtomicU32::new(0);
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, WRITTEN.fetch_add(1, Ordering::Relaxed));
        let file = fs::File::options().write(true).open(&path).expect("the file");
        file.set_times(FileTimes::new().set_modified(time)).expect("a time");
    }

    pub fn request(&self, dockerfile: &str) -> BuildRequest {
        let target = self.registry.host().parse().expect("a target");
        let maps = vec![RegistryMap { registry: "docker.io".to_owned(), targets: vec![target], fallback: false }];
        BuildRequest {
            dockerfile: DockerfileSource::Text(dockerfile.to_owned()),
            registry: RegistryOptions { maps, ..RegistryOptions::default() },
            ..BuildRequest::new(self.path("context"), self.path("work"), self.environment.clone())
        }
    }

    /// Builds; `change` may ask for more.
    pub fn build(&self, dockerfile: &str, change: impl FnOnce(&mut BuildRequest)) -> Built {
        self.build_watched(dockerfile, change, |_| {})
    }

    /// Builds, and looks at each line of output while the RUN that wrote it still runs.
    pub fn build_watched(
        &self,
        dockerfile: &str,
        change: impl FnOnce(&mut BuildRequest),
        on_output: impl Fn(&str) + Send + Sync + 'static,
    ) -> Built {
        let mut request = self.request(dockerfile);
        change(&mut request);
        let notes = Arc::new(Notes { seen: Mutex::default(), on_output: Box::new(on_output) });
        let result = exec::build(&request, Arc::clone(&notes) as Arc<dyn Observer>, &Cancel::default());
        let Seen { steps, output, warnings, .. } =
            std::mem::take(&mut *notes.seen.lock().expect("no panic while noting"));
        Built { result, output, steps, warnings }
    }

    /// Checks; the findings as `Rule: message (line N)`, and what a build would stop at.
    pub fn check(&self, dockerfile: &str, change: impl FnOnce(&mut BuildRequest)) -> (Vec<String>, Option<String>) {
        let mut request = self.request(dockerfile);
        change(&mut request);
        let notes = Notes { seen: Mutex::default(), on_output: Box::new(|_| {}) };
        let (dockerfile, checked) =
            exec::check(&request, &notes, &Cancel::default()).unwrap_or_else(|error| panic!("{}", told(&error)));
        let findings = checked.findings.iter().map(|finding| {
            format!("{}: {} (line {})", finding.rule, finding.message, dockerfile.source.lines(&finding.span).first)
        });
        (findings.collect(), checked.error.map(|error| error.to_string()))
    }

    /// An `-o` with paths relative to this machine's directory.
    pub fn output(&self, text: &str) -> Target {
        Target::parse(text, self.directory.path()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A layout that an output wrote.
    pub fn layout(&self, name: &str) -> Layout {
        Layout(self.path(name))
    }

    /// Every file of the machine's directory that holds `bytes`, in plain, in gzip or in zstd.
    pub fn files_with(&self, bytes: &[u8]) -> Vec<PathBuf> {
        visit_files(self.directory.path(), bytes)
    }
}

/// Every file below `directory` that holds `bytes`, in plain, in gzip or in zstd.
pub fn visit_files(directory: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    visit(directory, &mut |path| {
        let Ok(content) = fs::read(path) else { return };
        if contains(&content, bytes) || contains(&inflated(&content), bytes) {
            found.push(path.to_owned());
        }
    });
    found
}

impl Built {
    #[track_caller]
    pub fn ok(&self) -> &BuildResult {
        self.result.as_ref().unwrap_or_else(|error| panic!("{}: {:?}", told(error), self.output))
    }

    /// How it ended, on one line.
    pub fn summary(&self) -> String {
        match &self.result {
            Ok(result) => format!("built {}", result.root.digest),
            Err(error) => told(error),
        }
    }

    /// Digest of what the names point to.
    #[track_caller]
    pub fn digest(&self) -> String {
        self.ok().root.digest.to_string()
    }

    /// All texts of the error and its causes.
    #[track_caller]
    pub fn error(&self) -> String {
        match &self.result {
            Ok(result) => panic!("built {}", result.root.digest),
            Err(error) => told(error),
        }
    }

    #[track_caller]
    pub fn hint(&self) -> String {
        self.result.as_ref().err().and_then(Hint::hint).unwrap_or_default()
    }

    /// What became of the step whose title ends with `end`.
    #[track_caller]
    pub fn step(&self, end: &str) -> &str {
        let found = self.steps.iter().find(|(title, _)| title.ends_with(end));
        found.map(|(_, state)| state.as_str()).unwrap_or_else(|| panic!("no step `{end}` in {:?}", self.steps))
    }

    /// The config of the first image.
    #[track_caller]
    pub fn config(&self) -> Value {
        serde_json::from_slice(&self.ok().images[0].config).expect("a config is JSON")
    }

    /// The manifest of the first image.
    #[track_caller]
    pub fn manifest(&self) -> Value {
        serde_json::from_slice(&self.ok().images[0].manifest).expect("a manifest is JSON")
    }
}

/// An OCI layout on disk.
pub struct Layout(pub PathBuf);

impl Layout {
    pub fn index(&self) -> Value {
        json_file(&self.0.join("index.json"))
    }

    /// A blob by digest.
    #[track_caller]
    pub fn blob(&self, digest: &str) -> Vec<u8> {
        let hex = digest.trim_start_matches("sha256:");
        fs::read(self.0.join("blobs/sha256").join(hex)).unwrap_or_else(|error| panic!("{digest}: {error}"))
    }

    /// The document that the only entry points to.
    #[track_caller]
    pub fn root(&self) -> Value {
        let index = self.index();
        let entries = index["manifests"].as_array().expect("a list");
        assert_eq!(entries.len(), 1, "{index}");
        serde_json::from_slice(&self.blob(entries[0]["digest"].as_str().expect("a digest"))).expect("JSON")
    }

    /// Paths and times of the entries of a layer.
    #[track_caller]
    pub fn entries(&self, layer: &Descriptor) -> Vec<(String, u64)> {
        let tar = inflated(&self.blob(&layer.digest.to_string()));
        let mut archive = tar::Archive::new(tar.as_slice());
        let entries = archive.entries().expect("a tar").map(|entry| {
            let entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            (path, entry.header().mtime().expect("a time"))
        });
        entries.collect()
    }
}

#[track_caller]
pub fn json_file(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

/// All texts of a chain of errors, as the binary prints it.
pub fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(&format!(": {error}"));
        next = error.source();
    }
    text
}

/// What is in a gzip or zstd blob; anything else as it is.
pub fn inflated(blob: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = match blob {
        [0x1f, 0x8b, ..] => flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut bytes).is_ok(),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::stream::read::Decoder::new(blob).is_ok_and(|mut zstd| zstd.read_to_end(&mut bytes).is_ok())
        }
        _ => false,
    };
    if read { bytes } else { blob.to_vec() }
}

fn visit(directory: &Path, look: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => visit(&entry.path(), look),
            Ok(kind) if kind.is_file() => look(&entry.path()),
            _ => {}
        }
    }
}

fn contains(content: &[u8], bytes: &[u8]) -> bool {
    content.windows(bytes.len()).any(|window| window == bytes)
}

/// The head of a program for AArch64 (elf(5)), and nothing behind it.
const FOREIGN_PROGRAM: &[u8] = &{
    let mut program = [0; 128];
    let head = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0\x01\0\0\0";
    let mut at = 0;
    while at < head.len() {
        program[at] = head[at];
        at += 1;
    }
    program
};
