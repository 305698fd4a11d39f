//! A worker: some partitions, one thread, one mailbox. Durable records in, effects out.
//!
//! Owns: the order of things: apply (one overlay per record, published whole), then carry out. It never waits for a consumer
//! (rule O3): what cannot start yet stays in state and is pulled when a slot is free. A partition that fails or panics is let
//! go of, with all that waited for it; the others run on (rule C5). Does not own: rules (`machine`), bytes (`storage`), or
//! streams to handlers (`invoker`).

use crate::answers::Answer;
use crate::checkpointer::Checkpoints;
use crate::handle::Shared;
use crate::housekeeping::{Housekeeping, Looks};
use crate::mailbox::{Input, Mailbox};
use crate::query::{self, PartitionHealth};
use crate::replay::{Load, ON_WORKER, Replay};
use crate::views::Lent;
use crate::wheel::Wheel;
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;
use surefoot_env::{Step, Steps};
use surefoot_invoker::{AttemptStart, EagerState, Invoker, Live as Notified};
use surefoot_log::Entry as LogEntry;
use surefoot_machine::{
    Effect, Invocations, Meta, Mutant as MachineMutant, Outbox, OutboxKey, Outboxes, Running, StateError, apply_broken, catalog,
};
use surefoot_model::catalog::CatalogEvent;
use surefoot_model::{
    Active, Attempt, Catalog, Entry, Event, Invocation, InvocationId, Lsn, PartitionId, Progress, RULES, Record, Stage,
    Timestamp, encoding,
};
use surefoot_storage::{Reader, Store};
use tokio::sync::{mpsc, oneshot};

/// Timers fired per partition and step.
const FIRE_MAX: usize = 512;
/// The wall clock is read at least this often: it may jump, and a suspended machine's monotonic clock stands still (rule T2).
const CLOCK_REREAD: Duration = Duration::from_secs(1);
/// Messages to one partition that may be durable and not yet acknowledged.
const ACK_MESSAGES_MAX: u64 = 256;
/// Acknowledgements wait this long for company, in milliseconds.
const ACK_DELAY_MS: u64 = 200;
/// What is taken off the mailbox before timers, checkpoints and the gate have their turn: bytes, an entry counted as [`ENTRY_COST`].
const STEP_COST: usize = 1 << 20;
const ENTRY_COST: usize = 2 << 10;
/// Attempts that wait for a slot in memory; further ones are found in the tables once these have started.
const PENDING_MAX: usize = 4_096;
/// Running invocations read at a time from there.
const BACKLOG_PAGE: usize = 256;
/// Bytes of log that make the partition that holds the oldest segment take a checkpoint before its time (rule C5).
const LOG_BYTES_MAX: u64 = 256 << 20;
/// The log's size is looked at this often, in milliseconds.
const LOG_LOOK_MS: u64 = 1_000;
/// Attempts whose replay is being read from views.
const LOADS_MAX: usize = 16;
/// Waiting clients of one invocation beyond which those that have gone are sorted out.
const WAITERS_SWEEP: usize = 16;

/// Bounds of a worker's partitions.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often expired completions are swept.
    pub cleanup_interval_ms: u64,
    /// Bytes of completed invocations kept on this node beyond which the oldest journals and unnamed results go (rule R1).
    pub retained_bytes_max: u64,
    /// Memory of all layers of this node, half of it for the active ones.
    pub memory_bytes_max: u64,
    /// A partition that changed is checkpointed at least this often.
    pub checkpoint_interval_ms: u64,
    /// Log bytes of one partition that a restart may have to apply.
    pub replay_bytes_max: u64,
    /// Worker threads.
    pub workers: usize,
    /// What the simulator breaks on purpose, here and in the machine.
    pub mutant: Mutant,
    pub machine_mutant: MachineMutant,
}

/// Deliberately broken variants of a worker, which simulation must catch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    #[default]
    None,
    /// Trims the log when a checkpoint begins, not when it is synced (rule C2).
    TrimAtFreeze,
    /// Does not look for messages that an earlier term had not sent (rule O1).
    ForgetOutbox,
    /// Does not look for timers that an earlier term had set.
    ForgetTimers,
    /// Fires timers up to a second early (rule T2).
    FireEarly,
    /// Sends the newest notification of a replay live, too (rule M5).
    ShowTwice,
    /// Leaves notifications at the end of a journal out of its replay, and does not send them live either (rule M5).
    ShowLess,
}

