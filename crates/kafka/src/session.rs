//! One member of the group while it reads: assignments, records, positions, parking, back-pressure.
//!
//! Owns: the order of appends per stream (K2), positions that follow durability and commits that follow positions (K5), the bound
//! on parked Kafka records (K6), and the refusal of a revoked assignment's records (K7). Does not own: where reading starts
//! (`opening`), what a record becomes (`record`), or what happens after an error (`subscription`).

use crate::backoff::Backoff;
use crate::opening;
use crate::position::Tracker;
use crate::record::{Mapped, Mapping, Reason};
use crate::source::{ErrorKind, KafkaRecord, RecordSource, SourceError, SourceEvent, TopicInfo};
use crate::sources::Mutant;
use crate::status::{SharedTracker, lock};
use crate::subscription::{End, Opened, Task};
use metrics::{Counter, Gauge, counter, gauge};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use surefoot_env::BoxFuture;
use surefoot_model::StreamId;
use surefoot_model::catalog::{CatalogEvent, Subscription};
use surefoot_partition::Stopped;
use tokio::sync::oneshot;

/// How often positions that moved are stored, and committed to the group.
const TICK: Duration = Duration::from_secs(1);
/// The topic is looked at every so many ticks: its id, its ends, and whether a broker answers.
const LOOK_TICKS: u64 = 3;
/// Kafka records that wait for room at the edge, and their bytes. Beyond, fetching pauses until half of it is gone.
const QUEUE_RECORDS_MAX: usize = 4_096;
const QUEUE_BYTES_MAX: usize = 8 << 20;
/// How often a reason for parking is logged.
const PARKED_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// The longest that storing positions may hold up a stop.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Kafka partitions and their positions.
type Positions = Vec<(i32, i64)>;

pub(crate) struct Session<'a> {
    task: &'a Task,
    source: &'a mut dyn RecordSource,
    subscription: Subscription,
    lanes: BTreeMap<i32, Lane>,
    /// Fetched, not yet appended.
    queue: VecDeque<KafkaRecord>,
    queue_bytes: usize,
    /// The one append that waits for room; the queue's later records wait behind it.
    append: Option<Append>,
    /// The group has answered: this member is one of it.
    has_joined: bool,
    is_fetch_paused: bool,
    parked: u64,
    /// As many are parked as may be, and the first of the queue would be one more.
    is_held: bool,
    parked_log: BTreeMap<Reason, ParkedLog>,
    storing: Option<BoxFuture<Result<Positions, Stopped>>>,
    looking: Option<BoxFuture<Result<TopicInfo, SourceError>>>,
    counting: Option<BoxFuture<Result<u64, Stopped>>>,
}

/// One Kafka partition.
struct Lane {
    stream: StreamId,
    tracker: SharedTracker,
    /// The position that is stored.
    stored: i64,
    high: i64,
    /// Set while assigned.
    generation: Option<u64>,
    requests: Counter,
    lag: Gauge,
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
    Stop,
    Appended(Result<(), Stopped>),
    Stored(Result<Positions, Stopped>),
    Looked(Result<TopicInfo, SourceError>),
    Counted(Result<u64, Stopped>),
    Tick,
    Event(SourceEvent),
}

impl<'a> Session<'a> {
    pub(crate) fn new(task: &'a Task, source: &'a mut dyn RecordSource, opened: Opened) -> Self {
        let mut session = Self {
            task,
            source,
            subscription: opened.plan.subscription,
            lanes: BTreeMap::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            append: None,
            has_joined: false,
            is_fetch_paused: false,
            parked: opened.parked,
            is_held: false,
            parked_log: BTreeMap::new(),
            storing: None,
            looking: None,
            counting: None,
        };
        for offsets in &opened.topic.partitions {
            if let Some(start) = opened.plan.starts.get(&offsets.partition) {
                session.add_lane(offsets.partition, *start, offsets.high);
            }
        }
        session
    }

