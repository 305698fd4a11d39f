//! A run from its first process to the verdict.
//!
//! Owns: the order of things, when what is killed (always after so many events, never after some time), and hearing the witnesses.
//! Does not own: the rules of the verdict (`surefoot_sdk_tests::judge`), or how figures are told (`summary`).

use crate::broker::{Broker, PARTITIONS, PROPERTIES, Sent, TOPIC};
use crate::events::{EVENTS_MAX, Events, KEYS_MAX};
use crate::processes::{Handlers, Server};
use crate::screen::Screen;
use crate::summary::{Figures, grouped, millis};
use anyhow::{Context, Result, ensure};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};
use surefoot_client::admin::{Invocation, InvocationFilter, KafkaCluster, NewDeployment, NewSubscription};
use surefoot_client::ingress::{Call, Target};
use surefoot_sdk_tests::Ledger;
use surefoot_sdk_tests::judge::{Evidence, judge};
use surefoot_sdk_tests::wait::eventually;
use tokio::time::{interval, sleep};

const SERVICE: &str = "UserFeed";
const HANDLER: &str = "processPost";
const CLUSTER: &str = "demo";
/// How long a handler sleeps, durably, when its post is still pending.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

const START_LIMIT: Duration = Duration::from_secs(30);
/// Without any step for so long nothing will come any more, and the verdict is due. Far beyond what a kill costs.
const STALL: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const SHOW_EVERY: Duration = Duration::from_millis(100);
const READ_LIMIT: Duration = Duration::from_secs(20);
/// Events that tell, any of them, that events pass again. One alone may wait for its key or sleep.
const PASSING: usize = 20;
/// Keys whose state is asked for at a time.
const READERS: usize = 16;
/// Invocations per page, as many as the server gives.
const PAGE: u32 = 1_000;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Events to send
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=EVENTS_MAX))]
    events: u64,
    /// Keys that take turns in getting them
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=KEYS_MAX))]
    keys: u64,
    /// Events to send in a second
    #[arg(long, value_name = "N", default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Times to kill -9 something: the server, the handlers, both at once, in turn
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(0..=50))]
    kills: u64,
    /// Keep the logs and data of the processes, and say where; a run that failed keeps them anyway
    #[arg(long)]
    keep_files: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    Server,
    Handlers,
    Both,
}

impl Kill {
    const TURNS: [Self; 3] = [Self::Server, Self::Handlers, Self::Both];

    fn victims(self) -> &'static str {
        match self {
            Self::Server => "the server",
            Self::Handlers => "the handlers",
            Self::Both => "server and handlers",
        }
    }

    fn hits_server(self) -> bool {
        self != Self::Handlers
    }

    fn hits_handlers(self) -> bool {
        self != Self::Server
    }
}

/// Runs the demo and tells its figures. True: all held.
pub(crate) async fn run(options: &Options) -> Result<bool> {
    let count = |n: u64| usize::try_from(n).context("count on this machine");
    let events = Events::new(count(options.events)?, count(options.keys)?)?;
    let directory = tempfile::Builder::new().prefix("surefoot-demo-").tempdir().context("create a temporary folder")?;
    let screen = Screen::new();
    let done = run_in(directory.path(), options, events, &screen).await;
    if options.keep_files || !matches!(done, Ok(true)) {
        screen.line(&format!("Logs and data of this run are kept in {}", directory.keep().display()));
    }
    done
}

