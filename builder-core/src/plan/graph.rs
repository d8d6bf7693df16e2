//! Which stage, image or context a name means, and which stages a target needs.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{PlanError, PlanErrorKind};
use super::mount;
use super::outline::{Origin, Outline, StageBase};
use super::types::{ImageRequest, NamedContext, PlanOptions};
use crate::dockerfile::words::{self, Lookup};
use crate::dockerfile::{Instruction, InstructionKind, LineRange, Span};
use crate::oci::{Platform, Reference};

/// Named contexts that lead to named contexts: BuildKit stops here too.
const MAX_CONTEXT_HOPS: usize = 10;

/// A context that stands in for a stage or image.
pub(super) enum Redirect {
    /// Nothing redirects the name.
    None,
    /// An image, under its final name, or `scratch`.
    Image(String),
    /// Files.
    Files(String),
}

/// What takes the place of a stage. BuildKit looks every stage up among the named contexts, whose names are references,
/// and so refuses a stage that could not be one of them, even if there are none.
pub(super) fn replacement(stage: &str, platform: &Platform, options: &PlanOptions) -> Result<Redirect, PlanErrorKind> {
    if let Err(source) = stage.parse::<Reference>() {
        return Err(PlanErrorKind::ContextName { name: stage.to_owned(), source });
    }
    redirect(stage, platform, options)
}

/// Follows `--build-context` from a name as FROM or `--from` gives it (checklist F-12, F-13).
pub(super) fn redirect(name: &str, platform: &Platform, options: &PlanOptions) -> Result<Redirect, PlanErrorKind> {
    let mut current = name.to_owned();
    let mut found = Redirect::None;
    for _ in 0..MAX_CONTEXT_HOPS {
        let Some((key, context)) = lookup(&current, platform, options) else {
            return Ok(found);
        };
        match context {
            NamedContext::Directory(_) | NamedContext::Git(_) | NamedContext::Url(_) | NamedContext::Stdin => {
                return Ok(Redirect::Files(key.to_owned()));
            }
            NamedContext::OciLayout(layout) => {
                let text = layout.strip_prefix("oci-layout://").unwrap_or(layout);
                return Ok(Redirect::Image(format!("oci-layout://{text}")));
            }
            NamedContext::Image(image) => {
                let image = image.strip_prefix("docker-image://").unwrap_or(image);
                if image == current {
                    // `alpine=docker-image://alpine` means the image itself.
                    return Ok(Redirect::Image(image.to_owned()));
                }
                image.clone_into(&mut current);
                found = Redirect::Image(image.to_owned());
                if image == "scratch" {
                    return Ok(found);
                }
            }
        }
    }
    Err(PlanErrorKind::NamedContextLoop { name: name.to_owned() })
}

/// The context of that name, `name::platform` first. `:latest` makes no difference.
fn lookup<'a>(name: &str, platform: &Platform, options: &'a PlanOptions) -> Option<(&'a str, &'a NamedContext)> {
    let familiar = |name: &str| {
        let text = name.parse::<Reference>().map_or_else(|_| name.to_owned(), |reference| reference.familiar());
        text.strip_suffix(":latest").map(str::to_owned).unwrap_or(text)
    };
    if name == "scratch" || options.named_contexts.is_empty() {
        return None;
    }
    let wanted = familiar(name);
    let matching = |key: &str| familiar(key) == wanted;
    let exact = options.named_contexts.iter().find(|(key, _)| {
        key.rsplit_once("::").is_some_and(|(key, of)| matching(key) && of.parse::<Platform>().as_ref() == Ok(platform))
    });
    let any = || options.named_contexts.iter().find(|(key, _)| !key.contains("::") && matching(key));
    exact.or_else(any).map(|(key, context)| (key.as_str(), context))
}

/// What an image name means: nothing, an image, or a context in its place.
pub(super) fn image_origin(name: &str, platform: &Platform, options: &PlanOptions) -> Result<Origin, PlanErrorKind> {
    if name == "scratch" {
        return Ok(Origin::Scratch);
    }
    name.parse::<Reference>().map_err(|source| PlanErrorKind::StageName { name: name.to_owned(), source })?;
    let image = |name: String| Origin::Image(ImageRequest { name, platform: platform.clone() });
    Ok(match redirect(name, platform, options)? {
        Redirect::None => image(name.to_owned()),
        Redirect::Image(target) if target == "scratch" => Origin::Scratch,
        Redirect::Image(target) => image(target),
        Redirect::Files(key) => Origin::Context(key),
    })
}

/// Environment without variables: `--from` expands nothing.
struct Unset;

impl Lookup for Unset {
    fn value(&self, _: &str) -> Option<&str> {
        None
    }
}

/// A name that is not looked up before all stages are known to be well-formed: BuildKit tells such errors last.
pub(super) struct BadName {
    pub(super) kind: PlanErrorKind,
    /// `None` for mounts, which BuildKit places nowhere.
    pub(super) place: Option<(LineRange, Span)>,
}

/// Where the files of one instruction come from: of a COPY one item, of a RUN one per `--mount`.
pub(super) type Origins = Vec<Option<Origin>>;

