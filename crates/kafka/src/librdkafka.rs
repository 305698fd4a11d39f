//! The seam over librdkafka: the one module that names it.
//!
//! Owns: the consumer, its callbacks, errors told apart, and threads for calls that block. Does not own: where reading starts or
//! what is committed.
//!
//! There are two queues. What the group decides comes through the consumer's, which is polled always. Kafka records come through one
//! of our own, which every Kafka partition is forwarded to and which is read only while there is room: so the client's own limits
//! bound what is fetched, and nothing has to be paused, which would throw away what was fetched and has to be remembered over
//! rebalances. Records of a Kafka partition that was revoked are told by their assignment's number, in whatever order they come.

mod native;
mod words;

use crate::properties::{self, PropertyError};
use crate::source::{
    BoxNext, ErrorKind, PartitionOffsets, RecordSource, SourceClient, SourceError, SourceEvent, SourceSpec, TopicInfo,
};
use crate::status::lock;
use futures_util::Stream;
use futures_util::task::AtomicWaker;
use rdkafka::bindings::rd_kafka_resp_err_t;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use surefoot_env::{BoxFuture, Step, Steps, Tasks, Wake};
use surefoot_model::Text;
use tokio::sync::oneshot;
use words::Words;

/// The longest that a question to the brokers may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Kafka records handed on together, and their bytes; one record may pass the latter alone.
const BATCH_RECORDS_MAX: usize = 512;
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Fits a node with many subscriptions, sees new Kafka partitions soon, and fetches on at once after a full queue. A cluster's or
/// a subscription's own values win.
const DEFAULTS: &[(&str, &str)] =
    &[("queued.min.messages", "20000"), ("fetch.queue.backoff.ms", "20"), ("topic.metadata.refresh.interval.ms", "10000")];

/// Opens sources over librdkafka. They have to be opened within a tokio runtime.
pub struct Librdkafka {
    tasks: Arc<dyn Tasks>,
}

impl Librdkafka {
    /// `tasks` runs what blocks.
    pub fn new(tasks: Arc<dyn Tasks>) -> Self {
        Self { tasks }
    }
}

impl SourceClient for Librdkafka {
    fn open(&self, spec: &SourceSpec, memory_bytes: usize) -> Result<Box<dyn RecordSource>, SourceError> {
        let mut config = ClientConfig::new();
        // Two thirds for what has been fetched, the rest for an answer on its way. The client raises the latter to the largest message
        // that it knows of, which says nothing about those that come: one that is larger comes alone.
        let answer_bytes = (memory_bytes / 3).to_string();
        config.set("queued.max.messages.kbytes", (memory_bytes / 3 * 2 / 1_024).max(1).to_string());
        for name in ["fetch.max.bytes", "fetch.message.max.bytes", "message.max.bytes"] {
            config.set(name, answer_bytes.as_str());
        }
        for (name, value) in DEFAULTS {
            config.set(*name, *value);
        }
        for (name, value) in &spec.properties {
            config.set(name.as_str(), value.as_str());
        }
        let group = Arc::new(Mutex::new(Group::default()));
        let words = Words::of(&spec.properties);
        // What the library itself says is logged by its subscription where it matters.
        config.set_log_level(RDKafkaLogLevel::Info);
        let consumer: StreamConsumer<Callbacks> = config
            .create_with_context(Callbacks { group: group.clone(), words: words.clone() })
            .map_err(|error| SourceError::new(ErrorKind::Refused, config_error(&error, &spec.properties)))?;
        let arrived = Arc::new(AtomicWaker::new());
        let fetched = native::Fetched::new(consumer.client(), arrived.clone())?;
        Ok(Box::new(Member {
            fetched,
            arrived,
            consumer: Arc::new(consumer),
            group,
            words,
            topic: spec.topic.clone(),
            tasks: self.tasks.clone(),
        }))
    }
}

/// Fails for a property that may not be set, or that the client does not take. Contacts no broker. For those who store properties.
pub fn check_property(name: &str, value: &str) -> Result<(), PropertyError> {
    properties::check_denied(name)?;
    properties::check_value(name, value)?;
    if name == "group.instance.id" && value.is_empty() {
        return Ok(()); // asks for none, and never reaches the client
    }
    let mut config = ClientConfig::new();
    config.set(name, value);
    match config.create_native_config() {
        Ok(_) => Ok(()),
        Err(error) => {
            let one = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            Err(PropertyError::NotTaken { name: name.to_owned(), reason: Words::of_refused(&one).shown(&client_words(&error)) })
        }
    }
}

