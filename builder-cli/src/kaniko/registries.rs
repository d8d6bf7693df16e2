//! Kaniko's flags about registries → clients for pulls and pushes.

use std::fs;
use std::path::{Path, PathBuf};

use builder_core::exec::PushSettings;
use builder_core::http::{ClientOptions, Url};
use builder_core::output::PushOptions;
use builder_core::registry::{CloudSource, MapTarget, RegistryMap};

use super::flags;
use super::grammar::Parsed;
use super::refusal::Refusal;
use super::values;
use crate::request::{Ambient, Registries};

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct Reached {
    /// For pulls, and for everything that is no registry.
    pub pull: Registries,
    /// The client of registries that are pulled from; that in `pull` is for everything else.
    pub registry_client: ClientOptions,
    /// For pushes.
    pub push: PushSettings,
}

/// Reads the flags over what `slipway` knows from its own variables.
///
/// # Errors
/// [`Refusal`], for certificates that cannot be read and maps that are none.
pub fn read(parsed: &Parsed, mut pull: Registries, ambient: &Ambient) -> Result<Reached, Refusal> {
    certificates(parsed, &mut pull, ambient)?;
    pull.client.root_files.extend(usual_roots(ambient));
    pull.registry.insecure.extend(parsed.list(&flags::INSECURE_REGISTRY).iter().cloned());
    pull.registry.insecure_private = true;
    let helpers = parsed.list(&flags::CREDENTIAL_HELPERS);
    if !helpers.is_empty() {
        pull.credentials.cloud.retain(|source| helpers.iter().any(|name| name == source.name()));
    }
    pull.registry.maps.extend(maps(parsed, ambient)?);
    for host in parsed.list(&flags::SKIP_TLS_VERIFY_REGISTRY) {
        pull.client.hosts.entry(host.clone()).or_default().skip_tls_verify = true;
    }
    let retries = parsed.number(&flags::IMAGE_DOWNLOAD_RETRY).max(parsed.number(&flags::IMAGE_FS_EXTRACT_RETRY));
    let retries = u32::try_from(retries.max(0)).unwrap_or(u32::MAX).saturating_add(1);
    pull.client.retry.attempts = pull.client.retry.attempts.max(retries);

    let everything = parsed.is(&flags::SKIP_TLS_VERIFY);
    let of_registries =
        ClientOptions { skip_tls_verify: everything || parsed.is(&flags::SKIP_TLS_VERIFY_PULL), ..pull.client.clone() };
    let mut pushed_to = pull.registry.clone();
    pushed_to.insecure_all |= parsed.is(&flags::INSECURE);
    pull.registry.insecure_all |= parsed.is(&flags::INSECURE_PULL);
    pushed_to.maps.clear();
    let push = PushSettings {
        client: Some(ClientOptions {
            skip_tls_verify: everything,
            user_agent: user_agent(ambient),
            ..pull.client.clone()
        }),
        registry: Some(pushed_to),
        options: PushOptions {
            retries: u32::try_from(parsed.number(&flags::PUSH_RETRY).max(0)).unwrap_or(u32::MAX),
            ignore_immutable_tags: parsed.is(&flags::PUSH_IGNORE_IMMUTABLE_TAG_ERRORS),
        },
    };
    Ok(Reached { pull, registry_client: of_registries, push })
}

/// Names in `--credential-helpers` that nobody knows, which are skipped.
pub fn unknown_helpers(parsed: &Parsed) -> impl Iterator<Item = &String> {
    let known = |name: &String| name.is_empty() || CloudSource::ALL.iter().any(|source| name == source.name());
    parsed.list(&flags::CREDENTIAL_HELPERS).iter().filter(move |name| !known(name))
}

/// Who pushes: registries and their operators tell callers apart by it.
fn user_agent(ambient: &Ambient) -> String {
    let own = concat!("slipway/", env!("CARGO_PKG_VERSION"));
    let upstream = ambient.text("UPSTREAM_CLIENT_TYPE").filter(|text| text.bytes().all(|b| (0x20..0x7f).contains(&b)));
    upstream.map_or_else(|| own.to_owned(), |upstream| format!("{own},{upstream}"))
}

