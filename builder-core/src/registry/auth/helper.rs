//! Credential helpers: programs named `docker-credential-<name>` (docker/docker-credential-helpers, "Usage").

use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::config::{Credential, CredentialOptions, Identity};
use crate::cancel::Cancel;
use crate::http::Secret;
use crate::registry::CredentialError;

/// User name that marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";

/// What helpers say, with exit code 1, when they know nothing.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Bytes that are read of a helper's output.
const OUTPUT_BYTES: u64 = 1 << 20;

/// How often we look whether the helper has ended.
const POLL: Duration = Duration::from_millis(5);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks the helper `name` for `server`; `None` if it knows nothing.
pub(super) fn get(
    name: &str,
    server: &str,
    options: &CredentialOptions,
    cancel: &Cancel,
) -> Result<Option<Identity>, CredentialError> {
    let helper = Helper::new(name, server, options);
    let (status, bytes) = helper.run("get", format!("{server}\n").into_bytes(), cancel)?;
    if !status.success() {
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        return if text == NOT_FOUND { Ok(None) } else { Err(helper.failed(format!("{status}: {text}"))) };
    }
    // The text of a JSON error may quote the secret.
    let answer: Answer =
        serde_json::from_slice(&bytes).map_err(|_| helper.failed("its answer is not valid JSON".to_owned()))?;
    Ok(identity(answer, &helper.program))
}

/// Has the helper `docker-credential-<name>` keep a password for `server`, the key in its store. Says which program did it.
///
/// # Errors
/// If it is not installed, fails, or does not end in time.
pub fn keep_password(
    name: &str,
    server: &str,
    (user, password): (&str, &Secret),
    options: &CredentialOptions,
    cancel: &Cancel,
) -> Result<String, CredentialError> {
    let helper = Helper::new(name, server, options);
    let document = json!({ "ServerURL": server, "Username": user, "Secret": password.expose() }).to_string();
    let (status, bytes) = helper.run("store", document.into_bytes(), cancel)?;
    if !status.success() {
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        return Err(helper.failed(format!("{status}: {text}")));
    }
    Ok(helper.program)
}

/// A helper that is asked about one server.
struct Helper<'a> {
    program: String,
    server: &'a str,
    options: &'a CredentialOptions,
}

impl<'a> Helper<'a> {
    fn new(name: &str, server: &'a str, options: &'a CredentialOptions) -> Self {
        Self { program: format!("docker-credential-{name}"), server, options }
    }

    fn failed(&self, message: String) -> CredentialError {
        CredentialError::HelperFailed { helper: self.program.clone(), registry: self.server.to_owned(), message }
    }

    /// Runs it to its end; what it wrote.
    fn run(&self, verb: &str, input: Vec<u8>, cancel: &Cancel) -> Result<(ExitStatus, Vec<u8>), CredentialError> {
        let missing = |source| CredentialError::HelperMissing {
            helper: self.program.clone(),
            registry: self.server.to_owned(),
            source,
        };
        let program = find_program(&self.program, self.options).map_err(missing)?;
        #[allow(
            clippy::disallowed_methods,
            reason = "credential helpers are programs of the user, run outside any sandbox"
        )]
        let mut child = Command::new(program)
            .arg(verb)
            .env_clear()
            .envs(self.options.helper_environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(missing)?;
        let (stdin, output) = (child.stdin.take(), child.stdout.take());
        let (sender, receiver) = mpsc::channel();
        // Both ends in threads of their own, which nobody joins: a helper that reads or writes nothing can still be ended,
        // even if a process that it started keeps the pipes open.
        thread::spawn(move || {
            if let Some(mut stdin) = stdin
                && let Err(error) = stdin.write_all(&input)
            {
                tracing::debug!(%error, "the credential helper did not read its input");
            }
        });
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = output.map_or(Ok(0), |output| output.take(OUTPUT_BYTES).read_to_end(&mut bytes));
            // Nobody listens any more after a timeout.
            _ = sender.send(read.map(|_| bytes));
        });
        let limit = self.options.helper_timeout;
        let timeout = || match cancel.is_cancelled() {
            true => CredentialError::Cancelled,
            false => {
                CredentialError::HelperTimeout { helper: self.program.clone(), registry: self.server.to_owned(), limit }
            }
        };
        let Some(status) = wait(&mut child, limit, cancel) else {
            // Both fail only if it ended just now.
            _ = child.kill();
            _ = child.wait();
            return Err(timeout());
        };
        let status = status.map_err(|error| self.failed(error.to_string()))?;
        let bytes = receiver.recv_timeout(limit).map_err(|_| timeout())?;
        Ok((status, bytes.map_err(|error| self.failed(error.to_string()))?))
    }
}

