//! HTTP/2: connections that carry many streams, and exchanges that are one each.
//!
//! Owns: windows, limits on streams, signs of life, and sending a request again that the peer never looked at. Does not own:
//! which connection a stream goes to (`pool`).

use super::connect::Io;
use super::pool::Pool;
use super::unsent::{Piece, Unsent};
use super::{Address, Exchange, ExchangeEvent, TransportError, UNSENT_BYTES_MAX};
use ::http::{Request, Version};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use surefoot_env::BoxFuture;
use tokio::time::Instant;

/// Streams per connection before another one is opened.
pub(super) const STREAMS_PER_CONNECTION: usize = 128;
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 5 << 20;

/// A connection, as its pool knows it.
#[derive(Clone)]
pub(super) struct Connection {
    send: SendRequest<Piece>,
    streams: Arc<AtomicUsize>,
    /// When it was first seen without a stream, if it has had none since.
    idle_since: Option<Instant>,
}

impl Connection {
    /// Begins to speak HTTP/2. Complete once the peer has said how many streams it allows: a burst of requests before that would
    /// be refused in part.
    pub(super) async fn begin(io: Io, pool: &Arc<Pool>) -> Result<Self, TransportError> {
        let failed = |error: h2::Error| begin_error(&error, pool.address());
        let (send, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_max_send_streams(0)
            .enable_push(false)
            .handshake::<_, Piece>(io)
            .await
            .map_err(failed)?;
        let greeted = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(Ok(())) => {
                Poll::Ready(Err(TransportError::Broken("the peer closed it without a word of HTTP/2".to_owned())))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(failed(error))),
            Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        let limit = pool.timing().ping_timeout;
        let silent = |_| TransportError::Broken(format!("no word of HTTP/2 within {} ms", limit.as_millis()));
        tokio::time::timeout(limit, greeted).await.map_err(silent)??;
        tokio::spawn(drive(connection, pool.clone()));
        Ok(Self { send, streams: Arc::default(), idle_since: None })
    }

    /// Whether another stream fits, by our limit and the peer's.
    pub(super) fn has_room(&self) -> bool {
        let streams = self.streams.load(Ordering::Relaxed);
        streams < STREAMS_PER_CONNECTION && streams < self.send.current_max_send_streams()
    }

    /// Whether it takes no new stream: it has ended, the peer has said goodbye, or its stream ids are used up. The streams that it
    /// has may go on for long.
    pub(super) fn is_over(&mut self) -> bool {
        // A handle that sends nothing itself waits for nothing.
        let ready = self.send.poll_ready(&mut Context::from_waker(Waker::noop()));
        !matches!(ready, Poll::Ready(Ok(())))
    }

    pub(super) fn place(&mut self) -> Place {
        self.idle_since = None;
        self.streams.fetch_add(1, Ordering::Relaxed);
        Place { send: self.send.clone(), streams: Streams(self.streams.clone()) }
    }

    /// Whether it has been idle for that long, as far as earlier calls tell.
    pub(super) fn is_idle_for(&mut self, limit: Duration, now: Instant) -> bool {
        if self.streams.load(Ordering::Relaxed) > 0 {
            self.idle_since = None;
            return false;
        }
        now - *self.idle_since.get_or_insert(now) >= limit
    }
}

/// What a peer of HTTP/1.1 answers is an impossible size when it is read as a frame.
fn begin_error(error: &h2::Error, address: &Address) -> TransportError {
    if error.reason() == Some(Reason::FRAME_SIZE_ERROR) {
        TransportError::Http1Peer { address: address.to_string() }
    } else {
        broken(error)
    }
}

fn broken(error: &h2::Error) -> TransportError {
    TransportError::Broken(error.to_string())
}

/// Runs a connection to its end, and asks the peer for signs of life.
async fn drive(mut connection: h2::client::Connection<Io, Piece>, pool: Arc<Pool>) {
    let mut ping_pong = connection.ping_pong().expect("it is taken once");
    let timing = *pool.timing();
    let watching = async {
        loop {
            tokio::time::sleep(timing.ping_interval).await;
            pool.sweep();
            let pong = ping_pong.ping(h2::Ping::opaque());
            if !matches!(tokio::time::timeout(timing.ping_timeout, pong).await, Ok(Ok(_))) {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        // Its end is that of all its streams, which hear of it themselves.
        _ = connection => {}
        // A peer that does not answer: dropping the connection fails its streams.
        () = watching => {}
    }
    pool.sweep();
}

/// A place on a connection for a stream that has not begun.
pub(super) struct Place {
    send: SendRequest<Piece>,
    streams: Streams,
}

/// One stream in its connection's count.
struct Streams(Arc<AtomicUsize>);

impl Drop for Streams {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Place {
    fn begin(mut self, head: Request<()>, is_whole: bool) -> Result<Stream, h2::Error> {
        let (response, request) = self.send.send_request(head, is_whole)?;
        Ok(Stream { request, response, streams: self.streams })
    }
}

struct Stream {
    request: SendStream<Piece>,
    response: ResponseFuture,
    streams: Streams,
}

impl Stream {
    async fn open(pool: &Arc<Pool>, head: &Request<()>, is_whole: bool) -> Result<Self, TransportError> {
        if let Ok(stream) = pool.place().await?.begin(head.clone(), is_whole) {
            return Ok(stream);
        }
        // The peer said goodbye after the connection was chosen. It is not chosen again.
        pool.place().await?.begin(head.clone(), is_whole).map_err(|error| broken(&error))
    }
}

/// One stream.
pub(super) struct Http2Exchange {
    /// Absent while the request is being sent once more.
    request: Option<SendStream<Piece>>,
    response: Response,
    unsent: Arc<Unsent>,
    /// So much was unsent that the sender is to hear when it is less.
    is_choked: bool,
    is_closed: bool,
    /// What it takes to send the request once more, until the peer has begun to answer it.
    once_more: Option<OnceMore>,
    /// The response has been asked for.
    is_polled: bool,
    /// Declared last: the place is free after the stream has gone.
    streams: Option<Streams>,
}

enum Response {
    /// The request is sent once more, to be followed by these bytes.
    Reopening(BoxFuture<Result<Stream, TransportError>>, Vec<Bytes>),
    Head(ResponseFuture),
    Body(RecvStream),
    Over,
}

struct OnceMore {
    pool: Arc<Pool>,
    head: Request<()>,
    sent: Vec<Bytes>,
    /// Those sent after the response was first asked for: not counted by whoever counts the replay.
    later_bytes: usize,
}

impl Http2Exchange {
    /// Opens a stream. A request that is whole has no body.
    pub(super) async fn open(pool: Arc<Pool>, mut head: Request<()>, is_whole: bool) -> Result<Self, TransportError> {
        *head.version_mut() = Version::HTTP_2;
        let Stream { request, response, streams } = Stream::open(&pool, &head, is_whole).await?;
        Ok(Self {
            request: Some(request),
            response: Response::Head(response),
            unsent: Arc::default(),
            is_choked: false,
            is_closed: is_whole,
            once_more: Some(OnceMore { pool, head, sent: Vec::new(), later_bytes: 0 }),
            is_polled: false,
            streams: Some(streams),
        })
    }

    fn reopen(&mut self, OnceMore { pool, head, sent, .. }: OnceMore) {
        (self.request, self.streams) = (None, None);
        let is_whole = self.is_closed && sent.is_empty();
        let opening = Box::pin(async move { Stream::open(&pool, &head, is_whole).await });
        self.response = Response::Reopening(opening, sent);
    }

    fn reopened(&mut self, stream: Stream, unsent: Vec<Bytes>) {
        let Stream { mut request, response, streams } = stream;
        for bytes in unsent {
            // As for `send`.
            let _ = request.send_data(self.unsent.piece(bytes), false);
        }
        if self.is_closed {
            // Refused where it was opened whole, which is as well.
            let _ = request.send_data(self.unsent.piece(Bytes::new()), true);
        }
        self.is_choked |= self.unsent.is_above_limit();
        (self.request, self.response, self.streams) = (Some(request), Response::Head(response), Some(streams));
    }
}

/// Whether the peer never looked at the request: it refused the stream, or said goodbye with an earlier one as its last.
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM))
}

impl Exchange for Http2Exchange {
    fn send(&mut self, bytes: Bytes) {
        if let Response::Reopening(_, unsent) = &mut self.response {
            return unsent.push(bytes);
        }
        if let Some(once_more) = &mut self.once_more {
            once_more.sent.push(bytes.clone());
            once_more.later_bytes += if self.is_polled { bytes.len() } else { 0 };
        }
        // A peer that reads much and answers nothing has looked at the request.
        self.once_more.take_if(|once_more| once_more.later_bytes > UNSENT_BYTES_MAX);
        if let Some(request) = &mut self.request {
            // Kept by the connection until the peer's window has room. An error shows in the response, too.
            let _ = request.send_data(self.unsent.piece(bytes), false);
        }
        self.is_choked |= self.unsent.is_above_limit();
    }

