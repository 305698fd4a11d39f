//! What a store promises, case by case: which deletions leave a tombstone, what a checkpoint writes, how errors read.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod samples;

use bytes::Bytes;
use samples::{Each, every_table, id, invocation};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use surefoot_machine::{
    CatalogKey, CatalogRow, CatalogRows, Inbound, Invocations, Journal, JournalKey, Running, RunningKey, State, Table,
};
use surefoot_model::{AttemptClass, Entry, Incarnation, Lsn, PartitionId, StreamId, SubscriptionId};
use surefoot_storage::{
    Batch, Checkpoint, Checkpointed, Engine, Failure, MemEngine, Mutant, RawEntry, Reader, Store, Txn, View, keys,
};

const PARTITION: PartitionId = PartitionId(0);
const KEY: PartitionId = PartitionId(5);

fn open(engine: &MemEngine) -> Store {
    Store::open(Arc::new(engine.clone()), PARTITION).unwrap()
}

/// Applies the next record.
fn record(store: &mut Store, write: impl FnOnce(&mut One)) {
    let lsn = store.applied().next();
    let mut one = One(store.begin());
    write(&mut one);
    let One(txn) = one;
    txn.commit(lsn);
}

/// A record's view of a single entry.
struct One<'a>(Txn<'a>);

impl One<'_> {
    fn put(&mut self, value: u64) {
        self.0.put::<Inbound>(KEY, value);
    }

    fn insert(&mut self, value: u64) {
        self.0.insert::<Inbound>(KEY, value);
    }

    fn delete(&mut self) {
        self.0.delete::<Inbound>(&KEY);
    }

    fn get(&self) -> Option<u64> {
        self.0.get::<Inbound>(&KEY).unwrap()
    }
}

fn value(store: &Store) -> Option<u64> {
    store.read().get::<Inbound>(&KEY).unwrap()
}

/// Takes a checkpoint and tells how many entries it wrote or deleted.
fn checkpoint(store: &mut Store) -> usize {
    let done = store.freeze().expect("records were applied").run().unwrap();
    let operations = done.operations - 1;
    store.checkpointed(done);
    operations
}

#[test]
fn a_store_moves_to_its_worker_and_a_checkpoint_to_its_own_thread() {
    fn is_send<T: Send>() {}
    is_send::<Store>();
    is_send::<Checkpoint>();
    is_send::<Checkpointed>();
}

#[test]
fn a_short_life_costs_no_disk_write() {
    let mut store = open(&MemEngine::new());
    record(&mut store, |s| s.insert(1));
    record(&mut store, |s| s.put(2));
    assert!(store.active_bytes() > 0);
    record(&mut store, |s| s.delete());
    assert_eq!((store.active_bytes(), value(&store)), (0, None));
    assert_eq!(checkpoint(&mut store), 0);
    assert_eq!(store.checkpointed_lsn(), Lsn(3));
}

#[test]
fn a_put_after_a_get_that_found_nothing_counts_as_an_insert() {
    let mut store = open(&MemEngine::new());
    record(&mut store, |s| {
        assert_eq!(s.get(), None);
        s.put(1);
    });
    record(&mut store, |s| s.delete());
    assert_eq!(checkpoint(&mut store), 0);
    record(&mut store, |s| s.put(1));
    checkpoint(&mut store);
    // What was found missing before another record wrote it is not missing any more.
    record(&mut store, |s| s.delete());
    record(&mut store, |s| {
        assert_eq!(s.get(), None);
        s.put(2);
    });
    record(&mut store, |s| s.delete());
    assert_eq!(checkpoint(&mut store), 1);
    assert_eq!(value(&store), None);
}

#[test]
fn a_life_within_one_record_leaves_nothing() {
    let mut store = open(&MemEngine::new());
    record(&mut store, |s| {
        s.insert(1);
        s.delete();
        s.insert(2);
        assert_eq!(s.get(), Some(2));
        s.delete();
        assert_eq!(s.get(), None);
    });
    assert_eq!(store.active_bytes(), 0);
    assert_eq!(checkpoint(&mut store), 0);
}

#[test]
fn what_the_running_checkpoint_writes_is_deleted_with_a_tombstone() {
    let engine = MemEngine::new();
    let mut store = open(&engine);
    record(&mut store, |s| s.insert(1));
    let running = store.freeze().unwrap();
    record(&mut store, |s| s.delete());
    assert_eq!(value(&store), None);
    store.checkpointed(running.run().unwrap());
    assert_eq!(value(&store), None);
    assert_eq!(checkpoint(&mut store), 1);
    assert_eq!(value(&store), None);
    assert_eq!(value(&open(&engine.restart())), None);
}

