use super::*;

const ENV: [(&str, &str); 8] = [
    ("x", "foo.bar.baz"),
    ("e", ""),
    ("HOME", "/root"),
    ("p", "/usr/local/lib/file.tar.gz"),
    ("two", "1 2"),
    ("star", "*"),
    ("é", "E"),
    ("_x1", "U"),
];

#[track_caller]
fn check(raw: &str, expected: &str) {
    match expand(raw, '\\', &ENV) {
        Ok(expanded) => assert_eq!(expanded.text, expected, "expanding {raw}"),
        Err(error) => panic!("expanding {raw}: {error}"),
    }
}

/// The message behind `failed to process "word": `.
#[track_caller]
fn check_error(raw: &str, expected: &str) {
    match expand(raw, '\\', &ENV) {
        Ok(expanded) => panic!("expanding {raw} gave {:?}", expanded.text),
        Err(error) => assert_eq!(error.kind.to_string(), expected, "expanding {raw}"),
    }
}

#[test]
fn names() {
    check("$x", "foo.bar.baz");
    check("${x}", "foo.bar.baz");
    check("a${x}b", "afoo.bar.bazb");
    check("$u", "");
    check("$xy", "");
    check("$é/$_x1-", "E/U-");
    check("$$u", "u");
    check("$1abc", "abc");
    check("$12b", "b");
    check("${1}x", "x");
    check("$@y$*y$#y$?y$-y$!y", "yyyyyy");
    check("$.", "$.");
    check("$", "$");
    check("a$", "a$");
    check("$%", "$%");
    check("$/p", "$/p");
}

#[test]
fn quotes_and_escapes() {
    check("'$x'", "$x");
    check("\"$x\"", "foo.bar.baz");
    check("\\$x", "$x");
    check("\"\\$x\"", "$x");
    check("\\a", "a");
    check("\"\\a\"", "\\a");
    check("a\\", "a");
    check("a\"b c\"'d'", "ab cd");
    check("\"a'b\"'\"'", "a'b\"");
    check("\"\\\\\\\"\"", "\\\"");
    check("", "");
    check("\"\"''", "");
    check("<<  EOF", "<<  EOF");
}

#[test]
fn backtick_escapes() {
    let check = |raw, expected: &str| assert_eq!(expand(raw, '`', &ENV).expect(raw).text, expected, "expanding {raw}");
    check("`$x", "$x");
    check("\"`$x\"", "$x");
    check("C:\\dir\\$e", "C:\\dir\\");
    check("``x", "`x");
    check("'`$x'", "`$x");
    check("a` b", "a b");
}

#[test]
fn defaults() {
    check("${u:-d}", "d");
    check("${u-d}", "d");
    check("${e:-d}", "d");
    check("${e-d}", "");
    check("${x:-d}${x-d}", "foo.bar.bazfoo.bar.baz");
    check("${e+z}", "z");
    check("${e:+z}", "");
    check("${u+z}${u:+z}", "");
    check("${x:+z}${x+z}", "zz");
    check("${u:-${x%%.*}}", "foo");
    check("${u:-'$x'}", "$x");
    check("\"${u:-'$x'}\"", "$x");
    check("${u:-\\$x}", "$x");
    check("${u:-\"a b\"}", "a b");
    check("${u:-a b}", "a b");
    check("${u:-\\}}", "}");
    check("${x:?m}${e?m}", "foo.bar.baz");
}

#[test]
fn patterns() {
    check("${x#*.}", "bar.baz");
    check("${x##*.}", "baz");
    check("${x%.*}", "foo.bar");
    check("${x%%.*}", "foo");
    check("${x/./-}", "foo-bar.baz");
    check("${x//./-}", "foo-bar-baz");
    check("${x/b*/X}", "foo.X");
    check("${x//b?/Q}", "foo.Qr.Qz");
    check("${x//$star/all}", "all");
    check("${x//o/[$0]}", "f[][].bar.baz");
    check("${x//o/[\\$0]}", "f[\\o][\\o].bar.baz");
    check("${x/o/[\\$0]}", "f[\\$0]o.bar.baz");
    check("${p//\\//-}", "-usr-local-lib-file.tar.gz");
    check("${u#a}${u//a/b}", "");
    check("${e/b/\\/}", "");
    check("${x/o/\\/}", "f\\/o.bar.baz");
    check("${x/o/'/'}", "f/o.bar.baz");
}

