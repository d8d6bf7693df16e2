//! A Debian image with packages and an application, built by root and by a user, and what other tools make of it.
//!
//! The base comes from `mmdebstrap`, once for each `target` directory; packages come over the network, from the mirror that this machine's
//! own apt uses. Without such a mirror the trials are skipped.

use std::sync::OnceLock;

use tests::debian::{Mirror, apt_settings};
use tests::listing::Listing;

use super::*;

pub const TRIALS: &[Row] = &[
    ("debian::skopeo-accepts-it", skopeo),
    ("debian::podman-runs-it", podman),
    ("debian::umoci-unpacks-the-tree", umoci),
    ("debian::a-user-builds-the-same-tree", as_user),
];

/// `apt-get` and what it starts, on a machine that is busy with others.
const LONG: Duration = Duration::from_secs(600);

/// Packages with a file capability (`ping`), a group of their own and setgid programs (`cron`), and a small program.
///
/// What differs from one installation to the next is removed: logs, lists, caches, and the day in `/etc/shadow`.
const DOCKERFILE: &str = r#"FROM BASE AS packages
COPY apt.conf /etc/apt/apt.conf.d/90test
RUN apt-get update
RUN <<END
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get install -y --no-install-recommends hello iputils-ping cron
useradd --uid 1234 --create-home application
chage --lastday 20000 application
find /etc -name '*-' -delete
rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /etc/apt/apt.conf.d/90test
END
FROM packages
COPY --chown=application:crontab --chmod=0750 app /opt/app/
RUN install -d -o application -g application -m 2775 /srv/data && cd /srv/data && touch hard && ln hard link && \
    ln -s ../../opt/app/start soft && mkfifo fifo && rm -r /usr/share/doc/hello
# Devices are made by the programs that make them in real builds, whoever builds.
RUN <<END
set -e
mkdir /srv/nodes && cd /srv/nodes && ln -s ../nodes up
umask 027
mknod null c 1 3
mknod -m 660 loop b 7 300
mknod up/../nodes/up/through c 1 5
cp -R /dev/zero copied
tar -C /dev --owner=0 --group=0 -c full random | tar -x
chown application:crontab null && chmod 4620 null
mv loop moved && ln moved linked
! mknod null c 1 3
! setpriv --reuid application --clear-groups mknod /tmp/denied c 1 3
END
USER application
WORKDIR /srv/data
ENV GREETING=good-day
ENTRYPOINT ["/opt/app/start"]
"#;

const START: &str = "#!/bin/sh\nset -e\nhello --greeting=\"$GREETING\"\ncat /opt/app/data\nid -un\ntest -e /srv/data/soft\n\
                     stat -c '%a %U:%G' /opt/app/start .\n";

/// What the application says: the installed package, the copied file, the user, modes and owners.
const SAID: &str = "good-day\ncopied\napplication\n750 application:crontab\n2775 application:application";

/// The image as root or the calling user builds it.
pub type Shared = OnceLock<Result<Result<Built, String>, String>>;

/// An image in the registry.
#[derive(Debug)]
pub struct Built {
    name: String,
    digest: String,
    base: String,
}

/// The image, made if it is not there yet; the inner error says why it cannot be made here.
fn built(place: &Place) -> Result<Result<&Built, String>, String> {
    let made = place.debian.get_or_init(|| {
        let base = match base(place)? {
            Ok(base) => base,
            Err(reason) => return Ok(Err(reason)),
        };
        let project = project(place, &base)?;
        let name = place.name("debian");
        let digest = build(project.command(&["-t", &name, "--push"]))?;
        Ok(Ok(Built { name, digest, base }))
    });
    made.as_ref().map(|made| made.as_ref().map_err(String::clone)).map_err(String::clone)
}

/// Builds with more time than other trials have, and gives the digest.
fn build(mut command: Command) -> Result<String, String> {
    Ok(expect(process::run(&mut command, LONG).map_err(|error| error.to_string())?, 0, &[])?.result())
}

