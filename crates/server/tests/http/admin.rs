//! What operators do.

use crate::World;
use crate::client::{Answer, last, send};
use crate::endpoint::Endpoint;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use surefoot_server::config::Address;
use tempfile::tempdir;
use tokio::net::TcpStream;

#[tokio::test]
async fn an_endpoint_is_registered_once() {
    let dir = tempdir().unwrap();
    let world = World::bare(dir.path(), |_| ()).await;
    let uri = world.uri();
    let request = |flags: Value| {
        let mut body = json!({"uri": uri, "metadata": {"k": "v"}, "additional_headers": {"X-K": "v"}});
        body.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
        body
    };
    let dry = world.post("/deployments", &request(json!({"dry_run": true}))).await;
    assert_eq!(dry.status, 201);
    assert_eq!(world.ask("GET /deployments").await.body, r#"{"deployments":[]}"#);

    let made = world.post("/deployments", &request(json!({}))).await;
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!((made.status, made.header("location")), (201, Some(format!("deployments/{id}").as_str())));
    assert_eq!((&made.json()["sdk_version"], &made.json()["max_protocol_version"]), (&"endpoint/1".into(), &7.into()));
    let asked = world.endpoint.discoveries();
    let again = world.post("/v3/deployments", &request(json!({"dry_run": true}))).await;
    assert_eq!((again.status, again.json()["id"].as_str(), world.endpoint.discoveries()), (200, Some(id.as_str()), asked));
    let refused = world.post("/v2/deployments", &request(json!({"force": false}))).await;
    assert_eq!((refused.status, &refused.json()["restate_code"]), (409, &"META0004".into()));
    assert_eq!(world.post("/v2/deployments", &request(json!({}))).await.status, 201, "force is the default of version 2");
    let forced = world.post("/deployments", &request(json!({"force": true}))).await;
    assert_eq!((forced.status, forced.json()["id"].as_str()), (200, Some(id.as_str())));
    assert!(forced.json()["services"].as_array().unwrap().iter().all(|service| service["revision"] == 3));

    let listed = world.ask("GET /v4/deployments").await.json();
    let listed = &listed["deployments"][0];
    assert_eq!(
        (&listed["uri"], &listed["protocol_type"], &listed["http_version"]),
        (&format!("{uri}/").into(), &"BidiStream".into(), &"HTTP/2.0".into())
    );
    assert_eq!((&listed["additional_headers"], &listed["metadata"]), (&json!({"x-k": "v"}), &json!({"k": "v"})));
    assert_eq!(listed["services"].as_array().unwrap().len(), 4);
    let one = world.ask(&format!("GET /deployments/{id}")).await.json();
    assert!(one["services"][0]["handlers"].is_array());

    let refused = world.ask(&format!("DELETE /deployments/{id}")).await;
    assert_eq!((refused.status, refused.body.contains("add ?force=true")), (501, true), "{}", refused.body);
    assert_eq!(world.ask(&format!("DELETE /deployments/{id}?force=true")).await.status, 202);
    assert_eq!(world.ask(&format!("DELETE /deployments/{id}?force=true")).await.status, 404);
    assert_eq!(world.ask(&format!("GET /deployments/{id}")).await.status, 404);
    assert_eq!(world.ask("GET /services").await.body, r#"{"services":[]}"#);
    world.stop().await;
}

#[tokio::test]
async fn what_cannot_be_registered_says_why() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let changed = Endpoint::start(r#"{"name":"Svc","ty":"VIRTUAL_OBJECT","handlers":[]}"#).await;
    let reserved = Endpoint::start(r#"{"name":"restateful","ty":"SERVICE","handlers":[]}"#).await;
    let garbage = Endpoint::start("{").await;
    // The node itself is an endpoint that answers 400 and 404.
    let itself = world.serving.summary().admin;
    for (uri, status, code) in [
        (json!(format!("http://{}", changed.address)), 409, json!("META0006")),
        (json!(format!("http://{}", reserved.address)), 400, json!("META0005")),
        (json!(format!("http://{}", garbage.address)), 500, json!("META0013")),
        (json!(format!("http://{itself}")), 500, json!("META0003")),
        (json!("http://127.0.0.1:1"), 500, json!("META0003")),
        (json!("nonsense"), 400, json!("SF2002")),
    ] {
        let answer = world.post("/deployments", &json!({"uri": uri})).await;
        assert_eq!((answer.status, &answer.json()["restate_code"]), (status, &code), "{uri}: {}", answer.body);
        if let Some(code) = code.as_str() {
            assert!(answer.json()["message"].as_str().unwrap().starts_with(&format!("[{code}] ")));
        }
    }
    let address = world.serving.summary().admin;
    for (content_type, body, status) in [
        ("content-type: application/json", "{", 400),
        ("content-type: application/json", "{}", 422),
        ("content-type: application/json", r#"{"uri":1}"#, 422),
        ("x-none: 1", r#"{"uri":"http://h"}"#, 415),
    ] {
        let answer = send(address, "POST /deployments", &[content_type], body).await;
        assert_eq!((answer.status, &answer.json()["restate_code"]), (status, &"SF2026".into()), "{body}");
        assert!(answer.json()["message"].as_str().unwrap().starts_with("[SF2026] "), "{}", answer.body);
    }
    let breaking = world.post("/deployments", &json!({"uri": format!("http://{}", changed.address), "breaking": true})).await;
    assert_eq!((breaking.status, &breaking.json()["services"][0]["revision"]), (201, &2.into()));
    world.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_speaks_http11_only_is_told_apart() {
    let dir = tempdir().unwrap();
    let world = World::bare(dir.path(), |_| ()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service =
                hyper::service::service_fn(|_| async { Ok::<_, std::convert::Infallible>(hyper::Response::new(String::new())) });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(hyper_util::rt::TokioIo::new(stream), service),
            );
        }
    });
    let answer = world.post("/deployments", &json!({"uri": uri})).await;
    assert_eq!((answer.status, &answer.json()["restate_code"]), (500, &"META0014".into()), "{}", answer.body);
    assert!(answer.body.contains("use_http_11"));
    world.stop().await;
}

#[tokio::test]
async fn services_and_handlers_are_shown() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let service = world.ask("GET /services/Wf").await.json();
    assert_eq!(
        (&service["ty"], &service["workflow_completion_retention"], &service["public"]),
        (&"Workflow".into(), &"1d".into(), &true.into())
    );
    assert_eq!(world.ask("GET /services/Priv").await.json()["public"], false);
    assert_eq!(world.ask("GET /v2/services/Svc/handlers").await.json()["handlers"].as_array().unwrap().len(), 5);
    assert_eq!(world.ask("GET /services/Obj/handlers/peek").await.json()["ty"], "Shared");
    for path in ["/services/Nope", "/services/Nope/handlers", "/services/Obj/handlers/nope"] {
        let answer = world.ask(&format!("GET {path}")).await;
        assert_eq!((answer.status, &answer.json()["restate_code"]), (404, &"SF2004".into()), "{path}");
    }
    world.stop().await;
}

#[tokio::test]
async fn the_port_speaks_versions_two_to_four() {
    let dir = tempdir().unwrap();
    let world = World::bare(dir.path(), |_| ()).await;
    let version = world.ask("GET /version").await.json();
    assert_eq!((&version["version"], &version["features"]), (&"1.7.12".into(), &json!({})));
    assert_eq!(version["ingress_endpoint"], format!("http://{}/", world.serving.summary().ingress));
    for (line, status) in [
        ("GET /health", 200),
        ("HEAD /health", 200),
        ("GET /v2/health", 200),
        ("GET /v4/version", 200),
        ("GET /v1/health", 400),
        ("GET /v1", 400),
        ("GET /v5/health", 404),
        ("GET /services/", 404),
        ("GET /nope", 404),
        ("OPTIONS /services", 405),
        ("PUT /deployments", 405),
        ("GET /metrics", 200),
        ("GET /deployments/dp_x", 400),
        ("GET /subscriptions/x", 400),
    ] {
        assert_eq!(world.ask(line).await.status, status, "{line}");
    }
    world.stop().await;
}

/// A script that looked for the code of a refusal found none where the request itself was wrong.
#[tokio::test]
async fn each_request_that_is_not_what_a_route_takes_is_refused_with_a_code() {
    let dir = tempdir().unwrap();
    let world = World::bare(dir.path(), |_| ()).await;
    let address = world.serving.summary().admin;
    let json = "content-type: application/json";
    let subscription = "sub_10000000000000000000001";
    let broken = ["POST /deployments", "POST /kafka-clusters", "PATCH /kafka-clusters/c", "POST /subscriptions", "POST /backup"];
    for line in broken {
        for (content_type, body, status) in [(json, "{", 400), (json, "", 400), (json, "[1]", 422), ("x-none: 1", "{}", 415)] {
            let answer = send(address, line, &[content_type], body).await;
            assert_eq!((answer.status, &answer.json()["restate_code"]), (status, &"SF2026".into()), "{line} {body}");
        }
    }
    for (line, status, code) in [
        ("GET /invocations?state=running", 400, "SF2027"),
        ("GET /invocations?limit=x", 400, "SF2027"),
        ("GET /subscriptions?sinks=a", 400, "SF2027"),
        (&format!("GET /subscriptions/{subscription}/parked?limit=x"), 400, "SF2027"),
        ("DELETE /kafka-clusters/c?force=perhaps", 400, "SF2027"),
        (&format!("DELETE /subscriptions/{subscription}?forse=true"), 400, "SF2027"),
        ("GET /kafka-clusters/c?include_subscriptions=7", 400, "SF2027"),
        ("GET /deployments/dp_x", 400, "SF2005"),
        ("DELETE /deployments/dp_x?force=true", 400, "SF2005"),
        ("GET /subscriptions/x", 400, "SF2005"),
        ("DELETE /subscriptions/x", 400, "SF2005"),
        ("GET /subscriptions/x/parked", 400, "SF2005"),
        (&format!("DELETE /subscriptions/{subscription}/parked/x"), 400, "SF2005"),
        ("GET /invocations/x", 400, "SF2005"),
        ("GET /services/%ff", 400, "SF2005"),
        ("PATCH /invocations/x/nonsense", 404, "SF2030"),
        ("GET /nope", 404, "SF2030"),
        ("GET /v5/health", 404, "SF2030"),
        ("GET /v1/health", 400, "SF2030"),
        ("PUT /deployments", 405, "SF2031"),
    ] {
        let answer = send(address, line, &[], "").await;
        assert_eq!((answer.status, &answer.json()["restate_code"]), (status, &code.into()), "{line}");
        assert_eq!(answer.header("allow").is_some(), status == 405, "{line}");
    }
    world.stop().await;
}

#[tokio::test]
async fn invocations_are_listed_and_operated() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let running = world.sent_until("/Obj/a/hang/send", "running").await;
    let queued = world.sent_until("/Obj/a/echo/send", "pending").await;
    let scheduled = world.sent_until("/Obj/a/echo/send?delay=1d", "scheduled").await;

    let shown = world.ask(&format!("GET /invocations/{running}")).await.json();
    assert_eq!(
        (&shown["target"], &shown["key"], &shown["attempt"], &shown["last_error"]),
        (&"Obj/a/hang".into(), &"a".into(), &1.into(), &Value::Null)
    );
    let listed = world.ask("GET /invocations?service=Obj&key=a&limit=2").await.json();
    assert_eq!(listed["invocations"].as_array().unwrap().len(), 2);
    let rest = world.ask(&format!("GET /invocations?service=Obj&key=a&after={}", listed["next"].as_str().unwrap())).await.json();
    assert_eq!((rest["invocations"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));
    assert_eq!(world.ask("GET /invocations?status=running").await.json()["invocations"][0]["id"], running);

    let operate = async |id: &str, action: &str| world.ask(&format!("PATCH /invocations/{id}/{action}")).await.status;
    for id in [&queued, &scheduled] {
        assert_eq!(operate(id, "pause").await, 409);
        assert_eq!(operate(id, "resume").await, 425);
        assert_eq!(operate(id, "purge").await, 409);
    }
    assert_eq!(operate(&scheduled, "kill").await, 200);
    assert_eq!(operate(&scheduled, "kill").await, 404, "what had not begun leaves no trace");
    assert_eq!(operate(&running, "purge-journal").await, 409);
    assert!([200, 202].contains(&operate(&running, "pause").await));
    world.until(&running, "paused").await;
    assert_eq!(operate(&running, "pause").await, 200);
    assert_eq!(operate(&running, "resume").await, 200);
    world.until(&running, "running").await;
    assert_eq!(operate(&running, "kill").await, 200);
    world.until(&running, "completed").await;
    assert_eq!(world.ask(&format!("GET /invocations/{running}")).await.json()["last_error"], "[409] killed");
    for action in ["kill", "pause", "resume"] {
        assert_eq!(operate(&running, action).await, 409, "{action}");
    }
    world.until(&queued, "completed").await;
    assert_eq!(operate(&queued, "purge-journal").await, 200);
    assert_eq!(operate(&queued, "purge").await, 200);
    assert_eq!(world.ask(&format!("GET /invocations/{queued}")).await.status, 404);
    for (action, status) in [("cancel", 501), ("restart-as-new", 501), ("nonsense", 404)] {
        assert_eq!(operate(&running, action).await, status);
    }
    let malformed = world.ask("PATCH /invocations/inv_x/kill").await;
    assert_eq!((malformed.status, &malformed.json()["restate_code"]), (400, &"SF2005".into()));
    assert_eq!(world.ask("GET /invocations?status=stuck").await.status, 400);
    // A filter that is misspelt would list everything, and a script would kill it all.
    for misspelt in ["/invocations?state=running", "/subscriptions?sinks=a"] {
        let answer = world.ask(&format!("GET {misspelt}")).await;
        assert_eq!(answer.status, 400, "{misspelt}");
        assert!(answer.body.contains("unknown field"), "{}", answer.body);
    }
    world.stop().await;
}

#[tokio::test]
async fn kafka_clusters_are_kept_and_their_secrets_hidden() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let cluster = json!({"name": "m", "properties": {"bootstrap.servers": "127.0.0.1:1", "sasl.password": "secret"}});
    let made = world.post("/kafka-clusters", &cluster).await;
    assert_eq!((made.status, made.header("location")), (201, Some("kafka-clusters/m")));
    assert_eq!(made.json()["properties"]["sasl.password"], "***");
    assert_eq!(world.post("/kafka-clusters", &cluster).await.status, 409);
    assert_eq!(world.post("/kafka-clusters", &json!({"name": "n", "properties": {}})).await.status, 400);
    assert_eq!(world.post("/kafka-clusters", &json!({"name": "n"})).await.status, 422);
    assert_eq!(world.ask("GET /kafka-clusters").await.json()["clusters"][0]["name"], "m");
    assert_eq!(world.ask("GET /kafka-clusters/m").await.json()["subscriptions"], json!([]));
    assert_eq!(world.ask("GET /kafka-clusters/nope").await.status, 404);
    let patch = send(
        world.serving.summary().admin,
        "PATCH /kafka-clusters/m",
        &["content-type: application/json"],
        r#"{"properties":{"bootstrap.servers":"127.0.0.1:2"}}"#,
    );
    assert_eq!(patch.await.json()["properties"], json!({"bootstrap.servers": "127.0.0.1:2"}));
    assert_eq!(world.ask("DELETE /kafka-clusters/m").await.status, 202);
    assert_eq!(world.ask("DELETE /kafka-clusters/m").await.status, 404);
    world.stop().await;
}

#[tokio::test]
async fn a_subscription_lives_without_its_broker() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    world.post("/kafka-clusters", &json!({"name": "m", "properties": {"bootstrap.servers": "127.0.0.1:1"}})).await;
    let request = json!({"source": "kafka://m/t", "sink": "service://Obj/echo", "options": {"ssl.key.password": "secret"}});
    let made = world.post("/subscriptions", &request).await;
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!((made.status, made.header("location")), (201, Some(format!("subscriptions/{id}").as_str())));
    assert_eq!(made.json()["options"], json!({"ssl.key.password": "***", "group.id": id, "client.id": "surefoot"}));

    let shown = world.ask(&format!("GET /subscriptions/{id}")).await.json();
    assert!(["waiting", "failing"].contains(&shown["status"].as_str().unwrap()), "{shown}");
    assert_eq!((&shown["partitions"], &shown["parked"]), (&json!([]), &0.into()));
    assert_eq!(world.ask("GET /subscriptions?source=kafka://m/t").await.json()["subscriptions"].as_array().unwrap().len(), 1);
    assert_eq!(world.ask("GET /subscriptions?sink=service://Obj/hang").await.json()["subscriptions"], json!([]));
    assert_eq!(world.ask(&format!("GET /subscriptions/{id}/parked")).await.body, r#"{"parked":[],"next":null}"#);
    assert_eq!(world.ask(&format!("DELETE /subscriptions/{id}/parked/7")).await.status, 404);
    assert_eq!(world.ask("DELETE /kafka-clusters/m").await.status, 409);
    let with_it = world.ask("GET /kafka-clusters/m?include_subscriptions=true").await.json();
    assert_eq!(with_it["subscriptions"][0]["id"], id.as_str());

    for (source, sink, status) in [("kafka://m/t", "service://Obj/nope", 400), ("kafka://n/t", "service://Obj/echo", 400)] {
        assert_eq!(world.post("/subscriptions", &json!({"source": source, "sink": sink})).await.status, status);
    }
    assert_eq!(world.post("/subscriptions", &json!({"source": "kafka://m/t"})).await.status, 422);
    // 200 once its source has ended, 202 while that takes longer.
    let deleted = world.ask(&format!("DELETE /subscriptions/{id}")).await.status;
    assert!([200, 202].contains(&deleted), "{deleted}");
    assert_eq!(world.ask(&format!("DELETE /subscriptions/{id}")).await.status, 404);
    assert_eq!(world.ask("DELETE /kafka-clusters/m").await.status, 202);
    world.stop().await;
}

#[tokio::test]
async fn fields_that_are_unknown_are_refused_by_name() {
    let dir = tempdir().unwrap();
    let world = World::bare(dir.path(), |_| ()).await;
    for (path, field, body) in [
        ("/deployments", "forse", json!({"uri": "http://127.0.0.1:1", "forse": true})),
        ("/deployments", "additional-headers", json!({"uri": "http://127.0.0.1:1", "additional-headers": {}})),
        ("/subscriptions", "option", json!({"source": "kafka://c/t", "sink": "service://S/h", "option": {}})),
        ("/kafka-clusters", "property", json!({"name": "c", "properties": {}, "property": {}})),
    ] {
        let refused = world.post(path, &body).await;
        assert_eq!((refused.status, refused.json()["restate_code"].as_str()), (422, Some("SF2026")), "{}", refused.body);
        assert!(refused.body.contains(&format!("unknown field `{field}`")), "{}", refused.body);
    }
    world.stop().await;
}

#[tokio::test]
async fn properties_that_load_code_or_are_unknown_are_refused_by_name() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    world.post("/kafka-clusters", &json!({"name": "m", "properties": {"bootstrap.servers": "127.0.0.1:1"}})).await;
    for (name, value) in [
        ("plugin.library.paths", "/tmp/evil-hunter2.so"),
        ("ssl.engine.location", "/tmp/evil-hunter2.so"),
        ("topic.offset.store.path", "/tmp/hunter2"),
        ("sasl.passwrd", "hunter2"),
        ("queued.min.messages", "hunter2"),
        ("group.id", ""),
    ] {
        let properties = json!({"bootstrap.servers": "127.0.0.1:1", name: value});
        let options = json!({"source": "kafka://m/t", "sink": "service://Obj/echo", "options": {name: value}});
        for (path, body) in [("/kafka-clusters", json!({"name": "n", "properties": properties})), ("/subscriptions", options)] {
            let refused = world.post(path, &body).await;
            assert_eq!(
                (refused.status, &refused.json()["restate_code"]),
                (400, &"SF2002".into()),
                "{path} {name}: {}",
                refused.body
            );
            assert!(refused.body.contains(name) && !refused.body.contains("hunter2"), "{}", refused.body);
        }
    }
    let user = json!({"name": "n", "properties": {"bootstrap.servers": "me:hunter2@127.0.0.1:1"}});
    let refused = world.post("/kafka-clusters", &user).await;
    assert!(refused.status == 400 && !refused.body.contains("hunter2"), "{}", refused.body);
    let refused = world.post("/deployments", &json!({"uri": "http://me:hunter2@127.0.0.1:1"})).await;
    assert!(refused.status == 400 && !refused.body.contains("hunter2"), "{}", refused.body);
    assert_eq!(world.ask("GET /subscriptions").await.json()["subscriptions"], json!([]));
    world.stop().await;
}

