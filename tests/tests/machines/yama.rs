//! sysctl kernel.yama.ptrace_scope, which ptrace(2) is subject to.

use tests::machine::Kernel;

use crate::inside::{LIMIT, UNAVAILABLE, all, machine, same, says, step, text};

/// From 0, anybody's own processes, to 3, nobody's. A machine cannot go back from 3.
pub fn ptrace_scope(kernel: Kernel) -> Result<(), String> {
    let mut machine = machine(kernel)?;
    for scope in 0..=3 {
        let set = format!("echo {scope} >/proc/sys/kernel/yama/ptrace_scope;");
        for (name, user, sandbox) in
            [("auto", "plain", "auto"), ("traced", "plain", "traced"), ("root", "root", "traced")]
        {
            let build = format!("{set} build {user} {sandbox} /var/tmp/{name}-{scope} 2>&1");
            machine.step(&format!("{name}-{scope}"), &build).map_err(text)?;
        }
        machine
            .step(&format!("info-{scope}"), "setpriv --reuid=plain --regid=plain --init-groups slipway info")
            .map_err(text)?;
    }
    let steps = machine.run(LIMIT)?;
    let done = |name: &str| step(&steps, name);
    let is = |scope: u8| format!("kernel.yama.ptrace_scope=1 (it is {scope})");
    all([
        same(
            ["auto-0", "auto-1", "traced-0", "traced-1", "root-0", "root-1", "root-2"]
                .map(done)
                .into_iter()
                .collect::<Result<Vec<_>, _>>()?,
        ),
        says(done("info-2")?, 0, &[&is(2), "ptrace_scope     2"]),
        says(done("traced-2")?, UNAVAILABLE, &[&is(2)]),
        says(done("traced-3")?, UNAVAILABLE, &[&is(3)]),
        says(done("root-3")?, UNAVAILABLE, &[&is(3)]),
        says(done("info-3")?, 0, &[&is(3), "ptrace_scope     3"]),
    ])
}
