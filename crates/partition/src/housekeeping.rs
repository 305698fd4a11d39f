//! When a partition is swept and when it is checkpointed: the counters and the decisions.
//!
//! When to look goes by the monotonic clock, so that no jump of the wall clock holds it up; what is due goes by the wall clock.
//! Does not own: carrying either out (`acting`, `checkpointer`).

use crate::settings::Settings;
use surefoot_machine::{Expiries, ExpiryKey, Meta, StateError};
use surefoot_model::{Event, InvocationId, Timestamp};
use surefoot_storage::Reader;

/// Expiries looked at per sweep step.
const SWEEP_STEP: usize = 512;
/// Whether too much is retained is looked at this often, in milliseconds.
const EVICTION_INTERVAL_MS: u64 = 1_000;

#[derive(Default)]
pub(crate) struct Housekeeping {
    /// Log bytes applied since the last checkpoint began.
    applied_bytes: u64,
    /// When the first of them was applied.
    dirty_since_ms: Option<u64>,
    is_checkpointing: bool,
    /// Others wait for this partition's checkpoint.
    is_urgent: bool,
    /// A last checkpoint is due, whatever the counters say.
    is_last_round: bool,
    has_run_last_round: bool,
    next_sweep_ms: u64,
    next_eviction_ms: u64,
    /// Where a sweep goes on.
    cursor: Option<ExpiryKey>,
    eviction_cursor: Option<ExpiryKey>,
    /// Bytes that removals free which were asked for since the last look.
    evicting_bytes: u64,
}

/// What a sweep goes by.
pub(crate) struct Looks {
    pub(crate) now: Timestamp,
    pub(crate) monotonic_ms: u64,
    pub(crate) interval_ms: u64,
    /// Bytes that this partition may retain.
    pub(crate) share: u64,
}

impl Housekeeping {
    pub(crate) fn applied(&mut self, bytes: u64, monotonic_ms: u64) {
        self.applied_bytes += bytes;
        self.dirty_since_ms.get_or_insert(monotonic_ms);
    }

    /// The next checkpoint is due as soon as there is anything to write: it keeps the whole log from being trimmed.
    pub(crate) fn hurry(&mut self) {
        self.is_urgent = true;
    }

    pub(crate) fn checkpoint_due(&self, monotonic_ms: u64, active_bytes: u64, share: u64, settings: &Settings) -> bool {
        let Some(since) = self.dirty_since_ms else { return false };
        !self.is_checkpointing
            && (active_bytes > share
                || self.is_urgent
                || self.applied_bytes > settings.replay_bytes_max
                || monotonic_ms.saturating_sub(since) >= settings.checkpoint_interval_ms
                || self.is_last_round && !self.has_run_last_round)
    }

    pub(crate) fn checkpoint_started(&mut self) {
        self.applied_bytes = 0;
        self.dirty_since_ms = None;
        self.is_checkpointing = true;
        self.is_urgent = false;
        self.has_run_last_round = self.is_last_round;
    }

    pub(crate) fn checkpoint_ended(&mut self) {
        self.is_checkpointing = false;
    }

    /// The node stops: one more checkpoint, then nothing.
    pub(crate) fn last_round(&mut self) {
        self.is_last_round = true;
    }

    pub(crate) fn has_ended(&self, is_clean: bool) -> bool {
        !self.is_checkpointing && (is_clean || self.has_run_last_round)
    }

    /// Removals that are due by time, or because more is retained than this partition's share.
    pub(crate) fn sweep(&mut self, reader: &Reader<'_>, looks: &Looks) -> Result<Vec<Event>, StateError> {
        let mut events = Vec::new();
        if looks.monotonic_ms >= self.next_sweep_ms {
            self.expire(reader, looks, &mut events)?;
        }
        if looks.monotonic_ms >= self.next_eviction_ms {
            self.evict(reader, looks, &mut events)?;
        }
        Ok(events)
    }

    fn expire(&mut self, reader: &Reader<'_>, looks: &Looks, events: &mut Vec<Event>) -> Result<(), StateError> {
        let from = self.cursor.unwrap_or(FIRST);
        let to = ExpiryKey { at: looks.now.after_ms(1), ..FIRST };
        let due = if from < to { reader.scan::<Expiries>(&from, Some(&to), SWEEP_STEP)? } else { Vec::new() };
        if due.len() < SWEEP_STEP {
            self.cursor = None;
            self.next_sweep_ms = looks.monotonic_ms.saturating_add(looks.interval_ms);
        } else {
            self.cursor = due.last().map(|(key, _)| after(key));
        }
        events.extend(due.iter().map(|(key, row)| Event::RetentionExpired {
            id: key.id,
            incarnation: row.incarnation,
            journal_only: key.journal_only,
        }));
        Ok(())
    }

    /// Oldest first, and only what has no name of its own.
    fn evict(&mut self, reader: &Reader<'_>, looks: &Looks, events: &mut Vec<Event>) -> Result<(), StateError> {
        let retained = reader.get::<Meta>(&())?.map_or(0, |meta| meta.evictable_bytes);
        // What was asked for since the last look counts as gone, applied or not.
        let mut over = retained.saturating_sub(looks.share.saturating_add(self.evicting_bytes));
        if over == 0 {
            // By the next look it is applied, and the counter tells anew.
            self.next_eviction_ms = looks.monotonic_ms + EVICTION_INTERVAL_MS;
            self.evicting_bytes = 0;
            if retained <= looks.share {
                // What expires later may lie before the cursor.
                self.eviction_cursor = None;
            }
            return Ok(());
        }
        let rows = reader.scan::<Expiries>(&self.eviction_cursor.unwrap_or(FIRST), None, SWEEP_STEP)?;
        for (key, row) in &rows {
            if over == 0 {
                break;
            }
            self.eviction_cursor = Some(after(key));
            if row.evictable_bytes > 0 {
                over = over.saturating_sub(row.evictable_bytes);
                self.evicting_bytes += row.evictable_bytes;
                events.push(Event::RetentionExpired { id: key.id, incarnation: row.incarnation, journal_only: key.journal_only });
            }
        }
        if rows.len() < SWEEP_STEP {
            self.eviction_cursor = None;
            self.next_eviction_ms = looks.monotonic_ms + EVICTION_INTERVAL_MS;
        }
        Ok(())
    }
}

const FIRST: ExpiryKey = ExpiryKey { at: Timestamp(0), id: InvocationId { partition_key: 0, unique: 0 }, journal_only: false };

/// The least key greater than `key`.
fn after(key: &ExpiryKey) -> ExpiryKey {
    if key.journal_only {
        let id = InvocationId { unique: key.id.unique.saturating_add(1), ..key.id };
        ExpiryKey { id, journal_only: false, ..*key }
    } else {
        ExpiryKey { journal_only: true, ..*key }
    }
}