#[test]
fn what_is_inserted_over_a_tombstone_leaves_one_again() {
    let engine = MemEngine::new();
    let mut store = open(&engine);
    record(&mut store, |s| s.insert(1));
    checkpoint(&mut store);
    record(&mut store, |s| s.delete());
    record(&mut store, |s| s.insert(2));
    record(&mut store, |s| s.delete());
    assert_eq!(checkpoint(&mut store), 1);
    assert_eq!(value(&open(&engine.restart())), None);
}

#[test]
fn over_a_frozen_tombstone_a_short_life_may_vanish() {
    let engine = MemEngine::new();
    let mut store = open(&engine);
    record(&mut store, |s| s.insert(1));
    checkpoint(&mut store);
    record(&mut store, |s| s.delete());
    let running = store.freeze().unwrap();
    record(&mut store, |s| s.insert(2));
    record(&mut store, |s| s.delete());
    assert_eq!(value(&store), None);
    store.checkpointed(running.run().unwrap());
    assert_eq!(value(&store), None);
    assert_eq!(checkpoint(&mut store), 0);
    assert_eq!(value(&open(&engine.restart())), None);
}

#[test]
fn a_record_that_fails_leaves_no_trace() {
    let mut store = open(&MemEngine::new());
    record(&mut store, |s| s.insert(1));
    let mut txn = store.begin();
    txn.put::<Inbound>(KEY, 2);
    assert_eq!(txn.get::<Inbound>(&KEY).unwrap(), Some(2));
    drop(txn);
    assert_eq!((value(&store), store.applied()), (Some(1), Lsn(1)));
    // Nor does what it looked for.
    let mut txn = store.begin();
    let other = PartitionId(6);
    assert_eq!(txn.get::<Inbound>(&other).unwrap(), None);
    txn.insert::<Inbound>(other, 7);
    drop(txn);
    record(&mut store, |s| s.put(3));
    assert_eq!(value(&store), Some(3));
}

#[test]
fn one_checkpoint_at_a_time_and_none_for_nothing() {
    let mut store = open(&MemEngine::new());
    assert!(store.freeze().is_none());
    record(&mut store, |s| s.insert(1));
    let running = store.freeze().unwrap();
    assert!(store.checkpoint_is_running() && store.memory_bytes() > store.active_bytes());
    record(&mut store, |s| s.put(2));
    assert!(store.freeze().is_none());
    store.checkpointed(running.run().unwrap());
    assert_eq!((store.checkpointed_lsn(), store.applied()), (Lsn(1), Lsn(2)));
    assert_eq!(store.memory_bytes(), store.active_bytes());
    checkpoint(&mut store);
    assert!(store.freeze().is_none());
}

#[test]
fn partitions_do_not_see_each_other() {
    let engine = MemEngine::new();
    let mut stores =
        [PartitionId(0), PartitionId(1), PartitionId::CATALOG].map(|p| Store::open(Arc::new(engine.clone()), p).unwrap());
    for (n, store) in stores.iter_mut().enumerate() {
        for _ in 0..=n {
            record(store, |s| s.put(n as u64));
        }
        checkpoint(store);
    }
    for (n, store) in stores.iter_mut().enumerate() {
        *store = Store::open(Arc::new(engine.clone()), store.partition()).unwrap();
        assert_eq!(store.applied(), Lsn(n as u64 + 1));
        assert_eq!(store.read().scan::<Inbound>(&PartitionId(0), None, 9).unwrap(), [(KEY, n as u64)]);
    }
}

#[test]
fn a_log_with_a_gap_is_refused() {
    let mut store = open(&MemEngine::new());
    for n in 1..=10 {
        record(&mut store, |s| s.put(n));
    }
    // What was applied since the tables were opened came from the log itself and vouches for nothing.
    assert!(store.check_log(Lsn(2), Lsn(11)).is_err());
    checkpoint(&mut store);
    store.check_next(Lsn(11)).unwrap();
    let error = store.check_next(Lsn(12)).unwrap_err().to_string();
    assert!(error.contains("applied up to record 10 but its log begins at 12"), "{error}");
    store.check_log(Lsn(1), Lsn(11)).unwrap();
    store.check_log(Lsn(11), Lsn(11)).unwrap();
    store.check_log(Lsn(11), Lsn(20)).unwrap();
    let error = store.check_log(Lsn(12), Lsn(20)).unwrap_err().to_string();
    assert!(error.contains("applied up to record 10 but its log begins at 12"), "{error}");
    let error = store.check_log(Lsn(1), Lsn(10)).unwrap_err().to_string();
    assert!(error.contains("applied up to record 10 but its log ends before 10"), "{error}");
}

