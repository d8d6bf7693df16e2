//! Contexts and sources of every kind, from real servers on this machine: archives on standard input, `git daemon`, http.
//! Each trial names the items of the conformance checklist that it proves.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};

use fixtures::http::{Handler, Payload, Request, Response, Server};
use fixtures::registry::{Effect, FakeRegistry, Fault};

use super::*;

pub const TRIALS: &[Row] = &[
    ("sources::stdin-in-every-compression [D-11]", stdin),
    ("sources::stdin-is-read-once-by-a-build-that-begins-anew [D-11]", begun_anew),
    ("sources::dockerfile-on-stdin [D-01 D-09]", dockerfile_on_stdin),
    ("sources::dockerfile-behind-a-url", dockerfile_behind_a_url),
    ("sources::named-contexts-of-every-kind [F-12 F-13 F-14]", named),
    ("sources::git-contexts [D-10 C-58 C-59]", git_contexts),
    ("sources::http-contexts [D-11]", http_contexts),
    ("sources::add-from-http [C-51 C-52 C-53 C-54 C-57]", add_http),
    ("sources::add-from-git [C-54 C-58 C-59 C-60]", add_git),
    ("sources::what-servers-do-wrong [C-52 C-54]", wrong_answers),
    ("sources::what-archives-do-wrong [C-55 C-56]", wrong_archives),
    ("sources::time-of-a-context-or-stage [X-11]", epochs),
];

/// Where the files of a result are put.
const TREE: &str = "type=local,dest=tree";

/// Serves what it is given, and notes what it is asked.
#[derive(Default)]
struct Site {
    answers: Mutex<BTreeMap<String, Response>>,
    asked: Mutex<Vec<String>>,
}

impl Handler for Site {
    fn handle(&self, request: &mut Request<'_>) -> Response {
        let header = |name: &str| request.header(name).map(|value| format!(" {name}: {value}")).unwrap_or_default();
        let line = format!("{}{}{}", request.path, header("if-none-match"), header("authorization"));
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(answer) = answers.get(&request.path) else { return Response::new(404, "nothing here") };
        let tag = answer.headers.iter().find(|(name, _)| name == "ETag").map(|(_, value)| value.as_str());
        if tag.is_some() && tag == request.header("if-none-match") {
            return Response::new(304, "").with("ETag", tag.unwrap_or_default());
        }
        answer.clone()
    }
}

impl Site {
    fn start() -> Result<(Arc<Self>, Server, String), String> {
        let site = Arc::new(Self::default());
        let server = Server::start(Arc::clone(&site) as Arc<dyn Handler>).map_err(|error| error.to_string())?;
        let url = format!("http://{}", server.host());
        Ok((site, server, url))
    }

    fn put(&self, path: &str, answer: Response) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), answer);
    }

    /// What was asked since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A tar of regular files, all of one time.
fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_500_000_000);
        archive.append_data(&mut header, path, content.as_bytes()).expect("a tar in memory");
    }
    archive.into_inner().expect("a tar in memory")
}

/// `bytes` through a program that reads standard input.
fn filtered(program: &str, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let ended = process::run_reading(Command::new(program).arg("-c"), bytes, LIMIT);
    let ended = ended.map_err(|error| format!("{program}: {error}"))?;
    if ended.success() { Ok(ended.stdout) } else { Err(format!("{program}: {}", ended.text())) }
}

/// A build with another context than the project's, and perhaps something on standard input.
fn build_of(project: &Project<'_>, context: &str, arguments: &[&str], input: &[u8]) -> Result<Ended, String> {
    let mut command = Command::new(&project.place.binary);
    project.complete(&mut command, arguments);
    let others: Vec<_> = command.get_args().map(OsStr::to_owned).collect();
    let mut command = Command::new(&project.place.binary);
    command.args(&others[..others.len() - 1]).arg(context).current_dir(project.dir.path());
    process::run_reading(&mut command, input, LIMIT).map_err(|error| error.to_string())
}

