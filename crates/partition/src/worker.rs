//! A worker: some partitions, one thread, one mailbox. Durable records in, effects out.
//!
//! Owns: the order of things: apply (one overlay per record, published whole), then carry out. It never waits for a consumer
//! (rule O3): what cannot start yet stays in state and is pulled when a slot is free. Does not own: rules (`machine`), bytes
//! (`storage`), or streams to handlers (`invoker`).

use crate::answers::Answer;
use crate::checkpointer::Checkpoints;
use crate::handle::Shared;
use crate::housekeeping::Housekeeping;
use crate::mailbox::{Input, Mailbox};
use crate::query::{self, PartitionHealth, Query};
use crate::wheel::Wheel;
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use surefoot_env::{Step, Steps};
use surefoot_invoker::{AttemptStart, EagerState, Invoker, Live};
use surefoot_log::Entry as LogEntry;
use surefoot_machine::{
    Effect, Invocations, Journal, JournalKey, Mutant as MachineMutant, Outbox, OutboxKey, Outboxes, StateError, StateKey,
    StateNames, StateValues, apply_broken, catalog,
};
use surefoot_model::{
    Attempt, Catalog, Entry, Event, InvocationId, Lsn, PartitionId, Progress, Record, Target, Timestamp, encoding,
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
    /// Replays the journal as it is when the attempt gets its slot, and sends live what came since it was asked for (rule M5).
    ReplayMore,
    /// Replays the journal as it was when the attempt was asked for, and forgets what came since (rule M5).
    ForgetLive,
}

