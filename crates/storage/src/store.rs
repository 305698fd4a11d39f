//! The store of one partition: an active layer, at times sealed and frozen ones, and the engine's view below them.
//!
//! Owns: transactions (rule M3), sealing layers for views, freezing and retiring them (rule C4), the applied LSN, and the check of
//! the log against it (rule C2). Does not own: threads or timing. One worker thread owns a store; a [`Checkpoint`] is carried out,
//! and a [`PartitionView`] is read, elsewhere.
//!
//! Layers are a stack. The active one, on top, is written. Whoever asks for a view has it sealed: it does not change any more, and
//! an empty one takes its place. Once no view holds the sealed layer, the next record folds the two into one again, by the rule by
//! which a record's overlay is laid over a layer; so views cost something while they are asked for, and nothing else. At the
//! bottom are the layers that the running checkpoint writes: they are frozen, and retired together.

use crate::checkpoint::{Checkpoint, Checkpointed};
use crate::engine::{Engine, RawEntry, View};
use crate::keys;
use crate::layer::{Layer, Overlay};
use crate::scan::{Known, Layers, Limit, Piece, Row, Typed};
use crate::view::PartitionView;
use std::io;
use std::mem;
use std::sync::{Arc, Weak};
use surefoot_machine::{State, StateError, Table};
use surefoot_model::{Lsn, PartitionId, encoding};

/// Why a store cannot be opened or used. In every case the partition stops (rule C5).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the applied position of partition {partition}")]
    Engine { partition: PartitionId, source: io::Error },
    #[error("the applied position of partition {partition} is unreadable")]
    Applied { partition: PartitionId, source: encoding::Error },
    #[error(
        "partition {partition} has applied up to record {applied} but its log begins at {first_retained}: the tables are older \
         than the log; restore tables and log from one backup"
    )]
    LogTrimmed { partition: PartitionId, applied: Lsn, first_retained: Lsn },
    #[error(
        "partition {partition} has applied up to record {applied} but its log ends before {next}: the log is older than the \
         tables; restore tables and log from one backup"
    )]
    LogBehind { partition: PartitionId, applied: Lsn, next: Lsn },
}

/// A rule left out on purpose, so that the checks that should notice can be checked. For simulation and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    /// All rules hold.
    #[default]
    None,
    /// Against rule C3: an entry that the running checkpoint creates, deleted meanwhile, vanishes without a tombstone.
    VanishAcrossLayers,
    /// Against rule C1: the applied LSN is committed in one batch, the entries in the next.
    SplitCheckpoint,
    /// Against rule C2: a checkpoint ends without having been flushed.
    SkipFlush,
    /// Against rule C8: a checkpoint takes a flush that failed for one that did not.
    IgnoreFailedFlush,
    /// Against rule C4: a view's readers take what the engine shows when they read.
    LateEngineView,
    /// Against rule C4: a checkpoint leaves out layers that were sealed for a view.
    ForgetSealed,
    /// Against rule M3: what a record wrote before it failed stays.
    KeepHalf,
}

/// Layers that views may hold sealed at a time, besides frozen ones: each makes every read a little longer.
const SEALED_MAX: usize = 8;

/// The tables of one partition.
pub struct Store {
    engine: Arc<dyn Engine>,
    partition: PartitionId,
    overlay: Overlay,
    active: Layer,
    /// Oldest first: those that the running checkpoint writes, then sealed ones.
    below: Vec<Arc<Layer>>,
    frozen: Option<Frozen>,
    /// Layers that a checkpoint retired while views held them, and their bytes.
    retired: Vec<(Weak<Layer>, usize)>,
    view: Arc<dyn View>,
    applied: Lsn,
    checkpointed: Lsn,
    mutant: Mutant,
}

