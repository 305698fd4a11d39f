//! Calls and sends, their checks and their answers.

use crate::World;
use tempfile::tempdir;

const JSON: &str = "content-type: application/json";

#[tokio::test]
async fn calls_reach_handlers_in_both_spellings() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    for path in [
        "/Svc/echo",
        "/Svc/echo/",
        "/restate/call/Svc/echo",
        "/Obj/a%2Fb/echo",
        "/Obj//echo",
        "/restate/call/Obj/k/peek",
        "/Wf/w1/peek",
    ] {
        let answer = world.call(&format!("POST {path}"), &[JSON], r#"{"n":1}"#).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"n":1}"#), "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(answer.header("x-restate-id").unwrap().starts_with("inv_1"));
    }
    let empty = world.call("GET /Svc/echo", &[], "").await;
    assert_eq!((empty.status, empty.body.as_str(), empty.header("content-type")), (200, "", None));
    world.stop().await;
}

#[tokio::test]
async fn handlers_get_the_headers_of_the_request() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let headers = ["X-A: 1", "x-a: 2", "authorization: me", "idempotency-key: k"];
    let answer = world.call("GET /Svc/headers/?q=1&z=%20", &headers, "").await;
    let mut got: Vec<(String, String)> = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(got.remove(0), ("x-restate-ingress-path".into(), "/Svc/headers?q=1&z=%20".into()));
    got.sort_unstable();
    assert_eq!(got, [("authorization".into(), "me".into()), ("x-a".into(), "1".into())]);
    world.stop().await;
}

#[tokio::test]
async fn sends_are_accepted_once_per_idempotency_key() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let plain = world.call("POST /restate/send/Svc/echo", &[], "").await;
    assert_eq!((plain.status, plain.json()["status"].as_str()), (202, Some("Accepted")));
    assert_eq!(plain.header("x-restate-id"), plain.json()["invocationId"].as_str());
    assert!(plain.json().get("executionTime").is_none());

    let key = ["idempotency-key: k1"];
    let first = world.call("POST /Obj/a/echo/send?delay=1d", &key, "").await.json();
    let again = world.call("POST /Obj/a/echo/send?delay=1h", &key, "").await.json();
    assert_eq!((&first["status"], &again["status"]), (&"Accepted".into(), &"PreviouslyAccepted".into()));
    assert_eq!((&first["invocationId"], &first["executionTime"]), (&again["invocationId"], &again["executionTime"]));
    assert!(first["executionTime"].as_str().unwrap().ends_with("000000Z"));

    let call = world.call("POST /Svc/echo", &[JSON, key[0]], "1").await;
    let replay = world.call("POST /Svc/echo", &[JSON, key[0]], "2").await;
    assert_eq!((call.body.as_str(), replay.body.as_str()), ("1", "1"));
    assert_eq!(call.header("idempotency-expires"), None);
    assert!(replay.header("idempotency-expires").unwrap().ends_with("+00:00"));
    world.stop().await;
}

#[tokio::test]
async fn a_workflow_runs_once_per_key() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    assert_eq!(world.call("POST /Wf/w1/run", &[JSON], "1").await.body, "1");
    let again = world.call("POST /Wf/w1/run", &[JSON], "2").await;
    assert_eq!((again.status, again.source().as_str()), (409, "invocation"));
    let send = world.call("POST /Wf/w1/run/send", &[JSON], "3").await;
    assert_eq!((send.status, &send.json()["status"]), (202, &"PreviouslyAccepted".into()));
    let keyed = world.call("POST /Wf/w2/run", &[JSON, "idempotency-key: k"], "1").await;
    assert_eq!((keyed.status, keyed.source().as_str()), (400, "ingress"));
    world.stop().await;
}

#[tokio::test]
async fn a_terminal_failure_is_the_answer() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let answer = world.call("POST /Svc/fail", &[], "").await;
    assert_eq!((answer.status, answer.source().as_str()), (418, "invocation"));
    assert_eq!(answer.body, r#"{"code":418,"message":"teapot","metadata":{"a":"b"},"source":"invocation"}"#);
    assert!(answer.header("x-restate-id").is_some());
    world.stop().await;
}

