//! The vocabulary of Surefoot, shared by every room, and its one at-rest encoding.
//!
//! Owns: ids and their text forms, targets, journal entries, events, invocation rows, the catalog, and how each of them is
//! stored (`encoding`). Does not own: settings, metrics, HTTP, async, or any rule about what happens next.

mod base62;
pub mod catalog;
pub mod encoding;
mod event;
mod ids;
mod invocation;
mod journal;
pub mod kafka_property;
mod shared;
mod source;
mod target;
mod text;

pub use catalog::{Catalog, CatalogCell};
pub use event::{
    Action, AttemptEnd, AttemptProgress, CalleeResult, Event, Item, Message, Operation, RECORD_COST, RULES, Record, RecordError,
    Request, Submission, TimerOwner, Verdict,
};
pub use ids::{
    Attempt, DeploymentId, Epoch, Incarnation, InvalidId, InvocationId, Life, Lsn, ObjectKey, PartitionId, RequestId, StreamId,
    SubscriptionId, Timestamp, key_hash,
};
pub use invocation::{
    Active, AttemptClass, AttemptError, Awaited, Caller, Invocation, OpenCompletion, Origin, Pin, Progress, Retention, Stage,
    Status,
};
pub use journal::{Entry, Failure, Notification, NotificationId, Outcome, Resolution, entry_type};
pub use shared::Shared;
pub use source::{ParkedRecord, SourceRecord};
pub use target::{Target, TargetKind};
pub use text::Text;
