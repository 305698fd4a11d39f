//! What the store costs: table operations of an echo invocation, cold reads, and checkpoints into the production engine.
//!
//! `cargo run -p surefoot-storage --example store_bench`; it writes to the system's directory for temporary files.

#![allow(clippy::print_stdout, reason = "a program for a terminal")]
#![allow(clippy::disallowed_methods, reason = "it measures the real clock")]

use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use surefoot_machine::*;
use surefoot_model::*;
use surefoot_storage::{Engine, FjallEngine, FjallOptions, MemEngine, Store};

fn main() {
    short_lives(MemEngine::new(), 200_000, 0);
    short_lives(MemEngine::new(), 200_000, 100_000);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let engine: Arc<dyn Engine> = Arc::new(FjallEngine::open(dir.path(), FjallOptions::default()).expect("a new database"));
    checkpoints(&engine);
    cold_reads(&engine);
    drop(engine);
    let start = Instant::now();
    let engine: Arc<dyn Engine> = Arc::new(FjallEngine::open(dir.path(), FjallOptions::default()).expect("the same database"));
    println!("open again: {:.1?}", start.elapsed());
    short_lives_over(engine, 100_000);
}

/// Invocations that begin and end between two checkpoints, beside as many others as `alive` says.
fn short_lives(engine: MemEngine, count: u64, alive: u64) {
    let mut store = Store::open(Arc::new(engine), PartitionId(0)).expect("a new engine");
    let mut lsn = Lsn(0);
    for n in 0..alive {
        begin(&mut store, &mut lsn, id_of(u64::MAX - n));
    }
    let elapsed = echo(&mut store, &mut lsn, 0, count);
    println!("echo beside {alive} alive, empty engine in memory: {}", per_operation(elapsed, count));
    println!("  layers hold {} KiB for {alive} alive", store.memory_bytes() / 1024);
}

fn short_lives_over(engine: Arc<dyn Engine>, count: u64) {
    let mut store = Store::open(engine, PartitionId(0)).expect("a database");
    let mut lsn = store.applied();
    let elapsed = echo(&mut store, &mut lsn, 1 << 40, count);
    println!("echo over a full database: {}", per_operation(elapsed, count));
}

fn per_operation(elapsed: Duration, count: u64) -> String {
    let (invocation, operation) = (elapsed / count as u32, elapsed / (count * OPERATIONS) as u32);
    format!("{invocation:.0?} per invocation, {operation:.0?} per table operation, clones included")
}

/// Table operations of [`begin`] and [`end`].
const OPERATIONS: u64 = 26;

fn echo(store: &mut Store, lsn: &mut Lsn, first: u64, count: u64) -> Duration {
    let start = Instant::now();
    for n in first..first + count {
        begin(store, lsn, id_of(n));
        end(store, lsn, id_of(n));
    }
    start.elapsed()
}

/// Submission: 12 operations.
fn begin(store: &mut Store, lsn: &mut Lsn, id: InvocationId) {
    let mut txn = store.begin();
    let mut meta = txn.get::<Meta>(&()).expect("readable").unwrap_or_default();
    meta.now = meta.now.max(Timestamp(1));
    txn.put::<Meta>((), meta.clone());
    assert!(txn.get::<Invocations>(&id).expect("readable").is_none());
    meta.last_incarnation.0 += 1;
    txn.put::<Meta>((), meta.clone());
    let input = Entry::Command { ty: entry_type::INPUT, raw: Bytes::from_static(&[0; 64]) };
    txn.insert::<Journal>(JournalKey { life: life_of(id), index: 0 }, input);
    let object = object_of(id);
    let mut row = txn.get::<Objects>(&object).expect("readable").unwrap_or_default();
    row.owner = Some(id);
    txn.put::<Objects>(object, row);
    meta.last_attempt.0 += 1;
    txn.put::<Meta>((), meta.clone());
    txn.insert::<Running>(running_of(id), id);
    txn.insert::<Invocations>(id, invocation());
    let again = txn.get::<Invocations>(&id).expect("readable").expect("just inserted");
    txn.put::<Invocations>(id, again);
    *lsn = lsn.next();
    txn.commit(*lsn);
}

/// The attempt's output and end: 14 operations.
fn end(store: &mut Store, lsn: &mut Lsn, id: InvocationId) {
    let mut txn = store.begin();
    let meta = txn.get::<Meta>(&()).expect("readable").expect("written at the beginning");
    txn.put::<Meta>((), meta);
    let mut row = txn.get::<Invocations>(&id).expect("readable").expect("it lives");
    row.modified_at = Timestamp(2);
    let output = Entry::Command { ty: entry_type::OUTPUT, raw: Bytes::from_static(&[0; 64]) };
    txn.insert::<Journal>(JournalKey { life: life_of(id), index: 1 }, output);
    txn.put::<Invocations>(id, row.clone());
    assert!(txn.get::<Running>(&running_of(id)).expect("readable").is_some());
    txn.delete::<Running>(&running_of(id));
    let object = object_of(id);
    assert!(txn.get::<Objects>(&object).expect("readable").is_some());
    txn.delete::<Objects>(&object);
    for index in 0..2 {
        assert!(txn.get::<Journal>(&JournalKey { life: life_of(id), index }).expect("readable").is_some());
        txn.delete::<Journal>(&JournalKey { life: life_of(id), index });
    }
    txn.put::<Invocations>(id, row);
    txn.delete::<Invocations>(&id);
    *lsn = lsn.next();
    txn.commit(*lsn);
}

