//! One scenario: clients call an object, topics are read, operators interfere, the node dies and comes back, and a reference
//! model says what must be true.
//!
//! Owns: the world's parts, the lives of its node, and when all that must has arrived. Does not own: what clients, topics and
//! operators do and what must come of it (`clients`, `topics`, `operators`), or what is left at the end (`ending`).

use crate::broker::Broker;
use crate::executor::{Executor, Life, Ran, WORLD};
use crate::handler::Handlers;
use crate::member::SimClient;
use crate::services::deployment;
use crate::transport::{Fault, SimTransport};
use crate::{clients, ending, operators, topics};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surefoot_admin::{Admin, Readiness};
use surefoot_env::sim::{Rng, SimDisk};
use surefoot_env::{Disk, Env};
use surefoot_ingress::{Ingress, Request};
use surefoot_kafka::Bounds;
use surefoot_model::catalog::{CatalogEvent, KafkaCluster};
use surefoot_model::{Outcome, PartitionId, Timestamp};
use surefoot_partition::{MachineMutant, PartitionHealth, Partitions, Shortage};
use surefoot_server::backup::Backups;
use surefoot_server::config::Config;
use surefoot_server::node::{self, Mutants, Node, Place, Seams};
use surefoot_server::sources::KafkaSources;
use surefoot_storage::{Engine, MemEngine};
use tokio::sync::{Notify, oneshot};

/// What a run does.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub clients: u64,
    /// Operations per client.
    pub operations: u64,
    pub keys: u64,
    /// Kafka records that are produced while everything else happens.
    pub records: u64,
    /// Lives of the node; the last one ends well, others may, and most end in a power failure or a kill.
    pub lives: u64,
    /// Chance per point of failure that a handler fails, in thousandths.
    pub fail_per_mille: u64,
    /// Lives in the middle run a build that stumbles over one record, so that its partition stops; the last is repaired.
    pub repairs: bool,
    pub mutants: Mutants,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            clients: 4,
            operations: 5,
            keys: 3,
            records: 40,
            lives: 6,
            fail_per_mille: 15,
            repairs: false,
            mutants: Mutants::default(),
        }
    }
}

/// Every other world's records may do next to nothing at once, so that much goes on by chores (rule M9), whenever power fails.
fn with_chores(mutants: Mutants, seed: u64) -> Mutants {
    match mutants.machine {
        MachineMutant::None if seed % 2 == 1 => Mutants { machine: MachineMutant::TightRows, ..mutants },
        _ => mutants,
    }
}

/// What happened in a run that found nothing wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Equal for two runs of one seed.
    pub hash: u64,
    pub operations: u64,
    /// Kafka records that were produced.
    pub records: u64,
    pub attempts: u64,
    pub crashes: u64,
    /// Kafka records that were read before anybody knew that their topic was another one.
    pub strays: u64,
}

/// Polls of a life that is to end in a crash.
const POLLS_MAX: u64 = 4_000;
/// A flush of the engine that fails is one of so many first ones of a life.
const FLUSHES: u64 = 24;
/// The log's first segments, so small that one is full before long, and what it keeps in reserve.
const SEGMENT_BYTES: u64 = 4 << 10;
const LOG_RESERVE: u64 = 16 << 10;
/// What the edges leave free on the disk, at most this share of it, and for how long it may take until they are shut or open: it is looked at every second.
pub(crate) const DISK_RESERVE: u64 = 64 << 10;
const DISK_RESERVE_SHARE: u64 = 4;
pub(crate) const DISK_MAX: Duration = Duration::from_secs(2);
/// How long it may take until they are open where what found no room is tried again by something slow: a dozen of its longest steps.
const OPEN_SLOW_MAX: Duration = Duration::from_secs(20);
/// Polls after which a world that has not ended never will.
const POLLS_LIMIT: u64 = 200_000;
/// How long everything that is under way may take to arrive once there is no more trouble.
const ARRIVAL_MAX: Duration = Duration::from_secs(600);
/// Where the node has its log.
pub(crate) const PLACE: &str = "/log";

