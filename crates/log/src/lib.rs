//! The durable order of events: append, replay, trim. Ground state; everything else is derived from it.
//!
//! Owns: the [`Log`] trait and its local implementation in [`local`]. Does not own: the meaning of payloads (bytes here), which
//! record a reader has applied, or when it is safe to trim.

pub mod local;

use bytes::Bytes;
use surefoot_model::{Epoch, Lsn, PartitionId};

/// One durable entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub partition: PartitionId,
    pub lsn: Lsn,
    pub epoch: Epoch,
    pub payload: Bytes,
}

/// Called on the writer's thread once all entries of an append are durable, with the LSN of the last. Must return quickly.
pub type Durable = Box<dyn FnOnce(Lsn) + Send>;

/// Where durable entries go: a partition worker's mailbox.
pub trait Sink: Send + Sync {
    /// Takes entries that just became durable, in log order, LSNs dense per partition. Must return quickly and never wait.
    fn durable(&self, entries: Vec<Entry>);
}

/// The durable log as partition workers and edges see it.
pub trait Log: Send + Sync {
    /// Queues entries for `partition`, in order after everything queued before. Never waits; what is in flight is bounded by its
    /// callers' permits (rule O3). Each entry reaches the partition's [`Sink`] once durable. `durable` is called then, too.
    /// There is no error to handle: a log that finds no room waits until there is some, and one that cannot make an entry durable
    /// stops the process (rule L4). For what running work needs: it may fill the log's reserve (rule L8).
    fn append(&self, partition: PartitionId, epoch: Epoch, payloads: Vec<Bytes>, durable: Option<Durable>);

    /// As [`Log::append`], for what comes from outside: it waits while nothing but the reserve is left, and what is appended
    /// meanwhile goes before it (rule L8). Entries appended in this way keep their order among themselves.
    fn append_from_outside(&self, partition: PartitionId, epoch: Epoch, payloads: Vec<Bytes>, durable: Option<Durable>);

    /// The process stops: from now on what comes from outside does not wait for room, and is dropped where there is none but the
    /// reserve, with its callback. So what is appended after is behind all that was, and a last checkpoint covers it (rule M7).
    fn drop_waiting(&self);

    /// Entries of `partition` up to and including `up_to` are covered by a synced checkpoint and may go (rule C2).
    fn trim(&self, partition: PartitionId, up_to: Lsn);

    /// What a recovery would read now.
    fn retained(&self) -> Retained;

    /// Whether room on the disk is short: then no more is kept ready than what comes next.
    fn set_short(&self, is_short: bool);
}

/// How much a log holds, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retained {
    pub bytes: u64,
    /// The partition whose checkpoint would free most of what holds the oldest part (rule C5). `None`: nothing but what is being
    /// written is held, or it can go already.
    pub oldest_holder: Option<PartitionId>,
    pub room: Room,
}

/// What a log can take now (rule L8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Enough,
    /// Nothing but the reserve is left: events of running work are written, what comes from outside waits.
    Reserve,
    /// Nothing is written before there is room again. What is durable stays so.
    None,
}
