//! What this room's tests share: a catalog, a subscription, and scripts in place of the broker and the partitions.

use crate::admission::{Admission, Durable, ParkedTotal};
use crate::source::{
    BoxNext, KafkaRecord, PartitionOffsets, RecordSource, SourceClient, SourceError, SourceEvent, SourceSpec, TopicInfo,
};
use crate::status::lock;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use surefoot_env::{BoxFuture, Wake};
use surefoot_model::catalog::{CatalogEvent, Deployment, Handler, KafkaCluster, Service, ServiceKind, Subscription};
use surefoot_model::{Catalog, DeploymentId, Event, Lsn, PartitionId, StreamId, SubscriptionId, TargetKind, Timestamp};
use surefoot_partition::Stopped;
use tokio::sync::{Notify, mpsc, oneshot};

pub(crate) const PARTITIONS: u16 = 4;

pub(crate) fn cluster() -> KafkaCluster {
    let properties = [("bootstrap.servers".to_owned(), "127.0.0.1:1".to_owned())].into();
    KafkaCluster { name: "main".into(), properties, created_at: Timestamp(0) }
}

/// Of topic `orders` to `Counter/add`; not resolved yet.
pub(crate) fn subscription() -> Subscription {
    Subscription {
        id: SubscriptionId(0x1234_5678),
        cluster: "main".into(),
        topic: "orders".into(),
        service: "Counter".into(),
        handler: "add".into(),
        options: BTreeMap::new(),
        created_at: Timestamp(0),
        epoch: 0,
        topic_id: 0,
        resolved: false,
        closing: None,
    }
}

/// `Counter/add` (object), `Flow/run` (workflow) and `Svc/echo` (service).
pub(crate) fn catalog() -> Catalog {
    let services = [
        ("Counter", ServiceKind::VirtualObject, "add", TargetKind::ObjectExclusive),
        ("Flow", ServiceKind::Workflow, "run", TargetKind::WorkflowRun),
        ("Svc", ServiceKind::Service, "echo", TargetKind::Service),
    ]
    .map(|(name, kind, handler, target)| Service::new(name, kind, [Handler::new(handler, target)]));
    let mut catalog = Catalog::default();
    register(&mut catalog, Deployment::at(DeploymentId(1), "http://127.0.0.1:9080/").serving(services));
    catalog
}

fn register(catalog: &mut Catalog, deployment: Deployment) {
    for service in &deployment.services {
        catalog.services.insert(service.name.clone(), Arc::new(service.clone()));
    }
    catalog.deployments.insert(deployment.id, Arc::new(deployment));
}

/// Partitions that remember what was appended, and make it durable when told to.
#[derive(Clone)]
pub(crate) struct Node(Arc<NodeInner>);

struct NodeInner {
    catalog: Mutex<Catalog>,
    pub(crate) changed: Wake,
    appended: Mutex<Vec<(PartitionId, Event)>>,
    waiting: Mutex<Vec<(Durable, Lsn)>>,
    opened: Mutex<Vec<u32>>,
    closed: Mutex<Vec<SubscriptionId>>,
    /// What partitions say they took.
    watermarks: Mutex<BTreeMap<StreamId, i64>>,
    state: Mutex<NodeState>,
    something: Notify,
}

struct NodeState {
    is_open: bool,
    durable_at_once: bool,
    parked: ParkedTotal,
    stopped: Option<PartitionId>,
    /// Its task panics as often as this when it looks at the catalog.
    panics: u32,
}

impl Node {
    pub(crate) fn new() -> Self {
        let mut catalog = catalog();
        catalog.kafka_clusters.insert("main".into(), Arc::new(cluster()));
        Self(Arc::new(NodeInner {
            catalog: Mutex::new(catalog),
            changed: Wake::new(),
            appended: Mutex::default(),
            waiting: Mutex::default(),
            opened: Mutex::default(),
            closed: Mutex::default(),
            watermarks: Mutex::default(),
            state: Mutex::new(NodeState {
                is_open: true,
                durable_at_once: true,
                parked: ParkedTotal::default(),
                stopped: None,
                panics: 0,
            }),
            something: Notify::new(),
        }))
    }

    pub(crate) fn changed(&self) -> Wake {
        self.0.changed.clone()
    }

    pub(crate) fn edit(&self, edit: impl FnOnce(&mut Catalog)) {
        edit(&mut lock(&self.0.catalog));
        self.0.changed.wake();
        self.0.something.notify_waiters();
    }

    /// Whether appends get room at the edge.
    pub(crate) fn set_open(&self, is_open: bool) {
        lock(&self.0.state).is_open = is_open;
        self.0.something.notify_waiters();
    }

