//! Topics that are read: a producer, and an operator who subscribes and unsubscribes as on a real node, and deletes the cluster meanwhile.
//!
//! Checked: what was produced is handled exactly once and, per key, in the order of its Kafka partition; what cannot be is parked
//! exactly once, and never more than may be; a subscription that asked for the latest misses nothing that was produced after its
//! creation; a topic that was made again is read from its start; no commit leads what is stored; what a deleted subscription told its
//! group it has taken, and one in its place goes on exactly there, less what other programs have read and committed in that group
//! meanwhile; what anybody commits in a group that is named after its subscription changes nothing. Of a topic that was deleted only
//! what was read before, as the commits say, has to be there. What a client read of a topic that was made again before its member knew
//! of that may come twice, and no oftener. An operator discards what is parked: it is counted before.

use crate::broker::Place;
use crate::executor::WORLD;
use crate::operators::{self, REVISIONS};
use crate::world::{DISK_MAX, DISK_RESERVE, Open, State, World};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use surefoot_admin::{NewCluster, NewSubscription};
use surefoot_env::sim::Rng;
use surefoot_model::{StreamId, SubscriptionId};
use surefoot_partition::{LIST_MAX, ParkedInfo, Partitions, Shortage};

/// The name of the simulated cluster.
pub(crate) const CLUSTER: &str = "main";
/// Keys of Kafka records that have a good one.
pub(crate) const KEYS: [&str; 3] = ["k0", "k1", "k2"];
/// Where the plain service sends what it is given.
pub(crate) const SINKS: [&str; 2] = ["r0", "r1"];

const ORDERS: &str = "orders";
const NOTES: &str = "notes";
/// A group that another program read with before.
const COPY_GROUP: &str = "copy";
/// Kafka records produced after the operator is done.
const LAST_RECORDS: u64 = 8;
/// Worlds whose cluster is deleted under its subscriptions and registered again: one in so many.
const CHURNED: u64 = 4;
/// How long it may take until a probe's Kafka record has been handled: a session that begins again, at a slow disk.
const TAKEN_MAX: Duration = Duration::from_secs(20);
const TAKEN_LOOK: Duration = Duration::from_millis(500);
/// Somebody who fills the disk looks this often whether there is room again.
const FILL_AGAIN: Duration = Duration::from_millis(10);
/// With so much free the edges open, and the log finds its next segments beside that.
const OPENS_WITH: u64 = DISK_RESERVE + DISK_RESERVE / 8 + (32 << 10);
/// By then a Kafka record has come to a subscription whose handler is missing.
const HELD_AFTER: Duration = Duration::from_secs(2);
/// Parked Kafka records of one subscription.
pub(crate) const PARKED_MAX: u64 = 4;

#[derive(Default)]
pub(crate) struct Model {
    /// A Kafka record's number is its place here.
    produced: Vec<Produced>,
    orders: Option<SubscriptionId>,
    notes: Option<SubscriptionId>,
    copy: Option<SubscriptionId>,
    /// Records of `notes` from this one on were produced after its subscription was there.
    notes_from: Option<usize>,
    /// Records from this one on were produced after the subscription `copy` was gone, and no other took its place.
    copy_until: Option<usize>,
    /// Another took its place, and goes on where it was: nothing may be missing.
    is_copy_followed: bool,
    /// Parked and then discarded: its number, and whether that was answered.
    discarded: BTreeMap<Place, (u64, bool)>,
    /// Where the group `copy` had read up to before.
    copy_starts: BTreeMap<(u128, i32), i64>,
    operator_is_done: bool,
    /// All that must has arrived.
    pub(crate) has_arrived: bool,
}

struct Produced {
    topic: &'static str,
    place: Place,
    /// Absent: none, or one that is no text.
    key: Option<&'static str>,
}

impl Model {
    pub(crate) fn records(&self) -> u64 {
        self.produced.len() as u64
    }

    /// The numbers of what is at these places.
    fn numbers_of(&self, places: &BTreeSet<Place>) -> BTreeSet<u64> {
        (0..).zip(&self.produced).filter(|(_, record)| places.contains(&record.place)).map(|(number, _)| number).collect()
    }
}