async fn run_in(directory: &Path, options: &Options, events: Events, screen: &Screen) -> Result<bool> {
    let (count, keys) = (grouped(events.count()), grouped(events.keys()));
    screen.line(&format!(
        "{count} events for {keys} keys, {} a second, and kill -9 on the way ({} times)",
        options.rate, options.kills
    ));
    screen.line("");
    let slow: HashSet<_> = (0..events.count()).filter(|n| events.is_slow(*n)).map(|n| events.post(n)).collect();
    let ledger = Ledger::start(move |event| u32::from(slow.contains(event))).await?;
    let broker = Broker::start()?;
    screen.line(&format!(
        "  broker     {}, a mock in this process; it takes a killed server for alive for 2 or 3 s",
        broker.address()
    ));
    let handlers = Handlers::start(directory, ledger.address(), POLL_INTERVAL).await?;
    screen.line(&format!("  handlers   {}, the user feed of examples/rust", handlers.uri()));
    let server = Server::start(directory).await?;
    screen.line(&format!(
        "  server     http://{} for calls, http://{} for operators",
        server.ingress_address(),
        server.admin_address()
    ));
    subscribe(&server, &handlers, &broker).await?;
    screen.line(&format!("  topic      {TOPIC}, {PARTITIONS} Kafka partitions, pushed to {SERVICE}/{HANDLER}"));
    screen.line("");

    let sent = Sent::default();
    let progress = Progress { screen, events, ledger: &ledger, sent: &sent, start: Instant::now(), phase: Cell::new("") };
    let mut stage = Stage { server, handlers, progress: &progress, server_kills: 0, handlers_kills: 0 };
    let invocations = tokio::select! {
        biased;
        // This one is awaited to its end, or all of the run is dropped.
        invocations = stage.play(&broker, options) => invocations?,
        // Showing it again later is as good.
        never = progress.show() => match never {},
    };
    let feeds = stage.feeds().await?;

    let evidence = Evidence { sent: events.by_key(), feeds: Some(feeds), executions: ledger.executions() };
    let figures = Figures {
        events,
        rate: options.rate,
        sent: &sent,
        invocations: &invocations,
        server_kills: stage.server_kills,
        handlers_kills: stage.handlers_kills,
        verdict: &judge(&evidence),
    };
    screen.line(&figures.told());
    Ok(figures.hold())
}

/// Registers the handlers and binds the topic to them; returns once the server has been assigned the topic.
async fn subscribe(server: &Server, handlers: &Handlers, broker: &Broker) -> Result<()> {
    let admin = server.admin();
    admin.register(&NewDeployment::at(handlers.uri())).await.context("register the handlers")?;
    let properties =
        [("bootstrap.servers", broker.address().to_owned())].into_iter().chain(PROPERTIES.map(|(n, v)| (n, v.to_owned())));
    let properties = properties.map(|(name, value)| (name.to_owned(), value)).collect();
    admin.create_kafka_cluster(&KafkaCluster { name: CLUSTER.to_owned(), properties }).await.context("name the Kafka cluster")?;
    let subscription = NewSubscription::new(CLUSTER, TOPIC, SERVICE, HANDLER).from_earliest();
    let id = admin.subscribe(&subscription).await.context("subscribe")?.id;
    eventually("the server to be assigned the topic", START_LIMIT, || async {
        let found = admin.subscription(&id).await?;
        ensure!(found.partitions.len() == PARTITIONS, "{} Kafka partitions, {:?}", found.partitions.len(), found.last_error);
        Ok(())
    })
    .await
}

/// What a person wants to know meanwhile.
struct Progress<'a> {
    screen: &'a Screen,
    events: Events,
    ledger: &'a Ledger,
    sent: &'a Sent,
    start: Instant,
    /// What is being waited for, if it is something else than events.
    phase: Cell<&'static str>,
}

impl Progress<'_> {
    async fn show(&self) -> std::convert::Infallible {
        let mut ticks = interval(SHOW_EVERY);
        loop {
            ticks.tick().await;
            let (sent, ended) = (self.sent.count(), self.ledger.completions());
            let (percent, under_way) = (ended * 100 / self.events.count(), self.under_way());
            let text = format!(
                "{:6.1} s  {percent:3} %   {} events in, {} done, {} under way   {}",
                self.start.elapsed().as_secs_f64(),
                grouped(sent),
                grouped(ended),
                grouped(under_way),
                self.phase.get()
            );
            self.screen.moving(text.trim_end());
        }
    }

    fn under_way(&self) -> usize {
        self.sent.count().saturating_sub(self.ledger.completions())
    }
}

/// The processes that are killed, and how often they were.
struct Stage<'a> {
    server: Server,
    handlers: Handlers,
    progress: &'a Progress<'a>,
    server_kills: usize,
    handlers_kills: usize,
}

