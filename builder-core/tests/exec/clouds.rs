//! Registries of clouds: logins that nobody configured, and that end in the middle of a build.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use builder_core::cloud::CloudEnvironment;
use builder_core::exec::BuildRequest;
use builder_core::http::{ProxyOptions, RetryOptions};
use builder_core::output::Target;
use fixtures::cloud::Clouds;
use fixtures::registry::FakeRegistry;

use crate::bench::Bench;
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "a_login_that_ends_is_renewed", items: "", run: renewed },
    Case { name: "why_there_is_no_login_is_told", items: "", run: refused },
];

const HOST: &str = "123456789012.dkr.ecr.eu-test-1.amazonaws.com";

/// Longer than the steps before the last one, shorter than all.
const LIFE: Duration = Duration::from_secs(2);

/// A push to Amazon's registry, which `registry` plays: it is the proxy for everything that is not this machine.
fn push(request: &mut BuildRequest, registry: &FakeRegistry, variables: &[(&str, String)]) {
    let proxy = Some(format!("http://{}", registry.host()));
    request.client.proxies = ProxyOptions { http: proxy.clone(), https: proxy, no_proxy: String::new() };
    request.client.retry = RetryOptions { attempts: 1, ..RetryOptions::default() };
    request.registry.insecure.insert(HOST.to_owned());
    request.tags = vec![format!("{HOST}/app:1").parse().expect("a name")];
    request.outputs = vec![Target::push()];
    let variables: BTreeMap<_, _> = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    request.credentials.environment = CloudEnvironment::new(variables, None);
}

fn renewed(bench: &Bench) -> Outcome {
    let registry = Arc::new(FakeRegistry::with_auth(fixtures::registry::Auth::basic("AWS", "nobody has this")));
    let clouds = Clouds::start(LIFE, Some(Arc::clone(&registry)));
    let token = bench.path("token");
    std::fs::write(&token, "the-pod").expect("a file");
    let url = format!("http://{}", clouds.host());
    let variables = [
        ("AWS_ENDPOINT_URL_ECR", format!("{url}/")),
        ("AWS_ENDPOINT_URL_STS", url),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/builder".to_owned()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.display().to_string()),
    ];
    let dockerfile = "FROM base:1\nRUN echo early > /early\nRUN sleep 3\nRUN echo late > /late\n";
    let built = bench.build(dockerfile, |request| push(request, &registry, &variables));
    let digest = built.digest();
    let pushed = registry.manifest("app", "1").expect("it was pushed");
    assert_eq!(digest, fixtures::image::digest(&pushed.1));
    let asked = clouds.log();
    let logins = asked.iter().filter(|line| line.starts_with("POST / {")).count();
    assert!(logins >= 2, "one login cannot have lasted: {asked:?}");
    // The role was assumed first; what it is asked with stands in the query.
    assert!(asked.iter().any(|line| line == "POST /"), "{asked:?}");
    assert_eq!(bench.files_with(b"password-1-"), Vec::<std::path::PathBuf>::new(), "no login is written down");
    Outcome::Passed
}

fn refused(bench: &Bench) -> Outcome {
    let registry = FakeRegistry::with_auth(fixtures::registry::Auth::basic("AWS", "nobody has this"));
    let clouds = Clouds::start(LIFE, None);
    let variables = [
        ("AWS_ENDPOINT_URL_ECR", format!("http://{}/", clouds.host())),
        ("AWS_ACCESS_KEY_ID", "DENIED".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "hidden-key".to_owned()),
    ];
    let built = bench.build("FROM base:1\nRUN true\n", |request| push(request, &registry, &variables));
    let error = built.error();
    assert!(error.contains("anonymous users") && error.contains("ecr:GetAuthorizationToken"), "{error}");
    assert!(!error.contains("hidden-key"), "{error}");
    Outcome::Passed
}
