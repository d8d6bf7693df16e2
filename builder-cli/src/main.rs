//! `slipway`: the command line of builder-core.
//!
//! [`flags`] says what can be asked for, [`request`] reads it together with environment, directory and terminal, `commands`
//! call the library, `ui` shows what happens, and an error is rendered once, by `diagnostics`. Standard output carries results
//! only.

mod commands;
mod diagnostics;
mod exit;
mod flags;
mod kaniko;
mod request;
mod ui;

use std::process::ExitCode;

use clap::error::ErrorKind;

use exit::Exit;
use flags::{Cli, Command};
use request::Ambient;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if let Some(program) = arguments.next().and_then(|name| kaniko::Program::called(&name)) {
        logging();
        return match Ambient::read(is_root()) {
            Ok(ambient) => kaniko::run(program, arguments.collect(), &ambient),
            Err(error) => no_directory(&error),
        };
    }
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            if let Some((flag, advice)) = flags::docker::advice(&error) {
                diagnostics::plain(&format!("there is no {flag}"), Some(advice));
                return Exit::Usage.into();
            }
            // A reader that went away is no reason to fail differently.
            _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => Exit::Usage.into(),
            };
        }
    };
    logging();
    let ambient = match Ambient::read(is_root()) {
        Ok(ambient) => ambient,
        Err(error) => return no_directory(&error),
    };
    match cli.command {
        Command::Build(flags) => commands::build::run(&flags, &ambient),
        Command::Inspect(flags) => commands::inspect::run(&flags, &ambient),
        Command::Cache(command) => commands::cache::run(&command, &ambient),
        Command::Info(flags) => commands::info::run(&flags, &ambient),
        Command::Version => commands::version::run(),
        Command::Completions(flags) => commands::completions::run(&flags),
        Command::Man(flags) => commands::man::run(&flags),
        Command::Executor(kaniko) => kaniko::run(kaniko::Program::Executor, kaniko.flags, &ambient),
        Command::Warmer(kaniko) => kaniko::run(kaniko::Program::Warmer, kaniko.flags, &ambient),
    }
}

fn no_directory(error: &std::io::Error) -> ExitCode {
    diagnostics::plain(&format!("cannot read the current directory: {error}"), None);
    Exit::Input.into()
}

/// `SLIPWAY_LOG=debug` shows what the library notes for itself; without it nothing does.
fn logging() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("SLIPWAY_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
}

/// Whether we are root before any namespace is entered: /proc/self belongs to the effective user (proc(5)).
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}
