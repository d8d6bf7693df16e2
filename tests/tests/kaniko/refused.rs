//! Command lines and inputs that are wrong: exit code 1 and a sentence that says what to change.

use super::*;

macro_rules! refused {
    ($($name:literal $arguments:expr, $environment:expr => $says:expr;)*) => {
        &[$(Row { name: concat!("refused::", $name), bare: true, arguments: $arguments, environment: $environment, code: 1, says: $says, ..ROW }),*]
    };
}

pub const ROWS: &[Row] = refused! {
    "unknown-flag" &["--destinaton=x"], &[] => &["Error: unknown flag: --destinaton (did you mean --destination?)\nUsage:\n  executor [flags]"];
    "unknown-letter" &["-x"], &[] => &["Error: unknown shorthand flag: 'x' in -x"];
    "very-old-flag" &["--insecure-skip-tls-verify"], &[] => &["Error: unknown flag: --insecure-skip-tls-verify"];
    "missing-value" &["--destination"], &[] => &["Error: flag needs an argument: --destination"];
    "bad-boolean" &["--cache=yes"], &[] => &["Error: invalid argument \"yes\" for \"--cache\" flag: strconv.ParseBool: parsing \"yes\": invalid syntax"];
    "stray-word" &["-c=context", "-d=REGISTRY/out", "--cache", "true"], &[] => &["Error: unknown command \"true\" for \"executor\""];
    "bad-duration" &["--cache-ttl=14d"], &[] => &["Error: invalid argument \"14d\" for \"--cache-ttl\" flag: time: unknown unit \"d\" in duration \"14d\""];
    "duration-without-unit" &["--cache-ttl=14"], &[] => &["time: missing unit in duration \"14\""];
    "bad-number" &["--push-retry=many"], &[] => &["Error: invalid argument \"many\" for \"--push-retry\" flag"];
    "bad-compression" &["--compression=xz"], &[] => &["Error: invalid argument \"xz\" for \"--compression\" flag: it is one of gzip, zstd"];
    "compression-level-too-high" &["-c=context", "-d=REGISTRY/out", "--compression-level=12"], &[] => &["the highest level is 9"];
    "bad-snapshot-mode" &["--snapshotMode=fast"], &[] => &["Error: invalid argument \"fast\" for \"--snapshot-mode\" flag: it is one of full, redo, time"];
    "bad-level" &["-v=loud"], &[] => &["Error: parsing log level: not a valid logrus Level: \"loud\""];
    "bad-format" &["--log-format=xml"], &[] => &["Error: not a valid log format: \"xml\". Please specify one of (text, color, json)"];
    "no-destination" &["-c=context"], &[] => &["Error: you must provide --destination, or use --no-push", "Usage:"];
    "no-destination-for-a-dryrun" &["-c=context", "--dryrun"], &[] => &["Error: you must provide --destination, or use --no-push"];
    "no-names-without-destination" &["-c=context", "--no-push", "--image-name-with-digest-file=x"], &[] => &["Error: you must provide --destination if setting --image-name-with-digest-file"];
    "cache-without-place" &["-c=context", "--no-push", "--cache"], &[] => &["Error: cache flags invalid: if using cache with --no-push, specify cache repo with --cache-repo"];
    "destination-is-no-name" &["-c=context", "-d=A B"], &[] => &["Error: getting tag for destination: "];
    "destination-is-a-digest" &["-c=context", "-d=x@sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"], &[] => &["a result is pushed under a tag"];
    "bad-platform" &["-c=context", "-d=REGISTRY/out", "--custom-platform=a/b/c/d"], &[] => &["Error: invalid platform: "];
    "context-of-an-unknown-kind" &["-c=ftp://x", "-d=REGISTRY/out"], &[] => &["error resolving source context: unknown build context prefix", "ftp://x"];
    "context-is-missing" &["-c=nowhere", "-d=REGISTRY/out"], &[] => &["error resolving source context: ", "nowhere"];
    "dockerfile-is-missing" &["-c=context", "-d=REGISTRY/out", "-f=nowhere"], &[] => &["error resolving dockerfile path: please provide a valid path to a Dockerfile within the build context with --dockerfile", "context/nowhere"];
    "label-without-value" &["-c=context", "-d=REGISTRY/out", "--label=x"], &[] => &["labels must be of the form key=value"];
    "annotation-without-value" &["--annotation=x"], &[] => &["expect key=value, got x"];
    "map-without-value" &["--registry-map=a=b;c"], &[] => &["expect key=value, got c"];
    "map-to-nothing" &["-c=context", "-d=REGISTRY/out", "--registry-map=a=b c"], &[] => &["--registry-map", "`b c` is not a registry"];
    "mirrors-in-one-variable" &["-c=context", "-d=REGISTRY/out"], &[("KANIKO_REGISTRY_MIRROR", "a;b")] => &["_MIRROR: expected a single registry host"];
    "no-push-is-no-boolean" &["-c=context", "-d=REGISTRY/out"], &[("KANIKO_NO_PUSH", "maybe")] => &["KANIKO_NO_PUSH", "maybe"];
    "certificate-is-missing" &["-c=context", "-d=REGISTRY/out", "--registry-certificate=a=/nowhere.pem"], &[] => &["--registry-certificate", "/nowhere.pem"];
    "client-certificate-of-one-part" &["-c=context", "-d=REGISTRY/out", "--registry-client-cert=a=/x.pem"], &[] => &["--registry-client-cert", "/path/to/client/cert"];
    "tar-of-oci" &["-c=context", "-d=REGISTRY/out", "--tar-path=x", "--image-format=oci"], &[] => &["--tar-path cannot be used together with --image-format=oci"];
    "tar-of-zstd" &["-c=context", "-d=REGISTRY/out", "--tar-path=x", "--compression=zstd"], &[] => &["--tar-path cannot be used together with --compression=zstd"];
    "docker-with-zstd" &["-c=context", "-d=REGISTRY/out", "--image-format=docker", "--compression=zstd"], &[] => &["--image-format=docker cannot be used together with --compression=zstd"];
    "secret-without-id" &["-c=context", "-d=REGISTRY/out", "--secret=src=x"], &[] => &["id=NAME is missing"];
    "secret-twice" &["-c=context", "-d=REGISTRY/out", "--secret=id=a,env=A", "--secret=id=a,env=B"], &[] => &["another secret with the id `a`"];
    "secret-of-two-kinds" &["-c=context", "-d=REGISTRY/out", "--secret=id=a,type=file,env=A"], &[] => &["type=file and env= exclude each other"];
    "git-depth-is-no-number" &["--git=depth=x"], &[] => &["Error: invalid argument \"depth=x\" for \"--git\" flag"];
    "report-as-without-value" &["-c=context", "-d=REGISTRY/out", "--report-as=x"], &[] => &["HOST[/PREFIX]=OTHER[/PREFIX]"];
};