/// Why a client could not be made. Names the property, and no value of any: it may be a secret.
fn config_error(error: &KafkaError, properties: &BTreeMap<String, String>) -> String {
    let words = Words::of_refused(properties).shown(&client_words(error));
    match error {
        KafkaError::ClientConfig(_, _, name, _) => PropertyError::NotTaken { name: name.clone(), reason: words }.to_string(),
        _ => format!("the Kafka client does not start with these properties: {words}"),
    }
}

fn client_words(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, words, _, _) | KafkaError::ClientCreation(words) => words.clone(),
        other => other.to_string(),
    }
}

/// What the group says, in order, and what this member has answered.
#[derive(Default)]
struct Group {
    /// Counts assignments.
    generation: u64,
    /// Kafka partitions that may be fetched, and since when.
    fetched: BTreeMap<i32, u64>,
    events: VecDeque<SourceEvent>,
    /// The words that came with the newest error.
    words: Option<String>,
    /// Nobody answers events any more.
    is_closing: bool,
}

struct Callbacks {
    group: Arc<Mutex<Group>>,
    words: Words,
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                let message = self.words.shown(message);
                tracing::warn!(facility, "librdkafka: {message}");
            }
            _ if tracing::enabled!(tracing::Level::DEBUG) => {
                let message = self.words.shown(message);
                tracing::debug!(facility, "librdkafka: {message}");
            }
            _ => {}
        }
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, _: KafkaError, reason: &str) {
        lock(&self.group).words = Some(self.words.shown(reason));
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: rd_kafka_resp_err_t, list: &mut TopicPartitionList) {
        let partitions: Vec<i32> =
            list.elements().iter().map(rdkafka::topic_partition_list::TopicPartitionListElem::partition).collect();
        let mut group = lock(&self.group);
        if group.is_closing {
            drop(group);
            // A close that fails here has failed for good; the broker will time the member out.
            let _ = unassign(consumer, list);
        } else if code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            group.generation += 1;
            let generation = group.generation;
            group.events.push_back(SourceEvent::Assigned { generation, partitions });
        } else {
            let generation = partitions.iter().filter_map(|p| group.fetched.remove(p)).max().unwrap_or(group.generation);
            group.events.push_back(SourceEvent::Revoked { generation, partitions });
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        match result {
            // The group has moved on, or there was nothing to commit: positions are kept by us in any case.
            Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(error) => {
                let error = self.words.explain(&error, None);
                tracing::debug!(%error, "the group did not take a commit");
            }
        }
    }
}

fn unassign<C: ConsumerContext>(consumer: &impl Consumer<C>, list: &TopicPartitionList) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
        _ => consumer.unassign(),
    }
}

/// A consumer of one topic.
struct Member {
    /// Before the consumer, which has to outlive it.
    fetched: native::Fetched,
    /// Woken when something has been fetched.
    arrived: Arc<AtomicWaker>,
    consumer: Arc<StreamConsumer<Callbacks>>,
    group: Arc<Mutex<Group>>,
    words: Words,
    topic: Text,
    tasks: Arc<dyn Tasks>,
}

