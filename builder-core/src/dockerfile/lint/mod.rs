//! Build checks (checklist section L): the rules, what they say, and which of them are asked for.
//!
//! Rules that need the text alone are evaluated by the parser and arrive in
//! [`Dockerfile::findings`](super::Dockerfile::findings), experimental and skipped ones included; the others are
//! evaluated by `plan`. A [`Config`] then decides which findings are told.

mod config;
pub mod messages;
pub(super) mod text;

pub use config::{CheckOptionError, Config, LintViolation};

use super::instruction::{Finding, Instruction, InstructionKind};
use super::source::Span;

/// A build check of BuildKit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Rule {
    /// L-01
    StageNameCasing,
    /// L-02
    FromAsCasing,
    /// L-03
    NoEmptyContinuation,
    /// L-04
    ConsistentInstructionCasing,
    /// L-05
    DuplicateStageName,
    /// L-06
    ReservedStageName,
    /// L-07
    JsonArgsRecommended,
    /// L-08
    MaintainerDeprecated,
    /// L-09
    UndefinedArgInFrom,
    /// L-10
    WorkdirRelativePath,
    /// L-11
    UndefinedVar,
    /// L-12
    MultipleInstructionsDisallowed,
    /// L-13
    LegacyKeyValueFormat,
    /// L-14
    InvalidBaseImagePlatform,
    /// L-15
    RedundantTargetPlatform,
    /// L-16
    SecretsUsedInArgOrEnv,
    /// L-17
    InvalidDefaultArgInFrom,
    /// L-18
    FromPlatformFlagConstDisallowed,
    /// L-20
    CopyIgnoredFile,
    /// L-21
    ExposeProtoCasing,
    /// L-22
    ExposeInvalidFormat,
    /// L-23
    InvalidDefinitionDescription,
}

impl Rule {
    /// All rules.
    pub const ALL: [Self; 22] = [
        Self::StageNameCasing,
        Self::FromAsCasing,
        Self::NoEmptyContinuation,
        Self::ConsistentInstructionCasing,
        Self::DuplicateStageName,
        Self::ReservedStageName,
        Self::JsonArgsRecommended,
        Self::MaintainerDeprecated,
        Self::UndefinedArgInFrom,
        Self::WorkdirRelativePath,
        Self::UndefinedVar,
        Self::MultipleInstructionsDisallowed,
        Self::LegacyKeyValueFormat,
        Self::InvalidBaseImagePlatform,
        Self::RedundantTargetPlatform,
        Self::SecretsUsedInArgOrEnv,
        Self::InvalidDefaultArgInFrom,
        Self::FromPlatformFlagConstDisallowed,
        Self::CopyIgnoredFile,
        Self::ExposeProtoCasing,
        Self::ExposeInvalidFormat,
        Self::InvalidDefinitionDescription,
    ];

