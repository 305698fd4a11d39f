//! A port: accepts connections, serves them, and lets them end.
//!
//! Owns: accepting and the drain. Does not own: one connection (`connection`), or their number (`registry`).

use crate::connection;
use crate::incoming::IncomingBody;
use crate::registry::{Order, Registry};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::Env;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Wait after a failed accept, as when the process is out of file descriptors; meanwhile unused connections give way.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Failed accepts are told at most this often.
const ACCEPT_TOLD: Duration = Duration::from_secs(30);
/// What a client hears where all places are in use, over HTTP/1.1; over HTTP/2 it is a connection that closes. How many have been told
/// and may still read it, and for how long: the oldest of more are closed.
const NO_PLACE: &str = "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: text/plain\r\ncontent-length: 52\r\n\
                        connection: close\r\n\r\nall connections are in use: keep fewer, or try later";
const GOODBYES_MAX: usize = 8;
const GOODBYE: Duration = Duration::from_secs(1);
/// How long connections that are cut may take to be gone.
const CUT: Duration = Duration::from_secs(1);

/// What answers the requests of a port.
pub trait HttpAnswers: Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin + Send + 'static;

    /// A connection has been accepted.
    fn accepted(&self) {}

    /// Whether others wait for memory that is held by answers on their way. Clients that take a large one too slowly are cut then.
    fn wants_answers_taken(&self) -> bool {
        false
    }

    fn answer(
        &self,
        request: Request<IncomingBody<Incoming>>,
    ) -> impl Future<Output = Result<Response<Self::Body>, NoAnswer>> + Send;
}

/// What the request asked for may or may not come to be: its client must not take any answer for an answer. Over HTTP/1.1 the
/// connection is closed, over HTTP/2 the stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the outcome of the request is unknown")]
pub struct NoAnswer;

/// Bounds on the connections of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionBounds {
    /// Connections at a time, at least 1. At the bound unused ones give way, and requests that do not come; where there are none, a new one
    /// waits for a moment and is refused.
    pub connections_max: usize,
}

/// A port that is served.
pub struct HttpServer {
    /// Dropped, it stops the accepting.
    stop: Option<oneshot::Sender<()>>,
    accepting: oneshot::Receiver<()>,
    registry: Arc<Registry>,
    env: Env,
}

impl HttpServer {
    /// Serves the connections of a bound listener until [`Self::drain`]. `purpose` names the port in the log.
    pub fn start<S: HttpAnswers>(
        listener: TcpListener,
        env: Env,
        bounds: ConnectionBounds,
        purpose: &'static str,
        answers: Arc<S>,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (done, accepting) = oneshot::channel();
        let registry = Registry::new(bounds.connections_max);
        let goodbyes = VecDeque::with_capacity(GOODBYES_MAX);
        let port = Port { listener, env: env.clone(), registry: registry.clone(), goodbyes, purpose, told: None };
        env.tasks.spawn(Box::pin(async move {
            port.accept(answers, stopped).await;
            // Nobody waits any more once the deadline has passed.
            let _ = done.send(());
        }));
        Self { stop: Some(stop), accepting, registry, env }
    }

    /// Stops accepting, lets requests in progress end, and returns when none is left or the deadline has passed. Clients that still
    /// wait then see their connection close, without an answer; what they asked for goes on.
    pub async fn drain(mut self, deadline: Duration) {
        // Its end is the word to stop.
        self.stop = None;
        // A task that is gone accepts nothing.
        let _ = (&mut self.accepting).await;
        self.registry.tell_all(Order::Finish);
        if !self.emptied_within(deadline).await {
            // Nobody may be told anything by a node that is stopping: what was taken goes on at the next start.
            self.registry.tell_all(Order::Cut);
            self.emptied_within(CUT).await;
        }
    }

    async fn emptied_within(&self, limit: Duration) -> bool {
        tokio::select! {
            biased;
            // Dropped midway: it can be asked anew.
            () = self.registry.emptied() => true,
            // A timer has nothing to lose.
            () = self.env.clock.sleep(limit) => false,
        }
    }
}

/// Says that all places are taken, and reads what the client has sent until it goes: a close with something unread would take the answer
/// away again.
async fn say_goodbye(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(NO_PLACE.as_bytes()).await?;
    stream.shutdown().await?;
    let mut unread = [0; 4 << 10];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

struct Port {
    listener: TcpListener,
    env: Env,
    registry: Arc<Registry>,
    /// Connections that are being refused, the oldest first. Each ends when its sender is dropped.
    goodbyes: VecDeque<oneshot::Sender<()>>,
    purpose: &'static str,
    /// When a failed accept was told last.
    told: Option<Duration>,
}

impl Port {
    async fn accept<S: HttpAnswers>(mut self, answers: Arc<S>, mut stopped: oneshot::Receiver<()>) {
        loop {
            let next = async {
                let stream = self.listener.accept().await?.0;
                // A connection beyond the bound waits here, alone; the others stay in the kernel's queue.
                Ok::<_, io::Error>((stream, self.registry.enter(&*self.env.clock).await))
            };
            let accepted = tokio::select! {
                biased;
                // A channel that has spoken or closed is not asked again.
                _ = &mut stopped => return,
                // Dropped midway, at the stop: a connection that was accepted and not served closes.
                accepted = next => accepted,
            };
            match accepted {
                Ok((stream, None)) => self.refuse(stream),
                Ok((stream, Some(membership))) => {
                    answers.accepted();
                    let serving = connection::serve(stream, self.env.clone(), answers.clone(), membership);
                    self.env.tasks.spawn(Box::pin(serving));
                }
                Err(error) => {
                    self.registry.make_room(self.env.clock.monotonic());
                    self.tell(&error);
                    self.env.clock.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Nothing of its request is read: it is the same whatever that is.
    fn refuse(&mut self, stream: TcpStream) {
        self.goodbyes.retain(|goodbye| !goodbye.is_closed());
        if self.goodbyes.len() >= GOODBYES_MAX {
            self.goodbyes.pop_front();
        }
        let (goodbye, ended) = oneshot::channel();
        self.goodbyes.push_back(goodbye);
        let (clock, purpose) = (self.env.clock.clone(), self.purpose);
        tracing::debug!(port = purpose, "a connection found no place");
        self.env.tasks.spawn(Box::pin(async move {
            tokio::select! {
                biased;
                // A goodbye that is not heard is no loss.
                _ = say_goodbye(stream) => {}
                // A channel that has closed is not asked again.
                _ = ended => {}
                // A timer has nothing to lose.
                () = clock.sleep(GOODBYE) => {}
            }
        }));
    }

    fn tell(&mut self, error: &io::Error) {
        let now = self.env.clock.monotonic();
        if self.told.is_none_or(|told| now.saturating_sub(told) >= ACCEPT_TOLD) {
            self.told = Some(now);
            tracing::warn!(%error, port = self.purpose, "cannot accept connections for now; unused ones are closed");
        }
    }
}
