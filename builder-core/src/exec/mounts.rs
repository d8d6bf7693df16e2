//! Mounts of a RUN (section M of the checklist): from plan to what the sandbox mounts.
//!
//! ```text
//! <work>/mounts/<hash>/data       content of a cache mount
//! <work>/mounts/<hash>/data.away  where that is while it is in a tree (tier `chroot`)
//! <work>/mounts/<hash>/lock       held (shared or exclusive) while a RUN uses it
//! <work>/mounts/<hash>/meta.json  id, owner, mode: for `slipway cache ls`
//! <work>/mounts/<hash>/owners.json  owners and the like that cannot be made real (tier `traced`)
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::BuildError;
use super::copying::{self, Prepared};
use super::running::is_context;
use super::shared::{Shared, SourceTree};
use super::ssh::SshForward;
use crate::oci::{Sha256, canonical_json, json_hash};
use crate::plan::{FileSource, Mount, MountKind, Sharing};
use crate::rootfs::{Attributes, LayerRef, NewFile, Owners, Rootfs, TreeStep, lock_file};
use crate::sandbox::{self, IdMapping, MountSource, SandboxError, SandboxMount, Whereabouts};

/// What must live until the RUN has ended.
#[derive(Default)]
pub(super) struct Held {
    locks: Vec<File>,
    roots: Vec<Rootfs>,
    sources: Vec<SourceTree>,
    agents: Vec<SshForward>,
    /// Cache mounts by identity: the same one twice is the same directory, however it is shared.
    caches: BTreeMap<String, (PathBuf, Option<Arc<Owners>>)>,
    /// What is recorded of files in caches, and where it is kept.
    records: Vec<(PathBuf, Arc<Owners>)>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // The locks are still held: fields go after this.
        for (path, owners) in &self.records {
            if let Err(error) = owners.save_over(path) {
                tracing::warn!(path = %path.display(), %error, "owners of files in a cache mount are not kept");
            }
        }
    }
}

/// Records of a cache mount whose files cannot really belong to others.
const RECORDS: &str = "owners.json";

/// One mount, ready.
pub(super) struct PreparedMount {
    pub(super) mount: Option<SandboxMount>,
    /// A variable that comes with it.
    pub(super) env: Option<(String, OsString)>,
}

/// The layers of the throw-away tree behind a mount; `None` for mounts that need none. A writable bind needs one so that
/// its changes can be dropped, and a context needs one because its ignore rules and owners are not those of the disk.
pub(super) fn scratch_layers(shared: &Shared<'_>, mount: &Mount) -> Result<Option<Vec<LayerRef>>, BuildError> {
    let MountKind::Bind { from, .. } = &mount.kind else { return Ok(None) };
    if is_context(from) {
        return Ok(Some(Vec::new()));
    }
    if mount.readonly {
        return Ok(None);
    }
    Ok(shared.tree_of(from)?.map(|tree| tree.tree().layers.clone()))
}

/// Makes one mount ready. `scratch` is the tree that [`scratch_layers`] asked for.
pub(super) fn prepare(
    shared: &Shared<'_>,
    mount: &Mount,
    scratch: Option<&TreeStep<'_>>,
    caches: &CacheMounts,
    held: &mut Held,
) -> Result<PreparedMount, BuildError> {
    let sandbox_mount =
        |source| SandboxMount { target: PathBuf::from(&mount.target), readonly: mount.readonly, owners: None, source };
    let just = |mount| Ok(PreparedMount { mount, env: None });
    match &mount.kind {
        MountKind::Tmpfs { size } => just(Some(sandbox_mount(MountSource::Tmpfs(*size)))),
        MountKind::Bind { from, source } => {
            let (descriptor, owners) = match scratch {
                Some(step) if is_context(from) => {
                    let copy = copying::whole(from.clone(), source, CONTEXT_COPY);
                    Prepared::new(shared, &copy)?.apply(step.rootfs())?;
                    (open_path(step.rootfs(), Path::new(CONTEXT_COPY), source)?, step.rootfs().owners().cloned())
                }
                Some(step) => {
                    let (rootfs, path) = (step.rootfs(), Path::new(source));
                    // What is mounted by itself cannot become another file later.
                    let opened = rootfs.own_at(path).and_then(|()| rootfs.open_path(path));
                    (opened.map_err(no_source(source))?, rootfs.owners().cloned())
                }
                None => {
                    let Some(tree) = shared.tree_of(from)? else { return just(None) };
                    let rootfs = tree.tree().rootfs(shared)?;
                    let descriptor = open_path(&rootfs, Path::new(source), source)?;
                    let owners = rootfs.owners().cloned();
                    held.roots.push(rootfs);
                    held.sources.push(tree);
                    (descriptor, owners)
                }
            };
            let source = MountSource::Descriptor(Arc::new(descriptor));
            just(Some(SandboxMount { owners, ..sandbox_mount(source) }))
        }
        MountKind::Cache { .. } => {
            let (directory, owners) = caches.acquire(shared, mount, held)?;
            just(Some(SandboxMount { owners, ..sandbox_mount(MountSource::Host(directory)) }))
        }
        MountKind::Secret { id, file, env, required, mode, uid, gid } => {
            let secret = shared.request.secrets.get(id);
            if secret.is_none() && *required {
                return Err(BuildError::SecretMissing { id: id.clone() });
            }
            let variable = env.as_ref().map(|name| {
                use std::os::unix::ffi::OsStringExt as _;
                let value = secret.map_or_else(Vec::new, |secret| secret.bytes().to_vec());
                (name.clone(), OsString::from_vec(value))
            });
            let mount = secret.filter(|_| *file).map(|secret| SandboxMount {
                target: PathBuf::from(&mount.target),
                readonly: true,
                owners: None,
                source: MountSource::Bytes { content: secret.bytes(), mode: *mode, uid: *uid, gid: *gid, secret: true },
            });
            Ok(PreparedMount { mount, env: variable })
        }
        MountKind::Ssh { id, required, mode, uid, gid } => {
            let agent = shared.request.ssh.get(id);
            if agent.is_none() && *required {
                return Err(BuildError::SshMissing { id: id.clone() });
            }
            let forward = agent
                .map(|agent| SshForward::start(agent, &shared.store.temp_dir(), *mode, Some((*uid, *gid))))
                .transpose()
                .map_err(|source| BuildError::SshForward { id: id.clone(), source })?;
            let socket = forward.as_ref().map(|forward| forward.socket().to_owned());
            held.agents.extend(forward);
            // BuildKit sets the variable even where it has no agent to forward.
            Ok(PreparedMount {
                mount: socket.map(|socket| sandbox_mount(MountSource::Host(socket))),
                env: Some(("SSH_AUTH_SOCK".to_owned(), OsString::from(&mount.target))),
            })
        }
    }
}

