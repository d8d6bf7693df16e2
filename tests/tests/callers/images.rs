//! The images themselves: what is where, how large, and that names and certificates work in them for any user.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use fixtures::distribution::{self, Distribution, Setup};
use fixtures::dns::NameServer;
use serde_json::{Value, json};
use tests::process::{self, output};

use super::{LIMIT, Place};

type Check = fn(&Place) -> Result<(), String>;

pub const TRIALS: &[(&str, Check)] = &[
    ("paths", paths),
    ("size", size),
    ("restricted-pod-runs-commands", restricted),
    ("names-by-file", hosts_file),
    ("names-by-server", name_server),
];

/// Bytes that an image may have when it is unpacked. `scripts/images` compares with it when it builds for release.
const MOST: u64 = 25 << 20;

/// As much of that as may be anything but the program.
const BESIDE: u64 = 3 << 20;

/// Any user, a root that cannot be written, no capability, no new privileges.
const RESTRICTED: [&str; 8] = [
    "--user",
    "1000123:1000123",
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop",
    "all",
    "--security-opt",
    "no-new-privileges",
];

fn name(image: &str) -> String {
    format!("ghcr.io/slipway-build/{image}:latest")
}

fn run(place: &Place, arguments: &[&str]) -> Result<String, String> {
    output(place.podman().args(["run", "--rm", "--network", "host"]).args(arguments), LIMIT)
}

/// Everything is where Kaniko's images have it.
fn paths(place: &Place) -> Result<(), String> {
    for (image, entrypoint) in
        [("executor", "/kaniko/executor"), ("debug", "/kaniko/executor"), ("warmer", "/kaniko/warmer")]
    {
        let inspected = output(place.podman().args(["image", "inspect", &name(image)]), LIMIT)?;
        let inspected: Value = serde_json::from_str(&inspected).map_err(|error| error.to_string())?;
        let config = &inspected[0]["Config"];
        for (what, found, expected) in [
            ("entrypoint", &config["Entrypoint"], json!([entrypoint])),
            ("directory", &config["WorkingDir"], json!("/workspace")),
        ] {
            if *found != expected {
                return Err(format!("{image}: {what} is {found}, expected {expected}"));
            }
        }
        let environment = config["Env"].to_string();
        for variable in ["HOME=/root", "USER=root", "SSL_CERT_DIR=/kaniko/ssl/certs", "DOCKER_CONFIG=/kaniko/.docker/"]
        {
            if !environment.contains(variable) {
                return Err(format!("{image} lacks {variable}: {environment}"));
            }
        }
    }
    let version = run(place, &[&RESTRICTED[..], &[&name("executor"), "version"]].concat())?;
    if !version.starts_with("Kaniko version :  ") {
        return Err(version);
    }
    let shell = "ls -d /busybox/sh /bin/sh /kaniko/executor /kaniko/warmer /kaniko/ssl/certs/ca-certificates.crt \
                 /etc/nsswitch.conf && stat -c %a /kaniko && which cat";
    let listed = run(place, &["--entrypoint", "sh", &name("debug"), "-c", shell])?;
    if listed.ends_with("777\n/busybox/cat") { Ok(()) } else { Err(listed) }
}

/// Nothing is in an image twice. The program of the tests is not that of a release, so it is not counted.
fn size(place: &Place) -> Result<(), String> {
    for image in ["executor", "warmer", "debug"] {
        let mut files = Vec::new();
        let archive = place.path("images").join(format!("{image}.tar"));
        let archive = fs::File::open(&archive).map_err(|error| format!("{}: {error}", archive.display()))?;
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries().map_err(|error| error.to_string())? {
            let entry = entry.map_err(|error| error.to_string())?;
            let path = entry.path().map_err(|error| error.to_string())?.into_owned();
            if path.to_string_lossy().ends_with(".json") {
                continue;
            }
            let mut layer = tar::Archive::new(flate2::read::MultiGzDecoder::new(entry));
            let Ok(entries) = layer.entries() else { continue };
            for entry in entries.map_while(Result::ok) {
                let path = entry.path().map_err(|error| error.to_string())?.into_owned();
                files.push((path, entry.header().size().map_err(|error| error.to_string())?));
            }
        }
        let programs: Vec<u64> =
            files.iter().filter(|(path, _)| path.ends_with("kaniko/executor")).map(|(_, size)| *size).collect();
        let all: u64 = files.iter().map(|(_, size)| size).sum();
        let [program] = programs[..] else { return Err(format!("{image}: the program is there {programs:?}")) };
        if all - program > BESIDE || program == 0 {
            return Err(format!("{image}: {} bytes beside the program: {files:?}", all - program));
        }
    }
    let script = fs::read_to_string(tests::slipway::project().join("scripts/images")).map_err(|e| e.to_string())?;
    if script.contains(&format!("most={MOST}")) { Ok(()) } else { Err("scripts/images has another limit".to_owned()) }
}

