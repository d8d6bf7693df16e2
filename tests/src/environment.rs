//! Who calls slipway where: the rows of the table in `docs/sandbox.md`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::pods::{Kind, Pod, SLIPWAY};
use crate::{process, slipway, user};

/// How long what needs no time may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A row of the table in `docs/sandbox.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// Root of this machine.
    E1,
    /// A user with subordinate ids.
    E2,
    /// A user without.
    E3,
    /// A container like a pod: E4 to E6.
    Pod(Kind),
}

/// slipway in an environment, which lasts as long as this.
#[derive(Debug)]
pub struct Slipway {
    /// To be completed with arguments.
    pub command: Command,
    _pod: Option<Pod>,
}

impl Environment {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::E1, Self::E2, Self::E3, Self::Pod(Kind::E4), Self::Pod(Kind::E5), Self::Pod(Kind::E6)];

    /// `E1`
    pub fn name(self) -> &'static str {
        match self {
            Self::E1 => "E1",
            Self::E2 => "E2",
            Self::E3 => "E3",
            Self::Pod(kind) => kind.name(),
        }
    }

    /// Whether it can be had on this machine.
    ///
    /// # Errors
    /// Why not.
    pub fn possible(self) -> Result<(), String> {
        let missing = |name: &str| format!("the user {name} is missing; scripts/setup makes it");
        match self {
            _ if !user::is_root() => Err("only root can be in every environment".to_owned()),
            Self::E1 => Ok(()),
            Self::E2 => user::test_user().map(drop).ok_or_else(|| missing("slipway-subids")),
            Self::E3 => user::single_id_user().map(drop).ok_or_else(|| missing("slipway-plain")),
            Self::Pod(_) => Pod::possible(),
        }
    }

    /// slipway there. `own` is a directory for it alone, which is given to its user, in `volume`, which is all that it may
    /// write to.
    ///
    /// # Errors
    /// What is missing, or podman says.
    pub fn slipway(self, volume: &Path, own: &Path) -> Result<Slipway, String> {
        let name = match self {
            Self::E1 => return Ok(Slipway { command: Command::new(slipway::binary()?), _pod: None }),
            Self::Pod(kind) => {
                let pod = Pod::start(kind, volume, false)?;
                pod.give(own)?;
                return Ok(Slipway { command: pod.command(SLIPWAY, &[]), _pod: Some(pod) });
            }
            Self::E2 => user::test_user(),
            Self::E3 => user::single_id_user(),
        };
        let name = name.ok_or("the user is missing")?;
        let copy = own.join("slipway");
        // By another process: one that is forked here meanwhile must not have it open for writing when it is executed.
        process::output(Command::new("cp").arg(slipway::binary()?).arg(&copy), LIMIT)?;
        process::output(Command::new("chown").args(["-hR", &format!("{name}:")]).arg(own), LIMIT)?;
        Ok(Slipway { command: user::command(&name, &copy), _pod: None })
    }
}