impl Mutant {
    /// Breaks what an attempt is shown, for the variants that do.
    fn misread(self, replay: &mut Vec<Entry>, live: &mpsc::UnboundedSender<Notified>) {
        if self == Self::ShowTwice
            && let Some(Entry::Notification(notification)) = replay.last().cloned()
        {
            let index = replay.len() as u32 - 1;
            live.send(Notified { index, notification }).expect("the receiver is at hand");
        }
        while self == Self::ShowLess && matches!(replay.last(), Some(Entry::Notification(_))) {
            replay.pop();
        }
    }
}

pub(crate) struct Worker {
    number: usize,
    shared: Arc<Shared>,
    invoker: Arc<Invoker>,
    mailbox: Mailbox,
    checkpoints: Checkpoints,
    settings: Settings,
    /// By [`Self::position`]; empty where one has stopped.
    partitions: Vec<Option<Box<Partition>>>,
    inputs: VecDeque<Input>,
    effects: Vec<Effect>,
    /// Attempts that wait for a slot, in the order in which they were asked for.
    pending: VecDeque<(PartitionId, InvocationId, Attempt)>,
    /// Whose backlog is looked at next.
    backlog_turn: usize,
    next_log_look_ms: u64,
    /// One more holder per replay that is being read from a view.
    loads: Arc<()>,
    stopping: Option<oneshot::Sender<()>>,
}

/// One partition and what its worker knows beyond its tables: nothing that a restart could not find again.
pub(crate) struct Partition {
    pub(crate) id: PartitionId,
    pub(crate) store: Store,
    /// Applied records have effects: this process leads.
    leads: bool,
    wheel: Wheel,
    /// Until what ended them is applied: so that none is started twice.
    attempts: BTreeMap<InvocationId, Live>,
    /// Running invocations that are not all pending yet, or were too many to be.
    backlog: Option<Backlog>,
    /// Clients that wait for a result: request numbers of this process.
    waiters: BTreeMap<InvocationId, Vec<u64>>,
    /// Messages to carry to other partitions, up to this sequence number.
    to_send: BTreeMap<PartitionId, Outgoing>,
    notify: Vec<(Lsn, oneshot::Sender<()>)>,
    /// Who wants a view.
    viewers: VecDeque<oneshot::Sender<Lent>>,
    pub(crate) housekeeping: Housekeeping,
    /// The published catalog; of the catalog's partition only.
    catalog: Option<Arc<Catalog>>,
    /// Told once this process leads.
    led: Option<oneshot::Sender<()>>,
}

struct Live {
    attempt: Attempt,
    notifications: mpsc::UnboundedSender<Notified>,
}

/// A pass over the running invocations in the tables, in the order of their ids.
struct Backlog {
    next: InvocationId,
    /// Some have come that this pass may not meet: another one follows.
    is_short: bool,
}

impl Backlog {
    const START: Self = Self { next: InvocationId { partition_key: 0, unique: 0 }, is_short: false };
}

/// How far one outbox queue is: sent <= wanted, acked <= durable <= sent.
#[derive(Default)]
struct Outgoing {
    wanted: u64,
    sent: u64,
    durable: u64,
    acked: u64,
    /// When what is durable is acknowledged, by the monotonic clock in milliseconds.
    ack_due_ms: Option<u64>,
}

impl Partition {
    pub(crate) fn new(id: PartitionId, store: Store, housekeeping: Housekeeping, led: oneshot::Sender<()>) -> Box<Self> {
        Box::new(Self {
            id,
            store,
            leads: false,
            wheel: Wheel::new(),
            attempts: BTreeMap::new(),
            backlog: None,
            waiters: BTreeMap::new(),
            to_send: BTreeMap::new(),
            notify: Vec::new(),
            viewers: VecDeque::new(),
            housekeeping,
            catalog: None,
            led: Some(led),
        })
    }
}