    pub(crate) fn set_durable_at_once(&self, at_once: bool) {
        lock(&self.0.state).durable_at_once = at_once;
    }

    /// Makes all durable that is not.
    pub(crate) fn sync(&self) {
        let waiting = std::mem::take(&mut *lock(&self.0.waiting));
        waiting.into_iter().for_each(|(durable, lsn)| durable(lsn));
    }

    pub(crate) fn set_parked(&self, records: u64, bytes: u64) {
        lock(&self.0.state).parked = ParkedTotal { records, bytes };
    }

    /// It applies nothing, whatever is durable there.
    pub(crate) fn stop_partition(&self, partition: Option<PartitionId>) {
        lock(&self.0.state).stopped = partition;
    }

    pub(crate) fn panic_next(&self, times: u32) {
        lock(&self.0.state).panics = times;
    }

    pub(crate) fn opened(&self) -> Vec<u32> {
        lock(&self.0.opened).clone()
    }

    pub(crate) fn set_watermarks(&self, watermarks: impl IntoIterator<Item = (StreamId, i64)>) {
        lock(&self.0.watermarks).extend(watermarks);
    }

    pub(crate) fn closed(&self) -> Vec<SubscriptionId> {
        lock(&self.0.closed).clone()
    }

    /// Kafka partition and offset of each event, in order of appending.
    pub(crate) fn sources(&self) -> Vec<(i32, i64)> {
        let appended = lock(&self.0.appended);
        let sources = appended.iter().map(|(_, event)| match event {
            Event::InvocationSubmitted(submission) => submission.source.expect("made of a Kafka record"),
            Event::RecordParked(record) => record.source,
            other => panic!("no source appends {other:?}"),
        });
        sources.map(|source| (source.stream.partition, source.offset)).collect()
    }

    /// All that was appended, in order.
    pub(crate) fn events(&self) -> Vec<Event> {
        lock(&self.0.appended).iter().map(|(_, event)| event.clone()).collect()
    }

    /// Completes once the condition holds.
    pub(crate) async fn until(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.0.something.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if condition(self) {
                return;
            }
            changed.await;
        }
    }
}

impl Admission for Node {
    fn count(&self) -> u16 {
        PARTITIONS
    }

    fn catalog(&self) -> Arc<Catalog> {
        Arc::new(lock(&self.0.catalog).clone())
    }

    fn append(&self, partition: PartitionId, event: Event, durable: Durable) -> BoxFuture<Result<(), Stopped>> {
        let node = self.clone();
        Box::pin(async move {
            node.until(|node| lock(&node.0.state).is_open).await;
            let lsn = {
                let appended = &mut *lock(&node.0.appended);
                appended.push((partition, event));
                Lsn(appended.len() as u64)
            };
            if lock(&node.0.state).durable_at_once {
                durable(lsn);
            } else {
                lock(&node.0.waiting).push((durable, lsn));
            }
            node.0.something.notify_waiters();
            Ok(())
        })
    }

    fn applied(&self, partition: PartitionId) -> Lsn {
        if self.is_stopped(partition) { Lsn(0) } else { Lsn(u64::MAX) }
    }

    fn is_stopped(&self, partition: PartitionId) -> bool {
        lock(&self.0.state).stopped == Some(partition)
    }

    fn change_catalog(&self, event: CatalogEvent) -> BoxFuture<Result<(), Stopped>> {
        self.edit(|catalog| match event {
            CatalogEvent::SubscriptionStored(subscription, positions) => {
                catalog.subscriptions.insert(subscription.id, Arc::new(subscription));
                catalog.positions.extend(positions);
            }
            CatalogEvent::PositionsAdvanced(positions) => catalog.positions.extend(positions),
            CatalogEvent::SubscriptionDeleted(id) => {
                catalog.subscriptions.remove(&id);
                catalog.positions.retain(|stream, _| stream.subscription != id);
            }
            other => panic!("no source stores {other:?}"),
        });
        Box::pin(std::future::ready(Ok(())))
    }

    fn open_source(&self, _: SubscriptionId, epoch: u32) -> BoxFuture<Result<(), Stopped>> {
        let panics = std::mem::take(&mut lock(&self.0.state).panics);
        lock(&self.0.state).panics = panics.saturating_sub(1);
        assert!(panics == 0, "a broken invariant of the test");
        lock(&self.0.opened).push(epoch);
        Box::pin(std::future::ready(Ok(())))
    }

    fn close_source(&self, subscription: SubscriptionId) -> BoxFuture<Result<(), Stopped>> {
        lock(&self.0.closed).push(subscription);
        self.sync();
        self.0.something.notify_waiters();
        Box::pin(std::future::ready(Ok(())))
    }

