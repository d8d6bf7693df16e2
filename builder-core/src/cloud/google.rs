//! Google: access tokens (<https://cloud.google.com/docs/authentication/application-default-credentials>).
//!
//! The file of `GOOGLE_APPLICATION_CREDENTIALS`, else gcloud's own, else the metadata server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde::Deserialize;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::{CloudEnvironment, CloudError, CloudToken, DEFAULT_LIFE, metadata_client, read};
use crate::cancel::Cancel;
use crate::http::{self as ours, Method, Request, Secret, Url};

/// What tokens are good for: registries and buckets.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// What can be given in place of credentials that are not supported.
const GOOGLE: &str = "the key of a service account, workload identity by file or URL, and gcloud's own login are";

/// Largest answer that is read, in bytes.
const ANSWER_BYTES: u64 = 1 << 20;

/// Life of an assertion in seconds; what Google allows at most.
const ASSERTION_SECONDS: i64 = 3600;

/// A file of credentials.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum File {
    ServiceAccount {
        client_email: String,
        private_key: String,
        #[serde(default)]
        private_key_id: String,
        #[serde(default = "token_uri")]
        token_uri: String,
    },
    AuthorizedUser {
        client_id: String,
        client_secret: String,
        refresh_token: String,
        #[serde(default = "token_uri")]
        token_uri: String,
    },
    ExternalAccount {
        audience: String,
        subject_token_type: String,
        #[serde(default = "sts_uri")]
        token_url: String,
        #[serde(default)]
        service_account_impersonation_url: Option<String>,
        credential_source: Source,
    },
    #[serde(other)]
    Other,
}

/// Where the token of the other identity provider is.
#[derive(Deserialize)]
struct Source {
    #[serde(default)]
    file: Option<PathBuf>,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    format: Format,
}

#[derive(Default, Deserialize)]
struct Format {
    #[serde(default)]
    subject_token_field_name: Option<String>,
}

fn token_uri() -> String {
    "https://oauth2.googleapis.com/token".to_owned()
}

fn sts_uri() -> String {
    "https://sts.googleapis.com/v1/token".to_owned()
}

/// An access token for everything that this identity may do.
pub(crate) fn access_token(
    environment: &CloudEnvironment,
    client: &ours::Client,
    cancel: &Cancel,
) -> Result<CloudToken, CloudError> {
    let named = environment.get("GOOGLE_APPLICATION_CREDENTIALS").map(PathBuf::from);
    let known = || {
        let directory =
            environment.get("CLOUDSDK_CONFIG").map(PathBuf::from).or_else(|| environment.home(".config/gcloud"));
        directory.map(|directory| directory.join("application_default_credentials.json")).filter(|path| path.exists())
    };
    let asker = Asker { client, cancel, environment };
    match named.or_else(known) {
        Some(path) => asker.of_file(&path),
        None => asker.of_metadata(),
    }
}

struct Asker<'a> {
    client: &'a ours::Client,
    cancel: &'a Cancel,
    environment: &'a CloudEnvironment,
}

