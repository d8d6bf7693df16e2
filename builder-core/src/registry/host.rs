//! One registry host: its scheme, its challenge, its tokens; requests with authorization.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use url::Url;

use super::auth::{Challenge, Credential, Identity, Scopes, Token, TokenRequest};
use super::{Place, Registry, RegistryError};
use crate::cancel::Cancel;
use crate::http::{self, HttpError, Request, Response, Secret};

/// What is known of one registry.
#[derive(Debug)]
pub(super) struct Host {
    /// As in references.
    pub(super) registry: String,
    base: Mutex<Option<Url>>,
    auth: Mutex<AuthState>,
}

#[derive(Debug, Default)]
struct AuthState {
    challenge: Option<Challenge>,
    /// By repository, because logins may be limited to a path.
    identities: BTreeMap<String, Option<Identity>>,
    tokens: BTreeMap<Scopes, Token>,
    /// What tokens are asked for in place of our own scopes, because a challenge said so.
    asked: BTreeMap<Scopes, Scopes>,
}

/// One thing that is asked of a registry.
#[derive(Debug, Clone)]
pub(super) struct Call<'a> {
    pub(super) host: Arc<Host>,
    pub(super) repository: &'a str,
    pub(super) scopes: Scopes,
    /// For errors: `the manifest`, `an upload`, …
    pub(super) action: &'static str,
}

/// What a host answers in one scheme.
enum Probed {
    Speaks,
    WantsTls,
    Nothing,
}

