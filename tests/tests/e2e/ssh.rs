//! ssh against a real sshd: git sources, and commands that have the agent of `--ssh`.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};

use super::*;

pub const TRIALS: &[Row] =
    &[("ssh::add-from-git [C-58 M-19]", add_git), ("ssh::commands-have-the-agent [M-19]", commands)];

/// An sshd that lets in who has a key, with a repository; ended with this value.
struct Sshd {
    daemon: Child,
    port: u16,
    /// As whom one logs in: the one who runs the daemon, which gives up nothing since it has nothing.
    user: String,
    top: tempfile::TempDir,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        _ = self.daemon.kill();
        _ = self.daemon.wait();
    }
}

/// Puts Debian's sshd into `directory`: the installed one, or the one that `scripts/setup` unpacked with a library. Another
/// user runs it, who may not read where the project lies.
fn program(directory: &Path) -> Result<Option<PathBuf>, String> {
    let unpacked = slipway::project().join("target/emulators/sshd/usr");
    let candidates = [PathBuf::from("/usr/sbin/sshd"), unpacked.join("sbin/sshd")];
    let Some(found) = candidates.into_iter().find(|path| path.is_file()) else { return Ok(None) };
    let library = unpacked.join(format!("lib/{}-linux-gnu/libwrap.so.0", std::env::consts::ARCH));
    for from in [&found, &library].into_iter().filter(|path| path.is_file()) {
        let to = directory.join(from.file_name().unwrap_or_default());
        fs::copy(from, &to).map_err(|error| format!("{}: {error}", from.display()))?;
    }
    Ok(Some(directory.join("sshd")))
}

impl Sshd {
    /// `None` if there is no sshd or nobody to run it.
    fn start(place: &Place) -> Result<Result<Self, &'static str>, String> {
        let text = |error: std::io::Error| error.to_string();
        let Some(user) = user::single_id_user().filter(|_| user::is_root()) else {
            return Ok(Err("only root can run sshd as another user"));
        };
        let top = tempfile::Builder::new().prefix("ssh-").tempdir_in(place.shared.path()).map_err(text)?;
        fs::set_permissions(top.path(), Permissions::from_mode(0o755)).map_err(text)?;
        let Some(sshd) = program(top.path())? else { return Ok(Err("sshd is neither installed nor unpacked")) };
        let path = |name: &str| top.path().join(name);
        for (name, kind) in [("host", "ed25519"), ("client", "ed25519"), ("stranger", "rsa")] {
            let mut command = Command::new("ssh-keygen");
            process::output(command.args(["-q", "-t", kind, "-N", "", "-f"]).arg(path(name)), LIMIT)?;
        }
        sources::repository(top.path())?;
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(text)?.port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PidFile none\nPasswordAuthentication no\n",
            path("host").display(),
            path("client.pub").display()
        );
        fs::write(path("config"), config).map_err(text)?;
        for name in ["host", "x.git"] {
            process::output(Command::new("chown").args(["-R", &user]).arg(path(name)), LIMIT)?;
        }
        let daemon = user::command(&user, &sshd)
            .args(["-D", "-e", "-f"])
            .arg(path("config"))
            .env("LD_LIBRARY_PATH", top.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log")).map_err(text)?)
            .spawn()
            .map_err(text)?;
        let sshd = Self { daemon, port, user, top };
        let up = wait("sshd", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        up.map_err(|error| format!("{error}: {}", sshd.log()))?;
        Ok(Ok(sshd))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.top.path().join("log")).unwrap_or_default()
    }

    fn key(&self, name: &str) -> String {
        format!("default={}", self.top.path().join(name).display())
    }

    fn url(&self) -> String {
        format!("ssh://{}@127.0.0.1:{}{}", self.user, self.port, self.top.path().join("x.git").display())
    }
}

