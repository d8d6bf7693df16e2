//! Layers for tests, written byte by byte so that they can lie.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use super::{FileKind, LayerRef, LayerSource, Rootfs};
use crate::oci::{BlobDigest, Descriptor, DiffId, MediaType, Sha256};

/// One tar entry.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub kind: u8,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub data: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: u64,
    pub device: (u32, u32),
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
}

fn entry(kind: u8, name: &str) -> Entry {
    Entry {
        kind,
        name: name.into(),
        link: Vec::new(),
        data: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 1_000_000_000,
        device: (0, 0),
        pax: Vec::new(),
    }
}

pub(super) fn file(name: &str, data: &str) -> Entry {
    Entry { data: data.into(), ..entry(b'0', name) }
}

pub(super) fn dir(name: &str) -> Entry {
    Entry { mode: 0o755, ..entry(b'5', name) }
}

pub(super) fn symlink(name: &str, text: &str) -> Entry {
    Entry { link: text.into(), mode: 0o777, ..entry(b'2', name) }
}

pub(super) fn hard_link(name: &str, target: &str) -> Entry {
    Entry { link: target.into(), ..entry(b'1', name) }
}

pub(super) fn char_device(name: &str, device: (u32, u32)) -> Entry {
    Entry { device, ..entry(b'3', name) }
}

pub(super) fn fifo(name: &str) -> Entry {
    entry(b'6', name)
}

impl Entry {
    pub(super) fn owner(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }

    pub(super) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub(super) fn mtime(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }

    pub(super) fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.pax.push((key.into(), value.to_vec()));
        self
    }

    /// Header, data and padding; PAX for what does not fit.
    pub(super) fn write(&self, tar: &mut Vec<u8>) {
        let mut pax = self.pax.clone();
        if self.name.len() > 100 {
            pax.push((b"path".to_vec(), self.name.clone()));
        }
        if self.link.len() > 100 {
            pax.push((b"linkpath".to_vec(), self.link.clone()));
        }
        if !pax.is_empty() {
            raw(tar, &Entry { data: records(&pax), ..entry(b'x', "pax") });
        }
        raw(tar, self);
    }
}

/// PAX records.
pub(super) fn records(pax: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in pax {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        bytes.extend(format!("{length} ").into_bytes());
        bytes.extend(key);
        bytes.push(b'=');
        bytes.extend(value);
        bytes.push(b'\n');
    }
    bytes
}