#[test]
fn errors() {
    let unsupported = |modifier: &str| format!("unsupported modifier ({modifier}) in substitution");
    check_error("${}", "syntax error: bad substitution");
    check_error("${:x}", "syntax error: bad substitution");
    check_error("${{x}}", "syntax error: bad substitution");
    check_error("${", "syntax error: missing '}'");
    check_error("${x:-", "syntax error: missing '}'");
    check_error("${x:-\"a", "syntax error: missing '}'");
    check_error("${x:", "syntax error: missing '}'");
    check_error("${x/b}", "syntax error: missing '/' in ${}");
    check_error("${x//b}", "syntax error: missing '/' in ${}");
    check_error("${x/b/c", "syntax error: missing '}'");
    check_error("${x", &unsupported("\u{fffd}"));
    check_error("${x^^}", &unsupported("^"));
    check_error("${x,}", &unsupported(","));
    check_error("${x=w}", &unsupported("="));
    check_error("${x:=w}", &unsupported(":="));
    check_error("${x:2}", &unsupported(":2"));
    check_error("${x[0]}", &unsupported("["));
    check_error("${#x}", &unsupported("x"));
    check_error("${x:#p}", &unsupported(":#"));
    check_error("${x:%p", &unsupported(":%"));
    check_error("${.}", &unsupported("."));
    check_error("${u:-${x^}}", &unsupported("^"));
    check_error("${u?}", "u: is not allowed to be unset");
    check_error("${u:?}", "u: is not allowed to be unset");
    check_error("${e:?no}", "e: no");
    check_error("${e:?}", "e: is not allowed to be empty");
    check_error("${u?please set}", "u: please set");
    check_error("${x#\\a}", "invalid pattern (\\a) in substitution: invalid escape '\\a'");
    check_error("'a", "unexpected end of statement while looking for matching single-quote");
    check_error("\"a", "unexpected end of statement while looking for matching double-quote");
    check_error("\"a\\", "unexpected end of statement while looking for matching double-quote");
}

#[test]
fn error_names_word_and_place() {
    let error = expand("a\"${x^}", '\\', &ENV).expect_err("because `^` is no modifier");
    assert_eq!(error.offset, 2);
    assert_eq!(error.to_string(), r#"failed to process "a\"${x^}": unsupported modifier (^) in substitution"#);
}

#[test]
fn reports_names() {
    let expanded = expand("$x ${u:-$HOME} '$quoted' $u", '\\', &ENV).expect("because it is a correct word");
    assert_eq!(expanded.used.into_iter().collect::<Vec<_>>(), ["HOME", "x"]);
    assert_eq!(expanded.unset.into_iter().collect::<Vec<_>>(), ["u"]);
}

#[test]
fn expose_splits() {
    let check = |raw, expected: &[&str]| {
        assert_eq!(expand_words(raw, '\\', &ENV).expect(raw).words, expected, "expanding {raw}");
    };
    check("$two", &["1", "2"]);
    check("a$two", &["a1", "2"]);
    check("\"$two\"", &["1 2"]);
    check("$u", &[]);
    check("''", &[]);
    check("a b\\ c", &["a", "b c"]);
}

#[test]
fn heredoc_bodies() {
    let check = |body, expected: &str| assert_eq!(expand_heredoc(body, &ENV).expect(body).text, expected);
    check("$x \"$e\" '$x'\n", "foo.bar.baz \"\" 'foo.bar.baz'\n");
    check("\\$x \\\\ \\a it's\n", "$x \\ a it's\n");
    check("a\\\nb", "a\nb");
    check("`$u` $(cmd) $1", "`` $(cmd) ");
    check("${u:-\"d\"}", "\"d\"");
}

#[test]
fn nesting_is_bounded() {
    let nested = |levels: usize| "${u:-".repeat(levels) + "end" + &"}".repeat(levels);
    check(&nested(MAX_NESTING), "end");
    let message = ExpandErrorKind::TooDeep.to_string();
    check_error(&nested(MAX_NESTING + 1), &message);
    check_error(&nested(200_000), &message);
    check_error(&"\"${u:-".repeat(100_000), &message);
}

#[test]
fn length_is_bounded() {
    let long = "x".repeat(1024 * 1024);
    let env = [("a", long.as_str())];
    let error = expand(&"$a".repeat(17), '\\', &env).expect_err("because 17 MiB are too long");
    assert_eq!(error.kind, ExpandErrorKind::TooLong);
    let error = expand("${a//x/$a}", '\\', &env).expect_err("because a square is too long");
    assert_eq!(error.kind, ExpandErrorKind::TooLong);
}

#[test]
fn raw_lines_are_split_for_heredocs() {
    let split = |line: &str| split_raw(line);
    let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    assert_eq!(split("RUN cat <<EOF > a"), words(&["RUN", "cat", "<<EOF", ">", "a"]));
    assert_eq!(split("COPY << EOF /x"), words(&["COPY", "<< EOF", "/x"]));
    assert_eq!(split("RUN <<\"A B\" c"), words(&["RUN", "<<\"A B\"", "c"]));
    assert_eq!(split("RUN <<E\\OF"), words(&["RUN", "<<E\\OF"]));
    assert_eq!(split("RUN <<$EOF ${a:-b}"), words(&["RUN", "<<$EOF", "${a:-b}"]));
    assert_eq!(split("RUN it's <<EOF"), None);
    assert_eq!(split("RUN ${a^^} <<EOF"), None);
}