impl Mutant {
    /// Breaks what an attempt is shown, for the variants that do.
    fn misread(self, start: &mut AttemptStart, live: &mpsc::UnboundedSender<Live>) {
        if self != Self::ReplayMore && self != Self::ForgetLive {
            return;
        }
        let since: Vec<Live> = std::iter::from_fn(|| start.live.try_recv().ok()).collect();
        if self == Self::ReplayMore {
            for since in since {
                start.replay.push(Entry::Notification(since.notification.clone()));
                live.send(since).expect("the receiver is at hand");
            }
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
    partitions: Vec<Partition>,
    inputs: Vec<Input>,
    effects: Vec<Effect>,
    /// Attempts that wait for a slot, in the order in which they were asked for.
    pending: VecDeque<(PartitionId, InvocationId, Attempt)>,
    stopping: Option<oneshot::Sender<()>>,
}

/// One partition and what its worker knows beyond its tables: nothing that a restart could not find again.
pub(crate) struct Partition {
    pub(crate) id: PartitionId,
    pub(crate) store: Store,
    /// Applied records have effects: this process leads.
    leads: bool,
    stopped: bool,
    wheel: Wheel,
    attempts: BTreeMap<InvocationId, Running>,
    /// Clients that wait for a result: request numbers of this process.
    waiters: BTreeMap<InvocationId, Vec<u64>>,
    /// Messages to carry to other partitions, up to this sequence number.
    to_send: BTreeMap<PartitionId, Outgoing>,
    notify: Vec<(Lsn, oneshot::Sender<()>)>,
    pub(crate) housekeeping: Housekeeping,
    /// The published catalog; of the catalog's partition only.
    catalog: Option<Arc<Catalog>>,
    /// Told once this process leads.
    led: Option<oneshot::Sender<()>>,
}

struct Running {
    attempt: Attempt,
    live: mpsc::UnboundedSender<Live>,
}

/// How far one outbox queue is: sent <= wanted, acked <= durable <= sent.
#[derive(Default)]
struct Outgoing {
    wanted: u64,
    sent: u64,
    durable: u64,
    acked: u64,
    /// When the oldest durable message not yet acknowledged became so.
    ack_due: Option<Timestamp>,
}

impl Partition {
    pub(crate) fn new(id: PartitionId, store: Store, led: oneshot::Sender<()>) -> Self {
        Self {
            id,
            store,
            leads: false,
            stopped: false,
            wheel: Wheel::new(),
            attempts: BTreeMap::new(),
            waiters: BTreeMap::new(),
            to_send: BTreeMap::new(),
            notify: Vec::new(),
            housekeeping: Housekeeping::default(),
            catalog: None,
            led: Some(led),
        }
    }
}

impl Steps for Worker {
    fn step(&mut self) -> Step {
        let mut inputs = std::mem::take(&mut self.inputs);
        self.mailbox.take(&mut inputs);
        let worked = !inputs.is_empty();
        for input in inputs.drain(..) {
            self.input(input);
        }
        self.inputs = inputs;
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

impl Worker {
    pub(crate) fn new(
        number: usize,
        shared: Arc<Shared>,
        invoker: Arc<Invoker>,
        mailbox: Mailbox,
        checkpoints: Checkpoints,
        settings: Settings,
        partitions: Vec<Partition>,
    ) -> Self {
        Self {
            number,
            shared,
            invoker,
            mailbox,
            checkpoints,
            settings,
            partitions,
            inputs: Vec::new(),
            effects: Vec::new(),
            pending: VecDeque::new(),
            stopping: None,
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Durable(entries) => self.durable(entries),
            Input::Query(query) => self.query(query),
            Input::AttemptEnded { partition, id, attempt } => {
                let attempts = &mut self.at(partition).attempts;
                if attempts.get(&id).is_some_and(|running| running.attempt == attempt) {
                    attempts.remove(&id);
                }
            }
            // `start_pending` follows every batch of inputs.
            Input::SlotFreed => {}
            Input::OutboxDurable { from, to, up_to } => {
                let now = self.now();
                let outgoing = self.at(from).to_send.entry(to).or_default();
                outgoing.durable = outgoing.durable.max(up_to);
                outgoing.ack_due.get_or_insert(now.after_ms(ACK_DELAY_MS));
            }
            Input::NotifyApplied { partition, lsn, done } => {
                let partition = self.at(partition);
                if partition.store.applied() >= lsn {
                    // Whoever asked may have gone.
                    let _ = done.send(());
                } else {
                    partition.notify.push((lsn, done));
                }
            }
            Input::Checkpointed { partition, result } => self.checkpointed(partition, result),
            Input::Stop { done } => {
                self.stopping = Some(done);
                self.pending.clear();
                for partition in &mut self.partitions {
                    partition.attempts.clear();
                    partition.leads = false;
                    partition.housekeeping.last_round();
                }
            }
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.shared.env.clock.now_ms())
    }

    fn at(&mut self, id: PartitionId) -> &mut Partition {
        let at = self.position(id);
        &mut self.partitions[at]
    }

    fn position(&self, id: PartitionId) -> usize {
        self.partitions.iter().position(|p| p.id == id).expect("inputs reach the worker that owns the partition")
    }

    // Applying.

    fn durable(&mut self, entries: Vec<LogEntry>) {
        for entry in entries {
            let at = self.position(entry.partition);
            if self.partitions[at].stopped {
                continue;
            }
            let mut effects = std::mem::take(&mut self.effects);
            let applied = catch_unwind(AssertUnwindSafe(|| {
                apply_entry(&mut self.partitions[at].store, &entry, &mut effects, self.settings.machine_mutant)
            }));
            match applied {
                Ok(Ok(event)) => {
                    self.partitions[at].housekeeping.applied(entry.payload.len() as u64, self.shared.env.clock.now_ms());
                    let done = self.carry_out(at, event, &mut effects);
                    if let Err(error) = done {
                        self.stop_partition(at, error.to_string());
                    }
                    self.notify_applied(at);
                }
                Ok(Err(error)) => self.stop_partition(at, error),
                Err(panic) => self.stop_partition(at, format!("broken invariant at lsn {}: {}", entry.lsn, panic_message(panic))),
            }
            effects.clear();
            self.effects = effects;
        }
    }

    /// Loudly, and alone: the others run on (rule C5). Its records stay in the log.
    fn stop_partition(&mut self, at: usize, error: String) {
        let partition = &mut self.partitions[at];
        tracing::error!(partition = %partition.id, error, "partition stopped; its data is kept, other partitions run on");
        partition.stopped = true;
        partition.leads = false;
        partition.attempts.clear();
        partition.waiters.clear();
        let health = PartitionHealth { partition: partition.id, error };
        self.shared.stopped.lock().unwrap_or_else(PoisonError::into_inner).push(health);
    }

    fn notify_applied(&mut self, at: usize) {
        let partition = &mut self.partitions[at];
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

    // Effects.

    fn carry_out(&mut self, at: usize, event: Event, effects: &mut Vec<Effect>) -> Result<(), StateError> {
        if let Event::LeaderElected { process } = event
            && self.shared.requests.is_process(process)
        {
            self.lead(at)?;
        }
        if !self.partitions[at].leads {
            return Ok(());
        }
        for effect in effects.drain(..) {
            self.effect(at, effect);
        }
        Ok(())
    }

    /// This process's own term begins: everything that effects of earlier terms asked for is found again in the tables.
    fn lead(&mut self, at: usize) -> Result<(), StateError> {
        let partition = &mut self.partitions[at];
        partition.leads = true;
        partition.wheel = Wheel::new();
        let queues = partition.store.read().scan::<Outboxes>(&PartitionId(0), None, usize::from(u16::MAX) + 1)?;
        let queues = if self.settings.mutant == Mutant::ForgetOutbox { Vec::new() } else { queues };
        if self.settings.mutant == Mutant::ForgetTimers {
            partition.wheel = Wheel::forgetful();
        }
        partition.to_send = queues
            .into_iter()
            .map(|(to, row)| {
                let (wanted, sent) = (row.last, row.acked);
                (to, Outgoing { wanted, sent, durable: sent, acked: sent, ack_due: None })
            })
            .collect();
        if partition.id == PartitionId::CATALOG {
            // A transaction that is dropped reads and changes nothing.
            let value = Arc::new(catalog::load(&partition.store.begin())?);
            self.publish(at, value);
        }
        if let Some(led) = self.partitions[at].led.take() {
            // A node that stops while it starts does not wait any more.
            let _ = led.send(());
        }
        Ok(())
    }

    fn publish(&mut self, at: usize, value: Arc<Catalog>) {
        self.shared.catalog.publish(value.clone());
        self.partitions[at].catalog = Some(value);
        for wake in &self.shared.catalog_changed {
            wake.wake();
        }
    }

    fn effect(&mut self, at: usize, effect: Effect) {
        let shared = &self.shared;
        let partition = &mut self.partitions[at];
        match effect {
            Effect::StartAttempt { id, attempt } => self.pending.push_back((partition.id, id, attempt)),
            Effect::AbortAttempt { id, attempt } => {
                if partition.attempts.get(&id).is_some_and(|running| running.attempt == attempt) {
                    partition.attempts.remove(&id);
                }
            }
            Effect::DeliverNotification { id, attempt, index, notification } => {
                // An attempt that still waits for its slot finds the notification in the journal.
                if let Some(running) = partition.attempts.get(&id).filter(|running| running.attempt == attempt) {
                    // An attempt that has just ended needs it no more.
                    let _ = running.live.send(Live { index, notification });
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
                self.publish(at, value);
            }
        }
    }

    // Attempts.

    /// Starts waiting attempts while slots are free.
    fn start_pending(&mut self) {
        while let Some(&(partition, id, attempt)) = self.pending.front() {
            let at = self.position(partition);
            let start = match self.partitions[at].leads.then(|| is_current(&self.partitions[at].store.read(), id, attempt)) {
                Some(Ok(true)) => {
                    if !self.invoker.try_reserve() {
                        return;
                    }
                    self.start_attempt(at, id, attempt)
                }
                Some(Err(error)) => Err(error),
                // Killed, paused or voided while it waited.
                Some(Ok(false)) | None => Ok(()),
            };
            self.pending.pop_front();
            if let Err(error) = start {
                self.stop_partition(at, error.to_string());
            }
        }
    }

    fn start_attempt(&mut self, at: usize, id: InvocationId, attempt: Attempt) -> Result<(), StateError> {
        let partition = &mut self.partitions[at];
        let (live, receiver) = mpsc::unbounded_channel();
        let start = match read_attempt(&partition.store.read(), &self.invoker, partition.id, id, receiver, &live) {
            Ok(mut start) => {
                self.settings.mutant.misread(&mut start, &live);
                start
            }
            Err(error) => {
                self.invoker.release();
                return Err(error);
            }
        };
        partition.attempts.insert(id, Running { attempt, live });
        self.invoker.start(start);
        Ok(())
    }

    // What is due.

    /// Timers, messages, sweeps and checkpoints; says for how long nothing will be due.
    fn turn(&mut self) -> Duration {
        let now = self.now();
        let mut idle = CLOCK_REREAD;
        for at in 0..self.partitions.len() {
            if self.partitions[at].stopped {
                continue;
            }
            if self.partitions[at].leads {
                let due = self.fire_timers(at, now).and_then(|due| self.send_messages(at).map(|()| due));
                match due.and_then(|due| self.keep_house(at, now).map(|()| due)) {
                    Ok(Some(due)) => idle = idle.min(Duration::from_millis(due.0.saturating_sub(now.0))),
                    Ok(None) => {}
                    Err(error) => {
                        self.stop_partition(at, error.to_string());
                        continue;
                    }
                }
                idle = idle.min(self.acknowledge(at, now));
            }
            self.checkpoint_if_due(at, now);
        }
        let bytes = self.partitions.iter().map(|p| p.store.memory_bytes() as u64).sum();
        self.shared.gate.set(self.number, bytes);
        idle
    }

    fn fire_timers(&mut self, at: usize, now: Timestamp) -> Result<Option<Timestamp>, StateError> {
        let partition = &mut self.partitions[at];
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
    fn send_messages(&mut self, at: usize) -> Result<(), StateError> {
        let shared = &self.shared;
        let partition = &mut self.partitions[at];
        let from = partition.id;
        for (&to, outgoing) in &mut partition.to_send {
            if outgoing.sent >= outgoing.wanted {
                continue;
            }
            let first = OutboxKey { to, sequence: outgoing.sent + 1 };
            let end = OutboxKey { to, sequence: outgoing.wanted + 1 };
            let rows = partition.store.read().scan::<Outbox>(&first, Some(&end), (outgoing.wanted - outgoing.sent) as usize)?;
            let events = rows.into_iter().map(|(key, message)| Event::MessageArrived { from, sequence: key.sequence, message });
            let (mailbox, up_to) = (self.mailbox.clone(), outgoing.wanted);
            let durable = Box::new(move |_| mailbox.push(Input::OutboxDurable { from, to, up_to }));
            shared.append(to, events, Some(durable));
            outgoing.sent = outgoing.wanted;
        }
        Ok(())
    }

    /// Lets rows go whose messages are durable at their destination: in batches, since each batch is a record.
    fn acknowledge(&mut self, at: usize, now: Timestamp) -> Duration {
        let partition = &mut self.partitions[at];
        let mut idle = CLOCK_REREAD;
        let mut events = Vec::new();
        for (&to, outgoing) in &mut partition.to_send {
            let Some(due) = outgoing.ack_due else { continue };
            if due <= now || outgoing.durable - outgoing.acked >= ACK_MESSAGES_MAX {
                events.push(Event::OutboxAcked { to, up_to: outgoing.durable });
                outgoing.acked = outgoing.durable;
                outgoing.ack_due = None;
            } else {
                idle = idle.min(Duration::from_millis(due.0 - now.0));
            }
        }
        if !events.is_empty() {
            self.shared.append(partition.id, events, None);
        }
        idle
    }

    fn keep_house(&mut self, at: usize, now: Timestamp) -> Result<(), StateError> {
        let share = self.settings.retained_bytes_max / u64::from(self.shared.count());
        let partition = &mut self.partitions[at];
        let reader = partition.store.read();
        let events = partition.housekeeping.sweep(&reader, now, self.settings.cleanup_interval_ms, share)?;
        if !events.is_empty() {
            self.shared.append(partition.id, events, None);
        }
        Ok(())
    }

    // Checkpoints.

    fn checkpoint_if_due(&mut self, at: usize, now: Timestamp) {
        let share = self.settings.memory_bytes_max / 2 / u64::from(self.shared.count() + 1);
        let settings = &self.settings;
        let partition = &mut self.partitions[at];
        let active = partition.store.active_bytes() as u64;
        if partition.housekeeping.checkpoint_due(now.0, active, share, settings)
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
        match result {
            Ok(done) => {
                let partition = &mut self.partitions[at];
                partition.store.checkpointed(done);
                partition.housekeeping.checkpoint_ended();
                self.shared.log.trim(id, partition.store.checkpointed_lsn());
                // A view that is held keeps the engine from clearing what others have overwritten since.
                for partition in &mut self.partitions {
                    partition.store.refresh();
                }
            }
            Err(error) => self.stop_partition(at, format!("checkpoint failed: {error}")),
        }
    }

    /// Whether every partition has been checkpointed once more since the stop.
    fn has_stopped(&self) -> bool {
        self.partitions.iter().all(|p| p.stopped || p.housekeeping.has_ended(p.store.applied() == p.store.checkpointed_lsn()))
    }

    // Questions.

    fn query(&mut self, query: Query) {
        let partition = query.partition(self.shared.count());
        let at = self.position(partition);
        if self.partitions[at].stopped {
            return; // who asks learns it from the reply that never comes
        }
        if let Err(error) = query::answer(query, &self.partitions[at].store.read()) {
            self.stop_partition(at, error.to_string());
        }
    }
}

/// Decodes and applies one entry, all or nothing; gives the event back.
pub(crate) fn apply_entry(
    store: &mut Store,
    entry: &LogEntry,
    effects: &mut Vec<Effect>,
    mutant: MachineMutant,
) -> Result<Event, String> {
    let record: Record = encoding::decode(&entry.payload, "record").map_err(|e| format!("lsn {}: {e}", entry.lsn))?;
    let mut transaction = store.begin();
    apply_broken(mutant, &mut transaction, entry.partition, entry.epoch, &record, effects)
        .map_err(|e| format!("lsn {}: {e}", entry.lsn))?;
    transaction.commit(entry.lsn);
    Ok(record.event)
}

/// What a panic said. Takes the box: a reference to one is something of any type, too, and has no message.
fn panic_message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panic".to_owned())
}

/// Whether an attempt that was asked for is still the newest of a running invocation.
fn is_current(reader: &Reader<'_>, id: InvocationId, attempt: Attempt) -> Result<bool, StateError> {
    let invocation = reader.get::<Invocations>(&id)?;
    let active = invocation.as_ref().and_then(|i| i.active());
    Ok(active.is_some_and(|a| a.attempt == attempt && matches!(a.progress, Progress::Running { .. })))
}

/// Everything an attempt starts with, of one instant (rule M5): the journal it is to know, the state, and, as live messages,
/// notifications that came while it waited for its slot.
fn read_attempt(
    reader: &Reader<'_>,
    invoker: &Invoker,
    partition: PartitionId,
    id: InvocationId,
    receiver: mpsc::UnboundedReceiver<Live>,
    live: &mpsc::UnboundedSender<Live>,
) -> Result<AttemptStart, StateError> {
    let broken = |message: &str| StateError { table: "invocations", message: format!("{id} {message}") };
    let invocation = reader.get::<Invocations>(&id)?.ok_or_else(|| broken("has no row"))?;
    let active = invocation.active().ok_or_else(|| broken("is not active"))?;
    let Progress::Running { known_entries } = active.progress else { return Err(broken("does not run")) };
    let (from, to) = (JournalKey { id, index: 0 }, JournalKey { id, index: active.journal_len });
    let mut replay: Vec<Entry> = Vec::with_capacity(active.journal_len as usize);
    replay.extend(reader.scan::<Journal>(&from, Some(&to), active.journal_len as usize)?.into_iter().map(|(_, entry)| entry));
    if replay.len() != active.journal_len as usize {
        return Err(broken("has a journal with gaps"));
    }
    for (index, entry) in (known_entries..).zip(replay.drain(known_entries as usize..)) {
        if let Entry::Notification(notification) = entry {
            live.send(Live { index, notification }).expect("the receiver is at hand");
        }
    }
    Ok(AttemptStart {
        partition,
        id,
        attempt: active.attempt,
        random_seed: invocation.random_seed,
        pin: active.pin,
        commands: active.commands,
        replay,
        state: eager_state(reader, &invocation.target, invoker.eager_state_bytes(&invocation.target))?,
        retries_since_entry: active.retries_since_entry,
        last_entry_at: active.last_entry_at,
        attempts_counted: active.attempts_counted,
        target: invocation.target,
        live: receiver,
    })
}

/// The key's values in the order of their names, as far as they fit.
fn eager_state(reader: &Reader<'_>, target: &Target, limit: usize) -> Result<EagerState, StateError> {
    if limit == 0 {
        return Ok(EagerState::default());
    }
    let object = target.object_key();
    let mut state = EagerState { entries: Vec::new(), complete: true };
    let mut bytes = 0;
    for name in reader.get::<StateNames>(&object)?.unwrap_or_default() {
        let key = StateKey { object: object.clone(), name };
        if let Some(value) = reader.get::<StateValues>(&key)? {
            bytes += key.name.len() + value.bytes.len();
            if bytes > limit {
                state.complete = false;
                break;
            }
            state.entries.push((key.name, value.bytes));
        }
    }
    Ok(state)
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
