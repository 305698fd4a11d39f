//! An invocation's life but for its attempts: submitted, scheduled, queued, begun, completed.

use crate::apply::Context;
use crate::{
    Effect, Invocations, Journal, JournalKey, Running, State, StateError, TimerKey, attempt, object, outbox, retention, source,
    timer,
};
use surefoot_model::{
    Active, Attempt, CalleeResult, Caller, Entry, Failure, Invocation, InvocationId, Message, OpenCompletion, Outcome, Progress,
    Stage, Submission, TargetKind, entry_type,
};

pub(crate) fn submitted<S: State>(cx: &mut Context<S>, submission: &Submission) -> Result<(), StateError> {
    if let Some(record) = &submission.source
        && !source::admit(cx, record)?
    {
        return Ok(());
    }
    match cx.state.get::<Invocations>(&submission.id)? {
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
        waiters: submission.caller.iter().cloned().collect(),
        stage: Stage::Scheduled,
    };
    // The journal's first entry carries the input through every stage before the first attempt.
    let input = Entry::Command { ty: entry_type::INPUT, raw: submission.input.clone() };
    cx.state.insert::<Journal>(JournalKey { id, index: 0 }, input);
    if let Some(request) = submission.request {
        cx.effect(Effect::Accept { request, id, existing: false, execute_at: submission.execute_at });
    }
    match submission.execute_at {
        // Even a due time in the past takes the way through the wheel: only the edge reads the wall clock (rule T1).
        Some(due) => {
            timer::set(cx, TimerKey { due, id, slot: timer::START }, invocation.incarnation);
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
        && let Some(slot) = object::take_or_queue(cx, &invocation.target.object_key(), id)?
    {
        invocation.stage = Stage::Queued(slot);
        return Ok(());
    }
    activate(cx, id, invocation)
}

/// Starts the first attempt. The caller stores the row.
pub(crate) fn activate<S: State>(cx: &mut Context<S>, id: InvocationId, invocation: &mut Invocation) -> Result<(), StateError> {
    let input_bytes = cx.state.get::<Journal>(&JournalKey { id, index: 0 })?.map_or(0, |e| e.bytes());
    let mut active = Box::new(Active {
        progress: Progress::Paused,
        attempt: Attempt::default(),
        journal_len: 1,
        commands: 1,
        pin: None,
        open: Vec::new(),
        output: None,
        attempts_counted: 0,
        retries_since_entry: 0,
        last_entry_at: cx.now(),
        last_error: None,
        attempts_started: 0,
        journal_bytes: input_bytes,
        counted_in: cx.meta.epoch,
    });
    attempt::start(cx, id, &mut active);
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
    if let Some(caller) = &submission.caller {
        if is_run {
            let failure = Failure::new(409, "the workflow method was already invoked");
            reply_to(cx, caller, Outcome::Failure(failure))?;
        } else if let Stage::Completed { outcome, .. } = &existing.stage {
            reply_to(cx, caller, outcome.clone())?;
        } else {
            existing.waiters.push(caller.clone());
            cx.state.put::<Invocations>(id, existing);
        }
    }
    Ok(())
}

/// Ends an active invocation: frees its key, tells everyone who waits, keeps what retention asks for. Writes the row.
pub(crate) fn complete<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    mut invocation: Invocation,
    active: &Active,
    outcome: Outcome,
) -> Result<(), StateError> {
    cx.state.delete::<Running>(&id);
    if let Progress::BackingOff { until } = active.progress {
        timer::clear(cx, TimerKey { due: until, id, slot: timer::START });
    }
    for open in &active.open {
        if let OpenCompletion::Sleep(completion, until) = open {
            timer::clear(cx, TimerKey { due: *until, id, slot: *completion });
        }
    }
    for waiter in std::mem::take(&mut invocation.waiters) {
        reply_to(cx, &waiter, outcome.clone())?;
    }
    let object = (invocation.target.kind == TargetKind::ObjectExclusive).then(|| invocation.target.object_key());
    retention::keep(cx, id, invocation, active, outcome.clone())?;
    if let Some(object) = object {
        object::release(cx, &object)?;
    }
    cx.effect(Effect::Complete { id, outcome });
    Ok(())
}

/// Removes an invocation that has not begun, without a trace: callers fail, clients hear that it is gone.
pub(crate) fn remove<S: State>(cx: &mut Context<S>, id: InvocationId, invocation: &Invocation) -> Result<(), StateError> {
    match &invocation.stage {
        Stage::Scheduled => {
            if let Some(due) = invocation.execute_at {
                timer::clear(cx, TimerKey { due, id, slot: timer::START });
            }
        }
        Stage::Queued(slot) => object::leave_queue(cx, &invocation.target.object_key(), *slot),
        Stage::Active(_) | Stage::Completed { .. } => unreachable!("only what has not begun is removed"),
    }
    for waiter in &invocation.waiters {
        reply_to(cx, waiter, Outcome::Failure(Failure::killed()))?;
    }
    cx.state.delete::<Journal>(&JournalKey { id, index: 0 });
    cx.state.delete::<Invocations>(&id);
    cx.effect(Effect::Remove { id });
    Ok(())
}

fn reply_to<S: State>(cx: &mut Context<S>, caller: &Caller, outcome: Outcome) -> Result<(), StateError> {
    let message = Message::Result(Box::new(CalleeResult { caller: caller.clone(), outcome }));
    outbox::send(cx, caller.partition, message)
}
