//! The scenarios: what is called, for how long, and which figures come of it.
//!
//! Owns: one trial of a scenario against one server, and the check that every counted invocation was applied exactly once. Does
//! not own: rounds and medians.

use crate::endpoint::{AFTER_KILL, FULL, NAPPING, NAPS, WOKEN};
use crate::load::{self, Call, Caller, Load};
use crate::report::Figures;
use crate::side::{Contestant, Side, Usage};
use crate::topic::{Kafka, PARTITIONS};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use surefoot_client::admin::{KafkaCluster, NewSubscription};
use surefoot_sdk_tests::wait::eventually;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const KEYS: u64 = 1000;
const COUNTER_CALLERS: usize = 64;
/// Connections that read the counters back at the end.
const READERS: u64 = 16;
/// For all keys together.
const READ_LIMIT: Duration = Duration::from_secs(60);
const COUNT_LIMIT: Duration = Duration::from_secs(60);
const DRAIN_LIMIT: Duration = Duration::from_secs(300);
/// Twice the session time-out after which a broker gives up a member of a group by default.
const RESUME_LIMIT: Duration = Duration::from_secs(90);
const RESUME_RECORDS: u64 = 100;
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Connections over which sleepers are submitted.
const SUBMITTERS: usize = 64;
const WAKE_LIMIT: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// A service that answers what it is sent, with one caller
    #[value(name = "echo-1")]
    Echo1,
    /// The same with 16 callers
    #[value(name = "echo-16")]
    Echo16,
    /// The same with 128 callers
    #[value(name = "echo-128")]
    Echo128,
    /// A service that has another one answer, with 200 callers
    #[value(name = "nested-200")]
    Nested200,
    /// The same with 2,000 callers
    #[value(name = "nested-2000")]
    Nested2000,
    /// 20,000 invocations that sleep for 5 seconds
    #[value(name = "sleepers-20000")]
    Sleepers20000,
    /// 60,000 invocations that sleep for 30 seconds
    #[value(name = "sleepers-60000")]
    Sleepers60000,
    /// 5,000 invocations that sleep for 10 seconds and then call an object, and a kill in between
    WakeAndCall,
    /// 200,000 invocations that sleep, a kill, and a restart once all sleeps are over; 4 callers of another service beside them
    #[value(name = "overdue-200000")]
    Overdue200000,
    /// An invocation that makes 1,000 calls at once, 100 times; a caller of another service beside them
    #[value(name = "fan-out-1000")]
    FanOut1000,
    /// As many calls, all at once: their table is as large as in the other
    #[value(name = "fan-out-100000")]
    FanOut100000,
    /// An invocation that sets 1,000 keys of state, 100 times; a caller of another service beside them
    #[value(name = "state-keys-1000")]
    StateKeys1000,
    /// As many keys, of one object and at once
    #[value(name = "state-keys-100000")]
    StateKeys100000,
    /// An object that counts in its state, 1,000 keys, 64 callers
    Counter,
    /// The same object fed from a topic that is full when it is subscribed, then a kill and new records
    Kafka,
}

/// How much of a scenario is run, the same for every server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    pub(crate) records: u64,
}

