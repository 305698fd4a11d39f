//! The row of one invocation: everything about it but what grows with its use. Of that (journal, open completions, waiting
//! callers) it holds counts, so that it is small and cloned in constant time (rule O7).
//!
//! Owns: shape and at-rest encoding. Does not own: transitions between the stages (`machine`).

use crate::{
    Attempt, DeploymentId, Epoch, Incarnation, InvocationId, Life, NotificationId, Outcome, PartitionId, Shared, SubscriptionId,
    Target, Text, Timestamp,
};
use minicbor::{Decode, Encode};

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Invocation {
    #[n(0)]
    pub incarnation: Incarnation,
    #[n(1)]
    pub target: Target,
    #[n(2)]
    pub idempotency_key: Option<Text>,
    #[n(3)]
    pub origin: Origin,
    #[n(4)]
    pub created_at: Timestamp,
    #[n(5)]
    pub modified_at: Timestamp,
    /// The due time of one that was submitted with a delay.
    #[n(6)]
    pub execute_at: Option<Timestamp>,
    #[n(7)]
    pub retention: Retention,
    #[n(8)]
    pub random_seed: u64,
    /// Invocations that wait for the result: a row each, in a table of their own.
    #[n(9)]
    pub waiters: u32,
    #[n(10)]
    pub stage: Stage,
}

/// How long what is left of an invocation is kept after its completion, in milliseconds; fixed when it is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Retention {
    #[n(0)]
    pub completion_ms: u64,
    /// At most `completion_ms`.
    #[n(1)]
    pub journal_ms: u64,
}

/// Who started an invocation.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Origin {
    #[n(0)]
    Ingress,
    #[n(1)]
    Invocation(#[n(0)] InvocationId),
    #[n(2)]
    Subscription(#[n(0)] SubscriptionId),
}

/// An invocation that waits for a result, and where to send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Caller {
    #[n(0)]
    pub partition: PartitionId,
    #[n(1)]
    pub id: InvocationId,
    #[n(2)]
    pub incarnation: Incarnation,
    /// The completion id in the caller's journal.
    #[n(3)]
    pub completion: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Stage {
    /// Waits for `execute_at`.
    #[n(0)]
    Scheduled,
    /// Waits in its key's inbox, at this slot.
    #[n(1)]
    Queued(#[n(0)] u64),
    #[n(2)]
    Active(#[n(0)] Box<Active>),
    #[n(3)]
    Completed {
        #[n(0)]
        outcome: Outcome,
        #[n(1)]
        completed_at: Timestamp,
        #[n(2)]
        expires_at: Timestamp,
        /// Entries still kept; 0 once the journal is gone.
        #[n(3)]
        journal_len: u32,
        /// Attempts it took.
        #[n(4)]
        attempts: u32,
    },
}

/// An invocation whose journal has begun.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Active {
    #[n(0)]
    pub progress: Progress,
    /// The newest attempt; messages of any other are dropped.
    #[n(1)]
    pub attempt: Attempt,
    /// Entries in the journal, commands and notifications.
    #[n(2)]
    pub journal_len: u32,
    /// Commands in the journal, `Input` included.
    #[n(3)]
    pub commands: u32,
    /// Set with the first stored command or run proposal.
    #[n(4)]
    pub pin: Option<Pin>,
    /// Commands whose completion has not come: a row each, in a table of their own.
    #[n(5)]
    pub open: u32,
    /// The result, once an `Output` is stored; the last one wins.
    #[n(6)]
    pub output: Option<Outcome>,
    /// Attempts that the retry policy has counted since the invocation last left the invoker, in the term `counted_in`.
    #[n(7)]
    pub attempts_counted: u32,
    /// Failed attempts since the last stored command (protocol reference 6.9).
    #[n(8)]
    pub retries_since_entry: u32,
    /// By the raw clock of the edge: what counts from it goes on after a clock that had jumped ahead (rule T1).
    #[n(9)]
    pub last_entry_at: Timestamp,
    #[n(10)]
    pub last_error: Option<Shared<AttemptError>>,
    /// All attempts of this incarnation.
    #[n(11)]
    pub attempts_started: u32,
    /// Payload bytes of the journal's entries.
    #[n(12)]
    pub journal_bytes: u64,
    /// The term of the newest attempt; a later one counts `attempts_counted` anew (protocol reference 7.2).
    #[n(13)]
    pub counted_in: Epoch,
    /// Of the newest attempt.
    #[n(14)]
    pub class: AttemptClass,
    /// Its turn in the class.
    #[n(15)]
    pub turn: u64,
    /// The largest completion id that a command of it has waited under: none waits under a larger one.
    #[n(16)]
    pub opened_up_to: u32,
}

impl Active {
    /// Attempts that the retry policy has counted, as far as they count in the term `epoch`.
    pub fn attempts_counted(&self, epoch: Epoch) -> u32 {
        if self.counted_in == epoch { self.attempts_counted } else { 0 }
    }
}

/// Which attempts go before which when they wait for a place; within a class in the order of their numbers (rule O5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum AttemptClass {
    /// What has begun and what others wait for: resumed and retried attempts, callees, and what stands before one in its key's inbox.
    #[n(0)]
    Needed,
    /// The first attempt of what nobody within waits for.
    #[n(1)]
    Fresh,
}

impl AttemptClass {
    /// In the order in which they are started.
    pub const ALL: [Self; 2] = [Self::Needed, Self::Fresh];
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Progress {
    /// An attempt runs, or waits for a slot to run in.
    #[n(0)]
    Running,
    #[n(1)]
    BackingOff {
        #[n(0)]
        until: Timestamp,
    },
    #[n(2)]
    Suspended {
        #[n(0)]
        awaiting: Awaited,
    },
    /// Waits for an operator.
    #[n(3)]
    Paused,
}

/// What a suspended invocation waits for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Awaited {
    /// Any of these; sorted.
    #[n(0)]
    These(#[n(0)] Shared<Vec<NotificationId>>),
    /// Any notification at all: too many were named to be remembered. It may be resumed more often than it needs.
    #[n(1)]
    Any,
}

impl Awaited {
    /// Remembers at most `ids_max` of them, with `name_bytes_max` in the names of signals.
    pub fn new(ids: &[NotificationId], ids_max: usize, name_bytes_max: usize) -> Self {
        let name_bytes = |id: &NotificationId| match id {
            NotificationId::NamedSignal(name) => name.len(),
            NotificationId::Completion(_) | NotificationId::Signal(_) => 0,
        };
        if ids.len() > ids_max || ids.iter().map(name_bytes).sum::<usize>() > name_bytes_max {
            return Self::Any;
        }
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        Self::These(ids.into())
    }

    pub fn contains(&self, id: &NotificationId) -> bool {
        match self {
            Self::These(ids) => ids.binary_search(id).is_ok(),
            Self::Any => true,
        }
    }
}

/// The deployment and protocol version that an invocation stays with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Pin {
    #[n(0)]
    pub deployment: DeploymentId,
    #[n(1)]
    pub protocol: u8,
}

/// A command that waits for its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum OpenCompletion {
    #[n(0)]
    Run,
    #[n(1)]
    Sleep {
        #[n(0)]
        until: Timestamp,
    },
    #[n(2)]
    Call {
        #[n(0)]
        callee: InvocationId,
        #[n(1)]
        partition: PartitionId,
    },
}