pub(crate) fn start(world: &World, seed: u64) {
    let mut rng = Rng::new(seed ^ 0x70b1c);
    let mut recreated = vec![ORDERS, NOTES];
    recreated.truncate(rng.below(3) as usize);
    if rng.below(2) == 0 {
        recreated.reverse();
    }
    world.executor.spawn(WORLD, Box::pin(world.broker.clone().trouble(recreated)));
    world.spawn(produce(world.clone(), Rng::new(rng.next_u64())));
    world.spawn(operate(world.clone(), Rng::new(rng.next_u64())));
    if rng.below(CHURNED) == 0 {
        world.spawn(churn_cluster(world.clone(), Rng::new(rng.next_u64())));
    }
    // It has no end, and keeps nobody.
    world.executor.spawn(WORLD, Box::pin(discard(world.clone(), Rng::new(rng.next_u64()))));
}

// The producer.

async fn produce(world: World, mut rng: Rng) {
    for topic in [ORDERS, NOTES] {
        // At times a topic comes later than who reads it.
        if rng.below(3) == 0 {
            world.sleep_ms(rng.below(1_500)).await;
        }
        world.broker.create_topic(topic);
    }
    for _ in 0..world.scenario.records {
        produce_one(&world, &mut rng).await;
    }
    while !world.model().topics.operator_is_done {
        world.sleep_ms(100).await;
    }
    for _ in 0..LAST_RECORDS {
        produce_one(&world, &mut rng).await;
    }
}

async fn produce_one(world: &World, rng: &mut Rng) {
    // In bursts.
    if rng.below(5) == 0 {
        world.sleep_ms(rng.below(800)).await;
    }
    let topic = if rng.below(3) == 0 { NOTES } else { ORDERS };
    let key = KEYS[rng.below(3) as usize];
    // Mostly as a producer hashes keys, so that a key has one order.
    let partition = if rng.below(4) == 0 { rng.below(64) } else { u64::from(key.as_bytes()[1]) };
    let (key, bytes) = match rng.below(9) {
        0 => (None, None),
        1 => (None, Some(Bytes::from_static(b"\xff\xfe"))),
        _ => (Some(key), Some(Bytes::from_static(key.as_bytes()))),
    };
    loop {
        let number = world.model().topics.produced.len();
        if let Some(place) = world.broker.produce(topic, partition, bytes.clone(), Bytes::from(number.to_string())) {
            return world.model().topics.produced.push(Produced { topic, place, key });
        }
        world.sleep_ms(20).await;
    }
}

// The operator.

async fn operate(world: World, mut rng: Rng) {
    world.sleep_ms(rng.below(600)).await;
    let orders = subscribe(&world, ORDERS, "Ledger/add", &[("auto.offset.reset", "earliest")]).await;
    world.model().topics.orders = Some(orders);

    world.sleep_ms(rng.below(2_000)).await;
    let notes = subscribe(&world, NOTES, "Relay/relay", &[]).await;
    {
        let topics = &mut world.model().topics;
        topics.notes = Some(notes);
        topics.notes_from = Some(topics.produced.len());
    }
    world.broker.expire(NOTES);

    world.sleep_ms(rng.below(2_000)).await;
    world.model().topics.copy_starts = world.broker.commit_outside(COPY_GROUP, ORDERS);
    const COPY: &[(&str, &str)] = &[("group.id", COPY_GROUP), ("auto.offset.reset", "earliest")];
    let copy = subscribe(&world, ORDERS, "Mirror/add", COPY).await;
    world.model().topics.copy = Some(copy);
    world.broker.expire(ORDERS);
    world.sleep_ms(rng.below(3_000)).await;
    unsubscribe(&world, copy).await;
    if rng.below(3) != 0 {
        subscribe(&world, ORDERS, "Mirror/add", COPY).await;
        world.model().topics.is_copy_followed = true;
    } else {
        let until = world.model().topics.produced.len();
        world.model().topics.copy_until = Some(until);
        world.broker.forget_group(COPY_GROUP);
    }
    world.model().topics.operator_is_done = true;
}

