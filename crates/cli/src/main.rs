//! The binary `surefoot`: `serve` runs a node, `backup` and `restore` copy one.
//!
//! Owns: arguments, logs, signals, and what a person reads on the terminal. Does not own: rules of any kind.

mod allocator;
mod backup;
mod doctor;
mod logs;
mod serve;
mod settings;
mod tell;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: allocator::BySize = allocator::BySize;

/// Durable executions: every event runs its handler to the end, once, in order per key, whatever crashes.
#[derive(Debug, Parser)]
#[command(name = "surefoot", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node in the foreground.
    Serve(serve::Arguments),
    /// Copy a node that runs, as it is at one instant
    Backup(backup::BackupArguments),
    /// Make a data directory of a backup
    Restore(backup::RestoreArguments),
    /// List the faults of the data directory of a node that does not run
    Doctor(doctor::Arguments),
}

fn main() -> ExitCode {
    #[cfg(target_env = "gnu")]
    allocator::give_back();
    let outcome = match Arguments::parse().command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Backup(arguments) => backup::run_backup(&arguments),
        Command::Restore(arguments) => backup::run_restore(arguments),
        Command::Doctor(arguments) => doctor::run(arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            tell::warn(format_args!("error: {}", told(&error)));
            ExitCode::FAILURE
        }
    }
}

/// An error and what led to it, each said once.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    #[test]
    fn the_arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_unknown_flag_names_the_nearest_known_one() {
        let error = Arguments::try_parse_from(["surefoot", "serve", "--ingress-adress", "h:1"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownArgument);
        assert!(error.to_string().contains("--ingress-address"), "{error}");
    }
}
