//! The example pods of `docs/examples`, run by `podman kube play` with the images of `deploy/Dockerfile`; only the registry's
//! address is another one. The profile RuntimeDefault with its capabilities, the memory limit of the example, and nothing
//! written outside of volumes. One of them builds an image of 1.5 GiB.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fixtures::distribution::Distribution;
use fixtures::image::{self, Entry, Image};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use tests::process::{self, output};
use tests::{pods, slipway, trials, user};

mod images;

/// How long one program may take, on a machine that is busy with others.
const LIMIT: Duration = Duration::from_secs(180);

/// What podman must be told on machines whose init has no control groups and low limits, and which capabilities are usual.
const SETTINGS: &str = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
                        default_capabilities = [CAPABILITIES]\n\
                        [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
                        lock_type = \"file\"\ntmp_dir = \"TEMPORARY\"\n";

/// What containerd and CRI-O give to containers that say nothing.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Bytes that one example writes in a RUN: three times the memory that it has.
const LARGE: u64 = 1536 << 20;

/// An example, its container, and the names that it pushes.
type Row = (&'static str, &'static str, &'static [&'static str], &'static [&'static str]);

/// File, container, pushed names, and what the log says.
const ROWS: &[Row] = &[
    ("tekton", "build-and-push", &["tekton:1"], &["Pushed REGISTRY/tekton@sha256:"]),
    ("cloud-build", "step-0", &["gcloud:1"], &["Pushing layer REGISTRY/gcloud/cache:"]),
    ("gitlab", "build", &["gitlab:1"], &["Pushed REGISTRY/gitlab@", "/busybox/sh"]),
    ("actions-runner", "build", &["handle/action:1"], &["Pushed REGISTRY/handle/action@"]),
    ("hydros", "kaniko", &["hydros:1", "hydros:latest", "mirror/hydros:1"], &["Pushed REGISTRY/mirror/hydros@"]),
    ("skaffold", "kaniko", &["skaffold:1"], &["Pushed REGISTRY/skaffold@"]),
];

#[expect(clippy::print_stdout, reason = "a test harness reports to the terminal")]
fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let place = match trials::prepared(Place::new()) {
        Ok(place) => place,
        Err(status) => return status,
    };
    let mut trials: Vec<Trial> = ROWS
        .iter()
        .map(|row| {
            let place = Arc::clone(&place);
            Trial::test(row.0, move || play(row, &place).map_err(Failed::from))
        })
        .collect();
    for (name, check) in images::TRIALS {
        let place = Arc::clone(&place);
        trials.push(Trial::test(format!("images::{name}"), move || check(&place).map_err(Failed::from)));
    }
    trials.push(Trial::test("every-example-is-run", || every_example().map_err(Failed::from)));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        let (passed, failed, skipped) = (conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored);
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
    conclusion.exit_code()
}

/// Images, registry and settings that the trials share.
struct Place {
    registry: Distribution,
    dir: tempfile::TempDir,
}

impl Place {
    /// The inner error says which part is missing.
    fn new() -> Result<Result<Self, String>, String> {
        let text = |error: std::io::Error| error.to_string();
        if !user::is_root() {
            return Ok(Err("podman needs root for this".to_owned()));
        }
        for program in ["podman", "runc", "catatonit", "busybox", "skopeo"] {
            if process::find(program).is_none() {
                return Ok(Err(format!("`{program}` is not installed; scripts/setup installs it")));
            }
        }
        let binary = match pods::static_binary() {
            Ok(binary) => binary,
            Err(missing) => return Ok(Err(missing)),
        };
        let Some(registry) = Distribution::start().map_err(text)? else {
            return Ok(Err("docker-registry is not installed".to_owned()));
        };
        let place =
            Self { registry, dir: tempfile::Builder::new().prefix("slipway-callers-").tempdir().map_err(text)? };
        let capabilities: Vec<String> = CAPABILITIES.iter().map(|name| format!("\"{name}\"")).collect();
        let settings = SETTINGS.replace("CAPABILITIES", &capabilities.join(", "));
        // Locks too: the usual ones are one table for all storages of a machine.
        let settings = settings.replace("TEMPORARY", &place.path("tmp").display().to_string());
        fs::write(place.path("containers.conf"), settings).map_err(text)?;
        let mut images = Command::new(slipway::project().join("scripts/images"));
        images.arg(place.path("images")).env("SLIPWAY_STATIC", binary).env("IMAGES_PREFIX", "ghcr.io/slipway-build");
        output(&mut images, LIMIT)?;
        for name in ["executor", "debug", "warmer"] {
            let archive = place.path("images").join(format!("{name}.tar"));
            output(place.podman().args(["load", "--quiet", "--input"]).arg(archive), LIMIT)?;
        }
        place.base()?;
        Ok(Ok(place))
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// podman with storage of its own, so that nothing of the machine's is touched.
    fn podman(&self) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.path("containers.conf")).current_dir(self.dir.path());
        command.arg("--root").arg(self.path("storage")).arg("--runroot").arg(self.path("run"));
        command.args(["--storage-driver", "vfs", "--runtime", "runc"]);
        command
    }

    /// busybox as the image that the examples build on.
    fn base(&self) -> Result<(), String> {
        let busybox = process::find("busybox").ok_or("busybox is there")?;
        let busybox = fs::read(busybox).map_err(|error| error.to_string())?;
        let entries = [
            Entry::Directory("bin"),
            Entry::Directory("tmp"),
            Entry::Directory("etc"),
            Entry::File("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n"),
            Entry::File("etc/group", b"root:x:0:\n"),
            Entry::Program("bin/busybox", &busybox),
            Entry::Symlink("bin/sh", "busybox"),
            Entry::Symlink("bin/test", "busybox"),
            Entry::Symlink("bin/head", "busybox"),
        ];
        let architecture = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };
        let base = Image::new(architecture, vec![image::tree_layer(&entries)], json!({"Env": ["PATH=/bin"]}));
        let layout = self.path("base");
        image::write_layout(&layout, &[("latest", &base)]).map_err(|error| error.to_string())?;
        let mut copy = Command::new("skopeo");
        copy.args(["copy", "--dest-tls-verify=false", &format!("oci:{}:latest", layout.display())]);
        output(copy.arg(format!("docker://{}/base:latest", self.registry.host())), LIMIT).map(drop)
    }

    fn digest(&self, name: &str) -> Result<String, String> {
        let mut inspect = Command::new("skopeo");
        inspect.args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"]);
        output(inspect.arg(format!("docker://{}/{name}", self.registry.host())), LIMIT)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The storage is full of mounts and other owners' files.
        _ = self.podman().args(["pod", "rm", "--force", "--all", "--time", "0"]).output();
        _ = self.podman().args(["system", "reset", "--force"]).output();
    }
}