/// How long a RUN waits before it looks again whether a cache is free.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// Where a context's files stand in the throw-away tree that a mount shows.
const CONTEXT_COPY: &str = "/context";

fn open_path(rootfs: &Rootfs, path: &Path, written: &str) -> Result<std::os::fd::OwnedFd, BuildError> {
    rootfs.open_path(path).map_err(no_source(written))
}

fn no_source(written: &str) -> impl Fn(io::Error) -> BuildError {
    move |source| match source.kind() {
        io::ErrorKind::NotFound => BuildError::MountSourceMissing { path: written.to_owned() },
        _ => BuildError::MountSource { path: written.to_owned(), source },
    }
}

/// Identity of a cache mount (checklist M-10, M-12): what is equal shares a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheMountId {
    /// The id with its namespace.
    pub id: String,
    /// Mode of the directory if one was given.
    pub mode: Option<u32>,
    /// Owner if one was given.
    pub uid: Option<u32>,
    /// Group if one was given.
    pub gid: Option<u32>,
    /// Identity of the initial content; empty if there is none.
    pub base: String,
}

/// All cache mounts of a work dir.
pub(super) struct CacheMounts {
    root: PathBuf,
}

impl CacheMounts {
    pub(super) fn open(work_dir: &Path) -> Result<Self, BuildError> {
        let root = work_dir.join("mounts");
        fs::create_dir_all(&root).map_err(|source| BuildError::CacheMount { id: String::new(), source })?;
        Ok(Self { root })
    }

