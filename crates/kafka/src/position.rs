//! How far one stream has been read, and up to where a restart may rely on it (rule K5).
//!
//! Owns: the lowest offset that is not yet applied, whatever the order in which partitions apply, and what lies between it and the
//! next one to read. Does not own: storing it, or what happens when too much lies in between.

use std::collections::VecDeque;
use surefoot_model::{Lsn, PartitionId};

/// One stream's progress. Offsets rise; not every offset exists.
#[derive(Debug)]
pub(crate) struct Tracker {
    /// The next offset to read.
    next: i64,
    /// Appended or being appended, ascending. The first one is not known to be applied.
    pending: VecDeque<Pending>,
    /// Of what is pending: bytes of the Kafka records.
    bytes: usize,
    /// Of what is pending: Kafka records that are to be parked, and the bytes that are kept of them.
    parked: (u64, u64),
}

/// A Kafka record on its way into a partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) offset: i64,
    pub(crate) partition: PartitionId,
    pub(crate) bytes: usize,
    /// Bytes that are kept of it where it is parked.
    pub(crate) parked: Option<u64>,
    /// Its place in the partition's log, once it is durable there.
    pub(crate) durable: Option<Lsn>,
}

impl Tracker {
    /// Reading starts at this offset.
    pub(crate) fn new(position: i64) -> Self {
        Self { next: position, pending: VecDeque::new(), bytes: 0, parked: (0, 0) }
    }

    /// The offset to read next: everything below was handed to a partition.
    pub(crate) fn next(&self) -> i64 {
        self.next
    }

    /// Where to go on after a restart: everything below was applied when [`Self::settle`] was last asked.
    pub(crate) fn position(&self) -> i64 {
        self.pending.front().map_or(self.next, |first| first.offset)
    }

    /// Everything below is durable in the partition it went to, applied or not.
    pub(crate) fn durable_position(&self) -> i64 {
        self.pending.iter().find(|pending| pending.durable.is_none()).map_or(self.next, |first| first.offset)
    }

    /// Whether everything appended is durable.
    pub(crate) fn is_durable(&self) -> bool {
        self.pending.iter().all(|pending| pending.durable.is_some())
    }

    /// The Kafka record is about to be appended. False: it was before.
    #[must_use]
    pub(crate) fn begin(&mut self, record: Pending) -> bool {
        if record.offset < self.next {
            return false;
        }
        self.next = record.offset + 1;
        self.bytes += record.bytes;
        self.count_parked(record, 1);
        self.pending.push_back(record);
        true
    }

    /// The last one begun was not appended after all, and is read again.
    pub(crate) fn abandon(&mut self, offset: i64) {
        let last = self.pending.pop_back().expect("what is abandoned was begun");
        assert!(last.offset == offset && last.durable.is_none(), "only the last append of a stream can be abandoned");
        self.bytes -= last.bytes;
        self.count_parked(last, -1);
        self.next = offset;
    }

    /// The Kafka record at `offset` is durable in the partition it went to.
    pub(crate) fn durable(&mut self, offset: i64, lsn: Lsn) {
        if let Ok(at) = self.pending.binary_search_by_key(&offset, |pending| pending.offset) {
            self.pending[at].durable = Some(lsn);
        }
    }

    /// Moves the position past what was applied; `applied` says up to where a partition's log is.
    pub(crate) fn settle(&mut self, applied: impl Fn(PartitionId) -> Lsn) {
        while let Some(first) = self.pending.front()
            && first.durable.is_some_and(|lsn| lsn <= applied(first.partition))
        {
            let first = self.pending.pop_front().expect("there is a first one");
            self.bytes -= first.bytes;
            self.count_parked(first, -1);
        }
    }

    /// Whether everything appended was applied when [`Self::settle`] was last asked.
    pub(crate) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether all that is pending is durable, in partitions of which this holds.
    pub(crate) fn waits_only_for(&self, is_so: impl Fn(PartitionId) -> bool) -> bool {
        self.pending.iter().all(|pending| match pending.durable {
            Some(_) => is_so(pending.partition),
            None => false,
        })
    }

