//! Connections of clients: HTTP/1.1, and HTTP/2 with prior knowledge, on one port.
//!
//! Owns: accepting, the bounds on connections and streams, and the drain. Does not own: binding the port (`server`), or requests
//! (`service`).

use crate::Ingress;
use crate::service::Service;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use surefoot_env::{Env, Tasks};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

/// Connections at a time; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 10_000;
/// HTTP/2 streams of one connection at a time.
const STREAMS_MAX: u32 = 1_000;
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
            let connections = accept(&listener, &world, &ingress, service, stopped).await;
            drop(listener);
            connections.shutdown().await;
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

async fn accept(
    listener: &TcpListener,
    env: &Env,
    ingress: &Ingress,
    service: Arc<Service>,
    mut stopped: oneshot::Receiver<()>,
) -> GracefulShutdown {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            biased;
            // A channel that has spoken or closed is not asked again.
            _ = &mut stopped => return graceful,
            // Dropped midway: the slot is given back, and an unaccepted connection stays in the kernel's queue.
            accepted = next => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                ingress.metrics().connections.increment(1);
                let serving = serve(stream, env, service.clone(), &graceful);
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

/// Serves one connection to its end.
fn serve(
    stream: TcpStream,
    env: &Env,
    service: Arc<Service>,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + Send + use<> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let mut builder = auto::Builder::new(OnTasks(env.tasks.clone()));
    builder.http2().max_concurrent_streams(STREAMS_MAX);
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.respond(request).await) }
    });
    let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), answer).into_owned());
    async move {
        if let Err(error) = connection.await {
            tracing::debug!(error, "a client's connection broke");
        }
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
