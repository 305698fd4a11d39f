//! The handlers under load, written with the published Rust SDK, as a process of their own.
//!
//! Owns: what a handler does, and telling on a second port how many executions came to their end. Does not own: when it starts and
//! ends, which the parent process decides.

use anyhow::{Context as _, Result};
use restate_sdk::prelude::*;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The state that the counter keeps under a key.
const COUNT: &str = "count";
/// Batches of executions: Kafka records of a topic that is full, those produced after a kill, calls of those that woke, naps, and naps
/// that have begun.
pub(crate) const FULL: usize = 0;
pub(crate) const AFTER_KILL: usize = 1;
pub(crate) const WOKEN: usize = 2;
pub(crate) const NAPS: usize = 3;
pub(crate) const NAPPING: usize = 4;
/// Executions that came to their end, by batch. An attempt that is repeated counts again.
static HANDLED: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];
/// Objects that are called by those that woke.
const WOKEN_KEYS: u64 = 1_000;

struct Echo;

#[service]
impl Echo {
    #[handler]
    async fn echo(&self, _: Context<'_>, text: String) -> Result<String, TerminalError> {
        Ok(text)
    }
}

struct Nested;

#[service]
impl Nested {
    /// Has another service answer.
    #[handler]
    async fn relay(&self, ctx: Context<'_>, text: String) -> Result<String, TerminalError> {
        ctx.service_client::<EchoClient>().echo(text).call().await
    }
}

struct Sleeper;

#[service]
impl Sleeper {
    #[handler]
    async fn nap(&self, ctx: Context<'_>, milliseconds: u64) -> Result<(), TerminalError> {
        HANDLED[NAPPING].fetch_add(1, Ordering::Relaxed);
        ctx.sleep(Duration::from_millis(milliseconds)).await?;
        HANDLED[NAPS].fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Sleeps, and then adds one to one of 1,000 objects.
    #[handler]
    async fn wake_and_call(&self, ctx: Context<'_>, milliseconds: u64) -> Result<(), TerminalError> {
        let key = format!("woken-{}", ctx.random_seed() % WOKEN_KEYS);
        ctx.sleep(Duration::from_millis(milliseconds)).await?;
        ctx.object_client::<CounterClient>(key).add(WOKEN as u64).call().await?;
        Ok(())
    }
}

struct Fan;

#[service]
impl Fan {
    /// Calls another service so often, all at once, and waits for all answers.
    #[handler]
    async fn calls(&self, ctx: Context<'_>, count: u64) -> Result<u64, TerminalError> {
        let calls: Vec<_> =
            (0..count).map(|_| ctx.service_client::<EchoClient>().echo("one of many".to_owned()).call()).collect();
        for call in calls {
            call.await?;
        }
        Ok(count)
    }
}

struct Wide;

#[object]
impl Wide {
    /// Sets so many keys of the object's state.
    #[handler]
    async fn keys(&self, ctx: ObjectContext<'_>, count: u64) -> Result<u64, TerminalError> {
        (0..count).for_each(|n| ctx.set(&format!("key-{n}"), n));
        Ok(count)
    }
}

struct Counter;

#[object]
impl Counter {
    /// Adds one. The body says to which batch the call belongs.
    #[handler]
    async fn add(&self, ctx: ObjectContext<'_>, batch: u64) -> Result<u64, TerminalError> {
        let batch = usize::try_from(batch).ok().and_then(|batch| HANDLED.get(batch));
        let batch = batch.ok_or_else(|| TerminalError::new("there is no such batch"))?;
        let count = ctx.get::<u64>(COUNT).await?.unwrap_or(0) + 1;
        ctx.set(COUNT, count);
        batch.fetch_add(1, Ordering::Relaxed);
        Ok(count)
    }

    #[handler]
    async fn get(&self, ctx: ObjectContext<'_>) -> Result<u64, TerminalError> {
        Ok(ctx.get::<u64>(COUNT).await?.unwrap_or(0))
    }
}

/// Serves until the process is ended: handlers on `port`, progress on `progress_port`, both on loopback.
pub(crate) async fn serve(port: u16, progress_port: u16) -> Result<()> {
    let progress = TcpListener::bind((Ipv4Addr::LOCALHOST, progress_port)).await.context("listen for progress")?;
    let handlers = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("listen for handlers")?;
    let endpoint = Endpoint::builder().bind(Echo).bind(Nested).bind(Sleeper).bind(Fan).bind(Wide).bind(Counter).build();
    tokio::select! {
        biased;
        // Either ends with the process: nothing is lost.
        () = HttpServer::new(endpoint).serve(handlers) => Ok(()),
        // As above.
        told = tell_progress(progress) => told,
    }
}

async fn tell_progress(listener: TcpListener) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await.context("accept")?;
        for batch in &HANDLED {
            // Whoever asked may have left again.
            let _ = stream.write_u64(batch.load(Ordering::Relaxed)).await;
        }
    }
}

/// How many executions of a batch the endpoint with this progress port has seen.
pub(crate) async fn handled(progress_port: u16, batch: usize) -> Result<u64> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, progress_port)).await.context("ask for progress")?;
    let mut counts = [0; HANDLED.len()];
    for count in &mut counts {
        *count = stream.read_u64().await.context("read the progress")?;
    }
    Ok(counts[batch])
}
