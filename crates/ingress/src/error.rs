//! Everything that can go wrong for a client, with its status, stable code and words.
//!
//! Owns: the one mapping from errors to HTTP; `docs/errors.md` says what to do about each code. Does not own: failures that a handler
//! returned (`reply`).

use http::StatusCode;
use surefoot_listener::Refusal;
use surefoot_model::InvocationId;
use surefoot_partition::Stopped;

/// Why a call or send did not go through. [`Error::status`] says what the client can do: below 500 change the request, at 429 and
/// above try again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the path needs 2 to 7 segments, such as /Service/handler or /Object/key/handler")]
    PathLength,
    #[error("service '{0}' not found: register a deployment that serves it")]
    ServiceNotFound(String),
    #[error("service '{service}' has no handler '{handler}': if it is new, register its deployment again with \"force\": true")]
    HandlerNotFound { service: String, handler: String },
    #[error("no such route; /restate/call/… and /restate/send/… reach handlers")]
    RouteNotFound,
    #[error(
        "the path does not fit the service: plain services take /Service/handler, objects and workflows /Service/key/handler"
    )]
    PathShape,
    #[error("{0}")]
    KeyTooLong(String),
    #[error("the key in the path is not UTF-8 once decoded")]
    KeyNotUtf8,
    #[error("'{service}/{handler}' is private: only other handlers may call it")]
    Private { service: String, handler: String },
    #[error("the idempotency key must be visible ASCII")]
    IdempotencyKeyNotAscii,
    #[error("a workflow's run handler takes no idempotency key: its key is one already")]
    IdempotencyKeyOnWorkflow,
    #[error("scoped invocations are not supported by this version of surefoot")]
    Scoped,
    #[error("{0} are not supported by this version of surefoot yet")]
    NotSupportedYet(&'static str),
    #[error("method not allowed")]
    Method,
    #[error("the body is larger than the limit of {0} bytes")]
    TooLarge(u64),
    #[error("the request's body ended early: {0}")]
    BodyUnreadable(String),
    #[error("the request's body did not come in time: {0}")]
    BodyTooSlow(String),
    #[error("the request's body did not come in time: {0}; retry later")]
    BodyGaveWay(String),
    #[error("input validation error: {0}")]
    Input(String),
    #[error("'{0}' is no delay; use for instance 10s, 1h30m or PT1M, at most in days")]
    Delay(String),
    #[error("a call takes no delay: use /send")]
    DelayOnCall,
    #[error("the value of header '{0}' is not visible ASCII")]
    Header(String),
    #[error("{0}")]
    Visitor(Refusal),
    #[error("too many requests are in progress; retry later")]
    TooManyRequests,
    #[error("the server has no room for more work at the moment; nothing was taken, retry later")]
    NoRoom,
    #[error("all connections of this port are in use: reuse connections, or try again later")]
    NoPlace,
    #[error("the server has not recovered yet; retry later")]
    Starting,
    /// To [`Stopped::Unknown`] there is no answer over HTTP: clients would take it for a refusal, and send again what runs.
    #[error("{0}")]
    Stopped(Stopped),
    #[error("the workflow method was already invoked")]
    AlreadyInvoked(InvocationId),
}

/// Who an error comes from: clients may retry what the ingress says, and never what an invocation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorSource {
    Ingress,
    Invocation,
}

impl ErrorSource {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Invocation => "invocation",
        }
    }
}

impl Error {
    pub fn status(&self) -> StatusCode {
        match self {
            Self::PathLength
            | Self::PathShape
            | Self::KeyTooLong(_)
            | Self::KeyNotUtf8
            | Self::Private { .. }
            | Self::IdempotencyKeyNotAscii
            | Self::IdempotencyKeyOnWorkflow
            | Self::Scoped
            | Self::Input(_)
            | Self::Delay(_)
            | Self::DelayOnCall
            | Self::Header(_) => StatusCode::BAD_REQUEST,
            Self::ServiceNotFound(_) | Self::HandlerNotFound { .. } | Self::RouteNotFound | Self::NotSupportedYet(_) => {
                StatusCode::NOT_FOUND
            }
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::AlreadyInvoked(_) => StatusCode::CONFLICT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Visitor(_) => StatusCode::FORBIDDEN,
            Self::BodyTooSlow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::BodyUnreadable(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::BodyGaveWay(_) | Self::NoRoom | Self::NoPlace | Self::Starting | Self::Stopped(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// The stable code of what the ingress says; invocations have none.
    pub fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::PathLength => "SF1001",
            Self::PathShape => "SF1002",
            Self::RouteNotFound => "SF1003",
            Self::ServiceNotFound(_) => "SF1004",
            Self::HandlerNotFound { .. } => "SF1005",
            Self::Private { .. } => "SF1006",
            Self::KeyTooLong(_) => "SF1007",
            Self::KeyNotUtf8 => "SF1008",
            Self::IdempotencyKeyNotAscii => "SF1009",
            Self::IdempotencyKeyOnWorkflow => "SF1010",
            Self::Scoped | Self::NotSupportedYet(_) => "SF1011",
            Self::Method => "SF1012",
            Self::TooLarge(_) => "SF1013",
            Self::BodyUnreadable(_) => "SF1014",
            Self::BodyTooSlow(_) => "SF1015",
            Self::Input(_) => "SF1016",
            Self::Delay(_) | Self::DelayOnCall => "SF1017",
            Self::Header(_) => "SF1018",
            Self::Visitor(_) => "SF1019",
            Self::TooManyRequests => "SF1020",
            Self::NoRoom => "SF1021",
            Self::Starting => "SF1022",
            Self::Stopped(Stopped::NotTaken) => "SF1023",
            Self::Stopped(Stopped::Partition(_)) => "SF1024",
            Self::Stopped(Stopped::Unknown) => "SF1025",
            Self::Stopped(Stopped::DiskFull) => "SF1026",
            Self::BodyGaveWay(_) => "SF1027",
            Self::NoPlace => "SF1028",
            Self::AlreadyInvoked(_) => return None,
        })
    }

    /// Seconds after which trying again makes sense, where it does.
    pub fn retry_after_s(&self) -> Option<u32> {
        match self {
            Self::TooManyRequests | Self::BodyGaveWay(_) | Self::NoPlace | Self::Starting => Some(1),
            // The server takes calls again within two seconds once there is room.
            Self::Stopped(Stopped::DiskFull) => Some(2),
            Self::NoRoom | Self::Stopped(Stopped::NotTaken) => Some(5),
            // Somebody has to look at it first.
            Self::Stopped(Stopped::Partition(_)) => Some(60),
            _ => None,
        }
    }

    pub fn source(&self) -> ErrorSource {
        match self {
            Self::AlreadyInvoked(_) => ErrorSource::Invocation,
            _ => ErrorSource::Ingress,
        }
    }

    /// The invocation it is about, where there is one.
    pub fn invocation(&self) -> Option<InvocationId> {
        match self {
            Self::AlreadyInvoked(id) => Some(*id),
            _ => None,
        }
    }
}
