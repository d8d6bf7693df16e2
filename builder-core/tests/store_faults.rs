//! The store on a full disk, on a read-only one, and after a kill.

#![allow(clippy::print_stderr, reason = "a test that cannot run says so")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use builder_core::store::{Store, StoreError};
use tempfile::TempDir;

/// A file system of its own, as long as this lives.
struct Mounted(TempDir);

impl Mounted {
    fn new(options: &str) -> Option<Self> {
        let directory = TempDir::new().expect("a temporary directory");
        let done = mount(&["-t", "tmpfs", "-o", options, "tmpfs"], directory.path());
        if !done {
            eprintln!("skipped: a tmpfs cannot be mounted here");
        }
        done.then(|| Self(directory))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn mount(arguments: &[&str], target: &Path) -> bool {
    let mount = Command::new("mount").args(arguments).arg(target).stderr(Stdio::null()).status();
    mount.is_ok_and(|status| status.success())
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let Some(disk) = Mounted::new("size=1m") else { return };
    let store = Store::open(disk.0.path()).expect("a new store");
    let kept = store.put(b"before").expect("there is room");
    let mut writer = store.writer().expect("a file");
    let error = writer.write_all(&vec![1; 4 << 20]).expect_err("no room");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert!(matches!(StoreError::from_write(error, Path::new("")), StoreError::NoSpace { .. }));
    drop(writer);
    // The part that was buffered fails when it is published.
    let mut writer = store.writer().expect("a file");
    let fill = vec![1; 900 << 10];
    writer.write_all(&fill).and_then(|()| writer.write_all(&fill[..200 << 10])).expect("the rest is buffered");
    assert!(matches!(writer.publish(None), Err(StoreError::NoSpace { .. })));
    assert_eq!(store.list().expect("lists"), [(kept, 6)]);
    // Eventually: a process that another test starts just now holds our files open until it executes.
    common::eventually(|| store.put(b"after").is_ok());
}

#[test]
fn a_read_only_disk_is_told() {
    let Some(disk) = Mounted::new("size=1m") else { return };
    drop(Store::open(disk.0.path()).expect("a new store"));
    if !mount(&["-o", "remount,ro"], disk.0.path()) {
        return eprintln!("skipped: a tmpfs cannot be made read-only here");
    }
    match Store::open(disk.0.path()) {
        Err(StoreError::ReadOnly { path, .. }) => assert!(path.starts_with(disk.0.path())),
        other => panic!("{other:?}"),
    }
}

/// Names the work dir of the process that is killed.
const WORK: &str = "SLIPWAY_TEST_STORE";

/// Not a test by itself: what [`a_kill_leaves_nothing`] starts.
#[test]
fn a_process_that_is_killed() {
    let Ok(work) = std::env::var(WORK) else { return };
    let store = Store::open(Path::new(&work)).expect("a store");
    let mut writer = store.writer().expect("a file");
    writer.write_all(&vec![7; 1 << 20]).and_then(|()| writer.flush()).expect("written");
    eprintln!("written");
    std::thread::sleep(std::time::Duration::from_secs(600));
}

#[test]
fn a_kill_leaves_nothing() {
    let work = TempDir::new().expect("a temporary directory");
    let mut child = Command::new(std::env::current_exe().expect("we run"))
        .args(["--exact", "a_process_that_is_killed", "--nocapture"])
        .env(WORK, work.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    assert!(stderr.lines().map_while(Result::ok).any(|line| line == "written"));
    let files = || std::fs::read_dir(work.path().join("tmp")).expect("lists").count();
    assert_eq!(files(), 2, "the lock and the process's directory");
    let beside = Store::open(work.path()).expect("opens beside a living one");
    assert_eq!(files(), 3, "the living one keeps its files");
    child.kill().and_then(|()| child.wait()).expect("killed");
    drop(beside);
    let store = Store::open(work.path()).expect("opens");
    assert_eq!(files(), 2, "the dead one's files are gone");
    assert!(store.list().expect("lists").is_empty());
}