fn raw(tar: &mut Vec<u8>, entry: &Entry) {
    let mut header = [0_u8; 512];
    let mut put = |offset: usize, bytes: &[u8]| header[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &entry.name[..entry.name.len().min(100)]);
    put(100, format!("{:07o}", entry.mode).as_bytes());
    for (offset, id) in [(108, entry.uid), (116, entry.gid)] {
        if id < 1 << 21 {
            put(offset, format!("{id:07o}").as_bytes());
        } else {
            let mut field = [0x80, 0, 0, 0, 0, 0, 0, 0];
            field[4..].copy_from_slice(&id.to_be_bytes());
            put(offset, &field);
        }
    }
    put(124, format!("{:011o}", entry.data.len()).as_bytes());
    put(136, format!("{:011o}", entry.mtime).as_bytes());
    put(148, b"        ");
    put(156, &[entry.kind]);
    put(157, &entry.link[..entry.link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}", entry.device.0).as_bytes());
    put(337, format!("{:07o}", entry.device.1).as_bytes());
    seal(&mut header);
    tar.extend(header);
    tar.extend(&entry.data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// Computes the checksum.
pub(super) fn seal(header: &mut [u8; 512]) {
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A whole archive.
pub(super) fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Vec::new();
    for entry in entries {
        entry.write(&mut tar);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Layers in memory.
#[derive(Debug, Default)]
pub(super) struct Blobs(BTreeMap<DiffId, Vec<u8>>);

impl Blobs {
    /// Adds a layer; the blob is what `compress` makes of the tar.
    pub(super) fn add(&mut self, tar: &[u8], compress: impl Fn(&[u8]) -> Vec<u8>) -> LayerRef {
        let diff_id = DiffId(Sha256::of(tar));
        let blob = compress(tar);
        let descriptor = Descriptor::new(MediaType::OciLayerGzip, BlobDigest(Sha256::of(&blob)), blob.len() as u64);
        self.0.insert(diff_id, blob);
        LayerRef { diff_id, blob: descriptor }
    }

    pub(super) fn layers(layers: &[Vec<Entry>]) -> (Self, Vec<LayerRef>) {
        let mut blobs = Self::default();
        let refs = layers.iter().map(|entries| blobs.add(&tar(entries), <[u8]>::to_vec)).collect();
        (blobs, refs)
    }
}

impl LayerSource for Blobs {
    fn open(&self, layer: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
        let blob = self.0.get(&layer.diff_id).ok_or("no such blob")?.clone();
        Ok(Box::new(std::io::Cursor::new(blob)))
    }
}

/// A tree as short lines: `dir/`, `file=data`, `link->text`, `device c1,3`.
pub(super) fn describe(rootfs: &Rootfs) -> Vec<String> {
    let listing = rootfs.list().unwrap();
    let line = |file: Result<super::Listed, super::ListError>| {
        let file = file.unwrap();
        let path = file.path.to_string_lossy();
        match file.metadata.kind {
            FileKind::Directory => format!("{path}/"),
            FileKind::File => {
                let data = rootfs.read_small(&file.path, 1 << 20).unwrap();
                format!("{path}={}", String::from_utf8_lossy(&data))
            }
            FileKind::Symlink => format!("{path}->{}", rootfs.read_link(&file.path).unwrap().display()),
            kind => {
                let (major, minor) = file.metadata.device;
                let letter = match kind {
                    FileKind::CharDevice => 'c',
                    FileKind::BlockDevice => 'b',
                    FileKind::Fifo => 'p',
                    _ => 's',
                };
                format!("{path} {letter}{major},{minor}")
            }
        }
    };
    listing.iter().map(line).collect()
}

/// Everything that an image can tell of a tree: also modes, owners, times, attributes and which names share a file
/// (overlayfs counts links that upper layers hide, so their number is not told).
pub(super) fn describe_fully(rootfs: &Rootfs) -> Vec<String> {
    let listing = rootfs.list().unwrap();
    let mut inodes = BTreeMap::new();
    describe(rootfs)
        .into_iter()
        .zip(listing.iter())
        .map(|(line, file)| {
            let file = file.unwrap();
            let metadata = file.metadata;
            let first = inodes.entry(metadata.inode).or_insert_with(|| file.path.to_owned()).clone();
            format!(
                "{line} {:o} {}:{} {:?} {} {:?}",
                metadata.mode,
                metadata.uid,
                metadata.gid,
                metadata.mtime,
                first.display(),
                rootfs.xattrs(&file.path).unwrap(),
            )
        })
        .collect()
}

/// As [`describe_fully`], of a tree that is only known: without the content of files, which no index has.
pub(super) fn describe_index_fully(tree: &super::index::IndexTree) -> Vec<String> {
    fn below(
        path: &std::path::Path,
        node: &super::index::IndexNode,
        inodes: &mut BTreeMap<u64, std::path::PathBuf>,
        lines: &mut Vec<String>,
    ) {
        for (name, node) in node.children() {
            let path = path.join(name);
            let metadata = node.metadata;
            let first = inodes.entry(metadata.inode).or_insert_with(|| path.clone()).clone();
            let shown = path.display();
            let line = match metadata.kind {
                FileKind::Directory => format!("{shown}/"),
                FileKind::File => format!("{shown}="),
                FileKind::Symlink => format!("{shown}->{}", node.link().unwrap().display()),
                kind => {
                    let (major, minor) = metadata.device;
                    let letter = match kind {
                        FileKind::CharDevice => 'c',
                        FileKind::BlockDevice => 'b',
                        _ => 'p',
                    };
                    format!("{shown} {letter}{major},{minor}")
                }
            };
            lines.push(format!(
                "{line} {:o} {}:{} {:?} {} {:?}",
                metadata.mode,
                metadata.uid,
                metadata.gid,
                metadata.mtime,
                first.display(),
                node.capability().map(|value| ("security.capability", value.to_vec())),
            ));
            below(&path, node, inodes, lines);
        }
    }
    let mut lines = Vec::new();
    below("".as_ref(), tree.root(), &mut BTreeMap::new(), &mut lines);
    lines
}

/// The same of a tree on disk.
pub(super) fn describe_as_index(rootfs: &Rootfs) -> Vec<String> {
    let listing = rootfs.list().unwrap();
    let mut inodes = BTreeMap::new();
    let lines = describe(rootfs).into_iter().zip(listing.iter()).map(|(line, file)| {
        let file = file.unwrap();
        let metadata = file.metadata;
        let line = match metadata.kind {
            FileKind::File => format!("{}=", file.path.display()),
            _ => line,
        };
        let first = inodes.entry(metadata.inode).or_insert_with(|| file.path.to_owned()).clone();
        let attributes = rootfs.xattrs(&file.path).unwrap();
        let capability = attributes.into_iter().find(|(name, _)| name == "security.capability");
        format!(
            "{line} {:o} {}:{} {:?} {} {:?}",
            metadata.mode,
            metadata.uid,
            metadata.gid,
            metadata.mtime,
            first.display(),
            capability.map(|(_, value)| ("security.capability", value)),
        )
    });
    lines.collect()
}
