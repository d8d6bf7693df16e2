//! Keys made by ssh-keygen(1) and openssl(1), used by OpenSSH's own programs through the agent.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests start other programs")]
#![allow(clippy::print_stdout, reason = "a test that cannot run says so")]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;

use builder_core::ssh::{self, KeyError, SshKey};

/// Whether the programs are there; says so if not.
fn ready() -> bool {
    let there = Path::new("/usr/bin/ssh-keygen").exists() && Path::new("/usr/bin/ssh-add").exists();
    if !there {
        println!("skipped: no ssh-keygen (package openssh-client)");
    }
    there
}

#[track_caller]
fn run(program: &str, arguments: &[&str], socket: Option<&Path>) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).env_remove("SSH_AUTH_SOCK").env_remove("SSH_ASKPASS");
    if let Some(socket) = socket {
        command.env("SSH_AUTH_SOCK", socket);
    }
    let output = command.output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Makes a key; the private file's path.
fn generate(directory: &Path, name: &str, arguments: &[&str]) -> PathBuf {
    let path = directory.join(name);
    let text = path.to_str().expect("UTF-8");
    run("ssh-keygen", &[&["-q", "-C", "a comment", "-f", text], arguments].concat(), None);
    path
}

/// A private key in another format: `ssh-keygen -p -m`.
fn converted(path: &Path, format: &str) -> PathBuf {
    let other = path.with_extension(format.to_ascii_lowercase());
    fs::copy(path, &other).expect("copy");
    fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    run("ssh-keygen", &["-q", "-p", "-N", "", "-P", "", "-m", format, "-f", other.to_str().expect("UTF-8")], None);
    other
}

fn agent(directory: &Path, keys: Vec<SshKey>) -> PathBuf {
    let socket = directory.join("agent");
    _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("a socket");
    let keys: Arc<[SshKey]> = keys.into();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // OpenSSH's programs may leave without a word.
            _ = ssh::serve(&client, &keys);
        }
    });
    socket
}

#[test]
fn openssh_lists_and_signs_with_every_kind_of_key() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let mut files = Vec::new();
    for (name, arguments, formats) in [
        ("ed25519", &["-t", "ed25519"][..], &[][..]),
        ("rsa", &["-t", "rsa", "-b", "2048"], &["PEM", "PKCS8"]),
        ("rsa3072", &["-t", "rsa", "-b", "3072"], &[]),
        ("p256", &["-t", "ecdsa", "-b", "256"], &["PEM", "PKCS8"]),
        ("p384", &["-t", "ecdsa", "-b", "384"], &["PEM", "PKCS8"]),
    ] {
        let path = generate(directory, name, &[arguments, &["-N", ""]].concat());
        files.extend(formats.iter().map(|format| converted(&path, format)));
        files.push(path);
    }
    let data = directory.join("data");
    fs::write(&data, "what is signed").expect("write");
    for file in files {
        let key = SshKey::parse(&fs::read(&file).expect("read")).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let public = fs::read_to_string(file.with_extension("pub")).expect("read");
        let words: Vec<&str> = public.split_whitespace().collect();
        let shown = format!("{key:?}");
        assert!(shown.contains(words[1]) && shown.len() < words[1].len() + 60, "{shown}");
        let socket = agent(directory, vec![key]);
        let listed = run("ssh-add", &["-L"], Some(&socket));
        assert!(String::from_utf8_lossy(&listed.stdout).starts_with(&words[..2].join(" ")), "{file:?}: {listed:?}");

        // With the public key alone `ssh-keygen` asks the agent.
        let alone = directory.join("alone.pub");
        fs::write(&alone, &public).expect("write");
        _ = fs::remove_file(directory.join("data.sig"));
        let (alone, data) = (alone.to_str().expect("UTF-8"), data.to_str().expect("UTF-8"));
        run("ssh-keygen", &["-Y", "sign", "-f", alone, "-n", "test", data], Some(&socket));
        let allowed = directory.join("allowed");
        fs::write(&allowed, format!("me {public}")).expect("write");
        let verify = format!(
            "ssh-keygen -Y verify -f {0}/allowed -I me -n test -s {0}/data.sig < {0}/data",
            directory.display()
        );
        run("sh", &["-c", &verify], None);
    }
}

#[test]
fn keys_that_cannot_be_used_say_so() {
    if !ready() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let error = |path: &Path| SshKey::parse(&fs::read(path).expect("read")).expect_err("no key for an agent");
    let locked = generate(directory, "locked", &["-t", "ed25519", "-N", "secret"]);
    assert_eq!(error(&locked), KeyError::Encrypted);
    for format in ["PEM", "PKCS8"] {
        let locked = generate(directory, format, &["-t", "rsa", "-b", "2048", "-m", format, "-N", "secret"]);
        assert_eq!(error(&locked), KeyError::Encrypted, "{format}");
        assert_eq!(error(&locked.with_extension("pub")), KeyError::NoKey);
    }
    for (name, arguments) in [("p521", ["-t", "ecdsa", "-b", "521"]), ("small", ["-t", "rsa", "-b", "1024"])] {
        let path = generate(directory, name, &[&arguments[..], &["-N", ""]].concat());
        assert!(matches!(error(&path), KeyError::Unsupported { .. }), "{name}: {:?}", error(&path));
    }
}
