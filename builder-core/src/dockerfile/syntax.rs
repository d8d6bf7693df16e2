//! Between the second and the third pass: a joined line as instruction name, flags and arguments in the form that the
//! instruction takes. Errors here are of class [`ErrorClass::Parse`](super::ErrorClass).

use std::ops::Range;

use super::error::ParseErrorKind;
use super::flags::{Fault, Part, RawFlag, take_flags};
use super::json::{self, JsonArray};

/// The instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Keyword {
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Label,
    Maintainer,
    Onbuild,
    Run,
    Shell,
    StopSignal,
    User,
    Volume,
    Workdir,
}

impl Keyword {
    /// All of them, by name.
    pub const ALL: [Self; 18] = [
        Self::Add,
        Self::Arg,
        Self::Cmd,
        Self::Copy,
        Self::Entrypoint,
        Self::Env,
        Self::Expose,
        Self::From,
        Self::Healthcheck,
        Self::Label,
        Self::Maintainer,
        Self::Onbuild,
        Self::Run,
        Self::Shell,
        Self::StopSignal,
        Self::User,
        Self::Volume,
        Self::Workdir,
    ];

    /// Reads a name in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|keyword| keyword.name().eq_ignore_ascii_case(name))
    }

    /// In upper case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Arg => "ARG",
            Self::Cmd => "CMD",
            Self::Copy => "COPY",
            Self::Entrypoint => "ENTRYPOINT",
            Self::Env => "ENV",
            Self::Expose => "EXPOSE",
            Self::From => "FROM",
            Self::Healthcheck => "HEALTHCHECK",
            Self::Label => "LABEL",
            Self::Maintainer => "MAINTAINER",
            Self::Onbuild => "ONBUILD",
            Self::Run => "RUN",
            Self::Shell => "SHELL",
            Self::StopSignal => "STOPSIGNAL",
            Self::User => "USER",
            Self::Volume => "VOLUME",
            Self::Workdir => "WORKDIR",
        }
    }

    /// Whether heredocs mean something.
    fn takes_heredocs(self) -> bool {
        matches!(self, Self::Add | Self::Copy | Self::Run)
    }
}

/// `key=value` or `key value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair<'a> {
    pub key: Part<'a>,
    pub value: Part<'a>,
    /// Both.
    pub whole: Part<'a>,
    /// Without `=`.
    pub legacy: bool,
}

/// The arguments of an instruction.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Arguments<'a> {
    /// Nothing at all.
    None,
    /// The rest of the line.
    Text(Part<'a>),
    /// Words with quotes and escapes still in them; at least one.
    Words(Vec<Part<'a>>),
    /// The texts of a JSON array and the places of their literals.
    Json(Vec<(String, Range<usize>)>),
    /// At least one.
    Pairs(Vec<Pair<'a>>),
    /// `HEALTHCHECK`: the type and its own arguments, which are `None`, `Text` or `Json`.
    Typed(Part<'a>, Box<Arguments<'a>>),
    /// `ONBUILD`: the first word of the trigger.
    Trigger(Part<'a>),
}

/// An instruction line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Command<'a> {
    /// The first word.
    pub keyword_text: Part<'a>,
    /// `None` for unknown instructions, whose arguments are not read.
    pub keyword: Option<Keyword>,
    /// As written.
    pub flags: Vec<RawFlag>,
    /// What follows them.
    pub arguments: Arguments<'a>,
    /// Whether heredoc words in the line have bodies.
    pub takes_heredocs: bool,
}

/// Reads a joined line.
pub(super) fn command(line: &str, escape: char) -> Result<Command<'_>, Fault> {
    let Head { keyword_text, keyword, flags, rest } = head(Part { text: line, offset: 0 });
    let mut takes_heredocs = keyword.is_some_and(Keyword::takes_heredocs);
    let arguments = match keyword {
        Some(Keyword::Onbuild) => match trigger(rest, escape)? {
            Some((first_word, trigger_takes_heredocs)) => {
                takes_heredocs = trigger_takes_heredocs;
                Arguments::Trigger(first_word)
            }
            None => Arguments::None,
        },
        Some(keyword) => arguments(keyword, rest, escape)?,
        None => Arguments::None,
    };
    takes_heredocs &= !matches!(arguments, Arguments::Json(_));
    Ok(Command { keyword_text, keyword, flags, arguments, takes_heredocs })
}

/// The beginning of an instruction.
struct Head<'a> {
    keyword_text: Part<'a>,
    keyword: Option<Keyword>,
    flags: Vec<RawFlag>,
    rest: Part<'a>,
}

