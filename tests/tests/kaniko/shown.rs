//! What is shown, and what a program ends with.

use super::*;

pub const ROWS: &[Row] = &[
    Row {
        name: "shown::dryrun",
        arguments: &["--dryrun"],
        check: |case, ended| {
            that("the plan is shown", ended.result().contains("COPY one /one"))?;
            that(
                "nothing is pushed",
                case.registry.manifest("out", "1").is_none()
                    && !case.registry.lines().iter().any(|line| line.starts_with("POST")),
            )
        },
        ..ROW
    },
    Row {
        name: "shown::print-plan",
        environment: &[("KANIKO_PRINT_PLAN", "true")],
        check: |case, ended| {
            that("the plan is shown", ended.result().contains("COPY one /one"))?;
            pushed(case, ended)
        },
        ..ROW
    },
    Row {
        name: "shown::verbosity",
        arguments: &["--verbosity=ERROR"],
        check: |_, ended| same("standard error", plain(&ended.stderr), String::new()),
        ..ROW
    },
    Row {
        name: "shown::log-format-text",
        arguments: &["--log-format=text"],
        check: |_, ended| {
            all_lines(ended, |line| line.starts_with("time=\"20") && line.contains("Z\" level=info msg="))
        },
        ..ROW
    },
    Row {
        name: "shown::log-format-json",
        arguments: &["--log-format", "json"],
        check: |_, ended| {
            all_lines(ended, |line| line.starts_with("{\"level\":\"info\",\"msg\":\"") && line.ends_with("Z\"}"))
        },
        ..ROW
    },
    Row {
        name: "shown::log-format-color",
        check: |_, ended| all_lines(ended, |line| line.starts_with("\u{1b}[36mINFO\u{1b}[0m[0") && line.ends_with(' ')),
        ..ROW
    },
    Row {
        name: "shown::log-timestamp",
        arguments: &["--log-timestamp"],
        check: |_, ended| {
            all_lines(ended, |line| line.starts_with("\u{1b}[36mINFO\u{1b}[0m[20") && line.contains("Z] "))
        },
        ..ROW
    },
    Row {
        name: "shown::output-of-commands",
        dockerfile: "FROM BASE\nRUN echo out; echo err >&2\n",
        arguments: &["--log-format=json"],
        check: |_, ended| {
            same("standard output", ended.result(), "out".to_owned())?;
            that("standard error is raw", plain(&ended.stderr).lines().any(|line| line == "err"))
        },
        ..ROW
    },
    Row {
        name: "shown::features",
        environment: &[
            ("FF_KANIKO_COPY_AS_ROOT", "true"),
            ("FF_KANIKO_OCI_WARMER", "false"),
            ("FF_KANIKO_NONSENSE", "1"),
        ],
        says: &[
            "feature flag FF_KANIKO_COPY_AS_ROOT is active",
            "feature flag FF_KANIKO_OCI_WARMER cannot be switched off",
            "unknown feature flag FF_KANIKO_NONSENSE",
        ],
        check: pushed,
        ..ROW
    },
    Row {
        name: "shown::exit-code-of-a-run",
        dockerfile: "FROM BASE\nRUN exit 42\n",
        code: 42,
        says: &["error building image: ", "context/Dockerfile:2: "],
        ..ROW
    },
    Row {
        name: "shown::exit-code-of-a-missing-program",
        dockerfile: "FROM BASE\nRUN [\"/nowhere\"]\n",
        code: 1,
        ..ROW
    },
    Row {
        name: "shown::version",
        bare: true,
        arguments: &["version"],
        check: |_, ended| that("two blanks", String::from_utf8_lossy(&ended.stdout).starts_with("Kaniko version :  ")),
        ..ROW
    },
    Row {
        name: "shown::help-of-a-command",
        bare: true,
        arguments: &["help", "push"],
        check: |_, ended| that("usage", ended.result().contains("\nUsage:\n  executor push PATH [flags]")),
        ..ROW
    },
    Row {
        name: "shown::hints-name-kanikos-flags",
        arguments: &["--kaniko-dir=/proc/nowhere"],
        code: 1,
        says: &[
            "error building image: cannot use the work directory `/proc/nowhere/slipway`",
            "(choose a writable directory with KANIKO_",
        ],
        ..ROW
    },
    Row {
        name: "shown::help",
        bare: true,
        arguments: &["--help"],
        check: |_, ended| that("usage", ended.result().contains("\nUsage:\n  executor [flags]")),
        ..ROW
    },
];

fn all_lines(ended: &Ended, matches: impl Fn(&str) -> bool) -> Result<(), String> {
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    that("there is a log", text.lines().count() > 3)?;
    match text.lines().find(|line| !matches(line)) {
        Some(line) => Err(format!("an odd line: {line:?}")),
        None => Ok(()),
    }
}
