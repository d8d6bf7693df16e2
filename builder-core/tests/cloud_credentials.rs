//! Logins of clouds against doubles of their services: who is asked, with what, and for which hosts.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use builder_core::cancel::Cancel;
use builder_core::cloud::CloudEnvironment;
use builder_core::http::{Client, ClientOptions, RetryOptions};
use builder_core::registry::{CloudSource, Credential, CredentialError, CredentialOptions, Credentials};
use fixtures::cloud::Clouds;

const GOOGLE: &str = "europe-docker.pkg.dev";
const ECR: &str = "123456789012.dkr.ecr.eu-test-1.amazonaws.com";

/// What a registry would be sent: `user:password`.
fn find(options: CredentialOptions, registry: &str) -> Result<Option<String>, CredentialError> {
    let retry = RetryOptions { attempts: 1, ..RetryOptions::default() };
    let client = Client::new(ClientOptions { retry, ..ClientOptions::default() });
    let found = Credentials::new(options).find(registry, "x", &client, &Cancel::default())?;
    Ok(found.map(|identity| match identity.credential {
        Credential::Basic { user, password } => format!("{user}:{}", password.expose()),
        Credential::IdentityToken(token) => format!("<token>:{}", token.expose()),
        other => panic!("{other:?}"),
    }))
}

fn environment(variables: &[(&str, &str)]) -> CredentialOptions {
    let variables: BTreeMap<_, _> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    CredentialOptions { environment: CloudEnvironment::new(variables, None), ..CredentialOptions::default() }
}

#[track_caller]
fn check(variables: &[(&str, &str)], registry: &str, expected: Option<&str>) {
    assert_eq!(find(environment(variables), registry).expect("an answer").as_deref(), expected, "{registry}");
}

fn clouds() -> Clouds {
    Clouds::start(Duration::from_secs(300), None)
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("a file");
    path.display().to_string()
}

#[test]
fn google_has_a_metadata_server() {
    let clouds = clouds();
    let host = clouds.host();
    check(&[("GCE_METADATA_HOST", &host)], GOOGLE, Some("oauth2accesstoken:from-metadata"));
    check(&[("GCE_METADATA_HOST", &host)], "gcr.io", Some("oauth2accesstoken:from-metadata"));
    let asked = clouds.log().len();
    check(&[("GCE_METADATA_HOST", &host)], "gcr.io.evil.example", None);
    check(&[("GCE_METADATA_HOST", &host)], "docker.io", None);
    assert_eq!(clouds.log().len(), asked, "nobody is asked for other hosts");
    check(&[("GCE_METADATA_HOST", "127.0.0.1:1")], GOOGLE, None);
}

