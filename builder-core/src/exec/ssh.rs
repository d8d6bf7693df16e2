//! An ssh agent for a RUN (checklist M-19): a socket with the owner and mode that the mount asks for, whose connections go on
//! to the user's agent, or are answered from keys. The agent's own socket is never in the tree, so neither its place nor its
//! owner shows.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use crate::ssh::{self, SshKey};

/// Name of the socket in its directory.
const NAME: &str = "agent";

/// What `--ssh` gives.
#[derive(Debug, Clone)]
pub enum SshAgent {
    /// The socket of an agent.
    Socket(PathBuf),
    /// Keys to sign with.
    Keys(Arc<[SshKey]>),
}

/// A socket that leads to an agent until it is dropped.
pub(super) struct SshForward {
    socket: PathBuf,
    short: PathBuf,
    ended: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
    _directory: TempDir,
    /// Behind `short`.
    _open: File,
}

impl SshForward {
    /// Offers `agent` in a new socket below `temp`; without `owner` it belongs to this process's user.
    ///
    /// # Errors
    /// If there is no agent, or the socket cannot be made or given to its owner.
    pub(super) fn start(agent: &SshAgent, temp: &Path, mode: u32, owner: Option<(u32, u32)>) -> io::Result<Self> {
        if let SshAgent::Socket(path) = agent {
            // Whether somebody is there should be known before a command asks.
            UnixStream::connect(path)?;
        }
        let directory = tempfile::tempdir_in(temp)?;
        let open = File::open(directory.path())?;
        // The address of a socket holds 108 bytes (unix(7)), which a work dir may exceed.
        let short = Path::new("/proc/self/fd").join(open.as_raw_fd().to_string()).join(NAME);
        let listener = UnixListener::bind(&short)?;
        fs::set_permissions(&short, Permissions::from_mode(mode & 0o7777))?;
        if let Some((uid, gid)) = owner {
            chown(&short, Some(uid), Some(gid))?;
        }
        let ended = Arc::new(AtomicBool::new(false));
        let (flag, agent) = (Arc::clone(&ended), agent.clone());
        let acceptor = thread::spawn(move || accept(&listener, &agent, &flag));
        let socket = directory.path().join(NAME);
        Ok(Self { socket, short, ended, acceptor: Some(acceptor), _directory: directory, _open: open })
    }

    /// Where the socket is.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for SshForward {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes the acceptor.
        let woken = UnixStream::connect(&self.short).is_ok();
        if let Some(acceptor) = self.acceptor.take().filter(|_| woken)
            && acceptor.join().is_err()
        {
            tracing::debug!("the thread that forwards an ssh agent panicked");
        }
    }
}

/// Takes connections until it is told to end. Each lasts as long as both sides hold it; those of a RUN end with its processes.
fn accept(listener: &UnixListener, agent: &SshAgent, ended: &AtomicBool) {
    for client in listener.incoming() {
        if ended.load(Ordering::Acquire) {
            return;
        }
        let connected = client.and_then(|client| match agent {
            SshAgent::Socket(path) => connect((client, UnixStream::connect(path)?)),
            SshAgent::Keys(keys) => {
                let keys = Arc::clone(keys);
                thread::Builder::new().spawn(move || serve(&client, &keys)).map(drop)
            }
        });
        if let Err(error) = connected {
            // The client sees that its connection is closed; what the agent says is the user's business alone.
            tracing::debug!(%error, "an ssh agent cannot be reached");
        }
    }
}

fn serve(client: &UnixStream, keys: &[SshKey]) {
    if let Err(error) = ssh::serve(client, keys) {
        tracing::debug!(%error, "a connection to the ssh agent broke");
    }
}

/// Lets bytes flow in both directions.
fn connect((client, agent): (UnixStream, UnixStream)) -> io::Result<()> {
    let (client_too, agent_too) = (client.try_clone()?, agent.try_clone()?);
    thread::spawn(move || flow(client, agent));
    thread::spawn(move || flow(agent_too, client_too));
    Ok(())
}

fn flow(mut from: UnixStream, mut to: UnixStream) {
    if let Err(error) = io::copy(&mut from, &mut to) {
        tracing::debug!(%error, "a connection to an ssh agent broke");
    }
    // The other side may be gone already.
    _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn bytes_flow_and_the_socket_goes() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let agent = temp.path().join("real");
        let listener = UnixListener::bind(&agent).expect("a socket");
        let echo = thread::spawn(move || {
            // The first connection only looks whether somebody is there.
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).expect("bytes");
                stream.write_all(&bytes).expect("bytes go back");
            }
        });
        let deep = temp.path().join("d".repeat(120));
        fs::create_dir(&deep).expect("a directory");
        let forward = SshForward::start(&SshAgent::Socket(agent), &deep, 0o640, Some((0, 0))).expect("it starts");
        let metadata = fs::metadata(forward.socket()).expect("the socket");
        assert_eq!(metadata.mode() & 0o7777, 0o640);
        let mut stream = UnixStream::connect(&forward.short).expect("a connection");
        stream.write_all(b"question").expect("bytes");
        stream.shutdown(Shutdown::Write).expect("an end");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, "question");
        drop(forward);
        echo.join().expect("no panic");
        assert_eq!(fs::read_dir(&deep).expect("a directory").count(), 0);
    }

    #[test]
    fn no_agent_is_an_error() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let none = SshAgent::Socket(temp.path().join("none"));
        assert!(SshForward::start(&none, temp.path(), 0o600, Some((0, 0))).is_err());
    }
}