#[tokio::test]
async fn what_is_refused_and_why() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    for (line, headers, body, status) in [
        ("POST /", &[][..], "", 400),
        ("POST /Svc", &[], "", 400),
        ("GET /restate", &[], "", 400),
        ("POST /a/b/c/d/e/f/g/h", &[], "", 400),
        ("POST /Nope/echo", &[], "", 404),
        ("POST /Svc/nope", &[], "", 404),
        ("PUT /Svc/nope", &[], "", 404),
        ("POST /Svc/k/echo", &[], "", 400),
        ("POST /Obj/echo", &[], "", 400),
        ("POST /Obj/%FF/echo", &[], "", 400),
        ("POST /Priv/echo", &[], "", 400),
        ("POST /Svc/hidden", &[], "", 400),
        ("PUT /Svc/hidden", &[], "", 400),
        ("PUT /Svc/echo", &[JSON], "1", 405),
        ("DELETE /Svc/echo", &[], "", 405),
        ("POST /Svc/echo", &["content-type: text/plain"], "1", 400),
        ("POST /Svc/echo", &[], "1", 400),
        ("POST /Svc/echo?delay=1s", &[JSON], "1", 400),
        ("POST /Svc/echo/send?delay=1000", &[JSON], "1", 400),
        ("POST /Svc/echo/send?delay=P1M", &[JSON], "1", 400),
        ("POST /Svc/echo", &["x-a: \u{e9}"], "", 400),
        ("POST /Svc/echo", &["idempotency-key: \u{e9}"], "", 400),
        ("POST /restate/scope/s/call/Svc/echo", &[], "", 400),
        ("POST /restate/a/sign_1x/resolve", &[], "", 404),
        ("GET /restate/attach/inv_1x", &[], "", 404),
        ("GET /restate/nope/x", &[], "", 404),
        ("GET /openapi/Svc", &[], "", 404),
        ("POST /restate/health", &[], "", 405),
        ("HEAD /restate/health", &[], "", 405),
    ] {
        let answer = world.call(line, headers, body).await;
        assert_eq!(answer.status, status, "{line} {headers:?}: {}", answer.body);
        if !line.starts_with("HEAD") {
            assert_eq!(answer.source(), "ingress", "{line}");
        }
    }
    // A key names state, and an idempotency key a result: each was as long as a request's head may be.
    let longest = "k".repeat(12_000);
    let named = world.call("POST /Svc/echo", &[JSON, &format!("idempotency-key: {longest}")], "1").await;
    assert_eq!(named.status, 200, "{}", named.body);
    let longer = world.call("POST /Svc/echo", &[JSON, &format!("idempotency-key: {longest}k")], "1").await;
    let keyed = world.call(&format!("POST /Obj/{longest}k/echo"), &[JSON], "1").await;
    for refused in [longer, keyed] {
        assert_eq!((refused.status, &refused.json()["restate_code"]), (400, &"SF1007".into()), "{}", refused.body);
    }
    world.stop().await;
}

#[tokio::test]
async fn bodies_and_requests_in_progress_are_bounded() {
    let dir = tempdir().unwrap();
    let world = World::with(dir.path(), |config| {
        config.ingress.request_bytes_max = 10;
        config.ingress.requests_max = Some(1);
    })
    .await;
    let known = world.call("POST /Svc/echo", &[JSON], "12345678901").await;
    assert_eq!((known.status, known.json()["restate_code"].as_str()), (413, Some("SF1013")), "{}", known.body);
    let chunked = world.call("POST /Svc/echo", &[JSON, "transfer-encoding: chunked"], "b\r\n12345678901\r\n0\r\n\r\n").await;
    assert_eq!((chunked.status, chunked.source().as_str()), (413, "ingress"));

    let (overloaded, ()) = tokio::join!(
        async {
            // The first call holds the only place until its invocation is killed.
            let hanging = async { world.call("POST /Svc/hang", &["idempotency-key: k"], "").await };
            hanging.await
        },
        async {
            let id = loop {
                let found = world.ask("GET /invocations?service=Svc&status=running").await.json();
                if let Some(id) = found["invocations"][0]["id"].as_str() {
                    break id.to_owned();
                }
            };
            let second = world.call("GET /restate/health", &[], "").await;
            assert_eq!((second.status, second.source().as_str()), (429, "ingress"));
            assert_eq!(world.call("OPTIONS /Svc/hang", &[], "").await.status, 200);
            assert_eq!(world.ask(&format!("PATCH /invocations/{id}/kill")).await.status, 200);
        }
    );
    assert_eq!((overloaded.status, overloaded.source().as_str()), (409, "invocation"));
    assert_eq!(world.call("GET /restate/health", &[], "").await.status, 200);
    world.stop().await;
}

/// A hundred connections of HTTP/2 with a thousand requests each took 700 MB, the more the larger their headers.
#[tokio::test]
async fn a_request_with_much_in_its_head_counts_as_several() {
    let dir = tempdir().unwrap();
    let world = World::with(dir.path(), |config| config.ingress.requests_max = Some(3)).await;
    let large = format!("x-large: {}", "x".repeat(2 * surefoot_ingress::REQUEST_BYTES));
    assert_eq!(world.call("POST /Svc/echo", &[JSON, &large], "1").await.status, 200, "it is alone");
    tokio::join!(
        async {
            let killed = world.call("POST /Svc/hang", &["idempotency-key: k"], "").await;
            assert_eq!((killed.status, killed.source().as_str()), (409, "invocation"));
        },
        async {
            let id = loop {
                let found = world.ask("GET /invocations?service=Svc&status=running").await.json();
                if let Some(id) = found["invocations"][0]["id"].as_str() {
                    break id.to_owned();
                }
            };
            let refused = world.call("POST /Svc/echo", &[JSON, &large], "1").await;
            assert_eq!((refused.status, refused.source().as_str()), (429, "ingress"));
            assert_eq!(world.call("POST /Svc/echo", &[JSON], "1").await.status, 200, "a small one finds its place");
            assert_eq!(world.ask(&format!("PATCH /invocations/{id}/kill")).await.status, 200);
        }
    );
    world.stop().await;
}

