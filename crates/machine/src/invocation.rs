//! An invocation's life but for its attempts: submitted, scheduled, queued, begun, completed.

use crate::apply::Context;
use crate::chore::{Callees, Chore};
use crate::{
    Effect, Invocations, Journal, JournalKey, Mutant, State, StateError, WaiterKey, Waiters, attempt, chore, object, outbox,
    retention, source, timer,
};
use surefoot_model::{
    Active, Attempt, AttemptClass, CalleeResult, Caller, Entry, Failure, Invocation, InvocationId, Message, Outcome, Progress,
    Stage, Submission, TargetKind, entry_type,
};

pub(crate) fn submitted<S: State>(cx: &mut Context<S>, submission: &Submission) -> Result<(), StateError> {
    assert!(cx.mutant != Mutant::Stumbles || &*submission.target.key != "broken", "this build stumbles");
    if let Some(record) = &submission.source
        && !source::admit(cx, record)?
    {
        return Ok(());
    }
    // An id that is new by construction is not looked up: it would be on disk, in each level. Who submits it again is dropped by the
    // watermark of the sender (rule O1) or of the stream (rule K1).
    let existing = if submission.is_named() { cx.state.get::<Invocations>(&submission.id)? } else { None };
    match existing {
        Some(existing) if is_expired(&existing, cx) => {
            retention::purge(cx, submission.id, &existing)?;
            create(cx, submission)
        }
        Some(existing) => repeated(cx, submission, existing),
        None => create(cx, submission),
    }
}

/// Whether a completion's time is over although the sweep has not come by yet.
fn is_expired<S>(invocation: &Invocation, cx: &Context<S>) -> bool {
    matches!(invocation.stage, Stage::Completed { expires_at, .. } if expires_at <= cx.at)
}

fn create<S: State>(cx: &mut Context<S>, submission: &Submission) -> Result<(), StateError> {
    let id = submission.id;
    let mut invocation = Invocation {
        incarnation: cx.next_incarnation(),
        target: submission.target.clone(),
        idempotency_key: submission.idempotency_key.clone(),
        origin: submission.origin.clone(),
        created_at: cx.now(),
        modified_at: cx.now(),
        execute_at: submission.execute_at,
        retention: submission.retention,
        random_seed: submission.random_seed,
        waiters: 0,
        stage: Stage::Scheduled,
    };
    if let Some(caller) = submission.caller {
        wait(cx, id, &mut invocation, caller)?;
    }
    // The journal's first entry carries the input through every stage before the first attempt.
    let input = Entry::Command { ty: entry_type::INPUT, raw: submission.input.clone() };
    cx.state.insert::<Journal>(JournalKey { life: invocation.incarnation, index: 0 }, input);
    if let Some(request) = submission.request {
        cx.effect(Effect::Accept { request, id, existing: false, execute_at: submission.execute_at });
    }
    match submission.execute_at {
        // Even a due time in the past takes the way through the wheel: only the edge reads the wall clock (rule T1).
        Some(due) => {
            timer::set(cx, timer::of_start(invocation.life(id), due));
            cx.state.insert::<Invocations>(id, invocation);
        }
        None => {
            begin(cx, id, &mut invocation)?;
            cx.state.insert::<Invocations>(id, invocation);
        }
    }
    Ok(())
}

/// Takes the key, or a place in its inbox; an invocation that needs no key starts at once. The caller stores the row.
pub(crate) fn begin<S: State>(cx: &mut Context<S>, id: InvocationId, invocation: &mut Invocation) -> Result<(), StateError> {
    if invocation.target.kind == TargetKind::ObjectExclusive
        && let Some(slot) = object::take_or_queue(cx, &invocation.target.object_key(), id, invocation)?
    {
        invocation.stage = Stage::Queued(slot);
        return Ok(());
    }
    let class = class_of(invocation);
    activate(cx, id, invocation, class)
}

/// The class of a first attempt that holds up nobody. Whoever waits has begun, and holds up others until this ends.
pub(crate) fn class_of(invocation: &Invocation) -> AttemptClass {
    if invocation.waiters > 0 { AttemptClass::Needed } else { AttemptClass::Fresh }
}

/// Starts the first attempt. The caller stores the row.
pub(crate) fn activate<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    invocation: &mut Invocation,
    class: AttemptClass,
) -> Result<(), StateError> {
    let input = cx.state.get::<Journal>(&JournalKey { life: invocation.incarnation, index: 0 })?;
    let input_bytes = input.ok_or_else(|| no_input(id))?.bytes();
    let mut active = Box::new(Active {
        progress: Progress::Paused,
        attempt: Attempt::default(),
        journal_len: 1,
        commands: 1,
        pin: None,
        open: 0,
        opened_up_to: 0,
        output: None,
        attempts_counted: 0,
        retries_since_entry: 0,
        last_entry_at: cx.at,
        last_error: None,
        attempts_started: 0,
        journal_bytes: input_bytes,
        counted_in: cx.meta.epoch,
        class,
        turn: 0,
    });
    attempt::start(cx, id, class, &mut active);
    invocation.modified_at = cx.now();
    invocation.stage = Stage::Active(active);
    Ok(())
}

