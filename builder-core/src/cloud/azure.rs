//! Azure: tokens of Entra ID, and what its registries make of them.
//!
//! A service principal with a secret, a federated token, or the managed identity of the machine or pod.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use url::form_urlencoded;

use super::{CloudEnvironment, CloudError, CloudToken, DEFAULT_LIFE, metadata_client, read};
use crate::cancel::Cancel;
use crate::http::{self as ours, Method, Request, Secret, Url};

/// Largest answer that is read, in bytes.
const ANSWER_BYTES: u64 = 1 << 20;

const ENTRA: &str = "Entra ID";

/// A refresh token for the registry `host`.
pub(crate) fn acr_refresh_token(
    host: &str,
    environment: &CloudEnvironment,
    client: &ours::Client,
    cancel: &Cancel,
) -> Result<CloudToken, CloudError> {
    exchange(&format!("https://{host}"), host, environment, client, cancel)
}

/// The same of a registry that answers at `base`.
fn exchange(
    base: &str,
    host: &str,
    environment: &CloudEnvironment,
    client: &ours::Client,
    cancel: &Cancel,
) -> Result<CloudToken, CloudError> {
    #[derive(Deserialize)]
    struct Answer {
        refresh_token: String,
    }
    let token = entra_token(environment, client, cancel)?;
    let mut form = vec![("grant_type", "access_token"), ("service", host)];
    form.extend(environment.get("AZURE_TENANT_ID").map(|tenant| ("tenant", tenant)));
    form.push(("access_token", token.token.expose()));
    let service = format!("the registry {host}");
    let bytes = post(&format!("{base}/oauth2/exchange"), &form, &service, client, cancel)?;
    let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| CloudError::lacks(&service, "a refresh token"))?;
    // Three hours by ACR's documentation; the token it is made from ends earlier or later, and is asked for again then.
    Ok(CloudToken { token: Secret::new(answer.refresh_token), life: token.life.min(Duration::from_secs(3 * 3600)) })
}

/// Authority and resource of one of Azure's clouds.
fn cloud(environment: &CloudEnvironment) -> Result<(&'static str, &'static str), CloudError> {
    match environment.get("AZURE_ENVIRONMENT").map(str::to_ascii_uppercase).as_deref() {
        None | Some("AZUREPUBLICCLOUD" | "AZURECLOUD") => {
            Ok(("https://login.microsoftonline.com", "https://management.azure.com/"))
        }
        Some("AZURECHINACLOUD") => Ok(("https://login.chinacloudapi.cn", "https://management.chinacloudapi.cn/")),
        Some("AZUREUSGOVERNMENT" | "AZUREUSGOVERNMENTCLOUD") => {
            Ok(("https://login.microsoftonline.us", "https://management.usgovcloudapi.net/"))
        }
        Some("AZUREGERMANCLOUD") => Ok(("https://login.microsoftonline.de", "https://management.microsoftazure.de/")),
        Some(_) => Err(CloudError::Malformed {
            what: "AZURE_ENVIRONMENT".to_owned(),
            problem: "is none of AZUREPUBLICCLOUD, AZURECHINACLOUD, AZUREGERMANCLOUD and AZUREUSGOVERNMENT".to_owned(),
        }),
    }
}

fn entra_token(
    environment: &CloudEnvironment,
    client: &ours::Client,
    cancel: &Cancel,
) -> Result<CloudToken, CloudError> {
    let (authority, resource) = cloud(environment)?;
    let authority = environment.get("AZURE_AUTHORITY_HOST").unwrap_or(authority).trim_end_matches('/');
    let (id, tenant) = (environment.get("AZURE_CLIENT_ID"), environment.get("AZURE_TENANT_ID"));
    let scope = format!("{}/.default", resource.trim_end_matches('/'));
    let secret = environment.get("AZURE_CLIENT_SECRET").map(Secret::new);
    let federated = match (environment.get("AZURE_FEDERATED_TOKEN"), environment.get("AZURE_FEDERATED_TOKEN_FILE")) {
        (Some(token), _) => Some(Secret::new(token)),
        (None, Some(path)) => Some(Secret::new(read(Path::new(path))?.trim())),
        (None, None) => None,
    };
    if secret.is_none() && federated.is_none() {
        // The managed identity would be somebody else than who is meant.
        for variable in ["AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_USERNAME"] {
            if environment.get(variable).is_some() {
                return Err(CloudError::Unsupported {
                    what: format!("the way to Entra ID that {variable} names"),
                    hint: "give AZURE_CLIENT_SECRET, AZURE_FEDERATED_TOKEN_FILE, or the pod a managed identity",
                });
            }
        }
    }
    let (Some(id), Some(tenant), Some(proof)) = (id, tenant, secret.as_ref().or(federated.as_ref())) else {
        return managed_identity(environment, resource, id, client, cancel);
    };
    let url = format!("{authority}/{tenant}/oauth2/v2.0/token");
    let mut form = vec![("grant_type", "client_credentials"), ("client_id", id), ("scope", &scope)];
    if secret.is_some() {
        form.push(("client_secret", proof.expose()));
    } else {
        form.push(("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"));
        form.push(("client_assertion", proof.expose()));
    }
    token(&post(&url, &form, ENTRA, client, cancel)?)
}

