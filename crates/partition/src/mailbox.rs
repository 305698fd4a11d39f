//! What reaches a worker, and the queue it comes through.
//!
//! Owns: the closed list of inputs, and how much is on its way here: in the log's queue, and durable and not applied. The queue is unbounded by design, for a bounded
//! one would close a cycle between log and worker. What appends looks first at what waits, or has little on its way at a time: the outer
//! edges at the sum (`gate`, rule O3), reports and messages at their own.

use crate::gate::CountedTwice;
use crate::views::Lent;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use surefoot_env::Wake;
use surefoot_invoker::Room;
use surefoot_log::{Entry, Sink};
use surefoot_model::{Attempt, DeploymentId, InvocationId, Lsn, PartitionId, RECORD_COST};
use surefoot_storage::Checkpointed;
use tokio::sync::oneshot;

pub(crate) enum Input {
    /// Entries that became durable, in log order.
    Durable(Vec<Entry>),
    /// Lend a view of a partition as it is now (rule C4).
    View { partition: PartitionId, reply: oneshot::Sender<Lent> },
    /// A reader of a view met what cannot be read.
    Unreadable { partition: PartitionId, error: String },
    /// A slot, or room for a replay, became free, and this worker wanted one.
    SlotFreed,
    /// A report became durable: it comes behind the entry that it is, which has been applied then. The next one may take its
    /// room once the tables are weighed.
    Reported(ReportOnWay),
    /// The response to an attempt that a timer has resumed has begun.
    Answered { partition: PartitionId, id: InvocationId, attempt: Attempt, deployment: DeploymentId },
    /// Messages to `to` are durable there up to this sequence number.
    OutboxDurable { from: PartitionId, to: PartitionId, up_to: u64 },
    /// Say when this LSN has been applied.
    NotifyApplied { partition: PartitionId, lsn: Lsn, done: oneshot::Sender<()> },
    /// The checkpointer wrote a partition's frozen layer, or could not.
    Checkpointed { partition: PartitionId, result: Result<Checkpointed, String> },
    /// What a checkpoint had written is freed.
    Freed { partition: PartitionId },
    /// Take a last checkpoint of everything and stop.
    Stop { done: oneshot::Sender<()> },
}

/// What a report holds until the tables are weighed with it.
pub(crate) struct ReportOnWay {
    pub(crate) _room: Room,
    pub(crate) _twice: Option<CountedTwice>,
}

/// The sending half; cheap to clone.
#[derive(Clone)]
pub(crate) struct Mailbox {
    queue: Arc<Mutex<InputQueue>>,
    waiting: Arc<WaitingEntries>,
    wake: Wake,
}

/// Entries that are not applied.
#[derive(Default)]
struct WaitingEntries {
    /// Of the payloads that were given to the log and are not durable.
    queued_bytes: AtomicU64,
    /// Those that are durable.
    count: AtomicU64,
    /// Of their payloads.
    bytes: AtomicU64,
}

#[derive(Default)]
struct InputQueue {
    inputs: VecDeque<Input>,
    /// The worker has ended: what is pushed is dropped, and those who wait for its reply hear that.
    is_closed: bool,
}

impl Mailbox {
    pub(crate) fn new(wake: Wake) -> Self {
        Self { queue: Arc::default(), waiting: Arc::default(), wake }
    }

    pub(crate) fn push(&self, input: Input) {
        let was_empty = {
            let mut queue = self.lock();
            if queue.is_closed {
                return;
            }
            queue.inputs.push_back(input);
            queue.inputs.len() == 1
        };
        // A queue that was not empty has woken its worker already.
        if was_empty {
            self.wake.wake();
        }
    }

    /// What wakes its worker.
    pub(crate) fn wake(&self) -> Wake {
        self.wake.clone()
    }

    /// Takes everything that is there, in order, into an empty `into`.
    pub(crate) fn take(&self, into: &mut VecDeque<Input>) {
        std::mem::swap(&mut self.lock().inputs, into);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().inputs.is_empty()
    }

    /// Nobody takes anything any more.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut queue = self.lock();
            queue.is_closed = true;
            std::mem::take(&mut queue.inputs)
        };
        // Not under the lock: the end of a reply may wake a task that pushes.
        drop(dropped);
    }

    fn lock(&self) -> MutexGuard<'_, InputQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes of payloads go to the log, for this worker's partitions, or are encoded for it.
    pub(crate) fn queued(&self, bytes: u64) {
        self.waiting.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Payload bytes that were given to the log and are not durable.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.waiting.queued_bytes.load(Ordering::Relaxed)
    }

    /// So many entries with so many bytes were applied.
    pub(crate) fn applied(&self, count: u64, bytes: u64) {
        self.waiting.count.fetch_sub(count, Ordering::Relaxed);
        self.waiting.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Payload bytes of entries that are durable and not applied.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.waiting.bytes.load(Ordering::Relaxed)
    }

    /// The same with what each of them costs.
    pub(crate) fn waiting_cost(&self) -> u64 {
        self.waiting_bytes() + self.waiting.count.load(Ordering::Relaxed) * RECORD_COST
    }
}

impl Sink for Mailbox {
    fn durable(&self, entries: Vec<Entry>) {
        let bytes = entries.iter().map(|entry| entry.payload.len() as u64).sum();
        self.waiting.count.fetch_add(entries.len() as u64, Ordering::Relaxed);
        self.waiting.bytes.fetch_add(bytes, Ordering::Relaxed);
        // After: in between they count twice, and never not at all.
        let no_longer_queued = |queued: u64| Some(queued.saturating_sub(bytes));
        let _ = self.waiting.queued_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, no_longer_queued);
        self.push(Input::Durable(entries));
    }
}
