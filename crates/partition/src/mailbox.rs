//! What reaches a worker, and the queue it comes through.
//!
//! Owns: the closed list of inputs. The queue is unbounded by design: what may be in it is bounded by the permits of those who
//! append (rule O3); a bounded one would close a cycle between log and worker.

use crate::query::Query;
use std::sync::{Arc, Mutex, PoisonError};
use surefoot_env::Wake;
use surefoot_log::{Entry, Sink};
use surefoot_model::{Attempt, InvocationId, Lsn, PartitionId};
use surefoot_storage::Checkpointed;
use tokio::sync::oneshot;

pub(crate) enum Input {
    /// Entries that became durable, in log order.
    Durable(Vec<Entry>),
    Query(Query),
    /// An attempt's task is over and its slot is free.
    AttemptEnded {
        partition: PartitionId,
        id: InvocationId,
        attempt: Attempt,
    },
    /// A slot, or room for a replay, became free somewhere.
    SlotFreed,
    /// Messages to `to` are durable there up to this sequence number.
    OutboxDurable {
        from: PartitionId,
        to: PartitionId,
        up_to: u64,
    },
    /// Say when this LSN has been applied.
    NotifyApplied {
        partition: PartitionId,
        lsn: Lsn,
        done: oneshot::Sender<()>,
    },
    /// The checkpointer wrote a partition's frozen layer, or could not.
    Checkpointed {
        partition: PartitionId,
        result: Result<Checkpointed, String>,
    },
    /// Take a last checkpoint of everything and stop.
    Stop {
        done: oneshot::Sender<()>,
    },
}

/// The sending half; cheap to clone.
#[derive(Clone)]
pub(crate) struct Mailbox {
    queue: Arc<Mutex<Vec<Input>>>,
    wake: Wake,
}

impl Mailbox {
    pub(crate) fn new(wake: Wake) -> Self {
        Self { queue: Arc::default(), wake }
    }

    pub(crate) fn push(&self, input: Input) {
        let was_empty = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.push(input);
            queue.len() == 1
        };
        // A queue that was not empty has woken its worker already.
        if was_empty {
            self.wake.wake();
        }
    }

    /// Whether both lead to the same worker.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.queue, &other.queue)
    }

    /// Takes everything that is there, in order, into an empty `into`.
    pub(crate) fn take(&self, into: &mut Vec<Input>) {
        std::mem::swap(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner), into);
    }
}

impl Sink for Mailbox {
    fn durable(&self, entries: Vec<Entry>) {
        self.push(Input::Durable(entries));
    }
}