impl Steps for Worker {
    fn step(&mut self) -> Step {
        if self.inputs.is_empty() {
            self.mailbox.take(&mut self.inputs);
        }
        let mut cost = STEP_COST;
        let worked = !self.inputs.is_empty();
        while cost > 0
            && let Some(input) = self.inputs.pop_front()
        {
            cost = cost.saturating_sub(cost_of(&input));
            self.input(input);
        }
        self.start_pending();
        let idle = self.turn();
        if self.stopping.is_some() && self.has_stopped() {
            if let Some(done) = self.stopping.take() {
                // Whoever asked may not wait any more.
                let _ = done.send(());
            }
            return Step::Done;
        }
        if worked { Step::Worked } else { Step::IdleFor(idle.min(CLOCK_REREAD)) }
    }
}

fn cost_of(input: &Input) -> usize {
    match input {
        Input::Durable(entries) => entries.iter().map(|entry| ENTRY_COST + entry.payload.len()).sum(),
        _ => ENTRY_COST,
    }
}

impl Worker {
    pub(crate) fn new(
        number: usize,
        shared: Arc<Shared>,
        invoker: Arc<Invoker>,
        mailbox: Mailbox,
        checkpoints: Checkpoints,
        settings: Settings,
        partitions: Vec<Option<Box<Partition>>>,
    ) -> Self {
        Self {
            number,
            shared,
            invoker,
            mailbox,
            checkpoints,
            settings,
            partitions,
            inputs: VecDeque::new(),
            effects: Vec::new(),
            pending: VecDeque::new(),
            backlog_turn: 0,
            next_log_look_ms: 0,
            loads: Arc::default(),
            stopping: None,
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Durable(entries) => self.durable(entries),
            // `turn` follows every batch of inputs. Of one that has stopped, who asks learns it from the reply that never comes.
            Input::View { partition, reply } => {
                if let Some(partition) = self.at(partition) {
                    partition.viewers.push_back(reply);
                }
            }
            Input::Unreadable { partition, error } => {
                let at = self.position(partition);
                self.guard(at, |_, _| Err::<(), _>(error));
            }
            // `start_pending` follows every batch of inputs.
            Input::SlotFreed => {}
            Input::OutboxDurable { from, to, up_to } => {
                let due_ms = self.monotonic_ms() + ACK_DELAY_MS;
                if let Some(partition) = self.at(from) {
                    let outgoing = partition.to_send.entry(to).or_default();
                    outgoing.durable = outgoing.durable.max(up_to);
                    outgoing.ack_due_ms.get_or_insert(due_ms);
                }
            }
            // Of one that has stopped, whoever asked learns it from the reply that never comes.
            Input::NotifyApplied { partition, lsn, done } => match self.at(partition) {
                Some(partition) if partition.store.applied() >= lsn => {
                    // Whoever asked may have gone.
                    let _ = done.send(());
                }
                Some(partition) => partition.notify.push((lsn, done)),
                None => {}
            },
            Input::Checkpointed { partition, result } => self.checkpointed(partition, result),
            Input::Stop { done } => {
                self.stopping = Some(done);
                self.pending.clear();
                for partition in self.partitions.iter_mut().flatten() {
                    partition.attempts.clear();
                    partition.backlog = None;
                    partition.leads = false;
                    partition.housekeeping.last_round();
                }
            }
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.shared.env.clock.now_ms())
    }

    /// For when to look: no jump of the wall clock holds it up.
    fn monotonic_ms(&self) -> u64 {
        self.shared.env.clock.monotonic().as_millis() as u64
    }

    /// One that has not stopped.
    fn at(&mut self, id: PartitionId) -> Option<&mut Partition> {
        let at = self.position(id);
        self.partitions[at].as_deref_mut()
    }

    fn position(&self, id: PartitionId) -> usize {
        let at = self.shared.index(id);
        let workers = self.shared.workers.len();
        assert_eq!(at % workers, self.number, "inputs reach the worker that owns the partition");
        at / workers
    }

    /// Does something with a partition, unless it has stopped; one that fails or panics stops now.
    fn guard<T>(&mut self, at: usize, work: impl FnOnce(&mut Self, &mut Partition) -> Result<T, String>) -> Option<T> {
        let mut partition = self.partitions[at].take()?;
        let error = match catch_unwind(AssertUnwindSafe(|| work(self, &mut partition))) {
            Ok(Ok(done)) => {
                self.partitions[at] = Some(partition);
                return Some(done);
            }
            Ok(Err(error)) => error,
            Err(panic) => format!("broken invariant: {}", panic_message(panic)),
        };
        self.stopped(partition, error);
        None
    }

