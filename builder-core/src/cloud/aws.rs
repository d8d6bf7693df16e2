//! Amazon: who we are, and logins of its registries.
//!
//! Credentials are looked for as Amazon's own tools do: variables, web identity (IRSA), the profile, container roles (ECS, EKS
//! pod identity), and the metadata server of the instance.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer, AwsCredential};
use serde::Deserialize;

use super::profile::Profiles;
use super::service::{Connector, block_on, cause, once};
use super::{CloudEnvironment, CloudError, CloudToken, DEFAULT_LIFE};
use crate::cancel::Cancel;
use crate::http::{self as ours, Secret};

/// Largest answer that is read, in bytes.
const ANSWER_BYTES: usize = 1 << 20;

/// Region of services that have only one, and of tools that are told none.
pub(super) const DEFAULT_REGION: &str = "us-east-1";

/// A registry of Amazon, by its host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EcrRegistry {
    /// `<account>.dkr.ecr[-fips].<region>.<domain>`
    Private {
        /// Twelve digits.
        account: String,
        /// Such as `eu-central-1`.
        region: String,
        /// Host of the service that gives logins.
        api: String,
    },
    /// `public.ecr.aws`
    Public,
}

impl EcrRegistry {
    /// The registry that `host` is; `None` if it is none of Amazon's, however much it looks like one.
    pub(crate) fn of(host: &str) -> Option<Self> {
        if host == "public.ecr.aws" {
            return Some(Self::Public);
        }
        let (account, rest) = host.split_once('.')?;
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        // `dkr-ecr` is the name in dual-stack domains.
        let (service, rest) = match rest.strip_prefix("dkr.") {
            Some(rest) => rest.split_once('.')?,
            None => {
                let (service, rest) = rest.split_once('.')?;
                (service.strip_prefix("dkr-")?, rest)
            }
        };
        let fips = match service {
            "ecr" => false,
            "ecr-fips" => true,
            _ => return None,
        };
        let (region, domain) = rest.split_once('.')?;
        let is_region =
            !region.is_empty() && region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !is_region {
            return None;
        }
        let prefix = if fips { "ecr-fips" } else { "api.ecr" };
        let api = match domain {
            "amazonaws.com" | "amazonaws.com.cn" | "amazonaws.eu" | "sc2s.sgov.gov" | "c2s.ic.gov"
            | "cloud.adc-e.uk" | "csp.hci.ic.gov" => format!("{prefix}.{region}.{domain}"),
            "on.aws" => format!("ecr.{region}.api.aws"),
            "on.amazonwebservices.com.cn" => format!("ecr.{region}.api.amazonwebservices.com.cn"),
            _ => return None,
        };
        Some(Self::Private { account: account.to_owned(), region: region.to_owned(), api })
    }
}

/// `client`, trusting what `AWS_CA_BUNDLE` holds as well.
pub(super) fn trusting(environment: &CloudEnvironment, client: &ours::Client) -> ours::Client {
    let Some(bundle) = environment.get("AWS_CA_BUNDLE") else { return client.clone() };
    let mut options = client.options().clone();
    options.ca_files.push(bundle.into());
    ours::Client::new(options)
}

