//! Identities that nobody configured for a registry, but that this machine has: variables, and roles in a cloud.
//!
//! Each source answers for its own hosts only, compared whole and never by a part of a name. Sources are asked in order, and the
//! first that knows something wins. One that fails is passed over: its reason is told with the registry's 401, if that comes.

use std::time::{Duration, Instant};

use super::config::{Credential, Identity};
use crate::cancel::Cancel;
use crate::cloud::{self, CloudEnvironment, CloudError, CloudToken, EcrRegistry};
use crate::hint::Hint as _;
use crate::http::{self, Secret};

/// Longest time before its end at which a token counts as expired; a tenth of a shorter life.
const MARGIN: Duration = Duration::from_secs(60);

/// Where an identity may come from when no configuration names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CloudSource {
    /// `KANIKO_<HOST>_USER` and `KANIKO_<HOST>_PASSWORD`.
    Environment,
    /// Google's registries.
    Google,
    /// Amazon's registries.
    Ecr,
    /// Azure's registries.
    Acr,
    /// `CI_REGISTRY_USER` and `CI_REGISTRY_PASSWORD` for `CI_REGISTRY`.
    GitLab,
}

impl CloudSource {
    /// All, in the order in which they are asked.
    pub const ALL: [Self; 5] = [Self::Environment, Self::Google, Self::Ecr, Self::Acr, Self::GitLab];

    /// Name as in `--credential-helpers`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Environment => "env",
            Self::Google => "google",
            Self::Ecr => "ecr",
            Self::Acr => "acr",
            Self::GitLab => "gitlab",
        }
    }

    /// The source that does what the helper `docker-credential-<helper>` does.
    pub(super) fn of_helper(helper: &str) -> Option<Self> {
        match helper {
            "gcr" | "gcloud" => Some(Self::Google),
            "ecr-login" => Some(Self::Ecr),
            "acr" | "acr-env" | "acr-linux" => Some(Self::Acr),
            _ => None,
        }
    }

    /// Asks this source about a registry; `None` if the registry is none of its own, or it knows nothing.
    pub(super) fn find(
        self,
        registry: &str,
        environment: &CloudEnvironment,
        client: &http::Client,
        cancel: &Cancel,
    ) -> Result<Option<Identity>, CloudError> {
        match self {
            Self::Environment => Ok(from_variables(registry, environment)),
            Self::GitLab => Ok(gitlab(registry, environment)),
            Self::Google if is_google(registry) => {
                let token = cloud::access_token(environment, client, cancel)?;
                Ok(Some(basic("oauth2accesstoken", token, "Google's credentials")))
            }
            Self::Acr if is_azure(registry) => {
                let token = cloud::acr_refresh_token(registry, environment, client, cancel)?;
                Ok(Some(Identity {
                    expires: end(token.life),
                    credential: Credential::IdentityToken(token.token),
                    origin: "Azure's credentials".to_owned(),
                }))
            }
            Self::Ecr => {
                let Some(host) = EcrRegistry::of(registry) else { return Ok(None) };
                let (user, token) = match cloud::ecr_login(&host, environment, client, cancel) {
                    // Everybody may read there.
                    Err(error) if host == EcrRegistry::Public && !matches!(error, CloudError::Cancelled) => {
                        tracing::debug!(%error, "public.ecr.aws is used without a login");
                        return Ok(None);
                    }
                    answer => answer?,
                };
                Ok(Some(basic(&user, token, "Amazon's credentials")))
            }
            Self::Google | Self::Acr => Ok(None),
        }
    }
}

fn basic(user: &str, token: CloudToken, origin: &str) -> Identity {
    let credential = Credential::Basic { user: user.to_owned(), password: token.token };
    Identity { credential, origin: origin.to_owned(), expires: end(token.life) }
}

/// A little before the end, so that a request under way does not outlive it.
fn end(life: Duration) -> Option<Instant> {
    Instant::now().checked_add(life - MARGIN.min(life / 10))
}

fn is_google(registry: &str) -> bool {
    registry == "gcr.io" || [".gcr.io", ".pkg.dev", ".google.com"].iter().any(|domain| registry.ends_with(domain))
}

fn is_azure(registry: &str) -> bool {
    let domains = [".azurecr.io", ".azurecr.cn", ".azurecr.de", ".azurecr.us"];
    domains.iter().any(|domain| registry.strip_suffix(domain).is_some_and(|name| !name.is_empty()))
}

