//! What surrounds the process, read once.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use super::error::UsageError;

/// Environment, current directory and terminal. Nothing else in the program asks for them.
#[derive(Debug, Clone, Default)]
pub struct Ambient {
    /// All variables.
    pub environment: BTreeMap<OsString, OsString>,
    /// Current directory.
    pub cwd: PathBuf,
    /// Whether standard error is a terminal.
    pub terminal: bool,
    /// Whether standard output is a terminal.
    pub terminal_out: bool,
    /// Whether we are root outside of any namespace that slipway makes.
    pub root: bool,
}

impl Ambient {
    /// Reads them.
    ///
    /// # Errors
    /// If the current directory is gone.
    pub fn read(root: bool) -> io::Result<Self> {
        Ok(Self {
            environment: std::env::vars_os().collect(),
            cwd: std::env::current_dir()?,
            terminal: io::stderr().is_terminal(),
            terminal_out: io::stdout().is_terminal(),
            root,
        })
    }

    /// A variable that is set, if only to nothing; what is not UTF-8 counts as not set.
    pub fn given(&self, name: &str) -> Option<&str> {
        self.environment.get(OsStr::new(name)).and_then(|value| value.to_str())
    }

    /// A variable that is set and not empty.
    pub fn var(&self, name: &str) -> Option<&OsStr> {
        self.environment.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// The same as text; what is not UTF-8 counts as not set.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.var(name).and_then(OsStr::to_str)
    }

    /// The first of several variables that is set, as text.
    pub fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.text(name))
    }

    /// The user's home directory.
    pub fn home(&self) -> Option<&Path> {
        self.var("HOME").map(Path::new)
    }

    /// Whether colours may be used on the terminal (<https://no-color.org>).
    pub fn colour(&self) -> bool {
        self.terminal && self.var("NO_COLOR").is_none() && self.text("TERM") != Some("dumb")
    }

    /// Where state is kept if nothing else is said.
    pub(super) fn default_work_dir(&self) -> Result<PathBuf, UsageError> {
        if self.root {
            return Ok(PathBuf::from("/var/lib/slipway"));
        }
        match (self.var("XDG_DATA_HOME"), self.home()) {
            (Some(data), _) if Path::new(data).is_absolute() => Ok(Path::new(data).join("slipway")),
            (_, Some(home)) => Ok(home.join(".local/share/slipway")),
            _ => Err(UsageError::NoHome),
        }
    }
}