/// A directory of a user that nobody knows.
fn own(place: &Place, path: &str) -> Result<String, String> {
    let path = place.path(path);
    fs::create_dir_all(&path).map_err(|error| error.to_string())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).map_err(|error| error.to_string())?;
    Ok(path.display().to_string())
}

/// A context with this Dockerfile, mounted where the program looks.
fn context(place: &Place, directory: &str, dockerfile: &str) -> Result<String, String> {
    let path = own(place, directory)?;
    fs::write(Path::new(&path).join("Dockerfile"), dockerfile).map_err(|error| error.to_string())?;
    Ok(format!("{path}:/workspace:ro"))
}

/// COPY and RUN in a pod of the level "restricted", which leaves nothing behind but its volume.
fn restricted(place: &Place) -> Result<(), String> {
    let host = place.registry.host();
    let dockerfile = format!(
        "FROM {host}/base\nCOPY Dockerfile /copied\nRUN test -s /copied && test \"$(id -u)\" = 0 && echo built > /built\n"
    );
    let context = context(place, "restricted-context", &dockerfile)?;
    let state = format!("{}:/state", own(place, "restricted-state")?);
    let confined = format!("seccomp={}", super::profile().display());
    let container = "slipway-restricted";
    let mut command = place.podman();
    command.args(["run", "--name", container, "--network", "host", "--memory", "512m"]).args(RESTRICTED);
    command.args(["--security-opt", &confined, "--volume", &context, "--volume", &state]);
    command.args(["--env", "KANIKO_DIR=/state", &name("executor"), "-d", &format!("{host}/restricted:1")]);
    let ended = process::run(&mut command, LIMIT).map_err(|error| error.to_string())?;
    if !ended.success() {
        return Err(ended.text());
    }
    place.digest("restricted:1")?;
    super::nothing_outside(place, container)?;
    output(place.podman().args(["rm", "--force", container]), LIMIT).map(drop)
}

/// Pushes to a registry with TLS by name, with its authority's certificate beside those of the image.
fn push_by_name(place: &Place, what: &str, registry: &str, reached: &[&str]) -> Result<(), String> {
    let context = context(place, &format!("{what}-context"), "FROM scratch\nCOPY Dockerfile /\n")?;
    let state = format!("{}:/state", own(place, &format!("{what}-state"))?);
    let authority = format!("{}:/kaniko/ssl/certs/company.crt:ro", distribution::tls("ca.pem").display());
    let image = name("executor");
    let arguments = ["--volume", &context, "--volume", &state, "--volume", &authority, "--env", "KANIKO_DIR=/state"];
    let destination = format!("--destination={registry}/{what}:1");
    run(place, &[&RESTRICTED[..], reached, &arguments, &[&image, &destination]].concat()).map(drop)
}

fn secure() -> Result<Distribution, String> {
    let setup = Setup { tls: true, ..Setup::default() };
    Distribution::with(setup).map_err(|error| error.to_string())?.ok_or_else(|| "docker-registry is gone".to_owned())
}

/// `hostAliases` of a pod are lines in /etc/hosts.
fn hosts_file(place: &Place) -> Result<(), String> {
    let registry = secure()?;
    let port = registry.host().rsplit(':').next().unwrap_or_default();
    let name = format!("registry.slipway.test:{port}");
    push_by_name(place, "hosts", &name, &["--add-host", "registry.slipway.test:127.0.0.1"])
}

/// A cluster's names are short, and completed by the search list.
fn name_server(place: &Place) -> Result<(), String> {
    let registry = secure()?;
    let port = registry.host().rsplit(':').next().unwrap_or_default();
    let address = Ipv4Addr::new(127, 0, 0, 98);
    let server = NameServer::start(address, &["registry.slipway.test"], Ipv4Addr::LOCALHOST)
        .map_err(|error| format!("a name server at {address}: {error}"))?;
    let (address, name) = (address.to_string(), format!("registry:{port}"));
    let search = ["--dns", &address, "--dns-search", "nowhere.test", "--dns-search", "slipway.test"];
    push_by_name(place, "dns", &name, &[&search[..], &["--dns-option", "ndots:5"]].concat())?;
    let asked = server.asked();
    let both = ["registry.nowhere.test", "registry.slipway.test"];
    if both.iter().all(|name| asked.iter().any(|other| other == name)) { Ok(()) } else { Err(format!("{asked:?}")) }
}
