//! Keys of virtual objects: who holds one, who waits, and the named values they keep.

use crate::apply::Context;
use crate::chore::Chore;
use crate::{
    Inbox, InboxKey, Invocations, Mutant, ObjectRow, Objects, State, StateError, StateKey, StateNames, StateRow, StateValue,
    StateValues, States, attempt, chore, invocation,
};
use bytes::Bytes;
use surefoot_model::{AttemptClass, Failure, Invocation, InvocationId, ObjectKey, Stage, Text};

/// Gives the key to `id` if it is free; else the slot in its inbox that `id` got. Where others wait for it, its row counts them.
pub(crate) fn take_or_queue<S: State>(
    cx: &mut Context<S>,
    object: &ObjectKey,
    id: InvocationId,
    invocation: &Invocation,
) -> Result<Option<u64>, StateError> {
    let mut row = cx.state.get::<Objects>(object)?.unwrap_or_default();
    if row.owner.is_none() {
        assert_eq!(row.waiting, 0, "nobody waits for a key that is free");
        row.owner = Some(id);
        cx.state.put::<Objects>(object.clone(), row);
        return Ok(None);
    }
    let slot = row.tail;
    row.tail += 1;
    row.waiting += 1;
    cx.state.insert::<Inbox>(InboxKey { object: object.clone(), slot }, id);
    if invocation.waiters > 0 {
        need(cx, &mut row)?;
    }
    cx.state.put::<Objects>(object.clone(), row);
    Ok(Some(slot))
}

/// The first one waits for an invocation in the key's inbox.
pub(crate) fn needed<S: State>(cx: &mut Context<S>, object: &ObjectKey) -> Result<(), StateError> {
    let mut row = cx.state.get::<Objects>(object)?.expect("a key that somebody waits for has a row");
    need(cx, &mut row)?;
    cx.state.put::<Objects>(object.clone(), row);
    Ok(())
}

/// One more in the inbox is needed. What stands before it is as well (rule O5): whoever has the key now, and whoever gets it next. The
/// caller stores the row.
fn need<S: State>(cx: &mut Context<S>, row: &mut ObjectRow) -> Result<(), StateError> {
    row.needed += 1;
    if row.needed > 1 {
        return Ok(());
    }
    let owner = row.owner.expect("a key that somebody waits for has an owner");
    let mut invocation = cx.state.get::<Invocations>(&owner)?.ok_or_else(|| missing(owner))?;
    if let Stage::Active(active) = &mut invocation.stage {
        attempt::raise(cx, owner, active);
        cx.state.put::<Invocations>(owner, invocation);
    }
    Ok(())
}

/// Frees the key and starts whoever is next.
pub(crate) fn release<S: State>(cx: &mut Context<S>, object: &ObjectKey) -> Result<(), StateError> {
    let mut row = cx.state.get::<Objects>(object)?.unwrap_or_default();
    row.owner = None;
    if row.waiting == 0 {
        assert_eq!(row.needed, 0, "whoever is needed waits");
        cx.state.delete::<Objects>(object);
        return Ok(());
    }
    let (slot, next) = first_in_queue(cx, object, &row)?;
    cx.state.delete::<Inbox>(&InboxKey { object: object.clone(), slot });
    let mut invocation = cx.state.get::<Invocations>(&next)?.ok_or_else(|| missing(next))?;
    assert!(matches!(invocation.stage, Stage::Queued(_)), "who waits in an inbox is queued: {next}");
    let is_needed = row.needed > 0 && cx.mutant != Mutant::LeaveFresh;
    row.needed -= u64::from(invocation.waiters > 0);
    (row.head, row.waiting, row.owner) = (slot + 1, row.waiting - 1, Some(next));
    cx.state.put::<Objects>(object.clone(), row);
    let class = if is_needed { AttemptClass::Needed } else { invocation::class_of(&invocation) };
    invocation::activate(cx, next, &mut invocation, class)?;
    cx.state.put::<Invocations>(next, invocation);
    Ok(())
}

/// Who has waited longest, and where. Slots that were left empty are passed over at once, however many.
fn first_in_queue<S: State>(cx: &Context<S>, object: &ObjectKey, row: &ObjectRow) -> Result<(u64, InvocationId), StateError> {
    let key = |slot| InboxKey { object: object.clone(), slot };
    if let Some(next) = cx.state.get::<Inbox>(&key(row.head))? {
        return Ok((row.head, next));
    }
    let mut rows = cx.state.scan::<Inbox>(&key(row.head + 1), Some(&key(row.tail)), 1)?;
    let (key, next) = rows.pop().expect("a key's row counts those that wait for it");
    Ok((key.slot, next))
}

/// Empties the slot of an invocation.
pub(crate) fn leave_queue<S: State>(
    cx: &mut Context<S>,
    object: &ObjectKey,
    slot: u64,
    invocation: &Invocation,
) -> Result<(), StateError> {
    let mut row = cx.state.get::<Objects>(object)?.expect("a key that somebody waits for has a row");
    assert!(row.waiting > 0 && (row.head..row.tail).contains(&slot), "who leaves a queue was in it");
    row.waiting -= 1;
    row.needed -= u64::from(invocation.waiters > 0);
    if slot == row.head {
        row.head += 1;
    }
    cx.state.delete::<Inbox>(&InboxKey { object: object.clone(), slot });
    cx.state.put::<Objects>(object.clone(), row);
    Ok(())
}

