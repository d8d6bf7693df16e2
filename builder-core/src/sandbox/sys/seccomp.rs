//! The system calls a RUN may not make: Docker's default profile for its default capabilities (checklist R-11), as a filter.
//!
//! Docker lists what is allowed; here stands what that list leaves out, because it is shorter and gives the same answers:
//! `EPERM` for the calls in [`denied`], for namespaces in clone(2), for two socket families and unusual personalities;
//! `ENOSYS` for clone3(2), whose flags a filter cannot see, and for calls newer than the profile, so that programs fall
//! back. Calls of 32-bit programs are filtered by their own numbers; the x32 ABI does not exist in here.

use libc::sock_filter;

/// The newest call that Docker's profile of August 2026 knows: `removexattrat`, the same number on all architectures.
const NEWEST_CALL: u32 = 466;

/// `CLONE_NEW…` flags except `CLONE_NEWTIME`, which clone(2) cannot take: the mask of Docker's profile.
const NAMESPACE_FLAGS: u32 = 0x7E02_0000;

/// Socket families that reach outside of every namespace: AF_ALG, AF_VSOCK.
const DENIED_FAMILIES: [u32; 2] = [38, 40];

/// personality(2): Linux, Linux32, each with UNAME26, and "only ask".
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, u32::MAX];

/// One architecture, as the `arch` field of `struct seccomp_data` names it.
struct Architecture {
    /// `AUDIT_ARCH_…`, linux/audit.h.
    audit: u32,
    denied: &'static [(&'static str, u32)],
    clone: u32,
    socket: u32,
    personality: u32,
    /// Numbers from here on are other things than calls added later: arm's private calls.
    private: Option<u32>,
    /// Numbers from here on do not exist: x32.
    absent: Option<u32>,
}

/// clone3 has one number everywhere.
const CLONE3: u32 = 435;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        audit: 0xC000_003E,
        denied: denied::X86_64,
        clone: 56,
        socket: 41,
        personality: 135,
        private: None,
        absent: Some(0x4000_0000),
    },
    Architecture {
        audit: 0x4000_0003,
        denied: denied::I386,
        clone: 120,
        socket: 359,
        personality: 136,
        private: None,
        absent: None,
    },
];

#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        audit: 0xC000_00B7,
        denied: denied::AARCH64,
        clone: 220,
        socket: 198,
        personality: 92,
        private: None,
        absent: None,
    },
    Architecture {
        audit: 0x4000_0028,
        denied: denied::ARM,
        clone: 120,
        socket: 281,
        personality: 136,
        private: Some(0xF_0000),
        absent: None,
    },
];

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURES: &[Architecture] = &[];

// Offsets in struct seccomp_data, linux/seccomp.h. The low half of an argument comes first: both machines are little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const MISSING: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// The filter; `None` on machines it is not written for.
pub fn filter() -> Option<Vec<sock_filter>> {
    if ARCHITECTURES.is_empty() {
        return None;
    }
    let mut program = Vec::new();
    for architecture in ARCHITECTURES {
        let body = body(architecture);
        program.push(load(ARCHITECTURE));
        program.push(jump(libc::BPF_JEQ, architecture.audit, 1, 0));
        // Conditional jumps reach 255 instructions, this one any number.
        let length = u32::try_from(body.len()).expect("a filter has at most 4096 instructions");
        program.push(instruction(libc::BPF_JMP | libc::BPF_JA, length, 0, 0));
        program.extend(body);
    }
    program.push(answer(DENY));
    Some(program)
}

