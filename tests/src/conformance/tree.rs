//! Entries of layers, and the tree that layers make when laid over one another.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::case::TreeDiff;
use super::image::ImageError;
use super::json::decode;

/// Files of up to so many bytes are compared, and shown, as text.
const TEXT_LIMIT: usize = 600;

/// How many symbolic links are followed on the way to a path.
const LINK_LIMIT: usize = 64;

/// An entry of a layer or of a merged tree. What does not apply is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Entry {
    /// Absolute and cleaned; empty within a tree.
    pub path: String,
    /// `file`, `dir`, `symlink`, `hardlink`, `char`, `block`, `fifo`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Four octal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u64>,
    /// Group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u64>,
    /// Bytes of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Content of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Content of a small file that is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Target of a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// The other names of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub links: Option<Vec<String>>,
    /// Major and minor number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<[u32; 2]>,
    /// Extended attributes, values in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xattrs: Option<BTreeMap<String, String>>,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtime: Option<i64>,
    /// Hides what lower layers have here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub whiteout: bool,
    /// Hides what lower layers have below.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub opaque: bool,
}

impl Entry {
    fn directory() -> Self {
        let (kind, mode) = (Some("dir".to_owned()), Some("0755".to_owned()));
        Self { kind, mode, uid: Some(0), gid: Some(0), mtime: Some(0), ..Self::default() }
    }

    fn is_directory(&self) -> bool {
        self.kind.as_deref() == Some("dir")
    }
}

/// Which entries' times count: shell patterns whose `*` crosses slashes.
pub(super) fn wants_mtime(path: &str, patterns: &[String]) -> bool {
    patterns.iter().any(|pattern| matches(pattern, path))
}

/// Whether a shell pattern of `*`, which crosses slashes, and `?` covers all of `text`; the corpus uses no brackets.
pub fn matches(pattern: &str, text: &str) -> bool {
    fn bytes(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', rest @ ..] => (0..=text.len()).any(|skip| bytes(rest, &text[skip..])),
            [b'?', rest @ ..] => !text.is_empty() && bytes(rest, &text[1..]),
            [byte, rest @ ..] => text.first() == Some(byte) && bytes(rest, &text[1..]),
        }
    }
    bytes(pattern.as_bytes(), text.as_bytes())
}

/// The entries of a layer's tar in archive order.
///
/// # Errors
/// If it is no tar.
pub fn layer_entries(tar: &[u8]) -> Result<Vec<Entry>, ImageError> {
    let mut entries = Vec::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let path = clean(&decode(&entry.path_bytes()));
        let (parent, name) = split(&path);
        if name == ".wh..wh..opq" {
            entries.push(Entry { path: parent.to_owned(), opaque: true, ..Entry::default() });
            continue;
        }
        if name.starts_with(".wh..wh.") {
            continue;
        }
        if let Some(hidden) = name.strip_prefix(".wh.") {
            let size = Some(entry.size()).filter(|size| *size > 0);
            entries.push(Entry { path: join(parent, hidden), size, whiteout: true, ..Entry::default() });
            continue;
        }
        entries.push(read_entry(&mut entry, path)?);
    }
    Ok(entries)
}

fn read_entry(entry: &mut tar::Entry<'_, &[u8]>, path: String) -> Result<Entry, ImageError> {
    let (mut xattrs, mut pax_mtime) = (BTreeMap::new(), None);
    if let Some(records) = entry.pax_extensions()? {
        for record in records {
            let record = record?;
            let key = record.key().map_err(|error| ImageError(format!("PAX key: {error}")))?;
            if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                xattrs.insert(name.to_owned(), hex(record.value_bytes()));
            } else if key == "mtime" {
                pax_mtime = record.value().ok().and_then(whole_seconds);
            }
        }
    }
    let header = entry.header();
    let kind = match header.entry_type() {
        tar::EntryType::Link => "hardlink",
        tar::EntryType::Symlink => "symlink",
        tar::EntryType::Char => "char",
        tar::EntryType::Block => "block",
        tar::EntryType::Directory => "dir",
        tar::EntryType::Fifo => "fifo",
        tar::EntryType::Regular | tar::EntryType::Continuous => "file",
        _ => "other",
    };
    let header_mtime = i64::try_from(header.mtime()?).map_err(|error| ImageError(error.to_string()))?;
    let mut value = Entry {
        path,
        kind: Some(kind.to_owned()),
        mode: Some(format!("{:04o}", header.mode()? & 0o7777)),
        uid: Some(header.uid()?),
        gid: Some(header.gid()?),
        mtime: Some(pax_mtime.unwrap_or(header_mtime)),
        xattrs: (!xattrs.is_empty()).then_some(xattrs),
        ..Entry::default()
    };
    let link = entry.link_name_bytes().map(|name| decode(&name));
    match kind {
        "hardlink" => value.link = link.map(|name| clean(&name)),
        "symlink" => value.link = link,
        "char" | "block" => {
            value.dev = Some([header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)]);
        }
        "file" => {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            value.size = Some(content.len() as u64);
            value.sha256 = Some(hex(&Sha256::digest(&content)));
            if content.len() <= TEXT_LIMIT {
                value.text = String::from_utf8(content).ok();
            }
        }
        _ => {}
    }
    Ok(value)
}

/// A PAX time, such as `1600000000.25`, rounded towards zero.
fn whole_seconds(text: &str) -> Option<i64> {
    text.split('.').next()?.parse().ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `/a/b` for `./a//b/`, `a/x/../b`, …
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Parent and last name; `/` has an empty name.
fn split(path: &str) -> (&str, &str) {
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((parent, name)) => (parent, name),
        None => ("/", path),
    }
}

