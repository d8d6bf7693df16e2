//! The copy: enters, makes a tree, performs the cases.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use builder_core::cancel::Cancel;
use builder_core::event::Stream;
use builder_core::rootfs::{Listing, Rootfs, Touched};
use builder_core::sandbox::{self, Environment, ExitStatus, IdMapping, RunSpec, SandboxError, Tier, Wish};

use crate::cases;
use crate::environments::ENVIRONMENTS;

/// What the cases use of busybox.
const APPLETS: &str = "awk cat chgrp chmod chown chroot cp cut dd df echo env false find grep head hostname id ip ls mkdir mkfifo \
                       mknod mktemp mount printf pwd readlink rm seq setsid sh sleep sort stat su tail test touch tr true ulimit \
                       umask unshare wc";

/// Cases about what a supervisor without privileges cannot give, or that look at the disk for what it only records.
/// `user-traced` of the conformance corpus looks at the images.
const NOT_TRACED: [(&str, &str); 9] = [
    ("process_one", "the command is not process 1"),
    ("proc_is_ours", "process numbers are the outer ones"),
    ("scratch_keeps_standard_directories", "owners are recorded, not real"),
    ("working_directory", "owners are recorded, not real"),
    ("users_and_groups", "owners are recorded, not real"),
    ("shared_memory", "the size is not bounded"),
    ("tmpfs_mounts", "the size is not bounded"),
    ("overlays", "trees are directories"),
    ("insecure", "nothing can be mounted"),
];

/// Cases about what only namespaces and mounts give; docs/sandbox.md tells users. `escapes` and the builds of the conformance
/// corpus in a container are this tier's own tests.
const NOT_IN_A_CHROOT: [(&str, &str); 11] = [
    ("process_one", "the command is not process 1"),
    ("other_devices_do_not_open", "copies of harmless devices do open"),
    ("proc_is_ours", "process ids are the container's"),
    ("builder_is_out_of_reach", "a listing of /proc/self/fd lacks the descriptor it is read by"),
    ("capabilities", "no CAP_SYS_CHROOT, and no_new_privs is set"),
    ("setuid_programs", "no_new_privs is set"),
    ("system_calls_are_filtered", "chroot(2) is refused but for `/`"),
    ("shared_memory", "the size is not bounded"),
    ("mounts_in_mounts", "a missing place in a read-only copy can be made"),
    ("tmpfs_mounts", "the size is not bounded"),
    ("insecure", "nothing can be mounted"),
];

/// What a case has.
pub struct Context {
    /// As `enter` gave it.
    pub environment: Environment,
    /// What `probe` found without a wish, and what it should have found.
    pub choice: (Environment, (Option<Tier>, IdMapping)),
    /// Whether parts of the outer /proc are hidden.
    pub masked_proc: bool,
    /// A directory to write in.
    pub directory: PathBuf,
    trees: RefCell<usize>,
}

/// A root filesystem for one case.
pub struct Tree {
    /// Where it lies.
    pub path: PathBuf,
    /// The same, open.
    pub rootfs: Rootfs,
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Lines of standard output.
    pub stdout: Vec<String>,
    /// Lines of standard error.
    pub stderr: Vec<String>,
}

/// Thrown by a case that does not apply.
pub struct Skip(pub String);

