//! The partitions of one worker: each may stop alone (rule C5), and has its turn when it was touched or something of it is due.
//!
//! Owns: that a failure or a panic stops the partition it happened to, loudly, and no other; whose turn it is; and what all of them
//! take in memory. Does not own: what is done with a partition (`acting`).

use crate::acting::ActingPartition;
use crate::apply::panic_message;
use crate::handle::Shared;
use crate::query::PartitionHealth;
use crate::settings::Mutant;
use crate::turns::TurnOrder;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use surefoot_env::Undone;
use surefoot_model::{Lsn, PartitionId};
use surefoot_storage::Store;

/// While a partition is being written that has grown large again, others are only if they free at least this part of what it takes.
const WORTHWHILE_PART: u64 = 8;

pub(crate) struct OwnedPartitions {
    worker: usize,
    shared: Arc<Shared>,
    /// Partition p is at p / workers.
    slots: Vec<OwnedSlot>,
    /// Positions of those that were touched since their last turn.
    touched: BTreeSet<usize>,
    order: TurnOrder<usize>,
    /// When each of the others has its next turn, by the monotonic clock in milliseconds.
    due: BTreeSet<(u64, usize)>,
    active_bytes: u64,
    memory_bytes: u64,
}

struct OwnedSlot {
    /// None once it has stopped.
    partition: Option<Box<ActingPartition>>,
    /// As they stand in `due` and the sums.
    due_ms: u64,
    active_bytes: u64,
    memory_bytes: u64,
}

/// The active layer of a partition.
struct ActiveLayer {
    bytes: u64,
    /// It can be frozen: no checkpoint of the partition runs.
    can_be_written: bool,
}

impl OwnedSlot {
    fn active_layer(&self) -> ActiveLayer {
        let can_be_written = self.partition.as_ref().is_some_and(|partition| !partition.store.checkpoint_is_running());
        ActiveLayer { bytes: self.active_bytes, can_be_written }
    }
}

/// The position of the layer to be frozen next, where that is worthwhile.
fn largest_to_write(layers: impl Iterator<Item = ActiveLayer> + Clone) -> Option<usize> {
    let largest = layers.clone().map(|layer| layer.bytes).max()?;
    let candidates = layers.enumerate().filter(|(_, layer)| layer.can_be_written);
    let (at, layer) = candidates.max_by_key(|(_, layer)| layer.bytes)?;
    (layer.bytes > 0 && layer.bytes >= largest / WORTHWHILE_PART).then_some(at)
}

impl OwnedPartitions {
    pub(crate) fn new(worker: usize, shared: Arc<Shared>, partitions: Vec<Option<Box<ActingPartition>>>) -> Self {
        let slot = |partition| OwnedSlot { partition, due_ms: 0, active_bytes: 0, memory_bytes: 0 };
        let slots: Vec<_> = partitions.into_iter().map(slot).collect();
        let due = (0..slots.len()).map(|at| (0, at)).collect();
        Self {
            worker,
            shared,
            slots,
            touched: BTreeSet::new(),
            order: TurnOrder::default(),
            due,
            active_bytes: 0,
            memory_bytes: 0,
        }
    }

