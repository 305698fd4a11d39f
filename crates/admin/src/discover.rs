//! Asking an endpoint what it serves.
//!
//! Owns: the request, which answers are worth another try, and the words for those that are not. Does not own: the manifest
//! (`protocol`), or connections (`invoker`). Source: protocol reference 2.1 to 2.3.

use crate::Error;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::time::Duration;
use surefoot_env::Clock;
use surefoot_invoker::{DiscoverRequest, DiscoverResponse, Transport, TransportError};
use surefoot_model::catalog::HttpVersion;
use surefoot_protocol::discovery::{self, Manifest};

/// Tries in all, the first included.
const TRIES_MAX: u32 = 4;
/// Wait after the first failed try; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const SERVER: HeaderName = HeaderName::from_static("x-restate-server");

/// What an endpoint said.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Discovered {
    pub(crate) manifest: Manifest,
    /// The version that was spoken: asked for, or chosen by the endpoint.
    pub(crate) http: HttpVersion,
    /// Name and version of the SDK, such as `restate-sdk-typescript/1.17.2`.
    pub(crate) sdk_version: Option<String>,
}

/// One try that failed.
enum Failed {
    Again {
        error: Error,
        /// There was a connection, and it ended before an answer.
        is_broken: bool,
    },
    Finally(Error),
}

pub(crate) async fn discover(
    transport: &dyn Transport,
    clock: &dyn Clock,
    uri: &str,
    http: HttpVersion,
    headers: HeaderMap,
) -> Result<Discovered, Error> {
    let mut request_headers = headers;
    request_headers.insert(ACCEPT, HeaderValue::from_static(discovery::ACCEPT));
    let request = DiscoverRequest { uri: uri.to_owned(), http, headers: request_headers };
    let mut pause = FIRST_PAUSE;
    for tried in 1.. {
        match read(uri, transport.discover(request.clone()).await) {
            Ok(discovered) => return Ok(discovered),
            Err(Failed::Finally(error)) => return Err(error),
            Err(Failed::Again { error, .. }) if tried < TRIES_MAX => {
                tracing::debug!(uri, %error, "discovery failed and is tried again");
                clock.sleep(pause).await;
                pause *= 2;
            }
            Err(Failed::Again { error, is_broken }) => {
                // Some servers of HTTP/1.1 close on HTTP/2 without a word: whoever answers this is one of them.
                let probe = DiscoverRequest { http: HttpVersion::Http11, ..request };
                let is_http1 = is_broken && http == HttpVersion::Http2 && transport.discover(probe).await.is_ok();
                return Err(if is_http1 { Error::Http1Only { uri: uri.to_owned() } } else { error });
            }
        }
    }
    unreachable!("the last try returns")
}

fn read(uri: &str, response: Result<DiscoverResponse, TransportError>) -> Result<Discovered, Failed> {
    let unreachable = |reason: String| Error::Unreachable { uri: uri.to_owned(), reason };
    let response = match response {
        Ok(response) => response,
        Err(TransportError::Http1Peer { .. }) => return Err(Failed::Finally(Error::Http1Only { uri: uri.to_owned() })),
        Err(error @ (TransportError::Address(_) | TransportError::Silent { .. })) => {
            return Err(Failed::Finally(unreachable(error.to_string())));
        }
        Err(error) => {
            let is_broken = matches!(error, TransportError::Broken(_) | TransportError::NoHttp2 { .. });
            let hint = match uri.starts_with("https:") {
                true => "is the endpoint running, and does it speak TLS? Without TLS its address begins with http://",
                false => "is the endpoint running?",
            };
            return Err(Failed::Again { error: unreachable(format!("{error}; {hint}")), is_broken });
        }
    };
    match response.status {
        StatusCode::OK => {}
        status if is_passing(status) => {
            return Err(Failed::Again { error: unreachable(format!("it answered {status}")), is_broken: false });
        }
        status => return Err(Failed::Finally(unreachable(format!("it answered {status}{}", hint(status))))),
    }
    let text = |name: HeaderName| response.headers.get(name).and_then(|value| value.to_str().ok());
    let manifest = discovery::parse(text(CONTENT_TYPE), &response.body)
        .map_err(|reason| Failed::Finally(Error::Discovery { uri: uri.to_owned(), reason }))?;
    Ok(Discovered { manifest, http: response.http, sdk_version: text(SERVER).map(str::to_owned) })
}

