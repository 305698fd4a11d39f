//! Topics bound to handlers.
//!
//! Owns: reading source and sink, what may be bound to what, the JSON shapes of HTTP reference 6.2 with status and lag, and parked
//! Kafka records. Does not own: reading topics, or parking (`kafka`).

use crate::clusters::{known_names, redacted};
use crate::text::timestamp;
use crate::{Admin, Error, SourcePartition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use surefoot_model::catalog::{Catalog, CatalogEvent, Closing, Subscription};
use surefoot_model::{SubscriptionId, Timestamp};
use surefoot_partition::{LIST_MAX, OperationAnswer, ParkedInfo};

const GROUP: &str = "group.id";
const CLIENT: &str = "client.id";
/// How brokers see this server where the operator names it no other.
const CLIENT_DEFAULT: &str = "surefoot";
/// Bytes of a topic's name, as brokers have it.
const TOPIC_BYTES_MAX: usize = 249;
/// The first epoch of a subscription (rule K1).
const FIRST_EPOCH: u32 = 1;
/// Parked Kafka records per page where the client does not say.
const PAGE: usize = 100;

/// A request to bind a topic to a handler.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSubscription {
    /// `kafka://<cluster>/<topic>`
    pub source: String,
    /// `service://<service>/<handler>`
    pub sink: String,
    /// librdkafka properties that differ from the cluster's.
    pub options: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SubscriptionQuery {
    source: Option<String>,
    sink: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ParkedQuery {
    after: Option<u64>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(crate) struct SubscriptionJson {
    pub(crate) id: String,
    source: String,
    sink: String,
    options: BTreeMap<String, String>,
    #[serde(flatten)]
    progress: Option<ProgressJson>,
}

#[derive(Serialize)]
struct ProgressJson {
    status: &'static str,
    last_error: Option<String>,
    partitions: Vec<PartitionJson>,
    parked: u64,
}

#[derive(Serialize)]
struct PartitionJson {
    partition: i32,
    position: i64,
    high_watermark: i64,
    lag: i64,
}

#[derive(Serialize)]
pub(crate) struct Subscriptions {
    subscriptions: Vec<SubscriptionJson>,
}

#[derive(Serialize)]
pub(crate) struct ParkedJson {
    n: u64,
    topic: String,
    partition: i32,
    offset: i64,
    timestamp: Option<String>,
    key: Option<String>,
    bytes: u64,
    reason: String,
}

#[derive(Serialize)]
pub(crate) struct ParkedList {
    parked: Vec<ParkedJson>,
    next: Option<u64>,
}

impl Admin {
    /// Binds a topic to a handler, and returns when its start offsets are durable or 5 seconds have passed (rule K4).
    pub async fn subscribe(&self, request: NewSubscription) -> Result<Arc<Subscription>, Error> {
        let change = self.change().await;
        let id = SubscriptionId(self.env().ids.random_u128());
        let catalog = change.catalog();
        let subscription = planned(&catalog, request, id, self.now())?;
        self.check_options(&catalog, &subscription)?;
        change.store(CatalogEvent::SubscriptionStored(subscription.clone(), Vec::new())).await?;
        // A broker may be slow to answer; nobody else's change waits for it.
        drop(change);
        tracing::info!(
            subscription = %id, topic = %subscription.topic, service = %subscription.service, handler = %subscription.handler,
            "subscription created"
        );
        let subscription = Arc::new(subscription);
        self.shared().sources.created(subscription.clone()).await;
        Ok(subscription)
    }

    /// Stops delivery and forgets what was parked; what was admitted still runs. It stays listed until its source has closed it and its
    /// group knows how far it has read (rule K10), or until it is deleted with `force`; says whether it was gone within 5 seconds.
    pub async fn unsubscribe(&self, id: SubscriptionId, force: bool) -> Result<bool, Error> {
        let change = self.change().await;
        let catalog = change.catalog();
        let known = catalog.subscriptions.get(&id).ok_or(Error::SubscriptionNotFound(id))?;
        let closing = if force { Closing::Forced } else { Closing::Told };
        if known.closing.is_none() || (force && known.closing != Some(closing)) {
            change.store(CatalogEvent::SubscriptionClosing(id, closing)).await?;
            tracing::info!(subscription = %id, force, "subscription deleted");
        }
        // A broker may be slow to answer; nobody else's change waits for it.
        drop(change);
        Ok(self.shared().sources.closed(id).await)
    }

    pub(crate) async fn list_subscriptions(&self, query: SubscriptionQuery) -> Result<Subscriptions, Error> {
        let catalog = self.catalog();
        let mut subscriptions = Vec::new();
        for subscription in catalog.subscriptions.values() {
            let plain = SubscriptionJson::plain(subscription);
            let fits = |asked: &Option<String>, is: &str| asked.as_deref().is_none_or(|asked| asked == is);
            if fits(&query.source, &plain.source) && fits(&query.sink, &plain.sink) {
                subscriptions.push(self.with_progress(subscription.id, plain).await?);
            }
        }
        Ok(Subscriptions { subscriptions })
    }

    pub(crate) async fn show_subscription(&self, id: SubscriptionId) -> Result<SubscriptionJson, Error> {
        let subscription = self.subscription(id)?;
        self.with_progress(id, SubscriptionJson::plain(&subscription)).await
    }

    pub(crate) async fn list_parked(&self, id: SubscriptionId, query: ParkedQuery) -> Result<ParkedList, Error> {
        self.subscription(id)?;
        let page = self.shared().partitions.parked(id, query.after, query.limit.unwrap_or(PAGE).clamp(1, LIST_MAX)).await?;
        Ok(ParkedList { parked: page.parked.iter().map(parked_json).collect(), next: page.next })
    }

    /// Gives up one parked Kafka record for good.
    pub async fn discard_parked(&self, id: SubscriptionId, number: u64) -> Result<(), Error> {
        self.subscription(id)?;
        match self.shared().partitions.discard_parked(id, number).await? {
            OperationAnswer::Done | OperationAnswer::Accepted => Ok(()),
            _ => Err(Error::ParkedNotFound { subscription: id, number }),
        }
    }

    /// Of the options together with the cluster's properties, which they stand beside.
    fn check_options(&self, catalog: &Catalog, subscription: &Subscription) -> Result<(), Error> {
        let cluster = catalog.kafka_clusters.get(&subscription.cluster).map(|cluster| cluster.properties.clone());
        let mut all = cluster.unwrap_or_default();
        all.extend(subscription.options.iter().map(|(name, value)| (name.clone(), value.clone())));
        let refuse = |reason| Error::Field { field: "options", reason };
        self.shared().sources.check(&all).map_err(refuse)
    }

    fn subscription(&self, id: SubscriptionId) -> Result<Arc<Subscription>, Error> {
        self.catalog().subscriptions.get(&id).cloned().ok_or(Error::SubscriptionNotFound(id))
    }

    async fn with_progress(&self, id: SubscriptionId, plain: SubscriptionJson) -> Result<SubscriptionJson, Error> {
        let parked = self.shared().partitions.source(id).await?.parked;
        let status = self.shared().sources.status(id);
        let partitions = status.partitions.iter().map(PartitionJson::from).collect();
        let progress = ProgressJson { status: status.status, last_error: status.last_error, partitions, parked };
        Ok(SubscriptionJson { progress: Some(progress), ..plain })
    }
}

impl SubscriptionJson {
    /// Without status and lag.
    pub(crate) fn plain(subscription: &Subscription) -> Self {
        Self {
            id: subscription.id.to_string(),
            source: format!("kafka://{}/{}", subscription.cluster, subscription.topic),
            sink: format!("service://{}/{}", subscription.service, subscription.handler),
            options: redacted(&subscription.options),
            progress: None,
        }
    }
}

impl From<&SourcePartition> for PartitionJson {
    fn from(partition: &SourcePartition) -> Self {
        let SourcePartition { partition, position, high_watermark, lag } = *partition;
        Self { partition, position, high_watermark, lag }
    }
}

/// The subscription as it would be stored.
fn planned(catalog: &Catalog, request: NewSubscription, id: SubscriptionId, now: Timestamp) -> Result<Subscription, Error> {
    let (cluster, topic) = parts("kafka://", &request.source).ok_or_else(|| Error::Source(request.source.clone()))?;
    check_topic(topic)?;
    let sink = parts("service://", &request.sink).filter(|(_, handler)| !handler.contains('/'));
    let (service, handler) = sink.ok_or_else(|| Error::Sink(request.sink.clone()))?;
    if !catalog.kafka_clusters.contains_key(cluster) {
        return Err(Error::SourceClusterUnknown { cluster: cluster.to_owned(), known: known_names(catalog) });
    }
    if catalog.handler(service, handler).is_none() {
        return Err(Error::SinkNotFound(request.sink.clone()));
    }
    let mut options = request.options.unwrap_or_default();
    options.entry(GROUP.to_owned()).or_insert_with(|| id.to_string());
    options.entry(CLIENT.to_owned()).or_insert_with(|| CLIENT_DEFAULT.to_owned());
    let group = options[GROUP].clone();
    // One that is deleted and has not ended yet is waited for (rule K10).
    let same_group = |other: &&Arc<Subscription>| {
        other.closing.is_none()
            && *other.cluster == *cluster
            && *other.topic == *topic
            && other.options.get(GROUP) == Some(&group)
    };
    if let Some(other) = catalog.subscriptions.values().find(same_group) {
        return Err(Error::GroupTaken { subscription: other.id, group });
    }
    Ok(Subscription {
        id,
        cluster: cluster.into(),
        topic: topic.into(),
        service: service.into(),
        handler: handler.into(),
        options,
        created_at: now,
        epoch: FIRST_EPOCH,
        topic_id: 0,
        resolved: false,
        closing: None,
    })
}

/// A name that no broker would take is told at once: a subscription to it would wait for ever.
fn check_topic(topic: &str) -> Result<(), Error> {
    let is_name = topic.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && ![".", ".."].contains(&topic);
    if is_name && topic.len() <= TOPIC_BYTES_MAX {
        return Ok(());
    }
    let reason = format!(
        "'{topic}' is no name of a topic: letters, digits, '.', '_' and '-' only, at most {TOPIC_BYTES_MAX} of them, and neither '.' nor '..'"
    );
    Err(Error::Field { field: "source", reason })
}

/// `<scheme><first>/<rest>` with neither of them empty.
fn parts<'a>(scheme: &str, uri: &'a str) -> Option<(&'a str, &'a str)> {
    let (first, rest) = uri.strip_prefix(scheme)?.split_once('/')?;
    (!first.is_empty() && !rest.is_empty()).then_some((first, rest))
}

fn parked_json(info: &ParkedInfo) -> ParkedJson {
    let record = &info.record;
    ParkedJson {
        n: info.number,
        topic: record.topic.to_string(),
        partition: record.source.stream.partition,
        offset: record.source.offset,
        timestamp: record.timestamp.map(timestamp),
        key: record.has_key.then(|| key_text(&record.key)),
        bytes: record.bytes,
        reason: record.reason.clone(),
    }
}

/// A key as text, or as `0x…` where it is none.
fn key_text(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) => text.to_owned(),
        Err(_) => key.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::tests::{handler, service};
    use surefoot_model::TargetKind;
    use surefoot_model::catalog::{KafkaCluster, ServiceKind};

    fn catalog() -> Catalog {
        let counter = service("Counter", ServiceKind::VirtualObject, vec![handler("count", TargetKind::ObjectExclusive)]);
        let cluster = KafkaCluster { name: "m".into(), properties: BTreeMap::new(), created_at: Timestamp(0) };
        Catalog {
            services: [(counter.name.clone(), Arc::new(counter))].into(),
            kafka_clusters: [(cluster.name.clone(), Arc::new(cluster))].into(),
            ..Catalog::default()
        }
    }

    fn plan(catalog: &Catalog, source: &str, sink: &str, options: &[(&str, &str)]) -> Result<Subscription, Error> {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let request = NewSubscription { source: source.into(), sink: sink.into(), options: Some(options) };
        planned(catalog, request, SubscriptionId(9), Timestamp(0))
    }

    #[test]
    fn a_subscription_has_the_shape_that_clients_read() {
        let made = plan(&catalog(), "kafka://m/a.b", "service://Counter/count", &[("auto.offset.reset", "earliest")]).unwrap();
        let id = SubscriptionId(9);
        assert_eq!(
            serde_json::to_string(&SubscriptionJson::plain(&made)).unwrap(),
            format!(
                r#"{{"id":"{id}","source":"kafka://m/a.b","sink":"service://Counter/count","options":{{"auto.offset.reset":"earliest","client.id":"surefoot","group.id":"{id}"}}}}"#
            )
        );
    }

    #[test]
    fn progress_stands_beside_the_subscription() {
        let made = plan(&catalog(), "kafka://m/t", "service://Counter/count", &[("group.id", "g")]).unwrap();
        let partitions = vec![PartitionJson::from(&SourcePartition { partition: 0, position: 3, high_watermark: 5, lag: 2 })];
        let progress = ProgressJson { status: "running", last_error: None, partitions, parked: 1 };
        let json = serde_json::to_value(SubscriptionJson { progress: Some(progress), ..SubscriptionJson::plain(&made) }).unwrap();
        assert_eq!(json["status"], "running");
        assert_eq!(json["partitions"][0], serde_json::json!({"partition": 0, "position": 3, "high_watermark": 5, "lag": 2}));
        assert_eq!((&json["parked"], &json["last_error"]), (&1.into(), &serde_json::Value::Null));
    }

    #[test]
    fn what_cannot_be_bound_says_why() {
        let good = ("kafka://m/t", "service://Counter/count");
        for (source, sink, code, says) in [
            ("http://m/t", good.1, "META0009", "kafka://<cluster>/<topic>"),
            ("kafka://m/", good.1, "META0009", "kafka://<cluster>/<topic>"),
            ("kafka://m", good.1, "META0009", "kafka://<cluster>/<topic>"),
            (good.0, "kafka://Counter/count", "META0009", "service://<service>/<handler>"),
            (good.0, "service://Counter/k/count", "META0009", "service://<service>/<handler>"),
            (good.0, "service://Counter/nope", "META0009", "register a deployment"),
            (good.0, "service://Nope/count", "META0009", "register a deployment"),
            ("kafka://n/t", good.1, "SF2010", "known: m"),
        ] {
            let error = plan(&catalog(), source, sink, &[]).unwrap_err();
            assert_eq!((error.status().as_u16(), error.code()), (400, code), "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn topics_that_cannot_exist_are_refused() {
        for topic in ["t", "a.b_c-1", &"t".repeat(TOPIC_BYTES_MAX)] {
            assert_eq!(check_topic(topic), Ok(()));
        }
        for topic in ["a/b", "^all", "ä", ".", "..", "a b", &"t".repeat(TOPIC_BYTES_MAX + 1)] {
            assert_eq!(check_topic(topic).unwrap_err().status(), 400, "{topic}");
        }
    }

    #[test]
    fn one_group_reads_a_topic_once() {
        let mut catalog = catalog();
        let first = plan(&catalog, "kafka://m/t", "service://Counter/count", &[("group.id", "g")]).unwrap();
        catalog.subscriptions.insert(first.id, Arc::new(first));
        let same = |catalog: &Catalog| plan(catalog, "kafka://m/t", "service://Counter/count", &[("group.id", "g")]);
        assert_eq!(same(&catalog).unwrap_err().status(), 409);
        assert!(plan(&catalog, "kafka://m/other", "service://Counter/count", &[("group.id", "g")]).is_ok());
        assert!(plan(&catalog, "kafka://m/t", "service://Counter/count", &[]).is_ok());
        // One that is on its way out is waited for.
        catalog.subscriptions.values_mut().for_each(|s| Arc::make_mut(s).closing = Some(Closing::Told));
        assert!(same(&catalog).is_ok());
    }

    #[test]
    fn keys_that_are_no_text_are_shown_as_bytes() {
        assert_eq!(key_text("é".as_bytes()), "é");
        assert_eq!(key_text(&[0xff, 0x0a]), "0xff0a");
    }
}
