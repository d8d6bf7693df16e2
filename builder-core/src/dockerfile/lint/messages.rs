//! The sentences of the rules about one place, as BuildKit words them.

use crate::dockerfile::quote::Quoted;

/// [`Rule::StageNameCasing`](super::Rule::StageNameCasing)
pub fn stage_name_casing(name: &str) -> String {
    format!("Stage name '{name}' should be lowercase")
}

/// [`Rule::FromAsCasing`](super::Rule::FromAsCasing), from the two words as written.
pub fn from_as_casing(from: &str, as_word: &str) -> String {
    format!("'{as_word}' and '{from}' keywords' casing do not match")
}

/// [`Rule::NoEmptyContinuation`](super::Rule::NoEmptyContinuation)
pub fn no_empty_continuation() -> String {
    "Empty continuation line".to_owned()
}

/// [`Rule::ConsistentInstructionCasing`](super::Rule::ConsistentInstructionCasing); `casing` is `lowercase` or
/// `uppercase`.
pub fn consistent_instruction_casing(instruction: &str, casing: &str) -> String {
    format!("Command '{instruction}' should match the case of the command majority ({casing})")
}

/// [`Rule::DuplicateStageName`](super::Rule::DuplicateStageName)
pub fn duplicate_stage_name(name: &str) -> String {
    format!("Duplicate stage name {}, stage names should be unique", Quoted(name))
}

/// [`Rule::ReservedStageName`](super::Rule::ReservedStageName)
pub fn reserved_stage_name(name: &str) -> String {
    format!("Stage name should not use the same name as reserved stage {}", Quoted(name))
}

/// [`Rule::JsonArgsRecommended`](super::Rule::JsonArgsRecommended), from the instruction in upper case.
pub fn json_args_recommended(instruction: &str) -> String {
    format!("JSON arguments recommended for {instruction} to prevent unintended behavior related to OS signals")
}

/// [`Rule::MaintainerDeprecated`](super::Rule::MaintainerDeprecated)
pub fn maintainer_deprecated() -> String {
    "Maintainer instruction is deprecated in favor of using label".to_owned()
}

/// [`Rule::UndefinedArgInFrom`](super::Rule::UndefinedArgInFrom); `suggestion` as
/// [`nearest`](crate::hint::suggest::nearest) finds it.
pub fn undefined_arg_in_from(name: &str, suggestion: Option<&str>) -> String {
    let suggestion = suggestion.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default();
    format!("FROM argument '{name}' is not declared{suggestion}")
}

/// [`Rule::WorkdirRelativePath`](super::Rule::WorkdirRelativePath)
pub fn workdir_relative_path(path: &str) -> String {
    format!("Relative workdir {} can have unexpected results if the base image changes", Quoted(path))
}

/// [`Rule::UndefinedVar`](super::Rule::UndefinedVar); `suggestion` as
/// [`nearest`](crate::hint::suggest::nearest) finds it.
pub fn undefined_var(name: &str, suggestion: Option<&str>) -> String {
    let suggestion = suggestion.map(|name| format!(" (did you mean ${name}?)")).unwrap_or_default();
    format!("Usage of undefined variable '${name}'{suggestion}")
}

/// [`Rule::MultipleInstructionsDisallowed`](super::Rule::MultipleInstructionsDisallowed), from the instruction in upper
/// case.
pub fn multiple_instructions_disallowed(instruction: &str) -> String {
    format!(
        "Multiple {instruction} instructions should not be used in the same stage because only the last one will be used"
    )
}

/// [`Rule::LegacyKeyValueFormat`](super::Rule::LegacyKeyValueFormat), from the instruction as written.
pub fn legacy_key_value_format(instruction: &str) -> String {
    format!("\"{instruction} key=value\" should be used instead of legacy \"{instruction} key value\" format")
}

/// [`Rule::InvalidBaseImagePlatform`](super::Rule::InvalidBaseImagePlatform)
pub fn invalid_base_image_platform(image: &str, expected: &str, actual: &str) -> String {
    format!(
        "Base image {image} was pulled with platform {}, expected {} for current build",
        Quoted(actual),
        Quoted(expected)
    )
}

/// [`Rule::RedundantTargetPlatform`](super::Rule::RedundantTargetPlatform), from the expression as written.
pub fn redundant_target_platform(expression: &str) -> String {
    format!("Setting platform to predefined {expression} in FROM is redundant as this is the default behavior")
}

/// [`Rule::SecretsUsedInArgOrEnv`](super::Rule::SecretsUsedInArgOrEnv), from `ARG` or `ENV` and the name.
pub fn secrets_used_in_arg_or_env(instruction: &str, name: &str) -> String {
    format!("Do not use ARG or ENV instructions for sensitive data ({instruction} {})", Quoted(name))
}

/// [`Rule::InvalidDefaultArgInFrom`](super::Rule::InvalidDefaultArgInFrom), from the base as written.
pub fn invalid_default_arg_in_from(base: &str) -> String {
    format!("Default value for ARG {base} results in empty or invalid base image name")
}

/// [`Rule::FromPlatformFlagConstDisallowed`](super::Rule::FromPlatformFlagConstDisallowed)
pub fn from_platform_flag_const_disallowed(platform: &str) -> String {
    format!("FROM --platform flag should not use constant value {}", Quoted(platform))
}

/// [`Rule::CopyIgnoredFile`](super::Rule::CopyIgnoredFile); `instruction` is `Copy` or `Add`.
pub fn copy_ignored_file(instruction: &str, path: &str) -> String {
    format!("Attempting to {instruction} file {} that is excluded by .dockerignore", Quoted(path))
}

/// [`Rule::ExposeProtoCasing`](super::Rule::ExposeProtoCasing), from the expanded word.
pub fn expose_proto_casing(port: &str) -> String {
    format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase")
}

/// [`Rule::ExposeInvalidFormat`](super::Rule::ExposeInvalidFormat), from the expanded word.
pub fn expose_invalid_format(port: &str) -> String {
    format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'")
}

/// [`Rule::InvalidDefinitionDescription`](super::Rule::InvalidDefinitionDescription), from `ARG` or `FROM` and the name
/// that the comment should begin with.
pub fn invalid_definition_description(instruction: &str, name: &str) -> String {
    format!("Comment for {instruction} should follow the format: `# {name} <description>`")
}
