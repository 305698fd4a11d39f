//! The one entry: a record is applied.

use crate::{
    Bounds, Effect, Meta, MetaRow, State, StateError, TimerKey, attempt, catalog, chore, invocation, operator, outbox, retention,
    source, timer,
};
use surefoot_model::{Attempt, Epoch, Event, Incarnation, PartitionId, Record, Timestamp};

/// Applies one record of `partition` to its state, and appends what is to be done to `effects`. Same state and same record give
/// the same result on every replica. What the leader of an epoch that has ended wrote as such changes nothing (rule M8).
/// Errors only when stored data cannot be read or decoded; whatever a user can cause is an effect, not an error.
pub fn apply<S: State>(
    state: &mut S,
    partition: PartitionId,
    epoch: Epoch,
    record: &Record,
    effects: &mut Vec<Effect>,
) -> Result<(), StateError> {
    apply_broken(Mutant::None, state, partition, epoch, record, effects)
}

/// Rows of a chore's piece where nothing is done at once, for [`Mutant::TightRows`].
const TIGHT_ROWS: u32 = 6;

/// A rule left out on purpose, so that the checks that should notice can be checked. For simulation and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    /// All rules hold.
    #[default]
    None,
    /// Against rule M4: attempts are counted anew in each life of an id.
    RestartAttempts,
    /// Against rule M4: messages of an attempt that no longer counts are taken.
    TakeStaleMessages,
    /// Against rule M5: a suspension does not look at what came since the last notification that the attempt was sent.
    ForgetUndelivered,
    /// Against rule M8: whatever carries an epoch that has ended is dropped, messages and submissions too.
    FenceAll,
    /// Against rule M9: everything is done at once, whatever it takes.
    AllAtOnce,
    /// All rules hold, and whatever may be put off is: chores come up all the time, and are small.
    TightRows,
    /// Against rule O5: what stands before one that others wait for stays among what is fresh.
    LeaveFresh,
    /// Against rule O1: messages are taken however often they come.
    ForgetInbound,
    /// Against rule K1: Kafka records are taken however often they come.
    ForgetStreams,
    /// Against rule K7: Kafka records of an epoch that is over are taken.
    TakeOldEpochs,
    /// Against rule K6: the same, for those that are parked.
    ParkAgain,
    /// Against rule O7: what is open is counted anew with each result.
    CountAnew,
    /// Against rule R1: the byte bound may remove results that somebody has a name for.
    EvictNamed,
    /// Against rule T1: a retry is due by the partition's monotone time, and not by the clock of whoever asked for it.
    DueByRecordTime,
    /// Against no rule: the mistake of a build that the next one repairs. A submission to the key `broken` breaks an invariant.
    Stumbles,
}

/// As [`apply`], with one rule left out. What is left out is a parameter like any other, so that applying stays a pure function.
pub fn apply_broken<S: State>(
    mutant: Mutant,
    state: &mut S,
    partition: PartitionId,
    epoch: Epoch,
    record: &Record,
    effects: &mut Vec<Effect>,
) -> Result<(), StateError> {
    let meta = state.get::<Meta>(&())?.unwrap_or_default();
    let is_fenced = is_leaders_own(&record.event) || mutant == Mutant::FenceAll;
    if epoch < meta.epoch && is_fenced {
        return Ok(());
    }
    let bounds = Bounds::of(record.rules);
    let rows = match (mutant, &record.event) {
        (Mutant::AllAtOnce, _) => u32::MAX,
        (Mutant::TightRows, Event::ChoreDue { .. }) => TIGHT_ROWS,
        (Mutant::TightRows, _) => 0,
        // What the items take is set aside: the rest is for what their end brings about.
        (_, Event::AttemptProgressed(progress)) => {
            assert!(progress.items.len() <= bounds.items as usize, "rule M9: the edge cuts what an attempt brings");
            let reads = progress.items.iter().filter(|item| item.reads_state()).count();
            assert!(reads <= bounds.reads as usize, "rule M9: the edge cuts it behind a read of state");
            bounds.rows - progress.items.len() as u32 * bounds.item_rows
        }
        _ => bounds.rows,
    };
    let mut cx = Context { partition, state, at: record.at, meta, effects, bounds, rows, may_step: rows > 0, mutant };
    cx.meta.now = cx.meta.now.max(record.at);
    cx.meta.rules = cx.meta.rules.max(record.rules);
    match &record.event {
        Event::LeaderElected { process } => attempt::leader_elected(&mut cx, epoch, *process),
        Event::InvocationSubmitted(submission) => invocation::submitted(&mut cx, submission)?,
        Event::AttemptProgressed(progress) => attempt::progressed(&mut cx, progress)?,
        Event::TimerFired { due, owner } => timer::fired(&mut cx, TimerKey { due: *due, owner: *owner })?,
        Event::ChoreDue { chore } => chore::due(&mut cx, *chore)?,
        Event::RetentionExpired { id, incarnation, journal_only } => {
            retention::expired(&mut cx, *id, *incarnation, *journal_only)?;
        }
        Event::OperatorRequested { id, operation, request } => operator::requested(&mut cx, *id, *operation, *request)?,
        Event::MessageArrived { from, sequence, message } => outbox::message_arrived(&mut cx, *from, *sequence, message)?,
        Event::OutboxAcked { to, up_to } => outbox::acked(&mut cx, *to, *up_to)?,
        Event::SourceOpened { subscription, epoch } => source::opened(&mut cx, *subscription, *epoch)?,
        Event::SourceClosed { subscription } => source::closed(&mut cx, *subscription)?,
        Event::RecordParked(parked) => source::parked(&mut cx, parked)?,
        Event::ParkedDiscarded { subscription, number, request } => {
            source::discarded(&mut cx, *subscription, *number, *request)?;
        }
        Event::CatalogChanged(event) => catalog::changed(&mut cx, event)?,
    }
    let meta = cx.meta;
    state.put::<Meta>((), meta);
    Ok(())
}

