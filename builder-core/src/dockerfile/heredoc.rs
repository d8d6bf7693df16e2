//! Heredoc words (checklist H-01 to H-06).

use std::borrow::Cow;

use super::instruction::Heredoc;
use super::words;

/// What a word like `3<<-"EOF"` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HeredocWord {
    /// The terminator: the name without quotes.
    pub name: String,
    /// 0 when none is written.
    pub file_descriptor: u32,
    /// No quotes in the name.
    pub expand: bool,
    /// `<<-`
    pub chomp: bool,
}

/// Reads a word: digits, `<<`, `-`, blanks, a name without `<`. `None` if it is something else.
pub(super) fn word(text: &str) -> Option<HeredocWord> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let behind = text[digits..].strip_prefix("<<")?;
    let (chomp, behind) = match behind.strip_prefix('-') {
        Some(behind) => (true, behind),
        None => (false, behind),
    };
    let raw = behind.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
    if raw.is_empty() || raw.contains('<') {
        return None;
    }
    // The name is quoted if reading it without quotes loses some.
    let (mut plain, mut quoted) = words::heredoc_name(raw)?;
    if plain.len() != 1 || quoted.len() != 1 {
        return None;
    }
    let (name, quoted) = (plain.remove(0), quoted.remove(0));
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Some(HeredocWord {
        expand: quotes(&name) == quotes(&quoted),
        file_descriptor: text[..digits].parse().unwrap_or(0),
        name,
        chomp,
    })
}

/// The heredoc words of an instruction line, in order.
pub(super) fn words_in(line: &str) -> Vec<HeredocWord> {
    if !line.contains("<<") {
        return Vec::new();
    }
    words::split_raw(line).unwrap_or_default().iter().filter_map(|text| word(text)).collect()
}

impl Heredoc {
    /// The body as `COPY`, `ADD` and the script form of `RUN` use it: for `<<-` without the tabs at the beginning of
    /// each line (H-06).
    pub fn text(&self) -> Cow<'_, str> {
        if !self.chomp || !self.body.contains('\t') {
            return Cow::Borrowed(&self.body);
        }
        Cow::Owned(self.body.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, u32, bool, bool)>) {
        let expected = expected.map(|(name, file_descriptor, expand, chomp)| HeredocWord {
            name: name.to_owned(),
            file_descriptor,
            expand,
            chomp,
        });
        assert_eq!(word(text), expected, "{text}");
    }

    #[test]
    fn reads_words() {
        check("<<EOF", Some(("EOF", 0, true, false)));
        check("3<<-EOF", Some(("EOF", 3, true, true)));
        check("<< EOF", Some(("EOF", 0, true, false)));
        check("<<\"EOF\"", Some(("EOF", 0, false, false)));
        check("<<E'O'F", Some(("EOF", 0, false, false)));
        check("<<\"A B\"", Some(("A B", 0, false, false)));
        check("<<E\\OF", Some(("EOF", 0, true, false)));
        check("<<E\\\"F", Some(("E\"F", 0, true, false)));
        check("<<$EOF", Some(("$EOF", 0, true, false)));
        check("<<${E}", Some(("${E}", 0, true, false)));
        check("<<<x", None);
        check("<<", None);
        check("<<-", None);
        check("<<\"a", None);
        check("<<\"\"", None);
        check("x<<EOF", None);
        check("<EOF", None);
        check("\"<<EOF\"", None);
        check("a", None);
        check("12", None);
        check("99999999999<<E", Some(("E", 0, true, false)));
    }

    #[test]
    fn finds_words_in_lines() {
        let names = |line| words_in(line).into_iter().map(|word| word.name).collect::<Vec<_>>();
        assert_eq!(names("RUN cat <<ONE > /one; cat 3<<-TWO"), ["ONE", "TWO"]);
        assert_eq!(names("RUN echo \"<<EOF\" <<< x"), [] as [&str; 0]);
        assert_eq!(names("RUN it's <<EOF"), [] as [&str; 0]);
        assert_eq!(names("RUN <<'END MARK'"), ["END MARK"]);
        assert_eq!(names("RUN <<EOF; echo"), ["EOF;"]);
    }

    #[test]
    fn chomps_tabs() {
        let text = |chomp, body: &str| {
            let heredoc = Heredoc {
                name: "E".to_owned(),
                file_descriptor: 0,
                expand: true,
                chomp,
                body: body.to_owned(),
                span: Default::default(),
            };
            heredoc.text().into_owned()
        };
        assert_eq!(text(true, "\t\ta\tb\n \tc\r\n\t\n"), "a\tb\n \tc\r\n\n");
        assert_eq!(text(false, "\ta"), "\ta");
    }
}
