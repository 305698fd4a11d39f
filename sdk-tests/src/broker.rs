//! A real Apache Kafka broker: one node with the roles broker and controller, on ports that it keeps over its restart; or a second one
//! beside it that is a broker alone.
//!
//! Owns: its files, its topics, and producing to them. The jars come from `languages::prepare_broker`.

use crate::places::{free_port, scratch, temporary};
use crate::process::Process;
use crate::wait::eventually;
use anyhow::{Context, Result, anyhow, ensure};
use futures_util::future::try_join_all;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord};
use std::future::Future;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const START_LIMIT: Duration = Duration::from_secs(90);
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const TOPIC_LIMIT: Duration = Duration::from_secs(60);
/// Outlives a broker's restart.
const DELIVERY_LIMIT_MS: &str = "120000";
/// Any 16 bytes in base64; the broker wants one.
const CLUSTER_ID: &str = "c3VyZWZvb3QtdGVzdHMtMQ";

#[derive(Debug)]
pub struct Broker {
    directory: TempDir,
    port: u16,
    controller: u16,
    process: Option<Process>,
}

/// A Kafka record to produce.
#[derive(Debug, Clone, Default)]
pub struct NewRecord {
    pub key: Option<Vec<u8>>,
    /// `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// `None` leaves it to the hash of the key.
    pub partition: Option<i32>,
}

impl NewRecord {
    pub fn json(key: &str, value: &serde_json::Value) -> Self {
        Self { key: Some(key.into()), value: Some(value.to_string().into_bytes()), partition: None }
    }

    /// Of a given Kafka partition.
    pub fn at(self, partition: i32) -> Self {
        Self { partition: Some(partition), ..self }
    }
}

impl Broker {
    /// Formats a new data directory and starts; returns once the broker takes requests.
    pub async fn start() -> Result<Self> {
        let (port, controller) = (free_port()?, free_port()?);
        let own = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n"
        );
        Self::start_as(&own, port, controller).await
    }

    /// A second broker of the same cluster, on an empty data directory. It may be killed: the controller is this one.
    pub async fn start_second(&self) -> Result<Self> {
        let port = free_port()?;
        let own = format!("process.roles=broker\nnode.id=2\nlisteners=PLAINTEXT://127.0.0.1:{port}\n");
        Self::start_as(&own, port, self.controller).await
    }

    async fn start_as(own: &str, port: u16, controller: u16) -> Result<Self> {
        let directory = temporary("kafka-")?;
        let data = directory.path().join("data");
        // Small and eager: few threads, no waiting for a group to fill up, nothing cleaned or compacted in the lifetime of a test.
        let properties = format!(
            "{own}\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\n\
             log.dirs={data}\n\
             auto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\n\
             broker.session.timeout.ms=3000\n\
             broker.heartbeat.interval.ms=500\n\
             log.cleaner.dedupe.buffer.size=4194304\n\
             file.delete.delay.ms=100\n\
             num.network.threads=2\n\
             num.io.threads=2\n\
             background.threads=2\n",
            data = data.display()
        );
        std::fs::write(directory.path().join("server.properties"), properties).context("write server.properties")?;

        let mut broker = Self { directory, port, controller, process: None };
        let config = broker.config();
        let format = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"];
        let output = broker.java(64).args(format).arg(&config).output().context("start java")?;
        ensure!(output.status.success(), "format the broker's directory: {}", String::from_utf8_lossy(&output.stderr));
        broker.restart().await?;
        Ok(broker)
    }

    /// Starts the process again after a kill, on the same ports and files.
    pub async fn restart(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the broker runs");
        let config = self.config();
        let mut command = self.java(384);
        command.arg("kafka.Kafka").arg(config);
        let mut process = Process::start("the Kafka broker", &mut command, &self.directory.path().join("kafka.log"))?;
        let address = self.address();
        eventually("the Kafka broker", START_LIMIT, || {
            let (alive, address) = (process.expect_running(), address.clone());
            async move {
                alive?;
                topic_partitions(address, None).await.map(drop)
            }
        })
        .await?;
        self.process = Some(process);
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the broker is down")?.kill()
    }

    /// It answers nothing until [`Self::resume`].
    pub fn suspend(&self) -> Result<()> {
        self.process.as_ref().context("the broker is down")?.suspend()
    }

    pub fn resume(&self) -> Result<()> {
        self.process.as_ref().context("the broker is down")?.resume()
    }

    /// For `bootstrap.servers`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub async fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        eventually("the topic's creation", TOPIC_LIMIT, || {
            let admin = self.admin();
            let topic = &topic;
            async move {
                // A topic that was just deleted keeps its name for a moment.
                let results = admin?.create_topics([topic], &AdminOptions::new()).await.context("create the topic")?;
                results.into_iter().try_for_each(done)
            }
        })
        .await?;
        self.expect_partitions(name, partitions).await
    }

    /// A topic whose Kafka partitions lie on these brokers, one each.
    pub async fn create_topic_on(&self, name: &str, brokers: &[i32]) -> Result<()> {
        let places: Vec<[i32; 1]> = brokers.iter().map(|broker| [*broker]).collect();
        let places: Vec<&[i32]> = places.iter().map(<[i32; 1]>::as_slice).collect();
        let topic = NewTopic::new(name, i32::try_from(brokers.len())?, TopicReplication::Variable(&places));
        let results = self.admin()?.create_topics([&topic], &AdminOptions::new()).await.context("create the topic")?;
        results.into_iter().try_for_each(done)?;
        self.expect_partitions(name, i32::try_from(brokers.len())?).await
    }

    /// Waits until so many of the topic's Kafka partitions have a leader.
    pub async fn expect_leaders(&self, name: &str, wanted: i32) -> Result<()> {
        self.expect_partitions(name, wanted).await
    }

    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        let results = self.admin()?.delete_topics(&[name], &AdminOptions::new()).await.context("delete the topic")?;
        results.into_iter().try_for_each(done)?;
        eventually("the topic's end", TOPIC_LIMIT, || async {
            let count = topic_partitions(self.address(), Some(name.to_owned())).await?;
            ensure!(count == 0, "it still has {count} partitions");
            Ok(())
        })
        .await
    }

    /// Adds partitions until there are `count`.
    pub async fn grow_topic(&self, name: &str, count: usize) -> Result<()> {
        let wanted = NewPartitions::new(name, count);
        let results = self.admin()?.create_partitions([&wanted], &AdminOptions::new()).await.context("add partitions")?;
        results.into_iter().try_for_each(done)?;
        self.expect_partitions(name, i32::try_from(count).context("count partitions")?).await
    }

    /// Produces in the given order; done once the broker has acknowledged all of them. Order holds per Kafka partition; a broker
    /// that dies meanwhile is waited for, and gets nothing twice. Does not borrow the broker, which may be killed meanwhile.
    pub fn produce(&self, topic: &str, records: Vec<NewRecord>) -> impl Future<Output = Result<()>> + Send + use<> {
        let (config, topic) = (self.client(), topic.to_owned());
        async move { produce(config, &topic, &records).await }
    }

    /// A configuration that talks to this broker.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.address());
        config
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        self.client().create().context("make an admin client")
    }

    async fn expect_partitions(&self, topic: &str, wanted: i32) -> Result<()> {
        eventually("the topic's partitions", TOPIC_LIMIT, || async {
            let count = topic_partitions(self.address(), Some(topic.to_owned())).await?;
            ensure!(i32::try_from(count) == Ok(wanted), "{count} of {wanted}");
            Ok(())
        })
        .await
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("server.properties")
    }

    fn java(&self, heap_mib: u32) -> Command {
        let jars = scratch().map(|scratch| scratch.join("kafka/*")).unwrap_or_default();
        let mut command = Command::new("java");
        command.arg(format!("-Xmx{heap_mib}m")).args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]).arg(jars);
        command.current_dir(self.directory.path());
        command
    }
}

