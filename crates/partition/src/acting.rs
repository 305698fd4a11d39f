//! One partition at work: a durable entry is applied, then what it asks for is carried out.
//!
//! Owns: its store, its parts, and which part an effect concerns. Everything beyond the tables is found in them again by a restart.
//! Does not own: rules (`machine`), what the parts know (one module each), threads, or the order among partitions (`worker`).

use crate::answers::Answer;
use crate::apply::apply_entry;
use crate::attempts::PartitionAttempts;
use crate::brought::Tally;
use crate::chores::PartitionChores;
use crate::clients::PartitionClients;
use crate::gate::{Gate, LargeTicket};
use crate::given::try_given;
use crate::handle::Shared;
use crate::held_back::HeldBack;
use crate::housekeeping::{Housekeeping, Looks};
use crate::mailbox::Input;
use crate::outbox::{MessageBatch, OutboxLooks, OutboxSender};
use crate::publisher::CatalogPublisher;
use crate::settings::Mutant;
use crate::starting::StartQueue;
use crate::timers::PartitionTimers;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use surefoot_env::Undone;
use surefoot_invoker::Destination;
use surefoot_log::Entry as LogEntry;
use surefoot_machine::{Effect, Mutant as MachineMutant, StateError};
use surefoot_model::{AttemptClass, Epoch, Event, PartitionId, Timestamp};
use surefoot_storage::{Checkpointed, Store};
use tokio::sync::oneshot;

pub(crate) struct ActingPartition {
    pub(crate) id: PartitionId,
    pub(crate) store: Store,
    shared: Arc<Shared>,
    /// Applied records have effects: this process leads.
    leads: bool,
    pub(crate) attempts: PartitionAttempts,
    pub(crate) outbox: OutboxSender,
    pub(crate) timers: PartitionTimers,
    chores: PartitionChores,
    pub(crate) clients: PartitionClients,
    pub(crate) housekeeping: Housekeeping,
    catalog: CatalogPublisher,
    effects: Vec<Effect>,
    /// While the next message to another partition is larger than memory has room for.
    large_message: Option<LargeTicket<Arc<Gate>>>,
    /// Told once this process leads.
    led: Option<oneshot::Sender<()>>,
}

/// When a turn takes place.
#[derive(Clone, Copy)]
pub(crate) struct TurnTime {
    /// For what is due.
    pub(crate) now: Timestamp,
    /// For when to look: no jump of the wall clock holds it up.
    pub(crate) monotonic_ms: u64,
}

/// What a turn left to be done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TurnDone {
    /// For how long nothing will be due, where that is known.
    pub(crate) idle: Option<Duration>,
    /// Something waits that comes without an input for this partition: the end of a view, or room.
    pub(crate) waits: bool,
}

impl ActingPartition {
    pub(crate) fn new(
        id: PartitionId,
        store: Store,
        shared: Arc<Shared>,
        housekeeping: Housekeeping,
        led: oneshot::Sender<()>,
    ) -> Box<Self> {
        let mutant = shared.settings.mutant;
        Box::new(Self {
            id,
            store,
            leads: false,
            attempts: PartitionAttempts::new(id, shared.settings.journal_part_bytes, mutant),
            outbox: OutboxSender::new(id, shared.outbox_rooms[shared.worker_of(id)].clone(), mutant),
            timers: PartitionTimers::new(shared.count(), mutant),
            chores: PartitionChores::new(mutant),
            clients: PartitionClients::default(),
            housekeeping,
            catalog: CatalogPublisher::new(shared.catalog.clone(), shared.catalog_changed.clone()),
            shared,
            effects: Vec::new(),
            large_message: None,
            led: Some(led),
        })
    }

    pub(crate) fn leads(&self) -> bool {
        self.leads
    }

