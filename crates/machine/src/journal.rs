//! Entries: stored, and acted on.

use crate::apply::Context;
use crate::{Effect, Invocations, Journal, JournalKey, State, StateError, TimerKey, attempt, object, outbox, timer};
use bytes::Bytes;
use surefoot_model::{
    Action, Active, Caller, Entry, Invocation, InvocationId, Item, Message, Notification, NotificationId, OpenCompletion,
    Outcome, Progress, Resolution, Stage, entry_type,
};

/// Stores one item of a running attempt and does what it asks for. Nothing is delivered here: the caller does, once it knows
/// whether the attempt goes on.
pub(crate) fn item_received<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    invocation: &mut Invocation,
    active: &mut Active,
    item: &Item,
) -> Result<(), StateError> {
    match item {
        Item::Command { ty, raw, action } => {
            append(cx, id, active, Entry::Command { ty: *ty, raw: raw.clone() });
            active.commands += 1;
            active.retries_since_entry = 0;
            act(cx, id, invocation, active, raw, action)
        }
        Item::RunProposed { completion, outcome } => {
            // A second proposal, or one for an id that no run has, changes nothing.
            if close(active, *completion, |open| matches!(open, OpenCompletion::Run(_))).is_some() {
                complete_command(cx, id, active, entry_type::RUN_COMPLETION, *completion, outcome.clone().into());
            }
            Ok(())
        }
    }
}

fn act<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    invocation: &Invocation,
    active: &mut Active,
    raw: &Bytes,
    action: &Action,
) -> Result<(), StateError> {
    match action {
        Action::Keep => {}
        Action::Succeed { value } => active.output = Some(Outcome::Success(slice(raw, *value))),
        Action::Fail(failure) => active.output = Some(Outcome::Failure(failure.clone())),
        Action::SetState { key, value } => object::set_value(cx, &invocation.target.object_key(), key, slice(raw, *value))?,
        Action::ClearState { key } => object::clear_value(cx, &invocation.target.object_key(), key)?,
        Action::ClearAllState => object::clear_all(cx, &invocation.target.object_key())?,
        Action::GetState { key, completion } => {
            let value = object::value(cx, &invocation.target.object_key(), key)?;
            let result = value.map_or(Resolution::Void, Resolution::Value);
            complete_command(cx, id, active, entry_type::GET_LAZY_STATE_COMPLETION, *completion, result);
        }
        Action::GetStateKeys { completion } => {
            let names = object::names(cx, &invocation.target.object_key())?;
            let result = Resolution::StateKeys(names);
            complete_command(cx, id, active, entry_type::GET_LAZY_STATE_KEYS_COMPLETION, *completion, result);
        }
        Action::Sleep { until, completion } => {
            active.open.push(OpenCompletion::Sleep(*completion, *until));
            timer::set(cx, TimerKey { due: *until, id, slot: *completion }, invocation.incarnation);
        }
        Action::Run { completion } => active.open.push(OpenCompletion::Run(*completion)),
        Action::Call { submission, partition, id_completion, result } => {
            let callee = submission.id;
            let mut submission = submission.clone();
            submission.caller =
                result.map(|completion| Caller { partition: cx.partition, id, incarnation: invocation.incarnation, completion });
            if let Some(completion) = *result {
                active.open.push(OpenCompletion::Call { completion, callee, partition: *partition });
            }
            outbox::send(cx, *partition, Message::Submit(submission))?;
            let result = Resolution::InvocationId(callee);
            complete_command(cx, id, active, entry_type::CALL_INVOCATION_ID, *id_completion, result);
        }
    }
    Ok(())
}

/// A payload by its place in a command; one that lies outside is our own mistake.
fn slice(raw: &Bytes, (start, len): (u32, u32)) -> Bytes {
    raw.slice(start as usize..(start + len) as usize)
}

/// Takes an open command off the list, if there is one with this completion id that `matches`.
pub(crate) fn close(active: &mut Active, completion: u32, matches: impl Fn(&OpenCompletion) -> bool) -> Option<OpenCompletion> {
    let at = active.open.iter().position(|open| open.completion() == completion && matches(open))?;
    Some(active.open.swap_remove(at))
}

fn complete_command<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    active: &mut Active,
    ty: u16,
    completion: u32,
    result: Resolution,
) {
    let notification = Notification { ty, id: NotificationId::Completion(completion), result };
    append(cx, id, active, Entry::Notification(notification));
}

fn append<S: State>(cx: &mut Context<S>, id: InvocationId, active: &mut Active, entry: Entry) -> u32 {
    let index = active.journal_len;
    active.journal_len += 1;
    active.journal_bytes += entry.bytes();
    active.last_entry_at = cx.now();
    cx.state.insert::<Journal>(JournalKey { id, index }, entry);
    index
}

/// Appends a notification from outside the attempt and passes it on: to the running attempt, or by resuming a suspended one.
/// Writes the row.
pub(crate) fn notify<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    mut invocation: Invocation,
    mut active: Box<Active>,
    notification: Notification,
) {
    let index = append(cx, id, &mut active, Entry::Notification(notification.clone()));
    match &active.progress {
        Progress::Running => {
            cx.effect(Effect::DeliverNotification { id, attempt: active.attempt, index, notification });
        }
        Progress::Suspended { awaiting } if awaiting.contains(&notification.id) => attempt::start(cx, id, &mut active),
        // Kept for the next attempt.
        Progress::Suspended { .. } | Progress::BackingOff { .. } | Progress::Paused => {}
    }
    invocation.modified_at = cx.now();
    invocation.stage = Stage::Active(active);
    cx.state.put::<Invocations>(id, invocation);
}
