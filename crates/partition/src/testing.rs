//! What the tests of this room share: a store over an engine in memory, rows as the machine writes them, and a node without a
//! runtime, whose log, clock and tasks go on when the test says so.
//!
//! Owns: the shortest way to either. Does not own: rules; a test that needs the machine applies records.

use crate::handle::{Partitions, Shared};
use crate::settings::{Mutant, Settings};
use crate::start::Recovering;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use surefoot_env::{BoxFuture, Clock, Env, Ids, OsDisk, Step, Steps, Tasks, Wake};
use surefoot_invoker::{
    DiscoverRequest, DiscoverResponse, Exchange, ExchangeEvent, Invoker, Mutant as InvokerMutant, OpenRequest, Transport,
    TransportError,
};
use surefoot_log::{Durable, Entry as LogEntry, Log, Retained, Sink};
use surefoot_machine::{Invocations, Journal, JournalKey, Mutant as MachineMutant, Running, RunningKey, State};
use surefoot_model::catalog::Defaults;
use surefoot_model::{
    Active, Attempt, AttemptClass, DeploymentId, Entry, Epoch, Event, Incarnation, Invocation, InvocationId, Lsn, Origin,
    PartitionId, Progress, Record, Retention, Stage, Target, TargetKind, Timestamp, encoding, entry_type,
};
use surefoot_storage::{Engine, MemEngine, Store, Txn};

pub(crate) const HERE: PartitionId = PartitionId(0);

pub(crate) fn empty_store() -> Store {
    Store::open(Arc::new(MemEngine::new()), HERE).unwrap()
}

/// Writes as one record does.
pub(crate) fn write(store: &mut Store, rows: impl FnOnce(&mut Txn<'_>)) {
    let lsn = store.applied().next();
    let mut transaction = store.begin();
    rows(&mut transaction);
    transaction.commit(lsn);
}

/// Moves everything from memory into the engine.
pub(crate) fn checkpoint(store: &mut Store) {
    let done = store.freeze().unwrap().run().unwrap();
    store.checkpointed(done);
}

pub(crate) fn id(unique: u128) -> InvocationId {
    InvocationId { partition_key: 1, unique }
}

/// A running invocation whose journal holds so many entries. Its life has the number of its id.
pub(crate) fn write_running(txn: &mut Txn<'_>, id: InvocationId, attempt: Attempt, journal_len: u32) {
    write_running_in(txn, id, attempt, journal_len, AttemptClass::Fresh);
}

pub(crate) fn write_running_in(txn: &mut Txn<'_>, id: InvocationId, attempt: Attempt, journal_len: u32, class: AttemptClass) {
    let life = Incarnation(id.unique as u64);
    txn.put::<Running>(RunningKey { class, turn: attempt.0 }, id);
    let active = Active { class, ..active(attempt, journal_len) };
    txn.put::<Invocations>(id, Invocation { incarnation: life, ..invocation(active) });
    for index in 0..journal_len {
        txn.put::<Journal>(JournalKey { life, index }, command(index));
    }
}

pub(crate) fn command(index: u32) -> Entry {
    Entry::Command { ty: entry_type::INPUT, raw: Bytes::from(index.to_be_bytes().to_vec()) }
}

pub(crate) fn active(attempt: Attempt, journal_len: u32) -> Active {
    Active {
        progress: Progress::Running,
        attempt,
        journal_len,
        commands: journal_len,
        pin: None,
        open: 0,
        opened_up_to: 0,
        output: None,
        attempts_counted: 0,
        retries_since_entry: 0,
        last_entry_at: Timestamp(1),
        last_error: None,
        attempts_started: 1,
        journal_bytes: 0,
        counted_in: Epoch(1),
        turn: attempt.0,
        class: AttemptClass::Fresh,
    }
}

pub(crate) fn invocation(active: Active) -> Invocation {
    Invocation {
        incarnation: Incarnation(1),
        target: Target::new(TargetKind::Service, "Greeter", "", "greet"),
        idempotency_key: None,
        origin: Origin::Ingress,
        created_at: Timestamp(1),
        modified_at: Timestamp(1),
        execute_at: None,
        retention: Retention::default(),
        random_seed: 7,
        waiters: 0,
        stage: Stage::Active(Box::new(active)),
    }
}

/// Whether somebody woke since this was last asked.
pub(crate) fn was_woken(wake: &Wake) -> bool {
    let woken = pin!(wake.woken());
    matches!(woken.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()))
}