impl Member {
    fn list(&self, partitions: impl IntoIterator<Item = (i32, Offset)>) -> Result<TopicPartitionList, SourceError> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in partitions {
            list.add_partition_offset(&self.topic, partition, offset).map_err(|error| self.error(&error))?;
        }
        Ok(list)
    }

    fn error(&self, error: &KafkaError) -> SourceError {
        let words = lock(&self.group).words.take();
        self.words.explain(error, words.as_deref())
    }

    /// Runs what blocks on a thread of its own. Where there is no thread to be had, the work is dropped with its sender.
    fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let work = Box::new(move || {
            // Whoever asked may have gone.
            let _ = sender.send(work());
        });
        if let Err(error) = self.tasks.try_drive("kafka-request", Wake::new(), Box::new(Once(Some(work)))) {
            tracing::warn!(%error, "no thread for a request to Kafka: it is tried again");
        }
        receiver
    }

    fn poll_next(
        &self,
        stream: &mut rdkafka::consumer::MessageStream<'_, Callbacks>,
        takes_records: bool,
        cx: &mut Context<'_>,
    ) -> Poll<SourceEvent> {
        loop {
            if let Some(event) = lock(&self.group).events.pop_front() {
                return Poll::Ready(event);
            }
            match Pin::new(&mut *stream).poll_next(cx) {
                // Each Kafka partition is forwarded before it is fetched. One that comes here all the same is out of order by now:
                // reading begins again where it is sure.
                Poll::Ready(Some(Ok(_))) => {
                    let error = SourceError::new(ErrorKind::OffsetLost, "a Kafka record came past its queue");
                    return Poll::Ready(SourceEvent::Failed(error));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(SourceEvent::Failed(self.error(&error))),
                Poll::Ready(None) => unreachable!("a consumer's stream does not end"),
                // It has served a callback without an item.
                Poll::Pending if !lock(&self.group).events.is_empty() => continue,
                Poll::Pending => {}
            }
            if !takes_records {
                return Poll::Pending;
            }
            // Before the look, so that what comes after it wakes.
            self.arrived.register(cx.waker());
            let taken =
                self.fetched.take(BATCH_RECORDS_MAX, BATCH_BYTES_MAX, |place| lock(&self.group).fetched.get(&place).copied());
            let mut group = lock(&self.group);
            let more = taken.others.into_iter().map(|other| match other {
                native::Other::AtEnd { generation, partition, offset } => SourceEvent::AtEnd { generation, partition, offset },
                native::Other::Failed(error) => SourceEvent::Failed(error),
            });
            // What was read before them goes first.
            let records = (!taken.records.is_empty()).then_some(SourceEvent::Records(taken.records));
            group.events.extend(records.into_iter().chain(more));
            if group.events.is_empty() && taken.is_empty {
                return Poll::Pending;
            }
        }
    }
}

