//! In which order the attempts of a worker's partitions take slots, and how they are handed to the invoker.
//!
//! Owns: the queue of attempts that wait for a slot, the turns in which partitions page their backlogs into it, and the replays
//! that are read from views. Does not own: what an attempt is shown (`attempts`), what is held back for its deployment alone
//! (`held_back`), or what becomes of it (`invoker`).

use crate::acting::ActingPartition;
use crate::attempts::PreparedAttempt;
use crate::handle::Shared;
use crate::held_back::HeldBack;
use crate::owned::OwnedPartitions;
use crate::replay::{Load, LoadSource, LoadsInFlight};
use crate::views::Lent;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;
use surefoot_env::Undone;
use surefoot_invoker::{Destination, Invoker};
use surefoot_machine::{RunningKey, StateError};
use surefoot_model::{AttemptClass, InvocationId, PartitionId};

/// Attempts of a class that wait for a slot in memory; further ones are found in the tables once these have started.
const WAITING_MAX: usize = 4_096;
/// Attempts that wait for their turn to do so while others start; beyond it they hold up the rest.
const POSTPONED_MAX: usize = 256;
/// Attempts that a turn looks at and does not start: held back, gone meanwhile, or of no concern in a page. A few milliseconds; then
/// records and timers have their turn.
const LOOKS_MAX: usize = 1_024;

/// What a replay may wait for a view to be read from, where others hold all that may be held.
const VIEW_MAX: Duration = Duration::from_secs(5);

/// One start of so many is of what is fresh, whatever else waits: a flood of what is needed must not keep it out for ever.
const FRESH_TURN: u32 = 4;

/// An attempt that was asked for and has no slot yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitingAttempt {
    pub(crate) partition: PartitionId,
    pub(crate) id: InvocationId,
    /// Its row. Once the attempt was raised it has another one, and this says nothing any more.
    pub(crate) key: RunningKey,
}

/// One of something for each class.
#[derive(Debug, Default)]
pub(crate) struct ByClass<T> {
    needed: T,
    fresh: T,
}

impl<T> ByClass<T> {
    pub(crate) fn of(&self, class: AttemptClass) -> &T {
        match class {
            AttemptClass::Needed => &self.needed,
            AttemptClass::Fresh => &self.fresh,
        }
    }

    pub(crate) fn of_mut(&mut self, class: AttemptClass) -> &mut T {
        match class {
            AttemptClass::Needed => &mut self.needed,
            AttemptClass::Fresh => &mut self.fresh,
        }
    }
}

/// Attempts that wait for a slot: what is needed before what is fresh, each class in the order in which it was asked for (rule O5).
/// A page of a backlog may exceed its bound. Those whose deployment holds its share of the places stand aside: the others start past
/// them, and once it may have more they go first, since they were asked for before.
#[derive(Default)]
pub(crate) struct StartQueue {
    waiting: ByClass<VecDeque<WaitingAttempt>>,
    pub(crate) held: HeldBack,
    /// Classes of which some partition has a backlog, or had one when this was last looked at. All partitions then leave what is new
    /// to their tables: the queue drains to the backlogs' pages, and no partition's starts keep another's backlog waiting for ever.
    backlogged: BTreeSet<AttemptClass>,
    /// Counts what was taken.
    turn: u32,
}

/// What starts next, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NextAttempt {
    pub(crate) waiting: WaitingAttempt,
    stands: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    InQueue,
    /// Among those that were held back.
    Aside,
}

