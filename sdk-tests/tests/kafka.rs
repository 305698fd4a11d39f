//! What a subscription promises, one promise per test: one broker, one server and the TypeScript example serve them all.
#![expect(clippy::print_stderr, reason = "what was measured")]

use anyhow::{Context, Result, ensure};
use futures_util::future::BoxFuture;
use libtest_mimic::{Arguments, Trial};
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use surefoot_client::admin::{NewDeployment, NewSubscription, Parked, Subscription};
use surefoot_client::ingress::{Call, Target};
use surefoot_sdk_tests::broker::NewRecord;
use surefoot_sdk_tests::driver::{create_cluster, expect_state};
use surefoot_sdk_tests::wait::eventually;
use surefoot_sdk_tests::{Broker, Handlers, Language, Ledger, Server, languages};

const POLL_INTERVAL: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(60);
/// A stream that stands still starts over after 30 seconds: what is to show that it does not stand still ends before.
const STALL_LIMIT: Duration = Duration::from_secs(25);
/// What the group coordinator waits for a member that is gone; the default of the client library.
const SESSION_TIMEOUT: Duration = Duration::from_secs(45);
/// A Kafka record beyond it is parked.
const RECORD_BYTES_MAX: usize = 64 << 10;
/// How often clients ask for new Kafka partitions.
const REFRESH_MS: &str = "500";

struct Suite {
    broker: Broker,
    server: Server,
    ledger: Ledger,
    handlers: Handlers,
}

type Test = for<'a> fn(&'a mut Suite) -> BoxFuture<'a, Result<()>>;

const TESTS: &[(&str, Test)] = &[
    ("a_topic_made_again_is_read_from_its_start", |s| Box::pin(a_topic_made_again_is_read_from_its_start(s))),
    ("a_stranger_in_the_group_takes_nothing_away", |s| Box::pin(a_stranger_in_the_group_takes_nothing_away(s))),
    ("an_added_kafka_partition_is_read_from_its_start", |s| Box::pin(an_added_kafka_partition_is_read_from_its_start(s))),
    ("latest_begins_at_the_answer_whatever_dies", |s| Box::pin(latest_begins_at_the_answer_whatever_dies(s))),
    ("what_cannot_run_is_parked_and_stops_nothing", |s| Box::pin(what_cannot_run_is_parked_and_stops_nothing(s))),
    ("a_tombstone_is_an_event_with_an_empty_body", |s| Box::pin(a_tombstone_is_an_event_with_an_empty_body(s))),
    ("a_slow_key_delays_no_other", |s| Box::pin(a_slow_key_delays_no_other(s))),
    ("a_restart_resumes_before_the_session_times_out", |s| Box::pin(a_restart_resumes_before_the_session_times_out(s))),
    ("a_missing_topic_is_waited_for", |s| Box::pin(a_missing_topic_is_waited_for(s))),
    ("a_deleted_subscription_delivers_no_more", |s| Box::pin(a_deleted_subscription_delivers_no_more(s))),
    ("a_subscription_in_the_place_of_another_goes_on_there", |s| {
        Box::pin(a_subscription_in_the_place_of_another_goes_on_there(s))
    }),
    ("a_kill_in_the_middle_of_a_deletion_loses_and_repeats_nothing", |s| {
        Box::pin(a_kill_in_the_middle_of_a_deletion_loses_and_repeats_nothing(s))
    }),
    ("a_rebalance_while_too_many_are_parked_stalls_nothing", |s| {
        Box::pin(a_rebalance_while_too_many_are_parked_stalls_nothing(s))
    }),
    ("a_member_that_comes_and_goes_under_pressure_stalls_nothing", |s| {
        Box::pin(a_member_that_comes_and_goes_under_pressure_stalls_nothing(s))
    }),
    ("a_handler_that_is_away_holds_and_parks_nothing", |s| Box::pin(a_handler_that_is_away_holds_and_parks_nothing(s))),
    ("a_kafka_partition_without_a_leader_leaves_the_others_alone", |s| {
        Box::pin(a_kafka_partition_without_a_leader_leaves_the_others_alone(s))
    }),
];

