//! Kafka clusters that operators registered.
//!
//! Owns: their validation, the JSON shapes of HTTP reference 6.1, and hiding secrets. Does not own: connecting to them (`kafka`), or
//! which properties are secrets (`model`).

use crate::subscriptions::SubscriptionJson;
use crate::text::timestamp;
use crate::{Admin, Error};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use surefoot_model::Text;
use surefoot_model::catalog::{Catalog, CatalogEvent, KafkaCluster, Subscription};
use surefoot_model::kafka_property::is_secret;
use surefoot_protocol::discovery::NAME_BYTES_MAX;

/// Shown in place of a secret.
const REDACTED: &str = "***";
/// One of these has to be there.
const BROKERS: [&str; 2] = ["bootstrap.servers", "metadata.broker.list"];

/// A request to register a Kafka cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewCluster {
    pub name: String,
    /// librdkafka properties.
    pub properties: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterPatch {
    pub(crate) properties: BTreeMap<String, String>,
}

#[derive(Serialize)]
pub(crate) struct ClusterJson {
    pub(crate) name: String,
    properties: BTreeMap<String, String>,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriptions: Option<Vec<SubscriptionJson>>,
}

#[derive(Serialize)]
pub(crate) struct Clusters {
    clusters: Vec<ClusterJson>,
}

impl Admin {
    pub async fn create_cluster(&self, request: NewCluster) -> Result<Arc<KafkaCluster>, Error> {
        check_name(&request.name)?;
        self.check_properties(&request.properties)?;
        let change = self.change().await;
        if change.catalog().kafka_clusters.contains_key(request.name.as_str()) {
            return Err(Error::ClusterExists(request.name));
        }
        let cluster = KafkaCluster { name: request.name.into(), properties: request.properties, created_at: self.now() };
        change.store(CatalogEvent::KafkaClusterStored(cluster.clone())).await?;
        tracing::info!(cluster = %cluster.name, "kafka cluster created");
        Ok(Arc::new(cluster))
    }

    /// Replaces all properties. A secret that is sent as it is shown stays what it was.
    pub async fn update_cluster(&self, name: &str, properties: BTreeMap<String, String>) -> Result<Arc<KafkaCluster>, Error> {
        self.check_properties(&properties)?;
        let change = self.change().await;
        let catalog = change.catalog();
        let known = catalog.kafka_clusters.get(name).ok_or_else(|| Error::ClusterNotFound(name.to_owned()))?;
        let cluster = KafkaCluster { properties: with_secrets(properties, &known.properties), ..(**known).clone() };
        change.store(CatalogEvent::KafkaClusterStored(cluster.clone())).await?;
        tracing::info!(cluster = %cluster.name, "kafka cluster changed");
        Ok(Arc::new(cluster))
    }

    /// Removes a cluster. One that subscriptions use only with `force`; they stay listed then and do not run.
    pub async fn delete_cluster(&self, name: &str, force: bool) -> Result<(), Error> {
        let change = self.change().await;
        let catalog = change.catalog();
        let known = catalog.kafka_clusters.get(name).ok_or_else(|| Error::ClusterNotFound(name.to_owned()))?;
        if let Some(user) = users(&catalog, name).next()
            && !force
        {
            return Err(Error::ClusterInUse { cluster: name.to_owned(), subscription: user.id });
        }
        change.store(CatalogEvent::KafkaClusterDeleted(known.name.clone())).await?;
        tracing::info!(cluster = name, "kafka cluster deleted");
        Ok(())
    }

    fn check_properties(&self, properties: &BTreeMap<String, String>) -> Result<(), Error> {
        check_brokers(properties)?;
        let refuse = |reason| Error::Field { field: "properties", reason };
        self.shared().sources.check(properties).map_err(refuse)
    }

    pub(crate) fn list_clusters(&self) -> Clusters {
        Clusters { clusters: self.catalog().kafka_clusters.values().map(|c| cluster_json(c, None)).collect() }
    }

    pub(crate) fn show_cluster(&self, name: &str, with_subscriptions: bool) -> Result<ClusterJson, Error> {
        let catalog = self.catalog();
        let cluster = catalog.kafka_clusters.get(name).ok_or_else(|| Error::ClusterNotFound(name.to_owned()))?;
        let subscriptions =
            if with_subscriptions { users(&catalog, name).map(|s| SubscriptionJson::plain(s)).collect() } else { Vec::new() };
        Ok(cluster_json(cluster, Some(subscriptions)))
    }
}

