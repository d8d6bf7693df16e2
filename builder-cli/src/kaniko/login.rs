//! `executor login`: keeps a password where every later command finds it.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use builder_core::cancel::Cancel;
use builder_core::http::Secret;
use builder_core::registry::keep_password;
use serde_json::{Map, Value, json};

use super::front::{Front, told};
use super::grammar::Parsed;
use super::refusal::Refusal;
use super::{complain, flags};
use crate::request::{self, Ambient};

const ABOUT: &str = "login keeps user and password of a registry in the Docker config.json, or where that says.";
const USAGE: &str = "executor login REGISTRY";

/// Key of Docker Hub in `auths`.
const HUB: &str = "https://index.docker.io/v1/";

/// Longest password in bytes.
const PASSWORD_BYTES: u64 = 64 * 1024;

/// Runs it; `tokens` are the arguments but the word `login`.
pub fn run(tokens: &[String], ambient: &Ambient) -> ExitCode {
    let front = Front { about: ABOUT, usage: USAGE, commands: &[], table: flags::login() };
    let (logger, login) = match front.read(tokens, read) {
        Ok(read) => read,
        Err(ended) => return ended,
    };
    match login.keep(ambient) {
        Ok(place) => {
            logger.info(&format!("logged in to {} via {place}", login.registry));
            ExitCode::SUCCESS
        }
        Err(error) => complain(&format!("error logging in to {}: {error}", login.registry)),
    }
}

/// A user's password for a registry. Never printed.
struct Login {
    registry: String,
    user: String,
    password: Secret,
}

fn read(parsed: &Parsed) -> Result<Login, Refusal> {
    let [registry] = &parsed.positionals[..] else {
        return Err(Refusal::Words { program: USAGE, wanted: 1, given: parsed.positionals.len() });
    };
    let user = parsed.text(&flags::USERNAME);
    let (given, stdin) = (parsed.text(&flags::PASSWORD), parsed.is(&flags::PASSWORD_STDIN));
    let missing = |what| Err(Refusal::Login { what });
    if user.is_empty() {
        return missing("--username is required");
    }
    let password = match (given.is_empty(), stdin) {
        (false, true) => return missing("--password and --password-stdin are mutually exclusive"),
        (false, false) => given.to_owned(),
        (true, false) => return missing("--password or --password-stdin is required"),
        (true, true) => {
            let mut text = String::new();
            if let Err(error) = io::stdin().lock().take(PASSWORD_BYTES).read_to_string(&mut text) {
                return Err(Refusal::value("--password-stdin", "", error));
            }
            let text = text.strip_suffix('\n').unwrap_or(&text);
            text.strip_suffix('\r').unwrap_or(text).to_owned()
        }
    };
    if password.trim().is_empty() {
        return missing("the password is blank");
    }
    // People give the address that they see in the browser.
    let host = registry.strip_prefix("https://").or(registry.strip_prefix("http://")).unwrap_or(registry);
    let registry = match host.trim_end_matches('/') {
        "docker.io" | "registry-1.docker.io" | "index.docker.io/v1" => "index.docker.io".to_owned(),
        other => other.to_owned(),
    };
    Ok(Login { registry, user: user.to_owned(), password: Secret::new(password) })
}

impl Login {
    /// Keeps it, and says where.
    fn keep(&self, ambient: &Ambient) -> Result<String, String> {
        let directory = match (ambient.var("DOCKER_CONFIG"), ambient.home()) {
            (Some(directory), _) => ambient.cwd.join(directory),
            (None, Some(home)) => home.join(".docker"),
            (None, None) => return Err("neither DOCKER_CONFIG nor HOME says where to keep it".to_owned()),
        };
        let path = directory.join("config.json");
        let mut config = read_config(&path)?;
        let key = if self.registry == "index.docker.io" { HUB } else { &self.registry };
        if let Some(helper) = helper(&config, &self.registry, key) {
            let options = request::credentials(ambient);
            let login = (self.user.as_str(), &self.password);
            let kept = keep_password(&helper, key, login, &options, &Cancel::default());
            return kept.map_err(|error| told(&error));
        }
        let text =
            base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", self.user, self.password.expose()));
        let auths = config.entry("auths").or_insert_with(|| json!({}));
        let Value::Object(auths) = auths else { return Err(format!("`auths` in `{}` is no object", path.display())) };
        auths.insert(key.to_owned(), json!({ "auth": text }));
        write_config(&directory, &path, &config).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path.display().to_string())
    }
}

/// Name of the helper that keeps passwords of a registry, if the configuration names one.
fn helper(config: &Map<String, Value>, registry: &str, key: &str) -> Option<String> {
    let of_host = |name: &str| config.get("credHelpers")?.get(name)?.as_str();
    let name = of_host(registry).or_else(|| of_host(key)).or_else(|| config.get("credsStore")?.as_str())?;
    (!name.is_empty()).then(|| name.to_owned())
}

fn read_config(path: &Path) -> Result<Map<String, Value>, String> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_err(|error| format!("`{}` is not valid: {error}", path.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Map::new()),
        Err(error) => Err(format!("cannot read `{}`: {error}", path.display())),
    }
}

/// Replaces the file at once; in place where that cannot be, as when it is a mount.
fn write_config(directory: &Path, path: &Path, config: &Map<String, Value>) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let text = serde_json::to_string_pretty(config).map_err(io::Error::other)? + "\n";
    let replaced = tempfile::Builder::new().prefix(".config").tempfile_in(directory).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    });
    replaced.or_else(|_| {
        let open: io::Result<fs::File> =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(PathBuf::from(path));
        open?.write_all(text.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ambient(directory: &Path) -> Ambient {
        let environment = [("DOCKER_CONFIG".into(), directory.as_os_str().to_owned())].into();
        Ambient { environment, cwd: directory.to_owned(), ..Ambient::default() }
    }

    fn login(registry: &str) -> Login {
        Login { registry: registry.to_owned(), user: "u".to_owned(), password: Secret::new("p:w") }
    }

    #[test]
    fn what_was_in_the_configuration_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.json");
        fs::write(&path, r#"{"auths":{"a":{"auth":"x"}},"other":1}"#).expect("a file");
        login("index.docker.io").keep(&ambient(directory.path())).expect("kept");
        login("b:5000").keep(&ambient(directory.path())).expect("kept");
        let found: Value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
        let auth = json!({ "auth": "dTpwOnc=" });
        assert_eq!(found, json!({ "auths": { "a": { "auth": "x" }, HUB: auth, "b:5000": auth }, "other": 1 }));
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_broken_configuration_is_named_and_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.json");
        fs::write(&path, "{").expect("a file");
        let error = login("a").keep(&ambient(directory.path())).expect_err("not valid");
        assert!(error.contains("config.json"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("a file"), "{");
    }

    #[test]
    fn helpers_are_asked_where_one_is_named() {
        let config: Map<String, Value> =
            serde_json::from_str(r#"{"credsStore":"all","credHelpers":{"a":"one"}}"#).expect("JSON");
        assert_eq!(helper(&config, "a", "a").as_deref(), Some("one"));
        assert_eq!(helper(&config, "b", "b").as_deref(), Some("all"));
        assert_eq!(helper(&Map::new(), "b", "b"), None);
    }
}
