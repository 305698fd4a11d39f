//! About how much memory a stored value takes besides itself.
//!
//! Owns: the estimates, which need be neither exact nor the same from build to build; they decide when a partition freezes its
//! layer. Does not own: the bytes of values at rest.

use surefoot_machine::{CatalogRow, Chore, ExpiryRow, MetaRow, ObjectRow, OutboxRow, SourceRow, StateRow, StateValue};
use surefoot_model::{
    Active, Awaited, Entry, Invocation, InvocationId, Message, NotificationId, OpenCompletion, Outcome, ParkedRecord, Progress,
    Stage, Target, Text,
};

/// Bytes that a value holds outside itself, roughly.
pub(crate) trait Weight {
    fn heap_bytes(&self) -> usize {
        0
    }
}

/// One small allocation.
const ALLOCATION_BYTES: usize = 48;

impl Weight for u32 {}
impl Weight for u64 {}
impl Weight for i64 {}
impl Weight for () {}
impl Weight for InvocationId {}
impl Weight for MetaRow {}
impl Weight for ObjectRow {}
impl Weight for StateRow {}
impl Weight for OpenCompletion {}
impl Weight for ExpiryRow {}
impl Weight for OutboxRow {}
impl Weight for SourceRow {}

impl Weight for Invocation {
    fn heap_bytes(&self) -> usize {
        let stage = match &self.stage {
            Stage::Scheduled | Stage::Queued(_) => 0,
            Stage::Active(stage) => active(stage),
            Stage::Completed { outcome: ended, .. } => outcome(ended),
        };
        let idempotency_key = self.idempotency_key.as_ref().map_or(0, |key| ALLOCATION_BYTES + key.len());
        target(&self.target) + idempotency_key + stage
    }
}

fn active(active: &Active) -> usize {
    let awaiting = match &active.progress {
        Progress::Suspended { awaiting: Awaited::These(ids) } => list(ids) + ids.iter().map(named).sum::<usize>(),
        Progress::Suspended { awaiting: Awaited::Any } | Progress::Running | Progress::BackingOff { .. } | Progress::Paused => 0,
    };
    let error = active.last_error.as_ref().map_or(0, |error| 3 * ALLOCATION_BYTES + error.bytes());
    size_of_val(active) + active.output.as_ref().map_or(0, outcome) + awaiting + error
}

fn named(id: &NotificationId) -> usize {
    match id {
        NotificationId::NamedSignal(name) => ALLOCATION_BYTES + name.len(),
        NotificationId::Completion(_) | NotificationId::Signal(_) => 0,
    }
}

/// Names that a record brought are its own; only a catalog's are shared.
fn target(target: &Target) -> usize {
    3 * ALLOCATION_BYTES + target.service.len() + target.handler.len() + target.key.len()
}

fn list<T>(list: &[T]) -> usize {
    if list.is_empty() { 0 } else { ALLOCATION_BYTES + size_of_val(list) }
}

impl Weight for Entry {
    fn heap_bytes(&self) -> usize {
        ALLOCATION_BYTES + usize::try_from(self.bytes()).expect("it is in memory")
    }
}

impl Weight for StateValue {
    fn heap_bytes(&self) -> usize {
        ALLOCATION_BYTES + self.bytes.len()
    }
}

impl Weight for Vec<Text> {
    fn heap_bytes(&self) -> usize {
        self.iter().map(|name| size_of::<Text>() + ALLOCATION_BYTES + name.len()).sum()
    }
}

impl Weight for Chore {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::ClearState { object, after, .. } | Self::ListNames { object, after, .. } => {
                let after = after.as_ref().map_or(0, |name| ALLOCATION_BYTES + name.len());
                2 * ALLOCATION_BYTES + object.service.len() + object.key.len() + after
            }
            Self::DeleteJournal { .. }
            | Self::CloseOpen { .. }
            | Self::AnswerWaiters { .. }
            | Self::ForgetStreams { .. }
            | Self::ForgetPositions { .. }
            | Self::ForgetParked { .. } => 0,
        }
    }
}

