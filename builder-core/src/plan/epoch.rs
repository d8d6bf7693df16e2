//! `SOURCE_DATE_EPOCH`: a number, or the name of what has a time of its own (checklist X-11).
//!
//! Planning reads no network, so a name takes two steps: [`epoch_source`] says what it stands for, and the time of that comes
//! back in [`PlanOptions::epoch_of_source`].

use std::collections::BTreeMap;

use super::copy::{is_git, is_url};
use super::error::{PlanError, PlanErrorKind};
use super::outline::{self, Place, set};
use super::types::{NamedContext, PlanOptions};
use crate::dockerfile::words;
use crate::dockerfile::{Copy, Dockerfile, From, InstructionKind};

/// The build argument that fixes all times.
pub(super) const EPOCH_ARG: &str = "SOURCE_DATE_EPOCH";

/// What `SOURCE_DATE_EPOCH` names instead of a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EpochSource {
    /// `context`: the main one.
    Context,
    /// A `--build-context` of files, by its key.
    Named(String),
    /// A stage that holds one http(s) URL.
    Url {
        /// The URL, expanded.
        url: String,
        /// `--checksum`, expanded.
        checksum: Option<String>,
    },
    /// A stage that holds one git source.
    Git {
        /// The source, expanded.
        url: String,
        /// `--checksum`, expanded.
        checksum: Option<String>,
    },
}

/// What `SOURCE_DATE_EPOCH` of the command line or of a global ARG names; `None` if it is a number or not given.
///
/// # Errors
/// `invalid SOURCE_DATE_EPOCH`, and global arguments that do not expand.
pub fn epoch_source(dockerfile: &Dockerfile, options: &PlanOptions) -> Result<Option<EpochSource>, PlanError> {
    let (build_args, globals) = outline::globals_of(dockerfile, options)?;
    match read(dockerfile, options, &build_args, &globals)? {
        Epoch::Of(source) => Ok(Some(source)),
        Epoch::Unset | Epoch::Seconds(_) => Ok(None),
    }
}

/// The epoch in force. With it, arguments of that name hold the number, or nothing if what they name has no time.
pub(super) fn settle(
    dockerfile: &Dockerfile,
    options: &PlanOptions,
    build_args: &mut BTreeMap<String, String>,
    globals: &mut Vec<(String, String)>,
) -> Result<Option<i64>, PlanError> {
    let found = match read(dockerfile, options, build_args, globals)? {
        Epoch::Unset => return Ok(None),
        Epoch::Seconds(seconds) => Some(seconds),
        Epoch::Of(_) => options.epoch_of_source.flatten(),
    };
    match found {
        Some(seconds) => {
            if let Some(value) = build_args.get_mut(EPOCH_ARG) {
                *value = seconds.to_string();
            }
            if let Some((_, value)) = globals.iter_mut().find(|(name, _)| name == EPOCH_ARG) {
                *value = seconds.to_string();
            }
        }
        None => {
            build_args.remove(EPOCH_ARG);
            globals.retain(|(name, _)| name != EPOCH_ARG);
        }
    }
    Ok(found)
}

enum Epoch {
    Unset,
    Seconds(i64),
    Of(EpochSource),
}

fn read(
    dockerfile: &Dockerfile,
    options: &PlanOptions,
    build_args: &BTreeMap<String, String>,
    globals: &[(String, String)],
) -> Result<Epoch, PlanError> {
    let from_globals = || globals.iter().find(|(name, _)| name == EPOCH_ARG).map(|(_, value)| value.clone());
    let value = build_args.get(EPOCH_ARG).cloned().or_else(from_globals);
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(Epoch::Unset) };
    if let Ok(seconds) = value.parse::<i64>() {
        return Ok(Epoch::Seconds(seconds));
    }
    let source = match options.named_contexts.get(&value) {
        Some(NamedContext::Image(_) | NamedContext::OciLayout(_)) => None,
        Some(_) => Some(EpochSource::Named(value.clone())),
        None if value == "context" => Some(EpochSource::Context),
        None => stage(dockerfile, &value, build_args, globals)?,
    };
    match source {
        Some(source) => Ok(Epoch::Of(source)),
        None => {
            let place = dockerfile.instructions.iter().position(|instruction| match &instruction.kind {
                InstructionKind::Arg(pairs) => pairs.iter().any(|pair| pair.name == EPOCH_ARG),
                _ => false,
            });
            let given = options.build_args.contains_key(EPOCH_ARG);
            Err(match place.filter(|_| !given) {
                Some(index) => Place::of(dockerfile, index).error(PlanErrorKind::Epoch { value }),
                None => PlanError::new(PlanErrorKind::Epoch { value }),
            })
        }
    }
}

/// What the stage of that name consists of: `FROM scratch`, arguments and one ADD of one remote source, or it has no time.
fn stage(
    dockerfile: &Dockerfile,
    name: &str,
    build_args: &BTreeMap<String, String>,
    globals: &[(String, String)],
) -> Result<Option<EpochSource>, PlanError> {
    let lower = name.to_lowercase();
    let is_it = |from: &From| from.name.as_ref().is_some_and(|name| name.name == lower);
    let last = dockerfile
        .instructions
        .iter()
        .rposition(|instruction| matches!(&instruction.kind, InstructionKind::From(from) if is_it(from)));
    let Some(start) = last else { return Ok(None) };
    let escape = dockerfile.directives.escape;
    let mut env: Vec<(String, String)> = Vec::new();
    let mut found = None;
    for (index, instruction) in dockerfile.instructions.iter().enumerate().skip(start) {
        let expand = |raw: &str, env: &Vec<(String, String)>| match words::expand(raw, escape, env) {
            Ok(expanded) => Ok(expanded.text),
            Err(error) => Err(Place::of(dockerfile, index).error(error.into())),
        };
        match &instruction.kind {
            InstructionKind::From(from) if index == start => {
                if expand(&from.base.raw, &globals.to_vec())? != "scratch" {
                    return Ok(None);
                }
            }
            InstructionKind::From(_) => break,
            InstructionKind::Arg(pairs) => {
                for pair in pairs {
                    let global = || globals.iter().find(|(name, _)| *name == pair.name).map(|(_, value)| value.clone());
                    let value = match (build_args.get(&pair.name), &pair.default) {
                        (Some(given), _) => Some(given.clone()),
                        (None, Some(default)) => Some(expand(default, &env)?),
                        (None, None) => global(),
                    };
                    if let Some(value) = value {
                        set(&mut env, &pair.name, value);
                    }
                }
            }
            InstructionKind::Add(Copy { sources, heredocs, checksum, .. })
                if found.is_none() && heredocs.is_empty() =>
            {
                let [source] = sources.as_slice() else { return Ok(None) };
                let url = expand(&source.raw, &env)?;
                let checksum = checksum.as_ref().map(|word| expand(&word.raw, &env)).transpose()?;
                found = match (is_git(&url), is_url(&url)) {
                    (true, _) => Some(EpochSource::Git { url, checksum }),
                    (_, true) => Some(EpochSource::Url { url, checksum }),
                    _ => return Ok(None),
                };
            }
            _ => return Ok(None),
        }
    }
    Ok(found)
}
