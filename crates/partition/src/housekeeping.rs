//! When a partition is swept and when it is checkpointed: the counters and the decisions.
//!
//! When to look goes by the monotonic clock, so that no jump of the wall clock holds it up; what is due goes by the wall clock.
//! Each look begins where the one before has ended, and never at the front, over the tombstones of all that has gone.
//! Does not own: carrying either out (`acting`, `checkpointer`).

use crate::settings::Settings;
use surefoot_machine::{Expiries, ExpiryKey, ExpiryRow, Meta, StateError};
use surefoot_model::{Event, InvocationId, Timestamp};
use surefoot_storage::{Limit, Piece, Reader};

/// Expiries looked at per sweep step.
const SWEEP_STEP: usize = 512;
/// Keys that one look at the table passes, those of rows that have gone among them: a millisecond or a few.
const LOOKS_MAX: usize = 8 * SWEEP_STEP;
/// Removals of a node that may be asked for and not applied: a call waits behind no more.
const REMOVING_MAX: usize = 2_048;
/// Each partition's share is at least this.
const REMOVING_MIN: usize = 16;
/// Whether too much is retained is looked at this often, in milliseconds.
const EVICTION_INTERVAL_MS: u64 = 1_000;
/// What was removed because the disk is short takes about this long, in milliseconds, until its room is free: after a checkpoint and a
/// compaction. Only then is more removed.
const DISK_EVICTION_INTERVAL_MS: u64 = 3_000;

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
    /// What is before this has been asked for, by time.
    expired_up_to: ExpiryKey,
    /// What is before this has been asked for, by size, or may not be evicted.
    evicted_up_to: ExpiryKey,
    /// Removals that were asked for and are not applied.
    removing: usize,
    removing_max: usize,
    /// Bytes that may be evicted, as of the last look.
    retained_bytes: u64,
    /// Bytes that removals free which were asked for since the last look.
    evicting_bytes: u64,
    /// Bytes still to be removed because the disk was short at the last look at that, and when the next one is.
    disk_over_bytes: u64,
    next_disk_eviction_ms: u64,
}

/// What a sweep goes by.
pub(crate) struct Looks {
    pub(crate) now: Timestamp,
    pub(crate) monotonic_ms: u64,
    pub(crate) interval_ms: u64,
    /// Bytes that this partition may retain.
    pub(crate) retained_bytes_max: u64,
    /// Bytes that its part in opening the edges again is (rule R2); 0 where the disk is not short.
    pub(crate) missing_bytes: u64,
}

impl Housekeeping {
    /// Of one of so many partitions of a node.
    pub(crate) fn new(partitions: u16) -> Self {
        Self {
            applied_bytes: 0,
            dirty_since_ms: None,
            is_checkpointing: false,
            is_urgent: false,
            is_last_round: false,
            has_run_last_round: false,
            next_sweep_ms: 0,
            next_eviction_ms: 0,
            expired_up_to: FIRST,
            evicted_up_to: FIRST,
            removing: 0,
            removing_max: (REMOVING_MAX / usize::from(partitions.max(1))).max(REMOVING_MIN),
            retained_bytes: 0,
            evicting_bytes: 0,
            disk_over_bytes: 0,
            next_disk_eviction_ms: 0,
        }
    }

    /// A term of this process begins: the first look is at the whole table.
    pub(crate) fn begin_term(&mut self) {
        (self.expired_up_to, self.evicted_up_to, self.removing) = (FIRST, FIRST, 0);
    }

    /// An expiry was written to the table.
    pub(crate) fn on_expiry(&mut self, key: ExpiryKey) {
        self.expired_up_to = self.expired_up_to.min(key);
        self.evicted_up_to = self.evicted_up_to.min(key);
    }

    pub(crate) fn on_event(&mut self, event: &Event) {
        if let Event::RetentionExpired { .. } = event {
            // What an earlier term asked for is applied before this one begins, or counts as nothing.
            self.removing = self.removing.saturating_sub(1);
        }
    }

    pub(crate) fn applied(&mut self, bytes: u64, monotonic_ms: u64) {
        self.applied_bytes += bytes;
        self.dirty_since_ms.get_or_insert(monotonic_ms);
    }

    /// The next checkpoint is due as soon as there is anything to write: it keeps the whole log from being trimmed.
    pub(crate) fn hurry(&mut self) {
        self.is_urgent = true;
    }

