//! A port: accepts connections, serves them, and lets them end.
//!
//! Owns: accepting and the drain. Does not own: one connection (`connection`), or their number (`registry`).

use crate::connection::Unheard;
use crate::incoming::IncomingBody;
use crate::registry::{Order, Registry, Slot};
use crate::{connection, goodbye};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::Env;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, oneshot};

/// Wait after a failed accept, as when the process is out of file descriptors; meanwhile unused connections give way.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Failed accepts are told at most this often.
const ACCEPT_TOLD: Duration = Duration::from_secs(30);
/// Connections that have been accepted and wait for a place, or hear that there is none: so many for each that may have one, within bounds.
/// The others stay in the kernel's queue. As many again hear that they have given theirs away.
const BESIDE_SHARE: usize = 8;
const BESIDE_MIN: usize = 8;
const BESIDE_MAX: usize = 64;
/// How long connections that are cut may take to be gone.
const CUT: Duration = Duration::from_secs(1);

const OPEN: &str = "the semaphore is never closed";

/// What answers the requests of a port.
pub trait HttpAnswers: Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin + Send + 'static;

    /// A connection has been accepted.
    fn accepted(&self) {}

    /// What a connection hears that is not served. Over HTTP/1.1 it is the answer to its request; HTTP/2 has a sign of its own for it.
    fn refuse(&self, why: NotServed) -> Response<Self::Body>;

    /// Whether others wait for memory that is held by answers on their way. Clients that take a large one too slowly are cut then.
    fn wants_answers_taken(&self) -> bool {
        false
    }

    fn answer(
        &self,
        request: Request<IncomingBody<Incoming>>,
    ) -> impl Future<Output = Result<Response<Self::Body>, NoAnswer>> + Send;
}

/// Why a connection is not served. Nothing of it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotServed {
    /// All places are in use, or this one's was given to another before anything had come on it.
    NoPlace,
    /// The port stops.
    Stopping,
}

/// What the request asked for may or may not come to be: its client must not take any answer for an answer. Over HTTP/1.1 the
/// connection is closed, over HTTP/2 the stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the outcome of the request is unknown")]
pub struct NoAnswer;

/// Bounds on the connections of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionBounds {
    /// Connections at a time, at least 1, besides an eighth of as many (8 to 64) that wait for a place, and as many that hear that they have
    /// given theirs away. At the bound unused ones give way, those that have had their answer, and requests that do not come; where there
    /// are none, a new one waits for a moment and is refused.
    pub connections_max: usize,
    /// Of these, over HTTP/1.1, so many whose client has closed its sending side behind its request have their answer. To all others
    /// that is an end, and their request is dropped, as what asks for something that has no use without its client wants it.
    pub half_closed_max: usize,
}

/// A port that is served.
pub struct HttpServer {
    /// Dropped, it stops the accepting, and the waiting for a place.
    stop: Option<Stop>,
    accepting: oneshot::Receiver<()>,
    registry: Arc<Registry>,
    beside: Beside,
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
        let stop = Stop(Arc::new(Semaphore::new(0)));
        let stopped = Stopped(stop.0.clone());
        let (done, accepting) = oneshot::channel();
        let registry = Registry::new(bounds);
        let beside = Beside::of(bounds);
        let port =
            Port { listener, env: env.clone(), registry: registry.clone(), beside: beside.clone(), stopped, purpose, told: None };
        env.tasks.spawn(Box::pin(async move {
            port.accept(answers).await;
            // Nobody waits any more once the deadline has passed.
            let _ = done.send(());
        }));
        Self { stop: Some(stop), accepting, registry, beside, env }
    }

    /// Stops accepting, lets requests in progress end, and returns when none is left, and all have heard so that waited for a place, or the
    /// deadline has passed. Clients that still wait then see their connection close, without an answer; what they asked for goes on.
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
        let emptied = async { tokio::join!(self.registry.emptied(), self.beside.emptied()) };
        tokio::select! {
            biased;
            // Dropped midway: it can be asked anew.
            _ = emptied => true,
            // A timer has nothing to lose.
            () = self.env.clock.sleep(limit) => false,
        }
    }
}

