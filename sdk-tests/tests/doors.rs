//! What comes in at the doors: too many connections or calls, slow bodies, too few descriptors. Others do not notice, and it passes by itself.

use anyhow::{Context, Result, ensure};
use axum::Router;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use surefoot_client::admin::NewDeployment;
use surefoot_client::ingress::{Call, Target};
use surefoot_sdk_tests::Server;
use surefoot_sdk_tests::by_hand;
use surefoot_sdk_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(60);
const TOMORROW: Duration = Duration::from_secs(24 * 60 * 60);

/// An endpoint that serves one service, whose invocations are all due tomorrow.
async fn endpoint() -> Result<String> {
    by_hand::serve(r#"{"name":"Later","ty":"SERVICE","handlers":[{"name":"run"}]}"#, Router::new()).await
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

/// Calls over HTTP/2, written by hand: all at once, and without waiting for anything.
mod http2 {
    use super::*;

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const WINDOW_UPDATE: u8 = 8;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("it is short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// A field that no table keeps.
    fn field(name: &str, value: &str) -> Vec<u8> {
        let text = |text: &str| [&[u8::try_from(text.len()).expect("it is short")], text.as_bytes()].concat();
        [vec![0], text(name), text(value)].concat()
    }

    /// So many calls of a path on one connection, which are all there are. Returns how many were answered, and how many were refused unread.
    pub(super) async fn calls(address: &str, path: &str, count: usize) -> Result<(usize, usize)> {
        let head = [field(":method", "POST"), field(":scheme", "http"), field(":path", path), field(":authority", "localhost")];
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[]));
        bytes.extend(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()));
        for number in 0..u32::try_from(count)? {
            bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, &head.concat()));
        }
        let mut stream = TcpStream::connect(address).await.context("connect")?;
        stream.write_all(&bytes).await.context("send calls")?;
        let (mut answered, mut refused) = (0, 0);
        while answered + refused < count {
            let mut header = [0; 9];
            stream.read_exact(&mut header).await.context("read a frame's header")?;
            let [high, middle, low, kind, flags, ..] = header;
            let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
            stream.read_exact(&mut payload).await.context("read a frame")?;
            match kind {
                HEADERS | DATA if flags & END_STREAM > 0 => answered += 1,
                RST_STREAM => refused += 1,
                GOAWAY => anyhow::bail!("the connection ends: {}", String::from_utf8_lossy(&payload)),
                _ => {}
            }
        }
        Ok((answered, refused))
    }
}

/// All of them were taken in before the first was answered: 243 MiB at a setting of 64 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_at_once_on_each_of_many_connections_are_answered_within_the_bound_on_memory() -> Result<()> {
    const CONNECTIONS: usize = 150;
    const CALLS: usize = 1_000;
    const MIB: u64 = 1 << 20;
    /// The setting, and what the process takes beside it.
    const BOUND: u64 = (64 + 128) * MIB;
    let server = start(None, &[("MEMORY_SIZE", "64MiB")]).await?;
    let address = server.ingress_address();
    let clients = (0..CONNECTIONS).map(|_| {
        let address = address.clone();
        tokio::spawn(async move { http2::calls(&address, "/Later/run/send?delay=24h", CALLS).await })
    });
    for client in clients.collect::<Vec<_>>() {
        let answers = tokio::time::timeout(LIMIT, client).await.context("an answer to each call")??;
        ensure!(answers? == (CALLS, 0), "each is told whether it was taken");
    }
    send(&server, 10).await?;
    let peak = server.peak_bytes()?;
    eprintln!("{CONNECTIONS} connections with {CALLS} calls each: a peak of {} MiB at a memory-size of 64 MiB", peak / MIB);
    ensure!(peak <= BOUND, "{} MiB", peak / MIB);
    server.expect_quiet(&[])
}

/// What a counter without labels has come to.
async fn counted(server: &Server, name: &str) -> Result<usize> {
    let page = server.admin().metrics().await.context("ask for metrics")?;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).context("it is counted")?;
    value.trim().parse().context("read the number")
}

/// Of many more clients than places thousands saw their connection end, or reset: those above all that did not send at once.
#[tokio::test(flavor = "multi_thread")]
async fn many_more_clients_than_places_are_answered_or_told_to_come_again_however_late_they_ask() -> Result<()> {
    const DESCRIPTORS: u32 = 256;
    const CLIENTS: usize = 500;
    let server = start(Some(DESCRIPTORS), &[]).await?;
    let mut clients = idle(&server, CLIENTS).await?;
    // All have been accepted, so most of them have given way.
    eventually("all connections", LIMIT, || async {
        let accepted = counted(&server, "surefoot_ingress_http_connection_created_total").await?;
        ensure!(accepted >= CLIENTS, "{accepted} so far");
        Ok(())
    })
    .await?;
    let head =
        "POST /Later/run/send?delay=24h HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1";
    let mut heard = BTreeMap::new();
    for client in &mut clients {
        // One that has been told, and took too long, may not be listened to any more.
        let _ = client.write_all(format!("{head}\r\n\r\n1").as_bytes()).await;
        *heard.entry(answer_of(client).await?).or_insert(0) += 1;
    }
    eprintln!("{CLIENTS} clients at {DESCRIPTORS} descriptors heard {heard:?}");
    let told: usize = heard.iter().filter(|(line, _)| line.contains("202") || line.contains("503")).map(|(_, count)| count).sum();
    ensure!(told == CLIENTS, "{heard:?}");
    let refusals: usize = heard.iter().filter(|(line, _)| line.contains("503")).map(|(_, count)| count).sum();
    let counted = counted(&server, "surefoot_ingress_http_connection_refused_total").await?;
    ensure!(counted == refusals, "{counted} of {refusals} are counted");
    drop(clients);
    send(&server, 10).await?;
    server.expect_quiet(&["cannot accept connections for now"])
}

/// Clients that gave up held all places for calls until the kernel found out that they had gone.
#[tokio::test(flavor = "multi_thread")]
async fn callers_that_have_gone_leave_room_for_the_calls_of_others() -> Result<()> {
    const CALLS: usize = 32;
    let server = start(None, &[("INGRESS__CONCURRENT_API_REQUESTS_LIMIT", "32")]).await?;
    // Their result does not come: the endpoint answers no attempt.
    let call = "POST /Later/run HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";
    for mut gone in idle(&server, CALLS).await? {
        gone.write_all(call.as_bytes()).await.context("call")?;
        gone.shutdown().await.context("go away")?;
    }
    // Less than the kernel takes.
    eventually("a place for another call", Duration::from_secs(20), || send(&server, 10)).await?;
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
