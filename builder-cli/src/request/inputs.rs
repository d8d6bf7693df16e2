//! Where a build reads from: context, Dockerfile, named contexts, secrets, ssh agents.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use builder_core::cache::{CacheOptions, CachePlace, CacheTarget};
use builder_core::cancel::Cancel;
use builder_core::cloud::Bucket;
use builder_core::context::GitOptions;
use builder_core::dockerfile::decode;
use builder_core::exec::{ContextSource, DockerfileSource, SshAgent};
use builder_core::http::{self, ClientOptions, HttpError, Request, Url};
use builder_core::output::Annotation;
use builder_core::plan::NamedContext;
use builder_core::ssh::{KeyError, LARGEST_KEY_BYTES, SshKey};
use zeroize::Zeroizing;

use super::ambient::Ambient;
use super::error::UsageError;
use super::registries::Registries;
use super::values::{csv, duration, name_value};
use crate::flags::BuildFlags;

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file.
    File(PathBuf),
    /// In a variable of our environment.
    Variable(String),
}

pub(super) fn context(text: &str, ambient: &Ambient) -> Result<ContextSource, UsageError> {
    if text == "-" {
        return Ok(ContextSource::Stdin);
    }
    if let Some(bucket) = Bucket::parse(text) {
        return bucket
            .map(ContextSource::Bucket)
            .map_err(|error| UsageError::value("CONTEXT", &error.text, error.reason));
    }
    match text.split_once("://") {
        Some(("tar", "stdin")) => return Ok(ContextSource::Stdin),
        Some(("tar", path)) => return Ok(ContextSource::Archive(ambient.cwd.join(path))),
        Some(("dir", path)) => return Ok(ContextSource::Directory(ambient.cwd.join(path))),
        _ => {}
    }
    Ok(match remote(text) {
        Some(NamedContext::Git(url)) => ContextSource::Git(url),
        Some(NamedContext::Url(url)) => ContextSource::Url(url),
        _ => ContextSource::Directory(ambient.cwd.join(text)),
    })
}

/// Reads `--cache-from`, `--cache-to` and what goes with them; `registry.insecure=true` changes how registries are reached.
pub(super) fn cache(
    flags: &BuildFlags,
    registries: &mut Registries,
    ambient: &Ambient,
) -> Result<CacheOptions, UsageError> {
    let mut allow = |place: &CachePlace, insecure: bool| {
        if let (true, CachePlace::Registry(repository)) = (insecure, place) {
            registries.registry.insecure.insert(repository.registry().to_owned());
            registries.client.hosts.entry(repository.registry().to_owned()).or_default().skip_tls_verify = true;
        }
    };
    let mut cache = CacheOptions {
        ttl: flags.cache_ttl.as_deref().map(|text| duration("--cache-ttl", text)).transpose()?,
        copy_layers: flags.cache_copy_layers,
        run_layers: flags.cache_run_layers,
        ..CacheOptions::default()
    };
    for text in flags.cache_from.iter().filter(|text| !text.is_empty()) {
        let (place, insecure) = CachePlace::parse(text, &ambient.cwd)?;
        allow(&place, insecure);
        cache.from.push(place);
    }
    for text in flags.cache_to.iter().filter(|text| !text.is_empty()) {
        let (target, insecure) = CacheTarget::parse(text, &ambient.cwd)?;
        allow(&target.place, insecure);
        cache.to.push(target);
    }
    Ok(cache)
}

/// A git or http(s) URL, by the rules of BuildKit's `DetectGitContext`.
fn remote(text: &str) -> Option<NamedContext> {
    let git = |text: &str| Some(NamedContext::Git(text.to_owned()));
    if ["git://", "ssh://", "git@", "github.com/"].iter().any(|start| text.starts_with(start)) {
        return git(text);
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        let path = text.split(['#', '?']).next().unwrap_or(text);
        return if path.ends_with(".git") { git(text) } else { Some(NamedContext::Url(text.to_owned())) };
    }
    None
}

