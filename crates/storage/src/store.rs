//! The store of one partition: an active layer, at times a frozen one, and the engine's view below them.
//!
//! Owns: transactions (rule M3), freezing and retiring layers (rule C4), the applied LSN, and the check of the log against it
//! (rule C2). Does not own: threads or timing. One worker thread owns a store; a [`Checkpoint`] is carried out elsewhere.

use crate::checkpoint::{Checkpoint, Checkpointed};
use crate::engine::{Engine, View};
use crate::keys;
use crate::layer::{Layer, Overlay};
use crate::scan::{Known, Layers, Typed};
use std::io;
use std::sync::Arc;
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
}

/// The tables of one partition.
pub struct Store {
    engine: Arc<dyn Engine>,
    partition: PartitionId,
    overlay: Overlay,
    active: Layer,
    frozen: Option<Frozen>,
    view: Arc<dyn View>,
    applied: Lsn,
    checkpointed: Lsn,
    mutant: Mutant,
}

struct Frozen {
    layer: Arc<Layer>,
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
            frozen: None,
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

    /// About how many bytes the next checkpoint would take from memory.
    pub fn active_bytes(&self) -> usize {
        self.active.bytes
    }

    /// About how many bytes all layers take in memory.
    pub fn memory_bytes(&self) -> usize {
        self.active.bytes + self.frozen.as_ref().map_or(0, |frozen| frozen.layer.bytes)
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
        let layer = Arc::new(std::mem::take(&mut self.active));
        self.frozen = Some(Frozen { layer: layer.clone(), applied: self.applied });
        Some(Checkpoint::new(self.engine.clone(), self.partition, layer, self.applied, self.mutant))
    }

    /// Ends the running checkpoint: retires the frozen layer and takes the view that holds it, in one step (rule C4).
    /// **Panics** if `done` is not of the checkpoint that runs.
    pub fn checkpointed(&mut self, done: Checkpointed) {
        let frozen = self.frozen.take().expect("a checkpoint ends once");
        assert_eq!(
            (frozen.applied, self.partition),
            (done.applied, done.partition),
            "the checkpoint that runs is the one that ends"
        );
        self.view = done.view;
        self.checkpointed = done.applied;
    }

    /// Takes a fresh view of the engine. It shows the same entries, since a partition's are written by its own checkpoints
    /// alone; the old one holds back the clearing away of what other partitions have overwritten. For idle partitions, now
    /// and then.
    pub fn refresh(&mut self) {
        self.view = self.engine.view();
    }

    fn layers(&self) -> Layers<'_> {
        Layers {
            partition: self.partition,
            active: &self.active,
            frozen: self.frozen.as_ref().map(|frozen| &*frozen.layer),
            view: &*self.view,
        }
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
        let frozen = store.frozen.as_ref().filter(|_| store.mutant == Mutant::VanishAcrossLayers);
        store.overlay.publish(&mut store.active, frozen.map(|frozen| &*frozen.layer));
        store.applied = lsn;
    }
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        // After a commit there is nothing left to discard.
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
        self.store.layers().scan::<T>(T::of(&self.store.overlay.tables).slots(), from, to, limit)
    }
}

/// Read access between records: memory and disk merged.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    layers: Layers<'a>,
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
        self.layers.scan::<T>(&[], from, to, limit)
    }
}
