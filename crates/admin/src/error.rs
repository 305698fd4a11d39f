//! Everything that can go wrong for an operator, with its status, stable code and words.
//!
//! Owns: the one mapping from errors to HTTP. Source: HTTP reference 2.1, 2.3 and 2.5; codes are those that clients know.

use http::StatusCode;
use surefoot_listener::Refusal;
use surefoot_model::{DeploymentId, InvocationId, PartitionId, SubscriptionId};
use surefoot_partition::Stopped;
use surefoot_protocol::discovery;

/// Why an operator's request did not go through. [`Error::status`] says what to do: below 500 change the request, from there on
/// look at the endpoint it names, or at this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("request field '{field}' is invalid: {reason}")]
    Field { field: &'static str, reason: String },
    #[error("the body is not what this route takes: {reason}")]
    Body { status: StatusCode, reason: String },
    #[error("the body is larger than the limit of {0} bytes")]
    BodyTooLarge(usize),
    #[error("the request's body ended early: {0}")]
    BodyUnreadable(String),
    #[error("the query is not what this route takes: {0}")]
    Query(String),
    #[error("the path has '{text}' where {what} is expected")]
    Path { what: &'static str, text: String },
    #[error("there is no such route")]
    RouteNotFound,
    #[error("this route does not take that method: the header `allow` names those it takes")]
    Method,
    #[error("version 1 of this API is not served: use one from {oldest} to {newest}, such as /v{newest}/deployments")]
    ApiVersion { oldest: u8, newest: u8 },
    #[error("this server serves plain HTTP endpoints only: {0} is not supported")]
    NotSupported(&'static str),
    #[error("'{0}' is not supported by this version of surefoot yet")]
    NotSupportedYet(&'static str),
    #[error(
        "a deployment is deleted with what runs on it, or not at all: add ?force=true if what is pinned to it may fail from now on"
    )]
    DeletesByForceOnly,

    #[error("cannot discover '{uri}': {reason}")]
    Unreachable { uri: String, reason: String },
    #[error(
        "'{uri}' does not speak HTTP/2, probably HTTP/1.1 only: serve it over HTTP/2 without TLS, or register it with \"use_http_11\": true"
    )]
    Http1Only { uri: String },
    #[error("'{uri}' gave no usable discovery response: {reason}")]
    Discovery { uri: String, reason: discovery::Error },
    #[error("deployment {0} is registered with this address already: register it with \"force\": true to discover it anew")]
    AddressTaken(DeploymentId),
    #[error(
        "service '{0}' changes its type with this deployment: give it another name, or register it with \"breaking\": true if no client or handler relies on the old type"
    )]
    TypeChanged(String),
    #[error(
        "with this deployment all that are registered would have {found} {what}, more than the {max} that this server keeps: \
         delete deployments that nothing runs on any more, or let endpoints serve or describe less"
    )]
    CatalogFull { what: &'static str, found: usize, max: usize },

    #[error("deployment '{0}' does not exist")]
    DeploymentNotFound(DeploymentId),
    #[error("service '{0}' does not exist")]
    ServiceNotFound(String),
    #[error("handler '{handler}' of service '{service}' does not exist")]
    HandlerNotFound { service: String, handler: String },

    #[error("invocation '{0}' does not exist")]
    InvocationNotFound(InvocationId),
    #[error("invocation '{0}' has completed already")]
    InvocationCompleted(InvocationId),
    #[error("invocation '{0}' has not completed yet: kill it first")]
    InvocationNotCompleted(InvocationId),
    #[error("invocation '{0}' is not running: only what has started can be paused")]
    InvocationNotRunning(InvocationId),
    #[error("invocation '{0}' has not started yet: there is nothing to resume")]
    InvocationNotStarted(InvocationId),

    #[error("kafka cluster '{0}' does not exist")]
    ClusterNotFound(String),
    #[error("kafka cluster '{0}' exists already: change it with PATCH")]
    ClusterExists(String),
    #[error("kafka cluster '{cluster}' is used by subscription '{subscription}': delete that first, or add ?force=true")]
    ClusterInUse { cluster: String, subscription: SubscriptionId },
    #[error("subscription '{0}' does not exist")]
    SubscriptionNotFound(SubscriptionId),
    #[error("kafka cluster '{cluster}' of the source does not exist; known: {known}")]
    SourceClusterUnknown { cluster: String, known: String },
    #[error("the source '{0}' is none: expected kafka://<cluster>/<topic>")]
    Source(String),
    #[error("the sink '{0}' is none: expected service://<service>/<handler>")]
    Sink(String),
    #[error("the sink '{0}' does not exist: register a deployment that serves it first")]
    SinkNotFound(String),
    #[error("subscription '{subscription}' reads this topic with the same group.id '{group}': each needs its own")]
    GroupTaken { subscription: SubscriptionId, group: String },
    #[error("parked record {number} of subscription '{subscription}' does not exist")]
    ParkedNotFound { subscription: SubscriptionId, number: u64 },

    #[error("a backup is being made already: wait for it, or end the command that asked for it")]
    BackupRuns,
    #[error("no backup can be made there: {0}")]
    BackupDirectory(String),
    #[error("the backup was given up: {0}")]
    BackupFailed(String),

    #[error("{0}")]
    Visitor(Refusal),
    #[error("the request's body did not come in time: {0}")]
    BodyTooSlow(String),
    #[error("the request's body did not come in time: {0}; retry later")]
    BodyGaveWay(String),
    #[error("too many requests of operators are in progress; retry later")]
    TooManyRequests,

    #[error("all connections of this port are in use: reuse connections, or try again later")]
    NoPlace,
    #[error("the server has not recovered yet, or is stopping")]
    NotReady,
    #[error("partition {partition} has stopped: {error}")]
    PartitionStopped { partition: PartitionId, error: String },
    #[error("the server has not started yet, and waits for room: {0}; free some of the disk, and it goes on by itself")]
    StartWaits(String),
    #[error("{why}: {waits} until there is room; free some of the disk, or lower disk-reserve-size")]
    DiskShort { why: String, waits: &'static str },
    #[error("{0}")]
    Unanswered(String),
    #[error("the server is stopping")]
    Stopping,
    /// The outcome is unknown, so HTTP gets no answer: a client would take one for a refusal, and send the request again.
    #[error("the server stopped before the answer; the request may be carried out all the same")]
    OutcomeUnknown,
}

impl From<Stopped> for Error {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::NotTaken => Self::Stopping,
            Stopped::DiskFull | Stopped::Partition(_) => Self::Unanswered(stopped.to_string()),
            Stopped::Unknown => Self::OutcomeUnknown,
        }
    }
}