fn project<'a>(place: &'a Place, base: &str) -> Result<Project<'a>, String> {
    let project = place.project("")?;
    project.write("Dockerfile", DOCKERFILE.replace("BASE", base))?;
    project.write("apt.conf", apt_settings().join("\n") + "\n")?;
    project.write("app/start", START)?;
    project.write("app/data", "copied\n")?;
    Ok(project)
}

/// Pushes the base; the inner error says what is missing.
fn base(place: &Place) -> Result<Result<String, String>, String> {
    let mirror = match Mirror::find().and_then(|mirror| mirror.reach().map(|()| mirror)) {
        Ok(mirror) => mirror,
        Err(reason) => return Ok(Err(reason)),
    };
    let base = mirror.base(Path::new(env!("CARGO_TARGET_TMPDIR")), "minimal", &[], &[])?;
    let name = place.name("debian-base");
    let from = format!("oci:{}:latest", base.layout.display());
    place.skopeo(&["copy", "--dest-tls-verify=false", &from, &format!("docker://{name}")])?;
    Ok(Ok(name))
}

/// `let Some(built) = here!(built(place)?)`, or the trial ends as skipped.
macro_rules! here {
    ($value:expr) => {
        match $value {
            Ok(value) => value,
            Err(reason) => return Ok(Some(reason)),
        }
    };
}

fn skopeo(place: &Place) -> Outcome {
    let built = here!(built(place)?);
    let source = format!("docker://{}", built.name);
    let inspected = place.skopeo(&["inspect", "--tls-verify=false", &source])?;
    let inspected: Value = serde_json::from_str(&inspected).map_err(|error| error.to_string())?;
    same("digest", inspected["Digest"].as_str(), Some(built.digest.as_str()))?;
    // The base, apt.conf, update, install, the application, links, and WORKDIR's, which is empty.
    same("layers", inspected["Layers"].as_array().map(Vec::len), Some(8))?;
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    place.skopeo(&[
        "copy",
        "--src-tls-verify=false",
        &source,
        &format!("oci:{}:x", dir.path().join("copy").display()),
    ])?;
    let index = read_json(&dir.path().join("copy/index.json"))?;
    same("digest of the copy", index["manifests"][0]["digest"].as_str(), Some(built.digest.as_str()))?;
    Ok(None)
}

fn podman(place: &Place) -> Outcome {
    if let Some(missing) = ["podman", "runc"].into_iter().find(|program| process::find(program).is_none()) {
        return Ok(Some(format!("{missing} is not installed")));
    }
    if !user::is_root() {
        return Ok(Some("podman of another user than root needs a session".to_owned()));
    }
    let built = here!(built(place)?);
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let settings = dir.path().join("containers.conf");
    // The defaults ask for more than some containers allow.
    let limits = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";
    fs::write(&settings, limits).map_err(|error| error.to_string())?;
    let podman = |arguments: &[&str]| {
        let mut command = Command::new("podman");
        command.arg("--root").arg(dir.path().join("root")).arg("--runroot").arg(dir.path().join("run"));
        command.args(["--cgroup-manager", "cgroupfs"]).args(arguments).env("CONTAINERS_CONF", &settings);
        process::output(&mut command, LONG)
    };
    podman(&["pull", "--quiet", "--tls-verify=false", &built.name])?;
    let said = podman(&["run", "--rm", "--runtime", "runc", "--network", "host", &built.name]);
    let removed = podman(&["rmi", "--all", "--force"]);
    // Its storage may be a mount of its own.
    _ = Command::new("umount").arg(dir.path().join("root/overlay")).stderr(std::process::Stdio::null()).status();
    same("what the application says", said?.as_str(), SAID)?;
    removed.map(|_| None)
}

