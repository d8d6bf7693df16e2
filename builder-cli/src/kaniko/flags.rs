//! Kaniko's flags, each defined once. The parser, `--help` and `docs/kaniko.md` come from these tables.

use super::grammar::{Alias, Definition, Effect, Kind};

impl Definition {
    const fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, short: None, aliases: &[], env: "", kind, default: "", help, effect: Effect::Same, hidden: false }
    }

    const fn text(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Text, help)
    }

    const fn bool(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Bool, help).default("false")
    }

    const fn number(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Number, help).default("0")
    }

    const fn list(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::List, help)
    }

    const fn short(self, short: char) -> Self {
        Self { short: Some(short), ..self }
    }

    const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    const fn env(self, env: &'static str) -> Self {
        Self { env, ..self }
    }

    const fn aliases(self, aliases: &'static [Alias]) -> Self {
        Self { aliases, ..self }
    }

    const fn better(self, how: &'static str) -> Self {
        Self { effect: Effect::Better(how), ..self }
    }

    const fn meaningless(self, why: &'static str) -> Self {
        Self { effect: Effect::Meaningless(why), ..self }
    }

    const fn ours(self, why: &'static str) -> Self {
        Self { effect: Effect::Ours(why), ..self }
    }

    const fn hidden(self) -> Self {
        Self { hidden: true, ..self }
    }
}

const fn warns(name: &'static str) -> Alias {
    Alias { name, warns: true }
}

const fn silent(name: &'static str) -> Alias {
    Alias { name, warns: false }
}

/// Why what steers Kaniko's walks over the file system has no effect.
const NO_WALKS: &str = "changes are found exactly, from overlayfs or by comparing all metadata; nothing can be missed";
/// Why what protects or cleans the container's root has no effect.
const NO_ROOT: &str = "the build has a root of its own; this container's `/` is never read or changed";

macro_rules! definitions {
    ($($name:ident = $definition:expr;)*) => {
        $(pub static $name: Definition = $definition;)*
    };
}