impl RecordSource for Member {
    fn topic(&mut self) -> BoxFuture<Result<TopicInfo, SourceError>> {
        let (consumer, topic) = (self.consumer.clone(), self.topic.clone());
        let answer = self.blocking(move || topic_info(&consumer, &topic));
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(gone())) })
    }

    fn committed(&mut self, partitions: &[i32]) -> BoxFuture<Result<Vec<(i32, i64)>, SourceError>> {
        let list = match self.list(partitions.iter().map(|p| (*p, Offset::Invalid))) {
            Ok(list) => list,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        let (consumer, words) = (self.consumer.clone(), self.words.clone());
        let answer = self.blocking(move || {
            let found = consumer.committed_offsets(list, REQUEST_TIMEOUT).map_err(|error| words.explain(&error, None))?;
            let offsets = found.elements().into_iter().filter_map(|element| match element.offset() {
                Offset::Offset(offset) => Some((element.partition(), offset)),
                _ => None,
            });
            Ok(offsets.collect())
        });
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(gone())) })
    }

    fn since(&mut self, partitions: &[i32], timestamp_ms: u64) -> BoxFuture<Result<Vec<(i32, i64)>, SourceError>> {
        let (consumer, topic, partitions) = (self.consumer.clone(), self.topic.clone(), partitions.to_vec());
        let bound = native::Bound::Since(i64::try_from(timestamp_ms).unwrap_or(i64::MAX));
        let answer = self.blocking(move || {
            let found = native::offsets(consumer.client(), &topic, &partitions, bound, REQUEST_TIMEOUT)?;
            Ok(found.into_iter().filter_map(|(partition, offset)| Some((partition, offset.ok().filter(|o| *o >= 0)?))).collect())
        });
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(gone())) })
    }

    fn subscribe(&mut self) -> Result<(), SourceError> {
        self.consumer.subscribe(&[&self.topic]).map_err(|error| self.error(&error))
    }

    fn next(&mut self, takes_records: bool) -> BoxNext<'_> {
        let this = &*self;
        Box::pin(async move {
            let mut stream = this.consumer.stream();
            std::future::poll_fn(|cx| this.poll_next(&mut stream, takes_records, cx)).await
        })
    }

    fn assign(&mut self, generation: u64, starts: &[(i32, i64)]) -> Result<(), SourceError> {
        let list = self.list(starts.iter().map(|(partition, offset)| (*partition, Offset::Offset(*offset))))?;
        lock(&self.group).fetched.extend(starts.iter().map(|(partition, _)| (*partition, generation)));
        let partitions: Vec<i32> = starts.iter().map(|(partition, _)| *partition).collect();
        // Before, so that nothing comes through the other queue. After, since the end of an earlier assignment undoes it.
        self.fetched.forward(self.consumer.client(), &self.topic, &partitions)?;
        let done = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_assign(&list),
            _ => self.consumer.assign(&list),
        };
        done.map_err(|error| self.error(&error))?;
        self.fetched.forward(self.consumer.client(), &self.topic, &partitions)
    }

    fn release(&mut self, _: u64, partitions: &[i32]) -> Result<(), SourceError> {
        let list = self.list(partitions.iter().map(|partition| (*partition, Offset::Invalid)))?;
        unassign(&*self.consumer, &list).map_err(|error| self.error(&error))
    }

    fn hold(&mut self, partitions: &[i32]) -> Result<(), SourceError> {
        native::Fetched::stop_forwarding(self.consumer.client(), &self.topic, partitions)
    }

    fn resume(&mut self, partitions: &[i32]) -> Result<(), SourceError> {
        self.fetched.forward(self.consumer.client(), &self.topic, partitions)
    }

    fn commit(&mut self, positions: &[(i32, i64)]) {
        let list = self.list(positions.iter().map(|(partition, offset)| (*partition, Offset::Offset(*offset))));
        let done = list.and_then(|list| self.consumer.commit(&list, CommitMode::Async).map_err(|error| self.error(&error)));
        if let Err(error) = done {
            // Positions are kept by us; the next commit covers this one.
            tracing::debug!(%error, "commit to the group");
        }
    }

    fn commit_now(&mut self, positions: &[(i32, i64)]) -> BoxFuture<Result<(), SourceError>> {
        let list = match self.list(positions.iter().map(|(partition, offset)| (*partition, Offset::Offset(*offset)))) {
            Ok(list) => list,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        let (consumer, words) = (self.consumer.clone(), self.words.clone());
        let answer = self.blocking(move || consumer.commit(&list, CommitMode::Sync).map_err(|error| words.explain(&error, None)));
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(gone())) })
    }

    fn close(self: Box<Self>) -> BoxFuture<()> {
        lock(&self.group).is_closing = true;
        let consumer = self.consumer.clone();
        // The destructor leaves the group, and blocks meanwhile.
        let done = self.blocking(move || drop(consumer));
        drop(self);
        Box::pin(async move {
            // Nothing is left to be done if its thread has gone.
            let _ = done.await;
        })
    }
}

/// A stepper of one step.
struct Once(Option<Box<dyn FnOnce() + Send>>);

impl Steps for Once {
    fn step(&mut self) -> Step {
        if let Some(work) = self.0.take() {
            work();
        }
        Step::Done
    }
}

fn topic_info(consumer: &StreamConsumer<Callbacks>, topic: &str) -> Result<TopicInfo, SourceError> {
    let client = consumer.client();
    let (id, partitions) = native::describe(client, topic, REQUEST_TIMEOUT)?;
    let mut low = native::offsets(client, topic, &partitions, native::Bound::Low, REQUEST_TIMEOUT)?;
    let mut high = native::offsets(client, topic, &partitions, native::Bound::High, REQUEST_TIMEOUT)?;
    let mut info = TopicInfo { id, ..TopicInfo::default() };
    for partition in partitions {
        // One without a leader leaves the others alone.
        let silent = || Err(SourceError::new(ErrorKind::Unavailable, "no broker says where it begins and ends"));
        match (low.remove(&partition).unwrap_or_else(silent), high.remove(&partition).unwrap_or_else(silent)) {
            (Ok(low), Ok(high)) => info.partitions.push(PartitionOffsets { partition, low, high }),
            (Err(error), _) | (_, Err(error)) => info.unknown.push((partition, error)),
        }
    }
    Ok(info)
}

fn gone() -> SourceError {
    SourceError::new(ErrorKind::Unavailable, "there was no thread for a request to Kafka")
}

#[cfg(test)]
mod tests;
