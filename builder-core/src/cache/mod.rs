//! Results of steps in a registry or an OCI layout, where builds on other machines find them.
//!
//! Each result is a [`Record`]: a small image manifest under a tag that is the step's key. Its one layer is the step's layer,
//! and an annotation says the rest. Any registry keeps that, `skopeo` copies it, and a lookup is one request that downloads
//! no layer.
//!
//! ```text
//! <repository>:[<prefix>-]<key>     64 hexadecimal digits, a hash over everything that decides the step's result
//!   manifest  annotation `dev.slipway.cache.record`: the record; layers: the step's layer
//!   config    an ordinary image config with the layer's diff_id
//! <layout>/index.json               the same manifests, named by key; writers hold a lock on <layout>/.tmp-slipway-cache.lock
//! ```
//!
//! What a key covers, and when a record fits what lies below it, is the executor's business (`exec::elsewhere`).
//!
//! # Limitations
//! Nothing is removed here: tags that nobody asks for any more are left to the registry's own rules.
//!
//! Architecture invariant: plans and steps are not known here.

mod place;
mod record;
mod shelf;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use place::{CacheParseError, CachePlace, CacheRepository, CacheTarget};
pub use record::{Record, RecordError};
pub use shelf::{CacheError, CacheErrorKind, Shelf};

/// Where results of steps are looked for and put, beside the work dir.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// Where they are looked for, in order.
    pub from: Vec<CachePlace>,
    /// Where they are put.
    pub to: Vec<CacheTarget>,
    /// How old a record may be, since its step was done; `None` for any age.
    pub ttl: Option<Duration>,
    /// Whether COPY and ADD take part.
    pub copy_layers: bool,
    /// Whether RUN and WORKDIR take part.
    pub run_layers: bool,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self { from: Vec::new(), to: Vec::new(), ttl: None, copy_layers: true, run_layers: true }
    }
}

impl CacheOptions {
    /// Whether there is any place at all.
    pub fn is_empty(&self) -> bool {
        self.from.is_empty() && self.to.is_empty()
    }

    /// Whether a result of the time `created` (seconds and nanoseconds since 1970) is too old at the time `now`. One from
    /// the future is not.
    pub fn is_expired(&self, created: (i64, u32), now: SystemTime) -> bool {
        let (seconds, nanoseconds) = created;
        let created = UNIX_EPOCH + Duration::new(u64::try_from(seconds).unwrap_or(0), nanoseconds);
        self.ttl.is_some_and(|ttl| now.duration_since(created).is_ok_and(|age| age >= ttl))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_age() {
        let check = |ttl: Option<u64>, now: u64| {
            let options = CacheOptions { ttl: ttl.map(Duration::from_secs), ..CacheOptions::default() };
            options.is_expired((1_700_000_000, 5), UNIX_EPOCH + Duration::from_secs(now))
        };
        assert!(!check(None, u64::from(u32::MAX)));
        assert!(!check(Some(100), 1_700_000_100), "five nanoseconds are left");
        assert!(check(Some(100), 1_700_000_101));
        assert!(check(Some(0), 1_700_000_001));
        assert!(!check(Some(100), 1));
    }
}
