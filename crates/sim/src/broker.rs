//! A simulated Kafka: topics, groups, commits, and trouble from a seed.
//!
//! Owns: what brokers keep over the node's lives, who reads which Kafka partition, and what goes wrong there: spells without an
//! answer, members that come and go, others that read and commit in the same groups, commits that are lost, topics that are made again.
//! Does not own: the member's side of the seam (`member`), or what is produced. What a member has fetched and was not asked for is kept,
//! up to a bound, as its client does. Kafka records are fetched by the topic's id, as brokers do since fetches carry it. The client of a
//! member learns that of a topic made again when the member looks at it, or before, by itself: then it goes on in the new topic at the
//! old offset, as librdkafka does, and its member takes what it reads there for the old topic's.

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
/// Kafka records that a member fetches ahead of what it is asked for.
const FETCHED_MAX: usize = 6;

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
    /// Handed to a member that took them for Kafka records of a topic that had been deleted.
    strays: BTreeSet<Place>,
    findings: Vec<String>,
}

struct Topic {
    id: u128,
    partitions: Vec<KafkaPartition>,
    /// The newest Kafka partition is assigned already, but no broker answers with it yet.
    hides_newest: bool,
    /// It has no leader: nobody produces to it, reads it, or says where it begins and ends.
    leaderless: Option<i32>,
    /// What every group has read may go.
    expires: bool,
}

#[derive(Default)]
struct KafkaPartition {
    low: i64,
    high: i64,
    /// By offset; some offsets have none, as where a transaction ended.
    records: BTreeMap<i64, (Option<Bytes>, Bytes)>,
    /// When each of them came, in milliseconds.
    times: BTreeMap<i64, u64>,
}

#[derive(Default)]
struct Group {
    topic: String,
    /// The node's member, if it has one.
    member: Option<u64>,
    /// Kafka partitions that a member outside the node has.
    held: BTreeSet<i32>,
    /// Where that member reads on.
    reading: BTreeMap<(u128, i32), i64>,
    /// What the brokers answer with.
    committed: BTreeMap<(u128, i32), i64>,
    /// What the node has committed, where that was not lost.
    ours: BTreeMap<(u128, i32), i64>,
    /// Other programs read with it, and divide the work with the node. One that is not is named after its subscription: what others
    /// commit there is nothing to the node.
    is_shared: bool,
    /// What other programs have read and committed in a group that is shared.
    foreign: BTreeSet<Place>,
    /// What the group was told, lost or not.
    told: BTreeMap<(u128, i32), i64>,
    /// From where on its member took another topic's Kafka records for those of this topic.
    strayed: BTreeMap<(u128, i32), i64>,
    /// Nobody will read in it any more.
    is_forgotten: bool,
}

struct Member {
    group: String,
    topic: String,
    /// The topic's id as this member last heard it.
    known: u128,
    /// The one that its client asks for in fetches.
    fetches: u128,
    generation: u64,
    has_joined: bool,
    owned: BTreeMap<i32, Owned>,
    /// Revoked, and not let go of yet.
    revoking: BTreeSet<i32>,
    /// What it is to have once it has let go.
    target: BTreeSet<i32>,
    events: VecDeque<SourceEvent>,
    /// Fetched and not asked for yet.
    fetched: VecDeque<KafkaRecord>,
    /// Fetched under an assignment that is over.
    late: Vec<KafkaRecord>,
    /// It reads nothing any more, and tells its group how far its deleted subscription has read.
    is_closing: bool,
    /// What the group had committed when it asked, if nothing has made that old by its own doing.
    asked: Option<BTreeMap<(u128, i32), i64>>,
    /// Rises each time that it lets go of Kafka partitions.
    term: u64,
    wake: Arc<Notify>,
}