/// Bounds as a small node has them.
pub(crate) fn settings() -> Settings {
    Settings {
        cleanup_interval_ms: 10_000,
        retained_bytes_max: 1 << 30,
        disk_dir: "/".into(),
        disk_reserve_bytes_max: 0,
        disk_active_bytes_max: u64::MAX,
        log_bytes_max: u64::MAX,
        memory_bytes_max: 64 << 20,
        attempt_bytes: 6 << 10,
        edge_bytes_max: 64 << 20,
        load_bytes_max: 64 << 20,
        journal_part_bytes: 1 << 20,
        outbox_bytes_max: 64 << 20,
        checkpoint_interval_ms: 30_000,
        replay_bytes_max: 16 << 20,
        workers: 1,
        mutant: Mutant::None,
        machine_mutant: MachineMutant::None,
    }
}

/// A log in memory: what is appended becomes durable when a test says so. It outlives the nodes that write it.
#[derive(Default)]
pub(crate) struct TestLog(Mutex<LogState>);

#[derive(Default)]
struct LogState {
    sinks: BTreeMap<PartitionId, Arc<dyn Sink>>,
    durable: Vec<LogEntry>,
    queued: VecDeque<(Vec<LogEntry>, Option<Durable>)>,
    last: BTreeMap<PartitionId, Lsn>,
    trimmed: Vec<PartitionId>,
}

impl Log for TestLog {
    fn append(&self, partition: PartitionId, epoch: Epoch, payloads: Vec<Bytes>, durable: Option<Durable>) {
        let mut log = self.0.lock().unwrap();
        let last = log.last.entry(partition).or_default();
        let entries = payloads.into_iter().map(|payload| {
            *last = last.next();
            LogEntry { partition, lsn: *last, epoch, payload }
        });
        let entries = entries.collect();
        log.queued.push_back((entries, durable));
    }

    fn append_from_outside(&self, partition: PartitionId, epoch: Epoch, payloads: Vec<Bytes>, durable: Option<Durable>) {
        self.append(partition, epoch, payloads, durable);
    }

    fn drop_waiting(&self) {}

    fn trim(&self, partition: PartitionId, _: Lsn) {
        self.0.lock().unwrap().trimmed.push(partition);
    }

    fn retained(&self) -> Retained {
        Retained { bytes: 0, oldest_holder: None, room: surefoot_log::Room::Enough }
    }

    fn set_short(&self, _: bool) {}
}

impl TestLog {
    /// Makes the oldest append durable; false where there is none.
    fn sync_one(&self) -> bool {
        let (entries, durable, sink) = {
            let mut log = self.0.lock().unwrap();
            let Some((entries, durable)) = log.queued.pop_front() else { return false };
            log.durable.extend(entries.iter().cloned());
            let sink = entries.first().and_then(|entry| log.sinks.get(&entry.partition).cloned());
            (entries, durable, sink)
        };
        let lsn = entries.last().map_or(Lsn(0), |entry| entry.lsn);
        if let Some(sink) = sink {
            sink.durable(entries);
        }
        if let Some(durable) = durable {
            durable(lsn);
        }
        true
    }

    /// Partitions whose checkpoints ended, in order.
    pub(crate) fn trimmed(&self) -> Vec<PartitionId> {
        self.0.lock().unwrap().trimmed.clone()
    }

