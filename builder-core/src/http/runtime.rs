//! The thread that drives all sockets, and waiting for it with limits.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::cancel::Cancel;

/// How often a waiting thread looks whether it should stop: short enough that Ctrl-C feels immediate.
pub(super) const CANCEL_TICK: Duration = Duration::from_millis(50);

/// Name look-ups at one time; they are the only blocking work of the runtime.
const LOOKUP_THREADS: usize = 8;

/// Why a wait ended without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Cancelled,
    Stalled,
}

/// A running driver thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Runtime {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Runtime {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(LOOKUP_THREADS).build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new().name("http".to_owned()).spawn(move || {
            // An error means that the sender is gone, which is the signal.
            _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _stop: stop })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Blocks until `future` is ready, `cancel` is set, or `limit` has passed.
    pub(super) fn wait<F: Future>(&self, future: F, limit: Duration, cancel: &Cancel) -> Result<F::Output, Stop> {
        self.handle.block_on(async {
            let mut future = pin!(future);
            let start = Instant::now();
            loop {
                if cancel.is_cancelled() {
                    return Err(Stop::Cancelled);
                }
                let left = limit.saturating_sub(start.elapsed());
                match tokio::time::timeout(CANCEL_TICK.min(left), future.as_mut()).await {
                    Ok(value) => return Ok(value),
                    Err(_) if left.is_zero() => return Err(Stop::Stalled),
                    Err(_) => {}
                }
            }
        })
    }
}
