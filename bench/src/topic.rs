//! Kafka for the bench: a broker, topics, and records in them.
//!
//! Owns: making a topic and filling it. The broker is the one of the process tests, or any that is given.

use anyhow::{Context, Result, anyhow, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use std::time::Duration;
use surefoot_sdk_tests::{Broker, languages};

pub(crate) const PARTITIONS: i32 = 4;
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const PRODUCE_LIMIT: Duration = Duration::from_secs(120);
/// Above `MOST_RECORDS`, so that the producer takes a whole topic at once.
const QUEUE_RECORDS: &str = "1100000";
/// The most records that a topic is filled with.
pub(crate) const MOST_RECORDS: u64 = 1_000_000;

/// A broker to measure with.
#[derive(Debug)]
pub(crate) struct Kafka {
    bootstrap: String,
    /// Runs for as long as this lives, if it is ours.
    _broker: Option<Broker>,
}

impl Kafka {
    /// The broker at `bootstrap`, or one of our own.
    pub(crate) async fn open(bootstrap: Option<String>) -> Result<Self> {
        if let Some(bootstrap) = bootstrap {
            return Ok(Self { bootstrap, _broker: None });
        }
        languages::prepare_broker().context("give a broker with --bootstrap, or make one possible")?;
        let broker = Broker::start().await?;
        Ok(Self { bootstrap: broker.address(), _broker: Some(broker) })
    }

    pub(crate) fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    pub(crate) async fn create_topic(&self, name: &str) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.config().create().context("make an admin client")?;
        let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
        let results = admin.create_topics([&topic], &AdminOptions::new()).await.context("create the topic")?;
        results.into_iter().try_for_each(|result| result.map(drop).map_err(|(name, code)| anyhow!("create topic {name}: {code}")))
    }

    /// Adds `count` records whose value is `value`, their keys in turn from `key`; returns once the broker holds them all.
    /// Blocks. One key is always in the same Kafka partition, and the partitions get equally many.
    pub(crate) fn produce(&self, topic: &str, count: u64, value: &str, key: impl Fn(u64) -> (i32, String)) -> Result<()> {
        let before = self.held(topic)?;
        let mut config = self.config();
        config.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", "5");
        config.set("queue.buffering.max.messages", QUEUE_RECORDS);
        let producer: ThreadedProducer<DefaultProducerContext> = config.create().context("make a producer")?;
        for n in 0..count {
            let (partition, key) = key(n);
            let record = BaseRecord::to(topic).partition(partition).key(&key).payload(value);
            producer.send(record).map_err(|(error, _)| error).context("produce")?;
        }
        producer.flush(PRODUCE_LIMIT).context("wait for the broker's acknowledgements")?;
        let added = self.held(topic)? - before;
        ensure!(added == count, "the topic took {added} of {count} records");
        Ok(())
    }

    /// How many records a topic holds.
    fn held(&self, topic: &str) -> Result<u64> {
        let consumer: BaseConsumer = self.config().create().context("make a client")?;
        let mut held = 0;
        for partition in 0..PARTITIONS {
            let (low, high) = consumer.fetch_watermarks(topic, partition, REQUEST_LIMIT).context("ask how far the topic is")?;
            held += u64::try_from(high - low).context("subtract offsets")?;
        }
        Ok(held)
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        config
    }
}
