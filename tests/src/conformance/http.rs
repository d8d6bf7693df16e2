//! The small HTTP server that some cases read from.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// URLs appear in Dockerfiles and in the recorded history, so the port is fixed.
const PORT: u16 = 18741;

/// `Last-Modified` of every file: the time 1600000000.
const LAST_MODIFIED: &str = "Sun, 13 Sep 2020 12:26:40 GMT";

/// How long a client may be silent within a request.
const PATIENCE: Duration = Duration::from_secs(30);

type Roots = Arc<Mutex<BTreeMap<String, PathBuf>>>;

/// Serves the `http/` directory of each registered case as `http://127.0.0.1:18741/CASE/…` until the process ends.
#[derive(Debug)]
pub struct FileServer {
    roots: Roots,
}

impl FileServer {
    /// Starts serving.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", PORT))?;
        let roots = Roots::default();
        let shared = Arc::clone(&roots);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let roots = Arc::clone(&shared);
                std::thread::spawn(move || answer(stream, &roots));
            }
        });
        Ok(Self { roots })
    }

    /// Serves `dir` for `case` from now on.
    pub fn add(&self, case: &str, dir: &Path) {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).insert(case.to_owned(), dir.to_owned());
    }
}

/// One request per connection. A client that hangs up in the middle is its own problem.
fn answer(stream: TcpStream, roots: &Roots) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 0 && !header.trim().is_empty() {
        header.clear();
    }
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let body = file(target, roots).and_then(|path| fs::read(path).ok());
    let mut stream = stream;
    match (method, body) {
        ("GET" | "HEAD", Some(body)) => {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\
                 Last-Modified: {LAST_MODIFIED}\r\nConnection: close\r\n\r\n",
                body.len()
            )?;
            if method == "GET" {
                stream.write_all(&body)?;
            }
        }
        _ => write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?,
    }
    stream.flush()
}

fn file(target: &str, roots: &Roots) -> Option<PathBuf> {
    let path = target.split('?').next()?.trim_matches('/');
    let (case, rest) = path.split_once('/')?;
    let inside = Path::new(rest).components().all(|part| matches!(part, Component::Normal(_)));
    let root = roots.lock().unwrap_or_else(PoisonError::into_inner).get(case).cloned()?;
    Some(root.join(rest)).filter(|path| inside && path.is_file())
}
