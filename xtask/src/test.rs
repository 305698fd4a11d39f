//! `cargo xtask test`: everything is built once, then run in groups, the quick ones first.
//!
//! Owns: the groups, their order, and the fixed seeds of the simulation. Stops after the first group with a failure. A group that is
//! there to run tests and ran none has failed, too. The run ends with the runners' closing lines.

use crate::artifacts::{self, Executable, Targets};
use crate::command::{cargo, step};
use crate::soak;
use crate::toolchains::{self, TOOLCHAINS};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

pub(crate) const SIM: &str = "crates/sim";
const SDK: &str = "sdk-tests";

/// Seeds that every run covers, so that two runs of one commit agree.
const FIXED_SEEDS: &str = "0..600";
/// Seeds that no run has seen before are tried for so long.
const FRESH_SECONDS: u64 = 60;

/// A group's name, and what runs it.
type Group = (&'static str, fn(&Plan) -> Result<Vec<Outcome>>);

const GROUPS: [Group; 4] = [("unit", unit), ("doc", doc), ("sim", sim), ("sdk", sdk)];

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    skip: Vec<String>,
    /// Empty: all groups.
    only: Vec<String>,
}

impl Options {
    pub(crate) fn parse<'a>(mut arguments: impl Iterator<Item = &'a str>) -> Result<Self> {
        let mut options = Self::default();
        while let Some(argument) = arguments.next() {
            if matches!(argument, "help" | "--help" | "-h") {
                bail!("`cargo xtask help` lists what can be asked for");
            }
            let (flag, value) = match argument.split_once('=') {
                Some((flag, value)) => (flag, value),
                None => (argument, arguments.next().with_context(|| format!("`{argument}` needs a value"))?),
            };
            let (list, known) = match flag {
                "--skip" => (&mut options.skip, TOOLCHAINS.iter().map(|toolchain| toolchain.name).collect::<Vec<_>>()),
                "--only" => (&mut options.only, GROUPS.iter().map(|(name, _)| *name).collect()),
                _ => bail!("unknown flag `{flag}`; `cargo xtask help` lists them"),
            };
            for name in value.split(',') {
                if !known.contains(&name) {
                    bail!("{flag} does not know `{name}`; it takes {}", known.join(", "));
                }
                list.push(name.to_owned());
            }
        }
        Ok(options)
    }

    fn wants(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == group)
    }
}

struct Plan {
    executables: Vec<Executable>,
    skip: String,
}

impl Plan {
    fn tests(&self, belongs: impl Fn(&Executable) -> bool) -> impl Iterator<Item = &Executable> {
        self.executables.iter().filter(move |e| e.is_test && e.kind != "bench" && belongs(e))
    }
}

/// What one test executable (or one run of the documentation tests) said.
struct Outcome {
    name: String,
    /// The runner's closing lines, `test result: ...`.
    closing: Vec<String>,
    succeeded: bool,
}