async fn produce(mut config: ClientConfig, topic: &str, records: &[NewRecord]) -> Result<()> {
    config.set("acks", "all").set("enable.idempotence", "true").set("message.timeout.ms", DELIVERY_LIMIT_MS);
    let producer: FutureProducer = config.set("linger.ms", "5").create().context("make a producer")?;
    let mut deliveries = Vec::with_capacity(records.len());
    for record in records {
        let mut outgoing = FutureRecord::<[u8], [u8]>::to(topic);
        outgoing.key = record.key.as_deref();
        outgoing.payload = record.value.as_deref();
        outgoing.partition = record.partition;
        deliveries.push(loop {
            match producer.send_result(outgoing) {
                Ok(delivery) => break delivery,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    outgoing = again;
                    tokio::task::yield_now().await;
                }
                Err((error, _)) => return Err(error).context("produce"),
            }
        });
    }
    for delivery in try_join_all(deliveries).await.context("wait for the broker's acknowledgements")? {
        delivery.map_err(|(error, _)| error).context("produce")?;
    }
    Ok(())
}

fn done(result: std::result::Result<String, (String, RDKafkaErrorCode)>) -> Result<()> {
    result.map(drop).map_err(|(topic, code)| anyhow!("topic {topic}: {code}"))
}

/// How many partitions a topic has (0: it does not exist), asked with a client that remembers nothing.
async fn topic_partitions(address: String, topic: Option<String>) -> Result<usize> {
    let ask = move || {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", address).create().context("make a client")?;
        let metadata = consumer.fetch_metadata(topic.as_deref(), REQUEST_LIMIT).context("ask for the topics")?;
        let Some(topic) = &topic else { return Ok(0) };
        let topic = metadata.topics().iter().find(|found| found.name() == topic).context("find the topic")?;
        // A leader that is not elected yet makes the first fetch or produce fail.
        let ready = |p: &&rdkafka::metadata::MetadataPartition| p.error().is_none() && p.leader() >= 0;
        Ok(if topic.error().is_some() { 0 } else { topic.partitions().iter().filter(ready).count() })
    };
    tokio::task::spawn_blocking(ask).await.context("ask the broker")?
}
