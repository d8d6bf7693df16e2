//! Text of `/etc/hosts` and `/etc/resolv.conf` inside (checklist ).

use std::fmt::Write as _;

use super::RunSpec;

/// For machines whose resolv.conf names no server, as Docker has them.
const PUBLIC_SERVERS: &str = "nameserver 8.8.8.8\nnameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\n\
                              nameserver 2001:4860:4860::8844\n";

/// Files of /etc that every RUN finds: path and text.
pub fn files(spec: &RunSpec) -> [(&'static str, String); 2] {
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    [("/etc/resolv.conf", resolv_conf(&host)), ("/etc/hosts", hosts(&spec.hostname, &spec.extra_hosts))]
}

/// `/etc/hosts`: this host, then the additional names in order.
fn hosts(hostname: &str, extra: &[(String, String)]) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in extra {
        writeln!(text, "{address}\t{name}").expect("writing to a string cannot fail");
    }
    text
}

/// `/etc/resolv.conf` from the host's. A RUN shares the host's network, so even servers on loopback addresses answer there
/// and the text is kept; only if it names no server at all, public ones are added.
fn resolv_conf(host: &str) -> String {
    let names_a_server = host.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver") && words.next().is_some()
    });
    if names_a_server {
        return host.to_owned();
    }
    let separator = if host.is_empty() || host.ends_with('\n') { "" } else { "\n" };
    format!("{host}{separator}{PUBLIC_SERVERS}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_file() {
        let base = "127.0.0.1\tlocalhost h\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        assert_eq!(hosts("h", &[]), base);
        let extra = [("db".to_owned(), "10.0.0.1".to_owned()), ("db".to_owned(), "fe80::1".to_owned())];
        assert_eq!(hosts("h", &extra), format!("{base}10.0.0.1\tdb\nfe80::1\tdb\n"));
    }

    #[track_caller]
    fn check(host: &str, expected: &str) {
        assert_eq!(resolv_conf(host), expected, "{host:?}");
    }

    #[test]
    fn resolver_configuration() {
        check("nameserver 127.0.0.53\noptions edns0\n", "nameserver 127.0.0.53\noptions edns0\n");
        check(" nameserver\t1.1.1.1", " nameserver\t1.1.1.1");
        check("", PUBLIC_SERVERS);
        check("search x", &format!("search x\n{PUBLIC_SERVERS}"));
        check("# nameserver 1.1.1.1\nnameserver\n", &format!("# nameserver 1.1.1.1\nnameserver\n{PUBLIC_SERVERS}"));
    }
}
