//! The processes that are killed, seen from outside: this program started again, on ports and files that they keep.
//!
//! Owns: starting, killing with -9, starting again, and waiting until they are up. Does not own: when.

use crate::children;
use anyhow::{Context, Result, bail};
use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use surefoot_client::{Admin, Ingress};
use surefoot_sdk_tests::places::free_port;
use surefoot_sdk_tests::wait::eventually;
use tokio::net::TcpStream;

const START_LIMIT: Duration = Duration::from_secs(30);
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How much of a log an error shows, in lines.
const TAIL_LINES: usize = 15;

/// A child process. Ends with its owner.
#[derive(Debug)]
struct Process {
    name: &'static str,
    arguments: Vec<String>,
    /// Holds what all of its lives wrote.
    log: PathBuf,
    child: Child,
}

/// The node.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
    ingress: String,
    admin: String,
}

/// The handlers.
#[derive(Debug)]
pub(crate) struct Handlers {
    process: Process,
    port: u16,
}

impl Process {
    fn start(name: &'static str, arguments: Vec<String>, log: PathBuf) -> Result<Self> {
        let child = spawn(name, &arguments, &log)?;
        Ok(Self { name, arguments, log, child })
    }

    /// SIGKILL: it gets no chance to do anything.
    fn kill(&mut self) -> Result<()> {
        self.expect_running()?;
        self.child.kill().with_context(|| format!("kill the {}", self.name))?;
        self.child.wait().with_context(|| format!("wait for the end of the {}", self.name))?;
        Ok(())
    }

    /// After a kill.
    fn start_again(&mut self) -> Result<()> {
        self.child = spawn(self.name, &self.arguments, &self.log)?;
        Ok(())
    }

    /// Fails if it has ended by itself, with the end of its log.
    fn expect_running(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("look at the {}", self.name))? {
            None => Ok(()),
            Some(status) => bail!("the {} has ended by itself ({status})\n{}", self.name, tail(&self.log)),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts on an empty data directory below `directory`; returns once it is healthy.
    pub(crate) async fn start(directory: &Path) -> Result<Self> {
        let [ingress, admin] = [free_port()?, free_port()?].map(|port| format!("127.0.0.1:{port}"));
        let arguments = children::Node::arguments(&directory.join("data"), &ingress, &admin);
        let process = Process::start("server", arguments, directory.join("server.log"))?;
        let mut server = Self { process, ingress, admin };
        server.until_healthy().await?;
        Ok(server)
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again after a kill; returns once it has recovered.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.process.start_again()?;
        self.until_healthy().await
    }

    async fn until_healthy(&mut self) -> Result<()> {
        let admin = self.admin();
        up(&mut self.process, || async { Ok(admin.health().await?) }).await
    }

    pub(crate) fn expect_running(&mut self) -> Result<()> {
        self.process.expect_running()
    }

    pub(crate) fn admin(&self) -> Admin {
        Admin::new(&self.admin).expect("it is an address").with_timeout(REQUEST_LIMIT)
    }

    pub(crate) fn ingress(&self) -> Ingress {
        Ingress::new(&self.ingress).expect("it is an address").with_timeout(REQUEST_LIMIT)
    }

    pub(crate) fn ingress_address(&self) -> &str {
        &self.ingress
    }

    pub(crate) fn admin_address(&self) -> &str {
        &self.admin
    }
}

impl Handlers {
    /// Starts them, with the social network at `social`; returns once they listen.
    pub(crate) async fn start(directory: &Path, social: &str, poll_interval: Duration) -> Result<Self> {
        let port = free_port()?;
        let arguments = children::Handlers::arguments(port, social, poll_interval);
        let mut handlers = Self { process: Process::start("handlers", arguments, directory.join("handlers.log"))?, port };
        handlers.until_they_listen().await?;
        Ok(handlers)
    }

    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts them again after a kill; returns once they listen.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        self.process.start_again()?;
        self.until_they_listen().await
    }

    async fn until_they_listen(&mut self) -> Result<()> {
        let port = self.port;
        up(
            &mut self.process,
            || async move { TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map(drop).context("connect") },
        )
        .await
    }

    pub(crate) fn expect_running(&mut self) -> Result<()> {
        self.process.expect_running()
    }

    /// For a registration.
    pub(crate) fn uri(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Waits until a process that was started answers. One that has ended will not: no use to wait on.
async fn up<F: Future<Output = Result<()>>>(process: &mut Process, answers: impl Fn() -> F) -> Result<()> {
    let started = eventually(process.name, START_LIMIT, || {
        let (alive, answered) = (process.expect_running(), answers());
        async move { if alive.is_err() { Ok(alive) } else { answered.await.map(Ok) } }
    });
    started.await?
}

fn spawn(name: &str, arguments: &[String], log: &Path) -> Result<Child> {
    let output = OpenOptions::new().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))?;
    let errors = output.try_clone().context("share the log")?;
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    // In a group of its own, so that a Ctrl-C reaches the demo alone, and with an input that ends when the demo does.
    command.args(arguments).process_group(0).stdin(Stdio::piped()).stdout(output).stderr(errors);
    command.spawn().with_context(|| format!("start the {name}"))
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