pub(super) fn dockerfile(
    file: Option<&str>,
    context: &ContextSource,
    sub_path: Option<&Path>,
    client: &ClientOptions,
    ambient: &Ambient,
) -> Result<DockerfileSource, UsageError> {
    if let Some(url) = file.and_then(web_url) {
        let bytes = fetched_dockerfile(&url, client)
            .map_err(|source| UsageError::FetchDockerfile { url: http::redacted(&url), source })?;
        let text = decode(bytes).map_err(|error| UsageError::value("--file", &http::redacted(&url), error))?;
        return Ok(DockerfileSource::Text(text));
    }
    match (file, context) {
        (Some("-"), _) => {
            let read = |source| UsageError::Read { what: "the Dockerfile", path: "-".into(), source };
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).map_err(read)?;
            let text = decode(bytes).map_err(|error| read(io::Error::new(io::ErrorKind::InvalidData, error)))?;
            Ok(DockerfileSource::Text(text))
        }
        (None, ContextSource::Directory(dir)) => {
            let dir = sub_path.map_or_else(|| dir.clone(), |part| dir.join(part.strip_prefix("/").unwrap_or(part)));
            Ok(DockerfileSource::File(default_dockerfile(&dir)))
        }
        (Some(path), ContextSource::Directory(_)) => Ok(DockerfileSource::File(ambient.cwd.join(path))),
        (path, _) => Ok(DockerfileSource::InContext(path.unwrap_or("Dockerfile").into())),
    }
}

/// Longest Dockerfile that is fetched, in bytes.
const DOCKERFILE_LIMIT: u64 = 16 << 20;

/// A `--file` or `--dockerfile` that is no path but a URL.
pub fn web_url(text: &str) -> Option<Url> {
    let is_web = text.starts_with("http://") || text.starts_with("https://");
    if is_web { Url::parse(text).ok() } else { None }
}

/// The bytes of a Dockerfile behind a URL.
///
/// # Errors
/// If there is no answer, or none that is a Dockerfile.
pub fn fetched_dockerfile(url: &Url, client: &ClientOptions) -> Result<Vec<u8>, HttpError> {
    let client = http::Client::new(client.clone());
    let answer = client.send(Request::get(url.clone()), &Cancel::default())?;
    answer.error_for_status()?.into_bytes(DOCKERFILE_LIMIT)
}

/// Reads `--git`.
pub(super) fn git(texts: &[String]) -> Result<GitOptions, UsageError> {
    let mut options = GitOptions::default();
    for text in texts {
        let known = options.set(text).map_err(|error| UsageError::value("--git", text, error))?;
        if !known {
            let keys = "branch, single-branch, depth, recurse-submodules and insecure-skip-tls";
            return Err(UsageError::value("--git", text, format!("the keys are {keys}")));
        }
    }
    Ok(options)
}

/// Refuses two readers of standard input: the second would find it empty.
pub(super) fn one_reads_standard_input(flags: &BuildFlags) -> Result<(), UsageError> {
    let named = flags.build_context.iter().filter(|text| text.ends_with("=-")).map(|_| "a --build-context of `-`");
    let mut readers = (flags.file.as_deref() == Some("-"))
        .then_some("--file -")
        .into_iter()
        .chain((flags.context == "-").then_some("a context from standard input"))
        .chain(named);
    match (readers.next(), readers.next()) {
        (Some(one), Some(other)) => {
            Err(UsageError::Conflict { one, other: if one == other { "another one" } else { other } })
        }
        _ => Ok(()),
    }
}

/// `Dockerfile`, or `dockerfile` if only that is there, as BuildKit.
fn default_dockerfile(dir: &Path) -> PathBuf {
    let (usual, lower) = (dir.join("Dockerfile"), dir.join("dockerfile"));
    if !usual.exists() && lower.exists() { lower } else { usual }
}

pub(super) fn named_contexts(
    texts: &[String],
    ambient: &Ambient,
) -> Result<BTreeMap<String, NamedContext>, UsageError> {
    let flag = "--build-context";
    let mut contexts = BTreeMap::new();
    for text in texts {
        let (name, value) = name_value(flag, text)?;
        let context = if value.is_empty() {
            return Err(UsageError::value(flag, text, "it is NAME=VALUE"));
        } else if let Some(image) = value.strip_prefix("docker-image://") {
            NamedContext::Image(image.to_owned())
        } else if let Some(layout) = value.strip_prefix("oci-layout://") {
            NamedContext::OciLayout(ambient.cwd.join(layout).to_string_lossy().into_owned())
        } else if value == "-" {
            NamedContext::Stdin
        } else {
            remote(&value).unwrap_or_else(|| NamedContext::Directory(ambient.cwd.join(&value)))
        };
        contexts.insert(name, context);
    }
    Ok(contexts)
}

