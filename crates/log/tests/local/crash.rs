//! Crashes at every disk operation, and random lives of a log: nothing acknowledged is lost, nothing that a recovery did not show
//! comes back. Every mutant must be caught.

use crate::harness::{A, B, C, Mailbox, Node, small};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use surefoot_env::Step;
use surefoot_env::sim::{Rng, SimDisk};
use surefoot_log::local::{Error, Mutant, Options};
use surefoot_log::{Entry, Log, Room};
use surefoot_model::{Epoch, Lsn, PartitionId};

/// What is known from outside about one partition.
#[derive(Default)]
struct Known {
    /// Shown to a sink or by a recovery: must be there until it is trimmed.
    shown: BTreeMap<u64, Bytes>,
    trimmed: u64,
}

/// The outside view over all lives of one disk.
#[derive(Default)]
struct Judge {
    known: BTreeMap<PartitionId, Known>,
    /// Appended in a life that is over and not shown by the recovery after it: must never be seen again.
    gone: BTreeSet<Bytes>,
    appended: BTreeSet<Bytes>,
    /// Appended from outside, and small enough to come in one piece.
    outside: BTreeSet<Bytes>,
    told: Arc<Mutex<Vec<(PartitionId, u64)>>>,
    submitted: u64,
}

impl Judge {
    fn payload(&mut self, bytes: usize) -> Bytes {
        self.submitted += 1;
        let mut payload = self.submitted.to_le_bytes().to_vec();
        payload.resize(bytes.max(8), self.submitted as u8);
        let payload = Bytes::from(payload);
        self.appended.insert(payload.clone());
        payload
    }

    fn delivered(&mut self, mailbox: &Mailbox, room: Room) -> Result<(), String> {
        for entry in mailbox.take().concat() {
            let may_be = room == Room::Enough || !self.outside.contains(&entry.payload);
            check(may_be, || format!("{} of {} came from outside, and into the reserve", entry.lsn, entry.partition))?;
            let shown = &mut self.known.entry(entry.partition).or_default().shown;
            let next = shown.last_key_value().map_or(1, |(lsn, _)| lsn + 1);
            check(entry.lsn.0 == next, || format!("{} was delivered, {next} was due", entry.lsn))?;
            shown.insert(entry.lsn.0, entry.payload);
        }
        for (partition, lsn) in std::mem::take(&mut *self.told.lock().unwrap()) {
            let last = self.last(partition);
            check(lsn <= last, || format!("a caller heard of {lsn}, its sink of {last}"))?;
        }
        Ok(())
    }

    fn last(&self, partition: PartitionId) -> u64 {
        self.known.get(&partition).and_then(|k| k.shown.last_key_value()).map_or(0, |(lsn, _)| *lsn)
    }

    fn recovered(&mut self, node: &Node) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for partition in [A, B, C] {
            let entries: Vec<&Entry> = node.recovered.iter().filter(|e| e.partition == partition).collect();
            let bounds = node.recovery.bounds(partition);
            let known = self.known.entry(partition).or_default();
            let applied = known.shown.last_key_value().map_or(0, |(lsn, _)| *lsn);
            check(applied < bounds.next.0, || format!("{applied} of partition {partition} is lost: {bounds:?}"))?;
            node.recovery.check(partition, Lsn(known.trimmed)).map_err(|e| e.to_string())?;
            let lsns: Vec<u64> = entries.iter().map(|e| e.lsn.0).collect();
            check(lsns == (bounds.first.0..bounds.next.0).collect::<Vec<_>>(), || format!("{lsns:?} within {bounds:?}"))?;
            for entry in entries {
                check(!self.gone.contains(&entry.payload), || format!("{} of {partition} came back", entry.lsn))?;
                check(self.appended.contains(&entry.payload), || "an entry that nobody appended".to_owned())?;
                let before = known.shown.insert(entry.lsn.0, entry.payload.clone());
                let same = before.is_none_or(|before| before == entry.payload);
                check(same, || format!("{} of {partition} is another entry now", entry.lsn))?;
                seen.insert(entry.payload.clone());
            }
        }
        let shown: BTreeSet<&Bytes> = self.known.values().flat_map(|k| k.shown.values()).collect();
        self.gone.extend(self.appended.iter().filter(|p| !seen.contains(*p) && !shown.contains(p)).cloned());
        self.appended = seen;
        Ok(())
    }

    fn append(&mut self, node: &Node, partition: PartitionId, sizes: &[usize]) {
        let payloads = sizes.iter().map(|bytes| self.payload(*bytes)).collect();
        let told = self.told.clone();
        node.log.append(partition, Epoch(1), payloads, Some(Box::new(move |lsn| told.lock().unwrap().push((partition, lsn.0)))));
    }

    fn append_from_outside(&mut self, node: &Node, partition: PartitionId, bytes: usize) {
        let payload = self.payload(bytes);
        self.outside.insert(payload.clone());
        node.log.append_from_outside(partition, Epoch(1), vec![payload], None);
    }

    fn trim(&mut self, node: &Node, partition: PartitionId, up_to: u64) {
        node.log.trim(partition, Lsn(up_to));
        let known = self.known.entry(partition).or_default();
        known.trimmed = known.trimmed.max(up_to);
    }
}