fn identity(answer: Answer, helper: &str) -> Option<Identity> {
    if answer.username.is_empty() && answer.secret.is_empty() {
        return None;
    }
    let secret = Secret::new(answer.secret);
    let credential = if answer.username == TOKEN_USER {
        Credential::IdentityToken(secret)
    } else {
        Credential::Basic { user: answer.username, password: secret }
    };
    Some(Identity { credential, origin: format!("`{helper}`"), expires: None })
}

/// Waits for the end of `child`; `None` if it did not come in time or the build was cancelled.
fn wait(child: &mut Child, limit: Duration, cancel: &Cancel) -> Option<io::Result<ExitStatus>> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(Ok(status)),
            Ok(None) if cancel.is_cancelled() || start.elapsed() >= limit => return None,
            Ok(None) => thread::sleep(POLL),
            Err(error) => return Some(Err(error)),
        }
    }
}

/// Looks `program` up in the `PATH` of the helpers' environment. A name with a slash is refused: it would run a file that the
/// configuration names, not an installed helper.
fn find_program(program: &str, options: &CredentialOptions) -> io::Result<PathBuf> {
    if program.contains('/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of a helper holds no slash"));
    }
    let path = options.helper_environment.iter().find(|(key, _)| key == "PATH").map(|(_, value)| value.as_os_str());
    std::env::split_paths(path.unwrap_or(OsStr::new("/usr/local/bin:/usr/bin:/bin")))
        .map(|directory| directory.join(program))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "executable file not found in PATH"))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn ask(script: &str, limit: Duration) -> Result<Option<Identity>, CredentialError> {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let program = directory.path().join("docker-credential-test");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("made executable");
        let path = format!("{}:/usr/bin:/bin", directory.path().display());
        let options = CredentialOptions {
            helper_environment: vec![("PATH".into(), path.into())],
            helper_timeout: limit,
            ..CredentialOptions::default()
        };
        get("test", "https://r.io", &options, &Cancel::default())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn answers_are_sorted() {
        let found = ask(r#"read server; echo "{\"Username\":\"$server\",\"Secret\":\"s\"}""#, LONG);
        let credential = found.expect("an answer").expect("credentials").credential;
        assert_eq!(credential, Credential::Basic { user: "https://r.io".to_owned(), password: Secret::new("s") });
        let found = ask(r#"echo '{"Username":"<token>","Secret":"s"}'"#, LONG).expect("an answer");
        assert_eq!(found.map(|i| i.credential), Some(Credential::IdentityToken(Secret::new("s"))));
        assert_eq!(ask(&format!("echo {NOT_FOUND}; exit 1"), LONG).expect("an answer"), None);
        assert!(
            matches!(ask("echo no; exit 3", LONG), Err(CredentialError::HelperFailed { message, .. }) if message.ends_with("no"))
        );
        assert!(matches!(ask("echo '{\"Secret\":'", LONG), Err(CredentialError::HelperFailed { .. })));
    }

    #[test]
    fn silent_and_missing_helpers_are_errors() {
        let limit = Duration::from_millis(100);
        assert!(matches!(ask("exec sleep 1000", limit), Err(CredentialError::HelperTimeout { .. })));
        let options = CredentialOptions::default();
        for name in ["no-such-helper-here", "../../bin/true"] {
            let found = get(name, "r.io", &options, &Cancel::default());
            assert!(matches!(found, Err(CredentialError::HelperMissing { .. })), "{name}");
        }
    }
}
