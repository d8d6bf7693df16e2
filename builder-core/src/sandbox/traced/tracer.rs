//! The tracer: one thread that sees every fork, exec, exit and signal, and rewrites the calls that a process must make itself.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::ExitStatus;
use super::super::sys::memory;
use super::super::sys::notify::Notification;
use super::super::sys::ptrace::{self, Registers, Stop};
use super::calls::HANDED;
use super::exec::{self, Loading, Plan, Started};
use super::filter::Rewrite;
use super::held::Directory;
use super::interrupted;
use super::tasks::{Task, lock};
use super::view::own_path;
use super::world::{Caller, NewMode, World};

/// Longest address of a Unix socket, in bytes: unix(7).
const UNIX_BYTES: usize = 110;

/// What a thread is in the middle of.
enum Work {
    /// An exec that the kernel is about to do.
    Executing(Box<Plan>),
    /// Behind an exec.
    Loading(Box<Loading>),
    /// A call whose path is replaced.
    Rewriting(Box<Rewriting>),
    /// A call whose answer is looked at, as it was made.
    Asking(Box<Registers>),
    /// On the way to the handler of a signal, as it was before.
    Handling(Box<Registers>),
}

/// A call that names a file. The thread is given a descriptor of it, makes the call with a path to that descriptor, and
/// closes it again.
struct Rewriting {
    before: Registers,
    step: Step,
    /// How the call is made once the number of the descriptor is known.
    change: Change,
    descriptor: i64,
    result: i64,
    /// For a socket that was made: its directory and name, to give it owner and mode.
    made: Option<(Directory, Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Opening,
    Calling,
    Called,
    Closing,
    Closed,
}

/// What of the call is replaced.
enum Change {
    /// An address at `pointer`, its length at `length`; `name` comes behind the descriptor.
    Address { pointer: usize, length: usize, name: Vec<u8> },
    /// A path at argument 1, flags of which some are taken away at argument 2.
    Watch { name: Vec<u8> },
    /// The name in a `struct msghdr` at argument 1.
    Message { name: Vec<u8> },
}

fn kill_process(process: i32) {
    if let Some(process) = rustix::process::Pid::from_raw(process) {
        // ESRCH: it is dying.
        _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
    }
}

/// One RUN's tracer.
pub struct Tracer<'a> {
    pub world: &'a World,
    /// The process whose end is the RUN's.
    pub main: i32,
    /// Gets a line for the RUN's output.
    pub complain: &'a dyn Fn(&str),
    /// Set from outside: everything is to end.
    pub cancelled: &'a AtomicBool,
    work: HashMap<i32, Work>,
    /// Threads that stopped before their parent told of them, which it never does if it is killed in between.
    early: HashSet<i32>,
    status: Option<ExitStatus>,
}

impl<'a> Tracer<'a> {
    pub fn new(world: &'a World, main: i32, complain: &'a dyn Fn(&str), cancelled: &'a AtomicBool) -> Self {
        Self { world, main, complain, cancelled, work: HashMap::new(), early: HashSet::new(), status: None }
    }

    /// Traces until nothing is left; how the main process ended.
    pub fn run(mut self) -> Option<ExitStatus> {
        loop {
            match ptrace::wait(true) {
                Ok(Some((thread, stop))) => self.stopped(thread, stop),
                Ok(None) => {}
                Err(_) => return self.status,
            }
        }
    }

    fn stopped(&mut self, thread: i32, stop: Stop) {
        // ESRCH: it was killed meanwhile, which a later event tells.
        let _: Result<(), Errno> = match stop {
            Stop::Ended(status) => {
                self.ended(thread, status);
                Ok(())
            }
            Stop::Fork => self.forked(thread),
            Stop::Seccomp => self.rewrite(thread),
            Stop::Exec => self.executed(thread),
            Stop::Call => self.called(thread),
            Stop::Group(_) if self.world.tasks.get(thread).is_some() => ptrace::listen(thread),
            Stop::Group(_) | Stop::Trap => match self.world.tasks.get(thread) {
                Some(_) => ptrace::go(thread, 0),
                None => {
                    self.early.insert(thread);
                    if self.ends() {
                        self.kill_all();
                    }
                    Ok(())
                }
            },
            Stop::Signal(signal) => self.signalled(thread, signal),
        };
    }