/// Text of a file of the result.
fn made(project: &Project<'_>, path: &str) -> Result<String, String> {
    fs::read_to_string(project.path("tree").join(path)).map_err(|error| format!("{path}: {error}"))
}

fn stdin(place: &Place) -> Outcome {
    let plain = tar(&[
        ("Dockerfile", "FROM scratch\nCOPY . /\n"),
        (".dockerignore", "hidden\n"),
        ("f", "file"),
        ("hidden", ""),
    ]);
    for program in ["cat", "gzip", "bzip2", "xz", "zstd"] {
        let input = match program {
            "cat" => plain.clone(),
            program => filtered(program, &plain)?,
        };
        let project = place.project("")?;
        expect(build_of(&project, "-", &["-o", TREE], &input).map_err(|e| format!("{program}: {e}"))?, 0, &[])?;
        same(program, made(&project, "f")?.as_str(), "file")?;
        // As BuildKit does (checklist D-02): ignore files are for directories.
        same("hidden", project.path("tree/hidden").exists(), true)?;
    }
    let project = place.project("")?;
    expect(build_of(&project, "-", &["-o", TREE], b"FROM scratch\nCOPY <<a /a\nhere\na\n")?, 0, &[])?;
    same("a Dockerfile alone", made(&project, "a")?.as_str(), "here\n")?;
    expect(build_of(&project, "-", &[], b"# Andr\xe9\nFROM scratch\n")?, 0, &[])?;
    let words = "dockerfile `standard input` is not UTF-8: line 2, byte 15";
    expect(build_of(&project, "-", &[], b"FROM scratch\nLABEL by=Prosp\xe9\n")?, 3, &[words])?;
    expect(build_of(&project, "-", &["-f", "other"], &plain)?, 3, &["other"])?;
    expect(build_of(&project, "-", &[], &plain[..700])?, 3, &["unexpected EOF"])?;
    expect(build_of(&project, "-", &[], &[0xff; 64])?, 3, &["neither an archive nor a Dockerfile"])?;
    expect(build_of(&project, "-", &[], b"")?, 3, &["the Dockerfile cannot be empty"])?;
    Ok(None)
}

fn begun_anew(place: &Place) -> Outcome {
    let project = place.project("")?;
    let registry = FakeRegistry::start();
    let name = format!("{}/pushed:1", registry.host());
    let input = tar(&[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "file")]);
    expect(build_of(&project, "-", &["-t", &name, "--push"], &input)?, 0, &[])?;
    // The work directory has no layer that was pushed, and now the registry has none, either.
    registry.fault(Fault::always("GET", "/v2/pushed/blobs/", Effect::status(404)));
    let told = "a layer of an earlier build is gone";
    expect(build_of(&project, "-", &["-o", "type=oci,dest=image.tar"], &input)?, 0, &[told])?;
    Ok(None)
}

fn dockerfile_on_stdin(place: &Place) -> Outcome {
    let project = place.project("FROM nothing-of-this\n")?;
    project.write("f", "file")?;
    project.write("hidden", "")?;
    project.write(".dockerignore", "hidden\n")?;
    let context = project.path("context").display().to_string();
    expect(build_of(&project, &context, &["-f", "-", "-o", TREE], b"FROM scratch\nCOPY f* h* /d/\n")?, 0, &[])?;
    same("f", made(&project, "d/f")?.as_str(), "file")?;
    same("ignored", project.path("tree/d/hidden").exists(), false)?;
    expect(build_of(&project, "-", &["-f", "-"], b"")?, 2, &["cannot be used together"])?;
    Ok(None)
}

fn dockerfile_behind_a_url(place: &Place) -> Outcome {
    let (site, _server, url) = Site::start()?;
    site.put("/x/Dockerfile", Response::new(200, "FROM scratch\nCOPY f* h* /d/\n"));
    let project = place.project("FROM nothing-of-this\n")?;
    for (name, content) in [("f", "file"), ("hidden", ""), (".dockerignore", "hidden\n")] {
        project.write(name, content)?;
    }
    let context = project.path("context").display().to_string();
    let build = |path: &str| build_of(&project, &context, &["-f", &format!("{url}{path}"), "-o", TREE], b"");
    expect(build("/x/Dockerfile")?, 0, &[])?;
    same("f", made(&project, "d/f")?.as_str(), "file")?;
    same("ignored", project.path("tree/d/hidden").exists(), false)?;
    expect(build("/absent")?, 2, &["failed to read dockerfile", "404"])?;
    Ok(None)
}

