//! Those who wait for something of one partition: a result, an LSN, or a view.
//!
//! Owns: who waits for what. Does not own: answers and request numbers (`answers`), or when an answer is due (effects of
//! `machine`).

use crate::answers::{Answer, Requests};
use crate::views::Lent;
use std::collections::{BTreeMap, VecDeque};
use surefoot_env::Wake;
use surefoot_model::{InvocationId, Lsn, Outcome, Request, Timestamp};
use surefoot_storage::Store;
use tokio::sync::oneshot;

/// Waiting clients of one invocation beyond which those that have gone are sorted out.
const WAITERS_SWEEP: usize = 16;

#[derive(Default)]
pub(crate) struct PartitionClients {
    /// Clients that wait for a result: request numbers of this process.
    waiters: BTreeMap<InvocationId, Vec<u64>>,
    applied: Vec<(Lsn, oneshot::Sender<()>)>,
    viewers: VecDeque<oneshot::Sender<Lent>>,
}

impl PartitionClients {
    /// A submission is durable: that is the answer, or its client waits for the result.
    pub(crate) fn on_accept(
        &mut self,
        request: Request,
        id: InvocationId,
        existing: bool,
        execute_at: Option<Timestamp>,
        requests: &Requests,
    ) {
        if !requests.is_own(request.id) {
            return; // a client of a process that is gone (rule O2)
        }
        if !request.awaits_result {
            return requests.answer(request.id, Answer::Accepted { id, existing, execute_at });
        }
        let waiters = self.waiters.entry(id).or_default();
        if waiters.len() >= WAITERS_SWEEP {
            waiters.retain(|number| requests.is_open(*number));
        }
        waiters.push(request.id.number);
    }

    pub(crate) fn on_complete(&mut self, id: InvocationId, outcome: &Outcome, requests: &Requests) {
        for number in self.waiters.remove(&id).unwrap_or_default() {
            requests.answer_number(number, Answer::Completed { id, outcome: outcome.clone(), expires_at: None });
        }
    }

    pub(crate) fn on_remove(&mut self, id: InvocationId, requests: &Requests) {
        for number in self.waiters.remove(&id).unwrap_or_default() {
            requests.answer_number(number, Answer::Removed { id });
        }
    }

    /// Says so once `lsn` is applied.
    pub(crate) fn notify_applied(&mut self, lsn: Lsn, done: oneshot::Sender<()>, applied: Lsn) {
        self.applied.push((lsn, done));
        self.on_applied(applied);
    }

    pub(crate) fn on_applied(&mut self, applied: Lsn) {
        for (_, done) in self.applied.extract_if(.., |(lsn, _)| *lsn <= applied) {
            // The caller may have gone.
            let _ = done.send(());
        }
    }

    pub(crate) fn want_view(&mut self, reply: oneshot::Sender<Lent>) {
        self.viewers.push_back(reply);
    }

    /// Lends views in the order of asking. While views hold all layers that may be held, the rest waits for the end of one, which
    /// wakes the worker.
    pub(crate) fn lend(&mut self, store: &mut Store, worker: &Wake) {
        while let Some(reply) = self.viewers.pop_front() {
            let Some(view) = store.publish() else { return self.viewers.push_front(reply) };
            // The caller may have gone.
            let _ = reply.send(Lent::new(view, worker.clone()));
        }
    }
}
