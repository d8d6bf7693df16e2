//! Ways to run a command in a tree, and who does it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Result;

/// First argument of the copy of this program that runs one command in one tier.
pub const INSIDE: &str = "--inside";

/// What a container runtime leaves to root.
const POD: &str = "setpriv --bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,\
                   +net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";

/// A user without any privilege; made by `scripts/setup`.
const PLAIN: &str = "setpriv --reuid=slipway-plain --regid=slipway-plain --clear-groups --no-new-privs --bounding-set=-all \
                     --inh-caps=-all";

/// One way.
pub struct Way {
    /// Its name in the table.
    pub name: &'static str,
    /// What comes before the program: who runs it.
    who: &'static str,
    /// A shell command for `$tree` and `$script`; `None` for the copy of this program.
    line: Option<&'static str>,
    /// Whether owners in the tree are real.
    owners: bool,
    /// A program it needs.
    needs: &'static str,
}

/// All, the yardstick first.
pub const WAYS: [Way; 7] = [
    Way {
        name: "plain",
        who: "",
        line: Some(
            "exec unshare --mount --pid --fork sh -c 'mount -t proc proc $tree/proc && mount --rbind /dev $tree/dev && \
             exec chroot $tree /bin/sh -c \"$script\"'",
        ),
        owners: true,
        needs: "chroot",
    },
    Way { name: "namespaces", who: "", line: None, owners: true, needs: "setpriv" },
    Way {
        name: "namespaces-user",
        who: "setpriv --reuid=slipway-subids --regid=slipway-subids --init-groups",
        line: None,
        owners: true,
        needs: "newuidmap",
    },
    Way {
        name: "namespaces-single",
        who: "setpriv --reuid=slipway-plain --regid=slipway-plain --clear-groups",
        line: None,
        owners: false,
        needs: "setpriv",
    },
    Way { name: "chroot", who: POD, line: None, owners: true, needs: "setpriv" },
    Way { name: "traced", who: PLAIN, line: None, owners: false, needs: "setpriv" },
    Way {
        name: "proot",
        who: PLAIN,
        line: Some("exec proot -0 -r $tree -b /proc -b /dev -w / /bin/sh -c \"$script\""),
        owners: false,
        needs: "proot",
    },
];

impl Way {
    /// Whether a workload may be too much: proot cannot install every package, and who has one id can give no file away.
    pub fn may_fail(&self) -> bool {
        matches!(self.name, "proot" | "namespaces-single")
    }

    /// What is missing on this machine; nothing mostly.
    pub fn missing(&self) -> Option<String> {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|directory| directory.join(self.needs).exists());
        (!found).then(|| format!("no {} (package {0})", self.needs))
    }

    /// Whether it is a tier of the sandbox.
    pub fn is_tier(&self) -> bool {
        self.line.is_none()
    }

    /// Makes `place` with the tree in it.
    pub fn unpack(&self, program: &Path, place: &Path, archive: &Path) -> Result<()> {
        fs::create_dir(place)?;
        let user = self.who.split_whitespace().find_map(|word| word.strip_prefix("--reuid="));
        let owner = user.unwrap_or("root");
        shell(&format!("chown {owner}: {}", place.display()))?;
        let same = if self.owners { "--same-owner" } else { "--no-same-owner" };
        let tree = place.join("root");
        let unpack = format!(
            "mkdir -m 755 {0} && tar -xpf {1} {same} --numeric-owner --exclude=./dev/* -C {0}",
            tree.display(),
            archive.display()
        );
        self.outside(program, place, &unpack)
    }

    /// Removes `place`.
    pub fn remove(&self, program: &Path, place: &Path) -> Result<()> {
        self.outside(program, place, &format!("rm -rf {}", place.join("root").display()))
    }

    /// Runs a script outside of the tree, as whom the files in it belong to.
    fn outside(&self, program: &Path, place: &Path, script: &str) -> Result<()> {
        let command = match self.line {
            Some(_) => format!("{} sh -c '{script}'", self.who),
            None => {
                format!("{} {} {INSIDE} {}! {} '{script}'", self.who, program.display(), self.name, place.display())
            }
        };
        shell(&command).map(drop)
    }

    /// Runs a script in the tree: seconds, those of processors (the supervisor's included), and what it printed. With an archive
    /// it is a step of a build that begins with that.
    pub fn run(
        &self,
        program: &Path,
        place: &Path,
        script: &str,
        archive: Option<&Path>,
    ) -> Result<(f64, f64, String)> {
        let tree = place.join("root");
        match self.line {
            None => {
                let archive = archive.map_or_else(String::new, |archive| archive.display().to_string());
                let (program, tree) = (program.display(), tree.display());
                let line = format!("{} {program} {INSIDE} {} {tree} '{script}' {archive}", self.who, self.name);
                let text = shell(&line)?;
                let (times, output) = text.split_once('\n').ok_or("the copy said nothing")?;
                let (seconds, cpu) = times.split_once(' ').ok_or("the copy said no times")?;
                Ok((seconds.parse()?, cpu.parse()?, output.to_owned()))
            }
            Some(line) => {
                let line = format!("{} sh -c '{}'", self.who, line.replace('\'', "'\\''"));
                let (started, before) = (Instant::now(), cpu_seconds(false)?);
                let text = with(&line, &[("tree", &tree.display().to_string()), ("script", script)])?;
                Ok((started.elapsed().as_secs_f64(), cpu_seconds(false)? - before, text))
            }
        }
    }
}

/// Processor time of all children that were waited for and theirs, and with `own` of this process too: proc(5), 100 ticks a second.
pub fn cpu_seconds(own: bool) -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("/proc/self/stat has no name")?;
    let ticks = fields.split_whitespace().skip(if own { 11 } else { 13 }).take(if own { 4 } else { 2 });
    Ok(ticks.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0)
}

/// Runs a command line and gives what it printed.
pub fn shell(line: &str) -> Result<String> {
    with(line, &[])
}

fn with(line: &str, variables: &[(&str, &str)]) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-c", line]).stdin(Stdio::null()).env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    command.env("DEBIAN_FRONTEND", "noninteractive").envs(variables.iter().copied());
    let output = command.output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().rev().take(12).collect::<Vec<_>>();
        return Err(
            format!("{line}: {}: {}", output.status, said.into_iter().rev().collect::<Vec<_>>().join("\n")).into()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}