pub(super) fn secrets(texts: &[String], ambient: &Ambient) -> Result<BTreeMap<String, SecretSource>, UsageError> {
    let flag = "--secret";
    let mut secrets = BTreeMap::new();
    for text in texts {
        let (mut id, mut file, mut variable, mut kind) = (String::new(), None, None, String::new());
        for field in csv(flag, text)? {
            let (name, value) = name_value(flag, &field)?;
            match name.to_ascii_lowercase().as_str() {
                "id" => id = value,
                "src" | "source" => file = Some(value),
                "env" => variable = Some(value),
                "type" if value == "file" || value == "env" => kind = value,
                "type" => return Err(UsageError::value(flag, text, "type is file or env")),
                _ => return Err(UsageError::value(flag, text, format!("`{name}` is no field of a secret"))),
            }
        }
        if id.is_empty() {
            return Err(UsageError::value(flag, text, "id=NAME is missing"));
        }
        // type=env,src=NAME is another way to say env=NAME.
        if kind == "env" && variable.is_none() {
            variable = file.take();
        }
        let source = match (file, variable) {
            (Some(_), Some(_)) => return Err(UsageError::value(flag, text, "src and env exclude each other")),
            (Some(file), None) => SecretSource::File(ambient.cwd.join(file)),
            (None, Some(variable)) => SecretSource::Variable(variable),
            // As buildx: a variable of that name if there is one, else a file.
            (None, None) if ambient.var(&id).is_some() || kind == "env" => SecretSource::Variable(id.clone()),
            (None, None) => SecretSource::File(ambient.cwd.join(&id)),
        };
        secrets.insert(id, source);
    }
    Ok(secrets)
}

/// Largest secret in bytes, as BuildKit's.
const SECRET_LIMIT_BYTES: u64 = 500 * 1024;

impl SecretSource {
    /// The secret itself; a variable that is not set is an empty secret, as in BuildKit.
    ///
    /// # Errors
    /// If the file cannot be read or is too large.
    pub fn read(&self, ambient: &Ambient) -> Result<Vec<u8>, UsageError> {
        match self {
            Self::Variable(name) => {
                Ok(ambient.var(name).map(|value| value.as_encoded_bytes().to_vec()).unwrap_or_default())
            }
            Self::File(path) => {
                let read = |source| UsageError::Read { what: "the secret", path: path.clone(), source };
                let size = fs::metadata(path).map_err(read)?.len();
                if size > SECRET_LIMIT_BYTES {
                    let path = path.to_string_lossy();
                    return Err(UsageError::value("--secret", &path, "a secret has at most 500 KiB"));
                }
                fs::read(path).map_err(read)
            }
        }
    }
}

pub(super) fn ssh(texts: &[String], ambient: &Ambient) -> Result<BTreeMap<String, SshAgent>, UsageError> {
    let flag = "--ssh";
    let mut agents = BTreeMap::new();
    for text in texts {
        let (id, paths) = match text.split_once('=') {
            Some((id, paths)) => (id, paths.to_owned()),
            None => {
                let agent = ambient.text("SSH_AUTH_SOCK").ok_or_else(|| UsageError::NoAgent { id: text.clone() })?;
                (text.as_str(), agent.to_owned())
            }
        };
        if paths.split(',').any(str::is_empty) {
            return Err(UsageError::value(flag, text, "the path of a socket or key is missing"));
        }
        let paths: Vec<PathBuf> = paths.split(',').map(|path| ambient.cwd.join(path)).collect();
        let mut keys = Vec::new();
        for path in &paths {
            let read = |source| UsageError::Read { what: "the ssh agent's socket or key", path: path.clone(), source };
            let info = fs::metadata(path).map_err(read)?;
            if !std::os::unix::fs::FileTypeExt::is_socket(&info.file_type()) {
                if info.len() > LARGEST_KEY_BYTES {
                    return Err(UsageError::SshKey { path: path.clone(), source: KeyError::NoKey });
                }
                let content = Zeroizing::new(fs::read(path).map_err(read)?);
                let key = SshKey::parse(&content);
                keys.push(key.map_err(|source| UsageError::SshKey { path: path.clone(), source })?);
            } else if paths.len() > 1 {
                return Err(UsageError::value(flag, text, "only a single socket allowed"));
            }
        }
        let agent = match paths.into_iter().next() {
            Some(socket) if keys.is_empty() => SshAgent::Socket(socket),
            _ => SshAgent::Keys(keys.into()),
        };
        agents.insert(id.to_owned(), agent);
    }
    Ok(agents)
}

