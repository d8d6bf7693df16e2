//! `EXPOSE` words (checklist I-14): `[[ip:][host[-host]]:]container[-container][/protocol]`.

use std::net::IpAddr;

/// A word of `EXPOSE` that is no port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// Something else than tcp, udp and sctp.
    #[error("invalid port: \"{word}\": invalid proto: {protocol}")]
    Protocol {
        /// The word.
        word: String,
        /// As written.
        protocol: String,
    },
    /// The part in front of the ports is not an IP address.
    #[error("invalid IP address: {address}")]
    Address {
        /// What was given.
        address: String,
    },
    /// No container port at all.
    #[error("invalid port: \"{word}\": no port specified")]
    Missing {
        /// The word.
        word: String,
    },
    /// Not a number from 0 to 65535, or a range that runs backwards.
    #[error("invalid containerPort: {port}")]
    Container {
        /// What was given.
        port: String,
    },
    /// As [`PortError::Container`], for the host's side.
    #[error("invalid hostPort: {port}")]
    Host {
        /// What was given.
        port: String,
    },
    /// Two ranges of different length.
    #[error("invalid ranges specified for container and host Ports: {container} and {host}")]
    Ranges {
        /// Container side.
        container: String,
        /// Host side.
        host: String,
    },
}

/// What one word means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ports {
    /// `80/tcp`, one for each port of a range.
    pub(super) ports: Vec<String>,
    /// The protocol is not in lower case (lint rule ExposeProtoCasing).
    pub(super) upper_case_protocol: bool,
    /// An address or host port is given, which means nothing here (lint rule ExposeInvalidFormat).
    pub(super) host_part: bool,
}

/// Reads one expanded word.
pub(super) fn parse(word: &str) -> Result<Ports, PortError> {
    let (host_part, container) = match word.rsplit_once(':') {
        Some((host, container)) => (Some(host), container),
        None => (None, word),
    };
    let (container, protocol) = match container.split_once('/') {
        Some((port, "")) => (port, "tcp"),
        Some((port, protocol)) => (port, protocol),
        None => (container, "tcp"),
    };
    if container.is_empty() {
        return Err(PortError::Missing { word: word.to_owned() });
    }
    let lower = protocol.to_lowercase();
    if !matches!(lower.as_str(), "tcp" | "udp" | "sctp") {
        return Err(PortError::Protocol { word: word.to_owned(), protocol: protocol.to_owned() });
    }
    let (address, host) = match host_part.map(|part| part.rsplit_once(':').ok_or(part)) {
        None => ("", ""),
        Some(Err(host)) => ("", host),
        Some(Ok((address, host))) => (address, host),
    };
    let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    if !bare.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(PortError::Address { address: bare.to_owned() });
    }
    let (first, last) = range(container).ok_or_else(|| PortError::Container { port: container.to_owned() })?;
    if !host.is_empty() {
        let (host_first, host_last) = range(host).ok_or_else(|| PortError::Host { port: host.to_owned() })?;
        if last - first != host_last - host_first && last != first {
            return Err(PortError::Ranges { container: container.to_owned(), host: host.to_owned() });
        }
    }
    Ok(Ports {
        ports: (first..=last).map(|port| format!("{port}/{lower}")).collect(),
        upper_case_protocol: protocol != lower,
        host_part: host_part.is_some(),
    })
}

/// `80` or `80-90`. Numbers are those of Go's `strconv.Atoi`, which takes a sign.
fn range(text: &str) -> Option<(u16, u16)> {
    let number = |part: &str| part.parse::<u16>().ok();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(word: &str, expected: &str) {
        let actual = match parse(word) {
            Ok(ports) => ports.ports.join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(actual, expected, "{word:?}");
    }

    #[test]
    fn words() {
        check("80", "80/tcp");
        check("80/UDP", "80/udp");
        check("80/", "80/tcp");
        check("+80", "80/tcp");
        check("080-+81", "80/tcp 81/tcp");
        check("+1:80", "80/tcp");
        check("8001-8003/sctp", "8001/sctp 8002/sctp 8003/sctp");
        check("127.0.0.1:8080:80", "80/tcp");
        check("[::1]:8080:80/udp", "80/udp");
        check("::1:8080:80", "80/tcp");
        check("8080-8081:80-81", "80/tcp 81/tcp");
        check("8080-8090:80", "80/tcp");
    }

    #[test]
    fn mistakes() {
        check("http", "invalid containerPort: http");
        check("90-80", "invalid containerPort: 90-80");
        check("70000", "invalid containerPort: 70000");
        check("1 2", "invalid containerPort: 1 2");
        check("80-81-82", "invalid containerPort: 80-81-82");
        check("-80", "invalid containerPort: -80");
        check("80-", "invalid containerPort: 80-");
        check("+", "invalid containerPort: +");
        check("80/tcp/udp", "invalid port: \"80/tcp/udp\": invalid proto: tcp/udp");
        check("80/TCP/", "invalid port: \"80/TCP/\": invalid proto: TCP/");
        check("80//tcp", "invalid port: \"80//tcp\": invalid proto: /tcp");
        check("80/icmp", "invalid port: \"80/icmp\": invalid proto: icmp");
        check("nope:1:80", "invalid IP address: nope");
        check("x:80", "invalid hostPort: x");
        check("1-2:80-85", "invalid ranges specified for container and host Ports: 80-85 and 1-2");
        check("80:", "invalid port: \"80:\": no port specified");
        check("/icmp", "invalid port: \"/icmp\": no port specified");
    }
}
