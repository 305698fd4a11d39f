//! What operators registered: deployments, services, Kafka clusters, subscriptions, and how far each stream has been read.
//!
//! Owns: the shapes, the events that change them, and the immutable value that ingress, invoker, kafka and admin read.
//! Does not own: discovery, validation, or defaults of settings.

use crate::{DeploymentId, Retention, StreamId, SubscriptionId, TargetKind, Text, Timestamp};
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

/// Everything registered, at one LSN of the catalog's partition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    pub deployments: BTreeMap<DeploymentId, Arc<Deployment>>,
    /// The newest revision of each service.
    pub services: BTreeMap<Text, Arc<Service>>,
    pub kafka_clusters: BTreeMap<Text, Arc<KafkaCluster>>,
    pub subscriptions: BTreeMap<SubscriptionId, Arc<Subscription>>,
    /// Where each stream goes on after a restart: the lowest offset not known to be durable (rule K5).
    pub positions: BTreeMap<StreamId, i64>,
}

/// One registered endpoint and what it serves.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Deployment {
    #[n(0)]
    pub id: DeploymentId,
    /// Normalised: ends with `/` where there is no other path.
    #[n(1)]
    pub uri: String,
    #[n(2)]
    pub http: HttpVersion,
    #[n(3)]
    pub mode: StreamMode,
    /// Sent on every request to it; names in lower case.
    #[n(4)]
    pub additional_headers: BTreeMap<String, String>,
    #[n(5)]
    pub metadata: BTreeMap<String, String>,
    #[n(6)]
    pub created_at: Timestamp,
    #[n(7)]
    pub min_protocol: i32,
    #[n(8)]
    pub max_protocol: i32,
    #[n(9)]
    pub sdk_version: Option<String>,
    /// Service and revision, as registered here.
    #[n(10)]
    pub services: Vec<Service>,
}

/// The HTTP version that discovery used and invocations use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum HttpVersion {
    #[n(0)]
    Http11,
    #[n(1)]
    Http2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum StreamMode {
    #[n(0)]
    Bidirectional,
    #[n(1)]
    RequestResponse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum ServiceKind {
    #[n(0)]
    Service,
    #[n(1)]
    VirtualObject,
    #[n(2)]
    Workflow,
}

/// One revision of a service.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Service {
    #[n(0)]
    pub name: Text,
    #[n(1)]
    pub kind: ServiceKind,
    #[n(2)]
    pub revision: u32,
    #[n(3)]
    pub deployment: DeploymentId,
    #[n(4)]
    pub public: bool,
    #[n(5)]
    pub handlers: BTreeMap<Text, Handler>,
    #[n(6)]
    pub options: Options,
    #[n(7)]
    pub documentation: Option<String>,
    #[n(8)]
    pub metadata: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Handler {
    #[n(0)]
    pub name: Text,
    #[n(1)]
    pub target: TargetKind,
    /// Absent: the service's.
    #[n(2)]
    pub public: Option<bool>,
    #[n(3)]
    pub input: InputRule,
    #[n(4)]
    pub output: OutputRule,
    #[n(5)]
    pub options: Options,
    #[n(6)]
    pub documentation: Option<String>,
    #[n(7)]
    pub metadata: BTreeMap<String, String>,
}

/// What a handler's declared input lets through (protocol reference 2.7).
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct InputRule {
    /// False: any request passes.
    #[n(0)]
    pub declared: bool,
    #[n(1)]
    pub required: bool,
    #[n(2)]
    pub content_type: Option<String>,
    /// The JSON schema's text.
    #[n(3)]
    pub json_schema: Option<String>,
}

/// The content type of a handler's response (protocol reference 2.7).
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct OutputRule {
    #[n(0)]
    pub declared: bool,
    #[n(1)]
    pub content_type: Option<String>,
    #[n(2)]
    pub set_content_type_if_empty: bool,
    #[n(3)]
    pub json_schema: Option<String>,
}

/// Options that a handler sets, else its service, else the server. Times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct Options {
    #[n(0)]
    pub inactivity_timeout_ms: Option<u64>,
    #[n(1)]
    pub abort_timeout_ms: Option<u64>,
    #[n(2)]
    pub journal_retention_ms: Option<u64>,
    #[n(3)]
    pub idempotency_retention_ms: Option<u64>,
    #[n(4)]
    pub workflow_retention_ms: Option<u64>,
    #[n(5)]
    pub enable_lazy_state: Option<bool>,
    #[n(6)]
    pub retry_initial_interval_ms: Option<u64>,
    #[n(7)]
    pub retry_max_interval_ms: Option<u64>,
    /// Counts the first attempt.
    #[n(8)]
    pub retry_max_attempts: Option<u32>,
    #[n(9)]
    pub retry_factor: Option<f64>,
    #[n(10)]
    pub retry_on_max: Option<OnMaxAttempts>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum OnMaxAttempts {
    #[n(0)]
    Pause,
    #[n(1)]
    Kill,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct KafkaCluster {
    #[n(0)]
    pub name: Text,
    /// librdkafka properties.
    #[n(1)]
    pub properties: BTreeMap<String, String>,
    #[n(2)]
    pub created_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Subscription {
    #[n(0)]
    pub id: SubscriptionId,
    #[n(1)]
    pub cluster: Text,
    #[n(2)]
    pub topic: Text,
    #[n(3)]
    pub service: Text,
    #[n(4)]
    pub handler: Text,
    /// As given, with `group.id` and `client.id` filled in.
    #[n(5)]
    pub options: BTreeMap<String, String>,
    #[n(6)]
    pub created_at: Timestamp,
    /// Raised by a rewind and when the topic's id changes (rule K1).
    #[n(7)]
    pub epoch: u32,
    /// The topic's id in this epoch; 0 until it is known.
    #[cbor(n(8), with = "crate::encoding::u128")]
    pub topic_id: u128,
    /// What is the start of a Kafka partition that has no position yet: resolved once, or `earliest` for those that appear later
    /// (rule K4).
    #[n(9)]
    pub resolved: bool,
    /// Set once it is deleted. It stays listed, with its positions, until it has ended (rule K10).
    #[n(10)]
    pub closing: Option<Closing>,
}

/// When a deleted subscription has ended (rule K10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Closing {
    /// Once it is closed everywhere and its group knows how far it has read.
    #[n(0)]
    Told,
    /// Once it is closed everywhere: an operator lets it go, whatever its group knows.
    #[n(1)]
    Forced,
}

/// What holds where neither handler nor service sets an option. Times in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    pub inactivity_timeout_ms: u64,
    pub abort_timeout_ms: u64,
    pub journal_retention_ms: u64,
    pub idempotency_retention_ms: u64,
    pub workflow_retention_ms: u64,
    pub retry: RetryPolicy,
}

/// When a failed attempt is followed by another.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    pub initial_interval_ms: u64,
    pub factor: f64,
    pub max_interval_ms: u64,
    /// Counts the first attempt; absent: no bound.
    pub max_attempts: Option<u32>,
    pub on_max: OnMaxAttempts,
}

