//! The bytes of keys. **Shape**: `[partition: 2 BE][table tag: 1][key]`; numbers big endian, signed ones with the top bit
//! flipped; text with 0x00 as `00 FF`, ended by `00 00`; an enum as a tag byte and its variant's key.
//!
//! Owns: one encoding per key type, ordered bytewise exactly as the type's `Ord`, and the applied LSN's place. Stable: what is
//! written here is on disk. Does not own: which tables there are (`machine`), or the bytes of values (`model::encoding`).

use crate::codec;
use surefoot_machine::{
    CatalogKey, ChorePageKey, ExpiryKey, InboxKey, JournalKey, ListingKey, OpenKey, OutboxKey, ParkedKey, RunningKey, StateError,
    StateKey, Table, TimerKey, WaiterKey,
};
use surefoot_model::{
    Attempt, AttemptClass, Caller, DeploymentId, Incarnation, InvocationId, Life, ObjectKey, PartitionId, StreamId,
    SubscriptionId, Text, TimerOwner, Timestamp,
};

/// The longest key that an engine takes, in bytes: fjall's 65,535, but for the number of a piece of a large value. Whoever lets a user name things (a key, a state's name) refuses what would
/// exceed it: a text takes its own bytes, one more per 0x00 in it, and 2.
pub const KEY_BYTES_MAX: usize = 65_535 - size_of::<u32>();

/// A key type of a table.
pub trait TableKey: Sized {
    /// Appends the key. Byte order of the results equals `Ord` order of the keys, and no result is another's prefix.
    fn write(&self, out: &mut Vec<u8>);

    /// Reads what [`TableKey::write`] wrote and moves `bytes` behind it; `None` if it wrote no such thing.
    fn read(bytes: &mut &[u8]) -> Option<Self>;

    /// Bytes that the key holds outside itself, for estimates of memory.
    fn heap_bytes(&self) -> usize {
        0
    }
}

/// The whole key of an entry.
pub fn entry<T: Table>(partition: PartitionId, key: &T::Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(48);
    write_entry::<T>(partition, key, &mut bytes);
    bytes
}

/// Appends the whole key of an entry.
pub fn write_entry<T: Table>(partition: PartitionId, key: &T::Key, out: &mut Vec<u8>) {
    out.extend_from_slice(&prefix(partition, T::TAG));
    (codec::of::<T>().write_key)(key, out);
}

/// The table's key in the whole key of an entry. **Errors** where the bytes are no key of that table.
pub fn read_entry<T: Table>(bytes: &[u8]) -> Result<T::Key, StateError> {
    let read = || {
        let (head, mut rest) = bytes.split_at_checked(PREFIX_BYTES)?;
        let key = (codec::of::<T>().read_key)(&mut rest)?;
        (head[2] == T::TAG && rest.is_empty()).then_some(key)
    };
    read().ok_or_else(|| StateError { table: T::NAME, message: format!("no key of this table: {}", Hex(bytes)) })
}

/// Where a table's entries begin; they end where the next tag's begin.
pub fn prefix(partition: PartitionId, tag: u8) -> [u8; PREFIX_BYTES] {
    let [high, low] = partition.0.to_be_bytes();
    [high, low, tag]
}

/// Where the applied LSN of the last checkpoint lies. No table has this tag.
pub(crate) fn applied(partition: PartitionId) -> [u8; PREFIX_BYTES] {
    prefix(partition, 0)
}

const PREFIX_BYTES: usize = 3;

/// Bytes as hexadecimal digits, for messages.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

macro_rules! unsigned {
    ($($ty:ty)*) => {$(
        impl TableKey for $ty {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
            fn read(bytes: &mut &[u8]) -> Option<Self> {
                take(bytes).map(Self::from_be_bytes)
            }
        }
    )*};
}

unsigned!(u16 u32 u64 u128);

impl TableKey for i32 {
    fn write(&self, out: &mut Vec<u8>) {
        (self.cast_unsigned() ^ (1 << 31)).write(out);
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        u32::read(bytes).map(|flipped| (flipped ^ (1 << 31)).cast_signed())
    }
}

impl TableKey for bool {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        match take::<1>(bytes)? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

impl TableKey for () {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut &[u8]) -> Option<Self> {
        Some(())
    }
}

const ESCAPED: u8 = 0xFF;
const END: u8 = 0x00;

