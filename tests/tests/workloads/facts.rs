//! That the workloads do what they are for: two builds that are equal and do nothing would prove nothing.

use std::collections::BTreeSet;

use tests::conformance::Entry;
use tests::layers::Layers;

use crate::inputs::Workload;

/// Checks what E1 gave.
pub fn check(workload: Workload, layers: &Layers) -> Result<(), String> {
    match workload {
        Workload::Packages => packages(layers),
        Workload::Toolchains => toolchains(layers),
    }
}

fn packages(layers: &Layers) -> Result<(), String> {
    let all = layers.last();
    let count = |test: &dyn Fn(&str, &Entry) -> bool| all.iter().filter(|(path, entry)| test(path, entry)).count();
    let mode = |entry: &Entry| entry.mode.as_deref().and_then(|mode| u32::from_str_radix(mode, 8).ok()).unwrap_or(0);
    let capability = |entry: &Entry| {
        entry.xattrs.as_ref().is_some_and(|xattrs| xattrs.keys().any(|name| name == "security.capability"))
    };
    let owners: BTreeSet<_> = all.values().filter_map(|entry| entry.uid).collect();
    let groups: BTreeSet<_> = all.values().filter_map(|entry| entry.gid).collect();
    for (what, found, least) in [
        ("packages", count(&|path, _| path.starts_with("/var/lib/dpkg/info/") && path.ends_with(".md5sums")), 30),
        ("file capabilities", count(&|_, entry| capability(entry)), 3),
        ("setuid programs", count(&|_, entry| mode(entry) & 0o4000 != 0), 3),
        ("setgid files and directories", count(&|_, entry| mode(entry) & 0o2000 != 0), 4),
        ("owners", owners.len(), 8),
        ("groups", groups.len(), 8),
    ] {
        if found < least {
            return Err(format!("{found} {what}, at least {least} expected"));
        }
    }
    let own = all.get("/home/someone/mine").ok_or("USER's own file is missing")?;
    if own.uid == Some(4711) { Ok(()) } else { Err(format!("owner of USER's file: {:?}", own.uid)) }
}

fn toolchains(layers: &Layers) -> Result<(), String> {
    let all = layers.last();
    for path in [
        "/opt/python/bin/pip",
        "/opt/said",
        "/src/said",
        "/src/libparts.a",
        "/usr/local/bin/program",
        "/usr/local/bin/server",
        "/src/go/said",
    ] {
        if !all.contains_key(path) {
            return Err(format!("{path} is missing"));
        }
    }
    let program = all["/usr/local/bin/program"];
    let expected = (Some("4755"), Some(5), Some(60));
    let found = (program.mode.as_deref(), program.uid, program.gid);
    if found == expected { Ok(()) } else { Err(format!("/usr/local/bin/program: {found:?}")) }
}