impl Default for Defaults {
    /// The documented defaults (protocol reference 2.10).
    fn default() -> Self {
        const MINUTE_MS: u64 = 60_000;
        const DAY_MS: u64 = 24 * 60 * MINUTE_MS;
        Self {
            inactivity_timeout_ms: MINUTE_MS,
            abort_timeout_ms: 10 * MINUTE_MS,
            journal_retention_ms: DAY_MS,
            idempotency_retention_ms: DAY_MS,
            workflow_retention_ms: DAY_MS,
            retry: RetryPolicy {
                initial_interval_ms: 500,
                factor: 2.0,
                max_interval_ms: MINUTE_MS,
                max_attempts: Some(70),
                on_max: OnMaxAttempts::Pause,
            },
        }
    }
}

/// Options of one handler: its own values, else its service's, else the defaults, each on its own.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedOptions {
    pub inactivity_timeout_ms: u64,
    pub abort_timeout_ms: u64,
    pub enable_lazy_state: bool,
    pub retry: RetryPolicy,
}

// As small as they can be: for tests and simulated worlds, which fill in what they are about.

impl Deployment {
    /// At an address that ends with `/`: over HTTP/2, both directions at once, protocols 5 and 6. It serves nothing yet.
    pub fn at(id: DeploymentId, uri: impl Into<String>) -> Self {
        Self {
            id,
            uri: uri.into(),
            http: HttpVersion::Http2,
            mode: StreamMode::Bidirectional,
            additional_headers: BTreeMap::new(),
            metadata: BTreeMap::new(),
            created_at: Timestamp(0),
            min_protocol: 5,
            max_protocol: 6,
            sdk_version: None,
            services: Vec::new(),
        }
    }

    /// The same, and it serves these, whatever deployment they name.
    #[must_use]
    pub fn serving(self, services: impl IntoIterator<Item = Service>) -> Self {
        let services = services.into_iter().map(|service| Service { deployment: self.id, ..service }).collect();
        Self { services, ..self }
    }
}

impl Service {
    /// Public, in its first revision, with no option of its own. Its deployment is filled in by [`Deployment::serving`].
    pub fn new(name: &str, kind: ServiceKind, handlers: impl IntoIterator<Item = Handler>) -> Self {
        Self {
            name: name.into(),
            kind,
            revision: 1,
            deployment: DeploymentId(0),
            public: true,
            handlers: handlers.into_iter().map(|handler| (handler.name.clone(), handler)).collect(),
            options: Options::default(),
            documentation: None,
            metadata: BTreeMap::new(),
        }
    }
}

impl Handler {
    /// Takes and gives anything, with no option of its own.
    pub fn new(name: &str, target: TargetKind) -> Self {
        Self {
            name: name.into(),
            target,
            public: None,
            input: InputRule::default(),
            output: OutputRule::default(),
            options: Options::default(),
            documentation: None,
            metadata: BTreeMap::new(),
        }
    }
}

