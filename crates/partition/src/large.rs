//! Who waits for memory with something large, and when others wait behind that (rule O8).
//!
//! Owns: those that wait, in the order in which they began to, and the bound on how long what is small goes before the first of them: so many checkpoints, since these
//! alone make room. From then on those who bring much find half of their room, and memory falls to where the large one is let in, however much
//! small ones bring; until then, and in between, small ones pass it. Does not own: the room (`gate`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Checkpoints that end while the first one waits before others wait behind it. One of each partition of a node, as it is set up: what they
/// had when it came is written by then.
const CHECKPOINTS_MAX: u64 = 16;

#[derive(Default)]
pub(crate) struct LargeWaits {
    waiting: Mutex<Waiting>,
    any: AtomicBool,
    goes_first: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    /// Checkpoints that have ended.
    ended: u64,
    /// How many had when each of them began to wait, by its number.
    since: BTreeMap<u64, u64>,
    next: u64,
}

impl LargeWaits {
    /// Something large begins to wait; its number.
    pub(crate) fn enter(&self) -> u64 {
        self.change(|waiting| {
            let number = waiting.next;
            waiting.next += 1;
            waiting.since.insert(number, waiting.ended);
            number
        })
    }

    /// It waits no more. Whether others waited behind it, and do so no more.
    pub(crate) fn leave(&self, number: u64) -> bool {
        let went_first = self.goes_first();
        self.change(|waiting| waiting.since.remove(&number));
        went_first && !self.goes_first()
    }

    pub(crate) fn checkpoint_ended(&self) {
        self.change(|waiting| waiting.ended += 1);
    }

    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }

    /// The first has waited for long: those who bring much wait behind it.
    pub(crate) fn goes_first(&self) -> bool {
        self.goes_first.load(Ordering::SeqCst)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Waiting) -> T) -> T {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut waiting);
        let first = waiting.since.first_key_value().map(|(_, since)| *since);
        self.any.store(first.is_some(), Ordering::SeqCst);
        self.goes_first.store(first.is_some_and(|since| waiting.ended - since >= CHECKPOINTS_MAX), Ordering::SeqCst);
        changed
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
        let first = waits.enter();
        pass(CHECKPOINTS_MAX - 1);
        let second = waits.enter();
        assert!(waits.any() && !waits.goes_first());
        pass(1);
        assert!(waits.goes_first());
        assert!(waits.leave(first), "the second has not waited for long");
        assert!(waits.any() && !waits.goes_first());
        pass(CHECKPOINTS_MAX);
        assert!(waits.goes_first() && waits.leave(second) && !waits.any());
    }
}
