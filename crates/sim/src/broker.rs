//! A simulated Kafka: topics, groups, commits, and trouble from a seed.
//!
//! Owns: what brokers keep over the node's lives, who reads which Kafka partition, and what goes wrong there: spells without an
//! answer, members that come and go, commits that are lost, topics that are made again. Does not own: the member's side of the
//! seam (`member`), or what is produced. Kafka records are fetched by the topic's id, as brokers do since fetches carry it: a member
//! reads nothing of a topic that was made again before it has looked at it.

use crate::executor::{Executor, WORLD};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surefoot_env::sim::Rng;
use surefoot_kafka::{ErrorKind, KafkaRecord, PartitionOffsets, SourceError, SourceEvent, TopicInfo};
use tokio::sync::Notify;

/// Kafka partitions that a topic grows to.
const PARTITIONS_MAX: usize = 4;

/// Every broker of the one simulated cluster. Clones are the same.
#[derive(Clone)]
pub(crate) struct Broker {
    pub(crate) executor: Executor,
    state: Arc<Mutex<State>>,
}

struct State {
    rng: Rng,
    topics: BTreeMap<&'static str, Topic>,
    groups: BTreeMap<String, Group>,
    members: BTreeMap<u64, Member>,
    is_down: bool,
    is_calm: bool,
    topics_made: u128,
    members_made: u64,
    findings: Vec<String>,
}

struct Topic {
    id: u128,
    partitions: Vec<KafkaPartition>,
    /// The newest Kafka partition is assigned already, but no broker answers with it yet.
    hides_newest: bool,
    /// What every group has read may go.
    expires: bool,
}

#[derive(Default)]
struct KafkaPartition {
    low: i64,
    high: i64,
    /// By offset; some offsets have none, as where a transaction ended.
    records: BTreeMap<i64, (Option<Bytes>, Bytes)>,
}

#[derive(Default)]
struct Group {
    topic: String,
    /// The node's member, if it has one.
    member: Option<u64>,
    /// Kafka partitions that a member outside the node has.
    held: BTreeSet<i32>,
    /// What the brokers answer with.
    committed: BTreeMap<(u128, i32), i64>,
    /// What the group was told, lost or not.
    told: BTreeMap<(u128, i32), i64>,
}

struct Member {
    group: String,
    topic: String,
    /// The topic's id as this member last heard it: fetches ask for it.
    known: u128,
    generation: u64,
    has_joined: bool,
    owned: BTreeMap<i32, Owned>,
    /// Revoked, and not let go of yet.
    revoking: BTreeSet<i32>,
    /// What it is to have once it has let go.
    target: BTreeSet<i32>,
    events: VecDeque<SourceEvent>,
    /// Fetched under an assignment that is over.
    late: Vec<KafkaRecord>,
    wake: Arc<Notify>,
}

struct Owned {
    generation: u64,
    /// The next offset to hand out; absent until the member has said where it starts.
    next: Option<i64>,
    is_paused: bool,
}

/// Where a Kafka record was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) topic: u128,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// What there is for a member.
pub(crate) enum Next {
    Event(SourceEvent),
    /// Kafka records, after this long.
    Records(Duration),
    Nothing(Arc<Notify>),
}