/// The same id again: by idempotency key, as a workflow's run, or by a caller that attaches.
fn repeated<S: State>(cx: &mut Context<S>, submission: &Submission, mut existing: Invocation) -> Result<(), StateError> {
    let id = submission.id;
    let is_run = submission.target.kind == TargetKind::WorkflowRun;
    if let Some(request) = submission.request {
        match &existing.stage {
            _ if is_run && request.awaits_result => cx.effect(Effect::RefuseRepeatedRun { request: request.id, id }),
            Stage::Completed { outcome, expires_at, .. } if request.awaits_result => {
                let (outcome, expires_at) = (outcome.clone(), *expires_at);
                cx.effect(Effect::ReplyRetained { request: request.id, id, outcome, expires_at });
            }
            _ => cx.effect(Effect::Accept { request, id, existing: true, execute_at: existing.execute_at }),
        }
    }
    if let Some(caller) = submission.caller {
        if is_run {
            let failure = Failure::new(409, "the workflow method was already invoked");
            reply_to(cx, &caller, Outcome::Failure(failure))?;
        } else if let Stage::Completed { outcome, .. } = &existing.stage {
            reply_to(cx, &caller, outcome.clone())?;
        } else {
            wait(cx, id, &mut existing, caller)?;
            cx.state.put::<Invocations>(id, existing);
        }
    }
    Ok(())
}

/// Has an invocation's result sent to one more caller; the first one makes it needed (rule O5). The caller stores the row.
fn wait<S: State>(cx: &mut Context<S>, id: InvocationId, invocation: &mut Invocation, caller: Caller) -> Result<(), StateError> {
    cx.state.insert::<Waiters>(WaiterKey { callee: invocation.incarnation, caller }, ());
    invocation.waiters += 1;
    if invocation.waiters == 1 {
        match &mut invocation.stage {
            Stage::Queued(_) => object::needed(cx, &invocation.target.object_key())?,
            Stage::Active(active) => attempt::raise(cx, id, active),
            Stage::Scheduled | Stage::Completed { .. } => {}
        }
    }
    Ok(())
}

fn no_input(id: InvocationId) -> StateError {
    StateError { table: "journal", message: format!("{id} has not begun and has no input") }
}

/// Ends an active invocation: frees its key, tells everyone who waits, keeps what retention asks for. Writes the row.
pub(crate) fn complete<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    mut invocation: Invocation,
    active: &Active,
    callees: Callees,
    outcome: Outcome,
) -> Result<(), StateError> {
    let life = invocation.life(id);
    attempt::leave(cx, life, active);
    if active.open > 0 {
        chore::begin(cx, Chore::CloseOpen { life, next: 0, left: active.open, callees })?;
    }
    answer_waiters(cx, &mut invocation, &outcome)?;
    let object = (invocation.target.kind == TargetKind::ObjectExclusive).then(|| invocation.target.object_key());
    retention::keep(cx, id, invocation, active, outcome.clone())?;
    if let Some(object) = object {
        object::release(cx, &object)?;
    }
    cx.effect(Effect::Complete { id, outcome });
    Ok(())
}

fn answer_waiters<S: State>(cx: &mut Context<S>, invocation: &mut Invocation, outcome: &Outcome) -> Result<(), StateError> {
    let left = std::mem::take(&mut invocation.waiters);
    if left == 0 {
        return Ok(());
    }
    chore::answer(cx, invocation.incarnation, left, outcome)
}

/// Kills an invocation that has not begun: no trace of it stays, and everyone who waits is told what they would be told of one that
/// has.
pub(crate) fn remove<S: State>(cx: &mut Context<S>, id: InvocationId, mut invocation: Invocation) -> Result<(), StateError> {
    match &invocation.stage {
        Stage::Scheduled => {
            if let Some(due) = invocation.execute_at {
                timer::clear(cx, timer::of_start(invocation.life(id), due));
            }
        }
        Stage::Queued(slot) => object::leave_queue(cx, &invocation.target.object_key(), *slot, &invocation)?,
        Stage::Active(_) | Stage::Completed { .. } => unreachable!("only what has not begun is removed"),
    }
    let outcome = Outcome::Failure(Failure::killed());
    answer_waiters(cx, &mut invocation, &outcome)?;
    cx.state.delete::<Journal>(&JournalKey { life: invocation.incarnation, index: 0 });
    cx.state.delete::<Invocations>(&id);
    cx.effect(Effect::Complete { id, outcome });
    Ok(())
}

pub(crate) fn reply_to<S: State>(cx: &mut Context<S>, caller: &Caller, outcome: Outcome) -> Result<(), StateError> {
    let message = Message::Result(Box::new(CalleeResult { caller: *caller, outcome }));
    outbox::send(cx, caller.partition, message)
}
