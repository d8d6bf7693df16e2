//! `slipway build`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use builder_core::cancel::Cancel;
use builder_core::event::Observer;
use builder_core::exec::{self, BuildError, BuildResult, ErrorClass};
use builder_core::hint::{self, Hint as _};
use builder_core::sandbox;
use serde::Serialize;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{call, result};
use crate::diagnostics;
use crate::exit::Exit;
use crate::flags::BuildFlags;
use crate::request::{self, Ambient, Build, BuildMode};
use crate::ui;

/// The signal that ended the build; 0 for none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Builds, checks or plans.
pub fn run(flags: &BuildFlags, ambient: &Ambient) -> ExitCode {
    let state = match request::state(&flags.state, ambient) {
        Ok(state) => state,
        Err(error) => {
            diagnostics::plain(&hint::chain(&error), error.hint().as_deref());
            return Exit::Usage.into();
        }
    };
    // Early: namespaces can be entered by a process with one thread only.
    let environment = match sandbox::enter_as(&state.wish) {
        Ok(environment) => environment,
        Err(error) => {
            diagnostics::plain(&format!("cannot set up namespaces: {error}"), None);
            return Exit::Sandbox.into();
        }
    };
    let build = match request::build(flags, ambient, environment) {
        Ok(build) => build,
        Err(error) => {
            diagnostics::plain(&hint::chain(&error), error.hint().as_deref());
            return Exit::Usage.into();
        }
    };
    let cancel = Cancel::default();
    if let Err(error) = listen_for_signals(&cancel) {
        return cannot_listen(&error);
    }
    request::size_process(&build.request.limits);
    let observer = ui::observer(build.shown);
    let outcome = match build.mode {
        BuildMode::Check => call::check(&build, &*observer, &cancel),
        BuildMode::Plan => plan(&build, &*observer, &cancel),
        BuildMode::Outline => call::outline(&build, &*observer, &cancel),
        BuildMode::Targets => call::targets(&build, &*observer, &cancel),
        BuildMode::Build => full(&build, Arc::clone(&observer), &cancel),
    };
    // The live lines go before an error is shown.
    drop(observer);
    match outcome {
        Ok(code) => code,
        Err(error) => {
            diagnostics::build_error(&error, &build.request.dockerfile);
            exit_for(&error).into()
        }
    }
}

/// The first SIGINT or SIGTERM ends the build in order, the second at once.
pub fn listen_for_signals(cancel: &Cancel) -> std::io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let cancel = cancel.clone();
    let listen = move || {
        for signal in signals.forever() {
            if SIGNAL.swap(signal, Ordering::SeqCst) != 0 {
                std::process::exit(i32::from(Exit::Signal(signal).code()));
            }
            cancel.cancel();
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).map(drop)
}

/// Says why [`listen_for_signals`] failed: the first thread that a build starts.
pub fn cannot_listen(error: &std::io::Error) -> ExitCode {
    let hint = (error.kind() == std::io::ErrorKind::WouldBlock)
        .then_some("no thread can be started: a larger limit of processes (the pod's pid limit, `ulimit -u`)");
    diagnostics::plain(&format!("cannot listen for signals: {error}"), hint);
    Exit::Sandbox.into()
}

/// What a failed build ends with.
pub fn exit_for(error: &BuildError) -> Exit {
    match error.class() {
        ErrorClass::Command(code) => Exit::Command(code),
        ErrorClass::Registry => Exit::Registry,
        ErrorClass::Disk => Exit::Disk,
        ErrorClass::Sandbox => Exit::Sandbox,
        ErrorClass::Cancelled => match SIGNAL.load(Ordering::SeqCst) {
            0 => Exit::Signal(SIGINT),
            signal => Exit::Signal(signal),
        },
        _ => Exit::Input,
    }
}

fn full(build: &Build, observer: Arc<dyn Observer>, cancel: &Cancel) -> Result<ExitCode, BuildError> {
    let ended = exec::build_and_report(&build.request, observer, cancel);
    let trace = build.report_trace.as_ref().map(|_| ended.report.trace().to_string()).unwrap_or_default();
    let reports = [(&build.report_trace, trace), (&build.report, pretty(&json!(ended.report)))];
    // What was done is told of a build that failed, too; its own error is the one that counts then.
    let told = write_all(reports);
    let made = ended.result?;
    let config = made.images.first().map(|image| image.config_descriptor.digest.to_string()).unwrap_or_default();
    let results = [(&build.iidfile, config.clone()), (&build.metadata_file, pretty(&metadata(build, &made, &config)))];
    if !write_all(results) || !told {
        return Ok(Exit::Input.into());
    }
    let to_stdout = build.request.outputs.iter().any(builder_core::output::Target::is_stdout);
    if !to_stdout {
        result(&format!("{}\n", made.root.digest));
    }
    Ok(ExitCode::SUCCESS)
}

/// JSON as a text of several lines.
pub(super) fn pretty(value: &impl Serialize) -> String {
    // Values made of plain data always serialise.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// Writes what was asked for; `false` if something could not be written, which has been said then.
fn write_all<const COUNT: usize>(files: [(&Option<PathBuf>, String); COUNT]) -> bool {
    let mut all = true;
    for (path, text) in files {
        if let Some(path) = path
            && let Err(error) = write(path, &text)
        {
            diagnostics::plain(&format!("cannot write `{}`: {error}", path.display()), None);
            all = false;
        }
    }
    all
}

/// Whole or not at all.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let temp = path.with_extension(format!("tmp{}", std::process::id()));
    fs::write(&temp, text)?;
    fs::rename(&temp, path).inspect_err(|_| _ = fs::remove_file(&temp))
}

/// What `docker buildx build --metadata-file` writes.
fn metadata(build: &Build, made: &BuildResult, config: &str) -> Value {
    let names: Vec<String> = build
        .request
        .tags
        .iter()
        .chain(build.request.outputs.iter().flat_map(|output| &output.names))
        .map(ToString::to_string)
        .collect();
    let mut value = json!({
        "containerimage.descriptor": made.root,
        "containerimage.digest": made.root.digest,
    });
    if !names.is_empty() {
        value["image.name"] = json!(names.join(","));
    }
    if made.images.len() == 1 {
        value["containerimage.config.digest"] = json!(config);
    }
    value
}

fn plan(build: &Build, observer: &dyn Observer, cancel: &Cancel) -> Result<ExitCode, BuildError> {
    let prepared = exec::prepare(&build.request, observer, cancel)?;
    for planned in &prepared.plans {
        match build.json {
            true => result(&pretty(&json!(planned.plan))),
            false => result(&planned.plan.render()),
        }
    }
    Ok(ExitCode::SUCCESS)
}