fn check(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}

fn options(mutant: Mutant) -> Options {
    Options { mutant, witness_bytes: 300, ..small() }
}

/// Several lives from one seed, each ended by a crash anywhere.
fn lives(seed: u64, mutant: Mutant) -> Result<u64, String> {
    let mut rng = Rng::new(seed);
    let disk = SimDisk::new();
    let mut judge = Judge::default();
    // In some runs all entries have one size, so that old frames and new ones lie at the same places.
    let fixed = seed.is_multiple_of(3);
    for life in 0..8 {
        let near = rng.below(3) == 0;
        disk.crash_at(1 + rng.below(if near { 12 } else { 200 }));
        if life == 7 {
            disk.crash_at(u64::MAX);
        }
        // Now and then an operation fails on a machine that goes on: the process ends, and the next one meets the same cache.
        let fails = rng.below(4) == 0;
        if fails {
            disk.fail_at(1 + rng.below(120));
        }
        let mut node = match Node::start_with(&disk, options(mutant)) {
            Ok(node) => node,
            Err(_) if disk.is_dead() => {
                end(&disk, &mut rng);
                continue;
            }
            Err(Error::Io { .. }) if fails => {
                disk.process_kill();
                continue;
            }
            Err(error) => return Err(format!("refused: {error}")),
        };
        judge.recovered(&node)?;
        // Now and then the disk is full for a spell. That ends nothing.
        let shorts = rng.below(3) == 0;
        for _ in 0..rng.below(600) {
            if shorts && rng.below(30) == 0 {
                let full = rng.below(2) == 0;
                disk.set_capacity(if full { disk.bytes_used() + rng.below(2) * 1024 } else { u64::MAX });
            }
            let partition = [A, A, B, C][rng.below(4) as usize];
            match rng.below(12) {
                0..3 => {
                    let large = rng.below(20) == 0;
                    let count = if fixed { 1 } else { rng.below(4) };
                    let mut size = || if fixed { 80 } else { rng.below(if large { 3000 } else { 150 }) as usize };
                    let sizes: Vec<usize> = (0..count).map(|_| size()).collect();
                    judge.append(&node, partition, &sizes);
                }
                3 => {
                    let up_to = judge.last(partition).saturating_sub(rng.below(6));
                    judge.trim(&node, partition, up_to);
                }
                4 if !fixed => judge.append_from_outside(&node, partition, rng.below(150) as usize),
                4..6 => _ = node.filler.step(),
                _ => _ = node.writer.step(),
            }
            if !fails && !disk.is_dead() && !node.fatal.lock().unwrap().is_empty() {
                return Err(format!("it ended for want of room: {:?}", node.fatal.lock().unwrap()));
            }
            if disk.is_dead() || !node.fatal.lock().unwrap().is_empty() {
                break;
            }
            // What was delivered has been seen by the world, unless the machine was down by then.
            judge.delivered(&node.mailbox, node.log.retained().room)?;
        }
        disk.set_capacity(u64::MAX);
        let has_failed = !node.fatal.lock().unwrap().is_empty();
        drop(node);
        judge.told.lock().unwrap().clear();
        if has_failed {
            disk.process_kill();
        } else {
            end(&disk, &mut rng);
        }
    }
    Ok(judge.submitted)
}

