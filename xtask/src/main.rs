//! Repository tasks: `cargo xtask check`, `cargo xtask test` and `cargo xtask soak`.
//!
//! Owns: the order of checks and test groups, and what each is run with. Does not own: any test. The tidy rules are plain tests
//! in `tests/tidy`, and what a group needs prepared is known by the crate that holds it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that talks to a terminal")]

mod artifacts;
mod check;
mod command;
mod soak;
mod test;
mod toolchains;

use anyhow::{Result, bail};
use std::process::ExitCode;

const HELP: &str = "\
Tasks of this repository.

  cargo xtask check                     formatting, lints, documentation; dependencies where cargo-deny is installed
  cargo xtask test [--skip A,B] [--only G,H]
                                        all tests, in groups: unit, doc, sim, sdk
      --skip    leave out what needs a toolchain: typescript, java, python, go, rust (their SDKs), kafka (the real broker)
      --only    run these groups alone
  cargo xtask soak [--minutes N]        the simulation on fresh seeds, for 10 minutes or N, up to the first that fails
";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<String>) -> Result<()> {
    let mut arguments = arguments.iter().map(String::as_str);
    match arguments.next() {
        Some("check") => match arguments.next() {
            None => check::run(),
            Some(other) => bail!("`check` takes no argument, got `{other}`"),
        },
        Some("test") => test::run(&test::Options::parse(arguments)?),
        Some("soak") => soak::run(soak::parse(arguments)?),
        None | Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => bail!("unknown task `{other}`\n\n{HELP}"),
    }
}
