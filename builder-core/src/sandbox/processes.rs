//! Which processes a command sees, and what keeps it from the others.

use super::Tier;

/// Which processes a command sees, and what keeps it from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Processes {
    /// Its own alone: a pid namespace, and the `/proc` of that.
    Own,
    /// Those of the container, by the numbers that they have there. Calls that name others than its own are refused by this
    /// process.
    Guarded,
    /// Those of the container too, but in a pid namespace, so that the numbers in `/proc` are not those that its processes know
    /// of each other: neither a new `/proc` can be had nor seccomp user notification.
    Renumbered,
}

impl Processes {
    /// For `slipway info`: what it is and, in this tier, what would be better.
    pub fn describe(self, tier: Option<Tier>) -> String {
        let what = match self {
            Self::Own => return "a command sees its own alone".to_owned(),
            Self::Guarded => "a command sees all of them, and reaches its own alone",
            Self::Renumbered => {
                "a command sees all of them, and numbers in /proc are not those that its own know of each other, as there is no \
                 seccomp user notification"
            }
        };
        match tier {
            Some(Tier::Namespaces) => format!(
                "{what} (the kernel refuses a new /proc, as the container's is masked; `procMount: Unmasked` in the \
                 securityContext, with `hostUsers: false`, gives each command its own)"
            ),
            _ => what.to_owned(),
        }
    }
}