impl Error {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Body { status, .. } => *status,
            Self::BodyTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Field { .. }
            | Self::BodyUnreadable(_)
            | Self::Query(_)
            | Self::Path { .. }
            | Self::ApiVersion { .. }
            | Self::NotSupported(_)
            | Self::SourceClusterUnknown { .. }
            | Self::Source(_)
            | Self::Sink(_)
            | Self::SinkNotFound(_)
            | Self::BackupDirectory(_) => StatusCode::BAD_REQUEST,
            Self::Discovery { reason, .. }
                if !matches!(reason, discovery::Error::Malformed(_) | discovery::Error::Versions { .. }) =>
            {
                StatusCode::BAD_REQUEST
            }
            // The endpoint's fault rather than the request's or this server's; clients know it by this status.
            Self::Unreachable { .. } | Self::Http1Only { .. } | Self::Discovery { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BackupFailed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::DeploymentNotFound(_)
            | Self::ServiceNotFound(_)
            | Self::HandlerNotFound { .. }
            | Self::InvocationNotFound(_)
            | Self::ClusterNotFound(_)
            | Self::SubscriptionNotFound(_)
            | Self::ParkedNotFound { .. }
            | Self::RouteNotFound => StatusCode::NOT_FOUND,
            Self::AddressTaken(_)
            | Self::TypeChanged(_)
            | Self::CatalogFull { .. }
            | Self::InvocationCompleted(_)
            | Self::InvocationNotCompleted(_)
            | Self::InvocationNotRunning(_)
            | Self::ClusterExists(_)
            | Self::ClusterInUse { .. }
            | Self::GroupTaken { .. }
            | Self::BackupRuns => StatusCode::CONFLICT,
            Self::InvocationNotStarted(_) => StatusCode::TOO_EARLY,
            Self::Visitor(_) => StatusCode::FORBIDDEN,
            Self::BodyTooSlow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::NotSupportedYet(_) | Self::DeletesByForceOnly => StatusCode::NOT_IMPLEMENTED,
            Self::BodyGaveWay(_)
            | Self::NoPlace
            | Self::NotReady
            | Self::PartitionStopped { .. }
            | Self::StartWaits(_)
            | Self::DiskShort { .. }
            | Self::Unanswered(_)
            | Self::Stopping
            | Self::OutcomeUnknown => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The stable code; `docs/errors.md` says what to do about each. Those that clients know are kept.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "META0003",
            Self::AddressTaken(_) => "META0004",
            Self::TypeChanged(_) => "META0006",
            Self::Source(_) | Self::Sink(_) | Self::SinkNotFound(_) => "META0009",
            Self::Http1Only { .. } => "META0014",
            Self::Discovery { reason, .. } => match reason {
                discovery::Error::Malformed(_) => "META0013",
                discovery::Error::Versions { .. } => "META0012",
                discovery::Error::ReservedName(_) => "META0005",
                discovery::Error::Invalid(_) => "SF2001",
                discovery::Error::TooMany { .. } => "SF2032",
            },
            Self::CatalogFull { .. } => "SF2032",
            Self::Field { .. } => "SF2002",
            Self::NotSupported(_) | Self::NotSupportedYet(_) | Self::DeletesByForceOnly => "SF2003",
            Self::DeploymentNotFound(_) | Self::ServiceNotFound(_) | Self::HandlerNotFound { .. } => "SF2004",
            Self::Path { .. } => "SF2005",
            Self::InvocationNotFound(_) => "SF2006",
            Self::InvocationCompleted(_) => "SF2007",
            Self::InvocationNotCompleted(_) => "SF2008",
            Self::InvocationNotRunning(_) | Self::InvocationNotStarted(_) => "SF2009",
            Self::ClusterNotFound(_) | Self::SourceClusterUnknown { .. } => "SF2010",
            Self::ClusterExists(_) => "SF2011",
            Self::ClusterInUse { .. } => "SF2012",
            Self::SubscriptionNotFound(_) | Self::ParkedNotFound { .. } => "SF2013",
            Self::GroupTaken { .. } => "SF2014",
            Self::Visitor(_) => "SF2015",
            Self::BodyTooSlow(_) => "SF2016",
            Self::TooManyRequests => "SF2017",
            Self::NotReady | Self::Stopping => "SF2018",
            Self::PartitionStopped { .. } | Self::Unanswered(_) => "SF2019",
            Self::OutcomeUnknown => "SF2020",
            Self::DiskShort { .. } | Self::StartWaits(_) => "SF2021",
            Self::BodyGaveWay(_) => "SF2022",
            Self::BackupRuns => "SF2023",
            Self::BackupDirectory(_) => "SF2024",
            Self::BackupFailed(_) => "SF2025",
            Self::Body { .. } => "SF2026",
            Self::Query(_) => "SF2027",
            Self::BodyTooLarge(_) => "SF2028",
            Self::BodyUnreadable(_) => "SF2029",
            Self::RouteNotFound | Self::ApiVersion { .. } => "SF2030",
            Self::Method => "SF2031",
            Self::NoPlace => "SF2033",
        }
    }

    /// Seconds after which trying again makes sense, where it does.
    pub fn retry_after_s(&self) -> Option<u32> {
        match self {
            Self::TooManyRequests | Self::BodyGaveWay(_) | Self::NoPlace | Self::NotReady | Self::Stopping => Some(1),
            Self::DiskShort { .. } | Self::StartWaits(_) => Some(2),
            Self::PartitionStopped { .. } | Self::Unanswered(_) => Some(60),
            _ => None,
        }
    }

    /// The message as clients show it, its code in front.
    pub(crate) fn message(&self) -> String {
        format!("[{}] {self}", self.code())
    }
}
