//! What happens to a partition: the payload of its log.
//!
//! Owns: the shape of records and events. Everything `apply` needs of clock, catalog and settings was resolved at the edge and
//! lies in here (rule M1). Does not own: what an event does (`machine`).

use crate::catalog::CatalogEvent;
use crate::{
    Attempt, AttemptError, Caller, Failure, Incarnation, InvocationId, NotificationId, Origin, Outcome, ParkedRecord,
    PartitionId, Pin, RequestId, Retention, SourceRecord, SubscriptionId, Target, Text, Timestamp, encoding,
};
use bytes::Bytes;
use minicbor::{Decode, Encode};

/// One element of a partition's log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Record {
    /// When it was appended, by the wall clock of the edge; orders and stamps only, made monotone by `apply` (rule T1).
    #[n(0)]
    pub at: Timestamp,
    #[n(1)]
    pub event: Event,
    /// The version of the rules that wrote it (rule M7).
    #[n(2)]
    pub rules: u16,
}

/// The version of the rules by which this build writes records and applies them. It rises when `apply` makes something else of a
/// record than before; `apply` then branches on the record's version (rule M7).
pub const RULES: u16 = 1;

impl Record {
    /// A record under the present rules.
    pub fn new(at: Timestamp, event: Event) -> Self {
        Self { at, event, rules: RULES }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Event {
    /// A new term begins; running attempts of the old one are void (rule M6).
    #[n(0)]
    LeaderElected {
        /// Drawn at process start; answers go to this process only (rule O2).
        #[n(0)]
        process: u64,
    },
    #[n(1)]
    InvocationSubmitted(#[n(0)] Box<Submission>),
    #[n(2)]
    AttemptProgressed(#[n(0)] Box<AttemptProgress>),
    /// A timer's time has come. Without its row it is dropped (rule T2).
    #[n(3)]
    TimerFired {
        #[n(0)]
        due: Timestamp,
        #[n(1)]
        id: InvocationId,
        /// Tells apart what one invocation waits for at one time: a completion id, or 0 for its start or retry.
        #[n(2)]
        slot: u32,
    },
    /// Retention is over, or the byte bound asks for room (rule R1).
    #[n(4)]
    RetentionExpired {
        #[n(0)]
        id: InvocationId,
        #[n(1)]
        incarnation: Incarnation,
        /// The journal only, or all that is left.
        #[n(2)]
        journal_only: bool,
    },
    #[n(5)]
    OperatorRequested {
        #[n(0)]
        id: InvocationId,
        #[n(1)]
        operation: Operation,
        #[n(2)]
        request: RequestId,
    },
    /// A message of another partition (or of this one), exactly once by its sequence number (rule O1).
    #[n(6)]
    MessageArrived {
        #[n(0)]
        from: PartitionId,
        #[n(1)]
        sequence: u64,
        #[n(2)]
        message: Message,
    },
    /// Messages to `to` up to this sequence number are durable there.
    #[n(7)]
    OutboxAcked {
        #[n(0)]
        to: PartitionId,
        #[n(1)]
        up_to: u64,
    },
    /// This partition admits Kafka records of this subscription and epoch from here on (rule K7).
    #[n(8)]
    SourceOpened {
        #[n(0)]
        subscription: SubscriptionId,
        #[n(1)]
        epoch: u32,
    },
    /// No Kafka record of this subscription is admitted any more; what it parked is gone.
    #[n(9)]
    SourceClosed {
        #[n(0)]
        subscription: SubscriptionId,
    },
    #[n(10)]
    RecordParked(#[n(0)] Box<ParkedRecord>),
    #[n(11)]
    ParkedDiscarded {
        #[n(0)]
        subscription: SubscriptionId,
        /// The number of the row in this partition.
        #[n(1)]
        number: u64,
        #[n(2)]
        request: RequestId,
    },
    /// In the catalog's partition only.
    #[n(12)]
    CatalogChanged(#[n(0)] Box<CatalogEvent>),
}

/// Someone wants an invocation.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Submission {
    #[n(0)]
    pub id: InvocationId,
    #[n(1)]
    pub target: Target,
    /// The `Input` command as the handler will get it, without frame header.
    #[cbor(n(2), with = "encoding::bytes")]
    pub input: Bytes,
    #[n(3)]
    pub idempotency_key: Option<Text>,
    #[n(4)]
    pub origin: Origin,
    #[n(5)]
    pub execute_at: Option<Timestamp>,
    #[n(6)]
    pub retention: Retention,
    #[n(7)]
    pub random_seed: u64,
    /// The client that waits.
    #[n(8)]
    pub request: Option<Request>,
    /// The invocation that waits for the result.
    #[n(9)]
    pub caller: Option<Caller>,
    /// The Kafka record it was made of.
    #[n(10)]
    pub source: Option<SourceRecord>,
}

/// What a client of the ingress waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Request {
    #[n(0)]
    pub id: RequestId,
    /// The result, or only that the submission is accepted.
    #[n(1)]
    pub awaits_result: bool,
}

/// What an attempt brought since its last event: messages that arrived together travel together.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AttemptProgress {
    #[n(0)]
    pub id: InvocationId,
    #[n(1)]
    pub attempt: Attempt,
    /// Index of the first command among `items`: commands stored so far (rule M5).
    #[n(2)]
    pub first_command: u32,
    /// Where the attempt runs; kept with the first stored entry.
    #[n(3)]
    pub pin: Pin,
    #[n(4)]
    pub items: Vec<Item>,
    #[n(5)]
    pub end: Option<AttemptEnd>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Item {
    #[n(0)]
    Command {
        /// One of [`crate::entry_type`].
        #[n(0)]
        ty: u16,
        /// The message as received, without frame header.
        #[cbor(n(1), with = "encoding::bytes")]
        raw: Bytes,
        #[n(2)]
        action: Action,
    },
    /// The result of a run.
    #[n(1)]
    RunProposed {
        #[n(0)]
        completion: u32,
        #[n(1)]
        outcome: Outcome,
    },
}

/// What a stored command asks for. Payloads are named by their place in the command's raw bytes: `(start, length)`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Action {
    /// Nothing: the command is kept for replay.
    #[n(0)]
    Keep,
    #[n(1)]
    Succeed {
        #[n(0)]
        value: (u32, u32),
    },
    #[n(2)]
    Fail(#[n(0)] Failure),
    #[n(3)]
    SetState {
        #[n(0)]
        key: Text,
        #[n(1)]
        value: (u32, u32),
    },
    #[n(4)]
    ClearState {
        #[n(0)]
        key: Text,
    },
    #[n(5)]
    ClearAllState,
    #[n(6)]
    GetState {
        #[n(0)]
        key: Text,
        #[n(1)]
        completion: u32,
    },
    #[n(7)]
    GetStateKeys {
        #[n(0)]
        completion: u32,
    },
    #[n(8)]
    Sleep {
        #[n(0)]
        until: Timestamp,
        #[n(1)]
        completion: u32,
    },
    #[n(9)]
    Run {
        #[n(0)]
        completion: u32,
    },
    /// A call where `result` is there, a one-way call where not. `submission.caller` is filled in by the machine.
    #[n(10)]
    Call {
        #[n(0)]
        submission: Box<Submission>,
        #[n(1)]
        partition: PartitionId,
        /// Completion id of the callee's invocation id.
        #[n(2)]
        id_completion: u32,
        /// Completion id of the callee's result.
        #[n(3)]
        result: Option<u32>,
    },
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AttemptEnd {
    #[n(0)]
    Completed,
    #[n(1)]
    Suspended {
        /// Any of these resumes it.
        #[n(0)]
        awaiting: Vec<NotificationId>,
        /// Journal index of the last notification the attempt was sent, as replay or live (rule M5).
        #[n(1)]
        last_delivered: u32,
    },
    #[n(2)]
    Failed {
        #[n(0)]
        error: AttemptError,
        #[n(1)]
        verdict: Verdict,
        /// False for trouble on the server's side, which raises no counter that handlers see.
        #[n(2)]
        by_handler: bool,
    },
}

/// What follows a failed attempt, decided by the retry policy at the edge.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Verdict {
    #[n(0)]
    Retry {
        #[n(0)]
        at: Timestamp,
        /// False where the handler named the delay itself.
        #[n(1)]
        counted: bool,
    },
    #[n(1)]
    Pause,
    /// Complete with this error.
    #[n(2)]
    Fail,
}

/// What an operator asks of one invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Operation {
    #[n(0)]
    Kill,
    #[n(1)]
    Pause,
    #[n(2)]
    Resume,
    #[n(3)]
    Purge,
    #[n(4)]
    PurgeJournal,
}

/// What one partition tells another.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Message {
    #[n(0)]
    Submit(#[n(0)] Box<Submission>),
    #[n(1)]
    Result(#[n(0)] Box<CalleeResult>),
    /// The caller was killed: so is the callee, if this caller is who it works for. Another life of the same id is not.
    #[n(2)]
    Kill {
        #[n(0)]
        id: InvocationId,
        #[n(1)]
        caller: Caller,
    },
}

/// A callee's result on its way to the caller.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CalleeResult {
    #[n(0)]
    pub caller: Caller,
    #[n(1)]
    pub outcome: Outcome,
}
