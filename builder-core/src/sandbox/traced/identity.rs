//! Calls about ids, capabilities, other processes, and the name of the machine.

use rustix::io::Errno;

use super::super::signals::spares;
use super::calls::{Answer, Answered, DONE};
use super::ids::{Credentials, capability};
use super::tasks::lock;
use super::world::Caller;

/// Bytes of a field of `struct utsname`.
const UTSNAME_BYTES: usize = 65;

/// `_LINUX_CAPABILITY_VERSION_3`; the second is as good, the first has 32 bits.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Most groups that a process can have.
const MAX_GROUPS: u64 = 65_536;

impl Caller<'_> {
    pub fn identity(&self, number: libc::c_long) -> Answered {
        let value = |id: u32| Ok(Answer::Value(id.into()));
        match number {
            libc::SYS_getuid => value(lock(&self.task.credentials).user.real),
            libc::SYS_geteuid => value(lock(&self.task.credentials).user.effective),
            libc::SYS_getgid => value(lock(&self.task.credentials).group.real),
            libc::SYS_getegid => value(lock(&self.task.credentials).group.effective),
            libc::SYS_getresuid => self.three(self.me().user),
            libc::SYS_getresgid => self.three(self.me().group),
            libc::SYS_setuid => self.become_other(|me| me.set_user(self.uint(0))),
            libc::SYS_setgid => self.become_other(|me| me.set_group(self.uint(0))),
            libc::SYS_setreuid => self.become_other(|me| me.set_users(self.uint(0), self.uint(1))),
            libc::SYS_setregid => self.become_other(|me| me.set_groups_ids(self.uint(0), self.uint(1))),
            libc::SYS_setresuid => self.become_other(|me| me.set_all_users([self.uint(0), self.uint(1), self.uint(2)])),
            libc::SYS_setresgid => {
                self.become_other(|me| me.set_all_groups([self.uint(0), self.uint(1), self.uint(2)]))
            }
            libc::SYS_setfsuid => value(lock(&self.task.credentials).set_files_user(self.uint(0))),
            libc::SYS_setfsgid => value(lock(&self.task.credentials).set_files_group(self.uint(0))),
            libc::SYS_getgroups => self.getgroups(),
            libc::SYS_setgroups => self.setgroups(),
            libc::SYS_capget => self.capget(),
            libc::SYS_capset => self.capset(),
            libc::SYS_prctl => self.prctl(),
            libc::SYS_uname => self.uname(),
            libc::SYS_kill => self.kill(self.int(0)),
            libc::SYS_tkill | libc::SYS_rt_sigqueueinfo | libc::SYS_pidfd_open => self.about(self.int(0), true),
            libc::SYS_tgkill | libc::SYS_rt_tgsigqueueinfo => self.about(self.int(0), true),
            libc::SYS_process_vm_readv | libc::SYS_process_vm_writev => self.about(self.int(0), false),
            libc::SYS_prlimit64
            | libc::SYS_sched_setaffinity
            | libc::SYS_sched_setscheduler
            | libc::SYS_sched_setparam
            | libc::SYS_sched_setattr => self.about(self.int(0), false),
            libc::SYS_setpriority => self.prioritise(self.int(0)),
            // The same kinds, counted from 1.
            libc::SYS_ioprio_set => self.prioritise(self.int(0).wrapping_sub(1)),
            // F_SETOWN: whom signals go to.
            libc::SYS_fcntl if self.int(1) == libc::F_SETOWN => match self.int(2) {
                0 => Ok(Answer::Continue),
                group if group < 0 => self.members_of(group.checked_neg()).map(|_| Answer::Continue),
                process => self.about(process, false),
            },
            _ => Err(Errno::PERM),
        }
    }

    /// A process, a group or a user, 0 for the caller's own.
    fn prioritise(&self, kind: i32) -> Answered {
        match (kind, self.int(1)) {
            (0 | 1, 0) => Ok(Answer::Continue),
            (0, process) => self.about(process, false),
            // To the kernel, processes outside have the same user.
            _ => Err(Errno::PERM),
        }
    }

    fn three(&self, ids: super::ids::Ids) -> Answered {
        for (at, id) in [ids.real, ids.effective, ids.saved].into_iter().enumerate() {
            self.write(self.word(at), &id.to_ne_bytes())?;
        }
        DONE
    }

    fn become_other(&self, change: impl FnOnce(&mut Credentials) -> Result<(), Errno>) -> Answered {
        let mut credentials = lock(&self.task.credentials);
        // All or nothing.
        let mut changed = credentials.clone();
        change(&mut changed)?;
        *credentials = changed;
        DONE
    }

    fn getgroups(&self) -> Answered {
        let groups = self.me().groups;
        let size = self.int(0);
        if size < 0 {
            return Err(Errno::INVAL);
        }
        if size > 0 {
            if (size as usize) < groups.len() {
                return Err(Errno::INVAL);
            }
            let bytes: Vec<u8> = groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
            self.write(self.word(1), &bytes)?;
        }
        Ok(Answer::Value(groups.len() as i64))
    }

    fn setgroups(&self) -> Answered {
        let count = self.word(0);
        if count > MAX_GROUPS {
            return Err(Errno::INVAL);
        }
        let bytes = self.read(self.word(1), count as usize * 4)?;
        let groups = bytes.chunks_exact(4).map(|id| u32::from_ne_bytes(id.try_into().expect("four bytes"))).collect();
        self.become_other(|me| me.set_groups(groups))
    }

    /// The version in a header of capget(2), and whose capabilities are meant.
    fn capability_header(&self) -> Result<(bool, i32), Errno> {
        let header = self.read(self.word(0), 8)?;
        let half = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
        match half(0) {
            0x1998_0330 => Ok((false, half(4).cast_signed())),
            0x2007_1026 | CAPABILITY_VERSION => Ok((true, half(4).cast_signed())),
            _ => {
                self.write(self.word(0), &CAPABILITY_VERSION.to_ne_bytes())?;
                Err(Errno::INVAL)
            }
        }
    }

    fn capget(&self) -> Answered {
        let header = self.capability_header();
        if self.word(1) == 0 {
            // Asks for the version.
            return header.map(|_| Answer::Value(0)).or(DONE);
        }
        let (wide, process) = header?;
        let other = match process {
            0 => None,
            process => Some(self.world.tasks.get(process).ok_or(Errno::SRCH)?),
        };
        let credentials = other.map_or_else(|| self.me(), |task| lock(&task.credentials).clone());
        let sets = [credentials.effective, credentials.permitted, credentials.inheritable];
        let mut bytes: Vec<u8> = sets.iter().flat_map(|set| (*set as u32).to_ne_bytes()).collect();
        if wide {
            bytes.extend(sets.iter().flat_map(|set| ((set >> 32) as u32).to_ne_bytes()));
        }
        self.write(self.word(1), &bytes)?;
        DONE
    }

    fn capset(&self) -> Answered {
        let (wide, process) = self.capability_header()?;
        if process != 0 && process != self.task.thread {
            return Err(Errno::PERM);
        }
        let bytes = self.read(self.word(1), if wide { 24 } else { 12 })?;
        let set = |at: usize| {
            let half = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
            let high = if wide { u64::from(half(12 + at)) } else { 0 };
            high << 32 | u64::from(half(at))
        };
        self.become_other(|me| me.set_capabilities(set(0), set(4), set(8)))
    }

    fn prctl(&self) -> Answered {
        let (what, argument) = (self.word(0), self.word(1));
        if what == 38 {
            // PR_SET_NO_NEW_PRIVS: real too, so that PR_GET_NO_NEW_PRIVS says so.
            if argument == 1 {
                lock(&self.task.credentials).no_new_privs = true;
            }
            return Ok(Answer::Continue);
        }
        let mut credentials = lock(&self.task.credentials);
        credentials.control(what, argument, self.word(2)).map(Answer::Value)
    }

    fn uname(&self) -> Answered {
        let uname = rustix::system::uname();
        let name = self.world.hostname.as_bytes();
        let fields = [
            uname.sysname().to_bytes(),
            name,
            uname.release().to_bytes(),
            uname.version().to_bytes(),
            uname.machine().to_bytes(),
        ];
        let mut bytes = Vec::with_capacity(6 * UTSNAME_BYTES);
        for field in fields.into_iter().chain([&b"(none)"[..]]) {
            let start = bytes.len();
            bytes.extend_from_slice(&field[..field.len().min(UTSNAME_BYTES - 1)]);
            bytes.resize(start + UTSNAME_BYTES, 0);
        }
        self.write(self.word(0), &bytes)?;
        DONE
    }

    /// A call about another process: only those of this RUN exist.
    fn about(&self, process: i32, signal: bool) -> Answered {
        if process == 0 {
            return Ok(Answer::Continue);
        }
        let tasks = &self.world.tasks;
        let task = tasks.get(process).or_else(|| tasks.of_process(process)).ok_or(Errno::SRCH)?;
        if task.process != self.task.process {
            let me = self.me();
            let target = lock(&task.credentials).user;
            let same = [me.user.real, me.user.effective].iter().any(|id| [target.real, target.saved].contains(id));
            if !same && !me.can(if signal { capability::KILL } else { 19 }) {
                return Err(Errno::PERM);
            }
        }
        Ok(Answer::Continue)
    }

    fn kill(&self, target: i32) -> Answered {
        let (command, signal) = (self.world.tasks.command, self.int(1));
        match target {
            // Everybody but the caller, and process 1.
            -1 => {
                let mut others = self.world.tasks.processes();
                others.retain(|&process| process != self.task.process && process != command);
                self.send(&others)
            }
            // A group, the own one with 0. The RUN has a session of its own, so a group with one of its processes has no others.
            ..=0 => {
                let members =
                    self.members_of(if target == 0 { group_of(self.task.process) } else { target.checked_neg() })?;
                match members.contains(&command) && spares(command, signal) {
                    true => self.send(&members),
                    false => Ok(Answer::Continue),
                }
            }
            _ if target == command && spares(command, signal) => self.send(&[target]),
            process => self.about(process, true),
        }
    }

    /// The processes of a group, of which there is at least one.
    fn members_of(&self, group: Option<i32>) -> Result<Vec<i32>, Errno> {
        let mut members = self.world.tasks.processes();
        members.retain(|&process| group.is_some() && group_of(process) == group);
        if members.is_empty() { Err(Errno::SRCH) } else { Ok(members) }
    }

    /// A signal to each of them for whom the caller may; the command is spared.
    fn send(&self, processes: &[i32]) -> Answered {
        let signal = rustix::process::Signal::from_named_raw(self.int(1));
        let mut sent = Err(Errno::SRCH);
        for &process in processes {
            let Some(pid) = rustix::process::Pid::from_raw(process) else { continue };
            let done = self.about(process, true).and_then(|_| match signal {
                Some(signal) if process != self.world.tasks.command => rustix::process::kill_process(pid, signal),
                _ => rustix::process::test_kill_process(pid),
            });
            sent = if done.is_ok() || sent.is_ok() { DONE } else { Err(done.err().unwrap_or(Errno::SRCH)) };
        }
        sent
    }
}

fn group_of(process: i32) -> Option<i32> {
    rustix::process::getpgid(rustix::process::Pid::from_raw(process)).ok().map(|group| group.as_raw_nonzero().get())
}
