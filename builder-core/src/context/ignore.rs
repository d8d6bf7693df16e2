//! `.dockerignore` patterns (checklist D-01 to D-07), also used for `--exclude` and `--parents`.
//!
//! The rules are those of moby's pattern matcher, its corners included, because the ignore files of the world are
//! written against it: a pattern is exact, a prefix (`x/**`), a suffix (`**/x`) or else what its translation into a
//! regular expression of Go means. [`regex`] reads that translation into the automaton of [`super::glob`], which
//! cannot backtrack.
//!
//! # Limitations
//! In patterns with a backslash before a letter, moby's translation hands the pair to the regular expression: `\d` is
//! a digit there, and here. `\A`, `\b`, `\B`, `\z`, `\Q` and `\p` mean positions and classes that nobody asks an
//! ignore file for; patterns with them match nothing here.

mod file;
mod regex;

pub use file::{IgnoreFile, IgnoreFileError, find_ignore_file};

use super::glob::{Glob, wildcard};

/// A list of patterns; the last match decides.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
}

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct IgnoreError {
    /// Line in the ignore file (or position in a list of patterns), counted from 1.
    pub line: usize,
    /// BuildKit's words.
    pub reason: String,
}

#[derive(Debug, Clone)]
struct Pattern {
    /// As cleaned, without `!`.
    text: String,
    /// Line in the ignore file, counted from 1.
    line: usize,
    /// Begins with `!`: brings back what earlier patterns matched.
    exception: bool,
    rule: Rule,
}

#[derive(Debug, Clone)]
enum Rule {
    Exact(Vec<u8>),
    /// `x/**`: what begins with `x/`.
    Prefix(Vec<u8>),
    /// `**x`: what ends with `x`, or is `x` without its leading slash.
    Suffix(Vec<u8>),
    Glob(Box<Glob>),
}

/// What a list of patterns says about one path, with what the paths below it need to know.
#[derive(Debug, Clone)]
pub(crate) struct Matched {
    /// Whether the list as a whole matches.
    pub(crate) yes: bool,
    /// The patterns that matter below this path, in order; those that cannot match there are left out.
    alive: Vec<Alive>,
}

/// A pattern on its way down.
#[derive(Debug, Clone, Copy)]
struct Alive {
    index: usize,
    /// It matched this path or a directory above, so it matches all that is below.
    matched: bool,
    /// Where its automaton stands behind the path and a slash, if it has one of one word.
    state: u64,
}

impl Patterns {
    /// Reads an ignore file.
    ///
    /// # Errors
    /// A lone `!` or malformed brackets.
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        let mut patterns = Vec::new();
        for (i, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (exception, line) = match line.strip_prefix('!') {
                Some(rest) => ("!", rest.trim()),
                None => ("", line),
            };
            if exception.is_empty() && line.is_empty() {
                continue;
            }
            let mut cleaned = if line.is_empty() { String::new() } else { clean(line) };
            if cleaned.len() > 1 && cleaned.starts_with('/') {
                cleaned.remove(0);
            }
            patterns.extend(Pattern::new(&format!("{exception}{cleaned}"), i + 1)?);
        }
        Ok(Self { patterns })
    }

    /// Takes patterns that stand alone, as those of `--exclude`: neither comments nor leading slashes are special.
    ///
    /// # Errors
    /// A lone `!` or malformed brackets; `line` is the position in the list.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, IgnoreError> {
        let mut compiled = Vec::new();
        for (i, pattern) in patterns.into_iter().enumerate() {
            compiled.extend(Pattern::new(pattern, i + 1)?);
        }
        Ok(Self { patterns: compiled })
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a pattern begins with `!`.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.exception)
    }

    /// Whether `path` (relative, `/` between components) is hidden, its parents' matches included.
    pub fn is_ignored(&self, path: &[u8]) -> bool {
        self.matched(path).yes
    }

    /// The line, counted from 1, and the pattern that hide `path`.
    pub fn hidden_by(&self, path: &[u8]) -> Option<(usize, &str)> {
        let matched = self.matched(path);
        let deciding = matched.alive.iter().rev().find(|alive| alive.matched).filter(|_| matched.yes)?;
        self.patterns.get(deciding.index).map(|pattern| (pattern.line, &*pattern.text))
    }

    /// What the patterns say about the root: that it is there.
    pub(crate) fn root(&self) -> Matched {
        let alive = self.patterns.iter().enumerate().map(|(index, pattern)| {
            let state = pattern.rule.small_glob().map_or(0, Glob::start);
            Alive { index, matched: false, state }
        });
        Matched { yes: false, alive: alive.collect() }
    }

    /// Follows `path` down from the root.
    pub(crate) fn matched(&self, path: &[u8]) -> Matched {
        let mut matched = self.root();
        if self.patterns.is_empty() || path.is_empty() {
            return matched;
        }
        for (i, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            matched = self.below(&matched, &path[..i]);
        }
        self.below(&matched, path)
    }

    /// What the patterns say about `path`, given what they said about the directory it is in.
    pub(crate) fn below(&self, parent: &Matched, path: &[u8]) -> Matched {
        let name = last_name(path);
        let mut yes = false;
        let mut alive = Vec::with_capacity(parent.alive.len());
        for above in &parent.alive {
            let Some(pattern) = self.patterns.get(above.index) else { continue };
            let small = pattern.rule.small_glob();
            let state = small.map_or(0, |glob| glob.advance(above.state, name));
            // A pattern that could not change the answer is not looked at, and its match not noted: moby's way, and
            // visible below when a later pattern turns the answer round again.
            let matches = || small.map_or_else(|| pattern.rule.matches(path), |glob| glob.accepts(state));
            let matched = above.matched || pattern.exception == yes && matches();
            if matched {
                yes = !pattern.exception;
            }
            let state = small.map_or(0, |glob| glob.advance(state, b"/"));
            let may_match = || small.map_or_else(|| pattern.rule.may_match_below(path), |_| state != 0);
            if matched || may_match() {
                alive.push(Alive { index: above.index, matched, state });
            }
        }
        Matched { yes, alive }
    }

    /// [`Patterns::below`] for a file: its answer alone.
    pub(crate) fn matches_file(&self, parent: &Matched, path: &[u8]) -> bool {
        let name = last_name(path);
        let mut yes = false;
        for above in &parent.alive {
            let Some(pattern) = self.patterns.get(above.index) else { continue };
            let matches = || match pattern.rule.small_glob() {
                Some(glob) => glob.may_end(path) && glob.accepts(glob.advance(above.state, name)),
                None => pattern.rule.matches(path),
            };
            if above.matched || pattern.exception == yes && matches() {
                yes = !pattern.exception;
            }
        }
        yes
    }

    /// Whether something below a directory could get another answer than the directory itself.
    pub(crate) fn may_change_below(&self, matched: &Matched) -> bool {
        let exception = |alive: &Alive| self.patterns.get(alive.index).is_some_and(|pattern| pattern.exception);
        matched.alive.iter().any(|alive| !alive.matched && exception(alive) == matched.yes)
    }
}

