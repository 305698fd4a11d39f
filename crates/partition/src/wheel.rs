//! Which timers are due: a window over the timers table.
//!
//! The window holds every timer before `horizon`; later ones are in the table alone and are loaded when the window runs dry, from
//! where it ended and never from the front, over the tombstones of what has fired. So waiting costs stored bytes, not memory.
//! Does not own: the rows, or the clock. A timer that was cleared may fire all the same: the machine drops it.

use std::collections::BTreeSet;
use surefoot_machine::{StateError, TimerKey, Timers};
use surefoot_model::{Incarnation, InvocationId, Life, TimerOwner, Timestamp};
use surefoot_storage::Reader;

/// Before every other.
pub(crate) const FIRST: TimerKey = TimerKey {
    due: Timestamp(0),
    owner: TimerOwner::Invocation {
        life: Life { id: InvocationId { partition_key: 0, unique: 0 }, incarnation: Incarnation(0) },
        slot: 0,
    },
};

/// Timers in the window.
const WINDOW_MAX: usize = 2_048;

pub(crate) struct Wheel {
    window: BTreeSet<TimerKey>,
    /// The first key that may be missing from the window; `None`: the window is complete.
    horizon: Option<TimerKey>,
}

impl Wheel {
    /// A wheel that has yet to look at the table.
    pub(crate) fn new() -> Self {
        Self { window: BTreeSet::new(), horizon: Some(FIRST) }
    }

    /// A wheel that never looks at the table: what the simulator must catch.
    pub(crate) fn forgetful() -> Self {
        Self { window: BTreeSet::new(), horizon: None }
    }

    /// A timer was written to the table.
    pub(crate) fn set(&mut self, key: TimerKey) {
        if self.horizon.is_some_and(|horizon| key >= horizon) {
            return;
        }
        self.window.insert(key);
        if self.window.len() > WINDOW_MAX {
            self.horizon = self.window.pop_last();
        }
    }

    /// When the next timer is due; reads the table where the window does not tell.
    pub(crate) fn next_due(&mut self, state: &impl ReadTimers) -> Result<Option<Timestamp>, StateError> {
        if self.window.is_empty()
            && let Some(from) = self.horizon
        {
            let mut keys = state.timers_from(&from, WINDOW_MAX)?;
            self.horizon = if keys.len() < WINDOW_MAX { None } else { keys.pop() };
            self.window.extend(keys);
        }
        Ok(self.window.first().map(|key| key.due))
    }

    /// Takes at most `limit` timers that are due at `now`, earliest first.
    pub(crate) fn take_due(
        &mut self,
        state: &impl ReadTimers,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<TimerKey>, StateError> {
        let mut due = Vec::new();
        while due.len() < limit && self.next_due(state)?.is_some_and(|at| at <= now) {
            due.extend(self.window.pop_first());
        }
        Ok(due)
    }
}

/// The timers table, in order.
pub(crate) trait ReadTimers {
    fn timers_from(&self, from: &TimerKey, limit: usize) -> Result<Vec<TimerKey>, StateError>;
}

impl ReadTimers for Reader<'_> {
    fn timers_from(&self, from: &TimerKey, limit: usize) -> Result<Vec<TimerKey>, StateError> {
        Ok(self.scan::<Timers>(from, None, limit)?.into_iter().map(|(key, _)| key).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use surefoot_machine::State;
    use surefoot_machine::testing::MemState;

    impl ReadTimers for MemState {
        fn timers_from(&self, from: &TimerKey, limit: usize) -> Result<Vec<TimerKey>, StateError> {
            Ok(self.scan::<Timers>(from, None, limit)?.into_iter().map(|(key, _)| key).collect())
        }
    }

    fn key(due: u64, unique: u128) -> TimerKey {
        let life = Life { id: InvocationId { partition_key: 1, unique }, incarnation: Incarnation(1) };
        TimerKey { due: Timestamp(due), owner: TimerOwner::Invocation { life, slot: 1 } }
    }

    fn set(state: &mut MemState, wheel: &mut Wheel, key: TimerKey) {
        state.put::<Timers>(key, ());
        wheel.set(key);
    }

    fn fire(state: &mut MemState, wheel: &mut Wheel, now: u64) -> Vec<u64> {
        let due = wheel.take_due(state, Timestamp(now), usize::MAX).unwrap();
        due.iter().for_each(|key| state.delete::<Timers>(key));
        due.iter().map(|key| key.due.0).collect()
    }

    #[test]
    fn timers_fire_in_order_and_never_early() {
        let (mut state, mut wheel) = (MemState::default(), Wheel::new());
        for due in [30, 10, 20] {
            set(&mut state, &mut wheel, key(due, 1));
        }
        assert_eq!(fire(&mut state, &mut wheel, 9), [] as [u64; 0]);
        assert_eq!(fire(&mut state, &mut wheel, 20), [10, 20]);
        assert_eq!(wheel.next_due(&state).unwrap(), Some(Timestamp(30)));
    }

    #[test]
    fn a_timer_set_in_the_past_fires_at_once() {
        let (mut state, mut wheel) = (MemState::default(), Wheel::new());
        set(&mut state, &mut wheel, key(100, 1));
        assert_eq!(fire(&mut state, &mut wheel, 100), [100]);
        set(&mut state, &mut wheel, key(50, 2));
        assert_eq!(fire(&mut state, &mut wheel, 100), [50]);
    }

    #[test]
    fn more_timers_than_the_window_holds_all_fire_in_order() {
        let (mut state, mut wheel) = (MemState::default(), Wheel::new());
        let count = WINDOW_MAX as u64 * 3 + 7;
        for n in 0..count {
            set(&mut state, &mut wheel, key(n * 7919 % count, u128::from(n)));
            if n == 100 {
                assert!(wheel.next_due(&state).unwrap().is_some());
            }
        }
        assert!(wheel.window.len() <= WINDOW_MAX);
        let mut fired = Vec::new();
        for now in 0..count {
            fired.extend(fire(&mut state, &mut wheel, now));
        }
        assert_eq!(fired, (0..count).collect::<Vec<_>>());
    }

    #[test]
    fn a_restart_finds_the_timers_of_the_table() {
        let mut state = MemState::default();
        for n in 0..WINDOW_MAX as u64 + 10 {
            state.put::<Timers>(key(n, 1), ());
        }
        let fired = fire(&mut state, &mut Wheel::new(), u64::MAX);
        assert_eq!(fired.len(), WINDOW_MAX + 10);
    }
}
