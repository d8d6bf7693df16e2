//! Exit codes; `docs/exit-codes.md` is the table for users.

use std::process::ExitCode;

/// What a process ends with. A failing RUN's own code is not here: it is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command line cannot be understood, or asks for what is not supported.
    Usage,
    /// The Dockerfile, the context or a file that the command line names is wrong.
    Input,
    /// A registry, or what came from it.
    Registry,
    /// The disk, the work directory or a disk budget.
    Disk,
    /// Commands cannot be run here.
    Sandbox,
    /// A RUN failed with this code, or 128 and the number of the signal that ended it.
    Command(i32),
    /// This signal ended the build.
    Signal(i32),
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Input => 3,
            Self::Registry => 4,
            Self::Disk => 5,
            Self::Sandbox => 6,
            // A command that "failed with 0" cannot be; and more than eight bits no process can end with.
            Self::Command(code) => u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(1),
            Self::Signal(number) => u8::try_from(number).map_or(u8::MAX, |number| number.saturating_add(128)),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_table() {
        let table = include_str!("../../docs/exit-codes.md");
        for exit in
            [Exit::Usage, Exit::Input, Exit::Registry, Exit::Disk, Exit::Sandbox, Exit::Signal(2), Exit::Signal(15)]
        {
            assert!(table.contains(&format!("| {} |", exit.code())), "{exit:?} is not in docs/exit-codes.md");
        }
        assert_eq!([Exit::Command(0).code(), Exit::Command(7).code(), Exit::Command(300).code()], [1, 7, 1]);
    }
}