    /// Applies a durable entry, then carries out its effects while this process leads.
    pub(crate) fn apply(
        &mut self,
        entry: &LogEntry,
        monotonic_ms: u64,
        queue: &mut StartQueue,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let mut effects = std::mem::take(&mut self.effects);
        let machine_mutant = match self.shared.settings.mutant {
            Mutant::LookAtSettings => MachineMutant::EvictNamed,
            _ => self.shared.settings.machine_mutant,
        };
        let event = apply_entry(&mut self.store, entry, &mut effects, machine_mutant).map_err(|error| error.to_string())?;
        self.housekeeping.applied(entry.payload.len() as u64, monotonic_ms);
        tally.on_event(&event, entry.payload.len() as u64);
        self.attempts.on_event(&event);
        self.chores.on_event(&event);
        self.timers.on_event(&event);
        self.housekeeping.on_event(&event);
        if let Event::LeaderElected { process } = event {
            self.elected(process, entry.epoch, queue).map_err(|error| error.to_string())?;
        }
        if self.leads {
            let is_fired = matches!(event, Event::TimerFired { .. });
            for effect in effects.drain(..) {
                if let Effect::StartAttempt { id, attempt, .. } = effect
                    && is_fired
                {
                    self.timers.resumed.resumed(id, attempt, monotonic_ms);
                }
                self.carry_out(effect, queue);
            }
        }
        effects.clear();
        self.effects = effects;
        if self.leads {
            self.shared.applied[self.shared.index(self.id)].store(self.store.applied().0, Ordering::Release);
        }
        self.clients.on_applied(self.store.applied());
        Ok(())
    }

    fn elected(&mut self, process: u64, epoch: Epoch, queue: &mut StartQueue) -> Result<(), StateError> {
        if self.shared.requests.is_process(process) {
            assert!(epoch >= self.shared.epoch(self.id), "a term begins under an epoch of its own (rule M6): {epoch:?}");
            self.shared.enter_epoch(self.id, epoch);
            return self.begin_term(queue);
        }
        if self.leads {
            tracing::info!(partition = %self.id, epoch = epoch.0, "another process leads this partition from here on");
            self.end_term();
            // Its clients cannot know what the other one makes of their requests.
            self.shared.requests.close_partition(self.id);
        }
        Ok(())
    }

    /// This process's own term begins: everything that effects of earlier terms asked for is found again in the tables.
    fn begin_term(&mut self, queue: &mut StartQueue) -> Result<(), StateError> {
        self.leads = true;
        self.timers.begin_term();
        self.housekeeping.begin_term();
        self.chores.begin_term();
        self.attempts.begin_term(queue);
        self.outbox.begin_term(&self.store.read())?;
        if self.id == PartitionId::CATALOG {
            self.catalog.begin_term(&mut self.store)?;
        }
        if let Some(led) = self.led.take() {
            // A node that stops while it starts does not wait any more.
            let _ = led.send(());
        }
        Ok(())
    }

    /// Nothing is carried out any more.
    pub(crate) fn end_term(&mut self) {
        self.leads = false;
        self.attempts.end_term();
        self.outbox.end_term();
        self.large_message = None;
        self.clients.end_term();
    }

