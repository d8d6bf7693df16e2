//! Layers applied one onto the other in one directory, later ones fetched meanwhile.

use std::fs::File;
use std::io::{Read, Seek};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::fetch::{Stop, open, unpack_blob};
use super::inflate::Allowance;
use super::unpack::Whiteouts;
use super::workdir::{TreesDir, io_error};
use super::{LayerRef, LayerSource, Rootfs, TreeError};

/// Layers that are fetched while an earlier one is unpacked.
const FETCH_AHEAD: usize = 3;

/// How often a thread that waits looks whether it should end.
const WAIT: Duration = Duration::from_millis(50);

/// Applies layers one onto the other.
pub(super) fn apply_in_order(
    layers: &[LayerRef],
    dir: &TreesDir,
    rootfs: &Rootfs,
    source: &dyn LayerSource,
    allowed: &Allowance,
    stop: &Stop<'_>,
) -> Result<(), TreeError> {
    let Some((first, later)) = layers.split_first() else { return Ok(()) };
    let indexes = dir.indexes().hashing();
    let unpack = |blob: Box<dyn Read + Send>, layer: &LayerRef| {
        unpack_blob(blob, layer, rootfs, Whiteouts::Apply, &indexes, allowed, stop).map(|_| ())
    };
    let ahead = Ahead::default();
    std::thread::scope(|scope| {
        for worker in 0..FETCH_AHEAD.min(later.len()) {
            let ahead = &ahead;
            // Each takes every third layer, which keeps the order and needs no queue.
            scope.spawn(move || {
                for (at, layer) in later.iter().enumerate().skip(worker).step_by(FETCH_AHEAD) {
                    if !ahead.wait_until(stop, |state| at < state.unpacked + FETCH_AHEAD) {
                        return;
                    }
                    let spilled = spill(layer, dir, source, stop);
                    ahead.lock().spilled.push((at, spilled));
                    ahead.changed.notify_all();
                }
            });
        }
        let result = (|| {
            unpack(open(source, first)?, first)?;
            for (at, layer) in later.iter().enumerate() {
                if !ahead.wait_until(stop, |state| state.spilled.iter().any(|(found, _)| *found == at)) {
                    return Err(TreeError::Cancelled);
                }
                let found = {
                    let mut state = ahead.lock();
                    let position = state.spilled.iter().position(|(found, _)| *found == at);
                    position.map(|position| state.spilled.swap_remove(position).1)
                };
                let file = found.unwrap_or(Err(TreeError::Cancelled))?;
                unpack(Box::new(file), layer)?;
                ahead.lock().unpacked = at + 1;
                ahead.changed.notify_all();
            }
            Ok(())
        })();
        if result.is_err() {
            stop.fail();
            ahead.changed.notify_all();
        }
        result
    })
}

/// What the fetching threads and the unpacking one know of each other.
#[derive(Default)]
struct Ahead {
    state: Mutex<AheadState>,
    changed: Condvar,
}

#[derive(Default)]
struct AheadState {
    /// How many of the later layers are unpacked.
    unpacked: usize,
    spilled: Vec<(usize, Result<File, TreeError>)>,
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, AheadState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false` if everything is to stop.
    fn wait_until(&self, stop: &Stop<'_>, ready: impl Fn(&AheadState) -> bool) -> bool {
        let mut state = self.lock();
        loop {
            if ready(&state) {
                return true;
            }
            if stop.is_stopped() {
                return false;
            }
            state = self.changed.wait_timeout(state, WAIT).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Fetches a blob into a file without a name.
fn spill(layer: &LayerRef, dir: &TreesDir, source: &dyn LayerSource, stop: &Stop<'_>) -> Result<File, TreeError> {
    let place = dir.root().join("tmp");
    let mut file = tempfile::tempfile_in(&place).map_err(io_error("create a file in", &place))?;
    let mut blob = open(source, layer)?;
    let mut buffer = vec![0_u8; 256 * 1024];
    loop {
        if stop.is_stopped() {
            return Err(TreeError::Cancelled);
        }
        match blob.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                let taken = dir.disk().take(count as u64);
                let written = taken.and_then(|()| std::io::Write::write_all(&mut file, &buffer[..count]));
                written.map_err(io_error("write a file in", &place))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(TreeError::Fetch { layer: layer.diff_id, source: super::fetch::into_cause(error) });
            }
        }
    }
    file.rewind().map_err(io_error("read a file in", &place))?;
    Ok(file)
}