impl StartQueue {
    /// More of this class are left to the tables.
    pub(crate) fn is_closed(&self, class: AttemptClass) -> bool {
        self.backlogged.contains(&class) || self.waiting.of(class).len() >= WAITING_MAX
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
    pub(crate) fn wants_page(&self, class: AttemptClass) -> bool {
        self.waiting.of(class).is_empty() && self.backlogged.contains(&class)
    }

    pub(crate) fn push(&mut self, waiting: WaitingAttempt) {
        self.waiting.of_mut(waiting.key.class).push_back(waiting);
    }

    fn len(&self) -> usize {
        self.waiting.needed.len() + self.waiting.fresh.len()
    }

    fn next_of(&self, class: AttemptClass) -> Option<NextAttempt> {
        let (aside, in_queue) = (self.held.front(class), self.waiting.of(class).front().copied());
        let next = |stands| move |waiting| NextAttempt { waiting, stands };
        aside.map(next(Standing::Aside)).or(in_queue.map(next(Standing::InQueue)))
    }

    /// What starts next.
    pub(crate) fn front(&self) -> Option<NextAttempt> {
        let (needed, fresh) = (self.next_of(AttemptClass::Needed), self.next_of(AttemptClass::Fresh));
        if self.turn % FRESH_TURN == FRESH_TURN - 1 { fresh.or(needed) } else { needed.or(fresh) }
    }

    /// Takes what is in front: it begins.
    pub(crate) fn pop_begun(&mut self) -> Option<WaitingAttempt> {
        let NextAttempt { waiting, stands } = self.front()?;
        self.turn = self.turn.wrapping_add(1);
        match stands {
            Standing::Aside => self.held.pop_begun(waiting.key.class),
            Standing::InQueue => self.waiting.of_mut(waiting.key.class).pop_front(),
        }
    }

    /// Takes what is in front: it does not begin from here.
    pub(crate) fn pop_other(&mut self) -> Option<WaitingAttempt> {
        let NextAttempt { waiting, stands } = self.front()?;
        match stands {
            Standing::Aside => self.held.pop_other(waiting.key.class),
            Standing::InQueue => self.waiting.of_mut(waiting.key.class).pop_front(),
        }
    }

    fn contains(&self, waiting: &WaitingAttempt) -> bool {
        self.waiting.of(waiting.key.class).contains(waiting)
    }

    fn clear(&mut self) {
        AttemptClass::ALL.into_iter().for_each(|class| self.waiting.of_mut(class).clear());
        self.held.clear();
    }

    #[cfg(test)]
    pub(crate) fn len_of(&self, class: AttemptClass) -> usize {
        self.waiting.of(class).len()
    }

    #[cfg(test)]
    pub(crate) fn take_all(&mut self) -> VecDeque<WaitingAttempt> {
        std::iter::from_fn(|| self.pop_begun()).collect()
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
    /// It was killed, paused, raised or voided while it waited, or runs already.
    No,
    /// Its replay has to be read from a view, and there is none to be had now. The end of another one wakes.
    Later,
    /// Its deployment holds its share of the places.
    HeldBack(Destination),
}

impl AttemptStarter {
    pub(crate) fn new(worker: usize, shared: Arc<Shared>, invoker: Arc<Invoker>) -> Self {
        let load_bytes_max = shared.settings.load_bytes_max / shared.workers.len() as u64;
        Self {
            worker,
            shared,
            invoker,
            queue: StartQueue::default(),
            postponed: VecDeque::new(),
            backlog_turn: 0,
            loads: Arc::new(LoadsInFlight::new(load_bytes_max)),
            wanted: 0,
        }
    }

    /// Starts none any more.
    pub(crate) fn stop(&mut self) {
        self.queue.clear();
        self.postponed.clear();
    }

    /// Starts what waits while slots are free, and has those that only wait make room for the rest (rule O5). Whether it has more to
    /// look at that can start now.
    pub(crate) fn turn(&mut self, partitions: &mut OwnedPartitions) -> bool {
        let has_more = loop {
            self.look_at_held();
            // What began, or was held back, since the look may have used up a share: nobody knows yet that an end or an answer is waited for.
            if self.start_waiting(partitions) {
                break true;
            } else if !self.queue.held.is_stale() {
                break false;
            }
        };
        let wanted = self.queue.len() + self.queue.held.wanted() + self.postponed.len();
        if wanted > 0 || self.wanted > 0 {
            self.invoker.want(self.worker, wanted);
            self.wanted = wanted;
        }
        has_more
    }

    /// Which of the destinations may have more.
    fn look_at_held(&mut self) {
        if self.queue.held.is_empty() {
            return;
        }
        self.shared.wants_slot[self.worker].store(true, Ordering::Relaxed);
        // Either this sees what is free, answered and registered now, or whatever changes that wakes.
        fence(Ordering::SeqCst);
        self.queue.held.look(|destination| self.invoker.share_left(destination));
    }

    fn start_waiting(&mut self, partitions: &mut OwnedPartitions) -> bool {
        let (mut can_load, mut has_place, mut looks) = (true, false, 0);
        let has_more = loop {
            looks += self.page(partitions);
            can_load &= self.loads.has_turn();
            let postponed = self.postponed.front().copied().filter(|_| can_load);
            let in_queue = self.queue.front();
            let Some(waiting) = postponed.or(in_queue.map(|next| next.waiting)) else { break self.wants_page() };
            if looks >= LOOKS_MAX {
                break true;
            }
            if postponed.is_none() && self.postponed.len() >= POSTPONED_MAX || !has_place && !self.reserve_slot() {
                break false;
            }
            // A large replay is not overtaken by smaller ones that need a view, too, or it would never have its turn.
            let may_load = postponed.is_some() || self.postponed.is_empty();
            // Those that were asked for before are held back.
            let is_behind_held = postponed.is_none() && in_queue.is_some_and(|next| next.stands == Standing::InQueue);
            let start = |partition: &mut ActingPartition| {
                self.start(partition, waiting, may_load, is_behind_held).map_err(|error| error.to_string())
            };
            let started = partitions.guard(waiting.partition, start).unwrap_or(Started::No);
            has_place = !matches!(started, Started::Yes);
            looks += usize::from(has_place);
            can_load &= !matches!(started, Started::Later);
            match (postponed.is_some(), started) {
                // It keeps its place.
                (true, Started::Later) => {}
                (true, Started::HeldBack(destination)) => {
                    self.postponed.pop_front();
                    self.queue.held.push_first(destination, waiting);
                }
                (true, Started::Yes | Started::No) => drop(self.postponed.pop_front()),
                (false, Started::HeldBack(destination)) => self.hold_back(destination, waiting, partitions),
                (false, Started::Later) => {
                    self.queue.pop_other();
                    self.postponed.push_back(waiting);
                }
                (false, Started::Yes) => drop(self.queue.pop_begun()),
                (false, Started::No) => drop(self.queue.pop_other()),
            }
        };
        if has_place {
            self.invoker.release();
            // Another worker may have found none free meanwhile.
            self.shared.slot_freed();
        }
        has_more
    }

    /// What is in front stands aside. Where too many do already it is left to the tables.
    fn hold_back(&mut self, destination: Destination, waiting: WaitingAttempt, partitions: &mut OwnedPartitions) {
        let Some(NextAttempt { stands: Standing::InQueue, .. }) = self.queue.front() else {
            // It stays where it is.
            self.queue.held.on_share_taken(&destination);
            return;
        };
        self.queue.pop_other();
        if !self.queue.held.push(destination.clone(), waiting)
            && let Some(partition) = partitions.find(waiting.partition)
        {
            partition.attempts.leave_aside(destination, waiting);
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

    fn wants_page(&self) -> bool {
        AttemptClass::ALL.into_iter().any(|class| self.queue.held.wants_page(class).is_some())
    }

    /// Reads from the tables what comes next, where it is not in memory; how many attempts it looked at that do not come next.
    fn page(&mut self, partitions: &mut OwnedPartitions) -> usize {
        let mut looks = 0;
        for class in AttemptClass::ALL {
            if self.queue.wants_page(class) {
                self.page_backlogs(class, partitions);
            }
            if let Some(destination) = self.queue.held.wants_page(class) {
                looks += self.page_aside(&destination, class, partitions);
            }
        }
        looks
    }

    /// Queues a page of the next partition that has a backlog of this class.
    fn page_backlogs(&mut self, class: AttemptClass, partitions: &mut OwnedPartitions) {
        for _ in 0..partitions.len() {
            let at = self.next_backlog(partitions);
            let queue = &mut self.queue;
            partitions.guard_at(at, |partition| partition.page_backlog(class, queue).map_err(|error| error.to_string()));
            if !self.queue.waiting.of(class).is_empty() {
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
            for (waiting, destination) in partition.attempts.not_started(&partition.store.read())? {
                let WaitingAttempt { partition: of, id, key: RunningKey { class, .. } } = waiting;
                let stands_aside =
                    self.queue.held.contains(&destination, &waiting) || partition.attempts.has_aside(&destination, class);
                if self.postponed.contains(&waiting) || self.postponed.len() >= POSTPONED_MAX {
                    let what = format!("{id} of partition {of} waits for a view, and has a place (rule O5)");
                    undone.extend(has_place.then_some(Undone { what, patience: VIEW_MAX }));
                } else if stands_aside && !self.invoker.has_share(&destination) {
                    // Its deployment has to answer first.
                } else if !partition.attempts.has_backlog(class) && !self.queue.contains(&waiting) && !stands_aside {
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

    /// Has what a partition has left to its tables for a destination stand aside again, as far as that is found on a page.
    fn page_aside(&mut self, destination: &Destination, class: AttemptClass, partitions: &mut OwnedPartitions) -> usize {
        let mut looks = 0;
        for _ in 0..partitions.len() {
            let at = self.next_backlog(partitions);
            let held = &mut self.queue.held;
            let page = |partition: &mut ActingPartition| {
                partition.page_aside(destination, class, held).map_err(|error| error.to_string())
            };
            looks += partitions.guard_at(at, page).unwrap_or(0);
            if looks > 0 {
                break;
            }
        }
        if !partitions.iter().any(|partition| partition.attempts.has_aside(destination, class)) {
            self.queue.held.on_no_more(destination, class);
        }
        looks
    }

    fn next_backlog(&mut self, partitions: &OwnedPartitions) -> usize {
        let at = self.backlog_turn % partitions.len();
        self.backlog_turn = at + 1;
        at
    }

    /// `is_behind_held`: others for the same destination go first, if there are any that are held back.
    fn start(
        &self,
        partition: &mut ActingPartition,
        waiting: WaitingAttempt,
        may_load: bool,
        is_behind_held: bool,
    ) -> Result<Started, StateError> {
        if !partition.leads() {
            return Ok(Started::No);
        }
        let Some(found) = partition.attempts.find(&partition.store.read(), waiting)? else { return Ok(Started::No) };
        let (destination, attempt) = (found.destination(), found.attempt());
        let is_held = is_behind_held && self.queue.held.holds(&destination);
        let admission = if is_held { None } else { self.invoker.admit(found.target(), found.pin()) };
        let Some(admission) = admission else {
            // Its deployment has to answer first, and holds up no sleepers of others meanwhile.
            partition.timers.resumed.gone(waiting.id, attempt);
            return Ok(Started::HeldBack(destination));
        };
        let eager_state_bytes = |target: &_, pin| self.invoker.eager_state_bytes(target, pin);
        let prepared = partition.attempts.prepare(&partition.store.read(), found, self.invoker.feed(), eager_state_bytes)?;
        let PreparedAttempt { mut start, unread, left, notifications } = prepared;
        start.rest = left.map(|left| left.of(&self.shared));
        let source = match &unread {
            None => None,
            Some(replay) => {
                let bytes = replay.bytes(start.journal_bytes);
                let turn = may_load.then(|| self.loads.try_take(bytes)).flatten();
                let Some(turn) = turn else { return Ok(Started::Later) };
                let Some(view) = partition.store.publish() else { return Ok(Started::Later) };
                let view = Lent::new(view, self.shared.workers[self.worker].wake());
                Some((self.invoker.expect_replay(bytes), LoadSource { turn, view }))
            }
        };
        // From here on its deployment is waited for.
        start.tells_answer = admission.deployment().is_some_and(|deployment| {
            partition.timers.resumed.begun(waiting.id, attempt, deployment, self.shared.env.clock.monotonic().as_millis() as u64)
        });
        match unread.zip(source) {
            None => self.invoker.start(start, admission),
            Some((replay, (bytes, source))) => {
                let load = Load { replay, start, admission, bytes, source };
                self.shared.env.tasks.spawn(Box::pin(load.run(self.shared.clone(), self.invoker.clone())));
            }
        }
        partition.attempts.started(waiting.id, attempt, notifications);
        Ok(Started::Yes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HERE, id};

    fn waiting(n: u128, class: AttemptClass) -> WaitingAttempt {
        WaitingAttempt { partition: HERE, id: id(n), key: RunningKey { class, turn: 1 } }
    }

    #[test]
    fn what_is_needed_starts_before_what_is_fresh_which_keeps_a_share() {
        let mut queue = StartQueue::default();
        for n in 0..6 {
            queue.push(waiting(100 + n, AttemptClass::Fresh));
            queue.push(waiting(n, AttemptClass::Needed));
        }
        let order: Vec<_> = std::iter::from_fn(|| {
            let next = queue.front().map(|next| next.waiting);
            assert_eq!(queue.pop_begun(), next);
            next.map(|waiting| waiting.id)
        })
        .collect();
        assert_eq!(order, [0, 1, 2, 100, 3, 4, 5, 101, 102, 103, 104, 105].map(id));
    }
}
