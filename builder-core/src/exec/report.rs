//! What a build did, in numbers: collected from its own events, so that no module counts for itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;

use super::shared::lock;
use crate::event::{Event, Observer, Transfer};

/// What a build did. Serialised as `--report` writes it; fields are added, never changed, within one `version`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Version of this form.
    pub version: u32,
    /// Digest of the manifest, or of the index if several platforms were built.
    pub digest: String,
    /// Digest of each platform's manifest, by platform.
    pub manifests: BTreeMap<String, String>,
    /// The names under which the image was pushed.
    pub pushed: Vec<String>,
    /// The steps, in plan order.
    pub steps: Vec<StepReport>,
    /// Bytes read from registries and layouts.
    pub bytes_pulled: u64,
    /// Bytes written to registries, layouts and archives.
    pub bytes_pushed: u64,
    /// Bytes of tar that went through a compressor.
    pub bytes_compressed: u64,
    /// Blobs that a registry had already.
    pub blobs_already_there: u64,
    /// Requests that were tried again.
    pub retries: u64,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Largest resident set of the process so far, in bytes (proc_pid_status(5), `VmHWM`); file pages that it maps count.
    pub peak_memory_bytes: u64,
}

/// One step.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StepReport {
    /// `[build 2/5] RUN make`
    pub title: String,
    /// Whether the result came from the cache.
    pub cached: bool,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub miss: Option<String>,
    /// diff_id of its layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// Wall time in seconds.
    pub seconds: f64,
    /// `done`, `failed`, `cancelled` or `running`.
    pub state: &'static str,
}

/// Version of [`Report`]'s form.
const REPORT_VERSION: u32 = 1;

/// Largest resident set of this process so far in bytes (proc_pid_status(5), `VmHWM`); 0 where /proc cannot be read.
pub(super) fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Passes events on and counts them.
pub(super) struct Recorder {
    inner: Arc<dyn Observer>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    steps: BTreeMap<usize, StepReport>,
    transfers: BTreeMap<(Transfer, String), u64>,
    already_there: u64,
    retries: u64,
    pushed: Vec<String>,
}

impl Recorder {
    pub(super) fn new(inner: Arc<dyn Observer>) -> Self {
        Self { inner, seen: Mutex::default() }
    }

    /// The report so far; digests and time are filled in by the caller.
    pub(super) fn report(&self) -> Report {
        let seen = lock(&self.seen);
        let bytes = |wanted: Transfer| {
            seen.transfers.iter().filter(|((transfer, _), _)| *transfer == wanted).map(|(_, bytes)| bytes).sum()
        };
        Report {
            version: REPORT_VERSION,
            steps: seen.steps.values().cloned().collect(),
            bytes_pulled: bytes(Transfer::Pull),
            bytes_pushed: bytes(Transfer::Push),
            bytes_compressed: bytes(Transfer::Compress),
            blobs_already_there: seen.already_there,
            retries: seen.retries,
            pushed: seen.pushed.clone(),
            ..Report::default()
        }
    }
}

impl Seen {
    fn note(&mut self, event: &Event<'_>) {
        let seconds = |elapsed: &Duration| elapsed.as_secs_f64();
        match event {
            Event::StepStarted { step, title } => {
                let report = self.steps.entry(step.0).or_default();
                report.title = (*title).to_owned();
                report.state = "running";
            }
            Event::CacheMiss { step, reason } => {
                self.steps.entry(step.0).or_default().miss = Some((*reason).to_owned());
            }
            Event::StepFinished { step, cached, layer, elapsed } => {
                let report = self.steps.entry(step.0).or_default();
                report.cached = *cached;
                report.layer = layer.map(|layer| layer.to_string());
                report.seconds = seconds(elapsed);
                report.state = "done";
            }
            Event::StepFailed { step, elapsed } => {
                let report = self.steps.entry(step.0).or_default();
                report.seconds = seconds(elapsed);
                report.state = "failed";
            }
            Event::StepCancelled { step } => self.steps.entry(step.0).or_default().state = "cancelled",
            Event::Progress { transfer, id, done, .. } => {
                let bytes = self.transfers.entry((*transfer, (*id).to_owned())).or_default();
                *bytes = (*bytes).max(*done);
            }
            Event::Exists { transfer: Transfer::Push, .. } => self.already_there += 1,
            Event::Retry { .. } => self.retries += 1,
            Event::Exported { target, .. } => self.pushed.push((*target).to_owned()),
            _ => {}
        }
    }
}

impl Observer for Recorder {
    fn event(&self, event: Event<'_>) {
        lock(&self.seen).note(&event);
        self.inner.event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Silent, StepId};

    #[test]
    fn a_report_is_the_sum_of_its_events() {
        let recorder = Recorder::new(Arc::new(Silent));
        let step = StepId(0);
        recorder.event(Event::StepStarted { step, title: "[1/1] RUN true" });
        recorder.event(Event::CacheMiss { step, reason: "instruction changed" });
        for done in [10, 30] {
            recorder.event(Event::Progress { transfer: Transfer::Pull, id: "a", done, total: Some(30) });
        }
        recorder.event(Event::Progress { transfer: Transfer::Pull, id: "b", done: 5, total: None });
        recorder.event(Event::StepFinished { step, cached: false, layer: None, elapsed: Duration::from_secs(2) });
        let report = recorder.report();
        assert_eq!(report.bytes_pulled, 35);
        assert_eq!(report.steps.len(), 1);
        assert_eq!(report.steps[0].miss.as_deref(), Some("instruction changed"));
        assert_eq!((report.steps[0].seconds, report.steps[0].state), (2.0, "done"));
    }
}
