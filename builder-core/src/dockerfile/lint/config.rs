//! Which findings are told: `# check=`, the build-arg `BUILDKIT_DOCKERFILE_CHECK`, and comments (L-19).

use std::collections::BTreeSet;

use super::Rule;
use crate::dockerfile::instruction::{Dockerfile, Finding};
use crate::dockerfile::quote::Quoted;

/// What the check options ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    skip: Selection,
    experimental: Selection,
    /// Whether findings end the build.
    pub error: bool,
}

/// Some rules or all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Selection {
    all: bool,
    names: BTreeSet<String>,
}

impl Selection {
    fn read(value: &str) -> Self {
        match value.trim() {
            "all" => Self { all: true, names: BTreeSet::new() },
            names => Self { all: false, names: names.split(',').map(|name| name.trim().to_owned()).collect() },
        }
    }

    fn add(&mut self, other: Self) {
        self.all |= other.all;
        self.names.extend(other.names);
    }

    fn holds(&self, name: &str) -> bool {
        self.all || self.names.contains(name)
    }
}

/// Check options that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckOptionError {
    /// Not `skip=`, `error=` or `experimental=`.
    #[error("failed to parse check options: invalid check option {}", Quoted(option))]
    Unknown {
        /// The option.
        option: String,
    },
    /// `error=` with something else than a boolean.
    #[error(
        "failed to parse check options: failed to parse check option {}: strconv.ParseBool: parsing {}: invalid syntax",
        Quoted(option),
        Quoted(value)
    )]
    NotBoolean {
        /// The option.
        option: String,
        /// What stands behind `=`.
        value: String,
    },
}

/// Findings that end the build since the check options say so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("lint violation found for rules: {}", rules.join(", "))]
pub struct LintViolation {
    /// Names of the rules, sorted, each once.
    pub rules: Vec<&'static str>,
}

impl Config {
    /// Reads check options such as `skip=StageNameCasing,FromAsCasing;error=true`.
    ///
    /// # Errors
    /// When an option is unknown or `error=` is not a boolean. Unknown rule names are not errors.
    pub fn parse(text: &str) -> Result<Self, CheckOptionError> {
        let mut config = Self::default();
        if text.trim().is_empty() {
            return Ok(config);
        }
        for option in text.trim().splitn(3, ';') {
            let unknown = |name: &str| CheckOptionError::Unknown { option: name.to_owned() };
            let (name, value) = option.split_once('=').ok_or_else(|| unknown(option))?;
            match name.trim() {
                "skip" => config.skip = Selection::read(value),
                "experimental" => config.experimental = Selection::read(value),
                "error" => {
                    config.error = match value.trim() {
                        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                        other => {
                            let (option, value) = (option.to_owned(), other.to_owned());
                            return Err(CheckOptionError::NotBoolean { option, value });
                        }
                    }
                }
                other => return Err(unknown(other)),
            }
        }
        Ok(config)
    }

