//! What a user can do about an error, apart from the error's own facts.

/// Advice that belongs to an error; rendered under it by the binary.
pub trait Hint {
    /// One sentence that names what can be changed; `None` if nothing useful is known.
    fn hint(&self) -> Option<String>;
}