fn body(architecture: &Architecture) -> Vec<sock_filter> {
    let mut body = vec![load(NUMBER)];
    if let Some(absent) = architecture.absent {
        body.extend([jump(libc::BPF_JGE, absent, 0, 1), answer(MISSING)]);
    }
    if let Some(private) = architecture.private {
        body.extend([jump(libc::BPF_JGE, private, 0, 1), answer(ALLOW)]);
    }
    body.extend([jump(libc::BPF_JGT, NEWEST_CALL, 0, 1), answer(MISSING)]);
    body.extend([jump(libc::BPF_JEQ, CLONE3, 0, 1), answer(MISSING)]);
    for &(_, number) in architecture.denied.iter().chain(denied::NEW) {
        body.extend([jump(libc::BPF_JEQ, number, 0, 1), answer(DENY)]);
    }
    let in_argument = |test: u16, values: &[u32], met: u32, otherwise: u32| {
        let mut rule = vec![load(FIRST_ARGUMENT)];
        rule.extend(values.iter().flat_map(|&value| [jump(test, value, 0, 1), answer(met)]));
        rule.push(answer(otherwise));
        rule
    };
    for (number, rule) in [
        (architecture.clone, in_argument(libc::BPF_JSET as u16, &[NAMESPACE_FLAGS], DENY, ALLOW)),
        (architecture.socket, in_argument(libc::BPF_JEQ as u16, &DENIED_FAMILIES, DENY, ALLOW)),
        (architecture.personality, in_argument(libc::BPF_JEQ as u16, &PERSONALITIES, ALLOW, DENY)),
    ] {
        let length = u8::try_from(rule.len()).expect("rules have a dozen instructions");
        body.push(jump(libc::BPF_JEQ, number, 0, length));
        body.extend(rule);
    }
    body.push(answer(ALLOW));
    body
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

fn jump(test: impl Into<u32>, value: u32, met: u8, otherwise: u8) -> sock_filter {
    instruction(libc::BPF_JMP | test.into() | libc::BPF_K, value, met, otherwise)
}

fn answer(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, action, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("BPF codes have 8 bits"), jt, jf, k }
}

/// What Docker's profile does not allow a container with default capabilities, by architecture. Calls that any program may
/// meet without harm (old forms of stat, signal and the like, which libseccomp does not list for 32 bits) are left out.
mod denied {
    #![allow(dead_code, reason = "each machine uses two of the four")]

    /// Calls since Linux 5.1, which have one number everywhere.
    pub const NEW: &[(&str, u32)] = &[
        ("io_uring_setup", 425),
        ("io_uring_enter", 426),
        ("io_uring_register", 427),
        ("open_tree", 428),
        ("move_mount", 429),
        ("fsopen", 430),
        ("fsconfig", 431),
        ("fsmount", 432),
        ("fspick", 433),
        ("pidfd_getfd", 438),
        ("process_madvise", 440),
        ("mount_setattr", 442),
        ("quotactl_fd", 443),
        ("set_mempolicy_home_node", 450),
        ("lsm_get_self_attr", 459),
        ("lsm_set_self_attr", 460),
        ("lsm_list_modules", 461),
    ];

    /// x86-64: asm/unistd.h.
    pub const X86_64: &[(&str, u32)] = &[
        ("syslog", 103),
        ("uselib", 134),
        ("ustat", 136),
        ("sysfs", 139),
        ("vhangup", 153),
        ("pivot_root", 155),
        ("_sysctl", 156),
        ("acct", 163),
        ("settimeofday", 164),
        ("mount", 165),
        ("umount2", 166),
        ("swapon", 167),
        ("swapoff", 168),
        ("reboot", 169),
        ("sethostname", 170),
        ("setdomainname", 171),
        ("iopl", 172),
        ("ioperm", 173),
        ("create_module", 174),
        ("init_module", 175),
        ("delete_module", 176),
        ("get_kernel_syms", 177),
        ("query_module", 178),
        ("quotactl", 179),
        ("nfsservctl", 180),
        ("afs_syscall", 183),
        ("tuxcall", 184),
        ("security", 185),
        ("lookup_dcookie", 212),
        ("clock_settime", 227),
        ("vserver", 236),
        ("mbind", 237),
        ("set_mempolicy", 238),
        ("get_mempolicy", 239),
        ("kexec_load", 246),
        ("add_key", 248),
        ("request_key", 249),
        ("keyctl", 250),
        ("migrate_pages", 256),
        ("unshare", 272),
        ("move_pages", 279),
        ("perf_event_open", 298),
        ("fanotify_init", 300),
        ("open_by_handle_at", 304),
        ("setns", 308),
        ("kcmp", 312),
        ("finit_module", 313),
        ("kexec_file_load", 320),
        ("bpf", 321),
        ("userfaultfd", 323),
    ];

