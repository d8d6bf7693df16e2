//! The base images, made once and pushed to a registry whose storage each run gets a copy of.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::Result;
use crate::rows::{BASE_LAYER_MIB, BASE_LAYERS, LARGE_MIB, MANY_FILES};

/// Level of the bases' gzip: what most builders use.
const LEVEL: u32 = 6;

/// Pushes `base:small` (busybox), `base:large` (and [`LARGE_MIB`] of files in one layer), `base:many` (and [`MANY_FILES`] small
/// files) and `base:layers` (and [`BASE_LAYERS`] layers). Returns the compressed layer of `base:large`.
pub fn push(temp: &Path, port: u16, scale: f64) -> Result<Vec<u8>> {
    let busybox = fs::read("/bin/busybox").map_err(|error| format!("/bin/busybox: {error}; install busybox-static"))?;
    let applets = Command::new("/bin/busybox").arg("--list").output()?;
    let applets = String::from_utf8(applets.stdout)?;
    let mut small = tar::Builder::new(Vec::new());
    for directory in ["bin", "etc", "tmp", "root"] {
        append(&mut small, directory, tar::EntryType::Directory, &[], 0o755)?;
    }
    append(&mut small, "bin/busybox", tar::EntryType::Regular, &busybox, 0o755)?;
    append(&mut small, "etc/passwd", tar::EntryType::Regular, b"root:x:0:0:root:/root:/bin/sh\n", 0o644)?;
    append(&mut small, "etc/group", tar::EntryType::Regular, b"root:x:0:\n", 0o644)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        small.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    let small = Layer::new(&small.into_inner()?)?;
    let large = libraries("lib", 0, (LARGE_MIB * scale).max(1.0) as u64)?;
    let many = {
        let mut tar = tar::Builder::new(Vec::new());
        append(&mut tar, "many", tar::EntryType::Directory, &[], 0o755)?;
        for number in 0..(MANY_FILES * scale).max(1.0) as u64 {
            if number % 500 == 0 {
                append(&mut tar, &format!("many/d{}", number / 500), tar::EntryType::Directory, &[], 0o755)?;
            }
            let text = format!("file {number}\n");
            let name = format!("many/d{}/f{number}", number / 500);
            append(&mut tar, &name, tar::EntryType::Regular, text.as_bytes(), 0o644)?;
        }
        Layer::new(&tar.into_inner()?)?
    };
    let each = (BASE_LAYER_MIB * scale).max(1.0) as u64;
    let layers: Vec<Layer> = (0..BASE_LAYERS as u64 - 1)
        .map(|number| libraries(&format!("lib{number}"), 5_000 + 100 * number, each))
        .collect::<Result<_>>()?;
    let deep: Vec<&Layer> = std::iter::once(&small).chain(&layers).collect();
    for (tag, layers) in
        [("small", vec![&small]), ("large", vec![&small, &large]), ("many", vec![&small, &many]), ("layers", deep)]
    {
        push_one(&temp.join("layout"), tag, &layers, port)?;
    }
    Ok(large.blob)
}

struct Layer {
    diff_id: String,
    blob: Vec<u8>,
}

impl Layer {
    fn new(tar: &[u8]) -> Result<Self> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(LEVEL));
        gzip.write_all(tar)?;
        Ok(Self { diff_id: format!("sha256:{}", hex(tar)), blob: gzip.finish()? })
    }
}

/// A layer of `count` files of 1 MiB below `directory`.
fn libraries(directory: &str, seed: u64, count: u64) -> Result<Layer> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, directory, tar::EntryType::Directory, &[], 0o755)?;
    for number in 0..count {
        let bytes = program_like(seed + number, 1 << 20);
        append(&mut tar, &format!("{directory}/l{number}.so"), tar::EntryType::Regular, &bytes, 0o644)?;
    }
    Layer::new(&tar.into_inner()?)
}

fn push_one(layout: &Path, tag: &str, layers: &[&Layer], port: u16) -> Result<()> {
    let _ = fs::remove_dir_all(layout);
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    // buildah counts on an entry for each layer.
    let history: Vec<_> = layers.iter().map(|_| json!({ "created_by": "bench" })).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let descriptors = layers.iter().map(|layer| blob(layout, &layer.blob, gzip)).collect::<Result<Vec<_>>>()?;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({ "architecture": architecture, "os": "linux", "config": { "Cmd": ["sh"] },
        "history": history, "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let config = blob(layout, &serde_json::to_vec(&config)?, "application/vnd.oci.image.config.v1+json")?;
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": descriptors });
    let manifest = blob(layout, &serde_json::to_vec(&manifest)?, manifest_type)?;
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let status = Command::new("skopeo")
        .args(["copy", "-q", "--dest-tls-verify=false", &format!("oci:{}", layout.display())])
        .arg(format!("docker://localhost:{port}/base:{tag}"))
        .status()
        .map_err(|error| format!("skopeo: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("skopeo cannot push base:{tag}").into()) }
}

/// Bytes that compress about as well as programs do: words of a small dictionary and noise in turn.
pub fn program_like(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 64);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if state >> 62 == 0 {
            bytes.extend_from_slice(&state.to_le_bytes());
        } else {
            let word = (state >> 40) % 509;
            bytes.extend_from_slice(format!("symbol_{word}_entry\0").as_bytes());
        }
    }
    bytes.truncate(length);
    bytes
}

/// Appends an entry owned by root.
pub fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    name: &str,
    kind: tar::EntryType,
    bytes: &[u8],
    mode: u32,
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    header.set_mtime(1_600_000_000);
    tar.append_data(&mut header, name, bytes)?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn blob(layout: &Path, bytes: &[u8], media_type: &str) -> Result<serde_json::Value> {
    let digest = hex(bytes);
    fs::write(layout.join("blobs/sha256").join(&digest), bytes)?;
    Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() }))
}
