//! Trees and instructions as one-line texts, for the tests of this module.
//!
//! A tree is a list of words: `d/` is a directory, `f=text` a file, `l->text` a link, `p|` a fifo, `h==f` a hard link;
//! `@755` before the content is a mode and `#1:2` an owner where they are not 644, 755 and 0:0.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::{CopyError, apply, resolve};
use crate::cancel::Cancel;
use crate::context::{Files, Patterns};
use crate::plan::{Chmod, CopyAction, CopySource, FileSource};
use crate::rootfs::{FileKind, Rootfs};

pub(super) fn build(root: &Path, tree: &str) {
    for word in tree.split_whitespace() {
        let end = word.find(['@', '#', '=', '|']).or_else(|| word.find("->")).unwrap_or(word.len());
        let end = word.find("->").map_or(end, |link| link.min(end));
        let (name, mut rest) = word.split_at(end);
        let path = root.join(name);
        let mut attribute = |sign: char| {
            let text = rest.strip_prefix(sign)?;
            let end = text.find(['@', '#', '=', '|', '-']).unwrap_or(text.len());
            rest = &text[end..];
            Some(text[..end].to_owned())
        };
        let mode = attribute('@').map(|mode| u32::from_str_radix(&mode, 8).expect("octal"));
        let owner = attribute('#');
        fs::create_dir_all(path.parent().expect("below the root")).expect(word);
        let is_directory = name.ends_with('/');
        if is_directory {
            fs::create_dir_all(&path).expect(word);
        } else if let Some(text) = rest.strip_prefix("->") {
            std::os::unix::fs::symlink(text, &path).expect(word);
        } else if let Some(existing) = rest.strip_prefix("==") {
            fs::hard_link(root.join(existing), &path).expect(word);
            continue;
        } else if rest == "|" {
            let root = Rootfs::open(root).expect("open");
            root.create(Path::new(name), crate::rootfs::NewFile::Fifo, &Default::default()).expect(word);
        } else {
            fs::write(&path, rest.strip_prefix('=').unwrap_or(rest)).expect(word);
        }
        if let Some(owner) = owner {
            let (uid, gid) = owner.split_once(':').expect("uid:gid");
            std::os::unix::fs::lchown(&path, uid.parse().ok(), gid.parse().ok()).expect(word);
        }
        if !path.is_symlink() {
            let mode = mode.unwrap_or(if is_directory { 0o755 } else { 0o644 });
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect(word);
        }
    }
}

/// The same text for a directory, sorted.
pub(super) fn show(root: &Path) -> String {
    let rootfs = Rootfs::open(root).expect("open");
    let mut words = Vec::new();
    let mut inodes = std::collections::BTreeMap::new();
    for listed in rootfs.list().expect("list").iter() {
        let metadata = listed.metadata;
        let path = listed.path.display().to_string();
        let is_directory = metadata.kind == FileKind::Directory;
        let mut word = path.clone();
        if is_directory {
            word.push('/');
        }
        if metadata.kind != FileKind::Symlink && metadata.mode != if is_directory { 0o755 } else { 0o644 } {
            word += &format!("@{:o}", metadata.mode);
        }
        if (metadata.uid, metadata.gid) != (0, 0) {
            word += &format!("#{}:{}", metadata.uid, metadata.gid);
        }
        let first = inodes.entry(metadata.inode).or_insert_with(|| path.clone());
        if metadata.links > 1 && !is_directory && *first != path {
            word = format!("{path}=={first}");
        } else {
            match metadata.kind {
                FileKind::File => word += &format!("={}", fs::read_to_string(root.join(&path)).expect("text").trim()),
                FileKind::Symlink => word += &format!("->{}", fs::read_link(root.join(&path)).expect("link").display()),
                FileKind::Fifo => word.push('|'),
                _ => {}
            }
        }
        words.push(word);
    }
    words.join(" ")
}

/// `[--flag=value…] source… destination`
pub(super) fn action(instruction: &str) -> CopyAction {
    let mut action = CopyAction {
        add: false,
        from: FileSource::Context,
        sources: Vec::new(),
        destination: String::new(),
        chown: None,
        chmod: None,
        link: false,
        parents: false,
        excludes: Vec::new(),
        checksum: None,
        keep_git_dir: None,
        unpack: None,
    };
    let mut words = Vec::new();
    for word in instruction.split(' ') {
        let (flag, value) = word.split_once('=').unwrap_or((word, ""));
        match flag {
            "ADD" => action.add = true,
            "COPY" => {}
            "--chown" => action.chown = Some(value.to_owned()),
            "--chmod" => {
                action.chmod = Some(match u32::from_str_radix(value, 8) {
                    Ok(mode) => Chmod::Octal(mode),
                    Err(_) => Chmod::Symbolic(value.to_owned()),
                });
            }
            "--parents" => action.parents = true,
            "--exclude" => action.excludes.push(value.to_owned()),
            "--unpack" => action.unpack = Some(value != "false"),
            "--from" => action.from = FileSource::Scratch,
            _ => words.push(word),
        }
    }
    action.destination = words.pop().expect("a destination").to_owned();
    if !action.destination.starts_with('/') {
        action.destination = format!("/{}", action.destination);
    }
    action.sources = words
        .into_iter()
        .map(|word| match word.strip_prefix("<<") {
            Some(name) => CopySource::Heredoc { name: name.to_owned(), body: "body\n".to_owned() },
            None => CopySource::Path(word.to_owned()),
        })
        .collect();
    action
}

/// A source tree, an ignore file, a target tree.
pub(super) struct Trees {
    pub(super) source: tempfile::TempDir,
    pub(super) target: tempfile::TempDir,
    pub(super) ignore: String,
}

impl Trees {
    pub(super) fn new(source: &str, target: &str) -> Self {
        let trees = Self {
            source: tempfile::tempdir().expect("a temporary directory"),
            target: tempfile::tempdir().expect("a temporary directory"),
            ignore: String::new(),
        };
        build(trees.source.path(), source);
        build(trees.target.path(), target);
        trees
    }

    /// Runs one instruction; with `--from` the source keeps its owners.
    pub(super) fn run(&self, instruction: &str) -> Result<(), CopyError> {
        let action = action(instruction);
        let files = if action.from == FileSource::Context {
            Files::directory(self.source.path(), Patterns::parse(&self.ignore).expect("patterns")).expect("a directory")
        } else {
            Files::rootfs(Rootfs::open(self.source.path()).expect("open"))
        };
        let target = Rootfs::open(self.target.path()).expect("open");
        let resolved = resolve(&action, &files, &Cancel::default())?;
        apply(&action, &resolved, &files, &target, &Cancel::default())
    }

    pub(super) fn mtime(&self, path: &str) -> i64 {
        self.target.path().join(path).symlink_metadata().expect(path).mtime()
    }
}

#[track_caller]
pub(super) fn check(source: &str, target: &str, instruction: &str, expected: &str) {
    let trees = Trees::new(source, target);
    trees.run(instruction).unwrap_or_else(|error| panic!("{instruction}: {error:?}"));
    assert_eq!(show(trees.target.path()), expected.split_whitespace().collect::<Vec<_>>().join(" "), "{instruction}");
}

#[track_caller]
pub(super) fn check_error(source: &str, target: &str, instruction: &str, expected: &str) {
    let trees = Trees::new(source, target);
    let error = trees.run(instruction).expect_err(instruction).to_string();
    assert!(error.contains(expected), "{instruction}: {error}");
}
