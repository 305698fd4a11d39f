//! Invoking handlers: call, send, and the results of what was sent.

use crate::http::{Http, query, segment};
use crate::{Error, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The status with which the server says that a result is not there yet.
const NOT_READY: u16 = 470;

/// A client of the ingress (by default port 8080). Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Ingress {
    http: Http,
}

/// A handler, on a key where its service has keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    service: String,
    key: Option<String>,
    handler: String,
}

impl Target {
    /// A handler of a plain service.
    pub fn service(service: impl Into<String>, handler: impl Into<String>) -> Self {
        Self { service: service.into(), key: None, handler: handler.into() }
    }

    /// A handler of a virtual object or workflow.
    pub fn keyed(service: impl Into<String>, key: impl Into<String>, handler: impl Into<String>) -> Self {
        Self { service: service.into(), key: Some(key.into()), handler: handler.into() }
    }

    fn path(&self, verb: &str) -> String {
        // The server decodes the key only: names go as they are.
        match &self.key {
            Some(key) => format!("/restate/{verb}/{}/{}/{}", self.service, segment(key), self.handler),
            None => format!("/restate/{verb}/{}/{}", self.service, self.handler),
        }
    }
}

/// A request to a handler: where to, what with, and how.
#[derive(Debug, Clone)]
pub struct Call {
    target: Target,
    body: Bytes,
    headers: HeaderMap,
    delay: Option<Duration>,
    invalid: Option<String>,
}

impl Call {
    /// A request without a body.
    pub fn new(target: Target) -> Self {
        Self { target, body: Bytes::new(), headers: HeaderMap::new(), delay: None, invalid: None }
    }

    /// With a JSON body.
    ///
    /// # Panics
    /// If the value has no JSON form (a map whose keys are no strings).
    pub fn json(self, value: &impl Serialize) -> Self {
        let body = serde_json::to_vec(value).expect("the caller gave a value that JSON can hold");
        self.body("application/json", body)
    }

    /// With any body.
    pub fn body(mut self, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.body = body.into();
        self
    }

    /// The same key again means the same invocation; it is safe to repeat the request.
    pub fn idempotency_key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    /// A header that the handler sees. One that HTTP cannot carry fails the request.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            (Ok(name), Ok(value)) => drop(self.headers.insert(name, value)),
            _ => self.invalid = Some(format!("{name}: {value}")),
        }
        self
    }

    /// Starts only after this time. For sends alone; a call with a delay is refused by the server.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }
}

/// The answer to a call.
#[derive(Debug, Clone)]
pub struct Reply {
    pub invocation: String,
    pub body: Bytes,
}

impl Reply {
    /// The handler's JSON output. An empty body reads as `null`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        let body: &[u8] = if self.body.is_empty() { b"null" } else { &self.body };
        serde_json::from_slice(body)
            .map_err(|error| Error::Unexpected { url: self.invocation.clone(), reason: error.to_string() })
    }
}

/// The answer to a send.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Sent {
    #[serde(rename = "invocationId")]
    pub invocation: String,
    pub status: SendStatus,
    /// RFC 3339, for an invocation that was created with a delay.
    #[serde(rename = "executionTime")]
    pub execution_time: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum SendStatus {
    Accepted,
    /// An invocation with this identity was there already; nothing new runs.
    PreviouslyAccepted,
}

impl Ingress {
    /// `address` is `host:port` or `http://host:port`. Connects with the first request.
    pub fn new(address: &str) -> Result<Self> {
        Ok(Self { http: Http::new(address)? })
    }

    /// Bounds the time from each request to the end of its answer. Without it a call waits as long as its handler runs.
    pub fn with_timeout(self, limit: Duration) -> Self {
        Self { http: self.http.with_timeout(limit) }
    }

    /// Invokes a handler and waits for its result.
    pub async fn call(&self, call: Call) -> Result<Reply> {
        let answer = self.post(call, "call").await?;
        Ok(Reply { invocation: answer.header("x-restate-id").unwrap_or_default(), body: answer.body })
    }

    /// Starts an invocation; when this returns, the server will see it through.
    pub async fn send(&self, call: Call) -> Result<Sent> {
        self.post(call, "send").await?.json()
    }

    /// Waits for the result of an invocation.
    pub async fn attach(&self, invocation: &str) -> Result<Reply> {
        let path = format!("/restate/invocation/{}/attach", segment(invocation));
        let answer = self.http.send(Method::GET, &path, HeaderMap::new(), Bytes::new()).await?.success()?;
        Ok(Reply { invocation: invocation.to_owned(), body: answer.body })
    }

    /// The result of an invocation, or none as long as it runs.
    pub async fn output(&self, invocation: &str) -> Result<Option<Reply>> {
        let path = format!("/restate/invocation/{}/output", segment(invocation));
        let answer = self.http.send(Method::GET, &path, HeaderMap::new(), Bytes::new()).await?;
        match answer.success() {
            Ok(answer) => Ok(Some(Reply { invocation: invocation.to_owned(), body: answer.body })),
            Err(error) if error.status() == Some(NOT_READY) && !error.is_terminal() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn post(&self, call: Call, verb: &str) -> Result<crate::http::Answer> {
        if let Some(header) = call.invalid {
            return Err(Error::Unexpected {
                url: call.target.path(verb),
                reason: format!("HTTP cannot carry the header {header}"),
            });
        }
        let delay = call.delay.map(|delay| format!("{}ms", delay.as_millis()));
        let path = format!("{}{}", call.target.path(verb), query(&[("delay", delay)]));
        self.http.send(Method::POST, &path, call.headers, call.body).await?.success()
    }
}