impl Scenario {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo1 => "echo-1",
            Self::Echo16 => "echo-16",
            Self::Echo128 => "echo-128",
            Self::Nested200 => "nested-200",
            Self::Nested2000 => "nested-2000",
            Self::Sleepers20000 => "sleepers-20000",
            Self::Sleepers60000 => "sleepers-60000",
            Self::WakeAndCall => "wake-and-call",
            Self::Overdue200000 => "overdue-200000",
            Self::FanOut1000 => "fan-out-1000",
            Self::FanOut100000 => "fan-out-100000",
            Self::StateKeys1000 => "state-keys-1000",
            Self::StateKeys100000 => "state-keys-100000",
            Self::Counter => "counter",
            Self::Kafka => "kafka",
        }
    }

    /// One trial on a server of its own. `kafka` is there if this is the scenario that needs it.
    pub(crate) async fn trial(self, contestant: &Contestant, extent: Extent, kafka: Option<&Kafka>) -> Result<Figures> {
        let side = Side::start(contestant).await?;
        // Healthy is said before every partition serves. A call to each of the keys waits for them all, and nothing is measured yet.
        expect_counted(&side, 0).await.context("wait until all keys are served")?;
        match self {
            Self::Echo1 => echo(&side, 1, extent).await,
            Self::Echo16 => echo(&side, 16, extent).await,
            Self::Echo128 => echo(&side, 128, extent).await,
            Self::Nested200 => nested(&side, 200, extent).await,
            Self::Nested2000 => nested(&side, 2_000, extent).await,
            Self::Sleepers20000 => sleepers(&side, 20_000, Nap { ms: 5_000, body: "5000" }).await,
            Self::Sleepers60000 => sleepers(&side, 60_000, Nap { ms: 30_000, body: "30000" }).await,
            Self::WakeAndCall => wake_and_call(side, 5_000, Nap { ms: 10_000, body: "10000" }).await,
            Self::Overdue200000 => overdue(side, 200_000, Nap { ms: 60_000, body: "60000" }).await,
            Self::FanOut1000 => large(&side, "Fan/calls", Large { each: 1_000, body: "1000", times: 100 }).await,
            Self::FanOut100000 => large(&side, "Fan/calls", Large { each: 100_000, body: "100000", times: 1 }).await,
            Self::StateKeys1000 => large(&side, "Wide/{}/keys", Large { each: 1_000, body: "1000", times: 100 }).await,
            Self::StateKeys100000 => large(&side, "Wide/{}/keys", Large { each: 100_000, body: "100000", times: 1 }).await,
            Self::Counter => counter(&side, extent).await,
            Self::Kafka => topic(side, extent.records, kafka.context("open a broker first")?).await,
        }
    }
}

fn echo_call() -> Call {
    Call { path: "/Echo/echo".to_owned(), body: "\"a short text to repeat\"" }
}

async fn echo(side: &Side, callers: usize, extent: Extent) -> Result<Figures> {
    Ok(calls(side, callers, extent, echo_call).await?.0)
}

/// Invocations that do much each, one after the other. The latencies are those of a caller of another service beside them.
#[derive(Debug, Clone, Copy)]
struct Large {
    each: u64,
    body: &'static str,
    times: u64,
}

async fn large(side: &Side, path: &str, Large { each, body, times }: Large) -> Result<Figures> {
    let (before, start) = (side.usage()?, Instant::now());
    let latencies = load::beside(1, side.ingress(), echo_call, async {
        let mut caller = Caller::connect(side.ingress()).await?;
        for n in 0..times {
            caller.call(Call { path: format!("/{}", path.replace("{}", &key(n))), body }).await?;
        }
        Ok(())
    });
    let latencies = latencies.await?;
    Ok(Figures {
        p50_ms: milliseconds(&latencies, 0.50),
        p99_ms: milliseconds(&latencies, 0.99),
        ..used(before, side.usage()?, each * times, start.elapsed())
    })
}

/// The latencies are those of callers of another service, from their first answer after the restart until all have woken.
async fn overdue(mut side: Side, count: u64, nap: Nap) -> Result<Figures> {
    submit(side.ingress(), count, move || Call { path: "/Sleeper/nap/send".to_owned(), body: nap.body }).await?;
    until_handled(&side, NAPPING, count, DRAIN_LIMIT).await?;
    // The log keeps the order: once these calls are answered, every sleep is in it.
    expect_counted(&side, 0).await?;
    let submitted = Instant::now();
    side.kill()?;
    let awake = side.handled(NAPS).await?;
    ensure!(awake == 0, "{awake} have woken before the last one was submitted");
    // Until the last one is due.
    sleep(Duration::from_millis(nap.ms).saturating_sub(submitted.elapsed())).await;
    let start = Instant::now();
    side.restart()?;
    eventually("an answer", COUNT_LIMIT, || async { Caller::connect(side.ingress()).await?.call(echo_call()).await.map(drop) })
        .await?;
    let resumed_ms = Some(start.elapsed().as_secs_f64() * 1000.0);
    let latencies = load::beside(4, side.ingress(), echo_call, until_handled(&side, NAPS, count, WAKE_LIMIT)).await?;
    let (p50_ms, p99_ms) = (milliseconds(&latencies, 0.50), milliseconds(&latencies, 0.99));
    let late_ms = Some(start.elapsed().as_secs_f64() * 1000.0);
    let peak_mib = Some(side.usage()?.peak_kib as f64 / 1024.0);
    Ok(Figures { p50_ms, p99_ms, resumed_ms, late_ms, peak_mib, ..Figures::default() })
}

