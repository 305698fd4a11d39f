//! The main job, judged: both programs of an example consume Kafka topics while server, handlers and broker are killed.
//!
//! Owns: one run for one language, and all that must hold after it: the state of every key exact, in order, nothing lost, nothing
//! twice, no finished step run again. Every kill waits for progress and their number is fixed; the seed chooses when and in which
//! order. Does not own: the processes.

use crate::broker::{Broker, NewRecord};
use crate::judge::Verdict;
use crate::wait::eventually;
use crate::{Handlers, Language, Ledger, Server};
use anyhow::{Context, Result, ensure};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use surefoot_client::Ingress;
use surefoot_client::admin::{KafkaCluster, NewDeployment, NewSubscription};
use surefoot_client::ingress::{Call, Target};

const KILLS: [Kill; 5] = [Kill::Server, Kill::Server, Kill::Server, Kill::Handlers, Kill::Broker];
const USERS: usize = 200;
/// One per round: a first, and one that is under way during each kill.
const POSTS_PER_USER: usize = KILLS.len() + 1;
const DELIVERIES: usize = 200;
const LOCATIONS_PER_DELIVERY: usize = KILLS.len();
/// Deliveries that nobody registers: their events end with a terminal error and hold up nothing.
const STRANGERS: usize = 20;
const KAFKA_PARTITIONS: i32 = 4;
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const PENDING_LOOKS: u32 = 1;

/// Without any step for so long the run has failed. Beyond the Kafka session time-out, so that a slow resumption is no failure here.
const STALL: Duration = Duration::from_secs(60);
const SESSION_TIMEOUT_MS: &str = "10000";
/// Calls in flight while states are compared.
const READERS: usize = 16;

/// What a kill of handlers or broker makes the server say, rightly.
const EXPECTED_LOG_LINES: [&str; 3] = ["invocation keeps failing", "the subscription does not run", "librdkafka: "];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    Server,
    Handlers,
    Broker,
}

/// Runs the main job with the example of one language.
pub async fn main_job(language: Language, broker: &mut Broker, seed: u64) -> Result<()> {
    let started = Instant::now();
    let mut random = fastrand::Rng::with_seed(seed);
    let ledger = Ledger::start(|_| PENDING_LOOKS).await?;
    let mut handlers = Handlers::start(language, ledger.address(), POLL_INTERVAL).await?;
    let mut server = Server::start(&[]).await?;
    server.admin().register(&NewDeployment::at(handlers.uri())).await.context("register the handlers")?;
    create_cluster(&server, broker, &[("session.timeout.ms", SESSION_TIMEOUT_MS)]).await?;

    let topics = ["posts", "deliveries", "locations"].map(|name| format!("{name}-{language}"));
    let [posts, deliveries, locations] = &topics;
    let sinks = [("UserFeed", "processPost"), ("DeliveryTracker", "register"), ("DeliveryTracker", "setLocation")];
    for (topic, (service, handler)) in topics.iter().zip(sinks) {
        broker.create_topic(topic, KAFKA_PARTITIONS).await?;
        let subscription = NewSubscription::new("local", topic, service, handler).from_earliest();
        server.admin().subscribe(&subscription).await.context("subscribe")?;
    }

    // The server dies first, while it takes the registrations in; then the seed decides.
    let mut kills = KILLS;
    random.shuffle(&mut kills[1..]);
    broker.produce(deliveries, registrations()).await.context("produce registrations")?;
    broker.produce(posts, posts_of_round(0, &mut random)).await.context("produce posts")?;
    for (round, kill) in kills.into_iter().enumerate() {
        let mut producing = vec![tokio::spawn(broker.produce(posts, posts_of_round(round + 1, &mut random)))];
        if let Some(round) = round.checked_sub(1) {
            producing.push(tokio::spawn(broker.produce(locations, locations_of_round(round, &mut random))));
        }
        // In the midst of what is under way, and never beyond what was produced.
        let completions = ledger.completions() + random.usize(USERS / 8..USERS / 2);
        let completions = completions.min((round + 2) * USERS - USERS / 4);
        ledger.reach(completions, STALL).await.with_context(|| format!("before kill {round} ({kill:?})"))?;
        eprintln!("{language}: {} of {} posts done, killing: {kill:?}", ledger.completions(), USERS * POSTS_PER_USER);
        match kill {
            Kill::Server => {
                server.kill()?;
                server.restart().await?;
            }
            Kill::Handlers => {
                handlers.kill()?;
                handlers.restart().await?;
            }
            Kill::Broker => {
                broker.kill()?;
                broker.restart().await?;
            }
        }
        for produced in producing {
            produced.await.context("join the producer")?.context("produce")?;
        }
        if round == 0 {
            // Between two topics there is no order: locations presume that their delivery is known.
            expect_deliveries(&server.ingress(), 0).await.context("wait for the registrations")?;
        }
    }
    let last = LOCATIONS_PER_DELIVERY - 1;
    broker.produce(locations, locations_of_round(last, &mut random)).await.context("produce locations")?;

    let total = USERS * POSTS_PER_USER;
    ledger.reach(total, STALL).await.context("after the last kill")?;

    let verdict = ledger.judge(&expected_feeds())?;
    expect_feeds(&server.ingress()).await?;
    expect_deliveries(&server.ingress(), LOCATIONS_PER_DELIVERY).await?;
    expect_strangers(&server.ingress()).await?;
    server.expect_quiet(&EXPECTED_LOG_LINES)?;
    let Verdict { executions, repeated, .. } = verdict;
    let seconds = started.elapsed().as_secs();
    eprintln!(
        "{language}: {total} posts, {executions} steps ({repeated} again), {} kills, {seconds} s: all states exact",
        kills.len()
    );
    Ok(())
}