fn main() -> Result<()> {
    let arguments = Arguments::from_args();
    let runtime = Arc::new(tokio::runtime::Runtime::new().context("start a runtime")?);
    // Started by the first test that runs, used by one at a time, stopped after the last.
    let suite: Arc<Mutex<Option<Suite>>> = Arc::default();
    let skipped = languages::is_broker_skipped() || Language::TypeScript.is_skipped();
    let trials = TESTS.iter().map(|&(name, test)| {
        let (runtime, suite) = (Arc::clone(&runtime), Arc::clone(&suite));
        let run = move || {
            let mut suite = suite.lock().unwrap_or_else(PoisonError::into_inner);
            runtime.block_on(with_suite(&mut suite, test)).map_err(|error| format!("{error:#}").into())
        };
        Trial::test(name, run).with_ignored_flag(skipped)
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(suite);
    conclusion.exit()
}

async fn with_suite(suite: &mut Option<Suite>, test: Test) -> Result<()> {
    let mut running = match suite.take() {
        Some(suite) => suite,
        None => Suite::start().await?,
    };
    test(&mut running).await?;
    let expected = ["the subscription does not run", "librdkafka: ", "is parked", "topic", "invocation keeps failing"];
    running.server.expect_quiet(&expected)?;
    // After a failure the next test starts afresh: nobody knows what still runs.
    *suite = Some(running);
    Ok(())
}

impl Suite {
    async fn start() -> Result<Self> {
        languages::prepare_broker()?;
        let broker = Broker::start().await?;
        let ledger = Ledger::start(|_| 0).await?;
        let handlers = Handlers::start(Language::TypeScript, ledger.address(), POLL_INTERVAL).await?;
        let server = Server::start(&[("INGRESS__REQUEST_SIZE_LIMIT", &format!("{} KiB", RECORD_BYTES_MAX >> 10))]).await?;
        server.admin().register(&NewDeployment::at(handlers.uri())).await.context("register the handlers")?;
        create_cluster(&server, &broker, &[("topic.metadata.refresh.interval.ms", REFRESH_MS)]).await?;
        Ok(Self { broker, server, ledger, handlers })
    }

    /// Another server with settings of its own, of the same broker and handlers.
    async fn other_server(&self, settings: &[(&str, &str)]) -> Result<Server> {
        let server = Server::start(settings).await?;
        server.admin().register(&NewDeployment::at(self.handlers.uri())).await.context("register the handlers")?;
        create_cluster(&server, &self.broker, &[("topic.metadata.refresh.interval.ms", REFRESH_MS)]).await?;
        Ok(server)
    }

    /// Joins a group until it is assigned something, and leaves.
    async fn visit(&self, group: &str, topic: &'static str) -> Result<()> {
        let mut config = self.broker.client();
        config.set("group.id", group).set("enable.auto.commit", "false").set("auto.offset.reset", "earliest");
        let stranger = config.create::<BaseConsumer>().context("make a consumer")?;
        stranger.subscribe(&[topic]).context("join the group")?;
        let joined = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + LIMIT;
            while stranger.assignment().is_ok_and(|assigned| assigned.count() == 0) {
                ensure!(Instant::now() < deadline, "the stranger got no Kafka partition");
                // The poll is what joins.
                let _ = stranger.poll(Duration::from_millis(100));
            }
            Ok(())
        });
        joined.await.context("join the stranger")?
    }

    async fn restart_server(&mut self) -> Result<()> {
        self.server.kill()?;
        self.server.restart().await
    }

    async fn subscribe(&self, topic: &str, handler: (&str, &str)) -> Result<Subscription> {
        let (service, handler) = handler;
        let subscription = NewSubscription::new("local", topic, service, handler).from_earliest();
        self.server.admin().subscribe(&subscription).await.context("subscribe")
    }

    async fn expect_registered(&self, prefix: &str, keys: std::ops::Range<usize>) -> Result<()> {
        for n in keys {
            let expected = json!({ "title": prefix, "locations": [] });
            expect_state(&self.server.ingress(), "DeliveryTracker", format!("{prefix}-{n}"), "getDelivery", expected).await?;
        }
        Ok(())
    }

    /// Registers a delivery without Kafka.
    async fn register(&self, key: &str) -> Result<()> {
        let call = Call::new(Target::keyed("DeliveryTracker", key, "register")).json(&json!({ "title": key }));
        self.server.ingress().call(call).await.context("register a delivery")?;
        Ok(())
    }

    async fn expect_unknown(&self, key: &str) -> Result<()> {
        let call = Call::new(Target::keyed("DeliveryTracker", key, "getDelivery"));
        let answer = self.server.ingress().call(call).await;
        ensure!(answer.as_ref().is_err_and(|error| error.status() == Some(404)), "{key} is known: {answer:?}");
        Ok(())
    }
}

