//! What must hold for any text, shared by the property tests and the fuzz targets of `builder-core/fuzz`.

use builder_core::dockerfile::words::{self, MAX_EXPANDED_BYTES};
use builder_core::dockerfile::{
    self, Copy, Dockerfile, ErrorClass, Heredoc, Instruction, InstructionKind, LineRange, Run, Source, Span,
};

/// Reading any text:
/// - neither panics nor overflows the stack;
/// - every span lies inside the text and cuts no character; instructions follow each other without overlap;
/// - every line number is that of a line; errors come in the order of BuildKit's stages;
/// - an instruction written again on one line is read as the same instruction;
/// - expanding any of its words does what [`check_expansion`] says.
pub fn check_text(text: &str) {
    let dockerfile = match dockerfile::parse(text) {
        Ok(dockerfile) => dockerfile,
        Err(errors) => {
            assert!(!errors.errors().is_empty());
            assert!(errors.errors().is_sorted_by_key(|error| error.class), "errors out of order");
            for error in errors.errors() {
                check_span(&errors.partial().source, &error.span);
                check_lines(&errors.partial().source, error.lines);
                assert!(!error.to_string().is_empty());
                assert!(error.class != ErrorClass::Convert || errors.errors().len() == 1);
            }
            errors.partial().clone()
        }
    };
    check_spans(&dockerfile);
    let escape = dockerfile.directives.escape;
    for instruction in &dockerfile.instructions {
        check_same_when_written_again(instruction, escape);
        if instruction.text.len() < 10_000 {
            check_expansion(&instruction.text, escape);
        }
    }
    // Texts of strangers also arrive as triggers of base images.
    let _ = dockerfile::parse_trigger(text);
}

/// Expanding any word neither panics nor gives more than the limit; what it reads is a name; and a word without
/// quotes, escapes and dollars is its own expansion.
pub fn check_expansion(raw: &str, escape: char) {
    let env = [("x", "a.b/c d"), ("empty", ""), ("PATH", "/bin:/usr/bin"), ("star", "*"), ("quote", "'\"\\")];
    if let Ok(expanded) = words::expand(raw, escape, &env) {
        assert!(expanded.text.len() <= MAX_EXPANDED_BYTES + raw.len());
        assert!(expanded.used.iter().all(|name| env.iter().any(|(known, _)| known == name)));
        assert!(expanded.used.is_disjoint(&expanded.unset));
        if !raw.contains(['$', '\'', '"', escape]) {
            assert_eq!(expanded.text, raw);
        }
        let words = words::expand_words(raw, escape, &env).expect("because the same word expands in one piece");
        assert!(words.words.iter().all(|word| !word.is_empty()));
        // Cutting into words drops nothing but blanks.
        let visible = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        assert_eq!(visible(&words.words.concat()), visible(&expanded.text));
    }
    let _ = words::expand_heredoc(raw, &env);
    let quoted = format!("'{raw}'");
    if !raw.contains('\'') {
        let expanded = words::expand(&quoted, escape, &env).expect("because single quotes hold anything");
        assert_eq!(expanded.text, raw);
    }
}

fn check_span(source: &Source, Span(range): &Span) {
    assert!(source.text().get(range.clone()).is_some(), "{range:?} is no part of the text");
}

fn check_lines(source: &Source, LineRange { first, last }: LineRange) {
    assert!(1 <= first && first <= last, "lines {first} to {last}");
    assert!(source.line(last).is_some(), "no line {last}");
}

fn check_spans(dockerfile: &Dockerfile) {
    let source = &dockerfile.source;
    for finding in &dockerfile.findings {
        check_span(source, &finding.span);
    }
    for directive in [&dockerfile.directives.syntax, &dockerfile.directives.check].into_iter().flatten() {
        check_span(source, &directive.span);
    }
    let mut end = 0;
    for instruction in &dockerfile.instructions {
        check_span(source, &instruction.span);
        check_lines(source, source.lines(&instruction.span));
        assert!(instruction.span.0.start >= end, "instructions overlap");
        end = instruction.span.0.end;
        for span in spans(instruction) {
            check_span(source, span);
            assert!(instruction.span.0.start <= span.0.start && span.0.end <= end, "{span:?} is outside");
        }
        for heredoc in heredocs(instruction) {
            let body = source.text().get(heredoc.span.0.clone());
            assert!(body == Some(&heredoc.body) || heredoc.body.is_empty(), "a body is not what its span shows");
        }
    }
}

