//! Memory of the threads that make calls: read and written as whoever may.
//!
//! A process that changes its user becomes one that nobody may look into before it executes something (prctl(2),
//! `PR_SET_DUMPABLE`), and one whose real and effective user differ may be looked into by nobody at all without
//! CAP_SYS_PTRACE. So calls that change users are answered here: before such a call the process's memory is opened, which holds
//! for as long as it is that memory, and after it the process is made to say that it may be looked into (`inject`), which its
//! children inherit.
//!
//! # Limitations
//! Where nothing may be traced (Yama's ptrace_scope above 1) or before Linux 5.19, children that such a process makes without executing
//! anything cannot be read, nor can those of one that has changed back from another user, and programs that their user may execute
//! and not read, or that are executed with a real user other than the effective one. They see no `/proc` and `/sys`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use super::super::callers::AsUser;
use super::super::callers::Identity;
use super::super::numbers::CHANGE_USER;
use super::super::sys::bpf::{Action, Rule};
use super::super::sys::memory;
use super::super::sys::notify::{Notification, Reply};
use super::inject::Held;
use super::serve::{Answer, CONTINUE, Server};

/// Longest path in bytes, without its NUL.
const PATH_BYTES: usize = 4095;

/// So many memories are kept open; the process with the lowest id loses its own first.
const MOST: usize = 64;

/// `PR_SET_DUMPABLE`, `SUID_DUMP_USER`.
const DUMPABLE: [u64; 2] = [libc::PR_SET_DUMPABLE as u64, 1];

/// Calls that change users.
pub fn rules() -> Vec<Rule> {
    CHANGE_USER.into_iter().map(|number| Rule::always(number, Action::Notify)).collect()
}

/// Memories that were opened before their processes changed users, by process.
#[derive(Debug, Default)]
pub struct Memories {
    kept: Mutex<BTreeMap<i32, File>>,
    /// One user changes at a time: while one thread of a process does, the others cannot be traced.
    changing: Mutex<()>,
}

impl Memories {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<i32, File>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, process: i32, memory: File) {
        let mut kept = self.lock();
        if kept.len() >= MOST && !kept.contains_key(&process) {
            kept.pop_first();
        }
        kept.insert(process, memory);
    }

    /// The process is going to have another memory.
    pub fn forget(&self, process: i32) {
        self.lock().remove(&process);
    }

    fn with<T>(&self, process: i32, act: impl FnOnce(&File) -> std::io::Result<T>) -> Result<T, Errno> {
        let kept = self.lock();
        let memory = kept.get(&process).ok_or(Errno::PERM)?;
        act(memory).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::FAULT))
    }
}

impl Server<'_> {
    /// Does something with the memory of a thread, as root, as its user, or by what was opened before.
    fn reach<T>(
        &self,
        thread: i32,
        act: impl Fn() -> Result<T, Errno>,
        kept: impl FnOnce(&File) -> std::io::Result<T>,
    ) -> Result<T, Errno> {
        match act() {
            Err(Errno::PERM) => {}
            result => return result,
        }
        let identity = Identity::of(thread).ok_or(Errno::SRCH)?;
        let as_user = {
            let _user = AsUser::new(identity)?;
            act()
        };
        match as_user {
            Err(Errno::PERM) => self.memories.with(identity.process, kept),
            result => result,
        }
    }

    /// The text at `address`; `None` if the memory cannot be read. Such a process is shown the tree alone.
    pub fn text(&self, thread: i32, address: u64) -> Option<Vec<u8>> {
        let read = || memory::read_string(thread, address, PATH_BYTES);
        match self.reach(thread, read, |memory| string_at(memory, address)) {
            Err(Errno::PERM) => self.terminal_of_parent(thread, address),
            text => text.ok(),
        }
    }

    /// The name of a terminal at `address` in the memory of the process that forked this one, as apt(8) has it: it changes to
    /// another user and back, opens a terminal, and a child that nobody may look into opens its other end. A child that has
    /// executed nothing mostly has what its parent has; of other names that is not good enough.
    fn terminal_of_parent(&self, thread: i32, address: u64) -> Option<Vec<u8>> {
        let parent = super::super::members::parent(thread)?;
        let text = self.memories.with(parent, |memory| string_at(memory, address)).ok()?;
        let number = text.strip_prefix(b"/dev/pts/")?;
        (!number.is_empty() && number.iter().all(u8::is_ascii_digit)).then_some(text)
    }

    /// Reads exactly the length of `buffer`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(&self, thread: i32, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let read = || {
            let mut bytes = vec![0; length];
            memory::read_exact(thread, address, &mut bytes).map(|()| bytes)
        };
        self.reach(thread, read, |memory| {
            let mut bytes = vec![0; length];
            memory.read_exact_at(&mut bytes, address).map(|()| bytes)
        })
    }

    /// Writes into memory.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write(&self, thread: i32, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.reach(thread, || memory::write(thread, address, bytes), |memory| memory.write_all_at(bytes, address))
    }

    /// One of [`rules`]; `None` if the call is none of them.
    pub fn change_user(&self, call: &Notification) -> Option<Answer> {
        if !CHANGE_USER.contains(&libc::c_long::from(call.number)) {
            return None;
        }
        let _changing = self.memories.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(identity) = Identity::of(call.thread) else { return Some(CONTINUE) };
        let Ok(_user) = AsUser::new(identity) else { return Some(CONTINUE) };
        if let Ok(memory) = File::options().read(true).write(true).open(format!("/proc/{}/mem", call.thread)) {
            self.memories.keep(identity.process, memory);
        }
        // Whoever may look into it now may also trace it, and who traces it need not ask again.
        let done = self.hold(call, Reply::Continue, |held| {
            // It does not matter whether it works: it is as it was without, then.
            _ = held.call(libc::SYS_prctl, &DUMPABLE);
        });
        Some(if done { Answer::Given } else { CONTINUE })
    }
}

impl Server<'_> {
    /// Answers a call and does something with its thread before that sees the result. `false` if it cannot be done: the call
    /// waits for an answer then. The calling thread must have the thread's ids.
    pub fn hold(&self, call: &Notification, reply: Reply, act: impl FnOnce(&mut Held)) -> bool {
        if self.untraceable.load(Ordering::Relaxed) {
            return false;
        }
        match Held::at_return(self.listener, call, reply) {
            Ok(Some(mut held)) => {
                act(&mut held);
                held.release();
                true
            }
            Ok(None) => true,
            Err(errno) => {
                self.untraceable.fetch_or(errno == Errno::NOSYS, Ordering::Relaxed);
                false
            }
        }
    }
}

fn string_at(memory: &File, address: u64) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut piece = [0; 256];
    loop {
        let length = memory.read_at(&mut piece, address + text.len() as u64)?;
        let read = &piece[..length];
        if let Some(end) = read.iter().position(|&byte| byte == 0) {
            text.extend_from_slice(&read[..end]);
            return if text.len() > PATH_BYTES { Err(Errno::NAMETOOLONG.into()) } else { Ok(text) };
        }
        text.extend_from_slice(read);
        if length == 0 || text.len() > PATH_BYTES {
            return Err(Errno::FAULT.into());
        }
    }
}
