//! `slipway man`

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::diagnostics;
use crate::exit::Exit;
use crate::flags::{Cli, ManFlags};

/// Writes a page for slipway and one for each of its commands.
pub fn run(flags: &ManFlags) -> ExitCode {
    match write(&flags.directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            diagnostics::plain(&format!("cannot write manual pages to `{}`: {error}", flags.directory.display()), None);
            Exit::Input.into()
        }
    }
}

fn write(directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command(), directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_flags() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let pages = directory.path().join("share/man1");
        write(&pages).expect("pages are written");
        let mut command = Cli::command();
        command.build();
        for inner in command.get_subcommands() {
            let path = pages.join(format!("slipway-{}.1", inner.get_name()));
            let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            for flag in inner.get_arguments().filter_map(|argument| argument.get_long()) {
                let written = flag.replace('-', "\\-");
                assert!(page.contains(&written), "{}: --{flag}", path.display());
            }
        }
        assert!(pages.join("slipway.1").is_file());
    }
}
