//! How far a stream is: what was appended, and what of it is durable (rules K2 and K5).
//!
//! Owns: the lowest offset that is not yet durable, whatever the order in which partitions become durable. Does not own: storing
//! it.

use std::collections::VecDeque;

/// One stream's progress. Offsets rise; not every offset exists.
#[derive(Debug)]
pub(crate) struct Tracker {
    /// The next offset to read.
    next: i64,
    /// Appended or being appended, ascending. The first one is never durable.
    pending: VecDeque<Pending>,
}

#[derive(Debug)]
struct Pending {
    offset: i64,
    durable: bool,
}

impl Tracker {
    /// Reading starts at this offset.
    pub(crate) fn new(position: i64) -> Self {
        Self { next: position, pending: VecDeque::new() }
    }

    /// The offset to read next: everything below was handed to a partition.
    pub(crate) fn next(&self) -> i64 {
        self.next
    }

    /// Where to go on after a restart: everything below is durable.
    pub(crate) fn position(&self) -> i64 {
        self.pending.front().map_or(self.next, |first| first.offset)
    }

    /// The Kafka record at `offset` is about to be appended. False: it was before.
    #[must_use]
    pub(crate) fn begin(&mut self, offset: i64) -> bool {
        if offset < self.next {
            return false;
        }
        self.pending.push_back(Pending { offset, durable: false });
        self.next = offset + 1;
        true
    }

    /// The last one begun was not appended after all, and is read again.
    pub(crate) fn abandon(&mut self, offset: i64) {
        let last = self.pending.pop_back().expect("what is abandoned was begun");
        assert!(last.offset == offset && !last.durable, "only the last append of a stream can be abandoned");
        self.next = offset;
    }

    /// The Kafka record at `offset` is durable in the partition it went to.
    pub(crate) fn durable(&mut self, offset: i64) {
        if let Ok(at) = self.pending.binary_search_by_key(&offset, |pending| pending.offset) {
            self.pending[at].durable = true;
        }
        while self.pending.front().is_some_and(|first| first.durable) {
            self.pending.pop_front();
        }
    }

    /// Whether everything appended is durable.
    #[cfg(test)]
    fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn an_abandoned_append_is_read_again() {
        let mut tracker = Tracker::new(5);
        assert!(tracker.begin(5) && tracker.begin(9));
        tracker.abandon(9);
        assert_eq!((tracker.next(), tracker.position()), (9, 5));
        tracker.durable(5);
        assert_eq!((tracker.next(), tracker.position(), tracker.is_settled()), (9, 9, true));
        assert!(!tracker.begin(8), "taken before");
    }

    proptest! {
        /// Whatever order partitions become durable in, nothing that is not durable lies below the position, and nothing durable
        /// at the front above it.
        #[test]
        fn the_position_is_the_lowest_offset_not_durable(
            gaps in prop::collection::vec(1i64..4, 1..60),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let mut tracker = Tracker::new(100);
            let offsets: Vec<i64> = gaps.iter().scan(99, |at, gap| { *at += gap; Some(*at) }).collect();
            let mut open: Vec<i64> = offsets.clone();
            for offset in &offsets {
                prop_assert!(tracker.begin(*offset));
            }
            let mut waiting: BTreeSet<i64> = offsets.iter().copied().collect();
            for index in order {
                if open.is_empty() {
                    break;
                }
                let offset = open.swap_remove(index.index(open.len()));
                tracker.durable(offset);
                waiting.remove(&offset);
                let expected = waiting.first().copied().unwrap_or(offsets[offsets.len() - 1] + 1);
                prop_assert_eq!(tracker.position(), expected);
                prop_assert_eq!(tracker.is_settled(), waiting.is_empty());
            }
        }
    }
}
