//! `slipway build --call`: what is told of a Dockerfile without building it, in docker's forms (checklist S-10).

use std::fmt::Write as _;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use builder_core::cancel::Cancel;
use builder_core::dockerfile::lint::Rule;
use builder_core::dockerfile::{Dockerfile, Finding, LineRange};
use builder_core::event::Observer;
use builder_core::exec::{self, BuildError};
use builder_core::hint;
use builder_core::plan::{self, Asked, BuildTarget, Checked, Parameters};
use serde::Serialize;
use serde_json::{Value, json};

use super::build::pretty;
use super::result;
use crate::request::Build;

/// Lists the stages that can be targets.
pub fn targets(build: &Build, observer: &dyn Observer, cancel: &Cancel) -> Result<ExitCode, BuildError> {
    let dockerfile = exec::dockerfile(&build.request, observer, cancel)?;
    let targets = plan::targets(&dockerfile);
    match build.json {
        true => result(&pretty(&TargetList::new(&dockerfile, &targets))),
        false => result(&targets_text(&targets)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells what the target can be given. Base images are asked for what they set, as for a build.
pub fn outline(build: &Build, observer: &dyn Observer, cancel: &Cancel) -> Result<ExitCode, BuildError> {
    let prepared = exec::prepare(&build.request, observer, cancel)?;
    // Platforms differ in values of predefined arguments, which are not told.
    let Some(planned) = prepared.plans.first() else { return Ok(ExitCode::SUCCESS) };
    let parameters = &planned.plan.parameters;
    match build.json {
        true => result(&pretty(&Outline::new(&prepared.dockerfile, parameters))),
        false => result(&outline_text(parameters)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Lint only.
pub fn check(build: &Build, observer: &dyn Observer, cancel: &Cancel) -> Result<ExitCode, BuildError> {
    let (dockerfile, checked) = exec::check(&build.request, observer, cancel)?;
    match build.json {
        true => result(&pretty(&checks_json(&dockerfile, &checked))),
        _ if checked.findings.is_empty() && checked.error.is_none() => result("Check complete, no warnings found.\n"),
        _ => result(&checks_text(&dockerfile, &checked.findings)),
    }
    if let Some(error) = checked.error {
        return Err(BuildError::Plan(error));
    }
    // As `docker build --check`: findings are a result, and a reason to stop a pipeline.
    Ok(if checked.findings.is_empty() || build.ignore_findings { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn checks_text(dockerfile: &Dockerfile, findings: &[Finding]) -> String {
    let mut text = format!(
        "Check complete, {} found.\n",
        match findings.len() {
            1 => "1 warning".to_owned(),
            count => format!("{count} warnings"),
        }
    );
    for finding in findings {
        let lines = dockerfile.source.lines(&finding.span);
        text.push_str(&format!("\nWARNING: {} (line {})\n{}\n", finding.rule, lines.first, finding.message));
        for number in lines.first..=lines.last {
            if let Some(line) = dockerfile.source.line(number) {
                text.push_str(&format!("{number:4} | >>> {line}\n"));
            }
        }
    }
    text
}

/// The form of `docker build --call=check,format=json`.
fn checks_json(dockerfile: &Dockerfile, checked: &Checked) -> Value {
    let warnings: Vec<Value> = checked
        .findings
        .iter()
        .map(|finding| {
            json!({
                "ruleName": finding.rule,
                "description": Rule::from_name(finding.rule).map(Rule::description),
                "detail": finding.message,
                "location": location(&[dockerfile.source.lines(&finding.span)]),
            })
        })
        .collect();
    let mut value = json!({ "version": 1, "warnings": warnings });
    if let Some(error) = &checked.error {
        value["buildError"] = json!({ "message": hint::chain(error), "location": location(&error.lines) });
    }
    value
}

/// Lines of the Dockerfile, as BuildKit's JSON has them.
fn location(ranges: &[LineRange]) -> Value {
    let range = |lines: &LineRange| json!({ "start": { "line": lines.first }, "end": { "line": lines.last } });
    json!({ "ranges": ranges.iter().map(range).collect::<Vec<_>>() })
}

/// The Dockerfile as BuildKit's JSON has it.
fn sources(dockerfile: &Dockerfile) -> [String; 1] {
    [BASE64.encode(dockerfile.source.text())]
}

/// `docker build --call=targets,format=json`
#[derive(Debug, Serialize)]
struct TargetList {
    targets: Vec<TargetItem>,
    sources: [String; 1],
}

#[derive(Debug, Serialize)]
struct TargetItem {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    base: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    location: Value,
}

impl TargetList {
    fn new(dockerfile: &Dockerfile, targets: &[BuildTarget]) -> Self {
        let item = |target: &BuildTarget| TargetItem {
            name: target.name.clone(),
            default: target.default,
            description: target.description.clone(),
            base: target.base.clone(),
            platform: target.platform.clone(),
            location: location(&[target.lines]),
        };
        Self { targets: targets.iter().map(item).collect(), sources: sources(dockerfile) }
    }
}

/// `docker build --call=outline,format=json`
#[derive(Debug, Serialize)]
struct Outline {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<OutlineItem>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<OutlineItem>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ssh: Vec<OutlineItem>,
    sources: [String; 1],
}

/// An argument, which is never required, or a secret or agent, which has no value.
#[derive(Debug, Serialize)]
struct OutlineItem {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    required: bool,
    location: Value,
}

impl Outline {
    fn new(dockerfile: &Dockerfile, parameters: &Parameters) -> Self {
        let asked = |asked: &Asked| OutlineItem {
            name: asked.id.clone(),
            description: None,
            value: None,
            required: asked.required,
            location: location(&[asked.lines]),
        };
        let arguments = parameters.arguments.iter().map(|argument| OutlineItem {
            name: argument.name.clone(),
            description: argument.description.clone(),
            // Empty and none are one there.
            value: argument.value.clone().filter(|value| !value.is_empty()),
            required: false,
            location: location(&[argument.lines]),
        });
        Self {
            name: parameters.target.clone(),
            description: parameters.description.clone(),
            args: arguments.collect(),
            secrets: parameters.secrets.iter().map(asked).collect(),
            ssh: parameters.ssh.iter().map(asked).collect(),
            sources: sources(dockerfile),
        }
    }
}

fn targets_text(targets: &[BuildTarget]) -> String {
    let mut rows = vec![["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    for target in targets {
        let name = match (&target.name, target.default) {
            (None, true) => "(default)".to_owned(),
            (Some(name), true) => format!("{name} (default)"),
            (name, false) => name.clone().unwrap_or_default(),
        };
        rows.push([name, target.description.clone().unwrap_or_default()]);
    }
    table(&rows, 1)
}

fn outline_text(parameters: &Parameters) -> String {
    let mut text = String::new();
    if parameters.target.is_some() || parameters.description.is_some() {
        let name = parameters.target.clone().unwrap_or_else(|| "(default)".to_owned());
        let mut rows = vec![["TARGET:".to_owned(), name]];
        rows.extend(parameters.description.iter().map(|text| ["DESCRIPTION:".to_owned(), text.clone()]));
        text = table(&rows, 1) + "\n";
    }
    if !parameters.arguments.is_empty() {
        let mut rows = vec![["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_owned)];
        rows.extend(parameters.arguments.iter().map(|argument| {
            let [value, description] =
                [&argument.value, &argument.description].map(|text| text.clone().unwrap_or_default());
            [argument.name.clone(), value, description]
        }));
        text += &(table(&rows, 3) + "\n");
    }
    for (title, list) in [("SECRET", &parameters.secrets), ("SSH", &parameters.ssh)] {
        if !list.is_empty() {
            let mut rows = vec![[title.to_owned(), "REQUIRED".to_owned()]];
            let required = |asked: &Asked| if asked.required { "true".to_owned() } else { String::new() };
            rows.extend(list.iter().map(|asked| [asked.id.clone(), required(asked)]));
            text += &(table(&rows, 3) + "\n");
        }
    }
    text
}

/// Rows with columns as wide as their widest cell, and `gap` blanks behind all but the last one.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]], gap: usize) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0) + gap;
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = if column + 1 == COLUMNS { 0 } else { widths[column] };
            _ = write!(text, "{cell:width$}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use builder_core::dockerfile::parse;

    use super::*;

    #[test]
    fn tables_are_those_of_docker() {
        let text = "# base holds all\nFROM scratch AS base\nFROM base\nFROM base AS last\n";
        let dockerfile = parse(text).expect(text);
        let mut targets = plan::targets(&dockerfile);
        let expected = "TARGET         DESCRIPTION\nbase           holds all\n               \nlast (default) \n";
        assert_eq!(targets_text(&targets), expected);
        assert_eq!(
            serde_json::to_value(TargetList::new(&dockerfile, &targets)).expect("JSON")["targets"][0],
            json!({
                "name": "base", "description": "holds all", "base": "scratch",
                "location": { "ranges": [{ "start": { "line": 2 }, "end": { "line": 2 } }] },
            })
        );
        targets.truncate(2);
        targets[1].default = true;
        assert!(targets_text(&targets).ends_with("\n(default) \n"));
        let lines = LineRange { first: 4, last: 4 };
        let asked = |id: &str, required| Asked { id: id.to_owned(), required, lines };
        let argument = |name: &str, value: Option<&str>, description: Option<&str>| plan::Argument {
            name: name.to_owned(),
            value: value.map(str::to_owned),
            description: description.map(str::to_owned),
            lines,
        };
        let parameters = Parameters {
            target: Some("last".to_owned()),
            description: Some("is all".to_owned()),
            arguments: vec![argument("VERSION", Some("1.2"), Some("of it")), argument("X", None, None)],
            secrets: vec![asked("token", true), asked("s", false)],
            ssh: vec![asked("default", false)],
        };
        let expected = "TARGET:      last\nDESCRIPTION: is all\n\n\
                        BUILD ARG   VALUE   DESCRIPTION\nVERSION     1.2     of it\nX                   \n\n\
                        SECRET   REQUIRED\ntoken    true\ns        \n\nSSH       REQUIRED\ndefault   \n\n";
        assert_eq!(outline_text(&parameters), expected);
        let json = serde_json::to_value(Outline::new(&dockerfile, &parameters)).expect("JSON");
        assert_eq!(json["args"][1], json!({ "name": "X", "location": location(&[lines]) }));
        assert_eq!(json["secrets"][0], json!({ "name": "token", "required": true, "location": location(&[lines]) }));
        assert_eq!(json["sources"], json!([BASE64.encode(text)]));
        assert_eq!(outline_text(&Parameters::default()), "");
    }
}
