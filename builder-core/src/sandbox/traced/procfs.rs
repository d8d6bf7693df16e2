//! /proc as the RUN sees it: its own processes, and of them the inner story.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

use super::tasks::lock;
use super::view::{Base, Kind, Magic, View};
use super::world::World;

/// What a path below /proc names.
pub enum Entry<'a> {
    /// A process of ours and what of it, without leading `/`; `task/N/` is left out.
    Process(i32, &'a [u8]),
    /// Something else.
    Other(&'a [u8]),
}

/// Hidden, as by container runtimes.
const HIDDEN: [&[u8]; 10] = [
    b"acpi",
    b"asound",
    b"interrupts",
    b"kcore",
    b"keys",
    b"latency_stats",
    b"sched_debug",
    b"scsi",
    b"timer_list",
    b"timer_stats",
];

/// Read-only, as by container runtimes.
const SETTINGS: [&[u8]; 5] = [b"bus", b"fs", b"irq", b"sys", b"sysrq-trigger"];

/// Takes a physical path apart; `None` if it is not below /proc.
pub fn entry<'a>(view: &View, path: &'a [u8]) -> Option<Entry<'a>> {
    let rest = path.strip_prefix(b"/proc")?;
    if !rest.is_empty() && rest[0] != b'/' || view.mount(path).kind != Kind::Proc {
        return None;
    }
    let rest = rest.strip_prefix(b"/").unwrap_or(rest);
    let (first, below) = cut(rest);
    let Some(process) = number(first) else { return Some(Entry::Other(rest)) };
    if let Some(below) = below.strip_prefix(b"task/") {
        let (thread, below) = cut(below);
        if let Some(thread) = number(thread) {
            return Some(Entry::Process(thread, below));
        }
    }
    Some(Entry::Process(process, below))
}

fn cut(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().position(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (path, b""),
    }
}

fn number(text: &[u8]) -> Option<i32> {
    if text.is_empty() || text.len() > 9 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A descriptor of a process: `fd/3` gives 3.
pub fn descriptor(below: &[u8]) -> Option<i32> {
    number(below.strip_prefix(b"fd/")?)
}

impl Magic for World {
    fn link(&self, path: &[u8], caller: (i32, i32), last: bool) -> Result<Option<Vec<u8>>, Errno> {
        if !path.starts_with(b"/proc/") {
            return Ok(None);
        }
        let Some(entry) = entry(&self.view, path) else { return Ok(None) };
        match entry {
            Entry::Other(name) => {
                if let Some(rest) = name.strip_prefix(b"self").filter(|rest| rest.is_empty()) {
                    return Ok(Some([format!("/proc/{}", caller.0).as_bytes(), rest].concat()));
                }
                if name == b"thread-self" {
                    return Ok(Some(format!("/proc/{}/task/{}", caller.0, caller.1).into_bytes()));
                }
                let (first, _) = cut(name);
                if HIDDEN.contains(&first) {
                    return Err(Errno::NOENT);
                }
                Ok(None)
            }
            Entry::Process(process, below) => {
                let Some(task) = self.tasks.get(process).or_else(|| self.tasks.of_process(process)) else {
                    return Err(Errno::NOENT);
                };
                match below {
                    b"root" => Ok(Some(lock(&task.surroundings).root.clone())),
                    b"cwd" => match self.cwd(&task) {
                        Base::Path(path) => Ok(Some(path)),
                        _ => Err(Errno::NOENT),
                    },
                    // The last one is opened as what it is, not by its path.
                    b"exe" if !last => Err(Errno::NOTDIR),
                    _ if !last => match descriptor(below) {
                        Some(fd) => match self.base(&task, fd)? {
                            Base::Path(path) => Ok(Some(path)),
                            _ => Err(Errno::NOENT),
                        },
                        None => Ok(None),
                    },
                    _ => Ok(None),
                }
            }
        }
    }
}

/// Whether a path below /proc may be seen.
///
/// # Errors
/// `ENOENT` if not.
pub fn check(world: &World, path: &[u8]) -> Result<(), Errno> {
    match entry(&world.view, path) {
        Some(Entry::Process(process, _)) if world.tasks.of_process(process).is_none() => Err(Errno::NOENT),
        Some(Entry::Other(name)) if HIDDEN.contains(&cut(name).0) => Err(Errno::NOENT),
        _ => Ok(()),
    }
}

/// Whether a name of /proc itself may be seen.
pub fn is_listed(world: &World, name: &[u8]) -> bool {
    match number(name) {
        Some(process) => world.tasks.get(process).is_some_and(|task| task.process == process),
        None => !HIDDEN.contains(&name),
    }
}

/// Whether a path below /proc is that of a setting of the kernel, which container runtimes mount read-only. Who calls may be
/// real root.
pub fn is_setting(world: &World, path: &[u8]) -> bool {
    matches!(entry(&world.view, path), Some(Entry::Other(name)) if SETTINGS.contains(&cut(name).0))
}

/// Text of a file that would tell the outer story.
pub fn text(world: &World, path: &[u8]) -> Option<Vec<u8>> {
    match entry(&world.view, path)? {
        Entry::Other(name) => match name {
            b"sys/kernel/hostname" => Some([world.hostname.as_bytes(), b"\n"].concat()),
            _ => None,
        },
        Entry::Process(process, below) => {
            let host = || fs::read(format!("/proc/{process}/{}", std::ffi::OsStr::from_bytes(below).display())).ok();
            match below {
                b"maps" | b"smaps" | b"numa_maps" => Some(translated(world, &host()?)),
                b"status" => Some(status(world, process, &host()?)),
                b"mounts" => Some(mounts(world)),
                b"mountinfo" => Some(mountinfo(world)),
                b"mountstats" => Some(Vec::new()),
                _ => None,
            }
        }
    }
}

/// Paths of the host in lines of `maps` replaced by those inside.
fn translated(world: &World, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let end = line.strip_suffix(b"\n").unwrap_or(line);
        match end.iter().position(|&byte| byte == b'/') {
            Some(at) => {
                out.extend_from_slice(&end[..at]);
                match world.view.inside(&end[at..]) {
                    Some(path) => out.extend(path),
                    None => out.extend(b"/"),
                }
                out.extend_from_slice(&line[end.len()..]);
            }
            None => out.extend_from_slice(line),
        }
    }
    out
}

