//! Sources that are not on this machine: files behind http(s) URLs, commits of git repositories.
//!
//! ```text
//! <directory>/<sha256 of the URL>.json   what the server said last time: ETag, Last-Modified, digest, size
//! <temporary>/.tmp*                      downloads and checkouts; removed with the value that owns them
//! ```
//!
//! The bytes of a download are not kept: a server that says "not modified" proves that the digest is the old one, and
//! only a step that is not cached needs the bytes again.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tempfile::{NamedTempFile, TempDir};

use super::files::Files;
use super::git::{Reference, ReferenceError, is_full_id};
use super::ignore::{Patterns, clean};
use super::repository::GitOptions;
use crate::cancel::Cancel;
use crate::cloud::CloudError;
use crate::disk::Disk;
use crate::git::{self, Commit, GitError, GitRequest, SshAccess};
use crate::hint::Hint;
use crate::http::{self, Client, ClientOptions, HttpError, Request, Secret, Url};
use crate::oci::{Hasher, Sha256};

/// One read of a download, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// A Last-Modified that is so many seconds older than the answer is a strong validator (RFC 9110, 8.8.2.2).
const STRONG_AFTER_SECONDS: i64 = 60;

/// Gives a secret by its id, if there is one.
pub type SecretLookup = dyn Fn(&str) -> Option<Secret> + Send + Sync;

/// How to reach what is not on this machine. Cheap to clone.
#[derive(Clone)]
pub struct Remote {
    pub(super) client: Client,
    directory: PathBuf,
    temporary: PathBuf,
    /// What may be written.
    pub(super) disk: Disk,
    secrets: Arc<SecretLookup>,
    pub(super) git: Arc<GitAccess>,
    agent: Option<Arc<SshAgentSocket>>,
    /// Takes the place of the owners in contexts that are archives.
    pub(super) owner: Option<(u32, u32)>,
}

/// Gives the socket of an agent for git over ssh; asked when the first repository of that kind is fetched.
pub type SshAgentSocket = dyn Fn() -> io::Result<PathBuf> + Send + Sync;

/// In the directory of answers: keys of the hosts that ssh met.
const KNOWN_HOSTS: &str = "known_hosts";

/// How git contexts are fetched.
#[derive(Default)]
pub(super) struct GitAccess {
    pub(super) options: GitOptions,
    /// What is sent where no secret is given for a repository.
    login: Option<Secret>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Why a remote source could not be had. URLs are shown without what may be secret in them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The text is no URL.
    #[error("`{text}` is not a URL")]
    NotAUrl {
        /// What was given.
        text: String,
    },
    /// No answer, or one that broke off.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The server does not give it.
    #[error("invalid response status {status} from {url}")]
    Status {
        /// HTTP status code.
        status: u16,
        /// Who said it.
        url: String,
    },
    /// The bytes are not those that `--checksum` asks for.
    #[error("digest mismatch {actual}: {expected}")]
    Checksum {
        /// What came.
        actual: Sha256,
        /// What was asked for.
        expected: Sha256,
    },
    /// `--checksum` of a URL is no SHA-256.
    #[error("invalid checksum `{text}`: it should be sha256: and 64 hexadecimal digits")]
    BadChecksum {
        /// As written.
        text: String,
    },
    /// The server sent other bytes when it was asked again.
    #[error("{url} changed while it was used: {first} became {second}")]
    Changed {
        /// Which.
        url: String,
        /// What came first.
        first: Sha256,
        /// What came then.
        second: Sha256,
    },
    /// An object store or the cloud that it belongs to.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// The commit could not be had.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A git source that contradicts itself.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// `--keep-git-dir` and the query say different things.
    #[error("inconsistent keep-git-dir configuration")]
    KeepGitDir,
    /// `--checksum` and the query say different things.
    #[error("checksum mismatch: `{flag}` and `{query}`")]
    TwoChecksums {
        /// `--checksum`
        flag: String,
        /// In the URL.
        query: String,
    },
    /// The commit is another than `--checksum` asks for.
    #[error("expected checksum to match {expected}, got {actual}")]
    WrongCommit {
        /// Full id or its beginning.
        expected: String,
        /// Full id.
        actual: String,
    },
    /// The subdirectory is not one.
    #[error("`{subdir}` of {url} is not a directory")]
    Subdir {
        /// As written.
        subdir: String,
        /// Which repository or archive.
        url: String,
    },
    /// The stream of a context broke off.
    #[error("cannot read the context from {name}")]
    Stream {
        /// Where it comes from.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The archive of a context cannot be unpacked.
    #[error("cannot unpack the context from {name}")]
    Archive {
        /// Where it comes from.
        name: String,
        /// Why.
        source: super::ArchiveError,
    },
    /// The agent of `--ssh default` cannot be offered to `ssh`.
    #[error("cannot offer the ssh agent `default` to git")]
    SshAgent {
        /// Why.
        source: io::Error,
    },
    /// A context that is neither an archive nor text.
    #[error("{name} is neither an archive nor a Dockerfile")]
    NotAContext {
        /// Where it comes from.
        name: String,
    },
    /// A file below the work dir could not be written.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// `create`, `write`, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

impl Hint for RemoteError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Http(error) => error.hint(),
            Self::Git(error) => error.hint(),
            Self::Cloud(error) => error.hint(),
            Self::Archive { source, .. } => source.hint(),
            Self::Status { status: 401 | 403, .. } => {
                Some("give a token with `--secret id=HTTP_AUTH_TOKEN_<host>,env=NAME`".to_owned())
            }
            Self::Checksum { actual, .. } => {
                Some(format!("if the file was meant to change, write `--checksum={actual}`"))
            }
            _ => None,
        }
    }
}