/// One world; clones are the same.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) executor: Executor,
    pub(crate) broker: Broker,
    pub(crate) disk: SimDisk,
    pub(crate) engine: Arc<Mutex<MemEngine>>,
    pub(crate) partitions: u16,
    /// What all lives of the node are broken by on purpose.
    pub(crate) mutants: Mutants,
    workers: usize,
    handlers: Handlers,
    model: Arc<Mutex<Model>>,
    door: Arc<Door>,
}

/// What must be true.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) clients: clients::Model,
    pub(crate) topics: topics::Model,
    pub(crate) findings: Vec<String>,
    /// The last life: it has no trouble that it would not survive.
    pub(crate) is_calm: bool,
    /// The newest revision of the handlers whose registration was acknowledged.
    pub(crate) registered: u32,
    /// Tasks of the world that have not done all they are to do.
    pub(crate) tasks_left: u64,
}

/// The node as the world reaches it.
#[derive(Default)]
struct Door {
    open: Mutex<Option<Open>>,
    opened: Notify,
    /// Asks the node that is up to stop.
    stop: Notify,
    /// Whether the last life has come to a clean stop.
    has_stopped: AtomicBool,
    /// Whether all partitions ran to its end.
    was_whole: AtomicBool,
    /// An operation of this life's disk, or a flush of its engine, fails once.
    has_bad_disk: AtomicBool,
    /// The engine finds no room for a commit.
    is_engine_full: AtomicBool,
    /// When somebody else filled disk or engine last, or made room.
    room_changed: Mutex<Duration>,
    /// The log's writer or the checkpointer is slow in this life.
    is_slow: AtomicBool,
    /// Since when the edges of this life have been seen open though the disk is short.
    open_since: Mutex<Option<Duration>>,
    /// Since when they have been seen shut for want of room though there is all the room in the world.
    shut_since: Mutex<Option<Duration>>,
}

