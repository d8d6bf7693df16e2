//! Structures that calls fill, as the kernel lays them out on the two machines. Both are little-endian with 64 bits.

use rustix::fs::{StatFs, Statx, StatxTimestamp};

/// Collects fields.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn i64(&mut self, value: i64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn time(&mut self, time: StatxTimestamp) -> &mut Self {
        self.i64(time.tv_sec).u64(time.tv_nsec.into())
    }
}

/// `struct stat` of asm/stat.h.
pub fn stat(found: &Statx) -> Vec<u8> {
    let device = rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor);
    let stands_for = rustix::fs::makedev(found.stx_rdev_major, found.stx_rdev_minor);
    let mode = u32::from(found.stx_mode);
    let mut fields = Fields(Vec::with_capacity(144));
    fields.u64(device).u64(found.stx_ino);
    if cfg!(target_arch = "x86_64") {
        fields.u64(found.stx_nlink.into()).u32(mode).u32(found.stx_uid).u32(found.stx_gid).u32(0);
        fields.u64(stands_for).u64(found.stx_size).u64(found.stx_blksize.into()).u64(found.stx_blocks);
    } else {
        fields.u32(mode).u32(found.stx_nlink).u32(found.stx_uid).u32(found.stx_gid);
        fields.u64(stands_for).u64(0).u64(found.stx_size).u32(found.stx_blksize).u32(0).u64(found.stx_blocks);
    }
    fields.time(found.stx_atime).time(found.stx_mtime).time(found.stx_ctime);
    fields.u64(0);
    if cfg!(target_arch = "x86_64") {
        fields.u64(0).u64(0);
    }
    fields.0
}

/// `struct statx` of linux/stat.h.
pub fn statx(found: &Statx) -> Vec<u8> {
    let mut fields = Fields(Vec::with_capacity(256));
    fields.u32(found.stx_mask).u32(found.stx_blksize).u64(found.stx_attributes.bits());
    fields.u32(found.stx_nlink).u32(found.stx_uid).u32(found.stx_gid).u16(found.stx_mode).u16(0);
    fields.u64(found.stx_ino).u64(found.stx_size).u64(found.stx_blocks).u64(found.stx_attributes_mask.bits());
    for time in [found.stx_atime, found.stx_btime, found.stx_ctime, found.stx_mtime] {
        fields.i64(time.tv_sec).u32(time.tv_nsec).u32(0);
    }
    fields.u32(found.stx_rdev_major).u32(found.stx_rdev_minor).u32(found.stx_dev_major).u32(found.stx_dev_minor);
    fields.u64(found.stx_mnt_id).u32(found.stx_dio_mem_align).u32(found.stx_dio_offset_align);
    fields.0.resize(256, 0);
    fields.0
}

/// `struct statfs` of asm-generic/statfs.h. The file system's id is not told.
#[allow(clippy::unnecessary_cast, clippy::cast_lossless, reason = "the widths differ between C libraries")]
pub fn statfs(found: &StatFs) -> Vec<u8> {
    let mut fields = Fields(Vec::with_capacity(120));
    fields.i64(found.f_type as i64).i64(found.f_bsize as i64).u64(found.f_blocks as u64).u64(found.f_bfree as u64);
    fields.u64(found.f_bavail as u64).u64(found.f_files as u64).u64(found.f_ffree as u64).u64(0);
    fields.i64(found.f_namelen as i64).i64(found.f_frsize as i64).i64(found.f_flags as i64);
    fields.0.resize(120, 0);
    fields.0
}