    /// Loudly, and alone: the others run on (rule C5). Its records stay in the log; whoever waits for it hears that nobody will
    /// answer.
    fn stopped(&mut self, partition: Box<Partition>, error: String) {
        tracing::error!(partition = %partition.id, error, "partition stopped; its data is kept, other partitions run on");
        self.pending.retain(|(of, ..)| *of != partition.id);
        self.shared.stop_partition(PartitionHealth { partition: partition.id, error });
    }

    // Applying.

    fn durable(&mut self, entries: Vec<LogEntry>) {
        let bytes = entries.iter().map(|entry| entry.payload.len() as u64).sum();
        for entry in entries {
            let at = self.position(entry.partition);
            self.guard(at, |worker, partition| worker.entry(partition, &entry));
        }
        self.mailbox.applied(bytes);
    }

    fn entry(&mut self, partition: &mut Partition, entry: &LogEntry) -> Result<(), String> {
        let mut effects = std::mem::take(&mut self.effects);
        let event = apply_entry(&mut partition.store, entry, &mut effects, self.settings.machine_mutant)
            .map_err(|error| error.to_string())?;
        partition.housekeeping.applied(entry.payload.len() as u64, self.monotonic_ms());
        if let Event::AttemptProgressed(progress) = &event
            && progress.end.is_some()
        {
            forget_attempt(partition, progress.id, progress.attempt);
        }
        if let Event::LeaderElected { process } = event
            && self.shared.requests.is_process(process)
        {
            self.lead(partition).map_err(|error| error.to_string())?;
        }
        if partition.leads {
            effects.drain(..).for_each(|effect| self.effect(partition, effect));
        }
        effects.clear();
        self.effects = effects;
        notify_applied(partition);
        Ok(())
    }

    // Effects.

    /// This process's own term begins: everything that effects of earlier terms asked for is found again in the tables.
    fn lead(&mut self, partition: &mut Partition) -> Result<(), StateError> {
        partition.leads = true;
        partition.wheel = Wheel::new();
        partition.backlog = Some(Backlog::START);
        let queues = partition.store.read().scan::<Outboxes>(&PartitionId(0), None, usize::from(u16::MAX) + 1)?;
        let queues = if self.settings.mutant == Mutant::ForgetOutbox { Vec::new() } else { queues };
        if self.settings.mutant == Mutant::ForgetTimers {
            partition.wheel = Wheel::forgetful();
        }
        partition.to_send = queues
            .into_iter()
            .map(|(to, row)| {
                let (wanted, sent) = (row.last, row.acked);
                (to, Outgoing { wanted, sent, durable: sent, acked: sent, ack_due_ms: None })
            })
            .collect();
        if partition.id == PartitionId::CATALOG {
            // A transaction that is dropped reads and changes nothing.
            let value = Arc::new(catalog::load(&partition.store.begin())?);
            self.publish(partition, value, true);
        }
        if let Some(led) = partition.led.take() {
            // A node that stops while it starts does not wait any more.
            let _ = led.send(());
        }
        Ok(())
    }

    fn publish(&mut self, partition: &mut Partition, value: Arc<Catalog>, is_news: bool) {
        self.shared.catalog.publish(value.clone());
        partition.catalog = Some(value);
        for wake in self.shared.catalog_changed.iter().filter(|_| is_news) {
            wake.wake();
        }
    }

