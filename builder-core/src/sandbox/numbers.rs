//! Numbers of system calls that the supervisors of several tiers mark, and those that libc lacks.

use libc::c_long;

/// Numbers that libc lacks; equal on all machines.
pub mod late {
    use libc::c_long;

    pub const OPEN_TREE: c_long = 428;
    pub const MOVE_MOUNT: c_long = 429;
    pub const FSOPEN: c_long = 430;
    pub const FSPICK: c_long = 433;
    pub const MOUNT_SETATTR: c_long = 442;
    pub const FCHMODAT2: c_long = 452;
    pub const STATMOUNT: c_long = 457;
    pub const LISTMOUNT: c_long = 458;
    pub const SETXATTRAT: c_long = 463;
    pub const GETXATTRAT: c_long = 464;
    pub const LISTXATTRAT: c_long = 465;
    pub const REMOVEXATTRAT: c_long = 466;
}

/// renameat(2), which libc does not have for every C library.
pub const RENAMEAT: c_long = if cfg!(target_arch = "x86_64") { 264 } else { 38 };

/// Calls that change users and groups, but for supplementary ones.
pub const CHANGE_USER: [c_long; 8] = [
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
];
