//! `COPY` and `ADD` (checklist C-01, C-02, C-30 to C-59, I-05): words → sources, destination and checked flags.

use super::chmod;
use super::error::{PlanError, PlanErrorKind};
use super::run::chomped;
use super::stage::{Command, StageBuilder};
use super::text;
use super::types::{Action, CopyAction, CopySource, FileSource};
use crate::context::Patterns;
use crate::dockerfile::lint::{Rule, messages};
use crate::dockerfile::words;
use crate::dockerfile::{Copy, Word};
use crate::oci::BlobDigest;

impl StageBuilder<'_, '_> {
    pub(super) fn copy(&mut self, command: &Command<'_>, copy: &Copy, add: bool) -> Result<(), PlanError> {
        let from = self.copy_from(command, copy)?;
        let chown = self.optional_word(command, copy.chown.as_ref())?;
        let chmod_text = self.optional_word(command, copy.chmod.as_ref())?;
        let checksum = self.optional_word(command, copy.checksum.as_ref())?;
        let mut paths = Vec::with_capacity(copy.sources.len());
        for word in &copy.sources {
            paths.push((self.word(command, word)?, word));
        }
        let written = self.word(command, &copy.destination)?;
        let heredocs = self.copy_heredocs(command, copy)?;

        let chmod = match (&chmod_text, &copy.chmod) {
            (Some(text), Some(word)) => Some(chmod::parse(text).map_err(|error| command.error(error, &word.span))?),
            _ => None,
        };
        if let (Some(checksum), Some(word)) = (&checksum, &copy.checksum) {
            check_checksum(checksum, &paths, heredocs.len()).map_err(|kind| command.error(kind, &word.span))?;
        }

        let mut created_by = if add { "ADD".to_owned() } else { "COPY".to_owned() };
        if copy.parents {
            created_by.push_str(" --parents");
        }
        for (flag, value) in [("chown", &chown), ("chmod", &chmod_text)] {
            if let Some(value) = value {
                created_by.push_str(&format!(" --{flag}={value}"));
            }
        }
        let mut sources = Vec::with_capacity(paths.len() + heredocs.len());
        for (path, word) in paths {
            created_by.push_str(&format!(" {path}"));
            sources.push(self.source(command, path, word, add, from == FileSource::Context)?);
        }
        for (name, body) in heredocs {
            created_by.push_str(&format!(" <<{name}"));
            sources.push(CopySource::Heredoc { name, body });
        }
        created_by.push_str(&format!(" {written} # buildkit"));

        let title = self.title_text(command);
        let action = Action::Copy(CopyAction {
            add,
            from,
            sources,
            destination: destination(&self.workdir(), &written),
            chown,
            // BuildKit falls back to an ordinary copy for the two together (checklist C-41).
            link: copy.link && chmod.is_none(),
            chmod,
            parents: copy.parents,
            excludes: copy.excludes.iter().map(|word| word.raw.clone()).collect(),
            checksum,
            keep_git_dir: copy.keep_git_dir,
            unpack: copy.unpack,
        });
        self.step(command, &title, action, created_by);
        Ok(())
    }

    fn copy_from(&self, command: &Command<'_>, copy: &Copy) -> Result<FileSource, PlanError> {
        match command.origins.first().and_then(Option::as_ref) {
            None => Ok(FileSource::Context),
            Some(origin) => self.file_source(origin).ok_or_else(|| {
                let from = copy.from.as_ref();
                let kind = PlanErrorKind::CopyFromLaterStage {
                    from: from.map(|word| word.raw.clone()).unwrap_or_default(),
                    stage: self.name.clone(),
                };
                command.error(kind, from.map_or(&command.place.span, |word| &word.span))
            }),
        }
    }

    /// A flag's value; a value that is empty counts as absent.
    fn optional_word(&mut self, command: &Command<'_>, word: Option<&Word>) -> Result<Option<String>, PlanError> {
        let Some(word) = word else { return Ok(None) };
        Ok(Some(self.word(command, word)?).filter(|value| !value.is_empty()))
    }

    /// Names and expanded bodies.
    fn copy_heredocs(&mut self, command: &Command<'_>, copy: &Copy) -> Result<Vec<(String, String)>, PlanError> {
        let mut files = Vec::with_capacity(copy.heredocs.len());
        for heredoc in &copy.heredocs {
            let mut body = chomped(heredoc);
            if heredoc.expand {
                let expanded = words::expand_heredoc(&body, &self.state.env);
                let expanded = expanded.map_err(|error| command.error(error, &heredoc.span))?;
                body = self.undefined(command, expanded);
            }
            files.push((heredoc.name.clone(), body));
        }
        Ok(files)
    }

