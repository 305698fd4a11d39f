//! Exchanges over HTTP/2 (prior knowledge, or ALPN under TLS) and HTTP/1.1, on pooled connections.
//!
//! Owns: sockets, the pool, flow-control windows, keep-alive. Each connection has one task; an exchange has none of its own.
//! Over HTTP/1.1 a request is sent whole when it is half-closed, so that such deployments run request/response.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the production transport: simulation replaces it as a whole"
)]

use super::{DiscoverRequest, DiscoverResponse, Exchange, ExchangeEvent, OpenRequest, Transport, TransportError};
use ::http::uri::{PathAndQuery, Scheme};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};
use bytes::{Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use surefoot_env::BoxFuture;
use surefoot_model::catalog::{Deployment, HttpVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Streams per connection before another one is opened.
const STREAMS_PER_CONNECTION: usize = 128;
/// Idle connections are kept to this number per address.
const CONNECTIONS_IDLE: usize = 2;
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 5 << 20;
const PING_INTERVAL: Duration = Duration::from_secs(40);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A manifest larger than this is refused.
const MANIFEST_BYTES_MAX: usize = 16 << 20;
/// Discovery may wait for a cold endpoint this long.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(30);

/// The production transport. Cheap to clone.
#[derive(Clone)]
pub struct HttpTransport(Arc<Shared>);

struct Shared {
    connect_timeout: Duration,
    pools: Mutex<BTreeMap<Address, Pool>>,
}

/// Connections to one address.
#[derive(Default)]
struct Pool {
    connections: Vec<Connection>,
    /// Held by whoever opens one, so that attempts that start together share it.
    connecting: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Address {
    tls: bool,
    host: String,
    port: u16,
}

#[derive(Clone)]
struct Connection {
    send: SendRequest<Bytes>,
    streams: Arc<AtomicUsize>,
    /// Set when the connection's task has ended.
    closed: Arc<std::sync::atomic::AtomicBool>,
}

impl HttpTransport {
    pub fn new(connect_timeout: Duration) -> Self {
        Self(Arc::new(Shared { connect_timeout, pools: Mutex::default() }))
    }
}

impl Transport for HttpTransport {
    fn open(&self, request: OpenRequest) -> BoxFuture<Result<Box<dyn Exchange>, TransportError>> {
        let shared = self.0.clone();
        Box::pin(async move {
            let (address, uri) = target(&request.deployment.uri, &request.path)?;
            let mut head =
                Request::builder().method(Method::POST).uri(uri).body(()).map_err(|e| bad_address(&request.deployment, &e))?;
            *head.headers_mut() = request.headers;
            add_headers(head.headers_mut(), &request.deployment);
            match request.deployment.http {
                HttpVersion::Http2 => {
                    let connection = shared.connection(&address).await?;
                    *head.version_mut() = Version::HTTP_2;
                    let exchange = connection.request(head, false).await?;
                    Ok(Box::new(exchange) as Box<dyn Exchange>)
                }
                HttpVersion::Http11 => Ok(Box::new(Http1Exchange::new(shared, address, head)) as Box<dyn Exchange>),
            }
        })
    }

    fn discover(&self, request: DiscoverRequest) -> BoxFuture<Result<DiscoverResponse, TransportError>> {
        let shared = self.0.clone();
        Box::pin(async move {
            let (address, uri) = target(&request.uri, "/discover")?;
            let mut head =
                Request::builder().method(Method::GET).uri(uri).body(()).map_err(|e| TransportError::Address(e.to_string()))?;
            *head.headers_mut() = request.headers;
            let asked = async {
                match request.http {
                    HttpVersion::Http2 => {
                        let connection = shared.connection(&address).await?;
                        *head.version_mut() = Version::HTTP_2;
                        let mut exchange = connection.request(head, true).await.map_err(|e| http1_hint(e, &address))?;
                        collect(&mut exchange).await.map_err(|e| http1_hint(e, &address))
                    }
                    HttpVersion::Http11 => shared.http1(&address, head, Bytes::new()).await,
                }
            };
            tokio::time::timeout(DISCOVERY_TIMEOUT, asked)
                .await
                .unwrap_or_else(|_| Err(TransportError::Broken(format!("no answer within {} s", DISCOVERY_TIMEOUT.as_secs()))))
                .map(|(status, headers, body)| DiscoverResponse { status, headers, body, http: request.http })
        })
    }
}

fn bad_address(deployment: &Deployment, error: &::http::Error) -> TransportError {
    TransportError::Address(format!("{} ({error})", deployment.uri))
}

/// Bytes of an HTTP/1.1 answer read as an HTTP/2 frame: an impossible size, or a closed connection.
fn http1_hint(error: TransportError, address: &Address) -> TransportError {
    match error {
        TransportError::Broken(message)
            if message.contains("FRAME_SIZE_ERROR") || message.contains("frame with invalid size") =>
        {
            TransportError::Http1Peer { address: address.to_string() }
        }
        other => other,
    }
}

fn target(uri: &str, path: &str) -> Result<(Address, Uri), TransportError> {
    let refuse = || TransportError::Address(uri.to_owned());
    let base: Uri = uri.parse().map_err(|_| refuse())?;
    let tls = match base.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => false,
        Some(scheme) if *scheme == Scheme::HTTPS => true,
        _ => return Err(refuse()),
    };
    let host = base.host().ok_or_else(refuse)?.trim_matches(['[', ']']).to_owned();
    let port = base.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let prefix = base.path().trim_end_matches('/');
    let query = base.query().map(|q| format!("?{q}")).unwrap_or_default();
    let mut parts = base.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(format!("{prefix}{path}{query}")).map_err(|_| refuse())?);
    let uri = Uri::from_parts(parts).map_err(|_| refuse())?;
    Ok((Address { tls, host, port }, uri))
}

fn add_headers(headers: &mut HeaderMap, deployment: &Deployment) {
    for (name, value) in &deployment.additional_headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}:{}", if self.tls { "https" } else { "http" }, self.host, self.port)
    }
}