/// Why the last attempt failed. The edge keeps its texts within [`AttemptError::BYTES_MAX`], for it lies in the row.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AttemptError {
    #[n(0)]
    pub code: u32,
    #[n(1)]
    pub message: String,
    #[n(2)]
    pub at: Timestamp,
    #[n(3)]
    pub stacktrace: Option<String>,
    /// The command that failed, as the handler names it: index, type code and name.
    #[n(4)]
    pub command: Option<(u32, u16, String)>,
}

/// An invocation's status as operators see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Scheduled,
    Pending,
    Running,
    BackingOff,
    Suspended,
    Paused,
    Completed,
}

impl Status {
    pub const ALL: [Self; 7] =
        [Self::Scheduled, Self::Pending, Self::Running, Self::BackingOff, Self::Suspended, Self::Paused, Self::Completed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Pending => "pending",
            Self::Running => "running",
            Self::BackingOff => "backing-off",
            Self::Suspended => "suspended",
            Self::Paused => "paused",
            Self::Completed => "completed",
        }
    }
}

impl AttemptError {
    /// Bytes of all its texts.
    pub const BYTES_MAX: usize = 80 << 10;

    pub fn bytes(&self) -> usize {
        let command = self.command.as_ref().map_or(0, |(_, _, name)| name.len());
        self.message.len() + self.stacktrace.as_ref().map_or(0, String::len) + command
    }
}

impl Invocation {
    /// This life of it.
    pub fn life(&self, id: InvocationId) -> Life {
        Life { id, incarnation: self.incarnation }
    }

    pub fn status(&self) -> Status {
        match &self.stage {
            Stage::Scheduled => Status::Scheduled,
            Stage::Queued(_) => Status::Pending,
            Stage::Completed { .. } => Status::Completed,
            Stage::Active(active) => match active.progress {
                Progress::Running => Status::Running,
                Progress::BackingOff { .. } => Status::BackingOff,
                Progress::Suspended { .. } => Status::Suspended,
                Progress::Paused => Status::Paused,
            },
        }
    }

    pub fn active(&self) -> Option<&Active> {
        match &self.stage {
            Stage::Active(active) => Some(active),
            _ => None,
        }
    }
}