    fn carry_out(&mut self, effect: Effect, queue: &mut StartQueue) {
        let requests = &self.shared.requests;
        match effect {
            Effect::StartAttempt { id, attempt, key } => self.attempts.on_start(id, attempt, key, queue),
            Effect::AbortAttempt { id, attempt } => {
                self.attempts.forget(id, attempt);
                self.timers.resumed.gone(id, attempt);
            }
            Effect::DeliverNotification { id, attempt, index, notification } => {
                self.attempts.on_notification(id, attempt, index, notification);
            }
            Effect::Accept { request, id, existing, execute_at } => {
                self.clients.on_accept(request, id, existing, execute_at, requests);
            }
            Effect::Complete { id, outcome } => self.clients.on_complete(id, outcome, requests, &self.shared.gate),
            Effect::ReplyRetained { request, id, outcome, expires_at } => {
                let given = try_given(&self.shared.gate, outcome);
                let completed = |outcome| Answer::Completed { id, outcome, expires_at: Some(expires_at) };
                requests.answer(request, given.map_or(Answer::NoRoom, completed));
            }
            Effect::RefuseRepeatedRun { request, id } => requests.answer(request, Answer::AlreadyInvoked { id }),
            Effect::ReplyOperation { request, answer } => requests.answer(request, Answer::Operation(answer)),
            Effect::SetTimer(key) => self.timers.on_set(key),
            Effect::SetExpiry(key) => self.housekeeping.on_expiry(key),
            Effect::SetChore(number) => self.chores.on_set(number),
            Effect::Send { to, sequence } => self.outbox.on_send(to, sequence),
            // The source asks for the number when it needs it.
            Effect::CountParked { .. } => {}
            Effect::PublishCatalog(event) => {
                self.catalog.on_change(&event);
                // What is held back for one deployment may start on another one.
                self.shared.slot_freed();
            }
        }
    }

    pub(crate) fn page_backlog(&mut self, class: AttemptClass, queue: &mut StartQueue) -> Result<(), StateError> {
        self.attempts.page_backlog(&self.store.read(), class, queue)
    }

    pub(crate) fn page_aside(
        &mut self,
        destination: &Destination,
        class: AttemptClass,
        held: &mut HeldBack,
    ) -> Result<usize, StateError> {
        self.attempts.page_aside(&self.store.read(), destination, class, held)
    }

    /// Views, timers, messages, sweeps and a checkpoint.
    pub(crate) fn turn(&mut self, time: TurnTime) -> Result<TurnDone, StateError> {
        self.clients.lend(&mut self.store, &self.shared.mailbox(self.id).wake());
        let acted = if self.leads { self.act(time)? } else { TurnDone::default() };
        self.checkpoint_if_due(time.monotonic_ms);
        Ok(TurnDone { waits: acted.waits || self.clients.want_views(), ..acted })
    }

    fn act(&mut self, time: TurnTime) -> Result<TurnDone, StateError> {
        let TurnTime { now, monotonic_ms } = time;
        let settings = &self.shared.settings;
        let count = u64::from(self.shared.count());
        let index = self.shared.index(self.id);
        let retained_bytes_max = self.shared.retained.allow(index, self.housekeeping.retained_bytes());
        let missing_bytes = self.shared.gate.disk().evict_bytes.div_ceil(count);
        let looks = Looks { now, monotonic_ms, interval_ms: settings.cleanup_interval_ms, retained_bytes_max, missing_bytes };
        let reader = self.store.read();
        let timers = self.timers.turn(&reader, time)?;
        let has_memory = self.shared.has_work_memory(self.shared.worker_of(self.id));
        let gate = &self.shared.gate;
        // Held until the messages are on their way, and count.
        let message_turn = gate.message_turn();
        let message_bytes_max =
            has_memory.then(|| if message_turn.is_some() { gate.message_bytes_max() } else { gate.small_bytes_max() });
        let outbox =
            self.outbox.turn(&reader, OutboxLooks { monotonic_ms, message_bytes_max }, |to| self.shared.has_stopped(to))?;
        self.large_message = match self.large_message.take() {
            _ if !outbox.large_waits => None,
            Some(waiting) => Some(waiting),
            None => Some(self.shared.gate.clone().wait_with_message()),
        };
        if outbox.large_waits {
            self.shared.large_message_waits(self.shared.worker_of(self.id));
        }
        let removals = self.housekeeping.sweep(&reader, &looks)?;
        self.shared.retained.note(index, self.housekeeping.retained_bytes());
        let chore = if has_memory { self.chores.turn(&reader)? } else { None };
        self.append(timers.events);
        self.append(chore.into_iter().collect());
        outbox.batches.into_iter().for_each(|batch| self.send(batch));
        drop(message_turn);
        self.append(removals);
        self.append(outbox.acks);
        let until_due = timers.next_due.map(|due| Duration::from_millis(due.0.saturating_sub(now.0)));
        let until_ack = outbox.next_ack_ms.map(|due| Duration::from_millis(due.saturating_sub(monotonic_ms)));
        let at_once = outbox.is_behind.then_some(Duration::ZERO);
        let idle = until_due.into_iter().chain(until_ack).chain(at_once).min();
        Ok(TurnDone { idle, waits: outbox.waits || !has_memory && self.chores.has_next() })
    }

