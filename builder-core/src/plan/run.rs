//! `RUN`: argument list, heredocs, environment, mounts (checklist sections R, M and H-12 to H-15).

use super::error::{PlanError, PlanErrorKind};
use super::mount::{self, MountError, MountFields, MountType};
use super::outline::{Origin, PROXIES};
use super::stage::{Command, StageBuilder};
use super::text;
use super::types::{Action, FileSource, Mount, MountKind, NetworkMode, RunAction, SecurityMode};
use crate::dockerfile::words::{self, Lookup};
use crate::dockerfile::{CommandLine, Heredoc, Run, Word};

/// Where a `#!` heredoc lies while it runs.
const PIPES: &str = "/dev/pipes";

/// What RUN executes.
struct Invocation {
    argv: Vec<String>,
    script: Option<(String, String)>,
    /// First line of the heredoc, for the title.
    summary: Option<String>,
}

impl StageBuilder<'_, '_> {
    pub(super) fn run(&mut self, command: &Command<'_>, run: &Run) -> Result<(), PlanError> {
        let Invocation { argv, script, summary } = self.invocation(run);
        if !run.devices.is_empty() {
            return Err(command.error(PlanErrorKind::Device, &run.devices[0].span));
        }
        let mounts = self.mounts(command, run)?;
        let network = match run.network.as_ref().map(|word| word.raw.as_str()) {
            Some("none") => NetworkMode::None,
            Some("host") => {
                self.needs_entitlement("network.host");
                NetworkMode::Host
            }
            _ => self.shared.options.run.network,
        };
        let security = match run.security.as_ref().map(|word| word.raw.as_str()) {
            Some("insecure") => {
                self.needs_entitlement("security.insecure");
                SecurityMode::Insecure
            }
            _ => SecurityMode::Sandbox,
        };
        if argv.is_empty() {
            self.fail_late(PlanErrorKind::NoArguments);
        }
        let created_by = format!("RUN {} # buildkit", self.command_text(&argv));
        let mut title = self.run_title(command);
        if let Some(summary) = summary {
            title.push_str(&format!(" ({summary})"));
        }
        let options = &self.shared.options.run;
        let hostname = options.hostname.clone();
        let action = Action::Run(RunAction {
            argv,
            env: self.state.env.clone(),
            proxy_env: proxies(&self.shared.outline.build_args),
            cwd: text::clean(&self.workdir()),
            user: self.state.config.text("User").to_owned(),
            script,
            mounts,
            network,
            security,
            devices: Vec::new(),
            hostname: hostname.or_else(|| self.shared.outline.build_args.get("BUILDKIT_SANDBOX_HOSTNAME").cloned()),
            extra_hosts: options.extra_hosts.clone(),
            shm_size: options.shm_size,
            ulimits: options.ulimits.clone(),
            args: self.args_in_scope(),
        });
        self.step(command, &title, action, created_by);
        Ok(())
    }

    /// `|2 A=1 B= /bin/sh -c make` (checklist I-04).
    fn command_text(&self, argv: &[String]) -> String {
        let mut shown: Vec<(&str, String)> = Vec::new();
        for (name, value) in &self.state.args {
            let current = self.state.env.value(name).map(str::to_owned).or_else(|| value.clone()).unwrap_or_default();
            match shown.iter_mut().find(|(other, _)| other == name) {
                Some((_, value)) => *value = current,
                None => shown.push((name, current)),
            }
        }
        let mut words = Vec::new();
        if !shown.is_empty() {
            words.push(format!("|{}", shown.len()));
            words.extend(shown.into_iter().map(|(name, value)| format!("{name}={value}")));
        }
        words.extend(argv.iter().cloned());
        words.join(" ")
    }

    /// The command line, heredocs put in (checklist H-12 to H-14).
    fn invocation(&self, run: &Run) -> Invocation {
        let line = match &run.command {
            CommandLine::Exec(argv) => return Invocation { argv: argv.clone(), script: None, summary: None },
            CommandLine::Shell(line) => line,
        };
        match run.heredocs.as_slice() {
            [] => Invocation { argv: self.with_shell(line.clone()), script: None, summary: None },
            [first, ..] if is_one_heredoc(line) => {
                let body = chomped(first);
                let summary = Some(summary(&first.body));
                if self.state.platform.os != "windows" && first.body.starts_with("#!") {
                    let path = format!("{PIPES}/{}", first.name);
                    let script = Some((first.name.clone(), body));
                    Invocation { argv: self.with_shell(path), script, summary }
                } else {
                    Invocation { argv: self.with_shell(body), script: None, summary }
                }
            }
            heredocs => {
                let mut text = line.clone();
                for heredoc in heredocs {
                    text.push_str(&format!("\n{}{}", heredoc.body, heredoc.name));
                }
                Invocation { argv: self.with_shell(text), script: None, summary: None }
            }
        }
    }

