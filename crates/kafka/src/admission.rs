//! What a source asks of the partitions.
//!
//! Owns: the narrow trait between a subscription's task and the node, so that the task can be tested against a script. Does not
//! own: any rule.

use std::collections::BTreeSet;
use std::sync::Arc;
use surefoot_env::BoxFuture;
use surefoot_model::catalog::CatalogEvent;
use surefoot_model::{Catalog, Event, PartitionId, SubscriptionId};
use surefoot_partition::{Partitions, Stopped};

/// Called once the event it belongs to is durable.
pub(crate) type Durable = Box<dyn FnOnce() + Send>;

pub(crate) trait Admission: Send + Sync {
    /// The number of partitions.
    fn count(&self) -> u16;
    fn catalog(&self) -> Arc<Catalog>;
    /// Completes once the event has its place in the partition's log; waits for room at the edge first. Dropping the future
    /// before that means that nothing was appended.
    fn append(&self, partition: PartitionId, event: Event, durable: Durable) -> BoxFuture<Result<(), Stopped>>;
    /// Completes once the change is durable and published.
    fn change_catalog(&self, event: CatalogEvent) -> BoxFuture<Result<(), Stopped>>;
    fn open_source(&self, subscription: SubscriptionId, epoch: u32) -> BoxFuture<Result<(), Stopped>>;
    fn close_source(&self, subscription: SubscriptionId) -> BoxFuture<Result<(), Stopped>>;
    /// Subscriptions that partitions have recorded as opened and not as closed.
    fn sources(&self) -> BoxFuture<Result<BTreeSet<SubscriptionId>, Stopped>>;
    /// Kafka records of this subscription that are parked.
    fn parked(&self, subscription: SubscriptionId) -> BoxFuture<Result<u64, Stopped>>;
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
        Box::pin(async move { partitions.append_source(partition, event, Box::new(move |_| durable())).await })
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

    fn sources(&self) -> BoxFuture<Result<BTreeSet<SubscriptionId>, Stopped>> {
        let partitions = self.clone();
        Box::pin(async move { Partitions::sources(&partitions).await })
    }

    fn parked(&self, subscription: SubscriptionId) -> BoxFuture<Result<u64, Stopped>> {
        let partitions = self.clone();
        Box::pin(async move { Ok(partitions.source(subscription).await?.parked) })
    }
}
