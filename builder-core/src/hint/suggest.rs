//! "Did you mean": the known name that a mistyped one is nearest to.

/// Names farther away than this, in edits, are no suggestion.
const FARTHEST_EDITS: usize = 2;

/// The option with the smallest edit distance to `typed`, if at most two edits away; the first of equals. `None` too
/// when `typed` is itself one of the options: then the name was not the mistake.
pub fn nearest<'a>(typed: &str, options: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed: Vec<char> = typed.chars().collect();
    let mut best = None;
    let mut best_distance = FARTHEST_EDITS + 1;
    for option in options {
        let distance = edit_distance(&typed, option);
        if distance == 0 {
            return None;
        }
        if distance < best_distance {
            best_distance = distance;
            best = Some(option);
        }
    }
    best
}

/// As [`nearest`], but case does not count, and the answer copies the case of `typed`: all upper, all lower, or
/// capitalised.
pub fn nearest_ignoring_case<'a>(typed: &str, options: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let options: Vec<String> = options.into_iter().map(str::to_lowercase).collect();
    let answer = nearest(&typed.to_lowercase(), options.iter().map(String::as_str))?;
    let first_is_upper = typed.chars().next().is_some_and(char::is_uppercase);
    Some(if typed == typed.to_uppercase() {
        answer.to_uppercase()
    } else if first_is_upper && typed.chars().skip(1).all(|c| !c.is_uppercase()) {
        answer.chars().next().into_iter().flat_map(char::to_uppercase).chain(answer.chars().skip(1)).collect()
    } else {
        answer.to_owned()
    })
}

/// Insertions, deletions and replacements that turn `from` into `to`; any larger number when it is surely above
/// [`FARTHEST_EDITS`].
fn edit_distance(from: &[char], to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    // Long texts come from strangers; their distance is at least the difference in length.
    let difference = from.len().abs_diff(to.len());
    if difference > FARTHEST_EDITS {
        return difference;
    }
    let mut above: Vec<usize> = (0..=to.len()).collect();
    for (row, from_character) in from.iter().enumerate() {
        let mut diagonal = above[0];
        above[0] = row + 1;
        for (column, to_character) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(from_character != to_character);
            diagonal = above[column + 1];
            above[column + 1] = replaced.min(above[column] + 1).min(diagonal + 1);
        }
    }
    above[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["FROM", "RUN", "WORKDIR", "ENV"];

    #[test]
    fn suggests_within_two_edits() {
        assert_eq!(nearest("chwn", ["chown", "chmod"]), Some("chown"));
        assert_eq!(nearest("chown", ["chown", "chmod"]), None);
        assert_eq!(nearest("checksum", ["chown", "chmod", "from"]), None);
        assert_eq!(nearest("", ["a"]), Some("a"));
        assert_eq!(nearest(&"x".repeat(100_000), NAMES), None);
    }

    #[test]
    fn copies_the_case() {
        let check =
            |typed, expected: Option<&str>| assert_eq!(nearest_ignoring_case(typed, NAMES).as_deref(), expected);
        check("WORKDIRR", Some("WORKDIR"));
        check("workdirr", Some("workdir"));
        check("Workdirr", Some("Workdir"));
        check("wORKDIRR", Some("workdir"));
        check("FOOBARBAZ", None);
    }
}
