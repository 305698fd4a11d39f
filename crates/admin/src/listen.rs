//! The admin port: HTTP/1.1, and HTTP/2 with prior knowledge.
//!
//! Owns: serving and the drain. Does not own: binding the port (`server`), or requests (`routes`).

use crate::{Admin, routes};
use axum::serve::ListenerExt;
use std::time::Duration;
use surefoot_env::Env;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// The REST API in front of an [`Admin`].
pub struct Server {
    stop: oneshot::Sender<()>,
    drained: oneshot::Receiver<()>,
    env: Env,
}

impl Server {
    /// Serves the connections of a bound listener until [`Self::drain`].
    pub fn start(listener: TcpListener, admin: Admin) -> Self {
        let env = admin.env().clone();
        let (stop, stopped) = oneshot::channel();
        let (done, drained) = oneshot::channel();
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY");
            }
        });
        env.tasks.spawn(Box::pin(async move {
            let stopped = async {
                // A server that is gone has asked for the stop, too.
                let _ = stopped.await;
            };
            let served = axum::serve(listener, routes::router(admin)).with_graceful_shutdown(stopped).await;
            if let Err(error) = served {
                tracing::error!(%error, "the admin port no longer serves");
            }
            // Nobody waits any more once the deadline has passed.
            let _ = done.send(());
        }));
        Self { stop, drained, env }
    }

    /// Stops accepting, lets requests in progress end, and returns when none is left or the deadline has passed.
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
