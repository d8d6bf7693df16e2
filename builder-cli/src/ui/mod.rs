//! How a build is shown: one event type, three renderers. All of them write to standard error.

mod json;
mod plain;
mod tty;

use std::sync::Arc;

use builder_core::event::{Observer, Silent, Totals};

use crate::request::Shown;

/// The renderer for `shown`.
pub fn observer(shown: Shown) -> Arc<dyn Observer> {
    match shown {
        Shown::Quiet => Arc::new(Silent),
        Shown::Plain => Arc::new(plain::Plain::new(std::io::stderr())),
        Shown::Json => Arc::new(json::Json::new(std::io::stderr())),
        Shown::Tty { colour } => Arc::new(tty::Tty::new(colour)),
    }
}

/// Bytes for people, in the units of limits and disks: `3.4 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    // What would be shown as 1024.0 is one of the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// The last line: what a build took.
fn totals(totals: &Totals) -> String {
    format!(
        "built in {:.1}s: pulled {}, compressed {}, pushed {}, read {}, wrote {}; at most {} of memory, {} under the work \
         directory, {} elsewhere",
        totals.elapsed.as_secs_f64(),
        bytes(totals.pulled),
        bytes(totals.compressed),
        bytes(totals.pushed),
        bytes(totals.read),
        bytes(totals.written),
        bytes(totals.peak_anonymous),
        bytes(totals.peak_disk),
        bytes(totals.peak_disk_elsewhere),
    )
}

/// The first line of a title: RUN heredocs have several.
fn one_line(title: &str) -> &str {
    title.lines().next().unwrap_or_default()
}

/// Text from a process for a terminal or log: what is not UTF-8 replaced, control characters but tabs and colours left
/// out, and of a line with carriage returns only what would stay visible.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\r');
    let last = text.rsplit('\r').next().unwrap_or(text);
    last.chars().filter(|c| !c.is_control() || *c == '\t' || *c == '\u{1b}').collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (512 << 20, "512.0 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(super::bytes(count), text);
        }
    }

    #[test]
    fn output_is_made_printable() {
        for (line, text) in [(&b"a\tb"[..], "a\tb"), (b"10%\r50%\r100%\r", "100%"), (b"\xff\x07x", "\u{fffd}x")] {
            assert_eq!(super::printable(line), text);
        }
    }
}
