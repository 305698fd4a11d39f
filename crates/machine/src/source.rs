//! Kafka records on their way in: each one once (rules K1, K6, K7).

use crate::apply::Context;
use crate::chore::Chore;
use crate::{Effect, Mutant, OperationAnswer, Parked, ParkedKey, Sources, State, StateError, Streams, chore};
use surefoot_model::{ParkedRecord, RequestId, SourceRecord, SubscriptionId};

pub(crate) fn opened<S: State>(cx: &mut Context<S>, subscription: SubscriptionId, epoch: u32) -> Result<(), StateError> {
    let mut row = cx.state.get::<Sources>(&subscription)?.unwrap_or_default();
    let is_new = epoch > row.epoch;
    row.epoch = row.epoch.max(epoch);
    cx.state.put::<Sources>(subscription, row);
    if is_new {
        // Kafka records of earlier epochs are dropped from now on, with or without their watermarks.
        chore::begin(cx, Chore::ForgetStreams { subscription, before_epoch: epoch, after: None })?;
    }
    Ok(())
}

pub(crate) fn closed<S: State>(cx: &mut Context<S>, subscription: SubscriptionId) -> Result<(), StateError> {
    let row = cx.state.get::<Sources>(&subscription)?.unwrap_or_default();
    cx.state.delete::<Sources>(&subscription);
    chore::begin(cx, Chore::ForgetStreams { subscription, before_epoch: u32::MAX, after: None })?;
    chore::begin(cx, Chore::ForgetParked { subscription, next: 1, end: row.last_parked + 1 })?;
    cx.effect(Effect::CountParked { subscription, parked: 0 });
    Ok(())
}

/// Takes a Kafka record if its epoch is open and it has not been taken before.
pub(crate) fn admit<S: State>(cx: &mut Context<S>, record: &SourceRecord) -> Result<bool, StateError> {
    match cx.state.get::<Sources>(&record.stream.subscription)? {
        Some(row) if row.epoch == record.stream.epoch => {}
        Some(row) if row.epoch > record.stream.epoch && cx.mutant == Mutant::TakeOldEpochs => {}
        _ => return Ok(false),
    }
    let is_taken = cx.state.get::<Streams>(&record.stream)?.is_some_and(|taken| record.offset <= taken);
    if is_taken && cx.mutant != Mutant::ForgetStreams {
        return Ok(false);
    }
    cx.state.put::<Streams>(record.stream, record.offset);
    Ok(true)
}

pub(crate) fn parked<S: State>(cx: &mut Context<S>, record: &ParkedRecord) -> Result<(), StateError> {
    if !admit(cx, &record.source)? && cx.mutant != Mutant::ParkAgain {
        return Ok(());
    }
    let subscription = record.source.stream.subscription;
    let Some(mut row) = cx.state.get::<Sources>(&subscription)? else { return Ok(()) };
    row.last_parked += 1;
    row.parked += 1;
    row.parked_bytes += record.kept_bytes();
    cx.state.insert::<Parked>(ParkedKey { subscription, number: row.last_parked }, record.clone());
    cx.effect(Effect::CountParked { subscription, parked: row.parked });
    cx.state.put::<Sources>(subscription, row);
    Ok(())
}

pub(crate) fn discarded<S: State>(
    cx: &mut Context<S>,
    subscription: SubscriptionId,
    number: u64,
    request: RequestId,
) -> Result<(), StateError> {
    let key = ParkedKey { subscription, number };
    let answer = match (cx.state.get::<Parked>(&key)?, cx.state.get::<Sources>(&subscription)?) {
        (Some(record), Some(mut row)) => {
            cx.state.delete::<Parked>(&key);
            row.parked = row.parked.saturating_sub(1);
            row.parked_bytes = row.parked_bytes.saturating_sub(record.kept_bytes());
            cx.effect(Effect::CountParked { subscription, parked: row.parked });
            cx.state.put::<Sources>(subscription, row);
            OperationAnswer::Done
        }
        _ => OperationAnswer::NotFound,
    };
    cx.effect(Effect::ReplyOperation { request, answer });
    Ok(())
}
