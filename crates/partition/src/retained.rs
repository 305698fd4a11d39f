//! What completed invocations hold on a node, and how much of it each partition may keep.
//!
//! Owns: that partitions together keep to the bound, while one that has many of them may use what the others leave. Does not own: what goes
//! when it is too much (`housekeeping`).

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) struct RetainedBytes {
    max: u64,
    /// By partition, as far as each has told.
    of_partition: Mutex<Vec<u64>>,
}

impl RetainedBytes {
    pub(crate) fn new(max: u64, partitions: usize) -> Self {
        Self { max, of_partition: Mutex::new(vec![0; partitions]) }
    }

    /// A partition tells what it retains now.
    pub(crate) fn note(&self, partition: usize, bytes: u64) {
        self.lock()[partition] = bytes;
    }

    /// What a partition that retains so much may retain: its share at least, and what the others leave. Once it is too much, those beyond
    /// their shares give way: where all of them keep to this, the sum keeps to the bound. What it has beyond that counts as gone from here
    /// on: others that ask before it is do not give way for it, too.
    pub(crate) fn allow(&self, partition: usize, bytes: u64) -> u64 {
        let mut of_partition = self.lock();
        of_partition[partition] = 0;
        let others: u64 = of_partition.iter().sum();
        let allowed = self.max.saturating_sub(others).max(self.max / of_partition.len() as u64);
        of_partition[partition] = bytes.min(allowed);
        allowed
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u64>> {
        self.of_partition.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_partition_may_use_what_the_others_leave_and_gives_way_down_to_its_share() {
        let retained = RetainedBytes::new(1_000, 4);
        assert_eq!(retained.allow(0, 0), 1_000);
        assert_eq!(retained.allow(0, 900), 1_000);
        assert_eq!(retained.allow(1, 250), 250, "its share, whatever the others have");
        assert_eq!(retained.allow(0, 900), 750);
        retained.note(0, 900);
        retained.note(2, 250);
        retained.note(3, 500);
        assert_eq!((retained.allow(0, 900), retained.allow(3, 500)), (250, 250));
        retained.note(0, 0);
        retained.note(3, 0);
        assert_eq!(retained.allow(1, 250), 750);
    }

    /// Each of two looked before the other one had told, and both let go of the same excess.
    #[test]
    fn what_one_lets_go_of_is_not_asked_of_another_one() {
        let retained = RetainedBytes::new(1_000, 4);
        (0..2).for_each(|partition| retained.note(partition, 600));
        let allowed = [0, 1].map(|partition| retained.allow(partition, 600));
        assert_eq!(allowed, [400, 600]);
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
                *bytes = retained.allow(partition, *bytes).min(*bytes);
            }
            assert!(bytes.iter().sum::<u64>() <= 1_000, "{case}: {bytes:?}");
        }
    }
}
