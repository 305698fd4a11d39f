//! What admin asks of sources, answered by the kafka room.

use std::collections::BTreeMap;
use std::sync::Arc;
use surefoot_admin::{SourcePartition, SourceStatus};
use surefoot_env::BoxFuture;
use surefoot_kafka::Sources;
use surefoot_model::SubscriptionId;
use surefoot_model::catalog::Subscription;

/// The node's subscriptions, as admin asks about them.
pub struct KafkaSources(pub Sources);

impl surefoot_admin::Sources for KafkaSources {
    fn check(&self, properties: &BTreeMap<String, String>) -> Result<(), String> {
        let checked = properties.iter().try_for_each(|(name, value)| surefoot_kafka::check_property(name, value));
        checked.map_err(|error| error.to_string())
    }

    fn status(&self, id: SubscriptionId) -> SourceStatus {
        let status = self.0.status(id);
        let partitions = status.partitions.iter().map(|p| SourcePartition {
            partition: p.partition,
            position: p.position,
            high_watermark: p.high_watermark,
            lag: p.lag,
        });
        SourceStatus { status: status.stage.as_str(), partitions: partitions.collect(), last_error: status.last_error }
    }

    fn closed(&self, id: SubscriptionId) -> BoxFuture<bool> {
        self.0.closed(id)
    }

    fn created(&self, subscription: Arc<Subscription>) -> BoxFuture<()> {
        self.0.created(subscription.id)
    }
}