/// User and password for a registry of Amazon, and how long they last.
pub(crate) fn ecr_login(
    registry: &EcrRegistry,
    environment: &CloudEnvironment,
    client: &ours::Client,
    cancel: &Cancel,
) -> Result<(String, CloudToken), CloudError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        authorization_data: OneOrMany,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(Data),
        Many(Vec<Data>),
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Data {
        authorization_token: String,
        #[serde(default)]
        expires_at: Option<f64>,
    }
    const SERVICE: &str = "Amazon ECR";
    let (name, region, endpoint, target, body) = match registry {
        EcrRegistry::Private { account, region, api } => (
            "ecr",
            region.as_str(),
            environment
                .first(&["AWS_ENDPOINT_URL_ECR", "AWS_ENDPOINT_URL"])
                .map_or(format!("https://{api}/"), str::to_owned),
            "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
            format!(r#"{{"registryIds":["{account}"]}}"#),
        ),
        EcrRegistry::Public => (
            "ecr-public",
            DEFAULT_REGION,
            environment
                .first(&["AWS_ENDPOINT_URL_ECR_PUBLIC", "AWS_ENDPOINT_URL"])
                .unwrap_or("https://api.ecr-public.us-east-1.amazonaws.com/")
                .to_owned(),
            "SpencerFrontendService.GetAuthorizationToken",
            "{}".to_owned(),
        ),
    };
    let connector = Connector::new(&trusting(environment, client), cancel);
    let credential = credential(environment, region, &connector)?;
    let failed = |error: object_store::client::HttpError| error_of(SERVICE, &error);
    let mut request = http::Request::builder()
        .method("POST")
        .uri(&endpoint)
        .header("Content-Type", "application/x-amz-json-1.1")
        .header("X-Amz-Target", target)
        .body(body.into())
        .map_err(|_| CloudError::Malformed { what: endpoint.clone(), problem: "is no URL".to_owned() })?;
    AwsAuthorizer::new(&credential, name, region)
        .try_authorize(&mut request, None)
        .map_err(|source| CloudError::Store { url: endpoint.clone(), source })?;
    let answer = connector.send(request).map_err(failed)?;
    let status = answer.status().as_u16();
    let answered = answer.headers().get("date").and_then(|date| date.to_str().ok()).and_then(rfc2822);
    let bytes = block_on(answer.into_body().bytes()).map_err(failed)?;
    if status != 200 {
        let message = ours::excerpt(&bytes);
        return Err(CloudError::Refused { service: SERVICE.to_owned(), status, message });
    }
    let lacks = || CloudError::lacks(SERVICE, "an authorization token");
    if bytes.len() > ANSWER_BYTES {
        return Err(lacks());
    }
    let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| lacks())?;
    let data = match answer.authorization_data {
        OneOrMany::One(data) => Some(data),
        OneOrMany::Many(data) => data.into_iter().next(),
    };
    let data = data.ok_or_else(lacks)?;
    let decoded = STANDARD.decode(data.authorization_token.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let (user, password) = decoded.as_deref().and_then(|text| text.split_once(':')).ok_or_else(lacks)?;
    let now = answered.unwrap_or_else(|| environment.unix_time());
    let life =
        data.expires_at.map_or(DEFAULT_LIFE, |expires| Duration::from_secs_f64((expires - now as f64).clamp(0.0, 1e6)));
    Ok((user.to_owned(), CloudToken { token: Secret::new(password), life }))
}

fn rfc2822(text: &str) -> Option<i64> {
    jiff::fmt::rfc2822::parse(text).ok().map(|time| time.timestamp().as_second())
}

/// Keys for requests to Amazon.
pub(super) fn credential(
    environment: &CloudEnvironment,
    region: &str,
    connector: &Connector,
) -> Result<Arc<AwsCredential>, CloudError> {
    ask(builder(environment, connector)?, region)
}

/// Keys of a store.
pub(super) fn ask(builder: AmazonS3Builder, region: &str) -> Result<Arc<AwsCredential>, CloudError> {
    let store = builder
        .with_bucket_name("none")
        .with_region(region)
        .build()
        .map_err(|source| CloudError::Store { url: "Amazon's credentials".to_owned(), source })?;
    block_on(store.credentials().get_credential()).map_err(|error| match error_of("Amazon", &error) {
        CloudError::Cancelled => CloudError::Cancelled,
        // The metadata server was the last place to look.
        CloudError::Http { .. } => CloudError::NoCredentials {
            service: "Amazon",
            hint: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod a role (AWS_ROLE_ARN and \
                   AWS_WEB_IDENTITY_TOKEN_FILE)",
        },
        _ => CloudError::Store { url: "Amazon's credentials".to_owned(), source: error },
    })
}

