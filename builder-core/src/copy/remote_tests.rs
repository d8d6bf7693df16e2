//! ADD of URLs against a server on this machine.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::testing::{Trees, action};
use super::{CopyError, apply, resolve, resolve_with_remote};
use crate::cancel::Cancel;
use crate::context::testing::show;
use crate::context::{FetchedContext, Files, Remote, RemoteError};
use crate::http::{Client, ClientOptions, RetryOptions, Secret};
use crate::oci::Sha256;
use crate::plan::{CopyAction, CopySource};
use crate::rootfs::Rootfs;

/// A server that answers from a function of path and headers, one connection at a time, and remembers what was asked.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(answer: impl Fn(&str, &str) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut reader = BufReader::new(stream.try_clone().expect("clone"));
                let mut head = String::new();
                while reader.read_line(&mut head).is_ok_and(|length| length > 2) {}
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                log.lock().expect("no panic holds it").push(head.clone());
                _ = stream.write_all(answer(&path, &head).as_bytes());
            }
        });
        Self { url, requests }
    }

    fn asked(&self) -> usize {
        self.requests.lock().expect("no panic holds it").len()
    }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn remote(directory: &Path) -> Remote {
    let retry = RetryOptions { attempts: 1, ..RetryOptions::default() };
    let client = Client::new(ClientOptions { retry, ..ClientOptions::default() });
    let secrets = |id: &str| (id == "HTTP_AUTH_TOKEN_127.0.0.1").then(|| Secret::new("t0ken\n"));
    Remote::new(client, &directory.join("urls"), directory, Arc::new(secrets))
}

const MODIFIED: &str = "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n";

fn add(url: &str, flags: &str, destination: &str) -> CopyAction {
    let mut action = action(&format!("ADD {flags} x {destination}").replace("  ", " "));
    action.sources = vec![CopySource::Url(url.to_owned())];
    action
}

fn run(trees: &Trees, action: &CopyAction, remote: &Remote) -> Result<Sha256, CopyError> {
    let cancel = Cancel::default();
    let resolved = resolve_with_remote(action, &Files::empty(), remote, &cancel)?;
    let target = Rootfs::open(trees.target.path()).expect("open");
    apply(action, &resolved, &Files::empty(), &target, &cancel)?;
    Ok(resolved.content_hash(action, &Files::empty(), &cancel)?.whole)
}

#[test]
fn a_url_is_a_file_with_the_servers_time() {
    let server = Server::new(|_, _| answer("200 OK", MODIFIED, "data"));
    let (trees, work) = (Trees::new("", "dir/"), tempfile::tempdir().expect("a temporary directory"));
    let remote = remote(work.path());
    let url = format!("{}/a/data.txt?q=1", server.url);
    run(&trees, &add(&url, "", "/x/"), &remote).expect("added");
    run(&trees, &add(&url, "--chown=1:2 --chmod=755", "/dir"), &remote).expect("added");
    run(&trees, &add(&url, "", "/named"), &remote).expect("added");
    assert_eq!(show(trees.target.path()), "dir/ dir/data.txt@755#1:2=data named@600=data x/ x/data.txt@600=data");
    assert_eq!(trees.mtime("named"), 1_445_412_480);
    let head = server.requests.lock().expect("no panic holds it")[0].to_ascii_lowercase();
    assert!(head.contains("authorization: bearer t0ken\r\n"), "{head}");
    let without = resolve(&add(&url, "", "/x"), &Files::empty(), &Cancel::default());
    assert!(matches!(without, Err(CopyError::NoRemote { .. })));
}

#[test]
fn an_unchanged_url_is_not_sent_again() {
    let server = Server::new(|_, head| match head.contains("\"v1\"") {
        true => answer("304 Not Modified", "", ""),
        false => answer("200 OK", "ETag: \"v1\"\r\n", "data"),
    });
    let (trees, work) = (Trees::new("", ""), tempfile::tempdir().expect("a temporary directory"));
    let action = add(&server.url, "", "/f");
    let first = run(&trees, &action, &remote(work.path())).expect("added");
    assert_eq!(server.asked(), 1);
    let remote = remote(work.path());
    let known = resolve_with_remote(&action, &Files::empty(), &remote, &Cancel::default()).expect("resolved");
    let hash = known.content_hash(&action, &Files::empty(), &Cancel::default()).expect("hashed").whole;
    assert_eq!((hash, server.asked()), (first, 2));
    // The step was not cached after all: now the bytes are needed.
    let target = Rootfs::open(trees.target.path()).expect("open");
    apply(&action, &known, &Files::empty(), &target, &Cancel::default()).expect("applied");
    assert_eq!((server.asked(), &*show(trees.target.path())), (3, "f@600=data"));
    let left: Vec<_> =
        std::fs::read_dir(work.path()).expect("list").map(|entry| entry.expect("entry").path()).collect();
    drop(known);
    assert_eq!(left, [work.path().join("urls")], "downloads are removed");
}

