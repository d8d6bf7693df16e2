//! How `ssh` is called for repositories behind it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What `ssh` may use beside the configuration of the user who builds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SshAccess {
    /// Socket of the agent that signs, before any other.
    pub agent: Option<PathBuf>,
    /// Where keys of hosts are kept that were met for the first time. A host whose key is another one than there, or than
    /// in the user's own file, is refused.
    pub known_hosts: Option<PathBuf>,
}

/// Whether `url` is spoken over ssh.
pub(crate) fn is_ssh(url: &str) -> bool {
    gix::url::parse(gix::bstr::BStr::new(url)).is_ok_and(|url| url.scheme == gix::url::Scheme::Ssh)
}

impl SshAccess {
    /// The command line, for a shell. `ssh` never asks: nobody is there to answer.
    pub(super) fn command(&self) -> String {
        let mut command = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new".to_owned();
        if let Some(file) = &self.known_hosts {
            let files = format!("{} ~/.ssh/known_hosts ~/.ssh/known_hosts2", option_word(file));
            _ = write!(command, " -o {}", shell_word(&format!("UserKnownHostsFile={files}")));
        }
        if let Some(agent) = &self.agent {
            _ = write!(command, " -o {}", shell_word(&format!("IdentityAgent={}", option_word(agent))));
        }
        command
    }
}

/// A path as a value of ssh_config(5), which knows double quotes and `%`.
fn option_word(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%"))
}

fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_twice() {
        let access = |agent: Option<&str>, known: Option<&str>| SshAccess {
            agent: agent.map(Into::into),
            known_hosts: known.map(Into::into),
        };
        let plain = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new";
        assert_eq!(access(None, None).command(), plain);
        assert_eq!(
            access(Some("/it's 5%"), Some("/w")).command(),
            format!(
                "{plain} -o 'UserKnownHostsFile=\"/w\" ~/.ssh/known_hosts ~/.ssh/known_hosts2' \
                 -o 'IdentityAgent=\"/it'\\''s 5%%\"'"
            )
        );
    }

    #[test]
    fn two_forms_of_urls_mean_ssh() {
        for (url, expected) in [
            ("git@h:x/y.git", true),
            ("ssh://git@h:2222/x", true),
            ("https://h/x.git", false),
            ("git://h/x", false),
            ("/srv/x.git", false),
        ] {
            assert_eq!(is_ssh(url), expected, "{url}");
        }
    }
}
