//! The tables of one partition: what is kept, under which key.
//!
//! Owns: the list of tables, their key and value types, and the two traits between the machine and whoever stores them: [`Table`]
//! names one, [`State`] reads and writes them all. Does not own: layers, disk, or the bytes of keys (`storage`).
//!
//! No row grows with use (rule O7). What grows is rows, under a key that begins with whom they belong to; the owner's row counts
//! them. What belongs to an invocation goes by the incarnation of its life, and values of state by a generation: both are numbers
//! that are never used again, so that rows that are left over (rule M9) are in nobody's way.
//!
//! Keys order by `Ord` as listed; `storage` keeps that order on disk, so a scan sees memory and disk merged.

use crate::chore::Chore;
use bytes::Bytes;
use minicbor::{Decode, Encode};
use surefoot_model::catalog::{Deployment, KafkaCluster, Subscription};
use surefoot_model::{
    Attempt, AttemptClass, Caller, DeploymentId, Entry, Epoch, Incarnation, Invocation, InvocationId, Message, ObjectKey,
    OpenCompletion, Outcome, ParkedRecord, PartitionId, StreamId, SubscriptionId, Text, TimerOwner, Timestamp, encoding,
};

/// A stored entry that cannot be read. The partition stops (rule C5).
#[derive(Debug, thiserror::Error)]
#[error("table {table}: {message}")]
pub struct StateError {
    pub table: &'static str,
    pub message: String,
}

/// Typed tables of one partition, read and written by `apply`.
pub trait State {
    fn get<T: Table>(&self, key: &T::Key) -> Result<Option<T::Value>, StateError>;

    /// Writes an entry whether or not there is one.
    fn put<T: Table>(&mut self, key: T::Key, value: T::Value);

    /// Writes an entry that the caller knows to be absent: if it is deleted before a checkpoint it costs no disk write (rule C3).
    fn insert<T: Table>(&mut self, key: T::Key, value: T::Value);

    fn delete<T: Table>(&mut self, key: &T::Key);

    /// At most `limit` entries with `from <= key < to` in key order.
    fn scan<T: Table>(&self, from: &T::Key, to: Option<&T::Key>, limit: usize) -> Result<Rows<T>, StateError>;

    /// The entries with `from <= key < to`, of which the caller knows that there are `count`, neither more nor fewer: where all of
    /// them lie in memory, the disk is not asked.
    fn all<T: Table>(&self, from: &T::Key, to: &T::Key, count: usize) -> Result<Rows<T>, StateError> {
        self.scan::<T>(from, Some(to), count)
    }
}

/// Entries in key order.
pub type Rows<T> = Vec<(<T as Table>::Key, <T as Table>::Value)>;

/// A type constructor: what a [`TableSet`] holds for each table.
pub trait Family {
    type Of<T: Table>: Default;
}

/// Something done to each table of a set in turn.
pub trait Visit<F: Family> {
    fn visit<T: Table>(&mut self, of: &mut F::Of<T>);
}

/// One table.
pub trait Table: Sized + Send + Sync + 'static {
    /// Stable: it is written to disk. Never reused.
    const TAG: u8;
    const NAME: &'static str;
    type Key: Clone + Ord + std::fmt::Debug + Send + Sync;
    type Value: Clone + PartialEq + std::fmt::Debug + Send + Sync + Encode<()> + for<'b> Decode<'b, ()>;

    fn of<F: Family>(set: &TableSet<F>) -> &F::Of<Self>;
    fn of_mut<F: Family>(set: &mut TableSet<F>) -> &mut F::Of<Self>;
}

