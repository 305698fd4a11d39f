//! The seam between attempts and the network: one exchange per attempt, bytes both ways at once.
//!
//! Owns: the traits, and the production version in [`http`]. Does not own: what the bytes mean (`protocol`), retries, or
//! deadlines beyond the connection's own.

pub mod http;

use ::http::{HeaderMap, HeaderName, StatusCode};
use bytes::Bytes;
use std::sync::Arc;
use std::task::{Context, Poll};
use surefoot_env::BoxFuture;
use surefoot_model::catalog::{Deployment, HttpVersion};
use tokio::sync::Notify;

pub trait Transport: Send + Sync {
    /// Opens a stream to a deployment. Completes once there is a connection; the response has not begun then. **Errors**: nothing of the
    /// request was sent.
    fn open(&self, request: OpenRequest) -> BoxFuture<Result<Box<dyn Exchange>, TransportError>>;

    /// Asks an endpoint what it serves.
    fn discover(&self, request: DiscoverRequest) -> BoxFuture<Result<DiscoverResponse, TransportError>>;
}

/// Bytes of one request that may wait for the peer before its sender is to wait, too (rule O6). One that sends more all the same is
/// not stopped.
pub const UNSENT_BYTES_MAX: usize = 256 << 10;

/// One request and its response. Dropping it before its end resets the stream.
pub trait Exchange: Send {
    /// Adds bytes to the request; they leave as the peer's window allows, while the response is read.
    fn send(&mut self, bytes: Bytes);

    /// Bytes of the request that have not left yet, as the peer reads slowly or not at all. Above [`UNSENT_BYTES_MAX`] nothing that
    /// can wait should be sent until [`ExchangeEvent::Writable`] comes.
    fn unsent_bytes(&self) -> usize;

    /// Ready while no more than so many bytes are unsent: 0, or [`UNSENT_BYTES_MAX`] for a sender that does not ask for events.
    fn poll_unsent(&mut self, cx: &mut Context<'_>, at_most: usize) -> Poll<()>;

    /// Ends the request. Nothing may be sent after.
    fn half_close(&mut self);

    /// The next event of the response.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<ExchangeEvent>;
}

/// What a response brings, in this order: a head, chunks, an end; an error at any point instead, and nothing after it.
#[derive(Debug)]
pub enum ExchangeEvent {
    /// Not of the response, and between any two events of it: after more than [`UNSENT_BYTES_MAX`] had not left, less has not now.
    Writable,
    Head(StatusCode, HeaderMap),
    Chunk(Bytes),
    End,
    Error(TransportError),
}

/// The stream of one attempt.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    pub deployment: Arc<Deployment>,
    /// Path below the deployment's own, with a leading slash: `/invoke/Service/handler`.
    pub path: String,
    /// All headers but the deployment's additional ones, which are added here.
    pub headers: HeaderMap,
    /// Told, now and then, while the stream waits for others of its deployment to end.
    pub no_room: Arc<Notify>,
}

/// Discovery of one endpoint.
#[derive(Clone, Debug)]
pub struct DiscoverRequest {
    /// The endpoint's address, with its path where it has one.
    pub uri: String,
    /// The version to speak. HTTP/2 is an offer where TLS lets the endpoint choose: the response says what it took.
    pub http: HttpVersion,
    pub headers: HeaderMap,
}

#[derive(Clone, Debug)]
pub struct DiscoverResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The version that was spoken, which invocations keep to.
    pub http: HttpVersion,
}

/// Why there is no response, or no more of it. All of them may be retried.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    #[error("cannot connect to {address}: {message}")]
    Connect { address: String, message: String },
    /// The peer answers HTTP/2 with something else: as a rule it speaks HTTP/1.1 only.
    #[error("{address} does not speak HTTP/2: register it with use_http_11")]
    Http1Peer { address: String },
    /// The peer takes connections, and nothing that speaks HTTP/2 stands behind them: it is silent, or closes them.
    #[error("cannot connect to {address}: it takes the connection, and {message}")]
    NoHttp2 { address: String, message: String },
    #[error("the address {0} is not one that requests can be sent to")]
    Address(String),
    #[error("the connection failed: {0}")]
    Broken(String),
    #[error("no answer within {waited_ms} ms")]
    Silent { waited_ms: u64 },
}

impl TransportError {
    /// Whether nobody was there whom the request could be sent to: no handler has begun it.
    pub fn is_out_of_reach(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Http1Peer { .. } | Self::NoHttp2 { .. } => true,
            Self::Address(_) | Self::Broken(_) | Self::Silent { .. } => false,
        }
    }
}

/// Headers of a request that a deployment's own may not replace: this server sets them, or they are about the connection and not the
/// request.
pub fn is_reserved(header: &HeaderName) -> bool {
    const NAMES: [&str; 12] = [
        "accept",
        "connection",
        "content-length",
        "content-type",
        "expect",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.contains(&header.as_str()) || header.as_str().starts_with("x-restate-")
}
