//! Where a subscription reads from when it begins to (rules K1 and K4).
//!
//! Owns: the decision, as a pure function of what is stored and what the brokers say: the same epoch or a new one, and one offset
//! for every Kafka partition. Does not own: asking, storing, or fetching.

use crate::properties::Reset;
use crate::session::Progress;
use crate::source::{ErrorKind, PartitionOffsets, SourceError, TopicInfo};
use std::collections::BTreeMap;
use std::fmt;
use surefoot_model::StreamId;
use surefoot_model::catalog::{Catalog, Subscription};

/// What to store before the first fetch, and where to fetch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Resolved, with the epoch and topic id to read under.
    pub(crate) subscription: Subscription,
    /// One offset for every Kafka partition of the topic that has a position, or whose brokers say where it begins and ends.
    pub(crate) starts: BTreeMap<i32, i64>,
    /// Positions that differ from what is stored.
    pub(crate) positions: Vec<(StreamId, i64)>,
    pub(crate) findings: Vec<Finding>,
}

impl Plan {
    /// What is read so far: nothing below the starts is this subscription's to read.
    pub(crate) fn progress(&self) -> Progress {
        let positions = self.starts.iter().map(|(partition, start)| (*partition, *start)).collect();
        Progress { topic_id: self.subscription.topic_id, epoch: self.subscription.epoch, positions }
    }
}

/// Something that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The topic was deleted and made again: it is read from its start.
    Recreated,
    /// The brokers have lost what was read already: reading goes on at their end.
    Truncated { partition: i32, position: i64, high: i64 },
    /// The brokers have deleted what was not read yet.
    Expired { partition: i32, position: i64, low: i64 },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recreated => f.write_str("the topic was deleted and made again: it is read from its start in a new epoch"),
            Self::Truncated { partition, position, high } => write!(
                f,
                "Kafka partition {partition} ends at offset {high}, before position {position}: its brokers lost Kafka records, \
                 reading goes on at its end in a new epoch"
            ),
            Self::Expired { partition, position, low } => write!(
                f,
                "Kafka partition {partition} begins at offset {low}, after position {position}: {} offsets were deleted by its \
                 brokers before they were read",
                low - position
            ),
        }
    }
}

/// The stream of one Kafka partition in a subscription's present epoch.
pub(crate) fn stream(subscription: &Subscription, partition: i32) -> StreamId {
    StreamId { subscription: subscription.id, epoch: subscription.epoch, topic: subscription.topic_id, partition }
}

/// What was asked of Kafka partitions that have no position yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// The group's commits: so a group that was read by another program, or for another subscription, goes on where that left off.
    pub(crate) committed: Vec<(i32, i64)>,
    /// Where the latest was when the subscription was made, where that is some while ago (rule K4).
    pub(crate) latest: Vec<(i32, i64)>,
}

/// Decides where a subscription reads from.
pub(crate) fn plan(
    catalog: &Catalog,
    subscription: &Subscription,
    topic: &TopicInfo,
    asked: &Asked,
    reset: Reset,
) -> Result<Plan, SourceError> {
    let stored = |partition: i32| catalog.positions.get(&stream(subscription, partition)).copied();
    let known: Vec<(PartitionOffsets, Option<i64>)> = topic.partitions.iter().map(|p| (*p, stored(p.partition))).collect();
    let past_end = || known.iter().filter(|(offsets, position)| position.is_some_and(|p| p > offsets.high));

    let unknown = || topic.unknown.iter().map(|(partition, _)| *partition);

    let mut next = subscription.clone();
    // One that nobody knows the ends of, and that was not read before, is resolved as the subscription asks once somebody does.
    next.resolved |= unknown().all(|partition| stored(partition).is_some());
    if topic.id != 0 {
        next.topic_id = topic.id;
    }
    let same_id = next.topic_id == subscription.topic_id;
    let mut findings = Vec::new();
    let starts: BTreeMap<i32, i64> = if is_recreated(catalog, subscription, topic, past_end().next().is_some()) {
        next.epoch += 1;
        findings.push(Finding::Recreated);
        topic.partitions.iter().map(|p| (p.partition, p.low)).collect()
    } else {
        findings.extend(past_end().filter_map(|(offsets, position)| {
            Some(Finding::Truncated { partition: offsets.partition, position: (*position)?, high: offsets.high })
        }));
        // The id of a topic that was read without one: its streams get new names.
        let renamed = !same_id && known.iter().any(|(_, position)| position.is_some());
        if !findings.is_empty() || renamed {
            next.epoch += 1;
        }
        let mut starts = BTreeMap::new();
        for (offsets, position) in &known {
            let start = match position {
                Some(position) if *position < offsets.low => {
                    findings.push(Finding::Expired { partition: offsets.partition, position: *position, low: offsets.low });
                    offsets.low
                }
                Some(position) => (*position).min(offsets.high),
                None if subscription.resolved => later_start(offsets, &asked.committed),
                None => first_start(offsets, asked, reset)?,
            };
            starts.insert(offsets.partition, start);
        }
        // One without a leader goes on where it was as soon as it has one; whether that is still there shows then.
        let positions = unknown().filter_map(|partition| Some((partition, stored(partition)?)));
        starts.extend(positions);
        starts
    };
    let positions = starts
        .iter()
        .map(|(partition, start)| (stream(&next, *partition), *start))
        .filter(|(stream, start)| catalog.positions.get(stream) != Some(start))
        .collect();
    Ok(Plan { subscription: next, starts, positions, findings })
}

