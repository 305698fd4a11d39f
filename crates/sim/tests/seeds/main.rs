//! Seeds: fixed ones on every run, others by `SUREFOOT_SIM_SEEDS=first..end`. `first..` with `SUREFOOT_SIM_SECONDS=60` goes on for so
//! long. A failing seed prints the command that repeats it. `SUREFOOT_SIM_MUTANTS=K7` tries those variants only whose name has this
//! in it.
#![expect(clippy::print_stdout, reason = "which seeds are run")]

mod mutants;

use mutants::{MUTANTS, Mutated};
use std::cell::Cell;
use std::panic::catch_unwind;
use std::sync::Once;
use std::time::{Duration, Instant};
use surefoot_sim::{Report, Scenario, run};

/// Seeds where nobody asks for others.
const SEEDS: std::ops::Range<u64> = 0..100;
/// Seeds within which each broken variant must be caught.
const MUTANT_SEEDS: std::ops::Range<u64> = 0..1_000;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// The seeds that are asked for; without an end, as many as there is time for.
fn seeds() -> impl Iterator<Item = u64> {
    let (first, end) = match variable("SUREFOOT_SIM_SEEDS") {
        None => (SEEDS.start, SEEDS.end),
        Some(text) => {
            let (first, end) = text.split_once("..").expect("SUREFOOT_SIM_SEEDS is first..end, or first..");
            let end = if end.is_empty() { u64::MAX } else { end.parse().expect("a number") };
            (first.parse().expect("a number"), end)
        }
    };
    let seconds = variable("SUREFOOT_SIM_SECONDS").map(|text| text.parse().expect("a number of seconds"));
    assert!(end < u64::MAX || seconds.is_some(), "seeds without an end need SUREFOOT_SIM_SECONDS");
    let (start, limit) = (Instant::now(), seconds.map_or(Duration::MAX, Duration::from_secs));
    println!("seeds from {first}{}", if end == u64::MAX { String::new() } else { format!(" to before {end}") });
    (first..end).take_while(move |_| start.elapsed() < limit)
}

thread_local! {
    /// Panics on this thread are expected, and say nothing.
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, panics on this thread are not printed: they are caught, and counted. Those on other threads are.
struct Quiet;

impl Quiet {
    fn begin() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let loud = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                if !IS_QUIET.get() {
                    loud(panic);
                }
            }));
        });
        IS_QUIET.set(true);
        Self
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        IS_QUIET.set(false);
    }
}

/// Panics of a simulated node are findings like any other.
fn outcome(seed: u64, scenario: Scenario) -> Result<Report, String> {
    catch_unwind(|| run(seed, scenario)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

#[test]
fn seeds_hold() {
    let (mut count, mut operations, mut records, mut strays, mut attempts, mut crashes) = (0, 0, 0, 0, 0, 0);
    for seed in seeds() {
        match outcome(seed, Scenario::default()) {
            Ok(report) => {
                count += 1;
                operations += report.operations;
                records += report.records;
                strays += report.strays;
                attempts += report.attempts;
                crashes += report.crashes;
            }
            Err(finding) => panic!(
                "seed {seed}: {finding}\nrepeat with: SUREFOOT_SIM_SEEDS={seed}..{} cargo test -p surefoot-sim seeds_hold",
                seed + 1
            ),
        }
    }
    // The fixed seeds have some.
    assert!(strays > 0 || variable("SUREFOOT_SIM_SEEDS").is_some(), "no topic that was made again was read too early");
    println!(
        "{count} seeds: {operations} operations, {records} Kafka records, {strays} of them strays, {attempts} attempts, {crashes} crashes"
    );
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..20 {
        assert_eq!(outcome(seed, Scenario::default()), outcome(seed, Scenario::default()), "seed {seed}");
    }
}

/// What was under way at a clean stop was logged after the last checkpoint, for the next version to apply under its own rules.
#[test]
fn a_clean_stop_leaves_nothing_to_apply() {
    for seed in [0, 21, 145, 174] {
        outcome(seed, Scenario::default()).unwrap_or_else(|finding| panic!("seed {seed}: {finding}"));
    }
}

/// A build stops a partition over one record; the node starts again with that build, is called, and is repaired: everything that was
/// acknowledged meanwhile is there, on all partitions (rules C5, O1, M8).
#[test]
fn a_partition_that_another_build_repairs_loses_nothing() {
    for seed in seeds() {
        let scenario = Scenario { repairs: true, ..Scenario::default() };
        let quiet = Quiet::begin();
        let outcome = outcome(seed, scenario);
        drop(quiet);
        outcome.unwrap_or_else(|finding| panic!("seed {seed}: {finding}"));
    }
}

/// The documents list what is tried here.
#[test]
fn each_variant_is_in_the_documents() {
    let page = include_str!("../../../../docs/simulation.md");
    for Mutated { name, .. } in MUTANTS {
        let (rule, what) = name.split_once(' ').expect("a name begins with its rule");
        assert!(page.contains(&format!("| {rule} | {what} | simulation |")), "docs/simulation.md has no row for `{name}`");
    }
}

/// A variant is caught by what its rule is about: a finding that says something else shows that something else is broken.
#[test]
fn every_mutant_is_caught() {
    let wanted = variable("SUREFOOT_SIM_MUTANTS").unwrap_or_default();
    let quiet = Quiet::begin();
    let mut missed = Vec::new();
    for Mutated { name, mutants, repairs, signs } in MUTANTS.iter().filter(|mutated| mutated.name.contains(&wanted)) {
        let scenario = Scenario { mutants: *mutants, repairs: *repairs, ..Scenario::default() };
        let (mut others, began) = (Vec::new(), Instant::now());
        let found = MUTANT_SEEDS.into_iter().find_map(|seed| {
            let finding = outcome(seed, scenario).err()?;
            if signs.iter().any(|sign| finding.contains(sign)) {
                return Some((seed, finding));
            }
            others.push(format!("seed {seed}: {finding}"));
            None
        });
        let short = |text: &str| text.chars().take(160).collect::<String>();
        match found {
            Some((seed, finding)) => println!("{name}: seed {seed}, {:.1?}: {}", began.elapsed(), short(&finding)),
            None => missed.push(format!(
                "{name}, which should show as {signs:?}; it showed as {:?}",
                others.iter().take(3).map(|o| short(o)).collect::<Vec<_>>()
            )),
        }
        if !others.is_empty() {
            println!("    before that, {} other findings, the first: {}", others.len(), short(&others[0]));
        }
    }
    drop(quiet);
    assert!(missed.is_empty(), "not caught within {MUTANT_SEEDS:?}:\n{}", missed.join("\n"));
}
