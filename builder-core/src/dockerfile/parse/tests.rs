use super::*;
use crate::dockerfile::instruction::{CommandLine, Healthcheck};

/// The only instruction behind `FROM x`.
#[track_caller]
fn one(text: &str) -> Instruction {
    let mut dockerfile = parse(&format!("FROM x\n{text}")).unwrap_or_else(|errors| panic!("{text}: {errors}"));
    assert_eq!(dockerfile.instructions.len(), 2, "{text}");
    dockerfile.instructions.remove(1)
}

/// The messages of all errors, in order.
#[track_caller]
fn check_errors(text: &str, expected: &[&str]) {
    let errors = parse(text).err().unwrap_or_else(|| panic!("{text:.200} is correct"));
    let messages: Vec<String> = errors.errors().iter().map(ToString::to_string).collect();
    assert_eq!(messages, expected, "{text:.200}");
}

/// The message of the only error in an instruction behind `FROM x`.
#[track_caller]
fn check_error(text: &str, expected: &str) {
    check_errors(&format!("FROM x\n{text}"), &[expected]);
}

fn shell(text: &str) -> CommandLine {
    CommandLine::Shell(text.to_owned())
}

fn exec(arguments: &[&str]) -> CommandLine {
    CommandLine::Exec(arguments.iter().map(|argument| (*argument).to_owned()).collect())
}

#[test]
fn from() {
    let check = |text: &str, expected: (&str, Option<&str>, Option<&str>)| {
        let dockerfile = parse(text).expect(text);
        let InstructionKind::From(from) = &dockerfile.instructions[0].kind else { panic!("{text}") };
        let name = from.name.as_ref().map(|name| name.name.as_str());
        let platform = from.platform.as_ref().map(|platform| platform.raw.as_str());
        assert_eq!((from.base.raw.as_str(), name, platform), expected, "{text}");
    };
    check("FROM x", ("x", None, None));
    check("from --platform=$P ${X}:1 As Base-1_2.3", ("${X}:1", Some("base-1_2.3"), Some("$P")));
    check("FROM\tx\tAS\ty", ("x", Some("y"), None));
    check("FROM --platform= x", ("x", None, None));
    check("FROM \"x\"", ("\"x\"", None, None));
}

#[test]
fn command_lines() {
    let check = |text: &str, expected: CommandLine| match one(text).kind {
        InstructionKind::Cmd(found) | InstructionKind::Entrypoint(found) => assert_eq!(found, expected, "{text}"),
        InstructionKind::Run(run) => assert_eq!(run.command, expected, "{text}"),
        other => panic!("{other:?}"),
    };
    check("RUN echo a \\\n# note\n  b", shell("echo a   b"));
    check("RUN", shell(""));
    check("RUN []", exec(&[]));
    check("CMD [\"a\", \"b c\"]", exec(&["a", "b c"]));
    check("CMD [\"a\", 'b']", shell("[\"a\", 'b']"));
    check("CMD [\"a\"] tail", shell("[\"a\"] tail"));
    check("ENTRYPOINT [\"a\", \\\n# x\n \"b\"]", exec(&["a", "b"]));
    check("RUN echo x --mount=y", shell("echo x --mount=y"));
    check("RUN -- --mount=y", shell("--mount=y"));
}

#[test]
fn run_flags() {
    let text = "RUN --mount=type=bind,target=/a --mount='type=cache,target=/b c' --network=none --security=insecure \
                --device=d make";
    let InstructionKind::Run(run) = one(text).kind else { panic!("not a RUN") };
    assert_eq!(run.command, shell("make"));
    let raw = |words: &[crate::dockerfile::Word]| words.iter().map(|word| word.raw.clone()).collect::<Vec<_>>();
    assert_eq!(raw(&run.mounts), ["type=bind,target=/a", "type=cache,target=/b c"]);
    assert_eq!(raw(&run.devices), ["d"]);
    assert_eq!(run.network.map(|word| word.raw).as_deref(), Some("none"));
    assert_eq!(run.security.map(|word| word.raw).as_deref(), Some("insecure"));
    let prefix = "dockerfile parse error on line 2: ";
    check_error("RUN --bogus=1 x", &format!("{prefix}unknown flag: --bogus"));
    check_error("RUN --mont=1 x", &format!("{prefix}unknown flag: --mont (did you mean mount?)"));
    check_error("RUN --network=x y", &format!("{prefix}invalid network mode \"x\""));
    check_error("RUN --network= y", &format!("{prefix}invalid network mode \"\""));
    check_error("RUN --security=x y", &format!("{prefix}security \"x\" is not valid"));
    let from = "'from' doesn't support variable expansion, define alias stage instead";
    check_error("RUN --mount=type=bind,FROM=$X y", &format!("{prefix}{from}"));
    assert!(matches!(one("RUN --mount=from=x$ y").kind, InstructionKind::Run(_)));
    check_error(
        "RUN --mount=a\\\"b x",
        &format!("{prefix}failed to parse csv mounts: parse error on line 1, column 2: bare \" in non-quoted-field"),
    );
}

