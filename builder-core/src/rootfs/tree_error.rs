//! Why a tree could not be made.

use std::io;
use std::path::PathBuf;

use crate::hint::Hint;
use crate::oci::DiffId;

/// Why a tree could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// The layer's bytes could not be had.
    #[error("cannot read layer {layer}")]
    Fetch {
        /// Which.
        layer: DiffId,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The layer's tar is not what the config says.
    #[error("layer {expected} unpacked to a tar with diff_id {actual}")]
    WrongDiffId {
        /// What the config says.
        expected: DiffId,
        /// What came.
        actual: DiffId,
    },
    /// The tar cannot be applied.
    #[error("layer {layer}, entry `{entry}`: {reason}")]
    BadEntry {
        /// Which.
        layer: DiffId,
        /// Name in the tar, lossy.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// The disk or kernel refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// `unpack into`, `mount`, …
        action: &'static str,
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The layer's compressed form is damaged, or ends too early.
    #[error("layer {layer} is damaged")]
    Damaged {
        /// Which.
        layer: DiffId,
        /// What the decoder says.
        source: io::Error,
    },
    /// The layer inflates to more than it may.
    #[error("layer {layer} inflates to more than {limit} bytes")]
    TooLarge {
        /// Which.
        layer: DiffId,
        /// Bytes that its tar may have.
        limit: u64,
    },
    /// To decompress the layer takes more memory than there may be.
    #[error("layer {layer} takes {needed} bytes of memory to decompress, of which {limit} may be used")]
    WindowTooLarge {
        /// Which.
        layer: DiffId,
        /// Bytes that its decoder has to remember.
        needed: u64,
        /// Bytes that there are for it.
        limit: u64,
    },
    /// A file of the layer belongs to an id that does not exist here.
    #[error("layer {layer}, entry `{entry}`: owner {uid}:{gid} does not exist in this user namespace")]
    UnmappedId {
        /// Which.
        layer: DiffId,
        /// Name in the tar, lossy.
        entry: String,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Overlay mode was demanded, but does not work.
    #[error("overlayfs does not work in `{}`: {reason}", path.display())]
    NoOverlay {
        /// Where the trees are.
        path: PathBuf,
        /// What was refused.
        reason: String,
    },
    /// The volume cannot hold what every image has.
    #[error("the volume of the work directory `{}` ({file_system}) {lacks}: no image's tree can be kept there", path.display())]
    Unfit {
        /// Where the trees would be.
        path: PathBuf,
        /// Type of the file system.
        file_system: String,
        /// Such as `has no symbolic links`.
        lacks: &'static str,
    },
    /// A step in this tree failed, and with it the tree was lost (directory mode).
    #[error("the tree was discarded when a step in it failed")]
    Discarded,
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

impl Hint for TreeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::WindowTooLarge { .. } => {
                Some("raise --max-memory, or compress the layer again: `zstd --long` up to 27 is what others read, too".to_owned())
            }
            Self::UnmappedId { uid, gid, .. } if [*uid, *gid].contains(&u32::MAX) => {
                Some("4294967295 is nobody's id: chown(2) takes it for none".to_owned())
            }
            Self::UnmappedId { uid, gid, .. } => Some(format!(
                "give the user enough subordinate ids in /etc/subuid and /etc/subgid, so that {uid}:{gid} can be mapped"
            )),
            Self::NoOverlay { .. } => Some(
                "put the work dir on a file system such as ext4 or xfs, or leave the choice of the mode to slipway"
                    .to_owned(),
            ),
            Self::Unfit { .. } => Some(
                "put --work-dir (SLIPWAY_DIR) on a file system such as ext4, xfs, btrfs, tmpfs or NFS; the context may stay where it is"
                    .to_owned(),
            ),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("the volume of the work dir is full".to_owned())
            }
            Self::WrongDiffId { .. } => Some("the image's config does not belong to its layers".to_owned()),
            _ => None,
        }
    }
}
