//! Private keys for `--ssh`, and an agent that signs with them without giving them away.
//!
//! A RUN gets a socket, never a key. What comes over it is the protocol of ssh-agent(1) as OpenSSH's `PROTOCOL.agent` and
//! draft-miller-ssh-agent describe it; like BuildKit's, this agent lists its keys and signs, and refuses all other requests.
//!
//! Keys are read from OpenSSH's own format (`ssh-keygen`), and from PEM as OpenSSL writes it: PKCS #1, PKCS #8, SEC 1.
//!
//! # Limitations
//! Ed25519, RSA of 2048 to 4096 bits, and ECDSA over the curves P-256 and P-384. Keys with a passphrase, in hardware, or of other kinds
//! are errors that say so; an agent can hold them. RSA signs with SHA-2 alone. What is read is wiped after use; the signing
//! library's own copy of a key lasts until it is dropped, and is not wiped.

mod agent;
mod key;

use crate::hint::Hint;

pub use agent::serve;
pub use key::SshKey;

/// Largest file that is taken for a key, in bytes: BuildKit's limit.
pub const LARGEST_KEY_BYTES: u64 = 100 * 1024;

/// Why a file is no key for an agent. None of them tells anything of what is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Neither of the known formats.
    #[error("this is no private key in OpenSSH's format or PEM")]
    NoKey,
    /// It begins like a key and does not go on like one.
    #[error("the private key is damaged")]
    Malformed,
    /// It needs a passphrase.
    #[error("the private key is encrypted with a passphrase")]
    Encrypted,
    /// A kind or size of key that cannot sign here.
    #[error("private keys of the kind {kind} are not supported")]
    Unsupported {
        /// Such as `ssh-dss`.
        kind: String,
    },
}

impl Hint for KeyError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoKey => {
                Some("name the private key, not the one that ends in `.pub`, or an agent's socket".to_owned())
            }
            Self::Malformed => None,
            Self::Encrypted | Self::Unsupported { .. } => {
                Some("add it to an agent (`ssh-add`) and give that with `--ssh default`".to_owned())
            }
        }
    }
}
