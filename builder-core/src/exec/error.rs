//! Why a build ended without a result.

use std::io;
use std::path::PathBuf;

use super::inputs::InputError;
use crate::cache::CacheError;
use crate::cancel::Cancel;
use crate::context::RemoteError;
use crate::copy::CopyError;
use crate::dockerfile::{LineRange, ParseErrors};
use crate::hint::{Hint, go_quote};
use crate::layer::LayerError;
use crate::oci::Platform;
use crate::output::OutputError;
use crate::plan::{PlanError, Stage, Step};
use crate::rootfs::TreeError;
use crate::sandbox::{SandboxError, users::UserError};
use crate::snapshot::SnapshotError;
use crate::source::SourceError;
use crate::store::StoreError;

/// Why a build ended without a result. [`BuildError::lines`] says where in the Dockerfile, [`BuildError::class`] what
/// kind of thing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The Dockerfile or a context cannot be read.
    #[error(transparent)]
    Input(InputError),
    /// The Dockerfile has errors; all of them.
    #[error("{0}")]
    Parse(ParseErrors),
    /// The Dockerfile cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A base image cannot be had.
    #[error("{name}")]
    Base {
        /// As in the Dockerfile, normalised.
        name: String,
        /// Where it is named, if in this file.
        lines: Option<LineRange>,
        /// A name that may have been meant.
        suggestion: Option<String>,
        /// Why.
        source: SourceError,
    },
    /// A step failed.
    #[error("failed to solve")]
    Step {
        /// `[build 2/5] RUN make`
        title: String,
        /// Name of its stage.
        stage: String,
        /// Where the instruction stands.
        lines: LineRange,
        /// Why.
        #[source]
        source: Box<BuildError>,
    },
    /// A RUN's command ended with an error.
    #[error("process {} did not complete successfully: exit code: {code}", go_quote(&argv.join(" ")))]
    Exit {
        /// The command.
        argv: Vec<String>,
        /// Its exit code; 128 and the signal's number if a signal ended it.
        code: i32,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// A RUN's program cannot be executed at all.
    #[error("process {} did not complete successfully: exit code: {code}", go_quote(&argv.join(" ")))]
    NotExecutable {
        /// The command.
        argv: Vec<String>,
        /// 126 or 127, as a shell would say.
        code: i32,
        /// The platform that the program was made for, if this machine cannot run it.
        foreign: Option<Box<Platform>>,
        /// Why.
        #[source]
        source: SandboxError,
    },
    /// A COPY or ADD failed.
    #[error(transparent)]
    Copy(CopyError),
    /// A RUN could not be set up.
    #[error(transparent)]
    Sandbox(SandboxError),
    /// A RUN's user does not exist.
    #[error(transparent)]
    User(#[from] UserError),
    /// A tree could not be unpacked or mounted.
    #[error(transparent)]
    Tree(TreeError),
    /// Changes could not be listed.
    #[error(transparent)]
    Snapshot(SnapshotError),
    /// A layer could not be written.
    #[error(transparent)]
    Layer(LayerError),
    /// The blob store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The work dir cannot be used.
    #[error("cannot use the work directory `{}`", path.display())]
    WorkDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Too few files may be open at one time.
    #[error("only {limit} files may be open at one time, and a build needs {needed}")]
    FewDescriptors {
        /// How many.
        limit: u64,
        /// How many are needed at the least.
        needed: u64,
    },
    /// Too few processes and threads may be had.
    #[error("only {started} of {needed} threads could be started")]
    FewProcesses {
        /// How many could.
        started: usize,
        /// How many are needed at the least.
        needed: usize,
        /// Why not more.
        source: io::Error,
    },
    /// More is kept under the work dir than the build may take (`--max-disk`).
    #[error(
        "{used} bytes are in use under the work directory, more than the {budget} that are allowed{}",
        step.as_ref().map_or_else(String::new, |step| format!(": {grown} of them came during `{step}`"))
    )]
    DiskBudget {
        /// Bytes that are allowed.
        budget: u64,
        /// Bytes that were in use.
        used: u64,
        /// Title of the step that ran; of several the one during which most came.
        step: Option<String>,
        /// Bytes that came since that step began.
        grown: u64,
    },
    /// A layer that an earlier build made, pushed and did not keep is no longer where it was pushed to.
    #[error("a layer of an earlier build is gone from the registry that it was pushed to")]
    LayerGone {
        /// What needed it.
        source: Box<BuildError>,
    },
    /// The step cache cannot be written.
    #[error("cannot write the step cache")]
    Cache {
        /// Why.
        source: io::Error,
    },
    /// A cache that must be written (`ignore-error=false`) cannot.
    #[error("cannot write {0}")]
    CacheExport(#[from] CacheError),
    /// A cache mount cannot be made.
    #[error("cannot prepare cache mount `{id}`")]
    CacheMount {
        /// Its id.
        id: String,
        /// Why.
        source: io::Error,
    },
    /// An ssh agent cannot be offered to a RUN.
    #[error("cannot forward ssh agent `{id}`")]
    SshForward {
        /// Its id.
        id: String,
        /// Why.
        source: io::Error,
    },
    /// Outputs that want different images.
    #[error("outputs cannot differ in {option}: all are made from one image")]
    OutputsDiffer {
        /// In what.
        option: &'static str,
    },
    /// Annotations of an index, and there is none (checklist X-09).
    #[error("index annotations not supported for single platform export")]
    NoIndex,
    /// Annotations for a platform that is not built (checklist X-09).
    #[error("invalid annotation: no platform {platform} found in source")]
    AnnotationPlatform {
        /// Which.
        platform: Box<Platform>,
    },
    /// A bind mount's source does not exist.
    #[error("failed to calculate checksum of ref: \"{path}\": not found")]
    MountSourceMissing {
        /// As written.
        path: String,
    },
    /// A bind mount's source cannot be opened.
    #[error("cannot open mount source `{path}`")]
    MountSource {
        /// As written.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A required secret was not given.
    #[error("secret {id}: not found")]
    SecretMissing {
        /// Its id.
        id: String,
    },
    /// A required ssh agent was not given.
    #[error("no SSH key {id:?} forwarded from the client")]
    SshMissing {
        /// Its id.
        id: String,
    },
    /// A named context is used that was not given.
    #[error("build context `{name}` was not given")]
    UnknownContext {
        /// Its name.
        name: String,
    },
    /// An image is used that the plan did not ask for.
    #[error("image {name} was not resolved with the plan")]
    UnresolvedImage {
        /// Its name.
        name: String,
    },
    /// The caller did not agree to the image that was about to be written ([`super::BeforeOutputs`]).
    #[error("the image is not written")]
    BeforeOutputs {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A result could not be written or pushed.
    #[error(transparent)]
    Output(OutputError),
    /// The image's own JSON could not be made.
    #[error("cannot assemble the image")]
    Assemble(#[from] crate::image::AssembleError),
    /// The index above several images cannot be made.
    #[error(transparent)]
    Index(#[from] crate::image::IndexError),
    /// Something was asked for that slipway cannot do yet.
    #[error("{what} is not supported yet")]
    Unsupported {
        /// What.
        what: String,
    },
    /// Cancelled from outside, or by another stage's failure.
    #[error("cancelled")]
    Cancelled,
}

/// What kind of thing failed; the binary's exit codes follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Dockerfile, context or arguments.
    Input,
    /// A RUN's command, with its own exit code.
    Command(i32),
    /// A registry, or what came from it.
    Registry,
    /// Disk and work dir.
    Disk,
    /// The sandbox.
    Sandbox,
    /// Cancelled.
    Cancelled,
}

impl BuildError {
    /// Where in the Dockerfile, if anywhere.
    pub fn lines(&self) -> Option<LineRange> {
        match self {
            Self::Step { lines, .. } => Some(*lines),
            Self::Base { lines, .. } => *lines,
            Self::Plan(error) => error.lines.first().copied(),
            Self::Parse(errors) => Some(errors.first().lines),
            _ => None,
        }
    }

    /// What kind of thing failed.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Step { source, .. } | Self::LayerGone { source } => source.class(),
            Self::Exit { code, .. } | Self::NotExecutable { code, .. } => ErrorClass::Command(*code),
            // Pulling, copying and writing a result all end so, whatever else they may fail of.
            _ if fills_the_disk(self) => ErrorClass::Disk,
            Self::Base { .. } | Self::Output(_) | Self::CacheExport(_) | Self::UnresolvedImage { .. } => {
                ErrorClass::Registry
            }
            Self::Tree(TreeError::Fetch { .. } | TreeError::WrongDiffId { .. } | TreeError::BadEntry { .. }) => {
                ErrorClass::Registry
            }
            Self::Tree(_)
            | Self::Snapshot(_)
            | Self::Layer(_)
            | Self::Store(_)
            | Self::WorkDir { .. }
            | Self::DiskBudget { .. }
            | Self::Cache { .. }
            | Self::CacheMount { .. } => ErrorClass::Disk,
            Self::Sandbox(_) | Self::FewDescriptors { .. } | Self::FewProcesses { .. } => ErrorClass::Sandbox,
            Self::Cancelled => ErrorClass::Cancelled,
            _ => ErrorClass::Input,
        }
    }

    /// What a step fails of after the build was given up is no cause of that, whatever it says: somebody took away what
    /// the step stood on. An error that knows its step was there before.
    pub(super) fn unless(self, cancel: &Cancel) -> Self {
        match self {
            Self::Step { .. } => self,
            _ if cancel.is_cancelled() => Self::Cancelled,
            other => other,
        }
    }

    /// Says at which step it happened.
    pub(super) fn at(self, step: &Step, stage: &Stage) -> Self {
        match self {
            Self::Cancelled | Self::Step { .. } => self,
            other => Self::Step {
                title: step.title.clone(),
                stage: stage.name.clone(),
                lines: step.lines,
                source: Box::new(other),
            },
        }
    }
}

/// Whether a cause of `error` is that a file system or a quota is full.
fn fills_the_disk(error: &BuildError) -> bool {
    std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
}

impl From<TreeError> for BuildError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Cancelled => Self::Cancelled,
            other => Self::Tree(other),
        }
    }
}

