//! Debian's `docker-registry` on a free port.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::process;

/// How long a registry may take to answer after its start; it needs well under a second on an idle machine.
const START: Duration = Duration::from_secs(30);

/// A running registry without authentication; ended when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    /// Starts one that keeps its blobs under `dir`. `Ok(None)` if `docker-registry` is not installed.
    ///
    /// # Errors
    /// If it is installed but does not come up.
    pub fn start(dir: &Path) -> io::Result<Option<Self>> {
        let Some(program) = process::find("docker-registry") else { return Ok(None) };
        fs::create_dir_all(dir)?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let config = dir.join("config.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: '{}'}}\n  \
                 delete: {{enabled: true}}\nhttp:\n  addr: '{address}'\n",
                dir.join("data").display()
            ),
        )?;
        let log = fs::File::create(dir.join("log"))?;
        // setpriv lets it die with the test, however that ends.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut registry = Self { process, address };
        let started = Instant::now();
        while TcpStream::connect(&registry.address).is_err() {
            if let Some(status) = registry.process.try_wait()? {
                let log = fs::read_to_string(dir.join("log"))?;
                return Err(io::Error::other(format!("docker-registry ended with {status}: {log}")));
            }
            if started.elapsed() > START {
                return Err(io::Error::other("docker-registry does not answer"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Some(registry))
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
