//! Shell commands on a directory and on an overlay, and what a layer must say about them.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::rootfs::Rootfs;

/// Directories for an overlay.
struct Overlay(tempfile::TempDir);

impl Overlay {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["lower", "upper", "work", "merged"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        Self(dir)
    }

    /// An error says why no overlay can be mounted here.
    fn run(&self, setup: &str, step: &str) -> Result<Vec<Change>, String> {
        let path = |name: &str| self.0.path().join(name);
        shell(&path("lower"), setup);
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off,index=off",
            path("lower").display(),
            path("upper").display(),
            path("work").display()
        );
        let mounted = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(path("merged"))
            .output()
            .map_err(|error| error.to_string())?;
        if !mounted.status.success() {
            return Err(String::from_utf8_lossy(&mounted.stderr).into_owned());
        }
        shell(&path("merged"), step);
        let unmounted = Command::new("umount").arg(path("merged")).status().expect("umount can be run");
        assert!(unmounted.success(), "nothing is open below the mount");
        let open = |name: &str| Rootfs::open(&path(name)).expect("a directory");
        let upper_path = path("upper");
        let is_opaque = |path: &Path| -> io::Result<bool> {
            let mut value = [0; 1];
            match rustix::fs::lgetxattr(upper_path.join(path), "trusted.overlay.opaque", &mut value) {
                Ok(1) => Ok(value == *b"y"),
                _ => Ok(false),
            }
        };
        Ok(all(&overlay::changes(&open("upper"), &open("lower"), &is_opaque).expect("readable").0))
    }
}

fn directory(setup: &str, step: &str) -> Vec<Change> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    shell(dir.path(), setup);
    let rootfs = Rootfs::open(dir.path()).expect("a directory");
    let before = rootfs.list().expect("readable");
    shell(dir.path(), step);
    all(&directory::changes(&before, &rootfs.list().expect("readable"), &rootfs, None).expect("readable"))
}

fn all(changes: &Changes) -> Vec<Change> {
    changes.iter().map(|change| change.expect("readable")).collect()
}

fn shell(directory: &Path, script: &str) {
    let status = Command::new("sh").args(["-euc", script]).current_dir(directory).status().expect("sh can be run");
    assert!(status.success(), "{script}");
}

/// `d/` for a directory, `f`, `f -> first` for a hard link, `-gone`.
fn shown(changes: &[Change]) -> Vec<String> {
    changes
        .iter()
        .map(|change| match change {
            Change::Removed { path } => format!("-{}", path.display()),
            Change::Entry { path, link_to: Some(target), .. } => format!("{} -> {}", path.display(), target.display()),
            Change::Entry { path, metadata, .. } if metadata.kind == FileKind::Directory => {
                format!("{}/", path.display())
            }
            Change::Entry { path, .. } => path.display().to_string(),
        })
        .collect()
}

#[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
fn in_overlay(setup: &str, step: &str) -> Option<Vec<String>> {
    match Overlay::new().run(setup, step) {
        Ok(changes) => Some(shown(&changes)),
        Err(reason) => {
            eprintln!("skipped: no overlay can be mounted here: {reason}");
            None
        }
    }
}

/// Both modes must say `expected`.
#[track_caller]
fn check(setup: &str, step: &str, expected: &[&str]) {
    check_directory(setup, step, expected);
    check_overlay(setup, step, expected);
}

#[track_caller]
fn check_directory(setup: &str, step: &str, expected: &[&str]) {
    assert_eq!(shown(&directory(setup, step)), expected, "directory mode: {step}");
}

#[track_caller]
fn check_overlay(setup: &str, step: &str, expected: &[&str]) {
    if let Some(seen) = in_overlay(setup, step) {
        assert_eq!(seen, expected, "overlay mode: {step}");
    }
}

const BASE: &str = "mkdir -p opt/del opt/hl opt/keep opt/opaque lib/x; echo a > opt/del/a; echo c > opt/del/c; \
    echo one > opt/hl/one; ln opt/hl/one opt/hl/three; ln opt/hl/one opt/hl/two; echo keep > opt/keep/file; \
    echo new > opt/opaque/new1; ln -s keep opt/link; echo s > opt/suid; chmod 4755 opt/suid; mkfifo lib/pipe; \
    touch -d '2020-01-01 00:00:00' opt/del/a opt/keep/file opt/suid";