fn checkpoints(engine: &Arc<dyn Engine>) {
    let mut store = Store::open(engine.clone(), PartitionId(0)).expect("a new engine");
    let mut lsn = Lsn(0);
    for round in 0..10 {
        // Four entries each: invocation, journal, attempt, key.
        for n in 0..25_000 {
            begin(&mut store, &mut lsn, id_of(round * 25_000 + n));
        }
        let layer_bytes = store.active_bytes();
        let mut checkpoint = store.freeze().expect("records were applied");
        let mut steps = Vec::new();
        let done = loop {
            let start = Instant::now();
            let done = checkpoint.step().expect("the disk holds");
            steps.push(start.elapsed());
            if let Some(done) = done {
                break done;
            }
        };
        let [encode, commit, flush] = steps[..] else { unreachable!("three steps") };
        println!(
            "checkpoint of {} entries, {} KiB (layer {} KiB): encode {encode:.1?}, commit {commit:.1?}, flush {flush:.1?}",
            done.operations,
            done.bytes / 1024,
            layer_bytes / 1024,
        );
        let start = Instant::now();
        store.checkpointed(done);
        println!("  retire {:.1?}", start.elapsed());
    }
}

fn cold_reads(engine: &Arc<dyn Engine>) {
    const READS: u64 = 100_000;
    let mut store = Store::open(engine.clone(), PartitionId(0)).expect("a database");
    let reader = store.read();
    let start = Instant::now();
    for n in 0..READS {
        assert!(reader.get::<Invocations>(&id_of(n * 7919 % 250_000)).expect("readable").is_some());
    }
    println!("cold hit: {:.1?}", start.elapsed() / READS as u32);
    let start = Instant::now();
    for n in 0..READS {
        assert!(reader.get::<Invocations>(&id_of(1_000_000 + n)).expect("readable").is_none());
    }
    println!("cold miss: {:.1?}", start.elapsed() / READS as u32);
    let start = Instant::now();
    let found = reader.scan::<Running>(&FIRST_RUNNING, None, 250_000).expect("readable");
    println!("scan: {:.1?} per entry of {}", start.elapsed() / found.len() as u32, found.len());
    // Deletes everything of half of them, and looks for the first that is left.
    let mut lsn = store.applied();
    for chunk in found[..125_000].chunks(1000) {
        let mut txn = store.begin();
        for (key, _) in chunk {
            txn.delete::<Running>(key);
        }
        lsn = lsn.next();
        txn.commit(lsn);
    }
    let done = store.freeze().expect("records were applied").run().expect("the disk holds");
    store.checkpointed(done);
    let scan_head = |store: &Store, what: &str| {
        let start = Instant::now();
        let first = store.read().scan::<Running>(&FIRST_RUNNING, None, 1).expect("readable");
        assert_eq!(first.len(), 1);
        println!("head after 125,000 tombstones, {what}: {:.1?}", start.elapsed());
    };
    scan_head(&store, "at once");
    std::thread::sleep(Duration::from_secs(2));
    store.refresh();
    scan_head(&store, "two seconds later");
}

fn id_of(n: u64) -> InvocationId {
    // Spread as hashes are.
    let spread = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    InvocationId { partition_key: spread, unique: u128::from(spread.rotate_left(32)) << 64 | u128::from(n) }
}

/// Its life and its attempt have the number that it was made of.
fn life_of(id: InvocationId) -> Incarnation {
    Incarnation(id.unique as u64)
}

fn running_of(id: InvocationId) -> RunningKey {
    RunningKey { class: AttemptClass::Fresh, turn: id.unique as u64 }
}

const FIRST_RUNNING: RunningKey = RunningKey { class: AttemptClass::Needed, turn: 0 };

fn object_of(id: InvocationId) -> ObjectKey {
    ObjectKey { service: "Cart".into(), key: format!("customer-{}", id.partition_key).into() }
}

fn invocation() -> Invocation {
    Invocation {
        incarnation: Incarnation(4),
        target: Target::new(TargetKind::Service, "Echo", "", "echo"),
        idempotency_key: None,
        origin: Origin::Ingress,
        created_at: Timestamp(1),
        modified_at: Timestamp(1),
        execute_at: None,
        retention: Retention::default(),
        random_seed: 77,
        waiters: 0,
        stage: Stage::Active(Box::new(Active {
            progress: Progress::Running,
            attempt: Attempt(1),
            journal_len: 1,
            commands: 1,
            pin: None,
            open: 0,
            opened_up_to: 0,
            output: None,
            attempts_counted: 1,
            counted_in: Epoch(1),
            turn: 1,
            retries_since_entry: 0,
            last_entry_at: Timestamp(1),
            last_error: None,
            attempts_started: 1,
            journal_bytes: 64,
            class: AttemptClass::Fresh,
        })),
    }
}
