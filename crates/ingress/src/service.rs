//! One HTTP request of a client, from its head to its response.
//!
//! Owns: the order of the checks, and which headers reach the handler. Source: HTTP reference 1.3 and 1.6. Does not own:
//! connections (`listener`), or receiving bodies (`body`).

use crate::body::{Bodies, Received};
use crate::cors::Cors;
use crate::reply::{self, Reply};
use crate::route::{Point, Route};
use crate::wait::ROOM_WAIT_MAX;
use crate::{Error, Ingress, Limits, Request, check, delay, route};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body::Body;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use surefoot_listener::{IncomingBody, NoAnswer, Visitors};
use surefoot_model::catalog::{self, Catalog, Handler};
use surefoot_partition::Stopped;
use tokio::sync::Semaphore;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_EXPIRES: HeaderName = HeaderName::from_static("idempotency-expires");
/// What a handler does not get.
const NOT_PASSED_ON: [HeaderName; 4] = [HOST, CONNECTION, IDEMPOTENCY_KEY, IDEMPOTENCY_EXPIRES];
/// What a handler gets first: path and query as received.
const INGRESS_PATH: &str = "x-restate-ingress-path";
/// What a request in progress takes, with its headers. One whose headers are as large again counts as two, and so on.
pub const REQUEST_BYTES: usize = 8 << 10;
/// Names that the ingress alone gives to handlers.
const OWN_PREFIX: &str = "x-restate-";

/// Answers the requests of all connections.
pub(crate) struct Service {
    ingress: Ingress,
    body_bytes_max: u64,
    bodies: Bodies,
    /// Of requests in progress. One with a large head takes several.
    slots: Semaphore,
    requests_max: u32,
    visitors: Visitors,
}

/// What a request asks for, as far as its head says.
enum Wish<'a> {
    Health,
    Invoke(Head<'a>),
}

/// The head of a request for a handler that may be invoked so.
struct Head<'a> {
    service: &'a Arc<catalog::Service>,
    handler: &'a Handler,
    point: Point<'a>,
    idempotency_key: Option<&'a str>,
}

impl Service {
    pub(crate) fn new(ingress: Ingress, limits: &Limits) -> Self {
        let requests_max = u32::try_from(limits.requests_max.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let slots = Semaphore::new(requests_max as usize);
        let bodies = Bodies::new(limits.bodies, ingress.env().clock.clone());
        Self {
            ingress,
            body_bytes_max: limits.bodies.body_bytes_max,
            bodies,
            slots,
            requests_max,
            visitors: limits.visitors.clone(),
        }
    }

    pub(crate) async fn respond<B>(&self, request: http::Request<IncomingBody<B>>) -> Result<Reply, NoAnswer>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, mut body) = request.into_parts();
        if let Err(refusal) = self.visitors.check(&parts.uri, &parts.headers) {
            let error = Error::Visitor(refusal);
            self.ingress.metrics().refused(&error);
            body.discard(&parts.headers).await;
            return Ok(reply::error(&error));
        }
        let mut response = match self.answer(&parts, &mut body).await {
            Ok(reply) => reply,
            Err(Error::Stopped(Stopped::Unknown)) => return Err(NoAnswer),
            Err(error) => {
                body.discard(&parts.headers).await;
                reply::error(&error)
            }
        };
        Cors::of(&parts.headers, &self.visitors).apply(response.headers_mut());
        Ok(response)
    }

    async fn answer<B>(&self, parts: &Parts, body: &mut IncomingBody<B>) -> Result<Reply, Error>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // What is submitted is counted there.
        let refused = |error: &Error| self.ingress.metrics().refused(error);
        if content_length(&parts.headers).is_some_and(|length| length > self.body_bytes_max) {
            return Err(Error::TooLarge(self.body_bytes_max)).inspect_err(refused);
        }
        if parts.method == Method::OPTIONS {
            return Ok(Reply::default());
        }
        // One of any size passes alone.
        let slots = slots(&parts.headers).min(self.requests_max);
        let _slots = self.slots.try_acquire_many(slots).map_err(|_| Error::TooManyRequests).inspect_err(refused)?;
        let catalog = self.ingress.catalog();
        let head = match wish(&catalog, parts).inspect_err(refused)? {
            Wish::Health => return Ok(reply::health(catalog.services.keys().map(|name| name.as_str()).collect())),
            Wish::Invoke(head) => head,
        };
        // What cannot be appended is not read either: the client's connection fills up instead of our memory.
        let room = |bytes, wait_max| self.ingress.room(&head.service.name, bytes, wait_max);
        room(body.size_hint().lower(), ROOM_WAIT_MAX).await.inspect_err(refused)?;
        let received = self.bodies.receive(body, head.service.deployment, room).await;
        let Received { bytes, room } = received.inspect_err(refused)?;
        let path = ingress_path(&parts.uri);
        let (request, delay) = whole(&head, parts, &path, bytes).inspect_err(refused)?;
        if head.point.is_send {
            self.ingress.submit_send(&catalog, request, delay, room).await.map(|accepted| reply::accepted(&accepted))
        } else {
            self.ingress.submit_call(&catalog, request, room).await.map(reply::completed)
        }
    }

    /// Whether memory has no room because clients do not take their answers.
    pub(crate) fn wants_answers_taken(&self) -> bool {
        self.ingress.wants_results_taken()
    }
}