#[test]
fn google_reads_files() {
    let clouds = clouds();
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("http://{}", clouds.host());
    let key = std::fs::read_to_string(fixtures::distribution::tls("rsa.key")).expect("a key");
    let account = serde_json::json!({
        "type": "service_account", "client_email": "b@p.iam.gserviceaccount.com", "private_key": key,
        "private_key_id": "1", "token_uri": format!("{url}/google/token"),
    });
    let user = serde_json::json!({
        "type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r",
        "token_uri": format!("{url}/google/token"),
    });
    let subject = write(directory.path(), "subject", r#"{"id_token":"subject"}"#);
    let external = |impersonate: bool| {
        let mut value = serde_json::json!({
            "type": "external_account", "audience": "//iam.googleapis.com/pool", "token_url": format!("{url}/google/token"),
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "credential_source": {"file": subject, "format": {"type": "json", "subject_token_field_name": "id_token"}},
        });
        if impersonate {
            value["service_account_impersonation_url"] = format!("{url}/impersonate").into();
        }
        value
    };
    for (file, expected) in [
        (account, Some("oauth2accesstoken:from-3-parts")),
        (user, Some("oauth2accesstoken:from-user")),
        (external(false), Some("oauth2accesstoken:federated")),
        (external(true), Some("oauth2accesstoken:impersonated")),
        (serde_json::json!({"type": "impersonated_service_account"}), None),
        (serde_json::json!({"type": "service_account", "client_email": "x", "private_key": "no"}), None),
        (serde_json::json!({}), None),
    ] {
        let path = write(directory.path(), "credentials.json", &file.to_string());
        check(&[("GOOGLE_APPLICATION_CREDENTIALS", &path)], GOOGLE, expected);
    }
    check(&[("GOOGLE_APPLICATION_CREDENTIALS", "/missing")], GOOGLE, None);
}

#[test]
fn amazon_has_many_places() {
    let clouds = clouds();
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("http://{}", clouds.host());
    let ecr = ("AWS_ENDPOINT_URL_ECR", url.as_str());
    let ends = |variables: &[(&str, &str)], end: &str| {
        let mut all = vec![ecr, ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.as_str())];
        all.extend(variables);
        let found = find(environment(&all), ECR).expect("an answer").expect("a login");
        assert!(found.starts_with("AWS:password-") && found.ends_with(end), "{found} for {variables:?}");
    };
    ends(&[("AWS_ACCESS_KEY_ID", "STATIC"), ("AWS_SECRET_ACCESS_KEY", "s")], "-STATIC");
    let token = write(directory.path(), "web", "the-pod");
    ends(&[("AWS_ENDPOINT_URL_STS", &url), ("AWS_ROLE_ARN", "arn"), ("AWS_WEB_IDENTITY_TOKEN_FILE", &token)], "-WEB");
    let pod = write(directory.path(), "pod", "pod-token");
    let full = format!("{url}/container");
    ends(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &full), ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &pod)], "-POD");
    ends(&[], "-IMDS");
    let keys = write(directory.path(), "keys", "[p]\naws_access_key_id=PROFILE\naws_secret_access_key=s\n");
    ends(&[("AWS_SHARED_CREDENTIALS_FILE", &keys), ("AWS_PROFILE", "p")], "-PROFILE");

    let nowhere = [ecr, ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")];
    check(&nowhere, ECR, None);
    check(&nowhere, "public.ecr.aws", None);
    let asked = clouds.log().len();
    check(&[ecr, ("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "s")], &format!("{ECR}.evil.example"), None);
    assert_eq!(clouds.log().len(), asked);
}

#[test]
fn amazon_has_profiles_with_roles() {
    let clouds = clouds();
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("http://{}", clouds.host());
    let token = write(directory.path(), "web", "the-pod");
    let config = format!(
        "[profile role]\nrole_arn = arn:a\nsource_profile = keys\n[profile chain]\nrole_arn=arn:b\nsource_profile=role\n\
         [profile itself]\nrole_arn=arn:c\nsource_profile=itself\naws_access_key_id=SELF\naws_secret_access_key=s\n\
         [profile variables]\nrole_arn=arn:d\ncredential_source=Environment\n\
         [profile instance]\nrole_arn=arn:e\ncredential_source=Ec2InstanceMetadata\n\
         [profile web]\nrole_arn=arn:f\nweb_identity_token_file={token}\n\
         [profile above-web]\nrole_arn=arn:g\nsource_profile=web\n\
         [profile outside]\nrole_arn=arn:outside\nexternal_id=word\nsource_profile=keys\n\
         [profile closed]\nrole_arn=arn:closed\nsource_profile=keys\n\
         [profile stranger]\nrole_arn=arn:outside\nsource_profile=keys\n\
         [profile circle]\nrole_arn=arn:h\nsource_profile=circle2\n[profile circle2]\nrole_arn=arn:i\nsource_profile=circle\n\
         [profile sso]\nsso_session=s\n[profile program]\ncredential_process=x\n\
         [profile factor]\nrole_arn=arn:j\nsource_profile=keys\nmfa_serial=x\n\
         [profile nothing]\nrole_arn=arn:k\n[profile lost]\nrole_arn=arn:l\nsource_profile=nobody\n[profile region]\nregion=eu\n"
    );
    let config = write(directory.path(), "config", &config);
    let keys = write(directory.path(), "keys", "[keys]\naws_access_key_id=KEYS\naws_secret_access_key=s\n");
    let asked = |profile: &str, more: &[(&str, &str)]| {
        let mut all = vec![
            ("AWS_ENDPOINT_URL_ECR", url.as_str()),
            ("AWS_ENDPOINT_URL_STS", &url),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url),
            ("AWS_CONFIG_FILE", &config),
            ("AWS_SHARED_CREDENTIALS_FILE", &keys),
            ("AWS_PROFILE", profile),
        ];
        all.extend(more);
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
    };
    for (profile, end) in [
        ("keys", "-KEYS"),
        ("role", "-arn:a-of-KEYS"),
        ("chain", "-arn:b-of-arn:a-of-KEYS"),
        ("itself", "-arn:c-of-SELF"),
        ("instance", "-arn:e-of-IMDS"),
        ("web", "-WEB"),
        ("above-web", "-arn:g-of-WEB"),
        ("outside", "-arn:outside-of-KEYS"),
        // It says nothing about who we are, so the machine does.
        ("region", "-IMDS"),
    ] {
        let options = CredentialOptions {
            environment: CloudEnvironment::new(asked(profile, &[]), None),
            ..CredentialOptions::default()
        };
        let found = find(options, ECR).expect("an answer").unwrap_or_else(|| panic!("a login for {profile}"));
        assert!(found.ends_with(end), "{found} for {profile}");
    }
    let token = |profile: &str, more: &[(&str, &str)]| {
        let environment = CloudEnvironment::new(asked(profile, more), None);
        let client = Client::new(ClientOptions::default());
        let credentials = Credentials::new(CredentialOptions { environment, ..CredentialOptions::default() });
        assert!(credentials.find(ECR, "x", &client, &Cancel::default()).expect("an answer").is_none(), "{profile}");
        credentials.trouble(ECR).expect("a reason")
    };
    for (profile, says) in [
        ("closed", "`closed` cannot take on arn:closed: Amazon STS answered 403: User KEYS is not authorized"),
        ("stranger", "answered 403"),
        ("circle", "more than 8 roles in a row"),
        ("sso", "`sso` signs in by SSO"),
        ("program", "`program` runs a program"),
        ("factor", "`factor` wants the code of a second factor"),
        ("nothing", "`nothing` has a role, but not one of `source_profile` and `credential_source`"),
        ("lost", "`nobody` is not in"),
        ("missing", "`missing` is not in"),
        ("variables", "has a role, and where its keys should come from are none"),
    ] {
        let told = token(profile, &[]);
        assert!(told.contains(says), "{told:?} for {profile}");
    }
}

#[test]
fn sources_can_be_chosen_and_configuration_comes_first() {
    let clouds = clouds();
    let host = clouds.host();
    let variables = [
        ("GCE_METADATA_HOST", host.as_str()),
        ("KANIKO_EUROPE_DOCKER_PKG_DEV_USER", "u"),
        ("KANIKO_EUROPE_DOCKER_PKG_DEV_PASSWORD", "p"),
    ];
    check(&variables, GOOGLE, Some("u:p"));
    let only = |cloud: Vec<CloudSource>| CredentialOptions { cloud, ..environment(&variables) };
    let google = find(only(vec![CloudSource::Google]), GOOGLE).expect("an answer");
    assert_eq!(google.as_deref(), Some("oauth2accesstoken:from-metadata"));
    assert_eq!(find(only(Vec::new()), GOOGLE).expect("an answer"), None);
    let configured = |config: &str| CredentialOptions { inline: Some(config.to_owned()), ..environment(&variables) };
    // base64 of a:b
    let login = configured(&format!(r#"{{"auths":{{"{GOOGLE}":{{"auth":"YTpi"}}}}}}"#));
    assert_eq!(find(login, GOOGLE).expect("an answer").as_deref(), Some("a:b"));
}

#[test]
fn helpers_that_are_not_installed() {
    let clouds = clouds();
    let host = clouds.host();
    let with = |config: &str| CredentialOptions {
        inline: Some(config.to_owned()),
        helper_environment: vec![("PATH".into(), "/nonexistent".into())],
        ..environment(&[("GCE_METADATA_HOST", host.as_str())])
    };
    let helper = |name: &str| with(&format!(r#"{{"credHelpers":{{"{GOOGLE}":"{name}"}}}}"#));
    // What it would do is done without it.
    assert_eq!(find(helper("gcloud"), GOOGLE).expect("an answer").as_deref(), Some("oauth2accesstoken:from-metadata"));
    assert!(matches!(find(helper("secret-service"), GOOGLE), Err(CredentialError::HelperMissing { .. })));
    // For another host it does not matter.
    assert_eq!(find(helper("secret-service"), "docker.io").expect("an answer"), None);
    assert_eq!(find(with(r#"{"credsStore":"ecr-login"}"#), "docker.io").expect("an answer"), None);
}