/// Changes the cluster under its subscriptions, deletes it, and registers it again: they stop, and go on where they were.
async fn churn_cluster(world: World, mut rng: Rng) {
    world.sleep_ms(rng.below(4_000)).await;
    // They begin again with another property, or nobody has registered it yet.
    let rack = BTreeMap::from([("bootstrap.servers", "broker:9092"), ("client.rack", "r1")]);
    let rack = rack.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let _ = world.ask(|open| async move { open.admin.update_cluster(CLUSTER, rack).await.map(drop) }).await;
    world.sleep_ms(rng.below(2_000)).await;
    loop {
        let asked = world.ask(|open| async move { open.admin.delete_cluster(CLUSTER, true).await });
        // Not found: an answer was lost, or nobody has registered it yet.
        match asked.await {
            Some(Ok(()) | Err(surefoot_admin::Error::ClusterNotFound(_))) => break,
            _ => world.sleep_ms(20).await,
        }
    }
    world.sleep_ms(rng.below(2_000)).await;
    loop {
        let properties = BTreeMap::from([("bootstrap.servers".to_owned(), "broker:9092".to_owned())]);
        let cluster = NewCluster { name: CLUSTER.to_owned(), properties };
        let asked = world.ask(|open| async move { open.admin.create_cluster(cluster).await.map(drop) });
        match asked.await {
            Some(Ok(()) | Err(surefoot_admin::Error::ClusterExists(_))) => return,
            Some(Err(error)) if !is_passing(&error) => {
                return world.finding(format!("the cluster is not registered again: {error}"));
            }
            _ => world.sleep_ms(20).await,
        }
    }
}

/// Discards what is parked now and then, so that subscriptions go on.
async fn discard(world: World, mut rng: Rng) {
    // Its looks would wake what is to wake by itself at the end.
    while !world.model().topics.has_arrived {
        world.sleep_ms(rng.below(1_000)).await;
        let asked = world.ask(|open| async move { open.partitions.catalog().load().subscriptions.keys().copied().collect() });
        let all: Vec<SubscriptionId> = asked.await.unwrap_or_default();
        for id in all {
            discard_of(&world, id).await;
        }
    }
}

async fn discard_of(world: &World, id: SubscriptionId) {
    // Until the operator knows what it is called, nobody could tell what was discarded.
    let Some(orders) = world.model().topics.orders else { return };
    let asked = world.ask(move |open| async move { open.partitions.parked(id, None, LIST_MAX).await.ok() });
    let Some(page) = asked.await.flatten() else { return };
    // What a partition that stopped holds is not counted until it is repaired.
    if page.parked.len() as u64 > PARKED_MAX && !world.scenario.repairs {
        return world.finding(format!("{} are parked, more than may be", page.parked.len()));
    }
    let mut places = BTreeSet::new();
    for info in page.parked {
        let (parked, number) = (Parked::of(&info), info.number);
        let place = parked.place;
        if !places.insert(place) {
            return world.finding(format!("{place:?} was parked twice (rule K6)"));
        }
        if world.model().topics.discarded.get(&place).is_some_and(|(_, is_answered)| *is_answered) && id == orders {
            return world.finding(format!("{place:?} was parked again after it was discarded (rule K6)"));
        }
        let is_orders = id == orders;
        if is_orders {
            world.model().topics.discarded.insert(place, (parked.number, false));
        }
        let asked = world.ask(move |open| async move { open.admin.discard_parked(id, number).await });
        // One without an answer may be gone or not.
        if let Some(Ok(())) = asked.await
            && is_orders
        {
            world.model().topics.discarded.insert(place, (parked.number, true));
        }
    }
}

/// Subscribes, and returns once the start offsets are stored. A request without an answer is looked after, not repeated.
async fn subscribe(world: &World, topic: &'static str, sink: &'static str, options: &'static [(&str, &str)]) -> SubscriptionId {
    loop {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let request = NewSubscription {
            source: format!("kafka://{CLUSTER}/{topic}"),
            sink: format!("service://{sink}"),
            options: Some(options),
        };
        let asked = world.ask(|open| async move {
            match subscribed(&open, topic, sink) {
                Some((id, is_resolved)) => Some((id, is_resolved)),
                None => {
                    let id = open.admin.subscribe(request).await.ok()?.id;
                    subscribed(&open, topic, sink).filter(|(found, _)| *found == id)
                }
            }
        });
        match asked.await.flatten() {
            Some((id, true)) => return id,
            // No broker has answered in time, or the node has gone.
            _ => world.sleep_ms(20).await,
        }
    }
}

