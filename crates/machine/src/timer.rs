//! What is due at a time: delayed starts, retries, sleeps.

use crate::apply::Context;
use crate::{Effect, Invocations, State, StateError, TimerKey, Timers, attempt, invocation, journal};
use surefoot_model::{
    AttemptClass, Life, Notification, NotificationId, OpenCompletion, Progress, Resolution, Stage, TimerOwner, Timestamp,
    entry_type,
};

/// The slot of a delayed start and of a retry; an invocation has at most one of them at a time, and completion ids start at 1.
const START: u32 = 0;

/// Of a delayed start or a retry.
pub(crate) fn of_start(life: Life, due: Timestamp) -> TimerKey {
    TimerKey { due, owner: TimerOwner::Invocation { life, slot: START } }
}

pub(crate) fn of_sleep(life: Life, completion: u32, until: Timestamp) -> TimerKey {
    TimerKey { due: until, owner: TimerOwner::Invocation { life, slot: completion } }
}

pub(crate) fn set<S: State>(cx: &mut Context<S>, key: TimerKey) {
    // A slot of one life is used once, or again once its timer has fired or was cleared.
    cx.state.insert::<Timers>(key, ());
    cx.effect(Effect::SetTimer(key));
}

/// Forgets a timer; should the wheel fire it all the same, the missing row tells.
pub(crate) fn clear<S: State>(cx: &mut Context<S>, key: TimerKey) {
    cx.state.delete::<Timers>(&key);
}

pub(crate) fn fired<S: State>(cx: &mut Context<S>, key: TimerKey) -> Result<(), StateError> {
    if cx.state.get::<Timers>(&key)?.is_none() {
        return Ok(());
    }
    cx.state.delete::<Timers>(&key);
    let TimerOwner::Invocation { life, slot } = key.owner;
    let id = life.id;
    let Some(mut invocation) = cx.state.get::<Invocations>(&id)? else { return Ok(()) };
    if invocation.incarnation != life.incarnation {
        return Ok(()); // set by an earlier life of the same id (rule M4)
    }
    match std::mem::replace(&mut invocation.stage, Stage::Scheduled) {
        Stage::Scheduled if slot == START => {
            invocation::begin(cx, id, &mut invocation)?;
            cx.state.put::<Invocations>(id, invocation);
        }
        Stage::Active(mut active) if slot == START => {
            if active.progress == (Progress::BackingOff { until: key.due }) {
                attempt::start(cx, id, AttemptClass::Needed, &mut active);
                invocation.modified_at = cx.now();
                invocation.stage = Stage::Active(active);
                cx.state.put::<Invocations>(id, invocation);
            }
        }
        Stage::Active(mut active) => {
            let is_sleep = |open: &OpenCompletion| matches!(open, OpenCompletion::Sleep { .. });
            if journal::close(cx, life.incarnation, &mut active, slot, is_sleep)? {
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
