//! What every environment must do.

mod confinement;
mod mounts;
mod processes;
mod stress;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use builder_core::sandbox::{ExitStatus, MountSource, SandboxError, SandboxMount};

use crate::inside::{Context, Tree, command, shell};

/// One behaviour.
pub struct Case {
    /// Name in test names.
    pub name: &'static str,
    /// Panics if it is not so.
    pub run: fn(&Context),
}

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        /// All of them.
        const CASES: &[Case] = &[$(Case { name: stringify!($name), run: $module::$name }),*];
    };
}

cases![
    processes::unavailable,
    processes::choice,
    processes::exit_codes,
    processes::signals,
    processes::streams,
    processes::named_pipes,
    processes::jobs_that_end_meanwhile,
    processes::a_thousand_lines_in_order,
    processes::output_without_line_end,
    processes::standard_input_is_empty,
    processes::process_one,
    processes::orphans_do_not_hang,
    processes::daemons_are_ended,
    processes::daemons_by_number,
    processes::environment_is_the_given_one,
    processes::arguments_are_verbatim,
    processes::umask,
    processes::hostname,
    mounts::hosts_and_resolv_conf,
    mounts::files_of_etc_leave_no_trace,
    mounts::dangling_resolv_conf,
    mounts::scratch_keeps_standard_directories,
    mounts::devices_work,
    confinement::other_devices_do_not_open,
    confinement::proc_is_ours,
    confinement::read_only_parts,
    confinement::what_is_listed_is_there,
    confinement::files_are_what_is_opened,
    confinement::builder_is_out_of_reach,
    confinement::old_root_is_gone,
    confinement::capabilities,
    confinement::system_calls_are_filtered,
    confinement::working_directory,
    confinement::users_and_groups,
    confinement::ids_that_do_not_exist,
    confinement::setuid_programs,
    confinement::files_behind_descriptors,
    confinement::names_behind_descriptors,
    confinement::ways_change,
    confinement::device_nodes,
    processes::missing_program,
    processes::unusable_programs,
    processes::programs_are_found_in_path,
    confinement::set_ids_of_written_files,
    confinement::no_network,
    confinement::limits,
    mounts::shared_memory,
    mounts::mounts_of_the_host,
    mounts::mounts_of_descriptors,
    mounts::mounts_in_mounts,
    mounts::tmpfs_mounts,
    mounts::files_in_memory,
    mounts::secrets_are_on_no_disk,
    mounts::one_directory_twice,
    mounts::mounts_leave_no_trace,
    mounts::up_behind_a_link,
    mounts::targets_stay_inside,
    processes::cancelling,
    confinement::no_descriptors_leak,
    processes::parallel_runs,
    mounts::overlays,
    confinement::insecure,
    stress::threads,
    stress::processes,
    stress::files,
    stress::deep,
    stress::longest,
    stress::killed,
    stress::users,
    stress::peers,
    stress::access_lists,
    stress::capabilities_of_files,
    stress::roots,
    stress::programs_behind_descriptors,
    stress::written_programs,
    stress::interrupted,
    stress::changes,
    stress::a_capability_alone,
];

/// The cases that are performed: all, or those that `SANDBOX_CASES` names, separated by commas. An environment performs all of its
/// cases for the first one that is asked for.
pub fn wanted() -> impl Iterator<Item = &'static Case> {
    let names = std::env::var("SANDBOX_CASES").unwrap_or_default();
    CASES.iter().filter(move |case| names.is_empty() || names.split(',').any(|name| name == case.name))
}

#[track_caller]
fn ends(context: &Context, script: &str, expected: ExitStatus) {
    let tree = context.tree();
    let outcome = context.try_run(&tree.rootfs, &shell(script)).expect(script);
    assert_eq!(outcome.status, expected, "{script}: {outcome:?}");
}

/// Everything in a directory: path, mode, mtime.
fn listing(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![path.to_owned()];
    while let Some(directory) = todo.pop() {
        let metadata = fs::symlink_metadata(&directory).expect("stat");
        let shown = directory.strip_prefix(path).expect("below").display().to_string();
        found.push(format!("{shown} {:o} {}.{}", metadata.mode(), metadata.mtime(), metadata.mtime_nsec()));
        if metadata.is_dir() {
            todo.extend(fs::read_dir(directory).expect("list").map(|entry| entry.expect("entry").path()));
        }
    }
    found.sort();
    found
}

fn bind(path: &Path, target: &str) -> SandboxMount {
    SandboxMount { owners: None, target: target.into(), readonly: true, source: MountSource::Host(path.to_owned()) }
}

#[track_caller]
fn refuses(context: &Context, tree: &Tree, argv: &[&str], errno: i32) {
    match context.try_run(&tree.rootfs, &command(argv)) {
        Err(SandboxError::Exec { program, source }) => {
            assert_eq!((program.to_str(), source.raw_os_error()), (Some(argv[0]), Some(errno)), "{argv:?}");
        }
        other => panic!("{argv:?}: {other:?}"),
    }
}

const ENOENT: i32 = 2;
const ENOEXEC: i32 = 8;
const EACCES: i32 = 13;
