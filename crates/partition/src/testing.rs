//! What the tests of the parts share: a store over an engine in memory, and rows as the machine writes them.
//!
//! Owns: the shortest way to such rows. Does not own: rules; a test that needs the machine applies records.

use bytes::Bytes;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use surefoot_env::Wake;
use surefoot_machine::{Invocations, Journal, JournalKey, Running, State};
use surefoot_model::{
    Active, Attempt, Entry, Epoch, Incarnation, Invocation, InvocationId, Origin, PartitionId, Progress, Retention, Stage,
    Target, TargetKind, Timestamp, entry_type,
};
use surefoot_storage::{MemEngine, Store, Txn};

pub(crate) const HERE: PartitionId = PartitionId(0);

pub(crate) fn empty_store() -> Store {
    Store::open(Arc::new(MemEngine::new()), HERE).unwrap()
}

/// Writes as one record does.
pub(crate) fn write(store: &mut Store, rows: impl FnOnce(&mut Txn<'_>)) {
    let lsn = store.applied().next();
    let mut transaction = store.begin();
    rows(&mut transaction);
    transaction.commit(lsn);
}

/// Moves everything from memory into the engine.
pub(crate) fn checkpoint(store: &mut Store) {
    let done = store.freeze().unwrap().run().unwrap();
    store.checkpointed(done);
}

pub(crate) fn id(unique: u128) -> InvocationId {
    InvocationId { partition_key: 1, unique }
}

/// A running invocation whose journal holds so many entries.
pub(crate) fn write_running(txn: &mut Txn<'_>, id: InvocationId, attempt: Attempt, journal_len: u32) {
    txn.put::<Running>(id, attempt);
    txn.put::<Invocations>(id, invocation(active(attempt, journal_len)));
    for index in 0..journal_len {
        txn.put::<Journal>(JournalKey { id, index }, command(index));
    }
}

pub(crate) fn command(index: u32) -> Entry {
    Entry::Command { ty: entry_type::INPUT, raw: Bytes::from(index.to_be_bytes().to_vec()) }
}

pub(crate) fn active(attempt: Attempt, journal_len: u32) -> Active {
    Active {
        progress: Progress::Running,
        attempt,
        journal_len,
        commands: journal_len,
        pin: None,
        open: Vec::new(),
        output: None,
        attempts_counted: 0,
        retries_since_entry: 0,
        last_entry_at: Timestamp(1),
        last_error: None,
        attempts_started: 1,
        journal_bytes: 0,
        counted_in: Epoch(1),
    }
}

pub(crate) fn invocation(active: Active) -> Invocation {
    Invocation {
        incarnation: Incarnation(1),
        target: Target::new(TargetKind::Service, "Greeter", "", "greet"),
        idempotency_key: None,
        origin: Origin::Ingress,
        created_at: Timestamp(1),
        modified_at: Timestamp(1),
        execute_at: None,
        retention: Retention::default(),
        random_seed: 7,
        waiters: Vec::new(),
        stage: Stage::Active(Box::new(active)),
    }
}

/// Whether somebody woke since this was last asked.
pub(crate) fn was_woken(wake: &Wake) -> bool {
    let woken = std::pin::pin!(wake.woken());
    matches!(woken.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()))
}
