//! Errors for people: the lines of the Dockerfile, a caret, the words of each cause, a hint. Rendered once, here.

use std::fmt::Write as _;
use std::io::Write as _;

use builder_core::dockerfile::{LineRange, Source, Span, decode};
use builder_core::exec::{BuildError, DockerfileSource};
use builder_core::hint::{Hint as _, chain};

/// Lines shown before and after those at fault.
const CONTEXT_LINES: usize = 2;

/// More lines than this are not shown; the first and last ones of a long instruction tell enough.
const EXCERPT_LINES: usize = 24;

/// Shows a message and a hint.
pub fn plain(message: &str, hint: Option<&str>) {
    let mut text = format!("error: {message}\n");
    if let Some(hint) = hint {
        _ = writeln!(text, "hint: {hint}");
    }
    // There is nowhere to tell that standard error is gone.
    _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Shows why a build failed, with the lines of the Dockerfile.
pub fn build_error(error: &BuildError, dockerfile: &DockerfileSource) {
    let mut text = String::new();
    if let Some(source) = source_of(error, dockerfile) {
        let name = match dockerfile {
            DockerfileSource::File(path) | DockerfileSource::InContext(path) => {
                path.file_name().map_or_else(|| "Dockerfile".to_owned(), |name| name.to_string_lossy().into_owned())
            }
            DockerfileSource::Text(_) => "Dockerfile".to_owned(),
        };
        if let BuildError::Parse(errors) = error {
            // Those after the first are told too: people mend them in one go.
            for other in errors.errors().iter().skip(1) {
                text.push_str(&excerpt(&source, &name, &[other.lines], Some(&other.span)));
                _ = writeln!(text, "error: {other}");
            }
        }
        text.push_str(&excerpt(&source, &name, &lines_of(error), span_of(error).as_ref()));
    }
    _ = writeln!(text, "error: {}", chain(error));
    if let Some(hint) = error.hint() {
        _ = writeln!(text, "hint: {hint}");
    }
    _ = std::io::stderr().lock().write_all(text.as_bytes());
}

fn lines_of(error: &BuildError) -> Vec<LineRange> {
    match error {
        BuildError::Plan(plan) => plan.lines.clone(),
        other => other.lines().into_iter().collect(),
    }
}

fn span_of(error: &BuildError) -> Option<Span> {
    match error {
        BuildError::Plan(plan) => plan.span.clone(),
        BuildError::Parse(errors) => Some(errors.first().span.clone()),
        _ => None,
    }
}

/// The Dockerfile as it was read; what is at fault in a file is looked up again, since a finished build keeps no text.
fn source_of(error: &BuildError, dockerfile: &DockerfileSource) -> Option<Source> {
    if let BuildError::Parse(errors) = error {
        return Some(errors.partial().source.clone());
    }
    error.lines()?;
    match dockerfile {
        DockerfileSource::File(path) => {
            let lower = path.with_file_name("dockerfile");
            let bytes = std::fs::read(path).or_else(|_| std::fs::read(lower)).ok()?;
            Some(Source::new(decode(bytes).ok()?))
        }
        DockerfileSource::Text(text) => Some(Source::new(text.clone())),
        DockerfileSource::InContext(_) => None,
    }
}

/// The lines around `lines`, those at fault marked, with a caret below `span` if it is within one line.
fn excerpt(source: &Source, name: &str, lines: &[LineRange], span: Option<&Span>) -> String {
    let (Some(first), Some(last)) = (lines.iter().map(|l| l.first).min(), lines.iter().map(|l| l.last).max()) else {
        return String::new();
    };
    let mut text = format!("{name}:{first}\n--------------------\n");
    let from = first.saturating_sub(CONTEXT_LINES).max(1);
    for number in from..=last + CONTEXT_LINES {
        let Some(line) = source.line(number) else { break };
        if number >= from + EXCERPT_LINES {
            text.push_str("     |     …\n");
            break;
        }
        let marked = lines.iter().any(|range| (range.first..=range.last).contains(&number));
        _ = writeln!(text, "{number:4} | {} {line}", if marked { ">>>" } else { "   " });
        if let Some(caret) = span.and_then(|span| caret(source, number, line, span)) {
            _ = writeln!(text, "     |     {caret}");
        }
    }
    text.push_str("--------------------\n");
    text
}

/// A line of blanks and `^` below the part of line `number` that `span` covers, if it is a part.
fn caret(source: &Source, number: usize, line: &str, span: &Span) -> Option<String> {
    let start = source.line_start(number)?;
    let range = span.0.start.checked_sub(start)?..span.0.end.checked_sub(start)?;
    let (before, covered) = (line.get(..range.start)?, line.get(range.clone())?);
    if covered.is_empty() || covered.len() == line.trim_end().len() {
        return None;
    }
    // Tabs stay tabs, so that the caret stands where the terminal puts the text.
    let blanks: String = before.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    Some(format!("{blanks}{}", "^".repeat(covered.chars().count())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_marks_lines_and_points() {
        let source = Source::new("FROM busybox\n\n\nCOPY --form=x a b\nRUN a \\\n  b\n".to_owned());
        let span = Span(20..26);
        let lines = [LineRange { first: 4, last: 4 }];
        let expected = "Dockerfile:4\n--------------------\n   2 |     \n   3 |     \n   4 | >>> COPY --form=x a b\n     |          \
                        ^^^^^^\n   5 |     RUN a \\\n   6 |       b\n--------------------\n";
        assert_eq!(excerpt(&source, "Dockerfile", &lines, Some(&span)), expected);
        assert_eq!(excerpt(&source, "Dockerfile", &[], None), "");
    }

    #[test]
    fn a_whole_line_gets_no_caret() {
        let source = Source::new("FROM x\nRUN y\n".to_owned());
        let shown = excerpt(&source, "D", &[LineRange { first: 2, last: 2 }], Some(&Span(7..12)));
        assert!(!shown.contains('^'), "{shown}");
    }
}