#[test]
fn what_does_not_decode_names_table_and_key() {
    let engine = MemEngine::new();
    let mut batch = Batch::default();
    let (stored, other) = (keys::entry::<Invocations>(PARTITION, &id()), keys::prefix(PARTITION, Running::TAG));
    batch.put(|key| key.extend_from_slice(&stored), |value| value.extend_from_slice(&[1, 0xFF]));
    batch.put(|key| key.extend_from_slice(&other), |_| {});
    engine.commit(&batch).unwrap();
    let store = open(&engine);
    let error = store.read().get::<Invocations>(&id()).unwrap_err().to_string();
    assert!(error.starts_with("table invocations: at InvocationId { partition_key: 72623859790382856"), "{error}");
    let error = store.read().scan::<Invocations>(&id(), None, 1).unwrap_err().to_string();
    assert!(error.starts_with("table invocations: at "), "{error}");
    let first = RunningKey { class: AttemptClass::Needed, turn: 0 };
    assert_eq!(store.read().scan::<Running>(&first, None, 9).unwrap(), [], "it lies before every key");
    let error = keys::read_entry::<Running>(&other).unwrap_err().to_string();
    assert_eq!(error, "table running: no key of this table: 000009");
    // Memory hides what lies below, readable or not.
    let mut store = store;
    let mut txn = store.begin();
    txn.put::<Invocations>(id(), invocation());
    assert_eq!(txn.get::<Invocations>(&id()).unwrap(), Some(invocation()));
    let first = surefoot_model::InvocationId { partition_key: 0, unique: 0 };
    assert_eq!(txn.scan::<Invocations>(&first, None, 9).unwrap().len(), 1);
}

#[test]
fn a_key_that_no_engine_takes_stops_the_checkpoint() {
    let mut store = open(&MemEngine::new());
    let mut txn = store.begin();
    let name = "x".repeat(keys::KEY_BYTES_MAX - 6);
    txn.put::<CatalogRows>(CatalogKey::KafkaCluster(name.as_str().into()), CatalogRow::Position(1));
    txn.commit(Lsn(1));
    assert_eq!(checkpoint(&mut store), 1);
    let mut txn = store.begin();
    txn.put::<CatalogRows>(CatalogKey::KafkaCluster((name + "x").into()), CatalogRow::Position(1));
    txn.commit(Lsn(2));
    let Err(error) = store.freeze().unwrap().run() else { panic!("stored") };
    assert_eq!(error.to_string(), "a key of 65532 bytes; at most 65531 can be stored");
}

#[test]
fn a_checkpoint_that_found_no_room_goes_on_once_there_is() {
    let engine = MemEngine::new();
    let mut store = open(&engine);
    record(&mut store, |s| s.insert(1));
    let mut running = store.freeze().unwrap();
    engine.set_full(true);
    assert!(running.step().unwrap().is_none());
    let encoded = running.batch_bytes();
    for _ in 0..3 {
        let error = running.step().err().expect("the disk is full");
        assert!(Failure::of(&error) == Failure::Passing && running.batch_bytes() == encoded && encoded > 0);
    }
    record(&mut store, |s| s.put(2));
    engine.set_full(false);
    let done = running.run().unwrap();
    assert_eq!((done.operations, done.bytes), (2, encoded));
    store.checkpointed(done);
    assert_eq!((store.checkpointed_lsn(), value(&store)), (Lsn(1), Some(2)));
    assert_eq!(value(&open(&engine.restart())), Some(1));
}