    /// The directory to mount, locked as `sharing` says until `held` is dropped.
    fn acquire(
        &self,
        shared: &Shared<'_>,
        mount: &Mount,
        held: &mut Held,
    ) -> Result<(PathBuf, Option<Arc<Owners>>), BuildError> {
        let MountKind::Cache { id, sharing, from, source, mode, uid, gid } = &mount.kind else {
            unreachable!("called for cache mounts only")
        };
        let base = match from {
            None => String::new(),
            Some(FileSource::Scratch) => String::new(),
            Some(from) => {
                let hash = match shared.tree_of(from)? {
                    Some(_) => {
                        // By content: a stage that is run again gives the same files with other times.
                        let copy = copying::whole(from.clone(), source, "/data/");
                        let inputs = Prepared::new(shared, &copy)?.inputs()?;
                        Sha256::of(format!("{:?}", inputs.items).as_bytes()).to_hex()
                    }
                    None => format!("{from:?}"),
                };
                format!("{hash}:{source}")
            }
        };
        let identity = CacheMountId { id: id.clone(), mode: *mode, uid: *uid, gid: *gid, base };
        let failed = |source| BuildError::CacheMount { id: id.clone(), source };
        let name = json_hash(&identity).to_hex();
        if let Some(already) = held.caches.get(&name) {
            return Ok(already.clone());
        }
        for copy in 0.. {
            let directory = self.root.join(if copy == 0 { name.clone() } else { format!("{name}.{copy}") });
            fs::create_dir_all(&directory).map_err(failed)?;
            let lock = lock_file(&directory.join("lock")).map_err(failed)?;
            let operation = match sharing {
                Sharing::Shared => FlockOperation::NonBlockingLockShared,
                Sharing::Private | Sharing::Locked => FlockOperation::NonBlockingLockExclusive,
            };
            let locked = loop {
                match rustix::fs::flock(&lock, operation) {
                    Ok(()) => break true,
                    Err(Errno::WOULDBLOCK) if *sharing == Sharing::Private => break false,
                    Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                    Err(error) => return Err(failed(error.into())),
                }
                // A lock that blocks could not be given up when the build is cancelled.
                wait(shared)?;
            };
            if !locked {
                continue;
            }
            let data = directory.join("data");
            loop {
                match sandbox::bring_home(&data).map_err(failed)? {
                    Whereabouts::Home => break,
                    Whereabouts::Nowhere => self.fill(shared, mount, &directory, &identity)?,
                    // Shared, but it can be in one tree at a time.
                    Whereabouts::Away => wait(shared)?,
                }
            }
            held.locks.push(lock);
            let mut owners = None;
            if shared.request.environment.ids == IdMapping::Played {
                let records = directory.join(RECORDS);
                let loaded = Arc::new(Owners::load(&records).map_err(failed)?);
                held.records.push((records, Arc::clone(&loaded)));
                owners = Some(loaded);
            }
            held.caches.insert(name, (data.clone(), owners.clone()));
            return Ok((data, owners));
        }
        unreachable!("the loop ends by returning")
    }

    /// Makes the directory with its initial content, complete or not at all.
    fn fill(
        &self,
        shared: &Shared<'_>,
        mount: &Mount,
        directory: &Path,
        identity: &CacheMountId,
    ) -> Result<(), BuildError> {
        let MountKind::Cache { id, from, source, .. } = &mount.kind else {
            unreachable!("called for cache mounts only")
        };
        let failed = |source| BuildError::CacheMount { id: id.clone(), source };
        let temp = tempfile::tempdir_in(directory).map_err(failed)?;
        let mut rootfs = Rootfs::open(temp.path()).map_err(failed)?;
        if shared.request.environment.ids == IdMapping::Played {
            rootfs = rootfs.recording(Arc::default());
        }
        if let Some(from) = from {
            let copy = copying::whole(from.clone(), source, "/data/");
            Prepared::new(shared, &copy)?.apply(&rootfs)?;
        }
        let owner = (identity.uid.unwrap_or(0), identity.gid.unwrap_or(0));
        let has_base = from.is_some();
        let attributes = Attributes {
            owner: (!has_base || source == "/").then_some(owner),
            // BuildKit makes the directory with the permission bits alone.
            mode: (!has_base || source == "/").then_some(identity.mode.unwrap_or(0o755) & 0o777),
            ..Attributes::default()
        };
        rootfs.create(Path::new("/data"), NewFile::Directory, &attributes).map_err(|source| {
            let unmapped = source.raw_os_error() == Some(Errno::INVAL.raw_os_error());
            match [owner.0, owner.1].into_iter().find(|id| *id != 0).filter(|_| unmapped) {
                Some(id) => SandboxError::NoSuchId { id }.into(),
                None => failed(source),
            }
        })?;
        let meta = canonical_json(identity).map_err(io::Error::from).map_err(failed)?;
        fs::write(directory.join("meta.json"), meta).map_err(failed)?;
        if let Some(owners) = rootfs.owners() {
            owners.save(&directory.join(RECORDS)).map_err(failed)?;
        }
        match place(&temp.path().join("data"), &directory.join("data")) {
            Err(error) if !directory.join("data").exists() => Err(failed(error)),
            // Another build filled it in the same moment.
            _ => Ok(()),
        }
    }
}

/// Moves back what a builder that was killed has left in a tree: to be called before that tree is removed.
pub(super) fn bring_all_home(work_dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(work_dir.join("mounts")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        sandbox::bring_home(&entry?.path().join("data"))?;
    }
    Ok(())
}

/// A moment, unless the build is cancelled.
fn wait(shared: &Shared<'_>) -> Result<(), BuildError> {
    if shared.cancel.is_cancelled() {
        return Err(BuildError::Cancelled);
    }
    std::thread::sleep(LOCK_POLL);
    Ok(())
}

/// Gives a directory its final name unless that is taken. rename(2) alone takes the place of an empty directory, which
/// another build may be about to mount.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system has the flag.
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(from, to),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_cache_keeps_its_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mine, theirs) = (dir.path().join("mine"), dir.path().join("theirs"));
        fs::create_dir(&mine).expect("made");
        fs::create_dir(&theirs).expect("made");
        assert_eq!(place(&mine, &theirs).expect_err("taken").kind(), io::ErrorKind::AlreadyExists);
        place(&mine, &dir.path().join("free")).expect("free");
    }
}
