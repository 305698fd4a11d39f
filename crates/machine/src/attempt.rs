//! Attempts: started, fed, and what they bring.

use crate::apply::Context;
use crate::{Effect, Invocations, Journal, JournalKey, Mutant, Running, State, StateError, TimerKey, invocation, journal, timer};
use surefoot_model::{
    Active, Attempt, AttemptEnd, AttemptError, AttemptProgress, Entry, Epoch, Failure, Invocation, InvocationId, NotificationId,
    Outcome, Progress, Stage, Verdict,
};

/// A new term (rule M6). Attempts of the old one are void, since records of its epoch change nothing any more; whoever leads now
/// starts those in [`Running`] anew, on what their journals hold, so that the record costs the same whatever runs.
pub(crate) fn leader_elected<S: State>(cx: &mut Context<S>, epoch: Epoch, process: u64) {
    cx.meta.epoch = epoch;
    cx.meta.process = process;
}

/// Starts an attempt on all that the journal holds now. The caller stores the row.
pub(crate) fn start<S: State>(cx: &mut Context<S>, id: InvocationId, active: &mut Active) {
    active.attempts_started += 1;
    let is_restarted = cx.mutant == Mutant::RestartAttempts;
    active.attempt = if is_restarted { Attempt(u64::from(active.attempts_started)) } else { cx.next_attempt() };
    enter_term(cx, active);
    active.progress = Progress::Running;
    cx.state.put::<Running>(id, active.attempt);
    cx.effect(Effect::StartAttempt { id, attempt: active.attempt });
}

pub(crate) fn progressed<S: State>(cx: &mut Context<S>, event: &AttemptProgress) -> Result<(), StateError> {
    let id = event.id;
    let Some(mut invocation) = cx.state.get::<Invocations>(&id)? else { return Ok(()) };
    let Stage::Active(mut active) = std::mem::replace(&mut invocation.stage, Stage::Scheduled) else { return Ok(()) };
    let is_stale = active.attempt != event.attempt && cx.mutant != Mutant::TakeStaleMessages;
    if is_stale || active.progress != Progress::Running {
        return Ok(()); // of an attempt that no longer counts (rule M4)
    }
    assert_eq!(event.first_command, active.commands, "batches of one attempt come in order: {id}");
    invocation.modified_at = cx.now();
    if active.counted_in != cx.meta.epoch {
        // The attempt that this term started in place of the void one.
        active.attempts_started += 1;
        enter_term(cx, &mut active);
    }
    if !event.items.is_empty() {
        active.pin.get_or_insert(event.pin);
    }
    let live_from = active.journal_len;
    for item in &event.items {
        journal::item_received(cx, id, &mut invocation, &mut active, item)?;
    }
    match &event.end {
        None => {
            deliver(cx, id, &active, live_from)?;
            store(cx, id, invocation, active);
            Ok(())
        }
        Some(AttemptEnd::Suspended { awaiting, last_delivered }) => {
            // Everything received before is stored by now: a wake-up cannot fall in between (protocol reference 6.11).
            if resolved(cx, id, &active, awaiting, *last_delivered)? {
                start(cx, id, &mut active);
            } else {
                cx.state.delete::<Running>(&id);
                active.progress = Progress::Suspended { awaiting: awaiting.clone() };
            }
            active.attempts_counted = 0;
            active.last_error = None;
            store(cx, id, invocation, active);
            Ok(())
        }
        Some(AttemptEnd::Completed) => match active.output.take() {
            Some(outcome) => invocation::complete(cx, id, invocation, &active, outcome),
            None => {
                let message = "the handler ended without a result".to_owned();
                let error = AttemptError { code: 500, message, at: cx.now(), stacktrace: None, command: None };
                active.last_error = Some(error);
                pause(cx, id, &mut active);
                store(cx, id, invocation, active);
                Ok(())
            }
        },
        Some(AttemptEnd::Failed { error, verdict, by_handler }) => {
            if *by_handler {
                active.retries_since_entry += 1;
            }
            active.last_error = Some(error.clone());
            match verdict {
                Verdict::Retry { at, counted } => {
                    active.attempts_counted += u32::from(*counted);
                    active.progress = Progress::BackingOff { until: *at };
                    cx.state.delete::<Running>(&id);
                    timer::set(cx, TimerKey { due: *at, id, slot: timer::START }, invocation.incarnation);
                }
                Verdict::Pause => pause(cx, id, &mut active),
                Verdict::Fail => {
                    let failure = Failure {
                        code: error.code,
                        message: error.message.clone(),
                        metadata: Vec::new(),
                        stacktrace: error.stacktrace.clone(),
                    };
                    return invocation::complete(cx, id, invocation, &active, Outcome::Failure(failure));
                }
            }
            store(cx, id, invocation, active);
            Ok(())
        }
    }
}

/// Waits for an operator. The caller stores the row.
pub(crate) fn pause<S: State>(cx: &mut Context<S>, id: InvocationId, active: &mut Active) {
    cx.state.delete::<Running>(&id);
    active.progress = Progress::Paused;
    active.attempts_counted = 0;
}

/// A later term counts attempts anew: whoever counted is gone (protocol reference 7.2).
fn enter_term<S>(cx: &Context<S>, active: &mut Active) {
    if active.counted_in != cx.meta.epoch {
        (active.attempts_counted, active.counted_in) = (0, cx.meta.epoch);
    }
}

fn store<S: State>(cx: &mut Context<S>, id: InvocationId, mut invocation: Invocation, active: Box<Active>) {
    invocation.stage = Stage::Active(active);
    cx.state.put::<Invocations>(id, invocation);
}

/// Hands notifications from journal index `from` on to the running attempt; its own commands are not echoed.
fn deliver<S: State>(cx: &mut Context<S>, id: InvocationId, active: &Active, from: u32) -> Result<(), StateError> {
    for index in from..active.journal_len {
        if let Some(Entry::Notification(notification)) = cx.state.get::<Journal>(&JournalKey { id, index })? {
            cx.effect(Effect::DeliverNotification { id, attempt: active.attempt, index, notification });
        }
    }
    Ok(())
}

/// Whether an awaited notification came after the last one that the attempt had seen. What it had seen does not count: a
/// cancellation that was caught would resume for ever.
fn resolved<S: State>(
    cx: &Context<S>,
    id: InvocationId,
    active: &Active,
    awaiting: &[NotificationId],
    last_delivered: u32,
) -> Result<bool, StateError> {
    let from = if cx.mutant == Mutant::ForgetUndelivered { active.journal_len } else { last_delivered.saturating_add(1) };
    for index in from..active.journal_len {
        if let Some(Entry::Notification(notification)) = cx.state.get::<Journal>(&JournalKey { id, index })?
            && awaiting.contains(&notification.id)
        {
            return Ok(true);
        }
    }
    Ok(false)
}