/// The names of all known clusters, for a message.
pub(crate) fn known_names(catalog: &Catalog) -> String {
    let names: Vec<&str> = catalog.kafka_clusters.keys().map(Text::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn users<'a>(catalog: &'a Catalog, cluster: &'a str) -> impl Iterator<Item = &'a Arc<Subscription>> {
    catalog.subscriptions.values().filter(move |s| *s.cluster == *cluster)
}

/// A name stands in `kafka://<name>/<topic>`.
fn check_name(name: &str) -> Result<(), Error> {
    if name.len() > NAME_BYTES_MAX {
        let reason = format!("it has {} bytes, more than the {NAME_BYTES_MAX} that a cluster's name may have", name.len());
        return Err(Error::Field { field: "name", reason });
    }
    let fits = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c));
    let reason = || format!("'{name}' is no name for a cluster: letters, digits, '-', '.', '_' and '~' only");
    if fits { Ok(()) } else { Err(Error::Field { field: "name", reason: reason() }) }
}

fn check_brokers(properties: &BTreeMap<String, String>) -> Result<(), Error> {
    if BROKERS.iter().any(|name| properties.contains_key(*name)) {
        return Ok(());
    }
    Err(Error::Field { field: "properties", reason: format!("'{}' is missing", BROKERS[0]) })
}

/// Keeps the secrets that were sent back as they are shown.
fn with_secrets(mut properties: BTreeMap<String, String>, known: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    for (name, value) in &mut properties {
        if let Some(secret) = known.get(name).filter(|_| is_secret(name) && value == REDACTED) {
            value.clone_from(secret);
        }
    }
    properties
}

/// Properties or options with their secrets hidden.
pub(crate) fn redacted(properties: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let hide =
        |(name, value): (&String, &String)| (name.clone(), if is_secret(name) { REDACTED.to_owned() } else { value.clone() });
    properties.iter().map(hide).collect()
}

pub(crate) fn cluster_json(cluster: &KafkaCluster, subscriptions: Option<Vec<SubscriptionJson>>) -> ClusterJson {
    ClusterJson {
        name: cluster.name.to_string(),
        properties: redacted(&cluster.properties),
        created_at: timestamp(cluster.created_at),
        subscriptions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use surefoot_model::Timestamp;

    fn properties(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn secrets_are_hidden_and_the_rest_is_shown() {
        let cluster = KafkaCluster {
            name: "m".into(),
            properties: properties(&[
                ("bootstrap.servers", "127.0.0.1:9092"),
                ("sasl.password", "secret"),
                ("SASL.Username", "me"),
                ("ssl.key.pem", "k"),
                ("ssl.ca.location", "/ca"),
            ]),
            created_at: Timestamp(1_795_403_055_464),
        };
        assert_eq!(
            serde_json::to_string(&cluster_json(&cluster, None)).unwrap(),
            r#"{"name":"m","properties":{"SASL.Username":"***","bootstrap.servers":"127.0.0.1:9092","sasl.password":"***","ssl.ca.location":"/ca","ssl.key.pem":"***"},"created_at":"2026-11-23T03:04:15.464000000Z"}"#
        );
    }

    #[test]
    fn a_secret_sent_back_as_shown_is_kept() {
        let known = properties(&[("sasl.password", "old"), ("a", "1")]);
        let sent = properties(&[("sasl.password", "***"), ("a", "***"), ("ssl.key.password", "***")]);
        let expected = properties(&[("sasl.password", "old"), ("a", "***"), ("ssl.key.password", "***")]);
        assert_eq!(with_secrets(sent, &known), expected);
        assert_eq!(with_secrets(properties(&[("sasl.password", "new")]), &known), properties(&[("sasl.password", "new")]));
    }

    #[test]
    fn names_and_brokers_are_checked() {
        for name in ["m", "my_cluster-1.eu"] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", "a/b", "a b", "é", "a:1"] {
            assert_eq!(check_name(name).unwrap_err().status(), 400, "{name}");
        }
        // A longer one would be a key that the tables cannot take.
        assert!(check_name(&"n".repeat(NAME_BYTES_MAX)).is_ok() && check_name(&"n".repeat(NAME_BYTES_MAX + 1)).is_err());
        assert_eq!(check_brokers(&properties(&[("metadata.broker.list", "h:1")])), Ok(()));
        assert_eq!(check_brokers(&properties(&[("group.id", "g")])).unwrap_err().status(), 400);
    }
}