impl Service {
    /// The options in force for one of its handlers.
    pub fn resolve(&self, handler: &Handler, defaults: &Defaults) -> ResolvedOptions {
        let (own, all) = (&handler.options, &self.options);
        let max_attempts = own.retry_max_attempts.or(all.retry_max_attempts);
        ResolvedOptions {
            inactivity_timeout_ms: own
                .inactivity_timeout_ms
                .or(all.inactivity_timeout_ms)
                .unwrap_or(defaults.inactivity_timeout_ms),
            abort_timeout_ms: own.abort_timeout_ms.or(all.abort_timeout_ms).unwrap_or(defaults.abort_timeout_ms),
            enable_lazy_state: own.enable_lazy_state.or(all.enable_lazy_state).unwrap_or(false),
            retry: RetryPolicy {
                initial_interval_ms: own
                    .retry_initial_interval_ms
                    .or(all.retry_initial_interval_ms)
                    .unwrap_or(defaults.retry.initial_interval_ms),
                factor: own.retry_factor.or(all.retry_factor).unwrap_or(defaults.retry.factor),
                max_interval_ms: own
                    .retry_max_interval_ms
                    .or(all.retry_max_interval_ms)
                    .unwrap_or(defaults.retry.max_interval_ms),
                // 0 means 1 (protocol reference 2.5).
                max_attempts: max_attempts.map(|n| n.max(1)).or(defaults.retry.max_attempts),
                on_max: own.retry_on_max.or(all.retry_on_max).unwrap_or(defaults.retry.on_max),
            },
        }
    }

    /// How long a new invocation of one of its handlers is kept (protocol reference 2.10).
    pub fn retention(&self, handler: &Handler, has_idempotency_key: bool, defaults: &Defaults) -> Retention {
        let (own, all) = (&handler.options, &self.options);
        let journal_ms = own.journal_retention_ms.or(all.journal_retention_ms).unwrap_or(defaults.journal_retention_ms);
        let completion_ms = if handler.target == TargetKind::WorkflowRun {
            own.workflow_retention_ms.or(all.workflow_retention_ms).unwrap_or(defaults.workflow_retention_ms)
        } else if has_idempotency_key {
            own.idempotency_retention_ms.or(all.idempotency_retention_ms).unwrap_or(defaults.idempotency_retention_ms)
        } else {
            journal_ms
        };
        Retention { completion_ms, journal_ms: journal_ms.min(completion_ms) }
    }

    /// Whether clients of the ingress may call this handler.
    pub fn is_public(&self, handler: &Handler) -> bool {
        self.public && handler.public.unwrap_or(true)
    }
}

/// A change of the catalog.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum CatalogEvent {
    /// New, or overwritten in place. The services' revisions are set.
    #[n(0)]
    DeploymentRegistered(#[n(0)] Deployment),
    /// Its services fall back to the newest revision elsewhere, or go.
    #[n(1)]
    DeploymentDeleted(#[n(0)] DeploymentId),
    #[n(2)]
    KafkaClusterStored(#[n(0)] KafkaCluster),
    #[n(3)]
    KafkaClusterDeleted(#[n(0)] Text),
    /// New, or changed; positions of streams are stored with it.
    #[n(4)]
    SubscriptionStored(#[n(0)] Subscription, #[n(1)] Vec<(StreamId, i64)>),
    /// A deleted subscription has ended: nothing is left of it.
    #[n(5)]
    SubscriptionDeleted(#[n(0)] SubscriptionId),
    #[n(6)]
    PositionsAdvanced(#[n(0)] Vec<(StreamId, i64)>),
    /// It is deleted: its source stops and closes it, and only then its row goes (rule K10).
    #[n(7)]
    SubscriptionClosing(#[n(0)] SubscriptionId, #[n(1)] Closing),
}

impl Eq for CatalogEvent {}

impl Catalog {
    /// The deployment that new invocations of a service go to.
    pub fn deployment_of(&self, service: &str) -> Option<&Arc<Deployment>> {
        self.services.get(service).and_then(|s| self.deployments.get(&s.deployment))
    }

    pub fn handler(&self, service: &str, handler: &str) -> Option<(&Arc<Service>, &Handler)> {
        let service = self.services.get(service)?;
        service.handlers.get(handler).map(|h| (service, h))
    }
}

impl Service {
    pub fn is_keyed(&self) -> bool {
        self.kind != ServiceKind::Service
    }
}

/// The catalog's present value, shared with its readers.
#[derive(Clone, Default)]
pub struct CatalogCell(Arc<RwLock<Arc<Catalog>>>);

impl CatalogCell {
    /// The newest published value.
    pub fn load(&self) -> Arc<Catalog> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Replaces the value; for the catalog's owner.
    pub fn publish(&self, catalog: Arc<Catalog>) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = catalog;
    }
}
