//! Exchanges over HTTP/2 (prior knowledge, or ALPN under TLS) and HTTP/1.1, on pooled connections.
//!
//! Owns: which version is spoken to whom, what is remembered of each deployment, discovery's deadline. An exchange has no task of
//! its own; each connection has one. Does not own: connections (`pool`, `connection`), or the two versions (`http2`, `http1`).

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the production transport: simulation replaces it as a whole"
)]

mod base;
mod connect;
mod connection;
mod http1;
mod http2;
mod pool;
#[cfg(test)]
mod tests;
mod tls;
mod unsent;

use super::{
    DiscoverRequest, DiscoverResponse, Exchange, ExchangeEvent, OpenRequest, Transport, TransportError, UNSENT_BYTES_MAX,
    is_reserved,
};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use base::{Address, Base};
use bytes::{Bytes, BytesMut};
use http1::Http1Exchange;
use http2::Http2Exchange;
use pool::Pool;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use surefoot_env::BoxFuture;
use surefoot_model::DeploymentId;
use surefoot_model::catalog::{Deployment, HttpVersion};
use tls::Tls;
use tokio::sync::Notify;

/// A manifest larger than this is refused.
const MANIFEST_BYTES_MAX: usize = 16 << 20;
/// Discovery may take this long in all.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Addresses of requests that are kept for each deployment: more than it has handlers, as a rule.
const URIS_MAX: usize = 1_024;

/// The production transport. Cheap to clone.
#[derive(Clone)]
pub struct HttpTransport(Arc<Shared>);

struct Shared {
    dialing: Arc<Dialing>,
    /// A pool lives while an endpoint, an exchange or one of its connections needs it.
    pools: Mutex<BTreeMap<Address, Weak<Pool>>>,
    endpoints: Mutex<BTreeMap<DeploymentId, Known>>,
}

/// What every new connection needs.
struct Dialing {
    timing: Timing,
    tls: Tls,
}

/// How long things may take.
#[derive(Clone, Copy)]
struct Timing {
    /// Until TCP and TLS stand, and from there until the first word of HTTP/2.
    connect: Duration,
    /// Until the head of a manifest is there, connecting included.
    discovery: Duration,
    /// Until a connection that nothing uses is closed. Looked at every `ping_interval`.
    idle: Duration,
    /// Between two signs of life that a peer of HTTP/2 is asked for.
    ping_interval: Duration,
    /// Until a peer that gave no sign of life is taken for dead.
    ping_timeout: Duration,
    /// Both of them for a peer that has said goodbye, which may have forgotten the streams that it has.
    goodbye_interval: Duration,
    goodbye_timeout: Duration,
}

/// A deployment's endpoint, and the very registration that it was made from.
struct Known {
    deployment: Weak<Deployment>,
    endpoint: Arc<Endpoint>,
}

/// Where the requests of a deployment go, parsed once.
struct Endpoint {
    base: Base,
    additional_headers: Vec<(HeaderName, HeaderValue)>,
    pool: Arc<Pool>,
    /// By path.
    uris: Mutex<BTreeMap<String, Uri>>,
}

impl Endpoint {
    fn request(&self, path: String, mut headers: HeaderMap) -> Result<Request<()>, TransportError> {
        for (name, value) in &self.additional_headers {
            headers.insert(name, value.clone());
        }
        let mut uris = self.uris.lock().unwrap_or_else(PoisonError::into_inner);
        let uri = match uris.get(&path) {
            Some(uri) => uri.clone(),
            None => {
                let uri = self.base.uri(&path)?;
                if uris.len() >= URIS_MAX {
                    uris.clear();
                }
                uris.insert(path, uri.clone());
                uri
            }
        };
        Ok(base::request(Method::POST, uri, headers))
    }
}

impl HttpTransport {
    pub fn new(connect_timeout: Duration) -> Self {
        let timing = Timing {
            connect: connect_timeout,
            idle: Duration::from_secs(300),
            ping_interval: Duration::from_secs(40),
            ping_timeout: Duration::from_secs(20),
            goodbye_interval: Duration::from_secs(5),
            goodbye_timeout: Duration::from_secs(3),
            discovery: Duration::from_secs(10),
        };
        Self::dialing(Dialing { timing, tls: Tls::trusting_the_web() })
    }

    fn dialing(dialing: Dialing) -> Self {
        Self(Arc::new(Shared { dialing: Arc::new(dialing), pools: Mutex::default(), endpoints: Mutex::default() }))
    }
}

impl Transport for HttpTransport {
    fn open(&self, request: OpenRequest) -> BoxFuture<Result<Box<dyn Exchange>, TransportError>> {
        let shared = self.0.clone();
        Box::pin(async move {
            let OpenRequest { deployment, path, headers, no_room } = request;
            let endpoint = shared.endpoint(&deployment)?;
            let head = endpoint.request(path, headers)?;
            let pool = endpoint.pool.clone();
            Ok(match deployment.http {
                HttpVersion::Http2 => Box::new(Http2Exchange::open(pool, head, false, &no_room).await?) as Box<dyn Exchange>,
                HttpVersion::Http11 => Box::new(Http1Exchange::open(pool, head).await?),
            })
        })
    }