const REGISTER: (&str, &str) = ("DeliveryTracker", "register");
const SET_LOCATION: (&str, &str) = ("DeliveryTracker", "setLocation");
const PROCESS_POST: (&str, &str) = ("UserFeed", "processPost");

fn registrations(prefix: &str, keys: std::ops::Range<usize>) -> Vec<NewRecord> {
    keys.map(|n| NewRecord::json(&format!("{prefix}-{n}"), &json!({ "title": prefix }))).collect()
}

fn location(n: usize) -> Value {
    json!({ "timestamp": n, "latitude": 1.5, "longitude": 2.5 })
}

/// Rule K1: the same name with another topic id is another stream, whose offsets begin again.
async fn a_topic_made_again_is_read_from_its_start(suite: &mut Suite) -> Result<()> {
    suite.broker.create_topic("again", 2).await?;
    suite.subscribe("again", REGISTER).await?;
    suite.broker.produce("again", registrations("first", 0..60)).await?;
    suite.expect_registered("first", 0..60).await?;

    suite.broker.delete_topic("again").await?;
    suite.broker.create_topic("again", 2).await?;
    // Fewer than before: all of them lie at offsets that the old topic had reached.
    suite.broker.produce("again", registrations("second", 0..40)).await?;
    suite.expect_registered("second", 0..40).await?;

    suite.restart_server().await?;
    suite.broker.produce("again", registrations("third", 0..40)).await?;
    suite.expect_registered("third", 0..40).await
}

/// Rule K7: what another member fetches and does not commit is not lost, and what was admitted is not admitted again.
async fn a_stranger_in_the_group_takes_nothing_away(suite: &mut Suite) -> Result<()> {
    const KEYS: usize = 40;
    const ROUNDS: usize = 6;
    suite.broker.create_topic("shared", 4).await?;
    let key = |n: usize| format!("shared-{n}");
    for n in 0..KEYS {
        suite.register(&key(n)).await?;
    }
    let subscription = suite.subscribe("shared", SET_LOCATION).await?;
    let group = subscription.options.get("group.id").context("find the group")?.clone();
    let round = |round: usize| (0..KEYS).map(|n| NewRecord::json(&key(n), &location(round))).collect::<Vec<_>>();

    suite.broker.produce("shared", round(0)).await?;
    for n in 1..ROUNDS {
        if n % 2 == 1 {
            let producing = tokio::spawn(suite.broker.produce("shared", round(n)));
            suite.visit(&group, "shared").await?;
            producing.await.context("join the producer")??;
        } else {
            suite.broker.produce("shared", round(n)).await?;
        }
    }
    for n in 0..KEYS {
        let expected = json!({ "title": key(n), "locations": (0..ROUNDS).map(location).collect::<Vec<_>>() });
        expect_state(&suite.server.ingress(), "DeliveryTracker", key(n), "getDelivery", expected).await?;
    }
    Ok(())
}

/// Rule K4: with `latest` too, since everything in it came after the subscription.
async fn an_added_kafka_partition_is_read_from_its_start(suite: &mut Suite) -> Result<()> {
    suite.broker.create_topic("grown", 1).await?;
    let subscription = NewSubscription::new("local", "grown", REGISTER.0, REGISTER.1);
    suite.server.admin().subscribe(&subscription).await.context("subscribe")?;
    suite.broker.grow_topic("grown", 3).await?;
    let records = registrations("grown", 0..60).into_iter().enumerate();
    let spread = records.map(|(n, record)| record.at((n % 3).try_into().expect("three fits")));
    suite.broker.produce("grown", spread.collect()).await?;
    suite.expect_registered("grown", 0..60).await
}

/// Rule K4: the start is where the topic ended when the subscription was answered, and a kill does not move it.
async fn latest_begins_at_the_answer_whatever_dies(suite: &mut Suite) -> Result<()> {
    suite.broker.create_topic("latest", 2).await?;
    suite.broker.produce("latest", registrations("old", 0..10)).await?;
    let subscription = NewSubscription::new("local", "latest", REGISTER.0, REGISTER.1);
    suite.server.admin().subscribe(&subscription).await.context("subscribe")?;
    // Killed before anything was committed, or even fetched.
    suite.server.kill()?;
    suite.broker.produce("latest", registrations("new", 0..40)).await?;
    suite.server.restart().await?;
    suite.expect_registered("new", 0..40).await?;
    for n in 0..10 {
        suite.expect_unknown(&format!("old-{n}")).await?;
    }
    Ok(())
}