/// Whether only the partition's leader writes such a record. Its epoch fences it (rule M8), and nothing else: who sends a message,
/// reads a Kafka record or takes a request cannot know in which epoch it is applied. A message is guarded by its sender's
/// sequence (rule O1), a Kafka record by its stream's watermark (rule K1), a subscription's epochs by their own numbers, a request
/// by the process that asks, which is told nothing once it is gone (rule O2).
fn is_leaders_own(event: &Event) -> bool {
    match event {
        Event::LeaderElected { .. }
        | Event::AttemptProgressed(_)
        | Event::TimerFired { .. }
        | Event::RetentionExpired { .. }
        | Event::OutboxAcked { .. }
        | Event::ChoreDue { .. } => true,
        // Checked against the value that the catalog's leader has published.
        Event::CatalogChanged(_) => true,
        Event::InvocationSubmitted(_)
        | Event::OperatorRequested { .. }
        | Event::MessageArrived { .. }
        | Event::SourceOpened { .. }
        | Event::SourceClosed { .. }
        | Event::RecordParked(_)
        | Event::ParkedDiscarded { .. } => false,
    }
}

/// What every rule works with.
pub(crate) struct Context<'a, S> {
    pub(crate) partition: PartitionId,
    pub(crate) state: &'a mut S,
    /// The record's time as the edge read it.
    pub(crate) at: Timestamp,
    /// Written back once the record is applied.
    pub(crate) meta: MetaRow,
    pub(crate) effects: &'a mut Vec<Effect>,
    /// Of the rules by which the record was written.
    pub(crate) bounds: Bounds,
    /// What this record may still do at once (rule M9).
    rows: u32,
    /// It does its first step whatever that takes: else work whose every step is large would never end.
    may_step: bool,
    pub(crate) mutant: Mutant,
}

impl<S: State> Context<'_, S> {
    /// The partition's monotone time, to stamp and order by.
    pub(crate) fn now(&self) -> Timestamp {
        self.meta.now
    }

    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// How many of `wanted` steps, each of which writes `rows`, this record does itself; they count as done.
    pub(crate) fn take_steps(&mut self, wanted: u32, rows: u32) -> u32 {
        self.take_large_steps(wanted, rows, 0)
    }

    /// The same for steps each of which writes `rows` with `bytes` in them.
    pub(crate) fn take_large_steps(&mut self, wanted: u32, rows: u32, bytes: u64) -> u32 {
        let each = u32::try_from(bytes.div_ceil(u64::from(self.bounds.row_bytes))).unwrap_or(u32::MAX).max(rows);
        let steps = self.steps_left(each).max(u32::from(self.may_step)).min(wanted);
        self.rows = self.rows.saturating_sub(steps.saturating_mul(each));
        self.may_step &= steps == 0;
        steps
    }

    /// How many steps that write `rows` each this record may still do itself.
    pub(crate) fn steps_left(&self, rows: u32) -> u32 {
        self.rows / rows
    }

    pub(crate) fn next_generation(&mut self) -> u64 {
        self.meta.last_generation += 1;
        self.meta.last_generation
    }

    pub(crate) fn next_chore(&mut self) -> u64 {
        self.meta.last_chore += 1;
        self.meta.last_chore
    }

    pub(crate) fn next_incarnation(&mut self) -> Incarnation {
        self.meta.last_incarnation.0 += 1;
        self.meta.last_incarnation
    }

    pub(crate) fn next_attempt(&mut self) -> Attempt {
        self.meta.last_attempt.0 += 1;
        self.meta.last_attempt
    }
}
