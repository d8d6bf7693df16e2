//! Events in Kaniko's words.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use builder_core::event::{Event, Observer, StepId, Stream, Transfer};
use builder_core::oci::Reference;

use super::log::{Level, Logger};
use super::names;

/// Writes log lines for events, and the output of commands to where the commands wrote it.
pub struct Lines {
    logger: Arc<Logger>,
    shown: Shown,
    state: Mutex<State>,
}

/// What is told about caches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown {
    /// Steps that no cache has.
    pub misses: bool,
    /// Nothing is looked up anywhere: what begins runs.
    pub no_lookups: bool,
}

#[derive(Default)]
struct State {
    /// Steps that began.
    steps: BTreeMap<StepId, Begun>,
    /// Whether a root file system was needed.
    unpacked: bool,
}

/// A step that began.
#[derive(Clone, Default)]
struct Begun {
    /// Its instruction.
    command: String,
    /// Whether it is told that it runs.
    runs: bool,
}

impl Lines {
    /// Writes through `logger`.
    pub fn new(logger: Arc<Logger>, shown: Shown) -> Self {
        Self { logger, shown, state: Mutex::default() }
    }

    fn started(&self, step: StepId, title: &str) {
        let begun = Begun { command: command(title).to_owned(), runs: false };
        self.state().steps.insert(step, begun);
        if self.shown.no_lookups {
            self.runs(step);
        }
    }

    /// Tells that a step runs, once. That it does is known when no cache has its result.
    fn runs(&self, step: StepId) {
        let mut state = self.state();
        let State { steps, unpacked } = &mut *state;
        let Some(begun) = steps.get_mut(&step).filter(|begun| !begun.runs) else { return };
        begun.runs = true;
        if begun.command.starts_with("RUN ") && !*unpacked {
            *unpacked = true;
            self.logger.info(&format!("Unpacking rootfs as cmd {} requires it.", begun.command));
        }
        self.logger.info(&begun.command);
    }

    /// All steps are done.
    pub fn steps_are_done(&self) {
        if !self.state().unpacked {
            self.logger.info("Skipping unpacking as no commands require it.");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, step: StepId) -> String {
        self.state().steps.get(&step).map(|begun| begun.command.clone()).unwrap_or_default()
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
            Event::CacheAsked { place, key, .. } => {
                logger.info(&format!("Checking for cached layer {place}:{}...", key.to_hex()));
            }
            Event::CacheMiss { step, reason } => {
                let level = if self.shown.misses { Level::Info } else { Level::Debug };
                logger.log(level, &format!("No cached layer found for cmd {}", self.command(step)));
                logger.debug(&format!("not cached: {reason}"));
                self.runs(step);
            }
            Event::CachePut { place, key, .. } => {
                logger.info(&format!("Pushing layer {place}:{} to cache now", key.to_hex()));
            }
            Event::Output { step, stream, line } => {
                self.runs(step);
                self.output(stream, line);
            }
            Event::StepFinished { step, cached: true, .. } => {
                logger.info(&format!("Using caching version of cmd: {}", self.command(step)));
                logger.info("Found cached layer, extracting to filesystem");
            }
            Event::StepFinished { step, layer, elapsed, .. } => {
                self.runs(step);
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
        let lines = Lines::new(logger, Shown { misses: true, no_lookups: false });
        let digest: builder_core::oci::BlobDigest =
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".parse().expect("a digest");
        let elapsed = Duration::from_secs(1);
        let key = builder_core::oci::Sha256::of(b"key");
        let step = |lines: &Lines, number, title: &str, cached: bool| {
            lines.event(Event::CacheAsked { step: StepId(number), place: "r/cache", key });
            lines.event(Event::StepStarted { step: StepId(number), title });
            if !cached {
                lines.event(Event::CacheMiss { step: StepId(number), reason: "not built here before" });
            }
            lines.event(Event::StepFinished { step: StepId(number), cached, layer: None, elapsed });
        };
        lines.event(Event::BaseResolved { reference: "docker.io/library/busybox:1", digest });
        step(&lines, 0, "[1/2] COPY a b", true);
        lines.steps_are_done();
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
                &format!("Checking for cached layer r/cache:{}...", key.to_hex()),
                "Using caching version of cmd: COPY a b",
                "Found cached layer, extracting to filesystem",
                "Skipping unpacking as no commands require it.",
                &format!("Checking for cached layer r/cache:{}...", key.to_hex()),
                "No cached layer found for cmd RUN make",
                "Unpacking rootfs as cmd RUN make requires it.",
                "RUN make",
                "Taking snapshot of full filesystem...",
                &format!("Pushed index.docker.io/a/b@{digest}"),
                &format!("Wrote /x/y: {digest}"),
            ]
        );
    }
}
