//! What the supervisor knows of each thread of a RUN: the exact state that the kernel keeps for real processes, because every
//! fork, exec and exit passes the tracer before the new thread makes its first call.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::calls::Missed;
use super::descriptors::Descriptors;
use super::ids::Credentials;

/// Working directory, root and umask, which threads share: clone(2), `CLONE_FS`.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Physical path of the working directory; `None` if it is too long to be had.
    pub cwd: Option<Vec<u8>>,
    /// The directory itself.
    pub directory: Arc<OwnedFd>,
    /// When `cwd` was true: [`super::view::View::generation`].
    pub generation: u64,
    /// Physical path of the root: chroot(2).
    pub root: Vec<u8>,
    /// Permission bits that new files do not get.
    pub umask: u32,
}

/// The program that a process runs.
#[derive(Debug)]
pub struct Program {
    /// Physical path.
    pub path: Vec<u8>,
    /// The file.
    pub file: OwnedFd,
}

/// One thread.
#[derive(Debug)]
pub struct Task {
    /// Its own id.
    pub thread: i32,
    /// Id of its process.
    pub process: i32,
    /// Working directory and the like.
    pub surroundings: Arc<Mutex<Surroundings>>,
    /// Whom it plays.
    pub credentials: Mutex<Credentials>,
    /// What it runs, and where supervisor may write in its memory.
    pub image: Mutex<Image>,
    /// The file that the next call of the loader opens.
    pub handed: Mutex<Option<OwnedFd>>,
    /// Whether its call was answered in the way that lets a signal end it.
    pub given_up: AtomicBool,
    /// The answer that it did not wait for; locked while its call is answered.
    pub missed: Mutex<Option<Missed>>,
    /// What its descriptors stand for.
    pub descriptors: Descriptors,
}

/// What exec(3) changes.
#[derive(Debug, Clone)]
pub struct Image {
    /// The program.
    pub program: Arc<Program>,
    /// Memory that belongs to the supervisor.
    pub scratch: Arc<Scratch>,
}

/// Memory in a process that the supervisor writes arguments to.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Where it begins; `None` before the first exec.
    pub begin: Option<u64>,
    /// Who uses which part.
    users: Mutex<[i32; SLOTS]>,
}

/// Parts of the memory, for as many threads that call exec at once.
const SLOTS: usize = 16;

/// Bytes of one part: a path and as many pointers as the arguments of a script can be.
pub const SLOT_BYTES: u64 = 1024 * 1024;

/// Bytes behind the parts for what stays as long as the program runs: its own path.
const KEPT_BYTES: u64 = 8 * 1024;

/// Bytes of the whole. Pages that nobody writes to cost nothing.
pub const SCRATCH_BYTES: u64 = SLOT_BYTES * SLOTS as u64 + KEPT_BYTES;

impl Scratch {
    /// At this address.
    pub fn at(begin: u64) -> Self {
        Self { begin: Some(begin), users: Mutex::default() }
    }

    /// The part that a thread may use until it is done.
    pub fn take(&self, thread: i32) -> Option<u64> {
        let begin = self.begin?;
        let mut users = lock(&self.users);
        let slot =
            users.iter().position(|&user| user == thread).or_else(|| users.iter().position(|&user| user == 0))?;
        users[slot] = thread;
        Some(begin + slot as u64 * SLOT_BYTES)
    }

    /// Ends the use.
    pub fn give_back(&self, thread: i32) {
        for user in lock(&self.users).iter_mut().filter(|user| **user == thread) {
            *user = 0;
        }
    }

    /// Where what stays is kept.
    pub fn kept(begin: u64) -> u64 {
        begin + SLOT_BYTES * SLOTS as u64
    }
}

impl Task {
    /// A thread that this one makes with these flags of clone(2).
    pub fn child(&self, thread: i32, flags: u64) -> Self {
        let has = |flag: i32| flags & u64::from(flag.cast_unsigned()) != 0;
        let surroundings = if has(libc::CLONE_FS) {
            Arc::clone(&self.surroundings)
        } else {
            Arc::new(Mutex::new(lock(&self.surroundings).clone()))
        };
        let mut image = lock(&self.image).clone();
        if !has(libc::CLONE_VM) {
            image.scratch = Arc::new(Scratch { begin: image.scratch.begin, users: Mutex::default() });
        }
        Self {
            thread,
            process: if has(libc::CLONE_THREAD) { self.process } else { thread },
            surroundings,
            credentials: Mutex::new(lock(&self.credentials).clone()),
            image: Mutex::new(image),
            handed: Mutex::default(),
            given_up: AtomicBool::default(),
            missed: Mutex::default(),
            descriptors: self.descriptors.of(thread),
        }
    }

    /// The same after another thread of the process became it by calling exec.
    pub fn renamed(&self, thread: i32) -> Self {
        Self {
            thread,
            process: thread,
            surroundings: Arc::clone(&self.surroundings),
            credentials: Mutex::new(lock(&self.credentials).clone()),
            image: Mutex::new(lock(&self.image).clone()),
            handed: Mutex::new(lock(&self.handed).take()),
            given_up: AtomicBool::default(),
            missed: Mutex::default(),
            descriptors: self.descriptors.of(thread),
        }
    }
}

/// All threads of a RUN.
#[derive(Debug)]
pub struct Tasks {
    known: Mutex<HashMap<i32, Arc<Task>>>,
    /// The first process, which is the command.
    pub command: i32,
}

impl Tasks {
    /// With this thread, the first one.
    pub fn new(first: Task) -> Self {
        let command = first.process;
        Self { known: Mutex::new(HashMap::from([(first.thread, Arc::new(first))])), command }
    }

    /// One thread.
    pub fn get(&self, thread: i32) -> Option<Arc<Task>> {
        lock(&self.known).get(&thread).cloned()
    }

    /// Adds a thread.
    pub fn insert(&self, task: Task) {
        lock(&self.known).insert(task.thread, Arc::new(task));
    }

    /// Takes a thread away.
    pub fn remove(&self, thread: i32) -> Option<Arc<Task>> {
        lock(&self.known).remove(&thread)
    }

    /// A thread of a process.
    pub fn of_process(&self, process: i32) -> Option<Arc<Task>> {
        let tasks = lock(&self.known);
        tasks.get(&process).or_else(|| tasks.values().find(|task| task.process == process)).cloned()
    }

    /// Ids of all processes.
    pub fn processes(&self) -> Vec<i32> {
        let mut ids: Vec<i32> = lock(&self.known).values().map(|task| task.process).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Locks, whoever panicked before: what these locks guard is whole after every statement.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
