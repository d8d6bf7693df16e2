//! Whom sockets say to be connected with (`SO_PEERCRED`, unix(7)): the kernel knows one user for the whole RUN, and servers such as
//! PostgreSQL decide by it.
//!
//! # Limitations
//! It is whom the other process plays when it is asked, not when it connected. Of one that has ended, or is outside of the RUN, root is told.
//! `SO_PEERGROUPS` and `SCM_CREDENTIALS` are the kernel's.

use rustix::io::Errno;

use super::tasks::lock;
use super::world::Caller;

/// `struct ucred`: process, user and group, four bytes each.
const BYTES: usize = 12;

impl Caller<'_> {
    /// Writes whom the other process plays over what the kernel has answered to getsockopt(2).
    ///
    /// # Errors
    /// `EFAULT`
    pub fn show_peer(&self) -> Result<(), Errno> {
        let [_, _, _, value, length, _] = self.call.arguments;
        let length = self.read(length, 4)?.try_into().map_or(0, u32::from_ne_bytes);
        let length = BYTES.min(length as usize);
        let mut bytes = self.read(value, length)?;
        let Some(process) = bytes.first_chunk().copied().map(i32::from_ne_bytes).filter(|process| *process > 0) else {
            // Not connected.
            return Ok(());
        };
        let (user, group) = self.world.tasks.get(process).map_or((0, 0), |task| {
            let credentials = lock(&task.credentials);
            (credentials.user.effective, credentials.group.effective)
        });
        bytes.truncate(4);
        bytes.extend(user.to_ne_bytes());
        bytes.extend(group.to_ne_bytes());
        bytes.truncate(length);
        self.write(value, &bytes)
    }
}
