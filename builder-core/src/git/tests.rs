use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use super::*;

/// Runs git in `directory`; panics with its words if it fails.
fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(directory)
        .args(["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"])
        .args(arguments)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_COMMITTER_DATE", "1600000000 +0000")
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A repository with two commits, a branch, an annotated tag, a link, a program and a submodule.
fn repository(top: &Path) -> std::path::PathBuf {
    let inner = top.join("inner.git");
    let outer = top.join("outer.git");
    for (path, name) in [(&inner, "inner"), (&outer, "outer")] {
        fs::create_dir(path).expect("directory");
        git(path, &["init", "-q", "-b", "main"]);
        fs::write(path.join("file"), name).expect("file");
        git(path, &["add", "-A"]);
        git(path, &["commit", "-q", "-m", "first"]);
    }
    git(&outer, &["submodule", "--quiet", "add", "../inner.git", "sub"]);
    fs::create_dir(outer.join("bin")).expect("directory");
    fs::write(outer.join("bin/tool"), "#!/bin/sh\n").expect("file");
    fs::set_permissions(outer.join("bin/tool"), fs::Permissions::from_mode(0o755)).expect("mode");
    std::os::unix::fs::symlink("file", outer.join("link")).expect("link");
    git(&outer, &["add", "-A"]);
    git(&outer, &["commit", "-q", "-m", "second"]);
    git(&outer, &["tag", "-a", "v1", "-m", "v1"]);
    git(&outer, &["branch", "other", "HEAD~1"]);
    // What hosting services allow.
    git(&outer, &["config", "uploadpack.allowAnySHA1InWant", "true"]);
    git(&inner, &["config", "uploadpack.allowAnySHA1InWant", "true"]);
    outer
}

fn request(url: &str, reference: Option<&str>) -> GitRequest {
    GitRequest {
        ssh: SshAccess::default(),
        url: url.to_owned(),
        reference: reference.map(str::to_owned),
        commit: None,
        depth: std::num::NonZeroU32::new(1),
        keep_git_dir: false,
        submodules: false,
        authorization: None,
    }
}

fn fetch_into(top: &Path, request: &GitRequest) -> (Result<Commit, GitError>, std::path::PathBuf) {
    let directory = tempfile::tempdir_in(top).expect("directory").keep();
    let client = http::Client::new(http::ClientOptions::default());
    (checkout(request, &directory, &client, &Disk::default(), &Cancel::default()), directory)
}

#[test]
fn what_is_fetched_counts_before_and_after() {
    let top = tempfile::tempdir().expect("directory");
    let outer = repository(top.path());
    let mut noise = 1_u32;
    let mut random = || {
        noise ^= noise << 13;
        noise ^= noise >> 17;
        noise ^= noise << 5;
        noise.to_le_bytes()
    };
    let bytes: Vec<u8> = (0..200_000).flat_map(|_| random()).collect();
    fs::write(outer.join("large"), bytes).expect("file");
    git(&outer, &["add", "-A"]);
    git(&outer, &["commit", "-q", "-m", "large"]);
    let directory = tempfile::tempdir_in(top.path()).expect("directory");
    let client = http::Client::new(http::ClientOptions::default());
    let request = request(&outer.display().to_string(), None);
    let checkout = |budget| {
        let directory = tempfile::tempdir_in(directory.path()).expect("directory").keep();
        let disk = Disk::limited(budget, 0);
        (checkout(&request, &directory, &client, &disk, &Cancel::default()), disk)
    };
    let (refused, disk) = checkout(100_000);
    assert!(refused.is_err() && disk.refused().is_some(), "{refused:?}");
    let (fetched, disk) = checkout(10_000_000);
    fetched.expect("there is room");
    assert_eq!(disk.refused(), None);
}

/// All paths below `top`, sorted.
fn paths(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![top.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("directory") {
            let path = entry.expect("entry").path();
            let name = path.strip_prefix(top).expect("below top").to_string_lossy().into_owned();
            if name == ".git" {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                pending.push(path);
            }
            found.push(name);
        }
    }
    found.sort();
    found
}

/// Whether git can be run; says why not.
fn can_run() -> bool {
    let can = Command::new("git").arg("--version").output().is_ok_and(|output| output.status.success());
    if !can {
        use std::io::stderr;
        _ = writeln!(stderr(), "skipped: git is not installed");
    }
    can
}

#[test]
fn a_commit_becomes_files() {
    if !can_run() {
        return;
    }
    let top = tempfile::tempdir().expect("directory");
    let outer = repository(top.path());
    let url = format!("file://{}", outer.display());
    let head = git(&outer, &["rev-parse", "HEAD"]);
    let first = git(&outer, &["rev-parse", "HEAD~1"]);
    let all = vec![".gitmodules", "bin", "bin/tool", "file", "link", "sub"];
    for (reference, commit, expected) in [
        (None, &head, all.clone()),
        (Some("main"), &head, all.clone()),
        (Some("v1"), &head, all.clone()),
        (Some("refs/heads/other"), &first, vec!["file"]),
        (Some(first.as_str()), &first, vec!["file"]),
    ] {
        let (result, directory) = fetch_into(top.path(), &request(&url, reference));
        let found = result.unwrap_or_else(|error| panic!("{reference:?}: {error}"));
        assert_eq!((&found.id, found.time), (commit, 1_600_000_000), "{reference:?}");
        assert_eq!(paths(&directory), expected, "{reference:?}");
        assert!(!directory.join(".git").exists());
        if expected.len() > 1 {
            let mode = |name: &str| fs::metadata(directory.join(name)).expect(name).permissions().mode() & 0o7777;
            assert_eq!((mode("bin/tool"), mode("file"), mode("bin")), (0o755, 0o644, 0o755));
            assert_eq!(fs::read_link(directory.join("link")).expect("a link"), Path::new("file"));
        }
    }
}

