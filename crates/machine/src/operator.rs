//! What operators ask of single invocations.

use crate::apply::Context;
use crate::chore::Callees;
use crate::{
    Effect, Invocations, OperationAnswer, State, StateError, WaiterKey, Waiters, attempt, invocation, journal, outbox, retention,
};
use surefoot_model::{
    Active, AttemptClass, Caller, Failure, Invocation, InvocationId, Life, Message, Operation, Outcome, PartitionId, Progress,
    RequestId, Stage,
};

pub(crate) fn requested<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    operation: Operation,
    request: RequestId,
) -> Result<(), StateError> {
    let answer = match operation {
        Operation::Kill => kill(cx, id)?,
        Operation::Pause => with_active(cx, id, pause)?,
        Operation::Resume => with_active(cx, id, resume)?,
        Operation::Purge => purge(cx, id, retention::purge)?,
        Operation::PurgeJournal => purge(cx, id, retention::purge_journal)?,
    };
    cx.effect(Effect::ReplyOperation { request, answer });
    Ok(())
}

/// Ends an invocation whatever it is doing, and everything it has called.
pub(crate) fn kill<S: State>(cx: &mut Context<S>, id: InvocationId) -> Result<OperationAnswer, StateError> {
    let Some(mut invocation) = cx.state.get::<Invocations>(&id)? else { return Ok(OperationAnswer::NotFound) };
    match invocation.stage {
        Stage::Completed { .. } => return Ok(OperationAnswer::Completed),
        Stage::Scheduled | Stage::Queued(_) => invocation::remove(cx, id, invocation)?,
        Stage::Active(active) => {
            invocation.stage = Stage::Scheduled;
            abort(cx, id, &active);
            invocation::complete(cx, id, invocation, &active, Callees::Die, Outcome::Failure(Failure::killed()))?;
        }
    }
    Ok(OperationAnswer::Done)
}

/// As [`kill`], for an invocation whose caller was killed; one that works for nobody of that name is another life of the id, or
/// has answered already (rule M4).
pub(crate) fn kill_for<S: State>(cx: &mut Context<S>, id: InvocationId, caller: &Caller) -> Result<(), StateError> {
    let Some(invocation) = cx.state.get::<Invocations>(&id)? else { return Ok(()) };
    // Once it has completed nobody is counted, though some may still have to be told.
    let key = WaiterKey { callee: invocation.incarnation, caller: *caller };
    if invocation.waiters > 0 && cx.state.get::<Waiters>(&key)?.is_some() {
        kill(cx, id)?;
    }
    Ok(())
}

/// What a killed life had called and not heard of is killed, too.
pub(crate) fn kill_callee<S: State>(
    cx: &mut Context<S>,
    life: Life,
    completion: u32,
    callee: InvocationId,
    partition: PartitionId,
) -> Result<(), StateError> {
    let caller = journal::caller(cx, life, completion);
    outbox::send(cx, partition, Message::Kill { id: callee, caller })
}

fn pause<S: State>(cx: &mut Context<S>, life: Life, active: &mut Active) -> OperationAnswer {
    let answer = match active.progress {
        Progress::Paused => return OperationAnswer::Done,
        Progress::BackingOff { .. } | Progress::Running | Progress::Suspended { .. } => OperationAnswer::Accepted,
    };
    abort(cx, life.id, active);
    attempt::pause(cx, life, active);
    answer
}

fn resume<S: State>(cx: &mut Context<S>, life: Life, active: &mut Active) -> OperationAnswer {
    match active.progress {
        Progress::Running | Progress::Suspended { .. } => {}
        Progress::BackingOff { .. } | Progress::Paused => {
            attempt::leave(cx, life, active);
            active.attempts_counted = 0;
            attempt::start(cx, life.id, AttemptClass::Needed, active);
        }
    }
    OperationAnswer::Done
}

/// Has the stream of a running attempt reset.
fn abort<S: State>(cx: &mut Context<S>, id: InvocationId, active: &Active) {
    if active.progress == Progress::Running {
        cx.effect(Effect::AbortAttempt { id, attempt: active.attempt });
    }
}

fn with_active<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    operation: impl FnOnce(&mut Context<S>, Life, &mut Active) -> OperationAnswer,
) -> Result<OperationAnswer, StateError> {
    let Some(mut invocation) = cx.state.get::<Invocations>(&id)? else { return Ok(OperationAnswer::NotFound) };
    let life = invocation.life(id);
    let answer = match &mut invocation.stage {
        Stage::Completed { .. } => return Ok(OperationAnswer::Completed),
        Stage::Scheduled | Stage::Queued(_) => return Ok(OperationAnswer::NotStarted),
        Stage::Active(active) => operation(cx, life, active),
    };
    invocation.modified_at = cx.now();
    cx.state.put::<Invocations>(id, invocation);
    Ok(answer)
}

fn purge<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    remove: impl FnOnce(&mut Context<S>, InvocationId, &Invocation) -> Result<(), StateError>,
) -> Result<OperationAnswer, StateError> {
    let Some(invocation) = cx.state.get::<Invocations>(&id)? else { return Ok(OperationAnswer::NotFound) };
    if !matches!(invocation.stage, Stage::Completed { .. }) {
        return Ok(OperationAnswer::NotCompleted);
    }
    remove(cx, id, &invocation)?;
    Ok(OperationAnswer::Done)
}
