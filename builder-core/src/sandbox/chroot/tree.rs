//! Where a path of a command leads: into the tree, where the kernel finds it by itself, or to something that is not there.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::super::callers::AsUser;
use super::super::callers::Identity;
use super::super::{stubs, sys};
use super::bases::Bases;
use super::secrets::Secret;
use super::ways::{Way, Ways};

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file of the tree, or nothing at all: the kernel's own business.
    Native,
    /// This path, absolute and normal, begins with one of the served names.
    Served(PathBuf),
}

/// Directories that only the supervisor can show.
pub const SERVED: [&str; 2] = ["/proc", "/sys"];

/// The terminals; other names of /dev are files of the tree.
const TERMINALS: [&str; 2] = ["/dev/ptmx", "/dev/pts"];

/// Links of /dev into /proc, which are real but lead nowhere.
const LINKS: [&str; 4] = ["/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr"];

/// Where listings of served directories lie in the tree.
const LISTINGS: &str = "/proc/.listing";

/// A tree that a command has as its root.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    /// Its path for this process.
    outside: PathBuf,
    mounts: Vec<PathBuf>,
    /// Devices that must be served because nodes cannot be opened where the tree lies.
    pub devices: Vec<PathBuf>,
    /// Copies that a command should not write to.
    read_only: Vec<PathBuf>,
    /// Files that are in memory alone.
    secrets: Vec<Secret>,
    ways: Ways,
    bases: Bases,
    /// Which directory each listing shows.
    listings: Mutex<Vec<PathBuf>>,
    /// What is in each file of ours.
    texts: Mutex<Vec<Vec<u8>>>,
}