/// <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>
fn managed_identity(
    environment: &CloudEnvironment,
    resource: &str,
    client_id: Option<&str>,
    client: &ours::Client,
    cancel: &Cancel,
) -> Result<CloudToken, CloudError> {
    const SERVICE: &str = "Azure's metadata server";
    let (address, version, header) = match (environment.get("IDENTITY_ENDPOINT"), environment.get("IDENTITY_HEADER")) {
        (Some(endpoint), Some(header)) => {
            (endpoint.to_owned(), "2019-08-01", ("X-IDENTITY-HEADER", Secret::new(header)))
        }
        _ => {
            let host = environment.get("AZURE_POD_IDENTITY_AUTHORITY_HOST").unwrap_or("http://169.254.169.254");
            let address = format!("{}/metadata/identity/oauth2/token", host.trim_end_matches('/'));
            (address, "2018-02-01", ("Metadata", Secret::new("true")))
        }
    };
    let mut url = parse(&address)?;
    url.query_pairs_mut().append_pair("api-version", version).append_pair("resource", resource);
    if let Some(id) = client_id {
        url.query_pairs_mut().append_pair("client_id", id);
    }
    let request = Request::get(url).secret_header(header.0, header.1);
    let response = metadata_client(client).send(request, cancel).map_err(|error| match error {
        ours::HttpError::Cancelled => CloudError::Cancelled,
        _ => CloudError::NoCredentials {
            service: "Azure",
            hint: "set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or AZURE_FEDERATED_TOKEN_FILE, or run with a \
                   managed identity",
        },
    })?;
    token(&CloudError::success(SERVICE, response, ANSWER_BYTES)?)
}

fn post(
    url: &str,
    form: &[(&str, &str)],
    service: &str,
    client: &ours::Client,
    cancel: &Cancel,
) -> Result<Vec<u8>, CloudError> {
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let request = Request::new(Method::Post, parse(url)?).bytes("application/x-www-form-urlencoded", body.into_bytes());
    let response = client.send(request, cancel).map_err(CloudError::http(service))?;
    CloudError::success(service, response, ANSWER_BYTES)
}

fn parse(text: &str) -> Result<Url, CloudError> {
    Url::parse(text).map_err(|_| CloudError::Malformed { what: format!("`{text}`"), problem: "is no URL".to_owned() })
}

fn token(bytes: &[u8]) -> Result<CloudToken, CloudError> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: String,
        /// A number from Entra ID, a text from metadata servers.
        #[serde(default)]
        expires_in: serde_json::Value,
    }
    let answer: Answer = serde_json::from_slice(bytes).map_err(|_| CloudError::lacks(ENTRA, "an access token"))?;
    let seconds = answer.expires_in.as_u64().or_else(|| answer.expires_in.as_str()?.parse().ok());
    Ok(CloudToken { token: Secret::new(answer.access_token), life: seconds.map_or(DEFAULT_LIFE, Duration::from_secs) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::{Client, ClientOptions, RetryOptions};

    fn ask(variables: &[(&str, &str)]) -> Result<String, String> {
        let clouds = fixtures::cloud::Clouds::start(Duration::from_secs(300), None);
        let base = format!("http://{}", clouds.host());
        let mut all =
            vec![("AZURE_AUTHORITY_HOST", base.as_str()), ("AZURE_POD_IDENTITY_AUTHORITY_HOST", base.as_str())];
        all.extend(variables);
        let variables = all.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let environment = CloudEnvironment::new(variables, None);
        let retry = RetryOptions { attempts: 1, ..RetryOptions::default() };
        let client = Client::new(ClientOptions { retry, ..ClientOptions::default() });
        let found = exchange(&base, "x.azurecr.io", &environment, &client, &Cancel::default());
        found.map(|token| token.token.expose().to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn registries_exchange_tokens() {
        let principal = [("AZURE_TENANT_ID", "tenant"), ("AZURE_CLIENT_ID", "id")];
        let with = |more: &[(&'static str, &'static str)]| ask(&[&principal, more].concat());
        let entra = Ok("refresh-for-entra".to_owned());
        assert_eq!(with(&[("AZURE_CLIENT_SECRET", "right")]), entra);
        assert_eq!(with(&[("AZURE_FEDERATED_TOKEN", "right")]), entra);
        assert_eq!(with(&[]), Ok("refresh-for-managed".to_owned()), "the pod's own identity");
        let error = with(&[("AZURE_CLIENT_SECRET", "wrong-secret")]).expect_err("refused");
        assert!(error.contains("401") && !error.contains("wrong-secret"), "{error}");
        assert!(with(&[("AZURE_ENVIRONMENT", "MOON")]).expect_err("no such cloud").contains("AZUREPUBLICCLOUD"));
    }
}
