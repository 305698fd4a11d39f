//! Journal entries: commands as the handler sent them, notifications as the server made them.
//!
//! Owns: the shape of entries and results at rest. Does not own: their bytes on the wire to a handler (`protocol`), or what an
//! entry sets in motion (`machine`). Source: protocol reference sections 5 and 6.

use crate::{InvocationId, Text, encoding};
use bytes::Bytes;
use minicbor::{Decode, Encode};

/// Type codes of entries, as the service protocol numbers them.
pub mod entry_type {
    pub const INPUT: u16 = 0x0400;
    pub const OUTPUT: u16 = 0x0401;
    pub const GET_LAZY_STATE: u16 = 0x0402;
    pub const SET_STATE: u16 = 0x0403;
    pub const CLEAR_STATE: u16 = 0x0404;
    pub const CLEAR_ALL_STATE: u16 = 0x0405;
    pub const GET_LAZY_STATE_KEYS: u16 = 0x0406;
    pub const GET_EAGER_STATE: u16 = 0x0407;
    pub const GET_EAGER_STATE_KEYS: u16 = 0x0408;
    pub const SLEEP: u16 = 0x040C;
    pub const CALL: u16 = 0x040D;
    pub const ONE_WAY_CALL: u16 = 0x040E;
    pub const RUN: u16 = 0x0411;

    pub const GET_LAZY_STATE_COMPLETION: u16 = 0x8002;
    pub const GET_LAZY_STATE_KEYS_COMPLETION: u16 = 0x8006;
    pub const SLEEP_COMPLETION: u16 = 0x800C;
    pub const CALL_COMPLETION: u16 = 0x800D;
    /// Answers a call and a one-way call alike.
    pub const CALL_INVOCATION_ID: u16 = 0x800E;
    pub const RUN_COMPLETION: u16 = 0x8011;
    pub const SIGNAL: u16 = 0xFBFF;
}

/// A terminal failure: what a handler threw, or what the server says in its place.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Failure {
    #[n(0)]
    pub code: u32,
    #[n(1)]
    pub message: String,
    #[n(2)]
    pub metadata: Vec<(String, String)>,
    /// Where a failure ended an invocation whose retries ran out.
    #[n(3)]
    pub stacktrace: Option<String>,
}

impl Failure {
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), metadata: Vec::new(), stacktrace: None }
    }

    pub fn killed() -> Self {
        Self::new(409, "killed")
    }

    /// Bytes of its texts, for bounds.
    pub fn bytes(&self) -> u64 {
        let metadata = self.metadata.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        (self.message.len() + metadata + self.stacktrace.as_ref().map_or(0, String::len)) as u64
    }
}

/// How an invocation, a run or a call ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    #[n(0)]
    Success(#[cbor(n(0), with = "encoding::bytes")] Bytes),
    #[n(1)]
    Failure(#[n(0)] Failure),
}

impl Outcome {
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Success(_))
    }

    /// Payload bytes, for bounds.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Success(value) => value.len() as u64,
            Self::Failure(failure) => failure.bytes(),
        }
    }
}

/// One element of an invocation's journal.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Entry {
    /// What the handler wrote, byte for byte: replay compares it field by field, so it is never encoded anew.
    #[n(0)]
    Command {
        /// One of [`entry_type`].
        #[n(0)]
        ty: u16,
        /// The message without its frame header.
        #[cbor(n(1), with = "encoding::bytes")]
        raw: Bytes,
    },
    #[n(1)]
    Notification(#[n(0)] Notification),
}

impl Entry {
    /// Payload bytes, for bounds.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Command { raw, .. } => raw.len() as u64,
            Self::Notification(notification) => notification.bytes(),
        }
    }
}

/// An entry that the server delivers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Notification {
    /// One of [`entry_type`].
    #[n(0)]
    pub ty: u16,
    #[n(1)]
    pub id: NotificationId,
    #[n(2)]
    pub result: Resolution,
}

impl Notification {
    /// Payload bytes, for bounds.
    pub fn bytes(&self) -> u64 {
        match &self.result {
            Resolution::Value(value) => value.len() as u64,
            Resolution::Failure(failure) => failure.bytes(),
            Resolution::StateKeys(keys) => keys.iter().map(|k| k.len() as u64).sum(),
            Resolution::Void | Resolution::InvocationId(_) => 0,
        }
    }
}

/// What a notification answers, and what a suspended invocation waits for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum NotificationId {
    #[n(0)]
    Completion(#[n(0)] u32),
    #[n(1)]
    Signal(#[n(0)] u32),
    #[n(2)]
    NamedSignal(#[n(0)] Text),
}

/// A notification's result.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Resolution {
    #[n(0)]
    Void,
    #[n(1)]
    Value(#[cbor(n(0), with = "encoding::bytes")] Bytes),
    #[n(2)]
    Failure(#[n(0)] Failure),
    #[n(3)]
    InvocationId(#[n(0)] InvocationId),
    /// State keys, sorted bytewise.
    #[n(4)]
    StateKeys(#[n(0)] Vec<Text>),
}

impl From<Outcome> for Resolution {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Success(value) => Self::Value(value),
            Outcome::Failure(failure) => Self::Failure(failure),
        }
    }
}
