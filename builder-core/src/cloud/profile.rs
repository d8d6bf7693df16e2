//! Amazon's profiles: what `~/.aws/config` and `~/.aws/credentials` say, and the roles that they name.
//!
//! A profile has keys, or a role. A role is taken on by the token of a file, or by asking the token service (STS) with the
//! keys of another profile, of variables, or of the place that we run in; roles may stand on roles.
//!
//! # Limitations
//! Profiles that sign in by SSO, that run a program or that want the code of a second factor are refused by name: each of
//! them needs a person or a tool beside us.

use std::collections::BTreeMap;
use std::path::PathBuf;

use object_store::aws::{AmazonS3ConfigKey, AwsAuthorizer, AwsCredential};
use url::form_urlencoded;

use super::aws::{self, DEFAULT_REGION};
use super::service::{Connector, block_on};
use super::{CloudEnvironment, CloudError, read};
use crate::http::{self as ours, Secret};

/// Roles that stand on each other; more are a circle that nobody noticed.
const MOST_ROLES: usize = 8;

/// Largest answer of the token service that is read, in bytes.
const ANSWER_BYTES: usize = 1 << 20;

const SERVICE: &str = "Amazon STS";

/// Who a profile says we are.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    /// These keys.
    Keys(Keys),
    /// Whoever the token in a file is for, in a role.
    Web { role: String, token_file: String, session: String },
}

/// Keys, with a token if they are temporary.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: Secret,
    pub(super) token: Option<Secret>,
}

/// All profiles of the user.
#[derive(Debug, Default)]
pub(super) struct Profiles {
    /// Where they stand, for messages.
    files: Vec<PathBuf>,
    sections: BTreeMap<String, BTreeMap<String, String>>,
}

impl Profiles {
    /// Reads both files. One that a variable names has to be there.
    pub(super) fn load(environment: &CloudEnvironment) -> Result<Self, CloudError> {
        let mut profiles = Self::default();
        // What both say about a profile is taken from the second one.
        for (variable, usual) in
            [("AWS_CONFIG_FILE", ".aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials")]
        {
            let named = environment.get(variable).map(PathBuf::from);
            let Some(path) = named.clone().or_else(|| environment.home(usual)) else { continue };
            if named.is_some() || path.exists() {
                profiles.add(&read(&path)?);
            }
            profiles.files.push(path);
        }
        Ok(profiles)
    }

    /// Adds the sections of an INI file. Indented lines belong to a setting that holds settings, of which none matters here.
    fn add(&mut self, text: &str) {
        let mut section: Option<&mut BTreeMap<String, String>> = None;
        for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
            if let Some(name) = line.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                let name = name.trim();
                let profile = name.strip_prefix("profile ").or((!name.contains(' ')).then_some(name));
                section = profile.map(|profile| self.sections.entry(profile.trim().to_owned()).or_default());
            } else if let (Some(section), Some((key, value))) = (section.as_mut(), line.split_once('='))
                && !line.starts_with([' ', '\t'])
            {
                section.insert(key.trim().to_owned(), value.trim().to_owned());
            }
        }
    }

    /// The profile that is meant, and whether somebody named it.
    fn chosen(environment: &CloudEnvironment) -> (&str, bool) {
        match environment.first(&["AWS_PROFILE", "AWS_DEFAULT_PROFILE"]) {
            Some(name) => (name, true),
            None => ("default", false),
        }
    }

    /// The region of the chosen profile.
    pub(super) fn region(&self, environment: &CloudEnvironment) -> Option<&str> {
        self.sections.get(Self::chosen(environment).0)?.get("region").map(String::as_str)
    }

    /// Who the chosen profile says we are; `None` if it says nothing about it.
    pub(super) fn identity(
        &self,
        environment: &CloudEnvironment,
        connector: &Connector,
    ) -> Result<Option<Identity>, CloudError> {
        let (name, named) = Self::chosen(environment);
        if !named && !self.sections.contains_key(name) {
            return Ok(None);
        }
        Asking { profiles: self, environment, connector, region: self.region(environment) }.identity(name, 0)
    }
}

struct Asking<'a> {
    profiles: &'a Profiles,
    environment: &'a CloudEnvironment,
    connector: &'a Connector,
    region: Option<&'a str>,
}

