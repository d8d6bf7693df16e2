//! overlayfs: mounted without a trace in any mount namespace but this process's own, and its marks in a layer's directory.
//!
//! Mounts are made with the new mount API and stay detached: they exist as long as a descriptor of them is open, so a
//! killed process leaves nothing mounted. Where a kernel lets nobody copy such a mount ([`Attached`]) it is in the process's
//! own mount namespace, with which it goes. `redirect_dir`, `metacopy` and `index` are off, so that an upper directory says
//! by itself what changed; renaming a directory of a lower layer is `EXDEV`, which programs answer by copying.
//! Upper directories are `volatile` where the kernel knows that: fsync in a step does not wait for the disk.
//!
//! # Limitations
//! Whiteouts are character devices 0:0 only; the attribute form exists for kernels that refuse those in user namespaces,
//! which none does that can mount overlayfs there (both since 5.11).

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags};

use super::attributes::{Handle, Target};
use super::workdir::{TempDir, io_error};
use super::{FileKind, Rootfs, TreeError};

/// Layers in one mount (`OVL_MAX_STACK` of the kernel).
pub(super) const MAX_LOWER: usize = 500;

/// Longest string that fsconfig(2) takes, without its NUL.
const FSCONFIG_BYTES: usize = 255;

/// Longest options of mount(2), without their NUL: a page.
const MOUNT_DATA_BYTES: usize = 4095;

/// Whether this kernel was found to take options of overlayfs in one string only. It logs what it does not know, so that it is
/// asked once.
static WHOLE_OPTIONS: AtomicBool = AtomicBool::new(false);

/// `OVERLAYFS_SUPER_MAGIC` (statfs(2)).
const OVERLAYFS_MAGIC: rustix::fs::FsWord = 0x794c_7630;

/// The attributes in which overlayfs keeps its marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marks {
    /// `trusted.overlay.*`, for real root.
    Trusted,
    /// `user.overlay.*` (mount option `userxattr`), for user namespaces.
    User,
}

impl Marks {
    fn opaque(self) -> &'static OsStr {
        OsStr::new(match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        })
    }

    pub(super) fn set_opaque(self, directory: Target<'_>) -> io::Result<()> {
        Ok(directory.set_xattr(self.opaque(), b"y")?)
    }

    pub(super) fn is_opaque(self, directory: Target<'_>) -> io::Result<bool> {
        Ok(directory.xattr(self.opaque())?.as_deref() == Some(b"y"))
    }
}

/// What to mount.
#[derive(Debug)]
pub(super) struct Stack<'a> {
    /// Lower directories, the uppermost first; at least two if there is no upper one.
    pub lower: Vec<PathBuf>,
    /// Upper and work directory; without them the mount is read-only.
    pub upper: Option<(&'a Path, &'a Path)>,
    /// Where marks are kept.
    pub marks: Marks,
}

/// Why overlayfs could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {source}{}{messages}", if messages.is_empty() { "" } else { ": " })]
pub(super) struct MountError {
    /// The system call or option that failed.
    pub call: &'static str,
    /// What the kernel logged for this mount, if it does that.
    pub messages: String,
    /// Why.
    pub source: io::Error,
}