fn certificates(parsed: &Parsed, pull: &mut Registries, ambient: &Ambient) -> Result<(), Refusal> {
    let file = |flag: &'static str, value: &str, path: &str| {
        let path = ambient.cwd.join(path);
        // A certificate that cannot be read must not become none.
        match fs::metadata(&path) {
            Ok(_) => Ok(path),
            Err(error) => Err(Refusal::value(flag, value, format!("{}: {error}", path.display()))),
        }
    };
    for (host, path) in parsed.pairs(&flags::REGISTRY_CERTIFICATE) {
        let path = file("--registry-certificate", &format!("{host}={path}"), &path)?;
        pull.client.hosts.entry(host).or_default().ca_files.push(path);
    }
    for (host, paths) in parsed.pairs(&flags::REGISTRY_CLIENT_CERT) {
        let (flag, value) = ("--registry-client-cert", format!("{host}={paths}"));
        let parts: Vec<&str> = paths.split(',').collect();
        let [certificate, key] = parts[..] else {
            return Err(Refusal::value(
                flag,
                &value,
                "expect 'registry.domain.com=/path/to/client/cert,/path/to/client/key'",
            ));
        };
        let pair = (file(flag, &value, certificate)?, file(flag, &value, key)?);
        pull.client.hosts.entry(host).or_default().client_certificate = Some(pair);
    }
    Ok(())
}

/// Where systems keep their root certificates, as Go's `crypto/x509` looks for them on Linux.
const ROOTS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The system's bundle where `SSL_CERT_DIR` names directories, as it does in Kaniko's image. For Go that does not replace the
/// bundle, and pods mount one with the certificates of their company.
fn usual_roots(ambient: &Ambient) -> Option<PathBuf> {
    let named = ambient.var("SSL_CERT_DIR").is_some() && ambient.var("SSL_CERT_FILE").is_none();
    ROOTS.iter().map(Path::new).find(|path| named && path.is_file()).map(Path::to_owned)
}

/// Maps in the order in which Kaniko asks: those of the flags, of the variable, then mirrors.
fn maps(parsed: &Parsed, ambient: &Ambient) -> Result<Vec<RegistryMap>, Refusal> {
    let mut pairs: Vec<(&'static str, String, String)> = Vec::new();
    let own = [("KANIKO_REGISTRY_MAP", ambient.text("KANIKO_REGISTRY_MAP"))];
    for text in parsed.list(&flags::REGISTRY_MAP) {
        let found = values::multi_map(text).map_err(|reason| Refusal::value("--registry-map", text, reason))?;
        pairs.extend(found.into_iter().map(|(from, to)| ("--registry-map", from, to)));
    }
    for (name, value) in own {
        let Some(value) = value else { continue };
        let found =
            values::multi_map(value).map_err(|reason| Refusal::Variable { name, value: value.to_owned(), reason })?;
        pairs.extend(found.into_iter().map(|(from, to)| (name, from, to)));
    }
    let hub = |flag, to: &str| (flag, "docker.io".to_owned(), to.to_owned());
    pairs.extend(parsed.list(&flags::REGISTRY_MIRROR).iter().map(|to| hub("--registry-mirror", to)));
    if let Some(value) = ambient.text("KANIKO_REGISTRY_MIRROR") {
        if value.contains(';') {
            let reason = "expected a single registry host with optional path, got several".to_owned();
            return Err(Refusal::Variable { name: "KANIKO_REGISTRY_MIRROR", value: value.to_owned(), reason });
        }
        pairs.push(hub("KANIKO_REGISTRY_MIRROR", value));
    }
    let fallback = !parsed.is(&flags::SKIP_DEFAULT_REGISTRY_FALLBACK);
    let mut maps: Vec<RegistryMap> = Vec::new();
    for (flag, from, to) in pairs.into_iter().filter(|(_, _, to)| !to.is_empty()) {
        let target: MapTarget = to.parse().map_err(|error| Refusal::value(flag, &to, error))?;
        let registry = host_of(&from);
        match maps.iter_mut().find(|map| map.registry == registry) {
            Some(map) => map.targets.push(target),
            None => maps.push(RegistryMap { registry, targets: vec![target], fallback }),
        }
    }
    Ok(maps)
}

/// The registry of a key, which some write as a URL.
fn host_of(key: &str) -> String {
    let host = Url::parse(key).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let host = host.and_then(|url| {
        let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
        Some(format!("{}{port}", url.host_str()?))
    });
    match host.as_deref().unwrap_or(key).trim_end_matches('/') {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}
