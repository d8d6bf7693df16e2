//! Bearer tokens (distribution, auth/token.md and auth/oauth.md).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Deserialize;
use url::{Url, form_urlencoded};

use super::config::{Credential, Identity};
use crate::cancel::Cancel;
use crate::http::{self, HttpError, Method, Request, Secret};
use crate::registry::{CredentialError, Place, RegistryError};

/// Name under which token servers list us.
const CLIENT_ID: &str = "slipway";

/// Largest answer of a token server, in bytes; tokens of a few KiB are common, of more than 64 KiB no server would take them back.
const ANSWER_BYTES: u64 = 256 * 1024;

/// Life of a token whose answer states none (distribution, auth/token.md: "60 seconds").
const DEFAULT_LIFE: Duration = Duration::from_secs(60);

/// What a token is asked for: `repository:<name>:pull,push`, sorted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::registry) struct Scopes(BTreeSet<String>);

impl Scopes {
    pub(in crate::registry) fn pull(repository: &str) -> Self {
        Self(BTreeSet::from([format!("repository:{repository}:pull")]))
    }

    pub(in crate::registry) fn push(repository: &str) -> Self {
        Self(BTreeSet::from([format!("repository:{repository}:pull,push")]))
    }

    /// These and what a challenge asks for (scopes separated by spaces), unless that is among them: registries behind
    /// proxies know the repository under another name than its URL says.
    pub(in crate::registry) fn and_asked(mut self, asked: &str) -> Self {
        for scope in asked.split_whitespace() {
            let covered = scope.rsplit_once(':').is_some_and(|(resource, actions)| {
                self.0.iter().filter_map(|own| own.rsplit_once(':')).any(|(own, granted)| {
                    own == resource && actions.split(',').all(|action| granted.split(',').any(|one| one == action))
                })
            });
            if !covered {
                self.0.insert(scope.to_owned());
            }
        }
        self
    }

    pub(in crate::registry) fn and_pull(mut self, repository: &str) -> Self {
        self.0.extend(Self::pull(repository).0);
        self
    }
}

/// A token and how long it may be used.
#[derive(Debug, Clone)]
pub(in crate::registry) struct Token {
    /// Value of the header `Authorization`.
    pub(in crate::registry) header: Secret,
    expires: Instant,
}

impl Token {
    pub(in crate::registry) fn is_fresh(&self) -> bool {
        Instant::now() < self.expires
    }
}

/// Everything that one request for a token needs.
#[derive(Debug)]
pub(in crate::registry) struct TokenRequest<'a> {
    pub(in crate::registry) registry: &'a str,
    pub(in crate::registry) repository: &'a str,
    pub(in crate::registry) realm: &'a str,
    pub(in crate::registry) service: Option<&'a str>,
    pub(in crate::registry) scopes: &'a Scopes,
    pub(in crate::registry) identity: Option<&'a Identity>,
    /// Whether credentials may go to a realm without TLS: the registry itself is spoken to so.
    pub(in crate::registry) clear_text: bool,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl TokenRequest<'_> {
    /// Gets a token.
    pub(in crate::registry) fn send(&self, client: &http::Client, cancel: &Cancel) -> Result<Token, RegistryError> {
        let fail = |error| RegistryError::http(self.registry, error);
        let url = Url::parse(self.realm).map_err(|_| fail(HttpError::BadUrl { url: self.realm.to_owned() }))?;
        let open = url.scheme() == "http" && !url.host_str().is_some_and(http::is_loopback);
        if open && self.identity.is_some() && !self.clear_text {
            let (registry, realm) = (self.registry.to_owned(), http::redacted(&url));
            return Err(CredentialError::ClearTextRealm { registry, realm }.into());
        }
        let asked = Instant::now();
        let response = client.send(self.request(url), cancel).map_err(fail)?;
        let status = response.status();
        if !response.is_success() {
            let attempts = response.attempts();
            let body = crate::registry::ErrorBody::read(response);
            let place = Place::new(self.registry, self.repository);
            let identity = self.identity.map(Identity::describe);
            let message = body.message;
            return Err(match status {
                400 | 401 | 403 => RegistryError::Unauthorized { place, identity, message },
                _ => {
                    let (action, code) = ("the token", body.code);
                    RegistryError::Refused { place, action, status, code, message, attempts }
                }
            });
        }
        let bytes = response.into_bytes(ANSWER_BYTES).map_err(fail)?;
        let lacks = || RegistryError::NotARegistry {
            registry: self.registry.to_owned(),
            lacks: "a token in its token server's answer",
        };
        // A JSON error could quote the token, so it is not kept.
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| lacks())?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty()).ok_or_else(lacks)?;
        let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
        // A tenth less, so that a request under way does not outlive it.
        Ok(Token { header: Secret::new(format!("Bearer {token}")), expires: asked + life.mul_f64(0.9) })
    }

    fn request(&self, mut url: Url) -> Request<'static> {
        if let Some(Identity { credential: Credential::IdentityToken(token), .. }) = self.identity {
            let scopes: Vec<&str> = self.scopes.0.iter().map(String::as_str).collect();
            let body = form_urlencoded::Serializer::new(String::new())
                .append_pair("grant_type", "refresh_token")
                .append_pair("client_id", CLIENT_ID)
                .append_pair("service", self.service.unwrap_or_default())
                .append_pair("scope", &scopes.join(" "))
                .append_pair("refresh_token", token.expose())
                .finish();
            return Request::new(Method::Post, url).bytes("application/x-www-form-urlencoded", body.into_bytes());
        }
        let basic = match self.identity.map(|identity| &identity.credential) {
            Some(Credential::Basic { user, password }) => Some((user, password)),
            _ => None,
        };
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            for scope in &self.scopes.0 {
                query.append_pair("scope", scope);
            }
            if let Some((user, _)) = basic {
                query.append_pair("account", user).append_pair("client_id", CLIENT_ID);
            }
        }
        let request = Request::get(url);
        match basic {
            Some((user, password)) => request.secret_header("Authorization", http::basic(user, password.expose())),
            None => request,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asked_scopes_are_added_unless_covered() {
        for (asked, expected) in [
            ("", vec!["repository:a:pull,push"]),
            ("repository:a:pull", vec!["repository:a:pull,push"]),
            ("repository:a:push,pull", vec!["repository:a:pull,push"]),
            ("repository:a:delete", vec!["repository:a:delete", "repository:a:pull,push"]),
            ("repository:p/a:pull  odd", vec!["odd", "repository:a:pull,push", "repository:p/a:pull"]),
        ] {
            let scopes = Scopes::push("a").and_asked(asked);
            assert_eq!(scopes.0.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{asked}");
        }
    }
}
