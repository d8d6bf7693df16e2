//! Contexts in archives and object stores: Amazon's as moto plays it, Azure's as azurite does, Google's as a double of our own.
//!
//! `scripts/setup` installs moto and azurite below `target/emulators`; a trial whose emulator is missing says so.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};

use fixtures::cloud::Clouds;

use super::*;

pub const TRIALS: &[Row] = &[
    ("contexts::archives-and-parts-of-them", archives),
    ("contexts::broken-archives", broken),
    ("contexts::google", google),
    ("contexts::amazon", amazon),
    ("contexts::azure", azure),
    ("contexts::of-executor", executor),
    ("contexts::git-of-executor", executor_git),
];

/// Where the files of a result are put.
const TREE: &str = "type=local,dest=tree";

/// A context with a part that is one, too. `bulk` does not compress, so the archive is as large.
fn packed(bulk: usize) -> Result<Vec<u8>, String> {
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    let bulk: Vec<u8> = noise.take(bulk).collect();
    let dockerfile = b"FROM scratch\nCOPY . /\n";
    let files: [(&str, &[u8]); 4] =
        [("Dockerfile", dockerfile), ("part/Dockerfile", dockerfile), ("part/inner", b"inner"), ("bulk", &bulk)];
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content).map_err(|error| error.to_string())?;
    }
    archive.into_inner().and_then(|gzip| gzip.finish()).map_err(|error| error.to_string())
}