/// Rule K6.
async fn what_cannot_run_is_parked_and_stops_nothing(suite: &mut Suite) -> Result<()> {
    suite.broker.create_topic("poison", 1).await?;
    let subscription = suite.subscribe("poison", REGISTER).await?;
    let no_key = NewRecord { key: None, value: Some(b"{}".to_vec()), partition: None };
    let no_text = NewRecord { key: Some(vec![b'k', 0xff]), value: Some(b"{}".to_vec()), partition: None };
    let too_large = NewRecord::json("poison-large", &json!({ "title": "x".repeat(RECORD_BYTES_MAX) }));
    let mut records = registrations("poison", 0..30);
    for (at, bad) in [(25, too_large), (12, no_text), (3, no_key)] {
        records.insert(at, bad);
    }
    suite.broker.produce("poison", records).await?;
    suite.expect_registered("poison", 0..30).await?;

    let admin = suite.server.admin();
    let parked = expect_parked(&suite.server, &subscription.id, 3).await?;
    let offsets: Vec<i64> = parked.iter().map(|parked| parked.offset).collect();
    ensure!(offsets == [3, 13, 27], "parked at {offsets:?}");
    ensure!(parked.iter().all(|parked| !parked.reason.is_empty() && parked.topic == "poison"), "{parked:?}");
    ensure!(parked[2].bytes > RECORD_BYTES_MAX as u64, "{:?}", parked[2]);

    admin.discard_parked(&subscription.id, parked[1].n).await.context("discard a parked record")?;
    // A restart neither forgets nor repeats them.
    suite.restart_server().await?;
    suite.broker.produce("poison", registrations("poison", 30..35)).await?;
    suite.expect_registered("poison", 30..35).await?;
    let left = expect_parked(&suite.server, &subscription.id, 2).await?;
    ensure!(left[0].offset == 3 && left[1].offset == 27, "{left:?}");

    let status = suite.server.admin().subscription(&subscription.id).await?;
    ensure!(status.status.as_deref() == Some("running"), "{status:?}");
    Ok(())
}

async fn expect_parked(server: &Server, subscription: &str, count: usize) -> Result<Vec<Parked>> {
    eventually("the parked records", LIMIT, || async {
        let mut parked = server.admin().parked(subscription).await?.parked;
        ensure!(parked.len() == count, "{} of {count}: {parked:?}", parked.len());
        // They are listed by the partition that keeps them.
        parked.sort_by_key(|parked| parked.offset);
        Ok(parked)
    })
    .await
}

async fn a_tombstone_is_an_event_with_an_empty_body(suite: &mut Suite) -> Result<()> {
    suite.broker.create_topic("tombs", 1).await?;
    suite.subscribe("tombs", REGISTER).await?;
    let mut records = registrations("tomb", 0..2);
    records.push(NewRecord { key: Some(b"tomb-0".to_vec()), value: None, partition: None });
    // Behind the tombstone, so that its arrival says that the tombstone was taken in.
    records.extend(registrations("tomb", 2..3));
    suite.broker.produce("tombs", records).await?;
    suite.expect_registered("tomb", 1..3).await?;
    eventually("the end of tomb-0", LIMIT, || suite.expect_unknown("tomb-0")).await
}

async fn a_slow_key_delays_no_other(suite: &mut Suite) -> Result<()> {
    suite.broker.create_topic("slow", 1).await?;
    suite.subscribe("slow", PROCESS_POST).await?;
    let post = |user: &str, n: usize| NewRecord::json(user, &json!({ "id": format!("{user}/{n}"), "content": "" }));
    suite.ledger.hold("slow");
    let mut records = vec![post("slow", 0), post("slow", 1)];
    records.extend((0..100).map(|n| post(&format!("quick-{}", n % 50), n)));
    suite.broker.produce("slow", records).await?;

    let feed = |user: usize| json!([format!("quick-{user}/{user}"), format!("quick-{user}/{}", user + 50)]);
    for n in 0..50 {
        expect_state(&suite.server.ingress(), "UserFeed", format!("quick-{n}"), "getFeed", feed(n)).await?;
    }
    expect_state(&suite.server.ingress(), "UserFeed", "slow".to_owned(), "getFeed", json!([])).await?;
    suite.ledger.release("slow");
    expect_state(&suite.server.ingress(), "UserFeed", "slow".to_owned(), "getFeed", json!(["slow/0", "slow/1"])).await
}

