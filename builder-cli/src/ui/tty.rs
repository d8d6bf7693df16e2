//! Live progress on a terminal: finished steps scroll by, running ones stay at the bottom with their last line of output
//! and elapsed time, then the bytes pulled, compressed and pushed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use builder_core::event::{Event, Observer, StepId, Transfer};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{bytes, one_line, printable};

/// How often elapsed times move.
const TICK: Duration = Duration::from_millis(100);

/// Lines of a step's output that are shown again when it fails.
const KEPT_LINES: usize = 40;

/// Draws on standard error.
pub struct Tty {
    bars: MultiProgress,
    state: Mutex<State>,
    colour: bool,
}

#[derive(Default)]
struct State {
    steps: BTreeMap<StepId, Running>,
    transfers: BTreeMap<(Transfer, String), u64>,
    footer: Option<ProgressBar>,
}

struct Running {
    bar: ProgressBar,
    title: String,
    lines: Vec<String>,
    miss: Option<String>,
}

impl Tty {
    /// With or without colours.
    pub fn new(colour: bool) -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Self { bars, state: Mutex::default(), colour }
    }

    fn say(&self, text: &str) {
        // Nowhere to say that the terminal is gone.
        _ = self.bars.println(text);
    }

    /// `text` in an ANSI colour, if colours are wanted. The words alone carry the meaning.
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn end(&self, state: &mut State, step: StepId, word: &str, code: &str, elapsed: Option<Duration>) {
        let Some(running) = state.steps.remove(&step) else { return };
        running.bar.finish_and_clear();
        let time = elapsed.map_or_else(String::new, |elapsed| format!(" {:.1}s", elapsed.as_secs_f64()));
        let miss = running.miss.map_or_else(String::new, |miss| format!(" ({miss})"));
        self.say(&format!("{} {}{time}{miss}", self.paint(code, word), one_line(&running.title)));
        if word == "ERROR" {
            for line in &running.lines {
                self.say(&format!("  | {line}"));
            }
        }
    }

    fn footer(&self, state: &mut State) {
        let total = |wanted: Transfer| -> u64 {
            state.transfers.iter().filter(|((transfer, _), _)| *transfer == wanted).map(|(_, done)| done).sum()
        };
        let parts: Vec<String> =
            [(Transfer::Pull, "pulled"), (Transfer::Compress, "compressed"), (Transfer::Push, "pushed")]
                .into_iter()
                .map(|(transfer, word)| (total(transfer), word))
                .filter(|(count, _)| *count > 0)
                .map(|(count, word)| format!("{word} {}", bytes(count)))
                .collect();
        let bar = state.footer.get_or_insert_with(|| {
            let bar = self.bars.add(ProgressBar::no_length());
            bar.set_style(style("{msg} [{elapsed}]"));
            bar.enable_steady_tick(TICK);
            bar
        });
        bar.set_message(parts.join(", "));
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is a constant")
}

impl Observer for Tty {
    fn event(&self, event: Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::BaseResolved { reference, digest } => self.say(&format!("base {reference} is {digest}")),
            Event::Warning { finding, line } => {
                let word = self.paint("33", "warning");
                self.say(&format!("{word}: {}: {} (line {line})", finding.rule, finding.message));
            }
            Event::Notice { message } => self.say(&format!("note: {message}")),
            Event::StepStarted { step, title } => {
                let bar = match &state.footer {
                    Some(footer) => self.bars.insert_before(footer, ProgressBar::no_length()),
                    None => self.bars.add(ProgressBar::no_length()),
                };
                bar.set_style(style("{spinner} {prefix} {elapsed} {wide_msg}"));
                bar.set_prefix(one_line(title).to_owned());
                bar.enable_steady_tick(TICK);
                let running = Running { bar, title: title.to_owned(), lines: Vec::new(), miss: None };
                state.steps.insert(step, running);
            }
            Event::CacheMiss { step, reason } => {
                if let Some(running) = state.steps.get_mut(&step) {
                    running.miss = Some(reason.to_owned());
                }
            }
            Event::Output { step, line, .. } => {
                if let Some(running) = state.steps.get_mut(&step) {
                    let line = printable(line);
                    running.bar.set_message(line.clone());
                    if running.lines.len() == KEPT_LINES {
                        running.lines.remove(0);
                    }
                    running.lines.push(line);
                }
            }
            Event::StepFinished { step, cached: true, .. } => self.end(&mut state, step, "CACHED", "34", None),
            Event::StepFinished { step, elapsed, .. } => self.end(&mut state, step, "DONE", "32", Some(elapsed)),
            Event::StepFailed { step, elapsed } => self.end(&mut state, step, "ERROR", "31", Some(elapsed)),
            Event::StepCancelled { step } => self.end(&mut state, step, "CANCELLED", "33", None),
            Event::Progress { transfer, id, done, .. } => {
                let most = state.transfers.entry((transfer, id.to_owned())).or_default();
                *most = (*most).max(done);
                self.footer(&mut state);
            }
            Event::Retry { what, attempt, delay } => {
                self.say(&format!("{what}: attempt {attempt} in {:.1}s", delay.as_secs_f64()));
            }
            Event::Done { totals } => {
                if let Some(footer) = state.footer.take() {
                    footer.finish_and_clear();
                }
                self.say(&super::totals(&totals));
            }
            Event::Exported { target, digest } => {
                let digest = digest.map_or_else(String::new, |digest| format!(": {digest}"));
                self.say(&format!("wrote {target}{digest}"));
            }
            _ => {}
        }
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(footer) = state.footer.take() {
            footer.finish();
        }
    }
}
