//! Trees as one-line texts, for tests.
//!
//! A tree is a list of words: `d/` is a directory, `f=text` a file, `l->text` a link, `p|` a fifo, `h==f` a hard link;
//! `@755` before the content is a mode and `#1:2` an owner where they are not 644, 755 and 0:0.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::rootfs::{FileKind, Rootfs};

pub(crate) fn build(root: &Path, tree: &str) {
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
pub(crate) fn show(root: &Path) -> String {
    let rootfs = Rootfs::open(root).expect("open");
    let mut words = Vec::new();
    let mut inodes = std::collections::BTreeMap::new();
    for listed in rootfs.list().expect("list").iter() {
        let listed = listed.expect("list");
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
                FileKind::File => {
                    word +=
                        &format!("={}", String::from_utf8_lossy(&fs::read(root.join(&path)).expect("readable")).trim())
                }
                FileKind::Symlink => word += &format!("->{}", fs::read_link(root.join(&path)).expect("link").display()),
                FileKind::Fifo => word.push('|'),
                _ => {}
            }
        }
        words.push(word);
    }
    words.join(" ")
}