fn end(disk: &SimDisk, rng: &mut Rng) {
    if rng.below(3) == 0 {
        disk.process_kill();
    } else {
        disk.power_loss(rng);
    }
}

#[test]
fn random_lives_lose_nothing_and_resurrect_nothing() {
    let mut appended = 0;
    for seed in 0..3000 {
        appended += lives(seed, Mutant::None).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    assert!(appended > 100_000);
}

#[test]
fn the_same_seed_gives_the_same_lives() {
    for seed in 0..50 {
        assert_eq!(lives(seed, Mutant::SkipSync), lives(seed, Mutant::SkipSync));
    }
}

#[test]
fn every_mutant_is_caught() {
    const SEEDS: u64 = 300;
    // A hold is tried where there are backups, and what damage leaves where there is some.
    const ELSEWHERE: [Mutant; 3] = [Mutant::TrimHeld, Mutant::TakeShort, Mutant::ForgetWitness];
    for mutant in Mutant::ALL.into_iter().skip(1).filter(|mutant| !ELSEWHERE.contains(mutant)) {
        let caught: Vec<u64> = (0..SEEDS).filter(|seed| lives(*seed, mutant).is_err()).collect();
        let how = caught.first().map(|seed| lives(*seed, mutant).unwrap_err());
        println!("{mutant:?}: {} of {SEEDS} seeds, first {:?}: {how:?}", caught.len(), caught.first());
        assert!(!caught.is_empty(), "{mutant:?} was not caught");
    }
}

/// One fixed life with everything in it: segments that fill, are prepared, trimmed and used again, large entries, idle times.
fn script(node: &mut Node, judge: &mut Judge) -> Result<(), String> {
    for round in 0..6 {
        for (partition, sizes) in [(A, &[100, 60][..]), (B, &[30]), (A, &[900]), (C, &[10, 10, 10]), (A, &[200])] {
            judge.append(node, partition, sizes);
            for _ in 0..3 {
                node.writer.step();
            }
            node.filler.step();
            if node.disk.is_dead() {
                return Ok(());
            }
            judge.delivered(&node.mailbox, node.log.retained().room)?;
        }
        while !matches!(node.writer.step(), Step::Idle | Step::Done) {}
        if node.disk.is_dead() {
            return Ok(());
        }
        judge.delivered(&node.mailbox, node.log.retained().room)?;
        for partition in [A, B, C] {
            judge.trim(node, partition, judge.last(partition) - u64::from(round % 2 == 0));
        }
        while node.filler.step() == Step::Worked {}
    }
    Ok(())
}

#[test]
fn a_crash_at_any_disk_operation_loses_nothing() {
    for (crash, after) in (1..).map(|crash| (crash, Rng::new(crash))) {
        let (disk, mut judge, mut rng) = (SimDisk::new(), Judge::default(), after);
        disk.crash_at(crash);
        if let Ok(mut node) = Node::start(&disk) {
            judge.recovered(&node).unwrap();
            script(&mut node, &mut judge).unwrap();
        }
        if !disk.is_dead() {
            assert!(crash > 120, "the script has many operations, not {crash}");
            return;
        }
        judge.told.lock().unwrap().clear();
        // Several outcomes of this power loss; in each, recovery is itself cut short at each of its operations.
        for outcome in 0..6 {
            let lost = disk.fork();
            match outcome {
                0 => lost.lose_power(&mut |_| false),
                1 => lost.lose_power(&mut |_| true),
                2 => lost.process_kill(),
                _ => lost.power_loss(&mut rng),
            }
            for again in 1.. {
                let disk = lost.fork();
                disk.crash_at(again);
                let whole = Node::start(&disk).is_ok();
                disk.power_loss(&mut rng);
                let node = Node::start(&disk).unwrap_or_else(|e| panic!("crash {crash}, outcome {outcome}, {again}: {e}"));
                let shown = judge.known.iter().map(|(p, k)| (*p, Known { shown: k.shown.clone(), trimmed: k.trimmed })).collect();
                let mut judge = Judge { known: shown, appended: judge.appended.clone(), ..Judge::default() };
                judge.recovered(&node).unwrap_or_else(|e| panic!("crash {crash}, outcome {outcome}, {again}: {e}"));
                if whole {
                    break;
                }
            }
        }
    }
}
