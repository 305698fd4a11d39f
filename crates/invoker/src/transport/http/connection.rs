//! A connection of HTTP/2: its beginning, its places for streams, its signs of life, its end.
//!
//! Owns: windows and limits, when a connection takes no new stream any more, and the task that runs it to its end. Does not own: which
//! connection a stream goes to (`pool`), or what a stream carries (`http2`).

use super::connect::Io;
use super::pool::Pool;
use super::unsent::Piece;
use super::{Timing, TransportError};
use ::http::Request;
use h2::client::{ResponseFuture, SendRequest};
use h2::{PingPong, Reason, SendStream};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Streams that a connection carries at a time.
pub(super) const STREAMS_MAX: usize = 128;
/// Requests that a connection carries in its life. Some peers end a connection after so many without regard for the streams that are
/// under way: hypercorn after 1,000 unless it is set to less. And HTTP/2 libraries count over a connection's life what they take for
/// abuse: 100 empty frames, say, which some servers send once with every response.
pub(super) const REQUESTS_MAX: usize = 100;
/// Requests after which it is retired however many connections wait for their last stream: still below where hypercorn ends it.
const REQUESTS_END: usize = 800;
/// So many requests before its last one a successor is opened, so that nobody waits for it.
const SUCCESSOR_AHEAD: usize = 32;
/// Streams that a peer refuses before the connection is retired.
const REFUSALS_MAX: usize = 3;
/// What a handler may send before it is read: so much of each attempt is in memory when it waits for room.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
/// As much as all streams together, so that those that wait for room hold up no others.
const CONNECTION_WINDOW_BYTES: u32 = STREAMS_MAX as u32 * STREAM_WINDOW_BYTES;
/// What frames that are small and have not been read may take beside their content, on all streams of a connection: 65,536 of them. A
/// handler writes many at once, and they are not read while the log has no room.
const SMALL_FRAMES_BYTES_MAX: usize = 16 << 20;
/// Headers of a response, all together. Handlers send a few hundred bytes.
const HEADER_LIST_BYTES_MAX: u32 = 64 << 10;

/// A connection that takes new streams, as its pool knows it.
#[derive(Clone)]
pub(super) struct Connection {
    send: SendRequest<Piece>,
    life: Arc<Life>,
    requests: usize,
    /// When it was first seen without a stream, if it has had none since.
    idle_since: Option<Instant>,
}

/// What its pool, its task and its streams know of a connection.
pub(super) struct Life {
    streams: AtomicUsize,
    refusals: AtomicUsize,
    /// It takes no new stream, and ends with its last one.
    is_retired: AtomicBool,
    /// The peer has said goodbye, or the connection has ended.
    has_left: AtomicBool,
    /// It has ended.
    is_over: AtomicBool,
    /// The last stream of a retired connection has gone.
    is_empty: Notify,
    /// The peer has said goodbye: is it still there?
    is_in_doubt: Notify,
    /// A stream of any connection of the pool has gone.
    freed: Arc<Notify>,
}

impl Life {
    fn has_served(&self) -> bool {
        self.is_retired.load(Ordering::SeqCst) && self.streams.load(Ordering::SeqCst) == 0
    }

    pub(super) fn has_left(&self) -> bool {
        self.has_left.load(Ordering::SeqCst)
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::SeqCst);
        self.is_empty.notify_one();
    }

    /// The peer refused one of its streams. Whether it has refused enough of them.
    pub(super) fn refused(&self) -> bool {
        self.refusals.fetch_add(1, Ordering::Relaxed) + 1 >= REFUSALS_MAX
    }
}