#[test]
fn submodules_and_the_git_directory_come_when_asked_for() {
    if !can_run() {
        return;
    }
    let top = tempfile::tempdir().expect("directory");
    let outer = repository(top.path());
    let url = format!("file://{}", outer.display());
    let with = GitRequest { submodules: true, keep_git_dir: true, ..request(&url, Some("main")) };
    let (result, directory) = fetch_into(top.path(), &with);
    result.expect("fetches");
    assert_eq!(fs::read_to_string(directory.join("sub/file")).expect("submodule's file"), "inner");
    assert_eq!(git(&directory, &["rev-parse", "HEAD"]), git(&outer, &["rev-parse", "HEAD"]));
    assert_eq!(git(&directory, &["status", "--porcelain", "--ignore-submodules=all"]), "");
    assert_eq!(git(&directory, &["config", "remote.origin.url"]).trim(), url);
    assert_eq!(git(&directory, &["config", "remote.origin.fetch"]).trim(), "+refs/heads/*:refs/remotes/origin/*");
}

#[test]
fn what_is_not_there_is_named() {
    if !can_run() {
        return;
    }
    let top = tempfile::tempdir().expect("directory");
    let outer = repository(top.path());
    let url = format!("file://{}", outer.display());
    for reference in ["nope", "refs/heads/nope", "0123456789012345678901234567890123456789"] {
        let (result, directory) = fetch_into(top.path(), &request(&url, Some(reference)));
        let error = result.expect_err("there is no such reference");
        assert!(matches!(error, GitError::NoSuchReference { .. }), "{reference}: {error}");
        assert_eq!(paths(&directory), Vec::<String>::new());
    }
    let (result, _) = fetch_into(top.path(), &request(&format!("{url}-nope"), None));
    assert!(matches!(result, Err(GitError::Fetch { .. })), "{result:?}");
}

#[test]
fn http_is_spoken_through_our_own_client() {
    if !can_run() {
        return;
    }
    let top = tempfile::tempdir().expect("directory");
    let outer = repository(top.path());
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("an address").port();
    let root = top.path().to_owned();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let root = root.clone();
            std::thread::spawn(move || backend(stream.expect("a connection"), &root));
        }
    });
    let url = format!("http://127.0.0.1:{port}/outer.git");
    let (denied, _) = fetch_into(top.path(), &request(&url, Some("main")));
    assert!(matches!(&denied, Err(GitError::Fetch { reason, .. }) if reason.contains("401")), "{denied:?}");
    let authorization = Some(http::Secret::new("Bearer token"));
    let with = GitRequest { submodules: true, authorization, ..request(&url, Some("main")) };
    let (result, directory) = fetch_into(top.path(), &with);
    assert_eq!(result.expect("fetches").id, git(&outer, &["rev-parse", "HEAD"]));
    assert_eq!(fs::read_to_string(directory.join("sub/file")).expect("submodule's file"), "inner");
}

/// One request to `git http-backend` (a CGI program), which asks for a token.
fn backend(mut stream: TcpStream, root: &Path) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("a request line");
    let words: Vec<&str> = line.split_whitespace().collect();
    let (method, target) = (words[0].to_owned(), words[1].to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let (mut length, mut content_type, mut protocol, mut allowed) = (0, String::new(), String::new(), false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).expect("a header");
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().expect("a number"),
            "content-type" => content_type = value.to_owned(),
            "git-protocol" => protocol = value.to_owned(),
            "authorization" => allowed = value == "Bearer token",
            _ => {}
        }
    }
    if !allowed {
        stream
            .write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .expect("answer");
        return;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    let mut child = Command::new("git")
        .args(["-c", "safe.directory=*", "http-backend"])
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", content_type)
        .env("CONTENT_LENGTH", length.to_string())
        .env("GIT_PROTOCOL", protocol)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("git http-backend runs");
    child.stdin.take().expect("piped").write_all(&body).expect("body is taken");
    let output = child.wait_with_output().expect("it ends").stdout;
    let end = output.windows(4).position(|window| window == b"\r\n\r\n").expect("headers") + 4;
    let headers = String::from_utf8_lossy(&output[..end - 2]).into_owned();
    let status = headers.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
    let length = output.len() - end;
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n")
        .expect("head");
    stream.write_all(&output[end..]).expect("body");
}

#[test]
fn submodule_urls_are_relative_to_the_parent() {
    for (parent, url, expected) in [
        ("https://h/a/b.git", "../c.git", "https://h/a/c.git"),
        ("https://h/a/b.git/", "../../c/d.git", "https://h/c/d.git"),
        ("https://h/a/b.git", "./c", "https://h/a/b.git/c"),
        ("git@h:a/b.git", "../c.git", "git@h:a/c.git"),
        ("git@h:b.git", "../c.git", "git@h:c.git"),
        ("https://h/a", "https://x/y", "https://x/y"),
    ] {
        assert_eq!(fetch::relative_url(parent, url), expected);
    }
    assert!(same_host("https://h/a", "../b") && same_host("https://h/a", "https://h/b"));
    assert!(!same_host("https://h/a", "https://h:8443/b") && !same_host("https://h/a", "https://h.evil/b"));
}