fn join(parent: &str, name: &str) -> String {
    if parent == "/" { format!("/{name}") } else { format!("{parent}/{name}") }
}

/// A merged root filesystem. Hard links share a node.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: BTreeMap<String, Arc<Entry>>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: BTreeMap::from([("/".to_owned(), Arc::new(Entry::directory()))]) }
    }
}

impl Tree {
    /// Lays one layer over the tree. Whiteouts and opaque marks hide what lower layers have, in any order.
    ///
    /// # Errors
    /// If a hard link names nothing.
    pub fn apply(&mut self, entries: &[Entry]) -> Result<(), ImageError> {
        let mut written = BTreeSet::new();
        for entry in entries {
            if entry.whiteout {
                let path = self.resolve_parent(&entry.path);
                self.remove(&path, false, &written);
                continue;
            }
            if entry.opaque {
                let inside = self.resolve_parent(&join(&entry.path, "x"));
                self.remove(split(&inside).0, true, &written);
                continue;
            }
            let path = self.resolve_parent(&entry.path);
            self.add_parents(&path, &mut written);
            if entry.is_directory() {
                if self.nodes.get(&path).is_some_and(|node| !node.is_directory()) {
                    self.nodes.remove(&path);
                }
            } else {
                self.remove(&path, false, &BTreeSet::new());
            }
            let node = match (&entry.kind, &entry.link) {
                (Some(kind), Some(link)) if kind == "hardlink" => Arc::clone(
                    self.nodes
                        .get(&self.resolve_parent(link))
                        .ok_or_else(|| ImageError(format!("hard link {path} to missing {link}")))?,
                ),
                _ => Arc::new(Entry { path: String::new(), ..entry.clone() }),
            };
            self.nodes.insert(path.clone(), node);
            written.insert(path);
        }
        Ok(())
    }

    fn add_parents(&mut self, path: &str, written: &mut BTreeSet<String>) {
        let mut above = split(path).0;
        while !self.nodes.contains_key(above) {
            self.nodes.insert(above.to_owned(), Arc::new(Entry::directory()));
            written.insert(above.to_owned());
            above = split(above).0;
        }
    }

    /// Removes what is below `path`, and `path` itself unless `keep_self`, except the paths in `keep`.
    fn remove(&mut self, path: &str, keep_self: bool, keep: &BTreeSet<String>) {
        let prefix = join(path, "");
        let below: Vec<String> = self
            .nodes
            .range(prefix.clone()..)
            .map(|(name, _)| name)
            .take_while(|name| name.starts_with(&prefix))
            .filter(|name| !keep.contains(*name) && *name != "/")
            .cloned()
            .collect();
        for name in below {
            self.nodes.remove(&name);
        }
        if !keep_self && path != "/" && !keep.contains(path) {
            self.nodes.remove(path);
        }
    }

    /// `path` with links in its parent directories followed inside the tree, as extraction of a layer does.
    fn resolve_parent(&self, path: &str) -> String {
        if path == "/" {
            return path.to_owned();
        }
        let (parent, name) = split(path);
        let words = |path: &str| -> Vec<String> {
            path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
        };
        let (mut done, mut rest, mut followed) = ("/".to_owned(), VecDeque::from(words(parent)), 0);
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                done = split(&done).0.to_owned();
                continue;
            }
            let here = join(&done, &part);
            let link = self.nodes.get(&here).filter(|node| node.kind.as_deref() == Some("symlink"));
            match link.and_then(|node| node.link.as_deref()) {
                Some(target) if followed < LINK_LIMIT => {
                    followed += 1;
                    for word in words(target).into_iter().rev() {
                        rest.push_front(word);
                    }
                    if target.starts_with('/') {
                        "/".clone_into(&mut done);
                    }
                }
                _ => done = here,
            }
        }
        join(&done, name)
    }

    /// What differs here from `base`.
    pub fn against(&self, base: &Self, patterns: &[String]) -> TreeDiff {
        let mut names: BTreeMap<*const Entry, Vec<&String>> = BTreeMap::new();
        for (path, node) in &self.nodes {
            names.entry(Arc::as_ptr(node)).or_default().push(path);
        }
        let view = |tree: &Self, path: &str| -> Option<Entry> {
            let mut node = Entry::clone(tree.nodes.get(path)?);
            node.mtime = node.mtime.filter(|_| wants_mtime(path, patterns));
            Some(node)
        };
        let mut entries = Vec::new();
        for (path, node) in &self.nodes {
            let Some(mut entry) = view(self, path) else { continue };
            if view(base, path).is_some_and(|before| before == entry) {
                continue;
            }
            let others = &names[&Arc::as_ptr(node)];
            if others.len() > 1 && entry.kind.as_deref() == Some("file") {
                entry.links = Some(others.iter().filter(|name| **name != path).map(|name| (*name).clone()).collect());
            }
            entry.path.clone_from(path);
            entries.push(entry);
        }
        let removed = base
            .nodes
            .keys()
            .filter(|path| !self.nodes.contains_key(*path) && self.nodes.contains_key(split(path).0))
            .cloned()
            .collect();
        TreeDiff { entries, removed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        for (path, expected) in [("./a//b/", "/a/b"), ("a/x/../b", "/a/b"), ("..", "/"), ("", "/"), ("/a", "/a")] {
            assert_eq!(clean(path), expected, "{path:?}");
        }
    }

    #[test]
    fn patterns_cross_slashes() {
        for (pattern, path, expected) in [
            ("/x/*", "/x/a/b", true),
            ("/w", "/w", true),
            ("/w", "/w/x", false),
            ("/?/f", "/m/f", true),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }
}