definitions! {
    // What is built.
    DOCKERFILE = Definition::text("dockerfile", "Path or http(s) URL of the Dockerfile, from the current directory or the context")
        .short('f').default("Dockerfile");
    CONTEXT = Definition::text("context", "Where COPY and ADD read from: a path, dir://, tar://, git://, https://, gs://, s3://")
        .short('c').default("/workspace/")
        .better("downloads go on where they broke; any compression of the tar; nothing is left in the context");
    CONTEXT_SUB_PATH = Definition::text("context-sub-path", "Directory within the context that is built from")
        .better("Kaniko ignores it for a context without `://`");
    BUCKET = Definition::text("bucket", "Name of the bucket with the context; use --context")
        .short('b').hidden()
        .better("Kaniko ignores it unless --context is empty or has a scheme");
    BUILD_ARG = Definition::list("build-arg", "NAME=VALUE for ARG; NAME alone takes the variable of that name, or nothing")
        .better("values may hold `=` in FROM too, and an empty one replaces a default");
    TARGET = Definition::new("target", Kind::Commas, "Stages to build; the first one is the image").default("")
        .better("numbers of stages are taken too");
    CUSTOM_PLATFORM = Definition::text("custom-platform", "Platform of the image: os[/arch[/variant]][:osversion]")
        .aliases(&[warns("customPlatform")])
        .better("a base of another platform is refused instead of being relabelled");
    LABEL = Definition::list("label", "NAME=VALUE of the image's config")
        .better("it wins over LABEL of the Dockerfile, as with docker");
    ANNOTATION = Definition::new("annotation", Kind::Pairs, "NAME=VALUE of the manifest");
    SECRET = Definition::list("secret", "For RUN --mount=type=secret: id=ID[,src=PATH][,env=VARIABLE][,type=file|env]")
        .better("never written to disk, and out of reach for every other RUN");
    GIT = Definition::new("git", Kind::Git, "Options of git contexts: branch=, single-branch=, depth=, recurse-submodules=, insecure-skip-tls=")
        .better("several may stand in one value, separated by commas");

    // What comes out.
    DESTINATION = Definition::list("destination", "Where the image is pushed; repeat it for several names").short('d');
    NO_PUSH = Definition::bool("no-push", "Do not push the image").env("`KANIKO_NO_PUSH` overrides it");
    DIGEST_FILE = Definition::text("digest-file", "File (or https:// URL) that gets the digest of the image");
    IMAGE_NAME_WITH_DIGEST_FILE = Definition::text("image-name-with-digest-file", "File (or https:// URL) that gets NAME@DIGEST of each destination")
        .better("keeps its form when the next one is given too");
    IMAGE_NAME_TAG_WITH_DIGEST_FILE = Definition::text("image-name-tag-with-digest-file", "File (or https:// URL) that gets NAME:TAG@DIGEST of each destination");
    OCI_LAYOUT_PATH = Definition::text("oci-layout-path", "Directory that gets the image as an OCI layout")
        .better("no blobs of cache entries among them");
    TAR_PATH = Definition::text("tar-path", "File that gets the image as `docker save` writes it")
        .aliases(&[silent("tarPath")]);
    IMAGE_FORMAT = Definition::new("image-format", Kind::Choice(&["", "docker", "oci"]), "Media types of the image; those of the base if not given");
    COMPRESSION = Definition::new("compression", Kind::Choice(&["", "gzip", "zstd"]), "Compression of new layers");
    COMPRESSION_LEVEL = Definition::number("compression-level", "Level of the compression; above 0").default("-1")
        .better("the default level is chosen by measurement and compresses on all processors");
    REPRODUCIBLE = Definition::bool("reproducible", "Leave times out, so that equal inputs give equal images")
        .better("new layers only, as a stream; base layers, OCI media types and zstd are kept");
    SINGLE_SNAPSHOT = Definition::bool("single-snapshot", "One layer for everything that is added to the base image")
        .better("steps are cached one by one all the same; every instruction stays in the history");
    REPORT_AS = Definition::list("report-as", "HOST[/PREFIX]=OTHER[/PREFIX]: names that are written out say OTHER where --destination says HOST")
        .env("`SLIPWAY_REPORT_AS`, several separated by `;`")
        .ours("a registry may be pushed to by one name and pulled from by another");

    // Cache.
    CACHE = Definition::bool("cache", "Look up steps in the cache repository, and put them there")
        .better("all steps are looked up before a layer is pulled; a miss does not end the looking up");
    CACHE_REPO = Definition::text("cache-repo", "Repository of the cache, or oci:PATH; DESTINATION/cache if not given");
    CACHE_DIR = Definition::text("cache-dir", "Directory of images that `warmer` left").default("/cache")
        .better("images pinned by digest need no network; expired ones are fetched again");
    CACHE_TTL = Definition::new("cache-ttl", Kind::Duration, "Entries of the cache that are older do not count").default("336h");
    CACHE_COPY_LAYERS = Definition::bool("cache-copy-layers", "Keep the results of COPY and ADD in the cache repository");
    CACHE_RUN_LAYERS = Definition::bool("cache-run-layers", "Keep the results of RUN in the cache repository").default("true");
    NO_PUSH_CACHE = Definition::bool("no-push-cache", "Only read from the cache repository");
    COMPRESSED_CACHING = Definition::bool("compressed-caching", "Has no effect").default("true")
        .meaningless("no layer is ever held in memory");

    // Registries.
    INSECURE = Definition::bool("insecure", "Push with plain HTTP where a registry has no TLS");
    INSECURE_PULL = Definition::bool("insecure-pull", "Pull with plain HTTP where a registry has no TLS");
    INSECURE_REGISTRY = Definition::list("insecure-registry", "A registry (host[:port]) that may be spoken to with plain HTTP");
    SKIP_TLS_VERIFY = Definition::bool("skip-tls-verify", "Accept any certificate of any registry");
    SKIP_TLS_VERIFY_PULL = Definition::bool("skip-tls-verify-pull", "Accept any certificate when pulling")
        .better("Kaniko never looks at it");
    SKIP_TLS_VERIFY_REGISTRY = Definition::list("skip-tls-verify-registry", "A registry (host[:port]) whose certificate is not checked");
    REGISTRY_CERTIFICATE = Definition::new("registry-certificate", Kind::Pairs, "HOST=FILE: certificates (PEM) to trust for a registry")
        .better("trusted for that registry alone; a file that cannot be read or holds none is an error");
    REGISTRY_CLIENT_CERT = Definition::new("registry-client-cert", Kind::Pairs, "HOST=CERT,KEY: client certificate (PEM) for a registry");
    REGISTRY_MAP = Definition::new("registry-map", Kind::MultiMap, "REGISTRY=OTHER[/PREFIX][;…]: pull from OTHER instead of REGISTRY")
        .env("`KANIKO_REGISTRY_MAP` is appended")
        .better("`docker.io` is understood as well as `index.docker.io`; URLs are taken");
    REGISTRY_MIRROR = Definition::list("registry-mirror", "HOST[/PREFIX] to pull from instead of Docker Hub")
        .env("`KANIKO_REGISTRY_MIRROR` is appended")
        .better("URLs are taken");
    SKIP_DEFAULT_REGISTRY_FALLBACK = Definition::bool("skip-default-registry-fallback", "Fail if no mapped registry has the image");
    SKIP_PUSH_PERMISSION_CHECK = Definition::bool("skip-push-permission-check", "Do not find out before the build whether pushing is allowed");
    PUSH_RETRY = Definition::number("push-retry", "How often a failed push is tried again")
        .better("single requests are tried again besides, uploads go on where they broke");
    PUSH_IGNORE_IMMUTABLE_TAG_ERRORS = Definition::bool("push-ignore-immutable-tag-errors", "A tag that exists and may not change is no failure");
    IMAGE_DOWNLOAD_RETRY = Definition::number("image-download-retry", "How often a failed download of an image is tried again")
        .better("covers blobs too, which go on where they broke");
    IMAGE_FS_EXTRACT_RETRY = Definition::number("image-fs-extract-retry", "How often a failed download of a base's layers is tried again")
        .better("goes on where it broke");
    CREDENTIAL_HELPERS = Definition::list("credential-helpers", "Sources of credentials beside config.json: env, google, ecr, acr, gitlab; empty for none");

    // How it runs.
    KANIKO_DIR = Definition::text("kaniko-dir", "Directory that everything of the build is kept in, best on a volume")
        .env("`KANIKO_DIR`; `SLIPWAY_DIR` before both")
        .better("all work files go there, not only the binaries; mounts within it are no obstacle");
    IGNORE_PATH = Definition::list("ignore-path", "Path, with shell patterns in each part, whose changes do not get into the image");
    IGNORE_VAR_RUN = Definition::bool("ignore-var-run", "Changes below /var/run do not get into the image").default("true")
        .aliases(&[silent("whitelist-var-run")]);
    FORCE = Definition::bool("force", "Has no effect").meaningless(NO_ROOT);
    CLEANUP = Definition::bool("cleanup", "Has no effect").env("`KANIKO_CLEANUP`").meaningless(NO_ROOT);
    PRE_CLEANUP = Definition::bool("pre-cleanup", "Has no effect").env("`KANIKO_PRE_CLEANUP`").meaningless(NO_ROOT);
    PRESERVE_CONTEXT = Definition::bool("preserve-context", "Has no effect").env("`KANIKO_PRESERVE_CONTEXT`").meaningless(NO_ROOT);
    MATERIALIZE = Definition::bool("materialize", "Has no effect")
        .meaningless("the build has a root of its own; `slipway build -o type=local,dest=DIR` writes files");
    SNAPSHOT_MODE = Definition::new("snapshot-mode", Kind::Choice(&["full", "redo", "time"]), "Has no effect").default("full")
        .aliases(&[warns("snapshotMode")]).meaningless(NO_WALKS);
    USE_NEW_RUN = Definition::bool("use-new-run", "Has no effect").meaningless(NO_WALKS);
    FORCE_BUILD_METADATA = Definition::bool("force-build-metadata", "Has no effect")
        .meaningless("every instruction is in the history, and none of them makes an empty layer");
    SKIP_UNUSED_STAGES = Definition::bool("skip-unused-stages", "Has no effect").meaningless("unused stages are never built");
    DRYRUN = Definition::bool("dryrun", "Print what would be done, and do nothing of it");

    // What is shown.
    VERBOSITY = Definition::text("verbosity", "trace, debug, info, warn, error, fatal or panic").short('v').default("info");
    LOG_FORMAT = Definition::text("log-format", "text, color or json").default("color");
    LOG_TIMESTAMP = Definition::bool("log-timestamp", "Show times of day in the color format");

    // Of `warmer`.
    WARMER_IMAGE = Definition::list("image", "Image to fetch; repeat it for several").short('i');
    WARMER_CACHE_DIR = Definition::text("cache-dir", "Directory that gets the images").short('c').default("/cache");
    WARMER_DOCKERFILE = Definition::text("dockerfile", "Path or http(s) URL of a Dockerfile whose bases are fetched").short('d');
    WARMER_FORCE = Definition::bool("force", "Fetch what is there already once more").short('f')
        .better("Kaniko does not do it");
    WARMER_BUILD_ARG = Definition::list("build-arg", "NAME=VALUE for ARGs in FROM")
        .better("it wins over the default of the ARG");
    WARMER_CACHE_TTL = Definition::new("cache-ttl", Kind::Duration, "What is older is fetched again").default("336h")
        .better("Kaniko never fetches an expired one again");
    WARMER_PLATFORM = Definition::text("customPlatform", "Platform of the images").aliases(&[silent("custom-platform")]);

    // Of `executor push` and `executor login`.
    USERNAME = Definition::text("username", "User").short('u');
    PASSWORD = Definition::text("password", "Password").short('p');
    PASSWORD_STDIN = Definition::bool("password-stdin", "Read the password from standard input");
}

