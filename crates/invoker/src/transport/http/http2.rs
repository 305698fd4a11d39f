//! Exchanges over HTTP/2: one stream each.
//!
//! Owns: sending a request again that the peer never looked at, and what a refusal means for the connection. Does not own: which
//! connection a stream goes to (`pool`), or the connection itself (`connection`).

use super::connection::{Life, Stream, Streams, broken};
use super::pool::Pool;
use super::unsent::{Piece, Unsent};
use super::{Exchange, ExchangeEvent, TransportError, UNSENT_BYTES_MAX};
use ::http::{Request, Version};
use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use surefoot_env::BoxFuture;
use tokio::sync::Notify;

/// Times that a request is sent anew which the peer never looked at.
const RESENDS_MAX: usize = 2;

impl Stream {
    /// Opens a stream, on another connection than the one that refused it.
    async fn open(
        pool: &Arc<Pool>,
        refused: Option<&Arc<Life>>,
        head: &Request<()>,
        is_whole: bool,
        no_room: &Notify,
    ) -> Result<Self, TransportError> {
        match pool.place(refused, no_room).await?.begin(head.clone(), is_whole) {
            Ok(stream) => Ok(stream),
            // The peer said goodbye after the connection was chosen. It is not chosen again.
            Err((_, gone)) => {
                let again = pool.place(Some(gone.life()), no_room).await?.begin(head.clone(), is_whole);
                // It has left that one, too; or the request is one that the library does not send.
                let has_left = |error: &h2::Error| error.is_io() || error.reason().is_some();
                again.map_err(|(error, _)| if has_left(&error) { pool.left_at_once() } else { broken(&error) })
            }
        }
    }
}

/// One stream.
pub(super) struct Http2Exchange {
    pool: Arc<Pool>,
    /// Absent while the request is being sent once more.
    request: Option<SendStream<Piece>>,
    response: Response,
    unsent: Arc<Unsent>,
    /// So much was unsent that the sender is to hear when it is less.
    is_choked: bool,
    is_closed: bool,
    /// What it takes to send the request once more, until the peer has begun to answer it.
    once_more: Option<Box<OnceMore>>,
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
    head: Request<()>,
    sent: Vec<Bytes>,
    resends: usize,
    /// Those sent after the response was first asked for: not counted by whoever counts the replay.
    later_bytes: usize,
}

impl Http2Exchange {
    /// Opens a stream. A request that is whole has no body.
    pub(super) async fn open(
        pool: Arc<Pool>,
        mut head: Request<()>,
        is_whole: bool,
        no_room: &Notify,
    ) -> Result<Self, TransportError> {
        *head.version_mut() = Version::HTTP_2;
        let Stream { request, response, streams } = Stream::open(&pool, None, &head, is_whole, no_room).await?;
        Ok(Self {
            pool,
            request: Some(request),
            response: Response::Head(response),
            unsent: Arc::default(),
            is_choked: false,
            is_closed: is_whole,
            once_more: Some(Box::new(OnceMore { head, sent: Vec::new(), resends: 0, later_bytes: 0 })),
            is_polled: false,
            streams: Some(streams),
        })
    }

    /// Sends the request once more, elsewhere.
    fn reopen(&mut self, mut once_more: Box<OnceMore>) {
        let refused = self.streams.take().map(|streams| streams.life().clone());
        self.request = None;
        once_more.resends += 1;
        let sent = once_more.sent.clone();
        let is_whole = self.is_closed && sent.is_empty();
        let (pool, head) = (self.pool.clone(), once_more.head.clone());
        let opening = Box::pin(async move { Stream::open(&pool, refused.as_ref(), &head, is_whole, &Notify::new()).await });
        self.once_more = (once_more.resends < RESENDS_MAX).then_some(once_more);
        self.response = Response::Reopening(opening, sent);
    }

    /// Takes the connection out of use where the peer says that it has enough of it. Peers judge a connection as a whole: what one
    /// stream did is held against the next.
    fn judge(&self, error: &h2::Error) {
        let Some(streams) = &self.streams else { return };
        let is_enough = match error.reason() {
            _ if !error.is_remote() || !error.is_reset() => false,
            Some(Reason::ENHANCE_YOUR_CALM) => true,
            Some(Reason::REFUSED_STREAM | Reason::NO_ERROR) => streams.life().refused(),
            _ => false,
        };
        if is_enough {
            self.pool.retire(streams.life());
        }
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

/// Whether the peer never looked at a request that it has not begun to answer: it refused the stream, said that there are too many, or
/// said goodbye with an earlier stream as its last. Some servers that are about to stop reset new streams without an error.
fn is_unprocessed(error: &h2::Error) -> bool {
    let is_refusal = |reason| matches!(reason, Reason::REFUSED_STREAM | Reason::ENHANCE_YOUR_CALM | Reason::NO_ERROR);
    error.is_remote() && (error.is_go_away() || error.is_reset() && error.reason().is_some_and(is_refusal))
}

impl Exchange for Http2Exchange {
    fn send(&mut self, bytes: Bytes) {
        if let Some(once_more) = &mut self.once_more {
            once_more.sent.push(bytes.clone());
            once_more.later_bytes += if self.is_polled { bytes.len() } else { 0 };
        }
        // A peer that reads much and answers nothing has looked at the request.
        self.once_more.take_if(|once_more| once_more.later_bytes > UNSENT_BYTES_MAX);
        if let Response::Reopening(_, unsent) = &mut self.response {
            unsent.push(bytes);
        } else if let Some(request) = &mut self.request {
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

    fn poll_unsent(&mut self, cx: &mut Context<'_>, at_most: usize) -> Poll<()> {
        match &self.response {
            // It is sent once more with the next event.
            Response::Reopening(..) if self.unsent_bytes() > at_most => Poll::Pending,
            _ => self.unsent.poll_at_most(cx, at_most),
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
        if self.is_choked && !matches!(self.response, Response::Over) && self.unsent.poll_at_most(cx, UNSENT_BYTES_MAX).is_ready()
        {
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
                    (Err(error), once_more) => {
                        self.judge(&error);
                        if let Some(once_more) = once_more
                            && is_unprocessed(&error)
                        {
                            self.reopen(once_more);
                            continue;
                        }
                        ExchangeEvent::Error(broken(&error))
                    }
                },
                Response::Body(body) => match ready!(body.poll_data(cx)) {
                    Some(Ok(chunk)) => {
                        // The bytes are ours now: the peer may send as many again. A failure shows at the next poll.
                        let _ = body.flow_control().release_capacity(chunk.len());
                        return Poll::Ready(ExchangeEvent::Chunk(chunk));
                    }
                    // Some peers end a complete response by resetting what is left of the request.
                    Some(Err(error)) if error.is_reset() && error.reason() == Some(Reason::NO_ERROR) => ExchangeEvent::End,
                    Some(Err(error)) => {
                        self.judge(&error);
                        ExchangeEvent::Error(broken(&error))
                    }
                    None => ExchangeEvent::End,
                },
                Response::Over => return Poll::Pending,
            };
            self.response = Response::Over;
            return Poll::Ready(event);
        }
    }
}
