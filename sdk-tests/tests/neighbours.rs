//! Calls of other deployments beside one whose handlers send without end.
//!
//! Owns: handlers that send state, calls or results of steps as fast as they are read, and what calls of a neighbour meet meanwhile. The
//! times asserted are bounds on waiting, far above what a busy machine needs.
#![expect(clippy::print_stderr, reason = "what was measured")]

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::routing::post;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::json;
use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use surefoot_client::admin::NewDeployment;
use surefoot_client::ingress::{Call, Target};
use surefoot_sdk_tests::Server;
use surefoot_sdk_tests::by_hand::{
    self, ONE_WAY_CALL, PROPOSE_RUN, RUN, bytes_field, frame, number_field, output_and_end, set_state,
};
use surefoot_sdk_tests::wait::eventually;
use tokio::sync::Semaphore;

const MIB: u64 = 1 << 20;
/// What the process takes beside `memory-size`.
const BESIDE: u64 = 128 * MIB;
/// Commands that leave together.
const TOGETHER: u64 = 32;
/// How long calls are made beside each of the greedy handlers.
const WATCHED: Duration = Duration::from_secs(15);
const CALLERS: usize = 4;
/// What the greedy handlers have to have sent before neighbours are looked at.
const SENT_BEFORE: u64 = 100_000;
/// What they have to send meanwhile: they are slowed down, and not stopped.
const SENT_MIN: u64 = TOGETHER;
const LIMIT: Duration = Duration::from_secs(60);
/// What one call of a hundred may take longer than: half of the time after which it is refused.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// What greedy handlers have sent.
#[derive(Default)]
struct Greed {
    commands: AtomicU64,
}

/// One more handler of these may begin once this is dropped.
struct Runs(Arc<Semaphore>);

impl Drop for Runs {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

/// The commands of one handler, from a number on.
fn commands(kind: &str, from: u64) -> Vec<u8> {
    let payload = [b'x'; 100];
    let command = |n: u64| match kind {
        "sets" => set_state(format!("k{}", n % 100).as_bytes(), &payload),
        "runs" => {
            let proposal = [number_field(1, n), bytes_field(14, &payload)].concat();
            [frame(RUN, &number_field(11, n)), frame(PROPOSE_RUN, &proposal)].concat()
        }
        _ => {
            let callee = [bytes_field(1, b"Sink"), bytes_field(2, b"take"), bytes_field(3, &payload)].concat();
            frame(ONE_WAY_CALL, &[callee, number_field(10, n)].concat())
        }
    };
    (from..from + TOGETHER).flat_map(command).collect()
}

/// A deployment whose handlers send without end, each of which gives `ended` a permit once it is gone.
async fn serve_greedy(greed: Arc<Greed>, ended: Arc<Semaphore>) -> Result<String> {
    const SERVICES: &str = r#"{"name":"Greedy","ty":"VIRTUAL_OBJECT","enableLazyState":true,"handlers":[
        {"name":"sets","ty":"EXCLUSIVE"},{"name":"runs","ty":"EXCLUSIVE"},{"name":"calls","ty":"EXCLUSIVE"}]},
        {"name":"Sink","ty":"SERVICE","handlers":[{"name":"take"}]}"#;
    let handler = |kind: &'static str| {
        let (greed, ended) = (greed.clone(), ended.clone());
        post(move |request: Body| {
            let runs = Runs(ended.clone());
            // It takes what it is sent, until its connection is gone.
            tokio::spawn(request.into_data_stream().take_while(|taken| ready(taken.is_ok())).for_each(|_| ready(())));
            let sent = stream::unfold((1, runs, greed.clone()), move |(from, runs, greed)| async move {
                greed.commands.fetch_add(TOGETHER, Ordering::Relaxed);
                let chunk = Ok::<_, Infallible>(Bytes::from(commands(kind, from)));
                Some((chunk, (from + TOGETHER, runs, greed)))
            });
            async move { by_hand::response(Body::from_stream(sent)) }
        })
    };
    let take = post(|| async { by_hand::response(Body::from(output_and_end())) });
    let router = Router::new()
        .route("/invoke/Greedy/sets", handler("sets"))
        .route("/invoke/Greedy/runs", handler("runs"))
        .route("/invoke/Greedy/calls", handler("calls"))
        .route("/invoke/Sink/take", take);
    by_hand::serve(SERVICES, router).await
}

