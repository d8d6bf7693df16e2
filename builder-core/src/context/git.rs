//! How BuildKit spells a git source: URL, fragment and query (checklist C-58, C-59).

use std::collections::BTreeMap;

/// A git source as text says it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reference {
    /// URL of the repository without fragment and query; `user@host:path` is ssh.
    pub url: String,
    /// Branch, tag, full reference or commit.
    pub reference: Option<String>,
    /// Directory of the repository that is meant.
    pub subdir: Option<String>,
    /// What the commit's id must begin with.
    pub checksum: Option<String>,
    /// Whether `.git` stays.
    pub keep_git_dir: Option<bool>,
    /// Whether submodules are fetched.
    pub submodules: Option<bool>,
    /// Whether the files' times are that of the commit instead of that of the checkout.
    pub commit_time: Option<bool>,
    /// Fetch the commit alone, without asking for a reference that leads to it.
    pub fetch_by_commit: bool,
}

/// A text that is a git source, but contradicts itself. `Display` holds BuildKit's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// A key of the query that nobody knows.
    #[error("unexpected query \"{key}\"")]
    UnexpectedQuery {
        /// The key.
        key: String,
    },
    /// A key without a value.
    #[error("query \"{key}\" has no value")]
    NoValue {
        /// The key.
        key: String,
    },
    /// A key that stands there twice.
    #[error("query \"{key}\" has multiple values")]
    MultipleValues {
        /// The key.
        key: String,
    },
    /// A value that does not fit its key.
    #[error("invalid {key} value: \"{value}\"")]
    InvalidValue {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Two different things about the same.
    #[error("{what} conflicts: \"{first}\" vs \"{second}\"")]
    Conflict {
        /// `ref` or `subdir`.
        what: &'static str,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// A branch and a tag.
    #[error("branch conflicts with tag")]
    BranchAndTag,
    /// A field of the `##key=value,…` form that is none.
    #[error("unexpected field \"{field}\" in the fragment (supported: ref, commit, subdir)")]
    Fragment {
        /// The field.
        field: String,
    },
}

impl Reference {
    /// Reads a source of ADD; `None` if it is not git. An http(s) URL is git only when its path ends in `.git`.
    ///
    /// # Errors
    /// [`ReferenceError`] for what is git and contradicts itself.
    pub fn parse(text: &str) -> Result<Option<Self>, ReferenceError> {
        if text.starts_with("./") || text.starts_with("../") {
            return Ok(None);
        }
        let (before, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (url, query) = before.split_once('?').unwrap_or((before, ""));
        let is_git = match url.split_once("://") {
            Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
                "git" | "ssh" => !rest.is_empty(),
                "http" | "https" => rest.split_once('/').is_some_and(|(_, path)| path.ends_with(".git")),
                _ => false,
            },
            None => is_scp_style(url),
        };
        if !is_git {
            return Ok(None);
        }
        let mut reference = Self { url: url.to_owned(), ..Self::default() };
        reference.read_fragment(fragment)?;
        reference.read_query(query)?;
        Ok(Some(reference))
    }

    /// Like [`Reference::parse`] for a build context, where `github.com/owner/repository` is git too.
    ///
    /// # Errors
    /// [`ReferenceError`]
    pub fn parse_context(text: &str) -> Result<Option<Self>, ReferenceError> {
        if !text.starts_with("github.com/") {
            return Self::parse(text);
        }
        let (before, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (url, query) = before.split_once('?').unwrap_or((before, ""));
        let mut reference = Self { url: format!("https://{url}"), ..Self::default() };
        reference.read_fragment(fragment)?;
        reference.read_query(query)?;
        Ok(Some(reference))
    }

    /// `#ref:subdir`, or `##ref=…,commit=…,subdir=…`.
    fn read_fragment(&mut self, fragment: &str) -> Result<(), ReferenceError> {
        let set = |value: &str| (!value.is_empty()).then(|| value.to_owned());
        let fragment = percent_decoded(fragment);
        let Some(fields) = fragment.strip_prefix('#') else {
            let (name, subdir) = fragment.split_once(':').unwrap_or((&fragment, ""));
            self.reference = set(name);
            self.subdir = set(subdir);
            return Ok(());
        };
        for field in fields.split(',').filter(|field| !field.is_empty()) {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            match key.to_ascii_lowercase().as_str() {
                "ref" if field.contains('=') => self.reference = set(value),
                "commit" if field.contains('=') => self.checksum = set(value),
                "subdir" if field.contains('=') => self.subdir = set(value),
                _ => return Err(ReferenceError::Fragment { field: field.to_owned() }),
            }
        }
        self.reference_from_checksum();
        Ok(())
    }

    fn reference_from_checksum(&mut self) {
        if self.reference.is_none() {
            self.reference = self.checksum.clone().filter(|checksum| is_full_id(checksum));
        }
    }

    fn read_query(&mut self, query: &str) -> Result<(), ReferenceError> {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            values.entry(key.into_owned()).or_default().push(value.into_owned());
        }
        let (mut tag, mut branch) = (None, None);
        for (key, mut given) in values {
            let value = given.pop().unwrap_or_default();
            if !given.is_empty() {
                return Err(ReferenceError::MultipleValues { key });
            }
            let flag = |value: &str| match value {
                "" | "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
                "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
                _ => Err(ReferenceError::InvalidValue { key: key.clone(), value: value.to_owned() }),
            };
            let text = || match value.is_empty() {
                true => Err(ReferenceError::NoValue { key: key.clone() }),
                false => Ok(value.clone()),
            };
            match &*key {
                "ref" => merge("ref", &mut self.reference, text()?)?,
                "subdir" => merge("subdir", &mut self.subdir, text()?)?,
                "tag" => tag = Some(prefixed("refs/tags/", &text()?)),
                "branch" => branch = Some(prefixed("refs/heads/", &text()?)),
                "checksum" | "commit" => self.checksum = Some(text()?),
                "keep-git-dir" => self.keep_git_dir = Some(flag(&value)?),
                "submodules" => self.submodules = Some(flag(&value)?),
                "fetch-by-commit" => self.fetch_by_commit = flag(&value)?,
                "mtime" => match &*text()? {
                    "commit" => self.commit_time = Some(true),
                    "checkout" => self.commit_time = Some(false),
                    _ => return Err(ReferenceError::InvalidValue { key, value }),
                },
                _ => return Err(ReferenceError::UnexpectedQuery { key }),
            }
        }
        match (tag, branch) {
            (Some(_), Some(_)) => return Err(ReferenceError::BranchAndTag),
            (Some(name), None) | (None, Some(name)) => merge("ref", &mut self.reference, name)?,
            (None, None) => {}
        }
        self.reference_from_checksum();
        Ok(())
    }
}

/// Whether a text is the whole id of a commit, SHA-1 or SHA-256; a part of one can be compared with, not asked for.
pub(super) fn is_full_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn merge(what: &'static str, slot: &mut Option<String>, value: String) -> Result<(), ReferenceError> {
    match slot {
        Some(first) if *first != value => Err(ReferenceError::Conflict { what, first: first.clone(), second: value }),
        _ => {
            *slot = Some(value);
            Ok(())
        }
    }
}

fn prefixed(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

/// `user@host:path`
fn is_scp_style(text: &str) -> bool {
    let word = |text: &str, extra: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    text.split_once('@')
        .and_then(|(user, rest)| Some((user, rest.split_once(':')?)))
        .is_some_and(|(user, (host, path))| word(user, "-_") && word(host, "-.") && !path.is_empty())
}

/// Undoes `%xx`; what it does not mean stays.
pub(crate) fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while let Some(byte) = bytes.get(i) {
        let hex = (*byte == b'%').then(|| bytes.get(i + 1..i + 3)).flatten();
        let value = hex.and_then(|hex| str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(value.unwrap_or(*byte));
        i += if value.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, url: &str, reference: Option<&str>, subdir: Option<&str>) {
        let parsed = Reference::parse(text).expect(text).expect(text);
        assert_eq!(
            (&*parsed.url, parsed.reference.as_deref(), parsed.subdir.as_deref()),
            (url, reference, subdir),
            "{text}"
        );
    }

    #[test]
    fn what_is_git() {
        check("https://host/x.git", "https://host/x.git", None, None);
        check("http://host/x.git#main", "http://host/x.git", Some("main"), None);
        check("git://host/x#v1:sub/dir", "git://host/x", Some("v1"), Some("sub/dir"));
        check("git@host.org:a/b.git#:sub", "git@host.org:a/b.git", None, Some("sub"));
        check("ssh://git@host/x#a", "ssh://git@host/x", Some("a"), None);
        check("https://host/x.git##ref=a,subdir=b", "https://host/x.git", Some("a"), Some("b"));
        check("https://host/x.git?branch=b&subdir=s", "https://host/x.git", Some("refs/heads/b"), Some("s"));
        check("https://host/x.git?tag=refs/tags/v1", "https://host/x.git", Some("refs/tags/v1"), None);
        check("https://host/x.git?checksum=abc", "https://host/x.git", None, None);
        let id = "0123456789".repeat(4);
        check(&format!("https://host/x.git?checksum={id}"), "https://host/x.git", Some(&id), None);
        check("https://host/x.git?ref=a#a", "https://host/x.git", Some("a"), None);
        for text in ["a.txt", "./x.git", "https://host/x", "https://host.git", "github.com/x/y", "ftp://h/x.git", "a@b"]
        {
            assert_eq!(Reference::parse(text), Ok(None), "{text}");
        }
        let context = Reference::parse_context("github.com/x/y#main").expect("valid").expect("git");
        assert_eq!((&*context.url, context.reference.as_deref()), ("https://github.com/x/y", Some("main")));
    }

    #[test]
    fn flags() {
        let parsed = |query: &str| Reference::parse(&format!("https://h/x.git?{query}")).expect(query).expect(query);
        assert_eq!(parsed("keep-git-dir").keep_git_dir, Some(true));
        assert_eq!(parsed("keep-git-dir=0").keep_git_dir, Some(false));
        assert_eq!(parsed("submodules=false").submodules, Some(false));
        assert_eq!(parsed("mtime=commit").commit_time, Some(true));
        assert!(parsed("fetch-by-commit=true&checksum=a").fetch_by_commit);
    }

    #[test]
    fn contradictions() {
        for (text, words) in [
            ("https://h/x.git?ref=a#b", "ref conflicts: \"b\" vs \"a\""),
            ("https://h/x.git?subdir=a#:b", "subdir conflicts: \"b\" vs \"a\""),
            ("https://h/x.git?tag=a&branch=b", "branch conflicts with tag"),
            ("https://h/x.git?what=a", "unexpected query \"what\""),
            ("https://h/x.git?ref", "query \"ref\" has no value"),
            ("https://h/x.git?ref=a&ref=b", "query \"ref\" has multiple values"),
            ("https://h/x.git?keep-git-dir=perhaps", "invalid keep-git-dir value: \"perhaps\""),
            ("https://h/x.git##what=a", "unexpected field \"what=a\""),
        ] {
            let error = Reference::parse(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