    /// BuildKit's name, as `# check=skip=` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StageNameCasing => "StageNameCasing",
            Self::FromAsCasing => "FromAsCasing",
            Self::NoEmptyContinuation => "NoEmptyContinuation",
            Self::ConsistentInstructionCasing => "ConsistentInstructionCasing",
            Self::DuplicateStageName => "DuplicateStageName",
            Self::ReservedStageName => "ReservedStageName",
            Self::JsonArgsRecommended => "JSONArgsRecommended",
            Self::MaintainerDeprecated => "MaintainerDeprecated",
            Self::UndefinedArgInFrom => "UndefinedArgInFrom",
            Self::WorkdirRelativePath => "WorkdirRelativePath",
            Self::UndefinedVar => "UndefinedVar",
            Self::MultipleInstructionsDisallowed => "MultipleInstructionsDisallowed",
            Self::LegacyKeyValueFormat => "LegacyKeyValueFormat",
            Self::InvalidBaseImagePlatform => "InvalidBaseImagePlatform",
            Self::RedundantTargetPlatform => "RedundantTargetPlatform",
            Self::SecretsUsedInArgOrEnv => "SecretsUsedInArgOrEnv",
            Self::InvalidDefaultArgInFrom => "InvalidDefaultArgInFrom",
            Self::FromPlatformFlagConstDisallowed => "FromPlatformFlagConstDisallowed",
            Self::CopyIgnoredFile => "CopyIgnoredFile",
            Self::ExposeProtoCasing => "ExposeProtoCasing",
            Self::ExposeInvalidFormat => "ExposeInvalidFormat",
            Self::InvalidDefinitionDescription => "InvalidDefinitionDescription",
        }
    }

    /// What the rule is about, in general.
    pub const fn description(self) -> &'static str {
        match self {
            Self::StageNameCasing => "Stage names should be lowercase",
            Self::FromAsCasing => "The 'as' keyword should match the case of the 'from' keyword",
            Self::NoEmptyContinuation => "Empty continuation lines will become errors in a future release",
            Self::ConsistentInstructionCasing => {
                "All commands within the Dockerfile should use the same casing (either upper or lower)"
            }
            Self::DuplicateStageName => "Stage names should be unique",
            Self::ReservedStageName => "Reserved words should not be used as stage names",
            Self::JsonArgsRecommended => {
                "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals"
            }
            Self::MaintainerDeprecated => {
                "The MAINTAINER instruction is deprecated, use a label instead to define an image author"
            }
            Self::UndefinedArgInFrom => "FROM command must use declared ARGs",
            Self::WorkdirRelativePath => {
                "Relative workdir without an absolute workdir declared within the build can have unexpected results if \
                 the base image changes"
            }
            Self::UndefinedVar => "Variables should be defined before their use",
            Self::MultipleInstructionsDisallowed => {
                "Multiple instructions of the same type should not be used in the same stage"
            }
            Self::LegacyKeyValueFormat => "Legacy key/value format with whitespace separator should not be used",
            Self::InvalidBaseImagePlatform => "Base image platform does not match expected target platform",
            Self::RedundantTargetPlatform => {
                "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior"
            }
            Self::SecretsUsedInArgOrEnv => "Sensitive data should not be used in the ARG or ENV commands",
            Self::InvalidDefaultArgInFrom => {
                "Default value for global ARG results in an empty or invalid base image name"
            }
            Self::FromPlatformFlagConstDisallowed => "FROM --platform flag should not use a constant value",
            Self::CopyIgnoredFile => "Attempting to Copy file that is excluded by .dockerignore",
            Self::ExposeProtoCasing => "Protocol in EXPOSE instruction should be lowercase",
            Self::ExposeInvalidFormat => {
                "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error \
                 in a future release"
            }
            Self::InvalidDefinitionDescription => {
                "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If \
                 this is not intended to be a description comment, add an empty line or comment between the \
                 instruction and the comment."
            }
        }
    }

    /// Whether the rule is told only where `experimental=` asks for it.
    pub const fn is_experimental(self) -> bool {
        matches!(self, Self::InvalidDefinitionDescription)
    }

    /// Reads a name; case counts.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.name() == name)
    }

    /// A finding of this rule; [`messages`] has the sentences.
    pub fn finding(self, message: String, span: Span) -> Finding {
        Finding { rule: self.name(), message, span }
    }
}

/// L-13: `ENV k v` or `LABEL k v`. Needs the text alone, but counts only in stages that are built (L-00), so `plan` asks.
pub fn legacy_key_value(instruction: &Instruction) -> Option<Finding> {
    let (InstructionKind::Env(pairs) | InstructionKind::Label(pairs)) = &instruction.kind else { return None };
    let message = messages::legacy_key_value_format(&instruction.keyword.node);
    pairs.iter().any(|pair| pair.legacy).then(|| Rule::LegacyKeyValueFormat.finding(message, instruction.span.clone()))
}

/// Whether the name of an `ARG` or `ENV` sounds as if it held a secret (L-16).
pub fn sounds_secret(name: &str) -> bool {
    const SECRET: [&str; 10] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
    const HARMLESS: [&str; 3] = ["public", "file", "version"];
    let holds = |words: &[&str]| name.split('_').any(|part| words.iter().any(|word| part.eq_ignore_ascii_case(word)));
    holds(&SECRET) && !holds(&HARMLESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for rule in Rule::ALL {
            assert_eq!(Rule::from_name(rule.name()), Some(rule));
        }
        assert_eq!(Rule::from_name("stagenamecasing"), None);
    }

    #[test]
    fn legacy_pairs() {
        let dockerfile = crate::dockerfile::parse("FROM x\nenv a b\nLABEL a=b").expect("because it is correct");
        let found: Vec<Finding> = dockerfile.instructions.iter().filter_map(legacy_key_value).collect();
        let message = "\"env key=value\" should be used instead of legacy \"env key value\" format";
        assert_eq!(found, [Rule::LegacyKeyValueFormat.finding(message.to_owned(), Span(7..14))]);
    }

    #[test]
    fn secrets() {
        for name in ["MY_PASSWORD", "token", "Api_Key", "GITHUB_TOKEN", "AUTH", "APIKEY"] {
            assert!(sounds_secret(name), "{name}");
        }
        for name in ["PUBLIC_KEY", "TOKENS", "KEY_FILE", "AUTHOR", "PASSWORD_VERSION", "monkey", ""] {
            assert!(!sounds_secret(name), "{name}");
        }
    }
}