/// A node that is up.
#[derive(Clone)]
pub(crate) struct Open {
    pub(crate) life: u64,
    pub(crate) ingress: Ingress,
    pub(crate) partitions: Partitions,
    pub(crate) admin: Admin,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one seed. Errors: what a checker found.
pub fn run(seed: u64, scenario: Scenario) -> Result<Report, String> {
    let executor = Executor::new(seed);
    let mut rng = Rng::new(seed ^ 0x5eed);
    // A build that stumbles has the same rules as the one that repairs it.
    let mutants = if scenario.repairs { scenario.mutants } else { with_chores(scenario.mutants, seed) };
    let world = World {
        scenario,
        mutants,
        partitions: 1 + rng.below(4) as u16,
        workers: 1 + rng.below(4) as usize,
        engine: Arc::default(),
        broker: Broker::new(executor.clone(), seed ^ 0xb20c_0000),
        handlers: Handlers::new(seed ^ 0x4a4d, scenario.fail_per_mille),
        executor,
        disk: SimDisk::new(),
        model: Arc::default(),
        door: Arc::default(),
    };
    let _ending = Ending(world.executor.clone());
    clients::start(&world, seed);
    topics::start(&world, seed);
    operators::start(&world, seed);
    for life in 1..=scenario.lives {
        let is_last = life == scenario.lives;
        if is_last {
            world.handlers.calm();
            world.model().is_calm = true;
            world.set_full(false);
            world.set_disk_free(None);
            world.door.has_bad_disk.store(false, Ordering::Relaxed);
        } else {
            let (fate, at) = (rng.below(7), 1 + rng.below(300));
            match fate {
                0..3 => world.disk.crash_at(at),
                3 => world.disk.fail_at(at),
                4 => lock(&world.engine).fail_flush_at(1 + at % FLUSHES),
                _ => {}
            }
            world.door.has_bad_disk.store(fate == 3 || fate == 4, Ordering::Relaxed);
        }
        let slow = match rng.below(6) {
            0 | 1 => ("checkpointer", 200),
            2 => ("log-writer", 100),
            _ => ("", 1),
        };
        world.start_life(life, seed, config(&mut rng), slow);
        let polls = if is_last { POLLS_LIMIT } else { rng.below(POLLS_MAX) };
        let ran = world.executor.run(polls, || {
            let model = world.model();
            world.disk.is_dead() || model.tasks_left == 0 || !model.findings.is_empty() || world.executor.has_findings()
        });
        world.check()?;
        if is_last {
            let left = world.model().tasks_left;
            return match ran {
                Ran::Until if left == 0 => world.finish(life - 1),
                _ => {
                    let what = ending::left(&world).unwrap_or_else(|error| error);
                    Err(format!("the work never ended: {ran:?}, {left} tasks left; {what}"))
                }
            };
        }
        if ran == Ran::Polls && rng.below(4) == 0 {
            world.stop_life(rng.below(3) == 0);
        }
        // Dead before its tasks are dropped: destructors run, and must not reach the disk.
        world.disk.die();
        *lock(&world.door.open) = None;
        world.executor.kill(life);
        let mut engine = lock(&world.engine);
        if rng.below(3) == 0 {
            world.disk.process_kill();
            *engine = engine.restart();
        } else {
            world.disk.power_loss(&mut rng);
            *engine = engine.power_loss(rng.next_u64());
        }
    }
    unreachable!("the last life returns")
}

/// Whatever a run comes to, nothing of its world stays.
struct Ending(Executor);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Plenty of everything, or so little that the edges wait for checkpoints, or attempts for a slot.
fn config(rng: &mut Rng) -> Config {
    let mut config = Config { checkpoint_interval: Duration::from_millis(400), memory_bytes: 64 << 20, ..Config::default() };
    match rng.below(4) {
        0 => config.memory_bytes = 4 << 10,
        1 => config.memory_bytes = 1 << 10,
        _ => {}
    }
    match rng.below(6) {
        0 => config.worker.invoker.attempts_max = Some(1),
        1 | 2 => config.worker.invoker.attempts_max = Some(2),
        _ => {}
    }
    if rng.below(4) == 0 {
        config.worker.invoker.replay_bytes_max = 1 << 10;
    }
    if rng.below(3) == 0 {
        config.retained_bytes_max = 4 << 10;
        config.worker.cleanup_interval = Duration::from_secs(1);
    }
    // So little of everything that subscriptions and streams are held, or as much as always.
    if rng.below(2) == 0 {
        config.kafka.bounds = Bounds { queue_records: 3, queue_bytes: 1 << 20, pending_records: 4, pending_bytes: 1 << 20 };
    }
    config.kafka.parked_records_max = topics::PARKED_MAX;
    config.disk_reserve_bytes = DISK_RESERVE;
    config
}

impl World {
    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.model)
    }

    pub(crate) fn finding(&self, what: String) {
        self.model().findings.push(what);
    }

    /// Starts a task of the world, which outlives the node, and without whose end the run is not over.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.model().tasks_left += 1;
        let world = self.clone();
        let counted = async move {
            task.await;
            world.model().tasks_left -= 1;
        };
        self.executor.spawn(WORLD, Box::pin(counted));
    }

    pub(crate) async fn sleep_ms(&self, ms: u64) {
        self.executor.sleep(Duration::from_millis(ms)).await;
    }

    /// Asks the node that is up, or the next one that will be. The question belongs to that life: absent if it ended before
    /// the answer.
    pub(crate) async fn ask<T, F>(&self, question: impl FnOnce(Open) -> F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let open = loop {
            let opened = self.door.opened.notified();
            if let Some(open) = lock(&self.door.open).clone() {
                break open;
            }
            opened.await;
        };
        let (done, answer) = oneshot::channel();
        let life = open.life;
        let asking = question(open);
        self.executor.spawn(
            life,
            Box::pin(async move {
                // Who asked may be gone at the end of the run.
                let _ = done.send(asking.await);
            }),
        );
        answer.await.ok()
    }

    /// Starts a task that belongs to no life, and gives a place for its answer.
    pub(crate) fn begin<T, F>(&self, question: impl FnOnce(Open) -> F) -> Asked<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.executor.run(POLLS_LIMIT, || lock(&self.door.open).is_some());
        let result = Asked::default();
        let Some(open) = lock(&self.door.open).clone() else { return result };
        let (slot, asking) = (result.clone(), question(open));
        let keep = async move {
            let answer = asking.await;
            *lock(&slot.0) = Some(answer);
        };
        self.executor.spawn(WORLD, Box::pin(keep));
        result
    }

    /// The answer, if it comes in time.
    pub(crate) fn within<T>(&self, limit: Duration, asked: Asked<T>) -> Option<T> {
        let deadline = self.executor.now() + limit;
        self.executor.run(POLLS_LIMIT, || lock(&asked.0).is_some() || self.executor.now() > deadline);
        lock(&asked.0).take()
    }

    /// The answer of the node, while the world goes on.
    pub(crate) fn answer<T, F>(&self, what: &str, question: impl FnOnce(Open) -> F) -> Result<T, String>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let asked = self.begin(question);
        self.within(ARRIVAL_MAX, asked).ok_or_else(|| format!("{what} never ended"))
    }

    /// Lets the world go on for a while.
    pub(crate) fn run_for(&self, duration: Duration) {
        let until = self.executor.now() + duration;
        self.executor.run(POLLS_LIMIT, || self.executor.now() >= until);
    }

    /// So much is left free on the disk now, or there is no end of it.
    pub(crate) fn set_disk_free(&self, bytes: Option<u64>) {
        self.disk.set_capacity(bytes.map_or(u64::MAX, |free| self.disk.bytes_used() + free));
        *lock(&self.door.room_changed) = self.executor.now();
    }

    /// Whether the engine finds no room for a commit.
    pub(crate) fn set_full(&self, is_full: bool) {
        lock(&self.engine).set_full(is_full);
        self.door.is_engine_full.store(is_full, Ordering::Relaxed);
        *lock(&self.door.room_changed) = self.executor.now();
    }

    /// Whether what the edges of the node find no room in becomes so in time.
    pub(crate) fn comes_to(&self, limit: Duration, wanted: impl Fn(Option<Shortage>) -> bool) -> bool {
        let deadline = self.executor.now() + limit;
        self.executor.run(POLLS_LIMIT, || wanted(self.shortage()) || self.executor.now() > deadline);
        wanted(self.shortage())
    }

    /// What the edges of the node that is up find no room in.
    pub(crate) fn shortage(&self) -> Option<Shortage> {
        lock(&self.door.open).as_ref().and_then(|open| open.partitions.shortage())
    }

    /// What the disk has yet to take of what was taken in, as the node saw it last.
    pub(crate) fn unwritten_bytes(&self) -> u64 {
        let disk = lock(&self.door.open).as_ref().map(|open| open.partitions.disk());
        disk.map_or(0, |disk| disk.found_bytes - disk.free_bytes)
    }

    /// How long it may take until the edges are open once there is room.
    pub(crate) fn opens_within(&self) -> Duration {
        if self.door.is_slow.load(Ordering::Relaxed) { OPEN_SLOW_MAX } else { DISK_MAX }
    }

    /// The edges are shut while the disk is short, and open while there is room (rule R2), with some time to notice each. A disk that has
    /// room for a moment opens them. Of a disk that somebody has filled in part nobody knows from outside what is yet to be written there.
    fn check_edges(&self, partitions: &Partitions) {
        let Ok(space) = self.disk.space(Path::new(PLACE)) else { return };
        let is_short = space.free < DISK_RESERVE.min(space.total / DISK_RESERVE_SHARE);
        let has_room = space.total == u64::MAX && !self.door.is_engine_full.load(Ordering::Relaxed);
        let is_shut = partitions.shortage() == Some(Shortage::Disk);
        let (now, changed) = (self.executor.now(), *lock(&self.door.room_changed));
        let lasts = |since: &Mutex<Option<Duration>>, is_wrong: bool, limit: Duration| {
            let since = &mut *lock(since);
            *since = is_wrong.then(|| since.unwrap_or(now));
            since.is_some_and(|since| now > since.max(changed) + limit)
        };
        if lasts(&self.door.open_since, is_short && !is_shut, DISK_MAX) {
            self.finding(format!("the edges are open with {} bytes free (rule R2)", space.free));
        }
        if lasts(&self.door.shut_since, has_room && is_shut, self.opens_within()) {
            self.finding(format!("the edges are shut though there is room, for more than {:?} (rule R2)", self.opens_within()));
        }
    }

    /// The next stream to a handler has this.
    pub(crate) fn fail_next_stream(&self, fault: Fault) {
        self.handlers.fail_next(fault);
    }

    /// Handlers that run right now.
    pub(crate) fn serving(&self) -> u64 {
        self.handlers.serving()
    }

    /// Every partition, the catalog's among them.
    pub(crate) fn all_partitions(&self) -> Vec<PartitionId> {
        (0..self.partitions).map(PartitionId).chain([PartitionId::CATALOG]).collect()
    }

    fn start_life(&self, life: u64, seed: u64, config: Config, slow: (&'static str, u64)) {
        let parts = Life::new(self.executor.clone(), life, seed ^ 0x1d5, slow);
        let env = Env { clock: parts.clone(), tasks: parts.clone(), ids: parts, disk: Arc::new(self.disk.clone()) };
        // Of the life before only: this one has written by the time it is up, whatever becomes of it.
        let follows_stop = self.door.has_stopped.swap(false, Ordering::Relaxed) && self.door.was_whole.load(Ordering::Relaxed);
        (*lock(&self.door.open_since), *lock(&self.door.shut_since)) = (None, None);
        self.door.is_slow.store(!slow.0.is_empty(), Ordering::Relaxed);
        let fallen = self.clone();
        let mut mutants = self.mutants;
        if self.stumbles(life) {
            mutants.machine = MachineMutant::Stumbles;
        }
        let seams = Seams {
            engine: Arc::new(lock(&self.engine).clone()),
            transport: Arc::new(SimTransport { executor: self.executor.clone(), handlers: self.handlers.clone() }),
            sources: Arc::new(SimClient(self.broker.clone())),
            fatal: Arc::new(move |message| fallen.falls(&message)),
            tune_log: |options| (options.segment_bytes_min, options.reserve_bytes) = (SEGMENT_BYTES, LOG_RESERVE),
            workers: self.workers,
            mutants,
        };
        let place = self.place();
        let world = self.clone();
        self.executor.spawn(
            life,
            Box::pin(async move {
                match Node::start(&config, env, place, seams).await {
                    Ok(node) => world.live(life, &config, node, follows_stop).await,
                    // A machine that died on the way says so with errors of its disk.
                    Err(_) if world.disk.is_dead() => {}
                    // Log or engine has no room, and nothing is changed: production waits for it, here the next life tries again.
                    Err(error) if error.shortage().is_some() => world.disk.die(),
                    Err(_) if world.door.has_bad_disk.load(Ordering::Relaxed) => world.disk.die(),
                    Err(error) => world.finding(format!("start of life {life}: {error}")),
                }
            }),
        );
    }

    /// A process ends by itself only where log or engine do not know what is durable (rules L4, C8).
    fn falls(&self, message: &str) {
        if !self.disk.is_dead() && !self.door.has_bad_disk.load(Ordering::Relaxed) {
            self.finding(format!("the process ended: {message} (rule L8)"));
        }
        self.disk.die();
    }

    fn stumbles(&self, life: u64) -> bool {
        self.scenario.repairs && (2..self.scenario.lives).contains(&life)
    }

    /// Asks the node to stop, and waits until it has, or kills it while it does.
    fn stop_life(&self, is_killed: bool) {
        if lock(&self.door.open).take().is_none() {
            return; // it still starts
        }
        self.door.stop.notify_waiters();
        let polls = if is_killed { 100 } else { POLLS_LIMIT };
        self.executor.run(polls, || self.disk.is_dead() || self.door.has_stopped.load(Ordering::Relaxed));
    }

    fn place(&self) -> Place {
        Place { log: PathBuf::from(PLACE), partitions: self.partitions, node_id: 1 }
    }

    /// What goes on around a node that is up.
    async fn live(self, life: u64, config: &Config, node: Node, follows_stop: bool) {
        if follows_stop && node.recovered.records > 0 {
            self.finding(format!("{} records to apply after a clean stop", node.recovered.records));
        }
        let registered = self.model().registered;
        let is_known = |service: &surefoot_model::catalog::Service| service.revision >= registered;
        if registered > 0 && !node.partitions.catalog().load().services.get("Probe").is_some_and(|service| is_known(service)) {
            self.finding(format!("life {life} knows nothing of revision {registered}, which was acknowledged (rule M2)"));
        }
        if node.partitions.catalog().load().deployments.is_empty() {
            let cluster = KafkaCluster { name: topics::CLUSTER.into(), properties: BTreeMap::new(), created_at: Timestamp(0) };
            for event in [CatalogEvent::KafkaClusterStored(cluster), CatalogEvent::DeploymentRegistered(deployment(1, None))] {
                if node.partitions.change_catalog(event).await.is_err() {
                    return;
                }
            }
            // Nobody calls what is not there yet, even where that was answered too early.
            while node.partitions.catalog().load().deployments.is_empty() {
                self.sleep_ms(1).await;
            }
        }
        topics::check_commits(&self, &node.partitions);
        let settings = surefoot_admin::Settings {
            defaults: config.defaults(),
            ingress_url: String::new(),
            request_headers: node::request_headers(config),
        };
        let sources = Arc::new(KafkaSources(node.sources.clone()));
        let (partitions, transport) = (node.partitions.clone(), node.transport.clone());
        // Tables in memory have no files: nobody asks for a backup.
        let engine: Arc<dyn Engine> = Arc::new(lock(&self.engine).clone());
        let backups = Arc::new(Backups::new(&node, &engine, self.place()));
        let admin = Admin::new(partitions, transport, sources, backups, Readiness::default(), Arc::new(String::new), settings);
        let open = Open { life, ingress: node.ingress.clone(), partitions: node.partitions.clone(), admin };
        let mut stop = pin!(self.door.stop.notified());
        *lock(&self.door.open) = Some(open);
        self.door.opened.notify_waiters();
        let look = || self.executor.sleep(Duration::from_millis(500));
        let mut next_look = look();
        poll_fn(|cx| {
            while next_look.as_mut().poll(cx).is_ready() {
                next_look = look();
                let expected = |stopped: &PartitionHealth| self.stumbles(life) && stopped.error.contains("this build stumbles");
                for stopped in node.partitions.stopped().iter().filter(|stopped| !expected(stopped)) {
                    self.finding(format!("partition {} stopped: {}", stopped.partition, stopped.error));
                }
                self.check_edges(&node.partitions);
                let troubles = node.sources.troubles();
                if troubles.panics() > 0 {
                    self.finding("a subscription's task panicked".to_owned());
                }
                if troubles.standstills() > 0 {
                    self.finding("a Kafka partition stood still though there was more to read".to_owned());
                }
            }
            stop.as_mut().poll(cx)
        })
        .await;
        let partitions = node.partitions.clone();
        node.stop().await;
        // One may stop at the last moment.
        let is_whole = partitions.stopped().is_empty();
        // A log that fails ends the process (rule L4), here once this poll is over.
        self.door.has_stopped.store(!self.disk.is_dead(), Ordering::Relaxed);
        self.door.was_whole.store(is_whole, Ordering::Relaxed);
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let mut findings = self.model().findings.clone();
        findings.extend(self.handlers.findings());
        findings.extend(self.broker.findings());
        findings.extend(self.executor.findings());
        if findings.is_empty() { Ok(()) } else { Err(findings.join("; ")) }
    }

    /// Looks at the final state, through the node itself, until all has arrived that must.
    fn finish(&self, crashes: u64) -> Result<Report, String> {
        self.broker.calm();
        let deadline = self.executor.now() + ARRIVAL_MAX;
        loop {
            operators::resume_all(self)?;
            let state = State::read(self)?;
            self.check()?;
            let missing = [clients::missing(self, &state)?, topics::missing(self, &state)?];
            let Some(missing) = missing.into_iter().flatten().next() else { break };
            if self.executor.now() > deadline {
                return Err(missing);
            }
            self.run_for(Duration::from_secs(5));
        }
        topics::reads_around_a_leaderless(self)?;
        topics::waits_for_its_handler(self)?;
        topics::waits_for_room(self)?;
        self.model().topics.has_arrived = true;
        let engine = lock(&self.engine).clone();
        ending::check(self, &engine)?;
        self.check()?;
        let model = self.model();
        Ok(Report {
            hash: self.executor.hash(),
            operations: model.clients.operations(),
            records: model.topics.records(),
            attempts: self.handlers.attempts(),
            crashes,
            strays: self.broker.strays().len() as u64,
        })
    }
}