impl Asker<'_> {
    fn of_file(&self, path: &Path) -> Result<CloudToken, CloudError> {
        let what = format!("`{}`", path.display());
        // The text of a JSON error may quote a key.
        let file: File = serde_json::from_str(&read(path)?).map_err(|error| CloudError::Malformed {
            what: what.clone(),
            problem: format!("is no file of Google credentials (line {})", error.line()),
        })?;
        match file {
            File::ServiceAccount { client_email, private_key, private_key_id, token_uri } => {
                let now = self.environment.unix_time();
                let header = json!({ "alg": "RS256", "typ": "JWT", "kid": private_key_id });
                let claims = json!({
                    "iss": client_email, "scope": SCOPE, "aud": token_uri, "iat": now, "exp": now + ASSERTION_SECONDS,
                });
                let assertion = sign(&header, &claims, &private_key).ok_or_else(|| CloudError::Malformed {
                    what,
                    problem: "has a private key that cannot be used".to_owned(),
                })?;
                let grant = "urn:ietf:params:oauth:grant-type:jwt-bearer";
                self.post(&token_uri, &[("grant_type", grant), ("assertion", &assertion)])
            }
            File::AuthorizedUser { client_id, client_secret, refresh_token, token_uri } => self.post(
                &token_uri,
                &[
                    ("grant_type", "refresh_token"),
                    ("client_id", &client_id),
                    ("client_secret", &client_secret),
                    ("refresh_token", &refresh_token),
                ],
            ),
            File::ExternalAccount {
                audience,
                subject_token_type,
                token_url,
                service_account_impersonation_url,
                credential_source,
            } => {
                let subject = self.subject(&credential_source, &what)?;
                let token = self.post(
                    &token_url,
                    &[
                        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
                        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
                        ("audience", &audience),
                        ("scope", SCOPE),
                        ("subject_token_type", &subject_token_type),
                        ("subject_token", subject.expose()),
                    ],
                )?;
                match service_account_impersonation_url {
                    Some(url) => self.impersonate(&url, &token.token),
                    None => Ok(token),
                }
            }
            File::Other => {
                Err(CloudError::Unsupported { what: format!("the type of Google credentials in {what}"), hint: GOOGLE })
            }
        }
    }

    /// The token that another identity provider gave.
    fn subject(&self, source: &Source, what: &str) -> Result<Secret, CloudError> {
        let text = match source {
            Source { file: Some(file), .. } => read(file)?,
            Source { url: Some(url), headers, .. } => {
                let mut request = Request::get(address(url)?);
                for (name, value) in headers {
                    request = request.secret_header(name, Secret::new(value));
                }
                let service = "the identity provider";
                let response = self.client.send(request, self.cancel).map_err(CloudError::http(service))?;
                String::from_utf8_lossy(&CloudError::success(service, response, ANSWER_BYTES)?).into_owned()
            }
            _ => {
                return Err(CloudError::Unsupported { what: format!("the credential_source of {what}"), hint: GOOGLE });
            }
        };
        let token = match &source.format.subject_token_field_name {
            None => Some(text.trim().to_owned()),
            Some(field) => {
                let value: Option<Value> = serde_json::from_str(&text).ok();
                value.and_then(|value| value.get(field)?.as_str().map(str::to_owned))
            }
        };
        token.filter(|token| !token.is_empty()).map(Secret::new).ok_or_else(|| CloudError::Malformed {
            what: format!("the credential_source of {what}"),
            problem: "holds no token".to_owned(),
        })
    }

    fn impersonate(&self, url: &str, token: &Secret) -> Result<CloudToken, CloudError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            access_token: String,
            #[serde(default)]
            expire_time: Option<String>,
        }
        const SERVICE: &str = "Google's service for impersonation";
        let body = json!({ "scope": [SCOPE], "lifetime": format!("{ASSERTION_SECONDS}s") }).to_string();
        let request = Request::new(Method::Post, address(url)?)
            .bytes("application/json", body.into_bytes())
            .secret_header("Authorization", Secret::new(format!("Bearer {}", token.expose())));
        let response = self.client.send(request, self.cancel).map_err(CloudError::http(SERVICE))?;
        let bytes = CloudError::success(SERVICE, response, ANSWER_BYTES)?;
        let answer: Answer =
            serde_json::from_slice(&bytes).map_err(|_| CloudError::lacks(SERVICE, "an access token"))?;
        let now = self.environment.unix_time();
        let end: Option<jiff::Timestamp> = answer.expire_time.and_then(|text| text.parse().ok());
        let life = end.map_or(DEFAULT_LIFE, |end| {
            Duration::from_secs(u64::try_from(end.as_second().saturating_sub(now)).unwrap_or(0))
        });
        Ok(CloudToken { token: Secret::new(answer.access_token), life })
    }

    fn of_metadata(&self) -> Result<CloudToken, CloudError> {
        const SERVICE: &str = "Google's metadata server";
        let host = self.environment.get("GCE_METADATA_HOST").unwrap_or("metadata.google.internal");
        let url = address(&format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token"))?;
        let request = Request::get(url).header("Metadata-Flavor", "Google");
        let response = metadata_client(self.client).send(request, self.cancel).map_err(|error| match error {
            ours::HttpError::Cancelled => CloudError::Cancelled,
            _ => CloudError::NoCredentials {
                service: "Google Cloud",
                hint: "set GOOGLE_APPLICATION_CREDENTIALS to a file of credentials, or run where there is a metadata server",
            },
        })?;
        token(SERVICE, &CloudError::success(SERVICE, response, ANSWER_BYTES)?)
    }

    fn post(&self, url: &str, form: &[(&str, &str)]) -> Result<CloudToken, CloudError> {
        const SERVICE: &str = "Google's token service";
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request =
            Request::new(Method::Post, address(url)?).bytes("application/x-www-form-urlencoded", body.into_bytes());
        let response = self.client.send(request, self.cancel).map_err(CloudError::http(SERVICE))?;
        token(SERVICE, &CloudError::success(SERVICE, response, ANSWER_BYTES)?)
    }
}

fn token(service: &str, bytes: &[u8]) -> Result<CloudToken, CloudError> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
        #[serde(default)]
        expires_in: Option<u64>,
    }
    let answer: Answer = serde_json::from_slice(bytes).map_err(|_| CloudError::lacks(service, "an access token"))?;
    let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
    Ok(CloudToken { token: Secret::new(answer.access_token), life })
}

fn address(text: &str) -> Result<Url, CloudError> {
    Url::parse(text).map_err(|_| CloudError::Malformed { what: format!("`{text}`"), problem: "is no URL".to_owned() })
}

/// A signed token (RFC 7515), or nothing if the key is none.
fn sign(header: &Value, claims: &Value, private_key: &str) -> Option<String> {
    let body: String = private_key.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(body.trim()).ok()?;
    let key = RsaKeyPair::from_pkcs8(&der).or_else(|_| RsaKeyPair::from_der(&der)).ok()?;
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", encode(header), encode(claims));
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).ok()?;
    Some(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
}