    fn watermarks(&self, _: SubscriptionId, _: u32) -> BoxFuture<Result<BTreeMap<StreamId, i64>, Stopped>> {
        Box::pin(std::future::ready(Ok(lock(&self.0.watermarks).clone())))
    }

    fn parked(&self, _: SubscriptionId) -> BoxFuture<Result<ParkedTotal, Stopped>> {
        Box::pin(std::future::ready(Ok(lock(&self.0.state).parked)))
    }
}

/// What a source was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Opened(BTreeMap<String, String>),
    AskedSince(Vec<i32>, u64),
    /// And it was held back.
    AskedTopic,
    Subscribed,
    Assigned(Vec<(i32, i64)>),
    Released(Vec<i32>),
    Held(Vec<i32>),
    Resumed(Vec<i32>),
    Committed(Vec<(i32, i64)>),
    CommittedNow(Vec<(i32, i64)>),
    Closed,
}

/// A broker that says what it is told to.
#[derive(Clone)]
pub(crate) struct Broker(Arc<BrokerInner>);

struct BrokerInner {
    topic: Mutex<Result<TopicInfo, SourceError>>,
    committed: Mutex<Vec<(i32, i64)>>,
    /// What it says of the first Kafka records since a time.
    since: Mutex<Vec<(i32, i64)>>,
    /// Only a member may commit.
    refuses_strangers: AtomicBool,
    /// What the next commit that is waited for fails with, once that is known.
    next_failure: Mutex<Option<oneshot::Receiver<SourceError>>>,
    /// Lets the next look at the topic go on.
    held_topic: Mutex<Option<Arc<Notify>>>,
    told: Mutex<Vec<Told>>,
    events: Mutex<VecDeque<SourceEvent>>,
    event: Notify,
    telling: mpsc::UnboundedSender<Told>,
    hearing: tokio::sync::Mutex<mpsc::UnboundedReceiver<Told>>,
}

impl Broker {
    pub(crate) fn new(topic: Result<TopicInfo, SourceError>) -> Self {
        let (telling, hearing) = mpsc::unbounded_channel();
        Self(Arc::new(BrokerInner {
            topic: Mutex::new(topic),
            committed: Mutex::default(),
            since: Mutex::default(),
            refuses_strangers: AtomicBool::new(false),
            next_failure: Mutex::default(),
            held_topic: Mutex::default(),
            told: Mutex::default(),
            events: Mutex::default(),
            event: Notify::new(),
            telling,
            hearing: tokio::sync::Mutex::new(hearing),
        }))
    }

    pub(crate) fn set_topic(&self, topic: Result<TopicInfo, SourceError>) {
        *lock(&self.0.topic) = topic;
    }

    pub(crate) fn send(&self, event: SourceEvent) {
        lock(&self.0.events).push_back(event);
        self.0.event.notify_one();
    }

    pub(crate) fn set_committed(&self, committed: &[(i32, i64)]) {
        *lock(&self.0.committed) = committed.to_vec();
    }

    pub(crate) fn set_since(&self, since: &[(i32, i64)]) {
        *lock(&self.0.since) = since.to_vec();
    }

    /// As where the group has members, or waits for one that was killed.
    pub(crate) fn refuse_strangers(&self) {
        self.0.refuses_strangers.store(true, Ordering::Relaxed);
    }

    /// The next commit that is waited for is under way until it is said what it fails with.
    pub(crate) fn fail_next_commit(&self) -> oneshot::Sender<SourceError> {
        let (sender, failure) = oneshot::channel();
        *lock(&self.0.next_failure) = Some(failure);
        sender
    }

    /// The next look at the topic waits until it is let go on.
    pub(crate) fn hold_topic(&self) -> Arc<Notify> {
        lock(&self.0.held_topic).insert(Arc::default()).clone()
    }

    /// Kafka records' batches that were not asked for yet.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.0.events).iter().filter(|event| matches!(event, SourceEvent::Records(_))).count()
    }

    /// Completes once it is told something that passes; what came before is skipped.
    pub(crate) async fn heard(&self, passes: impl Fn(&Told) -> bool) -> Told {
        let mut hearing = self.0.hearing.lock().await;
        loop {
            let told = hearing.recv().await.expect("the sender lives in the broker");
            if passes(&told) {
                return told;
            }
        }
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        lock(&self.0.told).clone()
    }

    fn tell(&self, told: Told) {
        lock(&self.0.told).push(told.clone());
        self.0.telling.send(told).expect("the receiver lives in the broker");
    }
}