/// Plays one example and looks at what came of it.
fn play((name, container, pushed, says): &Row, place: &Place) -> Result<(), String> {
    let file = slipway::project().join("docs/examples").join(format!("{name}.yaml"));
    let yaml = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let host = place.registry.host();
    let played = place.path(format!("{name}.yaml"));
    // What RuntimeDefault is, podman has to be told by an annotation: its own default is wider.
    let profile = profile();
    let profile_name = profile.file_name().unwrap_or_default().to_string_lossy();
    let confined =
        format!("metadata:\n  annotations: {{ seccomp.security.alpha.kubernetes.io/pod: localhost/{profile_name} }}\n");
    let text = yaml.replace("registry.example:5000", host).replacen("metadata:\n", &confined, 1);
    fs::write(&played, text).map_err(|error| error.to_string())?;
    let pod = yaml.lines().find_map(|line| line.strip_prefix("  name: ")).ok_or("the pod has a name")?.to_owned();
    let mut play = place.podman();
    play.args(["kube", "play", "--network", "host", "--seccomp-profile-root"]);
    play.arg(profile.parent().unwrap_or(Path::new("/"))).arg(&played);
    // Whatever it says is taken off at once: a full pipe would hold it up.
    let said = File::create(place.path(format!("{name}.said"))).map_err(|error| error.to_string())?;
    let mut playing = play.stdout(Stdio::null()).stderr(said).spawn().map_err(|error| error.to_string())?;
    if *name == "skaffold" {
        send_context(place, &pod, host)?;
    }
    let status = playing.wait().map_err(|error| error.to_string())?;
    let full = format!("{pod}-{container}");
    if !status.success() {
        let said = fs::read_to_string(place.path(format!("{name}.said"))).unwrap_or_default();
        return Err(format!("podman kube play: {status}\n{said}"));
    }
    let code = output(place.podman().args(["wait", &full]), LIMIT)?;
    let logs = process::run(place.podman().args(["logs", &full]), LIMIT).map_err(|error| error.to_string())?;
    let log = logs.text();
    if code != "0" {
        return Err(format!("exit code {code}\n{log}"));
    }
    for text in *says {
        let text = text.replace("REGISTRY", host);
        if !log.contains(&text) {
            return Err(format!("the log lacks {text:?}:\n{log}"));
        }
    }
    let digests = pushed.iter().map(|name| place.digest(name)).collect::<Result<BTreeSet<_>, _>>()?;
    if digests.len() != 1 || !digests.iter().all(|digest| log.contains(digest.as_str())) {
        return Err(format!("{digests:?} is not the digest of the log:\n{log}"));
    }
    let memory = output(place.podman().args(["inspect", "--format", "{{.HostConfig.Memory}}", &full]), LIMIT)?;
    if memory != (512_u64 << 20).to_string() {
        return Err(format!("the memory limit is {memory}"));
    }
    is_confined(place, &full)?;
    nothing_outside(place, &full)?;
    // Not judged: podman 4.3 crashes at times when several pods with volumes go at once. What stays goes with the place.
    _ = place.podman().args(["pod", "rm", "--force", "--time", "0", &pod]).output();
    Ok(())
}

