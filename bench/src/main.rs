//! Load scenarios against any server of this surface, one beside the other, as one Markdown table.
//!
//! Owns: the command line, and the order of trials. `README.md` says what the columns mean.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that talks to a terminal")]

mod endpoint;
mod load;
mod report;
mod scenario;
mod side;
mod topic;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use report::Rows;
use scenario::{Extent, Scenario};
use side::Contestant;
use std::path::PathBuf;
use std::time::Duration;
use topic::{Kafka, MOST_RECORDS};

/// Measures Surefoot, and its peer beside it.
#[derive(Debug, Parser)]
#[command(name = "surefoot-bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// all, or a list of echo-1, echo-16, echo-128, nested-200, nested-2000, sleepers-20000, sleepers-60000, wake-and-call, counter, kafka
    #[arg(long, default_value = "all")]
    scenario: String,
    /// Measure the peer too, in turn with Surefoot
    #[arg(long)]
    peer: bool,
    /// Measure the peer alone
    #[arg(long)]
    peer_only: bool,
    /// The peer's binary [default: the one below target/bench/node_modules]
    #[arg(long, value_name = "PATH")]
    peer_bin: Option<PathBuf>,
    /// Surefoot's binary [default: the one built beside this program]
    #[arg(long, value_name = "PATH")]
    surefoot_bin: Option<PathBuf>,
    /// Trials of every scenario on every server
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=25))]
    rounds: u32,
    /// The measured window of a scenario with callers
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// The load before that window
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    warm_up: u64,
    /// Kafka records in the topic
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=MOST_RECORDS))]
    records: u64,
    /// A Kafka broker that runs already [default: start one]
    #[arg(long, value_name = "HOST:PORT")]
    bootstrap: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the handlers under load; the bench starts this by itself
    Endpoint {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        progress_port: u16,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Command::Endpoint { port, progress_port }) = arguments.command {
        let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
        return runtime.block_on(endpoint::serve(port, progress_port));
    }
    // One thread: the callers must not take from the servers what they do not need.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        tokio::select! {
            biased;
            // Leaving this way drops the child processes, which ends them.
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            done = compare(arguments) => done,
        }
    })
}

async fn compare(arguments: Arguments) -> Result<()> {
    let scenarios = scenarios(&arguments.scenario)?;
    let mut contestants = Vec::new();
    if !arguments.peer_only {
        contestants.push(Contestant::surefoot(arguments.surefoot_bin)?);
    }
    if arguments.peer || arguments.peer_only {
        contestants.push(Contestant::peer(arguments.peer_bin)?);
    }
    let extent = Extent {
        warm_up: Duration::from_secs(arguments.warm_up),
        measured: Duration::from_secs(arguments.seconds),
        records: arguments.records,
    };
    let mut table = Vec::new();
    for scenario in scenarios {
        // A broker runs only while it is needed.
        let kafka = match scenario {
            Scenario::Kafka => Some(Kafka::open(arguments.bootstrap.clone()).await?),
            _ => None,
        };
        let mut servers: Vec<_> = contestants.iter().map(|contestant| (contestant.name(), Vec::new())).collect();
        for round in 1..=arguments.rounds {
            for (contestant, (name, trials)) in contestants.iter().zip(&mut servers) {
                let what = format!("{} on {name}, round {round} of {}", scenario.name(), arguments.rounds);
                let figures = scenario.trial(contestant, extent, kafka.as_ref()).await.with_context(|| what.clone())?;
                eprintln!("{what}: {:.0} per second", figures.per_second.unwrap_or_default());
                trials.push(figures);
            }
        }
        table.push(Rows { scenario: scenario.name(), servers });
    }
    println!("{}", report::table(&table));
    Ok(())
}

fn scenarios(list: &str) -> Result<Vec<Scenario>> {
    if list == "all" {
        return Ok(Scenario::value_variants().to_vec());
    }
    let read = |name: &str| Scenario::from_str(name, true).map_err(|error| anyhow::anyhow!("--scenario: {error}"));
    list.split(',').map(read).collect()
}
