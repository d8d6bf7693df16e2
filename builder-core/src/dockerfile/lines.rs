//! First pass: physical lines → instruction lines with their comments, and the bodies of heredocs.
//!
//! Continued lines are joined into one text, which remembers where each of its pieces came from. Nothing is looked up
//! twice: the time is linear in the text, whatever the number of continuations.

use std::ops::Range;

use super::directives::{DirectiveLine, DirectiveReader};
use super::error::{MAX_LINE_BYTES, ParseErrorKind};
use super::source::{LineRange, Span};

/// The byte-order mark that is dropped at the beginning of a file (P-07).
pub(super) const BYTE_ORDER_MARK: &str = "\u{feff}";

/// An instruction as one line: comments, continuation marks and line ends are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JoinedLine {
    /// The text; blanks at its end are still there.
    pub text: String,
    /// Where pieces of `text` come from: offset in `text`, offset in the source. Sorted; begins with 0.
    pieces: Vec<(usize, usize)>,
    /// From the first non-blank byte to the end of the last physical line.
    pub span: Span,
    /// Its physical lines.
    pub lines: LineRange,
    /// The last physical line.
    pub last_line: Span,
    /// The comments before it.
    pub comments: Vec<String>,
    /// Whether a blank line was skipped inside.
    pub has_empty_continuation: bool,
}

impl JoinedLine {
    /// Where a part of `text` stands in the source; what was dropped between its pieces is included.
    pub fn span(&self, range: &Range<usize>) -> Span {
        let start = self.source_offset(range.start);
        let end = if range.is_empty() { start } else { self.source_offset(range.end - 1) + 1 };
        Span(start..end)
    }

    fn source_offset(&self, offset: usize) -> usize {
        let (joined, source) = self.pieces[self.pieces.partition_point(|(joined, _)| *joined <= offset) - 1];
        source + (offset - joined)
    }
}

/// The body of a heredoc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Body {
    /// The lines before the terminator, line ends included.
    pub span: Span,
    /// The terminator's line, without its line end.
    pub terminator: Span,
    /// Its number.
    pub last_line: usize,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LineError {
    pub kind: ParseErrorKind,
    pub lines: LineRange,
    pub span: Span,
}

/// One physical line.
#[derive(Clone, Copy)]
struct PhysicalLine<'a> {
    /// Without line end.
    content: &'a str,
    /// Where it begins.
    start: usize,
    number: usize,
    /// Where the next line begins.
    next: usize,
}

impl PhysicalLine<'_> {
    /// Its span; a blank line includes its line end, so that it spans something.
    fn span(&self) -> Span {
        let end = self.start + self.content.len();
        Span(self.start..if self.content.is_empty() { self.next } else { end })
    }
}

/// Reads lines one after the other.
pub(super) struct LineReader<'a> {
    text: &'a str,
    position: usize,
    /// Lines read so far.
    number: usize,
    directives: DirectiveReader,
    comments: Vec<String>,
    errors: Vec<LineError>,
}