/// The subscription as the catalog has it, and whether its start is stored.
fn subscribed(open: &Open, topic: &str, sink: &str) -> Option<(SubscriptionId, bool)> {
    let catalog = open.partitions.catalog().load();
    let mut all = catalog.subscriptions.values();
    let found = all.find(|s| *s.topic == *topic && format!("{}/{}", s.service, s.handler) == sink)?;
    Some((found.id, found.resolved))
}

/// Returns once it is gone, however many lives that takes.
async fn unsubscribe(world: &World, id: SubscriptionId) {
    loop {
        match world.ask(|open| async move { open.admin.unsubscribe(id, false).await }).await {
            Some(Ok(true) | Err(surefoot_admin::Error::SubscriptionNotFound(_))) => return,
            Some(Err(error)) if !is_passing(&error) => return world.finding(format!("unsubscribing failed: {error}")),
            _ => world.sleep_ms(20).await,
        }
    }
}

/// The node stops, and another one will answer.
fn is_passing(error: &surefoot_admin::Error) -> bool {
    error.status() == 503
}

// What must be true.

/// At the start of a life: whatever groups were told is stored (rule K5).
pub(crate) fn check_commits(world: &World, partitions: &Partitions) {
    let catalog = partitions.catalog().load();
    // One that is not resolved has read nothing yet; who was in its place before has told the group.
    for subscription in catalog.subscriptions.values().filter(|subscription| subscription.resolved) {
        for ((topic, partition), told) in world.broker.told(&subscription.options["group.id"]) {
            if topic != subscription.topic_id {
                continue;
            }
            let stream = StreamId { subscription: subscription.id, epoch: subscription.epoch, topic, partition };
            let stored = catalog.positions.get(&stream);
            // One that it has not seen yet: it starts where the group has come to (rule K10).
            if stored.is_none() && world.broker.has_committed(&subscription.options["group.id"], topic, partition, told) {
                continue;
            }
            if stored.is_none_or(|stored| *stored < told) {
                let topic = &*subscription.topic;
                world.finding(format!("{topic}/{partition}: the group was told {told}, stored is {stored:?}"));
            }
        }
    }
}

/// What a subscription has brought so far against what it has to.
struct Expected {
    /// All of these, sooner or later.
    must: BTreeSet<u64>,
    /// Nothing but these.
    may: BTreeSet<u64>,
}

impl Expected {
    /// `counts` says which Kafka records the subscription is for, and which of them it must not miss.
    fn of(
        world: &World,
        model: &Model,
        topic: &str,
        group: &str,
        counts: impl Fn(usize, &Produced) -> bool,
        is_owed: impl Fn(usize, bool) -> bool,
    ) -> Self {
        let (mut must, mut may) = (BTreeSet::new(), BTreeSet::new());
        let (present, told) = (world.broker.topic_id(topic), world.broker.told(group));
        for (number, record) in model.produced.iter().enumerate() {
            if record.topic != topic || !counts(number, record) {
                continue;
            }
            may.insert(number as u64);
            let Place { topic, partition, offset } = record.place;
            let is_committed = told.get(&(topic, partition)).is_some_and(|told| offset < *told);
            let is_ours = !world.broker.is_foreign(group, record.place);
            if is_owed(number, is_committed) && (Some(topic) == present || is_committed) && is_ours {
                must.insert(number as u64);
            }
        }
        Self { must, may }
    }

    /// What is missing. **Errors**: what is too much.
    fn compare(&self, what: &str, found: &BTreeSet<u64>) -> Result<Option<String>, String> {
        let extra: Vec<_> = found.difference(&self.may).collect();
        if !extra.is_empty() {
            return Err(format!("{what} took {extra:?}, which are not its own or came after its end"));
        }
        let missing: Vec<_> = self.must.difference(found).collect();
        Ok((!missing.is_empty()).then(|| format!("{what} never took {missing:?}, found {found:?}")))
    }
}

