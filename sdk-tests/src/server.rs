//! The server as a process: started, killed, started again, on the same ports and data.
//!
//! Owns: its command line, waiting until it is healthy, and reading its log for lines that nobody announced. With `PEER_BIN`
//! set to another server's binary of the same HTTP surface, that one is started instead, so that the tests can be tested.

use crate::places::{binaries, free_port, temporary};
use crate::process::Process;
use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;
use surefoot_client::{Admin, Ingress};
use tempfile::TempDir;

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Server {
    directory: TempDir,
    ingress: u16,
    admin: u16,
    node: u16,
    settings: Vec<(String, String)>,
    /// Of the process; absent: what these tests have.
    descriptors: Option<u32>,
    process: Option<Process>,
}

impl Server {
    /// Starts on an empty data directory; returns once it is healthy. `settings` are keys without their prefix, as the
    /// environment spells them: `("WORKER__INVOKER__INACTIVITY_TIMEOUT", "1s")`.
    pub async fn start(settings: &[(&str, &str)]) -> Result<Self> {
        let mut server = Self::prepare(settings)?;
        server.restart().await?;
        Ok(server)
    }

    /// As `start`, and leaves starting to the caller.
    pub fn prepare(settings: &[(&str, &str)]) -> Result<Self> {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (ingress, admin, node) = (free_port()?, free_port()?, free_port()?);
        Ok(Self { directory: temporary("server-")?, ingress, admin, node, settings, descriptors: None, process: None })
    }

    /// Starts the process again; returns once it has recovered and is healthy.
    pub async fn restart(&mut self) -> Result<()> {
        self.spawn()?;
        let admin = self.admin();
        let process = self.process.as_mut().expect("it was spawned above");
        let started = eventually("a healthy server", START_LIMIT, || {
            let (alive, admin) = (process.expect_running(), admin.clone());
            async move {
                // A process that has ended will not become healthy: no use to wait on.
                if alive.is_err() {
                    return Ok(alive);
                }
                Ok(Ok(admin.health().await?))
            }
        });
        started.await?
    }

    /// Starts the process and does not wait.
    pub fn spawn(&mut self) -> Result<&mut Process> {
        ensure!(self.process.is_none(), "the server runs");
        let mut command = self.command()?;
        Ok(self.process.insert(Process::start("the server", &mut command, &self.log())?))
    }

    /// The number of the process.
    pub fn id(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("the server is down")?.id())
    }

    /// Bytes of memory that the process has had at its peak since it was started.
    pub fn peak_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.id()?);
        let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("find the peak")?;
        let kib = line.split_whitespace().next().context("find the number")?.parse::<u64>().context("read the number")?;
        Ok(kib << 10)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the server is down")?.kill()
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.take().context("the server is down")?.terminate(STOP_LIMIT)
    }

    /// The command line, for tests that start it in ways of their own.
    pub fn command(&self) -> Result<Command> {
        self.command_on(&self.data())
    }

    /// As `command`, on another data directory.
    pub fn command_on(&self, data: &Path) -> Result<Command> {
        let addresses = [self.ingress, self.admin, self.node].map(|port| format!("127.0.0.1:{port}"));
        let [ingress, admin, node] = &addresses;
        let (mut command, prefix) = if let Some(peer) = std::env::var_os("PEER_BIN") {
            let mut command = Command::new(peer);
            command.args(["--no-logo", "--node-name", "n1"]).env("RESTATE_BASE_DIR", data);
            command.envs([("RESTATE_LISTEN_MODE", "tcp"), ("RESTATE_BIND_ADDRESS", node), ("DO_NOT_TRACK", "1")]);
            command.envs([("RESTATE_INGRESS__BIND_ADDRESS", ingress), ("RESTATE_ADMIN__BIND_ADDRESS", admin)]);
            (command, "RESTATE_")
        } else {
            let mut command = match self.descriptors {
                None => Command::new(binary()?),
                Some(descriptors) => {
                    let mut shell = Command::new("sh");
                    shell.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &descriptors.to_string()]).arg(binary()?);
                    shell
                }
            };
            // Variables of these tests are no settings.
            for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SUREFOOT_")) {
                command.env_remove(name);
            }
            command.arg("serve").arg("--data-dir").arg(data);
            command.args(["--ingress-address", ingress, "--admin-address", admin]);
            (command, "SUREFOOT_")
        };
        command.current_dir(self.directory.path()).env(format!("{prefix}LOG_FORMAT"), "json");
        command.envs(self.settings.iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
        Ok(command)
    }

    /// How many file descriptors its next lives may have at most.
    pub fn limit_descriptors(&mut self, descriptors: u32) {
        self.descriptors = Some(descriptors);
    }

    /// Settings of the next start.
    pub fn set(&mut self, key: &str, value: &str) {
        self.settings.retain(|(present, _)| present != key);
        self.settings.push((key.to_owned(), value.to_owned()));
    }

    pub fn ingress(&self) -> Ingress {
        let client = Ingress::new(&self.ingress_address()).expect("it is an address");
        client.with_timeout(REQUEST_LIMIT)
    }

    pub fn admin(&self) -> Admin {
        Admin::new(&self.admin_address()).expect("it is an address").with_timeout(REQUEST_LIMIT)
    }

    pub fn admin_address(&self) -> String {
        format!("127.0.0.1:{}", self.admin)
    }

    pub fn ingress_address(&self) -> String {
        format!("127.0.0.1:{}", self.ingress)
    }

    /// Below it a test may put a file system of its own, before the first start.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("server.log")
    }

    /// All that it has written, over all its lives.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    /// Fails if the log holds a WARN or ERROR line, or a panic, that contains none of `expected`.
    pub fn expect_quiet(&self, expected: &[&str]) -> Result<()> {
        if std::env::var_os("PEER_BIN").is_some() {
            return Ok(());
        }
        let text = self.log_text();
        let loud: Vec<&str> =
            text.lines().filter(|line| is_loud(line) && !expected.iter().any(|part| line.contains(part))).collect();
        ensure!(loud.is_empty(), "{} unlisted lines in the server's log, such as\n{}", loud.len(), excerpt(&loud).join("\n"));
        Ok(())
    }
}

/// The server's binary: `SUREFOOT_BIN`, or the one built beside the tests.
pub fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("SUREFOOT_BIN") {
        Some(path) => PathBuf::from(path),
        None => binaries()?.join("surefoot"),
    };
    ensure!(Path::exists(&path), "{} is missing; build it with `cargo build -p surefoot`", path.display());
    Ok(path)
}

fn is_loud(line: &str) -> bool {
    if line.starts_with("thread '") && line.contains("panicked") {
        return true;
    }
    let level = serde_json::from_str::<Value>(line).ok().and_then(|line| Some(line.get("level")?.as_str()?.to_owned()));
    matches!(level.as_deref(), Some("WARN" | "ERROR"))
}

fn excerpt<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    const SHOWN: usize = 8;
    lines.iter().take(SHOWN).copied().collect()
}