/// Tells all that wait to stop, when it is dropped.
struct Stop(Arc<Semaphore>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[derive(Clone)]
struct Stopped(Arc<Semaphore>);

impl Stopped {
    /// Completes once the port stops.
    async fn told(&self) {
        // There are no permits: it ends by being closed.
        let _ = self.0.acquire().await;
    }
}

/// Leave for connections that have no place.
#[derive(Clone)]
struct Beside {
    /// So many of each kind.
    count: u32,
    /// To wait for a place, or to hear that there is none.
    waiting: Arc<Semaphore>,
    /// To hear that one has given its place away.
    leaving: Arc<Semaphore>,
}

impl Beside {
    fn of(bounds: ConnectionBounds) -> Self {
        let count = (bounds.connections_max / BESIDE_SHARE).clamp(BESIDE_MIN, BESIDE_MAX);
        let leaves = || Arc::new(Semaphore::new(count));
        Self { count: u32::try_from(count).expect("it is small"), waiting: leaves(), leaving: leaves() }
    }

    /// Returns when none is left, and lets none in while what it returns is held.
    async fn emptied(&self) -> [SemaphorePermit<'_>; 2] {
        [all(&self.waiting, self.count).await, all(&self.leaving, self.count).await]
    }
}

async fn all(leaves: &Semaphore, count: u32) -> SemaphorePermit<'_> {
    leaves.acquire_many(count).await.expect(OPEN)
}

struct Port {
    listener: TcpListener,
    env: Env,
    registry: Arc<Registry>,
    beside: Beside,
    stopped: Stopped,
    purpose: &'static str,
    /// When a failed accept was told last.
    told: Option<Duration>,
}

/// What a connection may do that is accepted.
enum Leave {
    Wait(OwnedSemaphorePermit),
    /// No leave to wait is free, but a place is: those with a leave are being told that there is none.
    Enter(Slot),
}

impl Port {
    async fn accept<S: HttpAnswers>(mut self, answers: Arc<S>) {
        let stopped = self.stopped.clone();
        loop {
            let next = async {
                let leave = tokio::select! {
                    biased;
                    // Dropped midway, a permit that has come goes to the next that asks.
                    wait = self.beside.waiting.clone().acquire_owned() => Leave::Wait(wait.expect(OPEN)),
                    slot = self.registry.slot() => Leave::Enter(slot),
                };
                Ok::<_, io::Error>((self.listener.accept().await?.0, leave))
            };
            let accepted = tokio::select! {
                biased;
                // It stays told.
                () = stopped.told() => return,
                // Dropped midway, at the stop: a connection that was accepted and not served closes.
                accepted = next => accepted,
            };
            match accepted {
                Ok((stream, leave)) => {
                    answers.accepted();
                    self.env.tasks.spawn(Box::pin(self.received(stream, leave, answers.clone())));
                }
                Err(error) => {
                    // One more waits in the kernel's queue.
                    self.registry.make_room(self.env.clock.monotonic(), 1);
                    self.tell(&error);
                    self.env.clock.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// A connection, from its acceptance to its end.
    fn received<S: HttpAnswers>(&self, stream: TcpStream, leave: Leave, answers: Arc<S>) -> impl Future<Output = ()> + use<S> {
        let (env, registry, beside) = (self.env.clone(), self.registry.clone(), self.beside.clone());
        let (stopped, purpose) = (self.stopped.clone(), self.purpose);
        async move {
            connection::set_options(&stream);
            let (slot, waiting) = match leave {
                Leave::Enter(slot) => (Ok(slot), None),
                Leave::Wait(waiting) => {
                    let slot = tokio::select! {
                        biased;
                        // It stays told.
                        () = stopped.told() => Err(NotServed::Stopping),
                        // Dropped midway, at the stop: a place that has come is given back.
                        slot = registry.wait_for_slot(&*env.clock) => slot.ok_or(NotServed::NoPlace),
                    };
                    (slot, Some(waiting))
                }
            };
            let clock = env.clock.clone();
            let slot = match slot {
                Ok(slot) => slot,
                Err(why) => {
                    tracing::debug!(port = purpose, ?why, "a connection is not served");
                    goodbye::say(stream, &*clock, answers.refuse(why)).await;
                    return;
                }
            };
            drop(waiting);
            let membership = registry.enter(slot, clock.clone());
            let served = connection::serve(stream, env, answers.clone(), membership).await;
            let Some(Unheard { stream, place }) = served else { return };
            tracing::debug!(port = purpose, "a connection gave its place away before it was used");
            // Its place is free at once, unless too many hear that there is none.
            let leave = beside.leaving.try_acquire();
            let _place = leave.is_err().then(|| {
                place.leaves_later();
                place
            });
            goodbye::say(stream, &*clock, answers.refuse(NotServed::NoPlace)).await;
        }
    }

    fn tell(&mut self, error: &io::Error) {
        let now = self.env.clock.monotonic();
        if self.told.is_none_or(|told| now.saturating_sub(told) >= ACCEPT_TOLD) {
            self.told = Some(now);
            tracing::warn!(%error, port = self.purpose, "cannot accept connections for now; unused ones are closed");
        }
    }
}