    fn ended(&mut self, thread: i32, status: ExitStatus) {
        self.work.remove(&thread);
        self.early.remove(&thread);
        if let Some(task) = self.world.tasks.remove(thread) {
            lock(&task.image).scratch.give_back(thread);
        }
        if thread == self.main {
            self.status = Some(status);
        }
        if self.ends() {
            self.kill_all();
        } else {
            for orphan in self.early.iter().filter(|thread| self.is_orphan(**thread)) {
                kill_process(*orphan);
            }
        }
    }

    /// Whether everything that is left is to be ended.
    fn ends(&self) -> bool {
        self.status.is_some() || self.cancelled.load(Ordering::Relaxed)
    }

    fn kill_all(&self) {
        self.world.tasks.processes().into_iter().chain(self.early.iter().copied()).for_each(kill_process);
    }

    /// Whether nobody is left who could tell whose child a new thread is: it dies with its parent then, which did not see
    /// it either.
    fn is_orphan(&self, thread: i32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<i32>().ok());
        let (Some(process), Some(parent)) = (field("Tgid:"), field("PPid:")) else { return false };
        let origin = if process == thread { parent } else { process };
        // Of this process's children the first is the RUN's, and further ones are its doing (clone(2), CLONE_PARENT).
        origin != rustix::process::getpid().as_raw_nonzero().get() && self.world.tasks.of_process(origin).is_none()
    }

    fn forked(&mut self, thread: i32) -> Result<(), Errno> {
        let new = ptrace::message(thread)? as i32;
        let parent = self.world.tasks.get(thread).ok_or(Errno::SRCH)?;
        let registers = Registers::of(thread)?;
        let flags = match libc::c_long::try_from(registers.number()).unwrap_or_default() {
            libc::SYS_clone => registers.argument(0),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_vfork => libc::CLONE_VM as u64,
            _ => 0,
        };
        self.world.tasks.insert(parent.child(new, flags));
        if self.early.remove(&new) {
            _ = ptrace::go(new, 0);
        }
        if self.ends() {
            self.kill_all();
        }
        ptrace::go(thread, 0)
    }

    fn signalled(&mut self, thread: i32, signal: i32) -> Result<(), Errno> {
        let Some(task) = self.world.tasks.get(thread) else { return ptrace::go(thread, signal) };
        if signal == libc::SIGSYS && ptrace::trapped_call(thread)?.map(Into::into) == Some(libc::SYS_chroot) {
            let mut registers = Registers::of(thread)?;
            let done = self.caller(task, &registers).chroot();
            registers.set_result(done.map_or_else(|errno| -i64::from(errno.raw_os_error()), |()| 0));
            registers.set(thread)?;
            return ptrace::go(thread, 0);
        }
        match self.work.remove(&thread) {
            // There is no program to go back to if that fails: execve(2), "SIGKILL".
            Some(Work::Loading(loading)) if signal == libc::SIGTRAP => match loading.end(&task) {
                Ok(()) => ptrace::go(thread, 0),
                Err(_) => self.kill(thread),
            },
            Some(Work::Handling(before)) if signal == libc::SIGTRAP => interrupted::at_handler(thread, &before),
            None | Some(Work::Handling(_)) => {
                let before = interrupted::deliver(&task, signal)?;
                self.work.extend(before.map(|before| (thread, Work::Handling(Box::new(before)))));
                Ok(())
            }
            Some(other) => {
                self.work.insert(thread, other);
                ptrace::go(thread, signal)
            }
        }
    }

    fn kill(&self, thread: i32) -> Result<(), Errno> {
        let process = self.world.tasks.get(thread).map_or(thread, |task| task.process);
        _ = ptrace::kill_thread(process, thread, libc::SIGKILL);
        ptrace::go(thread, 0)
    }

    /// Makes the call that a thread is about to make fail.
    fn refuse(thread: i32, mut registers: Registers, errno: Errno) -> Result<(), Errno> {
        registers.set_result(-i64::from(errno.raw_os_error()));
        registers.set(thread)?;
        registers.set_entering(thread, -1)?;
        ptrace::go(thread, 0)
    }

    /// A call as `calls` sees it.
    fn caller(&self, task: Arc<Task>, registers: &Registers) -> Caller<'a> {
        let arguments = std::array::from_fn(|at| registers.argument(at));
        let number = i32::try_from(registers.number()).unwrap_or(-1);
        let thread = task.thread;
        let call = Notification { id: 0, thread, architecture: 0, number, arguments };
        Caller { world: self.world, task, call }
    }

    fn rewrite(&mut self, thread: i32) -> Result<(), Errno> {
        if let Some(Work::Rewriting(work)) = self.work.get_mut(&thread)
            && work.step == Step::Calling
        {
            work.step = Step::Called;
            return ptrace::go_to_call(thread);
        }
        let task = self.world.tasks.get(thread).ok_or(Errno::SRCH)?;
        let registers = Registers::of(thread)?;
        let caller = self.caller(Arc::clone(&task), &registers);
        match Rewrite::from_message(ptrace::message(thread)?) {
            Some(Rewrite::Exec) => {
                let planned = caller.plan(registers, self.complain);
                let ready = planned.and_then(|plan| plan.arguments(&task).map(|registers| (plan, registers)));
                match ready {
                    Ok((plan, changed)) => {
                        self.world.settle();
                        self.work.insert(thread, Work::Executing(Box::new(plan)));
                        changed.set(thread)?;
                        changed.set_entering(thread, libc::SYS_execve)?;
                        ptrace::go_to_call(thread)
                    }
                    Err(errno) => Self::refuse(thread, registers, errno),
                }
            }
            Some(Rewrite::Peer) => {
                if registers.argument(1) as i32 != libc::SOL_SOCKET {
                    return ptrace::go(thread, 0);
                }
                self.work.insert(thread, Work::Asking(Box::new(registers)));
                ptrace::go_to_call(thread)
            }
            Some(rewrite) => match self.change(&caller, rewrite, &registers) {
                Ok(None) => ptrace::go(thread, 0),
                Ok(Some((file, change, made))) => {
                    *lock(&task.handed) = Some(file);
                    let mut opening = registers;
                    opening.set_argument(0, libc::AT_FDCWD as i64 as u64);
                    opening.set_argument(1, HANDED);
                    opening.set_argument(2, libc::O_CLOEXEC as u64);
                    let work =
                        Rewriting { before: registers, step: Step::Opening, change, descriptor: -1, result: 0, made };
                    self.work.insert(thread, Work::Rewriting(Box::new(work)));
                    opening.set(thread)?;
                    opening.set_entering(thread, libc::SYS_openat)?;
                    ptrace::go_to_call(thread)
                }
                Err(errno) => Self::refuse(thread, registers, errno),
            },
            None => ptrace::go(thread, 0),
        }
    }

    /// What of a call is to be replaced, and by which file; `None` if it names none.
    #[allow(clippy::type_complexity, reason = "taken apart at once")]
    fn change(
        &self,
        caller: &Caller<'_>,
        rewrite: Rewrite,
        registers: &Registers,
    ) -> Result<Option<(OwnedFd, Change, Option<(Directory, Vec<u8>, Vec<u8>)>)>, Errno> {
        match rewrite {
            Rewrite::Watch => {
                let path = caller.path(1)?;
                let follow = registers.argument(2) as u32 & libc::IN_DONT_FOLLOW == 0;
                let (directory, name, _) = self.beside(caller, &path, follow, |_, _| Ok(()))?;
                Ok(Some((directory, Change::Watch { name }, None)))
            }
            Rewrite::Connect | Rewrite::Bind => {
                let sends = registers.number() == libc::SYS_sendto;
                let (pointer, length) = if sends { (4, 5) } else { (1, 2) };
                let Some(path) = unix_path(caller, registers.argument(pointer), registers.argument(length))? else {
                    return Ok(None);
                };
                if rewrite == Rewrite::Connect {
                    let (directory, name) = self.socket(caller, &path)?;
                    return Ok(Some((directory, Change::Address { pointer, length, name }, None)));
                }
                let me = caller.me();
                let (directory, name, mount) = self
                    .beside(caller, &path, false, |place, parent| {
                        if place.mount.readonly {
                            return Err(Errno::ROFS);
                        }
                        caller.change(place.mount, parent, None, &me)?;
                        place.tell(&caller.world.view);
                        Ok(())
                    })
                    .map_err(|errno| if errno == Errno::EXIST { Errno::ADDRINUSE } else { errno })?;
                let again = super::view::reopen(directory.as_fd(), OFlags::PATH, Mode::empty())?;
                let change = Change::Address { pointer, length, name: name.clone() };
                Ok(Some((directory, change, Some((again.into(), name, mount)))))
            }
            Rewrite::Message => {
                let many = registers.number() == libc::SYS_sendmmsg;
                let count = if many { registers.argument(2).min(1024) } else { 1 };
                for at in 0..count {
                    // struct mmsghdr is 64 bytes, with a struct msghdr of 56 in front.
                    let head = caller.read(registers.argument(1) + at * 64, 12)?;
                    let name = u64::from_ne_bytes(head[..8].try_into().expect("eight bytes"));
                    let length = u32::from_ne_bytes(head[8..12].try_into().expect("four bytes"));
                    let path = if name == 0 { None } else { unix_path(caller, name, length.into())? };
                    if let Some(path) = path {
                        if many {
                            return Err(Errno::ACCESS);
                        }
                        let (directory, name) = self.socket(caller, &path)?;
                        return Ok(Some((directory, Change::Message { name }, None)));
                    }
                }
                Ok(None)
            }
            Rewrite::Exec | Rewrite::Peer => Ok(None),
        }
    }

    /// The directory that a path's last name is in, to be given away (which `O_PATH` descriptors cannot be); the name, empty
    /// if the path is the directory itself; and what it is mounted on.
    fn beside(
        &self,
        caller: &Caller<'_>,
        path: &[u8],
        follow: bool,
        check: impl Fn(&super::view::Place<'_>, &Directory) -> Result<(), Errno>,
    ) -> Result<(OwnedFd, Vec<u8>, Vec<u8>), Errno> {
        caller.at(super::world::HERE, path, follow, |place| {
            if follow {
                // A link at the end is an error here, so that it is followed.
                place.open(OFlags::PATH, Mode::empty())?;
            }
            let target = place.mount.target.clone();
            let (directory, name) = match place.parent(&caller.world.view) {
                Ok((parent, name)) => {
                    check(place, &parent)?;
                    (parent, std::os::unix::ffi::OsStrExt::as_bytes(name).to_vec())
                }
                Err(Errno::BUSY) => {
                    (Arc::new(place.open(OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?.into()), Vec::new())
                }
                Err(errno) => return Err(errno),
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            Ok((super::view::reopen(directory.as_fd(), flags, Mode::empty())?, name, target))
        })
    }

    /// A socket that may be written to.
    fn socket(&self, caller: &Caller<'_>, path: &[u8]) -> Result<(OwnedFd, Vec<u8>), Errno> {
        let file = caller.reach(super::world::HERE, path, true, false)?;
        let me = caller.me();
        let shown = caller.world.shown(&file.real, file.mount, &me);
        caller.allow(&shown, super::permission::may::WRITE, &me)?;
        let mounted = file.mount.filter(|mount| !mount.directory);
        if let Some(mount) = mounted {
            // A socket that is mounted by itself, such as an agent's: its own directory on the host is given for the moment.
            let host =
                std::path::PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&mount.host));
            let (directory, name) = host.parent().zip(host.file_name()).ok_or(Errno::NOENT)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::open(directory, flags, Mode::empty())?;
            return Ok((directory, std::os::unix::ffi::OsStrExt::as_bytes(name).to_vec()));
        }
        let (directory, name, _) = self.beside(caller, path, true, |_, _| Ok(()))?;
        Ok((directory, name))
    }

    /// Entry to or return from a call.
    fn called(&mut self, thread: i32) -> Result<(), Errno> {
        let task = self.world.tasks.get(thread).ok_or(Errno::SRCH)?;
        match self.work.remove(&thread) {
            // The kernel refused: E2BIG and the like.
            Some(Work::Executing(plan)) => {
                let mut registers = plan.before;
                registers.set_result(Registers::of(thread)?.result());
                lock(&task.image).scratch.give_back(thread);
                registers.set(thread)?;
                ptrace::go(thread, 0)
            }
            Some(Work::Rewriting(work)) => self.next_step(&task, *work),
            Some(Work::Asking(before)) => {
                if Registers::of(thread)?.result() == 0 {
                    // What cannot be written to is the caller's business: the kernel could.
                    _ = self.caller(task, &before).show_peer();
                }
                ptrace::go(thread, 0)
            }
            Some(other) => {
                self.work.insert(thread, other);
                ptrace::go(thread, 0)
            }
            None => ptrace::go(thread, 0),
        }
    }

    fn next_step(&mut self, task: &Task, mut work: Rewriting) -> Result<(), Errno> {
        let thread = task.thread;
        match work.step {
            Step::Opening => {
                work.descriptor = Registers::of(thread)?.result();
                if work.descriptor < 0 {
                    lock(&task.handed).take();
                    work.result = work.descriptor;
                    return Self::finish(self.world, task, work);
                }
                let mut calling = work.before;
                let prepared = work.change.apply(task, &mut calling, work.descriptor);
                if let Err(errno) = prepared {
                    work.result = -i64::from(errno.raw_os_error());
                    return self.close(task, work);
                }
                let number = work.before.number();
                calling.again(number);
                calling.set(thread)?;
                work.step = Step::Calling;
                self.work.insert(thread, Work::Rewriting(Box::new(work)));
                // To the stop of the filter.
                ptrace::go(thread, 0)
            }
            Step::Called => {
                work.result = Registers::of(thread)?.result();
                self.close(task, work)
            }
            Step::Closing => {
                // The entry; the return comes next.
                work.step = Step::Closed;
                self.work.insert(thread, Work::Rewriting(Box::new(work)));
                ptrace::go_to_call(thread)
            }
            Step::Closed => Self::finish(self.world, task, work),
            Step::Calling => {
                self.work.insert(thread, Work::Rewriting(Box::new(work)));
                ptrace::go(thread, 0)
            }
        }
    }

    fn close(&mut self, task: &Task, mut work: Rewriting) -> Result<(), Errno> {
        let mut closing = work.before;
        closing.set_argument(0, work.descriptor.cast_unsigned());
        closing.again(libc::SYS_close);
        closing.set(task.thread)?;
        work.step = Step::Closing;
        self.work.insert(task.thread, Work::Rewriting(Box::new(work)));
        ptrace::go_to_call(task.thread)
    }

    fn finish(world: &World, task: &Task, work: Rewriting) -> Result<(), Errno> {
        lock(&task.image).scratch.give_back(task.thread);
        if let (0, Some((directory, name, mount))) = (work.result, &work.made) {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(name);
            if let Ok(socket) = rustix::fs::openat(directory, name, flags, Mode::empty())
                && let Some(mount) = world.view.mounts().iter().rfind(|known| &known.target == mount)
            {
                let shown = 0o777 & !lock(&task.surroundings).umask;
                _ = rustix::fs::chmod(own_path(socket.as_fd()), Mode::from_raw_mode(shown | 0o600));
                let call = Notification { id: 0, thread: task.thread, architecture: 0, number: 0, arguments: [0; 6] };
                if let Some(task) = world.tasks.get(task.thread) {
                    let caller = Caller { world, task, call };
                    let new = NewMode { told: Some(shown), ..caller.modes(0o777, false) };
                    _ = caller.made(mount, directory, &socket, Some(new));
                }
            }
        }
        let mut registers = work.before;
        registers.set_result(work.result);
        registers.set(task.thread)?;
        ptrace::go(task.thread, 0)
    }

    fn executed(&mut self, thread: i32) -> Result<(), Errno> {
        let former = ptrace::message(thread)? as i32;
        if former != thread {
            // Another thread of the process has called exec: it is the process now, under the process's id.
            if let Some(task) = self.world.tasks.remove(former) {
                self.world.tasks.remove(thread);
                self.world.tasks.insert(task.renamed(thread));
            }
            if let Some(work) = self.work.remove(&former) {
                self.work.insert(thread, work);
            }
        }
        let task = self.world.tasks.get(thread).ok_or(Errno::SRCH)?;
        lock(&task.image).scratch.give_back(former);
        let Some(Work::Executing(plan)) = self.work.remove(&thread) else {
            // Nothing is executed that was not planned.
            return self.kill(thread);
        };
        // The path lay in memory that other threads could change. Nothing of the new program has run yet.
        let executed = rustix::fs::readlinkat(rustix::fs::CWD, format!("/proc/{thread}/exe"), Vec::new())?;
        if executed.as_bytes() != plan.host() {
            return self.kill(thread);
        }
        match exec::begin(&task, *plan) {
            Ok(Started::Loading(loading)) => {
                self.work.insert(thread, Work::Loading(loading));
                ptrace::go(thread, 0)
            }
            Ok(Started::Running) => ptrace::go(thread, 0),
            Err(_) => self.kill(thread),
        }
    }
}