async fn a_restart_resumes_before_the_session_times_out(suite: &mut Suite) -> Result<()> {
    suite.broker.create_topic("resumed", 2).await?;
    suite.subscribe("resumed", REGISTER).await?;
    suite.broker.produce("resumed", registrations("resumed", 0..20)).await?;
    suite.expect_registered("resumed", 0..20).await?;

    let killed = Instant::now();
    suite.restart_server().await?;
    suite.broker.produce("resumed", registrations("resumed", 20..40)).await?;
    suite.expect_registered("resumed", 20..40).await?;
    let took = killed.elapsed();
    eprintln!("resumed {took:?} after the kill");
    ensure!(took < SESSION_TIMEOUT / 3, "it took {took:?}, the session times out after {SESSION_TIMEOUT:?}");
    Ok(())
}

/// Rule K4: a topic that was missing is read from its start.
async fn a_missing_topic_is_waited_for(suite: &mut Suite) -> Result<()> {
    let subscription = NewSubscription::new("local", "missing", REGISTER.0, REGISTER.1);
    let subscription = suite.server.admin().subscribe(&subscription).await.context("subscribe")?;
    let admin = suite.server.admin();
    let told = eventually("a status that says so", LIMIT, || async {
        let told = admin.subscription(&subscription.id).await?;
        ensure!(told.status.as_deref() != Some("running") && told.last_error.is_some(), "{told:?}");
        Ok(told)
    });
    eprintln!("while the topic is missing: {:?}", told.await?.last_error);
    suite.broker.create_topic("missing", 2).await?;
    suite.broker.produce("missing", registrations("missing", 0..20)).await?;
    suite.expect_registered("missing", 0..20).await?;
    eventually("a subscription that is well again", LIMIT, || async {
        let told = admin.subscription(&subscription.id).await?;
        let lag: Option<i64> = told.partitions.iter().map(|partition| partition.lag).sum();
        ensure!(told.status.as_deref() == Some("running") && lag == Some(0), "{told:?}");
        Ok(())
    })
    .await
}

async fn a_deleted_subscription_delivers_no_more(suite: &mut Suite) -> Result<()> {
    suite.broker.create_topic("deleted", 1).await?;
    let first = suite.subscribe("deleted", PROCESS_POST).await?;
    let post = |n: usize| NewRecord::json("deleted", &json!({ "id": n.to_string(), "content": "" }));
    suite.ledger.hold("deleted");
    suite.broker.produce("deleted", vec![post(0), post(1)]).await?;
    eventually("the first post", LIMIT, || async {
        ensure!(suite.ledger.executions().iter().any(|step| step.user == "deleted"), "it did not start");
        let told = suite.server.admin().subscription(&first.id).await?;
        let position: Option<i64> = told.partitions.first().and_then(|partition| partition.position);
        ensure!(position == Some(2), "{told:?}");
        Ok(())
    })
    .await?;
    suite.server.admin().unsubscribe(&first.id).await.context("unsubscribe")?;
    suite.broker.produce("deleted", vec![post(2)]).await?;
    // Another subscription sees all three: when it has, the deleted one has had its time.
    suite.subscribe("deleted", REGISTER).await?;
    let last = json!({ "locations": [] });
    eventually("the other subscription", LIMIT, || async {
        let call = Call::new(Target::keyed("DeliveryTracker", "deleted", "getDelivery"));
        let found: Value = suite.server.ingress().call(call).await?.json()?;
        ensure!(found["locations"] == last["locations"], "{found}");
        Ok(())
    })
    .await?;
    suite.ledger.release("deleted");
    // What was admitted still runs; what came after the deletion does not.
    expect_state(&suite.server.ingress(), "UserFeed", "deleted".to_owned(), "getFeed", json!(["0", "1"])).await
}

fn group(subscription: &Subscription) -> Result<String> {
    subscription.options.get("group.id").cloned().context("find the group")
}