/// Reads `--from` of COPY and of mounts.
///
/// Images that are named there become numbered stages behind the real ones (checklist S-02): `implicit` grows by each.
pub(super) fn origins_of(
    instruction: &Instruction,
    outline: &mut Outline,
    options: &PlanOptions,
    escape: char,
    place: (LineRange, Span),
) -> Result<(Origins, Option<BadName>), PlanError> {
    let mut bad = None;
    let mut image = |outline: &mut Outline, name: &str, place: Option<(LineRange, Span)>| {
        let origin = image_origin(name, &outline.platform, options).unwrap_or_else(|kind| {
            bad.get_or_insert(BadName { kind, place: place.clone() });
            Origin::Scratch
        });
        if let (Origin::Image(request), Some((lines, _))) = (&origin, place) {
            outline.image_lines.entry(request.clone()).or_insert(lines);
        }
        outline.implicit.push(origin.clone());
        origin
    };
    let origins = match &instruction.kind {
        InstructionKind::Copy(copy) | InstructionKind::Add(copy) => match &copy.from {
            None => Vec::new(),
            Some(from) => {
                let expands = words::expand(&from.raw, escape, &Unset)
                    .is_ok_and(|expanded| !expanded.used.is_empty() || !expanded.unset.is_empty());
                if expands {
                    return Err(PlanError::new(PlanErrorKind::CopyFromExpands));
                }
                let origin = match from.raw.parse::<i64>() {
                    Ok(index) => {
                        outline.numbered(index).ok_or_else(|| PlanError::new(PlanErrorKind::StageIndex { index }))?
                    }
                    Err(_) => match outline.stage_named(&from.raw) {
                        Some(stage) => Origin::Stage(stage),
                        None => image(outline, &from.raw, Some(place)),
                    },
                };
                vec![Some(origin)]
            }
        },
        InstructionKind::Run(run) => run
            .mounts
            .iter()
            .map(|mount| match mount::from_of(&mount.raw) {
                None => {
                    outline.implicit.push(Origin::Scratch);
                    None
                }
                Some(from) => Some(match outline.stage_named(&from) {
                    Some(stage) => Origin::Stage(stage),
                    None => image(outline, &from, None),
                }),
            })
            .collect(),
        _ => Vec::new(),
    };
    Ok((origins, bad))
}

/// Finds a cycle among the stages that copy or mount from each other: the stage it was met from, and the instructions
/// along the way. Without recursion: a Dockerfile may have thousands of stages.
pub(super) fn find_cycle(uses: &[BTreeMap<usize, usize>]) -> Option<(usize, Vec<usize>)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; uses.len()];
    for root in 0..uses.len() {
        if marks[root] != Mark::New {
            continue;
        }
        marks[root] = Mark::Open;
        let mut path = vec![(root, uses[root].iter())];
        let mut instructions: Vec<usize> = Vec::new();
        while let Some((stage, rest)) = path.last_mut() {
            let stage = *stage;
            match rest.next() {
                None => {
                    marks[stage] = Mark::Done;
                    path.pop();
                    instructions.pop();
                }
                Some((next, instruction)) => match marks[*next] {
                    Mark::Open => {
                        instructions.push(*instruction);
                        return Some((root, instructions));
                    }
                    Mark::Done => {}
                    Mark::New => {
                        marks[*next] = Mark::Open;
                        instructions.push(*instruction);
                        path.push((*next, uses[*next].iter()));
                    }
                },
            }
        }
    }
    None
}

/// The stages that `target` needs, itself included. `extra` holds what `ONBUILD` triggers add.
pub(super) fn reachable(outline: &Outline, target: usize, extra: &BTreeMap<usize, Vec<usize>>) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut open = vec![target];
    while let Some(index) = open.pop() {
        if !reached.insert(index) {
            continue;
        }
        let stage = &outline.stages[index];
        if let StageBase::Stage(base) = stage.base {
            open.push(base);
        }
        for origin in stage.origins.values().flatten().flatten() {
            if let Origin::Stage(other) = origin {
                open.push(*other);
            }
        }
        open.extend(extra.get(&index).into_iter().flatten());
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_found_without_recursion() {
        let uses = |edges: &[(usize, usize)], stages: usize| -> Vec<BTreeMap<usize, usize>> {
            let mut uses = vec![BTreeMap::new(); stages];
            for (number, (from, to)) in edges.iter().enumerate() {
                uses[*from].insert(*to, number);
            }
            uses
        };
        assert_eq!(find_cycle(&uses(&[], 3)), None);
        assert_eq!(find_cycle(&uses(&[(2, 1), (1, 0), (2, 0)], 3)), None);
        assert_eq!(find_cycle(&uses(&[(0, 0)], 1)), Some((0, vec![0])));
        assert_eq!(find_cycle(&uses(&[(0, 1), (1, 0)], 2)), Some((0, vec![0, 1])));
        assert_eq!(find_cycle(&uses(&[(0, 1), (2, 1), (2, 3), (3, 2)], 4)), Some((2, vec![2, 3])));
        let long: Vec<(usize, usize)> = (0..100_000).map(|n| (n, n + 1)).collect();
        assert_eq!(find_cycle(&uses(&long, 100_001)), None);
    }
}
