//! The Kafka broker, which lives in this process and so outlives the killed ones: librdkafka's mock cluster.
//!
//! Owns: the topic, sending events to it at a rate, and what the mock asks of a subscription. Does not own: what is sent.

mod native;

use crate::events::Events;
use anyhow::{Context, Result};
use futures_util::stream::{FuturesUnordered, StreamExt};
use rdkafka::ClientConfig;
use rdkafka::bindings::rd_kafka_resp_err_t;
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::types::RDKafkaApiKey;
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant, SystemTime};
use tokio::time::{MissedTickBehavior, interval};

pub(crate) const TOPIC: &str = "posts";
/// Kafka partitions of the topic.
pub(crate) const PARTITIONS: usize = 4;
const BROKERS: i32 = 1;
/// How long a group without members waits for others after its first has come. The mock's own value is 3 seconds, in which it
/// forgets a member whose session is as short as below.
const JOIN_DELAY: Duration = Duration::from_millis(10);
/// What a subscription has to set because of the mock.
pub(crate) const PROPERTIES: [(&str, &str); 4] = [
    // Static membership is ignored: a server that was killed stays a member until its session times out, where a real broker would
    // give its place to its successor at once. The group also waits for others for as long as the session lasts beyond one second.
    ("session.timeout.ms", "1010"),
    ("heartbeat.interval.ms", "200"),
    // Bounds how long the client waits for an answer that the mock has forgotten.
    ("max.poll.interval.ms", "10000"),
    // A fetch that finds nothing is answered only when this is over, also if something has come meanwhile.
    ("fetch.wait.max.ms", "5"),
];
/// How often events are sent that have become due.
const SEND_EVERY: Duration = Duration::from_millis(5);

pub(crate) struct Broker {
    /// The cluster lives in it.
    producer: FutureProducer,
    address: String,
}

/// How far sending is.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// When each event was handed to the producer, by its number.
    at: RefCell<Vec<SystemTime>>,
    acknowledged: Cell<usize>,
}

impl Broker {
    pub(crate) fn start() -> Result<Self> {
        let mut config = ClientConfig::new();
        config.set("test.mock.num.brokers", BROKERS.to_string());
        config.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", "1");
        let producer: FutureProducer = config.create().context("start the mock cluster")?;
        native::set_join_delay(producer.client(), JOIN_DELAY)?;
        let cluster = producer.client().mock_cluster().context("find the mock cluster")?;
        cluster.create_topic(TOPIC, PARTITIONS as i32, BROKERS).context("create the topic")?;
        let address = cluster.bootstrap_servers();
        drop(cluster);
        Ok(Self { producer, address })
    }

    /// For `bootstrap.servers`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Refuses the next member that wants to join. Call before one is killed: a successor that joins while the dead one is still a
    /// member waits for it, in vain and more than once, 4 s in all at worst. One that is refused comes back after some 2 s, when the
    /// dead one's session has ended.
    pub(crate) fn refuse_next_join(&self) -> Result<()> {
        let cluster = self.producer.client().mock_cluster().context("find the mock cluster")?;
        cluster.clear_request_errors(RDKafkaApiKey::JoinGroup);
        let error = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID;
        cluster.request_errors(RDKafkaApiKey::JoinGroup, &[error]);
        Ok(())
    }

    /// Sends all events in their order, `rate` in a second, and returns once the broker has acknowledged them. Order holds per
    /// Kafka partition.
    pub(crate) async fn send(&self, events: Events, rate: u64, sent: &Sent) -> Result<()> {
        let mut deliveries = FuturesUnordered::<DeliveryFuture>::new();
        let mut ticks = interval(SEND_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let start = Instant::now();
        while sent.acknowledged.get() < events.count() {
            tokio::select! {
                biased;
                // Dropped, it stays among the deliveries.
                Some(delivery) = deliveries.next() => {
                    let delivered = delivery.context("wait for the broker's acknowledgement")?;
                    delivered.map_err(|(error, _)| error).context("send an event")?;
                    sent.acknowledged.set(sent.acknowledged.get() + 1);
                }
                // The next tick is as good.
                _ = ticks.tick() => {
                    let due = 1 + start.elapsed().as_millis() * u128::from(rate) / 1000;
                    let due = usize::try_from(due).unwrap_or(usize::MAX).min(events.count());
                    for n in sent.count()..due {
                        sent.at.borrow_mut().push(SystemTime::now());
                        deliveries.push(self.hand_over(events, n)?);
                    }
                }
            }
        }
        Ok(())
    }

    fn hand_over(&self, events: Events, n: usize) -> Result<DeliveryFuture> {
        let (key, value) = (events.user(n), events.value(n).to_string());
        let partition = events.partition(n, PARTITIONS) as i32;
        let record = FutureRecord::to(TOPIC).key(&key).payload(&value).partition(partition);
        self.producer.send_result(record).map_err(|(error, _)| error).context("send an event")
    }
}

impl Sent {
    /// Events handed to the producer.
    pub(crate) fn count(&self) -> usize {
        self.at.borrow().len()
    }

    /// Events that the broker has acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.get()
    }

    /// When event `n` was handed to the producer.
    pub(crate) fn at(&self, n: usize) -> Option<SystemTime> {
        self.at.borrow().get(n).copied()
    }
}