    fn effect(&mut self, partition: &mut Partition, effect: Effect) {
        let shared = &self.shared;
        match effect {
            Effect::StartAttempt { id, attempt } => match &mut partition.backlog {
                // One of those that are found in the tables, in this pass or the next.
                Some(backlog) => backlog.is_short = true,
                None if self.pending.len() >= PENDING_MAX => partition.backlog = Some(Backlog::START),
                None => self.pending.push_back((partition.id, id, attempt)),
            },
            Effect::AbortAttempt { id, attempt } => forget_attempt(partition, id, attempt),
            Effect::DeliverNotification { id, attempt, index, notification } => {
                // An attempt that still waits for its slot finds the notification in the journal.
                if let Some(running) = partition.attempts.get(&id).filter(|running| running.attempt == attempt) {
                    // An attempt that has just ended needs it no more.
                    let _ = running.notifications.send(Notified { index, notification });
                }
            }
            Effect::Accept { request, id, existing, execute_at } => {
                if !shared.requests.is_own(request.id) {
                } else if request.awaits_result {
                    let waiters = partition.waiters.entry(id).or_default();
                    if waiters.len() >= WAITERS_SWEEP {
                        waiters.retain(|number| shared.requests.is_open(*number));
                    }
                    waiters.push(request.id.number);
                } else {
                    shared.requests.answer(request.id, Answer::Accepted { id, existing, execute_at });
                }
            }
            Effect::ReplyRetained { request, id, outcome, expires_at } => {
                shared.requests.answer(request, Answer::Completed { id, outcome, expires_at: Some(expires_at) });
            }
            Effect::RefuseRepeatedRun { request, id } => shared.requests.answer(request, Answer::AlreadyInvoked { id }),
            Effect::Complete { id, outcome } => {
                for number in partition.waiters.remove(&id).unwrap_or_default() {
                    shared.requests.answer_number(number, Answer::Completed { id, outcome: outcome.clone(), expires_at: None });
                }
            }
            Effect::Remove { id } => {
                for number in partition.waiters.remove(&id).unwrap_or_default() {
                    shared.requests.answer_number(number, Answer::Removed { id });
                }
            }
            Effect::ReplyOperation { request, answer } => shared.requests.answer(request, Answer::Operation(answer)),
            Effect::SetTimer(key) => partition.wheel.set(key),
            Effect::Send { to, sequence } => {
                let outgoing = partition.to_send.entry(to).or_default();
                outgoing.wanted = outgoing.wanted.max(sequence);
            }
            // The source asks for the number when it needs it.
            Effect::CountParked { .. } => {}
            Effect::PublishCatalog(event) => {
                let mut value = partition.catalog.clone().unwrap_or_default();
                catalog::update(Arc::make_mut(&mut value), &event);
                // Positions move all the time, and decide nothing about what runs.
                self.publish(partition, value, !matches!(*event, CatalogEvent::PositionsAdvanced(_)));
            }
        }
    }

    // Attempts.

    /// Starts waiting attempts while slots are free.
    fn start_pending(&mut self) {
        loop {
            if self.pending.is_empty() {
                self.page_backlog();
            }
            let Some(&(partition, id, attempt)) = self.pending.front() else { return };
            if !self.reserve_slot() {
                return;
            }
            self.pending.pop_front();
            let at = self.position(partition);
            let done = self
                .guard(at, |worker, partition| worker.start_attempt(partition, id, attempt).map_err(|error| error.to_string()));
            if !matches!(done, Some(Started::Yes)) {
                self.invoker.release();
            }
            if matches!(done, Some(Started::Later)) {
                self.pending.push_front((partition, id, attempt));
                return;
            }
        }
    }

    /// Whether a slot was free; if not, the next one that becomes free wakes this worker.
    fn reserve_slot(&mut self) -> bool {
        if self.invoker.try_reserve() {
            return true;
        }
        self.shared.wants_slot[self.number].store(true, Ordering::Relaxed);
        // Either this sees the slot that somebody frees now, or they see the wish.
        fence(Ordering::SeqCst);
        self.invoker.try_reserve()
    }

    /// Takes running invocations of the tables in, a page of the next partition that has a backlog.
    fn page_backlog(&mut self) {
        for _ in 0..self.partitions.len() {
            let at = self.backlog_turn % self.partitions.len();
            self.backlog_turn = at + 1;
            let page = |worker: &mut Self, partition: &mut Partition| {
                let Some(backlog) = &mut partition.backlog else { return Ok(()) };
                let rows = partition.store.read().scan::<Running>(&backlog.next, None, BACKLOG_PAGE);
                let rows = rows.map_err(|error| error.to_string())?;
                match rows.last() {
                    Some((last, _)) if rows.len() == BACKLOG_PAGE => backlog.next = query::next_id(*last),
                    _ if backlog.is_short => *backlog = Backlog::START,
                    _ => partition.backlog = None,
                }
                let runs = |(id, attempt): &(InvocationId, Attempt)| {
                    partition.attempts.get(id).is_some_and(|running| running.attempt == *attempt)
                };
                let waiting = rows.into_iter().filter(|row| !runs(row));
                worker.pending.extend(waiting.map(|(id, attempt)| (partition.id, id, attempt)));
                Ok(())
            };
            self.guard(at, page);
            if !self.pending.is_empty() {
                return;
            }
        }
    }