impl Asking<'_> {
    fn identity(&self, name: &str, depth: usize) -> Result<Option<Identity>, CloudError> {
        let Some(section) = self.profiles.sections.get(name) else {
            let files: Vec<String> = self.profiles.files.iter().map(|path| format!("`{}`", path.display())).collect();
            let problem = format!("is not in {}", files.join(" or "));
            return Err(profile(name, problem, "set AWS_PROFILE to one that is there, or unset it"));
        };
        let get = |key: &str| section.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let keys = get("aws_access_key_id").zip(get("aws_secret_access_key")).map(|(id, secret)| Keys {
            id: id.to_owned(),
            secret: Secret::new(secret),
            token: get("aws_session_token").map(Secret::new),
        });
        let session = || {
            let usual = || format!("slipway-{}", self.environment.unix_time());
            get("role_session_name").map_or_else(usual, str::to_owned)
        };
        let role = get("role_arn");
        if let (Some(role), Some(token_file)) = (role, get("web_identity_token_file")) {
            let (role, token_file) = (role.to_owned(), token_file.to_owned());
            return Ok(Some(Identity::Web { role, token_file, session: session() }));
        }
        let Some(role) = role else {
            return match keys {
                Some(keys) => Ok(Some(Identity::Keys(keys))),
                None if ["sso_session", "sso_start_url", "sso_account_id"].iter().any(|key| get(key).is_some()) => {
                    Err(profile(name, "signs in by SSO, which needs a person".to_owned(), EXPORT))
                }
                None if get("credential_process").is_some() => {
                    Err(profile(name, "runs a program for its keys, which is not done here".to_owned(), EXPORT))
                }
                None => Ok(None),
            };
        };
        if get("mfa_serial").is_some() {
            return Err(profile(name, "wants the code of a second factor".to_owned(), EXPORT));
        }
        if depth >= MOST_ROLES {
            let problem = format!("is one of more than {MOST_ROLES} roles in a row");
            return Err(profile(name, problem, "look whether `source_profile` leads in a circle"));
        }
        let source = match (get("source_profile"), get("credential_source")) {
            (Some(source), None) if source == name => keys.map(Identity::Keys),
            (Some(source), None) => self.identity(source, depth + 1)?,
            (None, Some("Environment")) => {
                let of = |name| self.environment.get(name);
                of("AWS_ACCESS_KEY_ID").zip(of("AWS_SECRET_ACCESS_KEY")).map(|(id, secret)| {
                    let token = of("AWS_SESSION_TOKEN").map(Secret::new);
                    Identity::Keys(Keys { id: id.to_owned(), secret: Secret::new(secret), token })
                })
            }
            (None, Some("EcsContainer" | "Ec2InstanceMetadata")) => {
                let builder = aws::surroundings(self.environment, self.connector);
                return self.assume(name, role, &*aws::ask(builder, self.region())?, session()).map(Some);
            }
            _ => {
                let problem = "has a role, but not one of `source_profile` and `credential_source`".to_owned();
                return Err(profile(name, problem, "say which keys the role is asked for with"));
            }
        };
        let Some(source) = source else {
            let problem = "has a role, and where its keys should come from are none".to_owned();
            return Err(profile(name, problem, "give keys to the profile that `source_profile` names"));
        };
        let builder = source.apply(aws::surroundings(self.environment, self.connector));
        self.assume(name, role, &*aws::ask(builder, self.region())?, session()).map(Some)
    }

    fn region(&self) -> &str {
        aws::named_region(self.environment).or(self.region).unwrap_or(DEFAULT_REGION)
    }

    /// Asks the token service for the keys of a role.
    fn assume(
        &self,
        name: &str,
        role: &str,
        credential: &AwsCredential,
        session: String,
    ) -> Result<Identity, CloudError> {
        let section = &self.profiles.sections[name];
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("Action", "AssumeRole").append_pair("Version", "2011-06-15");
        form.append_pair("RoleArn", role).append_pair("RoleSessionName", &session);
        for (key, parameter) in [("external_id", "ExternalId"), ("duration_seconds", "DurationSeconds")] {
            if let Some(value) = section.get(key) {
                form.append_pair(parameter, value);
            }
        }
        let region = self.region();
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let named = self.environment.first(&["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"]);
        let endpoint = named.map_or_else(|| format!("https://sts.{region}.{domain}/"), str::to_owned);
        let mut request = http::Request::builder()
            .method("POST")
            .uri(&endpoint)
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(form.finish().into())
            .map_err(|_| CloudError::Malformed { what: endpoint.clone(), problem: "is no URL".to_owned() })?;
        AwsAuthorizer::new(credential, "sts", region)
            .try_authorize(&mut request, None)
            .map_err(|source| CloudError::Store { url: endpoint.clone(), source })?;
        let failed = |error: object_store::client::HttpError| aws::error_of(SERVICE, &error);
        let answer = self.connector.send(request).map_err(failed)?;
        let status = answer.status().as_u16();
        let bytes = block_on(answer.into_body().bytes()).map_err(failed)?;
        if status != 200 {
            let message = element(&bytes, "Message").unwrap_or_else(|| ours::excerpt(&bytes));
            return Err(profile(name, format!("cannot take on {role}: {SERVICE} answered {status}: {message}"), ROLE));
        }
        let element = |name| element(&bytes, name).filter(|_| bytes.len() <= ANSWER_BYTES);
        let keys = element("AccessKeyId").zip(element("SecretAccessKey")).map(|(id, secret)| Keys {
            id,
            secret: Secret::new(secret),
            token: element("SessionToken").map(Secret::new),
        });
        keys.map(Identity::Keys).ok_or_else(|| CloudError::lacks(SERVICE, "keys"))
    }
}

