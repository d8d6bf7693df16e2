//! `--chmod` (checklist C-34).

use super::Chmod;

/// A `--chmod` that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChmodError {
    /// A number that is not octal or too large.
    #[error("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777")]
    Octal {
        /// What was given.
        text: String,
    },
    /// Neither a number nor chmod(1)'s grammar. BuildKit says `invalid syntax` and nothing else.
    #[error("invalid chmod parameter: '{text}': invalid syntax")]
    Symbolic {
        /// What was given.
        text: String,
    },
}

/// Reads an expanded `--chmod`.
pub(super) fn parse(text: &str) -> Result<Chmod, ChmodError> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
        return mode.map(Chmod::Octal).ok_or_else(|| ChmodError::Octal { text: text.to_owned() });
    }
    if text.split(',').all(is_clause) {
        Ok(Chmod::Symbolic(text.to_owned()))
    } else {
        Err(ChmodError::Symbolic { text: text.to_owned() })
    }
}

/// `[ugoa]*([-+=]([rwxXst]*|[ugo]))+` (chmod(1)).
fn is_clause(clause: &str) -> bool {
    let mut rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    if rest.is_empty() {
        return false;
    }
    while let Some(operation) = rest.strip_prefix(['-', '+', '=']) {
        let copied = operation.strip_prefix(['u', 'g', 'o']);
        rest = copied.unwrap_or_else(|| operation.trim_start_matches(['r', 'w', 'x', 'X', 's', 't']));
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_and_symbolic() {
        for (text, mode) in [("0", 0), ("644", 0o644), ("04711", 0o4711), ("7777", 0o7777), ("00755", 0o755)] {
            assert_eq!(parse(text), Ok(Chmod::Octal(mode)));
        }
        for text in ["u+x", "go+rX", "a=rx,u+w", "+x", "u=rwx,g=u,o=", "u-s+t", "=", "ug=rw"] {
            assert_eq!(parse(text), Ok(Chmod::Symbolic(text.to_owned())));
        }
    }

    #[test]
    fn mistakes() {
        for text in ["10000", "8", "9z", "0x1"] {
            assert_eq!(parse(text), Err(ChmodError::Octal { text: text.to_owned() }));
        }
        for text in ["rwx", "u", "u+q", "u+x,", "-1", "u x", "g=ux"] {
            assert_eq!(parse(text), Err(ChmodError::Symbolic { text: text.to_owned() }));
        }
    }
}
