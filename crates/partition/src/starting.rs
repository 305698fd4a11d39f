//! In which order the attempts of a worker's partitions take slots, and how they are handed to the invoker.
//!
//! Owns: the queue of attempts that wait for a slot, the turns in which partitions page their backlogs into it, and the replays
//! that are read from views. Does not own: what an attempt is shown (`attempts`), or what becomes of it (`invoker`).

use crate::acting::ActingPartition;
use crate::attempts::PreparedAttempt;
use crate::handle::Shared;
use crate::owned::OwnedPartitions;
use crate::replay::{Load, LoadSource, LoadsInFlight};
use crate::views::Lent;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;
use surefoot_env::Undone;
use surefoot_invoker::Invoker;
use surefoot_machine::StateError;
use surefoot_model::{Attempt, AttemptClass, InvocationId, PartitionId};

/// Attempts of a class that wait for a slot in memory; further ones are found in the tables once these have started.
const WAITING_MAX: usize = 4_096;
/// Attempts that wait for their turn to do so while others start; beyond it they hold up the rest.
const POSTPONED_MAX: usize = 256;

/// What a replay may wait for a view to be read from, where others hold all that may be held.
const VIEW_MAX: Duration = Duration::from_secs(5);

/// One start of so many is of what is fresh, whatever else waits: a flood of what is needed must not keep it out for ever.
const FRESH_TURN: u32 = 4;

/// An attempt that was asked for and has no slot yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitingAttempt {
    pub(crate) partition: PartitionId,
    pub(crate) id: InvocationId,
    pub(crate) attempt: Attempt,
}

/// Attempts that wait for a slot: what is needed before what is fresh, each class in the order in which it was asked for (rule O5).
/// A page of a backlog may exceed its bound.
#[derive(Default)]
pub(crate) struct StartQueue {
    needed: VecDeque<WaitingAttempt>,
    fresh: VecDeque<WaitingAttempt>,
    /// Classes of which some partition has a backlog, or had one when this was last looked at. All partitions then leave what is new
    /// to their tables: the queue drains to the backlogs' pages, and no partition's starts keep another's backlog waiting for ever.
    backlogged: BTreeSet<AttemptClass>,
    /// Counts what was taken.
    turn: u32,
}

impl StartQueue {
    fn of(&mut self, class: AttemptClass) -> &mut VecDeque<WaitingAttempt> {
        match class {
            AttemptClass::Needed => &mut self.needed,
            AttemptClass::Fresh => &mut self.fresh,
        }
    }

    /// More of this class are left to the tables.
    pub(crate) fn is_closed(&mut self, class: AttemptClass) -> bool {
        self.backlogged.contains(&class) || self.of(class).len() >= WAITING_MAX
    }

    /// A partition has left attempts of this class to its tables.
    pub(crate) fn on_backlog(&mut self, class: AttemptClass) {
        self.backlogged.insert(class);
    }

    /// No partition has a backlog of this class any more.
    pub(crate) fn on_no_backlog(&mut self, class: AttemptClass) {
        self.backlogged.remove(&class);
    }

    /// A class is to be paged before anything of it can start.
    pub(crate) fn wants_page(&mut self, class: AttemptClass) -> bool {
        self.of(class).is_empty() && self.backlogged.contains(&class)
    }

    pub(crate) fn push(&mut self, class: AttemptClass, waiting: WaitingAttempt) {
        self.of(class).push_back(waiting);
    }

    fn len(&self) -> usize {
        self.needed.len() + self.fresh.len()
    }

    fn is_turn_of_fresh(&self) -> bool {
        self.needed.is_empty() || self.turn % FRESH_TURN == FRESH_TURN - 1 && !self.fresh.is_empty()
    }

    fn front(&self) -> Option<&WaitingAttempt> {
        if self.is_turn_of_fresh() { self.fresh.front() } else { self.needed.front() }
    }

    /// Takes what is in front.
    pub(crate) fn pop(&mut self) -> Option<WaitingAttempt> {
        let taken = if self.is_turn_of_fresh() { self.fresh.pop_front() } else { self.needed.pop_front() };
        self.turn = self.turn.wrapping_add(1);
        taken
    }

