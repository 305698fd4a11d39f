//! Exchanges over HTTP/2 (prior knowledge, or ALPN under TLS) and HTTP/1.1, on pooled connections.
//!
//! Owns: which version is spoken to whom, what is remembered of each deployment, discovery's deadline. An exchange has no task of
//! its own; each connection has one. Does not own: connections (`pool`), or the two versions (`http2`, `http1`).

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the production transport: simulation replaces it as a whole"
)]

mod base;
mod connect;
mod http1;
mod http2;
mod pool;
#[cfg(test)]
mod tests;
mod tls;
mod unsent;

use super::{
    DiscoverRequest, DiscoverResponse, Exchange, ExchangeEvent, OpenRequest, Transport, TransportError, UNSENT_BYTES_MAX,
};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
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

/// A manifest larger than this is refused.
const MANIFEST_BYTES_MAX: usize = 16 << 20;
/// Discovery may wait for a cold endpoint this long.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// Until TCP and TLS stand.
    connect: Duration,
    /// Until a connection that nothing uses is closed. Looked at every `ping_interval`.
    idle: Duration,
    /// Between two signs of life that a peer of HTTP/2 is asked for.
    ping_interval: Duration,
    /// Until a peer that gave no sign of life is taken for dead, at the beginning of a connection as later on.
    ping_timeout: Duration,
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
}

impl HttpTransport {
    pub fn new(connect_timeout: Duration) -> Self {
        let timing = Timing {
            connect: connect_timeout,
            idle: Duration::from_secs(300),
            ping_interval: Duration::from_secs(40),
            ping_timeout: Duration::from_secs(20),
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
            let OpenRequest { deployment, path, mut headers } = request;
            let endpoint = shared.endpoint(&deployment)?;
            for (name, value) in &endpoint.additional_headers {
                headers.insert(name, value.clone());
            }
            let head = endpoint.base.request(Method::POST, &path, headers)?;
            let pool = endpoint.pool.clone();
            Ok(match deployment.http {
                HttpVersion::Http2 => Box::new(Http2Exchange::open(pool, head, false).await?) as Box<dyn Exchange>,
                HttpVersion::Http11 => Box::new(Http1Exchange::new(pool, head)),
            })
        })
    }

    fn discover(&self, request: DiscoverRequest) -> BoxFuture<Result<DiscoverResponse, TransportError>> {
        let shared = self.0.clone();
        Box::pin(async move {
            let asked = tokio::time::timeout(DISCOVERY_TIMEOUT, shared.discover(request));
            let late = || TransportError::Broken(format!("no answer within {} s", DISCOVERY_TIMEOUT.as_secs()));
            asked.await.unwrap_or_else(|_| Err(late()))
        })
    }
}

impl Shared {
    async fn discover(&self, request: DiscoverRequest) -> Result<DiscoverResponse, TransportError> {
        let base = Base::parse(&request.uri)?;
        let head = base.request(Method::GET, "/discover", request.headers)?;
        let pool = self.pool(&base.address);
        let http = match request.http {
            HttpVersion::Http2 if base.address.tls => pool.negotiate().await?,
            http => http,
        };
        let (status, headers, body) = match http {
            HttpVersion::Http2 => collect(&mut Http2Exchange::open(pool, head, true).await?).await?,
            HttpVersion::Http11 => collect(&mut Http1Exchange::new(pool, head)).await?,
        };
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
        let headers = headers.filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)));
        let endpoint = Arc::new(Endpoint { base, additional_headers: headers.collect(), pool });
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

/// Ends the request and reads the whole response.
async fn collect(exchange: &mut dyn Exchange) -> Result<(StatusCode, HeaderMap, Bytes), TransportError> {
    exchange.half_close();
    let (mut head, mut body) = (None, BytesMut::new());
    loop {
        match poll_fn(|cx| exchange.poll_event(cx)).await {
            ExchangeEvent::Writable => {}
            ExchangeEvent::Head(status, headers) => head = Some((status, headers)),
            ExchangeEvent::Chunk(chunk) if body.len() + chunk.len() <= MANIFEST_BYTES_MAX => body.extend_from_slice(&chunk),
            ExchangeEvent::Chunk(_) => {
                return Err(TransportError::Broken(format!("the manifest is larger than {MANIFEST_BYTES_MAX} bytes")));
            }
            ExchangeEvent::End => {
                let (status, headers) = head.ok_or_else(|| TransportError::Broken("a response without a head".to_owned()))?;
                return Ok((status, headers, body.freeze()));
            }
            ExchangeEvent::Error(error) => return Err(error),
        }
    }
}
