//! The state machine of subscriptions against a script: what a broker says, what partitions take, what comes of it.
#![allow(clippy::disallowed_methods, reason = "the test runtime waits and measures in the world")]

use super::*;
use crate::source::{KafkaRecord, SourceEvent, TopicInfo};
use crate::status::Stage;
use crate::testing::{self, Broker, Node, Told, record, topic};
use surefoot_model::catalog::{Closing, Subscription};
use surefoot_model::{Event, PartitionId, StreamId, Timestamp};

const PARKED_MAX: u64 = 2;
const PARKED_BYTES_MAX: u64 = 1_000;
const BOUNDS: Bounds = Bounds { queue_records: 100, queue_bytes: 1 << 20, pending_records: 50, pending_bytes: 1 << 20 };
const TOPIC_ID: u128 = 7;

struct World {
    node: Node,
    broker: Broker,
    sources: Sources,
}

impl World {
    /// A node on which nothing is subscribed yet.
    fn new(topic: Result<TopicInfo, SourceError>) -> Self {
        Self::start(Node::new(), Broker::new(topic))
    }

    fn start(node: Node, broker: Broker) -> Self {
        let settings = Settings {
            defaults: Defaults::default(),
            record_bytes_max: 1 << 20,
            parked_max: PARKED_MAX,
            parked_bytes_max: PARKED_BYTES_MAX,
            bounds: BOUNDS,
            memory_bytes: 64 << 20,
            node: "n1".to_owned(),
            mutant: Mutant::None,
        };
        let env = Env::production(tokio::runtime::Handle::current());
        let sources =
            Sources::start_on(env, Arc::new(node.clone()), settings, node.changed(), Arc::default(), Arc::new(broker.clone()));
        Self { node, broker, sources }
    }

    fn subscribe(&self, subscription: Subscription) {
        self.node.edit(|catalog| {
            catalog.subscriptions.insert(subscription.id, Arc::new(subscription));
        });
    }

    /// One that reads from the earliest, with these Kafka partitions assigned under generation 1.
    async fn reading(offsets: &[(i64, i64)]) -> Self {
        let world = Self::new(Ok(topic(TOPIC_ID, offsets)));
        world.subscribe(earliest());
        world.assign(1, &(0..offsets.len() as i32).collect::<Vec<_>>()).await;
        world
    }

    /// As [`Self::reading`], of one Kafka partition, with four Kafka records appended that are not durable.
    async fn with_four_on_their_way() -> Self {
        let world = Self::reading(&[(0, 9)]).await;
        world.node.set_durable_at_once(false);
        world.records(1, 0, 0..4);
        world.node.until(|node| node.sources().len() == 4).await;
        world
    }

    async fn assign(&self, generation: u64, partitions: &[i32]) -> Vec<(i32, i64)> {
        self.broker.heard(|told| *told == Told::Subscribed).await;
        self.assign_more(generation, partitions).await
    }

    async fn assign_more(&self, generation: u64, partitions: &[i32]) -> Vec<(i32, i64)> {
        self.broker.send(SourceEvent::Assigned { generation, partitions: partitions.to_vec() });
        match self.broker.heard(|told| matches!(told, Told::Assigned(_))).await {
            Told::Assigned(starts) => starts,
            _ => unreachable!(),
        }
    }

    fn records(&self, generation: u64, partition: i32, offsets: impl IntoIterator<Item = i64>) {
        let records = offsets.into_iter().map(|offset| record(generation, partition, offset)).collect();
        self.broker.send(SourceEvent::Records(records));
    }

    async fn committed(&self) -> Vec<(i32, i64)> {
        match self.broker.heard(|told| matches!(told, Told::Committed(_))).await {
            Told::Committed(positions) => positions,
            _ => unreachable!(),
        }
    }