    /// What a partition's log holds.
    pub(crate) fn entries(&self, partition: PartitionId) -> Vec<LogEntry> {
        self.0.lock().unwrap().durable.iter().filter(|entry| entry.partition == partition).cloned().collect()
    }

    pub(crate) fn events(&self, partition: PartitionId) -> Vec<Event> {
        let record = |entry: &LogEntry| encoding::decode::<Record>(&entry.payload, "record").unwrap();
        self.entries(partition).iter().map(|entry| record(entry).event).collect()
    }

    /// Appends that are not durable yet.
    pub(crate) fn queued(&self) -> usize {
        self.0.lock().unwrap().queued.len()
    }

    /// Swaps an entry's payload: what a broken build cannot read, a repaired one can.
    pub(crate) fn swap_payload(&self, partition: PartitionId, lsn: Lsn, payload: &mut Bytes) {
        let mut log = self.0.lock().unwrap();
        let entry = log.durable.iter_mut().find(|entry| (entry.partition, entry.lsn) == (partition, lsn)).unwrap();
        std::mem::swap(&mut entry.payload, payload);
    }

    /// What was not durable is gone, and nobody listens any more.
    fn kill(&self) {
        let mut log = self.0.lock().unwrap();
        log.queued.clear();
        log.sinks.clear();
        log.last.clear();
        let log = &mut *log;
        for entry in &log.durable {
            log.last.insert(entry.partition, entry.lsn);
        }
    }
}

/// Time as a test sets it, tasks that run when it says so, and numbers in order.
#[derive(Default)]
struct TestWorld {
    now_ms: Arc<AtomicU64>,
    numbers: AtomicU64,
    tasks: Mutex<Vec<BoxFuture>>,
    steppers: Mutex<Vec<(Wake, Box<dyn Steps>)>>,
}

impl Clock for TestWorld {
    fn now_ms(&self) -> u64 {
        1_000_000 + self.now_ms.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.now_ms.load(Ordering::Relaxed))
    }

    /// Tasks are polled at every step.
    fn sleep(&self, duration: Duration) -> BoxFuture {
        let (now_ms, due) = (self.now_ms.clone(), self.monotonic().saturating_add(duration));
        let is_due = move || Duration::from_millis(now_ms.load(Ordering::Relaxed)) >= due;
        Box::pin(std::future::poll_fn(move |_| if is_due() { Poll::Ready(()) } else { Poll::Pending }))
    }
}

