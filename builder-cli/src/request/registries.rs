//! How registries are reached: maps, mirrors, certificates, credentials, proxies.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use builder_core::cloud::CloudEnvironment;
use builder_core::http::{ClientOptions, HostOptions, ProxyOptions};
use builder_core::registry::{CredentialOptions, MapTarget, RegistryMap, RegistryOptions};

use super::ambient::Ambient;
use super::error::UsageError;
use super::values::name_value;
use crate::flags::RegistryFlags;

/// Where Docker keeps a host's certificates: `HOST[:PORT]/*.crt`, `*.cert` with `*.key`.
const CERTIFICATES: &str = "/etc/docker/certs.d";

/// Everything that decides how registries are reached.
#[derive(Debug, Clone)]
pub struct Registries {
    /// Maps and mirrors, and who may be spoken to without TLS.
    pub registry: RegistryOptions,
    /// Certificates and proxies.
    pub client: ClientOptions,
    /// Where logins are kept.
    pub credentials: CredentialOptions,
}

pub(super) fn read(flags: &RegistryFlags, ambient: &Ambient) -> Result<Registries, UsageError> {
    Ok(Registries {
        registry: RegistryOptions {
            maps: maps(flags)?,
            insecure: flags.insecure_registry.iter().cloned().collect(),
            ..RegistryOptions::default()
        },
        client: ClientOptions { proxies: proxies(ambient), ..certificates(flags, ambient)? },
        credentials: credentials(ambient),
    })
}

fn maps(flags: &RegistryFlags) -> Result<Vec<RegistryMap>, UsageError> {
    let mut maps: Vec<RegistryMap> = Vec::new();
    let mut add = |flag: &'static str, text: &str, fallback: bool| -> Result<(), UsageError> {
        let (from, to) = match text.split_once('=') {
            Some(parts) => parts,
            None if fallback => ("docker.io", text),
            None => return Err(UsageError::value(flag, text, "it is FROM=HOST[:PORT][/PREFIX]")),
        };
        let registry = from.trim_end_matches('/').to_owned();
        let target: MapTarget = to.parse().map_err(|error| UsageError::value(flag, text, error))?;
        match maps.iter_mut().find(|map| map.registry == registry && map.fallback == fallback) {
            Some(map) => map.targets.push(target),
            None => maps.push(RegistryMap { registry, targets: vec![target], fallback }),
        }
        Ok(())
    };
    for text in flags.registry_map.iter().filter(|text| !text.is_empty()) {
        add("--registry-map", text, false)?;
    }
    for text in flags.registry_mirror.iter().filter(|text| !text.is_empty()) {
        add("--registry-mirror", text, true)?;
    }
    Ok(maps)
}

fn certificates(flags: &RegistryFlags, ambient: &Ambient) -> Result<ClientOptions, UsageError> {
    let mut options = ClientOptions::default();
    let mut hosts: BTreeMap<String, HostOptions> = docker_certificates(Path::new(CERTIFICATES));
    let file = |flag: &'static str, text: &str, path: &str| {
        let path = ambient.cwd.join(path);
        // A certificate file that cannot be read must not become "no certificate".
        fs::metadata(&path).map_err(|source| UsageError::value(flag, text, source))?;
        Ok::<PathBuf, UsageError>(path)
    };
    for text in &flags.registry_ca {
        let flag = "--registry-ca";
        match text.split_once('=') {
            Some((host, path)) => {
                hosts.entry(host.to_owned()).or_default().ca_files.push(file(flag, text, path)?);
            }
            None => options.ca_files.push(file(flag, text, text)?),
        }
    }
    for text in &flags.registry_client_cert {
        let flag = "--registry-client-cert";
        let (host, files) = name_value(flag, text)?;
        let (certificate, key) = files.split_once(',').unwrap_or((&files, &files));
        let pair = (file(flag, text, certificate)?, file(flag, text, key)?);
        hosts.entry(host).or_default().client_certificate = Some(pair);
    }
    for host in &flags.insecure_registry {
        hosts.entry(host.clone()).or_default().skip_tls_verify = true;
    }
    options.hosts = hosts;
    Ok(options)
}

/// Certificates that an administrator put where Docker looks. A directory that cannot be read is as good as none.
fn docker_certificates(dir: &Path) -> BTreeMap<String, HostOptions> {
    let mut hosts = BTreeMap::new();
    for host in fs::read_dir(dir).into_iter().flatten().flatten() {
        let mut options = HostOptions::default();
        let mut files: Vec<PathBuf> =
            fs::read_dir(host.path()).into_iter().flatten().flatten().map(|file| file.path()).collect();
        files.sort();
        for file in files {
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => options.ca_files.push(file),
                Some("cert") => {
                    let key = file.with_extension("key");
                    options.client_certificate = Some((file, key));
                }
                _ => {}
            }
        }
        if let (true, Ok(name)) = (options != HostOptions::default(), host.file_name().into_string()) {
            hosts.insert(name, options);
        }
    }
    hosts
}

fn proxies(ambient: &Ambient) -> ProxyOptions {
    let all = ambient.first(&["all_proxy", "ALL_PROXY"]);
    let proxy = |names: &[&str]| ambient.first(names).or(all).map(str::to_owned);
    ProxyOptions {
        http: proxy(&["http_proxy", "HTTP_PROXY"]),
        https: proxy(&["https_proxy", "HTTPS_PROXY"]),
        no_proxy: ambient.first(&["no_proxy", "NO_PROXY"]).unwrap_or_default().to_owned(),
    }
}

/// What clouds look at: variables that are text, and where their tools keep files.
fn cloud(ambient: &Ambient) -> CloudEnvironment {
    let text = |(name, value): (&OsString, &OsString)| Some((name.to_str()?.to_owned(), value.to_str()?.to_owned()));
    CloudEnvironment::new(ambient.environment.iter().filter_map(text).collect(), ambient.home().map(Path::to_owned))
}

/// Docker's and podman's places of logins, in the order in which podman looks (containers-auth.json(5)); an explicit
/// `DOCKER_CONFIG` goes before all.
pub fn credentials(ambient: &Ambient) -> CredentialOptions {
    let mut files = Vec::new();
    if let Some(dir) = ambient.var("DOCKER_CONFIG") {
        files.push(Path::new(dir).join("config.json"));
    }
    if let Some(file) = ambient.var("REGISTRY_AUTH_FILE") {
        files.push(PathBuf::from(file));
    }
    if let (None, Some(home)) = (ambient.var("DOCKER_CONFIG"), ambient.home()) {
        files.push(home.join(".docker/config.json"));
    }
    if let Some(dir) = ambient.var("XDG_RUNTIME_DIR") {
        files.push(Path::new(dir).join("containers/auth.json"));
    }
    let settings = ambient.var("XDG_CONFIG_HOME").map(PathBuf::from);
    if let Some(settings) = settings.or_else(|| Some(ambient.home()?.join(".config"))) {
        files.push(settings.join("containers/auth.json"));
    }
    CredentialOptions {
        inline: ambient.text("DOCKER_AUTH_CONFIG").map(str::to_owned),
        files,
        helper_environment: ambient.environment.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        environment: cloud(ambient),
        ..CredentialOptions::default()
    }
}
