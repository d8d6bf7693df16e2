//! Paths whose changes do not get into layers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::Change;

/// Absolute paths with shell patterns (`*`, `?`, `[…]`, `\`) in each component; each covers everything below it. What they
/// match is there while the build runs, and in no layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ignored(Vec<Vec<String>>);

impl Ignored {
    /// Takes paths as a command line gives them. Relative ones match nothing and are left out, so is the root.
    pub fn new(paths: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let patterns = paths.into_iter().filter_map(|path| {
            let path = path.as_ref();
            let mut parts: Vec<String> = Vec::new();
            for part in path.strip_prefix('/')?.split('/') {
                match part {
                    "" | "." => {}
                    ".." => _ = parts.pop(),
                    part => parts.push(part.to_owned()),
                }
            }
            (!parts.is_empty()).then_some(parts)
        });
        let mut patterns: Vec<_> = patterns.collect();
        patterns.sort();
        patterns.dedup();
        Self(patterns)
    }

    /// The patterns, in an order that does not depend on how they were given; results of steps depend on them.
    pub fn patterns(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|parts| parts.join("/"))
    }

    /// Whether nothing is ignored.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a path of the tree, without a leading `/`, is ignored.
    pub fn matches(&self, path: &Path) -> bool {
        let parts: Vec<_> = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        self.0.iter().any(|pattern| {
            pattern.len() <= parts.len()
                && pattern.iter().zip(&parts).all(|(pattern, part)| {
                    let part = part.as_os_str().to_string_lossy();
                    component(&pattern.chars().collect::<Vec<_>>(), &part.chars().collect::<Vec<_>>())
                })
        })
    }

    /// The changes without what is ignored. A hard link to an ignored name becomes the file itself.
    pub fn leave_out<'c>(&self, changes: &'c [Change]) -> Cow<'c, [Change]> {
        if self.is_empty() || !changes.iter().any(|change| self.matches(change.path())) {
            return Cow::Borrowed(changes);
        }
        // Ignored first names of inodes, and the names that take their place.
        let mut instead: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        let kept = changes.iter().filter(|change| !self.matches(change.path())).map(|change| match change {
            Change::Entry { path, metadata, link_to: Some(first) } if self.matches(first) => {
                let link_to = instead.get(first).cloned();
                instead.entry(first.clone()).or_insert_with(|| path.clone());
                Change::Entry { path: path.clone(), metadata: *metadata, link_to }
            }
            other => other.clone(),
        });
        Cow::Owned(kept.collect())
    }
}

/// Whether a component matches a pattern, as Go's `filepath.Match` decides it; a malformed pattern matches nothing.
fn component(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['*', rest @ ..] => (0..=text.len()).any(|skipped| component(rest, &text[skipped..])),
        ['?', rest @ ..] => !text.is_empty() && component(rest, &text[1..]),
        ['[', rest @ ..] => {
            let Some((first, after)) = text.split_first() else { return false };
            matches!(class(rest, *first), Some((true, rest)) if component(rest, after))
        }
        ['\\', literal, rest @ ..] => text.first() == Some(literal) && component(rest, &text[1..]),
        ['\\'] => false,
        [literal, rest @ ..] => text.first() == Some(literal) && component(rest, &text[1..]),
    }
}

/// Whether `c` is in the class that begins here, and what follows it.
fn class(pattern: &[char], c: char) -> Option<(bool, &[char])> {
    let (negated, mut rest) = match pattern {
        ['^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut found = false;
    let mut first = true;
    loop {
        if let [']', after @ ..] = rest
            && !first
        {
            return Some((found != negated, after));
        }
        first = false;
        let (low, after) = literal(rest)?;
        let (high, after) = match after {
            ['-', after @ ..] => literal(after)?,
            after => (low, after),
        };
        found |= (low..=high).contains(&c);
        rest = after;
    }
}

fn literal(pattern: &[char]) -> Option<(char, &[char])> {
    match pattern {
        ['\\', c, rest @ ..] => Some((*c, rest)),
        ['\\' | '-' | ']', ..] | [] => None,
        [c, rest @ ..] => Some((*c, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_by_component() {
        for (pattern, path, expected) in [
            ("/var/run", "var/run", true),
            ("/var/run", "var/run/a/b", true),
            ("/var/run", "var/runs", false),
            ("/var/run", "x/var/run", false),
            ("/a//b/./c/../d/", "a/b/d/e", true),
            ("/*/cache", "home/cache", true),
            ("/*/cache", "home/user/cache", false),
            ("/a?", "ab", true),
            ("/a?", "a", false),
            ("/[a-c]x", "bx", true),
            ("/[^a-c]x", "bx", false),
            (r"/\*", "*", true),
            (r"/\*", "x", false),
            ("/[a", "a", false),
            ("relative", "relative", false),
            ("/", "x", false),
            ("/tmp/*.log", "tmp/a.log", true),
            ("/tmp/*.log", "tmp/a.txt", false),
        ] {
            assert_eq!(Ignored::new([pattern]).matches(Path::new(path)), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn links_to_what_is_left_out_become_files() {
        use crate::rootfs::{FileKind, Metadata};
        let metadata = Metadata {
            kind: FileKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            device: (0, 0),
            size: 0,
            mtime: (0, 0),
            inode: 1,
            links: 3,
        };
        let entry = |path: &str, link_to: Option<&str>| Change::Entry {
            path: path.into(),
            metadata,
            link_to: link_to.map(PathBuf::from),
        };
        let removed = |path: &str| Change::Removed { path: path.into() };
        let changes = [
            entry("a/one", None),
            removed("a/gone"),
            entry("b", Some("a/one")),
            entry("c", Some("a/one")),
            entry("d", None),
        ];
        let expected = [entry("b", None), entry("c", Some("b")), entry("d", None)];
        assert_eq!(&*Ignored::new(["/a"]).leave_out(&changes), &expected);
        assert_eq!(&*Ignored::new(["/x"]).leave_out(&changes), &changes);
    }
}
