//! Paths whose changes do not get into layers.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use super::Change;
use crate::context::glob::{Glob, wildcard};

/// Absolute paths with shell patterns (`*`, `?`, `[…]`, `\`) in each component; each covers everything below it. What they
/// match is there while the build runs, and in no layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ignored(Vec<Pattern>);

impl Ignored {
    /// Takes paths as a command line gives them. Relative ones match nothing and are left out, so is the root.
    pub fn new(paths: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let mut patterns: Vec<Vec<String>> = paths.into_iter().filter_map(|path| parts(path.as_ref())).collect();
        patterns.sort();
        patterns.dedup();
        Self(patterns.into_iter().map(Pattern::new).collect())
    }

    /// The patterns, in an order that does not depend on how they were given; results of steps depend on them.
    pub fn patterns(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|pattern| pattern.parts.join("/"))
    }

    /// Whether nothing is ignored.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a path of the tree, without a leading `/`, is ignored.
    pub fn matches(&self, path: &Path) -> bool {
        self.0.iter().any(|pattern| pattern.matches(path))
    }

    /// The changes without what is ignored. A hard link to an ignored name becomes the file itself.
    pub fn leave_out<'c>(
        &'c self,
        changes: impl Iterator<Item = io::Result<Change>> + 'c,
    ) -> impl Iterator<Item = io::Result<Change>> + 'c {
        // Ignored first names of inodes, and the names that take their place.
        let mut instead: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        changes.filter_map(move |change| match change {
            Ok(change) if self.is_empty() => Some(Ok(change)),
            Ok(change) if self.matches(change.path()) => None,
            Ok(Change::Entry { path, metadata, link_to: Some(first) }) if self.matches(&first) => {
                let link_to = instead.get(&first).cloned();
                instead.entry(first).or_insert_with(|| path.clone());
                Some(Ok(Change::Entry { path, metadata, link_to }))
            }
            other => Some(other),
        })
    }
}

/// Components of an absolute path; `None` for what matches nothing.
fn parts(path: &str) -> Option<Vec<String>> {
    let mut parts: Vec<String> = Vec::new();
    for part in path.strip_prefix('/')?.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part.to_owned()),
        }
    }
    (!parts.is_empty()).then_some(parts)
}

/// One path, component by component.
#[derive(Debug, Clone)]
struct Pattern {
    /// As given.
    parts: Vec<String>,
    /// The same in the rules of Go's `filepath.Match`; `None` if a component is malformed, which then matches nothing.
    globs: Option<Vec<Glob>>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        // The rest follows from them.
        self.parts == other.parts
    }
}

impl Eq for Pattern {}

impl Pattern {
    fn new(parts: Vec<String>) -> Self {
        let globs: Result<_, _> = parts.iter().map(|part| wildcard(part).map(|tokens| Glob::new(&tokens))).collect();
        Self { parts, globs: globs.ok() }
    }

    /// Whether `path` or something above it matches.
    fn matches(&self, path: &Path) -> bool {
        let Some(globs) = &self.globs else { return false };
        let mut parts = path.components().filter(|part| matches!(part, Component::Normal(_)));
        globs.iter().all(|glob| parts.next().is_some_and(|part| glob.matches(part.as_os_str().as_bytes())))
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
            ("/x/[a", "x", false),
            ("/[]a]", "a", false),
            ("relative", "relative", false),
            ("/", "x", false),
            ("/tmp/*.log", "tmp/a.log", true),
            ("/tmp/*.log", "tmp/a.txt", false),
        ] {
            assert_eq!(Ignored::new([pattern]).matches(Path::new(path)), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn many_stars_take_no_longer_than_one() {
        // With backtracking this would be 2^60 steps and more.
        let ignored = Ignored::new([format!("/{}b", "a*".repeat(60))]);
        assert!(!ignored.matches(Path::new(&"a".repeat(250))));
        assert!(ignored.matches(Path::new(&format!("{}b/below", "a".repeat(250)))));
    }

    #[test]
    fn the_order_does_not_count() {
        let ignored = Ignored::new(["/b/*", "/a", "/b/*"]);
        assert_eq!(ignored, Ignored::new(["/a/", "//b/*"]));
        assert_ne!(ignored, Ignored::new(["/a"]));
        assert_eq!(ignored.patterns().collect::<Vec<_>>(), ["a", "b/*"]);
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
        let kept = |ignored: &str| -> Vec<Change> {
            let ignored = Ignored::new([ignored]);
            ignored.leave_out(changes.iter().cloned().map(Ok)).map(Result::unwrap).collect()
        };
        assert_eq!(kept("/a"), expected);
        assert_eq!(kept("/x"), changes);
    }
}
