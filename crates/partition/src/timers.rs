//! The timers of one partition: which events say that one is due.
//!
//! Owns: how many are on their way through the log at a time, so that calls go on between those that are overdue. Does not own: which
//! timers are due (`wheel`), the clock, or what a timer's end does (`machine`).

use crate::settings::Mutant;
use crate::wheel::{FIRST, Wheel};
use std::time::Duration;
use surefoot_env::Undone;
use surefoot_machine::{StateError, TimerKey, Timers};
use surefoot_model::{Event, Timestamp};
use surefoot_storage::Reader;

/// Timers of a node that may be fired and not applied. What each of them resumes comes on top, and a call waits behind all of it.
const FIRING_MAX: usize = 256;
/// Each partition's share is at least this.
const FIRING_MIN: usize = 16;
/// What a look at a timer may be late: waits are whole milliseconds of either clock.
const ROUNDING_MS: u64 = 3;
/// How early the broken variant fires, in milliseconds.
const EARLY_MS: u64 = 1_000;

pub(crate) struct PartitionTimers {
    wheel: Wheel,
    /// Fired by this term and not applied.
    firing: usize,
    firing_max: usize,
    mutant: Mutant,
}

/// Timers that are due, and when the next one is.
pub(crate) struct TimersTurn {
    pub(crate) events: Vec<Event>,
    pub(crate) next_due: Option<Timestamp>,
}

impl PartitionTimers {
    /// One of so many partitions of a node.
    pub(crate) fn new(partitions: u16, mutant: Mutant) -> Self {
        let firing_max = (FIRING_MAX / usize::from(partitions.max(1))).max(FIRING_MIN);
        Self { wheel: Wheel::new(), firing: 0, firing_max, mutant }
    }

    /// A term of this process begins: what earlier ones set is found in the table.
    pub(crate) fn begin_term(&mut self) {
        self.firing = 0;
        self.wheel = if self.mutant == Mutant::ForgetTimers { Wheel::forgetful() } else { Wheel::new() };
    }

    pub(crate) fn on_set(&mut self, key: TimerKey) {
        self.wheel.set(key);
    }

    pub(crate) fn on_event(&mut self, event: &Event) {
        if let Event::TimerFired { .. } = event {
            // What an earlier term fired is applied before this one begins, or counts as nothing.
            self.firing = self.firing.saturating_sub(1);
        }
    }

    pub(crate) fn turn(&mut self, reader: &Reader<'_>, now: Timestamp) -> Result<TimersTurn, StateError> {
        let now = if self.mutant == Mutant::FireEarly { now.after_ms(EARLY_MS) } else { now };
        let due = self.wheel.take_due(reader, now, self.firing_max - self.firing)?;
        assert!(due.iter().all(|key| key.due <= now), "no timer fires early (rule T2)");
        let events = due.iter().map(|key| Event::TimerFired { due: key.due, owner: key.owner }).collect();
        self.firing += due.len();
        assert!(self.firing <= self.firing_max, "{} timers are on their way", self.firing);
        // At the bound the next turn comes when one of them is applied.
        let next_due = if self.firing < self.firing_max { self.wheel.next_due(reader)? } else { None };
        Ok(TimersTurn { events, next_due })
    }
}

impl PartitionTimers {
    /// A timer that is due while none is on its way. After a jump of the wall clock that is noticed with the next look at it.
    pub(crate) fn undone(&self, reader: &Reader<'_>, now: Timestamp, reread: Duration) -> Result<Option<Undone>, StateError> {
        if self.firing > 0 {
            return Ok(None);
        }
        let first = reader.scan::<Timers>(&FIRST, None, 1)?.pop().map(|(key, ())| key);
        let due = first.filter(|key| key.due.after_ms(ROUNDING_MS) <= now);
        let what = |key: TimerKey| format!("a timer is due since {} and nobody fires it (rule T2)", key.due.0);
        Ok(due.map(|key| Undone { what: what(key), patience: reread + Duration::from_millis(ROUNDING_MS) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checkpoint, empty_store, id, write};
    use surefoot_machine::{State, Timers};
    use surefoot_model::{Incarnation, Life, TimerOwner};
    use surefoot_storage::Store;

    fn key(due: u64, unique: u64) -> TimerKey {
        let life = Life { id: id(u128::from(unique)), incarnation: Incarnation(1) };
        TimerKey { due: Timestamp(due), owner: TimerOwner::Invocation { life, slot: 1 } }
    }

    fn set(store: &mut Store, timers: &mut PartitionTimers, key: TimerKey) {
        write(store, |txn| txn.put::<Timers>(key, ()));
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
        let (mut store, mut timers) = (empty_store(), PartitionTimers::new(16, Mutant::None));
        set(&mut store, &mut timers, key(20, 1));
        set(&mut store, &mut timers, key(10, 2));
        assert_eq!(fire(&store, &mut timers, 9), (vec![], Some(10)));
        assert_eq!(fire(&store, &mut timers, 10), (vec![10], Some(20)));
        assert_eq!(fire(&store, &mut timers, 10), (vec![], Some(20)));
    }

    #[test]
    fn a_new_term_finds_timers_in_the_tables_and_fires_a_bounded_number_at_a_time() {
        let (mut store, mut timers) = (empty_store(), PartitionTimers::new(16, Mutant::None));
        let count = 960;
        write(&mut store, |txn| {
            (0..count).for_each(|n| txn.put::<Timers>(key(n, n), ()));
        });
        checkpoint(&mut store);
        timers.begin_term();
        let mut all = Vec::new();
        while all.len() < count as usize {
            let (fired, next) = fire(&store, &mut timers, count);
            assert_eq!((fired.len(), next), (FIRING_MAX / 16, None));
            assert_eq!(fire(&store, &mut timers, count), (vec![], None), "those are on their way");
            for due in &fired {
                timers.on_event(&Event::TimerFired { due: Timestamp(*due), owner: key(*due, *due).owner });
            }
            all.extend(fired);
        }
        assert!(all.into_iter().eq(0..count));
    }
}
