//! What programs of trials have in common.

use std::process::ExitCode;
use std::sync::Arc;

/// What all trials share, or how the program ends without it: `Ok(Err(missing))` is a machine that lacks something.
///
/// # Errors
/// The status to end with; why is printed.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a test harness reports to the terminal")]
pub fn prepared<T>(place: Result<Result<T, String>, String>) -> Result<Arc<T>, ExitCode> {
    match place {
        Ok(Ok(place)) => Ok(Arc::new(place)),
        Ok(Err(missing)) => {
            println!("skipped: {missing}");
            Err(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("cannot prepare: {error}");
            Err(ExitCode::FAILURE)
        }
    }
}
