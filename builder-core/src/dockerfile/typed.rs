//! Third pass: instruction lines → typed instructions. Errors here are of class [`ErrorClass::Instr`](super::ErrorClass).

use std::collections::BTreeMap;
use std::ops::Range;

use super::duration;
use super::error::ParseErrorKind as Kind;
use super::flags::{Fault, FlagType, Flags, csv_fields};
use super::heredoc;
use super::instruction::{
    ArgPair, CommandLine, Copy, From, Healthcheck, Heredoc, InstructionKind, KeyValue, Onbuild, Run, StageName, Word,
};
use super::lines::JoinedLine;
use super::source::Span;
use super::syntax::{Arguments, Command, Keyword};
use crate::hint::suggest;

const HEALTHCHECK_FLAGS: [(&str, FlagType); 5] = [
    ("interval", FlagType::Text),
    ("timeout", FlagType::Text),
    ("start-period", FlagType::Text),
    ("start-interval", FlagType::Text),
    ("retries", FlagType::Text),
];

const COPY_FLAGS: [(&str, FlagType); 6] = [
    ("chown", FlagType::Text),
    ("from", FlagType::Text),
    ("chmod", FlagType::Text),
    ("link", FlagType::Boolean),
    ("parents", FlagType::Boolean),
    ("exclude", FlagType::Texts),
];

const ADD_FLAGS: [(&str, FlagType); 7] = [
    ("chown", FlagType::Text),
    ("chmod", FlagType::Text),
    ("link", FlagType::Boolean),
    ("keep-git-dir", FlagType::Boolean),
    ("checksum", FlagType::Text),
    ("unpack", FlagType::Boolean),
    ("exclude", FlagType::Texts),
];

const FROM_FLAGS: [(&str, FlagType); 1] = [("platform", FlagType::Text)];

const RUN_FLAGS: [(&str, FlagType); 4] = [
    ("mount", FlagType::Texts),
    ("network", FlagType::Text),
    ("security", FlagType::Text),
    ("device", FlagType::Texts),
];

/// The flags that an instruction takes.
fn flags_of(keyword: Keyword) -> &'static [(&'static str, FlagType)] {
    match keyword {
        Keyword::Add => &ADD_FLAGS,
        Keyword::Copy => &COPY_FLAGS,
        Keyword::From => &FROM_FLAGS,
        Keyword::Healthcheck => &HEALTHCHECK_FLAGS,
        Keyword::Run => &RUN_FLAGS,
        _ => &[],
    }
}

/// Every instruction in upper case with the names of its flags, as the parser knows them; documentation is tested with it.
pub fn instructions() -> impl Iterator<Item = (&'static str, impl Iterator<Item = &'static str>)> {
    Keyword::ALL.into_iter().map(|keyword| (keyword.name(), flags_of(keyword).iter().map(|(flag, _)| *flag)))
}

/// The parser directives, as the parser knows them; documentation is tested with it.
pub fn directives() -> impl Iterator<Item = &'static str> {
    super::directives::KEYS.into_iter()
}

/// The shortest duration of `HEALTHCHECK` other than 0, in nanoseconds.
const SHORTEST_DURATION: i64 = 1_000_000;

/// An instruction line with everything that belongs to it.
pub(super) struct Typer<'a> {
    pub line: &'a JoinedLine,
    pub command: &'a Command<'a>,
    /// The bodies that follow the line.
    pub heredocs: Vec<Heredoc>,
}

