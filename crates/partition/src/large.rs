//! Who waits for memory with something large, and when others wait behind that (rule O8).
//!
//! Owns: those that wait, in the order in which they began to, and the bound on how long what is small goes before the first of them: so many
//! checkpoints, since these alone make room. From then on it goes first until it is in: what is large and of those who bring much waits until
//! then, and what is small and theirs finds less than half of the room, so that memory falls to where the first is let in, however much they
//! bring. Until then small ones pass it, and what brings little always does. Who waits for something else keeps its place. Does not own: the
//! room, or results that clients do not take (`gate`).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Checkpoints that end while the first one waits before others wait behind it. One of each partition of a node, as it is set up: what they
/// had when it came is written by then.
const CHECKPOINTS_MAX: u64 = 16;

#[derive(Default)]
pub(crate) struct LargeWaits {
    waiting: Mutex<Waiting>,
    any: AtomicBool,
    /// The number of the one that goes first; 0: none does.
    first: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    /// Checkpoints that have ended.
    ended: u64,
    places: BTreeSet<LargePlace>,
    /// How many there have been.
    numbers: u64,
}

/// The place of one among them, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LargePlace {
    /// From 1 on.
    number: u64,
    /// Checkpoints that had ended when it began to wait.
    since: u64,
}

impl LargeWaits {
    /// Something large begins to wait, or goes on with it in the place that it had.
    pub(crate) fn enter(&self, place: Option<LargePlace>) -> LargePlace {
        self.change(|waiting| {
            let place = place.unwrap_or_else(|| {
                waiting.numbers += 1;
                LargePlace { number: waiting.numbers, since: waiting.ended }
            });
            waiting.places.insert(place);
            place
        })
    }

    /// It waits no more. Whether others waited behind it.
    pub(crate) fn leave(&self, place: LargePlace) -> bool {
        self.change(|waiting| {
            let went_first = waiting.first() == Some(place);
            waiting.places.remove(&place);
            went_first
        })
    }

    pub(crate) fn checkpoint_ended(&self) {
        self.change(|waiting| waiting.ended += 1);
    }

    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }

    /// The first has waited for long: those who bring much wait behind it.
    pub(crate) fn goes_first(&self) -> bool {
        self.first.load(Ordering::SeqCst) > 0
    }

    /// Another one than this goes first.
    pub(crate) fn is_behind(&self, place: Option<LargePlace>) -> bool {
        let first = self.first.load(Ordering::SeqCst);
        first > 0 && place.is_none_or(|place| place.number != first)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut waiting);
        self.any.store(!waiting.places.is_empty(), Ordering::SeqCst);
        self.first.store(waiting.first().map_or(0, |first| first.number), Ordering::SeqCst);
        changed
    }
}

impl Waiting {
    /// The one that goes first.
    fn first(&self) -> Option<LargePlace> {
        self.places.first().copied().filter(|first| self.ended - first.since >= CHECKPOINTS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_wait_behind_the_first_once_it_has_waited_for_so_many_checkpoints() {
        let waits = LargeWaits::default();
        let pass = |checkpoints| (0..checkpoints).for_each(|_| waits.checkpoint_ended());
        pass(CHECKPOINTS_MAX);
        let first = waits.enter(None);
        pass(CHECKPOINTS_MAX - 1);
        let second = waits.enter(None);
        assert!(waits.any() && !waits.goes_first());
        pass(1);
        assert!(waits.goes_first() && !waits.is_behind(Some(first)) && waits.is_behind(Some(second)) && waits.is_behind(None));
        assert!(!waits.leave(second), "nobody waited behind it");
        assert_eq!(waits.enter(Some(second)), second);
        assert!(waits.leave(first), "the second has not waited for long");
        assert!(waits.any() && !waits.goes_first());
        pass(CHECKPOINTS_MAX);
        assert!(waits.goes_first() && waits.leave(second) && !waits.any());
        waits.enter(None);
        assert!(!waits.goes_first());
        waits.enter(Some(first));
        assert!(waits.goes_first(), "it has the place that it had");
    }
}