    /// The partition that the first of what is pending waits for.
    pub(crate) fn waits_for(&self) -> Option<PartitionId> {
        self.pending.front().map(|first| first.partition)
    }

    /// Kafka records from the position on that were appended, and their bytes: what a restart reads again.
    pub(crate) fn pending(&self) -> (usize, usize) {
        (self.pending.len(), self.bytes)
    }

    /// Kafka records from the position on that are to be parked, and the bytes that are kept of them.
    pub(crate) fn pending_parked(&self) -> (u64, u64) {
        self.parked
    }

    fn count_parked(&mut self, record: Pending, by: i64) {
        if let Some(bytes) = record.parked {
            self.parked.0 = self.parked.0.saturating_add_signed(by);
            self.parked.1 = self.parked.1.saturating_add_signed(by * bytes as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn record(offset: i64) -> Pending {
        Pending { offset, partition: PartitionId((offset % 3) as u16), bytes: 10, parked: None, durable: None }
    }

    const ALL: fn(PartitionId) -> Lsn = |_| Lsn(u64::MAX);

    #[test]
    fn an_abandoned_append_is_read_again() {
        let mut tracker = Tracker::new(5);
        assert!(tracker.begin(record(5)) && tracker.begin(Pending { parked: Some(7), ..record(9) }));
        assert_eq!((tracker.pending(), tracker.pending_parked()), ((2, 20), (1, 7)));
        tracker.abandon(9);
        assert_eq!((tracker.next(), tracker.position()), (9, 5));
        tracker.durable(5, Lsn(1));
        tracker.settle(ALL);
        assert_eq!((tracker.next(), tracker.position(), tracker.is_settled()), (9, 9, true));
        assert_eq!((tracker.pending(), tracker.pending_parked()), ((0, 0), (0, 0)));
        assert!(!tracker.begin(record(8)), "taken before");
    }

    /// What lies in the log of a partition that has stopped was passed over by the next restart.
    #[test]
    fn durable_is_not_enough_where_a_partition_applies_nothing() {
        let mut tracker = Tracker::new(0);
        for offset in 0..6 {
            assert!(tracker.begin(record(offset)));
            tracker.durable(offset, Lsn(offset as u64 + 1));
        }
        tracker.settle(|partition| if partition == PartitionId(1) { Lsn(0) } else { Lsn(9) });
        assert_eq!((tracker.position(), tracker.durable_position()), (1, 6));
        assert_eq!(tracker.pending(), (5, 50));
        tracker.settle(ALL);
        assert_eq!(tracker.position(), 6);
    }

    proptest! {
        /// Whatever order partitions apply in, nothing that is not applied lies below the position, and nothing applied at the
        /// front above it.
        #[test]
        fn the_position_is_the_lowest_offset_not_applied(
            gaps in prop::collection::vec(1i64..4, 1..60),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let mut tracker = Tracker::new(100);
            let offsets: Vec<i64> = gaps.iter().scan(99, |at, gap| { *at += gap; Some(*at) }).collect();
            let mut open: Vec<i64> = offsets.clone();
            for offset in &offsets {
                prop_assert!(tracker.begin(record(*offset)));
            }
            let mut waiting: BTreeSet<i64> = offsets.iter().copied().collect();
            for index in order {
                if open.is_empty() {
                    break;
                }
                let offset = open.swap_remove(index.index(open.len()));
                tracker.durable(offset, Lsn(1));
                waiting.remove(&offset);
                let expected = waiting.first().copied().unwrap_or(offsets[offsets.len() - 1] + 1);
                prop_assert_eq!(tracker.durable_position(), expected);
                tracker.settle(ALL);
                prop_assert_eq!(tracker.position(), expected);
                prop_assert_eq!(tracker.is_settled(), waiting.is_empty());
            }
        }
    }
}
