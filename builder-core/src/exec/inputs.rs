//! The Dockerfile's text and the files of the contexts, from wherever they are.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::BuildError;
use super::given::StandardInput;
use super::request::{BuildRequest, ContextSource, DockerfileSource, Fetched};
use super::ssh::{SshAgent, SshForward};
use crate::cancel::Cancel;
use crate::context::{FetchedContext, Files, Patterns, Remote, RemoteError, SshAgentSocket, find_ignore_file};
use crate::disk::Disk;
use crate::dockerfile::{self, NotUtf8};
use crate::hint::Hint;
use crate::hint::suggest::nearest;
use crate::http::{self, Secret};
use crate::plan::NamedContext;
use crate::rootfs::Owners;
use crate::store::Store;

/// Longest Dockerfile that is read, in bytes.
const MAX_DOCKERFILE_BYTES: u64 = 16 << 20;

/// What the Dockerfile is called when nobody says so (checklist D-09).
const DEFAULT_NAMES: [&str; 2] = ["Dockerfile", "dockerfile"];

/// What was opened before planning.
pub(super) struct Inputs {
    /// Text of the Dockerfile.
    pub(super) dockerfile: String,
    /// Text of the ignore file, if there is one.
    pub(super) ignore_file: Option<String>,
    /// The main context.
    pub(super) files: Files,
    /// Fetched contexts, whose directories are removed when the build is over; the main one is the first, if it was
    /// fetched.
    pub(super) fetched: Vec<Arc<FetchedContext>>,
}

impl Inputs {
    /// What `SOURCE_DATE_EPOCH=context` means; `None` for a context that has no time of its own (checklist X-11).
    pub(super) fn time(&self) -> Result<Option<i64>, InputError> {
        self.fetched.first().map_or(Ok(None), |fetched| time_of(fetched))
    }
}

fn time_of(fetched: &FetchedContext) -> Result<Option<i64>, InputError> {
    fetched.time().map_err(|source| InputError::Context { path: "the fetched context".into(), source })
}

/// Why the Dockerfile or a context cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// There is no Dockerfile.
    #[error("failed to read dockerfile: open {}: no such file or directory", path.display())]
    NoDockerfile {
        /// Where it was looked for.
        path: PathBuf,
        /// A name like it that is there.
        near: Option<String>,
    },
    /// The Dockerfile cannot be read.
    #[error("failed to read dockerfile `{}`", path.display())]
    Dockerfile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The Dockerfile is not text.
    #[error("dockerfile `{}` is not UTF-8: line {line}, byte {column}", path.display())]
    NotUtf8 {
        /// Which.
        path: PathBuf,
        /// Line of the first byte that is not, counted from 1; comments do not count.
        line: usize,
        /// Its position in the line in bytes, counted from 1.
        column: usize,
    },
    /// The Dockerfile is longer than any Dockerfile.
    #[error("dockerfile `{}` is longer than {limit} bytes", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// The context is not a directory that can be read.
    #[error("unable to prepare context: `{}`", path.display())]
    Context {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The part of the context that is meant is no directory of it.
    #[error("the context has no directory `{}`", path.display())]
    SubPath {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A context cannot be fetched.
    #[error("cannot fetch the context")]
    Fetch(#[from] RemoteError),
    /// The ignore file cannot be read.
    #[error(transparent)]
    IgnoreFile(#[from] crate::context::IgnoreFileError),
    /// The ignore file has a bad pattern.
    #[error("error checking context: `{}`", path.display())]
    Ignore {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: crate::context::IgnoreError,
    },
    /// A context that must be an archive.
    #[error("the context from {context} is no archive: neither a tar nor a compressed one")]
    NoArchive {
        /// Where it comes from.
        context: String,
    },
}

impl Hint for InputError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoDockerfile { near: Some(near), .. } => Some(format!("did you mean `{near}`?")),
            Self::NoDockerfile { near: None, .. } => Some("name it with `-f FILE`".to_owned()),
            Self::Context { .. } => Some("the last argument is the context: a directory, `-` or a URL".to_owned()),
            Self::IgnoreFile(error) => error.hint(),
            Self::Fetch(error) => error.hint(),
            _ => None,
        }
    }
}

/// How contexts are reached, and what fetching them may write.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    pub(super) client: http::Client,
    pub(super) disk: Disk,
    /// Whose directory for unfinished files holds what is fetched: another builder takes one that no store holds for a dead builder's. Not
    /// there where nothing can be fetched.
    pub(super) store: Option<Store>,
    pub(super) stdin: Arc<StandardInput>,
}

