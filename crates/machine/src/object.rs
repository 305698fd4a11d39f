//! Keys of virtual objects: who holds one, who waits, and the named values they keep.

use crate::apply::Context;
use crate::{
    Inbox, InboxKey, Invocations, Objects, State, StateError, StateKey, StateNames, StateValue, StateValues, invocation,
};
use bytes::Bytes;
use surefoot_model::{InvocationId, ObjectKey, Stage, Text};

/// Gives the key to `id` if it is free; else the slot in its inbox that `id` got.
pub(crate) fn take_or_queue<S: State>(
    cx: &mut Context<S>,
    object: &ObjectKey,
    id: InvocationId,
) -> Result<Option<u64>, StateError> {
    let mut row = cx.state.get::<Objects>(object)?.unwrap_or_default();
    if row.owner.is_none() {
        row.owner = Some(id);
        cx.state.put::<Objects>(object.clone(), row);
        return Ok(None);
    }
    let slot = row.tail;
    row.tail += 1;
    cx.state.insert::<Inbox>(InboxKey { object: object.clone(), slot }, id);
    cx.state.put::<Objects>(object.clone(), row);
    Ok(Some(slot))
}

/// Frees the key and starts whoever is next.
pub(crate) fn release<S: State>(cx: &mut Context<S>, object: &ObjectKey) -> Result<(), StateError> {
    let mut row = cx.state.get::<Objects>(object)?.unwrap_or_default();
    row.owner = None;
    while row.head < row.tail {
        let key = InboxKey { object: object.clone(), slot: row.head };
        row.head += 1;
        let Some(next) = cx.state.get::<Inbox>(&key)? else {
            continue; // it left the queue
        };
        cx.state.delete::<Inbox>(&key);
        row.owner = Some(next);
        cx.state.put::<Objects>(object.clone(), row);
        let mut invocation = cx.state.get::<Invocations>(&next)?.ok_or_else(|| missing(next))?;
        assert!(matches!(invocation.stage, Stage::Queued(_)), "who waits in an inbox is queued: {next}");
        invocation::activate(cx, next, &mut invocation)?;
        cx.state.put::<Invocations>(next, invocation);
        return Ok(());
    }
    cx.state.delete::<Objects>(object);
    Ok(())
}

/// Empties a slot; whoever frees the key skips it.
pub(crate) fn leave_queue<S: State>(cx: &mut Context<S>, object: &ObjectKey, slot: u64) {
    cx.state.delete::<Inbox>(&InboxKey { object: object.clone(), slot });
}

fn missing(id: InvocationId) -> StateError {
    StateError { table: "invocations", message: format!("{id} waits in an inbox but has no row") }
}

pub(crate) fn value<S: State>(cx: &Context<S>, object: &ObjectKey, name: &Text) -> Result<Option<Bytes>, StateError> {
    Ok(cx.state.get::<StateValues>(&key_of(object, name))?.map(|v| v.bytes))
}

/// Names of all values, sorted bytewise.
pub(crate) fn names<S: State>(cx: &Context<S>, object: &ObjectKey) -> Result<Vec<Text>, StateError> {
    Ok(cx.state.get::<StateNames>(object)?.unwrap_or_default())
}

pub(crate) fn set_value<S: State>(cx: &mut Context<S>, object: &ObjectKey, name: &Text, bytes: Bytes) -> Result<(), StateError> {
    let key = key_of(object, name);
    if cx.state.get::<StateValues>(&key)?.is_some() {
        cx.state.put::<StateValues>(key, StateValue { bytes });
        return Ok(());
    }
    cx.state.insert::<StateValues>(key, StateValue { bytes });
    let mut names = names(cx, object)?;
    if let Err(at) = names.binary_search(name) {
        names.insert(at, name.clone());
        cx.state.put::<StateNames>(object.clone(), names);
    }
    Ok(())
}

pub(crate) fn clear_value<S: State>(cx: &mut Context<S>, object: &ObjectKey, name: &Text) -> Result<(), StateError> {
    let mut names = names(cx, object)?;
    if let Ok(at) = names.binary_search(name) {
        names.remove(at);
        store_names(cx, object, names);
        cx.state.delete::<StateValues>(&key_of(object, name));
    }
    Ok(())
}

pub(crate) fn clear_all<S: State>(cx: &mut Context<S>, object: &ObjectKey) -> Result<(), StateError> {
    for name in names(cx, object)? {
        cx.state.delete::<StateValues>(&key_of(object, &name));
    }
    cx.state.delete::<StateNames>(object);
    Ok(())
}

fn store_names<S: State>(cx: &mut Context<S>, object: &ObjectKey, names: Vec<Text>) {
    if names.is_empty() {
        cx.state.delete::<StateNames>(object);
    } else {
        cx.state.put::<StateNames>(object.clone(), names);
    }
}

fn key_of(object: &ObjectKey, name: &Text) -> StateKey {
    StateKey { object: object.clone(), name: name.clone() }
}
