//! slipway on kernels and processors that are not this machine's, in virtual machines: `make test-machines`.
//!
//! One trial is one boot. Without what `scripts/machines` fetches and compiles all of them are skipped.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};
use tests::machine::Kernel;

mod builds;
mod inside;
mod missing;
mod volumes;
mod yama;

/// What every test is.
type Test = fn(Kernel) -> Result<(), String>;

const fn kernel(version: &'static str, architecture: &'static str) -> Kernel {
    Kernel { version, architecture }
}

/// Debian 12's.
const BOOKWORM: Kernel = kernel("6.1", "x86_64");
/// Debian 11's, which is older than all that the tier `namespaces` needs.
const BULLSEYE: Kernel = kernel("5.10", "x86_64");
/// Debian 13's.
const TRIXIE: Kernel = kernel("6.12", "x86_64");
/// Debian 12's for another processor.
const ARM: Kernel = kernel("6.1", "aarch64");

/// Tests, and the kernels that they are for.
const TESTS: &[(&str, &[Kernel], Test)] = &[
    ("yama", &[BOOKWORM], yama::ptrace_scope),
    ("volumes", &[BOOKWORM], volumes::file_systems),
    ("9p", &[BOOKWORM], volumes::shared_by_qemu),
    ("missing", &[BOOKWORM], missing::one_after_the_other),
    ("builds", &[BOOKWORM, TRIXIE, ARM], builds::same_everywhere),
    ("escapes", &[BOOKWORM, TRIXIE, ARM], builds::escapes),
    ("old", &[BULLSEYE], builds::too_old),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A machine has two processors of its own, which may be emulated.
    arguments.test_threads.get_or_insert(1);
    let mut trials = Vec::new();
    for (name, kernels, test) in TESTS {
        for kernel in *kernels {
            trials.push(trial(*kernel, name, *test));
        }
    }
    for kernel in [BOOKWORM, TRIXIE, ARM] {
        for part in builds::SANDBOXES {
            trials.push(trial(kernel, &format!("sandbox-{part}"), move |kernel| builds::sandbox(kernel, part)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(kernel: Kernel, name: &str, test: impl FnOnce(Kernel) -> Result<(), String> + Send + 'static) -> Trial {
    Trial::ignorable_test(format!("{}::{name}", kernel.name()), move || match kernel.possible() {
        Ok(()) => Ok(test(kernel).map(|()| Completion::Completed)?),
        Err(reason) => Ok(Completion::ignored_with(format!("skipped: {reason}"))),
    })
}