impl Stack<'_> {
    /// Mounts the stack and gives its root.
    pub(super) fn mount(&self) -> Result<OwnedFd, MountError> {
        if !WHOLE_OPTIONS.load(Ordering::Relaxed) {
            match self.mount_by_parts(true) {
                Err(error) if error.call == "volatile" => return self.mount_by_parts(false),
                // Before Linux 6.8 layers cannot be given one by one; before 6.5 options are looked at when all are there, and
                // what is wrong with them is not told to us.
                Err(error) if error.call == "lowerdir+" || error.call == "mount" && error.messages.is_empty() => {}
                other => return other,
            }
        }
        let mounted = self.mount_by_string(true).or_else(|_| self.mount_by_string(false))?;
        WHOLE_OPTIONS.store(true, Ordering::Relaxed);
        Ok(mounted)
    }

    fn mount_by_parts(&self, volatile: bool) -> Result<OwnedFd, MountError> {
        use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| MountError {
            call: "fsopen",
            messages: String::new(),
            source: error.into(),
        })?;
        let check = |call: &'static str, result: rustix::io::Result<()>| {
            result.map_err(|error| MountError { call, messages: messages(&context), source: error.into() })
        };
        check("source", fsconfig_set_string(&context, "source", "slipway"))?;
        for directory in &self.lower {
            check("lowerdir+", set_directory(&context, "lowerdir+", directory))?;
        }
        if let Some((upper, work)) = self.upper {
            check("upperdir", set_directory(&context, "upperdir", upper))?;
            check("workdir", set_directory(&context, "workdir", work))?;
            if volatile {
                check("volatile", fsconfig_set_flag(&context, "volatile"))?;
            }
        }
        for (option, value) in OPTIONS {
            check(option, fsconfig_set_string(&context, option, value))?;
        }
        if self.marks == Marks::User {
            check("userxattr", fsconfig_set_flag(&context, "userxattr"))?;
        }
        check("mount", fsconfig_create(&context))?;
        let attributes = if self.upper.is_some() { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|error| MountError {
            call: "fsmount",
            messages: messages(&context),
            source: error.into(),
        })
    }

    /// By mount(2), whose options fit a page; then detached. The mount is visible in this namespace for a moment.
    fn mount_by_string(&self, volatile: bool) -> Result<OwnedFd, MountError> {
        let fail = |call, error: Errno| MountError { call, messages: String::new(), source: error.into() };
        let mut data = self.options(volatile, |path| escape(path.as_os_str().as_bytes()));
        // Kept open until the kernel has looked up its paths.
        let mut short = Vec::new();
        if data.len() > MOUNT_DATA_BYTES {
            for directory in &self.lower {
                short.push(open_directory(directory).map_err(|error| fail("lowerdir", error))?);
            }
            let mut fds = short.iter();
            data = self.options(volatile, |path| match fds.next() {
                Some(fd) => format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes(),
                None => escape(path.as_os_str().as_bytes()),
            });
        }
        if data.len() > MOUNT_DATA_BYTES {
            return Err(fail("lowerdir", Errno::NAMETOOLONG));
        }
        let data = CString::new(data).map_err(|_| fail("lowerdir", Errno::INVAL))?;
        let at = self.upper.map_or_else(|| self.lower.last().map(PathBuf::as_path), |(_, work)| work.parent());
        let point = tempfile::Builder::new()
            .prefix("mount-")
            .tempdir_in(at.and_then(Path::parent).unwrap_or(Path::new("/tmp")))
            .map_err(|source| MountError { call: "mkdir", messages: String::new(), source })?;
        let flags = if self.upper.is_some() { MountFlags::empty() } else { MountFlags::RDONLY };
        rustix::mount::mount("slipway", point.path(), "overlay", flags, Some(data.as_c_str()))
            .map_err(|error| fail("mount", error))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(rustix::fs::CWD, point.path(), flags);
        let unmounted = rustix::mount::unmount(point.path(), UnmountFlags::DETACH);
        let tree = tree.map_err(|error| fail("open_tree", error))?;
        unmounted.map_err(|error| fail("umount", error))?;
        Ok(tree)
    }

    /// Options of mount(2); `lower` gives the text of lower directories.
    fn options(&self, volatile: bool, mut lower: impl FnMut(&Path) -> Vec<u8>) -> Vec<u8> {
        let directories: Vec<Vec<u8>> = self.lower.iter().map(|path| lower(path)).collect();
        let mut data = b"lowerdir=".to_vec();
        data.extend(directories.join(&b':'));
        if let Some((upper, work)) = self.upper {
            data.extend(b",upperdir=");
            data.extend(escape(upper.as_os_str().as_bytes()));
            data.extend(b",workdir=");
            data.extend(escape(work.as_os_str().as_bytes()));
            if volatile {
                data.extend(b",volatile");
            }
        }
        for (option, value) in OPTIONS {
            data.extend(format!(",{option}={value}").into_bytes());
        }
        if self.marks == Marks::User {
            data.extend(b",userxattr");
        }
        data
    }
}

/// Keeps a mount in this process's mount namespace, so that it can be copied for a RUN: before Linux 6.15 open_tree(2) copies
/// nothing that was never attached. Unmounted with this; who has a descriptor of it by then still reads it.
#[derive(Debug)]
pub(super) struct Attached {
    /// The directory it is mounted on; `None` once it is gone.
    point: Option<TempDir>,
}

