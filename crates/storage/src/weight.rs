//! About how much memory a stored value takes besides itself.
//!
//! Owns: the estimates, which need be neither exact nor the same from build to build; they decide when a partition freezes its
//! layer. Does not own: the bytes of values at rest.

use surefoot_machine::{CatalogRow, ExpiryRow, MetaRow, ObjectRow, OutboxRow, SourceRow, StateValue, TimerRow};
use surefoot_model::{Attempt, Entry, Invocation, InvocationId, Message, Outcome, ParkedRecord, Stage, Text};

/// Bytes that a value holds outside itself, roughly.
pub(crate) trait Weight {
    fn heap_bytes(&self) -> usize {
        0
    }
}

/// One small allocation.
const ALLOCATION_BYTES: usize = 48;

impl Weight for u64 {}
impl Weight for i64 {}
impl Weight for Attempt {}
impl Weight for InvocationId {}
impl Weight for MetaRow {}
impl Weight for ObjectRow {}
impl Weight for TimerRow {}
impl Weight for ExpiryRow {}
impl Weight for OutboxRow {}
impl Weight for SourceRow {}

impl Weight for Invocation {
    fn heap_bytes(&self) -> usize {
        let stage = match &self.stage {
            Stage::Scheduled | Stage::Queued(_) => 0,
            Stage::Active(active) => {
                size_of_val(&**active) + size_of_val(active.open.as_slice()) + active.output.as_ref().map_or(0, outcome)
            }
            Stage::Completed { outcome: ended, .. } => outcome(ended),
        };
        // Service and handler are mostly shared with the catalog, the key is not.
        2 * ALLOCATION_BYTES + self.target.key.len() + size_of_val(self.waiters.as_slice()) + stage
    }
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

impl Weight for Message {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Submit(submission) => size_of_val(&**submission) + 3 * ALLOCATION_BYTES + submission.input.len(),
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