#[tokio::test]
async fn browsers_may_call_for_pages_that_the_operator_allows() {
    let dir = tempdir().unwrap();
    let world = World::with(dir.path(), |config| config.ingress.allowed_origins = vec!["http://x.y".to_owned()]).await;
    let headers = ["origin: http://x.y", "access-control-request-method: PUT", "access-control-request-headers: x-a"];
    let preflight = world.call("OPTIONS /any/path/at/all", &headers, "").await;
    assert_eq!((preflight.status, preflight.body.as_str()), (200, ""));
    assert_eq!(preflight.header("access-control-allow-origin"), Some("http://x.y"));
    assert_eq!(preflight.header("access-control-allow-methods"), Some("PUT"));
    assert_eq!(preflight.header("access-control-allow-headers"), Some("x-a"));
    let health = world.call("GET /restate/health", &[], "").await;
    assert_eq!(health.json()["services"].as_array().unwrap().len(), 4);
    assert!(health.header("vary").is_some());
    let near = world.call("GET /Svc/echo", &["origin: http://localhost:3000"], "").await;
    assert_eq!((near.status, near.header("access-control-allow-origin")), (200, Some("http://localhost:3000")));
    for headers in [&["origin: http://evil.example.com"][..], &["origin: null"], &["sec-fetch-site: cross-site"]] {
        let refused = world.call("GET /Svc/echo", headers, "").await;
        assert_eq!((refused.status, refused.source().as_str()), (403, "ingress"), "{headers:?}");
        assert_eq!(refused.header("access-control-allow-origin"), None);
    }
    world.stop().await;
}

#[tokio::test]
async fn a_name_that_resolves_here_is_no_way_in() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = tempdir().unwrap();
    let world = World::with(dir.path(), |config| config.allowed_hosts = vec!["flows.example.com".to_owned()]).await;
    for (host, status) in [("rebound.example.com", 403), ("flows.example.com:8080", 200), ("localhost", 200)] {
        for (address, path) in [(world.serving.summary().ingress, "/restate/health"), (world.serving.summary().admin, "/version")]
        {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {text}");
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn clients_that_write_all_before_they_read_learn_why_they_are_refused() {
    use http_body_util::{BodyExt, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let dir = tempdir().unwrap();
    let world = World::with(dir.path(), |config| config.ingress.request_bytes_max = 1 << 20).await;
    let large = "x".repeat(4 << 20);
    // The client of these tests writes all first.
    let told = world.call("POST /Svc/echo", &[JSON], &large).await;
    assert_eq!((told.status, told.json()["restate_code"].as_str()), (413, Some("SF1013")), "{}", told.body);
    let told = world.call("POST /Nobody/echo", &[JSON], &large[..1 << 20]).await;
    assert_eq!(told.status, 404);
    let stream = tokio::net::TcpStream::connect(world.serving.summary().ingress).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    for (path, status) in [("/Svc/echo", 413), ("/Nobody/echo", 413), ("/restate/nope/x", 413)] {
        let uri = format!("http://{}{path}", world.serving.summary().ingress);
        let request = hyper::Request::post(uri).body(Full::new(bytes::Bytes::from(large.clone()))).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        response.into_body().collect().await.unwrap();
    }
    drop(client);
    connection.await.unwrap().unwrap();
    world.stop().await;
}

#[tokio::test]
async fn a_send_survives_a_restart() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let id = world.sent_until("/Obj/a/echo/send?delay=1d", "scheduled").await;
    world.stop().await;
    let world = World::bare(dir.path(), |_| ()).await;
    assert_eq!(world.ask(&format!("GET /invocations/{id}")).await.json()["status"], "scheduled");
    assert_eq!(world.call("GET /restate/health", &[], "").await.json()["services"].as_array().unwrap().len(), 4);
    world.stop().await;
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_spoken_on_the_same_port() {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    for (address, path) in [(world.serving.summary().ingress, "/restate/health"), (world.serving.summary().admin, "/version")] {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = hyper::Request::get(format!("http://{address}{path}")).body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!((response.status(), response.version()), (hyper::StatusCode::OK, hyper::Version::HTTP_2));
        assert!(!response.into_body().collect().await.unwrap().to_bytes().is_empty());
        drop(client);
        connection.await.unwrap().unwrap();
    }
    world.stop().await;
}
