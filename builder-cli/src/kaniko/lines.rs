//! Events in Kaniko's words.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use builder_core::event::{Event, Observer, StepId, Stream, Transfer};
use builder_core::oci::Reference;

use super::log::{Level, Logger};
use super::names;

/// Writes log lines for events, and the output of commands to where the commands wrote it.
pub struct Lines {
    logger: Arc<Logger>,
    /// Where steps are looked up; hits and misses are told then.
    cache: Option<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The instruction of each step that runs.
    steps: BTreeMap<StepId, String>,
    /// Whether a root file system was needed.
    unpacked: bool,
}

impl Lines {
    /// Writes through `logger`.
    pub fn new(logger: Arc<Logger>, cache: Option<String>) -> Self {
        Self { logger, cache, state: Mutex::default() }
    }

    fn started(&self, step: StepId, title: &str) {
        let command = command(title);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if command.starts_with("RUN ") && !state.unpacked {
            state.unpacked = true;
            self.logger.info(&format!("Unpacking rootfs as cmd {command} requires it."));
        }
        state.steps.insert(step, command.to_owned());
        drop(state);
        self.logger.info(command);
    }

    fn command(&self, step: StepId) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.steps.get(&step).cloned().unwrap_or_default()
    }

    fn output(&self, stream: Stream, line: &[u8]) {
        match stream {
            Stream::Stderr => self.logger.raw(line),
            Stream::Stdout => {
                let mut out = std::io::stdout().lock();
                // A reader that went away must not end the build.
                _ = out.write_all(line).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
            }
        }
    }
}

/// `[build 2/5] RUN make` without what stands in brackets.
fn command(title: &str) -> &str {
    match title.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((_, command)) => command,
        None => title,
    }
}

impl Observer for Lines {
    fn event(&self, event: Event<'_>) {
        let logger = &self.logger;
        match event {
            Event::BaseResolved { reference, digest } => {
                logger.info(&format!("Retrieving image manifest {reference}"));
                if let Ok(name) = reference.parse::<Reference>() {
                    let repository = names::repository(&name);
                    let registry = repository.split('/').next().unwrap_or_default();
                    logger.info(&format!("Retrieving image {reference} from registry {registry}"));
                }
                logger.debug(&format!("{reference} is {digest}"));
            }
            Event::Warning { finding, line } => {
                logger.warn(&format!("{}: {} (line {line})", finding.rule, finding.message));
            }
            Event::Notice { message } => logger.warn(message),
            Event::StepStarted { step, title } => self.started(step, title),
            Event::CacheMiss { step, reason } => {
                let level = if self.cache.is_some() { Level::Info } else { Level::Debug };
                if let Some(place) = &self.cache {
                    logger.info(&format!("Checking for cached layer {place}..."));
                }
                logger.log(level, &format!("No cached layer found for cmd {}", self.command(step)));
                logger.debug(&format!("not cached: {reason}"));
            }
            Event::CacheFound { place, .. } => logger.info(&format!("Checking for cached layer {place}...")),
            Event::CachePut { place, key, .. } => {
                logger.info(&format!("Pushing layer {place}:{} to cache now", key.to_hex()));
            }
            Event::Output { stream, line, .. } => self.output(stream, line),
            Event::StepFinished { step, cached: true, .. } => {
                logger.info(&format!("Using caching version of cmd: {}", self.command(step)));
            }
            Event::StepFinished { step, layer, elapsed, .. } => {
                let command = self.command(step);
                let walk = if command.starts_with("RUN ") { "full filesystem" } else { "files" };
                logger.info(&format!("Taking snapshot of {walk}..."));
                if let Some(layer) = layer {
                    logger.debug(&format!("{command}: layer {layer} after {:.1}s", elapsed.as_secs_f64()));
                }
            }
            Event::Retry { what, attempt, delay } => {
                logger.warn(&format!(
                    "Retrying operation after {}s due to {what} (attempt {attempt})",
                    (delay.as_secs_f64() * 10.0).round() / 10.0
                ));
            }
            Event::Exists { transfer: Transfer::Push, id } => logger.debug(&format!("existing blob: {id}")),
            Event::Progress { transfer, id, done, total } if total == Some(done) => match transfer {
                Transfer::Pull => logger.debug(&format!("pulled {id}: {done} bytes")),
                Transfer::Push => logger.debug(&format!("pushed blob: {id}")),
                Transfer::Compress => {}
            },
            Event::Exported { target, digest: Some(digest) } => match target.parse::<Reference>() {
                // The same name is a path when it comes from another exporter; those begin with `/`.
                Ok(name) if !target.starts_with('/') => {
                    logger.info(&format!("Pushed {}@{digest}", names::repository(&name)));
                }
                _ => logger.info(&format!("Wrote {target}: {digest}")),
            },
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::super::log::Format;
    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn events_are_told_in_the_words_that_people_search_for() {
        let written = Written::default();
        let logger = Arc::new(Logger::new(Format::Json, Level::Info, false, Box::new(written.clone())));
        let lines = Lines::new(logger, Some("r/cache".to_owned()));
        let digest: builder_core::oci::BlobDigest =
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".parse().expect("a digest");
        let elapsed = Duration::from_secs(1);
        let step = |lines: &Lines, number, title: &str, cached: bool| {
            lines.event(Event::StepStarted { step: StepId(number), title });
            if !cached {
                lines.event(Event::CacheMiss { step: StepId(number), reason: "not built here before" });
            }
            lines.event(Event::StepFinished { step: StepId(number), cached, layer: None, elapsed });
        };
        lines.event(Event::BaseResolved { reference: "docker.io/library/busybox:1", digest });
        step(&lines, 0, "[1/2] COPY a b", true);
        step(&lines, 1, "[2/2] RUN make", false);
        lines.event(Event::Exported { target: "docker.io/a/b:1", digest: Some(digest) });
        lines.event(Event::Exported { target: "/x/y", digest: Some(digest) });
        let text = String::from_utf8(written.0.lock().expect("not poisoned").clone()).expect("UTF-8");
        let messages: Vec<String> = text
            .lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
                value["msg"].as_str().expect("a message").to_owned()
            })
            .collect();
        assert_eq!(
            messages,
            [
                "Retrieving image manifest docker.io/library/busybox:1",
                "Retrieving image docker.io/library/busybox:1 from registry index.docker.io",
                "COPY a b",
                "Using caching version of cmd: COPY a b",
                "Unpacking rootfs as cmd RUN make requires it.",
                "RUN make",
                "Checking for cached layer r/cache...",
                "No cached layer found for cmd RUN make",
                "Taking snapshot of full filesystem...",
                &format!("Pushed index.docker.io/a/b@{digest}"),
                &format!("Wrote /x/y: {digest}"),
            ]
        );
    }
}
