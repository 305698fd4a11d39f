//! Positions and small identifiers.

use std::fmt;

/// One partition of a node's (or cluster's) key space. The catalog's reserved partition is [`PartitionId::CATALOG`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionId(pub u16);

impl PartitionId {
    /// The reserved partition of the catalog (rule M2).
    pub const CATALOG: Self = Self(u16::MAX);
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::CATALOG { f.write_str("catalog") } else { write!(f, "{}", self.0) }
    }
}

/// Position of a record in its partition's log: dense, the first is 1, so that 0 means "nothing yet" (rule L5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lsn(pub u64);

impl Lsn {
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A leader's term. Records of an older epoch that land after a newer one's first record are ignored by every replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u32);