/// Opens the main context and reads the Dockerfile.
pub(super) fn open(request: &BuildRequest, reach: &Reach, cancel: &Cancel) -> Result<Inputs, BuildError> {
    let mut fetched = Vec::new();
    let like_directory = request.fetched == Fetched::LikeDirectory;
    let remote = remote(request, reach);
    let mut keep = |context: Arc<FetchedContext>| Root::of(context, &mut fetched);
    let root = match &request.context {
        ContextSource::Directory(path) => {
            // A Dockerfile that is not there would only be a consequence.
            fs::metadata(path).map_err(|source| InputError::Context { path: path.clone(), source })?;
            Root::Local(path.clone())
        }
        ContextSource::Empty => Root::Nothing,
        ContextSource::Stdin => {
            keep(reach.stdin.fetch(&remote, reach.store.as_ref(), cancel).map_err(InputError::from)?)
        }
        ContextSource::Tar(tar) => {
            keep(tar.fetch(&remote.with_root_as_owner(), cancel).map_err(InputError::from)?.into())
        }
        ContextSource::Archive(path) => {
            let failed = |source| InputError::Context { path: path.clone(), source };
            let file = fs::File::open(path).map_err(failed)?;
            let name = format!("`{}`", path.display());
            keep(remote.stream_context(file, &name, cancel).map_err(InputError::from)?.into())
        }
        ContextSource::Bucket(bucket) => {
            let environment = &request.credentials.environment;
            keep(remote.bucket_context(bucket, environment, cancel).map_err(InputError::from)?.into())
        }
        ContextSource::Repository(repository) => {
            let tree = remote.repository_context(repository, cancel).map_err(InputError::from)?;
            keep(FetchedContext::Tree(tree).into())
        }
        ContextSource::Git(url) => {
            let login = crate::context::git_login(&request.credentials.environment);
            let remote = remote.with_git(request.git.clone(), login);
            keep(git_context(request, &remote, url, cancel)?.into())
        }
        ContextSource::Url(url) => keep(remote.url_context(url, cancel).map_err(InputError::from)?.into()),
    };
    if like_directory && matches!(root, Root::Dockerfile(_)) {
        return Err(InputError::NoArchive { context: request.context.to_string() }.into());
    }
    let root = match &request.context_sub_path {
        Some(part) => root.part(part)?,
        None => root,
    };
    let (dockerfile, path) = match (&request.dockerfile, &root) {
        (DockerfileSource::Text(text), _) => (text.clone(), None),
        (DockerfileSource::InContext(_), Root::Dockerfile(bytes)) => {
            (decode(bytes.clone(), Path::new(&request.context.to_string()))?, None)
        }
        (DockerfileSource::File(path), _) => read_dockerfile(path).map(|(text, path)| (text, Some(path)))?,
        (DockerfileSource::InContext(name), Root::Local(top) | Root::Fetched(top, _)) => {
            let path = inside(top, name)?;
            let (text, path) = read_dockerfile(&path).map_err(|error| match error {
                // Where it was unpacked says nothing to anybody.
                BuildError::Input(InputError::NoDockerfile { near, .. }) => {
                    InputError::NoDockerfile { path: name.clone(), near }.into()
                }
                other => other,
            })?;
            (text, Some(path))
        }
        (DockerfileSource::InContext(name), Root::Nothing) => {
            return Err(InputError::NoDockerfile { path: name.clone(), near: None }.into());
        }
    };
    // Only what people keep by hand is filtered (checklist D-02): an archive or repository holds what its author chose.
    // What a caller of the library puts together is kept by hand, too.
    let filtered = matches!(root, Root::Local(_)) || matches!(request.context, ContextSource::Tar(_)) || like_directory;
    let top = root.path();
    let ignore = if filtered { find_ignore_file(path.as_deref(), top).map_err(InputError::from)? } else { None };
    let patterns = match &ignore {
        Some(file) => {
            Patterns::parse(&file.text).map_err(|source| InputError::Ignore { path: file.path.clone(), source })?
        }
        None => Patterns::default(),
    };
    let files = root.files(patterns, request)?;
    Ok(Inputs { dockerfile, ignore_file: ignore.map(|file| file.text), files, fetched })
}

