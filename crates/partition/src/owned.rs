//! The partitions of one worker, each of which may stop alone (rule C5).
//!
//! Owns: that a failure or a panic stops the partition it happened to, loudly, and no other. Does not own: what is done with a
//! partition (`acting`).

use crate::acting::ActingPartition;
use crate::apply::panic_message;
use crate::handle::Shared;
use crate::query::PartitionHealth;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use surefoot_model::PartitionId;

pub(crate) struct OwnedPartitions {
    worker: usize,
    shared: Arc<Shared>,
    /// Partition p is at p / workers; empty where one has stopped.
    partitions: Vec<Option<Box<ActingPartition>>>,
}

impl OwnedPartitions {
    pub(crate) fn new(worker: usize, shared: Arc<Shared>, partitions: Vec<Option<Box<ActingPartition>>>) -> Self {
        Self { worker, shared, partitions }
    }

    /// How many there are, stopped ones included.
    pub(crate) fn len(&self) -> usize {
        self.partitions.len()
    }

    /// Those that have not stopped.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &ActingPartition> {
        self.partitions.iter().flatten().map(|partition| &**partition)
    }

    /// Those that have not stopped.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut ActingPartition> {
        self.partitions.iter_mut().flatten().map(|partition| &mut **partition)
    }

    /// One that has not stopped.
    pub(crate) fn find(&mut self, id: PartitionId) -> Option<&mut ActingPartition> {
        let at = self.position(id);
        self.partitions[at].as_deref_mut()
    }

    /// Does something with a partition, unless it has stopped; one that fails or panics stops now.
    pub(crate) fn guard<T>(
        &mut self,
        id: PartitionId,
        work: impl FnOnce(&mut ActingPartition) -> Result<T, String>,
    ) -> Option<T> {
        self.guard_at(self.position(id), work)
    }

    /// As [`Self::guard`], by position.
    pub(crate) fn guard_at<T>(&mut self, at: usize, work: impl FnOnce(&mut ActingPartition) -> Result<T, String>) -> Option<T> {
        let partition = self.partitions[at].as_deref_mut()?;
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
        let Some(partition) = self.partitions[at].take() else { return };
        tracing::error!(partition = %partition.id, error, "partition stopped; its data is kept, other partitions run on");
        self.shared.stop_partition(PartitionHealth { partition: partition.id, error });
    }

    fn position(&self, id: PartitionId) -> usize {
        let at = self.shared.index(id);
        let workers = self.shared.workers.len();
        assert_eq!(at % workers, self.worker, "inputs reach the worker that owns the partition");
        at / workers
    }
}