    fn start_attempt(&mut self, partition: &mut Partition, id: InvocationId, attempt: Attempt) -> Result<Started, StateError> {
        let runs = partition.attempts.get(&id).is_some_and(|running| running.attempt == attempt);
        if !partition.leads || runs {
            return Ok(Started::No);
        }
        let reader = partition.store.read();
        let Some((invocation, active)) = current(&reader, id, attempt)? else { return Ok(Started::No) };
        let state_bytes = self.invoker.eager_state_bytes(&invocation.target, active.pin);
        let object = (state_bytes > 0).then(|| (invocation.target.object_key(), state_bytes));
        let mut replay = Replay::new(id, active.journal_len, object);
        let (notifications, live) = mpsc::unbounded_channel();
        // Everything of one instant (rule M5): what comes into the journal from now on it gets live.
        let mut start = AttemptStart {
            partition: partition.id,
            id,
            attempt,
            random_seed: invocation.random_seed,
            pin: active.pin,
            commands: active.commands,
            replay: Vec::new(),
            state: EagerState::default(),
            retries_since_entry: active.retries_since_entry,
            last_entry_at: active.last_entry_at,
            attempts_counted: active.attempts_counted(reader.get::<Meta>(&())?.unwrap_or_default().epoch),
            target: invocation.target,
            live,
        };
        if replay.step(&reader, ON_WORKER)? {
            replay.hand_over(&mut start);
            self.settings.mutant.misread(&mut start.replay, &notifications);
            self.invoker.start(start);
        } else {
            let view = (Arc::strong_count(&self.loads) <= LOADS_MAX).then(|| partition.store.publish()).flatten();
            let Some(view) = view else { return Ok(Started::Later) };
            let load = Load { replay, start, turn: self.loads.clone(), view: Lent::new(view, self.mailbox.wake()) };
            self.shared.env.tasks.spawn(Box::pin(load.run(self.shared.clone(), self.invoker.clone())));
        }
        partition.attempts.insert(id, Live { attempt, notifications });
        Ok(Started::Yes)
    }

    // What is due.

    /// Timers, messages, sweeps and checkpoints; says for how long nothing will be due.
    fn turn(&mut self) -> Duration {
        let (now, monotonic_ms) = (self.now(), self.monotonic_ms());
        let holder = self.oldest_holder(monotonic_ms);
        let mut idle = CLOCK_REREAD;
        for at in 0..self.partitions.len() {
            let due = self.guard(at, |worker, partition| {
                if holder == Some(partition.id) {
                    partition.housekeeping.hurry();
                }
                worker.lend(partition);
                let due = worker.partition_turn(partition, now, monotonic_ms).map_err(|error| error.to_string());
                worker.checkpoint_if_due(partition, monotonic_ms);
                due
            });
            idle = idle.min(due.unwrap_or(CLOCK_REREAD));
        }
        let bytes = self.partitions.iter().flatten().map(|p| p.store.memory_bytes() as u64).sum();
        self.shared.gate.set(self.number, bytes);
        if self.pending.is_empty() && self.partitions.iter().flatten().any(|p| p.backlog.is_some()) {
            return Duration::ZERO;
        }
        idle
    }

    fn partition_turn(&self, partition: &mut Partition, now: Timestamp, monotonic_ms: u64) -> Result<Duration, StateError> {
        if !partition.leads {
            return Ok(CLOCK_REREAD);
        }
        let due = self.fire_timers(partition, now)?;
        self.send_messages(partition)?;
        self.keep_house(partition, now, monotonic_ms)?;
        let idle = self.acknowledge(partition, monotonic_ms);
        Ok(due.map_or(idle, |due| idle.min(Duration::from_millis(due.0.saturating_sub(now.0)))))
    }

    /// Who keeps the log from being trimmed, where it is too large.
    fn oldest_holder(&mut self, monotonic_ms: u64) -> Option<PartitionId> {
        if monotonic_ms < self.next_log_look_ms {
            return None;
        }
        self.next_log_look_ms = monotonic_ms + LOG_LOOK_MS;
        let retained = self.shared.log.retained();
        retained.oldest_holder.filter(|_| retained.bytes > LOG_BYTES_MAX)
    }