    async fn status_is(&self, stage: Stage) -> SourceStatus {
        loop {
            let status = self.sources.status(earliest().id);
            if status.stage == stage {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// As an operator does.
    fn delete(&self, closing: Closing) {
        self.node.edit(|catalog| {
            let subscription = catalog.subscriptions.get_mut(&earliest().id).expect("it is there");
            Arc::make_mut(subscription).closing = Some(closing);
        });
    }

    fn stored(&self) -> Arc<Subscription> {
        self.node.catalog().subscriptions[&earliest().id].clone()
    }

    /// The group of the one that is read.
    fn group(&self) -> String {
        let opened = self.broker.told().into_iter().find_map(|told| match told {
            Told::Opened(properties) => Some(properties["group.id"].clone()),
            _ => None,
        });
        opened.expect("it was opened")
    }

    fn position(&self, epoch: u32, topic: u128, partition: i32) -> Option<i64> {
        self.node.catalog().positions.get(&StreamId { subscription: earliest().id, epoch, topic, partition }).copied()
    }
}

fn earliest() -> Subscription {
    let mut subscription = testing::subscription();
    subscription.options.insert("auto.offset.reset".to_owned(), "earliest".to_owned());
    subscription
}

fn keyless(generation: u64, partition: i32, offset: i64) -> KafkaRecord {
    KafkaRecord { key: None, ..record(generation, partition, offset) }
}

/// Completes once the condition holds.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn missing() -> SourceError {
    SourceError::new(ErrorKind::TopicMissing, "the topic does not exist")
}

fn unavailable() -> SourceError {
    SourceError::new(ErrorKind::Unavailable, "no broker answers")
}

#[tokio::test(start_paused = true)]
async fn the_end_is_resolved_and_stored_before_the_creation_completes_and_before_the_first_fetch() {
    let world = World::new(Ok(topic(TOPIC_ID, &[(2, 10), (0, 4)])));
    let subscription = testing::subscription();
    world.subscribe(subscription.clone());
    world.sources.created(subscription.id).await;
    let stored = world.stored();
    assert!(stored.resolved && stored.topic_id == TOPIC_ID);
    assert_eq!((world.position(0, TOPIC_ID, 0), world.position(0, TOPIC_ID, 1)), (Some(10), Some(4)));
    // What is produced from here on is read, however long the group takes.
    world.broker.set_topic(Ok(topic(TOPIC_ID, &[(2, 99), (0, 99)])));
    assert_eq!(world.assign(1, &[0, 1]).await, [(0, 10), (1, 4)]);
    assert_eq!(world.node.opened(), [0], "every partition has recorded the epoch");
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_missing_is_waited_for_and_then_read_from_its_start() {
    let world = World::new(Err(missing()));
    let subscription = testing::subscription();
    world.subscribe(subscription.clone());
    world.sources.created(subscription.id).await;
    assert!(world.stored().resolved, "it does not ask for the latest of a topic that is not there");
    let status = world.status_is(Stage::Waiting).await;
    assert_eq!(status.last_error.as_deref(), Some("the topic does not exist"));
    world.broker.set_topic(Ok(topic(TOPIC_ID, &[(0, 5)])));
    assert_eq!(world.assign(1, &[0]).await, [(0, 0)]);
    assert_eq!(world.status_is(Stage::Running).await.last_error, None);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_down_holds_up_a_creation_for_five_seconds_only() {
    let world = World::new(Err(unavailable()));
    let mut subscription = testing::subscription();
    // The wall clock does not stand still in this test.
    let created = 1_000_000;
    subscription.created_at = Timestamp(created);
    world.subscribe(subscription.clone());
    let start = tokio::time::Instant::now();
    world.sources.created(subscription.id).await;
    assert_eq!(start.elapsed().as_secs(), 5);
    assert!(!world.stored().resolved);
    // Two of them came after the answer.
    world.broker.set_since(&[(0, 3)]);
    world.broker.set_topic(Ok(topic(TOPIC_ID, &[(0, 5)])));
    assert_eq!(world.assign(1, &[0]).await, [(0, 3)], "the latest as of when it was created");
    let asked = world.broker.told().into_iter().find(|told| matches!(told, Told::AskedSince(..)));
    assert_eq!(asked, Some(Told::AskedSince(vec![0], created.saturating_sub(10_000))), "with room for clocks that differ");
}

/// What came to a Kafka partition without a leader, between its leader's election and the next look, was passed over for good.
#[tokio::test(start_paused = true)]
async fn latest_passes_over_nothing_of_a_kafka_partition_that_had_no_leader_at_the_start() {
    let mut half = topic(TOPIC_ID, &[(2, 9)]);
    half.unknown.push((1, SourceError::new(ErrorKind::Unavailable, "it has no leader")));
    let world = World::new(Ok(half));
    let subscription = testing::subscription();
    world.subscribe(subscription.clone());
    world.sources.created(subscription.id).await;
    assert_eq!((world.position(0, TOPIC_ID, 0), world.position(0, TOPIC_ID, 1)), (Some(9), None));
    assert_eq!(world.assign(1, &[0, 1]).await, [(0, 9)]);
    // It has a leader again, and three more by the time of the look.
    world.broker.set_since(&[(1, 40)]);
    world.broker.set_topic(Ok(topic(TOPIC_ID, &[(2, 9), (0, 43)])));
    world.broker.heard(|told| *told == Told::Closed).await;
    assert_eq!(world.assign(2, &[0, 1]).await, [(0, 9), (1, 40)]);
}

#[tokio::test(start_paused = true)]
async fn properties_that_make_no_sense_fail_visibly_and_hold_up_nobody() {
    let world = World::new(Ok(topic(TOPIC_ID, &[(0, 5)])));
    let mut subscription = earliest();
    subscription.options.insert("auto.offset.reset".to_owned(), "sometimes".to_owned());
    world.subscribe(subscription.clone());
    let start = tokio::time::Instant::now();
    world.sources.created(subscription.id).await;
    assert_eq!(start.elapsed().as_secs(), 0);
    let status = world.status_is(Stage::Failing).await;
    assert!(status.last_error.unwrap().contains("earliest"));
}

#[tokio::test(start_paused = true)]
async fn records_are_appended_in_order_and_commits_follow_what_is_durable() {
    let world = World::reading(&[(0, 9), (0, 9)]).await;
    world.node.set_durable_at_once(false);
    world.records(1, 0, 0..3);
    world.records(1, 1, [0, 4]);
    world.node.until(|node| node.sources().len() == 5).await;
    assert_eq!(world.node.sources(), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 4)]);
    let status = world.status_is(Stage::Running).await;
    assert_eq!(status.partitions.iter().map(|p| (p.position, p.lag)).collect::<Vec<_>>(), [(0, 9), (0, 9)]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!world.broker.told().iter().any(|told| matches!(told, Told::Committed(_))), "nothing is durable");
    world.node.sync();
    assert_eq!(world.committed().await, [(0, 3), (1, 5)]);
    assert_eq!((world.position(0, TOPIC_ID, 0), world.position(0, TOPIC_ID, 1)), (Some(3), Some(5)));
}

#[tokio::test(start_paused = true)]
async fn records_of_a_revoked_assignment_are_refused_and_read_again_by_the_next() {
    let world = World::reading(&[(0, 9), (0, 9)]).await;
    world.records(1, 0, 0..2);
    world.broker.send(SourceEvent::Revoked { generation: 1, partitions: vec![0, 1] });
    world.broker.heard(|told| matches!(told, Told::Released(_))).await;
    assert_eq!(world.position(0, TOPIC_ID, 0), Some(2), "stored before another member may have it");
    world.records(1, 0, [2]);
    assert_eq!(world.assign_more(2, &[0]).await, [(0, 2)]);
    world.records(1, 0, [2]);
    world.records(2, 0, [2, 3]);
    world.node.until(|node| node.sources().len() >= 4).await;
    assert_eq!(world.node.sources(), [(0, 0), (0, 1), (0, 2), (0, 3)]);
}

/// A rebalance while fetching was paused left Kafka partitions paused for good.
#[tokio::test(start_paused = true)]
async fn a_full_edge_takes_no_more_than_it_may_and_goes_on_over_a_rebalance() {
    let world = World::reading(&[(0, 9_999)]).await;
    world.node.set_open(false);
    for start in (0..1_000).step_by(50) {
        world.records(1, 0, start..start + 50);
    }
    until(|| world.broker.waiting() <= 17).await;
    assert!(world.broker.waiting() >= 16, "the rest stays with the source");
    // The group goes on while nothing is taken.
    world.broker.send(SourceEvent::Revoked { generation: 1, partitions: vec![0] });
    world.broker.heard(|told| matches!(told, Told::Released(_))).await;
    assert_eq!(world.assign_more(2, &[0]).await, [(0, 0)]);
    world.records(2, 0, 0..500);
    world.node.set_open(true);
    world.node.until(|node| node.sources().len() == 500).await;
    assert_eq!(world.node.sources(), (0..500).map(|offset| (0, offset)).collect::<Vec<_>>());
    assert!(!world.broker.told().iter().any(|told| matches!(told, Told::Held(_))), "no stream had to be held");
}

#[tokio::test(start_paused = true)]
async fn at_the_bound_of_parked_records_it_pauses_visibly_and_goes_on_below() {
    let world = World::reading(&[(0, 9)]).await;
    world.node.set_parked(PARKED_MAX, 2);
    world.broker.send(SourceEvent::Records(vec![keyless(1, 0, 0), keyless(1, 0, 1), keyless(1, 0, 2), record(1, 0, 3)]));
    let status = world.status_is(Stage::Paused).await;
    assert!(status.last_error.unwrap().contains("/parked"));
    assert_eq!(world.node.sources(), [(0, 0), (0, 1)]);
    world.records(1, 0, [4]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.node.sources().len(), 2, "it stays paused");
    assert_eq!(world.broker.waiting(), 1, "what comes meanwhile stays with the source");
    world.node.set_parked(PARKED_MAX - 1, 1);
    world.node.until(|node| node.sources().len() == 5).await;
    world.status_is(Stage::Running).await;
}

/// The same with a rebalance in between: the records that could run never did.
#[tokio::test(start_paused = true)]
async fn what_is_parked_and_discarded_around_a_rebalance_holds_up_nothing_after_it() {
    let world = World::reading(&[(0, 9), (0, 9)]).await;
    world.node.set_parked(PARKED_MAX, 2);
    let bad = (0..3).map(|offset| keyless(1, 0, offset));
    world.broker.send(SourceEvent::Records(bad.collect()));
    world.status_is(Stage::Paused).await;
    world.broker.send(SourceEvent::Revoked { generation: 1, partitions: vec![0] });
    world.broker.heard(|told| matches!(told, Told::Released(_))).await;
    assert_eq!(world.assign_more(2, &[0]).await, [(0, 2)]);
    world.broker.send(SourceEvent::Records(vec![keyless(2, 0, 2), record(2, 0, 3)]));
    world.records(1, 1, [0, 1]);
    world.status_is(Stage::Paused).await;
    world.node.set_parked(0, 0);
    world.node.until(|node| node.sources().len() == 6).await;
}

#[tokio::test(start_paused = true)]
async fn parked_records_are_bounded_in_bytes_too() {
    let world = World::reading(&[(0, 9)]).await;
    let large = KafkaRecord { value: Some(vec![7; 900].into()), ..keyless(1, 0, 0) };
    world.node.set_parked(1, 900);
    world.broker.send(SourceEvent::Records(vec![large.clone(), KafkaRecord { offset: 1, ..large }]));
    world.status_is(Stage::Paused).await;
    assert_eq!(world.node.sources(), [(0, 0)]);
    world.node.set_parked(0, 0);
    world.node.until(|node| node.sources().len() == 2).await;
}

/// Good records were parked for good while their handler was away for a second.
#[tokio::test(start_paused = true)]
async fn a_handler_that_is_away_holds_the_subscription_and_parks_nothing() {
    let world = World::reading(&[(0, 9)]).await;
    let services = world.node.catalog().services.clone();
    world.node.edit(|catalog| catalog.services.clear());
    world.records(1, 0, 0..3);
    let status = world.status_is(Stage::Paused).await;
    assert!(status.last_error.unwrap().contains("Counter/add"));
    assert_eq!(world.node.sources(), []);
    let since = tokio::time::Instant::now();
    world.node.edit(|catalog| catalog.services = services);
    world.node.until(|node| node.sources().len() == 3).await;
    assert!(since.elapsed() < Duration::from_millis(100), "it goes on at once");
    assert_eq!(world.node.sources(), [(0, 0), (0, 1), (0, 2)]);
    assert!(world.node.events().iter().all(|event| matches!(event, Event::InvocationSubmitted(_))));
    world.status_is(Stage::Running).await;
}

/// One stopped partition stopped every subscription.
#[tokio::test(start_paused = true)]
async fn a_stopped_partition_holds_its_stream_at_a_bound_and_the_position_back() {
    let world = World::reading(&[(0, 999), (0, 999)]).await;
    let stopped = PartitionId::of(surefoot_model::key_hash("k"), testing::PARTITIONS);
    world.node.stop_partition(Some(stopped));
    let other = |generation, partition, offset| {
        let keys = (0..).map(|n| format!("other-{n}"));
        let key = keys.into_iter().find(|key| PartitionId::of(surefoot_model::key_hash(key), testing::PARTITIONS) != stopped);
        KafkaRecord { key: key.map(Into::into), ..record(generation, partition, offset) }
    };
    // The second stream has nothing for it, the first one early on.
    world.broker.send(SourceEvent::Records((0..200).map(|offset| other(1, 1, offset)).collect()));
    let mixed = (0..200).map(|offset| if offset == 3 { record(1, 0, 3) } else { other(1, 0, offset) });
    world.broker.send(SourceEvent::Records(mixed.collect()));
    world.node.until(|node| node.sources().len() == 253).await;
    world.broker.heard(|told| *told == Told::Held(vec![0])).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.node.sources().iter().filter(|(partition, _)| *partition == 0).count(), 53);
    assert_eq!((world.position(0, TOPIC_ID, 0), world.position(0, TOPIC_ID, 1)), (Some(3), Some(200)));
    let status = world.status_is(Stage::Running).await;
    assert!(status.last_error.as_ref().is_some_and(|words| words.contains("has stopped")), "{status:?}");
    // It is not seen in one life of a node, but shows that the rest was kept.
    world.node.stop_partition(None);
    world.broker.heard(|told| *told == Told::Resumed(vec![0])).await;
    world.node.until(|node| node.sources().len() == 400).await;
}

#[tokio::test(start_paused = true)]
async fn a_kafka_partition_that_stands_still_is_told_and_starts_over() {
    let world = World::reading(&[(0, 9)]).await;
    world.status_is(Stage::Running).await;
    world.broker.send(SourceEvent::AtEnd { generation: 1, partition: 0, offset: 9 });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.sources.troubles().standstills(), 0, "its offsets have no Kafka records");
    world.broker.set_topic(Ok(topic(TOPIC_ID, &[(0, 12)])));
    until(|| world.sources.status(earliest().id).last_error.is_some_and(|words| words.contains("stands still"))).await;
    assert_eq!(world.sources.troubles().standstills(), 1);
    world.broker.heard(|told| *told == Told::Closed).await;
    assert_eq!(world.assign(2, &[0]).await, [(0, 0)]);
    world.records(2, 0, 0..12);
    world.node.until(|node| node.sources().len() == 12).await;
    world.status_is(Stage::Running).await;
}