#[test]
fn nothing_is_nothing() {
    check(BASE, ":", &[]);
    check(BASE, "cat opt/keep/file > /dev/null; ls -R > /dev/null", &[]);
    check("", "", &[]);
}

#[test]
fn new_entries_come_with_their_ancestors_in_tree_order() {
    check(
        BASE,
        "mkdir -p z/y; echo 1 > z/y/f; echo 2 > opt/del/b; echo 3 > opt/del-x; mkdir opt/del/b2",
        &["opt/", "opt/del/", "opt/del/b", "opt/del/b2/", "opt/del-x", "z/", "z/y/", "z/y/f"],
    );
}

#[test]
fn deletions_are_whiteouts_of_the_topmost_name() {
    check(BASE, "rm opt/del/a", &["opt/", "opt/del/", "-opt/del/a"]);
    check(BASE, "rm -r opt/del", &["opt/", "-opt/del"]);
    check(BASE, "rm -r opt", &["-opt"]);
    check(BASE, "rm lib/pipe opt/link", &["lib/", "-lib/pipe", "opt/", "-opt/link"]);
    check(BASE, "echo x > t; rm t; mkdir d; rmdir d", &[]);
}

#[test]
fn directories_made_anew_list_what_vanished() {
    check(BASE, "rm -r opt/hl; mkdir opt/hl", &["opt/", "opt/hl/", "-opt/hl/one", "-opt/hl/three", "-opt/hl/two"]);
    check(
        BASE,
        "rm -r opt; mkdir -p opt/del/new; echo n > opt/del/new/f",
        &[
            "opt/",
            "opt/del/",
            "-opt/del/a",
            "-opt/del/c",
            "opt/del/new/",
            "opt/del/new/f",
            "-opt/hl",
            "-opt/keep",
            "-opt/link",
            "-opt/opaque",
            "-opt/suid",
        ],
    );
    // A new file that is the same as the old one but for its time.
    check(BASE, "rm -r opt/keep; mkdir opt/keep; echo keep > opt/keep/file", &["opt/", "opt/keep/", "opt/keep/file"]);
}

#[test]
fn what_replaces_a_directory_needs_no_whiteouts() {
    check(BASE, "rm -r opt/opaque; ln -s keep opt/opaque", &["opt/", "opt/opaque"]);
    check(BASE, "rm -r opt/del; echo f > opt/del", &["opt/", "opt/del"]);
    check(BASE, "rm opt/suid; mkdir opt/suid; echo f > opt/suid/f", &["opt/", "opt/suid/", "opt/suid/f"]);
    check(BASE, "rm opt/link; mkdir opt/link; echo f > opt/link/file", &["opt/", "opt/link/", "opt/link/file"]);
}

#[test]
fn metadata_counts_but_not_the_time_of_a_directory() {
    check(
        BASE,
        "chmod 600 opt/suid; chmod 700 opt/del; chmod +t opt/keep",
        &["opt/", "opt/del/", "opt/keep/", "opt/suid"],
    );
    check(
        BASE,
        "touch -d '2010-10-10 10:10:10' opt/del/a opt/opaque; touch -h -d '2010-10-10 10:10:10' opt/link",
        &["opt/", "opt/del/", "opt/del/a", "opt/link"],
    );
    check(BASE, "chmod 1777 .; chown 1000:1000 .", &[]);
    check(BASE, "chown 5:6 opt/keep/file", &["opt/", "opt/keep/", "opt/keep/file"]);
}

#[test]
fn what_is_as_before_is_left_out() {
    check(BASE, "chmod 700 opt/keep; chmod 755 opt/keep; chown 0:0 opt/keep lib lib/pipe", &[]);
    check(BASE, "rm opt/link; ln -s else opt/link", &["opt/", "opt/link"]);
    // Without layers the old content is known in overlay mode only.
    check_overlay(BASE, "chmod 600 opt/keep/file; chmod 644 opt/keep/file; chown -h 0:0 opt/link", &[]);
    check_directory(BASE, "chmod 600 opt/keep/file; chmod 644 opt/keep/file", &["opt/", "opt/keep/", "opt/keep/file"]);
    check_overlay(BASE, "rm opt/del/a; echo a > opt/del/a; touch -d '2020-01-01 00:00:00' opt/del/a", &[]);
}

