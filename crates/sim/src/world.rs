//! One scenario: clients call an object, the node dies and comes back, and a reference model says what must be true.
//!
//! Checked from outside, after the last life: every acknowledged result is a prefix of its key's final history, each operation is
//! in it exactly once, what was sent one way arrived exactly once, nobody woke early, no finished step ran again, no replay
//! differed, no partition stopped.

use crate::executor::{Executor, Life, Ran, WORLD};
use crate::handler::Handlers;
use crate::transport::SimTransport;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use surefoot_env::Env;
use surefoot_env::sim::{Rng, SimDisk};
use surefoot_ingress::{Ingress, Request};
use surefoot_kafka::{ErrorKind, RecordSource, SourceClient, SourceError, SourceSpec};
use surefoot_model::catalog::{
    CatalogEvent, Deployment, Handler, HttpVersion, InputRule, Options, OutputRule, Service, ServiceKind, StreamMode,
};
use surefoot_model::{DeploymentId, Outcome, TargetKind, Timestamp};
use surefoot_server::config::Config;
use surefoot_server::node::{Mutants, Node, Place, Seams};
use surefoot_storage::MemEngine;
use tokio::sync::{Notify, oneshot};

/// What a run does.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub clients: u64,
    /// Operations per client.
    pub operations: u64,
    pub keys: u64,
    /// Lives of the node; every one but the last ends in a power failure or a kill.
    pub lives: u64,
    /// Chance per point of failure that a handler fails, in thousandths.
    pub fail_per_mille: u64,
    pub mutants: Mutants,
}

impl Default for Scenario {
    fn default() -> Self {
        Self { clients: 4, operations: 5, keys: 3, lives: 4, fail_per_mille: 15, mutants: Mutants::default() }
    }
}

/// What happened in a run that found nothing wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Equal for two runs of one seed.
    pub hash: u64,
    pub operations: u64,
    pub attempts: u64,
    pub crashes: u64,
}

/// Polls of a life that is to end in a crash.
const POLLS_MAX: u64 = 6_000;
/// Polls after which a world that has not ended never will.
const POLLS_LIMIT: u64 = 3_000_000;

/// No scenario subscribes to anything.
struct NoKafka;

impl SourceClient for NoKafka {
    fn open(&self, _: &SourceSpec) -> Result<Box<dyn RecordSource>, SourceError> {
        Err(SourceError::new(ErrorKind::Refused, "there is no Kafka"))
    }
}

#[derive(Default)]
struct Model {
    /// Operations that clients began, by key.
    begun: BTreeMap<String, BTreeSet<u64>>,
    /// Acknowledged histories, by key.
    acknowledged: BTreeMap<String, Vec<String>>,
    findings: Vec<String>,
    clients_left: u64,
    next_operation: u64,
}

