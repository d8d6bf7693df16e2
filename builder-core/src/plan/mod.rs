//! Instructions + arguments + base configs → ordered steps.
//!
//! Two phases, because a base's `ENV`, `WORKDIR` and `ONBUILD` change what later instructions mean:
//! [`outline`] says which images are needed, [`lower`] makes the [`Plan`].
//!
//! ```text
//! epoch    what SOURCE_DATE_EPOCH means
//! outline  global ARGs, stages, target        graph  what a name means, who needs whom
//! lower    ONBUILD, stage by stage            stage, metadata, run, copy  what one instruction does
//! mount, port, chmod, signal  values with a grammar of their own
//! key      cache keys and why they differ
//! parameters  targets, and what one takes: --call
//! render   a plan for people and as JSON
//! ```
//!
//! # Limitations
//! There is one frontend, this one, without the labs features (`RUN --device`); `# syntax=` of another one is refused.
//! Windows paths are not understood.
//!
//! Architecture invariant: planning does no I/O and reads neither clock nor environment; executing decides nothing.

mod chmod;
mod copy;
mod epoch;
mod error;
mod graph;
pub mod key;
mod lower;
mod metadata;
mod mount;
mod outline;
mod parameters;
mod port;
mod render;
mod run;
mod signal;
mod stage;
#[cfg(test)]
mod tests;
mod text;
mod types;
mod uses;

pub use chmod::ChmodError;
pub use epoch::{EpochSource, epoch_source};
pub use error::{PlanError, PlanErrorKind};
pub use lower::{Checked, check, lower};
pub use mount::{MountError, bytes as parse_bytes, mount_words};
pub use outline::{Origin, Outline, StageBase, StageOutline, outline};
pub use parameters::{Argument, Asked, BuildTarget, Parameters, targets};
pub use port::PortError;
pub use types::*;
