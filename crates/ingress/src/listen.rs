//! The port of clients: HTTP in front of an [`Ingress`], from the bind of the port to the drain.
//!
//! Owns: the answer while the node has not recovered yet. Does not own: connections (`listener`), binding the port (`server`), or requests
//! (`service`).

use crate::body::BodyBounds;
use crate::metrics::Connections;
use crate::reply::{self, Reply, ReplyBody};
use crate::service::Service;
use crate::{Error, Ingress};
use http::Request;
use hyper::body::Incoming;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use surefoot_env::Env;
use surefoot_listener::{ConnectionBounds, HttpAnswers, HttpServer, IncomingBody, NoAnswer, NotServed, Visitors};
use surefoot_partition::Stopped;
use tokio::net::TcpListener;

/// Bounds on what clients may ask for.
#[derive(Clone, Debug)]
pub struct Limits {
    pub bodies: BodyBounds,
    /// Requests in progress at a time.
    pub requests_max: usize,
    pub connections: ConnectionBounds,
    /// Which web pages may ask.
    pub visitors: Visitors,
}

/// The port of clients.
pub struct Server {
    http: HttpServer,
    door: Arc<Door>,
    limits: Limits,
}

impl Server {
    /// Serves the connections of a bound listener until [`Self::drain`]; each request is refused until [`Self::open`].
    pub fn start(listener: TcpListener, env: Env, limits: Limits) -> Self {
        let door = Arc::new(Door { service: OnceLock::new(), connections: Connections::default() });
        let http = HttpServer::start(listener, env, limits.connections, "calls", door.clone());
        Self { http, door, limits }
    }

    /// From now on requests reach the ingress.
    pub fn open(&self, ingress: Ingress) {
        // Nobody opens a port twice.
        let _ = self.door.service.set(Service::new(ingress, &self.limits));
    }

    /// Stops accepting, lets requests in progress end, and returns when none is left or the deadline has passed. Clients that still
    /// wait then see their connection close; what they asked for goes on.
    pub async fn drain(self, deadline: Duration) {
        self.http.drain(deadline).await;
    }
}

/// Closed until the node has recovered.
struct Door {
    service: OnceLock<Service>,
    connections: Connections,
}

impl HttpAnswers for Door {
    type Body = ReplyBody;

    fn accepted(&self) {
        self.connections.accepted.increment(1);
    }

    fn refuse(&self, why: NotServed) -> Reply {
        self.connections.refused.increment(1);
        reply::error(&match why {
            NotServed::NoPlace => Error::NoPlace,
            NotServed::Stopping => Error::Stopped(Stopped::NotTaken),
        })
    }

    fn wants_answers_taken(&self) -> bool {
        self.service.get().is_some_and(Service::wants_answers_taken)
    }

    async fn answer(&self, request: Request<IncomingBody<Incoming>>) -> Result<Reply, NoAnswer> {
        match self.service.get() {
            Some(service) => service.respond(request).await,
            None => {
                let (parts, body) = request.into_parts();
                body.discard(&parts.headers).await;
                Ok(reply::error(&Error::Starting))
            }
        }
    }
}