#[test]
fn changed_content_under_an_old_time_is_found() {
    let step = "echo KEEP > opt/keep/file; touch -d '2020-01-01 00:00:00' opt/keep/file";
    check(BASE, step, &["opt/", "opt/keep/", "opt/keep/file"]);
    let step = "rm opt/del/a; echo A > opt/del/a; touch -d '2020-01-01 00:00:00' opt/del/a";
    check(BASE, step, &["opt/", "opt/del/", "opt/del/a"]);
}

#[test]
fn hard_links_are_links_to_the_first_name() {
    check("", "mkdir d; echo x > d/b; ln d/b d/a; ln d/b c; chmod 640 c", &["c", "d/", "d/a -> c", "d/b -> c"]);
    // A new name of an old file is a file of its own: as BuildKit's overlay differ, the old name is not repeated.
    check(BASE, "ln opt/keep/file opt/keep/second", &["opt/", "opt/keep/", "opt/keep/second"]);
    check(
        BASE,
        "ln opt/keep/file opt/keep/a; ln opt/keep/file z",
        &["opt/", "opt/keep/", "opt/keep/a", "z -> opt/keep/a"],
    );
    check(BASE, "rm opt/hl/one", &["opt/", "opt/hl/", "-opt/hl/one"]);
    check_overlay(BASE, "echo more >> opt/hl/one", &["opt/", "opt/hl/", "opt/hl/one"]);
    check_directory(
        BASE,
        "echo more >> opt/hl/one",
        &["opt/", "opt/hl/", "opt/hl/one", "opt/hl/three -> opt/hl/one", "opt/hl/two -> opt/hl/one"],
    );
}

#[test]
fn moved_trees_are_new_trees() {
    check(
        BASE,
        "mkdir new; mv opt/del opt/keep new/",
        &["new/", "new/del/", "new/del/a", "new/del/c", "new/keep/", "new/keep/file", "opt/", "-opt/del", "-opt/keep"],
    );
    check(BASE, "mv opt/suid opt/renamed", &["opt/", "opt/renamed", "-opt/suid"]);
    check(BASE, "mv opt/del/a opt/del/c", &["opt/", "opt/del/", "-opt/del/a", "opt/del/c"]);
}

#[test]
fn sockets_are_nowhere() {
    let socket = "import socket,sys\nsocket.socket(socket.AF_UNIX).bind(sys.argv[1])";
    let bind = |path: &str| format!("python3 -c '{socket}' {path}");
    check(BASE, &bind("s"), &[]);
    check(BASE, &format!("mkdir run; {}", bind("run/s")), &["run/"]);
    check(&bind("s"), "rm s", &[]);
    check(&bind("s"), "rm s; echo f > s", &["s"]);
    check(BASE, &format!("rm opt/suid; {}", bind("opt/suid")), &["opt/", "-opt/suid"]);
    check(BASE, &format!("rm -r opt/del; {}", bind("opt/del")), &["opt/", "-opt/del"]);
}

#[test]
fn devices_and_fifos_keep_what_they_are() {
    check(BASE, "mkfifo -m 620 pipe; mknod null c 1 3; mknod blk b 7 9", &["blk", "null", "pipe"]);
    check("mknod n c 1 3", "rm n; mknod n c 1 5", &["n"]);
}

#[test]
fn a_whole_tree_is_listed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    shell(dir.path(), BASE);
    let listing = Rootfs::open(dir.path()).expect("a directory").list().expect("readable");
    let all = shown(&all(&everything(&listing, None).expect("readable")));
    assert_eq!(all.len(), listing.len());
    assert_eq!(all[..4], ["lib/", "lib/pipe", "lib/x/", "opt/"]);
    assert!(all.contains(&"opt/hl/two -> opt/hl/one".to_owned()));
}
