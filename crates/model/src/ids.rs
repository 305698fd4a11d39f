//! Positions and identifiers, and how their public text forms are made and read.
//!
//! Owns: `inv_1…`, `dp_1…`, `sub_1…`, the hash that picks a partition, and which invocations share an id. Source: protocol
//! reference sections 9.1 and 9.2.

use crate::base62;
use crate::encoding;
use crate::{Target, Text};
use minicbor::{Decode, Encode};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use xxhash_rust::xxh3::Xxh3;

/// One partition of a node's (or cluster's) key space. The catalog's reserved partition is [`PartitionId::CATALOG`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct PartitionId(#[n(0)] pub u16);

impl PartitionId {
    /// The reserved partition of the catalog (rule M2).
    pub const CATALOG: Self = Self(u16::MAX);

    /// The partition that owns a partition key: `count` ranges of equal size over the 64-bit space.
    pub fn of(partition_key: u64, count: u16) -> Self {
        Self(((u128::from(partition_key) * u128::from(count)) >> 64) as u16)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::CATALOG { f.write_str("catalog") } else { write!(f, "{}", self.0) }
    }
}

/// Position of a record in its partition's log: dense, the first is 1, so that 0 means "nothing yet" (rule L5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Lsn(#[n(0)] pub u64);

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Epoch(#[n(0)] pub u32);

/// Milliseconds of wall-clock time since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Timestamp(#[n(0)] pub u64);

impl Timestamp {
    pub fn after_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// A text that is no id of the kind asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {0} id")]
pub struct InvalidId(pub &'static str);

/// One invocation. **Shape**: 8 bytes partition key, 16 bytes unique part, both big endian; as text `inv_1`, 11 and 22 base62
/// digits. A workflow run and an invocation with an idempotency key get the same id each time, by design; [`Incarnation`] tells
/// two lives of one id apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct InvocationId {
    #[n(0)]
    pub partition_key: u64,
    #[cbor(n(1), with = "encoding::u128")]
    pub unique: u128,
}

impl InvocationId {
    /// The id of what `target` becomes when submitted with this idempotency key (or as a workflow run), or a new one made of
    /// the given random numbers where neither applies.
    pub fn for_submission(target: &Target, idempotency_key: Option<&str>, random: u128) -> Self {
        let partition_key = if target.kind.is_keyed() {
            key_hash(&target.key)
        } else {
            let bucket = idempotency_key.map_or((random as u64) % BUCKETS, |ikey| key_hash(ikey) % BUCKETS);
            service_hash(&target.service, bucket)
        };
        let unique = if target.kind == crate::TargetKind::WorkflowRun {
            digest(&["wf", &target.service, &target.key])
        } else if let Some(ikey) = idempotency_key {
            if target.kind.is_keyed() {
                digest(&["ik", &target.service, &target.key, &target.handler, ikey])
            } else {
                digest(&["ik", &target.service, &target.handler, ikey])
            }
        } else {
            random.max(1)
        };
        Self { partition_key, unique }
    }

    /// The raw form that handlers see.
    pub fn to_bytes(self) -> [u8; 24] {
        let mut raw = [0; 24];
        raw[..8].copy_from_slice(&self.partition_key.to_be_bytes());
        raw[8..].copy_from_slice(&self.unique.to_be_bytes());
        raw
    }

    pub fn from_bytes(raw: [u8; 24]) -> Self {
        let (key, unique) = raw.split_at(8);
        Self {
            partition_key: u64::from_be_bytes(key.try_into().expect("split at 8")),
            unique: u128::from_be_bytes(unique.try_into().expect("24 less 8 is 16")),
        }
    }

    pub fn partition(self, count: u16) -> PartitionId {
        PartitionId::of(self.partition_key, count)
    }
}

/// Keyless invocations of one service spread over this many partition keys.
const BUCKETS: u64 = 512;

/// The partition key of everything that carries this key, whatever its service.
pub fn key_hash(key: &str) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(key.as_bytes());
    hash.update(&[0xFF]);
    hash.digest()
}

fn service_hash(service: &str, bucket: u64) -> u64 {
    let mut hash = Xxh3::new();
    for part in [service, "unscoped/service"] {
        hash.update(part.as_bytes());
        hash.update(&[0xFF]);
    }
    hash.update(&bucket.to_le_bytes());
    hash.digest()
}

fn digest(parts: &[&str]) -> u128 {
    let sum = Sha256::digest(parts.join(",").as_bytes());
    u128::from_be_bytes(sum[..16].try_into().expect("sha-256 has 32 bytes"))
}

impl fmt::Display for InvocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PREFIX: &[u8] = b"inv_1";
        let mut text = [0; PREFIX.len() + base62::DIGITS_64 + base62::DIGITS_128];
        let (prefix, digits) = text.split_at_mut(PREFIX.len());
        let (key, unique) = digits.split_at_mut(base62::DIGITS_64);
        prefix.copy_from_slice(PREFIX);
        base62::encode_64(self.partition_key, key);
        base62::encode_128(self.unique, unique);
        // In one piece: a string that it is written to grows once.
        f.write_str(std::str::from_utf8(&text).expect("base62 is ASCII"))
    }
}

