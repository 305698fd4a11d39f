//! Entries: stored, and acted on.

use crate::apply::Context;
use crate::object::Names;
use crate::{
    Effect, Invocations, Journal, JournalKey, Mutant, Open, OpenKey, State, StateError, attempt, chore, object, outbox, timer,
};
use bytes::Bytes;
use std::fmt;
use surefoot_model::{
    Action, Active, AttemptClass, Caller, Entry, Incarnation, Invocation, InvocationId, Item, Life, Message, Notification,
    NotificationId, OpenCompletion, Outcome, Progress, Resolution, Stage, entry_type,
};

/// A command has this completion id and waits for its completion. The edge lets each id through once; if ever it does not, no partition
/// stops for what a handler says.
pub(crate) struct IdIsOpen(u32);

impl fmt::Display for IdIsOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "completion id {} is used by two commands (RT0012)", self.0)
    }
}

/// Notifications that one event put into a journal, with their places there.
pub(crate) type News = Vec<(u32, Notification)>;

/// Stores one item of a running attempt and does what it asks for. Nothing is delivered here: the caller does, once it knows
/// whether the attempt goes on. **Refuses**, and has done nothing, where a command has the completion id of one that is open.
pub(crate) fn item_received<S: State>(
    cx: &mut Context<S>,
    life: Life,
    invocation: &Invocation,
    active: &mut Active,
    item: &Item,
    news: &mut News,
) -> Result<Result<(), IdIsOpen>, StateError> {
    match item {
        Item::Command { ty, raw, action } => {
            for id in completion_ids(action) {
                if is_open(cx, life.incarnation, active, id)? {
                    return Ok(Err(IdIsOpen(id)));
                }
            }
            append(cx, life.incarnation, active, Entry::Command { ty: *ty, raw: raw.clone() });
            active.commands += 1;
            active.retries_since_entry = 0;
            act(cx, life, invocation, active, raw, action, news)?;
        }
        Item::RunProposed { completion, outcome } => {
            // A second proposal, or one for an id that no run has, changes nothing.
            if close(cx, life.incarnation, active, *completion, |open| *open == OpenCompletion::Run)? {
                news.push(complete_command(cx, life, active, entry_type::RUN_COMPLETION, *completion, outcome.clone().into()));
            }
        }
    }
    Ok(Ok(()))
}

fn completion_ids(action: &Action) -> impl Iterator<Item = u32> + use<> {
    let ids = match action {
        Action::GetState { completion, .. }
        | Action::GetStateKeys { completion }
        | Action::Sleep { completion, .. }
        | Action::Run { completion } => [Some(*completion), None],
        Action::Call { id_completion, result, .. } => [Some(*id_completion), *result],
        Action::Keep
        | Action::Succeed { .. }
        | Action::Fail(_)
        | Action::SetState { .. }
        | Action::ClearState { .. }
        | Action::ClearAllState => [None, None],
    };
    ids.into_iter().flatten()
}

fn act<S: State>(
    cx: &mut Context<S>,
    life: Life,
    invocation: &Invocation,
    active: &mut Active,
    raw: &Bytes,
    action: &Action,
    news: &mut News,
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
            news.push(complete_command(cx, life, active, entry_type::GET_LAZY_STATE_COMPLETION, *completion, result));
        }
        Action::GetStateKeys { completion } => {
            let (object, completion) = (invocation.target.object_key(), *completion);
            match object::names(cx, &object)? {
                Names::Listed(names) => {
                    let ty = entry_type::GET_LAZY_STATE_KEYS_COMPLETION;
                    news.push(complete_command(cx, life, active, ty, completion, Resolution::StateKeys(names)));
                }
                Names::TooMany { generation } => chore::list(cx, life, completion, object, generation),
                Names::TooLarge { bytes } => {
                    let ty = entry_type::GET_LAZY_STATE_KEYS_COMPLETION;
                    let failure = Resolution::Failure(object::too_large(cx, bytes));
                    news.push(complete_command(cx, life, active, ty, completion, failure));
                }
            }
        }
        Action::Sleep { until, completion } => {
            open(cx, life.incarnation, active, *completion, OpenCompletion::Sleep { until: *until });
            timer::set(cx, timer::of_sleep(life, *completion, *until));
        }
        Action::Run { completion } => open(cx, life.incarnation, active, *completion, OpenCompletion::Run),
        Action::Call { submission, partition, id_completion, result, parameter } => {
            let callee = submission.id;
            let mut submission = submission.clone();
            submission.input = [submission.input, slice(raw, *parameter)].concat().into();
            submission.caller = result.map(|completion| caller(cx, life, completion));
            if let Some(completion) = *result {
                open(cx, life.incarnation, active, completion, OpenCompletion::Call { callee, partition: *partition });
            }
            outbox::send(cx, *partition, Message::Submit(submission))?;
            let result = Resolution::InvocationId(callee);
            news.push(complete_command(cx, life, active, entry_type::CALL_INVOCATION_ID, *id_completion, result));
        }
    }
    Ok(())
}

