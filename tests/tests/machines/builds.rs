//! The same images, the same behaviour and no way out, in every tier.

use tests::machine::{Done, Kernel, Machine};

use crate::inside::{LIMIT, UNAVAILABLE, all, machine, same, says, small, step, text};

/// Name, user, and the sandbox that is asked for.
const WAYS: &[(&str, &str, &str)] = &[
    ("root-auto", "root", "auto"),
    ("root-chroot", "root", "chroot"),
    ("root-traced", "root", "traced"),
    ("subids-auto", "subids", "auto"),
    ("plain-auto", "plain", "auto"),
];

/// What of the test `sandbox` is no environment.
const KILLED: &str = "killed";

/// Parts of the test `sandbox`: its environments, but containers, and its builders that are killed.
pub const SANDBOXES: &[&str] = &[
    "root",
    "root_in_pod",
    "root_in_pod_with_masked_proc",
    "chroot_in_pod",
    "user_with_subids",
    "user_without_subids",
    "user_without_namespaces",
    "traced_user",
    "traced_without_namespaces",
    KILLED,
];

/// Builds as root, and as users with and without subordinate ids.
pub fn same_everywhere(kernel: Kernel) -> Result<(), String> {
    let mut machine = machine(kernel)?;
    for (name, user, sandbox) in WAYS {
        machine.step(name, &format!("build {user} {sandbox} /var/tmp/{name} 2>&1")).map_err(text)?;
    }
    // Trees as directories, which is what a kernel without overlayfs leaves.
    machine.step("directory", "build root auto /var/tmp/directory --trees directory 2>&1").map_err(text)?;
    let info = "slipway info; HOME=/home/subids setpriv --reuid=subids --regid=subids --init-groups slipway info";
    machine.step("info", info).map_err(text)?;
    let steps = machine.run(LIMIT)?;
    let info = step(&steps, "info")?;
    let overlays = info.output.lines().filter(|line| line.starts_with("trees") && line.contains("overlayfs: ")).count();
    all([
        same(steps.iter().filter(|step| step.name != "info")),
        says(info, 0, &["tier namespaces  possible, used", "tier chroot      possible", "tier traced      possible"]),
        // Of root, and of a user with subordinate ids.
        if overlays == 2 { Ok(()) } else { Err(format!("overlayfs is not used:\n{}", info.output)) },
    ])
}

/// `builder-core`'s test `sandbox` in one of its environments, with a tenth of the stress; or its builders that are killed.
/// `MACHINES_CASES` names the cases, separated by commas, if not all are wanted.
pub fn sandbox(kernel: Kernel, environment: &str) -> Result<(), String> {
    let mut machine = machine(kernel)?;
    let filter = if environment == KILLED { "killed_".to_owned() } else { format!("{environment}::") };
    // What is asked for is a part of names.
    let longer = SANDBOXES.iter().filter(|other| **other != environment && other.ends_with(environment));
    let others: String = longer.map(|other| format!(" --skip {other}::")).collect();
    let cases = std::env::var("MACHINES_CASES").unwrap_or_default();
    let variables = format!("STRESS_PROGRAM=/job/bin/stress STRESS_PERCENT=10 SANDBOX_CASES='{cases}'");
    machine.step(environment, &format!("{variables} sandbox {filter}{others} --test-threads 2")).map_err(text)?;
    says(step(&machine.run(LIMIT)?, environment)?, 0, &["test result: ok"])
}

/// A kernel without what namespaces need is refused before the first step, or has a tier that works.
pub fn too_old(kernel: Kernel) -> Result<(), String> {
    let mut machine = machine(kernel)?;
    small(&machine)?;
    let build =
        |user: &str, sandbox: &str| format!("CONTEXT=/job/small build {user} {sandbox} /var/tmp/{user}-{sandbox} 2>&1");
    for (user, sandbox) in [("root", "auto"), ("plain", "auto"), ("root", "namespaces")] {
        machine.step(&format!("{user}-{sandbox}"), &build(user, sandbox)).map_err(text)?;
    }
    let steps = machine.run(LIMIT)?;
    let done = |name: &str| step(&steps, name);
    all([
        same([done("root-auto")?, done("plain-auto")?]),
        says(done("root-namespaces")?, UNAVAILABLE, &["mount_setattr (Linux 5.12 or later is needed)"]),
    ])
}

/// What nobody inside may see.
const WORD: &str = "must-not-be-seen";

/// Each attempt of `fixtures/escapes` in each tier.
pub fn escapes(kernel: Kernel) -> Result<(), String> {
    let mut machine = machine(kernel)?;
    let names = prepare_escapes(&machine)?;
    for (name, user, sandbox) in WAYS {
        let build = format!(
            "CONTEXT=/job/escapes BUILDER_SECRET={WORD} build {user} {sandbox} /var/tmp/{name} 2>&1 || exit; \
             test \"$(cat /job/canary)\" = {WORD}"
        );
        machine.step(name, &build).map_err(text)?;
    }
    let steps = machine.run(LIMIT)?;
    all(steps.iter().map(|done| all_refused(done, &names)))
}

/// Puts the attempts into `/job/escapes`, and what they are after beside it; gives their names.
pub fn prepare_escapes(machine: &Machine) -> Result<Vec<String>, String> {
    let dockerfile = "FROM scratch\nCOPY escapes /escapes\nENV CANARY=/job/canary\nRUN [\"/escapes/run-all\"]\n";
    let programs = machine.tree().join("bin/escapes");
    machine.add(&programs, "escapes/escapes").map_err(text)?;
    std::fs::write(machine.tree().join("escapes/Dockerfile"), dockerfile).map_err(text)?;
    std::fs::write(machine.tree().join("canary"), WORD).map_err(text)?;
    let mut names = Vec::new();
    for program in std::fs::read_dir(programs).map_err(text)? {
        names.push(program.map_err(text)?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name != "run-all");
    Ok(names)
}

pub fn all_refused(done: &Done, names: &[String]) -> Result<(), String> {
    let refused = |name: &String| done.output.lines().any(|line| line.ends_with(&format!("refused {name}")));
    let escaped: Vec<&String> = names.iter().filter(|name| !refused(name)).collect();
    says(done, 0, &[])?;
    if escaped.is_empty() { Ok(()) } else { Err(format!("{}: not refused: {escaped:?}\n{}", done.name, done.output)) }
}
