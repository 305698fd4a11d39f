//! What the process takes at its peak, whatever handlers bring: `memory-size`, and what [`BESIDE`] says.
//!
//! Owns: handlers that take much memory, and reading the peak of the process. Each test asks for many times the bound.
#![expect(clippy::print_stderr, reason = "what was measured")]

use anyhow::{Context as _, Result, bail, ensure};
use axum::Router;
use axum::body::Body;
use axum::routing::post;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use restate_sdk::context::RequestTarget;
use restate_sdk::prelude::{
    Context, ContextClient, ContextSideEffects, ContextTimers, Endpoint, HandlerResult, HttpServer, Json, service,
};
use serde_json::json;
use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};
use surefoot_client::admin::{InvocationFilter, NewDeployment};
use surefoot_client::ingress::{Call, Target};
use surefoot_sdk_tests::Server;
use surefoot_sdk_tests::by_hand::{self, GET_LAZY_STATE, bytes_field, frame, number_field, output_and_end, set_state};
use surefoot_sdk_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

const MIB: u64 = 1 << 20;
/// The setting of these tests, small so that little work exceeds it.
const MEMORY_SIZE: u64 = 64 * MIB;
/// What the process takes beside `memory-size`: code, threads, what the allocator keeps, and one body, message or value of 32 MiB, which is
/// in memory several times on its way.
const BESIDE: u64 = 128 * MIB;
const LIMIT: Duration = Duration::from_secs(300);
/// How many invocations have fat journals, unless [`FAT_JOURNALS`] says otherwise: 10 MB each, twice on the disk.
const FAT_AGENTS: usize = 100;
/// The variable that asks for more of them.
const FAT_JOURNALS: &str = "FAT_JOURNALS";
/// Calls that are sent at a time.
const SENDERS: usize = 32;

/// Says when steps are done.
#[derive(Default)]
struct Agent(Arc<Notify>);

#[service]
impl Agent {
    /// As many steps as asked for, each with a result of so many bytes; then it sleeps.
    #[handler]
    async fn work(&self, ctx: Context<'_>, Json((steps, bytes, sleep_ms)): Json<(u32, usize, u64)>) -> HandlerResult<u32> {
        for _ in 0..steps {
            ctx.run(|| async move { Ok("x".repeat(bytes)) }).await?;
        }
        self.0.notify_one();
        ctx.sleep(Duration::from_millis(sleep_ms)).await?;
        Ok(steps)
    }

    /// Its parameter.
    #[handler]
    async fn echo(&self, _ctx: Context<'_>, Json(text): Json<String>) -> HandlerResult<String> {
        Ok(text)
    }

    /// Has a text of so many bytes echoed.
    #[handler]
    async fn relay(&self, ctx: Context<'_>, Json(bytes): Json<usize>) -> HandlerResult<Json<usize>> {
        let echo = RequestTarget::service("Agent", "echo");
        let Json(text) = ctx.request::<_, Json<String>>(echo, Json("x".repeat(bytes))).call().await?;
        Ok(Json(text.len()))
    }

    /// A result of so many bytes.
    #[handler]
    async fn large(&self, _ctx: Context<'_>, Json(bytes): Json<usize>) -> HandlerResult<String> {
        Ok("x".repeat(bytes))
    }
}

async fn serve_agents(agent: Agent) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("bind")?;
    let address = listener.local_addr().context("read the address")?;
    tokio::spawn(HttpServer::new(Endpoint::builder().bind(agent).build()).serve(listener));
    Ok(format!("http://{address}"))
}

async fn start(uri: &str) -> Result<Server> {
    let server = Server::start(&[("MEMORY_SIZE", &MEMORY_SIZE.to_string())]).await?;
    server.admin().register(&NewDeployment::at(uri)).await.context("register")?;
    Ok(server)
}

