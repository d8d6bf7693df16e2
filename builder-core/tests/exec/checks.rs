//! Build checks through [`builder_core::exec::check`] and as warnings of a build. What each rule says is tested with
//! `docs/checks.md` in `documents.rs`.

use crate::bench::Bench;
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "all_stages_are_checked_and_nothing_is_fetched", items: "L-00", run: all_stages },
    Case { name: "a_build_warns_of_what_it_builds", items: "L-00 F-08", run: warnings },
    Case { name: "findings_can_end_a_build", items: "L-19", run: as_errors },
    Case { name: "an_argument_replaces_the_directive", items: "L-19 A-17", run: argument },
    Case { name: "findings_come_before_an_error", items: "L-24", run: before_error },
    Case { name: "what_the_ignore_file_hides", items: "L-20 D-05", run: ignored },
];

const DOCKERFILE: &str = "FROM nowhere:1 AS Unused\nENV A $undefined\nFROM base:1\nMAINTAINER me\nRUN true\n";

fn all_stages(bench: &Bench) -> Outcome {
    let (findings, error) = bench.check(DOCKERFILE, |_| {});
    assert_eq!(
        findings,
        [
            "StageNameCasing: Stage name 'Unused' should be lowercase (line 1)",
            "LegacyKeyValueFormat: \"ENV key=value\" should be used instead of legacy \"ENV key value\" format (line 2)",
            "MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 4)",
        ]
    );
    assert_eq!(error, None);
    assert_eq!(bench.registry.lines(), Vec::<String>::new());
    Outcome::Passed
}

fn warnings(bench: &Bench) -> Outcome {
    let built = bench.build(DOCKERFILE, |_| {});
    built.ok();
    assert_eq!(
        built.warnings,
        [
            "StageNameCasing: Stage name 'Unused' should be lowercase (line 1)",
            "MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 4)",
        ]
    );
    Outcome::Passed
}

fn as_errors(bench: &Bench) -> Outcome {
    let dockerfile = format!("# check=error=true;skip=StageNameCasing\n{DOCKERFILE}");
    let built = bench.build(&dockerfile, |_| {});
    assert_eq!(built.error(), "lint violation found for rules: MaintainerDeprecated");
    assert!(built.steps.is_empty());
    let (findings, error) = bench.check(&dockerfile, |_| {});
    // The result of a check is the list, not an error.
    assert_eq!((findings.len(), error), (2, None));
    Outcome::Passed
}

fn argument(bench: &Bench) -> Outcome {
    let dockerfile = format!("# check=error=true\n{DOCKERFILE}");
    let with = |value: &str| {
        bench.build(&dockerfile, |request| {
            request.plan.build_args.insert("BUILDKIT_DOCKERFILE_CHECK".to_owned(), value.to_owned());
        })
    };
    assert_eq!(with("skip=all").warnings, Vec::<String>::new());
    with("skip=all").ok();
    let error = with("skipp=all").error();
    assert!(error.contains("invalid check option \"skipp\""), "{error}");
    Outcome::Passed
}

fn before_error(bench: &Bench) -> Outcome {
    let built = bench.build("FROM base:1 AS X\nRUN --nope true\n", |_| {});
    assert!(built.error().contains("unknown flag: --nope"), "{}", built.error());
    assert_eq!(built.warnings, ["StageNameCasing: Stage name 'X' should be lowercase (line 1)"]);
    let (findings, error) = bench.check("FROM base:1 AS X\nCOPY --from=3 a /\n", |_| {});
    assert_eq!(findings, ["StageNameCasing: Stage name 'X' should be lowercase (line 1)"]);
    assert_eq!(error.as_deref(), Some("invalid stage index 3"));
    Outcome::Passed
}

fn ignored(bench: &Bench) -> Outcome {
    bench.file("hidden", "h");
    bench.file(".dockerignore", "hid*\n");
    let dockerfile = "FROM base:1\nCOPY hidden /\n";
    let finding = "CopyIgnoredFile: Attempting to Copy file \"hidden\" that is excluded by .dockerignore (line 2)";
    assert_eq!(bench.check(dockerfile, |_| {}).0, [finding]);
    let built = bench.build(dockerfile, |_| {});
    assert_eq!(built.warnings, [finding]);
    assert!(built.error().ends_with("\"/hidden\": not found"), "{}", built.error());
    assert_eq!(built.hint(), "line 1 (`hid*`) of the ignore file excludes it");
    Outcome::Passed
}