#[test]
fn copies() {
    let InstructionKind::Copy(copy) =
        one("COPY --from=a --chown=1:2 --chmod=644 --link --parents=false --exclude=x --exclude=y a $b /c").kind
    else {
        panic!("not a COPY")
    };
    let raw = |words: &[crate::dockerfile::Word]| words.iter().map(|word| word.raw.clone()).collect::<Vec<_>>();
    assert_eq!(raw(&copy.sources), ["a", "$b"]);
    assert_eq!(copy.destination.raw, "/c");
    assert_eq!(raw(&copy.excludes), ["x", "y"]);
    assert!(copy.link && !copy.parents);
    let InstructionKind::Add(add) = one("ADD --keep-git-dir --unpack=FALSE --checksum=s [\"a b\", \"/c d\"]").kind
    else {
        panic!("not an ADD")
    };
    assert_eq!(raw(&add.sources), ["a b"]);
    assert_eq!(add.destination.raw, "/c d");
    assert_eq!((add.keep_git_dir, add.unpack), (Some(true), Some(false)));
    let prefix = "dockerfile parse error on line 2: ";
    check_error("ADD --from=a b c", &format!("{prefix}unknown flag: --from"));
    check_error("COPY --checksum=a b c", &format!("{prefix}unknown flag: --checksum"));
    let alone = "requires at least two arguments, but only one was provided. Destination could not be determined";
    check_error("COPY a", &format!("{prefix}COPY {alone}"));
    check_error("ADD [\"a\"]", &format!("{prefix}ADD {alone}"));
}

#[test]
fn pairs() {
    let check = |text: &str, expected: &[(&str, &str, bool)]| match one(text).kind {
        InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
            let found: Vec<_> =
                pairs.iter().map(|pair| (pair.key.as_str(), pair.value.as_str(), pair.legacy)).collect();
            assert_eq!(found, expected, "{text}");
        }
        other => panic!("{other:?}"),
    };
    check("ENV a=1 b=\"c d\" e=", &[("a", "1", false), ("b", "\"c d\"", false), ("e", "", false)]);
    check("ENV a  b  c=d ", &[("a", "b  c=d", true)]);
    check("LABEL \"a b\"=c 'd e'=f", &[("\"a b\"", "c", false), ("'d e'", "f", false)]);
    check("ENV \"a b\" c", &[("\"a", "b\" c", true)]);
    check("ENV a=b\\ c d==", &[("a", "b\\ c", false), ("d", "=", false)]);
    let prefix = "dockerfile parse error on line 2: ";
    check_error("ENV a", "ENV must have two arguments");
    check_error("ENV a=1 b", "Syntax error - can't find = in \"b\". Must be of the form: name=value");
    check_error("ENV =a", &format!("{prefix}ENV names can not be blank"));
    check_error("LABEL", &format!("{prefix}LABEL requires at least one argument"));
    check_error("ENV --a b=c", &format!("{prefix}unknown flag: --a"));
}

#[test]
fn args() {
    let InstructionKind::Arg(pairs) = one("ARG a b= c=\"d e\"").kind else { panic!("not an ARG") };
    let found: Vec<_> = pairs.iter().map(|pair| (pair.name.as_str(), pair.default.as_deref())).collect();
    assert_eq!(found, [("a", None), ("b", Some("")), ("c", Some("\"d e\""))]);
    let InstructionKind::Arg(pairs) = one("ARG --flag a").kind else { panic!("not an ARG") };
    assert_eq!(pairs.len(), 1);
    check_error("ARG =x", "dockerfile parse error on line 2: ARG names can not be blank");
    check_error("ARG", "dockerfile parse error on line 2: ARG requires at least one argument");
}