/// What a URL holds.
#[derive(Debug)]
pub(crate) struct Download {
    pub(crate) digest: Sha256,
    pub(crate) bytes: u64,
    /// Seconds since 1970.
    pub(crate) last_modified: Option<i64>,
    /// Absent if the server said that it is what it was.
    pub(crate) file: Option<NamedTempFile>,
}

/// What is remembered of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Remembered {
    etag: Option<String>,
    /// The header as it was, if it is strong enough to ask with.
    validator: Option<String>,
    last_modified: Option<i64>,
    digest: String,
    bytes: u64,
}

impl Remembered {
    fn download(&self) -> Option<Download> {
        let digest = Sha256::from_hex(&self.digest)?;
        Some(Download { digest, bytes: self.bytes, last_modified: self.last_modified, file: None })
    }
}

impl Remote {
    /// `directory` keeps what servers said, `temporary` takes downloads while they are used. `secrets` is asked for
    /// `HTTP_AUTH_HEADER`, `HTTP_AUTH_TOKEN`, `GIT_AUTH_HEADER` and `GIT_AUTH_TOKEN`, with and without a host name.
    pub fn new(client: Client, directory: &Path, temporary: &Path, secrets: Arc<SecretLookup>) -> Self {
        let (directory, temporary) = (directory.to_owned(), temporary.to_owned());
        Self {
            client,
            directory,
            temporary,
            disk: Disk::default(),
            secrets,
            git: Arc::default(),
            agent: None,
            owner: None,
        }
    }

    /// The same; what is written counts.
    #[must_use]
    pub fn within(self, disk: Disk) -> Self {
        Self { disk, ..self }
    }

    /// The same with other ways of fetching from git; `login` is sent where no secret is given for the host.
    #[must_use]
    pub fn with_git(mut self, options: GitOptions, login: Option<Secret>) -> Self {
        if options.insecure_skip_tls {
            let options = self.client.options().clone();
            self.client = Client::new(ClientOptions { skip_tls_verify: true, ..options });
        }
        self.git = Arc::new(GitAccess { options, login });
        self
    }

    /// The same with an agent for git over ssh.
    #[must_use]
    pub fn with_agent(self, agent: Option<Arc<SshAgentSocket>>) -> Self {
        Self { agent, ..self }
    }