#[test]
fn what_the_server_may_say_wrong() {
    let server = Server::new(|path, _| match path {
        "/gone" => answer("404 Not Found", "", ""),
        "/broken" => answer("500 Internal Server Error", "", ""),
        "/loop" => answer("302 Found", "Location: /loop\r\n", ""),
        "/short" => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nabc".to_owned(),
        _ => answer("200 OK", "", "data"),
    });
    let (trees, work) = (Trees::new("", ""), tempfile::tempdir().expect("a temporary directory"));
    let remote = remote(work.path());
    let error = |path: &str, flags: Option<&str>| {
        let mut action = add(&format!("{}{path}", server.url), "", "/f");
        action.checksum = flags.map(str::to_owned);
        run(&trees, &action, &remote).expect_err(path).to_string()
    };
    assert!(error("/gone", None).contains("invalid response status 404"));
    assert!(error("/broken", None).contains("invalid response status 500"));
    assert!(error("/loop", None).contains("redirect"), "{}", error("/loop", None));
    error("/short", None);
    let zeros = format!("sha256:{}", "0".repeat(64));
    assert_eq!(error("/f", Some(&zeros)), format!("digest mismatch {}: {zeros}", Sha256::of(b"data")));
    assert!(error("/f", Some("md5:0")).contains("invalid checksum"));
    assert_eq!(show(trees.target.path()), "", "nothing half-written");
    let mut action = add(&format!("{}/f", server.url), "", "/f");
    action.checksum = Some(Sha256::of(b"data").to_string());
    run(&trees, &action, &remote).expect("the right checksum");
    let asked = server.asked();
    resolve_with_remote(&action, &Files::empty(), &remote, &Cancel::default()).expect("known by its checksum");
    assert_eq!(server.asked(), asked);
}

#[test]
fn a_download_that_breaks_off_begins_again() {
    let counter = std::sync::atomic::AtomicU32::new(0);
    let server = Server::new(move |_, _| match counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nabc".to_owned(),
        _ => answer("200 OK", "", "0123456789"),
    });
    let (trees, work) = (Trees::new("", ""), tempfile::tempdir().expect("a temporary directory"));
    let delay = std::time::Duration::from_millis(1);
    let retry = RetryOptions { attempts: 2, first_delay: delay, ..RetryOptions::default() };
    let client = Client::new(ClientOptions { retry, ..ClientOptions::default() });
    let remote = Remote::new(client, work.path(), work.path(), Arc::new(|_: &str| None));
    run(&trees, &add(&server.url, "", "/f"), &remote).expect("the second time");
    assert_eq!((server.asked(), &*show(trees.target.path())), (2, "f@600=0123456789"));
}

#[test]
fn a_url_that_changes_between_hash_and_copy_is_an_error() {
    let counter = std::sync::atomic::AtomicU32::new(0);
    let server = Server::new(move |_, head| match head.contains("If-None-Match") || head.contains("if-none-match") {
        true => answer("304 Not Modified", "", ""),
        false => {
            let count = counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            answer("200 OK", "ETag: \"same\"\r\n", &format!("version {count}"))
        }
    });
    let (trees, work) = (Trees::new("", ""), tempfile::tempdir().expect("a temporary directory"));
    let remote = remote(work.path());
    let action = add(&server.url, "", "/f");
    run(&trees, &action, &remote).expect("first");
    let error = run(&trees, &action, &remote).expect_err("changed");
    assert!(matches!(error, CopyError::Remote(RemoteError::Changed { .. })), "{error:?}");
}

#[test]
fn a_url_may_be_a_context() {
    let server = Server::new(|_, _| answer("200 OK", "", "FROM scratch\n"));
    let work = tempfile::tempdir().expect("a temporary directory");
    match remote(work.path()).url_context(&server.url, &Cancel::default()).expect("text") {
        FetchedContext::Dockerfile { text, .. } => assert_eq!(text, b"FROM scratch\n"),
        FetchedContext::Tree(_) => panic!("it is no archive"),
    }
}
