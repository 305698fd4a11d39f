//! Answers as HTTP responses.
//!
//! Owns: status, headers and bodies of results, acceptances and errors. Source: HTTP reference 1.8 and 1.9. Does not own: which
//! error has which status (`error`).

use crate::{Accepted, Completed, Error, ErrorSource};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;
use std::collections::BTreeMap;
use surefoot_model::{Failure, InvocationId, Outcome, Timestamp};

pub(crate) type ReplyBody = Full<Bytes>;
pub(crate) type Reply = Response<ReplyBody>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const INVOCATION_ID: HeaderName = HeaderName::from_static("x-restate-id");
const ERROR_SOURCE: HeaderName = HeaderName::from_static("x-restate-error-source");
const EXPIRES: HeaderName = HeaderName::from_static("idempotency-expires");

/// Codes of failures that are an HTTP status. What lies below 200 cannot end a response.
const STATUS_CODES: std::ops::RangeInclusive<u32> = 200..=999;

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: u32,
    message: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stacktrace: Option<&'a str>,
    source: &'static str,
    /// Stable; `docs/errors.md` says what to do about it. Named as in the API of operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    restate_code: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AcceptedBody {
    invocation_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    execution_time: Option<String>,
    status: &'static str,
}

pub(crate) fn completed(completed: Completed) -> Reply {
    let mut reply = match &completed.outcome {
        Outcome::Success(body) => {
            let mut reply = Response::new(Full::new(body.clone()));
            // A declared type that is no header value is left out.
            if let Some(value) = completed.content_type.and_then(content_type) {
                reply.headers_mut().insert(CONTENT_TYPE, value);
            }
            reply
        }
        Outcome::Failure(failure) => failed(failure),
    };
    set_id(&mut reply, completed.id);
    if let Some(value) = completed.expires_at.and_then(|at| HeaderValue::try_from(milliseconds(at)).ok()) {
        reply.headers_mut().insert(EXPIRES, value);
    }
    reply
}

pub(crate) fn accepted(accepted: &Accepted) -> Reply {
    let body = AcceptedBody {
        invocation_id: accepted.id.to_string(),
        execution_time: accepted.execute_at.map(nanoseconds),
        status: if accepted.existing { "PreviouslyAccepted" } else { "Accepted" },
    };
    let mut reply = json(StatusCode::ACCEPTED, &body);
    set_id(&mut reply, accepted.id);
    reply
}

pub(crate) fn error(error: &Error) -> Reply {
    let status = error.status();
    let message = error.to_string();
    let body = ErrorBody {
        code: u32::from(status.as_u16()),
        message: &message,
        metadata: BTreeMap::new(),
        stacktrace: None,
        source: error.source().as_str(),
        restate_code: error.code(),
    };
    let mut reply = json(status, &body);
    set_source(&mut reply, error.source());
    if let Some(seconds) = error.retry_after_s() {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(id) = error.invocation() {
        set_id(&mut reply, id);
    }
    reply
}

pub(crate) fn health(services: Vec<&str>) -> Reply {
    #[derive(Serialize)]
    struct Health<'a> {
        services: Vec<&'a str>,
    }
    json(StatusCode::OK, &Health { services })
}

/// Nearly all are JSON, which is at hand.
fn content_type(ty: String) -> Option<HeaderValue> {
    if ty == "application/json" { Some(JSON) } else { HeaderValue::try_from(ty).ok() }
}

fn failed(failure: &Failure) -> Reply {
    let status = Some(failure.code).filter(|code| STATUS_CODES.contains(code));
    let status = status.and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
    let body = ErrorBody {
        code: failure.code,
        message: &failure.message,
        metadata: failure.metadata.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        stacktrace: failure.stacktrace.as_deref(),
        source: ErrorSource::Invocation.as_str(),
        restate_code: None,
    };
    let mut reply = json(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &body);
    set_source(&mut reply, ErrorSource::Invocation);
    reply
}

