//! What an attempt starts with beyond its row: its journal, and its key's state as far as that is sent along.
//!
//! Owns: reading both, all of one instant (rule M5), in steps. What lies in memory, or costs the engine little, the worker reads at
//! once; the rest is read from a view by a task of its own, so that no journal holds up other partitions. How many are read so, and
//! how many bytes, is bounded from before the first read. Of a large journal most is read while its attempt runs, as the handler takes it. Does
//! not own: slots and streams (`invoker`).

use crate::handle::Shared;
use crate::mailbox::Input;
use crate::views::Lent;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use surefoot_env::yield_now;
use surefoot_invoker::{Admission, AttemptStart, EagerState, Invoker, JournalRest, ReadEntries, ReplayBytes};
use surefoot_machine::{Journal, JournalKey, StateError, StateKey, StateRow, StateValues};
use surefoot_model::{Entry, Incarnation, Life, ObjectKey, PartitionId, Text};
use surefoot_storage::{Limit, Reader};
use tokio::sync::oneshot;

/// How far a step goes.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// Journal entries, and values of state.
    rows: usize,
    engine_reads: usize,
    /// Bytes that the engine gave beyond which it is not asked again.
    engine_bytes: usize,
}

/// What a worker does itself: tens of microseconds.
pub(crate) const ON_WORKER: Pace = Pace { rows: 256, engine_reads: 4, engine_bytes: 64 << 10 };
/// What a task does before others have their turn: about a millisecond.
const ON_VIEW: Pace = Pace { rows: 1_024, engine_reads: 512, engine_bytes: 1 << 20 };

/// Journal and state of one attempt, as far as they have been read.
pub(crate) struct Replay {
    life: Life,
    journal_len: u32,
    entries: Vec<Entry>,
    entry_bytes: u64,
    /// Beyond so many bytes the rest of the journal is read as the handler takes it, so that no journal has to fit into memory.
    part_bytes: u64,
    /// Which of the key's values are still to be read.
    unread: Option<UnreadValues>,
    state: EagerState,
    state_bytes: usize,
}

/// Whose state is sent along.
pub(crate) struct StateWish {
    pub(crate) object: ObjectKey,
    /// What the tables say of it, at the instant of the replay.
    pub(crate) row: Option<StateRow>,
    /// So many bytes of it at most.
    pub(crate) bytes_max: usize,
}

struct UnreadValues {
    object: ObjectKey,
    bytes_max: usize,
    row: StateRow,
    count: u32,
    /// The first of them has this name or a greater one.
    first: Text,
}

impl Replay {
    /// Without a wish no state is sent along.
    pub(crate) fn new(life: Life, journal_len: u32, wish: Option<StateWish>) -> Self {
        let state = EagerState { entries: Vec::new(), complete: wish.is_some() };
        let unread = wish.and_then(|StateWish { object, row, bytes_max }| {
            let row = row?;
            Some(UnreadValues { object, bytes_max, row, count: row.values, first: Text::default() })
        });
        Self { life, journal_len, entries: Vec::new(), entry_bytes: 0, part_bytes: u64::MAX, unread, state, state_bytes: 0 }
    }

    /// See [`crate::Settings`].
    pub(crate) fn in_parts_of(self, part_bytes: u64) -> Self {
        Self { part_bytes, ..self }
    }

    /// What it takes in memory at most while it is read, where its journal has so many payload bytes: a part may be all of that, as nobody
    /// knows how large the entry is that ends it.
    pub(crate) fn bytes(&self, journal_bytes: u64) -> u64 {
        let state = self.unread.as_ref().map_or(0, |unread| {
            let largest = u64::from(unread.row.value_bytes_max);
            // The one that does not fit is read, and not sent.
            unread.row.bytes().min(largest.saturating_add(unread.bytes_max as u64))
        });
        journal_bytes.saturating_add(u64::from(self.journal_len) * ENTRY_BYTES).saturating_add(state)
    }

    /// Reads on from the same instant as the steps before; whether that is all that an attempt begins with.
    pub(crate) fn step(&mut self, reader: &Reader<'_>, pace: Pace) -> Result<bool, StateError> {
        Ok(self.journal(reader, pace)? && self.state(reader, pace)?)
    }