    /// The options in force: those of the build-arg `BUILDKIT_DOCKERFILE_CHECK`, else those of the directive.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn of(dockerfile: &Dockerfile, build_arg: Option<&str>) -> Result<Self, CheckOptionError> {
        let directive = dockerfile.directives.check.as_ref().map(|check| check.node.as_str());
        Self::parse(build_arg.or(directive).unwrap_or_default())
    }

    /// These options and those of the comments before an instruction: `# check=skip=…` and `# check=experimental=…`
    /// add to them; `error=` there means nothing, and so does a comment that cannot be read as options.
    pub fn with_comments(&self, comments: &[String]) -> Self {
        let mut config = self.clone();
        for comment in comments {
            let Some(options) = comment.strip_prefix("check").and_then(|rest| rest.trim_start().strip_prefix('='))
            else {
                continue;
            };
            if let Ok(Self { skip, experimental, .. }) = Self::parse(options) {
                config.skip.add(skip);
                config.experimental.add(experimental);
            }
        }
        config
    }

    /// Whether findings of a rule are told.
    pub fn tells(&self, rule: &str) -> bool {
        if Rule::from_name(rule).is_some_and(Rule::is_experimental) {
            self.experimental.holds(rule)
        } else {
            !self.skip.holds(rule)
        }
    }

    /// The findings that are told, in file order; comments before the instruction of each finding count.
    pub fn filter(&self, dockerfile: &Dockerfile, findings: Vec<Finding>) -> Vec<Finding> {
        let mut told: Vec<Finding> = findings
            .into_iter()
            .filter(|finding| {
                let behind = dockerfile
                    .instructions
                    .partition_point(|instruction| instruction.span.0.start <= finding.span.0.start);
                match behind.checked_sub(1).and_then(|index| dockerfile.instructions.get(index)) {
                    Some(instruction) if !instruction.comments.is_empty() => {
                        self.with_comments(&instruction.comments).tells(finding.rule)
                    }
                    _ => self.tells(finding.rule),
                }
            })
            .collect();
        told.sort_by_key(|finding| finding.span.0.start);
        told
    }

    /// The error that these findings, already filtered, amount to.
    pub fn violation(&self, told: &[Finding]) -> Option<LintViolation> {
        let rules: BTreeSet<&'static str> = told.iter().map(|finding| finding.rule).collect();
        (self.error && !rules.is_empty()).then(|| LintViolation { rules: rules.into_iter().collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::parse;

    #[track_caller]
    fn told(text: &str, build_arg: Option<&str>) -> Vec<&'static str> {
        let dockerfile = parse(text).expect(text);
        let config = Config::of(&dockerfile, build_arg).expect(text);
        let mut findings = dockerfile.findings.clone();
        findings.extend(dockerfile.instructions.iter().filter_map(crate::dockerfile::lint::legacy_key_value));
        config.filter(&dockerfile, findings).into_iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn options() {
        let error = |text| Config::parse(text).expect_err(text).to_string();
        assert_eq!(error("skip=all;bogus=1"), "failed to parse check options: invalid check option \"bogus\"");
        assert_eq!(error("skip"), "failed to parse check options: invalid check option \"skip\"");
        assert_eq!(
            error("error=maybe"),
            "failed to parse check options: failed to parse check option \"error=maybe\": strconv.ParseBool: parsing \
             \"maybe\": invalid syntax"
        );
        assert_eq!(Config::parse("  "), Ok(Config::default()));
        let config = Config::parse(" skip = A , B ; error = true;experimental=all").expect("because it is correct");
        assert!(config.error && !config.tells("A") && !config.tells("B") && config.tells("C"));
        assert!(config.tells("InvalidDefinitionDescription"));
        assert!(!Config::default().tells("InvalidDefinitionDescription"));
    }

    #[test]
    fn skips() {
        let rules = ["MaintainerDeprecated", "LegacyKeyValueFormat"];
        let body = "FROM x\nMAINTAINER y\nENV a b\n";
        assert_eq!(told(body, None), rules);
        assert_eq!(told(&format!("# check=skip=MaintainerDeprecated\n{body}"), None), rules[1..]);
        assert_eq!(told(&format!("# check=skip=all\n{body}"), None), [] as [&str; 0]);
        assert_eq!(told(&format!("# check=skip=all\n{body}"), Some("error=true")), rules);
        assert_eq!(
            told("FROM x\n# check=skip=LegacyKeyValueFormat\nENV a b\nENV c d\n", None),
            ["LegacyKeyValueFormat"]
        );
        assert_eq!(told("# note\n# check=experimental=all\nFROM x AS y", None), ["InvalidDefinitionDescription"]);
    }

    #[test]
    fn violations() {
        let dockerfile = parse("# check=error=true\nFROM x as Y\nMAINTAINER z").expect("because it is correct");
        let config = Config::of(&dockerfile, None).expect("because it is correct");
        let told = config.filter(&dockerfile, dockerfile.findings.clone());
        let violation = config.violation(&told).expect("because there are findings");
        assert_eq!(
            violation.to_string(),
            "lint violation found for rules: FromAsCasing, MaintainerDeprecated, StageNameCasing"
        );
        assert_eq!(config.violation(&[]), None);
        assert_eq!(Config::default().violation(&told), None);
    }
}
