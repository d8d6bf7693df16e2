//! Space under the work dir, counted before the builder takes it.
//!
//! What is in use is measured now and then, by walking. In between, everybody here who is about to write says how much
//! ([`Disk::take`]). Where that might be more than the budget, the writer waits for a fresh measurement, and nobody else takes
//! anything meanwhile; if it would still be more, nothing is written. So no writer of the builder passes the budget, however fast
//! it is, by more than the buffers that its threads hold.
//!
//! # Limitations
//! What commands in a RUN write is only measured: more often the more of the volume is gone, and once when a command has ended. What a
//! git fetch writes is counted every 50 ms, when it is there.

use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, never};

/// A writer would pass the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} bytes more would be more than the {budget} bytes that may be in use under the work directory")]
pub struct OverBudget {
    /// Bytes that may be in use.
    pub budget: u64,
    /// Bytes that were about to be written.
    pub wanted: u64,
}

/// The space that a build may take. Cheap to clone; without a budget it costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    budget: u64,
    state: Mutex<State>,
    changed: Condvar,
    /// Somebody waits for a measurement.
    asked: (Sender<()>, Receiver<()>),
}

#[derive(Debug, Default)]
struct State {
    /// Bytes in use at the last measurement.
    measured: u64,
    /// Bytes that were taken since it began.
    since: u64,
    /// The same when the measurement that is under way began.
    before_this: u64,
    /// Measurements begun and ended so far.
    begun: u64,
    ended: u64,
    /// Whether somebody measures when asked.
    watched: bool,
    /// How many wait for a measurement, and the most that one of them wants.
    waiting: usize,
    wanted: u64,
    refused: Option<Refusal>,
}

/// What a writer was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Bytes that were in use.
    pub used: u64,
    /// Bytes that were about to be written.
    pub wanted: u64,
    /// Bytes that were taken since the last measurement.
    pub grown: u64,
}

/// How often a waiting writer looks whether anybody still measures.
const LOOK: Duration = Duration::from_millis(50);

impl Disk {
    /// At most `budget` bytes, of which `used` are in use.
    pub fn limited(budget: u64, used: u64) -> Self {
        let state = Mutex::new(State { measured: used, ..State::default() });
        Self { inner: Some(Arc::new(Inner { budget, state, changed: Condvar::new(), asked: bounded(1) })) }
    }

    /// Counts `bytes` that are about to be written.
    ///
    /// # Errors
    /// [`io::ErrorKind::QuotaExceeded`] with an [`OverBudget`] if that is too much; so is everything from then on.
    pub fn take(&self, bytes: u64) -> io::Result<()> {
        self.claim(bytes, false)
    }

    /// Waits until somebody has measured what was written by others, of whom nobody here knows how much it was.
    ///
    /// # Errors
    /// As [`Disk::take`], if that is too much.
    pub fn settle(&self) -> io::Result<()> {
        self.claim(0, true)
    }

    /// Counts bytes; if `sure`, only after a measurement that begins now.
    fn claim(&self, bytes: u64, sure: bool) -> io::Result<()> {
        let Some(inner) = &self.inner else { return Ok(()) };
        let mut state = inner.lock();
        loop {
            let refuse = || {
                Err(io::Error::new(io::ErrorKind::QuotaExceeded, OverBudget { budget: inner.budget, wanted: bytes }))
            };
            if state.refused.is_some() {
                return refuse();
            }
            // Whoever waits has the first word: what is taken now might be measured or not.
            if !sure && state.waiting == 0 && state.estimate().saturating_add(bytes) <= inner.budget {
                state.since += bytes;
                return Ok(());
            }
            if !state.watched {
                state.refused = Some(Refusal { used: state.estimate(), wanted: bytes, grown: state.since });
                return refuse();
            }
            let fresh = state.begun + 1;
            state.waiting += 1;
            state.wanted = state.wanted.max(bytes);
            // One request is enough for all who wait.
            _ = inner.asked.0.try_send(());
            while state.ended < fresh && state.refused.is_none() && state.watched {
                state = inner.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            }
            state.waiting -= 1;
            if state.waiting == 0 {
                state.wanted = 0;
            }
            if state.refused.is_none() && state.ended >= fresh && state.estimate().saturating_add(bytes) <= inner.budget
            {
                state.since += bytes;
                return Ok(());
            }
        }
    }

