//! What goes into the invoker and what comes out.

use crate::feed::Notifications;
use bytes::Bytes;
use std::fmt;
use surefoot_env::BoxFuture;
use surefoot_model::catalog::Defaults;
use surefoot_model::{
    Attempt, AttemptProgress, DeploymentId, Entry, InvocationId, Notification, PartitionId, Pin, Target, Text, Timestamp,
};
use tokio::sync::OwnedSemaphorePermit;

/// Bounds and defaults of attempts.
#[derive(Clone, Debug)]
pub struct Settings {
    pub defaults: Defaults,
    /// Attempts that run at a time on this node.
    pub attempts_max: usize,
    /// Bytes of journals and state being replayed at a time, as far as they are in memory; one attempt may pass it alone.
    pub replay_bytes_max: usize,
    /// Bytes that attempts have reported and that are not applied yet, each report with [`surefoot_model::RECORD_COST`]; beyond it attempts
    /// stop reading, those of each deployment in turn, and none starts of a deployment that waits so. One report may pass it alone.
    pub report_bytes_max: usize,
    /// Bytes of state that handlers have asked for and that have not come, each value as large as any of its key's may be. One may pass it
    /// alone.
    pub read_bytes_max: usize,
    /// Bytes of notifications that have not left for their handlers, beyond a little of each attempt. One notification may pass it.
    pub live_bytes_max: usize,
    /// Bytes of handlers' messages that have come in part, beyond a little of each attempt. One message at a time may pass it.
    pub part_bytes_max: usize,
    /// The largest message to a handler. What the server puts around a payload does not count.
    pub message_bytes_max: usize,
    /// The largest one that is taken from a handler: no larger, and less where the disk has become a smaller one than it was.
    pub taken_bytes_max: usize,
    /// Entries of a journal, and payload bytes of them, at which its invocation is paused.
    pub journal_entries_max: u32,
    pub journal_bytes_max: u64,
    /// State sent with the start of an attempt; what is beyond is fetched by the handler.
    pub eager_state_bytes_max: usize,
    /// Number of partitions, to route calls.
    pub partitions: u16,
    /// Sent on every request to a deployment (`x-restate-cluster-name` by default).
    pub additional_headers: Vec<(String, String)>,
    /// What the simulator breaks on purpose.
    pub mutant: Mutant,
}

/// Deliberately broken variants of the invoker, each of which a check must catch: a test of this room or of `partition`, or the
/// simulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    #[default]
    None,
    /// Asks no attempt that waits to suspend (rule O5).
    NeverAsk,
    /// Lets a deployment that does not answer have all places (rule O5).
    TakeAllPlaces,
    /// Lets a deployment that has answered have all places, however long its attempts go on (rule O5).
    WorkInAllPlaces,
    /// Begins at once what no deployment serves (rule O5).
    BeginUnserved,
    /// Waits for ever for a handler that says nothing more (rule O5).
    NeverGiveUp,
    /// Goes on sending to a handler that does not read (rule O6).
    SendUnread,
    /// Has a report wait behind those of all attempts, whatever their deployments (rule O8).
    OneLine,
}

/// Where an attempt runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// On the deployment that the invocation stays with.
    Pinned(DeploymentId),
    /// On the newest deployment that serves this service once it starts.
    Newest(Text),
}

impl Destination {
    /// That of an attempt on this service.
    pub fn of(service: &Text, pin: Option<Pin>) -> Self {
        pin.map_or_else(|| Self::Newest(service.clone()), |pin| Self::Pinned(pin.deployment))
    }
}

/// One attempt to advance an invocation.
#[derive(Debug)]
pub struct AttemptStart {
    pub partition: PartitionId,
    pub id: InvocationId,
    pub attempt: Attempt,
    pub target: Target,
    pub random_seed: u64,
    /// Absent before the first stored entry: the newest deployment is chosen.
    pub pin: Option<Pin>,
    /// Commands among `replay` and `rest`.
    pub commands: u32,
    /// Payload bytes of both.
    pub journal_bytes: u64,
    /// The journal as far as the attempt is to know it at first: these entries, then those of `rest`. Their number is `known_entries`.
    pub replay: Vec<Entry>,
    pub rest: Option<Box<JournalRest>>,
    pub state: EagerState,
    /// The most bytes that an answer to a read of the key's state has had since it was last cleared, or could have had; 0 where it has none.
    pub read_bytes_max: u64,
    /// Start tag 7.
    pub retries_since_entry: u32,
    /// For Start tag 8.
    pub last_entry_at: Timestamp,
    /// Attempts that the retry policy has counted so far.
    pub attempts_counted: u32,
    /// The beginning of the response is to be told with [`Output::answered`].
    pub tells_answer: bool,
    /// Notifications beyond these entries, each with its journal index, in order; see [`crate::Invoker::feed`].
    pub live: Notifications,
}

