//! `cargo xtask soak --minutes N`: the simulation on seeds that nobody has tried, until the time is over or one of them fails.
//!
//! Owns: where fresh seeds begin. Does not own: what a seed does, or how a failing one is told: the test prints the command that
//! repeats it.

use crate::artifacts::{self, Targets};
use crate::command::step;
use crate::test::SIM;
use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

const SEEDS: &str = "seeds";
/// The test of `sim` in there that takes its seeds from `SUREFOOT_SIM_SEEDS`.
pub(crate) const SEEDED_TEST: &str = "seeds_hold";
const MINUTES: u64 = 10;

/// How many minutes are asked for.
pub(crate) fn parse<'a>(mut arguments: impl Iterator<Item = &'a str>) -> Result<u64> {
    let minutes = match arguments.next() {
        None => MINUTES,
        Some("--minutes") => {
            let value = arguments.next().context("`--minutes` needs a value")?;
            value.parse().with_context(|| format!("`{value}` is no number of minutes"))?
        }
        Some(other) => bail!("unknown flag `{other}`; `cargo xtask help` lists them"),
    };
    arguments.next().map_or(Ok(minutes), |more| bail!("`soak` takes no `{more}`"))
}

pub(crate) fn run(minutes: u64) -> Result<()> {
    let executables = artifacts::build(Targets::Test(SEEDS))?;
    let (first, seconds) = (first_seed()?, (minutes * 60).to_string());
    for test in executables.iter().filter(|e| e.is_test && e.package == SIM) {
        let mut command = Command::new(&test.path);
        command.args([SEEDED_TEST, "--nocapture"]).current_dir(test.package_dir()).envs(environment(&first, &seconds));
        step(&format!("{} for {minutes} minutes", test.name()), &mut command)?;
    }
    Ok(())
}

/// Where seeds begin that no run has had: the clock's seconds, which no run comes up to in a second.
pub(crate) fn first_seed() -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read a clock that stands after 1970")?.as_secs();
    Ok(format!("{now}000.."))
}

pub(crate) fn environment<'a>(seeds: &'a str, seconds: &'a str) -> [(&'static str, &'a str); 2] {
    [("SUREFOOT_SIM_SEEDS", seeds), ("SUREFOOT_SIM_SECONDS", seconds)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_read() {
        let parsed = |arguments: &[&str]| parse(arguments.iter().copied()).map_err(|error| error.to_string());
        assert_eq!(parsed(&[]), Ok(MINUTES));
        assert_eq!(parsed(&["--minutes", "90"]), Ok(90));
        assert_eq!(parsed(&["--minutes"]), Err("`--minutes` needs a value".to_owned()));
        assert_eq!(parsed(&["--minutes", "x"]), Err("`x` is no number of minutes".to_owned()));
        assert_eq!(parsed(&["--hours"]), Err("unknown flag `--hours`; `cargo xtask help` lists them".to_owned()));
    }
}
