//! Who we are to a registry: credentials from the user's configuration, challenges, tokens.

mod challenge;
mod cloud;
mod config;
mod helper;
mod token;

pub(super) use challenge::Challenge;
pub use cloud::CloudSource;
pub use config::{Credential, CredentialOptions, Credentials, Identity};
pub use helper::keep_password;
pub(super) use token::{Scopes, Token, TokenRequest};