    /// Reads until it is told to stop or something fails.
    pub(crate) async fn run(&mut self, backoff: &mut Backoff, stop: &mut oneshot::Receiver<()>) -> End {
        match self.read(backoff, stop).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    /// Stores where to go on. Call once, at the end.
    pub(crate) async fn leave(&mut self) {
        self.abandon_append(|_| true);
        let timeout = self.task.env.clock.sleep(LEAVE_TIMEOUT);
        let is_stored = tokio::select! {
            biased;
            stored = self.store_now() => stored.is_ok(),
            // What was not stored is read again and dropped as known.
            () = timeout => false,
        };
        if !is_stored {
            tracing::debug!(subscription = %self.subscription.id, "the last positions are not stored");
        }
        self.lanes.values().for_each(|lane| lane.lag.set(0));
    }

    async fn read(&mut self, backoff: &mut Backoff, stop: &mut oneshot::Receiver<()>) -> Result<std::convert::Infallible, End> {
        self.source.subscribe()?;
        let clock = self.task.env.clock.clone();
        let mut tick = clock.sleep(TICK);
        let mut ticks = 0;
        loop {
            self.append_ready().await?;
            self.balance()?;
            let step = tokio::select! {
                biased;
                // The state is whole between any two steps.
                _ = &mut *stop => Step::Stop,
                // These five are kept in the session and go on in the next round.
                done = optional(self.append.as_mut().map(|append| &mut append.done)) => Step::Appended(done),
                stored = optional(self.storing.as_mut()) => Step::Stored(stored),
                looked = optional(self.looking.as_mut()) => Step::Looked(looked),
                parked = optional(self.counting.as_mut()) => Step::Counted(parked),
                () = &mut tick => Step::Tick,
                // Dropping it loses nothing.
                event = self.source.next() => Step::Event(event),
            };
            match step {
                Step::Stop => return Err(End::Stop),
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
                }
                Step::Counted(parked) => {
                    self.counting = None;
                    self.counted(parked?);
                }
                Step::Tick => {
                    tick = clock.sleep(TICK);
                    ticks += 1;
                    self.tick(ticks);
                }
                Step::Event(SourceEvent::Assigned { generation, partitions }) => {
                    self.assigned(generation, &partitions).await?;
                    backoff.reset();
                }
                Step::Event(SourceEvent::Revoked { generation, partitions }) => self.revoked(generation, &partitions).await?,
                Step::Event(SourceEvent::Records(records)) => self.fetched(records),
                Step::Event(SourceEvent::Failed(error)) => self.failed(error)?,
            }
        }
    }

    fn add_lane(&mut self, partition: i32, start: i64, high: i64) {
        let labels = [
            ("subscription", self.subscription.id.to_string()),
            ("topic", self.subscription.topic.to_string()),
            ("partition", partition.to_string()),
        ];
        let lane = Lane {
            stream: opening::stream(&self.subscription, partition),
            tracker: Arc::new(Mutex::new(Tracker::new(start))),
            stored: start,
            high,
            generation: None,
            requests: counter!("surefoot_kafka_ingress_requests_total", &labels),
            lag: gauge!("surefoot_kafka_ingress_consumer_lag", &labels),
        };
        self.lanes.insert(partition, lane);
    }

    // The group.

