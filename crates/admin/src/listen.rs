//! The port of operators: HTTP in front of an [`Admin`], from the bind of the port to the drain.
//!
//! Owns: bounds on requests, bodies received whole before a route sees them, and the answer while the node has not recovered yet. Does
//! not own: connections (`listener`), binding the port (`server`), or requests (`routes`).

use crate::{Admin, Error, routes};
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use surefoot_env::Env;
use surefoot_listener::{BodyFault, ConnectionBounds, HttpAnswers, HttpServer, IncomingBody, NoAnswer, NotServed, Visitors};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower_service::Service;

/// Bytes of one request's body.
const BODY_BYTES_MAX: usize = 2 << 20;
/// Requests in progress at a time: each may hold a body, and a page of its answer.
const REQUESTS_MAX: usize = 128;

/// The port of operators.
pub struct Server {
    http: HttpServer,
    door: Arc<Door>,
}

impl Server {
    /// Serves the connections of a bound listener until [`Self::drain`]; each request is refused until [`Self::open`].
    pub fn start(listener: TcpListener, env: Env, connections: ConnectionBounds, visitors: Visitors) -> Self {
        let slots = Semaphore::new(REQUESTS_MAX);
        let door = Arc::new(Door { router: OnceLock::new(), waits_for: Mutex::default(), visitors, slots });
        let http = HttpServer::start(listener, env, connections, "operators", door.clone());
        Self { http, door }
    }

    /// Says in each refusal what the start waits for.
    pub fn wait_for(&self, why: String) {
        *self.door.waits_for() = Some(why);
    }

    /// From now on requests reach the API.
    pub fn open(&self, admin: Admin) {
        // Nobody opens a port twice.
        let _ = self.door.router.set(routes::router(admin));
    }

    /// Stops accepting, lets requests in progress end, and returns when none is left or the deadline has passed.
    pub async fn drain(self, deadline: Duration) {
        self.http.drain(deadline).await;
    }
}

/// Closed until the node has recovered.
struct Door {
    router: OnceLock<Router>,
    /// What the start waits for, beyond its own time.
    waits_for: Mutex<Option<String>>,
    visitors: Visitors,
    slots: Semaphore,
}

impl Door {
    fn waits_for(&self) -> MutexGuard<'_, Option<String>> {
        self.waits_for.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_ready(&self) -> Error {
        self.waits_for().clone().map_or(Error::NotReady, Error::StartWaits)
    }
}

impl HttpAnswers for Door {
    type Body = Body;

    fn refuse(&self, why: NotServed) -> Response {
        let error = match why {
            NotServed::NoPlace => Error::NoPlace,
            NotServed::Stopping => Error::Stopping,
        };
        error.into_response()
    }

    async fn answer(&self, request: Request<IncomingBody<Incoming>>) -> Result<Response, NoAnswer> {
        let (parts, mut body) = request.into_parts();
        let refusal = match self.visitors.check(&parts.uri, &parts.headers) {
            Err(refusal) => Some(Error::Visitor(refusal)),
            Ok(()) if self.router.get().is_none() => Some(self.not_ready()),
            Ok(()) => None,
        };
        let slot = self.slots.try_acquire();
        let refusal = refusal.or_else(|| slot.is_err().then_some(Error::TooManyRequests));
        let (None, Some(router)) = (&refusal, self.router.get()) else {
            body.discard(&parts.headers).await;
            return Ok(refusal.unwrap_or(Error::NotReady).into_response());
        };
        let received = match receive(&mut body).await {
            Ok(received) => received,
            Err(refused) => {
                body.discard(&parts.headers).await;
                return Ok(refused);
            }
        };
        match router.clone().call(Request::from_parts(parts, Body::from(received))).await {
            Ok(response) if response.extensions().get::<NoAnswer>().is_some() => Err(NoAnswer),
            Ok(response) => Ok(response),
            Err(never) => match never {},
        }
    }
}

/// The body as a whole. **Errors**: the answer to one that is too large, or did not come. Source: HTTP reference 2.1.
async fn receive(body: &mut IncomingBody<Incoming>) -> Result<Bytes, Response> {
    let error = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(whole) => return Ok(whole.to_bytes()),
        Err(error) => error,
    };
    if error.is::<LengthLimitError>() {
        return Err(Error::BodyTooLarge(BODY_BYTES_MAX).into_response());
    }
    Err(match error.downcast::<BodyFault>().map(|fault| *fault) {
        Ok(fault @ BodyFault::Slow { .. }) => Error::BodyTooSlow(fault.to_string()).into_response(),
        Ok(fault @ BodyFault::GaveWay { .. }) => Error::BodyGaveWay(fault.to_string()).into_response(),
        Ok(fault) => Error::BodyUnreadable(fault.to_string()).into_response(),
        Err(error) => Error::BodyUnreadable(error.to_string()).into_response(),
    })
}