    /// The instruction's text with known variables filled in and everything else as written.
    fn run_title(&self, command: &Command<'_>) -> String {
        let text = command.instruction.text.trim();
        words::expand_line(text, command.escape, &self.state.env).unwrap_or_else(|_| text.to_owned())
    }

    fn needs_entitlement(&mut self, entitlement: &'static str) {
        if !self.shared.options.run.allow.iter().any(|allowed| allowed == entitlement) {
            self.fail_late(PlanErrorKind::NotAllowed { entitlement });
        }
    }

    fn fail_late(&mut self, kind: PlanErrorKind) {
        self.shared.late.get_or_insert_with(|| PlanError::new(kind));
    }

    fn mounts(&mut self, command: &Command<'_>, run: &Run) -> Result<Vec<Mount>, PlanError> {
        // Expansion of all mounts comes before any of them is looked at, as in BuildKit.
        let mut parsed = Vec::with_capacity(run.mounts.len());
        for word in &run.mounts {
            parsed.push(self.mount_fields(command, word)?);
        }
        let mut mounts = Vec::with_capacity(parsed.len());
        let mut agents = 0;
        for (position, (fields, word)) in parsed.into_iter().zip(&run.mounts).enumerate() {
            let origin = command.origins.get(position).and_then(Option::as_ref);
            let mount = self.mount(command, word, fields, origin, &mut agents)?;
            mounts.push(mount);
        }
        Ok(mounts)
    }

    fn mount_fields(&mut self, command: &Command<'_>, word: &Word) -> Result<MountFields, PlanError> {
        /// Either mistake, until the place is added.
        enum Mistake {
            Mount(MountError),
            Plan(PlanError),
        }
        impl From<MountError> for Mistake {
            fn from(error: MountError) -> Self {
                Self::Mount(error)
            }
        }
        mount::parse(&word.raw, |value| self.text(command, value, &word.span).map_err(Mistake::Plan)).map_err(
            |mistake| match mistake {
                Mistake::Mount(error) => command.error(error, &word.span),
                Mistake::Plan(error) => error,
            },
        )
    }

    fn mount(
        &mut self,
        command: &Command<'_>,
        word: &Word,
        fields: MountFields,
        origin: Option<&Origin>,
        agents: &mut usize,
    ) -> Result<Mount, PlanError> {
        let from = match origin {
            None => None,
            Some(origin) => Some(self.file_source(origin).ok_or_else(|| {
                let from = mount::from_of(&word.raw).unwrap_or_default();
                let kind = PlanErrorKind::MountFromLaterStage { from, target: fields.target.clone() };
                command.error(kind, &word.span)
            })?),
        };
        let cwd = self.workdir();
        let target = text::join(&cwd, &fields.target);
        let source = text::clean(&fields.source);
        let readonly = fields.readonly;
        if !matches!(fields.kind, MountType::Secret | MountType::Ssh) && target == "/" {
            return Err(command.error(MountError::TargetIsRoot, &word.span));
        }
        Ok(match fields.kind {
            MountType::Bind => {
                Mount { target, readonly, kind: MountKind::Bind { from: from.unwrap_or(FileSource::Context), source } }
            }
            MountType::Tmpfs => {
                Mount { target, readonly, kind: MountKind::Tmpfs { size: fields.size.filter(|n| *n > 0) } }
            }
            MountType::Cache => {
                let id = if fields.id.is_empty() { text::clean_relative(&fields.target) } else { fields.id };
                let namespace = self.shared.outline.build_args.get("BUILDKIT_CACHE_MOUNT_NS");
                // Owner and mode are those of a new, empty directory (checklist M-12).
                let new = source == "/";
                Mount {
                    target,
                    readonly,
                    kind: MountKind::Cache {
                        id: format!("{}/{id}", namespace.map(String::as_str).unwrap_or_default()),
                        sharing: fields.sharing.unwrap_or_default(),
                        from: from.filter(|from| *from != FileSource::Scratch),
                        source,
                        mode: fields.mode.filter(|_| new),
                        uid: fields.uid.filter(|_| new),
                        gid: fields.gid.filter(|_| new),
                    },
                }
            }
            MountType::Secret => secret(fields, &cwd),
            MountType::Ssh => {
                let number = *agents;
                *agents += 1;
                ssh(fields, &cwd, number)
            }
        })
    }
}

