use proptest::prelude::*;

use super::*;

#[track_caller]
fn check(text: &str, path: &str, ignored: bool) {
    let patterns = Patterns::parse(text).expect(text);
    assert_eq!(patterns.is_ignored(path.as_bytes()), ignored, "{text:?} on {path:?}");
}

#[track_caller]
fn check_error(text: &str, line: usize, reason: &str) {
    let error = Patterns::parse(text).expect_err(text);
    assert_eq!(error, IgnoreError { line, reason: reason.to_owned() }, "{text:?}");
}

#[test]
fn patterns_alone() {
    for (pattern, path, ignored) in [
        ("**", "file", true),
        ("**/", "dir/file", true),
        ("dir/**", "dir/file", true),
        ("dir/**", "dir", false),
        ("**/dir", "dir", true),
        ("**/dir", "dir/file", true),
        ("**/dir2/*", "dir/dir2/file", true),
        ("**/dir2/**", "dir/dir2/dir3/file", true),
        ("**file", "dir/dir/file", true),
        ("**/file*txt", "dir/dir/file.txt", true),
        ("**/**/*.txt", "file.txt", true),
        ("**/**/*.txt2", "dir/dir/file.txt", false),
        ("a**/*.txt", "a/dir/dir/file.txt", true),
        ("a/*.txt", "a/dir/file.txt", false),
        ("a/*.txt**", "a/file.txt", true),
        ("a[b-d]e", "ace", true),
        ("a[b-d]e", "aae", false),
        ("a[^b-d]e", "aze", true),
        ("a[^b-d]e", "a/e", true),
        (".*", ".foo", true),
        (".*", "foo", false),
        ("abc.def", "abcZdef", false),
        ("abc?def", "abcZdef", true),
        ("**/.foo", "bar.foo", false),
        ("a(b)c/def", "a(b)c/def", true),
        ("a.|)$(}+{b*c", "a.|)$(}+{bc", true),
        ("dist/*.whl", "dist/proxy.py-2.4.0rc3+g08acad9.whl", true),
        ("a\\*b", "a*b", true),
        ("a\\*b", "axb", false),
        ("\\#hash", "#hash", true),
        ("[[:digit:]]x", "7x", true),
        ("\\dx", "7x", true),
        ("\\dx", "dx", false),
        ("docs/", "docs/README.md", true),
        ("./a/../b//c", "b/c", true),
        ("/a", "a", true),
        ("/", "a", false),
        (".", "a", false),
        ("../a", "a", false),
        ("foo", "foobar", false),
        ("d/e", "d/ef", false),
        ("A", "a", false),
        ("a?", "aü", true),
        ("d/*", "d/e/f", true),
        ("*", "d/e/f", true),
    ] {
        check(pattern, path, ignored);
    }
}

#[test]
fn the_last_match_decides() {
    for (text, path, ignored) in [
        ("docs\n!docs/README.md", "docs/README.md", false),
        ("docs\n!docs/README.md", "docs/x", true),
        ("docs\n!docs/README.md", "docs", true),
        ("!f\n*.go\nf", "f", true),
        ("**\n!util/docker/web", "util/docker/web/foo", false),
        ("**\n!util/docker/web\nutil/docker/web/foo", "util/docker/web/foo", true),
        ("*\n!src\nsrc/*.tmp", "README", true),
        ("*\n!src\nsrc/*.tmp", "src/x.tmp", true),
        ("*\n!src\nsrc/*.tmp", "src/y", false),
        ("d\n!d/e\nd/e/*.dat", "d/e/f.dat", true),
        ("d\n!d/e\nd/e/*.dat", "d/e/f", false),
        // moby does not look at `a*` for the directory, which is matched already, so `a/b` is not below a match of it.
        ("a\n!a/b\na*", "a/b", false),
    ] {
        check(text, path, ignored);
    }
}

#[test]
fn lines_of_an_ignore_file() {
    for (text, path, ignored) in [
        ("\u{feff}*.dat", "x.dat", true),
        ("*.dat\r\nd\r\n", "d", true),
        ("# a\n a \n", "a", true),
        (" #a", "#a", true),
        ("*\n!   keep", "keep", false),
        ("a", "a", true),
        ("", "a", false),
    ] {
        check(text, path, ignored);
    }
    check_error("a\n!\n", 2, "illegal exclusion pattern: \"!\"");
    check_error("! ", 1, "illegal exclusion pattern: \"!\"");
    check_error("\n\na[", 3, "syntax error in pattern");
    check_error("[]a]", 1, "syntax error in pattern");
    check_error("[b-a]", 1, "syntax error in pattern");
    check_error("\\g", 1, "syntax error in pattern");
}

#[test]
fn directories_below_which_nothing_changes_are_known() {
    for (text, directory, may_change) in [
        ("node_modules", "node_modules", false),
        ("node_modules\n!node_modules/keep", "node_modules", true),
        ("node_modules\n!node_modules/keep", "node_modules/other", false),
        ("a\n!b/c", "a", false),
        ("*\n!**/*.txt", "a", true),
        ("*\n!a/**", "a", true),
        ("*\n!a/*/c", "a/b", true),
        ("*\n!a/*/c", "b", false),
    ] {
        let patterns = Patterns::parse(text).expect(text);
        let matched = patterns.matched(directory.as_bytes());
        assert_eq!(patterns.may_change_below(&matched), may_change, "{text:?} {directory:?}");
    }
}

