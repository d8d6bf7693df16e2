//! What is refused, and what is found.

use super::*;
use crate::hint::chain;

#[track_caller]
fn check_error(text: &str, message: &str, lines: &[usize]) {
    let error = plan_with(text, &options()).expect_err(text);
    assert_eq!(chain(&error), message, "{text}");
    let told: Vec<usize> = error.lines.iter().flat_map(|lines| lines.first..=lines.last).collect();
    assert_eq!(told, lines, "{text}");
}

#[track_caller]
fn check_findings(text: &str, expected: &[(&str, &str)]) {
    let plan = plan(text);
    let found: Vec<(&str, &str)> =
        plan.findings.iter().map(|finding| (finding.rule, finding.message.as_str())).collect();
    assert_eq!(found, expected, "{text}");
}

#[test]
fn errors_tell_their_lines() {
    check_error("ARG B\nFROM $B", "base name ($B) should not be blank", &[2]);
    check_error(
        "FROM base AS a\nFROM a:b:c",
        "failed to parse stage name \"a:b:c\": invalid reference format: `a:b:c`: a repository is lower-case words of a-z 0-9 joined by . _ __ - or /",
        &[2],
    );
    check_error(
        "FROM --platform=$TARGTARCH base",
        "empty platform value from expression $TARGTARCH (did you mean TARGETARCH?)",
        &[1],
    );
    check_error("FROM base\nCOPY --from=5 a /", "invalid stage index 5", &[]);
    check_error("FROM base\nCOPY --from=-1 a /", "invalid stage index -1", &[]);
    check_error(
        "FROM base\nCOPY --from=$x a /",
        "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
        &[],
    );
    check_error("FROM base AS a\nCOPY --from=a x /", "circular dependency detected on stage: a", &[2]);
    check_error("FROM base\nADD --checksum=x a b /", "checksum can't be specified for multiple sources", &[2]);
    check_error("FROM base\nADD --checksum=x a /", "checksum requires HTTP(S) or Git sources", &[2]);
    check_error("FROM base\nADD --checksum=x http://h/a /", "invalid checksum digest format: x", &[2]);
    check_error("FROM base\nCOPY git@h:p /", "source can't be a git ref for COPY", &[2]);
    check_error("FROM base\nVOLUME $none", "VOLUME specified can not be an empty string", &[2]);
    check_error("FROM base\nSTOPSIGNAL $none", "invalid signal: ", &[2]);
    check_error(
        "FROM base\nRUN --mount=type=bind,target=${x?gone} y",
        "failed to process \"${x?gone}\": x: gone",
        &[2],
    );
    check_error("FROM base\nRUN --mount=type=ssh,source=x y", "ssh does not support source", &[2]);
    check_error(
        "FROM base AS p\nONBUILD COPY --from=late a /\nFROM p AS c\nFROM base AS late\nFROM c",
        "cannot copy from stage \"late\", it needs to be defined before current stage \"c\"",
        &[3],
    );
    check_error("ARG SOURCE_DATE_EPOCH=soon\nFROM base", "invalid SOURCE_DATE_EPOCH: soon", &[1]);
    // Only what holds one remote ADD and nothing else has a time.
    for stage in [
        "FROM base AS src",
        "FROM scratch AS src",
        "FROM scratch AS src\nADD a /",
        "FROM scratch AS src\nADD http://h/a http://h/b /",
        "FROM scratch AS src\nADD http://h/a /\nADD http://h/b /",
        "FROM scratch AS src\nADD http://h/a /\nRUN x",
    ] {
        let text = format!("ARG SOURCE_DATE_EPOCH=src\n{stage}\nFROM base");
        check_error(&text, "invalid SOURCE_DATE_EPOCH: src", &[1]);
    }
    check_error("# check=error=true\nFROM base\nCMD a", "lint violation found for rules: JSONArgsRecommended", &[]);
    let unknown = PlanOptions { target: Some("Frist".to_owned()), ..options() };
    let error = plan_with("FROM base AS first", &unknown).expect_err("unknown");
    assert_eq!(error.to_string(), "target stage \"Frist\" could not be found (did you mean first?)");
}