    /// Gives a view to those who want one, in the order of asking. When views hold all that may be held, they wait for the end of one, which wakes.
    fn lend(&self, partition: &mut Partition) {
        while let Some(reply) = partition.viewers.pop_front() {
            let Some(view) = partition.store.publish() else { return partition.viewers.push_front(reply) };
            // Whoever asked may have gone.
            let _ = reply.send(Lent::new(view, self.mailbox.wake()));
        }
    }

    fn fire_timers(&self, partition: &mut Partition, now: Timestamp) -> Result<Option<Timestamp>, StateError> {
        let reader = partition.store.read();
        let now = if self.settings.mutant == Mutant::FireEarly { now.after_ms(1_000) } else { now };
        let due = partition.wheel.take_due(&reader, now, FIRE_MAX)?;
        if !due.is_empty() {
            let events = due.iter().map(|key| Event::TimerFired { due: key.due, id: key.id, slot: key.slot });
            self.shared.append(partition.id, events, None);
        }
        partition.wheel.next_due(&reader)
    }

    /// Carries outbox rows to their destinations, in order of their sequence numbers.
    fn send_messages(&self, partition: &mut Partition) -> Result<(), StateError> {
        let shared = &self.shared;
        let from = partition.id;
        for (&to, outgoing) in &mut partition.to_send {
            if outgoing.sent >= outgoing.wanted {
                continue;
            }
            let keys = (outgoing.sent + 1..=outgoing.wanted).map(|sequence| OutboxKey { to, sequence });
            let end = OutboxKey { to, sequence: outgoing.wanted + 1 };
            let mut events = Vec::new();
            for row in partition.store.read().known::<Outbox, _>(keys, end) {
                let (OutboxKey { sequence, .. }, message) = row?;
                let gap = || StateError { table: "outbox", message: format!("message {sequence} to partition {to} is missing") };
                events.push(Event::MessageArrived { from, sequence, message: message.ok_or_else(gap)? });
            }
            let (mailbox, up_to) = (self.mailbox.clone(), outgoing.wanted);
            let durable = Box::new(move |_| mailbox.push(Input::OutboxDurable { from, to, up_to }));
            shared.append(to, events, Some(durable));
            outgoing.sent = outgoing.wanted;
        }
        Ok(())
    }

    /// Lets rows go whose messages are durable at their destination: in batches, since each batch is a record.
    fn acknowledge(&self, partition: &mut Partition, monotonic_ms: u64) -> Duration {
        let mut idle = CLOCK_REREAD;
        let mut events = Vec::new();
        for (&to, outgoing) in &mut partition.to_send {
            let Some(due) = outgoing.ack_due_ms else { continue };
            if due <= monotonic_ms || outgoing.durable - outgoing.acked >= ACK_MESSAGES_MAX {
                events.push(Event::OutboxAcked { to, up_to: outgoing.durable });
                outgoing.acked = outgoing.durable;
                outgoing.ack_due_ms = None;
            } else {
                idle = idle.min(Duration::from_millis(due - monotonic_ms));
            }
        }
        if !events.is_empty() {
            self.shared.append(partition.id, events, None);
        }
        idle
    }

    fn keep_house(&self, partition: &mut Partition, now: Timestamp, monotonic_ms: u64) -> Result<(), StateError> {
        let share = self.settings.retained_bytes_max / u64::from(self.shared.count());
        let reader = partition.store.read();
        let looks = Looks { now, monotonic_ms, interval_ms: self.settings.cleanup_interval_ms, share };
        let events = partition.housekeeping.sweep(&reader, &looks)?;
        if !events.is_empty() {
            self.shared.append(partition.id, events, None);
        }
        Ok(())
    }

    // Checkpoints.

    fn checkpoint_if_due(&self, partition: &mut Partition, monotonic_ms: u64) {
        let settings = &self.settings;
        let share = settings.memory_bytes_max / 2 / u64::from(self.shared.count() + 1);
        let active = partition.store.active_bytes() as u64;
        if partition.housekeeping.checkpoint_due(monotonic_ms, active, share, settings)
            && let Some(job) = partition.store.freeze()
        {
            partition.housekeeping.checkpoint_started();
            if settings.mutant == Mutant::TrimAtFreeze {
                self.shared.log.trim(partition.id, partition.store.applied());
            }
            self.checkpoints.push(partition.id, job, self.mailbox.clone());
        }
    }

