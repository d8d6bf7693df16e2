//! `--help`, in pflag's layout.

use super::grammar::{Definition, Kind};

/// Columns at which a help text is wrapped.
const WIDTH: usize = 120;

/// The help of a command.
pub fn help(about: &str, usage: &str, commands: &[(&str, &str)], table: &[&Definition]) -> String {
    format!("{about}\n\n{}", self::usage(usage, commands, table))
}

/// What follows an error.
pub fn usage(usage: &str, commands: &[(&str, &str)], table: &[&Definition]) -> String {
    let mut text = format!("Usage:\n  {usage} [flags]\n");
    if !commands.is_empty() {
        text.push_str(&format!("  {usage} [command]\n\nAvailable Commands:\n"));
        for (name, about) in commands {
            text.push_str(&format!("  {name:<12}{about}\n"));
        }
    }
    text.push_str("\nFlags:\n");
    let mut rows: Vec<(String, String)> = table
        .iter()
        .filter(|definition| !definition.hidden)
        .map(|definition| (definition.name.to_owned(), left(definition)))
        .chain([("help".to_owned(), "  -h, --help".to_owned())])
        .collect();
    rows.sort();
    let column = rows.iter().map(|(_, left)| left.chars().count()).max().unwrap_or(0) + 3;
    for (name, left) in rows {
        let help = match table.iter().find(|definition| definition.name == name) {
            Some(definition) => format!("{}{}{}", definition.help, default(definition), environment(definition)),
            None => "Show this help".to_owned(),
        };
        let mut lines = wrap(&help, WIDTH.saturating_sub(column).max(40)).into_iter();
        text.push_str(&format!("{left:<column$}{}\n", lines.next().unwrap_or_default()));
        for line in lines {
            text.push_str(&format!("{:<column$}{line}\n", ""));
        }
    }
    text
}

fn left(definition: &Definition) -> String {
    let short = match definition.short {
        Some(short) => format!("  -{short}, "),
        None => "      ".to_owned(),
    };
    let value = match definition.kind {
        Kind::Bool => "",
        Kind::Text | Kind::Choice(_) => " string",
        Kind::Number => " int",
        Kind::Duration => " duration",
        Kind::List | Kind::Commas => " list",
        Kind::Pairs | Kind::MultiMap | Kind::Git => " key=value",
    };
    format!("{short}--{}{value}", definition.name)
}

fn default(definition: &Definition) -> String {
    match (definition.kind, definition.default) {
        (_, "") | (Kind::Bool, "false") | (Kind::Number, "0") => String::new(),
        (Kind::Text, default) => format!(" (default \"{default}\")"),
        (_, default) => format!(" (default {default})"),
    }
}

fn environment(definition: &Definition) -> String {
    match definition.env {
        "" => String::new(),
        env => format!(" [{}]", env.replace('`', "")),
    }
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::flags;
    use super::*;

    #[test]
    fn every_flag_that_is_not_hidden_is_shown_once() {
        let table = flags::executor();
        let text = help("Builds.", "executor", &[("version", "Show it")], &table);
        for definition in &table {
            let row = format!("--{}", definition.name);
            // Not where the help of another flag, wrapped, speaks of it.
            let names = |line: &str| line.split_whitespace().take(2).any(|word| word == row);
            let rows = text.lines().filter(|line| !line.starts_with(&" ".repeat(8)) && names(line)).count();
            assert_eq!(rows, usize::from(!definition.hidden), "{row}\n{text}");
        }
        assert!(text.contains("\n  -d, --destination list"), "{text}");
        assert!(text.contains("(default \"/workspace/\")"), "{text}");
    }
}