impl Call<'_> {
    pub(super) fn place(&self) -> Box<Place> {
        Place::new(&self.host.registry, self.repository)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is replaced in single assignments, so it is whole even after a panic elsewhere.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    pub(super) fn host(&self, registry: &str) -> Arc<Host> {
        let mut hosts = locked(&self.inner.hosts);
        let new = || Host { registry: registry.to_owned(), base: Mutex::default(), auth: Mutex::default() };
        Arc::clone(hosts.entry(registry.to_owned()).or_insert_with(|| Arc::new(new())))
    }

    /// `scheme://host[:port]/` of the registry. Which scheme it speaks is found out once.
    pub(super) fn base(&self, host: &Host, cancel: &Cancel) -> Result<Url, RegistryError> {
        let mut base = locked(&host.base);
        if let Some(base) = &*base {
            return Ok(base.clone());
        }
        let parse = |scheme: &str, name: &str| {
            let text = format!("{scheme}://{name}/");
            Url::parse(&text).map_err(|_| RegistryError::http(&host.registry, HttpError::BadUrl { url: text }))
        };
        // The name that answers for `docker.io` (distribution, "Docker Hub").
        let name = if host.registry == "docker.io" { "registry-1.docker.io" } else { &host.registry };
        let tls = parse("https", name)?;
        let plain = parse("http", name)?;
        let candidates = if tls.host_str().is_some_and(http::is_loopback) {
            [plain, tls.clone()]
        } else if self.inner.options.allows_plain_http(&host.registry) {
            [tls.clone(), plain]
        } else {
            return Ok(base.insert(tls).clone());
        };
        for candidate in &candidates {
            match self.probe(host, candidate, cancel)? {
                Probed::Speaks => return Ok(base.insert(candidate.clone()).clone()),
                Probed::WantsTls => return Ok(base.insert(tls).clone()),
                Probed::Nothing => {}
            }
        }
        // Nobody answers: the request itself, with its retries, makes the error, and the next one asks again.
        let [first, _] = candidates;
        Ok(first)
    }

    /// What answers at `base`. A challenge that it sends is kept.
    fn probe(&self, host: &Host, base: &Url, cancel: &Cancel) -> Result<Probed, RegistryError> {
        let ping = base
            .join("/v2/")
            .map_err(|_| RegistryError::http(&host.registry, HttpError::BadUrl { url: http::redacted(base) }))?;
        match self.inner.client.send(Request::get(ping).without_retry(), cancel) {
            Ok(response) => {
                if response.status() == 401 {
                    locked(&host.auth).challenge = Challenge::choose(response.headers("WWW-Authenticate"));
                }
                let status = response.status();
                let body = response.into_error_body();
                // What TLS servers of Go, nginx and Apache say to plain HTTP.
                let wants_tls = status == 400 && String::from_utf8_lossy(&body).to_ascii_uppercase().contains("HTTPS");
                Ok(if wants_tls { Probed::WantsTls } else { Probed::Speaks })
            }
            Err(HttpError::Cancelled) => Err(RegistryError::Cancelled),
            Err(error @ (HttpError::Tls { .. } | HttpError::Unreachable { .. } | HttpError::Stalled { .. })) => {
                tracing::debug!(registry = host.registry, %error, "the registry does not speak {}", base.scheme());
                Ok(Probed::Nothing)
            }
            Err(error) => Err(RegistryError::http(&host.registry, error)),
        }
    }

    /// Sends a request with authorization, made by `make` for the registry's base URL; once more after a 401.
    pub(super) fn send(
        &self,
        call: &Call<'_>,
        cancel: &Cancel,
        make: &dyn Fn(&Url) -> Result<Request<'static>, url::ParseError>,
    ) -> Result<Response, RegistryError> {
        let registry = &call.host.registry;
        let base = self.base(&call.host, cancel)?;
        let mut authorization = self.authorization(call, cancel)?;
        let mut renewed = false;
        loop {
            let request = make(&base)
                .map_err(|_| RegistryError::http(registry, HttpError::BadUrl { url: http::redacted(&base) }))?;
            let request = authorized(request, authorization.as_ref());
            let response =
                self.inner.client.send(request, cancel).map_err(|error| RegistryError::http(registry, error))?;
            let ours = response.url().origin() == base.origin();
            if response.status() != 401 || !ours {
                return Ok(response);
            }
            if renewed {
                return Err(self.refused(call, response));
            }
            authorization = Some(self.renew(call, authorization.as_ref(), response, cancel)?);
            renewed = true;
        }
    }

    /// The header for this call, as far as the registry's challenge is known already.
    pub(super) fn authorization(&self, call: &Call<'_>, cancel: &Cancel) -> Result<Option<Secret>, RegistryError> {
        let mut state = locked(&call.host.auth);
        match state.challenge.clone() {
            None => Ok(None),
            Some(challenge) => self.answer(call, &mut state, &challenge, cancel),
        }
    }

    /// A new header after a 401 to `used`. Several threads may get that 401 at once: only the first asks for a token.
    ///
    /// # Errors
    /// [`RegistryError::Unauthorized`] if there is nothing new to try.
    pub(super) fn renew(
        &self,
        call: &Call<'_>,
        used: Option<&Secret>,
        response: Response,
        cancel: &Cancel,
    ) -> Result<Secret, RegistryError> {
        let mut state = locked(&call.host.auth);
        let Some(challenge) = Challenge::choose(response.headers("WWW-Authenticate")) else {
            drop(state);
            return Err(self.refused(call, response));
        };
        if state.tokens.get(&call.scopes).is_some_and(|token| Some(&token.header) == used) {
            state.tokens.remove(&call.scopes);
        }
        if let Challenge::Bearer { scope: Some(scope), .. } = &challenge {
            state.asked.insert(call.scopes.clone(), call.scopes.clone().and_asked(scope));
        }
        state.challenge = Some(challenge.clone());
        if let Some(header) = self.answer(call, &mut state, &challenge, cancel)?
            && Some(&header) != used
        {
            return Ok(header);
        }
        // Helpers and clouds may have something newer than what they gave before.
        if used.is_some() {
            self.inner.credentials.forget(&call.host.registry);
            state.identities.remove(call.repository);
            if let Some(header) = self.answer(call, &mut state, &challenge, cancel)?
                && Some(&header) != used
            {
                return Ok(header);
            }
        }
        drop(state);
        Err(self.refused(call, response))
    }

    fn answer(
        &self,
        call: &Call<'_>,
        state: &mut AuthState,
        challenge: &Challenge,
        cancel: &Cancel,
    ) -> Result<Option<Secret>, RegistryError> {
        let registry = &call.host.registry;
        let known = state.identities.get(call.repository);
        let identity = match known.filter(|known| known.as_ref().is_none_or(Identity::is_fresh)) {
            Some(known) => known.clone(),
            None => {
                let found = self.inner.credentials.find(registry, call.repository, &self.inner.client, cancel)?;
                state.identities.insert(call.repository.to_owned(), found.clone());
                found
            }
        };
        match (challenge, identity.as_ref().map(|identity| &identity.credential)) {
            (_, Some(Credential::RegistryToken(token))) => Ok(Some(Secret::new(format!("Bearer {}", token.expose())))),
            (Challenge::Basic, Some(Credential::Basic { user, password })) => {
                Ok(Some(http::basic(user, password.expose())))
            }
            (Challenge::Basic, _) => Ok(None),
            (Challenge::Bearer { realm, service, scope: _ }, _) => {
                if let Some(token) = state.tokens.get(&call.scopes).filter(|token| token.is_fresh()) {
                    return Ok(Some(token.header.clone()));
                }
                let request = TokenRequest {
                    registry,
                    repository: call.repository,
                    realm,
                    service: service.as_deref(),
                    scopes: state.asked.get(&call.scopes).unwrap_or(&call.scopes),
                    identity: identity.as_ref(),
                    clear_text: self.inner.options.allows_plain_http(registry),
                };
                let token = request.send(&self.inner.client, cancel)?;
                let header = token.header.clone();
                state.tokens.insert(call.scopes.clone(), token);
                Ok(Some(header))
            }
        }
    }

    /// The typed error for an answer that is not a success.
    pub(super) fn refused(&self, call: &Call<'_>, response: Response) -> RegistryError {
        let (status, attempts) = (response.status(), response.attempts());
        let place = call.place();
        let identity = || {
            let state = locked(&call.host.auth);
            state.identities.get(call.repository).and_then(|known| known.as_ref().map(Identity::describe))
        };
        let ErrorBody { code, message } = ErrorBody::read(response);
        match status {
            401 => {
                let identity = identity();
                let trouble = self.inner.credentials.trouble(&call.host.registry).filter(|_| identity.is_none());
                let message = [message, trouble.unwrap_or_default()];
                let message = message.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
                RegistryError::Unauthorized { place, identity, message }
            }
            403 => RegistryError::Denied { place, identity: identity(), message },
            _ => RegistryError::Refused { place, action: call.action, status, code, message, attempts },
        }
    }
}

