//! Credentials as the RUN sees them: credentials(7), capabilities(7). None of them is real.

use std::sync::Arc;

use rustix::io::Errno;

/// CAP_CHOWN and so on, as bit numbers.
pub mod capability {
    pub const CHOWN: u32 = 0;
    pub const DAC_OVERRIDE: u32 = 1;
    pub const DAC_READ_SEARCH: u32 = 2;
    pub const FOWNER: u32 = 3;
    pub const FSETID: u32 = 4;
    pub const KILL: u32 = 5;
    pub const SETGID: u32 = 6;
    pub const SETUID: u32 = 7;
    pub const SETPCAP: u32 = 8;
    pub const SYS_CHROOT: u32 = 18;
    pub const MKNOD: u32 = 27;
    pub const SETFCAP: u32 = 31;
}

/// Capabilities that follow the user id of file accesses: capabilities(7), "Effect of user ID changes".
const OF_FILES: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 9 | 1 << 27 | 1 << 32;

/// Highest capability of Linux 6.18: CAP_CHECKPOINT_RESTORE.
const LAST_CAPABILITY: u64 = 40;

/// Real, effective and saved id, and the one of file accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    pub real: u32,
    pub effective: u32,
    pub saved: u32,
    pub files: u32,
}

impl Ids {
    const fn all(id: u32) -> Self {
        Self { real: id, effective: id, saved: id, files: id }
    }
}

/// Whom a thread plays.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub user: Ids,
    pub group: Ids,
    pub groups: Arc<[u32]>,
    pub permitted: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub bounding: u64,
    pub ambient: u64,
    pub securebits: u32,
    pub no_new_privs: bool,
    /// `PR_SET_DUMPABLE`. Really it stays set: the supervisor could not read arguments of calls otherwise.
    pub dumpable: bool,
}

/// `SECBIT_KEEP_CAPS`
const KEEP_CAPABILITIES: u32 = 1 << 4;

/// "Leave it" in the calls that set several ids.
const SAME: u32 = u32::MAX;

impl Credentials {
    /// A user with these capabilities if it is root.
    pub fn new(uid: u32, gid: u32, groups: &[u32], capabilities: u64) -> Self {
        let mut sorted = groups.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let own = if uid == 0 { capabilities } else { 0 };
        Self {
            user: Ids::all(uid),
            group: Ids::all(gid),
            groups: sorted.into(),
            permitted: own,
            effective: own,
            inheritable: 0,
            bounding: capabilities,
            ambient: 0,
            securebits: 0,
            no_new_privs: false,
            dumpable: true,
        }
    }

    /// Whether it may.
    pub fn can(&self, capability: u32) -> bool {
        self.effective >> capability & 1 == 1
    }

    /// Whether it is in the group, for file accesses.
    pub fn is_in(&self, gid: u32) -> bool {
        self.group.files == gid || self.groups.binary_search(&gid).is_ok()
    }

    /// The effect of changed user ids on capabilities.
    fn user_changed(&mut self, before: Ids) {
        let now = self.user;
        let has_zero = |ids: Ids| ids.real == 0 || ids.effective == 0 || ids.saved == 0;
        if has_zero(before) && !has_zero(now) {
            if self.securebits & KEEP_CAPABILITIES == 0 {
                self.permitted = 0;
                self.effective = 0;
            }
            self.ambient = 0;
        }
        if before.effective == 0 && now.effective != 0 {
            self.effective = 0;
        }
        if before.effective != 0 && now.effective == 0 {
            self.effective = self.permitted;
        }
        if before.files == 0 && now.files != 0 {
            self.effective &= !OF_FILES;
        }
        if before.files != 0 && now.files == 0 {
            self.effective |= self.permitted & OF_FILES;
        }
    }

    /// setuid(2)
    pub fn set_user(&mut self, id: u32) -> Result<(), Errno> {
        let before = self.user;
        self.user = set_one(before, id, self.can(capability::SETUID))?;
        self.user_changed(before);
        Ok(())
    }

    /// setgid(2)
    pub fn set_group(&mut self, id: u32) -> Result<(), Errno> {
        self.group = set_one(self.group, id, self.can(capability::SETGID))?;
        Ok(())
    }

    /// setreuid(2)
    pub fn set_users(&mut self, real: u32, effective: u32) -> Result<(), Errno> {
        let before = self.user;
        self.user = set_two(before, real, effective, self.can(capability::SETUID))?;
        self.user_changed(before);
        Ok(())
    }

    /// setregid(2)
    pub fn set_groups_ids(&mut self, real: u32, effective: u32) -> Result<(), Errno> {
        self.group = set_two(self.group, real, effective, self.can(capability::SETGID))?;
        Ok(())
    }

    /// setresuid(2)
    pub fn set_all_users(&mut self, ids: [u32; 3]) -> Result<(), Errno> {
        let before = self.user;
        self.user = set_three(before, ids, self.can(capability::SETUID))?;
        self.user_changed(before);
        Ok(())
    }

