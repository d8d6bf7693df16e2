//! Where the workloads are built.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::environment::Environment;
use tests::layers::Layers;
use tests::process;

use crate::inputs::Workload;

/// How long one build may take, on a machine that is busy with others.
const LIMIT: Duration = Duration::from_secs(1200);

/// A directory that every environment sees under the same name.
pub struct Place {
    root: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl Place {
    pub fn new() -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        let keep = std::env::var_os("WORKLOADS_KEEP").map(PathBuf::from);
        // Not /tmp, which may be a tmpfs: trees of a gigabyte lie there.
        let temporary = match keep {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("slipway-workloads-").tempdir_in("/var/tmp").map_err(text)?),
        };
        let root = keep.or_else(|| Some(temporary.as_ref()?.path().to_owned())).unwrap_or_default();
        fs::create_dir_all(&root).map_err(text)?;
        fs::set_permissions(&root, Permissions::from_mode(0o755)).map_err(text)?;
        Ok(Self { root, temporary })
    }

    /// Where a workload's inputs are.
    pub fn inputs(&self, workload: &Workload) -> PathBuf {
        self.root.join(format!("inputs-{}", workload.name))
    }

    /// Builds there and reads what came out.
    pub fn build(&self, workload: &Workload, environment: Environment) -> Result<Layers, String> {
        let own = self.root.join(format!("{}-{}", workload.name, environment.name()));
        _ = fs::remove_dir_all(&own);
        fs::create_dir_all(&own).map_err(|error| error.to_string())?;
        let started = layers_time();
        let built = self.run(workload, environment, &own);
        // All bases have one layer.
        let layers = built.and_then(|()| Layers::read(&own.join("result"), started, 1));
        if self.temporary.is_some() {
            _ = fs::remove_dir_all(&own);
        }
        layers
    }

    fn run(&self, workload: &Workload, environment: Environment, own: &Path) -> Result<(), String> {
        let mut started = environment.slipway(&self.root, own)?;
        let command = &mut started.command;
        let inputs = self.inputs(workload);
        command.args(["build", "--progress", "plain", "--no-cache", "--work-dir"]).arg(own.join("work"));
        command.arg("--build-context").arg(format!("base=oci-layout://{}/base:latest", inputs.display()));
        for name in workload.contexts() {
            command.arg("--build-context").arg(format!("{name}={}", inputs.join(name).display()));
        }
        command.arg("--build-arg").arg(format!("ENVIRONMENT={}", environment.name()));
        command.arg("--output").arg(format!("type=oci,tar=false,dest={}", own.join("result").display()));
        let ended = process::run(command.arg(inputs.join("context")), LIMIT).map_err(|error| error.to_string())?;
        if self.temporary.is_none() {
            fs::write(own.join("output"), ended.text()).map_err(|error| error.to_string())?;
        }
        if ended.success() { Ok(()) } else { Err(format!("{}\n{}", ended.how(), ended.tail(60).join("\n"))) }
    }
}

/// Seconds since 1970.
fn layers_time() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_secs().cast_signed()
}
