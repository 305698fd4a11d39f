//! What happens to a partition: the payload of its log.
//!
//! Owns: the shape of records and events. Everything `apply` needs of clock, catalog and settings was resolved at the edge and
//! lies in here (rule M1). Does not own: what an event does (`machine`).

use crate::catalog::CatalogEvent;
use crate::{
    Attempt, AttemptError, Caller, Failure, Incarnation, InvocationId, Life, NotificationId, Origin, Outcome, ParkedRecord,
    PartitionId, Pin, RequestId, Retention, SourceRecord, SubscriptionId, Target, TargetKind, Text, Timestamp, encoding,
};
use bytes::Bytes;
use minicbor::{Decode, Decoder, Encode};

/// One element of a partition's log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Record {
    /// The version of the rules that wrote it (rule M7). First, and read before anything else: what follows may hold what this
    /// build does not know.
    #[n(0)]
    pub rules: u16,
    /// When it was appended, by the wall clock of the edge; orders and stamps only, made monotone by `apply` (rule T1).
    #[n(1)]
    pub at: Timestamp,
    #[n(2)]
    pub event: Event,
}

/// The version of the rules by which this build writes records and applies them (rule M7). It rises
/// - when `apply` makes something else of a record than before: it then branches on the record's version;
/// - with every new variant and every new field of an event, an item, an action, a message or whatever else lies in a record or in
///   a table's row. A build that does not know a variant would read it as unreadable, or as absent where it lies in an `Option`.
pub const RULES: u16 = 1;

/// What a record counts beside its payload where it waits in a queue, in bytes: to apply a small one takes about as long as to write so
/// many bytes. It bounds a queue in time, and what is small cannot make it long.
pub const RECORD_COST: u64 = 8 << 10;

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// To be mended from outside: by the version that wrote it.
    #[error("it follows version {found} of the rules, and this build knows up to {RULES}: start the version that wrote it")]
    Newer { found: u16 },
    #[error(transparent)]
    Encoding(#[from] encoding::Error),
}

impl Record {
    /// A record under the present rules.
    pub fn new(at: Timestamp, event: Event) -> Self {
        Self { rules: RULES, at, event }
    }

    /// Reads a record, the version of its rules alone at first. **Errors** where this build is too old for it, whatever it holds,
    /// and where it is unreadable.
    pub fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let Head { rules } = encoding::decode(bytes, "record")?;
        if rules > RULES {
            return Err(RecordError::Newer { found: rules });
        }
        Ok(encoding::decode_shared(bytes, "record")?)
    }
}

/// A record as far as its version: all that follows is left alone, whatever it is.
struct Head {
    rules: u16,
}

impl<'b, C> Decode<'b, C> for Head {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        decoder.array()?;
        Ok(Self { rules: decoder.u16()? })
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
        owner: TimerOwner,
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
    /// The next piece of work that was too long for one record (rule M9). Without its row it is dropped.
    #[n(13)]
    ChoreDue {
        #[n(0)]
        chore: u64,
    },
}

/// What a timer was set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum TimerOwner {
    #[n(0)]
    Invocation {
        #[n(0)]
        life: Life,
        /// Tells apart what one invocation waits for at one time: a completion id, or 0 for its start or retry.
        #[n(1)]
        slot: u32,
    },
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

impl Submission {
    /// Whether the same id may be submitted again, by a name that is not ours: an idempotency key, or a workflow's key. Any other
    /// id is new by construction.
    pub fn is_named(&self) -> bool {
        self.idempotency_key.is_some() || self.target.kind == TargetKind::WorkflowRun
    }
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

impl AttemptProgress {
    /// Items that one event brings at most: what applying it takes is bounded (rule M9).
    pub const ITEMS_MAX: usize = 128;
    /// Reads of state among them at most. The journal keeps a copy of what is read, and nobody knows its size before: an event copies
    /// one value, or the names of one key.
    pub const READS_MAX: usize = 1;
}

impl Item {
    /// Whether it is answered with what the state holds.
    pub fn reads_state(&self) -> bool {
        matches!(self, Self::Command { action: Action::GetState { .. } | Action::GetStateKeys { .. }, .. })
    }
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
    /// A call where `result` is there, a one-way call where not. The machine fills in `submission.caller`, and puts the parameter behind
    /// `submission.input`, which is the rest of the input.
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
        #[n(4)]
        parameter: (u32, u32),
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
        /// False for trouble on the server's side, or where no handler was reached, which raises no counter that handlers see.
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
        /// False where the handler named the delay itself, or none was reached.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeploymentId;

    /// A record that this build wrote, and one of the next version with the same bytes behind its rules.
    fn record(event: Event) -> (Vec<u8>, Vec<u8>) {
        let ours = Record::new(Timestamp(5), event);
        (encoding::encode(&ours), encoding::encode(&Record { rules: RULES + 1, ..ours }))
    }

    fn decode(bytes: &[u8]) -> Result<Record, RecordError> {
        Record::decode(&Bytes::copy_from_slice(bytes))
    }

    fn is_newer(bytes: &[u8]) -> bool {
        matches!(decode(bytes), Err(RecordError::Newer { found }) if found == RULES + 1)
    }

    /// After a step back to an older version its partitions stopped as unreadable, instead of the start being refused.
    #[test]
    fn a_record_of_newer_rules_says_so_whatever_it_holds() {
        let (ours, next) = record(Event::LeaderElected { process: 0 });
        assert!(decode(&ours).is_ok() && is_newer(&next));
        // The event's variant is the last but one: no build knows this one. In CBOR: [rules, at, [variant, [process]]].
        let unknown = |mut bytes: Vec<u8>| {
            let at = bytes.len() - 3;
            assert_eq!(bytes[at..], [0, 0x81, 0]);
            bytes[at] = 23;
            bytes
        };
        assert!(matches!(decode(&unknown(ours)), Err(RecordError::Encoding(_))));
        assert!(is_newer(&unknown(next)));
    }

    /// The derived decoder takes an unknown variant within an `Option` for `None`: nothing but the rules' version tells.
    #[test]
    fn an_unknown_variant_in_an_option_is_newer_and_never_absent() {
        let progress = AttemptProgress {
            id: InvocationId { partition_key: 1, unique: 2 },
            attempt: Attempt(3),
            first_command: 1,
            pin: Pin { deployment: DeploymentId(4), protocol: 5 },
            items: Vec::new(),
            end: Some(AttemptEnd::Completed),
        };
        let (mut ours, mut next) = record(Event::AttemptProgressed(Box::new(progress)));
        for bytes in [&mut ours, &mut next] {
            let at = bytes.len() - 2;
            assert_eq!(bytes[at..], [0, 0x80], "the end is last: [variant, []]");
            bytes[at] = 23;
        }
        match decode(&ours).unwrap().event {
            Event::AttemptProgressed(progress) => assert_eq!(progress.end, None, "what makes the version rise"),
            other => panic!("{other:?}"),
        }
        assert!(is_newer(&next));
    }
}