fn milliseconds(latencies: &Histogram<u64>, quantile: f64) -> Option<f64> {
    (!latencies.is_empty()).then(|| latencies.value_at_quantile(quantile) as f64 / 1000.0)
}

async fn nested(side: &Side, callers: usize, extent: Extent) -> Result<Figures> {
    let next = || Call { path: "/Nested/relay".to_owned(), body: "\"a short text to repeat\"" };
    Ok(calls(side, callers, extent, next).await?.0)
}

/// How long a sleeper sleeps, and the same as the body of its call.
#[derive(Debug, Clone, Copy)]
struct Nap {
    ms: u64,
    body: &'static str,
}

async fn sleepers(side: &Side, count: u64, nap: Nap) -> Result<Figures> {
    let (before, start) = (side.usage()?, Instant::now());
    submit(side.ingress(), count, move || Call { path: "/Sleeper/nap/send".to_owned(), body: nap.body }).await?;
    let due = Instant::now() + Duration::from_millis(nap.ms);
    until_handled(side, NAPS, count, WAKE_LIMIT).await?;
    let late_ms = Some(late_ms(due));
    Ok(Figures { late_ms, ..used(before, side.usage()?, count, start.elapsed()) })
}

async fn wake_and_call(mut side: Side, count: u64, nap: Nap) -> Result<Figures> {
    let start = Instant::now();
    submit(side.ingress(), count, move || Call { path: "/Sleeper/wake_and_call/send".to_owned(), body: nap.body }).await?;
    let due = Instant::now() + Duration::from_millis(nap.ms);
    sleep(Duration::from_millis(nap.ms / 2)).await;
    side.kill()?;
    let killed = Instant::now();
    side.restart()?;
    until_handled(&side, WOKEN, count, WAKE_LIMIT).await?;
    let (late_ms, resumed_ms) = (Some(late_ms(due)), Some(killed.elapsed().as_secs_f64() * 1000.0));
    let per_second = Some(count as f64 / start.elapsed().as_secs_f64());
    Ok(Figures { per_second, resumed_ms, late_ms, ..Figures::default() })
}

/// Milliseconds since something was due.
fn late_ms(due: Instant) -> f64 {
    due.elapsed().as_secs_f64() * 1000.0
}