async fn send_agents(server: &Server, count: usize, steps: u32, bytes: usize, sleep: Duration) -> Result<()> {
    let sleep_ms = u64::try_from(sleep.as_millis()).context("count milliseconds")?;
    let send = |n| {
        let ingress = server.ingress();
        async move {
            // A node at its bound refuses; the same call again is the same invocation.
            loop {
                let call = Call::new(Target::service("Agent", "work")).idempotency_key(&format!("agent-{n}"));
                match ingress.send(call.json(&json!([steps, bytes, sleep_ms]))).await {
                    Err(error) if error.is_transient() => {}
                    sent => return sent.map(drop),
                }
            }
        }
    };
    stream::iter(0..count).map(send).buffer_unordered(SENDERS).try_collect::<()>().await.context("send")
}

fn fat_agents() -> Result<usize> {
    std::env::var(FAT_JOURNALS).map_or(Ok(FAT_AGENTS), |count| count.parse().context("FAT_JOURNALS is a number"))
}

/// So many of them have completed, and no more.
async fn until_completed(server: &Server, counts: RangeInclusive<usize>) -> Result<()> {
    let filter = InvocationFilter { service: Some("Agent".into()), status: Some("completed".into()), ..Default::default() };
    let limit = LIMIT * u32::try_from(counts.start().div_ceil(500)).context("count five hundreds")?;
    eventually("all agents", limit, || async {
        let mut completed = 0;
        let mut page = server.admin().invocations(&filter).await?;
        loop {
            completed += page.invocations.len();
            let Some(next) = page.next.take() else { break };
            page = server.admin().invocations(&InvocationFilter { after: Some(next), ..filter.clone() }).await?;
        }
        ensure!(counts.contains(&completed), "{completed} of {counts:?} completed");
        Ok(())
    })
    .await
}

fn expect_bounded(server: &Server, what: &str) -> Result<()> {
    let peak = server.peak_bytes()?;
    eprintln!("{what}: a peak of {} MiB at a memory-size of {} MiB", peak / MIB, MEMORY_SIZE / MIB);
    ensure!(peak <= MEMORY_SIZE + BESIDE, "{what}: {} MiB", peak / MIB);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_agents_with_large_steps() -> Result<()> {
    const AGENTS: usize = 1_000;
    let server = start(&serve_agents(Agent::default()).await?).await?;
    send_agents(&server, AGENTS, 3, 200_000, Duration::ZERO).await?;
    until_completed(&server, AGENTS..=AGENTS).await?;
    expect_bounded(&server, "1,000 agents")
}

#[tokio::test(flavor = "multi_thread")]
async fn fat_journals_over_kills() -> Result<()> {
    let agents = fat_agents()?;
    let began = Instant::now();
    let mut server = start(&serve_agents(Agent::default()).await?).await?;
    send_agents(&server, agents, 10, 1_000_000, Duration::from_secs(2)).await?;
    eprintln!("sent after {} s", began.elapsed().as_secs());
    // Once while most of them wait to begin, and once while journals are as large as they get.
    for completed in [0, agents / 2] {
        until_completed(&server, completed..=agents).await?;
        expect_bounded(&server, "fat journals before a kill")?;
        server.kill()?;
        server.restart().await?;
        eprintln!("{completed} completed, and started again after {} s", began.elapsed().as_secs());
    }
    until_completed(&server, agents..=agents).await?;
    eprintln!("completed after {} s", began.elapsed().as_secs());
    expect_bounded(&server, "fat journals after two kills")
}

/// 32 MiB with what is around it in a message.
const STATE_BYTES: usize = (32 << 20) - 1_024;
const GETS: u32 = 256;
/// Values or results of one invocation, or calls at once.
const POURED: u32 = 6;
const POURED_BYTES: usize = 31 << 20;

/// Handlers that speak the protocol by hand. `fill` sets a large value, `pour` several; `drown` asks for it many times, says so, and reads nothing;
/// `echo` answers at once.
async fn serve_drowning(asked: Arc<Notify>) -> Result<String> {
    const SERVICES: &str = r#"{"name":"Deep","ty":"VIRTUAL_OBJECT","enableLazyState":true,"handlers":[
        {"name":"fill","ty":"EXCLUSIVE"},{"name":"pour","ty":"EXCLUSIVE"},{"name":"drown","ty":"EXCLUSIVE"},{"name":"echo","ty":"EXCLUSIVE"}]}"#;
    let invoke = |frames: Vec<Bytes>, ends: bool, asked: Option<Arc<Notify>>| {
        post(move |request: Body| {
            let (frames, asked) = (frames.clone(), asked.clone());
            async move {
                let sent = stream::iter(frames).map(Ok::<_, Infallible>);
                // The request is held, not read: the window of this stream fills up.
                let rest = stream::once(async move {
                    if let Some(asked) = asked {
                        asked.notify_one();
                    }
                    if !ends {
                        std::future::pending::<()>().await;
                    }
                    drop(request);
                    Ok(Bytes::new())
                });
                by_hand::response(Body::from_stream(sent.chain(rest)))
            }
        })
    };
    let output = vec![Bytes::from(output_and_end())];
    let set = |name: &[u8], bytes| Bytes::from(set_state(name, &noise(bytes)));
    let sets = (0..POURED).map(|n| set(format!("k{n}").as_bytes(), POURED_BYTES));
    let get = |id| frame(GET_LAZY_STATE, &[bytes_field(1, b"k"), number_field(11, u64::from(id))].concat());
    let gets = (1..=GETS).map(|id| Bytes::from(get(id)));
    let router = Router::new()
        .route("/invoke/Deep/fill", invoke([vec![set(b"k", STATE_BYTES)], output.clone()].concat(), true, None))
        .route("/invoke/Deep/pour", invoke(sets.chain(output.clone()).collect(), true, None))
        .route("/invoke/Deep/echo", invoke(output, true, None))
        .route("/invoke/Deep/drown", invoke(gets.collect(), false, Some(asked)));
    by_hand::serve(SERVICES, router).await
}