impl Outcome {
    fn passed(&self) -> u64 {
        self.closing.iter().map(|line| passed(line)).sum()
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.wants("sdk") {
        toolchains::expect_installed(&options.skip)?;
    }
    let start = Instant::now();
    let plan = Plan { executables: artifacts::build(Targets::All)?, skip: options.skip.join(",") };
    println!("   built in {} s", start.elapsed().as_secs());

    let mut report = Vec::new();
    let result = run_groups(options, &plan, &mut report);
    println!("── closing lines");
    report.iter().for_each(|line| println!("   {line}"));
    let total = result?;
    let skipped = if plan.skip.is_empty() { String::new() } else { format!(", left out: {}", plan.skip) };
    println!("── test: ok, {total} tests passed{skipped}");
    Ok(())
}

/// Runs the groups up to the first that fails, and returns how many tests passed. What the runners said goes to `report`.
fn run_groups(options: &Options, plan: &Plan, report: &mut Vec<String>) -> Result<u64> {
    let mut total = 0;
    for (group, tests) in GROUPS.iter().filter(|(name, _)| options.wants(name)) {
        let start = Instant::now();
        let outcomes = tests(plan).with_context(|| format!("group `{group}`"))?;
        for outcome in outcomes.iter().filter(|outcome| outcome.passed() > 0 || !outcome.succeeded) {
            report.extend(outcome.closing.iter().map(|line| format!("{group}: {}: {line}", outcome.name)));
        }
        let failed: Vec<&str> = outcomes.iter().filter(|o| !o.succeeded).map(|o| o.name.as_str()).collect();
        if !failed.is_empty() {
            bail!("group `{group}` failed: {}", failed.join(", "));
        }
        let passed = outcomes.iter().map(Outcome::passed).sum::<u64>();
        println!("── {group}: {passed} tests passed in {} s", start.elapsed().as_secs());
        total += passed;
    }
    Ok(total)
}

fn unit(plan: &Plan) -> Result<Vec<Outcome>> {
    plan.tests(|e| e.package != SIM && e.package != SDK).map(|e| harness(e, e.name(), &[], &[], Show::Failures)).collect()
}

fn doc(_: &Plan) -> Result<Vec<Outcome>> {
    let mut command = cargo(&["test", "--quiet", "--workspace", "--doc"]);
    Ok(vec![observe("documentation".to_owned(), &mut command, Show::Failures)?])
}

fn sim(plan: &Plan) -> Result<Vec<Outcome>> {
    let run = |which: &str, filter: &[&str], environment: &[(&str, &str)]| {
        let tests = plan.tests(|e| e.package == SIM);
        let outcomes = tests.map(|e| harness(e, format!("{} ({which} seeds)", e.name()), filter, environment, Show::Everything));
        expect_some(outcomes.collect::<Result<_>>()?)
    };
    let mut outcomes = run("fixed", &[], &[("SUREFOOT_SIM_SEEDS", FIXED_SEEDS)])?;
    let (first, seconds) = (soak::first_seed()?, FRESH_SECONDS.to_string());
    outcomes.extend(run("fresh", &[soak::SEEDED_TEST], &soak::environment(&first, &seconds))?);
    Ok(outcomes)
}

fn sdk(plan: &Plan) -> Result<Vec<Outcome>> {
    let skip: [(&str, &str); 1] = [("SUREFOOT_SKIP_LANGUAGES", &plan.skip)];
    let prepare = plan.executables.iter().find(|e| e.package == SDK && e.kind == "bin" && e.target == "prepare" && !e.is_test);
    let prepare = prepare.context("find the binary `prepare` of sdk-tests")?;
    step("prepare the SDKs and the broker", Command::new(&prepare.path).current_dir(prepare.package_dir()).envs(skip))?;
    let one_at_a_time = ["--test-threads=1", "--nocapture"];
    let outcomes = plan.tests(|e| e.package == SDK).map(|e| harness(e, e.name(), &one_at_a_time, &skip, Show::Everything));
    expect_some(outcomes.collect::<Result<_>>()?)
}

fn expect_some(outcomes: Vec<Outcome>) -> Result<Vec<Outcome>> {
    if outcomes.iter().all(|o| o.succeeded && o.passed() == 0) {
        bail!("no test ran");
    }
    Ok(outcomes)
}

/// Runs a test executable as `cargo test` would: in its package's folder, told where that is.
fn harness(test: &Executable, name: String, arguments: &[&str], environment: &[(&str, &str)], show: Show) -> Result<Outcome> {
    let mut command = Command::new(&test.path);
    command.args(arguments).envs(environment.iter().copied());
    command.current_dir(test.package_dir()).env("CARGO_MANIFEST_DIR", test.package_dir());
    observe(name, &mut command, show)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Show {
    /// Line by line while it runs: for groups that take minutes.
    Everything,
    /// Only what a failed run printed.
    Failures,
}

fn observe(name: String, command: &mut Command, show: Show) -> Result<Outcome> {
    println!("── {name}");
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start {name}"))?;
    let stdout = child.stdout.take().expect("the output was asked for as a pipe");
    let mut lines = Vec::new();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = String::from_utf8_lossy(&line.with_context(|| format!("read the output of {name}"))?).into_owned();
        if show == Show::Everything {
            println!("{line}");
        }
        lines.push(line);
    }
    let succeeded = child.wait().with_context(|| format!("wait for {name}"))?.success();
    if !succeeded && show == Show::Failures {
        println!("{}", lines.join("\n"));
    }
    let closing = lines.into_iter().filter(|line| line.starts_with("test result:")).collect();
    Ok(Outcome { name, closing, succeeded })
}

/// The number in `test result: ok. 12 passed; 0 failed; ...`.
fn passed(closing: &str) -> u64 {
    let before = closing.split(" passed;").next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_and_unknown_names_are_told() {
        let options = Options::parse(["--skip", "java,go", "--only=sim"].into_iter()).unwrap();
        assert_eq!(options.skip, ["java", "go"]);
        assert!(options.wants("sim") && !options.wants("unit"));
        let error = |arguments: &[&str]| Options::parse(arguments.iter().copied()).unwrap_err().to_string();
        assert_eq!(error(&["--skip", "perl"]), "--skip does not know `perl`; it takes typescript, java, python, go, rust, kafka");
        assert_eq!(error(&["--only"]), "`--only` needs a value");
        assert_eq!(error(&["--fast=1"]), "unknown flag `--fast`; `cargo xtask help` lists them");
    }

    #[test]
    fn closing_lines_are_counted() {
        assert_eq!(passed("test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out"), 12);
        assert_eq!(passed("test result: FAILED. 3 passed; 1 failed; 0 ignored"), 3);
        assert_eq!(passed("no such line"), 0);
    }

    #[test]
    fn a_group_that_ran_nothing_has_failed() {
        let outcome = |closing: &str, succeeded| Outcome { name: String::new(), closing: vec![closing.to_owned()], succeeded };
        assert!(expect_some(vec![outcome("test result: ok. 0 passed; 0 failed", true)]).is_err());
        assert!(expect_some(vec![outcome("test result: ok. 1 passed; 0 failed", true)]).is_ok());
        assert!(expect_some(vec![outcome("test result: FAILED. 0 passed; 1 failed", false)]).is_ok());
    }
}