impl Shared {
    /// A connection with room for one more stream, which is counted already.
    async fn connection(&self, address: &Address) -> Result<Connection, TransportError> {
        if let Some(connection) = self.pooled(address) {
            return Ok(connection);
        }
        let connecting = {
            let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
            pools.entry(address.clone()).or_default().connecting.clone()
        };
        let _connecting = connecting.lock().await;
        if let Some(connection) = self.pooled(address) {
            return Ok(connection);
        }
        let io = self.connect(address, &[b"h2"]).await?;
        let broken = |error: h2::Error| http1_hint(TransportError::Broken(error.to_string()), address);
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            .handshake(io)
            .await
            .map_err(broken)?;
        let pooled = Connection { send, streams: Arc::new(AtomicUsize::new(1)), closed: Arc::default() };
        tokio::spawn(run_connection(connection, pooled.closed.clone()));
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.entry(address.clone()).or_default().connections.push(pooled.clone());
        Ok(pooled)
    }

    fn pooled(&self, address: &Address) -> Option<Connection> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = &mut pools.get_mut(address)?.connections;
        let mut idle = 0;
        pool.retain(|connection| {
            let is_idle = connection.streams.load(Ordering::Relaxed) == 0;
            idle += usize::from(is_idle);
            !connection.closed.load(Ordering::Relaxed) && (!is_idle || idle <= CONNECTIONS_IDLE)
        });
        let connection = pool.iter().find(|c| c.has_room())?;
        connection.streams.fetch_add(1, Ordering::Relaxed);
        Some(connection.clone())
    }

    async fn connect(&self, address: &Address, alpn: &[&[u8]]) -> Result<Io, TransportError> {
        let failed = |message: String| TransportError::Connect { address: address.to_string(), message };
        let connecting = async {
            let tcp = TcpStream::connect((address.host.as_str(), address.port)).await?;
            tcp.set_nodelay(true)?;
            let tcp = QuickAck(tcp);
            if address.tls { tls::connect(tcp, &address.host, alpn).await } else { Ok(Box::pin(tcp) as Io) }
        };
        match tokio::time::timeout(self.connect_timeout, connecting).await {
            Ok(Ok(io)) => Ok(io),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("no connection within {} ms", self.connect_timeout.as_millis()))),
        }
    }

    /// A whole HTTP/1.1 exchange on a connection of its own.
    async fn http1(
        &self,
        address: &Address,
        head: Request<()>,
        body: Bytes,
    ) -> Result<(StatusCode, HeaderMap, Bytes), TransportError> {
        let (head, incoming) = self.http1_open(address, head, body).await?;
        let body =
            Limited::new(incoming, MANIFEST_BYTES_MAX).collect().await.map_err(|e| TransportError::Broken(e.to_string()))?;
        Ok((head.status, head.headers, body.to_bytes()))
    }

    async fn http1_open(
        &self,
        address: &Address,
        head: Request<()>,
        body: Bytes,
    ) -> Result<(::http::response::Parts, Incoming), TransportError> {
        let broken = |error: hyper::Error| TransportError::Broken(error.to_string());
        let io = self.connect(address, &[b"http/1.1"]).await?;
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
        tokio::spawn(connection);
        let (mut parts, ()) = head.into_parts();
        let authority = format!("{}:{}", address.host, address.port);
        parts
            .headers
            .insert(::http::header::HOST, HeaderValue::try_from(authority).map_err(|e| TransportError::Address(e.to_string()))?);
        parts.uri = parts.uri.path_and_query().map_or_else(|| Uri::from_static("/"), |p| Uri::from(p.clone()));
        let response = send.send_request(Request::from_parts(parts, Full::new(body))).await.map_err(broken)?;
        Ok(response.into_parts())
    }
}

