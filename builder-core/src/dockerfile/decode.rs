//! Bytes of a file → text. A Dockerfile is UTF-8, but what stands in a comment may be anything: names of authors in Latin-1
//! are in many an old file, and BuildKit builds them.

use super::parse::parse;
use super::source::LineRange;

/// Where a Dockerfile is not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, byte {column} is not UTF-8")]
pub struct NotUtf8 {
    /// Counted from 1.
    pub line: usize,
    /// Byte of the line, counted from 1.
    pub column: usize,
}

/// The text; what is not UTF-8 in comments is replaced by U+FFFD. Line numbers stay, offsets behind such bytes change.
///
/// # Errors
/// If there are other bytes anywhere else, the bodies of heredocs included, where `#` begins no comment.
pub fn decode(bytes: Vec<u8>) -> Result<String, NotUtf8> {
    let bytes = match String::from_utf8(bytes) {
        Ok(text) => return Ok(text),
        Err(error) => error.into_bytes(),
    };
    let mut text = String::with_capacity(bytes.len());
    let mut replaced = Vec::new();
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        match std::str::from_utf8(line) {
            Ok(line) => text.push_str(line),
            Err(error) => {
                let place = NotUtf8 { line: index + 1, column: error.valid_up_to() + 1 };
                if line.trim_ascii_start().first() != Some(&b'#') {
                    return Err(place);
                }
                text.push_str(&String::from_utf8_lossy(line));
                replaced.push(place);
            }
        }
    }
    // A text that is refused stores nothing; its own errors are told then.
    let Ok(dockerfile) = parse(&text) else { return Ok(text) };
    let with_bodies = dockerfile.instructions.iter().filter(|instruction| instruction.text.contains("<<"));
    let mut lines = with_bodies.map(|instruction| dockerfile.source.lines(&instruction.span));
    let within = |lines: LineRange| replaced.iter().find(|place| (lines.first..=lines.last).contains(&place.line));
    lines.find_map(within).map_or(Ok(text), |place| Err(*place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_may_hold_anything() {
        for (bytes, expected) in [
            (&b"FROM x\n"[..], Ok("FROM x\n")),
            (
                b"# caf\xe9\nFROM x\nRUN a \\\n  # \xff\xfe\n  b\n",
                Ok("# caf\u{fffd}\nFROM x\nRUN a \\\n  # \u{fffd}\u{fffd}\n  b\n"),
            ),
            (b"FROM x\nRUN echo caf\xe9\n", Err((2, 13))),
            (b"FROM x\nRUN echo # \xe9\n", Err((2, 12))),
            (b"FROM x\nCOPY <<E /f\n# \xe9\nE\n", Err((3, 3))),
            (b"FROM x\nCOPY <<E /f\n#\nE\n# \xe9\nRUN y\n", Ok("FROM x\nCOPY <<E /f\n#\nE\n# \u{fffd}\nRUN y\n")),
            (b"\xff\xfeF\0R\0", Err((1, 1))),
        ] {
            let decoded = decode(bytes.to_vec()).map_err(|place| (place.line, place.column));
            assert_eq!(decoded.as_deref().map_err(|place| *place), expected);
        }
    }
}