impl FromStr for InvocationId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let parse = || {
            let digits =
                text.strip_prefix("inv_1").filter(|d| d.is_ascii() && d.len() == base62::DIGITS_64 + base62::DIGITS_128)?;
            let (key, unique) = digits.split_at(base62::DIGITS_64);
            Some(Self { partition_key: base62::decode_64(key)?, unique: base62::decode_128(unique).filter(|u| *u != 0)? })
        };
        parse().ok_or(InvalidId("invocation"))
    }
}

macro_rules! public_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[cbor(n(0), with = "encoding::u128")] pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut digits = [0; base62::DIGITS_128];
                base62::encode_128(self.0, &mut digits);
                f.write_str($prefix)?;
                f.write_str(std::str::from_utf8(&digits).expect("base62 is ASCII"))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                text.strip_prefix($prefix).and_then(base62::decode_128).map(Self).ok_or(InvalidId($what))
            }
        }
    };
}

public_id!(
    /// One registered deployment; as text `dp_1` and 22 base62 digits.
    DeploymentId, "dp_1", "deployment"
);
public_id!(
    /// One subscription; as text `sub_1` and 22 base62 digits.
    SubscriptionId, "sub_1", "subscription"
);

/// One life of an invocation id within its partition. Never reused (rule M4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Incarnation(#[n(0)] pub u64);

/// An invocation in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct Life {
    #[n(0)]
    pub id: InvocationId,
    #[n(1)]
    pub incarnation: Incarnation,
}

/// One stream to a handler. Numbers are drawn from one counter per partition and never reused (rule M4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct Attempt(#[n(0)] pub u64);

/// Where an answer goes: a process, drawn at its start, and a number of that process's own (rule O2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct RequestId {
    #[n(0)]
    pub process: u64,
    #[n(1)]
    pub number: u64,
}

/// One Kafka partition as one subscription reads it in one source epoch (rule K1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct StreamId {
    #[n(0)]
    pub subscription: SubscriptionId,
    /// Raised by a rewind and by a changed topic id.
    #[n(1)]
    pub epoch: u32,
    /// The topic's id as the broker gives it; 0 where it gives none.
    #[cbor(n(2), with = "encoding::u128")]
    pub topic: u128,
    #[n(3)]
    pub partition: i32,
}

impl StreamId {
    /// A number that every delivery of the Kafka record at `offset` yields again, and no other record's (rule K3).
    pub fn hash_of(&self, offset: i64) -> u128 {
        let mut hash = Sha256::new();
        hash.update(self.subscription.0.to_be_bytes());
        hash.update(self.epoch.to_be_bytes());
        hash.update(self.topic.to_be_bytes());
        hash.update(self.partition.to_be_bytes());
        hash.update(offset.to_be_bytes());
        u128::from_be_bytes(hash.finalize()[..16].try_into().expect("sha-256 has 32 bytes"))
    }
}

