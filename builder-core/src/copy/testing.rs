//! Instructions as texts, run on trees as texts, for the tests of this module.

use std::os::unix::fs::MetadataExt;

use super::{CopyError, apply, resolve};
use crate::cancel::Cancel;
use crate::context::testing::{build, show};
use crate::context::{Files, Patterns};
use crate::plan::{Chmod, CopyAction, CopySource, FileSource};
use crate::rootfs::Rootfs;

/// `[--flag=value…] source… destination`
pub(crate) fn action(instruction: &str) -> CopyAction {
    let mut action = CopyAction::plain(FileSource::Context, Vec::new(), "");
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
