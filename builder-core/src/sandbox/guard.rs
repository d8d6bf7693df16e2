//! Calls that name other processes by their number, of commands that have no pid namespace which would keep them in: each is
//! answered by who asks for whom. The number comes in a register, so the kernel may go on with the call once it is known to
//! mean a process of the RUN.
//!
//! Three kinds of calls do not name processes by a number. A descriptor may stand for a process (`pidfd_send_signal`), and
//! another thread may put another one in its place meanwhile: such a signal is sent by this process, by a descriptor of its own.
//! The owner of a descriptor (`F_SETOWN_EX`, `FIOSETOWN`), who gets signals on its behalf, is named in memory: that
//! is refused. All this is left to the kernel where Landlock keeps signals in (version 6, Linux 6.12). The third kind are files
//! of `/proc`, which the kernel shows and lets be written to by its own rules (ptrace(2), "Ptrace access mode checking").

use std::fs;

use rustix::io::Errno;

use super::callers::{AsUser, Identity};
use super::members::{Members, group_of};
use super::signals::spares;
use super::sys::bpf::{self, Action, Rule, When};
use super::sys::notify::{Listener, Notification, Reply};
use super::sys::{memory, raw};

/// What a call names, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// A process in its first argument; the caller with 0.
    Process,
    /// The same, and nothing but a signal or a descriptor for one comes of it.
    Signalled,
    /// A process, a group or everybody: kill(2).
    Anybody,
    /// A process in its second argument: ptrace(2).
    Traced,
    /// A process, a group or a user, by a kind that begins with this number.
    Kind(u64),
    /// A process, by a descriptor.
    Descriptor,
    /// A process or a group that is to own a descriptor: fcntl(2).
    Owner,
    /// The same in memory: ioctl(2).
    OwnerInMemory,
}

/// A call, its number for programs of this machine and for 32-bit ones (i386 or arm), and what it names.
struct Call(libc::c_long, u32, Names);

/// The number of one machine or the other.
const fn either(i386: u32, arm: u32) -> u32 {
    if cfg!(target_arch = "x86_64") { i386 } else { arm }
}

/// All of them, but for those that name only what the kernel asks permission for as it does for tracing, beside ptrace itself
/// and process_vm_readv, where it has been a little wider once.
const CALLS: [Call; 20] = [
    Call(libc::SYS_kill, 37, Names::Anybody),
    Call(libc::SYS_tkill, 238, Names::Signalled),
    Call(libc::SYS_tgkill, either(270, 268), Names::Signalled),
    Call(libc::SYS_rt_sigqueueinfo, 178, Names::Signalled),
    Call(libc::SYS_rt_tgsigqueueinfo, either(335, 363), Names::Signalled),
    Call(libc::SYS_pidfd_open, 434, Names::Signalled),
    Call(libc::SYS_pidfd_send_signal, 424, Names::Descriptor),
    Call(libc::SYS_ptrace, 26, Names::Traced),
    Call(libc::SYS_process_vm_readv, either(347, 376), Names::Process),
    Call(libc::SYS_process_vm_writev, either(348, 377), Names::Process),
    Call(libc::SYS_prlimit64, either(340, 369), Names::Process),
    Call(libc::SYS_sched_setaffinity, 241, Names::Process),
    Call(libc::SYS_sched_setscheduler, 156, Names::Process),
    Call(libc::SYS_sched_setparam, 154, Names::Process),
    Call(libc::SYS_sched_setattr, either(351, 380), Names::Process),
    Call(libc::SYS_setpriority, 97, Names::Kind(0)),
    Call(libc::SYS_ioprio_set, either(289, 314), Names::Kind(1)),
    Call(libc::SYS_fcntl, 55, Names::Owner),
    // fcntl64, which this machine's own programs do not have.
    Call(libc::SYS_fcntl, 221, Names::Owner),
    Call(libc::SYS_ioctl, 54, Names::OwnerInMemory),
];

/// `F_SETOWN`, and `F_SETOWN_EX`, whose argument is in memory.
const OWNERS: [u32; 2] = [libc::F_SETOWN as u32, 15];

