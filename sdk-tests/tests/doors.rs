//! What comes in at the doors: too many connections, slow bodies, too few descriptors. Others do not notice, and it passes by itself.

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use serde_json::json;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use surefoot_client::admin::NewDeployment;
use surefoot_client::ingress::{Call, Target};
use surefoot_sdk_tests::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(60);
const TOMORROW: Duration = Duration::from_secs(24 * 60 * 60);

/// An endpoint that serves one service, whose invocations are all due tomorrow.
async fn endpoint() -> Result<String> {
    let manifest = json!({
        "protocolMode": "BIDI_STREAM", "minProtocolVersion": 5, "maxProtocolVersion": 6,
        "services": [{ "name": "Later", "ty": "SERVICE", "handlers": [{ "name": "run" }] }],
    });
    let body = manifest.to_string();
    let answer = get(move || async move { ([(CONTENT_TYPE, "application/vnd.restate.endpointmanifest.v3+json")], body) });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("bind an endpoint")?;
    let uri = format!("http://{}", listener.local_addr().context("ask for its port")?);
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    Ok(uri)
}

async fn start(descriptors: Option<u32>, settings: &[(&str, &str)]) -> Result<Server> {
    let mut server = Server::prepare(settings)?;
    if let Some(descriptors) = descriptors {
        server.limit_descriptors(descriptors);
    }
    server.restart().await?;
    server.admin().register(&NewDeployment::at(endpoint().await?)).await.context("register the endpoint")?;
    Ok(server)
}

async fn send(server: &Server, bytes: usize) -> Result<()> {
    let call = Call::new(Target::service("Later", "run")).json(&"x".repeat(bytes)).delay(TOMORROW);
    server.ingress().send(call).await.map(drop).with_context(|| format!("send {bytes} bytes"))
}

async fn idle(server: &Server, count: usize) -> Result<Vec<TcpStream>> {
    connect(&server.ingress_address(), count).await
}

async fn connect(address: &str, count: usize) -> Result<Vec<TcpStream>> {
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(TcpStream::connect(address).await.context("connect")?);
    }
    Ok(connections)
}

/// Calls go on beside more connections than the process has descriptors, checkpoints too, and nothing has stopped.
async fn outlive_idle_connections(descriptors: u32, count: usize) -> Result<()> {
    const CHECKPOINTS: Duration = Duration::from_secs(3);
    let server = start(Some(descriptors), &[("CHECKPOINT_INTERVAL", "500ms")]).await?;
    let connections = idle(&server, count).await?;
    let begin = Instant::now();
    let mut sent = 0;
    while sent < 200 || begin.elapsed() < CHECKPOINTS {
        send(&server, 4 << 10).await?;
        sent += 1;
    }
    server.admin().health().await.context("nothing has stopped")?;
    drop(connections);
    send(&server, 4 << 10).await?;
    server.admin().health().await.context("nothing has stopped")?;
    server.expect_quiet(&["cannot accept connections for now"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_at_the_usual_limit() -> Result<()> {
    outlive_idle_connections(1_024, 800).await
}

#[tokio::test(flavor = "multi_thread")]
async fn four_hundred_idle_connections_at_a_low_limit() -> Result<()> {
    outlive_idle_connections(256, 400).await
}

/// The first line of an answer, which is all there is of most. One that refuses says when to try again.
async fn answer_of(stream: &mut TcpStream) -> Result<String> {
    let mut answer = Vec::new();
    let reading = async {
        while !answer.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
            match stream.read_buf(&mut answer).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Some(error.to_string()),
            }
        }
        None
    };
    let broken = tokio::time::timeout(LIMIT, reading).await.context("an answer, or an end")?;
    let answer = String::from_utf8_lossy(&answer).to_lowercase();
    let line = answer.lines().next().unwrap_or("an end without a word");
    ensure!(!line.contains("503") || answer.contains("\r\nretry-after: "), "{answer}");
    Ok(broken.unwrap_or_else(|| line.to_owned()))
}

/// With all connections taken by bodies that did not come, nobody else was heard for half a minute, and operators neither.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_do_not_come_give_way_at_a_low_limit() -> Result<()> {
    /// Long before a body is given up that nobody makes way for.
    const SOON: Duration = Duration::from_secs(25);
    let server = start(Some(256), &[]).await?;
    let head = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n1")
    };
    let begin = Instant::now();
    let mut unfinished = Vec::new();
    for (address, path) in [(server.ingress_address(), "/Later/run/send"), (server.admin_address(), "/deployments")] {
        for _ in 0..150 {
            let mut stream = TcpStream::connect(&address).await.context("connect")?;
            stream.write_all(head(path).as_bytes()).await.context("begin a body")?;
            unfinished.push(stream);
        }
    }
    let answered = async { while server.admin().health().await.is_err() || send(&server, 10).await.is_err() {} };
    tokio::time::timeout(SOON, answered).await.context("both ports answer")?;
    ensure!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
    // Each hears why: those that gave way, and those that found no place.
    let mut heard = BTreeMap::new();
    for stream in &mut unfinished {
        *heard.entry(answer_of(stream).await?).or_insert(0) += 1;
    }
    let refusals: usize = heard.iter().filter(|(line, _)| line.contains("503")).map(|(_, count)| count).sum();
    let gave_up: usize = heard.iter().filter(|(line, _)| line.contains("408")).map(|(_, count)| count).sum();
    ensure!(refusals > 0 && refusals + gave_up == unfinished.len(), "{heard:?}");
    server.expect_quiet(&["cannot accept connections for now"])
}

#[tokio::test(flavor = "multi_thread")]
async fn announced_bodies_that_trickle_hold_up_nobody() -> Result<()> {
    let server = start(None, &[]).await?;
    let mut trickling = idle(&server, 300).await?;
    let head =
        "POST /Later/run/send HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1048576\r\n\r\n1";
    for stream in &mut trickling {
        stream.write_all(head.as_bytes()).await.context("begin a body")?;
    }
    for bytes in [256 << 10, 1 << 20, 16 << 20] {
        send(&server, bytes).await?;
        for stream in &mut trickling {
            stream.write_all(b"1").await.context("go on with a body")?;
        }
    }
    server.expect_quiet(&[])
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_its_users_alone() -> Result<()> {
    let server = start(None, &[("CHECKPOINT_INTERVAL", "100ms")]).await?;
    for _ in 0..20 {
        send(&server, 4 << 10).await?;
    }
    expect_private(&server.data())?;
    server.expect_quiet(&[])
}

fn expect_private(path: &Path) -> Result<()> {
    // A file of the engine's may go while this looks at it.
    let Ok(metadata) = path.metadata() else { return Ok(()) };
    let mode = metadata.permissions().mode() & 0o777;
    ensure!(mode & 0o077 == 0, "{} has mode {mode:o}", path.display());
    if metadata.is_dir() {
        for entry in path.read_dir().with_context(|| format!("list {}", path.display()))? {
            expect_private(&entry.context("read an entry")?.path())?;
        }
    }
    Ok(())
}
