//! Which object a name means, and the shallow fetch of it.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use gix::bstr::{BStr, ByteSlice as _};
use gix::remote::Direction;
use gix::remote::fetch::{Shallow, Tags};

use super::transport::ClientTransport;
use super::{Commit, GitError, GitRequest};
use crate::cancel::Cancel;
use crate::hint::chain;
use crate::http;

/// Where fetched references are kept, apart from any that a remote could name.
const LOCAL: &str = "refs/slipway";

/// A URL without user and password.
pub(super) fn redacted(text: &str) -> String {
    match url::Url::parse(text) {
        Ok(url) if url.has_host() => http::redacted(&url),
        _ => text.to_owned(),
    }
}

/// Fetches the one commit into a new repository at `git_dir`.
pub(super) fn fetch(
    request: &GitRequest,
    git_dir: &Path,
    client: &http::Client,
    cancel: &Cancel,
    interrupt: &AtomicBool,
) -> Result<(gix::Repository, Commit), GitError> {
    let shown = redacted(&request.url);
    let failed = |error: &dyn std::error::Error| GitError::Fetch { url: shown.clone(), reason: chain(error) };
    let kind = if request.keep_git_dir { gix::create::Kind::WithWorktree } else { gix::create::Kind::Bare };
    let directory = if request.keep_git_dir { git_dir.parent().unwrap_or(git_dir) } else { git_dir };
    // Nothing of the user's or the system's configuration applies: the same commit is the same everywhere.
    let ssh = format!("core.sshCommand={}", request.ssh.command());
    let settings = ["protocol.version=2", "fetch.negotiationAlgorithm=noop", "ssh.variant=ssh", &ssh];
    let options = gix::open::Options::isolated().config_overrides(settings);
    let repository: gix::Repository =
        gix::ThreadSafeRepository::init_opts(directory, kind, gix::create::Options::default(), options)
            .map_err(|error| failed(&error))?
            .into();
    let url = gix::url::parse(BStr::new(&request.url)).map_err(|_| GitError::BadUrl { url: shown.clone() })?;
    let specs = refspecs(request.reference.as_deref());
    let remote = repository
        .remote_at(url.clone())
        .and_then(|remote| remote.with_refspecs(specs.iter().map(|spec| spec.as_bytes().as_bstr()), Direction::Fetch))
        .map_err(|error| failed(&error))?
        .with_fetch_tags(if request.depth.is_some() { Tags::None } else { Tags::Included });
    let depth = request.depth.map_or(Shallow::NoChange, Shallow::DepthAtRemote);
    let missing = || GitError::NoSuchReference {
        url: shown.clone(),
        reference: request.reference.clone().unwrap_or_else(|| "HEAD".to_owned()),
    };

    // One function for two types of connection.
    macro_rules! receive {
        ($connection:expr) => {{
            let prepared = $connection
                .prepare_fetch(gix::progress::Discard, gix::remote::ref_map::Options::default())
                .map_err(|error| failed(&error))?;
            if prepared.ref_map().mappings.is_empty() {
                return Err(missing());
            }
            prepared.with_shallow(depth).receive(gix::progress::Discard, interrupt).map_err(|error| {
                let reason = chain(&error);
                // What servers say when a commit is wanted that they do not have; some just hang up.
                let refused = ["not our ref", "unadvertised object", "Broken pipe"];
                if specs[0].ends_with("/commit") && refused.iter().any(|words| reason.contains(words)) {
                    missing()
                } else {
                    GitError::Fetch { url: shown.clone(), reason }
                }
            })?
        }};
    }
    let _outcome = if matches!(url.scheme, gix::url::Scheme::Http | gix::url::Scheme::Https) {
        let http = ClientTransport::new(client.clone(), cancel.clone(), request.authorization.clone());
        let transport = gix_transport::client::blocking_io::http::Transport::new_http(
            http,
            url,
            gix_transport::Protocol::V2,
            false,
        );
        receive!(remote.to_connection_with_transport(transport))
    } else {
        receive!(remote.connect(Direction::Fetch).map_err(|error| failed(&error))?)
    };

    let found = ["exact", "branch", "tag", "commit"]
        .iter()
        .find_map(|name| repository.try_find_reference(&format!("{LOCAL}/{name}")).ok().flatten());
    let mut id = found.ok_or_else(missing)?.peel_to_id().map_err(|error| failed(&error))?.detach();
    if let Some(commit) = &request.commit {
        let absent = || GitError::NoSuchReference { url: shown.clone(), reference: commit.clone() };
        id = gix::ObjectId::from_hex(commit.as_bytes()).map_err(|_| absent())?;
        repository.find_object(id).map_err(|_| absent())?;
    }
    let time = {
        let object = repository.find_object(id).map_err(|error| failed(&error))?;
        let commit = object.try_into_commit().map_err(|error| failed(&error))?;
        commit.time().map_err(|error| failed(&error))?.seconds
    };
    let commit = Commit { id: id.to_hex().to_string(), time };
    Ok((repository, commit))
}