macro_rules! tables {
    ($($(#[$doc:meta])* $tag:literal $field:ident $name:ident: $key:ty => $value:ty;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name;

            impl Table for $name {
                const TAG: u8 = $tag;
                const NAME: &'static str = stringify!($field);
                type Key = $key;
                type Value = $value;
                fn of<F: Family>(set: &TableSet<F>) -> &F::Of<Self> { &set.$field }
                fn of_mut<F: Family>(set: &mut TableSet<F>) -> &mut F::Of<Self> { &mut set.$field }
            }
        )*

        /// One `F::Of<T>` per table.
        pub struct TableSet<F: Family> {
            $($field: F::Of<$name>,)*
        }

        impl<F: Family> Default for TableSet<F> {
            fn default() -> Self {
                Self { $($field: Default::default(),)* }
            }
        }

        impl<F: Family> TableSet<F> {
            /// Visits every table, in the order of their tags.
            pub fn visit(&mut self, visitor: &mut impl Visit<F>) {
                $(visitor.visit::<$name>(&mut self.$field);)*
            }
        }
    };
}

tables! {
    /// Counters and the clock of the partition.
    1 meta Meta: () => MetaRow;
    2 invocations Invocations: InvocationId => Invocation;
    3 journal Journal: JournalKey => Entry;
    /// The lock and inbox of a key. Absent: free, and nobody waits.
    4 objects Objects: ObjectKey => ObjectRow;
    5 inbox Inbox: InboxKey => InvocationId;
    6 state_values StateValues: StateKey => StateValue;
    /// The names of a key's values apart from the values, to be listed without reading those.
    /// How many bytes its value has.
    7 state_names StateNames: StateKey => u32;
    8 timers Timers: TimerKey => ();
    /// Invocations with an attempt, in the order in which attempts are started: new ones come last in their class.
    9 running Running: RunningKey => InvocationId;
    10 expiries Expiries: ExpiryKey => ExpiryRow;
    11 outbox Outbox: OutboxKey => Message;
    12 outboxes Outboxes: PartitionId => OutboxRow;
    /// The last sequence number taken from each partition (rule O1).
    13 inbound Inbound: PartitionId => u64;
    /// The last offset taken from each stream (rule K1).
    14 streams Streams: StreamId => i64;
    15 sources Sources: SubscriptionId => SourceRow;
    16 parked Parked: ParkedKey => ParkedRecord;
    /// The catalog's rows; in its partition only.
    17 catalog CatalogRows: CatalogKey => CatalogRow;
    /// Where a key's values are. Absent: it has none.
    18 states States: ObjectKey => StateRow;
    /// Commands whose completion has not come.
    19 open Open: OpenKey => OpenCompletion;
    /// Invocations that wait for another one's result.
    20 waiters Waiters: WaiterKey => ();
    /// Work that goes on record by record (rule M9), by number.
    21 chores Chores: u64 => Chore;
    /// What chores have collected so far.
    22 chore_pages ChorePages: ChorePageKey => Vec<Text>;
    /// Chores that list the names of a generation: those stay until they are listed.
    23 listings Listings: ListingKey => ();
    /// What a chore tells to all who wait for it, by the chore's number.
    24 chore_outcomes ChoreOutcomes: u64 => Outcome;
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct MetaRow {
    /// The newest rules by which a record of this partition was written: a build that knows older ones only may not read its
    /// tables (rule M7).
    #[n(0)]
    pub rules: u16,
    #[n(1)]
    pub epoch: Epoch,
    /// The process that leads in this epoch.
    #[n(2)]
    pub process: u64,
    /// The newest `record.at`, made monotone (rule T1).
    #[n(3)]
    pub now: Timestamp,
    #[n(4)]
    pub last_incarnation: Incarnation,
    #[n(5)]
    pub last_attempt: Attempt,
    /// Bytes of completed invocations that the byte bound may evict (rule R1).
    #[n(6)]
    pub evictable_bytes: u64,
    #[n(7)]
    pub last_generation: u64,
    #[n(8)]
    pub last_chore: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JournalKey {
    /// Of whose life it is the journal.
    pub life: Incarnation,
    pub index: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpenKey {
    /// Of whose life it is a command.
    pub life: Incarnation,
    pub completion: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaiterKey {
    /// Whose result is waited for.
    pub callee: Incarnation,
    pub caller: Caller,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunningKey {
    pub class: AttemptClass,
    /// Its turn in the class: the number of the attempt, or a later one of the same counter for an attempt that was raised to the
    /// class. New ones are last, and none comes again.
    pub turn: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct ObjectRow {
    /// The exclusive invocation that holds the key.
    #[n(0)]
    pub owner: Option<InvocationId>,
    /// Slots `head..tail` of the inbox; some may be empty.
    #[n(1)]
    pub head: u64,
    #[n(2)]
    pub tail: u64,
    /// Slots that are not.
    #[n(3)]
    pub waiting: u64,
    /// Those of invocations that others wait for: what stands before them is needed, too.
    #[n(4)]
    pub needed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InboxKey {
    pub object: ObjectKey,
    pub slot: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateKey {
    pub object: ObjectKey,
    /// Values of another generation than that of [`StateRow`] have been cleared.
    pub generation: u64,
    pub name: Text,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StateRow {
    #[n(0)]
    pub generation: u64,
    /// Values, and names; never 0.
    #[n(1)]
    pub values: u32,
    /// Bytes of the names.
    #[n(2)]
    pub name_bytes: u64,
    /// Bytes of the values.
    #[n(3)]
    pub value_bytes: u64,
    /// Of the largest value that this generation has had.
    #[n(4)]
    pub value_bytes_max: u32,
}

impl StateRow {
    /// No values yet.
    pub fn empty(generation: u64) -> Self {
        Self { generation, values: 0, name_bytes: 0, value_bytes: 0, value_bytes_max: 0 }
    }

    /// Bytes of all names and values.
    pub fn bytes(&self) -> u64 {
        self.name_bytes + self.value_bytes
    }

    /// The most bytes that an answer about one value, or about the names, has.
    pub fn answer_bytes_max(&self) -> u64 {
        self.name_bytes.max(self.value_bytes_max.into())
    }
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct StateValue {
    #[cbor(n(0), with = "encoding::bytes")]
    pub bytes: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerKey {
    pub due: Timestamp,
    pub owner: TimerOwner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChorePageKey {
    pub chore: u64,
    pub page: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListingKey {
    pub generation: u64,
    pub chore: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExpiryKey {
    pub at: Timestamp,
    pub id: InvocationId,
    pub journal_only: bool,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct ExpiryRow {
    #[n(0)]
    pub incarnation: Incarnation,
    /// Counted in [`MetaRow::evictable_bytes`]; 0 where only time may remove it.
    #[n(1)]
    pub evictable_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutboxKey {
    pub to: PartitionId,
    pub sequence: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct OutboxRow {
    /// The last sequence number given out.
    #[n(0)]
    pub last: u64,
    /// Rows up to here are gone.
    #[n(1)]
    pub acked: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct SourceRow {
    #[n(0)]
    pub epoch: u32,
    /// The last number given to a parked Kafka record.
    #[n(1)]
    pub last_parked: u64,
    /// Parked Kafka records that are still there.
    #[n(2)]
    pub parked: u32,
    /// What is kept of them.
    #[n(3)]
    pub parked_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParkedKey {
    pub subscription: SubscriptionId,
    pub number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CatalogKey {
    Deployment(DeploymentId),
    KafkaCluster(Text),
    Subscription(SubscriptionId),
    Position(StreamId),
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum CatalogRow {
    #[n(0)]
    Deployment(#[n(0)] Deployment),
    #[n(1)]
    KafkaCluster(#[n(0)] KafkaCluster),
    #[n(2)]
    Subscription(#[n(0)] Subscription),
    #[n(3)]
    Position(#[n(0)] i64),
}