/// The whole host first, then without its first labels, as Kaniko does: `registry.a.com`, `a.com`, `com`.
fn from_variables(registry: &str, environment: &CloudEnvironment) -> Option<Identity> {
    let name = if registry == "docker.io" { "index.docker.io" } else { registry };
    let mut rest = Some(name);
    while let Some(host) = rest {
        let host_name = host.to_ascii_uppercase().replace(['-', '.'], "_");
        let variable = |what: &str| environment.get(&format!("KANIKO_{host_name}_{what}"));
        if let (Some(user), Some(password)) = (variable("USER"), variable("PASSWORD")) {
            let credential = Credential::Basic { user: user.to_owned(), password: Secret::new(password) };
            return Some(Identity { credential, origin: format!("KANIKO_{host_name}_PASSWORD"), expires: None });
        }
        rest = host.split_once('.').map(|(_, rest)| rest);
    }
    None
}

/// The registry of the CI job, whatever its port.
fn gitlab(registry: &str, environment: &CloudEnvironment) -> Option<Identity> {
    let named = environment.get("CI_REGISTRY")?;
    let named = named.strip_prefix("https://").or_else(|| named.strip_prefix("http://")).unwrap_or(named);
    let host = |text: &str| {
        let text = text.split('/').next().unwrap_or(text);
        text.rsplit_once(':').map_or(text, |(host, _)| host).to_ascii_lowercase()
    };
    if host(named) != host(registry) {
        return None;
    }
    let (user, password) = (environment.get("CI_REGISTRY_USER")?, environment.get("CI_REGISTRY_PASSWORD")?);
    let credential = Credential::Basic { user: user.to_owned(), password: Secret::new(password) };
    Some(Identity { credential, origin: "CI_REGISTRY_PASSWORD".to_owned(), expires: None })
}

/// An error with its causes and hint, on one line.
pub(super) fn told(error: &CloudError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    error.hint().map_or(text.clone(), |hint| format!("{text} ({hint})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> CloudEnvironment {
        CloudEnvironment::new(variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(), None)
    }

    fn user(identity: Option<Identity>) -> Option<String> {
        identity.map(|identity| match identity.credential {
            Credential::Basic { user, .. } => user,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn look_alikes_get_nothing() {
        for (host, google, azure) in [
            ("gcr.io", true, false),
            ("eu.gcr.io", true, false),
            ("europe-docker.pkg.dev", true, false),
            ("evilgcr.io", false, false),
            ("gcr.io.evil.example", false, false),
            ("pkg.dev.evil.example", false, false),
            ("gcr.io:443", false, false),
            ("x.azurecr.io", false, true),
            ("azurecr.io", false, false),
            (".azurecr.io", false, false),
            ("xazurecr.io", false, false),
            ("x.azurecr.io.evil.example", false, false),
            ("x.azurecr.io:5000", false, false),
        ] {
            assert_eq!((is_google(host), is_azure(host)), (google, azure), "{host}");
        }
    }

    #[test]
    fn variables_name_hosts() {
        let all = environment(&[
            ("KANIKO_REGISTRY_A_COM_USER", "whole"),
            ("KANIKO_REGISTRY_A_COM_PASSWORD", "p"),
            ("KANIKO_B_COM_USER", "part"),
            ("KANIKO_B_COM_PASSWORD", "p"),
            ("KANIKO_LOCALHOST:5000_USER", "port"),
            ("KANIKO_LOCALHOST:5000_PASSWORD", "p"),
            ("KANIKO_INDEX_DOCKER_IO_USER", "hub"),
            ("KANIKO_INDEX_DOCKER_IO_PASSWORD", "p"),
            ("KANIKO_C_COM_USER", "half"),
        ]);
        for (host, expected) in [
            ("registry.a.com", Some("whole")),
            ("registry-a.com", Some("whole")),
            ("a.com", None),
            ("x.y.b.com", Some("part")),
            ("localhost:5000", Some("port")),
            ("localhost", None),
            ("docker.io", Some("hub")),
            ("c.com", None),
        ] {
            assert_eq!(user(from_variables(host, &all)).as_deref(), expected, "{host}");
        }
    }

    #[test]
    fn gitlab_names_its_registry() {
        let job = |registry| {
            environment(&[("CI_REGISTRY", registry), ("CI_REGISTRY_USER", "job"), ("CI_REGISTRY_PASSWORD", "p")])
        };
        for (named, asked, expected) in [
            ("registry.gitlab.com", "registry.gitlab.com", true),
            ("registry.gitlab.com:443", "registry.gitlab.com", true),
            ("https://r.example:5050/", "r.example:5050", true),
            ("r.example", "xr.example", false),
            ("r.example", "r.example.evil", false),
            ("r.example", "docker.io", false),
        ] {
            assert_eq!(user(gitlab(asked, &job(named))).is_some(), expected, "{named} {asked}");
        }
        assert!(gitlab("r.example", &environment(&[("CI_REGISTRY", "r.example")])).is_none());
    }
}