    fn unsent_bytes(&self) -> usize {
        match &self.response {
            Response::Reopening(_, unsent) => unsent.iter().map(Bytes::len).sum(),
            _ => self.unsent.bytes(),
        }
    }

    fn half_close(&mut self) {
        if !std::mem::replace(&mut self.is_closed, true)
            && let Some(request) = &mut self.request
        {
            // As for `send`.
            let _ = request.send_data(self.unsent.piece(Bytes::new()), true);
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<ExchangeEvent> {
        self.is_polled = true;
        if self.is_choked && self.unsent.poll_below_limit(cx).is_ready() {
            self.is_choked = false;
            return Poll::Ready(ExchangeEvent::Writable);
        }
        loop {
            let event = match &mut self.response {
                Response::Reopening(opening, unsent) => match ready!(opening.as_mut().poll(cx)) {
                    Ok(stream) => {
                        let unsent = std::mem::take(unsent);
                        self.reopened(stream, unsent);
                        continue;
                    }
                    Err(error) => ExchangeEvent::Error(error),
                },
                Response::Head(head) => match (ready!(Pin::new(head).poll(cx)), self.once_more.take()) {
                    (Ok(response), _) => {
                        let (head, body) = response.into_parts();
                        self.response = Response::Body(body);
                        return Poll::Ready(ExchangeEvent::Head(head.status, head.headers));
                    }
                    (Err(error), Some(once_more)) if is_unprocessed(&error) => {
                        self.reopen(once_more);
                        continue;
                    }
                    (Err(error), _) => ExchangeEvent::Error(broken(&error)),
                },
                Response::Body(body) => match ready!(body.poll_data(cx)) {
                    Some(Ok(chunk)) => {
                        // The bytes are ours now: the peer may send as many again. A failure shows at the next poll.
                        let _ = body.flow_control().release_capacity(chunk.len());
                        return Poll::Ready(ExchangeEvent::Chunk(chunk));
                    }
                    // Some peers end a complete response by resetting what is left of the request.
                    Some(Err(error)) if error.is_reset() && error.reason() == Some(Reason::NO_ERROR) => ExchangeEvent::End,
                    Some(Err(error)) => ExchangeEvent::Error(broken(&error)),
                    None => ExchangeEvent::End,
                },
                Response::Over => return Poll::Pending,
            };
            self.response = Response::Over;
            return Poll::Ready(event);
        }
    }
}