    fn contains(&self, waiting: &WaitingAttempt) -> bool {
        self.needed.contains(waiting) || self.fresh.contains(waiting)
    }

    fn clear(&mut self) {
        AttemptClass::ALL.into_iter().for_each(|class| self.of(class).clear());
    }

    #[cfg(test)]
    pub(crate) fn len_of(&mut self, class: AttemptClass) -> usize {
        self.of(class).len()
    }

    #[cfg(test)]
    pub(crate) fn take_all(&mut self) -> VecDeque<WaitingAttempt> {
        std::iter::from_fn(|| self.pop()).collect()
    }
}

/// Starts attempts while slots are free.
pub(crate) struct AttemptStarter {
    worker: usize,
    shared: Arc<Shared>,
    invoker: Arc<Invoker>,
    pub(crate) queue: StartQueue,
    /// Attempts whose replay is to be read from a view once there is one to be had.
    postponed: VecDeque<WaitingAttempt>,
    /// Whose backlog is looked at next.
    backlog_turn: usize,
    loads: Arc<LoadsInFlight>,
    /// Starts that the invoker knows to wait.
    wanted: usize,
}

enum Started {
    Yes,
    /// It was killed, paused or voided while it waited, or runs already.
    No,
    /// Its replay has to be read from a view, and there is none to be had now. The end of another one wakes.
    Later,
}

impl AttemptStarter {
    pub(crate) fn new(worker: usize, shared: Arc<Shared>, invoker: Arc<Invoker>) -> Self {
        Self {
            worker,
            shared,
            invoker,
            queue: StartQueue::default(),
            postponed: VecDeque::new(),
            backlog_turn: 0,
            loads: Arc::default(),
            wanted: 0,
        }
    }

    /// Starts none any more.
    pub(crate) fn stop(&mut self) {
        self.queue.clear();
        self.postponed.clear();
    }

    /// Starts what waits while slots are free, and has those that only wait make room for the rest (rule O5).
    pub(crate) fn turn(&mut self, partitions: &mut OwnedPartitions) {
        self.start_waiting(partitions);
        let wanted = self.queue.len() + self.postponed.len();
        if wanted > 0 || self.wanted > 0 {
            self.invoker.want(self.worker, wanted);
            self.wanted = wanted;
        }
    }

    fn start_waiting(&mut self, partitions: &mut OwnedPartitions) {
        let mut can_load = true;
        loop {
            for class in AttemptClass::ALL {
                if self.queue.wants_page(class) {
                    self.page_backlogs(class, partitions);
                }
            }
            can_load &= self.loads.has_turn();
            let is_postponed = can_load && !self.postponed.is_empty();
            let next = if is_postponed { self.postponed.front() } else { self.queue.front() };
            let Some(&waiting) = next else { return };
            if self.postponed.len() >= POSTPONED_MAX && !is_postponed || !self.reserve_slot() {
                return;
            }
            // A large replay is not overtaken by smaller ones that need a view, too, or it would never have its turn.
            let may_load = is_postponed || self.postponed.is_empty();
            let start =
                |partition: &mut ActingPartition| self.start(partition, waiting, may_load).map_err(|error| error.to_string());
            let started = partitions.guard(waiting.partition, start).unwrap_or(Started::No);
            if !matches!(started, Started::Yes) {
                self.invoker.release();
                // Another worker may have found none free meanwhile.
                self.shared.slot_freed();
            }
            let is_later = matches!(started, Started::Later);
            can_load &= !is_later;
            match is_postponed {
                // It keeps its place.
                true if is_later => {}
                true => drop(self.postponed.pop_front()),
                false => {
                    self.queue.pop();
                    self.postponed.extend(is_later.then_some(waiting));
                }
            }
        }
    }

    /// Whether a slot was free; if not, the next one that becomes free wakes this worker.
    fn reserve_slot(&mut self) -> bool {
        if self.invoker.try_reserve() {
            return true;
        }
        self.shared.wants_slot[self.worker].store(true, Ordering::Relaxed);
        // Either this sees the slot that somebody frees now, or they see that one is wanted.
        fence(Ordering::SeqCst);
        self.invoker.try_reserve()
    }

