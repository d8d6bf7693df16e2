//! What all of Kaniko's commands begin and end with: a command line by its table, help, refusals, the logger, failures.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use builder_core::hint::{self, Hint};

use super::grammar::{self, Definition, Parsed};
use super::log::{Format, Level, Logger};
use super::refusal::Refusal;
use super::{flags, say, usage};
use crate::commands;

/// A command as its help shows it.
pub struct Front {
    /// One sentence.
    pub about: &'static str,
    /// How it is called, without flags.
    pub usage: &'static str,
    /// What it has besides: name and one sentence.
    pub commands: &'static [(&'static str, &'static str)],
    /// Its flags.
    pub table: Vec<&'static Definition>,
}

impl Front {
    /// Reads the command line. `Err` is how the program ends at once: help was wanted, or the line cannot be read.
    ///
    /// # Errors
    /// See above.
    pub fn parse(&self, tokens: &[String]) -> Result<Parsed, ExitCode> {
        let parsed = grammar::parse(&self.table, tokens).map_err(|error| self.refuse(&error.into()))?;
        if parsed.help { Err(self.help()) } else { Ok(parsed) }
    }

    /// Reads the command line as `read` understands it, and makes the logger that it asks for.
    ///
    /// # Errors
    /// As for [`Front::parse`].
    pub fn read<T>(
        &self,
        tokens: &[String],
        read: impl FnOnce(&Parsed) -> Result<T, Refusal>,
    ) -> Result<(Arc<Logger>, T), ExitCode> {
        let parsed = self.parse(tokens)?;
        let logger = self.logger(&parsed)?;
        let task = read(&parsed).map_err(|refusal| self.refuse(&refusal))?;
        Ok((logger, task))
    }

    /// The logger that the flags ask for.
    ///
    /// # Errors
    /// If there is no such level or format.
    pub fn logger(&self, parsed: &Parsed) -> Result<Arc<Logger>, ExitCode> {
        let (level, format) = (parsed.text(&flags::VERBOSITY), parsed.text(&flags::LOG_FORMAT));
        let level = Level::parse(level).ok_or_else(|| self.refuse(&Refusal::LogLevel(level.to_owned())))?;
        let format = Format::parse(format).ok_or_else(|| self.refuse(&Refusal::LogFormat(format.to_owned())))?;
        Ok(Arc::new(Logger::new(format, level, parsed.is(&flags::LOG_TIMESTAMP), Box::new(std::io::stderr()))))
    }

    /// Shows the help.
    pub fn help(&self) -> ExitCode {
        commands::result(&usage::help(self.about, self.usage, self.commands, &self.table));
        ExitCode::SUCCESS
    }

    /// Says why a command line cannot be carried out, and what could.
    pub fn refuse(&self, refusal: &Refusal) -> ExitCode {
        let usage = usage::usage(self.usage, self.commands, &self.table);
        say(&format!("Error: {}\n{usage}\n", hint::chain(refusal)));
        ExitCode::from(1)
    }
}

/// Why a command did not do its work.
pub struct Failure {
    /// One line.
    pub text: String,
    /// Exit code.
    pub code: u8,
}

impl Failure {
    /// With exit code 1.
    pub fn new(text: String) -> Self {
        Self { text, code: 1 }
    }

    /// Says it: one bare line on standard error.
    pub fn end(&self) -> ExitCode {
        say(&format!("{}\n", self.text));
        ExitCode::from(self.code)
    }
}

/// An error with its causes and what can be done about it, in one line.
pub fn told<E: Error + Hint>(error: &E) -> String {
    let text = hint::chain(error);
    let text = match error.hint() {
        Some(hint) => format!("{text} ({})", in_our_words(hint)),
        None => text,
    };
    text.lines().collect::<Vec<_>>().join(" ")
}

/// What hints name of `slipway build`, and what does the same here. Those that hold others come first.
const INSTEAD: [(&str, &str); 8] = [
    ("`--work-dir` or SLIPWAY_DIR", "KANIKO_DIR"),
    ("--work-dir (SLIPWAY_DIR)", "KANIKO_DIR"),
    ("--work-dir, SLIPWAY_DIR", "KANIKO_DIR"),
    ("--work-dir", "KANIKO_DIR"),
    ("--max-disk", "SLIPWAY_MAX_DISK"),
    ("--registry-ca,", "--registry-certificate,"),
    ("`--secret id=GIT_AUTH_TOKEN,env=NAME`", "GIT_TOKEN"),
    ("--build-context", "slipway build --build-context"),
];

/// A hint for people whose command line is Kaniko's.
fn in_our_words(hint: String) -> String {
    INSTEAD.iter().fold(hint, |hint, (theirs, ours)| hint.replace(theirs, ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_name_what_is_there() {
        for (hint, expected) in [
            (
                "choose a writable directory with `--work-dir` or SLIPWAY_DIR",
                "choose a writable directory with KANIKO_DIR",
            ),
            ("give --work-dir a larger volume", "give KANIKO_DIR a larger volume"),
            ("add the CA with --registry-ca, or", "add the CA with --registry-certificate, or"),
            ("check the spelling", "check the spelling"),
        ] {
            assert_eq!(in_our_words(hint.to_owned()), expected);
        }
    }
}