impl Ids for TestWorld {
    fn random_u64(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

impl Tasks for TestWorld {
    fn spawn(&self, future: BoxFuture) {
        self.tasks.lock().unwrap().push(future);
    }

    fn try_drive(&self, _: &'static str, wake: Wake, stepper: Box<dyn Steps>) -> std::io::Result<()> {
        self.steppers.lock().unwrap().push((wake, stepper));
        Ok(())
    }
}

/// Handlers that do not answer until the test has them do so, or fail.
#[derive(Default)]
pub(crate) struct SilentHandlers(Mutex<Vec<SilentRequest>>);

struct SilentRequest {
    deployment: DeploymentId,
    id: InvocationId,
    fails: Arc<AtomicBool>,
    answers: Arc<AtomicBool>,
}

/// A handler that has answered, and says nothing more.
struct AnsweredExchange(Option<ExchangeEvent>);

impl Exchange for AnsweredExchange {
    fn send(&mut self, _: Bytes) {}

    fn unsent_bytes(&self) -> usize {
        0
    }

    fn poll_unsent(&mut self, _: &mut Context<'_>, _: usize) -> Poll<()> {
        Poll::Ready(())
    }

    fn half_close(&mut self) {}

    fn poll_event(&mut self, _: &mut Context<'_>) -> Poll<ExchangeEvent> {
        self.0.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl SilentHandlers {
    /// Whose requests are under way to a deployment, in the order in which they came.
    pub(crate) fn asked(&self, deployment: DeploymentId) -> Vec<InvocationId> {
        let requests = self.0.lock().unwrap();
        requests.iter().filter(|request| request.deployment == deployment).map(|request| request.id).collect()
    }

    /// The oldest request to a deployment fails.
    pub(crate) fn fail_one(&self, deployment: DeploymentId) {
        self.take_one(deployment).fails.store(true, Ordering::Relaxed);
    }

    /// The response to the oldest request to a deployment begins, and the attempt runs on.
    pub(crate) fn answer_one(&self, deployment: DeploymentId) {
        self.take_one(deployment).answers.store(true, Ordering::Relaxed);
    }

    fn take_one(&self, deployment: DeploymentId) -> SilentRequest {
        let mut requests = self.0.lock().unwrap();
        let at = requests.iter().position(|request| request.deployment == deployment).unwrap();
        requests.remove(at)
    }
}

impl Transport for SilentHandlers {
    fn open(&self, request: OpenRequest) -> BoxFuture<Result<Box<dyn Exchange>, TransportError>> {
        let [fails, answers] = [(); 2].map(|()| Arc::<AtomicBool>::default());
        let id = request.headers["x-restate-invocation-id"].to_str().unwrap().parse().unwrap();
        let (deployment, says) = (request.deployment.id, (fails.clone(), answers.clone()));
        self.0.lock().unwrap().push(SilentRequest { deployment, id, fails: says.0, answers: says.1 });
        let opened = move |_: &mut Context<'_>| {
            if fails.load(Ordering::Relaxed) {
                return Poll::Ready(Err(TransportError::Broken("the test says so".to_owned())));
            }
            if !answers.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
            // The content type of the request is that of the response.
            let head = ExchangeEvent::Head(Default::default(), request.headers.clone());
            Poll::Ready(Ok(Box::new(AnsweredExchange(Some(head))) as Box<dyn Exchange>))
        };
        Box::pin(std::future::poll_fn(opened))
    }

    fn discover(&self, _: DiscoverRequest) -> BoxFuture<Result<DiscoverResponse, TransportError>> {
        Box::pin(std::future::pending())
    }
}

/// All partitions of a node with real parts, one thread, and a log and an engine that outlive it.
pub(crate) struct TestNode {
    pub(crate) partitions: Partitions,
    pub(crate) shared: Arc<Shared>,
    pub(crate) handlers: Arc<SilentHandlers>,
    log: Arc<TestLog>,
    world: Arc<TestWorld>,
}

/// Places for attempts on a [`TestNode`], and how they are dealt out.
#[derive(Clone, Copy)]
pub(crate) struct TestPlaces {
    pub(crate) max: usize,
    pub(crate) mutant: InvokerMutant,
}

impl TestPlaces {
    /// No attempt starts: a test reports what attempts bring.
    pub(crate) const NONE: Self = Self { max: 0, mutant: InvokerMutant::None };
}

/// Partitions of a [`TestNode`], the catalog's not counted.
pub(crate) const COUNT: u16 = 4;

/// Which life of a node this is: each has another process number.
pub(crate) struct NodeLife(pub(crate) u64);

impl TestNode {
    pub(crate) fn start(log: &Arc<TestLog>, engine: &MemEngine, life: NodeLife, settings: Settings) -> Self {
        Self::with_places(log, engine, life, settings, TestPlaces::NONE)
    }

    pub(crate) fn with_places(
        log: &Arc<TestLog>,
        engine: &MemEngine,
        life: NodeLife,
        settings: Settings,
        places: TestPlaces,
    ) -> Self {
        log.kill();
        let engine: Arc<dyn Engine> = Arc::new(engine.clone());
        let mut recovering = Recovering::open(&engine, COUNT, surefoot_storage::Mutant::None, settings).unwrap();
        let entries = log.0.lock().unwrap().durable.clone();
        entries.iter().for_each(|entry| recovering.replay(entry).unwrap());
        let world = Arc::new(TestWorld { numbers: AtomicU64::new(life.0 << 32), ..TestWorld::default() });
        let env = Env { clock: world.clone(), tasks: world.clone(), ids: world.clone(), disk: Arc::new(OsDisk) };
        let (invoker_env, handlers) = (env.clone(), Arc::<SilentHandlers>::default());
        let transport = handlers.clone();
        let invoker = move |catalog, output| {
            let settings = surefoot_invoker::Settings {
                defaults: Defaults::default(),
                attempts_max: places.max,
                replay_bytes_max: 1 << 20,
                report_bytes_max: 1 << 20,
                read_bytes_max: 1 << 20,
                part_bytes_max: 1 << 20,
                live_bytes_max: 1 << 20,
                message_bytes_max: 1 << 20,
                taken_bytes_max: 1 << 20,
                journal_entries_max: u32::MAX,
                journal_bytes_max: u64::MAX,
                eager_state_bytes_max: 1 << 20,
                partitions: COUNT,
                additional_headers: Vec::new(),
                mutant: places.mutant,
            };
            Invoker::new(invoker_env, settings, catalog, transport, output)
        };
        let connect = |partition, sink| drop(log.0.lock().unwrap().sinks.insert(partition, sink));
        let fatal: crate::Fatal = Arc::new(|message| panic!("{message}"));
        let started = recovering.start(env, log.clone(), connect, invoker, Vec::new(), fatal).unwrap();
        let shared = started.partitions.shared().clone();
        let node = Self { partitions: started.partitions, shared, handlers, log: log.clone(), world };
        node.settle();
        node
    }

    /// One step of each stepper; whether one has more to do.
    pub(crate) fn step(&self) -> bool {
        let mut steppers = std::mem::take(&mut *self.world.steppers.lock().unwrap());
        let mut has_worked = false;
        steppers.retain_mut(|(_, stepper)| {
            let step = stepper.step();
            has_worked |= matches!(step, Step::Worked | Step::IdleFor(Duration::ZERO));
            step != Step::Done
        });
        self.world.steppers.lock().unwrap().append(&mut steppers);
        self.poll_tasks();
        has_worked
    }

    /// Every task goes on as far as it can; no worker does.
    pub(crate) fn poll_tasks(&self) {
        let mut tasks = std::mem::take(&mut *self.world.tasks.lock().unwrap());
        tasks.retain_mut(|task| task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        self.world.tasks.lock().unwrap().append(&mut tasks);
    }

    /// Everything that is appended becomes durable, and is applied.
    pub(crate) fn settle(&self) {
        let mut quiet = 0;
        while quiet < 3 {
            let has_synced = self.log.sync_one();
            quiet = if self.step() || has_synced { 0 } else { quiet + 1 };
        }
    }

    /// Everything goes on until it is so.
    pub(crate) fn step_until(&self, is_so: impl Fn() -> bool) {
        for _ in 0..100_000 {
            if is_so() {
                return;
            }
            self.log.sync_one();
            self.step();
        }
        panic!("it never comes to that");
    }

    pub(crate) fn pass_ms(&self, ms: u64) {
        self.skip_ms(ms);
        self.settle();
    }

    /// As an edge, an attempt or another partition appends it.
    pub(crate) fn append(&self, partition: PartitionId, event: Event) {
        assert!(self.shared.append(partition, [event], None));
        self.settle();
    }

    /// Time passes, and nobody has noticed yet.
    pub(crate) fn skip_ms(&self, ms: u64) {
        self.world.now_ms.fetch_add(ms, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(self.world.now_ms())
    }

    /// An answer, while everything goes on.
    pub(crate) fn ask<T>(&self, question: impl Future<Output = T>) -> T {
        let mut question = pin!(question);
        for _ in 0..100_000 {
            if let Poll::Ready(answer) = question.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return answer;
            }
            self.log.sync_one();
            self.step();
        }
        panic!("no answer ever comes");
    }

    pub(crate) fn stopped(&self) -> Vec<PartitionId> {
        self.partitions.stopped().into_iter().map(|health| health.partition).collect()
    }
}
