//! What admin asks of the room that reads Kafka, which it must not know.
//!
//! Owns: the questions and the shape of their answers. Implemented by `server` over the kafka room. Does not own: how a source
//! finds its start (rule K4), or what it does when it fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use surefoot_env::BoxFuture;
use surefoot_model::SubscriptionId;
use surefoot_model::catalog::Subscription;

pub trait Sources: Send + Sync {
    /// Whether the Kafka client may be given these properties, and knows them. The error names the property, never its value.
    fn check(&self, properties: &BTreeMap<String, String>) -> Result<(), String>;

    /// How one subscription fares on this node. One that is not known (yet) is `waiting`.
    fn status(&self, id: SubscriptionId) -> SourceStatus;

    /// Completes when the start offsets of a subscription just stored are durable, or 5 seconds have passed (rule K4).
    fn created(&self, subscription: Arc<Subscription>) -> BoxFuture<()>;

    /// Completes when nothing is left of a deleted subscription: its source has ended, everything is closed, and its group has been told
    /// how far it has read (rule K10); or when 5 seconds have passed. Says whether it is gone.
    fn closed(&self, id: SubscriptionId) -> BoxFuture<bool>;
}

/// One subscription as its source sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// `running`, `waiting`, `paused`, `failing` or `closing`.
    pub status: &'static str,
    /// While the subscription fails, waits or pauses: its last error. While it runs: the errors of single Kafka partitions.
    pub last_error: Option<String>,
    /// Assigned Kafka partitions in ascending order.
    pub partitions: Vec<SourcePartition>,
}

/// How far a subscription is in one Kafka partition; offsets of Kafka records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourcePartition {
    pub partition: i32,
    /// The next offset to admit.
    pub position: i64,
    /// The offset after the newest Kafka record.
    pub high_watermark: i64,
    /// Kafka records in between.
    pub lag: i64,
}

impl SourceStatus {
    pub fn waiting() -> Self {
        Self { status: "waiting", last_error: None, partitions: Vec::new() }
    }
}