/// Whether an endpoint that answers this may soon answer otherwise.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 | 403 => ": it does not accept this server's credentials",
        404 => ": the path of the address is probably wrong",
        415 => ": its SDK and this server have no discovery version in common",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use surefoot_env::BoxFuture;
    use surefoot_invoker::{Exchange, OpenRequest};

    type Answer = Result<DiscoverResponse, TransportError>;

    /// Gives prepared answers, the last one again and again.
    struct Prepared(Mutex<Vec<Answer>>);

    impl Transport for Prepared {
        fn open(&self, _: OpenRequest) -> BoxFuture<Result<Box<dyn Exchange>, TransportError>> {
            unreachable!("discovery opens no stream")
        }

        fn discover(&self, request: DiscoverRequest) -> BoxFuture<Answer> {
            assert_eq!(request.headers[ACCEPT], discovery::ACCEPT);
            let mut answers = self.0.lock().unwrap();
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
            Box::pin(async { answer })
        }
    }

    /// Sleeps at once, and counts for how long.
    #[derive(Default)]
    struct Counting(AtomicU64);

    impl Clock for Counting {
        fn now_ms(&self) -> u64 {
            0
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }

        fn sleep(&self, duration: Duration) -> BoxFuture {
            self.0.fetch_add(duration.as_millis() as u64, Ordering::Relaxed);
            Box::pin(async {})
        }
    }

    fn answered(status: u16, content_type: &'static str, body: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(SERVER, HeaderValue::from_static("sdk/1"));
        let status = StatusCode::from_u16(status).unwrap();
        Ok(DiscoverResponse { status, headers, body: body.into(), http: HttpVersion::Http2 })
    }

    fn refused() -> Answer {
        Err(TransportError::Connect { address: "http://h:1".into(), message: "refused".into() })
    }

    const V4: &str = "application/vnd.restate.endpointmanifest.v4+json";
    const EMPTY: &str = r#"{"protocolMode":"BIDI_STREAM","minProtocolVersion":5,"maxProtocolVersion":7,"services":[]}"#;

    /// The result, and how many milliseconds were waited.
    async fn discovered(answers: Vec<Answer>) -> (Result<Discovered, Error>, u64) {
        let clock = Counting::default();
        let transport = Prepared(Mutex::new(answers));
        let result = discover(&transport, &clock, "http://h:1/", HttpVersion::Http2, HeaderMap::new()).await;
        (result, clock.0.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn what_may_pass_is_tried_again() {
        let (result, waited) = discovered(vec![refused(), answered(503, V4, ""), answered(200, V4, EMPTY)]).await;
        assert_eq!(result.unwrap().sdk_version.as_deref(), Some("sdk/1"));
        assert_eq!(waited, 300);
        let (result, waited) = discovered(vec![refused()]).await;
        let error = result.unwrap_err();
        assert_eq!((error.code(), error.status().as_u16(), waited), ("META0003", 500, 700));
    }

    #[tokio::test]
    async fn the_version_that_the_endpoint_chose_is_kept() {
        let answer = DiscoverResponse { http: HttpVersion::Http11, ..answered(200, V4, EMPTY).unwrap() };
        let (result, _) = discovered(vec![Ok(answer)]).await;
        assert_eq!(result.unwrap().http, HttpVersion::Http11);
    }

    #[tokio::test]
    async fn a_peer_that_closes_on_http2_and_answers_http11_is_told_apart() {
        let broken = || Err(TransportError::NoHttp2 { address: "http://h:1".into(), message: "closes it".into() });
        let (result, _) = discovered(vec![broken(), broken(), broken(), broken(), answered(404, V4, "")]).await;
        assert_eq!(result.unwrap_err().code(), "META0014");
        let (result, _) = discovered(vec![broken()]).await;
        assert_eq!(result.unwrap_err().code(), "META0003");
    }

    #[tokio::test]
    async fn what_will_not_pass_is_told_at_once() {
        for (answer, code, says) in [
            (answered(404, V4, ""), "META0003", "path of the address"),
            (answered(415, V4, ""), "META0003", "no discovery version"),
            (answered(200, "text/html", "<html>"), "META0013", "text/html"),
            (answered(200, V4, "{"), "META0013", "EOF"),
            (
                answered(
                    200,
                    V4,
                    r#"{"protocolMode":"BIDI_STREAM","minProtocolVersion":1,"maxProtocolVersion":3,"services":[]}"#,
                ),
                "META0012",
                "1 to 3",
            ),
            (Err(TransportError::Http1Peer { address: "http://h:1".into() }), "META0014", "use_http_11"),
        ] {
            let (result, waited) = discovered(vec![answer]).await;
            let error = result.unwrap_err();
            assert_eq!((error.code(), waited), (code, 0), "{error}");
            assert!(error.message().contains(says) && error.message().starts_with(&format!("[{code}]")), "{error}");
        }
    }
}