/// A secret (checklist M-16, M-17).
fn secret(fields: MountFields, cwd: &str) -> Mount {
    let name = if fields.source.is_empty() { fields.id } else { fields.source };
    let id = if name.is_empty() { text::base_name(&fields.target).to_owned() } else { name };
    let file = fields.env.is_none() || !fields.target.is_empty();
    let target = match (file, fields.target.as_str()) {
        (false, _) => String::new(),
        (true, "") => format!("/run/secrets/{}", text::base_name(&id)),
        (true, target) => text::join(cwd, target),
    };
    Mount {
        target,
        readonly: true,
        kind: MountKind::Secret {
            id,
            file,
            env: fields.env,
            required: fields.required,
            // Go takes the special bits of a mode from elsewhere, so those written here have no effect.
            mode: fields.mode.unwrap_or(0o400) & 0o777,
            uid: fields.uid.unwrap_or(0),
            gid: fields.gid.unwrap_or(0),
        },
    }
}

/// A forwarded agent (checklist M-19).
fn ssh(fields: MountFields, cwd: &str, number: usize) -> Mount {
    let target = match fields.target.as_str() {
        "" => format!("/run/buildkit/ssh_agent.{number}"),
        target => text::join(cwd, target),
    };
    let id = if fields.id.is_empty() { "default".to_owned() } else { fields.id };
    Mount {
        target,
        readonly: true,
        kind: MountKind::Ssh {
            id,
            required: fields.required,
            mode: fields.mode.unwrap_or(0o600) & 0o777,
            uid: fields.uid.unwrap_or(0),
            gid: fields.gid.unwrap_or(0),
        },
    }
}

/// Proxy build arguments, in both cases each (checklist A-15). Of two spellings the one that sorts last counts: lower
/// case.
fn proxies(build_args: &std::collections::BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut env = Vec::new();
    for name in PROXIES {
        let given = build_args.iter().rfind(|(key, _)| key.eq_ignore_ascii_case(name));
        if let Some((_, value)) = given.filter(|(_, value)| !value.is_empty()) {
            env.push((name.to_uppercase(), value.clone()));
            env.push((name.to_owned(), value.clone()));
        }
    }
    env
}

/// Whether a RUN's line is one heredoc word and nothing else.
fn is_one_heredoc(line: &str) -> bool {
    let line = line.trim();
    let Some(rest) = line.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<") else { return false };
    let name = rest.strip_prefix('-').unwrap_or(rest).trim_start();
    !name.contains('<') && one_word(name)
}

/// Whether a shell would take `text` as exactly one word.
fn one_word(text: &str) -> bool {
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (None, c) if c.is_whitespace() => return false,
            (None, '\'' | '"') => quote = Some(character),
            (None | Some('"'), '\\') => _ = characters.next(),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
    }
    quote.is_none() && !text.is_empty()
}

/// The body without the leading tabs that `<<-` removes.
pub(super) fn chomped(heredoc: &Heredoc) -> String {
    if !heredoc.chomp {
        return heredoc.body.clone();
    }
    heredoc.body.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

/// The first line of a heredoc, for titles.
fn summary(body: &str) -> String {
    let body = body.trim();
    let mut lines = body.lines();
    let first = lines.next().unwrap_or_default();
    if lines.next().is_some() { format!("{first}...") } else { first.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lone_heredocs() {
        for line in ["<<EOF", "<<-EOF", "3<<EOF", " <<\"E F\" ", "<< EOF", "<<'EOF'"] {
            assert!(is_one_heredoc(line), "{line}");
        }
        for line in ["<<EOF cat", "cat <<EOF", "<<A <<B", "<<<EOF", "<<EOF > /f", "<<"] {
            assert!(!is_one_heredoc(line), "{line}");
        }
    }

    #[test]
    fn proxies_in_both_cases() {
        let args = [("HTTP_PROXY", "a"), ("http_proxy", "b"), ("No_Proxy", "c"), ("ftp_proxy", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let expected = [("HTTP_PROXY", "b"), ("http_proxy", "b"), ("NO_PROXY", "c"), ("no_proxy", "c")];
        assert_eq!(proxies(&args), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
