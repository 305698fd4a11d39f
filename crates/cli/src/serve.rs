//! `surefoot serve`: from arguments to a running node, and from a signal to its end.

use crate::{logs, settings, tell};
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use surefoot_server::config::{self, Config, Sources};
use surefoot_server::serve::{self, Process, Serving, Summary, url};
use surefoot_server::telemetry;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Threads that serve connections, attempts and sources. The log and the partitions have their own.
const THREADS: std::ops::RangeInclusive<usize> = 2..=4;
/// Signals within so long are one: `timeout` signals a process and then its group, which it is in.
const SAME_SIGNAL: Duration = Duration::from_secs(1);
/// As `sysexits` calls an internal fault.
const FAULT: i32 = 70;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// TOML file with settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the node keeps its data [default: ./surefoot-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where calls come in [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    ingress_address: Option<String>,
    /// Where operators' requests come in [default: 127.0.0.1:9070]
    #[arg(long, value_name = "HOST:PORT")]
    admin_address: Option<String>,
    /// Partitions of a new data directory [default: 16]
    #[arg(long, value_name = "N")]
    partitions: Option<String>,
    /// Print the settings in force and exit
    #[arg(long)]
    dump_config: bool,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let dump_only = arguments.dump_config;
    let loaded = config::load(&sources(arguments)?)?;
    if dump_only {
        for warning in &loaded.warnings {
            tell::warn(warning);
        }
        tell::say(config::dump(&loaded.config).trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    logs::start(&loaded.config)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(*THREADS.start(), *THREADS.end()))
        .enable_all()
        .build()
        .context("start the threads of the process")?;
    let code = runtime.block_on(serve(&loaded.config));
    // What still runs has lost its node; nobody waits for it.
    runtime.shutdown_background();
    logs::finish();
    code
}

fn sources(arguments: Arguments) -> anyhow::Result<Sources> {
    let flags = [
        ("base-dir", arguments.data_dir, "--data-dir"),
        ("ingress.bind-address", arguments.ingress_address, "--ingress-address"),
        ("admin.bind-address", arguments.admin_address, "--admin-address"),
        ("default-num-partitions", arguments.partitions, "--partitions"),
    ];
    settings::sources(arguments.config, flags)
}

async fn serve(config: &Config) -> anyhow::Result<ExitCode> {
    let env = serve::world();
    let mut signals = Signals::new()?;
    let metrics = telemetry::install_metrics(&env).context("install the recorder of metrics")?;
    let process = Process { metrics, fatal: Arc::new(fatal) };
    let serving = tokio::select! {
        biased;
        // Dropped midway: the start ends as if it had been killed.
        () = signals.next() => return Ok(ExitCode::SUCCESS),
        serving = Serving::start(config, env, process) => serving?,
    };
    // Beside the others: who reads standard output may take nothing more.
    let banner = banner(config, serving.summary());
    drop(tokio::task::spawn_blocking(move || tell::say(banner)));
    signals.next().await;
    tracing::info!("stopping; a second signal stops at once");
    tokio::select! {
        biased;
        // Dropped midway: the stop ends as if the process had been killed.
        () = signals.another() => tracing::warn!("stopped at once; the next start replays the log"),
        in_time = serving.stop(config.shutdown_timeout) => {
            if in_time {
                tracing::info!("stopped");
            } else {
                tracing::warn!("not all came to a stop within the shutdown timeout; the next start replays the log");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Without log and tables that keep their word nothing may go on (rules L4, C8).
fn fatal(message: String) {
    tracing::error!(message, "what was taken cannot be made durable: the process stops");
    logs::finish();
    end_at_once(FAULT)
}

/// Ends the process without what C libraries have registered for its exit: their threads still run, and may wait there for each other.
#[allow(unsafe_code, reason = "std has no exit that runs nothing: `exit` runs handlers, `abort` has no code")]
fn end_at_once(code: i32) -> ! {
    // SAFETY: it takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// What a person wants to know of a start.
fn banner(config: &Config, summary: &Summary) -> String {
    let path = std::path::absolute(&config.base_dir).unwrap_or_else(|_| Path::to_owned(&config.base_dir));
    let made = if summary.is_new { "new" } else { "opened" };
    let durability = if config.skip_fsync {
        "NONE: dangerously-skip-fsync is set, a power failure loses acknowledged work"
    } else {
        "events are on disk before they are acknowledged"
    };
    let recovered = &summary.recovered;
    let took_ms = recovered.took.as_millis();
    let mut lines = vec![
        format!("surefoot {} is ready", env!("CARGO_PKG_VERSION")),
        format!("  calls       {}", url(summary.ingress)),
        format!("  operators   {}", url(summary.admin)),
        format!("  data        {} ({made}, {} partitions)", path.display(), summary.partitions),
        format!("  durability  {durability}"),
        format!("  recovered   {} records in {took_ms} ms", recovered.records),
    ];
    if summary.deployments == 0 {
        lines.push("No deployment is registered yet. Start one and register it:".to_owned());
        lines.push(format!(r#"  curl {}/deployments --json '{{"uri": "http://localhost:9080"}}'"#, url(summary.admin)));
    }
    lines.join("\n")
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Completes with the next signal of either kind.
    async fn next(&mut self) {
        tokio::select! {
            biased;
            // A signal that is not taken is taken by the next call.
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Completes with a signal that is another one than the last.
    async fn another(&mut self) {
        let since = tokio::time::Instant::now();
        loop {
            self.next().await;
            if since.elapsed() >= SAME_SIGNAL {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use surefoot_server::node::Recovered;

    fn summary(deployments: usize) -> Summary {
        Summary {
            ingress: "0.0.0.0:8080".parse().unwrap(),
            admin: "127.0.0.1:9070".parse().unwrap(),
            partitions: 16,
            is_new: false,
            recovered: Recovered { records: 12, ..Recovered::default() },
            deployments,
        }
    }

    #[test]
    fn the_banner_says_where_things_are_and_what_to_do_next() {
        let text = banner(&Config::default(), &summary(0));
        for part in [
            "http://localhost:8080",
            "http://127.0.0.1:9070",
            "surefoot-data",
            "12 records",
            "curl http://127.0.0.1:9070/deployments",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(!banner(&Config::default(), &summary(1)).contains("curl"));
        let weak = Config { skip_fsync: true, ..Config::default() };
        assert!(banner(&weak, &summary(1)).contains("dangerously-skip-fsync"));
    }
}
