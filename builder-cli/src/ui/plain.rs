//! One line for each thing that happens, numbered by step: for logs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use builder_core::event::{Event, Observer, StepId, Transfer};

use super::{bytes, one_line, printable};

/// Transfers that go on are told this often.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Writes lines.
pub struct Plain<W> {
    state: Mutex<State<W>>,
}

struct State<W> {
    out: W,
    started: BTreeMap<StepId, Instant>,
    transfers: BTreeMap<(Transfer, String), Instant>,
    finished: BTreeSet<(Transfer, String)>,
    /// Blobs that needed no transfer since the last result was complete.
    already_there: usize,
}

impl<W: Write + Send> Plain<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            state: Mutex::new(State {
                out,
                started: BTreeMap::new(),
                transfers: BTreeMap::new(),
                finished: BTreeSet::new(),
                already_there: 0,
            }),
        }
    }
}

impl<W: Write> State<W> {
    fn line(&mut self, text: &str) {
        // A log that cannot be written must not end the build.
        _ = writeln!(self.out, "{text}");
    }

    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::BaseResolved { reference, digest } => self.line(&format!("base {reference} is {digest}")),
            Event::Warning { finding, line } => {
                self.line(&format!("warning: {}: {} (line {line})", finding.rule, finding.message));
            }
            Event::Notice { message } => self.line(&format!("note: {message}")),
            Event::StepStarted { step, title } => {
                self.started.insert(*step, Instant::now());
                self.line(&format!("#{} {}", step.0, one_line(title)));
            }
            Event::CacheFound { step, place } => self.line(&format!("#{} taken from {place}", step.0)),
            Event::CacheMiss { step, reason } => self.line(&format!("#{} not cached: {reason}", step.0)),
            Event::Output { step, line, .. } => {
                let since = self.started.get(step).map_or(0.0, |started| started.elapsed().as_secs_f64());
                self.line(&format!("#{} {since:.3} {}", step.0, printable(line)));
            }
            Event::StepFinished { step, cached: true, .. } => self.line(&format!("#{} CACHED", step.0)),
            Event::StepFinished { step, elapsed, .. } => {
                self.line(&format!("#{} DONE {:.1}s", step.0, elapsed.as_secs_f64()));
            }
            Event::StepFailed { step, elapsed } => {
                self.line(&format!("#{} ERROR {:.1}s", step.0, elapsed.as_secs_f64()));
            }
            Event::StepCancelled { step } => self.line(&format!("#{} CANCELLED", step.0)),
            Event::Progress { transfer, id, done, total } => self.progress(*transfer, id, *done, *total),
            Event::Resumed { id, bytes: there } => {
                self.line(&format!("pushing {id}: {} are there from an earlier build", bytes(*there)));
            }
            Event::Exists { transfer: Transfer::Push, .. } => self.already_there += 1,
            Event::Retry { what, attempt, delay } => {
                self.line(&format!("{what}: attempt {attempt} in {:.1}s", delay.as_secs_f64()));
            }
            Event::Exported { target, digest: Some(digest) } => {
                let there = match std::mem::take(&mut self.already_there) {
                    0 => String::new(),
                    1 => " (1 blob was there)".to_owned(),
                    count => format!(" ({count} blobs were there)"),
                };
                self.line(&format!("wrote {target}: {digest}{there}"));
            }
            Event::Done { totals } => self.line(&super::totals(totals)),
            Event::Exported { target, digest: None } => self.line(&format!("wrote {target}")),
            _ => {}
        }
    }

    /// Long transfers are told now and then, all of them at their end.
    fn progress(&mut self, transfer: Transfer, id: &str, done: u64, total: Option<u64>) {
        let verb = match transfer {
            Transfer::Pull => "pulling",
            Transfer::Push => "pushing",
            Transfer::Compress => "packing",
        };
        let key = (transfer, id.to_owned());
        if total == Some(done) {
            self.transfers.remove(&key);
            if self.finished.insert(key) {
                self.line(&format!("{verb} {id}: {}", bytes(done)));
            }
            return;
        }
        let last = self.transfers.entry(key).or_insert_with(Instant::now);
        if last.elapsed() >= PROGRESS_INTERVAL {
            *last = Instant::now();
            let total = total.map_or_else(String::new, |total| format!(" of {}", bytes(total)));
            self.line(&format!("{verb} {}: {}{total}", one_line(id), bytes(done)));
        }
    }
}

impl<W: Write + Send> Observer for Plain<W> {
    fn event(&self, event: Event<'_>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).event(&event);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use builder_core::event::Stream;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_name_their_step() {
        let log = Log::default();
        let plain = Plain::new(log.clone());
        let step = StepId(3);
        plain.event(Event::StepStarted { step, title: "[2/2] RUN <<EOF\nx" });
        plain.event(Event::CacheMiss { step, reason: "instruction changed" });
        plain.event(Event::StepFinished { step, cached: true, layer: None, elapsed: Duration::from_millis(1) });
        plain.event(Event::StepFinished { step, cached: false, layer: None, elapsed: Duration::from_millis(1240) });
        plain.event(Event::Progress { transfer: Transfer::Pull, id: "sha256:0", done: 1, total: Some(2) });
        plain.event(Event::Progress { transfer: Transfer::Pull, id: "sha256:0", done: 2, total: Some(2) });
        let text = String::from_utf8(log.0.lock().expect("not poisoned").clone()).expect("UTF-8");
        assert_eq!(
            text,
            "#3 [2/2] RUN <<EOF\n#3 not cached: instruction changed\n#3 CACHED\n#3 DONE 1.2s\npulling sha256:0: 2 B\n"
        );
        plain.event(Event::Output { step, stream: Stream::Stdout, line: b"hello\xff" });
        let text = String::from_utf8(log.0.lock().expect("not poisoned").clone()).expect("UTF-8");
        assert!(text.ends_with(" hello\u{fffd}\n"), "{text}");
    }

    #[test]
    fn blobs_that_are_there_are_counted() {
        let log = Log::default();
        let plain = Plain::new(log.clone());
        let digest = format!("sha256:{}", "0".repeat(64)).parse().expect("a digest");
        for _ in 0..2 {
            plain.event(Event::Exists { transfer: Transfer::Push, id: "sha256:1" });
        }
        plain.event(Event::Exported { target: "a", digest: Some(digest) });
        plain.event(Event::Exported { target: "b", digest: Some(digest) });
        let text = String::from_utf8(log.0.lock().expect("not poisoned").clone()).expect("UTF-8");
        assert_eq!(text, format!("wrote a: {digest} (2 blobs were there)\nwrote b: {digest}\n"));
    }
}