impl Typer<'_> {
    /// Makes the typed instruction.
    pub fn instruction(self) -> Result<InstructionKind, Fault> {
        let Some(keyword) = self.command.keyword else {
            let name = self.command.keyword_text.text;
            let suggestion = suggest::nearest_ignoring_case(name, Keyword::ALL.map(Keyword::name));
            let kind = Kind::UnknownInstruction { name: name.to_owned() };
            return Err(Fault { suggestion, ..Fault::new(kind, self.command.keyword_text.range()) });
        };
        match keyword {
            Keyword::Add => self.copy(keyword, &ADD_FLAGS).map(InstructionKind::Add),
            Keyword::Arg => self.arg(),
            Keyword::Cmd => self.command_line().map(InstructionKind::Cmd),
            Keyword::Copy => self.copy(keyword, &COPY_FLAGS).map(InstructionKind::Copy),
            Keyword::Entrypoint => self.command_line().map(InstructionKind::Entrypoint),
            Keyword::Env => self.pairs(keyword).map(InstructionKind::Env),
            Keyword::Expose => self.expose(),
            Keyword::From => self.from(),
            Keyword::Healthcheck => self.healthcheck().map(InstructionKind::Healthcheck),
            Keyword::Label => self.pairs(keyword).map(InstructionKind::Label),
            Keyword::Maintainer => self.checked_text(keyword).map(InstructionKind::Maintainer),
            Keyword::Onbuild => self.onbuild(),
            Keyword::Run => self.run(),
            Keyword::Shell => self.shell(),
            Keyword::StopSignal => self.text(keyword).map(InstructionKind::StopSignal),
            Keyword::User => self.checked_text(keyword).map(InstructionKind::User),
            Keyword::Volume => self.volume(),
            Keyword::Workdir => self.checked_text(keyword).map(InstructionKind::Workdir),
        }
    }

    fn span(&self, range: &Range<usize>) -> Span {
        self.line.span(range)
    }

    /// A fault of the instruction as a whole.
    fn fault<T>(&self, kind: Kind) -> Result<T, Fault> {
        let start = self.command.keyword_text.range().start;
        Err(Fault::new(kind, start..self.line.text.trim_end().len().max(start)))
    }

    fn word(&self, (text, range): (&str, &Range<usize>)) -> Word {
        Word { raw: text.to_owned(), span: self.span(range) }
    }

    /// The value of a flag; an empty one counts as not given.
    fn flag_word(&self, flags: &Flags, name: &str) -> Option<Word> {
        flags.get(name).filter(|(value, _)| !value.is_empty()).map(|flag| self.word(flag))
    }

    fn no_flags(&self) -> Result<(), Fault> {
        Flags::check(&self.command.flags, &[]).map(|_| ())
    }

    /// Words of the word form or of the JSON form.
    fn words(&self) -> Vec<Word> {
        match &self.command.arguments {
            Arguments::Words(words) => words.iter().map(|word| self.word((word.text, &word.range()))).collect(),
            Arguments::Json(strings) => strings.iter().map(|(text, range)| self.word((text, range))).collect(),
            _ => Vec::new(),
        }
    }

    /// The rest of the line as one word.
    fn text(&self, keyword: Keyword) -> Result<Word, Fault> {
        match &self.command.arguments {
            Arguments::Text(text) => Ok(self.word((text.text, &text.range()))),
            _ => self.fault(Kind::NotOneArgument { instruction: keyword.name() }),
        }
    }

    fn checked_text(&self, keyword: Keyword) -> Result<Word, Fault> {
        let text = self.text(keyword)?;
        self.no_flags()?;
        Ok(text)
    }

    fn command_line(&self) -> Result<CommandLine, Fault> {
        self.no_flags()?;
        Ok(command_line(&self.command.arguments))
    }

    fn arg(&self) -> Result<InstructionKind, Fault> {
        let Arguments::Words(words) = &self.command.arguments else {
            return self.fault(Kind::NoArgument { instruction: "ARG" });
        };
        let mut pairs = Vec::with_capacity(words.len());
        for word in words {
            let (name, default) = match word.text.split_once('=') {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (word.text, None),
            };
            if name.is_empty() {
                return Err(Fault::new(Kind::BlankName { instruction: "ARG" }, word.range()));
            }
            pairs.push(ArgPair { name: name.to_owned(), default, span: self.span(&word.range()) });
        }
        Ok(InstructionKind::Arg(pairs))
    }

    fn pairs(&self, keyword: Keyword) -> Result<Vec<KeyValue>, Fault> {
        self.no_flags()?;
        let instruction = keyword.name();
        let Arguments::Pairs(pairs) = &self.command.arguments else {
            return self.fault(Kind::NoArgument { instruction });
        };
        if let Some(blank) = pairs.iter().find(|pair| pair.key.text.is_empty()) {
            return Err(Fault::new(Kind::BlankName { instruction }, blank.whole.range()));
        }
        let key_value = |pair: &super::syntax::Pair<'_>| KeyValue {
            key: pair.key.text.to_owned(),
            value: pair.value.text.to_owned(),
            legacy: pair.legacy,
            span: self.span(&pair.whole.range()),
        };
        Ok(pairs.iter().map(key_value).collect())
    }

    fn from(&self) -> Result<InstructionKind, Fault> {
        let mut words = self.words();
        let name = match words.as_slice() {
            [_] => None,
            [_, keyword, name] if keyword.raw.eq_ignore_ascii_case("as") => Some(name.clone()),
            _ => return self.fault(Kind::FromArguments),
        };
        let name = match name {
            Some(Word { raw, span }) => {
                let lower = raw.to_lowercase();
                if !is_stage_name(&lower) {
                    let Arguments::Words(parts) = &self.command.arguments else {
                        return self.fault(Kind::InvalidStageName { name: raw });
                    };
                    let range = parts.last().map_or(0..0, super::flags::Part::range);
                    return Err(Fault::new(Kind::InvalidStageName { name: raw }, range));
                }
                Some(StageName { name: lower, written: raw, span })
            }
            None => None,
        };
        let flags = Flags::check(&self.command.flags, &FROM_FLAGS)?;
        let platform = self.flag_word(&flags, "platform");
        Ok(InstructionKind::From(From { base: words.remove(0), platform, name }))
    }

    fn run(mut self) -> Result<InstructionKind, Fault> {
        let flags = Flags::check(&self.command.flags, &RUN_FLAGS)?;
        for (value, range) in flags.all("mount") {
            let fields =
                csv_fields(value).map_err(|problem| Fault::new(Kind::MountSyntax { problem }, range.clone()))?;
            let expands = |from: &str| from.find('$').is_some_and(|dollar| dollar + 1 < from.len());
            if fields.iter().any(|field| {
                field.split_once('=').is_some_and(|(key, from)| key.eq_ignore_ascii_case("from") && expands(from))
            }) {
                return Err(Fault::new(Kind::MountFromExpands, range.clone()));
            }
        }
        if let Some((value, range)) = flags.get("network")
            && !matches!(value, "default" | "none" | "host")
        {
            return Err(Fault::new(Kind::InvalidNetwork { value: value.to_owned() }, range.clone()));
        }
        if let Some((value, range)) = flags.get("security")
            && !matches!(value, "sandbox" | "insecure")
        {
            return Err(Fault::new(Kind::InvalidSecurity { value: value.to_owned() }, range.clone()));
        }
        let heredocs = std::mem::take(&mut self.heredocs);
        Ok(InstructionKind::Run(Run {
            command: command_line(&self.command.arguments),
            heredocs,
            mounts: flags.all("mount").map(|flag| self.word(flag)).collect(),
            network: self.flag_word(&flags, "network"),
            security: self.flag_word(&flags, "security"),
            devices: flags.all("device").map(|flag| self.word(flag)).collect(),
        }))
    }

    fn copy(&self, keyword: Keyword, known: &[(&'static str, FlagType)]) -> Result<Copy, Fault> {
        let instruction = keyword.name();
        let mut words = self.words();
        if words.len() < 2 {
            return self.fault(Kind::NoDestination { instruction });
        }
        let flags = Flags::check(&self.command.flags, known)?;
        let destination = words.pop().expect("because there are two or more");
        if heredoc::word(&destination.raw).is_some() {
            return self.fault(Kind::HeredocDestination { instruction });
        }
        let mut sources = Vec::new();
        let mut heredocs = Vec::new();
        // Of two bodies of one name both words get the last (H-05).
        let bodies: BTreeMap<&str, &Heredoc> =
            self.heredocs.iter().map(|heredoc| (heredoc.name.as_str(), heredoc)).collect();
        for word in words {
            let Some(found) = heredoc::word(&word.raw) else {
                sources.push(word);
                continue;
            };
            // A word without a body, as in a line with an open quote, stands for an empty file: BuildKit looks for
            // words and for bodies in different ways.
            let body = bodies.get(found.name.as_str());
            heredocs.push(Heredoc {
                name: found.name,
                file_descriptor: found.file_descriptor,
                expand: found.expand,
                chomp: found.chomp,
                body: body.map(|heredoc| heredoc.body.clone()).unwrap_or_default(),
                span: body.map_or(word.span, |heredoc| heredoc.span.clone()),
            });
        }
        Ok(Copy {
            sources,
            heredocs,
            destination,
            from: self.flag_word(&flags, "from"),
            chown: self.flag_word(&flags, "chown"),
            chmod: self.flag_word(&flags, "chmod"),
            link: flags.boolean("link").unwrap_or(false),
            parents: flags.boolean("parents").unwrap_or(false),
            excludes: flags.all("exclude").map(|flag| self.word(flag)).collect(),
            checksum: self.flag_word(&flags, "checksum"),
            keep_git_dir: flags.boolean("keep-git-dir"),
            unpack: flags.boolean("unpack"),
        })
    }

    fn expose(&self) -> Result<InstructionKind, Fault> {
        let words = self.words();
        if words.is_empty() {
            return self.fault(Kind::NoArgument { instruction: "EXPOSE" });
        }
        self.no_flags()?;
        Ok(InstructionKind::Expose(words))
    }

    fn volume(&self) -> Result<InstructionKind, Fault> {
        let mut words = self.words();
        if words.is_empty() {
            return self.fault(Kind::NoArgument { instruction: "VOLUME" });
        }
        self.no_flags()?;
        for word in &mut words {
            let trimmed = word.raw.trim();
            if trimmed.is_empty() {
                return self.fault(Kind::BlankVolume);
            }
            word.raw = trimmed.to_owned();
        }
        Ok(InstructionKind::Volume(words))
    }

    fn shell(&self) -> Result<InstructionKind, Fault> {
        self.no_flags()?;
        match &self.command.arguments {
            Arguments::Json(strings) if !strings.is_empty() => {
                Ok(InstructionKind::Shell(strings.iter().map(|(text, _)| text.clone()).collect()))
            }
            Arguments::Text(_) => self.fault(Kind::JsonRequired { instruction: "SHELL" }),
            _ => self.fault(Kind::NoArgument { instruction: "SHELL" }),
        }
    }

    fn healthcheck(&self) -> Result<Healthcheck, Fault> {
        let Arguments::Typed(word, arguments) = &self.command.arguments else {
            return self.fault(Kind::NoArgument { instruction: "HEALTHCHECK" });
        };
        let upper = word.text.to_uppercase();
        let command = match arguments.as_ref() {
            Arguments::Text(text) => Some(CommandLine::Shell(text.text.to_owned())),
            Arguments::Json(strings) if !strings.is_empty() => {
                Some(CommandLine::Exec(strings.iter().map(|(text, _)| text.clone()).collect()))
            }
            _ => None,
        };
        if upper == "NONE" {
            return match command {
                Some(_) => self.fault(Kind::HealthcheckNoneArguments),
                None => Ok(Healthcheck::None),
            };
        }
        let flags = Flags::check(&self.command.flags, &HEALTHCHECK_FLAGS)?;
        if upper != "CMD" {
            return Err(Fault::new(Kind::HealthcheckType { word: upper }, word.range()));
        }
        let Some(command) = command else { return self.fault(Kind::HealthcheckWithoutCommand) };
        Ok(Healthcheck::Cmd {
            command,
            interval: duration_flag(&flags, "interval")?,
            timeout: duration_flag(&flags, "timeout")?,
            start_period: duration_flag(&flags, "start-period")?,
            start_interval: duration_flag(&flags, "start-interval")?,
            retries: retries_flag(&flags)?,
        })
    }

    fn onbuild(&self) -> Result<InstructionKind, Fault> {
        let Arguments::Trigger(first_word) = &self.command.arguments else {
            return self.fault(Kind::NoArgument { instruction: "ONBUILD" });
        };
        self.no_flags()?;
        match Keyword::from_name(first_word.text) {
            Some(Keyword::Onbuild) => return Err(Fault::new(Kind::OnbuildChained, first_word.range())),
            Some(keyword @ (Keyword::From | Keyword::Maintainer)) => {
                let kind = Kind::OnbuildNotAllowed { instruction: keyword.name() };
                return Err(Fault::new(kind, first_word.range()));
            }
            _ => {}
        }
        let behind = &self.line.text[self.command.keyword_text.range().end..];
        let mut trigger = behind.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']).to_owned();
        for heredoc in &self.heredocs {
            trigger.extend(["\n", &heredoc.body, &heredoc.name]);
        }
        Ok(InstructionKind::Onbuild(Onbuild { trigger }))
    }
}

/// `[a-z][a-z0-9-_.]*`
fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'))
}

