//! `slipway completions`

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::flags::{Cli, CompletionsFlags};

/// Prints the script that completes slipway's command line in a shell.
pub fn run(flags: &CompletionsFlags) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut Cli::command(), "slipway", &mut script);
    super::result(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;
    use clap_complete::Shell;

    use super::*;

    #[test]
    fn every_shell_completes_every_flag_of_build() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "slipway", &mut script);
            let script = String::from_utf8(script).expect("a script is text");
            let build = Cli::command().find_subcommand("build").expect("there is `build`").clone();
            for flag in build.get_arguments().filter_map(|argument| argument.get_long()) {
                assert!(script.contains(flag), "{shell}: --{flag}");
            }
        }
    }
}