/// Makes so many calls over a few connections.
async fn submit(address: &str, count: u64, call: impl Fn() -> Call + Copy + Send + 'static) -> Result<()> {
    let mut submitters = JoinSet::new();
    for first in 0..SUBMITTERS {
        let address = address.to_owned();
        submitters.spawn(async move {
            let mut caller = Caller::connect(&address).await?;
            for _ in (first as u64..count).step_by(SUBMITTERS) {
                caller.call(call()).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = submitters.join_next().await {
        done.context("wait for a submitter")??;
    }
    Ok(())
}

async fn counter(side: &Side, extent: Extent) -> Result<Figures> {
    let next = || Call { path: format!("/Counter/{}/add", key(fastrand::u64(..KEYS))), body: "0" };
    let (figures, calls) = calls(side, COUNTER_CALLERS, extent, next).await?;
    let counted = counted(side.ingress()).await?;
    ensure!(counted == calls, "{calls} calls succeeded, and the counters say {counted}");
    Ok(figures)
}

/// The figures of a closed loop, and how many calls there were in all.
async fn calls(side: &Side, callers: usize, extent: Extent, next: load::NextCall) -> Result<(Figures, u64)> {
    let load = Load { callers, warm_up: extent.warm_up, measured: extent.measured };
    let mut edges = Vec::new();
    let at_edge = || {
        edges.push(side.usage()?);
        Ok(())
    };
    let seen = load::run(load, side.ingress(), next, at_edge).await?;
    let [before, after] = edges[..] else { unreachable!("the window has two edges") };
    let figures = Figures {
        p50_ms: milliseconds(&seen.latencies, 0.50),
        p99_ms: milliseconds(&seen.latencies, 0.99),
        ..used(before, after, seen.latencies.len(), seen.window)
    };
    Ok((figures, seen.calls))
}

async fn topic(mut side: Side, records: u64, kafka: &Kafka) -> Result<Figures> {
    let name = format!("bench-{:016x}", fastrand::u64(..));
    kafka.create_topic(&name).await?;
    kafka.produce(&name, records, "0", partition_and_key)?;
    let properties = BTreeMap::from([("bootstrap.servers".to_owned(), kafka.bootstrap().to_owned())]);
    side.admin().create_kafka_cluster(&KafkaCluster { name: "bench".to_owned(), properties }).await?;

    let (before, start) = (side.usage()?, Instant::now());
    side.admin().subscribe(&NewSubscription::new("bench", &name, "Counter", "add").from_earliest()).await?;
    until_handled(&side, FULL, records, DRAIN_LIMIT).await?;
    let (after, window) = (side.usage()?, start.elapsed());
    expect_counted(&side, records).await?;

    side.kill()?;
    let killed = Instant::now();
    kafka.produce(&name, RESUME_RECORDS, "1", partition_and_key)?;
    side.restart()?;
    until_handled(&side, AFTER_KILL, RESUME_RECORDS, RESUME_LIMIT).await?;
    let resumed_ms = Some(killed.elapsed().as_secs_f64() * 1000.0);
    expect_counted(&side, records + RESUME_RECORDS).await?;
    Ok(Figures { resumed_ms, ..used(before, after, records, window) })
}

async fn until_handled(side: &Side, batch: usize, wanted: u64, limit: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let handled = side.handled(batch).await?;
        if handled >= wanted {
            return Ok(());
        }
        ensure!(start.elapsed() < limit, "{handled} of {wanted} were handled in {limit:?}");
        sleep(LOOK_EVERY).await;
    }
}

/// The figures that every scenario has, from what the server had used before and after.
fn used(before: Usage, after: Usage, invocations: u64, window: Duration) -> Figures {
    let invocations = invocations as f64;
    Figures {
        per_second: Some(invocations / window.as_secs_f64()),
        cpu_ms_per_thousand: Some((after.cpu - before.cpu).as_secs_f64() * 1e6 / invocations),
        written_per_invocation: Some((after.written - before.written) as f64 / invocations),
        peak_mib: Some(after.peak_kib as f64 / 1024.0),
        ..Figures::default()
    }
}

fn key(n: u64) -> String {
    format!("key-{n}")
}

fn partition_and_key(n: u64) -> (i32, String) {
    let n = n % KEYS;
    (i32::try_from(n).expect("there are few keys") % PARTITIONS, key(n))
}

/// Waits until the counters hold `wanted`: executions are seen at the endpoint a moment before they are applied.
async fn expect_counted(side: &Side, wanted: u64) -> Result<()> {
    eventually("the counters", COUNT_LIMIT, || async {
        let counted = counted(side.ingress()).await?;
        ensure!(counted == wanted, "{wanted} were to be counted, and the counters say {counted}");
        Ok(())
    })
    .await
}

/// The sum of all counters.
async fn counted(ingress: &str) -> Result<u64> {
    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        let ingress = ingress.to_owned();
        readers.spawn(async move {
            let (mut caller, mut sum) = (Caller::connect(&ingress).await?, 0);
            for n in (reader..KEYS).step_by(READERS as usize) {
                let count = caller.call(Call { path: format!("/Counter/{}/get", key(n)), body: "" }).await?;
                sum += std::str::from_utf8(&count)?.parse::<u64>().context("read a counter")?;
            }
            anyhow::Ok(sum)
        });
    }
    let all = async {
        let mut sum = 0;
        while let Some(part) = readers.join_next().await {
            sum += part.context("wait for a reader")??;
        }
        Ok(sum)
    };
    timeout(READ_LIMIT, all).await.context("read the counters")?
}