/// `FIOSETOWN` and `SIOCSPGRP`, asm-generic/sockios.h.
const OWNERS_IN_MEMORY: [u32; 2] = [0x8901, 0x8902];

/// `PTRACE_TRACEME`: the caller asks for its parent.
const TRACE_ME: u64 = 0;

/// What keeps signals in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The kernel, by Landlock.
    Kernel,
    /// This process alone.
    Guard,
}

impl Names {
    fn when(self, scope: Scope) -> Option<When> {
        let scoped = scope == Scope::Kernel;
        Some(match self {
            Self::Process => When::NotZero(0),
            Self::Descriptor | Self::Owner | Self::OwnerInMemory if scoped => return None,
            Self::Owner => When::OneOf(1, OWNERS.to_vec()),
            Self::OwnerInMemory => When::OneOf(1, OWNERS_IN_MEMORY.to_vec()),
            Self::Signalled | Self::Anybody | Self::Traced | Self::Kind(_) | Self::Descriptor => When::Always,
        })
    }
}

/// Marks these calls of this machine's own programs.
pub fn rules(scope: Scope) -> Vec<Rule> {
    let mark = |Call(number, _, names): &Call| Some(Rule::when(*number, names.when(scope)?, Action::Notify));
    CALLS.iter().filter_map(mark).collect()
}

/// Marks them of 32-bit programs.
pub fn foreign_rules(scope: Scope) -> Vec<Rule> {
    let mark = |Call(_, number, names): &Call| Some(Rule::when((*number).into(), names.when(scope)?, Action::Notify));
    CALLS.iter().filter_map(mark).collect()
}

/// Decides about them for the processes of one RUN.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    /// The processes of the RUN.
    pub members: Members,
    /// Its command, the first of them.
    pub command: i32,
    /// What keeps signals in.
    pub scope: Scope,
    /// Whether its processes may make pid namespaces, whose numbers lead nowhere else.
    pub may_nest: bool,
}

impl Guard {
    /// The answer; `None` for a call that names no process.
    pub fn answer(&self, listener: &Listener, call: &Notification) -> Option<Reply> {
        let native = call.architecture == bpf::NATIVE;
        let is = |Call(ours, theirs, _): &&Call| {
            if native { *ours == libc::c_long::from(call.number) } else { i64::from(*theirs) == i64::from(call.number) }
        };
        let Call(_, _, names) = CALLS.iter().find(is)?;
        let [a, b, c, ..] = call.arguments;
        // Arguments of other commands of these two are not looked at.
        match names {
            Names::Owner if !OWNERS.contains(&(b as u32)) => return None,
            Names::OwnerInMemory if !OWNERS_IN_MEMORY.contains(&(b as u32)) => return None,
            _ => {}
        }
        if self.may_nest && *names != Names::Descriptor && is_elsewhere(call.thread) {
            return Some(Reply::Continue);
        }
        Some(match names {
            Names::Process | Names::Signalled => self.one(a as i32, call.thread),
            Names::Anybody => self.kill(call, a as i32, b as i32),
            Names::Traced if a == TRACE_ME || self.members.contains(b as i32) => Reply::Continue,
            Names::Traced => Reply::Error(Errno::PERM),
            Names::Kind(first) => match (a as u32 as u64).wrapping_sub(*first) {
                0 => self.one(b as i32, call.thread),
                1 if b as i32 == 0 || !self.members.of_group(b as i32).is_empty() => Reply::Continue,
                _ => Reply::Error(Errno::PERM),
            },
            Names::Descriptor => self.signal_by_descriptor(listener, call),
            _ if self.scope == Scope::Kernel => Reply::Continue,
            Names::Owner if b as i32 == libc::F_SETOWN && c as i32 >= 0 => self.one(c as i32, call.thread),
            Names::Owner if b as i32 == libc::F_SETOWN => self.group((c as i32).saturating_neg()),
            Names::Owner | Names::OwnerInMemory => Reply::Error(Errno::PERM),
        })
    }