impl<'a> LineReader<'a> {
    pub fn new(text: &'a str) -> Self {
        Self {
            text,
            position: 0,
            number: 0,
            directives: DirectiveReader::default(),
            comments: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// The escape character as far as it is known now.
    pub fn escape(&self) -> char {
        self.directives.escape()
    }

    /// Lines read so far.
    pub fn line_number(&self) -> usize {
        self.number
    }

    /// What was wrong with lines so far.
    pub fn take_errors(&mut self) -> Vec<LineError> {
        std::mem::take(&mut self.errors)
    }

    /// The next physical line. A line that is too long ends the file: what follows cannot be trusted.
    fn physical(&mut self) -> Option<PhysicalLine<'a>> {
        if self.position == self.text.len() {
            return None;
        }
        let rest = &self.text[self.position..];
        let (length, next) = match rest.find('\n') {
            Some(length) => (length, self.position + length + 1),
            None => (rest.len(), self.text.len()),
        };
        let mut start = self.position;
        self.position = next;
        self.number += 1;
        if length > MAX_LINE_BYTES {
            self.position = self.text.len();
            self.errors.push(LineError {
                kind: ParseErrorKind::LineTooLong { bytes: length },
                lines: LineRange { first: self.number, last: self.number },
                span: Span(start..start + length),
            });
            return None;
        }
        let mut content = rest[..length].trim_end_matches('\r');
        if start == 0
            && let Some(behind) = content.strip_prefix(BYTE_ORDER_MARK)
        {
            content = behind;
            start = BYTE_ORDER_MARK.len();
        }
        Some(PhysicalLine { content, start, number: self.number, next })
    }

    /// The next instruction.
    pub fn instruction(&mut self) -> Option<JoinedLine> {
        loop {
            let line = self.physical()?;
            let content = line.content.trim_start();
            if content.starts_with('#') {
                self.comment(&line, content);
                continue;
            }
            self.directives.end();
            let (piece, mut continues) = match continued(content, self.escape()) {
                Some(piece) => (piece, true),
                None => (content, false),
            };
            if piece.is_empty() && !continues {
                continue;
            }
            let start = line.start + (line.content.len() - content.len());
            let mut last = line;
            let mut joined = JoinedLine {
                text: piece.to_owned(),
                pieces: vec![(0, start)],
                span: Span(start..start),
                lines: LineRange { first: line.number, last: line.number },
                last_line: Span::default(),
                comments: std::mem::take(&mut self.comments),
                has_empty_continuation: false,
            };
            while continues && let Some(line) = self.physical() {
                last = line;
                let visible = line.content.trim_start();
                if visible.starts_with('#') {
                    continue;
                }
                if visible.is_empty() {
                    joined.has_empty_continuation = true;
                    continue;
                }
                let piece = continued(line.content, self.escape());
                continues = piece.is_some();
                joined.pieces.push((joined.text.len(), line.start));
                joined.text.push_str(piece.unwrap_or(line.content));
            }
            // An empty piece maps nothing and would hide the one before it.
            joined.pieces.dedup_by(|later, earlier| {
                let same = later.0 == earlier.0;
                if same {
                    *earlier = *later;
                }
                same
            });
            joined.lines.last = last.number;
            joined.last_line = last.span();
            joined.span = Span(start..last.span().0.end.max(start));
            return Some(joined);
        }
    }

    /// A comment line: maybe a directive, else kept for the next instruction (P-13).
    fn comment(&mut self, line: &PhysicalLine<'_>, content: &str) {
        let span = Span(line.start + (line.content.len() - content.len())..line.start + line.content.len());
        match self.directives.line(content) {
            DirectiveLine::None => {}
            DirectiveLine::Known => return,
            DirectiveLine::Wrong(kind) => {
                let lines = LineRange { first: line.number, last: line.number };
                self.errors.push(LineError { kind, lines, span });
                return;
            }
        }
        // An indented comment keeps its `#`, as in BuildKit.
        let mut characters = line.content.chars();
        characters.next();
        match characters.as_str().trim() {
            "" => self.comments.clear(),
            text => self.comments.push(text.to_owned()),
        }
    }

    /// Reads the body of a heredoc up to the line that is `name`; for `<<-` leading tabs of that line do not count.
    /// `None` at the end of the file.
    pub fn heredoc(&mut self, name: &str, strips_tabs: bool) -> Option<Body> {
        let start = self.position;
        while let Some(line) = self.physical() {
            let candidate = if strips_tabs { line.content.trim_start_matches('\t') } else { line.content };
            if candidate == name {
                return Some(Body { span: Span(start..line.start), terminator: line.span(), last_line: line.number });
            }
        }
        None
    }

    /// Whether reading ended at a line that is too long.
    pub fn hit_long_line(&self) -> bool {
        self.errors.iter().any(|error| matches!(error.kind, ParseErrorKind::LineTooLong { .. }))
    }
}

/// The line without its continuation mark; `None` if it has none (P-10).
fn continued(line: &str, escape: char) -> Option<&str> {
    let before = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!before.ends_with(escape)).then_some(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(text: &str) -> Vec<JoinedLine> {
        let mut reader = LineReader::new(text);
        std::iter::from_fn(|| reader.instruction()).collect()
    }

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let lines = joined(text);
        assert_eq!(lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), expected, "{text:?}");
        for line in lines {
            for (index, character) in line.text.char_indices() {
                let Span(range) = line.span(&(index..index + character.len_utf8()));
                assert_eq!(&text[range], character.to_string(), "{text:?} at {index}");
            }
        }
    }

    #[test]
    fn joins_continuations() {
        check("RUN a \\\n# note\n  b\n", &["RUN a   b"]);
        check("a\\\nb", &["ab"]);
        check("a \\  \t\n\tb\r\nc\r\n", &["a \tb", "c"]);
        check("  a\\\n\\\n\\ \nb", &["ab"]);
        check("a\\\\\nb", &["a\\\\", "b"]);
        check("a\\\\\\\nb", &["a\\\\\\", "b"]);
        check("a \\", &["a "]);
        check("\\\na", &["a"]);
        check("\\", &[""]);
        check("a \\\n\n\nb\n\nc", &["a b", "c"]);
        check("\u{feff}a\n\u{feff}b", &["a", "\u{feff}b"]);
        check("ä\\\nö\\\n\\\nü", &["äöü"]);
        check("", &[]);
        check("#\n\n", &[]);
    }

    #[test]
    fn keeps_ranges() {
        let lines = joined("\n  A \\\n\n b\nC \\\n# x\n");
        assert_eq!(lines[0].lines, LineRange { first: 2, last: 4 });
        assert_eq!(lines[0].span, Span(3..10));
        assert!(lines[0].has_empty_continuation);
        assert_eq!(lines[1].lines, LineRange { first: 5, last: 6 });
        assert!(!lines[1].has_empty_continuation);
    }

    #[test]
    fn comments_belong_to_the_next_instruction() {
        let lines = joined("# escape=\\\n# one\n\n#two \n  # three\nA\n# x\n#\n#y\nB\nC");
        assert_eq!(lines[0].comments, ["one", "two", "# three"]);
        assert_eq!(lines[1].comments, ["y"]);
        assert!(lines[2].comments.is_empty());
    }

    #[test]
    fn heredocs_keep_their_bytes() {
        let mut reader = LineReader::new("A\r\nx\r\n\r\n\tE\r\nB\n");
        reader.instruction().expect("because there is one");
        let body = reader.heredoc("E", true).expect("because it ends");
        assert_eq!(body.span, Span(3..8));
        assert_eq!(body.last_line, 4);
        assert_eq!(reader.instruction().map(|line| line.text).as_deref(), Some("B"));
        assert_eq!(reader.heredoc("E", false), None);
    }

    #[test]
    fn long_lines_end_the_file() {
        let longest = "#".to_owned() + &"x".repeat(MAX_LINE_BYTES - 1);
        let mut reader = LineReader::new(&longest);
        assert!(reader.instruction().is_none() && reader.take_errors().is_empty());
        let text = format!("A\n{longest}x\nB");
        let mut reader = LineReader::new(&text);
        assert!(reader.instruction().is_some() && reader.instruction().is_none());
        assert!(reader.hit_long_line());
        assert_eq!(reader.take_errors()[0].lines.first, 2);
    }
}