fn head(line: Part<'_>) -> Head<'_> {
    let line = line.trim();
    let (keyword_text, rest) = line.split_first_word();
    let rest = rest.unwrap_or_else(|| line.slice(line.text.len()..line.text.len()));
    let (flags, rest) = take_flags(rest);
    Head { keyword_text, keyword: Keyword::from_name(keyword_text.text), flags, rest }
}

/// Reads what follows `ONBUILD`: the first word, and whether heredocs of the instruction it names have bodies.
///
/// `ONBUILD ONBUILD …` is refused later, but what is wrong further inside is told before that. So the chain is followed,
/// in a loop: strangers may write it as long as they like.
fn trigger<'a>(rest: Part<'a>, escape: char) -> Result<Option<(Part<'a>, bool)>, Fault> {
    if rest.text.is_empty() {
        return Ok(None);
    }
    let first = head(rest);
    let first_word = first.keyword_text;
    let mut inner = first;
    while inner.keyword == Some(Keyword::Onbuild) && !inner.rest.text.is_empty() {
        inner = head(inner.rest);
    }
    let Some(keyword) = inner.keyword.filter(|keyword| *keyword != Keyword::Onbuild) else {
        return Ok(Some((first_word, false)));
    };
    let arguments = arguments(keyword, inner.rest, escape)?;
    let is_direct = inner.keyword_text == first_word;
    let takes_heredocs = is_direct && keyword.takes_heredocs() && !matches!(arguments, Arguments::Json(_));
    Ok(Some((first_word, takes_heredocs)))
}

/// Reads the arguments of any instruction but `ONBUILD`.
fn arguments<'a>(keyword: Keyword, rest: Part<'a>, escape: char) -> Result<Arguments<'a>, Fault> {
    Ok(match keyword {
        Keyword::Add | Keyword::Copy | Keyword::Volume => match json_or_none(rest)? {
            Some(json) => json,
            None => words(rest.plain_words()),
        },
        Keyword::Expose | Keyword::From => words(rest.plain_words()),
        Keyword::Arg => words(rest.quoted_words(escape)),
        Keyword::Cmd | Keyword::Entrypoint | Keyword::Run | Keyword::Shell => json_or_text(rest)?,
        Keyword::Env | Keyword::Label => pairs(keyword, rest, escape)?,
        Keyword::Healthcheck => typed(rest)?,
        Keyword::Maintainer | Keyword::StopSignal | Keyword::User | Keyword::Workdir | Keyword::Onbuild => text(rest),
    })
}

fn text(rest: Part<'_>) -> Arguments<'_> {
    if rest.text.is_empty() { Arguments::None } else { Arguments::Text(rest) }
}

fn words(words: Vec<Part<'_>>) -> Arguments<'_> {
    if words.is_empty() { Arguments::None } else { Arguments::Words(words) }
}

fn json_or_none<'a>(rest: Part<'a>) -> Result<Option<Arguments<'a>>, Fault> {
    let shift = |range: &Range<usize>| rest.offset + range.start..rest.offset + range.end;
    match json::array(rest.text) {
        JsonArray::No => Ok(None),
        JsonArray::NotStrings(range) => Err(Fault::new(ParseErrorKind::JsonNotStrings, shift(&range))),
        JsonArray::Strings(mut strings) => {
            for (_, range) in &mut strings {
                *range = shift(range);
            }
            Ok(Some(Arguments::Json(strings)))
        }
    }
}

fn json_or_text(rest: Part<'_>) -> Result<Arguments<'_>, Fault> {
    Ok(json_or_none(rest)?.unwrap_or_else(|| text(rest)))
}

fn typed(rest: Part<'_>) -> Result<Arguments<'_>, Fault> {
    if rest.text.is_empty() {
        return Ok(Arguments::None);
    }
    let end = rest.text.find(char::is_whitespace).unwrap_or(rest.text.len());
    let behind = rest.slice(end..rest.text.len()).trim();
    Ok(Arguments::Typed(rest.slice(0..end), Box::new(json_or_text(behind)?)))
}

/// Pairs of `ENV` and `LABEL`, in the form that the first word decides (P-26).
fn pairs(keyword: Keyword, rest: Part<'_>, escape: char) -> Result<Arguments<'_>, Fault> {
    let words = rest.quoted_words(escape);
    let Some(first) = words.first() else { return Ok(Arguments::None) };
    if !first.text.contains('=') {
        let (key, value) = rest.split_first_word();
        let value =
            value.ok_or_else(|| Fault::new(ParseErrorKind::NoValue { instruction: keyword.name() }, rest.range()))?;
        return Ok(Arguments::Pairs(vec![Pair { key, value, whole: rest, legacy: true }]));
    }
    let mut pairs = Vec::with_capacity(words.len());
    for word in words {
        let equals = word
            .text
            .find('=')
            .ok_or_else(|| Fault::new(ParseErrorKind::NoEquals { word: word.text.to_owned() }, word.range()))?;
        pairs.push(Pair {
            key: word.slice(0..equals),
            value: word.slice(equals + 1..word.text.len()),
            whole: word,
            legacy: false,
        });
    }
    Ok(Arguments::Pairs(pairs))
}
