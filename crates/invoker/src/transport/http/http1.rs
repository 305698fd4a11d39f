//! HTTP/1.1: a connection carries one exchange at a time.
//!
//! Owns: sending a request whole once it is half-closed, so that such deployments run request/response, on another connection where
//! it has not left, and giving connections back. Does not own: which idle connection is taken (`pool`).

use super::connect::Io;
use super::pool::Pool;
use super::unsent::Unsent;
use super::{Exchange, ExchangeEvent, TransportError};
use ::http::header::HOST;
use ::http::{HeaderValue, Request, Uri, response};
use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use surefoot_env::BoxFuture;

/// The handle of a connection, which ends when it is dropped.
pub(super) type Sender = SendRequest<Full<Bytes>>;

/// Begins to speak HTTP/1.1. Complete once a request can be sent.
pub(super) async fn begin(io: Io, pool: &Arc<Pool>) -> Result<Sender, TransportError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
    tokio::spawn(drive(connection, pool.clone()));
    // Nothing was sent yet.
    sender.ready().await.map_err(|_| pool.left_at_once())?;
    Ok(sender)
}

fn broken(error: hyper::Error) -> TransportError {
    TransportError::Broken(error.to_string())
}

/// Runs a connection to its end.
async fn drive(connection: Connection<TokioIo<Io>, Full<Bytes>>, pool: Arc<Pool>) {
    let sweeping = async {
        loop {
            tokio::time::sleep(pool.timing().ping_interval).await;
            pool.sweep();
        }
    };
    tokio::select! {
        biased;
        // Its end is that of its exchange, which hears of it itself.
        _ = connection => {}
        () = sweeping => {}
    }
    pool.sweep();
}

/// Collects the request until it is half-closed, then sends it whole.
pub(super) struct Http1Exchange {
    pool: Arc<Pool>,
    state: State,
    unsent: Arc<Unsent>,
}

enum State {
    Collecting(Option<Box<Start>>, BytesMut),
    Sending(BoxFuture<Result<Answer, TransportError>>),
    Body(Incoming, Sender),
    Over,
}

/// What a request is sent with.
struct Start {
    head: Request<()>,
    line: Line,
}

/// A connection that a request has to itself.
struct Line {
    sender: Sender,
    /// Nothing was sent on it before.
    is_fresh: bool,
}

impl Line {
    async fn open(pool: &Arc<Pool>) -> Result<Self, TransportError> {
        match pool.take_http1() {
            Some(sender) => Ok(Self { sender, is_fresh: false }),
            None => Ok(Self { sender: pool.open_http1().await?, is_fresh: true }),
        }
    }
}

struct Answer {
    head: response::Parts,
    body: Incoming,
    sender: Sender,
}

impl Http1Exchange {
    /// Connects where no connection is idle, so that a peer that is not there shows before anything of the request does.
    pub(super) async fn open(pool: Arc<Pool>, head: Request<()>) -> Result<Self, TransportError> {
        let start = Start { head, line: Line::open(&pool).await? };
        Ok(Self { pool, state: State::Collecting(Some(Box::new(start)), BytesMut::new()), unsent: Arc::default() })
    }
}

async fn send(pool: Arc<Pool>, start: Start, body: Bytes) -> Result<Answer, TransportError> {
    let Start { head, mut line } = start;
    let mut request = written_out(head, body)?;
    loop {
        let mut error = match line.sender.try_send_request(request).await {
            Ok(response) => return Ok(Answer::new(response, line.sender)),
            Err(error) => error,
        };
        request = match error.take_message() {
            // The peer may close an idle connection at any time: what has not left goes to the next one.
            Some(unsent) if !line.is_fresh => unsent,
            Some(_) => return Err(pool.left_at_once()),
            // A handler may have it, whether the peer has said a word or not.
            None => return Err(broken(error.into_error())),
        };
        line = Line::open(&pool).await?;
    }
}

/// The request in the form that servers expect: a path, and the host in a header.
fn written_out(head: Request<()>, body: Bytes) -> Result<Request<Full<Bytes>>, TransportError> {
    let (mut parts, ()) = head.into_parts();
    if let Some(authority) = parts.uri.authority() {
        let host = HeaderValue::try_from(authority.as_str()).map_err(|error| TransportError::Address(error.to_string()))?;
        parts.headers.insert(HOST, host);
    }
    parts.uri = parts.uri.path_and_query().map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()));
    Ok(Request::from_parts(parts, Full::new(body)))
}

impl Answer {
    fn new(response: ::http::Response<Incoming>, sender: Sender) -> Self {
        let (head, body) = response.into_parts();
        Self { head, body, sender }
    }
}

impl Exchange for Http1Exchange {
    fn send(&mut self, bytes: Bytes) {
        if let State::Collecting(_, request) = &mut self.state {
            request.extend_from_slice(&bytes);
        }
    }

    /// It is sent whole, once it is whole, and is in memory until all of it has left.
    fn unsent_bytes(&self) -> usize {
        match &self.state {
            State::Collecting(_, collected) => collected.len(),
            State::Sending(_) | State::Body(..) | State::Over => self.unsent.bytes(),
        }
    }

    fn poll_unsent(&mut self, cx: &mut Context<'_>, at_most: usize) -> Poll<()> {
        match &self.state {
            // Its half-close comes next, and who waits asks again after that.
            State::Collecting(_, collected) if collected.len() > at_most => Poll::Pending,
            _ => self.unsent.poll_at_most(cx, at_most),
        }
    }

    fn half_close(&mut self) {
        if let State::Collecting(start, body) = &mut self.state
            && let Some(start) = start.take()
        {
            // The library holds all of it until the last byte has left.
            let body = Bytes::from_owner(self.unsent.piece(std::mem::take(body).freeze()));
            self.state = State::Sending(Box::pin(send(self.pool.clone(), *start, body)));
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<ExchangeEvent> {
        let event = match &mut self.state {
            State::Collecting(..) | State::Over => return Poll::Pending,
            State::Sending(sending) => match ready!(sending.as_mut().poll(cx)) {
                Ok(Answer { head, body, sender }) => {
                    self.state = State::Body(body, sender);
                    return Poll::Ready(ExchangeEvent::Head(head.status, head.headers));
                }
                Err(error) => ExchangeEvent::Error(error),
            },
            State::Body(body, _) => loop {
                match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    Some(Ok(frame)) => {
                        if let Ok(chunk) = frame.into_data() {
                            return Poll::Ready(ExchangeEvent::Chunk(chunk));
                        }
                    }
                    Some(Err(error)) => break ExchangeEvent::Error(broken(error)),
                    None => break ExchangeEvent::End,
                }
            },
        };
        if let State::Body(_, sender) = std::mem::replace(&mut self.state, State::Over)
            && matches!(event, ExchangeEvent::End)
        {
            self.pool.give_http1(sender);
        }
        Poll::Ready(event)
    }
}
