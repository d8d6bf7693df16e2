//! The passes together: text → [`Dockerfile`], file → [`Dockerfile`], trigger text → [`Instruction`].

use std::fs;
use std::path::Path;

use super::decode::{NotUtf8, decode};
use super::directives;
use super::error::{ErrorClass, ParseError, ParseErrorKind, ParseErrors, ReadError};
use super::flags::Fault;
use super::heredoc;
use super::instruction::{Directives, Dockerfile, Finding, Heredoc, Instruction, InstructionKind};
use super::lines::{JoinedLine, LineReader};
use super::lint::text as lint;
use super::source::{LineRange, Source, Span, Spanned};
use super::syntax::{self, Command};
use super::typed::Typer;

/// Reads the text of a Dockerfile. The time is linear in its length.
///
/// # Errors
/// All that is wrong with it, not only the first, and what could be read all the same.
pub fn parse(text: &str) -> Result<Dockerfile, ParseErrors> {
    let mut parser = Parser::new(text, true);
    parser.run();
    parser.check_stages();
    lint::file(&parser.instructions, &mut parser.findings);
    parser.finish()
}

/// Reads a Dockerfile from a file.
///
/// # Errors
/// When the file cannot be read, is not UTF-8, or its text is refused.
pub fn read(path: &Path) -> Result<Dockerfile, ReadError> {
    let bytes = fs::read(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    let text =
        decode(bytes).map_err(|NotUtf8 { line, column }| ReadError::NotUtf8 { path: path.to_owned(), line, column })?;
    parse(&text).map_err(|errors| ReadError::Parse { path: path.to_owned(), errors })
}

/// Reads an `ONBUILD` trigger as it is stored in an image config (checklist I-21). Spans point into `text`; the escape
/// character is a backslash, whatever Dockerfile the trigger came from.
///
/// # Errors
/// When the text is refused, holds several instructions or none, or is a `FROM`. Messages do not tell lines, which
/// would not be those of any file.
pub fn parse_trigger(text: &str) -> Result<Instruction, ParseErrors> {
    let mut parser = Parser::new(text, false);
    parser.run();
    let count = parser.instruction_count;
    let whole = Span(0..text.len());
    if count == 0 && parser.errors.is_empty() {
        parser.error(ErrorClass::Parse, whole, ParseErrorKind::NoInstructions);
    } else if count != 1 && !parser.errors.iter().any(|error| error.class == ErrorClass::Parse) {
        parser.error(ErrorClass::Parse, whole, ParseErrorKind::TriggerNotSingle);
    } else if let [Instruction { kind: InstructionKind::From(_), .. }] = parser.instructions.as_slice() {
        parser.error(ErrorClass::Instr, whole, ParseErrorKind::TriggerIsFrom);
    }
    let mut dockerfile = parser.finish()?;
    Ok(dockerfile.instructions.pop().expect("because there is no error"))
}

/// What one run over a text collects.
struct Parser<'a> {
    reader: LineReader<'a>,
    source: Source,
    /// Whether the text is a file, whose line numbers mean something.
    is_file: bool,
    instructions: Vec<Instruction>,
    /// Refused ones included.
    instruction_count: usize,
    /// Whether a `FROM` was seen, correct or not.
    has_stage: bool,
    /// Whether an instruction before the first `FROM` was reported.
    told_no_stage: bool,
    errors: Vec<ParseError>,
    findings: Vec<Finding>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, is_file: bool) -> Self {
        Self {
            reader: LineReader::new(text),
            source: Source::new(text.to_owned()),
            is_file,
            instructions: Vec::new(),
            instruction_count: 0,
            has_stage: false,
            told_no_stage: false,
            errors: Vec::new(),
            findings: Vec::new(),
        }
    }

    fn run(&mut self) {
        while let Some(line) = self.reader.instruction() {
            self.instruction_count += 1;
            self.instruction(&line);
        }
        for error in self.reader.take_errors() {
            self.errors.push(ParseError {
                class: ErrorClass::Parse,
                lines: error.lines,
                span: error.span,
                kind: error.kind,
                suggestion: None,
                tells_line: false,
            });
        }
    }

    /// Reads the bodies of a line's heredocs, then the instruction itself.
    fn instruction(&mut self, line: &JoinedLine) {
        if line.has_empty_continuation {
            self.findings.push(lint::empty_continuation(line));
        }
        let command = match syntax::command(&line.text, self.reader.escape()) {
            Ok(command) => command,
            Err(fault) => return self.fault(ErrorClass::Parse, line, line.lines, fault),
        };
        let mut span = line.span.clone();
        let mut lines = line.lines;
        let mut heredocs = Vec::new();
        if command.takes_heredocs {
            for word in heredoc::words_in(&line.text) {
                let Some(body) = self.reader.heredoc(&word.name, word.chomp) else {
                    if !self.reader.hit_long_line() {
                        lines.last = self.reader.line_number();
                        let kind = ParseErrorKind::UnterminatedHeredoc { name: word.name };
                        self.push_error(ErrorClass::Parse, lines, line.span.clone(), kind);
                    }
                    return;
                };
                span.0.end = body.terminator.0.end;
                lines.last = body.last_line;
                heredocs.push(Heredoc {
                    name: word.name,
                    file_descriptor: word.file_descriptor,
                    expand: word.expand,
                    chomp: word.chomp,
                    body: self.source.text()[body.span.0.clone()].to_owned(),
                    span: body.span,
                });
            }
        }
        self.typed(line, &command, heredocs, span, lines);
    }

    fn typed(
        &mut self,
        line: &JoinedLine,
        command: &Command<'_>,
        heredocs: Vec<Heredoc>,
        span: Span,
        lines: LineRange,
    ) {
        let is_from = command.keyword == Some(syntax::Keyword::From);
        let kind = match (Typer { line, command, heredocs }).instruction() {
            Ok(kind) => kind,
            Err(fault) => {
                self.has_stage |= is_from;
                return self.fault(ErrorClass::Instr, line, lines, fault);
            }
        };
        self.has_stage |= is_from;
        if self.is_file && !self.has_stage && !self.told_no_stage && !matches!(kind, InstructionKind::Arg(_)) {
            self.told_no_stage = true;
            self.push_error(ErrorClass::Instr, lines, span.clone(), ParseErrorKind::NoStageYet);
        }
        let instruction = Instruction {
            keyword: Spanned {
                node: command.keyword_text.text.to_owned(),
                span: line.span(&command.keyword_text.range()),
            },
            span,
            text: line.text.trim().to_owned(),
            comments: line.comments.clone(),
            kind,
        };
        lint::instruction(&self.source, &instruction, &line.text, command, &mut self.findings);
        self.instructions.push(instruction);
    }

    /// Errors of the file as a whole (P-15).
    fn check_stages(&mut self) {
        if !self.errors.is_empty() {
            return;
        }
        if self.source.text().is_empty() {
            self.push_error(
                ErrorClass::Convert,
                LineRange { first: 1, last: 1 },
                Span::default(),
                ParseErrorKind::Empty,
            );
        } else if self.instruction_count == 0 {
            let last = self.reader.line_number();
            let end = self.source.text().len();
            let lines = LineRange { first: last, last };
            self.push_error(ErrorClass::Parse, lines, Span(end..end), ParseErrorKind::NoInstructions);
        } else if !self.has_stage {
            let end = self.source.text().len();
            self.error(ErrorClass::Convert, Span(0..end), ParseErrorKind::NoStages);
        }
    }

    fn error(&mut self, class: ErrorClass, span: Span, kind: ParseErrorKind) {
        let lines = self.source.lines(&span);
        self.push_error(class, lines, span, kind);
    }

    fn push_error(&mut self, class: ErrorClass, lines: LineRange, span: Span, kind: ParseErrorKind) {
        self.errors.push(ParseError { class, lines, span, kind, suggestion: None, tells_line: false });
    }

    fn fault(&mut self, class: ErrorClass, line: &JoinedLine, lines: LineRange, fault: Fault) {
        self.errors.push(ParseError {
            class,
            lines,
            span: line.span(&fault.range),
            kind: fault.kind,
            suggestion: fault.suggestion,
            tells_line: self.is_file && class == ErrorClass::Instr,
        });
    }

    fn finish(self) -> Result<Dockerfile, ParseErrors> {
        let directives::Detected { syntax, check } = directives::detect(self.source.text());
        let escape = self.reader.escape();
        let mut findings = self.findings;
        findings.sort_by_key(|finding| finding.span.0.start);
        let dockerfile = Dockerfile {
            source: self.source,
            directives: Directives { syntax, escape, check },
            instructions: self.instructions,
            findings,
        };
        if self.errors.is_empty() { Ok(dockerfile) } else { Err(ParseErrors::new(self.errors, dockerfile)) }
    }
}

#[cfg(test)]
mod tests;