fn json(status: StatusCode, body: &impl Serialize) -> Reply {
    let bytes = serde_json::to_vec(body).expect("texts, numbers and maps with text keys are JSON");
    let mut reply = Response::new(Full::new(Bytes::from(bytes)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, JSON);
    reply
}

fn set_id(reply: &mut Reply, id: InvocationId) {
    let value = HeaderValue::try_from(id.to_string()).expect("an id is base62");
    reply.headers_mut().insert(INVOCATION_ID, value);
}

fn set_source(reply: &mut Reply, source: ErrorSource) {
    reply.headers_mut().insert(ERROR_SOURCE, HeaderValue::from_static(source.as_str()));
}

/// RFC 3339 with nine digits.
fn nanoseconds(at: Timestamp) -> String {
    format!("{:.9}", instant(at))
}

/// RFC 3339 with three digits and a numeric zone.
fn milliseconds(at: Timestamp) -> String {
    let text = format!("{:.3}", instant(at));
    format!("{}+00:00", text.trim_end_matches('Z'))
}

/// Times beyond the year 9999 are shown as its end.
fn instant(at: Timestamp) -> jiff::Timestamp {
    i64::try_from(at.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()).unwrap_or(jiff::Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};
    use surefoot_partition::Stopped;

    const ID: &str = "inv_1foAirY4KKzi1km2ki69rm6NaxO6wflYsO";

    fn id() -> InvocationId {
        ID.parse().unwrap()
    }

    fn text(reply: Reply) -> String {
        let mut body = reply.into_body();
        match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(frame))) => String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap(),
            _ => String::new(),
        }
    }

    fn of_failure(failure: Failure) -> Reply {
        completed(Completed { id: id(), outcome: Outcome::Failure(failure), expires_at: None, content_type: None })
    }

    #[test]
    fn a_success_is_the_raw_output() {
        let outcome = Outcome::Success(Bytes::from_static(b"{}"));
        let expires_at = Some(Timestamp(1_795_489_093_856));
        let reply = completed(Completed { id: id(), outcome, expires_at, content_type: Some("application/json".into()) });
        assert_eq!(reply.status(), 200);
        assert_eq!(reply.headers()["x-restate-id"], ID);
        assert_eq!(reply.headers()["content-type"], "application/json");
        assert_eq!(reply.headers()["idempotency-expires"], "2026-11-24T02:58:13.856+00:00");
        assert_eq!(text(reply), "{}");
    }

    #[test]
    fn an_acceptance_names_the_invocation() {
        let reply = accepted(&Accepted { id: id(), existing: false, execute_at: None });
        assert_eq!(reply.status(), 202);
        assert_eq!(reply.headers()["x-restate-id"], ID);
        assert_eq!(text(reply), format!(r#"{{"invocationId":"{ID}","status":"Accepted"}}"#));
        let reply = accepted(&Accepted { id: id(), existing: true, execute_at: Some(Timestamp(1_795_403_252_353)) });
        assert_eq!(
            text(reply),
            format!(
                r#"{{"invocationId":"{ID}","executionTime":"2026-11-23T03:07:32.353000000Z","status":"PreviouslyAccepted"}}"#
            )
        );
    }

    #[test]
    fn the_code_of_a_failure_is_the_status_where_it_can_be() {
        for (code, status) in
            [(418, 418), (200, 200), (302, 302), (999, 999), (100, 500), (0, 500), (42, 500), (1000, 500), (65_535, 500)]
        {
            let reply = of_failure(Failure::new(code, "m"));
            assert_eq!(reply.status(), status);
            assert_eq!(reply.headers()["x-restate-error-source"], "invocation");
            assert_eq!(text(reply), format!(r#"{{"code":{code},"message":"m","source":"invocation"}}"#));
        }
    }

    #[test]
    fn failures_carry_metadata_and_stacktrace() {
        let failure = Failure {
            code: 500,
            message: "m".into(),
            metadata: vec![("a".into(), "b".into())],
            stacktrace: Some("Error: …".into()),
        };
        assert_eq!(
            text(of_failure(failure)),
            r#"{"code":500,"message":"m","metadata":{"a":"b"},"stacktrace":"Error: …","source":"invocation"}"#
        );
    }

    #[test]
    fn errors_say_who_they_come_from() {
        let reply = error(&Error::ServiceNotFound("Nope".into()));
        assert_eq!(reply.status(), 404);
        assert_eq!(reply.headers()["x-restate-error-source"], "ingress");
        assert!(!reply.headers().contains_key("x-restate-id"));
        assert!(text(reply).starts_with(r#"{"code":404,"message":"service 'Nope' not found"#));
        let reply = error(&Error::Stopped(Stopped::DiskFull));
        assert_eq!((reply.status().as_u16(), &reply.headers()["retry-after"]), (503, &HeaderValue::from_static("2")));
        for (refused, code, seconds) in [(Error::TooManyRequests, "SF1020", "1"), (Error::NoRoom, "SF1021", "5")] {
            let reply = error(&refused);
            assert_eq!(reply.headers()["retry-after"], seconds);
            assert!(text(reply).ends_with(&format!(r#""source":"ingress","restate_code":"{code}"}}"#)));
        }
        let reply = error(&Error::AlreadyInvoked(id()));
        assert_eq!(reply.status(), 409);
        assert_eq!(reply.headers()["x-restate-id"], ID);
        assert_eq!(text(reply), r#"{"code":409,"message":"the workflow method was already invoked","source":"invocation"}"#);
    }
}