    fn checkpointed(&mut self, id: PartitionId, result: Result<surefoot_storage::Checkpointed, String>) {
        let at = self.position(id);
        self.guard(at, |worker, partition| {
            let done = result.map_err(|error| format!("checkpoint failed: {error}"))?;
            partition.store.checkpointed(done);
            partition.housekeeping.checkpoint_ended();
            worker.shared.log.trim(id, partition.store.checkpointed_lsn());
            // A view that is held keeps the engine from clearing what others have overwritten since.
            partition.store.refresh();
            worker.partitions.iter_mut().flatten().for_each(|other| other.store.refresh());
            Ok(())
        });
    }

    /// Whether every partition has been checkpointed once more since the stop.
    fn has_stopped(&self) -> bool {
        let has_ended = |p: &Partition| p.housekeeping.has_ended(p.store.applied() == p.store.checkpointed_lsn());
        self.partitions.iter().flatten().all(|partition| has_ended(partition))
    }
}

/// Its stream is reset if it still runs.
fn forget_attempt(partition: &mut Partition, id: InvocationId, attempt: Attempt) {
    if partition.attempts.get(&id).is_some_and(|running| running.attempt == attempt) {
        partition.attempts.remove(&id);
    }
}

fn notify_applied(partition: &mut Partition) {
    if partition.notify.is_empty() {
        return;
    }
    let applied = partition.store.applied();
    for (lsn, done) in std::mem::take(&mut partition.notify) {
        if lsn <= applied {
            // Whoever asked may have gone.
            let _ = done.send(());
        } else {
            partition.notify.push((lsn, done));
        }
    }
}

/// Why an entry was not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("{0}")]
    NewerVersion(String),
    #[error("lsn {lsn}: {message}")]
    Unreadable { lsn: Lsn, message: String },
}

/// Decodes and applies one entry, all or nothing; gives the event back.
pub(crate) fn apply_entry(
    store: &mut Store,
    entry: &LogEntry,
    effects: &mut Vec<Effect>,
    mutant: MachineMutant,
) -> Result<Event, ApplyError> {
    let unreadable = |message: String| ApplyError::Unreadable { lsn: entry.lsn, message };
    let record: Record = encoding::decode(&entry.payload, "record").map_err(|error| match error {
        encoding::Error::Version { .. } => ApplyError::NewerVersion(error.to_string()),
        other => unreadable(other.to_string()),
    })?;
    if record.rules > RULES {
        return Err(ApplyError::NewerVersion(format!(
            "record {} follows version {} of the rules, and this build knows up to {RULES}: start the version that wrote it",
            entry.lsn, record.rules
        )));
    }
    let mut transaction = store.begin();
    apply_broken(mutant, &mut transaction, entry.partition, entry.epoch, &record, effects)
        .map_err(|error| unreadable(error.to_string()))?;
    transaction.commit(entry.lsn);
    Ok(record.event)
}

/// What a panic said. Takes the box: a reference to one is something of any type, too, and has no message.
pub(crate) fn panic_message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panic".to_owned())
}

enum Started {
    Yes,
    /// Killed, paused or voided while it waited; or it runs already.
    No,
    /// Its replay has to be read from a view, and there is none to be had now. The end of another wakes.
    Later,
}

/// A running invocation, if the attempt that was asked for is still its newest.
fn current(reader: &Reader<'_>, id: InvocationId, attempt: Attempt) -> Result<Option<(Invocation, Active)>, StateError> {
    let Some(mut invocation) = reader.get::<Invocations>(&id)? else { return Ok(None) };
    match std::mem::replace(&mut invocation.stage, Stage::Scheduled) {
        Stage::Active(active) if active.attempt == attempt && active.progress == Progress::Running => {
            Ok(Some((invocation, *active)))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The health of a partition that had stopped said no more than "panic".
    #[test]
    fn a_broken_invariant_is_told_in_its_own_words() {
        for panics in [|| panic!("a plain reason"), || assert_eq!(1 + 1, 3, "a {} reason", "plain")] {
            let panic = catch_unwind(panics).unwrap_err();
            assert!(panic_message(panic).contains("a plain reason"));
        }
    }
}
