//! The processes that are killed, seen from inside: a node, and the handlers of `examples/rust`.
//!
//! Owns: their command lines, and that none outlives the demo, however that ends. Does not own: what they do, which is the server's
//! and the example's own code.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use surefoot_example_rust::{Settings, Social};
use surefoot_server::config::{self, Config, Sources};
use surefoot_server::serve::{self, Process, Serving};
use surefoot_server::telemetry;
use tracing_subscriber::EnvFilter;

/// A status that says that the process has stopped by itself.
const FAULT: i32 = 70;

#[derive(Debug, clap::Args)]
pub(crate) struct Node {
    #[arg(long)]
    data_dir: PathBuf,
    #[arg(long)]
    ingress_address: String,
    #[arg(long)]
    admin_address: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Handlers {
    #[arg(long)]
    port: u16,
    /// Where the social network answers
    #[arg(long)]
    social: String,
    #[arg(long)]
    poll_interval_ms: u64,
}

impl Node {
    pub(crate) fn arguments(data_dir: &Path, ingress_address: &str, admin_address: &str) -> Vec<String> {
        let data_dir = data_dir.display().to_string();
        let flags =
            [("--data-dir", data_dir.as_str()), ("--ingress-address", ingress_address), ("--admin-address", admin_address)];
        command_line("node", &flags)
    }
}

impl Handlers {
    pub(crate) fn arguments(port: u16, social: &str, poll_interval: Duration) -> Vec<String> {
        let (port, poll_interval) = (port.to_string(), poll_interval.as_millis().to_string());
        command_line("handlers", &[("--port", &port), ("--social", social), ("--poll-interval-ms", &poll_interval)])
    }
}

fn command_line(name: &str, flags: &[(&str, &str)]) -> Vec<String> {
    std::iter::once(name).chain(flags.iter().flat_map(|(flag, value)| [*flag, *value])).map(str::to_owned).collect()
}

/// Serves a node with its default settings until the process ends. It never stops in an orderly way: it is killed.
pub(crate) fn serve_node(node: &Node) -> Result<()> {
    end_with_the_demo();
    let flags = vec![
        ("base-dir", node.data_dir.display().to_string(), "--data-dir"),
        ("ingress.bind-address", node.ingress_address.clone(), "--ingress-address"),
        ("admin.bind-address", node.admin_address.clone(), "--admin-address"),
    ];
    // The environment stays out: the demo is the same for everybody.
    let config = config::load(&Sources { flags, ..Sources::default() })?.config;
    start_logs(&config.log_filter)?;
    runtime()?.block_on(serve(&config))
}

async fn serve(config: &Config) -> Result<()> {
    let env = serve::world();
    let process = Process { metrics: telemetry::install_metrics(&env)?, fatal: Arc::new(fatal) };
    let _serving = Serving::start(config, env, process).await?;
    std::future::pending().await
}

/// Without a log that keeps its word nothing may go on (rule L4).
fn fatal(message: String) {
    tracing::error!(message, "the log cannot be made durable: the process stops");
    std::process::exit(FAULT);
}

/// Serves the programs of `examples/rust` until the process ends.
pub(crate) fn serve_handlers(handlers: Handlers) -> Result<()> {
    end_with_the_demo();
    start_logs("warn")?;
    let poll_interval = Duration::from_millis(handlers.poll_interval_ms);
    let settings = Settings { port: handlers.port, poll_interval, social: Social::at(handlers.social) };
    runtime()?.block_on(surefoot_example_rust::serve(settings))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the threads of the process")
}

fn start_logs(filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter).context("read the log filter")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    Ok(())
}

/// The demo holds the other end of the standard input and never writes to it: its end is the demo's end.
fn end_with_the_demo() {
    std::thread::spawn(|| {
        // An error is an end, too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}