fn named(place: &Place) -> Outcome {
    let dockerfile = "FROM scratch AS replaced\nCOPY nothing /\nFROM busybox:1.2\nCOPY --from=dir f /dir\n\
                      COPY --from=input f /input\nCOPY --from=url f /url\nCOPY --from=layout /etc/passwd /layout\n\
                      COPY --from=replaced f /stage\nRUN --mount=from=dir,target=/m cat /m/f > /mounted\n";
    let project = place.project(dockerfile)?;
    let (site, _server, url) = Site::start()?;
    site.put("/c.tar", Response::new(200, tar(&[("f", "from a URL")])));
    fs::create_dir(project.path("other")).map_err(|error| error.to_string())?;
    for (name, content) in [("f", "from a directory"), (".dockerignore", "hidden"), ("hidden", "")] {
        fs::write(project.path("other").join(name), content).map_err(|error| error.to_string())?;
    }
    let mut arguments = vec!["-o".to_owned(), TREE.to_owned()];
    for (name, value) in [
        ("dir", "other".to_owned()),
        ("input", "-".to_owned()),
        ("url", format!("{url}/c.tar")),
        ("replaced", "other".to_owned()),
        ("busybox:1.2", format!("docker-image://{}", place.base())),
        ("layout", format!("oci-layout://{}", place.shared.path().join("base").display())),
    ] {
        arguments.extend(["--build-context".to_owned(), format!("{name}={value}")]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let context = project.path("context").display().to_string();
    let input = filtered("gzip", &tar(&[("f", "from standard input")]))?;
    expect(build_of(&project, &context, &arguments, &input)?, 0, &[])?;
    for (path, content) in [
        ("dir", "from a directory"),
        ("input", "from standard input"),
        ("url", "from a URL"),
        ("stage", "from a directory"),
        ("mounted", "from a directory"),
        ("layout", "root:x:0:0:root:/:/bin/sh\n"),
    ] {
        same(path, made(&project, path)?.as_str(), content)?;
    }
    // A named directory has ignore rules of its own; what nobody uses is not asked for.
    project.write("Dockerfile", "FROM scratch\nCOPY --from=dir hidden /\n")?;
    site.asked();
    expect(build_of(&project, &context, &arguments, &input)?, 3, &["\"/hidden\": not found", ">>> COPY --from=dir"])?;
    same("requests", site.asked(), Vec::new())?;
    let absent = project.build(&["--build-context", "dir=nowhere"])?;
    expect(absent, 3, &["nowhere"])?;
    Ok(None)
}

/// The repository `x.git` below `top`: branch `main` with `Dockerfile`, `f` and `sub/`, tag `v1` one commit before it. Gives
/// the commit of `main`.
pub fn repository(top: &Path) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let repository = top.join("x.git");
    fs::create_dir_all(repository.join("sub")).map_err(text)?;
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command
            .current_dir(&repository)
            .args(["-c", "user.name=a", "-c", "user.email=a@b"])
            .args(arguments)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", top)
            .env("GIT_COMMITTER_DATE", "1400000000 +0000");
        process::output(&mut command, LIMIT)
    };
    git(&["init", "-q", "-b", "main"])?;
    let dockerfile = "FROM scratch\nCOPY . /\n";
    for (name, content) in [("Dockerfile", dockerfile), ("f", "first"), ("sub/Dockerfile", dockerfile), ("sub/g", "g")]
    {
        fs::write(repository.join(name), content).map_err(text)?;
    }
    git(&["add", "-A"])?;
    git(&["commit", "-q", "-m", "first"])?;
    git(&["tag", "v1"])?;
    fs::write(repository.join("f"), "second").map_err(text)?;
    git(&["commit", "-q", "-a", "-m", "second"])?;
    git(&["rev-parse", "HEAD"])
}