pub fn main(name: &str, arguments: &[String]) {
    let expected = ENVIRONMENTS.iter().find(|environment| environment.name == name).expect("a known environment");
    let choice = (sandbox::probe(), expected.choice);
    let wish = Wish { tier: Some(expected.tier), work_dir: None };
    let environment = sandbox::enter_as(&wish).expect("enter");
    std::panic::set_hook(Box::new(|_| {}));
    let directory = PathBuf::from(&arguments[0]).join("trees");
    fs::create_dir(&directory).expect("a directory for trees");
    let masked_proc = expected.masked_proc;
    let context = Context { environment, choice, masked_proc, directory: directory.clone(), trees: RefCell::new(0) };
    for case in cases::wanted() {
        let case_result = catch_unwind(AssertUnwindSafe(|| {
            assert_eq!(context.environment.ids, expected.ids, "{:?}", context.environment.refused);
            if expected.ids == IdMapping::None && !["unavailable", "choice"].contains(&case.name) {
                std::panic::panic_any(Skip("nothing runs here".into()));
            }
            if expected.tier == Tier::Chroot
                && let Some((_, reason)) = NOT_IN_A_CHROOT.iter().find(|(name, _)| *name == case.name)
            {
                std::panic::panic_any(Skip(format!("not in the tier chroot: {reason}")));
            }
            if expected.tier == Tier::Namespaces && masked_proc && case.name == "process_one" {
                std::panic::panic_any(Skip("the command is not process 1".into()));
            }
            if expected.tier == Tier::Traced
                && let Some((_, reason)) = NOT_TRACED.iter().find(|(name, _)| *name == case.name)
            {
                std::panic::panic_any(Skip(format!("not in the tier traced: {reason}")));
            }
            (case.run)(&context);
        }));
        match case_result {
            Ok(()) => println!("ok {}", case.name),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
                match panic.downcast_ref::<Skip>() {
                    Some(Skip(reason)) => println!("skipped {} {reason}", case.name),
                    None => println!("FAILED {} {}", case.name, text.unwrap_or_default().replace('\n', "\\n")),
                }
            }
        }
    }
    // Everything in it belongs to ids of this namespace, which the runner may not have.
    fs::remove_dir_all(&directory).expect("remove the trees");
}

impl Context {
    /// A tree with busybox, the usual directories, passwd and group.
    pub fn tree(&self) -> Tree {
        let path = self.empty_directory();
        make_tree(&path);
        let rootfs = Rootfs::open(&path).expect("open").telling(Arc::new(Touched::default()));
        Tree { rootfs, path }
    }

    /// A fresh directory, 0755.
    pub fn empty_directory(&self) -> PathBuf {
        *self.trees.borrow_mut() += 1;
        let path = self.directory.join(self.trees.borrow().to_string());
        fs::create_dir(&path).expect("create");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        path
    }

    /// Runs `spec` in `tree`.
    pub fn try_run(&self, tree: &Rootfs, spec: &RunSpec) -> Result<Outcome, SandboxError> {
        self.try_run_until(tree, spec, &Cancel::default(), &|_| {})
    }

    /// The same, with a flag to end it and a look at each line of standard output.
    pub fn try_run_until(
        &self,
        tree: &Rootfs,
        spec: &RunSpec,
        cancel: &Cancel,
        look: &(dyn Fn(&str) + Sync),
    ) -> Result<Outcome, SandboxError> {
        let lines = Mutex::new((Vec::new(), Vec::new()));
        let output = |stream: Stream, line: &[u8]| {
            let line = String::from_utf8_lossy(line).into_owned();
            if stream == Stream::Stdout {
                look(&line);
            }
            let mut lines = lines.lock().expect("no panic");
            match stream {
                Stream::Stdout => lines.0.push(line),
                Stream::Stderr => lines.1.push(line),
            }
        };
        let before = tree.list().expect("list");
        let ended = sandbox::run(&self.environment, tree, spec, &output, cancel);
        if let Some(touched) = tree.touched() {
            let said = lines.lock().expect("no panic").0.join("\n");
            check_touched(tree, &before, touched, &said);
        }
        let status = ended?;
        let (stdout, stderr) = lines.into_inner().expect("no panic");
        Ok(Outcome { status, stdout, stderr })
    }

    /// Runs a shell script as root and gives what it printed; panics unless it succeeds.
    #[track_caller]
    pub fn sh(&self, tree: &Tree, script: &str) -> Vec<String> {
        self.succeed(tree, &shell(script))
    }

