//! The seam's promises over librdkafka, against its own mock cluster. What the mock cannot (static membership, topic ids of a
//! topic made again) is tested against a real broker by the process tests.
#![allow(clippy::disallowed_methods, reason = "the test runtime waits and measures in the world")]

use super::*;
use crate::source::KafkaRecord;
use bytes::Bytes;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use surefoot_env::Env;
use surefoot_model::SubscriptionId;

const TOPIC: &str = "orders";

struct Kafka {
    cluster: MockCluster<'static, DefaultProducerContext>,
    producer: BaseProducer,
}

impl Kafka {
    fn new() -> Self {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 2, 1).unwrap();
        let producer = ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().unwrap();
        Self { cluster, producer }
    }

    fn produce(&self, partition: i32, values: &[&str]) {
        for value in values {
            let headers = OwnedHeaders::new().insert(Header { key: "h", value: Some("1") });
            let record = BaseRecord::to(TOPIC).partition(partition).key("k").payload(*value).headers(headers);
            self.producer.send(record).unwrap();
        }
        self.producer.flush(Duration::from_secs(10)).unwrap();
    }

    fn open(&self, group: &str, more: &[(&str, &str)]) -> Box<dyn RecordSource> {
        let mut properties: BTreeMap<String, String> = [
            ("bootstrap.servers", self.cluster.bootstrap_servers().as_str()),
            ("group.id", group),
            ("auto.offset.reset", "error"),
            ("enable.auto.commit", "false"),
            ("session.timeout.ms", "6000"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        properties.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let env = Env::production(tokio::runtime::Handle::current());
        let spec = SourceSpec { subscription: SubscriptionId(1), topic: TOPIC.into(), properties };
        Librdkafka::new(env.tasks).open(&spec, 16 << 20).unwrap()
    }
}

/// The next event that is not a passing complaint.
async fn next(source: &mut Box<dyn RecordSource>) -> SourceEvent {
    loop {
        match tokio::time::timeout(Duration::from_secs(30), source.next(true)).await.expect("an event in time") {
            SourceEvent::Failed(error) if error.kind == ErrorKind::Unavailable => {}
            SourceEvent::AtEnd { .. } => {}
            event => return event,
        }
    }
}

async fn joined(source: &mut Box<dyn RecordSource>) -> (u64, Vec<i32>) {
    source.subscribe().unwrap();
    match next(source).await {
        SourceEvent::Assigned { generation, partitions } => (generation, partitions),
        other => panic!("not assigned: {other:?}"),
    }
}

async fn records(source: &mut Box<dyn RecordSource>, count: usize) -> Vec<KafkaRecord> {
    let mut found = Vec::new();
    while found.len() < count {
        match next(source).await {
            SourceEvent::Records(records) => found.extend(records),
            other => panic!("not records: {other:?}"),
        }
    }
    found
}

fn values(records: &[KafkaRecord]) -> Vec<&[u8]> {
    records.iter().map(|record| record.value.as_deref().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_from_the_given_offsets_commits_and_leaves() {
    let kafka = Kafka::new();
    kafka.produce(0, &["a", "b", "c"]);
    let mut source = kafka.open("g1", &[("group.instance.id", "surefoot-1")]);
    let topic = source.topic().await.unwrap();
    let ends: Vec<_> = topic.partitions.iter().map(|p| (p.partition, p.low, p.high)).collect();
    assert_eq!(ends, [(0, 0, 3), (1, 0, 0)]);
    assert_ne!(topic.id, 0);
    assert_eq!(source.committed(&[0, 1]).await.unwrap(), []);

    let (generation, partitions) = joined(&mut source).await;
    assert_eq!(partitions, [0, 1]);
    source.assign(generation, &[(0, 1), (1, 0)]).unwrap();
    let read = records(&mut source, 2).await;
    assert_eq!(values(&read), [b"b", b"c"]);
    let first = &read[0];
    assert_eq!((first.generation, first.partition, first.offset), (generation, 0, 1));
    assert_eq!(first.key.as_deref(), Some(&b"k"[..]));
    assert!(first.timestamp_ms.is_some());
    assert_eq!(first.headers, [("h".to_owned(), Some(Bytes::from_static(b"1")))]);

    source.commit(&[(0, 3)]);
    source.close().await;
    let mut other = kafka.open("g1", &[]);
    // The commit was sent before the group was left.
    assert_eq!(other.committed(&[0, 1]).await.unwrap(), [(0, 3)]);
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_asked_for_or_held_waits_and_is_kept() {
    let kafka = Kafka::new();
    let mut source = kafka.open("g2", &[]);
    let (generation, _) = joined(&mut source).await;
    source.assign(generation, &[(0, 0), (1, 0)]).unwrap();
    kafka.produce(0, &["a"]);
    let early = tokio::time::timeout(Duration::from_millis(500), source.next(false)).await;
    assert!(!matches!(early, Ok(SourceEvent::Records(_))));
    assert_eq!(values(&records(&mut source, 1).await), [b"a"]);
    // One that is held leaves the other alone, and comes in order.
    source.hold(&[0]).unwrap();
    kafka.produce(0, &["b", "c"]);
    kafka.produce(1, &["x"]);
    assert_eq!(values(&records(&mut source, 1).await), [b"x"]);
    source.resume(&[0]).unwrap();
    kafka.produce(0, &["d"]);
    assert_eq!(values(&records(&mut source, 3).await), [b"b", b"c", b"d"]);
    source.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_kafka_partition_is_told_behind_its_records() {
    let kafka = Kafka::new();
    kafka.produce(0, &["a", "b"]);
    let mut source = kafka.open("g7", &[("enable.partition.eof", "true")]);
    let (generation, _) = joined(&mut source).await;
    source.assign(generation, &[(0, 0), (1, 0)]).unwrap();
    let (mut read, mut ends) = (0, Vec::new());
    while ends.len() < 2 {
        match tokio::time::timeout(Duration::from_secs(30), source.next(true)).await.expect("an event in time") {
            SourceEvent::Records(records) => read += records.len(),
            SourceEvent::AtEnd { generation: under, partition, offset } => {
                assert_eq!((under, offset), (generation, if partition == 0 { 2 } else { 0 }));
                assert!(partition == 1 || read == 2);
                ends.push(partition);
            }
            _ => {}
        }
    }
    source.close().await;
}

#[test]
fn a_property_is_checked_without_a_broker_and_named_without_its_value() {
    assert_eq!(check_property("fetch.min.bytes", "1"), Ok(()));
    assert_eq!(check_property("acks", "all"), Ok(()), "it is one of topics");
    for (name, value) in [
        ("no.such.property", "hunter2-secret"),
        ("fetch.min.bytes", "hunter2-secret"),
        ("sasl.oauthbearer.client.secret", "hunter2-secret"),
        ("plugin.library.paths", "/tmp/hunter2-secret.so"),
    ] {
        match check_property(name, value) {
            Ok(()) => assert_eq!(name, "sasl.oauthbearer.client.secret", "a build that knows it takes it"),
            Err(error) => {
                let words = error.to_string();
                assert!(words.contains(name) && !words.contains("hunter2"), "{words}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_member_takes_its_share_and_gives_it_back() {
    let kafka = Kafka::new();
    let mut first = kafka.open("g3", &[]);
    let (generation, partitions) = joined(&mut first).await;
    assert_eq!(partitions.len(), 2);
    first.assign(generation, &[(0, 0), (1, 0)]).unwrap();

    let mut second = kafka.open("g3", &[]);
    second.subscribe().unwrap();
    let revoked = tokio::select! {
        biased;
        event = next(&mut first) => event,
        // It is polled meanwhile, as a member has to be, and gets nothing before the first has let go.
        event = next(&mut second) => panic!("assigned while the other holds it: {event:?}"),
    };
    let SourceEvent::Revoked { generation: lost, partitions } = revoked else { panic!("not revoked: {revoked:?}") };
    assert_eq!((lost, partitions.len()), (generation, 2));
    first.release(lost, &partitions).unwrap();
    // A member that is late makes the group begin again: what counts is where it comes to rest.
    let mut held = [Vec::new(), Vec::new()];
    while held.iter().any(|partitions| partitions.len() != 1) {
        let (member, event) = tokio::select! {
            biased;
            // Dropping either loses nothing.
            event = next(&mut first) => (0, event),
            event = next(&mut second) => (1, event),
        };
        let source = if member == 0 { &mut first } else { &mut second };
        match event {
            SourceEvent::Assigned { generation: newer, partitions } => {
                assert!(member == 1 || newer > generation);
                let starts: Vec<_> = partitions.iter().map(|partition| (*partition, 0)).collect();
                source.assign(newer, &starts).unwrap();
                held[member] = partitions;
            }
            SourceEvent::Revoked { generation, partitions } => {
                source.release(generation, &partitions).unwrap();
                held[member].clear();
            }
            other => panic!("neither assigned nor revoked: {other:?}"),
        }
    }
    assert_ne!(held[0], held[1]);
    first.close().await;
    second.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_that_is_not_there_is_reported_and_not_reset() {
    let kafka = Kafka::new();
    kafka.produce(0, &["a"]);
    let mut source = kafka.open("g4", &[]);
    let (generation, _) = joined(&mut source).await;
    source.assign(generation, &[(0, 50), (1, 0)]).unwrap();
    match next(&mut source).await {
        SourceEvent::Failed(error) => assert_eq!(error.kind, ErrorKind::OffsetLost, "{error}"),
        other => panic!("read: {other:?}"),
    }
    source.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topic_a_dead_broker_and_bad_properties_are_told_apart() {
    let kafka = Kafka::new();
    let env = Env::production(tokio::runtime::Handle::current());
    let client = Librdkafka::new(env.tasks);
    let open = |topic: &str, properties: &[(&str, &str)]| {
        let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        client.open(&SourceSpec { subscription: SubscriptionId(1), topic: topic.into(), properties }, 16 << 20)
    };
    let servers = kafka.cluster.bootstrap_servers();
    // The mock creates topics that are asked for; a real broker does so for producers alone.
    kafka.cluster.topic_error("gone", rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    let mut source = open("gone", &[("bootstrap.servers", &servers), ("group.id", "g5")]).unwrap();
    assert_eq!(source.topic().await.unwrap_err().kind, ErrorKind::TopicMissing);
    source.close().await;

    let mut source = open(TOPIC, &[("bootstrap.servers", "127.0.0.1:1"), ("group.id", "g5")]).unwrap();
    assert_eq!(source.topic().await.unwrap_err().kind, ErrorKind::Unavailable);
    source.close().await;

    let Err(error) = open(TOPIC, &[("no.such.property", "1")]) else { panic!("taken") };
    assert!(error.kind == ErrorKind::Refused && error.message.contains("no.such.property"), "{error}");
}