impl From<InputError> for BuildError {
    fn from(error: InputError) -> Self {
        match error {
            InputError::Fetch(RemoteError::Cancelled) => Self::Cancelled,
            other => Self::Input(other),
        }
    }
}

impl From<SnapshotError> for BuildError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Recall { source: TreeError::Cancelled, .. } => Self::Cancelled,
            other => Self::Snapshot(other),
        }
    }
}

impl From<CopyError> for BuildError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Cancelled => Self::Cancelled,
            other => Self::Copy(other),
        }
    }
}

impl From<OutputError> for BuildError {
    fn from(error: OutputError) -> Self {
        match error {
            OutputError::Cancelled => Self::Cancelled,
            other => Self::Output(other),
        }
    }
}

impl From<LayerError> for BuildError {
    fn from(error: LayerError) -> Self {
        match error {
            LayerError::Cancelled => Self::Cancelled,
            other => Self::Layer(other),
        }
    }
}

impl From<SandboxError> for BuildError {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::Cancelled => Self::Cancelled,
            other => Self::Sandbox(other),
        }
    }
}

impl Hint for BuildError {
    fn hint(&self) -> Option<String> {
        let own = match self {
            Self::Step { source, .. } => source.hint(),
            Self::Tree(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Plan(error) => error.hint(),
            Self::Copy(error) => error.hint(),
            Self::Base { suggestion: Some(name), .. } => Some(format!("did you mean {name}?")),
            Self::Base { source, .. } => source.hint(),
            Self::NotExecutable { foreign: Some(platform), .. } => Some(format!(
                "this machine has no interpreter for programs of {platform}: register one with binfmt_misc, such as \
                 QEMU's, or cross-compile in a stage that begins with `FROM --platform=$BUILDPLATFORM`"
            )),
            Self::OutputsDiffer { .. } => {
                Some("build once for each: the second build takes all steps from the cache".to_owned())
            }
            Self::NoIndex => Some("build several platforms, or give --build-arg BUILDKIT_MULTI_PLATFORM=1".to_owned()),
            Self::Sandbox(error) | Self::NotExecutable { source: error, .. } => error.hint(),
            Self::FewDescriptors { .. } => Some(
                "a larger limit of open files (`ulimit -n`), which containers get from the runtime or containers.conf"
                    .to_owned(),
            ),
            Self::FewProcesses { .. } => Some(
                "a larger limit of processes: the pod's pid limit (podPidsLimit of the kubelet), `docker run --pids-limit`, \
                 `ulimit -u`"
                    .to_owned(),
            ),
            Self::Output(error) => error.hint(),
            Self::CacheExport(error) => error.hint(),
            Self::Input(error) => error.hint(),
            Self::Parse(errors) => errors.hint(),
            Self::SecretMissing { id } => Some(format!("give it with `--secret id={id},src=FILE` or `,env=NAME`")),
            Self::SshMissing { id } => Some(format!("give it with `--ssh {id}` while an ssh agent runs, or `--ssh {id}=KEY`")),
            Self::UnknownContext { name } => Some(format!("give it with `--build-context {name}=DIRECTORY`")),
            Self::DiskBudget { grown: 0, .. } => {
                Some("`slipway cache prune` removes what earlier builds left, or give more with --max-disk".to_owned())
            }
            Self::DiskBudget { .. } => Some(
                "give more with --max-disk, remove in the same RUN what need not stay, or `slipway cache prune` what earlier \
                 builds left"
                    .to_owned(),
            ),
            Self::WorkDir { .. } => Some("choose a writable directory with `--work-dir` or SLIPWAY_DIR".to_owned()),
            _ => None,
        };
        // A file of an image or a layer lies in the work dir, whatever its path looks like.
        let full = || "the work directory is full: free space there, or give --work-dir a larger volume".to_owned();
        own.or_else(|| fills_the_disk(self).then(full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_after_the_build_was_given_up_is_no_cause() {
        let cancel = Cancel::default();
        let full = || BuildError::UnresolvedImage { name: "x".to_owned() };
        assert!(!matches!(full().unless(&cancel), BuildError::Cancelled));
        cancel.cancel();
        assert!(matches!(full().unless(&cancel), BuildError::Cancelled));
        let told = BuildError::Step {
            title: "RUN x".to_owned(),
            stage: "s".to_owned(),
            lines: LineRange { first: 1, last: 1 },
            source: Box::new(full()),
        };
        assert!(matches!(told.unless(&cancel), BuildError::Step { .. }), "it failed before and was told late");
        let recall = SnapshotError::Recall { files: 2, source: TreeError::Cancelled };
        assert!(matches!(BuildError::from(recall), BuildError::Cancelled));
        let fetched = InputError::Fetch(RemoteError::Cancelled);
        assert_eq!(BuildError::from(fetched).class(), ErrorClass::Cancelled, "Ctrl-C while a context is fetched");
    }
}