/// As Skaffold does it: a tar on standard input of a command in the init container.
fn send_context(place: &Place, pod: &str, host: &str) -> Result<(), String> {
    let container = format!("{pod}-kaniko-init-container");
    let started = Instant::now();
    loop {
        let state = output(place.podman().args(["inspect", "--format", "{{.State.Running}}", &container]), LIMIT);
        if state.as_deref() == Ok("true") {
            break;
        }
        if started.elapsed() > LIMIT {
            return Err(format!("{container} does not start: {state:?}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let context = place.path("context");
    fs::create_dir_all(&context).map_err(|error| error.to_string())?;
    let dockerfile = format!(
        "FROM {host}/base\nARG DATE\nCOPY main /main\nRUN test -s /main && echo $DATE > /built\n\
         RUN head -c {LARGE} /dev/urandom > /large\n"
    );
    for (file, text) in [("Dockerfile", dockerfile.as_str()), ("main", "hello\n")] {
        fs::write(context.join(file), text).map_err(|error| error.to_string())?;
    }
    let mut packing = Command::new("tar")
        .args(["-czf", "-", "."])
        .current_dir(&context)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    let tar = packing.stdout.take().ok_or("tar writes")?;
    let unpacked = place
        .podman()
        .args(["exec", "-i", &container, "tar", "-zxf", "-", "-C", "/kaniko/buildcontext"])
        .stdin(tar)
        .output()
        .map_err(|error| error.to_string())?;
    packing.wait().map_err(|error| error.to_string())?;
    if !unpacked.status.success() {
        return Err(format!("tar: {}", String::from_utf8_lossy(&unpacked.stderr)));
    }
    output(place.podman().args(["exec", &container, "touch", "/kaniko/buildcontext/.complete"]), LIMIT).map(drop)
}

/// The seccomp profile RuntimeDefault.
fn profile() -> PathBuf {
    slipway::project().join("fixtures/pods/seccomp-runtime-default.json")
}

/// What the runtime was told is the profile and the capabilities of a pod that says nothing.
fn is_confined(place: &Place, container: &str) -> Result<(), String> {
    let config = output(place.podman().args(["inspect", "--format", "{{.OCIConfigPath}}", container]), LIMIT)?;
    let read = |path: &Path| -> Result<Value, String> {
        let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_slice(&bytes).map_err(|error| error.to_string())
    };
    let config = read(Path::new(&config))?;
    let mut capabilities: Vec<&str> = config["process"]["capabilities"]["bounding"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    capabilities.sort_unstable();
    let all = |seccomp: &Value| -> BTreeSet<String> {
        let rules = seccomp["syscalls"].as_array().into_iter().flatten();
        // Those that need a capability that nobody has are not there for the runtime.
        let plain = rules.filter(|rule| {
            rule["action"] == "SCMP_ACT_ALLOW" && rule["includes"].as_object().is_none_or(serde_json::Map::is_empty)
        });
        plain.flat_map(|rule| rule["names"].as_array().into_iter().flatten()).map(ToString::to_string).collect()
    };
    let (given, wanted) = (all(&config["linux"]["seccomp"]), all(&read(&profile())?));
    if capabilities == CAPABILITIES && wanted.is_subset(&given) && !given.contains("\"unshare\"") {
        return Ok(());
    }
    Err(format!("not confined like a pod: {capabilities:?}, {} system calls of {}", given.len(), wanted.len()))
}

/// The container's own layer holds no file that the build wrote: 0 bytes of ephemeral storage beside the volumes.
fn nothing_outside(place: &Place, container: &str) -> Result<(), String> {
    let diff: Value =
        serde_json::from_str(&output(place.podman().args(["diff", "--format", "json", container]), LIMIT)?)
            .map_err(|error| error.to_string())?;
    let added: Vec<&str> = diff["added"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    // Mount points that the runtime makes.
    let runtime =
        ["/dev", "/proc", "/sys", "/run", "/etc", "/state", "/tekton", "/builder", "/builds", "/mnt", "/result"];
    let ours: Vec<&&str> = added
        .iter()
        .filter(|path| !runtime.iter().any(|known| **path == *known || path.starts_with(&format!("{known}/"))))
        .filter(|path| !path.starts_with("/kaniko/buildcontext") && !path.starts_with("/workspace/"))
        .collect();
    if ours.is_empty() { Ok(()) } else { Err(format!("written outside of the volumes: {ours:?}")) }
}

/// No example is left out of the table.
fn every_example() -> Result<(), String> {
    let directory = slipway::project().join("docs/examples");
    let files = fs::read_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let names = files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|e| e == "yaml"));
    let found: BTreeSet<String> =
        names.filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect();
    let run: BTreeSet<String> = ROWS.iter().map(|row| row.0.to_owned()).collect();
    if found == run { Ok(()) } else { Err(format!("examples {found:?}, run {run:?}")) }
}
