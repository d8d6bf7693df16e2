//! Calls that make, remove and move names: `mkdir("/proc/self/fd/3/new")` means the directory behind the descriptor, which the
//! kernel cannot find, as the tree has no such path. The builder looks the directory up and does the call there, with the
//! caller's user and groups.
//!
//! Only calls with a path, and those with `AT_FDCWD` for a directory, are marked: what goes through a tree with descriptors of
//! its directories, as rm(1) and tar(1) do, names nothing in /proc, and costs nothing.

use std::ffi::OsString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::super::callers::AsUser;
use super::super::callers::{Identity, umask};
use super::super::numbers::RENAMEAT;
use super::super::sys::bpf::{Action, Rule, When};
use super::super::sys::notify::{Notification, Reply};
use super::serve::{Answer, CONTINUE, Server};
use super::tree::Place;

const HERE: i32 = libc::AT_FDCWD;

/// Second argument of an fchdir(2), which has one, that this module makes a thread do: it is not sent here. A command that uses it
/// deceives nobody but itself.
const OURS: u64 = u32::MAX as u64;

/// The marked calls.
pub fn rules() -> Vec<Rule> {
    let here = |number, at| Rule::when(number, When::OneOf(at, vec![HERE.cast_unsigned()]), Action::Notify);
    let rules = [
        here(libc::SYS_mkdirat, 0),
        here(libc::SYS_unlinkat, 0),
        here(libc::SYS_symlinkat, 1),
        here(libc::SYS_renameat2, 0),
        here(RENAMEAT, 0),
        Rule::always(libc::SYS_linkat, Action::Notify),
        // Answered by letting it be, as it is one way to have another working directory.
        Rule::when(libc::SYS_fchdir, When::Lacks(1, OURS as u32), Action::Notify),
        Rule::always(libc::SYS_mknodat, Action::Notify),
    ];
    #[cfg(target_arch = "x86_64")]
    let rules = rules.into_iter().chain(
        [
            libc::SYS_mkdir,
            libc::SYS_rmdir,
            libc::SYS_unlink,
            libc::SYS_symlink,
            libc::SYS_rename,
            libc::SYS_link,
            libc::SYS_mknod,
        ]
        .map(|number| Rule::always(number, Action::Notify)),
    );
    rules.into_iter().collect()
}

/// What a call does with its names.
enum Deed {
    Directory(u32),
    Remove(AtFlags),
    /// Where the text is.
    Symlink(u64),
    Node(u32, u64),
    Rename(RenameFlags),
    Link,
}

/// A name in a directory of the tree.
struct Spot(OwnedFd, OsString);