/// Whether this is another topic under the same name: its id says so, or, without ids, its Kafka partitions do.
fn is_recreated(catalog: &Catalog, subscription: &Subscription, topic: &TopicInfo, past_end: bool) -> bool {
    if subscription.topic_id != 0 && topic.id != 0 {
        return subscription.topic_id != topic.id;
    }
    let has = |partition| {
        topic.partitions.iter().any(|p| p.partition == partition) || topic.unknown.iter().any(|(p, _)| *p == partition)
    };
    let (first, last) = (stream(subscription, i32::MIN), stream(subscription, i32::MAX));
    past_end || catalog.positions.range(first..=last).any(|(stream, _)| !has(stream.partition))
}

/// Of a Kafka partition that appears after the subscription was resolved: where the group has come to, or its earliest.
pub(crate) fn later_start(offsets: &PartitionOffsets, committed: &[(i32, i64)]) -> i64 {
    let commit = committed.iter().find(|(partition, _)| *partition == offsets.partition);
    commit.map_or(offsets.low, |(_, offset)| (*offset).clamp(offsets.low, offsets.high))
}

fn first_start(offsets: &PartitionOffsets, asked: &Asked, reset: Reset) -> Result<i64, SourceError> {
    let of = |all: &[(i32, i64)]| all.iter().find(|(partition, _)| *partition == offsets.partition).copied();
    match (of(&asked.committed), reset) {
        (Some((_, offset)), _) => Ok(offset.clamp(offsets.low, offsets.high)),
        (None, Reset::Earliest) => Ok(offsets.low),
        (None, Reset::Latest) => {
            Ok(of(&asked.latest).map_or(offsets.high, |(_, offset)| offset.clamp(offsets.low, offsets.high)))
        }
        (None, Reset::Refuse) => Err(SourceError::new(
            ErrorKind::Refused,
            format!(
                "the group has committed no offset for Kafka partition {} and auto.offset.reset is \"error\": set it to \
                 \"earliest\" or \"latest\"",
                offsets.partition
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, topic};

    /// A catalog whose subscription has these positions under topic id `id`.
    fn read(id: u128, positions: &[i64]) -> (Catalog, Subscription) {
        let mut subscription = testing::subscription();
        subscription.topic_id = id;
        subscription.resolved = true;
        let mut catalog = Catalog::default();
        catalog.positions.extend(positions.iter().enumerate().map(|(n, p)| (stream(&subscription, n as i32), *p)));
        (catalog, subscription)
    }

    fn asked(committed: &[(i32, i64)]) -> Asked {
        Asked { committed: committed.to_vec(), latest: Vec::new() }
    }

    fn starts(plan: &Plan) -> Vec<i64> {
        plan.starts.values().copied().collect()
    }

    #[test]
    fn a_new_subscription_starts_at_commits_else_as_it_asks() {
        let subscription = testing::subscription();
        let topic = topic(7, &[(3, 10), (3, 10), (3, 10)]);
        let commits = [(1, 5), (2, 99)];
        let plan = plan(&Catalog::default(), &subscription, &topic, &asked(&commits), Reset::Latest).unwrap();
        assert_eq!(starts(&plan), [10, 5, 10]);
        assert!(plan.subscription.resolved && plan.subscription.topic_id == 7 && plan.subscription.epoch == 0);
        assert_eq!(plan.positions.len(), 3);
        assert!(super::plan(&Catalog::default(), &subscription, &topic, &asked(&commits), Reset::Refuse).is_err());
    }

    #[test]
    fn a_kafka_partition_that_appears_later_starts_at_its_earliest() {
        let (catalog, subscription) = read(7, &[5]);
        let plan = plan(&catalog, &subscription, &topic(7, &[(0, 9), (2, 9)]), &Asked::default(), Reset::Latest).unwrap();
        assert_eq!(starts(&plan), [5, 2]);
        assert_eq!(plan.positions, [(stream(&subscription, 1), 2)]);
        assert_eq!((plan.subscription.epoch, plan.findings), (0, vec![]));
        // It was read before by the one in whose place this one is.
        let plan = super::plan(&catalog, &subscription, &topic(7, &[(0, 9), (2, 9)]), &asked(&[(1, 8)]), Reset::Latest).unwrap();
        assert_eq!(starts(&plan), [5, 8]);
    }

    #[test]
    fn another_topic_under_the_same_name_is_read_from_its_start_in_a_new_epoch() {
        let (catalog, subscription) = read(7, &[5, 5]);
        let other = plan(&catalog, &subscription, &topic(8, &[(0, 9), (0, 0)]), &Asked::default(), Reset::Latest).unwrap();
        assert_eq!((starts(&other), other.subscription.epoch, other.subscription.topic_id), (vec![0, 0], 1, 8));
        assert_eq!(other.findings, [Finding::Recreated]);
        assert!(other.positions.iter().all(|(stream, _)| stream.epoch == 1 && stream.topic == 8));

        // Without ids the end gives it away, or a Kafka partition that is gone.
        let (catalog, subscription) = read(0, &[5, 5]);
        for offsets in [&[(0, 9), (0, 4)][..], &[(0, 9)]] {
            let plan = plan(&catalog, &subscription, &topic(0, offsets), &Asked::default(), Reset::Latest).unwrap();
            assert_eq!((plan.subscription.epoch, plan.findings), (1, vec![Finding::Recreated]));
        }
    }

    #[test]
    fn brokers_that_lost_their_end_are_read_from_there_in_a_new_epoch() {
        let (catalog, subscription) = read(7, &[5, 5]);
        let plan = plan(&catalog, &subscription, &topic(7, &[(0, 9), (0, 3)]), &Asked::default(), Reset::Latest).unwrap();
        assert_eq!((starts(&plan), plan.subscription.epoch), (vec![5, 3], 1));
        assert_eq!(plan.findings, [Finding::Truncated { partition: 1, position: 5, high: 3 }]);
        assert_eq!(plan.positions.len(), 2, "an epoch's positions are stored whole");
    }

    #[test]
    fn what_brokers_deleted_is_passed_over_and_said() {
        let (catalog, subscription) = read(7, &[5]);
        let plan = plan(&catalog, &subscription, &topic(7, &[(8, 9)]), &Asked::default(), Reset::Latest).unwrap();
        assert_eq!((starts(&plan), plan.subscription.epoch), (vec![8], 0));
        assert_eq!(plan.findings, [Finding::Expired { partition: 0, position: 5, low: 8 }]);
    }

    #[test]
    fn an_id_that_is_learned_later_renames_the_streams_and_keeps_their_positions() {
        let (catalog, subscription) = read(0, &[5]);
        let plan = plan(&catalog, &subscription, &topic(7, &[(0, 9)]), &Asked::default(), Reset::Latest).unwrap();
        assert_eq!((starts(&plan), plan.subscription.epoch, plan.subscription.topic_id), (vec![5], 1, 7));
    }

    /// One Kafka partition without a leader kept all others from being read.
    #[test]
    fn a_kafka_partition_without_a_leader_leaves_the_others_alone() {
        let leaderless = |partition| (partition, SourceError::new(ErrorKind::Unavailable, "it has no leader"));
        // In a new subscription it is resolved later, as asked for.
        let mut half = topic(7, &[(2, 9)]);
        half.unknown.push(leaderless(1));
        let fresh = testing::subscription();
        let first = plan(&Catalog::default(), &fresh, &half, &Asked::default(), Reset::Latest).unwrap();
        assert_eq!((starts(&first), first.subscription.resolved), (vec![9], false));
        let mut catalog = Catalog::default();
        catalog.positions.extend(first.positions.iter().copied());
        let then = plan(&catalog, &first.subscription, &topic(7, &[(2, 12), (0, 4)]), &Asked::default(), Reset::Latest).unwrap();
        assert_eq!((starts(&then), then.subscription.resolved), (vec![9, 4], true));
        // What came there since the subscription was made is not passed over.
        let late = Asked { latest: vec![(1, 3)], ..Asked::default() };
        let then = plan(&catalog, &first.subscription, &topic(7, &[(2, 12), (0, 4)]), &late, Reset::Latest).unwrap();
        assert_eq!(starts(&then), [9, 3]);
        // One that was read before goes on where it was, in the same epoch.
        let (catalog, subscription) = read(7, &[5, 6]);
        let again = plan(&catalog, &subscription, &half, &Asked::default(), Reset::Latest).unwrap();
        assert_eq!((starts(&again), again.subscription.epoch, again.positions.len()), (vec![5, 6], 0, 0));
    }

    #[test]
    fn nothing_to_store_when_nothing_changed() {
        let (catalog, subscription) = read(7, &[5]);
        let plan = plan(&catalog, &subscription, &topic(7, &[(0, 9)]), &Asked::default(), Reset::Latest).unwrap();
        assert_eq!((plan.subscription, plan.positions), (subscription, vec![]));
    }
}
