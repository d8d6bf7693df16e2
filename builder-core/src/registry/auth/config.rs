//! Credentials as Docker's `config.json` keeps them (docker/cli, "docker login"; containers-auth.json(5)).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::cloud::{self, CloudSource};
use super::helper;
use crate::cancel::Cancel;
use crate::cloud::{CloudEnvironment, CloudError};
use crate::http::{self, Secret};
use crate::registry::CredentialError;

/// Key under which Docker keeps the login of Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Where credentials come from; environment and file names enter here, as values.
#[derive(Debug, Clone)]
pub struct CredentialOptions {
    /// Credentials that the caller has already: registry (as in references) and credential. They win.
    pub given: Vec<(String, Credential)>,
    /// Text of `DOCKER_AUTH_CONFIG`: a `config.json` that wins over the files.
    pub inline: Option<String>,
    /// `config.json` files, most important first; missing ones are skipped. The first that knows a registry wins.
    pub files: Vec<PathBuf>,
    /// The environment that credential helpers get; they are looked up in its `PATH`.
    pub helper_environment: Vec<(OsString, OsString)>,
    /// After which time a credential helper is ended.
    pub helper_timeout: Duration,
    /// Who is asked when no configuration knows a registry, in this order.
    pub cloud: Vec<CloudSource>,
    /// What surrounds those.
    pub environment: CloudEnvironment,
}

impl Default for CredentialOptions {
    fn default() -> Self {
        Self {
            given: Vec::new(),
            inline: None,
            files: Vec::new(),
            helper_environment: Vec::new(),
            // Cloud helpers ask metadata servers that answer within seconds, or never.
            helper_timeout: Duration::from_secs(30),
            cloud: CloudSource::ALL.to_vec(),
            environment: CloudEnvironment::default(),
        }
    }
}

/// What proves who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// User and password.
    Basic {
        /// User.
        user: String,
        /// Password.
        password: Secret,
    },
    /// A refresh token that the token server exchanges (distribution, auth/oauth.md).
    IdentityToken(Secret),
    /// A bearer token that is sent as it is.
    RegistryToken(Secret),
}

/// A credential and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The credential.
    pub credential: Credential,
    /// File name, name of the variable, or program.
    pub origin: String,
    /// When it must be asked for again; `None` if it does not expire by itself.
    pub expires: Option<Instant>,
}

impl Identity {
    /// Whether it can still be used.
    pub(in crate::registry) fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|end| Instant::now() < end)
    }

    /// `user "jane" (from ~/.docker/config.json)`, for errors.
    pub fn describe(&self) -> String {
        match &self.credential {
            Credential::Basic { user, .. } => format!("user `{user}` (credentials from {})", self.origin),
            Credential::IdentityToken(_) => format!("the identity token from {}", self.origin),
            Credential::RegistryToken(_) => format!("the registry token from {}", self.origin),
        }
    }
}

/// All configured credentials. Files are read once, when first asked.
#[derive(Debug)]
pub struct Credentials {
    options: CredentialOptions,
    configs: OnceLock<Vec<Config>>,
    /// Answers of helpers by helper and server: a helper may take seconds.
    answers: Mutex<BTreeMap<(String, String), Option<Identity>>>,
    /// What clouds gave, by registry.
    found: Mutex<BTreeMap<String, Identity>>,
    /// Why they gave nothing.
    trouble: Mutex<BTreeMap<String, String>>,
}

#[derive(Debug)]
struct Config {
    origin: String,
    file: ConfigFile,
}

/// The parts of `config.json` that matter here; everything else in it is other programs' business.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    #[serde(deserialize_with = "null_is_default")]
    auths: BTreeMap<String, Auth>,
    #[serde(deserialize_with = "null_is_default")]
    creds_store: String,
    #[serde(deserialize_with = "null_is_default")]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    #[serde(deserialize_with = "null_is_default")]
    auth: String,
    #[serde(deserialize_with = "null_is_default")]
    username: String,
    #[serde(deserialize_with = "null_is_default")]
    password: String,
    #[serde(deserialize_with = "null_is_default")]
    identitytoken: String,
    #[serde(deserialize_with = "null_is_default")]
    registrytoken: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth(****)")
    }
}

fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