/// A key of a virtual object or workflow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct ObjectKey {
    #[n(0)]
    pub service: Text,
    #[n(1)]
    pub key: Text,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TargetKind;
    use proptest::prelude::*;

    #[test]
    fn ids_match_the_published_pairs() {
        for (raw, text) in [
            ("758d82ac80d0460a6018fbd5a30a57f637e167dafa7bf8db", "inv_10SHxgluLUdD6H4So9sPlobloMYJwIzV2o"),
            ("548ae3cba54055b3b27821be7f7470ceceee9dbddceaa42b", "inv_1foAirY4KKzi1km2ki69rm6NaxO6wflYsO"),
            ("5164c775648d211bfc1b0e11991cc94920918243914fad60", "inv_12kpUQONmeFb2WqsVOkAjH4phS34cOyIC8"),
            ("d642591f2f12aeac8454c184f43dd7c15b23a33d4e7935b5", "inv_1ePaCRNn06Ka5vW31AYuRQfeD3xkVMbWeM"),
            ("953b1e7c4d6024c08fd01ae6f891b0dc85c2bf6e85851d4a", "inv_1guLBEApK1il2fQVghApaTF99nSNCBuX7h"),
        ] {
            let bytes: Vec<u8> = (0..24).map(|i| u8::from_str_radix(&raw[2 * i..2 * i + 2], 16).unwrap()).collect();
            let id = InvocationId::from_bytes(bytes.try_into().unwrap());
            assert_eq!(id.to_string(), text);
            assert_eq!(text.parse(), Ok(id));
        }
    }

    #[test]
    fn partition_keys_and_unique_parts_match_the_published_examples() {
        assert_eq!(key_hash("k2"), 0x758d82ac80d0460a);
        assert_eq!(key_hash("w1"), 0x5164c775648d211b);
        let workflow = Target::new(TargetKind::WorkflowRun, "Wf", "w1", "run");
        let id = InvocationId::for_submission(&workflow, None, 7);
        assert_eq!(id.to_string(), "inv_12kpUQONmeFb2WqsVOkAjH4phS34cOyIC8");
        let service = Target::new(TargetKind::Service, "Svc", "", "echo");
        let id = InvocationId::for_submission(&service, Some("abc"), 7);
        assert_eq!((id.partition_key, id.unique), (0xd642591f2f12aeac, 0x8454c184f43dd7c15b23a33d4e7935b5));
        assert_eq!(InvocationId::for_submission(&service, Some("ik-1"), 7).partition_key, 0x953b1e7c4d6024c0);
    }

    #[test]
    fn every_key_has_one_partition_and_ranges_are_contiguous() {
        assert_eq!(PartitionId::of(0, 16), PartitionId(0));
        assert_eq!(PartitionId::of(u64::MAX, 16), PartitionId(15));
        assert_eq!(PartitionId::of((1 << 60) - 1, 16), PartitionId(0));
        assert_eq!(PartitionId::of(1 << 60, 16), PartitionId(1));
    }

    #[test]
    fn texts_that_are_no_ids_are_refused() {
        for text in [
            "",
            "inv_1",
            "inv_2foAirY4KKzi1km2ki69rm6NaxO6wflYsO",
            "inv_1foAirY4KKzi1km2ki69rm6NaxO6wflYs!",
            "inv_1ZZZZZZZZZZZ1km2ki69rm6NaxO6wflYsO",
        ] {
            assert!(text.parse::<InvocationId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn invocation_ids_read_back(partition_key: u64, unique in 1u128..) {
            let id = InvocationId { partition_key, unique };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(InvocationId::from_bytes(id.to_bytes()), id);
        }

        #[test]
        fn public_ids_read_back(id: u128) {
            prop_assert_eq!(DeploymentId(id).to_string().parse(), Ok(DeploymentId(id)));
            prop_assert_eq!(SubscriptionId(id).to_string().parse(), Ok(SubscriptionId(id)));
        }
    }
}