/// Opens the files of a named context, which may have a `.dockerignore` of its own (checklist F-14), and says of what time
/// they are.
pub(super) fn open_named(
    request: &BuildRequest,
    name: &str,
    opened: &mut Inputs,
    reach: &Reach,
    cancel: &Cancel,
) -> Result<(Files, Option<i64>), BuildError> {
    let value =
        request.plan.named_contexts.get(name).ok_or_else(|| BuildError::UnknownContext { name: name.to_owned() })?;
    let remote = remote(request, reach);
    let mut fetched = Vec::new();
    let mut keep = |context: Arc<FetchedContext>| Root::of(context, &mut fetched);
    let (root, filtered) = match value {
        NamedContext::Directory(path) => (Root::Local(path.clone()), true),
        NamedContext::Git(url) => (keep(git_context(request, &remote, url, cancel)?.into()), false),
        NamedContext::Stdin => {
            (keep(reach.stdin.fetch(&remote, reach.store.as_ref(), cancel).map_err(InputError::from)?), false)
        }
        NamedContext::Url(url) => (keep(remote.url_context(url, cancel).map_err(InputError::from)?.into()), false),
        NamedContext::Image(_) | NamedContext::OciLayout(_) => {
            return Err(BuildError::UnknownContext { name: name.to_owned() });
        }
    };
    let time = fetched.first().map_or(Ok(None), |fetched| time_of(fetched))?;
    opened.fetched.append(&mut fetched);
    let ignore = if filtered { find_ignore_file(None, root.path()).map_err(InputError::from)? } else { None };
    let patterns = match &ignore {
        Some(file) => {
            Patterns::parse(&file.text).map_err(|source| InputError::Ignore { path: file.path.clone(), source })?
        }
        None => Patterns::default(),
    };
    Ok((root.files(patterns, request)?, time))
}

/// Where a context's files are.
enum Root {
    /// The user's own directory.
    Local(PathBuf),
    /// A directory that we filled, and what is recorded of its files.
    Fetched(PathBuf, Option<Arc<Owners>>),
    /// There is nothing but a Dockerfile (a URL of one).
    Dockerfile(Vec<u8>),
    /// There is nothing.
    Nothing,
}

impl Root {
    /// Keeps what was fetched for as long as the build needs it.
    fn of(fetched: Arc<FetchedContext>, keep: &mut Vec<Arc<FetchedContext>>) -> Self {
        let root = match &*fetched {
            FetchedContext::Dockerfile { text, .. } => Self::Dockerfile(text.clone()),
            FetchedContext::Tree(tree) => Self::Fetched(tree.path().to_owned(), tree.owners().cloned()),
        };
        keep.push(fetched);
        root
    }

    /// A directory below the top. Links in its path stay inside.
    fn part(self, part: &Path) -> Result<Self, InputError> {
        let missing = |source| InputError::SubPath { path: part.to_owned(), source };
        let below = |top: &Path| -> Result<PathBuf, InputError> {
            let tree = crate::rootfs::Rootfs::open(top).map_err(missing)?;
            let resolved = tree.resolve(part, true).map_err(missing)?;
            let path = top.join(resolved.strip_prefix("/").unwrap_or(&resolved));
            fs::read_dir(&path).map_err(missing)?;
            Ok(path)
        };
        match &self {
            Self::Local(top) => below(top).map(Self::Local),
            Self::Fetched(top, owners) => below(top).map(|top| Self::Fetched(top, owners.clone())),
            Self::Dockerfile(_) | Self::Nothing => Err(missing(std::io::ErrorKind::NotFound.into())),
        }
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Self::Local(path) | Self::Fetched(path, _) => Some(path),
            Self::Dockerfile(_) | Self::Nothing => None,
        }
    }

    /// The files that `patterns` do not hide.
    fn files(&self, patterns: Patterns, request: &BuildRequest) -> Result<Files, InputError> {
        let Some(top) = self.path() else { return Ok(Files::empty()) };
        let files = Files::directory(top, patterns)
            .map_err(|source| InputError::Context { path: top.to_owned(), source })?
            .with_hash_cache(&request.work_dir.join("files"));
        Ok(match self {
            Self::Fetched(_, Some(owners)) => files.recorded(Arc::clone(owners)),
            _ => files,
        })
    }
}

