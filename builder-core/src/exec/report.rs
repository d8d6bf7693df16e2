//! What a build did, in numbers: collected from its own events, so that no module counts for itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::BuildError;
use super::shared::lock;
use super::trace::{self, Details, Sample, Span};
use crate::event::{Event, Observer, StepId, Totals, Transfer};

/// What a build did. Serialised as `--report` writes it; fields are added, never changed, within one `version`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Version of this form.
    pub version: u32,
    /// Digest of the manifest, or of the index if several platforms were built.
    pub digest: String,
    /// Digest of each platform's manifest, by platform.
    pub manifests: BTreeMap<String, String>,
    /// Why there is no image; absent if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
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
    /// Bytes that the builder and the commands that it ran read by system calls (proc_pid_io(5), `rchar`): files, pipes and
    /// sockets, cached or not.
    pub bytes_read: u64,
    /// The same for writing (`wchar`).
    pub bytes_written: u64,
    /// Files of contexts that were read to know their content.
    pub context_files_read: u64,
    /// Their bytes.
    pub context_bytes_read: u64,
    /// Files of contexts whose content was known from an earlier build by size, times and inode, and which were not read.
    pub context_files_known: u64,
    /// Blobs that a registry had already.
    pub blobs_already_there: u64,
    /// Requests that were tried again.
    pub retries: u64,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Largest resident set of the process so far, in bytes (proc_pid_status(5), `VmHWM`); file pages that it maps count.
    pub peak_memory_bytes: u64,
    /// Most anonymous memory of the process that was seen, in bytes (proc_pid_status(5), `RssAnon`).
    pub peak_anonymous_bytes: u64,
    /// Most space below the work dir that was seen, in bytes; what earlier builds left there counts.
    pub peak_disk_bytes: u64,
    /// Most bytes that were seen in regular files open for writing that are neither below the work dir nor an output.
    pub peak_disk_elsewhere_bytes: u64,
    /// When everything happened; [`Report::trace`] makes it readable for viewers.
    #[serde(skip)]
    pub(super) timeline: Timeline,
}

/// Everything that a trace shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Timeline {
    // A report is copied where a build ends; what happened in it is one and the same.
    spans: Arc<[Span]>,
    pub(super) samples: Arc<[Sample]>,
}

impl Report {
    /// The numbers of the last line.
    pub(super) fn totals(&self) -> Totals {
        Totals {
            elapsed: Duration::from_secs_f64(self.seconds),
            pulled: self.bytes_pulled,
            pushed: self.bytes_pushed,
            compressed: self.bytes_compressed,
            read: self.bytes_read,
            written: self.bytes_written,
            peak_anonymous: self.peak_anonymous_bytes,
            peak_disk: self.peak_disk_bytes,
            peak_disk_elsewhere: self.peak_disk_elsewhere_bytes,
        }
    }

    /// The build as a value in Chrome's Trace Event Format, which `chrome://tracing`, Perfetto and speedscope open.
    pub fn trace(&self) -> serde_json::Value {
        trace::chrome(&self.timeline.spans, &self.timeline.samples)
    }
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
    /// Digest of its blob, if it was made now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blob: Option<String>,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Wall time of its parts in seconds: `inputs`, `tree`, `run`, `copy`, `changes`, `layer`, `keep`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub phases: BTreeMap<&'static str, f64>,
    /// Entries of its layer, if it was made now.
    pub entries: u64,
    /// Bytes of tar that were read from the tree and compressed.
    pub bytes_compressed: u64,
    /// Bytes of blob that were written to the store.
    pub bytes_written: u64,
    /// Bytes of its layer that were pushed.
    pub bytes_pushed: u64,
    /// `done`, `failed`, `cancelled` or `running`.
    pub state: &'static str,
}

/// Version of [`Report`]'s form.
const REPORT_VERSION: u32 = 1;

/// Largest resident set of this process so far in bytes (proc_pid_status(5), `VmHWM`); 0 where /proc cannot be read.
pub(super) fn peak_memory() -> u64 {
    status_bytes("VmHWM:")
}