/// A deployment that answers at once.
async fn serve_neighbour() -> Result<String> {
    const SERVICES: &str = r#"{"name":"Neighbour","ty":"VIRTUAL_OBJECT","handlers":[{"name":"add","ty":"EXCLUSIVE"}]}"#;
    let add = post(|| async { by_hand::response(Body::from([set_state(b"sum", b"1"), output_and_end()].concat())) });
    by_hand::serve(SERVICES, Router::new().route("/invoke/Neighbour/add", add)).await
}

/// Keeps so many greedy handlers at work: each ends at the bound of its journal, and another one begins.
async fn be_greedy(server: &Server, kind: &str, ended: &Semaphore) -> Result<()> {
    let ingress = server.ingress();
    for n in 0.. {
        ended.acquire().await.context("wait until one has ended")?.forget();
        let call = Call::new(Target::keyed("Greedy", format!("{kind}-{n}"), kind)).idempotency_key("once");
        while let Err(error) = ingress.send(call.clone()).await {
            ensure!(error.is_transient(), "start a greedy handler: {error}");
        }
    }
    Ok(())
}

/// Calls of a neighbour, one after the other: how long each took. **Errors**: one was refused.
async fn call_neighbour(server: &Server, caller: usize, until: Instant) -> Result<Vec<Duration>> {
    let ingress = server.ingress();
    let mut took = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        let call = Call::new(Target::keyed("Neighbour", format!("n{caller}-{}", took.len()), "add")).json(&json!(1));
        ingress.call(call).await.with_context(|| format!("call a neighbour, after {} calls", took.len()))?;
        took.push(began.elapsed());
    }
    Ok(took)
}

async fn watch(memory_size: u64, kind: &'static str, handlers: usize) -> Result<()> {
    let server = Server::start(&[("MEMORY_SIZE", &memory_size.to_string())]).await?;
    let (greed, ended) = (Arc::new(Greed::default()), Arc::new(Semaphore::new(handlers)));
    for uri in [serve_greedy(greed.clone(), ended.clone()).await?, serve_neighbour().await?] {
        server.admin().register(&NewDeployment::at(uri)).await.context("register")?;
    }
    let calls = async {
        eventually("greedy handlers at work", LIMIT, || async {
            let sent = greed.commands.load(Ordering::Relaxed);
            ensure!(sent >= SENT_BEFORE, "{sent} commands so far");
            Ok(())
        })
        .await?;
        let before = greed.commands.load(Ordering::Relaxed);
        let until = Instant::now() + WATCHED;
        let callers = (0..CALLERS).map(|caller| call_neighbour(&server, caller, until));
        let results = futures_util::future::join_all(callers).await;
        let sent = greed.commands.load(Ordering::Relaxed) - before;
        anyhow::Ok((results, sent))
    };
    let (results, sent) = tokio::select! {
        biased;
        // This ends only on an error. Dropping it midway is safe: a send has been made or has not.
        greedy = be_greedy(&server, kind, &ended) => return greedy.context("the greedy deployment"),
        calls = calls => calls?,
    };
    let refused: Vec<String> = results.iter().filter_map(|r| r.as_ref().err()).map(|error| format!("{error:#}")).collect();
    let mut took: Vec<Duration> = results.into_iter().flatten().flatten().collect();
    took.sort_unstable();
    let of = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
    let peak = server.peak_bytes()?;
    eprintln!(
        "{handlers} x {kind} at {} MiB: {} calls of neighbours, {} refused; p50 {:?}, p99 {:?}, worst {:?}; {sent} commands; a peak of {} MiB",
        memory_size / MIB,
        took.len(),
        refused.len(),
        of(50),
        of(99),
        took.last().copied().unwrap_or_default(),
        peak / MIB
    );
    ensure!(refused.is_empty(), "{refused:?}");
    ensure!(of(99) <= WAIT_MAX, "calls of neighbours took {:?}", of(99));
    ensure!(sent >= SENT_MIN, "the greedy deployment was held up: {sent} commands");
    ensure!(peak <= memory_size + BESIDE, "{} MiB", peak / MIB);
    Ok(())
}

/// Small, so that little work fills it.
const SMALL: u64 = 64 * MIB;
const DEFAULT: u64 = 256 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn handlers_that_send_without_end_hold_up_no_others() -> Result<()> {
    for (memory_size, kind, handlers) in
        [(SMALL, "sets", 64), (DEFAULT, "sets", 64), (SMALL, "sets", 1_000), (SMALL, "calls", 64), (SMALL, "runs", 64)]
    {
        let case = || format!("{handlers} x {kind} at {} MiB", memory_size / MIB);
        watch(memory_size, kind, handlers).await.with_context(case)?;
    }
    Ok(())
}