struct Owned {
    generation: u64,
    /// The next offset to fetch; absent until the member has said where it starts.
    next: Option<i64>,
    is_held: bool,
    /// Fetched while it is held.
    kept: VecDeque<KafkaRecord>,
    /// The end was told when it was here.
    told_end: i64,
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
            strays: BTreeSet::new(),
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
        let now_ms = self.executor.now_ms();
        let state = &mut *self.lock();
        if state.is_down {
            return None;
        }
        let skips = if state.rng.below(6) == 0 { 1 } else { 0 };
        let of = state.topics.get_mut(topic)?;
        let partition = choice as usize % of.partitions.len();
        if of.leaderless == Some(partition as i32) {
            return None;
        }
        let log = &mut of.partitions[partition];
        log.high += skips;
        let offset = log.high;
        log.records.insert(offset, (key, value));
        log.times.insert(offset, now_ms);
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
        let shared = state.groups.entry(group.to_owned()).or_default();
        shared.is_shared = true;
        let Some(of) = state.topics.get(topic) else { return BTreeMap::new() };
        let middles = (0..).zip(of.shown()).map(|(partition, log)| ((of.id, partition), (log.low + log.high) / 2));
        let committed: BTreeMap<_, _> = middles.collect();
        shared.committed = committed.clone();
        committed
    }

    /// Whether another program has read this Kafka record in a group that it shares with the node.
    pub(crate) fn is_foreign(&self, group: &str, place: Place) -> bool {
        self.lock().groups.get(group).is_some_and(|group| group.foreign.contains(&place))
    }

    /// Kafka records that a member took for those of a topic that had been deleted. They come again under their own topic.
    pub(crate) fn strays(&self) -> BTreeSet<Place> {
        self.lock().strays.clone()
    }

    /// One Kafka partition of the topic has no leader, after another one has been added where it was alone. Says which, and how many
    /// there are.
    pub(crate) fn take_leader(&self, topic: &str) -> Option<(i32, usize)> {
        let state = &mut *self.lock();
        let of = state.topics.get_mut(topic)?;
        if of.partitions.len() < 2 {
            of.partitions.push(KafkaPartition::default());
        }
        let last = of.partitions.len() - 1;
        of.leaderless = Some(last as i32);
        let count = of.partitions.len();
        state.rebalance_all();
        Some((last as i32, count))
    }

    /// All have leaders again.
    pub(crate) fn give_leaders(&self) {
        self.lock().heal();
    }

    /// Each member of a topic has to begin again.
    pub(crate) fn restart_members(&self, topic: &str) {
        let lost = || SourceEvent::Failed(SourceError::new(ErrorKind::OffsetLost, "the offset is out of range"));
        self.lock().members.values_mut().filter(|member| member.topic == topic).for_each(|member| member.tell(lost()));
    }

    /// The last position that a group was told for each topic id and Kafka partition, as far as it tells of that topic.
    pub(crate) fn told(&self, group: &str) -> BTreeMap<(u128, i32), i64> {
        let state = self.lock();
        let Some(group) = state.groups.get(group) else { return BTreeMap::new() };
        let of_topic = |place: &(u128, i32), told: i64| group.strayed.get(place).map_or(told, |strayed| told.min(*strayed));
        group.told.iter().map(|(place, told)| (*place, of_topic(place, *told))).collect()
    }

    /// Whether brokers answer with this position of a group, or a later one.
    pub(crate) fn has_committed(&self, group: &str, topic: u128, partition: i32, position: i64) -> bool {
        let state = self.lock();
        let committed = state.groups.get(group).and_then(|group| group.committed.get(&(topic, partition)));
        committed.is_some_and(|committed| *committed >= position)
    }

    /// Nobody is interested in a group any more: what it has not read may go.
    pub(crate) fn forget_group(&self, group: &str) {
        if let Some(group) = self.lock().groups.get_mut(group) {
            group.is_forgotten = true;
        }
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
                (Duration::from_millis(20 + rng.below(600)), rng.below(15))
            };
            self.executor.sleep(pause).await;
            match what {
                0 => self.silence().await,
                1 | 2 => self.lock().outsider(),
                3 => self.lock().rebalance_all(),
                4 => self.lock().hiccup(),
                5 => self.grow().await,
                6 | 7 => self.lock().delete_old(),
                8 => self.lock().change_leaders(),
                9..12 => self.lock().outsiders_read(),
                12 => self.lock().meddle(),
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
        let learns = {
            let state = &mut *self.lock();
            if gone.is_none() {
                return;
            }
            state.create_topic(name);
            state.tell_of(name, ErrorKind::OffsetLost, "the offset is out of range");
            if state.rng.below(2) == 0 {
                state.rebalance_all();
            }
            (state.rng.below(2) == 0).then(|| Duration::from_millis(state.rng.below(1_500)))
        };
        if let Some(learns) = learns {
            self.executor.sleep(learns).await;
            self.lock().learn(name);
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
            fetches: 0,
            // It rises from there; nothing else is promised.
            generation: state.rng.below(1_000),
            has_joined: false,
            owned: BTreeMap::new(),
            revoking: BTreeSet::new(),
            target: BTreeSet::new(),
            events: VecDeque::new(),
            fetched: VecDeque::new(),
            late: Vec::new(),
            is_closing: false,
            asked: None,
            term: 0,
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
        (member.known, member.fetches) = (topic.id, topic.id);
        let mut info = TopicInfo { id: topic.id, ..TopicInfo::default() };
        for (partition, log) in (0..).zip(topic.shown()) {
            if topic.leaderless == Some(partition) {
                info.unknown.push((partition, SourceError::new(ErrorKind::Unavailable, "it has no leader")));
            } else {
                info.partitions.push(PartitionOffsets { partition, low: log.low, high: log.high });
            }
        }
        member.wake.notify_one();
        Ok(info)
    }

    pub(crate) fn committed(&self, id: u64, partitions: &[i32]) -> Vec<(i32, i64)> {
        let state = &mut *self.lock();
        let Some(member) = state.members.get_mut(&id) else { return Vec::new() };
        let Some(group) = state.groups.get(&member.group) else { return Vec::new() };
        member.asked = Some(group.committed.clone());
        let committed = |partition: &i32| group.committed.get(&(member.known, *partition));
        partitions.iter().filter_map(|partition| Some((*partition, *committed(partition)?))).collect()
    }

    pub(crate) fn since(&self, id: u64, partitions: &[i32], timestamp_ms: u64) -> Vec<(i32, i64)> {
        let state = self.lock();
        let Some(topic) = state.members.get(&id).and_then(|member| state.topics.get(member.topic.as_str())) else {
            return Vec::new();
        };
        let first = |partition: &i32| {
            let log = topic.partitions.get(*partition as usize).filter(|_| topic.leaderless != Some(*partition))?;
            log.times.iter().find(|(_, at)| **at >= timestamp_ms).map(|(offset, _)| (*partition, *offset))
        };
        partitions.iter().filter_map(first).collect()
    }

    pub(crate) fn next(&self, id: u64, takes_records: bool) -> Next {
        let state = &mut *self.lock();
        let latency = match state.rng.below(8) {
            0 => state.rng.below(300),
            1 | 2 => state.rng.below(15),
            _ => 0,
        };
        // It fetches ahead, asked or not.
        state.fetch(id);
        let at_end = if takes_records { state.at_end(id) } else { None };
        let Some(member) = state.members.get_mut(&id) else { return Next::Nothing(Arc::default()) };
        match member.events.pop_front() {
            Some(event) => Next::Event(event),
            None if takes_records && !member.fetched.is_empty() => Next::Records(Duration::from_millis(latency)),
            None => at_end.map_or_else(|| Next::Nothing(member.wake.clone()), Next::Event),
        }
    }

    /// Some of what was fetched; absent if that is nothing any more, or something else has happened.
    pub(crate) fn take(&self, id: u64) -> Option<SourceEvent> {
        let state = &mut *self.lock();
        let count = 1 + state.rng.below(4) as usize;
        let member = state.members.get_mut(&id)?;
        if !member.events.is_empty() {
            return None;
        }
        let records: Vec<KafkaRecord> = member.fetched.drain(..count.min(member.fetched.len())).collect();
        (!records.is_empty()).then_some(SourceEvent::Records(records))
    }

    pub(crate) fn assign(&self, id: u64, generation: u64, starts: &[(i32, i64)]) {
        if let Some(member) = self.lock().members.get_mut(&id) {
            for (partition, start) in starts {
                if let Some(owned) = member.owned.get_mut(partition).filter(|owned| owned.generation == generation) {
                    owned.next = Some(*start);
                    owned.told_end = *start - 1;
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
            (member.asked, member.term) = (None, member.term + 1);
            member.fetched.retain(|record| !partitions.contains(&record.partition));
            if member.revoking.is_empty() {
                member.assign_target(&mut state.rng);
            }
        }
    }

    pub(crate) fn set_held(&self, id: u64, partitions: &[i32], is_held: bool) {
        if let Some(member) = self.lock().members.get_mut(&id) {
            for partition in partitions {
                if let Some(owned) = member.owned.get_mut(partition) {
                    owned.is_held = is_held;
                    if !is_held {
                        member.fetched.append(&mut owned.kept);
                    }
                }
            }
            member.wake.notify_one();
        }
    }

    pub(crate) fn term(&self, id: u64) -> u64 {
        self.lock().members.get(&id).map_or(0, |member| member.term)
    }

    /// As [`Self::commit`], and the brokers answer; who has let go of Kafka partitions since it was sent is refused, since it comes behind
    /// that. Only who ends a deleted subscription waits for an answer.
    pub(crate) fn commit_now(&self, id: u64, term: u64, positions: &[(i32, i64)]) -> Result<(), SourceError> {
        {
            let state = &mut *self.lock();
            if let Some(member) = state.members.get_mut(&id) {
                member.is_closing = true;
                if member.term != term {
                    return Err(SourceError::new(ErrorKind::Unavailable, "the generation is over"));
                }
            }
            if state.rng.below(6) == 0 {
                return Err(SourceError::new(ErrorKind::Unavailable, "the group is rebalancing"));
            }
            let group = state.members.get(&id).and_then(|member| state.groups.get(&member.group));
            if group.is_some_and(|group| group.member != Some(id) && !(group.member.is_none() && group.held.is_empty())) {
                return Err(SourceError::new(ErrorKind::Unavailable, "it is no member, and the group has some"));
            }
        }
        self.commit_as(id, positions, false);
        if let Some(member) = self.lock().members.get_mut(&id) {
            member.asked = None;
        }
        Ok(())
    }

    pub(crate) fn commit(&self, id: u64, positions: &[(i32, i64)]) {
        let is_lost = {
            let state = &mut *self.lock();
            state.is_down || state.rng.below(6) == 0
        };
        self.commit_as(id, positions, is_lost);
    }

    fn commit_as(&self, id: u64, positions: &[(i32, i64)], is_lost: bool) {
        let state = &mut *self.lock();
        let Some(member) = state.members.get(&id) else { return };
        let group = state.groups.entry(member.group.clone()).or_default();
        for (partition, position) in positions {
            let key = (member.known, *partition);
            let before = group.told.insert(key, *position);
            if before.is_some_and(|before| before > *position) {
                let finding =
                    format!("group {}: commit of {key:?} went from {before:?} back to {position} (rule K5)", member.group);
                state.findings.push(finding);
            }
            if !is_lost {
                let known = group.committed.insert(key, *position);
                // While it reads, a position is the subscription's and not the group's; in a group of its own others commit anything.
                if member.is_closing
                    && group.is_shared
                    && let Some(known) = known.filter(|known| known > position && !member.may_not_know(key, *known))
                {
                    let group = &member.group;
                    let finding =
                        format!("group {group}: the last commit of {key:?} went from {known} back to {position} (rule K10)");
                    state.findings.push(finding);
                }
                group.ours.insert(key, *position);
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
        self.topics.insert(
            name,
            Topic { id: 100 + self.topics_made, partitions, hides_newest: false, leaderless: None, expires: false },
        );
        self.members.values().for_each(|member| member.wake.notify_one());
    }

    fn heal(&mut self) {
        self.groups.values_mut().for_each(Group::let_go);
        self.topics.values_mut().for_each(|topic| {
            topic.hides_newest = false;
            topic.leaderless = None;
        });
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
            group.let_go();
        }
        self.rebalance(name);
    }

    /// Members outside the node read on from what their groups have come to, and commit that. None of their commits goes back.
    fn outsiders_read(&mut self) {
        for group in self.groups.values_mut() {
            let Some(topic) = self.topics.get(group.topic.as_str()).filter(|_| !self.is_down && !self.is_calm) else { continue };
            let member = group.member.and_then(|id| self.members.get(&id));
            for (partition, log) in (0..).zip(topic.shown()).filter(|(partition, _)| group.held.contains(partition)) {
                // It has it once the node has let go.
                if topic.leaderless == Some(partition) || member.is_some_and(|member| member.owned.contains_key(&partition)) {
                    continue;
                }
                let key = (topic.id, partition);
                let committed = group.committed.entry(key).or_insert(log.low);
                let reading = group.reading.entry(key).or_insert(*committed);
                let from = (*reading).max(log.low);
                *reading = log.high.min(from + 1 + self.rng.below(4).cast_signed()).max(from);
                *committed = (*committed).max(*reading);
                if group.is_shared {
                    let read = (from..*reading).map(|offset| Place { topic: topic.id, partition, offset });
                    group.foreign.extend(read);
                }
            }
        }
    }

    /// Somebody commits anything in a group that is named after a subscription: ahead of what was read, behind it, and for Kafka
    /// partitions that nobody reads yet.
    fn meddle(&mut self) {
        for group in self.groups.values_mut().filter(|group| !group.is_shared) {
            let Some(topic) = self.topics.get(group.topic.as_str()) else { continue };
            for (partition, log) in (0..).zip(&topic.partitions) {
                if self.rng.below(2) == 0 {
                    let position = log.low + self.rng.below((log.high - log.low).cast_unsigned() + 1).cast_signed();
                    group.committed.insert((topic.id, partition), position);
                }
            }
        }
    }

    /// The clients of a topic's members hear of its id, and their members do not.
    fn learn(&mut self, name: &str) {
        let Some(topic) = self.topics.get(name) else { return };
        for member in self.members.values_mut().filter(|member| member.topic == name) {
            member.fetches = topic.id;
            member.wake.notify_one();
        }
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
                let readers = self.groups.values().filter(|group| group.topic == *name && !group.is_forgotten);
                let read = readers.map(|group| group.ours.get(&(topic.id, partition)).copied().unwrap_or(0)).min();
                log.low = log.low.max(read.unwrap_or(0));
                log.records = log.records.split_off(&log.low);
                log.times = log.times.split_off(&log.low);
            }
        }
    }

    /// One Kafka partition of a topic loses its leader, or gets one again.
    fn change_leaders(&mut self) {
        let names: Vec<&'static str> = self.topics.keys().copied().collect();
        if names.is_empty() || self.is_calm {
            return;
        }
        let topic = self.topics.get_mut(names[self.rng.below(names.len() as u64) as usize]).expect("it was just listed");
        topic.leaderless = match topic.leaderless {
            Some(_) => None,
            None => Some(self.rng.below(topic.partitions.len() as u64) as i32),
        };
        self.members.values().for_each(|member| member.wake.notify_one());
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
            let is_known = |topic: &&Topic| topic.id == member.known && topic.id == member.fetches;
            let logs = topic.filter(is_known).map_or(&[][..], |topic| &topic.partitions);
            member.revoke(revoked, logs, &mut self.rng);
        }
    }

    /// A member fetches what there is, up to its bound.
    fn fetch(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let topic = self.topics.get(member.topic.as_str()).filter(|topic| topic.id == member.fetches && !self.is_down);
        let Some(topic) = topic else { return };
        let mut lost = None;
        for (partition, owned) in &mut member.owned {
            let Some(log) = topic.partitions.get(*partition as usize) else { continue };
            let Some(from) = owned.next.filter(|_| !member.revoking.contains(partition)) else { continue };
            if topic.leaderless == Some(*partition) {
                continue;
            }
            if from < log.low || from > log.high {
                owned.next = None;
                lost = Some(SourceError::new(ErrorKind::OffsetLost, "the offset is out of range"));
                continue;
            }
            let queue = if owned.is_held { &mut owned.kept } else { &mut member.fetched };
            let room = FETCHED_MAX.saturating_sub(queue.len());
            let count = room.min(1 + self.rng.below(4) as usize);
            for record in log.from(from, *partition, owned.generation).take(count) {
                owned.next = Some(record.offset + 1);
                if topic.id != member.known {
                    self.strays.insert(Place { topic: topic.id, partition: *partition, offset: record.offset });
                    if let Some(group) = self.groups.get_mut(&member.group) {
                        // Not the offset of the first that came: there may be none at the lowest of these.
                        let first = group.strayed.entry((member.known, *partition)).or_insert(from);
                        *first = from.min(*first);
                    }
                }
                queue.push_back(record);
            }
        }
        if let Some(error) = lost {
            member.tell(SourceEvent::Failed(error));
        }
    }

    /// A Kafka partition that has handed over all it has, if that was not told yet.
    fn at_end(&mut self, id: u64) -> Option<SourceEvent> {
        let member = self.members.get_mut(&id)?;
        let topic = self.topics.get(member.topic.as_str()).filter(|topic| topic.id == member.fetches && !self.is_down)?;
        if !member.fetched.is_empty() || !member.events.is_empty() {
            return None;
        }
        for (partition, owned) in &mut member.owned {
            let Some(log) = topic.partitions.get(*partition as usize) else { continue };
            let Some(next) = owned.next else { continue };
            let is_read = owned.kept.is_empty() && log.records.range(next..).next().is_none();
            if is_read && topic.leaderless != Some(*partition) && owned.told_end < log.high {
                owned.told_end = log.high;
                return Some(SourceEvent::AtEnd { generation: owned.generation, partition: *partition, offset: log.high });
            }
        }
        None
    }
}

impl Group {
    /// The member outside the node has left.
    fn let_go(&mut self) {
        self.held.clear();
        self.reading.clear();
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

impl Owned {
    fn new(generation: u64) -> Self {
        Self { generation, next: None, is_held: false, kept: VecDeque::new(), told_end: -1 }
    }
}

impl Member {
    /// Whether somebody else has committed that since it asked, of what is not its own: brokers do not compare before they commit.
    fn may_not_know(&self, key: (u128, i32), committed: i64) -> bool {
        let asked = self.asked.as_ref().filter(|_| !self.owned.contains_key(&key.1));
        asked.is_some_and(|asked| asked.get(&key).is_none_or(|asked| *asked < committed))
    }

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
        self.owned.extend(partitions.iter().map(|partition| (*partition, Owned::new(generation))));
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
        // What was fetched and not asked for is never handed out, or late.
        let (theirs, ours): (Vec<_>, Vec<_>) = self.fetched.drain(..).partition(|record| partitions.contains(&record.partition));
        self.fetched.extend(ours);
        if rng.below(2) == 0 {
            self.late.splice(0..0, theirs);
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
