//! Clients that wait for an answer: who they are and what they get.
//!
//! Owns: request numbers of this process and the table of those still open (rule O2). Does not own: when an answer is due
//! (effects of `machine`), or its HTTP form (`ingress`, `admin`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use surefoot_machine::OperationAnswer;
use surefoot_model::{InvocationId, Outcome, PartitionId, RequestId, Timestamp};
use tokio::sync::oneshot;

/// What a submission leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// It is durable. `existing`: an earlier submission of the same id is in its place.
    Accepted { id: InvocationId, existing: bool, execute_at: Option<Timestamp> },
    /// The result. `expires_at` where it was read from a retained completion.
    Completed { id: InvocationId, outcome: Outcome, expires_at: Option<Timestamp> },
    /// The result is there, and memory has no room for it until others have been taken: it can be asked for again.
    NoRoom,
    /// A call of a workflow's run handler whose key has run or runs.
    AlreadyInvoked { id: InvocationId },
    /// An operator's request was carried out, or why not.
    Operation(OperationAnswer),
}

/// Why no answer will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// The node stops and has not taken the request: nothing of it will happen, and it can be sent again.
    #[error("the server is stopping; retry later")]
    NotTaken,
    /// The disk has no room, and the request was not taken: nothing of it will happen, and it can be sent again (rule R2).
    #[error("the disk of the server has too little room left; retry later")]
    DiskFull,
    /// The partition has stopped alone (rule C5) and has not taken the request; the others run on.
    #[error("partition {0} has stopped, and with it this part of the keys; GET /health of the admin port says why")]
    Partition(PartitionId),
    /// The request was appended, and the node or its partition stopped before the answer. It may be carried out all the same: nobody
    /// is to be told to send it again.
    #[error("the server stopped before the answer; the request may be carried out all the same")]
    Unknown,
}

/// Requests of this process that wait.
pub(crate) struct Requests {
    process: u64,
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Open>>,
}

struct Open {
    partition: PartitionId,
    answer: oneshot::Sender<Answer>,
}

impl Requests {
    pub(crate) fn new(process: u64) -> Self {
        Self { process, next: AtomicU64::new(1), open: Mutex::default() }
    }

    /// A new request number for what a partition is to answer, and where the answer will come.
    pub(crate) fn open(&self, partition: PartitionId) -> (RequestId, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, Open { partition, answer: sender });
        (RequestId { process: self.process, number }, receiver)
    }

    /// Answers a request of this process; one of another, or one whose client has gone, is dropped.
    pub(crate) fn answer(&self, request: RequestId, answer: Answer) {
        if request.process == self.process {
            self.answer_number(request.number, answer);
        }
    }

    pub(crate) fn answer_number(&self, number: u64, answer: Answer) {
        let open = self.lock().remove(&number);
        if let Some(open) = open {
            // The client may have gone meanwhile: then there is nobody to tell.
            let _ = open.answer.send(answer);
        }
    }

    /// Whether a request's client still waits.
    pub(crate) fn is_open(&self, number: u64) -> bool {
        self.lock().get(&number).is_some_and(|open| !open.answer.is_closed())
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

    /// Tells those that wait for a partition that no answer will come.
    pub(crate) fn close_partition(&self, partition: PartitionId) {
        self.lock().retain(|_, open| open.partition != partition);
    }

    /// Tells every waiting client that no answer will come.
    pub(crate) fn close_all(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After a restart an old record answered the request of a new client that happened to have the same number (rule O2).
    #[test]
    fn an_answer_goes_to_the_process_that_asked_or_nowhere() {
        let requests = Requests::new(7);
        let (id, mut answer) = requests.open(PartitionId(0));
        let done = || Answer::Operation(OperationAnswer::Done);
        assert!(!requests.is_own(RequestId { process: 6, ..id }) && requests.is_own(id));
        requests.answer(RequestId { process: 6, ..id }, done());
        assert!(answer.try_recv().is_err());
        requests.answer(id, done());
        assert!(answer.try_recv().is_ok());
    }
}
