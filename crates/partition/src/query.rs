//! Questions about a partition's state, answered from a published view where they are asked (rule C4).
//!
//! Owns: the questions, cut into pieces that are bounded in rows and in bytes, and the shape of answers. Does not own: views and
//! the way through all partitions (`handle`), or HTTP shapes (`admin`).

use surefoot_machine::{Invocations, Parked, ParkedKey, Sources, StateError, Streams};
use surefoot_model::{
    AttemptError, Failure, Invocation, InvocationId, Origin, Outcome, ParkedRecord, PartitionId, Pin, Progress, Stage, Status,
    StreamId, SubscriptionId, Target, Text, Timestamp, key_hash,
};
use surefoot_storage::{Limit, Reader};

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
    /// Why its deployment cannot be connected to, where that keeps it waiting.
    pub waits_for: Option<String>,
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
    /// What is kept of them.
    pub parked_bytes: u64,
}

/// A partition that has stopped, and why (rule C5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionHealth {
    pub partition: PartitionId,
    pub error: String,
}

/// Ids to look at: `from` included, `to` excluded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdRange {
    pub(crate) from: InvocationId,
    pub(crate) to: Option<InvocationId>,
}

/// What one step of a listing found, and where to go on.
#[derive(Debug)]
pub(crate) struct ListStep {
    pub(crate) found: Vec<InvocationInfo>,
    /// About how many bytes that is.
    pub(crate) bytes: usize,
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

/// Rows and bytes looked at before others have their turn: about a millisecond.
const STEP: Limit = Limit { rows: 256, bytes: 512 << 10, looks: usize::MAX };

/// Bytes of what a page holds, beyond which it ends before its limit in rows; one that is larger has a page of its own.
pub(crate) const PAGE_BYTES_MAX: usize = 8 << 20;

pub(crate) fn invocation(reader: &Reader<'_>, id: InvocationId) -> Result<Option<Box<InvocationInfo>>, StateError> {
    Ok(reader.get::<Invocations>(&id)?.map(|invocation| Box::new(info(id, invocation))))
}

/// One piece of a listing within one partition: at most `limit` matches, of [`PAGE_BYTES_MAX`] or little more.
pub(crate) fn list(reader: &Reader<'_>, filter: &ListFilter, range: IdRange, limit: usize) -> Result<ListStep, StateError> {
    let pace = Limit { looks: 8 * STEP.rows, ..STEP };
    let piece = reader.scan_within::<Invocations>(&range.from, range.to.as_ref(), pace)?;
    let behind = piece.rows.last().map(|(id, _)| next_id(*id)).filter(|_| !piece.is_last);
    let next = piece.goes_on_at.or(behind);
    let mut step = ListStep { found: Vec::new(), bytes: 0, next };
    for (id, invocation) in piece.rows {
        if matches(filter, &invocation) {
            let info = info(id, invocation);
            step.bytes += info_bytes(&info);
            step.found.push(info);
            if step.found.len() == limit || step.bytes >= PAGE_BYTES_MAX {
                step.next = Some(next_id(id));
                break;
            }
        }
    }
    Ok(step)
}

/// Parked Kafka records of one subscription in one partition: how many there are, and the row that the next piece begins behind.
#[derive(Debug, Default)]
pub(crate) struct ParkedRows {
    /// Row numbers, ascending, with the bytes of each.
    pub(crate) rows: Vec<(u64, usize)>,
    pub(crate) bytes: usize,
    /// There is nothing behind them.
    pub(crate) is_last: bool,
}

/// Adds the rows of one piece, without what is in them.
pub(crate) fn parked_rows(
    reader: &Reader<'_>,
    subscription: SubscriptionId,
    after: u64,
    found: &mut ParkedRows,
) -> Result<(), StateError> {
    let after = found.rows.last().map_or(after, |(row, _)| *row);
    let from = ParkedKey { subscription, number: after.saturating_add(1) };
    let to = ParkedKey { subscription, number: u64::MAX };
    let piece = reader.scan_within::<Parked>(&from, Some(&to), STEP)?;
    found.is_last = piece.is_last;
    for (key, record) in piece.rows {
        let bytes = parked_bytes(&record);
        found.rows.push((key.number, bytes));
        found.bytes += bytes;
    }
    Ok(())
}

pub(crate) fn parked(reader: &Reader<'_>, subscription: SubscriptionId, number: u64) -> Result<ParkedRecord, StateError> {
    let gone = || StateError { table: "parked", message: format!("row {number} was listed and has gone from the same view") };
    reader.get::<Parked>(&ParkedKey { subscription, number })?.ok_or_else(gone)
}

/// The watermarks of a subscription's streams in one epoch, from one on: one piece, and whether it is the last.
pub(crate) fn watermarks(reader: &Reader<'_>, from: StreamId) -> Result<(Vec<(StreamId, i64)>, bool), StateError> {
    let to = StreamId { epoch: from.epoch + 1, topic: 0, partition: 0, ..from };
    let piece = reader.scan_within::<Streams>(&from, Some(&to), STEP)?;
    Ok((piece.rows, piece.is_last))
}

/// Parked Kafka records of a subscription, and their bytes.
pub(crate) fn parked_total(reader: &Reader<'_>, subscription: SubscriptionId) -> Result<(u64, u64), StateError> {
    Ok(reader.get::<Sources>(&subscription)?.map_or((0, 0), |row| (u64::from(row.parked), row.parked_bytes)))
}

/// About what an answer takes in memory beyond a fixed size: what users can make long.
fn info_bytes(info: &InvocationInfo) -> usize {
    let error = info.last_error.as_ref().map_or(0, |e| e.message.len() + e.stacktrace.as_ref().map_or(0, String::len));
    let failure = info.failure.as_ref().map_or(0, |f| f.message.len() + f.stacktrace.as_ref().map_or(0, String::len));
    size_of::<InvocationInfo>() + info.target.key.len() + error + failure
}

fn parked_bytes(record: &ParkedRecord) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    size_of::<ParkedRecord>() + record.key.len() + record.value.len() + record.reason.len() + headers
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
        waits_for: None,
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
            info.last_error = active.last_error.map(|error| AttemptError::clone(&error));
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