/// The node as clients see it.
#[derive(Default)]
struct Door {
    ingress: Mutex<Option<(u64, Ingress)>>,
    opened: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one seed. Errors: what a checker found.
pub fn run(seed: u64, scenario: Scenario) -> Result<Report, String> {
    let executor = Executor::new(seed);
    let mut rng = Rng::new(seed ^ 0x5eed);
    let disk = SimDisk::new();
    let mut engine = MemEngine::new();
    let handlers = Handlers::new(seed ^ 0x4a4d, scenario.fail_per_mille);
    let model = Arc::new(Mutex::new(Model { clients_left: scenario.clients, ..Model::default() }));
    let door = Arc::new(Door::default());
    for client in 0..scenario.clients {
        let task =
            client_task(client, scenario, executor.clone(), model.clone(), door.clone(), Rng::new(seed ^ (client + 1) << 32));
        executor.spawn(WORLD, Box::pin(task));
    }
    for life in 1..=scenario.lives {
        let is_last = life == scenario.lives;
        if is_last {
            handlers.calm();
        } else if rng.below(2) == 0 {
            disk.crash_at(1 + rng.below(200));
        }
        start_life(life, seed, scenario, &executor, &disk, &engine, &handlers, &model, &door);
        let polls = if is_last { POLLS_LIMIT } else { rng.below(POLLS_MAX) };
        let ran = executor.run(polls, || disk.is_dead() || lock(&model).clients_left == 0 || !lock(&model).findings.is_empty());
        check(&model, &handlers)?;
        if is_last {
            return match ran {
                Ran::Until if lock(&model).clients_left == 0 => finish(&executor, &model, &handlers, &door, life - 1),
                _ => Err(format!("the work never ended: {ran:?}, {} clients left", lock(&model).clients_left)),
            };
        }
        // Dead before its tasks are dropped: destructors run, and must not reach the disk.
        disk.die();
        *lock(&door.ingress) = None;
        executor.kill(life);
        if rng.below(3) == 0 {
            disk.process_kill();
            engine = engine.restart();
        } else {
            disk.power_loss(&mut rng);
            engine = engine.power_loss(rng.next_u64());
        }
    }
    unreachable!("the last life returns")
}

#[allow(clippy::too_many_arguments, reason = "a world's parts, once")]
fn start_life(
    life: u64,
    seed: u64,
    scenario: Scenario,
    executor: &Executor,
    disk: &SimDisk,
    engine: &MemEngine,
    handlers: &Handlers,
    model: &Arc<Mutex<Model>>,
    door: &Arc<Door>,
) {
    let world = Life::new(executor.clone(), life, seed ^ 0x1d5);
    let env = Env { clock: world.clone(), tasks: world.clone(), ids: world, disk: Arc::new(disk.clone()) };
    let config = Config { checkpoint_interval: Duration::from_millis(400), memory_bytes: 64 << 20, ..Config::default() };
    let dead = disk.clone();
    let seams = Seams {
        engine: Arc::new(engine.clone()),
        transport: Arc::new(SimTransport { executor: executor.clone(), handlers: handlers.clone() }),
        sources: Arc::new(NoKafka),
        fatal: Arc::new(move |_| dead.die()),
        mutants: scenario.mutants,
    };
    let place = Place { log: PathBuf::from("/log"), partitions: 4, node_id: 1 };
    let (model, door, executor_of_life) = (model.clone(), door.clone(), executor.clone());
    let disk = disk.clone();
    executor.spawn(
        life,
        Box::pin(async move {
            let node = match Node::start(&config, env, place, seams).await {
                Ok(node) => node,
                // A machine that died on the way says so with errors of its disk.
                Err(_) if disk.is_dead() => return,
                Err(error) => return lock(&model).findings.push(format!("start of life {life}: {error}")),
            };
            if node.partitions.catalog().load().deployments.is_empty() {
                let registered = CatalogEvent::DeploymentRegistered(deployment());
                if node.partitions.change_catalog(registered).await.is_err() {
                    return;
                }
            }
            *lock(&door.ingress) = Some((life, node.ingress.clone()));
            door.opened.notify_waiters();
            loop {
                for stopped in node.partitions.stopped() {
                    lock(&model).findings.push(format!("partition {} stopped: {}", stopped.partition, stopped.error));
                }
                executor_of_life.sleep(Duration::from_millis(500)).await;
            }
        }),
    );
}

fn check(model: &Mutex<Model>, handlers: &Handlers) -> Result<(), String> {
    let mut findings = lock(model).findings.clone();
    findings.extend(handlers.findings());
    if findings.is_empty() { Ok(()) } else { Err(findings.join("; ")) }
}

/// Looks at the final state of every key, through the node itself.
fn finish(
    executor: &Executor,
    model: &Arc<Mutex<Model>>,
    handlers: &Handlers,
    door: &Arc<Door>,
    crashes: u64,
) -> Result<Report, String> {
    let begun = lock(model).begun.clone();
    let counters: Vec<String> = begun.keys().cloned().collect();
    // What was sent one way has its own time to arrive.
    let sinks: Vec<String> = (0..3).map(|n| format!("s{n}")).collect();
    let expected = expected_in_sinks(&begun);
    let deadline = executor.now() + Duration::from_secs(600);
    loop {
        let histories = read_all(executor, door, "Sink", &sinks)?;
        check(model, handlers)?;
        let found: BTreeMap<String, BTreeSet<u64>> =
            histories.iter().map(|(key, history)| (key.clone(), numbers(history).into_iter().collect())).collect();
        let has_all = expected.iter().all(|(key, operations)| found.get(key) == Some(operations));
        if has_all {
            let twice = histories.iter().find(|(key, history)| numbers(history).len() != found[*key].len());
            if let Some((key, history)) = twice {
                return Err(format!("sink {key} took an operation twice: {history}"));
            }
            break;
        }
        if executor.now() > deadline {
            return Err(format!("sent one way and never arrived: expected {expected:?}, found {found:?}"));
        }
        run_for(executor, Duration::from_secs(5));
    }
    let histories = read_all(executor, door, "Counter", &counters)?;
    for (key, operations) in &begun {
        let history = &histories[key];
        let found = numbers(history);
        let distinct: BTreeSet<u64> = found.iter().copied().collect();
        if found.len() != distinct.len() || distinct != *operations {
            return Err(format!("key {key}: history {history} is not each of {operations:?} once"));
        }
        for acknowledged in lock(model).acknowledged.get(key).into_iter().flatten() {
            let is_prefix = history == acknowledged || history.starts_with(&format!("{acknowledged},"));
            if !is_prefix {
                return Err(format!("key {key}: acknowledged {acknowledged}, then {history}"));
            }
        }
    }
    check(model, handlers)?;
    let operations = begun.values().map(|o| o.len() as u64).sum();
    Ok(Report { hash: executor.hash(), operations, attempts: handlers.attempts(), crashes })
}

fn expected_in_sinks(begun: &BTreeMap<String, BTreeSet<u64>>) -> BTreeMap<String, BTreeSet<u64>> {
    let mut expected: BTreeMap<String, BTreeSet<u64>> = (0..3).map(|n| (format!("s{n}"), BTreeSet::new())).collect();
    for operation in begun.values().flatten().filter(|op| op.is_multiple_of(5)) {
        expected.entry(format!("s{}", operation % 3)).or_default().insert(*operation);
    }
    expected
}

fn numbers(history: &str) -> Vec<u64> {
    history.split(',').filter_map(|op| op.parse().ok()).collect()
}

fn run_for(executor: &Executor, duration: Duration) {
    let until = executor.now() + duration;
    executor.run(POLLS_LIMIT, || executor.now() >= until);
}

fn read_all(
    executor: &Executor,
    door: &Arc<Door>,
    service: &'static str,
    keys: &[String],
) -> Result<BTreeMap<String, String>, String> {
    let result = Arc::new(Mutex::new(None));
    let (door, keys, slot) = (door.clone(), keys.to_vec(), result.clone());
    executor.spawn(
        WORLD,
        Box::pin(async move {
            let mut histories = BTreeMap::new();
            let ingress = lock(&door.ingress).clone();
            if let Some((_, ingress)) = ingress {
                for key in keys {
                    if let Ok(done) = ingress.call(request(service, "get", &key, "", None)).await
                        && let Outcome::Success(value) = done.outcome
                    {
                        histories.insert(key, String::from_utf8_lossy(&value).into_owned());
                    }
                }
            }
            *lock(&slot) = Some(histories);
        }),
    );
    executor.run(POLLS_LIMIT, || lock(&result).is_some());
    lock(&result).take().ok_or_else(|| format!("reading the state of {service} never ended"))
}

fn request<'a>(service: &'a str, handler: &'a str, key: &'a str, body: &str, idempotency_key: Option<&'a str>) -> Request<'a> {
    // A body needs a type; a read has neither.
    let headers = if body.is_empty() { Vec::new() } else { vec![("content-type", "application/json")] };
    Request { service, handler, key, headers, body: Bytes::copy_from_slice(body.as_bytes()), idempotency_key }
}

/// A client: each operation is repeated, under its idempotency key, until it is acknowledged.
async fn client_task(
    client: u64,
    scenario: Scenario,
    executor: Executor,
    model: Arc<Mutex<Model>>,
    door: Arc<Door>,
    mut rng: Rng,
) {
    for _ in 0..scenario.operations {
        let key = format!("k{}", rng.below(scenario.keys));
        let operation = {
            let model = &mut *lock(&model);
            model.next_operation += 1;
            let operation = model.next_operation;
            model.begun.entry(key.clone()).or_default().insert(operation);
            operation
        };
        loop {
            let opened = door.opened.notified();
            let Some((life, ingress)) = lock(&door.ingress).clone() else {
                opened.await;
                continue;
            };
            let (done, answer) = oneshot::channel();
            let key_of_call = key.clone();
            // The call belongs to the life it was made in: with that life its connection is gone.
            executor.spawn(
                life,
                Box::pin(async move {
                    let name = format!("op-{operation}");
                    let called = ingress.call(request("Counter", "add", &key_of_call, &operation.to_string(), Some(&name))).await;
                    // A client that is gone does not listen.
                    let _ = done.send(called.map(|c| c.outcome));
                }),
            );
            match answer.await {
                Ok(Ok(Outcome::Success(history))) => {
                    let history = String::from_utf8_lossy(&history).into_owned();
                    executor.trace(operation);
                    lock(&model).acknowledged.entry(key.clone()).or_default().push(history);
                    break;
                }
                Ok(Ok(Outcome::Failure(failure))) => {
                    lock(&model).findings.push(format!("client {client}: operation {operation} failed: {}", failure.message));
                    break;
                }
                Ok(Err(error)) if !matches!(error, surefoot_ingress::Error::Stopping) => {
                    lock(&model).findings.push(format!("client {client}: operation {operation} was refused: {error}"));
                    break;
                }
                // The node is stopping or gone: it comes back.
                Ok(Err(_)) | Err(_) => executor.sleep(Duration::from_millis(20)).await,
            }
        }
        executor.sleep(Duration::from_millis(rng.below(40))).await;
    }
    lock(&model).clients_left -= 1;
}

fn deployment() -> Deployment {
    let service = |name: &str, kind: ServiceKind, handlers: &[(&str, TargetKind)]| Service {
        name: name.into(),
        kind,
        revision: 1,
        deployment: DeploymentId(1),
        public: true,
        handlers: handlers.iter().map(|(name, target)| ((*name).into(), handler(name, *target))).collect(),
        // Short, so that sleeping handlers suspend.
        options: Options { inactivity_timeout_ms: Some(300), ..Options::default() },
        documentation: None,
        metadata: BTreeMap::new(),
    };
    let object = [("add", TargetKind::ObjectExclusive), ("get", TargetKind::ObjectShared)];
    Deployment {
        id: DeploymentId(1),
        uri: "http://handlers/".to_owned(),
        http: HttpVersion::Http2,
        mode: StreamMode::Bidirectional,
        additional_headers: BTreeMap::new(),
        metadata: BTreeMap::new(),
        created_at: Timestamp(0),
        min_protocol: 5,
        max_protocol: 6,
        sdk_version: None,
        services: vec![
            service("Counter", ServiceKind::VirtualObject, &object),
            service("Sink", ServiceKind::VirtualObject, &object),
            service("Echo", ServiceKind::Service, &[("echo", TargetKind::Service)]),
        ],
    }
}

fn handler(name: &str, target: TargetKind) -> Handler {
    Handler {
        name: name.into(),
        target,
        public: None,
        input: InputRule::default(),
        output: OutputRule::default(),
        options: Options::default(),
        documentation: None,
        metadata: BTreeMap::new(),
    }
}
