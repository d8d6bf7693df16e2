//! Runs a plan: order, cache, cancellation, events. The only module that sees the others together.
//!
//! [`build`] goes through the whole line: context and Dockerfile are read, bases resolved, the plan made, each stage built
//! in one of some threads (`stages`, `stage`), the image assembled and written to its outputs (`finish`). A step's result is
//! kept under the work dir (`cache`), so that a build that was ended at any moment goes on behind its last finished step.
//!
//! ```text
//! <work>/blobs/   see `store`          <work>/cache/   see `exec::cache`
//! <work>/trees/   see `rootfs`         <work>/mounts/  see `exec::mounts`
//! <work>/files/   see `context`        <work>/tmp/     unfinished files of running builds
//! ```
//!
//! Architecture invariant: neither terminal nor flags are known here.

mod background;
mod cache;
mod copying;
mod elsewhere;
mod error;
mod finish;
mod forecast;
mod given;
mod inputs;
mod known;
mod maintain;
mod meter;
mod mounts;
mod partial;
mod passing;
mod prepare;
mod released;
mod report;
mod request;
mod room;
mod running;
mod sealing;
mod shared;
mod single;
mod space;
mod ssh;
mod stage;
mod stages;
mod step_key;
mod trace;
mod twins;
mod uploads;

pub use error::{BuildError, ErrorClass};
pub use finish::BuildResult;
pub use given::TarContext;
pub use inputs::InputError;
pub use maintain::{Inventory, Kept, KeptMount, MaintainError, WorkDir, inventory, probe_work_dir, prune};
pub use mounts::CacheMountId;
pub use prepare::{PlatformPlan, Prepared, check, dockerfile, prepare};
pub use report::{Report, StepReport};
pub use request::{
    BeforeOutputs, BuildRequest, ContextSource, Directories, DockerfileSource, Fetched, NoCache, PushSettings,
    SecretValue,
};
pub use ssh::SshAgent;

use std::sync::Arc;

use self::given::StandardInput;
use self::report::Recorder;
use crate::cancel::Cancel;
use crate::event::{Event, Observer};

/// How a build ended.
#[derive(Debug)]
pub struct Ended {
    /// What it made, or why it made nothing.
    pub result: Result<BuildResult, BuildError>,
    /// What was done until then.
    pub report: Report,
}

/// Builds what `request` asks for.
///
/// # Errors
/// [`BuildError`]; nothing that is not whole has then been pushed or published, and the work dir can be used again.
pub fn build(request: &BuildRequest, observer: Arc<dyn Observer>, cancel: &Cancel) -> Result<BuildResult, BuildError> {
    build_and_report(request, observer, cancel).result
}

/// The same, and what was done also if the build failed.
pub fn build_and_report(request: &BuildRequest, observer: Arc<dyn Observer>, cancel: &Cancel) -> Ended {
    let recorder = Arc::new(Recorder::new(observer));
    let mut request = BuildRequest { limits: request.limits.fitted(), ..request.clone() };
    request.tell_retries(&(Arc::clone(&recorder) as Arc<dyn Observer>));
    let request = &request;
    let stdin = Arc::default();
    let mut attempts = 1;
    let result = loop {
        match room::check().and_then(|()| build_once(request, &stdin, &recorder, cancel)) {
            Err(BuildError::LayerGone { .. }) if attempts < MOST_ATTEMPTS && !cancel.is_cancelled() => {
                recorder.event(Event::Notice {
                    message: "a layer of an earlier build is gone from the registry that it was pushed to: it is made again",
                });
                attempts += 1;
            }
            ended => break ended,
        }
    };
    let report = match &result {
        Ok(made) => made.report.clone(),
        Err(error) => recorder.failed(error),
    };
    Ended { result, report }
}

/// How often a build is begun. Each time at least one record of a layer that is gone has been removed, and with it all
/// that stands on it.
const MOST_ATTEMPTS: u32 = 8;

fn build_once(
    request: &BuildRequest,
    stdin: &Arc<StandardInput>,
    recorder: &Arc<Recorder>,
    cancel: &Cancel,
) -> Result<BuildResult, BuildError> {
    let prepared = prepare::prepare_with(request, stdin, &**recorder, cancel)?;
    if request.inherit_media_types {
        let settled = request.with_media_types_of(prepared.base_media_type(), &**recorder);
        return finish::build_prepared(&settled, prepared, recorder, cancel);
    }
    finish::build_prepared(request, prepared, recorder, cancel)
}