/// `request` with the header `Authorization`, if there is one.
pub(super) fn authorized<'a>(request: Request<'a>, authorization: Option<&Secret>) -> Request<'a> {
    match authorization {
        Some(value) => request.secret_header("Authorization", value.clone()),
        None => request,
    }
}

/// What a registry says about an error (distribution-spec, "Error Codes").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ErrorBody {
    pub(crate) code: String,
    pub(crate) message: String,
}

impl ErrorBody {
    pub(crate) fn read(response: Response) -> Self {
        Self::parse(&response.into_error_body())
    }

    fn parse(body: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Document {
            errors: Vec<Item>,
            /// Token servers.
            details: String,
            message: String,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Item {
            code: String,
            message: String,
        }
        let Ok(document) = serde_json::from_slice::<Document>(body) else {
            // Plain text, or nothing that can be shown.
            return Self { code: String::new(), message: http::excerpt(body) };
        };
        match document.errors.into_iter().next() {
            Some(Item { code, message }) => {
                let message = if message.is_empty() { code.clone() } else { message };
                Self { code, message: http::excerpt(message.as_bytes()) }
            }
            None => {
                let message = if document.details.is_empty() { document.message } else { document.details };
                Self { code: String::new(), message: http::excerpt(message.as_bytes()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies_of_all_kinds_are_read() {
        for (body, code, message) in [
            (r#"{"errors":[{"code":"DENIED","message":"no\nway","detail":{}}]}"#, "DENIED", "no way"),
            (r#"{"errors":[{"code":"UNKNOWN"}]}"#, "UNKNOWN", "UNKNOWN"),
            (r#"{"details":"incorrect username or password"}"#, "", "incorrect username or password"),
            (r#"{"errors":[]}"#, "", ""),
            ("slow down", "", "slow down"),
            ("<html>no</html>", "", ""),
            ("", "", ""),
        ] {
            let expected = ErrorBody { code: code.to_owned(), message: message.to_owned() };
            assert_eq!(ErrorBody::parse(body.as_bytes()), expected, "{body}");
        }
    }
}
