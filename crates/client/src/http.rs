//! One HTTP/1.1 connection pool to one base address, and the reading of answers.

use crate::{Error, Result, Source};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::Duration;

const ANSWER_BYTES_MAX: usize = 64 << 20;
const IDLE_CONNECTION: Duration = Duration::from_secs(30);
/// What a path segment may hold as it is (RFC 3986, unreserved).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[derive(Debug, Clone)]
pub(crate) struct Http {
    /// `http://host:port`, without a slash at the end.
    base: String,
    pool: Client<HttpConnector, Full<Bytes>>,
    limit: Option<Duration>,
}

/// A whole answer, whatever its status.
pub(crate) struct Answer {
    pub(crate) url: String,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Http {
    pub(crate) fn new(address: &str) -> Result<Self> {
        let wrong = |reason: &str| Error::Address { address: address.to_owned(), reason: reason.to_owned() };
        let full = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let uri: Uri = full.parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("only http:// is spoken here"));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(wrong("it must end after the port"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("the host is missing"))?;

        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let pool = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .build(connector);
        Ok(Self { base: format!("http://{authority}"), pool, limit: None })
    }

    /// Bounds the time from each request to the end of its answer.
    pub(crate) fn with_timeout(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// `path` and its query are sent as they are.
    pub(crate) async fn send(&self, method: Method, path: &str, headers: HeaderMap, body: Bytes) -> Result<Answer> {
        let url = format!("{}{path}", self.base);
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = url
            .parse()
            .map_err(|error: http::uri::InvalidUri| Error::Address { address: url.clone(), reason: error.to_string() })?;
        *request.headers_mut() = headers;

        let exchange = async {
            let broken = |reason: String| Error::Connection { url: url.clone(), reason };
            let response = self.pool.request(request).await.map_err(|error| broken(causes(&error)))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| broken(causes(error.as_ref())))?.to_bytes();
            Ok(Answer { url: url.clone(), status: head.status.as_u16(), headers: head.headers, body })
        };
        match self.limit {
            None => exchange.await,
            Some(limit) => match tokio::time::timeout(limit, exchange).await {
                Ok(answer) => answer,
                Err(_) => Err(Error::Timeout { url, limit }),
            },
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.send(Method::GET, path, HeaderMap::new(), Bytes::new()).await?.json()
    }

    pub(crate) async fn put_json<T: DeserializeOwned>(&self, method: Method, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body).expect("what this client sends are maps with string keys");
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        self.send(method, path, headers, body.into()).await?.json()
    }

    /// For requests whose answer says nothing beyond its status.
    pub(crate) async fn act(&self, method: Method, path: &str) -> Result<()> {
        self.send(method, path, HeaderMap::new(), Bytes::new()).await?.success().map(drop)
    }
}

impl Answer {
    /// The answer itself if its status is 2xx and it is not a failure of an invocation that chose such a status.
    pub(crate) fn success(self) -> Result<Self> {
        let invocation = self.headers.get("x-restate-error-source").is_some_and(|source| source == "invocation");
        let source = if invocation { Source::Invocation } else { Source::Server };
        if (200..300).contains(&self.status) && !self.headers.contains_key("x-restate-error-source") {
            return Ok(self);
        }
        let told: Told = serde_json::from_slice(&self.body).unwrap_or_default();
        let message = told.message.unwrap_or_else(|| String::from_utf8_lossy(&self.body).trim().to_owned());
        let message = if message.is_empty() { format!("{} was refused", self.url) } else { message };
        Err(Error::Refused {
            status: self.status,
            source_of_refusal: source,
            code: told.restate_code.unwrap_or_default(),
            message,
        })
    }

    pub(crate) fn json<T: DeserializeOwned>(self) -> Result<T> {
        let answer = self.success()?;
        serde_json::from_slice(&answer.body)
            .map_err(|error| Error::Unexpected { url: answer.url.clone(), reason: error.to_string() })
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name)?.to_str().ok().map(str::to_owned)
    }
}

/// The body of an error, of either surface.
#[derive(Default, Deserialize)]
struct Told {
    message: Option<String>,
    restate_code: Option<String>,
}

/// One segment of a path: whatever it holds, it stays one.
pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// `?a=1&b=2` of what is given; nothing if nothing is.
pub(crate) fn query(parameters: &[(&str, Option<String>)]) -> String {
    let given = parameters.iter().filter_map(|(name, value)| value.as_ref().map(|value| format!("{name}={}", segment(value))));
    let joined = given.collect::<Vec<_>>().join("&");
    if joined.is_empty() { joined } else { format!("?{joined}") }
}

/// An error with its causes: hyper's own text alone says "client error".
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_one_segment() {
        assert_eq!(segment("a/b c?ü"), "a%2Fb%20c%3F%C3%BC");
        assert_eq!(segment("ada-1_2.3~"), "ada-1_2.3~");
        assert_eq!(query(&[("a", None), ("b", Some("x y".into())), ("c", Some("1".into()))]), "?b=x%20y&c=1");
        assert_eq!(query(&[("a", None)]), "");
    }

    #[test]
    fn addresses_are_checked() {
        assert!(Http::new("127.0.0.1:9070").is_ok());
        assert!(Http::new("http://localhost:9070/").is_ok());
        for wrong in ["https://localhost", "http://localhost/path", "http://", "a b"] {
            assert!(matches!(Http::new(wrong), Err(Error::Address { .. })), "{wrong}");
        }
    }
}
