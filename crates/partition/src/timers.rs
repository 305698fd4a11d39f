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
