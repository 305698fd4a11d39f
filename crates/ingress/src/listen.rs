//! Connections of clients: HTTP/1.1, and HTTP/2 with prior knowledge, on one port.
//!
//! Owns: accepting, the bounds on connections and streams, patience with those that ask for nothing, and the drain. Does not own: binding the port (`server`), or requests
//! (`service`).

use crate::Ingress;
use crate::service::Service;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{SockRef, TcpKeepalive};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use surefoot_env::{Env, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, Semaphore, oneshot};

/// Connections at a time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: u32 = 10_000;
/// HTTP/2 streams of one connection at a time.
const STREAMS_MAX: u32 = 1_000;
/// A connection without a request is closed after this long, or twice as long: longer than clients keep theirs for another use.
const IDLE: Duration = Duration::from_secs(120);
/// How long a connection may take to close.
const CLOSE: Duration = Duration::from_secs(10);
/// Silence after which a client is asked whether it is still there, and how long it has for its answer.
const PING_INTERVAL: Duration = Duration::from_secs(40);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Wait after a failed accept, as when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds on requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one request's body.
    pub body_bytes_max: u64,
    /// Requests in progress at a time; absent: no bound.
    pub requests_max: Option<usize>,
}

/// HTTP in front of an [`Ingress`].
pub struct Server {
    stop: oneshot::Sender<()>,
    drained: oneshot::Receiver<()>,
    env: Env,
}

impl Server {
    /// Serves the connections of a bound listener until [`Self::drain`].
    pub fn start(listener: TcpListener, ingress: Ingress, limits: &Limits) -> Self {
        let env = ingress.env().clone();
        let (stop, stopped) = oneshot::channel();
        let (done, drained) = oneshot::channel();
        let service = Arc::new(Service::new(ingress.clone(), limits));
        let world = env.clone();
        env.tasks.spawn(Box::pin(async move {
            let (stopping, slots) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(CONNECTIONS_MAX as usize)));
            accept(&listener, &world, &ingress, service, &stopping, &slots, stopped).await;
            drop(listener);
            stopping.notify_waiters();
            // Each connection holds its slot until its end.
            let _all = slots.acquire_many(CONNECTIONS_MAX).await;
            // Nobody waits any more once the deadline has passed.
            let _ = done.send(());
        }));
        Self { stop, drained, env }
    }

    /// Stops accepting, lets requests in progress end, and returns when none is left or the deadline has passed. Clients that still
    /// wait then see their connection close; what they asked for goes on.
    pub async fn drain(self, deadline: Duration) {
        // A listener that is gone needs no word.
        let _ = self.stop.send(());
        tokio::select! {
            biased;
            // Dropped midway: the connections close with the process.
            _ = self.drained => {}
            // A timer has nothing to lose.
            () = self.env.clock.sleep(deadline) => {}
        }
    }
}

/// Takes connections, one slot each, until it is told to stop.
async fn accept(
    listener: &TcpListener,
    env: &Env,
    ingress: &Ingress,
    service: Arc<Service>,
    stopping: &Arc<Notify>,
    slots: &Arc<Semaphore>,
    mut stopped: oneshot::Receiver<()>,
) {
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            biased;
            // A channel that has spoken or closed is not asked again.
            _ = &mut stopped => return,
            // Dropped midway: the slot is given back, and an unaccepted connection stays in the kernel's queue.
            accepted = next => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                ingress.metrics().connections.increment(1);
                let serving = serve(stream, env.clone(), service.clone(), stopping.clone().notified_owned());
                env.tasks.spawn(Box::pin(async move {
                    serving.await;
                    drop(slot);
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of a client");
                env.clock.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end: the client's, the server's, or that of our patience with one that asks for nothing.
async fn serve(stream: TcpStream, env: Env, service: Arc<Service>, stopping: OwnedNotified) {
    set_options(&stream);
    let mut builder = auto::Builder::new(OnTasks(env.tasks.clone()));
    builder
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let activity = Arc::new(Activity::default());
    let seen = activity.clone();
    let answer = service_fn(move |request| {
        let (service, in_progress) = (service.clone(), InProgress::new(seen.clone()));
        async move {
            let reply = service.respond(request).await;
            drop(in_progress);
            Ok::<_, Infallible>(reply)
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), answer));
    let mut stopping = pin!(stopping);
    let mut patience = env.clock.sleep(IDLE);
    let mut is_closing = false;
    loop {
        tokio::select! {
            biased;
            // Polled by reference: it goes on where it was.
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "a client's connection broke");
                }
                return;
            }
            // Polled by reference, and not again once it has spoken.
            () = stopping.as_mut(), if !is_closing => {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
            // Polled by reference: it keeps its due time.
            () = &mut patience => {
                if activity.was_idle() {
                    if is_closing {
                        return; // half a request, or a client that does not read its goodbye
                    }
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                patience = env.clock.sleep(if is_closing { CLOSE } else { IDLE });
            }
        }
    }
}

fn set_options(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    // A client may wait for days without a byte in either direction: the kernel finds out whether it is still there.
    let keep_alive = TcpKeepalive::new().with_time(PING_INTERVAL).with_interval(PING_TIMEOUT);
    if let Err(error) = SockRef::from(stream).set_tcp_keepalive(&keep_alive) {
        tracing::debug!(%error, "cannot set TCP keep-alive");
    }
}

/// What one connection's requests do.
#[derive(Default)]
struct Activity {
    in_progress: AtomicUsize,
    has_begun: AtomicBool,
}

impl Activity {
    /// Whether no request is in progress and none has begun since this was last asked.
    fn was_idle(&self) -> bool {
        let has_begun = self.has_begun.swap(false, Ordering::Relaxed);
        !has_begun && self.in_progress.load(Ordering::Relaxed) == 0
    }
}

/// One request, until it is dropped.
struct InProgress(Arc<Activity>);

impl InProgress {
    fn new(activity: Arc<Activity>) -> Self {
        activity.in_progress.fetch_add(1, Ordering::Relaxed);
        activity.has_begun.store(true, Ordering::Relaxed);
        Self(activity)
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs hyper's tasks on the node's.
#[derive(Clone)]
struct OnTasks(Arc<dyn Tasks>);

impl<F> Executor<F> for OnTasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(Box::pin(future));
    }
}