    /// What a source word names (checklist C-50).
    fn source(
        &mut self,
        command: &Command<'_>,
        path: String,
        word: &Word,
        add: bool,
        from_context: bool,
    ) -> Result<CopySource, PlanError> {
        if is_git(&path) {
            return match add {
                true => Ok(CopySource::Git(path)),
                false => Err(command.error(PlanErrorKind::CopyGit, &word.span)),
            };
        }
        if is_url(&path) {
            return match add {
                true => Ok(CopySource::Url(path)),
                false => Err(command.error(PlanErrorKind::CopyUrl, &word.span)),
            };
        }
        if from_context && self.shared.ignored.as_ref().is_some_and(|ignored| ignored.hides(&path)) {
            let verb = if add { "Add" } else { "Copy" };
            self.find(command, Rule::CopyIgnoredFile, messages::copy_ignored_file(verb, &path));
        }
        Ok(CopySource::Path(path))
    }
}

/// What the ignore file hides, for lint rule CopyIgnoredFile (checklist L-20).
pub(super) struct Ignored {
    patterns: Patterns,
    /// A pattern hides the whole context.
    everything: bool,
}

impl Ignored {
    /// Reads an ignore file. `None` if it re-includes anything, which the rule does not follow, or cannot be read: that
    /// is an error when the context is opened, not here.
    pub(super) fn new(text: &str) -> Option<Self> {
        let patterns = Patterns::parse(text).ok().filter(|patterns| !patterns.has_exceptions())?;
        let everything = text.lines().any(|line| matches!(line.trim().trim_start_matches('/'), "*" | "**" | "."));
        Some(Self { patterns, everything })
    }

    fn hides(&self, path: &str) -> bool {
        match text::clean(path).trim_start_matches('/') {
            "" => self.everything,
            path => self.patterns.is_ignored(path.as_bytes()),
        }
    }
}

/// The destination from the root, cleaned; a slash at its end says that it is a directory (checklist C-02).
fn destination(workdir: &str, written: &str) -> String {
    let path = text::join(workdir, written);
    let directory = written.is_empty() || written == "." || written.ends_with('/') || written.ends_with("/.");
    if directory && path != "/" { format!("{path}/") } else { path }
}

/// What `--checksum` may be used with (checklist C-54).
fn check_checksum(checksum: &str, paths: &[(String, &Word)], heredocs: usize) -> Result<(), PlanErrorKind> {
    let [(source, _)] = paths else { return Err(PlanErrorKind::ChecksumSeveralSources) };
    if heredocs > 0 {
        return Err(PlanErrorKind::ChecksumSeveralSources);
    }
    if is_git(source) {
        return Ok(());
    }
    if !is_url(source) {
        return Err(PlanErrorKind::ChecksumLocal);
    }
    match checksum.parse::<BlobDigest>() {
        Ok(_) => Ok(()),
        Err(_) => Err(PlanErrorKind::ChecksumFormat { text: checksum.to_owned() }),
    }
}

pub(super) fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// Whether a source is a git repository (checklist C-58): `git://`, `ssh://`, `user@host:path`, or http(s) whose path
/// ends in `.git`.
pub(super) fn is_git(source: &str) -> bool {
    let scheme = source.split_once("://");
    match scheme {
        Some(("git" | "ssh", rest)) => !rest.is_empty(),
        Some(("http" | "https", rest)) => {
            let path = rest.split(['?', '#']).next().unwrap_or_default();
            path.contains('/') && path.ends_with(".git")
        }
        Some(_) => false,
        None => {
            let word = |text: &str, extra: &[u8]| {
                !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
            };
            source
                .split_once('@')
                .and_then(|(user, rest)| Some((user, rest.split_once(':')?)))
                .is_some_and(|(user, (host, _))| word(user, b"-_") && word(host, b"-."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for (workdir, written, expected) in [
            ("/", "/x", "/x"),
            ("/w", "x", "/w/x"),
            ("/w", "", "/w/"),
            ("/w", ".", "/w/"),
            ("/w", "./", "/w/"),
            ("/", ".", "/"),
            ("/w", "x/", "/w/x/"),
            ("/w", "/a/.", "/a/"),
            ("/w", "/link/..", "/"),
            ("/a/../b/", "c/../d", "/b/d"),
            ("/w", "../x", "/x"),
        ] {
            assert_eq!(destination(workdir, written), expected, "{workdir} {written}");
        }
    }

    #[test]
    fn remote_sources() {
        for git in [
            "https://example.com/x.git",
            "https://example.com/x.git#main:sub",
            "http://example.com/x.git?ref=a",
            "git://example.com/x",
            "ssh://git@example.com/x",
            "git@github.com:moby/buildkit",
        ] {
            assert!(is_git(git), "{git}");
        }
        for other in
            ["github.com/x/y", "a@b", "./x.git", "https://example.com/x", "https://x.git", "file:///x.git", "a b@c:d"]
        {
            assert!(!is_git(other), "{other}");
        }
        assert!(is_url("https://example.com/x") && !is_url("ftp://example.com/x"));
    }
}