/// Registers an endpoint that serves this.
async fn registered(world: &World, services: &str) -> Answer {
    let endpoint = Endpoint::start(services).await;
    world.post("/deployments", &json!({"uri": format!("http://{}", endpoint.address)})).await
}

fn is_refused(answer: &Answer, status: u16, advice: &str) {
    assert_eq!((answer.status, &answer.json()["restate_code"]), (status, &"SF2032".into()), "{}", answer.body);
    assert!(answer.body.contains(advice), "{}", answer.body);
}

#[tokio::test]
async fn many_services_are_registered_at_once_and_one_more_is_refused() {
    let dir = tempdir().unwrap();
    let world = World::bare(dir.path(), |_| ()).await;
    let services = |count: usize| {
        let services = (0..count).map(|n| format!(r#"{{"name":"S{n}","ty":"SERVICE","handlers":[{{"name":"run"}}]}}"#));
        services.collect::<Vec<_>>().join(",")
    };
    is_refused(&registered(&world, &services(1_001)).await, 400, "serve them from several endpoints");
    assert_eq!(world.ask("GET /deployments").await.json()["deployments"], json!([]));
    let made = registered(&world, &services(1_000)).await;
    assert_eq!((made.status, made.json()["services"].as_array().unwrap().len()), (201, 1_000));
    world.stop().await;
}

/// Each endpoint may describe what it serves in megabytes. All of them together took as much memory as they liked, at each start again.
#[tokio::test]
async fn what_deployments_describe_together_has_a_bound_and_goes_with_them() {
    let dir = tempdir().unwrap();
    let world = World::bare(dir.path(), |_| ()).await;
    let documentation = "d".repeat(12 << 20);
    let described = |n: usize| format!(r#"{{"name":"S{n}","ty":"SERVICE","handlers":[],"documentation":"{documentation}"}}"#);
    let made = registered(&world, &described(0)).await;
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(registered(&world, &described(1)).await.status, 201);
    is_refused(&registered(&world, &described(2)).await, 409, "delete deployments");
    // One that describes little still finds room, and so does the other once there is some.
    assert_eq!(registered(&world, r#"{"name":"Small","ty":"SERVICE","handlers":[]}"#).await.status, 201);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(world.ask(&format!("DELETE /deployments/{id}?force=true")).await.status, 202);
    assert_eq!(registered(&world, &described(2)).await.status, 201);
    world.stop().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_told() {
    let dir = tempdir().unwrap();
    let world = World::bare(dir.path(), |_| ()).await;
    let large = "x".repeat((2 << 20) + 1);
    let told = send(world.serving.summary().admin, "POST /deployments", &["content-type: application/json"], &large).await;
    assert_eq!((told.status, &told.json()["restate_code"]), (413, &"SF2028".into()));
    let foreign = send(world.serving.summary().admin, "GET /services", &["origin: http://evil.example.com"], "").await;
    assert_eq!((foreign.status, &foreign.json()["restate_code"]), (403, &"SF2015".into()));
    world.stop().await;
}

/// Both ports without a node, and their addresses.
async fn ports(connections_max: usize) -> ((SocketAddr, SocketAddr), surefoot_ingress::Server, surefoot_admin::Server) {
    use surefoot_ingress::{ArrivalBounds, BodyBounds, Limits};
    use surefoot_listener::{ConnectionBounds, Visitors};
    let env = surefoot_env::Env::production(tokio::runtime::Handle::current());
    let (connections, visitors) = (ConnectionBounds { connections_max, half_closed_max: 0 }, Visitors::new(true, &[], &[]));
    let bind = async || tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (ingress, admin) = (bind().await, bind().await);
    let addresses = (ingress.local_addr().unwrap(), admin.local_addr().unwrap());
    let arrivals = ArrivalBounds { small_bytes_max: 1 << 20, large_bytes_max: 1 << 20 };
    let bodies = BodyBounds { body_bytes_max: 1 << 20, arrivals };
    let limits = Limits { bodies, requests_max: 10, connections, visitors: visitors.clone() };
    let ingress = surefoot_ingress::Server::start(ingress, env.clone(), limits);
    let admin = surefoot_admin::Server::start(admin, env, connections, visitors);
    (addresses, ingress, admin)
}

#[tokio::test]
async fn ports_refuse_until_the_node_is_ready() {
    let (addresses, ingress, admin) = ports(10).await;
    for (address, line, code) in [(addresses.0, "POST /Svc/echo", "SF1022"), (addresses.1, "GET /health", "SF2018")] {
        let refused = send(address, line, &[], "").await;
        assert_eq!((refused.status, &refused.json()["restate_code"]), (503, &code.into()), "{}", refused.body);
        assert!(refused.header("retry-after").is_some());
    }
    tokio::join!(ingress.drain(Duration::from_secs(5)), admin.drain(Duration::from_secs(5)));
}

/// It was plain text, and had no code.
#[tokio::test]
async fn a_connection_that_has_no_place_is_refused_as_all_else_of_its_port() {
    let (addresses, ingress, admin) = ports(1).await;
    for (address, line, code) in [(addresses.0, "POST /Svc/echo", "SF1028"), (addresses.1, "GET /health", "SF2033")] {
        let unused = TcpStream::connect(address).await.unwrap();
        // Its place is taken by another, which asks.
        send(address, line, &[], "").await;
        let refused = last(unused, "nothing").await;
        assert_eq!((refused.status, &refused.json()["restate_code"]), (503, &code.into()), "{}", refused.body);
        assert_eq!((refused.header("retry-after"), refused.header("content-type")), (Some("1"), Some("application/json")));
        assert!(refused.json()["message"].as_str().unwrap().ends_with("reuse connections, or try again later"));
    }
    tokio::join!(ingress.drain(Duration::from_secs(5)), admin.drain(Duration::from_secs(5)));
}

#[tokio::test]
async fn a_second_node_is_refused_its_port_and_its_directory() {
    use surefoot_server::config::Config;
    use surefoot_server::serve::{Process, Serving};
    let dir = tempdir().unwrap();
    let world = World::bare(dir.path(), |_| ()).await;
    let start = async |base: &str, port: u16| {
        let mut config = Config { base_dir: dir.path().join(base), partitions: 1, ..Config::default() };
        config.ingress.bind_address = Address { host: "127.0.0.1".to_owned(), port };
        config.admin.bind_address.port = 0;
        let process =
            Process { metrics: std::sync::Arc::new(String::new), fatal: std::sync::Arc::new(|message| panic!("{message}")) };
        let env = surefoot_env::Env::production(tokio::runtime::Handle::current());
        Serving::start(&config, env, process).await.map(|_| ()).unwrap_err().to_string()
    };
    let error = start("other", world.serving.summary().ingress.port()).await;
    assert!(error.starts_with("cannot listen on 127.0.0.1:") && error.contains("--ingress-address"), "{error}");
    let error = start("data", 0).await;
    assert!(error.contains("in use by another process") && error.contains("--data-dir"), "{error}");
    world.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever_for_clients_whose_call_never_ends() {
    let dir = tempdir().unwrap();
    let world = World::start(dir.path()).await;
    let address = world.serving.summary().ingress;
    let waiting = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"POST /Svc/hang HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        let mut raw = Vec::new();
        // Closed, not answered: a client would take a 503 for a refusal, and send again what runs.
        let _ = stream.read_to_end(&mut raw).await;
        String::from_utf8(raw).unwrap()
    });
    loop {
        if world.ask("GET /invocations?status=running").await.json()["invocations"][0].is_object() {
            break;
        }
    }
    assert!(world.serving.stop(Duration::from_secs(8)).await, "there is time for the last checkpoint");
    let text = waiting.await.unwrap();
    assert_eq!(text, "");
}