/// Rule K10: nothing is lost and nothing runs twice between a subscription and the one in its place.
async fn a_subscription_in_the_place_of_another_goes_on_there(suite: &mut Suite) -> Result<()> {
    const KEYS: usize = 20;
    const ROUNDS: usize = 10;
    const EACH: usize = 10;
    suite.broker.create_topic("moved", 4).await?;
    let key = |n: usize| format!("moved-{n}");
    for n in 0..KEYS {
        suite.register(&key(n)).await?;
    }
    let new =
        NewSubscription::new("local", "moved", SET_LOCATION.0, SET_LOCATION.1).from_earliest().option("group.id", "moved-group");
    let mut subscription = suite.server.admin().subscribe(&new).await.context("subscribe")?;
    for round in 0..ROUNDS {
        let records = (round * EACH..(round + 1) * EACH).flat_map(|at| (0..KEYS).map(move |n| (n, at)));
        let records = records.map(|(n, at)| NewRecord::json(&key(n), &location(at))).collect();
        let producing = tokio::spawn(suite.broker.produce("moved", records));
        suite.server.admin().unsubscribe(&subscription.id).await.context("unsubscribe")?;
        subscription = suite.server.admin().subscribe(&new).await.context("subscribe again")?;
        producing.await.context("join the producer")??;
    }
    for n in 0..KEYS {
        let expected = json!({ "title": key(n), "locations": (0..ROUNDS * EACH).map(location).collect::<Vec<_>>() });
        expect_state(&suite.server.ingress(), "DeliveryTracker", key(n), "getDelivery", expected).await?;
    }
    suite.server.admin().unsubscribe(&subscription.id).await.context("unsubscribe")
}

/// Rule K10: what was taken since the last commit ran again under the subscription in its place.
async fn a_kill_in_the_middle_of_a_deletion_loses_and_repeats_nothing(suite: &mut Suite) -> Result<()> {
    const KEYS: usize = 20;
    const ROUNDS: usize = 6;
    const EACH: usize = 20;
    suite.broker.create_topic("cut-short", 4).await?;
    let key = |n: usize| format!("cut-short-{n}");
    for n in 0..KEYS {
        suite.register(&key(n)).await?;
    }
    let new = NewSubscription::new("local", "cut-short", SET_LOCATION.0, SET_LOCATION.1)
        .from_earliest()
        .option("group.id", "cut-short-group");
    let mut subscription = suite.server.admin().subscribe(&new).await.context("subscribe")?;
    let mut cut_short = 0;
    for round in 0..ROUNDS {
        let records = (round * EACH..(round + 1) * EACH).flat_map(|at| (0..KEYS).map(move |n| (n, at)));
        let records = records.map(|(n, at)| NewRecord::json(&key(n), &location(at))).collect();
        let producing = tokio::spawn(suite.broker.produce("cut-short", records));
        eventually("the first of the round", LIMIT, || async {
            let call = Call::new(Target::keyed("DeliveryTracker", key(0), "getDelivery"));
            let found: Value = suite.server.ingress().call(call).await?.json()?;
            ensure!(found["locations"].as_array().is_some_and(|found| found.len() > round * EACH), "{found}");
            Ok(())
        })
        .await?;
        // A deletion commits what it is past. Where the broker does not answer it cannot end before the kill.
        let is_suspended = round % 2 == 1;
        if is_suspended {
            suite.broker.suspend()?;
        }
        let (admin, id) = (suite.server.admin(), subscription.id.clone());
        let deleting = tokio::spawn(async move { admin.unsubscribe(&id).await });
        // Killed as soon as the deletion shows, or has ended: asked for as often as it answers, since it takes some milliseconds.
        let deadline = Instant::now() + LIMIT;
        loop {
            let found = suite.server.admin().subscription(&subscription.id).await;
            let is_under_way = match &found {
                Ok(found) => found.status.as_deref() == Some("closing"),
                Err(error) => error.status() == Some(404),
            };
            if is_under_way {
                break;
            }
            ensure!(Instant::now() < deadline, "no deletion within {LIMIT:?}: {found:?}");
        }
        cut_short += usize::from(!deleting.is_finished());
        suite.server.kill()?;
        if is_suspended {
            suite.broker.resume()?;
        }
        suite.server.restart().await?;
        // It had no answer, or 200.
        let _ = deleting.await.context("join the deletion")?;
        subscription = suite.server.admin().subscribe(&new).await.context("subscribe again")?;
        producing.await.context("join the producer")??;
    }
    ensure!(cut_short >= ROUNDS / 2, "{cut_short} of {ROUNDS} kills came before the deletion had ended");
    for n in 0..KEYS {
        let expected = json!({ "title": key(n), "locations": (0..ROUNDS * EACH).map(location).collect::<Vec<_>>() });
        expect_state(&suite.server.ingress(), "DeliveryTracker", key(n), "getDelivery", expected).await?;
    }
    eprintln!("cut-short: {cut_short} of {ROUNDS} kills came before the deletion's answer");
    suite.server.admin().unsubscribe(&subscription.id).await.context("unsubscribe")
}

