//! Kaniko's three log formats, byte for byte: logrus' with colours and without, and JSON. All go to standard error.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use builder_core::hint::go_quote;

/// How important a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The program is wrong.
    Panic,
    /// The end.
    Fatal,
    /// A failure.
    Error,
    /// Something to look at.
    Warn,
    /// What happens.
    Info,
    /// For those who look for a fault.
    Debug,
    /// The same, in detail.
    Trace,
}

impl Level {
    /// Reads `--verbosity`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" | "warning" => Self::Warn,
            "error" => Self::Error,
            "fatal" => Self::Fatal,
            "panic" => Self::Panic,
            _ => return None,
        })
    }

    fn word(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Fatal => "fatal",
            Self::Error => "error",
            Self::Warn => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// Four letters, and the ANSI colour that they have.
    fn short(self) -> (&'static str, &'static str) {
        match self {
            Self::Panic => ("PANI", "31"),
            Self::Fatal => ("FATA", "31"),
            Self::Error => ("ERRO", "31"),
            Self::Warn => ("WARN", "33"),
            Self::Info => ("INFO", "36"),
            Self::Debug => ("DEBU", "2;36"),
            Self::Trace => ("TRAC", "2;37"),
        }
    }
}

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `time=… level=… msg=…`
    Text,
    /// `INFO[0000] …` with colours, on whatever standard error is.
    Color,
    /// One object a line.
    Json,
}

impl Format {
    /// Reads `--log-format`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "text" => Self::Text,
            "color" => Self::Color,
            "json" => Self::Json,
            _ => return None,
        })
    }
}

/// Writes log lines, and the output of commands as it is.
pub struct Logger {
    format: Format,
    level: Level,
    /// Times of day in the color format.
    timestamps: bool,
    started: Instant,
    clock: fn() -> SystemTime,
    /// Held while a line is written, so that lines of several threads do not mix.
    out: Mutex<Box<dyn Write + Send>>,
}

impl Logger {
    /// A logger that shows what is at least as important as `level`.
    pub fn new(format: Format, level: Level, timestamps: bool, out: Box<dyn Write + Send>) -> Self {
        Self { format, level, timestamps, started: Instant::now(), clock: SystemTime::now, out: Mutex::new(out) }
    }

    /// What happens.
    pub fn info(&self, message: &str) {
        self.log(Level::Info, message);
    }

    /// Something to look at.
    pub fn warn(&self, message: &str) {
        self.log(Level::Warn, message);
    }

    /// For those who look for a fault.
    pub fn debug(&self, message: &str) {
        self.log(Level::Debug, message);
    }

    /// Whether lines of this level are shown.
    pub fn shows(&self, level: Level) -> bool {
        level <= self.level
    }

    /// One line.
    pub fn log(&self, level: Level, message: &str) {
        if !self.shows(level) {
            return;
        }
        let line = line(self.format, self.timestamps, level, message, self.started.elapsed(), (self.clock)());
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be written must not end the build.
        _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    }

    /// A line of a command's output on standard error, as it is.
    pub fn raw(&self, line: &[u8]) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        _ = out.write_all(line).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    }
}

fn line(format: Format, timestamps: bool, level: Level, message: &str, elapsed: Duration, now: SystemTime) -> String {
    match format {
        Format::Color => {
            // logrus takes one line end off, and pads with blanks to 44 characters (`%-44s `).
            let message = message.strip_suffix('\n').unwrap_or(message);
            let (word, colour) = level.short();
            let time = if timestamps { rfc3339(now) } else { format!("{:04}", elapsed.as_secs()) };
            format!("\u{1b}[{colour}m{word}\u{1b}[0m[{time}] {message:<44} \n")
        }
        Format::Text => {
            let shown = if message.is_empty() { String::new() } else { format!(" msg={}", quoted(message)) };
            format!("time=\"{}\" level={}{shown}\n", rfc3339(now), level.word())
        }
        Format::Json => {
            format!("{{\"level\":\"{}\",\"msg\":{},\"time\":\"{}\"}}\n", level.word(), json(message), rfc3339(now))
        }
    }
}

/// Seconds precision, UTC.
fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .map_or_else(|_| "1970-01-01T00:00:00Z".to_owned(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// A value as logrus' text format shows it: quoted unless it is plain.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { go_quote(text) }
}

/// A string as Go's encoding/json writes it: characters that mean something in HTML are escaped.
fn json(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c if (c as u32) < 0x20 => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(format: Format, timestamps: bool, level: Level, message: &str) -> String {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_900);
        line(format, timestamps, level, message, Duration::from_millis(3_999), now)
    }

    #[test]
    fn colour_lines_are_those_of_logrus() {
        let padded = |text: &str| format!("{text:<44} \n");
        for (level, start) in [
            (Level::Info, "\u{1b}[36mINFO\u{1b}[0m[0003] "),
            (Level::Warn, "\u{1b}[33mWARN\u{1b}[0m[0003] "),
            (Level::Error, "\u{1b}[31mERRO\u{1b}[0m[0003] "),
            (Level::Fatal, "\u{1b}[31mFATA\u{1b}[0m[0003] "),
            (Level::Panic, "\u{1b}[31mPANI\u{1b}[0m[0003] "),
            (Level::Debug, "\u{1b}[2;36mDEBU\u{1b}[0m[0003] "),
            (Level::Trace, "\u{1b}[2;37mTRAC\u{1b}[0m[0003] "),
        ] {
            assert_eq!(shown(Format::Color, false, level, "hello"), format!("{start}{}", padded("hello")));
        }
        assert_eq!(
            shown(Format::Color, true, Level::Info, "a\nb\n"),
            format!("\u{1b}[36mINFO\u{1b}[0m[2023-11-14T22:13:20Z] {}", padded("a\nb"))
        );
        // Characters are counted, not bytes, and nothing is cut.
        let long = "ä".repeat(50);
        assert_eq!(shown(Format::Color, false, Level::Info, &long), format!("\u{1b}[36mINFO\u{1b}[0m[0003] {long} \n"));
    }

    #[test]
    fn text_lines_are_those_of_logrus() {
        for (message, expected) in [
            ("hello", r#" level=warning msg=hello"#),
            ("hello world", r#" level=warning msg="hello world""#),
            ("a\"b\n", r#" level=warning msg="a\"b\n""#),
            ("a-b._/@^+1", r#" level=warning msg=a-b._/@^+1"#),
            ("", r#" level=warning"#),
        ] {
            let line = shown(Format::Text, false, Level::Warn, message);
            assert_eq!(line, format!("time=\"2023-11-14T22:13:20Z\"{expected}\n"));
        }
    }

    #[test]
    fn json_lines_have_three_keys_in_order() {
        assert_eq!(
            shown(Format::Json, true, Level::Info, "RUN a && b > \"c\"\u{1}\u{2028}"),
            "{\"level\":\"info\",\"msg\":\"RUN a \\u0026\\u0026 b \\u003e \\\"c\\\"\\u0001\\u2028\",\
             \"time\":\"2023-11-14T22:13:20Z\"}\n"
        );
    }

    #[test]
    fn levels_are_read_in_any_case() {
        for (text, expected) in
            [("INFO", Some(Level::Info)), ("warning", Some(Level::Warn)), ("warn", Some(Level::Warn)), ("loud", None)]
        {
            assert_eq!(Level::parse(text), expected);
        }
        assert!(Level::Error < Level::Info, "info shows errors");
    }
}