    async fn assigned(&mut self, generation: u64, partitions: &[i32]) -> Result<(), End> {
        self.add_new_lanes(partitions).await?;
        let mut starts = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let lane = self.lanes.get_mut(partition).expect("each has a lane by now");
            lane.generation = Some(generation);
            starts.push((*partition, lock(&lane.tracker).next()));
            self.task.status.assigned(*partition, lane.tracker.clone(), lane.high);
        }
        self.source.assign(generation, &starts)?;
        if self.is_fetch_paused {
            self.source.pause(partitions)?;
        }
        let (subscription, topic) = (self.subscription.id, &*self.subscription.topic);
        tracing::info!(%subscription, topic, epoch = self.subscription.epoch, ?starts, "the subscription reads");
        self.has_joined = true;
        if !self.is_held {
            self.task.status.running();
        }
        Ok(())
    }

    /// Kafka partitions that were added to the topic start at their earliest, stored before the first fetch (rule K4).
    async fn add_new_lanes(&mut self, partitions: &[i32]) -> Result<(), End> {
        if partitions.iter().all(|partition| self.lanes.contains_key(partition)) {
            return Ok(());
        }
        let topic = self.source.topic().await?;
        self.check_id(&topic)?;
        let new: Vec<_> = topic.partitions.iter().filter(|p| !self.lanes.contains_key(&p.partition)).copied().collect();
        let positions = new.iter().map(|p| (opening::stream(&self.subscription, p.partition), p.low)).collect();
        self.task.admission.change_catalog(CatalogEvent::PositionsAdvanced(positions)).await?;
        for offsets in new {
            self.add_lane(offsets.partition, offsets.low, offsets.high);
        }
        match partitions.iter().find(|partition| !self.lanes.contains_key(partition)) {
            None => Ok(()),
            Some(partition) => {
                let message = format!("Kafka partition {partition} is assigned, but its brokers do not know it yet");
                Err(SourceError::new(ErrorKind::Unavailable, message).into())
            }
        }
    }

    /// What is not appended by now is another member's to append.
    async fn revoked(&mut self, generation: u64, partitions: &[i32]) -> Result<(), End> {
        for partition in partitions {
            if let Some(lane) = self.lanes.get_mut(partition) {
                lane.generation = None;
                lane.lag.set(0);
            }
        }
        self.abandon_append(|partition| partitions.contains(&partition));
        self.queue.retain(|record| !partitions.contains(&record.partition));
        self.queue_bytes = self.queue.iter().map(KafkaRecord::bytes).sum();
        self.release_hold();
        self.store_now().await?;
        let positions = partitions.iter().filter_map(|p| self.lanes.get(p).map(|lane| (*p, lane.stored)));
        let positions: Vec<_> = positions.collect();
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
        if !self.is_held {
            self.task.status.failed(&error);
        }
        Ok(())
    }

    // Records.

    fn fetched(&mut self, records: Vec<KafkaRecord>) {
        self.queue_bytes += records.iter().map(KafkaRecord::bytes).sum::<usize>();
        self.queue.extend(records);
    }

    /// Appends what the edge has room for, in order.
    async fn append_ready(&mut self) -> Result<(), Stopped> {
        while self.append.is_some() || self.begin_append() {
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

    /// Takes the first of the queue. False: there is none, or it has to wait.
    fn begin_append(&mut self) -> bool {
        if self.is_held {
            return false;
        }
        let Some(record) = self.queue.pop_front() else { return false };
        let bytes = record.bytes();
        let takes_revoked = self.task.settings.mutant == Mutant::TakeRevoked;
        let lane = self.lanes.get(&record.partition);
        let lane = lane.filter(|lane| lane.generation == Some(record.generation) || takes_revoked);
        // Of a revoked assignment (rule K7), or appended before.
        let Some(lane) = lane.filter(|lane| record.offset >= lock(&lane.tracker).next()) else {
            self.queue_bytes -= bytes;
            return true;
        };
        let (stream, tracker, requests) = (lane.stream, lane.tracker.clone(), lane.requests.clone());
        let catalog = self.task.admission.catalog();
        let mapping = Mapping {
            catalog: &catalog,
            subscription: &self.subscription,
            defaults: &self.task.settings.defaults,
            partitions: self.task.admission.count(),
            record_bytes_max: self.task.settings.record_bytes_max,
            mutant: self.task.settings.mutant,
        };
        let Mapped { partition, event, parked } = mapping.event(stream, &record);
        if let Some(reason) = parked {
            if self.parked >= self.task.settings.parked_max {
                self.hold();
                self.queue.push_front(record);
                return false;
            }
            self.parked += 1;
            self.note_parked(reason, &record);
        }
        self.queue_bytes -= bytes;
        requests.increment(1);
        let offset = record.offset;
        assert!(lock(&tracker).begin(offset), "offsets of a stream rise");
        let durable = Box::new(move || lock(&tracker).durable(offset));
        self.append =
            Some(Append { partition: record.partition, offset, done: self.task.admission.append(partition, event, durable) });
        true
    }

    /// Gives up an append that has not happened yet, so that its Kafka record is read again.
    fn abandon_append(&mut self, of: impl Fn(i32) -> bool) {
        if let Some(append) = self.append.take_if(|append| of(append.partition)) {
            drop(append.done);
            let lane = self.lanes.get(&append.partition).expect("an append has a lane");
            lock(&lane.tracker).abandon(append.offset);
        }
    }

    /// Pauses and resumes fetching by what waits.
    fn balance(&mut self) -> Result<(), SourceError> {
        let is_over = self.queue.len() >= QUEUE_RECORDS_MAX || self.queue_bytes >= QUEUE_BYTES_MAX;
        let is_low = self.queue.len() <= QUEUE_RECORDS_MAX / 2 && self.queue_bytes <= QUEUE_BYTES_MAX / 2;
        let assigned = |lanes: &BTreeMap<i32, Lane>| -> Vec<i32> {
            lanes.iter().filter(|(_, lane)| lane.generation.is_some()).map(|(partition, _)| *partition).collect()
        };
        if !self.is_fetch_paused && (self.is_held || is_over) {
            self.source.pause(&assigned(&self.lanes))?;
            self.is_fetch_paused = true;
        } else if self.is_fetch_paused && !self.is_held && is_low {
            self.source.resume(&assigned(&self.lanes))?;
            self.is_fetch_paused = false;
        }
        Ok(())
    }

    // Parking.

    fn hold(&mut self) {
        self.is_held = true;
        let (id, max) = (self.subscription.id, self.task.settings.parked_max);
        let why = format!(
            "{max} Kafka records are parked, as many as may be: look at GET /subscriptions/{id}/parked, mend what they name, and \
             discard them with DELETE /subscriptions/{id}/parked/{{n}}"
        );
        tracing::warn!(subscription = %id, parked = self.parked, "the subscription pauses: too many Kafka records are parked");
        self.task.status.paused(why);
    }

    fn release_hold(&mut self) {
        if self.is_held {
            self.is_held = false;
            self.task.status.running();
        }
    }

    fn counted(&mut self, parked: u64) {
        self.parked = parked;
        if self.is_held && parked < self.task.settings.parked_max {
            tracing::info!(subscription = %self.subscription.id, parked, "the subscription goes on");
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

    fn tick(&mut self, ticks: u64) {
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
        if self.is_held && self.counting.is_none() {
            self.counting = Some(self.task.admission.parked(self.subscription.id));
        }
    }

    /// Stores positions that moved; absent where none did.
    fn store(&self) -> Option<BoxFuture<Result<Positions, Stopped>>> {
        let moved = self.lanes.iter().filter_map(|(partition, lane)| {
            let tracker = lock(&lane.tracker);
            let position = if self.task.settings.mutant == Mutant::PositionLeads { tracker.next() } else { tracker.position() };
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

    async fn store_now(&mut self) -> Result<(), Stopped> {
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
        match topic {
            Ok(topic) => {
                self.check_id(&topic)?;
                for offsets in &topic.partitions {
                    if let Some(lane) = self.lanes.get_mut(&offsets.partition) {
                        lane.high = offsets.high;
                    }
                }
                self.task.status.seen(&topic);
                if self.has_joined && !self.is_held {
                    self.task.status.running();
                }
                Ok(())
            }
            Err(error) if error.kind == ErrorKind::TopicMissing => Err(error.into()),
            Err(error) => {
                if !self.is_held {
                    self.task.status.failed(&error);
                }
                Ok(())
            }
        }
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
fn optional<F: Future + Unpin>(future: Option<&mut F>) -> Optional<'_, F> {
    Optional(future)
}

struct Optional<'a, F>(Option<&'a mut F>);

impl<F: Future + Unpin> Future for Optional<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match &mut self.0 {
            Some(future) => Pin::new(&mut **future).poll(cx),
            None => Poll::Pending,
        }
    }
}