/// A Kafka partition stood still for good after the group had changed while the subscription was paused.
async fn a_rebalance_while_too_many_are_parked_stalls_nothing(suite: &mut Suite) -> Result<()> {
    suite.broker.create_topic("held", 2).await?;
    let server = suite.other_server(&[("KAFKA__PARKED_RECORDS_LIMIT", "1")]).await?;
    let admin = server.admin();
    let no_key = |partition| NewRecord { key: None, value: Some(b"{}".to_vec()), partition: Some(partition) };
    let mut records: Vec<NewRecord> = [0, 0, 1, 1].map(no_key).into();
    let good = registrations("held", 0..100).into_iter().enumerate();
    records.extend(good.map(|(n, record)| record.at((n % 2).try_into().expect("two fits"))));
    suite.broker.produce("held", records).await?;
    let new = NewSubscription::new("local", "held", REGISTER.0, REGISTER.1).from_earliest();
    let subscription = admin.subscribe(&new).await.context("subscribe")?;
    let paused = || async {
        let told = admin.subscription(&subscription.id).await?;
        ensure!(told.status.as_deref() == Some("paused"), "{told:?}");
        Ok(())
    };
    eventually("a subscription that pauses", LIMIT, paused).await?;
    suite.visit(&group(&subscription)?, "held").await?;
    eventually("the discarding of what is parked", STALL_LIMIT, || async {
        let parked = admin.parked(&subscription.id).await?.parked;
        ensure!(parked.len() <= 1, "{parked:?}");
        for parked in parked {
            admin.discard_parked(&subscription.id, parked.n).await?;
        }
        expect_read(&server, &subscription, 104).await
    })
    .await?;
    for n in 0..100 {
        let expected = json!({ "title": "held", "locations": [] });
        expect_state(&server.ingress(), "DeliveryTracker", format!("held-{n}"), "getDelivery", expected).await?;
    }
    expect_no_standstill(&server)
}

/// Everything was taken up to the end of the topic, which has so many Kafka records.
async fn expect_read(server: &Server, subscription: &Subscription, records: i64) -> Result<()> {
    let told = server.admin().subscription(&subscription.id).await?;
    let read: i64 = told.partitions.iter().filter_map(|partition| partition.position).sum();
    ensure!(told.status.as_deref() == Some("running") && read == records, "{told:?}");
    Ok(())
}

fn expect_no_standstill(server: &Server) -> Result<()> {
    ensure!(!server.log_text().contains("stands still"), "a Kafka partition stood still:\n{}", server.log_text());
    Ok(())
}

async fn a_member_that_comes_and_goes_under_pressure_stalls_nothing(suite: &mut Suite) -> Result<()> {
    const RECORDS: usize = 6_000;
    const PARTITIONS: i32 = 8;
    suite.broker.create_topic("pressed", PARTITIONS).await?;
    // As little memory as may be, so that the edge is shut most of the time.
    let server = suite.other_server(&[("MEMORY_SIZE", "16MiB"), ("CHECKPOINT_INTERVAL", "1s")]).await?;
    let body = "x".repeat(8 << 10);
    let records = (0..RECORDS).map(|n| NewRecord::json(&format!("pressed-{n}"), &json!({ "title": body })));
    let records = records.enumerate().map(|(n, record)| record.at(i32::try_from(n).expect("it fits") % PARTITIONS));
    suite.broker.produce("pressed", records.collect()).await?;
    let new = NewSubscription::new("local", "pressed", REGISTER.0, REGISTER.1).from_earliest();
    let subscription = server.admin().subscribe(&new).await.context("subscribe")?;
    for _ in 0..3 {
        suite.visit(&group(&subscription)?, "pressed").await?;
    }
    eventually("the end of the topic", LIMIT, || expect_read(&server, &subscription, RECORDS as i64)).await?;
    expect_no_standstill(&server)
}

