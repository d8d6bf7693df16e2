//! `FF_KANIKO_*`: every one is accepted, and what is right is always done.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::log::Logger;
use super::values;

/// How all feature flags begin.
const PREFIX: &str = "FF_KANIKO_";

/// Feature flags by what comes after [`PREFIX`], with what is always done. Those that became the rule long ago are among them.
pub const FLAGS: &[(&str, &str)] = &[
    ("BUILDKIT_ARG_ENV_PRECEDENCE", "the later of ARG and ENV wins"),
    ("CACHE_LOOKAHEAD", "all cached steps are found before something is done"),
    ("CACHE_PROBE_AFTER_MISS", "a miss does not end the looking up"),
    ("CHOWN_ON_IMPLICIT_DIRS", "directories that WORKDIR makes belong to the USER"),
    ("CLEAN_KANIKO_DIR", "nothing of a build stays but what the next one can use"),
    ("COPY_AS_ROOT", "COPY and ADD from the context belong to 0:0 unless --chown says otherwise"),
    ("COPY_CHMOD_ON_IMPLICIT_DIRS", "directories that COPY makes are as BuildKit makes them"),
    ("CROSS_REPO_MOUNT", "blobs are mounted from another repository where the registry can"),
    ("DEPRECATE_INTER_STAGE_RESTORE", "stages have roots of their own"),
    ("DISABLE_HTTP2", "blobs go over HTTP/1.1"),
    ("EXPAND_HEREDOC", "heredocs of COPY and ADD are expanded unless quoted"),
    ("HASH_DIR_FRAMING", "cache keys cannot collide"),
    ("IGNORE_CACHED_MANIFEST", "warmed images are OCI layouts"),
    ("INFER_CROSS_STAGE_CACHE_KEY", "keys of stages are known before they are built"),
    ("NEW_CACHE_LAYOUT", "warmed images are OCI layouts"),
    ("NO_PROPAGATE_ANNOTATIONS", "annotations of a base's manifest stay there"),
    ("OCI_SCRATCH_BASE", "`scratch` gives Docker's media types; --image-format=oci gives OCI's"),
    ("OCI_STAGES", "stages are kept as layers"),
    ("OCI_WARMER", "warmed images are OCI layouts"),
    ("PATH_SCOPED_REGISTRY_AUTH", "logins for a path count for that path alone"),
    ("PRECOMPILE_DOCKERIGNORE", "ignore rules are compiled once"),
    ("PRESERVE_HARDLINKS", "hard links stay hard links"),
    ("PRESERVE_MOUNTED_PATHS", "nothing of this container is ever deleted"),
    ("RELATIVE_LINK_TARGETS", "targets of hard links are relative to the root"),
    ("REPRODUCIBLE_PRESERVE_BASE_LAYERS", "base layers are never rewritten"),
    ("RESOLVE_CACHE_KEY", "cache keys cover expanded instructions and heredocs"),
    ("ROLLING_CACHE_KEY", "cache keys cannot collide"),
    ("RUN_HONOR_GROUP", "`USER user:group` is honoured by RUN"),
    ("RUN_MOUNT_BIND", "bind mounts work, from other stages too"),
    ("RUN_MOUNT_CACHE", "cache mounts work"),
    ("RUN_MOUNT_SECRET", "secret mounts work"),
    ("RUN_MOUNT_SSH", "ssh mounts work"),
    ("RUN_MOUNT_TMPFS", "tmpfs mounts work"),
    ("RUN_VIA_TINI", "processes that a RUN leaves behind are ended with it"),
    ("SCOPED_DOCKERIGNORE", "ignore rules count within the context alone"),
    ("SECUREJOIN_EXTRACTION", "no path of a layer leads out of its root"),
    ("SHARED_BASE_CACHE", "each base is fetched once"),
    ("SKIP_CACHED_STAGES", "stages that nobody needs are skipped"),
    ("SKIP_RELABEL_RECOMPRESS", "labels change no layer"),
    ("SKIP_WRITE_WHITEOUTS", "whiteouts are never files"),
    ("SQUASH_STAGES", "stages share what they have in common"),
    ("UNTAR_SKIP_ROOT", "an archive does not change the directory that it is unpacked in"),
    ("VOLUME_SKIP_MKDIR", "VOLUME makes no directory"),
    ("WARMER_CACHE_LOCK", "several warmers may share a directory"),
];

/// Says which are set: what is on is on anyway, what is off stays on, what nobody knows is named.
pub fn banner(environment: &BTreeMap<OsString, OsString>, logger: &Logger) {
    for (name, value) in environment {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
        let Some(suffix) = name.strip_prefix(PREFIX) else { continue };
        match (FLAGS.iter().find(|(known, _)| *known == suffix), values::boolean(value)) {
            (None, _) => logger.warn(&format!("unknown feature flag {name} is ignored")),
            (Some((_, rule)), Ok(false)) => {
                logger.warn(&format!("feature flag {name} cannot be switched off: {rule}"));
            }
            (Some(_), Ok(true)) => logger.info(&format!("feature flag {name} is active")),
            (Some(_), Err(_)) => logger.warn(&format!("feature flag {name} is not a boolean and ignored: {value}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_there_once() {
        let names: std::collections::BTreeSet<_> = FLAGS.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), FLAGS.len());
    }
}
