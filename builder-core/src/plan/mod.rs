//! Instructions + arguments + base configs → ordered steps.
//!
//! Two phases, because a base's `ENV`, `WORKDIR` and `ONBUILD` change what later instructions mean:
//! [`outline`] says which images are needed, [`lower`] makes the [`Plan`].
//!
//! Architecture invariant: planning does no I/O and reads neither clock nor environment; executing decides nothing.

mod types;

pub use types::*;