/// What has not arrived yet. **Errors**: what must not be.
pub(crate) fn missing(world: &World, state: &State) -> Result<Option<String>, String> {
    let (orders, notes, copy) = {
        let topics = &world.model().topics;
        (topics.orders, topics.notes, topics.copy)
    };
    let (Some(orders), Some(notes), Some(copy)) = (orders, notes, copy) else { return Err("not subscribed".to_owned()) };
    let strays = world.model().topics.numbers_of(&world.broker.strays());
    let parked = parked(world, orders, &strays)?;
    let left = all_parked(world, copy)?;
    if !left.is_empty() {
        return Ok(Some(format!("a deleted subscription still has parked {left:?}")));
    }
    let topics = &world.model().topics;
    let mut missing = Vec::new();
    let group = orders.to_string();
    for key in KEYS {
        let found = state.at("Ledger", key, &strays)?;
        in_order(topics, key, found, &strays)?;
        let expected = Expected::of(world, topics, ORDERS, &group, |_, record| record.key == Some(key), |_, _| true);
        missing.extend(expected.compare(&format!("Ledger/{key}"), &found.iter().copied().collect())?);

        let found = state.at("Mirror", key, &strays)?;
        in_order(topics, key, found, &strays)?;
        let is_from_its_time = |number: usize, record: &Produced| {
            let start = topics.copy_starts.get(&(record.place.topic, record.place.partition)).copied().unwrap_or(0);
            record.key == Some(key) && topics.copy_until.is_none_or(|until| number < until) && record.place.offset >= start
        };
        // Without one in its place, it owes what it told its group (rule K10).
        let is_owed = |_, is_committed| topics.is_copy_followed || is_committed;
        let expected = Expected::of(world, topics, ORDERS, COPY_GROUP, is_from_its_time, is_owed);
        missing.extend(expected.compare(&format!("Mirror/{key}"), &found.iter().copied().collect())?);
    }
    let expected = Expected::of(world, topics, ORDERS, &group, |_, record| record.key.is_none(), |_, _| true);
    missing.extend(expected.compare("parked", &parked)?);

    for (sink, name) in SINKS.into_iter().enumerate() {
        let found: BTreeSet<u64> = state.at("Sink", name, &strays)?.iter().copied().collect();
        let is_owed = |number, _| topics.notes_from.is_some_and(|from| number >= from);
        let expected = Expected::of(world, topics, NOTES, &notes.to_string(), |number, _| number % 2 == sink, is_owed);
        missing.extend(expected.compare(&format!("Relay to {name}"), &found)?);
    }
    Ok(missing.into_iter().next())
}

/// Per key, the order of each Kafka partition. What may come twice came early the first time.
fn in_order(topics: &Model, key: &str, found: &[u64], strays: &BTreeSet<u64>) -> Result<(), String> {
    let mut last: BTreeMap<(u128, i32), i64> = BTreeMap::new();
    for number in found.iter().filter(|number| !strays.contains(number)) {
        let Some(record) = topics.produced.get(*number as usize) else { return Err(format!("{number} was never produced")) };
        let Place { topic, partition, offset } = record.place;
        let before = last.insert((topic, partition), offset);
        if before.is_some_and(|before| before >= offset) {
            return Err(format!("key {key}: {number} out of order in {found:?}"));
        }
    }
    Ok(())
}

/// The numbers of the Kafka records that are parked. **Errors**: one is parked twice.
fn parked(world: &World, id: SubscriptionId, strays: &BTreeSet<u64>) -> Result<BTreeSet<u64>, String> {
    let present = all_parked(world, id)?;
    let topics = &world.model().topics;
    let is_gone = |place| topics.discarded.get(&place).is_some_and(|(_, is_answered)| *is_answered);
    if let Some(twice) = present.iter().find(|parked| is_gone(parked.place)) {
        return Err(format!("{twice:?} was parked again after it was discarded (rule K6)"));
    }
    let places: BTreeSet<Place> = present.iter().map(|parked| parked.place).collect();
    let gone = topics.discarded.iter().filter(|(place, _)| !places.contains(place)).map(|(_, (number, _))| *number);
    let mut parked = BTreeSet::new();
    for number in present.iter().map(|parked| parked.number).chain(gone) {
        if !parked.insert(number) && !strays.contains(&number) {
            return Err(format!("{number} was parked twice (rule K6)"));
        }
    }
    Ok(parked)
}

/// One parked Kafka record.
#[derive(Debug)]
struct Parked {
    /// As its subscription knows it.
    place: Place,
    number: u64,
}

impl Parked {
    fn of(info: &ParkedInfo) -> Self {
        let source = info.record.source;
        let place = Place { topic: source.stream.topic, partition: source.stream.partition, offset: source.offset };
        let number = String::from_utf8_lossy(&info.record.value).parse().expect("a producer writes numbers");
        Self { place, number }
    }
}

