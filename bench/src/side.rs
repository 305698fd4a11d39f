//! One server under load, with its endpoint: both child processes on free ports, on an empty data directory.
//!
//! Owns: the two command lines, waiting until they serve, the kill, and what `/proc` says about the server's use of the machine.

use crate::endpoint::handled;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use surefoot_client::Admin;
use surefoot_client::admin::NewDeployment;
use surefoot_sdk_tests::places::{binaries, free_port, temporary};
use surefoot_sdk_tests::process::Process;
use surefoot_sdk_tests::wait::eventually;
use tempfile::TempDir;
use tokio::net::TcpStream;

const START_LIMIT: Duration = Duration::from_secs(60);
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// The unit of `/proc/<pid>/stat` on every Linux that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;

/// Which server is measured. They differ in how they are started, and in nothing else.
#[derive(Debug, Clone)]
pub(crate) enum Contestant {
    Surefoot(PathBuf),
    Peer(PathBuf),
}

impl Contestant {
    /// `given`, or the binary built beside this program.
    pub(crate) fn surefoot(given: Option<PathBuf>) -> Result<Self> {
        let path = given.map_or_else(|| binaries().map(|folder| folder.join("surefoot")), Ok)?;
        ensure!(path.exists(), "{} is missing; build it with `cargo build -p surefoot`", path.display());
        Ok(Self::Surefoot(path))
    }

    /// `given`, or the binary that npm has put below `target/bench`.
    pub(crate) fn peer(given: Option<PathBuf>) -> Result<Self> {
        let path = match given {
            Some(path) => path,
            None => installed_peer()?,
        };
        ensure!(path.exists(), "{} is missing", path.display());
        Ok(Self::Peer(path))
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Surefoot(_) => "surefoot",
            Self::Peer(_) => "peer",
        }
    }

    fn command(&self, data: &Path, [ingress, admin, node]: &[String; 3]) -> Command {
        let mut command;
        match self {
            Self::Surefoot(binary) => {
                command = Command::new(binary);
                command.arg("serve").arg("--data-dir").arg(data);
                command.args(["--ingress-address", ingress, "--admin-address", admin]);
            }
            Self::Peer(binary) => {
                command = Command::new(binary);
                command.args(["--no-logo", "--node-name", "n1"]).env("RESTATE_BASE_DIR", data);
                command.envs([("RESTATE_LISTEN_MODE", "tcp"), ("RESTATE_BIND_ADDRESS", node), ("DO_NOT_TRACK", "1")]);
                command.envs([("RESTATE_INGRESS__BIND_ADDRESS", ingress), ("RESTATE_ADMIN__BIND_ADDRESS", admin)]);
            }
        }
        // Handlers are on loopback, whatever the machine's way to the world is.
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(proxy);
        }
        command
    }
}

fn installed_peer() -> Result<PathBuf> {
    let target = binaries()?.parent().context("find the target folder")?.to_owned();
    let packages = target.join("bench/node_modules/@restatedev");
    let entries = std::fs::read_dir(&packages).into_iter().flatten().flatten();
    let mut found = entries.map(|package| package.path().join("bin/restate-server")).filter(|binary| binary.exists());
    found.next().with_context(|| {
        let prefix = target.join("bench");
        format!("find the peer: run `npm install --prefix {} @restatedev/restate-server`, or give --peer-bin", prefix.display())
    })
}

/// A server and its endpoint, running. Dropping it ends both.
#[derive(Debug)]
pub(crate) struct Side {
    contestant: Contestant,
    directory: TempDir,
    addresses: [String; 3],
    server: Process,
    progress_port: u16,
    _endpoint: Process,
}

impl Side {
    /// Starts both, waits until the server is healthy, and registers the endpoint.
    pub(crate) async fn start(contestant: &Contestant) -> Result<Self> {
        let directory = temporary("bench-")?;
        let (port, progress_port) = (free_port()?, free_port()?);
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.args(["endpoint", "--port", &port.to_string(), "--progress-port", &progress_port.to_string()]);
        let mut endpoint = Process::start("the endpoint", &mut command, &directory.path().join("endpoint.log"))?;
        eventually("the endpoint", START_LIMIT, || {
            let alive = endpoint.expect_running();
            async move {
                alive?;
                TcpStream::connect(("127.0.0.1", port)).await.map(drop).context("connect")
            }
        })
        .await?;

        let addresses = [free_port()?, free_port()?, free_port()?].map(|port| format!("127.0.0.1:{port}"));
        let server = spawn(contestant, &directory, &addresses)?;
        let mut side = Self { contestant: contestant.clone(), directory, addresses, server, progress_port, _endpoint: endpoint };
        side.until_healthy().await?;
        let deployment = NewDeployment::at(format!("http://127.0.0.1:{port}"));
        // Healthy may be said before the node takes registrations.
        eventually("the registration", START_LIMIT, || async { Ok(side.admin().register(&deployment).await?) }).await?;
        Ok(side)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.server.kill()
    }

    /// Starts the killed server again on its ports and data; does not wait until it serves.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.server = spawn(&self.contestant, &self.directory, &self.addresses)?;
        Ok(())
    }

    async fn until_healthy(&mut self) -> Result<()> {
        let admin = self.admin();
        let server = &mut self.server;
        eventually("a healthy server", START_LIMIT, || {
            let (alive, admin) = (server.expect_running(), admin.clone());
            async move {
                alive?;
                Ok(admin.health().await?)
            }
        })
        .await
    }

    pub(crate) fn ingress(&self) -> &str {
        &self.addresses[0]
    }

    pub(crate) fn admin(&self) -> Admin {
        Admin::new(&self.addresses[1]).expect("it is an address").with_timeout(REQUEST_LIMIT)
    }

    /// How many executions of a batch the endpoint has seen.
    pub(crate) async fn handled(&self, batch: usize) -> Result<u64> {
        handled(self.progress_port, batch).await
    }

    /// What the server has used since it was started.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let stat = self.proc("stat")?;
        // The second field is the program's name in parentheses; user and system time are fields 14 and 15.
        let fields = stat.rsplit_once(')').context("find the end of the name in stat")?.1;
        let times = fields.split_whitespace().skip(11).take(2);
        let ticks = times.map(str::parse::<u64>).sum::<std::result::Result<u64, _>>().context("read the times in stat")?;
        Ok(Usage {
            cpu: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
            written: number_after(&self.proc("io")?, "write_bytes:")?,
            peak_kib: number_after(&self.proc("status")?, "VmHWM:")?,
        })
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.server.id());
        std::fs::read_to_string(&path).with_context(|| format!("read {path}"))
    }
}

fn spawn(contestant: &Contestant, directory: &TempDir, addresses: &[String; 3]) -> Result<Process> {
    let mut command = contestant.command(&directory.path().join("data"), addresses);
    command.current_dir(directory.path());
    Process::start(contestant.name(), &mut command, &directory.path().join("server.log"))
}

fn number_after(text: &str, name: &str) -> Result<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("find {name}"))?;
    let number = rest.split_whitespace().next().with_context(|| format!("find the number after {name}"))?;
    number.parse().with_context(|| format!("read {name} {number}"))
}

/// What a process has used since it was started, all threads together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// Bytes handed to the block layer, in whole pages.
    pub(crate) written: u64,
    pub(crate) peak_kib: u64,
}