fn status(world: &World, process: i32, text: &[u8]) -> Vec<u8> {
    let Some(task) = world.tasks.of_process(process) else { return text.to_vec() };
    let credentials = lock(&task.credentials).clone();
    let umask = lock(&task.surroundings).umask;
    let text = String::from_utf8_lossy(text);
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let (name, _) = line.split_once(':').unwrap_or((line, ""));
        let ids = |ids: super::ids::Ids| format!("{}\t{}\t{}\t{}", ids.real, ids.effective, ids.saved, ids.files);
        let value = match name {
            "Uid" => ids(credentials.user),
            "Gid" => ids(credentials.group),
            "Groups" => credentials.groups.iter().fold(String::new(), |all, group| all + &format!("{group} ")),
            "Umask" => format!("{umask:04o}"),
            "CapInh" => format!("{:016x}", credentials.inheritable),
            "CapPrm" => format!("{:016x}", credentials.permitted),
            "CapEff" => format!("{:016x}", credentials.effective),
            "CapBnd" => format!("{:016x}", credentials.bounding),
            "CapAmb" => format!("{:016x}", credentials.ambient),
            "NoNewPrivs" => i32::from(credentials.no_new_privs).to_string(),
            "TracerPid" => "0".to_owned(),
            _ => {
                out.push_str(line);
                out.push('\n');
                continue;
            }
        };
        writeln!(out, "{name}:\t{value}").expect("writing to a string cannot fail");
    }
    out.into_bytes()
}

/// As in /proc/mounts and mountinfo: type, source and flags of what is mounted.
fn described(world: &World) -> Vec<(String, &'static str, &'static str)> {
    let escaped = |path: &[u8]| {
        let mut text = String::new();
        for &byte in path {
            match byte {
                b' ' | b'\t' | b'\n' | b'\\' => _ = write!(text, "\\{byte:03o}"),
                _ => text.push(char::from(byte)),
            }
        }
        if text.is_empty() { "/".to_owned() } else { text }
    };
    let kind = |kind: Kind, target: &[u8]| match kind {
        Kind::Tree => "overlay",
        Kind::Proc => "proc",
        Kind::Sys => "sysfs",
        Kind::Device if target == b"/dev/pts" => "devpts",
        Kind::Temporary => "tmpfs",
        Kind::Device | Kind::Plain => "ext4",
    };
    let flags = |readonly: bool| if readonly { "ro,relatime" } else { "rw,relatime" };
    let mounts = world.view.mounts().iter();
    mounts.map(|m| (escaped(&m.target), kind(m.kind, &m.target), flags(m.readonly))).collect()
}

fn mounts(world: &World) -> Vec<u8> {
    let lines =
        described(world).into_iter().map(|(target, kind, flags)| format!("{kind} {target} {kind} {flags} 0 0\n"));
    lines.collect::<String>().into_bytes()
}

fn mountinfo(world: &World) -> Vec<u8> {
    let line = |(number, (target, kind, flags)): (usize, (String, &str, &str))| {
        let parent = if number == 0 { 1 } else { 100 };
        format!("{} {parent} 0:{} / {target} {flags} - {kind} {kind} rw\n", 100 + number, 50 + number)
    };
    described(world).into_iter().enumerate().map(line).collect::<String>().into_bytes()
}