/// A build of `context` with these variables.
fn build(
    project: &Project<'_>,
    context: &str,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Result<Ended, String> {
    _ = fs::remove_dir_all(project.path("tree"));
    let mut command = Command::new(&project.place.binary);
    command
        .args(["build", "--progress", "plain", "--work-dir"])
        .arg(project.path("work"))
        .args(["-o", TREE])
        .args(arguments)
        .arg(context)
        .envs(variables.iter().copied())
        .env("HOME", project.path("home"))
        .current_dir(project.dir.path());
    process::run(&mut command, LIMIT).map_err(|error| error.to_string())
}

fn made(project: &Project<'_>, path: &str) -> Result<usize, String> {
    fs::read(project.path("tree").join(path)).map(|bytes| bytes.len()).map_err(|error| format!("{path}: {error}"))
}

fn archives(place: &Place) -> Outcome {
    let project = place.project("")?;
    fs::write(project.path("c.tar.gz"), packed(1000)?).map_err(|error| error.to_string())?;
    expect(build(&project, "tar://c.tar.gz", &[], &[])?, 0, &[])?;
    same("bulk", made(&project, "bulk")?, 1000)?;
    expect(build(&project, "tar://c.tar.gz", &["--context-sub-path", "part"], &[])?, 0, &[])?;
    same("the part alone", (made(&project, "inner")?, made(&project, "bulk").is_err()), (5, true))?;
    project.write("part/Dockerfile", "FROM scratch\nCOPY . /\n")?;
    project.write("part/inner", "inner")?;
    for context in ["dir://context", "context"] {
        expect(build(&project, context, &["--context-sub-path", "/part"], &[])?, 0, &[])?;
        same("the part of a directory", made(&project, "inner")?, 5)?;
    }
    let missing = build(&project, "tar://c.tar.gz", &["--context-sub-path", "../etc"], &[])?;
    expect(missing, 3, &["the context has no directory `../etc`"])?;
    expect(build(&project, "tar://missing.tar.gz", &[], &[])?, 3, &["missing.tar.gz"])?;
    Ok(None)
}

fn broken(place: &Place) -> Outcome {
    let project = place.project("")?;
    let whole = packed(100_000)?;
    fs::write(project.path("cut.tar.gz"), &whole[..whole.len() / 2]).map_err(|error| error.to_string())?;
    expect(build(&project, "tar://cut.tar.gz", &[], &[])?, 3, &["cut.tar.gz", "unexpected EOF"])?;
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    header.set_mode(0o644);
    // Written as it is: the library would refuse `..`.
    header.as_mut_bytes()[..6].copy_from_slice(b"../out");
    header.set_cksum();
    archive.append(&header, std::io::empty()).map_err(|error| error.to_string())?;
    let bytes = archive.into_inner().map_err(|error| error.to_string())?;
    fs::write(project.path("out.tar"), bytes).map_err(|error| error.to_string())?;
    expect(build(&project, "tar://out.tar", &[], &[])?, 3, &["`../out` lies outside of the archive"])?;
    Ok(None)
}

fn google(place: &Place) -> Outcome {
    let project = place.project("")?;
    let clouds = Clouds::start(LIMIT, None);
    let whole = packed(3 << 20)?;
    clouds.put_object("/bucket/context.tar.gz", &whole);
    let host = clouds.host();
    let emulator = [("STORAGE_EMULATOR_HOST", host.as_str())];
    expect(build(&project, "gs://bucket", &[], &emulator)?, 0, &[])?;
    same("bulk", made(&project, "bulk")?, 3 << 20)?;
    // Cut twice: what came is not asked for again.
    clouds.cut(&[1 << 20, 1 << 20]);
    let before = clouds.log().len();
    expect(build(&project, "gs://bucket/context.tar.gz", &[], &emulator)?, 0, &[])?;
    same("bulk after cuts", made(&project, "bulk")?, 3 << 20)?;
    same("requests", clouds.log().len() - before, 3)?;
    expect(
        build(&project, "gs://bucket/missing.tar.gz", &[], &emulator)?,
        3,
        &["gs://bucket/missing.tar.gz: not found"],
    )?;
    let nobody = [("GCE_METADATA_HOST", "127.0.0.1:1")];
    expect(
        build(&project, "gs://bucket", &[], &nobody)?,
        3,
        &["no credentials for Google Cloud", "GOOGLE_APPLICATION_CREDENTIALS"],
    )?;
    Ok(None)
}

/// A program that listens on a port, ended with this value.
struct Emulator {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Emulator {
    /// `None` if `program` is not installed below `target/emulators`.
    fn start(program: &str, arguments: impl Fn(u16, &Path) -> Vec<String>) -> Result<Option<Self>, String> {
        let emulators = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/emulators");
        let program = emulators.join(program);
        if !program.exists() {
            return Ok(None);
        }
        let text = |error: std::io::Error| error.to_string();
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).map_err(text)?.port();
        let directory = tempfile::tempdir().map_err(text)?;
        let child = Command::new(program)
            .args(arguments(port, directory.path()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(text)?;
        let emulator = Self { child, port, _directory: directory };
        wait("an emulator that listens", || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        Ok(Some(emulator))
    }

    /// Sends a request as it stands; gives the answer's first line.
    fn put(&self, path: &str, body: &[u8]) -> Result<String, String> {
        let text = |error: std::io::Error| error.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).map_err(text)?;
        let head = format!("PUT {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).map_err(text)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(text)?;
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    }
}

fn amazon(place: &Place) -> Outcome {
    let started = Emulator::start("python/bin/moto_server", |port, _| vec!["-p".to_owned(), port.to_string()])?;
    let Some(moto) = started else { return Ok(Some("moto is not installed".to_owned())) };
    let project = place.project("")?;
    for (path, body) in [("/bucket", Vec::new()), ("/bucket/a/context.tar.gz", packed(3 << 20)?)] {
        let answer = moto.put(path, &body)?;
        same(path, answer.contains(" 200 "), true)?;
    }
    let endpoint = format!("http://127.0.0.1:{}", moto.port);
    let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "hidden-key"), ("AWS_REGION", "eu-central-1")];
    let here = [("S3_ENDPOINT", endpoint.as_str()), ("S3_FORCE_PATH_STYLE", "true")];
    let with_keys = [&keys[..], &here].concat();
    expect(build(&project, "s3://bucket/a/context.tar.gz", &[], &with_keys)?, 0, &[])?;
    same("bulk", made(&project, "bulk")?, 3 << 20)?;
    let arguments = ["--context", "s3://bucket/a", "--context-sub-path", "part"];
    expect(execute(&project, &arguments, &with_keys)?, 1, &["error building image: ", "s3://bucket/a: not found"])?;
    let arguments = ["--context", "s3://bucket/a/context.tar.gz", "--context-sub-path", "part"];
    expect(execute(&project, &arguments, &with_keys)?, 0, &[])?;
    let missing =
        expect(build(&project, "s3://bucket/missing", &[], &with_keys)?, 3, &["s3://bucket/missing: not found"])?;
    same("keys in messages", missing.text().contains("hidden-key"), false)?;
    // A role of a pod. moto tells services apart by their host names, so its token service is out of reach.
    let tokens = Clouds::start(LIMIT, None);
    let service = format!("http://{}", tokens.host());
    let token = project.path("token");
    fs::write(&token, "the-pod").map_err(|error| error.to_string())?;
    let token = token.display().to_string();
    let role = [
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
        ("AWS_ENDPOINT_URL_STS", service.as_str()),
        ("AWS_REGION", "eu-central-1"),
    ];
    expect(build(&project, "s3://bucket/a/context.tar.gz", &[], &[&role[..], &here].concat())?, 0, &[])?;
    let nobody = [&here[..], &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1")]].concat();
    expect(build(&project, "s3://bucket/a/context.tar.gz", &[], &nobody)?, 3, &["s3://bucket/a/context.tar.gz"])?;
    Ok(None)
}

/// The key that every azurite has.
const AZURITE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Makes a container and puts a file into it, signed as Azure wants it ("Authorize with Shared Key").
const PUT_BLOB: &str = r#"
import base64, email.utils, hashlib, hmac, sys, urllib.request
port, key, path = int(sys.argv[1]), base64.b64decode(sys.argv[2]), sys.argv[3]
def put(name, query, body, headers):
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06", **headers}
    names = "".join(f"{k}:{headers[k]}\n" for k in sorted(headers))
    resource = f"/devstoreaccount1/devstoreaccount1/{name}" + "".join(f"\n{k}:{v}" for k, v in sorted(query.items()))
    length = str(len(body)) if body else ""
    text = "\n".join(["PUT", "", "", length, "", "application/octet-stream", "", "", "", "", "", ""]) + "\n" + names + resource
    mac = base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
    url = f"http://127.0.0.1:{port}/devstoreaccount1/{name}" + ("?" + "&".join(f"{k}={v}" for k, v in query.items()) if query else "")
    headers |= {"Authorization": f"SharedKey devstoreaccount1:{mac}", "Content-Type": "application/octet-stream", "Content-Length": str(len(body))}
    urllib.request.urlopen(urllib.request.Request(url, data=body, headers=headers, method="PUT")).read()
put("box", {"restype": "container"}, b"", {})
put("box/a/context.tar.gz", {}, open(path, "rb").read(), {"x-ms-blob-type": "BlockBlob"})
"#;

fn azure(place: &Place) -> Outcome {
    let started = Emulator::start("azurite/node_modules/.bin/azurite-blob", |port, directory| {
        let (port, directory) = (port.to_string(), directory.display().to_string());
        ["--silent", "--skipApiVersionCheck", "--blobPort", &port, "--location", &directory].map(str::to_owned).to_vec()
    })?;
    let Some(azurite) = started else { return Ok(Some("azurite is not installed".to_owned())) };
    let project = place.project("")?;
    let file = project.path("c.tar.gz");
    fs::write(&file, packed(3 << 20)?).map_err(|error| error.to_string())?;
    let port = azurite.port.to_string();
    process::output(Command::new("python3").args(["-c", PUT_BLOB, &port, AZURITE_KEY]).arg(&file), LIMIT)?;
    let endpoint = format!("http://127.0.0.1:{port}/devstoreaccount1");
    let url = "https://devstoreaccount1.blob.core.windows.net/box/a/context.tar.gz";
    let here = [("AZURE_STORAGE_ENDPOINT", endpoint.as_str()), ("AZURE_STORAGE_ACCESS_KEY", AZURITE_KEY)];
    expect(build(&project, url, &[], &here)?, 0, &[])?;
    same("bulk", made(&project, "bulk")?, 3 << 20)?;
    expect(execute(&project, &["--context", url, "--context-sub-path", "part"], &here)?, 0, &[])?;
    let missing = "https://devstoreaccount1.blob.core.windows.net/box/missing";
    expect(build(&project, missing, &[], &here)?, 3, &["/box/missing: not found"])?;
    expect(
        execute(&project, &["--context", missing], &here)?,
        1,
        &["error building image: ", "/box/missing: not found"],
    )?;
    let wrong = [here[0], ("AZURE_STORAGE_ACCESS_KEY", "d3Jvbmc=")];
    let refused = expect(build(&project, url, &[], &wrong)?, 3, &[url])?;
    same("keys in messages", refused.text().contains("d3Jvbmc="), false)?;
    Ok(None)
}

/// `executor` with these flags; the image is not pushed.
fn execute(project: &Project<'_>, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Ended, String> {
    let mut command = Command::new(&project.place.binary);
    command
        .args(["executor", "--no-push", "--oci-layout-path", "layout"])
        .args(arguments)
        .envs(variables.iter().copied())
        .env("HOME", project.path("home"))
        .env("KANIKO_DIR", project.path("work"))
        .current_dir(project.dir.path());
    process::run(&mut command, LIMIT).map_err(|error| error.to_string())
}

fn executor(place: &Place) -> Outcome {
    let project = place.project("")?;
    let whole = packed(1000)?;
    fs::write(project.path("c.tar.gz"), &whole).map_err(|error| error.to_string())?;
    let part = ["--context-sub-path", "part"];
    expect(execute(&project, &["--context", "tar://c.tar.gz"], &[])?, 0, &[])?;
    expect(execute(&project, &[&["--context", "tar://c.tar.gz"], &part[..]].concat(), &[])?, 0, &[])?;
    let clouds = Clouds::start(LIMIT, None);
    clouds.put_object("/bucket/context.tar.gz", &whole);
    let host = clouds.host();
    let emulator = [("STORAGE_EMULATOR_HOST", host.as_str())];
    for bucket in [["--context", "gs://bucket"], ["--bucket", "bucket"]] {
        expect(execute(&project, &[&bucket[..], &part].concat(), &emulator)?, 0, &[])?;
    }
    for (context, words) in [
        ("gs://bucket/missing", "gs://bucket/missing: not found"),
        ("tar://missing", "missing"),
        ("git://host", "`git://host` is not git://HOST/PATH"),
        ("ftp://host/x", "ftp://host/x"),
    ] {
        expect(execute(&project, &["--context", context], &emulator)?, 1, &[words])?;
    }
    Ok(None)
}

fn executor_git(place: &Place) -> Outcome {
    let project = place.project("")?;
    let text = |error: std::io::Error| error.to_string();
    let backend = process::output(Command::new("git").arg("--exec-path"), LIMIT)? + "/git-http-backend";
    if !Path::new(&backend).exists() {
        return Ok(Some("git http-backend is not installed".to_owned()));
    }
    let served = project.path("served");
    let work = served.join("x.git");
    fs::create_dir_all(&work).and_then(|()| fs::create_dir_all(served.join("cgi-bin"))).map_err(text)?;
    std::os::unix::fs::symlink(&backend, served.join("cgi-bin/git")).map_err(text)?;
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.current_dir(&work).args(["-c", "user.name=a", "-c", "user.email=a@b"]).args(arguments);
        process::output(&mut command, LIMIT)
    };
    git(&["init", "-q", "-b", "main"])?;
    let commit = |content: &str| -> Result<String, String> {
        fs::write(
            work.join("Dockerfile"),
            "FROM BASE\nCOPY . /\nRUN cat /content; test -d /.git && echo history\n".replace("BASE", &place.base()),
        )
        .and_then(|()| fs::write(work.join("content"), content))
        .map_err(text)?;
        git(&["add", "-A"])?;
        git(&["commit", "-q", "-m", "x"])?;
        git(&["rev-parse", "HEAD"])
    };
    let first = commit("content-one\n")?;
    commit("content-two\n")?;
    git(&["branch", "other", &first])?;
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).map_err(text)?.port();
    let child = Command::new("python3")
        .args(["-m", "http.server", "--cgi", "--bind", "127.0.0.1", &port.to_string()])
        .env("GIT_PROJECT_ROOT", &served)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        // The server runs scripts as another user.
        .envs([("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "safe.directory"), ("GIT_CONFIG_VALUE_0", "*")])
        .current_dir(&served)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(text)?;
    let directory = tempfile::tempdir().map_err(text)?;
    let _server = Emulator { child, port, _directory: directory };
    wait("a git server", || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
    let url = format!("git://127.0.0.1:{port}/cgi-bin/git/x.git");
    let plain = [("GIT_PULL_METHOD", "http"), ("GIT_TOKEN", "hidden-token")];
    for (context, options, content) in [
        (url.clone(), "single-branch=true", "content-two"),
        (format!("{url}#refs/heads/other"), "depth=1", "content-one"),
        (format!("{url}#main"), "branch=other", "content-one"),
        (format!("{url}#main#{first}"), "depth=1", "content-one"),
    ] {
        let ended = execute(&project, &["--context", &context, "--git", options], &plain)?;
        let ended = expect(ended, 0, &[]).map_err(|error| format!("{context}: {error}"))?;
        let stdout = String::from_utf8_lossy(&ended.stdout).into_owned();
        same(&context, (stdout.contains(content), stdout.contains("history")), (true, true))?;
        same("the token is shown", ended.text().contains("hidden-token"), false)?;
    }
    let missing = execute(&project, &["--context", &format!("{url}#refs/heads/none")], &plain)?;
    expect(missing, 1, &["does not contain ref refs/heads/none"])?;
    Ok(None)
}
