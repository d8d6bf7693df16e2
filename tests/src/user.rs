//! Running a test as an unprivileged user when root calls.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use crate::slipway;

/// A user with subordinate ids that exists for tests; `scripts/setup` makes it. `SLIPWAY_TEST_USER` names another.
const NAME: &str = "slipway-subids";

/// A user without subordinate ids that exists for tests; `scripts/setup` makes it.
const SINGLE_NAME: &str = "slipway-plain";

/// Where an unprivileged user's programs are; root's own `PATH` may lead below `/root`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The test user's name, if it exists here.
pub fn test_user() -> Option<String> {
    existing(std::env::var("SLIPWAY_TEST_USER").unwrap_or_else(|_| NAME.to_owned()))
}

/// Name of the test user who has one id alone, if it exists here.
pub fn single_id_user() -> Option<String> {
    existing(SINGLE_NAME.to_owned())
}

fn existing(name: String) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().any(|line| line.split(':').next() == Some(&name)).then_some(name)
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that runs `program` as `user`, with that user's groups and a clean `PATH` and `HOME`.
pub fn command(user: &str, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", user, "--regid", user, "--init-groups", "--"])
        .arg(program)
        .env("PATH", PATH)
        .env("HOME", format!("/home/{user}"))
        .env_remove("XDG_RUNTIME_DIR");
    command
}

/// Runs this very test once more as `user`, with the same arguments, in a copy of what it needs: the user may not be able
/// to read where the project lies.
///
/// # Errors
/// If the copy cannot be made or the test not be started.
pub fn run_again_as(user: &str) -> io::Result<ExitStatus> {
    let stage = tempfile::Builder::new().prefix("slipway-tests-").tempdir()?;
    fs::set_permissions(stage.path(), Permissions::from_mode(0o755))?;
    let test = stage.path().join("test");
    fs::copy(std::env::current_exe()?, &test)?;
    let binary = stage.path().join("slipway");
    fs::copy(slipway::binary().map_err(io::Error::other)?, &binary)?;
    let copied = Command::new("cp")
        .args(["-r", "--no-preserve=ownership"])
        .arg(slipway::project().join("fixtures"))
        .arg(stage.path())
        .status()?;
    if !copied.success() {
        return Err(io::Error::other(format!("copying the fixtures: {copied}")));
    }
    Command::new("chmod").args(["-R", "a+rX"]).arg(stage.path()).status()?;
    command(user, &test)
        .args(std::env::args_os().skip(1))
        .env("SLIPWAY_PROJECT", stage.path())
        .env("SLIPWAY_BIN", binary)
        .current_dir(stage.path())
        .status()
}
