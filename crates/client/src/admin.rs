//! Looking after a server: deployments, services, invocations, Kafka clusters and subscriptions.
//!
//! The shapes hold what the tools here need; fields that an answer has beyond them are ignored.

use crate::Result;
use crate::http::{Http, query, segment};
use bytes::Bytes;
use http::{HeaderMap, Method};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A client of the admin API (by default port 9070). Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Admin {
    http: Http,
}

/// A request to register the endpoint at `uri`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NewDeployment {
    pub uri: String,
    /// Discover again where the same address is registered already.
    pub force: bool,
    /// Allow a service to change its type.
    pub breaking: bool,
    /// Discover and answer as if, and store nothing.
    pub dry_run: bool,
    /// Speak HTTP/1.1, request and response, to it.
    pub use_http_11: bool,
}

impl NewDeployment {
    pub fn at(uri: impl Into<String>) -> Self {
        Self { uri: uri.into(), ..Self::default() }
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct Deployment {
    pub id: String,
    /// Absent in the answer to a registration.
    pub uri: Option<String>,
    pub services: Vec<DeployedService>,
    pub min_protocol_version: u32,
    pub max_protocol_version: u32,
    pub sdk_version: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct DeployedService {
    pub name: String,
    pub revision: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Service {
    pub name: String,
    pub ty: ServiceType,
    pub handlers: Vec<Handler>,
    pub deployment_id: String,
    pub revision: u32,
    pub public: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ServiceType {
    Service,
    VirtualObject,
    Workflow,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Handler {
    pub name: String,
    /// `Exclusive`, `Shared` or `Workflow`; none for the handlers of a plain service.
    pub ty: Option<String>,
    pub public: bool,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Version {
    pub version: String,
    pub ingress_endpoint: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KafkaCluster {
    pub name: String,
    /// Properties of librdkafka. Secrets come back as `***`.
    pub properties: BTreeMap<String, String>,
}

/// A request to bind a topic to a handler.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NewSubscription {
    /// `kafka://<cluster>/<topic>`
    pub source: String,
    /// `service://<service>/<handler>`
    pub sink: String,
    /// Properties of librdkafka that differ from the cluster's.
    pub options: BTreeMap<String, String>,
}

impl NewSubscription {
    pub fn new(cluster: &str, topic: &str, service: &str, handler: &str) -> Self {
        let source = format!("kafka://{cluster}/{topic}");
        Self { source, sink: format!("service://{service}/{handler}"), options: BTreeMap::new() }
    }

    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.options.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Starts at the oldest Kafka record and not at the next.
    pub fn from_earliest(self) -> Self {
        self.option("auto.offset.reset", "earliest")
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct Subscription {
    pub id: String,
    pub source: String,
    pub sink: String,
    pub options: BTreeMap<String, String>,
    /// `running`, `waiting`, `paused`, `failing` or `closing`.
    pub status: Option<String>,
    pub last_error: Option<String>,
    #[serde(default)]
    pub partitions: Vec<SubscribedPartition>,
}

/// How far a subscription is in one Kafka partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct SubscribedPartition {
    pub partition: i32,
    /// The next offset to admit.
    pub position: Option<i64>,
    /// The offset after the newest Kafka record.
    pub high_watermark: Option<i64>,
    /// The Kafka records in between.
    pub lag: Option<i64>,
}

/// A Kafka record that could not become an invocation.
#[derive(Debug, Clone, Deserialize)]
pub struct Parked {
    /// By which it is discarded.
    pub n: u64,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub timestamp: Option<serde_json::Value>,
    pub key: Option<serde_json::Value>,
    pub bytes: u64,
    pub reason: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ParkedPage {
    pub parked: Vec<Parked>,
    /// Where the next page begins, if there is one.
    pub next: Option<serde_json::Value>,
}

/// Which invocations to list.
#[derive(Debug, Clone, Default)]
pub struct InvocationFilter {
    pub service: Option<String>,
    pub key: Option<String>,
    pub status: Option<String>,
    pub limit: Option<u32>,
    /// `next` of the page before.
    pub after: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Invocation {
    pub id: String,
    pub target: String,
    pub service: String,
    pub handler: String,
    pub key: Option<String>,
    pub status: String,
    pub attempt: Option<u64>,
    pub last_error: Option<serde_json::Value>,
    pub next_retry_at: Option<String>,
    /// Why its deployment cannot be connected to, where that keeps it waiting.
    pub waits_for: Option<String>,
    pub created_at: Option<String>,
    pub modified_at: Option<String>,
}

/// A backup that is whole and durable.
#[derive(Debug, Clone, Deserialize)]
pub struct Backup {
    pub files: u64,
    pub bytes: u64,
    pub took_ms: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct InvocationPage {
    pub invocations: Vec<Invocation>,
    /// Give it as `after` to read on; none on the last page.
    pub next: Option<String>,
}

impl Admin {
    /// `address` is `host:port` or `http://host:port`. Connects with the first request.
    pub fn new(address: &str) -> Result<Self> {
        Ok(Self { http: Http::new(address)? })
    }

    /// Bounds the time from each request to the end of its answer.
    pub fn with_timeout(self, limit: Duration) -> Self {
        Self { http: self.http.with_timeout(limit) }
    }

    /// Succeeds once the server has recovered and takes requests.
    pub async fn health(&self) -> Result<()> {
        self.http.act(Method::GET, "/health").await
    }

    pub async fn version(&self) -> Result<Version> {
        self.http.get("/version").await
    }

    /// The metrics page, in the text format of Prometheus.
    pub async fn metrics(&self) -> Result<String> {
        let answer = self.http.send(Method::GET, "/metrics", HeaderMap::new(), Bytes::new()).await?.success()?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// Discovers what the endpoint serves and routes new invocations to it.
    pub async fn register(&self, deployment: &NewDeployment) -> Result<Deployment> {
        self.http.put_json(Method::POST, "/deployments", deployment).await
    }

    pub async fn deployments(&self) -> Result<Vec<Deployment>> {
        #[derive(Deserialize)]
        struct List {
            deployments: Vec<Deployment>,
        }
        self.http.get("/deployments").await.map(|list: List| list.deployments)
    }

    pub async fn deployment(&self, id: &str) -> Result<Deployment> {
        self.http.get(&format!("/deployments/{}", segment(id))).await
    }

    /// Removes a deployment even while invocations are pinned to it: those fail and retry until they are killed.
    pub async fn delete_deployment(&self, id: &str) -> Result<()> {
        self.http.act(Method::DELETE, &format!("/deployments/{}?force=true", segment(id))).await
    }

    pub async fn services(&self) -> Result<Vec<Service>> {
        #[derive(Deserialize)]
        struct List {
            services: Vec<Service>,
        }
        self.http.get("/services").await.map(|list: List| list.services)
    }

    pub async fn service(&self, name: &str) -> Result<Service> {
        self.http.get(&format!("/services/{}", segment(name))).await
    }

    pub async fn create_kafka_cluster(&self, cluster: &KafkaCluster) -> Result<KafkaCluster> {
        self.http.put_json(Method::POST, "/kafka-clusters", cluster).await
    }

    pub async fn kafka_clusters(&self) -> Result<Vec<KafkaCluster>> {
        #[derive(Deserialize)]
        struct List {
            clusters: Vec<KafkaCluster>,
        }
        self.http.get("/kafka-clusters").await.map(|list: List| list.clusters)
    }

    pub async fn kafka_cluster(&self, name: &str) -> Result<KafkaCluster> {
        self.http.get(&format!("/kafka-clusters/{}", segment(name))).await
    }

    /// Replaces all properties of a cluster.
    pub async fn update_kafka_cluster(&self, cluster: &KafkaCluster) -> Result<KafkaCluster> {
        self.http.put_json(Method::PATCH, &format!("/kafka-clusters/{}", segment(&cluster.name)), cluster).await
    }

    /// Refused while a subscription refers to it.
    pub async fn delete_kafka_cluster(&self, name: &str) -> Result<()> {
        self.http.act(Method::DELETE, &format!("/kafka-clusters/{}", segment(name))).await
    }

    pub async fn subscribe(&self, subscription: &NewSubscription) -> Result<Subscription> {
        self.http.put_json(Method::POST, "/subscriptions", subscription).await
    }

    pub async fn subscriptions(&self) -> Result<Vec<Subscription>> {
        #[derive(Deserialize)]
        struct List {
            subscriptions: Vec<Subscription>,
        }
        self.http.get("/subscriptions").await.map(|list: List| list.subscriptions)
    }

    /// A subscription with its status, and how far it is in each Kafka partition.
    pub async fn subscription(&self, id: &str) -> Result<Subscription> {
        self.http.get(&format!("/subscriptions/{}", segment(id))).await
    }

    /// Stops delivery; what was admitted still runs.
    pub async fn unsubscribe(&self, id: &str) -> Result<()> {
        self.http.act(Method::DELETE, &format!("/subscriptions/{}", segment(id))).await
    }

    /// The Kafka records of a subscription that were put aside.
    pub async fn parked(&self, subscription: &str) -> Result<ParkedPage> {
        self.http.get(&format!("/subscriptions/{}/parked", segment(subscription))).await
    }

    pub async fn discard_parked(&self, subscription: &str, n: u64) -> Result<()> {
        self.http.act(Method::DELETE, &format!("/subscriptions/{}/parked/{n}", segment(subscription))).await
    }

    /// Makes a backup in a directory of the server's machine; an absolute path. It takes as long as there is much to copy. A caller that
    /// goes away, or has a time limit that passes, ends it.
    pub async fn back_up(&self, directory: &str) -> Result<Backup> {
        #[derive(Serialize)]
        struct NewBackup<'a> {
            directory: &'a str,
        }
        self.http.put_json(Method::POST, "/backup", &NewBackup { directory }).await
    }

    pub async fn invocations(&self, filter: &InvocationFilter) -> Result<InvocationPage> {
        let InvocationFilter { service, key, status, limit, after } = filter.clone();
        let limit = limit.map(|limit| limit.to_string());
        let parameters = [("service", service), ("key", key), ("status", status), ("limit", limit), ("after", after)];
        self.http.get(&format!("/invocations{}", query(&parameters))).await
    }

    pub async fn invocation(&self, id: &str) -> Result<Invocation> {
        self.http.get(&format!("/invocations/{}", segment(id))).await
    }

    /// Asks the handler to stop: it sees a terminal error and may clean up.
    pub async fn cancel(&self, invocation: &str) -> Result<()> {
        self.patch(invocation, "cancel").await
    }

    /// Ends an invocation at once; its handler cannot clean up.
    pub async fn kill(&self, invocation: &str) -> Result<()> {
        self.patch(invocation, "kill").await
    }

    pub async fn pause(&self, invocation: &str) -> Result<()> {
        self.patch(invocation, "pause").await
    }

    /// Wakes a paused invocation, or one that waits for its next attempt.
    pub async fn resume(&self, invocation: &str) -> Result<()> {
        self.patch(invocation, "resume").await
    }

    /// Forgets a completed invocation, its result included.
    pub async fn purge(&self, invocation: &str) -> Result<()> {
        self.patch(invocation, "purge").await
    }

    async fn patch(&self, invocation: &str, action: &str) -> Result<()> {
        self.http.act(Method::PATCH, &format!("/invocations/{}/{action}", segment(invocation))).await
    }
}
