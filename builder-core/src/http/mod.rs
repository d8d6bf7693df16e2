//! One HTTP client: TLS roots, proxies, retry, redaction, limits.
//!
//! The rest of the program is synchronous, so is this client: a call blocks its thread. Underneath, one thread drives all
//! sockets (reqwest's asynchronous client on a single-threaded runtime), because only so can a wait for a silent server be
//! ended by a [`crate::cancel::Cancel`] or by a stall limit at any moment, in both directions. The thread starts with the first request:
//! a build that needs no network has none.
//!
//! HTTP/1.1 only: every transfer has its own connection, so one that stalls holds up no other and no window has to be
//! tuned; every registry speaks it.
//!
//! There is no limit on the whole time of a transfer, only on silence. Redirects are followed here, and headers marked
//! secret stay with the origin (scheme, host, port) they were made for.
//!
//! Architecture invariant: the only user of `reqwest`; neither OCI nor Dockerfiles are known here.
//!
//! # Limitations
//! Calls block, so they must not be made from a task of an asynchronous runtime (tokio panics then); a program that has one
//! calls from `spawn_blocking`. No cookies, no content decoding, no SOCKS proxies. Without a system root store and without CA files every `https` request
//! fails with [`HttpError::Tls`]; plain HTTP works.

mod body;
mod client;
mod error;
mod options;
mod request;
mod retry;
mod runtime;
mod secret;
mod tls;

pub use body::BodyReader;
pub use client::{Client, is_loopback};
pub use error::HttpError;
pub use options::{ClientOptions, HostOptions, ProxyOptions, RetryNotice, RetryOptions, Timeouts};
pub use request::{Method, Request, Response};
pub(crate) use request::{basic, excerpt};
pub(crate) use retry::sleep;
pub use secret::{Secret, redacted};

pub use url::Url;
