//! Messages between partitions, exactly once each (rule O1).

use crate::apply::Context;
use crate::{
    Effect, Inbound, Invocations, Mutant, Outbox, OutboxKey, Outboxes, State, StateError, invocation, journal, operator,
};
use surefoot_model::{CalleeResult, Message, Notification, NotificationId, OpenCompletion, PartitionId, Stage, entry_type};

/// Queues a message; the row stays until the destination has it.
pub(crate) fn send<S: State>(cx: &mut Context<S>, to: PartitionId, message: Message) -> Result<(), StateError> {
    let mut row = cx.state.get::<Outboxes>(&to)?.unwrap_or_default();
    row.last += 1;
    let sequence = row.last;
    cx.state.insert::<Outbox>(OutboxKey { to, sequence }, message);
    cx.state.put::<Outboxes>(to, row);
    cx.effect(Effect::Send { to, sequence });
    Ok(())
}

pub(crate) fn acked<S: State>(cx: &mut Context<S>, to: PartitionId, up_to: u64) -> Result<(), StateError> {
    let Some(mut row) = cx.state.get::<Outboxes>(&to)? else { return Ok(()) };
    assert!(up_to <= row.last, "rule O1: what is acknowledged was sent: {up_to} of {} to {to}", row.last);
    // Rows beyond what one record may do stay until the next acknowledgement; the receiver knows them by their numbers (rule M9).
    let up_to = up_to.clamp(row.acked, row.acked + u64::from(cx.bounds.rows));
    for sequence in row.acked + 1..=up_to {
        cx.state.delete::<Outbox>(&OutboxKey { to, sequence });
    }
    row.acked = up_to;
    // The row stays: sequence numbers never start anew.
    cx.state.put::<Outboxes>(to, row);
    Ok(())
}

pub(crate) fn message_arrived<S: State>(
    cx: &mut Context<S>,
    from: PartitionId,
    sequence: u64,
    message: &Message,
) -> Result<(), StateError> {
    let taken = cx.state.get::<Inbound>(&from)?.unwrap_or(0);
    if sequence <= taken && cx.mutant != Mutant::ForgetInbound {
        return Ok(());
    }
    // Advanced whatever comes of the message.
    cx.state.put::<Inbound>(from, sequence);
    match message {
        Message::Submit(submission) => invocation::submitted(cx, submission),
        Message::Result(result) => callee_completed(cx, result),
        Message::Kill { id, caller } => operator::kill_for(cx, *id, caller),
    }
}

fn callee_completed<S: State>(cx: &mut Context<S>, result: &CalleeResult) -> Result<(), StateError> {
    let caller = &result.caller;
    let Some(mut invocation) = cx.state.get::<Invocations>(&caller.id)? else { return Ok(()) };
    if invocation.incarnation != caller.incarnation {
        return Ok(()); // an earlier life of the same id asked (rule M4)
    }
    let Stage::Active(mut active) = std::mem::replace(&mut invocation.stage, Stage::Scheduled) else { return Ok(()) };
    let is_call = |open: &OpenCompletion| matches!(open, OpenCompletion::Call { .. });
    if journal::close(cx, caller.incarnation, &mut active, caller.completion, is_call)? {
        let notification = Notification {
            ty: entry_type::CALL_COMPLETION,
            id: NotificationId::Completion(caller.completion),
            result: result.outcome.clone().into(),
        };
        journal::notify(cx, caller.id, invocation, active, notification);
    }
    Ok(())
}
