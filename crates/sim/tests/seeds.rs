//! Seeds: fixed ones on every run, others by `SUREFOOT_SIM_SEEDS=first..end`. A failing seed prints the command that repeats it.
//! `SUREFOOT_SIM_MUTANTS=K7` tries those variants only whose name has this in it.

use surefoot_kafka::Mutant as KafkaMutant;
use surefoot_log::local::Mutant as LogMutant;
use surefoot_partition::{MachineMutant, Mutant as PartitionMutant};
use surefoot_sim::{Mutants, Scenario, run};
use surefoot_storage::Mutant as StorageMutant;

/// Seeds where nobody asks for others.
const SEEDS: std::ops::Range<u64> = 0..100;
/// Seeds within which each broken variant must be caught.
const MUTANT_SEEDS: std::ops::Range<u64> = 0..2_000;

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("SUREFOOT_SIM_SEEDS") else { return SEEDS };
    let (first, end) = text.split_once("..").expect("SUREFOOT_SIM_SEEDS is first..end");
    first.parse().expect("a number")..end.parse().expect("a number")
}

/// Panics of a simulated node are findings like any other.
fn outcome(seed: u64, scenario: Scenario) -> Result<surefoot_sim::Report, String> {
    std::panic::catch_unwind(|| run(seed, scenario)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

#[test]
fn seeds_hold() {
    let seeds = seeds();
    println!("seeds {}..{}", seeds.start, seeds.end);
    let (mut operations, mut records, mut attempts, mut crashes) = (0, 0, 0, 0);
    for seed in seeds {
        match outcome(seed, Scenario::default()) {
            Ok(report) => {
                operations += report.operations;
                records += report.records;
                attempts += report.attempts;
                crashes += report.crashes;
            }
            Err(finding) => panic!(
                "seed {seed}: {finding}\nrepeat with: SUREFOOT_SIM_SEEDS={seed}..{} cargo test -p surefoot-sim seeds_hold",
                seed + 1
            ),
        }
    }
    println!("{operations} operations, {records} Kafka records, {attempts} attempts, {crashes} crashes");
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

#[test]
fn every_mutant_is_caught() {
    let log = |log| Mutants { log, ..Mutants::default() };
    let storage = |storage| Mutants { storage, ..Mutants::default() };
    let machine = |machine| Mutants { machine, ..Mutants::default() };
    let partition = |partition| Mutants { partition, ..Mutants::default() };
    let kafka = |kafka| Mutants { kafka, ..Mutants::default() };
    let mutants = [
        ("L6 skip the sync", log(LogMutant::SkipSync)),
        ("L6 publish before the sync", log(LogMutant::PublishBeforeSync)),
        ("L3 forget to sync the directory", log(LogMutant::SkipDirSync)),
        ("C1 split the checkpoint", storage(StorageMutant::SplitCheckpoint)),
        ("C2 trim before the engine has flushed", storage(StorageMutant::SkipFlush)),
        ("C3 vanish across layers", storage(StorageMutant::VanishAcrossLayers)),
        ("C4 forget what was sealed for a view", storage(StorageMutant::ForgetSealed)),
        ("C2 trim when the checkpoint begins", partition(PartitionMutant::TrimAtFreeze)),
        ("O1 forget the outbox at a restart", partition(PartitionMutant::ForgetOutbox)),
        ("T2 forget timers at a restart", partition(PartitionMutant::ForgetTimers)),
        ("T2 fire early", partition(PartitionMutant::FireEarly)),
        ("M4 count attempts anew", machine(MachineMutant::RestartAttempts)),
        ("M4 take stale messages", machine(MachineMutant::TakeStaleMessages)),
        ("M5 forget what was not delivered", machine(MachineMutant::ForgetUndelivered)),
        ("M5 show a notification twice", partition(PartitionMutant::ShowTwice)),
        ("M5 show less than there is", partition(PartitionMutant::ShowLess)),
        ("M9 forget chores at a restart", partition(PartitionMutant::ForgetChores)),
        ("O1 take messages again", machine(MachineMutant::ForgetInbound)),
        ("K1 take Kafka records again", machine(MachineMutant::ForgetStreams)),
        ("K1 ignore the topic's id", kafka(KafkaMutant::IgnoreTopicId)),
        ("K2 overtake", kafka(KafkaMutant::Overtake)),
        ("K3 route by assignment", kafka(KafkaMutant::RouteByAssignment)),
        ("K4 resolve again", kafka(KafkaMutant::ResolveAgain)),
        ("K5 the position leads", kafka(KafkaMutant::PositionLeads)),
        ("K5 commits lead", kafka(KafkaMutant::CommitLeads)),
        ("K6 park again", machine(MachineMutant::ParkAgain)),
        ("K5 a stream stays held", kafka(KafkaMutant::StreamStaysHeld)),
        ("K6 park without a bound", kafka(KafkaMutant::ParkWithoutBound)),
        ("K6 a hold survives a rebalance", kafka(KafkaMutant::HoldSurvives)),
        ("K10 close before the source has stopped", kafka(KafkaMutant::CloseEarly)),
        ("K7 fetch before the epoch is open", kafka(KafkaMutant::FetchBeforeOpen)),
        ("K7 take what is revoked", kafka(KafkaMutant::TakeRevoked)),
    ];
    let wanted = std::env::var("SUREFOOT_SIM_MUTANTS").unwrap_or_default();
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for (name, mutants) in mutants.into_iter().filter(|(name, _)| name.contains(&wanted)) {
        let scenario = Scenario { mutants, ..Scenario::default() };
        match MUTANT_SEEDS.into_iter().find_map(|seed| outcome(seed, scenario).err().map(|finding| (seed, finding))) {
            Some((seed, finding)) => println!("{name}: seed {seed}: {}", finding.chars().take(120).collect::<String>()),
            None => missed.push(name),
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not caught within {MUTANT_SEEDS:?}: {missed:?}");
}
