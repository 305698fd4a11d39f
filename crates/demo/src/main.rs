//! `cargo demo`: events for many keys from a Kafka topic to durable handlers, while server and handlers are killed with -9, and a
//! judge who counts what was lost, applied twice or out of order.
//!
//! Owns: the command line, and the exit status: 0 only if all held. Does not own: anything that ships.
#![allow(clippy::print_stderr, reason = "a program that talks to a terminal")]

mod broker;
mod children;
mod events;
mod processes;
mod run;
mod screen;
mod summary;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// As shells say it of a program that a Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// Durable executions under kill -9, judged: a Kafka topic, a server, handlers, and what became of every event.
#[derive(Debug, Parser)]
#[command(name = "demo", bin_name = "cargo demo", disable_help_subcommand = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    child: Option<Child>,
    #[command(flatten)]
    options: run::Options,
}

/// What the demo starts as processes of their own, to kill them.
#[derive(Debug, Subcommand)]
enum Child {
    #[command(hide = true)]
    Node(children::Node),
    #[command(hide = true)]
    Handlers(children::Handlers),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.child {
        Some(Child::Node(node)) => children::serve_node(&node).map(|()| ExitCode::SUCCESS),
        Some(Child::Handlers(handlers)) => children::serve_handlers(handlers).map(|()| ExitCode::SUCCESS),
        None => demo(&arguments.options),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn demo(options: &run::Options) -> Result<ExitCode> {
    // One thread: what is watched must not wait for those who watch.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
        let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
        tokio::select! {
            biased;
            // Either drops the run, which ends the processes and removes their files.
            _ = interrupt.recv() => Ok(ExitCode::from(INTERRUPTED)),
            _ = terminate.recv() => Ok(ExitCode::from(INTERRUPTED)),
            held = run::run(options) => Ok(if held? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn children_are_not_for_people() {
        let help = Arguments::command().render_help().to_string();
        assert!(help.contains("--events") && !help.contains("node"), "{help}");
    }
}
