//! The rules that need the text alone.

use std::collections::BTreeSet;

use super::{Rule, messages};
use crate::dockerfile::instruction::{Finding, Instruction, InstructionKind};
use crate::dockerfile::lines::JoinedLine;
use crate::dockerfile::source::{Source, Span};
use crate::dockerfile::syntax::{Arguments, Command};

/// Names that stages should not have.
const RESERVED_STAGE_NAMES: [&str; 2] = ["context", "scratch"];

/// L-03; BuildKit tells the last line of the instruction.
pub(in crate::dockerfile) fn empty_continuation(line: &JoinedLine) -> Finding {
    Rule::NoEmptyContinuation.finding(messages::no_empty_continuation(), line.last_line.clone())
}

/// The rules about one instruction: L-01, L-02, L-08, L-23.
pub(in crate::dockerfile) fn instruction(
    source: &Source,
    instruction: &Instruction,
    line_text: &str,
    command: &Command<'_>,
    findings: &mut Vec<Finding>,
) {
    // BuildKit tells the first line of the instruction; a closer place is shown if it is on that line.
    let near = |span: &Span| {
        let same_line = source.line_of(span.0.start) == source.line_of(instruction.span.0.start);
        if same_line { span.clone() } else { instruction.span.clone() }
    };
    let keyword = instruction.keyword.node.as_str();
    match &instruction.kind {
        InstructionKind::From(from) => {
            let Some(name) = &from.name else { return };
            if name.written != name.name {
                let message = messages::stage_name_casing(&name.written);
                findings.push(Rule::StageNameCasing.finding(message, near(&name.span)));
            }
            if let Arguments::Words(words) = &command.arguments
                && let [_, as_word, _] = words.as_slice()
                && !cases_match(keyword, as_word.text)
            {
                let message = messages::from_as_casing(keyword, &line_text[as_word.range()]);
                findings.push(Rule::FromAsCasing.finding(message, instruction.keyword.span.clone()));
            }
            describe("FROM", &[&name.name], instruction, findings);
        }
        InstructionKind::Arg(pairs) => {
            let names: Vec<&str> = pairs.iter().map(|pair| pair.name.as_str()).collect();
            describe("ARG", &names, instruction, findings);
        }
        InstructionKind::Maintainer(_) => {
            let message = messages::maintainer_deprecated();
            findings.push(Rule::MaintainerDeprecated.finding(message, instruction.keyword.span.clone()));
        }
        _ => {}
    }
}

/// Whether `AS` has the case of `FROM`. A mixed `FROM` is the business of L-04.
fn cases_match(from: &str, as_word: &str) -> bool {
    if from == from.to_lowercase() {
        as_word == as_word.to_lowercase()
    } else if from == from.to_uppercase() {
        as_word == as_word.to_uppercase()
    } else {
        true
    }
}

/// L-23: the last comment begins with one of the names.
fn describe(kind: &str, names: &[&str], instruction: &Instruction, findings: &mut Vec<Finding>) {
    let Some(comment) = instruction.comments.last() else { return };
    let first = comment.split(' ').next().unwrap_or_default();
    if names.is_empty() || names.contains(&first) {
        return;
    }
    let example = if let [name] = names { name } else { "<arg_key>" };
    let message = messages::invalid_definition_description(kind, example);
    findings.push(Rule::InvalidDefinitionDescription.finding(message, instruction.span.clone()));
}

/// The rules about the file as a whole: L-04, L-05, L-06.
pub(in crate::dockerfile) fn file(instructions: &[Instruction], findings: &mut Vec<Finding>) {
    let mut seen = BTreeSet::new();
    for instruction in instructions {
        let InstructionKind::From(from) = &instruction.kind else { continue };
        let Some(name) = &from.name else { continue };
        if RESERVED_STAGE_NAMES.contains(&name.name.as_str()) {
            let message = messages::reserved_stage_name(&name.name);
            findings.push(Rule::ReservedStageName.finding(message, instruction.span.clone()));
        }
        if !seen.insert(name.name.as_str()) {
            let message = messages::duplicate_stage_name(&name.name);
            findings.push(Rule::DuplicateStageName.finding(message, instruction.span.clone()));
        }
    }
    casing(instructions, findings);
}

