//! What each row of the table allows, and that slipway finds it out.

use serde_json::Value;
use tests::pods::{BUSYBOX, Kind, Pod, SLIPWAY};

pub const TESTS: &[(&str, crate::Test)] = &[
    ("table::what_is_allowed", what_is_allowed),
    ("table::info_chooses_the_tier", info_chooses_the_tier),
    ("table::forced_tiers_say_what_is_missing", forced_tiers_say_what_is_missing),
];

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

fn info(pod: &Pod, arguments: &[&str]) -> Result<Value, String> {
    let work = pod.volume.join("work");
    let work = work.to_str().ok_or("the path is UTF-8")?;
    let ended = pod.run(SLIPWAY, &[&["info", "--json", "--work-dir", work], arguments].concat(), &[])?;
    if !ended.success() {
        return Err(format!("slipway info: {}\n{}", ended.how(), ended.text()));
    }
    serde_json::from_slice(&ended.stdout).map_err(|error| format!("{error}: {}", ended.text()))
}

fn info_chooses_the_tier() -> Result<(), String> {
    for (kind, tier) in [(Kind::E4, "namespaces"), (Kind::E5, "chroot"), (Kind::E6, "traced")] {
        let volume = crate::volume()?;
        let pod = Pod::start(kind, volume.path(), false)?;
        let found = info(&pod, &[])?;
        if found["tier"] != tier {
            return Err(format!("{}: {} instead of {tier}: {found:#}", kind.name(), found["tier"]));
        }
        if found["work_dir"]["real_owners"] != (kind != Kind::E6) {
            return Err(format!("{}: owners: {found:#}", kind.name()));
        }
        // Every stronger tier has a reason and a remedy.
        for stronger in found["tiers"].as_array().into_iter().flatten().take_while(|one| one["tier"] != tier) {
            let refused = stronger["refused"].as_array().ok_or("no list of refusals")?;
            let explained = |one: &Value| {
                one["reason"].as_str().is_some_and(|reason| !reason.is_empty())
                    && one["remedies"].as_array().is_some_and(|remedies| !remedies.is_empty())
            };
            if stronger["possible"] == true || refused.is_empty() || !refused.iter().all(explained) {
                return Err(format!("{}: {stronger:#}", kind.name()));
            }
        }
    }
    Ok(())
}

fn forced_tiers_say_what_is_missing() -> Result<(), String> {
    for (kind, tier, words) in [
        (Kind::E5, "namespaces", ["seccompProfile.type: Unconfined", "unshare"]),
        (Kind::E6, "chroot", ["runAsUser: 0", "not root"]),
    ] {
        let volume = crate::volume()?;
        let pod = Pod::start(kind, volume.path(), false)?;
        let dockerfile = volume.path().join("Dockerfile");
        std::fs::write(&dockerfile, "FROM scratch\nCOPY Dockerfile /\nRUN [\"/x\"]\n")
            .map_err(|error| error.to_string())?;
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