/// All spans within an instruction.
fn spans(instruction: &Instruction) -> Vec<&Span> {
    let mut spans = vec![&instruction.keyword.span];
    spans.extend(heredocs(instruction).iter().map(|heredoc| &heredoc.span));
    match &instruction.kind {
        InstructionKind::From(from) => {
            spans.push(&from.base.span);
            spans.extend(from.platform.iter().map(|word| &word.span));
            spans.extend(from.name.iter().map(|name| &name.span));
        }
        InstructionKind::Arg(pairs) => spans.extend(pairs.iter().map(|pair| &pair.span)),
        InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
            spans.extend(pairs.iter().map(|pair| &pair.span));
        }
        InstructionKind::Run(Run { mounts, network, security, devices, .. }) => {
            spans.extend(mounts.iter().chain(network).chain(security).chain(devices).map(|word| &word.span));
        }
        InstructionKind::Copy(copy) | InstructionKind::Add(copy) => {
            let Copy { sources, destination, from, chown, chmod, excludes, checksum, .. } = copy;
            let words = sources.iter().chain([destination]).chain(from).chain(chown).chain(chmod);
            spans.extend(words.chain(excludes).chain(checksum).map(|word| &word.span));
        }
        InstructionKind::Workdir(word)
        | InstructionKind::User(word)
        | InstructionKind::StopSignal(word)
        | InstructionKind::Maintainer(word) => spans.push(&word.span),
        InstructionKind::Expose(words) | InstructionKind::Volume(words) => {
            spans.extend(words.iter().map(|word| &word.span));
        }
        InstructionKind::Cmd(_)
        | InstructionKind::Entrypoint(_)
        | InstructionKind::Healthcheck(_)
        | InstructionKind::Shell(_)
        | InstructionKind::Onbuild(_) => {}
    }
    spans
}

fn heredocs(instruction: &Instruction) -> &[Heredoc] {
    match &instruction.kind {
        InstructionKind::Run(run) => &run.heredocs,
        InstructionKind::Copy(copy) | InstructionKind::Add(copy) => &copy.heredocs,
        _ => &[],
    }
}

/// Writes an instruction on one line, its heredocs behind it, and reads it again.
fn check_same_when_written_again(instruction: &Instruction, escape: char) {
    let text = &instruction.text;
    // Some texts cannot stand on one line: too long, or at their end an escape that blanks kept from continuing.
    let cannot = text.len() > 50_000 || text.is_empty() || text.ends_with(escape) || text.starts_with('#');
    // A trigger keeps the blanks at its end, which `text` does not.
    if let InstructionKind::Onbuild(onbuild) = &instruction.kind
        && onbuild.trigger.trim_end() != onbuild.trigger
    {
        return;
    }
    // ONBUILD keeps its heredocs in the trigger, and words of heredocs may be more than bodies that were kept.
    if cannot || text.contains("<<") && heredocs(instruction).is_empty() {
        return;
    }
    let mut written = format!("# escape={escape}\nFROM x\n{text}\n");
    for heredoc in heredocs(instruction) {
        written.extend([heredoc.body.as_str(), heredoc.name.as_str(), "\n"]);
    }
    let again = match dockerfile::parse(&written) {
        Ok(again) => again,
        // COPY keeps only the last body of a name, and those of sources only.
        Err(_) if matches!(instruction.kind, InstructionKind::Copy(_) | InstructionKind::Add(_)) => return,
        Err(errors) => panic!("{written:?} is refused: {errors}"),
    };
    if let [_, again] = again.instructions.as_slice() {
        assert_eq!(without_spans(&again.kind), without_spans(&instruction.kind), "{written:?}");
    } else {
        assert!(!heredocs(instruction).is_empty(), "{written:?} is read as {} instructions", again.instructions.len());
    }
}

/// What an instruction says, as text.
fn without_spans(kind: &InstructionKind) -> String {
    let shown = format!("{kind:?}");
    let mut kept = String::new();
    let mut rest = shown.as_str();
    while let Some((before, behind)) = rest.split_once("Span(") {
        kept.push_str(before);
        rest = behind.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    }
    kept + rest
}
