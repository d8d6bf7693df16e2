//! What is in /dev in every tier.

/// A character device.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    /// Below /dev.
    pub name: &'static str,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

const fn node(name: &'static str, major: u32, minor: u32) -> Node {
    Node { name, major, minor }
}

/// Nodes that a RUN can open, and the only ones: Documentation/admin-guide/devices.txt of Linux. Where a namespace does not give
/// the right to make them they are bound from the host, and everything else is mounted `nodev`; so CAP_MKNOD is harmless.
pub const NODES: [Node; 6] = [
    node("null", 1, 3),
    node("zero", 1, 5),
    node("full", 1, 7),
    node("random", 1, 8),
    node("urandom", 1, 9),
    node("tty", 5, 0),
];

/// Devices that `--security=insecure` adds if the host has them.
pub const INSECURE: [&str; 13] = [
    "fuse",
    "kvm",
    "kmsg",
    "loop-control",
    "loop0",
    "loop1",
    "loop2",
    "loop3",
    "loop4",
    "loop5",
    "loop6",
    "loop7",
    "net/tun",
];

/// Symbolic links: name and text. `ptmx` is a link too where /dev/pts is the RUN's own.
pub const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];
