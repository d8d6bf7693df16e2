//! Device nodes that a command makes where nobody can make one (a user namespace), or may have one (a chroot that nothing
//! keeps them shut in): mknod(2) is answered by this process, which makes what stands for a device in the tree
//! ([`Rootfs::make_stand_in`]), so that layers carry the device.
//!
//! The caller's path is looked up as the kernel would: by a thread with the caller's root, working directory and mounts.
//!
//! # Limitations
//! As long as the command runs, stat(2) shows an empty regular file, as it does for device nodes of the base. Calls of 32-bit
//! programs, and of those who have CAP_MKNOD but not CAP_DAC_OVERRIDE, are left to the kernel, which refuses them. So are those for
//! places in other mounts than the tree's own, where what stands for devices is recorded beside the tree and not by attributes.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, StatxFlags, Uid};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, LinkNameSpaceType, UnshareFlags};

use super::sys::bpf::{self, Action, Rule, When};
use super::sys::notify::{Listener, Notification, Reply};
use super::sys::{self, memory};
use crate::rootfs::{FileKind, Rootfs};

/// Bit of `st_mode` that character and block devices have, and nothing else that mknod(2) makes.
pub const DEVICE: u32 = 0x2000;

/// Longest path in bytes, without its NUL.
const PATH_BYTES: usize = 4095;

/// Whoever lacks one of these gets the kernel's answer.
const NEEDED: CapabilitySet = CapabilitySet::MKNOD.union(CapabilitySet::DAC_OVERRIDE);

/// Marks the calls that make device nodes.
pub fn rules() -> Vec<Rule> {
    let devices = |number, mode| Rule::when(number, When::AnyBit(mode, DEVICE), Action::Notify);
    vec![
        devices(libc::SYS_mknodat, 2),
        #[cfg(target_arch = "x86_64")]
        devices(libc::SYS_mknod, 1),
    ]
}

/// Where a command's mounts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mounts {
    /// In a mount namespace of its own.
    Own,
    /// In that of this process.
    Ours,
}

/// Makes what stands for device nodes in one tree.
pub struct Nodes<'a> {
    rootfs: &'a Rootfs,
    mounts: Mounts,
    /// /proc of this process, which the command's mounts do not show.
    proc: OwnedFd,
}

impl<'a> Nodes<'a> {
    /// For a command in `rootfs`.
    ///
    /// # Errors
    /// Without /proc.
    pub fn new(rootfs: &'a Rootfs, mounts: Mounts) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { rootfs, mounts, proc: rustix::fs::open("/proc", flags, Mode::empty())? })
    }