/// One Kafka partition without a leader at the start kept all others from being read.
#[tokio::test(start_paused = true)]
async fn a_kafka_partition_without_a_leader_is_waited_for_alone() {
    let mut half = topic(TOPIC_ID, &[(0, 9)]);
    half.unknown.push((1, unavailable()));
    let world = World::new(Ok(half));
    world.subscribe(earliest());
    assert_eq!(world.assign(1, &[0, 1]).await, [(0, 0)]);
    world.records(1, 0, 0..2);
    world.node.until(|node| node.sources().len() == 2).await;
    let status = world.status_is(Stage::Running).await;
    assert!(status.last_error.unwrap().contains("Kafka partition 1"));
    world.broker.set_topic(Ok(topic(TOPIC_ID, &[(0, 9), (2, 9)])));
    assert_eq!(world.assign(2, &[0, 1]).await, [(0, 2), (1, 2)]);
    assert_eq!(world.status_is(Stage::Running).await.last_error, None);
    assert!(world.stored().resolved);
}

/// A task that had died was shown as running, and read nothing more.
#[tokio::test(start_paused = true)]
async fn a_task_that_panics_is_told_and_started_again() {
    let world = World::new(Ok(topic(TOPIC_ID, &[(0, 9)])));
    world.node.panic_next(2);
    world.subscribe(earliest());
    until(|| world.sources.status(earliest().id).last_error.is_some_and(|words| words.contains("broken invariant"))).await;
    assert_eq!(world.assign(1, &[0]).await, [(0, 0)]);
    assert_eq!(world.sources.troubles().panics(), 2);
    world.status_is(Stage::Running).await;
}