/// A payload by its place in a command; one that lies outside is our own mistake.
fn slice(raw: &Bytes, (start, len): (u32, u32)) -> Bytes {
    raw.slice(start as usize..(start + len) as usize)
}

/// A life as its callees know it: the one that waits for the result under this completion id.
pub(crate) fn caller<S>(cx: &Context<S>, life: Life, completion: u32) -> Caller {
    Caller { partition: cx.partition, id: life.id, incarnation: life.incarnation, completion }
}

/// Whether a command waits under this id. SDKs count their ids up, and no row is read for one that is larger than all before.
fn is_open<S: State>(cx: &Context<S>, life: Incarnation, active: &Active, completion: u32) -> Result<bool, StateError> {
    Ok(completion <= active.opened_up_to && cx.state.get::<Open>(&OpenKey { life, completion })?.is_some())
}

/// Notes a command that waits for its completion. No other does under this id.
fn open<S: State>(cx: &mut Context<S>, life: Incarnation, active: &mut Active, completion: u32, open: OpenCompletion) {
    cx.state.insert::<Open>(OpenKey { life, completion }, open);
    active.open += 1;
    active.opened_up_to = active.opened_up_to.max(completion);
}

/// Whether an open command had this completion id and `matches`; it is open no more.
pub(crate) fn close<S: State>(
    cx: &mut Context<S>,
    life: Incarnation,
    active: &mut Active,
    completion: u32,
    matches: impl Fn(&OpenCompletion) -> bool,
) -> Result<bool, StateError> {
    let key = OpenKey { life, completion };
    let is_open = cx.state.get::<Open>(&key)?.is_some_and(|open| matches(&open));
    if is_open {
        if cx.mutant == Mutant::CountAnew {
            let (from, to) = (OpenKey { life, completion: 0 }, OpenKey { life: Incarnation(life.0 + 1), completion: 0 });
            active.open = cx.state.scan::<Open>(&from, Some(&to), usize::MAX)?.len() as u32;
        }
        assert!(active.open > 0, "rule O7: the row counts the open completions of {life:?}");
        active.open -= 1;
        cx.state.delete::<Open>(&key);
    }
    Ok(is_open)
}

/// The notification, and its place in the journal.
fn complete_command<S: State>(
    cx: &mut Context<S>,
    life: Life,
    active: &mut Active,
    ty: u16,
    completion: u32,
    result: Resolution,
) -> (u32, Notification) {
    let notification = Notification { ty, id: NotificationId::Completion(completion), result };
    (append(cx, life.incarnation, active, Entry::Notification(notification.clone())), notification)
}

fn append<S: State>(cx: &mut Context<S>, life: Incarnation, active: &mut Active, entry: Entry) -> u32 {
    let index = active.journal_len;
    active.journal_len += 1;
    active.journal_bytes += entry.bytes();
    active.last_entry_at = cx.at;
    cx.state.insert::<Journal>(JournalKey { life, index }, entry);
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
    let index = append(cx, invocation.incarnation, &mut active, Entry::Notification(notification.clone()));
    match &active.progress {
        Progress::Running => {
            cx.effect(Effect::DeliverNotification { id, attempt: active.attempt, index, notification });
        }
        Progress::Suspended { awaiting } if awaiting.contains(&notification.id) => {
            attempt::start(cx, id, AttemptClass::Needed, &mut active);
        }
        // Kept for the next attempt.
        Progress::Suspended { .. } | Progress::BackingOff { .. } | Progress::Paused => {}
    }
    invocation.modified_at = cx.now();
    invocation.stage = Stage::Active(active);
    cx.state.put::<Invocations>(id, invocation);
}