/// Layers that a checkpoint has written and that are read no more, but by views that hold them. Freed when dropped.
pub struct RetiredLayers(#[expect(dead_code, reason = "held until it is dropped")] Vec<Arc<Layer>>);

/// What the running checkpoint writes.
struct Frozen {
    /// So many of the oldest layers.
    layers: usize,
    applied: Lsn,
}

impl Store {
    /// Opens a partition's tables as its last checkpoint left them; empty, with LSN 0 applied, where there was none.
    pub fn open(engine: Arc<dyn Engine>, partition: PartitionId) -> Result<Self, Error> {
        let view = engine.view();
        let applied = view.get(&keys::applied(partition)).map_err(|source| Error::Engine { partition, source })?;
        let applied = match applied {
            Some(bytes) => encoding::decode(&bytes, "the row").map_err(|source| Error::Applied { partition, source })?,
            None => Lsn::default(),
        };
        Ok(Self {
            engine,
            partition,
            overlay: Overlay::default(),
            active: Layer::default(),
            below: Vec::new(),
            frozen: None,
            retired: Vec::new(),
            view,
            applied,
            checkpointed: applied,
            mutant: Mutant::None,
        })
    }

    /// The same store with a rule left out.
    pub fn with_mutant(self, mutant: Mutant) -> Self {
        Self { mutant, ..self }
    }

    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The last record whose transaction was committed.
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    /// The last record that a durable checkpoint covers; the log may be trimmed up to here (rule C2).
    pub fn checkpointed_lsn(&self) -> Lsn {
        self.checkpointed
    }

    /// Checks that a record of the log follows what was applied without a gap (rule C2).
    pub fn check_next(&self, lsn: Lsn) -> Result<(), Error> {
        let (partition, applied) = (self.partition, self.applied);
        if lsn > applied.next() {
            return Err(Error::LogTrimmed { partition, applied, first_retained: lsn });
        }
        Ok(())
    }

    /// Checks that the log begins no later than the tables end, and ends no earlier: `first_retained` is the oldest record that it
    /// still has, or would have, and `next` the LSN that it gives out next (rule C2).
    pub fn check_log(&self, first_retained: Lsn, next: Lsn) -> Result<(), Error> {
        let (partition, applied) = (self.partition, self.applied);
        if first_retained > self.checkpointed.next() {
            Err(Error::LogTrimmed { partition, applied: self.checkpointed, first_retained })
        } else if applied.next() > next {
            Err(Error::LogBehind { partition, applied, next })
        } else {
            Ok(())
        }
    }

    /// Begins to apply one record.
    pub fn begin(&mut self) -> Txn<'_> {
        Txn { store: self }
    }

    /// Reads what the applied records made.
    pub fn read(&self) -> Reader<'_> {
        Reader { layers: self.layers() }
    }

    /// The tables as they are now, for readers elsewhere (rule C4). `None` while views hold so many layers that no further one
    /// can be sealed: ask again when one was dropped.
    pub fn publish(&mut self) -> Option<PartitionView> {
        self.fold();
        if self.active.slots > 0 {
            if self.below.len() - self.frozen_layers() >= SEALED_MAX {
                return None;
            }
            self.below.push(Arc::new(mem::take(&mut self.active)));
        }
        let engine = match self.mutant {
            Mutant::LateEngineView => Arc::new(Late(self.engine.clone())),
            _ => self.view.clone(),
        };
        Some(PartitionView { partition: self.partition, applied: self.applied, layers: self.below.clone(), engine })
    }

    /// Makes one layer of the active one and those sealed ones right below it that no view holds any more.
    fn fold(&mut self) {
        while self.below.len() > self.frozen_layers() {
            match Arc::try_unwrap(self.below.pop().expect("there are more than frozen ones")) {
                Ok(older) => self.active = Layer::fold(older, mem::take(&mut self.active)),
                Err(held) => return self.below.push(held),
            }
        }
    }

    fn frozen_layers(&self) -> usize {
        self.frozen.as_ref().map_or(0, |frozen| frozen.layers)
    }

    /// About how many bytes the next checkpoint would take from memory.
    pub fn active_bytes(&self) -> usize {
        self.active.bytes + layers_bytes(&self.below[self.frozen_layers()..])
    }

    /// About how many bytes all layers take in memory, those included that only views hold.
    pub fn memory_bytes(&self) -> usize {
        let held = self.retired.iter().filter(|(layer, _)| layer.strong_count() > 0);
        self.active.bytes + layers_bytes(&self.below) + held.map(|(_, bytes)| bytes).sum::<usize>()
    }

    pub fn checkpoint_is_running(&self) -> bool {
        self.frozen.is_some()
    }

    /// Freezes what was written since the last checkpoint and hands out the work of writing it to the engine. `None` while
    /// another checkpoint runs, and where nothing was applied since the last one.
    pub fn freeze(&mut self) -> Option<Checkpoint> {
        if self.frozen.is_some() || self.applied == self.checkpointed {
            return None;
        }
        self.fold();
        self.below.push(Arc::new(mem::take(&mut self.active)));
        self.frozen = Some(Frozen { layers: self.below.len(), applied: self.applied });
        let written = if self.mutant == Mutant::ForgetSealed { &self.below[self.below.len() - 1..] } else { &self.below };
        Some(Checkpoint::new(self.engine.clone(), self.partition, written.to_vec(), self.applied, self.mutant))
    }

    /// Ends the running checkpoint: retires the frozen layers and takes the view that holds them, in one step (rule C4). Gives the
    /// layers back: freeing them takes time by their size. **Panics** if `done` is not of the checkpoint that runs.
    pub fn checkpointed(&mut self, done: Checkpointed) -> RetiredLayers {
        let frozen = self.frozen.take().expect("a checkpoint ends once");
        assert_eq!(
            (frozen.applied, self.partition),
            (done.applied, done.partition),
            "the checkpoint that runs is the one that ends"
        );
        self.retired.retain(|(layer, _)| layer.strong_count() > 0);
        let retired: Vec<_> = self.below.drain(..frozen.layers).collect();
        self.retired.extend(retired.iter().map(|layer| (Arc::downgrade(layer), layer.bytes)));
        self.view = done.view;
        self.checkpointed = done.applied;
        RetiredLayers(retired)
    }

    /// Takes a fresh view of the engine. It shows the same entries, since a partition's are written by its own checkpoints
    /// alone; the old one holds back the clearing away of what other partitions have overwritten. For idle partitions, now
    /// and then.
    pub fn refresh(&mut self) {
        self.view = self.engine.view();
    }

    fn layers(&self) -> Layers<'_> {
        Layers { partition: self.partition, active: Some(&self.active), below: &self.below, view: &*self.view }
    }
}

