//! ADD of git sources, and git contexts, from `git daemon` on this machine.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::testing::{Trees, action};
use super::{CopyError, apply, resolve_with_remote};
use crate::cancel::Cancel;
use crate::context::testing::show;
use crate::context::{FetchedContext, FetchedTree, Files, Remote, Repository};
use crate::http::{Client, ClientOptions};
use crate::plan::{CopyAction, CopySource};
use crate::rootfs::Rootfs;

/// A daemon that serves the repositories below its directory; ended with this value.
struct Daemon {
    child: Child,
    top: tempfile::TempDir,
    url: String,
    head: String,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn git(directory: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .current_dir(directory)
        .args(["-c", "user.name=a", "-c", "user.email=a@b"])
        .args(arguments)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_COMMITTER_DATE", "1600000000 +0000")
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `None`, said aloud, where there is no git.
#[allow(clippy::print_stderr, reason = "a test that cannot run says so")]
fn daemon() -> Option<Daemon> {
    let top = tempfile::tempdir().expect("a temporary directory");
    let repository = top.path().join("x.git");
    fs::create_dir(&repository).expect("mkdir");
    let started = git(&repository, &["init", "-q", "-b", "main"]).and_then(|_| {
        fs::create_dir_all(repository.join("sub/deep")).expect("mkdir");
        fs::write(repository.join("a.txt"), "a").expect("write");
        fs::write(repository.join("sub/deep/b.txt"), "b").expect("write");
        std::os::unix::fs::symlink("sub", repository.join("link")).expect("symlink");
        git(&repository, &["add", "-A"])?;
        git(&repository, &["commit", "-q", "-m", "first"])?;
        git(&repository, &["tag", "v1"])?;
        git(&repository, &["config", "uploadpack.allowAnySHA1InWant", "true"])?;
        let head = git(&repository, &["rev-parse", "HEAD"])?;
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).ok()?.port();
        // Not through `git`, which would leave the daemon behind when it is killed.
        let child = Command::new(Path::new(&git(&repository, &["--exec-path"])?).join("git-daemon"))
            .args(["--export-all", "--reuseaddr", "--listen=127.0.0.1", &format!("--port={port}")])
            .arg(format!("--base-path={}", top.path().display()))
            .arg(top.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        Some((child, head, port))
    });
    let Some((child, head, port)) = started else {
        eprintln!("skipped: git or its daemon is not installed");
        return None;
    };
    let daemon = Daemon { child, top, url: format!("git://127.0.0.1:{port}/x.git"), head };
    for _ in 0..100 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(daemon);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    eprintln!("skipped: git daemon does not answer");
    None
}

fn remote(directory: &Path) -> Remote {
    Remote::new(Client::new(ClientOptions::default()), directory, directory, Arc::new(|_: &str| None))
}

fn add(url: &str, flags: &str) -> CopyAction {
    let mut action = action(&format!("ADD{flags} x /d"));
    action.sources = vec![CopySource::Git(url.to_owned())];
    action
}

fn run(action: &CopyAction, work: &Path) -> Result<(String, Trees), CopyError> {
    let trees = Trees::new("", "");
    let cancel = Cancel::default();
    let resolved = resolve_with_remote(action, &Files::empty(), &remote(work), &cancel)?;
    let target = Rootfs::open(trees.target.path()).expect("open");
    apply(action, &resolved, &Files::empty(), &target, &cancel)?;
    Ok((show(trees.target.path()), trees))
}

#[test]
fn commits_are_added() {
    let Some(daemon) = daemon() else { return };
    let work = tempfile::tempdir_in(daemon.top.path()).expect("a temporary directory");
    let shown = |suffix: &str, flags: &str| {
        let url = format!("{}{suffix}", daemon.url);
        run(&add(&url, flags), work.path()).unwrap_or_else(|error| panic!("{url}: {error:?}")).0
    };
    let all = "d/ d/a.txt=a d/link->sub d/sub/ d/sub/deep/ d/sub/deep/b.txt=b";
    assert_eq!(shown("", ""), all);
    assert_eq!(shown("#v1", ""), all);
    assert_eq!(shown(&format!("#{}", daemon.head), ""), all);
    assert_eq!(shown("#main:sub", ""), "d/ d/deep/ d/deep/b.txt=b");
    assert_eq!(shown("?branch=main&subdir=sub/deep", " --chown=1:2"), "d/#1:2 d/b.txt#1:2=b");
    assert_eq!(shown("", " --exclude=sub --exclude=link"), "d/ d/a.txt=a");
    assert_eq!(shown(&format!("?checksum={}", &daemon.head[..10]), ""), all);
    let (kept, _trees) = run(&add(&format!("{}?keep-git-dir=1", daemon.url), ""), work.path()).expect("kept");
    assert!(kept.contains("d/.git/HEAD=") && kept.contains("d/a.txt=a"), "{kept}");
    let (_, trees) = run(&add(&format!("{}?mtime=commit", daemon.url), ""), work.path()).expect("dated");
    assert_eq!(
        (trees.mtime("d/a.txt"), trees.mtime("d/sub/deep"), trees.mtime("d")),
        (1_600_000_000, 1_600_000_000, 1_600_000_000)
    );
    assert_eq!(fs::read_dir(work.path()).expect("list").count(), 0, "checkouts are removed");
}

#[test]
fn what_a_git_source_may_say_wrong() {
    let Some(daemon) = daemon() else { return };
    let work = tempfile::tempdir_in(daemon.top.path()).expect("a temporary directory");
    let error = |suffix: &str, edit: &dyn Fn(&mut CopyAction)| {
        let mut action = add(&format!("{}{suffix}", daemon.url), "");
        edit(&mut action);
        run(&action, work.path()).err().expect(suffix).to_string()
    };
    let none = |_: &mut CopyAction| {};
    assert!(error("#nowhere", &none).contains("nowhere"));
    assert!(error("#:nodir", &none).contains("`nodir`"));
    assert!(error("#:link", &none).contains("is not a directory"));
    assert!(error("#:a.txt", &none).contains("is not a directory"));
    assert!(error("?what=1", &none).contains("unexpected query \"what\""));
    assert!(error("?keep-git-dir=0", &|action| action.keep_git_dir = Some(true)).contains("inconsistent keep-git-dir"));
    let zeros = "0".repeat(40);
    let wrong = error("#main", &|action| action.checksum = Some(zeros.clone()));
    assert!(wrong.contains("expected checksum to match"), "{wrong}");
    let two = error("?checksum=abc", &|action| action.checksum = Some(zeros.clone()));
    assert!(two.contains("checksum mismatch"), "{two}");
}

#[test]
fn a_repository_comes_with_its_history() {
    let Some(daemon) = daemon() else { return };
    let repository = daemon.top.path().join("x.git");
    fs::write(repository.join("a.txt"), "second").expect("write");
    git(&repository, &["commit", "-q", "-a", "-m", "second"]).expect("a commit");
    let work = tempfile::tempdir_in(daemon.top.path()).expect("a temporary directory");
    let remote = remote(work.path());
    let context = |change: &dyn Fn(&mut Repository)| {
        let mut context = Repository {
            url: daemon.url.clone(),
            reference: Some("main".to_owned()),
            commit: None,
            depth: None,
            submodules: false,
            keep_git_dir: true,
            skip_tls_verify: false,
            authorization: None,
        };
        change(&mut context);
        remote.repository_context(&context, &Cancel::default())
    };
    let count = |tree: &FetchedTree| git(tree.path(), &["rev-list", "--count", "HEAD"]).expect("a history");
    let text = |tree: &FetchedTree| fs::read_to_string(tree.path().join("a.txt")).expect("a file");
    let whole = context(&|_| {}).expect("fetched");
    assert_eq!((count(&whole).as_str(), text(&whole).as_str()), ("2", "second"));
    assert_eq!(git(whole.path(), &["describe", "--tags"]).expect("a tag").split('-').next(), Some("v1"));
    let shallow = context(&|context| context.depth = std::num::NonZeroU32::new(1)).expect("fetched");
    assert_eq!((count(&shallow).as_str(), text(&shallow).as_str()), ("1", "second"));
    let first = context(&|context| context.commit = Some(daemon.head.clone())).expect("fetched");
    assert_eq!((count(&first).as_str(), text(&first).as_str()), ("1", "a"));
    // A server that gives only what references name.
    git(&repository, &["config", "uploadpack.allowAnySHA1InWant", "false"]).expect("configured");
    let first = context(&|context| context.commit = Some(daemon.head.clone())).expect("fetched");
    assert_eq!(text(&first), "a");
    let missing = context(&|context| context.commit = Some("0".repeat(40))).expect_err("no such commit");
    assert!(missing.to_string().contains("does not contain ref 000"), "{missing}");
    assert!(context(&|context| context.reference = Some("none".to_owned())).is_err());
}

#[test]
fn a_repository_may_be_a_context() {
    let Some(daemon) = daemon() else { return };
    let work = tempfile::tempdir_in(daemon.top.path()).expect("a temporary directory");
    let remote = remote(work.path());
    let fetch = |suffix: &str, dated| {
        let context = remote.git_context(&format!("{}{suffix}", daemon.url), false, dated, &Cancel::default());
        let context = context.expect("fetched");
        assert_eq!(context.time().expect("a time"), Some(1_600_000_000));
        match context {
            FetchedContext::Tree(tree) => tree,
            FetchedContext::Dockerfile { .. } => panic!("it is a repository"),
        }
    };
    let tree = fetch("#:sub", false);
    assert_eq!(show(tree.path()), "deep/ deep/b.txt=b");
    assert_eq!(tree.commit().map(|commit| commit.id.clone()), Some(daemon.head.clone()));
    let time = |tree: &FetchedTree| {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(tree.path().join("a.txt")).expect("a file").mtime()
    };
    assert_ne!(time(&fetch("", false)), 1_600_000_000);
    assert_eq!(time(&fetch("", true)), 1_600_000_000);
    assert_eq!(time(&fetch("?mtime=commit", false)), 1_600_000_000);
    assert_ne!(time(&fetch("?mtime=checkout", true)), 1_600_000_000);
}