/// What `umoci unpack` makes of an image of the registry.
fn unpacked(place: &Place, name: &str) -> Result<Listing, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let layout = dir.path().join("layout");
    let copied = format!("oci:{}:x", layout.display());
    place.skopeo(&["copy", "--src-tls-verify=false", &format!("docker://{name}"), &copied])?;
    let bundle = dir.path().join("bundle");
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--image", &format!("{}:x", layout.display())]).arg(&bundle);
    process::output(&mut umoci, LONG)?;
    Listing::of(&bundle.join("rootfs")).map_err(|error| error.to_string())
}

/// What `missing` of umoci or of root says.
fn cannot_unpack() -> Option<String> {
    if process::find("umoci").is_none() {
        return Some("umoci is not installed".to_owned());
    }
    (!user::is_root()).then(|| "only root can unpack owners".to_owned())
}

fn umoci(place: &Place) -> Outcome {
    if let Some(reason) = cannot_unpack() {
        return Ok(Some(reason));
    }
    let built = here!(built(place)?);
    let theirs = unpacked(place, &built.name)?;
    let project = place.project(&format!("FROM {}\n", built.name))?;
    build(project.command(&["-o", "type=tar,dest=tree.tar", "-o", "type=local,dest=local"]))?;
    let tree = project.path("tree");
    fs::create_dir(&tree).map_err(|error| error.to_string())?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--numeric-owner", "--same-owner", "--same-permissions", "--xattrs", "--xattrs-include=*"]);
    process::output(tar.arg("--file").arg(project.path("tree.tar")).arg("--directory").arg(&tree), LONG)?;
    // The root itself is no entry of a tar or a layer.
    let listing = |tree: &Path| Ok::<_, String>(Listing::of(tree).map_err(|error| error.to_string())?.without_root());
    let theirs = theirs.without_root();
    theirs.same(&listing(&tree)?).map_err(|error| format!("-o type=tar: {error}"))?;
    // A directory belongs to whoever builds.
    let mine = theirs.clone().owned_by(0, 0);
    mine.same(&listing(&project.path("local"))?).map_err(|error| format!("-o type=local: {error}"))?;
    for (path, mode, owner) in [
        ("usr/bin/hello", 0o100_755, (0, 0)),
        ("opt/app/start", 0o100_750, (1234, 101)),
        ("srv/data", 0o042_775, (1234, 1234)),
        ("srv/data/fifo", 0o010_644, (0, 1234)),
        ("usr/bin/crontab", 0o102_755, (0, 101)),
        ("usr/bin/passwd", 0o104_755, (0, 0)),
        ("tmp", 0o041_777, (0, 0)),
        ("dev/null", 0o020_666, (0, 0)),
    ] {
        let node = theirs.0.get(Path::new(path)).ok_or_else(|| format!("/{path} is not there"))?;
        same(path, (node.mode, (node.uid, node.gid)), (mode, owner))?;
    }
    let ping = theirs.0.get(Path::new("usr/bin/ping")).ok_or("/usr/bin/ping is not there")?;
    same("ping's capabilities", ping.xattrs.contains_key(&b"security.capability"[..]), true)?;
    let hard = theirs.0.get(Path::new("srv/data/link")).ok_or("/srv/data/link is not there")?;
    same("hard link", hard.first_name.as_path(), Path::new("srv/data/hard"))?;
    same("what a later layer removed", theirs.0.contains_key(Path::new("usr/share/doc/hello")), false)?;
    Ok(None)
}

fn as_user(place: &Place) -> Outcome {
    if let Some(reason) = cannot_unpack() {
        return Ok(Some(reason));
    }
    let Some(user) = user::test_user() else { return Ok(Some("needs the user of scripts/setup".to_owned())) };
    let built = here!(built(place)?);
    let project = project(place, &built.base)?;
    let name = place.name("debian-user");
    build(project.command_as(&user, &["-t", &name, "--push"]))?;
    let by_user = unpacked(place, &name)?.timeless();
    let by_root = unpacked(place, &built.name)?.timeless();
    by_root.same(&by_user).map(|()| None)
}