impl Stage<'_> {
    /// Sends all events, kills meanwhile, and returns what the server has committed once all have ended, or nothing moves any more.
    async fn play(&mut self, broker: &Broker, options: &Options) -> Result<Vec<Invocation>> {
        let sending = broker.send(self.progress.events, options.rate, self.progress.sent);
        tokio::try_join!(sending, self.kill_on_the_way(broker, options.kills))?;
        self.committed().await
    }

    /// Kills after equal shares of the events.
    async fn kill_on_the_way(&mut self, broker: &Broker, kills: u64) -> Result<()> {
        let all = self.progress.events.count();
        let kills = usize::try_from(kills).context("count on this machine")?;
        for (n, kill) in Kill::TURNS.into_iter().cycle().take(kills).enumerate() {
            if !self.reach(all * (n + 1) / (kills + 1)).await? {
                return Ok(());
            }
            self.kill(kill, broker).await?;
        }
        self.reach(all).await.map(drop)
    }

    async fn kill(&mut self, kill: Kill, broker: &Broker) -> Result<()> {
        let (sent, under_way) = (self.progress.sent.count(), self.progress.under_way());
        let killed = Instant::now();
        self.progress.phase.set("kill -9");
        if kill.hits_server() {
            broker.refuse_next_join()?;
            self.server.kill()?;
            self.server_kills += 1;
        }
        if kill.hits_handlers() {
            self.handlers.kill()?;
            self.handlers_kills += 1;
        }
        if kill.hits_handlers() {
            self.handlers.restart().await?;
        }
        if kill.hits_server() {
            self.server.restart().await?;
        }
        let up = millis(killed.elapsed());
        self.progress.phase.set("up again");
        let through = self.pass(sent).await?;
        let through =
            if through { format!("new events done after {}", millis(killed.elapsed())) } else { "no event since".to_owned() };
        self.progress.phase.set("");
        self.progress.screen.line(&format!(
            "{:6.1} s  killed {} with {} events under way: up again after {up}, {through}",
            self.progress.start.elapsed().as_secs_f64(),
            kill.victims(),
            grouped(under_way),
        ));
        Ok(())
    }

    /// Waits until so many events have ended. False: nothing moves any more.
    async fn reach(&mut self, ended: usize) -> Result<bool> {
        self.until(|progress| progress.ledger.completions() >= ended).await
    }

    /// Waits until one of the events from number `sent` on has ended, or all before. False: nothing moves any more.
    async fn pass(&mut self, sent: usize) -> Result<bool> {
        self.until(|progress| {
            let mut next = (sent..progress.events.count()).take(PASSING);
            next.any(|n| progress.ledger.has_completed(&progress.events.user(n), &progress.events.post(n)))
                || progress.ledger.completions() == progress.events.count()
        })
        .await
    }

    async fn until(&mut self, is_so: impl Fn(&Progress<'_>) -> bool) -> Result<bool> {
        let (mut steps, mut moved) = (self.progress.ledger.steps(), Instant::now());
        while !is_so(self.progress) {
            self.server.expect_running()?;
            self.handlers.expect_running()?;
            let now = self.progress.ledger.steps();
            if now > steps {
                (steps, moved) = (now, Instant::now());
            }
            if moved.elapsed() > STALL {
                return Ok(false);
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(true)
    }

    /// The invocations of all events, once they are completed or nothing moves any more.
    async fn committed(&mut self) -> Result<Vec<Invocation>> {
        self.progress.phase.set("asking for what is committed");
        let (mut completed, mut moved) = (0, Instant::now());
        loop {
            self.server.expect_running()?;
            let found = self.invocations().await?;
            let now = found.iter().filter(|invocation| invocation.status == "completed").count();
            if (now == found.len() && now >= self.progress.events.count()) || moved.elapsed() > STALL {
                return Ok(found);
            }
            if now > completed {
                (completed, moved) = (now, Instant::now());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn invocations(&self) -> Result<Vec<Invocation>> {
        let admin = self.server.admin();
        let mut filter = InvocationFilter { service: Some(SERVICE.to_owned()), limit: Some(PAGE), ..InvocationFilter::default() };
        let mut all = Vec::new();
        loop {
            let page = admin.invocations(&filter).await.context("list the invocations")?;
            all.extend(page.invocations.into_iter().filter(|invocation| invocation.handler == HANDLER));
            match page.next {
                Some(next) => filter.after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// The committed state of every key, read through the handler that users have for it.
    async fn feeds(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let ingress = self.server.ingress();
        let read = |user: String| {
            let ingress = ingress.clone();
            async move {
                let feed = eventually("the feed of a user", READ_LIMIT, || async {
                    let target = Target::keyed(SERVICE, user.as_str(), "getFeed");
                    Ok(ingress.call(Call::new(target)).await?.json()?)
                });
                let feed = feed.await?;
                anyhow::Ok((user, feed))
            }
        };
        let users = (0..self.progress.events.keys()).map(|n| self.progress.events.user(n));
        stream::iter(users).map(read).buffer_unordered(READERS).try_collect().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_kills_hit_server_and_handlers() {
        let first: Vec<Kill> = Kill::TURNS.into_iter().take(2).collect();
        assert!(first.iter().any(|kill| kill.hits_server()) && first.iter().any(|kill| kill.hits_handlers()));
    }
}
