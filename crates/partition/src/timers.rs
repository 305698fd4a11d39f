//! The timers of one partition: which events say that one is due.
//!
//! Owns: that timers which are overdue fire no sooner than what they resume is taken, so that calls go on between them (rule O5). Does
//! not own: which timers are due (`wheel`), how many may have resumed something at a time (`resumed`), the clock, or what a timer's
//! end does (`machine`).

use crate::acting::TurnTime;
use crate::resumed::{ResumeRoom, ResumedAttempts};
use crate::settings::Mutant;
use crate::wheel::{FIRST, Wheel};
use std::time::Duration;
use surefoot_env::Undone;
use surefoot_machine::{StateError, TimerKey, Timers};
use surefoot_model::{Event, Timestamp};
use surefoot_storage::Reader;

/// Timers of a partition that the broken variant fires at a time, whatever they resume.
const FLOOD: usize = 256;
/// What a look at a timer may be late: waits are whole milliseconds of either clock.
const ROUNDING_MS: u64 = 3;
/// How early the broken variant fires, in milliseconds.
const EARLY_MS: u64 = 1_000;

pub(crate) struct PartitionTimers {
    wheel: Wheel,
    /// Fired by this term and not applied.
    firing: usize,
    /// What they have resumed.
    pub(crate) resumed: ResumedAttempts,
    partitions: u16,
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
        Self { wheel: Wheel::new(), firing: 0, resumed: ResumedAttempts::new(partitions), partitions, mutant }
    }

    /// A term of this process begins: what earlier ones set is found in the table.
    pub(crate) fn begin_term(&mut self) {
        self.firing = 0;
        self.resumed = ResumedAttempts::new(self.partitions);
        self.wheel = if self.mutant == Mutant::ForgetTimers { Wheel::forgetful() } else { Wheel::new() };
    }

    pub(crate) fn on_set(&mut self, key: TimerKey) {
        self.wheel.set(key);
    }

    pub(crate) fn on_event(&mut self, event: &Event) {
        match event {
            // What an earlier term fired is applied before this one begins, or counts as nothing.
            Event::TimerFired { .. } => self.firing = self.firing.saturating_sub(1),
            Event::AttemptProgressed(progress) => self.resumed.reported(progress),
            _ => {}
        }
    }

    pub(crate) fn turn(&mut self, reader: &Reader<'_>, time: TurnTime) -> Result<TimersTurn, StateError> {
        let now = if self.mutant == Mutant::FireEarly { time.now.after_ms(EARLY_MS) } else { time.now };
        let room = match self.resumed.room(self.firing, time.monotonic_ms) {
            ResumeRoom::For(room) => room,
            ResumeRoom::None { .. } if self.mutant == Mutant::FloodResumed => FLOOD,
            // Or once one of them is applied, or one that was resumed has its answer.
            ResumeRoom::None { until_ms } => {
                return Ok(TimersTurn { events: Vec::new(), next_due: until_ms.map(|ms| time.now.after_ms(ms)) });
            }
        };
        let due = self.wheel.take_due(reader, now, room)?;
        assert!(due.iter().all(|key| key.due <= now), "no timer fires early (rule T2)");
        let events = due.iter().map(|key| Event::TimerFired { due: key.due, owner: key.owner }).collect();
        self.firing += due.len();
        let next_due = match self.resumed.room(self.firing, time.monotonic_ms) {
            ResumeRoom::For(_) => self.wheel.next_due(reader)?,
            ResumeRoom::None { until_ms } => until_ms.map(|ms| time.now.after_ms(ms)),
        };
        Ok(TimersTurn { events, next_due })
    }
}

impl PartitionTimers {
    /// A timer that is due while none is on its way, and what others have resumed leaves room. After a jump of the wall clock that is
    /// noticed with the next look at it.
    pub(crate) fn undone(&self, reader: &Reader<'_>, time: TurnTime, reread: Duration) -> Result<Option<Undone>, StateError> {
        if self.firing > 0 || self.resumed.is_full(time.monotonic_ms) {
            return Ok(None);
        }
        let first = reader.scan::<Timers>(&FIRST, None, 1)?.pop().map(|(key, ())| key);
        let due = first.filter(|key| key.due.after_ms(ROUNDING_MS) <= time.now);
        let what = |key: TimerKey| format!("a timer is due since {} and nobody fires it (rule T2)", key.due.0);
        Ok(due.map(|key| Undone { what: what(key), patience: reread + Duration::from_millis(ROUNDING_MS) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checkpoint, empty_store, id, write};
    use surefoot_machine::{State, Timers};
    use surefoot_model::{Attempt, Incarnation, Life, TimerOwner};
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
        let turn = timers.turn(&store.read(), TurnTime { now: Timestamp(now), monotonic_ms: now }).unwrap();
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
    fn a_new_term_finds_timers_in_the_tables_and_fires_as_many_at_a_time_as_may_be_resumed() {
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
            assert_eq!((ResumeRoom::For(fired.len()), next), (ResumedAttempts::new(16).room(0, 0), None));
            assert_eq!(fire(&store, &mut timers, count), (vec![], None), "those are on their way");
            for due in &fired {
                timers.on_event(&Event::TimerFired { due: Timestamp(*due), owner: key(*due, *due).owner });
                timers.resumed.resumed(id(u128::from(*due)), Attempt(1), count);
            }
            let (none, next) = fire(&store, &mut timers, count);
            assert!(none.is_empty() && next > Some(count), "those have no answer yet");
            fired.iter().for_each(|due| timers.resumed.gone(id(u128::from(*due)), Attempt(1)));
            all.extend(fired);
        }
        assert!(all.into_iter().eq(0..count));
    }
}
