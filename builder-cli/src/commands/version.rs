//! `slipway version`

use std::process::ExitCode;

/// Prints name and version.
pub fn run() -> ExitCode {
    super::result(concat!("slipway ", env!("CARGO_PKG_VERSION"), "\n"));
    ExitCode::SUCCESS
}