/// The last component of a path.
fn last_name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(path, |slash| &path[slash + 1..])
}

impl Pattern {
    fn new(text: &str, line: usize) -> Result<Option<Self>, IgnoreError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let bad = |reason: String| IgnoreError { line, reason };
        let cleaned = clean(text);
        let (exception, pattern) = match cleaned.strip_prefix('!') {
            Some("") => return Err(bad("illegal exclusion pattern: \"!\"".to_owned())),
            Some(rest) => (true, rest),
            None => (false, &*cleaned),
        };
        // moby lets filepath.Match judge the syntax, and another grammar do the matching.
        wildcard(pattern).map_err(|error| bad(error.to_string()))?;
        let rule = Rule::new(pattern).map_err(|error| bad(error.to_string()))?;
        Ok(Some(Self { text: pattern.to_owned(), line, exception, rule }))
    }
}

impl Rule {
    fn new(pattern: &str) -> Result<Self, super::glob::BadPattern> {
        let (kind, expression) = regex::translate(pattern);
        Ok(match kind {
            regex::Kind::Exact => Self::Exact(pattern.as_bytes().to_vec()),
            regex::Kind::Prefix => Self::Prefix(pattern.as_bytes()[..pattern.len() - 2].to_vec()),
            regex::Kind::Suffix => Self::Suffix(pattern.as_bytes()[2..].to_vec()),
            regex::Kind::Expression => Self::Glob(Box::new(Glob::new(&regex::parse(&expression)?))),
        })
    }

    fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path.starts_with(prefix),
            Self::Suffix(suffix) => path.ends_with(suffix) || suffix.strip_prefix(b"/") == Some(path),
            Self::Glob(glob) => glob.matches(path),
        }
    }

    /// The automaton, if its state is one word that can be kept from directory to directory.
    fn small_glob(&self) -> Option<&Glob> {
        match self {
            Self::Glob(glob) if glob.is_small() => Some(glob),
            _ => None,
        }
    }

    fn may_match_below(&self, directory: &[u8]) -> bool {
        let leads_to = |path: &[u8]| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"));
        match self {
            Self::Exact(exact) => leads_to(exact),
            Self::Prefix(prefix) => leads_to(prefix) || directory.starts_with(prefix),
            Self::Suffix(_) => true,
            Self::Glob(glob) => glob.may_match_below(directory),
        }
    }
}

/// `filepath.Clean` of Go: `.`, inner `..` and double slashes vanish; an empty path is `.`.
pub(crate) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => _ = parts.pop(),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests;
