//! One JSON object a line, for programs. `docs/progress.md` describes the form; its version is in every line.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use builder_core::event::{Event, Observer, Stream, Transfer};
use serde_json::{Value, json};

/// Version of the form. Fields and events are added within one version; nothing is renamed or removed.
pub const VERSION: u32 = 1;

/// Writes JSON lines.
pub struct Json<W> {
    out: Mutex<W>,
    begun: Instant,
}

impl<W: Write + Send> Json<W> {
    /// Writes to `out`; times count from now.
    pub fn new(out: W) -> Self {
        Self { out: Mutex::new(out), begun: Instant::now() }
    }
}

impl<W: Write + Send> Observer for Json<W> {
    fn event(&self, event: Event<'_>) {
        let Some(mut value) = value(&event) else { return };
        value["version"] = json!(VERSION);
        value["time"] = json!(self.begun.elapsed().as_secs_f64());
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // A reader that went away must not end the build.
        _ = writeln!(out, "{value}");
    }
}

/// The event as an object; `None` for kinds that this version does not know.
fn value(event: &Event<'_>) -> Option<Value> {
    let transfer = |transfer: &Transfer| match transfer {
        Transfer::Pull => "pull",
        Transfer::Push => "push",
        Transfer::Compress => "compress",
    };
    Some(match event {
        Event::Planned { steps, stages } => json!({ "event": "planned", "steps": steps, "stages": stages }),
        Event::BaseResolved { reference, digest } => {
            json!({ "event": "base", "reference": reference, "digest": digest })
        }
        Event::Warning { finding, line } => {
            json!({ "event": "warning", "rule": finding.rule, "message": finding.message, "line": line })
        }
        Event::Notice { message } => json!({ "event": "notice", "message": message }),
        Event::StepStarted { step, title } => json!({ "event": "step", "step": step.0, "title": title }),
        Event::CacheMiss { step, reason } => json!({ "event": "miss", "step": step.0, "reason": reason }),
        Event::CacheFound { step, place } => json!({ "event": "found", "step": step.0, "place": place }),
        Event::CachePut { step, place, .. } => json!({ "event": "put", "step": step.0, "place": place }),
        Event::Output { step, stream, line } => json!({
            "event": "output",
            "step": step.0,
            "stream": match stream { Stream::Stdout => "stdout", Stream::Stderr => "stderr" },
            "line": String::from_utf8_lossy(line),
        }),
        Event::StepFinished { step, cached, layer, elapsed } => json!({
            "event": "done", "step": step.0, "cached": cached, "layer": layer, "seconds": elapsed.as_secs_f64(),
        }),
        Event::StepFailed { step, elapsed } => {
            json!({ "event": "failed", "step": step.0, "seconds": elapsed.as_secs_f64() })
        }
        Event::StepCancelled { step } => json!({ "event": "cancelled", "step": step.0 }),
        Event::Progress { transfer: kind, id, done, total } => {
            json!({ "event": "progress", "transfer": transfer(kind), "id": id, "done": done, "total": total })
        }
        Event::Exists { transfer: kind, id } => json!({ "event": "exists", "transfer": transfer(kind), "id": id }),
        Event::Resumed { id, bytes } => json!({ "event": "resumed", "id": id, "bytes": bytes }),
        Event::Followed { id, elapsed } => {
            json!({ "event": "followed", "id": id, "seconds": elapsed.as_secs_f64() })
        }
        Event::Retry { what, attempt, delay } => {
            json!({ "event": "retry", "what": what, "attempt": attempt, "delay": delay.as_secs_f64() })
        }
        Event::Phase { step, name, elapsed } => {
            json!({ "event": "phase", "step": step.0, "name": name, "seconds": elapsed.as_secs_f64() })
        }
        Event::Packed { step, digest, tar_bytes, blob_bytes, entries } => json!({
            "event": "packed",
            "step": step.0,
            "digest": digest,
            "tar_bytes": tar_bytes,
            "blob_bytes": blob_bytes,
            "entries": entries,
        }),
        Event::Done { totals } => json!({
            "event": "totals",
            "seconds": totals.elapsed.as_secs_f64(),
            "pulled": totals.pulled,
            "pushed": totals.pushed,
            "compressed": totals.compressed,
            "read": totals.read,
            "written": totals.written,
            "peak_anonymous": totals.peak_anonymous,
            "peak_disk": totals.peak_disk,
            "peak_disk_elsewhere": totals.peak_disk_elsewhere,
        }),
        Event::Exported { target, digest } => json!({ "event": "exported", "target": target, "digest": digest }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use builder_core::dockerfile::{Finding, Span};
    use builder_core::event::{StepId, Totals};
    use builder_core::oci::{BlobDigest, Sha256};

    use super::*;

    #[test]
    fn every_event_is_documented() {
        let document = include_str!("../../../docs/progress.md");
        let digest = BlobDigest(Sha256::of(b""));
        let step = StepId(0);
        let finding = Finding { rule: "Rule", message: "text".to_owned(), span: Span(0..0) };
        let elapsed = Duration::ZERO;
        for event in [
            Event::Planned { steps: 1, stages: 1 },
            Event::BaseResolved { reference: "r", digest },
            Event::Warning { finding: &finding, line: 1 },
            Event::Notice { message: "m" },
            Event::StepStarted { step, title: "t" },
            Event::CacheMiss { step, reason: "r" },
            Event::Output { step, stream: Stream::Stdout, line: b"l" },
            Event::StepFinished { step, cached: false, layer: None, elapsed },
            Event::StepFailed { step, elapsed },
            Event::StepCancelled { step },
            Event::Progress { transfer: Transfer::Pull, id: "i", done: 1, total: None },
            Event::Exists { transfer: Transfer::Push, id: "i" },
            Event::Followed { id: "i", elapsed },
            Event::Resumed { id: "i", bytes: 1 },
            Event::Retry { what: "w", attempt: 2, delay: elapsed },
            Event::Exported { target: "t", digest: Some(digest) },
            Event::Phase { step, name: "run", elapsed },
            Event::Packed { step, digest, tar_bytes: 1, blob_bytes: 1, entries: 1 },
            Event::Done { totals: Totals::default() },
        ] {
            let value = value(&event).expect("a known event");
            let name = value["event"].as_str().expect("a name");
            assert!(document.contains(&format!("| `{name}` |")), "`{name}` is not in docs/progress.md");
            for field in value.as_object().expect("an object").keys().filter(|field| *field != "event") {
                assert!(
                    document.contains(&format!("`{field}`")),
                    "field `{field}` of `{name}` is not in docs/progress.md"
                );
            }
        }
    }
}
