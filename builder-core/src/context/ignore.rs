//! `.dockerignore` patterns (checklist D-03 to D-05).

/// A list of patterns; the last match decides.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    _private: (),
}

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct IgnoreError {
    /// Line in the ignore file, counted from 1.
    pub line: usize,
    /// BuildKit's words.
    pub reason: String,
}

impl Patterns {
    /// Reads an ignore file.
    ///
    /// # Errors
    /// A lone `!` or malformed brackets.
    pub fn parse(_text: &str) -> Result<Self, IgnoreError> {
        todo!()
    }

    /// Whether `path` (relative, `/` between components) is hidden, its parents' matches included.
    pub fn is_ignored(&self, _path: &[u8]) -> bool {
        todo!()
    }
}
