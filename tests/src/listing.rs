//! What lies in a directory tree, for comparing two of them.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Everything of a file that an image carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Type and permissions, as `st_mode` has them; permissions of a symlink say nothing and are left out.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of the content, in nanoseconds since 1970.
    pub modified: i128,
    /// Content of a file by its SHA-256, target of a symlink, number of a device.
    pub content: String,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first of all names of this file, by order.
    pub first_name: PathBuf,
}

/// A tree by the paths below its root; the root itself has the empty path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing(pub BTreeMap<PathBuf, Node>);

impl Listing {
    /// Lists what is in `root`.
    ///
    /// # Errors
    /// If something cannot be read.
    pub fn of(root: &Path) -> io::Result<Self> {
        let mut nodes = BTreeMap::new();
        let mut names: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
        add(root, Path::new(""), &mut nodes, &mut names)?;
        Ok(Self(nodes))
    }

    /// What is below the root.
    pub fn without_root(mut self) -> Self {
        self.0.remove(Path::new(""));
        self
    }

    /// The same tree as it is where owners and extended attributes are not kept.
    pub fn owned_by(mut self, uid: u32, gid: u32) -> Self {
        for node in self.0.values_mut() {
            (node.uid, node.gid) = (uid, gid);
            node.xattrs.clear();
        }
        self
    }

    /// The same tree with all times zero: of two builds, what a RUN writes has other ones.
    pub fn timeless(mut self) -> Self {
        self.0.values_mut().for_each(|node| node.modified = 0);
        self
    }

    /// One line for each difference, a few of them; nothing if the trees are equal.
    ///
    /// # Errors
    /// The lines.
    pub fn same(&self, other: &Self) -> Result<(), String> {
        let mut lines = Vec::new();
        for path in self.0.keys().chain(other.0.keys().filter(|path| !self.0.contains_key(*path))) {
            let (here, there) = (self.0.get(path), other.0.get(path));
            if here != there {
                lines.push(format!("/{}:\n    {here:?}\n    {there:?}", path.display()));
            }
        }
        match lines.len() {
            0 => Ok(()),
            count => {
                lines.truncate(20);
                Err(format!("{count} differences, such as\n{}", lines.join("\n")))
            }
        }
    }
}

fn add(
    root: &Path,
    path: &Path,
    nodes: &mut BTreeMap<PathBuf, Node>,
    names: &mut BTreeMap<(u64, u64), PathBuf>,
) -> io::Result<()> {
    let place = root.join(path);
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", place.display()));
    let meta = fs::symlink_metadata(&place).map_err(named)?;
    let kind = meta.file_type();
    let first_name = if kind.is_dir() {
        path.to_owned()
    } else {
        names.entry((meta.dev(), meta.ino())).or_insert_with(|| path.to_owned()).clone()
    };
    let content = content(&place, &meta).map_err(named)?;
    nodes.insert(
        path.to_owned(),
        Node {
            mode: if kind.is_symlink() { meta.mode() & !0o7777 } else { meta.mode() },
            uid: meta.uid(),
            gid: meta.gid(),
            modified: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
            content,
            xattrs: xattrs(&place).map_err(named)?,
            first_name,
        },
    );
    if kind.is_dir() {
        let mut children = fs::read_dir(&place)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        children.sort();
        for child in children {
            add(root, &path.join(child), nodes, names)?;
        }
    }
    Ok(())
}

fn content(place: &Path, meta: &Metadata) -> io::Result<String> {
    let kind = meta.file_type();
    if kind.is_file() {
        let mut hasher = Sha256::new();
        io::copy(&mut File::open(place)?, &mut hasher)?;
        return Ok(format!("{} bytes, sha256 {:x}", meta.len(), hasher.finalize()));
    }
    if kind.is_symlink() {
        return Ok(fs::read_link(place)?.display().to_string());
    }
    if kind.is_char_device() || kind.is_block_device() {
        return Ok(format!("device {}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())));
    }
    Ok(String::new())
}

fn xattrs(place: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    /// The most that Linux lets a list of names or a value have (xattr(7)), in bytes.
    const MOST: usize = 64 << 10;
    let mut names = vec![0; MOST];
    let length = match rustix::fs::llistxattr(place, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; MOST];
        let length = rustix::fs::lgetxattr(place, std::ffi::OsStr::from_bytes(name), &mut value)?;
        value.truncate(length);
        found.insert(name.to_owned(), value);
    }
    Ok(found)
}
