//! A worker: some partitions, one thread, one mailbox. Durable records in, effects out.
//!
//! Owns: the order of things: inputs as they come, then starts, then what is due. It never waits for a consumer (rule O3): what
//! cannot start yet stays in state and is pulled when a slot is free. Does not own: what a partition does with an input
//! (`acting`), or how one stops alone (`owned`).

use crate::acting::{ActingPartition, TurnDone, TurnTime};
use crate::brought::Tally;
use crate::gate::DiskRoom;
use crate::handle::Shared;
use crate::mailbox::{Input, Mailbox, ReportOnWay};
use crate::owned::OwnedPartitions;
use crate::settings::Mutant;
use crate::starting::AttemptStarter;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use surefoot_env::{Step, Steps, Undone};
use surefoot_invoker::Invoker;
use surefoot_log::Entry as LogEntry;
use surefoot_model::{PartitionId, RECORD_COST, Timestamp};
use surefoot_storage::Checkpointed;
use tokio::sync::oneshot;

/// The wall clock is read at least this often: it may jump, and a suspended machine's monotonic clock stands still (rule T2).
const CLOCK_REREAD: Duration = Duration::from_secs(1);
/// What is taken off the mailbox before timers, checkpoints and the gate have their turn, as [`RECORD_COST`] counts: 512 small entries.
const STEP_COST: u64 = 4 << 20;
/// While something large waits for memory, active layers are written at this part of what they may take.
const HURRIED_PART: u64 = 8;
/// What checkpoints and views hold on the disk is looked at this often, in milliseconds.
const HELD_LOOK_MS: u64 = 1_000;

pub(crate) struct Worker {
    number: usize,
    shared: Arc<Shared>,
    invoker: Arc<Invoker>,
    mailbox: Mailbox,
    partitions: OwnedPartitions,
    starter: AttemptStarter,
    inputs: VecDeque<Input>,
    next_held_look_ms: u64,
    /// Entries that were applied since the gate was told what the tables take, and their bytes: it counts them as waiting until then.
    applied: (u64, u64),
    /// Reports among that.
    reported: Vec<ReportOnWay>,
    /// Who brought them.
    tally: Tally,
    /// What the active layers of its partitions may take, as of its last turn: attempts that another worker has started since are seen
    /// with the next one, within [`CLOCK_REREAD`].
    active_bytes_max: u64,
    stopping: Option<oneshot::Sender<()>>,
}

impl Steps for Worker {
    fn step(&mut self) -> Step {
        if self.inputs.is_empty() {
            self.mailbox.take(&mut self.inputs);
        }
        let mut cost = STEP_COST;
        while cost > 0
            && let Some(input) = self.inputs.pop_front()
        {
            cost = cost.saturating_sub(cost_of(&input));
            self.input(input);
        }
        let has_more = self.starter.turn(&mut self.partitions);
        let idle = self.turn();
        if self.stopping.is_some() && self.partitions.iter().all(ActingPartition::has_ended) {
            self.mailbox.close();
            // Before it is told: the caller may open the tables again, and they are locked while anybody holds them.
            self.partitions.let_go();
            if let Some(done) = self.stopping.take() {
                // The caller may not wait any more.
                let _ = done.send(());
            }
            return Step::Done;
        }
        // What came since the mailbox was emptied has woken this worker.
        if self.inputs.is_empty() && !has_more { Step::IdleFor(idle) } else { Step::Worked }
    }

    /// What could go on in its partitions by what lies in their tables, whatever this worker believes.
    fn undone(&self) -> Vec<Undone> {
        if self.stopping.is_some() || self.shared.is_stopping.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut undone = Vec::new();
        if !self.inputs.is_empty() || !self.mailbox.is_empty() {
            undone.push(Undone::at_once("a worker's inputs wait (rule O3)".to_owned()));
        }
        undone.extend(self.starter.undone(&self.partitions).unwrap_or_default());
        let time = self.time();
        // What cannot be read stops the partition elsewhere.
        undone.extend(self.partitions.iter().filter_map(|partition| partition.undone(time, CLOCK_REREAD).ok()).flatten());
        undone.extend(self.partitions.undone(self.active_bytes_max));
        undone
    }
}

fn cost_of(input: &Input) -> u64 {
    match input {
        Input::Durable(entries) => entries.iter().map(|entry| RECORD_COST + entry.payload.len() as u64).sum(),
        _ => RECORD_COST,
    }
}

/// Never a moment early.
fn millis_up(duration: Duration) -> u64 {
    duration.as_nanos().div_ceil(1_000_000) as u64
}

impl Worker {
    pub(crate) fn new(
        number: usize,
        shared: Arc<Shared>,
        invoker: Arc<Invoker>,
        partitions: Vec<Option<Box<ActingPartition>>>,
    ) -> Self {
        Self {
            number,
            mailbox: shared.workers[number].clone(),
            partitions: OwnedPartitions::new(number, shared.clone(), partitions),
            starter: AttemptStarter::new(number, shared.clone(), invoker.clone()),
            invoker,
            shared,
            inputs: VecDeque::new(),
            next_held_look_ms: 0,
            applied: (0, 0),
            reported: Vec::new(),
            tally: Tally::default(),
            active_bytes_max: u64::MAX,
            stopping: None,
        }
    }