    /// `data`, of which each byte is counted before it is handed out to be written.
    pub fn taking<'r>(&self, data: &'r mut dyn Read) -> impl Read + use<'r> {
        Taking { data, disk: self.clone() }
    }

    /// About how much may still be taken; `None` without a budget.
    pub fn left(&self) -> Option<u64> {
        self.inner.as_ref().map(|inner| inner.budget.saturating_sub(inner.lock().estimate()))
    }

    /// What ended all writing, if anything did.
    pub fn refused(&self) -> Option<Refusal> {
        self.inner.as_ref().and_then(|inner| inner.lock().refused)
    }

    /// Tells whoever measures when somebody waits for it; nobody ever does without a budget.
    pub(crate) fn asked(&self) -> Receiver<()> {
        self.inner.as_ref().map_or_else(never, |inner| inner.asked.1.clone())
    }

    /// Says whether somebody measures when asked.
    pub(crate) fn watch(&self, watched: bool) {
        if let Some(inner) = &self.inner {
            inner.lock().watched = watched;
            inner.changed.notify_all();
        }
    }

    /// The most that one of those who wait for a measurement wants.
    pub(crate) fn wanted(&self) -> u64 {
        self.inner.as_ref().map_or(0, |inner| inner.lock().wanted)
    }

    /// A measurement begins.
    pub(crate) fn measuring(&self) {
        if let Some(inner) = &self.inner {
            let mut state = inner.lock();
            state.before_this = state.since;
            state.begun += 1;
        }
    }

    /// The measurement has ended: `used` bytes are in use. Refuses those who wait for more than is left; what was refused by now.
    pub(crate) fn measured(&self, used: u64) -> Option<Refusal> {
        let inner = self.inner.as_ref()?;
        let mut state = inner.lock();
        state.measured = used;
        // What was taken before the measurement began is in it.
        state.since -= state.before_this;
        state.before_this = 0;
        state.ended = state.begun;
        let wanted = if state.waiting > 0 { state.wanted } else { 0 };
        if used.saturating_add(wanted) > inner.budget {
            let grown = state.since;
            state.refused.get_or_insert(Refusal { used, wanted, grown });
        }
        inner.changed.notify_all();
        state.refused
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Numbers, each changed at once.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn estimate(&self) -> u64 {
        self.measured.saturating_add(self.since)
    }
}

struct Taking<'r> {
    data: &'r mut dyn Read,
    disk: Disk,
}

impl Read for Taking<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.data.read(buf)?;
        self.disk.take(count as u64)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn is_over(result: io::Result<()>) -> bool {
        result.is_err_and(|error| {
            error.kind() == io::ErrorKind::QuotaExceeded && error.get_ref().is_some_and(|e| e.is::<OverBudget>())
        })
    }

    #[test]
    fn without_a_budget_everything_goes() {
        let disk = Disk::default();
        disk.take(u64::MAX).expect("taken");
        disk.measuring();
        disk.measured(u64::MAX);
        assert_eq!(disk.refused(), None);
    }

    #[test]
    fn where_nobody_measures_the_sum_decides() {
        let disk = Disk::limited(100, 30);
        disk.take(70).expect("all of it");
        assert!(is_over(disk.take(1)) && is_over(disk.take(0)));
        assert_eq!(disk.refused(), Some(Refusal { used: 100, wanted: 1, grown: 70 }));
    }

    #[test]
    fn what_was_given_back_can_be_taken_again() {
        let disk = Disk::limited(100, 0);
        disk.watch(true);
        let used = AtomicU64::new(0);
        let ended = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    if disk.asked().recv_timeout(Duration::from_millis(5)).is_ok() {
                        disk.measuring();
                        disk.measured(used.load(Ordering::SeqCst));
                    }
                }
            });
            // A hundred times ten bytes, which are gone each time.
            let writers: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..25).try_for_each(|_| disk.take(10)))).collect();
            for writer in writers {
                writer.join().expect("no panic").expect("it was given back");
            }
            // What stays cannot.
            used.store(95, Ordering::SeqCst);
            let mut taken = 0;
            let error = loop {
                match disk.take(10) {
                    Ok(()) => taken += 10,
                    Err(error) => break error,
                }
            };
            assert!(taken <= 100 && is_over(Err(error)), "{taken}");
            ended.store(true, Ordering::SeqCst);
        });
        assert!(matches!(disk.refused(), Some(Refusal { used: 95, wanted: 10, .. })));
    }

    #[test]
    fn what_others_wrote_is_measured_when_it_is_settled() {
        assert!(Disk::default().settle().is_ok());
        let disk = Disk::limited(100, 0);
        disk.watch(true);
        let used = AtomicU64::new(90);
        std::thread::scope(|scope| {
            let measure = || {
                while disk.asked().recv_timeout(Duration::from_secs(10)).is_ok() {
                    disk.measuring();
                    if disk.measured(used.load(Ordering::SeqCst)).is_some() {
                        return;
                    }
                }
            };
            scope.spawn(measure);
            disk.settle().expect("within the budget");
            used.store(101, Ordering::SeqCst);
            assert!(is_over(disk.settle()));
        });
    }

    #[test]
    fn what_is_read_is_taken() {
        let disk = Disk::limited(10, 0);
        let mut data = &[1_u8; 20][..];
        let mut taking = disk.taking(&mut data).take(20);
        let mut first = [0; 10];
        taking.read_exact(&mut first).expect("as many as there may be");
        assert_eq!(taking.read(&mut first).expect_err("one too many").kind(), io::ErrorKind::QuotaExceeded);
    }
}