/// What to ask the remote for: a commit by its id, a full reference, or a branch or else a tag of that name.
fn refspecs(reference: Option<&str>) -> Vec<String> {
    match reference {
        None | Some("HEAD") => vec![format!("+HEAD:{LOCAL}/exact")],
        Some(id) if id.len() == 40 && id.bytes().all(|b| b.is_ascii_hexdigit()) => {
            vec![format!("+{}:{LOCAL}/commit", id.to_ascii_lowercase())]
        }
        Some(full) if full.starts_with("refs/") => vec![format!("+{full}:{LOCAL}/exact")],
        Some(name) => {
            vec![format!("+refs/heads/{name}:{LOCAL}/branch"), format!("+refs/tags/{name}:{LOCAL}/tag")]
        }
    }
}

/// Makes a kept `.git` a work tree at the commit: detached HEAD, and an index that lists its files.
pub(super) fn write_head_and_index(repository: &gix::Repository, commit: &str, url: &str) -> Result<(), GitError> {
    let git_dir = repository.git_dir();
    for (name, text) in [("HEAD", format!("{commit}\n")), ("config", config(url))] {
        let path = git_dir.join(name);
        std::fs::write(&path, text).map_err(|source| GitError::Io { action: "write", path, source })?;
    }
    let bad = |error: &dyn std::error::Error| GitError::Object { url: String::new(), reason: chain(error) };
    let id = gix::ObjectId::from_hex(commit.as_bytes()).map_err(|error| bad(&error))?;
    let tree = repository.find_object(id).map_err(|error| bad(&error))?.peel_to_tree().map_err(|error| bad(&error))?;
    let mut index = repository.index_from_tree(&tree.id).map_err(|error| bad(&error))?;
    index.write(gix::index::write::Options::default()).map_err(|error| bad(&error))?;
    Ok(())
}

/// The configuration of a checkout as `git clone` writes it. A password of the URL is not kept.
fn config(url: &str) -> String {
    let secret = url::Url::parse(url).ok().filter(|parsed| parsed.password().is_some());
    let without = secret.and_then(|mut parsed| parsed.set_password(None).ok().map(|()| parsed.into()));
    let url: String = without.unwrap_or_else(|| url.to_owned());
    let url = url.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n\
         [remote \"origin\"]\n\turl = {url}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n"
    )
}

/// A submodule's URL as the parent's `.gitmodules` gives it: `./x` and `../x` are relative to the parent's URL
/// (gitsubmodules(7)).
pub(super) fn relative_url(parent: &str, url: &str) -> String {
    if !(url.starts_with("./") || url.starts_with("../")) {
        return url.to_owned();
    }
    let mut base = parent.trim_end_matches('/').to_owned();
    let mut rest = url;
    loop {
        if let Some(after) = rest.strip_prefix("../") {
            match base.rfind(['/', ':']) {
                Some(cut) => base.truncate(cut + usize::from(base.as_bytes()[cut] == b':')),
                None => base.clear(),
            }
            rest = after;
        } else if let Some(after) = rest.strip_prefix("./") {
            rest = after;
        } else {
            let separator = if base.ends_with(':') { "" } else { "/" };
            return format!("{base}{separator}{rest}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_keep_no_password() {
        for (url, expected) in [
            ("https://user:secret@host/a.git", "https://user@host/a.git"),
            ("https://host/a.git", "https://host/a.git"),
            ("git@host:a.git", "git@host:a.git"),
        ] {
            assert!(config(url).contains(&format!("\turl = {expected}\n")), "{}", config(url));
        }
    }
}