fn layers_bytes(layers: &[Arc<Layer>]) -> usize {
    layers.iter().map(|layer| layer.bytes).sum()
}

/// The engine as it is whenever it is asked, for [`Mutant::LateEngineView`].
struct Late(Arc<dyn Engine>);

impl View for Late {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.0.view().get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize, bytes_max: usize) -> io::Result<Vec<RawEntry>> {
        self.0.view().scan(from, to, limit, bytes_max)
    }
}

/// The overlay of one record. Dropped, it leaves no trace.
pub struct Txn<'a> {
    store: &'a mut Store,
}

impl Txn<'_> {
    /// Publishes everything the record wrote, whole (rule M3). **Panics** unless `lsn` lies behind what was applied.
    pub fn commit(self, lsn: Lsn) {
        let store = &mut *self.store;
        assert!(lsn > store.applied, "record {lsn} after {}", store.applied);
        // The overlay keeps its meaning: below it, all layers read together are what they were.
        store.fold();
        let vanish_from = if store.mutant == Mutant::VanishAcrossLayers { store.frozen_layers() } else { 0 };
        store.overlay.publish(&mut store.active, &store.below[..vanish_from]);
        store.applied = lsn;
    }
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        // After a commit there is nothing left to discard.
        if self.store.mutant == Mutant::KeepHalf {
            self.store.overlay.publish(&mut self.store.active, &[]);
        }
        self.store.overlay.discard();
    }
}

