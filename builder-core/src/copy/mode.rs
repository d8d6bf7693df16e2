//! `--chmod`: what it makes of a mode (checklist C-34 to C-36).
//!
//! Symbolic modes follow BSD's setmode(3), which BuildKit uses, with a umask of 0. Where it differs from GNU chmod: `o+t`
//! does nothing, and `X` looks at the mode before the first clause.

use crate::plan::Chmod;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;
const USER: u32 = 0o700;
const GROUP: u32 = 0o070;
const OTHER: u32 = 0o007;
const EXECUTE: u32 = 0o111;
/// What `a` and no class at all mean; the sticky bit has to be named.
const ALL: u32 = SETUID | SETGID | USER | GROUP | OTHER;

/// A symbolic mode that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid syntax of the mode `{text}`")]
pub struct ModeError {
    /// As written.
    pub text: String,
}

/// A `--chmod` ready to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModeChange {
    /// Every file gets this mode.
    Set(u32),
    /// Every file's mode is changed.
    Change(Vec<Operation>),
}

/// One step of a symbolic mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `+`
    Add(u32),
    /// `-`
    Remove(u32),
    /// `+X`: only on directories and files with an execute bit.
    AddExecute(u32),
    /// `g=u` and its like: the three bits of `from` (shifted right by so many bits) change those in `to`.
    Copy {
        /// 6 for the user's bits, 3 for the group's, 0 for the others'.
        from: u32,
        /// Classes that change.
        to: u32,
        /// `+`, `-` or `=`.
        how: char,
    },
}

impl ModeChange {
    /// Reads the value of `--chmod`.
    ///
    /// # Errors
    /// [`ModeError`] for a text that chmod(1) would refuse.
    pub fn new(chmod: &Chmod) -> Result<Self, ModeError> {
        match chmod {
            Chmod::Octal(mode) => Ok(Self::Set(mode & 0o7777)),
            Chmod::Symbolic(text) => parse(text).map(Self::Change).ok_or_else(|| ModeError { text: text.clone() }),
        }
    }

    /// The mode that replaces `mode`.
    pub fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        let operations = match self {
            Self::Set(mode) => return *mode,
            Self::Change(operations) => operations,
        };
        operations.iter().fold(mode, |now, operation| match operation {
            Operation::Add(bits) => now | bits,
            Operation::Remove(bits) => now & !bits,
            Operation::AddExecute(bits) if is_directory || mode & EXECUTE != 0 => now | bits,
            Operation::AddExecute(_) => now,
            Operation::Copy { from, to, how } => {
                let bits = now >> from & 0o7;
                let spread = (bits << 6 | bits << 3 | bits) & to;
                match how {
                    '+' => now | spread,
                    '-' => now & !spread,
                    _ => now & !to | spread,
                }
            }
        })
    }

    /// Permission bits of directories that are made on the way to the destination (checklist C-20).
    pub fn for_new_parents(&self) -> u32 {
        match self {
            Self::Set(mode) => mode & 0o777,
            Self::Change(_) => 0o755,
        }
    }
}

fn parse(text: &str) -> Option<Vec<Operation>> {
    let mut operations = Vec::new();
    for clause in text.split(',') {
        let actions = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        let who = clause[..clause.len() - actions.len()].chars().fold(0, |who, class| {
            who | match class {
                'u' => SETUID | USER,
                'g' => SETGID | GROUP,
                'o' => OTHER,
                _ => ALL,
            }
        });
        let mut rest = actions;
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let how = rest.chars().next().filter(|c| "+-=".contains(*c))?;
            let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |i| i + 1);
            action(who, how, &rest[1..end], &mut operations)?;
            rest = &rest[end..];
        }
    }
    Some(operations)
}

fn action(who: u32, how: char, permissions: &str, operations: &mut Vec<Operation>) -> Option<()> {
    let classes = if who == 0 { ALL } else { who };
    // Set-id and sticky bits are not the others' to have.
    let may_be_special = who == 0 || who & !OTHER != 0;
    let mut bits = 0;
    let mut execute = 0;
    let mut copies = Vec::new();
    for permission in permissions.chars() {
        match permission {
            'r' => bits |= 0o444 & classes,
            'w' => bits |= 0o222 & classes,
            'x' => bits |= EXECUTE & classes,
            'X' => execute = EXECUTE & classes,
            's' if may_be_special => bits |= (SETUID | SETGID) & classes,
            't' if may_be_special => bits |= STICKY,
            's' | 't' => {}
            'u' => copies.push(6),
            'g' => copies.push(3),
            'o' => copies.push(0),
            _ => return None,
        }
    }
    let to = classes & (USER | GROUP | OTHER);
    if how == '-' {
        operations.push(Operation::Remove(bits));
    } else {
        if how == '=' && copies.is_empty() {
            operations.push(Operation::Remove(classes | bits & STICKY));
        }
        if bits != 0 {
            operations.push(Operation::Add(bits));
        }
        if execute != 0 {
            operations.push(Operation::AddExecute(execute));
        }
    }
    operations.extend(copies.into_iter().map(|from| Operation::Copy { from, to, how }));
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, mode: u32, file: u32, directory: u32) {
        let change = ModeChange::new(&Chmod::Symbolic(text.to_owned())).expect(text);
        assert_eq!(
            format!("{:o}", change.apply(mode, false)),
            format!("{file:o}"),
            "{text} on a file of mode {mode:o}"
        );
        assert_eq!(
            format!("{:o}", change.apply(mode, true)),
            format!("{directory:o}"),
            "{text} on a directory of mode {mode:o}"
        );
    }

    #[test]
    fn symbolic_modes() {
        check("u+x", 0o644, 0o744, 0o744);
        check("go-r,u=rwx", 0o644, 0o700, 0o700);
        check("go-r,u=rwx", 0o755, 0o711, 0o711);
        check("a=rX", 0o644, 0o444, 0o555);
        check("+w,g+s,o+t", 0o644, 0o2666, 0o2666);
        check("+w,g+s,o+t", 0o755, 0o2777, 0o2777);
        check("u=g", 0o644, 0o444, 0o444);
        check("-r", 0o644, 0o200, 0o200);
        check("g=u,o=", 0o755, 0o770, 0o770);
        check("u-x,a+X", 0o755, 0o755, 0o755);
        check("go+rX", 0o600, 0o644, 0o655);
        check("+t", 0o755, 0o1755, 0o1755);
        check("u+s", 0o755, 0o4755, 0o4755);
        check("u=rwx", 0o4644, 0o744, 0o744);
        check("g+u", 0o640, 0o660, 0o660);
        check("o-g", 0o646, 0o642, 0o642);
        check("a+r,u+s", 0o600, 0o4644, 0o4644);
        check("u+r-w", 0o600, 0o400, 0o400);
        check("=", 0o4755, 0, 0);
    }

    #[test]
    fn octal_modes_replace_everything() {
        let change = ModeChange::new(&Chmod::Octal(0o4711)).expect("a number");
        assert_eq!((change.apply(0o644, false), change.for_new_parents()), (0o4711, 0o711));
    }

    #[test]
    fn what_is_no_mode() {
        for text in ["", "rwx", "u", "u+q", "u+r,", "a+r,,o-w", "+r é", "u~r"] {
            let error = ModeChange::new(&Chmod::Symbolic(text.to_owned())).expect_err(text);
            assert!(error.to_string().contains("invalid syntax"), "{error}");
        }
    }
}
