//! One member of the group while it reads: assignments, records, positions, parking, back-pressure.
//!
//! Owns: the order of appends per stream (K2), positions that follow what is applied and commits that follow positions (K5), the
//! bounds on what waits and what is parked (K6), and the refusal of a revoked assignment's records (K7). Does not own: where reading
//! starts (`opening`), what a record becomes (`record`), how a deleted subscription ends (`closing`), or what happens after an error
//! (`subscription`).
//!
//! What may not be taken now stays with the source, which is asked for Kafka records only while there is room. That is decided anew
//! in each round from what is there, so that no rebalance has anything to remember or to forget.

use crate::admission::ParkedTotal;
use crate::backoff::Backoff;
use crate::lane::{Lane, STANDS_MAX, STANDS_TOLD};
use crate::latch::Latch;
use crate::opening;
use crate::position::Pending;
use crate::record::{Mapped, Mapping, Reason};
use crate::source::{ErrorKind, KafkaRecord, PartitionOffsets, RecordSource, SourceError, SourceEvent, TopicInfo};
use crate::sources::Mutant;
use crate::status::lock;
use crate::subscription::{End, Leave, Opened, Task};
use metrics::{counter, gauge};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use surefoot_env::BoxFuture;
use surefoot_model::catalog::{CatalogEvent, Subscription};
use surefoot_model::{Event, StreamId};
use surefoot_partition::Stopped;

/// How often positions that moved are stored, and committed to the group.
const TICK: Duration = Duration::from_secs(1);
/// The topic is looked at every so many ticks: its id, its ends, and whether a broker answers.
const LOOK_TICKS: u64 = 3;
/// How often streams that are full are looked at.
const FULL_INTERVAL: Duration = Duration::from_millis(50);
/// How often a reason for parking is logged.
const PARKED_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// The longest that waiting for what was appended, and storing positions, may hold up a stop or a rebalance.
pub(crate) const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// While it is waited for, what was appended is looked at this often.
const SETTLE_INTERVAL: Duration = Duration::from_millis(10);

/// Kafka partitions and their positions.
pub(crate) type Positions = Vec<(i32, i64)>;

/// How far a topic has been read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) topic_id: u128,
    pub(crate) epoch: u32,
    /// Where reading goes on.
    pub(crate) positions: Positions,
}

pub(crate) struct Session<'a> {
    task: &'a Task,
    source: &'a mut dyn RecordSource,
    subscription: Subscription,
    lanes: BTreeMap<i32, Lane>,
    /// Kafka partitions with Kafka records to append, in turn. Each once.
    turn: VecDeque<i32>,
    /// Kafka records that wait for room at the edge, and their bytes; those of full lanes are not counted.
    waiting: (usize, usize),
    queue_bytes_max: usize,
    /// The one append that waits for room.
    append: Option<Append>,
    /// The group has answered: this member is one of it.
    has_joined: bool,
    /// Assigned, and not read yet, since no broker says where they begin and end.
    unknown: BTreeSet<i32>,
    /// The last look at the topic brought an answer.
    has_looked: bool,
    parked: ParkedTotal,
    hold: Option<Hold>,
    parked_log: BTreeMap<Reason, ParkedLog>,
    storing: Option<BoxFuture<Result<Positions, Stopped>>>,
    looking: Option<BoxFuture<Result<TopicInfo, SourceError>>>,
    counting: Option<BoxFuture<Result<ParkedTotal, Stopped>>>,
    /// Set while a lane is full.
    full_look: Option<BoxFuture>,
}

/// Why the subscription takes nothing, though there is room at the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// As many Kafka records are parked as may be, and the next one would be one more.
    Parked,
    /// No deployment has its handler.
    Handler,
    /// Against rule K6: nothing ends it.
    ForEver,
}

struct Append {
    partition: i32,
    offset: i64,
    done: BoxFuture<Result<(), Stopped>>,
}

struct ParkedLog {
    last: Duration,
    silent: u64,
}

/// What woke the session.
enum Step {
    Leave(Leave),
    Appended(Result<(), Stopped>),
    Stored(Result<Positions, Stopped>),
    Looked(Result<TopicInfo, SourceError>),
    Counted(Result<ParkedTotal, Stopped>),
    /// The catalog has changed.
    Changed,
    Full,
    Tick,
    Event(SourceEvent),
}

