//! An example of `examples/` as a process, on a port that it keeps.

use crate::languages::Language;
use crate::places::{free_port, temporary};
use crate::process::Process;
use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpStream;

const START_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Handlers {
    language: Language,
    port: u16,
    environment: Vec<(String, String)>,
    directory: TempDir,
    process: Option<Process>,
}

impl Handlers {
    /// Prepares the example, starts it with its stand-in of the social network at `social`, and waits until it listens.
    pub async fn start(language: Language, social: &str, poll_interval: Duration) -> Result<Self> {
        language.prepare()?;
        let port = free_port()?;
        let environment = vec![
            ("PORT".to_owned(), port.to_string()),
            ("SOCIAL_URL".to_owned(), social.to_owned()),
            ("POLL_INTERVAL_MS".to_owned(), poll_interval.as_millis().to_string()),
            // The Rust and Go SDKs and this test's own client reach loopback only.
            ("NO_PROXY".to_owned(), "127.0.0.1".to_owned()),
        ];
        let directory = temporary("handlers-")?;
        let mut handlers = Self { language, port, environment, directory, process: None };
        handlers.restart().await?;
        Ok(handlers)
    }

    /// Starts the process again after a kill.
    pub async fn restart(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the handlers run");
        let mut command = self.language.command()?;
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let name = format!("the {} handlers", self.language);
        let mut process = Process::start(&name, &mut command, &self.directory.path().join("handlers.log"))?;
        let port = self.port;
        eventually(&name, START_LIMIT, || {
            let alive = process.expect_running();
            async move {
                alive?;
                TcpStream::connect(("127.0.0.1", port)).await.map(drop).context("connect")
            }
        })
        .await?;
        self.process = Some(process);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the handlers are down")?.kill()
    }

    /// For a registration.
    pub fn uri(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
