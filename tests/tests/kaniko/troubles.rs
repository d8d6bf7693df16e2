//! Registries, logins and contexts that fail: exit code 1, one line, and in it what can be changed.

use fixtures::registry::{Effect, Fault};

use super::*;

macro_rules! troubles {
    ($($name:literal $prepare:expr => $says:expr $(, $field:ident: $value:expr)*;)*) => {
        &[$(Row {
            name: concat!("troubles::", $name),
            code: 1,
            says: $says,
            prepare: $prepare,
            check: one_line,
            environment: &[("PATH", "DIR/bin:/usr/bin:/bin")],
            $($field: $value,)*
            ..ROW
        }),*]
    };
}

pub const ROWS: &[Row] = troubles! {
    // Logins.
    "no-login" |_| Ok(()) => &[
        "error checking push permissions: make sure you entered the correct tag name, and that you are authenticated correctly",
        "does not let anonymous users access out",
        "add credentials for REGISTRY to the Docker config.json",
    ], login: true, dockerfile: "FROM scratch\nCOPY one /\n";
    "wrong-password" |case| config(case, r#"{"auths":{"REGISTRY":{"username":"tester","password":"wrong"}}}"#) => &[
        "error checking push permissions: ", "tester", "config.json", "check the password and the rights of",
    ], login: true, dockerfile: "FROM scratch\nCOPY one /\n";
    "expired-token" |case| config(case, r#"{"auths":{"REGISTRY":{"registrytoken":"expired"}}}"#) => &[
        "error checking push permissions: ", "config.json", "check the password and the rights of",
    ], login: true, dockerfile: "FROM scratch\nCOPY one /\n";
    "expired-identity-token" |case| config(case, r#"{"auths":{"REGISTRY":{"identitytoken":"expired"}}}"#) => &[
        "error checking push permissions: ", "config.json", "check the password and the rights of",
    ], login: true, dockerfile: "FROM scratch\nCOPY one /\n";
    "configuration-is-no-json" |case| config(case, "{") => &["config.json"], login: true;
    "configuration-is-a-directory" |case| case.write("docker/config.json/x", "") => &["config.json", "Is a directory"], login: true;
    "helper-that-fails" |case| helper(case, "echo 'the vault is sealed'; exit 1") => &[
        "docker-credential-test", "the vault is sealed",
    ], login: true;
    "helper-that-babbles" |case| helper(case, "echo babble") => &["docker-credential-test"], login: true;
    "helper-that-hangs" |case| helper(case, "exec sleep 1000") => &["docker-credential-test", "30 s"], login: true;
    "helper-that-is-missing" |case| config(case, r#"{"credHelpers":{"REGISTRY":"nowhere"}}"#) => &[
        "docker-credential-nowhere", "remove it from credsStore and credHelpers",
    ], login: true;
    // Pulling.
    "base-is-missing" |_| Ok(()) => &[
        "error building image: ", "REGISTRY/nowhere:1: not found", "check the spelling",
    ], dockerfile: "FROM REGISTRY/nowhere:1\n";
    "base-is-forbidden" |case| status(case, "GET", "/base/manifests/", 403) => &[
        "error building image: ", "denies access to base",
    ];
    "too-many-requests" |case| status(case, "GET", "/base/manifests/", 429) => &[
        "error building image: ", "429", "the registry limits requests: log in, or use a mirror",
    ];
    // Pushing.
    "push-is-forbidden" |case| status(case, "POST", "/out/blobs/uploads/", 403) => &[
        "error checking push permissions: ", "denies access to out",
    ];
    "push-is-forbidden-at-last" |case| status(case, "PUT", "/out/manifests/", 403) => &["error pushing image: ", "denies access to out"], arguments: &["--skip-push-permission-check"];
    "repository-does-not-exist" |case| status(case, "POST", "/out/blobs/uploads/", 404) => &[
        "error checking push permissions: ", "out",
    ];
    "manifest-is-too-large" |case| status(case, "PUT", "/out/manifests/", 413) => &[
        "error pushing image: ", "413", "raise the proxy's limit",
    ];
    "push-is-limited" |case| {
        fault(case, Fault::always("PUT", "/out/manifests/", Effect::retry_after(429, 0)))
    } => &["error pushing image: ", "429", "the registry limits requests"], arguments: &["--skip-push-permission-check"];
    // Contexts.
    "archive-that-climbs-out" climbing => &[
        "error building image: ", "../outside",
    ], bare: true, arguments: &["--context=tar://c.tar", "--destination=REGISTRY/out:1"];
    "archive-of-a-server-that-is-missing" |_| Ok(()) => &[
        "error building image: ", "https://127.0.0.1:1/c.tar.gz",
    ], bare: true,
        arguments: &["--context=https://127.0.0.1:1/c.tar.gz", "--destination=REGISTRY/out:1"];
};

/// Whatever was shown before, the reason is one line without level, and it comes last.
fn one_line(_: &Case, ended: &Ended) -> Result<(), String> {
    let text = plain(&ended.stderr);
    let last = text.lines().last().unwrap_or_default();
    that(last, last.starts_with("error ") && !text.contains("Usage:"))
}

fn fault(case: &Case, fault: Fault) -> Result<(), String> {
    case.registry.fault(fault);
    Ok(())
}

fn status(case: &Case, method: &str, path: &str, code: u16) -> Result<(), String> {
    fault(case, Fault::always(method, path, Effect::status(code)))
}

fn config(case: &Case, text: &str) -> Result<(), String> {
    case.write("docker/config.json", case.filled(text))
}

/// A helper that does this, and is asked about the registry.
fn helper(case: &Case, script: &str) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    case.write("bin/docker-credential-test", format!("#!/bin/sh\n{script}\n"))?;
    let path = case.path("bin/docker-credential-test");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
    config(case, r#"{"credHelpers":{"REGISTRY":"test"}}"#)
}

/// An archive with a Dockerfile and one more file under a name that tar(1) would not write.
pub fn archive(case: &Case, entries: &[(&str, tar::EntryType, &str)]) -> Result<(), String> {
    let mut archive = tar::Builder::new(Vec::new());
    let dockerfile = case.filled("FROM scratch\nCOPY . /\n");
    for (name, kind, content) in [("Dockerfile", tar::EntryType::Regular, dockerfile.as_str())].iter().chain(entries) {
        let mut header = tar::Header::new_ustar();
        let bytes: &[u8] = if *kind == tar::EntryType::Symlink { &[] } else { content.as_bytes() };
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(*kind);
        if *kind == tar::EntryType::Symlink {
            header.set_link_name_literal(content).map_err(|error| error.to_string())?;
        }
        // As it is: `set_path` refuses what must be refused by others here.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, bytes).map_err(|error| error.to_string())?;
    }
    case.write("c.tar", archive.into_inner().map_err(|error| error.to_string())?)
}

fn climbing(case: &Case) -> Result<(), String> {
    archive(case, &[("../outside", tar::EntryType::Regular, "x")])
}