/// Flags that every command takes.
static SHOWN: [&Definition; 3] = [&VERBOSITY, &LOG_FORMAT, &LOG_TIMESTAMP];

/// Flags about registries that images are pulled from.
static PULLS: [&Definition; 9] = [
    &INSECURE_PULL,
    &SKIP_TLS_VERIFY_PULL,
    &INSECURE_REGISTRY,
    &SKIP_TLS_VERIFY_REGISTRY,
    &REGISTRY_CERTIFICATE,
    &REGISTRY_CLIENT_CERT,
    &REGISTRY_MAP,
    &REGISTRY_MIRROR,
    &SKIP_DEFAULT_REGISTRY_FALLBACK,
];

static EXECUTOR: [&Definition; 53] = [
    &DOCKERFILE,
    &CONTEXT,
    &CONTEXT_SUB_PATH,
    &BUCKET,
    &BUILD_ARG,
    &TARGET,
    &CUSTOM_PLATFORM,
    &LABEL,
    &ANNOTATION,
    &SECRET,
    &GIT,
    &DESTINATION,
    &NO_PUSH,
    &DIGEST_FILE,
    &IMAGE_NAME_WITH_DIGEST_FILE,
    &IMAGE_NAME_TAG_WITH_DIGEST_FILE,
    &OCI_LAYOUT_PATH,
    &TAR_PATH,
    &IMAGE_FORMAT,
    &COMPRESSION,
    &COMPRESSION_LEVEL,
    &REPRODUCIBLE,
    &SINGLE_SNAPSHOT,
    &REPORT_AS,
    &CACHE,
    &CACHE_REPO,
    &CACHE_DIR,
    &CACHE_TTL,
    &CACHE_COPY_LAYERS,
    &CACHE_RUN_LAYERS,
    &NO_PUSH_CACHE,
    &COMPRESSED_CACHING,
    &INSECURE,
    &SKIP_TLS_VERIFY,
    &SKIP_PUSH_PERMISSION_CHECK,
    &PUSH_RETRY,
    &PUSH_IGNORE_IMMUTABLE_TAG_ERRORS,
    &IMAGE_DOWNLOAD_RETRY,
    &IMAGE_FS_EXTRACT_RETRY,
    &CREDENTIAL_HELPERS,
    &KANIKO_DIR,
    &IGNORE_PATH,
    &IGNORE_VAR_RUN,
    &FORCE,
    &CLEANUP,
    &PRE_CLEANUP,
    &PRESERVE_CONTEXT,
    &MATERIALIZE,
    &SNAPSHOT_MODE,
    &USE_NEW_RUN,
    &FORCE_BUILD_METADATA,
    &SKIP_UNUSED_STAGES,
    &DRYRUN,
];