fn add_git(place: &Place) -> Outcome {
    let sshd = match Sshd::start(place)? {
        Ok(sshd) => sshd,
        Err(reason) => return Ok(Some(reason.to_owned())),
    };
    let project = place.project(&format!("FROM scratch\nADD {}#v1 /\n", sshd.url()))?;
    let build = |arguments: &[&str]| {
        let mut command = project.command(arguments);
        // Nobody's keys but those that are given.
        process::run(command.env_remove("SSH_AUTH_SOCK"), LIMIT).map_err(|error| error.to_string())
    };
    let hint = "give a key or an agent with `--ssh default=FILE`";
    expect(build(&["--ssh", &sshd.key("stranger")])?, 3, &["Permission denied (publickey", hint])
        .map_err(|error| format!("{error}\n{}", sshd.log()))?;
    expect(build(&["--ssh", &sshd.key("client"), "-o", "type=local,dest=tree"])?, 0, &[])
        .map_err(|error| format!("{error}\n{}", sshd.log()))?;
    let added = fs::read_to_string(project.path("tree/f")).map_err(|error| error.to_string())?;
    same("the file", added.as_str(), "first")?;
    // The host is known from now on; another one in its place is refused.
    let known = project.path("work/urls/known_hosts");
    let hosts = fs::read_to_string(&known).map_err(|error| error.to_string())?;
    // By name, or by a hash of it as Debian configures it.
    same("the host", hosts.contains(" ssh-ed25519 "), true)?;
    let other = fs::read_to_string(sshd.top.path().join("client.pub")).map_err(|error| error.to_string())?;
    fs::write(&known, format!("[127.0.0.1]:{} {other}", sshd.port)).map_err(|error| error.to_string())?;
    let changed = build(&["--no-cache", "--ssh", &sshd.key("client")])?;
    expect(changed, 3, &["Host key verification failed", "urls/known_hosts"])?;
    // A context is fetched in the same way.
    fs::remove_file(&known).map_err(|error| error.to_string())?;
    let mut command = Command::new(&place.binary);
    command.args(["build", "--work-dir"]).arg(project.path("work")).args(["--ssh", &sshd.key("client")]);
    command.args(["-o", "type=local,dest=context-tree"]).arg(sshd.url()).current_dir(project.dir.path());
    expect(process::run(&mut command, LIMIT).map_err(|error| error.to_string())?, 0, &[])?;
    same("the context", project.path("context-tree/sub/g").exists(), true)?;
    Ok(None)
}

/// `ssh` of this machine with the libraries it needs, as files of the context.
fn client(project: &Project<'_>) -> Result<Option<()>, String> {
    let Some(ssh) = process::find("ssh") else { return Ok(None) };
    let needed = process::output(Command::new("ldd").arg(&ssh), LIMIT)?;
    let paths = needed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    for path in paths.chain([ssh]) {
        let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let name = Path::new("root").join(path.strip_prefix("/").unwrap_or(&path));
        project.write(&name, bytes)?;
        fs::set_permissions(project.path("context").join(name), Permissions::from_mode(0o755))
            .map_err(|error| error.to_string())?;
    }
    Ok(Some(()))
}

fn commands(place: &Place) -> Outcome {
    let sshd = match Sshd::start(place)? {
        Ok(sshd) => sshd,
        Err(reason) => return Ok(Some(reason.to_owned())),
    };
    let call = format!(
        "/usr/bin/ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -p {} {}@127.0.0.1 'echo here; id -un'",
        sshd.port, sshd.user
    );
    let dockerfile = format!(
        "FROM BASE\nCOPY root /\nRUN {call} >/refused 2>&1 || echo >/refused\n\
         RUN --mount=type=ssh,required {call} >/said\nRUN --mount=type=ssh,id=other {call} >/dev/null 2>&1 || echo no >/other\n"
    );
    let project = place.project(&dockerfile)?;
    if client(&project)?.is_none() {
        return Ok(Some("ssh is not installed".to_owned()));
    }
    let mut command = project.command(&["--ssh", &sshd.key("client"), "-o", "type=local,dest=tree"]);
    command.env_remove("SSH_AUTH_SOCK");
    let ended = process::run(&mut command, LIMIT).map_err(|error| error.to_string())?;
    expect(ended, 0, &[]).map_err(|error| format!("{error}\n{}", sshd.log()))?;
    let read = |name: &str| fs::read_to_string(project.path("tree").join(name)).map_err(|error| error.to_string());
    same("what the other side says", read("said")?, format!("here\n{}\n", sshd.user))?;
    same("without the mount", read("refused")?.contains("here"), false)?;
    same("with an agent that was not given", read("other")?.as_str(), "no\n")?;
    Ok(None)
}
