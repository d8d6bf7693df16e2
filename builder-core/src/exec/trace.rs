//! What a build did when, for trace viewers (`chrome://tracing`, Perfetto, speedscope): the "Trace Event Format" of Chrome,
//! complete events (`ph: X`) for what takes time and counters (`ph: C`) for what is measured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

/// Something that took time. All times count from the beginning of the build.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    /// What the viewer shows on it.
    pub(super) name: Arc<str>,
    /// Rows of one kind lie together: `step`, `phase`, `pull`, `push`.
    pub(super) kind: &'static str,
    pub(super) begun: Duration,
    pub(super) ended: Duration,
    /// What is told about it beside its name.
    pub(super) details: Details,
}

/// What is told about a span. A value only when it is asked for: a build of many steps has many spans, and nearly all are
/// never looked at.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Details {
    /// Of a step.
    Step { state: &'static str, cached: bool, tar_bytes: u64, blob_bytes: u64 },
    /// Of a part of a step: the step's title.
    Phase { step: Arc<str> },
    /// Of a transfer.
    Moved { bytes: u64 },
}

impl Details {
    fn value(&self) -> Value {
        match self {
            Self::Step { state, cached, tar_bytes, blob_bytes } => {
                json!({"state": state, "cached": cached, "tar bytes": tar_bytes, "blob bytes": blob_bytes})
            }
            Self::Phase { step } => json!({"step": **step}),
            Self::Moved { bytes } => json!({"bytes": bytes}),
        }
    }
}

/// What was measured at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) at: Duration,
    /// Anonymous memory of the builder, in bytes.
    pub(super) anonymous: u64,
    /// Space below the work dir, in bytes.
    pub(super) disk: u64,
}

/// The whole trace as a value. Spans that overlap lie in rows of their own, so that none hides another.
pub(super) fn chrome(spans: &[Span], samples: &[Sample]) -> Value {
    let mut spans: Vec<&Span> = spans.iter().collect();
    spans.sort_by(|a, b| (a.kind, a.begun, &a.name).cmp(&(b.kind, b.begun, &b.name)));
    // By kind: when each row is free again.
    let mut rows: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut placed = Vec::new();
    for span in spans {
        let ends = rows.entry(span.kind).or_default();
        let row = match ends.iter().position(|end| *end <= span.begun) {
            Some(row) => row,
            None => {
                ends.push(Duration::ZERO);
                ends.len() - 1
            }
        };
        ends[row] = span.ended;
        placed.push((span, row));
    }
    let mut first = BTreeMap::new();
    let mut events = Vec::new();
    let mut next = 1;
    for (kind, ends) in &rows {
        first.insert(*kind, next);
        for row in 0..ends.len() {
            let name = format!("{kind} {}", row + 1);
            events.push(json!({"ph": "M", "pid": 1, "tid": next, "name": "thread_name", "args": {"name": name}}));
            next += 1;
        }
    }
    for (span, row) in placed {
        events.push(json!({
            "ph": "X",
            "pid": 1,
            "tid": first[span.kind] + row,
            "name": *span.name,
            "cat": span.kind,
            "ts": micros(span.begun),
            "dur": micros(span.ended.saturating_sub(span.begun)),
            "args": span.details.value(),
        }));
    }
    for sample in samples {
        let counters = [("anonymous memory", sample.anonymous), ("work directory", sample.disk)];
        for (name, bytes) in counters {
            let at = micros(sample.at);
            events.push(json!({"ph": "C", "pid": 1, "name": name, "ts": at, "args": {"bytes": bytes}}));
        }
    }
    json!({"traceEvents": events, "displayTimeUnit": "ms"})
}

fn micros(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_spans_get_rows_of_their_own() {
        let span = |name: &str, kind, begun, ended| Span {
            name: name.into(),
            kind,
            begun: Duration::from_micros(begun),
            ended: Duration::from_micros(ended),
            details: Details::Moved { bytes: 5 },
        };
        let spans =
            vec![span("b", "step", 5, 9), span("a", "step", 0, 6), span("c", "step", 6, 7), span("p", "push", 1, 2)];
        let sample = Sample { at: Duration::from_micros(3), anonymous: 7, disk: 8 };
        let trace = chrome(&spans, &[sample]);
        let events = trace["traceEvents"].as_array().expect("a list");
        let row = |name: &str| events.iter().find(|event| event["name"] == name).expect("the span")["tid"].clone();
        assert_eq!([row("p"), row("a"), row("b"), row("c")], [json!(1), json!(2), json!(3), json!(2)]);
        assert!(events.iter().any(|event| event["ph"] == "C" && event["args"]["bytes"] == 8));
        let a = events.iter().find(|event| event["name"] == "a").expect("the span");
        assert_eq!((&a["ts"], &a["dur"], &a["args"]["bytes"]), (&json!(0), &json!(6), &json!(5)));
    }
}