pub(super) fn error_of(service: &str, error: &(dyn std::error::Error + 'static)) -> CloudError {
    match cause(error) {
        Some(ours::HttpError::Cancelled) => CloudError::Cancelled,
        Some(source) => CloudError::Answer { service: format!("{service} ({source})"), lacks: "anything" },
        None => CloudError::Answer { service: format!("{service} ({error})"), lacks: "anything" },
    }
}

/// An object store of Amazon, or one that speaks like it, as variables and the place that we run in describe it.
pub(super) fn surroundings(environment: &CloudEnvironment, connector: &Connector) -> AmazonS3Builder {
    let mut builder =
        AmazonS3Builder::new().with_http_connector(connector.clone()).with_retry(once()).with_allow_http(true);
    for (name, value) in environment.beginning("AWS_") {
        // `AWS_ENDPOINT_URL` is that of all services; S3's own is set by whoever wants a bucket.
        let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() else { continue };
        if !matches!(key, AmazonS3ConfigKey::Bucket | AmazonS3ConfigKey::Endpoint) {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") {
        builder = builder.with_config(AmazonS3ConfigKey::MetadataEndpoint, endpoint.trim_end_matches('/'));
    }
    builder
}

/// A store with the credentials that the environment leads to: keys in variables, the token of a file, a profile, then what
/// surrounds us.
pub(super) fn builder(environment: &CloudEnvironment, connector: &Connector) -> Result<AmazonS3Builder, CloudError> {
    let builder = surroundings(environment, connector);
    if environment.first(&["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"]).is_some() {
        return Ok(builder);
    }
    Ok(match Profiles::load(environment)?.identity(environment, connector)? {
        Some(identity) => identity.apply(builder),
        None => builder,
    })
}

/// The region that variables name.
pub(super) fn named_region(environment: &CloudEnvironment) -> Option<&str> {
    environment.first(&["AWS_REGION", "AWS_DEFAULT_REGION"])
}

/// The region that variables or the profile name.
pub(super) fn region(environment: &CloudEnvironment) -> Result<Option<String>, CloudError> {
    Ok(match named_region(environment) {
        Some(region) => Some(region.to_owned()),
        None => Profiles::load(environment)?.region(environment).map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_amazons_own_hosts_are_amazons() {
        let api = |host: &str| match EcrRegistry::of(host) {
            Some(EcrRegistry::Private { account, region, api }) => Some(format!("{account} {region} {api}")),
            Some(EcrRegistry::Public) => Some("public".to_owned()),
            None => None,
        };
        let id = "123456789012";
        for (host, expected) in [
            (
                format!("{id}.dkr.ecr.eu-central-1.amazonaws.com"),
                Some(format!("{id} eu-central-1 api.ecr.eu-central-1.amazonaws.com")),
            ),
            (
                format!("{id}.dkr.ecr-fips.us-gov-west-1.amazonaws.com"),
                Some(format!("{id} us-gov-west-1 ecr-fips.us-gov-west-1.amazonaws.com")),
            ),
            (
                format!("{id}.dkr.ecr.cn-north-1.amazonaws.com.cn"),
                Some(format!("{id} cn-north-1 api.ecr.cn-north-1.amazonaws.com.cn")),
            ),
            (format!("{id}.dkr-ecr.us-west-2.on.aws"), Some(format!("{id} us-west-2 ecr.us-west-2.api.aws"))),
            ("public.ecr.aws".to_owned(), Some("public".to_owned())),
            (format!("{id}.dkr.ecr.eu-central-1.amazonaws.com.evil.example"), None),
            (format!("{id}.dkr.ecr.eu-central-1.evilamazonaws.com"), None),
            (format!("x{id}.dkr.ecr.eu-central-1.amazonaws.com"), None),
            (format!("evil.{id}.dkr.ecr.eu-central-1.amazonaws.com"), None),
            (format!("{id}.dkr.ecr.evil.example.amazonaws.com"), None),
            (format!("{id}.dkr.ecr.eu-central-1.amazonaws.com:443"), None),
            ("12345.dkr.ecr.eu-central-1.amazonaws.com".to_owned(), None),
            ("xpublic.ecr.aws".to_owned(), None),
        ] {
            assert_eq!(api(&host), expected, "{host}");
        }
    }
}
