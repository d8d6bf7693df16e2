//! The threads that answer calls.

use std::{io, thread};

use rustix::fs::OFlags;

use super::super::serving;
use super::super::sys::pipe;
use super::pipes::{self, Pipe};
use super::world::World;

/// Answers the calls of all threads of a RUN while `trace` traces them; what that returns.
///
/// # Errors
/// `EMFILE`
pub fn serve<T>(world: &World, complain: &(dyn Fn(&str) + Sync), trace: impl FnOnce() -> T) -> io::Result<T> {
    let (ended, alive) = pipe()?;
    Ok(thread::scope(|scope| {
        let meet = move |call, pipe: Pipe, flags: OFlags| {
            scope.spawn(move || pipes::give(world, call, pipe, flags));
        };
        // The tracer waits for every one of them.
        serving::spawn(scope, &world.listener, &ended, true, move |call| {
            world.answer(call, &|line| complain(line), &meet)
        });
        let result = trace();
        drop(alive);
        result
    }))
}