fn all_parked(world: &World, id: SubscriptionId) -> Result<Vec<Parked>, String> {
    let page =
        world.answer("listing what is parked", move |open| async move { open.partitions.parked(id, None, LIST_MAX).await })?;
    Ok(page.map_err(|stopped| stopped.to_string())?.parked.iter().map(Parked::of).collect())
}

// Probes, once all has arrived.

/// While one Kafka partition has no leader, one that begins to read its topic reads the others.
pub(crate) fn reads_around_a_leaderless(world: &World) -> Result<(), String> {
    let deadline = world.executor.now() + TAKEN_MAX;
    let (leaderless, count) = loop {
        match world.broker.take_leader(ORDERS) {
            Some(taken) => break taken,
            // It is being made again.
            None if world.executor.now() < deadline => world.run_for(TAKEN_LOOK),
            None => return Err("a topic is not made again".to_owned()),
        }
    };
    world.broker.restart_members(ORDERS);
    let partition = (0..count as u64).find(|partition| *partition as i32 != leaderless).expect("there are two");
    is_taken(world, partition, "another Kafka partition has no leader (rule K4)")?;
    world.broker.give_leaders();
    Ok(())
}

/// What comes while no deployment has its handler is taken once one has.
pub(crate) fn waits_for_its_handler(world: &World) -> Result<(), String> {
    world.answer("a revision that lacks a handler", |open| operators::register(open, REVISIONS + 1, Some("Ledger")))?;
    let place = produce_for_ledger(world, 0)?;
    // It is held by then: a rebalance would end that by itself, and none comes any more.
    world.run_for(HELD_AFTER);
    if State::read(world)?.has("Ledger", KEYS[0], place) {
        return Err("a Kafka record was taken for a handler that is not there (rule K6)".to_owned());
    }
    world.answer("a revision that has it again", |open| operators::register(open, REVISIONS + 2, None))?;
    arrives(world, place, TAKEN_MAX, "its handler is there again (rule K6)")
}

/// What comes while the disk is full is taken once there is room again, for which little is enough.
pub(crate) fn waits_for_room(world: &World) -> Result<(), String> {
    let deadline = world.executor.now() + DISK_MAX;
    // What the log gives back meanwhile is taken as well.
    while {
        world.set_disk_free(Some(0));
        !world.comes_to(FILL_AGAIN, |shortage| shortage == Some(Shortage::Disk))
    } {
        if world.executor.now() > deadline {
            return Err("the edges are open on a full disk (rule R2)".to_owned());
        }
    }
    let number = produce_for_ledger(world, 0)?;
    // It waits at the edges by then.
    world.run_for(HELD_AFTER);
    world.set_disk_free(Some(OPENS_WITH));
    let limit = world.opens_within();
    if !world.comes_to(limit, |shortage| shortage != Some(Shortage::Disk)) {
        return Err(format!("the edges are shut though {OPENS_WITH} bytes are free, for more than {limit:?} (rule R2)"));
    }
    world.set_disk_free(None);
    // Where checkpoints are slow and memory is small, it has to be written over and over for what is asked meanwhile.
    arrives(world, number, TAKEN_MAX.max(10 * limit), "there is room on the disk again (rule R2)")
}

fn is_taken(world: &World, partition: u64, why: &str) -> Result<(), String> {
    let number = produce_for_ledger(world, partition)?;
    arrives(world, number, TAKEN_MAX, why)
}

/// The number of a Kafka record that is new in a Kafka partition.
fn produce_for_ledger(world: &World, partition: u64) -> Result<u64, String> {
    let (topics, key) = (&mut world.model().topics, KEYS[0]);
    let number = topics.records();
    let (bytes, value) = (Bytes::from_static(key.as_bytes()), Bytes::from(number.to_string()));
    let place = world.broker.produce(ORDERS, partition, Some(bytes), value).ok_or("a Kafka partition takes nothing")?;
    topics.produced.push(Produced { topic: ORDERS, place, key: Some(key) });
    Ok(number)
}

fn arrives(world: &World, number: u64, limit: Duration, why: &str) -> Result<(), String> {
    let deadline = world.executor.now() + limit;
    while !State::read(world)?.has("Ledger", KEYS[0], number) {
        if world.executor.now() > deadline {
            return Err(format!("{number} is not taken within {limit:?}: {why}"));
        }
        world.run_for(TAKEN_LOOK);
        world.check()?;
    }
    Ok(())
}