#[test]
fn the_ignore_file_of_the_dockerfile_comes_first() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let context = directory.path().join("context");
    std::fs::create_dir(&context).expect("mkdir");
    let dockerfile = directory.path().join("build.Dockerfile");
    let find = || find_ignore_file(Some(&dockerfile), Some(&context)).expect("readable").map(|found| found.text);
    assert_eq!(find(), None);
    std::fs::write(context.join(".dockerignore"), "root").expect("write");
    assert_eq!(find().as_deref(), Some("root"));
    std::fs::write(directory.path().join("build.Dockerfile.dockerignore"), "").expect("write");
    assert_eq!(find().as_deref(), Some(""));
    assert_eq!(find_ignore_file(None, None).expect("nothing to read"), None);
    std::fs::remove_file(context.join(".dockerignore")).expect("rm");
    std::fs::create_dir(context.join(".dockerignore")).expect("mkdir");
    assert!(matches!(find_ignore_file(None, Some(&context)), Err(IgnoreFileError::Read { .. })));
}

/// The documented meaning of one pattern, by trial: `**` spans directories, `*` and `?` stay in one.
fn naive_glob(pattern: &[char], path: &[char]) -> bool {
    match pattern {
        [] => path.is_empty(),
        ['*', '*', '/', rest @ ..] | ['*', '*', rest @ ..] => {
            if rest.is_empty() {
                return true;
            }
            naive_glob(rest, path) || (1..=path.len()).any(|n| path[n - 1] == '/' && naive_glob(rest, &path[n..]))
        }
        ['*', rest @ ..] => {
            (0..=path.len()).take_while(|n| *n == 0 || path[n - 1] != '/').any(|n| naive_glob(rest, &path[n..]))
        }
        ['?', rest @ ..] => path.first().is_some_and(|c| *c != '/') && naive_glob(rest, &path[1..]),
        [c, rest @ ..] => path.first() == Some(c) && naive_glob(rest, &path[1..]),
    }
}

/// The documented meaning of a list: for each pattern its match on the path or on a directory above; the last decides.
fn naive_list(patterns: &[(bool, String)], path: &str) -> bool {
    let mut ignored = false;
    for (exception, pattern) in patterns {
        let pattern: Vec<char> = pattern.chars().collect();
        let prefixes = path.match_indices('/').map(|(i, _)| &path[..i]).chain([path]);
        let matches = prefixes.into_iter().any(|prefix| naive_glob(&pattern, &prefix.chars().collect::<Vec<_>>()));
        if matches {
            ignored = !exception;
        }
    }
    ignored
}

/// Patterns without the forms that moby treats apart: `**x` (a suffix, not a directory) and `x**`.
fn pattern() -> impl Strategy<Value = String> {
    let component = prop_oneof![
        4 => "[ab]{1,2}",
        2 => "[ab]?[*?][ab]?",
        2 => Just("**".to_owned()),
    ];
    prop::collection::vec(component, 1..4).prop_map(|parts| parts.join("/"))
}

proptest! {
    #[test]
    fn one_pattern_means_what_is_documented(pattern in pattern(), path in "[ab]{1,2}(/[ab]{1,2}){0,3}") {
        let patterns = Patterns::parse(&pattern).expect("well formed");
        prop_assert_eq!(patterns.is_ignored(path.as_bytes()), naive_list(&[(false, pattern)], &path));
        let parent = path.rsplit_once('/').map_or_else(|| patterns.root(), |(parent, _)| patterns.matched(parent.as_bytes()));
        prop_assert_eq!(patterns.matches_file(&parent, path.as_bytes()), patterns.is_ignored(path.as_bytes()));
    }

    /// With one exception at the end, moby's shortcut for patterns that cannot change the answer has no effect.
    #[test]
    fn lists_mean_what_is_documented(
        ignored in prop::collection::vec(pattern(), 0..3),
        exception in pattern(),
        path in "[ab]{1,2}(/[ab]{1,2}){0,3}",
    ) {
        let mut list: Vec<(bool, String)> = ignored.into_iter().map(|pattern| (false, pattern)).collect();
        list.push((true, exception));
        let text: String = list.iter().map(|(not, pattern)| format!("{}{pattern}\n", if *not { "!" } else { "" })).collect();
        let patterns = Patterns::parse(&text).expect("well formed");
        // An exception seen on a directory that nothing hides is not noted, so it does not reach below (moby).
        let above = path.match_indices('/').map(|(i, _)| &path[..i]);
        prop_assume!(above.clone().all(|prefix| naive_list(&list[..list.len() - 1], prefix)) || above.count() == 0);
        prop_assert_eq!(patterns.is_ignored(path.as_bytes()), naive_list(&list, &path), "{}", text);
    }

    /// Pruning a directory never loses a path.
    #[test]
    fn pruned_directories_hold_no_exceptions(
        list in prop::collection::vec((any::<bool>(), pattern()), 1..5),
        path in "[ab]{1,2}(/[ab]{1,2}){1,3}",
    ) {
        let text: String = list.iter().map(|(not, pattern)| format!("{}{pattern}\n", if *not { "!" } else { "" })).collect();
        let patterns = Patterns::parse(&text).expect("well formed");
        for (i, _) in path.match_indices('/') {
            let directory = &path.as_bytes()[..i];
            let matched = patterns.matched(directory);
            if !patterns.may_change_below(&matched) {
                prop_assert_eq!(patterns.is_ignored(path.as_bytes()), matched.yes, "{} below {}", text, &path[..i]);
            }
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[\\[\\]^!*?\\\\a-d/.\n\\-: ]{0,30}", path in "[\\[\\]^!a-d/.\\\\*]{1,12}") {
        if let Ok(patterns) = Patterns::parse(&text) {
            patterns.is_ignored(path.as_bytes());
        }
    }
}
