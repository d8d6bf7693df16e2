//! What each row of the table allows, and that slipway finds it out.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::Value;
use tests::environment::Environment;
use tests::pods::{BUSYBOX, Kind, Pod, SLIPWAY};
use tests::process;

pub const TESTS: &[(&str, crate::Test)] = &[
    ("table::what_is_allowed", what_is_allowed),
    ("table::info_tells_tier_and_reasons", info_tells_tier_and_reasons),
    ("table::forced_tiers_say_what_is_missing", forced_tiers_say_what_is_missing),
];

const LIMIT: Duration = Duration::from_secs(60);

/// The rows are what the table says: otherwise the other tests would prove nothing.
fn what_is_allowed() -> Result<(), String> {
    for kind in Kind::ALL {
        let volume = crate::volume()?;
        let pod = Pod::start(kind, volume.path(), true)?;
        let allowed = |command: &[&str]| pod.run(BUSYBOX, command, &[]).map(|ended| ended.success());
        let expected = |row: [bool; 3]| row[kind as usize];
        let checks = [
            ("unshare -Ur true", allowed(&["unshare", "-Ur", BUSYBOX, "true"])?, expected([true, false, false])),
            ("mount", allowed(&["mount", "-t", "tmpfs", "none", "/tmp"])?, false),
            ("chroot", allowed(&["chroot", "/", BUSYBOX, "true"])?, expected([true, true, false])),
            ("chown", allowed(&["chown", "1234", volume.path().to_str().unwrap_or_default()])?, kind != Kind::E6),
            ("a file outside of the volume", allowed(&["touch", "/etc/x"])?, kind != Kind::E6),
            ("root", allowed(&["sh", "-c", "[ $(id -u) = 0 ]"])?, kind != Kind::E6),
        ];
        for (what, found, expected) in checks {
            if found != expected {
                return Err(format!("{}: {what} is {found} here, {expected} in the table", kind.name()));
            }
        }
    }
    Ok(())
}

/// What `slipway info` says in an environment, as text and as JSON, about a work dir on the volume.
fn info(environment: Environment) -> Result<(String, Value), String> {
    let volume = crate::volume()?;
    fs::set_permissions(volume.path(), Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
    let own = volume.path().join("own");
    fs::create_dir(&own).map_err(|error| error.to_string())?;
    let said = |format: &[&str]| {
        let mut slipway = environment.slipway(volume.path(), &own)?;
        slipway.command.args(["info", "--work-dir"]).arg(own.join("work")).args(format);
        process::output(&mut slipway.command, LIMIT)
    };
    let (text, json) = (said(&[])?, said(&["--json"])?);
    Ok((text, serde_json::from_str(&json).map_err(|error| format!("{error}: {json}"))?))
}

/// The tier, and everything that bears on it.
fn info_in(environment: Environment, tier: &str) -> Result<(), String> {
    let (text, found) = info(environment)?;
    if found["tier"] != tier {
        return Err(format!("{} instead of {tier}: {found:#}", found["tier"]));
    }
    if found["work_dir"]["real_owners"] != (tier != "traced") {
        return Err(format!("owners: {found:#}"));
    }
    // Every stronger tier has a reason and a remedy.
    for stronger in found["tiers"].as_array().into_iter().flatten().take_while(|one| one["tier"] != tier) {
        let refused = stronger["refused"].as_array().ok_or("no list of refusals")?;
        let explained = |one: &Value| {
            let reason = one["reason"].as_str().filter(|reason| !reason.is_empty());
            reason.is_some_and(|reason| text.contains(reason))
                && one["remedies"].as_array().is_some_and(|remedies| !remedies.is_empty())
        };
        // One id works, but does not give the right result.
        if refused.is_empty() || !refused.iter().all(explained) {
            return Err(format!("{stronger:#}\n{text}"));
        }
    }
    let missing: Vec<_> = [
        "/kernel",
        "/machine",
        "/ids/kind",
        "/ids/uids/0/count",
        "/ids/gids/0/count",
        "/work_dir/file_system",
        "/work_dir/overlay",
        "/work_dir/overlay_refused",
        "/work_dir/reflink",
        "/work_dir/user_xattrs",
        "/work_dir/noexec",
        "/work_dir/nosuid",
        "/work_dir/nodev",
        "/work_dir/free_bytes",
        "/limits/memory_bytes",
        "/limits/open_files",
        "/limits/processes",
        "/limits/processors",
        "/confinement/seccomp_filter",
        "/confinement/landlock",
        "/confinement/no_new_privs",
        "/confinement/ptrace_scope",
        "/confinement/capabilities",
    ]
    .into_iter()
    .filter(|path| found.pointer(path).is_none())
    .collect();
    let untold: Vec<_> = [
        "sandbox",
        "ids",
        "kernel",
        "user id map",
        "group id map",
        "work directory",
        "trees",
        "file system",
        "reflinks",
        "memory limit",
        "process limit",
        "open files",
        "processors",
        "seccomp filter",
        "tier namespaces",
        "tier chroot",
        "tier traced",
    ]
    .into_iter()
    .filter(|name| !text.lines().any(|line| line.starts_with(name) && line.len() > name.len() + 1))
    .collect();
    let overlay = found["work_dir"]["overlay"] == true || found["work_dir"]["overlay_refused"].is_string();
    if missing.is_empty() && untold.is_empty() && overlay {
        return Ok(());
    }
    Err(format!("JSON lacks {missing:?}, text lacks {untold:?}, overlay told: {overlay}\n{text}\n{found:#}"))
}

fn info_tells_tier_and_reasons() -> Result<(), String> {
    let failures: Vec<_> = Environment::ALL
        .into_iter()
        .zip(["namespaces", "namespaces", "traced", "namespaces", "chroot", "traced"])
        .filter_map(|(one, tier)| info_in(one, tier).err().map(|error| format!("{}: {error}", one.name())))
        .collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n\n")) }
}

fn forced_tiers_say_what_is_missing() -> Result<(), String> {
    for (kind, tier, words) in [
        (Kind::E5, "namespaces", ["seccompProfile.type: Unconfined", "unshare"]),
        (Kind::E6, "chroot", ["runAsUser: 0", "not root"]),
    ] {
        let volume = crate::volume()?;
        let pod = Pod::start(kind, volume.path(), false)?;
        let dockerfile = volume.path().join("Dockerfile");
        fs::write(&dockerfile, "FROM scratch\nCOPY Dockerfile /\nRUN [\"/x\"]\n").map_err(|error| error.to_string())?;
        let path = volume.path().to_str().ok_or("the path is UTF-8")?;
        let work = format!("{path}/work");
        let arguments = ["build", "--sandbox", tier, "--work-dir", &work, "--progress", "plain", path];
        let ended = pod.run(SLIPWAY, &arguments, &[])?;
        let text = ended.text();
        // 6: commands cannot be run here.
        if ended.status.and_then(|status| status.code()) != Some(6) || !words.iter().all(|word| text.contains(word)) {
            return Err(format!("{}: --sandbox {tier}: {}\n{text}", kind.name(), ended.how()));
        }
        if text.contains("COPY Dockerfile") {
            return Err(format!("{}: told after the first step:\n{text}", kind.name()));
        }
    }
    Ok(())
}
