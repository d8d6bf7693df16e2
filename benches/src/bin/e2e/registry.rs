//! Debian's registry on a free port, over a storage directory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Result;

/// A running registry; ends with this value.
pub struct Registry {
    child: Child,
    /// On loopback.
    pub port: u16,
    storage: PathBuf,
}

impl Registry {
    /// Starts one over `storage`.
    pub fn start(storage: &Path) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        fs::create_dir_all(storage)?;
        let config = storage.with_extension("yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \
                 '127.0.0.1:{port}'}}\n",
                storage.display()
            ),
        )?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("docker-registry: {error}; Debian's package of that name has it"))?;
        let registry = Self { child, port, storage: storage.to_owned() };
        for _ in 0..400 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(registry);
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        Err("docker-registry does not answer".into())
    }

    /// Starts one that has what lies in `pristine`, which it shares by hard links: a registry never changes a file.
    pub fn with(pristine: &Path, storage: &Path) -> Result<Self> {
        fs::create_dir_all(storage.parent().ok_or("the storage has no parent")?)?;
        let status = Command::new("cp").arg("-al").arg(pristine).arg(storage).status()?;
        if !status.success() {
            return Err(format!("cp -al {}: {status}", pristine.display()).into());
        }
        Self::start(storage)
    }

    /// Ends it and removes what it has.
    pub fn remove(self) {
        let storage = self.storage.clone();
        drop(self);
        let _ = fs::remove_dir_all(storage);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