    /// setresgid(2)
    pub fn set_all_groups(&mut self, ids: [u32; 3]) -> Result<(), Errno> {
        self.group = set_three(self.group, ids, self.can(capability::SETGID))?;
        Ok(())
    }

    /// setfsuid(2): gives the id before.
    pub fn set_files_user(&mut self, id: u32) -> u32 {
        let before = self.user;
        if has(before, id) || self.can(capability::SETUID) {
            self.user.files = id;
            self.user_changed(before);
        }
        before.files
    }

    /// setfsgid(2): gives the id before.
    pub fn set_files_group(&mut self, id: u32) -> u32 {
        let before = self.group;
        if has(before, id) || self.can(capability::SETGID) {
            self.group.files = id;
        }
        before.files
    }

    /// setgroups(2)
    pub fn set_groups(&mut self, mut groups: Vec<u32>) -> Result<(), Errno> {
        if !self.can(capability::SETGID) {
            return Err(Errno::PERM);
        }
        groups.sort_unstable();
        self.groups = groups.into();
        Ok(())
    }

    /// capset(2)
    pub fn set_capabilities(&mut self, effective: u64, permitted: u64, inheritable: u64) -> Result<(), Errno> {
        let all = (1 << (LAST_CAPABILITY + 1)) - 1;
        let (effective, permitted, inheritable) = (effective & all, permitted & all, inheritable & all);
        let known = self.inheritable | if self.can(capability::SETPCAP) { self.bounding } else { self.permitted };
        if permitted & !self.permitted != 0 || effective & !permitted != 0 || inheritable & !known != 0 {
            return Err(Errno::PERM);
        }
        (self.effective, self.permitted, self.inheritable) = (effective, permitted, inheritable);
        self.ambient &= permitted & inheritable;
        Ok(())
    }

    /// The parts of prctl(2) that are about capabilities and who may look into a process.
    pub fn control(&mut self, what: u64, argument: u64, second: u64) -> Result<i64, Errno> {
        let bit = |number: u64| if number <= LAST_CAPABILITY { Ok(1_u64 << number) } else { Err(Errno::INVAL) };
        match what {
            3 => Ok(i64::from(self.dumpable)),
            4 if argument <= 1 => {
                self.dumpable = argument == 1;
                Ok(0)
            }
            7 => Ok(i64::from(self.securebits & KEEP_CAPABILITIES != 0)),
            8 if argument <= 1 => {
                self.securebits =
                    self.securebits & !KEEP_CAPABILITIES | if argument == 1 { KEEP_CAPABILITIES } else { 0 };
                Ok(0)
            }
            23 => Ok(i64::from(self.bounding & bit(argument)? != 0)),
            24 if !self.can(capability::SETPCAP) => Err(Errno::PERM),
            24 => {
                self.bounding &= !bit(argument)?;
                Ok(0)
            }
            27 => Ok(i64::from(self.securebits)),
            28 if !self.can(capability::SETPCAP) => Err(Errno::PERM),
            28 => {
                self.securebits = u32::try_from(argument).map_err(|_| Errno::INVAL)?;
                Ok(0)
            }
            // PR_CAP_AMBIENT: is set, raise, lower, clear all.
            47 => match argument {
                1 => Ok(i64::from(self.ambient & bit(second)? != 0)),
                2 if self.permitted & self.inheritable & bit(second)? == 0 => Err(Errno::PERM),
                2 => {
                    self.ambient |= bit(second)?;
                    Ok(0)
                }
                3 => {
                    self.ambient &= !bit(second)?;
                    Ok(0)
                }
                4 => {
                    self.ambient = 0;
                    Ok(0)
                }
                _ => Err(Errno::INVAL),
            },
            _ => Err(Errno::INVAL),
        }
    }

    /// execve(2) of a file: its setuid owner and setgid group, and its capabilities (permitted, inheritable, effective).
    pub fn execute(&mut self, uid: Option<u32>, gid: Option<u32>, file: Option<(u64, u64, bool)>) {
        let (uid, gid, file) = if self.no_new_privs { (None, None, None) } else { (uid, gid, file) };
        if let Some(uid) = uid {
            self.user.effective = uid;
        }
        if let Some(gid) = gid {
            self.group.effective = gid;
        }
        let changed = uid.is_some() || gid.is_some() || file.is_some();
        (self.user.saved, self.user.files) = (self.user.effective, self.user.effective);
        (self.group.saved, self.group.files) = (self.group.effective, self.group.effective);
        let root = self.user.real == 0 || self.user.effective == 0;
        if changed {
            self.ambient = 0;
        }
        let (permitted, inheritable, effective) = match file {
            _ if root => (u64::MAX, u64::MAX, self.user.effective == 0),
            Some(file) => file,
            None => (0, 0, false),
        };
        self.permitted = self.inheritable & inheritable | permitted & self.bounding | self.ambient;
        self.effective = if effective { self.permitted } else { self.ambient };
        self.securebits &= !KEEP_CAPABILITIES;
        self.dumpable = uid.is_none() && gid.is_none();
    }
}

