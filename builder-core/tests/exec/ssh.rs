//! A real ssh-agent, forwarded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use builder_core::exec::{NoCache, SshAgent};
use builder_core::ssh::SshKey;
use fixtures::image::{Entry, tree_layer};

use crate::bench::{Bench, Built};
use crate::{Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "a_run_asks_the_agent", items: "M-19 M-20", run: forwarded },
    Case { name: "owner_and_mode_of_the_socket", items: "M-19", run: attributes },
    Case { name: "several_agents", items: "M-19", run: several },
    Case { name: "keys_in_the_place_of_an_agent", items: "M-19", run: keys },
    Case { name: "an_agent_that_was_not_given", items: "M-19", run: missing },
];

/// A running agent with one key.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

impl Agent {
    /// Starts an agent whose key has this comment.
    ///
    /// # Errors
    /// Which program is missing.
    fn start(directory: &Path, comment: &str) -> Result<Self, String> {
        let socket = directory.join(format!("{comment}.sock"));
        let key = directory.join(format!("{comment}.key"));
        let process = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("ssh-agent: {error}"))?;
        let agent = Self { process, socket };
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"]).arg(&key))?;
        for _ in 0..200 {
            if agent.socket.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        run(Command::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &agent.socket))?;
        fs::remove_file(&key).map_err(|error| error.to_string())?;
        Ok(agent)
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.stderr(Stdio::null()).status().map_err(|error| format!("{name}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name}: {status}")) }
}

/// `base:1` with the machine's ssh-add and the libraries that it needs, as `ssh:1`.
///
/// # Errors
/// Which program is missing.
fn put_image(bench: &Bench) -> Result<(), String> {
    const PROGRAM: &str = "/usr/bin/ssh-add";
    let listed = Command::new("ldd").arg(PROGRAM).output().map_err(|error| format!("ldd: {error}"))?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    let mut files = BTreeMap::new();
    for path in libraries.chain([PROGRAM]) {
        let bytes = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        files.insert(path.trim_start_matches('/').to_owned(), bytes);
    }
    let entries: Vec<Entry<'_>> = files.iter().map(|(path, bytes)| Entry::Program(path, bytes)).collect();
    bench.put_on_base("ssh", tree_layer(&entries));
    Ok(())
}

fn build(bench: &Bench, dockerfile: &str, agents: &[(&str, &Agent)]) -> Built {
    bench.build(dockerfile, |request| {
        request.no_cache = NoCache::All;
        let socket = |agent: &Agent| SshAgent::Socket(agent.socket.clone());
        request.ssh = agents.iter().map(|(id, agent)| ((*id).to_owned(), socket(agent))).collect();
    })
}

/// Agents with these names for keys, and an image whose commands can ask them.
///
/// # Errors
/// Which program is missing.
fn agents<const N: usize>(bench: &Bench, names: [&str; N]) -> Result<[Agent; N], String> {
    put_image(bench)?;
    let mut agents = Vec::new();
    for name in names {
        agents.push(Agent::start(bench.directory.path(), name)?);
    }
    agents.try_into().map_err(|_| "as many agents as names".to_owned())
}

fn forwarded(bench: &Bench) -> Outcome {
    let [agent] = match agents(bench, ["slipway-key"]) {
        Ok(agents) => agents,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let dockerfile = "FROM ssh:1\nRUN --mount=type=ssh ssh-add -l | grep -c slipway-key; echo $SSH_AUTH_SOCK; touch /made\n\
                      RUN test -z \"$SSH_AUTH_SOCK\" && test ! -e /run\n";
    let built = build(bench, dockerfile, &[("default", &agent)]);
    assert_eq!(built.output, ["1", "/run/buildkit/ssh_agent.0"], "{}", built.summary());
    let config = built.config().to_string();
    assert!(!config.contains("SSH_AUTH_SOCK=") && !config.contains(&*agent.socket.to_string_lossy()), "{config}");
    Outcome::Passed
}

fn attributes(bench: &Bench) -> Outcome {
    let [agent] = match agents(bench, ["slipway-key"]) {
        Ok(agents) => agents,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let dockerfile = "FROM ssh:1\nUSER user\n\
                      RUN --mount=type=ssh,target=/tmp/agent,uid=7,gid=8,mode=0660 stat -c '%a %u:%g' /tmp/agent; \
                      ssh-add -l | grep -c slipway-key\n\
                      RUN --mount=type=ssh stat -c '%a %u:%g' $SSH_AUTH_SOCK; ssh-add -l >/dev/null 2>&1 || echo refused\n";
    let built = build(bench, dockerfile, &[("default", &agent)]);
    assert_eq!(built.output, ["660 7:8", "1", "600 0:0", "refused"], "{}", built.summary());
    Outcome::Passed
}

fn keys(bench: &Bench) -> Outcome {
    let made = put_image(bench).and_then(|()| {
        ["one", "two"]
            .map(|name| {
                let path = bench.directory.path().join(name);
                run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&path))?;
                fs::read(&path).map_err(|error| error.to_string())
            })
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
    });
    let texts = match made {
        Ok(texts) => texts,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let dockerfile = "FROM ssh:1\nUSER user\n\
                      RUN --mount=type=ssh,uid=7,required ssh-add -L | cut -d' ' -f3; ssh-add -q -D 2>/dev/null || echo refused; \
                      ssh-add -L | wc -l\n";
    let keys: Vec<SshKey> = texts.iter().map(|text| SshKey::parse(text).expect("a key")).collect();
    let built = bench.build(dockerfile, |request| {
        request.no_cache = NoCache::All;
        request.ssh = BTreeMap::from([("default".to_owned(), SshAgent::Keys(keys.into()))]);
    });
    assert_eq!(built.output, ["one", "two", "refused", "2"], "{}", built.summary());
    // Nothing of them is left on the disk but where they were.
    let private = String::from_utf8_lossy(&texts[0]).lines().nth(2).expect("lines").to_owned();
    let found = Command::new("grep").args(["-rlF", &private]).arg(bench.directory.path()).output().expect("grep");
    assert_eq!(String::from_utf8_lossy(&found.stdout).lines().count(), 1, "{found:?}");
    Outcome::Passed
}

fn several(bench: &Bench) -> Outcome {
    let [one, two] = match agents(bench, ["slipway-one", "slipway-two"]) {
        Ok(agents) => agents,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let dockerfile = "FROM ssh:1\nRUN --mount=type=ssh,id=one --mount=type=ssh,id=two echo $SSH_AUTH_SOCK; \
                      ssh-add -l | grep -c slipway-one; SSH_AUTH_SOCK=/run/buildkit/ssh_agent.1 ssh-add -l | \
                      grep -c slipway-two\n";
    let built = build(bench, dockerfile, &[("one", &one), ("two", &two)]);
    assert_eq!(built.output, ["/run/buildkit/ssh_agent.0", "1", "1"], "{}", built.summary());
    Outcome::Passed
}

fn missing(bench: &Bench) -> Outcome {
    let optional = build(bench, "FROM base:1\nRUN --mount=type=ssh test ! -e $SSH_AUTH_SOCK && echo none\n", &[]);
    assert_eq!(optional.output, ["none"], "{}", optional.summary());
    let required = build(bench, "FROM base:1\nRUN --mount=type=ssh,id=x,required true\n", &[]);
    assert!(required.error().ends_with("no SSH key \"x\" forwarded from the client"), "{}", required.error());
    Outcome::Passed
}
