//! What completed invocations hold on a node, and how much of it each partition may keep.
//!
//! Owns: that partitions together keep to the bound, while one that has many of them may use what the others leave. Does not own: what goes
//! when it is too much (`housekeeping`).

use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) struct RetainedBytes {
    max: u64,
    /// By partition, as far as each has told.
    of_partition: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl RetainedBytes {
    pub(crate) fn new(max: u64, partitions: usize) -> Self {
        Self { max, of_partition: (0..partitions).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    /// A partition tells what it retains now.
    pub(crate) fn note(&self, partition: usize, bytes: u64) {
        let before = self.of_partition[partition].swap(bytes, Ordering::Relaxed);
        if bytes >= before {
            self.sum.fetch_add(bytes - before, Ordering::Relaxed);
        } else {
            self.sum.fetch_sub(before - bytes, Ordering::Relaxed);
        }
    }

    /// What a partition may retain: its share at least, and what the others leave. Once it is too much, those beyond their shares give way:
    /// where all of them keep to this, the sum keeps to the bound.
    pub(crate) fn allowed(&self, partition: usize) -> u64 {
        let own = self.of_partition[partition].load(Ordering::Relaxed);
        let others = self.sum.load(Ordering::Relaxed).saturating_sub(own);
        self.max.saturating_sub(others).max(self.max / self.of_partition.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_partition_may_use_what_the_others_leave_and_gives_way_down_to_its_share() {
        let retained = RetainedBytes::new(1_000, 4);
        assert_eq!(retained.allowed(0), 1_000);
        retained.note(0, 900);
        assert_eq!(retained.allowed(0), 1_000);
        assert_eq!(retained.allowed(1), 250, "its share, whatever the others have");
        retained.note(1, 250);
        assert_eq!(retained.allowed(0), 750);
        retained.note(2, 250);
        retained.note(3, 500);
        assert_eq!((retained.allowed(0), retained.allowed(3)), (250, 250));
        retained.note(0, 0);
        retained.note(3, 0);
        assert_eq!(retained.allowed(1), 750);
    }

    #[test]
    fn the_sum_keeps_to_the_bound_once_each_keeps_to_what_it_may() {
        const SIZES: [u64; 5] = [0, 100, 334, 900, 2_000];
        for case in 0..SIZES.len().pow(3) {
            let mut bytes = [case % 5, case / 5 % 5, case / 25].map(|size| SIZES[size]);
            let retained = RetainedBytes::new(1_000, bytes.len());
            for (partition, bytes) in bytes.iter().enumerate() {
                retained.note(partition, *bytes);
            }
            for (partition, bytes) in bytes.iter_mut().enumerate() {
                *bytes = retained.allowed(partition).min(*bytes);
                retained.note(partition, *bytes);
            }
            assert!(bytes.iter().sum::<u64>() <= 1_000, "{case}: {bytes:?}");
        }
    }
}