    /// The same, but files of a context that is an archive belong to root, as those of a directory do, and not to whom the
    /// archive names.
    #[must_use]
    pub fn with_root_as_owner(self) -> Self {
        Self { owner: Some((0, 0)), ..self }
    }

    /// How `ssh` is called for `url`, if it is.
    pub(super) fn ssh_access(&self, url: &str) -> Result<SshAccess, RemoteError> {
        if !git::is_ssh(url) {
            return Ok(SshAccess::default());
        }
        std::fs::create_dir_all(&self.directory).map_err(|source| self.io("create", source))?;
        let agent = self.agent.as_ref().map(|agent| agent()).transpose();
        Ok(SshAccess {
            agent: agent.map_err(|source| RemoteError::SshAgent { source })?,
            known_hosts: Some(self.directory.join(KNOWN_HOSTS)),
        })
    }

    /// Asks for a URL; the bytes come only if they are not known from an earlier build. With a checksum that is known
    /// the server is not asked at all.
    pub(crate) fn fetch(&self, text: &str, checksum: Option<Sha256>, cancel: &Cancel) -> Result<Download, RemoteError> {
        let memory = self.directory.join(format!("{}.json", Sha256::of(text.as_bytes()).to_hex()));
        let remembered: Option<Remembered> =
            std::fs::read(&memory).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(known) = remembered.as_ref().and_then(Remembered::download)
            && checksum == Some(known.digest)
        {
            return Ok(known);
        }
        let (download, answer) = self.get(text, remembered.as_ref(), cancel)?;
        if let Some(expected) = checksum.filter(|expected| *expected != download.digest) {
            return Err(RemoteError::Checksum { actual: download.digest, expected });
        }
        if let Some(answer) = answer
            && let Err(error) = remember(&memory, &answer)
        {
            tracing::debug!(%error, "an answer will not be remembered");
        }
        Ok(download)
    }

    /// The bytes that [`Remote::fetch`] told about.
    pub(crate) fn open(&self, text: &str, download: &Download, cancel: &Cancel) -> Result<File, RemoteError> {
        let file = match &download.file {
            Some(file) => file.reopen(),
            None => {
                let (again, _) = self.get(text, None, cancel)?;
                if again.digest != download.digest {
                    let (first, second) = (download.digest, again.digest);
                    return Err(RemoteError::Changed { url: shown(text), first, second });
                }
                match again.file {
                    // Without its name it goes away when it is closed.
                    Some(file) => file.reopen(),
                    None => Err(io::ErrorKind::NotFound.into()),
                }
            }
        };
        file.map_err(|source| self.io("open a download in", source))
    }

    /// One file; from the beginning again when a transfer breaks off, as often as the client repeats requests.
    fn get(
        &self,
        text: &str,
        remembered: Option<&Remembered>,
        cancel: &Cancel,
    ) -> Result<(Download, Option<Remembered>), RemoteError> {
        let url = Url::parse(text).map_err(|_| RemoteError::NotAUrl { text: text.to_owned() })?;
        let retry = &self.client.options().retry;
        let mut attempt = 1;
        loop {
            match self.get_once(text, &url, remembered, cancel) {
                Err(RemoteError::Http(error @ HttpError::Truncated { .. })) if attempt < retry.attempts => {
                    tracing::debug!(%error, attempt, "a download broke off");
                    let delay = retry.first_delay.saturating_mul(1 << attempt.min(16)).min(retry.max_delay);
                    attempt += 1;
                    self.client.pause(&url, attempt, delay, cancel).map_err(http_error)?;
                }
                other => return other,
            }
        }
    }