    fn one(&self, id: i32, caller: i32) -> Reply {
        let ours = id == 0 || id == caller || self.members.contains(id);
        if ours { Reply::Continue } else { Reply::Error(Errno::SRCH) }
    }

    /// Whether one of ours is in a group.
    fn group(&self, group: i32) -> Reply {
        if self.members.of_group(group).is_empty() { Reply::Error(Errno::SRCH) } else { Reply::Continue }
    }

    fn kill(&self, call: &Notification, id: i32, signal: i32) -> Reply {
        let all = |ids: Vec<i32>| self.send(call, &ids, signal).map_or_else(Reply::Error, |()| Reply::Value(0));
        match id {
            // Everybody but the caller, and process 1.
            -1 => {
                let own = Identity::of(call.thread).map_or(call.thread, |identity| identity.process);
                let mut others = self.members.list();
                others.retain(|&id| id != own && id != self.command);
                all(others)
            }
            // A group, the own one with 0: sessions of a RUN hold nobody else. The kernel does it unless the command is in it.
            ..=0 => {
                let group = if id == 0 { group_of(call.thread) } else { id.checked_neg() };
                let Some(group) = group else { return Reply::Error(Errno::SRCH) };
                match group_of(self.command) == Some(group) && spares(self.command, signal) {
                    true => all(self.members.of_group(group)),
                    false if id == 0 => Reply::Continue,
                    false => self.group(group),
                }
            }
            _ if id == self.command && spares(id, signal) => all(vec![id]),
            _ => self.one(id, call.thread),
        }
    }

    /// To each of them for whom the caller may; to the command, which is spared, only as a question.
    fn send(&self, call: &Notification, ids: &[i32], signal: i32) -> Result<(), Errno> {
        let identity = Identity::of(call.thread).ok_or(Errno::SRCH)?;
        let members = ids.iter().filter_map(|&id| {
            let signal = if id == self.command { 0 } else { signal };
            Some((self.members.descriptor(id)?, signal))
        });
        let members: Vec<_> = members.collect();
        let _user = AsUser::new(identity)?;
        let mut result = Err(Errno::SRCH);
        for (member, signal) in &members {
            match raw::send_signal(member, *signal, None, 0) {
                Ok(()) => result = Ok(()),
                Err(Errno::INVAL) => return Err(Errno::INVAL),
                Err(errno) if result.is_err() => result = Err(errno),
                Err(_) => {}
            }
        }
        result
    }

    fn signal_by_descriptor(&self, listener: &Listener, call: &Notification) -> Reply {
        let [descriptor, signal, information, flags, ..] = call.arguments;
        let send = || {
            let identity = Identity::of(call.thread).ok_or(Errno::SRCH)?;
            let mut bytes = [0; raw::SIGNAL_INFORMATION_BYTES];
            if information != 0 {
                memory::read_exact(call.thread, information, &mut bytes)?;
            }
            let text = fs::read_to_string(format!("/proc/{}/fdinfo/{}", call.thread, descriptor as i32));
            if !listener.is_waiting(call.id) {
                return Err(Errno::SRCH);
            }
            // Directories of /proc are descriptors of processes too, which nobody uses any more.
            let text = text.map_err(|_| Errno::BADF)?;
            let id = text.lines().find_map(|line| line.strip_prefix("Pid:")).ok_or(Errno::BADF)?;
            // -1 once it has been waited for.
            let id = id.trim().parse().ok().filter(|&id| id > 0).ok_or(Errno::SRCH)?;
            let descriptor = self.members.descriptor(id).ok_or(Errno::SRCH)?;
            let information = (information != 0).then_some(&bytes);
            let _user = AsUser::new(identity)?;
            raw::send_signal(&descriptor, signal as i32, information, flags as u32)
        };
        send().map_or_else(Reply::Error, |()| Reply::Value(0))
    }
}

/// Whether a thread is in another pid namespace than this one.
fn is_elsewhere(thread: i32) -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/pid")).ok();
    namespace("self") != namespace(&thread.to_string())
}
