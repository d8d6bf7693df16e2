//! Which cases do not pass yet.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;

/// Who builds and how trees are kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mode {
    /// `root`, `user` (with subordinate ids) or `single` (a user without any); for a container its kind: `E4`, `E5`, `E6`.
    pub user: String,
    /// `overlay` or `directory`; `traced` is directory in the sandbox of that name; `auto` is what slipway
    /// chooses; `pod` for containers, which choose themselves.
    pub trees: String,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('-') {
            Some((user @ ("root" | "user"), trees @ ("overlay" | "directory" | "traced")))
            | Some((user @ "single", trees @ "auto")) => Ok(Self { user: user.to_owned(), trees: trees.to_owned() }),
            None if matches!(text, "E4" | "E5" | "E6") => Ok(Self { user: text.to_owned(), trees: "pod".to_owned() }),
            _ => Err(format!(
                "`{text}` is no mode: it is root or user, a `-`, and overlay, directory or traced; or single-auto; or E4, E5, E6"
            )),
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.trees == "pod" {
            return f.write_str(&self.user);
        }
        write!(f, "{}-{}", self.user, self.trees)
    }
}

/// How much of a case agrees with the recorded answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Not even config and final tree, or not the outcome.
    Nothing,
    /// Config and final tree, or the outcome of a failing build.
    Image,
    /// Layers, history and error text too.
    Everything,
}

/// The list of cases that do not pass yet.
#[derive(Debug, Default)]
pub struct Status {
    /// By case: the mode it speaks of (or all), the level that is reached, and why not more.
    entries: BTreeMap<String, Vec<(String, Level, String)>>,
}

impl Status {
    /// Reads `status.txt` of the corpus.
    ///
    /// # Errors
    /// If it cannot be read or a line is not understood.
    pub fn read(path: &Path) -> io::Result<Self> {
        fs::read_to_string(path)?.parse().map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
    }

    /// What `case` is expected to reach in `mode`, and why it is not everything.
    pub fn expected(&self, case: &str, mode: &Mode) -> (Level, &str) {
        // What slipway chooses for a user without subordinate ids.
        let trees = if mode.trees == "auto" { "traced" } else { &mode.trees };
        let applies = |scope: &str| scope.is_empty() || [&mode.user, trees, &mode.to_string()].contains(&scope);
        self.entries
            .get(case)
            .into_iter()
            .flatten()
            .filter(|(scope, ..)| applies(scope))
            .map(|(_, level, reason)| (*level, reason.as_str()))
            .min()
            .unwrap_or((Level::Everything, ""))
    }

    /// All names in the list.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

impl FromStr for Status {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut status = Self::default();
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (head, reason) = line.split_once(": ").ok_or(format!("line {number}: no `: ` before a reason"))?;
            let mut words = head.split_whitespace();
            let name = words.next().ok_or(format!("line {number}: no name"))?;
            let (mut level, mut scope) = (Level::Nothing, String::new());
            for word in words {
                match word.strip_prefix('@') {
                    Some(mode @ ("root" | "user" | "single" | "overlay" | "directory" | "traced" | "pod")) => {
                        mode.clone_into(&mut scope)
                    }
                    Some(mode) => scope = mode.parse::<Mode>().map_err(|e| format!("line {number}: {e}"))?.to_string(),
                    None if word == "details" => level = Level::Image,
                    None => return Err(format!("line {number}: `{word}` is neither `details` nor `@mode`")),
                }
            }
            if reason.trim().is_empty() {
                return Err(format!("line {number}: {name} has no reason"));
            }
            status.entries.entry(name.to_owned()).or_default().push((scope, level, reason.trim().to_owned()));
        }
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_and_levels_are_understood() {
        let status: Status = "# no\n\na: not there\nb details: order\nc @user: ids\nc @root-overlay details: x\n"
            .parse()
            .expect("the list is well formed");
        for (case, mode, level, reason) in [
            ("a", "root-overlay", Level::Nothing, "not there"),
            ("b", "user-directory", Level::Image, "order"),
            ("c", "user-overlay", Level::Nothing, "ids"),
            ("c", "root-overlay", Level::Image, "x"),
            ("c", "root-directory", Level::Everything, ""),
            ("d", "root-directory", Level::Everything, ""),
        ] {
            let mode = mode.parse().expect(mode);
            assert_eq!(status.expected(case, &mode), (level, reason), "{case} {mode}");
        }
        for bad in ["a", "a b: reason", "a @nobody: reason", ": reason"] {
            assert!(bad.parse::<Status>().is_err(), "{bad}");
        }
    }
}