/// Bytes that no compression makes smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

#[tokio::test(flavor = "multi_thread")]
async fn one_invocation_that_sets_large_values() -> Result<()> {
    let mut server = start(&serve_drowning(Arc::default()).await?).await?;
    let ingress = server.ingress().with_timeout(LIMIT);
    ingress.call(Call::new(Target::keyed("Deep", "a", "pour"))).await.context("pour")?;
    expect_bounded(&server, "large values of one invocation")?;
    server.kill()?;
    server.restart().await?;
    expect_bounded(&server, "large values after a kill")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_invocation_with_large_results() -> Result<()> {
    let done = Arc::new(Notify::new());
    let mut server = start(&serve_agents(Agent(done.clone())).await?).await?;
    send_agents(&server, 1, POURED, POURED_BYTES, Duration::from_secs(2)).await?;
    tokio::time::timeout(LIMIT, done.notified()).await.context("wait until all results are there")?;
    expect_bounded(&server, "large results of one invocation")?;
    server.kill()?;
    server.restart().await?;
    until_completed(&server, 1..=1).await?;
    expect_bounded(&server, "large results after a kill")
}

#[tokio::test(flavor = "multi_thread")]
async fn six_calls_with_large_parameters_and_results() -> Result<()> {
    let server = start(&serve_agents(Agent::default()).await?).await?;
    let text = Bytes::from(format!("\"{}\"", "x".repeat(POURED_BYTES)));
    let call = |n: u32| {
        let (ingress, text) = (server.ingress().with_timeout(LIMIT), &text);
        async move {
            // One that finds no room for ten seconds is sent away, and comes again; the same call is the same invocation.
            loop {
                let call = Call::new(Target::service("Agent", "echo")).idempotency_key(&format!("echo-{n}"));
                let call = call.body("application/json", text.clone());
                match ingress.call(call).await {
                    Err(error) if error.is_transient() => eprintln!("call {n}: {error}"),
                    done => return done.with_context(|| format!("call {n}")),
                }
            }
        }
    };
    stream::iter(0..POURED).map(call).buffer_unordered(POURED as usize).try_for_each(|_| async { Ok(()) }).await?;
    expect_bounded(&server, "six calls at once with parameters and results of 31 MiB")
}

/// The same from handler to handler: what the parent sends is in its journal, in a message, and in the journal of what it calls.
#[tokio::test(flavor = "multi_thread")]
async fn six_handlers_that_call_with_large_parameters_and_results() -> Result<()> {
    let server = start(&serve_agents(Agent::default()).await?).await?;
    let call = |_| {
        let ingress = server.ingress().with_timeout(LIMIT);
        async move { ingress.call(Call::new(Target::service("Agent", "relay")).json(&json!(POURED_BYTES))).await.context("relay") }
    };
    stream::iter(0..POURED).map(call).buffer_unordered(POURED as usize).try_for_each(|_| async { Ok(()) }).await?;
    expect_bounded(&server, "six handlers that call with parameters and results of 31 MiB")
}

/// A client that calls for a result of so many bytes, as the same invocation where there is a key, and reads no more of it than that it is
/// there.
async fn call_and_read_nothing(address: &str, bytes: usize, key: Option<&str>) -> Result<TcpStream> {
    let body = bytes.to_string();
    let key = key.map(|key| format!("idempotency-key: {key}\r\n")).unwrap_or_default();
    let head = format!("POST /Agent/large HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{key}content-length");
    loop {
        let mut client = TcpStream::connect(address).await.context("connect")?;
        client.write_all(format!("{head}: {}\r\n\r\n{body}", body.len()).as_bytes()).await.context("call")?;
        let mut status = [0; 12];
        client.read_exact(&mut status).await.context("read the status")?;
        match &status {
            b"HTTP/1.1 200" => return Ok(client),
            // Those before it hold all the memory, until they are cut.
            b"HTTP/1.1 503" => {}
            other => bail!("{}", String::from_utf8_lossy(other)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_clients_do_not_take() -> Result<()> {
    const CLIENTS: usize = 40;
    const RESULT_BYTES: usize = 8 << 20;
    let server = start(&serve_agents(Agent::default()).await?).await?;
    let address = server.ingress_address();
    // New results, and one that is kept: nothing slows down who asks for it.
    for (what, key) in [("new", None), ("kept", Some("k"))] {
        let calls = stream::iter(0..CLIENTS).map(|_| call_and_read_nothing(&address, RESULT_BYTES, key));
        let clients: Vec<_> = calls.buffer_unordered(CLIENTS).try_collect().await?;
        eventually("a neighbour's call", LIMIT, || async {
            let call = Call::new(Target::service("Agent", "large")).json(&json!(1));
            server.ingress().call(call).await.map(drop).context("call a neighbour")
        })
        .await?;
        drop(clients);
        expect_bounded(&server, &format!("40 {what} results of 8 MiB that nobody reads"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_asked_for_many_times() -> Result<()> {
    const NEIGHBOURS: usize = 200;
    let asked = Arc::new(Notify::new());
    let server = start(&serve_drowning(asked.clone()).await?).await?;
    let ingress = server.ingress().with_timeout(LIMIT);
    ingress.call(Call::new(Target::keyed("Deep", "a", "fill"))).await.context("fill")?;
    ingress.send(Call::new(Target::keyed("Deep", "a", "drown"))).await.context("drown")?;
    tokio::time::timeout(LIMIT, asked.notified()).await.context("wait until it has asked")?;
    for n in 0..NEIGHBOURS {
        let call = Call::new(Target::keyed("Deep", format!("neighbour-{n}"), "echo"));
        ingress.call(call).await.context("call a neighbour")?;
    }
    expect_bounded(&server, "a value of 32 MiB, asked for 256 times")
}