/// `git daemon` with one repository; ended with this value.
struct Git {
    daemon: Child,
    url: String,
    head: String,
    _top: tempfile::TempDir,
}

impl Drop for Git {
    fn drop(&mut self) {
        _ = self.daemon.kill();
        _ = self.daemon.wait();
    }
}

impl Git {
    fn start() -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        let top = tempfile::tempdir().map_err(text)?;
        let head = repository(top.path())?;
        let programs = process::output(Command::new("git").arg("--exec-path"), LIMIT)?;
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map_err(text)?.port();
        // Not through `git`, which would leave the daemon behind when it is killed.
        let daemon = Command::new(Path::new(&programs).join("git-daemon"))
            .args(["--export-all", "--reuseaddr", "--listen=127.0.0.1", &format!("--port={port}")])
            .arg(format!("--base-path={}", top.path().display()))
            .arg(top.path())
            .env("HOME", top.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(text)?;
        let git = Self { daemon, url: format!("git://127.0.0.1:{port}/x.git"), head, _top: top };
        wait("git daemon", || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        Ok(git)
    }
}

fn git_contexts(place: &Place) -> Outcome {
    let git = Git::start()?;
    let project = place.project("")?;
    for (suffix, file, content) in [
        ("", "f", "second"),
        ("#v1", "f", "first"),
        ("#main", "f", "second"),
        (&format!("#{}", git.head), "f", "second"),
        ("?tag=v1", "f", "first"),
        ("?branch=main&subdir=sub", "g", "g"),
        ("#main:sub", "g", "g"),
        ("##ref=v1", "f", "first"),
        (&format!("?ref=main&checksum={}", &git.head[..12]), "f", "second"),
    ] {
        let url = format!("{}{suffix}", git.url);
        _ = fs::remove_dir_all(project.path("tree"));
        expect(build_of(&project, &url, &["-o", TREE], b"")?, 0, &[]).map_err(|error| format!("{url}: {error}"))?;
        same(&url, made(&project, file)?.as_str(), content)?;
        same("no .git", project.path("tree/.git").exists(), false)?;
    }
    let keep = ["-o", TREE, "--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"];
    expect(build_of(&project, &git.url, &keep, b"")?, 0, &[])?;
    same("HEAD", made(&project, ".git/HEAD").is_ok(), true)?;
    for (suffix, words) in [
        ("#nowhere", "nowhere"),
        ("#main:nodir", "`nodir`"),
        ("?what=1", "unexpected query \"what\""),
        ("?ref=main&checksum=abcdef", "expected checksum to match"),
    ] {
        expect(build_of(&project, &format!("{}{suffix}", git.url), &[], b"")?, 3, &[words])?;
    }
    expect(build_of(&project, &git.url, &["-f", "absent"], b"")?, 3, &["absent"])?;
    Ok(None)
}

fn http_contexts(place: &Place) -> Outcome {
    let (site, _server, url) = Site::start()?;
    let plain = tar(&[
        ("Dockerfile", "FROM scratch\nCOPY f /\n"),
        ("dir/other", "FROM scratch\nCOPY f /from-other\n"),
        ("f", "file"),
    ]);
    site.put("/c.tar.xz", Response::new(200, filtered("xz", &plain)?));
    site.put("/c", Response::new(200, plain));
    site.put("/Dockerfile", Response::new(200, "FROM scratch\nCOPY <<a /\nalone\na\n"));
    site.put("/again", Response::new(302, "").with("Location", "/c"));
    let project = place.project("")?;
    for (path, arguments, file, content) in [
        ("/c.tar.xz", [].as_slice(), "f", "file"),
        ("/c", &["-f", "dir/other"], "from-other", "file"),
        ("/again", &[], "f", "file"),
        ("/Dockerfile", &[], "a", "alone\n"),
    ] {
        _ = fs::remove_dir_all(project.path("tree"));
        let ended = build_of(&project, &format!("{url}{path}"), &[arguments, &["-o", TREE]].concat(), b"")?;
        expect(ended, 0, &[]).map_err(|error| format!("{path}: {error}"))?;
        same(path, made(&project, file)?.as_str(), content)?;
    }
    expect(build_of(&project, &format!("{url}/absent"), &[], b"")?, 3, &["invalid response status 404"])?;
    Ok(None)
}

fn add_http(place: &Place) -> Outcome {
    let (site, _server, url) = Site::start()?;
    let modified = "Sun, 13 Sep 2020 12:26:40 GMT";
    site.put("/f.txt", Response::new(200, "one").with("ETag", "\"1\"").with("Last-Modified", modified));
    let packed = filtered("gzip", &tar(&[("in", "inside")]))?;
    site.put("/a.tgz", Response::new(200, packed.clone()).with("ETag", "\"a\""));
    // Object stores say so of what was put there so, whoever asks.
    let encoded =
        Response::new(200, filtered("gzip", b"plain")?).with("ETag", "\"e\"").with("Content-Encoding", "gzip");
    site.put("/encoded", encoded);
    let digest = "sha256:7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
    let dockerfile = format!(
        "FROM scratch\nARG SUM={digest}\nADD --checksum=$SUM {url}/f.txt?q=1 /d/\nADD {url}/a.tgz /kept\n\
         ADD --unpack --chmod=600 {url}/a.tgz /unpacked/\nADD {url}/encoded /\n"
    );
    let project = place.project(&dockerfile)?;
    let build = |arguments: &[&str]| project.build(&[arguments, &["-o", TREE]].concat());
    // The checksum of "one".
    let first = expect(build(&["--secret", "id=HTTP_AUTH_TOKEN_127.0.0.1,env=TOKEN"])?, 0, &[]);
    if let Err(error) = &first
        && error.contains("digest mismatch")
    {
        return Err(format!("the test's own digest is wrong: {error}"));
    }
    first?;
    same("content", made(&project, "d/f.txt")?.as_str(), "one")?;
    let metadata = fs::metadata(project.path("tree/d/f.txt")).map_err(|error| error.to_string())?;
    same("mode", metadata.permissions().mode() & 0o7777, 0o600)?;
    let time = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    same("time", time.map(|time| time.as_secs()), Some(1_600_000_000))?;
    same("unpacked", made(&project, "unpacked/in")?.as_str(), "inside")?;
    same("kept", fs::read(project.path("tree/kept")).ok(), Some(packed))?;
    same("encoded", made(&project, "encoded")?.as_str(), "plain")?;
    site.asked();
    // Known by its checksum: not even asked for. Others are asked for with what is known of them.
    let again = expect(build(&[])?, 0, &["CACHED"])?;
    let asked = site.asked();
    same("conditional", asked.iter().all(|line| line.contains(" if-none-match: ")), true)
        .map_err(|error| format!("{error}: {asked:?}"))?;
    same("nothing was done", again.text().contains("not built here before"), false)?;
    site.put("/a.tgz", Response::new(200, filtered("gzip", &tar(&[("in", "changed")]))?).with("ETag", "\"b\""));
    expect(build(&[])?, 0, &[])?;
    same("changed", made(&project, "unpacked/in")?.as_str(), "changed")?;
    Ok(None)
}

fn add_git(place: &Place) -> Outcome {
    let git = Git::start()?;
    let (url, head) = (&git.url, &git.head);
    let dockerfile = format!(
        "FROM scratch\nARG REF=v1\nADD {url}#$REF /tag/\nADD {url}?branch=main&subdir=sub /sub/\n\
         ADD --keep-git-dir --checksum={head} {url}#main /kept/\nADD --exclude=sub {url} /most/\n"
    );
    let project = place.project(&dockerfile)?;
    let built = || expect(project.build(&["-o", TREE])?, 0, &[]);
    built()?;
    for (path, content) in [("tag/f", "first"), ("sub/g", "g"), ("kept/f", "second"), ("most/f", "second")] {
        same(path, made(&project, path)?.as_str(), content)?;
    }
    same("kept", project.path("tree/kept/.git/HEAD").exists(), true)?;
    same("not kept", project.path("tree/tag/.git").exists(), false)?;
    same("excluded", project.path("tree/most/sub").exists(), false)?;
    let again = built()?.text();
    same("cached steps", again.matches("CACHED").count(), 4).map_err(|error| format!("{error}\n{again}"))?;
    for (source, words) in [
        (format!("{url}#nowhere"), "nowhere"),
        (format!("--checksum=0123456 {url}"), "expected checksum to match"),
        (format!("--keep-git-dir=true {url}?keep-git-dir=false"), "inconsistent keep-git-dir configuration"),
        (format!("{url}?tag=a&branch=b"), "branch conflicts with tag"),
    ] {
        project.write("Dockerfile", format!("FROM scratch\nADD {source} /\n"))?;
        expect(project.build(&[])?, 3, &[words, ">>> ADD"])?;
    }
    Ok(None)
}

fn wrong_answers(place: &Place) -> Outcome {
    let (site, _server, url) = Site::start()?;
    site.put("/loop", Response::new(302, "").with("Location", "/loop"));
    site.put("/500", Response::new(500, "sorry"));
    site.put("/fine", Response::new(200, "fine"));
    let short = Response { body: Payload::Cut { bytes: b"half of it".to_vec(), after: 4 }, ..Response::new(200, "") };
    site.put("/short", short);
    let project = place.project("")?;
    let zeros = "0".repeat(64);
    for (source, words) in [
        (format!("{url}/absent"), "invalid response status 404"),
        (format!("{url}/500"), "500"),
        (format!("{url}/loop"), "redirect"),
        (format!("{url}/short"), "4 of 10 bytes"),
        (format!("--checksum=sha256:{zeros} {url}/fine"), "digest mismatch"),
        (format!("--checksum=md5:abc {url}/fine"), "checksum"),
        ("http://127.0.0.1:1/nobody".to_owned(), "127.0.0.1:1"),
    ] {
        project.write("Dockerfile", format!("FROM scratch\n\nADD {source} /\n"))?;
        let ended = expect(project.build(&[])?, 3, &[words, "   3 | >>> ADD"]);
        ended.map_err(|error| format!("{source}: {error}"))?;
    }
    Ok(None)
}

fn wrong_archives(place: &Place) -> Outcome {
    let project = place.project("FROM scratch\nADD a.tar /d/\n")?;
    let special = |edit: &dyn Fn(&mut tar::Builder<Vec<u8>>) -> std::io::Result<()>| {
        let mut archive = tar::Builder::new(Vec::new());
        edit(&mut archive).and_then(|()| archive.into_inner()).map_err(|error| error.to_string())
    };
    let entry = |kind: tar::EntryType, path: &str, link: &str| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        // Written as it is: the library would refuse `..`.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        header
    };
    // Up and out: stays below the destination.
    let outside = special(&|archive| {
        archive.append(&entry(tar::EntryType::Regular, "../../../up", ""), std::io::empty())?;
        archive.append(&entry(tar::EntryType::Symlink, "out", "../../.."), std::io::empty())?;
        archive.append(&entry(tar::EntryType::Regular, "out/through", ""), std::io::empty())
    })?;
    project.write("a.tar", outside)?;
    expect(project.build(&["-o", TREE])?, 0, &[])?;
    same("up", made(&project, "d/up").is_ok(), true)?;
    same("through", made(&project, "d/through").is_ok(), true)?;
    same("out", project.path("tree/through").exists() || project.path("tree/up").exists(), false)?;
    // Links that lead to each other.
    let cycle = special(&|archive| {
        archive.append(&entry(tar::EntryType::Symlink, "a", "b"), std::io::empty())?;
        archive.append(&entry(tar::EntryType::Symlink, "b", "a"), std::io::empty())?;
        archive.append(&entry(tar::EntryType::Regular, "a/f", ""), std::io::empty())
    })?;
    project.write("a.tar", cycle)?;
    expect(project.build(&[])?, 3, &["too many levels of symbolic links", ">>> ADD"])?;
    // A hard link to the outside, and one that ends in the middle.
    let link = special(&|archive| archive.append(&entry(tar::EntryType::Link, "l", "/etc/passwd"), std::io::empty()))?;
    project.write("a.tar", link)?;
    expect(project.build(&[])?, 3, &["no such file or directory", ">>> ADD"])?;
    let whole = filtered("gzip", &tar(&[("f", &"0123456789".repeat(20_000))]))?;
    project.write("a.tar", &whole[..whole.len() / 2])?;
    expect(project.build(&[])?, 3, &["unexpected EOF", ">>> ADD"])?;
    // A context that leads in circles.
    project.write("Dockerfile", "FROM scratch\nCOPY loop /\n")?;
    std::os::unix::fs::symlink("loop", project.path("context/loop")).map_err(|error| error.to_string())?;
    expect(project.build(&[])?, 3, &["symbolic links", ">>> COPY"])?;
    Ok(None)
}