/// An answer that is to come.
pub(crate) struct Asked<T>(Arc<Mutex<Option<T>>>);

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Asked<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What the keys of all objects hold: numbers in order of arrival.
pub(crate) struct State(BTreeMap<(&'static str, String), Vec<u64>>);

impl State {
    pub(crate) fn read(world: &World) -> Result<Self, String> {
        let mut keys: Vec<(&'static str, String)> = Vec::new();
        keys.extend(world.model().clients.keys().into_iter().map(|key| ("Counter", key)));
        keys.extend(clients::SINKS.iter().chain(&topics::SINKS).map(|key| ("Sink", (*key).to_owned())));
        let topics = ["Ledger", "Mirror"].into_iter().flat_map(|service| topics::KEYS.map(|key| (service, key.to_owned())));
        keys.extend(topics);
        let read = world.answer("reading the state", |open| async move {
            let mut state = BTreeMap::new();
            for (service, key) in keys {
                let done = loop {
                    match open.ingress.call(request(service, "get", &key, "", None)).await {
                        // Memory had no room for ten seconds: where it is small and checkpoints are slow, so long may pass until tables
                        // are written. A full disk is another error, and none here: a calm world has room, and its edges open (rule R2).
                        Err(surefoot_ingress::Error::NoRoom) => {}
                        done => break done,
                    }
                };
                if let Ok(done) = done
                    && let Outcome::Success(value) = done.outcome
                {
                    state.insert((service, key), numbers(&String::from_utf8_lossy(&value)));
                }
            }
            state
        });
        Ok(Self(read?))
    }

    /// The numbers at one key; `strays` may be there twice. **Errors**: one is there oftener.
    pub(crate) fn at(&self, service: &'static str, key: &str, strays: &BTreeSet<u64>) -> Result<&[u64], String> {
        let found = self.0.get(&(service, key.to_owned())).ok_or_else(|| format!("{service}/{key} could not be read"))?;
        let mut times = BTreeMap::<u64, usize>::new();
        found.iter().for_each(|number| *times.entry(*number).or_default() += 1);
        if times.iter().any(|(number, times)| *times > 1 + usize::from(strays.contains(number))) {
            return Err(format!("{service}/{key} took a number twice: {found:?}"));
        }
        Ok(found)
    }

    pub(crate) fn has(&self, service: &'static str, key: &str, number: u64) -> bool {
        self.0.get(&(service, key.to_owned())).is_some_and(|found| found.contains(&number))
    }
}

pub(crate) fn numbers(history: &str) -> Vec<u64> {
    history.split(',').filter_map(|number| number.parse().ok()).collect()
}

pub(crate) fn request<'a>(
    service: &'a str,
    handler: &'a str,
    key: &'a str,
    body: &str,
    idempotency_key: Option<&'a str>,
) -> Request<'a> {
    // A body needs a type; a read has neither.
    let headers = if body.is_empty() { Vec::new() } else { vec![("content-type", "application/json")] };
    Request { service, handler, key, headers, body: Bytes::copy_from_slice(body.as_bytes()), idempotency_key }
}
