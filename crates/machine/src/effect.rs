//! What is to be done about a record, once it is applied: imperative, in order, carried out by `partition`.
//!
//! Effects are never the only trace of work: whoever leads next finds attempts to start, timers to fire, chores to do and messages
//! to send in the tables alone. Answers to clients are the exception, and go only to the process that asked (rule O2).

use crate::{ExpiryKey, RunningKey, TimerKey};
use surefoot_model::catalog::CatalogEvent;
use surefoot_model::{Attempt, InvocationId, Notification, Outcome, PartitionId, Request, RequestId, SubscriptionId, Timestamp};

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Start an attempt, or have one that waits to be started go where `key` says; what it needs is read from the tables.
    StartAttempt {
        id: InvocationId,
        attempt: Attempt,
        key: RunningKey,
    },
    /// Stop an attempt; nothing it brings counts any more.
    AbortAttempt {
        id: InvocationId,
        attempt: Attempt,
    },
    /// Hand a notification to a running attempt.
    DeliverNotification {
        id: InvocationId,
        attempt: Attempt,
        index: u32,
        notification: Notification,
    },
    /// Tell a client that its submission is durable, or have it wait for [`Effect::Complete`] if it awaits the result.
    Accept {
        request: Request,
        id: InvocationId,
        existing: bool,
        execute_at: Option<Timestamp>,
    },
    /// Give a client a retained result.
    ReplyRetained {
        request: RequestId,
        id: InvocationId,
        outcome: Outcome,
        expires_at: Timestamp,
    },
    /// Tell a client that the workflow's run handler has been called before.
    RefuseRepeatedRun {
        request: RequestId,
        id: InvocationId,
    },
    /// Give the result to every client that waits for it.
    Complete {
        id: InvocationId,
        outcome: Outcome,
    },
    ReplyOperation {
        request: RequestId,
        answer: OperationAnswer,
    },
    /// A timer was set.
    SetTimer(TimerKey),
    /// Something is kept until then.
    SetExpiry(ExpiryKey),
    /// A chore has work to do: have [`Event::ChoreDue`](surefoot_model::Event::ChoreDue) come.
    SetChore(u64),
    /// A message waits in the outbox.
    Send {
        to: PartitionId,
        sequence: u64,
    },
    /// The number of parked Kafka records of a subscription in this partition changed.
    CountParked {
        subscription: SubscriptionId,
        parked: u32,
    },
    /// Publish the catalog with this change.
    PublishCatalog(Box<CatalogEvent>),
}

/// What an operator's request led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationAnswer {
    /// Done.
    Done,
    /// Taken, and done at the next safe point.
    Accepted,
    NotFound,
    /// It has completed.
    Completed,
    /// It has not completed.
    NotCompleted,
    /// It has not begun.
    NotStarted,
}