    /// How many there are, stopped ones included.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Those that have not stopped.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &ActingPartition> {
        self.slots.iter().filter_map(|slot| slot.partition.as_deref())
    }

    /// Those that have not stopped, each of which counts as touched.
    pub(crate) fn touch_all(&mut self) -> impl Iterator<Item = &mut ActingPartition> {
        self.touched.extend(0..self.slots.len());
        self.slots.iter_mut().filter_map(|slot| slot.partition.as_deref_mut())
    }

    /// Nothing is done with any of them from now on.
    pub(crate) fn let_go(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.partition = None);
    }

    /// Takes fresh views of the engine: one that is held keeps it from clearing what others have overwritten since.
    pub(crate) fn refresh(&mut self) {
        self.slots.iter_mut().filter_map(|slot| slot.partition.as_deref_mut()).for_each(|partition| partition.store.refresh());
    }

    /// It has its turn with this step.
    pub(crate) fn touch(&mut self, id: PartitionId) {
        let at = self.position(id);
        self.touched.insert(at);
    }

    /// One that has not stopped.
    pub(crate) fn find(&mut self, id: PartitionId) -> Option<&mut ActingPartition> {
        let at = self.position(id);
        self.touched.insert(at);
        self.slots[at].partition.as_deref_mut()
    }

    /// Does something with a partition, unless it has stopped; one that fails or panics stops now.
    pub(crate) fn guard<T>(
        &mut self,
        id: PartitionId,
        work: impl FnOnce(&mut ActingPartition) -> Result<T, String>,
    ) -> Option<T> {
        let at = self.position(id);
        self.touched.insert(at);
        self.guard_at(at, work)
    }

    /// As [`Self::guard`], by position, and without touching it.
    pub(crate) fn guard_at<T>(&mut self, at: usize, work: impl FnOnce(&mut ActingPartition) -> Result<T, String>) -> Option<T> {
        let partition = self.slots[at].partition.as_deref_mut()?;
        let error = match catch_unwind(AssertUnwindSafe(|| work(partition))) {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error)) => error,
            Err(panic) => format!("broken invariant: {}", panic_message(panic)),
        };
        self.stop(at, error);
        None
    }

    /// Its records stay in the log; those who wait for it hear that nobody will answer.
    fn stop(&mut self, at: usize, error: String) {
        let Some(partition) = self.slots[at].partition.take() else { return };
        tracing::error!(partition = %partition.id, error, "partition stopped; its data is kept, other partitions run on");
        if self.shared.settings.mutant == Mutant::ForgetStopped {
            self.shared.log.trim(partition.id, Lsn(u64::MAX));
        }
        self.shared.stop_partition(PartitionHealth { partition: partition.id, error });
        self.weigh(at);
    }

    /// Positions of the partitions whose turn it is. What they share of their worker goes to others first with each turn.
    pub(crate) fn take_due(&mut self, monotonic_ms: u64) -> Vec<usize> {
        let mut turns = std::mem::take(&mut self.touched);
        turns.extend(self.due.range(..=(monotonic_ms, usize::MAX)).map(|(_, at)| *at));
        self.order.of(turns)
    }

    /// A partition has had its turn. `waits`: for something that comes without an input, so that its next turn is with the worker's
    /// next step.
    pub(crate) fn had_turn(&mut self, at: usize, next_ms: u64, waits: bool) {
        self.due.remove(&(self.slots[at].due_ms, at));
        self.slots[at].due_ms = next_ms;
        if self.slots[at].partition.is_some() {
            self.due.insert((next_ms, at));
        }
        if waits {
            self.touched.insert(at);
        }
        self.weigh(at);
    }

    /// When the next one is due, by the monotonic clock.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        self.due.first().map(|(due_ms, _)| *due_ms)
    }

    /// Memory of all layers, as of each partition's last turn.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Has the partitions with the largest active layers checkpointed until the rest takes no more than `bytes_max`. Those whose
    /// checkpoint runs are left out: their turn comes when it has ended, and soonest if not all the others are written first.
    pub(crate) fn checkpoint_largest(&mut self, bytes_max: u64) {
        while self.active_bytes > bytes_max {
            let Some(at) = largest_to_write(self.slots.iter().map(OwnedSlot::active_layer)) else { return };
            let has_begun = self.guard_at(at, |partition| Ok(partition.checkpoint()));
            self.weigh(at);
            if has_begun != Some(true) {
                return;
            }
        }
    }

    /// Layers beyond the bound that nobody writes: only that frees memory, and it waits for nobody.
    pub(crate) fn undone(&self, bytes_max: u64) -> Option<Undone> {
        let stores = || self.iter().map(|partition| &partition.store);
        let active_bytes: usize = stores().map(Store::active_bytes).sum();
        let is_left = active_bytes as u64 > bytes_max && !stores().any(Store::checkpoint_is_running);
        is_left.then(|| Undone::at_once(format!("layers take {active_bytes} bytes and none is written (rule O3)")))
    }

    fn weigh(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let store = slot.partition.as_ref().map(|partition| &partition.store);
        let (active_bytes, memory_bytes) =
            store.map_or((0, 0), |store| (store.active_bytes() as u64, store.memory_bytes() as u64));
        self.active_bytes = self.active_bytes - slot.active_bytes + active_bytes;
        self.memory_bytes = self.memory_bytes - slot.memory_bytes + memory_bytes;
        (slot.active_bytes, slot.memory_bytes) = (active_bytes, memory_bytes);
    }

    fn position(&self, id: PartitionId) -> usize {
        let at = self.shared.index(id);
        let workers = self.shared.workers.len();
        assert_eq!(at % workers, self.worker, "inputs reach the worker that owns the partition");
        at / workers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(layers: &[(u64, bool)]) -> Option<usize> {
        largest_to_write(layers.iter().map(|&(bytes, can_be_written)| ActiveLayer { bytes, can_be_written }))
    }

    /// While the one that took all of memory was being written, all others were written as well, before its next turn.
    #[test]
    fn those_that_free_little_are_not_written_while_the_one_that_takes_memory_is() {
        assert_eq!(next(&[(10, true), (1_000, false), (124, true)]), None);
        assert_eq!(next(&[(10, true), (1_000, false), (125, true)]), Some(2));
        assert_eq!(next(&[(10, true), (1_000, true), (125, true)]), Some(1), "its own checkpoint has ended");
        assert_eq!(next(&[(100, true), (100, false), (101, true)]), Some(2), "where all grow alike each has its turn");
        assert_eq!(next(&[(10, true), (0, false), (9, true)]), Some(0), "it has just been frozen");
        assert_eq!(next(&[(0, true), (5, false)]), None);
    }
}