/// A value that a handler had asked for many times lay in memory once, and in the checkpoint as often as it was asked for.
#[test]
fn a_checkpoint_does_not_copy_large_values_that_rows_share() {
    const ROWS: u32 = 16;
    let value = Bytes::from(vec![7; 1 << 20]);
    let key = |index| JournalKey { life: Incarnation(1), index };
    let entry = Entry::Command { ty: 1, raw: value };
    let engine = MemEngine::new();
    let mut store = open(&engine);
    let mut txn = store.begin();
    (0..ROWS).for_each(|index| txn.insert::<Journal>(key(index), entry.clone()));
    txn.commit(Lsn(1));
    let mut running = store.freeze().unwrap();
    assert!(running.step().unwrap().is_none());
    assert!(running.batch_bytes() < 16 << 10, "{} bytes", running.batch_bytes());
    store.checkpointed(running.run().unwrap());
    let reopened = open(&engine.restart());
    assert!((0..ROWS).all(|index| reopened.read().get::<Journal>(&key(index)).unwrap().as_ref() == Some(&entry)));
}

/// Whether a log that is trimmed behind this store's checkpoints loses something when a flush fails and power goes.
fn a_failed_flush_loses(mutant: Mutant) -> bool {
    let engine = MemEngine::new();
    let mut store = open(&engine).with_mutant(mutant);
    record(&mut store, |s| s.insert(1));
    let running = store.freeze().unwrap();
    engine.fail_flush_at(engine.flushes() + 1);
    match running.run() {
        Ok(done) => drop(store.checkpointed(done)),
        Err(error) => assert_eq!(Failure::of(&error), Failure::Engine),
    }
    store.checkpointed_lsn() > open(&engine.power_loss(0)).checkpointed_lsn()
}

#[test]
fn a_checkpoint_ends_with_a_flush_that_did_not_fail() {
    assert!(!a_failed_flush_loses(Mutant::None));
    assert!(a_failed_flush_loses(Mutant::IgnoreFailedFlush), "the check sees what it is for");
}

#[test]
fn long_scans_pass_over_what_memory_hides() {
    let mut store = open(&MemEngine::new());
    let mut txn = store.begin();
    for n in 0..2000 {
        txn.insert::<Inbound>(PartitionId(n), u64::from(n));
    }
    txn.commit(Lsn(1));
    checkpoint(&mut store);
    let mut txn = store.begin();
    for n in 0..1500 {
        txn.delete::<Inbound>(&PartitionId(n));
    }
    txn.put::<Inbound>(PartitionId(1700), 0);
    txn.commit(Lsn(2));
    let scan = |limit| store.read().scan::<Inbound>(&PartitionId(0), Some(&PartitionId(1990)), limit).unwrap();
    assert_eq!(scan(2), [(PartitionId(1500), 1500), (PartitionId(1501), 1501)]);
    let all = scan(usize::MAX);
    assert_eq!((all.len(), all[200]), (490, (PartitionId(1700), 0)));
}

/// An engine whose views count what is asked of them: points and ranges.
struct Asked {
    engine: MemEngine,
    counts: Arc<[AtomicUsize; 2]>,
}

struct AskedView {
    view: Arc<dyn View>,
    counts: Arc<[AtomicUsize; 2]>,
}

impl Engine for Asked {
    fn view(&self) -> Arc<dyn View> {
        Arc::new(AskedView { view: self.engine.view(), counts: self.counts.clone() })
    }

    fn commit(&self, batch: &Batch) -> io::Result<()> {
        self.engine.commit(batch)
    }

    fn flush(&self) -> io::Result<()> {
        self.engine.flush()
    }
}

impl View for AskedView {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.counts[0].fetch_add(1, Ordering::Relaxed);
        self.view.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize, bytes_max: usize) -> io::Result<Vec<RawEntry>> {
        self.counts[1].fetch_add(1, Ordering::Relaxed);
        self.view.scan(from, to, limit, bytes_max)
    }
}

#[test]
fn known_keys_in_memory_do_not_touch_the_engine_and_many_others_do_so_in_one_go() {
    let counts = Arc::new([const { AtomicUsize::new(0) }; 2]);
    let mut store = Store::open(Arc::new(Asked { engine: MemEngine::new(), counts: counts.clone() }), PARTITION).unwrap();
    let asked = |act: &mut dyn FnMut()| {
        counts.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        act();
        (counts[0].load(Ordering::Relaxed), counts[1].load(Ordering::Relaxed))
    };
    let write = |store: &mut Store, numbers: std::ops::Range<u16>| {
        let lsn = store.applied().next();
        let mut txn = store.begin();
        numbers.for_each(|n| txn.insert::<Inbound>(PartitionId(n), n.into()));
        txn.commit(lsn);
    };
    let read = |store: &Store, numbers: std::ops::Range<u16>| {
        let known = store.read().known::<Inbound, _>(numbers.clone().map(PartitionId), PartitionId(numbers.end));
        assert!(known.map(Result::unwrap).eq(numbers.map(|n| (PartitionId(n), Some(n.into())))));
    };
    write(&mut store, 0..100);
    assert_eq!(asked(&mut || read(&store, 0..100)), (0, 0));
    checkpoint(&mut store);
    write(&mut store, 100..200);
    assert_eq!(asked(&mut || read(&store, 98..200)), (2, 0));
    assert_eq!(asked(&mut || read(&store, 0..200)), (4, 1));
}