impl Tree {
    /// The tree `root`; `devices` are paths below /dev that do not work as nodes, `read_only` what shall not be written to,
    /// `secrets` what is in memory alone.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(
        root: OwnedFd,
        devices: Vec<PathBuf>,
        read_only: Vec<PathBuf>,
        secrets: Vec<Secret>,
    ) -> std::io::Result<Self> {
        let outside = super::places::path_of(root.as_fd())?;
        let mounts = SERVED.iter().map(PathBuf::from).collect();
        let (ways, bases) = (Ways::default(), Bases::default());
        let (listings, texts) = (Mutex::default(), Mutex::default());
        Ok(Self { root, outside, mounts, devices, read_only, secrets, ways, bases, listings, texts })
    }

    /// The file in memory that has this path.
    pub fn secret(&self, path: &Path) -> Option<&Secret> {
        self.secrets.iter().find(|secret| secret.path == path)
    }

    /// The file in memory that a link of /proc/PID/fd leads to.
    pub fn secret_shown_as(&self, text: &[u8]) -> Option<&Secret> {
        self.secrets.iter().find(|secret| secret.is_shown_as(text))
    }

    /// Where `path` leads for `thread`, relative to `directory` (`AT_FDCWD` or a descriptor of it).
    pub fn place(&self, thread: i32, directory: i32, path: &[u8], follow: bool) -> Place {
        if path.is_empty() {
            return Place::Native;
        }
        match self.absolute(thread, directory, path) {
            Some(path) => self.lead(&path, follow),
            None => Place::Native,
        }
    }

    /// Whether an absolute path is that of most calls: one that leads where its text says, and to nothing that is served.
    fn is_ordinary(&self, path: &[u8], follow: bool) -> bool {
        !matches!(path.get(..4), Some(b"/pro" | b"/sys" | b"/dev"))
            && !self.secrets.iter().any(|secret| secret.path.as_os_str().as_bytes() == path)
            && self.ways.is_known(&self.root, path, follow)
    }

    /// A path of the tree for a path of a call; `None` if it is relative to something else.
    pub fn absolute(&self, thread: i32, directory: i32, path: &[u8]) -> Option<PathBuf> {
        let path = Path::new(OsStr::from_bytes(path));
        // `./file` needs no look at its dot; `.` and `./` do.
        let rest = path.strip_prefix(".").ok().filter(|rest| !rest.as_os_str().is_empty()).unwrap_or(path);
        if path.has_root() { Some(path.to_owned()) } else { Some(self.base(thread, directory)?.join(rest)) }
    }

    /// What a call of `thread` is refused that would change a path which is, or lies in, something that a mount would show
    /// read-only: `EBUSY` for the mount itself if its name is to go. By its text alone: it keeps nobody from anything that
    /// matters, as these are copies.
    pub fn refuses(&self, thread: i32, directory: i32, path: &[u8], name_goes: bool) -> Option<Errno> {
        if self.read_only.is_empty() {
            return None;
        }
        self.refuses_path(&self.absolute(thread, directory, path)?, name_goes)
    }

    /// The same for an absolute path.
    pub fn refuses_path(&self, path: &Path, name_goes: bool) -> Option<Errno> {
        if self.read_only.is_empty() {
            return None;
        }
        let path = normal(path);
        let top = self.read_only.iter().find(|top| path.starts_with(top))?;
        Some(if name_goes && *top == path { Errno::BUSY } else { Errno::ROFS })
    }

    /// A call of `thread` makes what has this absolute path another, maybe a link that leads elsewhere.
    pub fn forget_way(&self, thread: i32, path: &Path) {
        match self.ways.of(&self.root, path, false) {
            Way::Plain(path) => {
                let path = normal(&path);
                self.ways.forget(path.as_os_str().as_bytes());
                self.bases.forget(thread, &path);
            }
            Way::Links => self.forget_all_ways(thread),
        }
    }

    /// A call of `thread` makes something another, and it cannot be told what.
    pub fn forget_all_ways(&self, thread: i32) {
        self.bases.forget_all(thread);
        self.ways.forget_all();
    }

    /// Where an absolute path of the tree leads.
    pub fn lead(&self, path: &Path, follow: bool) -> Place {
        if self.is_ordinary(path.as_os_str().as_bytes(), follow) {
            return Place::Native;
        }
        let plain = !path.components().any(|part| part == Component::ParentDir);
        if plain && let Some(place) = self.served(path, follow) {
            return place;
        }
        // Mostly there is no link on the way, so that the path leads where its text says; or down to where nothing is.
        if let Way::Plain(plain) = self.ways.of(&self.root, path, follow) {
            return self.served(&plain, follow).unwrap_or(Place::Native);
        }
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, !follow);
        match self.open(path, flags, 0) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            // A link of the tree may lead to the empty directory beneath a served one.
            Ok(file) => return self.found(file.as_fd(), "", follow),
            Err(_) => return Place::Native,
        }
        // Mostly there is just nothing of that name in a directory that is there.
        if let Some((parent, name)) = path.parent().zip(path.file_name())
            && let Ok(parent) = self.open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, 0)
            && rustix::fs::readlinkat(&parent, name, Vec::new()).is_err()
        {
            return self.found(parent.as_fd(), name, follow);
        }
        let mut mounts = self.mounts.clone();
        mounts.extend(self.devices.iter().cloned());
        mounts.extend(TERMINALS.iter().map(PathBuf::from));
        match stubs::locate(self.root.as_fd(), path, &mounts) {
            // What climbs out of a served directory again is the tree's, and natively found there.
            Ok(place) if place.covered => self.served(&normal_to_link(&place.path), follow).unwrap_or(Place::Native),
            _ => Place::Native,
        }
    }

    /// What `name` in an open directory of the tree is; the directory, or file, itself if `name` is empty.
    fn found(&self, file: BorrowedFd<'_>, name: impl AsRef<OsStr>, follow: bool) -> Place {
        let inside = super::places::path_of(file).ok().and_then(|outer| self.inner(&outer));
        let named = |inside: PathBuf| if name.as_ref().is_empty() { inside } else { inside.join(name.as_ref()) };
        inside.and_then(|inside| self.served(&named(inside), follow)).unwrap_or(Place::Native)
    }

    /// What the text alone tells.
    fn served(&self, path: &Path, follow: bool) -> Option<Place> {
        if let Some(secret) = self.secret(path) {
            return Some(Place::Served(secret.path.clone()));
        }
        // Of most paths that is known without taking them apart.
        if !path.as_os_str().as_bytes().windows(4).any(|four| matches!(four, b"/pro" | b"/sys" | b"/dev")) {
            return None;
        }
        let path = if follow && LINKS.iter().any(|link| path.starts_with(link)) {
            let text = |name: &str| path.strip_prefix(name).ok().map(Path::to_owned);
            let fd = |rest: PathBuf| Path::new("/proc/self/fd").join(rest);
            let numbered = |number: &str| Path::new("/proc/self/fd").join(number);
            text("/dev/fd")
                .map(fd)
                .or_else(|| text("/dev/stdin").map(|_| numbered("0")))
                .or_else(|| text("/dev/stdout").map(|_| numbered("1")))
                .or_else(|| text("/dev/stderr").map(|_| numbered("2")))?
        } else {
            path.to_owned()
        };
        let is = |top: &Path| path.starts_with(top);
        let served = self.mounts.iter().any(|top| is(top))
            || TERMINALS.iter().any(|top| is(Path::new(top)))
            || self.devices.contains(&path);
        if !served {
            return None;
        }
        Some(Place::Served(normal_to_link(&self.unlisted(&path))))
    }

    /// The directory that a listing shows, for a path in one.
    fn unlisted(&self, path: &Path) -> PathBuf {
        let Ok(rest) = path.strip_prefix(LISTINGS) else { return path.to_owned() };
        let mut parts = rest.components();
        let number = parts.next().and_then(|part| part.as_os_str().to_str()?.parse::<usize>().ok());
        let listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        match number.and_then(|number| listings.get(number)) {
            Some(directory) => directory.join(parts.as_path()),
            None => path.to_owned(),
        }
    }

    /// Where the path of a directory descriptor, or of the working directory, is in the tree.
    pub fn base(&self, thread: i32, directory: i32) -> Option<PathBuf> {
        if directory == libc::AT_FDCWD {
            self.bases.of(thread, || self.linked(thread, &format!("/proc/{thread}/cwd")))
        } else {
            self.linked(thread, &format!("/proc/{thread}/fd/{directory}"))
        }
    }

    /// Where a link of a thread in /proc leads.
    fn linked(&self, thread: i32, link: &str) -> Option<PathBuf> {
        let base = fs::read_link(link).or_else(|error| {
            if error.kind() != std::io::ErrorKind::PermissionDenied {
                return Err(error);
            }
            // Somebody else's, who may look it up.
            let _user = AsUser::new(Identity::of(thread).ok_or(Errno::SRCH)?)?;
            fs::read_link(link)
        });
        self.inner(&base.ok()?)
    }

    /// A thread goes somewhere else.
    pub fn forget_bases(&self, thread: i32) {
        self.bases.forget_all(thread);
    }

    /// A thread makes a call: whatever it went to, it is there.
    pub fn called(&self, thread: i32) {
        self.bases.called(thread);
    }

    /// The path in the tree of a path of this process; `None` for what lies elsewhere.
    pub fn inner(&self, outer: &Path) -> Option<PathBuf> {
        outer.strip_prefix(&self.outside).ok().map(|rest| Path::new("/").join(rest))
    }

    /// Opens a path of the tree, every link followed within it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(&self, path: &Path, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        let mode = if flags.intersects(OFlags::CREATE | OFlags::TMPFILE) { mode & 0o7777 } else { 0 };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        stubs::open_again(self.root.as_fd(), path, flags, Mode::from_raw_mode(mode), how)
    }

    /// A new directory of the tree in which the names of `directory` are going to be shown.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn listing(&self, directory: &Path) -> Result<PathBuf, Errno> {
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        let path = Path::new(LISTINGS).join(listings.len().to_string());
        listings.push(directory.to_owned());
        drop(listings);
        let outer = self.outer(&path);
        fs::create_dir_all(&outer).map_err(sys::errno)?;
        Ok(path)
    }

    /// A file of the tree with this text, the same one whenever it is asked for: what stat(2) says of a path and fstat(2) of what was
    /// opened there is compared by cp(1).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn text(&self, text: &[u8]) -> Result<PathBuf, Errno> {
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = texts.iter().position(|known| known == text);
        let path = Path::new(LISTINGS).join(format!("text-{}", known.unwrap_or(texts.len())));
        if known.is_none() {
            let outer = self.outer(&path);
            fs::create_dir_all(self.outer(Path::new(LISTINGS))).map_err(sys::errno)?;
            fs::write(&outer, text).map_err(sys::errno)?;
            fs::set_permissions(&outer, fs::Permissions::from_mode(0o444)).map_err(sys::errno)?;
            texts.push(text.to_owned());
        }
        Ok(path)
    }

    /// Where a path of ours in the tree lies for this process.
    pub fn outer(&self, path: &Path) -> PathBuf {
        self.outside.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Whether a path of /proc is a link that leads back into the tree: `/proc/self/cwd`, `/proc/7/task/7/fd/3`.
fn is_link_back(path: &Path) -> bool {
    let mut names = path.iter().skip(1).map(OsStr::as_bytes);
    if names.next() != Some(b"proc") || !names.next().is_some_and(is_process) {
        return false;
    }
    let mut name = names.next();
    if name == Some(b"task") {
        name = names.nth(1);
    }
    match name {
        Some(b"cwd" | b"root") => names.next().is_none(),
        Some(b"fd") => names.next().is_some() && names.next().is_none(),
        _ => false,
    }
}

fn is_process(name: &[u8]) -> bool {
    matches!(name, b"self" | b"thread-self") || name.iter().all(u8::is_ascii_digit)
}

/// [`normal`] down to a link that leads back into the tree. What comes after that stays as it is, since `..` of it is there.
fn normal_to_link(path: &Path) -> PathBuf {
    let mut done = PathBuf::from("/");
    let mut parts = path.components();
    while let Some(part) = parts.next() {
        match part {
            Component::Normal(name) => done.push(name),
            Component::ParentDir => _ = done.pop(),
            _ => {}
        }
        if is_link_back(&done) {
            done.extend(parts);
            break;
        }
    }
    done
}

/// Without `.`, and with `..` taken literally: the served directories have no links that lead up.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => _ = normal.pop(),
            _ => {}
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_lead_somewhere() {
        let directory = tempfile::tempdir().expect("directory");
        let at = |path: &str| directory.path().join(path);
        for path in ["etc", "proc", "sys", "dev", "var"] {
            fs::create_dir(at(path)).expect(path);
        }
        symlink("../proc/self/mounts", at("etc/mtab")).expect("link");
        symlink("/dev/stdout", at("var/log")).expect("link");
        symlink("/proc/self/fd/1", at("dev/stdout")).expect("link");
        symlink("/proc/self/fd", at("dev/fd")).expect("link");
        symlink("nowhere", at("var/broken")).expect("link");
        symlink("../proc", at("var/p")).expect("link");
        fs::write(at("etc/passwd"), "").expect("write");
        let root = OwnedFd::from(fs::File::open(directory.path()).expect("open"));
        let tree = Tree::new(root, vec!["/dev/null".into()], Vec::new(), Vec::new()).expect("tree");
        #[track_caller]
        fn check(tree: &Tree, path: &str, follow: bool, expected: Option<&str>) {
            let expected = expected.map_or(Place::Native, |path| Place::Served(path.into()));
            assert_eq!(tree.lead(Path::new(path), follow), expected, "{path}");
        }
        check(&tree, "/etc/passwd", true, None);
        check(&tree, "/etc/none", true, None);
        check(&tree, "/none/at/all", true, None);
        check(&tree, "/proc", true, Some("/proc"));
        check(&tree, "/proc/self/./fd//3", true, Some("/proc/self/fd/3"));
        check(&tree, "/etc/../proc/cpuinfo", true, Some("/proc/cpuinfo"));
        check(&tree, "/etc/../proc", true, Some("/proc"));
        check(&tree, "/var/p", true, Some("/proc"));
        check(&tree, "/var/p", false, None);
        check(&tree, "/var/p/cpuinfo", true, Some("/proc/cpuinfo"));
        check(&tree, "/var/p/self/fd/3", true, Some("/proc/self/fd/3"));
        check(&tree, "/etc/mtab", true, Some("/proc/self/mounts"));
        check(&tree, "/etc/mtab", false, None);
        check(&tree, "/var/log", true, Some("/proc/self/fd/1"));
        check(&tree, "/var/broken", true, None);
        check(&tree, "/dev/stdout", true, Some("/proc/self/fd/1"));
        check(&tree, "/dev/stdout", false, None);
        check(&tree, "/dev/fd/7", true, Some("/proc/self/fd/7"));
        check(&tree, "/dev/null", true, Some("/dev/null"));
        check(&tree, "/dev/zero", true, None);
        check(&tree, "/processes", true, None);
        // Climbing out of a served directory leads into the tree, never out of it.
        check(&tree, "/sys/../../etc/shadow", true, None);
        check(&tree, "/proc/self/../../../etc/none", true, None);
        check(&tree, "/sys/../proc/../dev/../proc/version", true, Some("/proc/version"));
        // What a link of /proc leads to has a parent of its own.
        check(&tree, "/proc/self/../self/cwd/../x/.", true, Some("/proc/self/cwd/../x"));
        check(&tree, "/proc/7/task/8/fd/3/..", true, Some("/proc/7/task/8/fd/3/.."));
        check(&tree, "/dev/fd/3/../y", true, Some("/proc/self/fd/3/../y"));
        check(&tree, "/var/p/self/root/../proc/version", true, Some("/proc/self/root/../proc/version"));
        check(&tree, "/proc/self/fd/../status", true, Some("/proc/self/status"));
        let listing = tree.listing(Path::new("/proc/7/fd")).expect("listing");
        check(&tree, listing.join("3").to_str().expect("UTF-8"), true, Some("/proc/7/fd/3"));
    }
}
