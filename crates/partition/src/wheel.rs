//! Which timers are due: a window over the timers table.
//!
//! The window holds every timer before `horizon`; later ones are in the table alone and are loaded when the window runs dry, from
//! where it ended and never from the front, over the tombstones of what has fired. So waiting costs stored bytes, not memory.
//! Does not own: the rows, or the clock. A timer that was cleared may fire all the same: the machine drops it.

use std::collections::BTreeSet;
use surefoot_machine::{StateError, TimerKey, Timers};
use surefoot_model::{Incarnation, InvocationId, Life, TimerOwner, Timestamp};
use surefoot_storage::{Limit, Reader};

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
/// Keys that one look at the table passes, those of timers that are gone among them: a millisecond or a few.
const LOOKS_MAX: usize = 2 * WINDOW_MAX;

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

    /// When the next timer is due, or when there is more to be read: reads the table where the window does not tell, as far as one look
    /// goes.
    pub(crate) fn next_due(&mut self, state: &impl ReadTimers) -> Result<Option<Timestamp>, StateError> {
        if self.window.is_empty()
            && let Some(from) = self.horizon
        {
            let TimersRead { mut keys, goes_on_at } = state.timers_from(&from)?;
            self.horizon = goes_on_at.or_else(|| if keys.len() < WINDOW_MAX { None } else { keys.pop() });
            self.window.extend(keys);
        }
        // No timer that was not read is due before the horizon.
        Ok(self.window.first().or(self.horizon.as_ref()).map(|key| key.due))
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
            // Where none was read yet, the next look goes on.
            let Some(key) = self.window.pop_first() else { break };
            due.push(key);
        }
        Ok(due)
    }
}

/// The timers table, in order.
pub(crate) trait ReadTimers {
    /// A window's worth of them, or what one look finds.
    fn timers_from(&self, from: &TimerKey) -> Result<TimersRead, StateError>;
}

/// What one look at the timers table finds.
pub(crate) struct TimersRead {
    keys: Vec<TimerKey>,
    /// Where there was more to look at than one look may.
    goes_on_at: Option<TimerKey>,
}

impl ReadTimers for Reader<'_> {
    fn timers_from(&self, from: &TimerKey) -> Result<TimersRead, StateError> {
        let limit = Limit { rows: WINDOW_MAX, bytes: usize::MAX, looks: LOOKS_MAX };
        let piece = self.scan_within::<Timers>(from, None, limit)?;
        Ok(TimersRead { keys: piece.rows.into_iter().map(|(key, ())| key).collect(), goes_on_at: piece.goes_on_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checkpoint, empty_store, write};
    use surefoot_machine::State;
    use surefoot_machine::testing::MemState;

    impl ReadTimers for MemState {
        fn timers_from(&self, from: &TimerKey) -> Result<TimersRead, StateError> {
            let rows = self.scan::<Timers>(from, None, WINDOW_MAX)?;
            Ok(TimersRead { keys: rows.into_iter().map(|(key, ())| key).collect(), goes_on_at: None })
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

    /// A million sleepers were killed: their rows lay on disk, and one look passed over all of them.
    #[test]
    fn a_look_over_very_many_timers_that_have_gone_is_bounded_and_the_next_goes_on() {
        let count = 5 * LOOKS_MAX as u64;
        let mut store = empty_store();
        write(&mut store, |txn| (1..=count + 1).for_each(|due| txn.put::<Timers>(key(due, 1), ())));
        checkpoint(&mut store);
        write(&mut store, |txn| (1..=count).for_each(|due| txn.delete::<Timers>(&key(due, 1))));
        let mut wheel = Wheel::new();
        let looks: Vec<_> = (0..6).map(|_| wheel.next_due(&store.read()).unwrap().unwrap().0).collect();
        let each = LOOKS_MAX as u64;
        assert_eq!(
            looks,
            [each + 1, 2 * each + 1, 3 * each + 1, 4 * each + 1, 5 * each + 1, count + 1],
            "no timer is due before"
        );
        assert_eq!(wheel.take_due(&store.read(), Timestamp(count + 1), 9).unwrap(), [key(count + 1, 1)]);
        let mut wheel = Wheel::new();
        let taken: Vec<_> = (0..6).map(|_| wheel.take_due(&store.read(), Timestamp(u64::MAX), 9).unwrap().len()).collect();
        assert_eq!(taken, [0, 0, 0, 0, 0, 1]);
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