/// Drives a connection and pings it while it is idle, so that a dead peer is noticed.
async fn run_connection(mut connection: h2::client::Connection<Io, Bytes>, closed: Arc<std::sync::atomic::AtomicBool>) {
    let ping_pong = connection.ping_pong();
    let pinging = async {
        let Some(mut ping_pong) = ping_pong else { return std::future::pending().await };
        loop {
            tokio::time::sleep(PING_INTERVAL).await;
            match tokio::time::timeout(PING_TIMEOUT, ping_pong.ping(h2::Ping::opaque())).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    };
    tokio::select! {
        biased;
        // Its end is that of all its streams, which hear of it themselves.
        _ = connection => {}
        // A peer that does not answer: dropping the connection fails its streams.
        () = pinging => {}
    }
    closed.store(true, Ordering::Relaxed);
}

impl Connection {
    fn has_room(&self) -> bool {
        // What the peer allows at a time, where it has said so.
        let streams_max = self.send.current_max_send_streams().clamp(1, STREAMS_PER_CONNECTION);
        self.streams.load(Ordering::Relaxed) < streams_max
    }

    async fn request(self, head: Request<()>, is_whole: bool) -> Result<Http2Exchange, TransportError> {
        let streams = Streams(self.streams);
        let broken = |error: h2::Error| TransportError::Broken(error.to_string());
        let mut send = self.send.ready().await.map_err(broken)?;
        let (response, request) = send.send_request(head, is_whole).map_err(broken)?;
        Ok(Http2Exchange { request, response: Http2Response::Head(response), closed: is_whole, _streams: streams })
    }
}

/// One stream's place on its connection.
struct Streams(Arc<AtomicUsize>);

impl Drop for Streams {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Http2Exchange {
    request: SendStream<Bytes>,
    response: Http2Response,
    closed: bool,
    _streams: Streams,
}

enum Http2Response {
    Head(ResponseFuture),
    Body(RecvStream),
    Over,
}

impl Exchange for Http2Exchange {
    fn send(&mut self, bytes: Bytes) {
        // Kept by the connection until the peer's window has room. An error shows in the response, too.
        let _ = self.request.send_data(bytes, false);
    }

    fn half_close(&mut self) {
        if !std::mem::replace(&mut self.closed, true) {
            // As for `send`.
            let _ = self.request.send_data(Bytes::new(), true);
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<ExchangeEvent> {
        let event = match &mut self.response {
            Http2Response::Head(head) => match ready!(Pin::new(head).poll(cx)) {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    self.response = Http2Response::Body(body);
                    return Poll::Ready(ExchangeEvent::Head(head.status, head.headers));
                }
                Err(error) => ExchangeEvent::Error(TransportError::Broken(error.to_string())),
            },
            Http2Response::Body(body) => match ready!(body.poll_data(cx)) {
                Some(Ok(chunk)) => {
                    // The bytes are ours now: the peer may send as many again. A failure shows at the next poll.
                    let _ = body.flow_control().release_capacity(chunk.len());
                    return Poll::Ready(ExchangeEvent::Chunk(chunk));
                }
                // Some peers end a complete response by resetting what is left of the request.
                Some(Err(error)) if error.is_reset() && error.reason() == Some(h2::Reason::NO_ERROR) => ExchangeEvent::End,
                Some(Err(error)) => ExchangeEvent::Error(TransportError::Broken(error.to_string())),
                None => ExchangeEvent::End,
            },
            Http2Response::Over => return Poll::Pending,
        };
        self.response = Http2Response::Over;
        Poll::Ready(event)
    }
}

async fn collect(exchange: &mut Http2Exchange) -> Result<(StatusCode, HeaderMap, Bytes), TransportError> {
    let (mut head, mut body) = (None, BytesMut::new());
    loop {
        match poll_fn(|cx| exchange.poll_event(cx)).await {
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

/// Collects the request until it is half-closed, then sends it whole.
struct Http1Exchange {
    shared: Arc<Shared>,
    address: Address,
    state: Http1State,
}

type Http1Opening = BoxFuture<Result<(::http::response::Parts, Incoming), TransportError>>;

enum Http1State {
    Collecting(Option<Box<Request<()>>>, BytesMut),
    Opening(Http1Opening),
    Body(Incoming),
    Over,
}

impl Http1Exchange {
    fn new(shared: Arc<Shared>, address: Address, head: Request<()>) -> Self {
        Self { shared, address, state: Http1State::Collecting(Some(Box::new(head)), BytesMut::new()) }
    }
}

impl Exchange for Http1Exchange {
    fn send(&mut self, bytes: Bytes) {
        if let Http1State::Collecting(_, request) = &mut self.state {
            request.extend_from_slice(&bytes);
        }
    }

    fn half_close(&mut self) {
        if let Http1State::Collecting(head, body) = &mut self.state
            && let Some(head) = head.take()
        {
            let (shared, address, body) = (self.shared.clone(), self.address.clone(), std::mem::take(body).freeze());
            self.state = Http1State::Opening(Box::pin(async move { shared.http1_open(&address, *head, body).await }));
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<ExchangeEvent> {
        let event = match &mut self.state {
            Http1State::Collecting(..) | Http1State::Over => return Poll::Pending,
            Http1State::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                Ok((head, body)) => {
                    self.state = Http1State::Body(body);
                    return Poll::Ready(ExchangeEvent::Head(head.status, head.headers));
                }
                Err(error) => ExchangeEvent::Error(error),
            },
            Http1State::Body(body) => loop {
                match ready!(hyper::body::Body::poll_frame(Pin::new(&mut *body), cx)) {
                    Some(Ok(frame)) => {
                        if let Ok(chunk) = frame.into_data() {
                            return Poll::Ready(ExchangeEvent::Chunk(chunk));
                        }
                    }
                    Some(Err(error)) => break ExchangeEvent::Error(TransportError::Broken(error.to_string())),
                    None => break ExchangeEvent::End,
                }
            },
        };
        self.state = Http1State::Over;
        Poll::Ready(event)
    }
}

type Io = Pin<Box<dyn Duplex>>;

trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A TCP stream whose acknowledgements are not held back: peers that leave Nagle's algorithm on would wait up to 40 ms for each
/// small message otherwise. The kernel forgets the option, so it is set again after each read.
struct QuickAck(TcpStream);

impl AsyncRead for QuickAck {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.0).poll_read(cx, buf));
        #[cfg(target_os = "linux")]
        if read.is_ok() {
            // Only an optimisation: a socket that refuses it works all the same.
            let _ = socket2::SockRef::from(&self.0).set_tcp_quickack(true);
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for QuickAck {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(feature = "tls")]
mod tls {
    //! TLS to handlers: the web's certificate authorities, and the protocol by ALPN.

    use super::{Io, QuickAck};
    use std::io;
    use std::sync::Arc;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

    pub(super) async fn connect(tcp: QuickAck, host: &str, alpn: &[&[u8]]) -> io::Result<Io> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let mut config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(Box::pin(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?))
    }
}

#[cfg(not(feature = "tls"))]
mod tls {
    //! A build without TLS says so.

    use super::{Io, QuickAck};
    use std::io;

    pub(super) async fn connect(_: QuickAck, _: &str, _: &[&[u8]]) -> io::Result<Io> {
        Err(io::Error::other("this build has no TLS: use an http:// address, or a build with the feature `tls`"))
    }
}
