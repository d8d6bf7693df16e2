//! RUN as a step: user, environment and mounts of the command, and what its cache key covers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::BuildError;
use super::copying::{self, Prepared};
use super::mounts::{self, CacheMounts};
use super::shared::Shared;
use super::step_key::Inputs;
use crate::event::{Event, StepId};
use crate::oci::Platform;
use crate::plan::{FileSource, Mount, MountKind, NetworkMode, RunAction, SecurityMode, Stage};
use crate::rootfs::{Rootfs, TreeStep, WorkTree};
use crate::sandbox::{self, ExitStatus, MountSource, RunSpec, SandboxError, SandboxMount, users};

/// Docker's search path, for stages that have none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Name of the machine inside a RUN (checklist R-03).
const DEFAULT_HOSTNAME: &str = "buildkitsandbox";

/// Hashes of the content that mounts bring in (checklist R-17): of contexts by content, of stages and images by their
/// layers; of caches, secrets and agents nothing.
pub(super) fn inputs(shared: &Shared<'_>, action: &RunAction) -> Result<Inputs, BuildError> {
    let mut inputs = Inputs { items: BTreeMap::new() };
    for mount in &action.mounts {
        inputs.items.extend(mount_inputs(shared, mount)?.items);
    }
    Ok(inputs)
}

/// The same of one mount.
pub(super) fn mount_inputs(shared: &Shared<'_>, mount: &Mount) -> Result<Inputs, BuildError> {
    let (from, source) = match &mount.kind {
        MountKind::Bind { from, source } => (from, source),
        MountKind::Cache { from: Some(from), source, .. } => (from, source),
        _ => return Ok(Inputs { items: BTreeMap::new() }),
    };
    if let Some(tree) = shared.tree_of(from)? {
        let hash = copying::chain_hash(tree.tree().chain());
        return Ok(Inputs { items: BTreeMap::from([(format!("mount of {}", mount.target), hash)]) });
    }
    let copy = copying::whole(from.clone(), source, "/");
    let part = Prepared::new(shared, &copy)?.inputs()?;
    let named = part.items.into_iter().map(|(name, hash)| (format!("{}: {name}", mount.target), hash));
    Ok(Inputs { items: named.collect() })
}

/// Runs the command in `rootfs`.
///
/// # Errors
/// [`BuildError::Exit`] if it ends with anything but 0.
pub(super) fn run(
    shared: &Shared<'_>,
    stage: &Stage,
    action: &RunAction,
    rootfs: &Rootfs,
    step: StepId,
) -> Result<(), BuildError> {
    let user = users::lookup(rootfs, &action.user)?;
    let mut env: Vec<(OsString, OsString)> =
        action.env.iter().chain(&action.proxy_env).map(|(k, v)| (k.into(), v.into())).collect();
    let has = |env: &[(OsString, OsString)], name: &str| env.iter().any(|(key, _)| key == name);
    if !has(&env, "PATH") {
        env.push(("PATH".into(), DEFAULT_PATH.into()));
    }
    if !has(&env, "HOME") {
        env.push(("HOME".into(), user.home.clone().into()));
    }

    let caches = CacheMounts::open(&shared.request.work_dir)?;
    // Trees that a mount may write to and whose changes are thrown away, and contexts as mounts see them.
    let mut scratch: Vec<WorkTree> = Vec::new();
    for mount in &action.mounts {
        if let Some(layers) = mounts::scratch_layers(shared, mount)? {
            scratch.push(shared.checkout(&layers)?);
        }
    }
    let mut scratch_steps: Vec<TreeStep<'_>> = scratch.iter_mut().map(WorkTree::begin).collect::<Result<_, _>>()?;
    for step in &mut scratch_steps {
        step.prepare_command(&shared.cancel)?;
    }
    let mut scratch_steps_left = scratch_steps.iter();
    let mut held = mounts::Held::default();
    let mut sandbox_mounts = Vec::new();
    for mount in &action.mounts {
        let step = if mounts::scratch_layers(shared, mount)?.is_some() { scratch_steps_left.next() } else { None };
        let prepared = mounts::prepare(shared, mount, step, &caches, &mut held)?;
        if let Some((name, value)) = prepared.env {
            let keep_first = matches!(mount.kind, MountKind::Ssh { .. }) && has(&env, &name);
            if !keep_first {
                env.retain(|(key, _)| *key != *name);
                env.push((name.into(), value));
            }
        }
        sandbox_mounts.extend(prepared.mount);
    }
    if let Some((name, body)) = &action.script {
        sandbox_mounts.push(SandboxMount {
            target: Path::new("/dev/pipes").join(name),
            readonly: true,
            owners: None,
            source: MountSource::Bytes {
                content: std::sync::Arc::new(body.clone().into_bytes()),
                mode: 0o755,
                uid: 0,
                gid: 0,
                secret: false,
            },
        });
    }

    let spec = RunSpec {
        argv: action.argv.iter().map(OsString::from).collect(),
        env,
        cwd: PathBuf::from(&action.cwd),
        user,
        hostname: action.hostname.clone().unwrap_or_else(|| DEFAULT_HOSTNAME.to_owned()),
        extra_hosts: action.extra_hosts.clone(),
        no_network: action.network == NetworkMode::None,
        insecure: action.security == SecurityMode::Insecure,
        shm_size: action.shm_size,
        ulimits: action.ulimits.iter().map(|limit| (limit.name.clone(), limit.soft, limit.hard)).collect(),
        mounts: sandbox_mounts,
    };
    let output = |stream, line: &[u8]| shared.observer.event(Event::Output { step, stream, line });
    let status = match sandbox::run(&shared.request.environment, rootfs, &spec, &output, &shared.cancel) {
        Err(source @ SandboxError::Exec { .. }) => return Err(not_executable(&action.argv, &stage.platform, source)),
        other => other?,
    };
    // What the command wrote is known only now; too much of it ends the build, whatever the command says to that.
    shared.trees.disk().settle().map_err(|_| BuildError::Cancelled)?;
    let (code, signal) = match status {
        ExitStatus::Code(0) => return Ok(()),
        ExitStatus::Code(code) => (code, None),
        // What a shell reports for a process ended by a signal, and what BuildKit reports too.
        ExitStatus::Signal(signal) => (128 + signal, Some(signal)),
    };
    Err(BuildError::Exit { argv: action.argv.clone(), code, signal })
}

/// A program that cannot be started ends a RUN like one that a shell cannot start: 127 if it is not there, else 126.
fn not_executable(argv: &[String], platform: &Platform, source: SandboxError) -> BuildError {
    let reason = match &source {
        SandboxError::Exec { source, .. } => Some(source),
        _ => None,
    };
    let missing = reason.is_some_and(|reason| reason.kind() == std::io::ErrorKind::NotFound);
    let wrong_format = reason.and_then(std::io::Error::raw_os_error) == Some(rustix::io::Errno::NOEXEC.raw_os_error());
    let here = Platform::host().architecture == platform.architecture;
    let foreign = (wrong_format && !here).then(|| Box::new(platform.clone()));
    BuildError::NotExecutable { argv: argv.to_vec(), code: if missing { 127 } else { 126 }, foreign, source }
}

/// Whether a mount's files come from a context, which has ignore rules and owners of its own.
pub(super) fn is_context(from: &FileSource) -> bool {
    matches!(from, FileSource::Context | FileSource::NamedContext(_) | FileSource::Scratch)
}
