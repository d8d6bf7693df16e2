//! File systems that work directories lie on.

use tests::machine::Kernel;

use crate::inside::{LIMIT, all, machine, same, says, small, step, text};

/// Exit code of a build whose work directory is no good.
const UNUSABLE: i32 = 5;

/// File systems of disks: name, and how `$disk` gets one.
const DISKS: &[(&str, &str)] = &[
    ("ext4", "mkfs.ext4 -q -F -J size=16 $disk && mount -o data=journal $disk /mnt"),
    ("xfs", "mkfs.xfs -q -f $disk && mount $disk /mnt"),
    ("xfs-old", "mkfs.xfs -q -f -m crc=0,reflink=0 -n ftype=0 $disk && mount $disk /mnt"),
    ("btrfs", "mkfs.btrfs -q -f $disk && mount $disk /mnt"),
    ("fat", "mkfs.vfat -F 32 $disk 1048576 >/dev/null && mount -t vfat -o umask=0 $disk /mnt"),
];

/// nfsd of the machine itself, as others would export it: root is nobody there. Clients would be waited for longer than a test takes.
const NFS: &str = "mkdir -p /srv/x /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs /run/rpcbind && chmod 1777 /srv/x && install -d -o plain /srv/x/plain && \
                   mkdir -p /etc/exports.d && touch /var/lib/nfs/etab /var/lib/nfs/rmtab && \
                   echo '/srv/x 127.0.0.1(rw,root_squash,no_subtree_check,fsid=0,insecure)' >/etc/exports && \
                   modprobe nfsd && { mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd; } && \
                   echo 10 >/proc/fs/nfsd/nfsv4leasetime && echo 10 >/proc/fs/nfsd/nfsv4gracetime && \
                   exportfs -ra && rpc.mountd -N 2 -N 3 && rpc.nfsd -N 3 4 && \
                   mount -t nfs4 -o vers=4.2 127.0.0.1:/ /mnt";

/// What qemu shares of the machine that it runs on.
const NINE_P: &str =
    "modprobe 9pnet_virtio; mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 shared /mnt && chmod 1777 /mnt";

/// Builds on each by root and by a user without anything: the image is that of the machine's own disk, or it is said before the first
/// step that there can be none, and why.
pub fn file_systems(kernel: Kernel) -> Result<(), String> {
    on_each(kernel, &[DISKS, &[("nfs", NFS)]].concat())
}

/// The same on what qemu shares of the machine that it runs on.
pub fn shared_by_qemu(kernel: Kernel) -> Result<(), String> {
    on_each(kernel, &[("9p", NINE_P)])
}

fn on_each(kernel: Kernel, volumes: &[(&str, &str)]) -> Result<(), String> {
    let shared = tempfile::Builder::new().prefix("slipway-shared-").tempdir_in("/var/tmp").map_err(text)?;
    let mut machine = machine(kernel)?;
    small(&machine)?;
    machine.share(shared.path());
    let build = |context: &str, user: &str, directory: &str| {
        let out = "OUT=$(mktemp -u -p /run/user out-XXXXXX)";
        format!("export CONTEXT={context} {out}; build {user} auto {directory}/{user} 2>&1")
    };
    // 9p has no named pipes.
    let without = "mkdir -m 1777 /run/user && mkdir -p /mnt && cp -r /job/small /job/no-pipe && sed -i 's/&& mkfifo -m 620 .d.fifo//' /job/no-pipe/Dockerfile";
    machine.step("place", without).map_err(text)?;
    machine.step("own", &build("/job/small", "root", "/var/tmp/own")).map_err(text)?;
    machine.step("own-no-pipe", &build("/job/no-pipe", "root", "/var/tmp/own")).map_err(text)?;
    for (name, prepare) in volumes {
        let mount =
            format!("disk=/disks/spare; ! mountpoint -q /mnt || umount /mnt; {prepare} && grep ' /mnt ' /proc/mounts");
        machine.step(&format!("{name}-mount"), &mount).map_err(text)?;
        for user in ["root", "plain"] {
            let context = if *name == "9p" { "/job/no-pipe" } else { "/job/small" };
            let build = format!("mountpoint -q /mnt || exit; {}", build(context, user, "/mnt"));
            machine.step(&format!("{name}-{user}"), &build).map_err(text)?;
        }
        machine.step(&format!("{name}-info"), "slipway info --work-dir /mnt/info").map_err(text)?;
    }
    let steps = machine.run(LIMIT)?;
    let done = |name: &str| step(&steps, name);
    let (mut checks, mut builds) = (Vec::new(), vec![done("own")?]);
    for (name, _) in volumes {
        checks.push(says(done(&format!("{name}-mount"))?, 0, &[]));
        let [root, plain] = ["root", "plain"].map(|user| done(&format!("{name}-{user}")));
        match *name {
            "fat" => {
                let words = &["(vfat) tells no `name` from `NAME`", "--work-dir", "ext4"];
                checks.extend([says(root?, UNUSABLE, words), says(plain?, UNUSABLE, words)]);
            }
            "9p" => {
                checks.push(same([done("own-no-pipe")?, root?, plain?]));
                checks.push(says(done("9p-root")?, 0, &["(9p) holds no named pipes"]));
            }
            _ => builds.extend([root?, plain?]),
        }
    }
    let infos = [("ext4", "overlayfs: steps cost"), ("xfs-old", "ftype=1"), ("nfs", "owners are recorded beside them")];
    for (name, word) in infos.into_iter().filter(|(name, _)| volumes.iter().any(|(volume, _)| volume == name)) {
        checks.push(says(done(&format!("{name}-info"))?, 0, &[word]));
    }
    checks.push(same(builds));
    all(checks)
}
