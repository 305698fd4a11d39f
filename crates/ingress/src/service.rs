//! One HTTP request of a client, from its head to its response.
//!
//! Owns: the order of the checks, which headers reach the handler, and the body limit. Source: HTTP reference 1.3 and 1.6. Does
//! not own: connections (`listen`).

use crate::cors::Cors;
use crate::reply::{self, Reply};
use crate::route::{Route, Spelling};
use crate::{Error, Ingress, Limits, Request, check, delay, route};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::borrow::Cow;
use std::sync::Arc;
use surefoot_model::catalog::Catalog;
use tokio::sync::Semaphore;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_EXPIRES: HeaderName = HeaderName::from_static("idempotency-expires");
/// What a handler does not get.
const NOT_PASSED_ON: [HeaderName; 4] = [HOST, CONNECTION, IDEMPOTENCY_KEY, IDEMPOTENCY_EXPIRES];
/// What a handler gets first: path and query as received.
const INGRESS_PATH: &str = "x-restate-ingress-path";

/// Answers the requests of all connections.
pub(crate) struct Service {
    ingress: Ingress,
    body_bytes_max: u64,
    /// Absent: no bound.
    slots: Option<Arc<Semaphore>>,
}

impl Service {
    pub(crate) fn new(ingress: Ingress, limits: &Limits) -> Self {
        let slots = limits.requests_max.map(|max| Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS))));
        Self { ingress, body_bytes_max: limits.body_bytes_max, slots }
    }

    pub(crate) async fn respond<B>(&self, request: http::Request<B>) -> Reply
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let cors = Cors::of(request.headers());
        let mut response = self.answer(request).await.unwrap_or_else(|error| reply::error(&error));
        cors.apply(response.headers_mut());
        response
    }

    async fn answer<B>(&self, request: http::Request<B>) -> Result<Reply, Error>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if content_length(request.headers()).is_some_and(|length| length > self.body_bytes_max) {
            return Ok(reply::length_over_limit());
        }
        if request.method() == Method::OPTIONS {
            return Ok(Reply::default());
        }
        let done = self.admitted(request).await;
        if let Err(error) = &done {
            self.ingress.metrics().refused(error);
        }
        done
    }

    async fn admitted<B>(&self, request: http::Request<B>) -> Result<Reply, Error>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let _slot = match &self.slots {
            Some(slots) => Some(slots.try_acquire().map_err(|_| Error::TooManyRequests)?),
            None => None,
        };
        let (parts, body) = request.into_parts();
        match route::parse(trimmed(parts.uri.path()))? {
            Route::Health if parts.method == Method::GET => {
                let catalog = self.ingress.catalog();
                Ok(reply::health(catalog.services.keys().map(|name| name.as_str()).collect()))
            }
            Route::Health => Err(Error::Method),
            Route::Invoke { spelling, service, rest } => self.invoke(spelling, service, &rest, &parts, body).await,
        }
    }

    async fn invoke<B>(&self, spelling: Spelling, service: &str, rest: &[&str], parts: &Parts, body: B) -> Result<Reply, Error>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let catalog: Arc<Catalog> = self.ingress.catalog();
        let service = check::service(&catalog, service)?;
        let point = route::point(spelling, service.is_keyed(), rest)?;
        let handler = check::handler(service, point.handler)?;
        let idempotency_key = parts.headers.get(IDEMPOTENCY_KEY);
        check::idempotency_key(handler, idempotency_key.map(HeaderValue::as_bytes))?;
        if parts.method != Method::GET && parts.method != Method::POST {
            return Err(Error::Method);
        }
        let body = self.read(body).await?;
        let content_type = parts.headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
        check::input(&handler.input, content_type, body.is_empty())?;
        let delay = delay::of_query(parts.uri.query().unwrap_or_default())?;
        let path = ingress_path(&parts.uri);
        let request = Request {
            service: &service.name,
            handler: &handler.name,
            key: &point.key,
            headers: passed_on(&path, &parts.headers)?,
            body,
            idempotency_key: idempotency_key.map(|key| key.to_str().expect("checked to be visible ASCII")),
        };
        match (point.is_send, delay) {
            (true, delay) => self.ingress.submit_send(&catalog, request, delay).await.map(|accepted| reply::accepted(&accepted)),
            (false, None) => self.ingress.submit_call(&catalog, request).await.map(reply::completed),
            (false, Some(_)) => Err(Error::DelayOnCall),
        }
    }

    async fn read<B>(&self, body: B) -> Result<Bytes, Error>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        let max = usize::try_from(self.body_bytes_max).unwrap_or(usize::MAX);
        match Limited::new(body, max).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Error::TooLarge(self.body_bytes_max)),
            Err(error) => Err(Error::BodyUnreadable(error.to_string())),
        }
    }
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
        if NOT_PASSED_ON.contains(name) || name == INGRESS_PATH {
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
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut passed = passed_on("/Svc/echo", &headers).unwrap();
        assert_eq!(passed.remove(0), ("x-restate-ingress-path", "/Svc/echo"));
        passed.sort_unstable();
        assert_eq!(passed, [("authorization", "secret"), ("x-a", "1")]);
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