impl TableKey for Text {
    fn write(&self, out: &mut Vec<u8>) {
        let mut parts = self.as_bytes().split(|byte| *byte == 0);
        out.extend_from_slice(parts.next().expect("a split has at least one part"));
        for part in parts {
            out.extend_from_slice(&[0, ESCAPED]);
            out.extend_from_slice(part);
        }
        out.extend_from_slice(&[0, END]);
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let mut text = Vec::new();
        loop {
            let zero = bytes.iter().position(|byte| *byte == 0)?;
            text.extend_from_slice(&bytes[..zero]);
            let after = *bytes.get(zero + 1)?;
            *bytes = &bytes[zero + 2..];
            match after {
                END => return String::from_utf8(text).ok().map(Self::from),
                ESCAPED => text.push(0),
                _ => return None,
            }
        }
    }

    fn heap_bytes(&self) -> usize {
        ARC_BYTES + self.len()
    }
}

/// What a shared allocation costs besides its contents: two counters and the allocator's own.
const ARC_BYTES: usize = 32;

/// Keys that are their fields one after the other, in the order of `Ord`.
macro_rules! fields {
    ($($ty:ident { $($field:tt: $of:ty),+ })*) => {$(
        impl TableKey for $ty {
            fn write(&self, out: &mut Vec<u8>) {
                $(TableKey::write(&self.$field, out);)+
            }
            fn read(bytes: &mut &[u8]) -> Option<Self> {
                Some(Self { $($field: <$of>::read(bytes)?),+ })
            }
            fn heap_bytes(&self) -> usize {
                0 $(+ TableKey::heap_bytes(&self.$field))+
            }
        }
    )*};
}

fields! {
    PartitionId { 0: u16 }
    Timestamp { 0: u64 }
    Attempt { 0: u64 }
    Incarnation { 0: u64 }
    DeploymentId { 0: u128 }
    SubscriptionId { 0: u128 }
    InvocationId { partition_key: u64, unique: u128 }
    Life { id: InvocationId, incarnation: Incarnation }
    Caller { partition: PartitionId, id: InvocationId, incarnation: Incarnation, completion: u32 }
    ObjectKey { service: Text, key: Text }
    StreamId { subscription: SubscriptionId, epoch: u32, topic: u128, partition: i32 }
    JournalKey { life: Incarnation, index: u32 }
    OpenKey { life: Incarnation, completion: u32 }
    WaiterKey { callee: Incarnation, caller: Caller }
    RunningKey { class: AttemptClass, turn: u64 }
    InboxKey { object: ObjectKey, slot: u64 }
    StateKey { object: ObjectKey, generation: u64, name: Text }
    TimerKey { due: Timestamp, owner: TimerOwner }
    ChorePageKey { chore: u64, page: u32 }
    ListingKey { generation: u64, chore: u64 }
    ExpiryKey { at: Timestamp, id: InvocationId, journal_only: bool }
    OutboxKey { to: PartitionId, sequence: u64 }
    ParkedKey { subscription: SubscriptionId, number: u64 }
}

impl TableKey for AttemptClass {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::Needed => 1,
            Self::Fresh => 2,
        });
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        match take::<1>(bytes)? {
            [1] => Some(Self::Needed),
            [2] => Some(Self::Fresh),
            _ => None,
        }
    }
}

impl TableKey for TimerOwner {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Invocation { life, slot } => {
                out.push(1);
                life.write(out);
                slot.write(out);
            }
        }
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        match take::<1>(bytes)? {
            [1] => Some(Self::Invocation { life: Life::read(bytes)?, slot: u32::read(bytes)? }),
            _ => None,
        }
    }
}

impl TableKey for CatalogKey {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Deployment(id) => {
                out.push(1);
                id.write(out);
            }
            Self::KafkaCluster(name) => {
                out.push(2);
                name.write(out);
            }
            Self::Subscription(id) => {
                out.push(3);
                id.write(out);
            }
            Self::Position(stream) => {
                out.push(4);
                stream.write(out);
            }
        }
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        match take::<1>(bytes)? {
            [1] => DeploymentId::read(bytes).map(Self::Deployment),
            [2] => Text::read(bytes).map(Self::KafkaCluster),
            [3] => SubscriptionId::read(bytes).map(Self::Subscription),
            [4] => StreamId::read(bytes).map(Self::Position),
            _ => None,
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::KafkaCluster(name) => name.heap_bytes(),
            Self::Deployment(_) | Self::Subscription(_) | Self::Position(_) => 0,
        }
    }
}