    fn journal(&mut self, reader: &Reader<'_>, pace: Pace) -> Result<bool, StateError> {
        let (Life { id, incarnation: life }, end) = (self.life, self.journal_len);
        let keys = (self.entries.len() as u32..end).map(|index| JournalKey { life, index });
        let mut known = reader.known::<Journal, _>(keys, JournalKey { life, index: end }).asking_at_most(pace.engine_reads);
        for _ in 0..pace.rows {
            if self.entry_bytes >= self.part_bytes {
                break;
            }
            let Some(row) = known.next() else { break };
            let gap = || StateError { table: "journal", message: format!("{id} has a journal with gaps") };
            let entry = row?.1.ok_or_else(gap)?;
            self.entry_bytes += entry.bytes();
            self.entries.push(entry);
            if known.engine_bytes() >= pace.engine_bytes {
                break;
            }
        }
        Ok(self.entries.len() as u32 == end || self.entry_bytes >= self.part_bytes)
    }

    /// The key's values in the order of their names, as far as they fit.
    fn state(&mut self, reader: &Reader<'_>, pace: Pace) -> Result<bool, StateError> {
        let Some(unread) = &mut self.unread else { return Ok(true) };
        let (object, generation) = (&unread.object, unread.row.generation);
        let from = StateKey { object: object.clone(), generation, name: unread.first.clone() };
        let to = StateKey { object: object.clone(), generation: generation + 1, name: Text::default() };
        let count = unread.count as usize;
        let in_memory = if count <= pace.rows { reader.all_in_memory::<StateValues>(&from, &to, count) } else { None };
        let rows = match in_memory {
            Some(rows) => rows,
            None => {
                let limit = Limit { rows: pace.rows.min(count), bytes: pace.engine_bytes, looks: usize::MAX };
                reader.scan_within::<StateValues>(&from, Some(&to), limit)?.rows
            }
        };
        if rows.is_empty() && count > 0 {
            return Err(StateError {
                table: "state_values",
                message: format!("{object:?} has {count} values fewer than it says"),
            });
        }
        for (key, value) in rows {
            unread.count -= 1;
            unread.first = format!("{}\0", key.name).into();
            self.state_bytes += key.name.len() + value.bytes.len();
            if self.state_bytes > unread.bytes_max {
                self.state.complete = false;
                return Ok(true);
            }
            self.state.entries.push((key.name, value.bytes));
        }
        Ok(unread.count == 0)
    }

    /// Puts what was read where the attempt looks for it. What is left of the journal is to be read while it runs.
    pub(crate) fn hand_over(self, start: &mut AttemptStart) -> Option<UnreadJournal> {
        let left = self.left(start.partition);
        (start.replay, start.state) = (self.entries, self.state);
        left
    }

    fn left(&self, partition: PartitionId) -> Option<UnreadJournal> {
        let (life, next, end) = (self.life.incarnation, self.entries.len() as u32, self.journal_len);
        (next < end).then_some(UnreadJournal { partition, life, next, end, part_bytes: self.part_bytes })
    }
}

/// Entries of a journal that an attempt is to know at first and was not given yet. They were there when it was prepared, and are not changed: each
/// part may be read of an instant of its own (rule M5). They go once the invocation has ended, and its attempt does not count any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnreadJournal {
    partition: PartitionId,
    life: Incarnation,
    next: u32,
    end: u32,
    part_bytes: u64,
}

impl UnreadJournal {
    pub(crate) fn of(self, shared: &Arc<Shared>) -> Box<JournalRest> {
        let shared = shared.clone();
        let (entries, part_bytes) = (self.end - self.next, self.part_bytes);
        Box::new(JournalRest { entries, part_bytes, read: Box::new(move || Box::pin(self.read(shared))) })
    }

    async fn read(mut self, shared: Arc<Shared>) -> Option<ReadEntries> {
        let partition = self.partition;
        let (reply, receiver) = oneshot::channel();
        shared.mailbox(partition).push(Input::View { partition, reply });
        // The view of a partition that has stopped does not come.
        let view = receiver.await.ok()?;
        let entries = view.read(|reader| self.next(reader)).map_err(|error| shared.unreadable(partition, error)).ok()??;
        drop(view);
        let rest = (self.next < self.end).then(|| self.of(&shared));
        Some(ReadEntries { entries, rest })
    }

