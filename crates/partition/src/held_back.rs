//! Attempts whose deployment holds its share of the places, as it does not answer or works on and on (rule O5): they wait here, and others start past them.
//!
//! Owns: a queue for each destination, in the order in which attempts were asked for, needed ones before fresh ones; and which
//! destinations may begin more by now. Of each queue a bounded number is in memory: further ones are found in the tables again once
//! these have begun. Does not own: the shares (`invoker`), or where in its tables a partition goes on (`attempts`).

use crate::starting::{ByClass, WaitingAttempt};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use surefoot_invoker::Destination;
use surefoot_model::AttemptClass;

/// Attempts of a class that are held back in memory for each destination.
pub(crate) const HELD_MAX: usize = 256;

#[derive(Default)]
pub(crate) struct HeldBack {
    destinations: BTreeMap<Destination, ByClass<HeldQueue>>,
    /// Destinations with attempts of a class that may begin by now, in the order of their turns, and how many each.
    ready: ByClass<VecDeque<(Destination, usize)>>,
    /// Whose attempt began last: the next turn is that of another one.
    last: Option<Destination>,
    /// Something began, or came, since the last look: `ready` is older than that, and where a share was used up nobody hears of more.
    is_stale: bool,
}

#[derive(Default)]
struct HeldQueue {
    attempts: VecDeque<WaitingAttempt>,
    /// Some partition has further ones in its tables.
    has_more: bool,
}

impl HeldQueue {
    fn is_empty(&self) -> bool {
        self.attempts.is_empty() && !self.has_more
    }
}

impl HeldBack {
    pub(crate) fn is_empty(&self) -> bool {
        self.destinations.is_empty()
    }

    /// Attempts for this destination are held back: further ones come behind them.
    pub(crate) fn holds(&self, destination: &Destination) -> bool {
        self.destinations.contains_key(destination)
    }

    pub(crate) fn contains(&self, destination: &Destination, waiting: &WaitingAttempt) -> bool {
        self.destinations.get(destination).is_some_and(|queues| queues.of(waiting.key.class).attempts.contains(waiting))
    }