fn epochs(place: &Place) -> Outcome {
    let git = Git::start()?;
    let (site, _server, url) = Site::start()?;
    let packed = tar(&[("Dockerfile", "FROM scratch\nCOPY . /\n"), ("f", "")]);
    let modified = "Sun, 13 Sep 2020 12:26:40 GMT";
    site.put("/dated.tar", Response::new(200, packed.clone()).with("Last-Modified", modified));
    site.put("/plain.tar", Response::new(200, packed));
    let project = place.project("")?;
    let created = |context: &str, arguments: &[&str]| -> Result<String, String> {
        _ = fs::remove_dir_all(project.path("layout"));
        let output = ["-o", "type=oci,dest=layout,tar=false"];
        expect(build_of(&project, context, &[arguments, &output].concat(), b"")?, 0, &[])?;
        let blob = |digest: &Value| {
            let hex = digest.as_str().unwrap_or_default().trim_start_matches("sha256:").to_owned();
            read_json(&project.path("layout/blobs/sha256").join(hex))
        };
        let index = read_json(&project.path("layout/index.json"))?;
        let config = blob(&blob(&index["manifests"][0]["digest"])?["config"]["digest"])?;
        Ok(config["created"].as_str().unwrap_or_default().to_owned())
    };
    let by_context = ["--build-arg", "SOURCE_DATE_EPOCH=context"];
    let (commit, newest, server) = ("2014-05-13T16:53:20Z", "2017-07-14T02:40:00Z", "2020-09-13T12:26:40Z");
    same("git", created(&git.url, &by_context)?.as_str(), commit)?;
    same("Last-Modified", created(&format!("{url}/dated.tar"), &by_context)?.as_str(), server)?;
    same("newest file", created(&format!("{url}/plain.tar"), &by_context)?.as_str(), newest)?;
    let context = project.path("context").display().to_string();
    project.write("Dockerfile", "ARG SOURCE_DATE_EPOCH=dep\nFROM scratch\nCOPY Dockerfile /\n")?;
    let named = ["--build-context", &format!("dep={url}/plain.tar")];
    same("named", created(&context, &named)?.as_str(), newest)?;
    for (source, expected) in [
        (format!("{url}/dated.tar"), server),
        (format!("--unpack {url}/plain.tar"), newest),
        (format!("{}#v1", git.url), commit),
    ] {
        let dockerfile = format!(
            "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nADD {source} /\nFROM scratch\nCOPY --from=src . /\n"
        );
        project.write("Dockerfile", dockerfile)?;
        same(&source, created(&context, &[])?.as_str(), expected)?;
    }
    // A directory has no time of its own.
    project.write(
        "Dockerfile",
        "FROM BASE\nARG SOURCE_DATE_EPOCH\nRUN test -z \"$SOURCE_DATE_EPOCH\"\n".replace("BASE", &place.base()),
    )?;
    expect(project.build(&by_context)?, 0, &[])?;
    expect(project.build(&["--build-arg", "SOURCE_DATE_EPOCH=soon"])?, 3, &["invalid SOURCE_DATE_EPOCH: soon"])?;
    Ok(None)
}