struct Put<'a, S>(&'a mut S);

impl<S: State> Each for Put<'_, S> {
    fn entry<T: Table>(&mut self, key: T::Key, value: T::Value) {
        self.0.insert::<T>(key, value);
    }
}

struct Expect<'a>(Reader<'a>);

impl Each for Expect<'_> {
    fn entry<T: Table>(&mut self, key: T::Key, value: T::Value) {
        assert_eq!(self.0.get::<T>(&key).unwrap().as_ref(), Some(&value));
        let found = self.0.scan::<T>(&key, None, 1).unwrap();
        assert_eq!(found, [(key, value)], "{}", T::NAME);
    }
}

/// Writes an entry of every table, and reads it from the active layer, the frozen one, the engine, and the engine opened anew.
fn every_table_reads_back(engine: Arc<dyn Engine>, again: impl FnOnce(Arc<dyn Engine>) -> Arc<dyn Engine>) {
    let mut store = Store::open(engine.clone(), PARTITION).unwrap();
    let mut txn = store.begin();
    every_table(&mut Put(&mut txn));
    txn.commit(Lsn(1));
    every_table(&mut Expect(store.read()));
    let running = store.freeze().unwrap();
    every_table(&mut Expect(store.read()));
    let done = running.run().unwrap();
    assert_eq!(done.operations, 28);
    store.checkpointed(done);
    assert_eq!(store.memory_bytes(), 0);
    every_table(&mut Expect(store.read()));
    drop(store);
    let store = Store::open(again(engine), PARTITION).unwrap();
    assert_eq!(store.applied(), Lsn(1));
    every_table(&mut Expect(store.read()));
}

#[test]
fn every_table_reads_back_from_memory() {
    let engine = MemEngine::new();
    let after = engine.clone();
    every_table_reads_back(Arc::new(engine), move |_| Arc::new(after.power_loss(0)));
}

#[cfg(feature = "fjall")]
#[test]
fn every_table_reads_back_from_fjall() {
    use surefoot_storage::{FjallEngine, FjallOptions};

    let dir = tempfile::tempdir().unwrap();
    let open = || Arc::new(FjallEngine::open(dir.path(), FjallOptions::default()).unwrap());
    every_table_reads_back(open(), |engine| {
        drop(engine);
        open()
    });
}

#[test]
fn memory_is_counted_to_zero_however_entries_go() {
    let mut store = open(&MemEngine::new());
    let stream = |n| StreamId { subscription: SubscriptionId(n), epoch: 0, topic: 0, partition: 0 };
    let invocation_of = |n: u128| surefoot_model::InvocationId { partition_key: 1, unique: n };
    let running_of = |n: u128| RunningKey { class: AttemptClass::Fresh, turn: n as u64 };
    for n in 0..100 {
        let mut txn = store.begin();
        txn.insert::<Invocations>(invocation_of(n), invocation());
        txn.insert::<Running>(running_of(n), invocation_of(n));
        txn.insert::<surefoot_machine::Streams>(stream(n), 1);
        txn.commit(Lsn(n as u64 + 1));
    }
    assert!(store.active_bytes() > 100 * size_of::<surefoot_model::Invocation>());
    for n in 0..100 {
        let mut txn = store.begin();
        let mut changed = invocation();
        changed.waiters = 0;
        txn.put::<Invocations>(invocation_of(n), changed);
        txn.delete::<Running>(&running_of(n));
        txn.delete::<surefoot_machine::Streams>(&stream(n));
        txn.commit(Lsn(2 * n as u64 + 101));
        let mut txn = store.begin();
        txn.delete::<Invocations>(&invocation_of(n));
        txn.commit(Lsn(2 * n as u64 + 102));
    }
    assert_eq!(store.active_bytes(), 0);
}