#[test]
fn other_instructions() {
    let check = |text: &str, expected: InstructionKind| {
        // Spans are checked elsewhere.
        assert_eq!(format!("{:?}", one(text).kind).replace(char::is_numeric, ""), format!("{expected:?}"), "{text}");
    };
    check("SHELL [\"/bin/sh\", \"-c\"]", InstructionKind::Shell(vec!["/bin/sh".to_owned(), "-c".to_owned()]));
    check("HEALTHCHECK none", InstructionKind::Healthcheck(Healthcheck::None));
    check("HEALTHCHECK --x NONE", InstructionKind::Healthcheck(Healthcheck::None));
    let raw = |text: &str| match one(text).kind {
        InstructionKind::Workdir(word)
        | InstructionKind::User(word)
        | InstructionKind::StopSignal(word)
        | InstructionKind::Maintainer(word) => vec![word.raw],
        InstructionKind::Expose(words) | InstructionKind::Volume(words) => {
            words.into_iter().map(|word| word.raw).collect()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(raw("WORKDIR  /a  b "), ["/a  b"]);
    assert_eq!(raw("MAINTAINER  A  B <a@b.c>  "), ["A  B <a@b.c>"]);
    assert_eq!(raw("STOPSIGNAL --x  9"), ["9"]);
    assert_eq!(raw("USER a:b"), ["a:b"]);
    assert_eq!(raw("EXPOSE 80\t 81/udp $P"), ["80", "81/udp", "$P"]);
    assert_eq!(raw("VOLUME [\" /a b \", \"/c\"]"), ["/a b", "/c"]);
    assert_eq!(raw("VOLUME /a \"/b\""), ["/a", "\"/b\""]);
    let prefix = "dockerfile parse error on line 2: ";
    for (text, message) in [
        ("SHELL", "SHELL requires at least one argument"),
        ("SHELL []", "SHELL requires at least one argument"),
        ("SHELL sh -c", "SHELL requires the arguments to be in JSON form"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("USER --x y", "unknown flag: --x"),
        ("VOLUME []", "VOLUME requires at least one argument"),
        ("VOLUME [\" \"]", "VOLUME specified can not be an empty string"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("CMD --x y", "unknown flag: --x"),
        ("FOOBARBAZ x", "unknown instruction: FOOBARBAZ"),
        ("Copyy x", "unknown instruction: Copyy (did you mean Copy?)"),
    ] {
        check_error(text, &format!("{prefix}{message}"));
    }
    check_error("VOLUME [1]", "when using JSON array syntax, arrays must be comprised of strings only");
}

#[test]
fn healthchecks() {
    let InstructionKind::Healthcheck(found) = one("HEALTHCHECK --interval=1m --retries=3 --timeout= cmd a  b").kind
    else {
        panic!("not a HEALTHCHECK")
    };
    let minute = 60_000_000_000;
    let expected = Healthcheck::Cmd {
        command: shell("a  b"),
        interval: minute,
        timeout: 0,
        start_period: 0,
        start_interval: 0,
        retries: 3,
    };
    assert_eq!(found, expected);
    let prefix = "dockerfile parse error on line 2: ";
    for (text, message) in [
        ("", "HEALTHCHECK requires at least one argument"),
        ("CMD", "Missing command after HEALTHCHECK CMD"),
        ("CMD []", "Missing command after HEALTHCHECK CMD"),
        ("curl x", "Unknown type \"CURL\" in HEALTHCHECK (try CMD)"),
        ("NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("--timeout=5 CMD x", "time: missing unit in duration \"5\""),
        ("--timeout=1us CMD x", "Interval \"timeout\" cannot be less than 1ms"),
        ("--retries=-1 CMD x", "--retries cannot be negative (-1)"),
        ("--retries=x CMD x", "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("--retries=4294967296 CMD x", "strconv.ParseInt: parsing \"4294967296\": value out of range"),
        ("--retris=1 CMD x", "unknown flag: --retris (did you mean retries?)"),
    ] {
        check_error(&format!("HEALTHCHECK {text}"), &format!("{prefix}{message}"));
    }
}

#[test]
fn onbuild() {
    let trigger = |text: &str| match one(text).kind {
        InstructionKind::Onbuild(onbuild) => onbuild.trigger,
        other => panic!("{other:?}"),
    };
    assert_eq!(trigger("ONBUILD   RUN a  b"), "RUN a  b");
    assert_eq!(trigger("onbuild copy \\\n . /src/"), "copy  . /src/");
    assert_eq!(trigger("ONBUILD RUN <<EOF\necho\nEOF\n"), "RUN <<EOF\necho\nEOF");
    assert_eq!(trigger("ONBUILD COPY <<-\"E F\" /b\n\tx\n\tE F\n"), "COPY <<-\"E F\" /b\n\tx\nE F");
    assert_eq!(trigger("ONBUILD FOO --x"), "FOO --x");
    assert_eq!(trigger("ONBUILD COPY a"), "COPY a");
    let prefix = "dockerfile parse error on line 2: ";
    check_error("ONBUILD", &format!("{prefix}ONBUILD requires at least one argument"));
    check_error("ONBUILD FROM x", &format!("{prefix}FROM isn't allowed as an ONBUILD trigger"));
    check_error("ONBUILD maintainer x", &format!("{prefix}MAINTAINER isn't allowed as an ONBUILD trigger"));
    let chained = format!("{prefix}Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed");
    check_error("ONBUILD ONBUILD RUN x", &chained);
    check_error(&"ONBUILD \\\n".repeat(100_000), &chained);
    check_error("ONBUILD ENV a", "ENV must have two arguments");
    check_error("ONBUILD ONBUILD ENV a", "ENV must have two arguments");
}

#[test]
fn triggers() {
    let trigger = parse_trigger("RUN <<EOF\necho\nEOF").expect("because it is one instruction");
    assert!(matches!(trigger.kind, InstructionKind::Run(_)));
    let check = |text: &str, expected: &str| {
        assert_eq!(parse_trigger(text).expect_err(text).to_string(), expected, "{text}");
    };
    check("RUN a\nRUN b", "onbuild trigger should be a single expression");
    check("", "file with no instructions");
    check("FOOBARBAZ x", "unknown instruction: FOOBARBAZ");
    check("COPY --x a b", "unknown flag: --x");
    check("FROM x", "FROM is not a command type");
}

#[test]
fn heredocs() {
    let InstructionKind::Run(run) = one("RUN cat <<A 3<<-'B' > c\n$x\n\nA\n\t# x \\\n\tB\n").kind else {
        panic!("not a RUN")
    };
    assert_eq!(run.command, shell("cat <<A 3<<-'B' > c"));
    let found: Vec<_> = run
        .heredocs
        .iter()
        .map(|heredoc| (heredoc.name.as_str(), heredoc.file_descriptor, heredoc.expand, heredoc.body.as_str()))
        .collect();
    assert_eq!(found, [("A", 0, true, "$x\n\n"), ("B", 3, false, "\t# x \\\n")]);

    let copy = |text: &str| match one(text).kind {
        InstructionKind::Copy(copy) => copy,
        other => panic!("{other:?}"),
    };
    let bodies = |text: &str| copy(text).heredocs.into_iter().map(|heredoc| heredoc.body).collect::<Vec<_>>();
    assert_eq!(bodies("COPY <<A f <<B /d/\na\nA\nb\nB\n"), ["a\n", "b\n"]);
    assert_eq!(copy("COPY <<A f <<B /d/\na\nA\nb\nB\n").sources.len(), 1);
    assert_eq!(bodies("COPY <<A <<A /d/\na\nA\nb\nA\n"), ["b\n", "b\n"]);
    assert_eq!(bodies("COPY <<A \\\n <<B \\\n /d/\nA\nB"), ["", ""]);
    assert_eq!(bodies("COPY <<A it's\n"), [""]);
    assert_eq!(copy("COPY <<\"a b\" /d/\nx\na b\n").sources[0].raw, "<<\"a");
    assert!(matches!(one("ENV A=<<EOF").kind, InstructionKind::Env(_)));
    assert!(matches!(one("RUN [\"a\", \"<<EOF\"]").kind, InstructionKind::Run(_)));
    check_error("RUN <<EOF\nx", "unterminated heredoc");
    check_error(
        "COPY a <<EOF\nx\nEOF",
        "dockerfile parse error on line 2: COPY cannot accept a heredoc as a destination",
    );
}

#[test]
fn files_without_stages() {
    check_errors("", &["the Dockerfile cannot be empty"]);
    check_errors("# x\n\n", &["file with no instructions"]);
    check_errors("\n", &["file with no instructions"]);
    check_errors("ARG a", &["dockerfile contains no stages to build"]);
    check_errors("ENV a=b\nRUN x\nFROM y", &["no build stage in current context"]);
    check_errors("\\", &["dockerfile parse error on line 1: unknown instruction: "]);
}

#[test]
fn all_errors_are_told_in_the_order_of_buildkit() {
    let text = "# escape=x\nFROM x AS 1\nFOO a\nENV b\nCOPY c\nRUN [1]\nRUN <<E\n";
    let prefix = "dockerfile parse error on line";
    check_errors(
        text,
        &[
            "invalid escape token 'x' does not match ` or \\",
            "ENV must have two arguments",
            "when using JSON array syntax, arrays must be comprised of strings only",
            "unterminated heredoc",
            &format!(
                "{prefix} 2: invalid name for build stage: \"1\", name can't start with a number or contain symbols"
            ),
            &format!("{prefix} 3: unknown instruction: FOO (did you mean FROM?)"),
            &format!(
                "{prefix} 5: COPY requires at least two arguments, but only one was provided. Destination could \
                      not be determined"
            ),
        ],
    );
    let errors = parse(text).expect_err("because it is full of errors");
    let marked: Vec<&str> = errors.errors().iter().map(|error| &text[error.span.0.clone()]).collect();
    assert_eq!(marked, ["# escape=x", "b", "1", "RUN <<E", "1", "FOO", "COPY c"]);
    assert_eq!(errors.errors()[3].lines, LineRange { first: 7, last: 7 });
}

#[test]
fn findings_survive_errors() {
    let errors = parse("FROM x as Y\nRUN a \\\n\n b\nFOO\n").expect_err("because of FOO");
    let rules: Vec<&str> = errors.findings().iter().map(|finding| finding.rule).collect();
    assert_eq!(rules, ["FromAsCasing", "StageNameCasing", "NoEmptyContinuation"]);
}

#[test]
fn spans_point_at_the_text_as_written() {
    let text = "\u{feff}FROM x\n# c\nCOPY --from=\"a\" \\\n  # y\n  s\u{e9} \\\n  [d\\\nest\nENV k=\"v\" l=m\n";
    let dockerfile = parse(text).expect("because it is correct");
    let at = |span: &Span| &text[span.0.clone()];
    let [from, copy, env] = dockerfile.instructions.as_slice() else { panic!("three instructions") };
    assert_eq!(at(&from.span), "FROM x");
    assert_eq!(at(&copy.keyword.span), "COPY");
    assert_eq!(copy.comments, ["c"]);
    let InstructionKind::Copy(copy) = &copy.kind else { panic!("not a COPY") };
    assert_eq!(copy.from.as_ref().map(|word| at(&word.span)), Some("\"a\""));
    assert_eq!(at(&copy.sources[0].span), "sé");
    assert_eq!((copy.destination.raw.as_str(), at(&copy.destination.span)), ("[dest", "[d\\\nest"));
    let InstructionKind::Env(pairs) = &env.kind else { panic!("not an ENV") };
    assert_eq!(pairs.iter().map(|pair| at(&pair.span)).collect::<Vec<_>>(), ["k=\"v\"", "l=m"]);
}

#[test]
fn large_inputs_are_read_in_one_go() {
    let continued = "FROM x\nRUN a".to_owned() + &" \\\n  b".repeat(200_000);
    assert_eq!(parse(&continued).expect("because it is correct").instructions.len(), 2);
    let words = "FROM x\nENV".to_owned() + &" \\\n a=\"b c\"".repeat(100_000);
    assert_eq!(parse(&words).expect("because it is correct").instructions.len(), 2);
    let heredoc = "FROM x\nCOPY <<E /f\n".to_owned() + &"$x\n".repeat(300_000) + "E\n";
    assert_eq!(parse(&heredoc).expect("because it is correct").instructions.len(), 2);
    let empties = "FROM x\nRUN a \\\n".to_owned() + &"\n".repeat(300_000);
    assert_eq!(parse(&empties).expect("because it is correct").findings.len(), 1);
}

#[test]
fn reading_files() {
    let directory = tempfile::tempdir().expect("because there is a place for temporary files");
    let path = directory.path().join("Dockerfile");
    assert!(matches!(read(&path), Err(ReadError::Io { .. })));
    fs::write(&path, b"FROM x\nRUN \xff").expect("because the directory is ours");
    assert!(matches!(read(&path), Err(ReadError::NotUtf8 { line: 2, column: 5, .. })));
    fs::write(&path, "FROM x").expect("because the directory is ours");
    assert_eq!(read(&path).expect("because it is correct").instructions.len(), 1);
    fs::write(&path, "FOO").expect("because the directory is ours");
    assert!(matches!(read(&path), Err(ReadError::Parse { .. })));
}
