//! sysctl kernel.yama.ptrace_scope, which ptrace(2) is subject to.

use tests::machine::Kernel;

use crate::inside::{LIMIT, UNAVAILABLE, all, machine, same, says, small, step, text};

/// From 0, anybody's own processes, to 3, nobody's. A machine cannot go back from 3.
pub fn ptrace_scope(kernel: Kernel) -> Result<(), String> {
    let mut machine = machine(kernel)?;
    small(&machine)?;
    for scope in 0..=3 {
        let set = format!("echo {scope} >/proc/sys/kernel/yama/ptrace_scope;");
        for (name, user, sandbox) in
            [("auto", "plain", "auto"), ("traced", "plain", "traced"), ("root", "root", "traced")]
        {
            let build = format!("{set} CONTEXT=/job/small build {user} {sandbox} /var/tmp/{name}-{scope} 2>&1");
            machine.step(&format!("{name}-{scope}"), &build).map_err(text)?;
        }
        machine
            .step(&format!("info-{scope}"), "setpriv --reuid=plain --regid=plain --init-groups slipway info")
            .map_err(text)?;
        if scope == 2 {
            let none = "echo 0 >/proc/sys/user/max_user_namespaces;";
            let build = "CONTEXT=/job/small build plain auto /var/tmp/none 2>&1; echo 15000 >/proc/sys/user/max_user_namespaces";
            machine.step("without-namespaces", &format!("{none} {build}")).map_err(text)?;
        }
    }
    let steps = machine.run(LIMIT)?;
    let done = |name: &str| step(&steps, name);
    let is = |scope: u8| format!("kernel.yama.ptrace_scope=1 (it is {scope})");
    // Whoever owns a user namespace may trace in it up to 2, and `traced` has one.
    let same_names = ["auto-0", "auto-1", "auto-2", "traced-0", "traced-1", "traced-2", "root-0", "root-1", "root-2"];
    all([
        same(same_names.map(done).into_iter().collect::<Result<Vec<_>, _>>()?),
        says(done("info-2")?, 0, &["tier traced      possible, used", "ptrace_scope     2"]),
        says(done("without-namespaces")?, 0, &[&is(2), "sysctl user.max_user_namespaces=15000 (it is 0)"]),
        says(done("traced-3")?, UNAVAILABLE, &[&is(3)]),
        says(done("root-3")?, UNAVAILABLE, &[&is(3)]),
        says(done("info-3")?, 0, &[&is(3), "ptrace_scope     3"]),
    ])
}
