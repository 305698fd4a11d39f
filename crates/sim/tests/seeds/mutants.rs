//! The broken variants that whole nodes are run with, and the words of the finding that each must lead to.
//!
//! Does not own: variants whose rule shows in one room alone; they are caught there (`docs/rules.md` says where).

use surefoot_invoker::Mutant as InvokerMutant;
use surefoot_kafka::Mutant as KafkaMutant;
use surefoot_log::local::Mutant as LogMutant;
use surefoot_partition::{MachineMutant, Mutant as PartitionMutant};
use surefoot_sim::Mutants;
use surefoot_storage::Mutant as StorageMutant;

pub(crate) struct Mutated {
    pub(crate) name: &'static str,
    pub(crate) mutants: Mutants,
    /// It is tried where a build stops partitions and another one repairs them.
    pub(crate) repairs: bool,
    /// One of them is in the finding that counts.
    pub(crate) signs: &'static [&'static str],
}

impl Mutated {
    const fn new(name: &'static str, mutants: Mutants, signs: &'static [&'static str]) -> Self {
        Self { name, mutants, repairs: false, signs }
    }

    const fn in_repairs(self) -> Self {
        Self { repairs: true, ..self }
    }
}

const NONE: Mutants = Mutants {
    log: LogMutant::None,
    storage: StorageMutant::None,
    machine: MachineMutant::None,
    partition: PartitionMutant::None,
    kafka: KafkaMutant::None,
    invoker: InvokerMutant::None,
};

const fn log(name: &'static str, log: LogMutant, signs: &'static [&'static str]) -> Mutated {
    Mutated::new(name, Mutants { log, ..NONE }, signs)
}

const fn storage(name: &'static str, storage: StorageMutant, signs: &'static [&'static str]) -> Mutated {
    Mutated::new(name, Mutants { storage, ..NONE }, signs)
}

const fn machine(name: &'static str, machine: MachineMutant, signs: &'static [&'static str]) -> Mutated {
    Mutated::new(name, Mutants { machine, ..NONE }, signs)
}

const fn partition(name: &'static str, partition: PartitionMutant, signs: &'static [&'static str]) -> Mutated {
    Mutated::new(name, Mutants { partition, ..NONE }, signs)
}

const fn invoker(name: &'static str, invoker: InvokerMutant, signs: &'static [&'static str]) -> Mutated {
    Mutated::new(name, Mutants { invoker, ..NONE }, signs)
}

const fn kafka(name: &'static str, kafka: KafkaMutant, signs: &'static [&'static str]) -> Mutated {
    Mutated::new(name, Mutants { kafka, ..NONE }, signs)
}

pub(crate) const MUTANTS: &[Mutated] = &[
    log("L6 skip the sync", LogMutant::SkipSync, &["acknowledged", "not each of", "log ends before"]),
    log("L6 publish before the sync", LogMutant::PublishBeforeSync, &["acknowledged", "not each of", "log ends before"]),
    log("L3 forget to sync the directory", LogMutant::SkipDirSync, &["acknowledged", "not each of", "log ends before"]),
    log("L4 go on after a failed sync", LogMutant::IgnoreFailedSync, &["acknowledged", "not each of", "log ends before"]),
    storage("C1 split the checkpoint", StorageMutant::SplitCheckpoint, &["stopped", "differs"]),
    storage("C2 trim before the engine has flushed", StorageMutant::SkipFlush, &["its log begins at"]),
    storage("C8 go on after a failed flush", StorageMutant::IgnoreFailedFlush, &["its log begins at", "stopped"]),
    storage("C3 vanish across layers", StorageMutant::VanishAcrossLayers, &["ran again", "differs", "not quiet", "stopped"]),
    storage("C4 forget what was sealed for a view", StorageMutant::ForgetSealed, &["stopped", "differs", "not quiet"]),
    partition("C2 trim when the checkpoint begins", PartitionMutant::TrimAtFreeze, &["its log begins at"]),
    partition("C5 trim what has stopped", PartitionMutant::ForgetStopped, &["its log begins at"]).in_repairs(),
    partition("O1 forget the outbox at a restart", PartitionMutant::ForgetOutbox, &["(rule O1)"]),
    partition("T2 forget timers at a restart", PartitionMutant::ForgetTimers, &["(rule T2)"]),
    partition("M1 apply by a setting", PartitionMutant::LookAtSettings, &["(rule M1)"]),
    partition("M1 go on at the newest deployment", PartitionMutant::IgnorePin, &["(rule M1)"]),
    partition("M2 answer before it is durable", PartitionMutant::AnswerEarly, &["(rule M2)"]),
    partition("M6 forget what ran at a restart", PartitionMutant::ForgetRunning, &["(rule M6)"]),
    partition("M7 stop without a checkpoint", PartitionMutant::StopBetween, &["records to apply after a clean stop"]),
    machine("T1 due by the monotone time", MachineMutant::DueByRecordTime, &["(rule T1)"]),
    partition("T2 sleep through a jump", PartitionMutant::SleepThrough, &["(rule T2)"]),
    partition("T2 fire early", PartitionMutant::FireEarly, &["early (rule T2)"]),
    machine(
        "M4 count attempts anew",
        MachineMutant::RestartAttempts,
        &["batches of one attempt come in order", "the id that lived again"],
    ),
    machine("M4 take stale messages", MachineMutant::TakeStaleMessages, &["batches of one attempt come in order"]),
    machine("M5 forget what was not delivered", MachineMutant::ForgetUndelivered, &["never ended"]),
    partition("M5 show a notification twice", PartitionMutant::ShowTwice, &["came twice"]),
    partition("M5 show less than there is", PartitionMutant::ShowLess, &["never ended"]),
    partition("M9 forget chores at a restart", PartitionMutant::ForgetChores, &["(rule M9)"]),
    partition("O3 a checkpoint waits for memory", PartitionMutant::CheckpointWaits, &["none is written (rule O3)"]),
    machine("R1 evict what has a name", MachineMutant::EvictNamed, &["(rule R1)"]),
    partition("R2 leave nothing free", PartitionMutant::IgnoreDisk, &["the edges are open"]),
    partition("R2 leave the edges shut", PartitionMutant::StayShut, &["the edges are shut"]),
    partition("R2 wake nobody at the edges", PartitionMutant::LoseRoom, &["there is room on the disk again (rule R2)"]),
    log("L8 die of shortage", LogMutant::DieOfShortage, &["(rule L8)"]),
    partition("O5 wake nobody for a free place", PartitionMutant::LoseWake, &["a place is free (rule O5)"]),
    invoker("O5 ask nobody to make room", InvokerMutant::NeverAsk, &["(rule O5)"]),
    invoker("O5 never give up what is silent", InvokerMutant::NeverGiveUp, &["(rule O5)"]),
    machine("O1 take messages again", MachineMutant::ForgetInbound, &["twice"]),
    machine("K1 take Kafka records again", MachineMutant::ForgetStreams, &["twice"]),
    kafka("K1 ignore the topic's id", KafkaMutant::IgnoreTopicId, &["never took"]),
    kafka("K2 overtake", KafkaMutant::Overtake, &["out of order", "never took"]),
    kafka("K3 route by assignment", KafkaMutant::RouteByAssignment, &["parked twice", "twice"]),
    kafka("K4 resolve again", KafkaMutant::ResolveAgain, &["never took"]),
    kafka("K4 read an added Kafka partition from its end", KafkaMutant::AddedAtEnd, &["never took"]),
    kafka("K4 read a topic that was missing from its end", KafkaMutant::MissingAtEnd, &["never took"]),
    kafka("K4 take the commits of others for its own", KafkaMutant::TrustOwnGroup, &["never took"]),
    kafka("K4 wait for all leaders", KafkaMutant::WaitForLeaders, &["(rule K4)"]),
    kafka("K5 go on where the group has come to", KafkaMutant::FollowGroup, &["never took"]),
    kafka("K5 the position leads", KafkaMutant::PositionLeads, &["never took", "(rule K5)"]),
    kafka("K5 commits lead", KafkaMutant::CommitLeads, &["the group was told"]),
    kafka("K5 a stream stays held", KafkaMutant::StreamStaysHeld, &["stood still"]),
    kafka("K6 park without a bound", KafkaMutant::ParkWithoutBound, &["parked"]),
    kafka("K6 park what has no handler", KafkaMutant::ParkUnknown, &["not its own", "its handler is there again"]),
    kafka("K6 miss the handler that was waited for", KafkaMutant::MissHandler, &["(rule K6)"]),
    kafka("K6 a hold survives a rebalance", KafkaMutant::HoldSurvives, &["never took", "never ended"]),
    kafka("K10 close before the source has stopped", KafkaMutant::CloseEarly, &["never took", "twice", "after its end"]),
    kafka("K10 forget a deleted subscription before its group knows", KafkaMutant::RowGoesFirst, &["twice", "out of order"]),
    kafka("K10 tell the group what it is past", KafkaMutant::CommitGoesBack, &["(rule K10)"]),
    machine("K6 park again", MachineMutant::ParkAgain, &["(rule K6)"]),
    kafka("K7 fetch before the epoch is open", KafkaMutant::FetchBeforeOpen, &["never took"]),
    kafka(
        "K7 take what is revoked",
        KafkaMutant::TakeRevoked,
        &["offsets of a stream rise", "never took", "twice", "out of order"],
    ),
];
