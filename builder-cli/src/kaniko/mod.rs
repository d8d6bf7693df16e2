//! Kaniko's command line: `executor` and `warmer`, by name of the program or as subcommands of `slipway`.
//!
//! [`flags`] defines every flag once; [`grammar`] reads a command line by it as pflag does; [`settings`] turns that into the
//! [`builder_core::exec::BuildRequest`] that `slipway build` would make too, and into the [`files`] that wrappers read. [`log`]
//! writes Kaniko's three log formats, [`lines`] puts events into Kaniko's words. `docs/kaniko.md` is generated from the
//! tables, by [`reference`](mod@self).
//!
//! What a command ends with is decided here: a command line that cannot be carried out is `Error: …` and the usage on
//! standard error, a failure is one bare line there, both with exit code 1; a failing RUN passes on its own code.

mod completion;
mod executor;
mod feature;
mod files;
mod flags;
mod front;
mod grammar;
mod lines;
mod log;
mod login;
mod names;
mod push;
#[cfg(test)]
mod reference;
mod refusal;
mod registries;
mod settings;
mod usage;
mod values;
mod variables;
mod warmer;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use crate::request::Ambient;

/// Which of Kaniko's programs is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Builds and pushes.
    Executor,
    /// Fetches base images into a directory.
    Warmer,
}

impl Program {
    /// The program that goes by the name under which this one was called, such as `/kaniko/executor`.
    pub fn called(name: &OsStr) -> Option<Self> {
        match Path::new(name).file_name()?.to_str()? {
            "executor" => Some(Self::Executor),
            "warmer" => Some(Self::Warmer),
            _ => None,
        }
    }
}

/// Runs it. Must be called while the process has one thread.
pub fn run(program: Program, arguments: Vec<OsString>, ambient: &Ambient) -> ExitCode {
    // What is not UTF-8 cannot be meant: flags, names and references are text. It is refused where it matters.
    let tokens: Vec<String> = arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
    match program {
        Program::Executor => executor::run(&tokens, ambient),
        Program::Warmer => warmer::run(&tokens, ambient),
    }
}

/// Whether `executor` has a long flag of this name, aliases included.
pub fn executor_takes(name: &str) -> bool {
    let is = |flag: &&grammar::Definition| flag.name == name || flag.aliases.iter().any(|alias| alias.name == name);
    flags::executor().iter().any(is)
}

/// One bare line on standard error, and exit code 1.
fn complain(text: &str) -> ExitCode {
    say(&format!("{text}\n"));
    ExitCode::from(1)
}

/// Text on standard error.
fn say(text: &str) {
    // There is nowhere to tell that standard error is gone.
    _ = std::io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_their_names() {
        for (name, expected) in [
            ("/kaniko/executor", Some(Program::Executor)),
            ("executor", Some(Program::Executor)),
            ("./warmer", Some(Program::Warmer)),
            ("slipway", None),
            ("executor2", None),
            ("", None),
        ] {
            assert_eq!(Program::called(OsStr::new(name)), expected, "{name}");
        }
    }
}
