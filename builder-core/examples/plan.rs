//! Prints what a Dockerfile would do, as JSON, and touches neither network nor disk beside the file itself: base images are taken for empty,
//! so what their configs say (`ENV`, `WORKDIR`, `ONBUILD`) is missing from the plan.
//!
//! ```text
//! cargo run -p builder-core --example plan -- DOCKERFILE [NAME=VALUE…]
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use builder_core::dockerfile;
use builder_core::hint;
use builder_core::oci::ImageConfig;
use builder_core::plan::{self, BaseImage, Bases, Lowered, Plan, PlanOptions};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(path) = arguments.next() else {
        eprintln!("usage: plan DOCKERFILE [NAME=VALUE…]");
        return ExitCode::FAILURE;
    };
    let build_args = arguments.filter_map(|text| {
        let (name, value) = text.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    let options = PlanOptions { build_args: build_args.collect(), ..PlanOptions::default() };
    match plan_of(Path::new(&path), &options).and_then(|plan| Ok(serde_json::to_string_pretty(&plan)?)) {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{path}: {}", hint::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn plan_of(path: &Path, options: &PlanOptions) -> Result<Box<Plan>, Box<dyn Error>> {
    let dockerfile = dockerfile::read(path)?;
    let outline = plan::outline(&dockerfile, options)?;
    let mut bases = Bases::new();
    let mut needed = outline.images.clone();
    loop {
        // A builder asks registries here; the images that an ONBUILD names come in a second round.
        bases.extend(needed.into_iter().map(|request| {
            let base = BaseImage { config: ImageConfig::scratch(&request.platform), pinned: request.name.clone() };
            (request, base)
        }));
        match plan::lower(&dockerfile, &outline, &bases, options)? {
            Lowered::Plan(plan) => return Ok(plan),
            Lowered::Needs(more) => needed = more,
        }
    }
}
