//! Repositories as contexts in Kaniko's words: `git://HOST/PATH[#REF][#COMMIT]`, and the options of `--git`.

use std::num::NonZeroU32;

use crate::cloud::CloudEnvironment;
use crate::git::is_full_id;
use crate::http::{self, Secret, Url};

/// A commit of a repository as a context. `.git` stays in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// URL that git is spoken to.
    pub url: String,
    /// Branch, tag, full reference or commit; `None` is the remote's `HEAD`.
    pub reference: Option<String>,
    /// The commit, if it is another one than the reference's last.
    pub commit: Option<String>,
    /// How many commits of its history are fetched; `None` for all.
    pub depth: Option<NonZeroU32>,
    /// Whether submodules are fetched.
    pub submodules: bool,
    /// Whether `.git` stays in the context.
    pub keep_git_dir: bool,
    /// Whether any certificate will do.
    pub skip_tls_verify: bool,
    /// Value of the header `Authorization`.
    pub authorization: Option<Secret>,
}

/// Values of `--git`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitOptions {
    /// Takes the place of the context's reference.
    pub branch: Option<String>,
    /// Fetch no other branch. What is fetched here is always one branch.
    pub single_branch: bool,
    /// How many commits of the history are fetched; `None` for all.
    pub depth: Option<NonZeroU32>,
    /// Fetch submodules.
    pub recurse_submodules: bool,
    /// Accept any certificate.
    pub insecure_skip_tls: bool,
}

/// A value that a key of `--git` does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid value `{value}` for {key}")]
pub struct GitOptionsError {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// A text that names no repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not git://HOST/PATH[#REF][#COMMIT]: {reason}")]
pub struct RepositoryError {
    /// What was given, without user and password.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl GitOptions {
    /// Takes one `key=value`. Keys that nobody knows are left alone, as Kaniko does; `false` says that this was one.
    ///
    /// # Errors
    /// [`GitOptionsError`]
    pub fn set(&mut self, text: &str) -> Result<bool, GitOptionsError> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let wrong = || GitOptionsError { key: key.to_owned(), value: value.to_owned() };
        let flag = || match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(wrong()),
        };
        match key {
            "branch" => self.branch = Some(value.to_owned()).filter(|branch| !branch.is_empty()),
            "single-branch" => self.single_branch = flag()?,
            "depth" => self.depth = NonZeroU32::new(value.parse().map_err(|_| wrong())?),
            "recurse-submodules" => self.recurse_submodules = flag()?,
            "insecure-skip-tls" => self.insecure_skip_tls = flag()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Repository {
    /// Reads `git://[USER[:PASSWORD]@]HOST/PATH[#REF][#COMMIT]`, which is spoken to by https, or by http if `GIT_PULL_METHOD` says so.
    /// The login is `GIT_TOKEN`, or `GIT_USERNAME` and `GIT_PASSWORD`, unless the URL has one.
    ///
    /// # Errors
    /// [`RepositoryError`]
    pub fn parse(text: &str, options: &GitOptions, environment: &CloudEnvironment) -> Result<Self, RepositoryError> {
        let failed = |reason| RepositoryError { text: shown(text), reason };
        let rest = text.strip_prefix("git://").ok_or_else(|| failed("it does not begin with git://"))?;
        let mut parts = rest.splitn(3, '#');
        let path = parts.next().unwrap_or_default();
        let set = |part: Option<&str>| part.filter(|part| !part.is_empty()).map(str::to_owned);
        let (reference, commit) = (set(parts.next()), set(parts.next()));
        if commit.as_ref().is_some_and(|commit| !is_full_id(commit)) {
            return Err(failed("the commit is not 40 hexadecimal digits"));
        }
        let method = match environment.get("GIT_PULL_METHOD") {
            Some("http") => "http",
            _ => "https",
        };
        let url = Url::parse(&format!("{method}://{path}")).ok().filter(|url| url.path().len() > 1);
        let url = url.ok_or_else(|| failed("it has no host and path"))?;
        Ok(Self {
            authorization: if url.username().is_empty() { login(environment) } else { None },
            url: url.into(),
            reference: options.branch.clone().or(reference),
            commit,
            depth: options.depth,
            submodules: options.recurse_submodules,
            keep_git_dir: true,
            skip_tls_verify: options.insecure_skip_tls,
        })
    }
}

/// The login that the environment names.
pub(crate) fn login(environment: &CloudEnvironment) -> Option<Secret> {
    if let Some(token) = environment.get("GIT_TOKEN") {
        return Some(http::basic(token, ""));
    }
    let (user, password) = (environment.get("GIT_USERNAME"), environment.get("GIT_PASSWORD"));
    let login = http::basic(user.unwrap_or_default(), password.unwrap_or_default());
    (user.is_some() || password.is_some()).then_some(login)
}

/// The text without user and password.
fn shown(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let host = rest.split('/').next().unwrap_or_default();
    match host.rsplit_once('@') {
        Some((login, _)) => format!("{scheme}://{}", &rest[login.len() + 1..]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, options: &[&str], variables: &[(&str, &str)]) -> Result<Repository, String> {
        let mut read = GitOptions::default();
        for option in options {
            read.set(option).map_err(|error| error.to_string())?;
        }
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let environment = CloudEnvironment::new(variables, None);
        Repository::parse(text, &read, &environment).map_err(|error| error.to_string())
    }

    #[test]
    fn kanikos_urls() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        for (text, url, reference, commit) in [
            ("git://github.com/a/b", "https://github.com/a/b", None, None),
            ("git://github.com/a/b.git#refs/heads/x", "https://github.com/a/b.git", Some("refs/heads/x"), None),
            (&*format!("git://h:8/a#v1#{id}"), "https://h:8/a", Some("v1"), Some(id)),
            (&*format!("git://h/a##{id}"), "https://h/a", None, Some(id)),
        ] {
            let found = read(text, &[], &[]).expect(text);
            assert_eq!(
                (found.url.as_str(), found.reference.as_deref(), found.commit.as_deref()),
                (url, reference, commit)
            );
            assert!(found.keep_git_dir && found.depth.is_none() && found.authorization.is_none());
        }
        assert_eq!(read("git://h/a", &[], &[("GIT_PULL_METHOD", "http")]).expect("a URL").url, "http://h/a");
        for wrong in ["git://", "git://h", "git://h/a#b#short"] {
            assert!(read(wrong, &[], &[]).is_err(), "{wrong}");
        }
        let error = read("git://u:hidden@h", &[], &[]).expect_err("no path");
        assert!(!error.contains("hidden"), "{error}");
    }

    #[test]
    fn options_and_logins() {
        let found = read(
            "git://h/a#main",
            &["branch=x", "depth=3", "recurse-submodules=true", "unknown=1"],
            &[("GIT_TOKEN", "t")],
        );
        let found = found.expect("options");
        assert_eq!(
            (found.reference.as_deref(), found.depth.map(NonZeroU32::get), found.submodules),
            (Some("x"), Some(3), true)
        );
        assert_eq!(found.authorization, Some(http::basic("t", "")));
        let user = [("GIT_USERNAME", "u"), ("GIT_PASSWORD", "p")];
        assert_eq!(read("git://h/a", &[], &user).expect("a URL").authorization, Some(http::basic("u", "p")));
        assert_eq!(read("git://me@h/a", &[], &user).expect("a URL").authorization, None);
        for wrong in ["depth=x", "recurse-submodules=maybe", "insecure-skip-tls=", "single-branch"] {
            assert!(read("git://h/a", &[wrong], &[]).is_err(), "{wrong}");
        }
    }
}