    /// A look is due before anybody may wait for what is held back.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale && !self.is_empty()
    }

    /// Holds an attempt back, behind all others of its class. False: there is no room, and it has to be found in its partition's tables
    /// again, as all that follow it.
    #[must_use]
    pub(crate) fn push(&mut self, destination: Destination, waiting: WaitingAttempt) -> bool {
        self.is_stale = true;
        let queue = self.destinations.entry(destination).or_default().of_mut(waiting.key.class);
        queue.has_more |= queue.attempts.len() >= HELD_MAX;
        if !queue.has_more {
            queue.attempts.push_back(waiting);
        }
        !queue.has_more
    }

    /// Holds an attempt back that was to begin before all others of its class.
    pub(crate) fn push_first(&mut self, destination: Destination, waiting: WaitingAttempt) {
        self.is_stale = true;
        self.destinations.entry(destination).or_default().of_mut(waiting.key.class).attempts.push_front(waiting);
    }

    /// Takes in one that was found in the tables again. False: there is no room.
    #[must_use]
    pub(crate) fn refill(&mut self, destination: &Destination, waiting: WaitingAttempt) -> bool {
        let queue = self.destinations.get_mut(destination).map(|queues| queues.of_mut(waiting.key.class));
        let Some(queue) = queue.filter(|queue| queue.attempts.len() < HELD_MAX) else { return false };
        queue.attempts.push_back(waiting);
        true
    }

    /// No partition has further ones in its tables.
    pub(crate) fn on_no_more(&mut self, destination: &Destination, class: AttemptClass) {
        let Some(queues) = self.destinations.get_mut(destination) else { return };
        let queue = queues.of_mut(class);
        queue.has_more = false;
        if queue.is_empty() {
            self.ready.of_mut(class).retain(|(ready, _)| ready != destination);
        }
        self.tidy(destination);
    }

    /// Asks for each destination how many more may begin there.
    pub(crate) fn look(&mut self, share_left: impl Fn(&Destination) -> usize) {
        self.is_stale = false;
        AttemptClass::ALL.into_iter().for_each(|class| self.ready.of_mut(class).clear());
        let last = self.last.as_ref();
        let behind = self.destinations.range((last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded));
        let before = last.into_iter().flat_map(|last| self.destinations.range(..=last));
        for (destination, queues) in behind.chain(before) {
            let share = share_left(destination);
            for class in AttemptClass::ALL {
                if share > 0 && !queues.of(class).is_empty() {
                    self.ready.of_mut(class).push_back((destination.clone(), share));
                }
            }
        }
    }

    /// The destination whose turn it is to begin an attempt of a class.
    pub(crate) fn ready(&self, class: AttemptClass) -> Option<&Destination> {
        self.ready.of(class).front().map(|(destination, _)| destination)
    }

    /// Nothing more of the class begins there for now.
    pub(crate) fn on_share_taken(&mut self, destination: &Destination) {
        for class in AttemptClass::ALL {
            self.ready.of_mut(class).retain(|(ready, _)| ready != destination);
        }
    }

    /// Attempts of the destination whose turn it is are to be found in the tables before one can begin.
    pub(crate) fn wants_page(&self, class: AttemptClass) -> Option<Destination> {
        let destination = self.ready(class)?;
        let queue = self.destinations.get(destination)?.of(class);
        (queue.attempts.is_empty() && queue.has_more).then(|| destination.clone())
    }

    /// The attempt that begins next.
    pub(crate) fn front(&self, class: AttemptClass) -> Option<WaitingAttempt> {
        self.destinations.get(self.ready(class)?)?.of(class).attempts.front().copied()
    }

    /// Takes it: it begins, and then it is another destination's turn.
    pub(crate) fn pop_begun(&mut self, class: AttemptClass) -> Option<WaitingAttempt> {
        let (destination, share) = self.ready.of_mut(class).pop_front()?;
        self.is_stale = true;
        let queue = self.destinations.get_mut(&destination)?.of_mut(class);
        let taken = queue.attempts.pop_front();
        if share > 1 && !queue.is_empty() {
            self.ready.of_mut(class).push_back((destination.clone(), share - 1));
        }
        self.tidy(&destination);
        self.last = Some(destination);
        taken
    }

    /// Takes it: it does not begin from here.
    pub(crate) fn pop_other(&mut self, class: AttemptClass) -> Option<WaitingAttempt> {
        let destination = self.ready(class)?.clone();
        let queue = self.destinations.get_mut(&destination)?.of_mut(class);
        let taken = queue.attempts.pop_front();
        if queue.is_empty() {
            self.ready.of_mut(class).pop_front();
        }
        self.tidy(&destination);
        taken
    }

    /// How many would begin if places were free.
    pub(crate) fn wanted(&self) -> usize {
        let wanted = |class| {
            let ready = self.ready.of(class).iter();
            let held = |destination| self.destinations.get(destination).map_or(0, |queues| queues.of(class).attempts.len());
            ready.map(|(destination, share)| held(destination).min(*share)).sum::<usize>()
        };
        AttemptClass::ALL.into_iter().map(wanted).sum()
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn tidy(&mut self, destination: &Destination) {
        let queues = self.destinations.get(destination);
        if queues.is_some_and(|queues| AttemptClass::ALL.into_iter().all(|class| queues.of(class).is_empty())) {
            self.destinations.remove(destination);
            self.on_share_taken(destination);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HERE, id};
    use surefoot_machine::RunningKey;
    use surefoot_model::{DeploymentId, InvocationId};

    const NEEDED: AttemptClass = AttemptClass::Needed;
    const FRESH: AttemptClass = AttemptClass::Fresh;

    fn at(deployment: u128) -> Destination {
        Destination::Pinned(DeploymentId(deployment))
    }

    fn waiting(n: u128, class: AttemptClass) -> WaitingAttempt {
        WaitingAttempt { partition: HERE, id: id(n), key: RunningKey { class, turn: n as u64 } }
    }

    fn holding(held: &[(u128, u128, AttemptClass)]) -> HeldBack {
        let mut all = HeldBack::default();
        held.iter().for_each(|&(deployment, n, class)| assert!(all.push(at(deployment), waiting(n, class))));
        all
    }

    fn begin_all(held: &mut HeldBack, class: AttemptClass) -> Vec<InvocationId> {
        std::iter::from_fn(|| held.front(class).inspect(|next| assert_eq!(held.pop_begun(class), Some(*next))))
            .map(|waiting| waiting.id)
            .collect()
    }

    #[test]
    fn each_destination_begins_as_many_as_its_share_in_order_and_all_have_their_turns() {
        let mut held = holding(&[(1, 10, FRESH), (1, 11, FRESH), (1, 12, FRESH), (2, 20, FRESH), (3, 30, FRESH), (1, 9, NEEDED)]);
        let share = |destination: &Destination| if *destination == at(3) { 0 } else { 2 };
        held.look(share);
        assert_eq!(held.wanted(), 4, "those that would begin");
        assert_eq!(begin_all(&mut held, NEEDED), [9].map(id));
        assert_eq!(begin_all(&mut held, FRESH), [10, 20, 11].map(id));
        assert!(!held.holds(&at(2)) && held.holds(&at(1)) && held.holds(&at(3)));
        held.look(|_| 1);
        assert_eq!(begin_all(&mut held, FRESH), [30, 12].map(id), "the one that began last comes last");
        assert!(held.is_empty());
    }

    #[test]
    fn what_goes_without_beginning_takes_no_share() {
        let mut held = holding(&[(1, 10, FRESH), (1, 11, FRESH), (1, 12, FRESH)]);
        held.look(|_| 1);
        assert_eq!(held.pop_other(FRESH), Some(waiting(10, FRESH)));
        assert_eq!(begin_all(&mut held, FRESH), [11].map(id));
        held.look(|_| 1);
        held.on_share_taken(&at(1));
        assert_eq!((held.front(FRESH), held.wanted()), (None, 0));
    }

    #[test]
    fn beyond_its_bound_a_destination_is_left_to_the_tables_and_no_other_is() {
        let mut held = HeldBack::default();
        let taken = (0..).take_while(|&n| held.push(at(1), waiting(n, FRESH))).count();
        assert_eq!(taken, HELD_MAX);
        assert!(held.push(at(1), waiting(1_000, NEEDED)) && held.push(at(2), waiting(1_001, FRESH)));
        held.look(|_| usize::MAX);
        assert_eq!(held.pop_other(FRESH), Some(waiting(0, FRESH)));
        assert!(!held.push(at(1), waiting(2_000, FRESH)), "those in the tables go first");
        held.look(|destination| if *destination == at(1) { usize::MAX } else { 0 });
        while held.wants_page(FRESH).is_none() {
            held.pop_begun(FRESH).unwrap();
        }
        assert!(held.refill(&at(1), waiting(2_000, FRESH)));
        assert_eq!(begin_all(&mut held, FRESH), [2_000].map(id));
        held.on_no_more(&at(1), FRESH);
        assert_eq!(held.wants_page(FRESH), None);
        assert!(held.push(at(1), waiting(3_000, FRESH)));
    }
}