    /// Queues a page of the next partition that has a backlog of this class.
    fn page_backlogs(&mut self, class: AttemptClass, partitions: &mut OwnedPartitions) {
        for _ in 0..partitions.len() {
            let at = self.backlog_turn % partitions.len();
            self.backlog_turn = at + 1;
            let queue = &mut self.queue;
            partitions.guard_at(at, |partition| partition.page_backlog(class, queue).map_err(|error| error.to_string()));
            if !self.queue.of(class).is_empty() {
                break;
            }
        }
        if !partitions.iter().any(|partition| partition.attempts.has_backlog(class)) {
            self.queue.on_no_backlog(class);
        }
    }

    /// Attempts that the tables ask for: nobody knows of one, or it waits though there is a place, or could be.
    pub(crate) fn undone(&self, partitions: &OwnedPartitions) -> Result<Vec<Undone>, StateError> {
        let has_place = self.invoker.has_place() && self.shared.gate.has_attempts_room();
        let mut undone = Vec::new();
        for partition in partitions.iter().filter(|partition| partition.leads()) {
            for (class, waiting) in partition.attempts.not_started(&partition.store.read())? {
                let WaitingAttempt { partition: of, id, .. } = waiting;
                if self.postponed.contains(&waiting) || self.postponed.len() >= POSTPONED_MAX {
                    let what = format!("{id} of partition {of} waits for a view, and has a place (rule O5)");
                    undone.extend(has_place.then_some(Undone { what, patience: VIEW_MAX }));
                } else if !partition.attempts.has_backlog(class) && !self.queue.contains(&waiting) {
                    undone.push(Undone::at_once(format!("{id} of partition {of} is to run, and nobody knows (rule M6)")));
                } else if has_place {
                    undone.push(Undone::at_once(format!("{id} of partition {of} waits, and a place is free (rule O5)")));
                }
            }
        }
        if self.invoker.owes_places() {
            undone.push(Undone::at_once("starts wait, and who only waits keeps its place (rule O5)".to_owned()));
        }
        Ok(undone)
    }

    fn start(&self, partition: &mut ActingPartition, waiting: WaitingAttempt, may_load: bool) -> Result<Started, StateError> {
        if !partition.leads() {
            return Ok(Started::No);
        }
        let eager_state_bytes = |target: &_, pin| self.invoker.eager_state_bytes(target, pin);
        let prepared = partition.attempts.prepare(&partition.store.read(), waiting, self.invoker.feed(), eager_state_bytes)?;
        let Some(prepared) = prepared else { return Ok(Started::No) };
        let PreparedAttempt { start, unread, journal_len, journal_bytes, notifications } = prepared;
        match unread {
            None => self.invoker.start(start),
            Some(replay) => {
                let turn = may_load.then(|| self.loads.try_take(journal_len, journal_bytes)).flatten();
                let Some(turn) = turn else { return Ok(Started::Later) };
                let Some(view) = partition.store.publish() else { return Ok(Started::Later) };
                let view = Lent::new(view, self.shared.workers[self.worker].wake());
                let load = Load { replay, start, source: LoadSource { turn, view } };
                self.shared.env.tasks.spawn(Box::pin(load.run(self.shared.clone(), self.invoker.clone())));
            }
        }
        partition.attempts.started(waiting.id, waiting.attempt, notifications);
        Ok(Started::Yes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HERE, id};

    #[test]
    fn what_is_needed_starts_before_what_is_fresh_which_keeps_a_share() {
        let mut queue = StartQueue::default();
        let waiting = |n: u128| WaitingAttempt { partition: HERE, id: id(n), attempt: Attempt(1) };
        for n in 0..6 {
            queue.push(AttemptClass::Fresh, waiting(100 + n));
            queue.push(AttemptClass::Needed, waiting(n));
        }
        let order: Vec<_> = std::iter::from_fn(|| {
            let next = queue.front().copied();
            assert_eq!(queue.pop(), next);
            next.map(|waiting| waiting.id)
        })
        .collect();
        assert_eq!(order, [0, 1, 2, 100, 3, 4, 5, 101, 102, 103, 104, 105].map(id));
    }
}
