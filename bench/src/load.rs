//! Callers in a closed loop: each has one HTTP/1.1 connection, and sends its next call when the last is answered.
//!
//! Owns: connections, warm-up and measured window, latencies. Does not own: what is called.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long the calls in flight at the end may take.
const LAST_CALL_LIMIT: Duration = Duration::from_secs(30);
/// The slowest call that is told apart, in microseconds.
const SLOWEST_US: u64 = 60_000_000;

/// What one caller sends, again and again.
pub(crate) type NextCall = fn() -> Call;

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) path: String,
    /// JSON, or empty for a handler that takes nothing.
    pub(crate) body: &'static str,
}

/// How hard and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) callers: usize,
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

/// What the callers saw.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Of the calls that ended in the measured window, in microseconds.
    pub(crate) latencies: Histogram<u64>,
    /// How long the measured window really was.
    pub(crate) window: Duration,
    /// All calls that succeeded, warm-up included.
    pub(crate) calls: u64,
}

const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const STOPPING: u8 = 2;

/// Runs the load. `at_edge` is called at the beginning and at the end of the measured window. A call that fails fails the run.
pub(crate) async fn run(load: Load, address: &str, next: NextCall, mut at_edge: impl FnMut() -> Result<()>) -> Result<Seen> {
    let phase = Arc::new(AtomicU8::new(WARMING_UP));
    let mut callers = JoinSet::new();
    for _ in 0..load.callers {
        callers.spawn(caller(Caller::connect(address).await?, next, Arc::clone(&phase)));
    }
    sleep(load.warm_up).await;
    at_edge()?;
    phase.store(MEASURING, Ordering::Relaxed);
    let start = Instant::now();
    sleep(load.measured).await;
    phase.store(STOPPING, Ordering::Relaxed);
    let window = start.elapsed();
    at_edge()?;

    let mut seen = Seen { latencies: histogram(), window, calls: 0 };
    let all = async {
        while let Some(ended) = callers.join_next().await {
            let (latencies, calls) = ended.context("wait for a caller")??;
            seen.latencies.add(latencies).context("add up the latencies")?;
            seen.calls += calls;
        }
        anyhow::Ok(())
    };
    timeout(LAST_CALL_LIMIT, all).await.context("wait for the last answers")??;
    ensure!(!seen.latencies.is_empty(), "no call was answered in {window:?}");
    Ok(seen)
}

/// Runs `work` to its end, with callers beside it all the while. The latencies of their calls, in microseconds.
pub(crate) async fn beside(
    callers: usize,
    address: &str,
    next: NextCall,
    work: impl Future<Output = Result<()>>,
) -> Result<Histogram<u64>> {
    let phase = Arc::new(AtomicU8::new(MEASURING));
    let mut beside = JoinSet::new();
    for _ in 0..callers {
        beside.spawn(caller(Caller::connect(address).await?, next, Arc::clone(&phase)));
    }
    work.await?;
    phase.store(STOPPING, Ordering::Relaxed);
    let mut latencies = histogram();
    let all = async {
        while let Some(ended) = beside.join_next().await {
            latencies.add(ended.context("wait for a caller")??.0).context("add up the latencies")?;
        }
        anyhow::Ok(())
    };
    timeout(LAST_CALL_LIMIT, all).await.context("wait for the last answers")??;
    Ok(latencies)
}

async fn caller(mut caller: Caller, next: NextCall, phase: Arc<AtomicU8>) -> Result<(Histogram<u64>, u64)> {
    let (mut latencies, mut calls) = (histogram(), 0);
    loop {
        let start = Instant::now();
        caller.call(next()).await?;
        calls += 1;
        match phase.load(Ordering::Relaxed) {
            WARMING_UP => {}
            MEASURING => latencies.saturating_record(u64::try_from(start.elapsed().as_micros()).unwrap_or(SLOWEST_US)),
            _ => return Ok((latencies, calls)),
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(SLOWEST_US, 3).expect("these bounds are sound")
}

/// One keep-alive connection to an ingress.
#[derive(Debug)]
pub(crate) struct Caller {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Caller {
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("connect to the ingress")?;
        stream.set_nodelay(true).context("set nodelay")?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.context("greet the ingress")?;
        // Its error also reaches the call that needed it.
        tokio::spawn(async { drop(connection.await) });
        Ok(Self { sender, host: address.to_owned() })
    }

    /// The body of the answer; anything but success is an error.
    pub(crate) async fn call(&mut self, call: Call) -> Result<Bytes> {
        let mut request = Request::post(call.path).header(header::HOST, &self.host);
        if !call.body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(Bytes::from_static(call.body.as_bytes()))).context("build the call")?;
        self.sender.ready().await.context("wait for the connection")?;
        let response = self.sender.send_request(request).await.context("call")?;
        let status = response.status();
        let body = response.into_body().collect().await.context("read the answer")?.to_bytes();
        if !status.is_success() {
            bail!("the call was answered with {status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }
}