fn has(ids: Ids, id: u32) -> bool {
    [ids.real, ids.effective, ids.saved, ids.files].contains(&id)
}

fn set_one(ids: Ids, id: u32, may: bool) -> Result<Ids, Errno> {
    if id == SAME {
        return Err(Errno::INVAL);
    }
    if may {
        return Ok(Ids::all(id));
    }
    if id != ids.real && id != ids.saved {
        return Err(Errno::PERM);
    }
    Ok(Ids { effective: id, files: id, ..ids })
}

fn set_two(ids: Ids, real: u32, effective: u32, may: bool) -> Result<Ids, Errno> {
    let mut new = ids;
    if real != SAME {
        if !may && real != ids.real && real != ids.effective {
            return Err(Errno::PERM);
        }
        new.real = real;
    }
    if effective != SAME {
        if !may && ![ids.real, ids.effective, ids.saved].contains(&effective) {
            return Err(Errno::PERM);
        }
        new.effective = effective;
    }
    if real != SAME || effective != SAME && effective != ids.real {
        new.saved = new.effective;
    }
    new.files = new.effective;
    Ok(new)
}

fn set_three(ids: Ids, wanted: [u32; 3], may: bool) -> Result<Ids, Errno> {
    let known = [SAME, ids.real, ids.effective, ids.saved];
    if !may && wanted.iter().any(|id| !known.contains(id)) {
        return Err(Errno::PERM);
    }
    let take = |wanted: u32, now: u32| if wanted == SAME { now } else { wanted };
    let effective = take(wanted[1], ids.effective);
    Ok(Ids { real: take(wanted[0], ids.real), effective, saved: take(wanted[2], ids.saved), files: effective })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: u64 = 0xa804_25fb;

    fn root() -> Credentials {
        Credentials::new(0, 0, &[0], DOCKER)
    }

    #[test]
    fn setuid_drops_everything() {
        let mut me = root();
        me.set_groups(vec![33, 7]).expect("root may");
        me.set_group(33).expect("root may");
        me.set_user(33).expect("root may");
        assert_eq!((me.permitted, me.effective, me.user, me.group), (0, 0, Ids::all(33), Ids::all(33)));
        assert_eq!(me.set_user(0), Err(Errno::PERM));
        assert_eq!(me.set_groups(vec![]), Err(Errno::PERM));
        assert!(me.is_in(7) && me.is_in(33) && !me.is_in(0));
    }

    #[test]
    fn effective_ids_come_back() {
        let mut me = root();
        me.set_all_users([SAME, 5, SAME]).expect("root may");
        assert_eq!((me.effective, me.permitted), (0, DOCKER));
        assert_eq!(me.user, Ids { real: 0, effective: 5, saved: 0, files: 5 });
        me.set_users(SAME, 0).expect("the real one");
        assert_eq!(me.effective, DOCKER);
    }

    #[test]
    fn file_accesses_alone() {
        let mut me = root();
        assert_eq!(me.set_files_user(9), 0);
        assert!(!me.can(capability::DAC_OVERRIDE) && me.can(capability::SETUID));
        assert_eq!(me.set_files_user(0), 9);
        assert!(me.can(capability::DAC_OVERRIDE));
    }

    #[test]
    fn setuid_programs() {
        let mut me = Credentials::new(1000, 1000, &[], DOCKER);
        assert_eq!(me.effective, 0);
        me.execute(None, None, None);
        assert_eq!(me.effective, 0);
        me.execute(Some(0), None, None);
        assert_eq!((me.user.real, me.user.effective, me.effective), (1000, 0, DOCKER));
        let mut careful = Credentials::new(1000, 1000, &[], DOCKER);
        careful.no_new_privs = true;
        careful.execute(Some(0), None, None);
        assert_eq!(careful.user.effective, 1000);
        let mut ping = Credentials::new(1000, 1000, &[], DOCKER);
        ping.execute(None, None, Some((1 << 13, 0, true)));
        assert_eq!(ping.effective, 1 << 13);
    }

    #[test]
    fn dumpable_until_exec() {
        let mut me = root();
        assert_eq!(me.control(3, 0, 0), Ok(1));
        assert_eq!(me.control(4, 0, 0), Ok(0));
        assert_eq!(me.control(3, 0, 0), Ok(0));
        assert_eq!(me.control(4, 2, 0), Err(Errno::INVAL));
        me.execute(None, None, None);
        assert_eq!(me.control(3, 0, 0), Ok(1));
    }

    #[test]
    fn capabilities_only_go() {
        let mut me = root();
        assert_eq!(me.set_capabilities(u64::MAX, u64::MAX, 0), Err(Errno::PERM));
        me.set_capabilities(1, 3, 0).expect("fewer");
        assert_eq!((me.effective, me.permitted), (1, 3));
        assert_eq!(me.control(23, 41, 0), Err(Errno::INVAL));
        assert_eq!(me.control(23, 0, 0), Ok(1));
        assert_eq!(me.control(24, 0, 0), Err(Errno::PERM), "SETPCAP is gone");
    }
}
