//! Kafka topics to events.
//!
//! Owns: subscriptions that run (one task each, following the catalog), the member of the consumer group, start offsets and
//! epochs, positions, parking, lag, and the seam [`RecordSource`] with its version over librdkafka. Does not own: what a Kafka
//! record does once it is an event (`machine`), registration (`admin`), or HTTP.

mod admission;
mod backoff;
mod closing;
mod lane;
mod latch;
mod librdkafka;
mod memory;
mod opening;
mod position;
mod properties;
mod record;
mod session;
mod source;
mod sources;
mod status;
mod subscription;
#[cfg(test)]
mod testing;

pub use librdkafka::{Librdkafka, check_property};
pub use properties::PropertyError;
pub use source::{
    BoxNext, ErrorKind, KafkaRecord, PartitionOffsets, RecordSource, SourceClient, SourceError, SourceEvent, SourceSpec,
    TopicInfo,
};
pub use sources::{Bounds, Mutant, Settings, Sources, Troubles};
pub use status::{PartitionStatus, SourceStatus, Stage};
