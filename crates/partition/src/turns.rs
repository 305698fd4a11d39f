//! Whose turn comes first, where those that come first may leave nothing for the others.
//!
//! Owns: an order that begins each time where the last one did not. Does not own: who has a turn at all.

use std::collections::BTreeSet;

/// Of partitions of a worker, or of destinations of a partition.
#[derive(Debug)]
pub(crate) struct TurnOrder<T> {
    /// Who came first the last time.
    began_with: Option<T>,
}

impl<T> Default for TurnOrder<T> {
    fn default() -> Self {
        Self { began_with: None }
    }
}

impl<T: Copy + Ord> TurnOrder<T> {
    /// All of them, first the next one behind who came first the last time: each comes first once in as many turns as there are.
    pub(crate) fn of(&mut self, all: BTreeSet<T>) -> Vec<T> {
        let mut all: Vec<T> = all.into_iter().collect();
        let first = all.iter().position(|one| Some(*one) > self.began_with).unwrap_or_default();
        all.rotate_left(first);
        self.began_with = all.first().copied();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_first_once_in_as_many_turns_as_there_are() {
        let mut order = TurnOrder::default();
        let mut of = |all: &[u8]| order.of(all.iter().copied().collect());
        assert_eq!(of(&[1, 4, 9]), [1, 4, 9]);
        assert_eq!(of(&[1, 4, 9]), [4, 9, 1]);
        assert_eq!(of(&[1, 4, 9]), [9, 1, 4]);
        assert_eq!(of(&[1, 4, 9]), [1, 4, 9]);
        assert_eq!(of(&[7]), [7]);
        assert!(of(&[]).is_empty());
        assert_eq!(of(&[2, 3]), [2, 3], "who is gone is not waited for");
    }
}
