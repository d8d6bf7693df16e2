//! Variables of the environment that Kaniko looks at: what each means here.

use super::grammar::Effect;
use super::log::Logger;
use crate::request::Ambient;

/// A variable.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name, or several of one kind.
    pub names: &'static [&'static str],
    /// One sentence.
    pub meaning: &'static str,
    /// Compared with Kaniko.
    pub effect: Effect,
}

const fn same(names: &'static [&'static str], meaning: &'static str) -> Variable {
    Variable { names, meaning, effect: Effect::Same }
}

const fn better(names: &'static [&'static str], meaning: &'static str, how: &'static str) -> Variable {
    Variable { names, meaning, effect: Effect::Better(how) }
}

const fn meaningless(names: &'static [&'static str], meaning: &'static str, why: &'static str) -> Variable {
    Variable { names, meaning, effect: Effect::Meaningless(why) }
}

const NO_ROOT: &str = "this container's own root is neither read nor changed";
const NO_SPANS: &str =
    "nothing is sent anywhere; `slipway build --report` and `--report-trace` write times of all steps as JSON";
const IN_MEMORY: &str = "tokens are kept in memory alone";

/// All of them, in the order of the documentation.
pub const ALL: &[Variable] = &[
    better(&["KANIKO_DIR"], "Directory that everything is kept below", "mounts in it are no obstacle"),
    same(&["KANIKO_NO_PUSH"], "Overrides `--no-push`; what is no boolean is an error"),
    same(&["KANIKO_REGISTRY_MIRROR"], "One more `--registry-mirror`"),
    same(&["KANIKO_REGISTRY_MAP"], "More of `--registry-map`, for `warmer` too"),
    better(
        &["KANIKO_<HOST>_USER", "KANIKO_<HOST>_PASSWORD"],
        "Login for a registry: its name in upper case, `-` and `.` as `_`",
        "see [credentials.md](credentials.md)",
    ),
    same(&["KANIKO_PRINT_PLAN"], "Prints the plan before the build"),
    meaningless(
        &["KANIKO_CLEANUP", "KANIKO_PRE_CLEANUP", "KANIKO_PRESERVE_CONTEXT"],
        "Defaults of these flags",
        NO_ROOT,
    ),
    meaningless(&["KANIKO_IGNORE_ASSERTIONS"], "Assertions to demote", "they are about Kaniko's own code"),
    meaningless(
        &["KANIKO_TELEMETRY_ENDPOINT", "KANIKO_TELEMETRY_OMIT_DOCKERFILE"],
        "Where traces (OTLP) go, with `OTEL_…`",
        NO_SPANS,
    ),
    meaningless(&["BENCHMARK_FILE", "STACKLOG_PATH"], "Files for times and samples of stacks", NO_SPANS),
    meaningless(
        &["SNAPSHOT_TIMEOUT_DURATION"],
        "Longest time of a walk over the file system",
        "there are no such walks",
    ),
    same(&["UPSTREAM_CLIENT_TYPE"], "Goes behind the name of the program in the user agent of pushes"),
    same(&["BUILDER_OUTPUT"], "Directory that gets `images` after a push, as Cloud Build reads it"),
    better(
        &["DOCKER_CONFIG", "DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"],
        "Where logins are",
        "`DOCKER_AUTH_CONFIG` counts by itself",
    ),
    same(
        &["GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST"],
        "Google's identity, and another address of its object store",
    ),
    better(
        &["AWS_*"],
        "Amazon's identity, region, profile, endpoints and CA bundle",
        "no login is written to disk; see [credentials.md](credentials.md)",
    ),
    meaningless(&["AWS_ECR_DISABLE_CACHE", "AWS_ECR_CACHE_DIR"], "Where logins of ECR are kept", IN_MEMORY),
    meaningless(&["DOCKER_CREDENTIAL_GCR_CONFIG"], "Settings of the helper `gcr`", "no helper is needed"),
    better(
        &["S3_ENDPOINT", "S3_FORCE_PATH_STYLE"],
        "Another object store that speaks S3",
        "see [contexts.md](contexts.md)",
    ),
    same(
        &[
            "AZURE_CLIENT_ID",
            "AZURE_CLIENT_SECRET",
            "AZURE_TENANT_ID",
            "AZURE_FEDERATED_TOKEN",
            "AZURE_FEDERATED_TOKEN_FILE",
        ],
        "Azure's identity",
    ),
    better(
        &["AZURE_STORAGE_ACCESS_KEY"],
        "Key of the storage account of a context",
        "signed URLs and Azure's identity are taken without it",
    ),
    same(&["AZURE_ENVIRONMENT"], "Which of Azure's clouds"),
    same(&["CI_REGISTRY", "CI_REGISTRY_USER", "CI_REGISTRY_PASSWORD"], "GitLab's login, for its own registry alone"),
    same(&["GIT_TOKEN", "GIT_USERNAME", "GIT_PASSWORD", "GIT_PULL_METHOD"], "Login and protocol of git contexts"),
    same(&["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"], "Proxies of this program, never of a RUN; lower case too"),
    same(&["SSL_CERT_DIR", "SSL_CERT_FILE"], "Certificates to trust; the system's bundle stays beside `SSL_CERT_DIR`"),
];

/// Names those that are set without effect: somebody expects something of them.
pub fn tell(ambient: &Ambient, logger: &Logger) {
    for variable in ALL {
        let Effect::Meaningless(why) = variable.effect else { continue };
        for name in variable.names {
            if ambient.var(name).is_some() {
                let text = format!("{name} ({}) has no effect: {why}", variable.meaning);
                match why {
                    NO_SPANS => logger.warn(&text),
                    _ => logger.debug(&text),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_there_once() {
        let mut names: Vec<_> = ALL.iter().flat_map(|variable| variable.names).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
