//! What this process asks of its allocator.

/// Pieces from this size on, in bytes, are given back to the kernel as soon as they are free.
#[cfg(target_env = "gnu")]
const GIVEN_BACK_BYTES: libc::c_int = 256 << 10;

/// Keeps free memory from piling up in threads: mallopt(3), where the C library has it.
///
/// glibc gives threads arenas of their own, up to eight for each processor, and raises the size from which free memory goes
/// back to the kernel whenever a larger piece is freed. A build has a thread for each of many stages, and each uses for a
/// moment what a compressor needs: all arenas would then keep that much.
pub fn bound(arenas: usize) {
    #[cfg(target_env = "gnu")]
    {
        let arenas = libc::c_int::try_from(arenas).unwrap_or(libc::c_int::MAX);
        // SAFETY: both take a number, and may be called at any time. That they are refused changes no result.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
            libc::mallopt(libc::M_MMAP_THRESHOLD, GIVEN_BACK_BYTES);
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = arenas;
}