    fn get_once(
        &self,
        text: &str,
        url: &Url,
        remembered: Option<&Remembered>,
        cancel: &Cancel,
    ) -> Result<(Download, Option<Remembered>), RemoteError> {
        let mut request = Request::get(url.clone());
        if let Some(value) = self.authorization("HTTP_AUTH", url.host_str().unwrap_or_default()) {
            request = request.secret_header("Authorization", value);
        }
        match remembered {
            Some(Remembered { etag: Some(etag), .. }) => request = request.header("If-None-Match", etag),
            Some(Remembered { validator: Some(time), .. }) => request = request.header("If-Modified-Since", time),
            _ => {}
        }
        let response = self.client.send(request, cancel).map_err(http_error)?;
        let status = response.status();
        if status == 304
            && let Some(known) = remembered.and_then(Remembered::download)
        {
            return Ok((known, None));
        }
        if !(200..400).contains(&status) {
            return Err(RemoteError::Status { status, url: shown(text) });
        }
        let header = |name: &str| response.header(name).map(str::to_owned);
        let (etag, modified) = (header("ETag"), header("Last-Modified"));
        let last_modified = modified.as_deref().and_then(http_date);
        let answered = header("Date").as_deref().and_then(http_date);
        let is_strong = last_modified.zip(answered).is_some_and(|(then, now)| now - then >= STRONG_AFTER_SECONDS);

        // Nobody asks for an encoding; what object stores were told to say it has anyway is not part of the file.
        let is_encoded = header("Content-Encoding").is_some_and(|encoding| encoding.eq_ignore_ascii_case("gzip"));
        let mut file = self.temporary_file()?;
        let mut body: Box<dyn Read> = match response.into_reader() {
            body if is_encoded => Box::new(flate2::read::MultiGzDecoder::new(body)),
            body => Box::new(body),
        };
        let (mut hasher, mut bytes) = (Hasher::default(), 0);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let length = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(match HttpError::from_io(error) {
                        Ok(error) => http_error(error),
                        Err(source) => self.io("receive into", source),
                    });
                }
            };
            hasher.update(&buffer[..length]);
            bytes += length as u64;
            let taken = self.disk.take(length as u64);
            let written = taken.and_then(|()| file.write_all(&buffer[..length]));
            written.map_err(|source| self.io("write a download to", source))?;
        }
        let digest = hasher.finish();
        let answer = Remembered {
            etag,
            validator: modified.filter(|_| is_strong),
            last_modified,
            digest: digest.to_hex(),
            bytes,
        };
        Ok((Download { digest, bytes, last_modified, file: Some(file) }, Some(answer)))
    }

    /// Fetches the commit that `reference` names, checks it, and gives its directory (the subdirectory if there is one).
    pub(crate) fn checkout(
        &self,
        reference: &Reference,
        keep_git_dir: bool,
        checksum: Option<&str>,
        cancel: &Cancel,
    ) -> Result<Checkout, RemoteError> {
        if let (Some(flag), Some(query)) = (checksum, &reference.checksum)
            && flag != query
        {
            return Err(RemoteError::TwoChecksums { flag: flag.to_owned(), query: query.clone() });
        }
        let checksum = checksum.or(reference.checksum.as_deref());
        let by_commit =
            checksum.filter(|id| is_full_id(id)).filter(|_| reference.fetch_by_commit || reference.reference.is_none());
        let host = Url::parse(&reference.url).ok().and_then(|url| url.host_str().map(str::to_owned));
        let request = GitRequest {
            url: reference.url.clone(),
            reference: by_commit.or(reference.reference.as_deref()).map(str::to_owned),
            commit: None,
            depth: self.git.options.depth.or(NonZeroU32::new(1)),
            keep_git_dir: keep_git_dir && reference.subdir.is_none(),
            submodules: reference.submodules.unwrap_or(true),
            authorization: host
                .and_then(|host| self.authorization("GIT_AUTH", &host))
                .or_else(|| self.git.login.clone()),
            ssh: self.ssh_access(&reference.url)?,
        };
        let temp = self.temporary_directory()?;
        let root = temp.path().join("tree");
        std::fs::create_dir(&root).map_err(|source| self.io("create a directory in", source))?;
        let commit = git::checkout(&request, &root, &self.client, &self.disk, cancel).map_err(|error| match error {
            GitError::Cancelled => RemoteError::Cancelled,
            error => error.into(),
        })?;
        if let Some(expected) = checksum.filter(|expected| !commit.id.starts_with(*expected)) {
            return Err(RemoteError::WrongCommit { expected: expected.to_owned(), actual: commit.id });
        }
        Ok(Checkout { temp, commit, subdir: reference.subdir.clone(), url: shown(&reference.url) })
    }

    /// `<kind>_HEADER_<host>`, `<kind>_TOKEN_<host>`, `<kind>_HEADER`, `<kind>_TOKEN`: the first that there is (C-53).
    fn authorization(&self, kind: &str, host: &str) -> Option<Secret> {
        let separator = if kind == "GIT_AUTH" { '.' } else { '_' };
        let from_token = |token: Secret| match kind {
            // What GitHub and its like take as a password.
            "GIT_AUTH" => http::basic("x-access-token", token.expose().trim()),
            _ => Secret::new(format!("Bearer {}", token.expose().trim())),
        };
        for suffix in [format!("{separator}{host}"), String::new()] {
            if let Some(header) = (self.secrets)(&format!("{kind}_HEADER{suffix}")) {
                return Some(Secret::new(header.expose().trim()));
            }
            if let Some(token) = (self.secrets)(&format!("{kind}_TOKEN{suffix}")) {
                return Some(from_token(token));
            }
        }
        None
    }

    pub(super) fn temporary_file(&self) -> Result<NamedTempFile, RemoteError> {
        std::fs::create_dir_all(&self.temporary)
            .and_then(|()| NamedTempFile::new_in(&self.temporary))
            .map_err(|source| self.io("create a file in", source))
    }

    pub(super) fn temporary_directory(&self) -> Result<TempDir, RemoteError> {
        std::fs::create_dir_all(&self.temporary)
            .and_then(|()| TempDir::new_in(&self.temporary))
            .map_err(|source| self.io("create a directory in", source))
    }

    pub(super) fn io(&self, action: &'static str, source: io::Error) -> RemoteError {
        RemoteError::Io { action, path: self.temporary.clone(), source }
    }
}