/// Registers the Kafka cluster `local` with these properties beside the broker's address.
pub async fn create_cluster(server: &Server, broker: &Broker, properties: &[(&str, &str)]) -> Result<()> {
    let address = broker.address();
    let all = properties.iter().copied().chain([("bootstrap.servers", address.as_str())]);
    let properties = all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let cluster = KafkaCluster { name: "local".to_owned(), properties };
    server.admin().create_kafka_cluster(&cluster).await.context("create the Kafka cluster")?;
    Ok(())
}

fn user(n: usize) -> String {
    format!("user-{n}")
}

fn delivery(n: usize) -> String {
    format!("delivery-{n}")
}

fn post(user: usize, round: usize) -> String {
    format!("{user}/{round}")
}

fn registrations() -> Vec<NewRecord> {
    (0..DELIVERIES).map(|n| NewRecord::json(&delivery(n), &json!({ "title": title(n) }))).collect()
}

fn title(delivery: usize) -> String {
    format!("parcel {delivery}")
}

/// One post of every user, the users in any order.
fn posts_of_round(round: usize, random: &mut fastrand::Rng) -> Vec<NewRecord> {
    let mut users: Vec<usize> = (0..USERS).collect();
    random.shuffle(&mut users);
    let record = |n: usize| NewRecord::json(&user(n), &json!({ "id": post(n, round), "content": format!("post {round}") }));
    users.into_iter().map(record).collect()
}

/// One location of every delivery, those in any order that nobody registered included.
fn locations_of_round(round: usize, random: &mut fastrand::Rng) -> Vec<NewRecord> {
    let mut deliveries: Vec<usize> = (0..DELIVERIES + STRANGERS).collect();
    random.shuffle(&mut deliveries);
    deliveries.into_iter().map(|n| NewRecord::json(&delivery(n), &location(n, round))).collect()
}

/// Of numbers that every language prints alike.
fn location(delivery: usize, round: usize) -> Value {
    json!({ "timestamp": delivery * 1000 + round, "latitude": 52.5, "longitude": 13.25 })
}

fn expected_feeds() -> BTreeMap<String, Vec<String>> {
    (0..USERS).map(|n| (user(n), (0..POSTS_PER_USER).map(|round| post(n, round)).collect())).collect()
}

async fn expect_feeds(ingress: &Ingress) -> Result<()> {
    stream::iter(expected_feeds())
        .map(|(user, posts)| expect_state(ingress, "UserFeed", user, "getFeed", json!(posts)))
        .buffer_unordered(READERS)
        .try_collect()
        .await
}

async fn expect_deliveries(ingress: &Ingress, locations: usize) -> Result<()> {
    let expected = |n: usize| {
        let locations: Vec<Value> = (0..locations).map(|round| location(n, round)).collect();
        json!({ "title": title(n), "locations": locations })
    };
    stream::iter(0..DELIVERIES)
        .map(|n| expect_state(ingress, "DeliveryTracker", delivery(n), "getDelivery", expected(n)))
        .buffer_unordered(READERS)
        .try_collect()
        .await
}

async fn expect_strangers(ingress: &Ingress) -> Result<()> {
    const NOT_REGISTERED: u16 = 404;
    for n in DELIVERIES..DELIVERIES + STRANGERS {
        let answer = ingress.call(Call::new(Target::keyed("DeliveryTracker", delivery(n), "getDelivery"))).await;
        let refused = answer.as_ref().is_err_and(|error| error.is_terminal() && error.status() == Some(NOT_REGISTERED));
        ensure!(refused, "delivery {n} was never registered, but: {answer:?}");
    }
    Ok(())
}

/// Waits until a shared handler reads exactly this.
pub async fn expect_state(ingress: &Ingress, service: &str, key: String, handler: &str, expected: Value) -> Result<()> {
    eventually(&format!("the state of {service} {key}"), STALL, || async {
        let call = Call::new(Target::keyed(service, key.as_str(), handler));
        let found: Value = ingress.call(call).await?.json()?;
        ensure!(same(&found, &expected), "found {found}, expected {expected}");
        Ok(())
    })
    .await
}

/// Equal as JSON, where numbers are compared by value: 1 and 1.0 are the same.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}
