//! Finding the binary under test.

use std::path::{Path, PathBuf};

/// The root of the project: `SLIPWAY_PROJECT` if set (a copy that another user can read), else where this was compiled.
pub fn project() -> PathBuf {
    std::env::var_os("SLIPWAY_PROJECT").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), PathBuf::from)
}

/// The binary under test: `SLIPWAY_BIN`, else `slipway` beside the running test in `target/<profile>`.
///
/// # Errors
/// Where it was looked for, if it is not there.
pub fn binary() -> Result<PathBuf, String> {
    let candidate = match std::env::var_os("SLIPWAY_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let test = std::env::current_exe().map_err(|error| format!("cannot find this test: {error}"))?;
            // target/<profile>/deps/<test>-<hash>
            let profile = test.ancestors().nth(2).ok_or("this test does not lie in target/<profile>/deps")?;
            profile.join("slipway")
        }
    };
    if candidate.is_file() {
        return std::path::absolute(&candidate).map_err(|error| error.to_string());
    }
    Err(format!("{} is not there: run `cargo build -p builder-cli` first, or set SLIPWAY_BIN", candidate.display()))
}
