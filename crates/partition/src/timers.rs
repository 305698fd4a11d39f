//! The timers of one partition: which events say that one is due.
//!
//! Owns: how many fire at a time. Does not own: which timers are due (`wheel`), the clock, or what a timer's end does (`machine`).

use crate::settings::Mutant;
use crate::wheel::Wheel;
use surefoot_machine::{StateError, TimerKey};
use surefoot_model::{Event, Timestamp};
use surefoot_storage::Reader;

/// Timers fired per turn.
const FIRE_MAX: usize = 512;
/// How early the broken variant fires, in milliseconds.
const EARLY_MS: u64 = 1_000;

pub(crate) struct PartitionTimers {
    wheel: Wheel,
    mutant: Mutant,
}

/// Timers that are due, and when the next one is.
pub(crate) struct TimersTurn {
    pub(crate) events: Vec<Event>,
    pub(crate) next_due: Option<Timestamp>,
}

impl PartitionTimers {
    pub(crate) fn new(mutant: Mutant) -> Self {
        Self { wheel: Wheel::new(), mutant }
    }

    /// A term of this process begins: what earlier ones set is found in the table.
    pub(crate) fn begin_term(&mut self) {
        self.wheel = if self.mutant == Mutant::ForgetTimers { Wheel::forgetful() } else { Wheel::new() };
    }

    pub(crate) fn on_set(&mut self, key: TimerKey) {
        self.wheel.set(key);
    }

    pub(crate) fn turn(&mut self, reader: &Reader<'_>, now: Timestamp) -> Result<TimersTurn, StateError> {
        let now = if self.mutant == Mutant::FireEarly { now.after_ms(EARLY_MS) } else { now };
        let due = self.wheel.take_due(reader, now, FIRE_MAX)?;
        let events = due.iter().map(|key| Event::TimerFired { due: key.due, id: key.id, slot: key.slot }).collect();
        Ok(TimersTurn { events, next_due: self.wheel.next_due(reader)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checkpoint, empty_store, id, write};
    use surefoot_machine::{State, TimerRow, Timers};
    use surefoot_model::Incarnation;
    use surefoot_storage::Store;

    fn key(due: u64, unique: u64) -> TimerKey {
        TimerKey { due: Timestamp(due), id: id(u128::from(unique)), slot: 1 }
    }

    fn set(store: &mut Store, timers: &mut PartitionTimers, key: TimerKey) {
        write(store, |txn| txn.put::<Timers>(key, TimerRow { incarnation: Incarnation(1) }));
        timers.on_set(key);
    }

    fn fire(store: &Store, timers: &mut PartitionTimers, now: u64) -> (Vec<u64>, Option<u64>) {
        let turn = timers.turn(&store.read(), Timestamp(now)).unwrap();
        let fired = turn.events.iter().map(|event| match event {
            Event::TimerFired { due, .. } => due.0,
            other => panic!("{other:?}"),
        });
        (fired.collect(), turn.next_due.map(|due| due.0))
    }

    #[test]
    fn a_timer_fires_once_when_it_is_due_and_the_next_is_named() {
        let (mut store, mut timers) = (empty_store(), PartitionTimers::new(Mutant::None));
        set(&mut store, &mut timers, key(20, 1));
        set(&mut store, &mut timers, key(10, 2));
        assert_eq!(fire(&store, &mut timers, 9), (vec![], Some(10)));
        assert_eq!(fire(&store, &mut timers, 10), (vec![10], Some(20)));
        assert_eq!(fire(&store, &mut timers, 10), (vec![], Some(20)));
    }

    #[test]
    fn a_new_term_finds_timers_in_the_tables_and_fires_a_bounded_number_at_a_time() {
        let (mut store, mut timers) = (empty_store(), PartitionTimers::new(Mutant::None));
        let count = FIRE_MAX as u64 + 100;
        write(&mut store, |txn| {
            (0..count).for_each(|n| txn.put::<Timers>(key(n, n), TimerRow { incarnation: Incarnation(1) }));
        });
        checkpoint(&mut store);
        timers.begin_term();
        let (first, next) = fire(&store, &mut timers, count);
        assert_eq!((first.len(), next), (FIRE_MAX, Some(FIRE_MAX as u64)));
        let (rest, next) = fire(&store, &mut timers, count);
        assert_eq!((first.into_iter().chain(rest).collect::<Vec<_>>(), next), ((0..count).collect(), None));
    }
}