impl Broker {
    pub(crate) fn new(executor: Executor, seed: u64) -> Self {
        let state = State {
            rng: Rng::new(seed),
            topics: BTreeMap::new(),
            groups: BTreeMap::new(),
            members: BTreeMap::new(),
            is_down: false,
            is_calm: false,
            topics_made: 0,
            members_made: 0,
            findings: Vec::new(),
        };
        Self { executor, state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // For producers and checkers.

    pub(crate) fn create_topic(&self, name: &'static str) {
        self.lock().create_topic(name);
    }

    /// Puts a record at the end of one of the topic's Kafka partitions; `choice` picks it. Absent: not now.
    pub(crate) fn produce(&self, topic: &'static str, choice: u64, key: Option<Bytes>, value: Bytes) -> Option<Place> {
        let state = &mut *self.lock();
        if state.is_down {
            return None;
        }
        let skips = if state.rng.below(6) == 0 { 1 } else { 0 };
        let of = state.topics.get_mut(topic)?;
        let partition = choice as usize % of.partitions.len();
        let log = &mut of.partitions[partition];
        log.high += skips;
        let offset = log.high;
        log.records.insert(offset, (key, value));
        log.high += 1;
        let place = Place { topic: of.id, partition: partition as i32, offset };
        state.members.values().filter(|member| member.topic == topic).for_each(|member| member.wake.notify_one());
        Some(place)
    }

    /// The id of the topic that has this name now.
    pub(crate) fn topic_id(&self, topic: &str) -> Option<u128> {
        self.lock().topics.get(topic).map(|topic| topic.id)
    }

    /// From now on, what every group of a topic has read may be deleted.
    pub(crate) fn expire(&self, topic: &str) {
        if let Some(topic) = self.lock().topics.get_mut(topic) {
            topic.expires = true;
        }
    }

    /// Commits for a group, as another program would that read the topic before: the middle of each Kafka partition it knows.
    pub(crate) fn commit_outside(&self, group: &str, topic: &str) -> BTreeMap<(u128, i32), i64> {
        let state = &mut *self.lock();
        let Some(of) = state.topics.get(topic) else { return BTreeMap::new() };
        let middles = (0..).zip(of.shown()).map(|(partition, log)| ((of.id, partition), (log.low + log.high) / 2));
        let committed: BTreeMap<_, _> = middles.collect();
        state.groups.entry(group.to_owned()).or_default().committed = committed.clone();
        committed
    }

    /// The last position that a group was told for each topic id and Kafka partition.
    pub(crate) fn told(&self, group: &str) -> BTreeMap<(u128, i32), i64> {
        self.lock().groups.get(group).map(|group| group.told.clone()).unwrap_or_default()
    }

    /// Nobody is interested in a group any more.
    pub(crate) fn forget_group(&self, group: &str) {
        self.lock().groups.remove(group);
    }

    /// What a broker saw that must not be.
    pub(crate) fn findings(&self) -> Vec<String> {
        self.lock().findings.clone()
    }

    // Trouble.

    /// No more trouble: what is left can arrive.
    pub(crate) fn calm(&self) {
        let state = &mut *self.lock();
        state.is_calm = true;
        state.heal();
    }

    /// Makes trouble until it is told to be calm. `recreated` may be deleted and made again, once.
    pub(crate) async fn trouble(self, mut recreated: Vec<&'static str>) {
        while !self.lock().is_calm {
            let (pause, what) = {
                let rng = &mut self.lock().rng;
                (Duration::from_millis(20 + rng.below(600)), rng.below(10))
            };
            self.executor.sleep(pause).await;
            match what {
                0 => self.silence().await,
                1 | 2 => self.lock().outsider(),
                3 => self.lock().rebalance_all(),
                4 => self.lock().hiccup(),
                5 => self.grow().await,
                6 | 7 => self.lock().delete_old(),
                _ => {
                    let again = self.lock().rng.below(3);
                    if again == 0
                        && let Some(topic) = recreated.pop()
                    {
                        self.recreate(topic).await;
                    }
                }
            }
        }
        self.lock().heal();
    }

    async fn silence(&self) {
        let spell = {
            let state = &mut *self.lock();
            if state.is_calm {
                return;
            }
            state.is_down = true;
            let longest = if state.rng.below(6) == 0 { 7_000 } else { 900 };
            Duration::from_millis(state.rng.below(longest))
        };
        self.executor.sleep(spell).await;
        self.lock().answer_again();
    }

    /// One topic gets one more Kafka partition.
    async fn grow(&self) {
        let (name, hidden) = {
            let state = &mut *self.lock();
            let names: Vec<&'static str> = state.topics.keys().copied().collect();
            if names.is_empty() || state.is_calm {
                return;
            }
            let name = names[state.rng.below(names.len() as u64) as usize];
            let (hidden, is_hidden) = (Duration::from_millis(state.rng.below(1_500)), state.rng.below(2) == 0);
            let topic = state.topics.get_mut(name).expect("it was just listed");
            if topic.partitions.len() >= PARTITIONS_MAX {
                return;
            }
            topic.partitions.push(KafkaPartition::default());
            topic.hides_newest = is_hidden;
            state.rebalance_all();
            (name, hidden)
        };
        self.executor.sleep(hidden).await;
        if let Some(topic) = self.lock().topics.get_mut(name) {
            topic.hides_newest = false;
        }
    }

    async fn recreate(&self, name: &'static str) {
        let (gone, spell) = {
            let state = &mut *self.lock();
            if state.is_calm {
                return;
            }
            let gone = state.topics.remove(name);
            state.tell_of(name, ErrorKind::TopicMissing, "the topic does not exist");
            (gone, Duration::from_millis(state.rng.below(4_000)))
        };
        self.executor.sleep(spell).await;
        let state = &mut *self.lock();
        if gone.is_some() {
            state.create_topic(name);
            state.tell_of(name, ErrorKind::OffsetLost, "the offset is out of range");
            if state.rng.below(2) == 0 {
                state.rebalance_all();
            }
        }
    }

    // For members.

    pub(crate) fn open(&self, group: &str, topic: &str) -> u64 {
        let state = &mut *self.lock();
        state.members_made += 1;
        let id = state.members_made;
        let of = state.groups.entry(group.to_owned()).or_default();
        of.topic = topic.to_owned();
        let member = Member {
            group: group.to_owned(),
            topic: topic.to_owned(),
            known: 0,
            // It rises from there; nothing else is promised.
            generation: state.rng.below(1_000),
            has_joined: false,
            owned: BTreeMap::new(),
            revoking: BTreeSet::new(),
            target: BTreeSet::new(),
            events: VecDeque::new(),
            late: Vec::new(),
            wake: Arc::default(),
        };
        state.members.insert(id, member);
        id
    }

    /// Asks to be let into the group; it comes to that once the brokers answer.
    pub(crate) fn subscribe(&self, id: u64) {
        let (broker, first) = (self.clone(), self.latency());
        self.executor.spawn(
            WORLD,
            Box::pin(async move {
                broker.executor.sleep(first).await;
                while broker.lock().is_down {
                    let next = broker.latency();
                    broker.executor.sleep(next + Duration::from_millis(50)).await;
                }
                broker.lock().join(id);
            }),
        );
    }

    /// How long the next answer takes.
    pub(crate) fn latency(&self) -> Duration {
        let rng = &mut self.lock().rng;
        Duration::from_millis(if rng.below(10) == 0 { rng.below(400) } else { rng.below(10) })
    }

    pub(crate) fn is_down(&self) -> bool {
        self.lock().is_down
    }

    pub(crate) fn describe(&self, id: u64) -> Result<TopicInfo, SourceError> {
        let state = &mut *self.lock();
        let missing = || SourceError::new(ErrorKind::TopicMissing, "the topic does not exist");
        let member = state.members.get_mut(&id).ok_or_else(missing)?;
        let topic = state.topics.get(member.topic.as_str()).ok_or_else(missing)?;
        member.known = topic.id;
        let partitions = (0..).zip(topic.shown());
        let partitions = partitions.map(|(partition, log)| PartitionOffsets { partition, low: log.low, high: log.high });
        member.wake.notify_one();
        Ok(TopicInfo { id: topic.id, partitions: partitions.collect() })
    }

    pub(crate) fn committed(&self, id: u64, partitions: &[i32]) -> Vec<(i32, i64)> {
        let state = self.lock();
        let Some(member) = state.members.get(&id) else { return Vec::new() };
        let Some(group) = state.groups.get(&member.group) else { return Vec::new() };
        let committed = |partition: &i32| group.committed.get(&(member.known, *partition));
        partitions.iter().filter_map(|partition| Some((*partition, *committed(partition)?))).collect()
    }

    pub(crate) fn next(&self, id: u64) -> Next {
        let state = &mut *self.lock();
        let latency = match state.rng.below(8) {
            0 => state.rng.below(300),
            1 | 2 => state.rng.below(15),
            _ => 0,
        };
        let has_records = !state.fetchable(id).is_empty();
        let Some(member) = state.members.get_mut(&id) else { return Next::Nothing(Arc::default()) };
        match member.events.pop_front() {
            Some(event) => Next::Event(event),
            None if has_records => Next::Records(Duration::from_millis(latency)),
            None => Next::Nothing(member.wake.clone()),
        }
    }

    /// Some of what there is to read now; absent if that is nothing any more, or something else has happened.
    pub(crate) fn fetch(&self, id: u64) -> Option<SourceEvent> {
        let state = &mut *self.lock();
        let fetchable = state.fetchable(id);
        let (rng, topics) = (&mut state.rng, &state.topics);
        let member = state.members.get_mut(&id)?;
        if !member.events.is_empty() {
            return None;
        }
        let topic = topics.get(member.topic.as_str())?;
        let mut records = Vec::new();
        for partition in fetchable {
            let log = &topic.partitions[partition as usize];
            let owned = member.owned.get_mut(&partition)?;
            let from = owned.next?;
            if from < log.low {
                owned.next = None;
                return Some(SourceEvent::Failed(SourceError::new(ErrorKind::OffsetLost, "the offset is out of range")));
            }
            let count = 1 + rng.below(4) as usize;
            for record in log.from(from, partition, owned.generation).take(count) {
                owned.next = Some(record.offset + 1);
                records.push(record);
            }
            if rng.below(2) == 0 && !records.is_empty() {
                break;
            }
        }
        (!records.is_empty()).then_some(SourceEvent::Records(records))
    }

    pub(crate) fn assign(&self, id: u64, generation: u64, starts: &[(i32, i64)]) {
        if let Some(member) = self.lock().members.get_mut(&id) {
            for (partition, start) in starts {
                if let Some(owned) = member.owned.get_mut(partition).filter(|owned| owned.generation == generation) {
                    owned.next = Some(*start);
                }
            }
            member.wake.notify_one();
        }
    }

    pub(crate) fn release(&self, id: u64, partitions: &[i32]) {
        let state = &mut *self.lock();
        if let Some(member) = state.members.get_mut(&id) {
            for partition in partitions {
                member.revoking.remove(partition);
                member.owned.remove(partition);
            }
            if member.revoking.is_empty() {
                member.assign_target(&mut state.rng);
            }
        }
    }

    pub(crate) fn set_paused(&self, id: u64, partitions: &[i32], is_paused: bool) {
        if let Some(member) = self.lock().members.get_mut(&id) {
            for partition in partitions {
                if let Some(owned) = member.owned.get_mut(partition) {
                    owned.is_paused = is_paused;
                }
            }
            member.wake.notify_one();
        }
    }

    pub(crate) fn commit(&self, id: u64, positions: &[(i32, i64)]) {
        let state = &mut *self.lock();
        let Some(member) = state.members.get(&id) else { return };
        let is_lost = state.is_down || state.rng.below(6) == 0;
        let group = state.groups.entry(member.group.clone()).or_default();
        for (partition, position) in positions {
            let key = (member.known, *partition);
            let before = group.told.insert(key, *position);
            if before.is_some_and(|before| before > *position) {
                let finding = format!("group {}: commit of {key:?} went from {before:?} back to {position}", member.group);
                state.findings.push(finding);
            }
            if !is_lost {
                group.committed.insert(key, *position);
            }
        }
    }

    /// The member is gone: it left, or its process died.
    pub(crate) fn leave(&self, id: u64) {
        let state = &mut *self.lock();
        if let Some(member) = state.members.remove(&id)
            && let Some(group) = state.groups.get_mut(&member.group).filter(|group| group.member == Some(id))
        {
            group.member = None;
        }
    }
}

impl State {
    fn create_topic(&mut self, name: &'static str) {
        self.topics_made += 1;
        let partitions = 1 + self.rng.below(3);
        let partitions = (0..partitions).map(|_| KafkaPartition::default()).collect();
        self.topics.insert(name, Topic { id: 100 + self.topics_made, partitions, hides_newest: false, expires: false });
        self.members.values().for_each(|member| member.wake.notify_one());
    }

    fn heal(&mut self) {
        self.groups.values_mut().for_each(|group| group.held.clear());
        self.topics.values_mut().for_each(|topic| topic.hides_newest = false);
        self.answer_again();
        self.rebalance_all();
    }

    fn answer_again(&mut self) {
        self.is_down = false;
        self.members.values().for_each(|member| member.wake.notify_one());
    }

    /// Somebody outside the node joins a group and takes some of its Kafka partitions, or leaves.
    fn outsider(&mut self) {
        let names: Vec<String> = self.groups.keys().cloned().collect();
        if names.is_empty() || self.is_calm {
            return;
        }
        let name = &names[self.rng.below(names.len() as u64) as usize];
        let mask = self.rng.below(1 << PARTITIONS_MAX);
        let group = self.groups.get_mut(name).expect("it was just listed");
        if group.held.is_empty() {
            group.held = (0..PARTITIONS_MAX as i32).filter(|partition| mask >> partition & 1 == 1).collect();
        } else {
            group.held.clear();
        }
        self.rebalance(name);
    }

    /// A member hears of an error that passes by itself.
    fn hiccup(&mut self) {
        for member in self.members.values_mut() {
            member.tell(SourceEvent::Failed(SourceError::new(ErrorKind::Unavailable, "the connection was closed")));
        }
    }

    /// Members of a topic hear of an error at once, or find out by themselves.
    fn tell_of(&mut self, topic: &str, kind: ErrorKind, message: &str) {
        for member in self.members.values_mut().filter(|member| member.topic == topic) {
            if self.rng.below(3) == 0 {
                member.tell(SourceEvent::Failed(SourceError::new(kind, message)));
            }
        }
    }

    /// Deletes what every group has read, where nobody misses it.
    fn delete_old(&mut self) {
        for (name, topic) in self.topics.iter_mut().filter(|(_, topic)| topic.expires) {
            for (partition, log) in (0..).zip(&mut topic.partitions) {
                let readers = self.groups.values().filter(|group| group.topic == *name);
                let read = readers.map(|group| group.committed.get(&(topic.id, partition)).copied().unwrap_or(0)).min();
                log.low = log.low.max(read.unwrap_or(0));
                log.records = log.records.split_off(&log.low);
            }
        }
    }

    fn join(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.has_joined = true;
        let name = member.group.clone();
        let Some(group) = self.groups.get_mut(&name) else { return };
        // It has the instance id of the one before, and takes its place.
        let before = group.member.replace(id);
        if let Some(before) = before.and_then(|before| self.members.get_mut(&before)) {
            before.tell(SourceEvent::Failed(SourceError::new(ErrorKind::Refused, "fenced by a newer member")));
        }
        self.rebalance(&name);
        let member = self.members.get_mut(&id).expect("it was just there");
        if member.owned.is_empty() {
            member.generation += 1;
            member.tell(SourceEvent::Assigned { generation: member.generation, partitions: Vec::new() });
        }
    }

    fn rebalance_all(&mut self) {
        let names: Vec<String> = self.groups.keys().cloned().collect();
        names.iter().for_each(|name| self.rebalance(name));
    }

    /// Decides anew which Kafka partitions the node's member of a group has: all that no outsider has.
    fn rebalance(&mut self, name: &str) {
        let Some(group) = self.groups.get(name) else { return };
        let Some(member) = group.member.and_then(|id| self.members.get_mut(&id)) else { return };
        let topic = self.topics.get(group.topic.as_str());
        let count = topic.map_or(0, |topic| topic.partitions.len() as i32);
        member.target = (0..count).filter(|partition| !group.held.contains(partition)).collect();
        if !member.revoking.is_empty() {
            return; // the rest follows once it has let go
        }
        let owned: BTreeSet<i32> = member.owned.keys().copied().collect();
        let is_eager = self.rng.below(2) == 0;
        let revoked: BTreeSet<i32> = if is_eager { owned } else { owned.difference(&member.target).copied().collect() };
        if revoked.is_empty() {
            member.assign_target(&mut self.rng);
        } else {
            let logs = topic.filter(|topic| topic.id == member.known).map_or(&[][..], |topic| &topic.partitions);
            member.revoke(revoked, logs, &mut self.rng);
        }
    }

    /// Kafka partitions of which a member could be given something now.
    fn fetchable(&self, id: u64) -> Vec<i32> {
        let Some(member) = self.members.get(&id) else { return Vec::new() };
        let topic = self.topics.get(member.topic.as_str()).filter(|topic| topic.id == member.known && !self.is_down);
        let Some(topic) = topic else { return Vec::new() };
        let has_more = |partition: &i32, owned: &Owned| {
            let log = topic.partitions.get(*partition as usize);
            let from = owned.next.filter(|_| !owned.is_paused && !member.revoking.contains(partition));
            from.is_some_and(|from| log.is_some_and(|log| from < log.low || log.records.range(from..).next().is_some()))
        };
        member.owned.iter().filter(|(partition, owned)| has_more(partition, owned)).map(|(partition, _)| *partition).collect()
    }
}

impl Topic {
    /// The Kafka partitions that brokers answer with.
    fn shown(&self) -> &[KafkaPartition] {
        &self.partitions[..self.partitions.len() - usize::from(self.hides_newest && self.partitions.len() > 1)]
    }
}

impl KafkaPartition {
    fn from(&self, offset: i64, partition: i32, generation: u64) -> impl Iterator<Item = KafkaRecord> {
        self.records.range(offset..).map(move |(offset, (key, value))| KafkaRecord {
            generation,
            partition,
            offset: *offset,
            timestamp_ms: None,
            key: key.clone(),
            value: Some(value.clone()),
            headers: Vec::new(),
        })
    }
}

impl Member {
    fn tell(&mut self, event: SourceEvent) {
        self.events.push_back(event);
        self.wake.notify_one();
    }

    /// Gives it what it is to have and has not yet, under a new number.
    fn assign_target(&mut self, rng: &mut Rng) {
        let partitions: Vec<i32> = self.target.iter().filter(|partition| !self.owned.contains_key(partition)).copied().collect();
        if partitions.is_empty() {
            return;
        }
        self.generation += 1 + rng.below(3);
        let generation = self.generation;
        self.owned.extend(partitions.iter().map(|partition| (*partition, Owned { generation, next: None, is_paused: false })));
        self.tell(SourceEvent::Assigned { generation, partitions });
        self.hand_out_late();
    }

    /// Asks for Kafka partitions back. What was fetched for them may be on its way, or be dropped, the first of it before the rest.
    fn revoke(&mut self, partitions: BTreeSet<i32>, logs: &[KafkaPartition], rng: &mut Rng) {
        let owned = partitions.iter().filter_map(|partition| self.owned.get(partition));
        let generation = owned.map(|owned| owned.generation).max().unwrap_or(self.generation);
        for partition in &partitions {
            let (dropped, count) = (rng.below(3) as usize, rng.below(4) as usize);
            if let Some(log) = logs.get(*partition as usize)
                && let Some(owned) = self.owned.get(partition)
                && let Some(from) = owned.next
            {
                self.late.extend(log.from(from, *partition, owned.generation).skip(dropped).take(count));
            }
        }
        self.revoking = partitions.clone();
        self.tell(SourceEvent::Revoked { generation, partitions: partitions.into_iter().collect() });
        if rng.below(2) == 0 {
            self.hand_out_late();
        }
    }

    fn hand_out_late(&mut self) {
        let late = std::mem::take(&mut self.late);
        if !late.is_empty() {
            self.tell(SourceEvent::Records(late));
        }
    }
}
