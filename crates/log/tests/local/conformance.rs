//! What every log promises, whatever it is made of. A second implementation joins by implementing `World`.

use crate::harness::{A, B, C, Node};
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use surefoot_env::sim::SimDisk;
use surefoot_log::{Entry, Log};
use surefoot_model::{Epoch, Lsn, PartitionId};

/// A log with one sink for the partitions A, B and C.
trait World {
    fn start() -> Self;
    fn log(&self) -> &dyn Log;
    /// Runs until everything appended is durable; what the sink was given, by call.
    fn run(&mut self) -> Vec<Vec<Entry>>;
    /// Stops and starts again; what the log then replays.
    fn restart(self) -> (Self, Vec<Entry>)
    where
        Self: Sized;
}

struct Local(Node);

impl World for Local {
    fn start() -> Self {
        Self(Node::start(&SimDisk::new()).unwrap())
    }

    fn log(&self) -> &dyn Log {
        &self.0.log
    }

    fn run(&mut self) -> Vec<Vec<Entry>> {
        self.0.settle();
        self.0.mailbox.take()
    }

    fn restart(self) -> (Self, Vec<Entry>) {
        self.0.disk.lose_power(&mut |_| false);
        let mut node = Node::start(&self.0.disk).unwrap();
        let entries = std::mem::take(&mut node.recovered);
        (Self(node), entries)
    }
}

fn append(world: &impl World, partition: PartitionId, epoch: u32, payloads: &[&'static str]) {
    world.log().append(partition, Epoch(epoch), payloads.iter().map(|p| Bytes::from_static(p.as_bytes())).collect(), None);
}

fn lsns(entries: &[Entry], partition: PartitionId) -> Vec<u64> {
    entries.iter().filter(|e| e.partition == partition).map(|e| e.lsn.0).collect()
}

fn entries_come_in_order_with_dense_lsns_and_again_after_a_restart<W: World>() {
    let mut world = W::start();
    append(&world, A, 1, &["a1", "a2"]);
    append(&world, C, 4, &["c1"]);
    append(&world, A, 1, &["a3"]);
    let mut live = world.run().concat();
    append(&world, A, 2, &["a4"]);
    append(&world, B, 1, &[""]);
    live.extend(world.run().concat());
    assert_eq!((lsns(&live, A), lsns(&live, B), lsns(&live, C)), (vec![1, 2, 3, 4], vec![1], vec![1]));
    assert_eq!(live.iter().map(|e| e.epoch.0).collect::<Vec<_>>(), [1, 1, 4, 1, 2, 1]);
    let (mut world, again) = world.restart();
    assert_eq!(again, live);
    append(&world, A, 3, &["a5"]);
    assert_eq!(lsns(&world.run().concat(), A), [5]);
}

fn callers_are_told_the_last_lsn_after_the_sink_was<W: World>() {
    let mut world = W::start();
    let told = Arc::new(Mutex::new(Vec::new()));
    for payloads in [vec!["a1", "a2"], vec![], vec!["a3"]] {
        let told = told.clone();
        let payloads = payloads.into_iter().map(|p: &'static str| Bytes::from_static(p.as_bytes())).collect();
        world.log().append(A, Epoch(1), payloads, Some(Box::new(move |lsn: Lsn| told.lock().unwrap().push(lsn.0))));
    }
    assert!(told.lock().unwrap().is_empty());
    world.run();
    assert_eq!(*told.lock().unwrap(), [2, 2, 3], "an append without entries is a barrier");
}

fn what_becomes_durable_together_comes_in_one_call<W: World>() {
    let mut world = W::start();
    for _ in 0..3 {
        append(&world, A, 1, &["a"]);
        append(&world, B, 1, &["b"]);
    }
    let calls = world.run();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].iter().map(|e| e.partition).collect::<Vec<_>>(), [A, B, A, B, A, B]);
}

fn a_large_entry_comes_in_one_piece<W: World>() {
    let mut world = W::start();
    let large = Bytes::from(vec![7; 100_000]);
    append(&world, A, 1, &["before"]);
    world.log().append(A, Epoch(1), vec![large.clone(), Bytes::new()], None);
    append(&world, B, 1, &["other"]);
    let live = world.run().concat();
    assert_eq!((lsns(&live, A), lsns(&live, B)), (vec![1, 2, 3], vec![1]));
    assert_eq!(live[1].payload, large);
    let (_, again) = world.restart();
    assert_eq!(again, live);
}

fn trimmed_entries_may_go_and_lsns_go_on<W: World>() {
    let mut world = W::start();
    for _ in 0..40 {
        append(&world, A, 1, &["some payload that fills a segment bit by bit", "and another one of them"]);
        world.run();
    }
    world.log().trim(A, Lsn(79));
    world.run();
    let (mut world, again) = world.restart();
    assert_eq!(again.last().map(|e| e.lsn), Some(Lsn(80)), "what is not trimmed stays");
    assert_eq!(lsns(&again, A), (again[0].lsn.0..=80).collect::<Vec<_>>());
    append(&world, A, 1, &["next"]);
    assert_eq!(lsns(&world.run().concat(), A), [81]);
}

macro_rules! conformance {
    ($($name:ident),* $(,)?) => { mod local { $(#[test] fn $name() { super::$name::<super::Local>() })* } };
}

conformance!(
    entries_come_in_order_with_dense_lsns_and_again_after_a_restart,
    callers_are_told_the_last_lsn_after_the_sink_was,
    what_becomes_durable_together_comes_in_one_call,
    a_large_entry_comes_in_one_piece,
    trimmed_entries_may_go_and_lsns_go_on,
);