    /// 32-bit programs on x86-64: asm/unistd.h.
    pub const I386: &[(&str, u32)] = &[
        ("mount", 21),
        ("umount", 22),
        ("stime", 25),
        ("acct", 51),
        ("umount2", 52),
        ("ustat", 62),
        ("sethostname", 74),
        ("settimeofday", 79),
        ("uselib", 86),
        ("swapon", 87),
        ("reboot", 88),
        ("ioperm", 101),
        ("syslog", 103),
        ("iopl", 110),
        ("vhangup", 111),
        ("idle", 112),
        ("vm86old", 113),
        ("swapoff", 115),
        ("setdomainname", 121),
        ("create_module", 127),
        ("init_module", 128),
        ("delete_module", 129),
        ("get_kernel_syms", 130),
        ("quotactl", 131),
        ("bdflush", 134),
        ("sysfs", 135),
        ("afs_syscall", 137),
        ("_sysctl", 149),
        ("vm86", 166),
        ("query_module", 167),
        ("nfsservctl", 169),
        ("pivot_root", 217),
        ("lookup_dcookie", 253),
        ("clock_settime", 264),
        ("vserver", 273),
        ("mbind", 274),
        ("get_mempolicy", 275),
        ("set_mempolicy", 276),
        ("kexec_load", 283),
        ("add_key", 286),
        ("request_key", 287),
        ("keyctl", 288),
        ("migrate_pages", 294),
        ("unshare", 310),
        ("move_pages", 317),
        ("perf_event_open", 336),
        ("fanotify_init", 338),
        ("open_by_handle_at", 342),
        ("setns", 346),
        ("kcmp", 349),
        ("finit_module", 350),
        ("bpf", 357),
        ("userfaultfd", 374),
        ("clock_settime64", 404),
    ];

    /// aarch64: asm/unistd.h.
    pub const AARCH64: &[(&str, u32)] = &[
        ("lookup_dcookie", 18),
        ("umount2", 39),
        ("mount", 40),
        ("pivot_root", 41),
        ("nfsservctl", 42),
        ("vhangup", 58),
        ("quotactl", 60),
        ("acct", 89),
        ("unshare", 97),
        ("kexec_load", 104),
        ("init_module", 105),
        ("delete_module", 106),
        ("clock_settime", 112),
        ("syslog", 116),
        ("reboot", 142),
        ("sethostname", 161),
        ("setdomainname", 162),
        ("settimeofday", 170),
        ("add_key", 217),
        ("request_key", 218),
        ("keyctl", 219),
        ("swapon", 224),
        ("swapoff", 225),
        ("mbind", 235),
        ("get_mempolicy", 236),
        ("set_mempolicy", 237),
        ("migrate_pages", 238),
        ("move_pages", 239),
        ("perf_event_open", 241),
        ("fanotify_init", 262),
        ("open_by_handle_at", 265),
        ("setns", 268),
        ("kcmp", 272),
        ("finit_module", 273),
        ("bpf", 280),
        ("userfaultfd", 282),
        ("kexec_file_load", 294),
    ];