impl Weight for Outcome {
    fn heap_bytes(&self) -> usize {
        outcome(self)
    }
}

impl Weight for Message {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Submit(submission) => {
                let idempotency_key = submission.idempotency_key.as_ref().map_or(0, |key| key.len());
                size_of_val(&**submission)
                    + target(&submission.target)
                    + ALLOCATION_BYTES
                    + submission.input.len()
                    + idempotency_key
            }
            Self::Result(result) => size_of_val(&**result) + outcome(&result.outcome),
            Self::Kill { .. } => 0,
        }
    }
}

impl Weight for ParkedRecord {
    fn heap_bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| 2 * ALLOCATION_BYTES + name.len() + value.len()).sum();
        4 * ALLOCATION_BYTES + self.key.len() + self.value.len() + self.reason.len() + headers
    }
}

impl Weight for CatalogRow {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Deployment(_) => CATALOG_ROW_BYTES,
            Self::KafkaCluster(_) | Self::Subscription(_) => CATALOG_ROW_BYTES / 4,
            Self::Position(_) => 0,
        }
    }
}

/// A deployment with a handful of services. There are few, so that nothing is gained by walking them.
const CATALOG_ROW_BYTES: usize = 4096;

fn outcome(outcome: &Outcome) -> usize {
    ALLOCATION_BYTES
        + match outcome {
            Outcome::Success(value) => value.len(),
            Outcome::Failure(failure) => failure.message.len() + failure.stacktrace.as_ref().map_or(0, String::len),
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use surefoot_model::{Attempt, AttemptClass, AttemptError, Epoch, Incarnation, Origin, Retention, TargetKind, Timestamp};

    fn invocation(active: Active) -> Invocation {
        Invocation {
            incarnation: Incarnation(1),
            target: Target::new(TargetKind::ObjectExclusive, "Cart", "a", "add"),
            idempotency_key: None,
            origin: Origin::Ingress,
            created_at: Timestamp(1),
            modified_at: Timestamp(1),
            execute_at: None,
            retention: Retention::default(),
            random_seed: 1,
            waiters: 0,
            stage: Stage::Active(Box::new(active)),
        }
    }

    fn active() -> Active {
        Active {
            progress: Progress::Running,
            attempt: Attempt(1),
            journal_len: 1,
            commands: 1,
            pin: None,
            open: 0,
            opened_up_to: 0,
            output: None,
            attempts_counted: 0,
            retries_since_entry: 0,
            last_entry_at: Timestamp(1),
            last_error: None,
            attempts_started: 1,
            journal_bytes: 0,
            counted_in: Epoch(1),
            turn: 1,
            class: AttemptClass::Fresh,
        }
    }

    /// What users can make long is weighed, wherever in the row it lies.
    #[test]
    fn an_invocation_weighs_what_it_holds() {
        let light = invocation(active()).heap_bytes();
        assert!(light > size_of::<Active>());
        let long = || "x".repeat(10_000);
        let error =
            |message: String, stacktrace| AttemptError { code: 500, message, at: Timestamp(1), stacktrace, command: None };
        let errors = [error(long(), None), error(String::new(), Some(long()))];
        let progress =
            Progress::Suspended { awaiting: Awaited::new(&[NotificationId::NamedSignal(long().into())], 1_000, 1 << 20) };
        let waits = Progress::Suspended { awaiting: Awaited::new(&vec![NotificationId::Signal(1); 1_000], 1_000, 0) };
        let heavy = errors.map(|error| Active { last_error: Some(error.into()), ..active() });
        let heavy = heavy.into_iter().chain([progress, waits].map(|progress| Active { progress, ..active() }));
        for heavy in heavy.map(invocation).chain([Invocation { idempotency_key: Some(long().into()), ..invocation(active()) }]) {
            assert!(heavy.heap_bytes() > light + 9_000, "{}", heavy.heap_bytes());
        }
    }
}
