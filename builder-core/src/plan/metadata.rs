//! Instructions that change nothing but the config (checklist I-07 to I-21).

use serde_json::{Map, Value, json};

use super::error::{PlanError, PlanErrorKind};
use super::port;
use super::signal::is_signal;
use super::stage::{Command, StageBuilder};
use super::text;
use crate::dockerfile::lint::{Rule, messages};
use crate::dockerfile::words;
use crate::dockerfile::{CommandLine, Healthcheck, Word};

impl StageBuilder<'_, '_> {
    pub(super) fn cmd(&mut self, command: &Command<'_>, line: &CommandLine) {
        let earlier = self.cmd.replace(command.place.span.clone());
        self.once("CMD", earlier);
        let argv = self.default_command(command, "CMD", line);
        self.set_list("Cmd", &argv);
        self.state.config.set("ArgsEscaped", Value::Bool(true));
        self.note(format!("CMD {}", text::quoted_list(&argv)));
    }

    pub(super) fn entrypoint(&mut self, command: &Command<'_>, line: &CommandLine) {
        let earlier = self.entrypoint.replace(command.place.span.clone());
        self.once("ENTRYPOINT", earlier);
        let argv = self.default_command(command, "ENTRYPOINT", line);
        self.set_list("Entrypoint", &argv);
        if self.cmd.is_none() {
            self.state.config.set("Cmd", Value::Null);
        }
        self.note(format!("ENTRYPOINT {}", text::quoted_list(&argv)));
    }

    pub(super) fn healthcheck(&mut self, command: &Command<'_>, check: &Healthcheck) {
        let earlier = self.healthcheck.replace(command.place.span.clone());
        self.once("HEALTHCHECK", earlier);
        let (test, durations, retries) = match check {
            Healthcheck::None => (vec!["NONE".to_owned()], [0; 4], 0),
            Healthcheck::Cmd { command, interval, timeout, start_period, start_interval, retries } => {
                let test = match command {
                    CommandLine::Exec(argv) => std::iter::once("CMD".to_owned()).chain(argv.iter().cloned()).collect(),
                    CommandLine::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
                };
                (test, [*interval, *timeout, *start_period, *start_interval], *retries)
            }
        };
        let names = ["Interval", "Timeout", "StartPeriod", "StartInterval"];
        let mut config = Map::new();
        config.insert("Test".to_owned(), json!(test));
        let mut created_by = format!("HEALTHCHECK {{Test:{}", text::plain_list(&test));
        for (name, duration) in names.into_iter().zip(durations) {
            created_by.push_str(&format!(" {name}:{}", text::duration(duration)));
            if duration != 0 {
                config.insert(name.to_owned(), json!(duration));
            }
        }
        if retries != 0 {
            config.insert("Retries".to_owned(), json!(retries));
        }
        self.state.config.set("Healthcheck", Value::Object(config));
        self.note(format!("{created_by} Retries:{retries}}}"));
    }

    pub(super) fn expose(&mut self, command: &Command<'_>, ports: &[Word]) -> Result<(), PlanError> {
        // BuildKit sorts the words before it expands them (checklist I-08).
        let mut sorted: Vec<&Word> = ports.iter().collect();
        sorted.sort_by(|a, b| a.raw.cmp(&b.raw));
        let mut words = Vec::new();
        for word in sorted {
            let expanded = words::expand_words(&word.raw, command.escape, &self.state.env);
            let expanded = expanded.map_err(|error| command.error(error, &word.span))?;
            for name in &expanded.unset {
                self.undefined_name(command, name);
            }
            words.extend(expanded.words.into_iter().map(|text| (text, &word.span)));
        }
        let mut exposed = Vec::new();
        for (word, span) in words {
            let parsed = port::parse(&word).map_err(|error| command.error(error, span))?;
            if parsed.upper_case_protocol {
                self.find(command, Rule::ExposeProtoCasing, messages::expose_proto_casing(&word));
            }
            if parsed.host_part {
                self.find(command, Rule::ExposeInvalidFormat, messages::expose_invalid_format(&word));
            }
            exposed.extend(parsed.ports);
        }
        for port in &exposed {
            self.state.config.insert("ExposedPorts", port, json!({}));
        }
        self.note(format!("EXPOSE {}", text::plain_list(&exposed)));
        Ok(())
    }

    pub(super) fn volume(&mut self, command: &Command<'_>, words: &[Word]) -> Result<(), PlanError> {
        let mut volumes = Vec::new();
        for word in words {
            let volume = self.word(command, word)?;
            if volume.is_empty() {
                return Err(command.error(PlanErrorKind::BlankVolume, &word.span));
            }
            volumes.push(volume);
        }
        for volume in &volumes {
            self.state.config.insert("Volumes", volume, json!({}));
        }
        self.note(format!("VOLUME {}", text::plain_list(&volumes)));
        Ok(())
    }

    pub(super) fn user(&mut self, command: &Command<'_>, word: &Word) -> Result<(), PlanError> {
        let user = self.word(command, word)?;
        self.state.config.set("User", user.as_str().into());
        self.note(format!("USER {user}"));
        Ok(())
    }

    pub(super) fn stop_signal(&mut self, command: &Command<'_>, word: &Word) -> Result<(), PlanError> {
        let signal = self.word(command, word)?;
        if !is_signal(&signal) {
            return Err(command.error(PlanErrorKind::Signal { signal }, &word.span));
        }
        self.state.config.set("StopSignal", signal.as_str().into());
        self.note(format!("STOPSIGNAL {signal}"));
        Ok(())
    }

    pub(super) fn shell(&mut self, shell: &[String]) {
        self.set_list("Shell", shell);
        self.note(format!("SHELL {}", text::plain_list(shell)));
    }

    pub(super) fn maintainer(&mut self, word: &Word) {
        self.state.config.raw_mut().insert("author".to_owned(), word.raw.as_str().into());
        self.note(format!("MAINTAINER {}", word.raw));
    }

    /// `ONBUILD` leaves no history (checklist I-09).
    pub(super) fn onbuild(&mut self, trigger: &str) {
        let mut triggers = self.state.config.list("OnBuild");
        triggers.push(trigger.to_owned());
        self.set_list("OnBuild", &triggers);
    }
}