    /// What its parts could do by what lies in the tables. `reread` is how often its worker looks at the wall clock.
    pub(crate) fn undone(&self, time: TurnTime, reread: Duration) -> Result<Vec<Undone>, StateError> {
        if !self.leads {
            return Ok(Vec::new());
        }
        let reader = self.store.read();
        let has_memory = self.shared.gate.has_work_memory();
        let mut undone = Vec::new();
        undone.extend(self.timers.undone(&reader, time, reread)?);
        if has_memory {
            undone.extend(self.chores.undone(&reader)?);
            let message_bytes_max = self.shared.gate.message_bytes_max();
            undone.extend(self.outbox.undone(&reader, message_bytes_max, |to| self.shared.has_stopped(to))?);
        }
        let of_partition = |left: Undone| Undone { what: format!("partition {}: {}", self.id, left.what), ..left };
        Ok(undone.into_iter().map(of_partition).collect())
    }

    fn append(&self, events: Vec<Event>) {
        if !events.is_empty() {
            // A node that stops takes nothing more, and its next life finds it due again.
            let _ = self.shared.append(self.id, events, None);
        }
    }

    fn send(&self, batch: MessageBatch) {
        let MessageBatch { to, up_to, events } = batch;
        let (mailbox, from) = (self.shared.mailbox(self.id).clone(), self.id);
        let durable = Box::new(move |_| mailbox.push(Input::OutboxDurable { from, to, up_to }));
        // As above.
        let _ = self.shared.append(to, events, Some(durable));
    }

    fn checkpoint_if_due(&mut self, monotonic_ms: u64) {
        if self.housekeeping.checkpoint_due(monotonic_ms, &self.shared.settings) {
            self.checkpoint();
        }
    }

    /// Has what was applied written to the engine; false while that is being done, and where nothing was applied.
    pub(crate) fn checkpoint(&mut self) -> bool {
        let shared = &self.shared;
        if shared.settings.mutant == Mutant::CheckpointWaits && !shared.gate.has_work_memory() {
            return false;
        }
        let Some(job) = self.store.freeze() else { return false };
        self.housekeeping.checkpoint_started();
        if shared.settings.mutant == Mutant::TrimAtFreeze {
            shared.log.trim(self.id, self.store.applied());
        }
        shared.checkpoints.push(self.id, job, shared.mailbox(self.id).clone());
        true
    }

    pub(crate) fn checkpointed(&mut self, result: Result<Checkpointed, String>) -> Result<(), String> {
        let retired = self.store.checkpointed(result.map_err(|error| format!("checkpoint failed: {error}"))?);
        self.shared.checkpoints.free(self.id, retired, self.shared.mailbox(self.id).clone());
        assert!(self.store.checkpointed_lsn() <= self.store.applied(), "only what was applied is trimmed (rule C2)");
        self.housekeeping.checkpoint_ended();
        self.shared.log.trim(self.id, self.store.checkpointed_lsn());
        Ok(())
    }

    /// Whether it has been checkpointed once more since the node stops.
    pub(crate) fn has_ended(&self) -> bool {
        let is_clean = self.store.applied() == self.store.checkpointed_lsn();
        self.housekeeping.has_ended(is_clean) || self.shared.settings.mutant == Mutant::StopBetween
    }
}