impl Credentials {
    /// Credentials from these places. Nothing is read yet.
    pub fn new(options: CredentialOptions) -> Self {
        Self {
            options,
            configs: OnceLock::new(),
            answers: Mutex::default(),
            found: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// The credential for a repository of a registry, both as in references. `None` if nothing is configured.
    ///
    /// # Errors
    /// If a configuration is broken or a helper fails: going on without would only hide it behind a 401.
    pub fn find(
        &self,
        registry: &str,
        repository: &str,
        client: &http::Client,
        cancel: &Cancel,
    ) -> Result<Option<Identity>, CredentialError> {
        if let Some((_, credential)) = self.options.given.iter().find(|(known, _)| known == registry) {
            return Ok(Some(Identity {
                credential: credential.clone(),
                origin: "the caller".to_owned(),
                expires: None,
            }));
        }
        let keys = server_keys(registry);
        for config in self.configs()? {
            let helper = keys.iter().find_map(|key| config.file.cred_helpers.get(*key)).filter(|name| !name.is_empty());
            if let Some(name) = helper {
                match self.ask(name, keys[0], cancel) {
                    // What the helper would do is done here.
                    Err(CredentialError::HelperMissing { .. }) if CloudSource::of_helper(name).is_some() => {}
                    answer => return answer,
                }
            }
            if !config.file.creds_store.is_empty() {
                match self.ask(&config.file.creds_store, keys[0], cancel) {
                    Ok(Some(found)) => return Ok(Some(found)),
                    Ok(None) => {}
                    // The store may have been meant for other registries; if this one wants a login, it says so.
                    Err(error @ CredentialError::HelperMissing { .. }) => self.note(registry, error.to_string()),
                    Err(error) => return Err(error),
                }
            }
            if let Some(found) = config.lookup(registry, repository)? {
                return Ok(Some(found));
            }
        }
        self.of_cloud(registry, client, cancel)
    }

    /// What the machine itself is to the registry.
    fn of_cloud(
        &self,
        registry: &str,
        client: &http::Client,
        cancel: &Cancel,
    ) -> Result<Option<Identity>, CredentialError> {
        // Held while a cloud is asked, so that it is not asked twice.
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = found.get(registry).filter(|known| known.is_fresh()) {
            return Ok(Some(known.clone()));
        }
        for source in &self.options.cloud {
            match source.find(registry, &self.options.environment, client, cancel) {
                Ok(Some(identity)) => {
                    found.insert(registry.to_owned(), identity.clone());
                    return Ok(Some(identity));
                }
                Ok(None) => {}
                Err(CloudError::Cancelled) => return Err(CredentialError::Cancelled),
                Err(error) => self.note(registry, cloud::told(&error)),
            }
        }
        Ok(None)
    }

    fn note(&self, registry: &str, trouble: String) {
        tracing::debug!(registry, trouble, "no credentials from here");
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).insert(registry.to_owned(), trouble);
    }

    /// Why there are no credentials for a registry, if somebody tried and failed.
    pub fn trouble(&self, registry: &str) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get(registry).cloned()
    }

    /// Forgets what can be asked for again, because a registry no longer takes it.
    pub(in crate::registry) fn forget(&self, registry: &str) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).remove(registry);
        let keys = server_keys(registry);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.retain(|(_, server), _| !keys.contains(&server.as_str()));
    }

    fn ask(&self, helper: &str, server: &str, cancel: &Cancel) -> Result<Option<Identity>, CredentialError> {
        // Held while the helper runs, so that it is not asked twice; a map of finished answers survives any panic.
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (helper.to_owned(), server.to_owned());
        if let Some(known) = answers.get(&key) {
            return Ok(known.clone());
        }
        let answer = helper::get(helper, server, &self.options, cancel)?;
        answers.insert(key, answer.clone());
        Ok(answer)
    }

    fn configs(&self) -> Result<&[Config], CredentialError> {
        if let Some(configs) = self.configs.get() {
            return Ok(configs);
        }
        let read = read(&self.options)?;
        Ok(self.configs.get_or_init(|| read))
    }
}

fn read(options: &CredentialOptions) -> Result<Vec<Config>, CredentialError> {
    let mut configs = Vec::new();
    if let Some(text) = options.inline.as_deref().filter(|text| !text.trim().is_empty()) {
        configs.push(parse(text.as_bytes(), "DOCKER_AUTH_CONFIG".to_owned())?);
    }
    for path in &options.files {
        match fs::read(path) {
            Ok(text) if text.trim_ascii().is_empty() => {}
            Ok(text) => configs.push(parse(&text, format!("`{}`", path.display()))?),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(source) => return Err(CredentialError::Read { path: path.clone(), source }),
        }
    }
    Ok(configs)
}

fn parse(text: &[u8], origin: String) -> Result<Config, CredentialError> {
    match serde_json::from_slice(text) {
        Ok(file) => Ok(Config { origin, file }),
        Err(source) => Err(CredentialError::Parse { origin, source }),
    }
}

