//! Calls that open files and look at them.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx};
use rustix::io::Errno;

use super::super::members;
use super::calls::{Answer, Answered, DONE};
use super::ids::{Credentials, capability};
use super::instead::Names;
use super::permission::may;
use super::pipes::Pipe;
use super::tasks::lock;
use super::view::{Base, Kind, MAX_PATH, Mount, Place, bytes, key, own_path, read_link, reopen, statx};
use super::world::{Caller, HERE, HIDDEN, Reached, SET_IDS, kept_mode};
use super::{layout, procfs};

/// `TMPFS_MAGIC`, linux/magic.h.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Largest `struct open_how` that is understood, in bytes.
const OPEN_HOW_BYTES: u64 = 24;

impl Caller<'_> {
    /// The file of an `…at` call, by the flags that all of them have.
    pub fn reach_at(&self, descriptor: usize, path: usize, flags: u32, null: bool) -> Result<Reached<'_>, Errno> {
        let (text, follow, empty) = self.named_at(path, flags, null)?;
        self.reach(self.int(descriptor), &text, follow, empty)
    }

    /// The path of such a call, whether it is followed, and whether it may be empty.
    fn named_at(&self, path: usize, flags: u32, null: bool) -> Result<(Vec<u8>, bool, bool), Errno> {
        let known = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT | 0x6000;
        if flags & !(known as u32) != 0 {
            return Err(Errno::INVAL);
        }
        let empty = flags & libc::AT_EMPTY_PATH as u32 != 0 || null;
        // Since Linux 6.11 a null pointer is an empty path.
        let text = if empty && self.word(path) == 0 { Vec::new() } else { self.path(path)? };
        Ok((text, flags & libc::AT_SYMLINK_NOFOLLOW as u32 == 0, empty))
    }

    /// The file at the path of an old call.
    pub fn reach_path(&self, path: usize, follow: bool) -> Result<Reached<'_>, Errno> {
        self.reach(HERE, &self.path(path)?, follow, false)
    }

    pub fn stat(&self, descriptor: i32, path: u64, out: u64, flags: u32) -> Answered {
        let known = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT;
        if flags & !(known as u32) != 0 {
            return Err(Errno::INVAL);
        }
        let empty = flags & libc::AT_EMPTY_PATH as u32 != 0;
        let text = if empty && path == 0 { Vec::new() } else { self.path_at(path)? };
        if text.is_empty() && empty && descriptor != HERE {
            return self.fstat(descriptor, out);
        }
        let (real, mount) = self.look(descriptor, &text, flags & libc::AT_SYMLINK_NOFOLLOW as u32 == 0, empty)?;
        let shown = self.world.shown(&real, mount, &lock(&self.task.credentials));
        self.write(out, &layout::stat(&shown))?;
        DONE
    }

    pub fn fstat(&self, descriptor: i32, out: u64) -> Answered {
        let real = self.task.descriptors.stat(descriptor)?;
        let real = match self.world.stands.find(&real) {
            Some(file) => statx(&*file)?,
            None if let Some(real) = self.world.instead.find(&real) => real,
            None if self.world.is_borrowed(&real) => self.world.open_descriptor(&self.task, descriptor)?.1,
            None => real,
        };
        let shown = self.world.shown(&real, None, &lock(&self.task.credentials));
        self.write(out, &layout::stat(&shown))?;
        DONE
    }

    pub fn statx(&self) -> Answered {
        if self.uint(2) & 0x6000 == 0x6000 {
            return Err(Errno::INVAL);
        }
        let (text, follow, empty) = self.named_at(1, self.uint(2), false)?;
        let (real, mount) = self.look(self.int(0), &text, follow, empty)?;
        let shown = self.world.shown(&real, mount, &lock(&self.task.credentials));
        self.write(self.word(4), &layout::statx(&shown))?;
        DONE
    }

    pub fn access(&self, descriptor: i32, path: u64, mode: u32, flags: u32) -> Answered {
        let known = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_EACCESS;
        if mode & !7 != 0 || flags & !(known as u32) != 0 {
            return Err(Errno::INVAL);
        }
        let empty = flags & libc::AT_EMPTY_PATH as u32 != 0;
        let text = self.path_at(path)?;
        let (real, mount) = self.look(descriptor, &text, flags & libc::AT_SYMLINK_NOFOLLOW as u32 == 0, empty)?;
        let mut me = self.me();
        if flags & libc::AT_EACCESS as u32 == 0 {
            // For the real ids: access(2). Root has its capabilities by them too.
            me.effective = if me.user.real == 0 { me.permitted } else { 0 };
            (me.user.files, me.group.files) = (me.user.real, me.group.real);
        }
        let shown = self.world.shown(&real, mount, &me);
        self.allow(&shown, mode, &me)?;
        let kind = u32::from(shown.stx_mode) & libc::S_IFMT;
        let special = matches!(kind, libc::S_IFCHR | libc::S_IFBLK | libc::S_IFIFO | libc::S_IFSOCK);
        if mode & may::WRITE != 0 && !special && mount.is_some_and(|mount| mount.readonly) {
            return Err(Errno::ROFS);
        }
        DONE
    }

    pub fn readlink(&self, descriptor: i32, path: u64, out: u64, size: u64) -> Answered {
        if (size as i32) <= 0 {
            return Err(Errno::INVAL);
        }
        let text = self.path_at(path)?;
        let link = if text.is_empty() {
            let file = self.reach_descriptor(descriptor)?;
            read_link(&file.fd)?
        } else {
            let magic = |place: &Place<'_>| self.magic_text(place);
            self.at(descriptor, &text, false, |place| {
                if place.slash {
                    // A directory, or a link that is followed: neither is a link.
                    place.open(OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
                    return Err(Errno::INVAL);
                }
                if let Some(text) = magic(place)? {
                    return Ok(text);
                }
                place.read_link(&self.world.view)
            })?
        };
        let length = link.len().min(size as i32 as usize);
        self.write(out, &link[..length])?;
        Ok(Answer::Value(length as i64))
    }

    /// What a link of /proc says.
    fn magic_text(&self, place: &Place<'_>) -> Result<Option<Vec<u8>>, Errno> {
        let world = self.world;
        let outer = |path: Vec<u8>| if path.is_empty() { b"/".to_vec() } else { path };
        match procfs::entry(&world.view, &place.path) {
            Some(procfs::Entry::Other(b"self")) => Ok(Some(self.task.process.to_string().into_bytes())),
            Some(procfs::Entry::Other(b"thread-self")) => {
                Ok(Some(format!("{}/task/{}", self.task.process, self.task.thread).into_bytes()))
            }
            Some(procfs::Entry::Process(process, below)) => {
                let task = world.tasks.of_process(process).ok_or(Errno::NOENT)?;
                match below {
                    b"root" => Ok(Some(outer(lock(&task.surroundings).root.clone()))),
                    b"cwd" => match world.cwd(&task) {
                        Base::Path(path) => Ok(Some(outer(self.seen_from_root(&path)))),
                        _ => Err(Errno::NOENT),
                    },
                    b"exe" => Ok(Some(self.seen_from_root(&lock(&task.image).program.path))),
                    _ => {
                        let Some(number) = procfs::descriptor(below) else { return Ok(None) };
                        let mut host = task.descriptors.path(number)?;
                        if host.starts_with(b"/memfd:path") {
                            // Perhaps one that stands for a file.
                            let (file, _) = world.open_descriptor(&task, number)?;
                            host = rustix::fs::readlinkat(CWD, own_path(file.as_fd()), Vec::new())?.into_bytes();
                        }
                        if !host.starts_with(b"/") {
                            return Ok(Some(host));
                        }
                        // Files in memory stand for files of the supervisor's making.
                        if let Some(mount) = world.view.mounts().iter().find(|mount| mount.host == host) {
                            return Ok(Some(outer(mount.target.clone())));
                        }
                        if let Some(path) = world.instead.inside(&host) {
                            return Ok(Some(self.seen_from_root(&path)));
                        }
                        Ok(Some(world.view.inside(&host).map_or(host, |path| outer(self.seen_from_root(&path)))))
                    }
                }
            }
            _ => Ok(None),
        }
    }

    /// A physical path as the caller sees it after chroot(2).
    pub fn seen_from_root(&self, path: &[u8]) -> Vec<u8> {
        let root = lock(&self.task.surroundings).root.clone();
        path.strip_prefix(root.as_slice()).unwrap_or(path).to_vec()
    }

    pub fn truncate(&self) -> Answered {
        let length = self.word(1).cast_signed();
        let path = self.path(0)?;
        let length = u64::try_from(length).map_err(|_| Errno::INVAL)?;
        self.still()?;
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.open_file(HERE, &path, flags, 0, ResolveFlags::empty())?;
        let Answer::Give(file, _) = file else { return Err(Errno::INVAL) };
        rustix::fs::ftruncate(file, length)?;
        DONE
    }

    pub fn statfs(&self) -> Answered {
        let file = self.reach_path(0, true)?;
        let mut found = rustix::fs::fstatfs(&file.fd)?;
        if file.mount.is_some_and(|mount| mount.kind == Kind::Temporary) {
            found.f_type = TMPFS_MAGIC;
        }
        self.write(self.word(1), &layout::statfs(&found))?;
        DONE
    }

    pub fn open2(&self) -> Answered {
        let size = self.word(3);
        if size < OPEN_HOW_BYTES {
            return Err(Errno::INVAL);
        }
        let size = usize::try_from(size).ok().filter(|size| *size <= MAX_PATH).ok_or(Errno::TOOBIG)?;
        let how = self.read(self.word(2), size)?;
        if how[24..].iter().any(|&byte| byte != 0) {
            return Err(Errno::TOOBIG);
        }
        let field = |at: usize| u64::from_le_bytes(how[at..at + 8].try_into().expect("eight bytes"));
        let (flags, mode, resolve) = (field(0), field(8), field(16));
        let resolve = ResolveFlags::from_bits(resolve).ok_or(Errno::INVAL)?;
        let flags = u32::try_from(flags).map_err(|_| Errno::INVAL)?;
        let making = flags & (libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY) as u32 != 0;
        if mode & !0o7777 != 0
            || mode != 0 && !making
            || resolve.contains(ResolveFlags::IN_ROOT | ResolveFlags::BENEATH)
        {
            return Err(Errno::INVAL);
        }
        if resolve.contains(ResolveFlags::CACHED) {
            return Err(Errno::AGAIN);
        }
        let path = self.path(1)?;
        self.still()?;
        self.open_file(self.int(0), &path, OFlags::from_bits_retain(flags), mode as u32, resolve)
    }

    pub fn open(&self, descriptor: i32, path: u64, flags: u32, mode: u32) -> Answered {
        let path = self.path_at(path)?;
        let flags = OFlags::from_bits_retain(flags);
        if flags.intersects(OFlags::CREATE | OFlags::TRUNC) {
            self.still()?;
        }
        self.open_file(descriptor, &path, flags, mode, ResolveFlags::empty())
    }

    fn open_file(&self, descriptor: i32, path: &[u8], flags: OFlags, mode: u32, resolve: ResolveFlags) -> Answered {
        // O_CLOEXEC is for the copy that the caller gets; a terminal must not become this process's.
        let cloexec = flags.contains(OFlags::CLOEXEC);
        let asked = flags;
        let flags = flags.difference(OFlags::CLOEXEC) | OFlags::NOCTTY;
        let place_only = flags.contains(OFlags::PATH);
        let follow = !flags.contains(OFlags::NOFOLLOW) && !flags.contains(OFlags::CREATE | OFlags::EXCL);
        let writing = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        let making = flags.contains(OFlags::CREATE) && !place_only;
        let nameless = flags.contains(OFlags::TMPFILE) && !place_only;
        let me = self.me();
        let opened = self.at_with(descriptor, path, follow, resolve, |place| {
            if let Some(file) = self.magic(place, follow)? {
                if place_only {
                    let real = statx(&file)?;
                    return self.hold(file, &real, None, &me, |file, flags| reopen(file, flags, Mode::empty()));
                }
                let mut file = std::sync::Arc::new(file);
                if writing {
                    let real = statx(&*file)?;
                    let reached = self.changing(self.behind(file, real))?;
                    if let Some(owners) = reached.mount.and_then(|mount| mount.owners.as_ref()) {
                        owners.watch(key(&reached.real), bytes(&reached.real));
                    }
                    file = reached.fd;
                }
                let flags = flags.difference(OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NOCTTY);
                let open = reopen(file.as_fd(), flags | OFlags::NONBLOCK, Mode::empty())?;
                return Ok(non_blocking(open, asked, false));
            }
            if !(writing || making || nameless)
                && let Some(listing) = self.listing(place)?
            {
                return Ok(Answer::Give(listing, false));
            }
            if place.slash && making {
                return Err(Errno::ISDIR);
            }
            let flags = if place.slash { flags.difference(OFlags::NOFOLLOW) | OFlags::DIRECTORY } else { flags };
            if place_only {
                let fd = place.open(flags.difference(OFlags::NOCTTY), Mode::empty())?;
                let real = statx(&fd)?;
                return self.hold(fd, &real, Some(place.mount), &me, |_, flags| place.open(flags, Mode::empty()));
            }
            let readonly = place.mount.readonly || matches!(place.mount.kind, Kind::Sys);
            if nameless {
                if readonly {
                    return Err(Errno::ROFS);
                }
                let new = self.modes(mode, false);
                let fd = place.open(flags, new.real)?;
                let parent = place.open(OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?.into();
                self.change(place.mount, &parent, None, &me)?;
                self.made(place.mount, &parent, &fd, Some(new))?;
                return Ok(Answer::Give(fd, false));
            }
            if making && let Some(fd) = self.create(place, flags, mode, readonly, &me)? {
                return Ok(Answer::Give(fd, false));
            }
            if readonly && writing && place.mount.kind != Kind::Proc && place.mount.directory {
                // Devices, pipes and sockets may be written to all the same; there are none in such mounts.
                place.open(OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
                return Err(Errno::ROFS);
            }
            if writing && (readonly || procfs::is_setting(self.world, &place.path)) {
                return Err(Errno::ROFS);
            }
            if place.mount.kind == Kind::Proc
                && let Some(text) = procfs::text(self.world, &place.path)
            {
                let real = place.stat(&self.world.view, follow)?;
                return Ok(Answer::Give(self.world.instead.text(&text, real)?, false));
            }
            if place.path == b"/dev/tty" {
                // This process's terminal is not the caller's.
                let number = members::terminal(self.task.process).ok_or(Errno::NXIO)?;
                let flags = flags.difference(OFlags::CREATE | OFlags::EXCL) | OFlags::NOCTTY | OFlags::NONBLOCK;
                let terminal = rustix::fs::open(format!("/dev/pts/{number}"), flags | OFlags::CLOEXEC, Mode::empty())?;
                return Ok(non_blocking(terminal, asked, false));
            }
            self.check_open(place, flags, writing, &me)?;
            let flags = flags.difference(OFlags::CREATE | OFlags::EXCL);
            // What the kernel would take from the file with its bytes has to be looked at before.
            let empties = flags.contains(OFlags::TRUNC) && flags.intersects(OFlags::WRONLY | OFlags::RDWR);
            let flags = if empties { flags.difference(OFlags::TRUNC) } else { flags };
            if writing || making {
                place.tell(&self.world.view);
                // Whoever would make the file may lock it, which must not meet others.
                place.own(&self.world.view)?;
            }
            match place.open(flags | OFlags::NONBLOCK, Mode::empty()) {
                // Nobody reads the pipe yet.
                Err(Errno::NXIO) if !flags.contains(OFlags::NONBLOCK) => {
                    let fd = place.open(OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
                    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
                        FileType::Fifo => Ok(Answer::Meet(Pipe::Writing(fd), flags)),
                        _ => Err(Errno::NXIO),
                    }
                }
                fd => {
                    let fd = fd?;
                    if writing {
                        self.before_writing(place.mount, &fd, empties, &me)?;
                    }
                    Ok(non_blocking(fd, asked, true))
                }
            }
        })?;
        Ok(match opened {
            Answer::Give(fd, _) => Answer::Give(fd, cloexec),
            Answer::Meet(pipe, flags) => Answer::Meet(pipe, if cloexec { flags | OFlags::CLOEXEC } else { flags }),
            other => other,
        })
    }

    /// A directory of ours in the place of one of the kernel's that shows what is not the RUN's.
    fn listing(&self, place: &Place<'_>) -> Result<Option<OwnedFd>, Errno> {
        let hides = match place.mount.kind {
            Kind::Proc => place.path == b"/proc",
            Kind::Sys => HIDDEN.contains(&place.path.as_slice()),
            _ => false,
        };
        if !hides {
            return Ok(None);
        }
        let directory = place.open(OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let real = statx(&directory)?;
        let mut names = Names::new();
        if place.mount.kind == Kind::Proc {
            for entry in rustix::fs::Dir::read_from(&directory)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                if matches!(name, b"." | b"..") || !procfs::is_listed(self.world, name) {
                    continue;
                }
                let text = match entry.file_type() {
                    FileType::Symlink => rustix::fs::readlinkat(&directory, name, Vec::new())?.into_bytes(),
                    _ => Vec::new(),
                };
                names.insert(OsStr::from_bytes(name).to_owned(), (entry.file_type(), text));
            }
        }
        self.world.instead.listing(&place.path, real, &names).map(Some)
    }

    /// A file loses setuid and setgid when it is written to by somebody without CAP_FSETID, which the kernel sees to if the
    /// disk has them; then empties it, if that is asked for.
    fn before_writing(&self, mount: &Mount, fd: &OwnedFd, empties: bool, me: &Credentials) -> Result<(), Errno> {
        let stat = rustix::fs::fstat(fd)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(());
        }
        let real = stat.st_mode & 0o7777;
        if let Some(owners) = mount.owners.as_ref().filter(|owners| owners.has_capable()) {
            let before = statx(fd)?;
            owners.settle(key(&before), bytes(&before));
            owners.watch(key(&before), bytes(&before));
        }
        if let Some(owners) = &mount.owners
            && (real & SET_IDS != 0 || !me.can(capability::FSETID))
        {
            let key = key(&statx(fd)?);
            let shown = owners.facts(key).mode(real);
            let wanted = kept_mode(shown, false, me);
            if (shown | real) & SET_IDS != 0 && wanted != real {
                rustix::fs::fchmod(fd, Mode::from_raw_mode(wanted))?;
                owners.set_mode(key, shown, wanted);
            }
        }
        if empties {
            rustix::fs::ftruncate(fd, 0)?;
        }
        Ok(())
    }

    /// A descriptor that can be given to the caller for one with `O_PATH`: the file opened where that does nothing and the caller
    /// may read it, else one that stands for it.
    fn hold(
        &self,
        file: OwnedFd,
        real: &Statx,
        mount: Option<&Mount>,
        me: &Credentials,
        open: impl FnOnce(BorrowedFd<'_>, OFlags) -> Result<OwnedFd, Errno>,
    ) -> Answered {
        let shown = self.world.shown(real, mount, me);
        let given = match u32::from(shown.stx_mode) & libc::S_IFMT {
            libc::S_IFDIR => open(file.as_fd(), OFlags::RDONLY | OFlags::DIRECTORY)?,
            libc::S_IFREG if self.allow(&shown, may::READ, me).is_ok() => {
                open(file.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?
            }
            // Links of /proc tell where things are on the host.
            libc::S_IFLNK if mount.is_some_and(|mount| mount.kind == Kind::Proc) => return Err(Errno::LOOP),
            _ => self.world.stands.for_file(file)?,
        };
        Ok(Answer::Give(given, false))
    }

    /// Makes a file, if nothing is there.
    fn create(
        &self,
        place: &Place<'_>,
        flags: OFlags,
        mode: u32,
        readonly: bool,
        me: &Credentials,
    ) -> Result<Option<OwnedFd>, Errno> {
        let exclusive = flags.contains(OFlags::EXCL);
        if place.mount.kind == Kind::Proc {
            return Ok(None);
        }
        if readonly {
            // What is there can be opened.
            return match place.open(OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(_) if exclusive => Err(Errno::EXIST),
                Ok(_) => Ok(None),
                Err(Errno::NOENT) => Err(Errno::ROFS),
                Err(errno) => Err(errno),
            };
        }
        if flags.contains(OFlags::DIRECTORY) {
            return Err(Errno::INVAL);
        }
        let (parent, name) = match place.parent(&self.world.view) {
            Ok(parent) => parent,
            // The root, or a mount: it is there.
            Err(Errno::BUSY) if exclusive => return Err(Errno::EXIST),
            Err(Errno::BUSY) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let may = self.change(place.mount, &parent, None, me);
        if let Err(errno) = may {
            return match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) if exclusive => Err(Errno::EXIST),
                Ok(_) => Ok(None),
                Err(Errno::NOENT) => Err(errno),
                Err(other) => Err(other),
            };
        }
        let new = self.modes(mode, false);
        let flags =
            flags.difference(OFlags::TRUNC) | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&parent, name, flags, new.real) {
            Ok(fd) => {
                place.tell(&self.world.view);
                self.made(place.mount, &parent, &fd, Some(new))?;
                if place.mount.owners.is_some() && place.physical().is_some() {
                    // It is mostly the next thing that owner, mode and time are given to it.
                    self.met(&statx(&fd)?, place.mount, true);
                }
                Ok(Some(fd))
            }
            Err(Errno::EXIST) if !exclusive => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether a file that exists may be opened so.
    fn check_open(&self, place: &Place<'_>, flags: OFlags, writing: bool, me: &Credentials) -> Result<(), Errno> {
        let all = me.can(capability::DAC_OVERRIDE);
        if all && !self.world.has_devices() || matches!(place.mount.kind, Kind::Proc | Kind::Sys) {
            return Ok(());
        }
        let real = place.stat(&self.world.view, false)?;
        let mount: &Mount = place.mount;
        if self.world.facts(&real, Some(mount)).is_some_and(|facts| facts.device.is_some()) {
            // As on a mount with `nodev`.
            return Err(Errno::ACCESS);
        }
        let shown = self.world.shown(&real, Some(mount), me);
        if u32::from(shown.stx_mode) & libc::S_IFMT == libc::S_IFLNK {
            return Ok(());
        }
        let reading = !flags.contains(OFlags::WRONLY);
        let wanted = if reading { may::READ } else { 0 } | if writing { may::WRITE } else { 0 };
        self.allow(&shown, wanted, me)
    }
}

/// Takes `O_NONBLOCK`, with which everything is opened so as not to hang, away again; the end of a pipe that has a name waits for the other one.
fn non_blocking(fd: OwnedFd, asked: OFlags, named: bool) -> Answer {
    if asked.contains(OFlags::NONBLOCK) {
        return Answer::Give(fd, false);
    }
    // What can be sought in is no pipe.
    if named
        && rustix::fs::tell(&fd) == Err(Errno::SPIPE)
        && let Ok(stat) = rustix::fs::fstat(&fd)
        && FileType::from_raw_mode(stat.st_mode) == FileType::Fifo
        && !asked.contains(OFlags::RDWR)
    {
        let pipe = if asked.contains(OFlags::WRONLY) { Pipe::Met(fd) } else { Pipe::Reading(fd) };
        return Answer::Meet(pipe, asked.difference(OFlags::CLOEXEC) | OFlags::NOCTTY);
    }
    let flags = asked.difference(OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC | OFlags::NOCTTY);
    _ = rustix::fs::fcntl_setfl(&fd, flags);
    Answer::Give(fd, false)
}

/// A file with this text that can only be read.
pub fn in_memory(text: &[u8]) -> Result<OwnedFd, Errno> {
    let file = rustix::fs::memfd_create("slipway", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut rest = text;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    reopen(file.as_fd(), OFlags::RDONLY, Mode::empty())
}