    fn discover(&self, request: DiscoverRequest) -> BoxFuture<Result<DiscoverResponse, TransportError>> {
        let shared = self.0.clone();
        Box::pin(async move {
            let asked = tokio::time::timeout(DISCOVERY_TIMEOUT, shared.discover(request));
            asked.await.unwrap_or_else(|_| Err(silent(DISCOVERY_TIMEOUT)))
        })
    }
}

impl Shared {
    async fn discover(&self, request: DiscoverRequest) -> Result<DiscoverResponse, TransportError> {
        let base = Base::parse(&request.uri)?;
        let head = base::request(Method::GET, base.uri("/discover")?, request.headers);
        let pool = self.pool(&base.address);
        let limit = self.dialing.timing.discovery;
        let heading = async {
            let http = match request.http {
                HttpVersion::Http2 if base.address.tls => pool.negotiate().await?,
                http => http,
            };
            let mut exchange = match http {
                HttpVersion::Http2 => Box::new(Http2Exchange::open(pool, head, true, &Notify::new()).await?) as Box<dyn Exchange>,
                HttpVersion::Http11 => Box::new(Http1Exchange::open(pool, head).await?),
            };
            let (status, headers) = ask(&mut *exchange).await?;
            Ok((exchange, status, headers, http))
        };
        let headed = tokio::time::timeout(limit, heading).await;
        let (mut exchange, status, headers, http) = headed.unwrap_or_else(|_| Err(silent(limit)))?;
        let body = collect(&mut *exchange).await?;
        Ok(DiscoverResponse { status, headers, body, http })
    }

    fn endpoint(&self, deployment: &Arc<Deployment>) -> Result<Arc<Endpoint>, TransportError> {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = endpoints.get(&deployment.id)
            && known.deployment.as_ptr() == Arc::as_ptr(deployment)
        {
            return Ok(known.endpoint.clone());
        }
        let base = Base::parse(&deployment.uri)?;
        let pool = self.pool(&base.address);
        let headers = deployment.additional_headers.iter();
        let headers = headers.filter_map(|(name, value)| Some((name.parse::<HeaderName>().ok()?, value.parse().ok()?)));
        let (reserved, own): (Vec<_>, Vec<_>) = headers.partition(|(name, _)| is_reserved(name));
        for (header, _) in reserved {
            tracing::warn!(deployment = %deployment.id, %header, "the header is not sent: this server sets it itself, or it is the connection's");
        }
        let endpoint = Arc::new(Endpoint { base, additional_headers: own, pool, uris: Mutex::default() });
        // What was deleted or registered anew since is in nobody's hands any more.
        endpoints.retain(|_, known| known.deployment.strong_count() > 0);
        endpoints.insert(deployment.id, Known { deployment: Arc::downgrade(deployment), endpoint: endpoint.clone() });
        Ok(endpoint)
    }

    fn pool(&self, address: &Address) -> Arc<Pool> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(address).and_then(Weak::upgrade) {
            return pool;
        }
        let pool = Arc::new(Pool::new(address.clone(), self.dialing.clone()));
        pools.retain(|_, pool| pool.strong_count() > 0);
        pools.insert(address.clone(), Arc::downgrade(&pool));
        pool
    }
}

/// What is still to be heard within that time.
fn silent(limit: Duration) -> TransportError {
    TransportError::Silent { waited_ms: limit.as_millis() as u64 }
}

/// Ends the request and waits for the response to begin.
async fn ask(exchange: &mut dyn Exchange) -> Result<(StatusCode, HeaderMap), TransportError> {
    exchange.half_close();
    loop {
        match poll_fn(|cx| exchange.poll_event(cx)).await {
            ExchangeEvent::Writable => {}
            ExchangeEvent::Head(status, headers) => return Ok((status, headers)),
            ExchangeEvent::Chunk(_) | ExchangeEvent::End => {
                return Err(TransportError::Broken("a response without a head".to_owned()));
            }
            ExchangeEvent::Error(error) => return Err(error),
        }
    }
}

/// Reads the rest of a response.
async fn collect(exchange: &mut dyn Exchange) -> Result<Bytes, TransportError> {
    let mut body = BytesMut::new();
    loop {
        match poll_fn(|cx| exchange.poll_event(cx)).await {
            ExchangeEvent::Writable | ExchangeEvent::Head(..) => {}
            ExchangeEvent::Chunk(chunk) if body.len() + chunk.len() <= MANIFEST_BYTES_MAX => body.extend_from_slice(&chunk),
            ExchangeEvent::Chunk(_) => {
                return Err(TransportError::Broken(format!("the manifest is larger than {MANIFEST_BYTES_MAX} bytes")));
            }
            ExchangeEvent::End => return Ok(body.freeze()),
            ExchangeEvent::Error(error) => return Err(error),
        }
    }
}