#[test]
fn findings_before_an_error_are_told() {
    let error = plan_with("FROM base AS Up\nENV a b\nVOLUME $none", &options()).expect_err("an empty volume");
    let rules: Vec<&str> = error.findings.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, ["StageNameCasing", "LegacyKeyValueFormat", "UndefinedVar"]);
}

#[test]
fn rules_that_need_planning() {
    check_findings(
        "ARG base=base\nFROM $bas$base",
        &[("UndefinedArgInFrom", "FROM argument 'bas' is not declared (did you mean base?)")],
    );
    check_findings(
        "FROM base\nENV A=$PAHT",
        &[("UndefinedVar", "Usage of undefined variable '$PAHT' (did you mean $PATH?)")],
    );
    check_findings("FROM base\nARG none\nENV A=$none B=${none:-x}", &[]);
    check_findings(
        "FROM base\nWORKDIR a\nWORKDIR b",
        &[("WorkdirRelativePath", "Relative workdir \"a\" can have unexpected results if the base image changes")],
    );
    check_findings("FROM base AS p\nWORKDIR /a\nFROM p\nWORKDIR b", &[]);
    check_findings("FROM base\nSHELL [\"/bin/bash\", \"-c\"]\nCMD a", &[]);
    check_findings(
        "FROM arm",
        &[(
            "InvalidBaseImagePlatform",
            "Base image arm was pulled with platform \"linux/arm64\", expected \"linux/amd64\" for current build",
        )],
    );
    check_findings("FROM --platform=linux/amd64 base AS for-amd64", &[]);
    check_findings(
        "FROM --platform=$TARGETPLATFORM base",
        &[(
            "RedundantTargetPlatform",
            "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        )],
    );
    check_findings("FROM base AS unused\nENV a b\nFROM base", &[]);
    let ignoring = PlanOptions { ignore_file: Some("*.log\nd\n".to_owned()), ..options() };
    let made = plan_with("FROM base\nCOPY a.log ./d/x *.txt /", &ignoring).expect("valid");
    let messages: Vec<&str> = made.findings.iter().map(|finding| finding.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "Attempting to Copy file \"a.log\" that is excluded by .dockerignore",
            "Attempting to Copy file \"./d/x\" that is excluded by .dockerignore"
        ]
    );
}

#[test]
fn checking_needs_no_images_and_sees_all_stages() {
    let dockerfile =
        parsed("# check=error=true\nFROM nowhere AS unused\nENV a b\nENV c=$FROM_BASE\nFROM scratch\nENV d=$none");
    let checked = check(&dockerfile, &options(), &Bases::new());
    let rules: Vec<&str> = checked.findings.iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, ["LegacyKeyValueFormat", "UndefinedVar"]);
    assert_eq!(checked.error, None);
    let checked = check(&parsed("FROM nowhere AS Up\nCOPY https://x/y /"), &options(), &Bases::new());
    assert_eq!(checked.error.map(|error| error.to_string()).as_deref(), Some("source can't be a URL for COPY"));
    assert_eq!(checked.findings.len(), 1);
    // What nobody has allowed is refused by the build alone.
    let text = "FROM scratch\nRUN --security=insecure true\nRUN --network=host true";
    assert_eq!(check(&parsed(text), &options(), &Bases::new()).error, None);
    check_error(text, "security.insecure is not allowed", &[]);
}

#[test]
fn one_frontend_under_any_name_of_its_image() {
    for syntax in [
        "docker/dockerfile",
        "docker/dockerfile:1.7-labs",
        "docker.io/docker/dockerfile-upstream:master@sha256:1234",
        "mirror.example.com:5000/hub/docker/dockerfile:1 --with=words",
    ] {
        let dockerfile = parse(&format!("# syntax={syntax}\nFROM scratch\n")).expect("because it is correct");
        assert!(outline(&dockerfile, &PlanOptions::default()).is_ok(), "{syntax}");
    }
    check_error(
        "# escape=`\n# syntax=someone/other:1\nFROM scratch\n",
        "frontend someone/other:1 is not available: slipway reads the language of docker/dockerfile itself",
        &[2],
    );
}