/// What was read between the last commit and the deletion ran twice under a subscription in its place.
#[tokio::test(start_paused = true)]
async fn a_deletion_ends_in_order_and_who_follows_waits_for_it() {
    let world = World::reading(&[(0, 9)]).await;
    world.node.set_durable_at_once(false);
    world.records(1, 0, 0..4);
    world.node.until(|node| node.sources().len() == 4).await;
    let group = world.group();
    let next = Subscription { id: SubscriptionId(99), ..earliest() };
    world.delete(Closing::Told);
    world.node.edit(|catalog| {
        let mut next = next.clone();
        next.options.insert("group.id".to_owned(), group);
        catalog.subscriptions.insert(next.id, Arc::new(next));
    });
    assert!(!world.sources.closed(earliest().id).await, "not while the last append is not durable");
    assert!(world.node.closed().is_empty());
    world.node.sync();
    assert!(world.sources.closed(earliest().id).await);
    let opened = world.broker.heard(|told| matches!(told, Told::Opened(_))).await;
    assert!(matches!(opened, Told::Opened(_)));
    let told = world.broker.told();
    let at = |wanted: &Told| told.iter().position(|told| told == wanted).unwrap();
    assert_eq!(world.node.closed(), [earliest().id], "once");
    assert!(at(&Told::CommittedNow(vec![(0, 4)])) < at(&Told::Closed), "{told:?}");
    assert!(at(&Told::Closed) < told.iter().rposition(|told| matches!(told, Told::Opened(_))).unwrap(), "{told:?}");
    assert!(world.sources.closed(SubscriptionId(1)).await, "one that never was");
}

