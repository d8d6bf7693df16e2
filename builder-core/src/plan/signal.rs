//! Names of signals for `STOPSIGNAL` (checklist I-20).

/// Linux names without `SIG` (signal(7)), as `github.com/moby/sys/signal` lists them.
const NAMES: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// Whether `text` is a number other than 0 or the name of a signal, in any case, with or without `SIG`.
pub(super) fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |prefix: &str, most: u32| {
        name.strip_prefix(prefix).is_some_and(|offset| {
            !offset.starts_with('0') && offset.parse::<u32>().is_ok_and(|n| (1..=most).contains(&n))
        })
    };
    NAMES.contains(&name) || real_time("RTMIN+", 15) || real_time("RTMAX-", 14)
}

#[cfg(test)]
mod tests {
    use super::is_signal;

    #[test]
    fn numbers_and_names() {
        for good in ["9", "-1", "SIGTERM", "term", "sigkill", "RTMIN+15", "SIGRTMAX-14", "rtmin", "+3"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["", "0", "SIGNOPE", "SIG", "RTMIN+16", "RTMIN+0", "RTMIN-1", "SIGSIGTERM", "TERM "] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
