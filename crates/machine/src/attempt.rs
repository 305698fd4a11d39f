//! Attempts: started, fed, and what they bring.

use crate::apply::Context;
use crate::chore::Callees;
use crate::journal::News;
use crate::{
    Effect, Invocations, Journal, JournalKey, Mutant, Running, RunningKey, State, StateError, invocation, journal, timer,
};
use surefoot_model::{
    Active, Attempt, AttemptClass, AttemptEnd, AttemptError, AttemptProgress, Awaited, Entry, Epoch, Failure, Invocation,
    InvocationId, Life, Outcome, Progress, Stage, Verdict,
};

/// A new term (rule M6). Attempts of the old one are void, since records of its epoch change nothing any more; whoever leads now
/// starts those in [`Running`] anew, on what their journals hold, so that the record costs the same whatever runs.
pub(crate) fn leader_elected<S: State>(cx: &mut Context<S>, epoch: Epoch, process: u64) {
    cx.meta.epoch = epoch;
    cx.meta.process = process;
}

/// Starts an attempt on all that the journal holds now. None runs. The caller stores the row.
pub(crate) fn start<S: State>(cx: &mut Context<S>, id: InvocationId, class: AttemptClass, active: &mut Active) {
    assert!(active.progress != Progress::Running, "rule M4: an invocation has one attempt at a time: {id}");
    active.attempts_started += 1;
    let before = active.attempt;
    active.attempt = match cx.mutant {
        // Told apart from those of other ids, and not from those of an earlier life of the same.
        Mutant::RestartAttempts => Attempt((id.unique as u64) << 16 | u64::from(active.attempts_started)),
        _ => cx.next_attempt(),
    };
    assert!(active.attempt > before, "rule M4: numbers of attempts never restart: {id}");
    enter_term(cx, active);
    (active.progress, active.class, active.turn) = (Progress::Running, class, active.attempt.0);
    ask_for(cx, id, active);
}

/// Somebody waits for what this one holds up: its attempt, where it waits for a place, goes with those that are needed (rule O5). The
/// caller stores the row.
pub(crate) fn raise<S: State>(cx: &mut Context<S>, id: InvocationId, active: &mut Active) {
    if active.progress != Progress::Running || active.class == AttemptClass::Needed || cx.mutant == Mutant::LeaveFresh {
        return;
    }
    cx.state.delete::<Running>(&running_key(active));
    (active.class, active.turn) = (AttemptClass::Needed, cx.next_attempt().0);
    ask_for(cx, id, active);
}

fn ask_for<S: State>(cx: &mut Context<S>, id: InvocationId, active: &Active) {
    let key = running_key(active);
    cx.state.insert::<Running>(key, id);
    cx.effect(Effect::StartAttempt { id, attempt: active.attempt, key });
}

/// The running attempt is over. The caller sets what comes next, and stores the row.
fn stop<S: State>(cx: &mut Context<S>, active: &Active) {
    assert_eq!(active.progress, Progress::Running, "rule M4: who stops has run");
    cx.state.delete::<Running>(&running_key(active));
}

fn running_key(active: &Active) -> RunningKey {
    RunningKey { class: active.class, turn: active.turn }
}

