//! Flags that `docker build` and `docker buildx build` have and `slipway build` has not: what to do instead.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::kaniko;

/// For Kaniko's other flags.
const KANIKO: &str = "this is a flag of Kaniko: `slipway executor` takes them all";

/// What speaks of the machine around a build, not of the build.
const AROUND: &str = "a build has the limits of the container or cgroup that slipway runs in: set them there";

/// What has no counterpart since there is no daemon.
const DAEMON: &str = "there is no daemon and no builder to choose: leave it out";

/// What changes nothing about the image.
const NOTHING: &str = "it has no meaning here: leave it out";

/// Each flag with what to do.
const ELSEWHERE: [(&str, &str); 25] = [
    ("--load", "there is no daemon to load into: `-o type=docker,dest=-` writes what `docker load` reads"),
    ("--attest", "no attestations are made: leave it out, or make them for the pushed image"),
    ("--builder", DAEMON),
    ("--isolation", DAEMON),
    ("--compress", NOTHING),
    ("--disable-content-trust", NOTHING),
    ("--force-rm", NOTHING),
    ("--rm", NOTHING),
    ("--squash", "layers stay as the instructions make them; `slipway executor --single-snapshot` makes one of them"),
    ("--security-opt", "commands are confined by --sandbox; RUN --security=insecure needs --allow security.insecure"),
    ("--cgroup-parent", AROUND),
    ("--cpu-period", AROUND),
    ("--cpu-quota", AROUND),
    ("--cpu-shares", AROUND),
    ("--cpuset-cpus", AROUND),
    ("--cpuset-mems", AROUND),
    ("--memory", "--max-memory bounds the builder itself; RUN has the limits of the cgroup that slipway runs in"),
    ("-m", "--max-memory bounds the builder itself; RUN has the limits of the cgroup that slipway runs in"),
    ("--memory-swap", AROUND),
    ("--print", "its name is --call now"),
    ("--policy", "policies are not read: check the Dockerfile with --check"),
    ("--debug", "SLIPWAY_LOG=debug shows what the library notes for itself"),
    ("-D", "SLIPWAY_LOG=debug shows what the library notes for itself"),
    ("--dockerfile", "the Dockerfile is -f/--file here; `slipway executor` takes Kaniko's flags"),
    ("--destination", "names are -t/--tag here, and --push pushes them; `slipway executor` takes Kaniko's flags"),
];

/// For a flag of others that was refused: which it is, and what to do.
pub fn advice(error: &clap::Error) -> Option<(&str, &'static str)> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else { return None };
    let name = given.split('=').next().unwrap_or(given);
    let known = ELSEWHERE.iter().find(|(flag, _)| *flag == name).map(|(_, advice)| *advice);
    let kaniko = || name.strip_prefix("--").is_some_and(kaniko::executor_takes).then_some(KANIKO);
    Some((name, known.or_else(kaniko)?))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::flags::Cli;

    #[test]
    fn each_is_refused_and_explained() {
        for (flag, expected) in ELSEWHERE {
            for line in [vec![flag.to_owned(), "x".to_owned()], vec![format!("{flag}=x")]] {
                let line = ["slipway", "build"].into_iter().map(str::to_owned).chain(line);
                let error = Cli::try_parse_from(line).expect_err(flag);
                assert_eq!(advice(&error), Some((flag, expected)), "{error}");
            }
        }
        for (flag, expected) in [("--no-cahce", None), ("--no-push", Some(KANIKO)), ("--digest-file=x", Some(KANIKO))] {
            let error = Cli::try_parse_from(["slipway", "build", flag]).expect_err(flag);
            assert_eq!(advice(&error).map(|(_, advice)| advice), expected, "{error}");
        }
    }
}