/// L-04: the majority decides, a tie for upper case. ARGs before the first FROM do not count.
fn casing(instructions: &[Instruction], findings: &mut Vec<Finding>) {
    let first_stage = instructions.iter().position(|instruction| matches!(instruction.kind, InstructionKind::From(_)));
    let instructions = &instructions[first_stage.unwrap_or(instructions.len())..];
    let is_lower = |word: &str| word == word.to_lowercase();
    let is_upper = |word: &str| word == word.to_uppercase();
    let count = |has_case: &dyn Fn(&str) -> bool| {
        instructions.iter().filter(|instruction| has_case(&instruction.keyword.node)).count()
    };
    let lower_wins = count(&is_lower) > count(&is_upper);
    for instruction in instructions {
        let word = instruction.keyword.node.as_str();
        let (is_right, casing) = if lower_wins { (is_lower(word), "lowercase") } else { (is_upper(word), "uppercase") };
        if !is_right {
            let message = messages::consistent_instruction_casing(word, casing);
            let span = instruction.keyword.span.clone();
            findings.push(Rule::ConsistentInstructionCasing.finding(message, span));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::dockerfile::parse;

    /// Findings as `Rule: message (line N)`.
    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let dockerfile = parse(text).expect(text);
        let told: Vec<String> = dockerfile
            .findings
            .iter()
            .map(|finding| {
                let line = dockerfile.source.lines(&finding.span).first;
                format!("{}: {} (line {line})", finding.rule, finding.message)
            })
            .collect();
        assert_eq!(told, expected, "{text}");
    }

    #[test]
    fn stages() {
        check(
            "FROM x as Base",
            &[
                "FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)",
                "StageNameCasing: Stage name 'Base' should be lowercase (line 1)",
            ],
        );
        check("from x as base", &[]);
        check(
            "FROM x AS a\nFROM x \\\n AS A\n",
            &[
                "StageNameCasing: Stage name 'A' should be lowercase (line 2)",
                "DuplicateStageName: Duplicate stage name \"a\", stage names should be unique (line 2)",
            ],
        );
        check(
            "FROM x AS scratch",
            &["ReservedStageName: Stage name should not use the same name as reserved stage \"scratch\" (line 1)"],
        );
    }

    #[test]
    fn casing() {
        let message = |word, casing| {
            format!(
                "ConsistentInstructionCasing: Command '{word}' should match the case of the command majority ({casing})"
            )
        };
        check("FROM x\nrun a\n", &[&format!("{} (line 2)", message("run", "uppercase"))]);
        check("arg X\nFROM x\nRUN a\nrun a\n", &[&format!("{} (line 4)", message("run", "uppercase"))]);
        check("from x\nRUN a\nrun a\n", &[&format!("{} (line 2)", message("RUN", "lowercase"))]);
        check("FROM x\nRun a\n", &[&format!("{} (line 2)", message("Run", "uppercase"))]);
    }

    #[test]
    fn instructions() {
        check(
            "FROM x\nMAINTAINER y",
            &["MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label (line 2)"],
        );
        check("FROM x\nENV a b\n", &[]);
        check("FROM x\nRUN a \\\n\n b\nRUN c", &["NoEmptyContinuation: Empty continuation line (line 4)"]);
        check("FROM x\nRUN a \\\n\n", &["NoEmptyContinuation: Empty continuation line (line 3)"]);
    }

    #[test]
    fn descriptions() {
        let rule = "InvalidDefinitionDescription: Comment for";
        check(
            "# bar is bar\nARG foo\n# foo is foo\nARG foo\n# x\nARG a b\n\n# y\n#\nARG c\n# z\nFROM q AS w\n# z\nFROM q",
            &[
                &format!("{rule} ARG should follow the format: `# foo <description>` (line 2)"),
                &format!("{rule} ARG should follow the format: `# <arg_key> <description>` (line 6)"),
                &format!("{rule} FROM should follow the format: `# w <description>` (line 12)"),
            ],
        );
    }
}
