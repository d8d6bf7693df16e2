//! `executor completion SHELL`, from the tables of the flags.

use clap::{Arg, ArgAction, Command, ValueEnum as _};
use clap_complete::Shell;

use super::grammar::{Definition, Kind};

/// The script that completes the command line in `shell`; `None` if there is no such shell.
pub fn script(shell: &str, table: &[&'static Definition], commands: &[(&'static str, &'static str)]) -> Option<String> {
    let shell = Shell::from_str(shell, false).ok()?;
    let flags = table.iter().filter(|definition| !definition.hidden).map(|definition| argument(definition));
    let commands = commands.iter().map(|(name, about)| Command::new(*name).about(*about));
    let mut command = Command::new("executor").disable_help_subcommand(true).args(flags).subcommands(commands);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "executor", &mut script);
    Some(String::from_utf8_lossy(&script).into_owned())
}

fn argument(definition: &Definition) -> Arg {
    let argument = Arg::new(definition.name).long(definition.name).help(definition.help);
    let argument = match definition.short {
        Some(short) => argument.short(short),
        None => argument,
    };
    match definition.kind {
        Kind::Bool => argument.action(ArgAction::SetTrue),
        Kind::Choice(words) => argument.value_parser(words.to_vec()),
        _ => argument.action(ArgAction::Append),
    }
}

/// The shells there are.
pub fn shells() -> String {
    Shell::value_variants().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kaniko::flags;

    #[test]
    fn every_shell_completes_every_flag_and_command() {
        let table = flags::executor();
        for shell in Shell::value_variants() {
            let script = script(&shell.to_string(), &table, &[("push", "Push")]).expect("a known shell");
            for definition in table.iter().filter(|definition| !definition.hidden) {
                assert!(script.contains(definition.name), "{shell}: --{}", definition.name);
            }
            assert!(script.contains("push"), "{shell}");
        }
        assert_eq!(script("tcsh", &table, &[]), None);
    }
}
