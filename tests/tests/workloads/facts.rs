//! That the workloads do what they are for: two builds that are equal and do nothing would prove nothing.

use std::collections::BTreeSet;

use tests::conformance::{Entry, matches};
use tests::layers::Layers;

use crate::inputs::Workload;

/// Checks what E1 gave: what `expected.txt` names is there.
pub fn check(workload: &Workload, layers: &Layers) -> Result<(), String> {
    let all = layers.last();
    for line in workload.lines("expected.txt")?.unwrap_or_default() {
        let (path, wanted) = line.split_once(' ').unwrap_or((&line, ""));
        let entry = all.get(path).ok_or_else(|| format!("{path} is missing"))?;
        let number = |id: Option<u64>| id.map_or_else(String::new, |id| id.to_string());
        let mode = entry.mode.as_deref().unwrap_or_default();
        let found = format!("{mode} {}:{}", number(entry.uid), number(entry.gid));
        if !wanted.is_empty() && !matches(wanted, &found) {
            return Err(format!("{path}: {found} instead of {wanted}"));
        }
    }
    if workload.name == "packages" { packages(layers) } else { Ok(()) }
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
    Ok(())
}