/// Keys under which a registry's helper or login may be kept; the first is what helpers are asked for.
fn server_keys(registry: &str) -> Vec<&str> {
    match registry {
        "docker.io" => vec![HUB_KEY, "index.docker.io", "docker.io", "registry-1.docker.io"],
        other => vec![other],
    }
}

impl Config {
    /// A key names a host, optionally with a scheme and `/v1/` or `/v2/`, or a host and a path that the repository lies
    /// under. The longest wins; no login is ever used for another host or for a repository beside its path.
    fn lookup(&self, registry: &str, repository: &str) -> Result<Option<Identity>, CredentialError> {
        let hosts = server_keys(registry);
        let full = format!("/{repository}/");
        let mut best: Option<(usize, &String, &Auth)> = None;
        for (key, auth) in &self.file.auths {
            let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
            let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
            if !hosts.contains(&host) {
                continue;
            }
            let path = path.trim_matches('/');
            let rank = if key == hosts[0] {
                1
            } else if path.is_empty() || matches!(path, "v1" | "v2") {
                0
            } else if full.starts_with(&format!("/{path}/")) {
                1 + path.len()
            } else {
                continue;
            };
            if best.is_none_or(|(known, ..)| rank > known) {
                best = Some((rank, key, auth));
            }
        }
        let Some((_, key, auth)) = best else { return Ok(None) };
        let credential = auth.credential(&self.origin, key)?;
        Ok(credential.map(|credential| Identity { credential, origin: self.origin.clone(), expires: None }))
    }
}

