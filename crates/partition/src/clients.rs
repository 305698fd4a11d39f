//! Those who wait for something of one partition: a result, an LSN, or a view.
//!
//! Owns: who waits for what. Does not own: answers and request numbers (`answers`), or when an answer is due (effects of
//! `machine`).

use crate::answers::{Answer, Requests};
use crate::gate::Gate;
use crate::given::given;
use crate::views::Lent;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use surefoot_env::Wake;
use surefoot_model::{InvocationId, Lsn, Outcome, Request, Timestamp};
use surefoot_storage::Store;
use tokio::sync::oneshot;

/// Waiting clients of one invocation beyond which those that have gone are sorted out.
const WAITERS_SWEEP: usize = 16;
/// Invocations with waiting clients below which it is not worth looking for clients that have gone.
const SWEEP_MIN: usize = 1_024;

pub(crate) struct PartitionClients {
    /// Clients that wait for a result: request numbers of this process.
    waiters: BTreeMap<InvocationId, Vec<u64>>,
    /// With so many invocations among them, those whose clients have gone are sorted out.
    sweep_at: usize,
    applied: Vec<(Lsn, oneshot::Sender<()>)>,
    viewers: VecDeque<oneshot::Sender<Lent>>,
}

impl Default for PartitionClients {
    fn default() -> Self {
        Self { waiters: BTreeMap::new(), sweep_at: SWEEP_MIN, applied: Vec::new(), viewers: VecDeque::new() }
    }
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
        if self.waiters.len() >= self.sweep_at {
            self.sweep(requests);
        }
        let waiters = self.waiters.entry(id).or_default();
        if waiters.len() >= WAITERS_SWEEP {
            waiters.retain(|number| requests.is_open(*number));
        }
        waiters.push(request.id.number);
    }

    /// Forgets clients that have gone. What an addition costs stays the same: the map doubles until the next time.
    fn sweep(&mut self, requests: &Requests) {
        self.waiters.retain(|_, waiters| {
            waiters.retain(|number| requests.is_open(*number));
            !waiters.is_empty()
        });
        self.sweep_at = SWEEP_MIN.max(self.waiters.len() * 2);
    }

    /// Another process answers from here on.
    pub(crate) fn end_term(&mut self) {
        self.waiters.clear();
    }

    pub(crate) fn on_complete(&mut self, id: InvocationId, outcome: Outcome, requests: &Requests, gate: &Arc<Gate>) {
        let Some(waiters) = self.waiters.remove(&id) else { return };
        let outcome = given(gate, outcome);
        for number in waiters {
            requests.answer_number(number, Answer::Completed { id, outcome: outcome.clone(), expires_at: None });
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

    /// Some wait for a view: until another one ends.
    pub(crate) fn want_views(&self) -> bool {
        !self.viewers.is_empty()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::Mailbox;
    use crate::testing::{HERE, empty_store, id, was_woken, write};
    use bytes::Bytes;
    use surefoot_machine::{Inbound, State};
    use surefoot_model::{PartitionId, RequestId};
    use tokio::sync::oneshot::error::TryRecvError;

    const RESULT: Outcome = Outcome::Success(Bytes::from_static(b"42"));

    fn awaiting(id: RequestId) -> Request {
        Request { id, awaits_result: true }
    }

    fn gate() -> Arc<Gate> {
        Arc::new(Gate::new(vec![Mailbox::new(Wake::new())], 1_000))
    }

    #[test]
    fn a_client_that_sends_hears_that_it_is_accepted_and_one_that_calls_hears_the_result() {
        let (requests, mut clients) = (Requests::new(1), PartitionClients::default());
        let ((send, mut sent), (call, mut called)) = (requests.open(HERE), requests.open(HERE));
        clients.on_accept(Request { id: send, awaits_result: false }, id(1), false, None, &requests);
        clients.on_accept(awaiting(call), id(1), true, None, &requests);
        assert_eq!(sent.try_recv(), Ok(Answer::Accepted { id: id(1), existing: false, execute_at: None }));
        assert_eq!(called.try_recv(), Err(TryRecvError::Empty));
        clients.on_complete(id(2), RESULT, &requests, &gate());
        assert_eq!(called.try_recv(), Err(TryRecvError::Empty));
        clients.on_complete(id(1), RESULT, &requests, &gate());
        assert_eq!(called.try_recv(), Ok(Answer::Completed { id: id(1), outcome: RESULT, expires_at: None }));
    }

    #[test]
    fn all_who_wait_hear_the_result() {
        let (requests, mut clients) = (Requests::new(1), PartitionClients::default());
        let mut answers = Vec::new();
        for _ in 0..3 {
            let (request, answer) = requests.open(HERE);
            clients.on_accept(awaiting(request), id(1), false, None, &requests);
            answers.push(answer);
        }
        clients.on_complete(id(1), RESULT, &requests, &gate());
        let completed = Answer::Completed { id: id(1), outcome: RESULT, expires_at: None };
        assert!(answers.iter_mut().all(|answer| answer.try_recv().as_ref() == Ok(&completed)));
    }

    /// Request numbers of a process that is gone mean nothing to this one (rule O2).
    #[test]
    fn a_client_of_another_process_is_not_answered() {
        let (requests, mut clients) = (Requests::new(1), PartitionClients::default());
        let (own, mut answer) = requests.open(HERE);
        for awaits_result in [false, true] {
            let request = Request { id: RequestId { process: 2, ..own }, awaits_result };
            clients.on_accept(request, id(1), false, None, &requests);
        }
        clients.on_complete(id(1), RESULT, &requests, &gate());
        assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
    }

    /// Each client that gave up left an entry until its invocation ended: sleepers of a week held them all.
    #[test]
    fn clients_that_have_gone_are_forgotten_before_their_invocations_end() {
        let (requests, mut clients) = (Requests::new(1), PartitionClients::default());
        let mut staying = Vec::new();
        for n in 0..100_000 {
            let (request, answer) = requests.open(HERE);
            clients.on_accept(awaiting(request), id(n), false, None, &requests);
            if n % 1_000 == 0 {
                staying.push((n, answer));
            }
        }
        assert!(clients.waiters.len() <= 2 * SWEEP_MIN, "{}", clients.waiters.len());
        for (n, mut answer) in staying {
            clients.on_complete(id(n), RESULT, &requests, &gate());
            assert!(answer.try_recv().is_ok(), "a client that waits is answered");
        }
    }

    #[test]
    fn an_lsn_is_reported_once_it_is_applied() {
        let mut clients = PartitionClients::default();
        let mut wait = |lsn, applied| {
            let (done, wait) = oneshot::channel();
            clients.notify_applied(Lsn(lsn), done, Lsn(applied));
            wait
        };
        let (mut past, mut soon, mut later) = (wait(3, 3), wait(4, 3), wait(6, 3));
        assert_eq!((past.try_recv(), soon.try_recv()), (Ok(()), Err(TryRecvError::Empty)));
        clients.on_applied(Lsn(5));
        assert_eq!((soon.try_recv(), later.try_recv()), (Ok(()), Err(TryRecvError::Empty)));
        clients.on_applied(Lsn(6));
        assert_eq!(later.try_recv(), Ok(()));
    }

    #[test]
    fn views_are_lent_in_order_and_the_end_of_one_wakes_the_worker_for_the_next() {
        let (mut store, mut clients, wake) = (empty_store(), PartitionClients::default(), Wake::new());
        let mut lent = Vec::new();
        let mut waits = VecDeque::new();
        for n in 1.. {
            write(&mut store, |txn| txn.put::<Inbound>(PartitionId(1), n));
            let (reply, mut wait) = oneshot::channel();
            clients.want_view(reply);
            clients.lend(&mut store, &wake);
            match wait.try_recv() {
                Ok(view) => lent.push(view),
                Err(_) => waits.push_back(wait),
            }
            if waits.len() == 2 {
                break;
            }
        }
        assert!(!was_woken(&wake));
        drop(lent);
        assert!(was_woken(&wake));
        clients.lend(&mut store, &wake);
        let views: Vec<_> = waits.iter_mut().map(|wait| wait.try_recv().unwrap()).collect();
        assert!(views.iter().all(|view| view.applied() == store.applied()), "as of now");
    }
}