impl Connection {
    /// Begins to speak HTTP/2. Complete once the peer has said how many streams it allows: a burst of requests before that would
    /// be refused in part.
    pub(super) async fn begin(io: Io, pool: &Arc<Pool>) -> Result<Self, TransportError> {
        let no_http2 = |message| TransportError::NoHttp2 { address: pool.address().to_string(), message };
        // What a peer of HTTP/1.1 answers is an impossible size when it is read as a frame.
        let failed = |error: h2::Error| match error.reason() {
            Some(Reason::FRAME_SIZE_ERROR) => TransportError::Http1Peer { address: pool.address().to_string() },
            _ => no_http2(format!("says nothing of HTTP/2 ({error})")),
        };
        let (send, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_max_send_streams(0)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .data_frame_budget(SMALL_FRAMES_BYTES_MAX)
            .enable_push(false)
            .handshake::<_, Piece>(io)
            .await
            .map_err(failed)?;
        let greeted = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Err(no_http2("closes it without a word of HTTP/2".to_owned()))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(failed(error))),
            Poll::Pending if connection.max_concurrent_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        let limit = pool.timing().connect;
        let silent = |_| no_http2(format!("says no word of HTTP/2 within {} ms", limit.as_millis()));
        tokio::time::timeout(limit, greeted).await.map_err(silent)??;
        let life = Arc::new(Life {
            streams: AtomicUsize::new(0),
            refusals: AtomicUsize::new(0),
            is_retired: AtomicBool::new(false),
            has_left: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            is_empty: Notify::new(),
            is_in_doubt: Notify::new(),
            freed: pool.freed(),
        });
        tokio::spawn(drive(connection, send.clone(), life.clone(), pool.clone()));
        Ok(Self { send, life, requests: 0, idle_since: None })
    }

    pub(super) fn life(&self) -> &Arc<Life> {
        &self.life
    }

    pub(super) fn streams(&self) -> usize {
        self.life.streams.load(Ordering::Relaxed)
    }

    /// Streams that it carries at a time, by our limit and the peer's.
    pub(super) fn streams_max(&self) -> usize {
        self.send.current_max_send_streams().min(STREAMS_MAX)
    }

    pub(super) fn has_room(&self) -> bool {
        self.streams() < self.streams_max()
    }

    /// Whether it takes no new stream: it has ended, the peer has said goodbye, or its stream ids are used up. The streams that it
    /// has may go on for long.
    pub(super) fn is_over(&mut self) -> bool {
        is_over(&mut self.send)
    }

    /// Whether it has carried all the requests that it is to carry.
    pub(super) fn is_worn(&self) -> bool {
        self.requests >= REQUESTS_MAX
    }

    /// Whether it must carry no more.
    pub(super) fn is_spent(&self) -> bool {
        self.requests >= REQUESTS_END
    }

    /// Whether it goes on for long enough that it needs no successor yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.requests + SUCCESSOR_AHEAD < REQUESTS_MAX
    }

    pub(super) fn place(&mut self) -> Place {
        self.idle_since = None;
        self.requests += 1;
        self.life.streams.fetch_add(1, Ordering::SeqCst);
        Place { send: self.send.clone(), streams: Streams(self.life.clone()) }
    }

    /// Whether it has been idle for that long, as far as earlier calls tell.
    pub(super) fn is_idle_for(&mut self, limit: std::time::Duration, now: Instant) -> bool {
        if self.streams() > 0 {
            self.idle_since = None;
            return false;
        }
        now - *self.idle_since.get_or_insert(now) >= limit
    }
}

fn is_over(send: &mut SendRequest<Piece>) -> bool {
    // A handle that sends nothing itself waits for nothing.
    let ready = send.poll_ready(&mut Context::from_waker(Waker::noop()));
    !matches!(ready, Poll::Ready(Ok(())))
}

pub(super) fn broken(error: &h2::Error) -> TransportError {
    TransportError::Broken(error.to_string())
}

type Running = h2::client::Connection<Io, Piece>;

/// What happens on a connection beside its streams.
enum Step {
    Goodbye,
    Ended,
}

