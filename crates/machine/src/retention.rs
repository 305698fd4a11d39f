//! What is kept of a completed invocation, and until when.
//!
//! Each retained invocation has a row in `Expiries` for its end, and one for its journal's end where that may go on its own. Time
//! removes both; the byte bound removes journals and results without a name only (rule R1), so that no promise is broken.

use crate::apply::Context;
use crate::chore::Chore;
use crate::{Effect, Expiries, ExpiryKey, ExpiryRow, Invocations, Mutant, State, StateError, chore, object};
use surefoot_model::{Active, Incarnation, Invocation, InvocationId, Outcome, Stage, TargetKind, Timestamp};

/// Stores what retention asks for, or nothing.
pub(crate) fn keep<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    mut invocation: Invocation,
    active: &Active,
    outcome: Outcome,
) -> Result<(), StateError> {
    let retention = invocation.retention;
    if retention.completion_ms == 0 {
        delete_journal(cx, invocation.incarnation, active.journal_len)?;
        cx.state.delete::<Invocations>(&id);
        return forget_workflow(cx, &invocation);
    }
    let keeps_journal = retention.journal_ms > 0;
    if !keeps_journal {
        delete_journal(cx, invocation.incarnation, active.journal_len)?;
    }
    // From the edge's raw time: the clamped one may stand where a clock once jumped to (rule T1).
    let completed_at = cx.at;
    let expires_at = completed_at.after_ms(retention.completion_ms);
    let journal_bytes = if keeps_journal { active.journal_bytes } else { 0 };
    let is_named = is_named(&invocation);
    let keeps_result = is_named && cx.mutant != Mutant::EvictNamed;
    let result_bytes = if keeps_result { 0 } else { cx.bounds.completed_row_bytes + outcome.bytes() + journal_bytes };
    expire(cx, ExpiryKey { at: expires_at, id, journal_only: false }, invocation.incarnation, result_bytes);
    if keeps_journal && journal_goes_first(&invocation) {
        let key = journal_expiry(id, &invocation, completed_at);
        expire(cx, key, invocation.incarnation, if is_named { journal_bytes } else { 0 });
    }
    invocation.modified_at = cx.now();
    invocation.stage = Stage::Completed {
        outcome,
        completed_at,
        expires_at,
        journal_len: if keeps_journal { active.journal_len } else { 0 },
        attempts: active.attempts_started,
    };
    cx.state.put::<Invocations>(id, invocation);
    Ok(())
}

/// Whether somebody may ask for the result by a name of their own.
fn is_named(invocation: &Invocation) -> bool {
    invocation.idempotency_key.is_some() || invocation.target.kind == TargetKind::WorkflowRun
}

/// Whether a journal that is kept has a row for its own end.
fn journal_goes_first(invocation: &Invocation) -> bool {
    is_named(invocation) || invocation.retention.journal_ms < invocation.retention.completion_ms
}

fn journal_expiry(id: InvocationId, invocation: &Invocation, completed_at: Timestamp) -> ExpiryKey {
    ExpiryKey { at: completed_at.after_ms(invocation.retention.journal_ms), id, journal_only: true }
}

fn expire<S: State>(cx: &mut Context<S>, key: ExpiryKey, incarnation: Incarnation, evictable_bytes: u64) {
    cx.meta.evictable_bytes += evictable_bytes;
    cx.state.insert::<Expiries>(key, ExpiryRow { incarnation, evictable_bytes });
    cx.effect(Effect::SetExpiry(key));
}

fn unexpire<S: State>(cx: &mut Context<S>, key: &ExpiryKey) -> Result<(), StateError> {
    if let Some(row) = cx.state.get::<Expiries>(key)? {
        cx.meta.evictable_bytes = cx.meta.evictable_bytes.saturating_sub(row.evictable_bytes);
        cx.state.delete::<Expiries>(key);
    }
    Ok(())
}

pub(crate) fn expired<S: State>(
    cx: &mut Context<S>,
    id: InvocationId,
    incarnation: Incarnation,
    journal_only: bool,
) -> Result<(), StateError> {
    match cx.state.get::<Invocations>(&id)? {
        Some(invocation) if invocation.incarnation == incarnation => {
            if journal_only {
                purge_journal(cx, id, &invocation)
            } else {
                purge(cx, id, &invocation)
            }
        }
        _ => Ok(()),
    }
}

/// Forgets a completed invocation. One that has not completed stays.
pub(crate) fn purge<S: State>(cx: &mut Context<S>, id: InvocationId, invocation: &Invocation) -> Result<(), StateError> {
    let Stage::Completed { expires_at, .. } = invocation.stage else { return Ok(()) };
    purge_journal(cx, id, invocation)?;
    unexpire(cx, &ExpiryKey { at: expires_at, id, journal_only: false })?;
    cx.state.delete::<Invocations>(&id);
    forget_workflow(cx, invocation)
}

/// Forgets a completed invocation's journal and keeps its result.
pub(crate) fn purge_journal<S: State>(cx: &mut Context<S>, id: InvocationId, invocation: &Invocation) -> Result<(), StateError> {
    let Stage::Completed { completed_at, journal_len, .. } = invocation.stage else { return Ok(()) };
    if journal_len > 0 {
        if journal_goes_first(invocation) {
            unexpire(cx, &journal_expiry(id, invocation, completed_at))?;
        }
        delete_journal(cx, invocation.incarnation, journal_len)?;
        let mut invocation = invocation.clone();
        if let Stage::Completed { journal_len, .. } = &mut invocation.stage {
            *journal_len = 0;
        }
        cx.state.put::<Invocations>(id, invocation);
    }
    Ok(())
}

fn delete_journal<S: State>(cx: &mut Context<S>, life: Incarnation, len: u32) -> Result<(), StateError> {
    chore::begin(cx, Chore::DeleteJournal { life, next: 0, end: len })
}

/// A workflow's state goes with its run.
fn forget_workflow<S: State>(cx: &mut Context<S>, invocation: &Invocation) -> Result<(), StateError> {
    if invocation.target.kind == TargetKind::WorkflowRun {
        object::clear_all(cx, &invocation.target.object_key())?;
    }
    Ok(())
}