/// How ADD and contexts reach URLs and git repositories.
pub(super) fn remote(request: &BuildRequest, reach: &Reach) -> Remote {
    let secrets = request.secrets.clone();
    let look_up = move |id: &str| {
        let value = secrets.get(id)?;
        Some(Secret::new(String::from_utf8_lossy(&value.bytes()).into_owned()))
    };
    let answers = request.work_dir.join("urls");
    let temporary = reach.store.as_ref().map_or_else(|| request.work_dir.join("tmp"), Store::temp_dir);
    let remote = Remote::new(reach.client.clone(), &answers, &temporary, Arc::new(look_up));
    let remote = if request.fetched == Fetched::LikeDirectory { remote.with_root_as_owner() } else { remote };
    remote.within(reach.disk.clone()).with_agent(request.ssh.get("default").map(|agent| offered(agent, &temporary)))
}

/// `agent` behind a socket below `temporary`, made when git asks for it and gone with what is returned.
fn offered(agent: &SshAgent, temporary: &Path) -> Arc<SshAgentSocket> {
    let (agent, temporary) = (agent.clone(), temporary.to_owned());
    let forward = Mutex::new(None);
    Arc::new(move || {
        let mut forward = forward.lock().unwrap_or_else(PoisonError::into_inner);
        if forward.is_none() {
            fs::create_dir_all(&temporary)?;
            *forward = Some(SshForward::start(&agent, &temporary, 0o600, None)?);
        }
        let socket = forward.as_ref().map(|forward| forward.socket().to_owned()).unwrap_or_default();
        // The address of a socket holds 107 bytes and a NUL (unix(7)); `ssh` has no way around it.
        if socket.as_os_str().len() > 107 {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidFilename,
                "the work directory's path is too long",
            ));
        }
        Ok(socket)
    })
}

/// Argument that keeps `.git` in a context (checklist D-10).
const KEEP_GIT_DIR: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";

/// Argument that names the time of the build, or what has it.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

fn git_context(
    request: &BuildRequest,
    remote: &Remote,
    url: &str,
    cancel: &Cancel,
) -> Result<FetchedContext, InputError> {
    let keep = request.plan.build_args.get(KEEP_GIT_DIR).is_some_and(|value| matches!(&**value, "1" | "true"));
    let dated = request.plan.build_args.get(EPOCH).is_some_and(|value| !value.is_empty());
    Ok(remote.git_context(url, keep, dated, cancel)?)
}

/// A path below `top`, which is not ours to trust when it was fetched: links must not lead out of it.
fn inside(top: &Path, name: &Path) -> Result<PathBuf, BuildError> {
    let failed = |source| InputError::Dockerfile { path: name.to_owned(), source };
    let tree = crate::rootfs::Rootfs::open(top).map_err(failed)?;
    let resolved = tree.resolve(name, true).map_err(failed)?;
    Ok(top.join(resolved.strip_prefix("/").unwrap_or(&resolved)))
}

/// The name of a file beside `path` that is nearest to its own.
fn beside(path: &Path) -> Option<String> {
    let wanted = path.file_name()?.to_str()?;
    let names = fs::read_dir(path.parent()?).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    nearest(wanted, names.iter().map(String::as_str)).map(str::to_owned)
}

/// Reads the Dockerfile; `Dockerfile` may also be spelled `dockerfile` (checklist D-09). The path is the one asked for,
/// since the ignore file is looked for beside that name.
fn read_dockerfile(path: &Path) -> Result<(String, PathBuf), BuildError> {
    let mut found = path.to_owned();
    if !path.exists() && path.file_name().is_some_and(|name| name == DEFAULT_NAMES[0]) {
        let other = path.with_file_name(DEFAULT_NAMES[1]);
        if other.exists() {
            found = other;
        }
    }
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => InputError::NoDockerfile { path: path.to_owned(), near: beside(path) },
        _ => InputError::Dockerfile { path: path.to_owned(), source },
    };
    let file = fs::File::open(&found).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_DOCKERFILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_DOCKERFILE_BYTES {
        return Err(InputError::TooLong { path: path.to_owned(), limit: MAX_DOCKERFILE_BYTES }.into());
    }
    Ok((decode(bytes, path)?, found))
}

/// The text of a Dockerfile; `path` is where it comes from.
fn decode(bytes: Vec<u8>, path: &Path) -> Result<String, InputError> {
    dockerfile::decode(bytes).map_err(|NotUtf8 { line, column }| InputError::NotUtf8 {
        path: path.to_owned(),
        line,
        column,
    })
}