impl Auth {
    fn credential(&self, origin: &str, key: &str) -> Result<Option<Credential>, CredentialError> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credential::RegistryToken(Secret::new(&self.registrytoken))));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::IdentityToken(Secret::new(&self.identitytoken))));
        }
        if !self.username.is_empty() {
            let password = Secret::new(&self.password);
            return Ok(Some(Credential::Basic { user: self.username.clone(), password }));
        }
        let encoded = self.auth.trim();
        if encoded.is_empty() {
            return Ok(None);
        }
        let bad = || CredentialError::BadAuth { origin: origin.to_owned(), key: key.to_owned() };
        let decoded = STANDARD.decode(encoded).or_else(|_| STANDARD_NO_PAD.decode(encoded)).map_err(|_| bad())?;
        let text = String::from_utf8(decoded).map_err(|_| bad())?;
        let (user, password) = text.split_once(':').ok_or_else(bad)?;
        // Docker once padded passwords with NULs.
        let password = Secret::new(password.trim_matches('\0'));
        Ok(Some(Credential::Basic { user: user.to_owned(), password }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(config: &str, registry: &str, repository: &str) -> Result<Option<Credential>, CredentialError> {
        let options = CredentialOptions { inline: Some(config.to_owned()), ..CredentialOptions::default() };
        let client = http::Client::new(http::ClientOptions::default());
        let found = Credentials::new(options).find(registry, repository, &client, &Cancel::default());
        found.map(|identity| identity.map(|identity| identity.credential))
    }

    #[track_caller]
    fn check(config: &str, registry: &str, repository: &str, expected: Option<(&str, &str)>) {
        let expected = expected
            .map(|(user, password)| Credential::Basic { user: user.to_owned(), password: Secret::new(password) });
        let found = find(config, registry, repository).expect("a valid configuration");
        assert_eq!(found, expected, "{registry}/{repository} in {config}");
    }

    #[test]
    fn keys_match_their_host_and_nothing_else() {
        // base64 of a:b
        let one = |key: &str| format!(r#"{{"auths":{{"{key}":{{"auth":"YTpi"}}}}}}"#);
        let ab = Some(("a", "b"));
        for key in ["r.io", "https://r.io", "http://r.io/", "https://r.io/v1/", "r.io/v2/"] {
            check(&one(key), "r.io", "x/y", ab);
            check(&one(key), "r.io:443", "x/y", None);
            check(&one(key), "q.r.io", "x/y", None);
            check(&one(key), "docker.io", "library/x", None);
        }
        for key in [HUB_KEY, "docker.io", "index.docker.io", "https://index.docker.io/v2/", "registry-1.docker.io"] {
            check(&one(key), "docker.io", "library/x", ab);
            check(&one(key), "r.io", "library/x", None);
        }
        check(&one("localhost:5000"), "localhost:5000", "x", ab);
        check(&one("localhost:5000"), "localhost", "x", None);
        check(&one("r.io/x"), "r.io", "x/y", ab);
        check(&one("r.io/x"), "r.io", "x", ab);
        check(&one("r.io/x"), "r.io", "xy", None);
        check(&one("r.io/x"), "r.io", "z", None);
    }

    #[test]
    fn longer_paths_win_and_forms_agree() {
        let config = r#"{"auths":{
            "r.io":{"username":"host","password":"1"},
            "r.io/x":{"username":"x","password":"2"},
            "r.io/x/y":{"username":"xy","password":"3"},
            "empty.io":{}, "pad.io":{"auth":"YTpiOmM"}, "null.io":{"auth":null}},
            "HttpHeaders":{"a":"b"}, "credHelpers":null}"#;
        check(config, "r.io", "z", Some(("host", "1")));
        check(config, "r.io", "x/z", Some(("x", "2")));
        check(config, "r.io", "x/y", Some(("xy", "3")));
        check(config, "empty.io", "x", None);
        check(config, "null.io", "x", None);
        check(config, "pad.io", "x", Some(("a", "b:c")));
    }

    #[test]
    fn tokens_and_errors_are_told_apart() {
        let config = r#"{"auths":{"i.io":{"auth":"YTpi","identitytoken":"t"},"r.io":{"registrytoken":"t"},
            "bad.io":{"auth":"!"},"colon.io":{"auth":"YWI="}}}"#;
        let token = || Secret::new("t");
        assert_eq!(find(config, "i.io", "x").expect("valid"), Some(Credential::IdentityToken(token())));
        assert_eq!(find(config, "r.io", "x").expect("valid"), Some(Credential::RegistryToken(token())));
        for registry in ["bad.io", "colon.io"] {
            assert!(matches!(find(config, registry, "x"), Err(CredentialError::BadAuth { .. })), "{registry}");
        }
        assert!(matches!(find("{", "r.io", "x"), Err(CredentialError::Parse { .. })));
    }

    #[test]
    fn helpers_are_asked_once_for_their_registry_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let program = directory.path().join("docker-credential-test");
        let count = directory.path().join("count");
        let answer = r#"{\"Username\":\"$server\",\"Secret\":\"s\"}"#;
        let script = format!("#!/bin/sh\nread server\necho x >>{}\necho \"{answer}\"\n", count.display());
        fs::write(&program, script).expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("made executable");
        let ask = |config: &str, questions: &[(&str, Option<&str>)]| {
            let options = CredentialOptions {
                inline: Some(config.to_owned()),
                helper_environment: vec![("PATH".into(), directory.path().into())],
                ..CredentialOptions::default()
            };
            let credentials = Credentials::new(options);
            let client = http::Client::new(http::ClientOptions::default());
            for (registry, expected) in questions {
                let found = credentials.find(registry, "x", &client, &Cancel::default()).expect("an answer");
                let user = found.map(|identity| match identity.credential {
                    Credential::Basic { user, .. } => user,
                    other => panic!("{other:?}"),
                });
                assert_eq!(user.as_deref(), *expected, "{registry}");
            }
            let asked = fs::read_to_string(&count).unwrap_or_default().lines().count();
            fs::write(&count, "").expect("written");
            asked
        };
        let auths = r#""auths":{"r.io":{"username":"plain","password":"p"},"q.io":{"username":"q","password":"p"}}"#;
        let helpers = format!(r#"{{"credHelpers":{{"r.io":"test"}},{auths}}}"#);
        assert_eq!(ask(&helpers, &[("r.io", Some("r.io")), ("r.io", Some("r.io")), ("q.io", Some("q"))]), 1);
        let store = format!(r#"{{"credsStore":"test",{auths}}}"#);
        assert_eq!(ask(&store, &[("docker.io", Some(HUB_KEY)), ("r.io", Some("r.io"))]), 2);
    }

    #[test]
    fn earlier_files_win_and_missing_ones_are_skipped() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let file = |name: &str, user: &str| {
            let path = directory.path().join(name);
            let text = format!(r#"{{"auths":{{"r.io":{{"username":"{user}","password":"p"}}}}}}"#);
            fs::write(&path, text).expect("written");
            path
        };
        let files = vec![directory.path().join("missing"), file("one", "first"), file("two", "second")];
        let credentials = Credentials::new(CredentialOptions { files, ..CredentialOptions::default() });
        let client = http::Client::new(http::ClientOptions::default());
        let found = credentials.find("r.io", "x", &client, &Cancel::default()).expect("valid").expect("known");
        assert!(found.describe().contains("first") && found.describe().contains("/one"), "{}", found.describe());
        assert!(!format!("{credentials:?}").contains("\"p\""));
    }
}