/// What an earlier life took beyond the stored position, and what another member has, was left out of the last commit.
#[tokio::test(start_paused = true)]
async fn the_last_commit_covers_all_that_was_taken_and_goes_back_nowhere() {
    let world = World::reading(&[(0, 9), (0, 9), (0, 9)]).await;
    for partition in 0..3 {
        world.records(1, partition, 0..3);
    }
    world.node.until(|node| node.sources().len() == 9).await;
    let stream = |epoch, partition| StreamId { subscription: earliest().id, epoch, topic: TOPIC_ID, partition };
    world.node.set_watermarks([(stream(0, 0), 6), (StreamId { topic: TOPIC_ID + 1, ..stream(0, 0) }, 8)]);
    world.broker.send(SourceEvent::Revoked { generation: 1, partitions: vec![1, 2] });
    world.broker.heard(|told| matches!(told, Told::Released(_))).await;
    // The commit of one did not arrive, in the other its new member has gone on.
    world.broker.set_committed(&[(1, 1), (2, 5)]);
    world.delete(Closing::Told);
    assert!(world.sources.closed(earliest().id).await);
    let told = world.broker.told();
    assert!(told.contains(&Told::CommittedNow(vec![(0, 7), (1, 3)])), "{told:?}");
}

/// What is told from the first commit on that is waited for.
fn told_at_the_end(world: &World) -> Vec<Told> {
    let told = world.broker.told();
    told.into_iter().skip_while(|told| !matches!(told, Told::CommittedNow(_))).collect()
}

/// One that has read up to 3, is deleted, and waits for its last commit. Says what that fails with.
async fn telling() -> (World, oneshot::Sender<SourceError>) {
    let world = World::reading(&[(0, 999)]).await;
    world.records(1, 0, 0..3);
    world.node.until(|node| node.sources().len() == 3).await;
    let failure = world.broker.fail_next_commit();
    world.delete(Closing::Told);
    world.broker.heard(|told| *told == Told::CommittedNow(vec![(0, 3)])).await;
    (world, failure)
}

/// A last commit that failed in a rebalance was repeated over what the next member had committed.
/// It was listed as running for as long as its broker did not answer.
#[tokio::test(start_paused = true)]
async fn a_deleted_subscription_is_listed_as_closing_while_its_source_stops() {
    let (world, _answer) = telling().await;
    let status = world.sources.status(earliest().id);
    assert_eq!(status.stage, Stage::Closing);
    assert!(status.last_error.is_some_and(|words| words.contains("tells its group")));
}

#[tokio::test(start_paused = true)]
async fn a_last_commit_that_fails_is_not_repeated_over_a_member_that_has_gone_on() {
    let (world, failure) = telling().await;
    world.broker.send(SourceEvent::Revoked { generation: 1, partitions: vec![0] });
    world.broker.heard(|told| *told == Told::Released(vec![0])).await;
    world.broker.set_committed(&[(0, 5)]);
    failure.send(unavailable()).unwrap();
    assert!(world.sources.closed(earliest().id).await);
    let expected = [Told::CommittedNow(vec![(0, 3)]), Told::Committed(vec![(0, 3)]), Told::Released(vec![0]), Told::Closed];
    assert_eq!(told_at_the_end(&world), expected);
}

/// A Kafka partition that came back and went again was told once more where this member had come to, not the one in between.
#[tokio::test(start_paused = true)]
async fn a_kafka_partition_that_comes_back_while_its_group_is_told_is_not_told_from_memory() {
    let (world, failure) = telling().await;
    world.broker.send(SourceEvent::Revoked { generation: 1, partitions: vec![0] });
    world.broker.heard(|told| *told == Told::Released(vec![0])).await;
    world.broker.set_committed(&[(0, 5)]);
    world.assign_more(2, &[0]).await;
    world.broker.send(SourceEvent::Revoked { generation: 2, partitions: vec![0] });
    world.broker.heard(|told| *told == Told::Released(vec![0])).await;
    failure.send(unavailable()).unwrap();
    assert!(world.sources.closed(earliest().id).await);
    let told = told_at_the_end(&world);
    assert_eq!(told.iter().filter(|told| matches!(told, Told::Committed(_))).count(), 1, "{told:?}");
    assert_eq!(told.iter().filter(|told| matches!(told, Told::CommittedNow(_))).count(), 1, "{told:?}");
}

/// Brokers refuse commits in a rebalance, and say only then what is revoked: who comes next still begins where this member has come to.
#[tokio::test(start_paused = true)]
async fn what_a_failed_last_commit_said_is_said_again_to_who_takes_the_kafka_partition() {
    let (world, failure) = telling().await;
    failure.send(unavailable()).unwrap();
    world.broker.send(SourceEvent::Revoked { generation: 1, partitions: vec![0] });
    world.broker.heard(|told| *told == Told::Released(vec![0])).await;
    let told = told_at_the_end(&world);
    assert_eq!(told[1..3], [Told::Committed(vec![(0, 3)]), Told::Released(vec![0])]);
    assert!(world.sources.closed(earliest().id).await, "it is asked whether that has arrived, and told again");
    assert_eq!(told_at_the_end(&world).iter().filter(|told| matches!(told, Told::CommittedNow(_))).count(), 2);
}