    /// 32-bit programs on aarch64: asm/unistd.h.
    pub const ARM: &[(&str, u32)] = &[
        ("mount", 21),
        ("acct", 51),
        ("umount2", 52),
        ("ustat", 62),
        ("sethostname", 74),
        ("settimeofday", 79),
        ("uselib", 86),
        ("swapon", 87),
        ("reboot", 88),
        ("syslog", 103),
        ("vhangup", 111),
        ("swapoff", 115),
        ("setdomainname", 121),
        ("init_module", 128),
        ("delete_module", 129),
        ("quotactl", 131),
        ("bdflush", 134),
        ("sysfs", 135),
        ("_sysctl", 149),
        ("nfsservctl", 169),
        ("pivot_root", 218),
        ("lookup_dcookie", 249),
        ("clock_settime", 262),
        ("pciconfig_iobase", 271),
        ("pciconfig_read", 272),
        ("add_key", 309),
        ("request_key", 310),
        ("keyctl", 311),
        ("vserver", 313),
        ("mbind", 319),
        ("get_mempolicy", 320),
        ("set_mempolicy", 321),
        ("unshare", 337),
        ("move_pages", 344),
        ("kexec_load", 347),
        ("perf_event_open", 364),
        ("fanotify_init", 367),
        ("open_by_handle_at", 371),
        ("setns", 375),
        ("kcmp", 378),
        ("finit_module", 379),
        ("bpf", 386),
        ("userfaultfd", 388),
        ("migrate_pages", 400),
        ("kexec_file_load", 401),
        ("clock_settime64", 404),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with the filter: the few instructions that it uses.
    fn run(filter: &[sock_filter], architecture: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let now = filter[at];
            let code = u32::from(now.code);
            at += 1;
            if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
                accumulator = match now.k {
                    NUMBER => number,
                    ARCHITECTURE => architecture,
                    FIRST_ARGUMENT => argument,
                    other => panic!("loads offset {other}"),
                };
            } else if code == libc::BPF_RET | libc::BPF_K {
                return now.k;
            } else if code == libc::BPF_JMP | libc::BPF_JA {
                at += now.k as usize;
            } else {
                let met = match code & 0xf0 {
                    test if test == libc::BPF_JEQ => accumulator == now.k,
                    test if test == libc::BPF_JGT => accumulator > now.k,
                    test if test == libc::BPF_JGE => accumulator >= now.k,
                    test if test == libc::BPF_JSET => accumulator & now.k != 0,
                    other => panic!("instruction {other}"),
                };
                at += usize::from(if met { now.jt } else { now.jf });
            }
        }
    }

    #[track_caller]
    fn check(architecture: &Architecture, number: u32, argument: u32, expected: u32) {
        let filter = filter().expect("written for this machine");
        let answer = run(&filter, architecture.audit, number, argument);
        assert_eq!(answer, expected, "call {number} with {argument:#x} on {:#x}", architecture.audit);
    }

    #[test]
    fn answers() {
        for architecture in ARCHITECTURES {
            for &(_, number) in architecture.denied.iter().chain(denied::NEW) {
                check(architecture, number, 0, DENY);
            }
            check(architecture, CLONE3, 0, MISSING);
            check(architecture, NEWEST_CALL, 0, ALLOW);
            check(architecture, NEWEST_CALL + 1, 0, MISSING);
            check(architecture, architecture.clone, libc::SIGCHLD as u32, ALLOW);
            check(architecture, architecture.clone, libc::CLONE_NEWUSER as u32 | 17, DENY);
            check(architecture, architecture.socket, libc::AF_INET as u32, ALLOW);
            check(architecture, architecture.socket, 38, DENY);
            check(architecture, architecture.socket, 39, ALLOW);
            check(architecture, architecture.socket, 40, DENY);
            check(architecture, architecture.personality, 0, ALLOW);
            check(architecture, architecture.personality, u32::MAX, ALLOW);
            check(architecture, architecture.personality, 0x0040_0000, DENY);
        }
    }

    #[test]
    fn unknown_architectures_may_do_nothing() {
        let filter = filter().expect("written for this machine");
        assert_eq!(run(&filter, 0x1234, 0, 0), DENY);
        assert!(filter.len() < 4096, "{}", filter.len());
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn x32_does_not_exist() {
        check(&ARCHITECTURES[0], 0x4000_0000 + 1, 0, MISSING);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn everyday_calls_are_allowed() {
        for number in [libc::SYS_read, libc::SYS_ptrace, libc::SYS_chroot, libc::SYS_mknod, libc::SYS_setxattr] {
            check(&ARCHITECTURES[0], number as u32, 0, ALLOW);
        }
        for &(name, number) in denied::X86_64.iter().chain(denied::NEW) {
            let expected = match name {
                "mount" => libc::SYS_mount,
                "bpf" => libc::SYS_bpf,
                "keyctl" => libc::SYS_keyctl,
                "unshare" => libc::SYS_unshare,
                "io_uring_setup" => libc::SYS_io_uring_setup,
                _ => continue,
            };
            assert_eq!(i64::from(number), expected, "{name}");
        }
    }
}