impl Change {
    /// Writes the new path and makes the call use it.
    fn apply(&self, task: &Task, registers: &mut Registers, descriptor: i64) -> Result<(), Errno> {
        let room = exec::room(task, registers)?;
        let mut path = format!("/proc/self/fd/{descriptor}").into_bytes();
        let (Self::Address { name, .. } | Self::Watch { name } | Self::Message { name }) = self;
        if !name.is_empty() {
            path.push(b'/');
            path.extend(name);
        }
        match self {
            Self::Watch { .. } => {
                path.push(0);
                memory::write(task.thread, room, &path)?;
                registers.set_argument(1, room);
                if name.is_empty() {
                    // The path ends in a link of /proc.
                    registers.set_argument(2, registers.argument(2) & !u64::from(libc::IN_DONT_FOLLOW));
                }
            }
            Self::Address { pointer, length, .. } => {
                let address = unix_address(&path)?;
                memory::write(task.thread, room, &address)?;
                registers.set_argument(*pointer, room);
                registers.set_argument(*length, address.len() as u64);
            }
            Self::Message { .. } => {
                let address = unix_address(&path)?;
                let mut header = [0; 56];
                memory::read_exact(task.thread, registers.argument(1), &mut header)?;
                header[..8].copy_from_slice(&(room + 64).to_ne_bytes());
                header[8..12].copy_from_slice(&(address.len() as u32).to_ne_bytes());
                memory::write(task.thread, room, &header)?;
                memory::write(task.thread, room + 64, &address)?;
                registers.set_argument(1, room);
            }
        }
        Ok(())
    }
}

/// `struct sockaddr_un` with a path.
fn unix_address(path: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend(path);
    address.push(0);
    if address.len() > UNIX_BYTES { Err(Errno::NAMETOOLONG) } else { Ok(address) }
}

/// The path in an address; `None` if it is none of a Unix socket, or one without a path.
fn unix_path(caller: &Caller<'_>, address: u64, length: u64) -> Result<Option<Vec<u8>>, Errno> {
    let length = usize::try_from(length as u32).unwrap_or(usize::MAX).min(UNIX_BYTES);
    if address == 0 || length < 3 {
        return Ok(None);
    }
    let bytes = caller.read(address, length)?;
    if u16::from_ne_bytes([bytes[0], bytes[1]]) != libc::AF_UNIX as u16 || bytes[2] == 0 {
        return Ok(None);
    }
    let path = &bytes[2..];
    Ok(Some(path[..path.iter().position(|&byte| byte == 0).unwrap_or(path.len())].to_vec()))
}
