//! `docs/kaniko.md`, from the tables.

use std::fmt::Write as _;
use std::path::Path;

use super::feature;
use super::flags;
use super::grammar::{Definition, Effect, Kind};
use super::variables;

const START: &str = include_str!("reference.md");

/// The whole document.
fn document() -> String {
    let mut text = START.to_owned();
    for (title, table) in [
        ("executor", flags::executor()),
        ("executor push PATH", flags::push()),
        ("executor login REGISTRY", flags::login()),
        ("warmer", flags::warmer()),
    ] {
        _ = writeln!(text, "\n## `{title}`\n");
        text.push_str(
            "| Flag | Value | Default | Environment | Meaning | Compared with Kaniko |\n|---|---|---|---|---|---|\n",
        );
        let mut table = table;
        table.sort_by_key(|definition| definition.name);
        for definition in table {
            row(&mut text, definition);
        }
    }
    text.push_str("\n## Variables\n\n| Variable | Meaning | Compared with Kaniko |\n|---|---|---|\n");
    for variable in variables::ALL {
        let names: Vec<String> = variable.names.iter().map(|name| format!("`{name}`")).collect();
        _ = writeln!(text, "| {} | {} | {} |", names.join(", "), variable.meaning, compared(variable.effect));
    }
    text.push_str(
        "\n## `FF_KANIKO_*`\n\nEvery one is accepted. What is right is always done, whatever their value:\n\n| Flag | Always |\n|---|---|\n",
    );
    for (name, rule) in feature::FLAGS {
        _ = writeln!(text, "| `FF_KANIKO_{name}` | {rule} |");
    }
    text
}

fn row(text: &mut String, definition: &Definition) {
    let mut names: Vec<String> = definition.short.iter().map(|short| format!("`-{short}`")).collect();
    names.push(format!("`--{}`", definition.name));
    names.extend(definition.aliases.iter().map(|alias| format!("`--{}`", alias.name)));
    let value = match definition.kind {
        Kind::Text => "text".to_owned(),
        Kind::Choice(words) => {
            let words: Vec<String> =
                words.iter().filter(|word| !word.is_empty()).map(|word| format!("`{word}`")).collect();
            words.join(", ")
        }
        Kind::Bool => "boolean".to_owned(),
        Kind::Number => "number".to_owned(),
        Kind::Duration => "duration".to_owned(),
        Kind::List => "text, repeatable".to_owned(),
        Kind::Commas => "list with commas".to_owned(),
        Kind::Pairs => "key=value, repeatable".to_owned(),
        Kind::MultiMap => "key=value;…, repeatable".to_owned(),
        Kind::Git => "key=value, repeatable".to_owned(),
    };
    let default = match definition.default {
        "" => String::new(),
        default => format!("`{default}`"),
    };
    let (env, help) = (definition.env.to_owned(), definition.help.to_owned());
    let cells = [names.join(", "), value, default, env, help, compared(definition.effect)];
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    _ = writeln!(text, "| {} |", cells.join(" | "));
}

fn compared(effect: Effect) -> String {
    match effect {
        Effect::Same => "same".to_owned(),
        Effect::Better(how) => format!("better: {how}"),
        Effect::Meaningless(why) => format!("meaningless now: {why}"),
        Effect::Ours(why) => format!("ours: {why}"),
    }
}

#[test]
fn the_reference_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kaniko.md");
    let expected = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).expect("docs/kaniko.md can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "docs/kaniko.md is stale: UPDATE_DOCS=1 cargo test -p builder-cli");
}
