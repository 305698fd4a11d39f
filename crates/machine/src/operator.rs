//! What operators ask of single invocations.

use crate::apply::Context;
use crate::{Effect, Invocations, OperationAnswer, State, StateError, TimerKey, attempt, invocation, outbox, retention, timer};
use surefoot_model::{
    Active, Caller, Failure, Invocation, InvocationId, Message, OpenCompletion, Operation, Outcome, Progress, RequestId, Stage,
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
        Stage::Scheduled | Stage::Queued(_) => invocation::remove(cx, id, &invocation)?,
        Stage::Active(active) => {
            invocation.stage = Stage::Scheduled;
            abort(cx, id, &active);
            for open in &active.open {
                if let OpenCompletion::Call { callee, partition, completion } = open {
                    let caller =
                        Caller { partition: cx.partition, id, incarnation: invocation.incarnation, completion: *completion };
                    outbox::send(cx, *partition, Message::Kill { id: *callee, caller })?;
                }
            }
            invocation::complete(cx, id, invocation, &active, Outcome::Failure(Failure::killed()))?;
        }
    }
    Ok(OperationAnswer::Done)
}

/// As [`kill`], for an invocation whose caller was killed; one that works for nobody of that name is another life of the id, or
/// has answered already (rule M4).
pub(crate) fn kill_for<S: State>(cx: &mut Context<S>, id: InvocationId, caller: &Caller) -> Result<(), StateError> {
    let waits = |invocation: Invocation| invocation.waiters.contains(caller);
    if cx.state.get::<Invocations>(&id)?.is_some_and(waits) {
        kill(cx, id)?;
    }
    Ok(())
}

fn pause<S: State>(cx: &mut Context<S>, id: InvocationId, active: &mut Active) -> OperationAnswer {
    let answer = match active.progress {
        Progress::Paused => return OperationAnswer::Done,
        Progress::BackingOff { .. } | Progress::Running | Progress::Suspended { .. } => OperationAnswer::Accepted,
    };
    abort(cx, id, active);
    attempt::pause(cx, id, active);
    answer
}

fn resume<S: State>(cx: &mut Context<S>, id: InvocationId, active: &mut Active) -> OperationAnswer {
    match active.progress {
        Progress::Running | Progress::Suspended { .. } => {}
        Progress::BackingOff { .. } | Progress::Paused => {
            abort(cx, id, active);
            active.attempts_counted = 0;
            attempt::start(cx, id, active);
        }
    }
    OperationAnswer::Done
}

/// Voids a running attempt or a pending retry.
fn abort<S: State>(cx: &mut Context<S>, id: InvocationId, active: &Active) {
    match active.progress {
        Progress::Running => cx.effect(Effect::AbortAttempt { id, attempt: active.attempt }),
        Progress::BackingOff { until } => timer::clear(cx, TimerKey { due: until, id, slot: timer::START }),
        Progress::Suspended { .. } | Progress::Paused => {}
    }
}

fn with_active<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    operation: impl FnOnce(&mut Context<S>, InvocationId, &mut Active) -> OperationAnswer,
) -> Result<OperationAnswer, StateError> {
    let Some(mut invocation) = cx.state.get::<Invocations>(&id)? else { return Ok(OperationAnswer::NotFound) };
    let answer = match &mut invocation.stage {
        Stage::Completed { .. } => return Ok(OperationAnswer::Completed),
        Stage::Scheduled | Stage::Queued(_) => return Ok(OperationAnswer::NotStarted),
        Stage::Active(active) => operation(cx, id, active),
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
