//! Clients that wait for an answer: who they are and what they get.
//!
//! Owns: request numbers of this process and the table of those still open (rule O2). Does not own: when an answer is due
//! (effects of `machine`), or its HTTP form (`ingress`, `admin`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use surefoot_machine::OperationAnswer;
use surefoot_model::{InvocationId, Outcome, RequestId, Timestamp};
use tokio::sync::oneshot;

/// What a submission leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It is durable. `existing`: an earlier submission of the same id is in its place.
    Accepted { id: InvocationId, existing: bool, execute_at: Option<Timestamp> },
    /// The result. `expires_at` where it was read from a retained completion.
    Completed { id: InvocationId, outcome: Outcome, expires_at: Option<Timestamp> },
    /// A call of a workflow's run handler whose key has run or runs.
    AlreadyInvoked { id: InvocationId },
    /// It was removed before it began: killed while scheduled or queued.
    Removed { id: InvocationId },
    /// An operator's request was carried out, or why not.
    Operation(OperationAnswer),
}

/// The node stops; nothing is known about the request's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node is stopping")]
pub struct Stopped;

/// Requests of this process that wait.
pub(crate) struct Requests {
    process: u64,
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, oneshot::Sender<Answer>>>,
}

impl Requests {
    pub(crate) fn new(process: u64) -> Self {
        Self { process, next: AtomicU64::new(1), open: Mutex::default() }
    }

    /// A new request number and where its answer will come.
    pub(crate) fn open(&self) -> (RequestId, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, sender);
        (RequestId { process: self.process, number }, receiver)
    }

    /// Answers a request of this process; one of another, or one whose client has gone, is dropped.
    pub(crate) fn answer(&self, request: RequestId, answer: Answer) {
        if request.process == self.process {
            self.answer_number(request.number, answer);
        }
    }

    pub(crate) fn answer_number(&self, number: u64, answer: Answer) {
        if let Some(sender) = self.lock().remove(&number) {
            // The client may have gone meanwhile: then there is nobody to tell.
            let _ = sender.send(answer);
        }
    }

    /// Whether a request's client still waits.
    pub(crate) fn is_open(&self, number: u64) -> bool {
        self.lock().get(&number).is_some_and(|sender| !sender.is_closed())
    }

    /// Whether this is the process's own number.
    pub(crate) fn is_process(&self, process: u64) -> bool {
        process == self.process
    }

    pub(crate) fn is_own(&self, request: RequestId) -> bool {
        request.process == self.process
    }

    /// Forgets a request whose client has gone.
    pub(crate) fn close(&self, number: u64) {
        self.lock().remove(&number);
    }

    /// Tells every waiting client that no answer will come.
    pub(crate) fn close_all(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Answer>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