    /// Runs `spec` and gives what it printed; panics unless it succeeds.
    #[track_caller]
    pub fn succeed(&self, tree: &Tree, spec: &RunSpec) -> Vec<String> {
        let outcome = self.try_run(&tree.rootfs, spec).unwrap_or_else(|error| panic!("{error}: {error:?}"));
        assert_eq!(outcome.status, ExitStatus::Code(0), "{outcome:?}");
        outcome.stdout
    }

    /// Ends the case where there are no other ids.
    pub fn needs_ids(&self) {
        if self.environment.ids == IdMapping::Single {
            std::panic::panic_any(Skip("only one id here".into()));
        }
    }

    /// A fresh overlay over `lower` as a detached mount, as `rootfs` makes it; the directories are given back too.
    pub fn overlay(&self, lower: &Path) -> (OwnedFd, PathBuf) {
        use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
        let (upper, work) = (self.empty_directory(), self.empty_directory());
        let mount = || {
            let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
            for (key, value) in [("lowerdir", lower), ("upperdir", &upper), ("workdir", &work)] {
                rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
            }
            rustix::mount::fsconfig_create(context.as_fd())?;
            rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        };
        use rustix::mount::{OpenTreeFlags, open_tree};
        match mount() {
            // `rootfs` attaches its mounts on such kernels; here nobody does.
            Ok(mount)
                if open_tree(&mount, c"", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH).is_err() =>
            {
                std::panic::panic_any(Skip("before Linux 6.15 a mount that was never attached cannot be copied".into()))
            }
            Ok(mount) => (mount, upper),
            Err(error) => std::panic::panic_any(Skip(format!("no overlayfs: {error}"))),
        }
    }
}

/// Whatever a command did: where it was told what it touched, looking there finds everything that changed.
#[track_caller]
fn check_touched(tree: &Rootfs, before: &Listing, touched: &Touched, said: &str) {
    let Some(again) = tree.list_again(before, touched).expect("list") else { return };
    let whole = tree.list().expect("list");
    let (mut ours, mut all) = (again.iter(), whole.iter());
    loop {
        match (ours.next().transpose().expect("read"), all.next().transpose().expect("read")) {
            (None, None) => return,
            (ours, all) => assert_eq!(ours, all, "what was touched, and all that is there, after\n{said}"),
        }
    }
}

/// Fills an empty directory with busybox, the usual directories, passwd and group.
pub fn make_tree(path: &Path) {
    for directory in ["bin", "etc", "root", "tmp", "home", "var"] {
        fs::create_dir(path.join(directory)).expect("create");
    }
    fs::set_permissions(path.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("chmod");
    fs::set_permissions(path.join("root"), fs::Permissions::from_mode(0o700)).expect("chmod");
    fs::copy("/bin/busybox", path.join("bin/busybox")).expect("copy busybox");
    for applet in APPLETS.split_whitespace() {
        symlink("busybox", path.join("bin").join(applet)).expect("link");
    }
    fs::write(path.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
        .expect("passwd");
    fs::write(path.join("etc/group"), "root:x:0:\napp:x:1000:\nextra:x:50:app\n").expect("group");
}

/// Opens a descriptor as a tree.
pub fn tree_of(descriptor: &OwnedFd) -> Rootfs {
    Rootfs::open(Path::new(&format!("/proc/self/fd/{}", descriptor.as_raw_fd()))).expect("open the descriptor")
}

/// A shell script as root in `/`.
pub fn shell(script: &str) -> RunSpec {
    command(&["/bin/sh", "-c", script])
}

/// A command as root in `/`.
pub fn command(argv: &[&str]) -> RunSpec {
    let env = vec![("PATH".into(), "/usr/bin:/bin".into()), ("GREETING".into(), "hello  there".into())];
    RunSpec::as_root(argv.iter().map(OsString::from).collect(), env, "buildkitsandbox")
}
