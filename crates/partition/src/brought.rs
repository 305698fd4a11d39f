//! Who has brought how much lately: what edges and attempts of each deployment have had applied.
//!
//! Owns: the counts, and which deployments have brought much: more than each would have if three quarters of it all were dealt out, and what
//! some need less were dealt out to the rest. One that is alone has, and so has each of several that bring the same. Does not own: what
//! follows for them (`gate`).

use std::collections::{BTreeMap, BTreeSet};
use surefoot_model::catalog::Catalog;
use surefoot_model::{DeploymentId, Event, RECORD_COST, Text};

/// So much of what came last counts, as [`RECORD_COST`] does: beyond it all counts are halved. A second or so at full speed.
const LAST_COST: u64 = 64 << 20;

/// What a worker has applied since it was last asked.
#[derive(Default)]
pub(crate) struct Tally {
    attempts: BTreeMap<DeploymentId, u64>,
    /// What came in for a service.
    edges: BTreeMap<Text, u64>,
}

impl Tally {
    /// An event of so many bytes was applied. What partitions do of themselves, and what they send each other, was brought before.
    pub(crate) fn on_event(&mut self, event: &Event, bytes: u64) {
        let count = match event {
            Event::AttemptProgressed(progress) => self.attempts.entry(progress.pin.deployment).or_default(),
            Event::InvocationSubmitted(submission) => match self.edges.get_mut(&submission.target.service) {
                Some(count) => count,
                None => self.edges.entry(submission.target.service.clone()).or_default(),
            },
            _ => return,
        };
        *count += RECORD_COST + bytes;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.attempts.is_empty() && self.edges.is_empty()
    }
}

/// The counts of all workers.
#[derive(Default)]
pub(crate) struct Brought {
    cost: BTreeMap<DeploymentId, u64>,
    /// Who has more than this has brought much. None: to be found anew.
    much: Option<u64>,
    /// Who waits because it has brought much.
    waiting: BTreeSet<DeploymentId>,
}

impl Brought {
    /// Takes over what a worker has counted, for the deployments that serve its services now. Whether some wait that have brought much no
    /// more.
    pub(crate) fn take(&mut self, tally: &mut Tally, catalog: &Catalog) -> bool {
        let of_edges = std::mem::take(&mut tally.edges).into_iter();
        let of_edges = of_edges.filter_map(|(service, cost)| Some((catalog.deployment_of(&service)?.id, cost)));
        for (deployment, cost) in std::mem::take(&mut tally.attempts).into_iter().chain(of_edges) {
            *self.cost.entry(deployment).or_default() += cost;
        }
        if self.cost.values().sum::<u64>() > LAST_COST {
            self.cost.values_mut().for_each(|cost| *cost /= 2);
            // Those that are hardly there.
            self.cost.retain(|_, cost| *cost >= RECORD_COST);
        }
        self.much = None;
        let mut waiting = std::mem::take(&mut self.waiting);
        let before = waiting.len();
        waiting.retain(|deployment| self.is_much(*deployment));
        self.waiting = waiting;
        self.waiting.len() < before
    }

    /// As [`Self::is_much`], for one that waits where it is.
    pub(crate) fn waits_as_much(&mut self, deployment: DeploymentId) -> bool {
        let is_much = self.is_much(deployment);
        if is_much {
            self.waiting.insert(deployment);
        }
        is_much
    }

    pub(crate) fn is_much(&mut self, deployment: DeploymentId) -> bool {
        let much = *self.much.get_or_insert_with(|| level(self.cost.values().copied()));
        self.cost.get(&deployment).is_some_and(|cost| *cost > much)
    }
}

/// What each has at most where three quarters of the sum are dealt out.
fn level(costs: impl Iterator<Item = u64>) -> u64 {
    let mut costs: Vec<u64> = costs.collect();
    costs.sort_unstable();
    let (mut left, mut others) = (costs.iter().sum::<u64>() / 4 * 3, costs.len() as u64);
    for cost in costs {
        let share = left / others;
        if cost > share {
            return share;
        }
        (left, others) = (left - cost, others - 1);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn much_of<const N: usize>(costs: [u64; N]) -> [bool; N] {
        let cost = (0..).zip(costs).map(|(n, cost)| (DeploymentId(n), cost * RECORD_COST)).collect();
        let mut brought = Brought { cost, ..Brought::default() };
        std::array::from_fn(|n| brought.is_much(DeploymentId(n as u128)))
    }

    #[test]
    fn who_brings_more_than_others_leave_has_brought_much() {
        assert_eq!(much_of([5]), [true], "alone");
        assert_eq!(much_of([100, 100, 100]), [true; 3]);
        assert_eq!(much_of([100, 90, 1]), [true, true, false]);
        assert_eq!(much_of([80, 5, 1, 1, 1]), [true, false, false, false, false]);
        assert_eq!(much_of([45, 35, 20]), [true, true, false]);
        assert_eq!(much_of([0, 0]), [false; 2], "nobody has brought anything");
    }

    #[test]
    fn what_was_long_ago_counts_no_more() {
        let mut brought = Brought::default();
        let mut bring = |deployment, cost| {
            let mut tally = Tally { attempts: [(DeploymentId(deployment), cost)].into(), edges: BTreeMap::new() };
            brought.take(&mut tally, &Catalog::default());
            assert!(tally.is_empty());
            (brought.is_much(DeploymentId(1)), brought.is_much(DeploymentId(2)), brought.cost.len())
        };
        assert_eq!(bring(1, LAST_COST / 2), (true, false, 1));
        assert_eq!(bring(2, RECORD_COST), (true, false, 2));
        assert_eq!(bring(2, LAST_COST / 2), (true, true, 2));
        while bring(2, LAST_COST / 2).2 > 1 {}
        assert_eq!(bring(2, 1), (false, true, 1));
    }
}