/// Flags of `executor`.
pub fn executor() -> Vec<&'static Definition> {
    [&EXECUTOR[..], &PULLS, &SHOWN].concat()
}

/// Flags of `warmer`.
pub fn warmer() -> Vec<&'static Definition> {
    let own: [&Definition; 7] = [
        &WARMER_IMAGE,
        &WARMER_CACHE_DIR,
        &WARMER_DOCKERFILE,
        &WARMER_FORCE,
        &WARMER_BUILD_ARG,
        &WARMER_CACHE_TTL,
        &WARMER_PLATFORM,
    ];
    [&own[..], &PULLS, &SHOWN].concat()
}

/// Flags of `executor push`.
pub fn push() -> Vec<&'static Definition> {
    let own: [&Definition; 11] = [
        &DESTINATION,
        &DIGEST_FILE,
        &IMAGE_NAME_WITH_DIGEST_FILE,
        &IMAGE_NAME_TAG_WITH_DIGEST_FILE,
        &REPORT_AS,
        &INSECURE,
        &SKIP_TLS_VERIFY,
        &SKIP_PUSH_PERMISSION_CHECK,
        &PUSH_RETRY,
        &PUSH_IGNORE_IMMUTABLE_TAG_ERRORS,
        &CREDENTIAL_HELPERS,
    ];
    [&own[..], &PULLS, &SHOWN].concat()
}

/// Flags of `executor login`.
pub fn login() -> Vec<&'static Definition> {
    let own: [&Definition; 3] = [&USERNAME, &PASSWORD, &PASSWORD_STDIN];
    [&own[..], &SHOWN].concat()
}