pub(crate) fn progressed<S: State>(cx: &mut Context<S>, event: &AttemptProgress) -> Result<(), StateError> {
    let id = event.id;
    let Some(mut invocation) = cx.state.get::<Invocations>(&id)? else { return Ok(()) };
    let life = invocation.life(id);
    let Stage::Active(mut active) = std::mem::replace(&mut invocation.stage, Stage::Scheduled) else { return Ok(()) };
    let is_stale = active.attempt != event.attempt && cx.mutant != Mutant::TakeStaleMessages;
    if is_stale || active.progress != Progress::Running {
        return Ok(()); // of an attempt that no longer counts (rule M4)
    }
    assert_eq!(event.first_command, active.commands, "rule M5: batches of one attempt come in order: {id}");
    invocation.modified_at = cx.now();
    if active.counted_in != cx.meta.epoch {
        // The attempt that this term started in place of the void one.
        active.attempts_started += 1;
        enter_term(cx, &mut active);
    }
    if !event.items.is_empty() {
        active.pin.get_or_insert(event.pin);
    }
    let mut news = News::default();
    for item in &event.items {
        if let Err(refused) = journal::item_received(cx, life, &invocation, &mut active, item, &mut news)? {
            // What came before it stays, as it is known to the handler's next attempt; what came behind it is of a handler that is wrong.
            cx.effect(Effect::AbortAttempt { id, attempt: active.attempt });
            pause_for(cx, life, &mut active, refused.to_string());
            store(cx, id, invocation, active);
            return Ok(());
        }
    }
    match &event.end {
        None => {
            // Its own commands are not echoed.
            for (index, notification) in news {
                cx.effect(Effect::DeliverNotification { id, attempt: active.attempt, index, notification });
            }
            store(cx, id, invocation, active);
            Ok(())
        }
        Some(AttemptEnd::Suspended { awaiting, last_delivered }) => {
            // Everything received before is stored by now: a wake-up cannot fall in between (protocol reference 6.11).
            let awaiting = Awaited::new(awaiting, cx.bounds.awaited_ids, cx.bounds.awaited_name_bytes);
            let is_resolved = resolved(cx, life, &active, &awaiting, *last_delivered)?;
            stop(cx, &active);
            active.progress = Progress::Suspended { awaiting };
            if is_resolved {
                start(cx, id, AttemptClass::Needed, &mut active);
            }
            active.attempts_counted = 0;
            active.last_error = None;
            store(cx, id, invocation, active);
            Ok(())
        }
        Some(AttemptEnd::Completed) => match active.output.take() {
            Some(outcome) => invocation::complete(cx, id, invocation, &active, Callees::GoOn, outcome),
            None => {
                pause_for(cx, life, &mut active, "the handler ended without a result".to_owned());
                store(cx, id, invocation, active);
                Ok(())
            }
        },
        Some(AttemptEnd::Failed { error, verdict, by_handler }) => {
            if *by_handler {
                active.retries_since_entry += 1;
            }
            assert!(error.bytes() <= cx.bounds.error_bytes, "rule O7: the edge cuts what a handler says about its failure");
            active.last_error = Some(error.clone().into());
            match verdict {
                Verdict::Retry { at, counted } => {
                    active.attempts_counted += u32::from(*counted);
                    stop(cx, &active);
                    let by_record = cx.mutant == Mutant::DueByRecordTime;
                    let due = if by_record { cx.now().after_ms(at.0.saturating_sub(cx.at.0)) } else { *at };
                    active.progress = Progress::BackingOff { until: due };
                    timer::set(cx, timer::of_start(life, due));
                }
                Verdict::Pause => pause(cx, life, &mut active),
                Verdict::Fail => {
                    let failure = Failure {
                        code: error.code,
                        message: error.message.clone(),
                        metadata: Vec::new(),
                        stacktrace: error.stacktrace.clone(),
                    };
                    return invocation::complete(cx, id, invocation, &active, Callees::GoOn, Outcome::Failure(failure));
                }
            }
            store(cx, id, invocation, active);
            Ok(())
        }
    }
}

/// An attempt brought what it may not bring: an operator is to look at its handler. The caller stores the row.
fn pause_for<S: State>(cx: &mut Context<S>, life: Life, active: &mut Active, message: String) {
    let error = AttemptError { code: 500, message, at: cx.now(), stacktrace: None, command: None };
    active.last_error = Some(error.into());
    pause(cx, life, active);
}

/// Waits for an operator. The caller stores the row.
pub(crate) fn pause<S: State>(cx: &mut Context<S>, life: Life, active: &mut Active) {
    leave(cx, life, active);
    active.progress = Progress::Paused;
    active.attempts_counted = 0;
}

/// Voids a running attempt or a pending retry: nothing starts it any more. The caller sets what comes next.
pub(crate) fn leave<S: State>(cx: &mut Context<S>, life: Life, active: &Active) {
    match active.progress {
        Progress::Running => stop(cx, active),
        Progress::BackingOff { until } => timer::clear(cx, timer::of_start(life, until)),
        Progress::Suspended { .. } | Progress::Paused => {}
    }
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

/// Whether an awaited notification came after the last one that the attempt had seen. What it had seen does not count: a
/// cancellation that was caught would resume for ever. Where more came than one record may look at, it is shown them (rule M9).
fn resolved<S: State>(
    cx: &mut Context<S>,
    life: Life,
    active: &Active,
    awaiting: &Awaited,
    last_delivered: u32,
) -> Result<bool, StateError> {
    let from = match cx.mutant {
        Mutant::ForgetUndelivered => active.journal_len,
        _ => last_delivered.saturating_add(1).min(active.journal_len),
    };
    if cx.steps_left(1) < active.journal_len - from {
        return Ok(true);
    }
    for index in from..active.journal_len {
        let entry = cx.state.get::<Journal>(&JournalKey { life: life.incarnation, index })?;
        if let Some(Entry::Notification(notification)) = &entry
            && awaiting.contains(&notification.id)
        {
            return Ok(true);
        }
        if cx.take_large_steps(1, 1, entry.map_or(0, |entry| entry.bytes())) == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}