impl Attached {
    /// Attaches a mount that was just made to a directory that `temp` gives; `None` if it can be copied as it is.
    pub(super) fn if_needed(
        mount: &OwnedFd,
        temp: impl FnOnce() -> Result<TempDir, TreeError>,
    ) -> Result<Option<Self>, TreeError> {
        use rustix::mount::{MoveMountFlags, move_mount, open_tree};
        let copy = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        match open_tree(mount, c"", copy) {
            Err(Errno::INVAL) => {}
            // What else is wrong shows where the copy is needed.
            Ok(_) | Err(_) => return Ok(None),
        }
        let point = temp()?;
        move_mount(mount, c"", rustix::fs::CWD, point.path(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|error| io_error("mount on", point.path())(error.into()))?;
        Ok(Some(Self { point: Some(point) }))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let Some(point) = self.point.take() else { return };
        if let Err(error) = rustix::mount::unmount(point.path(), UnmountFlags::DETACH) {
            tracing::debug!(path = %point.path().display(), %error, "left mounted");
            // Removing what it is mounted on would remove what is mounted there.
            std::mem::forget(point);
        }
    }
}

/// `nofollow`, because `off` means that redirects are followed on kernels built to do so, which `userxattr` excludes.
const OPTIONS: [(&str, &str); 3] = [("index", "off"), ("metacopy", "off"), ("redirect_dir", "nofollow")];

/// mount(2) separates options by commas and lower directories by colons.
fn escape(path: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(path.len());
    for byte in path {
        if matches!(byte, b',' | b':' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    escaped
}

fn set_directory(context: &OwnedFd, option: &str, directory: &Path) -> rustix::io::Result<()> {
    let path = directory.as_os_str().as_bytes();
    // Backslashes are read differently by different options and kernels.
    if path.len() <= FSCONFIG_BYTES && !path.contains(&b'\\') {
        return rustix::mount::fsconfig_set_string(context, option, directory);
    }
    let fd = open_directory(directory)?;
    match rustix::mount::fsconfig_set_fd(context, option, fd.as_fd()) {
        // Descriptors are taken since Linux 6.13.
        Err(Errno::INVAL) => {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            rustix::mount::fsconfig_set_string(context, option, path)
        }
        other => other,
    }
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// What the kernel has to say about a mount that failed (fsopen(2): messages are read from the context).
fn messages(context: &OwnedFd) -> String {
    let mut all = Vec::new();
    let mut buffer = [0_u8; 1024];
    while let Ok(count @ 1..) = rustix::io::read(context, &mut buffer) {
        let message = String::from_utf8_lossy(&buffer[..count]);
        // The first letter is the severity.
        all.push(message.trim_end().trim_start_matches(['e', 'w', 'i']).trim_start().to_owned());
    }
    all.join("; ")
}

/// Finds out by doing whether overlayfs works with upper directories below `directory`, which must be empty, and how its
/// marks are kept. The error is one line for people.
pub(super) fn probe(directory: &Path) -> Result<Marks, String> {
    let mut refused = None;
    for marks in [Marks::Trusted, Marks::User] {
        let below = directory.join(match marks {
            Marks::Trusted => "trusted",
            Marks::User => "user",
        });
        match probe_with(&below, marks) {
            Ok(()) => return Ok(marks),
            Err(reason) => {
                tracing::debug!(?marks, reason, "overlayfs refused");
                // Real root is refused the first form only where the second fails for the same reason.
                refused.get_or_insert(reason);
            }
        }
    }
    let reason = refused.unwrap_or_default();
    // The most frequent reason, which the kernel's answers do not tell: the writable layer of a container.
    match rustix::fs::statfs(directory) {
        Ok(found) if found.f_type == OVERLAYFS_MAGIC => Err(format!("it lies on overlayfs itself ({reason})")),
        _ => Err(reason),
    }
}

fn probe_with(directory: &Path, marks: Marks) -> Result<(), String> {
    let step = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let [one, two, upper, work] = ["one", "two", "upper", "work"].map(|name| directory.join(name));
    for path in [&one.join("shadowed"), &two.join("shadowed/below"), &two.join("kept"), &upper, &work] {
        std::fs::create_dir_all(path).map_err(step("mkdir"))?;
    }
    // Whiteouts that an overlay cannot tell from devices are shown to those who list a directory (xfs with ftype=0).
    let listed =
        open_directory(directory).and_then(rustix::fs::Dir::new).map_err(|errno| step("list")(errno.into()))?;
    for entry in listed {
        let entry = entry.map_err(|errno| step("list")(errno.into()))?;
        if entry.file_type() == FileType::Unknown && !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Err("the file system does not tell the types of a directory's entries (d_type; for xfs: ftype=1)"
                .to_owned());
        }
    }
    let shadowed = open_directory(&one.join("shadowed")).map_err(|error| step("open")(error.into()))?;
    marks.set_opaque(Target::Open(shadowed.as_fd())).map_err(step("set an attribute for overlayfs"))?;
    let node = FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, one.join("kept"), node, Mode::empty(), 0)
        .map_err(|error| step("make a whiteout")(error.into()))?;
    let stack = Stack { lower: vec![one, two], upper: Some((&upper, &work)), marks };
    let mounted = stack.mount().map_err(|error| error.to_string())?;
    let merged = Rootfs::from_fd(mounted);
    let found = merged.list().map_err(|error| error.to_string())?;
    let names: Result<Vec<_>, _> = found.iter().map(|file| file.map(|file| file.path)).collect();
    let names = names.map_err(|error| error.to_string())?;
    if names != [Path::new("shadowed")] {
        return Err("whiteouts and opaque directories of lower layers are not honoured".to_owned());
    }
    merged.remove(Path::new("shadowed")).map_err(step("remove a directory of a lower layer"))?;
    let raw = Rootfs::open(&upper).map_err(step("open"))?;
    let whiteout = raw.lstat(Path::new("shadowed")).map_err(step("find a whiteout"))?;
    if whiteout.kind != FileKind::CharDevice || whiteout.device != (0, 0) {
        return Err("a removed directory leaves no whiteout".to_owned());
    }
    Ok(())
}

/// Whether an entry of a raw layer directory is a whiteout.
pub(super) fn is_whiteout(kind: FileKind, device: (u32, u32)) -> bool {
    kind == FileKind::CharDevice && device == (0, 0)
}

/// Makes a whiteout in a raw layer directory.
pub(super) fn make_whiteout(dir: impl AsFd, name: &OsStr) -> rustix::io::Result<()> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Whether a directory of a raw layer directory is marked opaque.
pub(super) fn is_opaque(raw: &Rootfs, path: &Path, marks: Marks) -> io::Result<bool> {
    let found = raw.open_place(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY, Mode::empty());
    match found {
        Ok(fd) => marks.is_opaque(Target::Open(fd.as_fd())),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let place = raw.open_place(path, super::resolve::PLACE | OFlags::NOFOLLOW, Mode::empty())?;
            marks.is_opaque(Handle::Place(place, FileKind::Directory).target())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lower directories with one file each, the uppermost first; names of this length.
    fn lower(top: &Path, count: usize, length: usize) -> Vec<PathBuf> {
        let make = |number: usize| {
            let path = top.join(format!("{number:0length$}"));
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join(format!("f{number}")), "").unwrap();
            path
        };
        (0..count).map(make).collect()
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
    fn every_way_of_mounting_shows_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let probed = dir.path().join("probe");
        std::fs::create_dir(&probed).unwrap();
        let marks = match probe(&probed) {
            Ok(marks) => marks,
            Err(reason) => {
                eprintln!("skipped: {reason}");
                return;
            }
        };
        type Mount = fn(&Stack<'_>) -> Result<OwnedFd, MountError>;
        let ways: [(&str, Mount); 3] = [
            ("by parts", |stack| stack.mount_by_parts(true)),
            ("by parts, not volatile", |stack| stack.mount_by_parts(false)),
            ("by string", |stack| stack.mount_by_string(true)),
        ];
        // Short options; more than a page of them; a path that no single option takes; bytes that separate options.
        for (number, (prefix, count, length)) in
            [("a", 3, 1), ("b", 60, 200), (&*"long".repeat(50), 3, 100), ("se,pa:rat\\ors", 3, 1)]
                .into_iter()
                .enumerate()
        {
            for (way, mount) in ways {
                let top = dir.path().join(format!("{number} {way}")).join(prefix);
                let [upper, work] = ["upper", "work"].map(|name| top.join(name));
                std::fs::create_dir_all(&upper).unwrap();
                std::fs::create_dir(&work).unwrap();
                let lower = lower(&top, count, length);
                for upper in [None, Some((&*upper, &*work))] {
                    let stack = Stack { lower: lower.clone(), upper, marks };
                    let fd = mount(&stack).unwrap_or_else(|error| panic!("{number} {way}: {error}"));
                    let found = Rootfs::from_fd(fd);
                    assert_eq!(found.list().unwrap().len(), count, "{number} {way}");
                }
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir.path().to_str().unwrap()), "something is left mounted");
    }

    #[test]
    fn a_refused_mount_tells_what_the_kernel_said() {
        let missing = Path::new("/nowhere/at/all").to_owned();
        let stack = Stack { lower: vec![missing.clone(), missing], upper: None, marks: Marks::Trusted };
        let error = stack.mount_by_parts(true).unwrap_err();
        assert!(!error.to_string().is_empty());
    }
}
