//! What a source asks of the partitions.
//!
//! Owns: the narrow trait between a subscription's task and the node, so that the task can be tested against a script. Does not
//! own: any rule.

use std::collections::BTreeMap;
use std::sync::Arc;
use surefoot_env::BoxFuture;
use surefoot_model::catalog::CatalogEvent;
use surefoot_model::{Catalog, Event, Lsn, PartitionId, StreamId, SubscriptionId};
use surefoot_partition::{Partitions, Stopped};

/// Called with an event's place in its partition's log once it is durable there.
pub(crate) type Durable = Box<dyn FnOnce(Lsn) + Send>;

/// Kafka records that are parked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ParkedTotal {
    pub(crate) records: u64,
    /// What is kept of them.
    pub(crate) bytes: u64,
}

pub(crate) trait Admission: Send + Sync {
    /// The number of partitions.
    fn count(&self) -> u16;
    fn catalog(&self) -> Arc<Catalog>;
    /// Completes once the event has its place in the partition's log, though the partition may have stopped; waits for room at the
    /// edge first. Dropping the future before that means that nothing was appended.
    fn append(&self, partition: PartitionId, event: Event, durable: Durable) -> BoxFuture<Result<(), Stopped>>;
    /// Up to where a partition's log was applied by its leader.
    fn applied(&self, partition: PartitionId) -> Lsn;
    /// It applies nothing more until the node starts again.
    fn is_stopped(&self, partition: PartitionId) -> bool;
    /// Completes once the change is durable and published.
    fn change_catalog(&self, event: CatalogEvent) -> BoxFuture<Result<(), Stopped>>;
    /// Completes once all partitions have applied it, or recorded it where one has stopped; so does [`Self::close_source`].
    fn open_source(&self, subscription: SubscriptionId, epoch: u32) -> BoxFuture<Result<(), Stopped>>;
    fn close_source(&self, subscription: SubscriptionId) -> BoxFuture<Result<(), Stopped>>;
    /// Of each stream of a subscription's epoch the highest offset that was taken, as far as it was applied.
    fn watermarks(&self, subscription: SubscriptionId, epoch: u32) -> BoxFuture<Result<BTreeMap<StreamId, i64>, Stopped>>;
    /// What this subscription has parked, as far as it was applied.
    fn parked(&self, subscription: SubscriptionId) -> BoxFuture<Result<ParkedTotal, Stopped>>;
}

impl Admission for Partitions {
    fn count(&self) -> u16 {
        Partitions::count(self)
    }

    fn catalog(&self) -> Arc<Catalog> {
        Partitions::catalog(self).load()
    }

    fn append(&self, partition: PartitionId, event: Event, durable: Durable) -> BoxFuture<Result<(), Stopped>> {
        let partitions = self.clone();
        Box::pin(async move { partitions.append_source(partition, event, durable).await })
    }

    fn applied(&self, partition: PartitionId) -> Lsn {
        Partitions::applied(self, partition)
    }

    fn is_stopped(&self, partition: PartitionId) -> bool {
        Partitions::is_stopped(self, partition)
    }

    fn change_catalog(&self, event: CatalogEvent) -> BoxFuture<Result<(), Stopped>> {
        let partitions = self.clone();
        Box::pin(async move { Partitions::change_catalog(&partitions, event).await })
    }

    fn open_source(&self, subscription: SubscriptionId, epoch: u32) -> BoxFuture<Result<(), Stopped>> {
        let partitions = self.clone();
        Box::pin(async move { Partitions::open_source(&partitions, subscription, epoch).await })
    }

    fn close_source(&self, subscription: SubscriptionId) -> BoxFuture<Result<(), Stopped>> {
        let partitions = self.clone();
        Box::pin(async move { Partitions::close_source(&partitions, subscription).await })
    }

    fn watermarks(&self, subscription: SubscriptionId, epoch: u32) -> BoxFuture<Result<BTreeMap<StreamId, i64>, Stopped>> {
        let partitions = self.clone();
        Box::pin(async move { Partitions::watermarks(&partitions, subscription, epoch).await })
    }

    fn parked(&self, subscription: SubscriptionId) -> BoxFuture<Result<ParkedTotal, Stopped>> {
        let partitions = self.clone();
        Box::pin(async move {
            let info = partitions.source(subscription).await?;
            Ok(ParkedTotal { records: info.parked, bytes: info.parked_bytes })
        })
    }
}