    /// Starts, views and what is due follow every batch of inputs. An input for a stopped partition is dropped: a caller's receive
    /// fails then, and the caller learns why from the partition's health.
    fn input(&mut self, input: Input) {
        match input {
            Input::Durable(entries) => self.durable(entries),
            Input::View { partition, reply } => {
                if let Some(partition) = self.partitions.find(partition) {
                    partition.clients.want_view(reply);
                }
            }
            Input::Unreadable { partition, error } => {
                self.partitions.guard(partition, |_| Err::<(), _>(error));
            }
            Input::SlotFreed => {}
            Input::Reported(report) => self.reported.push(report),
            Input::Answered { partition, id, attempt, deployment } => {
                let monotonic_ms = self.monotonic_ms();
                if let Some(partition) = self.partitions.find(partition) {
                    partition.timers.resumed.answered(id, attempt, deployment, monotonic_ms);
                }
            }
            Input::OutboxDurable { from, to, up_to } => {
                let monotonic_ms = self.monotonic_ms();
                if let Some(partition) = self.partitions.find(from) {
                    partition.outbox.on_durable(to, up_to, monotonic_ms);
                }
            }
            Input::NotifyApplied { partition, lsn, done } => {
                if let Some(partition) = self.partitions.find(partition) {
                    partition.clients.notify_applied(lsn, done, partition.store.applied());
                }
            }
            // To be weighed anew.
            Input::Freed { partition } => self.partitions.touch(partition),
            Input::Checkpointed { partition, result } => self.checkpointed(partition, result),
            Input::Stop { done } => {
                self.stopping = Some(done);
                self.starter.stop();
                for partition in self.partitions.touch_all() {
                    partition.end_term();
                    if self.shared.settings.mutant != Mutant::StopBetween {
                        partition.housekeeping.last_round();
                    }
                }
            }
        }
    }

    fn durable(&mut self, entries: Vec<LogEntry>) {
        self.applied.0 += entries.len() as u64;
        self.applied.1 += entries.iter().map(|entry| entry.payload.len() as u64).sum::<u64>();
        for entry in entries {
            let monotonic_ms = self.monotonic_ms();
            let (queue, tally) = (&mut self.starter.queue, &mut self.tally);
            self.partitions.guard(entry.partition, |partition| partition.apply(&entry, monotonic_ms, queue, tally));
        }
    }

    fn checkpointed(&mut self, id: PartitionId, result: Result<Checkpointed, String>) {
        if self.partitions.guard(id, |partition| partition.checkpointed(result)).is_some() {
            self.partitions.refresh();
        }
    }

    /// Timers, messages, sweeps and checkpoints; says for how long nothing will be due.
    fn turn(&mut self) -> Duration {
        let time = self.time();
        if time.monotonic_ms >= self.next_held_look_ms {
            self.next_held_look_ms = time.monotonic_ms + HELD_LOOK_MS;
            self.give_room_back();
        }
        let reread = match self.shared.settings.mutant {
            Mutant::SleepThrough => Duration::from_secs(24 * 60 * 60),
            _ => CLOCK_REREAD,
        };
        for at in self.partitions.take_due(time.monotonic_ms) {
            let turn = self.partitions.guard_at(at, |partition| partition.turn(time).map_err(|error| error.to_string()));
            let TurnDone { idle, waits } = turn.unwrap_or_default();
            let idle = idle.unwrap_or(reread).min(reread);
            self.partitions.had_turn(at, time.monotonic_ms + millis_up(idle), waits);
        }
        let gate = &self.shared.gate;
        gate.set_attempts(self.shared.settings.attempt_bytes.saturating_mul(self.invoker.running() as u64));
        let part = if gate.large_waits() { HURRIED_PART } else { 1 };
        let active_bytes_max = self.shared.settings.active_bytes_max(gate.tables_bytes_max()) / part;
        self.active_bytes_max = active_bytes_max / self.shared.workers.len() as u64;
        self.partitions.checkpoint_largest(self.active_bytes_max);
        gate.brought(&mut self.tally, &self.shared.catalog);
        let applied = std::mem::take(&mut self.applied);
        gate.weigh(self.number, self.partitions.memory_bytes(), applied);
        // After: others look at once.
        let has_reported = !self.reported.is_empty();
        self.reported.clear();
        if gate.tell() || has_reported {
            self.shared.slot_freed();
        }
        let next_ms = self.partitions.next_due_ms().unwrap_or(u64::MAX);
        Duration::from_millis(next_ms.saturating_sub(time.monotonic_ms)).min(reread)
    }

    /// Lets go of what holds room on the disk: views of tables that were written anew since, and the log where it is too large (rule
    /// C5), all of it where the disk is short: what was deleted gives its room back once that is written.
    fn give_room_back(&mut self) {
        self.partitions.refresh();
        let (retained, bytes_max) = (self.shared.log.retained(), self.shared.settings.log_bytes_max);
        if self.shared.gate.disk().room != DiskRoom::Enough {
            self.partitions.touch_all().for_each(|partition| partition.housekeeping.hurry());
        } else if let Some(holder) = retained.oldest_holder.filter(|_| retained.bytes > bytes_max)
            && self.shared.worker_of(holder) == self.number
            && let Some(partition) = self.partitions.find(holder)
        {
            partition.housekeeping.hurry();
        }
    }

    fn time(&self) -> TurnTime {
        TurnTime { now: Timestamp(self.shared.env.clock.now_ms()), monotonic_ms: self.monotonic_ms() }
    }

    fn monotonic_ms(&self) -> u64 {
        self.shared.env.clock.monotonic().as_millis() as u64
    }
}