    /// The next entries; `None` where one is not there.
    fn next(&mut self, reader: &Reader<'_>) -> Result<Option<Vec<Entry>>, StateError> {
        let &mut Self { life, end, .. } = self;
        let keys = (self.next..end).map(|index| JournalKey { life, index });
        let known = reader.known::<Journal, _>(keys, JournalKey { life, index: end }).asking_at_most(ON_VIEW.engine_reads);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for row in known.take(ON_VIEW.rows) {
            let Some(entry) = row?.1 else { return Ok(None) };
            bytes += entry.bytes();
            entries.push(entry);
            if bytes >= self.part_bytes {
                break;
            }
        }
        self.next += entries.len() as u32;
        Ok(Some(entries))
    }
}

/// Replays that are read from views at a time.
const LOADS_MAX: usize = 16;
/// What an entry of a journal takes beside its payload.
const ENTRY_BYTES: u64 = size_of::<Entry>() as u64;

/// Replays of one worker that are being read from views.
pub(crate) struct LoadsInFlight {
    count: AtomicUsize,
    bytes: AtomicU64,
    /// One replay may pass it alone.
    bytes_max: u64,
}

/// One of them; gives its place and bytes back when dropped.
pub(crate) struct LoadTurn {
    loads: Arc<LoadsInFlight>,
    bytes: u64,
}

impl LoadsInFlight {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { count: AtomicUsize::new(0), bytes: AtomicU64::new(0), bytes_max }
    }

    /// Whether there is a turn for a replay of no size.
    pub(crate) fn has_turn(&self) -> bool {
        self.count.load(Ordering::Relaxed) < LOADS_MAX && self.bytes.load(Ordering::Relaxed) <= self.bytes_max
    }

    /// A turn for a replay of so many bytes; none while others take what there is. For one thread: only it takes turns, others give them
    /// back.
    pub(crate) fn try_take(self: &Arc<Self>, bytes: u64) -> Option<LoadTurn> {
        let count = self.count.load(Ordering::Relaxed);
        let fits = self.bytes.load(Ordering::Relaxed).saturating_add(bytes) <= self.bytes_max;
        if count >= LOADS_MAX || count > 0 && !fits {
            return None;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(LoadTurn { loads: self.clone(), bytes })
    }
}

