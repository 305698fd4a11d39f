//! What is due at a time: delayed starts, retries, sleeps.

use crate::apply::Context;
use crate::{Effect, Invocations, State, StateError, TimerKey, TimerRow, Timers, attempt, invocation, journal};
use surefoot_model::{
    Incarnation, InvocationId, Notification, NotificationId, OpenCompletion, Progress, Resolution, Stage, Timestamp, entry_type,
};

/// The slot of a delayed start and of a retry; an invocation has at most one of them at a time, and completion ids start at 1.
pub(crate) const START: u32 = 0;

pub(crate) fn set<S: State>(cx: &mut Context<S>, key: TimerKey, incarnation: Incarnation) {
    cx.state.put::<Timers>(key, TimerRow { incarnation });
    cx.effect(Effect::SetTimer(key));
}

/// Forgets a timer; should the wheel fire it all the same, the missing row tells.
pub(crate) fn clear<S: State>(cx: &mut Context<S>, key: TimerKey) {
    cx.state.delete::<Timers>(&key);
}

pub(crate) fn fired<S: State>(cx: &mut Context<S>, due: Timestamp, id: InvocationId, slot: u32) -> Result<(), StateError> {
    let key = TimerKey { due, id, slot };
    let Some(row) = cx.state.get::<Timers>(&key)? else { return Ok(()) };
    cx.state.delete::<Timers>(&key);
    let Some(mut invocation) = cx.state.get::<Invocations>(&id)? else { return Ok(()) };
    if invocation.incarnation != row.incarnation {
        return Ok(()); // set by an earlier life of the same id (rule M4)
    }
    match std::mem::replace(&mut invocation.stage, Stage::Scheduled) {
        Stage::Scheduled if slot == START => {
            invocation::begin(cx, id, &mut invocation)?;
            cx.state.put::<Invocations>(id, invocation);
        }
        Stage::Active(mut active) if slot == START => {
            if active.progress == (Progress::BackingOff { until: due }) {
                attempt::start(cx, id, &mut active);
                invocation.modified_at = cx.now();
                invocation.stage = Stage::Active(active);
                cx.state.put::<Invocations>(id, invocation);
            }
        }
        Stage::Active(mut active) => {
            if journal::close(&mut active, slot, |open| matches!(open, OpenCompletion::Sleep(..))).is_some() {
                let notification = Notification {
                    ty: entry_type::SLEEP_COMPLETION,
                    id: NotificationId::Completion(slot),
                    result: Resolution::Void,
                };
                journal::notify(cx, id, invocation, active, notification);
            }
        }
        Stage::Scheduled | Stage::Queued(_) | Stage::Completed { .. } => {}
    }
    Ok(())
}