/// What the earlier task of a subscription had appended was dropped as closed, and committed as taken.
#[tokio::test(start_paused = true)]
async fn a_deletion_waits_for_the_subscriptions_own_earlier_task() {
    for is_cluster_gone in [false, true] {
        let world = World::with_four_on_their_way().await;
        world.node.edit(|catalog| {
            let mut cluster = testing::cluster();
            cluster.properties.insert("fetch.min.bytes".to_owned(), "2".to_owned());
            catalog.kafka_clusters.clear();
            if !is_cluster_gone {
                catalog.kafka_clusters.insert(cluster.name.clone(), Arc::new(cluster));
            }
        });
        // The clock goes on once that has been seen.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!world.broker.told().contains(&Told::Closed), "it waits for what it has appended");
        world.delete(Closing::Told);
        world.node.until(|node| !node.closed().is_empty()).await;
        let told = world.broker.told();
        let left = told.iter().position(|told| *told == Told::Closed).expect("it has left by then");
        let opened = told.iter().filter(|told| matches!(told, Told::Opened(_)));
        let before = told[..left].iter().filter(|told| matches!(told, Told::Opened(_)));
        assert_eq!(before.count(), 1, "and before the next one was opened, of {}", opened.count());
    }
}

/// It read in another group while its earlier task had not stored what it had taken: that came twice, or was dropped as closed.
#[tokio::test(start_paused = true)]
async fn a_subscription_whose_cluster_comes_back_with_another_group_waits_for_its_own_earlier_task() {
    for is_deleted in [false, true] {
        let world = World::with_four_on_their_way().await;
        world.node.edit(|catalog| catalog.kafka_clusters.clear());
        world.status_is(Stage::Failing).await;
        world.node.edit(|catalog| {
            let mut cluster = testing::cluster();
            cluster.properties.insert("group.id".to_owned(), "another".to_owned());
            catalog.kafka_clusters.insert(cluster.name.clone(), Arc::new(cluster));
        });
        // The clock goes on once that has been seen.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let told = world.broker.told();
        assert_eq!(told.iter().filter(|told| matches!(told, Told::Opened(_))).count(), 1, "{told:?}");
        if is_deleted {
            world.delete(Closing::Told);
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(world.node.closed(), [], "what it has taken is not durable");
            world.node.sync();
            assert!(world.sources.closed(earliest().id).await);
            assert!(world.broker.told().contains(&Told::CommittedNow(vec![(0, 4)])), "{:?}", world.broker.told());
        } else {
            world.node.sync();
            assert_eq!(world.assign(2, &[0]).await, [(0, 4)], "it goes on there");
        }
    }
}

