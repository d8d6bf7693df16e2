//! Which registry stands in for which, and how they may be spoken to.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::limits::Limits;
use crate::oci::Reference;

/// Settings of a [`super::Registry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryOptions {
    /// Maps and mirrors; only pulls look at them.
    pub maps: Vec<RegistryMap>,
    /// Registries (`host[:port]`) that may be spoken to without TLS if they do not offer it.
    pub insecure: BTreeSet<String>,
    /// The same for every registry.
    pub insecure_all: bool,
    /// The same for registries whose name is an address of a private network (RFC 1918), as clients written in Go do.
    pub insecure_private: bool,
    /// Largest manifest, index or config, in bytes.
    pub metadata_bytes: u64,
    /// Uploads go in pieces of this many bytes; `None` sends each blob in one piece until a registry refuses that.
    pub upload_chunk_bytes: Option<u64>,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            maps: Vec::new(),
            insecure: BTreeSet::new(),
            insecure_all: false,
            insecure_private: false,
            metadata_bytes: Limits::default().metadata_bytes,
            upload_chunk_bytes: None,
        }
    }
}

/// Registries that are asked in place of another, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryMap {
    /// As in references; `index.docker.io` means `docker.io`.
    pub registry: String,
    /// Who is asked.
    pub targets: Vec<MapTarget>,
    /// Whether the registry itself is asked after all targets failed.
    pub fallback: bool,
}

/// `host[:port][/prefix]`, where repositories lie below `prefix`. `http://` before it allows plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapTarget {
    /// Host and port.
    pub registry: String,
    /// Path before each repository; may be empty.
    pub prefix: String,
    /// Whether `http://` was given.
    pub insecure: bool,
}

/// A text that does not name a registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a registry of the form host[:port][/prefix]")]
pub struct MapTargetParseError {
    /// What was given.
    pub text: String,
}

impl FromStr for MapTarget {
    type Err = MapTargetParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (insecure, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => (false, text),
        };
        let (registry, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let error = || MapTargetParseError { text: text.to_owned() };
        // The grammar of hosts and paths is that of references; a dummy repository makes it one.
        let dummy = if prefix.is_empty() { "x".to_owned() } else { format!("{prefix}/x") };
        let known_as_host = registry.contains(['.', ':']) || registry == "localhost";
        let name = if known_as_host { format!("{registry}/{dummy}") } else { format!("{registry}.x/{dummy}") };
        let port = registry.rsplit_once(':').filter(|(_, after)| !after.contains(']')).map(|(_, port)| port);
        let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok());
        let valid = !registry.is_empty() && port_ok && name.parse::<Reference>().is_ok();
        if !valid {
            return Err(error());
        }
        Ok(Self { registry: canonical(registry).to_owned(), prefix: prefix.to_owned(), insecure })
    }
}

/// Docker Hub has several names.
pub(super) fn canonical(registry: &str) -> &str {
    match registry {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

impl RegistryOptions {
    /// Where `reference` is looked for, in order.
    pub fn locations(&self, reference: &Reference) -> Vec<Reference> {
        let matching = || self.maps.iter().filter(|map| canonical(&map.registry) == reference.registry());
        let mut locations: Vec<Reference> = matching()
            .flat_map(|map| &map.targets)
            .map(|target| reference.relocated(&target.registry, &target.prefix))
            .collect();
        if matching().all(|map| map.fallback || map.targets.is_empty()) {
            locations.push(reference.clone());
        }
        locations
    }

    /// Whether plain HTTP is allowed although the host is not this machine.
    pub(super) fn allows_plain_http(&self, registry: &str) -> bool {
        let listed = |known: &String| canonical(known) == registry;
        self.insecure_all
            || self.insecure_private && is_private(registry)
            || self.insecure.iter().any(listed)
            || self
                .maps
                .iter()
                .flat_map(|map| &map.targets)
                .any(|target| target.insecure && target.registry == registry)
    }
}

/// Whether a registry's name is an address of a private network (RFC 1918).
fn is_private(registry: &str) -> bool {
    let host = registry.split_once(':').map_or(registry, |(host, _)| host);
    host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_private())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(registry: &str, targets: &[&str], fallback: bool) -> RegistryMap {
        let targets = targets.iter().map(|text| text.parse().expect("a target")).collect();
        RegistryMap { registry: registry.to_owned(), targets, fallback }
    }

    #[track_caller]
    fn check(maps: Vec<RegistryMap>, reference: &str, expected: &[&str]) {
        let options = RegistryOptions { maps, ..RegistryOptions::default() };
        let locations = options.locations(&reference.parse().expect("a reference"));
        let locations: Vec<_> = locations.iter().map(ToString::to_string).collect();
        assert_eq!(locations, expected);
    }

    #[test]
    fn maps_replace_or_precede() {
        check(vec![], "x", &["docker.io/library/x:latest"]);
        check(vec![map("docker.io", &["localhost:5000"], false)], "x:1", &["localhost:5000/library/x:1"]);
        let both = &["m/library/x:1", "docker.io/library/x:1"];
        check(vec![map("index.docker.io", &["m"], true)], "x:1", both);
        check(vec![map("a.io", &["b.io/p/q", "c.io"], false)], "a.io/x:1", &["b.io/p/q/x:1", "c.io/x:1"]);
        check(vec![map("a.io", &["b.io"], false)], "c.io/x:1", &["c.io/x:1"]);
    }

    #[test]
    fn private_addresses_are_told_from_others() {
        let options = RegistryOptions { insecure_private: true, ..RegistryOptions::default() };
        for (registry, private) in [
            ("10.0.0.1", true),
            ("10.43.7.1:5000", true),
            ("172.16.0.1:5000", true),
            ("192.168.1.1", true),
            ("172.32.0.1", false),
            ("8.8.8.8:5000", false),
            ("10.0.0.1.example:5000", false),
            ("docker.io", false),
        ] {
            assert_eq!(options.allows_plain_http(registry), private, "{registry}");
            assert!(!RegistryOptions::default().allows_plain_http(registry), "{registry}");
        }
    }

    #[test]
    fn targets_are_hosts_with_a_prefix() {
        let target = |registry: &str, prefix: &str, insecure| {
            Ok(MapTarget { registry: registry.to_owned(), prefix: prefix.to_owned(), insecure })
        };
        assert_eq!("localhost:5000".parse(), target("localhost:5000", "", false));
        assert_eq!("http://m/a/b/".parse(), target("m", "a/b", true));
        assert_eq!("https://index.docker.io".parse(), target("docker.io", "", false));
        for bad in ["", "/a", "a b", "h/UPPER", "ftp://h", "h?x"] {
            assert!(bad.parse::<MapTarget>().is_err(), "{bad}");
        }
    }
}
