//! Environments in which something is missing: an error before the first step says what, and what would help.

use std::fs;

use tests::pods::{BUSYBOX, Kind, Pod, SLIPWAY, Worse as Podman};
use tests::process::Ended;

pub const TESTS: &[(&str, crate::Test)] =
    &[("hostile::what_is_missing_is_named", || all(MISSING)), ("hostile::what_does_not_matter", || all(HARMLESS))];

/// What is worse than in the row of the table.
#[derive(Debug, Clone, Copy)]
struct Worse {
    /// System calls that the seccomp profile refuses, with these error numbers.
    refused: &'static [(&'static str, i32)],
    /// Options of the volume's mount.
    volume: &'static str,
    /// Arguments of the shell's `ulimit`.
    limit: &'static str,
}

/// One environment: the row it is like, what is worse, the sandbox asked for, and words of the error; none if it works.
type Row = (&'static str, Kind, Worse, &'static str, &'static [&'static str]);

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

const NOTHING: Worse = Worse { refused: &[], volume: "", limit: "" };

const fn without(refused: &'static [(&'static str, i32)]) -> Worse {
    Worse { refused, ..NOTHING }
}

const MISSING: &[Row] = &[
    (
        "no seccomp",
        Kind::E6,
        without(&[("seccomp", ENOSYS)]),
        "auto",
        &["seccomp user notification", "CONFIG_SECCOMP_FILTER"],
    ),
    ("no seccomp", Kind::E5, without(&[("seccomp", EPERM)]), "auto", &["seccomp user notification", "RuntimeDefault"]),
    ("no ptrace", Kind::E6, without(&[("ptrace", EPERM)]), "auto", &["ptrace", "RuntimeDefault"]),
    ("no ptrace", Kind::E6, without(&[("ptrace", EPERM)]), "traced", &["ptrace", "RuntimeDefault"]),
    ("no memory of others", Kind::E6, without(&[("process_vm_readv", EPERM)]), "auto", &["process_vm_readv"]),
    ("no openat2", Kind::E6, without(&[("openat2", ENOSYS)]), "auto", &["openat2"]),
    ("no memfd_create", Kind::E6, without(&[("memfd_create", EPERM)]), "auto", &["memfd_create"]),
    ("no statx", Kind::E6, without(&[("statx", ENOSYS)]), "auto", &["statx"]),
    ("no chroot", Kind::E5, without(&[("chroot", EPERM)]), "chroot", &["chroot", "SYS_CHROOT"]),
    ("noexec", Kind::E5, Worse { volume: "noexec", ..NOTHING }, "auto", &["noexec", "--work-dir"]),
    ("noexec", Kind::E6, Worse { volume: "noexec", ..NOTHING }, "auto", &["noexec", "--work-dir"]),
    ("few processes", Kind::E6, Worse { limit: "-u 1", ..NOTHING }, "auto", &["ulimit -u"]),
    ("few descriptors", Kind::E6, Worse { limit: "-n 12", ..NOTHING }, "auto", &["ulimit -n"]),
    ("few descriptors", Kind::E5, Worse { limit: "-n 12", ..NOTHING }, "auto", &["ulimit -n"]),
];

const HARMLESS: &[Row] = &[
    ("noexec", Kind::E4, Worse { volume: "noexec", ..NOTHING }, "auto", &[]),
    ("no clone3", Kind::E6, without(&[("clone3", ENOSYS)]), "auto", &[]),
    ("nosuid,nodev", Kind::E4, Worse { volume: "nosuid,nodev", ..NOTHING }, "auto", &[]),
    ("nosuid,nodev", Kind::E5, Worse { volume: "nosuid,nodev", ..NOTHING }, "auto", &[]),
    ("nosuid,nodev", Kind::E6, Worse { volume: "nosuid,nodev", ..NOTHING }, "auto", &[]),
    ("no pidfd_open", Kind::E6, without(&[("pidfd_open", ENOSYS)]), "auto", &[]),
    ("no mknod", Kind::E5, without(&[("mknodat", EPERM), ("mknod", EPERM)]), "auto", &[]),
    ("descriptors that are enough", Kind::E5, Worse { limit: "-n 64", ..NOTHING }, "auto", &[]),
    ("descriptors that are enough", Kind::E6, Worse { limit: "-n 64", ..NOTHING }, "auto", &[]),
    ("no Landlock", Kind::E6, without(&[("landlock_create_ruleset", ENOSYS)]), "auto", &[]),
    ("no Landlock", Kind::E5, without(&[("landlock_create_ruleset", EPERM)]), "auto", &[]),
];

fn all(rows: &[Row]) -> Result<(), String> {
    let failures: Vec<String> = rows
        .iter()
        .filter_map(|row| one(row).err().map(|error| format!("{} in {} with {}: {error}", row.0, row.1.name(), row.3)))
        .collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n\n")) }
}

fn one((_, kind, worse, sandbox, words): &Row) -> Result<(), String> {
    let volume = crate::volume()?;
    let ended = build(*kind, volume.path(), *worse, sandbox)?;
    let text = ended.text();
    let code = ended.status.and_then(|status| status.code());
    if words.is_empty() {
        return if ended.success() { Ok(()) } else { Err(format!("{}\n{text}", ended.how())) };
    }
    // 6: commands cannot be run here.
    if code != Some(6) {
        return Err(format!("{}, expected exit code 6\n{text}", ended.how()));
    }
    match words.iter().find(|word| !text.contains(**word)) {
        Some(word) => Err(format!("no {word:?} in\n{text}")),
        None if text.contains("COPY busybox") => Err(format!("told after the first step:\n{text}")),
        None => Ok(()),
    }
}

/// A build whose RUN looks at devices, setuid and owners.
fn build(kind: Kind, volume: &std::path::Path, worse: Worse, sandbox: &str) -> Result<Ended, String> {
    let text = |error: std::io::Error| error.to_string();
    let context = volume.join("context");
    fs::create_dir(&context).map_err(text)?;
    fs::copy("/bin/busybox", context.join("busybox")).map_err(text)?;
    let dockerfile = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"sh\", \"-ec\", \
                      \"busybox echo x >/dev/null; busybox head -c 3 /dev/zero >/z; busybox chown 5:6 /z; \
                      busybox chmod 6755 /z; test \\\"$(busybox stat -c %a:%u:%g /z)\\\" = 6755:5:6\"]\n";
    fs::write(context.join("Dockerfile"), dockerfile).map_err(text)?;
    let Worse { refused, volume: options, limit } = worse;
    let pod = Pod::start_worse(kind, volume, true, Podman { refused, volume: options, group: None })?;
    pod.give(&context)?;
    let path = |name: &str| volume.join(name).display().to_string();
    let output = format!("type=oci,dest={}", path("out.tar"));
    let (work, context) = (path("work"), path("context"));
    let arguments =
        ["build", "--sandbox", sandbox, "--work-dir", &work, "--progress", "plain", "--output", &output, &context];
    if limit.is_empty() {
        return pod.run(SLIPWAY, &arguments, &[]);
    }
    let script = format!("ulimit {limit}; exec {SLIPWAY} \"$@\"");
    pod.run(BUSYBOX, &[&["sh", "-c", &script, "sh"], &arguments[..]].concat(), &[])
}
