//! Positions in the Dockerfile as written.

use std::ops::Range;

/// Byte range in the Dockerfile as written, before continuations are joined.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Span(pub Range<usize>);

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub node: T,
    /// Where it stands.
    pub span: Span,
}

/// First and last line of a construct, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LineRange {
    /// First line.
    pub first: usize,
    /// Last line, included.
    pub last: usize,
}

/// The text of a Dockerfile and its line starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    text: String,
    /// Byte offset of the beginning of each line.
    line_starts: Vec<usize>,
}

impl Source {
    /// Takes the text as written.
    pub fn new(text: String) -> Self {
        let line_starts = std::iter::once(0)
            .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1))
            .collect();
        Self { text, line_starts }
    }

    /// The text as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The line, counted from 1, that holds byte `offset`.
    pub fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset).max(1)
    }

    /// The lines that `span` touches.
    pub fn lines(&self, span: &Span) -> LineRange {
        let first = self.line_of(span.0.start);
        let last = self.line_of(span.0.end.saturating_sub(1).max(span.0.start));
        LineRange { first, last }
    }

    /// The text of line `number`, counted from 1, without its line end; `None` past the end.
    pub fn line(&self, number: usize) -> Option<&str> {
        let start = *self.line_starts.get(number.checked_sub(1)?)?;
        let end = self.line_starts.get(number).copied().unwrap_or(self.text.len());
        Some(self.text[start..end].trim_end_matches(['\n', '\r']))
    }

    /// Byte offset at which line `number`, counted from 1, begins.
    pub fn line_start(&self, number: usize) -> Option<usize> {
        self.line_starts.get(number.checked_sub(1)?).copied()
    }
}