/// Runs a connection to its end: its own, its last stream's once it is retired, or that of the peer's signs of life.
async fn drive(mut connection: Running, mut handle: SendRequest<Piece>, life: Arc<Life>, pool: Arc<Pool>) {
    let ping_pong = connection.ping_pong().expect("it is taken once");
    let mut watching = pin!(watch(ping_pong, &life, &pool));
    let mut has_goodbye = false;
    let mut has_waited = false;
    loop {
        let step = poll_fn(|cx| {
            // What other tasks are about to send leaves in one write with what woke this one, and they hear of what has come together.
            if !std::mem::replace(&mut has_waited, true) {
                wake_behind_others(cx);
                return Poll::Pending;
            }
            has_waited = false;
            match Pin::new(&mut connection).poll(cx) {
                Poll::Ready(_) => Poll::Ready(Step::Ended),
                Poll::Pending if !has_goodbye && is_over(&mut handle) => Poll::Ready(Step::Goodbye),
                Poll::Pending => Poll::Pending,
            }
        });
        tokio::select! {
            biased;
            // Polled by reference: nothing is lost when another arm wins.
            step = step => match step {
                // Its end is that of all its streams, which hear of it themselves.
                Step::Ended => break,
                // The streams that the peer has are to go on, and some peers forget them.
                Step::Goodbye => {
                    has_goodbye = true;
                    life.has_left.store(true, Ordering::SeqCst);
                    pool.retire(&life);
                    life.is_in_doubt.notify_one();
                }
            },
            // A peer that does not answer: dropping the connection fails its streams.
            () = &mut watching => break,
            // Being told is whole or has not happened.
            () = life.is_empty.notified() => if life.has_served() {
                drop(handle);
                // Says goodbye itself.
                let _ = tokio::time::timeout(pool.timing().ping_timeout, connection).await;
                break;
            },
        }
    }
    life.has_left.store(true, Ordering::SeqCst);
    life.is_over.store(true, Ordering::SeqCst);
    pool.retire(&life);
}

/// Wakes the task again once this thread has run what is ready.
fn wake_behind_others(cx: &mut Context<'_>) {
    // Its first poll asks for the wake, which comes whether it is polled again or not.
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

/// Asks the peer for signs of life, and returns when there is none.
async fn watch(mut ping_pong: PingPong, life: &Life, pool: &Pool) {
    let Timing { ping_interval, ping_timeout, goodbye_interval, goodbye_timeout, .. } = *pool.timing();
    let (mut interval, mut limit) = (ping_interval, ping_timeout);
    loop {
        tokio::select! {
            biased;
            // Being told is whole or has not happened.
            () = life.is_in_doubt.notified() => (interval, limit) = (goodbye_interval, goodbye_timeout),
            () = tokio::time::sleep(interval) => {}
        }
        pool.sweep();
        let pong = ping_pong.ping(h2::Ping::opaque());
        if !matches!(tokio::time::timeout(limit, pong).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// A place on a connection for a stream that has not begun.
pub(super) struct Place {
    send: SendRequest<Piece>,
    streams: Streams,
}

/// One stream in its connection's count.
pub(super) struct Streams(Arc<Life>);

impl Streams {
    pub(super) fn life(&self) -> &Arc<Life> {
        &self.0
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        let life = &self.0;
        if life.streams.fetch_sub(1, Ordering::SeqCst) == 1 && life.is_retired.load(Ordering::SeqCst) {
            life.is_empty.notify_one();
        }
        life.freed.notify_one();
    }
}

impl Place {
    /// Begins the stream. Fails with the place's connection where that takes no stream any more.
    pub(super) fn begin(mut self, head: Request<()>, is_whole: bool) -> Result<Stream, (h2::Error, Streams)> {
        match self.send.send_request(head, is_whole) {
            Ok((response, request)) => Ok(Stream { request, response, streams: self.streams }),
            Err(error) => Err((error, self.streams)),
        }
    }
}

pub(super) struct Stream {
    pub(super) request: SendStream<Piece>,
    pub(super) response: ResponseFuture,
    pub(super) streams: Streams,
}