#[test]
fn what_cannot_be_done_is_refused() {
    let dockerfile = parse("FROM scratch\n").expect("because it is correct");
    let with = |name: &str, value: &str| {
        let build_args = [(name.to_owned(), value.to_owned())].into();
        outline(&dockerfile, &PlanOptions { build_args, ..PlanOptions::default() })
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    for name in ["BUILDKIT_ATTEST_SBOM", "BUILDKIT_DISABLE_FILEOP"] {
        assert_eq!(with(name, "1"), Err(format!("build argument {name} is not supported")));
    }
    assert_eq!(with("BUILDKIT_ATTEST_PROVENANCE", "false"), Ok(()));
    assert_eq!(with("BUILDKIT_SYNTAX", "docker/dockerfile:1"), Ok(()));
    assert!(with("BUILDKIT_SYNTAX", "x").is_err());
}

#[test]
fn what_an_epoch_may_name() {
    use super::{EpochSource, epoch_source};
    let url = |url: &str, checksum: Option<&str>| {
        Some(EpochSource::Url { url: url.to_owned(), checksum: checksum.map(str::to_owned) })
    };
    let named = BTreeMap::from([
        ("dep".to_owned(), NamedContext::Directory("/d".into())),
        ("image".to_owned(), NamedContext::Image("x".to_owned())),
    ]);
    let given = |value: &str| PlanOptions {
        build_args: pairs(&[("SOURCE_DATE_EPOCH", value)]),
        named_contexts: named.clone(),
        ..options()
    };
    let stage = "FROM scratch AS Src\nARG V=1\nADD --checksum=sha256:$V http://h/a-$V.tar /\nFROM base\n";
    let git = "FROM scratch AS src\nARG SOURCE_DATE_EPOCH\nADD https://h/x.git#main /\nFROM base\n";
    for (dockerfile, value, expected) in [
        ("FROM base", "7", None),
        ("FROM base", "", None),
        ("FROM base", "context", Some(EpochSource::Context)),
        ("FROM base", "dep", Some(EpochSource::Named("dep".to_owned()))),
        (stage, "src", url("http://h/a-1.tar", Some("sha256:1"))),
        (stage, "SRC", url("http://h/a-1.tar", Some("sha256:1"))),
        (git, "src", Some(EpochSource::Git { url: "https://h/x.git#main".to_owned(), checksum: None })),
    ] {
        let parsed = crate::dockerfile::parse(dockerfile).expect(dockerfile);
        assert_eq!(epoch_source(&parsed, &given(value)).expect(value), expected, "{dockerfile}: {value}");
    }
    for (dockerfile, value) in [("FROM base", "image"), ("FROM base AS b", "b"), ("FROM base", "other")] {
        let parsed = crate::dockerfile::parse(dockerfile).expect(dockerfile);
        let error = epoch_source(&parsed, &given(value)).expect_err(value).to_string();
        assert!(error.contains(&format!("invalid SOURCE_DATE_EPOCH: {value}")), "{error}");
    }
}

#[test]
fn arguments_that_nothing_reads() {
    let build_args = [
        ("DECLARED", "1"),
        ("IN_UNUSED", "1"),
        ("IN_TRIGGER", "1"),
        ("TARGETARCH", "1"),
        ("Http_Proxy", "1"),
        ("BUILDKIT_CACHE_MOUNT_NS", "1"),
        ("SOURCE_DATE_EPOCH", "1"),
        ("TYPO", "1"),
        ("Declared", "1"),
    ];
    let text = "FROM base AS unused\nARG IN_UNUSED\nONBUILD ARG IN_TRIGGER\nFROM unused\nARG DECLARED";
    let made = plan_with(text, &PlanOptions { build_args: pairs(&build_args), ..options() }).expect("valid");
    assert_eq!(made.unconsumed, ["Declared", "TYPO"]);
}