pub(super) fn annotations(texts: &[String]) -> Result<Vec<Annotation>, UsageError> {
    let mut annotations = Vec::new();
    for text in texts {
        annotations.extend(Annotation::parse(text)?);
    }
    Ok(annotations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_takes_one_socket_or_keys() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let _listener = std::os::unix::net::UnixListener::bind(path("socket")).expect("a socket");
        fs::write(path("locked"), "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
            .expect("write");
        fs::write(path("no-key"), "text").expect("write");
        let ambient = Ambient {
            environment: [("SSH_AUTH_SOCK".into(), path("socket").into())].into(),
            cwd: directory.path().to_owned(),
            ..Ambient::default()
        };
        for text in ["default", "other=socket"] {
            let agents = ssh(&[text.to_owned()], &ambient).expect(text);
            assert!(
                matches!(agents.values().next(), Some(SshAgent::Socket(found)) if *found == path("socket")),
                "{text}"
            );
        }
        for (text, expected) in [
            ("default=locked", "encrypted with a passphrase"),
            ("default=no-key", "this is no private key"),
            ("default=socket,no-key", "only a single socket allowed"),
            ("default=missing", "No such file"),
            ("default=", "is missing"),
            ("default=no-key,", "is missing"),
        ] {
            let error = ssh(&[text.to_owned()], &ambient).expect_err(text);
            assert!(builder_core::hint::chain(&error).contains(expected), "{text}: {error}");
        }
        let without = Ambient { environment: BTreeMap::new(), ..ambient };
        assert!(ssh(&["default".to_owned()], &without).is_err());
    }

    fn ambient(variables: &[(&str, &str)]) -> Ambient {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        Ambient { environment: variables.collect(), cwd: "/here".into(), ..Ambient::default() }
    }

    #[test]
    fn contexts() {
        let git = |url: &str| Some(ContextSource::Git(url.to_owned()));
        let url = |url: &str| Some(ContextSource::Url(url.to_owned()));
        for (text, expected) in [
            ("-", Some(ContextSource::Stdin)),
            (".", Some(ContextSource::Directory("/here/.".into()))),
            ("/a", Some(ContextSource::Directory("/a".into()))),
            ("git@h:x/y.git", git("git@h:x/y.git")),
            ("https://h/x.git#main:sub", git("https://h/x.git#main:sub")),
            ("https://h/x.tar.gz", url("https://h/x.tar.gz")),
            ("github.com/x/y", git("github.com/x/y")),
            ("s3://b/x", Bucket::parse("s3://b/x").and_then(Result::ok).map(ContextSource::Bucket)),
            ("gs://", None),
            ("tar://x.tar", Some(ContextSource::Archive("/here/x.tar".into()))),
            ("tar://stdin", Some(ContextSource::Stdin)),
            ("dir:///a", Some(ContextSource::Directory("/a".into()))),
        ] {
            assert_eq!(context(text, &ambient(&[])).ok(), expected, "{text}");
        }
    }

    #[test]
    fn secrets_come_from_files_and_variables() {
        let file = |path: &str| Some(SecretSource::File(path.into()));
        let variable = |name: &str| Some(SecretSource::Variable(name.to_owned()));
        for (text, expected) in [
            ("id=a,src=f", file("/here/f")),
            ("id=a,source=/f", file("/f")),
            ("id=a,env=V", variable("V")),
            ("type=env,id=a,src=V", variable("V")),
            ("id=SET", variable("SET")),
            ("id=unset", file("/here/unset")),
            ("src=f", None),
            ("id=a,src=f,env=V", None),
            ("id=a,type=x", None),
            ("id=a,color=red", None),
        ] {
            let secrets = secrets(&[text.to_owned()], &ambient(&[("SET", "1")])).ok();
            assert_eq!(secrets.and_then(|secrets| secrets.into_values().next()), expected, "{text}");
        }
    }

    #[test]
    fn annotations_name_their_levels() {
        for (text, expected) in [
            ("a=b", "Manifest a=b"),
            ("manifest:a=b=c", "Manifest a=b=c"),
            ("index,manifest[linux/arm64]:a=", "Index a=, Manifest linux/arm64 a="),
            ("index-descriptor,manifest-descriptor:org.x=1", "IndexDescriptor org.x=1, ManifestDescriptor org.x=1"),
            ("manifest:urn:x=b", "Manifest urn:x=b"),
            ("a", "invalid annotation `a`: expected key=value"),
            ("=a", "invalid annotation `=a`: the key is empty"),
            ("idnex:a=b", "invalid annotation `idnex:a=b`: unknown annotation type `idnex`"),
            (
                "index[linux/amd64:a=b",
                "invalid annotation `index[linux/amd64:a=b`: unknown annotation type `index[linux/amd64`",
            ),
            ("index[]:a=b", "invalid annotation `index[]:a=b`: `` is not a platform"),
        ] {
            let shown = match annotations(&[text.to_owned()]) {
                Ok(annotations) => annotations
                    .iter()
                    .map(|annotation| {
                        let platform = annotation.platform.as_ref().map(|platform| format!("{platform} "));
                        let platform = platform.unwrap_or_default();
                        format!("{:?} {platform}{}={}", annotation.level, annotation.key, annotation.value)
                    })
                    .collect::<Vec<_>>()
                    .join(", "),
                Err(error) => error.to_string(),
            };
            assert_eq!(shown, expected, "{text}");
        }
    }
}
