//! The client against a small server of the documented shapes.
#![expect(clippy::unwrap_used, reason = "the server here is part of the test")]

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::time::Duration;
use surefoot_client::admin::{NewDeployment, NewSubscription};
use surefoot_client::ingress::{Call, SendStatus, Target};
use surefoot_client::{Admin, Error, Ingress, Source};

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

fn refusal(status: u16, source: &'static str, body: &'static str) -> Response {
    let headers = [("x-restate-error-source", source), ("content-type", "application/json")];
    (StatusCode::from_u16(status).unwrap(), headers, body).into_response()
}

async fn call(Path((service, key, handler)): Path<(String, String, String)>, headers: HeaderMap, body: Bytes) -> Response {
    match key.as_str() {
        "teapot" => refusal(200, "invocation", r#"{"code":200,"message":"short and stout","source":"invocation"}"#),
        _ => {
            let kind = headers[header::CONTENT_TYPE].to_str().unwrap();
            let text = format!("\"{service} {key} {handler} {kind} {}\"", String::from_utf8_lossy(&body));
            ([("x-restate-id", "inv_1x")], text).into_response()
        }
    }
}

#[tokio::test]
async fn calls_sends_and_refusals() {
    let sent = |RawQuery(query): RawQuery, headers: HeaderMap| async move {
        assert_eq!(query.as_deref(), Some("delay=1500ms"));
        assert_eq!(headers["idempotency-key"], "once");
        let body = r#"{"invocationId":"inv_1y","executionTime":"2026-11-23T03:07:32.353000000Z","status":"PreviouslyAccepted"}"#;
        (StatusCode::ACCEPTED, body)
    };
    let router = Router::new()
        .route("/restate/call/{service}/{key}/{handler}", post(call))
        .route("/restate/send/{service}/{handler}", post(sent))
        .route(
            "/restate/invocation/{id}/output",
            get(|| async { refusal(470, "ingress", r#"{"code":470,"message":"not yet"}"#) }),
        );
    let ingress = Ingress::new(&serve(router).await).unwrap();

    let reply = ingress.call(Call::new(Target::keyed("Obj", "a/b c", "set")).json(&1)).await.unwrap();
    assert_eq!(reply.json::<String>().unwrap(), "Obj a/b c set application/json 1");
    assert_eq!(reply.invocation, "inv_1x");

    let error = ingress.call(Call::new(Target::keyed("Obj", "teapot", "set")).json(&1)).await.unwrap_err();
    assert!(error.is_terminal(), "a failure may choose a status of success: {error}");
    assert!(matches!(&error, Error::Refused { message, .. } if message == "short and stout"));

    let send = Call::new(Target::service("Svc", "go")).idempotency_key("once").delay(Duration::from_millis(1500));
    let sent = ingress.send(send).await.unwrap();
    assert_eq!((sent.invocation.as_str(), sent.status), ("inv_1y", SendStatus::PreviouslyAccepted));

    assert!(ingress.output("inv_1y").await.unwrap().is_none(), "470 means not ready");

    let unsendable = ingress.call(Call::new(Target::service("Svc", "go")).header("a b", "c")).await.unwrap_err();
    assert!(unsendable.to_string().contains("a b: c"), "{unsendable}");
}

#[tokio::test]
async fn admin_shapes() {
    let registered = r#"{"id":"dp_1","services":[{"name":"Obj","revision":3,"ty":"VirtualObject"}],
        "min_protocol_version":5,"max_protocol_version":7,"sdk_version":"an-sdk/1"}"#;
    let subscription = r#"{"id":"sub_1","source":"kafka://m/t","sink":"service://Obj/set","options":{"group.id":"sub_1"},
        "status":"running","partitions":[{"partition":0,"position":4,"high_watermark":6,"lag":2}]}"#;
    let router = Router::new()
        .route("/deployments", post(move || async move { (StatusCode::CREATED, registered) }))
        .route("/subscriptions/sub_1", get(move || async move { subscription }))
        .route(
            "/subscriptions",
            post(|| async { (StatusCode::BAD_REQUEST, r#"{"message":"[META0009] no such handler","restate_code":"META0009"}"#) }),
        )
        .route("/services", get(|| async { (StatusCode::OK, "{}") }))
        .route("/health", get(|| async { (StatusCode::SERVICE_UNAVAILABLE, "recovering\n") }));
    let admin = Admin::new(&serve(router).await).unwrap();

    let deployment = admin.register(&NewDeployment::at("http://127.0.0.1:9080")).await.unwrap();
    assert_eq!((deployment.id.as_str(), deployment.services[0].revision), ("dp_1", 3));

    let subscription = admin.subscription("sub_1").await.unwrap();
    assert_eq!(subscription.partitions[0].lag, Some(2));

    let error = admin.subscribe(&NewSubscription::new("m", "t", "Obj", "nope")).await.unwrap_err();
    let Error::Refused { status: 400, source_of_refusal: Source::Server, code, .. } = &error else { panic!("{error}") };
    assert_eq!(code, "META0009");

    let error = admin.health().await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(error.to_string(), "recovering (status 503)", "plain text is a message, too");

    assert!(matches!(admin.services().await.unwrap_err(), Error::Unexpected { .. }));
}

#[tokio::test]
async fn nobody_there_and_no_answer() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let limit = Duration::from_millis(50);
    let silent = Admin::new(&address).unwrap().with_timeout(limit);
    assert!(matches!(silent.health().await.unwrap_err(), Error::Timeout { .. }));

    drop(listener);
    let error = Admin::new(&address).unwrap().health().await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("refused"), "{error}");
}