impl Server<'_> {
    /// Answers one of [`rules`]; `None` if the call is none of them, or is another module's.
    pub fn change_names(&self, call: &Notification) -> Option<Answer> {
        let [a, b, c, d, e, _] = call.arguments;
        let number = libc::c_long::from(call.number);
        let at = |directory: u64| directory as i32;
        let remove = |flags: u64| Deed::Remove(AtFlags::from_bits_retain(flags as u32));
        // The name it is about, the second one if there are two, and what becomes of them.
        let (first, second, deed) = match number {
            libc::SYS_mkdirat => ((at(a), b), None, Deed::Directory(c as u32)),
            libc::SYS_unlinkat => ((at(a), b), None, remove(c)),
            libc::SYS_symlinkat => ((at(b), c), None, Deed::Symlink(a)),
            libc::SYS_mknodat => ((at(a), b), None, Deed::Node(c as u32, d)),
            libc::SYS_renameat2 => {
                ((at(a), b), Some((at(c), d)), Deed::Rename(RenameFlags::from_bits_retain(e as u32)))
            }
            // What follows links is a change of a file behind a descriptor.
            libc::SYS_linkat if e as i32 & libc::AT_SYMLINK_FOLLOW == 0 => ((at(a), b), Some((at(c), d)), Deed::Link),
            RENAMEAT => ((at(a), b), Some((at(c), d)), Deed::Rename(RenameFlags::empty())),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_mkdir => ((HERE, a), None, Deed::Directory(b as u32)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rmdir => ((HERE, a), None, Deed::Remove(AtFlags::REMOVEDIR)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_unlink => ((HERE, a), None, remove(0)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_symlink => ((HERE, b), None, Deed::Symlink(a)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_mknod => ((HERE, a), None, Deed::Node(b as u32, c)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename => ((HERE, a), Some((HERE, b)), Deed::Rename(RenameFlags::empty())),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_link => ((HERE, a), Some((HERE, b)), Deed::Link),
            _ => return None,
        };
        let tree = &self.files.tree;
        let place = |(directory, path): (i32, u64)| {
            let text = self.text(call.thread, path)?;
            if text.is_empty() {
                return Some((Place::Native, PathBuf::new()));
            }
            let path = tree.absolute(call.thread, directory, &text)?;
            Some((tree.lead(&path, false), path))
        };
        // Only in place of a directory that goes something else can come to be.
        let replaces = match deed {
            Deed::Symlink(_) | Deed::Rename(_) | Deed::Link => true,
            Deed::Remove(flags) => flags.contains(AtFlags::REMOVEDIR),
            Deed::Directory(_) | Deed::Node(..) => false,
        };
        let Some((first, second)) = place(first)
            .and_then(|first| Some((first, second.map(|second| place(second).ok_or(())).transpose().ok()?)))
        else {
            if replaces {
                tree.forget_all_ways(call.thread);
            }
            return Some(CONTINUE);
        };
        let both = || [Some(&first), second.as_ref()].into_iter().flatten();
        // Nodes of /dev are the tree's.
        if !both().any(|(place, _)| matches!(place, Place::Served(path) if !path.starts_with("/dev"))) {
            if replaces {
                both().for_each(|(_, path)| tree.forget_way(call.thread, path));
            }
            let goes = matches!(deed, Deed::Remove(_) | Deed::Rename(_));
            let refused = both().find_map(|(_, path)| tree.refuses_path(path, goes));
            return Some(refused.map_or(CONTINUE, |errno| Answer::Reply(Reply::Error(errno))));
        }
        if replaces {
            tree.forget_all_ways(call.thread);
        }
        let done = Identity::of(call.thread).ok_or(Errno::SRCH).and_then(|identity| {
            let refused = match deed {
                Deed::Directory(_) | Deed::Symlink(_) | Deed::Node(..) => Refused::Made,
                Deed::Remove(_) | Deed::Rename(_) => Refused::Removed,
                Deed::Link => Refused::Linked,
            };
            let first = self.spot(call.thread, first, identity, refused)?;
            let second = second.map(|second| self.spot(call.thread, second, identity, Refused::Made)).transpose()?;
            if !self.listener.is_waiting(call.id) {
                return Err(Errno::INTR);
            }
            self.do_deed(call.thread, deed, first, second, identity)
        });
        Some(done.into())
    }

    /// The directory of the tree that a path's last name is in.
    fn spot(
        &self,
        thread: i32,
        (place, path): (Place, PathBuf),
        identity: Identity,
        refused: Refused,
    ) -> Result<Spot, Errno> {
        let path = match place {
            Place::Served(path) => self.files.inner(&path, identity, thread, refused)?,
            Place::Native => path,
        };
        let (parent, name) = path.parent().zip(path.file_name()).ok_or(Errno::BUSY)?;
        let _user = AsUser::new(identity)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Spot(self.files.tree.open(parent, flags, 0)?, name.to_owned()))
    }

    fn do_deed(
        &self,
        thread: i32,
        deed: Deed,
        Spot(parent, name): Spot,
        second: Option<Spot>,
        identity: Identity,
    ) -> Result<(), Errno> {
        let text = match deed {
            Deed::Symlink(address) => OsString::from_vec(self.text(thread, address).ok_or(Errno::FAULT)?),
            _ => OsString::new(),
        };
        let umask = umask(thread).unwrap_or(0o022);
        let _user = AsUser::new(identity)?;
        // This process's own mask must not count, and what the directory passes on must.
        let mode = |mode: u32| -> Result<(), Errno> {
            let made = rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let mode = mode & 0o1777 & !umask | made.st_mode & 0o2000;
            rustix::fs::chmodat(&parent, &name, Mode::from_raw_mode(mode), AtFlags::empty())
        };
        match (deed, second) {
            (Deed::Directory(bits), _) => {
                rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o700))?;
                mode(bits)
            }
            (Deed::Remove(flags), _) => rustix::fs::unlinkat(&parent, &name, flags),
            (Deed::Symlink(_), _) => rustix::fs::symlinkat(text, &parent, &name),
            (Deed::Node(bits, device), _) => {
                let kind = match FileType::from_raw_mode(bits) {
                    FileType::Unknown => FileType::RegularFile,
                    kind => kind,
                };
                rustix::fs::mknodat(&parent, &name, kind, Mode::from_raw_mode(0o600), device)?;
                mode(bits)
            }
            (Deed::Rename(flags), Some(Spot(to, new))) => rustix::fs::renameat_with(&parent, &name, to, new, flags),
            (Deed::Link, Some(Spot(to, new))) => rustix::fs::linkat(&parent, &name, to, new, AtFlags::empty()),
            (Deed::Rename(_) | Deed::Link, None) => Err(Errno::INVAL),
        }
    }

    /// chdir(2) to a served path. One that leads to a directory of the tree is gone to by the thread itself; of the others there
    /// is an empty directory of the same name in the tree, relative to which served files are found again.
    pub fn chdir(&self, call: &Notification, path: u64) -> Answer {
        let place = self.served(call, HERE, path, true);
        // What is asked from now on is asked by who has gone there, or by another thread.
        self.files.tree.forget_bases(call.thread);
        let Some((path, identity)) = place else { return CONTINUE };
        match self.files.directory(&path, identity, call.thread) {
            Some(inner) => {
                self.go_to(call, &inner, identity).unwrap_or_else(|errno| Answer::Reply(Reply::Error(errno)))
            }
            None => {
                match self.files.stat(&path, identity, call.thread, true) {
                    Err(errno) => return Answer::Reply(Reply::Error(errno)),
                    Ok(_) => _ = std::fs::create_dir_all(self.files.tree.outer(&path)),
                }
                CONTINUE
            }
        }
    }

    fn go_to(&self, call: &Notification, inner: &Path, identity: Identity) -> Result<Answer, Errno> {
        // With the caller's rights: it may get hold of the descriptor. One with O_PATH could not be given away.
        let user = AsUser::new(identity)?;
        let directory = self.files.tree.open(inner, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, 0)?;
        drop(user);
        let number = self.listener.put(call.id, directory.as_fd())?;
        let number = u64::from(number.cast_unsigned());
        let _user = AsUser::new(identity)?;
        let done = self.hold(call, Reply::Value(0), |held| {
            let result = held.call(libc::SYS_fchdir, &[number, OURS]).unwrap_or(0);
            _ = held.call(libc::SYS_close, &[number]);
            held.set_result(result);
        });
        // The descriptor stays, which exec closes; what it leads to is the caller's own tree.
        Ok(if done { Answer::Given } else { Answer::Reply(Reply::Error(Errno::ACCESS)) })
    }
}

/// What a call is refused for what is not in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// A name there.
    Made,
    /// One that is there.
    Removed,
    /// A second name of something there.
    Linked,
}
