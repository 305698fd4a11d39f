//! The seam to a Kafka cluster: one member of a consumer group that reads one topic.
//!
//! Owns: what a source gives and takes. Does not own: where reading starts, what a record becomes, or when to try again; that is
//! decided above the seam, so that production and simulation differ in transport alone.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use surefoot_env::BoxFuture;
use surefoot_model::{SubscriptionId, Text};

/// The future of [`RecordSource::next`]; borrows its source.
pub type BoxNext<'a> = Pin<Box<dyn Future<Output = SourceEvent> + Send + 'a>>;

/// Opens sources.
pub trait SourceClient: Send + Sync {
    /// Makes a member, which may have fetched so many bytes, or one answer of a broker. Contacts no broker yet; fails on properties that
    /// are not understood.
    fn open(&self, spec: &SourceSpec, memory_bytes: usize) -> Result<Box<dyn RecordSource>, SourceError>;
}

/// What a source reads, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpec {
    pub subscription: SubscriptionId,
    pub topic: Text,
    /// librdkafka properties: the cluster's, overridden by the subscription's, with defaults and forced values filled in.
    pub properties: BTreeMap<String, String>,
}

/// One member of a consumer group. Calls that return no future take effect soon and never block; what goes wrong with them shows
/// in [`Self::next`].
pub trait RecordSource: Send {
    /// The topic as its brokers know it now, with the offsets of every Kafka partition. May be awaited while others are called.
    fn topic(&mut self) -> BoxFuture<Result<TopicInfo, SourceError>>;

    /// The group's committed offsets of these Kafka partitions; one without a commit is left out.
    fn committed(&mut self, partitions: &[i32]) -> BoxFuture<Result<Vec<(i32, i64)>, SourceError>>;

    /// Of these Kafka partitions the offset of the first Kafka record that is not older than this, in milliseconds since the Unix epoch; one
    /// that has none so new, or that no broker answers for, is left out.
    fn since(&mut self, partitions: &[i32], timestamp_ms: u64) -> BoxFuture<Result<Vec<(i32, i64)>, SourceError>>;

    /// Joins the group. [`SourceEvent::Assigned`] follows.
    fn subscribe(&mut self) -> Result<(), SourceError>;

    /// The next thing that happens. Dropping the future loses nothing. Has to be called on while there is no room for Kafka
    /// records, too: that is how the group knows that the member lives. Without `takes_records`, Kafka records that were fetched
    /// wait where they are, bounded by the client's own limits, and the group hears nothing of it.
    fn next(&mut self, takes_records: bool) -> BoxNext<'_>;

    /// Answers [`SourceEvent::Assigned`]: starts fetching each Kafka partition at its offset. None of them is held.
    fn assign(&mut self, generation: u64, starts: &[(i32, i64)]) -> Result<(), SourceError>;

    /// Answers [`SourceEvent::Revoked`]: another member may have them.
    fn release(&mut self, generation: u64, partitions: &[i32]) -> Result<(), SourceError>;

    /// Keeps the Kafka records of these Kafka partitions back while others go on. What was fetched is kept: some of it may still
    /// come, and the rest comes in order once it is resumed.
    fn hold(&mut self, partitions: &[i32]) -> Result<(), SourceError>;

    /// Undoes [`Self::hold`].
    fn resume(&mut self, partitions: &[i32]) -> Result<(), SourceError>;

    /// Tells the group from where on another member should read, without waiting.
    fn commit(&mut self, positions: &[(i32, i64)]);

    /// The same, and completes once the group has it. [`Self::next`] has to be called on meanwhile.
    fn commit_now(&mut self, positions: &[(i32, i64)]) -> BoxFuture<Result<(), SourceError>>;

    /// Leaves and lets go of everything; completes when that is done.
    fn close(self: Box<Self>) -> BoxFuture<()>;
}

/// What a source reports.
#[derive(Debug)]
pub enum SourceEvent {
    /// These Kafka partitions are this member's from now on, under a number that rises with each assignment. Nothing of them is
    /// fetched before [`RecordSource::assign`].
    Assigned { generation: u64, partitions: Vec<i32> },
    /// They are no longer, once [`RecordSource::release`] is called. Carries the number of the newest assignment among them.
    Revoked { generation: u64, partitions: Vec<i32> },
    /// In offset order within each Kafka partition; never empty.
    Records(Vec<KafkaRecord>),
    /// Everything below this offset that this Kafka partition has to read was handed over, and there is no more for now.
    AtEnd { generation: u64, partition: i32, offset: i64 },
    /// Something is wrong; the source may recover by itself where the kind says [`ErrorKind::Unavailable`].
    Failed(SourceError),
}

/// One Kafka record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KafkaRecord {
    /// The assignment that it was fetched under.
    pub generation: u64,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp_ms: Option<u64>,
    pub key: Option<Bytes>,
    /// Absent for a tombstone.
    pub value: Option<Bytes>,
    /// In order of writing, repeated names included. A name that is not UTF-8 has replacement characters in it; of
    /// one with a zero byte nothing is known behind that.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl KafkaRecord {
    /// Bytes of key, value and headers.
    pub fn bytes(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        len(&self.key) + len(&self.value) + self.headers.iter().map(|(name, value)| name.len() + len(value)).sum::<usize>()
    }
}

/// A topic as its brokers know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicInfo {
    /// 0 where the brokers give none.
    pub id: u128,
    /// By Kafka partition, ascending.
    pub partitions: Vec<PartitionOffsets>,
    /// Kafka partitions about which no broker says where they begin and end, as while one has no leader, and why.
    pub unknown: Vec<(i32, SourceError)>,
}

/// Where one Kafka partition begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionOffsets {
    pub partition: i32,
    /// The oldest offset that is still there.
    pub low: i64,
    /// The offset after the newest Kafka record that may be read.
    pub high: i64,
}

/// Why a source does not work, told apart by what helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    pub kind: ErrorKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No broker answers, or not in time: the client keeps trying.
    Unavailable,
    /// The topic does not exist (any more): wait for it.
    TopicMissing,
    /// An offset to read from is not there: look at the topic again.
    OffsetLost,
    /// Refused: somebody has to change properties or rights.
    Refused,
}

impl SourceError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