impl<'a> Session<'a> {
    pub(crate) fn new(task: &'a Task, source: &'a mut dyn RecordSource, opened: Opened, queue_bytes_max: usize) -> Self {
        let mut session = Self {
            task,
            source,
            subscription: opened.plan.subscription,
            lanes: BTreeMap::new(),
            turn: VecDeque::new(),
            waiting: (0, 0),
            queue_bytes_max: queue_bytes_max.min(task.settings.bounds.queue_bytes),
            append: None,
            has_joined: false,
            unknown: BTreeSet::new(),
            has_looked: true,
            parked: opened.parked,
            hold: None,
            parked_log: BTreeMap::new(),
            storing: None,
            looking: None,
            counting: None,
            full_look: None,
        };
        let ends: BTreeMap<i32, i64> = opened.topic.partitions.iter().map(|p| (p.partition, p.high)).collect();
        for (partition, start) in &opened.plan.starts {
            session.add_lane(*partition, *start, ends.get(partition).copied().unwrap_or(*start));
        }
        session.note_unknown(&opened.topic);
        session
    }

    /// Reads until it is told to leave or something fails.
    pub(crate) async fn run(&mut self, backoff: &mut Backoff, leave: &Latch<Leave>) -> End {
        match self.read(backoff, leave).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    /// Stores where to go on. Call once, at the end.
    pub(crate) async fn leave(&mut self) {
        self.stop_reading();
        let timeout = self.task.env.clock.sleep(LEAVE_TIMEOUT);
        let is_stored = tokio::select! {
            biased;
            stored = self.store_last() => stored.is_ok(),
            // What was not stored is read again and dropped as known.
            () = timeout => false,
        };
        if !is_stored {
            tracing::debug!(subscription = %self.subscription.id, "the last positions are not stored");
        }
    }

    /// The end of a deleted subscription that is read (rule K10): what was appended is durable, then it is closed in every partition,
    /// then its group is told how far it has read. Call once, at the end. Says whether the group knows.
    pub(crate) async fn close(&mut self) -> bool {
        self.stop_reading();
        while !self.lanes.values().all(|lane| lock(&lane.tracker).is_durable()) {
            tokio::select! {
                biased;
                // The next start closes it.
                () = self.task.hurry.wait() => return false,
                () = self.task.env.clock.sleep(SETTLE_INTERVAL) => {}
            }
        }
        let Ok(positions) = self.task.close_source(&self.read_up_to()).await else { return false };
        if !self.has_joined || self.task.is_forced() {
            return false;
        }
        match self.task.tell_as_member(self.source, &positions, true).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(subscription = %self.subscription.id, %error, "the last commit of a deleted subscription");
                false
            }
        }
    }

    /// How far it has read: for the end of a deleted subscription, where no session runs by then.
    pub(crate) fn read_up_to(&self) -> Progress {
        let positions = self.lanes.iter().map(|(partition, lane)| (*partition, lock(&lane.tracker).durable_position()));
        Progress { topic_id: self.subscription.topic_id, epoch: self.subscription.epoch, positions: positions.collect() }
    }

    async fn read(&mut self, backoff: &mut Backoff, leave: &Latch<Leave>) -> Result<std::convert::Infallible, End> {
        self.source.subscribe()?;
        let clock = self.task.env.clock.clone();
        let mut tick = clock.sleep(TICK);
        let mut ticks = 0;
        loop {
            // A rebalance takes a while, and does not hear of it.
            if let Some(how) = leave.get() {
                return Err(End::Left(how));
            }
            self.append_ready().await?;
            let takes_records = self.takes_records();
            let step = tokio::select! {
                biased;
                // The state is whole between any two steps. It stays set.
                how = leave.wait() => Step::Leave(how),
                // These five are kept in the session and go on in the next round.
                done = optional(self.append.as_mut().map(|append| &mut append.done)) => Step::Appended(done),
                stored = optional(self.storing.as_mut()) => Step::Stored(stored),
                looked = optional(self.looking.as_mut()) => Step::Looked(looked),
                parked = optional(self.counting.as_mut()) => Step::Counted(parked),
                () = optional(self.full_look.as_mut()) => Step::Full,
                // A wake that is dropped with its future was not taken yet.
                () = self.task.changed.woken() => Step::Changed,
                () = &mut tick => Step::Tick,
                // Dropping it loses nothing.
                event = self.source.next(takes_records) => Step::Event(event),
            };
            match step {
                Step::Leave(how) => return Err(End::Left(how)),
                Step::Appended(done) => {
                    self.append = None;
                    done?;
                }
                Step::Stored(positions) => {
                    self.storing = None;
                    self.stored(&positions?);
                }
                Step::Looked(topic) => {
                    self.looking = None;
                    self.looked(topic)?;
                    if self.has_joined && self.has_looked {
                        // Not with the first assignment: two that take each other's place would do so as fast as they can.
                        backoff.reset();
                    }
                }
                Step::Counted(parked) => {
                    self.counting = None;
                    self.counted(parked?);
                }
                Step::Full => self.look_at_full()?,
                Step::Changed => {
                    let misses_it = self.task.settings.mutant == Mutant::MissHandler;
                    if self.hold == Some(Hold::Handler) && self.has_handler() && !misses_it {
                        self.release_hold();
                    }
                }
                Step::Tick => {
                    tick = clock.sleep(TICK);
                    ticks += 1;
                    self.tick(ticks)?;
                }
                Step::Event(SourceEvent::Assigned { generation, partitions }) => {
                    self.assigned(generation, &partitions).await?;
                }
                Step::Event(SourceEvent::Revoked { generation, partitions }) => self.revoked(generation, &partitions).await?,
                Step::Event(SourceEvent::Records(records)) => self.fetched(records),
                Step::Event(SourceEvent::AtEnd { generation, partition, offset }) => {
                    if let Some(lane) = self.lanes.get_mut(&partition).filter(|lane| lane.generation == Some(generation)) {
                        lane.at_end(offset);
                    }
                }
                Step::Event(SourceEvent::Failed(error)) => self.failed(error)?,
            }
        }
    }

    fn add_lane(&mut self, partition: i32, start: i64, high: i64) {
        let stream = opening::stream(&self.subscription, partition);
        self.lanes.insert(partition, Lane::new(&self.subscription, stream, start, high));
    }

    /// Nothing more is taken; what waits is read again by whoever comes next.
    fn stop_reading(&mut self) {
        self.abandon_append(|_| true);
        self.set_hold(None);
        self.turn.clear();
        self.waiting = (0, 0);
        for lane in self.lanes.values_mut() {
            let generation = lane.generation;
            lane.revoked();
            lane.generation = generation;
        }
    }

    // The group.

    async fn assigned(&mut self, generation: u64, partitions: &[i32]) -> Result<(), End> {
        self.add_new_lanes(partitions).await?;
        let followed = match self.task.settings.mutant {
            Mutant::FollowGroup => self.source.committed(partitions).await?,
            _ => Vec::new(),
        };
        let now = self.task.env.clock.monotonic();
        let mut starts = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let Some(lane) = self.lanes.get_mut(partition) else {
                self.unknown.insert(*partition);
                continue;
            };
            let start = lane.assigned(generation, now);
            let followed = followed.iter().find(|(followed, _)| followed == partition);
            starts.push((*partition, followed.map_or(start, |(_, committed)| start.max(*committed))));
            self.task.status.assigned(*partition, lane.tracker.clone(), lane.high);
        }
        self.source.assign(generation, &starts)?;
        let (subscription, topic) = (self.subscription.id, &*self.subscription.topic);
        tracing::info!(%subscription, topic, epoch = self.subscription.epoch, ?starts, "the subscription reads");
        self.has_joined = true;
        self.tell_running();
        Ok(())
    }

    /// Kafka partitions that were added to the topic start where the group has come to, or at their earliest, stored before the first
    /// fetch (rule K4).
    async fn add_new_lanes(&mut self, partitions: &[i32]) -> Result<(), End> {
        if partitions.iter().all(|partition| self.lanes.contains_key(partition)) || !self.subscription.resolved {
            return Ok(());
        }
        let topic = self.source.topic().await?;
        self.check_id(&topic)?;
        let new: Vec<_> = topic.partitions.iter().filter(|p| !self.lanes.contains_key(&p.partition)).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        let ids: Vec<i32> = new.iter().map(|p| p.partition).collect();
        let committed = self.task.committed(self.source, &ids).await?;
        let at_end = self.task.settings.mutant == Mutant::AddedAtEnd;
        let start = |p: &PartitionOffsets| if at_end { p.high } else { opening::later_start(p, &committed) };
        let starts: Vec<i64> = new.iter().map(start).collect();
        let stream = |partition| opening::stream(&self.subscription, partition);
        let positions = new.iter().zip(&starts).map(|(p, start)| (stream(p.partition), *start)).collect();
        self.task.admission.change_catalog(CatalogEvent::PositionsAdvanced(positions)).await?;
        for (offsets, start) in new.into_iter().zip(starts) {
            self.add_lane(offsets.partition, start, offsets.high);
        }
        Ok(())
    }

    /// What is not appended by now is another member's to append.
    async fn revoked(&mut self, generation: u64, partitions: &[i32]) -> Result<(), End> {
        self.abandon_append(|partition| partitions.contains(&partition));
        for partition in partitions {
            self.unknown.remove(partition);
            if let Some(lane) = self.lanes.get_mut(partition) {
                let is_counted = !lane.is_full;
                let (records, bytes) = lane.revoked();
                if is_counted {
                    self.waiting = (self.waiting.0 - records, self.waiting.1 - bytes);
                }
            }
        }
        self.turn.retain(|partition| !partitions.contains(partition));
        // What was held may be gone; what is still there is held again.
        if self.task.settings.mutant == Mutant::HoldSurvives && self.hold.is_some() {
            self.hold = Some(Hold::ForEver);
        } else {
            self.release_hold();
        }
        // What is on its way is not another member's: it is waited for, for a while.
        let timeout = self.task.env.clock.sleep(LEAVE_TIMEOUT);
        tokio::select! {
            biased;
            stored = self.store_last() => stored?,
            // The watermarks know what was not stored.
            () = timeout => {}
        }
        let positions = partitions.iter().filter_map(|p| self.lanes.get(p).map(|lane| (*p, lane.stored)));
        let positions: Positions = positions.collect();
        self.commit(&positions);
        self.task.status.released(partitions.iter().copied());
        self.source.release(generation, partitions)?;
        let (subscription, topic) = (self.subscription.id, &*self.subscription.topic);
        tracing::info!(%subscription, topic, ?partitions, "Kafka partitions go to another member");
        Ok(())
    }

    fn failed(&mut self, error: SourceError) -> Result<(), End> {
        if error.kind != ErrorKind::Unavailable {
            return Err(error.into());
        }
        // The client goes on by itself; the next look says whether it could.
        tracing::debug!(subscription = %self.subscription.id, %error, "the Kafka client reports");
        if self.hold.is_none() {
            self.task.status.failed(&error);
        }
        Ok(())
    }

    // Records.

    fn fetched(&mut self, records: Vec<KafkaRecord>) {
        let takes_revoked = self.task.settings.mutant == Mutant::TakeRevoked;
        for record in records {
            // Of a revoked assignment (rule K7), it is another member's.
            let lane = self.lanes.get_mut(&record.partition);
            let Some(lane) = lane.filter(|lane| lane.generation == Some(record.generation) || takes_revoked) else { continue };
            if !lane.is_full {
                if lane.waiting().0 == 0 {
                    self.turn.push_back(record.partition);
                }
                self.waiting = (self.waiting.0 + 1, self.waiting.1 + record.bytes());
            }
            lane.push(record);
        }
    }

    /// Whether there is room for more than what waits.
    fn takes_records(&self) -> bool {
        let bounds = &self.task.settings.bounds;
        self.hold.is_none() && self.waiting.0 < bounds.queue_records && self.waiting.1 < self.queue_bytes_max
    }

    /// Appends what the edge has room for, in order.
    async fn append_ready(&mut self) -> Result<(), End> {
        while self.append.is_some() || self.begin_append()? {
            let Some(append) = &mut self.append else { continue };
            match std::future::poll_fn(|cx| Poll::Ready(append.done.as_mut().poll(cx))).await {
                Poll::Ready(done) => {
                    self.append = None;
                    done?;
                }
                Poll::Pending if self.task.settings.mutant == Mutant::Overtake => self.let_wait(),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Lets the append wait by itself, so that the next one does not. Against rule K2.
    fn let_wait(&mut self) {
        if let Some(append) = self.append.take() {
            self.task.env.tasks.spawn(Box::pin(async move {
                // A node that stops takes nothing more.
                let _ = append.done.await;
            }));
        }
    }

    /// Takes the first of the next Kafka partition in turn. False: there is none, or it has to wait.
    fn begin_append(&mut self) -> Result<bool, SourceError> {
        if self.hold.is_some() {
            return Ok(false);
        }
        let Some(partition) = self.turn.pop_front() else { return Ok(false) };
        let lane = self.lanes.get_mut(&partition).expect("what has a turn has a lane");
        if self.task.settings.bounds.is_full(lock(&lane.tracker).pending()) {
            self.settle(partition);
            let lane = self.lanes.get_mut(&partition).expect("it was just there");
            if self.task.settings.bounds.is_full(lock(&lane.tracker).pending()) {
                self.fill(partition)?;
                return Ok(true);
            }
        }
        let lane = self.lanes.get_mut(&partition).expect("it was just there");
        let record = lane.pop().expect("what has a turn has a Kafka record");
        let bytes = record.bytes();
        // Below it, it was appended before, and read again since.
        let next = lock(&lane.tracker).next();
        if record.offset < next {
            self.took(partition, bytes);
            return Ok(true);
        }
        let mapped = self.map(&record);
        let hold = match &mapped {
            None => Some(Hold::Handler),
            Some(Mapped { event: Event::RecordParked(parked), .. }) => {
                (!self.may_park(parked.kept_bytes())).then_some(Hold::Parked)
            }
            Some(_) => None,
        };
        let Some(Mapped { partition: to, event, parked }) = mapped.filter(|_| hold.is_none()) else {
            self.lanes.get_mut(&partition).expect("it was just there").push_back_in(record);
            self.turn.push_front(partition);
            self.set_hold(hold);
            return Ok(false);
        };
        let kept = match &event {
            Event::RecordParked(parked) => Some(parked.kept_bytes()),
            _ => None,
        };
        if let (Some(reason), Some(kept)) = (parked, kept) {
            self.parked = ParkedTotal { records: self.parked.records + 1, bytes: self.parked.bytes + kept };
            self.note_parked(reason, &record);
        }
        self.took(partition, bytes);
        let lane = self.lanes.get_mut(&partition).expect("it was just there");
        lane.requests.increment(1);
        let offset = record.offset;
        let pending = Pending { offset, partition: to, bytes, parked: kept, durable: None };
        assert!(lock(&lane.tracker).begin(pending), "offsets of a stream rise");
        let tracker = lane.tracker.clone();
        let durable = Box::new(move |lsn| lock(&tracker).durable(offset, lsn));
        self.append = Some(Append { partition, offset, done: self.task.admission.append(to, event, durable) });
        Ok(true)
    }

    fn map(&self, record: &KafkaRecord) -> Option<Mapped> {
        let catalog = self.task.admission.catalog();
        let mapping = Mapping {
            catalog: &catalog,
            subscription: &self.subscription,
            defaults: &self.task.settings.defaults,
            partitions: self.task.admission.count(),
            record_bytes_max: self.task.settings.record_bytes_max,
            mutant: self.task.settings.mutant,
        };
        mapping.event(self.lanes[&record.partition].stream, record)
    }

    /// One that waited was taken; the next of its Kafka partition has its turn.
    fn took(&mut self, partition: i32, bytes: usize) {
        self.waiting = (self.waiting.0 - 1, self.waiting.1 - bytes);
        if self.lanes[&partition].waiting().0 > 0 {
            self.turn.push_back(partition);
        }
    }

    /// Gives up an append that has not happened yet, so that its Kafka record is read again.
    fn abandon_append(&mut self, of: impl Fn(i32) -> bool) {
        if let Some(append) = self.append.take_if(|append| of(append.partition)) {
            drop(append.done);
            let lane = self.lanes.get(&append.partition).expect("an append has a lane");
            lock(&lane.tracker).abandon(append.offset);
        }
    }

    // Streams of which too much is not applied, as where a partition has stopped: the others go on.

    fn settle(&self, partition: i32) {
        let admission = &self.task.admission;
        lock(&self.lanes[&partition].tracker).settle(|partition| admission.applied(partition));
    }

    fn fill(&mut self, partition: i32) -> Result<(), SourceError> {
        let lane = self.lanes.get_mut(&partition).expect("it was just there");
        lane.is_full = true;
        let (records, bytes) = lane.waiting();
        self.waiting = (self.waiting.0 - records, self.waiting.1 - bytes);
        self.full_look.get_or_insert_with(|| self.task.env.clock.sleep(FULL_INTERVAL));
        self.source.hold(&[partition])
    }

    fn look_at_full(&mut self) -> Result<(), SourceError> {
        self.full_look = None;
        let full = self.lanes.iter().filter(|(_, lane)| lane.is_full).map(|(partition, _)| *partition);
        for partition in full.collect::<Vec<_>>() {
            self.settle(partition);
            let lane = self.lanes.get_mut(&partition).expect("it was just there");
            if self.task.settings.bounds.is_full(lock(&lane.tracker).pending()) {
                self.full_look.get_or_insert_with(|| self.task.env.clock.sleep(FULL_INTERVAL));
                continue;
            }
            lane.is_full = false;
            let (records, bytes) = lane.waiting();
            self.waiting = (self.waiting.0 + records, self.waiting.1 + bytes);
            if records > 0 {
                self.turn.push_back(partition);
            }
            if self.task.settings.mutant != Mutant::StreamStaysHeld {
                self.source.resume(&[partition])?;
            }
        }
        Ok(())
    }

    // Holding the subscription.

    fn may_park(&self, bytes: u64) -> bool {
        let settings = &self.task.settings;
        let has_room = self.parked.records < settings.parked_max
            && (self.parked.records == 0 || self.parked.bytes + bytes <= settings.parked_bytes_max);
        has_room || settings.mutant == Mutant::ParkWithoutBound
    }

    fn has_handler(&self) -> bool {
        self.task.admission.catalog().handler(&self.subscription.service, &self.subscription.handler).is_some()
    }

    fn set_hold(&mut self, hold: Option<Hold>) {
        if self.hold == hold {
            return;
        }
        self.hold = hold;
        for (reason, is_it) in [("parked", hold == Some(Hold::Parked)), ("no-handler", hold == Some(Hold::Handler))] {
            gauge!("surefoot_kafka_ingress_held", "subscription" => self.subscription.id.to_string(), "reason" => reason)
                .set(f64::from(u8::from(is_it)));
        }
        let (id, Subscription { service, handler, .. }) = (self.subscription.id, &self.subscription);
        match hold {
            Some(Hold::Parked) => {
                let ParkedTotal { records, bytes } = self.parked;
                tracing::warn!(subscription = %id, records, bytes, "the subscription pauses: too many Kafka records are parked");
                self.task.status.paused(format!(
                    "{records} Kafka records with {bytes} bytes are parked, as many as may be: look at GET \
                     /subscriptions/{id}/parked, mend what they name, and discard them with DELETE /subscriptions/{id}/parked/{{n}}"
                ));
            }
            Some(Hold::Handler) => {
                tracing::warn!(subscription = %id, %service, %handler, "the subscription pauses: no deployment has its handler");
                self.task.status.paused(format!(
                    "no deployment has the handler {service}/{handler}: register one that does, and it goes on by itself"
                ));
            }
            Some(Hold::ForEver) | None => {}
        }
    }

    fn release_hold(&mut self) {
        if self.hold.is_some() {
            tracing::info!(subscription = %self.subscription.id, "the subscription goes on");
            self.set_hold(None);
            self.tell_running();
        }
    }

    fn counted(&mut self, parked: ParkedTotal) {
        // What is on its way is not among them yet, or counted twice until the next look.
        let mut total = parked;
        for lane in self.lanes.values() {
            let (records, bytes) = lock(&lane.tracker).pending_parked();
            total = ParkedTotal { records: total.records + records, bytes: total.bytes + bytes };
        }
        let is_less = total.records < self.parked.records || total.bytes < self.parked.bytes;
        self.parked = total;
        if self.hold == Some(Hold::Parked) && is_less {
            // It is held again where that is not room enough.
            self.release_hold();
        }
    }

    fn note_parked(&mut self, reason: Reason, record: &KafkaRecord) {
        counter!(
            "surefoot_kafka_ingress_parked_total",
            "subscription" => self.subscription.id.to_string(),
            "reason" => reason.as_str()
        )
        .increment(1);
        let now = self.task.env.clock.monotonic();
        let log = self.parked_log.get_mut(&reason);
        if let Some(log) = log.filter(|log| now < log.last + PARKED_LOG_INTERVAL) {
            log.silent += 1;
            return;
        }
        let silent = self.parked_log.insert(reason, ParkedLog { last: now, silent: 0 }).map_or(0, |log| log.silent);
        tracing::warn!(
            subscription = %self.subscription.id,
            topic = &*self.subscription.topic,
            kafka_partition = record.partition,
            offset = record.offset,
            reason = reason.as_str(),
            not_logged_before = silent,
            "a Kafka record cannot become an invocation and is parked"
        );
    }

    // Positions and the topic.

    fn tick(&mut self, ticks: u64) -> Result<(), End> {
        self.lanes.keys().for_each(|partition| self.settle(*partition));
        for lane in self.lanes.values().filter(|lane| lane.generation.is_some()) {
            lane.lag.set((lane.high - lock(&lane.tracker).position()).max(0) as f64);
        }
        if self.storing.is_none() {
            self.storing = self.store();
        }
        if self.task.settings.mutant == Mutant::CommitLeads {
            let read = self.lanes.iter().filter(|(_, lane)| lane.generation.is_some());
            let read: Positions = read.map(|(partition, lane)| (*partition, lock(&lane.tracker).next())).collect();
            self.commit(&read);
        }
        if ticks.is_multiple_of(LOOK_TICKS) && self.looking.is_none() {
            self.looking = Some(self.source.topic());
        }
        if self.hold == Some(Hold::Parked) && self.counting.is_none() {
            self.counting = Some(self.task.admission.parked(self.subscription.id));
        }
        self.watch()
    }

    /// Looks for streams that should move and do not. One that does not for long makes the session start over.
    fn watch(&mut self) -> Result<(), End> {
        let may_move = self.has_looked && self.append.is_none() && self.takes_records();
        let now = self.task.env.clock.monotonic();
        let (id, topic) = (self.subscription.id, self.subscription.topic.clone());
        let mut has_changed = false;
        for (partition, lane) in &mut self.lanes {
            let stands = lane.stands_for(now, may_move);
            let is_standing = stands >= STANDS_TOLD;
            if is_standing && !lane.is_standing {
                let (position, high) = (lock(&lane.tracker).next(), lane.high);
                tracing::warn!(
                    subscription = %id, topic = &*topic, kafka_partition = partition, position, high,
                    "a Kafka partition stands still though there is more to read"
                );
                self.task.troubles.stood_still();
            }
            if is_standing != lane.is_standing {
                lane.set_standing(is_standing);
                has_changed = true;
            }
            if stands >= STANDS_MAX {
                let message = format!("Kafka partition {partition} stands still though there is more to read: it starts over");
                return Err(SourceError::new(ErrorKind::Unavailable, message).into());
            }
        }
        if has_changed {
            self.tell_running();
        }
        Ok(())
    }

    /// Stores positions that moved; absent where none did.
    fn store(&self) -> Option<BoxFuture<Result<Positions, Stopped>>> {
        let moved = self.lanes.iter().filter_map(|(partition, lane)| {
            let tracker = lock(&lane.tracker);
            let position = match self.task.settings.mutant {
                Mutant::PositionLeads => tracker.next(),
                _ => tracker.position(),
            };
            (position != lane.stored).then_some((*partition, lane.stream, position))
        });
        let moved: Vec<(i32, StreamId, i64)> = moved.collect();
        if moved.is_empty() {
            return None;
        }
        let event = CatalogEvent::PositionsAdvanced(moved.iter().map(|(_, stream, position)| (*stream, *position)).collect());
        let change = self.task.admission.change_catalog(event);
        Some(Box::pin(async move {
            change.await?;
            Ok(moved.into_iter().map(|(partition, _, position)| (partition, position)).collect())
        }))
    }

    /// Waits until what was appended is applied, and stores how far that is. What goes to a partition that has stopped is not waited
    /// for once it is durable.
    async fn store_last(&mut self) -> Result<(), Stopped> {
        loop {
            self.lanes.keys().for_each(|partition| self.settle(*partition));
            let is_done = |lane: &Lane| {
                let tracker = lock(&lane.tracker);
                let admission = &self.task.admission;
                let is_late = |partition| admission.is_stopped(partition) || tracker.waits_for() != Some(partition);
                tracker.is_settled() || tracker.waits_only_for(is_late)
            };
            if self.append.is_some() || self.lanes.values().all(is_done) {
                break;
            }
            self.task.env.clock.sleep(SETTLE_INTERVAL).await;
        }
        if let Some(storing) = self.storing.take() {
            let positions = storing.await?;
            self.stored(&positions);
        }
        if let Some(storing) = self.store() {
            let positions = storing.await?;
            self.stored(&positions);
        }
        Ok(())
    }

    /// Positions are durable here: the group may know.
    fn stored(&mut self, positions: &[(i32, i64)]) {
        for (partition, position) in positions {
            if let Some(lane) = self.lanes.get_mut(partition) {
                lane.stored = *position;
            }
        }
        let is_ours = |partition: &i32| self.lanes.get(partition).is_some_and(|lane| lane.generation.is_some());
        let ours: Positions = positions.iter().filter(|(partition, _)| is_ours(partition)).copied().collect();
        self.commit(&ours);
    }

    fn commit(&mut self, positions: &[(i32, i64)]) {
        if !positions.is_empty() {
            self.source.commit(positions);
        }
    }

    fn looked(&mut self, topic: Result<TopicInfo, SourceError>) -> Result<(), End> {
        self.has_looked = topic.is_ok();
        match topic {
            Ok(topic) => {
                self.check_id(&topic)?;
                for offsets in &topic.partitions {
                    if self.unknown.contains(&offsets.partition) {
                        return Err(End::Again(format!("Kafka partition {} can be read now", offsets.partition)));
                    }
                    if let Some(lane) = self.lanes.get_mut(&offsets.partition) {
                        lane.high = offsets.high;
                    }
                }
                self.note_unknown(&topic);
                self.task.status.seen(&topic);
                if self.has_joined {
                    self.tell_running();
                }
                Ok(())
            }
            Err(error) if error.kind == ErrorKind::TopicMissing => Err(error.into()),
            Err(error) => {
                if self.hold.is_none() {
                    self.task.status.failed(&error);
                }
                Ok(())
            }
        }
    }

    /// Keeps why no broker says where a Kafka partition begins and ends, for its status.
    fn note_unknown(&mut self, topic: &TopicInfo) {
        self.lanes.values_mut().for_each(|lane| lane.unknown = None);
        for (partition, error) in &topic.unknown {
            if let Some(lane) = self.lanes.get_mut(partition) {
                lane.unknown = Some(error.message.clone());
            }
        }
    }

    /// It runs, save for what is said of single Kafka partitions.
    fn tell_running(&self) {
        if self.hold.is_some() {
            return;
        }
        let unknown = self.lanes.iter().filter_map(|(partition, lane)| {
            let why = lane.unknown.as_ref().filter(|_| lane.generation.is_some())?;
            Some(format!("Kafka partition {partition}: {why}"))
        });
        let new = self.unknown.iter().map(|partition| format!("Kafka partition {partition}: no broker says where it begins"));
        let standing = self.lanes.iter().filter(|(_, lane)| lane.is_standing).map(|(partition, _)| {
            format!("Kafka partition {partition} stands still though there is more to read: it starts over soon")
        });
        let full = self.lanes.iter().filter(|(_, lane)| lane.is_full).filter_map(|(partition, lane)| {
            let stopped = lock(&lane.tracker).waits_for().filter(|partition| self.task.admission.is_stopped(*partition))?;
            Some(format!(
                "Kafka partition {partition} waits: partition {stopped} has stopped, and as much as may be waits for it (see /health)"
            ))
        });
        let notes: Vec<String> = unknown.chain(new).chain(standing).chain(full).collect();
        self.task.status.running((!notes.is_empty()).then(|| format!("{}; the others are read", notes.join("; "))));
    }

    /// A topic that was made again ends the session; the next one opens an epoch (rule K1).
    fn check_id(&mut self, topic: &TopicInfo) -> Result<(), SourceError> {
        let is_ignored = self.task.settings.mutant == Mutant::IgnoreTopicId;
        if topic.id == 0 || topic.id == self.subscription.topic_id || is_ignored {
            return Ok(());
        }
        // Commits would count for the new topic, of which nothing is read yet (rule K5).
        self.lanes.values_mut().for_each(|lane| lane.generation = None);
        Err(SourceError::new(ErrorKind::OffsetLost, "the topic was deleted and made again"))
    }
}

/// The future's result, or never where there is none.
pub(crate) fn optional<F: Future + Unpin>(future: Option<&mut F>) -> Optional<'_, F> {
    Optional(future)
}

pub(crate) struct Optional<'a, F>(Option<&'a mut F>);

impl<F: Future + Unpin> Future for Optional<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match &mut self.0 {
            Some(future) => Pin::new(&mut **future).poll(cx),
            None => Poll::Pending,
        }
    }
}