fn missing(id: InvocationId) -> StateError {
    StateError { table: "invocations", message: format!("{id} waits in an inbox but has no row") }
}

pub(crate) fn value<S: State>(cx: &Context<S>, object: &ObjectKey, name: &Text) -> Result<Option<Bytes>, StateError> {
    let Some(StateRow { generation, .. }) = cx.state.get::<States>(object)? else { return Ok(None) };
    Ok(cx.state.get::<StateValues>(&key_of(object, generation, name))?.map(|v| v.bytes))
}

/// Names of a key's values.
pub(crate) enum Names {
    /// All of them, sorted bytewise.
    Listed(Vec<Text>),
    /// More than this record may read (rule M9).
    TooMany { generation: u64 },
    /// More than a handler is told.
    TooLarge { bytes: u64 },
}

pub(crate) fn names<S: State>(cx: &mut Context<S>, object: &ObjectKey) -> Result<Names, StateError> {
    let Some(row) = cx.state.get::<States>(object)? else { return Ok(Names::Listed(Vec::new())) };
    let StateRow { generation, values, name_bytes: bytes, .. } = row;
    if bytes > cx.bounds.listed_name_bytes {
        return Ok(Names::TooLarge { bytes });
    }
    let steps = u32::try_from(bytes.div_ceil(u64::from(cx.bounds.row_bytes))).unwrap_or(u32::MAX).max(values);
    if cx.take_steps(steps, 1) < steps {
        return Ok(Names::TooMany { generation });
    }
    let (from, to) = chore::names_range(object, generation, None);
    let rows = cx.state.all::<StateNames>(&from, &to, values as usize)?;
    assert_eq!(rows.len(), values as usize, "rule O7: a key's row counts its values");
    Ok(Names::Listed(rows.into_iter().map(|(key, _)| key.name).collect()))
}

/// What a handler is told in place of names that are too large.
pub(crate) fn too_large<S>(cx: &Context<S>, bytes: u64) -> Failure {
    let bound = cx.bounds.listed_name_bytes;
    Failure::new(
        413,
        format!(
            "the names of this key's state have {bytes} bytes, and {bound} may be listed at once: use fewer or shorter names, or keep \
             a list of them in a value (SF3004)"
        ),
    )
}

pub(crate) fn set_value<S: State>(cx: &mut Context<S>, object: &ObjectKey, name: &Text, bytes: Bytes) -> Result<(), StateError> {
    let len = u32::try_from(bytes.len()).expect("messages are bounded far below 4 GiB");
    let stored = cx.state.get::<States>(object)?;
    let mut row = stored.unwrap_or_else(|| StateRow::empty(cx.next_generation()));
    let key = key_of(object, row.generation, name);
    let before = if stored.is_some() { cx.state.get::<StateNames>(&key)? } else { None };
    match before {
        Some(before) => {
            if before != len {
                cx.state.put::<StateNames>(key.clone(), len);
            }
            cx.state.put::<StateValues>(key, StateValue { bytes });
        }
        None => {
            cx.state.insert::<StateNames>(key.clone(), len);
            cx.state.insert::<StateValues>(key, StateValue { bytes });
            row.values += 1;
            row.name_bytes += name.len() as u64;
        }
    }
    row.value_bytes = row.value_bytes - u64::from(before.unwrap_or(0)) + u64::from(len);
    row.value_bytes_max = len.max(row.value_bytes_max);
    // Most values keep their size.
    if stored != Some(row) {
        cx.state.put::<States>(object.clone(), row);
    }
    Ok(())
}

pub(crate) fn clear_value<S: State>(cx: &mut Context<S>, object: &ObjectKey, name: &Text) -> Result<(), StateError> {
    let Some(mut row) = cx.state.get::<States>(object)? else { return Ok(()) };
    let key = key_of(object, row.generation, name);
    let Some(len) = cx.state.get::<StateNames>(&key)? else { return Ok(()) };
    cx.state.delete::<StateNames>(&key);
    cx.state.delete::<StateValues>(&key);
    row.values -= 1;
    row.name_bytes -= name.len() as u64;
    row.value_bytes -= u64::from(len);
    if row.values == 0 {
        cx.state.delete::<States>(object);
    } else {
        cx.state.put::<States>(object.clone(), row);
    }
    Ok(())
}

/// From here on the key has no values; their rows go as fast as they can (rule M9), once those have been told who asked before.
pub(crate) fn clear_all<S: State>(cx: &mut Context<S>, object: &ObjectKey) -> Result<(), StateError> {
    let Some(StateRow { generation, values, .. }) = cx.state.get::<States>(object)? else { return Ok(()) };
    cx.state.delete::<States>(object);
    chore::begin(cx, Chore::ClearState { object: object.clone(), generation, left: values, after: None })
}

fn key_of(object: &ObjectKey, generation: u64, name: &Text) -> StateKey {
    StateKey { object: object.clone(), generation, name: name.clone() }
}