/// A commit as files, removed with this value.
#[derive(Debug)]
pub(crate) struct Checkout {
    pub(crate) temp: TempDir,
    pub(crate) commit: Commit,
    pub(crate) subdir: Option<String>,
    pub(crate) url: String,
}

fn http_error(error: HttpError) -> RemoteError {
    match error {
        HttpError::Cancelled => RemoteError::Cancelled,
        error => error.into(),
    }
}

/// A URL as errors show it.
pub(crate) fn shown(text: &str) -> String {
    Url::parse(text).map_or_else(|_| text.to_owned(), |url| http::redacted(&url))
}

/// `Wed, 21 Oct 2015 07:28:00 GMT` as seconds since 1970 (RFC 9110, 5.6.7); the obsolete forms are not read.
fn http_date(text: &str) -> Option<i64> {
    let parsed = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(parsed.as_second())
}

fn remember(path: &Path, answer: &Remembered) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let mut file = NamedTempFile::new_in(directory)?;
    file.write_all(&serde_json::to_vec(answer)?)?;
    file.persist(path)?;
    Ok(())
}

impl Checkout {
    /// The files of the commit, or of its subdirectory, which must not be reached through a link.
    ///
    /// # Errors
    /// [`RemoteError::Subdir`] if there is no such directory.
    pub(crate) fn files(&self) -> Result<Files, RemoteError> {
        let root = self.temp.path().join("tree");
        subdirectory(&root, self.subdir.as_deref(), &self.url)
    }
}

/// A directory below `root` as files of their own.
pub(super) fn subdirectory(root: &Path, subdir: Option<&str>, url: &str) -> Result<Files, RemoteError> {
    let mut path = root.to_owned();
    let cleaned = clean(&format!("/{}", subdir.unwrap_or_default()));
    for name in cleaned.split('/').filter(|name| !name.is_empty()) {
        path.push(name);
        if !path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            let subdir = subdir.unwrap_or_default().to_owned();
            return Err(RemoteError::Subdir { subdir, url: url.to_owned() });
        }
    }
    Files::directory(&path, Patterns::default()).map_err(|source| RemoteError::Io { action: "open", path, source })
}