async fn a_handler_that_is_away_holds_and_parks_nothing(suite: &mut Suite) -> Result<()> {
    const KEYS: usize = 10;
    suite.broker.create_topic("away", 2).await?;
    let server = suite.other_server(&[]).await?;
    let (admin, ingress) = (server.admin(), server.ingress());
    let key = |n: usize| format!("away-{n}");
    for n in 0..KEYS {
        let call = Call::new(Target::keyed("DeliveryTracker", key(n), "register")).json(&json!({ "title": key(n) }));
        ingress.call(call).await.context("register a delivery")?;
    }
    let new = NewSubscription::new("local", "away", SET_LOCATION.0, SET_LOCATION.1).from_earliest();
    let subscription = admin.subscribe(&new).await.context("subscribe")?;
    let round = |at: usize| (0..KEYS).map(|n| NewRecord::json(&key(n), &location(at))).collect::<Vec<_>>();
    suite.broker.produce("away", round(0)).await?;
    let state = |rounds: usize, n: usize| json!({ "title": key(n), "locations": (0..rounds).map(location).collect::<Vec<_>>() });
    for n in 0..KEYS {
        expect_state(&ingress, "DeliveryTracker", key(n), "getDelivery", state(1, n)).await?;
    }
    for deployment in admin.deployments().await? {
        admin.delete_deployment(&deployment.id).await.context("delete the deployment")?;
    }
    for at in 1..4 {
        suite.broker.produce("away", round(at)).await?;
    }
    let told = eventually("a subscription that pauses", LIMIT, || async {
        let told = admin.subscription(&subscription.id).await?;
        ensure!(told.status.as_deref() == Some("paused"), "{told:?}");
        Ok(told)
    })
    .await?;
    ensure!(told.last_error.is_some_and(|words| words.contains("DeliveryTracker/setLocation")), "it does not name its handler");
    admin.register(&NewDeployment::at(suite.handlers.uri())).await.context("register the handlers again")?;
    for n in 0..KEYS {
        expect_state(&ingress, "DeliveryTracker", key(n), "getDelivery", state(4, n)).await?;
    }
    expect_parked(&server, &subscription.id, 0).await?;
    Ok(())
}

/// The last test: its topic needs a broker that is gone then.
async fn a_kafka_partition_without_a_leader_leaves_the_others_alone(suite: &mut Suite) -> Result<()> {
    const EACH: usize = 10;
    let mut second = suite.broker.start_second().await?;
    suite.broker.create_topic_on("half", &[1, 2, 1, 2]).await?;
    suite.broker.create_topic_on("half-latest", &[1, 2]).await?;
    suite.broker.produce("half-latest", registrations("old", 0..20)).await?;
    let at = |partition: i32, record: NewRecord| record.at(partition);
    let mut records = Vec::new();
    for partition in 0..4 {
        let keys = partition as usize * EACH..(partition as usize + 1) * EACH;
        records.extend(registrations("half", keys).into_iter().map(|record| at(partition, record)));
    }
    suite.broker.produce("half", records).await?;
    second.kill()?;
    suite.broker.expect_leaders("half", 2).await?;

    let subscription = suite.subscribe("half", REGISTER).await?;
    suite.expect_registered("half", 0..EACH).await?;
    suite.expect_registered("half", 2 * EACH..3 * EACH).await?;
    eventually("a status that names them", LIMIT, || async {
        let told = suite.server.admin().subscription(&subscription.id).await?;
        let words = told.last_error.clone().unwrap_or_default();
        ensure!(words.contains("Kafka partition 1") && words.contains("Kafka partition 3"), "{told:?}");
        Ok(())
    })
    .await?;
    // So it is after a restart.
    suite.restart_server().await?;
    let more = registrations("half", 40..50).into_iter().map(|record| at(0, record)).collect();
    suite.broker.produce("half", more).await?;
    suite.expect_registered("half", 40..50).await?;

    // Rule K4: `latest` is where it ended when it was asked for, whenever somebody can say where that was.
    let latest = NewSubscription::new("local", "half-latest", SET_LOCATION.0, SET_LOCATION.1);
    let latest = suite.server.admin().subscribe(&latest).await.context("subscribe to the latest")?;
    suite.register("led").await?;
    // The producer waits for the leader, too: it is there before the server looks again.
    let late = vec![NewRecord::json("led", &location(7)).at(1)];
    let producing = tokio::spawn(suite.broker.produce("half-latest", late));
    second.restart().await?;
    producing.await.context("join the producer")??;
    suite.expect_registered("half", 0..50).await?;
    let expected = json!({ "title": "led", "locations": [location(7)] });
    expect_state(&suite.server.ingress(), "DeliveryTracker", "led".to_owned(), "getDelivery", expected).await?;
    suite.server.admin().unsubscribe(&latest.id).await.context("unsubscribe")?;
    suite.server.admin().unsubscribe(&subscription.id).await.context("unsubscribe")
}
