//! Questions about a partition's state, answered by its worker between two batches, so that each sees one LSN (rule C4).
//!
//! Owns: the closed list of questions and the shape of answers. Does not own: HTTP shapes (`admin`).

use surefoot_model::{
    AttemptError, Failure, InvocationId, Origin, ParkedRecord, PartitionId, Pin, Status, SubscriptionId, Target, Text, Timestamp,
};
use tokio::sync::oneshot;

/// What operators see of an invocation.
#[derive(Clone, Debug)]
pub struct InvocationInfo {
    pub id: InvocationId,
    pub target: Target,
    pub status: Status,
    pub idempotency_key: Option<Text>,
    pub origin: Origin,
    pub created_at: Timestamp,
    pub modified_at: Timestamp,
    pub execute_at: Option<Timestamp>,
    /// Attempts of this incarnation so far.
    pub attempts: u32,
    pub last_error: Option<AttemptError>,
    pub next_retry_at: Option<Timestamp>,
    pub pin: Option<Pin>,
    /// Entries in the journal.
    pub journal_len: u32,
    /// Set once completed with a failure.
    pub failure: Option<Failure>,
    pub completed_at: Option<Timestamp>,
}

/// Which invocations to list. Absent fields let everything through.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    pub service: Option<String>,
    pub key: Option<String>,
    pub status: Option<Status>,
    /// Only ids greater than this one: the `next` of the page before.
    pub after: Option<InvocationId>,
    /// Matches per page; bounded by [`crate::query::LIST_MAX`].
    pub limit: usize,
}

/// Most matches of one page.
pub const LIST_MAX: usize = 1_000;

/// Invocations in the order of their ids.
#[derive(Clone, Debug, Default)]
pub struct InvocationPage {
    pub invocations: Vec<InvocationInfo>,
    /// Where the next page begins after; absent on the last one.
    pub next: Option<InvocationId>,
}

/// A parked Kafka record and its number, unique within the subscription.
#[derive(Clone, Debug)]
pub struct ParkedInfo {
    pub number: u64,
    pub record: ParkedRecord,
}

#[derive(Clone, Debug, Default)]
pub struct ParkedPage {
    pub parked: Vec<ParkedInfo>,
    /// Where the next page begins after; absent on the last one.
    pub next: Option<u64>,
}

/// What all partitions hold of one subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceInfo {
    /// Parked Kafka records, all partitions together.
    pub parked: u64,
}

/// A partition that has stopped, and why (rule C5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionHealth {
    pub partition: PartitionId,
    pub error: String,
}

pub(crate) enum Query {
    Invocation {
        id: InvocationId,
        reply: oneshot::Sender<Option<Box<InvocationInfo>>>,
    },
    /// One bounded step of a listing within one partition.
    List {
        partition: PartitionId,
        filter: ListFilter,
        reply: oneshot::Sender<ListStep>,
    },
    Parked {
        partition: PartitionId,
        subscription: SubscriptionId,
        after: u64,
        limit: usize,
        reply: oneshot::Sender<Vec<(u64, ParkedRecord)>>,
    },
    Source {
        partition: PartitionId,
        subscription: SubscriptionId,
        reply: oneshot::Sender<u64>,
    },
}

/// What one step of a listing found, and where to go on.
#[derive(Debug, Default)]
pub(crate) struct ListStep {
    pub(crate) found: Vec<InvocationInfo>,
    /// The last row looked at, where there may be more.
    pub(crate) scanned_to: Option<InvocationId>,
}