/// What can be done about a profile that only a tool can use.
const EXPORT: &str = "`aws configure export-credentials --format env` gives variables that can be passed on; in a pod, give \
                      its service account a role";

/// What can be done about a role that is not given.
const ROLE: &str = "the role has to trust whoever asks for it, and whoever asks has to be allowed sts:AssumeRole";

fn profile(name: &str, problem: String, hint: &'static str) -> CloudError {
    CloudError::Profile { profile: name.to_owned(), problem, hint }
}

impl Identity {
    /// A store that asks as this identity.
    pub(super) fn apply(&self, builder: object_store::aws::AmazonS3Builder) -> object_store::aws::AmazonS3Builder {
        match self {
            Self::Keys(keys) => {
                let builder = builder.with_access_key_id(&keys.id).with_secret_access_key(keys.secret.expose());
                match &keys.token {
                    Some(token) => builder.with_token(token.expose()),
                    None => builder,
                }
            }
            Self::Web { role, token_file, session } => builder
                .with_config(AmazonS3ConfigKey::RoleArn, role)
                .with_config(AmazonS3ConfigKey::WebIdentityTokenFile, token_file)
                .with_config(AmazonS3ConfigKey::RoleSessionName, session),
        }
    }
}

/// The text of the first XML element of this name. Those that are asked for hold plain text.
fn element(xml: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(xml).ok()?;
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (value, _) = rest.split_once(&format!("</{name}>"))?;
    Some(value.trim().replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_files_are_read() {
        let mut profiles = Profiles::default();
        profiles.add(
            "# x\n[profile p]\nregion = eu-1\naws_access_key_id=config\ns3 =\n  region = no\n[sso-session p]\nregion=no\n\
             [default]\nregion=default\n",
        );
        profiles.add("[p]\naws_access_key_id=id\naws_secret_access_key = s=\n[ other ]\n; no\nx=y\n");
        let get = |name: &str, key: &str| profiles.sections.get(name).and_then(|section| section.get(key)).cloned();
        assert_eq!(get("p", "region").as_deref(), Some("eu-1"));
        assert_eq!(get("p", "aws_access_key_id").as_deref(), Some("id"), "the credentials file comes first");
        assert_eq!(get("p", "aws_secret_access_key").as_deref(), Some("s="));
        assert_eq!(get("default", "region").as_deref(), Some("default"));
        assert_eq!(get("other", "x").as_deref(), Some("y"));
        assert_eq!(profiles.sections.len(), 3);
    }

    #[test]
    fn elements_of_an_answer() {
        let xml = b"<R><Credentials><AccessKeyId> A&amp;B </AccessKeyId></Credentials></R>";
        assert_eq!(element(xml, "AccessKeyId").as_deref(), Some("A&B"));
        assert_eq!(element(xml, "SecretAccessKey"), None);
    }
}