/// It looked at the topic when it was told to leave, and then appended what had been waiting.
#[tokio::test(start_paused = true)]
async fn what_leaves_while_it_looks_at_the_topic_appends_nothing_more() {
    let world = World::reading(&[(0, 9)]).await;
    world.node.set_open(false);
    world.records(1, 0, 0..2);
    until(|| world.broker.waiting() == 0).await;
    let look = world.broker.hold_topic();
    world.broker.send(SourceEvent::Assigned { generation: 2, partitions: vec![1] });
    world.broker.heard(|told| *told == Told::AskedTopic).await;
    world.node.edit(|catalog| catalog.kafka_clusters.clear());
    world.status_is(Stage::Failing).await;
    world.node.set_open(true);
    look.notify_one();
    world.broker.heard(|told| *told == Told::Closed).await;
    assert_eq!(world.node.sources(), []);
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_made_again_while_it_is_read_opens_a_new_epoch() {
    let world = World::reading(&[(0, 9)]).await;
    world.records(1, 0, 0..5);
    world.node.until(|node| node.sources().len() == 5).await;
    world.broker.set_topic(Ok(topic(8, &[(0, 3)])));
    assert_eq!(world.assign(2, &[0]).await, [(0, 0)]);
    assert_eq!((world.stored().epoch, world.stored().topic_id), (1, 8));
    assert_eq!(world.node.opened(), [0, 1]);
}

/// The group of a topic that was made again was told the old one's positions, though nothing of it had been read.
#[tokio::test(start_paused = true)]
async fn positions_in_a_topic_that_is_gone_are_not_committed_for_the_one_in_its_place() {
    let world = World::reading(&[(0, 9)]).await;
    world.records(1, 0, 0..5);
    world.node.until(|node| node.sources().len() == 5).await;
    world.broker.set_topic(Ok(topic(8, &[(0, 3), (0, 3)])));
    // It looks at the topic before it has stored how far it is.
    world.broker.send(SourceEvent::Assigned { generation: 2, partitions: vec![1] });
    assert_eq!(world.assign(1, &[0, 1]).await, [(0, 0), (1, 0)]);
    assert_eq!(world.position(0, TOPIC_ID, 0), Some(5));
    assert!(!world.broker.told().contains(&Told::Committed(vec![(0, 5)])));
}

#[tokio::test(start_paused = true)]
async fn a_kafka_partition_that_is_added_is_read_from_its_earliest() {
    let mut subscription = testing::subscription();
    subscription.options.insert("auto.offset.reset".to_owned(), "latest".to_owned());
    let world = World::new(Ok(topic(TOPIC_ID, &[(0, 9)])));
    world.subscribe(subscription);
    assert_eq!(world.assign(1, &[0]).await, [(0, 9)]);
    world.broker.set_topic(Ok(topic(TOPIC_ID, &[(0, 9), (0, 6)])));
    world.broker.send(SourceEvent::Revoked { generation: 1, partitions: vec![0] });
    assert_eq!(world.assign_more(2, &[0, 1]).await, [(0, 9), (1, 0)]);
    assert_eq!(world.position(0, TOPIC_ID, 1), Some(0), "stored before the first fetch");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_client_shows_until_a_broker_answers_again() {
    let world = World::reading(&[(0, 9)]).await;
    world.status_is(Stage::Running).await;
    world.broker.set_topic(Err(unavailable()));
    world.broker.send(SourceEvent::Failed(unavailable()));
    assert_eq!(world.status_is(Stage::Waiting).await.last_error.as_deref(), Some("no broker answers"));
    world.broker.set_topic(Ok(topic(TOPIC_ID, &[(0, 12)])));
    let status = world.status_is(Stage::Running).await;
    assert_eq!(status.partitions[0].high_watermark, 12);
    // What the client cannot mend itself ends the session; the next one starts over.
    world.broker.send(SourceEvent::Failed(SourceError::new(ErrorKind::OffsetLost, "out of range")));
    world.broker.heard(|told| *told == Told::Closed).await;
    assert_eq!(world.assign(2, &[0]).await, [(0, 0)]);
}

#[tokio::test(start_paused = true)]
async fn changed_properties_restart_and_a_deletion_closes() {
    let world = World::reading(&[(0, 9)]).await;
    world.records(1, 0, 0..2);
    world.node.until(|node| node.sources().len() == 2).await;
    world.node.edit(|catalog| {
        let mut cluster = testing::cluster();
        cluster.properties.insert("fetch.min.bytes".to_owned(), "2".to_owned());
        catalog.kafka_clusters.insert(cluster.name.clone(), Arc::new(cluster));
    });
    world.broker.heard(|told| *told == Told::Closed).await;
    let opened = world.broker.heard(|told| matches!(told, Told::Opened(_))).await;
    assert!(matches!(opened, Told::Opened(properties) if properties["fetch.min.bytes"] == "2"));
    assert_eq!(world.assign(2, &[0]).await, [(0, 2)], "it goes on where it was");

    world.delete(Closing::Told);
    world.node.until(|node| !node.closed().is_empty()).await;
    assert_eq!(world.node.closed(), [earliest().id]);
    assert_eq!(world.sources.status(earliest().id), SourceStatus::waiting());
}

/// One of the group `g` that was read up to 4 when the process died in the middle of its deletion, and another one in its place.
fn cut_short(node: &Node) -> Subscription {
    let in_group = |mut subscription: Subscription| {
        subscription.options.insert("group.id".to_owned(), "g".to_owned());
        subscription
    };
    let deleted = in_group(Subscription { resolved: true, topic_id: TOPIC_ID, closing: Some(Closing::Told), ..earliest() });
    let next = in_group(Subscription { id: SubscriptionId(99), ..earliest() });
    let stream = StreamId { subscription: deleted.id, epoch: 0, topic: TOPIC_ID, partition: 0 };
    node.edit(|catalog| {
        catalog.positions.insert(stream, 4);
        catalog.subscriptions.extend([deleted, next.clone()].map(|s| (s.id, Arc::new(s))));
    });
    next
}

/// After a kill in the middle of a deletion, a subscription in its place ran again what came since the last commit.
#[tokio::test(start_paused = true)]
async fn a_deletion_that_a_crash_cut_short_is_finished_at_the_next_start_and_its_group_is_told() {
    let (node, broker) = (Node::new(), Broker::new(Ok(topic(TOPIC_ID, &[(0, 9)]))));
    cut_short(&node);
    // Two were taken after the last position was stored.
    node.set_watermarks([(StreamId { subscription: earliest().id, epoch: 0, topic: TOPIC_ID, partition: 0 }, 5)]);
    broker.set_committed(&[(0, 2)]);
    let world = World::start(node, broker);
    // At once, before anything of it has begun.
    assert!(world.sources.closed(earliest().id).await);
    assert!(world.broker.told().contains(&Told::CommittedNow(vec![(0, 6)])), "{:?}", world.broker.told());
    assert_eq!(world.node.closed(), [earliest().id]);
    assert!(!world.node.catalog().subscriptions.contains_key(&earliest().id));
    assert_eq!(world.assign(1, &[0]).await, [(0, 6)], "the next one goes on there");
}

/// The second crash came after the partitions had forgotten what they took.
#[tokio::test(start_paused = true)]
async fn what_was_taken_is_stored_before_it_is_forgotten() {
    let (node, broker) = (Node::new(), Broker::new(Err(unavailable())));
    cut_short(&node);
    node.set_watermarks([(StreamId { subscription: earliest().id, epoch: 0, topic: TOPIC_ID, partition: 0 }, 5)]);
    let world = World::start(node.clone(), broker);
    node.until(|node| !node.closed().is_empty()).await;
    assert_eq!(world.position(0, TOPIC_ID, 0), Some(6));
    assert!(!world.broker.told().iter().any(|told| matches!(told, Told::CommittedNow(_))));
}

#[tokio::test(start_paused = true)]
async fn a_group_that_takes_no_strangers_is_told_by_a_member() {
    let (node, broker) = (Node::new(), Broker::new(Ok(topic(TOPIC_ID, &[(0, 9)]))));
    cut_short(&node);
    broker.refuse_strangers();
    let world = World::start(node, broker);
    assert_eq!(world.assign(1, &[0]).await, [], "it reads nothing");
    assert!(world.sources.closed(earliest().id).await);
    assert!(world.broker.told().contains(&Told::CommittedNow(vec![(0, 4)])), "{:?}", world.broker.told());
}

#[tokio::test(start_paused = true)]
async fn a_group_that_cannot_be_told_holds_the_deletion_visibly_until_it_is_forced() {
    let (node, broker) = (Node::new(), Broker::new(Err(unavailable())));
    let next = cut_short(&node);
    let world = World::start(node, broker);
    assert!(!world.sources.closed(earliest().id).await);
    let tries = || world.broker.told().iter().filter(|told| matches!(told, Told::Opened(_))).count();
    until(|| tries() >= 20).await;
    let status = world.status_is(Stage::Closing).await;
    assert!(status.last_error.is_some_and(|words| words.contains("no broker answers") && words.contains("force")));
    let waiting = world.sources.status(next.id);
    assert!(waiting.last_error.is_some_and(|words| words.contains(&earliest().id.to_string())), "it says what it waits for");
    assert_eq!(world.node.closed(), [earliest().id]);

    world.delete(Closing::Forced);
    assert!(world.sources.closed(earliest().id).await);
    world.broker.set_topic(Ok(topic(TOPIC_ID, &[(0, 9)])));
    world.assign(1, &[0]).await;
}

/// A subscription in its place ran again what the stopped partition had taken, once that was repaired.
#[tokio::test(start_paused = true)]
async fn a_deletion_waits_for_a_partition_that_has_stopped_until_that_is_repaired_or_it_is_forced() {
    for is_repaired in [true, false] {
        let (node, broker) = (Node::new(), Broker::new(Ok(topic(TOPIC_ID, &[(0, 9)]))));
        cut_short(&node);
        node.stop_partition(Some(PartitionId(1)));
        let world = World::start(node, broker);
        assert!(!world.sources.closed(earliest().id).await);
        let status = world.status_is(Stage::Closing).await;
        assert!(status.last_error.is_some_and(|words| words.contains("partition 1 has stopped")), "it says what it waits for");
        assert_eq!(
            (world.node.closed(), world.node.opened()),
            (vec![], vec![]),
            "what waits appends nothing, however often it tries"
        );
        if is_repaired {
            world.node.stop_partition(None)
        } else {
            world.delete(Closing::Forced)
        }
        assert!(world.sources.closed(earliest().id).await);
        assert!(world.broker.told().contains(&Told::CommittedNow(vec![(0, 4)])) || !is_repaired);
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_of_its_own_holds_no_deletion() {
    let (node, broker) = (Node::new(), Broker::new(Err(unavailable())));
    cut_short(&node);
    node.edit(|catalog| {
        catalog.subscriptions.retain(|id, _| *id == earliest().id);
        Arc::make_mut(catalog.subscriptions.get_mut(&earliest().id).unwrap()).options.remove("group.id");
    });
    let world = World::start(node, broker);
    assert!(world.sources.closed(earliest().id).await);
    assert_eq!(world.node.closed(), [earliest().id]);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_waits_for_a_cluster_that_is_gone_and_goes_on_once_it_is_registered_again() {
    let (node, broker) = (Node::new(), Broker::new(Ok(topic(TOPIC_ID, &[(0, 9)]))));
    cut_short(&node);
    node.edit(|catalog| catalog.kafka_clusters.clear());
    let world = World::start(node, broker);
    assert!(!world.sources.closed(earliest().id).await);
    let status = world.status_is(Stage::Closing).await;
    assert!(status.last_error.is_some_and(|words| words.contains("register it again") && words.contains("force")));
    world.node.edit(|catalog| drop(catalog.kafka_clusters.insert("main".into(), Arc::new(testing::cluster()))));
    world.node.until(|node| !node.catalog().subscriptions.contains_key(&earliest().id)).await;
    assert!(world.broker.told().contains(&Told::CommittedNow(vec![(0, 4)])), "{:?}", world.broker.told());
}

#[tokio::test(start_paused = true)]
async fn without_its_cluster_a_subscription_fails_visibly() {
    let world = World::reading(&[(0, 9)]).await;
    world.node.edit(|catalog| catalog.kafka_clusters.clear());
    world.broker.heard(|told| *told == Told::Closed).await;
    let status = world.status_is(Stage::Failing).await;
    assert!(status.last_error.unwrap().contains("not registered"));
}

#[tokio::test(start_paused = true)]
async fn a_stop_stores_positions_and_leaves_the_group() {
    let world = World::reading(&[(0, 9)]).await;
    world.records(1, 0, 0..3);
    world.node.until(|node| node.sources().len() == 3).await;
    world.sources.stop().await;
    assert_eq!(world.position(0, TOPIC_ID, 0), Some(3));
    let told = world.broker.told();
    assert_eq!(told[told.len() - 2..], [Told::Committed(vec![(0, 3)]), Told::Closed]);
    world.sources.stop().await;
}

#[tokio::test(start_paused = true)]
async fn stored_positions_win_over_every_other_start() {
    let world = World::new(Ok(topic(TOPIC_ID, &[(0, 9)])));
    let mut subscription = earliest();
    subscription.resolved = true;
    subscription.topic_id = TOPIC_ID;
    let stream = StreamId { subscription: subscription.id, epoch: 0, topic: TOPIC_ID, partition: 0 };
    world.node.edit(|catalog| {
        catalog.positions.insert(stream, 6);
    });
    world.subscribe(subscription);
    assert_eq!(world.assign(1, &[0]).await, [(0, 6)]);
}