/// What an attempt is to know of a journal at first and is not in memory. It is read as the handler takes what comes before: a journal may be
/// larger than what memory there is. It stays as it is for as long as the attempt counts.
pub struct JournalRest {
    /// How many entries it has.
    pub entries: u32,
    /// So many bytes of them are read at a time, or one entry that is larger.
    pub part_bytes: u64,
    /// Reads the next ones. None: they are gone, as the attempt does not count any more, or cannot be read, and the partition stops. It is
    /// aborted in both cases.
    pub read: Box<dyn FnOnce() -> BoxFuture<Option<ReadEntries>> + Send>,
}

impl fmt::Debug for JournalRest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalRest").field("entries", &self.entries).finish_non_exhaustive()
    }
}

/// Some entries of a journal, and those behind them.
#[derive(Debug)]
pub struct ReadEntries {
    pub entries: Vec<Entry>,
    pub rest: Option<Box<JournalRest>>,
}

/// State of the key at the start of the attempt.
#[derive(Clone, Debug, Default)]
pub struct EagerState {
    /// Sorted by name.
    pub entries: Vec<(Text, Bytes)>,
    /// Whether `entries` is all there is.
    pub complete: bool,
}

/// A notification for a running attempt.
#[derive(Clone, Debug)]
pub struct Live {
    pub index: u32,
    pub notification: Notification,
}

/// Room that a report takes until it is applied. Dropped with the one who learns that, or that it never will be; then more attempts
/// may ask for places.
#[derive(Debug)]
pub struct Room {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(crate) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: Some(permit) }
    }

    /// For what must be said whether there is room or not.
    pub(crate) fn beyond() -> Self {
        Self { _permit: None }
    }
}

/// Where attempts report. Implemented by `partition`; calls return at once.
pub trait Output: Send + Sync {
    /// Appends the event to the partition's log. Calls of one attempt keep their order. `room` is held until it is applied.
    fn progressed(&self, partition: PartitionId, progress: AttemptProgress, room: Room);

    /// The response has begun, where that was asked for; before anything that the attempt reports.
    fn answered(&self, partition: PartitionId, id: InvocationId, attempt: Attempt, deployment: DeploymentId);

    /// The attempt is over, whatever became of it, and its slot is free.
    fn ended(&self);

    /// Replays in flight are below their bound again, or a deployment may have more than its share was: attempts that were refused may
    /// ask again.
    fn has_room(&self);

    /// Whether memory lets attempts start and read on (rule C7), those at least whose deployments have brought little. Where it does not,
    /// the caller of `try_reserve` is told when to ask again. Only checkpoints free that memory, and they wait for no attempt.
    fn has_memory(&self) -> bool;

    /// Whether memory lets attempts of this deployment start and read on. A deployment that has brought much waits first (rule O8).
    fn has_memory_of(&self, deployment: DeploymentId) -> bool;

    /// Whether memory has room for so many bytes more that attempts of this deployment bring. Few bytes need no room of their own; many
    /// have to fit. Unlike [`Self::has_memory_of`] it notes nobody as waiting.
    fn has_memory_for(&self, deployment: DeploymentId, bytes: u64) -> bool;

    /// For those who wait for that.
    fn memory_ticket(&self, deployment: DeploymentId, bytes: u64) -> Box<dyn MemoryTicket>;
}

/// One report or message that needs memory for its bytes. A large one takes a place in the order of large ones at its first wait. It keeps
/// this place, and others may wait behind it, until the ticket is dropped: after the append (rule O8).
pub trait MemoryTicket: Send {
    /// As [`Output::has_memory_for`].
    fn has_memory(&self) -> bool;

    /// Completes while it has.
    fn memory(&mut self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// It waits for something that may take long: nobody waits behind it until it waits for memory again, in the place that it has now.
    fn step_aside(&mut self);
}