impl State for Txn<'_> {
    fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Value>, StateError> {
        let writes = T::of(&self.store.overlay.tables);
        if let Some(slot) = writes.get(key) {
            return Ok(slot.value.clone());
        }
        let value = self.store.layers().get::<T>(key)?;
        if value.is_none() {
            writes.miss(key);
        }
        Ok(value)
    }

    fn put<T: Table>(&mut self, key: T::Key, value: T::Value) {
        T::of_mut(&mut self.store.overlay.tables).put(key, value, false);
    }

    fn insert<T: Table>(&mut self, key: T::Key, value: T::Value) {
        T::of_mut(&mut self.store.overlay.tables).put(key, value, true);
    }

    fn delete<T: Table>(&mut self, key: &T::Key) {
        T::of_mut(&mut self.store.overlay.tables).delete(key);
    }

    fn scan<T: Table>(&self, from: &T::Key, to: Option<&T::Key>, limit: usize) -> Result<Vec<Typed<T>>, StateError> {
        let above = T::of(&self.store.overlay.tables).slots();
        Ok(self.store.layers().scan::<T>(above, from, to, Limit { rows: limit, bytes: usize::MAX, looks: usize::MAX })?.rows)
    }

    fn all<T: Table>(&self, from: &T::Key, to: &T::Key, count: usize) -> Result<Vec<Typed<T>>, StateError> {
        let above = T::of(&self.store.overlay.tables).slots();
        match self.store.layers().in_memory::<T>(above, from, to, count) {
            Some(rows) => Ok(rows),
            None => self.scan::<T>(from, Some(to), count),
        }
    }
}

/// Read access between records: memory and disk merged.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    pub(crate) layers: Layers<'a>,
}

impl<'a> Reader<'a> {
    /// One entry. **Errors** where it cannot be read or decoded; the partition stops.
    pub fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Value>, StateError> {
        self.layers.get::<T>(key)
    }

    /// The entries of ascending keys, all below `to`, in that order: for keys that are known, whose entries may well all lie in
    /// memory. **Errors** as for [`Reader::get`].
    pub fn known<T: Table, K: IntoIterator<Item = T::Key>>(&self, keys: K, to: T::Key) -> Known<'a, T, K::IntoIter> {
        Known::new(self.layers, keys.into_iter(), to)
    }

    /// At most `limit` entries with `from <= key < to`, in key order. **Errors** as for [`Reader::get`].
    pub fn scan<T: Table>(&self, from: &T::Key, to: Option<&T::Key>, limit: usize) -> Result<Vec<Typed<T>>, StateError> {
        Ok(self.scan_within::<T>(from, to, Limit { rows: limit, bytes: usize::MAX, looks: usize::MAX })?.rows)
    }

    /// The entries with `from <= key < to`, of which the caller knows that there are `count` and no more, where all of them lie in
    /// memory: then the disk need not be asked.
    pub fn all_in_memory<T: Table>(&self, from: &T::Key, to: &T::Key, count: usize) -> Option<Vec<Typed<T>>> {
        self.layers.in_memory::<T>(&[], from, to, count)
    }

    /// Every entry of every table, as text: to compare one state with another. **Errors** as for [`Reader::get`].
    pub fn rows(&self) -> Result<Vec<Row>, StateError> {
        self.layers.rows()
    }

    /// The first entries with `from <= key < to`, in key order, as far as the limit lets them. **Errors** as for [`Reader::get`].
    pub fn scan_within<T: Table>(&self, from: &T::Key, to: Option<&T::Key>, limit: Limit) -> Result<Piece<T>, StateError> {
        self.layers.scan::<T>(&[], from, to, limit)
    }
}