impl Drop for LoadTurn {
    fn drop(&mut self) {
        self.loads.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.loads.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A replay that is read from a view.
pub(crate) struct Load {
    pub(crate) replay: Replay,
    pub(crate) start: AttemptStart,
    pub(crate) admission: Admission,
    /// What it takes counts from before it is read: others that have a place of their own would be read beside it.
    pub(crate) bytes: ReplayBytes,
    pub(crate) source: LoadSource,
}

/// What a replay is read from, and its turn to be. Dropped in this order, however the load ends: the end of the view wakes the
/// worker, which is to find the place and the bytes free.
pub(crate) struct LoadSource {
    #[expect(dead_code, reason = "held until it is dropped")]
    pub(crate) turn: LoadTurn,
    pub(crate) view: Lent,
}

impl Load {
    /// Reads the rest, and starts the attempt in the slot that was reserved for it. One that is aborted meanwhile finds its
    /// channel closed.
    pub(crate) async fn run(self, shared: Arc<Shared>, invoker: Arc<Invoker>) {
        let Self { mut replay, mut start, admission, bytes, source } = self;
        loop {
            match source.view.read(|reader| replay.step(reader, ON_VIEW)) {
                Ok(true) => break,
                // Given up here, the node is gone.
                Ok(false) => yield_now().await,
                Err(error) => {
                    shared.unreadable(start.partition, error);
                    drop((admission, bytes));
                    invoker.release();
                    shared.slot_freed();
                    return;
                }
            }
        }
        start.rest = replay.hand_over(&mut start).map(|left| left.of(&shared));
        invoker.start_read(start, admission, bytes);
        drop(source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use surefoot_machine::{State, StateValue, States};
    use surefoot_model::{Incarnation, InvocationId, Lsn, PartitionId};
    use surefoot_storage::{MemEngine, Store};

    const LIFE: Life = Life { id: InvocationId { partition_key: 1, unique: 2 }, incarnation: Incarnation(3) };
    const GENERATION: u64 = 4;
    const LOAD_BYTES_MAX: u64 = 64 << 20;

    fn object() -> ObjectKey {
        ObjectKey { service: "S".into(), key: "k".into() }
    }

    fn value(n: u32) -> Bytes {
        Bytes::from(vec![n as u8; 1_000])
    }

    /// A journal and the state of a key with so many entries and values, the first of each in the engine, the rest in memory.
    fn store(entries: u32, values: u32, in_engine: u32) -> Store {
        let mut store = Store::open(Arc::new(MemEngine::new()), PartitionId(0)).unwrap();
        let mut write = |numbers: std::ops::Range<u32>, lsn| {
            let mut txn = store.begin();
            for n in numbers {
                if n < entries {
                    txn.insert::<Journal>(
                        JournalKey { life: LIFE.incarnation, index: n },
                        Entry::Command { ty: 1, raw: value(n) },
                    );
                }
                if n < values {
                    let key = StateKey { object: object(), generation: GENERATION, name: format!("{n:05}").into() };
                    txn.insert::<StateValues>(key, StateValue { bytes: value(n) });
                }
            }
            if values > 0 {
                txn.put::<States>(object(), state_row(values));
            }
            txn.commit(Lsn(lsn));
            if lsn == 1 {
                let running = store.freeze().unwrap();
                store.checkpointed(running.run().unwrap());
            }
        };
        write(0..in_engine, 1);
        write(in_engine..entries.max(values), 2);
        store
    }

    fn state_row(values: u32) -> StateRow {
        StateRow { values, value_bytes: 1_000 * u64::from(values), value_bytes_max: 1_000, ..StateRow::empty(GENERATION) }
    }

    fn replay(entries: u32, store: &Store, bytes_max: usize) -> Replay {
        let row = store.read().get::<States>(&object()).unwrap();
        Replay::new(LIFE, entries, Some(StateWish { object: object(), row, bytes_max }))
    }

    fn check(replay: &Replay, entries: u32, values: u32) {
        assert!(replay.entries.iter().cloned().eq((0..entries).map(|n| Entry::Command { ty: 1, raw: value(n) })));
        assert!(replay.state.entries.iter().cloned().eq((0..values).map(|n| (format!("{n:05}").into(), value(n)))));
    }

    #[test]
    fn a_worker_reads_what_lies_in_memory_at_once() {
        let store = store(200, 100, 0);
        let mut replay = replay(200, &store, usize::MAX);
        assert!(replay.step(&store.read(), ON_WORKER).unwrap());
        check(&replay, 200, 100);
        assert!(replay.state.complete);
    }

    #[test]
    fn a_worker_asks_the_engine_for_little_and_leaves_the_rest_to_a_view() {
        let mut store = store(40, 1_500, 30);
        let mut replay = replay(40, &store, usize::MAX);
        assert!(!replay.step(&store.read(), ON_WORKER).unwrap());
        assert_eq!(replay.entries.len(), 4);
        let view = store.publish().unwrap();
        // What is written from now on is of another instant.
        let mut txn = store.begin();
        txn.delete::<States>(&object());
        txn.delete::<Journal>(&JournalKey { life: LIFE.incarnation, index: 39 });
        txn.commit(Lsn(3));
        let steps = (1..).find(|_| replay.step(&view.read(), ON_VIEW).unwrap()).unwrap();
        assert!(steps > 1, "it is bounded");
        check(&replay, 40, 1_500);
    }

    #[test]
    fn steps_of_any_length_read_the_same() {
        for in_engine in [0, 3, 20, 60] {
            let store = store(50, 60, in_engine);
            for (rows, engine_reads, engine_bytes) in [(1, 1, 1), (7, 2, 1), (3, 9, 5_000), (100, 100, 1), (100, 100, 1 << 20)] {
                let mut replay = replay(50, &store, usize::MAX);
                while !replay.step(&store.read(), Pace { rows, engine_reads, engine_bytes }).unwrap() {}
                check(&replay, 50, 60);
                assert!(replay.state.complete);
            }
        }
    }

    #[test]
    fn state_that_does_not_fit_is_sent_in_part_and_a_service_has_none() {
        let store = store(1, 10, 5);
        let mut replay = replay(1, &store, 4 * 1_005);
        assert!(replay.step(&store.read(), ON_VIEW).unwrap());
        check(&replay, 1, 4);
        assert!(!replay.state.complete);
        let mut stateless = Replay::new(LIFE, 1, None);
        assert!(stateless.step(&store.read(), ON_WORKER).unwrap());
        check(&stateless, 1, 0);
    }

    /// Six results of 31 MiB were all in memory until their handler had taken the last of them.
    #[test]
    fn an_attempt_begins_with_a_part_of_a_large_journal_and_the_rest_is_read_in_parts() {
        const ENTRIES: u32 = 5_000;
        const PART_BYTES: u64 = 200_000;
        for (in_engine, pace) in [(0, ON_WORKER), (2_000, ON_VIEW), (ENTRIES, ON_VIEW)] {
            let mut store = store(ENTRIES, 10, in_engine);
            let mut replay = replay(ENTRIES, &store, usize::MAX).in_parts_of(PART_BYTES);
            while !replay.step(&store.read(), pace).unwrap() {}
            assert!(replay.entry_bytes >= PART_BYTES && replay.entry_bytes < PART_BYTES + 1_000);
            assert_eq!(replay.state.entries.len(), 10, "of the same instant");
            let mut left = replay.left(PartitionId(0)).unwrap();
            for round in 0.. {
                // It goes on beside the attempt, and the key's state changes.
                let mut txn = store.begin();
                txn.put::<States>(object(), state_row(round));
                txn.commit(Lsn(3 + u64::from(round)));
                let view = store.publish().unwrap();
                let entries = left.next(&view.read()).unwrap().unwrap();
                let bytes: u64 = entries.iter().map(Entry::bytes).sum();
                assert!(!entries.is_empty() && bytes < PART_BYTES + 1_000);
                replay.entries.extend(entries);
                if left.next == left.end {
                    break;
                }
            }
            check(&replay, ENTRIES, 10);
            let mut txn = store.begin();
            txn.delete::<Journal>(&JournalKey { life: LIFE.incarnation, index: 4_999 });
            txn.commit(Lsn(1_000));
            let mut left = UnreadJournal { next: 4_998, ..left };
            assert_eq!(left.next(&store.read()).unwrap(), None, "it is gone");
        }
    }

    /// Sixteen journals of any size, or the state of sixteen keys, were in memory before the first of them counted.
    #[test]
    fn replays_that_are_read_from_views_count_from_before_they_are_read() {
        let loads = Arc::new(LoadsInFlight::new(LOAD_BYTES_MAX));
        let large = loads.try_take(LOAD_BYTES_MAX * 2).expect("one may pass the bound alone");
        assert!(loads.try_take(1).is_none() && !loads.has_turn());
        drop(large);
        let halves = [(); 2].map(|()| loads.try_take(LOAD_BYTES_MAX / 2).unwrap());
        assert!(loads.try_take(1).is_none());
        drop(halves);
        let small: Vec<_> = std::iter::from_fn(|| loads.try_take(1)).collect();
        assert_eq!(small.len(), LOADS_MAX);
        drop(small);
        assert_eq!((loads.count.load(Ordering::Relaxed), loads.bytes.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn a_replay_weighs_its_entries_and_the_state_that_may_be_read() {
        let store = store(3, 10, 0);
        let bytes = |bytes_max| replay(3, &store, bytes_max).bytes(3_000);
        let journal = 3_000 + 3 * ENTRY_BYTES;
        assert_eq!(bytes(usize::MAX), journal + 10_000);
        assert_eq!(bytes(2_000), journal + 3_000, "and the first value that does not fit");
        assert_eq!(Replay::new(LIFE, 3, None).bytes(3_000), journal);
    }

    /// A worker that is woken by the end of a load.
    struct Woken {
        loads: Arc<LoadsInFlight>,
        seen: AtomicUsize,
    }

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.seen.store(self.loads.count.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    #[test]
    fn a_worker_that_is_woken_by_the_end_of_a_load_finds_its_place_free() {
        let (mut store, loads, wake) = (store(3, 0, 0), Arc::new(LoadsInFlight::new(LOAD_BYTES_MAX)), surefoot_env::Wake::new());
        let view = Lent::new(store.publish().unwrap(), wake.clone());
        let source = LoadSource { turn: loads.try_take(3_000).unwrap(), view };
        let woken = Arc::new(Woken { loads, seen: AtomicUsize::new(usize::MAX) });
        let mut waits = std::pin::pin!(wake.woken());
        let waker = std::task::Waker::from(woken.clone());
        assert!(waits.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
        drop(source);
        assert_eq!(woken.seen.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_journal_with_a_gap_is_unreadable() {
        let store = store(2, 0, 0);
        let error = replay(3, &store, 0).step(&store.read(), ON_WORKER).unwrap_err();
        assert!(error.to_string().contains("a journal with gaps"), "{error}");
    }
}