/// A size in `/proc/self/status`, in bytes; 0 where it cannot be read.
pub(super) fn status_bytes(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Passes events on and counts them.
pub(super) struct Recorder {
    inner: Arc<dyn Observer>,
    begun: Instant,
    seen: Mutex<Seen>,
    /// The report of a build that went as far as measuring.
    kept: Mutex<Option<Report>>,
}

#[derive(Default)]
struct Seen {
    steps: BTreeMap<usize, StepReport>,
    begun: BTreeMap<usize, Begun>,
    transfers: BTreeMap<(Transfer, String), Moved>,
    spans: Vec<Span>,
    already_there: u64,
    retries: u64,
    pushed: Vec<String>,
}

/// A step that began.
struct Begun {
    at: Duration,
    title: Arc<str>,
}

/// One transfer.
struct Moved {
    bytes: u64,
    /// What an earlier process had moved, in bytes.
    from: u64,
    first: Duration,
    last: Duration,
}

impl Recorder {
    pub(super) fn new(inner: Arc<dyn Observer>) -> Self {
        Self { inner, begun: Instant::now(), seen: Mutex::default(), kept: Mutex::default() }
    }

    /// Titles of steps that began and did not end yet.
    pub(super) fn running(&self) -> Vec<String> {
        let seen = lock(&self.seen);
        seen.steps.values().filter(|step| step.state == RUNNING).map(|step| step.title.clone()).collect()
    }

    /// Keeps a report in case that the build fails.
    pub(super) fn keep(&self, report: &Report) {
        *lock(&self.kept) = Some(report.clone());
    }

    /// The report of a build that failed.
    pub(super) fn failed(&self, error: &BuildError) -> Report {
        let report = lock(&self.kept).take().unwrap_or_else(|| Report {
            seconds: self.begun.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_memory(),
            ..self.report()
        });
        let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
        let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
        // Some say what their cause says.
        texts.dedup_by(|later, earlier| earlier.ends_with(later.as_str()));
        Report { error: Some(texts.join(": ")), ..report }
    }

    /// The report so far; digests and what was measured are filled in by the caller.
    pub(super) fn report(&self) -> Report {
        let seen = lock(&self.seen);
        let bytes = |wanted: Transfer| {
            seen.transfers.iter().filter(|((transfer, _), _)| *transfer == wanted).map(|(_, moved)| moved.bytes).sum()
        };
        let mut steps: Vec<StepReport> = seen.steps.values().cloned().collect();
        for step in &mut steps {
            let blob = step.blob.clone().unwrap_or_default();
            step.bytes_pushed = seen.transfers.get(&(Transfer::Push, blob)).map_or(0, |moved| moved.bytes);
        }
        let mut spans = seen.spans.clone();
        for ((transfer, id), moved) in &seen.transfers {
            let kind = match transfer {
                Transfer::Pull => "pull",
                Transfer::Push => "push",
                // A phase of its step.
                Transfer::Compress => continue,
            };
            let details = Details::Moved { bytes: moved.bytes };
            spans.push(Span { name: id.as_str().into(), kind, begun: moved.first, ended: moved.last, details });
        }
        Report {
            version: REPORT_VERSION,
            steps,
            bytes_pulled: bytes(Transfer::Pull),
            bytes_pushed: bytes(Transfer::Push),
            bytes_compressed: bytes(Transfer::Compress),
            blobs_already_there: seen.already_there,
            retries: seen.retries,
            pushed: seen.pushed.clone(),
            timeline: Timeline { spans: spans.into(), samples: Arc::default() },
            ..Report::default()
        }
    }
}

/// State of a step that began and did not end yet.
const RUNNING: &str = "running";

impl Seen {
    fn note(&mut self, event: &Event<'_>, now: Duration) {
        match event {
            Event::StepStarted { step, title } => {
                let report = self.steps.entry(step.0).or_default();
                report.title = (*title).to_owned();
                report.state = RUNNING;
                self.begun.insert(step.0, Begun { at: now, title: (*title).into() });
            }
            Event::CacheMiss { step, reason } => {
                self.steps.entry(step.0).or_default().miss = Some((*reason).to_owned());
            }
            Event::StepFinished { step, cached, layer, elapsed } => {
                let report = self.steps.entry(step.0).or_default();
                report.cached = *cached;
                report.layer = layer.map(|layer| layer.to_string());
                self.ended(*step, "done", Some(*elapsed), now);
            }
            Event::StepFailed { step, elapsed } => self.ended(*step, "failed", Some(*elapsed), now),
            Event::StepCancelled { step } => self.ended(*step, "cancelled", None, now),
            Event::Phase { step, name, elapsed } => {
                let title = self.begun.get(&step.0).map(|begun| Arc::clone(&begun.title)).unwrap_or_default();
                let report = self.steps.entry(step.0).or_default();
                *report.phases.entry(name).or_default() += elapsed.as_secs_f64();
                self.spans.push(Span {
                    name: (*name).into(),
                    kind: "phase",
                    begun: now.saturating_sub(*elapsed),
                    ended: now,
                    details: Details::Phase { step: title },
                });
            }
            Event::Packed { step, digest, tar_bytes, blob_bytes, entries } => {
                let report = self.steps.entry(step.0).or_default();
                report.blob = Some(digest.to_string());
                report.bytes_compressed = *tar_bytes;
                report.bytes_written = *blob_bytes;
                report.entries = *entries;
            }
            Event::Progress { transfer, id, done, .. } => {
                let new = || Moved { bytes: 0, from: 0, first: now, last: now };
                let moved = self.transfers.entry((*transfer, (*id).to_owned())).or_insert_with(new);
                moved.bytes = moved.bytes.max(done.saturating_sub(moved.from));
                moved.last = now;
            }
            Event::Followed { id, elapsed } => {
                let moved = Moved { bytes: 0, from: 0, first: now.saturating_sub(*elapsed), last: now };
                self.transfers.insert((Transfer::Push, (*id).to_owned()), moved);
            }
            Event::Resumed { id, bytes } => {
                let moved = Moved { bytes: 0, from: *bytes, first: now, last: now };
                self.transfers.insert((Transfer::Push, (*id).to_owned()), moved);
            }
            Event::Exists { transfer: Transfer::Push, .. } => self.already_there += 1,
            Event::Retry { .. } => self.retries += 1,
            Event::Exported { target, .. } => self.pushed.push((*target).to_owned()),
            _ => {}
        }
    }

    fn ended(&mut self, step: StepId, state: &'static str, elapsed: Option<Duration>, now: Duration) {
        let report = self.steps.entry(step.0).or_default();
        report.state = state;
        report.seconds = elapsed.map_or(report.seconds, |elapsed| elapsed.as_secs_f64());
        let (begun, name) = match self.begun.get(&step.0) {
            Some(begun) => (begun.at, Arc::clone(&begun.title)),
            None => (now, report.title.as_str().into()),
        };
        let (tar_bytes, blob_bytes) = (report.bytes_compressed, report.bytes_written);
        let details = Details::Step { state, cached: report.cached, tar_bytes, blob_bytes };
        self.spans.push(Span { name, kind: "step", begun, ended: now, details });
    }
}

impl Observer for Recorder {
    fn event(&self, event: Event<'_>) {
        lock(&self.seen).note(&event, self.begun.elapsed());
        self.inner.event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Silent;

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
        recorder.event(Event::Followed { id: "layer", elapsed: Duration::from_secs(1) });
        recorder.event(Event::Progress { transfer: Transfer::Push, id: "layer", done: 7, total: None });
        recorder.event(Event::Resumed { id: "resumed", bytes: 100 });
        recorder.event(Event::Progress { transfer: Transfer::Push, id: "resumed", done: 103, total: Some(103) });
        recorder.event(Event::StepFinished { step, cached: false, layer: None, elapsed: Duration::from_secs(2) });
        let report = recorder.report();
        assert_eq!((report.bytes_pulled, report.bytes_pushed), (35, 10));
        assert_eq!(report.steps.len(), 1);
        assert_eq!(report.steps[0].miss.as_deref(), Some("instruction changed"));
        assert_eq!((report.steps[0].seconds, report.steps[0].state), (2.0, "done"));
        let names: Vec<&str> = report.timeline.spans.iter().map(|span| &*span.name).collect();
        assert_eq!(names, ["[1/1] RUN true", "a", "b", "layer", "resumed"]);
    }
}