    /// Whether its age, its log or a wish asks for one. Memory does so across partitions (`owned`).
    pub(crate) fn checkpoint_due(&self, monotonic_ms: u64, settings: &Settings) -> bool {
        let Some(since) = self.dirty_since_ms else { return false };
        !self.is_checkpointing
            && (self.is_urgent
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

    /// Removals that are due by time, or because more is retained than this partition may or than the disk has room for.
    pub(crate) fn sweep(&mut self, reader: &Reader<'_>, looks: &Looks) -> Result<Vec<Event>, StateError> {
        let mut events = Vec::new();
        if looks.monotonic_ms >= self.next_sweep_ms {
            self.expire(reader, looks, &mut events)?;
        }
        if looks.monotonic_ms >= self.next_eviction_ms {
            self.evict(reader, looks, &mut events)?;
        }
        assert!(self.removing <= self.removing_max, "{} removals are on their way", self.removing);
        Ok(events)
    }

    fn expire(&mut self, reader: &Reader<'_>, looks: &Looks, events: &mut Vec<Event>) -> Result<(), StateError> {
        let limit = SWEEP_STEP.min(self.removing_max - self.removing);
        let (from, to) = (self.expired_up_to, ExpiryKey { at: looks.now.after_ms(1), ..FIRST });
        let looks_max = Limit { rows: limit, bytes: usize::MAX, looks: LOOKS_MAX };
        let Piece { rows: due, goes_on_at, .. } = reader.scan_within::<Expiries>(&from, Some(&to), looks_max)?;
        if let Some(next) = goes_on_at {
            self.expired_up_to = next;
        } else if due.len() < limit {
            self.expired_up_to = from.max(to);
            self.next_sweep_ms = looks.monotonic_ms.saturating_add(looks.interval_ms);
        } else if let Some((last, _)) = due.last() {
            self.expired_up_to = after(last);
        }
        self.removing += due.len();
        events.extend(due.iter().map(|(key, row)| removal(key, row)));
        Ok(())
    }

    /// What is retained of that which may be evicted: without what was asked for since the last look.
    pub(crate) fn retained_bytes(&self) -> u64 {
        self.retained_bytes.saturating_sub(self.evicting_bytes)
    }

    /// Oldest first, and only what has no name of its own.
    fn evict(&mut self, reader: &Reader<'_>, looks: &Looks, events: &mut Vec<Event>) -> Result<(), StateError> {
        self.retained_bytes = reader.get::<Meta>(&())?.map_or(0, |meta| meta.evictable_bytes);
        // What was asked for since the last look counts as gone, applied or not.
        let mut over = self.retained_bytes.saturating_sub(looks.retained_bytes_max.saturating_add(self.evicting_bytes));
        if looks.missing_bytes == 0 {
            self.disk_over_bytes = 0;
        } else if looks.monotonic_ms >= self.next_disk_eviction_ms {
            self.next_disk_eviction_ms = looks.monotonic_ms + DISK_EVICTION_INTERVAL_MS;
            self.disk_over_bytes = looks.missing_bytes.min(self.retained_bytes);
        }
        if over == 0 && self.disk_over_bytes == 0 {
            // By the next look it is applied, and the counter tells anew.
            self.next_eviction_ms = looks.monotonic_ms + EVICTION_INTERVAL_MS;
            self.evicting_bytes = 0;
            return Ok(());
        }
        let limit = Limit { rows: SWEEP_STEP, bytes: usize::MAX, looks: LOOKS_MAX };
        let Piece { rows, goes_on_at, .. } = reader.scan_within::<Expiries>(&self.evicted_up_to, None, limit)?;
        for (key, row) in &rows {
            if over == 0 && self.disk_over_bytes == 0 || self.removing == self.removing_max {
                return Ok(());
            }
            self.evicted_up_to = after(key);
            if row.evictable_bytes > 0 {
                if over == 0 {
                    metrics::counter!("surefoot_disk_evicted_total").increment(1);
                }
                over = over.saturating_sub(row.evictable_bytes);
                self.disk_over_bytes = self.disk_over_bytes.saturating_sub(row.evictable_bytes);
                self.evicting_bytes += row.evictable_bytes;
                self.removing += 1;
                events.push(removal(key, row));
            }
        }
        if let Some(next) = goes_on_at {
            self.evicted_up_to = next;
        } else if rows.len() < SWEEP_STEP {
            self.disk_over_bytes = 0;
            self.next_eviction_ms = looks.monotonic_ms + EVICTION_INTERVAL_MS;
        }
        Ok(())
    }
}

fn removal(key: &ExpiryKey, row: &ExpiryRow) -> Event {
    Event::RetentionExpired { id: key.id, incarnation: row.incarnation, journal_only: key.journal_only }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Mutant;
    use crate::testing::{checkpoint, empty_store, id, write};
    use surefoot_machine::{MetaRow, State};
    use surefoot_model::Incarnation;
    use surefoot_storage::Store;

    fn housekeeping() -> Housekeeping {
        Housekeeping::new(1)
    }

    fn expiry(at: u64) -> ExpiryKey {
        ExpiryKey { at: Timestamp(at), id: id(u128::from(at)), journal_only: false }
    }

    /// Completed invocations that expire at these times, each with so many bytes that may be evicted.
    fn completed(at: impl Iterator<Item = u64>, evictable_bytes: u64) -> Store {
        let mut store = empty_store();
        write(&mut store, |txn| {
            let mut sum = 0;
            for at in at {
                txn.put::<Expiries>(expiry(at), ExpiryRow { incarnation: Incarnation(1), evictable_bytes });
                sum += evictable_bytes;
            }
            txn.put::<Meta>((), MetaRow { evictable_bytes: sum, ..MetaRow::default() });
        });
        store
    }

    fn looks(now: u64, monotonic_ms: u64, retained_bytes_max: u64) -> Looks {
        Looks { now: Timestamp(now), monotonic_ms, interval_ms: 10_000, retained_bytes_max, missing_bytes: 0 }
    }

    fn looks_at_short_disk(monotonic_ms: u64, missing_bytes: u64) -> Looks {
        Looks { missing_bytes, ..looks(0, monotonic_ms, u64::MAX) }
    }

    fn swept(housekeeping: &mut Housekeeping, store: &Store, looks: &Looks) -> Vec<u128> {
        let events = housekeeping.sweep(&store.read(), looks).unwrap();
        let ids = events.iter().map(|event| match event {
            Event::RetentionExpired { id, .. } => id.unique,
            other => panic!("{other:?}"),
        });
        ids.collect()
    }

    #[test]
    fn what_has_expired_goes_and_the_rest_is_looked_at_again_later() {
        let (store, mut housekeeping) = (completed([10, 20, 30].into_iter(), 0), housekeeping());
        assert_eq!(swept(&mut housekeeping, &store, &looks(20, 0, u64::MAX)), [10, 20]);
        assert_eq!(swept(&mut housekeeping, &store, &looks(30, 9_999, u64::MAX)), [] as [u128; 0]);
        assert!(swept(&mut housekeeping, &store, &looks(30, 10_000, u64::MAX)).contains(&30));
    }

    #[test]
    fn a_sweep_of_many_goes_on_where_it_ended() {
        let count = SWEEP_STEP as u64 * 2 + 5;
        let (store, mut housekeeping) = (completed(0..count, 0), housekeeping());
        let steps = [(); 4].map(|()| swept(&mut housekeeping, &store, &looks(count, 0, u64::MAX)));
        assert_eq!(steps.each_ref().map(Vec::len), [SWEEP_STEP, SWEEP_STEP, 5, 0]);
        assert!(steps.concat().into_iter().eq(0..u128::from(count)));
    }

    /// A sweep began at the front each time, over the tombstones of all before it.
    #[test]
    fn a_sweep_begins_where_the_last_one_ended_and_at_what_was_written_before_that_since() {
        let (mut store, mut housekeeping) = (completed(0..100, 0), housekeeping());
        assert_eq!(swept(&mut housekeeping, &store, &looks(49, 0, u64::MAX)).len(), 50);
        // Nothing of it is applied, and yet it is not looked at again.
        assert!(swept(&mut housekeeping, &store, &looks(99, 10_000, u64::MAX)).into_iter().eq(50..100));
        let key = expiry(7);
        write(&mut store, |txn| txn.put::<Expiries>(key, ExpiryRow { incarnation: Incarnation(2), evictable_bytes: 0 }));
        housekeeping.on_expiry(key);
        assert_eq!(swept(&mut housekeeping, &store, &looks(99, 20_000, u64::MAX))[0], 7);
    }

    /// What was removed and is not written yet was passed over all at once, by every look.
    #[test]
    fn a_sweep_over_very_many_that_have_gone_takes_several_looks() {
        let count = 5 * LOOKS_MAX as u64;
        let mut store = completed(0..=count, 0);
        checkpoint(&mut store);
        write(&mut store, |txn| (0..count).for_each(|at| txn.delete::<Expiries>(&expiry(at))));
        let mut housekeeping = housekeeping();
        let steps: Vec<_> = (0..7).map(|_| swept(&mut housekeeping, &store, &looks(count, 0, u64::MAX))).collect();
        let first = steps.iter().position(|step| !step.is_empty()).unwrap();
        assert_eq!((first, &steps[first]), (5, &vec![u128::from(count)]));
    }

    #[test]
    fn removals_wait_for_those_that_are_on_their_way() {
        let count = REMOVING_MAX as u64 + 10;
        let (store, mut housekeeping) = (completed(0..count, 10), housekeeping());
        let mut all = Vec::new();
        loop {
            let step = swept(&mut housekeeping, &store, &looks(count, 0, 0));
            if step.is_empty() {
                break;
            }
            all.extend(step);
        }
        assert!(all.len() <= REMOVING_MAX, "{}", all.len());
        let expired = Event::RetentionExpired { id: id(0), incarnation: Incarnation(1), journal_only: false };
        (0..10).for_each(|_| housekeeping.on_event(&expired));
        assert_eq!(swept(&mut housekeeping, &store, &looks(count, 0, 0)).len(), 10);
    }

    #[test]
    fn what_is_retained_beyond_the_bound_goes_oldest_first_and_is_asked_for_once() {
        let (store, mut housekeeping) = (completed(100..110, 50), housekeeping());
        assert_eq!(swept(&mut housekeeping, &store, &looks(0, 0, 500)), [] as [u128; 0]);
        let at = EVICTION_INTERVAL_MS;
        assert_eq!(swept(&mut housekeeping, &store, &looks(0, at, 380)), [100, 101, 102]);
        assert_eq!(swept(&mut housekeeping, &store, &looks(0, at, 380)), [] as [u128; 0], "it is on its way");
    }

    #[test]
    fn a_short_disk_takes_the_oldest_for_what_is_missing_and_then_waits_for_their_room() {
        let (store, mut housekeeping) = (completed(100..110, 50), housekeeping());
        assert_eq!(swept(&mut housekeeping, &store, &looks_at_short_disk(0, 120)), [100, 101, 102]);
        let at = EVICTION_INTERVAL_MS;
        assert_eq!(swept(&mut housekeeping, &store, &looks_at_short_disk(at, 120)), [] as [u128; 0], "they give room first");
        let at = DISK_EVICTION_INTERVAL_MS + at;
        assert_eq!(swept(&mut housekeeping, &store, &looks_at_short_disk(at, 10)), [103]);
        let at = 2 * at;
        assert_eq!(swept(&mut housekeeping, &store, &looks_at_short_disk(at, 0)), [] as [u128; 0], "it is not short any more");
        let at = 2 * at;
        assert_eq!(swept(&mut housekeeping, &store, &looks_at_short_disk(at, u64::MAX)).len(), 6, "all there is, and no more");
    }

    #[test]
    fn a_short_disk_takes_nothing_that_has_a_name() {
        let (store, mut housekeeping) = (completed(100..110, 0), housekeeping());
        assert_eq!(swept(&mut housekeeping, &store, &looks_at_short_disk(0, u64::MAX)), [] as [u128; 0]);
    }

    #[test]
    fn a_checkpoint_is_due_by_log_by_time_and_on_request() {
        let settings = Settings {
            cleanup_interval_ms: 0,
            retained_bytes_max: 0,
            memory_bytes_max: 0,
            attempt_bytes: 0,
            edge_bytes_max: 1,
            load_bytes_max: 0,
            journal_part_bytes: 1 << 20,
            outbox_bytes_max: 0,
            disk_dir: "/".into(),
            disk_reserve_bytes_max: 0,
            disk_active_bytes_max: u64::MAX,
            log_bytes_max: u64::MAX,
            checkpoint_interval_ms: 1_000,
            replay_bytes_max: 100,
            workers: 1,
            mutant: Mutant::None,
            machine_mutant: surefoot_machine::Mutant::None,
        };
        let is_due = |housekeeping: &Housekeeping, at| housekeeping.checkpoint_due(at, &settings);
        let mut clean = housekeeping();
        clean.hurry();
        assert!(!is_due(&clean, 9_999), "nothing was applied");
        let dirty = |bytes| {
            let mut housekeeping = housekeeping();
            housekeeping.applied(bytes, 500);
            housekeeping
        };
        assert!(!is_due(&dirty(100), 1_499));
        assert!(is_due(&dirty(101), 500));
        assert!(is_due(&dirty(1), 1_500));
        let mut hurried = dirty(1);
        hurried.hurry();
        assert!(is_due(&hurried, 500));
        hurried.checkpoint_started();
        hurried.applied(1_000, 600);
        assert!(!is_due(&hurried, 9_999), "one at a time");
        hurried.checkpoint_ended();
        assert!(is_due(&hurried, 600));
    }

    #[test]
    fn a_node_that_stops_waits_for_one_more_checkpoint_of_what_is_not_clean() {
        let mut housekeeping = housekeeping();
        assert!(housekeeping.has_ended(true));
        housekeeping.applied(1, 0);
        housekeeping.last_round();
        assert!(!housekeeping.has_ended(false));
        housekeeping.checkpoint_started();
        assert!(!housekeeping.has_ended(false));
        housekeeping.checkpoint_ended();
        assert!(housekeeping.has_ended(false));
    }
}