/// Everything that is checked before a body is read.
fn wish<'a>(catalog: &'a Catalog, parts: &'a Parts) -> Result<Wish<'a>, Error> {
    let (spelling, service, rest) = match route::parse(trimmed(parts.uri.path()))? {
        Route::Health if parts.method == Method::GET => return Ok(Wish::Health),
        Route::Health => return Err(Error::Method),
        Route::Invoke { spelling, service, rest } => (spelling, service, rest),
    };
    let service = check::service(catalog, service)?;
    let point = route::point(spelling, service.is_keyed(), &rest)?;
    let handler = check::handler(service, point.handler)?;
    let idempotency_key = parts.headers.get(IDEMPOTENCY_KEY);
    check::idempotency_key(handler, idempotency_key.map(HeaderValue::as_bytes))?;
    if parts.method != Method::GET && parts.method != Method::POST {
        return Err(Error::Method);
    }
    let idempotency_key = idempotency_key.map(|key| key.to_str().expect("checked to be visible ASCII"));
    Ok(Wish::Invoke(Head { service, handler, point, idempotency_key }))
}

/// Everything that is checked once the body is there.
fn whole<'a>(head: &'a Head<'a>, parts: &'a Parts, path: &'a str, body: Bytes) -> Result<(Request<'a>, Option<Duration>), Error> {
    let content_type = parts.headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    check::input(&head.handler.input, content_type, body.is_empty())?;
    let delay = delay::of_query(parts.uri.query().unwrap_or_default())?;
    let headers = passed_on(path, &parts.headers)?;
    if delay.is_some() && !head.point.is_send {
        return Err(Error::DelayOnCall);
    }
    let request = Request {
        service: &head.service.name,
        handler: &head.handler.name,
        key: &head.point.key,
        headers,
        body,
        idempotency_key: head.idempotency_key,
    };
    Ok((request, delay))
}

/// Of requests in progress, so many as its head takes of what one has.
fn slots(headers: &HeaderMap) -> u32 {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    1 + u32::try_from(bytes / REQUEST_BYTES).unwrap_or(u32::MAX - 1)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The path without the slashes at its end; the root stays itself.
fn trimmed(path: &str) -> &str {
    path.trim_end_matches('/')
}

/// Path and query as the handler is told them.
fn ingress_path(uri: &Uri) -> Cow<'_, str> {
    let (path, whole) = (uri.path(), uri.path_and_query().map_or("", |whole| whole.as_str()));
    if !path.ends_with('/') {
        return Cow::Borrowed(whole);
    }
    Cow::Owned(format!("{}{}", trimmed(path), &whole[path.len()..]))
}

/// The headers that a handler gets: the first value of each name. **Errors**: a value that is not visible ASCII.
fn passed_on<'a>(path: &'a str, headers: &'a HeaderMap) -> Result<Vec<(&'a str, &'a str)>, Error> {
    let mut passed = Vec::with_capacity(headers.keys_len() + 1);
    passed.push((INGRESS_PATH, path));
    for name in headers.keys() {
        if NOT_PASSED_ON.contains(name) || name.as_str().starts_with(OWN_PREFIX) {
            continue;
        }
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        passed.push((name.as_str(), value.ok_or_else(|| Error::Header(name.to_string()))?));
    }
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_get_the_path_and_the_first_of_each_header() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "h"),
            ("connection", "close"),
            ("idempotency-key", "k"),
            ("idempotency-expires", "never"),
            ("x-a", "1"),
            ("x-a", "2"),
            ("authorization", "secret"),
            ("x-restate-ingress-path", "/forged"),
            ("x-restate-cluster-name", "forged"),
            ("x-restateclient-retry-attempt", "1"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut passed = passed_on("/Svc/echo", &headers).unwrap();
        assert_eq!(passed.remove(0), ("x-restate-ingress-path", "/Svc/echo"));
        passed.sort_unstable();
        assert_eq!(passed, [("authorization", "secret"), ("x-a", "1"), ("x-restateclient-retry-attempt", "1")]);
    }

    #[test]
    fn a_header_that_is_not_visible_ascii_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", HeaderValue::from_bytes("é".as_bytes()).unwrap());
        assert_eq!(passed_on("/", &headers), Err(Error::Header("x-a".into())));
    }

    #[test]
    fn slashes_at_the_end_do_not_count() {
        for (uri, path) in [
            ("/Svc/echo?q=1&z=%20", "/Svc/echo?q=1&z=%20"),
            ("/Svc/echo/?q=1", "/Svc/echo?q=1"),
            ("/Svc/echo//", "/Svc/echo"),
            ("http://h:1/Svc/echo/", "/Svc/echo"),
        ] {
            assert_eq!(ingress_path(&uri.parse().unwrap()), path);
        }
        assert_eq!(trimmed("/Svc/echo/"), "/Svc/echo");
    }
}