fn command_line(arguments: &Arguments<'_>) -> CommandLine {
    match arguments {
        Arguments::Json(strings) => CommandLine::Exec(strings.iter().map(|(text, _)| text.clone()).collect()),
        Arguments::Text(text) => CommandLine::Shell(text.text.to_owned()),
        _ => CommandLine::Shell(String::new()),
    }
}

fn duration_flag(flags: &Flags, name: &'static str) -> Result<i64, Fault> {
    let Some((value, range)) = flags.get(name).filter(|(value, _)| !value.is_empty()) else { return Ok(0) };
    let fault = |kind| Fault::new(kind, range.clone());
    match duration::parse(value) {
        Err(problem) => Err(fault(Kind::InvalidDuration { problem })),
        Ok(0) => Ok(0),
        Ok(nanoseconds) if nanoseconds < SHORTEST_DURATION => Err(fault(Kind::DurationTooShort { flag: name })),
        Ok(nanoseconds) => Ok(nanoseconds),
    }
}

fn retries_flag(flags: &Flags) -> Result<i64, Fault> {
    let Some((value, range)) = flags.get("retries").filter(|(value, _)| !value.is_empty()) else { return Ok(0) };
    let fault = |kind| Err(Fault::new(kind, range.clone()));
    match value.parse::<i32>() {
        Ok(retries) if retries < 0 => fault(Kind::NegativeRetries { value: retries.into() }),
        Ok(retries) => Ok(retries.into()),
        Err(error) => fault(Kind::InvalidRetries {
            value: value.to_owned(),
            out_of_range: matches!(
                error.kind(),
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow
            ),
        }),
    }
}