impl SourceClient for Broker {
    fn open(&self, spec: &SourceSpec, _: usize) -> Result<Box<dyn RecordSource>, SourceError> {
        self.tell(Told::Opened(spec.properties.clone()));
        Ok(Box::new(self.clone()))
    }
}

impl RecordSource for Broker {
    fn topic(&mut self) -> BoxFuture<Result<TopicInfo, SourceError>> {
        let held = lock(&self.0.held_topic).take();
        let broker = self.clone();
        Box::pin(async move {
            if let Some(held) = held {
                broker.tell(Told::AskedTopic);
                held.notified().await;
            }
            lock(&broker.0.topic).clone()
        })
    }

    fn committed(&mut self, _: &[i32]) -> BoxFuture<Result<Vec<(i32, i64)>, SourceError>> {
        Box::pin(std::future::ready(Ok(lock(&self.0.committed).clone())))
    }

    fn since(&mut self, partitions: &[i32], timestamp_ms: u64) -> BoxFuture<Result<Vec<(i32, i64)>, SourceError>> {
        self.tell(Told::AskedSince(partitions.to_vec(), timestamp_ms));
        Box::pin(std::future::ready(Ok(lock(&self.0.since).clone())))
    }

    fn subscribe(&mut self) -> Result<(), SourceError> {
        self.tell(Told::Subscribed);
        Ok(())
    }

    fn next(&mut self, takes_records: bool) -> BoxNext<'_> {
        Box::pin(async move {
            loop {
                {
                    let mut events = lock(&self.0.events);
                    let is_data = |event: &SourceEvent| matches!(event, SourceEvent::Records(_) | SourceEvent::AtEnd { .. });
                    if let Some(at) = events.iter().position(|event| takes_records || !is_data(event)) {
                        return events.remove(at).expect("it was just found");
                    }
                }
                self.0.event.notified().await;
            }
        })
    }

    fn assign(&mut self, _: u64, starts: &[(i32, i64)]) -> Result<(), SourceError> {
        self.tell(Told::Assigned(starts.to_vec()));
        Ok(())
    }

    fn release(&mut self, _: u64, partitions: &[i32]) -> Result<(), SourceError> {
        self.tell(Told::Released(partitions.to_vec()));
        Ok(())
    }

    fn hold(&mut self, partitions: &[i32]) -> Result<(), SourceError> {
        self.tell(Told::Held(partitions.to_vec()));
        Ok(())
    }

    fn resume(&mut self, partitions: &[i32]) -> Result<(), SourceError> {
        self.tell(Told::Resumed(partitions.to_vec()));
        Ok(())
    }

    fn commit(&mut self, positions: &[(i32, i64)]) {
        self.tell(Told::Committed(positions.to_vec()));
    }

    fn commit_now(&mut self, positions: &[(i32, i64)]) -> BoxFuture<Result<(), SourceError>> {
        let told = self.told();
        let life = told.rsplit(|told| matches!(told, Told::Opened(_))).next().unwrap_or_default();
        if self.0.refuses_strangers.load(Ordering::Relaxed) && !life.contains(&Told::Subscribed) {
            return Box::pin(std::future::ready(Err(SourceError::new(crate::ErrorKind::Unavailable, "an unknown member"))));
        }
        if let Some(failure) = lock(&self.0.next_failure).take() {
            self.tell(Told::CommittedNow(positions.to_vec()));
            return Box::pin(async move { Err(failure.await.expect("the test says what it fails with")) });
        }
        let mut committed = lock(&self.0.committed);
        committed.retain(|(partition, _)| positions.iter().all(|(told, _)| told != partition));
        committed.extend(positions);
        drop(committed);
        self.tell(Told::CommittedNow(positions.to_vec()));
        Box::pin(std::future::ready(Ok(())))
    }

    fn close(self: Box<Self>) -> BoxFuture<()> {
        self.tell(Told::Closed);
        Box::pin(std::future::ready(()))
    }
}

/// A topic whose Kafka partitions begin and end so.
pub(crate) fn topic(id: u128, offsets: &[(i64, i64)]) -> TopicInfo {
    let partitions = offsets.iter().enumerate();
    let partitions = partitions.map(|(n, (low, high))| PartitionOffsets { partition: n as i32, low: *low, high: *high });
    TopicInfo { id, partitions: partitions.collect(), unknown: Vec::new() }
}

/// A Kafka record with key `k` and value `v`.
pub(crate) fn record(generation: u64, partition: i32, offset: i64) -> KafkaRecord {
    KafkaRecord {
        generation,
        partition,
        offset,
        key: Some(Bytes::from_static(b"k")),
        value: Some(Bytes::from_static(b"v")),
        ..KafkaRecord::default()
    }
}
