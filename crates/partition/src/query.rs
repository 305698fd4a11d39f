//! Questions about a partition's state, answered by its worker between two batches, so that each sees one LSN (rule C4).
//!
//! Owns: the closed list of questions and the shape of answers. Does not own: HTTP shapes (`admin`).

use surefoot_machine::{Invocations, Parked, ParkedKey, Sources, StateError};
use surefoot_model::{
    AttemptError, Failure, Invocation, InvocationId, Origin, Outcome, ParkedRecord, PartitionId, Pin, Progress, Stage, Status,
    SubscriptionId, Target, Text, Timestamp, key_hash,
};
use surefoot_storage::Reader;
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
        range: IdRange,
        limit: usize,
        reply: oneshot::Sender<ListStep>,
    },
    Parked {
        partition: PartitionId,
        subscription: SubscriptionId,
        /// Only rows with greater numbers.
        after: u64,
        limit: usize,
        reply: oneshot::Sender<Vec<(u64, ParkedRecord)>>,
    },
    /// Subscriptions that one partition has recorded, at most a step's worth from this one on.
    Sources {
        partition: PartitionId,
        from: SubscriptionId,
        reply: oneshot::Sender<Vec<SubscriptionId>>,
    },
    /// Parked Kafka records in one partition.
    Source {
        partition: PartitionId,
        subscription: SubscriptionId,
        reply: oneshot::Sender<u64>,
    },
}

/// Ids to look at: `from` included, `to` excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdRange {
    pub(crate) from: InvocationId,
    pub(crate) to: Option<InvocationId>,
}

/// What one step of a listing found, and where to go on.
#[derive(Debug, Default)]
pub(crate) struct ListStep {
    pub(crate) found: Vec<InvocationInfo>,
    /// Where the partition's next step begins; absent when it has been seen whole.
    pub(crate) next: Option<InvocationId>,
}

impl IdRange {
    /// The least range that holds every match.
    pub(crate) fn of(filter: &ListFilter) -> Self {
        let after = filter.after.map_or(InvocationId { partition_key: 0, unique: 0 }, next_id);
        match &filter.key {
            None => Self { from: after, to: None },
            Some(key) => {
                let partition_key = key_hash(key);
                let first = InvocationId { partition_key, unique: 0 };
                Self {
                    from: after.max(first),
                    to: partition_key.checked_add(1).map(|k| InvocationId { partition_key: k, unique: 0 }),
                }
            }
        }
    }
}

pub(crate) fn next_id(id: InvocationId) -> InvocationId {
    match id.unique.checked_add(1) {
        Some(unique) => InvocationId { unique, ..id },
        None => InvocationId { partition_key: id.partition_key.saturating_add(1), unique: 0 },
    }
}

impl Query {
    /// The partition that knows.
    pub(crate) fn partition(&self, count: u16) -> PartitionId {
        match self {
            Self::Invocation { id, .. } => id.partition(count),
            Self::List { partition, .. }
            | Self::Parked { partition, .. }
            | Self::Sources { partition, .. }
            | Self::Source { partition, .. } => *partition,
        }
    }
}

/// Rows looked at per step of a listing: about a millisecond of the worker's time.
const STEP_ROWS: usize = 512;

/// Answers from what `reader` shows. Whoever asked may have gone: an answer that nobody takes is dropped.
pub(crate) fn answer(query: Query, reader: &Reader<'_>) -> Result<(), StateError> {
    match query {
        Query::Invocation { id, reply } => {
            let info = reader.get::<Invocations>(&id)?.map(|invocation| Box::new(info(id, invocation)));
            let _ = reply.send(info);
        }
        Query::List { filter, range, limit, reply, .. } => {
            let rows = reader.scan::<Invocations>(&range.from, range.to.as_ref(), STEP_ROWS)?;
            let mut step = ListStep { found: Vec::new(), next: None };
            if rows.len() == STEP_ROWS {
                step.next = rows.last().map(|(id, _)| next_id(*id));
            }
            for (id, invocation) in rows {
                if step.found.len() < limit && matches(&filter, &invocation) {
                    step.found.push(info(id, invocation));
                }
            }
            let _ = reply.send(step);
        }
        Query::Parked { subscription, after, limit, reply, .. } => {
            let from = ParkedKey { subscription, number: after.saturating_add(1) };
            let to = ParkedKey { subscription, number: u64::MAX };
            let rows = reader.scan::<Parked>(&from, Some(&to), limit)?;
            let _ = reply.send(rows.into_iter().map(|(key, record)| (key.number, record)).collect());
        }
        Query::Sources { from, reply, .. } => {
            let rows = reader.scan::<Sources>(&from, None, STEP_ROWS)?;
            let _ = reply.send(rows.into_iter().map(|(id, _)| id).collect());
        }
        Query::Source { subscription, reply, .. } => {
            let parked = reader.get::<Sources>(&subscription)?.map_or(0, |row| u64::from(row.parked));
            let _ = reply.send(parked);
        }
    }
    Ok(())
}

fn matches(filter: &ListFilter, invocation: &Invocation) -> bool {
    let target = &invocation.target;
    filter.service.as_deref().is_none_or(|service| *target.service == *service)
        && filter.key.as_deref().is_none_or(|key| target.kind.is_keyed() && *target.key == *key)
        && filter.status.is_none_or(|status| invocation.status() == status)
}

fn info(id: InvocationId, invocation: Invocation) -> InvocationInfo {
    let status = invocation.status();
    let mut info = InvocationInfo {
        id,
        target: invocation.target,
        status,
        idempotency_key: invocation.idempotency_key,
        origin: invocation.origin,
        created_at: invocation.created_at,
        modified_at: invocation.modified_at,
        execute_at: invocation.execute_at,
        attempts: 0,
        last_error: None,
        next_retry_at: None,
        pin: None,
        journal_len: 1,
        failure: None,
        completed_at: None,
    };
    match invocation.stage {
        Stage::Scheduled | Stage::Queued(_) => {}
        Stage::Active(active) => {
            if let Progress::BackingOff { until } = active.progress {
                info.next_retry_at = Some(until);
            }
            info.attempts = active.attempts_started;
            info.last_error = active.last_error;
            info.pin = active.pin;
            info.journal_len = active.journal_len;
        }
        Stage::Completed { outcome, completed_at, journal_len, attempts, .. } => {
            info.attempts = attempts;
            info.journal_len = journal_len;
            info.completed_at = Some(completed_at);
            info.failure = match outcome {
                Outcome::Success(_) => None,
                Outcome::Failure(failure) => Some(failure),
            };
        }
    }
    info
}