    /// Receives the listener of a filter of [`rules`] over `socket` and answers until `stop` has an event.
    pub fn serve(&self, socket: &OwnedFd, stop: &OwnedFd) {
        // Where there can be no listener, the kernel's answers have to do.
        let Ok(Some(listener)) = sys::receive_descriptor(socket.as_fd()) else { return };
        let listener = Listener::new(listener);
        if rustix::io::write(socket, &[0]).is_err() {
            return;
        }
        loop {
            let mut fds = [PollFd::new(&listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            match rustix::event::poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            if !fds[1].revents().is_empty() || fds[0].revents().contains(PollFlags::HUP) {
                return;
            }
            match listener.receive() {
                // Nobody waits any more if the reply fails.
                Ok(Some(call)) => _ = listener.reply(call.id, self.answer(&listener, &call)),
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    /// Answers a call that [`DEVICE`] marks, or leaves it to the kernel.
    pub fn answer(&self, listener: &Listener, call: &Notification) -> Reply {
        let [a, b, c, d, ..] = call.arguments;
        let (directory, path, mode, device) = match libc::c_long::from(call.number) {
            _ if call.architecture != bpf::NATIVE => return Reply::Continue,
            libc::SYS_mknodat => (a as i32, b, c as u32, d),
            _ => (libc::AT_FDCWD, a, b as u32, c),
        };
        // The kernel takes 32 bits.
        let device = u64::from(device as u32);
        let numbers = (rustix::fs::major(device), rustix::fs::minor(device));
        let kind = match FileType::from_raw_mode(mode) {
            FileType::BlockDevice => FileKind::BlockDevice,
            // The mark of a removed file in overlayfs, which is the kernel's to allow.
            FileType::CharacterDevice if numbers != (0, 0) => FileKind::CharDevice,
            _ => return Reply::Continue,
        };
        let wanted = Wanted { directory, path, mode: mode & 0o7777, kind, numbers };
        // A thread of its own, as it changes its root.
        let made = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, || self.make(listener, call, &wanted));
            thread.map_err(|_| Errno::AGAIN)?.join().unwrap_or(Err(Errno::IO))
        });
        match made {
            Ok(true) => Reply::Value(0),
            Ok(false) => Reply::Continue,
            Err(errno) => Reply::Error(errno),
        }
    }

    /// `false` leaves it to the kernel. With mounts of the command's own, the calling thread is of no use for anything else
    /// afterwards.
    fn make(&self, listener: &Listener, call: &Notification, wanted: &Wanted) -> Result<bool, Errno> {
        let thread = call.thread;
        let caller = self.caller(thread)?;
        if !caller.capabilities.contains(NEEDED) {
            return Ok(false);
        }
        let path = memory::read_string(thread, wanted.path, PATH_BYTES)?;
        let slash = path.iter().rposition(|&byte| byte == b'/');
        let (parent, name) = path.split_at(slash.map_or(0, |at| at + 1));
        if matches!(name, b"" | b"." | b"..") {
            return Ok(false);
        }
        let base = match wanted.directory {
            directory if directory != libc::AT_FDCWD && path.first() != Some(&b'/') => {
                format!("{thread}/fd/{directory}")
            }
            _ => format!("{thread}/cwd"),
        };
        let place = OFlags::PATH | OFlags::CLOEXEC;
        let open = |path: String| rustix::fs::openat(&self.proc, path, place, Mode::empty());
        let namespace = match self.mounts {
            Mounts::Own => {
                let path = format!("{thread}/ns/mnt");
                Some(rustix::fs::openat(&self.proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
            }
            Mounts::Ours => None,
        };
        let base = open(base).map_err(|errno| if errno == Errno::NOENT { Errno::BADF } else { errno })?;
        let root = open(format!("{thread}/root"))?;
        if !listener.is_waiting(call.id) {
            return Err(Errno::SRCH);
        }

        let parent = if parent.is_empty() { b"." } else { parent };
        let parent = match namespace {
            Some(namespace) => {
                sys::unshare(UnshareFlags::FS)?;
                rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
                rustix::process::fchdir(&root)?;
                rustix::process::chroot(".")?;
                rustix::process::fchdir(&base)?;
                rustix::fs::openat(CWD, OsStr::from_bytes(parent), place | OFlags::DIRECTORY, Mode::empty())?
            }
            // In a container a profile may refuse unshare(2), and the caller's root is all that it sees.
            None => {
                let (base, root_path) = (path_of(base.as_fd())?, path_of(root.as_fd())?);
                let below = base.strip_prefix(&root_path).map_err(|_| Errno::NOENT)?;
                let parent = below.join(OsStr::from_bytes(parent));
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { &parent };
                let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                rustix::fs::openat2(&root, parent, place | OFlags::DIRECTORY, Mode::empty(), how)?
            }
        };
        if self.rootfs.records_stand_ins() && mount_of(&parent) != mount_of(&root) {
            return Ok(false);
        }
        self.rootfs.make_stand_in(&parent, OsStr::from_bytes(name), wanted.kind, wanted.numbers)?;

        let passes_group_on = rustix::fs::fstat(&parent)?.st_mode & 0o2000 != 0;
        let group = (!passes_group_on).then_some(Gid::from_raw(caller.gid));
        rustix::fs::chownat(&parent, name, Some(Uid::from_raw(caller.uid)), group, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(wanted.mode & !caller.umask);
        rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
        Ok(true)
    }

    fn caller(&self, thread: i32) -> Result<Caller, Errno> {
        let file = rustix::fs::openat(
            &self.proc,
            format!("{thread}/status"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).map_err(|_| Errno::SRCH)?;
        Caller::parse(&text).ok_or(Errno::SRCH)
    }
}

/// Where an open directory lies for this process.
fn path_of(file: BorrowedFd<'_>) -> Result<PathBuf, Errno> {
    use std::os::fd::AsRawFd as _;
    let text = rustix::fs::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new())?;
    Ok(PathBuf::from(OsStr::from_bytes(text.as_bytes())))
}

/// The number of the mount in which an open directory lies; `None` where a profile refuses the question.
fn mount_of(directory: &OwnedFd) -> Option<u64> {
    Some(rustix::fs::statx(directory, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?.stx_mnt_id)
}

/// What a call asks for.
struct Wanted {
    directory: i32,
    /// Where the caller's memory holds the path.
    path: u64,
    mode: u32,
    kind: FileKind,
    numbers: (u32, u32),
}

/// Who calls: what of it matters for a file that it makes.
#[derive(Debug, PartialEq, Eq)]
struct Caller {
    uid: u32,
    gid: u32,
    umask: u32,
    capabilities: CapabilitySet,
}

impl Caller {
    /// From /proc/PID/status (proc(5)).
    fn parse(status: &str) -> Option<Self> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        // The fourth is that for files.
        let id = |name: &str| field(name)?.split_ascii_whitespace().nth(3)?.parse().ok();
        Some(Self {
            uid: id("Uid:")?,
            gid: id("Gid:")?,
            umask: u32::from_str_radix(field("Umask:")?, 8).ok()?,
            capabilities: CapabilitySet::from_bits_retain(u64::from_str_radix(field("CapEff:")?, 16).ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_read() {
        let text = "Name:\tmknod\nUmask:\t0027\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nCapEff:\t0000000008000002\n";
        let expected = Caller { uid: 4, gid: 8, umask: 0o027, capabilities: NEEDED };
        assert_eq!(Caller::parse(text), Some(expected));
        assert_eq!(Caller::parse("Name:\tmknod\n"), None);
    }
}
