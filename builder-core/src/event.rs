//! What a build tells while it runs. The library never prints.

use std::time::Duration;

use crate::dockerfile::Finding;
use crate::oci::{BlobDigest, DiffId, Sha256};

/// Receives build events from any thread. Must return quickly: workers wait for it.
pub trait Observer: Sync + Send {
    /// One event.
    fn event(&self, event: Event<'_>);
}

/// An observer that drops everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _event: Event<'_>) {}
}

/// Number of a step within one build, in plan order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub usize);

/// Which output of a process a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Direction and kind of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transfer {
    /// From a registry or layout.
    Pull,
    /// Into a registry, layout or archive.
    Push,
    /// Bytes of a new layer going through the compressor.
    Compress,
}

/// What a build moved and took, at its end. Bytes throughout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Wall time.
    pub elapsed: Duration,
    /// From registries and layouts.
    pub pulled: u64,
    /// Into registries, layouts and archives.
    pub pushed: u64,
    /// Of tar that went through a compressor.
    pub compressed: u64,
    /// By system calls of the builder and of the commands that it ran.
    pub read: u64,
    /// The same for writing.
    pub written: u64,
    /// Most anonymous memory of the builder that was seen.
    pub peak_anonymous: u64,
    /// Most space below the work dir that was seen.
    pub peak_disk: u64,
    /// Most that was seen in files elsewhere, outputs aside.
    pub peak_disk_elsewhere: u64,
}

/// One thing that happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The plan is made; `steps` is the number of steps that follow.
    Planned {
        /// Number of steps.
        steps: usize,
        /// Number of stages that are built.
        stages: usize,
    },
    /// A base image is known.
    BaseResolved {
        /// As the Dockerfile names it, normalised.
        reference: &'a str,
        /// Digest of its manifest.
        digest: BlobDigest,
    },
    /// A lint rule or the planner found something.
    Warning {
        /// The finding.
        finding: &'a Finding,
        /// First line, counted from 1.
        line: usize,
    },
    /// Something the user should know that has no place in the Dockerfile.
    Notice {
        /// One sentence.
        message: &'a str,
    },
    /// A step begins (or is found in the cache at once).
    StepStarted {
        /// Which.
        step: StepId,
        /// `[stage 2/5] RUN make`
        title: &'a str,
    },
    /// Why a step was not found in the cache.
    CacheMiss {
        /// Which.
        step: StepId,
        /// One line: what changed.
        reason: &'a str,
    },
    /// A place of `--cache-from` is asked for a step's result.
    CacheAsked {
        /// Which step.
        step: StepId,
        /// Repository or directory.
        place: &'a str,
        /// The key, which is the tag there.
        key: Sha256,
    },
    /// A place of `--cache-from` has a step's result, which is used.
    CacheFound {
        /// Which step.
        step: StepId,
        /// Repository or directory.
        place: &'a str,
    },
    /// A step's result is sent to a place of `--cache-to`.
    CachePut {
        /// Which step.
        step: StepId,
        /// Repository or directory.
        place: &'a str,
        /// The key, which is the tag there.
        key: Sha256,
    },
    /// A line of a RUN's output, without its line end; not necessarily UTF-8.
    Output {
        /// Which.
        step: StepId,
        /// Which output.
        stream: Stream,
        /// The bytes.
        line: &'a [u8],
    },
    /// A step ended well.
    StepFinished {
        /// Which.
        step: StepId,
        /// Whether its result came from the cache.
        cached: bool,
        /// Its layer, if it has one.
        layer: Option<DiffId>,
        /// Wall time from start to end.
        elapsed: Duration,
    },
    /// A step failed; the error itself is the result of the build.
    StepFailed {
        /// Which.
        step: StepId,
        /// Wall time from start to end.
        elapsed: Duration,
    },
    /// A step was ended or never begun because another failed or the build was cancelled.
    StepCancelled {
        /// Which.
        step: StepId,
    },
    /// A part of a step is done: `inputs`, `tree`, `run`, `copy`, `changes`, `layer`, `keep`.
    Phase {
        /// Which step.
        step: StepId,
        /// Which part.
        name: &'static str,
        /// Wall time that it took until now.
        elapsed: Duration,
    },
    /// The layer of a step is whole.
    Packed {
        /// Which step.
        step: StepId,
        /// Its blob.
        digest: BlobDigest,
        /// Bytes of the tar, which are read from the tree.
        tar_bytes: u64,
        /// Bytes of the blob, which are written to the store.
        blob_bytes: u64,
        /// Entries of the tar.
        entries: u64,
    },
    /// Bytes of a blob moved.
    Progress {
        /// Direction.
        transfer: Transfer,
        /// What is moved: a digest, or a step's title for a layer being compressed.
        id: &'a str,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, if known.
        total: Option<u64>,
    },
    /// A layer was whole before its upload was: so far that was told of nowhere, for want of a digest to call it by.
    Followed {
        /// Digest.
        id: &'a str,
        /// Since the upload began.
        elapsed: Duration,
    },
    /// The upload of a blob goes on where an earlier process, which was ended, had come to.
    Resumed {
        /// Digest.
        id: &'a str,
        /// Bytes of it that the registry has from then.
        bytes: u64,
    },
    /// A blob needed no transfer.
    Exists {
        /// Direction.
        transfer: Transfer,
        /// Digest.
        id: &'a str,
    },
    /// Something was tried again.
    Retry {
        /// What, for people.
        what: &'a str,
        /// Which attempt comes next, counted from 1.
        attempt: u32,
        /// How long it waits before.
        delay: Duration,
    },
    /// The build is done, and well.
    Done {
        /// What it took.
        totals: Totals,
    },
    /// An output is complete.
    Exported {
        /// Reference, path or `-`.
        target: &'a str,
        /// Digest of the manifest or index; `None` for file exporters.
        digest: Option<BlobDigest>,
    },
}
